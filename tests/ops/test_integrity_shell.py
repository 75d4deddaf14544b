"""`DataIntegrityMonitor` over stores (PROTOCOL 12.9): damage in a file is found, writers meanwhile are no damage."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import invariant, run_state_machine_as_test
from msgspec.structs import replace

from inbetweenies import DataIntegrityMonitor, MemoryStore, SqliteStore
from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreCorrupt
from inbetweenies.model import Head, Held, Reads, Writes
from inbetweenies.ops import integrity
from inbetweenies.rollout.integrity import VIOLATIONS_MAX, told
from inbetweenies.store import Store, Transaction
from inbetweenies.stores.keeper import run_now
from inbetweenies.testing import MixedFleet
from tests.support import Server, at, edge, entity


def fill(server: Server, things: int = 6) -> None:
    """Rooms and devices, edits, an edge that was put twice, a tombstone."""
    rooms = [entity(f"r{n}", at(n), {"floor": n}, entity_type="room") for n in range(things)]
    devices = [entity(f"d{n}", at(n), {"model": "m"}) for n in range(things)]
    server.push(*rooms, *devices)
    server.push(*(entity(f"d{n}", at(50), {"model": "n"}, parent_versions=(at(n),)) for n in range(things)))
    server.push(*(edge(f"in{n}", devices[n], rooms[n]) for n in range(things)))
    server.push(edge("in0", devices[0], rooms[1], "v2"))
    server.push(entity("d1", at(60), {"deleted": True}, parent_versions=(at(50),)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "home.db"
    store = SqliteStore(path, journal=False, heads=False)
    fill(Server(store))
    run_now(store.close())
    return path


def damage(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


@pytest.fixture
def monitor(file: Path) -> Iterator[DataIntegrityMonitor]:
    store = SqliteStore(file, journal=False, heads=False)
    yield DataIntegrityMonitor(store, wait=at_once)
    run_now(store.close())


async def at_once(_: float) -> None:
    """Waiting that takes no time."""


def checks(monitor: DataIntegrityMonitor) -> list[bool]:
    return [
        run_now(check())
        for check in (
            monitor.check_entity_counts,
            monitor.check_relationship_integrity,
            monitor.check_orphaned_records,
            monitor.check_data_consistency,
            monitor.validate_migration,
        )
    ]


class Paced:
    """Turns the monitor's handle: time passes by itself, waiting ends at once, and after some rounds it is stopped."""

    def __init__(self, rounds: int = 1, tick: float = 0.004) -> None:
        self.now = 0.0
        self.tick = tick
        self.waited: list[float] = []
        self.rounds = rounds
        self.during: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    async def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds
        self.during()

    def of(self, store: Store, **more: Any) -> DataIntegrityMonitor:
        return DataIntegrityMonitor(
            store, clock=lambda: 7, monotonic=self, busy=lambda: self.now, wait=self.wait, **more
        )


def go_round(monitor: DataIntegrityMonitor) -> tuple[str, ...]:
    run_now(monitor._round())
    return monitor.breaches()


# --- asked once ---------------------------------------------------------------------------------------------------


def test_what_a_server_wrote_is_whole(monitor: DataIntegrityMonitor) -> None:
    assert [True] * 5 == checks(monitor)
    [(graph, report)] = run_now(monitor.reports()).items()
    assert ("default", 12, 6, (), ()) == (graph, report.entities, report.relationships, report.violations, report.plan)
    assert () == go_round(monitor)
    assert ["default"] == list(monitor.last_complete)


def test_a_store_without_graphs_is_whole() -> None:
    monitor = DataIntegrityMonitor(MemoryStore(), wait=at_once)

    assert [True] * 5 == checks(monitor)
    assert ((), {}) == (go_round(monitor), monitor.last_complete)


TEXTS = ("id", "version", "entity_type", "user_id", "from_id", "to_id", "kind")
BLOBS = ("hash", "chain", "body")


@pytest.mark.parametrize("column", [*TEXTS, *BLOBS])
def test_a_flipped_bit_is_found_in_one_round_and_named(file: Path, monitor: DataIntegrityMonitor, column: str) -> None:
    for row in (1, 8, 15, 20, 21):
        for bit in (0, 5, 7):
            check_flipped(file, monitor, row, column, bit)
    assert [True] * 5 == checks(monitor)
    assert () == go_round(monitor)


