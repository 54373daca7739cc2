"""The releases of the host that we support, and what older ones of them have not."""

from __future__ import annotations

from typing import Any

from packaging.specifiers import SpecifierSet
from ultralytics import __version__
from ultralytics.data import utils
from ultralytics.utils import LOGGER

from yolokd.environment import SUPPORTED


def get_split_fraction(fraction: Any, split: str) -> Any:
    """Return the share of a split's images to use, a float, or their number, an int above 1.

    Before 8.4.140 a fraction meant training images alone.
    """
    if hasattr(utils, "get_split_fraction"):
        return utils.get_split_fraction(fraction, split)
    return 1.0 if split != "train" else float(fraction) if fraction in (0, 1) else fraction


def warn_outside(version: str = __version__) -> bool:
    """Say it where the host's release is none of those that we support; return whether it was said."""
    span = SUPPORTED["ultralytics"]
    if SpecifierSet(span).contains(version, prereleases=True):
        return False
    LOGGER.warning(
        f"ultralytics {version} is outside {span}, the releases that yolokd was tried with; what fails may be due "
        f"to that. Fix: pip install 'ultralytics{span}'"
    )
    return True


__all__ = ["get_split_fraction", "warn_outside"]
