"""From run folders to the content of results.json: numbers of each run, statistics of each arm, checks of fairness."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolokd.config import CONTROLS
from yolokd.evaluation.bootstrap import Bootstrap
from yolokd.evaluation.statistics import adjust, gap_closed, paired, verdict_sentence
from yolokd.results.run import compared_run
from yolokd.saving.records import SCHEMA, now, read_detections, read_json, read_record, strict

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
BOOTSTRAP_SAMPLES = 1000
WEIGHTS = "best.pt, which Ultralytics rated best on the val split: of an epoch, or a fitted start that none has reached"
LAST = "best.pt, which is the last epoch where none is rated before (val=False)"

Bootstrapper = Callable[[Mapping[str, Any], Mapping[str, Any]], "Bootstrap | None"]


def from_compare(root: Path) -> dict[str, Any]:
    """Return the results of a comparison, finished or not.

    Args:
        root (Path): Folder of the comparison, with plan.json.

    Returns:
        (dict[str, Any]): The content of results.json, strict JSON values only.
    """
    plan, state = read_json(root / "plan.json"), read_json(root / "state.json") or {}
    statuses = {run["key"]: run for run in state.get("runs", [])}
    truth = read_json(root / "ground_truth.json")
    record = read_record(root / "teacher", plan["id"]) or {}
    teacher = {"path": plan["teachers"][-1] if plan["teachers"] else None, "folder": "teacher"}
    teacher |= {"sha256": record.get("weights_sha256"), "metrics": record.get("metrics")}
    teacher["error"] = statuses.get("teacher", {}).get("error") or record.get("error")
    arms = []
    for arm in plan["arms"]:
        runs = []
        for seed in plan["seeds"]:
            key = f"seed{seed}/{arm['name']}"
            runs.append(compared_run(root, key, seed, plan["id"], statuses.get(key, {})))
        arms.append({"name": arm["name"], "method": arm["method"], "arguments": arm["arguments"], "runs": runs})
    head = {
        "created": now(),
        "environment": {**plan["environment"], "shared_machine": any(r["shared_machine"] for r in _runs(arms))},
        "command": plan["command"],
        "arguments": plan["arguments"],
        "student": {"path": plan["arguments"]["model"], "sha256": plan["fingerprint"]["model"]},
        "data": data_summary(plan["data"], plan["split"], truth),
        "budget": {key: plan["arguments"].get(key) for key in ("epochs", "imgsz", "batch")},
        "weights": LAST if plan["arguments"].get("val") is False else WEIGHTS,
    }
    return assemble(head, teacher, arms, _bootstrapper(truth, root), plan.get("notes", []))


def from_runs(folders: Sequence[str | Path], split: str | None = None, device: str | None = None) -> dict[str, Any]:
    """Return the results of finished run folders, made by yolokd or by `yolo train`.

    Runs without kept detections of their best.pt on the split are evaluated, and these are written beside. Runs are
    paired by equal seed and equal train arguments.

    Args:
        folders (Sequence[str | Path]): Run folders, or folders of comparisons.
        split (str, optional): Split of the data to evaluate on; that of a comparison by itself, else `val`.
        device (str, optional): Device as Ultralytics names it.

    Returns:
        (dict[str, Any]): The content of results.json.

    Raises:
        UserError: If a folder holds no finished run, or the runs are on different data.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) == 1 and (paths[0] / "plan.json").is_file():
        own = (read_json(paths[0] / "plan.json") or {}).get("split")
        if split is None or split == own:
            return from_compare(paths[0].resolve())
    from yolokd.results.folders import collect

    head, teacher, arms, truth, notes = collect(paths, split or "val", device)
    return assemble(head, teacher, arms, _bootstrapper(truth, Path()), notes)


