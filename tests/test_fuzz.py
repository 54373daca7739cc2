"""A fuzz of the command line in process: whatever is typed ends in an exit code and, for a mistake, in words."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bad_files import bad_files
from yolokd import cli, config

DEFAULT, LONG = 200, 2000
FILES = [
    "{student}", "{teacher}", "{data}", "{root}/empty.pt", "{root}/cut.pt", "{root}/text.pt", "{root}/folder.pt",
    "{root}/classify.pt", "{root}/hollow.pt", "{root}/empty.yaml", "{root}/listed.yaml", "{root}/binary.yaml",
    "{root}/unlabelled/data.yaml", "{root}/nothing/data.yaml", "{root}/here", "{root}/image.png", "{root}/nowhere",
    "{root}/recipe.yaml", "{root}/map.yaml", "{root}/good/list.txt", "{root}/good/binary.txt", "{root}/run",
    "{root}/badjson", "{root}", "/dev/null", "yolov8n.yaml", "http://localhost:1/x.pt",
]  # fmt: skip
VALUES = [
    "0", "1", "-1", "2", "1e9", "1e-9", "0.5", "1.0", "nan", "inf", "-inf", "True", "False", "None", "none", "auto",
    "[]", "[1,2]", "[8,16,32]", "[0.3,0.7]", "[[1]]", "{{}}", "{{a: b}}", "{{circle: square}}", "()", "(1,)", "''", "a",
    "dfmsd", "pcd", "dfmsd+pcd", "gdetkd", "ultralytics", "cosine", "constant", "mosaic", "stages", "together", "rest",
    "high", "soft", "sequence", "float16", "cpu", "99999999999999999999", "1_000", "0x10", "\u00fc",
    "\u56fe", "a b", "'a", '"', "1j", "__import__('os')", "...", "\x00", "~", "$HOME", "*", "..", "car", "[car,bus]",
    "[a,", "{{a",
]  # fmt: skip
HOST = [
    "model", "data", "epochs", "imgsz", "batch", "device", "project", "name", "optimizer", "fraction", "classes",
    "resume", "freeze", "seed", "amp", "quantize", "half", "task", "mode", "cfg", "split", "conf", "iou", "source",
    "format", "exist_ok", "single_cls", "pretrained", "compile", "multi_scale", "distill_model", "save_dir", "time",
    "workers", "nbs", "int8",
]  # fmt: skip
AIMED = ["model", "teacher", "data", "kd_unlabeled", "kd_class_map", "cfg", "source", "project", "pretrained", "resume"]
SOUND = [
    "method=pcd", "method=dfmsd", "method=gdetkd", "method=none", "method=ultralytics", "batch=2", "epochs=9", "half",
    "optimizer=SGD", "name=x", "exist_ok", "seeds=2", "methods=pcd", "jobs=1", "format=onnx", "fraction=0.5", "seed=3",
    "teacher=[{teacher},{teacher}]", "source={root}/image.png", "split=val", "kd_names=[circle]", "rect",
    "cfg=pcd.yaml", "baseline={student}", "data={root}/corrupt/data.yaml", "data={root}/good/ncmismatch.yaml",
    "classes=[0]", "resume",
]  # fmt: skip
NEEDED = {
    "inspect": ["model={student}", "teacher={teacher}", "source={root}/image.png", "imgsz=64"],
    "val": ["model={student}", "teacher={teacher}", "data={data}", "imgsz=64"],
    "export": ["model={student}", "format=onnx"],
    "predict": ["model={student}", "source={root}/image.png"],
    "demo": [],
    "report": ["{root}/run"],
}
COMPARE = ["methods", "seeds", "controls", "jobs", "retry", "baseline", "out"]
KEYS = [*config.KEYS, *HOST, *COMPARE]
MODES = [*cli.MODES, "trian", "mode=train", "mode=", "detect", "segment"]

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
values = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from(FILES),
    st.integers(-(10**6), 10**6).map(str),
    st.floats(width=32).map(str),
    texts.map(lambda text: text.replace("{", "{{").replace("}", "}}")),
)
keys = st.one_of(
    st.sampled_from(KEYS),
    st.sampled_from(KEYS),
    st.sampled_from(KEYS).flatmap(lambda key: st.integers(0, len(key) - 1).map(lambda i: key[:i] + key[i + 1 :])),
    texts.map(lambda text: text.replace("{", "{{").replace("}", "}}")),
)
separators = st.sampled_from(["=", "=", "=", "=", "=", "", " = ", "= ", " =", "=="])
pairs = st.tuples(st.sampled_from(["", "", "", "--", "-"]), keys, separators, values, st.sampled_from(["", "", ","]))
odd = st.one_of(pairs.map(lambda parts: "".join(parts).split(" ")), keys.map(lambda key: [key]))
sound = st.one_of(
    st.sampled_from(
        [f"{key.name}={key.example}".replace("{", "{{").replace("}", "}}") for key in config.KEYS.values()]
    ),
    st.sampled_from(SOUND),
).map(lambda word: [word])
aimed = st.tuples(st.sampled_from(AIMED), st.sampled_from(FILES)).map(lambda pair: ["=".join(pair)])
USUAL = ["model={student}", "teacher={teacher}", "data={data}", "epochs=4", "imgsz=64", "device=cpu"]
commands = st.tuples(
    st.sampled_from([*MODES, *(["train"] * 12), *(["compare", "inspect", "profile", "val", "export"] * 3)]),
    st.sampled_from([True, True, True, False]),
    st.lists(sound, max_size=3),
    st.lists(aimed, max_size=1),
    st.lists(odd, max_size=2),
    st.sampled_from([False, False, False, True]),
).map(lambda c: order(c[0], c[1], [word for part in c[2:5] for group in part for word in group], c[5]))


def order(mode: str, usual: bool, others: list[str], late: bool) -> list[str]:
    """Return the words of a command, with the mode first or last, and with the keys that the mode needs."""
    given = [*NEEDED.get(mode, USUAL), *others] if usual else others
    return [*given, mode] if late else [mode, *given]


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, tiny_student: Callable[[str], Path], tiny_teacher: Callable[[str], Path]
) -> SimpleNamespace:
    """Good and bad files by name."""
    return bad_files(tmp_path_factory.mktemp("fuzz"), tiny_student("yolov8n"), tiny_teacher("yolov8s"))


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What was about to be trained, exported, predicted or drawn; none of it happens, and all before it does."""
    import ultralytics.cfg as host
    from ultralytics import YOLO
    from ultralytics.engine.model import Model
    from ultralytics.utils import LOGGER, SETTINGS

    import yolokd.command.profile
    import yolokd.compare
    import yolokd.costs.profiling
    import yolokd.drawn.shapes
    import yolokd.evaluation.evaluate
    import yolokd.inspection
    from yolokd.command import info

    log: list[str] = []

    def end(name: str, result: Any = None) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            log.append(name)
            if result is None:
                raise cli.UserError(f"the work of {name} was about to begin")
            return result

        return run

    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        folder = tmp_path_factory.mktemp("cwd")
        patch.chdir(folder)
        patch.setitem(SETTINGS, "runs_dir", str(folder / "runs"))
        patch.setitem(SETTINGS, "weights_dir", str(folder / "weights"))
        patch.setitem(SETTINGS, "datasets_dir", str(folder / "datasets"))
        patch.delenv("YOLOKD_TRACEBACK", raising=False)
        patch.setattr(YOLO, "train", end("train"))
        patch.setattr(Model, "train", end("train"))
        patch.setattr(Model, "export", end("export"))
        patch.setattr(host, "entrypoint", end("host"))
        patch.setattr(yolokd.compare, "run_queue", end("compare"))
        patch.setattr(yolokd.costs.profiling, "profile", end("profile"))
        patch.setattr(yolokd.command.profile, "drawn", end("profile"))
        patch.setattr(yolokd.inspection, "look", end("inspect"))
        patch.setattr(yolokd.evaluation.evaluate, "evaluate", end("val"))
        patch.setattr(yolokd.drawn.shapes, "draw_dataset", end("demo"))
        patch.setattr(info, "methods_text", lambda: "methods")  # costs a second each time
        patch.setattr(LOGGER, "disabled", True)
        stack.callback(log.clear)
        yield log


