"""The report in a real browser: no console message, sorting, toggles, and its look at phone and desktop width."""

from __future__ import annotations

import html as markup
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.report_data import made_up_results, write_predictions, write_results
from yolokd.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr",
    "--virtual-time-budget=4000",
)  # fmt: skip
DARK, LIGHT = "--blink-settings=preferredColorScheme=0", "--blink-settings=preferredColorScheme=1"
PHONE, DESKTOP = (390, 844), (1280, 900)
CONSOLE = re.compile(r'CONSOLE[:(]\d+\)?\] "(.*?)", source', re.S)

# Looked at from within the page; what it finds is written into an attribute that the dump holds.
LOOK = """
const found = {width: innerWidth, overflow: document.documentElement.scrollWidth - innerWidth, small: [], out: [],
  ground: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; (node = texts.nextNode()); ) {
  const at = node.parentElement;
  if (!node.data.trim() || at.closest("script, style, .skip, details:not([open]) > pre")) continue;
  const svg = at.closest("svg");
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  const size = parseFloat(getComputedStyle(at).fontSize) * scale;
  if (size < 10.5) found.small.push(`${size.toFixed(1)} ${node.data.slice(0, 30)}`);
  const range = document.createRange();
  range.selectNodeContents(node);
  const box = range.getBoundingClientRect();
  const beside = box.width && (box.right > innerWidth + 1 || box.left < -1);
  if (beside && !at.closest(".scroll")) found.out.push(node.data.slice(0, 30));
}
for (const svg of document.querySelectorAll("svg.chart")) {
  const frame = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll("text")) {
    const box = text.getBoundingClientRect();
    if (box.left < frame.left - 2 || box.right > frame.right + 2) found.out.push(`cut off: ${text.textContent}`);
  }
}
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    from yolokd.drawn.shapes import draw_dataset

    data = draw_dataset(tmp_path_factory.mktemp("data") / "shapes", images=(1, 8), imgsz=128, seed=0, classes=3)
    results = made_up_results()
    folder = write_results(tmp_path_factory.mktemp("compare") / "a b#c", results)  # signs that an address must escape
    write_predictions(folder, results, data)
    return write_report(folder)[1]


@pytest.fixture(scope="module")
def browse(tmp_path_factory) -> Callable[..., tuple[str, list[str]]]:
    """Run the browser on a page; return the dumped document and the console's messages."""
    profile = tmp_path_factory.mktemp("profile")

    def run(page: Path, *flags: str, size: tuple[int, int] = DESKTOP, fragment: str = "") -> tuple[str, list[str]]:
        action = [] if any(flag.startswith("--screenshot") for flag in flags) else ["--dump-dom"]
        window = f"--window-size={max(size[0], 500)},{size[1]}"
        command = [BROWSER, *QUIET, f"--user-data-dir={profile}", window, *flags, *action, page.as_uri() + fragment]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout, CONSOLE.findall(done.stderr)

    return run


def with_script(page: Path, script: str, name: str, width: int | None = None) -> Path:
    """Write a copy of the page that also runs a script and keeps its `found`; in a frame if a width is given.

    A window of Chromium is at least 500 pixels wide, so that a phone's width takes a frame.
    """
    text = page.read_text(encoding="utf-8")
    text, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert count == 1
    keep = 'top.document.documentElement.setAttribute("data-found", JSON.stringify(found));'
    text = text.replace("</body>", f"<script>{{{script}\n{keep}}}</script></body>")
    if width is not None:
        frame = f'<iframe style="border:0;width:{width}px;height:12000px" srcdoc="{markup.escape(text)}"></iframe>'
        scheme = '<meta name="color-scheme" content="light dark">'
        text = f'<!doctype html><html><head>{scheme}</head><body style="margin:0">{frame}</body></html>'
    path = page.with_name(name)
    path.write_text(text, encoding="utf-8")
    return path


def found(document: str) -> Any:
    """Return what the test's script found."""
    match = re.search(r'data-found="([^"]*)"', document)
    assert match, document[:500]
    return json.loads(markup.unescape(match[1]))


def order(document: str) -> list[str]:
    """Return the arms in the order of the main table's rows."""
    body = document.split('id="main-table"')[1].split("</tbody>")[0]
    return re.findall(r'<th scope="row" data-v="([^"]*)"', body)


