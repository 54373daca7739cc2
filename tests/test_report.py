"""Reports from a made-up results.json: the numbers, the escaping, and what a broken comparison gives."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.report_data import CLASSES, made_up_results, write_predictions, write_results
from yolokd import cli, report
from yolokd.errors import UserError
from yolokd.report import charts, traces, view, words
from yolokd.report.examples import Truth, _thumbnail, find_examples, match
from yolokd.report.html import TEMPLATES, html, safe_json


class Page(HTMLParser):
    """A parsed report: its elements with attributes, the cells of its tables, and whether every element is closed."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "circle", "polygon", "polyline"})

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.tables: list[list[list[str]]] = []
        self.stack: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == [], f"not closed: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in {"td", "th"}:
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, tag

    def handle_data(self, data):
        if "script" in self.stack:
            self.scripts[-1] += data
        if "table" in self.stack and {"td", "th"} & set(self.stack):
            self.tables[-1][-1][-1] += data


def markdown_tables(text: str) -> list[list[list[str]]]:
    """Read the pipe tables of a Markdown text back."""
    tables: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        before = line
    return tables


@pytest.fixture(scope="module")
def results():
    return made_up_results()


@pytest.fixture(scope="module")
def page(results):
    return html(results)


# Numbers --------------------------------------------------------------------------------------------------------------
def test_both_files_are_written_and_results_stay_as_they_were(tmp_path, results):
    folder = write_results(tmp_path / "c", results)
    before = (folder / "results.json").read_bytes()
    assert report.write_report(folder) == [folder / "report.md", folder / "report.html"]
    assert {p.name for p in folder.iterdir()} == {"results.json", "report.md", "report.html"}
    assert (folder / "results.json").read_bytes() == before


def test_the_main_table_has_the_numbers_of_results_json_in_both_files(results, page):
    by_name = {arm["name"]: arm for arm in results["arms"]}
    markdown = markdown_tables(report.markdown(results))[0]
    table = Page(page).tables[0]
    assert markdown[0][:5] == ["Arm", "AP", "vs none", "Verdict", "vs ultralytics"]
    assert table[0] == markdown[0]
    assert [row[0] for row in table[1:]] == ["none", "ultralytics", "dfmsd", "pcd", "dfmsd+pcd", "teacher"]
    ap50 = markdown[0].index("AP50")
    for row, plain in zip(table[1:-1], markdown[2:-1]):
        arm = by_name[row[0]]
        assert plain[1] == f"{100 * arm['mean']['ap']:.2f} ± {100 * arm['sd']['ap']:.2f}" == row[1]
        assert plain[ap50] == f"{100 * arm['mean']['ap50']:.2f}" == row[ap50]
        if arm["name"] != "none":
            c = arm["versus"]["none"]
            interval = f"[{100 * c['low']:+.2f}, {100 * c['high']:+.2f}]"
            assert plain[2] == f"{100 * c['difference']:+.2f} {interval}"
            assert row[2] == f"{100 * c['difference']:+.2f}{interval}"
            assert plain[3] == row[3] == c["verdict"]
    assert {len(row) for row in markdown} == {len(markdown[0])} and {len(row) for row in table} == {len(table[0])}
    assert markdown[-1][1] == table[-1][1] == "66.00"  # the teacher


def test_cells_sort_by_the_values_of_results_json(page, results):
    found = re.findall(r'<th scope="row" data-v="([^"]*)">.*?<td data-v="([^"]*)">', page)
    assert {name: float(v) for name, v in found[:5]} == {a["name"]: a["mean"]["ap"] for a in results["arms"]}


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "500 ms"), (1, "1 s"), (90.4, "90.4 s"), (600, "10 min"), (9000, "2.5 h"), (None, "–")]
)
def test_durations(value, text):
    assert view.seconds(value) == text


def test_what_is_no_number_is_a_dash():
    for value in (None, float("nan"), float("inf"), "x", True):
        assert view.points(value) == view.memory(value) == view.times(value) == view.percent(value) == "–"
    assert view.points(0.01234, sign=True) == "+1.23" and view.points(-0.5) == "-50.00" and view.percent(0.5) == "50 %"


