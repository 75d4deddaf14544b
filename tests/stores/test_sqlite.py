"""`SqliteStore` against the contract, and against what happens to files: crashes, full disks, other processes."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreCorrupt, StoreError, StoreFull
from inbetweenies.model import Device, Held, Reads, Span, Writes, digest_change, next_chain, row_hash
from inbetweenies.store import Store
from inbetweenies.stores import schema
from inbetweenies.stores.journal import Journal
from inbetweenies.stores.schema import APPLICATION_ID, FOREVER, SCHEMA_VERSION
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.store_tests import StoreTests, add, commit, edge, entity, everything, read, run

IDS = ("e1", "e2", "e3")


class TestSqliteStore(StoreTests):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.paths: dict[int, Path] = {}

    def make_store(self) -> SqliteStore:
        # What a crash of the machine would do is not the question in these tests, and they run ten times as fast.
        path = self.tmp_path / f"{len(self.paths)}.db"
        return self.remembered(path)

    def reopen(self, store: Store) -> SqliteStore:
        path = self.paths[id(store)]
        run(store.close())
        return self.remembered(path)

    def remembered(self, path: Path) -> SqliteStore:
        store = SqliteStore(
            path,
            on_connect=lambda connection: connection.execute("PRAGMA synchronous = OFF"),
            journal=Journal(f"{path}.journal", sync=lambda _: None),
        )
        self.paths[id(store)] = path
        self.stores = [*getattr(self, "stores", []), store]  # so that no id is used twice
        return store


def bare(path: Any, **options: Any) -> SqliteStore:
    """A store that is nothing but its file: what is tested here is that."""
    return SqliteStore(path, journal=False, heads=False, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = bare(path, busy_timeout_ms=1)
    yield store
    run(store.close())


def whole(path: Path) -> Held:
    """Everything in graph "g" of the file, after checking that it is a log: no gap, right chain, right digest."""
    store = bare(path)
    held = run(read(store, "g", Reads(span=Span(after=0, upto=FOREVER), chains=tuple(range(10_000)))))
    run(store.close())
    with closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        assert [] == connection.execute("PRAGMA foreign_key_check").fetchall()
        rows = connection.execute("SELECT seq, kind, until, hash, chain, body FROM log ORDER BY seq").fetchall()
    chain, digest = bytes(16), 0
    for seq, (found, kind, until, hash_, linked, body) in enumerate(rows, 1):
        chain = next_chain(chain, hash_)
        assert (seq, row_hash(kind, body), chain) == (found, hash_, linked)
        if until == FOREVER:
            digest = digest_change(digest, come=hash_)
    assert (len(rows), chain, digest) == (held.head.seq, held.head.chain, held.head.digest)
    return held


# --- the file -----------------------------------------------------------------------------------------------------


def test_only_its_owner_can_read_the_file(store: SqliteStore, path: Path) -> None:
    run(commit(store, "g", entity("e1")))

    for name in path.parent.iterdir():
        assert 0o600 == name.stat().st_mode & 0o777


def test_the_settings_that_keep_commits_are_on(path: Path) -> None:
    connections: list[sqlite3.Connection] = []
    store = bare(path, busy_timeout_ms=1234, on_connect=connections.append)
    [connection] = connections
    expected = {
        "journal_mode": "wal",
        "synchronous": 2,
        "fullfsync": 1,
        "foreign_keys": 1,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "journal_size_limit": 64 * 2**20,
        "busy_timeout": 1234,
        "application_id": APPLICATION_ID,
        "user_version": SCHEMA_VERSION,
    }
    actual = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in expected}
    run(store.close())

    assert expected == actual


def test_connections_are_used_again_and_closed_in_the_end(path: Path) -> None:
    connections: list[sqlite3.Connection] = []
    store = bare(path, on_connect=connections.append)
    for number in range(5):
        run(commit(store, f"g{number}", entity("e1")))
        run(read(store, "new", Reads()))
    assert 1 == len(connections)

    blocks = [store.transaction("g", write=False) for _ in range(20)]
    for block in blocks:
        run(block.__aenter__())
    assert 20 == len(connections)
    for block in blocks[1:]:
        run(block.__aexit__(None, None, None))
    run(store.close())
    run(blocks[0].__aexit__(None, None, None))

    for connection in connections:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")
    assert ["store.db"] == [name.name for name in path.parent.iterdir()]


def test_an_odd_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b?c#d%41.db", "file:x.db", "ü.db"):
        store = bare(name)
        run(commit(store, "g", entity("e1")))
        run(store.close())

    assert {"a b?c#d%41.db", "file:x.db", "ü.db"} == {name.name for name in tmp_path.iterdir()}


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_no_file_is_no_store(path: str) -> None:
    with pytest.raises(LocalProtocolError, match="MemoryStore"):
        bare(path)


def test_a_file_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        bare(tmp_path / "no" / "store.db")
    with pytest.raises(StoreError, match="CANTOPEN"):
        bare(tmp_path)


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (("CREATE TABLE recipes (name)",), "another application"),
        (("PRAGMA application_id = 7",), "another application"),
        (("PRAGMA user_version = 7",), "another application"),
        (
            (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION + 1}"),
            "of another release",
        ),
        ((f"PRAGMA application_id = {APPLICATION_ID}",), "got 0, of another release"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_and_left_alone(path: Path, statements: tuple[str, ...], told: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=told):
        bare(path)

    assert before == path.read_bytes()


def test_a_file_of_the_first_schema_is_taken_over_with_all_it_holds(path: Path) -> None:
    script = (Path(__file__).parent / "schema_1.sql").read_text()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    store = bare(path)
    held = run(read(store, "g", Reads(span=Span(after=0, upto=9), device="phone", events=True)))
    more = run(commit(store, "g", entity("e2", "v1")))
    run(store.close())

    assert ("e1", "", Device(served=1, acked=1, mark="m"), ()) == (
        held.span[0].id,
        held.span[0].via,
        held.device,
        held.events,
    )
    with closing(sqlite3.connect(path)) as connection:
        assert [("0123456789abcdef", "0123456789abcdef")] == connection.execute(
            "SELECT epoch, birth FROM graphs"
        ).fetchall()
        assert (SCHEMA_VERSION,) == connection.execute("PRAGMA user_version").fetchone()
    assert [2] == [row.seq for row in more]


def test_a_file_whose_taking_over_is_cut_off_stays_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = (Path(__file__).parent / "schema_1.sql").read_text()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    with monkeypatch.context() as patch:
        patch.setitem(schema.UPGRADES, 2, schema.UPGRADES[2] + "SELECT no_such_column FROM log;")
        with pytest.raises(StoreError):
            bare(path)
    with closing(sqlite3.connect(path)) as connection:
        assert (1,) == connection.execute("PRAGMA user_version").fetchone()
        assert 5 == len(connection.execute("SELECT * FROM devices").fetchall()[0])

    assert 1 == run(read(bare(path), "g", Reads())).head.seq


def test_a_file_that_is_no_database_is_corrupt(path: Path) -> None:
    path.write_text("Dear diary, " * 1000)
    with pytest.raises(StoreCorrupt, match="NOTADB"):
        bare(path)

    assert path.read_text().startswith("Dear diary")


def test_a_damaged_page_is_told_and_the_connection_given_up(path: Path) -> None:
    store = bare(path)
    run(commit(store, "g", *(entity(f"e{number}") for number in range(200))))
    run(store.close())
    with closing(sqlite3.connect(path)) as connection:
        [root] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'log_until'").fetchone()
        [size] = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    connections: list[sqlite3.Connection] = []
    store = bare(path, on_connect=connections.append)
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="backup"):
            run(read(store, "g", Reads(entities=("e1",))))
    run(store.close())

    assert 2 == len(connections)


def test_text_that_is_not_utf8_is_corruption_and_is_not_told(path: Path, store: SqliteStore) -> None:
    run(commit(store, "g", entity("e1")))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE log SET user_id = CAST(x'736563726574ff' AS TEXT)")
        connection.commit()
    with pytest.raises(StoreCorrupt) as caught:
        run(read(store, "g", Reads(entities=("e1",))))

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("word", ["\ud800", "a\udcff"])
def test_text_that_is_not_unicode_is_refused(store: SqliteStore, word: str) -> None:
    for reads in (Reads(entities=(word,)), Reads(device=word), Reads(types=(word,))):
        with pytest.raises(LocalProtocolError, match="surrogate"):
            run(read(store, "g", reads))
    with pytest.raises(LocalProtocolError, match="surrogate"):
        run(read(store, word, Reads()))


def test_numbers_beyond_64_bits_are_refused(store: SqliteStore) -> None:
    async def script() -> None:
        async with store.transaction("g", write=True) as tx:
            await tx.write(Writes(device=("phone", Device(served=2**63))))

    with pytest.raises(LocalProtocolError, match="64 bits"):
        run(script())


# --- crashes ------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.store_tests import commit, edge, entity, run
store = SqliteStore(sys.argv[1])
while True:
    rows = run(commit(store, "g", entity("e1"), entity("e2"), edge("e3", None, "e1", "e2"),
                      entity("e1", note="x" * 10_000), entity("e2", current=False)))
    print(rows[-1].seq, flush=True)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


def test_a_process_that_is_killed_leaves_whole_commits_only_and_all_that_were_acked(path: Path) -> None:
    for lines in (1, 7, 30):
        with python(WRITER, path) as process:
            assert process.stdout is not None
            acked = [int(process.stdout.readline()) for _ in range(lines)][-1]
            process.send_signal(signal.SIGKILL)
            acked = max([acked, *(int(line) for line in process.stdout.readlines() if line.endswith("\n"))])
        held = whole(path)

        assert acked <= held.head.seq
        assert 0 == held.head.seq % 5


def shape_of(path: Path) -> tuple[int, list[tuple[str, str]]]:
    """The schema of a file: its number and its parts."""
    with closing(sqlite3.connect(path)) as connection:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        return version, sorted(connection.execute("SELECT name, sql FROM sqlite_schema").fetchall())


def test_a_file_of_schema_3_is_brought_to_this_one_with_all_that_it_holds(path: Path) -> None:
    store = SqliteStore(path)
    rows = run(commit(store, "g", entity("e1"), entity("e2", entity_type="room"), edge("e3", None, "e1", "e2")))
    run(store.close())
    new = shape_of(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "DROP INDEX log_listing; DROP INDEX log_type;"
            "CREATE INDEX log_type ON log (graph, entity_type, until) WHERE kind = 'entity';"
            "PRAGMA user_version = 3"
        )
    old = shape_of(path)
    fuse = Fuse()
    stores: list[SqliteStore] = []

    def is_whole(_: str) -> bool:
        assert shape_of(path) in (old, new)
        return False

    # Whatever stops it half way leaves nothing half done.
    assert 10 < sweep(fuse, lambda: stores.append(SqliteStore(path, on_connect=fuse.install)), is_whole)
    [store] = stores

    assert tuple(rows) == run(read(store, "g", Reads(span=Span(after=0, upto=3)))).span
    assert [(row.id, row.version) for row in rows[:2]] == list(run(read(store, "g", Reads(listing=True))).listing)
    run(store.close())
    assert (new, SCHEMA_VERSION) == (shape_of(path), new[0])


def test_several_processes_may_open_a_new_file_at_once(path: Path) -> None:
    code = """
