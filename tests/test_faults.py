"""Runs hit by kills, signals, errors, a full disk or a lack of memory, resumed, and held against an unbroken run."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from ultralytics.nn.tasks import DetectionModel, load_checkpoint

from tests.faults import CODES, PLACING, RUNNING, WRITING, digest
from tests.tiny import NAMES, rows, same_values, save_model
from yolokd.drawn.shapes import draw_dataset
from yolokd.saving.state import FILE, read_state

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.usefixtures("own_start"),
]
EPOCHS = 4
PLAIN = {"best.pt", "last.pt", FILE}
Fault = dict[str, Any]


def architecture(path: Path, width: float) -> Path:
    """Write a YOLOv8 of a width of its own."""
    import ultralytics

    text = (Path(ultralytics.__file__).parent / "cfg/models/v8/yolov8.yaml").read_text(encoding="utf-8")
    described = yaml.safe_load(text)
    described.update(scales={"n": [0.33, width, 1024]}, nc=len(NAMES))
    path.write_text(yaml.safe_dump(described), encoding="utf-8")
    return path


def teacher(path: Path, seed: int, width: float) -> Path:
    """Write weights of a small teacher whose batch normalisations hold the statistics of noise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DetectionModel(str(architecture(path.with_suffix(".yaml"), width)), verbose=False)
        model.names = dict(enumerate(NAMES))
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None
        model.train()
        model(torch.rand(4, 3, 128, 128))
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.03
    return save_model(model.eval(), path)


class Runs:
    """Trainings in processes of their own, forked by one server."""

    def __init__(self, folder: Path, data: Path, widths: tuple[float, float] = (0.0625, 0.125)):
        """Write the models, with teachers of these widths, and start the server."""
        self.folder = folder
        teachers = [teacher(folder / f"teacher{i}.pt", i, width) for i, width in enumerate(widths, 1)]
        self.words = [
            "train",
            f"model={architecture(folder / 'yolov8n.yaml', 0.0625)}",
            f"teacher=[{','.join(map(str, teachers))}]",
            f"data={data}",
            "method=dfmsd+pcd+ckd",
            *"dfmsd_stages=[0.5] dfmsd_mask=random ckd_queue=64 ckd_regions=8 ckd_dim=16".split(),
            *f"epochs={EPOCHS} imgsz=64 batch=3 nbs=3 workers=0 device=cpu plots=False optimizer=SGD".split(),
            "kd_preflight=False",
            f"project={folder / 'runs'}",
        ]
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    def do(self, words: list[str], log: Path, fault: Fault | None = None) -> int:
        """Run one command, and return its exit code."""
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps({"words": words, "log": str(log), "fault": fault}) + "\n")
        self.server.stdin.flush()
        for line in self.server.stdout:
            if line.startswith('{"code"'):
                return int(json.loads(line)["code"])
        raise AssertionError("the server has ended")

    def train(self, name: str, fault: Fault | None = None, *more: str) -> tuple[int, Path, Path]:
        """Train from the start, and return the exit code, the folder and the log."""
        log = self.folder / f"{name}.log"
        return self.do([*self.words, f"name={name}", *more], log, fault), self.folder / "runs" / name, log

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait(60)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Iterator[Runs]:
    made = Runs(tmp_path_factory.mktemp("faults"), tiny_data)
    yield made
    made.close()


@pytest.fixture(scope="module")
def unbroken(runs: Runs) -> Callable[[], tuple[Path, list[dict[str, Any]]]]:
    """The folder and the events of a run that nothing happened to."""

    @cache
    def run() -> tuple[Path, list[dict[str, Any]]]:
        code, folder, log = runs.train("unbroken")
        assert code == 0, log.read_text()[-3000:]
        return folder, events(log)

    return run


def events(log: Path) -> list[dict[str, Any]]:
    path = Path(f"{log}.events")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def whole(folder: Path) -> int:
    """Check that each checkpoint of a folder can be read, and return the epoch of last.pt."""
    for path in (folder / "weights").glob("*.pt"):
        if path.name == FILE:
            assert read_state(path) is not None
        else:
            assert type(load_checkpoint(path)[0]) is DetectionModel
    return int(load_checkpoint(folder / "weights" / "last.pt")[1]["epoch"])


