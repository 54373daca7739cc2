"""The drawn dataset: the same files for the same arguments, labels that fit the drawings, and no half-done folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.data.utils import check_det_dataset

from yolokd.drawn import drawing as drawing_module
from yolokd.drawn import shapes
from yolokd.drawn.drawing import SHAPES, Drawing, _place, draw_image
from yolokd.drawn.shapes import draw_dataset
from yolokd.errors import UserError

TINY = {"images": (3, 2), "imgsz": 64, "classes": 4}


def digest(root: Path) -> dict[str, str]:
    """Hash of each file by its path in the folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_same_arguments_give_the_same_files_and_another_seed_gives_others(tmp_path: Path) -> None:
    first = digest(draw_dataset(tmp_path / "a", **TINY).parent)
    assert first == digest(draw_dataset(tmp_path / "b", **TINY).parent)
    other = digest(draw_dataset(tmp_path / "c", seed=1, **TINY).parent)
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".png"))


def test_images_do_not_depend_on_how_many_there_are_and_splits_differ(tmp_path: Path) -> None:
    few = digest(draw_dataset(tmp_path / "few", **TINY).parent)
    many = digest(draw_dataset(tmp_path / "many", **{**TINY, "images": (5, 4)}).parent)
    shared = [name for name in few if name.startswith(("images", "labels"))]
    assert len(shared) == 10 and all(few[name] == many[name] for name in shared)
    pictures = [value for name, value in many.items() if name.endswith(".png")]
    assert len(set(pictures)) == 9


def test_layout_is_what_ultralytics_reads_without_absolute_paths(tmp_path: Path) -> None:
    path = draw_dataset(tmp_path / "data", **TINY)
    text = path.read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "path" not in yaml.safe_load(text)
    data = check_det_dataset(str(path))
    assert data["names"] == dict(enumerate(list(SHAPES)[:4])) and data["channels"] == 3
    for split, count in zip(("train", "val"), TINY["images"]):
        assert Path(data[split]) == (path.parent / "images" / split).resolve()
        images = sorted((path.parent / "images" / split).iterdir())
        assert len(images) == count
        assert [p.stem for p in images] == [p.stem for p in sorted((path.parent / "labels" / split).iterdir())]
        assert cv2.imread(str(images[0])).shape == (64, 64, 3)


def test_a_moved_dataset_still_works(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "here", **TINY).parent.rename(tmp_path / "there")
    assert Path(check_det_dataset(str(tmp_path / "there" / "data.yaml"))["train"]).parts[-3:] == (
        "there",
        "images",
        "train",
    )


def test_grayscale_has_one_channel(tmp_path: Path) -> None:
    path = draw_dataset(tmp_path / "gray", channels=1, **TINY)
    assert check_det_dataset(str(path))["channels"] == 1
    image = cv2.imread(str(path.parent / "images/train/00000.png"), cv2.IMREAD_UNCHANGED)
    assert image.shape == (64, 64)


@settings(deadline=None, max_examples=25)
@given(index=st.integers(0, 10_000), imgsz=st.sampled_from([32, 64, 100]), classes=st.integers(1, len(SHAPES)))
def test_labels_lie_in_the_image_and_have_size(index: int, imgsz: int, classes: int) -> None:
    image, labels = draw_image(Drawing(imgsz=imgsz, classes=classes), 0, index)
    assert image.shape == (imgsz, imgsz, 3) and image.dtype == np.uint8
    assert 1 <= len(labels) <= 7  # the first object always finds a place
    assert set(labels[:, 0]) <= set(range(classes))
    corners = np.concatenate((labels[:, 1:3] - labels[:, 3:] / 2, labels[:, 1:3] + labels[:, 3:] / 2))
    assert corners.min() >= -1e-9 and corners.max() <= 1 + 1e-9
    assert (labels[:, 3:] * imgsz > 2).all()


