"""One trainer per kind of student: distillation mixed in before the host's trainer of that task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import DEFAULT_CFG

from yolokd.errors import UserError
from yolokd.students.kinds import check_kind, not_trained
from yolokd.trainer import Distilling


class DistillationTrainer(Distilling, DetectionTrainer):
    """Detection trainer that distils a teacher into the student; for another task it makes that task's trainer.

    Examples:
        >>> from ultralytics import YOLO
        >>> from yolokd import DistillationTrainer
        >>> model = YOLO("yolov8s.pt")
        >>> model.train(trainer=DistillationTrainer, teacher="yolov8x.pt", method="dfmsd", data="coco8.yaml")
    """

    def __new__(cls, cfg: Any = DEFAULT_CFG, overrides: dict[str, Any] | None = None, _callbacks: Any = None) -> Any:
        """Make the trainer of the task in `overrides`, which `YOLO.train` fills in."""
        task = str((overrides or {}).get("task"))
        if task not in {"None", *TRAINERS}:
            raise UserError(f"model={(overrides or {}).get('model')} is a {task} model; {not_trained(task)}")
        if cls is DistillationTrainer and TRAINERS.get(task, cls) is not cls:
            return TRAINERS[task](cfg, overrides, _callbacks)
        return super().__new__(cls)


class SegmentationDistillationTrainer(Distilling, SegmentationTrainer):
    """Trainer that distils a teacher into a segmentation student.

    Examples:
        >>> from ultralytics import YOLO
        >>> from yolokd import SegmentationDistillationTrainer
        >>> model = YOLO("yolo11n-seg.pt")
        >>> model.train(trainer=SegmentationDistillationTrainer, teacher="yolo11x-seg.pt", data="coco8-seg.yaml")
    """

    kind = "segment"


class PoseDistillationTrainer(Distilling, PoseTrainer):
    """Trainer that distils a teacher into a pose student.

    Examples:
        >>> model = YOLO("yolo11n-pose.pt")
        >>> model.train(trainer=PoseDistillationTrainer, teacher="yolo11x-pose.pt", data="coco8-pose.yaml")
    """

    kind = "pose"

    def get_dataset(self) -> dict[str, Any]:
        """Return the description of the data, which must say what its keypoints are."""
        data = self.args.data
        try:
            return super().get_dataset()
        except KeyError as error:
            raise UserError(
                f"data={data} has no kpt_shape, the number and dimensions of its keypoints, which a pose student "
                f"learns; add e.g. kpt_shape: [17, 3], or train a detection model on it"
            ) from error


class OBBDistillationTrainer(Distilling, OBBTrainer):
    """Trainer that distils a teacher into a student with rotated boxes.

    Examples:
        >>> model = YOLO("yolo11n-obb.pt")
        >>> model.train(trainer=OBBDistillationTrainer, teacher="yolo11x-obb.pt", data="dota8.yaml")
    """

    kind = "obb"


class RTDETRDistillationTrainer(Distilling, RTDETRTrainer):
    """Trainer that distils a teacher's features into an RT-DETR student.

    Examples:
        >>> from ultralytics import RTDETR
        >>> model = RTDETR("rtdetr-l.pt")
        >>> model.train(trainer=RTDETRDistillationTrainer, teacher="yolo11x.pt", method="dfmsd", data="coco8.yaml")
    """

    kind = "rtdetr"

    def set_model_attributes(self) -> None:
        """Refuse compilation, which keeps the maps of the neck inside of its graph."""
        if self.methods and self.args.compile:
            raise UserError(
                f"compile={self.args.compile} does not go with a teacher for RT-DETR: a compiled graph does not hand "
                f"out the neck maps; leave compile out"
            )
        super().set_model_attributes()


TRAINERS: dict[str, Any] = {
    "detect": DistillationTrainer,
    "segment": SegmentationDistillationTrainer,
    "pose": PoseDistillationTrainer,
    "obb": OBBDistillationTrainer,
    "rtdetr": RTDETRDistillationTrainer,
}


def trainer_for(overrides: Mapping[str, Any]) -> Any:
    """Return the trainer class of the model in train arguments.

    Args:
        overrides (Mapping[str, Any]): Train arguments; `model` is a checkpoint or an architecture.

    Raises:
        UserError: If no trainer of ours trains such a model.
    """
    return TRAINERS[check_kind(overrides["model"], name=str(overrides["model"]))]


__all__ = [
    "TRAINERS",
    "DistillationTrainer",
    "OBBDistillationTrainer",
    "PoseDistillationTrainer",
    "RTDETRDistillationTrainer",
    "SegmentationDistillationTrainer",
    "trainer_for",
]
