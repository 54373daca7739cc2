"""What a comparison is going to do: its arguments checked, its arms and seeds, and what identifies its inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from yolokd.compare.identity import identify
from yolokd.compare.state import Run
from yolokd.config import CONTROLS
from yolokd.errors import UserError
from yolokd.saving.records import SCHEMA, now, strict

DEFAULT_METHODS = ("none", "ultralytics", "bckd")
DEFAULT_SEEDS = 3
# Keys of a training run that a comparison sets by itself, with the way to say it instead.
TAKEN = {
    "method": "give the methods to compare, e.g. methods=none,ultralytics,dfmsd+pcd",
    "seed": "give the seeds, e.g. seeds=3 or seeds=[0,1,2]",
    "resume": "the same command goes on where it was interrupted",
    "exist_ok": "the same command goes on where it was interrupted",
    "save_dir": "use project= and name=",
    "distill_model": "use teacher= and methods=ultralytics",
    "time": "arms are compared at equal epochs; use epochs=",
    "teacher_epochs": "fine-tune the teacher first and give the result as teacher=",
    "mode": "leave it out",
    "kd_names": "the arms none and ultralytics learn from labels; train such a student by itself",
}


def names(value: Any) -> list[str]:
    """Return methods as given in Python or on the command line as a list: `none,pcd`, `[none,pcd]`, a list, None.

    Args:
        value (Any): The value; Ultralytics' parser turns `none` into None and may leave a list as text.
    """
    if value is None:
        return ["none"]
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").split(",")
    if not isinstance(value, Iterable):
        raise UserError(f"methods={value} is not valid; e.g. methods=none,ultralytics,dfmsd+pcd")
    found = ["none" if item is None else str(item).strip().strip("'\"").lower() for item in value]
    return [name for name in found if name]


def arm_names(methods: Any, controls: bool = True) -> list[str]:
    """Return the arms: the controls first, unless turned off, then the methods in the order given.

    Args:
        methods (Any): What `names` reads.
        controls (bool): Add `none` and `ultralytics` where they are not named.

    Raises:
        UserError: If a method is unknown or named twice, or there is none.
    """
    from yolokd import config

    given = names(methods)
    for name in given:
        config.methods(name)
    if twice := [name for name in dict.fromkeys(given) if given.count(name) > 1]:
        raise UserError(f"methods={','.join(given)} names {twice[0]} twice")
    arms = [c for c in CONTROLS if controls or c in given] + [name for name in given if name not in CONTROLS]
    if not arms:
        raise UserError("methods= names no method; e.g. methods=none,ultralytics,dfmsd+pcd")
    return arms


def seed_list(value: Any) -> list[int]:
    """Return seeds: a count n stands for 0 to n-1; a list, a tuple or text like `[0,5,7]` for those seeds.

    Args:
        value (Any): The value.

    Raises:
        UserError: If it is neither.
    """
    wrong = UserError(f"seeds={value} is not valid; give a number of seeds or a list, e.g. seeds=3 or seeds=[0,1,2]")
    if isinstance(value, str):
        try:
            value = [int(part) for part in value.strip().removeprefix("[").removesuffix("]").split(",") if part.strip()]
        except ValueError:
            raise wrong from None
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return list(range(value))
    if not isinstance(value, (list, tuple, range)) or not value:
        raise wrong
    seeds = [seed for seed in value if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0]
    if len(seeds) < len(value) or len(set(seeds)) < len(seeds):
        raise wrong
    return seeds


def devices(value: Any, jobs: int | None) -> list[str | None]:
    """Return the device of each of the parallel slots.

    Args:
        value (Any): `cpu`, None, one GPU, or several as `0,1`, a tuple or a list.
        jobs (int, optional): Number of slots; one per device if not given.

    Raises:
        UserError: If the number is not positive.
    """
    if isinstance(value, str):
        value = [part.strip() for part in value.strip().removeprefix("[").removesuffix("]").split(",") if part.strip()]
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    given = [None if item is None else str(item).strip().strip("'\"") for item in given] or [None]
    if jobs is not None and (not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1):
        raise UserError(f"jobs={jobs} must be a whole number of 1 or more")
    return [given[slot % len(given)] for slot in range(jobs or len(given))]


def train_arguments(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return the train arguments that all arms share, checked, with those that a comparison sets otherwise than a run.

    Args:
        train (Mapping[str, Any]): Train arguments, the host's and ours.

    Raises:
        UserError: If one is unknown, wrong, or not for a comparison to have.
    """
    from yolokd import config

    for key, way in TAKEN.items():
        if key in train and train[key] not in (None, False):
            raise UserError(f"{key}={train[key]} is no key of `yolokd compare`: {way}")
    given = config.check({key: value for key, value in train.items() if key not in TAKEN})
    full = {"epochs": 100, "imgsz": 640, "batch": 16, **given}
    if not isinstance(full["batch"], int) or full["batch"] < 1:
        raise UserError(f"batch={full['batch']}: all arms need one fixed batch size, e.g. batch=16")
    if full.get("save") is False:
        raise UserError("save=False: compare evaluates the checkpoints of each run; leave save= out")
    defaults = {"patience": 0, "plots": False}  # early stopping would end arms at different epochs
    return {**defaults, **full}


