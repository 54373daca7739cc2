"""What an Ultralytics trainer is fed where some of the images, or all, have no labels."""

from __future__ import annotations

import math
from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from cv2 import error as cv2_error
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.checks import check_imgsz
from ultralytics.utils.patches import override_configs
from ultralytics.utils.torch_utils import strip_optimizer, torch_distributed_zero_first, unwrap_model

from yolokd.compat import get_split_fraction
from yolokd.datasets import check_rows, data_fault, images
from yolokd.errors import UserError
from yolokd.rng import preserved_rng
from yolokd.students.channels import evenly
from yolokd.task import LABELED
from yolokd.unlabeled import no_labels, sources
from yolokd.unlabeled.stream import JoinedLoader, Pictures, Together, build_unlabeled, shares

if TYPE_CHECKING:  # the mixin stands before a task's trainer; types are read from the detection one
    _Host = DetectionTrainer
else:
    _Host = object
NAN = float("nan")
SAMPLE_PIXELS, SAMPLE_IMAGES = 1e7, (8, 512)  # 97 images of 320 pixels, 24 of 640


class Feeding(_Host):
    """What images without labels add to an Ultralytics trainer; mixed in before the task's own trainer class.

    With `kd_unlabeled`, such images join each batch. With `kd_names`, labels of the training images are not read, and
    where no validation image has labels either nothing is evaluated: metrics are NaN, and best.pt is the last epoch's.
    Without these keys every override hands over to the host unchanged.
    """

    args: Any
    methods: tuple[str, ...]
    model: Any
    metrics: Any
    _dataset: Any = None  # what the host's loader is to be built on, where that is not its own choice

    @property
    def unevaluated(self) -> bool:
        """Whether there are no labels to evaluate on."""
        return not self.data.get(no_labels.LABELS, True)

    def get_dataset(self) -> dict[str, Any]:
        """Return the host's description of the data, or the one of images without labels."""
        self.args.kd_unlabeled = self.args.kd_unlabeled and sources.absolute(self.args.kd_unlabeled)
        if not self.args.kd_names:
            return self._described()
        given, described = self.args.data, sources.is_description(self.args.data)
        self.args.data = given if described else sources.absolute(given)
        data = self._described() if described else self.args.data
        names, folder = no_labels.class_names(self.args.kd_names), self.save_dir if RANK in {-1, 0} else None
        self.data = no_labels.describe(data, names, self.args.split, folder)
        if self.unevaluated:
            self.args.val = False
            LOGGER.warning(
                f"data={given}: no labelled '{self.args.split}' images of {', '.join(names.values())}: nothing is "
                f"evaluated, and best.pt is the last epoch's"
            )
        return self.data

    def _described(self) -> dict[str, Any]:
        """Return the host's description of the data, or say what is wrong with it."""
        given = self.args.data
        try:
            data = super().get_dataset()
        except RuntimeError as error:
            if fault := data_fault(error, f"data={given}"):
                raise fault from error
            raise
        check_rows(getattr(self, "kind", "detect"), given, data.get("train"))
        return data

    def _stride(self) -> int:
        model: Any = unwrap_model(self.model)
        return max(int(model.stride.max()), 32)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build the host's dataset, or that of images without labels; say what is wrong where nothing is usable."""
        if self._dataset is not None:
            return self._dataset
        try:
            dataset = self._built(img_path, mode, batch)
        except (RuntimeError, ValueError) as error:
            if fault := None if isinstance(error, UserError) else data_fault(error, f"data={self.args.data}"):
                raise fault from error
            raise
        labels = getattr(dataset, "labels", None)
        if mode == "train" and self.methods and not self.args.kd_names and labels is not None:
            if not any(len(label["cls"]) for label in labels):
                among = f" of classes={self.args.classes}" if self.args.classes is not None else ""
                raise UserError(
                    f"data={self.args.data}: none of the training images has labels{among}; put a YOLO label file for "
                    f"each image beside images/ into labels/, or learn from a teacher alone, e.g. kd_names=[car,bus]"
                )
        return dataset

    def _built(self, img_path: str, mode: str, batch: int | None) -> Any:
        """Return the dataset of a split, as the host builds it or without labels."""
        if not self.args.kd_names:
            return super().build_dataset(img_path, mode, batch)
        data, split = self.data, self.args.split
        if mode == "train" or self.unevaluated:
            files = no_labels.training_files(data, split)
            share, augment = get_split_fraction(self.args.fraction, "train"), mode == "train"
            dataset = build_unlabeled(self.args, files, batch or 1, data, self._stride(), augment, share)
            if not augment:
                dataset.labels = dataset.labels[:1]  # the host wants a loader, and nothing is evaluated by it
            return dataset
        try:
            self.data = {**data, "names": data[no_labels.LABELS], "nc": len(data[no_labels.LABELS])}
            dataset = super().build_dataset(img_path, mode, batch)
        finally:
            self.data = data
        no_labels.renumber(dataset.labels, data[no_labels.LABELS], data["names"])
        return dataset

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Build the host's loader; for training with `kd_unlabeled` one that joins two of them.

        Plain training and the built-in distillation learn from the labelled images alone, in full batches and for as
        many steps.
        """
        if mode != "train" or not self.args.kd_unlabeled:
            return super().get_dataloader(dataset_path, batch_size, rank, mode)
        if batch_size < 2:
            raise UserError(
                f"kd_unlabeled={self.args.kd_unlabeled} needs an image with labels and one without in each step, and "
                f"batch={self.args.batch} leaves {batch_size} for each device; use a larger batch, e.g. batch=16"
            )
        with torch_distributed_zero_first(rank):
            labeled = self.build_dataset(dataset_path, mode, batch_size)
        data, devices = self.data, max(self.world_size, 1)
        files, left_out = self._unlabeled_files(labeled.im_files)
        counts = [math.ceil(len(part) / devices) for part in (labeled, files)]
        steps = math.ceil(sum(counts) / batch_size)
        if not self.methods:
            LOGGER.info(
                f"kd_unlabeled: method={self.args.method} learns from the {len(labeled)} labelled images alone, in "
                f"epochs of the same {steps} steps that a distillation with {len(files)} more images has"
            )
            return JoinedLoader(self._loader(labeled, dataset_path, batch_size, rank), None, steps)
        own, other = shares(batch_size, counts[0], counts[1], self.args.kd_unlabeled_ratio)
        if self.args.rect:  # the host arranges rectangles by the batch
            with torch_distributed_zero_first(rank):
                labeled = self.build_dataset(dataset_path, mode, own)
        with torch_distributed_zero_first(rank):
            unlabeled = self._unlabeled(files, batch_size, data)
        text = "".join(f"; {count} {name} among them are left out" for name, count in left_out.items())
        LOGGER.info(
            f"kd_unlabeled: {len(unlabeled)} images without labels join {len(labeled)} with labels, {other} and {own} "
            f"in each batch{text}"
        )
        loaders = [
            self._loader(part, dataset_path, n, rank, n / batch_size)
            for part, n in ((labeled, own), (unlabeled, other))
        ]
        return JoinedLoader(loaders[0], loaders[1], steps)

    def _unlabeled(self, files: list[str], batch: int, data: dict[str, Any]) -> Any:
        """Return the dataset of the images of `kd_unlabeled`, or say that none can be read."""
        try:
            return build_unlabeled(self.args, files, batch, data, self._stride())
        except RuntimeError as error:
            if fault := data_fault(error, f"kd_unlabeled={self.args.kd_unlabeled}"):
                raise fault from error
            raise

    def _unlabeled_files(self, labeled: list[str]) -> tuple[list[str], dict[str, int]]:
        """Return the images of `kd_unlabeled` beside labelled ones, and how many were left out and why."""
        held_out = [self.data[key] for key in ("val", "test", "minival") if self.data.get(key)]
        return sources.unlabeled_files(self.args.kd_unlabeled, self.data["train"], labeled, held_out)

    def sample_images(self, pixels: float = SAMPLE_PIXELS, number: tuple[int, int] = SAMPLE_IMAGES) -> torch.Tensor:
        """Return some of the images that the run learns from, evenly spaced among them, as validation sees them.

        Generators are left as they were found. Images that cannot be read are passed over.

        Args:
            pixels (float): Pixels of all of them together.
            number (tuple[int, int]): Fewest and most images, where there are as many.

        Returns:
            (torch.Tensor): Images with shape (N, C, H, W) in bytes, or divided by 255 where the files hold others.
        """
        stride, args = self._stride(), copy(self.args)
        args.imgsz = check_imgsz(args.imgsz, stride=stride, floor=stride, max_dim=1)
        wanted = min(max(int(pixels / args.imgsz**2), number[0]), number[1])
        with preserved_rng():
            found: Any = build_unlabeled(args, self._learned(), 1, self.data, stride, augment=False, kind=Pictures)
            seen = []
            for index in evenly(min(wanted, len(found)), len(found)).tolist():
                with suppress(FileNotFoundError, OSError, cv2_error):
                    seen.append(found[index]["img"])
        images = torch.stack(seen) if seen else torch.zeros(0)
        return images if images.dtype is torch.uint8 else images.float() / 255

    def _learned(self) -> list[str]:
        """Return the files of all images that the run learns from."""
        if self.args.kd_names:
            return no_labels.training_files(self.data, self.args.split)
        found = sorted(images(self.data["train"]))
        share: float | int = get_split_fraction(self.args.fraction, "train")
        labeled = found[: share if isinstance(share, int) else max(1, round(len(found) * share))]
        if not self.args.kd_unlabeled:
            return labeled
        return labeled + self._unlabeled_files(labeled)[0]

    def auto_batch(self) -> int:
        """Estimate the batch size as the host does; the images without labels count among those there are."""
        if not (self.args.kd_unlabeled and self.methods):
            return super().auto_batch()
        with override_configs(self.args, {"cache": False}) as self.args:
            labeled = self.build_dataset(self.data["train"], "train", 16)
        self._dataset = Together([labeled, self._unlabeled_files(labeled.im_files)[0]])
        try:
            return super().auto_batch()
        finally:
            self._dataset = None

    def _loader(self, dataset: Any, path: str, batch: int, rank: int, share: float = 1.0) -> Any:
        """Return the host's training loader on a dataset, with a share of the worker processes."""
        workers, self._dataset = self.args.workers, dataset
        self.args.workers = max(round(workers * share), min(workers, 1))
        try:
            return super().get_dataloader(path, batch, rank, "train")
        finally:
            self.args.workers, self._dataset = workers, None

    def get_validator(self) -> Any:
        """Return the host's validator; without labels it reads what this run wrote on its data."""
        validator = super().get_validator()
        if no_labels.LABELS in self.data:
            validator.args.data = str(self.save_dir / no_labels.FILE)
        return validator

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Draw a batch; images without labels have empty masks."""
        masks, images = batch.get("masks"), len(batch["img"])
        if masks is not None and len(masks) == batch.get(LABELED, images) < images:
            empty = masks.new_zeros(images - len(masks), *masks.shape[1:])
            batch = {**batch, "masks": torch.cat((masks, empty))}
        super().plot_training_samples(batch, ni)

    def plot_training_labels(self) -> None:
        """Draw the labels where there are some."""
        if not self.args.kd_names:
            super().plot_training_labels()

    def validate(self) -> tuple[dict[str, Any] | None, float | None]:
        """Validate as the host does, or say that nothing is known."""
        if not self.unevaluated:
            return super().validate()
        return (dict.fromkeys(self.metrics, NAN) if self.metrics else None), None  # one of several processes has them

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        """Keep what was not evaluated apart from a zero."""
        if self.unevaluated:
            metrics = {key: NAN if key.startswith(("metrics/", "val/")) else value for key, value in metrics.items()}
            self.metrics = dict.fromkeys(self.metrics, NAN)
        super().save_metrics(metrics)

    def final_eval(self) -> None:
        """Strip the checkpoints as the host does; without labels it ends there."""
        if not self.unevaluated:
            return super().final_eval()
        if RANK in {-1, 0} and self.last.exists():
            kept = strip_optimizer(self.last)
            if self.best.exists():
                strip_optimizer(self.best, updates={"train_results": kept.get("train_results")})
            LOGGER.info("nothing was evaluated: there are no labelled validation images")
