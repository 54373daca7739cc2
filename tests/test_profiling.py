"""Timing by turns, and where the time of a step goes."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.tiny import overrides_for, tiny_criterion, tiny_model
from yolokd import cli, memory
from yolokd.costs.moment import set_acting
from yolokd.costs.profiling import BUILT_IN, MEAN, OURS, PLAIN, REST, Stopwatch, Timed, _arms, profile, steps_peak, text
from yolokd.costs.rehearsal import Rehearsal
from yolokd.costs.timing import MOST, in_turn, ratio
from yolokd.criterion import DistillationLoss
from yolokd.memory import give_back, peak_bytes

pytestmark = pytest.mark.usefixtures("own_start")

CPU = torch.device("cpu")


def test_steps_take_turns_and_the_first_rounds_do_not_count() -> None:
    order: list[str] = []
    taken = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, CPU, rounds=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert [len(values) for values in taken.values()] == [3, 3]


def test_short_steps_are_measured_more_often_in_spare_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("yolokd.costs.timing.seconds", lambda device: now[0])

    def rounds(length: float, spare: float) -> int:
        def step() -> None:
            now[0] += length

        return len(in_turn({"a": step, "b": step}, CPU, rounds=1, warmup=1, spare=spare)["a"])

    assert [rounds(length, spare=1.0) for length in (0.01, 0.2, 5.0)] == [MOST, 3, 1]
    assert rounds(0.01, spare=0.0) == 1


def test_a_ratio_is_the_median_over_rounds_not_of_the_medians() -> None:
    taken = {"a": [2.0, 8.0, 3.0], "b": [1.0, 2.0, 3.0]}  # 2, 4, 1
    assert ratio(taken, "a", "b") == 2


def test_a_part_within_a_part_is_taken_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 11.0])  # outer 0..10, inner 1..3 and 6..(10)
    monkeypatch.setattr("yolokd.costs.profiling.seconds", lambda device: next(now))
    watch = Stopwatch(CPU)
    with watch.measuring("outer"):
        with watch.measuring("inner"):
            pass
        with watch.measuring("inner"):
            pass
    watch.next_step()
    assert watch.parts == {"inner": [2 + 4], "outer": [11 - 6]}


def test_a_timed_object_is_otherwise_itself() -> None:
    watch = Stopwatch(CPU)
    wrapped = Timed(time.strftime, watch, "text")
    assert wrapped("%%") == "%" and wrapped.__name__ == "strftime"
    watch.next_step()
    assert list(watch.parts) == ["text"]


def overrides(tmp_path: Path, data: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    settings = overrides_for(tmp_path, data, teacher=str(teacher), method="dfmsd+pcd", **changes)
    return {key: value for key, value in settings.items() if key not in {"project", "name", "kd_preflight"}}


def test_a_rehearsal_steps_as_a_run_does_and_saves_nothing(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    rehearsal = Rehearsal(overrides(tmp_path, tiny_data, tiny_teacher("yolov8n")), tmp_path)
    rehearsal.measure_gains()
    criterion = rehearsal.trainer.criterion
    assert not criterion.calibration.wants(True) and all(gain > 0 for gain in criterion.calibration.gains.values())
    before = [p.detach().clone() for p in rehearsal.trainer.model.parameters()]
    rehearsal.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, rehearsal.trainer.model.parameters()))
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    ("keys", "epochs", "teachers", "stage"),
    [
        ({"method": "bckd"}, 100, 1, 0),
        ({"method": "bckd", "kd_stop": 0.5}, 100, 1, 0),
        ({"method": "bckd", "kd_stop": 0.5}, 1, 1, 0),
        ({"method": "bckd", "kd_stop": 0.1, "kd_warmup": 0.09}, 3, 1, 0),
        ({"method": "bckd", "kd_stop": "mosaic", "close_mosaic": 5}, 10, 1, 0),
        ({"method": "bckd", "kd_every": 3}, 10, 1, 0),
        ({"method": "bckd", "kd_every": 500, "kd_stop": 0.2}, 2, 1, 0),
        ({"method": "dfmsd"}, 10, 1, 1),
        ({"method": "dfmsd"}, 1, 1, 0),  # too short for a second stage
        ({"method": "dfmsd", "kd_stop": 0.5}, 10, 1, 0),  # the second stage would begin as it stops
        ({"method": "dfmsd", "kd_stop": 0.6}, 10, 1, 1),
        ({"method": "dfmsd", "dfmsd_stages": [0.9]}, 10, 1, 1),
        ({"method": "dfmsd", "dfmsd_stages": [0.3]}, 10, 2, 1),
        ({"method": "dfmsd", "kd_warmup": 0.0, "kd_decay": "cosine", "kd_every": 4, "kd_stop": 0.8}, 8, 1, 1),
    ],
)
def test_the_step_that_stands_for_others_is_one_that_distils(
    keys: dict[str, Any], epochs: int, teachers: int, stage: int
) -> None:
    """Past the ramp too, wherever distillation stops and whichever steps are left out."""
    criterion = tiny_criterion(teacher=[tiny_model(seed=2 + index) for index in range(teachers)], **keys)[1]
    set_acting(criterion, epochs, keys.get("close_mosaic", 0))
    assert criterion.factor > 0 and not criterion.rests
    assert criterion.stage == stage
    assert criterion.clock.progress >= criterion.schedule.warmup
    assert criterion.clock.epoch < epochs and 0 < criterion.clock.step <= criterion.clock.steps


@pytest.mark.parametrize("keys", [{"kd_stop": 0.5}, {"kd_every": 3}])
def test_a_rehearsed_step_asks_the_teacher(
    keys: dict[str, Any], tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    rehearsal = Rehearsal(overrides(tmp_path, tiny_data, tiny_teacher("yolov8n"), **keys), tmp_path)
    criterion = rehearsal.trainer.criterion
    rehearsal.measure_gains()
    assert all(gain > 0 for gain in criterion.calibration.gains.values())
    seen = criterion.seen
    rehearsal.step()
    assert criterion.seen == seen + 1


def test_a_profile_names_every_part_and_both_references(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    result = profile(overrides(tmp_path, tiny_data, tiny_teacher("yolov8n")), rounds=2, memory=False)
    parts = set(result["parts"])
    assert parts >= {"student", "task loss", "teacher", "dfmsd", "pcd", "backward", "optimizer, EMA"}
    assert all(value > 0 for value in result["parts"].values())
    assert list(result["steps"]) == [PLAIN, BUILT_IN, OURS]
    assert result["steps"][PLAIN]["ratio"] == 1
    words = text(result)
    assert "teacher" in words and "of a plain step" in words


def test_a_profile_says_the_average_where_steps_are_left_out(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    acted: dict[str, bool] = {}

    def turns(steps: dict[str, Callable[[], None]], *_: Any) -> dict[str, list[float]]:
        for name in (OURS, REST):
            asked.clear()
            steps[name]()
            acted[name] = bool(asked)
        return {name: [value, 2 * value] for name, value in zip(steps, (2.0, 8.0, 5.0, 2.2))}

    asked: list[int] = []
    units = DistillationLoss._units
    monkeypatch.setattr(DistillationLoss, "_units", lambda *given: asked.append(1) or units(*given))
    monkeypatch.setattr("yolokd.costs.profiling.in_turn", turns)
    settings = overrides(tmp_path, tiny_data, tiny_teacher("yolov8n"), kd_every=4, kd_gain=1.0)
    result = profile(settings, rounds=1, memory=False)
    assert acted == {OURS: True, REST: False}
    assert list(result["steps"]) == [PLAIN, BUILT_IN, OURS, REST, MEAN]
    assert result["steps"][MEAN]["ratio"] == pytest.approx((2.5 + 3 * 1.1) / 4)
    words = text(result)
    assert "part of a step that distils" in words and f"\n{MEAN}" in words


def test_memory_is_that_of_some_steps(tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]) -> None:
    settings = overrides(tmp_path, tiny_data, tiny_teacher("yolov8n"), kd_gain=1.0)
    assert steps_peak(settings, str(tmp_path)) > 1e8
    assert not list(tmp_path.rglob("*.pt"))


def test_memory_without_linux_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = peak_bytes(CPU)

    def missing(self: Path, **_: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert peak_bytes(CPU) == pytest.approx(expected, rel=0.5)


def test_the_built_in_is_left_out_where_it_does_not_take_the_run(tmp_path: Path) -> None:
    pair = {"teacher": "yolov8s.yaml", "model": "yolov8n-seg.yaml"}
    assert list(_arms(pair)) == [PLAIN, BUILT_IN, OURS]
    assert list(_arms({**pair, "quantize": 8})) == [PLAIN, OURS]
    assert list(_arms({**pair, "model": "rtdetr-resnet50.yaml"})) == [PLAIN, OURS]
    assert list(_arms({**pair, "teacher": "rtdetr-l.yaml"})) == [PLAIN, OURS]


def test_students_that_learn_more_than_boxes_need_data(
    tiny_teacher: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["profile", "model=yolov8n-seg.yaml", f"teacher={tiny_teacher('yolov8n')}"]) == 2
    assert "is made for segment, which learns more; name some, e.g. data=mine.yaml" in capsys.readouterr().err


def test_a_mistake_that_the_host_finds_is_said(
    monkeypatch: pytest.MonkeyPatch,
    tiny_data: Path,
    tiny_teacher: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(given: dict[str, Any]) -> None:
        raise ValueError("the host does not like it")

    monkeypatch.setattr("yolokd.costs.profiling.profile", fails)
    teacher = tiny_teacher("yolov8n")
    assert cli.main(["profile", f"model={teacher}", f"teacher={teacher}", f"data={tiny_data}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "yolokd: the host does not like it"


@pytest.mark.slow
def test_the_command_draws_its_own_data_and_measures_memory(
    tmp_path: Path, tiny_teacher: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = tiny_teacher("yolov8n")
    words = ["profile", f"model={teacher}", f"teacher={teacher}", "imgsz=64", "batch=2", "workers=0", "device=cpu"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "this run" in out and out.count("GB") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["profile"], "profile needs model="),
        (["profile", "model=yolov8n.yaml"], "profile needs teacher="),
        (["profile", "model=yolov8n.yaml", "teacher=none.pt"], "there is no file"),
    ],
)
def test_what_is_missing_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library cannot be asked for it")
def test_memory_that_lies_in_pieces_is_given_back() -> None:
    process = psutil.Process()
    pieces = [torch.ones(24_000) for _ in range(2_000)]  # 96 kB each, too small for pages of their own
    del pieces[::2]
    before = process.memory_info().rss
    give_back()
    assert before - process.memory_info().rss > 48e6
    assert all(float(piece.sum()) == 24_000 for piece in pieces[::100])


def test_where_it_cannot_be_given_back_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(memory.ctypes, "CDLL", missing)
    memory._trim.cache_clear()
    try:
        give_back()
        assert memory._trim() is None
    finally:
        memory._trim.cache_clear()
