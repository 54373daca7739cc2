"""Paired statistics: known answers, and how often a verdict is wrong where there is nothing to find."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from yolokd.evaluation.bootstrap import Bootstrap
from yolokd.evaluation.statistics import Comparison, adjust, gap_closed, holm, paired, seeds_needed, verdict_sentence
from yolokd.results import assemble


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

    def test_confidence_is_that_of_the_verdict_too(self) -> None:
        """Differences 0.01, 0.02, 0.03 have p = 0.0742: enough at 90 %, not at 95 %."""
        values = [0.51, 0.52, 0.53], [0.5, 0.5, 0.5]
        assert [paired(*values, confidence=c).verdict for c in (0.9, 0.95)] == ["better", "not distinguishable"]
        assert paired(*values, confidence=0.9).confidence == 0.9

    def test_without_spread_the_interval_is_the_difference(self) -> None:
        result = paired([0.75, 0.5], [0.5, 0.25])
        assert (result.n, result.difference, result.sd, result.low, result.high) == (2, 0.25, 0.0, 0.25, 0.25)
        assert result.source == "seeds"
        tiny = paired([1e-9, 3e-9], [0.0, 0.0])  # small, and still a spread
        assert tiny.sd == pytest.approx(math.sqrt(2) * 1e-9) and tiny.p == pytest.approx(2 * math.atan(0.5) / math.pi)
        assert paired([1e6, 1e6 + 1e-7], [0.0, 0.0]).sd == 0  # rounding of large numbers

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

    @pytest.mark.parametrize(
        "effect, confidence, power, expected",
        [
            (0.5, 0.95, 0.9, 44),
            (0.5, 0.99, 0.8, 51),
            (1.0, 0.95, 0.9, 13),
            (1.0, 0.9, 0.8, 8),
            (2.1, 0.95, 0.8, 5),
            (3.2, 0.95, 0.8, 4),
        ],
    )
    def test_other_levels_and_powers(self, effect: float, confidence: float, power: float, expected: int) -> None:
        """The same by the noncentral t distribution."""
        reached = []
        for n in (expected - 1, expected):
            critical, shift = stats.t.ppf((1 + confidence) / 2, n - 1), effect * math.sqrt(n)
            reached.append(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))
        assert reached[0] < power <= reached[1]
        assert seeds_needed(effect, 1.0, confidence, power) == expected

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

    def test_confidence_and_seeds_are_those_of_the_family(self) -> None:
        """At 90 % and two methods the smaller p value has to be below 0.05, the other one below 0.1."""
        control = [0.5, 0.5, 0.5]
        values = {"a": [0.51, 0.52, 0.53], "b": [0.52, 0.525, 0.53]}  # p = 0.0742 and p = 0.0131
        result = adjust({name: paired(own, control, confidence=0.9) for name, own in values.items()})
        assert {name: c.verdict for name, c in result.items()} == {"a": "better", "b": "better"}
        assert [c.p_adjusted for c in result.values()] == pytest.approx([0.074180, 0.026145], abs=1e-6)
        assert {c.family for c in result.values()} == {2} and {c.confidence for c in result.values()} == {0.9}
        assert result["a"].seeds_needed == seeds_needed(0.02, 0.01, 0.95)  # 1 - 0.1 / 2
        usual = adjust({name: paired(own, control) for name, own in values.items()})
        assert {name: c.verdict for name, c in usual.items()} == {"a": "not distinguishable", "b": "better"}

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

    def test_seeds_that_should_have_been_enough(self) -> None:
        close = replace(paired([0.60, 0.61, 0.59], [0.59, 0.595, 0.598]), seeds_needed=3)
        assert self.sentence(close).endswith("a few more would settle it.")
        assert "about 4 seeds would show it" in self.sentence(replace(close, seeds_needed=4))

    def test_metric_and_interval_are_told(self) -> None:
        result = paired([11, 12, 13, 14, 15], [10] * 5)
        text = verdict_sentence(replace(result, confidence=0.9), "a", "b", "AP50")
        assert "+300.00 AP50 (90 % interval +103.68 to +496.32)" in text  # 3 -+ 2.776445 / sqrt(2)
        single = self.sentence(paired([0.61], [0.58]))
        assert "dfmsd against none gave +3.00 AP." in single and "interval" not in single and "images" not in single
        equal = self.sentence(paired([0.5, 0.6], [0.4, 0.5]))
        assert "gave +10.00 AP with all 2 seeds alike" in equal

    def test_nothing_and_no_spread(self) -> None:
        assert "nothing to compare" in self.sentence(paired([None], [0.5]))
        assert "without any spread" in self.sentence(paired([0.5, 0.6], [0.5, 0.6]))

    def test_p_values_are_told_with_two_digits(self) -> None:
        """Differences 3, 2, 2.5: t = 2.5 / (0.5 / sqrt(3)) = 8.6603, and with 2 degrees of freedom p = 0.013072."""
        text = self.sentence(paired([0.03, 0.02, 0.025], [0.0] * 3))
        assert "3 seeds, p = 0.013." in text and "adjusted" not in text
        # differences 0.045, 0.035, 0.04: t = 4 / (0.5 / sqrt(3)) = 13.8564, p = 1 - t / sqrt(t^2 + 2) = 0.005168
        assert "p = 0.0052." in self.sentence(paired([0.045, 0.035, 0.04], [0.0] * 3))
        strong = paired([0.101, 0.100, 0.099, 0.100], [0.0] * 4)
        assert strong.p is not None and strong.p < 0.001 and "4 seeds, p < 0.001." in self.sentence(strong)


class TestArms:
    """From runs to the pairs that are compared, with numbers made up by hand."""

    def run(self, folder: str, ap: float | None, seed: int = 0, step: float | None = 0.2, **own: Any) -> dict[str, Any]:
        metrics = None if ap is None else {"ap": ap, "per_class": {"a": ap}}
        facts = {"stream_hash": "s", "initial_hash": "i", "epochs_done": 3, "resumed": [], "shared_machine": False}
        state = {
            "status": "done",
            "error": None,
            "wall_s": 10.0,
            "peak_bytes": 10**9,
            "pairing": "model=s",
            "repeat": 0,
        }
        return {"folder": folder, "seed": seed, "metrics": metrics, "step_s": step, **facts, **state, **own}

    def arms(self, teacher: float | None = 0.7, **runs: list[dict[str, Any]]) -> dict[str, Any]:
        asked = []
        arms = [{"name": name, "method": name, "runs": own} for name, own in runs.items()]
        numbers = None if teacher is None else {"ap": teacher}
        result = assemble({}, {"metrics": numbers}, arms, lambda *pair: asked.append([r["folder"] for r in pair]))
        return {"asked": asked, "checks": result["checks"], **{arm["name"]: arm for arm in result["arms"]}}

    def test_repetitions_meet_those_of_their_number(self) -> None:
        plain = [self.run("none0", 0.50, step=0.1), self.run("none1", 0.60, step=0.2, repeat=1)]
        pcd = [self.run(f"pcd{n}", ap, step=0.3, repeat=n) for n, ap in enumerate((0.53, 0.65, 0.56))]
        got = self.arms(none=plain, pcd=pcd)["pcd"]
        # 0.53 - 0.50 and 0.65 - 0.60; the third has no partner of its number and meets the first: 0.56 - 0.50
        assert got["versus"]["none"]["n"] == 3
        assert got["versus"]["none"]["difference"] == pytest.approx((0.03 + 0.05 + 0.06) / 3)
        assert [run["step_ratio"] for run in got["runs"]] == pytest.approx([3.0, 1.5, 3.0])
        assert got["step_ratio"] == pytest.approx(2.5)
        # plain over these pairs: (0.5 + 0.6 + 0.5) / 3 = 8 / 15, distilled 0.58
        assert got["gap_closed"] == pytest.approx((0.58 - 8 / 15) / (0.7 - 8 / 15))

    def test_partners_share_seed_and_arguments(self) -> None:
        plain = [self.run("none0", 0.50), self.run("none1", 0.60, seed=1)]
        pcd = [self.run("pcd1", 0.61, seed=1), self.run("pcd2", 0.99, seed=2), self.run("pcdx", 0.9, pairing="model=m")]
        got = self.arms(none=plain, pcd=pcd)
        assert (got["pcd"]["versus"]["none"]["n"], got["asked"]) == (1, [["pcd1", "none1"]])
        assert got["pcd"]["versus"]["none"]["difference"] == pytest.approx(0.01)
        assert [run["step_ratio"] for run in got["pcd"]["runs"]] == [pytest.approx(1.0), None, None]
        assert not any("pairing" in run or "repeat" in run for arm in ("none", "pcd") for run in got[arm]["runs"])

    def test_mean_and_deviation_leave_out_what_is_missing(self) -> None:
        """0.5, 0.6 and 0.7 have mean 0.6 and standard deviation 0.1; a single value has none."""
        runs = [self.run(f"none{s}", ap, seed=s) for s, ap in enumerate((0.5, 0.6, None, float("nan"), 0.7))]
        runs[0]["step_s"] = runs[1]["step_s"] = runs[4]["step_s"] = None
        got = self.arms(none=runs)["none"]
        assert (got["mean"]["ap"], got["sd"]["ap"]) == pytest.approx((0.6, 0.1))
        assert (got["mean"]["per_class"], got["sd"]["per_class"]) == (
            {"a": pytest.approx(0.6)},
            {"a": pytest.approx(0.1)},
        )
        assert (got["mean"]["step_s"], got["sd"]["step_s"]) == (pytest.approx(0.2), None)  # of the run whose AP is NaN
        assert (got["mean"]["ar"], got["sd"]["ar"]) == (None, None)
        assert [run["step_ratio"] for run in got["runs"]] == [None, None, pytest.approx(1.0), pytest.approx(1.0), None]
        alone = self.arms(none=[self.run("none0", 0.5)])["none"]
        assert (alone["mean"]["ap"], alone["sd"]["ap"]) == (0.5, None)

    def test_a_partner_without_a_hash_is_believed(self) -> None:
        for own, other, pairs in ((None, "s", 1), ("s", None, 1), (None, None, 1), ("s", "s", 1), ("s", "t", 0)):
            got = self.arms(none=[self.run("n", 0.5, stream_hash=other)], pcd=[self.run("p", 0.6, stream_hash=own)])
            assert got["pcd"]["versus"]["none"]["n"] == pairs
            assert [p.startswith("p and n saw different images; this") for p in got["checks"]["problems"]] == (
                [] if pairs else [True]
            )

    def test_controls_are_compared_with_plain_training_alone(self) -> None:
        runs = {name: [self.run(f"{name}{s}", 0.5 + 0.1 * i, seed=s) for s in (0, 1)] for i, name in enumerate("ab")}
        got = self.arms(
            none=runs["a"], ultralytics=runs["b"], pcd=[self.run("pcd0", 0.65), self.run("pcd1", 0.66, seed=1)]
        )
        assert got["none"]["versus"] == {} and set(got["ultralytics"]["versus"]) == {"none"}
        assert set(got["pcd"]["versus"]) == {"none", "ultralytics"}
        assert got["pcd"]["versus"]["none"]["difference"] == pytest.approx(0.155)
        assert got["pcd"]["versus"]["ultralytics"]["difference"] == pytest.approx(0.055)
        assert "closes 78 % of the gap" in got["pcd"]["versus"]["none"]["sentence"]  # 0.155 / 0.2
        assert "gap" not in got["pcd"]["versus"]["ultralytics"]["sentence"]
        assert self.arms(teacher=None, none=runs["a"], pcd=[self.run("pcd0", 0.65)])["pcd"]["gap_closed"] is None
