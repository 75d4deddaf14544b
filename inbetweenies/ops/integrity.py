"""`DataIntegrityMonitor`: whether the logs of a store are whole, asked once or for ever (PROTOCOL 12.9).

What is whole is decided in `inbetweenies.rollout.integrity`. Here a log is read, in one transaction or in many short
ones: it only ever grows, so that many read the same as one, as long as what closed a row later is taken away again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NoReturn

from msgspec import Struct
from msgspec.structs import replace

from ..errors import LocalProtocolError, StoreCorrupt, StoreError
from ..model import Head, Reads, Row
from ..rollout.integrity import Audit, Check, Report, Violation
from ..store import Store, Transaction
from ..stores.clock import wall_clock

#: The share of one processor that `DataIntegrityMonitor.monitor` takes.
BUDGET: Final = 0.02
#: A round begins so many seconds after the one before at the earliest: who has little needs not be read all the time.
ROUND_S: Final = 10.0
#: How long reading goes on before others get their turn, in seconds. A busy server answers a request in that.
SLICE_S: Final = 0.005
#: Rows that are read at once; fewer after some that were large or could not be read.
ROWS: Final = 64
_LARGE_BYTES: Final = 2**20  # what typical ones come to is a thirtieth of it; the largest row is eight times as large
#: Rows that SQLite cannot read, after which no more are looked for: who has more of them needs a backup and no list.
UNREADABLE_MAX: Final = 100
#: How often a graph is tried again within a round whose store is busy.
_TRIES: Final = 3
_TOLD_MAX: Final = 3  # violations of one graph that are told in words

logger = logging.getLogger(__name__)


class Watched(Struct, frozen=True, kw_only=True):
    """What is known of one graph.

    Attributes:
        report: of the last audit that came to its end; None before the first.
        at: when that was, in microseconds.
        found: what the audit that is under way has found so far.
        corrupt: what the store says of it, if it cannot read it.
    """

    report: Report | None = None
    at: int | None = None
    found: tuple[Violation, ...] = ()
    corrupt: str | None = None


class DataIntegrityMonitor:
    """Looks whether every log of a store is whole.

    Its questions are coroutines that wait for nothing but the store: those of this package block, so drive them with
    `run_now`, or on a thread of their own where a server must go on meanwhile. Each reads every log from its beginning
    to its end, each log out of one snapshot, so that writers meanwhile cause no false alarm. `monitor` is for servers.

    Args:
        store: whose logs.
        graphs: only these; without, all that the store has by then.
        budget: the share of one processor that `monitor` takes, above 0 and up to 1.
        round_s: seconds from the beginning of a round to that of the next, at least.
        clock: microseconds since 1970.
        monotonic: seconds that never run backwards.
        busy: seconds that this thread has spent on a processor.
        wait: waits for so many seconds.

    Raises:
        LocalProtocolError: there is no such budget.
    """

    def __init__(
        self,
        store: Store,
        *,
        graphs: Iterable[str] | None = None,
        budget: float = BUDGET,
        round_s: float = ROUND_S,
        clock: Callable[[], int] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.thread_time,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not 0 < budget <= 1:
            raise LocalProtocolError(f"expected a budget above 0 and up to 1; got {budget:g}")
        self._store = store
        self._only = None if graphs is None else tuple(graphs)
        self._budget = budget
        self._round_s = round_s
        self._clock = clock
        self._monotonic = monotonic
        self._busy = busy
        self._wait = wait
        self._watched: dict[str, Watched] = {}

    # --- asked once

    async def validate_migration(self) -> bool:
        """Whether every log is whole. Raises `StoreError`: they could not be read."""
        return all(report.count == 0 for report in (await self.reports()).values())

    async def check_entity_counts(self) -> bool:
        """Whether no row is missing, and of each id exactly one is current. Raises `StoreError`, as above."""
        return await self._passed("entity_counts")

    async def check_relationship_integrity(self) -> bool:
        """Whether every edge comes after rows of both of its entities. Raises `StoreError`, as above."""
        return await self._passed("relationship_integrity")

    async def check_orphaned_records(self) -> bool:
        """Whether each row that was replaced ends where the next of its id begins. Raises `StoreError`, as above."""
        return await self._passed("orphaned_records")

    async def check_data_consistency(self) -> bool:
        """Whether rows, hashes, chains and columns agree. Raises `StoreError`, as above."""
        return await self._passed("data_consistency")

    async def reports(self) -> dict[str, Report]:
        """What is wrong, by graph. Raises `StoreError`: they could not be read."""
        return {graph: await self.report(graph) for graph in await self._graphs()}

    async def report(self, graph: str) -> Report:
        """What is wrong with a graph, with ids, and what would put it right (`Report.plan`).

        Rows that the store cannot read count as missing.

        Raises:
            StoreError: the store could not, or holds too many such rows.
        """
        _, report = await self._read(graph)
        return report

    async def audited(self, graph: str) -> tuple[Audit, Head]:
        """The audit that has read all of a graph, and the end of its log as it was read. Raises as `report` does."""
        reading, _ = await self._read(graph)
        return reading.audit, reading.head

    async def _read(self, graph: str) -> tuple[_Reading, Report]:
        reading = _Reading(self._store, graph)
        while True:
            report = await reading.go_on(_never)
            if report is not None:
                return reading, report

    async def _passed(self, check: Check) -> bool:
        return all(_passed(report, check) for report in (await self.reports()).values())

    async def _graphs(self) -> tuple[str, ...]:
        return await self._store.graph_names() if self._only is None else self._only

    # --- for ever

    async def monitor(self) -> NoReturn:
        """Go round all graphs, over and over, a slice at a time, until this is cancelled.

        What cannot be read is tried again in the next round. On an event loop a slice keeps it for `SLICE_S`.
        """
        while True:
            started = self._monotonic()
            await self._round()
            await self._wait(max(started + self._round_s - self._monotonic(), 0.0))

    def breaches(self) -> tuple[str, ...]:
        """What is wrong now, in words: certain, and true until a later round finds it right."""
        return tuple(line for graph, watched in self._watched.items() for line in _words(graph, watched))

    @property
    def last_complete(self) -> Mapping[str, int]:
        """When the last audit of each graph came to its end, in microseconds; without those that never did."""
        return {graph: watched.at for graph, watched in self._watched.items() if watched.at is not None}

    @property
    def watched(self) -> Mapping[str, Watched]:
        """What is known of each graph."""
        return dict(self._watched)

    async def _round(self) -> None:
        started = self._busy()
        try:
            graphs = await self._graphs()
        except StoreError as error:
            logger.warning("graphs stay unaudited: %s", error)
            graphs = ()
        else:
            self._watched = {graph: self._watched.get(graph, Watched()) for graph in graphs}
        await self._pay(started)
        for graph in graphs:
            try:
                await self._audit(graph)
            except Exception:  # it must go on with the others, and say so
                logger.exception("the audit of graph %s broke off", graph)

    async def _audit(self, graph: str) -> None:
        reading = _Reading(self._store, graph)
        tries = _TRIES
        while tries:
            started = self._busy()
            try:
                report = await reading.go_on(self._until(self._monotonic() + SLICE_S))
                self._seen(graph, reading, report)
                if report is not None:
                    return
            except StoreCorrupt as error:
                self._watched[graph] = replace(self._watched[graph], corrupt=str(error))
                return
            except StoreError as error:
                tries -= 1
                logger.warning("graph %s stays unaudited for now: %s", graph, error)
            finally:
                await self._pay(started)

    def _seen(self, graph: str, reading: _Reading, report: Report | None) -> None:
        if report is None:
            self._watched[graph] = replace(self._watched[graph], found=reading.found)
            return
        if report.count and report != self._watched[graph].report:
            logger.error("graph %s is not whole: %s", graph, "; ".join(_violations(graph, report.violations)))
        self._watched[graph] = Watched(report=report, at=self._clock())

    def _until(self, end: float) -> Callable[[], bool]:
        return lambda: self._monotonic() >= end

    async def _pay(self, started: float) -> None:
        """Wait so long that what was spent since `started` is no more than the budget allows."""
        await self._wait((self._busy() - started) * (1 / self._budget - 1))


def _never() -> bool:
    return False


def _passed(report: Report, check: Check) -> bool:
    try:
        return report.passed(check)
    except LocalProtocolError:  # too much is wrong to say, and so nothing is known to be right
        return False


def _words(graph: str, watched: Watched) -> list[str]:
    told = [] if watched.corrupt is None else [f"{graph}: {watched.corrupt}"]
    last = () if watched.report is None else watched.report.violations
    return told + _violations(graph, last or watched.found)


def _violations(graph: str, violations: Sequence[Violation]) -> list[str]:
    told = [f"{graph}: {_where(one)}{one.told}" for one in violations[:_TOLD_MAX]]
    left = len(violations) - len(told)
    return [*told, f"{graph}: and {left} more"] if left else told


def _where(one: Violation) -> str:
    return f"row {one.repair.seq}: " if one.id is None else f"row {one.repair.seq} of {one.kind} {one.id}: "


class _Unreadable(Exception):
    """The store cannot read some rows; a transaction that met them can only be left."""


class _Reading:
    """One audit of one graph, over as many transactions as it takes: of the log as it was when the first began."""

    def __init__(self, store: Store, graph: str) -> None:
        self._store = store
        self._graph = graph
        self._rows = ROWS
        self._unreadable = 0
        self.audit = Audit()
        self._head: Head | None = None
        self._chain: bytes | None = None  # of the row there, whatever the head says
        self._at = 0

    @property
    def head(self) -> Head:
        """The end of the log that is read; only after some of it was."""
        assert self._head is not None
        return self._head

    @property
    def found(self) -> tuple[Violation, ...]:
        """What was found so far."""
        return self.audit.found

    async def go_on(self, enough: Callable[[], bool]) -> Report | None:
        """Read on in one transaction, some rows at least and then until `enough`; what was found, if that was all.

        Raises:
            StoreError: the store could not; what was read before stays read.
        """
        try:
            async with self._store.transaction(self._graph, write=False) as tx:
                now, head = await self._same(tx)
                while self._at < head.seq:
                    self.audit.read(await self._some(tx, head, now))
                    if enough():
                        break
        except _Unreadable as unreadable:
            self._skip(unreadable)
            return None
        return self.audit.report(head) if self._at >= head.seq else None

    async def _same(self, tx: Transaction) -> tuple[Head, Head]:
        """The end of the log now and as the audit began, which begins anew with a log that was rewound meanwhile."""
        now, begun = (await tx.read(Reads())).head, self._head
        if begun is not None and await _follows(tx, now, begun, self._chain):
            return now, begun
        self._head, self._chain = now, await _chain(tx, now.seq)
        self.audit, self._at = Audit(), 0
        return now, now

    async def _some(self, tx: Transaction, head: Head, now: Head) -> list[Row]:
        upto = min(self._at + self._rows, head.seq)
        try:
            seqs = (await tx.read(Reads(seqs=tuple(range(self._at + 1, upto + 1))))).seqs
        except StoreCorrupt as error:
            raise _Unreadable from error
        large = sum(len(row.body) for row in seqs.values()) > _LARGE_BYTES
        self._at, self._rows = upto, max(self._rows // 2, 1) if large else min(2 * self._rows, ROWS)
        return [_as_of(seqs[seq], head, now) for seq in sorted(seqs)]

    def _skip(self, unreadable: _Unreadable) -> None:
        """Of several rows try each; one that cannot be read is missing."""
        if self._rows > 1:
            self._rows = 1
            return
        self._at += 1
        self._unreadable += 1
        if self._unreadable > UNREADABLE_MAX:
            raise StoreCorrupt(f"{unreadable.__cause__}: more than {UNREADABLE_MAX} rows") from unreadable


async def _chain(tx: Transaction, seq: int) -> bytes | None:
    return (await tx.read(Reads(chains=(seq,)))).chains.get(seq)


async def _follows(tx: Transaction, now: Head, begun: Head, chain: bytes | None) -> bool:
    """Whether the log that ends at `now` is the one that ended at `begun`, with the `chain` of its row there."""
    if now.epoch != begun.epoch or now.seq < begun.seq or (now.seq == begun.seq and now != begun):
        return False
    return await _chain(tx, begun.seq) == chain


def _as_of(row: Row, head: Head, now: Head) -> Row:
    """The row as it was at `head`: what came since has not taken its place yet. What no row can have done stays."""
    return replace(row, until=None) if row.until is not None and head.seq < row.until <= now.seq else row
