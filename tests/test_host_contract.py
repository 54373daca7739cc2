"""What yolokd relies on in Ultralytics, seam by seam: when a release breaks one, the test's name says which.

Seams that need a whole run are pinned where that run is: saving, resume, NaN recovery, the image stream and the
validation in test_trainer.py, the launch on several devices in test_ddp.py, raw outputs in test_teacher.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.torch_utils import ModelEMA, strip_optimizer

from tests.task_data import MODELS
from tests.tiny import overrides_for, save_model, set_up, tiny_args, tiny_batch, tiny_criterion, tiny_model
from yolokd import config
from yolokd.config import consistency
from yolokd.errors import UserError
from yolokd.losses import LOSSES
from yolokd.terms.calibration import gradient_norm

Teacher = Callable[[str], Path]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, tiny_teacher: Teacher) -> Any:
    """A two-branch run with MuSGD, before its first step."""
    return set_up(
        tmp_path_factory.mktemp("contract"),
        tiny_data,
        model="yolo26n.yaml",
        method="dfmsd+ckd",
        teacher=str(tiny_teacher("yolov8n")),
        optimizer="MuSGD",
    )


def test_a_model_asks_its_criterion_with_its_output_and_the_batch() -> None:
    model, batch = tiny_model(), tiny_batch()
    calls = []
    model.train().criterion = lambda preds, batch: calls.append((preds, batch)) or (torch.zeros(1), {})
    model(batch)
    model.loss(batch, preds="given")
    assert calls[0][0].keys() == {"boxes", "scores", "feats"}
    assert calls[1] == ("given", batch)


def test_a_criterion_returns_terms_times_the_batch_and_a_dict_of_detached_items() -> None:
    model = tiny_model().train()
    model.args = tiny_args()
    criterion = model.init_criterion()
    for images in (1, 2):
        batch = tiny_batch(images=images)
        loss, items = criterion(model(batch["img"]), batch)
        assert torch.allclose(loss, torch.stack(list(items.values())) * images)
        assert not any(value.requires_grad for value in items.values())


def test_setting_a_registered_criterion_to_none_leaves_a_checkpoint_without_a_loss() -> None:
    """Saving: the reason why it is taken off altogether."""
    model = tiny_model().train()
    model.args = tiny_args()
    model.criterion = nn.Module()
    model.criterion = None
    assert "criterion" in model._modules
    with pytest.raises(TypeError, match="cannot assign"):
        model.loss(tiny_batch())


def test_the_criterion_of_a_two_branch_model_cannot_replace_a_registered_one() -> None:
    """Resume: the reason why ours is off meanwhile."""
    model = tiny_model("yolo26n")
    model.args = tiny_args()
    model.criterion = nn.Module()
    with pytest.raises(TypeError, match="cannot assign"):
        model.criterion = model.init_criterion()


def test_the_ema_is_a_deep_copy_in_evaluation_without_gradients() -> None:
    model, criterion = tiny_criterion("dfmsd")
    ema = ModelEMA(model).ema
    assert ema.criterion is not criterion
    assert not any(module.training for module in ema.modules())
    assert not any(parameter.requires_grad for parameter in ema.parameters())
    assert all(parameter.requires_grad for parameter in criterion.adapters())


def test_the_ema_follows_the_students_state_alone() -> None:
    model, _ = tiny_criterion("dfmsd")
    ema = ModelEMA(model)
    del ema.ema.criterion
    ema.update(model)
    assert ema.updates == 1


def test_class_weights_are_read_when_a_criterion_is_built() -> None:
    model = tiny_model()
    model.args = tiny_args()
    model.class_weights = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(v8DetectionLoss(model).class_weights.view(-1), model.class_weights)


def test_the_assigner_is_a_module_that_returns_five_with_scores_third_and_positives_fourth() -> None:
    model = tiny_model().train()
    model.args = tiny_args()
    criterion, kept = model.init_criterion(), []
    criterion.assigner.register_forward_hook(lambda module, inputs, output: kept.append(output))
    batch = tiny_batch()
    criterion(model(batch["img"]), batch)
    _, _, scores, positives, _ = kept[0]
    assert scores.shape == (2, 84, 3)
    assert positives.shape == (2, 84)
    assert positives.dtype == torch.bool
    assert positives.any()
    assert not scores.amax(-1)[~positives].any()


def test_two_branch_criteria_hold_a_criterion_for_each_and_their_weights() -> None:
    model = tiny_model("yolo26n")
    model.args = tiny_args(epochs=11)
    criterion = model.init_criterion()
    assert isinstance(criterion.one2many.assigner, nn.Module)
    assert isinstance(criterion.one2one.assigner, nn.Module)
    weights = []
    for _ in range(11):
        weights.append((criterion.o2m, criterion.o2o))
        criterion.update()
    assert weights[0] == pytest.approx((0.8, 0.2))
    assert weights[-1] == pytest.approx((0.1, 0.9))
    assert criterion.updates == 11


def test_the_one_to_one_branch_sends_nothing_to_the_neck() -> None:
    model = tiny_model("yolo26n").train()
    preds = model(tiny_batch()["img"])
    neck = list(model.model[-2].parameters())
    grads = torch.autograd.grad(preds["one2one"]["scores"].sum(), neck, allow_unused=True, retain_graph=True)
    assert all(grad is None for grad in grads)
    grads = torch.autograd.grad(preds["one2many"]["scores"].sum(), neck)
    assert all(grad is not None for grad in grads)


def test_the_host_clips_all_parameters_together_to_ten(tmp_path: Path, tiny_data: Path) -> None:
    trainer = DetectionTrainer(
        overrides={k: v for k, v in overrides_for(tmp_path, tiny_data).items() if k not in config.DEFAULTS}
    )
    trainer._setup_train()
    norms = []
    trainer.scaler.step = lambda optimizer: norms.append(
        nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None])
    )
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer_step()
    assert float(norms[0]) == pytest.approx(10, rel=1e-3)


def test_the_optimizer_finds_the_adapters_and_leaves_biases_undecayed(ready: Any) -> None:
    """With MuSGD, matrices and filters go to muon."""
    groups = {
        id(parameter): (group["param_group"], group["weight_decay"])
        for group in ready.optimizer.param_groups
        for parameter in group["params"]
    }
    seen = set()
    for name, parameter in ready.criterion.named_parameters():
        group, decay = groups[id(parameter)]
        if parameter.ndim in {2, 4}:
            assert group == "muon", name
        else:
            assert (group, decay) == ("bias", 0.0), name
        seen.add(group)
    assert seen == {"muon", "bias"}


@pytest.mark.parametrize("method", LOSSES)
def test_no_parameter_of_ours_is_named_like_what_the_host_freezes_or_ducks_for(method: str) -> None:
    model, criterion = tiny_criterion(method)
    for name, parameter in model.named_parameters():
        if not name.startswith("criterion."):
            continue
        assert ".dfl" not in name
        assert not any(f"model.{layer}." in name for layer in range(40))
        assert parameter.ndim != 1 or "bias" in name or "logit_scale" in name, f"{name} would decay"
    for name in ("student_model", "teacher_model", "projector"):
        assert not hasattr(model, name)
        assert not hasattr(criterion, name)


def test_our_keys_are_legal_once_they_are_in_the_base() -> None:
    args = get_cfg(config.merged_base(), {"method": "dfmsd", "epochs": 3})
    assert (args.method, args.epochs, args.kd_share) == ("dfmsd", 3, "auto")
    with pytest.raises(SyntaxError, match="kd_shar"):
        get_cfg(config.merged_base(), {"kd_shar": 0.3})
    with pytest.raises(SyntaxError, match="method"):
        get_cfg(DEFAULT_CFG_DICT, {"method": "dfmsd"})


def test_the_validator_takes_the_hosts_keys_alone(ready: Any, tmp_path: Path) -> None:
    with pytest.raises(SyntaxError):
        DetectionValidator(save_dir=tmp_path, args=copy.copy(ready.args))
    assert not set(vars(ready.validator.args)) & set(config.DEFAULTS)
    assert ready.args.method == "dfmsd+ckd"


def test_the_final_strip_drops_our_keys(tmp_path: Path) -> None:
    path = save_model(tiny_model(), tmp_path / "last.pt")
    content = torch.load(path, weights_only=False)
    torch.save({**content, "train_args": {"method": "dfmsd", "epochs": 3}}, path)
    kept = strip_optimizer(path)["train_args"]
    assert kept["epochs"] == 3
    assert "method" not in kept


def test_the_end_of_a_run_strips_in_place_what_last_and_best_name(tmp_path: Path) -> None:
    """Ending: the reason why they name copies then, which the evaluation reads too."""
    seen: list[Path] = []
    trainer: Any = SimpleNamespace(
        last=save_model(tiny_model(), tmp_path / "copies" / "last.pt"),
        best=save_model(tiny_model(), tmp_path / "copies" / "best.pt"),
        args=SimpleNamespace(plots=False),
        epoch=0,
        run_callbacks=lambda event: None,
    )

    class Validator:
        args = SimpleNamespace()

        def __call__(self, model: Path) -> dict[str, float]:
            seen.append(Path(model))
            return {"fitness": 0.0}

    trainer.validator = Validator()
    before = {path: path.stat().st_mtime_ns for path in (trainer.last, trainer.best)}
    DetectionTrainer.final_eval(trainer)
    assert seen == [trainer.best]
    assert sorted(path.name for path in tmp_path.rglob("*.pt")) == ["best.pt", "last.pt"]
    assert all(path.stat().st_mtime_ns > time for path, time in before.items())


def test_a_run_whose_epochs_are_all_done_cannot_be_resumed_by_the_host() -> None:
    """Ending: the reason why such a run does not come so far."""
    trainer: Any = SimpleNamespace(resume=True, epochs=3, args=SimpleNamespace(model="last.pt"))
    with pytest.raises(AssertionError, match="finished"):
        DetectionTrainer.resume_training(trainer, {"epoch": 2, "optimizer": {}})


def test_the_validators_loss_keys_are_the_items_of_the_last_step(ready: Any) -> None:
    assert ready.label_loss_items({"dfmsd_loss": torch.tensor(0.25)}, prefix="val") == {"val/dfmsd_loss": 0.25}


def test_training_quantised_is_refused_with_a_teacher() -> None:
    with pytest.raises(UserError, match="quantize=8 does not go with a teacher"):
        consistency.validate({**config.merged_base(), "method": "dfmsd", "teacher": "yolov8x.pt", "quantize": 8})


def test_a_compiled_graph_hides_the_neck_maps_from_the_task() -> None:
    """Compile: the reason why gains are measured through the head once more."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neck, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            feat = self.neck(x)
            return {"feats": feat, "scores": self.head(feat)}

    model = Model()
    norms = []
    for forward in (model, torch.compile(model, backend="aot_eager")):
        preds = forward(torch.ones(3, 4))
        norms.append(float(gradient_norm(preds["scores"].square().sum(), [preds["feats"]])))
    assert norms[0] > 0
    assert norms[1] == 0


