"""Every method on every head: v5u, v8, v9, v10, 11, 12 and 26 as student and as teacher, by steps of the criterion."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import NAMES, tiny_batch, tiny_criterion, tiny_model
from yolokd.errors import UserError
from yolokd.losses import LOSSES
from yolokd.outputs import read_output

HEADS = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
TWO_BRANCHES = {"yolov10n", "yolo26n"}
WITHOUT_BINS = {"yolo26n"}  # plain distances in place of a distribution, so nothing for ld
TEACHER_OF = dict(zip(HEADS, (*HEADS[1:], HEADS[0])))  # each head learns from another one and teaches another one
OTHER_NAMES = ("triangle up", "Square", "hexagon", "circle")  # the students' classes in another order and spelling


def methods_for(*heads: str) -> list[str]:
    """Return the methods that heads can have."""
    return [name for name in LOSSES if name != "ld" or not WITHOUT_BINS & set(heads)]


def joined(student: str, teacher: str, **overrides: Any) -> tuple[Any, Any, list[str]]:
    """Return a student and its criterion with all methods that the pair can have, and their names."""
    methods = methods_for(student, teacher)
    model, criterion = tiny_criterion("+".join(methods), student, teacher, **overrides)
    return model, criterion, methods


def check_step(model: Any, criterion: Any, batch: dict[str, Any]) -> dict[str, float]:
    """Do a step, check that all of it is finite and no adapter is left out, and return the terms by method."""
    model.zero_grad()
    loss, items = model(batch)
    loss.sum().backward()
    terms = {name: float(items[f"{name}_loss"]) for name in criterion.methods}
    assert torch.isfinite(loss).all(), terms
    for name, parameter in model.named_parameters():
        if name.startswith("criterion."):
            assert parameter.grad is not None, name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    return terms


def check_neck(model: Any, methods: list[str], batch: dict[str, Any]) -> None:
    """Check that each method's own term acts on the neck."""
    preds = model(batch["img"])
    loss, _ = model.loss(batch, preds)
    feats = read_output(preds).feats
    for name, term in zip(methods, loss[-len(methods) :]):
        grads = torch.autograd.grad(term, feats, retain_graph=True, allow_unused=True)
        assert any(grad is not None and bool(grad.any()) for grad in grads), name


@pytest.mark.parametrize("head", HEADS)
def test_every_method_acts_on_every_head(head: str) -> None:
    model, criterion, methods = joined(head, TEACHER_OF[head])
    assert list(criterion.task.assignments) == ["one2many", "one2one"][: 2 if head in TWO_BRANCHES else 1]
    assert criterion.methods["mgd"][0].pair.student_reg_max == (1 if head in WITHOUT_BINS else 16)
    terms = check_step(model, criterion, tiny_batch())
    assert all(term > 0 for term in terms.values()), terms
    check_neck(model, methods, tiny_batch())


@pytest.mark.parametrize(
    "head",
    [
        head if head in {"yolov8n", "yolov10n", "yolo26n"} else pytest.param(head, marks=pytest.mark.slow)
        for head in HEADS
    ],
)
def test_batches_of_any_kind_go_through_one_criterion(head: str) -> None:
    """Rectangles, several scales, one image, no objects, and bfloat16, one after the other."""
    model, criterion, methods = joined(head, TEACHER_OF[head])
    for batch in (tiny_batch(size=(64, 96)), tiny_batch(size=(128, 96), seed=1), tiny_batch(images=1, seed=2)):
        terms = check_step(model, criterion, batch)
        assert all(term > 0 for term in terms.values()), terms
    terms = check_step(model, criterion, tiny_batch(objects=0))
    on_objects_alone = {"ld"} & set(methods)
    assert {name for name in methods if terms[name] == 0} >= on_objects_alone, terms
    assert all(terms[name] > 0 for name in methods if LOSSES[name].signal != "logits"), terms
    with torch.autocast("cpu", torch.bfloat16):
        terms = check_step(model, criterion, tiny_batch())
    assert all(term > 0 for term in terms.values()), terms


@pytest.mark.parametrize("head", ["yolov8n", "yolo26n"])
def test_every_method_acts_between_other_widths_and_classes_by_name(head: str) -> None:
    teacher = tiny_model("yolov8s", names=OTHER_NAMES, seed=2)
    methods = methods_for(head)
    model, criterion = tiny_criterion("+".join(methods), head, teacher)
    pair = criterion.methods["mgd"][0].pair
    assert all(student != wider for student, wider in zip(pair.student_channels, pair.teacher_channels))
    assert pair.num_classes == len(NAMES)
    assert criterion.links[0].teacher_view.classes == (3, 1, 0)
    terms = check_step(model, criterion, tiny_batch())
    assert all(term > 0 for term in terms.values()), terms


@pytest.mark.parametrize(("student", "teacher"), [("yolo26n", "yolov8n"), ("yolov8n", "yolo26n")])
def test_ld_says_why_it_refuses_heads_without_bins(student: str, teacher: str) -> None:
    side = "student" if student in WITHOUT_BINS else "teacher"
    with pytest.raises(UserError, match=rf"'ld' compares box distributions, and the {side} .*reg_max=1.*Choose bckd"):
        tiny_criterion("ld", student, teacher)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", HEADS)
@pytest.mark.parametrize("student", HEADS)
def test_every_head_teaches_every_head(student: str, teacher: str) -> None:
    model, criterion, methods = joined(student, teacher, kd_gain="auto")
    terms = check_step(model, criterion, tiny_batch())
    assert all(term > 0 for term in terms.values()), terms
    check_neck(model, methods, tiny_batch())


@pytest.mark.slow
@pytest.mark.parametrize("method", LOSSES)
@pytest.mark.parametrize("head", HEADS)
def test_every_method_trains_alone_on_every_head(head: str, method: str) -> None:
    if method not in methods_for(head):
        pytest.skip("ld is refused where there are no bins")
    model, criterion = tiny_criterion(method, head, head, kd_gain="auto")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for seed in range(2):
        assert check_step(model, criterion, tiny_batch(seed=seed))[method] > 0
        optimizer.step()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("head", HEADS)
def test_every_method_acts_on_a_gpu(head: str, dtype: torch.dtype) -> None:
    methods = methods_for(head)
    student = tiny_model(head, seed=1).cuda()
    model, criterion = tiny_criterion("+".join(methods), student, head, kd_teacher_dtype="auto")
    batch = {key: value.cuda() for key, value in tiny_batch().items()}
    with torch.autocast("cuda", dtype):
        terms = check_step(model, criterion, batch)
    assert all(term > 0 for term in terms.values()), terms
