"""The criterion is the task's own, followed by one term per method, and nothing of the student changes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.nn.tasks import DetectionModel

from tests.tiny import tiny_batch, tiny_criterion, tiny_model
from yolokd.errors import UserError
from yolokd.losses import LOSSES
from yolokd.outputs import Output, read_output
from yolokd.terms.calibration import BATCHES, gradient_norm, replayed
from yolokd.terms.clock import start_batch, start_epoch

FAMILIES = ("yolov8n", "yolo26n")
TASK = {"yolov8n": ["box_loss", "cls_loss", "dfl_loss"], "yolo26n": ["box_loss", "cls_loss", "l1_loss"]}


class Counting:
    """A teacher that counts its calls."""

    def __init__(self, teacher: Any):
        self.teacher, self.calls = teacher, 0

    def __call__(self, images: torch.Tensor) -> Any:
        self.calls += 1
        return self.teacher(images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["teacher"], name)


def count_teachers(criterion: Any) -> list[Counting]:
    criterion.links = [replace(link, teacher=Counting(link.teacher)) for link in criterion.links]
    return [link.teacher for link in criterion.links]


def record(module: Any) -> list[tuple[Any, Any, Any, dict[str, torch.Tensor]]]:
    """Keep what a method is given and returns."""
    calls: list[tuple[Any, Any, Any, dict[str, torch.Tensor]]] = []
    original = module.parts

    def parts(student: Any, teacher: Any, targets: Any) -> dict[str, torch.Tensor]:
        calls.append((student, teacher, targets, original(student, teacher, targets)))
        return calls[-1][-1]

    module.parts = parts
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_tasks_followed_by_one_term_per_method_times_the_batch(family: str) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", family, family)
    batch = tiny_batch(images=3)
    preds = model(batch["img"])
    loss, items = criterion(preds, batch)
    task, task_items = criterion.task.base(preds, batch)
    assert torch.equal(loss[: len(task)], task)
    assert list(items) == [*TASK[family], "dfmsd_loss", "pcd_loss"]
    assert all(torch.equal(items[key], value) for key, value in task_items.items())
    assert torch.equal(loss[len(task) :], torch.stack([items["dfmsd_loss"], items["pcd_loss"]]) * 3)
    assert min(float(items["dfmsd_loss"]), float(items["pcd_loss"])) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tasks_terms_are_those_of_the_plain_student(family: str) -> None:
    model, _ = tiny_criterion("dfmsd+pcd", family, family)
    plain = tiny_model(family, seed=1).train()
    plain.args, plain.nc = model.args, model.nc
    loss, items = model(tiny_batch())
    expected, expected_items = plain(tiny_batch())
    assert torch.equal(loss[:3], expected)
    assert all(torch.equal(items[key], value) for key, value in expected_items.items())


def test_a_term_is_gain_times_schedule_times_the_bare_mean() -> None:
    model, criterion = tiny_criterion("dfmsd", kd_gain=2.0, dfmsd_gain=3.0, kd_warmup=0.1, epochs=10)
    criterion.clock.epoch, criterion.clock.step, criterion.clock.steps = 0, 1, 4  # a quarter of the ramp
    batch = tiny_batch()
    preds = model(batch["img"])
    _, items = criterion(preds, batch)
    link = criterion.links[0]
    taps = link.student_view.taps(Output(preds["feats"]), None)
    other = link.teacher_view.taps(link.teacher(batch["img"]), None)
    bare = criterion.methods["dfmsd"][0](taps, other, None)
    assert float(items["dfmsd_loss"]) == pytest.approx(2.0 * 3.0 * 0.25 * float(bare.detach()), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_items_are_the_same_tensors_by_name_on_every_step(family: str) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", family, family, kd_stop=0.5)
    expected = [*TASK[family], "dfmsd_loss", "pcd_loss"]
    for epoch, step in ((0, 0), (0, 1), (4, 1), (5, 0), (9, 2)):
        criterion.clock.epoch, criterion.clock.step = epoch, step
        loss, items = model(tiny_batch())
        assert list(items) == expected
        assert all(isinstance(value, torch.Tensor) and value.ndim == 0 for value in items.values())
        assert not any(value.requires_grad for value in items.values())
        assert len(loss) == 5
        acts = criterion.factor > 0
        assert (float(items["dfmsd_loss"]) > 0) == (float(items["pcd_loss"]) > 0) == acts
    empty = {**tiny_batch(), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}
    assert list(model(empty)[1]) == expected
    model.eval()
    assert list(model.loss(tiny_batch())[1]) == expected


def test_after_the_stop_no_teacher_runs_even_where_a_gain_was_never_measured() -> None:
    model, criterion = tiny_criterion("dfmsd", kd_gain="auto", kd_stop=0.5)
    (teacher,) = count_teachers(criterion)
    model(tiny_batch())
    assert teacher.calls == 1
    criterion.clock.epoch = 5
    model(tiny_batch())
    assert teacher.calls == 1


@pytest.mark.parametrize(("family", "branches"), [("yolov8n", ["one2many"]), ("yolo26n", ["one2many", "one2one"])])
def test_positives_are_the_tasks_own_assignment_done_once_per_branch(family: str, branches: list[str]) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", family, family)
    assigned: dict[str, list[Any]] = {branch: [] for branch in branches}
    for branch in branches:
        part = getattr(criterion.task.base, branch, criterion.task.base)
        part.assigner.register_forward_hook(lambda module, inputs, output, kept=assigned[branch]: kept.append(output))
    calls = record(criterion.methods["pcd"][0])
    model(tiny_batch())
    assert [len(assigned[branch]) for branch in branches] == [1] * len(branches)
    ((_, _, targets, _),) = calls
    _, _, scores, positives, _ = assigned["one2many"][0]
    assert torch.equal(targets.positives, positives)
    assert torch.equal(targets.scores, scores.amax(-1))
    assert positives.any()


def test_targets_are_the_batchs_boxes_in_pixels() -> None:
    model, criterion = tiny_criterion("pcd")
    calls = record(criterion.methods["pcd"][0])
    batch = tiny_batch(size=(64, 96))
    batch["cls"][:] = torch.tensor([[2.0], [0.0], [1.0]] * 2)
    batch["bboxes"][0] = torch.tensor([0.5, 0.25, 0.5, 0.5])  # x and y of the centre, width and height
    model(batch)
    targets = calls[0][2]
    assert targets.boxes[0].tolist() == [24.0, 0.0, 72.0, 32.0]
    assert targets.labels.tolist() == [2, 0, 1, 2, 0, 1]
    assert targets.image_index.tolist() == [0, 0, 0, 1, 1, 1]


def test_on_two_branch_heads_all_methods_act_on_the_one_to_many_branch_where_there_are_labels() -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", "yolo26n", "yolo26n")
    maps, logits = record(criterion.methods["dfmsd"][0]), record(criterion.methods["pcd"][0])
    batch = tiny_batch()
    preds = model(batch["img"])
    _, items = criterion(preds, batch)
    raw = criterion.links[0].teacher(batch["img"])
    ((shown, taught, _, feature_terms),), ((own, other, _, terms),) = maps, logits
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(shown.feats, preds["one2many"]["feats"]))
    assert len(taught.feats) == 3
    assert torch.equal(own.logits, preds["one2many"]["scores"].transpose(1, 2))
    assert torch.equal(other.logits, raw.branches["one2many"].logits)
    assert criterion.task.base.o2m == pytest.approx(0.8)
    bare = float(sum(terms.values()).detach())
    assert float(items["pcd_loss"]) == pytest.approx(criterion.factor * 0.8 * bare, rel=1e-5)
    assert float(items["dfmsd_loss"]) == pytest.approx(
        criterion.factor * 0.8 * float(feature_terms[""].detach()), rel=1e-5
    )


@pytest.mark.parametrize("teacher", ["yolo26n", "yolov8n"])
def test_a_one_to_one_branch_is_left_to_the_labels(teacher: str) -> None:
    """Its layers' gradients are those of the task alone, while the one-to-many branch and the neck have more."""

    def gradients(method: str) -> dict[str, torch.Tensor]:
        model, _ = tiny_criterion(method, "yolo26n", teacher)
        loss, _ = model(tiny_batch())
        loss[:3].sum().backward(retain_graph=True)
        task = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        loss.sum().backward()
        both = {name: p.grad for name, p in model.named_parameters() if name in task}
        return {
            name: (both[name] - grad).abs().amax() / grad.abs().amax().clamp_min(1e-12) for name, grad in task.items()
        }

    added = gradients("bckd")
    single = {name: float(change) for name, change in added.items() if "one2one" in name}
    assert single and max(single.values()) < 1e-5
    assert max(float(added[f"model.23.cv3.{level}.2.weight"]) for level in range(3)) > 1e-3


