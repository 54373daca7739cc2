"""The trainer of a comparison: it hashes what the student starts from and sees, and measures what a run costs."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from typing import Any

import torch
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from yolokd.compare.imagestream import StreamHash
from yolokd.memory import peak_bytes
from yolokd.saving.records import read_json, write_json
from yolokd.trainers import DistillationTrainer

MEASURES = "measures.json"
KEPT_EPOCHS = 2  # last.pt holds the last epoch that was saved, or the one before if the process ended in between


def model_hash(model: torch.nn.Module) -> str:
    """Return the hash of a model's weights and buffers, 32 hex digits; equal for equal names, types and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        content: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
        digest.update(content)
    return digest.hexdigest()


class MeasuringTrainer(DistillationTrainer):
    """The trainer of a comparison: it hashes what the student starts from and sees, and measures what it costs.

    The measures of the last two epochs lie in measures.json, written before the host's last.pt. On a resume the data
    loader is run through the epochs that are done, so that the images go on as if there had been no interruption; its
    hash must then be the one that was saved.

    Attributes:
        measures (dict[str, Any]): What is carried from epoch to epoch, and through a resume.
        stream (StreamHash): Hash of the training images and labels so far.
    """

    def __init__(self, overrides: dict[str, Any]):
        """Set up as the base does.

        Args:
            overrides (dict[str, Any]): Train arguments, the host's and ours.
        """
        self.stream = StreamHash()
        self.measures: dict[str, Any] = {
            "initial_hash": None,
            "wall_s": 0.0,
            "steps": [],
            "peak_bytes": 0,
            "resumed": [],
        }
        self._counting = False
        self._steps: list[float] = []
        self._step_start = self._epoch_start = 0.0
        super().__init__(overrides=overrides)
        self.add_callback("on_train_start", MeasuringTrainer._begin)
        self.add_callback("on_train_batch_start", MeasuringTrainer._before_step)
        self.add_callback("on_train_batch_end", MeasuringTrainer._after_step)

    def set_model_attributes(self) -> None:
        """Hash the student as it was given, before a method that starts from the teacher's weights takes them."""
        model = unwrap_model(self.model)
        self.measures["initial_hash"] = model_hash(getattr(model, "student_model", model))
        super().set_model_attributes()

    def _setup_train(self) -> None:
        """Set up, then go on with the measures of a run that was interrupted."""
        super()._setup_train()
        if self.start_epoch:
            self._resume_measures()

    def _resume_measures(self) -> None:
        """Take up the measures, and bring the data loader to where it was."""
        saved = (read_json(self.save_dir / MEASURES) or {}).get("epochs", {}).get(str(self.start_epoch - 1))
        self._replay()
        if saved is None:
            LOGGER.warning(
                f"{MEASURES} holds nothing of epoch {self.start_epoch}: times and start of this run are lost"
            )
        else:
            self.measures = {key: saved[key] for key in self.measures}
            if self.stream.state() != saved["stream"]:
                LOGGER.warning("the images seen before the interruption could not be brought back: the stream differs")
                self.stream.load(saved["stream"])
        self.measures["resumed"].append(self.start_epoch)

    def _replay(self) -> None:
        """Draw the batches of the finished epochs again, without training on them.

        Where the loaders work in this process, validation images draw from the generators of the training ones.
        """
        close = self.epochs - self.args.close_mosaic if self.args.close_mosaic else self.epochs
        for epoch in range(self.start_epoch):
            if epoch == max(close, 0):
                self._close_dataloader_mosaic()  # type: ignore[no-untyped-call]
                self.train_loader.reset()
            for batch in self.train_loader:
                self.stream.update(batch)
                if self.args.multi_scale > 0:
                    super().preprocess_batch(batch)  # it draws the size
            if self.test_loader.num_workers == 0:
                for _ in self.test_loader:
                    pass
        if close < self.start_epoch:
            self.train_loader.reset = lambda: None  # the host closes the mosaic again; the images go on without

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Hash the batch on its way."""
        if self._counting:
            self.stream.update(batch)
        return super().preprocess_batch(batch)

    def _begin(self) -> None:
        self._counting = True
        self._epoch_start = time.perf_counter()

    def _before_step(self) -> None:
        self._step_start = time.perf_counter()

    def _after_step(self) -> None:
        self._steps.append(time.perf_counter() - self._step_start)  # the host has waited for the loss by now

    def save_model(self) -> bool:
        """Write the measures of the epoch first, then save as the base does and tell of the epoch."""
        end = time.perf_counter()
        seconds, self._epoch_start = end - self._epoch_start, end
        self.measures["wall_s"] += seconds
        self.measures["peak_bytes"] = max(self.measures["peak_bytes"], peak_bytes(self.device))
        if self._steps:
            self.measures["steps"].append(statistics.median(self._steps))
        self._steps = []
        path = self.save_dir / MEASURES
        kept = {k: v for k, v in ((read_json(path) or {}).get("epochs", {})).items() if int(k) < self.epoch}
        kept = dict(sorted(kept.items(), key=lambda item: int(item[0]))[-(KEPT_EPOCHS - 1) :])
        kept[str(self.epoch)] = {**self.measures, "stream": self.stream.state(), "last": bool(self.stop)}
        write_json(path, {"epochs": kept})
        saved = super().save_model()
        metrics: Any = self.metrics
        row = {"epoch": self.epoch + 1, "seconds": round(seconds, 4), "ap": metrics.get("metrics/mAP50-95(B)")}
        with open(self.save_dir / "progress.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({key: None if value != value else value for key, value in row.items()}) + "\n")
        return saved
