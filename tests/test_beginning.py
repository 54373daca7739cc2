"""The student as it starts among those that best.pt is chosen from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import DetectionModel

from tests.tiny import overrides_for, save_model, tiny_model, train
from tests.widening import widened
from yolokd import DistillationTrainer
from yolokd.errors import UserError

NOTHING_STAYS = {"lr0": 0.5, "warmup_epochs": 0.0, "warmup_bias_lr": 0.5}
NOTHING_MOVES = {"lr0": 0.0, "warmup_bias_lr": 0.0}


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A teacher that a student of half its width can be fitted to exactly."""
    return str(save_model(widened(tiny_model(seed=1), tiny_model("yolov8s", seed=2)), tmp_path / "teacher.pt"))


def judge(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Let validations give these values of fitness, one after the other, and be the host's in all else."""
    left, original = iter(values), BaseTrainer.validate

    def validate(trainer: Any) -> tuple[Any, float]:
        before, (metrics, _), value = trainer.best_fitness, original(trainer), next(left)
        trainer.best_fitness = value if before is None else max(before, value)
        return metrics, value

    monkeypatch.setattr(BaseTrainer, "validate", validate)


def weights(path: Path) -> dict[str, torch.Tensor]:
    model = torch.load(path, weights_only=False)["model"]
    assert type(model) is DetectionModel
    return {key: value.float() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("method", ["bckd", "fit"])
def test_it_is_best_where_no_epoch_is_better(
    tmp_path: Path, tiny_data: Path, teacher: str, said: list[str], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """best.pt is then the fitted student, which nothing was learned into, and the log says so."""
    fitted = train(tmp_path, tiny_data, teacher=teacher, method=method, name="still", val=False, **NOTHING_MOVES)
    judge(monkeypatch, 0.5, 0.2, 0.4)
    run = train(tmp_path, tiny_data, teacher=teacher, method=method, **NOTHING_STAYS)
    assert run.start_fitness == run.best_fitness == 0.5
    best, last, still = weights(run.best), weights(run.last), weights(fitted.last)
    names = [key for key in best if key.endswith(("weight", "bias"))]
    assert all(torch.allclose(best[key], still[key], atol=2e-3) for key in names)
    assert not all(torch.allclose(last[key], still[key], atol=2e-3) for key in names)
    assert any("best.pt is the student before its first step, of fitness 0.500" in text for text in said)
    kept: Any = torch.load(run.best, weights_only=False)
    assert kept["train_metrics"]["fitness"] == 0.5 and kept["epoch"] == -1
    assert {path.name for path in run.wdir.iterdir()} <= {"best.pt", "last.pt", "kd_state.pt"}


@pytest.mark.parametrize("values", [(0.5, 0.6, 0.1), (0.5, 0.5, 0.1), (0.5, 0.2, 0.6), (0.5, 0.2, 0.5)])
def test_an_epoch_that_reaches_it_is_best(
    tmp_path: Path,
    tiny_data: Path,
    teacher: str,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    values: tuple[float, ...],
) -> None:
    judge(monkeypatch, *values)
    run = train(tmp_path, tiny_data, teacher=teacher, method="fit", **NOTHING_STAYS)
    best, last = weights(run.best), weights(run.last)
    assert all(torch.equal(best[key], last[key]) for key in best) == (values[2] > values[1])
    assert not any("before its first step, of fitness" in text for text in said)


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


def test_a_run_goes_on_beside_it(
    tmp_path: Path, tiny_data: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run still measures its epochs against the start."""
    judge(monkeypatch, 0.5, 0.2, 0.4)
    trainer = DistillationTrainer(
        overrides=overrides_for(tmp_path, tiny_data, teacher=teacher, method="bckd", **NOTHING_STAYS)
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
