"""COCO evaluation: hand-made cases with exact numbers, labels as Ultralytics reads them, agreement with its own AP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.tiny import tiny_model
from yolokd.drawn.shapes import draw_dataset
from yolokd.errors import UserError
from yolokd.evaluation import validation
from yolokd.evaluation.bootstrap import average_precision, collect_matches, paired_bootstrap
from yolokd.evaluation.evaluate import (
    Evaluation,
    NoCommonClass,
    bootstrap,
    coco_ground_truth,
    evaluate,
    map_classes,
    score,
)

Box = tuple[float, float, float, float]


def truth(objects: list[tuple[int, int, Box]], images: int = 1, classes: int = 2, crowds: tuple[int, ...] = ()) -> Any:
    """Return ground truth from (image id, class, box) rows; the rows whose positions are in crowds are crowds."""
    return {
        "info": {"data": "", "split": "val", "single_cls": False, "classes": None},
        "images": [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(1, images + 1)],
        "annotations": [
            {
                "id": n + 1,
                "image_id": i,
                "category_id": c,
                "bbox": list(b),
                "area": b[2] * b[3],
                "iscrowd": int(n in crowds),
            }
            for n, (i, c, b) in enumerate(objects)
        ],
        "categories": [{"id": c, "name": "abcdefgh"[c]} for c in range(classes)],
    }


def found(*rows: tuple[int, int, Box, float]) -> list[dict[str, Any]]:
    """Return detections from (image id, class, box, score) rows."""
    return [{"image_id": i, "category_id": c, "bbox": list(b), "score": s} for i, c, b, s in rows]


A: Box = (10, 10, 20, 20)
B: Box = (100, 100, 40, 40)


class TestScore:
    def test_perfect(self) -> None:
        result = score(truth([(1, 0, A), (1, 1, B)]), found((1, 0, A, 0.9), (1, 1, B, 0.8)))
        numbers = (result.ap, result.ap50, result.ap75, result.ar, result.ap_small, result.ap_medium)
        assert numbers == pytest.approx((1.0,) * 6, abs=1e-12)
        assert result.ap_large is None  # no object is that large
        assert result.per_class == pytest.approx({"a": 1.0, "b": 1.0})
        assert result.objects == {"a": 1, "b": 1} and result.images == 1 and result.max_detections == 100

    def test_one_of_two_missed(self) -> None:
        """Precision is 1 up to recall 0.5: 51 of the 101 recall points."""
        result = score(truth([(1, 0, A), (1, 0, B)]), found((1, 0, A, 0.9)))
        assert result.ap == pytest.approx(51 / 101, abs=1e-12)
        assert result.ar == pytest.approx(0.5)
        assert (result.ap_small, result.ap_medium) == pytest.approx((1.0, 0.0))

    def test_wrong_class(self) -> None:
        """The class without objects has no AP and does not enter the mean."""
        result = score(truth([(1, 0, A)]), found((1, 1, A, 0.9)))
        assert result.ap == 0.0
        assert result.per_class == {"a": 0.0, "b": None}

    @pytest.mark.parametrize("height, passed", [(5.0, 1), (7.5, 6), (4.99, 0), (7.49, 5)])
    def test_iou_at_a_threshold(self, height: float, passed: int) -> None:
        """A box of full width and part of the height has that part as IoU; reaching a threshold is enough."""
        result = score(truth([(1, 0, (0, 0, 10, 10))]), found((1, 0, (0, 0, 10, height), 0.9)))
        assert result.ap == pytest.approx(passed / 10, abs=1e-12)
        assert result.ap50 == pytest.approx(float(passed >= 1), abs=1e-12)
        assert result.ap75 == pytest.approx(float(passed >= 6), abs=1e-12)

    @pytest.mark.parametrize("false_score, expected", [(0.95, 0.5), (0.5, 1.0)])
    def test_false_positive_on_an_empty_image(self, false_score: float, expected: float) -> None:
        """Above the hit it halves the precision at every recall, below it changes nothing."""
        result = score(truth([(1, 0, A)], images=2), found((1, 0, A, 0.9), (2, 0, A, false_score)))
        assert result.ap == pytest.approx(expected, abs=1e-12)

    def test_second_detection_of_an_object_is_false(self) -> None:
        """Hit, duplicate, hit: precision 1 up to recall 0.5, then 2/3, i.e. (51 + 50 * 2 / 3) / 101."""
        result = score(truth([(1, 0, A), (1, 0, B)]), found((1, 0, A, 0.9), (1, 0, A, 0.8), (1, 0, B, 0.7)))
        assert result.ap == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)

    def test_no_detections(self) -> None:
        result = score(truth([(1, 0, A)]), [])
        assert (result.ap, result.ar, result.per_class["a"]) == (0.0, 0.0, 0.0)

    def test_no_objects(self) -> None:
        """Without any object there is no number, and None is what JSON can hold."""
        for detections in ([], found((1, 0, A, 0.9))):
            result = score(truth([]), detections)
            assert (result.ap, result.ap50, result.ap_small, result.ar) == (None,) * 4
            assert set(result.per_class.values()) == {None}

    def test_detection_on_a_crowd_is_not_counted(self) -> None:
        """The crowd is neither to be found, nor is a detection within it false."""
        ground_truth = truth([(1, 0, A), (1, 0, (90, 90, 80, 80))], crowds=(1,))
        result = score(ground_truth, found((1, 0, B, 0.95), (1, 0, A, 0.9)))
        assert result.ap == pytest.approx(1.0, abs=1e-12)
        assert result.objects["a"] == 1
        assert score(truth([(1, 0, A)]), found((1, 0, B, 0.95), (1, 0, A, 0.9))).ap == pytest.approx(0.5, abs=1e-12)

    def test_more_than_100_objects(self) -> None:
        """The limit of 100 detections would cap the recall at 2/3."""
        boxes = [(10.0 * (n % 15), 10.0 * (n // 15), 8.0, 8.0) for n in range(150)]
        result = score(
            truth([(1, 0, b) for b in boxes]), found(*((1, 0, b, 0.9 - n / 1000) for n, b in enumerate(boxes)))
        )
        numbers = (result.ap, result.ap50, result.ap75, result.ap_small, result.ar, result.per_class["a"])
        assert numbers == pytest.approx((1.0,) * 6, abs=1e-12)
        assert result.max_detections == 150

    def test_the_limit_is_per_image_and_class(self) -> None:
        """102 objects, but never more than 100 in one image and class; crowds are not to be found."""
        spread = truth([(i, 0, A) for i in range(1, 103)], images=102)
        assert score(spread, []).max_detections == 100
        boxes = [(10.0 * (n % 15), 10.0 * (n // 15), 8.0, 8.0) for n in range(102)]
        classes = truth([(1, n % 2, b) for n, b in enumerate(boxes)])
        assert score(classes, []).max_detections == 100
        crowds = truth([(1, 0, b) for b in boxes], crowds=(5, 50))
        assert score(crowds, []).max_detections == 100 and score(crowds, []).objects == {"a": 100, "b": 0}
        assert score(truth([(1, 0, b) for b in boxes], crowds=(5,)), []).max_detections == 101

    def test_false_detections_count_in_the_area_they_have(self) -> None:
        """An object of 40 x 40 pixels is found, below a false detection of small or of medium area."""
        ground_truth = truth([(1, 0, B)])
        for box, medium in (((10, 10, 10, 10), 1.0), ((10, 10, 50, 40), 0.5)):
            result = score(ground_truth, found((1, 0, B, 0.9), (1, 0, box, 0.95)))
            assert (result.ap, result.ap_medium) == pytest.approx((0.5, medium), abs=1e-12)
            assert result.ap_small is None and result.ap_large is None
        large = score(truth([(1, 0, (0, 0, 100, 100))]), found((1, 0, (0, 0, 100, 100), 0.9)), host_ap=0.25)
        assert (large.ap_large, large.host_ap) == (pytest.approx(1.0), 0.25) and large.ap_medium is None

    def test_inputs_stay_and_nothing_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        ground_truth, detections = truth([(1, 0, A)]), found((1, 0, A, 0.9))
        result = score(ground_truth, detections)
        assert ground_truth == truth([(1, 0, A)]) and detections == found((1, 0, A, 0.9))
        assert result.detections == detections and result.detections[0] is not detections[0]
        assert capsys.readouterr() == ("", "")
        assert "detections" not in result.to_dict() and result.to_dict()["per_class"] == {
            "a": pytest.approx(1.0),
            "b": None,
        }
        result.to_dict()["per_class"].clear()
        assert set(result.per_class) == {"a", "b"}

    def test_classes_of_one_name_stay_apart(self) -> None:
        ground_truth = truth([(1, 0, A), (1, 1, B)])
        ground_truth["categories"] = [{"id": 0, "name": "cell"}, {"id": 1, "name": "cell"}]
        assert score(ground_truth, found((1, 0, A, 0.9))).per_class == pytest.approx({"cell (0)": 1.0, "cell (1)": 0.0})


def random_case(seed: int, images: int = 12, classes: int = 3) -> tuple[Any, list[dict[str, Any]]]:
    """Return ground truth with crowds and empty images, and detections near and far from the objects."""
    rng = np.random.default_rng(seed)
    objects: list[tuple[int, int, Box]] = []
    rows: list[tuple[int, int, Box, float]] = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 5)):
            box = (*rng.uniform(0, 140, 2), *rng.uniform(10, 60, 2))
            objects.append((image, int(rng.integers(classes)), box))
            for _ in range(rng.integers(0, 3)):
                near = (*(np.asarray(box) * rng.uniform(0.85, 1.15, 4)),)
                rows.append((image, objects[-1][1], near, float(rng.uniform())))
        for _ in range(rng.integers(0, 3)):
            far = (*rng.uniform(0, 140, 2), *rng.uniform(10, 60, 2))
            rows.append((image, int(rng.integers(classes)), far, float(rng.uniform())))
    crowds = tuple(int(n) for n in np.flatnonzero(rng.uniform(size=len(objects)) < 0.1))
    return truth(objects, images=images, classes=classes, crowds=crowds), found(*rows)


def repeated(ground_truth: Any, detections: list[dict[str, Any]], counts: np.ndarray) -> Evaluation:
    """Return pycocotools' numbers of a set in which each image is listed a number of times."""
    listed = {**ground_truth, "images": [], "annotations": []}
    kept = []
    for image, count in zip(ground_truth["images"], counts.tolist()):
        for _ in range(count):
            new = len(listed["images"]) + 1
            listed["images"].append({**image, "id": new})
            for a in ground_truth["annotations"]:
                if a["image_id"] == image["id"]:
                    listed["annotations"].append({**a, "image_id": new, "id": len(listed["annotations"]) + 1})
            kept += [{**d, "image_id": new} for d in detections if d["image_id"] == image["id"]]
    return score(listed, kept)


