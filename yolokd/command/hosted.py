"""Modes that Ultralytics runs by itself: their keys and weights are looked at, then its own command line starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from yolokd.command.grammar import WORDS_OF_TASK, host_keys, join_braces, parse
from yolokd.errors import DONE, HOST_MISTAKES, UserError

DATA_MODES = {"val", "benchmark"}


def hand_over(mode: str) -> Callable[[list[str]], int]:
    """Return the function that runs a mode of `yolo` as it is."""

    def run(words: list[str]) -> int:
        import ultralytics.cfg as host

        from yolokd import datasets, trust
        from yolokd.config import KEYS, inputs
        from yolokd.saving.handover import remove_empty
        from yolokd.text import reason

        known = host_keys()
        given = parse(words, {**known, trust.KEY: True})
        asked, safe = trust.KEY in given, trust.take(given)
        check_host_keys(given, known, mode, KEYS)
        file = ""
        if given.get("model") is not None:
            file = inputs.weights("model", given["model"], trained=False, torch_only=False)
        if mode in DATA_MODES and given.get("data") is not None:
            datasets.dataset(given["data"], train=False)
        if mode in DATA_MODES and file.endswith(".pt"):
            with trust.loading(safe, what=f"model={given['model']}", file=file):
                tell_other_numbers(file, given.get("data"))
        folders = _new_folders(given, mode)
        if asked:  # else the host gets them as they are
            words = [word for word in host.merge_equals_args(join_braces(words)) if not _names_trust(word)]
        before, host.ARGV[:] = list(host.ARGV), ["yolo", mode, *words]  # the list that the host reads; may be sys.argv
        try:
            with trust.loading(safe, what=f"model={given.get('model')}", file=file), trust.only_weights(safe):
                host.entrypoint()
        except Exception as error:
            for made in folders:
                remove_empty(made)
            if isinstance(error, RuntimeError) and "device string" in str(error):
                raise UserError(f"device={given.get('device')} is none; e.g. device=cpu or device=0") from error
            if isinstance(error, HOST_MISTAKES) and not isinstance(error, UserError):
                raise UserError(reason(error, lines=2)) from error
            raise
        finally:
            host.ARGV[:] = before
        return DONE

    return run


def tell_other_numbers(weights: str, data: Any) -> None:
    """Warn where a model has classes of the data under other numbers, by which the host compares them.

    So has a model that learned from a teacher alone, with `kd_names=` in an order of its own.

    Args:
        weights (str): The model's file.
        data (Any): Dataset yaml; None for the one that the model was trained on.
    """
    from ultralytics.utils import LOGGER, YAML

    from yolokd.trust import open_model

    model = open_model(weights)
    data = data or ((model.ckpt or {}).get("train_args") or {}).get("data")
    if not str(data).endswith((".yaml", ".yml")) or not Path(str(data)).is_file():
        return
    listed = YAML.load(data).get("names") or {}
    pairs = listed.items() if isinstance(listed, dict) else enumerate(listed)
    known = {str(name): int(index) for index, name in pairs}
    other = [name for index, name in model.names.items() if known.get(str(name), index) != index]
    if other:
        LOGGER.warning(
            f"model={weights} numbers classes otherwise than data={data}, e.g. {other[0]}, and yolo compares them by "
            f"number; yolokd val with baseline= or teacher= compares them by name"
        )


def _new_folders(given: Mapping[str, Any], mode: str) -> list[list[Path]]:
    """Return the folders that the host may make for its output, by task, which it only knows from the model."""
    from ultralytics.cfg import get_save_dir

    from yolokd.saving.handover import missing_folders

    places = {key: given.get(key) for key in ("project", "name")} | {
        "exist_ok": bool(given.get("exist_ok")),
        "mode": mode,
    }
    places = {
        key: str(value) if key in {"project", "name"} and value is not None else value for key, value in places.items()
    }
    return [missing_folders(get_save_dir(SimpleNamespace(task=task, **places))) for task in WORDS_OF_TASK]


def _names_trust(word: str) -> bool:
    """Return whether a word gives our key for opening weights, which the host does not know."""
    from yolokd.trust import KEY

    return word.removeprefix("--").removesuffix(",").split("=")[0].strip() == KEY


def check_host_keys(given: Mapping[str, Any], known: Mapping[str, Any], mode: str, ours: Mapping[str, Any]) -> None:
    """Refuse keys that a mode of the host does not have."""
    from ultralytics.cfg import check_dict_alignment

    from yolokd.config import quiet, unknown_key

    for key, value in given.items():
        if key in ours:
            raise UserError(f"{key}={value} is a key of `yolokd train`, not of `yolokd {mode}`; leave it out")
        if key in known:
            continue
        try:
            with quiet():
                check_dict_alignment(dict(known), {key: value})
        except SyntaxError:
            raise UserError(unknown_key(key, known)) from None