def survive(runs: Runs, unbroken: Path, name: str, faults: list[Fault]) -> None:
    """Hit a run by one fault after another, resume it each time and at last to its end, and compare."""
    last = runs.folder / "runs" / name / "weights" / "last.pt"
    words, resumed, killed = [*runs.words, f"name={name}"], False, False
    expected = rows(unbroken)
    for number, fault in enumerate([*faults, None]):
        log = runs.folder / f"{name}-{number}.log"
        before = read_state(last.with_name(FILE)) if resumed else None
        epoch = int(load_checkpoint(last)[1]["epoch"]) if resumed else -1
        code = runs.do(words, log, fault)
        told = log.read_text()
        if resumed:
            assert "anew" not in told, told[-2000:]
            starts = [event for event in events(log) if event["what"] == "start"]
            if epoch + 1 < EPOCHS and (starts or fault is None):
                assert before is not None
                assert starts[0]["epoch"] == epoch + 1
                assert starts[0]["digest"] == digest(before["epochs"][epoch])  # adapters, gains, queue, to the bit
                assert starts[0]["stage"] == (epoch + 1) // (EPOCHS // 2)
        if fault is None or code == 0:  # the host goes on after a lack of memory in the first epoch
            assert code == 0, told[-3000:]
            break
        killed = killed or fault["kind"] == "SIGKILL"
        early = fault["moment"] == "time" and code == -signal.SIGTERM and not told  # before anything was begun
        assert early or code == CODES.get(fault["kind"], 1), (fault, told[-3000:])
        assert "Traceback" not in told or fault["kind"] == "SIGKILL", told[-3000:]
        if not last.exists():
            assert fault["kind"] == "SIGKILL" or "go on with" not in told
            words = [*runs.words, f"name={name}", "exist_ok=True"]
            continue
        saved = whole(last.parents[1])
        if saved == -1:  # the run was complete, or all but the host's last words
            assert "go on with" not in told
            break
        if fault["kind"] != "SIGKILL" and not early:
            assert f"go on with: yolokd train resume model={last}" in told, told[-2000:]
            assert {path.name for path in last.parent.iterdir()} <= PLAIN | ({"partial"} if killed else set())
        if not resumed:  # to this moment, nothing differs from the unbroken run
            kept = [row for row in rows_whole(last.parents[1]) if row["epoch"] <= saved + 1]
            assert all(same_values(a, b) for a, b in zip(kept, expected)) and len(kept) == saved + 1
        words, resumed = ["train", "resume", f"model={last}"], True
    compare(last.parents[1], unbroken)


