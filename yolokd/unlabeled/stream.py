"""Images without labels beside the labelled ones: their dataset, and the loader that joins both in each batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import colorstr

from yolokd.task import LABELED

PADDING = 114  # the host's grey


class UnlabeledDataset(YOLODataset):
    """The host's dataset on images whose labels are not read, whether there are label files or not.

    Augmentations and their settings are the host's, so mosaic, mixup and cutmix draw from these images alone. A batch
    says with `kd_labeled` = 0 that none of its images has labels.
    """

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """Return the images: they are named one by one, so nothing is searched."""
        files = sorted(img_path if isinstance(img_path, list) else [img_path])
        share: float | int = self.fraction  # a number of images where it is an int, as the host reads it
        return files[: share if isinstance(share, int) else max(1, round(len(files) * share))]

    def get_label_files(self) -> list[str]:
        """Return names of files that are not there, by whose place the host names its cache: unlabeled.cache."""
        images = [Path(file) for file in self.im_files]
        self.label_files = [str(image.parent / "unlabeled" / f"{image.stem}.none") for image in images]
        return self.label_files

    def result_to_label(self, result: Any) -> tuple[dict[str, Any] | None, int, int, int, int, str]:
        """Count a readable image as found, which the host asks of a label."""
        label, _, _, _, corrupt, message = super().result_to_label(result)
        return label, 0, int(label is not None), 0, corrupt, message

    def scan_summary(self, nf: int, nm: int, ne: int, nc: int) -> str:
        """Return what the progress bar says."""
        return f"{nf} images without labels, {nc} corrupt"

    def verify_labels(self, labels: list[dict[str, Any]], cache_path: Path) -> None:
        """Check nothing: there is nothing to check."""

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate as the host does, and say that no image has labels."""
        return {**YOLODataset.collate_fn(batch), LABELED: 0}


class Pictures(UnlabeledDataset):
    """Images alone, that are neither looked through beforehand nor noted in a cache."""

    def get_labels(self) -> list[dict[str, Any]]:
        """Return labels without an object."""
        nothing = {"cls": np.zeros((0, 1), np.float32), "bboxes": np.zeros((0, 4), np.float32), "segments": []}
        return [
            {"im_file": file, **nothing, "keypoints": None, "normalized": True, "bbox_format": "xywh"}
            for file in self.im_files
        ]


def build_unlabeled(
    args: Any,
    files: list[str],
    batch: int,
    data: Mapping[str, Any],
    stride: int,
    augment: bool = True,
    fraction: float = 1.0,
    kind: type[UnlabeledDataset] = UnlabeledDataset,
) -> UnlabeledDataset:
    """Return the dataset of some images without labels, as the host builds that of the labelled ones.

    Args:
        args (SimpleNamespace): The run's arguments: augmentations, image size, cache.
        files (list[str]): Image files.
        batch (int): Images per step, after which mosaic's choice of images is sized.
        data (Mapping[str, Any]): The host's description of the data.
        stride (int): The student's largest stride.
        augment (bool): Whether the training's augmentations apply.
        fraction (float | int): Share or number of the images to take, the first ones by name.
        kind (type[UnlabeledDataset]): Class of the dataset.
    """
    args = copy(args)
    if args.rect:  # as the host does for rectangles, of which an image here has none of its own
        args.mosaic = args.mixup = args.cutmix = 0.0
    return kind(
        img_path=files,
        imgsz=args.imgsz,
        batch_size=batch,
        augment=augment,
        hyp=args,
        rect=False,
        cache=(args.cache or None) if augment else None,
        single_cls=False,
        stride=stride,
        pad=0.0,
        prefix=colorstr("unlabeled: "),
        task=args.task,
        classes=None,
        data=dict(data),
        fraction=fraction,
    )


def shares(batch: int, labeled: int, unlabeled: int, ratio: str | float) -> tuple[int, int]:
    """Return how many labelled and unlabelled images make up a batch, at least one of each.

    Args:
        batch (int): Images per batch, at least 2.
        labeled (int): Labelled training images.
        unlabeled (int): Unlabelled ones.
        ratio (str | float): Share of unlabelled images in a batch, or `auto` for their share among all.
    """
    wanted = batch * (unlabeled / (labeled + unlabeled) if ratio == "auto" else float(ratio))
    other = min(max(round(wanted), 1), batch - 1, unlabeled)
    own = min(batch - other, labeled)
    return own, min(batch - own, unlabeled)


