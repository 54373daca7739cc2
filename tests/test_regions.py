"""Regions: choice, validity, and levels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loss_contract import random_pair, random_taps, random_targets
from tests.oracles import regions as oracle
from tests.tiny import tiny_batch, tiny_criterion
from yolokd.ops import regions as room
from yolokd.ops.regions import Proposer, as_rois, assigned_level, filled, propose, rows_by_level, valid_boxes
from yolokd.taps import Taps, Targets


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator."""
    return torch.Generator().manual_seed(seed)


def case(batch: int = 2, objects: int = 2) -> tuple[Taps, Targets]:
    """Return a student whose boxes are small and all different, and the objects of the batch."""
    student, _ = random_taps(random_pair(student_reg_max=1), batch)
    student = dataclasses.replace(student, boxes=student.boxes.detach().abs() * 0.3 + 0.4)
    return student, random_targets(student, objects=objects)


def origin(region: torch.Tensor, boxes: torch.Tensor) -> list[int]:
    """Return which rows of `boxes` a region is equal to."""
    return (boxes - region).abs().amax(-1).lt(1e-3).nonzero().flatten().tolist()


def test_labelled_boxes_come_first_then_positives_then_others() -> None:
    student, targets = case(batch=3)
    keep = targets.image_index != 1  # the second image has no object
    targets = dataclasses.replace(
        targets, boxes=targets.boxes[keep], labels=targets.labels[keep], image_index=targets.image_index[keep]
    )
    regions, real = propose(student, targets, 20, 0.5, seeded())
    assert regions.shape == (3, 20, 4) and bool(real.all())
    decoded = valid_boxes(student.decoded().detach(), student.image_size)
    for image in range(3):
        labelled = targets.boxes[targets.image_index == image]
        found = sorted(index for region in regions[image, : len(labelled)] for index in origin(region, labelled))
        assert found == list(range(len(labelled)))
        sources = [origin(region, decoded[image]) for region in regions[image, len(labelled) :]]
        positive = [any(bool(targets.positives[image, i]) for i in s) for s in sources]
        room = min(10 - len(labelled), int(targets.positives[image].sum()))
        assert positive == [True] * room + [False] * (len(positive) - room)
        assert len({min(s) for s in sources}) == len(sources), "an anchor was taken twice"


def test_too_many_labelled_boxes_are_drawn_from_and_others_fill_up() -> None:
    student, targets = case(objects=9)
    regions, real = propose(student, targets, 16, 0.25, seeded())
    assert bool(real.all())
    for image in range(2):
        labelled = targets.boxes[targets.image_index == image]
        chosen = {tuple(origin(region, labelled)) for region in regions[image, :4]}
        assert len(chosen) == 4 and () not in chosen
        assert not any(origin(region, labelled) for region in regions[image, 4:])
    other, _ = propose(student, targets, 16, 0.25, seeded(1))
    assert not torch.equal(regions[:, :4], other[:, :4])


def by_sorting(student: Taps, targets: Targets, per_image: int, share: float, seed: int) -> list[list[torch.Tensor]]:
    """Return the boxes of each image, chosen one image at a time from sorted lists of the same draws."""
    generator, slots = seeded(seed), min(round(per_image * share), per_image)
    decoded = student.decoded().detach()
    order = torch.randperm(len(targets.boxes), generator=generator).tolist()
    chances = torch.rand(decoded.shape[:2], generator=generator).tolist()
    found = []
    for image, chance in enumerate(chances):
        own = [targets.boxes[i] for i in order if targets.image_index[i] == image][:slots]
        ranked = sorted(range(len(chance)), key=lambda i: -chance[i])
        positive = [i for i in ranked if targets.positives[image, i]]
        room = slots - len(own)
        others = [i for i in ranked if not targets.positives[image, i]]
        anchors = [*positive[:room], *others, *positive[room:]]
        found.append([*own, *decoded[image, anchors]][:per_image])
    return found


@pytest.mark.parametrize("sizes", [[(12, 16), (6, 8), (3, 4)], [(1, 3), (1, 2), (1, 1)]])
@pytest.mark.parametrize("objects", [0, 2, 9])
@pytest.mark.parametrize(("per_image", "share"), [(16, 0.25), (12, 0.0), (9, 1.0), (32, 0.5), (6, 0.25)])
def test_regions_are_those_of_sorted_lists(
    sizes: list[tuple[int, int]], objects: int, per_image: int, share: float
) -> None:
    for seed in range(3):
        student, _ = random_taps(random_pair(), batch=3, sizes=sizes, seed=seed)
        targets = random_targets(student, seed, objects)
        regions, real = propose(student, targets, per_image, share, seeded(seed))
        for image, expected in enumerate(by_sorting(student, targets, per_image, share, seed)):
            assert real[image].sum() == len(expected)
            kept = regions[image, real[image]]
            wanted = valid_boxes(torch.stack(expected), student.image_size)
            own = min(objects, round(per_image * share))
            assert {tuple(b) for b in kept[:own].tolist()} == {tuple(b) for b in wanted[:own].tolist()}
            torch.testing.assert_close(kept[own:], wanted[own:])