def rows_whole(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a results.csv whose last one may be cut off."""
    text = (folder / "results.csv").read_text()
    header, *lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    keys = [key.strip() for key in header.split(",")]
    return [dict(zip(keys, map(float, line.split(",")))) for line in lines]


def compare(folder: Path, unbroken: Path) -> None:
    """Check that a finished run has all that an unbroken one has, and nothing else."""
    ours, theirs = rows(folder), rows(unbroken)
    assert [row["epoch"] for row in ours] == list(range(1, EPOCHS + 1))
    assert list(ours[0]) == list(theirs[0])
    for own, other in zip(ours, theirs):
        for key in other:
            if key in {"epoch", "kd/stage", "kd/factor"} or key.startswith("lr/"):
                assert own[key] == other[key], (key, own["epoch"])
            assert math.isnan(own[key]) == math.isnan(other[key]), (key, own["epoch"])
    files = [{path.relative_to(run) for path in run.rglob("*")} for run in (folder, unbroken)]
    assert files[0] == files[1]
    assert whole(folder) == -1  # a finished run, which keeps no optimizer
    for name in ("last.pt", "best.pt"):
        model, checkpoint = load_checkpoint(folder / "weights" / name)
        assert checkpoint["optimizer"] is None and checkpoint["ema"] is None
        assert "criterion" not in model._modules
        assert not any("kd_" in key or key in {"method", "teacher"} for key in checkpoint["train_args"])
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    state = read_state(folder / "weights" / FILE)
    assert state is not None and max(state["epochs"]) == EPOCHS - 1


CHOSEN: list[list[Fault]] = [
    [{"kind": "SIGKILL", "moment": "half a checkpoint", "epoch": 1}],
    [{"kind": "SIGTERM", "moment": "stage begins"}, {"kind": "SIGKILL", "moment": "state placed", "epoch": 0}],
    [{"kind": "SIGINT", "moment": "loss", "epoch": 2}],
    [{"kind": "full disk", "moment": "half a state", "epoch": 2}],
    [{"kind": "full disk", "moment": "half a best.pt"}],
    [{"kind": "SIGKILL", "moment": "half a last.pt at the end"}],
    [{"kind": "out of memory", "moment": "loss", "epoch": 3}, {"kind": "exception", "moment": "step", "epoch": 3}],
]


def label(faults: list[Fault]) -> str:
    return ", ".join(f"{fault['kind']} at {fault['moment']} {fault.get('epoch', '')}".strip() for fault in faults)


@pytest.mark.parametrize("faults", CHOSEN, ids=label)
def test_a_run_that_was_hit_goes_on_as_if_nothing_had_happened(
    faults: list[Fault], runs: Runs, unbroken: Any, request: pytest.FixtureRequest
) -> None:
    survive(runs, unbroken()[0], f"hit{CHOSEN.index(faults)}", faults)


def drawn(number: int) -> list[Fault]:
    """Return one or two faults, drawn from a seed."""
    draw = random.Random(number)
    faults: list[Fault] = []
    for _ in range(draw.choice((1, 1, 2))):
        group = draw.choice((WRITING, PLACING, RUNNING, ("time",)))
        moment = draw.choice(group)
        kinds = ["SIGKILL", "SIGTERM", "SIGINT"]
        if group is WRITING:
            kinds += ["full disk"] * 3
        elif group is RUNNING:
            kinds += ["exception", "exception", "no memory"]
            kinds += ["out of memory"] * 2 if moment in {"step", "loss", "update"} else []
        fault: Fault = {"kind": draw.choice(kinds), "moment": moment, "epoch": draw.randrange(EPOCHS)}
        faults.append({**fault, "seconds": round(draw.uniform(0.5, 6.0), 2)} if moment == "time" else fault)
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("number", range(30), ids=lambda number: f"{number}: {label(drawn(number))}")
def test_a_run_that_was_hit_at_a_random_moment_goes_on(number: int, runs: Runs, unbroken: Any) -> None:
    survive(runs, unbroken()[0], f"random{number}", drawn(number))


def mean_precision(run: Path) -> float:
    """Return AP of the last epoch."""
    return rows(run)[-1]["metrics/mAP50-95(B)"]


@pytest.mark.slow
def test_precision_of_runs_that_were_hit_is_within_the_spread_of_unbroken_ones(tmp_path: Path) -> None:
    """Five seeds each, of a student with some training behind it; 99 % interval of one more unbroken run."""
    runs = Runs(tmp_path, draw_dataset(tmp_path / "shapes", images=(400, 100), imgsz=64, seed=0, classes=3))
    recipe = "imgsz=64 batch=8 nbs=8 optimizer=AdamW lr0=0.002 warmup_epochs=1 mosaic=0.0 scale=0.2".split()
    found: dict[str, list[float]] = {"unbroken": [], "hit": []}
    try:
        made = {}
        for name, width, epochs in (("strong", 0.25, 40), ("weak", 0.125, 40)):
            model = architecture(tmp_path / f"yolov8n-{name}.yaml", width)
            code, folder, log = runs.train(name, None, *recipe, f"model={model}", f"epochs={epochs}", "method=none")
            assert code == 0, log.read_text()[-2000:]
            made[name] = folder / "weights" / "best.pt"
        words = [*recipe, f"model={made['weak']}", f"teacher={made['strong']}", "dfmsd_stages=[]", "epochs=6"]
        for seed in range(5):
            code, folder, log = runs.train(f"unbroken{seed}", None, *words, f"seed={seed}")
            assert code == 0, log.read_text()[-2000:]
            found["unbroken"].append(mean_precision(folder))
            draw = random.Random(seed)
            fault = {
                "kind": draw.choice(("SIGKILL", "SIGTERM", "SIGINT")),
                "moment": "loss",
                "epoch": draw.randint(1, 5),
            }
            code, folder, log = runs.train(f"hit{seed}", fault, *words, f"seed={seed}")
            assert code == CODES[str(fault["kind"])]
            last = folder / "weights" / "last.pt"
            assert runs.do(["train", "resume", f"model={last}"], log) == 0, log.read_text()[-2000:]
            found["hit"].append(mean_precision(folder))
    finally:
        runs.close()
    print(found)
    middle, spread = statistics.mean(found["unbroken"]), statistics.stdev(found["unbroken"])
    assert middle > 0.05 and spread < middle / 3
    reach = 4.604 * spread * math.sqrt(1 + 1 / 5)  # Student's t, 4 degrees of freedom
    assert all(abs(value - middle) <= reach for value in found["hit"])


def test_two_runs_of_one_seed_are_equal_to_the_bit(runs: Runs, unbroken: Any) -> None:
    folder, told = unbroken()
    code, again, log = runs.train("again")
    assert code == 0
    left, right = ((run / "results.csv").read_text().splitlines() for run in (folder, again))
    assert left[0] == right[0]
    without_time = [re.sub(r"^([^,]*),[^,]*,", r"\1,", line) for line in left]
    assert without_time == [re.sub(r"^([^,]*),[^,]*,", r"\1,", line) for line in right]
    assert told == events(log)  # adapters, gains and queue after each epoch
    students = [load_checkpoint(run / "weights" / "last.pt")[0].state_dict() for run in (folder, again)]
    assert all(torch.equal(students[0][key], value) for key, value in students[1].items())


def test_before_a_first_epoch_is_saved_an_interruption_leaves_nothing(runs: Runs) -> None:
    for kind, code in (("SIGINT", 130), ("SIGTERM", 143)):
        found, folder, log = runs.train(f"early-{kind}", {"kind": kind, "moment": "loss", "epoch": 0})
        assert found == code
        assert "before a first epoch was saved" in log.read_text()
        assert not folder.exists()
