"""Files are not trusted: weights run no code, YAML makes no objects, names make no markup, and nothing is sent."""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.nn.tasks import (
    DetectionModel,
    OBBModel,
    PoseModel,
    RTDETRDetectionModel,
    SegmentationModel,
    WorldModel,
    YOLOEModel,
)

from tests.tiny import IMGSZ, overrides_for, save_model, tiny_model, train
from yolokd import DistillationTrainer, cli, report, trust
from yolokd.errors import UserError
from yolokd.saving.state import find_state, read_state, write_state
from yolokd.teachers.teacher import load_teacher

pytestmark = pytest.mark.usefixtures("own_start")

ROOT = Path(__file__).parents[1]
File = Callable[[str], Path]
QUICK = "epochs=1 imgsz=64 batch=4 nbs=4 workers=0 device=cpu plots=False optimizer=SGD kd_preflight=False".split()


# A file that runs something when it is opened -------------------------------------------------------------------------
class System:
    """Pickles as a call of the shell."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


class Evaluated(System):
    """Pickles as an expression that Python evaluates."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w')",)


class Opened(System):
    """Pickles as a file that is opened for writing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def archive(value: Any, path: Path) -> None:
    torch.save(value, path)


def legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def plain(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, 2))


def newest(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, 5))


FORMS = {"archive": archive, "legacy": legacy, "plain": plain, "newest": newest}
PAYLOADS = {"system": System, "eval": Evaluated, "open": Opened}


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """The file that a planted pickle makes when it runs; it is not there at the end of the test."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists(), "the planted pickle ran"


