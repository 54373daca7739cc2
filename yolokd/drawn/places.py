"""Where a demo writes, and the student that it trains there."""

from __future__ import annotations

from pathlib import Path

from yolokd.errors import UserError

TEACHER = "yolov8n"
STUDENT_WIDTH = 0.125  # half of the teacher's
STUDENT = "student.yaml"
MARK = "# the student of `yolokd demo`\n"  # by which a demo knows its folder again
TAKEN = (STUDENT, "teacher", "alone", "distilled", "demo.json", "demo.png")


def free_folder(out: str) -> Path:
    """Return the whole path of a demo's folder, which may hold an earlier demo.

    Args:
        out (str): The folder as it was given.

    Raises:
        UserError: If it is no folder, or holds files of somebody else where the demo would write.
    """
    folder = Path(out).resolve()
    if not (above := next(path for path in (folder, *folder.parents) if path.exists())).is_dir():
        raise UserError(f"out={out}: {above} is a file, not a folder; choose another, e.g. out=runs/demo")
    student = folder / STUDENT
    if student.is_file() and student.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        return folder
    if found := [name for name in TAKEN if (folder / name).exists()]:
        raise UserError(f"out={out} holds {found[0]} that no demo wrote; choose another folder, e.g. out=runs/demo")
    return folder


def write_student(folder: Path, classes: int) -> str:
    """Write the student's model file, a yolov8n of another width, and return its path."""
    from ultralytics.nn.tasks import yaml_model_load
    from ultralytics.utils import YAML

    model = yaml_model_load(f"{TEACHER}.yaml")
    depth = model["scales"][model["scale"]][0]
    for key in ("scales", "scale", "yaml_file"):
        model.pop(key, None)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STUDENT
    own = {"nc": classes, "depth_multiple": depth, "width_multiple": STUDENT_WIDTH}
    YAML.save(path, {**own, **{**model, "nc": classes}}, header=MARK)
    return str(path)
