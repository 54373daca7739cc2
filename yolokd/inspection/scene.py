"""One image as the methods of a run see it: both models' taps, the task's assignment, and the run's adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.ops import batched_nms

from yolokd import config
from yolokd.classes import data_classes, match_classes
from yolokd.criterion import DistillationLoss
from yolokd.errors import UserError
from yolokd.inspection.sheet import Array
from yolokd.models import input_channels, model_strides
from yolokd.outputs import View, read_output
from yolokd.pairs.assembly import build_criterion
from yolokd.saving.state import FILE, read_state
from yolokd.students.kinds import check_detector
from yolokd.taps import Taps, Targets
from yolokd.teachers.images import Sight, channel_plan, sight_of
from yolokd.teachers.teacher import Teacher, load_teacher
from yolokd.text import reason
from yolokd.trust import open_model

CONFIDENCE, OVERLAP, MOST = 0.25, 0.7, 300  # the host's thresholds and limit in prediction


@dataclass(frozen=True)
class Scene:
    """One image as the methods see it.

    Attributes:
        student (Taps): The student's taps, without gradient.
        teacher (Taps): The teacher's taps.
        targets (Targets): Objects and the task's assignment.
        modules (Mapping[str, DistillLoss]): The methods, in evaluation mode.
        stages (int): Number of training stages.
        trained (frozenset[str]): Methods whose adapters are trained.
        boxes (torch.Tensor): Teacher's detections in pixels with shape (N, 4).
        labels (Sequence[str]): Class and probability of each detection.
        names (Sequence[str]): Names of the matched classes.
    """

    student: Taps
    teacher: Taps
    targets: Targets
    modules: Mapping[str, Any]
    stages: int
    trained: frozenset[str]
    boxes: torch.Tensor
    labels: Sequence[str]
    names: Sequence[str]

    def cover(self, level: int) -> torch.Tensor:
        """Return the share of each cell of a level that lies inside the teacher's detections, shape (H, W)."""
        height, width = self.teacher.image_size
        inside = torch.zeros(1, 1, height, width)
        for x1, y1, x2, y2 in self.boxes.round().long().clamp_min(0).tolist():
            inside[..., y1:y2, x1:x2] = 1
        return torch.nn.functional.adaptive_avg_pool2d(inside, self.teacher.sizes[level])[0, 0]

    def inside(self, values: torch.Tensor, level: int) -> float | None:
        """Return the mean of values (H, W) over the area of the detections, or None where there is none."""
        cover = self.cover(level)
        return float((values.cpu() * cover).sum() / cover.sum()) if cover.sum() > 0 else None


