"""Logs as JSON Lines: the same log to the letter, or nothing at all."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreCorrupt, StoreError, StoreFull
from inbetweenies.limits import Limits
from inbetweenies.model import (
    Change,
    Entity,
    Event,
    Reads,
    Relationship,
    Row,
    SyncRequest,
    Writes,
    next_chain,
    row_hash,
)
from inbetweenies.ops import portable
from inbetweenies.ops.integrity import DataIntegrityMonitor
from inbetweenies.ops.portable import NotPortable, export_to, import_from
from inbetweenies.store import Store
from inbetweenies.stores.journal import Commit, Journal
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.fleet import MixedFleet
from tests.stores.test_journal import Site
from tests.support import Server, at, edge, entity, run


def made(path: Path, **graphs: list[Entity | Relationship]) -> Path:
    """A database with these graphs, each row pushed by itself."""
    server = Server(SqliteStore(path, journal=False, heads=False))
    for graph, rows in graphs.items():
        for row in rows:
            change = Change(entity=row) if isinstance(row, Entity) else Change(relationships=(row,))
            server.ask(SyncRequest(device="d", user="ann", changes=(change,)), graph)
    run(server.store.close())
    return path


def two(id_: str) -> list[Entity | Relationship]:
    """An entity, and an edit of it."""
    return [entity(id_, at(1)), entity(id_, at(2), {"n": 1}, parent_versions=(at(1),))]


def home(path: Path) -> Path:
    """One of everything: edits, a loser, a tombstone, an edge, an event, two graphs and an empty one."""
    lamp = [*two("lamp"), entity("lamp", at(0), {"n": 2}, name="ü\n\u2028")]
    gone = [entity("gone", at(1)), entity("gone", at(2), {"deleted": True}, parent_versions=(at(1),))]
    ends = entity("lamp", at(1)), entity("gone", at(1))
    made(path, g=[*lamp, *gone, edge("e", *ends), *(entity(f"x{n}", at(n)) for n in range(9))], h=lamp)
    store = SqliteStore(path, journal=False, heads=False)

    async def tell() -> None:
        async with store.transaction("g", write=True) as tx:
            await tx.write(Writes(events=(Event(kind="discard", key="k", at=5, told={"seq": 1, "epoch": "e"}),)))
        async with store.transaction("empty", write=False):
            pass

    run(tell())
    run(store.close())
    return path


def whole(path: Path) -> dict[str, Any]:
    """All that a database holds of its graphs."""
    store = SqliteStore(path, journal=False, heads=False)

    async def read() -> dict[str, Any]:
        found = {}
        for name in await store.graph_names():
            async with store.transaction(name, write=False) as tx:
                head = (await tx.read(Reads())).head
                held = await tx.read(Reads(seqs=tuple(range(1, head.seq + 1)), events=True))
                found[name] = (head, tuple(held.seqs.values()), held.events)
        return found

    try:
        return run(read())
    finally:
        run(store.close())


def lines_of(db: Path) -> list[dict[str, Any]]:
    file = db.with_suffix(".jsonl")
    export_to(db, file)
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def written(path: Path, lines: list[Any], *, sealed: bool = True) -> Path:
    """A file of these lines; `sealed`, its last line is that of the lines before."""
    data = [json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines]
    if sealed:
        data[-1] = json.dumps({"rows": len(data) - 2, "sha256": sha256(b"".join(data[:-1])).hexdigest()}).encode()
        data[-1] += b"\n"
    path.write_bytes(b"".join(data))
    return path


def left(folder: Path) -> list[str]:
    """The files there, but for what SQLite keeps beside a database."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm")))


def refused(file: Path, error: type[Exception] = NotPortable, **more: Any) -> str:
    """What is said; nothing is left."""
    before = left(file.parent)
    with pytest.raises(error) as caught:
        import_from(file, file.with_name("new.db"), **more)
    assert before == left(file.parent)
    return str(caught.value)


# --- there and back -----------------------------------------------------------------------------------------------


