"""The student's criterion during distillation: the task's own terms, followed by one term per method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from yolokd.errors import UserError
from yolokd.losses.base import DistillLoss
from yolokd.outputs import Output, read_output
from yolokd.pairs.link import Link
from yolokd.students.query_task import task_for
from yolokd.taps import Taps, Targets
from yolokd.teachers.ensemble import confidence_weights
from yolokd.teachers.precision import beside
from yolokd.terms.calibration import GainCalibration, replayed
from yolokd.terms.clock import Clock
from yolokd.terms.finite import FiniteTerms, finite_output
from yolokd.terms.schedule import Schedule, Stages
from yolokd.terms.watch import TermWatch

Units = dict[str, tuple[str, torch.Tensor, float]]


class DistillationLoss(nn.Module):
    """Task criterion plus distillation terms, in the form that Ultralytics expects of a criterion.

    Registered on the student as `criterion`, so that optimizer, clipping and DDP see the adapters; its entries stay
    out of the student's state. Gain, schedule and batch size are applied here, once, and nowhere else.

    Attributes:
        task (Task): The criterion that the student would have had.
        methods (nn.ModuleDict): Each method's modules, one per teacher.
        shares (list[dict[str, float]]): For each stage the gain of each unit where `calibration` is None, else its
            wanted gradient share.
        calibration (GainCalibration | None): Measured gains.
        clock (Clock): Where the run is.
        lent (bool): Whether the terms are computed in evaluation too, without changing any state.
        head (nn.Module | None): The student's head where the student is compiled: such a graph hides the neck maps
            from the gradients that are measured, so the head is run once more for them.
    """

    def __init__(
        self,
        base: Any,
        links: Sequence[Link],
        methods: Mapping[str, Sequence[DistillLoss]],
        shares: Sequence[Mapping[str, float]],
        schedule: Schedule,
        stages: Stages,
        calibrate: bool = True,
        by_confidence: bool = False,
        every: int = 1,
        confidence: float = 0.5,
    ):
        """Join base criterion, teachers and methods.

        Args:
            base (Any): The student's own criterion, `model.init_criterion()`.
            links (Sequence[Link]): The teachers in order of their stages.
            methods (Mapping[str, Sequence[DistillLoss]]): For each method one module per teacher.
            shares (Sequence[Mapping[str, float]]): For each stage and unit (`method` or `method_part`) the wanted
                gradient share, or the fixed gain where `calibrate` is False.
            schedule (Schedule): Course of the terms.
            stages (Stages): Which teacher acts when.
            calibrate (bool): Whether the shares are gradient shares to be measured.
            by_confidence (bool): Whether teachers that act together are weighted by their confidence, else equally.
            every (int): Distil on every so many steps only, with the terms multiplied by that number.
            confidence (float): Teacher's probability from which an anchor of an image without labels is an object.
        """
        super().__init__()
        self.links = list(links)
        self.methods: Any = nn.ModuleDict({name: nn.ModuleList(modules) for name, modules in methods.items()})
        self.schedule, self.stages = schedule, stages
        self.shares = [dict(units) for units in shares]
        self.by_confidence, self.every, self.confidence = by_confidence, every, confidence
        self.calibration = GainCalibration(self.shares[0]) if calibrate else None
        self.clock = Clock()
        self.lent = False
        self.head = None
        self.watch = TermWatch()
        self.finite = FiniteTerms(methods)
        self.values: dict[str, list[torch.Tensor]] = {}  # sum and number of the finite ones
        self.seen = 0
        self.register_state_dict_post_hook(_leave_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_forgive)  # type: ignore[no-untyped-call]
        for modules in methods.values():
            for module in modules:
                module.staged = module.takes_stages and stages.count > 1
        self.set_base(base)

    def set_base(self, base: Any) -> None:
        """Take a task criterion in place of the one so far."""
        self.task = task_for(base)

    def replay_through(self, head: nn.Module) -> None:
        """Measure gradients through the head run once more, as a compiled student needs it."""
        object.__setattr__(self, "head", head)  # no submodule: the student holds it

    def __getattr__(self, name: str) -> Any:
        """Offer the epoch-end `update` of two-branch criteria only where the base has it."""
        if name == "update" and "task" in self.__dict__ and hasattr(self.task.base, "update"):
            return self.task.base.update
        return super().__getattr__(name)

    @property
    def stage(self) -> int:
        """The current stage, counted from 0."""
        return self.stages.at(self.clock.epoch, self.clock.epochs)

    @property
    def gains(self) -> dict[str, float]:
        """The gain of each unit in this stage where none is measured, else its wanted gradient share."""
        return self.shares[self.stage]

    @property
    def factor(self) -> float:
        """Schedule and stage ramp at this moment."""
        clock = self.clock
        stop = self.schedule.stop_at(clock.epochs, clock.close_mosaic)
        return self.schedule.factor(clock.progress, stop) * self.stages.ramp(self.stage, clock.position, clock.epochs)

    @property
    def rests(self) -> bool:
        """Whether this step is one of those that `every` leaves out; the first of a run is not."""
        return self.training and self.clock.done % self.every > 0

    def unit_gain(self, unit: str) -> float:
        """Return the gain in force of a method or of one of its parts."""
        return (self.calibration.gains if self.calibration else self.gains)[unit]

    def adapters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that belong to distillation."""
        return self.methods.parameters()

    def forward(self, preds: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss terms times the batch size, and the detached items before that factor.

        Args:
            preds (Any): The student's output, as the host passes it to a criterion.
            batch (dict[str, torch.Tensor]): The host's batch.

        Returns:
            loss (torch.Tensor): The task's terms followed by one per method, each times the batch size.
            items (dict[str, torch.Tensor]): The task's items followed by `NAME_loss` for each method.
        """
        loss, items = self.task(preds, batch)
        images = self.task.images(batch)
        if not (self.training or self.lent):
            nothing = torch.full((), float("nan"), device=loss.device)
            return loss, {**items, **{f"{name}_loss": nothing for name in self.methods}}
        terms = self._terms(preds, batch, loss.sum() / images)
        added = torch.stack(list(terms.values()))
        items = {**items, **{f"{name}_loss": term.detach() for name, term in terms.items()}}
        return torch.cat((loss, added.to(loss.dtype) * images)), items

    def _terms(self, preds: Any, batch: dict[str, torch.Tensor], task: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each method's term as it is added to the loss per image."""
        output, factor = read_output(preds), self.factor
        terms = {name: _idle(modules, output.feats[0]) for name, modules in self.methods.items()}
        if factor == 0 or self.rests:
            return terms
        self.finite.begin()
        units = self._units(output, batch)
        scale = self.every if self.training else 1
        if self.training:
            self._measure(task, units, output.feats, preds, batch)
        for unit, (name, term, _) in units.items():
            terms[name] = terms[name] + self.unit_gain(unit) * factor * scale * term
        if self.training:
            self._note(units, terms, factor)
        return terms

    def _measure(
        self, task: torch.Tensor, units: Units, feats: Sequence[torch.Tensor], preds: Any, batch: dict[str, Any]
    ) -> None:
        """Let the gains be measured where they are due, and refuse a run whose neck cannot learn."""
        learning = [index for index, feat in enumerate(feats) if feat.requires_grad]
        features = any(m[0].signal != "logits" for m in self.methods.values())
        if not learning and (self.calibration or features):
            raise UserError(
                "freeze= leaves no gradient at the neck, where features are distilled and kd_gain=auto measures; "
                f"freeze fewer layers, or set {'method=bckd ' * features}kd_gain=1.0"
            )
        if self.calibration:
            self.calibration.turn_to(self.stages.acting(self.stage), self.gains)
        if not self.calibration or not self.calibration.wants(self.clock.progress >= self.schedule.warmup):
            return
        if self.head is not None:
            feats, preds = replayed(self.head, feats)
            task = self.task(preds, batch)[0].sum() / self.task.images(batch)
            self.methods.eval()  # queues and random streams have moved on with this batch already
            units = self._units(read_output(preds), batch)
            self.methods.train()
        if not self.task.labeled(batch):
            task = self.task.reference(preds, batch)
        bare = {unit: term for unit, (_, term, _) in units.items()}
        self.calibration.measure(task, bare, [feats[index] for index in learning])

    def _units(self, student: Output, batch: dict[str, torch.Tensor]) -> Units:
        """Return each unit's method, its weighted sum over teachers and branches, and the sum of the weights."""
        acting = self.stages.acting(self.stage)
        whole = self.task.labeled(batch) == len(batch["img"])
        branches = self.task.branches[:1] if whole else self.task.branches  # see `Link.sides`
        taps, sound = {}, {}
        for index in acting:
            link = self.links[index]
            teacher, sound[index] = finite_output(link.teacher(batch["img"]))
            taps[index] = {branch: self.pair(link, student, teacher, branch, batch) for branch in branches}
        shares: Sequence[Any] = [1 / len(acting)] * len(acting)
        if self.by_confidence and len(acting) > 1:
            sides = [taps[index]["one2many"] for index in acting]
            shares = confidence_weights([side[1] for side in sides], [side[2] for side in sides]).unbind()
        units: Units = {}
        for name, modules in self.methods.items():
            for index, share in zip(acting, shares):
                module = modules[index]
                module.stage, module.progress = self.stage, self.clock.progress
                for branch in taps[index] if module.signal == "logits" else ["one2many"]:
                    weight = self.task.weight(branch)
                    with beside(self.links[index].teacher, student.feats[0].device):
                        parts = self.finite.parts(name, module, *taps[index][branch], sound[index])
                    for part, term in parts.items():
                        unit = f"{name}_{part}" if part else name
                        _, total, weights = units.get(unit, (name, 0.0, 0.0))
                        units[unit] = (name, total + weight * share * term, weights + weight / len(acting))
        self.finite.teachers = torch.stack([*sound.values()]).all()
        return units

    def pair(
        self, link: Link, student: Output, teacher: Output, branch: str, batch: dict[str, torch.Tensor]
    ) -> tuple[Taps, Taps, Targets]:
        """Return the taps of both sides and the targets for one branch of the student; see `Link.sides`."""
        return link.sides(student, teacher, branch, batch, self.task, self.confidence)

    def _note(self, units: Units, terms: Mapping[str, torch.Tensor], factor: float) -> None:
        """Add the step to the epoch's means, and let the watch see the terms that should act."""
        self.seen += 1
        objects = self.task.objects()
        acting: dict[str, bool] = {}
        for unit, (name, term, weight) in units.items():
            row, sound = self.values.setdefault(unit, [torch.zeros_like(term.detach())] * 2), self.finite.sound[name]
            self.values[unit] = [row[0] + term.detach() / weight * sound, row[1] + sound]
            acting[name] = acting.get(name, False) or factor * self.gains[unit] > 0
        self.watch.see_teachers(self.finite.teachers)
        for name in (name for name, acts in acting.items() if acts):
            needs = None if self.methods[name][0].signal == "features" else objects
            self.watch.see(name, terms[name], needs, self.finite.sound[name])
        self.watch.check()

    def start_means(self) -> None:
        """Forget the steps so far: an epoch begins, or is done again."""
        self.values, self.seen = {}, 0

    def columns(self) -> dict[str, float]:
        """Return the epoch's means and the gains for results.csv, and start the next epoch's.

        Returns:
            (dict[str, float]): `kd/stage`, `kd/factor`, and for each unit `kd/UNIT` (bare mean) and `kd/UNIT_gain`.
        """
        columns = {"kd/stage": float(self.stage), "kd/factor": self.factor}
        for unit in self.gains:
            total, number = map(float, self.values.get(unit, (0, 0)))
            columns[f"kd/{unit}"] = total / number if number else float("nan")
            columns[f"kd/{unit}_gain"] = self.unit_gain(unit)
        self.watch.tell(self.seen)
        self.start_means()
        return columns

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors and plain values alone."""
        tensors = {key: value.detach().cpu().clone() for key, value in self.methods.state_dict().items()}
        return {"methods": tensors, "calibration": self.calibration.state() if self.calibration else None}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.methods.load_state_dict(state["methods"])
        if self.calibration and state["calibration"]:
            self.calibration.load(state["calibration"])


def _idle(modules: nn.ModuleList, feat: torch.Tensor) -> torch.Tensor:
    """Return a zero that reaches every adapter, so that none is without gradient in any step."""
    zero = feat.float().sum() * 0
    return zero + sum(parameter.float().sum() for parameter in modules.parameters()) * 0


def _leave_out(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Keep the criterion's entries out of the student's state."""
    if prefix:
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]


def _forgive(module: nn.Module, incompatible: Any) -> None:
    """Let the student's state load without the criterion's entries."""
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.startswith("criterion.")]