def test_boxes_in_any_order_reach_their_own_image() -> None:
    student, targets = case(batch=3)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    mixed = dataclasses.replace(
        targets, boxes=targets.boxes[order], labels=targets.labels[order], image_index=targets.image_index[order]
    )
    regions, _ = propose(student, mixed, 8, 0.5, seeded())
    for image in range(3):
        labelled = targets.boxes[targets.image_index == image]
        assert sorted(i for region in regions[image, :2] for i in origin(region, labelled)) == [0, 1]


@pytest.mark.parametrize(("share", "objects"), [(0.0, 2), (1.0, 2), (0.25, 0)])
def test_extreme_shares_and_no_objects(share: float, objects: int) -> None:
    student, targets = case(objects=objects)
    regions, real = propose(student, targets, 12, share, seeded())
    assert regions.shape == (2, 12, 4) and bool(real.all())
    decoded = valid_boxes(student.decoded().detach(), student.image_size)
    taken = [origin(region, decoded[0]) for region in regions[0]]
    positive = sum(any(bool(targets.positives[0, i]) for i in s) for s in taken)
    assert positive == (min(10, int(targets.positives[0].sum())) if share == 1.0 else 0)


def test_fewer_anchors_than_regions_leave_rows_that_do_not_count() -> None:
    pair = random_pair(levels=1)
    student, _ = random_taps(pair, sizes=[(1, 3)])
    targets = random_targets(student, objects=1)
    regions, real = propose(student, targets, 8, 0.5, seeded())
    assert real.sum(1).tolist() == [4, 4]  # one object and three anchors
    assert bool((regions[..., 2:] > regions[..., :2]).all())
    rows = rows_by_level(regions, real, pair.strides)
    assert sorted(torch.cat(rows).tolist()) == real.flatten().nonzero().flatten().tolist()


