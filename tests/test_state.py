"""The resume state on disk: atomic, restricted to tensors and plain values, and of this run alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch

from yolokd.errors import UserError
from yolokd.ops.attention import RandomSource
from yolokd.saving import state as state_module
from yolokd.saving.state import FILE, read_state, write_state

IDENTITY = {"teachers": ["0123"], "methods": ["dfmsd"]}


def content(value: float) -> dict[str, Any]:
    return {"methods": {"weight": torch.full((2,), value)}, "calibration": {"gains": {"dfmsd": value}, "window": 1}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_state(tmp_path / FILE, 0, content(1.5), IDENTITY)
    found = read_state(tmp_path / FILE)
    assert found is not None
    assert found["teachers"] == ["0123"]
    assert found["methods"] == ["dfmsd"]
    assert torch.equal(found["epochs"][0]["methods"]["weight"], torch.full((2,), 1.5))
    assert found["epochs"][0]["calibration"]["gains"] == {"dfmsd": 1.5}


def test_the_last_two_epochs_are_kept(tmp_path: Path) -> None:
    for epoch in range(4):
        write_state(tmp_path / FILE, epoch, content(epoch), IDENTITY)
    found = read_state(tmp_path / FILE)
    assert found is not None and sorted(found["epochs"]) == [2, 3]
    assert float(found["epochs"][2]["methods"]["weight"][0]) == 2


def test_an_epoch_done_again_replaces_itself_and_what_came_after(tmp_path: Path) -> None:
    for epoch in (0, 1, 2):
        write_state(tmp_path / FILE, epoch, content(epoch), IDENTITY)
    write_state(tmp_path / FILE, 2, content(20), IDENTITY)
    found = read_state(tmp_path / FILE)
    assert found is not None and sorted(found["epochs"]) == [1, 2]
    assert float(found["epochs"][2]["methods"]["weight"][0]) == 20
    write_state(tmp_path / FILE, 1, content(10), IDENTITY)
    found = read_state(tmp_path / FILE)
    assert found is not None and sorted(found["epochs"]) == [1]


def test_epochs_of_another_teacher_are_dropped(tmp_path: Path) -> None:
    write_state(tmp_path / FILE, 0, content(0), IDENTITY)
    write_state(tmp_path / FILE, 1, content(1), {**IDENTITY, "teachers": ["4567"]})
    found = read_state(tmp_path / FILE)
    assert found is not None and sorted(found["epochs"]) == [1]
    assert found["teachers"] == ["4567"]


def test_a_failed_write_leaves_the_old_file_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(tmp_path / FILE, 0, content(0), IDENTITY)

    def full_disk(value: Any, file: IO[bytes]) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_state(tmp_path / FILE, 1, content(1), IDENTITY)
    found = read_state(tmp_path / FILE)
    assert found is not None and sorted(found["epochs"]) == [0]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / FILE
    write_state(path, 0, content(0), IDENTITY)
    before = path.read_bytes()
    with path.open("rb") as file:
        write_state(path, 1, content(1), IDENTITY)
        assert file.read() == before
    assert path.read_bytes() != before


def test_a_missing_truncated_or_foreign_file_reads_as_none(tmp_path: Path) -> None:
    path = tmp_path / FILE
    assert read_state(path) is None
    write_state(path, 0, content(0), IDENTITY)
    path.write_bytes(path.read_bytes()[:-100])
    assert read_state(path) is None
    path.write_text("no checkpoint")
    assert read_state(path) is None
    torch.save({"version": state_module.VERSION + 1, "epochs": {}}, path)
    assert read_state(path) is None
    torch.save([1, 2], path)
    assert read_state(path) is None


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({"version": state_module.VERSION, "epochs": {0: SimpleNamespace()}}, tmp_path / FILE)
    with pytest.raises(UserError, match=r"kd_state\.pt holds more than tensors and numbers \(types\.SimpleNamespace\)"):
        read_state(tmp_path / FILE)


def test_a_methods_generator_travels_in_the_state(tmp_path: Path) -> None:
    source = torch.nn.ModuleDict({"random": RandomSource(7)}).train()
    torch.rand(3, generator=source["random"].generator())
    write_state(tmp_path / FILE, 0, {"methods": dict(source.state_dict()), "calibration": None}, IDENTITY)
    expected = torch.rand(3, generator=source["random"].generator())
    found = read_state(tmp_path / FILE)
    assert found is not None
    other = torch.nn.ModuleDict({"random": RandomSource(0)}).train()
    other.load_state_dict(found["epochs"][0]["methods"])
    assert torch.equal(torch.rand(3, generator=other["random"].generator()), expected)
