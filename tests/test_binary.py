"""Binary distillation: a number by hand, the loop version, gradients and extreme logits."""

from __future__ import annotations

import math

import pytest
import torch

from tests.oracles import logits as oracle
from yolokd.ops.binary import binary_distillation


@pytest.mark.parametrize(
    ("beta", "expected"),
    [
        # Two classes. Student 0 -> 1/2, teacher ln 3 -> 3/4: BCE(0, 3/4) = ln 2 = 0.693147, difference 1/4.
        # The second class agrees at ln 3: BCE = entropy of 3/4 = 0.562335, difference 0.
        (0.0, 0.693147 + 0.562335),
        (0.5, 0.693147 * 0.5),
        (1.0, 0.693147 * 0.25),
        (2.0, 0.693147 * 0.0625),
    ],
)
def test_known_number(beta: float, expected: float) -> None:
    student = torch.tensor([[[0.0, math.log(3)]]])
    teacher = torch.tensor([[[math.log(3), math.log(3)]]])
    value = binary_distillation(student, teacher, beta)
    assert value.shape == (1, 1)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_equals_the_loop_version(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(2, 3, 4, 5, generator=generator)).double()
    value = binary_distillation(student, teacher, beta).sum().item()
    assert value == pytest.approx(oracle.binary(student.numpy(), teacher.numpy(), beta, 1.0), rel=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 2.0])
def test_gradcheck(beta: float) -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 3, 4, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: binary_distillation(s, teacher, beta), student.requires_grad_())


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_zero_with_finite_gradient_where_both_agree(beta: float) -> None:
    student = torch.tensor([[-3.0, 0.0, 2.0]], requires_grad=True)
    value = binary_distillation(student, student.detach(), beta)
    value.sum().backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros(1, 3))


def test_extreme_logits_are_finite() -> None:
    student = torch.tensor([[-1e4, 1e4, -1e4, 88.0]], requires_grad=True)
    value = binary_distillation(student, torch.tensor([[1e4, -1e4, -1e4, -88.0]]))
    value.sum().backward()
    assert value.item() == pytest.approx(1e4 + 1e4 + 0 + 88)
    assert bool(torch.isfinite(student.grad).all())


def test_no_gradient_to_the_teacher_and_float32_from_bfloat16() -> None:
    student = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = binary_distillation(student, teacher)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert student.grad is not None and teacher.grad is None
