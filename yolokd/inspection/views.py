"""What each method would do with one image, level by level, computed by the methods' own functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torchvision.ops import batched_nms

from yolokd.inspection.scene import Scene
from yolokd.inspection.sheet import Array, Panel, Ranking, Regions
from yolokd.losses.base import DistillLoss
from yolokd.losses.dfmsd import gap
from yolokd.losses.mgd import random_mask
from yolokd.losses.pcd import block_sizes, grouped_divergence, ranking
from yolokd.ops.adapters import standardize
from yolokd.ops.anchors import selected_anchors
from yolokd.ops.attention import log_attentions, spatial_attention
from yolokd.ops.binary import binary_distillation
from yolokd.ops.regions import as_rois, rows_by_level

# Ranked classes: anchors per level, IoU above which two are one object, least weight that is worth a look.
STRONGEST, SAME_OBJECT, LEAST = 3, 0.5, 0.05
NO_MASK = {
    "cwd": "no mask: each channel's distribution over all positions is compared",
    "pkd": "no mask: all positions count alike",
    "crosskd": "no mask: the student's map runs through the teacher's head and all anchors count",
}


def numpy(values: torch.Tensor) -> Array:
    """Return a tensor as a float32 array."""
    array: Array = values.detach().float().cpu().numpy()
    return array


def common_panels(scene: Scene, level: int) -> list[Panel]:
    """Return the attention of both sides and their difference on a level.

    Where a method's adapters are trained the difference is that of the maps in teacher channels, as DFMSD's enhancement
    measures it; maps behind untrained adapters say nothing, and then it is the difference of the attentions.
    """
    sides = {
        "Teacher": spatial_attention(scene.teacher.feats[level])[0, 0].cpu(),
        "Student": spatial_attention(scene.student.feats[level])[0, 0].cpu(),
    }
    upper = float(torch.stack(list(sides.values())).flatten().quantile(0.995))
    panels = [
        Panel(f"{side}'s attention, mean 1{_within(scene, values, level)}", numpy(values), upper=upper)
        for side, values in sides.items()
    ]
    chosen = next((name for name in scene.modules if name in scene.trained and name in COMPARED), None)
    if chosen:
        values = gap(*compared(scene, chosen, level))[0, 0]
        title = f"|teacher - adapted student| of {chosen}, mean 1{_within(scene, values, level)}"
        return [*panels, Panel(title, numpy(values))]
    difference = sides["Teacher"] - sides["Student"]
    title = "Teacher's attention - student's attention\n(orange: the teacher looks there more)"
    return [*panels, Panel(title, numpy(difference), kind="signed")]


def _within(scene: Scene, values: torch.Tensor, level: int) -> str:
    """Return the mean of a map inside the detections, in words."""
    mean = scene.inside(values, level)
    return "" if mean is None else f"\nmean inside the boxes {mean:.2f}"


COMPARED = ("dfmsd", "samkd", "mgd", "cwd", "pkd")  # methods that compare maps behind 1x1 adapters


def compared(scene: Scene, name: str, level: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the adapted student map and the teacher map as a feature method compares them, (1, C, H, W) each."""
    module = scene.modules[name]
    adapted, teacher = module.adapters(scene.student.feats)[level], scene.teacher.feats[level]
    return (standardize(adapted), standardize(teacher)) if getattr(module, "align", True) else (adapted, teacher)


def mask_panel(scene: Scene, level: int, mask: torch.Tensor, what: str, grid: int = 1) -> Panel:
    """Return the panel of a mask (1, 1, H, W), 0 = masked, with the masked share of image and boxes."""
    masked = 1 - mask[0, 0].cpu()
    inside = scene.inside(masked, level)
    text = "" if inside is None else f", inside the boxes {inside:.0%}"
    return Panel(
        f"{what}\norange: masked, overall {masked.mean():.0%}{text}", numpy(mask[0, 0]), kind="mask", grid=grid
    )


