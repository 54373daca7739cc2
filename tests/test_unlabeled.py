"""Images without labels beside labelled ones: what a batch is made of, and what acts on which part of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from ultralytics.data import build_yolo_dataset
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import load_checkpoint

from tests.task_data import task_batch, task_data, task_model
from tests.tiny import overrides_for, rows, set_up, tiny_batch, tiny_criterion, train
from yolokd import DistillationTrainer, config
from yolokd.compare import worker as compare_worker
from yolokd.compare.plan import make_plan
from yolokd.compare.trainer import MeasuringTrainer
from yolokd.config import consistency
from yolokd.drawn.shapes import draw_dataset
from yolokd.errors import UserError
from yolokd.losses import LOSSES
from yolokd.outputs import read_output
from yolokd.saving.records import write_json
from yolokd.taps import Taps, Targets
from yolokd.task import LABELED, Task, first
from yolokd.trainers import TRAINERS
from yolokd.unlabeled.pseudo import joined, pseudo_targets, thinned
from yolokd.unlabeled.sources import absolute, files, unlabeled_files
from yolokd.unlabeled.stream import JoinedLoader, Together, build_unlabeled, fitted, join, shares

pytestmark = pytest.mark.usefixtures("own_start")

Teacher = Callable[[str], Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn dataset of 8 + 4 images; `fraction=0.25` makes 2 of the 8 the labelled ones."""
    return draw_dataset(tmp_path_factory.mktemp("unlabeled") / "shapes", images=(8, 4), imgsz=64, seed=0, classes=3)


def run(folder: Path, data: Path, teacher: Path, **overrides: Any) -> DistillationTrainer:
    """Return a trainer with 2 labelled and 6 unlabelled images that is ready for its first step."""
    settings = {"method": "bckd", "teacher": str(teacher), "fraction": 0.25, "kd_unlabeled": "rest"}
    return set_up(folder, data, **{**settings, **overrides})


def names_of(paths: Any) -> set[str]:
    return {Path(path).name for path in paths}


# What a batch is made of ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("batch", "labeled", "unlabeled", "ratio", "expected"),
    [
        (16, 20, 185, "auto", (2, 14)),  # 16 * 185 / 205 = 14.4
        (16, 20, 185, 0.5, (8, 8)),
        (16, 20, 185, 0.95, (1, 15)),  # 15.2
        (16, 2000, 10, "auto", (15, 1)),  # 0.08 of an image would be none
        (2, 5, 5, 0.9, (1, 1)),
        (16, 3, 100, 0.5, (3, 13)),  # there are no more labelled images: others take their place
        (16, 100, 3, 0.5, (13, 3)),
        (16, 3, 4, 0.5, (3, 4)),
    ],
)
def test_shares_of_a_batch(batch: int, labeled: int, unlabeled: int, ratio: Any, expected: tuple[int, int]) -> None:
    assert shares(batch, labeled, unlabeled, ratio) == expected


def test_images_are_cut_or_padded_about_their_centre() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(fitted(image, (4, 4)), image)
    assert torch.equal(fitted(image, (2, 4)), image[:, :, 1:3])
    wide = fitted(image, (4, 6))
    assert torch.equal(wide[..., 1:5], image)
    assert (wide[..., [0, 5]] == 114).all()


def test_labels_of_a_joined_batch_are_those_of_its_first_images() -> None:
    own = {"img": torch.zeros(2, 3, 8, 8), "cls": torch.ones(3, 1), "im_file": ("a", "b"), "masks": torch.ones(2, 2, 2)}
    other = {"img": torch.ones(1, 3, 8, 8), "cls": torch.zeros(0, 1), "im_file": ("c",), "masks": torch.zeros(1, 2, 2)}
    batch = join(own, {**other, LABELED: 0})
    assert batch[LABELED] == 2
    assert batch["img"].mean((1, 2, 3)).tolist() == [0, 0, 1]
    assert batch["im_file"] == ("a", "b", "c")
    assert batch["cls"] is own["cls"]
    assert batch["masks"] is own["masks"]


