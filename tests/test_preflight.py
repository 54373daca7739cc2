"""Before the first epoch: what cannot work is refused, what is unwise is said, and nothing is changed."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.utils.torch_utils import unwrap_model

from tests.tiny import IMGSZ, NAMES, save_model, set_up, tiny_batch, tiny_model
from yolokd import DistillationTrainer, preflight
from yolokd.criterion import DistillationLoss
from yolokd.errors import UserError
from yolokd.evaluation.quick import detect, quick_ap50
from yolokd.memory import where_it_fits
from yolokd.preflight import QUICK_BATCHES, check_run

Teacher = Callable[[str], Path]


def prepare(folder: Path, data: Path, teacher: Any, **overrides: Any) -> DistillationTrainer:
    settings = {"method": "dfmsd", "kd_preflight": True, **overrides}
    return set_up(folder, data, teacher=teacher, **settings)


def untrained(folder: Path) -> str:
    return str(save_model(tiny_model(trained=False), folder / "untrained.pt"))


def test_an_untrained_teacher_is_refused_with_the_ways_out(tmp_path: Path, tiny_data: Path) -> None:
    with pytest.raises(UserError, match=r"teacher=.*untrained\.pt was never trained.*teacher_epochs=20.*kd_preflight"):
        prepare(tmp_path / "runs", tiny_data, untrained(tmp_path))


def test_without_preflight_even_that_goes_on(tmp_path: Path, tiny_data: Path, said: list[str]) -> None:
    trainer = prepare(tmp_path / "runs", tiny_data, untrained(tmp_path), kd_preflight=False)
    assert trainer.criterion is not None
    assert not any("preflight: " in message for message in said)


def test_a_teacher_that_is_smaller_is_warned_about(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolo11n")))
    assert any(
        re.search(r"teacher \(2\.6 M parameters\) is smaller than the student \(3\.0 M\)", message) for message in said
    )


def test_a_teacher_of_equal_size_is_not(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")))
    assert not any("smaller" in message for message in said)
    assert any("teacher knows 3 of the data's 3 classes" in message for message in said)


def test_other_classes_are_said_by_name_with_the_offer_to_fine_tune(
    tmp_path: Path, tiny_data: Path, said: list[str]
) -> None:
    teacher = save_model(
        tiny_model(names=("dog", "cat", "cow"), seed=2), tmp_path / "animals.pt"
    )  # as many, but others
    prepare(tmp_path / "runs", tiny_data, str(teacher))
    found = [message for message in said if "knows none of the data's classes by name" in message]
    assert len(found) == 1
    assert "teacher_epochs=20" in found[0]
    assert not any("AP50" in message for message in said)


def test_for_logit_methods_other_classes_are_refused(tmp_path: Path, tiny_data: Path) -> None:
    teacher = save_model(tiny_model(names=("dog", "cat", "cow"), seed=2), tmp_path / "animals.pt")
    with pytest.raises(UserError, match=r"method=pcd compares class logits.*circle.*dog.*teacher_epochs=20"):
        prepare(tmp_path / "runs", tiny_data, str(teacher), method="pcd")


@pytest.mark.parametrize(
    ("trained", "init", "teacher_ap", "warned"),
    [
        (True, "none", 0.5, False),
        (True, "none", 0.2, True),
        (True, "none", 0.1, True),
        (True, "teacher", 0.1, False),
        (False, "auto", 0.1, False),
        (False, "auto", 0.0, True),
    ],
)
def test_a_teacher_that_is_not_better_is_warned_about(
    trained: bool,
    init: str,
    teacher_ap: float,
    warned: bool,
    tmp_path: Path,
    tiny_data: Path,
    tiny_teacher: Teacher,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a student has from a fit to the teacher is no reason to doubt that one."""
    values = iter([0.2, teacher_ap])
    monkeypatch.setattr(preflight, "quick_ap50", lambda *args: next(values))
    given = {"model": str(save_model(tiny_model(seed=3), tmp_path / "student.pt"))} if trained else {}
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), kd_init=init, **given)
    expected = f"AP50 on 4 validation images: teacher {teacher_ap:.3f}, student at the start 0.200"
    assert any(expected in message for message in said)
    assert any("teacher is not better than the student" in message for message in said) is warned


