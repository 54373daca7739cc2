"""Weights are pickles, which can run code: they are opened under the host's restricted loader unless told otherwise."""

from __future__ import annotations

import io
import logging
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ultralytics.nn import tasks

from yolokd.errors import UserError

LOGGER = logging.getLogger("ultralytics")
KEY = "kd_safe_load"
FORCE, FORCE_NOT = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_GLOBAL = re.compile(r"(?:GLOBAL|class|global)\s+([A-Za-z_]\w*(?:\.\w+)+)")
_BLOCKED = re.compile(r"restricted (model )?load")  # the host's words for what it refuses to build from a YAML
_USUAL = ("torch.", "ultralytics.nn.", "collections.", "numpy.", "pathlib.", "__builtin__.set", "builtins.set")
_DAMAGE = (LookupError, EOFError, UnicodeError, struct.error, pickle.UnpicklingError)  # what a cut-off pickle raises
PICKLES, PICKLE = 4, 0x80  # in a row in an old file; the byte that begins one
_asked: ContextVar[bool | None] = ContextVar(KEY, default=None)
_warned: list[bool] = []


@contextmanager
def loading(safe: bool | None = None, what: str = "", file: str | Path = "") -> Iterator[None]:
    """Let the host open weights under its restricted loader, and say in words what that refuses.

    The host's switch is one for the process; within this it is on, and it is never turned off where it was on.

    Args:
        safe (bool, optional): Value of `kd_safe_load`; if not given that of the block around this one, else True.
        what (str): What is opened, as the user gave it, e.g. `teacher=best.pt`; without it errors pass unchanged.
        file (str | Path): Where it is, for naming all that it needs.

    Raises:
        UserError: If the file needs more than the restricted loader rebuilds.
    """
    wanted = _asked.get() is not False if safe is None else safe
    token, before = _asked.set(wanted), getattr(tasks, "SAFE_LOAD", None)
    if wanted and not _available() and not _warned:
        _warned.append(True)
        LOGGER.warning("this Ultralytics or torch has no restricted loader: give only weights that you trust")
    if wanted and before is not None:
        tasks.SAFE_LOAD = True
    try:
        yield
    except Exception as error:
        if not wanted or not what or isinstance(error, UserError):
            raise
        if not (needs := refused(error, file)):
            if isinstance(error, _DAMAGE) and str(file).endswith(".pt") and not imports(file)[1]:
                raise UserError(
                    f"{what} cannot be loaded: it is cut off or damaged; copy or download it again"
                ) from error
            raise
        raise UserError(
            f"{what} is refused by the restricted loader, because it needs {needs}; {KEY}=False opens it all the same "
            f"and runs whatever code it holds, so use that for files you trust alone"
        ) from error
    finally:
        if before is not None:
            tasks.SAFE_LOAD = before
        _asked.reset(token)


def open_model(weights: str | Path) -> Any:
    """Return weights as a model object of the host.

    Args:
        weights (str | Path): The file.

    Raises:
        UserError: If it needs more than the restricted loader rebuilds.
    """
    from ultralytics import YOLO

    with loading(what=f"model={weights}", file=weights):
        return YOLO(str(weights))


def _available() -> bool:
    """Return whether the host and torch have what restricted loading needs."""
    loader = getattr(tasks, "_SafeLoad", None)
    return hasattr(tasks, "SAFE_LOAD") and bool(getattr(loader, "SUPPORTED", False))


