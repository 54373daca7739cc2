"""Gains found by measuring: hand-worked ratios, and the share reached on a real model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.tiny import tiny_batch, tiny_criterion
from yolokd.outputs import read_output
from yolokd.terms.calibration import BATCHES, MOST, GainCalibration, gradient_norm, replayed


def neck() -> list[torch.Tensor]:
    """Two levels with 12 and 4 entries: a sum has a gradient of ones, of norm 4."""
    return [torch.zeros(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)]


def linear(feats: list[torch.Tensor], slope: float) -> torch.Tensor:
    return slope * torch.stack([feat.sum() for feat in feats]).sum()


def measure(calibration: GainCalibration, task: float, **units: float) -> None:
    feats = neck()
    calibration.measure(linear(feats, task), {unit: linear(feats, slope) for unit, slope in units.items()}, feats)


def test_gradient_norm_takes_all_levels_together() -> None:
    assert float(gradient_norm(linear(neck_ := neck(), 0.5), neck_)) == pytest.approx(2.0)


def test_gradient_norm_of_levels_that_a_term_does_not_reach() -> None:
    feats = neck()
    assert float(gradient_norm(feats[1].sum(), feats)) == pytest.approx(2.0)
    assert float(gradient_norm(torch.zeros((), requires_grad=True) * 1.0, feats)) == 0.0


def test_gradient_norm_survives_half_precision() -> None:
    feat = torch.zeros(1, 1, 2, 2, dtype=torch.float16, requires_grad=True)
    tiny = 2.0**-30  # far below half precision's smallest number, 2**-24, were it not scaled
    assert float(gradient_norm((feat.float() * tiny).sum(), [feat])) == pytest.approx(2 * tiny, rel=1e-3)


def test_one_batch_gives_share_times_the_ratio() -> None:
    calibration = GainCalibration({"pkd": 0.3})
    assert calibration.gains == {"pkd": 0.0}
    measure(calibration, task=3.0, pkd=0.5)
    assert calibration.gains["pkd"] == pytest.approx(0.3 * 3.0 / 0.5)


def test_batches_are_joined_as_the_ratio_of_mean_norms() -> None:
    calibration = GainCalibration({"pkd": 0.3, "cwd": 0.1})
    measure(calibration, task=3.0, pkd=0.5, cwd=2.0)
    measure(calibration, task=1.0, pkd=1.5, cwd=2.0)
    assert calibration.gains["pkd"] == pytest.approx(0.3 * (3 + 1) / (0.5 + 1.5))
    assert calibration.gains["cwd"] == pytest.approx(0.1 * (3 + 1) / (2 + 2))


def test_gains_are_held_after_eight_batches() -> None:
    calibration = GainCalibration({"pkd": 0.3})
    for _ in range(BATCHES):
        assert calibration.wants(warmed_up=False)
        measure(calibration, task=2.0, pkd=1.0)
    assert not calibration.wants(warmed_up=False)
    assert calibration.gains["pkd"] == pytest.approx(0.6)


def test_gains_are_said_when_a_window_is_full(said: list[str]) -> None:
    calibration = GainCalibration({"pkd": 0.3, "cwd": 0.1})
    for _ in range(BATCHES - 1):
        measure(calibration, task=2.0, pkd=1.0, cwd=4.0)
    assert not said
    measure(calibration, task=2.0, pkd=1.0, cwd=4.0)
    assert said == ["distillation: gains measured over 8 batches: pkd 0.6, cwd 0.05"]


def test_the_second_window_opens_after_the_warmup_and_changes_gains_once() -> None:
    calibration = GainCalibration({"pkd": 0.3})
    for _ in range(BATCHES):
        measure(calibration, task=2.0, pkd=1.0)
    for _ in range(BATCHES - 1):
        assert calibration.wants(warmed_up=True)
        measure(calibration, task=8.0, pkd=1.0)
        assert calibration.gains["pkd"] == pytest.approx(0.6)
    measure(calibration, task=8.0, pkd=1.0)
    assert calibration.gains["pkd"] == pytest.approx(2.4)
    assert not calibration.wants(warmed_up=True)


@pytest.mark.parametrize("task", [0.0, math.inf, math.nan])
def test_a_batch_without_a_usable_task_gradient_is_skipped(task: float) -> None:
    calibration = GainCalibration({"pkd": 0.3})
    measure(calibration, task=task, pkd=1.0)
    assert calibration.gains["pkd"] == 0.0
    measure(calibration, task=2.0, pkd=1.0)
    assert calibration.gains["pkd"] == pytest.approx(0.6)


@pytest.mark.parametrize("slope", [0.0, math.inf, math.nan])
def test_a_batch_without_a_usable_unit_gradient_is_skipped_for_that_unit(slope: float) -> None:
    calibration = GainCalibration({"pkd": 0.3, "cwd": 0.3})
    measure(calibration, task=5.0, pkd=slope, cwd=1.0)
    measure(calibration, task=2.0, pkd=1.0, cwd=1.0)
    assert calibration.gains["pkd"] == pytest.approx(0.6)
    assert calibration.gains["cwd"] == pytest.approx(0.3 * 7 / 2)


def test_what_rounding_leaves_of_a_gradient_is_said_and_not_brought_to_its_share(said: list[str]) -> None:
    calibration = GainCalibration({"pkd": 0.3, "cwd": 0.3})
    measure(calibration, task=2.0, pkd=2e-5, cwd=2e-12)
    assert calibration.gains == {"pkd": pytest.approx(0.3 * 2.0 / 2e-5), "cwd": pytest.approx(0.3 * 1e6)}
    for _ in range(BATCHES - 1):
        measure(calibration, task=2.0, pkd=2e-5, cwd=2e-12)
    assert [message for message in said if "rounding" in message] == [
        "WARNING ⚠️ distillation: the gradient of cwd is nothing but rounding, since student and teacher agree where it "
        "acts; it can hardly teach anything yet"
    ]


def test_a_window_waits_for_the_unit_that_was_skipped() -> None:
    calibration = GainCalibration({"pkd": 0.3, "cwd": 0.3})
    for _ in range(BATCHES):
        measure(calibration, task=2.0, pkd=0.0, cwd=1.0)
    assert calibration.wants(warmed_up=False)
    held = calibration.gains["cwd"]
    for _ in range(BATCHES):
        measure(calibration, task=200.0, pkd=1.0, cwd=1.0)
    assert calibration.gains["cwd"] == held
    assert not calibration.wants(warmed_up=False)


@pytest.mark.parametrize(("usable", "gain"), [(0, 0.0), (3, 0.6)])
def test_a_window_does_not_wait_for_ever(usable: int, gain: float, said: list[str]) -> None:
    calibration = GainCalibration({"pkd": 0.3, "cwd": 0.3})
    for step in range(MOST):
        assert calibration.wants(warmed_up=False)
        measure(calibration, task=2.0, pkd=float(step < usable), cwd=1.0)
    assert not calibration.wants(warmed_up=False)
    assert calibration.gains == {"pkd": pytest.approx(gain), "cwd": pytest.approx(0.6)}
    assert "gains measured over 8 batches" in said[0]
    (message,) = [message for message in said if "uncertain" in message]
    assert f"pkd had a gradient at the neck in {usable} of {MOST} batches alone" in message
    for step in range(MOST):
        assert calibration.wants(warmed_up=True)
        measure(calibration, task=4.0, pkd=float(step >= MOST - 2), cwd=1.0)
    assert not calibration.wants(warmed_up=True)
    assert calibration.gains == {"pkd": pytest.approx(1.2), "cwd": pytest.approx(1.2)}


def test_state_goes_on_in_the_middle_of_a_window() -> None:
    whole, first = GainCalibration({"pkd": 0.3}), GainCalibration({"pkd": 0.3})
    for step in range(BATCHES + 5):
        whole.wants(warmed_up=step >= BATCHES)
        measure(whole, task=1.0 + step, pkd=1.0)
    for step in range(5):
        measure(first, task=1.0 + step, pkd=1.0)
    second = GainCalibration({"pkd": 0.3})
    second.load(first.state())
    for step in range(5, BATCHES + 5):
        second.wants(warmed_up=step >= BATCHES)
        measure(second, task=1.0 + step, pkd=1.0)
    assert second.state() == whole.state()


def test_a_window_that_waits_goes_on_waiting_where_it_was() -> None:
    first, second = (GainCalibration({"pkd": 0.3, "cwd": 0.3}) for _ in range(2))
    for _ in range(MOST - 1):
        measure(first, task=2.0, pkd=0.0, cwd=1.0)
    second.load(first.state())
    assert second.wants(warmed_up=False)
    measure(second, task=2.0, pkd=0.0, cwd=1.0)
    assert not second.wants(warmed_up=False)


def test_a_state_stays_as_it_was_handed_out() -> None:
    calibration = GainCalibration({"pkd": 0.3})
    measure(calibration, task=3.0, pkd=0.5)  # norms are 4 times as large, the root of 16 entries
    state = calibration.state()
    measure(calibration, task=1.0, pkd=1.5)
    assert state["sums"] == {"pkd": [12.0, 2.0, 1]} and state["gains"] == {"pkd": pytest.approx(1.8)}


def test_a_unit_without_a_share_is_not_said_to_be_uncertain(said: list[str]) -> None:
    calibration = GainCalibration({"pkd": 0.3, "cwd": 0.0})
    for _ in range(MOST):
        measure(calibration, task=2.0, pkd=1.0, cwd=0.0)
    assert not calibration.wants(warmed_up=False)
    assert said == ["distillation: gains measured over 8 batches: pkd 0.6, cwd 0"]


def test_the_first_teachers_do_not_undo_what_was_measured() -> None:
    calibration = GainCalibration({"pkd": 0.3})
    measure(calibration, task=3.0, pkd=0.5)
    calibration.turn_to([0], {"pkd": 0.3})
    assert calibration.gains["pkd"] == pytest.approx(1.8)


def test_a_replayed_head_counts_on_afterwards_and_not_in_between() -> None:
    """The replay leaves its statistics alone, a norm without any has none after it, and the next forward counts."""
    kept, without = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)

    class Head(nn.Sequential):
        def forward(self, feats: list[torch.Tensor]) -> list[torch.Tensor]:
            return [super(Head, self).forward(feat) for feat in feats]

    replayed(Head(kept, without), [torch.full((2, 3, 2, 2), 5.0)])
    assert kept.running_mean.tolist() == [0.0] * 3
    assert (kept.track_running_stats, without.track_running_stats) == (True, False)
    kept(torch.full((2, 3, 2, 2), 5.0))
    assert kept.running_mean.tolist() == [0.5] * 3


def test_another_teacher_is_measured_from_the_start() -> None:
    calibration = GainCalibration({"pkd": 0.3, "cwd": 0.1})
    calibration.turn_to([0], {"pkd": 0.3, "cwd": 0.0})
    for _ in range(BATCHES):
        measure(calibration, task=2.0, pkd=1.0)
    calibration.turn_to([0], {"pkd": 0.3, "cwd": 0.0})
    assert calibration.window == 1 and calibration.gains == {"pkd": pytest.approx(0.6), "cwd": 0.0}
    calibration.turn_to([1], {"pkd": 0.2, "cwd": 0.1})
    assert calibration.wants(warmed_up=True) and calibration.gains == {"pkd": 0.0, "cwd": 0.0}
    measure(calibration, task=4.0, pkd=1.0, cwd=2.0)
    assert calibration.gains == {"pkd": pytest.approx(0.8), "cwd": pytest.approx(0.2)}
    resumed = GainCalibration({"pkd": 0.3, "cwd": 0.1})
    resumed.load(calibration.state())
    resumed.turn_to([1], {"pkd": 0.2, "cwd": 0.1})
    assert resumed.state() == calibration.state()


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_each_unit_reaches_its_share_of_the_tasks_gradient(family: str) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", family, family, kd_gain="auto", kd_share=0.4, pcd_gain=3.0)
    batch = tiny_batch()
    preds = model(batch["img"])
    criterion(preds, batch)
    task, _ = criterion.task.base(preds, batch)
    feats = (preds.get("one2many") or preds)["feats"]
    reference = gradient_norm(task.sum() / len(batch["img"]), feats)
    units = criterion._units(read_output(preds), batch)
    reached = {
        unit: float(gradient_norm(criterion.unit_gain(unit) * value[1], feats) / reference)
        for unit, value in units.items()
    }
    assert reached == pytest.approx({"dfmsd": 0.1, "pcd_grouped": 0.15, "pcd_binary": 0.15}, rel=1e-4)


def test_measuring_leaves_no_gradient_behind() -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", kd_gain="auto")
    batch = tiny_batch()
    criterion(model(batch["img"]), batch)
    assert all(parameter.grad is None for parameter in model.parameters())
