"""Bad input from end to end: the exit code, a message with key, value and fix, nothing trained, nothing left behind."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.bad_files import OBJECT, bad_files, dataset, spoil
from tests.test_config import OUT_OF_RANGE, WRONG_TYPE
from tests.tiny import rows
from yolokd import LOSSES, DistillationTrainer, UserError, cli, config, recipe
from yolokd.config.inputs import check_place
from yolokd.losses import build
from yolokd.taps import Pair

SHORT = "imgsz=64 epochs=1 batch=2 workers=0 plots=False device=cpu kd_preflight=False"
TRAIN = f"train model={{student}} teacher={{teacher}} data={{data}} {SHORT} "
COMPARE = "compare model={student} teacher={teacher} data={data} epochs=1 imgsz=64 batch=2 "
SIDE = "val model={student} teacher={teacher} data={data} imgsz=64 "
LOOK = "inspect model={student} teacher={teacher} source={root}/image.png imgsz=64 "
PROFILE = "profile model={student} teacher={teacher} imgsz=64 batch=2 "
LABELS = r"class x y width height.*names:"


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, tiny_student: Callable[[str], Path], tiny_teacher: Callable[[str], Path]
) -> SimpleNamespace:
    """Good and bad files by name."""
    return bad_files(tmp_path_factory.mktemp("bad"), tiny_student("yolov8n"), tiny_teacher("yolov8s"))


@pytest.fixture
def untouched(files: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be trained and no file or folder may be left, but for the host's label caches."""
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.utils import SETTINGS

    def step(self: Any) -> None:
        raise AssertionError("a training step was made")

    def listing() -> set[str]:
        return {str(path) for root in (files.root, tmp_path) for path in root.rglob("*") if path.suffix != ".cache"}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SETTINGS, "runs_dir", str(tmp_path / "runs"))
    monkeypatch.setitem(SETTINGS, "weights_dir", str(tmp_path / "weights"))
    monkeypatch.setattr(BaseTrainer, "optimizer_step", step)
    monkeypatch.delenv("YOLOKD_TRACEBACK", raising=False)
    before = listing()
    yield
    assert listing() == before


def fails(text: str | list[str], patterns: tuple[str, ...], files: SimpleNamespace, capsys: Any) -> None:
    """Run a command and see that it ends as a mistake does."""
    words = [word.format(**vars(files)) for word in text.split()] if isinstance(text, str) else text
    code = cli.main(words)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.strip() and "WARNING" not in line]
    assert code == 2, said
    assert lines[0].startswith("yolokd: ") and len(lines) <= 2, said
    assert "Traceback" not in said and not re.search(r"\w+Error\b", lines[0]), said
    for pattern in patterns:
        assert re.search(pattern, " ".join(lines)), f"{pattern!r} is not in: {said}"


def typed(value: Any) -> str:
    """Return a value as it is typed."""
    return str(value).replace(" ", "") if isinstance(value, (list, dict)) else str(value)


KEY_CASES = [
    (name, values[0])
    for name, key in config.KEYS.items()
    for values in (WRONG_TYPE.get(key.types, []), OUT_OF_RANGE.get(key.types, []))
    if values
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("name", "value"), KEY_CASES, ids=[f"{n}={v}" for n, v in KEY_CASES])
def test_a_wrong_value_of_any_key_of_ours(name, value, files, capsys):
    example = "" if name == "method" else f"e\\.g\\. {name}={re.escape(config.KEYS[name].example)}"
    patterns = (f"{name}={re.escape(typed(value))[:40]}", "must be", example)
    words = [word.format(**vars(files)) for word in TRAIN.split()]
    fails([*words, f"{name}={typed(value)}"], patterns, files, capsys)
    with pytest.raises(UserError, match=f"^{name}="):
        DistillationTrainer(overrides={"model": "yolov8n.yaml", "data": str(files.data), name: value})


