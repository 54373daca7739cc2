"""Levels are paired by stride and classes by name; what does not fit is refused with the way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import NAMES, tiny_args, tiny_batch, tiny_criterion, tiny_model
from yolokd import config
from yolokd.classes import data_classes, fold, match_classes
from yolokd.errors import UserError
from yolokd.losses import LOSSES, build
from yolokd.outputs import read_output
from yolokd.pairs.assembly import build_criterion, stage_shares, unit_shares
from yolokd.pairs.pairing import check_grid, link
from yolokd.taps import Pair
from yolokd.teachers.teacher import Teacher, load_teacher
from yolokd.terms.schedule import Stages

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


def test_names_that_differ_by_case_alone_are_told_apart() -> None:
    letters = dict(enumerate(["A", "B", "a", "b"]))
    assert match_classes(letters, letters) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert match_classes(letters, {0: "b", 1: "A", 2: "B", 3: "a"}) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert match_classes(letters, {0: "a"}) == [(2, 0)]  # an A is no a
    assert match_classes({0: "A"}, {0: "a", 1: "A"}) == [(0, 1)]
    assert match_classes({0: "A b"}, {0: "a-b", 1: "A_b"}) == [(0, 0)]
    assert match_classes(letters, {0: "x", 1: "y"}, {"a": "x", "A": "y"}) == [(0, 1), (2, 0)]


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


def test_of_a_teacher_that_knows_more_behind_the_datas_classes_these_are_taken() -> None:
    student, criterion = tiny_criterion("pcd", "yolov8n", tiny_model(names=(*NAMES, "dog"), seed=2))
    assert criterion.links[0].teacher_view.classes == criterion.links[0].student_view.classes == (0, 1, 2)
    assert float(student(tiny_batch())[1]["pcd_loss"]) > 0


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
    assert any("does not know triangle_up; pcd acts on the 2 classes" in message for message in said)
    assert float(student(tiny_batch())[1]["pcd_loss"]) > 0


def test_unknown_classes_are_not_spoken_of_where_no_method_reads_classes(said: list[str]) -> None:
    link(tiny_model(), SAME, teacher_of(names=("square", "dog", "circle")), None, [])
    assert not any("does not know" in message for message in said)


@pytest.mark.parametrize(
    ("methods", "args", "message"),
    [
        (
            ["ld"],
            {"teacher_imgsz": 96},
            r"^method=ld compares .*strides \[8, 16, 32\].*method=bckd, or leave out teacher_imgsz$",
        ),
        (["bckd", "crosskd"], {"rect": True}, r"^method=crosskd sends .*use method=bckd, or leave out rect$"),
        (["crosskd", "pkd", "ld"], {}, r"^method=ld .*use method=pkd$"),
    ],
)
def test_methods_that_need_the_same_grid_are_refused_wherever_they_stand(
    methods: list[str], args: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_grid(methods, teacher_of(), tiny_args(**args))
    check_grid(["bckd", "pcd", "dfmsd"], teacher_of(), tiny_args(**args))


@pytest.mark.parametrize("classes, expected", [([0], (0,)), (2, (2,)), ([2, 0], (0, 2))])
def test_classes_that_the_data_leaves_out_are_not_taught(
    classes: Any, expected: tuple[int, ...], said: list[str]
) -> None:
    """A teacher of the same classes would contradict the task there, which takes their objects for background."""
    student, criterion = tiny_criterion("bckd", bckd_box=0.0, classes=classes)
    assert criterion.links[0].student_view.classes == criterion.links[0].teacher_view.classes == expected
    batch = tiny_batch()
    preds = student(batch["img"])
    (grad,) = torch.autograd.grad(student.loss(batch, preds)[0][-1], preds["scores"])
    assert tuple(index for index in range(3) if bool(grad[:, index].any())) == expected
    assert not any("does not know" in message for message in said)


def test_one_class_of_many_and_a_teacher_of_that_class_alone() -> None:
    student, criterion = tiny_criterion("bckd", "yolov8n", tiny_model(names=NAMES[:1], seed=2), classes=[0])
    assert criterion.links[0].student_view.classes == (0,)
    assert float(student(tiny_batch())[1]["bckd_loss"]) > 0


def test_no_known_class_is_refused_for_logit_methods_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"method=pcd compares class logits.*circle, square.*dog, cat.*teacher_epochs"):
        tiny_criterion("dfmsd+pcd", "yolov8n", tiny_model(names=("dog", "cat"), seed=2))


def test_one_class_made_of_all_is_refused_with_the_map_that_helps() -> None:
    """The host's single_cls calls it item; teachers of the very classes do not know that name."""
    single = tiny_model(names=("item",), seed=1)
    with pytest.raises(UserError, match=rf"e\.g\. kd_class_map=\{{item: \[{', '.join(NAMES)}\]\}}, add teacher_epochs"):
        link(single, {0: "item"}, teacher_of(), None, ["pcd"])