def check_suitable(student: str, teachers: list[str], arms: list[str], train: Mapping[str, Any]) -> list[str]:
    """Return the arms that a pair can be trained in, after a look whether the methods suit it.

    Args:
        student (str): Weights or architecture of the student.
        teachers (list[str]): Weights of the teachers.
        arms (list[str]): Names of the arms.
        train (Mapping[str, Any]): What `train_arguments` returned.

    Returns:
        (list[str]): The arms, without Ultralytics' distillation where it does not take the pair.

    Raises:
        UserError: If a method does not work for the pair.
    """
    from ultralytics.utils import LOGGER

    from yolokd import config
    from yolokd.pairs.suitability import check, student_head, teacher_head
    from yolokd.students.kinds import why_no_built_in
    from yolokd.teachers.teacher import Teacher, load_teacher
    from yolokd.trust import open_model

    if not teachers:
        return arms
    with config.quiet():
        own = student_head(open_model(student).model)
        others = [teacher_head(Teacher(*load_teacher(path))) for path in teachers]
    for arm in arms:
        for other in others:
            check(config.terms(arm), {**config.DEFAULTS, **train}, own, other)
    if "ultralytics" in arms and (why := why_no_built_in(student, teachers[-1])):
        LOGGER.warning(f"the arm ultralytics is left out: {why}")
        return [arm for arm in arms if arm != "ultralytics"]
    return arms


def make_plan(
    model: str, teachers: list[str], data: str, split: str, arms: list[str], seeds: list[int], train: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the plan, after every arm's arguments have been checked against each other.

    Args:
        model (str): Weights or architecture of the student.
        teachers (list[str]): Weights of the teacher, or of several for dfmsd's stages; the last one is evaluated, and
            is the one that Ultralytics' distillation gets.
        data (str): Dataset yaml.
        split (str): Split that the runs are evaluated on.
        arms (list[str]): Names of the arms.
        seeds (list[int]): Seeds.
        train (Mapping[str, Any]): What `train_arguments` returned.
        command (str): The command, for the report.

    Returns:
        (dict[str, Any]): The plan, plain values only.

    Raises:
        UserError: If the arguments contradict each other.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.utils import LOGGER

    from yolokd import config
    from yolokd.config import consistency
    from yolokd.environment import environment
    from yolokd.text import reason

    arguments = {"model": model, "data": data, **{k: v for k, v in train.items() if k != "device"}}
    described = []
    for name in arms:
        own: dict[str, Any] = {"method": name}
        if name != "none":
            given = teachers[-1:] if name == "ultralytics" else teachers
            if given:
                own["teacher"] = given if len(given) > 1 else given[0]
        try:
            with config.quiet():
                checked = get_cfg(config.merged_base(), {**arguments, **own})
        except (SyntaxError, TypeError, ValueError) as error:
            raise UserError(reason(error)) from error
        consistency.validate(vars(checked))
        described.append({"name": name, "method": name, "arguments": own})
    for key, value in train.items():
        if key in config.DEFAULTS and value != config.DEFAULTS[key] and all(config.unread(arm, [key]) for arm in arms):
            LOGGER.warning(f"{key}={value} is read by none of the methods that are compared: {', '.join(arms)}")
    fingerprint = identify(arguments, teachers, split)
    several = ["several teachers: the gap is that to the last one, which Ultralytics' distillation learns from alone"]
    labeled = [
        "kd_unlabeled: the arms none and ultralytics learn from the labelled images alone, in batches of the same size "
        "and for as many steps; so their images are others, and are not verified against those of the other arms"
    ]
    plan = {
        "schema": SCHEMA,
        "id": hashlib.sha256(json.dumps(fingerprint, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "created": now(),
        "command": command,
        "arguments": arguments,
        "teachers": teachers,
        "data": data,
        "split": split,
        "arms": described,
        "seeds": seeds,
        "fingerprint": fingerprint,
        "environment": environment(),
        "notes": (several if len(teachers) > 1 else []) + (labeled if arguments.get("kd_unlabeled") else []),
    }
    return dict(strict(plan))  # as it comes back from disk


def runs_of(plan: Mapping[str, Any]) -> list[Run]:
    """Return the runs in their order: the teacher's evaluation, then seed by seed all arms."""
    teacher = [Run("teacher", "teacher", None)] if plan["teachers"] else []
    return teacher + [
        Run(f"seed{seed}/{arm['name']}", arm["name"], seed) for seed in plan["seeds"] for arm in plan["arms"]
    ]
