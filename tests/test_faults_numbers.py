"""Values that are not finite: a teacher's, a method's in half precision, an image's; and how a run goes on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics.nn.tasks import load_checkpoint

from tests.tiny import overrides_for, rows, set_up, tiny_batch, tiny_criterion, tiny_model
from yolokd import DistillationTrainer
from yolokd.clipping import StepGuard
from yolokd.outputs import Branch, Output
from yolokd.saving.state import FILE, read_state
from yolokd.taps import Taps
from yolokd.terms.clock import start_batch, start_epoch
from yolokd.terms.finite import FiniteTerms, finite_output

pytestmark = pytest.mark.usefixtures("own_start")

METHODS = "dfmsd+pcd+ckd"
WRONG = [math.nan, math.inf, -math.inf]


def spoil(criterion: Any, value: float, where: str = "feats") -> None:
    """Let the teachers of a criterion put out one wrong value."""
    for link in criterion.links:
        healthy = link.teacher.__class__.__call__

        class Broken(link.teacher.__class__):  # type: ignore[name-defined,misc]
            def __call__(self, images: torch.Tensor, healthy: Any = healthy) -> Output:
                output = healthy(self, images)
                branches = {name: replace(part, logits=part.logits.clone()) for name, part in output.branches.items()}
                feats = [feat.clone() for feat in output.feats]
                part = feats[-1] if where == "feats" else branches["one2many"].logits
                part[(0,) * part.ndim] = value
                return replace(output, feats=feats, branches=branches)

        link.teacher.__class__ = Broken


def heal(criterion: Any) -> None:
    """Let them put out their own values again."""
    for link in criterion.links:
        if type(link.teacher).__name__ == "Broken":
            link.teacher.__class__ = link.teacher.__class__.__mro__[1]


def gradients(model: Any, criterion: Any, batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the gradients of the student and of the adapters after one step."""
    model.zero_grad()
    loss, _ = model(batch)
    loss.sum().backward()
    own = {id(parameter) for parameter in criterion.adapters()}
    named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and id(p) not in own}
    adapters = {name: p.grad.clone() for name, p in criterion.methods.named_parameters() if p.grad is not None}
    return named, adapters


