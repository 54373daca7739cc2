"""The course of the terms over a run: ramp, decay, stop and stages, from their definitions in words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolokd.terms.clock import Clock
from yolokd.terms.schedule import Schedule, Stages


def test_ramp_is_linear_over_the_warmup() -> None:
    schedule = Schedule(warmup=0.2)
    assert [schedule.factor(p) for p in (0.0, 0.05, 0.1, 0.2)] == pytest.approx([0.0, 0.25, 0.5, 1.0])


def test_without_warmup_the_factor_starts_at_one() -> None:
    assert Schedule(warmup=0.0).factor(0.0) == 1.0


def test_a_warmup_over_the_whole_run_ends_at_one() -> None:
    assert [Schedule(warmup=1.0).factor(p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]


def test_cosine_falls_to_a_tenth() -> None:
    schedule = Schedule(warmup=0.1, decay="cosine")
    assert schedule.factor(1.0) == pytest.approx(0.1)
    assert schedule.factor(0.55) == pytest.approx(0.1 + 0.9 * 0.5)  # halfway between 0.1 and 1.0
    assert schedule.factor(0.1 + 0.9 / 3) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2)


def test_constant_stays_at_one() -> None:
    schedule = Schedule(warmup=0.1, decay="constant")
    assert [schedule.factor(p) for p in (0.1, 0.5, 1.0)] == [1.0, 1.0, 1.0]


def test_stop_cuts_to_zero() -> None:
    schedule = Schedule(warmup=0.0, decay="constant", stop=0.5)
    stop = schedule.stop_at(epochs=10, close_mosaic=3)
    assert stop == 0.5
    assert schedule.factor(0.499, stop) == 1.0
    assert schedule.factor(0.5, stop) == 0.0


def test_a_stop_at_the_end_never_stops() -> None:
    assert Schedule(decay="constant").factor(1.0, stop=1.0) == 1.0


@pytest.mark.parametrize(
    ("epochs", "close_mosaic", "expected"),
    [(100, 10, 0.9), (100, 20, 0.8), (20, 10, 0.8), (100, 0, 1.0), (2, 10, 0.8)],
)
def test_mosaic_stops_when_mosaic_closes_and_never_before_four_fifths(
    epochs: int, close_mosaic: int, expected: float
) -> None:
    assert Schedule(stop="mosaic").stop_at(epochs, close_mosaic) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(
    warmup=st.floats(0, 0.3334),
    decay=st.sampled_from(["constant", "cosine"]),
    progress=st.floats(0, 1),
    stop=st.floats(0.4, 1),
)
def test_factor_stays_between_zero_and_one(warmup: float, decay: str, progress: float, stop: float) -> None:
    factor = Schedule(warmup, decay, stop).factor(progress, stop)
    assert 0 <= factor <= 1
    assert (factor == 0) == ((progress >= stop and stop < 1) or (progress / warmup if warmup else 1) == 0)


def test_auto_stages_are_equal_parts() -> None:
    assert Stages.parse("auto", teachers=1) == Stages((0.5,), 1)
    assert Stages.parse("auto", teachers=3).points == pytest.approx((1 / 3, 2 / 3))


def test_no_points_make_one_stage() -> None:
    stages = Stages.parse([], teachers=1)
    assert stages.count == 1
    assert [stages.at(epoch, 10) for epoch in (0, 5, 9)] == [0, 0, 0]


def test_stages_begin_at_their_fraction_of_the_epochs() -> None:
    stages = Stages.parse([0.3, 0.7], teachers=3)
    assert stages.starts(10) == [0, 3, 7]
    assert [stages.at(epoch, 10) for epoch in range(10)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert Stages.parse("auto", teachers=3).starts(10) == [0, 3, 7]  # 3.3 and 6.7, the nearest epochs


def test_the_first_stage_has_an_epoch_however_short_the_run() -> None:
    stages = Stages.parse("auto", teachers=1)
    assert stages.starts(1) == [0, 1] and stages.at(0, 1) == 0
    assert Stages.parse([0.1], teachers=1).starts(3) == [0, 1]


def test_stages_follow_a_new_number_of_epochs() -> None:
    stages = Stages.parse([0.5], teachers=1)
    assert stages.at(4, 10) == 0
    assert stages.at(4, 8) == 1


def test_each_stage_has_its_teacher_or_the_last_one() -> None:
    assert [Stages((0.3, 0.7), 3).acting(stage) for stage in range(3)] == [[0], [1], [2]]
    assert [Stages((0.3, 0.7), 1).acting(stage) for stage in range(3)] == [[0], [0], [0]]
    assert Stages((0.5,), 3, together=True).acting(1) == [0, 1, 2]
    assert Stages((0.5,), 3, together=True).ramp(1, 5.0, 10) == 1.0
    assert Stages.parse("auto", teachers=3, together=True) == Stages((0.5,), 3, True)


def test_a_new_teacher_ramps_up_over_one_epoch() -> None:
    stages = Stages((0.5,), 2)
    assert [stages.ramp(1, p, 10) for p in (5.0, 5.25, 6.0, 9.5)] == pytest.approx([0.0, 0.25, 1.0, 1.0])


def test_the_stage_before_keeps_its_strength_to_its_last_step() -> None:
    """At the end of epoch 4 the position is 5.0 already, where the next stage begins."""
    assert [Stages((0.5,), 2).ramp(0, p, 10) for p in (4.9, 5.0)] == [1.0, 1.0]


def test_the_first_teacher_has_no_ramp_of_its_own() -> None:
    assert [Stages((0.5,), 2).ramp(0, p, 10) for p in (0.0, 0.25)] == [1.0, 1.0]


def test_the_same_teacher_needs_no_second_ramp() -> None:
    assert Stages((0.5,), 1).ramp(1, 5.0, 10) == 1.0


def test_the_clock_by_hand() -> None:
    """In the third of ten epochs the third of four steps has begun: 2.75 epochs are done with it, 2 * 4 + 2 before."""
    clock = Clock(epoch=2, step=3, steps=4, epochs=10)
    assert (clock.position, clock.done, clock.progress) == (2.75, 10, 0.275)
    clock.step = 0  # before the first step of an epoch
    assert (clock.position, clock.done) == (2.0, 8)


def test_the_clock_stays_within_its_epoch_and_its_run() -> None:
    """Steps may be more than was said, and the epochs fewer than before."""
    clock = Clock(epoch=2, step=9, steps=4, epochs=3)
    assert clock.position == 3.0 and clock.progress == 1.0
    clock.epochs = 2
    assert clock.progress == 1.0
    assert (Clock(steps=0, epochs=0).position, Clock(steps=0, epochs=0).progress) == (0.0, 0.0)