def check_flipped(file: Path, monitor: DataIntegrityMonitor, row: int, column: str, bit: int) -> None:
    with closing(sqlite3.connect(file)) as connection:
        [before] = connection.execute(f"SELECT CAST({column} AS BLOB) FROM log WHERE seq = ?", (row,)).fetchone()
    if not before:
        return
    for place in {0, len(before) // 2, len(before) - 1}:
        flipped = bytes([*before[:place], before[place] ^ (1 << bit), *before[place + 1 :]])
        kind = "BLOB" if column in BLOBS else "TEXT"
        statement = f"UPDATE log SET {column} = CAST(? AS {kind}) WHERE seq = ?"
        try:
            damage(file, statement, flipped, row)
        except sqlite3.IntegrityError:  # it has become the id of another one
            continue
        report = run_now(monitor.report("default"))
        assert not run_now(monitor.validate_migration())
        assert {row, row + 1} & {seq for one in report.violations for seq in range(one.repair.seq, one.repair.upto + 1)}
        assert go_round(monitor)
        damage(file, statement, before, row)


@pytest.mark.parametrize(
    ("statement", "failed", "says", "plan"),
    [
        (
            "DELETE FROM log WHERE seq = 3",
            (0, 1),
            "expected rows 3 to 3; got none",
            "get row 3 from the journal, a backup or a client",
        ),
        (
            "UPDATE log SET until = 24 WHERE seq = 19",
            (2,),
            "expected row 19 to end where row 25 took its place; got another end",
            "let row 19 end at row 25",
        ),
        (
            "UPDATE log SET until = 24 WHERE seq = 2",
            (0, 2),
            "expected row 24 to have taken the place of row 2; got none of this id that did",
            "let row 2 be current",
        ),
        (
            "UPDATE log SET until = 900 WHERE seq = 2",
            (0, 2),
            "expected row 900 to have taken the place of row 2; got none of this id that did",
            "let row 2 be current",
        ),
        (
            "UPDATE log SET user_id = 'eve' WHERE seq = 2",
            (3,),
            "expected columns that agree with the value; got others: user_id",
            "write the columns of row 2 anew from the value",
        ),
        (
            "UPDATE graphs SET stamp = 1",
            (3,),
            "expected the chain hash and the stamp of the last row; got others",
            "work out chain, stamp and digest of the end of the log anew from its rows",
        ),
    ],
)
def test_each_check_finds_what_it_is_for_and_the_plan_says_what_to_do(
    file: Path, monitor: DataIntegrityMonitor, statement: str, failed: tuple[int, ...], says: str, plan: str
) -> None:
    damage(file, statement)
    report = run_now(monitor.report("default"))

    assert [n not in failed for n in range(4)] == checks(monitor)[:4]
    assert says in [one.told for one in report.violations]
    assert plan in told(report.plan)


def test_a_step_of_several_rows_says_which() -> None:
    server = Server()
    fill(server)
    store = Damaged(server.store)
    store.lost = {3, 4, 5}
    report = run_now(DataIntegrityMonitor(store).report("default"))

    assert "get rows 3 to 5 from the journal, a backup or a client" in told(report.plan)


def test_where_too_much_is_wrong_to_be_told_no_check_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.push(*(entity(f"r{n}", at(1)) for n in range(VIOLATIONS_MAX + 2)))
    store = Damaged(server.store)
    store.change = {"user_id": "eve"}
    monitor = DataIntegrityMonitor(store, wait=at_once)

    assert [False] * 5 == checks(monitor)
    assert go_round(monitor)[-1] == f"default: and {VIOLATIONS_MAX - 3} more"


def test_only_the_graphs_that_are_named_are_read() -> None:
    store = MemoryStore()
    for graph in ("one", "two"):
        run_now(_touch(store, graph))
    monitor = DataIntegrityMonitor(store, graphs=["two"], wait=at_once)

    assert ["two"] == list(run_now(monitor.reports()))
    go_round(monitor)
    assert ["two"] == list(monitor.last_complete)


async def _touch(store: Store, graph: str) -> Head:
    async with store.transaction(graph, write=False) as tx:
        return (await tx.read(Reads())).head


@pytest.mark.parametrize("budget", [0, -1, 1.01, float("nan")])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(LocalProtocolError, match="expected a budget above 0 and up to 1"):
        DataIntegrityMonitor(MemoryStore(), budget=budget)


# --- what the store cannot read -----------------------------------------------------------------------------------


def test_a_row_that_cannot_be_read_is_missing_and_the_others_are_still_looked_at(
    file: Path, monitor: DataIntegrityMonitor
) -> None:
    damage(file, "UPDATE log SET user_id = CAST(x'ff' AS TEXT) WHERE seq = 4")
    damage(file, "UPDATE log SET user_id = 'eve' WHERE seq = 20")
    report = run_now(monitor.report("default"))

    assert ["expected rows 4 to 4; got none", "expected columns that agree with the value; got others: user_id"] == [
        one.told for one in report.violations if one.check != "relationship_integrity" and one.repair.seq in (4, 20)
    ]
    assert "default: row 4: expected rows 4 to 4; got none" == go_round(monitor)[0]


def test_a_file_that_cannot_be_read_at_all_is_told_as_that(file: Path) -> None:
    store = Damaged(SqliteStore(file, journal=False, heads=False))
    monitor = DataIntegrityMonitor(store, wait=at_once)
    store.fails = StoreCorrupt("the disk image is malformed")

    assert ("default: the disk image is malformed",) == go_round(monitor)
    with pytest.raises(StoreCorrupt):
        run_now(monitor.validate_migration())
    store.fails = None
    assert () == go_round(monitor)
    run_now(store.close())


def test_of_too_many_rows_that_cannot_be_read_not_all_are_tried() -> None:
    server = Server()
    server.push(*(entity(f"r{n}", at(1)) for n in range(200)))
    store = Damaged(server.store)
    store.unreadable = True
    monitor = DataIntegrityMonitor(store, wait=at_once)

    assert ("default: cannot read this: more than 100 rows",) == go_round(monitor)
    with pytest.raises(StoreCorrupt, match="more than 100 rows"):
        run_now(monitor.report("default"))


class Damaged:
    """A store that loses or changes rows, or cannot read them."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.lost: set[int] = set()
        self.change: dict[str, Any] = {}
        self.unreadable = False
        self.fails: Exception | None = None
        self.reads: list[Reads] = []
        self.transactions = 0
        self.head: dict[str, Any] = {}

    @asynccontextmanager
    async def block(self, graph: str, write: bool) -> AsyncIterator[Transaction]:
        self.transactions += 1
        if self.fails is not None:
            raise self.fails
        async with self.inner.transaction(graph, write=write) as tx:
            yield _Damaged(self, tx)

    def transaction(self, graph: str, *, write: bool) -> AbstractAsyncContextManager[Transaction]:
        return self.block(graph, write)

    async def document(self, name: str) -> Any:
        return await self.inner.document(name)

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        return await self.inner.put_document(name, body, revision=revision)

    async def graph_names(self) -> tuple[str, ...]:
        return await self.inner.graph_names()

    async def close(self) -> None:
        await self.inner.close()


class _Damaged:
    def __init__(self, store: Damaged, inner: Transaction) -> None:
        self.store = store
        self.inner = inner

    async def read(self, reads: Reads) -> Held:
        self.store.reads.append(reads)
        held = await self.inner.read(reads)
        if reads.seqs and self.store.unreadable:
            raise StoreCorrupt("cannot read this")
        rows = {seq: replace(row, **self.store.change) for seq, row in held.seqs.items() if seq not in self.store.lost}
        return replace(held, seqs=rows, head=replace(held.head, **self.store.head))

    async def write(self, writes: Writes) -> None:
        await self.inner.write(writes)


# --- for ever -----------------------------------------------------------------------------------------------------


def large(rows: int = 300, epoch: str | None = None) -> Server:
    server = Server(None if epoch is None else MemoryStore(lambda: epoch))
    for start in range(0, rows, 100):
        server.push(*(entity(f"e{n}", at(1), {"n": n}) for n in range(start, start + 100)))
    return server


def test_a_round_is_read_in_short_slices_and_waits_for_its_share() -> None:
    store, pace = Damaged(large().store), Paced()
    monitor = pace.of(store, budget=0.1)
    run_now(monitor._round())

    # Each look at the clock takes 4 ms here, and a slice ends at the first after 5 ms, so it is two reads.
    assert [2 * integrity.ROWS, 2 * integrity.ROWS, 300 - 4 * integrity.ROWS] == [
        sum(len(reads.seqs) for reads in store.reads[start:end]) for start, end in _slices(store.reads)
    ]
    spent = pace.now - sum(pace.waited)
    assert sum(pace.waited) == pytest.approx(9 * spent)
    assert {"default": 7} == monitor.last_complete


def _slices(reads: list[Reads]) -> list[tuple[int, int]]:
    """From where to where each transaction's reads go: it begins with a bare one."""
    starts = [n for n, one in enumerate(reads) if one == Reads()]
    return list(zip(starts, [*starts[1:], len(reads)], strict=True))


def test_the_questions_read_one_snapshot() -> None:
    store = Damaged(large().store)
    run_now(DataIntegrityMonitor(store).report("default"))

    assert (1, 300) == (store.transactions, sum(len(one.seqs) for one in store.reads))


def test_large_rows_are_read_a_few_at_a_time() -> None:
    server = Server()
    for start in range(0, 200, 10):
        server.push(*(entity(f"e{n}", at(1), {"text": "x" * 50_000}) for n in range(start, start + 10)))
    store = Damaged(server.store)
    run_now(DataIntegrityMonitor(store).report("default"))

    assert [64, 32, 16, 32, 16, 32] == [len(one.seqs) for one in store.reads if one.seqs][:6]


def test_damage_is_told_before_the_round_has_ended() -> None:
    store, pace = Damaged(large().store), Paced()
    store.lost = {5}
    told: list[tuple[str, ...]] = []
    monitor = pace.of(store)
    pace.during = lambda: told.append(monitor.breaches())
    run_now(monitor._round())

    assert ["default: row 5: expected rows 5 to 5; got none"] == list(told[1])
    assert told[-1][: len(told[1])] == told[1]
    store.lost = set()
    assert () == go_round(monitor)


@given(data=st.data())
def test_writers_between_slices_are_no_damage(data: st.DataObject) -> None:
    check_writers(lambda ids: data.draw(st.sampled_from(ids)))


def check_writers(choose: Callable[[list[str]], str]) -> None:
    server, pace = large(), Paced()
    monitor = pace.of(server.store)
    versions = {f"e{n}": at(1) for n in range(300)}

    def write() -> None:
        id_ = choose([*versions, "new"])
        version = at(len(pace.waited) + 2)
        parents = (versions[id_],) if id_ in versions else ()
        assert not server.push(entity(id_, version, {"n": -1}, parent_versions=parents)).refused
        versions[id_] = version

    pace.during = write
    for _ in range(2):
        assert () == go_round(monitor)
    report = monitor.watched["default"].report
    assert report is not None
    assert 300 <= report.entities


def test_a_log_that_is_rewound_between_slices_is_read_anew() -> None:
    # Nobody has noticed, so that it has the same epoch still.
    server, pace = large(epoch="e"), Paced()
    store, other = Damaged(server.store), large(200, epoch="e")
    monitor = pace.of(store)

    def rewind() -> None:
        if len(pace.waited) == 2:
            store.inner = other.store
            other.push(*(entity(f"f{n}", at(2)) for n in range(150)))

    pace.during = rewind
    assert () == go_round(monitor)
    report = monitor.watched["default"].report
    assert report is not None
    assert 350 == report.entities


@pytest.mark.parametrize(
    "change", [{"seq": 299}, {"epoch": "other"}, {"digest": 7}], ids=lambda change: next(iter(change))
)
def test_any_other_end_begins_anew(change: dict[str, Any]) -> None:
    server, pace = large(), Paced()
    store = Damaged(server.store)
    monitor = pace.of(store)

    def rewind() -> None:
        store.head = change if len(pace.waited) >= 2 else {}

    pace.during = rewind
    go_round(monitor)
    assert 1 in [one.seqs[0] for one in store.reads[5:] if one.seqs]


def test_another_epoch_begins_anew_however_far_it_goes() -> None:
    server, pace = large(), Paced()
    store = Damaged(server.store)
    monitor = pace.of(store)

    def rewind() -> None:
        if len(pace.waited) == 2:
            server.push(entity("new", at(2)))
            store.head = {"epoch": "other"}

    pace.during = rewind
    assert () == go_round(monitor)
    report = monitor.watched["default"].report
    assert report is not None
    assert 301 == report.entities


def test_a_store_that_is_busy_is_tried_again_and_no_breach(caplog: pytest.LogCaptureFixture) -> None:
    store, pace = Damaged(large().store), Paced()
    monitor = pace.of(store)
    store.fails = StoreBusy("expected the store; got none")

    assert () == go_round(monitor)
    assert (3, {}) == (store.transactions, monitor.last_complete)
    assert "graph default stays unaudited for now" in caplog.text
    store.fails = None
    go_round(monitor)
    assert {"default": 7} == monitor.last_complete


def test_names_that_cannot_be_read_end_only_the_round(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pace = Damaged(large().store), Paced()
    store.lost = {5}
    monitor = pace.of(store)
    before = go_round(monitor)

    async def away() -> tuple[str, ...]:
        raise StoreBusy("expected the store; got none")

    monkeypatch.setattr(store, "graph_names", away)
    assert before == go_round(monitor)
    assert "graphs stay unaudited" in caplog.text


def test_a_mistake_of_ours_is_logged_and_the_other_graphs_go_on(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pace = MemoryStore(), Paced()
    for graph in ("a", "b"):
        run_now(_touch(store, graph))
    monitor, audit = pace.of(store), DataIntegrityMonitor._audit

    async def odd(self: DataIntegrityMonitor, graph: str) -> None:
        if graph == "a":
            raise TypeError("expected a number")
        await audit(self, graph)

    monkeypatch.setattr(DataIntegrityMonitor, "_audit", odd)
    go_round(monitor)
    assert ["b"] == list(monitor.last_complete)
    assert "the audit of graph a broke off" in caplog.text


def test_it_goes_on_for_ever_until_it_is_cancelled() -> None:
    store, pace = Damaged(large().store), Paced()
    monitor = pace.of(store, round_s=1000)
    seen: list[tuple[float, bool]] = []

    def between() -> None:
        if pace.waited[-1] > 100:  # a round has ended
            seen.append((pace.now, bool(monitor.breaches())))
            store.lost = {5} if len(seen) == 1 else set()
            if len(seen) == 4:
                raise asyncio.CancelledError

    pace.during = between
    with pytest.raises(asyncio.CancelledError):
        run_now(monitor.monitor())
    assert [False, True, False, False] == [breach for _, breach in seen]
    assert [1000] * 3 == pytest.approx([seen[n + 1][0] - seen[n][0] for n in range(3)], abs=0.1)


async def test_on_an_event_loop_others_get_their_turn() -> None:
    monitor = DataIntegrityMonitor(large().store, budget=1)
    running = asyncio.create_task(monitor.monitor())
    for _ in range(100):
        await asyncio.sleep(0)
    assert ["default"] == list(monitor.last_complete)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_writers_on_other_threads_cause_no_alarm(tmp_path: Path) -> None:
    server = Server(SqliteStore(tmp_path / "home.db", journal=False, heads=False))
    ended, seen = threading.Event(), []
    monitor = DataIntegrityMonitor(server.store, wait=at_once)

    def write() -> None:
        try:
            versions = {f"e{n}": "" for n in range(40)}
            for n in range(150):
                ids = [f"e{(n * 7 + step) % 40}" for step in range(5)]
                server.push(*(entity(id_, at(n), parent_versions=(versions[id_],)) for id_ in ids))
                versions |= dict.fromkeys(ids, at(n))
        finally:
            ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not ended.is_set():
        seen.append(go_round(monitor))
        seen.append(() if run_now(monitor.validate_migration()) else ("not whole",))
    writer.join()
    assert {()} == {*seen, go_round(monitor)}
    assert 750 == server.held(Reads()).head.seq
    run_now(server.store.close())


def test_what_is_the_same_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    store, pace = Damaged(large().store), Paced()
    store.lost = {5}
    monitor = pace.of(store)
    for _ in range(3):
        go_round(monitor)

    assert 1 == sum("default is not whole" in record.message for record in caplog.records)


# --- healthy histories --------------------------------------------------------------------------------------------


def test_whatever_a_mixed_fleet_writes_is_whole_at_every_moment() -> None:
    class Audited(MixedFleet):
        @invariant()
        def whole(self) -> None:
            if hasattr(self, "store") and self.store is not None:
                assert run_now(DataIntegrityMonitor(self.store).validate_migration())

    run_state_machine_as_test(Audited)


# --- planted bugs -------------------------------------------------------------------------------------------------


def _kept(row: Any, *_: Any) -> Any:
    return row


def _always(*_: Any) -> Any:
    async def yes(*_: Any) -> bool:
        return True

    return yes()


@pytest.mark.parametrize(
    ("name", "bug", "test"),
    [
        ("_as_of", _kept, lambda: check_writers(lambda ids: ids[250])),
        ("_follows", _always, test_a_log_that_is_rewound_between_slices_is_read_anew),
    ],
)
def test_a_planted_bug_is_caught(
    name: str, bug: Any, test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, name, bug)
    with pytest.raises(AssertionError):
        test()
