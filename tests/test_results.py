"""From run folders to results.json: statistics by hand, pairs that do not fit, and runs that no comparison made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML

from tests.tiny import save_model, tiny_model, train, train_plain
from yolokd import UserError, cli, config
from yolokd.evaluation import evaluate as evaluation
from yolokd.evaluation.evaluate import coco_ground_truth, evaluate
from yolokd.report import report_runs
from yolokd.report.examples import find_examples
from yolokd.results import from_compare, from_runs
from yolokd.results.folders import _expand, _like_named, _teacher
from yolokd.results.run import _number
from yolokd.saving.records import read_json, write_json

METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")


def metrics(ap: float) -> dict[str, Any]:
    numbers = {**dict.fromkeys(METRICS, ap), "ap_large": None}
    return {**numbers, "per_class": {"a": ap + 0.1, "b": None}, "objects": {"a": 3, "b": 0}, "images": 2}


def comparison(root: Path, aps: Mapping[str, list[float | None]], teacher: float | None = 0.7, **changes: Any) -> Path:
    """Write the folder of a comparison with these AP per arm and seed; None is a run that failed."""
    seeds = list(range(max(map(len, aps.values()))))
    arms = [{"name": name, "method": name, "arguments": {"method": name}} for name in aps]
    arguments = {"model": "s.pt", "data": "d.yaml", "epochs": 3, "imgsz": 64, "batch": 4}
    plan = {"id": "abc", "arms": arms, "seeds": seeds, "arguments": arguments, "fingerprint": {"model": "f00"}}
    plan |= {"teachers": ["t.pt"], "environment": {}, "command": "c", "data": "d.yaml", "split": "val"}
    write_json(root / "plan.json", plan)
    states = []
    for name, values in aps.items():
        for seed, ap in enumerate(values):
            folder = root / f"seed{seed}" / name
            folder.mkdir(parents=True)
            failed = {"status": "failed", "error": "ValueError: no luck"} if ap is None else {"status": "done"}
            states.append({"key": f"seed{seed}/{name}", **failed})
            if ap is not None:
                measured = {
                    "wall_s": 10.0,
                    "step_s": 0.2 if name == "none" else 0.3,
                    "peak_bytes": 10**9,
                    "resumed": [],
                }
                hashes = {"stream_hash": f"s{seed}", "initial_hash": f"i{seed}", "epochs_done": 3}
                own = changes.get(f"seed{seed}/{name}", {})
                record = {"schema": 1, "plan": "abc", "metrics": metrics(ap), **measured, **hashes, **own}
                write_json(folder / "run.json", record)
    write_json(root / "state.json", {"runs": states})
    (root / "teacher").mkdir()
    if teacher is not None:
        write_json(root / "teacher" / "run.json", {"schema": 1, "plan": "abc", "metrics": metrics(teacher)})
    return root


def by_name(results: Mapping[str, Any]) -> dict[str, Any]:
    return {arm["name"]: arm for arm in results["arms"]}


def test_numbers_by_hand(tmp_path: Path) -> None:
    results = from_compare(comparison(tmp_path, {"none": [0.5, 0.5, 0.5], "pcd": [0.51, 0.52, 0.53]}))
    json.dumps(results, allow_nan=False)
    plain, pcd = results["arms"]
    assert pcd["mean"]["ap"] == pytest.approx(0.52) and pcd["sd"]["ap"] == pytest.approx(0.01)
    assert pcd["mean"]["per_class"] == {"a": pytest.approx(0.62), "b": None} and pcd["mean"]["ap_large"] is None
    versus = pcd["versus"]["none"]
    # differences 0.01, 0.02, 0.03: t = 0.02 / (0.01 / sqrt(3)) = 3.4641 with 2 degrees of freedom; t(0.975) = 4.3027
    assert versus["n"] == 3 and versus["difference"] == pytest.approx(0.02) and versus["sd"] == pytest.approx(0.01)
    assert versus["low"] == pytest.approx(0.02 - 4.302653 * 0.01 / 3**0.5, abs=1e-7)
    assert versus["high"] == pytest.approx(0.02 + 4.302653 * 0.01 / 3**0.5, abs=1e-7)
    assert versus["p"] == pytest.approx(0.07418, abs=1e-5) and versus["verdict"] == "not distinguishable"
    assert versus["sentence"].startswith("pcd and plain training are not distinguishable with 3 seeds: +2.00 AP")
    assert pcd["gap_closed"] == pytest.approx(0.02 / 0.2)
    assert pcd["step_ratio"] == pytest.approx(1.5) and plain["step_ratio"] == pytest.approx(1.0)
    assert plain["versus"] == {} and plain["gap_closed"] is None
    assert results["checks"] == {
        "same_stream": True,
        "same_initial": True,
        "same_epochs": True,
        "problems": [],
        "notes": [],
    }


def test_verdicts_are_adjusted_for_the_arms_of_a_control(tmp_path: Path) -> None:
    plain = [0.500, 0.501, 0.499, 0.500]
    aps = {"none": plain, "ultralytics": [x + d for x, d in zip(plain, (0.010, 0.012, 0.011, 0.009))]}
    aps["pcd"] = [x + d for x, d in zip(plain, (0.030, 0.031, 0.029, 0.032))]
    aps["mgd"] = [x - d for x, d in zip(plain, (0.020, 0.021, 0.019, 0.022))]
    arms = by_name(from_compare(comparison(tmp_path, aps)))
    assert [arms[name]["versus"]["none"]["verdict"] for name in ("ultralytics", "pcd", "mgd")] == [
        "better",
        "better",
        "worse",
    ]
    for name in ("ultralytics", "pcd", "mgd"):
        versus = arms[name]["versus"]["none"]
        assert versus["family"] == 3 and versus["p_adjusted"] >= versus["p"]
    assert "ultralytics" not in arms["none"]["versus"] and arms["pcd"]["versus"]["ultralytics"]["family"] == 2
    assert arms["pcd"]["versus"]["ultralytics"]["verdict"] == "better"
    assert "better than Ultralytics' distillation" in arms["pcd"]["versus"]["ultralytics"]["sentence"]
    assert "closes" in arms["pcd"]["versus"]["none"]["sentence"]


@pytest.mark.parametrize(("key", "word"), [("stream_hash", "different images"), ("initial_hash", "different weights")])
def test_a_pair_that_does_not_match_is_left_out_and_told(tmp_path: Path, key: str, word: str) -> None:
    aps = {"none": [0.5, 0.5, 0.5], "pcd": [0.9, 0.52, 0.53]}
    results = from_compare(comparison(tmp_path, aps, **{"seed0/pcd": {key: "other"}}))
    pcd = by_name(results)["pcd"]
    assert pcd["versus"]["none"]["n"] == 2 and pcd["versus"]["none"]["difference"] == pytest.approx(0.025)
    assert pcd["gap_closed"] == pytest.approx(0.025 / 0.2)
    (problem,) = results["checks"]["problems"]
    assert "seed0/pcd and seed0/none" in problem and word in problem
    same = {"stream_hash": "same_stream", "initial_hash": "same_initial"}[key]
    assert results["checks"][same] is False


def test_failed_and_missing_runs(tmp_path: Path) -> None:
    results = from_compare(comparison(tmp_path, {"none": [0.5, 0.5, None], "pcd": [0.6, None, 0.6], "mgd": [None] * 3}))
    arms = by_name(results)
    assert arms["pcd"]["versus"]["none"]["n"] == 1 and arms["mgd"]["versus"]["none"]["n"] == 0
    assert "nothing to compare" in arms["mgd"]["versus"]["none"]["sentence"] and arms["mgd"]["mean"]["ap"] is None
    assert len(results["checks"]["problems"]) == 5
    assert all("ValueError: no luck" in problem for problem in results["checks"]["problems"])
    assert arms["pcd"]["runs"][1]["status"] == "failed" and arms["pcd"]["runs"][1]["metrics"] is None


def test_what_a_reader_should_know(tmp_path: Path) -> None:
    changes = {"seed0/pcd": {"resumed": [1, 2], "epochs_done": 2}, "seed1/pcd": {"stream_hash": None}}
    changes["seed1/none"] = {"shared_machine": True}
    results = from_compare(comparison(tmp_path, {"none": [0.5, 0.5], "pcd": [0.6, 0.6]}, teacher=0.4, **changes))
    checks = results["checks"]
    assert checks["same_stream"] is None and checks["same_epochs"] is False
    assert any("different numbers of epochs" in problem for problem in checks["problems"])
    for words in ("resumed after epoch 1 and 2", "not verified", "shared machine", "no gap to close"):
        assert any(words in note for note in checks["notes"]), words
    assert by_name(results)["pcd"]["gap_closed"] is None and results["environment"]["shared_machine"] is True


def test_the_epoch_that_is_evaluated_is_named(tmp_path: Path) -> None:
    for val, word in ((True, "rated best"), (False, "the last epoch")):
        (tmp_path / str(val)).mkdir()
        root = comparison(tmp_path / str(val), {"none": [0.5]})
        plan = read_json(root / "plan.json")
        write_json(root / "plan.json", {**plan, "arguments": {**plan["arguments"], "val": val}})
        assert word in from_compare(root)["weights"]


def test_without_validation_best_is_the_last_epoch(tmp_path: Path, tiny_data: Path) -> None:
    trainer = train(tmp_path, tiny_data, epochs=3, method="none", val=False)
    best, last = (load_checkpoint(Path(trainer.save_dir) / "weights" / f"{name}.pt")[0] for name in ("best", "last"))
    assert trainer.epoch == 2
    assert all(torch.equal(a, b) for a, b in zip(best.state_dict().values(), last.state_dict().values()))


def test_one_seed_is_judged_over_images(tmp_path: Path) -> None:
    root = comparison(tmp_path, {"none": [0.0], "pcd": [1.0]})
    boxes = [[10.0, 10.0, 20.0, 20.0]] * 2
    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in (1, 2)],
        "categories": [{"id": 0, "name": "a"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 0, "bbox": boxes[0], "area": 400, "iscrowd": 0} for i in (1, 2)
        ],
    }
    write_json(root / "ground_truth.json", truth)
    found = [{"image_id": i, "category_id": 0, "bbox": boxes[0], "score": 0.9} for i in (1, 2)]
    write_json(root / "seed0/pcd/predictions.json.gz", {"detections": found})
    write_json(root / "seed0/none/predictions.json.gz", {"detections": []})
    versus = by_name(from_compare(root))["pcd"]["versus"]["none"]
    assert versus["source"] == "images" and versus["verdict"] == "not distinguishable"
    assert versus["low"] == versus["high"] == pytest.approx(1.0) and versus["sentence"].startswith("One seed: pcd")


# Runs that no comparison made -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Callable[[str], Path]) -> list[Path]:
    """Finished runs: plain by the host's own trainer, and pcd."""
    root = tmp_path_factory.mktemp("runs")
    teacher = str(tiny_teacher("yolov8n"))
    plain = train_plain(root, tiny_data, epochs=1, name="plain")
    pcd = train(root, tiny_data, epochs=1, name="pcd", method="pcd", teacher=teacher, pcd_stages=1)
    return [Path(plain.save_dir), Path(pcd.save_dir)]