def dfmsd_panels(scene: Scene, level: int) -> list[Panel]:
    """Return the mask of each stage; the enhancement acts from the second one on."""
    module = scene.modules["dfmsd"]
    adapted, wanted = compared(scene, "dfmsd", level)
    panels, now = [], module.stage
    for stage in range(scene.stages):
        module.stage = stage
        spatial, channel = module.masks(scene.teacher.feats[level], adapted, wanted)
        gamma = module.active_gamma()
        acts = module.enhance == "gain" or (module.enhance != "none" and gamma > 0)
        how = f"enhance={module.enhance}" if acts and module.mask != "random" else "no enhancement"
        which = (
            f" stage {stage + 1} of {scene.stages}{' (now)' * (stage == now and 'dfmsd' in scene.trained)}"
            if scene.stages > 1
            else ""
        )
        state = ", untrained" if module.enhance == "gap" and gamma and "dfmsd" not in scene.trained else ""
        what = f"dfmsd{which}: {how}{state}\nof the channels {1 - channel.mean():.0%} are masked too"
        panels.append(mask_panel(scene, level, spatial, what))
    module.stage = now
    return panels


def samkd_panels(scene: Scene, level: int) -> list[Panel]:
    """Return the mask of each grid, and the weight of the positions in the logit part."""
    module = scene.modules["samkd"]
    attention, by_channel = log_attentions(scene.teacher.feats[level], module.temperature)
    panels = []
    if module.part_gains["feature"]:
        masks, channel = module.masks(attention, by_channel)
        for grid, mask in masks.items():
            what = f"samkd: {grid} x {grid} cells; of the channels {1 - channel.mean():.0%} too"
            panels.append(mask_panel(scene, level, mask, what, grid))
    if module.part_gains["logit"]:
        adapted = module.adapters(scene.student.feats)[level]
        maps = standardize(adapted), standardize(scene.teacher.feats[level])
        weight = module.region_weight(*maps, attention.exp())[0, 0]
        state = "" if "samkd" in scene.trained else ", untrained"
        panels.append(Panel(f"samkd: weight of the logit part{state}{_within(scene, weight, level)}", numpy(weight)))
    return panels


def mgd_panels(scene: Scene, level: int) -> list[Panel]:
    """Return one draw of the random mask."""
    module = scene.modules["mgd"]
    mask = random_mask(scene.teacher.feats[level], module.ratio, module.random.generator())
    return [mask_panel(scene, level, mask, "mgd: one draw of the random mask")]


def anchor_panel(scene: Scene, level: int, values: torch.Tensor, what: str, upper: float | None = None) -> Panel:
    """Return the panel of per-anchor values (1, A), with this level's share of their sum."""
    grid = scene.teacher.split(values)[level][0]
    share = float(grid.sum() / values.sum().clamp_min(1e-9))
    return Panel(f"{what}\n{share:.0%} of the sum over all levels is here", numpy(grid), upper=upper)


def logit_panels(name: str) -> Callable[[Scene, int], list[Panel]]:
    """Return the function that shows where a logit method acts."""

    def panels(scene: Scene, level: int) -> list[Panel]:
        module, positives = scene.modules[name], scene.targets.positives
        gains, shown = module.part_gains, []
        assert scene.student.logits is not None and scene.teacher.logits is not None
        if name in {"softkd", "ld"} or gains.get("grouped"):
            threshold = {"pcd": getattr(module, "confidence", 1.0), "ld": 1.0}
            limits = {"threshold": threshold[name]} if name in threshold else {}
            rows, weights = selected_anchors(scene.teacher.logits, positives, **limits)
            spread = torch.zeros_like(scene.teacher.logits[..., 0], dtype=torch.float32)
            spread[rows] = weights.float()
            part = f"{name}'s grouped part" if name == "pcd" else name
            shown.append(anchor_panel(scene, level, spread, f"Weight of the anchors in {part}", upper=1.0))
        if gains.get("binary") or gains.get("cls"):
            beta = getattr(module, "beta", 1.0)
            values = binary_distillation(scene.student.logits, scene.teacher.logits, beta)
            part = "binary" if name == "pcd" else "class"
            shown.append(anchor_panel(scene, level, values, f"{name}'s {part} part at each anchor"))
        return shown

    return panels


