"""The checklist for methods is itself checked: it accepts a sound toy method and rejects each broken one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.loss_contract import LossContract, random_pair, random_taps, random_targets
from yolokd.losses import LOSSES
from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters
from yolokd.taps import Pair, Taps, Targets


class ToyLoss(DistillLoss):
    """A sound method that has all that methods have: parts, adapters, own draws and running state."""

    name = "toy"
    paper = "Nobody 2026, arXiv 2601.00000"
    signal = "features"
    part_names = ("maps", "classes")
    needs_logits = True

    def __init__(self, pair: Pair, maps: float = 1.0, classes: float = 1.0):
        super().__init__(pair, maps=maps, classes=classes)
        self.adapters = Adapters(pair.student_channels, pair.teacher_channels)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.pair.seed + int(self.calls))
        total = torch.zeros(())
        for adapted, target in zip(self.adapters(student.feats), teacher.feats, strict=True):
            weight = 0.5 + torch.rand(target.shape[-2:], generator=generator)
            total = total + (weight * (adapted.float() - target.detach().float()) ** 2).mean()
        return total

    def class_term(self, student: Taps, teacher: Taps, targets: Targets) -> torch.Tensor:
        gap = (student.logits.float() - teacher.logits.detach().float()) ** 2
        return (gap.mean(-1) * targets.positives).sum() / targets.positives.sum().clamp_min(1)

    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        terms = {}
        if self.part_gains["maps"]:
            terms["maps"] = self.map_term(student, teacher)
        if self.part_gains["classes"]:
            terms["classes"] = self.class_term(student, teacher, targets)
        if self.training:
            self.calls += 1
        return terms


class ToyContract(LossContract):
    """The checklist with what the toy reads."""

    loss = ToyLoss
    reads = ("feats", "logits")

    def shipped(self) -> dict[str, Any]:
        return {"maps": 1.0, "classes": 1.0}


class TestToyLoss(ToyContract):
    """The sound toy passes everything."""


class LeaksToTeacher(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        return sum((a - t).pow(2).mean() for a, t in zip(self.adapters(student.feats), teacher.feats))


class DeadParameter(ToyLoss):
    def __init__(self, pair: Pair, **gains: float):
        super().__init__(pair, **gains)
        self.unused = nn.Parameter(torch.zeros(1))


class NotFinite(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        return super().map_term(student, teacher) * float("inf")


class NotFiniteWithoutPositives(ToyLoss):
    def class_term(self, student: Taps, teacher: Taps, targets: Targets) -> torch.Tensor:
        gap = (student.logits.float() - teacher.logits.detach().float()) ** 2
        return (gap.mean(-1) * targets.positives).sum() / targets.positives.sum()


class NotFiniteForOneClass(ToyLoss):
    def class_term(self, student: Taps, teacher: Taps, targets: Targets) -> torch.Tensor:
        others = torch.tensor(student.logits.shape[-1] - 1)
        return super().class_term(student, teacher, targets) * others / others  # 0 / 0


class DisconnectedWithoutPositives(ToyLoss):
    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        terms = super().parts(student, teacher, targets)
        return terms if targets.positives.any() else {name: torch.zeros(()) for name in terms}


class NotAScalar(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        return super().map_term(student, teacher).expand(2)


class DetachesTheStudent(ToyLoss):
    def class_term(self, student: Taps, teacher: Taps, targets: Targets) -> torch.Tensor:
        return super().class_term(student, teacher, targets).detach()


class ReadsBoxes(ToyLoss):
    def class_term(self, student: Taps, teacher: Taps, targets: Targets) -> torch.Tensor:
        return super().class_term(student, teacher, targets) + student.boxes.pow(2).mean()


class ReadsUndeclared(ToyLoss):
    def class_term(self, student: Taps, teacher: Taps, targets: Targets) -> torch.Tensor:
        return super().class_term(student, teacher, targets) + teacher.boxes.detach().pow(2).mean()


class IgnoresGains(ToyLoss):
    def forward(self, student: Taps, teacher: Taps, targets: Targets) -> torch.Tensor:
        return torch.stack(list(self.parts(student, teacher, targets).values())).sum()


class KeepsSwitchedOffParts(ToyLoss):
    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        return {"maps": self.map_term(student, teacher), "classes": self.class_term(student, teacher, targets)}


class OffsetAtIdentity(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        return super().map_term(student, teacher) + 0.01


class ComparesFewerLevels(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        maps = zip(self.adapters(student.feats), teacher.feats)
        return sum((adapted.float() - target.detach().float()).pow(2).mean() for adapted, target in maps)


class ForgetsThePair(ToyLoss):
    def __init__(self, pair: Pair, maps: float = 1.0, classes: float = 1.0):
        super().__init__(pair, maps, classes)
        self.pair = None


class DrawsGlobally(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        return super().map_term(student, teacher) * torch.rand(())


class WritesToTheTeacher(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        teacher.feats[0].detach().mul_(0.5)
        return super().map_term(student, teacher)


class OneDtypeOnly(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        maps = zip(student.feats, self.adapters, teacher.feats)
        return sum((nn.functional.conv2d(f.float(), a.weight) - t.detach()).pow(2).mean() for f, a, t in maps)


class LowPrecision(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        mean = teacher.feats[0].detach().mean()
        return super().map_term(student, teacher) * (1 + (mean.dtype == torch.bfloat16))


class CountsMemory(ToyLoss):
    def map_term(self, student: Taps, teacher: Taps) -> torch.Tensor:
        flat = [f.as_strided((f.numel(),), (1,)) for f in student.feats]  # in the order of storage
        weights = [torch.linspace(0, 1, f.numel()) for f in flat]
        return super().map_term(student, teacher) + sum((w * f.pow(2)).mean() for w, f in zip(weights, flat))


class ForgetsItsState(ToyLoss):
    def __init__(self, pair: Pair, **gains: float):
        super().__init__(pair, **gains)
        del self.calls
        self.calls = 0


class SharesOnCopy(ToyLoss):
    def __deepcopy__(self, memo: dict[int, Any]) -> ToyLoss:
        return self


class CountsInEvaluation(ToyLoss):
    def parts(self, student: Taps, teacher: Taps, targets: Targets) -> dict[str, torch.Tensor]:
        terms = super().parts(student, teacher, targets)
        self.calls += not self.training
        return terms


class Misnamed(ToyLoss):
    name = "Toy v2"


class OtherDefaults(ToyLoss):
    def __init__(self, pair: Pair, maps: float = 1.0, classes: float = 2.0):
        super().__init__(pair, maps=maps, classes=classes)


class ExtraOption(ToyLoss):
    def __init__(self, pair: Pair, maps: float = 1.0, classes: float = 1.0, width: float = 0.5):
        super().__init__(pair, maps=maps, classes=classes)


BROKEN = [
    (LeaksToTeacher, "test_no_gradient_reaches_the_teacher", "reaches the teacher"),
    (DeadParameter, "test_gradient_reaches_what_is_read_and_every_parameter", "the parameter unused"),
    (NotFinite, "test_value_is_a_finite_scalar", "finite"),
    (NotFiniteWithoutPositives, "test_no_objects_and_no_positives", "the loss is nan"),
    (NotFiniteWithoutPositives, "test_objects_without_positives", "the loss is nan"),
    (NotFiniteForOneClass, "test_any_shape", "the loss is nan"),
    (DisconnectedWithoutPositives, "test_no_objects_and_no_positives", "not connected"),
    (NotAScalar, "test_parts_are_scalars_under_their_names", "has shape"),
    (DetachesTheStudent, "test_parts_are_scalars_under_their_names", "not connected"),
    (DetachesTheStudent, "test_gradient_reaches_what_is_read_and_every_parameter", "reaches the student's {'feats'}"),
    (ReadsBoxes, "test_gradient_reaches_what_is_read_and_every_parameter", "boxes"),
    (ReadsUndeclared, "test_unneeded_teacher_output_is_not_read", "NoneType"),
    (IgnoresGains, "test_forward_is_the_weighted_sum_of_parts", "not the weighted sum"),
    (KeepsSwitchedOffParts, "test_a_part_of_weight_zero_is_off", "maps=0"),
    (OffsetAtIdentity, "test_zero_at_identity", "at identity"),
    (ComparesFewerLevels, "test_a_missing_level_is_an_error", "DID NOT RAISE"),
    (ForgetsThePair, "test_the_pair_is_kept_and_the_run_is_at_its_beginning", "pair"),
    (DrawsGlobally, "test_same_draws_give_the_same_value", "two equal runs"),
    (DrawsGlobally, "test_global_generators_are_left_alone", "global generator"),
    (WritesToTheTeacher, "test_inputs_are_left_unchanged", "written to"),
    (OneDtypeOnly, "test_float64", "dtype|type"),
    (CountsMemory, "test_memory_format_does_not_matter", "not close"),
    (ForgetsItsState, "test_state_dict_round_trip_continues_the_run", "after a resume"),
    (SharesOnCopy, "test_deepcopy_is_equal_and_separate", "shares parameters"),
    (CountsInEvaluation, "test_evaluation_leaves_the_state_alone", "eval mode"),
    (Misnamed, "test_class_attributes", "one lower-case word"),
    (OtherDefaults, "test_defaults_are_those_of_default_yaml", "classes"),
    (ExtraOption, "test_defaults_are_those_of_default_yaml", "width"),
]


@pytest.mark.parametrize(("broken", "check", "message"), BROKEN, ids=lambda v: getattr(v, "__name__", None))
def test_broken_methods_are_rejected(broken: type[DistillLoss], check: str, message: str) -> None:
    contract = type("BrokenContract", (ToyContract,), {"loss": broken})()
    with pytest.raises((AssertionError, AttributeError, RuntimeError, pytest.fail.Exception), match=f"(?s){message}"):
        getattr(contract, check)()


def test_a_value_that_bfloat16_changes_is_rejected() -> None:
    contract = type("BrokenContract", (ToyContract,), {"loss": LowPrecision})()
    contract.test_autocast(torch.float32)
    with pytest.raises(AssertionError, match="not close"):
        contract.test_autocast(torch.bfloat16)


def test_shipped_options_are_read_from_default_yaml() -> None:
    contract = type("CWDContract", (LossContract,), {"loss": type("CWDLoss", (ToyLoss,), {"name": "cwd"})})()
    assert contract.shipped() == {"temperature": 1.0, "align": True}
    contract.loss.name, contract.loss.takes_stages = "dfmsd", True
    assert contract.shipped()["enhance"] == "gap"
    assert not {"gain", "stages"} & set(contract.shipped())


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_logits])
def test_what_a_method_misses_is_said(name: str) -> None:
    student, teacher = random_taps(random_pair())
    bare = [replace(side, logits=None, boxes=None) for side in (student, teacher)]
    with pytest.raises(AssertionError, match=f"{name}.* needs .*(logits|bins)"):
        LOSSES[name](random_pair())(*bare, random_targets(student))
