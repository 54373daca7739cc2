"""Keys that do nothing beside the values of others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from yolokd.config import METHODS, methods, teachers, terms

Args = Mapping[str, Any]


def _draws(args: Args) -> bool:
    return args["dfmsd_mask"] == "random"


def _enhances(args: Args) -> bool:
    return args["dfmsd_enhance"] != "none" and not _draws(args)


def _reads_heat(args: Args) -> bool:
    """Return whether dfmsd reads more of its attention than its order, which no temperature changes."""
    return not _draws(args) and (args["dfmsd_enhance"] == "gain" or (args["dfmsd_enhance"] == "gap" and _gamma(args)))


def _gamma(args: Args) -> bool:
    return bool(args["dfmsd_gamma"])


def _stages(args: Args) -> bool:
    """Return whether stages differ, or one is asked for, as there is where they do not."""
    return (
        args["dfmsd_stages"] == []
        or (len(teachers(args["teacher"])) > 1 and args["kd_teachers"] != "together")
        or _enhances(args)
    )


def _shares(args: Args) -> bool:
    return args["kd_gain"] != "auto" or len(terms(args["method"])) != 1


def _starts(args: Args) -> bool:
    return args["kd_init"] != "teacher" or methods(args["method"]) not in {(), ("ultralytics",)}


MASKS = "with dfmsd_mask={dfmsd_mask} dfmsd_enhance={dfmsd_enhance}"
# A key acts under the condition; else it does nothing, in the words that follow.
ACTS: dict[str, tuple[Callable[[Args], Any], str]] = {
    **{f"{name}_gain": (_shares, "with one method and kd_gain=auto; use kd_share=") for name in METHODS},
    "kd_share": (lambda args: args["kd_gain"] == "auto", "without kd_gain=auto"),
    "kd_init": (_starts, "with method={method}"),
    "kd_stop": (lambda args: args["kd_stop"] != "mosaic" or args.get("close_mosaic") != 0, "with close_mosaic=0"),
    "kd_unlabeled_ratio": (lambda args: args["kd_unlabeled"], "without kd_unlabeled="),
    "kd_unlabeled_confidence": (
        lambda args: args["kd_unlabeled"] or args["kd_names"],
        "without kd_unlabeled= or kd_names=",
    ),
    "teacher_epochs": (lambda args: methods(args["method"]) != ("ultralytics",), "with method=ultralytics"),
    "dfmsd_stages": (_stages, f"{MASKS}, where all stages are alike"),
    "dfmsd_spatial_ratio": (lambda args: _draws(args) or args["dfmsd_enhance"] != "gain", "with dfmsd_enhance=gain"),
    "dfmsd_channel_ratio": (lambda args: _draws(args) or args["dfmsd_enhance"] != "gain", "with dfmsd_enhance=gain"),
    "dfmsd_temperature": (_reads_heat, f"{MASKS} dfmsd_gamma={{dfmsd_gamma:g}}"),
    "dfmsd_enhance": (
        lambda args: not _draws(args) and (args["dfmsd_enhance"] in {"none", "gain"} or _gamma(args)),
        "with dfmsd_mask={dfmsd_mask} dfmsd_gamma={dfmsd_gamma:g}",
    ),
    "dfmsd_gamma": (_enhances, MASKS),
    "samkd_ratio": (
        lambda args: args["samkd_feature"] or args["samkd_weight"] == "binary",
        "with samkd_feature=0 samkd_weight=soft",
    ),
    "samkd_channel_ratio": (lambda args: args["samkd_feature"], "with samkd_feature=0"),
    "samkd_temperature": (
        lambda args: args["samkd_logit"] and args["samkd_weight"] == "soft",
        "with samkd_logit={samkd_logit:g} samkd_weight={samkd_weight}",
    ),
    "samkd_weight": (lambda args: args["samkd_logit"], "with samkd_logit=0"),
    "samkd_align": (lambda args: args["samkd_feature"], "with samkd_feature=0"),
    "samkd_width": (lambda args: args["samkd_feature"], "with samkd_feature=0"),
    "sgfi_embed": (lambda args: args["sgfi_match"] == "soft", "with sgfi_match=same"),
    "pcd_stages": (lambda args: args["pcd_grouped"], "with pcd_grouped=0"),
    "pcd_temperature": (lambda args: args["pcd_grouped"], "with pcd_grouped=0"),
    "pcd_confidence": (lambda args: args["pcd_grouped"], "with pcd_grouped=0"),
    "pcd_schedule": (
        lambda args: args["pcd_grouped"] and args["pcd_stages"] > 1,
        "with pcd_grouped={pcd_grouped:g} pcd_stages={pcd_stages}",
    ),
    "bckd_beta": (lambda args: args["bckd_cls"], "with bckd_cls=0"),
    "crosskd_beta": (lambda args: args["crosskd_cls"], "with crosskd_cls=0"),
}


def idle(keys: Iterable[str], args: Args) -> dict[str, str]:
    """Return those of some keys that do nothing beside the values of the others, with the words that say when.

    Args:
        keys (Iterable[str]): Names of keys that the methods read.
        args (Mapping[str, Any]): All arguments of a run, each checked by itself.
    """
    return {key: ACTS[key][1].format_map(args) for key in keys if key in ACTS and not ACTS[key][0](args)}
