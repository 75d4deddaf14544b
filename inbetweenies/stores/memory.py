"""Graphs in dicts: the model that other stores are tested against. Nothing here is durable.

The log of a graph only ever grows at its end, so a reader needs no copy: it sees the rows up to the head it began
with, and takes a row that was closed later for current.
"""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from msgspec.structs import replace

from ..errors import LocalProtocolError
from ..exchange import run
from ..model import Device, Document, Event, Head, Held, Kind, Line, Reads, Row, Span, Writes
from ..rewind import discard
from . import BUSY_TIMEOUT_MS, DEVICE_HINTS_MAX, BaseTransaction, DeviceHints, WriterGate, remembered
from .clock import wall_clock


def random_epoch() -> str:
    """16 hexadecimal digits that no other log has (PROTOCOL 4.2)."""
    return secrets.token_hex(8)


class MemoryStore:
    """A store for tests, trials and simulators: fast, whole, and gone with the process.

    Threads may share it. Two write transactions of one graph never overlap; a thread that opens a second one while
    the first is open gets `StoreBusy`.

    Args:
        epochs: makes the epoch of each new graph; pass one that counts to make a run repeatable.
        busy_timeout_ms: how long a writer waits for a writer on another thread.
        device_hints_max: how many devices' hints are kept.
    """

    def __init__(
        self,
        epochs: Callable[[], str] = random_epoch,
        *,
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
        device_hints_max: int = DEVICE_HINTS_MAX,
    ) -> None:
        self._epochs = epochs
        self._busy_timeout_ms = busy_timeout_ms
        self._device_hints_max = device_hints_max
        self._hints = DeviceHints(device_hints_max)
        self._graphs: dict[str, _Graph] = {}
        self._documents: dict[str, Document] = {}  # replaced, never changed, so that a transaction keeps its own
        self._lock = threading.Lock()
        self._closed = False

    def transaction(self, graph: str, *, write: bool) -> BaseTransaction:
        """Open a transaction on `graph`. See `inbetweenies.store.Store`."""
        self._open()
        with self._lock:
            if graph not in self._graphs:
                self._graphs[graph] = _Graph(self._epochs(), WriterGate(self._busy_timeout_ms))
            return _Transaction(graph, self._graphs[graph], lambda: self._documents, write=write, hints=self._hints)

    async def document(self, name: str) -> Document:
        """See `inbetweenies.store.Store`."""
        self._open()
        return self._documents.get(name, Document())

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        """See `inbetweenies.store.Store`."""
        self._open()
        with self._lock:
            if self._documents.get(name, Document()).revision != revision:
                return False
            self._documents = {**self._documents, name: Document(revision=revision + 1, body=body)}
            return True

    async def graph_names(self) -> tuple[str, ...]:
        """See `inbetweenies.store.Store`."""
        self._open()
        with self._lock:
            return tuple(sorted(self._graphs))

    def _open(self) -> None:
        if self._closed:
            raise LocalProtocolError("expected an open store; got a closed one")

    async def close(self) -> None:
        """Refuse further transactions."""
        self._closed = True

    async def discard_after(self, graph: str) -> Event:
        """What peers know of this graph beyond its end is to stay away (PROTOCOL 4.12)."""
        async with self.transaction(graph, write=True) as tx:
            return await run(discard(wall_clock()), tx)

    def copy(self) -> MemoryStore:
        """An open store of its own with the same commits: what a backup, or a restart after a crash, would hold.

        Device hints and open transactions are not part of it.
        """
        with self._lock:
            graphs = {name: graph.copy(self._busy_timeout_ms) for name, graph in self._graphs.items()}
        other = MemoryStore(
            self._epochs, busy_timeout_ms=self._busy_timeout_ms, device_hints_max=self._device_hints_max
        )
        other._graphs = graphs
        other._documents = self._documents
        return other