def test_on_two_branch_heads_weights_follow_the_tasks() -> None:
    model, criterion = tiny_criterion("dfmsd", "yolo26n", "yolo26n", epochs=8)
    before = float(model(tiny_batch())[1]["dfmsd_loss"])
    for _ in range(7):
        criterion.update()
    assert criterion.task.base.o2m == pytest.approx(0.1)
    assert float(model(tiny_batch())[1]["dfmsd_loss"]) == pytest.approx(before / 8, rel=1e-3)


@pytest.mark.parametrize("method", ["dfmsd", "pcd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_terms_gradient_reaches_the_neck(family: str, method: str) -> None:
    model, _ = tiny_criterion(method, family, family)
    loss, _ = model(tiny_batch())
    neck = list(model.model[-2].parameters())
    grads = torch.autograd.grad(loss[-1], neck)
    assert all(float(grad.abs().max()) > 0 for grad in grads)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_methods_go_together(family: str) -> None:
    methods = [name for name in LOSSES if (family, name) != ("yolo26n", "ld")]  # it needs bins, which 26 has not
    model, criterion = tiny_criterion("+".join(methods), family, family, kd_gain="auto")
    loss, items = model(tiny_batch())
    loss.sum().backward()
    terms = {name: float(items[f"{name}_loss"]) for name in methods}
    assert all(0 < term < float("inf") for term in terms.values()), terms
    for name, parameter in criterion.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("student", "teacher"), [("yolov8n", "yolo26n"), ("yolo26n", "yolov8n"), ("yolo11n", "yolov10n")]
)
def test_heads_of_one_and_two_branches_teach_each_other(student: str, teacher: str) -> None:
    model, _ = tiny_criterion("dfmsd+pcd", student, teacher)
    _, items = model(tiny_batch())
    assert float(items["dfmsd_loss"]) > 0
    assert float(items["pcd_loss"]) > 0


@pytest.mark.parametrize(("epoch", "step"), [(0, 0), (2, 1), (7, 1)])
def test_every_adapter_has_a_gradient_on_every_step(epoch: int, step: int) -> None:
    teachers = [tiny_model("yolov8n", seed=2), tiny_model("yolo11n", seed=3)]
    model, criterion = tiny_criterion("dfmsd+pcd", "yolov8n", teachers, kd_decay="constant")
    criterion.clock.epoch, criterion.clock.step = epoch, step
    model(tiny_batch())[0].sum().backward()
    assert all(parameter.grad is not None for parameter in criterion.adapters())
    sizes = [
        sum(float(parameter.grad.abs().sum()) for parameter in module.parameters())
        for module in criterion.methods["dfmsd"]
    ]
    assert [size > 0 for size in sizes] == [(epoch, step) == (2, 1), epoch == 7]


def test_only_the_teacher_of_the_current_stage_runs() -> None:
    teachers = [tiny_model("yolov8n", seed=2), tiny_model("yolov8n", seed=3)]
    model, criterion = tiny_criterion("dfmsd+pcd", "yolov8n", teachers, dfmsd_stages=[0.3])
    counted = count_teachers(criterion)
    seen = []
    for epoch in range(6):
        criterion.clock.epoch = epoch
        model(tiny_batch())
        seen.append((criterion.stage, *[teacher.calls for teacher in counted]))
    assert seen == [(0, 1, 0), (0, 2, 0), (0, 3, 0), (1, 3, 1), (1, 3, 2), (1, 3, 3)]


def test_each_teacher_in_turn_has_its_share_of_the_tasks_gradient() -> None:
    """Where the first knows one class, and so has none to rank, and the second's logits are eight times as large."""
    loud = tiny_model("yolov8n", seed=3)
    for tower in loud.model[-1].cv3:
        tower[-1].weight.data *= 8
    teachers = [tiny_model("yolov8n", names=("circle", "dog", "cat"), seed=2), loud]
    model, criterion = tiny_criterion(
        "dfmsd+pcd", "yolov8n", teachers, kd_gain="auto", kd_share=0.4, dfmsd_stages=[0.5], kd_decay="constant"
    )
    (first, second), wanted = (criterion.methods["pcd"], [(0.2, 0.0), (0.1, 0.1)])
    assert [unit.units for unit in (first, second)] == [{"pcd_binary": 1.0}, {"pcd_grouped": 1.0, "pcd_binary": 1.0}]
    for epoch, module, (binary, grouped) in zip((0, 5), (first, second), wanted):
        criterion.clock.epoch, batch = epoch, tiny_batch()
        calls = record(module)
        preds = model(batch["img"])
        criterion(preds, batch)
        feats = read_output(preds).feats
        task = gradient_norm(criterion.task(preds, batch)[0].sum() / 2, feats)
        for part, share in (("binary", binary), ("grouped", grouped)):
            if share:
                found = float(gradient_norm(calls[0][-1][part], feats) / task) * criterion.unit_gain(f"pcd_{part}")
                assert found == pytest.approx(share, rel=1e-3)
            else:
                assert criterion.unit_gain(f"pcd_{part}") == 0


def test_one_teacher_keeps_its_adapters_through_the_stages_and_the_enhancement_begins() -> None:
    model, criterion = tiny_criterion("dfmsd", kd_decay="constant", epochs=10)
    (module,) = criterion.methods["dfmsd"]
    seen = []
    for epoch, step in ((4, 2), (5, 0)):
        criterion.clock.epoch, criterion.clock.step = epoch, step
        model.zero_grad()
        model(tiny_batch())[0].sum().backward()
        moved = all(bool(p.grad.any()) for p in module.adapters.parameters())
        seen.append((criterion.stage, criterion.factor, module.active_gamma(), moved))
    assert seen == [(0, 1.0, 0.0, True), (1, 1.0, 1.0, True)]


def test_methods_are_told_stage_and_progress() -> None:
    model, criterion = tiny_criterion("dfmsd", epochs=10)
    criterion.clock.epoch, criterion.clock.step, criterion.clock.steps = 7, 1, 2
    model(tiny_batch())
    module = criterion.methods["dfmsd"][0]
    assert module.staged
    assert module.stage == 1
    assert module.progress == pytest.approx(0.75)


def test_in_evaluation_the_terms_are_not_a_number_and_no_teacher_runs() -> None:
    model, criterion = tiny_criterion("dfmsd+pcd")
    (teacher,) = count_teachers(criterion)
    model.eval()
    loss, items = model.loss(tiny_batch())
    assert teacher.calls == 0
    assert torch.isnan(torch.stack([items["dfmsd_loss"], items["pcd_loss"]])).all()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(items[key]) for key in TASK["yolov8n"])