class TestBootstrap:
    @pytest.mark.parametrize("seed", range(5))
    def test_every_image_once_is_pycocotools(self, seed: int) -> None:
        result = score(*random_case(seed))
        once = average_precision(result.matches, np.ones((1, 12), dtype=np.int64))
        assert 0.05 < once[0] < 0.95
        assert once[0] == pytest.approx(result.ap, abs=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_resamples_are_pycocotools_on_the_repeated_images(self, seed: int) -> None:
        ground_truth, detections = random_case(seed)
        counts = np.random.default_rng(seed).multinomial(12, np.full(12, 1 / 12), size=6)
        got = average_precision(score(ground_truth, detections).matches, counts)
        expected = [repeated(ground_truth, detections, row).ap for row in counts]
        assert got == pytest.approx(expected, abs=1e-12)

    def test_equal_scores_keep_the_order_of_the_images(self) -> None:
        """On the first half of 80 images the object is found, on the other something else, with two scores in turn.

        Of the higher score 20 hits come first, precision 1 up to recall 1/4, then 20 misses; then 20 hits of the lower
        score, precision 40 / 60 at recall 1/2. Recall points are 26 up to 1/4 and 25 more up to 1/2.
        """
        ground_truth = truth([(i, 0, A) for i in range(1, 81)], images=80)
        rows = [(i, 0, A if i <= 40 else B, 0.9 if i % 2 else 0.5) for i in range(1, 81)]
        result = score(ground_truth, found(*rows))
        once = average_precision(result.matches, np.ones((1, 80), dtype=np.int64))
        assert (once[0], result.ap) == pytest.approx(((26 + 25 * 2 / 3) / 101,) * 2)

    def test_a_class_that_is_not_drawn_is_left_out(self) -> None:
        """Class a is on image 1 and found, class b on image 2 and missed, image 3 is empty."""
        result = score(truth([(1, 0, A), (2, 1, B)], images=3), found((1, 0, A, 0.9)))
        counts = np.asarray([[1, 1, 1], [3, 0, 0], [0, 2, 1], [0, 0, 3]])
        assert average_precision(result.matches, counts) == pytest.approx([0.5, 1.0, 0.0, np.nan], nan_ok=True)

    def test_parts_do_not_change_the_result(self, monkeypatch: pytest.MonkeyPatch) -> None:
        matches = score(*random_case(0)).matches
        counts = np.random.default_rng(0).multinomial(12, np.full(12, 1 / 12), size=7)
        whole = average_precision(matches, counts)
        monkeypatch.setattr("yolokd.evaluation.bootstrap.CHUNK", 1)
        assert np.array_equal(average_precision(matches, counts), whole)

    def test_a_model_against_itself(self) -> None:
        result = score(*random_case(1))
        same = bootstrap(result, result, samples=50)
        assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)

    def test_a_perfect_model_against_a_blind_one(self) -> None:
        ground_truth = truth([(i, 0, A) for i in range(1, 11)], images=10)
        perfect = score(ground_truth, found(*((i, 0, A, 0.9) for i in range(1, 11))))
        result = bootstrap(perfect, score(ground_truth, []), samples=199)
        assert (result.difference, result.low, result.high) == pytest.approx((1.0, 1.0, 1.0))
        assert result.p == pytest.approx(2 / 200) and result.images == 10

    def test_spread_of_a_known_case(self) -> None:
        """Both find all with score 1; one has a false detection above on half the images of one object each.

        With F false ones of N the AP is N / (N + F), F binomial with mean 50 and standard deviation 5 of N = 100.
        """
        ground_truth = truth([(i, 0, A) for i in range(1, 101)], images=100)
        hits = [(i, 0, A, 0.5) for i in range(1, 101)]
        worse = score(ground_truth, found(*hits, *((i, 0, B, 0.9) for i in range(1, 51))))
        result = bootstrap(score(ground_truth, found(*hits)), worse, samples=2000)
        assert result.difference == pytest.approx(50 / 150)
        assert result.low == pytest.approx(40.2 / 140.2, abs=0.01)  # 50 -+ 1.96 * 5
        assert result.high == pytest.approx(59.8 / 159.8, abs=0.01)
        assert bootstrap(score(ground_truth, found(*hits)), worse, samples=2000) == result  # the seed decides

    def test_interval_and_p_of_two_images_by_hand(self) -> None:
        """One object on each image; one model finds both, the other only that of the second image.

        The two images are drawn (2, 0), (1, 1) or (0, 2) times with probabilities 1/4, 1/2, 1/4. The second model's AP
        is then 0, 51 / 101 or 1, so the difference is 1, 50 / 101 or 0.
        """
        ground_truth = truth([(1, 0, A), (2, 0, A)], images=2)
        both, one = (score(ground_truth, found(*((i, 0, A, 0.9) for i in ids))) for ids in ((1, 2), (2,)))
        wide = bootstrap(both, one, samples=4000)
        assert (wide.difference, wide.low, wide.high) == pytest.approx((50 / 101, 0.0, 1.0))
        assert wide.p == pytest.approx(2 * 1 / 4, abs=0.05)
        assert (wide.images, wide.samples, wide.confidence) == (2, 4000, 0.95)
        narrow = bootstrap(both, one, samples=4000, confidence=0.4)  # from the 30th to the 70th of 100
        assert (narrow.low, narrow.high) == pytest.approx((50 / 101, 50 / 101)) and narrow.confidence == 0.4
        middle = bootstrap(both, one, samples=4000, confidence=0.6)  # from the 20th to the 80th of 100
        assert (middle.low, middle.high) == pytest.approx((0.0, 1.0))
        turned = bootstrap(one, both, samples=4000)
        assert (turned.difference, turned.low, turned.high) == pytest.approx((-50 / 101, -1.0, 0.0))
        assert turned.p == wide.p
        assert bootstrap(both, one, samples=4000, seed=1).p != wide.p
        assert bootstrap(both, one) == bootstrap(both, one, samples=1000, seed=0, confidence=0.95)
        assert paired_bootstrap(both.matches, one.matches) == bootstrap(both, one)

    def test_resamples_without_any_object_are_not_counted(self) -> None:
        """Of two images one has the object; a quarter of the resamples leave that one out."""
        ground_truth = truth([(1, 0, A)], images=2)
        result = bootstrap(score(ground_truth, found((1, 0, A, 0.9))), score(ground_truth, []), samples=2000)
        assert result.samples == pytest.approx(1500, abs=100)
        assert (result.difference, result.low, result.high) == pytest.approx((1.0, 1.0, 1.0))
        assert result.p == pytest.approx(2 / (result.samples + 1))

    def test_other_images_are_refused(self) -> None:
        first, renumbered = score(truth([(1, 0, A)]), []), truth([(7, 0, A)])
        renumbered["images"][0]["id"] = 7
        for other in (truth([(1, 0, A)], images=2), truth([(1, 1, A)]), renumbered):
            with pytest.raises(ValueError, match="same images"):
                bootstrap(first, score(other, []))
        with pytest.raises(ValueError, match="samples=0"):
            bootstrap(first, first, samples=0)
        for confidence in (0.0, 1.0):
            with pytest.raises(ValueError, match=f"confidence={confidence}"):
                bootstrap(first, first, confidence=confidence)
        assert bootstrap(first, first, samples=1).samples == 1

    def test_without_objects_there_is_no_difference(self) -> None:
        result = bootstrap(score(truth([]), []), score(truth([]), []), samples=10)
        assert (result.difference, result.low, result.p, result.samples) == (None, None, None, 0)

    def test_matches_read_what_pycocotools_counted(self) -> None:
        """The evaluator's own order of detections and images is kept."""
        result = score(truth([(2, 0, A)], images=2), found((1, 0, A, 0.3), (2, 0, A, 0.6)))
        first = result.matches.classes[0]
        assert first.image.tolist() == [1, 0] and first.hit.all(axis=0).tolist() == [True, False]
        assert first.objects.tolist() == [0, 1] and callable(collect_matches)


