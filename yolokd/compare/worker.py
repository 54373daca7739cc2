"""One run of a comparison in a process of its own: `python -m yolokd.compare.worker RUNFOLDER`."""

from __future__ import annotations

import argparse
import gc
import shutil
import statistics
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import strip_optimizer

from yolokd import config
from yolokd.compare.imagestream import StreamHash
from yolokd.compare.queue import follow_parent
from yolokd.compare.trainer import MEASURES, MeasuringTrainer
from yolokd.saving.records import (
    PREDICTIONS,
    SCHEMA,
    TRACEBACK_LINES,
    file_hash,
    now,
    read_json,
    read_record,
    write_json,
)
from yolokd.trust import KEY, loading

LOGS = {"worker.log", "progress.jsonl", "error.json"}  # what stays where a run begins anew


def saved_epoch(folder: Path) -> int | None:
    """Return the epoch, counted from 0, that a folder's last.pt can be resumed from; None where it cannot be."""
    try:
        checkpoint = load_checkpoint(folder / "weights" / "last.pt")[1]
    except Exception:  # missing, or cut off while it was written
        return None
    epoch = checkpoint.get("epoch", -1)
    return int(epoch) if epoch >= 0 and checkpoint.get("optimizer") is not None else None


def finished_measures(folder: Path, epoch: int | None) -> dict[str, Any] | None:
    """Return the measures of a training that came to its end; None where epochs are missing.

    Args:
        folder (Path): Folder of the run.
        epoch (int | None): What `saved_epoch` returned; a finished training's last.pt is stripped at the end.
    """
    epochs = (read_json(folder / MEASURES) or {}).get("epochs", {})
    number = max(map(int, epochs), default=None)
    if number is None or not epochs[str(number)]["last"] or epoch not in {None, number}:
        return None
    files = [folder / "weights" / name for name in ("last.pt", "best.pt")]
    try:
        for file in files:
            load_checkpoint(file)
    except Exception:
        return None
    if epoch is not None:  # ended between its last epoch and the host's clearing of the checkpoints
        for file in files:
            strip_optimizer(file)
    return {**epochs[str(number)], "epochs_done": number + 1}


def train(folder: Path, plan: dict[str, Any], device: str | None) -> dict[str, Any]:
    """Train a run, going on where it was interrupted, and return its measures.

    Args:
        folder (Path): Folder of the run, `seedN/ARM` in that of the comparison.
        plan (dict[str, Any]): The plan.
        device (str, optional): Device as Ultralytics names it.
    """
    epoch = saved_epoch(folder)
    if (measures := finished_measures(folder, epoch)) is not None:
        return measures
    if epoch is not None:
        last = str(folder / "weights" / "last.pt")
        overrides: dict[str, Any] = {"model": last, "resume": last, "device": device, "save_dir": str(folder)}
        overrides[KEY] = plan["arguments"].get(KEY, True)
    else:
        wipe(folder)
        arm = next(arm for arm in plan["arms"] if arm["name"] == folder.name)
        overrides = {
            **plan["arguments"],
            **arm["arguments"],
            "seed": int(folder.parent.name.removeprefix("seed")),
            "device": device,
            "project": str(folder.parent),
            "name": folder.name,
            "exist_ok": True,
        }
        for key in config.unread(overrides.get("method"), list(overrides)):  # which the other arms read
            del overrides[key]
    trainer = MeasuringTrainer(overrides)
    trainer.train()
    trainer.stream.close()
    measures = finished_measures(folder, None)
    if measures is None:
        raise RuntimeError("the training ended without saving its last epoch")
    return measures


def other_images(plan: dict[str, Any], arm: str) -> bool:
    """Return whether an arm sees other images than those of distillation do, because it needs labels for all."""
    return bool(plan["arguments"].get("kd_unlabeled")) and not config.terms(arm)


