"""What memory a process has used at most, and how it is given back."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch


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


def give_back() -> None:
    """Return freed memory that the C library keeps for later to the system; nothing where it cannot be asked to."""
    trim = _trim()
    if trim:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim if sys.platform == "linux" else None
    except (OSError, AttributeError):  # another C library, e.g. musl
        return None