@pytest.mark.parametrize("family", FAMILIES)
def test_lent_to_evaluation_the_terms_are_computed_and_nothing_is_noted(family: str) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd+ckd", family, family, kd_gain="auto", dfmsd_mask="random")
    model(tiny_batch())
    before = copy.deepcopy((criterion.state(), criterion.values, criterion.seen, criterion.watch.steps))
    model.eval()
    criterion.lent = True
    with torch.inference_mode():
        values = [{key: float(value) for key, value in model.loss(tiny_batch(seed=5))[1].items()} for _ in range(2)]
    assert values[0] == values[1]
    assert all(values[0][f"{name}_loss"] > 0 for name in ("dfmsd", "pcd", "ckd"))
    after = (criterion.state(), criterion.values, criterion.seen, criterion.watch.steps)
    assert all(torch.equal(before[0]["methods"][key], value) for key, value in after[0]["methods"].items())
    assert before[0]["calibration"] == after[0]["calibration"]
    assert before[1:] == after[1:]
    model.train()
    criterion.lent = False
    model(tiny_batch())[0].sum().backward()


def test_the_students_state_has_no_trace_and_loads_strictly() -> None:
    model, criterion = tiny_criterion("dfmsd+pcd")
    plain = tiny_model("yolov8n", seed=3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    before = copy.deepcopy(criterion.state()["methods"])
    model.load_state_dict(plain.state_dict(), strict=True)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in plain.state_dict().items())
    assert all(torch.equal(before[key], value) for key, value in criterion.state()["methods"].items())
    plain.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("change", [lambda state: state.pop("model.0.conv.weight"), lambda state: state.update(new=1)])
