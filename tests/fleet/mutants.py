"""The bugs that the simulator must kill, and how long it took: ``python -m tests.fleet.mutants [NAME...] [--runs N]``.

Each is planted alone; then histories are played from seed 0 on until an invariant breaks. What cannot be reached by
any client that there is, and what changes nothing that anybody could see, is listed with its reason.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from typing import Final

import pytest
from msgspec import Struct

from inbetweenies.testing.simulator import Broken, runner
from inbetweenies.testing.simulator.world import SimulatedWorld
from tests.fleet import bugs_of_clients, bugs_of_recovery, bugs_of_the_server, bugs_of_v1

Plant = Callable[[pytest.MonkeyPatch], None]

#: After so many histories a bug counts as one that was not seen.
RUNS_MAX: Final = 1_000


def _bugs(module: object) -> dict[str, Plant]:
    return {
        name: each
        for name, each in vars(module).items()
        if not name.startswith("_")
        and callable(each)
        and getattr(each, "__module__", "") == getattr(module, "__name__", None)
    }


#: Every planted bug by its name.
MUTANTS: Final[dict[str, Plant]] = {
    **_bugs(bugs_of_the_server),
    **_bugs(bugs_of_clients),
    **_bugs(bugs_of_v1),
    **_bugs(bugs_of_recovery),
}


#: Bugs that nobody can see, and why.
EQUIVALENT: Final = {
    "losers_unacked": "a v1 push that lost is held when it comes again, and is then acknowledged without a conflict",
    "since_includes_the_row_it_names": "rows that are told twice are the same rows; clients keep them once",
    "first_of_two_keys_counts": "no client that there is writes a key twice, so bytes alone can tell (tests/core)",
}


class Killed(Struct, frozen=True):
    """After how many histories a bug was seen, and which invariant it broke."""

    runs: int
    law: str


def kill(plant: Plant, runs: int = RUNS_MAX, size: str = "mixed", first: int = 0) -> Killed | None:
    """Plant a bug and play histories until it is seen; None if it is not.

    A history that breaks something without the bug as well says nothing of the bug.
    """
    world = SimulatedWorld()
    for number in range(runs):
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            broken = runner.run_seed(world, first + number, size).broken
        if broken is not None and isinstance(broken.__cause__, TypeError | AttributeError | NameError):
            raise broken  # the bug does not fit into what it replaces any more
        if broken is not None and runner.run_seed(world, first + number, size).broken is None:
            return Killed(number + 1, broken.law)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each; 1 if one survived."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs; all of them if none")
    parser.add_argument("--runs", type=int, default=RUNS_MAX, help=f"give up after so many histories ({RUNS_MAX})")
    chosen = parser.parse_args(arguments)
    survived = report(chosen.names or MUTANTS, chosen.runs)
    if not chosen.names:
        for name, why in EQUIVALENT.items():
            print(f"{name:28} changes nothing that can be seen: {why}")
    return survived


def report(names: Iterable[str], runs: int = RUNS_MAX) -> int:
    """Print a line for each bug, and how many were killed; 1 if one survived."""
    needed: list[int] = []
    survived: list[str] = []
    for name in names:
        began = time.process_time()
        try:
            killed = kill(MUTANTS[name], runs)
        except Broken as error:
            survived.append(name)
            print(f"{name:28} DOES NOT FIT any more: {error}", flush=True)
            continue
        seconds = time.process_time() - began
        if killed is None:
            survived.append(name)
            print(f"{name:28} SURVIVED {runs:,} histories", flush=True)
        else:
            needed.append(killed.runs)
            print(f"{name:28} killed after {killed.runs:5,} ({seconds:5.1f} s): {killed.law}", flush=True)
    if needed:
        ordered = sorted(needed)
        most = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        print(f"{len(needed)} killed: half within {ordered[len(ordered) // 2]} histories, 95 % within {most}")
    if survived:
        print(f"{len(survived)} survived: {', '.join(survived)}")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