@pytest.mark.parametrize("rect", [False, True])
def test_every_batch_holds_both_kinds_in_their_places(
    tmp_path: Path, data: Path, tiny_teacher: Teacher, rect: bool
) -> None:
    trainer = run(tmp_path, data, tiny_teacher("yolov8n"), rect=rect)
    loader = trainer.train_loader
    labeled = names_of(loader.dataset.im_files)
    assert len(labeled) == 2
    assert len(loader.dataset) == 8
    assert len(loader) == 2  # all 8 images in batches of 4
    assert loader.batch_size == 4
    assert len(loader.sampler) == 8
    seen: list[str] = []
    for _ in range(2):
        for batch in loader:
            own = batch[LABELED]
            assert own == 1  # 4 * 2 / 8
            assert len(batch["img"]) == len(batch["im_file"]) == 4
            assert names_of(batch["im_file"][:own]) <= labeled
            assert not names_of(batch["im_file"][own:]) & labeled
            assert (batch["batch_idx"] < own).all()
            assert len(batch["cls"]) == len(batch["bboxes"]) == len(batch["batch_idx"])
            seen += [Path(path).name for path in batch["im_file"][own:]]
    assert len(set(seen[:6])) == 6  # a pass shows every image once
    assert len(set(seen[6:])) == 6


def test_mosaic_never_mixes_labelled_and_unlabelled_images(tmp_path: Path, tiny_teacher: Teacher) -> None:
    data = draw_dataset(tmp_path / "shapes", images=(6, 2), imgsz=64, seed=0, classes=3)
    folder = tmp_path / "more"
    folder.mkdir()
    for position, path in enumerate(sorted((tmp_path / "shapes" / "images" / "train").iterdir())):
        cv2.imwrite(str(path), np.full((64, 64, 3), (255, 0, 0), np.uint8))  # labelled ones are blue
        cv2.imwrite(str(folder / f"{position}.png"), np.full((64, 64, 3), (0, 0, 255), np.uint8))  # the others red
    plain = {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "mixup": 0.5, "cutmix": 0.5, "copy_paste": 0.5}
    trainer = run(tmp_path, data, tiny_teacher("yolov8n"), fraction=1.0, kd_unlabeled=str(folder), **plain)
    red = blue = 0
    for _ in range(5):
        for batch in trainer.train_loader:
            own, images = batch[LABELED], batch["img"].float()
            difference = images[:, 2] - images[:, 0]  # blue less red; the grey of the border is neither
            assert (difference[:own] >= 0).all()
            assert (difference[own:] <= 0).all()
            blue += int((difference[:own] > 200).flatten(1).any(1).sum())
            red += int((difference[own:] < -200).flatten(1).any(1).sum())
    assert red == blue == 5 * 3 * 2


def test_closing_mosaic_reaches_both_and_keeps_the_streams_going(
    tmp_path: Path, data: Path, tiny_teacher: Teacher
) -> None:
    trainer = run(tmp_path, data, tiny_teacher("yolov8n"), epochs=4, close_mosaic=2)
    loader = trainer.train_loader
    list(loader)
    before = [part.dataset.transforms for part in loader.loaders]
    trainer._close_dataloader_mosaic()
    loader.reset()
    assert all(part.dataset.transforms is not old for part, old in zip(loader.loaders, before))
    for part in loader.loaders:
        assert part.dataset.transforms.transforms[0].transforms[0].p == 0  # the host's mosaic comes first
    assert len(list(loader)) == 2


def test_the_dataset_is_built_as_the_host_builds_its_own(tmp_path: Path, data: Path, tiny_teacher: Teacher) -> None:
    trainer = run(tmp_path, data, tiny_teacher("yolov8n"))
    paths = files(trainer.data["train"], "data")
    ours = build_unlabeled(trainer.args, paths, 4, trainer.data, 32)
    hosts: Any = build_yolo_dataset(trainer.args, trainer.data["train"], 4, trainer.data, stride=32, fraction=1.0)
    skipped = {"labels", "im_files", "label_files", "npy_files", "transforms", "prefix", "img_path", "buffer"}
    own, other = ({k: v for k, v in vars(d).items() if k not in skipped} for d in (ours, hosts))
    assert own == other
    assert repr([type(t) for t in ours.transforms.transforms]) == repr([type(t) for t in hosts.transforms.transforms])
    assert names_of(ours.im_files) == names_of(hosts.im_files)
    assert all(len(label["cls"]) == 0 for label in ours.labels)  # there are label files, which are not read
    assert any(len(label["cls"]) for label in hosts.labels)