def test_the_students_own_keys_are_still_demanded(change: Callable[[dict[str, Any]], Any]) -> None:
    model, _ = tiny_criterion("dfmsd")
    state = dict(tiny_model("yolov8n").state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=r"Missing key|Unexpected key"):
        model.load_state_dict(state, strict=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_made_during_training_is_whole_and_keeps_to_itself(family: str) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", family, family)
    model(tiny_batch())[0].sum().backward()
    twin = copy.deepcopy(model)
    assert twin.criterion is not criterion
    assert twin.criterion.links[0].teacher is criterion.links[0].teacher
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    kept = criterion.task.assignments["one2many"].positives
    loss, _ = twin(tiny_batch(seed=7))
    assert criterion.task.assignments["one2many"].positives is kept
    assert torch.allclose(loss, model(tiny_batch(seed=7))[0], rtol=1e-5)


def test_no_module_of_the_student_carries_a_hook() -> None:
    model, _ = tiny_criterion("dfmsd+pcd")
    model(tiny_batch())
    for name, module in model.model.named_modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks"):
            assert not getattr(module, kind), (name, kind)


def test_predictions_that_are_passed_in_are_distilled_too() -> None:
    """As the host calls it with compile=True."""
    model, _ = tiny_criterion("dfmsd+pcd")
    batch = tiny_batch()
    preds = model(batch["img"])
    _, items = DetectionModel.loss(model, batch, preds)
    assert float(items["dfmsd_loss"]) > 0
    assert float(items["pcd_loss"]) > 0


@pytest.mark.parametrize(("points", "staged"), [("auto", True), ([], False)])
def test_a_method_that_takes_stages_is_staged_where_there_are_several(points: Any, staged: bool) -> None:
    _, criterion = tiny_criterion("dfmsd+pcd", dfmsd_stages=points)
    assert criterion.methods["dfmsd"][0].staged is staged
    assert criterion.methods["pcd"][0].staged is False


def hidden(preds: dict[str, Any]) -> dict[str, Any]:
    """Return an output as a compiled student hands it out: the task does not depend on these neck maps."""
    if "one2many" in preds:
        return {**preds, "one2many": hidden(preds["one2many"])}
    return {**preds, "feats": [feat * 1.0 for feat in preds["feats"]]}


@pytest.mark.parametrize("family", FAMILIES)
def test_gains_of_a_compiled_student_are_measured_through_its_head(family: str) -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", family, family, kd_gain="auto", kd_share=0.4)
    criterion.replay_through(model.model[-1])
    batch = tiny_batch()
    preds = model(batch["img"])
    statistics = [value.clone() for value in model.buffers()]
    loss, items = model.loss(batch, hidden(preds))
    assert all(torch.equal(a, b) for a, b in zip(statistics, model.buffers()))
    assert min(criterion.calibration.gains.values()) > 0
    assert float(items["dfmsd_loss"]) > 0
    loss.sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.model[-2].parameters())
    feats, again = replayed(model.model[-1], (preds.get("one2many") or preds)["feats"])
    reference = gradient_norm(criterion.task.base(again, batch)[0].sum() / 2, feats)
    term = criterion._units(read_output(again), batch)["dfmsd"][1]
    share = float(gradient_norm(term, feats) / reference) * criterion.unit_gain("dfmsd")
    assert share == pytest.approx(0.2, rel=1e-4)


