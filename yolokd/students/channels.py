"""Which layers each channel of a network comes from, and which of a larger network's channels stand in its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from yolokd.models import input_channels

CONVS = (nn.Conv2d, nn.ConvTranspose2d)


class Slice(NamedTuple):
    """Consecutive output channels of one layer.

    Attributes:
        layer (str): Name of the layer that made them.
        start (int): First channel.
        stop (int): Channel after the last.
        width (int): Number of all channels of that layer.
    """

    layer: str
    start: int
    stop: int
    width: int


Origin = tuple[Slice, ...]


class ChannelFlow(TorchFunctionMode):
    """Follows one forward and notes, for each convolution and normalisation, which layers its input channels come from.

    Concatenation joins origins, splitting cuts them, what keeps the channels keeps them; after anything else they are
    unknown.

    Attributes:
        inputs (dict[str, Origin]): Origin of the input of each layer where it is known.
        normalises (dict[str, str]): The convolution right before each normalisation.
    """

    def __init__(self) -> None:
        """Start with nothing known."""
        super().__init__()
        self.inputs: dict[str, Origin] = {}
        self.normalises: dict[str, str] = {}
        self._origins: dict[int, tuple[torch.Tensor, Origin]] = {}  # the tensor is held, so that its id stays its own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function and follow the channels of its first input."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in {torch.cat, torch.concat}:
            self._join(args[0], result, args[1] if len(args) > 1 else kwargs.get("dim", 0))
        elif args and isinstance(args[0], torch.Tensor):
            self._keep([arg for arg in args if isinstance(arg, torch.Tensor)], result)
        return result

    def of(self, tensor: torch.Tensor) -> Origin | None:
        """Return where a map's channels come from, None where that is not known."""
        return self._origins.get(id(tensor), (tensor, None))[1]

    def put(self, tensor: torch.Tensor, origin: Origin | None) -> None:
        """Note where a map's channels come from."""
        if origin is None:
            self._origins.pop(id(tensor), None)
        else:
            self._origins[id(tensor)] = (tensor, origin)

    def _join(self, tensors: Sequence[torch.Tensor], result: torch.Tensor, dim: int) -> None:
        origins = [self.of(tensor) for tensor in tensors]
        known = [origin for origin in origins if origin is not None]
        if result.ndim == 4 and dim in {1, -3} and len(known) == len(origins):
            self.put(result, tuple(part for origin in known for part in origin))

    def _keep(self, tensors: Sequence[torch.Tensor], result: Any) -> None:
        source = next((tensor for tensor in tensors if tensor.ndim == 4 and self.of(tensor)), None)
        if source is None:
            return
        origin = self.of(source)
        assert origin is not None
        if isinstance(result, torch.Tensor):
            if result.ndim == 4 and result.shape[1] == source.shape[1]:
                self.put(result, origin)
        elif isinstance(result, (tuple, list)) and all(isinstance(part, torch.Tensor) for part in result):
            if all(part.ndim == 4 for part in result) and sum(part.shape[1] for part in result) == source.shape[1]:
                start = 0
                for part in result:
                    self.put(part, _cut(origin, start, start + part.shape[1]))
                    start += part.shape[1]


def _cut(origin: Origin, start: int, stop: int) -> Origin:
    """Return the origin of some consecutive channels."""
    parts, first = [], 0
    for part in origin:
        last = first + part.stop - part.start
        low, high = max(start, first), min(stop, last)
        if low < high:
            parts.append(part._replace(start=part.start + low - first, stop=part.start + high - first))
        first = last
    return tuple(parts)


def channel_flow(model: Any) -> ChannelFlow:
    """Return, for each convolution and normalisation of a detector, where its input channels come from.

    Args:
        model (nn.Module): A detector of the host; its state is left as it was.
    """
    flow, handles = ChannelFlow(), []
    makers: dict[int, tuple[torch.Tensor, str]] = {}  # the tensor is held, so that its id stays its own

    def before(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if origin := flow.of(inputs[0]):
                flow.inputs[name] = origin
            if id(inputs[0]) in makers and not isinstance(module, CONVS):
                flow.normalises[name] = makers[id(inputs[0])][1]

        return note

    def after(name: str) -> Any:
        def note(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            width = output.shape[1]
            makers[id(output)] = output, name
            flow.put(output, flow.of(inputs[0]) if is_depthwise(module) else (Slice(name, 0, width, width),))

        return note

    for name, module in model.named_modules():
        if isinstance(module, (*CONVS, nn.BatchNorm2d)):
            handles.append(module.register_forward_pre_hook(before(name)))
        if isinstance(module, CONVS):
            handles.append(module.register_forward_hook(after(name)))
    weight = next(model.parameters())
    size = 5 * int(model.stride.max())  # places enough for the 300 queries of an RT-DETR
    image = torch.zeros(1, input_channels(model), size, size, device=weight.device, dtype=weight.dtype)
    try:
        with torch.no_grad(), raw_outputs(model), flow:
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    return flow


@contextmanager
def raw_outputs(model: Any) -> Iterator[None]:
    """Let a model run with its statistics held and its head's output not decoded, as in training."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        model.model[-1].training = True
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_depthwise(module: Any) -> bool:
    """Return whether a layer is a convolution of each channel by itself."""
    return (
        isinstance(module, nn.Conv2d)
        and module.groups > 1
        and module.groups == module.in_channels == module.out_channels
    )


def evenly(wanted: int, available: int) -> torch.Tensor:
    """Return the indices of evenly spaced channels, floor(i x available / wanted)."""
    return torch.arange(wanted) * available // wanted


def matching(
    own: Origin | None, theirs: Origin | None, wanted: int, available: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of the teacher's input channels a layer of the student takes, and how many each of them stands for.

    Each slice takes the channels that its own layer took: the n-th slice from a layer is paired with the teacher's n-th
    slice from it. Where an origin is unknown, or the slices do not fit, channels are taken evenly.

    Args:
        own (Origin | None): The student's input.
        theirs (Origin | None): The teacher's.
        wanted (int): The student's number of channels.
        available (int): The teacher's.

    Returns:
        columns (torch.Tensor): Indices with shape (wanted,).
        ratios (torch.Tensor): The teacher's channels for each of the student's, float with shape (wanted,).
    """
    even = evenly(wanted, available), torch.full((wanted,), available / wanted)
    if own is None or theirs is None:
        return even
    places: dict[tuple[str, int], tuple[Slice, int]] = {}
    counts: Counter[str] = Counter()
    first = 0
    for part in theirs:
        places[part.layer, counts[part.layer]] = (part, first)
        counts[part.layer] += 1
        first += part.stop - part.start
    counts.clear()
    columns, ratios = [], []
    for part in own:
        place = places.get((part.layer, counts[part.layer]))
        counts[part.layer] += 1
        if place is None:
            return even
        other, first = place
        chosen = torch.arange(part.start, part.stop) * other.width // part.width
        if chosen[0] < other.start or chosen[-1] >= other.stop:
            return even
        columns.append(chosen - other.start + first)
        ratios.append(torch.full((len(chosen),), other.width / part.width))
    return torch.cat(columns), torch.cat(ratios)
