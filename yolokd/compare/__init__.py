"""`yolokd compare`: does distillation help on this data, and which method, at equal budget with equal seeds."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from yolokd import trust
from yolokd.compare.identity import differing
from yolokd.compare.plan import (
    DEFAULT_METHODS,
    DEFAULT_SEEDS,
    arm_names,
    check_suitable,
    devices,
    make_plan,
    runs_of,
    seed_list,
    train_arguments,
)
from yolokd.compare.prepare import prepare, scan_labels
from yolokd.compare.queue import Command, run_queue
from yolokd.compare.result import CompareResult
from yolokd.compare.state import State, check_folder, locked
from yolokd.config.inputs import check_place
from yolokd.errors import UserError
from yolokd.results import from_compare
from yolokd.saving.records import now, read_json, write_json

# The keys of `yolokd compare` beside those of a training run, with their defaults.
KEYS: dict[str, Any] = {
    "methods": DEFAULT_METHODS,
    "seeds": DEFAULT_SEEDS,
    "controls": True,
    "jobs": None,
    "retry": False,
}


def compare(
    model: str | Path,
    teacher: str | Path | Sequence[str | Path] | None = None,
    data: str | Path | None = None,
    methods: str | Sequence[str] | None = DEFAULT_METHODS,
    seeds: int | Sequence[int] = DEFAULT_SEEDS,
    controls: bool = True,
    jobs: int | None = None,
    device: Any = None,
    project: str | Path | None = None,
    name: str | None = None,
    split: str = "val",
    retry: bool = False,
    **train: Any,
) -> CompareResult:
    """Train a student with several methods over several seeds, and say what can be concluded.

    All arms of a seed are given the same weights, epochs and images, which is checked by hashes; with `kd_init`
    distilled students may go on from weights fitted to their teacher. Runs go seed by seed through all arms. Everything
    is kept in a folder: the same call goes on where an earlier one stopped, and more methods or seeds may be added to
    it. Each run's best.pt is evaluated by pycocotools on the original images.

    Args:
        model (str | Path): Student: weights, or an architecture.
        teacher (str | Path | Sequence, optional): Teacher weights; a list for dfmsd's stages.
        data (str | Path): Dataset yaml.
        methods (str | Sequence[str]): Methods as in `method=`, e.g. `["dfmsd", "dfmsd+pcd"]` or `"dfmsd,dfmsd+pcd"`.
        seeds (int | Sequence[int]): Number of seeds, or the seeds.
        controls (bool): Add `none` (plain training) and `ultralytics` (built-in distillation).
        jobs (int, optional): Runs at the same time; one per device if not given.
        device (Any): `cpu`, a GPU, or several GPUs (`"0,1"`) over which the runs are spread, one GPU each.
        project (str | Path, optional): Folder above that of the comparison; `compare` in Ultralytics' runs folder.
        name (str, optional): Name of the folder; made from the inputs if not given.
        split (str): Split to evaluate on.
        retry (bool): Run failed runs of an earlier call again.
        **train (Any): Train arguments, Ultralytics' and ours, the same for all arms.

    Returns:
        (CompareResult): The numbers, with `.table`, `.to_dataframe()` and `.plot()`.

    Raises:
        UserError: If something asked for cannot be done, or the folder belongs to another comparison.

    Examples:
        >>> from yolokd.compare import compare
        >>> result = compare("yolov8n.pt", "yolov8s.pt", "coco8.yaml", methods=["dfmsd"], seeds=3, epochs=10)
        >>> result.table
    """
    arms, numbers, slots = arm_names(methods, controls), seed_list(seeds), devices(device, jobs)
    arguments = train_arguments(train)
    with trust.loading(arguments.get(trust.KEY, True)):
        student, teachers, description = _inputs(model, teacher, data, split, arms)
        arms = check_suitable(student, teachers, arms, arguments)
    command = _command(
        {"model": model, "teacher": teacher, "data": data, "methods": ",".join(arms), "seeds": seeds, "split": split}
        | {"controls": controls, "jobs": jobs, "device": device, "project": project, "name": name}
        | dict(train)
    )
    plan = make_plan(student, teachers, description, split, arms, numbers, arguments, command)
    root = _folder(project, name, plan)
    check_folder(root)
    scan_labels(plan)
    check_place(root.absolute(), "project", project, "project=~/runs")
    root.mkdir(parents=True, exist_ok=True)
    with locked(root):
        plan = _settle(root, plan)
        prepare(root, plan)
        state = State(root, plan["id"], runs_of(plan))
        if retry:
            state.retry()
        print(f"comparison in {root}", flush=True)
        try:
            run_queue(state, _worker(slots), len(slots), int(plan["arguments"]["epochs"]))
        except KeyboardInterrupt as stop:
            write_json(root / "results.json", from_compare(root))
            stop.args = (f"interrupted; the same command goes on; so far: {root / 'results.json'}",)
            raise
        results = from_compare(root)
        write_json(root / "results.json", results)
        _report(root)
    return CompareResult(root, results)


def run_words(words: list[str]) -> int:
    """Run `yolokd compare key=value ...` and return the exit code: 1 where a run failed, the others done.

    Args:
        words (list[str]): Words after the mode.

    Raises:
        UserError: If something asked for cannot be done.
    """
    from yolokd import config
    from yolokd.command.grammar import parse
    from yolokd.config import unknown_key
    from yolokd.errors import DONE, FAILED

    known = {**config.merged_base(), **KEYS}
    given = parse(words, known)
    given.pop("mode", None)
    if given.pop("task", "detect") != "detect":
        raise UserError("yolokd compares detection models only")
    for key in given:
        if key not in known:
            raise UserError(unknown_key(key, known))
    for key in ("controls", "retry"):
        if not isinstance(given.get(key, True), bool):
            raise UserError(f"{key}={given[key]} must be True or False")
    if given.get("model") is None:
        raise UserError("compare needs a student, e.g. model=yolov8n.pt")
    result = compare(**{key: value for key, value in given.items() if value is not None or key == "methods"})
    print(result)
    if result.failed:
        failed, again = ("1 run", "it") if len(result.failed) == 1 else (f"{len(result.failed)} runs", "them")
        print(f"{failed} failed; the same command with retry=True runs {again} again", file=sys.stderr)
    return FAILED if result.failed else DONE


def _inputs(model: Any, teacher: Any, data: Any, split: str, arms: Sequence[str]) -> tuple[str, list[str], str]:
    """Return student, teachers and data as files, after a look into each."""
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils.downloads import attempt_download_asset

    from yolokd import config, datasets
    from yolokd.config import inputs
    from yolokd.saving.handover import as_list
    from yolokd.students.kinds import check_detector
    from yolokd.teachers.teacher import load_teacher

    def located(key: str, value: Any, trained: bool) -> str:
        if not isinstance(value, (str, Path)):
            raise UserError(
                f"{key}= must be a file here, not a {type(value).__name__}: each run is a process of its own"
            )
        path = Path(inputs.weights(key, value, trained=trained))
        if path.suffix == ".pt" and not path.exists():
            path = Path(attempt_download_asset(path))  # it lies in Ultralytics' folder of weights
        return str(path.resolve()) if path.exists() else str(path)

    if data is None:
        raise UserError("compare needs a dataset, e.g. data=path/to/mine.yaml")
    student = located("model", model, trained=False)
    check_detector(student, str(model), "compares")
    if isinstance(teacher, str) and teacher.strip().startswith("["):
        teacher = config.KEYS["teacher"].check(teacher)
    given = as_list(teacher) if teacher is not None and set(arms) != {"none"} else []
    teachers = [located("teacher", item, trained=True) for item in given]
    with config.quiet():
        for path in teachers:
            load_teacher(path)
    datasets.dataset(data)
    with config.quiet():
        description = check_det_dataset(str(data))
    if not description.get(split):
        there = ", ".join(name for name in ("train", "val", "test") if description.get(name))
        raise UserError(f"split={split} is not in data={data}; it has {there}")
    return student, teachers, str(Path(description.get("yaml_file", data)).resolve())


def _folder(project: str | Path | None, name: str | None, plan: Mapping[str, Any]) -> Path:
    """Return the folder of the comparison: the one named, or the first of its inputs' names that this plan fits."""
    from ultralytics.utils import SETTINGS

    base = Path(project).expanduser() if project else Path(SETTINGS["runs_dir"]) / "compare"
    if name:
        return (base / str(name)).resolve()
    parts = [plan["arguments"]["model"], *plan["teachers"][-1:], plan["data"]]
    stem = "-".join(Path(part).stem for part in parts)
    for number in itertools.count(1):
        folder = base / (stem if number == 1 else f"{stem}-{number}")
        old = read_json(folder / "plan.json")
        if (old is None and not (folder.exists() and any(folder.iterdir()))) or (old and not differing(old, plan)):
            break
    return folder.resolve()