def test_a_gain_that_is_never_measured_stops_the_run() -> None:
    """Without the replay a compiled student's term would be silently zero."""
    model, _ = tiny_criterion("dfmsd", kd_gain="auto")
    batch = tiny_batch(images=1)
    with pytest.raises(RuntimeError, match="method=dfmsd: its term was exactly zero for 20 steps"):
        for _ in range(20):
            model.loss(batch, hidden(model(batch["img"])))


@pytest.mark.parametrize(("family", "expected"), [("yolov8n", False), ("yolo26n", True)])
def test_the_epoch_end_update_is_there_where_the_task_has_it(family: str, expected: bool) -> None:
    model, criterion = tiny_criterion("dfmsd", family, family)
    assert hasattr(model.criterion, "update") is expected
    if expected:
        model.criterion.update()
        assert criterion.task.base.updates == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [tiny_batch(images=1), tiny_batch(size=(64, 96)), tiny_batch(objects=0)])
def test_odd_batches_train(family: str, batch: dict[str, Any]) -> None:
    model, _ = tiny_criterion("dfmsd+pcd", family, family, kd_gain="auto")
    loss, _ = model(batch)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_under_autocast_the_terms_stay_close() -> None:
    model, _ = tiny_criterion("dfmsd+pcd", kd_teacher_dtype="auto")
    exact = model(tiny_batch())[1]
    with torch.autocast("cpu", torch.bfloat16):
        loss, items = model(tiny_batch())
    loss.sum().backward()
    for name in ("dfmsd_loss", "pcd_loss"):
        assert float(items[name]) == pytest.approx(float(exact[name]), rel=0.15)