def test_finished_runs_are_evaluated_once_and_paired_by_seed(runs: list[Path]) -> None:
    results = from_runs(runs, device="cpu")
    json.dumps(results, allow_nan=False)
    arms = by_name(results)
    assert list(arms) == ["none", "pcd"] and arms["pcd"]["versus"]["none"]["n"] == 1
    assert arms["pcd"]["versus"]["none"]["source"] == "images"
    checks = results["checks"]
    assert checks["same_stream"] is None and checks["same_initial"] is None and checks["same_epochs"] is True
    assert any("images not verified" in note for note in checks["notes"]) and checks["problems"] == []
    assert results["teacher"]["metrics"]["images"] == 4 and results["data"]["images"] == 4
    run = arms["none"]["runs"][0]
    assert run["wall_s"] > 0 and run["step_s"] is None and run["folder"] == str(runs[0])
    kept = [read_json(folder / "predictions.json.gz") for folder in runs]
    assert all(k["weights_sha256"] == arm["runs"][0]["weights_sha256"] for k, arm in zip(kept, results["arms"]))
    # kept predictions are read, not made again: a doctored file changes the numbers, other weights make it useless
    write_json(runs[0] / "predictions.json.gz", {**kept[0], "host_ap": 0.123})
    assert by_name(from_runs(runs, device="cpu"))["none"]["runs"][0]["metrics"]["host_ap"] == 0.123
    write_json(runs[0] / "predictions.json.gz", {**kept[0], "host_ap": 0.123, "weights_sha256": "0"})
    assert by_name(from_runs(runs, device="cpu"))["none"]["runs"][0]["metrics"]["host_ap"] != 0.123


