"""A made-up comparison as results.json has it: realistic numbers, without any training."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolokd.evaluation.statistics import adjust, gap_closed, paired, verdict_sentence

GAIN = {"none": 0.0, "ultralytics": 0.008, "dfmsd": 0.013, "pcd": 0.002, "dfmsd+pcd": 0.022}
CLASSES = ["RBC", "WBC", "Platelets", "<script>alert(1)</script>", 'a"b|c*d_e`f']
OBJECTS = [819, 72, 76, 14, 3]
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")


def metrics(ap: float, dice: random.Random, classes: list[str]) -> dict[str, Any]:
    """Numbers of one model around an AP; there are no small objects."""
    near = {"ap50": ap + 0.27, "ap75": ap + 0.06, "ap_medium": ap - 0.08, "ap_large": ap + 0.02, "ar": ap + 0.09}
    per_class = {name: round(ap + 0.1 - 0.05 * i + dice.gauss(0, 0.01), 5) for i, name in enumerate(classes)}
    return {
        "ap": ap,
        **{key: round(value + dice.gauss(0, 0.004), 5) for key, value in near.items()},
        "ap_small": None,
        "per_class": per_class,
        "objects": dict(zip(classes, OBJECTS * (1 + len(classes) // len(OBJECTS)))),
        "images": 73,
        "max_detections": 100,
        "host_ap": round(ap + 0.0007, 5),
    }


def curves(ap: float, method: str, epochs: int, dice: random.Random) -> dict[str, list[float | None]]:
    """Columns of results.csv that rise to an AP, with the terms of the method."""
    course = [1 - 0.82 ** (epoch + 1) for epoch in range(epochs)]
    found: dict[str, list[float | None]] = {
        "epoch": [float(e + 1) for e in range(epochs)],
        "train/box_loss": [round(3 - 2 * c + dice.gauss(0, 0.02), 4) for c in course],
        "metrics/mAP50(B)": [round((ap + 0.27) * c + dice.gauss(0, 0.008), 5) for c in course],
        "metrics/mAP50-95(B)": [round(ap * c + dice.gauss(0, 0.008), 5) for c in course],
    }
    if method == "ultralytics":
        found["train/dis_loss"] = [round(1.4 - 0.6 * c + dice.gauss(0, 0.02), 4) for c in course]
    for name in () if method in {"none", "ultralytics"} else method.split("+"):
        found[f"kd/{name}"] = [round(0.9 - 0.5 * c + dice.gauss(0, 0.01), 4) for c in course]
        found[f"kd/{name}_gain"] = [2.5] * epochs
        found[f"train/{name}_loss"] = found[f"kd/{name}"]
        found[f"val/{name}_loss"] = [None] * epochs
    return found


def mean(values: list[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return sum(there) / len(there) if there else None


def sd(values: list[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    centre = mean(values)
    if len(there) < 2 or centre is None:
        return None
    return (sum((v - centre) ** 2 for v in there) / (len(there) - 1)) ** 0.5


def made_up_results(
    seeds: int = 3, methods: tuple[str, ...] = tuple(GAIN), classes: list[str] | None = None, fail: bool = True
) -> dict[str, Any]:
    """A comparison; with `fail` the last seed of `pcd` has failed."""
    classes = CLASSES if classes is None else classes
    epochs, arms, problems = 20, [], []
    level = [0.612 + random.Random(seed).gauss(0, 0.006) for seed in range(seeds)]
    for number, method in enumerate(methods):
        runs = []
        for seed in range(seeds):
            dice = random.Random(100 * number + seed)
            ap = round(level[seed] + GAIN.get(method, 0.005 * number) + dice.gauss(0, 0.0022), 5)
            failed = fail and method == "pcd" and seed == seeds - 1
            run = {
                "seed": seed,
                "folder": f"seed{seed}/{method}",
                "status": "failed" if failed else "done",
                "error": "RuntimeError: gradients were not finite <b>for 20 steps</b>" if failed else None,
                "traceback": "Traceback\n  <i>line</i>\nRuntimeError" if failed else None,
                "metrics": None if failed else metrics(ap, dice, classes),
                "wall_s": 412.0 + 60 * number,
                "step_s": 0.31 + 0.05 * number,
                "step_ratio": (0.31 + 0.05 * number) / 0.31,
                "peak_bytes": 2_100_000_000 + 240_000_000 * number,
                "stream_hash": f"stream{seed}",
                "initial_hash": f"initial{seed}",
                "epochs_done": 7 if failed else epochs,
                "resumed": [],
                "shared_machine": False,
                "curves": curves(ap, method, epochs, dice),
            }
            if failed:
                problems.append(f"{run['folder']} failed: {run['error']}")
            runs.append(run)
        done = [run["metrics"] for run in runs if run["metrics"]]
        arm = {"name": method, "method": method, "arguments": {"kd_gain": "auto"} if number > 1 else {}, "runs": runs}
        arm["mean"] = {key: mean([m[key] for m in done]) for key in METRICS}
        arm["sd"] = {key: sd([m[key] for m in done]) for key in METRICS}
        arm["step_ratio"] = (0.31 + 0.05 * number) / 0.31
        arms.append(arm)
    compare(arms)
    return {
        "schema": 1,
        "created": "2025-03-01T12:00:00+01:00",
        "command": "yolokd compare model=yolov8n.pt teacher=yolov8s.pt data=blood.yaml methods=dfmsd,pcd seeds=3",
        "environment": {"yolokd": "0.1.0", "torch": "2.9.0", "gpu": "none", "cores": 2, "shared_machine": False},
        "arguments": {"epochs": epochs, "imgsz": 320, "data": "blood.yaml", "device": None},
        "data": {"yaml": "blood.yaml", "split": "val", "images": 73, "objects": 984, "names": classes},
        "budget": {"epochs": epochs, "imgsz": 320, "batch": 16},
        "student": {"path": "yolov8n.pt", "sha256": "5" * 64},
        "teacher": {"path": "yolov8s.pt", "sha256": "7" * 64, "metrics": metrics(0.66, random.Random(9), classes)},
        "weights": "best.pt",
        "arms": arms,
        "checks": {"same_stream": True, "same_initial": True, "same_epochs": True, "problems": problems, "notes": []},
    }


def compare(arms: list[dict[str, Any]]) -> None:
    """Add the comparisons with both controls."""
    for arm in arms:
        arm["versus"], arm["gap_closed"] = {}, None
    for control in ("none", "ultralytics"):
        base = next((arm for arm in arms if arm["name"] == control), None)
        if base is None:
            continue
        values = {a["name"]: [(r["metrics"] or {}).get("ap") for r in a["runs"]] for a in arms}
        family = {name: paired(ap, values[control]) for name, ap in values.items() if name != control}
        for name, comparison in adjust(family).items():
            arm = next(a for a in arms if a["name"] == name)
            if control == "none":
                arm["gap_closed"] = gap_closed(base["mean"]["ap"], arm["mean"]["ap"], 0.66)
            arm["versus"][control] = {**asdict(comparison), "sentence": verdict_sentence(comparison, name, control)}


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write results.json into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, allow_nan=False), encoding="utf-8")
    return folder


def write_predictions(folder: Path, results: dict[str, Any], data: Path) -> None:
    """Write a ground truth and predictions: a plain student misses even objects, a distilled one every fifth."""
    from yolokd.evaluation.evaluate import coco_ground_truth

    truth = coco_ground_truth(data, "val")
    (folder / "ground_truth.json").write_text(json.dumps(truth), encoding="utf-8")
    for arm in results["arms"]:
        for run in arm["runs"]:
            found = []
            for i, annotation in enumerate(truth["annotations"]):
                if i % 2 == 0 if arm["name"] == "none" else i % 5 == 1:
                    continue
                x, y, w, h = annotation["bbox"]
                box = [x + 0.05 * w, y - 0.04 * h, w, 1.05 * h]
                keys = {key: annotation[key] for key in ("image_id", "category_id")}
                found.append({**keys, "bbox": box, "score": 0.8})
            place = folder / run["folder"]
            place.mkdir(parents=True, exist_ok=True)
            with gzip.open(place / "predictions.json.gz", "wt", encoding="utf-8") as file:
                json.dump({"detections": found, "split": "val"}, file)
