"""Runs histories by their seeds: one, or many on several cores; and again, to see that they are the same."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from itertools import islice
from multiprocessing import get_context
from typing import Final
from unittest.mock import patch

from msgspec import Struct

from ... import rewind
from ...errors import LocalProtocolError
from .plot import SIZES, Plot
from .shrink import TRIES_MAX, shortest
from .stage import Broken, Event, Setting, Stage
from .world import SimulatedWorld

#: One history in so many is run a second time, and must leave the same trace.
RERUN_EVERY: Final = 100
#: How many seeds a process is handed at once.
CHUNK: Final = 100
#: After so many failures there is no point in going on.
FAILURES_MAX: Final = 10
NOT_REPEATABLE: Final = "1.12 (deterministic)"


class Failure(Struct, frozen=True, kw_only=True):
    """A history that broke an invariant, and how to see it again."""

    seed: int
    size: str
    law: str
    what: str
    trace: str


class Tally(Struct, kw_only=True):
    """What was done and seen in some histories.

    Attributes:
        runs, events, messages, reruns: counts.
        acked: writes that clients forgot because they were told that they are safe.
        rewound: of those, the ones a restore took away while no holder of the build could bring them back.
        faults: how often each fault really struck.
        seconds: of this process's CPU.
    """

    runs: int = 0
    events: int = 0
    messages: int = 0
    reruns: int = 0
    acked: int = 0
    rewound: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = {}
    failures: list[Failure] = []

    def add(self, other: Tally) -> None:
        """The sum of both."""
        for name in ("runs", "events", "messages", "reruns", "acked", "rewound", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults = dict(Counter(self.faults) + Counter(other.faults))
        self.failures.extend(other.failures)


class Played(Struct, kw_only=True):
    """One history that came to its end, or to its failure."""

    setting: Setting
    script: list[Event]
    trace: str
    broken: Broken | None
    tally: Tally


def run_seed(
    world: SimulatedWorld, seed: int, size: str = "mixed", tell: Callable[[str], object] | None = None
) -> Played:
    """The history of a seed."""
    plot = Plot(world, seed, size)
    return _played(Stage(world, plot.setting, tell), plot.perform)


def replay(
    world: SimulatedWorld, setting: Setting, script: Sequence[Event], tell: Callable[[str], object] | None = None
) -> Played:
    """The history of a script."""

    def perform(stage: Stage) -> None:
        for event in script:
            stage.play(event)

    return _played(Stage(world, setting, tell), perform)


def _played(stage: Stage, perform: Callable[[Stage], None]) -> Played:
    broken: Broken | None = None
    began = time.process_time()
    try:
        # Tiny listings, as tiny pages, find what large ones hide.
        with patch.object(rewind, "LISTING_ROWS_MAX", stage.setting.listing_rows):
            perform(stage)
            stage.heal()
    except Broken as error:
        broken = error
    except Exception as error:  # noqa: BLE001 - whatever the build under test raises is its failure
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = "".join(traceback.format_exception_only(error)).strip()
        broken = Broken("2.7 (no traceback)", f"{told} in {where.name}, line {where.lineno} of {where.filename}")
        broken.__cause__ = error
    finally:
        stage.close()
    acked, rewound = stage.acked
    tally = Tally(
        runs=1,
        events=len(stage.script),
        messages=stage.messages,
        acked=acked,
        rewound=rewound,
        seconds=time.process_time() - began,
        faults=dict(stage.reached),
    )
    return Played(setting=stage.setting, script=stage.script, trace=stage.trace, broken=broken, tally=tally)


def run_seeds(
    world: SimulatedWorld, seeds: Sequence[int], size: str = "mixed", rerun_every: int = RERUN_EVERY
) -> Tally:
    """The histories of several seeds; some of them twice."""
    total = Tally()
    for seed in seeds:
        played = run_seed(world, seed, size)
        broken, trace = played.broken, played.trace
        total.add(played.tally)
        if broken is None and rerun_every and seed % rerun_every == 0:
            total.reruns += 1
            if (again := run_seed(world, seed, size).trace) != trace:
                broken = Broken(NOT_REPEATABLE, f"the same seed left the trace {trace}, then {again}")
        if broken is not None:
            total.failures.append(Failure(seed=seed, size=size, law=broken.law, what=broken.what, trace=trace))
            if len(total.failures) >= FAILURES_MAX:
                break
    return total


def find_world(name: str | None) -> SimulatedWorld:
    """The world that ``module:factory`` makes; ours without a name.

    Raises:
        LocalProtocolError: there is none by this name.
    """
    if name is None:
        return SimulatedWorld()
    module, _, factory = name.partition(":")
    try:
        world = getattr(import_module(module), factory)()
    except (ImportError, AttributeError) as error:
        raise LocalProtocolError(f"expected module:factory of a simulated world; got {name}: {error}") from error
    if not isinstance(world, SimulatedWorld):
        raise LocalProtocolError(f"expected {name} to make a SimulatedWorld; it made a {type(world).__name__}")
    return world


def simulate(
    runs: int,
    *,
    first: int = 0,
    jobs: int = 1,
    size: str = "mixed",
    world: str | None = None,
    progress: Callable[[Tally], object] | None = None,
) -> Tally:
    """So many histories from seed `first` on; stops soon after the first failures. `progress` hears of each part.

    Raises:
        LocalProtocolError: no histories, no such size, or no such world.
    """
    if runs < 1:  # of none it could only be said that nothing was lost
        raise LocalProtocolError(f"expected at least 1 run; got {runs}")
    if size not in (*SIZES, "mixed"):
        raise LocalProtocolError(f"expected a size of {', '.join(SIZES)} or mixed; got {size}")
    total = Tally()
    chunks = [range(start, min(start + CHUNK, first + runs)) for start in range(first, first + runs, CHUNK)]
    for tally in _tallies(chunks, jobs, size, world):
        total.add(tally)
        if progress is not None:
            progress(total)
        if len(total.failures) >= FAILURES_MAX:
            break
    return total


def _tallies(chunks: list[range], jobs: int, size: str, world: str | None) -> Iterator[Tally]:
    if jobs <= 1:
        made = find_world(world)
        for chunk in chunks:
            yield run_seeds(made, chunk, size)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        # Few at a time, so that a failure stops what was not begun.
        left = iter(chunks)
        running = [pool.submit(_chunk, chunk, size, world) for chunk in islice(left, 2 * jobs)]
        try:
            while running:
                yield running.pop(0).result()
                running += [pool.submit(_chunk, chunk, size, world) for chunk in islice(left, 1)]
        finally:
            for each in running:
                each.cancel()


def _chunk(chunk: range, size: str, world: str | None) -> Tally:
    return run_seeds(find_world(world), chunk, size)


class Story(Struct, frozen=True, kw_only=True):
    """A failure told: the invariant, what was seen, and one line per event."""

    law: str
    what: str
    lines: list[str]
    events: int


def tell_story(world: SimulatedWorld, seed: int, size: str = "mixed") -> Story | None:
    """The story of a seed as it happened; None if it breaks nothing."""
    lines: list[str] = []
    played = run_seed(world, seed, size, lines.append)
    return _story(played, lines)


def shortest_story(world: SimulatedWorld, seed: int, size: str = "mixed", tries: int = TRIES_MAX) -> Story | None:
    """The shortest story that breaks what the seed breaks; None if it breaks nothing."""
    played = run_seed(world, seed, size)
    if played.broken is None:
        return None
    law = played.broken.law

    def breaks(script: Sequence[Event]) -> bool:
        found = replay(world, played.setting, script).broken
        return found is not None and found.law == law

    if not breaks(played.script):
        raise LocalProtocolError(
            "expected a recorded history to break what it broke; it does not: it is not repeatable"
        )
    script = shortest(played.script, breaks, tries)
    lines: list[str] = []
    return _story(replay(world, played.setting, script, lines.append), lines)


def _story(played: Played, lines: list[str]) -> Story | None:
    if played.broken is None:
        return None
    return Story(law=played.broken.law, what=played.broken.what, lines=lines, events=len(played.script))