@pytest.fixture
def with_test(runs: list[Path], tiny_data: Path, tmp_path: Path) -> list[Path]:
    """Copies of the runs on data that has a test split too, its training images."""
    content = yaml.safe_load(tiny_data.read_text(encoding="utf-8"))
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({**content, "path": str(tiny_data.parent), "test": content["train"]}))
    copies = []
    for run in runs:
        copies.append(Path(shutil.copytree(run, tmp_path / "runs" / run.name)))
        args = yaml.safe_load((run / "args.yaml").read_text(encoding="utf-8"))
        (copies[-1] / "args.yaml").write_text(yaml.safe_dump({**args, "data": str(data)}), encoding="utf-8")
        (copies[-1] / "predictions.json.gz").unlink(missing_ok=True)
    return copies


def test_runs_are_judged_on_another_split_beside_the_first(with_test: list[Path], tmp_path: Path) -> None:
    first = report_runs(with_test, tmp_path / "val", device="cpu")[0]
    kept = [(run / "predictions.json.gz").read_bytes() for run in with_test]
    out, other = tmp_path / "test", [run / "predictions-test.json.gz" for run in with_test]
    assert cli.main(["report", *map(str, with_test), f"out={out}", "split=test", "device=cpu"]) == 0
    one, two = (json.loads(path.read_text(encoding="utf-8")) for path in (first, out / "results.json"))
    assert (one["data"]["split"], two["data"]["split"]) == ("val", "test")
    assert two["data"]["images"] > one["data"]["images"] and "split=test" in two["command"]
    arm, teacher = two["arms"][1], two["teacher"]
    assert arm["runs"][0]["metrics"]["images"] == teacher["metrics"]["images"] == two["data"]["images"]
    assert arm["versus"]["none"]["source"] == "images"  # over those of the split
    assert [(run / "predictions.json.gz").read_bytes() for run in with_test] == kept
    made = [read_json(path) for path in other]
    assert all(found["split"] == "test" for found in made)
    write_json(other[0], {**made[0], "host_ap": 0.125})  # read, not made again
    again = from_runs(with_test, split="test", device="cpu")
    assert again["arms"][0]["runs"][0]["metrics"]["host_ap"] == 0.125
    tally = find_examples(out, two).tallies[0]
    assert tally.both + tally.gained + tally.lost + tally.neither == two["data"]["objects"]
    with pytest.raises(UserError, match="split=other is not in data="):
        from_runs(with_test, split="other")


