"""The exported student is the graph of a plainly trained one: nothing of the distillation is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from ultralytics import YOLO

from tests.tiny import train, train_plain


def graph(weights: Path) -> dict[str, Any]:
    """Return the nodes with their attributes and the shapes of all tensors of a model's ONNX file."""
    student = YOLO(weights)
    torch.manual_seed(0)
    for parameter in student.model.parameters():  # the exporter keeps one of equal tensors
        parameter.data += 0.01 * torch.randn_like(parameter)
    model = onnx.load(student.export(format="onnx", imgsz=64, simplify=False))
    values = (*model.graph.input, *model.graph.output)
    return {
        "nodes": [
            (
                node.op_type,
                list(node.input),
                list(node.output),
                sorted(str(a) for a in node.attribute if a.name != "value"),
            )
            for node in model.graph.node
        ],
        "weights": {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in model.graph.initializer},
        "values": {value.name: str(value.type) for value in values},
    }


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_a_distilled_student_exports_as_a_plain_one(
    family: str, tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path], tiny_student: Any
) -> None:
    student = str(tiny_student(family))
    plain = train_plain(tmp_path / "plain", tiny_data, model=student, epochs=1)
    distilled = train(
        tmp_path / "distilled",
        tiny_data,
        model=student,
        epochs=1,
        teacher=str(tiny_teacher("yolov8s")),
        method="dfmsd+gdetkd+pcd",
        kd_gain=1.0,
    )
    expected, found = graph(plain.best), graph(distilled.best)
    assert found == expected
    assert len(found["nodes"]) > 100