def test_the_batch_size_is_estimated_for_all_images(
    tmp_path: Path, data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = run(tmp_path, data, tiny_teacher("yolov8n"))
    asked: list[tuple[int, int]] = []

    def estimate(self: Any, max_num_obj: int = 0, dataset_size: int = 0) -> int:
        asked.append((max_num_obj, dataset_size))
        return 4

    monkeypatch.setattr(BaseTrainer, "auto_batch", estimate)
    assert trainer.auto_batch() == 4
    most = max(len(label["cls"]) for label in trainer.train_loader.dataset.labels)
    assert asked == [(4 * most, 8)]


def test_devices_share_a_pass_and_a_resumed_run_numbers_its_passes_on() -> None:
    def loader(rank: int, count: int, batch: int) -> Any:
        dataset: Any = TensorDataset(torch.arange(count))
        dataset.close_mosaic = lambda hyp: None

        def collate(items: Any) -> dict[str, Any]:
            return {"img": torch.stack([item[0] for item in items]).view(-1, 1, 1, 1), LABELED: 0}

        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=True, seed=0)
        return DataLoader(dataset, batch_size=batch, sampler=sampler, collate_fn=collate)

    def seen(joined_loader: JoinedLoader, epoch: int) -> list[int]:
        joined_loader.sampler.set_epoch(epoch)
        return [int(v) for batch in joined_loader for v in batch["img"].flatten()]

    ranks = [JoinedLoader(loader(rank, 8, 1), loader(rank, 24, 3), steps=4) for rank in (0, 1)]
    first = [seen(rank, 0) for rank in ranks]
    second = [seen(rank, 1) for rank in ranks]
    assert not set(np.array(first[0]).reshape(4, 4)[:, 0]) & set(np.array(first[1]).reshape(4, 4)[:, 0])
    assert not set(np.array(first[0]).reshape(4, 4)[:, 1:].flat) & set(np.array(first[1]).reshape(4, 4)[:, 1:].flat)
    assert first != second
    resumed = [JoinedLoader(loader(rank, 8, 1), loader(rank, 24, 3), steps=4) for rank in (0, 1)]
    assert [seen(rank, 1) for rank in resumed] == second