def test_class_rows_are_paired_by_seed(results):
    rows = {row[0]: row for row in traces.class_rows(results)}
    assert [r[0] for r in traces.class_rows(results)] == ["RBC", "Platelets", "WBC", CLASSES[3], CLASSES[4]]
    none, pcd = results["arms"][0]["runs"], results["arms"][3]["runs"]
    wanted = [pcd[i]["metrics"]["per_class"]["WBC"] - none[i]["metrics"]["per_class"]["WBC"] for i in (0, 1)]
    assert rows["WBC"][3]["pcd"] == pytest.approx(wanted)  # the third seed failed
    assert rows["WBC"][1] == 72 and len(rows["WBC"][3]["dfmsd"]) == 3


def test_curves_are_the_mean_and_range_over_seeds_that_did_not_fail():
    runs = [
        {"seed": 0, "status": "done", "curves": {"epoch": [1.0, 2.0], "kd/x": [1.0, 2.0]}},
        {"seed": 1, "status": "training", "curves": {"epoch": [1.0, 2.0, 3.0], "kd/x": [3.0, None, 5.0]}},
        {"seed": 2, "status": "failed", "curves": {"epoch": [1.0], "kd/x": [100.0]}},
    ]
    arm = {"name": "a", "runs": runs}
    assert traces.curve(arm, "kd/x") == [(1.0, 2.0, 1.0, 3.0), (2.0, 2.0, 2.0, 2.0), (3.0, 5.0, 5.0, 5.0)]
    assert traces.curve(arm, "kd/y") == []
    control = {"name": "none", "runs": [{"seed": 1, "status": "done", "curves": {"epoch": [1.0], "kd/x": [2.5]}}]}
    assert traces.curve(arm, "kd/x", control) == [(1.0, 0.5, 0.5, 0.5)]


def test_pairs_that_saw_different_images_are_left_out_everywhere(with_images):
    folder, results = with_images
    other = json.loads(json.dumps(results))
    other["arms"][2]["runs"][1]["stream_hash"] = "another"
    plain, arm = other["arms"][0], other["arms"][2]
    assert len(traces.paired_differences(arm, plain, "ap")) == 2
    assert len(traces.paired_differences(arm, plain, "WBC", "per_class")) == 2
    assert next(t.seeds for t in find_examples(folder, other).tallies if t.arm == "dfmsd") == 2
    values = [traces.by_epoch(run, view.EPOCH_AP)[20.0] for a in (arm, plain) for run in a["runs"]]
    wanted = sorted([values[0] - values[3], values[2] - values[5]])
    assert traces.curve(arm, view.EPOCH_AP, plain)[-1][2:] == pytest.approx(wanted)


def test_terms_are_those_of_distillation_and_each_is_shown_once(results):
    assert traces.term_columns(results) == ["train/dis_loss", "kd/dfmsd", "kd/pcd"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.03, 0.047), (-3, 61), (5, 5), (0, 0), (-1e-9, 1e-9), (1e5, 3e6)])
def test_ticks_are_round_and_enclose(low, high):
    marks = charts.ticks(low, high)
    assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12 and 2 <= len(marks) <= 9
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0]) and float(f"{steps[0]:.3g}") == pytest.approx(steps[0])


# Words ----------------------------------------------------------------------------------------------------------------
def headline(verdicts: dict[str, tuple[int, float, str]], plain: bool = True) -> str:
    arms = [{"name": "none", "method": "none", "runs": []}] if plain else []
    for name, (n, difference, verdict) in verdicts.items():
        comparison = {"n": n, "difference": difference, "verdict": verdict}
        arms.append({"name": name, "method": name, "runs": [], "versus": {"none": comparison} if plain else {}})
    return words.headline({"arms": arms})


def test_headlines():
    same = "not distinguishable"
    text = headline({"a": (3, 0.01, "better"), "b": (3, 0.02, "better"), "c": (3, 0.0, same)})
    assert text == "Distillation helps here: b (+2.00 AP) and a (+1.00 AP) are better than plain training."
    assert headline({"a": (3, 0.01, "better"), "b": (3, -0.02, "worse")}).endswith("plain training. b is worse.")
    assert headline({"a": (3, -0.02, "worse"), "b": (3, 0.0, same)}) == (
        "Distillation hurts here: a is worse than plain training. b is not distinguishable from it."
    )
    assert headline({"a": (3, 0.004, same), "b": (3, 0.001, same)}) == (
        "With 3 seeds no arm is distinguishable from plain training; the highest is a (+0.40 AP)."
    )
    assert headline({"a": (1, 0.3, same)}).startswith("One seed cannot tell")
    assert headline({"a": (0, 0.0, same)}).startswith("No distilled run and plain run")
    assert headline({"a": (3, 0.3, "better")}, plain=False).startswith("There is no plain run")