class _Graph:
    """One log and the dicts to find its rows by.

    `leaving`, `arriving` and `of_type` name candidates: ids that at some time had a row with that endpoint or type.
    Being only candidates, they need no undoing.
    """

    def __init__(self, epoch: str, gate: WriterGate) -> None:
        self.gate = gate
        self.lock = threading.Lock()  # held for single steps, so that a reader never sees a dict half changed
        self.head = Head(epoch=epoch)
        self.devices: dict[str, Device] = {}  # replaced, never changed, so that a reader keeps its own
        self.events: tuple[Event, ...] = ()
        self.log: list[Row] = []
        self.seqs: dict[tuple[Kind, str], list[int]] = {}
        self.versions: dict[tuple[Kind, str, str], int] = {}
        self.leaving: dict[str, dict[str, None]] = {}
        self.arriving: dict[str, dict[str, None]] = {}
        self.of_type: dict[str, dict[str, None]] = {}

    def copy(self, busy_timeout_ms: int) -> _Graph:
        other = _Graph(self.head.epoch, WriterGate(busy_timeout_ms))
        with self.lock:
            for row in self.log[: self.head.seq]:
                other.add(_seen(row, self.head.seq))
            other.head = self.head
            other.devices = self.devices
            other.events = self.events
        return other

    def add(self, row: Row) -> None:
        self.log.append(row)
        self.seqs.setdefault((row.kind, row.id), []).append(row.seq)
        self.versions[row.kind, row.id, row.version] = row.seq
        if row.kind == "edge":
            self.leaving.setdefault(row.from_id, {})[row.id] = None
            self.arriving.setdefault(row.to_id, {})[row.id] = None
        else:
            self.of_type.setdefault(row.entity_type, {})[row.id] = None

    def remove_last(self) -> None:
        row = self.log.pop()
        seqs = self.seqs[row.kind, row.id]
        seqs.pop()
        if not seqs:
            del self.seqs[row.kind, row.id]
        del self.versions[row.kind, row.id, row.version]


def _seen(row: Row, seq: int) -> Row:
    """`row` as it was when `seq` was the end of the log."""
    return row if row.until is None or row.until <= seq else replace(row, until=None)


