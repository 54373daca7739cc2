"""The pictures show what the methods compute: every mask, weight and ranking is compared with what a method used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import RTDETRDetectionModel

from tests.tiny import NAMES, save_model, tiny_args, tiny_criterion, tiny_model
from yolokd import config
from yolokd.cli import main
from yolokd.errors import UserError
from yolokd.inspection import _run_of, inspect, sheets
from yolokd.inspection.scene import Scene, detect, load_adapters, look
from yolokd.inspection.sheet import Panel, Sheet
from yolokd.inspection.views import mask_panel
from yolokd.losses import LOSSES
from yolokd.losses.pcd import grouped_divergence
from yolokd.outputs import read_output
from yolokd.saving.state import write_state
from yolokd.teachers.teacher import Teacher, load_teacher

SIDE = 96  # strides 8, 16 and 32 give 12, 6 and 3 positions per side
DEVICE = torch.device("cpu")


def files(folder: Path, student: nn.Module | None = None, teacher: nn.Module | None = None) -> SimpleNamespace:
    """Write a student, a teacher and an image of noise with a bright patch."""
    picture = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    picture[20:60, 30:80] = 230
    cv2.imwrite(str(folder / "image.png"), picture)
    return SimpleNamespace(
        student=str(save_model(student or tiny_model(seed=1), folder / "student.pt")),
        teacher=str(save_model(teacher or tiny_model(seed=2), folder / "teacher.pt")),
        source=str(folder / "image.png"),
        picture=picture,
        folder=folder,
    )


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return files(tmp_path_factory.mktemp("inspection"))


def seen(given: SimpleNamespace, method: str, **keys: Any) -> tuple[Scene, list[Sheet]]:
    """Look at the image with many detections, and return the scene and its sheets."""
    settings = {"teacher": given.teacher, "method": method, "kd_teacher_dtype": "float32", "imgsz": SIDE, "conf": 0.05}
    args = tiny_args(**{**settings, **keys})
    with torch.no_grad():
        scene, image, notes = look(given.student, config.methods(method), args, given.picture, DEVICE)
        return scene, sheets(scene, image, method, notes)


def spy(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> list[tuple[tuple[Any, ...], Any]]:
    """Record arguments and results of a function that a method calls."""
    home = importlib.import_module(module)
    original: Callable[..., Any] = getattr(home, name)
    calls: list[tuple[tuple[Any, ...], Any]] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, original(*args, **kwargs)))
        return calls[-1][1]

    monkeypatch.setattr(home, name, recorded)
    return calls


def titled(sheet: Sheet, start: str) -> list[Panel]:
    return [panel for panel in sheet.panels if panel.title.startswith(start)]


def term(scene: Scene, name: str) -> dict[str, torch.Tensor]:
    """Run a method on the scene as training would."""
    parts: dict[str, torch.Tensor] = scene.modules[name].parts(scene.student, scene.teacher, scene.targets)
    return parts


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize("enhance", ["none", "gap", "gain", "frequency"])
def test_dfmsd_shows_the_masks_of_each_stage(
    given: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, enhance: str, stage: int
) -> None:
    scene, pages = seen(given, "dfmsd", dfmsd_enhance=enhance)
    scene.modules["dfmsd"].stage = stage
    calls = spy(monkeypatch, "yolokd.losses.dfmsd", "dual_masked_generation")
    term(scene, "dfmsd")
    assert len(calls) == len(pages) == 3
    for (args, _), page in zip(calls, pages):
        shown = titled(page, f"dfmsd stage {stage + 1} of 2")
        np.testing.assert_array_equal(shown[0].values, args[2][0, 0].numpy())
        assert shown[0].kind == "mask" and f"of the channels {1 - args[3].mean():.0%} are" in shown[0].title


def test_looking_leaves_the_stage_of_a_method_alone(given: SimpleNamespace) -> None:
    scene, _ = seen(given, "dfmsd")
    assert scene.modules["dfmsd"].stage == 0 and scene.modules["dfmsd"].staged


@pytest.mark.parametrize("weight", ["soft", "binary"])
def test_samkd_shows_a_mask_per_grid_and_the_weight_of_the_logits(
    given: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, weight: str
) -> None:
    scene, pages = seen(given, "samkd", samkd_weight=weight)
    masked = spy(monkeypatch, "yolokd.losses.samkd", "pyramid_generation")
    weighted = spy(monkeypatch, "yolokd.losses.samkd", "weighted_binary")
    term(scene, "samkd")
    weights = scene.teacher.split(weighted[0][0][2])
    grids = [(1, 2), (1,), (1,)]  # cells of at least 5 x 5 on maps of 12, 6 and 3 positions
    for level, page in enumerate(pages):
        shown = [panel for panel in titled(page, "samkd") if panel.kind == "mask"]
        assert tuple(panel.grid for panel in shown) == grids[level]
        for panel, used in zip(shown, masked[level][0][2], strict=True):
            np.testing.assert_array_equal(panel.values, used[0, 0].numpy())
        np.testing.assert_array_equal(titled(page, "samkd: weight")[0].values, weights[level][0].numpy())


def test_mgd_shows_a_draw_of_its_own_mask(given: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, pages = seen(given, "mgd")
    calls = spy(monkeypatch, "yolokd.losses.mgd", "masked_generation")
    term(scene, "mgd")
    for (args, _), page in zip(calls, pages, strict=True):
        np.testing.assert_array_equal(titled(page, "mgd")[0].values, args[2][0, 0].numpy())


def test_sgfi_shows_its_regions_and_level_weights(given: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    scene, pages = seen(given, "gdetkd", sgfi_regions=24, ckd_regions=24)
    calls = spy(monkeypatch, "yolokd.losses.sgfi", "imitation_error")
    term(scene, "sgfi")
    assert sum(len(page.regions) for page in pages) > 0
    for (args, _), page in zip(calls, pages, strict=True):
        used = args[2].detach().numpy()
        assert len(page.regions) == (len(used) > 0)  # ckd draws the same regions, which are shown once
        assert any("no region" in note for note in page.notes) == (len(used) == 0)
        for regions in page.regions:
            assert regions.weights is not None and regions.boxes.shape == (len(used), 4)
            np.testing.assert_allclose(regions.weights, used)
            np.testing.assert_allclose(regions.weights.sum(axis=1), 1, rtol=1e-5)


def test_regions_of_ckd_alone_have_no_weights(given: SimpleNamespace) -> None:
    _, pages = seen(given, "ckd", ckd_regions=24)
    shown = [regions for page in pages for regions in page.regions]
    assert shown and all(regions.weights is None for regions in shown)
    assert sum(len(regions.boxes) for regions in shown) == 24


def test_pcd_shows_classes_by_difference_and_the_terms_of_their_groups(tmp_path: Path) -> None:
    names = [f"class {index}" for index in range(8)]
    many = files(tmp_path, tiny_model(names=names, seed=1), tiny_model(names=names, seed=2))
    scene, pages = seen(many, "pcd", pcd_stages=3, pcd_confidence=0.05)
    shown = [ranking for page in pages for ranking in page.rankings]
    assert shown
    for ranking in shown:
        gaps = np.abs(ranking.teacher - ranking.student)
        assert (np.diff(gaps) <= 0).all() and sorted(ranking.names) == names
        assert [len(groups) for groups in ranking.groupings] == [3, 2, 1]
        assert [[size for size, _ in groups] for groups in ranking.groupings] == [[3, 3, 2], [4, 4], [8]]
        s, t = torch.tensor(ranking.student)[None], torch.tensor(ranking.teacher)[None]
        whole = float(grouped_divergence(s, t, [3, 2, 1], scene.modules["pcd"].temperature))
        assert sum(value for groups in ranking.groupings for _, value in groups) == pytest.approx(whole, rel=1e-4)


def test_pcd_ranks_one_anchor_per_object_and_names_the_teachers_class(given: SimpleNamespace) -> None:
    scene, pages = seen(given, "pcd", pcd_confidence=0.05)
    assert scene.teacher.logits is not None and scene.student.logits is not None
    first = 0
    for page, (height, width) in zip(pages, scene.teacher.sizes):
        assert len(page.rankings) <= 3
        if page.rankings:  # the strongest of this level comes first
            here = scene.teacher.logits[0, first : first + height * width]
            anchor = int(here.amax(-1).argmax())
            assert f"teacher says {NAMES[int(here[anchor].argmax())]}" in page.rankings[0].title
            order = [NAMES.index(name) for name in page.rankings[0].names]
            np.testing.assert_allclose(page.rankings[0].teacher, here[anchor, order].numpy(), rtol=1e-6)
            student = scene.student.logits[0, first + anchor, order].numpy()
            np.testing.assert_allclose(page.rankings[0].student, student, rtol=1e-6)
        first += height * width


def hand_made(boxes: list[list[float]]) -> Scene:
    """Return a scene of 64 x 64 pixels with one level of stride 16 and given detections."""
    taps = SimpleNamespace(image_size=(64, 64), sizes=[(4, 4)], strides=(16,))
    rest: dict[str, Any] = {"student": taps, "targets": None, "modules": {}, "stages": 1, "labels": [], "names": []}
    return Scene(teacher=taps, trained=frozenset(), boxes=torch.tensor(boxes).view(-1, 4), **rest)  # type: ignore[arg-type]


def test_the_share_inside_the_boxes_counts_area() -> None:
    # The box covers one whole cell and half of the cell right of it. Masked: that half cell and one cell far away.
    # So 2 of 16 cells are masked, and inside the box 0.5 of 1.5 cells.
    scene = hand_made([[16, 16, 40, 32]])
    mask = torch.ones(1, 1, 4, 4)
    mask[0, 0, 1, 2] = mask[0, 0, 3, 3] = 0
    title = mask_panel(scene, 0, mask, "a mask").title
    assert title == "a mask\norange: masked, overall 12%, inside the boxes 33%"


def test_two_boxes_on_one_place_count_once_and_no_box_says_nothing() -> None:
    values = torch.arange(16.0).view(4, 4)
    assert hand_made([[16, 16, 32, 32], [16, 16, 32, 32]]).inside(values, 0) == pytest.approx(5)
    assert hand_made([]).inside(values, 0) is None
    assert mask_panel(hand_made([]), 0, torch.zeros(1, 1, 4, 4), "m").title == "m\norange: masked, overall 100%"


def test_both_models_see_the_image_as_in_prediction(given: SimpleNamespace) -> None:
    scene, pages = seen(given, "pkd")
    np.testing.assert_array_equal(pages[0].image, given.picture[..., ::-1])  # red, green, blue
    images = torch.from_numpy(pages[0].image.copy()).permute(2, 0, 1)[None].float() / 255
    for taps, path in ((scene.student, given.student), (scene.teacher, given.teacher)):
        with torch.no_grad():
            output = read_output(load_teacher(path)[0](images))
        for seen_map, expected in zip(taps.feats, output.feats, strict=True):
            torch.testing.assert_close(seen_map, expected, rtol=1e-3, atol=1e-4)  # the teacher is fused


def test_a_grey_student_sees_the_luminance_as_in_training(given: SimpleNamespace, tmp_path: Path) -> None:
    student = save_model(tiny_model(seed=1, channels=1), tmp_path / "grey.pt")
    scene, _ = seen(SimpleNamespace(**{**vars(given), "student": str(student)}), "pkd")
    grey = torch.from_numpy(cv2.cvtColor(given.picture.astype(np.float32) / 255, cv2.COLOR_BGR2GRAY))
    with torch.no_grad():
        expected = read_output(load_teacher(str(student))[0](grey[None, None])).feats
    for seen_map, wanted in zip(scene.student.feats, expected, strict=True):
        torch.testing.assert_close(seen_map, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("rect", "size"), [(False, (96, 96)), (True, (64, 96))])
def test_rect_leaves_out_the_grey_bars(given: SimpleNamespace, rect: bool, size: tuple[int, int]) -> None:
    wide = SimpleNamespace(**{**vars(given), "picture": given.picture[:48]})  # 48 x 96 pixels
    scene, pages = seen(wide, "dfmsd", rect=rect)
    assert pages[0].image.shape[:2] == scene.teacher.image_size == size
    bars = (pages[0].image == 114).all(axis=(1, 2))
    assert bars.sum() == size[0] - 48


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_method_shows_something_or_says_why_not(given: SimpleNamespace, name: str) -> None:
    _, pages = seen(given, name)
    for page in pages:
        assert len(page.panels) >= 3
        own = [p for p in page.panels if name in p.title] + [*page.regions, *page.rankings]
        assert own or any(note.startswith(f"{name}: no ") for note in page.notes)
        assert any(f"{name}" in note and "Terms" in note for note in page.notes)
        for panel in page.panels:
            assert np.isfinite(panel.values).all()


def test_where_the_teacher_finds_nothing_every_method_shows_something_or_says_why_not(given: SimpleNamespace) -> None:
    scene, pages = seen(given, "+".join(LOSSES), conf=1.0)
    assert len(scene.boxes) == 0
    for page in pages:
        assert len(page.panels) >= 3
        (terms,) = [note for note in page.notes if "Terms" in note]
        without = {name for note in page.notes if ": no " in note for name in note.split(": no ")[0].split(", ")}
        for name in LOSSES:
            shown = any(name in part.title for part in (*page.panels, *page.regions, *page.rankings))
            shown = shown or (name == "ckd" and len(page.regions) > 0)  # those of sgfi, which are shown once
            assert shown or name in without, name
            assert name in terms
        for panel in page.panels:
            assert np.isfinite(panel.values).all()


def test_attention_averages_to_one_and_untrained_maps_are_not_compared(given: SimpleNamespace) -> None:
    _, pages = seen(given, "dfmsd")
    for page in pages:
        teacher, student, difference = page.panels[:3]
        assert [teacher.values.mean(), student.values.mean()] == pytest.approx([1, 1], abs=1e-5)
        assert difference.kind == "signed" and teacher.upper == student.upper
        np.testing.assert_allclose(difference.values, teacher.values - student.values, atol=1e-6)
        assert any(note.startswith("Adapters of dfmsd: untrained") for note in page.notes)


def run_folder(given: SimpleNamespace, folder: Path, method: str, **keys: Any) -> tuple[str, Any]:
    """Write a run's folder with adapters that differ from fresh ones; return its weights and the criterion."""
    teacher, identity = load_teacher(given.teacher)
    _, criterion = tiny_criterion(method, tiny_model(seed=1), teacher, **keys)
    with torch.no_grad():
        for parameter in criterion.methods.parameters():
            parameter.mul_(0.5).add_(0.01)
    weights = save_model(tiny_model(seed=1), folder / "weights" / "best.pt")
    run = {"teachers": ["0" * 16, identity], "methods": list(config.methods(method))}
    state = criterion.state()
    state["methods"] = {key.replace(".0.", ".1.", 1): value for key, value in state["methods"].items()}
    write_state(weights.parent / "kd_state.pt", epoch=6, state=state, identity=run)
    settings = {"method": method, "teacher": given.teacher, "epochs": 10, "imgsz": SIDE, **keys}
    (folder / "args.yaml").write_text("\n".join(f"{key}: {value}" for key, value in settings.items()))
    return str(weights), criterion