import sys
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.store_tests import commit, entity, run
sys.stdin.readline()
store = SqliteStore(sys.argv[1])
for number in range(20):
    run(commit(store, "g", entity("e1"), entity(sys.argv[2])))
"""
    processes = [python(code, path, f"p{number}") for number in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert 0 == process.returncode

    assert 120 == whole(path).head.seq


# --- what storage cannot do ---------------------------------------------------------------------------------------


def test_a_full_disk_applies_nothing_keeps_reading_and_recovers(path: Path) -> None:
    connections: list[sqlite3.Connection] = []
    store = bare(path, on_connect=connections.append)
    run(commit(store, "g", entity("e1", "v1")))
    [connection] = connections
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    before = run(read(store, "g", everything(IDS)))
    for _ in range(3):
        with pytest.raises(StoreFull, match="make room"):
            run(commit(store, "g", entity("e1", "v2"), entity("e2", "v1", note="x" * 100_000)))
        assert before == run(read(store, "g", everything(IDS)))
    with pytest.raises(StoreFull):
        run(fill(store))
    connection.execute("PRAGMA max_page_count = 1000000")
    run(commit(store, "g", entity("e1", "v2"), entity("e2", "v1", note="x" * 100_000)))
    run(store.close())

    assert 1 == len(connections)
    assert 3 <= whole(path).head.seq


async def fill(store: Store) -> None:
    """Commits so small that the room ends at any place of a transaction."""
    for _ in range(1000):
        await commit(store, "g", entity("e3"))


def test_another_process_that_writes_for_too_long_makes_the_store_busy(path: Path, store: SqliteStore) -> None:
    run(commit(store, "g", entity("e1", "v1")))
    code = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
print("free", flush=True)
"""
    with python(code, path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert "held\n" == process.stdout.readline()
        for _ in range(3):
            with pytest.raises(StoreBusy, match="another process"):
                run(commit(store, "g", entity("e1", "v2")))
            # Readers do not wait for a writer.
            assert 1 == run(read(store, "g", Reads())).head.seq
        with pytest.raises(StoreBusy):
            run(read(store, "new", Reads()))
        process.stdin.write("\n")
        process.stdin.flush()
        assert "free\n" == process.stdout.readline()
    run(commit(store, "g", entity("e1", "v2")))


def test_a_thread_is_never_made_to_wait_for_itself(path: Path) -> None:
    store = bare(path, busy_timeout_ms=20_000)

    async def script() -> None:
        async with store.transaction("g", write=True):
            # One file has one writer, and a graph that nobody named before is written down when it is first read.
            await read(store, "new", Reads())

    for _ in range(2):
        with pytest.raises(StoreBusy, match="this thread"):
            run(script())
    run(store.close())


def test_a_thread_that_writes_for_too_long_makes_the_store_busy(store: SqliteStore) -> None:
    block = store.transaction("g", write=True)
    run(block.__aenter__())
    caught: list[BaseException] = []

    def work() -> None:
        try:
            run(commit(store, "g", entity("e1")))
        except StoreBusy as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    run(block.__aexit__(None, None, None))
    run(commit(store, "g", entity("e1")))

    assert ["expected the writer before to end within 0.001 s; it did not"] == [str(error) for error in caught]


class Fuse:
    """Interrupts SQLite at its `left`-th virtual machine operation from now."""

    def __init__(self) -> None:
        self.left: int | None = None

    def __call__(self) -> int:
        if self.left is None:
            return 0
        self.left -= 1
        return self.left <= 0

    def install(self, connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(self, 1)


def sweep(fuse: Fuse, attempt: Callable[[], object], check: Callable[[str], bool]) -> int:
    """`attempt`, interrupted after 1, 2, 3, ... operations until it gets through, or until `check` is content.

    `check` is told the error of each interruption. Returns the number of interruptions.
    """
    for count in range(1, 100_000):
        fuse.left = count
        try:
            attempt()
        except StoreError as error:
            fuse.left = None
            assert "INTERRUPT" in str(error)
            if check(str(error)):
                return count
        else:
            fuse.left = None
            return count - 1
    raise AssertionError("never got through")


def test_a_write_that_is_interrupted_anywhere_is_applied_whole_or_not_at_all(path: Path) -> None:
    fuse = Fuse()
    store = bare(path, on_connect=fuse.install)
    run(commit(store, "g", entity("e1", "v1"), entity("e2", "v1"), edge("e3", "v1", "e1", "e2")))
    before = run(read(store, "g", everything(IDS)))

    async def attempt() -> None:
        async with store.transaction("g", write=True) as tx:
            await add(tx, entity("e1", "v2"), edge("e3", "v2", "e2", "e1"), entity("e2", "v0", current=False))
            await tx.write(Writes(device=("phone", Device(served=3))))

    def check(told: str) -> bool:
        # SQLite may tell of an interruption when the commit is on the disk already; an error is no proof of nothing.
        done = "commit" in told and before != run(read(store, "g", everything(IDS)))
        assert done or before == run(read(store, "g", everything(IDS)))
        return done

    count = sweep(fuse, lambda: run(attempt()), check)
    after = run(read(store, "g", everything(IDS)))
    run(store.close())

    assert 100 < count
    assert (6, Device(served=3)) == (after.head.seq, after.device)
    assert 6 == whole(path).head.seq


def test_a_read_that_is_interrupted_anywhere_can_be_repeated(path: Path) -> None:
    fuse = Fuse()
    store = bare(path, on_connect=fuse.install)
    run(commit(store, "g", entity("e1", "v1"), entity("e2", "v1"), edge("e3", "v1", "e1", "e2")))
    before = run(read(store, "g", everything(IDS)))
    found: list[Held] = []
    count = sweep(fuse, lambda: found.append(run(read(store, "g", everything(IDS)))), lambda _: False)
    run(store.close())

    assert 100 < count
    assert [before] == found


def test_making_a_graph_that_is_interrupted_anywhere_can_be_repeated(path: Path) -> None:
    fuse = Fuse()
    store = bare(path, on_connect=fuse.install)
    sweep(fuse, lambda: run(read(store, "new", Reads())), lambda _: False)
    epochs = {run(read(store, "new", Reads())).head.epoch for _ in range(2)}
    run(store.close())

    assert 1 == len(epochs)


def test_running_out_of_memory_applies_nothing(path: Path) -> None:
    # In a process of its own: the heap limit cannot be raised again, and comes as a MemoryError.
    code = """
import sqlite3, sys
from inbetweenies.errors import StoreError
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.store_tests import commit, entity, run
connections = []
store = SqliteStore(sys.argv[1], on_connect=connections.append)
run(commit(store, "g", entity("e1", "v1")))
connections[0].execute("PRAGMA hard_heap_limit = 4000000")
try:
    run(commit(store, "g", entity("e1", "v2"), entity("e2", note="x" * 8_000_000)))
except StoreError as error:
    print(error)
"""
    with python(code, path) as process:
        assert process.stdout is not None
        told = process.stdout.read()

    assert "SQLite could not write: out of memory\n" == told
    assert 1 == whole(path).head.seq


def test_a_commit_that_fails_is_rolled_back_and_told(path: Path) -> None:
    # A foreign key that is checked at COMMIT makes it fail after all writes went well.
    connections: list[sqlite3.Connection] = []
    store = bare(path, on_connect=connections.append)
    run(commit(store, "g", entity("e1", "v1")))
    before = run(read(store, "g", everything(IDS)))

    async def script() -> None:
        async with store.transaction("g", write=True) as tx:
            await add(tx, entity("e1", "v2"))
            connections[0].execute("PRAGMA defer_foreign_keys = ON")
            connections[0].execute("INSERT INTO devices VALUES (99, 'd', 0, 0, '', '')")

    with pytest.raises(LocalProtocolError, match="to commit"):
        run(script())

    assert before == run(read(store, "g", everything(IDS)))
    run(commit(store, "g", entity("e1", "v2")))
    run(store.close())


# --- speed that does not depend on history ------------------------------------------------------------------------


def test_no_statement_walks_through_a_table(path: Path) -> None:
    statements: set[str] = set()
    store = bare(path, on_connect=lambda connection: connection.set_trace_callback(statements.add))

    async def script() -> None:
        await commit(store, "g", entity("e1"), entity("e2"), edge("e3", None, "e1", "e2"))
        for as_of in (None, 1):
            reads = everything(IDS, as_of=as_of)
            await read(store, "g", Reads(stamp=2, versions=(("entity", "e1", "v1"), ("edge", "e3", "v1"))))
            await read(store, "g", reads)
            await read(store, "g", Reads(entities=tuple(f"e{number}" for number in range(600)), as_of=as_of))
            for span in (
                Span(after=0, upto=3, kind="edge"),
                Span(after=0, upto=3, entity_type="device", kind="entity"),
            ):
                await read(store, "g", Reads(span=span, as_of=as_of))
        async with store.transaction("g", write=True) as tx:
            await add(tx, entity("e1"), edge("e3", None, "e2", "e1"))
            await tx.write(Writes(device=("phone", Device())))
            await tx.read(Reads(documents=("flags",)))
        for revision in (0, 1):
            await store.put_document("flags", b"", revision=revision)

    run(script())
    run(store.close())
    plans: dict[str, list[str]] = {}
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            if re.match("SELECT|WITH|UPDATE|INSERT", statement):
                rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                plans[statement] = [row[3] for row in rows]
    steps = {step for plan in plans.values() for step in plan}
    searches = {step for step in steps if step.startswith("SEARCH")}

    assert 17 <= len(plans)
    assert [] == [step for step in steps if re.match("SCAN (log|graphs|devices|documents)", step)]
    # Every search begins with the graph (or finds it), and none is a walk through a graph's whole log: what is asked
    # for by seq, by time or in order has seq in its key, the rest has an id or a type.
    for step in searches - {"SEARCH documents USING PRIMARY KEY (name=?)"}:
        of_graph = r"\(graph=\? AND |graphs USING INDEX sqlite_autoindex_graphs_1 \(name=\?\)|rowid=\?"
        assert re.search(rf"{of_graph}|events USING .*\(graph=\?\)", step)
    indexes = {match[1] for step in searches if (match := re.search(r"log USING (?:COVERING )?INDEX (\w+)", step))}
    expected = {
        "log_version",
        "log_until",
        "log_from",
        "log_to",
        "log_type",
        "log_current",
        "log_listing",
        "sqlite_autoindex_log_1",
    }
    assert expected == indexes
    [close] = {step for statement, plan in plans.items() if statement.startswith("UPDATE log") for step in plan}
    assert "SEARCH log USING INDEX sqlite_autoindex_log_1 (graph=? AND seq=?)" == close
    assert [] == [step for step in steps if "AUTOMATIC" in step]
    # The graph's whole log, or all entities of a type, in order: sorting them for each page would be quadratic.
    # Of events only so many are kept.
    sorting = {statement for statement, plan in plans.items() if any("TEMP B-TREE" in step for step in plan)}
    assert ["events"] == [re.findall(r"FROM (\w+)", statement)[0] for statement in sorting]


def test_a_span_of_what_is_current_does_not_visit_what_is_closed(path: Path) -> None:
    fuse = Fuse()
    store = bare(path, on_connect=fuse.install)
    counts = []
    for _ in range(2):
        fuse.left = FOREVER
        run(read(store, "g", Reads(span=Span(after=0, upto=FOREVER), entities=("e1",), listing=True)))
        counts.append(FOREVER - fuse.left)
        fuse.left = None
        run(commit(store, "g", *(entity("e1") for _ in range(500))))
    run(store.close())

    assert counts[1] < counts[0] + 100


# --- files of older releases --------------------------------------------------------------------------------------


def parts_of(path: Path) -> tuple[dict[str, set[object]], list[object]]:
    """The columns of each table, whatever their order and defaults, and what the indexes are made by."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        columns = 'SELECT name, type, "notnull", pk FROM pragma_table_info(?)'
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE type = 'index' ORDER BY name"
        ).fetchall()
        return {name: set(connection.execute(columns, (name,)).fetchall()) for (name,) in tables}, indexes


def older(path: Path) -> None:
    """Make the file what the release with schema 1 would have made of it."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in (
            "DROP INDEX log_listing",
            "DROP INDEX log_type",
            "CREATE INDEX log_type ON log (graph, entity_type, until) WHERE kind = 'entity'",
            "DROP TABLE documents",
            "DROP TABLE events",
            "ALTER TABLE graphs DROP COLUMN birth",
            "ALTER TABLE log DROP COLUMN via",
            "ALTER TABLE devices DROP COLUMN pushed",
            "PRAGMA user_version = 1",
        ):
            connection.execute(statement)


def test_a_file_of_schema_1_opens_with_all_it_holds_and_can_do_what_is_new(path: Path) -> None:
    store = bare(path)
    run(commit(store, "g", entity("e1"), entity("e2")))
    before = run(read(store, "g", everything(IDS)))
    run(store.close())
    fresh = parts_of(path)
    older(path)

    again = bare(path)
    assert before == run(read(again, "g", everything(IDS)))
    assert run(again.put_document("flags", b"x", revision=0))
    run(again.close())
    assert fresh == parts_of(path)
    with closing(sqlite3.connect(path)) as connection:
        assert (SCHEMA_VERSION,) == connection.execute("PRAGMA user_version").fetchone()


def test_an_upgrade_that_is_interrupted_anywhere_is_done_whole_or_not_at_all(path: Path) -> None:
    run(bare(path).close())
    older(path)
    fuse = Fuse()

    def whole(_: str) -> bool:
        with closing(sqlite3.connect(path)) as connection:
            [version] = connection.execute("PRAGMA user_version").fetchone()
            [tables] = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'documents'").fetchone()
        assert (version, tables) in ((1, 0), (SCHEMA_VERSION, 1))
        return bool(version == SCHEMA_VERSION)

    assert sweep(fuse, lambda: run(bare(path, on_connect=fuse.install).close()), whole) > 10
    store = bare(path)
    assert run(store.put_document("flags", b"x", revision=0))
    run(store.close())