@pytest.fixture
def plant(marker: Path) -> Callable[..., Path]:
    """Return a function that writes a checkpoint with a planted pickle."""

    def write(path: Path, form: str = "archive", payload: str = "system") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        model = tiny_model()
        model.extra = PAYLOADS[payload](marker)  # deep within what is otherwise a good model
        value = {"epoch": 0, "model": model, "ema": None, "optimizer": {"state": {}}, "train_args": {}}
        FORMS[form](value, path)
        return path

    return write


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("form", FORMS)
def test_the_planted_pickle_would_run(form: str, payload: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    FORMS[form]({"model": PAYLOADS[payload](marker)}, tmp_path / "x.pt")
    with contextlib.suppress(RuntimeError):  # torch finds no number of its own in a plain pickle, when it has run
        torch.load(tmp_path / "x.pt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("form", FORMS)
def test_a_planted_pickle_is_refused_in_every_form(form: str, payload: str, plant: Any, tmp_path: Path) -> None:
    file = plant(tmp_path / "evil.pt", form, payload)
    with pytest.raises(UserError, match=r"evil\.pt' is refused by the restricted loader.*kd_safe_load=False"):
        load_teacher(file)
    name = {"system": "system", "eval": "eval", "open": "open"}[payload]
    assert any(found.endswith(f".{name}") for found in trust.imports(file)[0])


# The command line -----------------------------------------------------------------------------------------------------
def one_line(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """Run a command, and return the one line that it says on standard error."""
    assert cli.main(list(words)) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("yolokd:")]
    assert len(lines) == 1, lines
    return lines[0]


COMMANDS = {
    "student": "train model=EVIL teacher=TEACHER data=DATA",
    "student alone": "train model=EVIL data=DATA method=none",
    "teacher": "train model=STUDENT teacher=EVIL data=DATA",
    "second teacher": "train model=STUDENT teacher=[TEACHER,EVIL] kd_teachers=together data=DATA",
    "teacher of the built-in": "train model=STUDENT teacher=EVIL data=DATA method=ultralytics",
    "pretrained": "train model=STUDENT pretrained=EVIL teacher=TEACHER data=DATA",
    "pretrained for an architecture": "train model=yolov8n.yaml pretrained=EVIL teacher=TEACHER data=DATA",
    "last.pt": "train resume model=EVIL",
    "last.pt as resume=": "train resume=EVIL",
    "last.pt with another teacher": "train resume=EVIL teacher=TEACHER",
    "fine-tuned teacher": "train model=STUDENT teacher=EVIL teacher_epochs=1 data=DATA",
    "compare, student": "compare model=EVIL teacher=TEACHER data=DATA",
    "compare, teacher": "compare model=STUDENT teacher=EVIL data=DATA",
    "inspect, student": "inspect model=EVIL teacher=TEACHER source=IMAGE",
    "inspect, teacher": "inspect model=STUDENT teacher=EVIL source=IMAGE",
    "profile, student": "profile model=EVIL teacher=TEACHER data=DATA",
    "profile, teacher": "profile model=STUDENT teacher=EVIL",
    "val": "val model=EVIL data=DATA",
    "val side by side": "val model=STUDENT teacher=EVIL data=DATA imgsz=64",
    "val, baseline": "val model=STUDENT baseline=EVIL data=DATA imgsz=64",
    "predict": "predict model=EVIL source=IMAGE",
    "track": "track model=EVIL source=IMAGE",
    "benchmark": "benchmark model=EVIL data=DATA",
    "export": "export model=EVIL format=onnx",
}


@pytest.mark.parametrize("form", ["archive", pytest.param("legacy", marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=list(COMMANDS))
def test_no_command_runs_it(
    command: str,
    form: str,
    plant: Any,
    tmp_path: Path,
    tiny_data: Path,
    tiny_student: File,
    tiny_teacher: File,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = plant(tmp_path / "run" / "weights" / "evil.pt", form)
    files = {"EVIL": evil, "TEACHER": tiny_teacher("yolov8s"), "STUDENT": tiny_student("yolov8n"), "DATA": tiny_data}
    files["IMAGE"] = next((tiny_data.parent / "images" / "val").iterdir())
    words = [re.sub("|".join(files), lambda m: str(files[m[0]]), word) for word in command.split()]
    quick = [*QUICK, f"project={tmp_path / 'runs'}"] if words[0] in {"train", "compare"} else []
    said = one_line(capsys, *words, *quick)
    assert "refused by the restricted loader" in said and ".system" in said and "kd_safe_load=False" in said
    assert str(evil) in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["sam_b.pt", "yolo_nas_s.pt", "FastSAM-s.pt", "rtdetr-l.pt"])
def test_the_other_loaders_of_the_host_run_nothing_either(
    name: str, plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plant(tmp_path / name)
    assert "refused by the restricted loader" in one_line(capsys, "predict", f"model={name}", "source=x.jpg")


@pytest.mark.parametrize(
    "activation", ["__import__('os').system('touch MARKER')", "open('MARKER', 'w')", "[].append(1)"]
)
def test_an_architecture_runs_nothing(
    activation: str, marker: Path, tmp_path: Path, tiny_data: Path, tiny_teacher: File, capsys: Any
) -> None:
    content = {**tasks.yaml_model_load("yolov8n.yaml"), "activation": activation.replace("MARKER", str(marker))}
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    words = [f"model={tmp_path / 'evil.yaml'}", f"teacher={tiny_teacher('yolov8s')}", f"data={tiny_data}"]
    assert "evil.yaml is refused by the restricted loader" in one_line(capsys, "train", *words, *QUICK)
    with pytest.raises(UserError, match="refused by the restricted loader"):
        trainer = DistillationTrainer(
            overrides=overrides_for(tmp_path, tiny_data, model=str(tmp_path / "evil.yaml"), method="none")
        )
        trainer.train()


def test_the_switch_is_read_as_a_bool(capsys: pytest.CaptureFixture[str], tiny_student: File) -> None:
    for mode in ("train", "val", "export", "predict", "inspect", "profile", "report"):
        said = one_line(
            capsys, mode, *([] if mode == "report" else [f"model={tiny_student('yolov8n')}"]), "kd_safe_load=2"
        )
        assert "kd_safe_load=2 is not valid" in said, mode


# The trainer ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["model", "teacher", "pretrained", "resume"])
def test_the_trainer_by_itself_runs_nothing(
    key: str, plant: Any, tmp_path: Path, tiny_data: Path, tiny_teacher: File
) -> None:
    evil = str(plant(tmp_path / "run" / "weights" / "last.pt"))
    given = {"model": "yolov8n.yaml", "teacher": str(tiny_teacher("yolov8s")), "method": "pkd", key: evil}
    with pytest.raises(UserError, match="refused by the restricted loader"):
        train(tmp_path / "project", tiny_data, **given)
    assert not (tmp_path / "project" / "run").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The folder of a distillation run that was stopped after the first of two epochs; its teacher was an object."""
    folder = tmp_path_factory.mktemp("stopped")

    class Stop(Exception):
        pass

    def stop(_: Any) -> None:
        raise Stop

    trainer = DistillationTrainer(
        overrides=overrides_for(folder, tiny_data, teacher=tiny_model("yolov8s", seed=2), method="pkd")
    )
    trainer.add_callback("on_model_save", stop)
    with pytest.raises(Stop):
        trainer.train()
    return folder / "run"


@pytest.fixture
def stopped(run: Path, tmp_path: Path) -> Path:
    """A copy of that run which goes on in its own folder."""
    folder = tmp_path / "copy"
    shutil.copytree(run, folder)
    for name in ("last.pt", "best.pt"):
        path = folder / "weights" / name
        content = torch.load(path, weights_only=False)
        kept = {"save_dir": str(folder), "teacher": str(folder / "teacher.pt")}
        content["train_args"].update(kept)
        content["ema"].args = {**dict(content["ema"].args), **kept} if hasattr(content["ema"], "args") else kept
        torch.save(content, path)
    return folder


def test_what_our_runs_write_opens_under_the_restricted_loader(run: Path) -> None:
    for path in ("weights/last.pt", "weights/best.pt", "teacher.pt"):
        with trust.loading(True):
            assert isinstance(tasks.load_checkpoint(run / path)[0], DetectionModel)
    assert read_state(run / "weights" / "kd_state.pt") is not None


def test_a_stopped_run_goes_on(stopped: Path) -> None:
    assert cli.main(["train", "resume", f"model={stopped / 'weights' / 'last.pt'}"]) == 0
    assert len((stopped / "results.csv").read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.parametrize("form", ["archive", *(pytest.param(f, marks=pytest.mark.slow) for f in list(FORMS)[1:])])
@pytest.mark.parametrize("name", ["weights/last.pt", "weights/kd_state.pt", "weights/best.pt", "teacher.pt"])
def test_a_run_folder_with_a_planted_file_is_not_resumed(
    name: str, form: str, plant: Any, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(stopped / name, form)
    rows = (stopped / "results.csv").read_text(encoding="utf-8")
    said = one_line(capsys, "train", "resume", f"model={stopped / 'weights' / 'last.pt'}")
    assert Path(name).name in said and ".system" in said
    assert (stopped / "results.csv").read_text(encoding="utf-8") == rows


def test_a_checkpoint_cannot_vouch_for_itself(stopped: Path, tiny_data: Path) -> None:
    last = stopped / "weights" / "last.pt"
    content = torch.load(last, weights_only=False)
    content["train_args"][trust.KEY] = False
    torch.save(content, last)
    resumed = overrides_for(stopped.parent, tiny_data, model=str(last), resume=str(last))
    assert DistillationTrainer(overrides=resumed).args.kd_safe_load is True
    assert DistillationTrainer(overrides={**resumed, trust.KEY: False}).args.kd_safe_load is False


def test_the_state_of_another_kind_is_refused_and_a_damaged_one_is_not_there(plant: Any, tmp_path: Path) -> None:
    path = plant(tmp_path / "kd_state.pt")
    with pytest.raises(UserError, match=r"kd_state\.pt holds more than tensors and numbers .*system"):
        read_state(path)
    with pytest.raises(UserError, match="take it away"):
        find_state(path, 0, {})
    write_state(path, 0, {"a": torch.ones(2)}, {"teachers": [], "methods": []})  # a new run in the same folder
    found = read_state(path)
    assert found is not None and torch.equal(found["epochs"][0]["a"], torch.ones(2))
    path.write_bytes(path.read_bytes()[:100])
    assert read_state(path) is None


# Good files -----------------------------------------------------------------------------------------------------------
FAMILIES: dict[str, Any] = {
    **dict.fromkeys(("yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolov8n-p6"), DetectionModel),
    **{"yolov8s-worldv2": WorldModel, "yoloe-11s": YOLOEModel, "rtdetr-resnet50": RTDETRDetectionModel},
    **{"yolo11n-seg": SegmentationModel, "yolo11n-pose": PoseModel, "yolov8n-obb": OBBModel},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_every_kind_open_under_the_restricted_loader(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family](f"{family}.yaml", verbose=False)
    path = save_model(model.half(), tmp_path / "student.pt")
    with trust.loading(True):
        opened = tasks.load_checkpoint(path)[0]
    assert type(opened) is type(model)
    assert all(torch.equal(a, b.half()) for a, b in zip(model.parameters(), opened.parameters()))


def test_a_pruned_model_opens_under_the_restricted_loader(tmp_path: Path) -> None:
    model = tiny_model()
    model.model[0].conv = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
    model.model[0].bn = nn.BatchNorm2d(8)
    model.model[1].conv = nn.Conv2d(8, 32, 3, 2, 1, bias=False)
    assert load_teacher(save_model(model, tmp_path / "pruned.pt"))[0].model[0].conv.out_channels == 8


class Doubled(nn.Conv2d):
    """A layer of a user's own."""


@pytest.fixture
def own_layer(tmp_path: Path) -> Path:
    """Weights that need a class of the user's."""
    model = tiny_model()
    model.model[0].conv.__class__ = Doubled
    return save_model(model, tmp_path / "own.pt")


def test_weights_that_need_more_are_opened_where_they_are_trusted(
    own_layer: Path, tmp_path: Path, tiny_data: Path, tiny_student: File, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", f"model={tiny_student('yolov8n')}", f"teacher={own_layer}", f"data={tiny_data}", *QUICK]
    words += [f"project={tmp_path / 'runs'}", "name=kd", "method=pkd"]
    said = one_line(capsys, *words)
    assert "needs tests.test_trust.Doubled; kd_safe_load=False opens it" in said
    assert cli.main([*words, "kd_safe_load=False"]) == 0
    assert (tmp_path / "runs" / "kd" / "weights" / "best.pt").exists()
    data = f"data={tiny_data}"
    for mode in (
        ["val", data, "imgsz=64"],
        ["val", f"teacher={own_layer}", data, "imgsz=64"],
        ["export", "format=onnx"],
    ):
        assert "Doubled" in one_line(capsys, mode[0], f"model={own_layer}", *mode[1:])
        assert cli.main([mode[0], f"model={own_layer}", *mode[1:], "kd_safe_load=False", "device=cpu"]) == 0, mode


def test_a_run_of_a_students_own_classes_ends_well(own_layer: Path, tmp_path: Path, tiny_data: Path) -> None:
    """The user's `YOLO(file)` trusted the file; the run's own checkpoints are then not refused at its end."""
    model = YOLO(own_layer)
    settings = overrides_for(tmp_path / "runs", tiny_data, epochs=1, method="none")
    model.train(trainer=DistillationTrainer, **{k: v for k, v in settings.items() if k != "model"})
    assert (tmp_path / "runs" / "run" / "weights" / "best.pt").exists()


def test_the_switches_are_put_back(plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(trust.FORCE_NOT, "1")
    monkeypatch.delenv(trust.FORCE, raising=False)
    monkeypatch.setattr(tasks, "SAFE_LOAD", False)
    evil = plant(tmp_path / "evil.pt")
    for _ in range(2):
        with pytest.raises(UserError), trust.loading(True, what="x", file=evil), trust.only_weights():
            assert tasks.SAFE_LOAD and os.environ[trust.FORCE] == "1" and trust.FORCE_NOT not in os.environ
            with trust.loading():
                torch.load(evil, weights_only=False)
        assert tasks.SAFE_LOAD is False and trust.FORCE not in os.environ and os.environ[trust.FORCE_NOT] == "1"
    with trust.loading(False), trust.loading():
        assert tasks.SAFE_LOAD is False  # what is within follows what is around it
    with trust.loading(True), trust.loading(False):
        assert tasks.SAFE_LOAD is True  # and does not loosen it
    monkeypatch.setattr(tasks, "SAFE_LOAD", True)
    with trust.loading(False):
        assert tasks.SAFE_LOAD is True  # nor what the user's environment asks for


def test_without_a_restricted_loader_it_is_said_once(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_warned", [])
    monkeypatch.setattr(tasks._SafeLoad, "SUPPORTED", False)
    for _ in range(2):
        with trust.loading(True):
            pass
    assert len([line for line in said if "no restricted loader" in line]) == 1


@pytest.mark.parametrize("size", [0, 1, 3, 60, 400, 4000])
@pytest.mark.parametrize("form", ["archive", "legacy"])
def test_a_damaged_file_is_called_damaged_and_not_refused(form: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    FORMS[form]({"model": tiny_model(), "epoch": -1}, path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError) as caught:
        load_teacher(path)
    assert "refused" not in str(caught.value)


# YAML -----------------------------------------------------------------------------------------------------------------
def tagged(marker: Path) -> str:
    return f"!!python/object/apply:os.system [\"touch '{marker}'\"]\n"


def test_the_planted_yaml_would_run(tmp_path: Path) -> None:
    yaml.unsafe_load(tagged(tmp_path / "ran"))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("words", [
    "train model=STUDENT teacher=TEACHER data=EVIL",
    "train model=EVIL teacher=TEACHER data=DATA",
    "train model=STUDENT teacher=TEACHER data=DATA cfg=EVIL",
    "train model=STUDENT teacher=TEACHER data=DATA kd_class_map=EVIL",
    "train model=STUDENT teacher=TEACHER data=DATA kd_unlabeled=EVIL",
    "val model=STUDENT data=EVIL",
    "val model=STUDENT teacher=TEACHER data=EVIL",
    "compare model=STUDENT teacher=TEACHER data=EVIL",
    "compare model=EVIL teacher=TEACHER data=DATA",
    "profile model=STUDENT teacher=TEACHER data=EVIL",
    "inspect model=RUN/weights/best.pt teacher=TEACHER source=IMAGE",
    "report RUN",
])  # fmt: skip
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "value"])
def test_yaml_makes_no_objects(
    words: str,
    whole: bool,
    marker: Path,
    tmp_path: Path,
    tiny_data: Path,
    tiny_student: File,
    tiny_teacher: File,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = tmp_path / "evil.yaml"
    text = tagged(marker)
    evil.write_text(text if whole else f"{tiny_data.read_text(encoding='utf-8')}\nextra: {text}", encoding="utf-8")
    run = tmp_path / "run"
    (run / "weights").mkdir(parents=True)
    shutil.copy(tiny_student("yolov8n"), run / "weights" / "best.pt")
    (run / "args.yaml").write_text(text if whole else f"data: {tiny_data}\nmethod: pkd\nx: {text}", encoding="utf-8")
    files = {"EVIL": evil, "TEACHER": tiny_teacher("yolov8s"), "STUDENT": tiny_student("yolov8n"), "DATA": tiny_data}
    files |= {"IMAGE": next((tiny_data.parent / "images" / "val").iterdir()), "RUN": run}
    filled = [re.sub("|".join(files), lambda m: str(files[m[0]]), word) for word in words.split()]
    one_line(capsys, *filled, *(QUICK if filled[0] in {"train", "compare"} else []))


# Reports --------------------------------------------------------------------------------------------------------------
SCRIPT = "<script>alert(1)</script>"
BREAK = '"><img onerror=alert(1) src=x>'
CELL = "a|b\n| c | d |\n\n# e [f](http://g.h) `i` *j* $k$"


class Markup(HTMLParser):
    """The elements of a page that are not the report's own doing."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            if name.startswith("on") or (name in {"src", "href"} and not str(value).startswith(("data:image/", "#"))):
                self.found.append(f"{tag} {name}={value}")
            self.texts.append(str(value))
        if tag in {"iframe", "object", "embed", "form", "base", "link", "foreignobject"}:
            self.found.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def check_page(text: str, *names: str) -> None:
    """Check that a page has no markup but its own, and that it shows names as they are."""
    page = Markup(text)
    assert page.found == [] and page.scripts == 2
    for name in names:
        assert any(name in shown for shown in page.texts), name


def check_markdown(text: str) -> None:
    """Check that Markdown has no HTML outside of code and that its tables are even."""
    lines = [line for line in text.splitlines() if not line.startswith("    ")]
    assert not re.search(r"<[a-zA-Z/!]", "\n".join(lines))
    assert not re.search(r"(?<!\\)\]\(", "\n".join(lines))  # no link that was not meant
    before = 0
    for line in lines:
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert cells == before or not cells or not before, line
        before = cells


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A folder with two runs, of which paths, class names, files and labels are written against the report."""
    folder = tmp_path_factory.mktemp("hostile") / f"runs {SCRIPT.replace('/', '')}{BREAK}".replace("\n", " ")
    data = folder / "data <b>"
    shutil.copytree(tiny_data.parent, data)
    for number, image in enumerate(sorted((data / "images" / "val").iterdir())):
        name = f"{number} {BREAK} {SCRIPT.replace('/', '')} a|b`c"
        label = data / "labels" / "val" / f"{image.stem}.txt"
        label.rename(label.with_name(f"{name}.txt"))
        image.rename(image.with_name(f"{name}{image.suffix}"))
    for cache in data.rglob("*.cache"):
        cache.unlink()
    description = {"path": str(data), "train": "images/train", "val": "images/val"}
    names = [SCRIPT, BREAK, CELL]
    (data / "data.yaml").write_text(yaml.safe_dump({**description, "names": names}), encoding="utf-8")
    for method, seed in (("none", 1), ("pkd", 2)):
        run = folder / f"{method} {BREAK}"
        weights = run / "weights" / "best.pt"
        save_model(tiny_model(names=names, seed=seed), weights)
        args = {"data": str(data / "data.yaml"), "imgsz": IMGSZ, "seed": 0, "method": method, "epochs": 1, "batch": 4}
        args |= {"model": f"student{SCRIPT}.pt", "teacher": None if method == "none" else f"teacher{BREAK}.pt"}
        (run / "args.yaml").write_text(yaml.safe_dump(args), encoding="utf-8")
        column = f"kd/pkd{'' if method == 'none' else SCRIPT}"
        (run / "results.csv").write_text(f"epoch,time,metrics/mAP50-95(B),{column}\n1,2,0.1,0.5\n", encoding="utf-8")
    return folder


def test_a_report_of_hostile_names_holds_no_markup_of_theirs(hostile: Path, tmp_path: Path) -> None:
    runs = [str(path) for path in sorted(hostile.iterdir()) if (path / "args.yaml").exists()]
    assert cli.main(["report", *runs, f"out={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    check_page(text, SCRIPT, BREAK, "[f](http://g.h)", f"student{SCRIPT}.pt", f"teacher{BREAK}.pt", "data <b>")
    assert "alert(1)" in text
    check_markdown((tmp_path / "out" / "report.md").read_text(encoding="utf-8"))
    content = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert content["data"]["names"] == [SCRIPT, BREAK, CELL]  # data stay as they are; what shows them escapes


def test_example_images_escape_file_and_class_names(hostile: Path, tmp_path: Path) -> None:
    runs = [str(path) for path in sorted(hostile.iterdir()) if (path / "args.yaml").exists()]
    assert cli.main(["report", *runs, f"out={tmp_path / 'out'}"]) == 0
    truth = json.loads((tmp_path / "out" / "ground_truth.json").read_text(encoding="utf-8"))
    found = [
        {**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 0.9} for a in truth["annotations"]
    ]
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    for arm in results["arms"]:
        arm["runs"][0]["folder"] = arm["name"]
        (tmp_path / "out" / arm["name"]).mkdir(parents=True)
        with gzip.open(tmp_path / "out" / arm["name"] / "predictions.json.gz", "wt") as file:
            json.dump({"detections": [] if arm["name"] == "none" else found}, file)
    (tmp_path / "out" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    report.write_report(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    image = Path(truth["images"][0]["file_name"]).name
    assert text.count('<figure><img src="data:image/jpeg') >= 2
    check_page(text, image, SCRIPT, BREAK)


def test_pictures_of_inspection_show_names_with_dollars(tmp_path: Path, tiny_data: Path) -> None:
    names = ["$\\frac{$", SCRIPT, "$x^{$ | \n%s {0}"]
    student = save_model(tiny_model(names=names, seed=1), tmp_path / "$student$ <b>.pt")
    teacher = save_model(tiny_model("yolov8s", names=names, seed=2), tmp_path / "$\\teacher$.pt")
    source = tmp_path / f"$\\image{BREAK.replace('/', '')}.png"
    ok, buffer = cv2.imencode(".png", np.full((64, 64, 3), 90, dtype=np.uint8))
    assert ok
    source.write_bytes(buffer.tobytes())
    words = [f"model={student}", f"teacher={teacher}", f"source={source}", "method=dfmsd+pcd", "pcd_stages=1"]
    assert cli.main(["inspect", *words, "imgsz=64", "conf=0.01", "device=cpu", f"project={tmp_path / 'out'}"]) == 0
    pictures = list((tmp_path / "out").rglob("*.png"))
    assert len(pictures) == 3 and all(path.parent.parent == tmp_path / "out" for path in pictures)


def test_a_report_of_runs_whose_data_is_gone_says_so(hostile: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(hostile, tmp_path / "moved")
    runs = []
    for path in sorted((tmp_path / "moved").iterdir()):
        if (path / "args.yaml").exists():
            args = yaml.safe_load((path / "args.yaml").read_text(encoding="utf-8"))
            (path / "args.yaml").write_text(yaml.safe_dump({**args, "data": "/gone/data.yaml"}), encoding="utf-8")
            runs.append(str(path))
    said = one_line(capsys, "report", *runs, f"out={tmp_path / 'out'}")
    assert "data=/gone/data.yaml, cannot be read any more" in said and "put it back" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("which", ["run", "teacher"])
def test_a_report_does_not_run_what_a_run_folder_holds(
    which: str, plant: Any, hostile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for path in sorted(hostile.iterdir()):
        if (path / "args.yaml").exists():
            runs.append(tmp_path / path.name.split()[0])
            shutil.copytree(path, runs[-1], ignore=shutil.ignore_patterns("*.json.gz"))
    evil = plant(runs[-1] / "weights" / "best.pt" if which == "run" else tmp_path / "teacher.pt")
    args = yaml.safe_load((runs[-1] / "args.yaml").read_text(encoding="utf-8"))
    (runs[-1] / "args.yaml").write_text(yaml.safe_dump({**args, "teacher": str(evil)}), encoding="utf-8")
    said = one_line(capsys, "report", *map(str, runs), f"out={tmp_path / 'out'}")
    assert "refused by the restricted loader" in said and evil.name in said


# Export ---------------------------------------------------------------------------------------------------------------
def test_an_export_that_is_not_compared_says_so(tiny_student: File, tmp_path: Path, capsys: Any) -> None:
    weights = shutil.copy(tiny_student("yolov8n"), tmp_path / "x.pt")
    assert cli.main(["export", f"model={weights}", "format=torchscript", "imgsz=64", "device=cpu"]) == 0
    out = capsys.readouterr().out
    assert "parity not checked" in out and "exported:" in out and "no ONNX file" in out


# The network ----------------------------------------------------------------------------------------------------------
BLOCK = """
import json, os, socket, sys, traceback
calls, OURS = [], os.path.join(os.environ["PYTHONPATH"], "yolokd")
def blocked(name):
    def call(*args, **kwargs):
        target = args[1] if name == "connect" and len(args) > 1 else args[:1]
        frames = [f.filename for f in reversed(traceback.extract_stack()[:-1])]
        asked = [f for f in frames if f.startswith(OURS) or os.sep + "ultralytics" + os.sep in f]
        calls.append((name, str(target), asked[0] if asked else ""))
        raise OSError("no network here")
    return call
socket.socket.connect = blocked("connect")
socket.socket.connect_ex = blocked("connect")
socket.socket.sendto = blocked("sendto")
socket.getaddrinfo = blocked("getaddrinfo")
socket.gethostbyname = blocked("gethostbyname")
socket.create_connection = blocked("create_connection")
from yolokd import cli
codes = [cli.main(words) for words in json.loads(sys.argv[1])]
print("RESULT" + json.dumps({"codes": codes, "calls": calls}))
"""


@pytest.mark.parametrize("offline", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["YOLO_OFFLINE", "online"])
def test_nothing_of_ours_uses_the_network(
    offline: bool, tmp_path: Path, tiny_data: Path, tiny_student: File, tiny_teacher: File
) -> None:
    run, data, student = tmp_path / "runs" / "kd", f"data={tiny_data}", f"model={tiny_student('yolov8n')}"
    teacher = f"teacher={tiny_teacher('yolov8s')}"
    trained = ["train", student, data, *QUICK, f"project={tmp_path / 'runs'}"]
    commands = [
        [*trained, teacher, "name=kd", "method=pkd+pcd", "pcd_stages=1"],
        [*trained, "name=plain", "method=none"],
        ["report", str(run), str(tmp_path / "runs" / "plain"), f"out={tmp_path / 'out'}"],
        ["export", f"model={run / 'weights' / 'best.pt'}", "format=onnx", "imgsz=64", "device=cpu"],
        ["val", student, teacher, data, "imgsz=64", "device=cpu"],
        *([word] for word in ("checks", "cfg", "methods", "version", "help")),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "YOLO_OFFLINE"}
    environment |= {"YOLO_OFFLINE": "true"} if offline else {}
    environment |= {"YOLO_CONFIG_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "YOLO_AUTOINSTALL": "false"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK, json.dumps(commands)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert found, done.stderr[-3000:]
    result = json.loads(found[0].removeprefix("RESULT"))
    assert result["codes"][:5] == [0] * 5, done.stdout[-2000:] + done.stderr[-2000:]
    assert all(f"{os.sep}ultralytics{os.sep}" in asker for _, _, asker in result["calls"]), result["calls"]
    if offline:  # the host still looks for a font that it draws with
        assert {Path(asker).name for _, _, asker in result["calls"]} <= {"checks.py", "downloads.py"}
    else:  # the blockade works: without YOLO_OFFLINE the host asks whether it is online
        assert result["calls"]


def test_no_module_of_ours_imports_what_talks_to_a_network() -> None:
    talkers = {"urllib", "http", "requests", "ftplib", "smtplib", "httpx", "aiohttp", "xmlrpc", "ssl", "asyncio"}
    loaders = {"torch.hub", "torch.utils.model_zoo"}
    for path in sorted((ROOT / "yolokd").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not {name.split(".")[0] for name in names} & talkers and not set(names) & loaders, path
        used = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name) and node.value.id == "socket"]  # fmt: skip
        assert set(used) <= {"gethostname"}, path


def test_files_are_opened_by_restricted_loaders_alone() -> None:
    """`pickle`, `eval`, `exec` and `yaml.load` are nowhere called, and `torch.load` only with `weights_only=True`."""
    for path in sorted((ROOT / "yolokd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "compile", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}, path
            assert called not in {"pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "shelve.open"}, (
                path
            )
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load":
                assert keywords.get("weights_only") == "True", path
            if called in {"np.load", "numpy.load"}:
                assert keywords.get("allow_pickle", "False") == "False", path
