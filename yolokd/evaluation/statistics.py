"""What paired runs over seeds can and cannot tell about a method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from yolokd.evaluation.bootstrap import Bootstrap

Verdict = Literal["better", "worse", "not distinguishable"]
POWER = 0.8  # chance of seeing an effect that is there, for the number of seeds that would be needed
MOST_SEEDS = 1000  # a larger need is given as None: such an effect is not worth the search


@dataclass(frozen=True)
class Comparison:
    """A method against a control, by pairs of runs that share seed, weights and images.

    Attributes:
        n (int): Number of pairs that finished.
        difference (float | None): Mean of method minus control; None without a pair.
        sd (float | None): Standard deviation of the differences, None below two pairs.
        low (float | None): Lower end of the interval.
        high (float | None): Upper end of the interval.
        p (float | None): Two-sided p value of no difference, not adjusted.
        verdict (str): What can be said of the method: `better`, `worse` or `not distinguishable`.
        seeds_needed (int | None): Seeds with which an effect of the size seen would show in four of five comparisons;
            None where that cannot be told or is more than 1000.
        source (str): What the interval is over: `seeds`, `images` (one pair: it holds for these two models only and no
            verdict on the method follows), or `none`.
        p_adjusted (float | None): The p value adjusted for all methods that were compared with this control.
        family (int): How many methods were compared with this control.
        confidence (float): Confidence of the interval, and of the verdict over the whole family.
    """

    n: int
    difference: float | None
    sd: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: Verdict
    seeds_needed: int | None
    source: Literal["seeds", "images", "none"]
    p_adjusted: float | None = None
    family: int = 1
    confidence: float = 0.95


def paired(
    a: Sequence[float | None],
    b: Sequence[float | None],
    confidence: float = 0.95,
    bootstrap: Bootstrap | None = None,
) -> Comparison:
    """Compare a method with a control by the paired t test over seeds.

    Pairs in which a value is missing (None or NaN, a run that failed) are left out. Where all differences are equal
    there is no spread to judge by, and the verdict is `not distinguishable`. One pair says nothing of how much two runs
    of one setting differ: the interval is then the bootstrap's over images, and the verdict on the method stays open.

    Args:
        a (Sequence[float | None]): Values of the method, one per seed.
        b (Sequence[float | None]): Values of the control on the same seeds, in the same order.
        confidence (float): Confidence of the interval, in (0, 1).
        bootstrap (Bootstrap, optional): Bootstrap over images of the one pair, used when there is only one.

    Returns:
        (Comparison): The comparison, not adjusted for others.

    Raises:
        ValueError: If the two have different lengths or the confidence is out of range.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} values of the method cannot be paired with {len(b)} of the control")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie in (0, 1)")
    pairs = [(x, y) for x, y in zip(a, b) if x is not None and y is not None and math.isfinite(x) and math.isfinite(y)]
    n = len(pairs)
    empty = Comparison(n, None, None, None, None, None, "not distinguishable", None, "none", confidence=confidence)
    if not n:
        return empty
    differences = np.asarray([x - y for x, y in pairs], dtype=np.float64)
    mean = float(differences.mean())
    if n == 1:
        if bootstrap is None:
            return replace(empty, difference=mean)
        return replace(
            empty,
            difference=mean,
            low=bootstrap.low,
            high=bootstrap.high,
            source="images",
            confidence=bootstrap.confidence,
        )
    sd = float(differences.std(ddof=1))
    if sd <= 1e-12 * max(1.0, abs(mean)):  # equal up to rounding
        return replace(empty, difference=mean, sd=0.0, low=mean, high=mean, source="seeds")
    error = sd / math.sqrt(n)
    half = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * error
    p = float(2 * special.stdtr(n - 1, -abs(mean) / error))
    verdict = _verdict(mean, p, 1 - confidence)
    needed = seeds_needed(mean, sd, confidence)
    return Comparison(n, mean, sd, mean - half, mean + half, p, verdict, needed, "seeds", p, confidence=confidence)