def test_a_method_of_two_parts_is_counted_once_a_step() -> None:
    """Ten good steps and ten zeros are no twenty zeros running."""
    model, criterion = tiny_criterion("pcd", kd_decay="constant", kd_warmup=0.0)
    module, silent = criterion.methods["pcd"][0], False
    original = module.parts
    module.parts = lambda *args: {key: term * (0 if silent else 1) for key, term in original(*args).items()}
    batch = tiny_batch(images=1)
    for step in range(39):
        silent = step >= 20
        model(batch)
    with pytest.raises(RuntimeError, match="method=pcd: its term was exactly zero for 20 steps"):
        model(batch)


def test_one_silent_half_of_the_steps_stops_nothing() -> None:
    model, criterion = tiny_criterion("pcd", kd_decay="constant", kd_warmup=0.0)
    module, silent = criterion.methods["pcd"][0], False
    original = module.parts
    module.parts = lambda *args: {key: term * (0 if silent else 1) for key, term in original(*args).items()}
    batch = tiny_batch(images=1)
    for step in range(20):
        silent = step >= 10
        model(batch)


def test_columns_are_the_epochs_means_and_start_anew() -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", kd_gain=2.0, kd_decay="constant")
    calls = record(criterion.methods["dfmsd"][0])
    for seed in range(3):
        model(tiny_batch(seed=seed))
    columns = criterion.columns()
    assert list(columns)[:2] == ["kd/stage", "kd/factor"]
    assert columns["kd/dfmsd"] == pytest.approx(sum(float(call[3][""]) for call in calls) / 3)
    assert columns["kd/dfmsd_gain"] == columns["kd/pcd_binary_gain"] == 2.0
    assert not any("loss" in name for name in columns)
    again = criterion.columns()
    assert again.keys() == columns.keys()
    assert again["kd/dfmsd"] != again["kd/dfmsd"]  # not a number: no step since


def fake_trainer(criterion: Any, epoch: int) -> Any:
    return SimpleNamespace(
        criterion=criterion,
        epoch=epoch,
        epochs=10,
        start_epoch=0,
        train_loader=[0] * 4,
        args=SimpleNamespace(close_mosaic=2),
    )


def test_the_clock_follows_the_trainer() -> None:
    _, criterion = tiny_criterion("dfmsd")
    start_epoch(fake_trainer(criterion, epoch=3))
    clock = criterion.clock
    assert (clock.epoch, clock.step, clock.steps, clock.epochs, clock.close_mosaic) == (3, 0, 4, 10, 2)
    start_batch(fake_trainer(criterion, epoch=3))
    start_batch(fake_trainer(criterion, epoch=3))
    assert clock.position == pytest.approx(3.5)
    assert clock.progress == pytest.approx(0.35)