def look(
    path: str, methods: Sequence[str], args: Any, picture: Array, device: torch.device
) -> tuple[Scene, Array, list[str]]:
    """Return an image as the methods of a run see it.

    Args:
        path (str): Student's weights.
        methods (Sequence[str]): Names of the methods.
        args (SimpleNamespace): The run's arguments, with `teacher` a weights file.
        picture (Array): The image as blue, green, red with shape (height, width, 3), uint8.
        device (torch.device): Where the models run.

    Returns:
        (tuple[Scene, Array, list[str]]): What the methods see, the fitted image as red, green, blue, and what has to be
            known for reading the pictures.

    Raises:
        UserError: If student, teacher and methods do not fit.
    """
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.checks import check_imgsz

    teacher_model, identity = load_teacher(args.teacher)
    model, notes = _student(path, teacher_model)
    model.args = args
    model.to(device).eval()
    stride = max(*model_strides(model), *model_strides(teacher_model))
    side = check_imgsz(args.imgsz, stride=stride, max_dim=1)
    fitted: Any = LetterBox((side, side), auto=bool(args.rect), stride=stride)(image=picture)
    fitted = fitted[..., ::-1].copy()  # to red, green, blue
    channels = input_channels(model)
    if channels not in {1, 3}:
        raise UserError(f"model={path} takes {channels} input channels; inspect reads colour and grey images")
    images = torch.from_numpy(fitted).permute(2, 0, 1)[None].to(device).float() / 255  # (1, 3, H, W)
    images = Sight(*channel_plan(3, channels))(images)  # grey as the host reads colour files for grey models
    detector = Teacher(load_teacher(args.teacher)[0], identity)
    detector.sight = sight_of(detector, channels, args)
    boxes, probabilities, classes = detect(detector, images, args.conf or CONFIDENCE)
    criterion = build_criterion(model, [Teacher(teacher_model, identity)], methods, args, boxes=True).eval()
    trained, epoch = load_adapters(criterion, Path(path), identity)
    for modules in criterion.methods.values():
        if epoch is not None:
            modules[0].stage = criterion.stages.at(epoch, int(args.epochs))
            modules[0].progress = (epoch + 1) / int(args.epochs)
    own = data_classes(match_classes(model.names, detector.names, args.kd_class_map))
    known = [index for index, label in enumerate(classes.tolist()) if label in own]
    height, width = images.shape[2:]
    x1, y1, x2, y2 = (boxes[known] / boxes.new_tensor([width, height, width, height])).unbind(-1)
    batch = {
        "img": images,
        "bboxes": torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=-1),
        "cls": torch.tensor([[float(own[label])] for label in classes[known].tolist()], device=device).view(-1, 1),
        "batch_idx": torch.zeros(len(known), device=device),
    }
    preds = model(images)
    criterion.task.base(preds, batch)  # the task assigns its positives
    link = criterion.links[0]
    student, taught, targets = criterion.pair(link, read_output(preds), link.teacher(images), "one2many", batch)
    view = link.student_view.classes
    scene = Scene(
        student=student,
        teacher=taught,
        targets=targets,
        modules={name: modules[0] for name, modules in criterion.methods.items()},
        stages=criterion.stages.count,
        trained=trained,
        boxes=boxes.cpu(),
        labels=[f"{teacher_model.names[c]} {p:.2f}" for c, p in zip(classes.tolist(), probabilities.tolist())],
        names=[model.names[i] for i in (range(len(model.names)) if view is None else view)],
    )
    return scene, fitted, [*notes, *_notes(scene, criterion, epoch, len(known))]


def _student(path: str, teacher: Any) -> tuple[Any, list[str]]:
    """Return the student, with a new head where it knows none of the teacher's classes."""
    from ultralytics.nn.tasks import DetectionModel

    try:
        with config.quiet():
            found = open_model(path)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file makes the loader raise
        raise UserError(f"model={path} cannot be loaded: {reason(error)}") from error
    model: Any = found.model.float()
    check_detector(model, path, "inspects")
    label = f"Student {Path(path).name}, teacher {Path(str(getattr(teacher, 'pt_path', 'teacher'))).name}."
    if match_classes(model.names, teacher.names):
        return model, [label]
    with config.quiet():
        fresh = DetectionModel(model.yaml, ch=input_channels(model), nc=len(teacher.names), verbose=False)
        fresh.names = dict(teacher.names)
        fresh.load(model)
    count = len(teacher.names)
    return fresh, [
        f"{label} The student knew none of the teacher's {count} classes: it has a new, untrained class head."
    ]