def test_no_known_class_is_fine_for_feature_methods() -> None:
    student, _ = tiny_criterion("dfmsd", "yolov8n", tiny_model(names=("dog", "cat"), seed=2))
    assert float(student(tiny_batch())[1]["dfmsd_loss"]) > 0


def test_more_input_channels_than_the_data_has_are_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"teacher takes 4 .* the data has 3.*teacher_channels=\[0,1,2,2\]"):
        tiny_criterion("dfmsd", "yolov8n", tiny_model(channels=4, seed=2))


# Class maps -----------------------------------------------------------------------------------------------------------
COCO = (*(f"thing {i}" for i in range(79)), "Square")


def test_a_map_pairs_classes_that_are_called_otherwise() -> None:
    teacher = dict(enumerate(("automobile", "City Bus", "square", "lorry")))
    data = dict(enumerate(("car", "square", "Bus", "truck")))
    assert match_classes(data, teacher) == [(1, 2)]
    assert match_classes(data, teacher, {"CAR": "Automobile", "bus": "city_bus"}) == [(0, 0), (1, 2), (2, 1)]
    assert match_classes(data, teacher, {"square": "lorry"}) == [(1, 3)]  # the map comes before the name
    assert match_classes(data, teacher, {"car": "lorry", "truck": "lorry"}) == [(0, 3), (1, 2), (3, 3)]
    assert match_classes(data, teacher, {"car": ["lorry", "automobile", "lorry"]}) == [(0, (3, 0)), (1, 2)]
    assert data_classes(match_classes(data, teacher, {"car": ["lorry", "automobile"], "truck": "lorry"})) == {
        3: 0,
        0: 0,
        2: 1,
    }


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        (
            {"squares": "dog"},
            r"kd_class_map names 'squares', and the data has no class of that name; did you mean square\?",
        ),
        (
            {"square": "dogs"},
            r"kd_class_map names 'dogs', and the teacher has no class of that name; did you mean dog\?",
        ),
        ({"square": ["dog", "zebra"]}, r"names 'zebra', and the teacher has no class of that name; it knows dog, cat$"),
    ],
)
def test_names_of_a_map_that_a_side_does_not_know_are_refused(class_map: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_criterion("pcd", "yolov8n", tiny_model(names=("dog", "cat"), seed=2), kd_class_map=class_map)


def test_a_mapped_teacher_teaches_the_same_as_one_of_the_same_names() -> None:
    renamed = tiny_model("yolov8n", seed=2)
    renamed.names = {0: "round", 1: "square", 2: "three corners"}
    class_map = "{circle: round, 'triangle up': three-corners}"
    items = [
        tiny_criterion("pcd+bckd", "yolov8n", teacher, **overrides)[0](tiny_batch())[1]
        for teacher, overrides in ((tiny_model("yolov8n", seed=2), {}), (renamed, {"kd_class_map": class_map}))
    ]
    assert all(torch.equal(items[0][key], items[1][key]) for key in items[0])


def test_of_several_teacher_classes_the_likeliest_counts() -> None:
    teacher = tiny_model(names=("ball", "ring", "square", "tile"), seed=2)
    class_map = {"circle": ["ball", "ring"], "square": ["square", "tile"]}
    model, criterion = tiny_criterion("bckd+crosskd", "yolov8n", teacher, kd_class_map=class_map)
    link, images = criterion.links[0], tiny_batch()["img"]
    assert (link.student_view.classes, link.teacher_view.classes) == ((0, 1), ((0, 1), (2, 3)))
    output = link.teacher(images)
    _, taps = link.taps(read_output(model(images)), output, "one2many")
    raw = output.branches["one2many"].logits
    assert taps.logits is not None and taps.towers is not None
    expected = torch.stack((torch.maximum(raw[..., 0], raw[..., 1]), torch.maximum(raw[..., 2], raw[..., 3])), dim=-1)
    assert torch.equal(taps.logits, expected)
    assert torch.allclose(taps.towers(taps.feats)[0], expected, atol=1e-4)
    loss, items = model(tiny_batch())
    loss.sum().backward()
    assert float(items["bckd_loss"]) > 0 and float(items["crosskd_loss"]) > 0


@pytest.mark.parametrize("method", ["pcd", "bckd", "softkd", "ld", "crosskd", "samkd"])
def test_unmatched_classes_get_nothing_and_weigh_nothing(method: str) -> None:
    """3 classes of the data, 80 of the teacher's, one name in common (softkd needs two): it alone is distilled."""
    names, common = (COCO, [1]) if method != "softkd" else (("Circle", *COCO[1:]), [0, 1])
    batch, values, grads = tiny_batch(), [], []
    for raised in (0.0, 50.0):
        teacher = tiny_model(names=names, seed=2)
        for tower in teacher.model[-1].cv3:
            tower[-1].bias.data[1:79] += raised  # certain of every class that the data does not have
        model, criterion = tiny_criterion(method, "yolov8n", teacher, samkd_feature=0.0)
        assert criterion.links[0].student_view.classes == tuple(common)
        preds = model(batch["img"])
        loss, items = model.loss(batch, preds)
        values.append(items[f"{method}_loss"])
        grads.append(torch.autograd.grad(loss[-1], preds["scores"], allow_unused=True)[0])
    assert float(values[0]) > 0
    assert torch.equal(*values)
    acted = [] if method in {"ld", "crosskd"} else common  # those two do not act on the student's class logits
    assert [index for index in range(3) if bool(grads[0][:, index].any())] == acted
    assert torch.equal(*grads)


def test_confidence_of_unmatched_classes_weighs_no_teacher() -> None:
    teachers = [tiny_model(names=COCO, seed=2), tiny_model(names=COCO, seed=3)]
    values = []
    for raised in (False, True):
        if raised:
            for tower in teachers[0].model[-1].cv3:
                tower[-1].bias.data[:79] += 50.0
        model, _ = tiny_criterion("dfmsd", "yolov8n", teachers, kd_teachers="together", kd_teacher_weights="confidence")
        values.append(model(tiny_batch())[1]["dfmsd_loss"])
    assert float(values[0]) > 0 and torch.equal(*values)


def modules(*names: str) -> dict[str, object]:
    pair = Pair((64, 128, 256), (64, 128, 256), (8, 16, 32), num_classes=8)
    return {name: build(name, pair, config.DEFAULTS) for name in names}


def test_shares_are_divided_by_the_methods_gains_and_then_the_parts() -> None:
    args = tiny_args(method="dfmsd+pcd", teacher="a.pt", dfmsd_gain=1.0, pcd_gain=3.0, kd_share=0.4)
    shares = unit_shares(modules("dfmsd", "pcd"), args)
    assert shares == pytest.approx({"dfmsd": 0.1, "pcd_grouped": 0.15, "pcd_binary": 0.15})
    assert sum(shares.values()) == pytest.approx(0.4)


def test_each_method_has_its_own_share_where_none_is_given() -> None:
    """0.3 and 1, halved between two methods, bckd's once more between its parts: 0.3/2, 1/4, 1/4; alone 1/2, 1/2."""
    args = tiny_args(method="dfmsd+bckd", teacher="a.pt")
    found = unit_shares(modules("dfmsd", "bckd"), args)
    assert found == pytest.approx({"dfmsd": 0.15, "bckd_cls": 0.25, "bckd_box": 0.25})
    assert unit_shares(modules("bckd"), args) == pytest.approx({"bckd_cls": 0.5, "bckd_box": 0.5})
    text = config.KEYS["kd_share"].meaning
    assert "auto takes 1 for bckd and 0.3 for the others" in text
    assert {name: loss.share for name, loss in LOSSES.items()} == {
        name: 1.0 if name == "bckd" else 0.3 for name in LOSSES
    }


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
    ("method", "student", "keys", "expected"),
    [
        ("dfmsd", "yolo26n", {}, ()),
        ("pcd", "yolo26n", {}, ("one2many",)),
        ("pcd", "yolo26n", {"kd_names": ["a"]}, ("one2many", "one2one")),
        ("bckd", "yolo26n", {"kd_unlabeled": "rest"}, ("one2many", "one2one")),
        ("pcd", "yolov8n", {"kd_names": ["a"]}, ("one2many",)),
    ],
)
def test_the_teachers_branches_are_those_that_are_read(
    method: str, student: str, keys: dict[str, Any], expected: tuple[str, ...]
) -> None:
    _, criterion = tiny_criterion(method, student, "yolo26n", **keys)
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


