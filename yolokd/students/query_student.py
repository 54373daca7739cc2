"""An RT-DETR student during training: the host calls its criterion without images and maps, so `loss` hands them on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from ultralytics.nn.tasks import RTDETRDetectionModel

from yolokd.students.query_task import QueryOutput, predicted_boxes


class QueryStudent(RTDETRDetectionModel):
    """The class that an RT-DETR student has while our criterion is on it; `put_on` gives it and `take_off` takes it."""

    def loss(self, batch: dict[str, Any], preds: Any = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the host's loss followed by the distillation terms, and the items of both.

        The decoder's input and output are read by a forward hook that lives within this call.

        Args:
            batch (dict[str, Any]): The host's batch.
            preds (Any): Predictions as the validator passes them; they come without maps and are made again.

        Returns:
            loss (torch.Tensor): The task's summed loss and one term per method, with shape (1 + M,).
            items (dict[str, torch.Tensor]): The task's items followed by `NAME_loss` for each method.
        """
        criterion: Any = self._modules.get("criterion")
        host: Any = super()
        if not hasattr(criterion, "task"):
            plain: tuple[torch.Tensor, dict[str, torch.Tensor]] = host.loss(batch, preds)
            return plain
        head: Any = self.model[-1]  # type: ignore[index]
        seen: dict[str, Any] = {}

        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen.update(feats=list(inputs[0]), output=output)

        handle = head.register_forward_hook(keep)
        self.criterion = criterion.task.base
        try:
            loss, items = host.loss(batch)
        finally:
            handle.remove()
            self.criterion = criterion
        height, width = batch["img"].shape[-2:]
        regions = predicted_boxes(seen["output"], (int(height), int(width)))
        result: tuple[torch.Tensor, dict[str, torch.Tensor]]
        result = criterion(QueryOutput(seen["feats"], {}, regions, loss, items), batch)
        return result


def put_on(model: Any, criterion: nn.Module) -> None:
    """Make our criterion a student's own."""
    model.criterion = criterion
    if isinstance(model, RTDETRDetectionModel):
        model.__class__ = QueryStudent


def take_off(model: Any) -> None:
    """Remove our criterion, so that a model is the host's plain one again, as its checkpoints are to hold it."""
    model._modules.pop("criterion", None)
    if isinstance(model, QueryStudent):
        object.__setattr__(model, "__class__", RTDETRDetectionModel)