def test_failures_and_open_runs_are_told_first(results, page):
    assert "seed2/pcd failed: RuntimeError" in words.notes(results)[0]
    assert page.index("Before you rely on this") < page.index('id="main-table"')
    open_ = made_up_results(seeds=2, fail=False)
    open_["arms"][2]["runs"][1] |= {"status": "pending", "metrics": None}
    assert any("1 of 10 runs are not finished" in note for note in words.notes(open_))
    assert words.notes(made_up_results(fail=False)) == []


def test_a_plain_run_that_has_hardly_learned_is_said_before_the_numbers_are_believed():
    """All that starts from a teacher's weights beats it, whatever the end would be."""
    results = made_up_results(fail=False)
    for ap, said in ((0.0024, True), (0.3, False)):
        view.find(results, "none")["mean"]["ap"] = ap
        assert any("Plain training has 0.24 AP: it has hardly begun" in note for note in words.notes(results)) is said
    assert "Before you rely" not in html(made_up_results(fail=False))


def test_checks_say_what_was_not_verified(results):
    assert [word for _, word in words.check_rows(results)] == ["yes", "yes", "yes"]
    checks = {"same_stream": None, "same_initial": False, "same_epochs": True}
    assert [word for _, word in words.check_rows({"checks": checks})] == ["not verified", "no", "yes"]


# Hostile and broken input ---------------------------------------------------------------------------------------------
def test_names_are_escaped_everywhere(results, tmp_path):
    evil = "</script><img src=x onerror=alert(1)>\"'&`|*_"
    hurt = json.loads(json.dumps(results).replace("dfmsd+pcd", "EVIL")) | {"command": evil, "created": evil}
    hurt = json.loads(json.dumps(hurt).replace('"EVIL"', json.dumps(evil)))
    hurt["environment"][evil] = evil
    hurt["data"] |= {"yaml": evil, "names": [evil]}
    hurt["checks"] |= {"problems": [evil], "notes": [evil]}
    for run in hurt["arms"][2]["runs"]:
        run |= {"folder": evil, "error": evil, "traceback": evil}
        run["curves"][f"kd/{evil}"] = [1.0] * 20
        run["metrics"]["per_class"][evil] = 0.5
    text = html(hurt)
    assert "<script>alert(1)</script>" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "<img" not in text and text.count(evil.replace('"', "&quot;")) == 0
    page = Page(text)  # every element closed, in order
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    assert [tag for tag, _ in page.elements].count("script") == 2 == len(page.scripts)
    assert evil in {s["name"] for chart in json.loads(page.scripts[0])["charts"].values() for s in chart["series"]}
    plain = report.markdown(hurt)
    assert "<img" not in plain.replace(f"    {evil}", "") and "<script>" not in plain
    for table in markdown_tables(plain):
        assert len({len(row) for row in table}) == 1


def test_control_characters_and_broken_unicode_do_not_stop_the_report(tmp_path, results):
    bad = json.loads(json.dumps(results))
    bad["command"] = "a\x00b\x1b[31m\ud800"
    folder = write_results(tmp_path / "c", bad)
    report.write_report(folder)
    for name in ("report.md", "report.html"):
        assert "\x00" not in (folder / name).read_text(encoding="utf-8")
        assert "\x1b" not in (folder / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_results_that_are_no_strict_json_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(f'{{"schema": 1, "x": {text}}}')
    with pytest.raises(UserError, match=rf"holds {text}, which is no JSON"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "is missing"), ("{", "cannot be read"), ("[]", "schema None"), ('{"schema": 2}', "has schema 2")],
)
def test_unusable_results_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=message):
        report.write_report(tmp_path)


def test_the_data_in_the_page_is_strict_json():
    assert json.loads(safe_json({"a": "</script><!--", "b": [1, None]})) == {"a": "</script><!--", "b": [1, None]}
    assert "<" not in safe_json("</script>") and ">" not in safe_json("-->")
    with pytest.raises(ValueError):
        safe_json(float("nan"))