def _settle(root: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Write the plan, joined with that of an earlier call on the same inputs.

    Raises:
        UserError: If the folder belongs to another comparison, or to something else.
    """
    old = read_json(root / "plan.json")
    if old is not None and (found := differing(old, plan)):
        raise UserError(f"{root} is another comparison: {'; '.join(found)}; choose another name=, or give the same")
    if old is not None:
        known = [arm["name"] for arm in old["arms"]]
        arms = [arm for arm in plan["arms"] if arm["name"] not in known]
        seeds = [seed for seed in plan["seeds"] if seed not in old["seeds"]]
        added = [f"seed {seed}" for seed in seeds] + [f"method {arm['name']}" for arm in arms]
        note = [f"{', '.join(added)} added on {now()[:10]}, after earlier runs"] if added else []
        plan |= {"created": old["created"], "arms": old["arms"] + arms, "seeds": old["seeds"] + seeds}
        plan["notes"] = list(dict.fromkeys([*old["notes"], *plan["notes"], *note]))
    write_json(root / "plan.json", plan)
    return plan


def _worker(slots: Sequence[str | None]) -> Command:
    """Return the function that gives the command and the environment of a run's process."""
    cores = os.cpu_count() or 1
    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(dict.fromkeys([package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))

    def command(folder: Path, slot: int) -> tuple[list[str], Mapping[str, str]]:
        words = [sys.executable, "-m", "yolokd.compare.worker", str(folder), "--follow"]
        environment = {"PYTHONPATH": path.strip(os.pathsep), "PYTHONUNBUFFERED": "1"}
        device = slots[slot]
        if device is not None and device.isdigit():  # the process sees this GPU alone
            index = int(device)
            environment["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else device
            device = "0"
        words += ["--device", device] if device is not None else []
        if len(slots) > 1:
            threads = str(max(1, cores // len(slots)))
            environment["OMP_NUM_THREADS"] = threads
            words += ["--threads", threads, "--shared"]
        return words, environment

    return command


def _report(root: Path) -> None:
    """Write the reports; a failure there must not cost the results."""
    try:
        from yolokd.report import write_report

        for path in write_report(root):
            print(path)
    except Exception as error:
        print(
            f"{root / 'results.json'} is written, the report is not: {type(error).__name__}: {error}", file=sys.stderr
        )


def _command(given: Mapping[str, Any]) -> str:
    """Return the command line that says the same."""
    defaults = {**KEYS, "split": "val"}
    words = []
    for key, value in given.items():
        if value is None or (key in defaults and value == defaults[key]):
            continue
        if isinstance(value, (list, tuple)):
            value = f"[{','.join(map(str, value))}]"
        words.append(f"{key}={value}")
    return " ".join(["yolokd compare", *(f'"{word}"' if " " in word else word for word in words)])
