"""Run the tests of the seams against several releases of Ultralytics: `make compat`.

Each release goes into a folder of its own, in front of the one that is installed; torch and the rest are shared. The
table that is printed belongs into docs/reliability.md.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
RELEASES = ("8.4.115", "8.4.125", "8.4.140", "8.4.148", "8.4.155", "8.4.170", "8.4.180", "8.4.190")
SEAMS = ("host_contract", "criterion", "trainer", "unlabeled", "start", "beginning")
TESTS = tuple(f"tests/test_{name}.py" for name in SEAMS)


def run(release: str, folder: Path) -> tuple[int, str]:
    """Return the exit code and the last line of the tests under a release."""
    target = folder / release
    if not target.exists():
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
        subprocess.run([*install, f"ultralytics=={release}"], check=True)
    path = os.pathsep.join([str(target), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    failed = re.findall(r"^FAILED (\S+)", done.stdout, flags=re.MULTILINE)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    return done.returncode, "; ".join([last, *failed[:5]])


def main(releases: list[str]) -> int:
    """Print a row for each release and return 1 where one has failures."""
    worst = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.environ.get("YOLOKD_COMPAT", temporary))
        print("| ultralytics | result |\n| --- | --- |")
        for release in releases or RELEASES:
            code, text = run(release, folder)
            worst = max(worst, int(code != 0))
            print(f"| {release} | {text} |", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