def test_one_seed_has_no_spread_and_no_verdict():
    one = made_up_results(seeds=1, fail=False)
    c = one["arms"][2]["versus"]["none"]
    c |= {"low": -0.01, "high": 0.03, "source": "images"}
    rows = {row[0]: row for row in markdown_tables(report.markdown(one))[0]}
    assert "±" not in "".join(rows["dfmsd"]) and rows["dfmsd"][3] == "one seed"
    assert rows["dfmsd"][2].endswith("[-1.00, +3.00]") and "[" not in rows["dfmsd+pcd"][2]
    assert "One seed cannot tell" in html(one)


def test_arms_that_all_failed_or_did_not_begin(tmp_path):
    lost = made_up_results(seeds=2)
    for arm in lost["arms"]:
        for run in arm["runs"]:
            run |= {"status": "failed", "error": "boom", "metrics": None, "curves": {}}
        arm |= {"mean": dict.fromkeys(arm["mean"]), "sd": dict.fromkeys(arm["sd"]), "gap_closed": None}
        arm |= {"versus": {}, "step_ratio": None}
    page = Page(html(lost))
    assert [row[3] for row in page.tables[0][1:-1]] == ["failed"] * 5
    lost["arms"] = []
    Page(html(lost))
    assert "There is no plain run" in report.markdown(lost)


def test_the_least_that_a_results_json_can_hold():
    least = {"schema": 1, "arms": [{"name": "none", "runs": [{"seed": 0, "status": "pending"}]}]}
    assert "not finished" in Page(html(least)).tables[0][1][3]
    assert report.markdown(least).count("| none |") == 2  # as an arm and as a run


def test_without_controls_their_columns_are_left_out():
    alone = made_up_results(methods=("dfmsd", "pcd"))
    head = markdown_tables(report.markdown(alone))[0][0]
    assert not [word for word in head if word.startswith("vs ")]
    Page(html(alone))


def test_many_arms_and_classes_stay_apart():
    many = made_up_results(methods=("none", *[f"m{i}" for i in range(16)]), classes=[f"class {i}" for i in range(80)])
    text = html(many)
    Page(text)
    colours = view.colours(many)
    looks = {(charts.style(c), charts.dash(c)) for c in colours.values()}
    assert len(looks) == len(colours) == 18  # with the place of the built-in one
    assert 'class="scroll tall"' in text


# One file, offline ----------------------------------------------------------------------------------------------------
def test_the_page_loads_nothing_and_runs_its_own_script_only(page):
    parsed = Page(page)
    for tag, attrs in parsed.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            value = attrs.get(name) or ""
            assert value == "" or value.startswith(("#", "data:image/jpeg;base64,")), (tag, value)
    assert not re.search(r"https?:|url\(|@import", page)
    policy = next(a["content"] for t, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(parsed.scripts[1].encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    first, second = sorted((luminance(a), luminance(b)))
    return (second + 0.05) / (first + 0.05)


def test_colours_are_legible_in_light_and_dark():
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    blocks = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r"\{([^{}]*)\}", css)]
    palettes = [block for block in blocks if "bg" in block]
    assert len(palettes) == 3 and palettes[1] == palettes[2]  # chosen dark is the system's dark
    for p in palettes:
        grounds = (p["bg"], p["panel"], p["note-bg"])
        assert min(contrast(p[k], ground) for k in ("ink", "muted") for ground in grounds) >= 4.5
        assert (
            min(contrast(p["good"], p["good-bg"]), contrast(p["bad"], p["bad-bg"]), contrast(p["accent"], p["bg"]))
            >= 4.5
        )
        assert min(contrast(p[f"c{i}"], p["bg"]) for i in range(charts.COLOURS)) >= 3


def test_templates_are_shipped():
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^"yolokd\.report" = \["templates/\*"\]$', project, re.M)
    assert {p.name for p in TEMPLATES.iterdir()} == {"report.html", "report.css", "report.js"}