def fitted(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return images with shape (B, C, H, W) cut or padded with grey about their centre to a height and width."""
    spare = [int(wanted) - int(had) for wanted, had in zip(size, images.shape[-2:])]
    top, left = spare[0] // 2, spare[1] // 2
    return F.pad(images, (left, spare[1] - left, top, spare[0] - top), value=PADDING) if any(spare) else images


def join(labeled: dict[str, Any], unlabeled: dict[str, Any]) -> dict[str, Any]:
    """Return one batch of two, the labelled images first; labels of any kind belong to those alone.

    Args:
        labeled (dict[str, Any]): A batch of the host's.
        unlabeled (dict[str, Any]): One of `UnlabeledDataset`; its images are fitted to the size of the labelled ones.

    Returns:
        (dict[str, Any]): The batch, with `kd_labeled` (int), the number of labelled images. What is said of each image,
            such as its file, is said of all.
    """
    both = {
        key: value + unlabeled[key]
        for key, value in labeled.items()
        if isinstance(value, (tuple, list)) and isinstance(unlabeled.get(key), type(value))
    }
    images = torch.cat((labeled["img"], fitted(unlabeled["img"], labeled["img"].shape[-2:])))
    return {**labeled, **both, "img": images, LABELED: len(labeled["img"])}


class _Stream:
    """Batches of a loader without end, each pass in an order of its own."""

    def __init__(self, loader: Any):
        """Begin before the first pass."""
        self.loader, self.passes = loader, 0
        self.restart()

    def restart(self) -> None:
        """Let the next batch be the first of a pass."""
        self._batches: Iterator[Any] = iter(())

    def __next__(self) -> Any:
        """Return the next batch."""
        if (batch := next(self._batches, None)) is not None:
            return batch
        if hasattr(self.loader.sampler, "set_epoch"):  # several devices share a pass by its number
            self.loader.sampler.set_epoch(self.passes)
        self.passes += 1
        self._batches = iter(self.loader)
        return next(self._batches)


class _Sampler:
    """Stands in for a sampler where the host asks for the number of images, or tells the epoch."""

    def __init__(self, loader: JoinedLoader):
        """Stand in for the samplers of both streams."""
        self._loader = loader

    def __len__(self) -> int:
        """Return the images of an epoch on this device."""
        return len(self._loader) * self._loader.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Number the passes by the epoch, so that a resumed run goes on with other orders than those it has seen."""
        self._loader.number_passes(epoch)


class Together:
    """Stands in for a labelled dataset, with the number of all images; closing mosaic reaches all of them."""

    def __init__(self, datasets: Sequence[Any]):
        """Join datasets, the labelled one first."""
        self._datasets = datasets

    def __len__(self) -> int:
        """Return the number of all images."""
        return sum(len(dataset) for dataset in self._datasets)

    def close_mosaic(self, hyp: Any) -> None:
        """End mosaic and what goes with it in all of them."""
        for dataset in self._datasets:
            dataset.close_mosaic(copy(hyp))

    def __getattr__(self, name: str) -> Any:
        """Hand on to the labelled dataset."""
        if name.startswith("__") or name == "_datasets":
            raise AttributeError(name)
        return getattr(self._datasets[0], name)


class JoinedLoader:
    """Labelled and unlabelled images in each batch, from two loaders of the host's that are each run without end.

    An epoch is one pass over as many images as there are altogether: `ceil(all / batch)` steps, in which each stream
    goes on where it was, reshuffled after each of its passes. Without an unlabelled loader the steps are the same, on
    labelled images alone: so plain training is compared at equal steps.

    Attributes:
        dataset (Any): The labelled dataset, with the number of all images as its length.
        sampler (Any): Takes the epoch for both.
        batch_size (int): Images per step on this device.
        num_workers (int): Worker processes of both.
        drop_last (bool): Whether the host drops incomplete batches.
    """

    def __init__(self, labeled: Any, unlabeled: Any | None, steps: int):
        """Join two loaders.

        Args:
            labeled (InfiniteDataLoader): The host's loader of the labelled images, with their part of the batch.
            unlabeled (InfiniteDataLoader | None): That of the unlabelled ones.
            steps (int): Steps of an epoch.
        """
        self.loaders = [labeled] if unlabeled is None else [labeled, unlabeled]
        self.dataset: Any = Together([loader.dataset for loader in self.loaders])
        self.sampler: Any = _Sampler(self)
        self.batch_size = sum(loader.batch_size for loader in self.loaders)
        self.num_workers = sum(loader.num_workers for loader in self.loaders)
        self.drop_last = labeled.drop_last
        self._steps = steps
        self._streams = [_Stream(loader) for loader in self.loaders]

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return self._steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of an epoch; the streams go on where they were."""
        for _ in range(self._steps):
            batches = [next(stream) for stream in self._streams]
            yield join(*batches) if len(batches) == 2 else batches[0]

    def number_passes(self, epoch: int) -> None:
        """Give the passes that begin from now on numbers that no earlier epoch has used."""
        for stream in self._streams:
            stream.passes = max(stream.passes, epoch * (1 + math.ceil(self._steps / max(len(stream.loader), 1))))

    def reset(self) -> None:
        """Let the host's loaders take up changed datasets, each with a new pass."""
        for loader, stream in zip(self.loaders, self._streams):
            loader.reset()
            stream.restart()

    def close(self) -> None:
        """End the worker processes."""
        for loader in self.loaders:
            if hasattr(loader, "close"):
                loader.close()
