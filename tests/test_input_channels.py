"""Given weights are trained on data of another number of image channels, as the host trains them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel

from tests.tiny import IMGSZ, rows, same_values, save_model, tiny_model, train, train_plain
from yolokd.drawn.shapes import draw_dataset
from yolokd.models import input_channels
from yolokd.students.pruned import as_it_is, is_pruned

BOTH_WAYS = pytest.mark.parametrize(("own", "channels"), [(3, 1), (1, 3)])


def drawn(folder: Path, channels: int) -> Path:
    """Return the data.yaml of a drawn dataset."""
    return draw_dataset(folder / "shapes", images=(6, 4), imgsz=IMGSZ, seed=0, classes=3, channels=channels)


def built_from(model: Any, channels: int) -> Any:
    """Return the student that the host builds from a model, in whose YAML it notes the channels of the data."""
    built: Any = DetectionModel(model.yaml, ch=channels, nc=3, verbose=False)
    built.load(model, verbose=False)
    assert model.yaml["channels"] == channels
    return built


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n", "rtdetr-l", "rtdetr-resnet50"])
def test_a_model_takes_the_channels_of_its_first_convolution_whatever_its_yaml_says(name: str) -> None:
    kind = RTDETRDetectionModel if name.startswith("rtdetr") else DetectionModel
    model = tiny_model(name, trained=False, task=kind)
    assert input_channels(model) == 3
    model.yaml["channels"] = 1
    assert input_channels(model) == 3


@pytest.mark.parametrize("noted", [3, 1])
def test_a_first_layer_that_multiplies_the_channels_is_seen(noted: int) -> None:
    cfg = deepcopy(tiny_model("yolov8n").yaml)
    cfg["backbone"][0] = [-1, 1, "Focus", [64, 3]]
    model = DetectionModel(cfg, ch=3, nc=3, verbose=False).train()
    assert model.state_dict()["model.0.conv.conv.weight"].shape[1] == 12
    cfg["channels"] = noted
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert input_channels(model) == 3
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@BOTH_WAYS
def test_other_input_channels_are_no_pruning(own: int, channels: int) -> None:
    model = tiny_model("yolov8n", channels=own)
    cfg = model.yaml
    built = built_from(model, channels)
    assert (input_channels(model), input_channels(built)) == (own, channels)
    assert not is_pruned(model)
    assert as_it_is(built, cfg, model, {"nc": 3, "names": model.names, "channels": channels}) is built


@BOTH_WAYS
def test_without_a_method_given_weights_train_on_other_channels_as_the_host_trains_them(
    own: int, channels: int, tmp_path: Path, said: list[str]
) -> None:
    data, names = drawn(tmp_path, channels), tuple(f"thing {i}" for i in range(5))
    file = str(save_model(tiny_model("yolov8n", names, seed=1, channels=own), tmp_path / "student.pt"))
    run = train(tmp_path / "ours", data, model=file, method="none")
    assert not any("trained as it is" in message or "nc=3 with nc=5" in message for message in said)
    plain = train_plain(tmp_path / "host", data, model=file)
    ours, theirs = rows(Path(run.save_dir)), rows(Path(plain.save_dir))
    assert len(ours) == len(theirs) and all(same_values(*pair) for pair in zip(ours, theirs))
    assert input_channels(run.model) == channels


@BOTH_WAYS
def test_given_weights_are_distilled_on_data_of_other_channels(
    own: int, channels: int, tmp_path: Path, tiny_teacher: Callable[[str], Path], said: list[str]
) -> None:
    file = save_model(tiny_model("yolov8n", seed=1, channels=own), tmp_path / "student.pt")
    teacher = str(tiny_teacher("yolov8s"))
    run = train(tmp_path, drawn(tmp_path, channels), model=str(file), teacher=teacher, method="dfmsd+pcd", epochs=1)
    assert not any("trained as it is" in message for message in said)
    assert input_channels(run.model) == channels
    (row,) = rows(Path(run.save_dir))
    assert row["train/dfmsd_loss"] > 0 and row["train/pcd_loss"] > 0
