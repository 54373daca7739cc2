"""What a report says of the machine and the versions that its numbers come from."""

from __future__ import annotations

import os
import platform
from typing import Any

from yolokd.command.info import PACKAGES, installed


def versions() -> dict[str, str]:
    """Return the versions of yolokd and of the packages that decide about its numbers."""
    import yolokd

    found = {name: installed(name) for name in PACKAGES}
    return {"yolokd": yolokd.__version__, **{name: version for name, version in found.items() if version}}


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
