"""Results of finished run folders that no comparison made."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from yolokd.config import CONTROLS, KEYS
from yolokd.errors import HOST_MISTAKES, UserError
from yolokd.results import WEIGHTS, data_summary
from yolokd.results.run import RECORDED, curves, empty_run
from yolokd.saving.records import file_hash, now, read_detections, read_json, write_json
from yolokd.trust import KEY as TRUST

# What two runs of a pair may differ in: where and how they ran, and what the comparison is about.
FREE = {
    "cache", "cfg", "device", "distill_model", "exist_ok", "method", "mode", "name", "plots", "project", "resume",
    "save", "save_dir", "save_period", "seed", "split", "teacher", "val", "verbose", "workers",
}  # fmt: skip
Collected = tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]], dict[str, Any], list[str]]


def collect(folders: Iterable[Path], split: str, device: str | None) -> Collected:
    """Return head, teacher, arms, ground truth and notes of run folders, evaluating what was not evaluated.

    Args:
        folders (Iterable[Path]): Run folders; folders of comparisons stand for their runs.
        split (str): Split of the data.
        device (str, optional): Device as Ultralytics names it.

    Raises:
        UserError: If a folder holds no finished run, or the runs are on different data.
    """
    from yolokd.environment import environment
    from yolokd.evaluation.evaluate import check_labels, coco_ground_truth
    from yolokd.text import reason

    paths = [path for folder in folders for path in _expand(folder.resolve())]
    paths = list(dict.fromkeys(paths))
    args = {path: _arguments(path) for path in paths}
    for path, own in args.items():
        _check_finished(path, own)
    data = {_located(str(a["data"])) for a in args.values()}
    views = {json.dumps([a.get("single_cls"), a.get("classes")]) for a in args.values()}
    if len(data) > 1 or len(views) > 1:
        shown = ", ".join(sorted(data)) if len(data) > 1 else "one with other single_cls= or classes="
        raise UserError(f"the runs are on different data ({shown}) and cannot be compared; report them apart")
    (description,), first = data, args[paths[0]]
    try:
        truth = coco_ground_truth(description, split, bool(first.get("single_cls")), first.get("classes"))
    except UserError:
        raise
    except (*HOST_MISTAKES, OSError, RuntimeError) as error:
        raise UserError(
            f"the data of these runs, data={description}, cannot be read any more: {reason(error)}; a report needs its "
            f"labels, so put it back where it was"
        ) from error
    check_labels(len(truth["annotations"]), description, split)
    arms: dict[str, dict[str, Any]] = {}
    seen: dict[str, int] = {}
    for path, own in args.items():
        method = str(own.get("method") or ("ultralytics" if own.get("distill_model") else "none"))
        run = _run(path, own, truth, split, device)
        again = json.dumps([method, _ours(own), run["pairing"], run["seed"]], sort_keys=True, default=str)
        run["repeat"] = seen[again] = seen.get(again, -1) + 1
        name = method
        for number in range(2, len(paths) + 2):  # what differs in its own keys or repeats a seed is another arm
            arm = arms.setdefault(name, {"name": name, "method": method, "arguments": _ours(own), "runs": []})
            seeds = {r["seed"] for r in arm["runs"] if r["pairing"] == run["pairing"]}
            same = not arm["runs"] or arm["runs"][0]["pairing"] == run["pairing"]
            if same and arm["arguments"] == _ours(own) and run["seed"] not in seeds:
                break
            name = f"{method} #{number}"
        arms[name]["runs"].append(run)
    ordered = sorted(
        arms.values(),
        key=lambda arm: [*CONTROLS, arm["method"]].index(arm["method"]),
    )
    for arm in ordered:
        arm["runs"].sort(key=lambda run: run["seed"])
    teacher, notes = _teacher(args.values(), truth, split, device)
    notes += _unpaired(ordered) + _like_named(ordered)
    budget = {key: list(dict.fromkeys(own.get(key) for own in args.values())) for key in ("epochs", "imgsz", "batch")}
    several = {**budget, "model": list(dict.fromkeys(_located(own.get("model")) for own in args.values()))}
    notes += [
        f"the runs have {key}= {' and '.join(map(str, found))}; only those of equal ones are pairs"
        for key, found in several.items()
        if len(found) > 1
    ]
    head = {
        "created": now(),
        "environment": {**environment(), "shared_machine": False},
        "command": " ".join(["yolokd report", *map(str, paths), *([] if split == "val" else [f"split={split}"])]),
        "arguments": {key: value for key, value in first.items() if key not in FREE},
        "student": {"path": str(first["model"]), "sha256": None},
        "data": data_summary(description, split, truth),
        "budget": {key: found[0] if len(found) == 1 else None for key, found in budget.items()},
        "weights": WEIGHTS,
    }
    return head, teacher, ordered, truth, notes


def _expand(folder: Path) -> list[Path]:
    """Return a run folder itself, or the finished runs of a comparison."""
    if not (folder / "plan.json").is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("seed*/*/run.json"))


def _arguments(folder: Path) -> dict[str, Any]:
    """Return the train arguments of a finished run.

    Raises:
        UserError: If the folder holds none.
    """
    for name in ("args.yaml", "weights/best.pt"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no finished run: {name} is missing; give a folder such as runs/detect/train")
    try:
        args = yaml.safe_load((folder / "args.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{folder}/args.yaml cannot be read: {' '.join(str(error).split())[:160]}") from error
    if isinstance(args, dict) and (task := args.get("task", "detect")) != "detect":
        raise UserError(f"{folder} is a run of task={task}; yolokd report evaluates detection runs")
    if not isinstance(args, dict) or not args.get("data"):
        raise UserError(f"{folder}/args.yaml is not that of a training run")
    return args


def _check_finished(folder: Path, args: dict[str, Any]) -> None:
    """Refuse a run that was cut off, whose last checkpoint can go on."""
    from ultralytics.nn.tasks import load_checkpoint

    done, last = len(curves(folder / "results.csv").get("epoch", [])), folder / "weights" / "last.pt"
    if not done:
        raise UserError(f"{folder} is no finished run: its results.csv holds no epoch; leave it out")
    if done < int(args.get("epochs") or 0) and last.is_file() and load_checkpoint(last)[1].get("optimizer"):
        command = "yolokd" if "method" in args else "yolo"
        raise UserError(
            f"{folder} is unfinished: {done} of {args['epochs']} epochs; go on with {command} train resume "
            f"{shlex.quote(f'model={last}')}, or leave it out"
        )


def _located(value: Any) -> Any:
    """Return the whole path of a file that is there, and anything else as it is."""
    return str(Path(value).resolve()) if isinstance(value, str) and value and Path(value).exists() else value


def _unpaired(arms: Iterable[dict[str, Any]]) -> list[str]:
    """Say for arms that have no run in common with plain training what their runs differ in."""
    plain, *others = sorted(arms, key=lambda arm: arm["method"] != "none")
    if plain["method"] != "none":
        return []
    notes = []
    for arm in others:
        if {run["pairing"] for run in arm["runs"]} & {run["pairing"] for run in plain["runs"]}:
            continue
        said = _difference(*(json.loads(each["runs"][0]["pairing"]) for each in (plain, arm)))
        notes.append(f"none and {arm['name']} are no pairs: they differ in {said}")
    return notes


def _like_named(arms: Iterable[dict[str, Any]]) -> list[str]:
    """Say of each further arm of a method what tells it from the first one, or which one it repeats."""
    notes: list[str] = []
    earlier: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for arm in arms:
        others, run = earlier.setdefault(arm["method"], []), arm["runs"][0]
        own = {**arm["arguments"], **json.loads(run["pairing"])}
        again = next((name for name, found in others if found == own), None)
        if again is not None:
            notes.append(f"{arm['name']} repeats seeds of {again}")
        elif others:
            notes.append(f"{others[0][0]} and {arm['name']} differ in {_difference(others[0][1], own)}")
        others.append((arm["name"], own))
    return notes


def _difference(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Return the keys in which two runs' arguments differ, with both values."""
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    said = ", ".join(f"{key} ({a.get(key)}, {b.get(key)})" for key in keys[:4])
    return said + ", ..." * (len(keys) > 4)


