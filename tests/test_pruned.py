"""Pruned students are trained as they are, given like any other student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import load_checkpoint

from tests.tiny import IMGSZ, NAMES, overrides_for, rows, save_model, tiny_batch, tiny_criterion, tiny_model
from yolokd import DistillationTrainer
from yolokd.drawn.shapes import draw_dataset
from yolokd.errors import UserError
from yolokd.models import neck_channels
from yolokd.students.pruned import is_pruned


def keep_out(conv: Any, keep: torch.Tensor) -> None:
    """Keep some output channels of a Conv of the host, or of a plain convolution."""
    inner = getattr(conv, "conv", conv)
    inner.weight = nn.Parameter(inner.weight.data[keep].clone())
    if inner.bias is not None:
        inner.bias = nn.Parameter(inner.bias.data[keep].clone())
    inner.out_channels = len(keep)
    if inner is not conv:
        for name in ("weight", "bias"):
            setattr(conv.bn, name, nn.Parameter(getattr(conv.bn, name).data[keep].clone()))
        for name in ("running_mean", "running_var"):
            setattr(conv.bn, name, getattr(conv.bn, name)[keep].clone())
        conv.bn.num_features = len(keep)


def keep_in(conv: Any, keep: torch.Tensor) -> None:
    """Keep some input channels of a Conv of the host."""
    inner = getattr(conv, "conv", conv)
    inner.weight = nn.Parameter(inner.weight.data[:, keep].clone())
    inner.in_channels = len(keep)


def pruned(names: tuple[str, ...] = NAMES, channels: int = 3) -> Any:
    """Return a yolov8n without half of a bottleneck's hidden channels, and with 40 of 64 channels in its first map.

    Layer 15 makes the first neck map, which the head's first towers and layer 16 read.
    """
    model = tiny_model("yolov8n", names=names, seed=1, channels=channels)
    layers = model.model
    hidden, first = torch.arange(0, 16, 2), torch.arange(40)
    bottleneck = layers[4].m[0]
    keep_out(bottleneck.cv1, torch.arange(0, bottleneck.cv1.conv.out_channels, 2))
    keep_in(bottleneck.cv2, torch.arange(0, bottleneck.cv2.conv.in_channels, 2))
    assert len(hidden) == 8
    keep_out(layers[15].cv2, first)
    keep_in(layers[16], first)
    keep_in(layers[22].cv2[0][0], first)
    keep_in(layers[22].cv3[0][0], first)
    return model


def test_a_pruned_model_is_known_by_its_layers() -> None:
    model = pruned()
    assert is_pruned(model) and not is_pruned(tiny_model("yolov8n"))
    assert neck_channels(model, 3) == (40, 128, 256)
    model(tiny_batch()["img"])


def test_a_class_layer_of_an_earlier_width_is_no_pruning() -> None:
    """The host keeps the class layers' width of trained weights when it fits them to other classes."""
    wide = tiny_model("yolov8n", names=tuple(f"thing {i}" for i in range(80)), trained=False)
    model = tiny_model("yolov8n", trained=False)
    model.load(wide, verbose=False)
    assert model.model[-1].cv3[0][0].conv.out_channels == 80
    assert not is_pruned(model)


def test_adapters_fit_a_pruned_student_and_a_pruned_teacher() -> None:
    model, criterion = tiny_criterion("dfmsd+pcd+sgfi", pruned(), "yolov8s")
    pair = criterion.methods["dfmsd"][0].pair
    assert (pair.student_channels, pair.teacher_channels) == ((40, 128, 256), (128, 256, 512))
    _, items = model(tiny_batch())
    assert all(float(items[f"{name}_loss"]) > 0 for name in criterion.methods)
    _, criterion = tiny_criterion("dfmsd+pcd", "yolov8n", pruned())
    assert criterion.methods["dfmsd"][0].pair.teacher_channels == (40, 128, 256)


@pytest.mark.parametrize("way", ["file", "module"])
def test_a_pruned_student_is_trained_saved_and_resumed_as_it_is(
    way: str, tiny_data: Path, tiny_teacher: Callable[[str], Path], tmp_path: Path, said: list[str]
) -> None:
    file = save_model(pruned(), tmp_path / "pruned.pt")
    settings = {
        **overrides_for(tmp_path, tiny_data, teacher=str(tiny_teacher("yolov8s")), method="dfmsd+pcd"),
        "model": str(file),
        "save_period": 1,
    }
    if way == "file":
        trainer: Any = DistillationTrainer(overrides=settings)
        trainer.train()
    else:
        model = YOLO(str(file))
        model.train(trainer=DistillationTrainer, **{k: v for k, v in settings.items() if k != "model"})
        trainer = model.trainer
    assert any("its layers are not those of its YAML" in message or "trained as it is" in message for message in said)
    assert not any("requires_grad" in message for message in said)
    run = Path(trainer.save_dir)
    for name in ("last.pt", "best.pt"):
        saved, _ = load_checkpoint(run / "weights" / name)
        assert neck_channels(saved, 3) == (40, 128, 256)
        assert not any(key.startswith("criterion") for key in saved.state_dict())
    assert len(rows(run)) == 2 and all(row["train/dfmsd_loss"] > 0 for row in rows(run))
    before = pruned().state_dict()
    after = load_checkpoint(run / "weights" / "last.pt")[0].state_dict()
    assert before.keys() == after.keys()
    moved = max(
        float((after[key].float() - value.float()).abs().max()) for key, value in before.items() if value.ndim == 4
    )
    assert 0 < moved < 1  # trained on, not drawn anew
    if way == "file":
        resumed: Any = DistillationTrainer(overrides={"resume": str(run / "weights" / "epoch0.pt")})
        resumed.train()
        assert len(rows(run)) == 2
        assert neck_channels(load_checkpoint(run / "weights" / "last.pt")[0], 3) == (40, 128, 256)


def test_a_pruned_student_of_other_classes_is_refused_with_the_way_out(
    tiny_data: Path, tiny_teacher: Callable[[str], Path], tmp_path: Path
) -> None:
    file = save_model(pruned(names=("a", "b")), tmp_path / "pruned.pt")
    settings = overrides_for(tmp_path, tiny_data, teacher=str(tiny_teacher("yolov8s")), method="dfmsd", imgsz=IMGSZ)
    with pytest.raises(UserError, match=r"was pruned.*2 classes and 3 input channels.*has 3 and 3.*prune it then"):
        DistillationTrainer(overrides={**settings, "model": str(file)}).train()
    assert not (tmp_path / "run").exists()


def test_a_pruned_student_of_other_input_channels_is_refused_with_both_numbers(
    tiny_teacher: Callable[[str], Path], tmp_path: Path
) -> None:
    file = save_model(pruned(), tmp_path / "pruned.pt")
    data = draw_dataset(tmp_path / "shapes", images=(6, 4), imgsz=IMGSZ, seed=0, classes=3, channels=1)
    settings = overrides_for(tmp_path, data, teacher=str(tiny_teacher("yolov8s")), method="dfmsd", model=str(file))
    with pytest.raises(UserError, match=r"3 classes and 3 input channels.*has 3 and 1"):
        DistillationTrainer(overrides=settings).train()
