"""Terms differentiated at once: values and gradients of the plain term, graphs that are gone, and what is refused."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.loss_contract import leaves, random_pair, random_taps, random_targets
from yolokd.losses import LOSSES
from yolokd.ops.eager import eager, eager_sum, level_mean


def cubic(scale: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda left, right: (scale * left.pow(3)).sum() + (left * right).sum()


def test_hand_worked_value_and_gradients() -> None:
    """3 * (1 + 8) + (1 * 4 + 2 * 5) = 41; by left 9 x^2 + right, by right left, by the scale 1 + 8; all of it twice."""
    left, right = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([4.0, 5.0], requires_grad=True)
    scale = nn.Parameter(torch.tensor(3.0))
    term = eager(cubic(scale), [left, right], [scale])
    assert float(term.detach()) == 41.0
    (2 * term).backward()
    assert left.grad is not None and left.grad.tolist() == [2 * (9 + 4), 2 * (36 + 5)]
    assert right.grad is not None and right.grad.tolist() == [2.0, 4.0]
    assert scale.grad is not None and float(scale.grad) == 18.0


def test_gradients_reach_what_is_behind_the_inputs_as_often_as_asked() -> None:
    weight = torch.tensor([0.5, -1.0], requires_grad=True)
    left = weight * 2
    term = eager(cubic(torch.tensor(1.0)), [left, torch.ones(2)], [])
    first = torch.autograd.grad(term, weight, retain_graph=True)[0]
    second = torch.autograd.grad(term, weight)[0]
    assert first.tolist() == second.tolist() == [2 * (3 * 1 + 1), 2 * (3 * 4 + 1)]


def test_inputs_and_parameters_without_gradient_have_none() -> None:
    left, right = torch.ones(2), torch.ones(2, requires_grad=True)
    frozen, unused = nn.Parameter(torch.tensor(3.0), requires_grad=False), nn.Parameter(torch.ones(3))
    eager(cubic(frozen), [left, right], [frozen, unused]).backward()
    assert left.grad is None and frozen.grad is None
    assert right.grad is not None and right.grad.tolist() == [1.0, 1.0]
    assert unused.grad is not None and not unused.grad.any()


def test_the_graph_is_gone_before_the_gradient_is_asked_for() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def term(value: torch.Tensor) -> torch.Tensor:
        big = value.exp()  # which its own gradient needs
        held.append(weakref.ref(big))
        return big.sum()

    value = torch.zeros(3, requires_grad=True)
    found = eager(term, [value], [])
    graph = found.grad_fn
    assert graph is not None and {type(node).__name__ for node, _ in graph.next_functions if node} == {"AccumulateGrad"}
    assert held[0]() is None
    found.backward()
    assert value.grad is not None and value.grad.tolist() == [1.0] * 3


@pytest.mark.parametrize("nothing", ["no grad", "constant"])
def test_without_gradient_the_term_is_merely_computed(nothing: str) -> None:
    value = torch.ones(2, requires_grad=nothing == "no grad")
    with torch.set_grad_enabled(nothing != "no grad"):
        found = eager(cubic(torch.tensor(1.0)), [value, torch.ones(2)], [])
    assert float(found) == 4.0 and not found.requires_grad


@pytest.mark.parametrize("power", [30, 60])
def test_gradients_of_half_precision_are_kept_until_the_scaling_of_the_whole_loss(power: int) -> None:
    """2^-30 and less are below float16's smallest number, 2^-24, until the loss is scaled."""
    value = torch.ones(2, dtype=torch.float16, requires_grad=True)
    found = eager(lambda given: (given.float() * 2.0**-power).sum(), [value], [])
    (found * 2.0 ** (power - 10)).backward()
    assert value.grad is not None and value.grad.tolist() == [2.0**-10] * 2


@pytest.mark.parametrize("outer", [torch.clone, torch.square])
def test_second_derivatives_are_refused_rather_than_wrong(outer: Callable[[torch.Tensor], torch.Tensor]) -> None:
    value = torch.ones(2, requires_grad=True)
    found = outer(eager(lambda given: given.pow(3).sum(), [value], []))
    (grad,) = torch.autograd.grad(found, value, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_the_sum_of_terms_by_hand() -> None:
    """41 as above and 2 * (1 * 2) = 4 of one more term, which adds 2 * 2 and 2 * 1 by left and nothing elsewhere."""
    left, right = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([4.0, 5.0], requires_grad=True)
    scale, unused = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.ones(2))

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return 2 * left.prod()

    for terms in ([cubic(scale), product], [product, cubic(scale)]):
        found = eager_sum(terms, [left, right], [scale, unused])
        by_left, by_right, by_scale, by_unused = torch.autograd.grad(found, [left, right, scale, unused])
        assert float(found.detach()) == 45.0
        assert by_left.tolist() == [9 + 4 + 4, 36 + 5 + 2] and by_right.tolist() == [1.0, 2.0]
        assert float(by_scale) == 9.0 and by_unused.tolist() == [0.0, 0.0]
    with torch.no_grad():
        assert float(eager_sum([cubic(scale), product], [left, right], [scale])) == 45.0


def test_no_term_of_a_sum_is_held_while_the_next_one_is_computed() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def term(value: torch.Tensor) -> torch.Tensor:
        assert all(reference() is None for reference in held)
        big = value.exp()  # which its own gradient needs
        held.append(weakref.ref(big))
        return big.sum()

    value = torch.zeros(3, requires_grad=True)
    (grad,) = torch.autograd.grad(eager_sum([term] * 3, [value], []), value)
    assert len(held) == 3 and grad.tolist() == [3.0] * 3


