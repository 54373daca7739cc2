"""What a training step costs: plain training, the built-in distillation and each method, by turns in one process.

    python benchmarks/step_time.py model=yolov8n.pt teacher=yolov8s.pt data=mine/data.yaml imgsz=320 batch=8

Writes the ratios with the environment as json. `dtype=float32` runs the teachers without bfloat16; `starts=3` times the
start as well, from the beginning of the process to the end of the first step, in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionTrainer

from yolokd import config
from yolokd.costs.profiling import peak
from yolokd.costs.rehearsal import Rehearsal
from yolokd.costs.timing import in_turn, ratio
from yolokd.environment import environment

METHODS = "pcd,bckd,ld,softkd,dfmsd,samkd,gdetkd,dfmsd+pcd,mgd,cwd,pkd,crosskd"
HOST, BUILT_IN = "yolo train", "built-in"
CHILD = """
import sys, time, json, io, contextlib
overrides = json.loads(sys.argv[1])
from yolokd import DistillationTrainer
def stop(trainer):
    print(json.dumps(time.time()), file=sys.stderr, flush=True)
    import os; os._exit(0)
with contextlib.redirect_stdout(io.StringIO()):
    trainer = DistillationTrainer(overrides=overrides)
    trainer.add_callback("on_train_batch_end", stop)
    trainer.train()
"""


def main(words: list[str]) -> None:
    """Measure and write the results."""
    given = dict(word.split("=", 1) for word in words)
    out = Path(given.pop("out", "step_time.json"))
    rounds, starts = int(given.pop("rounds", 9)), int(given.pop("starts", 0))
    names = given.pop("methods", METHODS).split(",")
    dtype = given.pop("dtype", "auto")
    memory = given.pop("memory", "1") == "1"
    shared: dict[str, Any] = {"workers": 0, "epochs": 10, "seed": 0, "optimizer": "AdamW", "lr0": 1e-4, **given}
    shared |= {key: int(shared[key]) for key in ("imgsz", "batch") if key in shared}
    teacher = shared.pop("teacher")
    ours = {"teacher": teacher, "kd_teacher_dtype": dtype, "kd_init": "none"}  # the fit comes before the steps
    arms = {
        "none": {**shared, "method": "none"},
        BUILT_IN: {**shared, "method": "ultralytics", "teacher": teacher},
        **{name: {**shared, **ours, "method": name} for name in names},
    }
    with tempfile.TemporaryDirectory() as folder, config.quiet():
        rehearsals = {HOST: Rehearsal(shared, folder, DetectionTrainer)}
        for name, settings in arms.items():
            rehearsals[name] = Rehearsal(settings, folder)
            rehearsals[name].measure_gains()
        device = rehearsals[HOST].device
        taken = in_turn({name: each.step for name, each in rehearsals.items()}, device, rounds)
        started = start_times({name: arms[name] for name in (BUILT_IN, names[0])}, folder, starts)
        peaks = {name: peak(settings, folder) for name, settings in arms.items()} if memory else {}
    result = {
        "what": "median seconds of a training step by turns; ratios are medians over rounds",
        "arguments": {**given, "model": Path(given["model"]).name, "teacher": Path(teacher).name},
        "threads": torch.get_num_threads(),
        "teacher_dtype": dtype,
        "rounds": rounds,
        "steps": {
            name: {
                "seconds": round(median(values), 4),
                "x_plain": round(ratio(taken, name, HOST), 3),
                "x_built_in": round(ratio(taken, name, BUILT_IN), 3),
                "peak_bytes": peaks.get(name),
            }
            for name, values in taken.items()
        },
        "start_seconds": {name: [round(value, 2) for value in values] for name, values in started.items()},
        "environment": environment(),
    }
    result["arguments"]["data"] = Path(given["data"]).parent.name
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, step in result["steps"].items():
        memory_text = f"{step['peak_bytes'] / 2**30:.2f} GB" if step["peak_bytes"] else ""
        print(
            f"{name:14} {step['seconds']:8.3f} s  {step['x_plain']:6.3f} x plain  {step['x_built_in']:6.3f} x built-in"
            f"  {memory_text}"
        )
    for name, values in result["start_seconds"].items():
        print(f"start to first step: {name:10} {values} s")


def start_times(arms: dict[str, dict[str, Any]], folder: str, count: int) -> dict[str, list[float]]:
    """Return the seconds from the start of a process to the end of its first step, by turns."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(count):
        for name, settings in arms.items():
            extra = {"project": folder, "name": f"start-{number}-{name}", "plots": False, "kd_preflight": False}
            begun = time.time()
            found = subprocess.run(
                [sys.executable, "-c", CHILD, json.dumps({**settings, **extra})], capture_output=True, text=True
            )
            taken[name].append(float(found.stderr.split()[-1]) - begun)
    return taken


if __name__ == "__main__":
    main(sys.argv[1:])
