"""No labels at all: what a student learns from a teacher alone, what it is evaluated on, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import YAML

from tests.tiny import (
    NAMES,
    overrides_for,
    rows,
    save_model,
    set_up,
    tiny_batch,
    tiny_criterion,
    tiny_model,
    train,
)
from yolokd import DistillationTrainer, config
from yolokd.config import consistency
from yolokd.config.defaults import complete
from yolokd.drawn.shapes import draw_dataset
from yolokd.errors import UserError
from yolokd.outputs import read_output
from yolokd.task import LABELED
from yolokd.terms.calibration import gradient_norm
from yolokd.unlabeled.no_labels import LABELS, class_names, describe, ready, renumber, training_files
from yolokd.unlabeled.sources import check_images, is_description

Teacher = Callable[[str], Path]
WANTED = ["Square", "circle"]  # two of the data's three classes, in another order and spelling


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A drawn dataset of 6 + 4 images, whose training labels cannot be read."""
    path = draw_dataset(tmp_path / "shapes", images=(6, 4), imgsz=64, seed=0, classes=3)
    for label in (path.parent / "labels" / "train").glob("*.txt"):
        label.write_text("these are no labels\n", encoding="utf-8")
    return path


# A folder of images ---------------------------------------------------------------------------------------------------
def test_a_folder_a_teacher_and_names_are_enough(
    tmp_path: Path, data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    folder = data.parent / "images" / "train"
    trainer = train(tmp_path, folder, teacher=str(tiny_teacher("yolov8n")), kd_names=WANTED, plots=True, save_period=1)
    run = Path(trainer.save_dir)
    assert trainer.methods == ("bckd",)
    assert any("nothing is evaluated, and best.pt is the last epoch's" in line for line in said)
    assert any(line == "nothing was evaluated: there are no labelled validation images" for line in said)
    found = rows(run)
    assert len(found) == 2
    for row in found:
        assert row["train/bckd_loss"] > 0
        assert row["train/box_loss"] == row["train/cls_loss"] == row["train/dfl_loss"] == 0
        assert all(math.isnan(value) for key, value in row.items() if key.startswith(("metrics/", "val/")))
    for weights in ("best", "last", "epoch0"):
        model, checkpoint = load_checkpoint(run / "weights" / f"{weights}.pt")
        assert model.names == dict(enumerate(WANTED))
        assert "criterion" not in model._modules
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert checkpoint["train_args"]["data"] == str(folder)
    best, last = (load_checkpoint(run / "weights" / f"{name}.pt")[0].state_dict() for name in ("best", "last"))
    assert all(torch.equal(best[key], last[key]) for key in last)
    written = YAML.load(run / "data.yaml")
    assert written["train"] == written["val"] == [str(folder)]
    assert written["names"] == dict(enumerate(WANTED))
    model.args = SimpleNamespace(**model.args)
    batch = {**tiny_batch(), "cls": tiny_batch()["cls"].clamp(max=1)}
    loss, _ = model.loss(batch, model.train()(batch["img"]))  # by the task's own criterion, on labels
    assert loss.sum() > 0
    assert YOLO(str(run / "weights" / "best.pt")).names == dict(enumerate(WANTED))


def test_the_student_learns(tmp_path: Path, data: Path) -> None:
    """From a copy of the teacher with a noisy head, the term falls."""
    teacher = save_model(tiny_model("yolov8n", seed=2), tmp_path / "teacher.pt")
    student = tiny_model("yolov8n", seed=2)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.model[-1].parameters():
            parameter.add_(parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=draw) * 0.5)
    plain = {"mosaic": 0.0, "scale": 0.0, "translate": 0.0, "fliplr": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0}
    steady = {"kd_decay": "constant", "kd_warmup": 0.0, "warmup_epochs": 0.0, "kd_gain": 1.0, "lr0": 0.001}
    trainer = train(
        tmp_path,
        data.parent / "images" / "train",
        model=str(save_model(student, tmp_path / "student.pt")),
        teacher=str(teacher),
        kd_names=list(NAMES),
        epochs=6,
        save=False,  # but for the last epoch
        kd_unlabeled_confidence=0.3,
        **plain,
        **steady,
    )
    found = [row["train/bckd_loss"] for row in rows(Path(trainer.save_dir))]
    assert found[-1] < 0.8 * found[0], found


