"""The checklist that every distillation method passes; subclass `LossContract` as `TestX`, set `loss` and `reads`."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import math
import random
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from yolokd.losses.base import DistillLoss
from yolokd.ops.adapters import Adapters
from yolokd.taps import Pair, Taps, Targets

DEFAULTS = Path(__file__).parents[1] / "cfg" / "default.yaml"
STRIDES = (8, 16, 32)
SIZES = [(12, 16), (6, 8), (3, 4)]  # a rectangular image of 96 x 128 pixels


class RandomTowers:
    """A frozen linear head: one random 1x1 convolution per level for the classes and one for the boxes."""

    def __init__(self, pair: Pair, generator: torch.Generator):
        """Draw the weights for the pair's teacher channels."""
        box_channels = 4 * pair.teacher_reg_max
        self.class_weights = [self._draw(pair.num_classes, c, generator) for c in pair.teacher_channels]
        self.box_weights = [self._draw(box_channels, c, generator) for c in pair.teacher_channels]

    @staticmethod
    def _draw(out_channels: int, channels: int, generator: torch.Generator) -> torch.Tensor:
        weight = torch.randn(out_channels, channels, 1, 1, generator=generator, dtype=torch.float64)
        return weight * 1.5 / math.sqrt(channels)

    def __call__(self, feats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, A, K) and raw boxes (B, A, 4 * R) of neck maps (B, C, H, W)."""

        def apply(weights: list[torch.Tensor]) -> torch.Tensor:
            maps = [nn.functional.conv2d(f, w.to(f)) for f, w in zip(feats, weights)]
            return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)  # (B, K, H, W) -> (B, H*W, K)

        return apply(self.class_weights), apply(self.box_weights)


def random_pair(levels: int = 3, num_classes: int = 5, **fields: Any) -> Pair:
    """Return a pair with small unequal channel counts on the first `levels` of strides 8, 16 and 32."""
    fields = {"student_channels": (4, 5, 6)[:levels], "teacher_channels": (6, 8, 7)[:levels]} | fields
    return Pair(strides=STRIDES[:levels], num_classes=num_classes, **fields)


def random_taps(
    pair: Pair,
    batch: int = 2,
    sizes: Sequence[tuple[int, int]] = SIZES,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Taps, Taps]:
    """Return random taps of a student, as leaves that require grad, and of a teacher, detached.

    The teacher's logits and boxes are what its towers make of its maps, as in a real model. Values are drawn in
    float64 and then cast, so that one seed gives the same taps in every dtype up to rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = list(sizes)[: len(pair.strides)]
    anchors = sum(height * width for height, width in sizes)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    student = Taps(
        feats=[draw(batch, c, *size) for c, size in zip(pair.student_channels, sizes)],
        strides=pair.strides,
        logits=draw(batch, anchors, pair.num_classes, scale=1.5),
        boxes=draw(batch, anchors, 4 * pair.student_reg_max, scale=1.5),
    )
    feats = [draw(batch, c, *size) for c, size in zip(pair.teacher_channels, sizes)]
    towers = RandomTowers(pair, generator)
    logits, boxes = towers(feats)
    return leaves(student), Taps(feats=feats, strides=pair.strides, logits=logits, boxes=boxes, towers=towers)