def adjust(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """Judge several methods against one control, keeping the chance of any false verdict at that of a single one.

    Holm's step-down procedure (Holm, Scandinavian Journal of Statistics 6, 1979). Intervals stay those of each method
    alone; the seeds needed are given for the level that the smallest p value has to meet.

    Args:
        comparisons (Mapping[str, Comparison]): Comparisons with one control, by method, all of one confidence.

    Returns:
        (dict[str, Comparison]): The same with adjusted p values, verdicts and needed seeds.
    """
    tested = {name: c for name, c in comparisons.items() if c.p is not None}
    adjusted = dict(zip(tested, holm([c.p for c in tested.values() if c.p is not None])))
    result = dict(comparisons)
    for name, c in tested.items():
        assert c.difference is not None and c.sd is not None
        alpha = 1 - c.confidence
        result[name] = replace(
            c,
            p_adjusted=adjusted[name],
            family=len(tested),
            verdict=_verdict(c.difference, adjusted[name], alpha),
            seeds_needed=seeds_needed(c.difference, c.sd, 1 - alpha / len(tested)),
        )
    return result


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values in the order given.

    Args:
        p_values (Sequence[float]): Unadjusted p values.

    Returns:
        (list[float]): Adjusted p values, at most 1.
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def seeds_needed(difference: float, sd: float, confidence: float = 0.95, power: float = POWER) -> int | None:
    """Return how many pairs a two-sided paired t test needs to see a difference.

    Args:
        difference (float): True mean difference.
        sd (float): Standard deviation of the differences.
        confidence (float): 1 minus the level of the test.
        power (float): Wanted chance of a significant result.

    Returns:
        (int | None): The smallest number of pairs, at least 2; None for no difference, no spread, or over 1000 pairs.
    """
    if difference == 0 or sd <= 0:
        return None
    effect = abs(difference) / sd

    def reaches(n: int) -> bool:
        critical, shift = float(special.stdtrit(n - 1, (1 + confidence) / 2)), effect * math.sqrt(n)
        bounds = critical * _spreads(n - 1)
        return float(np.mean(special.ndtr(shift - bounds) + special.ndtr(-shift - bounds))) >= power

    if not reaches(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS  # the power grows with n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def gap_closed(plain: float | None, distilled: float | None, teacher: float | None) -> float | None:
    """Return the share of the gap between plain student and teacher that distillation closes.

    Args:
        plain (float | None): AP of the plainly trained student, the mean over seeds.
        distilled (float | None): AP of the distilled student, the mean over the same seeds.
        teacher (float | None): AP of the teacher.

    Returns:
        (float | None): 0 for nothing, 1 for the teacher's level, negative for a loss; None where a value is missing or
            the teacher is not better than the plain student.
    """
    if plain is None or distilled is None or teacher is None or not teacher > plain:
        return None
    return (distilled - plain) / (teacher - plain)


def verdict_sentence(
    comparison: Comparison, method: str, control: str, metric: str = "AP", gap: float | None = None
) -> str:
    """Say in plain words what a comparison shows.

    Args:
        comparison (Comparison): The comparison of fractions in [0, 1]; differences are told in points (x 100).
        method (str): Name of the method.
        control (str): Name of the control.
        metric (str): What was compared.
        gap (float, optional): Share of the gap to the teacher that was closed.

    Returns:
        (str): One to three sentences.
    """
    c = comparison
    if c.difference is None:
        return f"{method} and {control} have no finished pair of runs, so there is nothing to compare."
    change = f"{100 * c.difference:+.2f} {metric}"
    if c.low is not None and c.high is not None and c.sd != 0:
        change += f" ({100 * c.confidence:g} % interval {100 * c.low:+.2f} to {100 * c.high:+.2f})"
    closed = (
        f" It closes {100 * gap:.0f} % of the gap to the teacher." if gap is not None and c.verdict == "better" else ""
    )
    if c.n == 1:
        over = ", over images alone" if c.source == "images" else ""
        return (
            f"One seed: {method} against {control} gave {change}{over}. How much two runs of one setting differ is "
            f"unknown, so the difference cannot be put down to the method; run 3 seeds or more."
        )
    if c.sd == 0:
        return (
            f"{method} against {control} gave {change} with all {c.n} seeds alike: without any spread between seeds "
            f"the two are not distinguishable."
        )
    others = f", adjusted for {c.family} methods" if c.family > 1 else ""
    p = c.p if c.p_adjusted is None else c.p_adjusted
    assert p is not None  # there are several pairs, and they differ
    numbers = f"{change}, {c.n} seeds, p {'< 0.001' if p < 0.001 else f'= {p:.2g}'}{others}"
    if c.verdict != "not distinguishable":
        return f"{method} is {c.verdict} than {control}: {numbers}.{closed}"
    if c.seeds_needed is None:
        need = f"An effect of that size would need more than {MOST_SEEDS} seeds to show."
    elif c.seeds_needed > c.n:
        need = f"If the effect is as large as it looks, about {c.seeds_needed} seeds would show it."
    else:
        need = "An effect of that size should mostly show with so many seeds; a few more would settle it."
    return f"{method} and {control} are not distinguishable with {c.n} seeds: {numbers}. {need}"


@lru_cache(maxsize=MOST_SEEDS)
def _spreads(freedom: int) -> NDArray[np.float64]:
    """Return 400 equally likely values of (estimated / true standard deviation) for some degrees of freedom.

    The power of a t test is the normal power averaged over them. (SciPy's noncentral t distribution gives NaN far out.)
    """
    middles = (np.arange(400) + 0.5) / 400
    return np.asarray(np.sqrt(2 * special.gammaincinv(freedom / 2, middles) / freedom))


def _verdict(difference: float, p: float, alpha: float) -> Verdict:
    """Return the verdict of a two-sided test at level alpha."""
    if p >= alpha:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"
