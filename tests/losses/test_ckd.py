"""CKD: known number, loop version, overlapping regions, queue, processes."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn import functional as F
from torchvision.ops import box_iou

from tests.loss_contract import LossContract, leaves, random_pair, random_taps, random_targets
from tests.losses.fitting import fit
from tests.oracles import regions as oracle
from tests.oracles.features import standardize
from yolokd.losses.ckd import CKDLoss, contrast, gathered, overlapping
from yolokd.ops.pooling import pool
from yolokd.ops.regions import pairwise_iou, propose

LARGE = [(36, 44), (18, 22), (9, 11)]  # an image of 288 x 352 pixels: regions on all three levels
EMPTY = torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool)


class TestCKD(LossContract):
    """The checklist."""

    loss = CKDLoss
    zero_at_identity = False  # other regions are never infinitely far


def nothing(count: int) -> torch.Tensor:
    """Return a mask that excludes no pair."""
    return torch.zeros(count, count, dtype=torch.bool)


def test_known_number() -> None:
    # Two regions, temperature 1/2. Cosines of student 1 with teachers 1 and 2: 1 and 0; of student 2: 1 and 0 as well.
    # First term ln(e^2 + e^0) - 2 = ln(8.389056) - 2 = 0.126928; second, own cosine 0: ln(8.389056) = 2.126928.
    student, teacher = torch.tensor([[3.0, 0.0], [0.5, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 7.0]])
    value = contrast(student, teacher, nothing(2), *EMPTY, temperature=0.5)
    assert value.tolist() == pytest.approx([0.126928, 2.126928], rel=1e-5)
    # At the temperature of 0.07 that is meant where none is given: ln(e^(1 / 0.07) + 1) = 1 / 0.07 + 6.2e-7.
    assert contrast(student, teacher, nothing(2), *EMPTY)[1].item() == pytest.approx(1 / 0.07, rel=1e-6)
    # A queue of one vector opposite to both, and one place not filled: e^-2 = 0.135335 joins, ln(8.524391) = 2.142931.
    queue, valid = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([True, False])
    value = contrast(student, teacher, nothing(2), queue, valid, temperature=0.5)
    assert value.tolist() == pytest.approx([0.142931, 2.142931], rel=1e-5)


def test_the_positive_stays_where_all_others_are_excluded() -> None:
    student, teacher = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(3, 3, dtype=torch.bool)
    value = contrast(student, teacher, everything, torch.zeros(0, 4), EMPTY[1])
    assert value.abs().max().item() < 1e-6


def test_falls_when_positives_move_together() -> None:
    student, teacher = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    values = [
        contrast(torch.lerp(student, teacher, t), teacher, nothing(6), torch.zeros(0, 8), EMPTY[1], 0.2).mean().item()
        for t in (0.0, 0.3, 0.6, 1.0)
    ]
    assert values == sorted(values, reverse=True) and values[-1] < 0.2 * values[0]


def test_equal_vectors_everywhere_give_the_log_of_the_number_of_keys() -> None:
    ones = torch.ones(5, 3)
    value = contrast(ones, ones, nothing(5), torch.ones(4, 3) / math.sqrt(3), torch.ones(4, dtype=torch.bool))
    assert value.tolist() == pytest.approx([math.log(9)] * 5)


def test_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    queue = F.normalize(torch.randn(2, 3, generator=generator, dtype=torch.float64), dim=-1)
    excluded = nothing(4)
    excluded[0, 2] = True
    valid = torch.tensor([True, False])
    inputs = student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: contrast(s, t, excluded, queue, valid, 0.3), inputs)


def test_overlapping_regions_of_one_image_are_no_negatives() -> None:
    # IoU of the first two boxes: 80 / 120 = 2/3; the third is far away. The same boxes in the other image do count.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0], [50.0, 50.0, 60.0, 60.0]])
    real = torch.ones(2, 3, dtype=torch.bool)
    block = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    expected = torch.block_diag(block, block).bool()
    assert torch.equal(overlapping(boxes.expand(2, 3, 4), real, 0.5), expected)
    assert torch.equal(overlapping(boxes.expand(2, 3, 4), real, 0.7), torch.eye(6, dtype=torch.bool))
    real[1, 2] = False  # a row that does not count is nobody's negative
    assert torch.equal(overlapping(boxes.expand(2, 3, 4), real, 0.7)[:, 5], torch.ones(6, dtype=torch.bool))


@pytest.mark.parametrize(("batch", "count"), [(1, 1), (3, 17), (5, 8)])
def test_overlapping_regions_are_those_of_all_pairs_of_one_image(batch: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(batch, count, 4, generator=generator, dtype=torch.float64)
    regions = torch.cat((drawn[..., :2] * 30, drawn[..., :2] * 30 + 20 + drawn[..., 2:] * 30), dim=-1)
    regions[-1, -1] = regions[0, 0]  # equal boxes of two images, where there are two
    real = torch.rand(batch, count, generator=generator) < 0.8
    rows, image = regions.flatten(0, 1), torch.arange(batch).repeat_interleave(count)
    close = (box_iou(rows, rows) > 0.5) & (image[:, None] == image)
    assert torch.equal(overlapping(regions, real, 0.5), close | ~real.flatten())
    assert close.sum() > len(rows) or count == 1
    torch.testing.assert_close(pairwise_iou(regions), torch.stack([box_iou(boxes, boxes) for boxes in regions]))


def test_an_overlap_at_the_threshold_is_still_a_negative() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0]]])  # IoU 1/2
    real = torch.ones(1, 2, dtype=torch.bool)
    assert torch.equal(overlapping(boxes, real, 0.5), torch.eye(2, dtype=torch.bool))
    assert overlapping(boxes, real, 0.49).all()


def test_the_formulas_stay_on_the_device_of_their_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for a device without values
    boxes, real = torch.rand(2, 3, 4, device="meta"), torch.ones(2, 3, dtype=torch.bool, device="meta")
    excluded = overlapping(boxes, real, 0.5)
    vectors, queue = torch.rand(2, 6, 4, device="meta"), torch.rand(5, 4, device="meta")
    value = contrast(*vectors, excluded, queue, torch.ones(5, dtype=torch.bool, device="meta"))
    assert excluded.shape == (6, 6) and excluded.is_meta and value.shape == (6,) and value.is_meta


@pytest.mark.parametrize(("iou", "align"), [(0.5, True), (0.05, True), (0.5, False)])
def test_module_equals_the_loop_version(iou: float, align: bool) -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=LARGE, dtype=torch.float64)
    targets = random_targets(student)
    targets.boxes[0], targets.boxes[3] = torch.tensor([[0.0, 0, 352, 288], [9, 9, 190, 160]])  # one for each level
    module = CKDLoss(pair, regions=12, positives=0.5, dim=6, iou=iou, queue=5, temperature=0.2, align=align)
    module = module.double().eval()
    widths, kept = pair.teacher_channels, [torch.randn(c, dtype=torch.float64) for c in pair.teacher_channels]
    padded = torch.stack([F.pad(value, (0, max(widths) - len(value))) for value in kept])
    module.enqueue(padded, torch.arange(3), torch.ones(3, dtype=torch.bool))
    heads = zip(module.teacher_entry, kept)
    filled = torch.stack([F.normalize(module.projection(layer(value)), dim=-1) for layer, value in heads]).detach()
    boxes, _ = propose(student, targets, 12, 0.5, torch.Generator().manual_seed(pair.seed))
    boxes, image = boxes.flatten(0, 1).double(), np.repeat(np.arange(2), 12)
    levels = [oracle.teacher_level(float(b[2] - b[0]), float(b[3] - b[1]), pair.strides) for b in boxes]
    assert set(levels) == {0, 1, 2}

    def vectors(taps, entry):
        rows, maps = [], [feat.detach().numpy() for feat in taps.feats]
        maps = [standardize(feat) for feat in maps] if align else maps
        for box, b, level in zip(boxes, image, levels):
            region = oracle.roi_align(maps[level][b], box.numpy(), pair.strides[level], samples=1)
            vector = entry[level](torch.from_numpy(region.mean(axis=(1, 2))))
            rows.append(module.projection(vector).detach().numpy())
        return np.stack(rows)

    ours, theirs = vectors(student, module.student_entry), vectors(teacher, module.teacher_entry)
    expected = oracle.info_nce(ours, theirs, boxes.numpy(), image, filled.numpy(), 0.2, iou)
    assert module(student, teacher, targets).item() == pytest.approx(expected, rel=1e-5)


def test_queue_is_first_in_first_out() -> None:
    module = CKDLoss(random_pair(), dim=4, queue=5)

    def push(*values: int, valid: bool = True) -> None:
        features = torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, module.queue.shape[1])
        module.enqueue(features, torch.tensor(values) % 3, torch.full((len(values),), valid))
        assert torch.equal(module.queue_level, module.queue[:, 0].long() % 3)  # levels go with their features

    push(1, 2, 3)
    assert module.queue[:, 0].tolist() == [1, 2, 3, 0, 0]
    assert module.queue_valid.tolist() == [True, True, True, False, False]
    push(4, 5, 6)
    assert module.queue[:, 0].tolist() == [6, 2, 3, 4, 5]
    push(7, valid=False)
    assert module.queue[:, 0].tolist() == [6, 7, 3, 4, 5]
    assert module.queue_valid.tolist() == [True, False, True, True, True]
    push(*range(10, 18))  # more than there is room for: the latest stay
    assert sorted(module.queue[:, 0].tolist()) == [13, 14, 15, 16, 17]
    push(18)
    assert 13 not in module.queue[:, 0].tolist() and bool(module.queue_valid.all())


def test_features_that_are_not_finite_are_no_negatives() -> None:
    module = CKDLoss(random_pair(), dim=4, queue=4)
    features = torch.ones(3, module.queue.shape[1])
    features[1, 0], features[2, -1] = float("nan"), float("-inf")
    module.enqueue(features, torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool))
    assert module.queue_valid.tolist() == [True, False, False, False]
    assert bool(module.queue.isfinite().all())


def test_queue_holds_the_teachers_features_of_training_batches_only() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=LARGE)
    targets = random_targets(student)
    module = CKDLoss(pair, regions=6, dim=8, queue=20, align=False).eval()
    module(student, teacher, targets)
    assert not module.queue_valid.any()
    module.train()
    before = module(student, teacher, targets)
    assert int(module.queue_valid.sum()) == 12 == int(module.queue_next)
    boxes, _ = propose(student, targets, 6, 0.25, torch.Generator().manual_seed(pair.seed))
    wanted = []
    for box, image in zip(boxes.flatten(0, 1), np.repeat(np.arange(2), 6)):
        level = oracle.teacher_level(float(box[2] - box[0]), float(box[3] - box[1]), pair.strides)
        feature = teacher.feats[level][image].double().numpy()
        region = oracle.roi_align(feature, box.double().numpy(), pair.strides[level], samples=1).mean(axis=(1, 2))
        wanted.append((level, *region.round(4), *[0.0] * (module.queue.shape[1] - len(region))))
    found = [(int(n), *q.double().numpy().round(4)) for n, q in zip(module.queue_level[:12], module.queue[:12])]
    np.testing.assert_allclose(sorted(found), sorted(wanted), atol=2e-4)
    before.backward()  # the queue was written after it had been used
    assert all(parameter.grad is not None for parameter in module.parameters())
    module.eval()
    with_queue = module(student, teacher, targets)
    module.queue_valid.zero_()
    assert with_queue > module(student, teacher, targets), "negatives of the queue do not count"


def test_queue_is_projected_anew() -> None:
    module = CKDLoss(random_pair(), dim=4, queue=5)
    width = module.queue.shape[1]
    module.enqueue(torch.randn(3, width), torch.tensor([0, 1, 2]), torch.ones(3, dtype=torch.bool))
    before = module.queued(module.queue_rows())
    torch.testing.assert_close(before[:3].norm(dim=-1), torch.ones(3))
    with torch.no_grad():
        module.projection[-1].weight.neg_()
        module.projection[-1].bias.neg_()
    torch.testing.assert_close(module.queued(module.queue_rows()), -before)


def test_layers_meet_few_lengths_and_rows_are_projected_as_by_themselves() -> None:
    """Memory is kept for every length, see `filled`."""
    pair = random_pair()
    module = CKDLoss(pair, dim=4, queue=64)
    lengths: set[int] = set()
    for layer in (*module.teacher_entry, *module.projection):
        layer.register_forward_pre_hook(lambda _, given: lengths.add(len(given[0])))
    draw = torch.Generator().manual_seed(0)
    for _ in range(40):
        count = int(torch.randint(1, 14, (), generator=draw))
        levels = torch.randint(0, 3, (count,), generator=draw)
        features = torch.randn(count, module.queue.shape[1], generator=draw)
        module.enqueue(features, levels, torch.ones(count, dtype=torch.bool))
        found = module.queued(module.queue_rows())
    assert bool(module.queue_valid.all())
    assert lengths <= set(range(0, 65, 4)), lengths
    for value, level, feature in zip(found, module.queue_level, module.queue):
        row = module.projection(module.teacher_entry[level](feature[: pair.teacher_channels[level]]))
        torch.testing.assert_close(value, torch.nn.functional.normalize(row, dim=0))


def test_no_queue() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair)
    module = CKDLoss(pair, regions=6, queue=0)
    module(student, teacher, random_targets(student)).backward()
    assert len(module.queue) == 0


def test_one_region_has_no_negatives_and_costs_nothing() -> None:
    pair = random_pair(levels=1)
    student, teacher = random_taps(pair, batch=1, sizes=[(1, 1)])
    module = CKDLoss(pair, queue=0)
    value = module(student, teacher, random_targets(student, objects=0))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_rows_that_are_no_regions_do_not_thin_out_the_mean() -> None:
    """Four anchors and no object are four regions; equal vectors cost each of them ln 4, and so on average."""
    pair = random_pair(levels=1)
    student, teacher = random_taps(pair, batch=1, sizes=[(2, 2)])
    for feat in (*student.feats, *teacher.feats):
        feat.data.fill_(1.0)
    module = CKDLoss(pair, regions=6, iou=1.0, queue=0, align=False)
    assert module(student, teacher, random_targets(student, objects=0)).item() == pytest.approx(math.log(4), rel=1e-5)


def test_student_feature_is_the_mean_of_the_region() -> None:
    pair = random_pair(levels=1)
    student, _ = random_taps(pair)
    module = CKDLoss(pair, dim=8, align=False)
    rois = torch.tensor([[1.0, 10, 12, 90, 70], [0, 0, 0, 128, 96]])
    rows = [torch.tensor([1])]
    values = module.vectors(module.pooled(student.feats, rois, rows), module.student_entry, rows, 2)
    pooled = pool(student.feats[0], 8, rois, samples=1).mean(dim=(2, 3))
    torch.testing.assert_close(values[1], module.projection(module.student_entry[0](pooled[1])))
    assert not values[0].any()


def test_overfits_and_does_not_collapse() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, batch=8)
    student = leaves(student)
    targets = random_targets(student)
    module = CKDLoss(pair, regions=16, dim=16, queue=0)
    before, after = fit(module, student, teacher, targets)
    assert after < 0.5 * before, (before, after)
    assert after < 0.5 * math.log(8 * 16), "no better than equal vectors everywhere"


def rank_keys(rank: int) -> torch.Tensor:
    """Return the features of a process: two of the first, three of the second."""
    return torch.full((2 + rank, max(random_pair().teacher_channels)), 1.0 + rank)


def work(rank: int, folder: str) -> None:
    """Fill a queue in one of two processes and save it."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    module = CKDLoss(random_pair(), dim=4, queue=8)
    levels = torch.full((2 + rank,), rank)
    module.enqueue(rank_keys(rank), levels, torch.tensor([True] * (1 + rank) + [rank == 1]))
    torch.save(module.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available() or sys.platform != "linux", reason="needs gloo and fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_queue_is_filled_by_all_processes(tmp_path: Path) -> None:
    multiprocessing.start_processes(work, (str(tmp_path),), nprocs=2, start_method="fork")
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for key in ("queue", "queue_level", "queue_valid", "queue_next"):
        assert torch.equal(states[0][key], states[1][key])
    filled = states[0]["queue"][states[0]["queue_valid"]][:, 0]
    assert filled.tolist() == [1, 2, 2, 2]
    assert states[0]["queue_level"][states[0]["queue_valid"]].tolist() == [0, 1, 1, 1]


def test_processes_with_fewer_regions_are_padded_with_rows_that_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    other = torch.tensor(
        [[7.0, 8.0, 1.0], [5.0, 6.0, 0.0], [3.0, 4.0, 1.0]]
    )  # three rows, whose last column is the mask

    def reduced(most: torch.Tensor, op: object) -> None:
        assert most.item() == 2 and op == distributed.ReduceOp.MAX
        most.fill_(3)

    def collected(everyone: list[torch.Tensor], rows: torch.Tensor) -> None:
        for place, values in zip(everyone, (other, rows), strict=True):
            place.copy_(values)

    for name, stand_in in (("is_initialized", lambda: True), ("get_world_size", lambda: 2)):
        monkeypatch.setattr(distributed, name, stand_in)
    monkeypatch.setattr(distributed, "all_reduce", reduced)
    monkeypatch.setattr(distributed, "all_gather", collected)
    keys, valid = gathered(torch.tensor([[1.0, 2.0], [9.0, 9.0]]), torch.tensor([True, False]))
    assert keys.tolist() == [[7, 8], [5, 6], [3, 4], [1, 2], [9, 9], [0, 0]]
    assert valid.tolist() == [True, False, True, True, False, False]


def test_one_process_gathers_nothing() -> None:
    keys, valid = torch.ones(2, 3), torch.tensor([True, False])
    assert gathered(keys, valid) == (keys, valid)


def test_alignment_takes_scale_and_offset_of_the_channels_away() -> None:
    pair = random_pair()
    student, teacher = random_taps(pair, sizes=LARGE)
    targets = random_targets(student)
    scales = [torch.linspace(0.1, 9, feat.shape[1]).view(1, -1, 1, 1) for feat in teacher.feats]
    moved = replace(teacher, feats=[feat * scale + 5 for feat, scale in zip(teacher.feats, scales)])
    for align, same in ((True, True), (False, False)):
        module = CKDLoss(pair, regions=12, align=align).eval()
        values = [module(student, taps, targets) for taps in (teacher, moved)]
        assert torch.isclose(*values, rtol=1e-4) == same
