"""How our keys reach an Ultralytics trainer: checked, merged into the host's own, kept through a resume."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from ultralytics.cfg import cfg2dict, get_save_dir
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import DEFAULT_CFG, LOGGER, RANK, YAML
from ultralytics.utils.checks import check_model_file_from_stem
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES
from ultralytics.utils.torch_utils import autocast

from yolokd import config
from yolokd.clipping import StepGuard
from yolokd.compat import warn_outside
from yolokd.config import consistency
from yolokd.config.defaults import complete
from yolokd.config.idle import idle
from yolokd.config.inputs import weights
from yolokd.config.label_keys import check_kind
from yolokd.criterion import DistillationLoss
from yolokd.errors import UserError
from yolokd.saving.handover import as_list, discard_run, missing_folders, split_objects
from yolokd.terms.clock import CLOCK, start_epoch
from yolokd.trust import KEY, loading

if TYPE_CHECKING:  # the mixin stands before a task's trainer; types are read from the detection one
    _Host = DetectionTrainer
else:
    _Host = object


FILES = ("data", "kd_unlabeled", "kd_class_map")  # keys that may name files or folders
BEGINNING = ("model", "pretrained", "optimizer", "lr0", "momentum", "warmup_bias_lr")  # which a resume finds resolved


def _located(value: Any) -> Any:
    """Return the whole path of what is there, and anything else as it is."""
    if isinstance(value, list):
        return [_located(item) for item in value]
    known = isinstance(value, (str, Path)) and value not in {"", config.REST} and Path(value).exists()
    return os.path.abspath(value) if known else value


def _teacher_files(value: Any, method: str) -> Any:
    """Return the whole paths of teachers that lie on this machine, once each is seen to be a checkpoint.

    Those that the host knows how to fetch keep their names.
    """
    found = []
    for name in (str(check_model_file_from_stem(item)) for item in as_list(value)):
        remote = "://" in name or (Path(name).name in GITHUB_ASSETS_NAMES and not Path(name).exists())
        file = name if remote or method == "none" else weights("teacher", name)
        found.append(str(Path(file).resolve()) if Path(file).exists() else file)
    return found if isinstance(value, list) else found[0]


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
    _begun: dict[str, Any] | None = None
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
        base = cfg2dict(cfg)
        ours = {key: value for key, value in base.items() if key in config.DEFAULTS and key not in overrides}
        base = {**base, **config.check(ours)}
        if isinstance(overrides.get("freeze"), tuple):  # which the host takes for nothing
            overrides["freeze"] = list(overrides["freeze"])
        self._given = {key: value for key, value in overrides.items() if key in config.DEFAULTS}
        overrides = complete(overrides, base, self.kind)
        for key in FILES:  # a resume may be started elsewhere
            if (value := {**base, **overrides}.get(key)) is not None:
                overrides[key] = _located(value)
        if not overrides.get("resume"):
            merged = {**config.DEFAULTS, **base, **overrides}
            check_kind(merged, self.kind)
            consistency.validate(merged)
            self._tell_unread(merged)
            if self.teacher_objects and merged["teacher_epochs"]:
                raise UserError(
                    "teacher_epochs= fine-tunes weights from a file, e.g. teacher=yolov8x.pt; give the file"
                )
            if merged["teacher"] and not self.teacher_objects:
                overrides["teacher"] = _teacher_files(merged["teacher"], merged["method"])
            if config.methods(merged["method"]) == ("ultralytics",):
                if self.teacher_objects:
                    raise UserError("method=ultralytics takes its teacher as a weights file, e.g. teacher=yolov8x.pt")
                overrides["distill_model"] = merged.get("distill_model") or as_list(merged["teacher"])[0]
        self._norms: dict[str, torch.Tensor] = {}
        self._val_terms = False
        self._guard = StepGuard()
        resumed = str(overrides.get("model") if overrides.get("resume") is True else overrides.get("resume"))
        safe = bool({**config.DEFAULTS, **base, **overrides}[KEY])
        try:
            with loading(safe, what=f"resume={resumed}", file=resumed):
                super().__init__(config.merged_base(base), overrides, _callbacks)
            self.methods, self.fits = self._with_a_gain(config.terms(self.args.method)), self.args.method == "fit"
            if self.resume and self.args.teacher and not self.teacher_objects:
                self.args.teacher = _teacher_files(self.args.teacher, self.args.method)
            self._check_precision()
            if self._begun and RANK in {-1, 0}:  # what the run began with, where the host writes what it goes on with
                kept = {key: self._begun[key] for key in BEGINNING if key in self._begun}
                YAML.save(self.save_dir / "args.yaml", {**vars(self.args), **kept})
        except Exception:
            discard_run(self)
            raise
        self._wind_clock()

    def _tell_unread(self, merged: Mapping[str, Any]) -> None:
        """Say which of the given keys do nothing, and why."""
        given = {key: value for key, value in self._given.items() if value != config.DEFAULTS[key]}
        if RANK not in {-1, 0}:
            return
        if unread := config.unread(merged["method"], given):
            shown = ", ".join(f"{key}={given[key]}" for key in unread)
            LOGGER.warning(f"method={merged['method']} does not read {shown}; leave out what does not belong to it")
        for key, when in idle([key for key in given if key not in unread], merged).items():
            LOGGER.warning(f"{key}={given[key]} does nothing {when}")

    def _with_a_gain(self, methods: tuple[str, ...]) -> tuple[str, ...]:
        """Return the methods that act: one whose gain is 0 would cost its time and change nothing."""
        off = [name for name in methods if not getattr(self.args, f"{name}_gain")]
        if off and RANK in {-1, 0}:
            LOGGER.warning(f"{' '.join(f'{name}_gain=0' for name in off)} leaves out {' and '.join(off)}")
        return tuple(name for name in methods if name not in off)

    def _wind_clock(self) -> bool:
        """Add the clock's callbacks where they are missing, and return whether that of epochs was."""
        missing = [pair for pair in CLOCK.items() if self.methods and pair[1] not in self.callbacks[pair[0]]]
        for event, callback in missing:
            self.add_callback(event, callback)
        return any(callback is start_epoch for _, callback in missing)

    def _model_train(self) -> None:
        """Begin an epoch as the host does, with the clock running where `set_callback` has put others in its place."""
        super()._model_train()
        if self._wind_clock():
            start_epoch(self)

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

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Resume with the checkpoint's own keys; of ours `teacher` may be given anew, and trust must be."""
        super().check_resume({key: value for key, value in overrides.items() if key not in config.DEFAULTS})
        if self.resume and not overrides.get("save_dir"):
            folder = Path(self.args.model).absolute().parent.parent
            if (folder / "args.yaml").is_file():  # a run that was moved or copied goes on where it lies
                self.args.save_dir = str(folder)
        if self.resume and (begun := get_save_dir(self.args) / "args.yaml").is_file():
            self._begun = YAML.load(begun)
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
            kept = [key for key, value in self._given.items() if value != getattr(self.args, key)]
            if kept := [key for key in kept if key not in {"teacher", KEY}]:
                LOGGER.warning(
                    f"resume keeps the run's own {', '.join(f'{key}={getattr(self.args, key)}' for key in kept)}; "
                    f"start a new run to change that"
                )