# A command, and what the message must say: the key with its value, and the way out.
CASES: list[tuple[str, tuple[str, ...]]] = [
    # contradictions
    (TRAIN + "teacher=none", ("method=bckd", "needs a teacher", "teacher=yolov8x.pt")),
    (TRAIN + "teacher=[]", ("needs a teacher", "method=none trains without")),
    (TRAIN + "method=none teacher_epochs=3", ("teacher_epochs=3", "set teacher_epochs=0")),
    (TRAIN + "kd_teachers=together", ("kd_teachers=together", r"teacher=\[yolov8l")),
    (TRAIN + "kd_teacher_weights=confidence", ("kd_teacher_weights=confidence", "add kd_teachers=together")),
    (TRAIN + "teacher=[{teacher},{teacher}]", ("epochs=1", "2 teachers", "train longer")),
    (TRAIN + "teacher=[{teacher},{teacher}] method=pcd", ("method=pcd", "add kd_teachers=together")),
    (TRAIN + "quantize=8", ("quantize=8", "adapters", "method=none")),
    (TRAIN + "distill_model={teacher}", ("distill_model=", "leave distill_model out")),
    (TRAIN + "kd_gain=0", ("kd_gain=0", "method=none")),
    (TRAIN + "method=pcd pcd_gain=0", ("pcd_gain=0", "method=none")),
    (TRAIN + "method=samkd samkd_feature=0 samkd_logit=0", ("samkd_feature=0 samkd_logit=0", "above 0")),
    (TRAIN + "kd_stop=0.2 kd_warmup=0.3", ("kd_stop=0.2", "kd_warmup=0.3", "kd_stop=1.0")),
    (TRAIN + "dfmsd_stages=[0.7,0.3]", (r"dfmsd_stages=\[0.7,0.3\]", r"dfmsd_stages=\[0.3,0.7\]")),
    (TRAIN + "kd_levels=[]", (r"kd_levels=\[\]", r"kd_levels=\[8,16,32\]")),
    (TRAIN + "kd_levels=[64]", (r"kd_levels=\[64\]", r"\[8, 16, 32\]", "choose")),
    (TRAIN + "samkd_grids=[2,2]", (r"samkd_grids=\[2, 2\]", "each once")),
    (TRAIN + "kd_unlabeled=rest", ("kd_unlabeled=rest", "fraction=0.1")),
    (TRAIN + "kd_unlabeled=[]", (r"kd_unlabeled=\[\]", "leave it out")),
    (TRAIN + "kd_unlabeled={root}/corrupt/images batch=1", ("kd_unlabeled=", "batch=16")),
    (TRAIN + "kd_names=[]", (r"kd_names=\[\]", r"kd_names=\[car,bus\]")),
    (TRAIN + "kd_names=[car,car]", (r"kd_names=\[car,car\]", "each class once")),
    (TRAIN + "kd_names=[lorry]", ("kd_names", "lorry", r"kd_class_map=\{lorry: circle\}")),
    (TRAIN + "kd_names=[circle] method=pcd", ("method=pcd", "method=pcd\\+bckd")),
    (TRAIN + "kd_names=[circle] kd_unlabeled={root}/here", ("kd_unlabeled=", "give them all as data=")),
    (TRAIN + "teacher_imgsz=33", ("teacher_imgsz=33", "teacher_imgsz=64")),
    (TRAIN + "teacher_channels=[5]", (r"teacher_channels=\[5\]", r"teacher_channels=\[0,1,2\]")),
    (TRAIN + "freeze=99", ("freeze=", "freeze fewer")),
    # the student's file
    (TRAIN + "model={root}/missing.pt", ("model=.*missing.pt", "give the path")),
    (TRAIN + "model={root}/text.pt", ("model=.*text.pt", "give a .pt file")),
    (TRAIN + "model={root}/empty.pt", ("model=.*empty.pt", "download it again")),
    (TRAIN + "model={root}/cut.pt", ("model=.*cut.pt", "download it again")),
    (TRAIN + "model={root}/folder.pt", ("model=.*folder.pt is a folder", "best.pt")),
    (TRAIN + "model={root}", ("model=.*is a folder", "best.pt")),
    (TRAIN + "model={root}/image.pt", ("model=.*image.pt", "give a .pt file")),
    (TRAIN + "model={root}/model.onnx", ("model=.*model.onnx", "give a .pt file")),
    (TRAIN + "model={root}/image.png", ("model=.*image.png", "give a .pt file")),
    (TRAIN + "model={root}/other.pt", ("model=.*other.pt", "cannot be loaded")),
    (TRAIN + "model={root}/list.pt", ("model=.*list.pt", "cannot be loaded")),
    (TRAIN + "model={root}/hollow.pt", ("model=.*hollow.pt", "cannot be loaded")),
    (TRAIN + "model={root}/state.pt", ("model=.*state.pt", "cannot be loaded")),
    (TRAIN + "model={root}/classify.pt", ("model=.*classify", "yolo classify train")),
    (TRAIN + "model={root}/empty.yaml", ("model=.*empty.yaml", "no list 'backbone:'", "model=yolov8n.yaml")),
    (TRAIN + "model={root}/good/data.yaml", ("no architecture", "model=yolov8n.yaml")),
    (TRAIN + "model={root}/scalar.yaml", ("model=.*scalar.yaml", "model=yolov8n.yaml")),
    (TRAIN + "model={root}/binary.yaml", ("model=.*binary.yaml", "model=yolov8n.yaml")),
    (TRAIN + "model={root}/folder.yaml", ("model=.*folder.yaml", "model=yolov8n.yaml")),
    (TRAIN + "model=yolov99.yaml", ("model=yolov99.yaml", "model=yolov8n.yaml")),
    (TRAIN + "model=5", ("model=5", "model=yolov8s.pt")),
    (TRAIN + "model=http://localhost:1/x.pt", ("model=http://localhost", "path/to/best.pt")),
    (TRAIN + "pretrained={root}/empty.pt", ("pretrained=.*empty.pt", "download it again")),
    # the teacher's file
    (TRAIN + "teacher={root}/missing.pt", ("teacher=.*missing.pt", "give the path")),
    (TRAIN + "teacher={root}/text.pt", ("teacher=.*text.pt", "give a .pt file")),
    (TRAIN + "teacher={root}/empty.pt", ("teacher=.*empty.pt", "download it again")),
    (TRAIN + "teacher={root}/cut.pt", ("teacher=.*cut.pt", "download it again")),
    (TRAIN + "teacher={root}/folder.pt", ("teacher=.*is a folder", "best.pt")),
    (TRAIN + "teacher={root}/image.pt", ("teacher=.*image.pt", "give a .pt file")),
    (TRAIN + "teacher={root}/model.onnx", ("teacher=.*model.onnx", "give a .pt file")),
    (TRAIN + "teacher={root}/other.pt", ("teacher=.*other.pt", "cannot be loaded")),
    (TRAIN + "teacher={root}/hollow.pt", ("teacher=.*hollow.pt", "cannot be loaded")),
    (TRAIN + "teacher={root}/classify.pt", ("teacher=.*classify.pt", "must be a YOLO detection model")),
    (TRAIN + "teacher={root}/good/data.yaml", ("teacher=.*data.yaml", "give trained weights")),
    (TRAIN + "teacher=[{teacher},{root}/empty.pt] epochs=4", ("teacher=.*empty.pt", "download it again")),
    (TRAIN + "teacher=http://localhost:1/x.pt", ("teacher=http://localhost", "path/to/best.pt")),
    # the data's description
    (TRAIN + "data={root}/nowhere.yaml", ("data=.*nowhere.yaml", "does not exist", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/empty.yaml", ("data=.*empty.yaml", "'train:'", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/broken.yaml", ("data=.*broken.yaml", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/scalar.yaml", ("data=.*scalar.yaml", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/listed.yaml", ("data=.*listed.yaml", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/binary.yaml", ("data=.*binary.yaml", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/empty.zip", ("data=.*empty.zip", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/folder.yaml", ("data=.*folder.yaml", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/emptydata", ("data=.*emptydata", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/image.png", ("data=.*image.png", "data=path/to/mine.yaml")),
    (TRAIN + "data=[]", (r"data=\[\]", "data=path/to/mine.yaml")),
    (TRAIN + "data=5", ("data=5", "data=path/to/mine.yaml")),
    (TRAIN + "data={root}/good/elsewhere.yaml", ("data=.*elsewhere.yaml", "images/elsewhere")),
    (TRAIN + "data={root}/good/elsewheretrain.yaml", ("no images for 'train:'", "check that line")),
    (TRAIN + "data={root}/good/nopath.yaml", ("data=.*nopath.yaml", "nowhere/images/val")),
    (TRAIN + "data={root}/good/notrain.yaml", ("data=.*notrain.yaml", "'train:'")),
    (TRAIN + "data={root}/good/noval.yaml", ("data=.*noval.yaml", "'val:'")),
    (TRAIN + "data={root}/good/emptytrain.yaml", ("no images for 'train:'", "check that line")),
    (
        TRAIN + "data={root}/good/nonames.yaml",
        ("data=.*nonames.yaml", "either 'names' or 'nc'", "train, val and names"),
    ),
    (TRAIN + "data={root}/good/emptynames.yaml", ("data=.*emptynames.yaml", "at least one class name")),
    (TRAIN + "data={root}/good/ncmismatch.yaml", ("data=.*ncmismatch.yaml", "'nc: 5' must match")),
    (TRAIN + "data={root}/good/nctext.yaml", ("data=.*nctext.yaml", "must be an integer")),
    (TRAIN + "data={root}/good/namestext.yaml", ("data=.*namestext.yaml", "must be list or dict")),
    (TRAIN + "data={root}/good/namesgap.yaml", ("data=.*namesgap.yaml", "class indices 0-1")),
    (TRAIN + "data={root}/good/trainnumber.yaml", ("data=.*trainnumber.yaml", "must be str or list")),
    (TRAIN + "data={root}/good/channels.yaml", ("data=.*channels.yaml", "channels: three", "whole number")),
    (TRAIN + "data={root}/good/list.yaml", ("data=.*list.yaml", "none.png is missing", "check the list")),
    (TRAIN + "data={root}/good/binarylist.yaml", ("data=.*binarylist.yaml", "'train:'", "one path per line")),
    (TRAIN + "split=bogus", ("data=", "'bogus:' images not found", "data=path/to/mine.yaml")),
    (TRAIN + "classes=[9]", (r"classes=\[9\]", "numbered 0 to 2")),
    # images and labels
    (TRAIN + "data={root}/nothing/data.yaml", ("data=.*nothing", "no images for 'train:'")),
    (TRAIN + "data={root}/noval/data.yaml", ("data=.*noval", "no images for 'val:'")),
    (TRAIN + "data={root}/unlabelled/data.yaml", ("data=.*unlabelled", "0.txt", r"kd_names=\[car,bus\]")),
    (TRAIN + "data={root}/emptylabels/data.yaml", ("data=.*emptylabels", "missing or empty", "kd_names=")),
    (TRAIN + "data={root}/classids/data.yaml", ("data=.*classids", "class 7 exceeds", LABELS)),
    (TRAIN + "data={root}/valclassids/data.yaml", ("data=.*valclassids", "labels/val", LABELS)),
    (TRAIN + "data={root}/pixels/data.yaml", ("data=.*pixels", "out of bounds", LABELS)),
    (TRAIN + "data={root}/negative/data.yaml", ("data=.*negative", "negative label values", LABELS)),
    (TRAIN + "data={root}/junk/data.yaml", ("data=.*junk", "ignoring corrupt", LABELS)),
    (TRAIN + "data={root}/binary/data.yaml", ("data=.*binary", "can't decode", LABELS)),
    (TRAIN + "data={root}/columns/data.yaml", ("data=.*columns", "ignoring corrupt", LABELS)),
    (TRAIN + "data={root}/fractions/data.yaml", ("data=.*fractions", "non-integer class", LABELS)),
    (TRAIN + "data={root}/corrupt/data.yaml", ("data=.*corrupt", "labels/train", LABELS)),
    (TRAIN + "data={root}/corruptval/data.yaml", ("data=.*corruptval", "labels/val", LABELS)),
    (TRAIN + "data={root}/emptyimages/data.yaml", ("data=.*emptyimages", "labels/train", LABELS)),
    # images without labels, the class map, recipes
    (TRAIN + "kd_unlabeled={root}/nowhere", ("kd_unlabeled=.*nowhere", "kd_unlabeled=path/to/images")),
    (TRAIN + "kd_unlabeled={root}/here", ("kd_unlabeled=.*here", "kd_unlabeled=path/to/images")),
    (TRAIN + "kd_unlabeled={root}/empty.yaml", ("kd_unlabeled=.*empty.yaml", "'train:'")),
    (TRAIN + "kd_unlabeled={root}/image.png", ("kd_unlabeled=.*image.png", "give a folder")),
    (TRAIN + "kd_unlabeled={root}/good/binary.txt", ("kd_unlabeled=.*binary.txt", "one path per line")),
    (TRAIN + "kd_unlabeled={root}/good/list.txt", ("kd_unlabeled=.*list.txt", "check the list")),
    (TRAIN + "kd_unlabeled={root}/corrupt/images/train", ("kd_unlabeled=.*corrupt", "check the images")),
    (TRAIN + "kd_unlabeled={root}/good/images", ("kd_unlabeled=.*good/images", "give a folder with other images")),
    (TRAIN + "kd_names=[circle] data={root}/here", ("data=.*here", "data=path/to/images")),
    (TRAIN + "kd_names=[circle] data={root}/corrupt/images/train", ("data=.*corrupt", "check the images")),
    (TRAIN + "kd_class_map={root}/nowhere.yaml", ("kd_class_map=.*nowhere.yaml", "car: automobile")),
    (TRAIN + "kd_class_map={root}/empty.yaml", ("kd_class_map=.*empty.yaml", "car: automobile")),
    (TRAIN + "kd_class_map={root}/broken.yaml", ("kd_class_map=.*broken.yaml", "cannot be read as YAML")),
    (TRAIN + "kd_class_map={root}/folder.yaml", ("kd_class_map=.*folder.yaml", "directory")),
    (TRAIN + "kd_class_map={root}/map.yaml", ("kd_class_map=.*map.yaml", r"kd_class_map=\{car: automobile\}")),
    (TRAIN + "kd_class_map={root}/unknown_map.yaml", ("kd_class_map names 'lorry'", "it knows circle")),
    (TRAIN + "kd_class_map={{circle:lorry}}", ("kd_class_map names 'lorry'", "the teacher", "it knows circle")),
    (TRAIN + "cfg={root}/recipe.yaml", ("pcd_stages=0", "pcd_stages=3")),
    (TRAIN + "cfg={root}/typo.yaml", ("'metod'", "method=bckd")),
    (TRAIN + "cfg={root}/empty.yaml", ("cfg=.*empty.yaml", "method: dfmsd")),
    (TRAIN + "cfg={root}/binary.yaml", ("cfg=.*binary.yaml", "cannot be read as YAML")),
    (TRAIN + "cfg={root}", ("cfg=", "recipes: bckd")),
    # keys of the host
    (TRAIN + "imgsz=big", ("imgsz=big", "imgsz=640")),
    (TRAIN + "imgsz=0", ("imgsz=0", "imgsz=640")),
    (TRAIN + "imgsz=-64", ("imgsz=-64", "imgsz=640")),
    (TRAIN + "batch=2.5", ("batch=2.5", "batch=16")),
    (TRAIN + "freeze=[model.0,model.1]", (r"freeze=\[model.0,model.1\]", "freeze=10")),
    (TRAIN + "freeze=-1", ("freeze=-1", "freeze=10")),
    (TRAIN + "classes=[a]", (r"classes=\[a\]", r"classes=\[0,2\]")),
    (TRAIN + "classes=-1", ("classes=-1", r"classes=\[0,2\]")),
    (TRAIN + "batch=0", ("batch=0", "batch=16")),
    (TRAIN + "device=tpu", ("device=tpu", "device=0,1")),
    (TRAIN + "device=99", ("device=99", "device=cpu")),
    (TRAIN + "epochs=0", ("epochs=0", ">= 1")),
    (TRAIN + "optimizer=Unheard", ("Unheard", "AdamW")),
    (TRAIN + "fraction=0", ("fraction=0", r"\(0, 1\]")),
    (TRAIN + "project={root}/text.pt", ("project=", "choose another project=")),
    # resume
    ("train resume", ("resume needs", "last.pt")),
    ("train resume=5", ("resume=5", "last.pt")),
    ("train resume={root}/nowhere.pt", ("nowhere.pt", "Give the path")),
    ("train resume model={root}/empty.pt", ("empty.pt", "download it again")),
    ("train resume model={student}", ("resume model=", "leave resume out")),
    ("train resume model={root}/last.pt", ("resume=.*last.pt", "yolo train resume")),
    ("train resume model=yolov8n.yaml", ("yolov8n.yaml", "give trained weights")),
    # compare
    ("compare", ("needs a student", "model=yolov8n.pt")),
    ("compare model={student}", ("needs a dataset", "data=path/to/mine.yaml")),
    ("compare segment model={student}", ("detection models only",)),
    (COMPARE + "methods=dfmds", ("method=dfmds", "did you mean dfmsd")),
    (COMPARE + "methods=pcd,pcd", ("methods=pcd,pcd", "pcd twice")),
    (COMPARE + "methods=[] controls=False", ("names no method", "methods=none,ultralytics")),
    (COMPARE + "seeds=0", ("seeds=0", "seeds=3")),
    (COMPARE + "seeds=many", ("seeds=many", "seeds=3")),
    (COMPARE + "seeds=[1,1]", (r"seeds=\[1, ?1\]", "seeds=3")),
    (COMPARE + "jobs=0", ("jobs=0", "1 or more")),
    (COMPARE + "controls=maybe", ("controls=maybe", "True or False")),
    (COMPARE + "data={root}/vallabels/data.yaml", ("vallabels", "split val has no labelled object", "split=")),
    (COMPARE + "split=bogus", ("split=bogus", "it has train, val")),
    (COMPARE + "batch=-1", ("batch=-1", "batch=16")),
    (COMPARE + "seed=3", ("seed=3", "seeds=")),
    (COMPARE + "save=False", ("save=False", "leave save= out")),
    (COMPARE + "project={root}/text.pt name=x", ("text.pt is a file", "choose another project=")),
    (COMPARE + "project={root} name=run", ("run holds something else", "choose another name=")),
    (COMPARE + "model={root}/classify.pt", ("classify", "model=yolov8n.pt")),
    (COMPARE + "model={root}/hollow.pt", ("model=.*hollow.pt", "cannot be loaded")),
    (COMPARE + "teacher={root}/empty.pt", ("teacher=.*empty.pt", "download it again")),
    (COMPARE + "data={root}/classids/data.yaml", ("data=.*classids", LABELS)),
    (COMPARE + "data={root}/corruptval/data.yaml", ("data=.*corruptval", LABELS)),
    # val, export, predict
    (SIDE + "split=bogus", ("split=bogus",)),
    (SIDE + "imgsz=0", ("imgsz=0", "imgsz=640")),
    (SIDE + "device=tpu", ("device=tpu", "device=0,1")),
    (SIDE + "teacher={root}/empty.pt", ("teacher=.*empty.pt", "download it again")),
    (SIDE + "model={root}/classify.pt", ("classify",)),
    (SIDE + "data={root}/corruptval/data.yaml", ("labels/val", LABELS)),
    (SIDE + "data={root}/noval/data.yaml", ("no images for 'val:'", "check that line")),
    (SIDE + "data={root}/vallabels/data.yaml", ("vallabels", "split val has no labelled object", "split=")),
    (SIDE + "bogus=1", ("'bogus' is not a key", "yolokd cfg")),
    ("val model={student} data={root}/empty.yaml", ("data=.*empty.yaml", "data=path/to/mine.yaml")),
    ("val model={student} data={root}/valclassids/data.yaml imgsz=64", ("labels/val", LABELS)),
    ("val model={student} data={data} kd_share=1", ("kd_share=1", "leave it out")),
    ("export", ("export needs a model", "format=onnx")),
    ("export model={student} format=5", ("format=5", "format=onnx")),
    ("export model={student} format=bogus", ("bogus", "onnx")),
    ("export model={student} format=onnx imgsz=0", ("imgsz=0", "imgsz=640")),
    ("export model={root}/empty.pt format=onnx", ("model=.*empty.pt", "download it again")),
    ("predict model={student} source={root}/nowhere.jpg", ("nowhere.jpg", "does not exist")),
    ("predict model={student} source={root}/image.png device=tpu", ("device=tpu", "device=cpu")),
    # inspect, profile, report, demo
    ("inspect model={student}", ("needs teacher=", "source=image.jpg")),
    (LOOK + "source={root}/nowhere.jpg", ("source=.*nowhere.jpg", "source=image.jpg")),
    (LOOK + "source={root}/text.png", ("source=.*text.png", "give a file of type")),
    (LOOK + "source={root}/empty.png", ("source=.*empty.png", "give a file of type")),
    (LOOK + "source={root}", ("source=.*is a folder", "give one image")),
    (LOOK + "source=5", ("source=5", "source=image.jpg")),
    (LOOK + "method=none", ("method=none", "method=dfmsd")),
    (LOOK + "epochs=3", ("epochs=3", "leave it out")),
    (LOOK + "kd_levels=[64]", (r"kd_levels=\[64\]", "choose")),
    (LOOK + "device=tpu", ("device=tpu", "device=0,1")),
    (LOOK + "project={root}/text.pt", ("project=", "choose another project=")),
    (LOOK + "teacher=[{teacher},{teacher}]", ("one teacher at a time", "teacher=")),
    ("profile model={student}", ("profile needs teacher=", "teacher=yolov8s.pt")),
    (PROFILE + "method=none", ("method=none", "name another")),
    (PROFILE + "imgsz=big", ("imgsz=big", "imgsz=640")),
    (PROFILE + "batch=many", ("batch=many", "batch=16")),
    (PROFILE + "teacher={root}/classify.pt", ("teacher=.*classify.pt", "must be a YOLO detection model")),
    (PROFILE + "data={root}/classids/data.yaml", ("data=.*classids", LABELS)),
    (PROFILE + "kd_levels=[64]", (r"kd_levels=\[64\]", "choose")),
    ("report", ("report needs run folders", "runs/detect/train")),
    ("report {root}/nowhere", ("nowhere is no folder", "runs/detect/train")),
    ("report {root}/here", ("args.yaml is missing", "runs/detect/train")),
    ("report {root}/run", ("args.yaml is not that of a training run",)),
    ("report {root}/badjson", ("results.json cannot be read",)),
    ("report {root}/otherschema", ("has schema 99", "reads schema")),
    ("report {root}/listjson", ("has schema None", "reads schema")),
    ("report {root}/run out={root}/text.pt", ("out=.*text.pt", "is a file", "out=report")),
    ("report {root}/run bogus=1", ("bogus= is no key", "out=FOLDER")),
    ("demo epochs=0", ("epochs=0", "at least 1")),
    ("demo method=none", ("method=[Nn]one", "method=bckd")),
    ("demo classes=0", ("classes=0", "between 1 and 16")),
    ("demo imgsz=7", ("imgsz=7", "the least is 32")),
    ("demo bogus=1", ("'bogus' is not a key",)),
    ("demo out={root}/text.pt", ("out=.*text.pt", "choose another")),
    # modes
    ("trian", ("did you mean `yolokd train`",)),
    ("methods now", ("'now' is too much",)),
    ("=", ("'=' names no mode", "Modes: train")),
    ("mode=bogus", ("names no mode", "train")),
    ("a=b", ("names no mode", "train")),
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("text", "patterns"), CASES, ids=[text.replace(TRAIN, "train ... ") for text, _ in CASES])
def test_a_bad_command(text, patterns, files, capsys):
    fails(text, patterns, files, capsys)


def test_the_table_is_as_long_as_it_should_be():
    assert len(CASES) + len(KEY_CASES) >= 80 and len({text for text, _ in CASES}) == len(CASES)


def unreadable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the right to read a file away; from root, who has every right, by refusing to open it."""
    if os.geteuid():
        path.chmod(0)
        return
    opened, read = Path.open, Path.read_text

    def refuse(use: Any) -> Any:
        def run(self: Path, *args: Any, **kwargs: Any) -> Any:
            if self == path:
                raise PermissionError(13, "Permission denied", str(path))
            return use(self, *args, **kwargs)

        return run

    monkeypatch.setattr(Path, "open", refuse(opened))
    monkeypatch.setattr(Path, "read_text", refuse(read))


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("key", "name", "fix"),
    [
        ("model", "locked.pt", "check its permissions"),
        ("teacher", "locked.pt", "check its permissions"),
        ("cfg", "recipe.yaml", "cannot be read"),
        ("kd_class_map", "map.yaml", "cannot be read"),
        ("kd_unlabeled", "good/list.txt", "no list of images"),
    ],
)
def test_a_file_that_may_not_be_read(key, name, fix, files, capsys, tmp_path, monkeypatch):
    path = tmp_path / Path(name).name
    path.write_bytes((files.student if name == "locked.pt" else files.root / name).read_bytes())
    unreadable(path, monkeypatch)
    fails(f"{TRAIN} {key}={path}", (f"{key}=.*{path.name}", fix), files, capsys)
    monkeypatch.undo()
    path.chmod(0o600)
    path.unlink()


# What a call is given, and what its error says. `{...}` in text stands for the files.
CALLS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"teacher": None}, ("needs a teacher", "teacher=yolov8x.pt")),
    ({"teacher": 5}, ("teacher=5", "must be")),
    ({"teacher": ...}, ("teacher=", "must be")),
    ({"teacher": ["{teacher}", torch.nn.Linear(1, 1)]}, ("teacher=", "not both")),
    ({"teacher": torch.nn.Linear(1, 1)}, ("teacher", "must be a YOLO detection model")),
    ({"teacher": "{root}/missing.pt"}, ("teacher=.*missing.pt",)),
    ({"teacher": "{root}/empty.pt"}, ("teacher=.*empty.pt",)),
    ({"teacher": "{root}/good"}, ("teacher=.*good is a folder", "give the weights file in it")),
    ({"teacher": "{root}/image.png"}, ("teacher=.*image.png is no PyTorch checkpoint", "give a .pt file")),
    ({"teacher": "{root}/classify.pt"}, ("classify.pt", "must be a YOLO detection model")),
    ({"method": 5}, ("method=5", "method=dfmsd")),
    ({"method": ["pcd"]}, (r"method=\['pcd'\]", "must be")),
    ({"method": "dfmds"}, ("method=dfmds", "did you mean dfmsd")),
    ({"kd_levels": (8, 8)}, (r"kd_levels=\[8, 8\]", "each once")),
    ({"kd_gain": float("nan")}, ("kd_gain=nan", "must be")),
    ({"kd_class_map": {}}, (r"kd_class_map=\{\}", "must be")),
    ({"kd_class_map": {"lorry": "truck"}}, ("kd_class_map names 'lorry'", "it knows circle")),
    ({"kd_sharee": 1}, ("'kd_sharee' is not a key", "kd_share=")),
    ({"imgsz": "big"}, ("imgsz=big", "imgsz=640")),
    ({"imgsz": []}, (r"imgsz=\[\]", "imgsz=640")),
    ({"batch": "many"}, ("batch=many", "batch=16")),
    ({"freeze": {0, 1}}, (r"freeze=\{0, 1\}", r"freeze=\[0,1,22\]")),
    ({"model": "{root}/classify.pt"}, ("model=.*classify.pt is a classify model", "yolo classify train")),
    ({"device": "tpu"}, ("device=tpu", "device=0,1")),
    ({"data": "{root}/empty.yaml"}, ("data=.*empty.yaml", "data=path/to/mine.yaml")),
    ({"data": "{root}/nowhere.yaml"}, ("data=.*nowhere.yaml", "data=path/to/mine.yaml")),
    ({"data": "{root}/unlabelled/data.yaml"}, ("data=.*unlabelled", "put a YOLO label file")),
    ({"data": "{root}/emptylabels/data.yaml"}, ("data=.*emptylabels", "put a YOLO label file")),
    ({"data": "{root}/classids/data.yaml"}, ("data=.*classids", LABELS)),
    ({"data": "{root}/corrupt/data.yaml"}, ("data=.*corrupt", LABELS)),
    ({"data": "{root}/corruptval/data.yaml"}, ("data=.*corruptval", LABELS)),
    ({"classes": [9]}, (r"classes=\[9\]", "numbered 0 to 2")),
    ({"kd_unlabeled": "{root}/nowhere"}, ("kd_unlabeled=.*nowhere", "path/to/images")),
    ({"kd_unlabeled": "{root}/corrupt/images/train"}, ("kd_unlabeled=.*corrupt", "check the images")),
    ({"kd_names": ["circle"], "data": "{root}/here"}, ("data=.*here", "path/to/images")),
    ({"resume": "{root}/last.pt"}, ("resume=.*last.pt", "yolo train resume")),
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("way", ["trainer", pytest.param("model", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("given", "patterns"), CALLS, ids=[str(given)[:60] for given, _ in CALLS])
def test_a_bad_call(given, patterns, way, files):
    from ultralytics import YOLO

    short = {"imgsz": 64, "epochs": 1, "batch": 2, "workers": 0, "plots": False, "device": "cpu", "kd_preflight": False}
    settings = {**short, "teacher": "{teacher}", "data": "{data}", **given}
    settings = {k: v.format(**vars(files)) if isinstance(v, str) else v for k, v in settings.items()}
    if isinstance(settings["teacher"], list):
        settings["teacher"] = [t.format(**vars(files)) if isinstance(t, str) else t for t in settings["teacher"]]
    with pytest.raises(UserError) as error:
        if way == "model":
            YOLO(files.student).train(trainer=DistillationTrainer, **settings)
        else:
            DistillationTrainer(overrides={"model": str(files.student), **settings}).train()
    text = " ".join(str(error.value).splitlines())
    assert all(re.search(pattern, text) for pattern in patterns), text


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("given", "patterns"),
    [
        ({"data": None}, ("needs a dataset", "data=")),
        ({"model": torch.nn.Linear(1, 1)}, ("model=", "must be a file")),
        ({"model": 5}, ("model=", "must be a file")),
        ({"teacher": torch.nn.Linear(1, 1)}, ("teacher=", "must be a file")),
        ({"methods": 5}, ("methods=5", "methods=none")),
        ({"methods": ["dfmds"]}, ("dfmds", "did you mean dfmsd")),
        ({"seeds": 1.5}, ("seeds=1.5", "seeds=3")),
        ({"seeds": []}, (r"seeds=\[\]", "seeds=3")),
        ({"jobs": True}, ("jobs=True", "1 or more")),
        ({"split": "bogus"}, ("split=bogus", "train, val")),
        ({"kd_share": "much"}, ("kd_share=much", "kd_share=auto")),
        ({"epochs": "many"}, ("epochs=many",)),
        ({"bogus": 1}, ("'bogus' is not a key",)),
    ],
    ids=str,
)
def test_a_bad_comparison(given, patterns, files):
    from yolokd.compare import compare

    settings = {"model": files.student, "teacher": files.teacher, "data": files.data, "epochs": 1, "imgsz": 64}
    with pytest.raises(UserError) as error:
        compare(**{**settings, **given})
    assert all(re.search(pattern, str(error.value)) for pattern in patterns), str(error.value)


@pytest.mark.parametrize("name", ["zz", "", "dfmsd.yml", "../default", 5])
def test_a_bad_recipe(name):
    with pytest.raises(UserError, match=r"there is no recipe .*; recipes: bckd"):
        recipe(name)


PAIR = Pair((8, 16), (16, 32), (8, 16), 4)


def test_a_bad_name_of_a_loss():
    with pytest.raises(UserError, match=r"method='zz' does not exist\. Methods: .*dfmsd.*gdetkd"):
        build("zz", PAIR, config.DEFAULTS)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("dfmsd", "spatial_ratio", 1.5),
        ("dfmsd", "channel_ratio", -0.1),
        ("dfmsd", "temperature", 0.0),
        ("dfmsd", "mask", "middle"),
        ("dfmsd", "enhance", "fft"),
        ("samkd", "feature", -1.0),
        ("samkd", "ratio", 2.0),
        ("samkd", "temperature", 0.0),
        ("samkd", "weight", "hard"),
        ("samkd", "grids", []),
        ("pcd", "stages", 0),
        ("pcd", "schedule", "both"),
        ("mgd", "ratio", -1.0),
        ("cwd", "temperature", 0.0),
    ],
)
def test_a_bad_option_of_a_loss(name, option, value):
    with pytest.raises(ValueError, match=f"{name}_{option}=|{name}_{option} ") as error:
        LOSSES[name](PAIR, **{option: value})
    assert str(value) in str(error.value)
    with pytest.raises(TypeError, match="bogus"):
        LOSSES[name](PAIR, bogus=1)


STRANGE: dict[str, dict[str, Any]] = {
    "unicode and spaces": {},
    "one image": {"train": (OBJECT,)},
    "boxes slightly outside": {"train": ("0 0.9 0.5 0.4 0.4\n", "1 1.005 0.5 0.3 0.3\n")},
    "corrupt images among good ones": {"train": (OBJECT,) * 4, "touch": spoil("train/2.png")},
    "bad labels among good ones": {"train": (OBJECT, OBJECT, "no label\n", "9 0.5 0.5 0.2 0.2\n")},
    "images without objects": {"train": (OBJECT, "", None), "val": (OBJECT, "")},
    "a class without objects": {"train": (OBJECT, OBJECT)},
    "no objects to validate on": {"val": ("", "")},
    "boxes without extent": {"train": (OBJECT, "1 0.5 0.5 0 0\n")},
    "a byte-order mark": {"train": ("\ufeff" + OBJECT, OBJECT)},
}
LABELED_ODDLY = ("boxes slightly outside", "bad labels among good ones", "boxes without extent", "a byte-order mark")
STRANGE["odd labels of every kind"] = {"train": [text for name in LABELED_ODDLY for text in STRANGE[name]["train"]]}
ALONE = {*LABELED_ODDLY, "a class without objects"}  # slow: the one with all odd labels has no object of class 2


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALONE else []) for name in STRANGE]
)
def test_strange_data_that_can_be_used(name, files, tmp_path, capsys):
    folder = tmp_path / ("Bilder für Zürich 图像" if name.startswith("unicode") else "data")
    data = dataset(folder, **STRANGE[name])
    words = [word.format(**vars(files)) for word in TRAIN.split() if not word.startswith("data=")]
    assert (
        cli.main([*words, "method=dfmsd+pcd", "nbs=2", f"data={data}", f"project={folder / 'my runs'}", "name=x"]) == 0
    )
    run = folder / "my runs" / "x"
    (row,) = rows(run)
    assert all(math.isfinite(row[f"train/{term}_loss"]) and row[f"train/{term}_loss"] > 0 for term in ("dfmsd", "pcd"))
    assert (run / "weights" / "best.pt").is_file()
    assert "Traceback" not in capsys.readouterr().err


def test_a_folder_for_output_that_the_system_refuses(tmp_path, monkeypatch):
    """Where permissions promise more than the file system keeps; what was made on the way is taken away."""
    make = Path.mkdir

    def refuse(path, *args, **kwargs):
        if path.name == "inner":
            make(path.parent, parents=True)
            raise OSError(errno.ENOSPC, "No space left on device")
        make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"out=.*inner: .*cannot be made \(No space left on device\).*out=report"):
        check_place(tmp_path / "outer" / "inner", "out", tmp_path / "outer" / "inner", "out=report")
    assert not list(tmp_path.iterdir())