def detect(teacher: Teacher, images: torch.Tensor, threshold: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a teacher's detections on one image, one class per anchor.

    Args:
        teacher (Teacher): The teacher, not yet prepared; the branch is read that the host would predict with.
        images (torch.Tensor): Image with shape (1, C, H, W) in [0, 1].
        threshold (float): Smallest class probability.

    Returns:
        (tuple[torch.Tensor, torch.Tensor, torch.Tensor]): Boxes in pixels inside the image with shape (N, 4), strongest
            first, probabilities with shape (N,), and the teacher's class indices with shape (N,).
    """
    if not teacher.dense:
        raise UserError(f"inspect shows a teacher's detections anchor by anchor, and {teacher.not_dense}")
    branch = "one2one" if getattr(teacher.model.model[-1], "end2end", False) else teacher.branches[0]
    output = teacher.prepare(images.device, [branch], "float32")(images)
    taps = View(teacher.strides, tuple(range(len(teacher.strides)))).taps(output, branch)
    assert taps.logits is not None
    probabilities, classes = taps.logits[0].float().sigmoid().max(dim=-1)
    likely = probabilities > threshold
    (height, width), (own_height, own_width) = images.shape[2:], taps.image_size
    limit = taps.feats[0].new_tensor([width, height, width, height], dtype=torch.float32)
    scale = limit / limit.new_tensor([own_width, own_height, own_width, own_height])
    boxes, probabilities, classes = taps.decoded()[0][likely] * scale, probabilities[likely], classes[likely]
    if branch == "one2one":  # one anchor per object already
        kept = probabilities.argsort(descending=True)
    else:
        kept = batched_nms(boxes, probabilities, classes, OVERLAP)
    kept = kept[:MOST]
    return torch.minimum(boxes[kept].clamp_min(0), limit), probabilities[kept], classes[kept]


def load_adapters(criterion: DistillationLoss, weights: Path, teacher: str) -> tuple[frozenset[str], int | None]:
    """Load the adapters that were trained beside a student's weights, as far as they serve this criterion.

    Args:
        criterion (DistillationLoss): Criterion with one teacher.
        weights (Path): The student's file; the state is looked for beside it.
        teacher (str): The teacher's fingerprint.

    Returns:
        (tuple[frozenset[str], int | None]): Methods whose adapters were loaded, and the epoch they are from, counted
            from 0; None where there are none.

    Raises:
        UserError: If the state's adapters have other shapes.
    """
    saved = read_state(weights.parent / FILE)
    if saved is None or teacher not in saved["teachers"]:
        return frozenset(), None
    position, epoch = saved["teachers"].index(teacher), max(saved["epochs"])
    tensors, loaded = saved["epochs"][epoch]["methods"], set()
    for name, modules in criterion.methods.items():
        if name not in saved["methods"] or not any(True for _ in modules.parameters()):
            continue
        prefix = f"{name}.{position}."
        own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        try:
            modules[0].load_state_dict(own)
        except RuntimeError as error:
            raise UserError(
                f"{weights.parent / FILE}: the run's adapters of {name} have another form than asked for; "
                f"leave out keys of {name} that differ from the run's, e.g. those of width or regions"
            ) from error
        loaded.add(name)
    return frozenset(loaded), epoch


def _notes(scene: Scene, criterion: DistillationLoss, epoch: int | None, known: int) -> list[str]:
    """Return what has to be known for reading the pictures."""
    notes = []
    with_adapters = [name for name, module in scene.modules.items() if any(True for _ in module.parameters())]
    if trained := [name for name in with_adapters if name in scene.trained]:
        assert epoch is not None
        notes.append(
            f"Adapters of {', '.join(trained)}: trained, from epoch {epoch + 1} of the student's run ({FILE})."
        )
    if fresh := [name for name in with_adapters if name not in scene.trained]:
        notes.append(
            f"Adapters of {', '.join(fresh)}: untrained, as at the start of a run; "
            f"what depends on them changes in training."
        )
    one = "" if len(criterion.task.assignments) == 1 else " The student's one-to-many branch is shown."
    notes.append(
        f"Labels: {known} of the teacher's {len(scene.boxes)} detections stand in for labelled objects; "
        f"the task assigns {int(scene.targets.positives.sum())} positive anchors to them.{one}"
    )
    values = {
        f"{name}_{part}" if part else name: float(term)
        for name, module in scene.modules.items()
        for part, term in module.parts(scene.student, scene.teacher, scene.targets).items()
    }
    notes.append(
        f"Terms on this image, before gains: {', '.join(f'{unit} {value:.4g}' for unit, value in values.items())}."
    )
    return notes