def test_an_interrupted_comparison_sees_the_images_of_an_uninterrupted_one(
    tmp_path: Path, data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its plain arm trains on the labelled images alone, for as many steps."""
    settings = {"epochs": 3, "imgsz": 64, "batch": 4, "workers": 0, "fraction": 0.25, "kd_unlabeled": "rest"}
    extra = {"optimizer": "SGD", "close_mosaic": 1, "plots": False, "kd_preflight": False, "patience": 0}
    plan = make_plan(
        "yolov8n.yaml", [str(tiny_teacher("yolov8n"))], str(data), "val", ["none", "bckd"], [0],
        {**settings, **extra}, "test",
    )  # fmt: skip
    assert any("kd_unlabeled" in note for note in plan["notes"])
    original = MeasuringTrainer.save_model

    class Stop(Exception):
        pass

    def measured(seed: int, arm: str, stops: tuple[Any, ...] = (None,)) -> dict[str, Any]:
        folder = tmp_path / f"run{seed}" / "seed0" / arm
        folder.mkdir(parents=True)
        write_json(folder.parents[1] / "plan.json", plan)
        for stop in stops:

            def save(self: Any, stop: Any = stop) -> bool:
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

    whole, cut = measured(0, "bckd"), measured(1, "bckd", (1, 2, None))
    assert whole["stream"] == cut["stream"]
    assert cut["resumed"] == [1, 2]
    plain = measured(2, "none")
    assert plain["stream"]["batches"] == whole["stream"]["batches"] == 6
    assert compare_worker.other_images(plan, "none")
    assert not compare_worker.other_images(plan, "bckd")


# Which images are meant -----------------------------------------------------------------------------------------------
def test_images_are_found_in_folders_lists_and_descriptions(data: Path, tmp_path: Path) -> None:
    folder = data.parent / "images" / "train"
    whole = names_of(folder.glob("*.png")) or names_of(folder.iterdir())
    whole = {name for name in whole if not name.endswith(".cache")}
    listed = tmp_path / "some.txt"
    listed.write_text("".join(f"{folder / name}\n" for name in sorted(whole)[:3]), encoding="utf-8")
    assert names_of(files(str(folder), "kd_unlabeled")) == whole
    assert names_of(files(str(data), "kd_unlabeled")) == whole
    assert names_of(files(str(listed), "kd_unlabeled")) == set(sorted(whole)[:3])
    both = files([str(listed), str(folder)], "kd_unlabeled")
    assert names_of(both) == whole
    assert len(both) == len(whole)


def test_labelled_and_validation_images_are_left_out_and_that_is_said(
    tmp_path: Path, data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    everything = data.parent / "images"
    trainer = run(tmp_path, data, tiny_teacher("yolov8n"), kd_unlabeled=str(everything))
    unlabeled = trainer.train_loader.loaders[1].dataset
    assert len(unlabeled) == 6
    (line,) = [line for line in said if line.startswith("kd_unlabeled")]
    assert "6 images without labels join 2 with labels, 3 and 1 in each batch" in line
    assert "2 labelled training images among them are left out" in line
    assert "4 validation or test images among them are left out" in line


def test_the_rest_leaves_out_nothing_that_has_to_be_said(
    tmp_path: Path, data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    run(tmp_path, data, tiny_teacher("yolov8n"))
    (line,) = [line for line in said if line.startswith("kd_unlabeled")]
    assert line.endswith("6 images without labels join 2 with labels, 3 and 1 in each batch")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere/at/all", ["kd_unlabeled=nowhere/at/all", "there is no", "e.g. kd_unlabeled=path/to/images"]),
        ("EMPTY", ["no images in it"]),
        ("TRAIN", ["no image is left", "8 are labelled training images"]),
        ("VAL", ["no image is left", "4 are validation or test images"]),
    ],
)
def test_sources_without_any_use_are_refused(tmp_path: Path, data: Path, value: str, words: list[str]) -> None:
    train_folder, val = data.parent / "images" / "train", data.parent / "images" / "val"
    (tmp_path / "empty").mkdir()
    given = {"EMPTY": tmp_path / "empty", "TRAIN": train_folder, "VAL": val}.get(value, value)
    labeled = files(str(train_folder), "data")
    with pytest.raises(UserError) as raised:
        unlabeled_files(str(given), str(train_folder), labeled, [str(val)])
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"kd_unlabeled": "rest"}, ["fraction=", "fraction=0.1"]),
        ({"kd_unlabeled": "rest", "fraction": [1.0, 0.5]}, ["fraction="]),
        ({"kd_unlabeled": "more", "batch": 1}, ["batch=", "batch=16"]),
    ],
)
def test_keys_that_contradict_each_other_are_refused(overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        consistency.validate({**config.DEFAULTS, "teacher": "t.pt", **overrides})
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_folder_that_is_not_there_leaves_no_run_behind(tmp_path: Path, data: Path, tiny_teacher: Teacher) -> None:
    with pytest.raises(UserError, match="kd_unlabeled"):
        train(tmp_path, data, teacher=str(tiny_teacher("yolov8n")), kd_unlabeled=str(tmp_path / "nothing"))
    assert not (tmp_path / "run").exists()


def test_a_source_is_kept_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    assert absolute(["images", tmp_path / "images"]) == [str(tmp_path / "images")] * 2


def test_joined_datasets_can_be_copied() -> None:
    both = Together([[1, 2], [3]])
    assert len(deepcopy(both)) == 3
    with pytest.raises(AttributeError, match="__wrapped__"):
        _ = both.__wrapped__


def test_the_first_images_of_an_output_are_taken_however_it_is_nested() -> None:
    part = torch.arange(6).view(3, 2)
    found = first({"a": [part, None], "b": (part, 5)}, 2)
    assert found["a"][1] is None and found["b"][1] == 5
    assert torch.equal(found["a"][0], part[:2]) and torch.equal(found["b"][0], part[:2])


def test_too_small_a_batch_for_both_kinds_is_refused(tmp_path: Path, data: Path, tiny_teacher: Teacher) -> None:
    """On several devices, of which each gets its part."""
    trainer: Any = run(tmp_path, data, tiny_teacher("yolov8n"), batch=2)
    with pytest.raises(UserError, match=r"batch=2 leaves 1 for each device; use a larger batch"):
        trainer.get_dataloader(trainer.data["train"], batch_size=1)


# What acts on which part ----------------------------------------------------------------------------------------------
def mixed(labeled: dict[str, Any], unlabeled: torch.Tensor) -> dict[str, Any]:
    """Return a preprocessed batch with unlabelled images behind the labelled ones."""
    return {**labeled, "img": torch.cat((labeled["img"], unlabeled)), LABELED: len(labeled["img"])}


def outputs(model: Any, images: torch.Tensor) -> Any:
    """Return a model's training output with batch normalisation in evaluation mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model(images)


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_the_task_learns_from_the_labelled_images_alone(name: str, task: str) -> None:
    model = task_model(name, task, seed=1)
    _, criterion = tiny_criterion("bckd", "yolov8n")  # for the arguments
    model.args = deepcopy(criterion.task.base.hyp)
    labeled = task_batch(task, images=2)
    images = mixed(labeled, torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(5)))
    alone_loss, alone = Task(model.init_criterion())(outputs(model, labeled["img"]), labeled)
    images["img"].requires_grad_()
    loss, items = Task(model.init_criterion())(outputs(model, images["img"]), images)
    assert alone.keys() == items.keys()
    for key, value in alone.items():
        torch.testing.assert_close(items[key], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, alone_loss * 5 / 2, rtol=1e-4, atol=1e-4)  # its mean counts for all 5 images
    (gradient,) = torch.autograd.grad(loss.sum(), images["img"])
    assert gradient[:2].abs().sum() > 0
    assert gradient[2:].abs().sum() == 0


