"""What memory a process has used at most, and how it is kept and given back."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt, in malloc.h
LIMITS = {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"}


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
    if library := _library():
        library.malloc_trim(0)


@contextmanager
def kept_between_steps(device: torch.device) -> Iterator[None]:
    """Let the C library keep what a step on the CPU frees for the next one, and give it back in the end.

    By default it returns more than 64 MiB at a time to the system, which every level that is differentiated by itself
    would do, and has it mapped anew at once. The largest memory stays what it is. What a user says of the library's
    limits in the environment is left as it is.
    """
    library = None if device.type != "cpu" or os.environ.keys() & LIMITS else _library()
    if library is None:
        yield
        return
    library.mallopt(MMAP_THRESHOLD, 32 << 20)  # its own largest, which it comes to by itself as long as none is set
    library.mallopt(TRIM_THRESHOLD, 1 << 30)
    try:
        yield
    finally:
        library.mallopt(TRIM_THRESHOLD, 64 << 20)
        library.malloc_trim(0)


@cache
def _library() -> Any:
    """Return the GNU C library, or None where there is another."""
    try:
        library = ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
        return library if hasattr(library, "malloc_trim") else None
    except OSError:
        return None