def test_each_stage_has_the_shares_of_its_teachers() -> None:
    """One class has none to rank: 0.4 / 2 on each of two methods, pcd's halved between its parts where it has both."""
    args = tiny_args(method="dfmsd+pcd", teacher=["a.pt", "b.pt"], kd_share=0.4)
    one = Pair((64, 128, 256), (64, 128, 256), (8, 16, 32), num_classes=1)
    several = modules("dfmsd", "pcd")
    both = {name: [build(name, one, vars(args)), several[name]] for name in several}
    assert stage_shares(both, Stages.parse("auto", 2), args) == [
        pytest.approx({"dfmsd": 0.2, "pcd_binary": 0.2, "pcd_grouped": 0.0}),
        pytest.approx({"dfmsd": 0.2, "pcd_binary": 0.1, "pcd_grouped": 0.1}),
    ]
    (together,) = stage_shares(both, Stages.parse([], 2, together=True), args)
    assert together == pytest.approx({"dfmsd": 0.2, "pcd_binary": 0.15, "pcd_grouped": 0.05})
    fixed = tiny_args(method="dfmsd+pcd", teacher=["a.pt", "b.pt"], kd_gain=2.0, pcd_gain=3.0)
    (together,) = stage_shares(both, Stages.parse([], 2, together=True), fixed)
    assert together == {"dfmsd": 2.0, "pcd_binary": 6.0, "pcd_grouped": 6.0}