def write_dataset(root: Path, labels: dict[str, str | None], sizes: dict[str, tuple[int, int]] | None = None) -> Path:
    """Write grey images (width, height) with label texts (None: no file) as the val split of two classes."""
    for folder in ("images", "labels"):
        (root / folder / "val").mkdir(parents=True)
    for name, text in labels.items():
        width, height = (sizes or {}).get(name, (100, 50))
        Image.new("RGB", (width, height), (90, 90, 90)).save(root / "images" / "val" / f"{name}.png")
        if text is not None:
            (root / "labels" / "val" / f"{name}.txt").write_text(text)
    (root / "data.yaml").write_text("train: images/val\nval: images/val\nnames: {0: cat, 1: dog}\n")
    return root / "data.yaml"


class TestGroundTruth:
    def test_boxes_in_original_pixels(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, {"a": "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.2 0.2\n"}, {"a": (333, 77)})
        ground_truth = coco_ground_truth(data)
        assert [(i["width"], i["height"]) for i in ground_truth["images"]] == [(333, 77)]
        assert ground_truth["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
        boxes = {a["category_id"]: a for a in ground_truth["annotations"]}
        assert boxes[1]["bbox"] == pytest.approx([0.4 * 333, 0.3 * 77, 0.2 * 333, 0.4 * 77], rel=1e-5)
        assert boxes[1]["area"] == pytest.approx(0.08 * 333 * 77, rel=1e-5) and boxes[1]["iscrowd"] == 0
        assert all(type(value) is int for a in boxes.values() for value in (a["id"], a["image_id"], a["category_id"]))
        assert min(a["id"] for a in boxes.values()) == 1

    def test_images_without_objects_are_there(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, {"a": "0 0.5 0.5 0.2 0.4\n", "b": "", "c": None})
        ground_truth = coco_ground_truth(data)
        assert [Path(i["file_name"]).stem for i in ground_truth["images"]] == ["a", "b", "c"]
        assert [a["image_id"] for a in ground_truth["annotations"]] == [1]

    def test_a_polygon_becomes_its_box(self, tmp_path: Path) -> None:
        ground_truth = coco_ground_truth(write_dataset(tmp_path, {"a": "0 0.1 0.2 0.5 0.2 0.3 0.6\n"}))
        assert ground_truth["annotations"][0]["bbox"] == pytest.approx([10, 10, 40, 20], rel=1e-5)

    def test_boxes_are_clipped_and_duplicates_dropped(self, tmp_path: Path) -> None:
        ground_truth = coco_ground_truth(write_dataset(tmp_path, {"a": "0 0.9 0.5 0.4 0.4\n" * 2}))
        assert [a["bbox"] for a in ground_truth["annotations"]] == [pytest.approx([70, 15, 30, 20], rel=1e-5)]

    def test_turned_image(self, tmp_path: Path) -> None:
        """A camera's orientation tag swaps the sides, as it does when the image is read."""
        data = write_dataset(tmp_path, {"a": "0 0.5 0.5 0.2 0.4\n"})
        (tmp_path / "images" / "val" / "a.png").unlink()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (100, 50)).save(tmp_path / "images" / "val" / "a.jpg", exif=exif)
        image = coco_ground_truth(data)["images"][0]
        assert (image["width"], image["height"]) == (50, 100)
        assert cv2.imread(image["file_name"]).shape[:2] == (100, 50)

    def test_one_class_and_some_classes(self, tmp_path: Path) -> None:
        data = write_dataset(tmp_path, {"a": "1 0.5 0.5 0.2 0.4\n0 0.1 0.2 0.2 0.2\n"})
        single = coco_ground_truth(data, single_cls=True)
        assert [a["category_id"] for a in single["annotations"]] == [0, 0]
        assert single["categories"] == [{"id": 0, "name": "item"}]
        assert [a["category_id"] for a in coco_ground_truth(data, classes=[1])["annotations"]] == [1]

    def test_a_split_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="split=test"):
            coco_ground_truth(write_dataset(tmp_path, {"a": "0 0.5 0.5 0.2 0.4\n"}), split="test")