def test_criterion_and_model_do_not_hold_each_other_as_modules() -> None:
    model, criterion = tiny_criterion("dfmsd")
    criterion.replay_through(model.model[-1])
    assert len(list(model.modules())) == len(set(map(id, model.modules())))
    assert not any(module is model.model[-1] for module in criterion.modules())
    twin = copy.deepcopy(model)
    assert twin.criterion.head is twin.model[-1]


def test_autobatch_reads_stride_names_and_yaml_of_what_it_profiles() -> None:
    from yolokd.preflight import Beside

    model, criterion = tiny_criterion("dfmsd")
    beside = Beside(model, criterion)
    assert torch.equal(beside.stride, model.stride)
    assert beside.names == model.names
    assert beside.yaml == model.yaml  # where it finds the channels of the images
    assert copy.deepcopy(beside).criterion.links[0].teacher is criterion.links[0].teacher


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n", "yolov8n-seg", "yolov8n-pose", "yolov8n-obb"])
def test_autobatch_profiles_the_methods_too(family: str) -> None:
    """It sums all tensors of an output and goes backward; the run's own criterion stays as it was."""
    from yolokd.preflight import Beside

    kind = {"seg": "segment"}.get(suffix := family.partition("-")[2], suffix) or "detect"
    student = tiny_model(family, seed=1, task=MODELS[kind])
    _, criterion = tiny_criterion("dfmsd+ckd+bckd" if "-" not in family else "dfmsd", student=student, kd_gain="auto")
    before = copy.deepcopy(criterion.state())
    beside = copy.deepcopy(Beside(student, criterion)).train()
    outputs = beside(torch.rand(2, 3, 64, 64, requires_grad=True))
    losses = outputs[-1]
    assert len(losses) > len(criterion.methods) and torch.isfinite(losses).all()
    assert all(float(losses[-1 - index]) > 0 for index in range(len(criterion.methods)))
    assert isinstance(outputs, list)  # which older releases sum up alone
    sum(part.sum() for part in outputs).backward()
    assert all(adapter.grad is not None for adapter in beside.criterion.adapters())
    assert str(criterion.state()) == str(before) and criterion.calibration.window == 0