# Examples -------------------------------------------------------------------------------------------------------------
def test_matching_is_greedy_by_confidence_and_each_detection_counts_once():
    truth = Truth(
        np.array([[0, 0, 10, 10], [4, 0, 10, 10], [50, 50, 8, 8]], dtype=float), [(1, 0)] * 2 + [(1, 1)], {}, {}
    )
    boxes = [([4, 0, 10, 10], 0, 0.5), ([1, 0, 10, 10], 0, 0.9), ([50, 50, 8, 8], 0, 0.9), ([50, 50, 8, 8], 1, 0.2)]
    detections = [{"image_id": 1, "bbox": b, "category_id": c, "score": s} for b, c, s in boxes]
    found = match(truth, detections)
    assert found[0].tolist() == [1, 0, 10, 10] and found[1].tolist() == [4, 0, 10, 10]
    assert np.isnan(found[2]).all()  # of another class, or not confident enough
    assert np.isnan(match(truth, [detections[1]])[1]).all()  # one detection finds one object
    assert np.isnan(match(truth, [{**detections[0], "bbox": [9, 0, 10, 10]}])).all()  # IoU 1/3


def test_detections_beyond_the_objects_of_their_class_find_nothing():
    truth = Truth(np.array([[0, 0, 10, 10]], dtype=float), [(1, 0)], {}, {})
    boxes = (([0, 0, 10, 10], 0.8), ([0, 0, 10, 9], 0.9))
    found = match(truth, [{"image_id": 1, "category_id": 0, "bbox": box, "score": score} for box, score in boxes])
    assert found.tolist() == [[0, 0, 10, 9]]  # the surer one, although the other fits better


def test_what_is_no_image_has_no_thumbnail(tmp_path):
    box = np.array([4.0, 4.0, 8.0, 8.0])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    for name in ("text.png", "empty.png", "missing.png"):
        assert _thumbnail(tmp_path / name, box, box) is None
    import cv2

    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((32, 32, 3), dtype=np.uint8))
    assert _thumbnail(tmp_path / "good.png", box, box) is not None
    assert _thumbnail(tmp_path / "good.png", np.array([99.0, 99.0, 4.0, 4.0]), box) is None  # outside


def test_a_curve_without_points_is_left_out():
    drawn = [charts.Series("a", 0, [(1.0, 2.0, 1.0, 3.0), (2.0, 2.0, 1.0, 3.0)]), charts.Series("b", 1)]
    both, one = (charts.lines(series, "t", "x", "y") for series in (drawn, drawn[:1]))
    assert both.count("<polyline") == one.count("<polyline") == 1


@pytest.fixture(scope="module")
def with_images(tmp_path_factory):
    from yolokd.drawn.shapes import draw_dataset

    data = draw_dataset(tmp_path_factory.mktemp("data") / "shapes", images=(1, 6), imgsz=64, seed=0, classes=3)
    results = made_up_results()
    folder = write_results(tmp_path_factory.mktemp("compare") / "x", results)
    write_predictions(folder, results, data)
    return folder, results


def test_examples_are_what_the_one_finds_and_the_other_misses(with_images):
    folder, results = with_images
    truth = json.loads((folder / "ground_truth.json").read_text())["annotations"]
    count = range(len(truth))
    found = find_examples(folder, results, limit=3)
    assert found.arm == "dfmsd+pcd" and found.reason == ""
    tally = found.tallies[-1]
    assert (tally.arm, tally.seeds) == ("dfmsd+pcd", 3) and found.tallies[2].seeds == 2
    assert tally.gained == sum(i % 2 == 0 and i % 5 != 1 for i in count)
    assert tally.lost == sum(i % 2 == 1 and i % 5 == 1 for i in count) > 0
    assert tally.both + tally.gained + tally.lost + tally.neither == len(truth)
    assert len(found.gained) == 3 and len({example.image for example in found.gained}) == 3
    for example in found.gained:
        assert (example.found, example.found_plain) == (3, 0)
        assert base64.b64decode(example.jpeg).startswith(b"\xff\xd8") and max(example.width, example.height) == 340
    assert all((example.found, example.found_plain) == (0, 3) for example in found.lost)


def test_the_page_with_images_is_sound_and_small(with_images):
    folder, _ = with_images
    _, path = report.write_report(folder)
    page = Page(path.read_text(encoding="utf-8"))
    images = [attrs for tag, attrs in page.elements if tag == "img"]
    assert len(images) >= 4 and all(
        image["alt"] and image["src"].startswith("data:image/jpeg;base64,") for image in images
    )
    assert path.stat().st_size < 1_000_000


