"""What a report says of the machine and the versions that its numbers come from."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SUPPORTED = {  # the ranges in pyproject.toml; docs/reliability.md says what fails below the first
    "ultralytics": ">=8.4.115,<9",
    "torch": ">=2.6",
}
PACKAGES = ("torch", "torchvision", "ultralytics", "numpy", "scipy", "pycocotools", "onnx", "onnxruntime", "onnxslim")


def installed(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Return the versions of yolokd and of the packages that decide about its numbers."""
    import yolokd

    found = {name: installed(name) for name in PACKAGES}
    return {"yolokd": yolokd.__version__, **{name: text for name, text in found.items() if text}}


def environment() -> dict[str, Any]:
    """Return versions, system, processor and GPUs as numbers and text; no name of the machine or of its user."""
    import torch
    from ultralytics.utils.torch_utils import get_cpu_info

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": get_cpu_info(),
        "cores": os.cpu_count(),
        "gpu": ", ".join(gpus) or "none",
    }