def assemble(
    head: Mapping[str, Any],
    teacher: Mapping[str, Any],
    arms: list[dict[str, Any]],
    bootstrapper: Bootstrapper,
    notes: Iterable[str] = (),
) -> dict[str, Any]:
    """Add to the runs of each arm what follows from them.

    Args:
        head (Mapping[str, Any]): What is said of the whole.
        teacher (Mapping[str, Any]): The teacher with its metrics.
        arms (list[dict[str, Any]]): Arms with `name`, `method` and `runs`; a run may have a `pairing` that its partner
            must share.
        bootstrapper (Callable): Returns the bootstrap over images of two runs, for arms with one pair.
        notes (Iterable[str]): What else is to be said.

    Returns:
        (dict[str, Any]): The content of results.json.
    """
    problems = [f"{run['folder']} failed: {run['error']}" for run in _runs(arms) if run["status"] == "failed"]
    partners = {control: [r for a in arms if a["method"] == control for r in a["runs"]] for control in CONTROLS}
    pairs: dict[str, dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]] = {}
    for arm in arms:
        for run in arm["runs"]:
            partner = _partner(run, partners["none"])
            own, other = run["step_s"], partner["step_s"] if partner else None
            run["step_ratio"] = own / other if own and other else None
        arm |= _summary(arm["runs"])
        pairs[arm["name"]] = {
            control: _pairs(arm["runs"], runs, problems)
            for control, runs in partners.items()
            if arm["method"] != control and runs and (control == "none" or arm["method"] not in CONTROLS)
        }
        over = pairs[arm["name"]].get("none", [])
        distilled, plain = (_mean([pair[side]["metrics"]["ap"] for pair in over]) for side in (0, 1))
        arm["gap_closed"] = gap_closed(plain, distilled, (teacher.get("metrics") or {}).get("ap"))
    _judge(arms, pairs, bootstrapper)
    checks = _checks(arms, list(dict.fromkeys(problems)), [*notes, *_notes(arms, teacher)])  # by what pairs runs
    for arm in arms:
        for run in arm["runs"]:
            run.pop("pairing", None)
            run.pop("repeat", None)
    return strict(
        {
            "schema": SCHEMA,
            **head,
            "teacher": teacher,
            "arms": arms,
            "checks": checks,
        }
    )


def _judge(arms: list[dict[str, Any]], pairs: Mapping[str, Any], bootstrapper: Bootstrapper) -> None:
    """Add to each arm its comparison with each control, adjusted for all arms that meet this control."""
    for arm in arms:
        arm["versus"] = {}
    for control, label in CONTROLS.items():
        family = {}
        for arm in arms:
            if (met := pairs[arm["name"]].get(control)) is None:
                continue
            ours, theirs = ([pair[side]["metrics"]["ap"] for pair in met] for side in (0, 1))
            family[arm["name"]] = paired(ours, theirs, bootstrap=bootstrapper(*met[0]) if len(met) == 1 else None)
        judged = adjust(family)
        for arm in arms:
            if arm["name"] in judged:
                comparison = judged[arm["name"]]
                name = CONTROLS[arm["method"]] if arm["name"] in CONTROLS else arm["name"]
                gap = arm["gap_closed"] if control == "none" else None
                sentence = verdict_sentence(comparison, name, label, gap=gap)
                arm["versus"][control] = {**asdict(comparison), "sentence": sentence}