def test_each_of_several_teachers_is_named(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.2, 0.3, 0.1])
    monkeypatch.setattr(preflight, "quick_ap50", lambda *args: next(values))
    student = str(save_model(tiny_model(seed=3), tmp_path / "student.pt"))
    teachers = [str(tiny_teacher("yolov8n")), str(tiny_teacher("yolo11n"))]
    prepare(tmp_path, tiny_data, teachers, model=student, kd_init="none")
    assert any("teacher 1 0.300" in message for message in said)
    assert any(": teacher 2 is not better" in message for message in said)


def test_the_cost_of_a_step_is_told(tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str]) -> None:
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), method="dfmsd+pcd")
    wanted = r"preflight: a step that distils takes about ([\d.]+) times as long as in plain training$"
    found = [match for message in said if (match := re.search(wanted, message))]
    assert len(found) == 1
    assert float(found[0][1]) > 0.5


@pytest.mark.parametrize("keys", [{"kd_stop": 0.5}, {"kd_stop": 0.5, "kd_every": 3}, {"kd_every": 2, "kd_warmup": 0.0}])
def test_the_cost_is_that_of_a_step_that_distils(
    keys: dict[str, Any], tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its kinds of step: plain, one in which the terms act, and one that `kd_every` leaves out."""
    acted: dict[str, bool] = {}

    def watched(steps: dict[str, Callable[[], None]], *_: Any, **__: Any) -> dict[str, list[float]]:
        for name, step in steps.items():
            asked.clear()
            step()
            acted[name] = bool(asked)
        return {name: [1.0] for name in steps}

    asked: list[int] = []
    units = DistillationLoss._units
    monkeypatch.setattr(DistillationLoss, "_units", lambda *given: asked.append(1) or units(*given))
    monkeypatch.setattr("yolokd.preflight.in_turn", watched)
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), **keys)
    rest = {"left out": False} if "kd_every" in keys else {}
    assert acted == {"plain": False, "distilled": True, **rest}


def test_the_cost_says_the_average_where_steps_are_left_out(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {"plain": [2.0], "distilled": [4.8], "left out": [2.2]}
    monkeypatch.setattr("yolokd.preflight.in_turn", lambda *_, **__: taken)
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), kd_every=4)
    told = "a step that distils takes about 2.4 times as long as in plain training, one on average with kd_every=4"
    assert any(message.endswith(f"preflight: {told} about 1.4 times") for message in said)  # (2.4 + 3 * 1.1) / 4


def test_a_step_that_distils_is_never_said_to_be_quicker_than_a_plain_one(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds a plain step; what other work on the machine makes of the two is not the run's."""
    monkeypatch.setattr("yolokd.preflight.in_turn", lambda *_, **__: {"plain": [2.0], "distilled": [1.2]})
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")))
    assert any("a step that distils takes about 1.0 times as long" in message for message in said)


def test_the_cost_is_not_measured_by_one_of_several_processes(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str]
) -> None:
    """CKD gathers from all processes: one that steps alone would wait for the others without end."""
    trainer = prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), method="ckd", kd_preflight=False)
    trainer.world_size = 2
    check_run(trainer, [tiny_model(seed=2)])
    assert any("AP50 on" in message for message in said)
    assert not any("times as long" in message for message in said)


def test_a_student_that_does_not_fit_twice_is_trained_all_the_same(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("yolokd.preflight.in_turn", full)
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")))
    assert any("not measured: not enough memory" in message for message in said)


def test_the_cost_is_that_of_the_runs_own_precision(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), kd_preflight=False)
    monkeypatch.setattr("yolokd.preflight.precision", lambda trainer: torch.autocast("cpu", torch.bfloat16))
    seen: list[torch.dtype] = []
    layer = unwrap_model(trainer.model).model[0].conv
    layer.register_forward_hook(lambda *given: seen.append(given[-1].dtype))
    check_run(trainer, [tiny_model(seed=2)])
    assert torch.bfloat16 in seen


def test_a_validation_set_without_labels_is_said(tmp_path: Path, tiny_teacher: Teacher, said: list[str]) -> None:
    from yolokd.drawn.shapes import draw_dataset

    data = draw_dataset(tmp_path / "data", images=(4, 2), imgsz=64, classes=3)
    for label in (data.parent / "labels" / "val").glob("*.txt"):
        label.write_text("")
    prepare(tmp_path / "runs", data, str(tiny_teacher("yolov8n")))
    assert any("no labelled validation images at hand" in message for message in said)