def test_what_is_read_back_is_the_same_to_the_letter(tmp_path: Path) -> None:
    db, seen = home(tmp_path / "home.db"), list[tuple[int, int]]()
    exported = export_to(db, tmp_path / "out.jsonl", progress=lambda *how: seen.append(how))
    done = import_from(tmp_path / "out.jsonl", tmp_path / "new.db", progress=lambda *how: seen.append(how))

    assert whole(db) == whole(tmp_path / "new.db")
    assert {"g", "h", "empty"} == whole(db).keys()
    assert exported.header == done.header
    assert (True, [("empty", 0, True), ("g", 15, True), ("h", 3, True)]) == (
        done.made,
        [(one.graph, one.rows, one.came) for one in done.graphs],
    )
    assert (18, 18) == seen[-1]
    store = SqliteStore(tmp_path / "new.db", journal=False, heads=False)
    assert run(DataIntegrityMonitor(store).validate_migration())
    run(store.close())


def test_the_file_can_be_read_line_by_line(tmp_path: Path) -> None:
    header, *rows, trailer = lines_of(home(tmp_path / "home.db"))

    assert ("inbetweenies-log", 1, 18) == (header["name"], header["format"], header["rows"])
    assert ["empty", "g", "h"] == [log["graph"] for log in header["graphs"]]
    assert [("g", seq) for seq in range(1, 16)] + [("h", seq) for seq in range(1, 4)] == [
        (row["graph"], row["seq"]) for row in rows
    ]
    assert "ü\n\u2028" == rows[2]["value"]["name"]
    assert (18, 64) == (trailer["rows"], len(trailer["sha256"]))
    assert 20 == (tmp_path / "home.jsonl").read_bytes().count(b"\n")
    assert 0o600 == (tmp_path / "home.jsonl").stat().st_mode & 0o777


def test_one_graph_alone(tmp_path: Path) -> None:
    db = home(tmp_path / "home.db")
    export_to(db, tmp_path / "h.jsonl", graph="h")
    import_from(tmp_path / "h.jsonl", tmp_path / "new.db")

    assert {"h": whole(db)["h"]} == whole(tmp_path / "new.db")
    with pytest.raises(LocalProtocolError, match="expected a graph that is in"):
        export_to(db, tmp_path / "none.jsonl", graph="none")
    assert not (tmp_path / "none.jsonl").exists()


class Portable(MixedFleet):
    """Whatever a fleet has written is read back as it is."""

    replays = False

    def make_store(self) -> Store:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "home.db"
        self.own = SqliteStore(self.path, journal=False, heads=False)
        return self.own

    def teardown(self) -> None:
        try:
            super().teardown()
            file, new = self.path.with_name("out.jsonl"), self.path.with_name("new.db")
            export_to(self.path, file)
            import_from(file, new)
            assert whole(self.path) == whole(new)
        finally:
            run(self.own.close())
            self.folder.cleanup()


def test_whatever_a_fleet_has_written_is_read_back() -> None:
    run_state_machine_as_test(
        Portable,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate),
        ),
    )


def test_a_database_of_an_older_release_is_brought_up_to_date(tmp_path: Path) -> None:
    db = home(tmp_path / "home.db")
    with closing(sqlite3.connect(db)) as connection:
        connection.executescript("DROP INDEX log_type; DROP INDEX log_listing; PRAGMA user_version = 3;")
        connection.execute("CREATE INDEX log_type ON log (graph, entity_type, until) WHERE kind = 'entity'")
    export_to(db, tmp_path / "out.jsonl")
    import_from(tmp_path / "out.jsonl", tmp_path / "new.db")

    assert whole(db) == whole(tmp_path / "new.db")


# --- what is there already ----------------------------------------------------------------------------------------


def test_twice_is_as_once(tmp_path: Path) -> None:
    db = home(tmp_path / "home.db")
    export_to(db, tmp_path / "out.jsonl")
    made(db, g=[entity("later", at(1))])
    before = whole(db)
    done = import_from(tmp_path / "out.jsonl", db)

    assert before == whole(db)
    assert (False, [False, False, False]) == (done.made, [one.came for one in done.graphs])


