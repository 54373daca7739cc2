"""PCD: known number, loop version, class order, stages, selection of anchors, one class."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loss_contract import LossContract, leaves, random_pair, random_taps, random_targets
from tests.losses.fitting import fit
from tests.oracles import logits as oracle
from yolokd.errors import UserError
from yolokd.losses.pcd import PCDLoss, block_sizes, grouped_divergence
from yolokd.ops.anchors import selected_anchors, weighted_mean

pytestmark = pytest.mark.filterwarnings("ignore:pcd:UserWarning")


class TestPCD(LossContract):
    """The checklist."""

    loss = PCDLoss
    reads = ("logits",)


def draw(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random logits of a student and a teacher in float64."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64))


def test_known_number() -> None:
    # Student 0 0 0 0, teacher ln3 0 0 0, T = 1, S = 2. Rank by gap keeps the order.
    # Two groups: {0, 1} has p = (3/4, 1/4), q = (1/2, 1/2): cos = 0.5 / (sqrt(0.625) sqrt(0.5)) = 0.894427,
    #   KL = 0.75 ln 1.5 + 0.25 ln 0.5 = 0.130812, term 0.105573 * 0.130812 = 0.0138102; {2, 3} agrees: 0.
    # One group: p = (1/2, 1/6, 1/6, 1/6), q = 1/4 each: cos = 0.25 / (sqrt(1/3) * 0.5) = 0.866025,
    #   KL = 0.5 ln 2 + 0.5 ln(2/3) = 0.143841, term 0.133975 * 0.143841 = 0.0192711.
    student, teacher = torch.zeros(1, 4), torch.tensor([[math.log(3), 0.0, 0.0, 0.0]])
    value = grouped_divergence(student, teacher, [2, 1], temperature=1.0)
    assert value.item() == pytest.approx(0.0138102 + 0.0192711, rel=1e-4)


@pytest.mark.parametrize(("classes", "stages"), [(20, 3), (80, 3), (7, 3), (6, 3), (5, 2), (2, 1), (11, 5)])
def test_equals_the_loop_version(classes: int, stages: int) -> None:
    student, teacher = draw(4, classes)
    weights = np.array([0.9, 0.2, 0.5, 0.05])
    values = 2 * grouped_divergence(student, teacher, list(range(1, stages + 1)), 4.0).numpy()
    expected = oracle.pcd_grouped(student.numpy(), teacher.numpy(), weights, stages, 4.0)
    assert (values * weights).sum() / weights.sum() == pytest.approx(expected, rel=1e-8)


def test_module_equals_the_loop_version() -> None:
    pair = random_pair(num_classes=9)
    student, teacher = random_taps(pair, dtype=torch.float64)
    targets = random_targets(student)
    parts = PCDLoss(pair, stages=4, temperature=2.0, confidence=0.8).parts(student, teacher, targets)
    ours, theirs = student.logits.detach().numpy(), teacher.logits.numpy()
    weights = oracle.pcd_anchor_weights(targets.positives.numpy(), theirs, 0.8)
    assert 0 < (weights > 0).sum() < weights.size
    used = weights > 0
    expected = oracle.pcd_grouped(ours[used], theirs[used], weights[used], 4, 2.0)
    assert parts["grouped"].item() == pytest.approx(expected, rel=1e-8)
    normaliser = max(targets.scores.sum().item(), 1.0)
    assert parts["binary"].item() == pytest.approx(oracle.binary(ours, theirs, 1.0, normaliser), rel=1e-6)


def test_binary_part_is_divided_by_at_least_one() -> None:
    pair = random_pair(num_classes=4)
    student, teacher = random_taps(pair)
    targets = random_targets(student, objects=0)
    value = PCDLoss(pair, grouped=0.0)(student, teacher, targets).item()
    expected = oracle.binary(student.logits.detach().double().numpy(), teacher.logits.double().numpy(), 1.0, 1.0)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "groups", "expected"), [(20, 3, [7, 7, 6]), (80, 3, [27, 27, 26]), (6, 3, [2, 2, 2]), (5, 1, [5])]
)
def test_block_sizes(classes: int, groups: int, expected: list[int]) -> None:
    assert block_sizes(classes, groups) == expected


@settings(max_examples=20, deadline=None)
@given(classes=st.integers(2, 40), seed=st.integers(0, 99))
def test_class_order_does_not_matter(classes: int, seed: int) -> None:
    student, teacher = draw(3, classes, seed=seed)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed))
    groupings = list(range(1, min(3, classes // 2) + 1))
    values = grouped_divergence(student, teacher, groupings, 4.0)
    torch.testing.assert_close(grouped_divergence(student[:, order], teacher[:, order], groupings, 4.0), values)


def test_hardest_classes_are_grouped_together() -> None:
    # Gaps 5 0 4 0: with two groups classes 0 and 2 form the first one, and the other two agree.
    teacher = torch.tensor([[1.0, 2.0, 3.0, -1.0]])
    student = teacher - torch.tensor([[5.0, 0.0, -4.0, 0.0]])
    alone = grouped_divergence(student[:, [0, 2]], teacher[:, [0, 2]], [1], 1.0)
    torch.testing.assert_close(grouped_divergence(student, teacher, [2], 1.0), alone)


def test_one_stage_is_the_closed_form() -> None:
    pair = random_pair(num_classes=7)
    student, teacher = random_taps(pair, dtype=torch.float64)
    targets = random_targets(student)
    value = PCDLoss(pair, binary=0.0, stages=1, temperature=3.0, confidence=1.0)(student, teacher, targets)
    mask = targets.positives
    p, q = (teacher.logits[mask] / 3).softmax(-1), (student.logits[mask] / 3).softmax(-1)
    cosine = (p * q).sum(-1) / (p.norm(dim=-1) * q.norm(dim=-1))
    term = 2 * (1 - cosine) * 9 * (p * (p / q).log()).sum(-1)
    weights = teacher.logits[mask].sigmoid().amax(-1)
    torch.testing.assert_close(value, (term * weights).sum() / weights.sum())


def test_gradient_leaves_rank_and_factor_constant() -> None:
    # One group of all classes: d/dz of factor * T^2 * KL(p || q) with a constant factor is factor * T * (q - p).
    student, teacher = draw(5, 6)
    student.requires_grad_()
    grouped_divergence(student, teacher, [1], 4.0).sum().backward()
    p, q = (teacher / 4).softmax(-1), (student.detach() / 4).softmax(-1)
    factor = 1 - torch.cosine_similarity(p, q)
    torch.testing.assert_close(student.grad, factor[:, None] * 4 * (q - p))


def test_gradcheck_of_all_stages_with_rank_and_factor_held() -> None:
    student, teacher = draw(1, 7)
    order = (teacher - student).abs()[0].argsort(descending=True)
    groups = [group for count in (3, 2, 1) for group in order.split(block_sizes(7, count))]

    def distributions(z: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (teacher[0, group] / 4).softmax(-1), (z[0, group] / 4).softmax(-1)

    factors = [1 - torch.cosine_similarity(*distributions(student, group), dim=-1) for group in groups]

    def held(z: torch.Tensor) -> torch.Tensor:
        pairs = [distributions(z, group) for group in groups]
        return sum(factor * 16 * (p * (p / q).log()).sum() for factor, (p, q) in zip(factors, pairs))

    student.requires_grad_()
    assert torch.autograd.gradcheck(held, student)
    (expected,) = torch.autograd.grad(held(student), student)
    (found,) = torch.autograd.grad(grouped_divergence(student, teacher, [3, 2, 1], 4.0).sum(), student)
    torch.testing.assert_close(found, expected)


def test_zero_at_identity_for_every_grouping() -> None:
    student, _ = draw(4, 9)
    assert grouped_divergence(student, student.clone(), [1, 2, 3, 4], 4.0).abs().max().item() < 1e-12


def test_selected_anchors() -> None:
    teacher = torch.tensor([[[-5.0, 0.0], [-5.0, -5.0], [3.0, 0.0]], [[-5.0, -4.0], [-2.0, -9.0], [9.0, 9.0]]])
    positives = torch.tensor([[False, True, False], [False, False, True]])
    rows, weights = selected_anchors(teacher, positives, threshold=0.5)
    # sigma: 0.5 is not above 0.5; the positive counts whatever the teacher says
    assert [row.tolist() for row in rows] == [[0, 0, 1], [1, 2, 2]]
    torch.testing.assert_close(weights, torch.tensor([-5.0, 3.0, 9.0]).sigmoid())
    assert [row.tolist() for row in selected_anchors(100 * teacher, positives, threshold=1.0)[0]] == [[0, 1], [1, 2]]


def test_weighted_mean_of_small_weights() -> None:
    # (0.1 * 2 + 0.3 * 4) / (0.1 + 0.3) = 3.5, although the weights sum to less than 1; without any weight 0
    values = torch.tensor([2.0, 4.0])
    assert weighted_mean(values, torch.tensor([0.1, 0.3])).item() == pytest.approx(3.5)
    assert weighted_mean(values, torch.zeros(2)).item() == 0


def test_nothing_selected_is_a_connected_zero() -> None:
    pair = random_pair(num_classes=4)
    student, teacher = random_taps(pair)
    targets = random_targets(student, objects=0)
    value = PCDLoss(pair, binary=0.0, confidence=1.0)(student, teacher, targets)
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.logits.grad, torch.zeros_like(student.logits))


def test_sequence_takes_the_stages_in_turn_and_averages_to_together() -> None:
    pair = random_pair(num_classes=8)
    student, teacher = random_taps(pair)
    targets = random_targets(student)
    module = PCDLoss(pair, binary=0.0, schedule="sequence")
    groups, values = [], []
    for step in range(6):
        module.progress = (step + 0.5) / 6
        groups.append(module.groupings()[0])
        values.append(module(student, teacher, targets).item())
    assert groups == [[3], [2], [1], [1], [2], [3]]
    together = PCDLoss(pair, binary=0.0)(student, teacher, targets).item()
    assert np.mean(values) == pytest.approx(together, rel=1e-5)
    module.progress = 1.0
    assert module.groupings()[0] == [3]


@pytest.mark.parametrize(("classes", "expected"), [(2, 1), (3, 1), (5, 2)])
def test_stages_are_reduced_with_a_warning(classes: int, expected: int) -> None:
    with pytest.warns(UserWarning, match=f"pcd_stages=3 is reduced to {expected}: {classes} classes"):
        module = PCDLoss(random_pair(num_classes=classes))
    assert module.stages == expected


def test_enough_classes_are_not_warned_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the filter of the whole file would win over one of this test
        assert PCDLoss(random_pair(num_classes=6)).stages == 3


def test_one_class_leaves_the_binary_part() -> None:
    pair = random_pair(num_classes=1)
    with pytest.warns(UserWarning, match="the binary part alone"):
        module = PCDLoss(pair)
    student, teacher = random_taps(pair)
    assert set(module.parts(student, teacher, random_targets(student))) == {"binary"}
    assert module.part_gains == {"grouped": 0.0, "binary": 1.0}
    with pytest.raises(ValueError, match=r"Set pcd_binary=1\.0"):
        PCDLoss(pair, binary=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "backwards"}, "pcd_schedule='backwards'"),
        ({"stages": 0}, "pcd_stages=0"),
        ({"grouped": 0.0, "binary": 0.0}, "leave nothing"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PCDLoss(random_pair(num_classes=6), **options)


@pytest.mark.parametrize("gains", [{"binary": 0.0}, {"grouped": 0.0}], ids=["grouped", "binary"])
def test_overfits(gains: dict) -> None:
    pair = random_pair(num_classes=6)
    student, teacher = random_taps(pair, batch=8)
    before, after = fit(PCDLoss(pair, **gains), leaves(student), teacher, random_targets(student))
    assert after < 0.5 * before, (before, after)
