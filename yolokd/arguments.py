"""How our keys reach an Ultralytics trainer: checked, merged into the host's own, kept through a resume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from ultralytics.cfg import cfg2dict, get_save_dir
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.checks import check_model_file_from_stem
from ultralytics.utils.torch_utils import autocast

from yolokd import config, consistency
from yolokd.clipping import StepGuard
from yolokd.clock import start_batch, start_epoch
from yolokd.compat import warn_outside
from yolokd.criterion import DistillationLoss
from yolokd.defaults import complete
from yolokd.errors import UserError
from yolokd.handover import as_list, discard_run, missing_folders, split_objects
from yolokd.trust import KEY, loading

if TYPE_CHECKING:  # the mixin stands before a task's trainer; types are read from the detection one
    _Host = DetectionTrainer
else:
    _Host = object


class Configured(_Host):
    """What an Ultralytics trainer needs to take our keys beside its own.

    Attributes:
        methods (tuple[str, ...]): Chosen methods; empty for plain training, from a fitted start or not, and for the
            built-in distillation.
        fits (bool): Whether the teacher gives the start alone.
        criterion (DistillationLoss | None): The student's criterion, once the model is set up.
        teacher_objects (list[nn.Module]): Teachers that came as objects rather than as files.
        new_folders (list[Path]): Folders that this run makes, to be taken away where it does not begin.
    """

    args: Any
    teacher_objects: list[nn.Module]
    new_folders: list[Path]

    def __init__(self, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None):
        """Check our keys, hand the rest to the host, and leave no folder behind where something is wrong.

        Args:
            cfg (str | dict | SimpleNamespace): Base configuration, as the host takes it.
            overrides (dict[str, Any], optional): Ultralytics' train arguments and those of `cfg/default.yaml`;
                `teacher` may also be a `YOLO` or an `nn.Module`.
            _callbacks (dict, optional): The host's callbacks.

        Raises:
            UserError: If a key of ours has a wrong value.
        """
        warn_outside()
        overrides = dict(overrides or {})
        self.criterion: DistillationLoss | None = None
        self.teacher_objects, overrides["teacher"] = split_objects(overrides.get("teacher"))
        if overrides["teacher"] is None:
            del overrides["teacher"]
        overrides.update(config.check(overrides))
        overrides = complete(overrides, cfg2dict(cfg), self.kind)
        if not overrides.get("resume"):
            merged = {**config.DEFAULTS, **overrides}
            consistency.validate(merged)
            if self.teacher_objects and merged["teacher_epochs"]:
                raise UserError(
                    "teacher_epochs= fine-tunes weights from a file, i.e. teacher=yolov8x.pt; give the file"
                )
            if config.methods(merged["method"]) == ("ultralytics",):
                if self.teacher_objects:
                    raise UserError("method=ultralytics takes its teacher as a weights file, i.e. teacher=yolov8x.pt")
                overrides["distill_model"] = merged.get("distill_model") or as_list(merged["teacher"])[0]
        self._norms: dict[str, torch.Tensor] = {}
        self._val_terms = False
        self._guard = StepGuard()
        resumed = str(overrides.get("model") if overrides.get("resume") is True else overrides.get("resume"))
        safe = bool({**config.DEFAULTS, **cfg2dict(cfg), **overrides}[KEY])
        try:
            with loading(safe, what=f"resume={resumed}", file=resumed):
                super().__init__(config.merged_base(cfg), overrides, _callbacks)
            self.methods, self.fits = config.terms(self.args.method), self.args.method == "fit"
            self._locate_teachers()
            self._check_precision()
        except Exception:
            discard_run(self)
            raise
        if self.methods:
            for event, callback in (("on_train_epoch_start", start_epoch), ("on_train_batch_start", start_batch)):
                if callback not in self.callbacks[event]:  # a DDP worker gets the launcher's callbacks
                    self.add_callback(event, callback)

    def _check_precision(self) -> None:
        """Refuse bfloat16 where the host cannot train in it, which it would find in the first step."""
        if self.args.amp == "bf16":
            try:
                with autocast(torch.bfloat16, device=self.device.type):
                    pass
            except (RuntimeError, TypeError) as error:  # the latter from hosts that do not know bf16 yet
                raise UserError(
                    f"amp=bf16 needs a GPU with native bfloat16, which device={self.device.type} has not; leave amp out"
                ) from error

    def _locate_teachers(self) -> None:
        """Keep absolute paths of teachers that lie on this machine."""
        teacher = self.args.teacher
        if teacher and not self.teacher_objects:
            files = [str(check_model_file_from_stem(name)) for name in as_list(teacher)]
            found = [str(Path(file).resolve()) if Path(file).exists() else file for file in files]
            self.args.teacher = found if isinstance(teacher, list) else found[0]

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Resume with the checkpoint's own keys; of ours `teacher` may be given anew, and trust must be."""
        super().check_resume({key: value for key, value in overrides.items() if key not in config.DEFAULTS})
        self.new_folders = missing_folders(get_save_dir(self.args))
        if self.resume:
            if "method" not in vars(self.args):
                raise UserError(
                    f"resume={self.args.model}: no interrupted yolokd run. A finished run has nothing to go on "
                    f"with; for plain runs use `yolo train resume`"
                )
            if overrides.get("teacher"):
                self.args.teacher = overrides["teacher"]
            setattr(self.args, KEY, bool(overrides.get(KEY, True)))  # a file cannot vouch for itself
            for key, default in config.DEFAULTS.items():
                if key not in vars(self.args):
                    setattr(self.args, key, default)
