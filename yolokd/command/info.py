"""What the command line tells about itself: keys, methods, and the state of the installation."""

from __future__ import annotations

import platform
import re
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import requires

from yolokd.environment import PACKAGES, SUPPORTED, installed
from yolokd.text import aligned

IMAGE_SIZE = 320  # for the cost of a method
LEFT_OUT = {  # name: signal, paper, what the paper states, why we have it not
    "freekd": (
        "features",
        "Zhang et al. 2024, arXiv 2311.12079",
        "wavelet bands of the maps, masked by prompts that the teacher learns beforehand (public code)",
        "not offered: the prompts need a training of their own before the student's",
    )
}
STUDENT_STEP = 3 * 8.7e9 * (IMAGE_SIZE / 640) ** 2  # FLOPs of yolov8n forward (8.7 G at 640) and backward (twice that)


def versions() -> str:
    """Return our version and the host's, without importing the host."""
    import yolokd

    return f"yolokd {yolokd.__version__}, ultralytics {installed('ultralytics') or 'not installed'}"


def head_lines(name: str) -> dict[str, str]:
    """Return the `# Word: text` lines at the head of a recipe by word: Run, Teacher, Columns, Paper, Ours, Seen."""
    from yolokd.config import recipe

    text = recipe(name).read_text(encoding="utf-8")
    return dict(re.findall(r"^# (\w+):\s+(.+)$", text, flags=re.MULTILINE))


def measure(name: str) -> tuple[int, float]:
    """Return a method's trainable parameters and its cost for a yolov8n student and a yolov8s teacher on 80 classes.

    The cost is counted, not timed: multiplications and additions of convolutions and matrix products in forward and
    backward, on one image of 320 pixels, as a fraction of the student's own. The teacher's forward comes on top of it.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from ultralytics.nn.modules import Detect

    from yolokd.config import DEFAULTS
    from yolokd.losses import build
    from yolokd.taps import Pair, Taps, Targets

    strides, classes, boxes = (8, 16, 32), 80, torch.tensor([[64.0, 64.0, 192.0, 192.0], [16.0, 16.0, 48.0, 56.0]])
    pair = Pair((64, 128, 256), (128, 256, 512), strides, classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = build(name, pair, DEFAULTS).train()
        head = Detect(classes, ch=pair.teacher_channels).train().requires_grad_(False)

        def towers(feats: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            raw = head(list(feats))
            return raw["scores"].transpose(1, 2), raw["boxes"].transpose(1, 2)

        def taps(channels: Sequence[int], grad: bool) -> Taps:
            sides = [IMAGE_SIZE // stride for stride in strides]
            count = sum(side * side for side in sides)
            feats = [torch.randn(1, c, side, side, requires_grad=grad) for c, side in zip(channels, sides)]
            logits = torch.randn(1, count, classes, requires_grad=grad)
            return Taps(feats, strides, logits, torch.randn(1, count, 64, requires_grad=grad), None if grad else towers)

        student, teacher = taps(pair.student_channels, True), taps(pair.teacher_channels, False)
        anchors = student.anchors()[0]
        inside = ((anchors[:, None] > boxes[:, :2]) & (anchors[:, None] < boxes[:, 2:])).all(-1).any(-1)[None]
        labels = torch.tensor([3, 7])
        targets = Targets(boxes, labels, torch.zeros(2, dtype=torch.long), inside, inside.float() * 0.5)
        with FlopCounterMode(display=False) as counter:
            # its sums by module need hooks that refuse a gradient taken within the forward; the total does without them
            counter.mod_tracker.__exit__()
            loss(student, teacher, targets).backward()
    parameters = sum(parameter.numel() for parameter in loss.parameters())
    return parameters, counter.get_total_flops() / STUDENT_STEP


def methods_text() -> str:
    """Return the table of methods: paper, signal, parameters, cost, and what is the paper's and what is ours."""
    from yolokd.losses import ALIASES, LOSSES
    from yolokd.pairs.matrix import tasks_text

    rows = [("method", "signal", "parameters", "cost", "paper")]
    notes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, loss in LOSSES.items():
            parameters, cost = measure(name)
            level = "low" if cost < 0.05 else "medium" if cost < 0.5 else "high"
            rows.append((name, loss.signal, f"{parameters:,}", f"{level} ({cost:.0%})", loss.paper))
            head = head_lines(name)
            seen = f"\n  seen:  {head['Seen']}" if "Seen" in head else ""
            notes.append(f"{name}\n  paper: {head['Paper']}\n  ours:  {head['Ours']}{seen}")
    aliases = "\n".join(f"{name} = {'+'.join(parts)}" for name, parts in ALIASES.items())
    return (
        f"{aligned(rows)}\n\nJoin methods with +, e.g. method=dfmsd+pcd. {aliases}. none = plain training; "
        f"ultralytics = the built-in distillation, as a control; fit = plain training from a start fitted to the "
        f"teacher.\n"
        f"parameters: trainable ones that exist during training only, for yolov8n <- yolov8s on 80 classes.\n"
        f"cost: arithmetic of a training step beside yolov8n's own, counted at {IMAGE_SIZE} pixels; the teacher's "
        f"forward comes on top, once for all methods.\n\n"
        "What the paper states, what is our reading, and what was seen of it (docs/results.md):\n"
        + "\n".join([*notes, *_left_out()])
    ) + f"\n\n{tasks_text()}"