@pytest.mark.parametrize(
    "teacher_ap, few, why",
    [
        (0.4, 0, "no teacher is better"),
        (0.5, 0, "no teacher is better"),
        (0.6, 100, "fitted ones begin lower, and {steps} steps are few to make up for that"),
        (0.6, 1, ""),
    ],
)
def test_own_weights_come_back_where_fitted_ones_do_not_pay(
    teacher_ap: float,
    few: int,
    why: str,
    tmp_path: Path,
    tiny_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    """Where no teacher is better than the student was, or steps are few: for the student and its EMA."""
    monkeypatch.setattr(preflight, "FEW_STEPS", few)
    student, teacher = tiny_model(seed=1), tiny_model("yolov8s", seed=2)
    own = {key: value.clone() for key, value in student.state_dict().items()}
    others = {teacher.model[0].conv.weight.shape: teacher_ap, student.model[0].conv.weight.shape: 0.5}

    def ap50(model: Any, *_: Any) -> float:
        weight = model.model[0].conv.weight
        fitted = weight.shape == own["model.0.conv.weight"].shape and not torch.equal(
            weight, own["model.0.conv.weight"]
        )
        return 0.3 if fitted else others[weight.shape]

    monkeypatch.setattr(preflight, "quick_ap50", ap50)
    paths = {"model": student, "teacher": teacher}
    files = {key: str(save_model(model, tmp_path / f"{key}.pt")) for key, model in paths.items()}
    trainer = prepare(
        tmp_path / "runs", tiny_data, files["teacher"], model=files["model"], pretrained=True, method="bckd"
    )
    assert any("student at the start 0.300, with its own weights 0.500" in message for message in said)
    kept = [message.split(": ", 2)[2] for message in said if "preflight: " in message and "keeps its own" in message]
    why = why.format(steps=2 * len(trainer.train_loader))
    assert kept == ([f"{why} (kd_init=teacher takes the fitted ones)"] if why else [])
    for model in (trainer.model, trainer.ema.ema):
        now = model.state_dict()
        assert all(torch.equal(now[key], value.to(now[key])) for key, value in own.items()) == bool(why)


def state_of_generators() -> tuple[Any, ...]:
    numbers = np.random.get_state()
    return random.getstate(), numbers[1].tolist(), numbers[2:], torch.get_rng_state().tolist()


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_it_leaves_generators_loaders_and_the_student_as_they_were(
    family: str, tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    trainer = prepare(
        tmp_path, tiny_data, str(tiny_teacher(family)), model=f"{family}.yaml", kd_preflight=False, method="dfmsd+ckd"
    )
    models = (trainer.model, trainer.ema.ema)
    before = copy.deepcopy([model.state_dict() for model in models])
    criterion = copy.deepcopy(trainer.criterion.state())
    modes = [module.training for model in models for module in model.modules()]
    generators = state_of_generators()
    loader = trainer.test_loader.generator.get_state().tolist()
    preflight.check_run(trainer, [tiny_model(family, seed=2)])
    assert state_of_generators() == generators
    assert trainer.test_loader.generator.get_state().tolist() == loader
    assert trainer.test_loader.iterator is None
    assert trainer.train_loader.iterator is None
    assert [module.training for model in models for module in model.modules()] == modes
    for model, state in zip(models, before):
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert criterion["calibration"] == trainer.criterion.state()["calibration"]
    now = trainer.criterion.state()["methods"]
    assert all(torch.equal(criterion["methods"][key], value) for key, value in now.items())
    assert trainer.criterion.clock.step == 0
    assert trainer.criterion.seen == 0


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1, 1, 1, 1]), (2, [2, 2])])
def test_the_validation_images_are_the_loaders_first_batches(
    batch: int, sizes: list[int], tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher
) -> None:
    """The loader's batches hold twice the images of a training batch, and are halved; there are four images."""
    trainer = prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), kd_preflight=False, batch=batch)
    expected = [found["img"].float() / 255 for _, found in zip(range(QUICK_BATCHES), trainer.test_loader)]
    found = [preflight._on_device(trainer, part)["img"] for part in preflight._first_batches(trainer)]
    assert [len(part) for part in found] == sizes
    assert torch.equal(torch.cat(expected), torch.cat(found))


