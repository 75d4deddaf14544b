"""`MemoryStore` against the contract, and in the random runs against a model so naive that it is read at a glance."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreBusy
from inbetweenies.model import Device, Document, Event, Head, Held, Kind, Line, Reads, Row, Span, Writes
from inbetweenies.store import Store, Transaction
from inbetweenies.stores import DeviceHints, MemoryStore, WriterGate
from inbetweenies.testing.store_tests import StoreTests, commit, entity, everything, read, run


class ListStore:
    """Every snapshot of a graph is a list of rows, and every question a walk over all of it."""

    def __init__(self) -> None:
        self.graphs: dict[str, tuple[Head, list[Row], dict[str, Device], list[Event]]] = {}
        self.hints: dict[tuple[str, str], Device] = {}
        self.documents: dict[str, Document] = {}

    def transaction(self, graph: str, *, write: bool) -> AbstractAsyncContextManager[Transaction]:
        return self.block(graph, write)

    @asynccontextmanager
    async def block(self, graph: str, write: bool) -> AsyncIterator[Transaction]:
        head, rows, devices, events = self.graphs.setdefault(graph, (Head(epoch="e"), [], {}, []))
        hints = {d: h for (g, d), h in self.hints.items() if g == graph}
        tx = ListTransaction(head, list(rows), dict(devices), hints, events)
        tx.documents = dict(self.documents)
        yield tx
        if write:
            self.graphs[graph] = (tx.head, tx.rows, tx.devices, tx.events)
            for device in tx.told:
                self.hints.pop((graph, device), None)
        else:
            self.hints.update({(graph, device): value for device, value in tx.told.items()})

    async def document(self, name: str) -> Document:
        return self.documents.get(name, Document())

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        if (await self.document(name)).revision != revision:
            return False
        self.documents[name] = Document(revision=revision + 1, body=body)
        return True

    async def graph_names(self) -> tuple[str, ...]:
        return tuple(sorted(self.graphs))

    async def close(self) -> None:
        pass

    def copy(self) -> ListStore:
        other = ListStore()
        other.graphs = dict(self.graphs)
        other.documents = dict(self.documents)
        return other


class ListTransaction:
    def __init__(
        self, head: Head, rows: list[Row], devices: dict[str, Device], hints: dict[str, Device], events: list[Event]
    ) -> None:
        self.head, self.rows, self.devices, self.hints, self.events = head, rows, devices, hints, events
        self.told: dict[str, Device] = {}
        self.documents: dict[str, Document] = {}

    async def write(self, writes: Writes) -> None:
        ends = dict(writes.closed)
        self.rows = [replace(row, until=ends.get(row.seq, row.until)) for row in [*self.rows, *writes.rows]]
        versions = [(row.kind, row.id, row.version) for row in self.rows]
        if len(set(versions)) < len(versions):
            raise LocalProtocolError("a version twice")
        self.head = writes.head or self.head
        if writes.device is not None:
            self.told[writes.device[0]] = self.devices[writes.device[0]] = writes.device[1]
        for event in writes.events:
            same = (event.kind, event.key)
            self.events = [other for other in self.events if (other.kind, other.key) != same] + [event]

    async def read(self, reads: Reads) -> Held:
        at = self.head.seq if reads.as_of is None else reads.as_of
        seen = [row for row in self.rows if row.seq <= at and (row.until is None or row.until > at)]
        things = [row for row in seen if row.kind == "entity"]
        edges = sorted((row for row in seen if row.kind == "edge"), key=lambda row: row.id)
        span, lines = reads.span, reads.lines

        def history(kind: Kind, ids: tuple[str, ...]) -> dict[str, tuple[Row, ...]]:
            rows = [row for row in self.rows if row.kind == kind]
            return {id_: found for id_ in ids if (found := tuple(row for row in rows if row.id == id_))}

        stamps = [row.seq for row in self.rows if reads.stamp is not None and row.stamp <= reads.stamp]
        return Held(
            head=self.head,
            entities={row.id: row for row in things if row.id in reads.entities},
            edges={row.id: row for row in edges if row.id in reads.edges},
            versions={key: row for row in self.rows if (key := (row.kind, row.id, row.version)) in reads.versions},
            history=history("entity", reads.history),
            edge_history=history("edge", reads.edge_history),
            edges_from={id_: tuple(row for row in edges if row.from_id == id_) for id_ in reads.edges_from},
            edges_to={id_: tuple(row for row in edges if row.to_id == id_) for id_ in reads.edges_to},
            types=tuple(sorted((row for row in things if row.entity_type in reads.types), key=_age)),
            chains={seq: chain for seq, chain in self.chains() if seq in reads.chains},
            stamp_seq=max(stamps, default=0),
            device=self.device(reads.device),
            span=spanned(seen, span) if span else (),
            listing=tuple(sorted((row.id, row.version) for row in things if row.id > reads.listing_after))[
                : reads.listing_rows
            ]
            if reads.listing
            else (),
            seqs={row.seq: row for row in self.rows if row.seq in reads.seqs},
            lines=tuple(
                [
                    Line(row.seq, row.kind, row.id, row in seen, row.hash)
                    for row in self.rows
                    if lines and lines.after < row.seq <= min(lines.upto, at)
                ][: lines.rows if lines else 0]
            ),
            events=tuple(self.events) if reads.events else (),
            documents={name: self.documents.get(name, Document()) for name in reads.documents},
        )

    def chains(self) -> Iterable[tuple[int, bytes]]:
        return [(0, bytes(16)), *((row.seq, row.chain) for row in self.rows)]

    def device(self, name: str | None) -> Device | None:
        known = [kept[name] for kept in (self.devices, self.hints) if name in kept and name not in self.told]
        if name in self.told:
            known = [self.told[name]]
        if not known:
            return None
        return Device(
            served=max(one.served for one in known),
            acked=max(one.acked for one in known),
            mark=max(one.mark for one in known),
            pushed=(self.devices.get(name or "") or Device()).pushed,
        )


def spanned(seen: Iterable[Row], span: Span) -> tuple[Row, ...]:
    rows = [row for row in seen if span.after < row.seq <= span.upto and span.kind in (None, row.kind)]
    if span.entity_type is not None:
        rows = [row for row in rows if (row.kind, row.entity_type) == ("entity", span.entity_type)]
    if span.size is not None:
        before = [sum(len(row.body) for row in rows[:number]) for number in range(len(rows))]
        rows = [row for row, size in zip(rows, before, strict=True) if size < span.size]
    return tuple(rows[: span.rows])


def _age(row: Row) -> tuple[int, str]:
    return row.born, row.id


class TestMemoryStore(StoreTests):
    def make_store(self) -> MemoryStore:
        return MemoryStore()

    def reopen(self, store: Store) -> MemoryStore:
        assert isinstance(store, MemoryStore)
        return store.copy()

    def make_model(self) -> ListStore:
        return ListStore()


def test_epochs_can_be_made_repeatable() -> None:
    numbers = itertools.count()
    store = MemoryStore(lambda: f"{next(numbers):016x}")

    assert f"{0:016x}" == run(read(store, "a", Reads())).head.epoch
    assert f"{1:016x}" == run(read(store, "b", Reads())).head.epoch


def test_random_epochs_are_16_hexadecimal_digits() -> None:
    epoch = run(read(MemoryStore(), "g", Reads())).head.epoch

    assert 16 == len(epoch)
    assert 0 <= int(epoch, 16)


def test_writers_of_different_graphs_may_overlap() -> None:
    async def script(store: MemoryStore) -> None:
        async with store.transaction("a", write=True):
            await commit(store, "b", entity("e1"))

    run(script(MemoryStore()))


def test_a_copy_goes_its_own_way() -> None:
    store = MemoryStore()
    run(commit(store, "g", entity("e1", "v1")))
    block = store.transaction("g", write=True)
    writer = run(block.__aenter__())
    held = run(writer.read(Reads()))
    run(writer.write(Writes(head=replace(held.head, epoch="f"), device=("phone", Device(served=1)))))
    before = run(read(store, "g", everything(("e1", "e2"))))
    copy = store.copy()
    run(block.__aexit__(None, None, None))
    run(commit(store, "g", entity("e1", "v2")))

    assert before == run(read(copy, "g", everything(("e1", "e2"))))
    run(commit(copy, "g", entity("e2", "v1")))
    assert [("e1", "v2")] == list(run(read(store, "g", Reads(listing=True))).listing)


def test_hints_are_bounded_and_the_newest_are_kept() -> None:
    hints = DeviceHints(size=2)
    for device in ("a", "b", "a", "c"):
        hints.keep("g", device, Device(served=1))

    assert [True, False, True] == [hints.over("g", device, None) is not None for device in "abc"]


def test_a_writer_waits_for_another_thread_only_so_long() -> None:
    gate = WriterGate(timeout_ms=1)
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        gate.enter()
        inside.set()
        done.wait()
        gate.leave()

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    with pytest.raises(StoreBusy, match=r"0\.001 s"):
        gate.enter()
    done.set()
    thread.join()
    gate.enter()


def test_importing_the_stores_loads_no_database() -> None:

    code = "import sys, inbetweenies.stores as s; print(s.MemoryStore.__name__, 'sqlite3' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "MemoryStore False" == told.strip()


def test_only_stores_are_exported_lazily() -> None:
    import inbetweenies.stores

    with pytest.raises(AttributeError, match="NoStore"):
        _ = inbetweenies.stores.NoStore
