"""What distillation adds to an Ultralytics trainer, one override per seam."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Collection
from copy import deepcopy
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from ultralytics.utils import RANK, YAML
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.torch_utils import init_seeds, unwrap_model

from yolokd import config, preflight
from yolokd.arguments import Configured
from yolokd.clipping import clip_adapters
from yolokd.errors import UserError
from yolokd.memory import give_back
from yolokd.models import class_names
from yolokd.pairs.assembly import build_criterion, check_pairs
from yolokd.rng import preserved_rng
from yolokd.saving.beginning import Beginning
from yolokd.saving.ending import Ending
from yolokd.saving.files import keep_rows, whole_checkpoints
from yolokd.saving.handover import FOLDER_PREFIX, as_list, discard_run, save_teachers
from yolokd.saving.state import FILE, find_state, forget_adapters, write_state
from yolokd.students.kinds import check_kind
from yolokd.students.new_classes import new_classes
from yolokd.students.pruned import as_it_is
from yolokd.students.query_student import put_on, take_off
from yolokd.students.start import Start, shared_start, start_from_teacher
from yolokd.teachers.teacher import Teacher, load_teacher
from yolokd.teachers.teacher_run import fine_tune
from yolokd.trust import inspect_file, inspect_start, loading
from yolokd.unlabeled import no_labels
from yolokd.unlabeled.feeding import Feeding

_NORMS = ("kd/student_grad_norm", "kd/adapter_grad_norm")


class Distilling(Configured, Ending, Beginning, Feeding):
    """What distillation adds to an Ultralytics trainer; mixed in before the task's own trainer class.

    With `method=none` and `method=ultralytics` every override hands over to the host unchanged; checkpoints are whole
    files in any case.

    Attributes:
        kind (str): Kind of student that is trained, a key of `TRAINERS`.
    """

    kind: ClassVar[str] = "detect"
    model: Any
    optimizer: Any
    _random_start = False
    _new_classes: Collection[int] = ()

    def train(self) -> Any:
        """Train; a teacher is fine-tuned first where asked, and handed to DDP workers where it is an object."""
        try:
            if (self.methods or self.fits) and self.args.teacher_epochs and not self.resume:
                if RANK != -1:
                    raise UserError(
                        f"teacher_epochs={self.args.teacher_epochs} fine-tunes the teacher in one process; torchrun "
                        f"has started several; fine-tune it first, e.g. yolo train model={self.args.teacher} "
                        f"data={self.args.data} epochs={self.args.teacher_epochs}, and give its best.pt as teacher="
                    )
                with preserved_rng(), loading(self.args.kd_safe_load):
                    self.args.teacher = str(fine_tune(self.args.teacher, self.args, self.save_dir.parent))
                    init_seeds(self.args.seed + 1 + RANK, deterministic=self.args.deterministic)
                gc.collect()  # the teacher's trainer refers to itself, and holds a model, an EMA and an optimizer
                give_back()
                self.args.teacher_epochs = 0
                YAML.save(self.save_dir / "args.yaml", vars(self.args))
            if self.teacher_objects and getattr(self, "ddp", False):
                with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
                    self.args.teacher = save_teachers(self.teacher_objects, Path(folder))
                    return super().train()
            return super().train()
        except BaseException as error:
            if isinstance(error, UserError):
                discard_run(self)
            if self.criterion and isinstance(self.model, nn.Module):
                take_off(unwrap_model(self.model))  # a notebook goes on with the model, and may save it
            raise

    def _setup_ddp(self) -> None:
        """Join all processes: the host counts the devices of its own machine alone, torchrun those of all machines."""
        self.world_size = int(os.environ.get("WORLD_SIZE", self.world_size))
        super()._setup_ddp()

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Return the host's model, after a look whether it is of the kind that this trainer trains."""
        try:
            with loading(self.args.kd_safe_load, what=f"model={self.args.model}"):
                if cfg is not None:
                    check_kind(cfg, self.kind, str(self.args.model))
                self._random_start = weights is None and not self.resume
                known = {} if weights is None else class_names(weights)
                built = super().get_model(cfg=cfg, weights=weights, verbose=verbose)
                student = as_it_is(built, cfg, weights, self.data)
                self._new_classes = new_classes(student, weights, known, self.data["names"])
                student.kd_brought = self._random_start, self._new_classes  # workers are handed the model alone
                return student
        except UserError:
            discard_run(self)
            raise

    def set_model_attributes(self) -> None:
        """Attach the distillation criterion, before the host compiles, freezes, wraps and optimizes the model."""
        super().set_model_attributes()
        brought = vars(unwrap_model(self.model)).pop("kd_brought", (self._random_start, self._new_classes))
        self._random_start, self._new_classes = brought
        if not self.methods and not (self.fits and not self.resume):
            return
        stride = self._stride()  # the host rounds the size later only
        self.args.imgsz = check_imgsz(self.args.imgsz, stride=stride, floor=stride, max_dim=1)
        model = unwrap_model(self.model)
        if self.teacher_objects or FOLDER_PREFIX in str(self.args.teacher):
            if RANK in {-1, 0}:
                objects = self.teacher_objects or [load_teacher(path)[0] for path in as_list(self.args.teacher)]
                self.args.teacher = save_teachers(objects, self.save_dir)
                YAML.save(self.save_dir / "args.yaml", vars(self.args))
        loaded = [load_teacher(source) for source in self.teacher_objects or as_list(self.args.teacher)]
        if self.args.kd_names:
            no_labels.ready([teacher for teacher, _ in loaded], self.data["names"], self.args.kd_class_map)
        check = self.args.kd_preflight and not self.resume and RANK in {-1, 0}
        teachers = [Teacher(teacher, identity) for teacher, identity in loaded]
        if check:
            preflight.check_teachers(model, teachers, self.data["names"], self.args)
        if not self.resume:
            models, names = [teacher for teacher, _ in loaded], self.data["names"]
            if self.methods:
                check_pairs(model, teachers, self.methods, self.args)  # before a fit takes its time
            found = Start()
            if RANK in {-1, 0}:  # the others wait for what is found here
                found = start_from_teacher(model, models, self.sample_images, names, self.args, *brought)
            self._fitted_start = shared_start(model, found)
        if self.fits:
            return
        if check:
            self._preflight_models = [deepcopy(teacher) for teacher, _ in loaded]
        self.criterion = build_criterion(model, teachers, self.methods, self.args)
        put_on(model, self.criterion)

    def set_class_weights(self) -> None:
        """Rebuild the task criterion, which reads the class weights that are set here."""
        super().set_class_weights()
        if self.criterion and self.args.cls_pw:
            model: Any = unwrap_model(self.model)
            self.criterion.set_base(model.init_criterion())

    def _setup_train(self) -> None:
        """Set up as the host does, then look at the run before it starts."""
        with loading(self.args.kd_safe_load, what=f"model={self.args.model}", file=str(self.args.model)):
            if not self.resume:
                inspect_start(self.args.pretrained)
            try:
                super()._setup_train()
            except RuntimeError as error:
                if "no trainable parameters" not in str(error):
                    raise
                raise UserError(f"freeze={self.args.freeze} leaves nothing to train; freeze fewer layers") from error
        models, start = self.__dict__.pop("_preflight_models", None), self.__dict__.pop("_fitted_start", Start())
        kept = False
        if self.criterion:
            if self.args.compile:
                student: Any = unwrap_model(self.model)
                self.criterion.replay_through(student.model[-1])
            if self.args.kd_preflight and not self.resume:
                keep = bool(models) and preflight.check_run(self, models, start.given)
                kept = preflight.settle_start(self, start.given, keep)
        if start.fitted and not kept:
            self.remember_start()

    def get_validator(self) -> Any:
        """Return the host's validator, which knows only the host's keys."""
        args, self.args = self.args, config.host_args(self.args)
        try:
            return super().get_validator()
        finally:
            self.args = args

    def auto_batch(self) -> int:
        """Estimate the batch size with the teacher beside the student."""
        if not self.criterion:
            return super().auto_batch()
        student = self.model
        self.model = preflight.Beside(unwrap_model(student), self.criterion, self.epochs, self.args.close_mosaic)
        try:
            return super().auto_batch()
        finally:
            self.model = student

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Resume as the host does, with the criterion taken off meanwhile: two-branch heads get a new one there."""
        if ckpt is not None and self.resume and RANK in {-1, 0}:
            if self.best.exists():  # the host opens it at the end, without restriction since it is the run's own
                inspect_file(str(self.best), self.best)
            keep_rows(self.csv, ckpt.get("epoch", -1) + 1)
        if not self.criterion:
            return super().resume_training(ckpt)
        model = unwrap_model(self.model)
        del model.criterion
        take_off(self.ema.ema)
        super().resume_training(ckpt)
        if rebuilt := model.__dict__.pop("criterion", None):
            self.criterion.set_base(rebuilt)
        model.criterion = self.criterion

    def _load_checkpoint_state(self, ckpt: dict[str, Any]) -> None:
        """Restore adapters, gains and method state beside what the host restores."""
        saved = find_state(self.wdir / FILE, ckpt["epoch"], self._identity()) if self.criterion else None
        if self.criterion and saved is None and ckpt.get("optimizer"):
            forget_adapters(ckpt["optimizer"], self.optimizer, self.criterion.adapters())
        super()._load_checkpoint_state(ckpt)
        if self.criterion:
            take_off(self.ema.ema)
            if saved:
                self.criterion.load(saved)

    def _identity(self) -> dict[str, Any]:
        assert self.criterion is not None
        return {"teachers": [link.teacher.fingerprint for link in self.criterion.links], "methods": list(self.methods)}

    def optimizer_step(self) -> None:
        """Step as the host does, with the adapters' gradients clipped apart from the student's."""
        if not self.criterion:
            return super().optimizer_step()
        model, scale = unwrap_model(self.model), self.scaler.get_scale()
        del model.criterion  # out of the host's clipping; the optimizer holds the adapters by itself
        try:
            norms = clip_adapters(model.parameters(), self.criterion.adapters(), scale)
            if self.scaler.is_enabled():
                self._guard.see_scale(scale)  # the scaler leaves steps out by itself
            else:
                self._guard.check(norms[0] + norms[1], self.optimizer)
            super().optimizer_step()
        finally:
            model.criterion = self.criterion
        self._norms = dict(zip(_NORMS, norms))

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Validate; with `kd_val` the live criterion is lent to the EMA student, else its val columns are NaN."""
        if not self.criterion:
            return super().validate()
        ema, lend = self.ema.ema, self.args.kd_val
        if lend:
            put_on(ema, self.criterion)
            self.criterion.lent = True
        try:
            metrics, fitness = super().validate()
        finally:
            if lend:
                take_off(ema)
                self.criterion.lent = False
                self.criterion.train()
        self._val_terms = lend
        return (self._blank(metrics) if metrics else metrics), fitness

    def _blank(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return metrics whose distillation terms are NaN where they were not computed in this epoch's validation."""
        if self._val_terms:
            return metrics
        return {**metrics, **{f"val/{name}_loss": float("nan") for name in self.methods}}

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Add stage, gains, bare means and gradient norms to results.csv."""
        if self.criterion:
            norms = {key: float(self._norms.pop(key, float("nan"))) for key in _NORMS}
            norms = {key: norm if isfinite(norm) else float("nan") for key, norm in norms.items()}  # of a step left out
            metrics = {**self._blank(metrics), **self.criterion.columns(), **norms}
            self._val_terms = False
            self._guard.tell()
        super().save_metrics(metrics)

    def save_model(self) -> bool:
        """Write the distillation state first, then the host's checkpoints, which hold a plain student, as wholes."""
        if self.criterion:
            write_state(self.wdir / FILE, self.epoch, self.criterion.state(), self._identity())
        with whole_checkpoints(self):
            return super().save_model()