@contextmanager
def only_weights(safe: bool = True) -> Iterator[None]:
    """Let `torch.load` restrict itself wherever the host calls it, also where its own loader has no say.

    Args:
        safe (bool): False changes nothing.
    """
    before = {name: os.environ.get(name) for name in (FORCE, FORCE_NOT)}
    if safe:
        os.environ[FORCE] = "1"
        os.environ.pop(FORCE_NOT, None)
    try:
        yield
    finally:
        for name, value in before.items() if safe else ():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def refused(error: BaseException | None, file: str | Path = "") -> str:
    """Return what a file needs beyond what restricted loading rebuilds; empty where an error is about something else.

    Args:
        error (BaseException): What opening it raised; what that came from is looked at too.
        file (str | Path): The file, which is searched for the names that it imports.
    """
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    texts = [str(e) for e in chain if isinstance(e, pickle.UnpicklingError) or _BLOCKED.search(str(e))]
    named = [name for text in texts for name in _GLOBAL.findall(text)]
    quoted = [name for text in texts if _BLOCKED.search(text) for name in re.findall(r"'([^']{1,80})'", text)]
    imported, whole = imports(file) if texts else ([], False)
    strange = [name for name in imported if not name.startswith(_USUAL)]
    if not named and not quoted and not (whole and "eights only load failed" in "".join(texts)):
        return ""
    names = [_plain(name) for name in dict.fromkeys([*named, *strange] or quoted)]
    if not names:
        return "what torch wrote before 1.6 or not at all (if you trust it, save it anew by `YOLO(file).save(file)`)"
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def imports(file: str | Path) -> tuple[list[str], bool]:
    """Return the names that a pickled file imports, without opening it, and whether it could be read to its end.

    Args:
        file (str | Path): A file as torch writes it, an archive or, as before torch 1.6, pickles in a row.
    """
    found: dict[str, None] = {}
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                parts = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        else:
            parts = [Path(file).read_bytes()]
        for part in parts:
            stream = io.BytesIO(part)
            for _ in range(PICKLES):  # the tensors' values follow the pickles of an old file
                found.update(dict.fromkeys(_imports(stream)))
                if stream.tell() == len(part) or stream.getbuffer()[stream.tell()] != PICKLE:
                    break
    except (OSError, ValueError, IndexError, KeyError, zipfile.BadZipFile):
        return list(found), False
    return list(found), True


def _imports(stream: io.BytesIO) -> Iterator[str]:
    """Yield the names that one pickle imports; newer ones put module and name on the stack, also from the memo."""
    texts: list[str] = []
    memo: list[str | None] = []
    last: str | None = None
    for code, argument, _ in pickletools.genops(stream):
        if code.name == "GLOBAL":
            yield str(argument).replace(" ", ".")
        elif code.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif code.name == "MEMOIZE":
            memo.append(last)
            continue
        if code.name in {"BINGET", "LONG_BINGET"} and isinstance(argument, int) and argument < len(memo):
            last = memo[argument]
        else:
            last = argument if isinstance(argument, str) and "UNICODE" in code.name else None
        if last is not None:
            texts.append(last)


def _plain(name: str) -> str:
    """Return a name out of a file as one short printable word."""
    return "".join(c if c.isprintable() else "?" for c in name)[:80]


def take(given: MutableMapping[str, Any]) -> bool:
    """Take our key out of a command's keys and return its value.

    Args:
        given (MutableMapping[str, Any]): Keys and values; it is changed in place.

    Raises:
        UserError: If the value is no bool.
    """
    from yolokd.config import DEFAULTS, KEYS

    return bool(KEYS[KEY].check(given.pop(KEY)) if KEY in given else DEFAULTS[KEY])


def inspect_file(what: str, file: str | Path) -> None:
    """Open a file once, as the block around says, to see that nothing in it is refused.

    Args:
        what (str): What the user knows it as.
        file (str | Path): The file.

    Raises:
        UserError: If it needs more than the restricted loader rebuilds.
    """
    if _asked.get() is not False:
        with loading(what=what, file=file):
            tasks.torch_safe_load(file)


def inspect_start(pretrained: Any) -> None:
    """Look at the weights that a student starts from where `pretrained` names a file."""
    if isinstance(pretrained, (str, Path)) and Path(pretrained).is_file():
        inspect_file(f"pretrained={pretrained}", pretrained)
