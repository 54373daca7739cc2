"""Paired trainings of a setting of docs/results.md: every arm over seeds, AP of the last epoch by pycocotools.

    python benchmarks/grid.py bccd-all-labels files=FOLDER arms="none;ultralytics;default kd_share=2" seeds=0-4

FOLDER holds what the setting names (SETTINGS), e.g. `bccd/data.yaml` and `yolov8n_dq.pt`. Each run is a process of its
own in `runs=` and is skipped once it is done, so several of these commands can share the work. What is there then is
written to benchmarks/results/SETTING.json, from which benchmarks/tables.py makes the tables.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from yolokd.command.demo import RECIPE
from yolokd.environment import environment
from yolokd.evaluation.evaluate import coco_ground_truth, evaluate

RESULTS = Path(__file__).parent / "results"
BCCD = {"data": "bccd/data.yaml", "model": "yolov8n_dq.pt", "teacher": "yolov8s_bccd.pt", "imgsz": 320, "batch": 16}
SHAPES = {
    **RECIPE,
    "data": "shapes/data.yaml",
    "model": "student.yaml",
    "teacher": "teacher.pt",
    "imgsz": 96,
    "batch": 16,
    "nbs": 16,
    "epochs": 20,
}
COCO = {"data": "coco256/data.yaml", "model": "yolov8n_dq.pt", "imgsz": 160, "batch": 16, "epochs": 5}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bccd-all-labels": ("BCCD, all 205 training images, 10 epochs", {**BCCD, "epochs": 10}),
    "bccd-three-times": ("BCCD, all 205 training images, 30 epochs", {**BCCD, "epochs": 30}),
    "bccd-30-percent": (
        "BCCD, 30 % of the training images (62), 30 epochs",
        {**BCCD, "epochs": 30, "fraction": 0.3},
    ),
    "bccd-20-labels": (
        "BCCD, 20 labelled images, the other 185 without labels, 15 epochs",
        {**BCCD, "epochs": 15, "fraction": 0.1, "kd_unlabeled": "rest"},
    ),
    "bccd-other-family": (
        "BCCD, 30 % of the training images (62), 30 epochs, a YOLO11n student of the YOLOv8s teacher",
        {**BCCD, "model": "yolo11n_dq.pt", "epochs": 30, "fraction": 0.3},
    ),
    "bccd-yolo26": (
        "BCCD, 30 % of the training images (62), 30 epochs, a YOLO26n student of the YOLOv8s teacher",
        {**BCCD, "model": "yolo26n_dq.pt", "epochs": 30, "fraction": 0.3},
    ),
    "bccd-other-family-held-out": (
        "BCCD, 55 of the training images held out, 10 epochs, a YOLO11n student of the YOLOv8s teacher",
        {**BCCD, "data": "bccd/fold.yaml", "model": "yolo11n_dq.pt", "epochs": 10},
    ),
    "bccd-half-width": (
        "BCCD, all 205 training images, 30 epochs, a student of half a YOLOv8n's width from random weights, and a "
        "YOLOv8n with COCO weights trained on them for 10 epochs as its teacher",
        {**BCCD, "model": "student.yaml", "teacher": "yolov8n_bccd.pt", "epochs": 30},
    ),
    "bccd-yolo26-half-width": (
        "BCCD, all 205 training images, 30 epochs, a student of half a YOLO26n's width from random weights, and a "
        "YOLO26n with COCO weights trained on them for 10 epochs as its teacher",
        {**BCCD, "model": "student26.yaml", "teacher": "yolo26n_bccd.pt", "epochs": 30},
    ),
    "shapes-from-scratch": (
        "drawn shapes of data seed 11, a student of half a YOLOv8n's width from random weights",
        SHAPES,
    ),
    "shapes-pretrained": (
        "drawn shapes of data seed 11, a student of half a YOLOv8n's width trained on other shapes before",
        {**SHAPES, "model": "pretrained.pt", "pretrained": True},
    ),
    "shapes-quarter-width": (
        "drawn shapes of data seed 11, a student of a quarter of a YOLOv8n's width from random weights",
        {**SHAPES, "model": "quarter.yaml"},
    ),
    "shapes-quarter-width-pretrained": (
        "drawn shapes of data seed 11, a student of a quarter of a YOLOv8n's width trained on other shapes before",
        {**SHAPES, "model": "quarter.pt", "pretrained": True},
    ),
    "shapes-ablations": (
        "drawn shapes of data seed 11, a student of half a YOLOv8n's width trained on other shapes before, and the "
        "teacher of shapes-from-scratch",
        {**SHAPES, "model": "pretrained.pt", "pretrained": True},
    ),
    "coco-80-classes": ("80 classes, a YOLO11n teacher of a YOLOv8n student", {**COCO, "teacher": "yolo11n_dq.pt"}),
    "coco-80-classes-26": ("80 classes, a YOLO26n teacher of a YOLOv8n student", {**COCO, "teacher": "yolo26n_dq.pt"}),
}
FILES = ("data", "model", "teacher")


def words(setting: str, arm: str) -> dict[str, str]:
    """Return the arguments of an arm: its method (none where `default`), and what follows it, e.g. `pcd kd_share=1`."""
    method, *more = arm.split()
    given = {key: str(value) for key, value in SETTINGS[setting][1].items()}
    if method != "default":
        given["method"] = method
    return {**given, "val": "False", **dict(word.split("=", 1) for word in more)}


def command(setting: str) -> str:
    """Return the command line that repeats a run of a setting."""
    given = " ".join(f"{key}={value}" for key, value in words(setting, "METHOD").items() if key != "method")
    return f"yolokd train {given} method=METHOD seed=SEED"


def run(setting: str, arm: str, seed: int, files: Path, folder: Path) -> None:
    """Train and evaluate a run, unless another process has begun it, and write result.json last."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    given = words(setting, arm) | {"seed": str(seed), "plots": "False"}
    given |= {"project": str(folder.parent), "name": folder.name, "exist_ok": "True"}
    for key in FILES:
        if (files / given[key]).exists():
            given[key] = str((files / given[key]).resolve())
    begun = time.time()
    line = [sys.executable, "-m", "yolokd", "train", *(f"{key}={value}" for key, value in given.items())]
    with open(folder.with_name(f"{folder.name}.log"), "w", encoding="utf-8") as log:
        code = subprocess.run(line, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "YOLO_OFFLINE": "true"})
    seconds = time.time() - begun
    if code.returncode:
        print(f"{setting} {arm} {seed}: exit code {code.returncode}, see {folder}.log", flush=True)
        return
    truth = coco_ground_truth(given["data"])
    found = evaluate(folder / "weights" / "last.pt", given["data"], imgsz=int(given["imgsz"]), ground_truth=truth)
    record = {"arm": arm, "seed": seed, "ap": 100 * (found.ap or 0), "seconds": seconds}
    (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")
    for name in ("last.pt", "best.pt", "kd_state.pt"):
        (folder / "weights" / name).unlink(missing_ok=True)
    print(f"{setting} {arm} {seed}: {record['ap']:.2f} AP, {seconds:.0f} s", flush=True)


def collect(setting: str, files: Path, runs: Path) -> None:
    """Write what is there, beside what the file of results holds already of other runs."""
    path = RESULTS / f"{setting}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"seeds": [], "ap": {}}
    known = {arm: dict(zip(old["seeds"], values)) for arm, values in old["ap"].items()}
    for result in sorted(runs.glob(f"{setting}/*/result.json")):
        record = json.loads(result.read_text(encoding="utf-8"))
        known.setdefault(record["arm"], {})[record["seed"]] = round(record["ap"], 2)
    machines = old.get("environments", [old[key] for key in ("environment",) if key in old])
    machines += [environment()] * (environment() not in machines)
    order = ["none", "ultralytics", "default"]
    known = dict(sorted(known.items(), key=lambda each: (*[each[0] != name for name in order], each[0])))
    seeds = sorted({seed for values in known.values() for seed in values})
    teacher = old.get("teacher_ap")
    if teacher is None:
        given = {key: str(files / str(SETTINGS[setting][1][key])) for key in ("data", "teacher")}
        found = evaluate(given["teacher"], given["data"], imgsz=SETTINGS[setting][1]["imgsz"])
        teacher = round(100 * (found.ap or 0), 2)
    written = {
        "what": f"AP (mAP50-95, pycocotools) on val, last epoch: {SETTINGS[setting][0]}",
        "command": command(setting),
        "seeds": seeds,
        "ap": {arm: [values.get(seed) for seed in seeds] for arm, values in known.items()},
        "teacher_ap": teacher,
        "environments": machines,
    }
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def main(given: list[str]) -> None:
    """Run what is missing, seed by seed through the arms, and write the results."""
    setting, *more = given
    options = {"arms": "none;ultralytics;default", "seeds": "0-4", "files": ".", "runs": "runs/grid"}
    options |= dict(word.split("=", 1) for word in more)
    first, _, last = options["seeds"].partition("-")
    files, runs = Path(options["files"]), Path(options["runs"]).resolve()
    for seed in range(int(first), int(last or first) + 1):
        for arm in options["arms"].split(";"):
            run(setting, arm.strip(), seed, files, runs / setting / f"{arm.strip().replace(' ', ',')},seed={seed}")
    collect(setting, files, runs)


if __name__ == "__main__":
    main(sys.argv[1:])