@pytest.mark.parametrize("name", list(SHAPES))
def test_each_shape_fills_its_box_and_nothing_outside(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        alpha, (x1, y1, x2, y2) = _place(rng, SHAPES[name], 128)
        rows, columns = np.nonzero(alpha > 0.02)
        assert abs(columns.min() - x1) <= 1.5 and abs(columns.max() + 1 - x2) <= 1.5
        assert abs(rows.min() - y1) <= 1.5 and abs(rows.max() + 1 - y2) <= 1.5
        assert 0.15 < alpha.sum() / ((x2 - x1) * (y2 - y1)) <= 1.05


def test_labels_are_where_the_image_differs_from_its_background() -> None:
    plain = Drawing(imgsz=128, clutter=0, noise=0, objects=(1, 1))
    for index in range(10):
        image, labels = draw_image(plain, 0, index)
        centre, size = labels[0, 1:3] * 128, labels[0, 3:] * 128
        (x1, y1), (x2, y2) = (centre - size / 2).round().astype(int), (centre + size / 2).round().astype(int)
        edges = cv2.morphologyEx(image, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)).max(axis=2).astype(float)
        inside = np.zeros((128, 128), dtype=bool)
        inside[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2] = True
        assert edges[inside].max() > 2 * edges[~inside].max()  # the shape's outline lies within its box


def test_no_object_is_mostly_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[np.ndarray] = []
    paint = drawing_module._paint

    def record(rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray) -> None:
        masks.append(alpha >= 0.5)
        paint(rng, canvas, alpha)

    monkeypatch.setattr(drawing_module, "_paint", record)
    hidden = 0.0
    for index in range(30):
        masks.clear()
        draw_image(Drawing(imgsz=96, objects=(6, 9), clutter=2), 0, index)
        for position, mask in enumerate(masks):
            above = np.logical_or.reduce([mask & False, *masks[position + 1 :]])
            hidden = max(hidden, (mask & above).sum() / mask.sum())
    assert 0.05 < hidden <= 0.35 + 1e-9  # there is overlap, but never over a third of a thing


def test_what_finds_no_place_is_left_out() -> None:
    crowded = Drawing(imgsz=32, objects=(60, 60), clutter=20)
    _, labels = draw_image(crowded, 0, 0)
    assert 1 <= len(labels) < 60


def test_a_folder_that_cannot_be_put_in_its_place_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(shapes.os, "replace", fail)
    with pytest.raises(PermissionError, match="not allowed"):
        draw_dataset(tmp_path / "data", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = draw_dataset(tmp_path / "data", **TINY)
    before = {name: name.stat().st_mtime_ns for name in path.parent.rglob("*")}
    monkeypatch.setattr(shapes, "draw_image", lambda *args: pytest.fail("drawn again"))
    assert draw_dataset(tmp_path / "data", **TINY) == path
    assert before == {name: name.stat().st_mtime_ns for name in path.parent.rglob("*")}


def test_another_dataset_or_other_files_are_never_overwritten(tmp_path: Path) -> None:
    path = draw_dataset(tmp_path / "data", **TINY)
    before = digest(path.parent)
    with pytest.raises(UserError, match="something else"):
        draw_dataset(tmp_path / "data", seed=5, **TINY)
    assert digest(path.parent) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(UserError, match="something else"):
        draw_dataset(tmp_path / "mine", **TINY)
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "precious"
    (path.parent / "images/train/00001.png").unlink()
    with pytest.raises(UserError, match="lost files"):
        draw_dataset(tmp_path / "data", **TINY)
    (path.parent / "drawing.json").write_text(json.dumps({"version": 0}), encoding="utf-8")
    with pytest.raises(UserError, match="something else"):
        draw_dataset(tmp_path / "data", **TINY)


def test_an_interrupted_call_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(drawing: Drawing, split: int, index: int) -> None:
        if split == 1:
            raise KeyboardInterrupt
        return draw_image(drawing, split, index)

    monkeypatch.setattr(shapes, "draw_image", fail)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "data", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_the_loser_of_a_race_takes_the_winners_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = shapes.os.replace

    def other_first(source: Path, target: Path) -> None:
        monkeypatch.setattr(shapes.os, "replace", replace)
        draw_dataset(tmp_path / "data", **TINY)
        replace(source, target)

    monkeypatch.setattr(shapes.os, "replace", other_first)
    path = draw_dataset(tmp_path / "data", **TINY)
    assert path.is_file() and [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"images": (0, 2)}, "images"),
        ({"imgsz": 16}, "imgsz"),
        ({"classes": 0}, "classes"),
        ({"classes": 99}, "classes"),
        ({"channels": 2}, "channels"),
        ({"objects": (3, 2)}, "objects"),
        ({"noise": -1}, "noise"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(
    wrong: dict[str, object], text: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{text}="):
        draw_dataset(tmp_path / "data", **{**TINY, **wrong})
    assert list(tmp_path.iterdir()) == []