def test_an_empty_graph_takes_it_and_others_stay(tmp_path: Path) -> None:
    db = home(tmp_path / "home.db")
    export_to(db, tmp_path / "out.jsonl")
    other = made(tmp_path / "other.db", own=[entity("own", at(1))], h=[])
    store = SqliteStore(other)
    run(store.transaction("g", write=False).__aenter__())  # there, and empty, and its journal and ends know of it
    run(store.close())
    done = import_from(tmp_path / "out.jsonl", other)

    assert ["empty", "g", "h"] == [one.graph for one in done.graphs if one.came]
    assert {name: rows[1:] for name, rows in whole(db).items()} == {
        name: rows[1:] for name, rows in whole(other).items() if name != "own"
    }
    assert {name: rows[0].digest for name, rows in whole(db).items()}.items() <= {
        name: rows[0].digest for name, rows in whole(other).items()
    }.items()
    before = whole(other)
    server = SqliteStore(other)  # with its journal, which is given what came
    assert () == server.happened
    run(server.close())
    assert before == whole(other)
    segments = Journal(tmp_path / "other.db.journal").everything()
    ends = {one.graph: one.after.seq for segment in segments for one in segment.records if isinstance(one, Commit)}
    assert (15, 3) == (ends["g"], ends["h"])


def test_what_differs_is_left_alone_and_nothing_comes(tmp_path: Path) -> None:
    db = home(tmp_path / "home.db")
    export_to(db, tmp_path / "out.jsonl")
    other = made(tmp_path / "other.db", h=[entity("lamp", at(1)), entity("other", at(1))])
    before = whole(other)

    with pytest.raises(LocalProtocolError, match="it has 2 rows and lacks 2 of the 3: import into another database"):
        import_from(tmp_path / "out.jsonl", other)
    assert before == whole(other)


def test_the_same_version_of_another_value_is_not_there(tmp_path: Path) -> None:
    export_to(made(tmp_path / "home.db", g=[entity("a", at(1))]), tmp_path / "out.jsonl")
    other = made(tmp_path / "other.db", g=[entity("a", at(1), {"another": "value"})])

    with pytest.raises(LocalProtocolError, match="lacks 1 of the 1"):
        import_from(tmp_path / "out.jsonl", other)


def test_who_has_the_database_open_is_not_disturbed(tmp_path: Path) -> None:
    db = home(tmp_path / "home.db")
    export_to(db, tmp_path / "out.jsonl")
    other = made(tmp_path / "other.db", own=[entity("own", at(1))])
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM log').fetchone(); print(1)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.stdout.flush(); sys.stdin.read()", str(other)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        server.stdout.readline()
        with pytest.raises(StoreBusy, match="stop it, then try again"):
            import_from(tmp_path / "out.jsonl", other)
        server.stdin.close()
    assert {"own"} == whole(other).keys()