def test_a_comparison_is_judged_on_another_split_elsewhere(
    with_test: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "comparison"
    for run, arm in zip(with_test, ("none", "pcd")):
        shutil.copytree(run, root / "seed0" / arm)
        write_json(root / "seed0" / arm / "run.json", {"schema": 1})
    plan = {"id": "x", "split": "val"}
    write_json(root / "plan.json", plan)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", str(root), "split=test", "device=cpu"]) == 0
    found = json.loads(Path("runs/report/results.json").read_text(encoding="utf-8"))
    assert found["data"]["split"] == "test" and [arm["name"] for arm in found["arms"]] == ["none", "pcd"]
    assert not (root / "results.json").exists()
    with pytest.raises(UserError, match=r"holds a comparison on split=val; choose another folder"):
        report_runs([root], root, split="test", device="cpu")
    asked: list[Path] = []
    monkeypatch.setattr("yolokd.results.from_compare", lambda folder: asked.append(folder) or {})
    assert from_runs([root], split="val") == from_runs([root]) == {} and asked == [root.resolve()] * 2


def test_detections_of_other_images_are_made_again(runs: list[Path], tmp_path: Path) -> None:
    """Detections are kept by the image's number in the list, which another image moves."""
    first = by_name(from_runs(runs, device="cpu"))["pcd"]["runs"][0]["metrics"]
    args = yaml.safe_load((runs[0] / "args.yaml").read_text(encoding="utf-8"))
    folder = Path(args["data"]).parent
    image = sorted((folder / "images/val").iterdir())[-1]
    added = folder / "images/val" / f"0{image.name}"
    try:
        shutil.copy(image, added)
        found = by_name(from_runs(runs, device="cpu"))["pcd"]["runs"][0]["metrics"]
        assert found["images"] == first["images"] + 1
        made = read_json(runs[1] / "predictions.json.gz")
        (runs[1] / "predictions.json.gz").unlink()
        assert by_name(from_runs(runs, device="cpu"))["pcd"]["runs"][0]["metrics"] == found
        assert read_json(runs[1] / "predictions.json.gz") == made
    finally:
        added.unlink()
        for cache in folder.rglob("*.cache"):
            cache.unlink()


def test_a_recipe_and_another_way_to_name_the_data_are_no_difference(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "recipe"
    shutil.copytree(runs[1], other)
    args = yaml.safe_load((other / "args.yaml").read_text(encoding="utf-8"))
    data = Path(args["data"])
    monkeypatch.chdir(data.parent)
    (other / "args.yaml").write_text(yaml.safe_dump({**args, "cfg": "pcd.yaml", "data": data.name}), encoding="utf-8")
    results = from_runs([runs[0], other], device="cpu")
    assert by_name(results)["pcd"]["versus"]["none"]["n"] == 1
    assert not any("no pairs" in note for note in results["checks"]["notes"])


def test_runs_with_other_arguments_are_no_pair(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "longer"
    shutil.copytree(runs[0], other)
    args = yaml.safe_load((other / "args.yaml").read_text(encoding="utf-8"))
    (other / "args.yaml").write_text(yaml.safe_dump({**args, "lr0": 0.5}), encoding="utf-8")
    results = from_runs([other, runs[1]], device="cpu")
    assert by_name(results)["pcd"]["versus"]["none"]["n"] == 0
    assert "none and pcd are no pairs: they differ in lr0 (0.5, 0.01)" in results["checks"]["notes"]
    arms = by_name(from_runs([other, *runs], device="cpu"))
    assert sorted(arms) == ["none", "none #2", "pcd"] and arms["pcd"]["versus"]["none"]["n"] == 1
    (other / "args.yaml").write_text(yaml.safe_dump({**args, "lr0": 0.5, "model": "other.yaml"}), encoding="utf-8")
    notes = from_runs([*runs, other], device="cpu")["checks"]["notes"]
    assert f"none and none #2 differ in lr0 (0.01, 0.5), model ({args['model']}, other.yaml)" in notes
    assert f"the runs have model= {args['model']} and other.yaml; only those of equal ones are pairs" in notes
    (other / "args.yaml").write_text(yaml.safe_dump({**args, "epochs": 2}), encoding="utf-8")
    with open(other / "results.csv", "a", encoding="utf-8") as file:
        file.write((runs[0] / "results.csv").read_text(encoding="utf-8").splitlines()[-1] + "\n")
    results = from_runs([other, *runs], device="cpu")
    assert results["checks"]["same_epochs"] is True and results["budget"]["epochs"] is None
    assert "the runs have epochs= 2 and 1; only those of equal ones are pairs" in results["checks"]["notes"]
    (other / "args.yaml").write_text(yaml.safe_dump({**args, "data": "elsewhere.yaml"}), encoding="utf-8")
    with pytest.raises(UserError, match="different data"):
        from_runs([other, *runs])


def test_a_repeated_run_is_paired_with_the_repeated_plain_run(runs: list[Path], tmp_path: Path) -> None:
    first = by_name(from_runs(runs, device="cpu"))
    for number, run in enumerate(runs):
        shutil.copytree(run, tmp_path / str(number))
    again = [tmp_path / str(number) for number in range(len(runs))]
    kept = read_json(again[0] / "predictions.json.gz")
    write_json(again[0] / "predictions.json.gz", {**kept, "detections": []})
    results = from_runs([*runs, *again], device="cpu")
    assert {"none #2 repeats seeds of none", "pcd #2 repeats seeds of pcd"} <= {*results["checks"]["notes"]}
    arms = by_name(results)
    assert sorted(arms) == ["none", "none #2", "pcd", "pcd #2"] and arms["none #2"]["mean"]["ap"] == 0
    assert arms["pcd #2"]["versus"]["none"]["n"] == 1 and "repeat" not in arms["pcd"]["runs"][0]
    assert arms["pcd #2"]["versus"]["none"]["difference"] == pytest.approx(arms["pcd #2"]["mean"]["ap"])
    assert arms["pcd"]["versus"]["none"]["difference"] == first["pcd"]["versus"]["none"]["difference"]


def test_what_tells_arms_of_one_method_apart() -> None:
    def arm(name: str, pairing: str = "{}", **arguments: Any) -> dict[str, Any]:
        return {"name": name, "method": name.split()[0], "arguments": arguments, "runs": [{"pairing": pairing}]}

    arms = [
        arm("none"),
        arm("ultralytics", teacher="a.pt"),
        arm("ultralytics #2", teacher="b.pt"),
        arm("pcd", pcd_gain=1),
        arm("pcd #2", pcd_gain=2),
        arm("pcd #3", pcd_gain=2),
        arm("pcd #4", '{"lr0": 1}', pcd_gain=2),
    ]
    assert _like_named(arms) == [
        "ultralytics and ultralytics #2 differ in teacher (a.pt, b.pt)",
        "pcd and pcd #2 differ in pcd_gain (1, 2)",
        "pcd #3 repeats seeds of pcd #2",
        "pcd and pcd #4 differ in lr0 (None, 1), pcd_gain (1, 2)",
    ]


def test_a_run_that_was_cut_off_is_refused(runs: list[Path], tmp_path: Path) -> None:
    """Its last checkpoint still holds what it would go on with; and a results.csv without a row says nothing."""
    run = Path(shutil.copytree(runs[1], tmp_path / "run"))
    args = YAML.load(run / "args.yaml")
    YAML.save(run / "args.yaml", {**args, "epochs": 3})
    assert from_runs([run], device="cpu")["arms"][0]["runs"][0]["epochs_done"] == 1  # ended early by itself
    content = torch.load(run / "weights/last.pt", weights_only=False)
    torch.save({**content, "optimizer": {"state": {}}, "epoch": 0}, run / "weights/last.pt")
    with pytest.raises(UserError, match=r"unfinished: 1 of 3 epochs; go on with yolokd train resume model=.*last\.pt"):
        from_runs([run], device="cpu")
    spaced = Path(shutil.copytree(run, tmp_path / "my run"))
    with pytest.raises(UserError, match=rf"train resume 'model={spaced}/weights/last\.pt', or"):
        from_runs([spaced], device="cpu")
    plain = {key: value for key, value in args.items() if key not in config.DEFAULTS}
    YAML.save(run / "args.yaml", {**plain, "epochs": 3})
    with pytest.raises(UserError, match="go on with yolo train resume model="):
        from_runs([run], device="cpu")
    (run / "results.csv").write_text("")
    with pytest.raises(UserError, match=r"its results\.csv holds no epoch"):
        from_runs([run], device="cpu")


def test_folders_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"args\.yaml is missing"):
        from_runs([tmp_path])
    (tmp_path / "args.yaml").write_text("data: x.yaml\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"best\.pt is missing"):
        from_runs([tmp_path])


def test_the_runs_of_a_comparison_are_found_in_its_folder(tmp_path: Path) -> None:
    root = comparison(tmp_path, {"none": [0.5, 0.5], "pcd": [0.6, None]})
    assert _expand(root) == [root / "seed0" / "none", root / "seed0" / "pcd", root / "seed1" / "none"]
    assert _expand(root / "seed0") == [root / "seed0"]


def test_runs_of_different_teachers_have_none_in_the_report() -> None:
    runs = [{"method": method, "teacher": teacher, "imgsz": 64} for method, teacher in
            (("none", "x.pt"), ("pcd", "a.pt"), ("dfmsd", ["c.pt", "b.pt"]))]  # fmt: skip
    found, notes = _teacher(runs, {}, "val", None)
    assert found["path"] is None and notes == ["the runs have different teachers: a.pt, b.pt"]
    assert _teacher(runs[:1], {}, "val", None)[1] == ["the runs name no teacher"]


def test_a_teacher_is_judged_by_what_it_saw_and_meant(
    tiny_data: Path, tiny_teacher: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = coco_ground_truth(tiny_data)
    args = {"method": "pcd", "teacher": str(tiny_teacher("yolov8n")), "imgsz": 64}
    changed = {**args, "teacher_imgsz": 96, "kd_class_map": {"circle": "square"}, "teacher_channels": [2, 1, 0]}
    ways: list[Any] = []
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *args, **kwargs: ways.append(kwargs) or evaluate(*args, **kwargs)
    )
    found, notes = _teacher([changed], truth, "val", "cpu")
    way = {"imgsz": 96, "class_map": {"circle": "square"}, "channels": [2, 1, 0]}
    assert notes == [] and way.items() <= ways[0].items()
    assert found["metrics"] == evaluate(args["teacher"], tiny_data, ground_truth=truth, device="cpu", **way).to_dict()
    assert "other sizes" in _teacher([changed, args], truth, "val", "cpu")[1][0]


def test_a_teacher_that_knows_none_of_the_datas_classes_is_told(tmp_path: Path, tiny_data: Path) -> None:
    other = save_model(tiny_model(names=("dog", "cat", "cow")), tmp_path / "animals.pt")
    args = {"method": "dfmsd", "teacher": str(other), "imgsz": 64}
    found, notes = _teacher([args], coco_ground_truth(tiny_data), "val", "cpu")
    assert found["metrics"] is None and found["error"].startswith("none of the model's 3 classes") and notes == []
    (tmp_path / "root").mkdir()
    root = comparison(tmp_path / "root", {"none": [0.5]})
    record = read_json(root / "teacher/run.json")
    write_json(root / "teacher/run.json", {**record, "metrics": None, "error": found["error"]})
    notes = from_compare(root)["checks"]["notes"]
    assert any(note.startswith("the teacher could not be evaluated: none of the model's 3") for note in notes)


def test_what_is_no_number_in_a_results_csv_is_none(tmp_path: Path) -> None:
    assert [_number(text) for text in ("0.5", " 2", "nan", "inf", "", "x", None)] == [0.5, 2.0, *[None] * 5]
