"""The methods by name, and how each is built from flat `NAME_option` keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolokd.errors import UserError
from yolokd.losses.base import DistillLoss
from yolokd.losses.bckd import BCKDLoss
from yolokd.losses.ckd import CKDLoss
from yolokd.losses.crosskd import CrossKDLoss
from yolokd.losses.cwd import CWDLoss
from yolokd.losses.dfmsd import DFMSDLoss
from yolokd.losses.ld import LDLoss
from yolokd.losses.mgd import MGDLoss
from yolokd.losses.pcd import PCDLoss
from yolokd.losses.pkd import PKDLoss
from yolokd.losses.samkd import SAMKDLoss
from yolokd.losses.sgfi import SGFILoss
from yolokd.losses.softkd import SoftKDLoss
from yolokd.taps import Pair

LOSSES: dict[str, type[DistillLoss]] = {
    "dfmsd": DFMSDLoss,
    "samkd": SAMKDLoss,
    "sgfi": SGFILoss,
    "ckd": CKDLoss,
    "pcd": PCDLoss,
    "mgd": MGDLoss,
    "cwd": CWDLoss,
    "pkd": PKDLoss,
    "bckd": BCKDLoss,
    "ld": LDLoss,
    "crosskd": CrossKDLoss,
    "softkd": SoftKDLoss,
}
ALIASES: dict[str, tuple[str, ...]] = {"gdetkd": ("sgfi", "ckd")}


def options(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor arguments of a method from flat keys: `pcd_stages=3` becomes `stages=3`.

    Args:
        name (str): Name of the method, a key of `LOSSES`.
        args (Mapping[str, Any]): Flat keys, others than the method's own are ignored.

    Returns:
        (dict[str, Any]): The method's own keys without prefix; the gain and the criterion's stage points are left out.
    """
    skipped = {f"{name}_gain", *([f"{name}_stages"] if LOSSES[name].takes_stages else [])}
    return {k.removeprefix(f"{name}_"): v for k, v in args.items() if k.startswith(f"{name}_") and k not in skipped}


def build(name: str, pair: Pair, args: Mapping[str, Any]) -> DistillLoss:
    """Build a method for a teacher-student pair.

    Args:
        name (str): Name of the method, a key of `LOSSES`.
        pair (Pair): Channels, strides and class count of the pair.
        args (Mapping[str, Any]): Flat keys as in cfg/default.yaml.

    Returns:
        (DistillLoss): The method with its adapters.

    Raises:
        UserError: If there is no such method.
    """
    if name not in LOSSES:
        raise UserError(f"method='{name}' does not exist. Methods: {', '.join([*LOSSES, *ALIASES])}")
    return LOSSES[name](pair, **options(name, args))