def test_a_console_message_would_be_seen(browse, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<!doctype html><script>console.warn('here'); missing()</script>")
    assert browse(path)[1] == ["here", "Uncaught ReferenceError: missing is not defined"]
    path.write_text(
        '<!doctype html><meta http-equiv="Content-Security-Policy" content="script-src \'none\'"><script>1</script>'
    )
    assert "violates" in browse(path)[1][0]


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_the_console_stays_silent(page, browse, scheme):
    document, messages = browse(page, scheme)
    assert messages == [] and 'id="main-table"' in document
    assert re.search(r'<button type="button" id="theme"[^>]*>(Dark|Light)</button>', document)
    assert 'id="theme" aria-live="polite" hidden' not in document  # the script has run


def test_an_address_sorts_the_table(page, browse):
    values = {arm["name"]: arm["mean"]["ap"] for arm in made_up_results()["arms"]}
    rising = sorted(values, key=lambda name: values[name])
    assert order(browse(page)[0]) == list(values) != rising
    document, messages = browse(page, fragment="#sort=ap")
    assert order(document) == rising and messages == []
    assert re.findall(r'<th [^>]*data-key="(\w+)"[^>]*aria-sort="(\w+)"', document) == [("ap", "ascending")]
    assert order(browse(page, fragment="#sort=-ap&theme=dark")[0]) == rising[::-1]
    document, messages = browse(page, fragment="#sort=%22%5D%3Cb%3E&theme=none")
    assert order(document) == list(values) and messages == []


def test_headings_sort_and_missing_values_stay_last(page, browse):
    script = """
      const found = {};
      const names = (table) => [...table.tBodies[0].rows].map((row) => row.cells[0].dataset.v);
      const table = document.getElementById("main-table");
      for (const key of ["ap", "name", "gap"]) {
        const heading = table.querySelector(`th[data-key="${key}"]`);
        found[key] = [0, 1].map(() => (heading.querySelector("button").click(), [heading.ariaSort, names(table)]));
      }
      const classes = document.querySelector("#classes table");
      classes.querySelector('th[data-key="objects"] button').click();
      found.classes = names(classes);
      found.foot = table.tFoot.rows.length;
    """
    document, messages = browse(with_script(page, script, "click.html"))
    result, arms = found(document), made_up_results()["arms"]
    ranked = [a["name"] for a in sorted(arms, key=lambda arm: -arm["mean"]["ap"])]
    assert result["ap"] == [["descending", ranked], ["ascending", ranked[::-1]]]
    alphabet = sorted(arm["name"] for arm in arms)
    assert result["name"] == [["ascending", alphabet], ["descending", alphabet[::-1]]]
    assert [names[-1] for _, names in result["gap"]] == ["none", "none"]  # a control closes no gap
    assert result["classes"][:3] == ["RBC", "Platelets", "WBC"] and result["foot"] == 1 and messages == []


def test_toggles_and_the_values_under_the_pointer(page, browse):
    script = """
      const found = {}, root = document.documentElement, theme = document.getElementById("theme");
      const ground = () => getComputedStyle(document.body).backgroundColor;
      found.grounds = [ground(), (theme.click(), ground()), (theme.click(), ground())];
      found.label = theme.textContent;
      const figure = document.querySelector("figure[data-chart]"), svg = figure.querySelector("svg");
      const box = svg.getBoundingClientRect();
      const point = () => svg.dispatchEvent(new PointerEvent("pointermove",
        {clientX: box.left + box.width * 0.97, clientY: box.top + 50, bubbles: true}));
      point();
      found.all = figure.querySelector(".values").textContent;
      document.querySelector('.legend button[data-arm="dfmsd"]').click();
      point();
      found.fewer = figure.querySelector(".values").textContent;
      const parts = [...document.querySelectorAll('svg.chart [data-arm="dfmsd"]')];
      found.hidden = parts.filter((part) => part.style.display === "none").length;
      found.drawn = parts.length;
      found.pressed = document.querySelectorAll('.legend button[aria-pressed="false"]').length;
    """
    document, messages = browse(with_script(page, script, "toggle.html"), LIGHT)
    result = found(document)
    light, dark, again = result["grounds"]
    assert light == again == "rgb(255, 255, 255)" and dark == "rgb(19, 23, 29)" and result["label"] == "Dark"
    last = made_up_results()["arms"][0]["runs"]
    mean = 100 * np.mean([run["curves"]["metrics/mAP50-95(B)"][-1] for run in last])
    assert result["all"].startswith(f"Epoch 20: none {mean:.2f}, ultralytics ") and "dfmsd " in result["all"]
    assert "dfmsd " not in result["fewer"] and "dfmsd+pcd " in result["fewer"]
    assert result["hidden"] == result["drawn"] >= 4 and result["pressed"] >= 3 and messages == []


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_legible_and_nothing_beside_the_page(page, browse, size, scheme):
    width = size[0] if size == PHONE else None
    document, messages = browse(with_script(page, LOOK, "look.html", width), scheme, size=size)
    result = found(document)
    assert result["width"] == size[0] and result["overflow"] <= 0
    assert result["small"] == [] and result["out"] == [] and messages == []
    dark = scheme == DARK
    assert result["ground"] == ("rgb(19, 23, 29)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_the_screenshot_is_drawn(page, browse, scheme, tmp_path):
    shot = tmp_path / "shot.png"
    browse(page, scheme, f"--screenshot={shot}", size=(1280, 3200))
    image = cv2.imread(str(shot))
    assert image.shape == (3200, 1280, 3)
    ground = np.array([29, 23, 19] if scheme == DARK else [255, 255, 255])
    share = (image == ground).all(axis=2).mean()
    assert 0.5 < share < 0.97
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 200  # curves, bands and marks of several colours


def test_a_script_that_came_in_by_a_name_would_not_run(page, browse):
    """The policy is the second line behind the escaping: here the escaping is broken on purpose."""
    text = page.read_text(encoding="utf-8")
    path = page.with_name("hurt.html")
    path.write_text(text.replace("</main>", "<script>document.title = 'caught'</script></main>"), encoding="utf-8")
    document, messages = browse(path)
    assert "<title>caught" not in document and len(messages) == 1 and "violates" in messages[0]


def test_the_smallest_report_is_silent_too(browse, tmp_path):
    results = {"schema": 1, "arms": [{"name": "none", "runs": [{"seed": 0, "status": "pending"}]}]}
    assert browse(write_report(write_results(tmp_path / "x", results))[1])[1] == []