class TestMapClasses:
    @pytest.mark.parametrize(
        "model, dataset, expected",
        [
            ({0: "a", 1: "b"}, {0: "a", 1: "b"}, {0: 0, 1: 1}),
            ({0: "a", 1: "b"}, {0: "b", 1: "a"}, {0: 1, 1: 0}),
            ({0: "Traffic Light", 1: "x"}, {0: "car", 1: "traffic_light"}, {0: 1}),
            ({0: "class0", 1: "class1"}, {0: "a", 1: "b"}, {0: 0, 1: 1}),
            ({0: "0", 1: "1"}, {0: "a", 1: "b"}, {0: 0, 1: 1}),
            ({0: "a", 1: "b"}, {0: "class_0", 1: "class_1"}, {0: 0, 1: 1}),
            ({0: "a"}, {0: "item"}, {0: 0}),
        ],
    )
    def test_known(self, model: dict[int, str], dataset: dict[int, str], expected: dict[int, int]) -> None:
        assert map_classes(model, dataset) == expected

    def test_a_map_renames_and_joins(self) -> None:
        model, dataset = {0: "car", 1: "truck", 2: "dog"}, {0: "dog", 1: "vehicle"}
        assert map_classes(model, dataset, {"vehicle": ["car", "truck"]}) == {0: 1, 1: 1, 2: 0}
        assert map_classes({0: "a", 1: "b"}, {0: "a", 1: "b"}, {"a": "b"}) == {1: 0}

    def test_nothing_matches(self) -> None:
        for dataset in ({0: "a", 1: "b"}, {0: "a", 1: "b", 2: "c"}, {0: "class0", 1: "b", 2: "c"}):
            with pytest.raises(NoCommonClass, match=r"none of the model's 3 classes \(x, y, z\) is among the data's"):
                map_classes({0: "x", 1: "y", 2: "z"}, dataset)