def test_detached_and_repeatable() -> None:
    student, _ = random_taps(random_pair())
    targets = random_targets(student)
    first, second = (propose(student, targets, 10, 0.25, seeded())[0] for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert not torch.equal(first, propose(student, targets, 10, 0.25, seeded(1))[0])


def test_valid_boxes_known() -> None:
    boxes = torch.tensor(
        [
            [-5.0, 2.0, 20.0, 8.0],  # clipped
            [6.0, 7.0, 2.0, 3.0],  # reversed
            [4.0, 4.0, 4.0, 4.0],  # empty
            [50.0, 60.0, 70.0, 80.0],  # outside, right and below
            [-9.0, -9.0, -7.0, -7.0],  # outside, left and above
            [float("nan"), 0.0, float("inf"), float("-inf")],
        ]
    )
    expected = torch.tensor(
        [
            [0.0, 2.0, 16.0, 8.0],
            [2.0, 3.0, 6.0, 7.0],
            [4.0, 4.0, 5.0, 5.0],
            [15.0, 11.0, 16.0, 12.0],
            [0.0, 0.0, 1.0, 1.0],
            [0.0, 0.0, 16.0, 1.0],
        ]
    )
    torch.testing.assert_close(valid_boxes(boxes, (12, 16)), expected)


@settings(max_examples=60, deadline=None)
@given(
    width=st.floats(1, 900),
    height=st.floats(1, 900),
    strides=st.sampled_from([(8, 16, 32), (4, 8, 16, 32), (8, 16, 32, 64), (16,), (8, 32), (16, 32)]),
)
def test_assigned_level_is_that_of_the_loop_version(width: float, height: float, strides: tuple[int, ...]) -> None:
    box = torch.tensor([3.0, 5.0, 3.0 + width, 5.0 + height], dtype=torch.float64)
    expected = oracle.teacher_level(float(box[2] - box[0]), float(box[3] - box[1]), strides)
    assert assigned_level(box, strides).item() == expected


@pytest.mark.parametrize(("side", "level"), [(127.9, 0), (128.0, 1), (255.9, 1), (256.0, 2), (4.0, 0), (4000.0, 2)])
def test_assigned_level_known(side: float, level: int) -> None:
    assert assigned_level(torch.tensor([0.0, 0.0, side, side]), (8, 16, 32)).item() == level


def test_rows_by_level_are_sorted_out_by_level() -> None:
    sides = torch.tensor([[10.0, 300.0, 140.0], [200.0, 20.0, 500.0]])
    regions = torch.stack((sides * 0, sides * 0, sides, sides), dim=-1)
    real = torch.tensor([[True, True, True], [True, False, True]])
    rows = rows_by_level(regions, real, (8, 16, 32))
    assert [r.tolist() for r in rows] == [[0], [2, 3], [1, 5]]


@pytest.mark.parametrize(
    "least, count, wanted", [(4, 0, 0), (4, 1, 4), (4, 32, 32), (4, 33, 40), (4, 234, 256), (1, 9, 10)]
)
def test_filled(least: int, count: int, wanted: int) -> None:
    rows = torch.randn(count, 3, generator=seeded())
    found = filled(rows, least)
    assert len(found) == wanted and torch.equal(found[:count], rows) and not found[count:].any()


@given(least=st.integers(1, 300), count=st.integers(0, 5000))
@settings(max_examples=100, deadline=None)
def test_filled_is_no_more_than_promised(least: int, count: int) -> None:
    length = len(filled(torch.zeros(count, 1), least))
    assert count <= length <= max(count + least - 1, 1.25 * count) and length % least == 0


def test_filled_knows_few_lengths() -> None:
    lengths = {len(filled(torch.zeros(count, 1), 4)) for count in range(257)}
    assert len(lengths) == 9 + 3 * 4  # multiples of 4 up to 32, then 4 an octave


def test_as_rois() -> None:
    regions = torch.arange(16.0).view(2, 2, 4)
    expected = [[0, 0, 1, 2, 3], [0, 4, 5, 6, 7], [1, 8, 9, 10, 11], [1, 12, 13, 14, 15]]
    assert as_rois(regions).tolist() == expected


def test_proposer_moves_its_stream_in_training_only() -> None:
    student, _ = random_taps(random_pair())
    targets = random_targets(student)
    proposer = Proposer(per_image=10, positives=0.25, seed=3)
    before = proposer.get_extra_state().clone()
    proposer.eval()
    validation = [proposer(student, targets)[0] for _ in range(2)]
    assert torch.equal(*validation) and torch.equal(proposer.get_extra_state(), before)
    proposer.train()
    training = [proposer(student, targets)[0] for _ in range(2)]
    assert not torch.equal(*training)
    assert torch.equal(proposer.eval()(student, targets)[0], validation[0])  # wherever the training has got to
    proposer.train()
    again = Proposer(per_image=10, positives=0.25, seed=0)
    again.set_extra_state(before)
    assert torch.equal(again(student, targets)[0], training[0])
    again.load_state_dict(proposer.state_dict())
    assert torch.equal(again(student, targets)[0], proposer(student, targets)[0])


def test_methods_alike_choose_once_in_a_step_and_go_on_as_each_would_alone() -> None:
    """`sgfi` and `ckd` as `gdetkd` joins them; the maps of each are handed on by `replace`, as the criterion does."""

    def steps(memo: bool, seeds: tuple[int, int] = (3, 3), **options: float) -> list[tuple[torch.Tensor, ...]]:
        proposers = (
            Proposer(10, 0.25, seeds[0]),
            Proposer(**{"per_image": 10, "positives": 0.25, **options}, seed=seeds[1]),
        )
        found = []
        for seed in range(3):
            student, _ = random_taps(random_pair(), seed=seed)
            student = dataclasses.replace(student, memo={} if memo else None)
            targets = random_targets(student, seed)
            mine = [dataclasses.replace(student, boxes=student.boxes.view_as(student.boxes)) for _ in proposers]
            found.append([proposer(taps, targets)[0] for proposer, taps in zip(proposers, mine)])
        return found

    kept, alone = steps(memo=True), steps(memo=False)
    for (first, second), expected in zip(kept, alone):
        assert first is second and torch.equal(first, expected[0]) and torch.equal(second, expected[1])
    assert not torch.equal(kept[0][0], kept[1][0])
    for other in (steps(True, seeds=(3, 4)), steps(True, positives=0.5), steps(True, per_image=8)):
        assert all(first is not second for first, second in other)
        assert all(torch.equal(first, expected[0]) for (first, _), expected in zip(other, alone))


def test_other_targets_of_the_same_step_have_regions_of_their_own() -> None:
    student, targets = case()
    student = dataclasses.replace(student, memo={})
    proposer = Proposer(10, 0.25, seed=3).eval()
    first, second = proposer(student, targets)[0], proposer(student, random_targets(student, seed=5))[0]
    assert not torch.equal(first, second) and proposer(student, targets)[0] is first
    assert student.since(1).memo is None


def test_a_step_of_gdetkd_chooses_regions_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(room, "propose", lambda *args: calls.append(args) or propose(*args))
    model, criterion = tiny_criterion("gdetkd", kd_gain="auto")
    for step in range(1, 3):
        model.zero_grad()
        model(tiny_batch())[0].sum().backward()
        assert len(calls) == step and all(p.grad is not None for p in criterion.adapters())
    sgfi, ckd = (criterion.methods[name][0].proposer for name in ("sgfi", "ckd"))
    assert torch.equal(sgfi.state, ckd.state)


def test_empty_batch_of_labels() -> None:
    student, _ = random_taps(random_pair(), batch=1)
    empty = torch.zeros(0, dtype=torch.int64)
    nothing = torch.zeros(1, student.logits.shape[1])
    targets = Targets(torch.zeros(0, 4), empty, empty, nothing.bool(), nothing)
    regions, real = propose(student, targets, 6, 0.5, seeded())
    assert regions.shape == (1, 6, 4) and bool(real.all())