def plain_gradients(student: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return the gradients of a step without distillation."""
    del student.criterion
    student.criterion = student.init_criterion()
    student.zero_grad()
    student(batch)[0].sum().backward()
    return {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("where", ["feats", "logits"])
@pytest.mark.parametrize("value", WRONG)
def test_a_step_on_which_the_teacher_failed_is_one_of_plain_training(value: float, where: str) -> None:
    model, criterion = tiny_criterion(METHODS)
    batch = tiny_batch()
    model(batch)[0].sum().backward()  # a healthy step before, so that the queue holds something
    buffers = {k: v.clone() for k, v in criterion.methods["ckd"].named_buffers() if "next" not in k}
    kept = int(buffers["0.queue_valid"].sum())
    plain = copy.deepcopy(model)
    spoil(criterion, value, where)
    student, adapters = gradients(model, criterion, batch)
    expected = plain_gradients(plain, batch)
    assert student.keys() == expected.keys()
    assert all(torch.allclose(student[name], grad, rtol=1e-5, atol=1e-6) for name, grad in expected.items())
    assert all(not grad.any() for grad in adapters.values()) and adapters
    items = criterion(model(batch["img"]), batch)[1]
    assert all(float(items[f"{name}_loss"]) == 0 for name in METHODS.split("+"))
    queue = dict(criterion.methods["ckd"].named_buffers())
    assert torch.isfinite(queue["0.queue"]).all()
    assert int(queue["0.queue_valid"].sum()) == kept > 0
    heal(criterion)
    student, adapters = gradients(model, criterion, batch)
    assert all(torch.isfinite(grad).all() for grad in (*student.values(), *adapters.values()))
    assert any(grad.any() for name, grad in adapters.items() if name.startswith("ckd"))


def test_the_means_of_an_epoch_are_those_of_its_finite_steps_and_the_others_are_counted(said: list[str]) -> None:
    model, criterion = tiny_criterion("dfmsd", kd_decay="constant")
    batch = tiny_batch()
    model(batch)
    expected = float(next(iter(criterion.values.values()))[0])
    spoil(criterion, math.nan)
    model(batch)
    model(batch)
    columns = criterion.columns()
    assert columns["kd/dfmsd"] == pytest.approx(expected)
    assert any("the teacher's output was not finite in 2 of 3 steps" in message for message in said)
    assert any("method=dfmsd: its term was not finite in 2 of 3 steps" in message for message in said)
    said.clear()
    heal(criterion)
    model(batch)
    assert criterion.columns()["kd/dfmsd"] > 0
    assert not said  # each epoch tells its own
    spoil(criterion, math.nan)
    model(batch)
    assert math.isnan(criterion.columns()["kd/dfmsd"])


@pytest.mark.parametrize("value", WRONG)
def test_measured_gains_are_those_without_the_broken_steps(value: float) -> None:
    gains = []
    for broken in (False, True):
        model, criterion = tiny_criterion(METHODS, kd_gain="auto")
        for seed in range(3):
            if broken and seed == 1:
                before = copy.deepcopy(criterion.calibration.state())
                spoil(criterion, value)
                model(tiny_batch(seed=9))
                heal(criterion)
                assert criterion.calibration.state() == {**before, "looks": before["looks"] + 1}
            model(tiny_batch(seed=seed))
        gains.append(criterion.calibration.gains)
    assert all(0 < gain < math.inf for gain in gains[1].values())
    assert gains[0].keys() == gains[1].keys()
    for unit in ("dfmsd", "pcd_grouped"):  # ckd draws other regions after one batch more
        assert gains[1][unit] == pytest.approx(gains[0][unit], rel=0.3)


class Overflowing:
    """A method's `parts` whose term overflows in half precision on the way, through student and adapters."""

    def __init__(self, module: Any):
        self.module = module

    def __call__(self, student: Any, teacher: Any, targets: Any) -> dict[str, torch.Tensor]:
        adapted = self.module.adapters(student.feats)[0]
        return {"": (adapted.half() * 6e4).square().mean().float()}


def test_a_method_that_overflows_in_half_precision_takes_nothing_from_the_others() -> None:
    model, criterion = tiny_criterion("pkd+pcd", kd_decay="constant")
    model.train()
    batch = tiny_batch()
    alone, lonely = tiny_criterion("pcd", kd_decay="constant")
    expected, _ = gradients(alone, lonely, batch)
    criterion.methods["pkd"][0].parts = Overflowing(criterion.methods["pkd"][0])
    term = criterion.methods["pkd"][0].parts(*_taps(model, criterion, batch))[""]
    assert not torch.isfinite(term)
    grads = torch.autograd.grad(torch.where(torch.tensor(False), term, 0.0), criterion.adapters(), allow_unused=True)
    assert any(grad is not None and grad.isnan().any() for grad in grads)  # switching off the term is not enough
    found, adapters = gradients(model, criterion, batch)
    assert all(torch.allclose(found[name], grad, rtol=1e-4, atol=1e-7) for name, grad in expected.items())
    assert adapters and all(not grad.any() for grad in adapters.values())
    assert float(criterion(model(batch["img"]), batch)[1]["pkd_loss"]) == 0


def _taps(model: Any, criterion: Any, batch: dict[str, Any]) -> Any:
    from yolokd.outputs import read_output

    preds = model(batch["img"])
    criterion.task(preds, batch)
    link = criterion.links[0]
    return criterion.pair(link, read_output(preds), link.teacher(batch["img"]), "one2many", batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_under_autocast_with_a_teacher_that_overflows_leave_everything_finite(dtype: torch.dtype) -> None:
    """Its maps are beyond half precision; bfloat16 holds them."""
    source = tiny_model(seed=2)
    for layer in source.model[15].cv2.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.mul_(1e6)
    name = {torch.float16: "float16", torch.bfloat16: "bfloat16"}[dtype]
    model, criterion = tiny_criterion("dfmsd+ckd", teacher=source, kd_teacher_dtype=name, kd_decay="constant")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sound = finite_output(criterion.links[0].teacher(tiny_batch()["img"]))[1]
    assert bool(sound) == (dtype == torch.bfloat16)
    for seed in range(3):
        with torch.autocast("cpu", dtype=dtype):
            loss, _ = model(tiny_batch(seed=seed))
        optimizer.zero_grad()
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0, error_if_nonfinite=True)
        optimizer.step()
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert all(
        torch.isfinite(value).all() for value in criterion.state()["methods"].values() if value.is_floating_point()
    )


@pytest.mark.parametrize(("method", "what"), [("teacher", "kd_teacher_dtype=float32"), ("pcd", "pcd_gain")])
def test_after_twenty_such_steps_the_run_is_stopped_with_the_reason(method: str, what: str) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", kd_decay="constant")
    if method == "teacher":
        spoil(criterion, math.nan)
    else:
        original = criterion.methods["pcd"][0].parts
        criterion.methods["pcd"][0].parts = lambda *taps: {k: v * math.inf for k, v in original(*taps).items()}
    preds, batch = model(tiny_batch()["img"]), tiny_batch()
    with pytest.raises(RuntimeError, match=rf"{method}.*not finite for 20 steps running.*{what}"):
        for _ in range(20):
            criterion(preds, batch)
    assert criterion.watch.steps == 20


def test_what_a_teacher_put_out_is_read_whole_or_not_at_all() -> None:
    draw = torch.Generator().manual_seed(0)

    def output() -> Output:
        part = Branch(torch.randn(2, 5, 3, generator=draw), torch.randn(2, 5, 4, generator=draw))
        return Output([torch.randn(2, 4, 2, 2, generator=draw).bfloat16()], {"one2many": part})

    healthy = output()
    same, sound = finite_output(healthy)
    assert sound
    assert torch.equal(same.feats[0], healthy.feats[0]) and same.feats[0].dtype == torch.bfloat16
    assert torch.equal(same.branches["one2many"].boxes, healthy.branches["one2many"].boxes)
    for name in ("logits", "boxes"):
        broken = output()
        getattr(broken.branches["one2many"], name)[1, 2, 0] = math.nan
        clean, sound = finite_output(broken)
        assert not sound
        assert not clean.feats[0].any() and clean.feats[0].shape == broken.feats[0].shape
        assert not clean.branches["one2many"].logits.any() and clean.branches["one2many"].logits.shape == (2, 5, 3)
    queries = Output([torch.ones(1, 2, 2, 2)], regions=torch.full((1, 3, 4), math.inf))
    clean, sound = finite_output(queries)
    assert not sound and clean.regions is not None and not clean.regions.any()


def test_a_large_half_precision_map_is_sound() -> None:
    """The sum of 90,000 ones is more than float16 can hold, 65,504."""
    _, sound = finite_output(Output([torch.ones(1, 1, 300, 300, dtype=torch.float16)]))
    assert sound


class Steep(nn.Module):
    """A method of one part: the sum of all that it reads, times a slope."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.slope = 1.0

    def parts(self, student: Taps, teacher: Taps, targets: Any) -> dict[str, torch.Tensor]:
        read = [*student.feats, student.logits, student.boxes, student.angles, self.weight]
        return {"": self.slope * torch.stack([value.sum() for value in read]).sum()}


def ones() -> tuple[Taps, list[torch.Tensor]]:
    """Return a student's taps of ones, and the tensors that they are made of."""
    read = [torch.ones(*shape, requires_grad=True) for shape in ((1, 2, 1, 1), (1, 1, 3), (1, 1, 4), (1, 1, 1))]
    return Taps(read[:1], (8,), logits=read[1], boxes=read[2], angles=read[3]), read


def test_an_infinite_slope_leaves_no_gradient_at_anything_that_a_method_reads() -> None:
    module, (student, read) = Steep(), ones()
    module.slope = math.inf
    finite = FiniteTerms({"steep": [module]})
    term = finite.parts("steep", module, student, student, None, torch.tensor(True))[""]
    term.backward()
    assert term.item() == 0 and not finite.sound["steep"]
    assert not any(value.grad.any() for value in (*read, module.weight))


@pytest.mark.parametrize("slopes", [(math.inf, 2.0), (2.0, math.inf)])
def test_a_method_that_acts_twice_in_a_step_is_sound_where_both_were(slopes: tuple[float, float]) -> None:
    """As on two branches of a head: its parameters stay, and taps have the gradients of their own branch."""
    module = Steep()
    finite = FiniteTerms({"steep": [module]})
    total, branches = torch.zeros(()), []
    for slope in slopes:
        module.slope = slope
        student, read = ones()
        total = total + finite.parts("steep", module, student, student, None, torch.tensor(True))[""]
        branches.append(read)
    total.backward()
    assert total.item() == 2 * (2 + 3 + 4 + 1 + 1) and not finite.sound["steep"]
    assert module.weight.grad.tolist() == [0.0]
    for slope, read in zip(slopes, branches):
        assert all(value.grad.unique().tolist() == [2.0 if slope == 2 else 0.0] for value in read)
    finite.begin()  # the next step is judged by itself
    module.slope = 3.0
    student, _ = ones()
    finite.parts("steep", module, student, student, None, torch.tensor(True))[""].backward()
    assert finite.sound["steep"] and module.weight.grad.tolist() == [3.0]


# Steps left out -------------------------------------------------------------------------------------------------------


def test_steps_that_mixed_precision_left_out_are_counted_and_bounded(said: list[str]) -> None:
    guard, scale = StepGuard(), 65536.0
    for factor in (1, 1, 0.5, 1, 0.5, 0.5, 1, 2, 1):
        scale *= factor
        guard.see_scale(scale)
    guard.tell()
    assert said == ["WARNING ⚠️ steps left out in this epoch because gradients were not finite: 3"] or any(
        message.endswith("not finite: 3") for message in said
    )
    guard.tell()
    assert len(said) == 1
    with pytest.raises(RuntimeError, match="not finite for 20 steps running"):
        for _ in range(20):
            scale /= 2
            guard.see_scale(scale)


def test_steps_left_out_take_two_lines_however_many_they_are(said: list[str]) -> None:
    guard, parameter = StepGuard(), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    for step in range(50):
        guard.check(torch.tensor(math.nan if step % 2 else 1.0), optimizer)
    guard.tell()
    assert len(said) == 2 and said[1].endswith(": 25")


# Whole runs -----------------------------------------------------------------------------------------------------------


def test_a_teacher_that_fails_on_some_batches_costs_their_terms_alone(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path], said: list[str]
) -> None:
    """Also on the last batch of an epoch, where the host would take a NaN for a reason to load the last checkpoint."""
    trainer: Any = DistillationTrainer(
        overrides=overrides_for(
            tmp_path, tiny_data, method=METHODS, teacher=str(tiny_teacher("yolov8n")), epochs=3, batch=2, ckd_queue=64
        )
    )

    def change(trainer: Any) -> None:
        heal(trainer.criterion)
        if trainer.epoch == 1 and trainer.criterion.clock.step != 1:
            spoil(trainer.criterion, math.nan)

    trainer.add_callback("on_train_batch_start", change)
    trainer.train()
    assert trainer.nan_recovery_attempts == 0
    found = rows(trainer.save_dir)
    assert [row["epoch"] for row in found] == [1, 2, 3]
    for row in found:
        assert all(math.isfinite(value) for key, value in row.items() if not key.startswith("val/")), row
    assert any("the teacher's output was not finite in 2 of 3 steps" in message for message in said)
    for path in (trainer.last, trainer.best):
        assert all(torch.isfinite(value).all() for value in load_checkpoint(path)[0].state_dict().values())
    state = read_state(trainer.wdir / FILE)
    assert state is not None
    for epoch in state["epochs"].values():
        assert all(torch.isfinite(v).all() for v in epoch["methods"].values() if v.is_floating_point())


