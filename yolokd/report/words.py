"""The sentences of the reports: what a comparison shows, what limits it, and how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolokd.config import CONTROLS
from yolokd.report import view

HOW_TO_READ = (
    "AP is COCO's average precision over IoU thresholds 0.50 to 0.95, times 100, computed by pycocotools on the "
    "original images; S, M and L are objects below 32 x 32, up to 96 x 96, and above 96 x 96 pixels.",
    "Mean ± sd is over seeds. The difference to a control is taken seed by seed: both runs of a pair have the "
    "same seed, epochs, images and weights given, as far as the checks say so; with kd_init a distilled student may "
    "go on from weights fitted to its teacher. In brackets is the 95 % interval of the mean difference by the paired t "
    "test.",
    "A verdict of better or worse is given where the p value is below 0.05 after Holm's adjustment for the number of "
    "arms compared with that control, so an interval that just leaves out zero may still come with no verdict.",
    "Not distinguishable does not mean equal. It means that so many seeds cannot tell the difference from chance.",
    "With one seed the interval is a bootstrap over the validation images. It covers these two trained models on other "
    "images, not other trainings, so no verdict on the method follows.",
    "Gap closed is the share of the AP difference between plain student and teacher that the arm makes up for.",
    "Time per step is relative to plain training with the same seed. Differences per class and per size are not "
    "tested; with few objects they are mostly noise.",
)
UNTRAINED = 0.01  # AP below which a model has found next to nothing


def headline(results: view.Results) -> str:
    """Say in one or two sentences what the comparison shows."""
    tried = view.distilled(results)
    pairs = {arm["name"]: view.versus(arm, "none") for arm in tried if view.versus(arm, "none").get("n")}
    if view.find(results, "none") is None:
        return "There is no plain run among these, so nothing can be said about what distillation does."
    if not pairs:
        return "No distilled run and plain run form a finished pair yet, so there is nothing to compare."
    seen = max(int(c["n"]) for c in pairs.values())
    ranked = sorted(pairs, key=lambda name: -(view.number(pairs[name].get("difference")) or 0.0))
    best = f"{ranked[0]} ({view.points(pairs[ranked[0]].get('difference'), sign=True)} AP)"
    if seen == 1:
        lead = f"the highest is {best}" if len(ranked) > 1 else f"{best} was measured"
        return f"One seed cannot tell whether distillation helps here: {lead}, but chance alone may do as much."
    by = {word: [n for n in ranked if pairs[n]["n"] > 1 and pairs[n].get("verdict") == word] for word in _WORDS}
    if by["better"]:
        told = [f"{name} ({view.points(pairs[name].get('difference'), sign=True)} AP)" for name in by["better"]]
        text = f"Distillation helps here: {listed(told)} {_is(told)} better than plain training."
        return text + (f" {listed(by['worse'])} {_is(by['worse'])} worse." if by["worse"] else "")
    if by["worse"]:
        rest = by["not distinguishable"]
        text = f"Distillation hurts here: {listed(by['worse'])} {_is(by['worse'])} worse than plain training."
        return text + (f" {listed(rest)} {_is(rest)} not distinguishable from it." if rest else "")
    if len(ranked) == 1:
        return f"{best} is not distinguishable from plain training with {seen} seeds."
    return f"With {seen} seeds no arm is distinguishable from plain training; the highest is {best}."


_WORDS = ("better", "worse", "not distinguishable")


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def listed(names: Sequence[str]) -> str:
    """Return names as `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sentences(results: view.Results) -> list[tuple[view.Arm, list[str]]]:
    """Return what the comparisons say of each arm, in plain words."""
    found = []
    for arm in view.distilled(results):
        said = [str(view.versus(arm, c).get("sentence") or "") for c in CONTROLS if view.versus(arm, c)]
        found.append((arm, [sentence for sentence in said if sentence]))
    return found


def notes(results: view.Results) -> list[str]:
    """Return what has to be known before the numbers are believed: problems, failures, what was not checked."""
    checks = results.get("checks") or {}
    said = [str(text) for key in ("problems", "notes") for text in checks.get(key) or []]
    states = [run.get("status") for arm in view.arms(results) for run in arm["runs"]]
    if open_ := sum(state not in {"done", "failed"} for state in states):
        said.append(f"{open_} of {len(states)} runs are not finished; the numbers are those of the others.")
    for arm in view.arms(results):
        for run in arm["runs"]:
            text = f"{arm['name']}, seed {run.get('seed')}: the run failed: {run.get('error') or 'unknown error'}"
            if run.get("status") == "failed" and not any(str(run.get("error") or "\0") in line for line in said):
                said.append(text)
    plain = view.mean(view.find(results, "none") or {}, "ap")
    if plain is not None and plain < UNTRAINED and view.distilled(results):
        said.append(
            f"Plain training has {view.points(plain)} AP: it has hardly begun to learn. A difference to it tells which "
            f"arm begins earlier, not which one ends higher; train for more epochs to see that."
        )
    if len({len(view.done(arm)) for arm in view.arms(results)}) > 1:
        said.append("The arms do not have the same number of finished runs: compare the differences, not the means.")
    return [text[:1].upper() + text[1:] if text.partition(" ")[0].isalpha() else text for text in said]


def check_rows(results: view.Results) -> list[tuple[str, str]]:
    """Return the checks of fairness and their outcome."""
    checks = results.get("checks") or {}
    asked = (
        ("same_stream", "The arms of a seed saw the same training images"),
        ("same_initial", "The arms of a seed were given the same weights"),
        ("same_epochs", "All finished runs had the same number of epochs"),
    )
    words = {True: "yes", False: "no", None: "not verified"}
    return [(text, words.get(checks.get(key), "not verified")) for key, text in asked]


def facts(results: view.Results) -> list[tuple[str, str]]:
    """Return what was compared on what, as names and texts."""
    data, budget = results.get("data") or {}, results.get("budget") or {}
    teacher, student = results.get("teacher") or {}, results.get("student") or {}
    ap = view.points((teacher.get("metrics") or {}).get("ap"))

    def count(values: Mapping[str, Any], key: str) -> str:
        return view.NONE if values.get(key) is None else str(values[key])

    rows = [
        ("Data", f"{count(data, 'yaml')}, split {count(data, 'split')}"),
        (
            "Images",
            f"{count(data, 'images')} with {count(data, 'objects')} objects, {len(view.names(results))} classes",
        ),
        ("Student", str(student.get("path") or view.NONE)),
        ("Teacher", f"{teacher.get('path') or view.NONE}" + (f", AP {ap}" if ap != view.NONE else "")),
        ("Budget", f"{count(budget, 'epochs')} epochs, {count(budget, 'imgsz')} px, batch {count(budget, 'batch')}"),
        ("Seeds", ", ".join(str(seed) for seed in view.seeds(results)) or view.NONE),
    ]
    return [(name, text) for name, text in rows if text != view.NONE]