def test_an_epoch_that_is_done_again_leaves_no_trace_in_the_means() -> None:
    """The host repeats an epoch after a loss that was not a number."""
    model, criterion = tiny_criterion("dfmsd", kd_decay="constant")
    trainer = fake_trainer(criterion, epoch=1)
    start_epoch(trainer)
    start_batch(trainer)
    broken = tiny_batch()
    broken["img"][:] = float("nan")
    state = copy.deepcopy(model.state_dict())
    model(broken)
    model.load_state_dict(state)
    start_epoch(trainer)
    start_batch(trainer)
    model(tiny_batch())
    assert criterion.columns()["kd/dfmsd"] > 0


def test_with_the_whole_neck_frozen_auto_gains_are_refused_with_the_way_out() -> None:
    model, _ = tiny_criterion("pcd", kd_gain="auto")
    for layer in model.model[:-1]:
        layer.requires_grad_(False)
    with pytest.raises(UserError, match=r"kd_gain=auto.*freeze"):
        model(tiny_batch())


def test_state_and_load_carry_adapters_gains_and_methods_own_state() -> None:
    model, criterion = tiny_criterion("dfmsd+ckd", kd_gain="auto", dfmsd_mask="random")
    for seed in range(BATCHES):
        model(tiny_batch(seed=seed))[0].sum().backward()
        torch.optim.SGD(criterion.adapters(), lr=0.1).step()
    state = copy.deepcopy(criterion.state())
    _, other = tiny_criterion("dfmsd+ckd", kd_gain="auto", dfmsd_mask="random", seed=9)
    other.load(state)
    assert other.state()["calibration"] == state["calibration"]
    assert other.calibration.window == 1
    assert other.state()["methods"].keys() == state["methods"].keys()
    for key, value in other.state()["methods"].items():
        assert torch.equal(value, state["methods"][key]), key


def test_every_third_step_distils_three_times_as_much_and_the_others_leave_the_teacher_alone() -> None:
    batch = tiny_batch()
    once, reference = tiny_criterion("mgd+softkd")
    bare = float(once(batch)[1]["softkd_loss"]) / reference.factor
    model, criterion = tiny_criterion("mgd+softkd", kd_every=3)
    criterion.clock.steps = 10
    (teacher,) = count_teachers(criterion)
    for step in range(1, 8):
        criterion.clock.step = step
        model.zero_grad()
        loss, items = model(batch)
        loss.sum().backward()
        assert all(p.grad is not None for p in criterion.adapters())
        if step in {1, 4, 7}:
            assert float(items["softkd_loss"]) == pytest.approx(3 * criterion.factor * bare, rel=1e-4)
            assert items["mgd_loss"] > 0
        else:
            assert items["mgd_loss"] == items["softkd_loss"] == 0
            assert not any(bool(p.grad.any()) for p in criterion.adapters())
    assert teacher.calls == 3
    assert criterion.seen == 3  # the means are those of the steps that distilled


def test_on_validation_images_the_terms_are_never_left_out() -> None:
    model, criterion = tiny_criterion("softkd", kd_every=4)
    criterion.clock.step = 2
    criterion.lent = True
    model.eval()
    criterion.eval()
    _, items = model.loss(tiny_batch(), model(tiny_batch()["img"]))
    assert items["softkd_loss"] > 0