def test_nothing_changes_for_batches_that_are_labelled_throughout() -> None:
    model, criterion = tiny_criterion("bckd")
    batch, preds = tiny_batch(), outputs(model, tiny_batch()["img"])
    plain, _ = criterion.task.base(preds, batch)
    assert torch.equal(criterion.task(preds, batch)[0], plain)
    assert torch.equal(criterion.task(preds, {**batch, LABELED: 2})[0], plain)


def surest(criterion: Any, images: torch.Tensor) -> float:
    """Return a threshold which some of a teacher's anchors pass in each image."""
    logits = criterion.links[0].teacher(images).branches["one2many"].logits
    return float(logits.sigmoid().amax(-1).topk(4).values[:, -1].min()) * 0.999


@pytest.mark.parametrize("head", ["yolov8n", "yolo26n"])
@pytest.mark.parametrize("method", LOSSES)
def test_every_method_acts_on_unlabelled_images(head: str, method: str) -> None:
    if method == "ld" and head == "yolo26n":
        pytest.skip("a head without bins")
    model, criterion = tiny_criterion(method, head, head, kd_unlabeled="more", kd_unlabeled_confidence=0.5)
    unlabeled = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    batch = mixed(tiny_batch(images=1), unlabeled)
    if criterion.links[0].teacher.branches:
        criterion.confidence = surest(criterion, batch["img"])
    outputs(model, batch["img"])  # the layers' modes
    batch["img"].requires_grad_()
    loss, items = model(batch)
    assert float(items[f"{method}_loss"]) > 0
    (gradient,) = torch.autograd.grad(loss[-1], batch["img"])
    assert gradient[1:].abs().sum() > 0


@pytest.mark.parametrize("imgsz", [64, 96])
@pytest.mark.parametrize("method", ["sgfi", "bckd"])
def test_a_teacher_of_rotated_boxes_detects_at_any_image_size(method: str, imgsz: int) -> None:
    keys = {"kd_unlabeled": "more", "teacher_imgsz": imgsz, "bckd_box": 0.0}
    model, criterion = tiny_criterion(method, "yolov8n", task_model("yolov8n", "obb", seed=2), **keys)
    batch = mixed(tiny_batch(images=1), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(6)))
    criterion.confidence = surest(criterion, batch["img"])
    model(batch)
    detected = criterion.task.detected["one2many"]
    assert detected.positives.any(dim=1).all()
    assert set(detected.image_index.tolist()) == {1, 2}
    assert (detected.boxes[:, 2:] > detected.boxes[:, :2]).any() and detected.boxes.max() <= 64


def test_the_teachers_head_runs_for_region_methods_on_unlabelled_images_alone() -> None:
    def branches(method: str, **keys: Any) -> tuple[str, ...]:
        return tiny_criterion(method, **keys)[1].links[0].teacher.branches

    assert branches("sgfi") == branches("ckd") == ()
    assert branches("sgfi", kd_unlabeled="more") == branches("ckd", kd_unlabeled="more") == ("one2many",)
    assert branches("dfmsd", kd_unlabeled="more") == ()


