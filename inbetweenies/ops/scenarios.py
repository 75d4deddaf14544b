"""Small rehearsals, one for each row of the decision matrix: what is seen is made up, what decides is what always does.

Each has a store of its own and a rollout in its ramp, served by one process with its monitor and its triggers. Where a
log is to be damaged, one is, and an audit finds it. Read `SCENARIOS` for what there is; `play` runs one and tells by
which rows it was decided. What is rehearsed with real servers and clients is `inbetweenies drill`.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from msgspec import Raw, Struct
from msgspec.structs import replace

from .. import engine, exchange
from ..errors import LocalProtocolError
from ..limits import LIMITS
from ..merge import Policy
from ..model import Change, Context, Entity, SyncRequest, make_version
from ..rollout import states, triggers
from ..rollout.canary import reaches
from ..rollout.kept import Cause
from ..rollout.policy import Decision
from ..rollout.policy import Policy as RolloutPolicy
from ..rollout.states import Rollout, rollouts_in
from ..rollout.verdicts import DOCUMENT, Read, record_in, understood
from ..stores import SqliteStore, amend
from ..stores.keeper import run_now
from ..wire import load
from .integrity import DataIntegrityMonitor
from .performance import SETTLED, PerformanceMonitor, Served
from .policies import standard
from .triggers import EmergencyTriggers

MANY: Final = 1_500  # requests a side, of which a quantile of them can be told
_CAUSE: Final = Cause(actor="drill", reason="a scenario", at=0)


class Played(Struct, frozen=True, kw_only=True):
    """How a scenario went.

    Attributes:
        name: of the scenario.
        state: of the rollout in the end.
        verdicts: all that were kept, oldest first.
        met: the row that was met in the end, and what that decides.
    """

    name: str
    state: str
    verdicts: tuple[Read, ...]
    row: str
    decision: Decision


class Stage:
    """A store with one rollout in its ramp, and one process that serves it. Nothing waits: time is what is said."""

    def __init__(self, folder: Path, policy: RolloutPolicy) -> None:
        self.newest = next(iter(load()))
        self.store = SqliteStore(folder / "home.db", journal=False, heads=False)
        self.path = folder / "home.db"
        self.seconds = 0.0
        self.bytes = 100
        self.policy = policy
        self.integrity = DataIntegrityMonitor(self.store)
        self._begin()
        self.monitor = PerformanceMonitor(
            self.store,
            rollouts=lambda: rollouts_in(run_now(self.store.document(states.DOCUMENT))),
            monotonic=lambda: self.seconds,
            memory=lambda: self.bytes,
        )
        self.triggers = EmergencyTriggers(
            self.store,
            self.monitor,
            policy=lambda: self.policy,
            breaches=self._broken,
            clock=lambda: int(self.seconds * 1_000_000),
            monotonic=lambda: self.seconds,
        )
        self.reached, self.others = (
            next(name for name in map(str, range(99)) if reaches(self.rollout, name) is wanted)
            for wanted in (True, False)
        )

    @property
    def rollout(self) -> Rollout:
        return rollouts_in(run_now(self.store.document(states.DOCUMENT))).of(self.newest)

    def _begin(self) -> None:
        rollouts = states.Rollouts().started(self.newest, steps=(500_000,), cause=_CAUSE)
        for _ in range(4):
            fence = rollouts.of(self.newest).fence
            rollouts = rollouts.moved(self.newest, "advance", fence=fence, cause=_CAUSE)
        run_now(amend(self.store, states.DOCUMENT, lambda _: states.document_of(rollouts)))

    def serve(self, count: int, *, failed: bool = False, micros: int = 1_000, others: int = 1_000) -> None:
        """So many requests of each side; those of whom it reaches fail, or take so long."""
        for _ in range(count):
            self.one(self.others, micros=others)
            self.one(self.reached, failed=failed, micros=micros)

    def one(self, graph: str, *, failed: bool = False, micros: int = 1_000) -> None:
        """One request of a graph."""
        self.monitor.record(Served(graph=graph, operation="pull", micros=micros, failed=failed))

    def look(self, times: int = 1) -> None:
        """Look so often, five seconds after one another."""
        for _ in range(times):
            self.seconds += 5.0
            self.triggers.look()

    def write(self) -> None:
        """Somebody writes something."""
        lamp = Entity(
            id="lamp",
            version=make_version(0, 0, "ada"),
            entity_type="device",
            name="Lamp",
            content=Raw(b"{}"),
            source_type="manual",
            user_id="ada",
            parent_versions=(),
        )
        request = SyncRequest(device="hub", user="ada", changes=(Change(entity=lamp, pointer="/changes/0"),))

        async def written() -> None:
            async with self.store.transaction(self.reached, write=True) as tx:
                await exchange.run(engine.serve(request, Context(graph=self.reached), LIMITS, Policy()), tx)

        run_now(written())

    def damage(self) -> None:
        """What was written is not what its hash was made of any more."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE log SET user_id = 'eve' WHERE seq = 1")

    def mend(self) -> None:
        """It is again."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("UPDATE log SET user_id = 'ada' WHERE seq = 1")

    def _broken(self) -> tuple[str, ...]:
        """What an audit of all logs finds: beside a server that goes on for ever, here at each look."""
        reports = run_now(self.integrity.reports())
        return tuple(f"{graph}: {one.told}" for graph, report in reports.items() for one in report.violations)

    def harm(self, times: int = 1) -> None:
        """A log is damaged, is found to be, and stays so for so many looks."""
        self.write()
        self.damage()
        self.look(times)


# --- what there is ------------------------------------------------------------------------------------------------


def _hole_before(stage: Stage) -> None:
    """Nothing older than what is rolled out is safe."""
    stage.policy = replace(stage.policy, min_safe_version=stage.newest)


def _hole_now(stage: Stage) -> None:
    stage.policy = replace(stage.policy, advised={stage.newest: "a hole that was made up"})


def all_is_well(stage: Stage) -> None:
    for _ in range(3):
        stage.serve(20)
        stage.look()


def a_log_is_damaged(stage: Stage) -> None:
    stage.harm()


def a_log_is_damaged_above_a_hole(stage: Stage) -> None:
    _hole_before(stage)
    stage.harm()


def every_request_fails(stage: Stage) -> None:
    stage.serve(15, failed=True)
    stage.look()


def every_request_fails_above_a_hole(stage: Stage) -> None:
    _hole_before(stage)
    every_request_fails(stage)


def a_hole_in_the_newer_version(stage: Stage) -> None:
    _hole_now(stage)
    stage.look()


def a_hole_in_both_versions(stage: Stage) -> None:
    _hole_before(stage)
    a_hole_in_the_newer_version(stage)


def a_few_requests_fail(stage: Stage) -> None:
    """Both sides fail now and then, so that five in a row prove little."""
    stage.serve(300)
    for _ in range(6):
        stage.one(stage.others, failed=True)
    stage.one(stage.others)
    stage.look()
    for _ in range(5):
        stage.one(stage.reached, failed=True)
    stage.look()


def twice_as_slow(stage: Stage) -> None:
    stage.serve(MANY, micros=4_000)
    stage.look()


def twice_the_memory(stage: Stage) -> None:
    stage.serve(SETTLED)
    stage.look()
    stage.bytes *= 2
    stage.look()


def nobody_can_tell(stage: Stage) -> None:
    def fails(*_: object, **__: object) -> triggers.Signals:
        raise LocalProtocolError("expected somebody who can tell; got nobody: a scenario")

    stage.monitor.signals = fails  # type: ignore[method-assign]
    stage.look(3)


def it_goes_on_after_the_rollback(stage: Stage) -> None:
    stage.harm(2)


def it_goes_on_above_a_hole(stage: Stage) -> None:
    stage.harm()
    _hole_before(stage)
    stage.look()


def it_goes_on_after_the_switch(stage: Stage) -> None:
    stage.harm(3)


def it_goes_on_after_the_repair(stage: Stage) -> None:
    stage.harm(4)


def it_ends_with_the_rollback(stage: Stage) -> None:
    stage.harm()
    stage.mend()
    stage.look(3)


Story = Callable[[Stage], None]
#: All of them, by name.
SCENARIOS: Final[Mapping[str, Story]] = {
    story.__name__: story
    for story in (
        all_is_well,
        a_log_is_damaged,
        a_log_is_damaged_above_a_hole,
        every_request_fails,
        every_request_fails_above_a_hole,
        a_hole_in_the_newer_version,
        a_hole_in_both_versions,
        a_few_requests_fail,
        twice_as_slow,
        twice_the_memory,
        nobody_can_tell,
        it_goes_on_after_the_rollback,
        it_goes_on_above_a_hole,
        it_goes_on_after_the_switch,
        it_goes_on_after_the_repair,
        it_ends_with_the_rollback,
    )
}


# --- played -------------------------------------------------------------------------------------------------------


def play(name: str, policy: RolloutPolicy | None = None) -> Played:
    """Play one scenario, under the policy that comes with this if no other one is given.

    Raises:
        LocalProtocolError: there is none of this name.
    """
    if name not in SCENARIOS:
        raise LocalProtocolError(f"expected a scenario, of {', '.join(SCENARIOS)}; got another: {name!r:.80}")
    with TemporaryDirectory(prefix="inbetweenies-scenario-", ignore_cleanup_errors=True) as folder, _quiet():
        stage = Stage(Path(folder), policy or standard())
        try:
            return _played(name, stage)
        finally:
            run_now(stage.store.close())


def _played(name: str, stage: Stage) -> Played:
    SCENARIOS[name](stage)
    lines = record_in(run_now(stage.store.document(DOCUMENT))).lines
    return Played(
        name=name,
        state=stage.rollout.state,
        verdicts=tuple(map(understood, lines)),
        row=stage.triggers.last[stage.rollout.id].row,
        decision=stage.triggers.last[stage.rollout.id].decision,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """What a scenario makes go wrong is no news."""
    loggers = [logging.getLogger(f"{__package__}.{name}") for name in ("triggers", "integrity")]
    known = [one.disabled for one in loggers]
    for one in loggers:
        one.disabled = True
    try:
        yield
    finally:
        for one, before in zip(loggers, known, strict=True):
            one.disabled = before
