"""The teacher is frozen, private, computes the model's own raw outputs, and nothing that is not read."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import ClassificationModel, SegmentationModel
from ultralytics.utils.torch_utils import ModelEMA

from tests.tiny import NAMES, tiny_batch, tiny_criterion, tiny_model
from yolokd.errors import UserError
from yolokd.models import neck_channels
from yolokd.outputs import Output, View, read_output
from yolokd.teachers.convolutions import Pointwise, through_onednn
from yolokd.teachers.teacher import Teacher, bfloat16_is_fast, fingerprint, is_untrained, load_teacher

FAMILIES = ("yolov8n", "yolo11n", "yolo26n", "yolov10n")
CPU = torch.device("cpu")
NEEDS_ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def prepared(model: Any, branches: tuple[str, ...] = ("one2many", "one2one"), dtype: str = "float32") -> Teacher:
    teacher = Teacher(*load_teacher(model))
    return teacher.prepare(CPU, [branch for branch in teacher.branches if branch in branches], dtype)


def close(left: torch.Tensor, right: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Return whether two maps agree within a fraction of the largest value."""
    return float((left.float() - right).abs().max()) <= tolerance * max(1.0, float(right.abs().max()))


def same(left: Output, right: Output) -> bool:
    pairs = list(zip(left.feats, right.feats))
    for name, branch in left.branches.items():
        pairs += [(branch.logits, right.branches[name].logits), (branch.boxes, right.branches[name].boxes)]
    return all(close(a, b) for a, b in pairs)


@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
@pytest.mark.parametrize("family", FAMILIES)
def test_raw_outputs_are_those_of_the_unfused_model_in_evaluation(family: str, size: tuple[int, int]) -> None:
    model, images = tiny_model(family, seed=2), tiny_batch(size=size)["img"]
    with torch.no_grad():
        expected = read_output(model(images))
    found = prepared(model)(images)
    assert found.branches.keys() == expected.branches.keys()
    assert float(expected.branches["one2many"].logits.std()) > 0.1
    assert same(found, expected)