def test_targets_are_the_tasks_own_and_then_the_teachers() -> None:
    model, criterion = tiny_criterion("bckd", kd_unlabeled="more")
    batch = mixed(tiny_batch(images=2), torch.rand(1, 3, 64, 64))
    criterion.confidence = surest(criterion, batch["img"])
    preds = outputs(model, batch["img"])
    criterion.task(preds, batch)
    link = criterion.links[0]
    _, other, targets = criterion.pair(link, read_output(preds), link.teacher(batch["img"]), "one2many", batch)
    assert targets.positives.shape == targets.scores.shape == (3, 84)
    assigned = criterion.task.assignments["one2many"]
    assert torch.equal(targets.positives[:2], assigned.positives)
    assert torch.equal(targets.scores[:2], assigned.scores)
    probability = other.logits.sigmoid().amax(-1)
    assert torch.equal(targets.positives[2], probability[2] > criterion.confidence)
    assert int(targets.positives[2].sum()) >= 4
    assert (targets.image_index[:6] == torch.tensor([0, 0, 0, 1, 1, 1])).all()
    assert (targets.image_index[6:] == 2).all()
    assert int(criterion.task.objects()) == int(targets.positives.sum())


# What stands in for labels --------------------------------------------------------------------------------------------
def drawn_taps(probabilities: list[list[float]], distances: list[float] | None = None) -> Taps:
    """Return taps of two images on one level of 1 x 3 cells of stride 32, with plain box distances in strides."""
    logits = torch.tensor(probabilities).view(2, 3, -1).logit()
    boxes = torch.tensor(distances or [0.25] * 24).view(2, 3, 4)
    return Taps([torch.zeros(2, 1, 1, 3)], (32,), logits, boxes)


def test_pseudo_targets_by_hand() -> None:
    # Image 1 has the same box from cells 0 and 1 (class 0 of the matched ones), another class in cell 2.
    taps = drawn_taps(
        [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.1], [0.8, 0.2], [0.3, 0.7]],
        [0.25] * 12 + [0.5, 0.5, 1.5, 0.5] + [1.5, 0.5, 0.5, 0.5] + [0.25, 0.25, 2.0, 0.25],
    )
    found = pseudo_targets(taps, first=1, confidence=0.5, classes=(4, 2))
    assert found.positives.tolist() == [[True, True, True]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.6, 0.8, 0.7]]))
    # The centres are x = 16, 48, 80 and y = 16. Both boxes of class 0 are 0..64 x 0..32: the surer one stays.
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0.0, 64.0, 32.0], [72.0, 8.0, 96.0, 24.0]]))
    assert found.labels.tolist() == [4, 2]
    assert found.image_index.tolist() == [1, 1]
    one = pseudo_targets(taps, first=1, confidence=0.5, classes=(4, 2), one_each=True)
    assert one.positives.tolist() == [[False, True, True]]
    torch.testing.assert_close(one.scores, torch.tensor([[0.0, 0.8, 0.7]]))


def test_pseudo_targets_above_the_threshold_alone_and_by_image() -> None:
    taps = drawn_taps([[0.9], [0.4], [0.5], [0.3], [0.7], [0.2]])
    found = pseudo_targets(taps, first=0, confidence=0.5)
    assert found.positives.tolist() == [[True, False, False], [False, True, False]]
    assert found.image_index.tolist() == [0, 1]
    assert found.labels.tolist() == [0, 0]
    none = pseudo_targets(taps, first=0, confidence=0.95)
    assert none.boxes.shape == (0, 4)
    assert not none.positives.any()
    assert none.scores.sum() == 0


def test_pseudo_targets_of_other_images_and_classes_do_not_compete() -> None:
    """One box, 0..64 x 0..32, of class 0 on the first image, of both classes on the second; images stay in order."""
    box = [0.5, 0.5, 1.5, 0.5] + [1.5, 0.5, 0.5, 0.5] + [0.25] * 4
    taps = drawn_taps([[0.6, 0.1], [0.1, 0.1], [0.1, 0.1], [0.8, 0.1], [0.1, 0.7], [0.1, 0.1]], box * 2)
    taps.logits.requires_grad_()  # of a teacher that was not frozen
    found = pseudo_targets(taps, first=0, confidence=0.5, classes=((4, 5), 2))
    assert (found.image_index.tolist(), found.labels.tolist()) == ([0, 1, 1], [4, 4, 2])
    torch.testing.assert_close(found.boxes, torch.tensor([0.0, 0.0, 64.0, 32.0]).expand(3, 4))
    assert not found.scores.requires_grad


