"""Students whose layers are fitted to their teacher's by least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.tiny import IMGSZ, tiny_model
from tests.widening import CLASSES, raw, widened
from yolokd.students import fitted, regression
from yolokd.students.channels import raw_outputs
from yolokd.students.fitted import fit_weights
from yolokd.students.inherited import same_family, select_weights
from yolokd.students.regression import RIDGES, add_up

IMAGES = torch.rand(8, 3, IMGSZ, IMGSZ, generator=torch.Generator().manual_seed(0))


def seen(model: Any, name: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a layer's input and output."""
    found: list[Any] = []
    handle = dict(model.named_modules())[name].register_forward_hook(
        lambda m, i, o: found.append((i[0].clone(), o.clone()))
    )
    with torch.no_grad(), raw_outputs(model):
        model(images)
    handle.remove()
    return found[0]


def by_hand(values: list[float], target: list[float], learned: int, prior: float) -> tuple[float, float]:
    inputs = torch.tensor(values).double()[None, :, None]
    sums = add_up(lambda rows: inputs[:, rows], torch.tensor(target).double()[:, None], learned, width=1)
    weight, explained = sums.regress(torch.tensor([[prior]]).double())
    return weight.item(), explained


def test_a_regression_by_hand() -> None:
    """y = 2x + 7 on x = -1, 1, of which the same are held out: centred, the slope is 2 / (1 + ridge).

    Drawn to a prior of 2 it is 2 for every ridge, and drawn to one of 5 worse than to zero.
    """
    points = [-1.0, 1.0, -1.0, 1.0], [5.0, 9.0, 5.0, 9.0], 2
    slope, explained = by_hand(*points, prior=5.0)
    assert slope == pytest.approx(2 / 1.001) and explained == pytest.approx(1 - (1 - 1 / 1.001) ** 2)
    assert by_hand(*points, prior=2.0) == pytest.approx((2, 1))


@pytest.mark.parametrize("learned", [0, 3])
def test_outputs_of_filters_by_hand(learned: int) -> None:
    """Inputs 0, 2, 4, 6 have mean 3 and variance 5, so what a filter of -2 makes of them has -6 and 20."""
    inputs = torch.tensor([0.0, 2.0, 4.0, 6.0]).double()[None, :, None]
    sums = add_up(lambda rows: inputs[:, rows], torch.ones(4, 1).double(), learned, width=1)
    filters = torch.tensor([[-2.0]]).double()
    assert (sums.mean(filters).item(), sums.variance(filters).item()) == pytest.approx((-6, 20))


def test_an_input_that_never_changes_explains_nothing() -> None:
    assert by_hand([3.0, 3.0, 3.0, 3.0], [1.0, 2.0, 1.0, 2.0], 2, prior=0.5) == (0, 0)


def expected(groups: list[Any], held_out: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float]:
    """Return predictions by augmented least squares, each ridge tried for itself, and the share explained.

    Args:
        groups (list): For each group of channels inputs (M, D), targets (M, C) and priors (D, C).
        held_out (np.ndarray): Which of the M choose.
    """

    def solve(group: Any, rows: Any, ridge: float, origin: float) -> Any:
        x, y, prior = group
        x, y = (x - x.mean(0))[rows], (y - y.mean(0))[rows]
        penalty = np.sqrt(ridge * (x**2).sum() / x.shape[1])
        left = np.concatenate([x, penalty * np.eye(x.shape[1])])
        return np.linalg.lstsq(left, np.concatenate([y, penalty * origin * prior]), rcond=None)[0]

    def missed(group: Any, weight: Any) -> Any:
        x, y, _ = group
        return (((x - x.mean(0)) @ weight - (y - y.mean(0)))[held_out] ** 2).sum()

    ways = [(ridge, origin) for ridge in RIDGES for origin in (0.0, 1.0)]
    errors = [sum(missed(group, solve(group, ~held_out, *way)) for group in groups) for way in ways]
    best = ways[int(np.argmin(errors))]
    every = np.ones(len(held_out), bool)
    predicted = [(x - x.mean(0)) @ solve((x, y, prior), every, *best) + y.mean(0) for x, y, prior in groups]
    distance = sum(((y - y.mean(0))[held_out] ** 2).sum() for _, y, _ in groups)
    return np.concatenate(predicted, 1), 1 - min(errors) / distance


