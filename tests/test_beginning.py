"""The student as it starts among those that best.pt is chosen from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel

from tests.tiny import IMGSZ, overrides_for, rows, save_model, tiny_model, train
from tests.widening import widened
from yolokd import DistillationTrainer
from yolokd.errors import UserError

NOTHING_LEARNED = {"lr0": 0.5, "warmup_epochs": 0.0, "warmup_bias_lr": 0.5}


@pytest.fixture(scope="module")
def seen_by_the_teacher(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The data.yaml of validation images labelled with what a model finds on them, and its twice as wide twin."""
    folder = tmp_path_factory.mktemp("seen")
    data = shutil.copytree(tiny_data.parent, folder / "shapes") / tiny_data.name
    data.write_text(data.read_text(encoding="utf-8").replace(str(tiny_data.parent), str(data.parent)))
    small = YOLO(str(save_model(tiny_model(seed=1), folder / "small.pt")))
    for image in sorted((data.parent / "images" / "val").iterdir()):
        found = small.predict(image, imgsz=IMGSZ, conf=0.001, max_det=3, device="cpu", verbose=False)[0].boxes
        lines = [f"{int(c)} {' '.join(f'{x:.6f}' for x in box)}" for c, box in zip(found.cls, found.xywhn.tolist())]
        (data.parent / "labels" / "val" / f"{image.stem}.txt").write_text("\n".join(lines) + "\n")
    return data, save_model(widened(tiny_model(seed=1), tiny_model("yolov8s", seed=2)), folder / "teacher.pt")


def weights(path: Path) -> dict[str, torch.Tensor]:
    model = torch.load(path, weights_only=False)["model"]
    assert type(model) is DetectionModel
    return {key: value.float() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["bckd", "fit"])
def test_it_is_best_where_no_epoch_is_better(
    tmp_path: Path, seen_by_the_teacher: tuple[Path, Path], said: list[str], method: str
) -> None:
    """best.pt is then the fitted student, which nothing was learned into, and the log says so."""
    data, teacher = seen_by_the_teacher
    run = train(tmp_path, data, teacher=str(teacher), method=method, **NOTHING_LEARNED)
    assert run.start_fitness is not None and run.start_fitness > max(
        row["metrics/mAP50-95(B)"] for row in rows(run.save_dir)
    )
    assert run.best_fitness == run.start_fitness
    best, last = weights(run.best), weights(run.last)
    fitted = train(
        tmp_path, data, teacher=str(teacher), method=method, lr0=0.0, name="still", warmup_bias_lr=0.0, val=False
    )
    still = weights(fitted.last)
    names = [key for key in best if key.endswith(("weight", "bias"))]
    assert all(torch.allclose(best[key], still[key], atol=2e-3) for key in names)
    assert not all(torch.allclose(last[key], still[key], atol=2e-3) for key in names)
    assert any("best.pt is the student before its first step" in text for text in said)
    kept: Any = torch.load(run.best, weights_only=False)
    assert kept["train_metrics"]["fitness"] == run.start_fitness and kept["epoch"] == -1
    assert YOLO(str(run.best)).val(data=str(data), imgsz=IMGSZ, device="cpu", plots=False).box.map == pytest.approx(
        run.start_fitness, abs=0.02
    )
    assert {path.name for path in run.wdir.iterdir()} <= {"best.pt", "last.pt", "kd_state.pt"}


def test_an_epoch_as_good_is_taken(tmp_path: Path, tiny_data: Path, tiny_teacher: Any, said: list[str]) -> None:
    run = train(tmp_path, tiny_data, teacher=str(tiny_teacher("yolov8s")), method="bckd", epochs=1)
    assert run.start_fitness == run.fitness == run.best_fitness == 0
    assert torch.load(run.best, weights_only=False)["train_metrics"]["fitness"] == 0
    best, last = weights(run.best), weights(run.last)
    assert all(torch.equal(best[key], last[key]) for key in best)
    assert not any("before its first step, of fitness" in text for text in said)


@pytest.mark.parametrize("settings", [{"kd_init": "none"}, {"val": False}, {"method": "none"}])
def test_a_start_is_validated_where_it_was_fitted_and_epochs_are(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Any, said: list[str], settings: dict[str, Any]
) -> None:
    teacher = {} if "method" in settings else {"teacher": str(tiny_teacher("yolov8s")), "method": "bckd"}
    run = train(tmp_path, tiny_data, epochs=1, **teacher, **settings)
    assert run.start_fitness is None and run.best.exists()
    assert not any("before its first step" in text for text in said)


def test_a_run_goes_on_beside_it(tmp_path: Path, seen_by_the_teacher: tuple[Path, Path]) -> None:
    """A resumed run still measures its epochs against the start."""
    data, teacher = seen_by_the_teacher
    trainer = DistillationTrainer(
        overrides=overrides_for(tmp_path, data, teacher=str(teacher), method="bckd", **NOTHING_LEARNED)
    )

    def stop(trainer: Any) -> None:
        raise KeyboardInterrupt

    trainer.add_callback("on_model_save", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    begun = torch.load(trainer.best, weights_only=False)
    with pytest.raises(UserError, match=r"best\.pt is the student before its first step, .* give the last\.pt"):
        DistillationTrainer(overrides={"resume": str(trainer.best), "device": "cpu"}).train()
    run = DistillationTrainer(overrides={"resume": str(trainer.last), "device": "cpu"})
    run.train()
    assert run.start_epoch == 1 and run.best_fitness == trainer.start_fitness
    best = weights(run.best)
    assert all(torch.equal(best[key], value.float()) for key, value in begun["ema"].state_dict().items())