def test_an_interrupted_run_goes_on(tmp_path: Path, data: Path, tiny_teacher: Teacher) -> None:
    class Killed(Exception):
        pass

    def kill(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise Killed

    folder = data.parent / "images" / "train"
    trainer = DistillationTrainer(
        overrides=overrides_for(tmp_path, folder, teacher=str(tiny_teacher("yolov8n")), kd_names=WANTED, epochs=3)
    )
    trainer.add_callback("on_model_save", kill)
    with pytest.raises(Killed):
        trainer.train()
    resumed = DistillationTrainer(overrides={"resume": str(trainer.last), "model": str(trainer.last)})
    resumed.train()
    assert [row["epoch"] for row in rows(Path(trainer.save_dir))] == [1, 2, 3]
    assert resumed.args.kd_share == 1.0
    assert resumed.methods == ("bckd",)


# A dataset whose validation images have labels ------------------------------------------------------------------------
def test_validation_labels_are_renumbered_and_training_labels_not_read(
    tmp_path: Path, data: Path, tiny_teacher: Teacher
) -> None:
    trainer = set_up(tmp_path, data, teacher=str(tiny_teacher("yolov8n")), kd_names=WANTED)
    assert not trainer.unevaluated
    assert len(trainer.train_loader.dataset) == 6
    assert all(len(label["cls"]) == 0 for label in trainer.train_loader.dataset.labels)
    assert all(batch[LABELED] == 0 and len(batch["cls"]) == 0 for batch in trainer.train_loader)
    counts = np.zeros(3, int)
    for path in (data.parent / "labels" / "val").glob("*.txt"):
        counts += np.bincount([int(line.split()[0]) for line in path.read_text().splitlines()], minlength=3)
    labels = np.concatenate([label["cls"].ravel() for label in trainer.test_loader.dataset.labels]).astype(int)
    assert np.bincount(labels, minlength=2).tolist() == [counts[1], counts[0]]  # Square, circle
    assert sum(len(batch["cls"]) for batch in trainer.test_loader) == counts[:2].sum()


def test_a_run_is_evaluated_where_there_are_labels(tmp_path: Path, data: Path, tiny_teacher: Teacher) -> None:
    trainer = train(
        tmp_path, data, teacher=str(tiny_teacher("yolov8n")), kd_names=WANTED, kd_val=True, kd_preflight=True
    )
    for row in rows(Path(trainer.save_dir)):
        assert not math.isnan(row["metrics/mAP50-95(B)"])
        assert row["val/cls_loss"] > 0
        assert row["val/bckd_loss"] > 0
        assert row["train/cls_loss"] == 0
    assert trainer.validator.metrics.names == dict(enumerate(WANTED))


def test_renumbered_letters_keep_their_case() -> None:
    label = {"cls": np.array([[0], [1], [2]], dtype=np.float32), "bboxes": np.full((3, 4), 0.5, dtype=np.float32)}
    renumber([label], {0: "A", 1: "a", 2: "b"}, {0: "a", 1: "B"})
    assert label["cls"].tolist() == [[0], [1]]  # b is B, where nothing else is; A is no a


def test_renumbered_labels_by_hand() -> None:
    label = {
        "cls": np.array([[2.0], [0.0], [1.0]], np.float32),
        "bboxes": np.arange(12.0).reshape(3, 4),
        "segments": ["two", "zero", "one"],
    }
    renumber([label], {0: "car", 1: "dog", 2: "traffic light"}, {0: "Traffic_Light", 1: "car"})
    assert label["cls"].tolist() == [[0.0], [1.0]]
    assert label["bboxes"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert label["segments"] == ["two", "zero"]
    assert label["cls"].dtype == np.float32


def test_labels_of_other_classes_are_nothing_to_evaluate_on(data: Path) -> None:
    found = {"path": data.parent, "train": "t", "val": str(data.parent / "images" / "val"), "channels": 3}
    names = {0: "circle", 1: "square", 2: "triangle up"}
    assert describe({**found, "names": names}, {0: "car"}, "val", None)["kd_label_names"] == {}
    assert describe({**found, "names": names}, {0: "Circle"}, "val", None)["kd_label_names"] == names


def test_folders_and_descriptions_are_told_apart(data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.touch()
    assert is_description(data)
    assert is_description(data.parent)  # a folder with a YAML, as the host takes it
    assert is_description("coco8")
    assert not is_description(data.parent / "images" / "train")
    assert not is_description(listed)


def test_the_command_line_looks_at_the_images_first(data: Path, tmp_path: Path) -> None:
    train_folder = str(data.parent / "images" / "train")
    check_images({"data": train_folder, "kd_names": WANTED})
    check_images({"data": str(data), "kd_names": WANTED})
    check_images({"data": str(data), "kd_unlabeled": train_folder})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data=.*no images in it"):
        check_images({"data": str(tmp_path / "empty"), "kd_names": WANTED})
    with pytest.raises(UserError, match=r"data=.*there is no"):
        check_images({"data": str(tmp_path / "none.txt"), "kd_names": WANTED})
    with pytest.raises(UserError, match=r"kd_unlabeled=.*there is no"):
        check_images({"data": str(data), "kd_unlabeled": str(tmp_path / "none")})
    for path in (data.parent / "labels" / "train").glob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match=r"none of the training images has labels.*kd_names=\[car,bus\]"):
        check_images({"data": str(data)})


# Gains ----------------------------------------------------------------------------------------------------------------
def test_gains_are_measured_against_the_task_on_the_teachers_detections() -> None:
    model, criterion = tiny_criterion("bckd", kd_gain="auto", kd_share=1.0, kd_names=list(NAMES), bckd_box=0.0)
    batch = {"img": tiny_batch(images=3)["img"], LABELED: 0}
    batch |= {"cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}
    logits = criterion.links[0].teacher(batch["img"]).branches["one2many"].logits
    criterion.confidence = float(logits.sigmoid().amax(-1).topk(5).values[:, -1].min()) * 0.999
    preds = model(batch["img"])
    loss, items = criterion(preds, batch)
    assert loss[:3].tolist() == [0, 0, 0]
    assert [float(items[name]) for name in ("box_loss", "cls_loss", "dfl_loss")] == [0, 0, 0]
    output = read_output(preds)
    link = criterion.links[0]
    own, other, targets = criterion.pair(link, output, link.teacher(batch["img"]), "one2many", batch)
    assert len(targets.boxes) >= 3
    centre, extent = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2, targets.boxes[:, 2:] - targets.boxes[:, :2]
    labels = {
        "img": batch["img"],
        "cls": targets.labels[:, None].float(),
        "bboxes": torch.cat((centre, extent), 1) / 64,
        "batch_idx": targets.image_index.float(),
    }
    task = criterion.task.base(preds, labels)[0].sum() / 3
    term = criterion.methods["bckd"][0].parts(own, other, targets)["cls"]
    expected = gradient_norm(task, output.feats) / gradient_norm(term, output.feats)
    assert criterion.unit_gain("bckd_cls") == pytest.approx(float(expected), rel=1e-4)
    loss.sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    assert sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None) > 0


def test_two_branch_students_learn_in_both_branches() -> None:
    model, criterion = tiny_criterion("bckd", "yolo26n", "yolo26n", kd_names=list(NAMES), kd_gain="auto")
    batch = {"img": tiny_batch(images=2)["img"], LABELED: 0}
    batch |= {"cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}
    criterion.confidence = 0.01
    loss, items = model(batch)
    loss.sum().backward()
    assert set(items) == {"box_loss", "cls_loss", "l1_loss", "bckd_loss"}
    head = model.model[-1]
    for layers in (head.cv2, head.cv3, head.one2one_cv2, head.one2one_cv3):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layers.parameters())


# Keys -----------------------------------------------------------------------------------------------------------------
def test_what_is_not_said_is_chosen_for_it() -> None:
    assert complete({"kd_names": ["a"]}) == {"kd_names": ["a"], "kd_share": 1.0}
    assert complete({"kd_names": ["a"]}, {"kd_share": 2.0}) == {"kd_names": ["a"]}
    assert complete({"kd_names": ["a"], "method": "ld+pcd", "kd_share": 0.5})["kd_share"] == 0.5
    assert complete({"epochs": 3}) == {"epochs": 3} == complete({"epochs": 3}, {}, "segment")
    assert complete({}, {}, "rtdetr") == {"method": "dfmsd"}
    assert complete({}, {}, "obb") == {"bckd_box": 0.0} and complete({"method": "bckd"}, {}, "obb") == {
        "method": "bckd"
    }
    two = {"teacher": ["a.pt", "b.pt"]}
    assert complete(two)["method"] == "dfmsd" == complete(two, {}, "rtdetr")["method"]
    assert complete({**two, "kd_teachers": "together"}) == {**two, "kd_teachers": "together"}
    assert complete({**two, "method": "dfmsd"})["method"] == "dfmsd"
    assert class_names("car") == {0: "car"}


def check(**overrides: Any) -> None:
    given: Mapping[str, Any] = {"teacher": "t.pt", "kd_names": ["car", "bus"], "method": "bckd", **overrides}
    consistency.validate({**config.DEFAULTS, **config.check(dict(given))})


@pytest.mark.parametrize("method", ["bckd", "pcd+ld", "dfmsd+bckd", "samkd+ld", "pcd+bckd"])
def test_methods_that_teach_the_whole_head_are_taken(method: str) -> None:
    check(method=method)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"method": "none"}, ["learns from labels", "method=bckd"]),
        ({"method": "ultralytics"}, ["learns from labels"]),
        ({"method": "dfmsd+pcd"}, ["box output", "method=dfmsd+pcd+bckd"]),
        ({"method": "ld"}, ["class output", "method=ld+bckd"]),
        ({"method": "crosskd"}, ["method=crosskd+bckd"]),
        ({"bckd_box": 0.0}, ["box output"]),
        ({"bckd_cls": 0.0}, ["class output"]),
        ({"kd_unlabeled": "more"}, ["kd_unlabeled=more", "data="]),
        ({"kd_names": ["car", "Car "]}, ["each class once"]),
        ({"kd_names": []}, ["names nothing", "kd_names=[car,bus]"]),
        ({"kd_stop": 0.5}, ["kd_stop=0.5", "kd_stop=1.0"]),
        ({"teacher_epochs": 3}, ["teacher_epochs=3", "teacher_epochs=0"]),
        ({"single_cls": True}, ["single_cls"]),
        ({"classes": 0}, ["classes=0", "leave classes out"]),
        ({"task": "segment"}, ["segment"]),
    ],
)
def test_what_does_not_go_without_labels_is_refused(overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        check(**overrides)
    assert all(word in str(raised.value) for word in words), raised.value


def test_names_that_the_teacher_does_not_know_are_refused(tmp_path: Path, data: Path, tiny_teacher: Teacher) -> None:
    with pytest.raises(UserError, match=r"does not know bus.*it knows circle, square, triangle_up.*kd_class_map"):
        train(tmp_path, data, teacher=str(tiny_teacher("yolov8n")), kd_names=["circle", "bus"])
    assert not (tmp_path / "run").exists()


def test_names_are_matched_through_the_class_map() -> None:
    model = tiny_model()
    ready([model], {0: "round", 1: "SQUARE"}, {"round": "circle"})
    with pytest.raises(UserError, match="round"):
        ready([model], {0: "round"})


class Open(torch.nn.Module):
    """An open-vocabulary model whose text encoder is or is not at hand."""

    def __init__(self, encoder: bool):
        super().__init__()
        self.names, self.encoder, self.set = {0: "person"}, encoder, [""]

    def set_classes(self, names: list[str]) -> None:
        if not self.encoder:
            raise ModuleNotFoundError("No module named 'clip'")
        self.set = names


def test_a_teacher_of_open_vocabulary_is_given_the_names() -> None:
    model = Open(encoder=True)
    ready([model], {0: "forklift", 1: "pallet"})
    assert model.set == ["forklift", "pallet"]
    assert model.names == {0: "forklift", 1: "pallet"}
    ready([model := Open(encoder=False)], {0: "Person"})  # known already: nothing to encode
    assert model.names == {0: "person"}
    with pytest.raises(UserError, match=r"text encoder is not at hand.*clip.*set_classes\(\['forklift'\]\)"):
        ready([Open(encoder=False)], {0: "forklift"})


class OpenByEmbeddings(Open):
    """One that takes embeddings of the names, as YOLOE does."""

    def get_visual_pe(self) -> None:
        """Embed images."""

    def get_text_pe(self, names: list[str]) -> list[int]:
        return [len(name) for name in names]

    def set_classes(self, names: list[str], embeddings: list[int] | None = None) -> None:
        assert embeddings == [len(name) for name in names]
        super().set_classes(names)


def test_a_teacher_that_takes_embeddings_is_given_those_of_the_names() -> None:
    ready([model := OpenByEmbeddings(encoder=True)], {0: "forklift"})
    assert model.set == ["forklift"] and model.names == {0: "forklift"}


def test_validation_images_alone_are_nothing_to_learn_from(data: Path) -> None:
    images = str(data.parent / "images" / "val")
    with pytest.raises(UserError, match="all training images are validation images as well"):
        training_files({"train": images, "val": images, LABELS: True}, "val")