class WithoutDoubles(TorchDispatchMode):
    """Refuses double precision, as Apple's GPUs do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        made = output if isinstance(output, (list, tuple)) else [output]
        if any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in made):
            raise TypeError(f"{func} made a float64 tensor")
        return output


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_all_methods_needs_no_double_precision(family: str) -> None:
    methods = [name for name in LOSSES if name != "ld" or family == "yolov8n"]  # ld needs bins
    model, criterion = tiny_criterion("+".join(methods), family, family, kd_gain="auto")
    with pytest.raises(TypeError, match="float64"), WithoutDoubles():
        torch.ones(1).double()
    with WithoutDoubles():
        loss, items = model(tiny_batch())
        loss.sum().backward()
    assert all(float(items[f"{name}_loss"]) > 0 for name in methods)
    assert all(criterion.unit_gain(unit) > 0 for unit in criterion.gains)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_with_channels_last_has_maps_and_adapters_laid_out_alike(family: str) -> None:
    """As the host lays it out on CUDA; losses and gradients are those of the usual layout."""

    def step(layout: torch.memory_format) -> tuple[torch.Tensor, list[torch.Tensor], Any]:
        student = tiny_model(family, seed=1).to(memory_format=layout)
        methods = [name for name in LOSSES if (family, name) != ("yolo26n", "ld")]
        model, criterion = tiny_criterion("+".join(methods), student=student, teacher=tiny_model(family, seed=2))
        batch = tiny_batch()
        loss, _ = model({**batch, "img": batch["img"].contiguous(memory_format=layout)})
        loss.sum().backward()
        neck = list(model.model[-2].parameters())
        return loss.detach(), [p.grad for p in neck], criterion

    expected, wanted, _ = step(torch.contiguous_format)
    found, grads, criterion = step(torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for one, other in zip(grads, wanted):
        torch.testing.assert_close(one.contiguous(), other, rtol=1e-2, atol=1e-3)
    maps = criterion.links[0].teacher(tiny_batch()["img"]).feats
    weights = [weight for weight in criterion.adapters() if weight.ndim == 4 and min(weight.shape[1:]) > 1]
    assert weights and all(part.is_contiguous(memory_format=torch.channels_last) for part in (*maps, *weights))
    assert not any(part.is_contiguous() for part in (*maps[:1], *weights))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_in_float16_point_where_those_in_float32_do(family: str, name: str) -> None:
    """As the host trains on a GPU: autocast, and a loss that is scaled."""
    if (family, name) == ("yolo26n", "ld"):
        pytest.skip("ld needs bins, which YOLO26 has not")

    def gradient(half: bool) -> torch.Tensor:
        student, teacher = tiny_model(family, seed=1), tiny_model(family, seed=2)
        model, criterion = tiny_criterion(name, student=student, teacher=teacher)
        with torch.autocast("cpu", torch.float16, enabled=half):
            loss, _ = model(tiny_batch())
        (128 * loss[-1]).backward()
        own = set(criterion.adapters())
        found = [p.grad for p in model.parameters() if p.grad is not None and p not in own]
        return torch.cat([grad.flatten() for grad in found]) / 128

    expected, found = gradient(half=False), gradient(half=True)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.85  # random layers amplify what is rounded
    assert float(found.norm() / expected.norm()) == pytest.approx(1, abs=0.25)


def test_what_is_summed_over_shared_levels_is_divided_by_the_positives_of_all() -> None:
    """A student with a level of stride 4 has most of them there, where a teacher of three levels says nothing."""
    model, criterion = tiny_criterion("bckd+pcd+crosskd", "yolov8n-p2", "yolov8n")
    calls = {name: record(criterion.methods[name][0]) for name in ("bckd", "pcd", "crosskd")}
    batch = tiny_batch(objects=6)
    batch["bboxes"][:, 2:] *= 0.3
    model(batch)
    assigned = criterion.task.targets(batch, "one2many", (64, 64))
    student, teacher, targets, parts = calls["bckd"][0]
    number, shared = int(assigned.positives.sum()), int(targets.positives.sum())
    assert number > 2 * shared and targets.positives.shape[1] == 64 + 16 + 4
    towards = teacher.logits.sigmoid()
    terms = torch.nn.functional.binary_cross_entropy_with_logits(student.logits, towards, reduction="none")
    terms = terms * (student.logits.sigmoid() - towards).abs()
    assert float(parts["cls"]) == pytest.approx(float(terms.sum()) / number, rel=1e-4)
    assert float(targets.totals[1]) == pytest.approx(max(float(assigned.scores.sum()), 1.0))
    whole, cut = (replace(calls[name][0][2], sums=None) for name in ("pcd", "crosskd"))
    for name, less, total in (("pcd", whole, 1), ("crosskd", cut, 0)):
        own, other, given, found = calls[name][0]
        part = "binary" if name == "pcd" else "cls"
        again = criterion.methods[name][0].parts(own, other, less)[part]
        assert float(found[part] * given.totals[total]) == pytest.approx(float(again * less.totals[total]), rel=1e-4)
        assert float(found[part]) < float(again) or float(given.totals[total]) == float(less.totals[total])