def _partner(run: Mapping[str, Any], runs: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the run with the same seed and arguments; where both were repeated, the repetition of the same number."""
    same = [r for r in runs if r["seed"] == run["seed"] and r.get("pairing") == run.get("pairing")]
    return next((r for r in same if r.get("repeat") == run.get("repeat")), same[0] if same else None)


def _pairs(
    runs: list[dict[str, Any]], controls: list[dict[str, Any]], problems: list[str]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the finished pairs that saw the same images from the same start; tell of those that did not."""
    found = []
    for run in runs:
        partner = _partner(run, controls)
        if partner is None or not run["metrics"] or not partner["metrics"]:
            continue
        both = f"{run['folder']} and {partner['folder']}"
        differing = [key for key in ("stream_hash", "initial_hash") if _differ(run[key], partner[key])]
        words = {"stream_hash": "saw different images", "initial_hash": "were given different weights"}
        if differing:
            reasons = " and ".join(words[key] for key in differing)
            problems.append(f"{both} {reasons}; this pair is left out")
        else:
            found.append((run, partner))
    return found


def _differ(a: str | None, b: str | None) -> bool:
    return a is not None and b is not None and a != b


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over the finished runs of an arm, of each number and of each class's AP."""
    done = [run for run in runs if run["metrics"]]
    values = {key: [run["metrics"].get(key) for run in done] for key in METRICS}
    values |= {key: [run[key] for run in done] for key in ("wall_s", "step_s", "peak_bytes")}
    classes = list(done[0]["metrics"]["per_class"]) if done else []
    by_class = {name: [run["metrics"]["per_class"].get(name) for run in done] for name in classes}
    return {
        "mean": {**{k: _mean(v) for k, v in values.items()}, "per_class": {k: _mean(v) for k, v in by_class.items()}},
        "sd": {**{k: _sd(v) for k, v in values.items()}, "per_class": {k: _sd(v) for k, v in by_class.items()}},
        "step_ratio": _mean([run["step_ratio"] for run in done]),
    }


def _numbers(values: Iterable[float | None]) -> list[float]:
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = _numbers(values)
    return statistics.fmean(numbers) if numbers else None


def _sd(values: Iterable[float | None]) -> float | None:
    numbers = _numbers(values)
    return statistics.stdev(numbers) if len(numbers) > 1 else None


def _checks(arms: list[dict[str, Any]], problems: list[str], notes: list[str]) -> dict[str, Any]:
    """Return whether all finished runs of each seed had the same images, start and epochs; None where unknown."""

    def same(key: str) -> bool | None:
        groups: dict[Any, set[Any]] = {}
        unknown = False
        for run in _runs(arms):
            if run["metrics"]:
                groups.setdefault((run["seed"], run.get("pairing")), set()).add(run[key])
                unknown |= run[key] is None
        if any(len(values - {None}) > 1 for values in groups.values()):
            return False
        return None if unknown or not groups else True

    result = {"same_stream": same("stream_hash"), "same_initial": same("initial_hash")}
    result["same_epochs"] = same("epochs_done")
    if result["same_stream"] is None and any(run["metrics"] for run in _runs(arms)):
        notes.append("images not verified: not all runs recorded a hash of the images they saw")
    if result["same_epochs"] is False:
        problems.append("runs of one seed and of the same arguments ended after different numbers of epochs")
    return {**result, "problems": problems, "notes": list(dict.fromkeys(notes))}


def _notes(arms: list[dict[str, Any]], teacher: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know beside the numbers."""
    notes = []
    for run in _runs(arms):
        if run["resumed"]:
            epochs = " and ".join(str(epoch) for epoch in run["resumed"])
            notes.append(f"{run['folder']} was interrupted and resumed after epoch {epochs}")
    if any(run["shared_machine"] for run in _runs(arms)):
        notes.append("times were taken on a shared machine: runs were trained side by side")
    best, plain = (teacher.get("metrics") or {}).get("ap"), [a for a in arms if a["method"] == "none"]
    if best is not None and plain and plain[0]["mean"]["ap"] is not None and best <= plain[0]["mean"]["ap"]:
        notes.append("the teacher is not better than the plainly trained student, so there is no gap to close")
    if teacher.get("error"):
        notes.append(f"the teacher could not be evaluated: {teacher['error']}")
    return notes


def _runs(arms: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [run for arm in arms for run in arm["runs"]]


def data_summary(yaml: str, split: str, truth: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what is said of the data."""
    truth = truth or {"images": [], "annotations": [], "categories": []}
    names = [category["name"] for category in truth["categories"]]
    counts = {"images": len(truth["images"]), "objects": len(truth["annotations"])}
    return {"yaml": yaml, "split": split, **counts, "names": names}


def _bootstrapper(truth: Mapping[str, Any] | None, root: Path) -> Bootstrapper:
    """Return a function that bootstraps two runs over images from the detections kept in their folders below a root."""
    from yolokd.evaluation.evaluate import Evaluation, bootstrap, score

    known: dict[str, Evaluation | None] = {}
    split = ((truth or {}).get("info") or {}).get("split")

    def load(folder: str) -> Evaluation | None:
        if folder not in known:
            _, kept = read_detections(root / folder, split)
            known[folder] = score(truth, kept["detections"]) if kept and truth else None
        return known[folder]

    def run(a: Mapping[str, Any], b: Mapping[str, Any]) -> Bootstrap | None:
        first, second = load(a["folder"]), load(b["folder"])
        return bootstrap(first, second, samples=BOOTSTRAP_SAMPLES) if first and second else None

    return run