def wipe(folder: Path) -> None:
    """Remove what a run left that cannot be resumed; its logs stay, its progress begins anew."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in LOGS - {"progress.jsonl"}:
            path.unlink()


def evaluate_run(folder: Path, plan: dict[str, Any], weights: Path, device: str | None) -> dict[str, Any]:
    """Evaluate weights on the original images, keep the detections in the run's folder and return the numbers."""
    from yolokd.evaluation.asteacher import as_teacher
    from yolokd.evaluation.evaluate import NoCommonClass, evaluate
    from yolokd.results.folders import images_hash

    truth = read_json(folder.parents[0 if folder.name == "teacher" else 1] / "ground_truth.json")
    settings = {key: plan["arguments"][key] for key in ("imgsz", "workers") if key in plan["arguments"]}
    if folder.name == "teacher":
        settings |= as_teacher(plan["arguments"], plan["arguments"]["imgsz"])
    batch = plan["arguments"].get("batch", 16)
    digest = file_hash(weights)
    try:
        found = evaluate(
            weights, plan["data"], plan["split"], ground_truth=truth, batch=batch, device=device, **settings
        )
    except NoCommonClass as error:  # it can teach features all the same
        if folder.name != "teacher":
            raise
        return {"metrics": None, "error": str(error), "weights": str(weights), "weights_sha256": digest}
    about = {"weights": str(weights), "weights_sha256": digest, "data": plan["data"], "split": plan["split"]}
    about |= {"imgsz": settings["imgsz"], "images_sha256": images_hash(truth)}
    write_json(folder / PREDICTIONS, {**about, "host_ap": found.host_ap, "detections": found.detections})
    return {"metrics": found.to_dict(), "weights": str(weights), "weights_sha256": digest}


def work(folder: Path, device: str | None, shared: bool) -> None:
    """Do what is left of a run and write its record last.

    Args:
        folder (Path): Folder of the run, or `teacher` for the teacher's evaluation.
        device (str, optional): Device as Ultralytics names it.
        shared (bool): Whether other runs share the machine, so that times say little.
    """
    folder = folder.resolve()
    teacher = folder.name == "teacher"
    plan = read_json((folder.parent if teacher else folder.parents[1]) / "plan.json")
    if not read_record(folder, plan["id"]):
        with loading(plan["arguments"].get(KEY, True)):
            _do(folder, plan, device, shared, teacher)


def _do(folder: Path, plan: dict[str, Any], device: str | None, shared: bool, teacher: bool) -> None:
    """Train and evaluate, or evaluate the teacher."""
    record: dict[str, Any] = {"schema": SCHEMA, "plan": plan["id"], "shared_machine": shared}
    if teacher:
        weights = Path(plan["teachers"][-1])
    else:
        measures = train(folder, plan, device)
        stream, steps, seen = measures["stream"], measures["steps"], StreamHash()
        seen.load(stream)
        record |= {
            **{key: measures[key] for key in ("initial_hash", "wall_s", "peak_bytes", "resumed", "epochs_done")},
            "step_s": statistics.median(steps) if steps else None,
            "stream_hash": None if other_images(plan, folder.name) else seen.hexdigest(),
            "batches": stream["batches"],
        }
        weights = folder / "weights" / "best.pt"
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    (folder / "evaluating").touch()
    record |= evaluate_run(folder, plan, weights, device)
    write_json(folder / "run.json", {**record, "finished": now()})
    (folder / "evaluating").unlink(missing_ok=True)


def main() -> int:
    """Run one run; exit code 0 when its record is written, 1 when it failed (error.json says why), 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--shared", action="store_true", help="other runs share the machine")
    parser.add_argument("--follow", action="store_true", help="end when standard input does")
    args = parser.parse_args()
    if args.follow:
        follow_parent()
    if args.threads:
        import ultralytics.utils.torch_utils as host

        host.NUM_THREADS = args.threads  # the host sets torch's threads to it whenever it selects the CPU
        torch.set_num_threads(args.threads)
    try:
        work(args.folder, args.device, args.shared)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        lines = traceback.format_exc().splitlines()
        print("\n".join(lines), file=sys.stderr)
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        told = {"error": f"{type(error).__name__}: {first}", "traceback": "\n".join(lines[-TRACEBACK_LINES:])}
        write_json(args.folder / "error.json", told)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