@pytest.mark.parametrize(("below", "count"), [(0.125, 2), (0.25, 1)])
def test_pseudo_targets_overlap_by_seven_tenths_and_lie_in_the_image(below: float, count: int) -> None:
    """Boxes of 64 x 32 and of 64 x 20 or 64 x 24 pixels: IoU 0.625 or 0.75. The first one reaches out by 16 pixels."""
    boxes = [1.0, 1.0, 1.5, 0.5] + [1.5, 0.5, 0.5, below] + [0.25] * 4
    found = pseudo_targets(drawn_taps([[0.9], [0.6], [0.1]] * 2, boxes * 2), first=1, confidence=0.5)
    assert len(found.boxes) == count
    assert found.boxes[0].tolist() == [0.0, 0.0, 64.0, 32.0]


def test_pseudo_targets_of_a_teacher_without_a_head_are_none() -> None:
    found = pseudo_targets(Taps([torch.zeros(3, 1, 1, 3)], (32,)), first=1, confidence=0.5)
    assert found.positives.shape == found.scores.shape == (2, 3)
    assert not found.positives.any()
    assert len(found.boxes) == len(found.labels) == len(found.image_index) == 0
    nothing = Taps([torch.zeros(3, 1, 1, 3)], (32,), logits=torch.zeros(3, 3, 0), boxes=torch.ones(3, 3, 4))
    assert not pseudo_targets(nothing, first=1, confidence=0.5).positives.any()  # it knows none of the classes


def test_joined_targets_follow_each_other() -> None:
    part = Targets(
        torch.ones(1, 4), torch.zeros(1).long(), torch.zeros(1).long(), torch.ones(1, 3).bool(), torch.ones(1, 3)
    )
    both = joined([part, part])
    assert both.boxes.shape == (2, 4)
    assert both.positives.shape == (2, 3)
    assert joined([part]) is part
    both = joined([replace(part, sums=(torch.tensor(5), torch.tensor(2.5))), part])
    assert [float(total) for total in both.sums] == [5 + 3, 2.5 + 3]  # the first on more levels than its own


# Whole runs -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny_teacher: Teacher) -> Iterator[Callable[..., Any]]:
    """A finished run of 2 epochs."""
    folder = tmp_path_factory.mktemp("runs")

    def finished(name: str, **overrides: Any) -> Any:
        given: dict[str, Any] = {"fraction": 0.25, "kd_unlabeled": "rest", "name": name, **overrides}
        if overrides.get("method") != "none":
            given = {"method": "bckd", "teacher": str(tiny_teacher("yolov8n")), **given}
        return train(folder, data, **given)

    yield finished


def test_a_run_with_every_option_of_the_loaders(runs: Callable[..., Any]) -> None:
    trainer = runs("all", plots=True, cache="ram", multi_scale=0.5, cls_pw=0.5, kd_val=True, kd_preflight=True)
    found = rows(trainer.save_dir)
    assert len(found) == 2
    assert all(row["train/bckd_loss"] > 0 and row["val/bckd_loss"] > 0 for row in found)
    assert all(row["train/cls_loss"] > 0 for row in found)
    assert (trainer.save_dir / "train_batch0.jpg").exists()
    model = load_checkpoint(trainer.last)[0]
    assert "criterion" not in model._modules


def test_plain_training_keeps_the_steps(runs: Callable[..., Any], said: list[str]) -> None:
    plain = runs("plain", method="none")
    assert len(plain.train_loader) == 2
    assert all(LABELED not in batch and len(batch["img"]) == 2 for batch in plain.train_loader)  # there are but 2
    assert any("method=none learns from the 2 labelled images alone" in line for line in said)