def _left_out() -> list[str]:
    """Return the lines of methods that one may look for and that are not there."""
    return [f"{name} ({paper})\n  paper: {states}\n  {why}" for name, (_, paper, states, why) in LEFT_OUT.items()]


def methods_markdown() -> str:
    """Return the methods as the table of the README: what the paper states, our reading, what was measured."""
    from yolokd.losses import LOSSES

    rows = ["| method | distils | paper | the paper states | our reading | measured |", "| --- " * 6 + "|"]
    for name, loss in LOSSES.items():
        head = head_lines(name)
        seen = head.get("Seen", "–")
        rows.append(f"| `{name}` | {loss.signal} | {loss.paper} | {head['Paper']} | {head['Ours']} | {seen} |")
    for name, (signal, paper, states, why) in LEFT_OUT.items():
        rows.append(f"| {name} | {signal} | {paper} | {states} | {why} | – |")
    return "\n".join(rows)


def cfg_text() -> str:
    """Return our keys with meaning and default, as default.yaml has them."""
    from yolokd.config import FOLDER

    return (FOLDER / "default.yaml").read_text(encoding="utf-8").rstrip()


def _torchvision_problem() -> str | None:
    """Return what is wrong between torch and torchvision, or None where a compiled operator of torchvision runs."""
    try:
        import torch
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([1.0]), 0.5)
        return None
    except (ImportError, RuntimeError, AttributeError) as error:
        wanted = re.search(
            r"torch==([\d.]+)", " ".join(requires("torchvision") or []) if installed("torchvision") else ""
        )
        need = f"torchvision {installed('torchvision')} needs torch {wanted[1]}; " if wanted else ""
        return f"{need}{str(error).splitlines()[0]}. Fix: pip install --upgrade --force-reinstall torch torchvision"


def checks_text() -> tuple[str, bool]:
    """Return the state of the installation, and whether all is well."""
    from packaging.specifiers import SpecifierSet

    rows = [("yolokd", versions().split(",")[0].split()[1]), ("python", platform.python_version())]
    problems = []
    for name in PACKAGES:
        found = installed(name)
        rows.append((name, found or "missing"))
        if found is None:
            problems.append(f"{name} is missing. Fix: pip install {name}")
        elif name in SUPPORTED and not SpecifierSet(SUPPORTED[name]).contains(found.split("+")[0], prereleases=True):
            problems.append(f"{name} {found} is outside {SUPPORTED[name]}. Fix: pip install '{name}{SUPPORTED[name]}'")
    rows.append(("supported", ", ".join(f"{name} {span}" for name, span in SUPPORTED.items())))
    if installed("torch") and installed("torchvision"):
        torch = import_module("torch")
        problem = _torchvision_problem()
        problems += [problem] if problem else []
        rows.append(("torch with torchvision", "no" if problem else "yes, torchvision.ops.nms runs"))
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        rows.append(("GPU", ", ".join(gpus) or "none"))
        if not problem and installed("ultralytics"):
            from yolokd.teachers.teacher import bfloat16_is_fast

            gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
            fast = [name for name, has in (("CPU", bfloat16_is_fast(torch.device("cpu"))), ("GPU", gpu)) if has]
            rows.append(("native bfloat16", ", ".join(fast) or "none"))
    end = "\n".join(f"PROBLEM: {problem}" for problem in problems) or "all is well"
    return f"{aligned(rows)}\n{end}", not problems
