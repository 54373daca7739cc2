"""Students whose layers are fitted to their teacher's by least squares, one after the other, before training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules.conv import Conv

from yolokd.memory import give_back
from yolokd.students.channels import channel_flow, evenly, is_depthwise, raw_outputs
from yolokd.students.inherited import class_layers
from yolokd.students.regression import Sums, add_up

CHUNK = 16  # images that a layer works on at a time
HELD_OUT = 0.25  # share of the images on which a layer's ridge is chosen
POSITIONS = (16384, 32768, 8)  # fewest, most, and per unknown
EARLY = 1 << 24  # numbers of targets that are at hand while the finest maps are

Places = tuple[torch.Tensor, ...]


def fit_weights(
    student: Any,
    teacher: Any,
    images: torch.Tensor,
    classes: Mapping[int, int],
    chosen: Callable[[str], bool] = lambda name: True,
    partners: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Fit convolutions of a student to the same layers of its teacher, in place.

    Going from the image to the outputs, each convolution gets the filters that bring its output closest, by ridge
    regression, to the channels that it stands for of the teacher's layer of the same name, after its normalisation; its
    input is what the student's layers before it, fitted already, give. The ridge, and whether it draws to zero or to
    the filters that are there, is what errs least on images held out. Filters keep the size that they had, which the
    normalisation makes up for. Layers without such a partner, and those whose outputs are not finite, stay as they are.

    Args:
        student (nn.Module): The student, not fused.
        teacher (nn.Module): A teacher of the same family, not fused.
        images (torch.Tensor): Images with shape (B, C, H, W) in [0, 1], or in bytes.
        classes (Mapping[int, int]): The teacher's class for each of the student's that it knows.
        chosen (Callable[[str], bool]): Whether a layer is fitted, by its name.
        partners (Mapping[str, str] | None): The teacher's layer for each of the student's that has another name there.

    Returns:
        (dict[str, float]): For each fitted layer the share of the teacher's variance that it explains on images held
            out, from 1 for all of it down to 0, or below where it is further away than the mean.
    """
    own, theirs = dict(student.named_modules()), dict(teacher.named_modules())
    theirs |= {name: theirs[other] for name, other in (partners or {}).items()}
    norms = {conv: norm for norm, conv in channel_flow(student).normalises.items()}
    heads = class_layers(student)
    picks: dict[str, torch.Tensor] = {}
    for name, module in own.items():
        if not (chosen(name) and _alike(module, theirs.get(name)) and (name in norms or module.bias is not None)):
            continue
        wanted, available = module.out_channels, theirs[name].out_channels
        if name in heads:
            picks[name] = torch.tensor([*classes.values()], dtype=torch.long)
        elif wanted == available or (wanted < available and name in norms):  # an output has a meaning of its own
            picks[name] = evenly(wanted, available)
    watched = {name: theirs[norms.get(name, name)] for name in picks if len(picks[name])}
    unknowns = {name: own[name].weight[0].numel() for name in watched}
    early = _first_layers(unknowns, picks)
    late = [name for name in watched if name not in early]
    targets = _targets(teacher, images, watched, picks, unknowns, early)
    rows = torch.tensor([*classes], dtype=torch.long)
    first_out = len(images) - max(round(len(images) * HELD_OUT), 1)
    explained: dict[str, float] = {}

    def fit(name: str) -> Callable[..., None]:
        def before(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if name in late:
                targets.update(_targets(teacher, images, watched, picks, unknowns, late))
                late.clear()
            if name not in targets:  # a layer that is passed more than once
                return
            places, target = targets.pop(name)
            learned = int((places[0] < first_out).sum())  # places are in order of the images
            width = unknowns[name] * module.groups
            sums = add_up(lambda part: _patches(inputs[0], module, places, part), target, learned, width)
            index = rows.to(target.device) if name in heads else torch.arange(len(module.weight), device=target.device)
            prior = module.weight[index]
            if name in norms:
                norm = own[norms[name]]
                prior = prior * (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)
            weight, share = sums.regress(prior)
            if not torch.isfinite(weight).all():
                return
            explained[name] = share
            if name in norms:
                _set_normalised(module, own[norms[name]], weight, sums)
            else:
                module.weight[index] = weight
                module.bias[index] = sums.middle - sums.mean(weight)

        return before

    fits = [(own[name], fit(name)) for name in watched]
    entry = next(name for name, module in own.items() if isinstance(module, nn.Conv2d))
    with torch.no_grad(), raw_outputs(student), _in_pieces(own, norms), _hooks(fits, before=True):
        student(images if entry in norms else _pixels(images))
    give_back()
    return explained


def _alike(module: Any, other: Any) -> bool:
    """Return whether two layers are convolutions of one kind, full or each channel by itself."""
    if not type(module) is type(other) is nn.Conv2d:
        return False
    same = all(getattr(module, key) == getattr(other, key) for key in ("kernel_size", "stride", "padding", "dilation"))
    both = [(layer.groups == 1, is_depthwise(layer)) for layer in (module, other)]
    return same and module.padding_mode == "zeros" and any(all(kind) for kind in zip(*both))


@contextmanager
def _hooks(hooks: Iterable[tuple[Any, Callable[..., None]]], before: bool = False) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
        for module, hook in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _in_pieces(modules: Mapping[str, Any], norms: Mapping[str, str]) -> Iterator[None]:
    """Let convolutions take few images at a time, and what is behind them work in place, to save memory."""

    def convolve(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(inputs: torch.Tensor) -> torch.Tensor:
            give_back()  # what the layers before have freed lies in pieces, and adds up
            first = forward(_pixels(inputs[:CHUNK]))
            output = first.new_empty(len(inputs), *first.shape[1:])
            output[:CHUNK] = first
            for start in range(CHUNK, len(inputs), CHUNK):
                output[start : start + CHUNK] = forward(_pixels(inputs[start : start + CHUNK]))
            return output

        return run

    def normalise(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def run(inputs: torch.Tensor) -> torch.Tensor:
            for part in inputs.split(CHUNK):
                part.copy_(forward(part))
            return inputs

        return run

    changed = [modules[name] for pair in norms.items() for name in pair]
    blocks = [module for module in modules.values() if isinstance(module, Conv)]  # of all, what they activate is new
    activations: set[Any] = {block.act for block in blocks if getattr(block.act, "inplace", None) is False}
    try:
        for activation in activations:
            activation.inplace = True
        for conv, norm in norms.items():
            modules[conv].forward = convolve(modules[conv].forward)
            modules[norm].forward = normalise(modules[norm].forward)
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)
        for activation in activations:
            activation.inplace = False


def _pixels(images: torch.Tensor) -> torch.Tensor:
    """Return images, or maps, as numbers: bytes in [0, 1], and others as they are."""
    return images.float() / 255 if images.dtype is torch.uint8 else images


def _places(unknowns: int) -> int:
    """Return at how many places an output is looked at, by the unknowns of a filter."""
    fewest, most, each = POSITIONS
    return min(max(each * unknowns, fewest), most)


def _first_layers(unknowns: Mapping[str, int], picks: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the first layers, up to the one with which their targets are as many numbers as `EARLY`."""
    sizes = {name: _places(number) * len(picks[name]) for name, number in unknowns.items()}
    ends = dict(zip(sizes, accumulate(sizes.values())))
    return [name for name, end in ends.items() if end - sizes[name] <= EARLY]


def _targets(
    teacher: Any,
    images: torch.Tensor,
    watched: Mapping[str, Any],
    picks: Mapping[str, torch.Tensor],
    unknowns: Mapping[str, int],
    kept: Collection[str],
) -> dict[str, tuple[Places, torch.Tensor]]:
    """Return the teacher's outputs at places drawn at random, as many as the unknowns of a filter ask for.

    Places are drawn for all watched layers, so that they are the same whichever of them are kept.

    Returns:
        (dict[str, tuple]): For each kept layer the places, that is image, row and column with shape (M,) in order of
            the images, and the chosen channels there with shape (M, C), in half precision but for images in double.
    """
    wanted = {name: _places(unknowns[name]) for name in kept}
    # In one piece from the start: what lies between the maps of a forward keeps their memory from being given back.
    places = {name: torch.empty(3, rows, dtype=torch.int32, device=images.device) for name, rows in wanted.items()}
    dtype = torch.float16 if images.dtype in {torch.float32, torch.uint8} else images.dtype
    found = {name: images.new_empty(rows, len(picks[name]), dtype=dtype) for name, rows in wanted.items()}
    filled = dict.fromkeys(wanted, 0)
    generator = torch.Generator().manual_seed(0)

    def note(name: str, start: int, count: int) -> Callable[..., None]:
        def after(module: Any, inputs: Any, output: torch.Tensor) -> None:
            height, width = output.shape[2:]
            flat = torch.randperm(count * height * width, generator=generator)
            if name not in wanted:
                return
            number = min(max(wanted[name] * count // len(images), 1), wanted[name] - filled[name])
            flat = flat[:number].sort().values.to(output.device)
            image, row, column = flat // (height * width), flat // width % height, flat % width
            rows = slice(filled[name], filled[name] + len(flat))
            places[name][:, rows] = torch.stack((image + start, row, column))
            found[name][rows] = output[image, :, row, column][:, picks[name].to(output.device)]
            filled[name] = rows.stop

        return after

    with torch.no_grad(), raw_outputs(teacher):
        for start in range(0, len(images), CHUNK):
            part = _pixels(images[start : start + CHUNK])
            with _hooks([(module, note(name, start, len(part))) for name, module in watched.items()]):
                teacher(part)
    return {name: (places[name][:, :rows].unbind(), found[name][:rows]) for name, rows in filled.items() if rows}


def _patches(inputs: torch.Tensor, conv: Any, places: Places, rows: slice) -> torch.Tensor:
    """Return what a convolution sees at some of its places, with shape (groups, rows, unknowns of a filter)."""
    (height, width), (down, across), (top, left) = conv.kernel_size, conv.stride, conv.padding
    image, row, column = (each[rows].long() for each in places)
    seen = inputs.new_empty(len(image), inputs.shape[1], height * width, dtype=conv.weight.dtype)  # (M, C, k)
    for index in range(height * width):
        y = row * down + index // width * conv.dilation[0] - top
        x = column * across + index % width * conv.dilation[1] - left
        found = _pixels(inputs[image, :, y.clamp(0, inputs.shape[2] - 1), x.clamp(0, inputs.shape[3] - 1)])
        found[(y < 0) | (y >= inputs.shape[2]) | (x < 0) | (x >= inputs.shape[3])] = 0  # the padding
        seen[:, :, index] = found
    return seen.transpose(0, 1) if conv.groups > 1 else seen.flatten(1)[None]


def _set_normalised(conv: Any, norm: Any, weight: torch.Tensor, sums: Sums) -> None:
    """Give a convolution its filters at the size they had, and the normalisation behind it what makes up for that."""
    spread = sums.variance(weight).sqrt()
    size, former = weight.flatten(1).norm(dim=1), conv.weight.flatten(1).norm(dim=1)
    alive = (spread > 1e-6) & (size > 1e-12)
    scale = (former / size.clamp_min(1e-12)).view(-1, 1, 1, 1)
    conv.weight.copy_(torch.where(alive.view(-1, 1, 1, 1), weight * scale, conv.weight))
    norm.running_mean.copy_(sums.mean(conv.weight))
    norm.running_var.copy_(sums.variance(conv.weight))
    norm.weight.copy_(torch.where(alive, spread * (1 + norm.eps / norm.running_var).sqrt(), 0.0))
    norm.bias.copy_(sums.middle)
