"""Mutation testing of the losses and the statistics: `pip install "mutmut>=3"`, then `make mutation`.

Mutmut changes one operator, number, argument or assignment at a time and runs the tests that pass through the changed
function; a mutant that no test notices has survived. Mutants are drawn by a seed, so many per file. Those that change
the wording of a text are left out. Everything happens on a copy of the project. The table belongs into
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("yolokd", "tests", "cfg", "pyproject.toml", "README.md", "LICENSE")
SETTINGS = r"""
[tool.mutmut]
source_paths = ["yolokd"]
only_mutate = ["yolokd/losses/*", "yolokd/evaluation/*", "yolokd/results/__init__.py"]
do_not_mutate_patterns = ['raise \w+', 'assert .* is not None']
pytest_add_cli_args = [
    "-p", "no:cacheprovider", "-k", "not Ultralytics and not finished_runs and not runs_with and not repeated_run",
]  # without the tests that train or validate networks: slow, and polars waits forever after a fork
pytest_add_cli_args_test_selection = [
    "tests/losses", "tests/test_statistics.py", "tests/test_evaluate.py", "tests/test_results.py",
]
also_copy = ["cfg"]
timeout_constant = 10.0  # seconds beside what the tests took; times 15, so a busy machine kills no mutant
"""
FIRST = "yolokd.losses.base.*forward__mutmut_1"  # running this one writes all mutants and times the tests
SUBJECTS = (
    "yolokd.losses.*",
    "yolokd.evaluation.bootstrap.*",
    "yolokd.evaluation.coco.*",
    "yolokd.evaluation.statistics.*",
    *(f"yolokd.results.*x_{name}__mutmut_*" for name in ("assemble", "_judge", "_partner", "_pairs", "_differ")),
    *(f"yolokd.results.*x_{name}__mutmut_*" for name in ("_summary", "_numbers", "_mean", "_sd")),
)
SURVIVED, UNTESTED = 0, 33  # exit codes that mutmut notes; any other is a failing test, a crash or a time limit


def mutmut(folder: Path, *arguments: str) -> str:
    """Run mutmut in the folder and return what it prints."""
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}  # the project itself would hide the mutants
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ... failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def outcomes(folder: Path) -> dict[str, dict[str, int | None]]:
    """Return the exit code of each mutant by file; None where it was not run."""
    files = sorted((folder / "mutants" / "yolokd").rglob("*.py.meta"))
    codes = {file: json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"] for file in files}
    return {str(file.relative_to(folder / "mutants")).removesuffix(".meta"): found for file, found in codes.items()}


def textual(file: Path) -> set[str]:
    """Return the functions of a mutated file that differ from their origin in the wording of strings only."""

    def shape(function: ast.AST) -> str:
        function = copy.deepcopy(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
            if isinstance(node, ast.FunctionDef):
                node.name = node.name.partition("__mutmut_")[0]
        return ast.dump(function)

    def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
        return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name)

    shapes = {function.name: shape(function) for function in functions(ast.parse(file.read_text(encoding="utf-8")))}
    origin = {name: f"{name.rpartition('__mutmut_')[0]}__mutmut_orig" for name in shapes}
    return {name for name, found in shapes.items() if name != origin[name] and found == shapes[origin[name]]}


def draw(folder: Path, subjects: Iterable[str], sample: int, seed: int) -> dict[str, list[str]]:
    """Return the names of the drawn mutants by file."""
    drawn = {}
    for file, codes in outcomes(folder).items():
        wording = textual(folder / "mutants" / file) if codes else set()
        names = [name for name in codes if any(fnmatch(name, subject) for subject in subjects)]
        names = [name for name in names if name.rpartition(".")[2] not in wording]
        if names:
            chosen = sample and sample < len(names)
            drawn[file] = sorted(random.Random(f"{seed} {file}").sample(names, sample)) if chosen else names
    return drawn


def main(words: list[str]) -> int:
    """Print a row for each file and the survivors; return 1 where fewer than the wanted share was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", help="patterns of mutants, e.g. yolokd.losses.cwd.*; all without")
    parser.add_argument("--sample", type=int, default=20, help="mutants per file, 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--wanted", type=float, default=85, help="percentage of all mutants that must be killed")
    parser.add_argument("--folder", type=Path, help="where the copy is kept, with what mutmut wrote")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        for name in COPIED:
            source, target = ROOT / name, folder / name
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
            file.write(SETTINGS)
        mutmut(folder, "run", "--max-children", "1", FIRST)
        drawn = draw(folder, given.subjects or SUBJECTS, given.sample, given.seed)
        mutmut(folder, "run", "--max-children", "1", *(name for names in drawn.values() for name in names))
        return report(folder, drawn, given.wanted)


def report(folder: Path, drawn: dict[str, list[str]], wanted: float) -> int:
    """Print what became of the drawn mutants."""
    codes = {name: code for found in outcomes(folder).values() for name, code in found.items()}
    alive = {file: [n for n in names if codes[n] in (SURVIVED, UNTESTED)] for file, names in drawn.items()}
    print("| file | mutants | killed | survived |\n| --- | --- | --- | --- |")
    for file, names in drawn.items():
        print(f"| `{file}` | {len(names)} | {len(names) - len(alive[file])} | {len(alive[file])} |")
    count, survived = (sum(len(names) for names in group.values()) for group in (drawn, alive))
    share = 100 * (count - survived) / count
    print(f"| all | {count} | {count - survived} ({share:.1f} %) | {survived} |\n")
    for name in (name for names in alive.values() for name in names):
        changed = [line for line in mutmut(folder, "show", name).splitlines() if line[:1] in "+-" and line[1:2] == " "]
        print("\n".join([f"{name}{' (no test)' if codes[name] == UNTESTED else ''}", *changed]), flush=True)
    return int(share < wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
