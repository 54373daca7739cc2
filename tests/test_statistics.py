"""Paired statistics: known answers, and how often a verdict is wrong where there is nothing to find."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from yolokd.evaluation.bootstrap import Bootstrap
from yolokd.evaluation.statistics import Comparison, adjust, gap_closed, holm, paired, seeds_needed, verdict_sentence


class TestPaired:
    def test_worked_example(self) -> None:
        """Differences 1, 2, 3, 4, 5: mean 3, sd sqrt(2.5), t = 3 / sqrt(2.5 / 5) = 4.2426, t(0.975, 4) = 2.7764."""
        result = paired([11, 12, 13, 14, 15], [10, 10, 10, 10, 10])
        assert (result.n, result.source, result.verdict) == (5, "seeds", "better")
        assert (result.difference, result.sd) == pytest.approx((3.0, math.sqrt(2.5)))
        assert (result.low, result.high) == pytest.approx(
            (3 - 2.776445 * math.sqrt(0.5), 3 + 2.776445 * math.sqrt(0.5))
        )
        assert result.p == pytest.approx(0.0132356, abs=1e-6)

    @pytest.mark.parametrize("n", [2, 3, 5, 12])
    @pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
    def test_scipy(self, n: int, confidence: float) -> None:
        rng = np.random.default_rng(n)
        a, b = rng.normal(0.60, 0.02, n), rng.normal(0.58, 0.02, n)
        expected = stats.ttest_rel(a, b)
        interval = expected.confidence_interval(confidence)
        result = paired(a.tolist(), b.tolist(), confidence=confidence)
        assert result.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert (result.low, result.high) == pytest.approx((interval.low, interval.high), rel=1e-9)

    def test_swapping_the_two_turns_the_verdict(self) -> None:
        a, b = [0.61, 0.62, 0.615], [0.58, 0.592, 0.583]
        first, second = paired(a, b), paired(b, a)
        assert (first.verdict, second.verdict) == ("better", "worse")
        assert first.low is not None and second.high is not None
        assert first.low == pytest.approx(-second.high) and first.p == second.p

    def test_verdict_and_interval_agree(self) -> None:
        """A verdict comes exactly where the interval leaves out zero."""
        rng = np.random.default_rng(0)
        seen = set()
        for _ in range(200):
            result = paired(rng.normal(0.01, 0.01, 4).tolist(), [0.0] * 4)
            assert result.low is not None and result.high is not None
            expected = "better" if result.low > 0 else "worse" if result.high < 0 else "not distinguishable"
            assert result.verdict == expected
            seen.add(expected)
        assert {"better", "not distinguishable"} <= seen

    def test_failed_runs_are_left_out_in_pairs(self) -> None:
        a: list[float | None] = [0.6, None, 0.62, float("nan"), 0.64]
        b: list[float | None] = [0.5, 0.5, None, 0.5, 0.55]
        assert paired(a, b) == paired([0.6, 0.64], [0.5, 0.55])

    def test_no_pair_is_left(self) -> None:
        result = paired([None, 0.5], [0.5, None])
        assert (result.n, result.difference, result.verdict, result.source) == (0, None, "not distinguishable", "none")

    @pytest.mark.parametrize("shift", [0.0, 0.01])
    def test_without_spread_there_is_no_verdict(self, shift: float) -> None:
        result = paired([0.5 + shift, 0.6 + shift, 0.7 + shift], [0.5, 0.6, 0.7])
        assert result.verdict == "not distinguishable" and result.p is None and result.seeds_needed is None
        assert result.difference == pytest.approx(shift)

    def test_one_pair_has_the_interval_over_images_and_no_verdict(self) -> None:
        over_images = Bootstrap(0.03, 0.01, 0.05, 0.002, images=87, samples=1000, confidence=0.9)
        result = paired([0.61], [0.58], bootstrap=over_images)
        assert (result.source, result.low, result.high, result.confidence) == ("images", 0.01, 0.05, 0.9)
        assert result.verdict == "not distinguishable" and result.p is None
        assert paired([0.61], [0.58]).source == "none" and paired([0.61], [0.58]).difference == pytest.approx(0.03)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="2 values"):
            paired([1, 2], [1])
        with pytest.raises(ValueError, match="confidence=1"):
            paired([1, 2], [1, 3], confidence=1.0)


class TestSeedsNeeded:
    @pytest.mark.parametrize("effect, expected", [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
    def test_textbook(self, effect: float, expected: int) -> None:
        """Pairs for 80 % power at the two-sided 5 % level, as tables and power programs give them."""
        assert seeds_needed(effect, 1.0) == expected
        assert seeds_needed(-effect * 0.01, 0.01) == expected

    def test_power_is_reached_in_simulation(self) -> None:
        rng = np.random.default_rng(0)
        n = seeds_needed(1.3, 1.0)
        assert n is not None
        power = [(stats.ttest_1samp(rng.normal(1.3, 1, (4000, k)), 0, axis=1).pvalue < 0.05).mean() for k in (n - 1, n)]
        assert power[0] < 0.8 + 0.02 and power[1] > 0.8 - 0.02 and power[0] < power[1]

    def test_limits(self) -> None:
        assert seeds_needed(0.0, 1.0) is None and seeds_needed(0.01, 1.0) is None and seeds_needed(1.0, 0.0) is None
        assert seeds_needed(1e6, 1.0) == 2
        needed = [seeds_needed(1.0, 1.0, confidence=c) for c in (0.9, 0.95, 0.99)]
        assert None not in needed and needed == sorted(needed, key=lambda n: n or 0) and needed[0] != needed[2]


class TestFamily:
    def test_holm_worked_example(self) -> None:
        """0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.035 * 1, which may not fall below the one before."""
        assert holm([0.03, 0.01, 0.035, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
        assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == [] and holm([0.04]) == [0.04]

    def test_one_method_alone_stays_as_it_is(self) -> None:
        single = paired([0.61, 0.62, 0.615], [0.58, 0.592, 0.583])
        assert adjust({"a": single}) == {"a": single}

    def test_a_weak_one_among_many_loses_its_verdict(self) -> None:
        control = [0.50, 0.51, 0.49]
        weak = paired([0.530, 0.555, 0.522], control)
        assert weak.verdict == "better" and weak.p is not None and 0.01 < weak.p < 0.05
        none = {f"m{k}": paired([0.50 + 0.001 * k, 0.50, 0.50], control) for k in range(1, 5)}
        result = adjust({"weak": weak, **none, "failed": paired([None] * 3, control)})
        assert result["weak"].verdict == "not distinguishable" and result["weak"].family == 5
        assert result["weak"].p_adjusted == pytest.approx(5 * weak.p) and result["weak"].p == weak.p
        assert (result["weak"].low, result["weak"].high) == (weak.low, weak.high)
        assert (result["weak"].seeds_needed or 0) > (weak.seeds_needed or 0)
        assert result["failed"].p_adjusted is None and result["failed"].n == 0

    def test_a_strong_one_among_many_keeps_it(self) -> None:
        rng = np.random.default_rng(0)
        control = rng.normal(0.5, 0.01, 5)
        arms = {f"m{k}": paired((control + rng.normal(0, 0.01, 5)).tolist(), control.tolist()) for k in range(3)}
        arms["strong"] = paired((control + rng.normal(0.1, 0.005, 5)).tolist(), control.tolist())
        assert adjust(arms)["strong"].verdict == "better"


class TestNoEffect:
    """2,000 simulated comparisons in which the method does nothing; runs of one seed share a part of their luck."""

    @pytest.mark.parametrize("n", [2, 3, 5])
    def test_better_comes_up_rarely(self, n: int) -> None:
        rng = np.random.default_rng(n)
        shared = rng.normal(0.6, 0.01, (2000, n))
        a, b = shared + rng.normal(0, 0.007, (2000, n)), shared + rng.normal(0, 0.007, (2000, n))
        verdicts = [paired(x, y).verdict for x, y in zip(a.tolist(), b.tolist())]
        rates = {v: verdicts.count(v) / 2000 for v in ("better", "worse")}
        assert 0.012 < rates["better"] < 0.05 and 0.012 < rates["worse"] < 0.05  # 2.5 % each, standard error 0.35 %

    def test_one_seed_never_gives_a_verdict(self) -> None:
        rng = np.random.default_rng(0)
        a, b = rng.normal(0.6, 0.01, (2, 2000))
        boots = [Bootstrap(x - y, x - y - 1e-4, x - y + 1e-4, 0.001, 87, 1000, 0.95) for x, y in zip(a, b)]
        assert {paired([x], [y], bootstrap=t).verdict for x, y, t in zip(a, b, boots)} == {"not distinguishable"}

    def test_any_better_among_four_methods_comes_up_rarely(self) -> None:
        """Without the adjustment it would come up in about one comparison of twelve."""
        n, rng = 3, np.random.default_rng(0)
        wrong, unadjusted = 0, 0
        for _ in range(2000):
            control = rng.normal(0.6, 0.01, n)
            arms = {f"m{k}": paired(rng.normal(0.6, 0.01, n).tolist(), control.tolist()) for k in range(4)}
            unadjusted += any(c.verdict == "better" for c in arms.values())
            wrong += any(c.verdict == "better" for c in adjust(arms).values())
        assert wrong / 2000 <= 0.05 < unadjusted / 2000

    def test_an_effect_is_found(self) -> None:
        """The opposite: with the seeds that are said to be needed, four of five comparisons see it."""
        rng = np.random.default_rng(0)
        n = seeds_needed(0.01, 0.01)
        assert n == 10
        verdicts = [paired(x, [0.0] * n).verdict for x in rng.normal(0.01, 0.01, (2000, n)).tolist()]
        assert verdicts.count("better") / 2000 == pytest.approx(0.8, abs=0.03)


class TestGapClosed:
    @pytest.mark.parametrize(
        "plain, distilled, teacher, expected",
        [
            (0.5, 0.55, 0.6, 0.5),
            (0.5, 0.6, 0.6, 1.0),
            (0.5, 0.62, 0.6, 1.2),
            (0.5, 0.49, 0.6, -0.1),
            (0.5, 0.5, 0.6, 0.0),
            (0.6, 0.61, 0.6, None),
            (0.6, 0.61, 0.5, None),
            (None, 0.5, 0.6, None),
            (0.5, None, 0.6, None),
            (0.5, 0.55, None, None),
            (0.5, 0.55, float("nan"), None),
        ],
    )
    def test_known(self, plain: float, distilled: float, teacher: float, expected: float | None) -> None:
        got = gap_closed(plain, distilled, teacher)
        assert got is None if expected is None else got == pytest.approx(expected)


class TestSentence:
    def sentence(self, comparison: Comparison, gap: float | None = None) -> str:
        return verdict_sentence(comparison, "dfmsd", "none", gap=gap)

    def test_better(self) -> None:
        text = self.sentence(paired([0.61, 0.62, 0.615], [0.58, 0.592, 0.583]), gap=0.75)
        assert text.startswith("dfmsd is better than none: +3.00 AP (95 % interval +2.")
        assert "3 seeds" in text and text.endswith("It closes 75 % of the gap to the teacher.")

    def test_worse(self) -> None:
        text = self.sentence(paired([0.58, 0.592, 0.583], [0.61, 0.62, 0.615]), gap=-0.75)
        assert text.startswith("dfmsd is worse than none: -3.00 AP") and "gap" not in text

    def test_not_distinguishable_says_what_it_would_take(self) -> None:
        result = paired([0.60, 0.61, 0.59], [0.59, 0.595, 0.598])
        text = self.sentence(result)
        assert text.startswith("dfmsd and none are not distinguishable with 3 seeds: +0.57 AP")
        assert result.seeds_needed is not None and f"about {result.seeds_needed} seeds would show it" in text
        assert "more than 1000 seeds" in self.sentence(paired([0.60001, 0.5, 0.61, 0.59], [0.60, 0.51, 0.60, 0.59]))

    def test_one_seed(self) -> None:
        boot = Bootstrap(0.03, 0.01, 0.05, 0.002, images=87, samples=1000, confidence=0.95)
        text = self.sentence(paired([0.61], [0.58], bootstrap=boot))
        assert text.startswith("One seed:") and "+1.00 to +5.00), over images alone" in text
        assert "better" not in text

    def test_many_methods(self) -> None:
        control = [0.50, 0.51, 0.49]
        arms = {f"m{k}": paired([0.50 + 0.002 * k, 0.50, 0.50], control) for k in range(1, 5)}
        assert "adjusted for 4 methods" in self.sentence(adjust(arms)["m1"])

    def test_nothing_and_no_spread(self) -> None:
        assert "nothing to compare" in self.sentence(paired([None], [0.5]))
        assert "without any spread" in self.sentence(paired([0.5, 0.6], [0.5, 0.6]))