def test_halves_lie_within_the_loaders_batches(tmp_path: Path, tiny_teacher: Teacher) -> None:
    """Validation images of other shapes are in other batches, also where batches are odd."""
    from PIL import Image

    for split, number in (("train", 4), ("val", 5)):
        for index in range(number):
            image = tmp_path / "data" / "images" / split / f"{index}.png"
            label = tmp_path / "data" / "labels" / split / f"{index}.txt"
            image.parent.mkdir(parents=True, exist_ok=True)
            label.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 24 + 10 * index)).save(image)
            label.write_text("0 0.5 0.5 0.5 0.5")
    data = tmp_path / "data" / "data.yaml"
    data.write_text(f"path: {data.parent}\ntrain: images/train\nval: images/val\nnames: [{', '.join(NAMES)}]\n")
    trainer = prepare(tmp_path, data, str(tiny_teacher("yolov8n")), kd_preflight=False, batch=2)
    trainer.test_loader = trainer.get_dataloader(trainer.data["val"], batch_size=3, rank=-1, mode="val")
    parts = [part["img"].shape for part in preflight._first_batches(trainer)]
    assert [shape[0] for shape in parts] == [2, 1, 1, 1]
    assert parts[0][1:] == parts[1][1:] and parts[2][1:] == parts[3][1:]


FULL = "CUDA out of memory"


