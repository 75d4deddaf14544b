"""The long tests, on demand: ``python -m tests.deep [NAME...] [--scale F]``; figures for each on one line.

They are tests of the suite, run much longer, and storms that the suite only tries in small. A stage that fails is
named with what to run to see it again, and the exit code says so.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from typing import Final

from tests.deep.stages import STAGES, Stage

#: What a test prints in front of what it counted.
FIGURES: Final = "figures: "


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.deep", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of: {', '.join(STAGES)}; all of them if none")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply every count, e.g. 0.01 for a quick look")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in STAGES]
    if unknown:
        parser.error(f"no stage is called {', '.join(unknown)}; there are {', '.join(STAGES)}")
    failed = 0
    for name in chosen.names or STAGES:
        failed += not _run(name, STAGES[name], chosen.scale)
    print(f"{len(chosen.names or STAGES) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _run(name: str, stage: Stage, scale: float) -> bool:
    count = max(1, int(stage.count * scale))
    print(f"{name}: {stage.what.format(count=f'{count:,}')} ...", flush=True)
    if stage.command:
        return _figures(name, [part.format(count=count) for part in stage.command])
    each = max(1, count // stage.shared_by)
    environment = os.environ | {"HYPOTHESIS_PROFILE": "deep", "DEEP_EXAMPLES": str(each)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", "-rP", *stage.tests]
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    for line in done.stdout.splitlines():
        if line.startswith(FIGURES):
            print(f"{name}: {line.removeprefix(FIGURES)}")
    print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}, {count:,} in {seconds:.0f} s", flush=True)
    if done.returncode != 0:
        print(done.stdout[-6000:], done.stderr[-2000:])
        print(f"again: HYPOTHESIS_PROFILE=deep DEEP_EXAMPLES={each} python -m pytest {' '.join(stage.tests)}")
    return done.returncode == 0


def _figures(name: str, command: list[str]) -> bool:
    """Run a command that says itself what it found."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, *command], check=False)
    seconds = time.monotonic() - began
    print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'} in {seconds:.0f} s", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
