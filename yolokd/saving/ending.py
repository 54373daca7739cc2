"""How a run ends: its checkpoints finished as wholes, also where it was cut off there, and what is said if it is."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed as dist
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import torch_distributed_zero_first

from yolokd.errors import UserError
from yolokd.saving.beginning import BEFORE
from yolokd.saving.files import clear_partial, final_names, whole_checkpoints
from yolokd.saving.handover import discard_run

if TYPE_CHECKING:  # the mixin stands before a task's trainer; types are read from the detection one
    _Host = DetectionTrainer
else:
    _Host = object


class _NothingLeft(Exception):
    """All epochs of a resumed run are done."""


def way_on(trainer: Any, why: str = "interrupted") -> str:
    """Return one line about what is left of a run, with the command that goes on where there is one.

    Args:
        trainer (BaseTrainer): A trainer whose run has ended early.
        why (str): What ended it.
    """
    if getattr(trainer, "complete", False):
        return f"{why} when the training was done; its checkpoints are in {trainer.wdir}"
    if not resumable(trainer):
        return f"{why} before a first epoch was saved"
    return f"{why}; go on with: yolokd train resume {shlex.quote(f'model={trainer.last}')}"


def resumable(trainer: Any) -> bool:
    """Return whether an epoch of a trainer's run was saved, the last one included."""
    last = getattr(trainer, "last", None)
    return last is not None and Path(last).exists()


class Ending(_Host):
    """What the end of a run adds to an Ultralytics trainer; mixed in before the task's own trainer class.

    The host strips last.pt and best.pt in place: a full disk or a kill meanwhile would leave a run without any
    checkpoint. Here they are stripped as copies, which take their places together once the last evaluation is done.
    A run that was cut off between its last epoch and that moment is resumed by doing that alone.

    Attributes:
        complete (bool): Whether the run has come to its end.
    """

    args: Any
    stopper: Any
    complete = False
    _all_done = False

    def train(self) -> Any:
        """Train; an interruption says how to go on, and leaves no folder behind that holds nothing."""
        try:
            return super().train()
        except KeyboardInterrupt as stop:
            if RANK == -1:
                stop.args = (way_on(self),)  # Python shows it last; the command line prints it
                discard_run(self)
            raise

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as the host does, unless no epoch is left: then only the end of the run is."""
        if not (ckpt is not None and self.resume and ckpt.get("optimizer") is not None):
            return super().resume_training(ckpt)
        if ckpt["epoch"] == BEFORE:
            raise UserError(
                f"resume={self.args.model} is the student before its first step, from which no run goes on; give the "
                f"last.pt beside it"
            )
        done, saved = ckpt["epoch"] + 1, ckpt.get("stopper") or {}
        stopped = saved.get("best_fitness") and done - saved.get("best_epoch", done) >= self.stopper.patience
        if 0 < done < self.epochs and not stopped:
            return super().resume_training(ckpt)
        self._load_checkpoint_state(ckpt)
        self.start_epoch, self._all_done = done, True

    def _setup_train(self) -> None:
        if self.resume and RANK in {-1, 0}:
            clear_partial(self.wdir)
        super()._setup_train()
        if self._all_done:
            raise _NothingLeft

    def _do_train(self, *args: Any) -> None:
        """Run the host's loop, or what comes after it where all epochs are done."""
        try:
            super()._do_train(*args)
        except _NothingLeft:
            self.epoch = self.start_epoch - 1
            LOGGER.info(f"all {self.start_epoch} epochs are done; finishing the run")
            self.final_eval()
            if RANK in {-1, 0}:
                if self.args.plots:
                    self.plot_metrics()
                self.run_callbacks("on_train_end")

    def final_eval(self) -> None:
        """Strip and evaluate copies of the checkpoints, then put them in their places."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else -1
        main = rank in {-1, 0}
        with ExitStack() as stack:
            with torch_distributed_zero_first(rank):  # on other machines too: they look for copies that are there
                stack.enter_context(whole_checkpoints(self, main, again=True))
            stack.enter_context(final_names())
            super().final_eval()
        self.complete = True
        if main:
            LOGGER.info(f"checkpoints are in {self.wdir}")