@pytest.mark.parametrize(
    ("found", "epochs", "kept", "parts"),
    [  # student, its own weights, teacher 1, teacher 2; None where there is no memory
        ((None,), 1000, False, ["nothing was compared: not enough memory"]),
        ((0.1, None), 1000, False, ["nothing was compared: not enough memory"]),
        ((0.1, 0.5, 0.2, None), 1000, False, ["teacher 1 is not better", "teacher 2 was not compared: not enough"]),
        (
            (0.1, 0.5, 0.2, None),
            1,
            True,
            ["teacher 2 was not compared", "fitted ones begin lower, and"],
        ),
        ((0.1, 0.5, None, 0.2), 1000, False, ["teacher 1 was not compared", "teacher 2 is not better"]),
        (
            (0.1, 0.5, 0.2, 0.3),
            1000,
            True,
            ["teacher 1 is not better", "fitted to the teacher where they had nothing: no teacher is better (kd_init"],
        ),
    ],
)
def test_what_does_not_fit_into_memory_is_not_compared(
    found: tuple[float | None, ...], epochs: int, kept: bool, parts: list[str],
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The run goes on, and what is known decides."""
    values = iter(found)

    def look(*_: Any) -> float:
        if (value := next(values)) is None:
            raise torch.OutOfMemoryError(FULL)
        return value

    teachers = [str(tiny_teacher("yolov8n")), str(tiny_teacher("yolov8s"))]
    trainer = prepare(tmp_path, tiny_data, teachers, kd_preflight=False, kd_init="none", epochs=3)
    trainer.epochs = epochs
    monkeypatch.setattr(preflight, "quick_ap50", look)
    assert check_run(trainer, [tiny_model(seed=2), tiny_model(seed=3)], trainer.ema.ema.state_dict()) is kept
    assert next(values, "all") == "all"
    for part in parts:
        assert sum(part in message for message in said) == 1, part


def test_a_copy_of_the_student_that_does_not_fit_is_not_compared(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError(FULL)

    trainer = prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), kd_preflight=False, kd_init="none")
    monkeypatch.setattr(preflight, "deepcopy", full)
    assert check_run(trainer, [tiny_model(seed=2)], trainer.ema.ema.state_dict()) is False
    assert sum("nothing was compared: not enough memory" in message for message in said) == 1
    assert sum("the cost of a step was not measured" in message for message in said) == 1


@pytest.mark.parametrize("text", [FULL, "MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling"])
def test_errors_of_memory_by_their_words(text: str) -> None:
    def full() -> float:
        raise RuntimeError(text)

    assert where_it_fits(full) is None
    assert where_it_fits(lambda: 1.5) == 1.5
    text = "shapes differ"
    with pytest.raises(RuntimeError, match="shapes differ"):
        where_it_fits(full)


class Answer(nn.Module):
    """A detector that finds the given boxes, as the host's heads put it: x, y, w, h in pixels and class scores.

    Of a pair of labels the score is that of the second, and the first is a little likelier.
    """

    def __init__(self, rows: Sequence[Sequence[Any]], classes: int):
        super().__init__()
        output = torch.zeros(1, 4 + classes, len(rows))
        for index, (x, y, w, h, label, score) in enumerate(rows):
            output[0, :4, index] = torch.tensor([x, y, w, h])
            if isinstance(label, tuple):
                output[0, 4 + label[0], index], label = score + 0.01, label[1]
            output[0, 4 + int(label), index] = score
        self.output = output

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.output.expand(len(images), -1, -1), None


BATCH = {
    "img": torch.zeros(1, 3, 64, 64),
    "cls": torch.tensor([[0.0], [1.0]]),
    "bboxes": torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.75, 0.75, 0.25, 0.5]]),
    "batch_idx": torch.zeros(2),
}
RIGHT = [(16, 16, 16, 16, 0, 0.9), (48, 48, 16, 32, 1, 0.8)]


@pytest.mark.parametrize(
    ("rows", "classes", "expected"),
    [
        (RIGHT, {0: 0, 1: 1, 2: 2}, 0.995),  # the host's interpolation gives 0.995 for a perfect answer
        ([(16, 16, 16, 16, 1, 0.9), (48, 48, 16, 32, 0, 0.8)], {0: 0, 1: 1, 2: 2}, 0.0),  # classes swapped
        ([(16, 16, 16, 16, 1, 0.9), (48, 48, 16, 32, 0, 0.8)], {0: 1, 1: 0}, 0.995),  # and swapped back by name
        ([(40, 16, 16, 16, 0, 0.9), (48, 16, 16, 32, 1, 0.8)], {0: 0, 1: 1}, 0.0),  # elsewhere
        ([*RIGHT, (32, 32, 9, 9, 2, 0.99)], {0: 0, 1: 1}, 0.995),  # a class that the data has not
        (RIGHT[:1], {0: 0, 1: 1}, 0.995 / 2),  # one class found, one missed
        ([*RIGHT, (40, 16, 16, 16, 0, 0.95)], {0: 0, 1: 1}, (0.5 + 0.995) / 2),  # a wrong one before the right one
        ([*RIGHT, (19, 16, 16, 16, 0, 0.95)], {0: 0, 1: 1}, (0.5 + 0.995) / 2),  # one object found twice, IoU 0.68
        ([], {0: 0, 1: 1}, 0.0),
        (RIGHT, {}, 0.0),
        ([(16, 16, 16, 16, (2, 0), 0.9), (48, 48, 16, 32, (2, 1), 0.8)], {0: 0, 1: 1}, 0.995),  # likelier another's
        ([(16, 16, 16, 16, (1, 0), 0.9), (48, 48, 16, 32, (0, 1), 0.95)], {0: 0, 1: 1}, (0.5 + 0.995) / 2),  # as sure
        ([(16, 16, 16, 16, (2, 0), 0.9), (16, 48, 16, 16, 0, 0.5), RIGHT[1]], {0: 0, 2: 0, 1: 1}, 0.995),  # one of two
    ],
)
def test_the_quick_ap50(rows: list[tuple[Any, ...]], classes: dict[int, int], expected: float) -> None:
    assert quick_ap50(Answer(rows or [(1, 1, 1, 1, 0, 0.0)], 3), [BATCH], classes) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_classes_that_are_not_learned_change_nothing(family: str) -> None:
    """A copy of a model that is silent about them does as well, however much the model itself has to say."""

    def biased(values: Sequence[float]) -> Any:
        changed = copy.deepcopy(model)
        for name, parameter in changed.model[-1].named_parameters():
            if name.endswith("2.bias") and parameter.shape == (len(NAMES),):
                parameter.data.copy_(torch.tensor(values))
        return changed

    model = tiny_model(family, seed=2)
    silent, images = biased([-100.0, -100.0, 1.0]), tiny_batch()["img"]
    with torch.no_grad():
        boxes = torch.cat([rows[:2, :4] for rows in detect(silent, images, {2: 2})]) / IMGSZ
    batch = {
        "img": images,
        "cls": torch.full((4, 1), 2.0),
        "bboxes": torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1),
        "batch_idx": torch.arange(2).repeat_interleave(2),
    }
    found = quick_ap50(silent, [batch], {2: 2})
    assert found > 0.5
    assert quick_ap50(biased([3.0, 3.0, 1.0]), [batch], {2: 2}) == found


def test_the_look_counts_the_learned_classes_alone_for_both(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[int, int]] = []
    monkeypatch.setattr(preflight, "quick_ap50", lambda model, batches, classes: float(seen.append(classes) or 0.1))
    prepare(tmp_path, tiny_data, str(tiny_teacher("yolov8n")), classes=[1])
    assert seen == [{1: 1}, {1: 1}]


def test_the_quick_ap50_reads_end_to_end_models() -> None:
    class EndToEnd(nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
            boxes = [(8.0, 8.0, 24.0, 24.0, 0.9, 0.0), (40.0, 32.0, 56.0, 64.0, 0.8, 1.0)]
            return torch.tensor([boxes]), None

    assert quick_ap50(EndToEnd(), [BATCH], {0: 0, 1: 1}) == pytest.approx(0.995, abs=0.01)
