"""The releases of the host that we support: one range, said in words where it is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolokd.compat import get_split_fraction, warn_outside
from yolokd.environment import SUPPORTED

ROOT = Path(__file__).parent.parent


def test_the_range_is_that_of_the_package() -> None:
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{name}{span}"' in wanted for name, span in SUPPORTED.items())


@pytest.mark.parametrize(
    ("version", "outside"), [("8.4.115", False), ("8.4.190", False), ("8.4.104", True), ("9.0", True)]
)
def test_a_release_outside_is_said_and_goes_on(version: str, outside: bool, said: list[str]) -> None:
    assert warn_outside(version) == outside
    assert any(f"ultralytics {version} is outside" in text and "pip install" in text for text in said) == outside


def test_a_fraction_is_that_of_the_training_images() -> None:
    assert get_split_fraction(0.3, "train") == 0.3
    assert get_split_fraction(0.3, "val") == 1.0
    whole = get_split_fraction(1, "train")
    assert isinstance(whole, float) and whole == 1.0  # all images; an int is a number of them


def test_before_hosts_had_a_fraction_for_each_split_it_was_that_of_the_training_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("ultralytics.data.utils.get_split_fraction", raising=False)
    test_a_fraction_is_that_of_the_training_images()
