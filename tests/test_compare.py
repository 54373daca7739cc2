"""`yolokd compare`: the plan, the trainer that measures, and a small comparison from the command line to the report."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from ultralytics.nn.tasks import OBBModel, RTDETRDetectionModel, yaml_model_load
from ultralytics.utils import YAML

from tests.tiny import NAMES, save_model, tiny_model
from yolokd import UserError, cli, config
from yolokd.command.grammar import parse
from yolokd.command.val import side_by_side
from yolokd.compare import KEYS, _command, _inputs, _worker, compare
from yolokd.compare import worker as compare_worker
from yolokd.compare.identity import data_hash, differing, identify
from yolokd.compare.plan import arm_names, check_suitable, devices, make_plan, names, runs_of, seed_list
from yolokd.compare.plan import train_arguments as checked
from yolokd.compare.prepare import prepare
from yolokd.compare.result import CompareResult
from yolokd.compare.trainer import MEASURES, MeasuringTrainer, model_hash
from yolokd.drawn.shapes import draw_dataset
from yolokd.evaluation import evaluate as evaluation
from yolokd.evaluation.evaluate import coco_ground_truth, evaluate
from yolokd.saving.records import PREDICTIONS, read_json, write_json

TRAIN = {"epochs": 4, "imgsz": 32, "batch": 4, "close_mosaic": 2, "optimizer": "SGD", "kd_preflight": False}


def read(text: str) -> dict[str, Any]:
    return parse(text.split(), {**config.merged_base(), **KEYS})


# The plan -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("methods=none,ultralytics,dfmsd,pcd,dfmsd+pcd", ["none", "ultralytics", "dfmsd", "pcd", "dfmsd+pcd"]),
        ("methods=[none,pcd]", ["none", "pcd"]),
        ("methods=[pcd, mgd]", ["pcd", "mgd"]),
        ("methods=none", ["none"]),
        ("methods=pcd", ["pcd"]),
        ("methods=['pcd',None]", ["pcd", "none"]),
    ],
)
def test_methods_as_the_parser_leaves_them(text: str, expected: list[str]) -> None:
    assert names(read(text)["methods"]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("seeds=3", [0, 1, 2]), ("seeds=[0,5]", [0, 5]), ("seeds=0,5", [0, 5]), ("seeds=[7]", [7]), ("seeds=1", [0])],
)
def test_seeds_as_the_parser_leaves_them(text: str, expected: list[int]) -> None:
    assert seed_list(read(text)["seeds"]) == expected


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "a", "", [], [1, 1], [-1], [0.5], None])
def test_wrong_seeds(value: Any) -> None:
    with pytest.raises(UserError, match="seeds="):
        seed_list(value)


def test_controls_are_added_unless_turned_off() -> None:
    assert arm_names(["pcd"]) == ["none", "ultralytics", "pcd"]
    assert arm_names(KEYS["methods"]) == ["none", "ultralytics", config.DEFAULTS["method"]]
    assert arm_names("pcd,none") == ["none", "ultralytics", "pcd"]
    assert arm_names(["pcd"], controls=False) == ["pcd"]
    assert arm_names("pcd,none", controls=False) == ["none", "pcd"]
    with pytest.raises(UserError, match="twice"):
        arm_names("pcd,pcd")
    with pytest.raises(UserError, match="did you mean"):
        arm_names("pdc")
    with pytest.raises(UserError, match="no method"):
        arm_names([], controls=False)


@pytest.mark.parametrize(
    ("value", "jobs", "expected"),
    [
        (None, None, [None]),
        ("cpu", None, ["cpu"]),
        ("cpu", 3, ["cpu"] * 3),
        ((0, 1), None, ["0", "1"]),
        ("0,1", 4, ["0", "1", "0", "1"]),
        ([2, 3], 1, ["2"]),
        (1, None, ["1"]),
    ],
)
def test_slots(value: Any, jobs: int | None, expected: list[str | None]) -> None:
    assert devices(value, jobs) == expected


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_wrong_jobs(jobs: Any) -> None:
    with pytest.raises(UserError, match="jobs="):
        devices("cpu", jobs)


def test_a_process_sees_its_own_gpu_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    command = _worker(["0", "1", "0"])
    found = [command(Path("run"), slot) for slot in range(3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for _, environment in found] == ["4", "6", "4"]
    for words, environment in found:
        assert words[words.index("--device") + 1] == "0" and words[words.index("--threads") + 1] == "2"
        assert environment["OMP_NUM_THREADS"] == "2" and "--shared" in words
    words, environment = _worker(["cpu"])(Path("run"), 0)
    assert words[-2:] == ["--device", "cpu"] and "--threads" not in words and "--shared" not in words
    assert "CUDA_VISIBLE_DEVICES" not in environment


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("method", "pcd", "methods="),
        ("seed", 3, "seeds="),
        ("resume", True, "same command"),
        ("time", 1.0, "epochs="),
        ("distill_model", "x.pt", "teacher="),
        ("teacher_epochs", 2, "teacher="),
        ("batch", -1, "batch=16"),
        ("batch", 0.7, "batch=16"),
        ("save", False, "save="),
        ("pcd_stagess", 3, "pcd_stages"),
        ("kd_share", -1, "kd_share"),
        ("kd_names", ["car", "bus"], "kd_names"),
    ],
)
def test_arguments_that_a_comparison_cannot_have(key: str, value: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        checked({key: value})


def test_arms_end_at_the_same_epoch_unless_asked_otherwise() -> None:
    assert checked({})["patience"] == 0 and checked({"patience": 5})["patience"] == 5
    assert checked({"val": False})["val"] is False  # then the last epoch is judged


def plan_for(data: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    given = {
        "model": "yolov8n.yaml",
        "teachers": [str(teacher)],
        "data": str(data),
        "split": "val",
        "arms": ["none", "ultralytics", "pcd"],
        "seeds": [0, 1],
        "train": checked({**TRAIN, "pcd_stages": 1}),
        "command": "",
        **changes,
    }
    return make_plan(**given)


def test_runs_are_interleaved_by_seed(tiny_data: Path, tiny_teacher: Callable[[str], Path]) -> None:
    plan = plan_for(tiny_data, tiny_teacher("yolov8n"))
    keys = [run.key for run in runs_of(plan)]
    assert keys[0] == "teacher"
    assert keys[1:] == [f"seed{seed}/{arm}" for seed in (0, 1) for arm in ("none", "ultralytics", "pcd")]
    arms = {arm["name"]: arm["arguments"] for arm in plan["arms"]}
    assert "teacher" not in arms["none"] and arms["ultralytics"]["teacher"] == str(tiny_teacher("yolov8n"))
    plan = plan_for(tiny_data, tiny_teacher("yolov8n"), train=checked({**TRAIN, "freeze": (0, 1), "pcd_stages": 1}))
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan  # a tuple in a plan on disk would differ from itself


def test_another_comparison_is_told_by_what_differs(
    tiny_data: Path, tiny_teacher: Callable[[str], Path], tmp_path: Path
) -> None:
    plan = plan_for(tiny_data, tiny_teacher("yolov8n"))
    assert differing(plan, plan_for(tiny_data, tiny_teacher("yolov8n"))) == []
    other = plan_for(
        tiny_data,
        tiny_teacher("yolov8s"),
        model="yolov8s.yaml",
        train=checked({**TRAIN, "epochs": 5}),
        seeds=[1, 2],
        arms=["none", "pcd"],
    )
    told = "; ".join(differing(plan, other))
    for word in (
        "model (yolov8n.yaml ",
        " there, yolov8s.yaml ",
        "teacher (another content)",
        "epochs (4 there, 5 now)",
    ):
        assert word in told
    assert "methods (ultralytics there" in told and "seeds (0 there" in told and "pcd_stages" in told
    assert "data" not in told and plan["id"] != other["id"]
    more = plan_for(tiny_data, tiny_teacher("yolov8n"), seeds=[0, 1, 2], arms=["none", "ultralytics", "pcd", "mgd"])
    assert differing(plan, more) == [] and plan["id"] == more["id"]


def test_keys_that_no_arm_reads_are_said(tiny_data: Path, tiny_teacher: Callable[[str], Path], said: list[str]) -> None:
    keys = {"pcd_stages": 1, "pkd_gain": 0.5, "ckd_dim": 64, "cwd_gain": 1.0}
    plan_for(tiny_data, tiny_teacher("yolov8n"), train=checked({**TRAIN, **keys}))
    assert [message.removeprefix("WARNING ⚠️ ") for message in said if "is read by none" in message] == [
        f"{key}={keys[key]} is read by none of the methods that are compared: none, ultralytics, pcd"
        for key in ("pkd_gain", "ckd_dim")
    ]


def test_every_arm_is_checked_before_anything_runs(tiny_data: Path, tiny_teacher: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="pcd_gain=0"):
        plan_for(tiny_data, tiny_teacher("yolov8n"), train=checked({**TRAIN, "pcd_gain": 0}))
    with pytest.raises(UserError, match="needs a teacher"):
        plan_for(tiny_data, tiny_teacher("yolov8n"), teachers=[])


def test_methods_that_do_not_suit_a_pair_are_refused_before_anything_runs(tmp_path: Path, said: list[str]) -> None:
    rotated = str(save_model(tiny_model("yolov8n-obb", seed=2, task=OBBModel), tmp_path / "obb.pt"))
    queries = str(
        save_model(tiny_model("rtdetr-l", seed=2, trained=False, task=RTDETRDetectionModel), tmp_path / "queries.pt")
    )
    arms = ["none", "ultralytics", "bckd"]
    with pytest.raises(UserError, match="Set bckd_box=0"):
        check_suitable("yolov8n.yaml", [rotated], arms, {})
    assert check_suitable("yolov8n.yaml", [rotated], arms, {"bckd_box": 0.0}) == arms
    assert check_suitable("yolov8n.yaml", [], ["none"], {}) == ["none"]
    assert not any("is left out" in message for message in said)
    with pytest.raises(UserError, match="an RT-DETR teacher predicts by queries"):
        check_suitable("yolov8n.yaml", [queries], arms, {})
    assert check_suitable("yolov8n.yaml", [queries], ["none", "ultralytics", "dfmsd"], {}) == ["none", "dfmsd"]
    assert "the arm ultralytics is left out: teacher=" in said[-1] and "is an RT-DETR model" in said[-1]


def test_inputs_that_change_under_the_same_name_are_others(tmp_path: Path, tiny_data: Path) -> None:
    """An architecture that was edited, weights to begin from, and images without labels."""
    model, start, pool = tmp_path / "student.yaml", tmp_path / "start.pt", tmp_path / "pool"
    architecture = yaml_model_load("yolov8n.yaml")
    YAML.save(model, {**architecture, "width_multiple": 0.125})
    start.write_bytes(b"one")
    pool.mkdir()
    (pool / "a.jpg").write_bytes(b"one")
    arguments = {"model": str(model), "data": str(tiny_data), "pretrained": str(start), "kd_unlabeled": str(pool)}
    first = identify(arguments, [], "val")
    assert identify(arguments, [], "val") == first

    def changed() -> set[str]:
        now = identify(arguments, [], "val")
        return {key for key in now if now[key] != first[key]}

    YAML.save(model, {**architecture, "width_multiple": 0.25})
    assert changed() == {"model"}
    YAML.save(model, {**architecture, "width_multiple": 0.125})
    start.write_bytes(b"two")
    assert changed() == {"pretrained"}
    start.write_bytes(b"one")
    (pool / "b.jpg").write_bytes(b"two")
    assert changed() == {"kd_unlabeled"}
    assert identify({"model": "yolov8n.yaml", "data": str(tiny_data)}, [], "val")["model"] != first["model"]


def test_data_hash_sees_labels_and_images(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path / "data", images=(3, 2), imgsz=32, classes=3)
    first = data_hash(str(data), "val")
    assert data_hash(str(data), "val") == first
    label = next((tmp_path / "data/labels/val").glob("*.txt"))
    label.write_text("0 0.5 0.5 0.2 0.2\n", encoding="utf-8")
    second = data_hash(str(data), "val")
    next((tmp_path / "data/images/train").glob("*.png")).unlink()
    assert len({first, second, data_hash(str(data), "val")}) == 3


def test_data_hash_passes_over_images_of_a_list_that_are_not_there(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path / "data", images=(3, 2), imgsz=32, classes=3)
    files = sorted(str(path) for path in (tmp_path / "data/images/train").glob("*.png"))
    (tmp_path / "train.txt").write_text("\n".join([*files, str(tmp_path / "data/images/train/gone.png")]))
    listed = yaml.safe_load(data.read_text(encoding="utf-8")) | {"train": str(tmp_path / "train.txt")}
    data.write_text(yaml.safe_dump(listed), encoding="utf-8")
    first = data_hash(str(data), "val")
    (tmp_path / "train.txt").write_text("\n".join(files))
    assert data_hash(str(data), "val") != first


def test_data_that_was_moved_is_found_where_it_is_now(tmp_path: Path) -> None:
    data = draw_dataset(tmp_path / "data", images=(3, 2), imgsz=32, classes=3)
    prepare(tmp_path, {"arguments": {}, "data": str(data), "split": "val"})
    before = read_json(tmp_path / "ground_truth.json")
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / data.name
    moved.write_text(moved.read_text(encoding="utf-8").replace(str(tmp_path / "data"), str(tmp_path / "moved")))
    prepare(tmp_path, {"arguments": {}, "data": str(moved), "split": "val"})
    after = read_json(tmp_path / "ground_truth.json")
    assert after["info"]["data"] == str(moved) and after["annotations"] == before["annotations"]


def test_command_for_the_report() -> None:
    given = {
        "model": "a b.pt",
        "teacher": ["x.pt", "y.pt"],
        "seeds": [0, 2],
        "controls": True,
        "jobs": None,
        "epochs": 3,
    }
    assert _command(given) == 'yolokd compare "model=a b.pt" teacher=[x.pt,y.pt] seeds=[0,2] epochs=3'


# The trainer that measures --------------------------------------------------------------------------------------------


class Stop(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Callable[[str], Path]) -> Iterator[Path]:
    """A comparison's folder with a plan, without runs."""
    root = tmp_path_factory.mktemp("measured")
    data = draw_dataset(root / "data", images=(8, 2), imgsz=32, classes=3)
    write_json(root / "plan.json", plan_for(data, tiny_teacher("yolov8n"), train=checked({**TRAIN, "pcd_stages": 1})))
    yield root


def measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...] = (), **changes: Any
) -> dict[str, Any]:
    """Train a run that is cut off after some epochs, as often as told, and return its measures."""
    plan = read_json(folder.parents[1] / "plan.json")
    plan["arguments"] |= changes
    folder.mkdir(parents=True, exist_ok=True)
    original = MeasuringTrainer.save_model
    for stop in (*stops, None):

        def save(self: Any, stop: int | None = stop) -> bool:
            saved = original(self)
            if self.epoch + 1 == stop:
                self.stream.close()
                raise Stop
            return saved

        monkeypatch.setattr(MeasuringTrainer, "save_model", save)
        try:
            return compare_worker.train(folder, plan, "cpu")
        except Stop:
            assert stop is not None
    raise AssertionError


def test_interrupted_runs_see_the_images_of_uninterrupted_ones(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # mosaic closes after epoch 2: before, at and after that; the sizes of multi_scale are drawn beside the loader
    whole = measured(space / "seed0" / "none", monkeypatch, multi_scale=0.5)
    cut = measured(space / "seed0" / "pcd", monkeypatch, stops=(1, 2, 3), multi_scale=0.5)
    other = measured(space / "seed1" / "none", monkeypatch, multi_scale=0.5)
    assert cut["stream"] == whole["stream"] and cut["stream"]["batches"] == 4 * 2
    assert cut["initial_hash"] == whole["initial_hash"] is not None
    assert other["stream"] != whole["stream"] and other["initial_hash"] != whole["initial_hash"]
    assert cut["resumed"] == [1, 2, 3] and whole["resumed"] == []
    for measures in (cut, whole):
        assert measures["epochs_done"] == 4 and len(measures["steps"]) == 4 and measures["last"]
        assert 0 < sum(measures["steps"]) < measures["wall_s"] and measures["peak_bytes"] > 50e6
    stages = [
        yaml.safe_load((space / "seed0" / arm / "args.yaml").read_text())["pcd_stages"] for arm in ("none", "pcd")
    ]
    assert stages == [config.DEFAULTS["pcd_stages"], 1]  # keys of a method reach its own arms alone
    lines = (space / "seed0" / "pcd" / "progress.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_plain_run_of_a_comparison_is_the_plain_run(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ultralytics.models.yolo.detect import DetectionTrainer

    folder = space / "seed2" / "none"
    measured(folder, monkeypatch, epochs=2)
    plan = read_json(space / "plan.json")
    arguments = {key: value for key, value in plan["arguments"].items() if key not in config.DEFAULTS}
    trainer = DetectionTrainer(
        overrides={**arguments, "epochs": 2, "seed": 2, "device": "cpu", "project": str(space), "name": "host"}
    )
    trainer.train()
    ours, host = (
        torch.load(path / "weights/best.pt", weights_only=False)["model"] for path in (folder, space / "host")
    )
    assert model_hash(ours) == model_hash(host)


def test_a_checkpoint_that_was_cut_off_begins_anew(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = space / "seed3" / "none"
    (folder / "weights").mkdir(parents=True)
    for name, content in (("weights/last.pt", "cut"), (MEASURES, '{"epochs": {"0": {}}}'), ("progress.jsonl", "{}\n")):
        (folder / name).write_text(content, encoding="utf-8")
    (folder / "worker.log").write_text("kept", encoding="utf-8")
    assert compare_worker.saved_epoch(folder) is None
    compare_worker.wipe(folder)
    assert [path.name for path in folder.iterdir()] == ["worker.log"]


def test_a_training_that_ended_is_not_trained_again(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = space / "seed4" / "none"
    first = measured(folder, monkeypatch, epochs=1)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(compare_worker, "MeasuringTrainer", never)
    assert compare_worker.train(folder, read_json(space / "plan.json"), "cpu") == first
    last = folder / "weights" / "last.pt"  # killed before the host strips it
    torch.save({**torch.load(last, weights_only=False), "epoch": 0, "optimizer": {"state": {}}}, last)
    assert compare_worker.saved_epoch(folder) == 0
    assert compare_worker.finished_measures(folder, 0) == first
    assert torch.load(last, weights_only=False)["optimizer"] is None
    (folder / "weights" / "best.pt").write_bytes(b"cut")
    with pytest.raises(AssertionError, match="trained again"):
        compare_worker.train(folder, read_json(space / "plan.json"), "cpu")


def test_a_training_that_ends_without_its_last_epoch_has_failed(space: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        stream = SimpleNamespace(close=lambda: None)

        def __init__(self, overrides: dict[str, Any]):
            pass

        def train(self) -> None:
            pass

    folder = space / "seed5" / "none"
    folder.mkdir(parents=True)
    monkeypatch.setattr(compare_worker, "MeasuringTrainer", Idle)
    with pytest.raises(RuntimeError, match="ended without saving its last epoch"):
        compare_worker.train(folder, read_json(space / "plan.json"), "cpu")


@pytest.mark.parametrize(
    ("raised", "code"), [(None, 0), (KeyboardInterrupt(), 130), (ValueError("no luck\nand more"), 1)]
)
def test_a_process_ends_with_a_code_and_writes_down_why_it_failed(
    raised: BaseException | None, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*given: Any) -> None:
        assert given == (tmp_path, "cpu", True)
        if raised:
            raise raised

    monkeypatch.setattr(compare_worker, "work", work)
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path), "--device", "cpu", "--shared"])
    assert compare_worker.main() == code
    told = read_json(tmp_path / "error.json")
    if code == 1:
        assert told["error"] == "ValueError: no luck" and "raise raised" in told["traceback"]
    else:
        assert told is None


# The whole ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Callable[[str], Path]) -> tuple[Path, list[str]]:
    """A small comparison made from the command line, and the command's words."""
    root = tmp_path_factory.mktemp("whole")
    data = draw_dataset(root / "data", images=(8, 4), imgsz=64, classes=3)
    student = save_model(tiny_model("yolov8n", seed=1), root / "student.pt")
    text = (
        f"compare model={student} teacher={tiny_teacher('yolov8n')} data={data} methods=none,pcd controls=False "
        f"seeds=2 epochs=1 imgsz=64 batch=4 optimizer=SGD kd_preflight=False device=cpu jobs=2 "
        f"project={root / 'runs'} name=small"
    )
    assert cli.main(text.split()) == cli.DONE
    return root / "runs" / "small", text.split()


def test_a_comparison_from_the_command_line(finished: tuple[Path, list[str]]) -> None:
    root, _ = finished
    results = json.loads((root / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert [arm["name"] for arm in results["arms"]] == ["none", "pcd"]
    checks = results["checks"]
    assert checks["same_stream"] is checks["same_initial"] is checks["same_epochs"] is True
    assert checks["problems"] == [] and any("shared machine" in note for note in checks["notes"])
    for arm in results["arms"]:
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
        for run in arm["runs"]:
            assert run["status"] == "done" and run["epochs_done"] == 1 and run["batches"] == 2
            assert run["wall_s"] > run["step_s"] > 0 and run["peak_bytes"] > 1e8
            assert run["metrics"]["images"] == 4 and set(run["metrics"]["per_class"]) == set(NAMES)
            assert run["curves"]["epoch"] == [1.0]
            for name in (
                "run.json",
                "predictions.json.gz",
                "weights/best.pt",
                "args.yaml",
                "results.csv",
                "worker.log",
            ):
                assert (root / run["folder"] / name).is_file(), name
            assert (root / run["weights"]).is_file() and len(run["weights_sha256"]) == 64
    plain, pcd = results["arms"]
    assert "train/pcd_loss" in pcd["runs"][0]["curves"] and "train/pcd_loss" not in plain["runs"][0]["curves"]
    for a, b in zip(plain["runs"], pcd["runs"]):
        assert a["stream_hash"] == b["stream_hash"] and a["initial_hash"] == b["initial_hash"]
    assert plain["runs"][0]["stream_hash"] != plain["runs"][1]["stream_hash"]
    assert pcd["versus"]["none"]["n"] == 2
    assert results["teacher"]["metrics"]["images"] == 4 and results["data"]["names"] == list(NAMES)
    assert results["command"].startswith("yolokd compare model=") and results["budget"]["epochs"] == 1
    assert (root / "report.md").is_file() and (root / "report.html").is_file()


def test_the_same_command_finds_all_done_and_another_is_refused(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, words = finished
    before = {path: path.stat().st_mtime_ns for path in root.glob("seed*/*/run.json")}
    assert len(before) == 4 and cli.main(words) == cli.DONE
    assert {path: path.stat().st_mtime_ns for path in root.glob("seed*/*/run.json")} == before
    assert "pcd" in capsys.readouterr().out
    assert cli.main([word.replace("epochs=1", "epochs=2") for word in words]) == cli.MISTAKE
    assert "epochs (1 there, 2 now)" in capsys.readouterr().err


def test_a_run_with_its_record_is_not_worked_on_again(
    finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_worker, "_do", lambda *_: pytest.fail("worked on again"))
    for key in ("seed0/none", "teacher"):
        compare_worker.work(finished[0] / key, "cpu", False)


def test_an_interruption_leaves_the_results_so_far(
    finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, words = finished

    def interrupted(*_: Any) -> None:
        (root / "results.json").unlink()
        raise KeyboardInterrupt

    before = (root / "results.json").read_bytes()
    monkeypatch.setattr("yolokd.compare.run_queue", interrupted)
    assert cli.main([*words, "retry"]) == cli.INTERRUPTED
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"interrupted; the same command goes on; so far: {root / 'results.json'}"
    assert said.count("interrupted") == 1
    assert [arm["name"] for arm in read_json(root / "results.json")["arms"]] == ["none", "pcd"]
    (root / "results.json").write_bytes(before)


def test_a_failed_run_and_a_failed_report_are_said_and_the_results_are_written(
    finished: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(state: Any, *_: Any) -> None:
        (run,) = [run for run in state.runs if run.key == "seed1/pcd"]
        write_json(root / run.key / "error.json", {"error": "ValueError: no luck", "traceback": ""})
        state.finish(run, 1)

    def unwritable(folder: Path) -> list[Path]:
        raise OSError("no room")

    root = tmp_path / finished[0].name
    shutil.copytree(finished[0], root)
    (root / "seed1" / "pcd" / "run.json").unlink()
    monkeypatch.setattr("yolokd.compare.run_queue", fails)
    monkeypatch.setattr("yolokd.report.write_report", unwritable)
    words = [f"project={tmp_path}" if word.startswith("project=") else word for word in finished[1]]
    assert cli.main(words) == cli.FAILED
    said = capsys.readouterr().err
    assert "1 run failed; the same command with retry=True runs it again" in said
    assert f"{root / 'results.json'} is written, the report is not: OSError: no room" in said
    runs = {arm["name"]: [run["status"] for run in arm["runs"]] for arm in read_json(root / "results.json")["arms"]}
    assert runs == {"none": ["done", "done"], "pcd": ["done", "failed"]}


def test_a_list_of_teachers_may_be_typed(tiny_data: Path, tiny_teacher: Callable[[str], Path]) -> None:
    given = [str(tiny_teacher(family)) for family in ("yolov8n", "yolov8s")]
    found = _inputs(tiny_teacher("yolov8n"), f"[{','.join(given)}]", tiny_data, "val", ["dfmsd"])
    assert found == (given[0], given, str(tiny_data))


def test_a_drawing_may_be_given_and_what_is_missing_is_not_drawn(
    finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = read_json(finished[0] / "results.json")
    results["teacher"]["metrics"], results["arms"][1]["gap_closed"] = None, 0.25
    results["arms"][0]["mean"]["ap"] = 0.1
    results["arms"][1]["mean"]["ap"] = None
    for run in results["arms"][1]["runs"]:
        run["metrics"] = None
    result = CompareResult(finished[0], results)
    assert result.table["arm"] == ["none", "pcd"]
    assert repr(result).startswith(f"CompareResult({str(finished[0])!r})\n") and "25 %" in repr(result)
    _, axes = plt.subplots()
    assert result.plot(ax=axes) is axes
    assert [len(line.get_xdata()) for line in axes.lines][1:] == [2, 0]  # a mean for the one arm, nothing for the other
    plt.close("all")
    frames = SimpleNamespace(DataFrame=lambda rows, columns: (rows, columns))
    monkeypatch.setitem(sys.modules, "pandas", frames)
    assert result.to_dataframe() == (result.table.rows, list(result.table.columns))


def test_what_compare_returns(finished: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib

    matplotlib.use("Agg")
    result = CompareResult(finished[0])
    table = result.table
    assert table["arm"] == ["none", "pcd", "teacher"] and len(table) == 3 and table[0]["runs"] == "2/2"
    assert "pcd" in str(result) and "<table>" in result._repr_html_()
    frame = result.to_dataframe()
    assert (list(frame["arm"]) if hasattr(frame, "columns") else [row["arm"] for row in frame]) == table["arm"]
    monkeypatch.setitem(sys.modules, "pandas", None)  # not installed
    assert [row["arm"] for row in result.to_dataframe()] == table["arm"]
    axes = result.plot()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["none", "pcd"]
    with pytest.raises(ValueError, match="metric=nonsense"):
        result.plot("nonsense")


def test_compare_by_python_refuses_models_as_objects(finished: tuple[Path, list[str]], tiny_data: Path) -> None:
    with pytest.raises(UserError, match="model= must be a file"):
        compare(tiny_model("yolov8n"), "x.pt", tiny_data)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("methods=none,pcd", "methods=none,pdc"), "did you mean"),
        (("seeds=2", "seeds=0"), "seeds=0"),
        (("jobs=2", "jobs=0"), "jobs=0"),
        (("jobs=2", "method=pcd"), "methods="),
        (("jobs=2", "joobs=2"), "joobs"),
        (("controls=False", "controls=3"), "controls=3"),
        (("jobs=2", "split=test"), "split=test"),
    ],
)
def test_mistakes_on_the_command_line(
    finished: tuple[Path, list[str]], change: tuple[str, str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [w.replace(*change) for w in finished[1]]
    assert cli.main(words) == cli.MISTAKE
    assert word in capsys.readouterr().err


def test_a_comparison_judges_its_teacher_by_what_it_sees(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    way = {"teacher_imgsz": 96, "kd_class_map": {"circle": "square"}}
    plan = {"data": str(tiny_data), "split": "val", "arguments": {"imgsz": 64, "batch": 4, **way}}
    truth = coco_ground_truth(tiny_data)
    write_json(tmp_path / "ground_truth.json", truth)
    weights = tiny_teacher("yolov8n")
    found = {}
    for name in ("teacher", "seed0/pcd"):
        (tmp_path / name).mkdir(parents=True)
        found[name] = compare_worker.evaluate_run(tmp_path / name, plan, weights, "cpu")["metrics"]
    seen = evaluate(weights, tiny_data, ground_truth=truth, device="cpu", imgsz=96, class_map=way["kd_class_map"])
    assert found["teacher"] == seen.to_dict()
    assert found["seed0/pcd"] == evaluate(weights, tiny_data, ground_truth=truth, device="cpu", imgsz=64).to_dict()
    kept = {name: read_json(tmp_path / name / PREDICTIONS) for name in found}
    assert kept["teacher"]["imgsz"] == 96 and kept["seed0/pcd"]["imgsz"] == 64
    assert kept["teacher"]["detections"] == seen.detections != kept["seed0/pcd"]["detections"]


def test_models_side_by_side(
    finished: tuple[Path, list[str]],
    capsys: pytest.CaptureFixture[str],
    tiny_teacher: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, words = finished
    data = next(word for word in words if word.startswith("data="))
    best = [root / "seed0" / arm / "weights" / "best.pt" for arm in ("pcd", "none")]
    text = (
        f"val model={best[0]} baseline={best[1]} teacher={tiny_teacher('yolov8n')} {data} imgsz=64 batch=4 device=cpu"
    )
    assert cli.main(text.split()) == cli.DONE
    said = capsys.readouterr().out
    heading = next(line for line in said.splitlines() if line.startswith("x 100"))
    assert heading.split()[2:] == ["model", "teacher", "baseline"]
    assert all(f"AP {name}" in said for name in NAMES) and "AP by Ultralytics" in said
    table = side_by_side({"model": best[0]}, data[5:], imgsz=64, batch=4, device="cpu")
    recorded = read_json(root / "seed0/pcd/run.json")["metrics"]
    assert table[0]["ap"] == recorded["ap"] and table[0]["ap50"] == recorded["ap50"]
    without = [word for word in text.split() if not word.startswith("imgsz=")]
    assert cli.main(without) == cli.DONE  # at the size that the model was trained at
    assert capsys.readouterr().out == said and said.endswith("images: 64 pixels\n")
    ways: list[Any] = []
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *args, **kwargs: ways.append(kwargs) or evaluate(*args, **kwargs)
    )
    assert cli.main([*text.split(), "teacher_imgsz=96", "kd_class_map={circle: square}"]) == cli.DONE
    assert capsys.readouterr().out.endswith("images: 64 pixels, the teacher's 96\n")
    assert [way["imgsz"] for way in ways] == [64, 96, 64]  # model, teacher, baseline
    assert [way.get("class_map") for way in ways] == [None, {"circle": "square"}, None]
    assert cli.main(["val", f"model={best[0]}", f"baseline={best[1]}", data, "teacher_imgsz=96"]) == cli.MISTAKE
    assert "teacher_imgsz= says how the teacher sees the images" in capsys.readouterr().err
    assert cli.main(["val", f"teacher={best[0]}", data]) == cli.MISTAKE
    assert "needs model=" in capsys.readouterr().err


def test_a_model_that_knows_none_of_the_datas_classes_has_no_ap(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    """As many as the data has, of other names: in `val` beside others, and as the teacher of a comparison."""
    own = save_model(tiny_model(), tmp_path / "own.pt")
    other = save_model(tiny_model(names=("dog", "cat", "cow")), tmp_path / "animals.pt")
    words = ["val", f"data={tiny_data}", "imgsz=64", "batch=4", "device=cpu", f"model={own}"]
    assert cli.main([*words, f"teacher={other}"]) == cli.DONE
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("x 100")).split()[2:] == ["model", "teacher"]
    assert len(next(line for line in lines if line.startswith("AP circle")).split()) == 3  # label and the model's alone
    assert any(f"teacher={other}: none of the model's 3 classes (dog, cat, cow) is among" in text for text in said)
    table = side_by_side({"teacher": other, "model": own}, tiny_data, imgsz=64, batch=4, device="cpu")
    assert table["ap"][0] is None and table["ap"][1] is not None and "AP circle" in table.columns
    with pytest.raises(UserError, match=r"model=.*animals\.pt: none of the model's 3 classes"):
        side_by_side({"model": other}, tiny_data, imgsz=64, batch=4, device="cpu")

    plan = {"arguments": {"imgsz": 64, "batch": 4}, "data": str(tiny_data), "split": "val"}
    write_json(tmp_path / "ground_truth.json", coco_ground_truth(tiny_data))
    (tmp_path / "teacher").mkdir()
    found = compare_worker.evaluate_run(tmp_path / "teacher", plan, other, "cpu")
    assert found["metrics"] is None and found["error"].startswith("none of the model's 3 classes")
    with pytest.raises(UserError, match="none of the model's 3 classes"):
        compare_worker.evaluate_run(tmp_path / "seed0" / "pcd", plan, other, "cpu")