PANELS: dict[str, Callable[[Scene, int], list[Panel]]] = {
    "dfmsd": dfmsd_panels,
    "samkd": samkd_panels,
    "mgd": mgd_panels,
    **{name: logit_panels(name) for name in ("pcd", "softkd", "ld", "bckd")},
}


def region_views(scene: Scene, level: int) -> list[Regions]:
    """Return the regions that are compared on a level, for SGFI with the weights of the student's levels."""
    views, seen = [], None
    for name in ("sgfi", "ckd"):
        if name not in scene.modules:
            continue
        module, strides = scene.modules[name], scene.student.strides
        boxes, real = module.proposer(scene.student, scene.targets)
        rows = rows_by_level(boxes, real, strides)[level]
        rois = as_rois(boxes)[rows]
        if not len(rois) or (seen is not None and torch.equal(seen, rois)):
            continue  # none here, or the same ones again, as in gdetkd
        seen = rois
        weights = numpy(module.matched(scene.student, scene.teacher, level, rois)[2]) if name == "sgfi" else None
        state = "" if name in scene.trained else "; untrained"
        title = f"{name}: {len(rois)} of {int(real.sum())} regions belong to stride {strides[level]} by size{state}\n"
        title += "numbered: objects first, then predictions; others in thin black"
        views.append(Regions(title, numpy(rois[:, 1:]), weights, strides))
    return views


def rankings(scene: Scene, level: int) -> list[Ranking]:
    """Return PCD's ranked classes at the strongest detections of a level, at most one anchor per object."""
    module: Any = scene.modules.get("pcd")
    if module is None or not module.part_gains["grouped"]:
        return []
    student, teacher = scene.student, scene.teacher
    assert student.logits is not None and teacher.logits is not None
    (_, anchors), weights = selected_anchors(teacher.logits, scene.targets.positives, module.confidence)
    counts = [height * width for height, width in teacher.sizes]
    first = sum(counts[:level])
    here = (anchors >= first) & (anchors < first + counts[level]) & (weights >= LEAST)
    anchors, weights = anchors[here], weights[here]
    classes = teacher.logits[0, anchors].argmax(-1)
    kept = batched_nms(teacher.decoded()[0, anchors], weights.float(), classes, SAME_OBJECT)[:STRONGEST]
    centres, views = teacher.anchors()[0], []
    for anchor, weight in zip(anchors[kept].tolist(), weights[kept].tolist()):
        s, t = student.logits[0, anchor][None].float(), teacher.logits[0, anchor][None].float()
        order = ranking(s, t)[0]
        s, t = s[:, order], t[:, order]
        groupings = []
        for groups in module.groupings()[0]:
            sizes = block_sizes(len(order), groups)
            parts = zip(s.split(sizes, dim=-1), t.split(sizes, dim=-1))
            groupings.append(
                [(a.shape[-1], float(grouped_divergence(a, b, [1], module.temperature))) for a, b in parts]
            )
        x, y = centres[anchor].tolist()
        title = (
            f"pcd at x={x:.0f}, y={y:.0f}: teacher says {scene.names[int(teacher.logits[0, anchor].argmax())]} "
            f"({weight:.2f}). Classes by |teacher - student|, largest first.\n"
            f"Strips: the groups of each stage, each with its term (1 - cos) T² KL before the anchor's weight"
        )
        names = [scene.names[i] for i in order.tolist()]
        views.append(Ranking(title, names, numpy(t[0]), numpy(s[0]), groupings))
    return views


def method_notes(modules: Mapping[str, DistillLoss]) -> list[str]:
    """Return a line for each method that has nothing to draw on any level."""
    return [f"{name}: {NO_MASK[name]}." for name in modules if name in NO_MASK]


def level_notes(scene: Scene, regions: Sequence[Regions], ranked: Sequence[Ranking]) -> list[str]:
    """Return a line for each method that has nothing to draw on a level."""
    notes = []
    if not regions and (names := [name for name in ("sgfi", "ckd") if name in scene.modules]):
        notes.append(f"{', '.join(names)}: no region belongs to this level by its size.")
    if not ranked and "pcd" in scene.modules:
        notes.append(f"pcd: no ranked classes, since no anchor here weighs {LEAST} or more in the grouped part.")
    return notes