def test_a_runs_trained_adapters_are_loaded_and_named(given: SimpleNamespace, tmp_path: Path) -> None:
    weights, trained = run_folder(given, tmp_path / "run", "dfmsd+pcd")
    case = SimpleNamespace(**{**vars(given), "student": weights})
    scene, pages = seen(case, "dfmsd+pcd")
    assert scene.trained == {"dfmsd"}  # pcd has no adapters
    for key, value in scene.modules["dfmsd"].state_dict().items():
        torch.testing.assert_close(value, trained.methods["dfmsd"][0].state_dict()[key])
    assert scene.modules["dfmsd"].stage == 1  # epoch 7 of 10, switched at 5
    assert any(note.startswith("Adapters of dfmsd: trained, from epoch 7") for note in pages[0].notes)
    assert titled(pages[0], "dfmsd stage 2 of 2 (now)") and titled(pages[0], "dfmsd stage 1 of 2:")
    for page in pages:
        assert page.panels[2].kind == "map" and page.panels[2].values.mean() == pytest.approx(1, abs=1e-4)


def test_adapters_of_another_teacher_or_method_are_not_taken(given: SimpleNamespace, tmp_path: Path) -> None:
    weights, _ = run_folder(given, tmp_path / "run", "dfmsd")
    other = str(save_model(tiny_model(seed=5), tmp_path / "other.pt"))
    case = SimpleNamespace(**{**vars(given), "student": weights, "teacher": other})
    assert seen(case, "dfmsd")[0].trained == frozenset()
    case = SimpleNamespace(**{**vars(given), "student": weights})
    scene, pages = seen(case, "dfmsd+pkd")
    assert scene.trained == {"dfmsd"} and any("pkd: untrained" in note for note in pages[0].notes)


