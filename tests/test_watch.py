"""The watch stops a run whose term does nothing or is not a number, and no other."""

from __future__ import annotations

import pytest
import torch

from yolokd.terms.watch import TermWatch

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