@pytest.mark.parametrize(
    "task", ["segment", pytest.param("pose", marks=pytest.mark.slow), pytest.param("obb", marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # the host draws in threads
def test_runs_of_other_tasks(tmp_path: Path, tiny_teacher: Teacher, task: str) -> None:
    settings = overrides_for(
        tmp_path,
        task_data(tmp_path / "data", task),
        model={"segment": "yolov8n-seg.yaml", "pose": "yolov8n-pose.yaml", "obb": "yolov8n-obb.yaml"}[task],
        method="dfmsd",
        teacher=str(tiny_teacher("yolov8n")),
        fraction=0.5,
        kd_unlabeled="rest",
        epochs=1,
        plots=True,
        task=task,
    )
    trainer = TRAINERS[task](overrides=settings)
    trainer.train()
    (row,) = rows(trainer.save_dir)
    assert row["train/dfmsd_loss"] > 0
    assert row["train/cls_loss"] > 0


def test_an_epoch_of_unequal_parts_counts_all_images(tmp_path: Path, data: Path, tiny_teacher: Teacher) -> None:
    trainer = run(tmp_path, data, tiny_teacher("yolov8n"), kd_unlabeled_ratio=0.5, batch=3)
    assert len(trainer.train_loader) == math.ceil(8 / 3)
    assert [batch[LABELED] for batch in trainer.train_loader] == [1, 1, 1]


def test_thinned_logits_answer_at_one_anchor_of_an_object() -> None:
    """Of two images of three anchors and two classes the medians are (1, -2) and (0, 3)."""
    logits = torch.tensor([[[4.0, -3], [1, -2], [0, 2]], [[0.0, 3], [-1, 5], [2, 3]]])
    chosen = torch.tensor([[True, False, False], [False, False, False]])
    found = thinned(Taps([torch.zeros(2, 1, 1, 3)], (32,), logits=logits), chosen).logits
    assert found is not None
    assert found.tolist() == [[[4, -3], [1, -2], [0, -2]], [[0, 3], [-1, 3], [0, 3]]]
    without = Taps([torch.zeros(2, 1, 1, 3)], (32,))
    assert thinned(without, chosen) is without


@pytest.mark.parametrize("labeled", [3, 2, 0])
def test_a_one_to_one_branch_is_taught_by_a_teacher_without_one_where_there_are_no_labels(labeled: int) -> None:
    """From a one-to-many branch it would learn to predict an object several times."""
    model, criterion = tiny_criterion("bckd", "yolo26n", "yolov8n", kd_unlabeled="rest")
    batch = tiny_batch(images=3)
    kept = batch["batch_idx"] < labeled
    batch = {**batch, LABELED: labeled, **{key: batch[key][kept] for key in ("cls", "bboxes", "batch_idx")}}
    criterion.confidence = 0.01
    module = criterion.methods["bckd"][0]
    calls: list[Any] = []
    plain = module.parts
    module.parts = lambda *given: calls.append(given) or plain(*given)
    loss, _ = model(batch)
    loss.sum().backward()
    (own, other, targets), *rest = calls
    assert len(own.logits) == len(other.logits) == len(targets.positives) == 3
    if labeled == 3:
        assert not rest
        return
    ((single, thin, found),) = rest
    assert len(single.logits) == len(thin.logits) == len(single.feats[0]) == len(found.positives) == 3 - labeled
    assert found.positives.sum() == len(found.boxes) > 0
    assert set(found.image_index.tolist()) <= set(range(3 - labeled))
    dense = other.logits[labeled:]
    assert torch.equal(thin.logits[found.positives], dense[found.positives])
    rest_of_it = thin.logits.masked_fill(found.positives.unsqueeze(-1), -torch.inf).amax(1)
    assert torch.all(rest_of_it <= dense.median(dim=1).values)
    head = model.model[-1]
    for layers in (head.one2one_cv2, head.one2one_cv3):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layers.parameters())


def test_a_one_to_one_branch_is_taught_by_its_like_as_that_answers() -> None:
    """A teacher with such a branch answers at one anchor of an object already: nothing of it is changed."""
    model, criterion = tiny_criterion("bckd", "yolo26n", "yolo26n", kd_unlabeled="rest")
    batch = tiny_batch(images=2)
    batch = {**batch, LABELED: 0, **{key: batch[key][:0] for key in ("cls", "bboxes", "batch_idx")}}
    module, teacher = criterion.methods["bckd"][0], criterion.links[0].teacher
    calls: list[Any] = []
    plain = module.parts
    module.parts = lambda *given: calls.append(given) or plain(*given)
    model(batch)
    (_, many, _), (_, single, _) = calls
    raw = teacher(batch["img"])
    torch.testing.assert_close(single.logits, raw.branches["one2one"].logits)
    torch.testing.assert_close(many.logits, raw.branches["one2many"].logits)