def random_targets(taps: Taps, seed: int = 0, objects: int = 2) -> Targets:
    """Return `objects` random boxes per image; about half of the anchors inside a box are positive, at least one each.

    With `objects=0` there are no boxes and no positives.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    assert taps.logits is not None
    batch, anchors, classes = taps.logits.shape
    height, width = taps.image_size
    size = torch.tensor([width, height], dtype=torch.float32)
    count = batch * objects
    centres = torch.rand(count, 2, generator=generator) * size
    halves = (0.1 + 0.3 * torch.rand(count, 2, generator=generator)) * size
    boxes = torch.cat(((centres - halves).clamp_min(0), torch.minimum(centres + halves, size)), dim=1)
    image_index = torch.arange(batch).repeat_interleave(objects)
    points, _ = taps.anchors()
    positives = torch.zeros(batch, anchors, dtype=torch.bool)
    for box, image in zip(boxes, image_index):
        inside = ((points > box[:2]) & (points < box[2:])).all(1)
        positives[image] |= inside & (torch.rand(anchors, generator=generator) < 0.5)
        positives[image, ((points - (box[:2] + box[2:]) / 2) ** 2).sum(1).argmin()] = True
    scores = positives * (0.2 + 0.8 * torch.rand(batch, anchors, generator=generator))
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Targets(boxes=boxes, labels=labels, image_index=image_index, positives=positives, scores=scores)


def tensors(taps: Taps) -> dict[str, list[torch.Tensor]]:
    """Return the tensors of some taps by the name of their field."""
    fields = {"feats": list(taps.feats), "logits": [taps.logits], "boxes": [taps.boxes]}
    return {name: [t for t in values if t is not None] for name, values in fields.items()}


def leaves(taps: Taps, requires_grad: bool = True, **to: Any) -> Taps:
    """Return the same taps on fresh leaves, with `Tensor.to` applied, e.g. dtype=..."""

    def leaf(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.detach().to(**to).clone().requires_grad_(requires_grad)

    feats = [leaf(feat) for feat in taps.feats]
    return dataclasses.replace(taps, feats=feats, logits=leaf(taps.logits), boxes=leaf(taps.boxes))


def has_gradient(values: Sequence[torch.Tensor]) -> bool:
    """Return whether any of the tensors has a gradient other than zero."""
    return any(v.grad is not None and bool(v.grad.abs().sum() > 0) for v in values)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, rtol: float = 1e-4, atol: float = 1e-6) -> None:
    """Compare two scalars or state tensors whatever their dtype."""
    torch.testing.assert_close(actual.detach().double(), expected.detach().double(), rtol=rtol, atol=atol)


class LossContract:
    """The shared checklist; every method below that begins with `test` runs for the class named in `loss`.

    Attributes:
        loss (type[DistillLoss]): The method under test.
        reads (Collection[str]): Which of the student's `feats`, `logits` and `boxes` receive a gradient; no other may.
        zero_at_identity (bool): Whether the loss is 0 when the student equals the teacher and adapters are identities.
        autocast_rtol (float): How far the value under bfloat16 autocast may be from the value in float32.
    """

    loss: ClassVar[type[DistillLoss]]
    reads: ClassVar[Collection[str]] = ("feats",)
    zero_at_identity: ClassVar[bool] = True
    autocast_rtol: ClassVar[float] = 0.1

    # What a subclass may override ------------------------------------------------------------------------------------

    def make(self, pair: Pair, **options: Any) -> DistillLoss:
        """Build the method."""
        return self.loss(pair, **options)

    def taps(
        self,
        pair: Pair,
        batch: int = 2,
        sizes: Sequence[tuple[int, int]] = SIZES,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Taps, Taps]:
        """Return taps of a student, as leaves that require grad, and of a teacher, detached."""
        return random_taps(pair, batch, sizes, seed, dtype)

    def targets(self, taps: Taps, seed: int = 0, objects: int = 2) -> Targets:
        """Return the objects of the batch; `objects=0` means no boxes and no positives."""
        return random_targets(taps, seed, objects)

    def identify(self, module: DistillLoss) -> None:
        """Turn the method's adapters into identities, in place."""
        for child in module.modules():
            if isinstance(child, Adapters):
                for conv in child:
                    nn.init.dirac_(conv.weight)
                    if conv.bias is not None:
                        nn.init.zeros_(conv.bias)

    def shipped(self) -> dict[str, Any]:
        """Return the method's options in default.yaml without their prefix, less its gain and its stage points."""
        keys = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))
        prefix = f"{self.loss.name}_"
        skipped = {f"{prefix}gain", *([f"{prefix}stages"] if self.loss.takes_stages else [])}
        return {k.removeprefix(prefix): v for k, v in keys.items() if k.startswith(prefix) and k not in skipped}

    # Helpers ---------------------------------------------------------------------------------------------------------

    def fresh(self, pair: Pair, init: int = 0, **options: Any) -> DistillLoss:
        """Build the method in training mode; equal arguments give equal weights and equal draws."""
        with torch.random.fork_rng():
            torch.manual_seed(init)
            return self.make(pair, **options).train()

    def make_alike(self, pair: Pair, **options: Any) -> DistillLoss:
        """Build the method itself, without what a subclass adds to its options."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.loss(pair, **options).train()

    def case(self, pair: Pair | None = None, **taps: Any) -> tuple[Pair, Taps, Taps, Targets]:
        """Return a pair with taps and targets, on the default sizes where nothing else is said."""
        pair = pair or random_pair()
        student, teacher = self.taps(pair, **taps)
        return pair, student, teacher, self.targets(student)

    def check_backward(self, module: DistillLoss, student: Taps, value: torch.Tensor) -> None:
        """Check that a value is a finite scalar whose gradient exists for parameters and for what is read."""
        assert value.shape == (), f"the loss has shape {tuple(value.shape)}, not a scalar"
        assert bool(torch.isfinite(value)), f"the loss is {value.item()}"
        assert value.requires_grad, "the loss is not connected to the student's graph"
        value.backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, f"no gradient reaches the parameter {name}"
            assert bool(torch.isfinite(parameter.grad).all()), f"the gradient of {name} is not finite"
        grads = [t.grad for values in tensors(student).values() for t in values if t.grad is not None]
        assert grads, "the loss is not connected to any tensor of the student"
        assert all(bool(torch.isfinite(g).all()) for g in grads), "a gradient of the student is not finite"

    # Interface -------------------------------------------------------------------------------------------------------

    def test_class_attributes(self) -> None:
        assert re.fullmatch(r"[a-z]+", self.loss.name), f"name={self.loss.name!r} is not one lower-case word"
        assert re.search(r"\d{4}\.\d{5}", self.loss.paper), f"no arXiv id in paper={self.loss.paper!r}"
        assert self.loss.signal in {"features", "logits", "regions"}
        assert len(set(self.loss.part_names)) == len(self.loss.part_names) != 1

    def test_defaults_are_those_of_default_yaml(self) -> None:
        parameters = list(inspect.signature(self.loss).parameters.values())
        assert parameters[0].name == "pair"
        built_in = {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters[1:]}
        shipped = self.shipped()
        assert built_in == shipped, f"the constructor has {built_in}, default.yaml has {shipped}"
        assert set(self.loss.part_names) <= set(built_in)

    def test_no_options_are_the_shipped_ones(self) -> None:
        pair, student, teacher, targets = self.case()
        plain, shipped = self.make_alike(pair), self.make_alike(pair, **self.shipped())
        assert torch.equal(plain(student, teacher, targets), shipped(student, teacher, targets))
        shapes = [
            {name: value.shape for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
            for module in (plain, shipped)
        ]
        assert shapes[0] == shapes[1] and plain.part_gains == shipped.part_gains

    def test_value_is_a_finite_scalar(self) -> None:
        pair, student, teacher, targets = self.case()
        value = self.fresh(pair)(student, teacher, targets)
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert bool(torch.isfinite(value)), "the loss is not finite"
        assert value.item() > 0, "random student and teacher cost nothing"

    def test_parts_are_scalars_under_their_names(self) -> None:
        pair, student, teacher, targets = self.case()
        parts = self.fresh(pair).parts(student, teacher, targets)
        assert set(parts) == set(self.loss.part_names or ("",))
        for name, term in parts.items():
            assert term.shape == (), f"part {name} has shape {tuple(term.shape)}"
            assert term.dtype == torch.float32, f"part {name} has {term.dtype}"
            assert bool(torch.isfinite(term)) and term.requires_grad, f"part {name} is not finite or not connected"

    def test_forward_is_the_weighted_sum_of_parts(self) -> None:
        pair, student, teacher, targets = self.case()
        gains = {name: 0.5 + 0.75 * i for i, name in enumerate(self.loss.part_names)}
        parts = self.fresh(pair, **gains).parts(student, teacher, targets)
        expected = sum(gains.get(name, 1.0) * term.item() for name, term in parts.items())
        value = self.fresh(pair, **gains)(student, teacher, targets).item()
        assert value == pytest.approx(expected, rel=1e-5), f"{value} is not the weighted sum {expected}"

    def test_a_part_of_weight_zero_is_off(self) -> None:
        pair, student, teacher, targets = self.case()
        whole = self.fresh(pair).parts(student, teacher, targets)
        for name in self.loss.part_names:
            module = self.fresh(pair, **{name: 0.0})
            rest = set(module.parts(student, teacher, targets))
            assert rest == set(whole) - {name}, f"with {name}=0 the parts are {rest}"
            value = module(student, teacher, targets)
            assert value.shape == () and bool(torch.isfinite(value)) and value.requires_grad

    def test_the_pair_is_kept_and_the_run_is_at_its_beginning(self) -> None:
        pair = random_pair()
        module = self.fresh(pair)
        assert module.pair is pair
        assert (module.stage, module.staged, module.progress) == (0, False, 0.0)

    def test_a_missing_level_is_an_error(self) -> None:
        if self.loss.signal != "features":
            pytest.skip("does not go through the levels of both sides together")
        pair, student, teacher, targets = self.case()
        short = [dataclasses.replace(taps, feats=taps.feats[:-1]) for taps in (student, teacher)]
        for both in ((short[0], teacher), (student, short[1])):
            with pytest.raises((ValueError, RuntimeError)):
                self.fresh(pair)(*both, targets)

    def test_unneeded_teacher_output_is_not_read(self) -> None:
        pair, student, teacher, targets = self.case()
        expected = self.fresh(pair)(student, teacher, targets)
        bare = dataclasses.replace(
            teacher,
            logits=teacher.logits if self.loss.needs_logits else None,
            boxes=teacher.boxes if self.loss.needs_boxes else None,
        )
        assert_close(self.fresh(pair)(student, bare, targets), expected)

    # Values ----------------------------------------------------------------------------------------------------------

    def test_zero_at_identity(self) -> None:
        if not self.zero_at_identity:
            pytest.skip("not zero at identity by its definition")
        channels = (6, 8, 7)
        pair, _, teacher, targets = self.case(random_pair(student_channels=channels, teacher_channels=channels))
        module = self.fresh(pair)
        self.identify(module)
        value = module(dataclasses.replace(leaves(teacher), towers=None), teacher, targets)
        assert abs(value.item()) < 1e-5, f"the loss is {value.item()} at identity"

    def test_same_draws_give_the_same_value(self) -> None:
        pair, student, teacher, targets = self.case()
        first, second = self.fresh(pair), self.fresh(pair)
        for _ in range(2):
            values = first(student, teacher, targets), second(student, teacher, targets)
            assert torch.equal(*values), f"two equal runs give {values}"

    def test_global_generators_are_left_alone(self) -> None:
        pair, student, teacher, targets = self.case()
        module = self.fresh(pair)
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1:3]
        module(student, teacher, targets).backward()
        assert torch.equal(torch.get_rng_state(), before[0]), "draws from torch's global generator"
        assert random.getstate() == before[1], "draws from random"
        assert np.array_equal(np.random.get_state()[1], before[2][0]) and np.random.get_state()[2] == before[2][1]

    def test_float64(self) -> None:
        pair, student, teacher, targets = self.case()
        expected = self.fresh(pair)(student, teacher, targets)
        _, student, teacher, targets = self.case(dtype=torch.float64)
        module = self.fresh(pair).double()
        value = module(student, teacher, targets)
        assert_close(value, expected, rtol=1e-3, atol=1e-5)
        self.check_backward(module, student, value)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_autocast(self, dtype: torch.dtype) -> None:
        pair, student, teacher, targets = self.case()
        student, teacher = leaves(student, dtype=dtype), leaves(teacher, False, dtype=dtype)  # rounded inputs
        full = leaves(student, dtype=torch.float32), leaves(teacher, False, dtype=torch.float32)
        expected = self.fresh(pair)(*full, targets)
        module = self.fresh(pair)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = module(student, teacher, targets)
        assert value.dtype == torch.float32
        assert_close(value, expected, rtol=self.autocast_rtol)
        self.check_backward(module, student, value)

    def test_memory_format_does_not_matter(self) -> None:
        pair, student, teacher, targets = self.case()
        expected = self.fresh(pair)(student, teacher, targets)
        last = [
            dataclasses.replace(taps, feats=[f.to(memory_format=torch.channels_last) for f in taps.feats])
            for taps in (student, teacher)
        ]
        assert last[0].feats[0].is_contiguous(memory_format=torch.channels_last)
        assert_close(self.fresh(pair)(*last, targets), expected)

    # Gradients -------------------------------------------------------------------------------------------------------

    def test_gradient_reaches_what_is_read_and_every_parameter(self) -> None:
        pair, student, teacher, targets = self.case()
        module = self.fresh(pair)
        self.check_backward(module, student, module(student, teacher, targets))
        reached = {name for name, values in tensors(student).items() if has_gradient(values)}
        assert reached == set(self.reads), f"gradient reaches the student's {reached}, not {self.reads}"
        for name in self.reads:
            assert all(t.grad is not None for t in tensors(student)[name]), f"a tensor of {name} has no gradient"

    def test_no_gradient_reaches_the_teacher(self) -> None:
        pair, student, teacher, targets = self.case()
        teacher = leaves(teacher)  # a method may not count on its caller to have detached these
        self.fresh(pair)(student, teacher, targets).backward()
        reached = {name for name, values in tensors(teacher).items() if has_gradient(values)}
        assert not reached, f"gradient reaches the teacher's {reached}"

    def test_inputs_are_left_unchanged(self) -> None:
        pair, student, teacher, targets = self.case()
        given_tensors = [t for taps in (student, teacher) for values in tensors(taps).values() for t in values]
        values = [getattr(targets, field.name) for field in dataclasses.fields(targets)]
        given_tensors += [value for value in values if isinstance(value, torch.Tensor)]
        before = [t.detach().clone() for t in given_tensors]
        self.fresh(pair)(student, teacher, targets).backward()
        assert all(torch.equal(t, b) for t, b in zip(given_tensors, before)), "an input was written to"
        assert not any(t.requires_grad for values in tensors(teacher).values() for t in values)

    # Awkward batches -------------------------------------------------------------------------------------------------

    def test_no_objects_and_no_positives(self) -> None:
        pair, student, teacher, _ = self.case()
        module = self.fresh(pair)
        self.check_backward(module, student, module(student, teacher, self.targets(student, objects=0)))

    def test_objects_without_positives(self) -> None:
        pair, student, teacher, targets = self.case()
        none = torch.zeros_like(targets.positives)
        targets = dataclasses.replace(targets, positives=none, scores=none.float())
        module = self.fresh(pair)
        self.check_backward(module, student, module(student, teacher, targets))

    @settings(
        max_examples=6,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
    )
    @given(
        batch=st.integers(1, 3),
        num_classes=st.sampled_from([1, 2, 3, 80]),
        levels=st.integers(1, 3),
        height=st.integers(2, 5),
        width=st.integers(2, 5),
        objects=st.integers(0, 3),
    )
    @example(batch=1, num_classes=1, levels=1, height=7, width=5, objects=1)
    @example(batch=1, num_classes=80, levels=2, height=3, width=5, objects=2)
    @example(batch=1, num_classes=3, levels=3, height=1, width=1, objects=1)  # an image of 32 x 32 pixels
    def test_any_shape(self, batch: int, num_classes: int, levels: int, height: int, width: int, objects: int) -> None:
        """`height` and `width` are those of the coarsest level; the finer ones double them, as in a real neck."""
        pair = random_pair(levels, num_classes)
        sizes = [(height << i, width << i) for i in reversed(range(levels))]
        student, teacher = self.taps(pair, batch, sizes, seed=batch + 10 * height + 100 * width)
        module = self.fresh(pair)
        self.check_backward(module, student, module(student, teacher, self.targets(student, objects=objects)))

    # State -----------------------------------------------------------------------------------------------------------

    def test_state_dict_round_trip_continues_the_run(self) -> None:
        pair, student, teacher, targets = self.case()
        module = self.fresh(pair)
        module(student, teacher, targets)  # fills queues and moves the method's own generator
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        restored = self.fresh(pair, init=1)
        restored.load_state_dict(torch.load(file, weights_only=True), strict=True)
        for _ in range(2):
            values = module(student, teacher, targets), restored(student, teacher, targets)
            assert torch.equal(*values), f"after a resume the loss goes on otherwise: {values}"

    def test_deepcopy_is_equal_and_separate(self) -> None:
        pair, student, teacher, targets = self.case()
        module = self.fresh(pair)
        module(student, teacher, targets)
        twin = copy.deepcopy(module)
        shared = {id(p) for p in twin.parameters()} & {id(p) for p in module.parameters()}
        assert twin is not module and not shared, "the copy shares parameters with the original"
        values = module(student, teacher, targets), twin(student, teacher, targets)
        assert torch.equal(*values), f"the original and its copy go on differently: {values}"

    def test_evaluation_leaves_the_state_alone(self) -> None:
        pair = random_pair()
        module = self.fresh(pair).eval()
        before = {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}
        with torch.inference_mode():
            student, teacher = self.taps(pair)
            student, teacher = leaves(student, False), leaves(teacher, False)
            assert bool(torch.isfinite(module(student, teacher, self.targets(student))))
        after = module.state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items()), "a forward in eval mode changed the state"