def test_adapters_of_another_form_are_refused_by_name(given: SimpleNamespace, tmp_path: Path) -> None:
    weights, _ = run_folder(given, tmp_path / "run", "dfmsd")
    _, wider = tiny_criterion("dfmsd", tiny_model(seed=1), load_teacher(given.teacher)[0], dfmsd_width=1.0)
    with pytest.raises(UserError, match="adapters of dfmsd have another form"):
        load_adapters(wider, Path(weights), load_teacher(given.teacher)[1])


def test_a_runs_settings_are_the_defaults(
    given: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, _ = run_folder(given, tmp_path / "run", "dfmsd", dfmsd_width=0.5)
    code = main(["inspect", f"model={weights}", f"source={given.source}", f"project={tmp_path}", "name=seen"])
    printed = capsys.readouterr().out.split()
    expected = [tmp_path / "seen" / f"image_stride{stride}.png" for stride in (8, 16, 32)]
    assert code == 0 and [Path(line) for line in printed if line.endswith(".png")] == expected
    for path in expected:
        assert cv2.imread(str(path)).shape[1] == 1600


def test_pictures_go_to_a_folder_of_their_own_and_random_streams_stay(given: SimpleNamespace, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    options = {"teacher": given.teacher, "source": given.source, "imgsz": SIDE, "project": tmp_path}
    options |= {"method": "samkd+gdetkd", "conf": 0.05, "sgfi_regions": 12, "ckd_regions": 12}
    first = inspect(given.student, **options)
    assert torch.equal(torch.get_rng_state(), before)
    second = inspect(given.student, **options)
    folders = [{path.parent.name for path in paths} for paths in (first, second)]
    assert folders[0] == {"inspect"} and folders[1] in ({"inspect2"}, {"inspect-2"})  # the host's names differ
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_student_without_the_teachers_classes_gets_their_head(given: SimpleNamespace, tmp_path: Path) -> None:
    stranger = save_model(tiny_model(names=("cat", "dog"), seed=1), tmp_path / "stranger.pt")
    scene, pages = seen(SimpleNamespace(**{**vars(given), "student": str(stranger)}), "pcd")
    assert scene.student.logits is not None and scene.student.logits.shape[-1] == len(NAMES) == len(scene.names)
    assert any("new, untrained class head" in note for note in pages[0].notes)
    assert len(scene.targets.boxes) == len(scene.boxes) > 0  # every detection stands in for a label


def test_only_shared_classes_stand_in_for_labels(given: SimpleNamespace, tmp_path: Path) -> None:
    partner = save_model(tiny_model(names=("triangle_up", "dog"), seed=1), tmp_path / "partner.pt")
    scene, _ = seen(SimpleNamespace(**{**vars(given), "student": str(partner)}), "pcd")
    assert scene.names == ["triangle_up"]
    assert len(scene.targets.boxes) == sum(label.startswith("triangle_up") for label in scene.labels) > 0
    assert set(scene.targets.labels.tolist()) == {0}


@pytest.mark.parametrize(("family", "end2end"), [("yolov8n", False), ("yolo26n", False), ("yolo26n", True)])
def test_the_teachers_detections_are_the_hosts(tmp_path: Path, family: str, end2end: bool) -> None:
    model = tiny_model(family, seed=2)
    if end2end:
        model.model[-1].end2end = True  # the host then predicts from the one-to-one branch, without suppression
    case = files(tmp_path, teacher=model)
    options = {"end2end": True} if end2end else {}
    host = YOLO(case.teacher)
    expected = host.predict(case.picture, imgsz=SIDE, conf=0.01, iou=0.7, verbose=False, **options)[0].boxes
    images = torch.from_numpy(case.picture[..., ::-1].copy()).permute(2, 0, 1)[None] / 255
    boxes, probabilities, classes = detect(Teacher(*load_teacher(case.teacher)), images, 0.01)
    found = torch.cat((boxes, probabilities[:, None], classes[:, None]), dim=1)
    assert len(found) >= 3 and (probabilities.diff() <= 0).all()
    distance = torch.cdist(found, expected.data.float())
    assert (distance.amin(dim=1) < 0.1).all()
    if not end2end:  # there the host gives an anchor several classes
        assert len(found) == len(expected) and (distance.amin(dim=0) < 0.1).all()


@pytest.mark.parametrize("family", ["yolo26n", "yolo11n"])
def test_other_families_are_looked_at_too(tmp_path: Path, family: str) -> None:
    case = files(tmp_path, tiny_model(family, seed=1), tiny_model("yolov8n", seed=2))
    scene, pages = seen(case, "dfmsd+pcd")
    assert len(pages) == 3 and scene.targets.positives.any()
    assert any("one-to-many" in note for note in pages[0].notes) == (family == "yolo26n")


MISTAKES = {
    "no model": ({"model": None}, "inspect needs model="),
    "no teacher": ({"teacher": None}, "inspect needs teacher="),
    "no source": ({"source": None}, "inspect needs source="),
    "missing image": ({"source": "nowhere.jpg"}, "there is no such file"),
    "two teachers": ({"teacher": ["a.pt", "b.pt"]}, "one teacher at a time"),
    "no method": ({"method": "none"}, "has nothing to look at"),
    "unknown method": ({"method": "dfmds"}, "did you mean dfmsd"),
    "key of training": ({"epochs": 3}, "epochs=3 is no key of inspect"),
    "unknown key": ({"dfmsd_gama": 1}, "similar: dfmsd_gamma"),
    "bad size": ({"imgsz": "big"}, "imgsz=big"),
    "bad device": ({"device": "tpu"}, "device=tpu"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_said_in_words_and_leave_no_folder(given: SimpleNamespace, tmp_path: Path, case: str) -> None:
    changed, message = MISTAKES[case]
    keys = {"model": given.student, "teacher": given.teacher, "source": given.source, "project": tmp_path / "runs"}
    with pytest.raises(UserError, match=message):
        inspect(**{**keys, **changed})
    assert not (tmp_path / "runs").exists()


def test_a_folder_and_a_file_that_is_no_image_are_refused(given: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder; give one image, e\.g\. source=.*image\.png"):
        inspect(given.student, given.teacher, source=given.folder)
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    with pytest.raises(UserError, match="cannot be read as an image"):
        inspect(given.student, given.teacher, source=text)


def test_the_command_says_mistakes_with_code_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 2
    assert "inspect needs model=" in capsys.readouterr().err


def test_a_part_that_is_off_is_not_shown(given: SimpleNamespace) -> None:
    for key, shown in (("samkd_feature", {"map"}), ("samkd_logit", {"mask"})):
        _, pages = seen(given, "samkd", **{key: 0.0})
        assert {panel.kind for page in pages for panel in titled(page, "samkd")} == shown


def test_weights_of_plain_training_have_no_settings_of_ours(given: SimpleNamespace, tmp_path: Path) -> None:
    weights = save_model(tiny_model(seed=1), tmp_path / "run" / "weights" / "best.pt")
    assert _run_of(weights) == {}
    (tmp_path / "run" / "args.yaml").write_text("model: yolov8n.pt\nepochs: 3\n", encoding="utf-8")
    assert _run_of(weights) == {}


def test_students_that_cannot_be_looked_at_are_refused(given: SimpleNamespace, tmp_path: Path) -> None:
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"model=.*other\.pt cannot be loaded"):
        seen(SimpleNamespace(**{**vars(given), "student": str(tmp_path / "other.pt")}), "pkd")
    four = save_model(tiny_model(seed=1, channels=4), tmp_path / "four.pt")
    with pytest.raises(UserError, match=r"four\.pt takes 4 input channels; inspect reads colour and grey"):
        seen(SimpleNamespace(**{**vars(given), "student": str(four)}), "pkd")


def test_a_teacher_without_anchors_has_no_detections_to_show() -> None:
    teacher = Teacher(*load_teacher(tiny_model("yolov8-rtdetr", task=RTDETRDetectionModel)))
    with pytest.raises(UserError, match="anchor by anchor"):
        detect(teacher, torch.zeros(1, 3, 64, 64), 0.5)