class _Transaction(BaseTransaction):
    def __init__(
        self,
        name: str,
        graph: _Graph,
        documents: Callable[[], dict[str, Document]],
        *,
        write: bool,
        hints: DeviceHints,
    ) -> None:
        super().__init__(name, write=write, hints=hints)
        self._in = graph
        self._now_documents = documents
        self._undo: list[Row] = []

    def _begin(self) -> Head:
        if self.writable:
            self._in.gate.enter()
        with self._in.lock:
            self._before = self._in.head
            self._durable = self._in.devices
            self._events = self._in.events
            self._documents = self._now_documents()
            return self._before

    def _commit(self) -> None:
        if self.writable:
            with self._in.lock:
                self._in.head = self._head
                self._in.devices = self._durable
                self._in.events = self._events
            self._in.gate.leave()

    def _rollback(self) -> None:
        if self.writable:
            with self._in.lock:
                while len(self._in.log) > self._before.seq:
                    self._in.remove_last()
                for row in self._undo:
                    self._in.log[row.seq - 1] = row
            self._in.gate.leave()

    def _apply(self, writes: Writes) -> None:
        graph = self._in
        with graph.lock:
            self._check(writes)
            for seq, until in writes.closed:
                row = graph.log[seq - 1]
                if seq <= self._before.seq:
                    self._undo.append(row)
                graph.log[seq - 1] = replace(row, until=until)
            for row in writes.rows:
                graph.add(row)
        if writes.device is not None:
            self._durable = {**self._durable, writes.device[0]: writes.device[1]}
        self._events = remembered(self._events, writes.events)

    def _check(self, writes: Writes) -> None:
        """What only the rows that are held can tell. Raises before anything is applied."""
        graph, end = self._in, self._head.seq
        closed = dict(writes.closed)
        versions: set[tuple[Kind, str, str]] = set()
        ends: set[tuple[Kind, str, int | None]] = set()
        for seq, until in closed.items():
            row = graph.log[seq - 1]
            if row.until is not None or (row.kind, row.id, until) in ends:
                raise LocalProtocolError(f"expected row {seq} to be current, and the only one of its id; it is not")
            ends.add((row.kind, row.id, until))
        for row in writes.rows:
            version = (row.kind, row.id, row.version)
            if version in graph.versions or version in versions:
                raise LocalProtocolError(f"expected a row version that is not held yet in row {row.seq}; it is held")
            versions.add(version)
            ending = (row.kind, row.id, row.until)
            current = self._visible(row.kind, (row.id,), end, end) if row.until is None else {}
            if ending in ends or (current and current[row.id].seq not in closed):
                raise LocalProtocolError(f"expected no other row of its id to end where row {row.seq} does; one does")
            ends.add(ending)

    def _held(self, reads: Reads) -> Held:
        end = self._head.seq
        at = end if reads.as_of is None else min(reads.as_of, end)
        with self._in.lock:
            return Held(
                head=self._head,
                device=self._durable.get(reads.device) if reads.device is not None else None,
                events=self._events if reads.events else (),
                documents={name: self._documents.get(name, Document()) for name in reads.documents},
                **self._by_key(reads, at, end),
                **self._in_order(reads, at, end),
            )

    def _by_key(self, reads: Reads, at: int, end: int) -> dict[str, Any]:
        graph = self._in
        answer: dict[str, Any] = {}
        # Most reads ask for little: what is not asked for costs nothing.
        if reads.entities:
            answer["entities"] = self._visible("entity", reads.entities, at, end)
        if reads.edges:
            answer["edges"] = self._visible("edge", reads.edges, at, end)
        if reads.versions:
            seqs = {key: graph.versions.get(key, end + 1) for key in reads.versions}
            answer["versions"] = {key: _seen(graph.log[seq - 1], end) for key, seq in seqs.items() if seq <= end}
        if reads.history:
            answer["history"] = self._histories("entity", reads.history, end)
        if reads.edge_history:
            answer["edge_history"] = self._histories("edge", reads.edge_history, end)
        if reads.edges_from:
            leaving = {id_: self._visible("edge", graph.leaving.get(id_, ()), at, end) for id_ in reads.edges_from}
            answer["edges_from"] = {
                id_: tuple(edges[edge] for edge in sorted(edges) if edges[edge].from_id == id_)
                for id_, edges in leaving.items()
            }
        if reads.edges_to:
            arriving = {id_: self._visible("edge", graph.arriving.get(id_, ()), at, end) for id_ in reads.edges_to}
            answer["edges_to"] = {
                id_: tuple(edges[edge] for edge in sorted(edges) if edges[edge].to_id == id_)
                for id_, edges in arriving.items()
            }
        return answer

    def _in_order(self, reads: Reads, at: int, end: int) -> dict[str, Any]:
        graph = self._in
        answer: dict[str, Any] = {}
        if reads.types:
            candidates = {id_: None for type_ in reads.types for id_ in graph.of_type.get(type_, ())}
            things = self._visible("entity", candidates, at, end).values()
            wanted = [row for row in things if row.entity_type in reads.types]
            answer["types"] = tuple(sorted(wanted, key=attrgetter("born", "id")))
        if reads.chains:
            chains = {seq: graph.log[seq - 1].chain for seq in reads.chains if 0 < seq <= end}
            answer["chains"] = chains | ({0: bytes(16)} if 0 in reads.chains else {})
        if reads.stamp is not None:
            answer["stamp_seq"] = bisect_right(graph.log, reads.stamp, hi=end, key=attrgetter("stamp"))
        if reads.span is not None:
            answer["span"] = self._span(reads.span, at, end)
        if reads.seqs:
            answer["seqs"] = {seq: _seen(graph.log[seq - 1], end) for seq in reads.seqs if 0 < seq <= end}
        if reads.lines is not None:
            answer["lines"] = self._lines(reads.lines, at)
        if reads.listing:
            rows = self._span(Span(after=0, upto=end, kind="entity"), at, end)
            listed = sorted((row.id, row.version) for row in rows if row.id > reads.listing_after)
            answer["listing"] = tuple(listed[: reads.listing_rows])
        return answer

    def _histories(self, kind: Kind, ids: Iterable[str], end: int) -> dict[str, tuple[Row, ...]]:
        log, seqs = self._in.log, self._in.seqs
        rows = {id_: tuple(_seen(log[seq - 1], end) for seq in seqs.get((kind, id_), ()) if seq <= end) for id_ in ids}
        return {id_: found for id_, found in rows.items() if found}

    def _visible(self, kind: Kind, ids: Iterable[str], at: int, end: int) -> dict[str, Row]:
        """The row of each id that was current at seq `at`, as seen from the end of this snapshot."""
        log = self._in.log
        rows: dict[str, Row] = {}
        for id_ in ids:
            # Newest first: what is asked for is nearly always at the end.
            for seq in reversed(self._in.seqs.get((kind, id_), ())):
                until = log[seq - 1].until
                if seq <= at and (until is None or until > at):
                    rows[id_] = _seen(log[seq - 1], end)
                    break
        return rows

    def _span(self, span: Span, at: int, end: int) -> tuple[Row, ...]:
        rows: list[Row] = []
        size = 0
        for row in self._in.log[max(span.after, 0) : max(min(span.upto, at), 0)]:
            if len(rows) == span.rows or (rows and span.size is not None and size >= span.size):
                break
            if (row.until is None or row.until > at) and _wanted(row, span):
                rows.append(_seen(row, end))
                size += len(row.body)
        return tuple(rows)

    def _lines(self, span: Span, at: int) -> tuple[Line, ...]:
        rows = self._in.log[max(span.after, 0) : max(min(span.upto, at), 0)][: span.rows]
        return tuple(Line(row.seq, row.kind, row.id, row.until is None or row.until > at, row.hash) for row in rows)


def _wanted(row: Row, span: Span) -> bool:
    if span.entity_type is not None:
        return row.kind == "entity" and row.entity_type == span.entity_type and span.kind != "edge"
    return span.kind is None or row.kind == span.kind
