"""A device that does not exist: CPU values that say they lie elsewhere and refuse to meet values that do not.

What is written for a GPU can so be run without one, with its values: a tensor that was left on the CPU raises as it
would there. The device is called `meta`, the only name besides the CPU's that autograd serves without a driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from yolokd.ops import attention

DEVICE = torch.device("meta")
CROSSING = {"aten::_to_copy": None, "aten::copy_": 0, "aten::type_as": 1}  # the argument that says where a result lies
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}  # take places from the CPU
_FROM_DATA = {"tensor": torch.tensor, "as_tensor": torch.as_tensor}
_AUTOCAST = torch.autocast


class Elsewhere(torch.Tensor):
    """A tensor of the device; `here` are its values."""

    here: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Any:
        form = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made: Any = torch.Tensor._make_wrapper_subclass(cls, here.shape, **form, device="cpu", dispatch_device=True)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = Elsewhere(self.here.clone()).requires_grad_(self.requires_grad)
            memo[id(self)]._is_param = getattr(self, "_is_param", False)
        return memo[id(self)]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_places(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_places(key), value)

    def new_tensor(self, data: Any, *, dtype: Any = None, **options: Any) -> Any:
        return _from_data(_FROM_DATA["tensor"])(data, dtype=dtype or self.dtype, **{"device": DEVICE, **options})

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, *args: Any, **options: Any) -> Any:
        raise TypeError("a tensor that lies elsewhere has no numpy array; copy it to the CPU first")

    __array__ = numpy


def values(item: Any) -> Any:
    """Return the values of a tensor, wherever it lies."""
    return item.here if isinstance(item, Elsewhere) else item


def _places(key: Any) -> Any:
    """Return an index whose lists of numbers are tensors, which torch would make of them past any dispatch."""
    keys = key if isinstance(key, tuple) else (key,)
    made = tuple(_FROM_DATA["tensor"](k).to(DEVICE) if isinstance(k, list) else k for k in keys)
    return made if isinstance(key, tuple) else made[0]


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    if name == "prim::device":
        return DEVICE
    tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, torch.Tensor)]
    theirs = [item for item in tensors if isinstance(item, Elsewhere)]
    if theirs and name not in CROSSING:
        judged = [args[0], *args[2:3]] if name in INDEXING else tensors
        left = [
            item for item in judged if isinstance(item, torch.Tensor) and not isinstance(item, Elsewhere) and item.ndim
        ]
        if left:
            raise RuntimeError(f"{name}: a tensor with shape {tuple(left[0].shape)} was left on the CPU")
    if kwargs.get("device") is not None:
        there = _is_there(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu"), **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    else:
        decides = CROSSING.get(name)
        there = bool(theirs) if decides is None else isinstance(args[decides], Elsewhere)
    with _disable_current_modes():
        result = func(*tree_map(values, args), **tree_map(values, kwargs))
    known = {id(item.here): item for item in theirs} if func._schema.is_mutable else {}

    def place(item: Any) -> Any:
        if not there or not isinstance(item, torch.Tensor):
            return item
        return known[id(item)] if id(item) in known else Elsewhere(item)

    return tree_map(place, result)


class _Making(TorchDispatchMode):
    """Sees what is made there from nothing, such as `torch.zeros(3, device=DEVICE)`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        met = any(isinstance(item, Elsewhere) for item in tree_flatten((args, kwargs))[0])
        return _run(func, args, kwargs) if met or _is_there(kwargs.get("device")) else func(*args, **kwargs)


def _from_data(make: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """Return `torch.tensor` or its like, which make values on a device past any dispatch."""

    def made(data: Any, *args: Any, device: Any = None, **options: Any) -> Any:
        result = data.clone() if isinstance(data, Elsewhere) else make(data, *args, **options)
        return result if device is None else result.to(device)

    return made


def _autocast(device_type: str, **options: Any) -> Any:
    """Return an autocast that does nothing there, since the device has no half precision of its own."""
    return _AUTOCAST("cpu", enabled=False) if _is_there(device_type) else _AUTOCAST(device_type, **options)


def _forget() -> None:
    """Forget tensors kept by their device: the name stands for another one outside."""
    for kept in (attention._cells, attention._budgets):
        kept.cache_clear()


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Let the device exist."""
    replaced = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _forget()
    try:
        with pytest.MonkeyPatch.context() as patch, _Making():
            for name, make in _FROM_DATA.items():
                patch.setattr(torch, name, _from_data(make))
            for module in (torch, torch.amp):
                patch.setattr(module, "autocast", _autocast)
            yield DEVICE
    finally:
        _forget()
        torch.__future__.set_overwrite_module_params_on_conversion(replaced)
