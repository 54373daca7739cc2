"""Distil a detector in Python, from data to ONNX: python examples/distill.py [--epochs 20] [--imgsz 96].

Everything is made here: drawn images, a teacher trained on them, the student. With data and weights of your own only
the part "Distil" remains: a student, a teacher that knows the same classes, and one extra argument to `train`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ultralytics import YOLO

from yolokd import DistillationTrainer
from yolokd.drawn.shapes import draw_dataset
from yolokd.export import export_and_check


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil a small detector from a larger one, on drawn images.")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the student; the teacher gets as many")
    parser.add_argument("--imgsz", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=400, help="training images")
    parser.add_argument("--out", default="runs/example", help="folder of all files")
    args = parser.parse_args()
    out = Path(args.out).resolve()

    # Data: any dataset in YOLO layout will do.
    name = f"shapes_{args.imgsz}px_{args.images}images"
    data = draw_dataset(
        out / name, images=(args.images, max(args.images // 4, 4)), imgsz=args.imgsz, classes=10, noise=0.5
    )

    # Ultralytics' own arguments, the same for teacher and student. These suit short runs from random weights; with
    # pretrained weights, leave out the second line.
    settings = {
        "data": data,
        "imgsz": args.imgsz,
        "epochs": args.epochs,
        "batch": 16,
        "project": str(out),
        "exist_ok": True,
    }
    settings |= {"nbs": 16, "optimizer": "AdamW", "lr0": 0.002, "warmup_epochs": 1, "mosaic": 0.0, "scale": 0.2}

    # Teacher: a plain Ultralytics run. `teacher="yolov8x.pt"` takes ready weights instead.
    YOLO("yolov8s.yaml").train(name="teacher", **settings)
    teacher = out / "teacher" / "weights" / "best.pt"

    # Distil: the same call with our trainer and a teacher. All other keys are in `yolokd cfg`.
    student = YOLO("yolov8n.yaml")
    student.train(trainer=DistillationTrainer, teacher=teacher, method="bckd", name="student", **settings)
    print(f"\nAP of the distilled student: {100 * student.metrics.box.map:.1f}")

    # The student is an ordinary checkpoint; `student.export(format="onnx")` works too. This compares the file as well.
    path, parity = export_and_check(out / "student" / "weights" / "best.pt", {"format": "onnx", "imgsz": args.imgsz})
    assert parity is not None
    print(parity.summary())
    print(f"exported: {path}")


if __name__ == "__main__":
    main()