def test_the_mean_over_levels_by_hand() -> None:
    """(2 * 3 * 5 + 4 * 1 * 5 - 1) / 2 = 24.5; by the maps 3 * 5 / 2 and 1 * 5 / 2, by the shared one (6 + 4) / 2."""
    student = [torch.tensor([2.0], requires_grad=True), torch.tensor([4.0], requires_grad=True)]
    teacher = [torch.zeros(1), torch.ones(1, requires_grad=True)]
    layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2))
    for layer, value in zip(layers, (3.0, 1.0)):
        nn.init.constant_(layer.weight, value)
    shared, unused = nn.Parameter(torch.tensor(5.0)), nn.ModuleList(nn.Linear(1, 1) for _ in range(2))

    def term(index: int, reference: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        return (layers[index](feat) * shared - reference).sum()

    mean = level_mean(term, student, teacher, layers, unused, shared=[shared])
    mean.backward()
    assert mean.item() == 24.5 and [feat.grad.item() for feat in student] == [7.5, 2.5]
    assert [layer.weight.grad.item() for layer in layers] == [5.0, 10.0] and shared.grad.item() == 5.0
    assert teacher[1].grad is None and not any(parameter.grad.any() for parameter in unused.parameters())
    for short in ((student[:1], teacher), (student, teacher[:1])):
        with pytest.raises(ValueError, match="zip"):
            level_mean(term, *short, layers)


def test_no_level_is_held_while_the_next_one_is_computed() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def term(index: int, reference: torch.Tensor, feat: torch.Tensor) -> torch.Tensor:
        assert all(reference() is None for reference in held)
        big = feat.exp()  # which its own gradient needs
        held.append(weakref.ref(big))
        return big.sum()

    level_mean(term, [torch.zeros(3, requires_grad=True) for _ in range(3)], [torch.zeros(3)] * 3)
    assert len(held) == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dfmsd", {}),
        ("dfmsd", {"align": False, "enhance": "none", "mask": "random"}),
        ("mgd", {}),
        ("pkd", {}),
        ("cwd", {}),
        ("cwd", {"align": False, "temperature": 2.0}),
        ("samkd", {}),
        ("samkd", {"feature": 0.0}),
        ("samkd", {"logit": 0.0, "align": False}),
        ("sgfi", {"regions": 8}),
        ("sgfi", {"regions": 8, "match": "same"}),
    ],
)
def test_methods_have_the_gradients_of_their_plain_terms(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that every parameter of a level is named: one that is left out would stay as it is, silently."""
    found = gradients(name, options)
    for module in ("yolokd.ops.eager", f"yolokd.losses.{name}"):
        if hasattr(sys.modules[module], "eager"):
            monkeypatch.setattr(f"{module}.eager", lambda term, inputs, parameters: term(*inputs))
        if hasattr(sys.modules[module], "eager_sum"):
            monkeypatch.setattr(
                f"{module}.eager_sum", lambda terms, inputs, parameters: sum(term(*inputs) for term in terms)
            )
    expected = gradients(name, options)
    assert expected and found.keys() == expected.keys()
    for key, (value, grads) in expected.items():
        torch.testing.assert_close(found[key][0], value, msg=key)
        assert any(grad is not None and grad.any() for grad in grads), key
        for mine, plain in zip(found[key][1], grads, strict=True):
            torch.testing.assert_close(mine, plain, msg=key)


def gradients(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return each part's value, and its gradients at the student's maps, its logits and all parameters, in float64."""
    torch.manual_seed(3)
    pair = random_pair()
    student, teacher = random_taps(pair, dtype=torch.float64)
    module = LOSSES[name](pair, **options).double()
    reached = [*student.feats, student.logits, *module.parameters()]
    return {
        part: (term.detach(), torch.autograd.grad(term, reached, retain_graph=True, allow_unused=True))
        for part, term in module.parts(student, teacher, random_targets(student)).items()
    }


@pytest.mark.parametrize("size", [64, 512])
def test_what_autocast_runs_in_float16_within_a_term_does_not_underflow(size: int) -> None:
    """A mean over so many positions has gradients of 2e-6 and 3e-8 at the map, and float16 has no step below 6e-8."""
    torch.manual_seed(0)
    layer, map_ = nn.Conv2d(8, 8, 1), torch.randn(1, 8, size, size, requires_grad=True)
    target = torch.zeros(1, 8, size, size)

    def term(value: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(layer(value).float(), target) / 8

    wanted = torch.autograd.grad(term(map_), [map_, *layer.parameters()])
    with torch.autocast("cpu", torch.float16):
        found = torch.autograd.grad(eager(term, [map_], layer.parameters()), [map_, *layer.parameters()])
    for one, other in zip(found, wanted):
        assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
        assert float(one.norm() / other.norm()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", ["pkd", "cwd"])
def test_methods_have_their_gradients_in_float16_too(name: str) -> None:
    torch.manual_seed(0)
    pair = random_pair(levels=1)
    student, teacher = random_taps(pair, sizes=[(160, 160)])
    module = LOSSES[name](pair)

    def gradients(given: Any) -> tuple[torch.Tensor, ...]:
        value = module(given, teacher, random_targets(student))
        return torch.autograd.grad(value, [*given.feats, *module.parameters()])

    wanted = gradients(student)
    with torch.autocast("cpu", torch.float16):
        found = gradients(leaves(student, dtype=torch.float16))
    for one, other in zip(found, wanted):
        scale = other.abs().max()
        torch.testing.assert_close(one.float() / scale, other / scale, rtol=0.02, atol=0.02)