def _ours(args: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that tell arms apart: ours and the teacher; for plain training there are none."""
    method, built_in = args.get("method"), args.get("distill_model")
    if method in {None, *CONTROLS}:
        return {"teacher": _located(built_in)} if built_in else {}
    return {key: args[key] for key in KEYS if key in args and key not in {"method", TRUST}}


def _run(folder: Path, args: dict[str, Any], truth: dict[str, Any], split: str, device: str | None) -> dict[str, Any]:
    """Return one run with its numbers."""
    run = empty_run(int(args.get("seed") or 0), folder)
    record = read_json(folder / "run.json") or {}
    run |= {key: record[key] for key in RECORDED if key in record and key != "metrics"}
    times = run["curves"].get("time", [])
    run["wall_s"] = run["wall_s"] if run["wall_s"] is not None else (times[-1] if times else None)
    run["epochs_done"] = run["epochs_done"] or len(run["curves"].get("epoch", []))
    run["shared_machine"] = bool(record.get("shared_machine"))
    shared = {key: _located(value) for key, value in args.items() if key not in FREE and key not in KEYS}
    run["pairing"] = json.dumps(shared, sort_keys=True, default=str)
    run["status"] = "done"
    return run | evaluated(folder, folder / "weights" / "best.pt", truth, split, int(args["imgsz"]), device)


def evaluated(
    folder: Path, weights: Path, truth: dict[str, Any], split: str, imgsz: int, device: str | None
) -> dict[str, Any]:
    """Return the metrics of weights from the detections kept in a folder, which are made where they are not there.

    Args:
        folder (Path): Where they lie or are written.
        weights (Path): The weights.
        truth (dict[str, Any]): Ground truth.
        split (str): Split of the data.
        imgsz (int): Image size.
        device (str, optional): Device as Ultralytics names it.
    """
    from yolokd.evaluation.evaluate import evaluate, score

    digest, data = file_hash(weights), truth["info"]["data"]
    about = {"weights": str(weights), "weights_sha256": digest, "data": data, "split": split, "imgsz": imgsz}
    about["images_sha256"] = images_hash(truth)
    path, kept = read_detections(folder, split)
    if all(kept.get(key) == about[key] for key in ("weights_sha256", "split", "imgsz", "images_sha256")):
        found = score(truth, kept["detections"], host_ap=kept.get("host_ap"))
    else:
        found = evaluate(weights, data, split, imgsz=imgsz, ground_truth=truth, device=device)
        write_json(path, {**about, "host_ap": found.host_ap, "detections": found.detections})
    return {"metrics": found.to_dict(), "weights": str(weights), "weights_sha256": digest}


def images_hash(truth: dict[str, Any]) -> str:
    """Return a hash of the images that detections belong to by their number: their order, names and sizes."""
    rows = [[image["id"], Path(image["file_name"]).name, image["height"], image["width"]] for image in truth["images"]]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _teacher(
    args: Iterable[dict[str, Any]], truth: dict[str, Any], split: str, device: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Return the teacher that the distilled runs name, evaluated where it is still there."""
    from yolokd.evaluation.asteacher import as_teacher
    from yolokd.evaluation.evaluate import NoCommonClass, evaluate

    named, ways = [], []
    for own in args:
        if own.get("method") in {"none"}:
            continue
        teacher = own.get("teacher") or own.get("distill_model")
        if teacher:
            named.append(str(teacher[-1] if isinstance(teacher, list) else teacher))
            ways.append(as_teacher(own, int(own["imgsz"])))
    teacher = {"path": None, "folder": None, "sha256": None, "metrics": None, "error": None}
    if not named:
        return teacher, ["the runs name no teacher"]
    if len(set(named)) > 1:
        return teacher, [f"the runs have different teachers: {', '.join(sorted(set(named)))}"]
    path = Path(named[0])
    teacher["path"] = str(path)
    if not path.is_file():
        return teacher, [f"the teacher {path} is not there any more and was not evaluated"]
    try:
        found = evaluate(path, truth["info"]["data"], split, ground_truth=truth, device=device, **ways[0])
    except NoCommonClass as error:  # it can teach features all the same
        return {**teacher, "sha256": file_hash(path), "error": str(error)}, []
    several = any(way != ways[0] for way in ways)
    notes = [f"the runs show their teacher images of other sizes, channels or classes; judged as by {ways[0]}"]
    return {**teacher, "sha256": file_hash(path), "metrics": found.to_dict()}, notes if several else []
