"""Trainings that are hit by a fault at a chosen moment: `python -m tests.faults` forks one for each line that it reads.

Forking saves the seconds of importing torch and Ultralytics. A request is a line of JSON with the `words` of the
command line, the `fault` (or null) and the `log` for what is printed; the answer is the exit code, as a line of JSON.
What the run's distillation state was at its start and after each save lies beside the log, in `.events`.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
ERRORS: dict[str, Callable[[], BaseException]] = {
    "exception": lambda: KeyError("a callback failed"),
    "full disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "out of memory": lambda: RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "no memory": lambda: MemoryError(),
}
CODES = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}  # errors end with 1
WRITING = ("half a state", "half a checkpoint", "half a row", "half a best.pt", "half a last.pt at the end")
PLACING = ("state written", "state placed", "best placed", "last placed", "stripped best placed")
RUNNING = ("step", "loss", "update", "validation", "stage begins", "stage ends", "last validation", "end")


def digest(value: Any) -> str:
    """Return a hash of nested plain values and tensors, to the bit."""
    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for key in sorted(part):
                sha.update(f"{key}:".encode())
                add(part[key])
        elif isinstance(part, (list, tuple)):
            for item in part:
                add(item)
        else:
            sha.update(repr(part).encode())

    add(value)
    return sha.hexdigest()[:16]


def strike(kind: str) -> None:
    """Let a fault happen here and now."""
    if kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[kind])
        threading.Event().wait(0.01)  # the signal's turn in this thread
    else:
        raise ERRORS[kind]()


def record(events: Path) -> None:
    """Write what a run's distillation state is at its first step and after each save."""
    from ultralytics.utils import callbacks

    begun: list[bool] = []

    def tell(what: str, trainer: Any) -> None:
        if trainer.criterion is not None:
            told = {"what": what, "epoch": trainer.epoch, "stage": trainer.criterion.stage}
            with events.open("a") as file:
                file.write(json.dumps({**told, "digest": digest(trainer.criterion.state())}) + "\n")

    def start(trainer: Any) -> None:
        if not begun:
            begun.append(True)
            tell("start", trainer)

    def weigh(trainer: Any) -> None:
        gc.collect()
        told = {"rss": process.memory_info().rss, "files": process.num_fds(), "threads": process.num_threads()}
        with Path(f"{events.with_suffix('')}.health").open("a") as file:
            file.write(json.dumps({**told, "seconds": sum(process.cpu_times()[:2])}) + "\n")

    process = psutil.Process()
    callbacks.default_callbacks["on_fit_epoch_end"].append(weigh)
    callbacks.default_callbacks["on_train_batch_start"].append(start)
    callbacks.default_callbacks["on_model_save"].append(lambda trainer: tell("saved", trainer))


def inject(fault: dict[str, Any]) -> None:
    """Arrange a fault: its `kind`, its `moment`, and the `epoch` (from 0) or the `seconds` at which it strikes."""
    from ultralytics.utils import callbacks

    from yolokd.criterion import DistillationLoss
    from yolokd.saving import files
    from yolokd.trainer import Distilling

    kind, moment, epoch = fault["kind"], fault["moment"], fault.get("epoch", 0)
    done: list[bool] = []

    def now(trainer: Any = None, at: int | None = None) -> None:
        if done or (trainer is not None and trainer.epoch != (epoch if at is None else at)):
            return
        done.append(True)
        strike(kind)

    def on(event: str, action: Callable[[Any], None]) -> None:
        callbacks.default_callbacks[event].append(action)

    def around(owner: Any, name: str, before: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def changed(*args: Any, **kwargs: Any) -> Any:
            before(*args, **kwargs)
            return original(*args, **kwargs)

        setattr(owner, name, changed)

    if moment == "time":
        threading.Timer(fault["seconds"], lambda: os.kill(os.getpid(), SIGNALS[kind])).start()
    elif moment == "step":
        on("on_train_batch_end", now)
    elif moment == "loss":
        around(DistillationLoss, "_units", lambda self, *_: None if self.clock.epoch != epoch else now())
    elif moment == "update":
        around(Distilling, "optimizer_step", now)
    elif moment == "stage begins":
        on("on_train_epoch_start", lambda trainer: now(trainer, trainer.epochs // 2))
    elif moment == "stage ends":
        on("on_train_epoch_end", lambda trainer: now(trainer, trainer.epochs // 2 - 1))
    elif moment == "end":
        on("on_train_end", lambda trainer: now())
    elif moment in {"validation", "last validation"}:
        count = [0]

        def validating(validator: Any) -> None:
            last = not validator.training
            count[0] += 1
            if last if moment == "last validation" else count[0] == epoch + 1:
                now()

        on("on_val_start", validating)
    elif moment == "half a row":
        save = Distilling.save_metrics

        def cut(self: Any, metrics: dict[str, Any]) -> None:
            save(self, metrics)
            if self.epoch == epoch and not done:
                os.truncate(self.csv, self.csv.stat().st_size - 20)
                now()

        Distilling.save_metrics = cut  # type: ignore[method-assign]
    elif moment == "half a checkpoint":
        write = Path.write_bytes

        def half(self: Path, content: Any) -> int:
            if (
                self.name == "last.pt"
                and not done
                and torch.load(io.BytesIO(content), weights_only=False)["epoch"] == epoch
            ):
                write(self, content[: len(content) // 2])
                now()
            return write(self, content)

        Path.write_bytes = half  # type: ignore[method-assign]
    elif moment in WRITING:
        save_value = torch.save

        def half_saved(value: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            ours = moment == "half a state" and isinstance(value, dict) and epoch in value.get("epochs", {})
            stripped = isinstance(value, dict) and value.get("epoch") == -1
            name = {"half a best.pt": "best.pt", "half a last.pt at the end": "last.pt"}.get(moment)
            if not done and (ours or (stripped and name == Path(str(file)).name)):
                buffer = io.BytesIO()
                save_value(value, buffer)
                content = buffer.getvalue()[: len(buffer.getvalue()) // 2]
                file.write(content) if ours else Path(file).write_bytes(content)
                now()
            save_value(value, file, *args, **kwargs)

        torch.save = half_saved
    else:
        place, seen = files._place, [0]

        def placed(written: Path, path: Path) -> None:
            wanted = {"state": "kd_state.pt", "best": "best.pt", "last": "last.pt"}.get(moment.split()[0])
            ending = moment == "stripped best placed"
            hit = path.name == ("best.pt" if ending else wanted)
            if hit and ending:
                hit = torch.load(written, weights_only=False, map_location="cpu")["epoch"] == -1
            elif hit:
                seen[0] += 1
                hit = seen[0] > epoch  # best.pt is not written in every epoch: then in a later one
            if hit and moment == "state written":
                now()
            place(written, path)
            if hit:
                now()

        files._place = placed


def child(request: dict[str, Any]) -> None:
    """Run one training in this process, which ends with its exit code."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    code = 99
    try:
        from yolokd import cli

        record(Path(request["log"] + ".events"))
        if request["fault"]:
            inject(request["fault"])
        code = cli.main(request["words"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answer requests until there are no more."""
    import yolokd.cli
    import yolokd.trainers  # noqa: F401

    gc.collect()
    gc.freeze()  # what is imported needs no collection in any of the forks, which make many
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        status = os.waitpid(pid, 0)[1]
        sys.stdout.write(json.dumps({"code": os.waitstatus_to_exitcode(status)}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
