"""What is shipped and how it is laid out: one name in six places, import arrows, the wheel, and clean text."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import yolokd
from yolokd import config
from yolokd.environment import PACKAGES, SUPPORTED
from yolokd.losses import ALIASES, LOSSES
from yolokd.losses.base import DistillLoss

ROOT = Path(__file__).parents[1]
OPS = {"adapters", "anchors", "attention", "binary", "constants", "eager", "pooling", "regions"}
HELPERS = {"taps", "errors", "losses.base", *(f"ops.{name}" for name in OPS)}
SKIPPED = {".git", ".venv", "build", "dist", "runs", "__pycache__", ".hypothesis", ".mypy_cache", ".ruff_cache"}
TEXT = {".py", ".yaml", ".yml", ".toml", ".md", ".cfg", ".txt", ".ipynb", ".json", ".sh", ""}

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest on 3.10

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """Return the dotted names of the modules that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names.add(node.module or "")
            if node.module == "yolokd":
                names |= {f"yolokd.{alias.name}" for alias in node.names}
    return names


def project_files() -> list[Path]:
    """Return the project's own text files."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode == 0:
        paths = [ROOT / line for line in done.stdout.splitlines()]
    else:  # not a clone, e.g. an unpacked archive
        paths = [path for path in ROOT.rglob("*") if not SKIPPED & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and path.suffix in TEXT]


# One name in six places -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LOSSES)
def test_a_method_has_one_name_in_six_places(name):
    loss = LOSSES[name]
    assert loss.name == name  # the column NAME_loss is made of this one
    assert loss.__module__ == f"yolokd.losses.{name}" and (ROOT / "yolokd" / "losses" / f"{name}.py").is_file()
    assert loss.__name__.lower() == f"{name}loss"
    assert f"{name}_gain" in config.KEYS
    assert config.recipe(name).is_file()
    assert (ROOT / "tests" / "losses" / f"test_{name}.py").is_file()
    assert getattr(yolokd, loss.__name__) is loss and loss.__name__ in dir(yolokd)
    assert re.search(r"arXiv \d{4}\.\d{4,5}", loss.paper) and loss.paper.split(",")[0] in (loss.__doc__ or "")


def test_files_keys_and_tests_name_no_method_that_there_is_not():
    assert set(config.METHODS) == set(LOSSES)
    files = {path.stem for path in (ROOT / "yolokd" / "losses").glob("*.py")} - {"__init__", "base"}
    assert files == set(LOSSES)
    tests = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / "losses").glob("test_*.py")}
    assert set(LOSSES) <= tests
    assert set(config.recipes()) == {*LOSSES, *ALIASES, "dmkd", "dfmsd+pcd"}
    for key in config.KEYS:
        assert key.split("_")[0] in {*LOSSES, "kd", "teacher", "method"}, key


@pytest.mark.parametrize("name", LOSSES)
def test_the_constructors_defaults_are_those_of_default_yaml(name):
    import inspect

    own = {key.removeprefix(f"{name}_") for key in config.KEYS if key.startswith(f"{name}_")} - {"gain"}
    own -= {"stages"} if name == "dfmsd" else set()  # the criterion's
    parameters = inspect.signature(LOSSES[name].__init__).parameters
    taken = {k: p.default for k, p in parameters.items() if k not in {"self", "pair"} and p.kind is not p.VAR_KEYWORD}
    assert set(taken) <= own
    for key, default in taken.items():
        value = config.DEFAULTS[f"{name}_{key}"]
        assert default == (tuple(value) if isinstance(default, tuple) else value), key
    assert own - set(taken) <= set(LOSSES[name].part_names)


def test_parts_have_a_key():
    for name, loss in LOSSES.items():
        assert {f"{name}_{part}" for part in loss.part_names} <= set(config.KEYS)
        assert issubclass(loss, DistillLoss)


def test_our_keys_are_none_of_the_hosts():
    from ultralytics.utils import DEFAULT_CFG_DICT

    assert not set(config.KEYS) & {*DEFAULT_CFG_DICT, "save_dir", "augmentations", "half", "int8", "end2end"}


# Import arrows --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_imports_torch_and_shared_helpers_only(name):
    allowed = {f"yolokd.{helper}" for helper in HELPERS}
    for module in imported(ROOT / "yolokd" / "losses" / f"{name}.py"):
        top = module.split(".")[0]
        if top == "yolokd":
            assert module in allowed, module
        else:
            assert top in {"torch", "torchvision"} or top in sys.stdlib_module_names, module


@pytest.mark.parametrize("helper", sorted(HELPERS))
def test_a_helper_knows_neither_the_host_nor_a_loss(helper):
    names = imported(ROOT / "yolokd" / f"{helper.replace('.', '/')}.py")
    assert not any(name.startswith("ultralytics") for name in names)
    assert not any(name.startswith("yolokd.losses.") and name != "yolokd.losses.base" for name in names)


def test_what_trains_does_not_know_the_command_line():
    """Nor does anything that it imports, at whatever depth."""
    code = "import sys, yolokd.criterion, yolokd.trainers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert "yolokd.trainers" in names
    assert not [name for name in names if name.startswith("yolokd.command.") or name == "yolokd.cli"]


@pytest.mark.parametrize("path", sorted((ROOT / "yolokd").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_module_has_one_sentence_and_a_loss_is_not_crowded(path):
    text = path.read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(text))
    assert doc and "\n" not in doc and doc.endswith(".")
    if path.parent.name == "losses":
        assert len(text.splitlines()) <= 300


# Metadata and the wheel -----------------------------------------------------------------------------------------------
def test_supported_ranges_and_dependencies_agree_with_pyproject():
    wanted = {re.match(r"[\w-]+", line)[0].lower(): line for line in PROJECT["project"]["dependencies"]}  # type: ignore[index]
    for name, span in SUPPORTED.items():
        assert wanted[name] == f"{name}{span}"
    assert set(PACKAGES) <= set(wanted)
    used = {n.split(".")[0] for path in (ROOT / "yolokd").rglob("*.py") for n in imported(path)}
    installed_as = {
        "yaml": "pyyaml",
        "cv2": "ultralytics",
        "PIL": "ultralytics",
        "matplotlib": "ultralytics",
        "psutil": "ultralytics",
    }
    outside = {installed_as.get(n, n) for n in used - set(sys.stdlib_module_names) - {"yolokd"}}
    assert outside <= set(wanted), f"no dependency brings {outside - set(wanted)}"


def test_tools_are_pinned_and_the_package_list_is_complete():
    dev = PROJECT["project"]["optional-dependencies"]["dev"]
    assert {"ruff", "mypy"} <= {line.split("==")[0] for line in dev if "==" in line}
    folders = {p.parent for p in (ROOT / "yolokd").rglob("__init__.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"yolokd.cfg"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what it is made of so that nothing is left in the checkout."""
    import shutil

    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("yolokd", "cfg"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(target)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(target.glob("yolokd-*.whl"))


def test_the_wheel_holds_code_settings_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wheel.name.startswith(f"yolokd-{yolokd.__version__}-py3")
    for name in ("default", *config.recipes()):
        assert f"yolokd/cfg/{name}.yaml" in names
    modules = {str(path.relative_to(ROOT).as_posix()) for path in (ROOT / "yolokd").rglob("*.py")}
    assert modules <= names
    assert any(name.endswith("LICENSE") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert tops == {"yolokd", f"yolokd-{yolokd.__version__}.dist-info"}


def test_an_installed_wheel_finds_its_recipes_outside_the_checkout(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(target)  # what `pip install --target` does with a pure wheel
    code = (
        "import yolokd; from yolokd import config, cli; "
        "assert yolokd.__file__.startswith(str(config.FOLDER.parent)), config.FOLDER; "
        "assert yolokd.recipe('dfmsd').is_file() and len(config.KEYS) > 50; raise SystemExit(cli.main(['cfg']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "kd_gain: auto" in done.stdout


def test_what_a_loss_of_its_own_needs_is_at_hand_and_loaded_when_it_is_used():
    code = (
        "import sys, yolokd; assert 'torch' not in sys.modules; from yolokd import Pair, Taps, Targets, PKDLoss; "
        "from yolokd import taps; assert (Pair, Taps, Targets) == (taps.Pair, taps.Taps, taps.Targets)"
    )
    names = "import yolokd; print(*dir(yolokd))"
    for text in (code, names):
        done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert {*yolokd.__all__, *(loss.__name__ for loss in LOSSES.values())} <= set(done.stdout.split())


def test_settings_are_found_in_a_checkout_that_is_not_installed():
    code = "from yolokd import config; print(config.FOLDER)"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    if "No module named 'yaml'" in done.stderr:  # -S hides site-packages, so that no install can help
        code = (
            "import sys, types; sys.modules['yaml'] = types.SimpleNamespace(safe_load=lambda t: {}); "
            "from yolokd import config; print(config.FOLDER)"
        )
        done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "cfg"), done.stderr


# Text -----------------------------------------------------------------------------------------------------------------
def test_lazy_names():
    assert yolokd.UserError.__name__ == "UserError" and yolokd.LOSSES is LOSSES
    assert yolokd.DistillationTrainer.__module__ == "yolokd.trainers"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = yolokd.Nothing


def test_yaml_files_are_sound_and_workflow_files_are_there():
    for path in (ROOT / "cfg").glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert (
        "set -euo pipefail" in script
        and "pip install -e '.[dev]' && pytest -n logical --dist loadfile" in script
        and "make check" in script
    )
    assert "GNU AFFERO GENERAL PUBLIC LICENSE" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_file_names_a_folder_or_a_host_of_one_machine():
    # Written in pieces, so that this file passes its own test.
    patterns = [
        "/" + r"work/",
        r"\.\./" + "shared",
        "/" + r"home/\w+/",
        "/" + r"root/",
        "file" + ":///",
        r"index-url\s*=",
    ]
    forbidden = re.compile("|".join(patterns))
    found = []
    for path in project_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if forbidden.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


def test_the_loss_of_the_readme_runs_on_plain_tensors() -> None:
    import torch

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(part for part in readme.split("```python\n") if "PKDLoss" in part.split("```")[0]).split("```")[0]
    maps = {
        f"{side}_maps": [torch.randn(2, width * channels, size, size) for channels, size in ((64, 8), (128, 4))]
        for side, width in (("student", 1), ("teacher", 2))
    }
    names = dict(maps)
    exec(code, names)
    assert 0 < float(names["value"].detach()) < 2


def test_the_methods_table_of_the_readme_is_the_generated_one() -> None:
    from yolokd.command.info import methods_markdown

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("<!-- methods -->")[1].split("<!-- /methods -->")[0].strip()
    assert block == methods_markdown()