@pytest.mark.parametrize(
    "family, name, norm",
    [
        ("yolov8", "model.0.conv", "model.0.bn"),
        ("yolov8", "model.5.conv", "model.5.bn"),
        ("yolov8", "model.9.cv2.conv", "model.9.cv2.bn"),
        ("yolov8", "model.22.cv2.1.2", ""),
        ("yolov8", "model.22.cv3.0.2", ""),
        ("yolo11", "model.23.cv3.1.0.0.conv", "model.23.cv3.1.0.0.bn"),
    ],
    ids=["strided", "more unknowns than places", "joined", "boxes", "classes", "depthwise"],
)
def test_one_layer_against_an_oracle(family: str, name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole maps, unfolded by torch and solved by numpy, give the same outputs, and nothing else is touched."""
    monkeypatch.setattr(fitted, "POSITIONS", (10**6, 10**6, 1))
    monkeypatch.setattr(regression, "PIECE", 1000)  # many pieces, none of which ends where what is held out begins
    student, teacher = tiny_model(f"{family}n", seed=1).double(), tiny_model(f"{family}s", seed=2).double()
    images, layers = IMAGES.double(), dict(student.named_modules())
    conv, after = layers[name], layers.get(norm) if norm else None
    inputs, _ = seen(student, name, images)
    _, target = seen(teacher, norm or name, images)
    rows = [0, 2] if ".cv3." in name and not norm else [*range(conv.out_channels)]
    target = target[:, [1, 0]] if len(rows) == 2 else target[:, :: target.shape[1] // conv.out_channels]
    affine = 1 if after is None else (after.weight / (after.running_var + after.eps).sqrt()).view(-1, 1, 1, 1)
    prior = (conv.weight[rows] * affine).detach().flatten(1).numpy()

    def flat(maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(2).transpose(1, 2).flatten(0, 1)

    x = F.unfold(inputs, conv.kernel_size, padding=conv.padding, stride=conv.stride).transpose(1, 2).flatten(0, 1)
    x, y = x.numpy(), flat(target).numpy()
    if conv.groups > 1:
        columns = np.split(x, conv.groups, 1)
        groups = [(columns[c], y[:, [c]], prior[[c]].T) for c in range(conv.groups)]
    else:
        groups = [(x, y, prior.T)]
    wanted, share = expected(groups, np.repeat(np.arange(8) >= 6, len(x) // 8))
    before = {key: value.clone() for key, value in student.state_dict().items()}
    sizes = conv.weight.detach().flatten(1).norm(dim=1)
    explained = fit_weights(student, teacher, images, {0: 1, 2: 0}, lambda found: found == name)
    assert explained == {name: pytest.approx(share, rel=1e-6)}
    with torch.no_grad():
        got = flat((conv(inputs) if after is None else after(conv(inputs)))[:, rows])
    prediction = torch.from_numpy(wanted)
    torch.testing.assert_close(got, prediction, rtol=1e-5, atol=1e-5)
    if after is not None:
        torch.testing.assert_close(conv.weight.flatten(1).norm(dim=1), sizes)
    changed = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    if after is None:
        assert changed == {f"{name}.weight", f"{name}.bias"}
        others = [row for row in range(conv.out_channels) if row not in rows]
        assert torch.equal(conv.weight[others], before[f"{name}.weight"][others])
    else:
        assert changed == {f"{name}.weight"} | {
            f"{norm}.{key}" for key in ("weight", "bias", "running_mean", "running_var")
        }


class Twice(nn.Module):
    """A layer that is passed twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleList([nn.Conv2d(3, 3, 1)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model[0](self.model[0](images))  # type: ignore[no-any-return]


def test_places_of_a_layer_that_is_passed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more places than are wanted are kept, and all of them are filled."""
    monkeypatch.setattr(fitted, "POSITIONS", (300, 300, 1))
    monkeypatch.setattr(fitted, "CHUNK", 2)
    model, images = Twice().double(), IMAGES.double()  # float32 is kept in half precision
    picks, layers = {"model.0": torch.tensor([2, 0])}, {"model.0": model.model[0]}
    (places, target) = fitted._targets(model, images, layers, picks, {"model.0": 3}, ["model.0"])["model.0"]
    assert target.shape == (300, 2) and [len(index) for index in places] == [300] * 3
    with torch.no_grad():
        once = model.model[0](images)
        both = [maps[places[0], :, places[1], places[2]][:, [2, 0]] for maps in (once, model.model[0](once))]
    assert bool(torch.isclose(torch.stack(both), target, atol=1e-6).all(-1).any(0).all())


@pytest.mark.parametrize("family", ["yolov8", "yolo11", "yolo26"])
@pytest.mark.parametrize("early", [0, 40000, 1 << 40])
def test_neither_bytes_nor_looking_at_the_teacher_twice_change_a_fit(
    family: str, early: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are taken as bytes too, and targets of later layers are found later, at the same places."""
    pictures = (IMAGES * 255).round().to(torch.uint8)
    expected, found, teacher = (
        tiny_model(f"{family}{scale}", seed=seed) for scale, seed in (("n", 3), ("n", 3), ("s", 2))
    )
    shares = fit_weights(expected, teacher, pictures.float() / 255, CLASSES)
    looks = []
    monkeypatch.setattr(fitted, "EARLY", early)
    monkeypatch.setattr(
        fitted, "_targets", lambda *args, real=fitted._targets: looks.append(len(args[-1])) or real(*args)
    )
    assert fit_weights(found, teacher, pictures, CLASSES) == shares
    assert len(looks) == 1 + (early < 1 << 40) and min(looks) > 0
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize("number", [1, 2, 3])
def test_very_few_images(number: int) -> None:
    """One image judges itself; of two or three the last one judges."""
    student, teacher = tiny_model(seed=3), tiny_model("yolov8s", seed=2)
    select_weights(student, teacher, CLASSES)
    explained = fit_weights(student, teacher, IMAGES[:number], CLASSES)
    assert all(share <= 1 for share in explained.values()) and 0 < sum(explained.values()) / len(explained) <= 1
    assert torch.isfinite(raw(student, IMAGES)).all()


@pytest.mark.parametrize("scale", ["yolov8n", "yolov8s"])
def test_a_teacher_with_nothing_more_is_found_again(scale: str) -> None:
    """The student's own shape, or each channel twice: all is explained, and the function is the teacher's."""
    original, student = tiny_model(seed=1).double(), tiny_model(seed=3).double()
    teacher = widened(original, tiny_model("yolov8s", seed=2).double()) if scale == "yolov8s" else original
    select_weights(student, teacher, CLASSES)
    weights = student.model[4].cv1.conv.weight.detach().clone()
    explained = fit_weights(student, teacher, IMAGES.double(), CLASSES)
    assert len(explained) > 60 and min(explained.values()) > 1 - 1e-6
    torch.testing.assert_close(raw(student, IMAGES.double()), raw(original, IMAGES.double()), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(student.model[4].cv1.conv.weight, weights, rtol=1e-3, atol=1e-3)


def test_a_shuffled_teacher_is_approached_better_than_by_selection() -> None:
    """Where the channels of a teacher are not in the order in which they are selected, the fit still follows them."""
    student, teacher = tiny_model(seed=3).requires_grad_(False), tiny_model("yolov8s", seed=2)
    select_weights(student, teacher, CLASSES)

    def distance() -> float:
        return float((raw(student, IMAGES) - raw(teacher, IMAGES))[:, 4:].square().mean())

    selected = distance()
    fit_weights(student, teacher, IMAGES, CLASSES)
    assert distance() < 0.5 * selected


@pytest.mark.parametrize(
    "student, teacher",
    [
        ("yolov5n", "yolov5s"),
        ("yolov8n", "yolov8m"),
        ("yolo11n", "yolo11s"),
        ("yolo26n", "yolo26s"),
        pytest.param("yolov9t", "yolov9s", marks=pytest.mark.slow),
        pytest.param("yolov10b", "yolov10l", marks=pytest.mark.slow),
        pytest.param("yolo12n", "yolo12s", marks=pytest.mark.slow),
        pytest.param("yolov8n-p2", "yolov8s-p2", marks=pytest.mark.slow),
    ],
)
def test_families(student: str, teacher: str) -> None:
    """In every family nearly all convolutions are fitted, outputs are nearer, and the models are left clean."""
    small, large = tiny_model(student, seed=1), tiny_model(teacher, seed=2)
    assert same_family(small, large)
    large.train()
    state = {key: value.clone() for key, value in large.state_dict().items()}
    select_weights(small, large, CLASSES)
    convs = [name for name, module in small.named_modules() if isinstance(module, nn.Conv2d) and "dfl" not in name]
    explained = fit_weights(small, large, IMAGES, CLASSES)
    assert len(explained) > 0.95 * len(convs)
    assert all(torch.equal(state[key], value) for key, value in large.state_dict().items())
    assert all(module.training for module in large.modules())
    for model in (small, large):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert not any(getattr(module, "inplace", False) for module in model.modules() if isinstance(module, nn.SiLU))
    assert all(torch.isfinite(value).all() for value in small.state_dict().values())
    assert torch.isfinite(raw(small, IMAGES)).all()
