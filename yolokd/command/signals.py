"""A request to end, as batch systems and containers send it, ends a training as Ctrl-C does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

LAUNCHER = "torch.distributed.run"  # it ends its workers where it is asked to, and leaves them where it is killed
PATIENCE = 30  # seconds


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` in the main thread on SIGTERM, so that what is open is closed and what is half-written goes.

    Where SIGTERM is handled or ignored by someone else already, it stays so.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def end(number: int, frame: Any) -> None:
        if os.getpid() != process:  # a fork, such as a worker of a data loader
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        _end_launchers()
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_launchers() -> None:
    """Let the processes of a run on several devices end with this one."""
    found = [child for child in psutil.Process().children() if any(LAUNCHER in word for word in child.cmdline())]
    for child in found:
        child.terminate()
    psutil.wait_procs(found, timeout=PATIENCE)