def run(command: list[str], files: SimpleNamespace) -> None:
    """Run a command and see that it ends in a code, and in words where it is a mistake."""
    typed = [word.format(**vars(files)) for word in command]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(typed)
    said = err.getvalue()
    assert code in {0, 1, 2, 130}, (typed, code)
    assert "Traceback" not in said, (typed, said)
    if code:
        text = said[said.index("yolokd: ") + len("yolokd: ") :] if "yolokd: " in said else ""
        assert len(text.split()) > 2, (typed, said)  # words, and no bare repr of something
        assert not text.startswith("failed:"), (typed, said)
        assert not re.search(r"<[\w.]+ object at 0x", text), (typed, said)


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return what makes a test of so many random commands, the same ones each time."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        made = settings(
            max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=checks
        )
        return made(given(command=commands)(test))

    return decorate


def test_what_the_fuzz_found_once(files, reached):
    run(["compare", *USUAL, "classes=0", "name=one-class"], files)
    run(["compare", *USUAL, "model={root}/hollow.pt"], files)
    run(["train", "\x1b[2J\x1e\x07"], files)


@fuzz(DEFAULT)
def test_a_random_command_never_ends_in_a_traceback(command, files, reached):
    run(command, files)


@pytest.mark.slow
@fuzz(LONG)
def test_two_thousand_random_commands(command, files, reached):
    run(command, files)


@pytest.mark.parametrize("mode", ["train", "compare", "export", "inspect", "profile", "val", "predict"])
def test_a_good_command_reaches_its_work(mode, files, reached):
    """The fuzz would be idle if everything were refused before."""
    more = {"compare": ["name=works"]}
    reached.clear()
    cli.main([word.format(**vars(files)) for word in [mode, *NEEDED.get(mode, USUAL), *more.get(mode, [])]])
    assert reached == [{"predict": "host"}.get(mode, mode)]
