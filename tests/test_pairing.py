"""Levels are paired by stride and classes by name; what does not fit is refused with the way out."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import NAMES, tiny_args, tiny_batch, tiny_criterion, tiny_model
from yolokd import config
from yolokd.errors import UserError
from yolokd.losses import build
from yolokd.pairing import build_criterion, fold, link, match_classes, unit_shares
from yolokd.taps import Pair
from yolokd.teacher import Teacher, load_teacher

SAME = dict(enumerate(NAMES))


def teacher_of(name: str = "yolov8n", names: tuple[str, ...] = NAMES) -> Teacher:
    return Teacher(*load_teacher(tiny_model(name, names=names, seed=2)))


@pytest.mark.parametrize(
    ("student", "teacher", "strides", "student_levels", "teacher_levels"),
    [
        ("yolov8n-p2", "yolov8n", (8, 16, 32), (1, 2, 3), (0, 1, 2)),
        ("yolov8n", "yolov8n-p6", (8, 16, 32), (0, 1, 2), (0, 1, 2)),
        ("yolov8n-p6", "yolov8n-p2", (8, 16, 32), (0, 1, 2), (1, 2, 3)),
    ],
)
def test_levels_are_paired_by_stride(
    student: str,
    teacher: str,
    strides: tuple[int, ...],
    student_levels: tuple[int, ...],
    teacher_levels: tuple[int, ...],
) -> None:
    found = link(tiny_model(student), SAME, teacher_of(teacher), None, [])
    assert found.student_view.levels == student_levels
    assert found.teacher_view.levels == teacher_levels
    batch = tiny_batch(size=(128, 128))
    model, criterion = tiny_criterion("dfmsd+pcd", student, teacher)
    assert next(iter(criterion.methods.values()))[0].pair.strides == strides
    _, items = model(batch)
    assert float(items["dfmsd_loss"]) > 0
    assert float(items["pcd_loss"]) > 0


def test_unpaired_levels_are_said(said: list[str]) -> None:
    link(tiny_model("yolov8n-p2"), SAME, teacher_of("yolov8n-p6"), None, [])
    assert said[-1] == "distillation: levels of stride [8, 16, 32] are paired; [4, 64] are left out"


def test_wanted_levels_are_kept_alone() -> None:
    found = link(tiny_model(), SAME, teacher_of(), [16, 32], [])
    assert found.student_view.levels == found.teacher_view.levels == (1, 2)


def test_a_wanted_level_that_is_not_shared_is_refused() -> None:
    with pytest.raises(UserError, match=r"kd_levels=\[4, 8\].*share \[8, 16, 32\]"):
        link(tiny_model("yolov8n-p2"), SAME, teacher_of(), [4, 8], [])


def test_names_are_folded() -> None:
    assert fold("Traffic-Light ") == fold("traffic_light") == "traffic light"


def test_the_same_classes_need_no_selection() -> None:
    found = link(tiny_model(), SAME, teacher_of(), None, ["pcd"])
    assert found.student_view.classes is None
    assert found.teacher_view.classes is None


def test_classes_in_another_order_are_paired_by_name() -> None:
    teacher = ("Triangle-Up", "dog", "circle", "square")
    assert match_classes(SAME, dict(enumerate(teacher))) == [(0, 2), (1, 3), (2, 0)]
    found = link(tiny_model(), SAME, teacher_of(names=teacher), None, ["pcd"])
    assert found.student_view.classes == (0, 1, 2)
    assert found.teacher_view.classes == (2, 3, 0)


def test_permuted_classes_give_the_same_term_as_classes_in_order() -> None:
    """The same teacher with its class outputs and names permuted teaches the same."""
    order = [2, 0, 1]
    model = tiny_model("yolov8n", seed=2)
    permuted = tiny_model("yolov8n", seed=2)
    permuted.names = {new: NAMES[old] for new, old in enumerate(order)}
    for tower in permuted.model[-1].cv3:
        tower[-1].weight.data = tower[-1].weight.data[order]
        tower[-1].bias.data = tower[-1].bias.data[order]
    batch = tiny_batch()
    items = []
    for teacher in (model, permuted):
        student, _ = tiny_criterion("pcd", "yolov8n", teacher)
        items.append(student(batch)[1]["pcd_loss"])
    assert float(items[0]) > 0
    assert torch.allclose(items[0], items[1], rtol=1e-5)


def test_partly_known_classes_act_and_are_said(said: list[str]) -> None:
    student, criterion = tiny_criterion("pcd", "yolov8n", tiny_model(names=("square", "dog", "circle"), seed=2))
    assert criterion.links[0].student_view.classes == (0, 1)
    assert criterion.links[0].teacher_view.classes == (2, 0)
    assert criterion.methods["pcd"][0].pair.num_classes == 2
    assert any("does not know triangle_up; pcd act on the 2 classes" in message for message in said)
    assert float(student(tiny_batch())[1]["pcd_loss"]) > 0


def test_no_known_class_is_refused_for_logit_methods_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"method=pcd compares class logits.*circle, square.*dog, cat.*teacher_epochs"):
        tiny_criterion("dfmsd+pcd", "yolov8n", tiny_model(names=("dog", "cat"), seed=2))


def test_no_known_class_is_fine_for_feature_methods() -> None:
    student, _ = tiny_criterion("dfmsd", "yolov8n", tiny_model(names=("dog", "cat"), seed=2))
    assert float(student(tiny_batch())[1]["dfmsd_loss"]) > 0


def test_other_input_channels_are_refused() -> None:
    with pytest.raises(UserError, match="teacher takes 1 input channels and the data has 3"):
        tiny_criterion("dfmsd", "yolov8n", tiny_model(channels=1, seed=2))


def modules(*names: str) -> dict[str, object]:
    pair = Pair((64, 128, 256), (64, 128, 256), (8, 16, 32), num_classes=8)
    return {name: build(name, pair, config.DEFAULTS) for name in names}


def test_shares_are_divided_by_the_methods_gains_and_then_the_parts() -> None:
    args = tiny_args(method="dfmsd+pcd", teacher="a.pt", dfmsd_gain=1.0, pcd_gain=3.0, kd_share=0.4)
    shares = unit_shares(modules("dfmsd", "pcd"), args)
    assert shares == pytest.approx({"dfmsd": 0.1, "pcd_grouped": 0.15, "pcd_binary": 0.15})
    assert sum(shares.values()) == pytest.approx(0.4)


def test_fixed_gains_are_multiplied() -> None:
    args = tiny_args(method="dfmsd+pcd", teacher="a.pt", dfmsd_gain=0.5, pcd_gain=3.0, kd_gain=2.0)
    assert unit_shares(modules("dfmsd", "pcd"), args) == {"dfmsd": 1.0, "pcd_grouped": 6.0, "pcd_binary": 6.0}


def test_a_part_that_is_switched_off_has_no_share() -> None:
    pair = Pair((64, 128, 256), (64, 128, 256), (8, 16, 32), num_classes=8)
    args = tiny_args(method="pcd", teacher="a.pt", pcd_grouped=0.0, kd_share=0.4)
    assert unit_shares({"pcd": build("pcd", pair, vars(args))}, args) == pytest.approx({"pcd_binary": 0.4})


@pytest.mark.parametrize(
    ("method", "head"), [("dfmsd", "Neck"), ("pcd", "Detect"), ("bckd", "Detect"), ("dfmsd+pcd", "Detect")]
)
def test_the_teachers_head_runs_only_where_a_method_reads_it(method: str, head: str) -> None:
    _, criterion = tiny_criterion(method)
    assert type(criterion.links[0].teacher.model.model[-1]).__name__.strip("_") == head


@pytest.mark.parametrize(
    ("method", "student", "expected"),
    [
        ("dfmsd", "yolo26n", ()),
        ("pcd", "yolo26n", ("one2many", "one2one")),
        ("pcd", "yolov8n", ("one2many",)),
    ],
)
def test_the_teachers_branches_are_those_that_are_read(method: str, student: str, expected: tuple[str, ...]) -> None:
    _, criterion = tiny_criterion(method, student, "yolo26n")
    assert criterion.links[0].teacher.branches == expected


def test_building_leaves_the_random_streams_and_the_student_alone() -> None:
    model = tiny_model("yolov8n", seed=1)
    model.args = args = tiny_args(method="dfmsd+pcd", teacher="a.pt")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    teacher = teacher_of()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_criterion(model, [teacher], ("dfmsd", "pcd"), args)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_adapters_depend_on_the_seed_alone() -> None:
    weights = []
    for past in (1, 2):
        torch.manual_seed(past)
        _, criterion = tiny_criterion("dfmsd", seed=4)
        weights.append(torch.cat([parameter.flatten() for parameter in criterion.adapters()]))
    _, other = tiny_criterion("dfmsd", seed=5)
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.cat([parameter.flatten() for parameter in other.adapters()]))