def test_a_journal_or_leftovers_of_another_database_are_not_mixed_in(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write("e1")
    export_to(home(tmp_path / "other.db"), tmp_path / "out.jsonl")
    site.set_back(None)
    with pytest.raises(StoreError, match="got that of another database"):
        import_from(tmp_path / "out.jsonl", site.path)
    site.lose("journal", "heads")
    site.path.with_name("home.db-wal").write_bytes(b"old")
    with pytest.raises(LocalProtocolError, match=r"got home\.db-wal: move that away"):
        import_from(tmp_path / "out.jsonl", site.path)
    assert not site.path.exists()


# --- what is not as it was written --------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 0.3, 0.7, -1, -2, -100])
def test_a_file_that_was_cut_off_is_noticed(tmp_path: Path, cut: int | float) -> None:
    lines_of(home(tmp_path / "home.db"))
    file = tmp_path / "home.jsonl"
    data = file.read_bytes()
    file.write_bytes(data[: cut if isinstance(cut, int) else int(cut * len(data))])

    assert "Nothing was imported" in refused(file)


def test_every_line_is_missed(tmp_path: Path) -> None:
    lines = lines_of(home(tmp_path / "home.db"))
    for index in range(len(lines)):
        assert "line " in refused(written(tmp_path / "less.jsonl", lines[:index] + lines[index + 1 :], sealed=False))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An export of three rows."""
    folder = tmp_path_factory.mktemp("small")
    lines_of(made(folder / "home.db", g=[*two("a"), edge("e", entity("a", at(1)), entity("a", at(1)))]))
    return (folder / "home.jsonl").read_bytes()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_byte_that_was_changed_is_noticed(small: bytes, data: st.DataObject) -> None:
    body = bytearray(small)
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "changed.jsonl"
        file.write_bytes(bytes(body))
        refused(file)


def _of_row(index: int, **fields: Any) -> Callable[[list[Any]], None]:
    return lambda lines: lines[index].update(fields)


def _value(lines: list[Any]) -> None:
    lines[2]["value"]["name"] = "another"


def _no_value(lines: list[Any]) -> None:
    body = b'{"id":1}'
    lines[1]["value"], lines[1]["hash"] = {"id": 1}, row_hash("entity", body).hex()


def _swapped(lines: list[Any]) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def _twice(lines: list[Any]) -> None:
    """A row version that is there again, in a log whose hashes and ends agree with that."""
    rows = lines[1:-1]
    rows[2] = rows[1] | {"seq": 3, "until": 3, "stamp": rows[2]["stamp"]}
    lines[1:-1] = rows[:3]
    chain = bytes(16)
    for row in rows[:3]:
        chain = next_chain(chain, bytes.fromhex(row["hash"]))
    digest = int(rows[1]["hash"], 16)
    lines[0]["rows"] = 3
    lines[0]["graphs"][0].update(seq=3, chain=chain.hex(), digest=f"{digest:064x}", stamp=rows[2]["stamp"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_value, "line 3: expected the value that its hash was made of"),
        (_no_value, "line 2: expected a value of kind entity; got something else"),
        (_swapped, "line 2: expected row 1 of graph g; got row 2"),
        (_of_row(1, graph="h"), "line 2: expected row 1 of graph g"),
        (_of_row(1, more=1), "line 2: "),
        (_of_row(1, kind="thing"), "line 2: "),
        (_of_row(1, until=None), "expected row 1 to end where row 2 took its place"),
        (_of_row(2, until=2), "expected row 2 to have taken the place of row 1"),
        (_of_row(1, stamp=2**60), "expected a stamp after"),
        (_of_row(1, stamp=2**64), "line 2: "),
        (_of_row(1, edit=-(2**70)), "line 2: "),
        (_of_row(3, until=9), "row 9 to have taken the place"),
        (_of_row(0, format=2), "line 1: expected inbetweenies-log of format 1; got another one"),
        (_of_row(0, name="x"), "line 1: expected inbetweenies-log"),
        (_of_row(0, rows=7), "line 1: expected each graph once"),
        (lambda lines: lines[0]["graphs"][0].update(chain="0" * 32), "to end with the chain"),
        (lambda lines: lines[0]["graphs"][0].update(digest="0" * 64), "expected the digest"),
        (lambda lines: lines[0]["graphs"][0].update(digest="x"), "line 1: "),
        (lambda lines: lines[0]["graphs"][0].update(digest=" " * 64), "line 1: "),
        (lambda lines: lines[0]["graphs"][0].update(epoch="of mine"), "line 1: "),
        (lambda lines: lines[0]["graphs"][0].update(seq=-1), "line 1: "),
        (lambda lines: lines.insert(5, lines[4]), "line 6: "),
        (_twice, "expected each row version once, and one current row of an id, in rows 1 to 3"),
    ],
)
def test_a_lie_is_told_with_its_line(tmp_path: Path, change: Callable[[list[Any]], None], says: str) -> None:
    puts = [*two("a"), entity("b", at(1)), edge("e", entity("a", at(1)), entity("b", at(1)))]
    lines = lines_of(made(tmp_path / "home.db", g=puts))
    change(lines)

    assert says in refused(written(tmp_path / "lies.jsonl", lines))


@pytest.mark.parametrize("line", [b"", b"{}", b"[1]", b"null", b"\xff\xfe", b'{"graph": "g"', b"[" * 100_000])
def test_what_is_no_line_of_an_export_is_told(tmp_path: Path, line: bytes) -> None:
    lines_of(made(tmp_path / "home.db", g=[entity("a", at(1)), entity("b", at(1))]))
    file = tmp_path / "home.jsonl"
    data = file.read_bytes().split(b"\n")
    for number in range(4):
        file.write_bytes(b"\n".join([*data[:number], line, *data[number + 1 :]]))
        assert f"line {number + 1}: " in refused(file)
    file.write_bytes(b"\n".join(data) + line + b"\n")
    assert "got more" in refused(file)


def test_a_row_is_as_large_as_a_server_takes_and_no_larger(tmp_path: Path) -> None:
    """Deployed servers took names of 5 MB, so such a row must come back; what no server takes is not even read."""
    db = made(tmp_path / "home.db", g=[entity("a", at(1), name="n" * 5_000_000)])
    export_to(db, tmp_path / "home.jsonl")
    import_from(tmp_path / "home.jsonl", tmp_path / "whole.db")
    assert whole(db) == whole(tmp_path / "whole.db")
    few = Limits(entity_bytes_max=2**20)
    assert "line 2: expected a line of at most 1,114,112 bytes" in refused(tmp_path / "home.jsonl", limits=few)
    header, row, trailer = (json.loads(line) for line in (tmp_path / "home.jsonl").read_bytes().splitlines())
    row["value"]["name"] *= 2
    large = written(tmp_path / "large.jsonl", [header, row, trailer])
    assert "line 2: expected a line of at most 8,454,144 bytes" in refused(large)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(id_bytes_max=3), "line 2: expected an id of at most 3 bytes; got 4"),
        (Limits(version_bytes_max=9), "line 2: expected a version of at most 9 bytes; got 43"),
        (Limits(entity_bytes_max=20), "line 2: expected a value of at most 20 bytes; got"),
    ],
)
def test_what_no_server_would_have_taken_is_refused(tmp_path: Path, limits: Limits, says: str) -> None:
    lines_of(made(tmp_path / "home.db", g=[entity("lamp", at(1))]))
    assert says in refused(tmp_path / "home.jsonl", limits=limits)


# --- what goes wrong on the way -----------------------------------------------------------------------------------


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got no file"):
        export_to(tmp_path / "none.db", tmp_path / "out.jsonl")
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at as one, and so on and so on")
    with pytest.raises(StoreCorrupt):
        export_to(tmp_path / "text.db", tmp_path / "out.jsonl")
    assert ["text.db"] == left(tmp_path)


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(LocalProtocolError, match="expected no file"):
        export_to(home(tmp_path / "home.db"), tmp_path / "out.jsonl")
    assert "mine" == (tmp_path / "out.jsonl").read_text()


def test_rows_that_are_missing_are_not_passed_over(tmp_path: Path) -> None:
    db = home(tmp_path / "home.db")
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("DELETE FROM log WHERE seq = 2")
    with pytest.raises(StoreError, match="expected 18 rows in the database; got 16"):
        export_to(db, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db = home(tmp_path / "home.db")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(portable, "fsync", full)
        with pytest.raises(StoreFull, match="make room"):
            export_to(db, tmp_path / "out.jsonl")
        assert ["home.db"] == left(tmp_path)
    export_to(db, tmp_path / "out.jsonl")
    monkeypatch.setattr(portable, "fsync", full)
    with pytest.raises(StoreFull):
        import_from(tmp_path / "out.jsonl", tmp_path / "new.db")
    assert ["home.db", "out.jsonl"] == left(tmp_path)


def test_a_crash_amid_the_merge_leaves_the_database_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export_to(home(tmp_path / "home.db"), tmp_path / "out.jsonl")
    other = made(tmp_path / "other.db", own=[entity("own", at(1))])
    before = whole(other)
    monkeypatch.setattr(portable, "_TELL", "SELECT nothing FROM nowhere WHERE ?1 = ?2")
    with pytest.raises(StoreError):
        import_from(tmp_path / "out.jsonl", other)
    assert before == whole(other)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A row is let go of when it is written: the lines of a log are far more than what is held of them."""
    rows = 60
    made(tmp_path / "home.db", g=[entity(f"a{n}", at(n), name="n" * 200_000) for n in range(rows)])
    tracemalloc.start()
    export_to(tmp_path / "home.db", tmp_path / "out.jsonl")
    exported = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert exported < rows * 200_000 / 3


def test_the_lines_of_a_row_are_its_own() -> None:
    assert {"graph", "seq", "kind", "until", "stamp", "edit", "timed", "rise", "born", "via", "hash", "value"} == set(
        portable.Line.__struct_fields__
    )
    # Everything else of a row follows from its value and the rows before.
    assert {"id", "version", "deleted", "entity_type", "user_id", "from_id", "to_id", "chain", "body"} == set(
        Row.__struct_fields__
    ) - set(portable.Line.__struct_fields__)
