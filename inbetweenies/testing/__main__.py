"""``python -m inbetweenies.testing simulate``: histories of a fleet with faults, each from one seed.

    python -m inbetweenies.testing simulate --runs 10000 --jobs 2     # figures; exit code 1 if an invariant broke
    python -m inbetweenies.testing simulate --seed 4711 --runs 1      # one history again, bit for bit
    python -m inbetweenies.testing simulate --store sqlite            # over real files, with injected I/O faults
    python -m inbetweenies.testing simulate --world my_module:Mine    # over your own store, server, clients and rules
    python -m inbetweenies.testing simulate --rules                   # what must hold, and what can go wrong

A history that breaks an invariant is told as the shortest story found, one line per event.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable

from ..errors import LocalProtocolError
from .simulator import report, runner
from .simulator.faults import FAULTS
from .simulator.plot import SIZES

#: What `--store` names, as worlds.
STORES = {"memory": None, "sqlite": "inbetweenies.testing.simulator.disk:SqliteWorld"}


def main(arguments: list[str] | None = None) -> int:
    """The entry point; 0 if all invariants held, 1 if not, 2 for a misuse."""
    chosen = _parser().parse_args(arguments)
    world = chosen.world or STORES[chosen.store]
    try:
        if chosen.rules:
            _print(_rules(world))
            return 0
        began = time.monotonic()
        tally = runner.simulate(
            chosen.runs,
            first=chosen.seed,
            jobs=chosen.jobs,
            size=chosen.size,
            world=world,
            progress=None if chosen.json else _Progress(chosen.runs),
        )
        seconds = time.monotonic() - began
        stories = list(_stories(tally, world, short=not chosen.no_stories))
    except LocalProtocolError as error:
        print(error, file=sys.stderr)
        return 2
    if chosen.json:
        found = report.figures(tally, seconds)
        for failure, (again, lines) in zip(found["failures"], stories, strict=False):
            failure.update(again=again, story=lines)
        print(json.dumps(found))
    else:
        _print(report.summary(tally, seconds))
        for again, lines in stories:
            _print(["", *lines, "", f"again: {again}"])
    return 1 if tally.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inbetweenies.testing", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="simulate")
    simulate = commands.add_parser(
        "simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    simulate.add_argument("--runs", type=int, default=1_000, help="how many histories (1000)")
    simulate.add_argument("--seed", type=int, default=0, help="the seed of the first; the others follow it (0)")
    simulate.add_argument("--jobs", type=int, default=1, help="how many processes (1)")
    simulate.add_argument("--size", choices=(*SIZES, "mixed"), default="mixed", help="how large histories are (mixed)")
    simulate.add_argument(
        "--store", choices=sorted(STORES), default="memory", help="what the server stores in (memory)"
    )
    simulate.add_argument("--world", metavar="MODULE:FACTORY", help="a SimulatedWorld of your own")
    simulate.add_argument("--json", action="store_true", help="print figures as JSON")
    simulate.add_argument("--no-stories", action="store_true", help="only name the seeds that failed")
    simulate.add_argument("--rules", action="store_true", help="print the invariants and the faults, run nothing")
    return parser


class _Progress:
    """A line on the other output every few seconds."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._last = time.monotonic()

    def __call__(self, tally: runner.Tally) -> None:
        now = time.monotonic()
        if now - self._last >= 5:
            self._last = now
            failed = f", {len(tally.failures)} failed" if tally.failures else ""
            print(f"{tally.runs:,} of {self._runs:,} histories{failed}", file=sys.stderr, flush=True)


def _stories(tally: runner.Tally, world: str | None, *, short: bool) -> Iterable[tuple[str, list[str]]]:
    seen: set[str] = set()
    for failure in tally.failures:
        again = report.repeat(failure, world)
        story = None
        # One story for each invariant is enough; to make one short takes seconds.
        if short and failure.law not in seen and failure.law != runner.NOT_REPEATABLE:
            story = runner.shortest_story(runner.find_world(world), failure.seed, failure.size)
        seen.add(failure.law)
        yield again, list(report.told(story)) if story else [f"broken: {failure.law}", f"        {failure.what}"]


def _rules(world: str | None) -> Iterable[str]:
    yield "What must hold:"
    for rule in runner.find_world(world).invariants:
        yield f"  {rule.name()} (PROTOCOL {rule.clause}): {rule.sentence}"
    yield "What can go wrong:"
    for name, fault in FAULTS.items():
        yield f"  {name}: {fault.what}"


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


if __name__ == "__main__":
    sys.exit(main())