def test_the_trainers_epochs_are_read_live() -> None:
    """With time= the host estimates them anew after each epoch."""
    from yolokd.terms.clock import start_epoch

    _, criterion = tiny_criterion("dfmsd")
    trainer = SimpleNamespace(
        criterion=criterion,
        epoch=4,
        epochs=10,
        start_epoch=0,
        train_loader=[0],
        args=SimpleNamespace(close_mosaic=0),
    )
    start_epoch(trainer)
    first = criterion.clock.progress
    trainer.epochs = 5
    start_epoch(trainer)
    assert (first, criterion.clock.progress) == pytest.approx((0.4, 0.8))


def test_restricted_loading_is_switched_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host reads its switch at every load and when it builds a model, so that turning it on for a while works."""
    from ultralytics.nn import tasks

    class Strange(nn.Conv2d):
        """A class that the host does not know."""

    monkeypatch.setattr("tests.test_host_contract.Strange", Strange, raising=False)
    Strange.__qualname__ = "Strange"
    good, bad = save_model(tiny_model(), tmp_path / "good.pt"), tiny_model()
    bad.model[0].conv.__class__ = Strange
    save_model(bad, tmp_path / "bad.pt")
    described = {**tasks.yaml_model_load("yolov8n.yaml"), "activation": "[nn.SiLU()][0]"}
    for switch in (False, True):
        monkeypatch.setattr(tasks, "SAFE_LOAD", switch)
        assert tasks._SafeLoad.SUPPORTED and tasks._SafeLoad.restricted() is switch
        tasks.load_checkpoint(good)
        if not switch:
            tasks.load_checkpoint(tmp_path / "bad.pt")
            tasks.DetectionModel(described, verbose=False)
            continue
        with pytest.raises(Exception, match=r"outside the supported|Unsupported|not an allowed"):
            tasks.load_checkpoint(tmp_path / "bad.pt")
        with pytest.raises(TypeError, match="restricted model load"):
            tasks.DetectionModel(described, verbose=False)
