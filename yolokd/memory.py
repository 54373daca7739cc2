"""What memory a process has used at most, and how it is given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory of this process so far: on CUDA what torch had allocated there, else resident."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:  # the high-water mark that getrusage gives can be that of the process which started this one
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        if sys.platform == "win32":
            import psutil  # Ultralytics needs it

            return int(psutil.Process().memory_info().peak_wset)
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def where_it_fits(function: Callable[[], Found]) -> Found | None:
    """Return what a function returns, or None where the device has not the memory for it."""
    try:
        return function()
    except RuntimeError as error:  # of CUDA, its libraries, or Apple's GPUs
        if not any(text in str(error).lower() for text in ("out of memory", "alloc_failed")):
            raise
    give_back()  # once the error has let go of what was on the device
    return None


def give_back() -> None:
    """Return freed memory that torch and the C library keep for later; nothing where they cannot be asked to."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim = _trim()
    if trim:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):  # another C library, e.g. musl
        return None
