"""Settings of the whole test run: no network, and a settings folder of its own for Ultralytics."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

# Ultralytics and torch read these when they are imported, so they are set before any test module is.
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="yolokd-tests-")
os.environ["OMP_NUM_THREADS"] = "1"  # the maps of the tests are too small to share among threads
# Where pytest is started in the background, SIGINT is ignored, and what is sent to it would be lost.
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(shutil.rmtree, os.environ["YOLO_CONFIG_DIR"], ignore_errors=True)

pytest.register_assert_rewrite("tests.loss_contract")


def pytest_collection_finish() -> None:
    """Leave what the imports made out of the collections, of which each training makes several."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let them be taken down as ever."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Each test draws the same numbers in every run, whatever ran before it."""
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of a drawn dataset of 6 + 4 images with 3 classes."""
    from yolokd.drawn.shapes import draw_dataset

    return draw_dataset(tmp_path_factory.mktemp("data") / "shapes", images=(6, 4), imgsz=64, seed=0, classes=3)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Weights of a teacher of a family, e.g. `tiny_teacher("yolov8s")`, with the classes of the drawn dataset."""
    from tests.tiny import save_model, tiny_model

    folder = tmp_path_factory.mktemp("teachers")
    return cache(lambda family: save_model(tiny_model(family, seed=2), folder / f"{family}.pt"))


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Weights of a student of a family, e.g. `tiny_student("yolov8n")`, with the classes of the drawn dataset."""
    from tests.tiny import save_model, tiny_model

    folder = tmp_path_factory.mktemp("students")
    return cache(lambda family: save_model(tiny_model(family, seed=1), folder / f"{family}.pt"))


@pytest.fixture(scope="module")
def own_start() -> Iterator[None]:
    """Short runs start from the student's own weights: for modules that are about something else, to save the fit."""
    from tests.tiny import BASE

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BASE, "kd_init", "none")
        yield


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What Ultralytics' logger and ours say during the test, without colours, message by message."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(re.sub(r"\x1b\[[0-9;]*m", "", record.getMessage()))

    logger, handler = logging.getLogger("ultralytics"), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)
