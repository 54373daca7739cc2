"""The watch stops a run whose term does nothing or is not a number, and no other."""

from __future__ import annotations

import pytest
import torch

from yolokd.terms.watch import TEACHER, TermWatch

SOME, NONE = torch.tensor(3), torch.tensor(0)


def steps(watch: TermWatch, values: list[float], objects: torch.Tensor | None = None, name: str = "pkd") -> None:
    for value in values:
        watch.see(name, torch.tensor(value), objects)
        watch.check()


def test_twenty_zeros_running_stop_the_run_and_name_the_method() -> None:
    with pytest.raises(RuntimeError, match=r"method=pkd.*exactly zero for 20 steps"):
        steps(TermWatch(), [0.0] * 20)


def test_nineteen_zeros_do_not() -> None:
    steps(TermWatch(), [0.0] * 19 + [1e-30] + [0.0] * 19)


def test_zeros_must_be_running() -> None:
    steps(TermWatch(), [0.0, 0.0, 0.5] * 40)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_term_that_is_not_finite_stops_the_run(value: float) -> None:
    with pytest.raises(RuntimeError, match=r"method=pkd.*not finite for 20 steps"):
        steps(TermWatch(), [value] * 20)


def test_zeros_without_positives_warn_once(said: list[str]) -> None:
    steps(TermWatch(), [0.0] * 60, NONE)
    assert len(said) == 1
    assert "method=pkd: no positives in the last 20 batches, so its term is zero." in said[0]


def test_one_batch_with_positives_among_the_zeros_stops_the_run() -> None:
    watch = TermWatch()
    steps(watch, [0.0] * 10, NONE)
    steps(watch, [0.0], SOME)
    with pytest.raises(RuntimeError, match="exactly zero"):
        steps(watch, [0.0] * 9, NONE)


def test_positives_before_the_zeros_do_not_count() -> None:
    watch = TermWatch()
    steps(watch, [1.0] * 5, SOME)
    steps(watch, [0.0] * 35, NONE)


def test_each_method_is_counted_by_itself() -> None:
    watch = TermWatch()
    with pytest.raises(RuntimeError, match="method=cwd"):
        for _ in range(20):
            watch.see("pkd", torch.tensor(1.0), None)
            watch.see("cwd", torch.tensor(0.0), None)
            watch.check()


def test_the_limit_is_the_number_of_steps() -> None:
    with pytest.raises(RuntimeError, match="5 steps"):
        steps(TermWatch(limit=5), [0.0] * 5)


def test_values_that_are_not_finite_must_be_running() -> None:
    steps(TermWatch(), [float("nan"), float("nan"), 0.5] * 40)


def test_one_positive_is_something_to_act_on() -> None:
    with pytest.raises(RuntimeError, match="exactly zero"):
        steps(TermWatch(), [0.0] * 20, torch.tensor(1))


def test_zeros_of_steps_that_were_left_out_are_no_zeros() -> None:
    watch = TermWatch()
    for step in range(38):
        watch.see("pkd", torch.tensor(0.0), None, torch.tensor(step != 19))
        watch.check()


def test_a_term_that_overflows_after_its_method_was_sound_is_not_finite() -> None:
    watch = TermWatch(limit=2)
    watch.see("pkd", torch.tensor(float("inf")), None, torch.tensor(True))
    watch.check()
    watch.see("pkd", torch.tensor(float("inf")), None, torch.tensor(True))
    with pytest.raises(RuntimeError, match="method=pkd: its term was not finite for 2 steps"):
        watch.check()


def test_the_teacher_is_named_before_the_methods_that_it_takes_along() -> None:
    watch = TermWatch(limit=3)
    with pytest.raises(RuntimeError, match="the teacher's output was not finite for 3 steps"):
        for _ in range(3):
            watch.see("pkd", torch.tensor(0.0), None, torch.tensor(False))
            watch.see_teachers(torch.tensor(False))
            watch.check()


def test_what_was_left_out_is_counted_since_the_last_time(said: list[str]) -> None:
    watch = TermWatch()
    for sound in (False, True, False, False):
        watch.see("pkd", torch.tensor(0.0), None, torch.tensor(sound))
        watch.see_teachers(torch.tensor(True))
    watch.tell(4)
    assert [message.removeprefix("WARNING ⚠️ ") for message in said] == [
        "method=pkd: its term was not finite in 3 of 4 steps, which were done without it"
    ]
    watch.see("pkd", torch.tensor(0.0), None, torch.tensor(False))
    watch.tell(1)
    assert "in 1 of 1 steps" in said[1]
    watch.see(TEACHER, torch.tensor(1.0), None, torch.tensor(True))
    watch.tell(1)
    assert len(said) == 2
