"""Knowledge distillation for stock Ultralytics YOLO; heavy parts are imported when they are first used."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "DistillationTrainer": "yolokd.trainers",
    "LOSSES": "yolokd.losses",
    "OBBDistillationTrainer": "yolokd.trainers",
    "Pair": "yolokd.taps",
    "PoseDistillationTrainer": "yolokd.trainers",
    "RTDETRDistillationTrainer": "yolokd.trainers",
    "SegmentationDistillationTrainer": "yolokd.trainers",
    "TRAINERS": "yolokd.trainers",
    "Taps": "yolokd.taps",
    "Targets": "yolokd.taps",
    "UserError": "yolokd.errors",
    "recipe": "yolokd.config",
}

__all__ = [
    "LOSSES",
    "TRAINERS",
    "DistillationTrainer",
    "OBBDistillationTrainer",
    "Pair",
    "PoseDistillationTrainer",
    "RTDETRDistillationTrainer",
    "SegmentationDistillationTrainer",
    "Taps",
    "Targets",
    "UserError",
    "__version__",
    "recipe",
]


def _losses() -> dict[str, Any]:
    """Return the loss classes by class name."""
    from yolokd.losses import LOSSES

    return {loss.__name__: loss for loss in LOSSES.values()}


def __getattr__(name: str) -> Any:
    """Import a public name or a loss class on first use (PEP 562): `import yolokd` alone loads no torch."""
    from importlib import import_module

    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
    elif name.endswith("Loss") and name in (classes := _losses()):
        value = classes[name]
    else:
        raise AttributeError(f"module 'yolokd' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names and the loss classes, those not imported yet included."""
    return sorted({*globals(), *__all__, *_losses()})