def test_examples_without_images_or_predictions_say_why(with_images, tmp_path):
    folder, results = with_images
    assert "ground_truth.json" in find_examples(tmp_path, results).reason
    alone = {**results, "arms": [arm for arm in results["arms"] if arm["name"] != "none"]}
    assert "not one arm of plain training" in find_examples(folder, alone).reason
    gone = write_results(tmp_path / "gone", results)
    truth = json.loads((folder / "ground_truth.json").read_text())
    (gone / "ground_truth.json").write_text(json.dumps(truth))
    assert "No seed has predictions" in find_examples(gone, results).reason
    for image in truth["images"]:
        image["file_name"] = "gone/" + Path(image["file_name"]).name
    moved = json.loads(json.dumps(results))
    for arm in moved["arms"]:
        for run in arm["runs"]:
            run["folder"] = str(folder / run["folder"])
    (gone / "ground_truth.json").write_text(json.dumps(truth))
    found = find_examples(gone, moved)
    assert found.tallies and not found.gained and "no longer where they were" in found.reason
    assert "no longer where they were" in html(moved, found)


# Commands -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def fake_runs(monkeypatch):
    """Stand in for the reading of run folders, which has its own tests; a NaN comes with it."""
    asked = []

    def from_runs(folders, **_):
        asked.append(folders)
        found = made_up_results(seeds=1, fail=False)
        found["arms"][0]["runs"][0]["step_s"] = float("nan")
        found["data"]["yaml"] = "gone.yaml"
        return found

    monkeypatch.setitem(sys.modules, "yolokd.results", types.SimpleNamespace(from_runs=from_runs))
    return asked


def test_a_report_of_run_folders(fake_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert cli.main(["report", "a", "b"]) == 0
    assert fake_runs == [[Path("a"), Path("b")]]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [str(Path("runs/report") / n) for n in ("results.json", "report.md", "report.html")]
    written = report.read_results("runs/report")  # strict: it refuses NaN
    assert written["arms"][0]["runs"][0]["step_s"] is None
    assert cli.main(["report", "a", "b"]) == 0 and Path("runs/report2/report.html").is_file()
    assert cli.main(["report", "a", "out=there"]) == 0 and Path("there/report.html").is_file()


def test_a_folder_with_results_is_reported_in_place(fake_runs, tmp_path, results, capsys):
    folder = write_results(tmp_path / "c", results)
    assert cli.main(["report", str(folder)]) == 0
    assert fake_runs == [] and (folder / "report.html").is_file()
    (folder / "plan.json").write_text("{}")  # a comparison: its runs are read anew
    assert cli.main(["report", str(folder)]) == 0
    assert fake_runs == [[folder]] and len(report.read_results(folder)["arms"][0]["runs"]) == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["report"], "needs run folders"),
        (["report", "nowhere"], "is no folder"),
        (["report", "a", "imgsz=32"], "imgsz= is no key"),
        (["report", "a", "split="], "split= is empty"),
        (["report", "a", "device=gpu"], "device=gpu is none"),
    ],
)
def test_mistakes_in_the_command_are_told(argv, message, fake_runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_runs_of_yolo_train_are_evaluated_and_reported(tiny_data, tiny_student, tmp_path, capsys):
    """The way from run folders to the page with nothing made up but the training."""
    for name, method in (("plain", None), ("distilled", "dfmsd")):
        folder = tmp_path / name
        (folder / "weights").mkdir(parents=True)
        (folder / "weights" / "best.pt").write_bytes(tiny_student("yolov8n").read_bytes())
        own = f"method: {method}\n" if method else ""
        text = f"task: detect\nmodel: yolov8n.pt\ndata: {tiny_data}\nepochs: 2\nimgsz: 64\nbatch: 2\nseed: 0\n{own}"
        (folder / "args.yaml").write_text(text)
        (folder / "results.csv").write_text("epoch,time,metrics/mAP50-95(B)\n1,1.0,0.1\n2,2.0,nan\n")
    assert cli.main(["report", str(tmp_path / "plain"), str(tmp_path / "distilled"), f"out={tmp_path / 'out'}"]) == 0
    written = report.read_results(tmp_path / "out")
    assert [arm["name"] for arm in written["arms"]] == ["none", "dfmsd"]
    assert written["arms"][1]["versus"]["none"]["difference"] == 0.0
    assert written["arms"][0]["runs"][0]["curves"]["metrics/mAP50-95(B)"] == [0.1, None]
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert [row[0] for row in page.tables[0][1:]] == ["none", "dfmsd"]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "One seed cannot tell" in text and text.count("not verified") >= 2
