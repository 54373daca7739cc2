"""The command `yolokd MODE key=value ...`, in Ultralytics' grammar."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from subprocess import CalledProcessError

from yolokd.command.grammar import host_keys, parse
from yolokd.command.hosted import check_host_keys, hand_over
from yolokd.command.train import load_model, run_train
from yolokd.datasets import data_fault
from yolokd.errors import DONE, FAILED, HOST_MISTAKES, INTERRUPTED, MISTAKE, UserError


@dataclass(frozen=True)
class Mode:
    """One word after `yolokd`.

    Attributes:
        run (Callable): Function of the words after the mode, returning the exit code.
        text (str): What it does, for the help.
    """

    run: Callable[[list[str]], int]
    text: str


def run_export(words: list[str]) -> int:
    """Export a model as `yolo export` does, and compare the exported file with torch."""
    from ultralytics.utils import LOGGER

    from yolokd import trust
    from yolokd.config import KEYS, inputs
    from yolokd.export import export_and_check
    from yolokd.export.parity import not_checked
    from yolokd.text import reason

    known = host_keys()
    given = parse(words, {**known, trust.KEY: True})
    safe = trust.take(given)
    check_host_keys(given, known, "export", KEYS)
    if given.get("model") is None:
        raise UserError("export needs a model, e.g. yolokd export model=runs/detect/train/weights/best.pt format=onnx")
    if "format" not in given:
        given["format"] = "torchscript"
        LOGGER.warning("'format' argument is missing. Using default 'format=torchscript'.")
    if not isinstance(given["format"], str):
        raise UserError(f"format={given['format']} is not valid: it must be a name, e.g. format=onnx")
    with trust.loading(safe):
        model = load_model(inputs.weights("model", given.pop("model"), trained=False), given.pop("task", None))
    given.pop("mode", None)
    try:
        with trust.loading(safe):
            path, parity = export_and_check(model, given)
    except HOST_MISTAKES as error:
        raise UserError(reason(error, lines=2)) from error
    print(parity.summary() if parity is not None else not_checked(path))
    print(f"exported: {path}")
    return DONE if parity is None or parity.ok else FAILED


def run_report(words: list[str]) -> int:
    """Write the report of finished run folders or of a comparison."""
    from yolokd import report

    return report.run_report(words)


def run_demo(words: list[str]) -> int:
    """Run the demo with the parameters of its function as keys."""
    from yolokd.command import demo
    from yolokd.config import unknown_key

    known = {name: p.default for name, p in inspect.signature(demo.run_demo).parameters.items()}
    given = parse(words, known)
    for key, value in given.items():
        if key not in known:
            raise UserError(unknown_key(key, known, "see `yolokd help demo`"))
        wanted = (int, float) if isinstance(known[key], float) else type(known[key])
        if known[key] is not None and (not isinstance(value, wanted) or (value is True) > (wanted is bool)):
            raise UserError(f"{key}={value} is not valid: it must be like {key}={known[key]}")
    return demo.run_demo(**given)


def run_inspect(words: list[str]) -> int:
    """Write pictures of what a method would distil on one image."""
    from yolokd import config
    from yolokd.inspection import from_overrides

    for path in from_overrides(parse(words, config.merged_base())):
        print(path)
    return DONE


def run_val(words: list[str]) -> int:
    """Validate as `yolo val`; with a teacher or a baseline, several models side by side."""
    if any(word.removeprefix("--").split("=")[0].strip() in {"teacher", "baseline"} for word in words):
        from yolokd.command.val import run_words

        return run_words(words)
    return hand_over("val")(words)


def run_compare(words: list[str]) -> int:
    """Compare methods over seeds."""
    from yolokd.compare import run_words

    return run_words(words)


def run_profile(words: list[str]) -> int:
    """Say where the time of a training step goes."""
    from yolokd.command.profile import run_words

    return run_words(words)


def show(text: Callable[[], str]) -> Callable[[list[str]], int]:
    """Return the function of a mode that prints a text."""

    def run(words: list[str]) -> int:
        if words:
            raise UserError(f"'{' '.join(words)}' is too much: this mode takes no arguments")
        print(text())
        return DONE

    return run


def run_checks(words: list[str]) -> int:
    """Print the state of the installation; exit with 1 where something is wrong."""
    from yolokd.command.info import checks_text

    if words:
        raise UserError(f"'{' '.join(words)}' is too much: this mode takes no arguments")
    text, good = checks_text()
    print(text)
    return DONE if good else FAILED


def _text(name: str) -> Callable[[], str]:
    """Return a function of yolokd.command.info by name, imported when it is called."""

    def text() -> str:
        from yolokd.command import info

        return str(getattr(info, name)())

    return text


def run_help(words: list[str]) -> int:
    """Print the help of all modes, or of the one that is named."""
    from yolokd.command.help import help_text, mode_text

    texts = {name: mode.text for name, mode in MODES.items()}
    if len(words) > 1 or (words and words[0] not in texts):
        raise UserError(f"help knows no '{' '.join(words)}'; it takes one of {', '.join(texts)}, or nothing")
    print(mode_text(words[0], texts[words[0]]) if words else help_text(texts))
    return DONE


MODES: dict[str, Mode] = {
    "train": Mode(run_train, "train a student from a teacher, with every train argument of yolo"),
    "compare": Mode(run_compare, "does distillation help, and which method: paired runs over seeds, with verdicts"),
    "val": Mode(run_val, "as yolo val; with teacher= or baseline=, the models side by side by pycocotools"),
    "predict": Mode(hand_over("predict"), "as yolo predict"),
    "track": Mode(hand_over("track"), "as yolo track"),
    "benchmark": Mode(hand_over("benchmark"), "as yolo benchmark"),
    "export": Mode(run_export, "as yolo export, then compare the exported file with torch"),
    "inspect": Mode(run_inspect, "pictures of what a method distils: attention, masks, regions, ranked classes"),
    "profile": Mode(run_profile, "where the time of a training step goes, beside plain training and the built-in"),
    "report": Mode(run_report, "a report from finished run folders, also those of yolo train"),
    "demo": Mode(run_demo, "offline demonstration on drawn images, some minutes on a CPU"),
    "methods": Mode(show(_text("methods_text")), "the methods: paper, signal, parameters, cost, what is our reading"),
    "cfg": Mode(show(_text("cfg_text")), "our keys with meaning and default"),
    "checks": Mode(run_checks, "versions, torchvision, bfloat16, GPU"),
    "version": Mode(show(_text("versions")), "version"),
    "help": Mode(run_help, "this text, or `yolokd help MODE` for the keys of one"),
}
MISUSES = {"-h": "help", "--help": "help", "-v": "version", "--version": "version"}


def split_mode(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the mode and the other words; as with `yolo` the mode may stand anywhere, or be written `mode=`.

    Raises:
        UserError: If there is no mode.
    """
    if asked := [MISUSES[word] for word in words if word in MISUSES]:
        return asked[0], [word for word in words if word in MODES][:1] if asked[0] == "help" else []
    if words[0] in MODES:
        return words[0], list(words[1:])
    merged = list(words)
    try:
        if any("=" in word for word in words):
            from ultralytics.cfg import merge_equals_args

            merged = merge_equals_args(merged)
    except (SyntaxError, IndexError) as error:
        raise UserError(f"{' '.join(words)[:80]}: {error}; write yolokd MODE key=value") from None
    for index, word in enumerate(merged):
        if word.removeprefix("mode=") in MODES:
            return word.removeprefix("mode="), [*merged[:index], *merged[index + 1 :]]
    first = merged[0].removeprefix("mode=")
    close = [] if "=" in first else get_close_matches(first, MODES, n=1)
    hint = f"did you mean `yolokd {close[0]}`? " if close else ""
    raise UserError(f"'{' '.join(words)[:80]}' names no mode; {hint}Modes: {', '.join(MODES)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv (Sequence[str], optional): Words after `yolokd`; the process's own if not given.

    Returns:
        (int): Exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted, 143 terminated.
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["help"]
    try:
        mode, rest = split_mode(words)
        return MODES[mode].run(rest)
    except UserError as error:
        _trace()
        print(f"yolokd: {printable(error)}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'interrupted'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except SystemExit as stop:  # a part of the host that ends the process
        if isinstance(stop.code, str):
            print(f"yolokd: {stop.code}", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else DONE
    except Exception as error:  # the last resort, so that a failure is one line and a code
        _trace()
        if isinstance(error, RuntimeError) and (fault := data_fault(error)):
            print(f"yolokd: {printable(fault)}", file=sys.stderr)
            return MISTAKE
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        what = f"no space left on the disk ({first})" if full else f"{type(error).__name__}: {first}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            what = f"the package '{error.name.partition('.')[0]}' is not installed, and this needs it"
        if isinstance(error, CalledProcessError):  # several GPUs: the workers have said what happened
            what = f"a process that was started ended with code {error.returncode}; its own messages are above"
        print(f"yolokd: failed: {printable(what)}\nYOLOKD_TRACEBACK=1 before the command shows where", file=sys.stderr)
        return FAILED


def printable(message: object) -> str:
    """Return a message whose signs all have a form of their own, as what was typed may steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(message))


def _trace() -> None:
    """Print the traceback of the exception at hand where the user asked for it."""
    if os.environ.get("YOLOKD_TRACEBACK", "0") not in {"", "0"}:
        traceback.print_exc()