@pytest.mark.parametrize("branch", ["one2many", "one2one"])
@pytest.mark.parametrize("family", ["yolo26n", "yolov10n"])
def test_the_branch_that_is_not_read_is_dropped(family: str, branch: str) -> None:
    model, images = tiny_model(family, seed=2), tiny_batch()["img"]
    with torch.no_grad():
        expected = read_output(model(images))
    teacher = prepared(model, (branch,))
    found = teacher(images)
    assert list(found.branches) == [branch]
    assert same(found, Output(expected.feats, {branch: expected.branches[branch]}))
    assert teacher.branch_for("one2many") == teacher.branch_for("one2one") == branch
    kept = {key for key, _ in teacher.model.model[-1].named_parameters()}
    assert kept and all(key.startswith("one2one_") == (branch == "one2one") for key in kept if "dfl" not in key)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_methods_that_read_it_the_head_is_gone(family: str) -> None:
    model, images = tiny_model(family, seed=2), tiny_batch()["img"]
    with torch.no_grad():
        expected = read_output(model(images))
    teacher = prepared(model, ())
    found = teacher(images)
    assert found.branches == {}
    assert same(found, Output(expected.feats))
    assert not list(teacher.model.model[-1].parameters())


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_nothing_is_decoded(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = prepared(tiny_model(family, seed=2))
    decoded: list[Any] = []
    monkeypatch.setattr(Detect, "_inference", lambda self, output: decoded.append(output))
    monkeypatch.setattr(Detect, "postprocess", lambda self, output: decoded.append(output))
    assert teacher(tiny_batch()["img"]).branches
    assert not decoded


def test_a_fused_end_to_end_teacher_has_its_one_branch() -> None:
    model = tiny_model("yolo26n", seed=2)
    model.end2end = True
    with torch.no_grad():
        expected = read_output(model(tiny_batch()["img"])).branches["one2one"]
    model.fuse(verbose=False)
    teacher = prepared(model)
    assert teacher.branches == ("one2one",)
    assert teacher.branch_for("one2many") == "one2one"
    assert not teacher.untrained
    found = teacher(tiny_batch()["img"]).branches["one2one"]
    assert close(found.logits, expected.logits)


def test_facts_of_a_teacher() -> None:
    teacher = Teacher(*load_teacher(tiny_model("yolov8n-p2", seed=2)))
    assert teacher.strides == (4, 8, 16, 32)
    assert teacher.channels == (32, 64, 128, 256)
    assert teacher.names == dict(enumerate(NAMES))
    assert teacher.reg_max == 16
    assert Teacher(*load_teacher(tiny_model("yolo26n"))).reg_max == 1
    assert teacher.parameters == sum(p.numel() for p in tiny_model("yolov8n-p2").parameters())


def test_neck_channels_are_measured_and_leave_the_model_as_it_was() -> None:
    model = tiny_model("yolov8n").train()
    before = copy.deepcopy(model.state_dict())
    assert neck_channels(model, 3) == (64, 128, 256)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_teacher_is_in_nothing_of_the_students() -> None:
    model, criterion = tiny_criterion("dfmsd+pcd", "yolov8n", "yolov8n")
    teacher = criterion.links[0].teacher
    own = {id(value) for value in teacher.model.parameters()} | {id(value) for value in teacher.model.buffers()}
    ema = ModelEMA(model).ema
    assert own
    for holder in (model, ema, criterion):
        values = [*holder.parameters(), *holder.buffers(), *holder.state_dict(keep_vars=True).values()]
        assert not own & {id(value) for value in values}
        assert not any(module is teacher.model for module in holder.modules())
    expected = sum(p.numel() for p in tiny_model("yolov8n").parameters()) + sum(
        p.numel() for p in criterion.methods.parameters()
    )
    assert sum(p.numel() for p in model.parameters()) == expected


def test_copies_share_the_teacher_and_pickles_leave_it_behind() -> None:
    teacher = prepared(tiny_model())
    assert copy.deepcopy(teacher) is teacher
    assert copy.deepcopy({"teacher": teacher})["teacher"] is teacher
    assert pickle.loads(pickle.dumps([teacher])) == [None]


def test_training_leaves_the_teacher_bit_identical_and_in_evaluation() -> None:
    model, criterion = tiny_criterion("dfmsd+pcd+crosskd", "yolov8n", "yolov8n")
    teacher = criterion.links[0].teacher
    before = copy.deepcopy(teacher.model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        model.train()
        model(tiny_batch(seed=step))[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(before[key], value) for key, value in teacher.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    head = teacher.model.model[-1]
    assert [module for module in teacher.model.modules() if module.training] == [head]


def test_the_given_model_object_is_left_alone() -> None:
    model = tiny_model("yolo26n").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prepared(model, ("one2many",))
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.requires_grad for key, p in model.named_parameters() if "dfl" not in key)


@pytest.mark.parametrize("branch", ["one2many", "one2one"])
def test_towers_are_the_heads_own_on_the_shared_levels_and_classes(branch: str) -> None:
    teacher = prepared(tiny_model("yolo26n", seed=2))
    images = tiny_batch()["img"]
    for view in (View((8, 16, 32), (0, 1, 2)), View((8, 16, 32), (1, 2), (2, 0))):
        taps = view.taps(teacher(images), branch)
        feats = [feat.clone().requires_grad_() for feat in taps.feats]
        logits, boxes = teacher.towers(branch, view)(feats)
        assert torch.allclose(logits, taps.logits, atol=1e-4)
        assert torch.allclose(boxes, taps.boxes, atol=1e-4)
        grads = torch.autograd.grad(logits.square().sum() + boxes.square().sum(), feats)
        assert all(float(grad.abs().max()) > 0 for grad in grads)


def test_half_precision_is_close_and_inputs_of_any_precision_are_taken() -> None:
    model, images = tiny_model("yolov8n", seed=2), tiny_batch()["img"]
    exact = prepared(model)(images)
    rounded = prepared(model, dtype="bfloat16")(images)
    assert rounded.feats[0].dtype == torch.bfloat16
    assert close(rounded.feats[0], exact.feats[0], 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert prepared(model)(images).feats[0].dtype == torch.float32
    halved = prepared(model)(images.half())  # validation on a GPU hands out such images
    assert close(halved.feats[0], exact.feats[0], 0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_half_precision_are_kept_as_such_and_change_nothing(family: str) -> None:
    """A cast ahead of time is the one that autocast does at every call; the head is read in float32 too and stays."""
    model, images = tiny_model(family, seed=2), tiny_batch()["img"]
    kept = prepared(model, dtype="bfloat16")
    convs = [module for module in kept.model.model[:-1].modules() if isinstance(module, nn.Conv2d)]
    assert convs and {module.weight.dtype for module in convs} == {torch.bfloat16}
    assert {value.dtype for value in kept.model.model[-1].parameters()} == {torch.float32}
    assert {value.dtype for value in prepared(model).model.parameters()} == {torch.float32}
    cast = prepared(model, dtype="float32")
    cast.dtype = torch.bfloat16
    found, expected = kept(images), cast(images)
    assert all(torch.equal(left, right) for left, right in zip(found.feats, expected.feats))
    for name, branch in expected.branches.items():
        assert torch.equal(found.branches[name].logits, branch.logits)
        assert torch.equal(found.branches[name].boxes, branch.boxes)


def test_maps_are_laid_out_channels_last_but_on_apples_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host says that results are wrong there; the layout alone is looked at here."""
    weight = prepared(tiny_model()).model.model[1].conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    monkeypatch.setattr(nn.Module, "to", lambda self, device, memory_format: self)
    teacher = Teacher(*load_teacher(tiny_model()))
    assert teacher.prepare(torch.device("mps"), ["one2many"]).layout is torch.contiguous_format


def test_auto_takes_bfloat16_where_the_processor_has_it() -> None:
    teacher = prepared(tiny_model(), dtype="auto")
    assert teacher.dtype == (torch.bfloat16 if bfloat16_is_fast(CPU) else None)


def test_bfloat16_is_read_from_the_processors_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, fast in (("flags : avx2 avx512_bf16", True), ("flags : amx_bf16", True), ("flags : avx2", False)):
        monkeypatch.setattr(Path, "read_text", lambda self, *args, text=flags, **kwargs: text)
        assert bfloat16_is_fast(CPU) is fast
    assert not bfloat16_is_fast(torch.device("meta"))

    def missing(self: Path, **_: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)  # as outside Linux
    assert not bfloat16_is_fast(CPU)


@pytest.mark.parametrize("fast", [False, True])
def test_the_precision_is_the_processors_own_unless_it_is_given(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yolokd.teachers.teacher.bfloat16_is_fast", lambda device: fast)
    images = torch.rand(1, 3, 64, 64)
    exact = prepared(tiny_model(seed=2))(images).branches["one2many"].logits
    found = prepared(tiny_model(seed=2), dtype="auto")(images).branches["one2many"].logits
    assert torch.equal(found.float(), exact.float()) != fast
    assert close(found, exact, 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_mixed_precision_the_weights_are_held_in_it(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As autocast would bring them to it in each step: the outputs are the same to the bit, from the first call on."""
    monkeypatch.setattr("yolokd.teachers.teacher.bfloat16_is_fast", lambda device: False)
    images, bare = torch.rand(1, 3, 64, 64), prepared(tiny_model(seed=2), dtype="auto")
    monkeypatch.setattr(bare, "_hold", lambda dtype: None)
    teacher = prepared(tiny_model(seed=2), dtype="auto")
    for _ in range(2):
        with torch.autocast("cpu", dtype):
            expected, found = bare(images), teacher(images)
        assert found.feats[0].dtype is dtype and teacher.model.model[0].conv.weight.dtype is dtype
        assert torch.equal(found.branches["one2many"].logits, expected.branches["one2many"].logits)
        assert all(torch.equal(a, b) for a, b in zip(found.feats, expected.feats))


def test_untrained_models_are_known_by_their_batch_statistics() -> None:
    assert is_untrained(tiny_model(trained=False))
    assert not is_untrained(tiny_model())


def test_fingerprints_tell_weights_apart_and_survive_the_file(tiny_teacher: Callable[[str], Path]) -> None:
    model, found = load_teacher(tiny_teacher("yolov8n"))
    assert found == fingerprint(tiny_model("yolov8n", seed=2)) == load_teacher(model)[1]
    assert found != fingerprint(tiny_model("yolov8n", seed=3))
    assert len(found) == 16


def text_file(path: Path) -> Path:
    path.write_text("these are no weights\n")
    return path


def truncated(path: Path) -> Path:
    torch.save({"model": tiny_model()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def without_model(path: Path) -> Path:
    torch.save({"weights": torch.zeros(2)}, path)
    return path


def classifier(path: Path) -> Path:
    torch.save({"model": tiny_model("yolov8n-cls", task=ClassificationModel)}, path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_file, r"teacher='.*bad\.pt' cannot be loaded: \S"),
        (truncated, r"teacher='.*bad\.pt' cannot be loaded: \S"),
        (without_model, r"teacher='.*bad\.pt' cannot be loaded: \S"),
        (lambda path: path, r"teacher='.*bad\.pt' cannot be loaded: \S"),
        (classifier, r"teacher='.*bad\.pt' ends in Classify; a teacher must be a YOLO detection model"),
    ],
    ids=["text", "truncated", "without a model", "missing", "classification"],
)
def test_files_that_are_no_teacher_are_refused_by_key_and_file(
    make: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_teacher(make(tmp_path / "bad.pt"))
    assert len(str(error.value).splitlines()) == 1


def test_a_module_that_is_no_detector_is_refused() -> None:
    with pytest.raises(UserError, match="teacher='Linear' ends in Linear"):
        load_teacher(torch.nn.Linear(2, 2))


def test_a_segmentation_teacher_teaches_detection() -> None:
    model, _ = tiny_criterion("dfmsd+pcd", "yolov8n", tiny_model("yolov8n-seg", seed=2, task=SegmentationModel))
    _, items = model(tiny_batch())
    assert float(items["dfmsd_loss"]) > 0
    assert float(items["pcd_loss"]) > 0


@pytest.mark.parametrize("family", ["yolov8n", "yolo26n"])
def test_box_layers_that_nothing_reads_are_left_out_and_boxes_are_none(family: str) -> None:
    images = tiny_batch()["img"]
    whole, without = (Teacher(*load_teacher(tiny_model(family, seed=2))) for _ in range(2))
    branches = whole.branches
    expected = whole.prepare(torch.device("cpu"), branches, "float32")(images)
    found = without.prepare(torch.device("cpu"), branches, "float32", boxes=False)(images)
    assert len(list(without.model.parameters())) < len(list(whole.model.parameters()))
    for branch in branches:
        torch.testing.assert_close(found.branches[branch].logits, expected.branches[branch].logits)
        assert found.branches[branch].boxes is None and expected.branches[branch].boxes is not None


@pytest.mark.parametrize(
    ("method", "overrides", "boxes"),
    [
        ("pcd", {}, False),
        ("softkd+samkd", {}, False),
        ("bckd", {}, True),
        ("bckd", {"bckd_box": 0.0}, False),
        ("ld", {}, True),
        ("crosskd", {"crosskd_box": 0.0}, True),  # its class layers are lent as one with the box layers
        ("dfmsd+pcd", {"kd_unlabeled": "images"}, True),
    ],
)
def test_boxes_are_computed_where_they_are_read(method: str, overrides: dict[str, Any], boxes: bool) -> None:
    _, criterion = tiny_criterion(method, **overrides)
    assert criterion.links[0].teacher.boxes == boxes


@pytest.mark.slow
def test_a_compiled_teacher_gives_the_same() -> None:
    images = tiny_batch()["img"]
    plain, compiled = (Teacher(*load_teacher(tiny_model(seed=2))) for _ in range(2))
    expected = plain.prepare(torch.device("cpu"), plain.branches, "float32")(images)
    found = compiled.prepare(torch.device("cpu"), compiled.branches, "float32", compiled=True)(images)
    for own, other in zip(found.feats, expected.feats):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def operators(function: Callable[[], Any]) -> set[str]:
    """Return the names of PyTorch's operators that a call runs."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        function()
    return {event.name for event in found.events()}


@NEEDS_ONEDNN
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("number", [1, 3, 16])
def test_pointwise_convolutions_are_sums_over_channels(number: int, stride: int) -> None:
    """Written out, in every layout; with autocast or a gradient PyTorch's own convolution runs."""
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 1, stride=stride)
    maps = torch.randn(number, 12, 8, 10)
    assert conv.bias is not None
    step = slice(None, None, stride)
    expected = torch.einsum("oc,bchw->bohw", conv.weight[..., 0, 0], maps[:, 6:, step, step])
    expected = expected + conv.bias[:, None, None]
    through_onednn(nn.Sequential(conv))
    assert type(conv) is Pointwise
    for layout in (torch.contiguous_format, torch.channels_last):
        for seen in (part := maps.contiguous(memory_format=layout)[:, 6:], part.contiguous(memory_format=layout)):
            with torch.no_grad():
                assert torch.allclose(conv(seen), expected, atol=1e-5)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    assert conv(seen).dtype is torch.bfloat16
    seen = maps[:, 6:].clone().requires_grad_()
    with torch.no_grad():
        own = operators(lambda: conv(seen))
    assert "aten::mkldnn_convolution" in own and "aten::convolution" not in own
    assert "aten::convolution" in operators(lambda: conv(seen))
    conv(seen).sum().backward()
    assert seen.grad is not None
    gradient = conv.weight.sum(0)[:, 0, 0][:, None, None].expand(6, *expected.shape[2:])
    assert torch.allclose(seen.grad[:, :, step, step], gradient)


@NEEDS_ONEDNN
def test_pointwise_convolutions_of_a_teacher_on_the_cpu_alone_are_changed() -> None:
    plain, compiled = prepared(tiny_model("yolo11n")), Teacher(*load_teacher(tiny_model("yolo11n")))
    compiled.prepare(CPU, ["one2many"], "float32", compiled=True)
    kinds = [
        {type(m) for m in t.model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)}
        for t in (plain, compiled)
    ]
    assert kinds == [{Pointwise}, {nn.Conv2d}]
