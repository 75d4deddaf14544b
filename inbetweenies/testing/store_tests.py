"""What a store must do, as tests that ship with the port. Subclass `StoreTests` and let pytest find the subclass.

    class TestMyStore(StoreTests):
        def make_store(self) -> MyStore:
            return MyStore(...)

Each test is a sentence of the contract. The last one drives the store and a model with the same random transactions
and compares every answer. Nothing here reads a clock or needs an event loop.
"""

# ruff: noqa: SIM300 - expected == actual, in this order

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from msgspec import Raw, Struct
from msgspec.structs import replace

from ..errors import LocalProtocolError, StoreBusy
from ..model import (
    EMPTY,
    Device,
    Entity,
    Head,
    Held,
    Kind,
    Reads,
    Relationship,
    Row,
    Span,
    Writes,
    body_of,
    digest_change,
    next_chain,
    row_hash,
)
from ..store import Store, Transaction
from ..stores import MemoryStore
from .document_tests import DocumentTests

T = TypeVar("T")


class Model(Store, Protocol):
    """A store that others are compared with: it can also be copied as it would be after a crash, without hints."""

    def copy(self) -> Model: ...


class Undo(Exception):
    """Raised inside of a transaction to see it rolled back."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which must not wait for anything; so no event loop is needed."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise AssertionError("expected work that never waits; it waited for an event loop")


# --- writing valid logs -------------------------------------------------------------------------------------------


class Put(Struct, frozen=True, kw_only=True):
    """A row to add: `current` takes the place of the current row of its id, otherwise the row never is current.

    `version` None stands for one that the id has not had yet.
    """

    kind: Kind
    id: str
    version: str | None = None
    current: bool = True
    deleted: bool = False
    entity_type: str = "device"
    from_id: str = ""
    to_id: str = ""
    note: str = ""


def entity(id_: str, version: str | None = None, **more: Any) -> Put:
    """An entity row to add."""
    return Put(kind="entity", id=id_, version=version, **more)


def edge(id_: str, version: str | None, from_id: str, to_id: str, **more: Any) -> Put:
    """An edge row to add."""
    return Put(kind="edge", id=id_, version=version, from_id=from_id, to_id=to_id, **more)


def log_of(head: Head, current: dict[tuple[Kind, str], Row], puts: tuple[Put, ...]) -> Writes:
    """The valid commit that adds `puts` to a log that ends at `head` and has these `current` rows."""
    rows: list[Row] = []
    closed: list[tuple[int, int]] = []
    now = dict(current)
    for put in puts:
        seq = head.seq + 1
        before = now.get((put.kind, put.id))
        version = put.version or f"n{seq}"
        body = body_of(_value(put, version))
        hash_ = row_hash(put.kind, body)
        row = Row(
            kind=put.kind,
            id=put.id,
            version=version,
            seq=seq,
            until=None if put.current else seq,
            stamp=head.stamp + 1 + seq % 3,
            edit=head.stamp - 7 * seq,  # edits need not come in order, nor after 1970
            timed=seq % 2 == 0,
            rise=head.stamp + 3 * seq,
            born=before.born if before else 1_000 - seq // 2,
            deleted=put.deleted,
            entity_type=put.entity_type,
            user_id=f"user{seq % 5}",
            from_id=put.from_id,
            to_id=put.to_id,
            hash=hash_,
            chain=next_chain(head.chain, hash_),
            body=body,
        )
        rows.append(row)
        if put.current:
            if before:
                closed.append((before.seq, seq))
            now[put.kind, put.id] = row
            digest = digest_change(head.digest, gone=before.hash if before else None, come=hash_)
        else:
            digest = head.digest
        head = replace(head, seq=seq, chain=row.chain, stamp=row.stamp, digest=digest)
    return Writes(rows=tuple(rows), closed=tuple(closed), head=head)


def _value(put: Put, version: str) -> Entity | Relationship:
    if put.kind == "edge":
        return Relationship(
            id=put.id,
            version=version,
            from_entity_id=put.from_id,
            from_entity_version="v1",
            to_entity_id=put.to_id,
            to_entity_version="v1",
            relationship_type=put.entity_type,
            properties=Raw(b'{"deleted":true}') if put.deleted else EMPTY,
        )
    return Entity(
        id=put.id,
        version=version,
        entity_type=put.entity_type,
        name=put.note or put.id,
        content=Raw(b'{"deleted":true}') if put.deleted else EMPTY,
        source_type="manual",
        user_id="user",
    )


async def planned(tx: Transaction, *puts: Put) -> Writes:
    """The valid commit that adds `puts` to what `tx` holds."""
    held = await tx.read(
        Reads(
            entities=tuple(put.id for put in puts if put.kind == "entity"),
            edges=tuple(put.id for put in puts if put.kind == "edge"),
        )
    )
    current: dict[tuple[Kind, str], Row] = {("entity", id_): row for id_, row in held.entities.items()}
    current.update({("edge", id_): row for id_, row in held.edges.items()})
    return log_of(held.head, current, puts)


async def add(tx: Transaction, *puts: Put) -> tuple[Row, ...]:
    """Add `puts` in one write; returns their rows as they are then."""
    writes = await planned(tx, *puts)
    await tx.write(writes)
    ends = dict(writes.closed)
    return tuple(replace(row, until=ends.get(row.seq, row.until)) for row in writes.rows)


async def commit(store: Store, graph: str, *puts: Put) -> tuple[Row, ...]:
    """Add `puts` in a transaction of their own."""
    async with store.transaction(graph, write=True) as tx:
        return await add(tx, *puts)


async def read(store: Store, graph: str, reads: Reads) -> Held:
    """What `reads` finds in a transaction of its own."""
    async with store.transaction(graph, write=False) as tx:
        return await tx.read(reads)


_KINDS: tuple[Kind, ...] = ("entity", "edge")


def everything(ids: tuple[str, ...], *, as_of: int | None = None) -> Reads:
    """Reads that leave nothing out of a small graph whose rows have these ids and end points."""
    return Reads(
        entities=ids,
        edges=ids,
        history=ids,
        edge_history=ids,
        edges_from=ids,
        edges_to=ids,
        types=("device", "room", "located_in"),
        versions=tuple((kind, id_, f"v{number}") for kind in _KINDS for id_ in ids for number in range(10)),
        chains=tuple(range(100)),
        stamp=5,
        device="phone",
        span=Span(after=0, upto=2**53 - 1),
        listing=True,
        as_of=as_of,
    )


# --- the contract -------------------------------------------------------------------------------------------------

IDS = ("e1", "e2", "e3", "e4")


class StoreTests(DocumentTests):
    """The contract of `inbetweenies.store.Store`. Override `make_store`, and whatever else differs."""

    #: Drives a coroutine to its end. A store that waits for I/O overrides it with an event loop's.
    run = staticmethod(run)

    def make_store(self) -> Store:
        """A new, empty store. Called several times in a test; the stores must not share anything."""
        raise NotImplementedError

    def reopen(self, store: Store) -> Store | None:
        """Another store on what `store` has committed, as after a crash; None if nothing outlives a store."""
        return None

    def make_model(self) -> Model:
        """The store to compare with."""
        return MemoryStore()

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        store = self.make_store()
        yield store
        self.run(store.close())

    # graphs

    def test_a_graph_exists_from_the_first_time_it_is_named(self, store: Store) -> None:
        held = self.run(read(store, "new", everything(IDS)))

        assert Head(epoch=held.head.epoch) == held.head
        assert held.head.epoch
        assert (
            Held(
                head=held.head,
                edges_from=dict.fromkeys(IDS, ()),
                edges_to=dict.fromkeys(IDS, ()),
                chains={0: bytes(16)},
            )
            == held
        )

    def test_the_epoch_of_a_graph_stays(self, store: Store) -> None:
        async def undone() -> Head:
            with suppress(Undo):
                async with store.transaction("g", write=True) as tx:
                    head = (await tx.read(Reads())).head
                    raise Undo
            return head

        first = self.run(undone())
        again = self.run(read(store, "g", Reads())).head
        self.run(commit(store, "g", entity("e1")))

        assert first == again
        assert first.epoch == self.run(read(store, "g", Reads())).head.epoch

    def test_each_graph_has_an_epoch_of_its_own(self, store: Store) -> None:
        epochs = {self.run(read(store, f"g{number}", Reads())).head.epoch for number in range(5)}

        assert 5 == len(epochs)

    def test_an_epoch_can_be_replaced(self, store: Store) -> None:
        async def renew() -> None:
            async with store.transaction("g", write=True) as tx:
                head = (await tx.read(Reads())).head
                await tx.write(Writes(head=replace(head, epoch="abcdef")))

        self.run(commit(store, "g", entity("e1")))
        before = self.run(read(store, "g", Reads())).head
        self.run(renew())

        assert replace(before, epoch="abcdef") == self.run(read(store, "g", Reads())).head

    def test_writing_to_one_graph_never_changes_what_another_answers(self, store: Store) -> None:
        async def script(graph: str, served: int) -> None:
            await commit(store, graph, entity("e1", "v1"), entity("e2", "v1"), edge("e3", "v1", "e1", "e2"))
            async with store.transaction(graph, write=True) as tx:
                await add(tx, entity("e1", "v2"), entity("e1", "v3", current=False))
                await tx.write(Writes(device=("phone", Device(served=served, acked=1))))

        async def hint() -> None:
            async with store.transaction("theirs", write=False) as tx:
                await tx.write(Writes(device=("phone", Device(served=99, acked=99))))

        def mine() -> list[Held]:
            return [
                self.run(read(store, graph, everything(IDS, as_of=seq)))
                for graph in ("older", "younger")
                for seq in (None, 0, 1, 3, 5)
            ]

        # Whichever way graphs are told apart, there is one of ours on both sides of theirs.
        self.run(script("older", 2))
        self.run(read(store, "theirs", Reads()))
        self.run(script("younger", 3))
        before = mine()
        # The same ids, versions and device; then some that only the other graph has.
        self.run(script("theirs", 4))
        self.run(commit(store, "theirs", entity("e1", "v9"), edge("e3", "v9", "e2", "e1"), entity("e4", "v1")))
        self.run(hint())

        assert before == mine()

    # rows

    @pytest.mark.parametrize(
        "text", ["plain", "", "a\0b", "é", "\U0001f3e0", "'; DROP TABLE log; --", "x" * 1024, "123", "1e5", "%_"]
    )
    def test_text_comes_back_to_the_letter(self, store: Store, text: str) -> None:
        [thing, place] = self.run(
            commit(
                store,
                "g",
                entity(text, text or "v", entity_type=text, note=text),
                edge(text, text or "v", text, text, entity_type=text),
            )
        )
        held = self.run(
            read(
                store,
                "g",
                Reads(
                    entities=(text,),
                    edges=(text,),
                    versions=(("entity", text, thing.version), ("edge", text, place.version)),
                    history=(text,),
                    edge_history=(text,),
                    edges_from=(text,),
                    edges_to=(text,),
                    types=(text,),
                ),
            )
        )

        assert {text: thing} == held.entities
        assert {text: place} == held.edges
        assert {("entity", text, thing.version): thing, ("edge", text, place.version): place} == held.versions
        assert {text: (thing,)} == held.history
        assert {text: (place,)} == held.edge_history
        assert {text: (place,)} == held.edges_from
        assert {text: (place,)} == held.edges_to
        assert (thing,) == held.types

    def test_text_that_looks_alike_is_not_the_same(self, store: Store) -> None:
        alike = ("a", "A", "a ", "a\0", "a\0b", "é", "e\u0301", "1", "01", "1.0")
        self.run(commit(store, "g", *(entity(id_, "v") for id_ in alike)))

        for id_ in alike:
            held = self.run(read(store, "g", Reads(entities=(id_,), versions=(("entity", id_, "v"),))))
            assert [id_] == [row.id for row in held.entities.values()]
            assert [id_] == [row.id for row in held.versions.values()]

    def test_every_field_comes_back_with_its_value_and_type(self, store: Store) -> None:
        async def extreme() -> Row:
            async with store.transaction("g", write=True) as tx:
                writes = await planned(tx, entity("e1", "v1"))
                row = replace(
                    writes.rows[0],
                    stamp=2**53 - 1,
                    edit=-(2**55),
                    rise=2**55,
                    born=-1,
                    timed=True,
                    deleted=True,
                    entity_type="t",
                    user_id="u",
                    from_id="f",
                    to_id="o",
                    hash=bytes(range(32)),
                    body=b"\x00\xff" * 40_000,
                )
                assert writes.head is not None
                await tx.write(
                    replace(writes, rows=(row,), head=replace(writes.head, stamp=row.stamp, digest=2**256 - 1))
                )
                return row

        row = self.run(extreme())
        held = self.run(read(store, "g", Reads(entities=("e1",))))

        assert row == held.entities["e1"]
        assert [type(getattr(row, name)) for name in Row.__struct_fields__] == [
            type(getattr(held.entities["e1"], name)) for name in Row.__struct_fields__
        ]
        assert 2**256 - 1 == held.head.digest

    def test_the_head_is_the_one_that_was_written(self, store: Store) -> None:
        async def write() -> Head | None:
            async with store.transaction("g", write=True) as tx:
                writes = await planned(tx, entity("e1"), entity("e2"))
                await tx.write(writes)
                return writes.head

        written = self.run(write())

        assert written == self.run(read(store, "g", Reads())).head

    # transactions

    def test_a_transaction_reads_what_it_wrote(self, store: Store) -> None:
        async def script() -> tuple[Held, Held]:
            async with store.transaction("g", write=True) as tx:
                await add(tx, entity("e1", "v1"), edge("e2", "v1", "e1", "e1"))
                await add(tx, entity("e1", "v2"))
                await tx.write(Writes(device=("phone", Device(served=3))))
                inside = await tx.read(everything(IDS))
            return inside, await read(store, "g", everything(IDS))

        inside, after = self.run(script())

        assert inside == after
        assert 3 == after.head.seq
        assert "v2" == after.entities["e1"].version
        assert [3, None] == [row.until for row in after.history["e1"]]

    def test_a_block_that_raises_leaves_no_trace(self, store: Store) -> None:
        async def undone() -> None:
            with suppress(Undo):
                async with store.transaction("g", write=True) as tx:
                    await tx.write(Writes(device=("phone", Device(served=9, acked=9))))
                    await add(tx, entity("e1", "v2"), edge("e2", "v2", "e3", "e1"))
                    await add(tx, entity("e1", "v3"), entity("e4", "v1"))
                    raise Undo

        async def base() -> None:
            async with store.transaction("g", write=True) as tx:
                await add(tx, entity("e1", "v1"), edge("e2", "v1", "e1", "e3"))
                await tx.write(Writes(device=("phone", Device(served=1, acked=1))))

        self.run(base())
        before = self.run(read(store, "g", everything(IDS)))
        self.run(undone())

        assert before == self.run(read(store, "g", everything(IDS)))
        # What was undone can be done.
        self.run(commit(store, "g", entity("e1", "v2"), edge("e2", "v2", "e3", "e1"), entity("e4", "v1")))

    def test_an_error_that_was_swallowed_inside_still_undoes_everything(self, store: Store) -> None:
        async def script() -> None:
            async with store.transaction("g", write=True) as tx:
                await add(tx, entity("e1", "v1"))
                with suppress(LocalProtocolError):
                    await add(tx, entity("e2", "v1"), entity("e1", "v1"))

        with pytest.raises(LocalProtocolError):
            self.run(script())

        assert 0 == self.run(read(store, "g", Reads())).head.seq
        self.run(commit(store, "g", entity("e1", "v1"), entity("e2", "v1")))

    def test_a_reader_keeps_the_snapshot_it_began_with(self, store: Store) -> None:
        self.run(commit(store, "g", entity("e1", "v1"), edge("e2", "v1", "e1", "e3")))
        block = store.transaction("g", write=False)
        reader = self.run(block.__aenter__())
        self.run(commit(store, "g", entity("e1", "v2"), edge("e2", "v2", "e3", "e1"), entity("e4", "v1")))
        kept = self.run(reader.read(everything(IDS)))
        later = self.run(read(store, "g", everything(IDS)))
        again = self.run(reader.read(everything(IDS)))
        self.run(block.__aexit__(None, None, None))

        assert kept == again
        assert 2 == kept.head.seq
        assert "v1" == kept.entities["e1"].version
        assert all(row.current for row in kept.span)
        assert 5 == later.head.seq

    def test_nobody_sees_a_transaction_that_is_open(self, store: Store) -> None:
        self.run(commit(store, "g", entity("e1", "v1")))
        before = self.run(read(store, "g", everything(IDS)))
        block = store.transaction("g", write=True)
        writer = self.run(block.__aenter__())
        self.run(add(writer, entity("e1", "v2"), edge("e2", "v1", "e1", "e1")))
        self.run(writer.write(Writes(device=("phone", Device(served=1)))))
        during = self.run(read(store, "g", everything(IDS)))
        self.run(block.__aexit__(None, None, None))

        assert before == during
        assert 3 == self.run(read(store, "g", Reads())).head.seq

    def test_a_second_writer_of_a_graph_is_told_that_the_store_is_busy(self, store: Store) -> None:
        block = store.transaction("g", write=True)
        writer = self.run(block.__aenter__())
        with pytest.raises(StoreBusy):
            self.run(commit(store, "g", entity("e2", "v1")))
        self.run(add(writer, entity("e1", "v1")))
        self.run(block.__aexit__(None, None, None))
        self.run(commit(store, "g", entity("e2", "v1")))

        assert [("e1", "v1"), ("e2", "v1")] == list(self.run(read(store, "g", Reads(listing=True))).listing)

    def test_writers_on_several_threads_take_turns(self, store: Store) -> None:
        errors: list[BaseException] = []

        def work(name: str) -> None:
            try:
                for number in range(20):
                    self.run(commit(store, "g", entity(name, f"v{number}"), entity("shared", f"{name}-{number}")))
                    self.run(read(store, "g", everything(IDS)))
            except BaseException as error:  # noqa: BLE001 - told to the thread that asserts
                errors.append(error)

        threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = self.run(read(store, "g", Reads(span=Span(after=0, upto=1_000), history=("shared",))))

        assert [] == errors
        assert 160 == held.head.seq
        assert 80 == len(held.history["shared"])
        assert 5 == len(held.span)

    def test_a_transaction_works_only_inside_its_block(self, store: Store) -> None:
        block = store.transaction("g", write=True)
        tx = self.run(block.__aenter__())
        self.run(block.__aexit__(None, None, None))

        with pytest.raises(LocalProtocolError):
            self.run(tx.read(Reads()))
        with pytest.raises(LocalProtocolError):
            self.run(tx.write(Writes()))
        with pytest.raises(LocalProtocolError):
            self.run(block.__aenter__())

    def test_a_closed_store_refuses(self, store: Store) -> None:
        self.run(store.close())

        with pytest.raises(LocalProtocolError):
            self.run(read(store, "g", Reads()))

    def test_what_was_committed_outlives_the_store(self) -> None:
        store = self.make_store()
        self.run(commit(store, "g", entity("e1", "v1"), edge("e2", "v1", "e1", "e3")))
        self.run(commit(store, "g", entity("e1", "v2"), entity("e1", "v0", current=False)))

        async def remember() -> None:
            async with store.transaction("g", write=True) as tx:
                await tx.write(Writes(device=("phone", Device(served=3, acked=2))))

        self.run(remember())
        before = self.run(read(store, "g", everything(IDS)))
        again = self.reopen(store)
        if again is None:
            self.run(store.close())
            pytest.skip("this store does not outlive its process")

        assert before == self.run(read(again, "g", everything(IDS)))
        self.run(commit(again, "g", entity("e1", "v3")))
        self.run(again.close())

    # what is refused

    @pytest.mark.parametrize(
        "spoil",
        [
            pytest.param(lambda w: replace(w, rows=w.rows[1:]), id="a gap at the start"),
            pytest.param(lambda w: replace(w, rows=w.rows[:1] + w.rows[2:]), id="a gap in the middle"),
            pytest.param(lambda w: _with_row(w, 1, seq=9), id="a row out of line"),
            pytest.param(lambda w: replace(w, rows=w.rows[:-1]), id="a head beyond the rows"),
            pytest.param(lambda w: _with_head(w, seq=7), id="a head beyond its last row"),
            pytest.param(lambda w: replace(w, rows=(), closed=()), id="a head without rows"),
            pytest.param(lambda w: replace(w, rows=w.rows[::-1]), id="rows in another order"),
            pytest.param(lambda w: replace(w, head=None), id="rows without a head"),
            pytest.param(lambda w: replace(w, rows=(), head=None), id="closed rows without a head"),
            pytest.param(lambda w: replace(w, closed=()), id="two current rows of an id"),
            pytest.param(
                lambda w: replace(w, closed=((1, 5), *w.closed[1:])), id="two rows of an id that end together"
            ),
            pytest.param(lambda w: replace(w, closed=((2, 4), *w.closed)), id="a row closed that is not current"),
            pytest.param(lambda w: replace(w, closed=((9, 10), *w.closed)), id="a row closed that does not exist"),
            pytest.param(lambda w: replace(w, closed=(w.closed[0], *w.closed)), id="a row closed twice"),
            pytest.param(lambda w: _with_row(w, 0, until=4), id="a row that comes closed and is closed again"),
            pytest.param(lambda w: replace(w, closed=((1, 3), *w.closed[1:])), id="a row closed by an older one"),
            pytest.param(lambda w: replace(w, closed=((1, 99), *w.closed[1:])), id="a row closed by a later commit"),
            pytest.param(lambda w: _with_row(w, 0, version="v1"), id="a version that is held"),
            pytest.param(lambda w: _with_row(w, 1, version="v2"), id="a version twice"),
            pytest.param(lambda w: _with_row(w, 0, stamp=1), id="a stamp that does not rise"),
            pytest.param(lambda w: _with_row(w, 2, until=3), id="a row that ends before it begins"),
            pytest.param(lambda w: _with_row(w, 2, until=99), id="a row that ends after the head"),
            pytest.param(lambda w: _with_head(w, chain=bytes(16)), id="a head with another chain"),
            pytest.param(lambda w: _with_head(w, stamp=2**50), id="a head with another stamp"),
            pytest.param(lambda w: _with_head(w, digest=2**256), id="a digest that is too large"),
            pytest.param(lambda w: _with_head(w, digest=-1), id="a digest below zero"),
        ],
    )
    def test_writes_that_do_not_continue_the_log_are_refused(
        self, store: Store, spoil: Callable[[Writes], Writes]
    ) -> None:
        self.run(commit(store, "g", entity("e1", "v1"), entity("e1", "v0", current=False), entity("e2", "v1")))
        before = self.run(read(store, "g", everything(IDS)))

        async def script(spoil: Callable[[Writes], Writes]) -> None:
            async with store.transaction("g", write=True) as tx:
                writes = await planned(tx, entity("e1", "v2"), entity("e1", "v3"), entity("e3", "v1"))
                assert ((1, 4), (4, 5)) == writes.closed
                await tx.write(spoil(writes))

        with pytest.raises(LocalProtocolError):
            self.run(script(spoil))

        assert before == self.run(read(store, "g", everything(IDS)))
        self.run(script(lambda writes: writes))

    def test_a_row_may_come_closed_or_be_closed_by_its_own_commit(self, store: Store) -> None:
        async def script(graph: str, *, inside: bool) -> None:
            async with store.transaction(graph, write=True) as tx:
                writes = await planned(tx, entity("e1", "v1"), entity("e1", "v2"), entity("e1", "v3"))
                if inside:
                    ends = dict(writes.closed)
                    rows = tuple(replace(row, until=ends.get(row.seq)) for row in writes.rows)
                    writes = replace(writes, rows=rows, closed=())
                await tx.write(writes)

        self.run(script("a", inside=True))
        self.run(script("b", inside=False))
        reads = Reads(history=("e1",), entities=("e1",))
        [a, b] = [self.run(read(store, graph, reads)) for graph in "ab"]

        assert [2, 3, None] == [row.until for row in a.history["e1"]]
        assert a.history == b.history
        assert a.entities == b.entities

    def test_a_transaction_for_reading_takes_no_rows(self, store: Store) -> None:
        async def script(writes: Writes) -> None:
            async with store.transaction("g", write=False) as tx:
                await tx.write(writes)

        self.run(commit(store, "g", entity("e1", "v1")))
        before = self.run(read(store, "g", everything(IDS)))
        valid = log_of(before.head, {("entity", "e1"): before.entities["e1"]}, (entity("e1", "v2"),))
        for writes in (valid, replace(valid, rows=()), replace(valid, closed=()), Writes(head=valid.head)):
            with pytest.raises(LocalProtocolError):
                self.run(script(writes))

        assert before == self.run(read(store, "g", everything(IDS)))

    # reads

    def test_only_what_is_asked_for_is_answered(self, store: Store) -> None:
        self.run(commit(store, "g", entity("e1"), edge("e2", "v1", "e1", "e1")))
        held = self.run(read(store, "g", Reads()))

        assert Held(head=held.head) == held

    def test_what_is_not_there_is_absent(self, store: Store) -> None:
        self.run(commit(store, "g", entity("e1", "v1"), edge("e2", "v1", "e1", "e1")))
        held = self.run(
            read(
                store,
                "g",
                Reads(
                    entities=("e1", "e2", "no"),
                    edges=("e1", "e2", "no"),
                    versions=(
                        ("entity", "e2", "v1"),
                        ("edge", "e1", "v1"),
                        ("entity", "e1", "v2"),
                        ("edge", "e2", "v1"),
                    ),
                    history=("e1", "e2", "no"),
                    edge_history=("e1", "e2", "no"),
                    edges_from=("e1", "no"),
                    edges_to=("e1", "no"),
                    types=("no",),
                    chains=(3, 2**53 - 1, -1),
                    device="no",
                ),
            )
        )

        assert ["e1"] == list(held.entities)
        assert ["e2"] == list(held.edges)
        assert [("edge", "e2", "v1")] == list(held.versions)
        assert ["e1"] == list(held.history)
        assert ["e2"] == list(held.edge_history)
        # Who asks for the edges of an id is told of each id, and be it that there are none.
        assert {"e1": 1, "no": 0} == {id_: len(edges) for id_, edges in held.edges_from.items()}
        assert {"e1": 1, "no": 0} == {id_: len(edges) for id_, edges in held.edges_to.items()}
        assert () == held.types
        assert {} == held.chains
        assert None is held.device

    def test_a_row_that_never_was_current_is_found_by_version_and_in_history_only(self, store: Store) -> None:
        [kept, lost] = self.run(commit(store, "g", entity("e1", "v1"), entity("e1", "v2", current=False)))
        self.run(commit(store, "g", entity("e2", "v1", current=False)))
        for seq in (None, 0, 1, 2, 3, 4):
            held = self.run(read(store, "g", everything(IDS, as_of=seq)))
            seen = [] if seq == 0 else [kept]
            assert seen == list(held.entities.values())
            assert seen == list(held.span)
            assert seen == list(held.types)
            assert [(row.id, row.version) for row in seen] == list(held.listing)
            assert (kept, lost) == held.history["e1"]
        held = self.run(read(store, "g", Reads(versions=(("entity", "e1", "v2"),))))

        assert lost.until == lost.seq
        assert {("entity", "e1", "v2"): lost} == held.versions

    def test_as_of_a_seq_the_log_looks_as_it_did_then(self, store: Store) -> None:
        steps = (
            (entity("e1", "v1"),),
            (entity("e2", "v1", entity_type="room"), edge("e3", "v1", "e1", "e2")),
            (entity("e1", "v2", entity_type="room"), entity("e1", "v9", current=False)),
            (edge("e3", "v2", "e2", "e1"), edge("e4", "v1", "e2", "e1")),
            (entity("e2", "v2", deleted=True, entity_type="room"), edge("e4", "v2", "e2", "e1", deleted=True)),
            (entity("e1", "v3"), entity("e1", "v4"), entity("e1", "v5")),
        )
        then: dict[int, Held] = {}
        for step in steps:
            held = self.run(read(store, "g", everything(IDS)))
            then[held.head.seq] = held
            self.run(commit(store, "g", *step))
        now = self.run(read(store, "g", everything(IDS)))

        for seq, held in then.items():
            back = self.run(read(store, "g", everything(IDS, as_of=seq)))
            assert _names(held) == _names(back)
            # The head, and what does not speak of "current", stay where they are.
            assert (now.head, now.chains, now.stamp_seq, now.history, now.edge_history) == (
                back.head,
                back.chains,
                back.stamp_seq,
                back.history,
                back.edge_history,
            )
        for seq in (now.head.seq, now.head.seq + 1, 2**53 - 1):
            assert now == self.run(read(store, "g", everything(IDS, as_of=seq)))
        # A place in the middle of a commit is a place like any other.
        middle = self.run(read(store, "g", Reads(entities=("e1",), as_of=now.head.seq - 1)))
        assert "v4" == middle.entities["e1"].version

    def test_edges_are_found_from_both_ends_tombstones_included(self, store: Store) -> None:
        rows = self.run(
            commit(
                store,
                "g",
                edge("z", "v1", "a", "b"),
                edge("y", "v1", "a", "c", deleted=True),
                edge("x", "v1", "b", "a"),
                edge("self", "v1", "a", "a"),
                edge("moved", "v1", "a", "b"),
                edge("moved", "v2", "c", "b"),
                entity("a", "v1", from_id="a", to_id="a"),
            )
        )
        named = {(row.id, row.version): row for row in rows}
        held = self.run(read(store, "g", Reads(edges_from=("a", "c", "a"), edges_to=("b", "a"))))

        assert {
            "a": (named["self", "v1"], named["y", "v1"], named["z", "v1"]),
            "c": (named["moved", "v2"],),
        } == held.edges_from
        assert {
            "b": (named["moved", "v2"], named["z", "v1"]),
            "a": (named["self", "v1"], named["x", "v1"]),
        } == held.edges_to

    def test_entities_of_some_types_come_oldest_first(self, store: Store) -> None:
        rows = self.run(
            commit(
                store,
                "g",
                entity("c", "v1", entity_type="room"),
                entity("b", "v1", entity_type="home"),
                entity("a", "v1", entity_type="room", deleted=True),
                entity("d", "v1", entity_type="zone"),
                edge("e", "v1", "a", "b", entity_type="room"),
                entity("b", "v2", entity_type="home"),
                entity("f", "v1", entity_type="room"),
                entity("f", "v2", entity_type="zone"),
            )
        )
        held = self.run(read(store, "g", Reads(types=("room", "home", "room"))))
        expected = [row for row in rows if (row.id, row.version) in {("c", "v1"), ("a", "v1"), ("b", "v2")}]

        assert sorted(expected, key=lambda row: (row.born, row.id)) == list(held.types)
        assert len({row.born for row in held.types}) < 3, "two of them are as old as each other"

    def test_chains_are_those_of_the_rows_asked_for(self, store: Store) -> None:
        rows = self.run(commit(store, "g", entity("e1"), entity("e1"), entity("e2", current=False)))
        held = self.run(read(store, "g", Reads(chains=(0, 1, 3, 3, 4))))

        assert {0: bytes(16), 1: rows[0].chain, 3: rows[2].chain} == held.chains

    def test_the_newest_seq_at_a_time_is_found(self, store: Store) -> None:
        rows = self.run(commit(store, "g", *(entity("e1") for _ in range(17))))
        for stamp in range(rows[-1].stamp + 3):
            expected = max((row.seq for row in rows if row.stamp <= stamp), default=0)
            assert expected == self.run(read(store, "g", Reads(stamp=stamp))).stamp_seq
        for stamp, expected in ((-5, 0), (2**70, 17)):
            assert expected == self.run(read(store, "g", Reads(stamp=stamp))).stamp_seq

    @pytest.mark.parametrize("after", [-1, 0, 1, 4, 9, 10, 2**53 - 1])
    @pytest.mark.parametrize("upto", [0, 1, 5, 9, 10, 2**53 - 1])
    @pytest.mark.parametrize("most", [None, 0, 1, 3, 100])
    def test_a_span_holds_the_current_rows_after_one_seq_up_to_another(
        self, store: Store, after: int, upto: int, most: int | None
    ) -> None:
        self.run(commit(store, "g", *(entity(f"e{number % 4}") for number in range(4))))
        rows = self.run(commit(store, "g", *(entity(f"e{number % 3}", current=number != 1) for number in range(6))))
        current = [self.run(read(store, "g", Reads(entities=("e3",)))).entities["e3"]]
        current += [row for row in rows if row.until is None]
        expected = [row for row in current if after < row.seq <= upto][:most]
        held = self.run(read(store, "g", Reads(span=Span(after=after, upto=upto, rows=most))))

        assert expected == list(held.span)

    def test_the_listing_names_every_current_entity_by_id(self, store: Store) -> None:
        self.run(
            commit(
                store,
                "g",
                entity("b", "v1"),
                entity("a", "v1"),
                entity("a", "v2", deleted=True),
                entity("é", "v1"),
                entity("\U0001f3e0", "v1"),
                entity("\uffee", "v1"),
                edge("c", "v1", "a", "b"),
                entity("b", "v2", current=False),
            )
        )
        held = self.run(read(store, "g", Reads(listing=True)))

        assert (("a", "v2"), ("b", "v1"), ("é", "v1"), ("\uffee", "v1"), ("\U0001f3e0", "v1")) == held.listing

    @pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 511, 512, 513, 1_600])
    def test_any_number_of_things_can_be_asked_for_at_once(self, store: Store, count: int) -> None:
        ids = tuple(f"e{number}" for number in range(count))
        things = self.run(commit(store, "g", *(entity(id_, "v1", entity_type=f"t{id_}") for id_ in ids)))
        places = self.run(commit(store, "g", *(edge(id_, "v1", id_, f"to{id_}") for id_ in ids)))
        held = self.run(
            read(
                store,
                "g",
                Reads(
                    entities=(*ids, "no"),
                    edges=(*ids, "no"),
                    versions=tuple(("entity", id_, version) for id_ in ids for version in ("v1", "no")),
                    history=ids,
                    edge_history=ids,
                    edges_from=ids,
                    edges_to=tuple(f"to{id_}" for id_ in ids),
                    types=tuple(f"t{id_}" for id_ in ids),
                    chains=tuple(range(count + 1)),
                ),
            )
        )

        assert {row.id: row for row in things} == held.entities
        assert {row.id: row for row in places} == held.edges
        assert {("entity", row.id, "v1"): row for row in things} == held.versions
        assert {row.id: (row,) for row in things} == held.history
        assert {row.id: (row,) for row in places} == held.edge_history
        assert {row.from_id: (row,) for row in places} == held.edges_from
        assert {row.to_id: (row,) for row in places} == held.edges_to
        assert sorted(things, key=lambda row: (row.born, row.id)) == list(held.types)
        assert {0: bytes(16)} | {row.seq: row.chain for row in things} == held.chains

    # devices

    def test_a_device_is_remembered_for_good_by_a_writing_transaction(self, store: Store) -> None:
        self.run(_remember(store, "phone", Device(served=5, acked=3, mark="m5"), write=True))
        self.run(_remember(store, "phone", Device(served=4, acked=2, mark="m4"), write=True))
        self.run(_remember(store, "tablet", Device(served=1), write=True))

        assert Device(served=4, acked=2, mark="m4") == self.run(read(store, "g", Reads(device="phone"))).device
        assert Device(served=1) == self.run(read(store, "g", Reads(device="tablet"))).device

    def test_a_reading_transaction_leaves_a_hint_that_only_moves_a_device_on(self, store: Store) -> None:
        self.run(_remember(store, "phone", Device(served=5, acked=3, mark="m5"), write=True))
        seen = []
        for hint in (Device(served=9, acked=3, mark="m9"), Device(served=2), Device(served=6, acked=4, mark="m6")):
            self.run(_remember(store, "phone", hint, write=False))
            seen.append(self.run(read(store, "g", Reads(device="phone"))).device)
        self.run(_remember(store, "tablet", Device(served=7), write=False))

        # The newest hint counts, and of the hint and the durable row whichever says more.
        assert [
            Device(served=9, acked=3, mark="m9"),
            Device(served=5, acked=3, mark="m5"),
            Device(served=6, acked=4, mark="m6"),
        ] == seen
        assert Device(served=7) == self.run(read(store, "g", Reads(device="tablet"))).device
        # A durable row is newer than any hint before it.
        self.run(_remember(store, "phone", Device(served=1, acked=1), write=True))
        assert Device(served=1, acked=1) == self.run(read(store, "g", Reads(device="phone"))).device

    def test_a_hint_of_a_block_that_raised_is_not_kept(self, store: Store) -> None:
        async def script() -> Device | None:
            with suppress(Undo):
                async with store.transaction("g", write=False) as tx:
                    await tx.write(Writes(device=("phone", Device(served=1))))
                    inside = (await tx.read(Reads(device="phone"))).device
                    raise Undo
            return inside

        assert Device(served=1) == self.run(script())
        assert None is self.run(read(store, "g", Reads(device="phone"))).device

    # everything at once

    def test_random_transactions_are_answered_like_the_model(self) -> None:
        tests = self

        class Machine(StoreMachine):
            def __init__(self) -> None:
                super().__init__(tests)

        run_state_machine_as_test(Machine, settings=settings(stateful_step_count=30, deadline=None))


def _with_row(writes: Writes, index: int, **changes: Any) -> Writes:
    rows = list(writes.rows)
    rows[index] = replace(rows[index], **changes)
    return replace(writes, rows=tuple(rows))


def _with_head(writes: Writes, **changes: Any) -> Writes:
    assert writes.head is not None
    return replace(writes, head=replace(writes.head, **changes))


def _names(held: Held) -> list[Any]:
    """Which rows an answer holds, wherever it speaks of current ones."""

    def named(rows: Any) -> list[tuple[str, str, str]]:
        return [(row.kind, row.id, row.version) for row in rows]

    return [
        named(sorted(held.entities.values(), key=lambda row: row.id)),
        named(sorted(held.edges.values(), key=lambda row: row.id)),
        {id_: named(edges) for id_, edges in held.edges_from.items()},
        {id_: named(edges) for id_, edges in held.edges_to.items()},
        named(held.types),
        named(held.span),
        held.listing,
    ]


async def _remember(store: Store, device: str, value: Device, *, write: bool) -> None:
    async with store.transaction("g", write=write) as tx:
        await tx.write(Writes(device=(device, value)))


# --- the state machine --------------------------------------------------------------------------------------------

_graphs = st.sampled_from(["a", "b", "c"])
_kinds = st.sampled_from(_KINDS)
_ids = st.sampled_from(IDS)
_versions = st.sampled_from(["v1", "v2", "v3"])
_types = st.sampled_from(["device", "room"])
_seqs = st.integers(0, 30)
_devices = st.tuples(
    st.sampled_from(["phone", "tablet"]),
    st.builds(Device, served=_seqs, acked=_seqs, mark=st.sampled_from(["", "a", "b"])),
)
_puts = st.builds(
    Put,
    kind=_kinds,
    id=_ids,
    # Mostly a new version; now and then one that may be held already, which must be refused.
    version=st.one_of(st.none(), st.none(), st.none(), _versions),
    current=st.sampled_from([True, True, True, False]),
    deleted=st.booleans(),
    entity_type=_types,
    from_id=_ids,
    to_id=_ids,
)
_some_ids = st.lists(_ids, max_size=4).map(tuple)
_reads = st.builds(
    Reads,
    entities=_some_ids,
    edges=_some_ids,
    versions=st.lists(st.tuples(_kinds, _ids, _versions), max_size=4).map(tuple),
    history=_some_ids,
    edge_history=_some_ids,
    edges_from=_some_ids,
    edges_to=_some_ids,
    types=st.lists(_types, max_size=3).map(tuple),
    chains=st.lists(_seqs, max_size=3).map(tuple),
    stamp=st.none() | st.integers(0, 60),
    device=st.none() | st.sampled_from(["phone", "tablet"]),
    span=st.none() | st.builds(Span, after=_seqs, upto=_seqs, rows=st.none() | st.integers(0, 5)),
    listing=st.booleans(),
    as_of=st.none() | _seqs,
    documents=st.lists(st.sampled_from(["flags", "plan"]), max_size=2).map(tuple),
)


class _Reader:
    """An open transaction for reading, on both stores."""

    def __init__(self, graph: str, blocks: tuple[Any, Any], views: tuple[Transaction, Transaction]) -> None:
        self.graph = graph
        self.blocks = blocks
        self.views = views


def _undo(wanted: bool) -> None:
    if wanted:
        raise Undo


class StoreMachine(RuleBasedStateMachine):
    """Drives a store and a model with the same transactions; every answer must be the same, but for epochs."""

    def __init__(self, tests: StoreTests) -> None:
        super().__init__()
        self.tests = tests
        self.store = tests.make_store()
        self.model = tests.make_model()
        self.readers: list[_Reader] = []
        self.epochs: dict[tuple[bool, str], str] = {}

    def alike(self, graph: str, script: Callable[[Store], Coroutine[Any, Any, list[Any]]]) -> None:
        """Run `script` on both stores; the lists that it returns must be equal."""
        expected = [self.normal(graph, True, answer) for answer in run(script(self.model))]
        actual = [self.normal(graph, False, answer) for answer in self.tests.run(script(self.store))]
        assert expected == actual

    def normal(self, graph: str, model: bool, answer: Any) -> Any:
        """`answer` without the epoch, which is random but must stay the same."""
        if not isinstance(answer, Held):
            return answer
        assert self.epochs.setdefault((model, graph), answer.head.epoch) == answer.head.epoch
        return replace(answer, head=replace(answer.head, epoch=""))

    @rule(
        graph=_graphs,
        steps=st.lists(st.tuples(st.lists(_puts, max_size=4), st.none() | _devices, _reads), max_size=3),
        undo=st.booleans(),
    )
    def write(self, graph: str, steps: list[tuple[list[Put], tuple[str, Device] | None, Reads]], undo: bool) -> None:
        async def script(store: Store) -> list[Any]:
            answers: list[Any] = []
            try:
                async with store.transaction(graph, write=True) as tx:
                    for puts, device, reads in steps:
                        await tx.write(replace(await planned(tx, *puts), device=device))
                        answers.append(await tx.read(reads))
                    _undo(undo)
            except (Undo, LocalProtocolError) as error:
                answers.append(type(error))
            return answers

        self.alike(graph, script)

    @rule(graph=_graphs, reads=_reads, device=st.none() | _devices, undo=st.booleans())
    def read(self, graph: str, reads: Reads, device: tuple[str, Device] | None, undo: bool) -> None:
        async def script(store: Store) -> list[Any]:
            answers: list[Any] = []
            with suppress(Undo):
                async with store.transaction(graph, write=False) as tx:
                    answers.append(await tx.read(reads))
                    if device is not None:
                        await tx.write(Writes(device=device))
                        answers.append(await tx.read(Reads(device=device[0])))
                    _undo(undo)
            return answers

        self.alike(graph, script)

    @rule(name=st.sampled_from(["flags", "plan"]), body=st.binary(max_size=3), revision=st.integers(0, 3))
    def put_document(self, name: str, body: bytes, revision: int) -> None:
        async def script(store: Store) -> list[Any]:
            return [await store.put_document(name, body, revision=revision), await store.document(name)]

        self.alike("", script)

    @precondition(lambda self: len(self.readers) < 3)
    @rule(graph=_graphs)
    def open_reader(self, graph: str) -> None:
        blocks = (self.model.transaction(graph, write=False), self.store.transaction(graph, write=False))
        views = (run(blocks[0].__aenter__()), self.tests.run(blocks[1].__aenter__()))
        self.readers.append(_Reader(graph, blocks, views))

    @precondition(lambda self: bool(self.readers))
    @rule(which=st.integers(0, 2), reads=_reads)
    def read_on(self, which: int, reads: Reads) -> None:
        reader = self.readers[which % len(self.readers)]
        # Whether a reader sees what became of a device since it began is left open: the hint is no part of a snapshot.
        reads = replace(reads, device=None)
        expected = self.normal(reader.graph, True, run(reader.views[0].read(reads)))
        actual = self.normal(reader.graph, False, self.tests.run(reader.views[1].read(reads)))
        assert expected == actual

    @precondition(lambda self: bool(self.readers))
    @rule(which=st.integers(0, 2))
    def close_reader(self, which: int) -> None:
        reader = self.readers.pop(which % len(self.readers))
        run(reader.blocks[0].__aexit__(None, None, None))
        self.tests.run(reader.blocks[1].__aexit__(None, None, None))

    @precondition(lambda self: not self.readers)
    @rule()
    def restart(self) -> None:
        store = self.tests.reopen(self.store)
        if store is not None:
            self.store = store
            self.model = self.model.copy()

    def teardown(self) -> None:
        while self.readers:
            self.close_reader(which=0)
        self.tests.run(self.store.close())
