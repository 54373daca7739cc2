"""A stand-in for a run of a comparison: does what its name in the plan's `fake` says, without any training."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

# Without this the package imports what trainings need, which takes seconds in each of the many processes.
package = ModuleType("yolokd.compare")
package.__path__ = [str(Path(__file__).parents[1] / "yolokd" / "compare")]
sys.modules["yolokd.compare"] = package

from yolokd.compare.queue import follow_parent  # noqa: E402
from yolokd.saving.records import read_json, write_json  # noqa: E402

folder = Path(sys.argv[1])
root = folder.parent if folder.name == "teacher" else folder.parents[1]
plan = read_json(root / "plan.json")
with open(root / "started.txt", "a", encoding="utf-8") as file:
    file.write(f"{folder.relative_to(root).as_posix()} {os.getpid()}\n")
deed = plan["fake"].get(folder.relative_to(root).as_posix(), "done")
follow_parent()
print(f"working on {folder.name}")
if deed == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if deed == "error":
    write_json(folder / "error.json", {"error": "ValueError: no luck", "traceback": "line 1\nline 2"})
    sys.exit(1)
if deed == "mute":
    sys.exit(3)
for epoch in (1, 2):
    with open(folder / "progress.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"epoch": epoch, "seconds": 0.5, "ap": 0.1}) + "\n")
if deed == "hang":
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        (folder / "stopped").touch()
        sys.exit(130)
if deed == "meet":  # go on once all runs are at work
    limit = time.monotonic() + 60
    while len((root / "started.txt").read_text(encoding="utf-8").splitlines()) < len(plan["fake"]):
        if time.monotonic() > limit:
            sys.exit(4)
        time.sleep(0.02)

write_json(folder / "run.json", {"schema": 1, "plan": plan["id"], "metrics": {"ap": 0.5}})