class Seer(nn.Module):
    """A detector that reads coloured rectangles off the image, with blurred boxes, misses and false alarms.

    Output as of a v8 head in eval mode: (B, 4 + 3, A), x, y, w, h in pixels of the network's image, then class scores.
    What it says of an object depends on the seed and the object's pixels alone.
    """

    def __init__(self, seed: int = 0, names: tuple[str, ...] = ("red", "green", "blue")) -> None:
        super().__init__()
        self.names, self.stride, self.seed = dict(enumerate(names)), torch.tensor([32.0]), seed
        self.weight = nn.Parameter(torch.zeros(1))

    def fuse(self, verbose: bool = False) -> Seer:
        return self

    def forward(self, x: torch.Tensor, augment: bool = False, embed: Any = None, **_: Any) -> torch.Tensor:
        output = torch.zeros(x.shape[0], 7, 40)
        for b, image in enumerate(x.permute(0, 2, 3, 1).cpu().numpy()):
            slot = 0
            for c in range(3):
                others = np.delete(image, c, axis=2).max(axis=2)
                mask = ((image[..., c] > 0.5) & (others < 0.4)).astype(np.uint8)
                for row in cv2.connectedComponentsWithStats(mask)[2][1:]:
                    left, top, width, height, area = (int(v) for v in row)
                    rng = np.random.default_rng([self.seed, c, left, top, width, height, area])
                    if area < 20 or rng.uniform() < 0.1:
                        continue
                    box = np.asarray([left + width / 2, top + height / 2, width, height])
                    box += rng.normal(0, 0.06, 4) * (width, height, width, height)
                    for label, shift, high in ((c, 0.0, 0.95), (int(rng.integers(3)), rng.uniform(0, 1.5), 0.7)):
                        moved = box + np.asarray([shift * width, 0, 0, 0])
                        output[b, :4, slot] = torch.as_tensor(moved, dtype=torch.float32)
                        output[b, 4 + label, slot] = float(rng.uniform(0.1, high))
                        slot += 1
        return output


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw 30 images of many sizes with rectangles in the colours of their classes, some images empty."""
    root = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder / "val").mkdir(parents=True)
    for index in range(30):
        width, height = (int(v) for v in rng.integers(120, 400, 2))
        image = np.zeros((height, width, 3), dtype=np.uint8)
        rows = []
        for cell in range(9) if index % 6 else ():  # a 3 x 3 grid keeps the rectangles apart
            if rng.uniform() < 0.5:
                continue
            cw, ch = width // 3, height // 3
            w, h = (int(rng.integers(12, side - 4)) for side in (cw, ch))
            left = cell % 3 * cw + int(rng.integers(2, cw - w))
            top = cell // 3 * ch + int(rng.integers(2, ch - h))
            c = int(rng.integers(3))
            image[top : top + h, left : left + w, c] = 255
            rows.append(f"{c} {(left + w / 2) / width} {(top + h / 2) / height} {w / width} {h / height}")
        cv2.imwrite(str(root / "images" / "val" / f"{index}.png"), image[..., ::-1])
        (root / "labels" / "val" / f"{index}.txt").write_text("\n".join(rows))
    (root / "data.yaml").write_text("train: images/val\nval: images/val\nnames: [red, green, blue]\n")
    return root / "data.yaml"


class TestAgainstUltralytics:
    @pytest.mark.parametrize("imgsz, batch", [(320, 4), (256, 16)])
    def test_ap_agrees_with_ultralytics_own(self, coloured: Path, tmp_path: Path, imgsz: int, batch: int) -> None:
        from ultralytics.models.yolo.detect import DetectionValidator

        args = {"data": str(coloured), "imgsz": imgsz, "batch": batch, "rect": True, "plots": False, "device": "cpu"}
        validator = DetectionValidator(args=args, save_dir=tmp_path)
        validator(model=Seer())
        result = evaluate(Seer(), coloured, imgsz=imgsz, batch=batch, device="cpu")
        assert result.ap is not None and 0.2 < result.ap < 0.9
        assert result.host_ap == validator.metrics.box.map  # the predictions are the very same
        assert result.ap == pytest.approx(validator.metrics.box.map, abs=0.005)
        assert result.ap50 == pytest.approx(validator.metrics.box.map50, abs=0.005)
        assert list(result.per_class.values()) == pytest.approx(validator.metrics.box.maps.tolist(), abs=0.01)
        assert result.images == 30 and sum(result.objects.values()) == validator.metrics.nt_per_class.sum()

    def test_a_model_sees_the_channels_that_it_is_said_to_see(self, coloured: Path) -> None:
        """By two changed channels red is taken for blue, by its classes renamed likewise it is right again."""
        plain = evaluate(Seer(), coloured, imgsz=320, device="cpu")
        swapped = evaluate(Seer(), coloured, imgsz=320, device="cpu", channels=[2, 1, 0])
        assert plain.per_class["red"] > 0.2 > 0.1 > swapped.per_class["red"]
        renamed = {"red": "blue", "blue": "red"}
        again = evaluate(Seer(), coloured, imgsz=320, device="cpu", channels=[2, 1, 0], class_map=renamed)
        assert again.per_class["red"] > 0.2 and again.host_ap is None  # which knows of no map

    def test_an_exported_file_takes_no_other_channels(self, coloured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(validation, "_open", lambda model: (model, None))  # as it opens one
        with pytest.raises(UserError, match=r"teacher_channels=\[2, 1, 0\] needs .* not large\.onnx"):
            evaluate("large.onnx", coloured, imgsz=320, device="cpu", channels=[2, 1, 0])

    def test_a_colour_model_sees_grey_images(self, tmp_path: Path) -> None:
        """Data of one channel is shown three times, as in training, and colour to a grey model by its luminance."""
        data = draw_dataset(tmp_path / "grey", images=(2, 6), imgsz=64, classes=3, channels=1)
        found = evaluate(tiny_model(), data, imgsz=64, device="cpu").detections
        assert {row["image_id"] for row in found} == set(range(1, 7))
        data = draw_dataset(tmp_path / "colour", images=(2, 6), imgsz=64, classes=3)
        assert evaluate(tiny_model(channels=1), data, imgsz=64, device="cpu").detections

    def test_matches_are_ultralytics_own(self, coloured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With its integration of the curve, and boxes not clipped to the image, its AP comes out of our matches."""
        from ultralytics.utils import ops
        from ultralytics.utils.metrics import compute_ap

        monkeypatch.setattr(ops, "clip_boxes", lambda boxes, shape: boxes)
        result = evaluate(Seer(), coloured, imgsz=320, device="cpu")
        values = []
        for found_class in result.matches.classes:
            for hit in found_class.hit:
                true = np.cumsum(hit)
                recall, precision = true / found_class.objects.sum(), true / np.arange(1, len(hit) + 1)
                values.append(compute_ap(recall, precision)[0])
        assert np.mean(values) == pytest.approx(result.host_ap, abs=1e-3)
        assert result.ap != pytest.approx(result.host_ap, abs=1e-5)

    def test_classes_go_by_name(self, coloured: Path) -> None:
        """A model with the classes in another order, or without one of them, gets what it deserves."""
        plain = evaluate(Seer(), coloured, imgsz=320, device="cpu")
        swapped = evaluate(Seer(names=("green", "red", "blue")), coloured, imgsz=320, device="cpu")
        assert swapped.host_ap is None and swapped.per_class["blue"] == plain.per_class["blue"]
        assert swapped.per_class["red"] is not None and swapped.per_class["red"] < 0.1
        partial = evaluate(Seer(names=("red", "green", "violet")), coloured, imgsz=320, device="cpu")
        assert partial.per_class == {"red": plain.per_class["red"], "green": plain.per_class["green"], "blue": 0.0}

    def test_better_detector_is_told_from_a_worse_one(self, coloured: Path) -> None:
        ground_truth = coco_ground_truth(coloured)
        good = evaluate(Seer(), coloured, imgsz=320, ground_truth=ground_truth, device="cpu")
        poor = score(ground_truth, [d for d in good.detections if d["score"] < 0.5])
        result = bootstrap(good, poor, samples=200)
        assert result.low is not None and result.low > 0 and result.p is not None and result.p < 0.05

    @pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo26n.yaml"])
    def test_a_network_is_left_as_it_is(self, tmp_path: Path, name: str) -> None:
        """Evaluating a network in training neither fuses, nor moves, nor switches it; the screen stays empty."""
        from ultralytics import YOLO

        torch.manual_seed(0)
        network = YOLO(name).model.train()
        network.names = {**network.names, 0: "cat"}
        before = {key: value.clone() for key, value in network.state_dict().items()}
        random_state = torch.get_rng_state()
        sizes_of = {"a": (100, 50), "b": (64, 90), "c": (33, 33)}
        data = write_dataset(tmp_path, dict.fromkeys(sizes_of, "0 0.5 0.5 0.2 0.4\n"), sizes_of)
        ground_truth, settings = coco_ground_truth(data), {"conf": 0.0, "max_det": 5, "classes": [0]}
        found = evaluate(network, data, imgsz=64, ground_truth=ground_truth, device="cpu", **settings)
        detections = found.detections
        assert {(d["image_id"], d["category_id"]) for d in detections} == {(1, 0), (2, 0), (3, 0)}
        assert network.training and torch.equal(torch.get_rng_state(), random_state)
        after = network.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        sizes = {i["id"]: (i["width"], i["height"]) for i in ground_truth["images"]}
        for d in detections:
            x, y, w, h = d["bbox"]
            assert x >= 0 and y >= 0 and x + w <= sizes[d["image_id"]][0] + 1e-3
            assert y + h <= sizes[d["image_id"]][1] + 1e-3

    def test_other_tasks_are_refused(self, coloured: Path) -> None:
        from ultralytics import YOLO

        with pytest.raises(UserError, match="task=segment"):
            evaluate(YOLO("yolov8n-seg.yaml"), coloured, imgsz=64)