def test_the_hosts_recovery_brings_back_adapters_gains_and_queue(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path]
) -> None:
    trainer: Any = DistillationTrainer(
        overrides=overrides_for(
            tmp_path, tiny_data, method=METHODS, teacher=str(tiny_teacher("yolov8n")), epochs=3, ckd_queue=64
        )
    )
    seen: list[Any] = []
    broken: list[bool] = []

    def begin(trainer: Any) -> None:
        seen.append(copy.deepcopy(trainer.criterion.state()))

    def spoil_student(trainer: Any) -> None:
        if trainer.epoch == 1 and trainer.criterion.clock.step == 2 and not broken:
            broken.append(True)
            trainer.model.model[0].conv.weight.data.fill_(math.nan)

    trainer.add_callback("on_train_epoch_start", begin)
    trainer.add_callback("on_train_batch_start", spoil_student)
    trainer.train()
    assert broken and len(seen) == 4
    assert seen[1]["calibration"] == seen[2]["calibration"]
    assert seen[1]["methods"].keys() == seen[2]["methods"].keys()
    assert all(torch.equal(value, seen[2]["methods"][key]) for key, value in seen[1]["methods"].items())
    assert bool(seen[2]["methods"]["ckd.0.queue_valid"].any())
    assert all(torch.isfinite(value).all() for value in load_checkpoint(trainer.last)[0].state_dict().values())
    assert [row["epoch"] for row in rows(trainer.save_dir)] == [1, 2, 3]


def test_guards_do_not_wait_for_the_device(
    tmp_path: Path, tiny_data: Path, tiny_teacher: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step reads no value from the device, apart from every twentieth."""
    trainer: Any = set_up(
        tmp_path, tiny_data, method="dfmsd", teacher=str(tiny_teacher("yolov8n")), kd_gain=1.0, kd_decay="constant"
    )
    start_epoch(trainer)
    start_batch(trainer)
    criterion, batch = trainer.criterion, tiny_batch()
    read: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def noted(self: torch.Tensor, original: Any = original, name: str = name) -> Any:
            read.append(name)
            return original(self)

        monkeypatch.setattr(torch.Tensor, name, noted)
    from yolokd.outputs import read_output

    preds = trainer.model(batch["img"])
    criterion.task(preds, batch)
    read.clear()
    criterion.finite.begin()
    output = read_output(preds)
    units = criterion._units(output, batch)
    criterion._note(units, {"dfmsd": units["dfmsd"][1]}, 1.0)
    units["dfmsd"][1].backward()
    assert not read
