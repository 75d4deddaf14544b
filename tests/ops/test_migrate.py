"""Importing deployed databases: every row accounted for, once, wherever the process died; and out again."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import LocalProtocolError, StoreBusy, StoreCorrupt, StoreError
from inbetweenies.engine import DEFAULT_LIMITS
from inbetweenies.imports import Ledger
from inbetweenies.limits import Limits
from inbetweenies.model import Change, Reads, Row, Span, SyncRequest, format_time, make_version, parse_time
from inbetweenies.ops import losses, source
from inbetweenies.ops.integrity import DataIntegrityMonitor
from inbetweenies.ops.migrate import DOCUMENT, Report, entries_in, migrate, undo
from inbetweenies.ops.source import opened
from inbetweenies.store import Store
from tests.ops.deployed import GRAPH, HOMEKIT, LATER, PLAIN, REAL, WHEN, made, put, real
from tests.support import Server, edge, entity, run

NOW = 1_796_000_000_000_000  # days after the rows that deployed servers have written


class Site:
    """A folder with a deployed database, and a store that it goes into."""

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self.folder = folder
        self.server = Server(store)
        self.store = self.server.store
        self.now = NOW

    def clock(self) -> int:
        self.now += 1_000_000
        return self.now

    def file(self, schema: str, *rows: tuple[str, dict[str, Any]], name: str = "old.db") -> Path:
        path = self.folder / name
        path.unlink(missing_ok=True)
        return made(path, schema, rows)

    def migrate(self, file: Path, **options: Any) -> Report:
        report: Report = drained(migrate(self.store, file, clock=self.clock, **options))
        assert {} == report.unexplained
        self.check()
        return report

    def check(self) -> None:
        """The log is whole (PROTOCOL 12.9)."""
        for whole in run(DataIntegrityMonitor(self.store).reports()).values():
            assert () == whole.violations

    def undo(self, file: Path, **options: Any) -> tuple[Ledger, dict[str, int]]:
        found: tuple[Ledger, dict[str, int]] = drained(undo(self.store, file, clock=self.clock, **options))
        self.check()
        return found

    def push(self, *things: Any, features: frozenset[str] = frozenset()) -> Any:
        changes = tuple(
            Change(entity=one) if hasattr(one, "entity_type") else Change(relationships=(one,)) for one in things
        )
        self.server.now = self.clock()
        return self.server.ask(SyncRequest(device="v2:t:d", user="ann", changes=changes, features=features))

    def rows(self, *, current: bool = True) -> list[Row]:
        """The rows of the log."""

        async def read() -> list[Row]:
            async with self.store.transaction("default", write=False) as tx:
                head = (await tx.read(Reads())).head
                if current:
                    return [*(await tx.read(Reads(span=Span(after=0, upto=head.seq)))).span]
                return [*(await tx.read(Reads(seqs=tuple(range(1, head.seq + 1))))).seqs.values()]

        return run(read())

    def living(self) -> dict[str, str]:
        """What stands, by id: its name, or the type of an edge."""
        return {
            row.id: row.entity().name if row.kind == "entity" else row.entity_type
            for row in self.rows()
            if not row.deleted
        }


class Stopped(Exception):
    """Something went wrong in the middle."""


def drained(work: Any) -> Any:
    """The result of a coroutine that only ever lets others go on."""
    while True:
        try:
            work.send(None)
        except StopIteration as stop:
            return stop.value


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def fates(report: Report) -> dict[str, dict[str, int]]:
    return {table: {str(fate): count for fate, count in fates.items()} for table, fates in report.ledger.fates.items()}


def codes(report: Report) -> list[tuple[str, str]]:
    return [(spot.table, spot.code) for spot in report.ledger.refused]


HOME = [(table, PLAIN[table]) for table in ("homes", "rooms", "accessories", "users", "accessory_rooms")]
INSIDE = [(table, PLAIN[table]) for table in ("services", "characteristics")]


# --- whole, once --------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(("name", "rows", "lines"), [("v1.sqlite", 36, 30), ("v2.sqlite", 79, 79)])
def test_what_deployed_servers_have_written_is_moved_undone_and_moved_again(
    site: Site, name: str, rows: int, lines: int
) -> None:
    report = site.migrate(REAL / name, rows=7)
    assert ({"moved": rows, "merged": 0, "present": 0, "refused": 0}, lines) == (report.ran, len(site.rows()))
    assert ((), ()) == (report.ledger.refused, report.ledger.spots)
    stood = site.living()

    assert 0 == sum(site.migrate(REAL / name).ran.values())
    assert lines == len(site.rows(current=False))

    ledger, ran = site.undo(REAL / name, rows=5)
    assert ("undone", {"out": lines}, {}) == (ledger.state, ran, site.living())
    assert {"out": 0} == site.undo(REAL / name)[1]
    assert 2 * lines == len(site.rows(current=False))

    assert rows == site.migrate(REAL / name, rows=11).ran["moved"]
    assert stood == site.living()
    assert {"out": lines} == site.undo(REAL / name)[1]
    assert {} == site.living()


@real
def test_what_was_said_of_things_is_said_of_them_here(site: Site) -> None:
    site.migrate(REAL / "v2.sqlite")
    here = {(row.id, row.version): row for row in site.rows()}

    with closing(sqlite3.connect(f"{(REAL / 'v2.sqlite').as_uri()}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        for old in db.execute("SELECT * FROM entities"):
            new = here[old["id"], old["version"]].entity()
            assert (old["name"], json.loads(old["content"])) == (new.name, json.loads(bytes(new.content)))
            assert (old["entity_type"].lower(), old["source_type"].lower()) == (new.entity_type, new.source_type)
            assert (old["user_id"], tuple(json.loads(old["parent_versions"]))) == (new.user_id, new.parent_versions)
        edges = {row.id: row.relationship() for row in site.rows() if row.kind == "edge"}
        for old in db.execute("SELECT * FROM entity_relationships"):
            edge_ = edges[old["id"]]
            assert (old["from_entity_id"], old["to_entity_id"]) == (edge_.from_entity_id, edge_.to_entity_id)
            assert old["relationship_type"].lower() == edge_.relationship_type


def test_a_record_is_as_old_here_as_it_was_there(site: Site) -> None:
    file = site.file(HOMEKIT, ("homes", {**PLAIN["homes"], "updated_at": LATER}))
    site.migrate(file)

    [home] = site.rows()
    assert (parse_time(WHEN), parse_time(LATER)) == (home.born, home.edit)


def test_a_client_of_the_old_server_is_told_only_what_that_had_not_told_it(site: Site) -> None:
    rows: list[tuple[str, dict[str, Any]]] = []
    for number in range(5):
        at = f"2026-11-23 01:0{number}:00.000000"
        version = f"2026-11-23T01:0{number}:00.000000+00:00-000000-ann"
        rows.append(("entities", {"id": f"e{number}", "version": version, "created_at": at, "updated_at": at}))
    since = parse_time("2026-11-23 01:02:30")
    assert since is not None
    site.now = since + 3_600_000_000
    site.migrate(site.file(GRAPH, *rows))

    def told(at: int) -> list[str]:
        site.server.now = site.clock()
        response = site.server.ask(SyncRequest(device="v2:t:d", user="ann", since=at))
        return [row.id for row in response.rows]

    assert ["e3", "e4"] == told(since)
    assert ["e4"] == told(since + 1_800_000_000)  # the last is told again: only with it the log reaches so far
    other = Site(site.folder)
    other.now = site.now
    other.migrate(site.folder / "old.db", tell_all=True)
    other.server.now = other.clock()
    response = other.server.ask(SyncRequest(device="v2:t:d", user="ann", since=since + 1_800_000_000))
    assert 5 == len(response.rows)


def test_the_history_of_a_thing_is_here_in_its_order(site: Site) -> None:
    versions = [make_version(NOW + number, 0, "ann") for number in range(4)]
    rows: list[tuple[str, dict[str, Any]]] = [
        ("entities", {"version": versions[0], "is_latest": 0, "server_seq": 1, "name": "first"}),
        # It lost to what came before it.
        ("entities", {"version": versions[1], "is_latest": 0, "server_seq": 3, "name": "lost"}),
        ("entities", {"version": versions[2], "server_seq": 4, "name": "last"}),
        # The server took the child before its parent.
        ("entities", {"version": versions[3], "is_latest": 0, "server_seq": 2, "name": "second"}),
    ]
    rows[1][1]["parent_versions"] = rows[3][1]["parent_versions"] = json.dumps([versions[0]])
    rows[2][1]["parent_versions"] = json.dumps([versions[0], versions[3]])
    report = site.migrate(site.file(GRAPH, *rows), rows=1)

    assert {"entities": {"moved": 4}} == fates(report)
    found = [(row.entity().name, row.until == row.seq, row.current) for row in site.rows(current=False)]
    assert ("last", False, True) == found[-1]
    assert [("first", False), ("lost", True), ("second", False)] == sorted(
        (name, aside) for name, aside, _ in found[:-1]
    )


def test_what_was_deleted_there_is_deleted_here(site: Site) -> None:
    site.migrate(site.file(GRAPH, ("entities", {"content": '{"deleted": true}'})))

    assert ([True], {}) == ([row.deleted for row in site.rows()], site.living())
    ledger, _ = site.undo(site.folder / "old.db")
    assert {"gone": 1} == ledger.out


def test_a_blob_comes_in_parts_and_goes_with_them(site: Site) -> None:
    file = site.file(GRAPH, ("blobs", {"data": bytes(3 * 2**20)}), ("blobs", {"id": "small"}))
    report = site.migrate(file)

    assert ({"blobs": {"moved": 2}}, 4) == (fates(report), len(site.living()))
    site.undo(file)
    assert {} == site.living()


# --- what is wrong with a row -------------------------------------------------------------------------------------


def test_rows_that_cannot_be_are_refused_each_with_a_reason_and_the_rest_is_done(site: Site) -> None:
    loose = (
        HOMEKIT.replace("NOT NULL", "")
        .replace(", PRIMARY KEY (id)", "")
        .replace(", PRIMARY KEY (accessory_id, room_id)", "")
    )
    bad: list[tuple[str, dict[str, Any]]] = [
        ("homes", {"id": None}),
        ("homes", {"name": "again"}),
        ("rooms", {"id": "h"}),
        ("rooms", {"id": "lost", "home_id": "nowhere"}),
        ("accessories", {"id": "r"}),
        ("services", {"id": "of r", "accessory_id": "r"}),
        ("characteristics", {"id": "of r", "service_id": "of r"}),
        ("services", {"id": "lost", "accessory_id": None}),
        ("characteristics", {"id": "lost", "service_id": "lost"}),
        ("characteristics", {"id": "nowhere", "service_id": None}),
        ("services", {}),
        ("accessories", {"name": "again"}),
        ("accessory_rooms", {"room_id": "nowhere"}),
        ("accessory_rooms", {"room_id": None}),
        ("users", {"id": "\x00"}),
        ("users", {"id": "x" * 2000, "name": "y" * 5_000_000}),
        ("sync_metadata", {}),
    ]
    report = site.migrate(site.file(loose, *HOME, *INSIDE, *bad))

    assert Counter(
        [
            ("homes", "null_key"),
            ("homes", "duplicate_id"),
            ("rooms", "duplicate_id"),
            ("accessories", "duplicate_id"),
            ("services", "dangling"),
            ("characteristics", "dangling"),
            ("services", "dangling"),
            ("characteristics", "dangling"),
            ("characteristics", "dangling"),
            ("services", "duplicate_id"),
            ("accessories", "duplicate_id"),
            ("accessory_rooms", "dangling"),
            ("accessory_rooms", "null_key"),
            ("users", "illegal_name"),
            ("users", "illegal_name"),
            ("sync_metadata", "bookkeeping"),
        ]
    ) == Counter(codes(report))
    assert 8 == report.ran["moved"]
    assert [("rooms", "lost", "dangling")] == [(spot.table, spot.key, spot.code) for spot in report.ledger.spots]
    assert len(HOME + INSIDE + bad) == report.ledger.rows == sum(report.ran.values())


def test_a_name_of_5_mb_is_moved_and_one_of_9_mb_refused(site: Site) -> None:
    report = site.migrate(
        site.file(HOMEKIT, ("homes", {"name": "x" * 5_000_000}), ("homes", {"id": "i", "name": "x" * 9_000_000}))
    )

    assert {"homes": {"moved": 1, "refused": 1}} == fates(report)
    assert [("homes", "too_large")] == codes(report)


def test_an_accessory_that_is_refused_takes_what_is_inside_with_it(site: Site) -> None:
    report = site.migrate(site.file(HOMEKIT, *HOME, *INSIDE), limits=Limits(entity_bytes_max=20))

    assert 0 == report.ran["moved"]
    assert len(HOME + INSIDE) == report.ran["refused"]


def test_an_accessory_of_an_id_that_cannot_be_takes_what_is_inside_with_it(site: Site) -> None:
    rows = [("accessories", {"id": "\x01"}), ("services", {"accessory_id": "\x01"}), ("characteristics", {})]
    report = site.migrate(site.file(HOMEKIT, *rows))

    assert [(table, "illegal_name") for table, _ in rows] == codes(report)
    assert (0, 3) == (report.ran["moved"], report.ran["refused"])


def test_rows_of_other_kinds_are_refused_or_kept_as_far_as_they_can_be(site: Site) -> None:
    loose = GRAPH.replace("NOT NULL", "").replace(", PRIMARY KEY (id, version)", "").replace(", PRIMARY KEY (id)", "")
    version = PLAIN["entities"]["version"]
    file = site.file(
        loose,
        ("entities", {}),
        ("entities", {}),  # the same row twice
        ("entities", {"name": "other content of the same version"}),
        ("entities", {"id": None}),
        ("entities", {"version": None}),
        ("entities", {"id": "odd", "entity_type": "Spaceship", "source_type": "ZIGBEE", "content": "7"}),
        ("entities", {"id": "ship", "entity_type": "Spaceship", "source_type": "ZIGBEE", "version": "v-123"}),
        ("entities", {"id": "bytes", "name": b"\xff\xfe"}),
        ("blobs", {"id": "e"}),
        ("blobs", {}),
        ("entity_relationships", {}),
        ("entity_relationships", {"id": "dangling", "to_entity_id": "nowhere"}),
        ("entity_relationships", {"id": "old", "to_entity_version": "of a version that is gone"}),
        ("entity_relationships", {"id": "blob", "to_entity_id": "b", "relationship_type": "HAS_BLOB"}),
        ("entity_relationships", {"id": None}),
    )
    with closing(sqlite3.connect(file)) as db:
        db.execute("UPDATE entities SET name = CAST(x'fffe' AS TEXT) WHERE id = 'bytes'")
        db.commit()
    report = site.migrate(file)

    assert {
        "entities": {"moved": 3, "merged": 1, "present": 1, "refused": 3},
        "blobs": {"moved": 1, "refused": 1},
        "entity_relationships": {"moved": 3, "refused": 2},
    } == fates(report)
    ship = next(row for row in site.rows() if row.id == "ship").entity()
    assert ("spaceship", "imported", "ZIGBEE") == (ship.entity_type, ship.source_type, ship.source_original)
    assert version in {row.version for row in site.rows(current=False)}
    assert [
        ("entities", f"bytes {version}", "not_text"),
        ("entity_relationships", "blob", "dangling"),
        ("entity_relationships", "old", "dangling"),
    ] == sorted((spot.table, spot.key, spot.code) for spot in report.ledger.spots)


def test_an_id_that_is_something_else_here_is_refused(site: Site) -> None:
    site.push(entity("h", make_version(NOW, 0, "ann"), entity_type="zone"))
    report = site.migrate(site.file(HOMEKIT, *HOME, *INSIDE))

    assert [("homes", "type_conflict")] == codes(report)
    assert Counter({"type_conflict": 0, "unknown_endpoint": 3}) == Counter(spot.code for spot in report.ledger.spots)


def test_of_very_many_that_are_refused_all_are_counted(site: Site) -> None:
    rows = [("accessory_rooms", {"accessory_id": f"a{number}"}) for number in range(1100)]
    report = site.migrate(site.file(HOMEKIT, *rows))

    assert (1000, 1100) == (len(report.ledger.refused), report.ledger.counts["refused accessory_rooms dangling"])


# --- which file it is ---------------------------------------------------------------------------------------------


def refused(site: Site, file: Path, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        site.migrate(file)
    assert ([], 0) == (site.rows(), run(site.store.document(DOCUMENT)).revision)


def test_what_cannot_be_imported_is_refused_whole(site: Site) -> None:
    whole = site.file(HOMEKIT, *((table, {"id": f"{n}"}) for table in ("homes", "rooms") for n in range(300)))
    data = whole.read_bytes()
    damaged = site.folder / "damaged.db"

    refused(site, site.folder / "none.db", StoreError, "got no file")
    refused(site, site.folder, StoreError, "got no file")
    damaged.write_bytes(b"PK\x03\x04" * 100)
    refused(site, damaged, StoreError, "got another file")
    for size in (50, 100, len(data) // 2, len(data) - 10):
        damaged.write_bytes(data[:size])
        refused(site, damaged, StoreCorrupt, "truncated")
    damaged.write_bytes(data[:5000] + b"\xff" * 30_000 + data[35_000:])
    refused(site, damaged, StoreCorrupt, "damaged|SQLITE_CORRUPT|SQLITE_NOTADB")
    refused(site, site.file("CREATE TABLE moz_places (id);"), StoreError, "got moz_places")
    refused(site, site.file(GRAPH + "CREATE TABLE tags (id);"), StoreError, "tags as well")
    refused(site, site.file(HOMEKIT + "ALTER TABLE homes ADD COLUMN domain;"), StoreError, "domain as well")
    virtual = "CREATE VIRTUAL TABLE homes USING fts5(id);"
    refused(site, site.file(virtual), StoreError, "another module")
    rowless = "CREATE TABLE homes (id TEXT PRIMARY KEY) WITHOUT ROWID;"
    refused(site, site.file(rowless), StoreError, "as a deployed server makes it")
    refused(site, site.file("PRAGMA application_id = 0x496E6274;" + HOMEKIT), StoreError, "just serve it")


def test_one_that_is_being_written_to_is_read_as_of_its_last_commit(site: Site) -> None:
    file = site.file(HOMEKIT, *HOME)
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        for mode in ("DELETE", "WAL"):
            writer.execute(f"PRAGMA journal_mode = {mode}")
            writer.execute("BEGIN IMMEDIATE")
            put(writer, "rooms", {"id": f"half {mode}"})
            with opened(file, graph="default", limits=DEFAULT_LIMITS) as found:
                assert 1 == found.totals["rooms"]
            writer.execute("ROLLBACK")
        put(writer, "rooms", {"id": "in the log only"})
        assert 2 == site.migrate(file).ledger.totals["rooms"]


def test_one_that_is_kept_locked_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    file = site.file(HOMEKIT, *HOME)
    monkeypatch.setattr(source, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        refused(site, file, StoreBusy, "SQLITE_BUSY|keeps it locked")


def test_the_file_itself_is_not_touched(site: Site) -> None:
    file = site.file(HOMEKIT, *HOME)
    before = file.read_bytes(), file.stat().st_mtime_ns
    file.chmod(0o400)
    site.migrate(file)
    site.undo(file)

    assert before == (file.read_bytes(), file.stat().st_mtime_ns)
    assert ["old.db"] == [path.name for path in site.folder.iterdir()]


def test_databases_of_older_releases_are_read(site: Site) -> None:
    schema = ";".join(
        statement.replace("is_latest BOOLEAN DEFAULT 1 NOT NULL,", "").replace("server_seq INTEGER,", "")
        for statement in " ".join(GRAPH.split()).split(";")
        if "INDEX" not in statement and "blobs" not in statement and "sync_metadata" not in statement
    )
    file = site.folder / "older.db"
    with closing(sqlite3.connect(file)) as db:
        db.executescript(schema)
        for number, name in enumerate(("first", "second")):
            columns = {**PLAIN["entities"], "version": make_version(NOW + number, 0, "ann"), "name": name}
            columns |= {"updated_at": format_time(NOW + number)}
            del columns["is_latest"], columns["server_seq"]
            marks = ", ".join("?" * len(columns))
            db.execute(f"INSERT INTO entities ({', '.join(columns)}) VALUES ({marks})", list(columns.values()))
        db.commit()
    report = site.migrate(file)

    assert ({"entities": {"moved": 2}}, {"e": "second"}) == (fates(report), site.living())


# --- into what is there already -----------------------------------------------------------------------------------


def test_what_is_here_already_is_not_moved_and_stays_when_the_import_goes(site: Site) -> None:
    version = PLAIN["entities"]["version"]
    site.push(entity("e", version, entity_type="room", name="Room"))
    file = site.file(GRAPH, ("entities", {}), ("entities", {"id": "f"}))
    report = site.migrate(file)

    assert {"entities": {"moved": 1, "present": 1}} == fates(report)
    site.undo(file)
    assert {"e": "Room"} == site.living()


def test_what_says_other_things_here_is_merged_and_stands_again_when_the_import_goes(site: Site) -> None:
    old, new = make_version(NOW - 10**9, 0, "ann"), make_version(NOW + 10**9, 0, "bob")
    site.now += 2 * 10**9
    site.push(entity("e", old, entity_type="room", name="Here"), entity("f", new, entity_type="room", name="Here"))
    versions = {"version": make_version(NOW, 0, "eve"), "updated_at": format_time(NOW)}
    file = site.file(GRAPH, ("entities", {**versions, "name": "There"}), ("entities", {"id": "f", **versions}))
    report = site.migrate(file)

    assert {"entities": {"moved": 1, "merged": 1}} == fates(report)  # one of them stands as a whole
    assert {"e": "There", "f": "Here"} == site.living()
    ledger, _ = site.undo(file)
    assert ({"restored": 1}, {"e": "Here", "f": "Here"}) == (ledger.out, site.living())


def test_a_later_state_of_the_same_database_brings_only_what_is_new(site: Site) -> None:
    first = [("entities", {}), ("entities", {"id": "f"})]
    site.migrate(site.file(GRAPH, *first))
    later = site.file(GRAPH, *first, ("entities", {"id": "g"}), name="later.db")
    report = site.migrate(later)

    assert {"entities": {"moved": 1, "present": 2}} == fates(report)
    site.undo(later)
    assert {"e", "f"} == set(site.living())
    site.undo(site.folder / "old.db")
    assert {} == site.living()
    assert ["undone", "undone"] == [one.state for one in entries_in(run(site.store.document(DOCUMENT)))]


def test_into_another_graph_it_is_another_import(site: Site) -> None:
    file = site.file(HOMEKIT, *HOME)

    assert site.migrate(file).ran == site.migrate(file, graph="other").ran
    assert {"out": 8} == site.undo(file, graph="other")[1]
    assert 8 == len(site.living())


# --- out ----------------------------------------------------------------------------------------------------------


def test_what_somebody_wrote_since_stays(site: Site) -> None:
    file = site.file(HOMEKIT, *HOME)
    site.migrate(file)
    rows = {row.id: row for row in site.rows()}
    at = make_version(NOW + 10**9, 0, "ann")
    site.now += 2 * 10**9
    lamp = rows["a"].entity()
    site.push(
        msgspec.structs.replace(lamp, version=at, parent_versions=(lamp.version,), name="Mine"),
        entity("new", at, entity_type="room", name="New"),
    )
    site.push(edge("in the home", entity("new", at), rows["h"].entity()))
    before = {row.id: row.hash for row in site.rows() if row.id in ("a", "new", "in the home")}
    ledger, ran = site.undo(file)

    assert {"out": 7, "kept": 1} == ran == ledger.out
    assert before == {row.id: row.hash for row in site.rows() if not row.deleted}


def test_what_lost_to_the_import_since_stands_when_that_goes(site: Site) -> None:
    file = site.file(GRAPH, ("entities", {"version": make_version(NOW + 10**6, 0, "eve")}))
    site.now += 10**8
    site.migrate(file)
    site.push(entity("e", make_version(NOW, 0, "ann"), entity_type="room", name="Lost"))
    assert {"e": "Room"} == site.living()

    site.undo(file)
    assert {"e": "Lost"} == site.living()


def test_an_import_that_is_named_by_its_digest_or_its_name_is_undone_without_its_file(site: Site) -> None:
    file = site.file(HOMEKIT, *HOME)
    digest = site.migrate(file).ledger.source
    with closing(sqlite3.connect(file)) as db:
        put(db, "rooms", {"id": "written since"})
        db.commit()

    assert {"out": 8} == site.undo(file)[1]
    file.unlink()
    assert {"out": 0} == site.undo(Path(digest[:8]))[1]
    for unknown in (site.folder / "other.db", Path("0" * 8)):
        with pytest.raises(LocalProtocolError, match=f"there are: old.db {digest}"):
            site.undo(unknown)
    with pytest.raises(LocalProtocolError, match="there are: none"):
        site.undo(file, graph="other")


def test_half_undone_it_is_not_imported(site: Site) -> None:
    file = site.file(HOMEKIT, *HOME)
    site.migrate(file)
    with pytest.raises(Stopped):
        site.undo(file, rows=2, progress=_stop)

    with pytest.raises(LocalProtocolError, match="finish with --undo"):
        site.migrate(file)
    assert {"out": 8} == site.undo(file)[0].out
    assert {} == site.living()


def _stop(*_: int) -> None:
    raise Stopped


def test_an_import_that_is_not_finished_is_undone_as_far_as_it_got(site: Site) -> None:
    file = site.file(HOMEKIT, *HOME)
    with pytest.raises(Stopped):
        site.migrate(file, rows=2, progress=_stop)
    assert {} != site.living()

    site.undo(file)
    assert {} == site.living()
    assert 5 == site.migrate(file).ran["moved"]


def test_two_processes_that_import_the_same_do_it_once(site: Site) -> None:
    file = site.file(HOMEKIT, *HOME, *INSIDE)

    left = [2]

    def meanwhile(*_: int) -> None:
        if left[0]:
            left[0] -= 1
            site.migrate(file, rows=1, progress=meanwhile)

    report = site.migrate(file, rows=1, progress=meanwhile)

    assert 7 == report.ledger.fate("moved")
    assert 8 == len(site.rows(current=False))


# --- what older clients see of it ---------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(("name", "records", "unseen"), [("v1.sqlite", 31, 5), ("v2.sqlite", 15, 58)])
def test_what_an_older_version_does_not_show_is_counted_and_explained(
    site: Site, name: str, records: int, unseen: int
) -> None:
    site.migrate(REAL / name)
    [plan] = run(losses.plan(site.store, "default"))

    assert (records, ()) == (plan.records, plan.unexplained)
    assert unseen == sum(loss.count for loss in plan.losses if not loss.field)
    site.undo(REAL / name)
    [plan] = run(losses.plan(site.store, "default"))
    assert (0, ()) == (plan.records, plan.unexplained)
    assert plan.rows == sum(loss.count for loss in plan.losses if not loss.field)


# --- made-up databases --------------------------------------------------------------------------------------------

_ids = st.sampled_from(["h", "r", "a", "b", "s", "c", "u", "x" * 1100, "", None, 7, b"\xff"])
_any: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.integers(-1, 2), st.text(max_size=3), st.binary(max_size=2), st.floats(allow_nan=False)
)
_times = st.sampled_from([WHEN, LATER, "2026-11-23 01:39:31", "2099-01-01 00:00:00+00:00", "never", None])
_KEYS = {"id", "home_id", "accessory_id", "room_id", "service_id", "bridge_id", "from_entity_id", "to_entity_id"}


def _row(table: str) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for column in PLAIN[table]:
        if column in _KEYS:
            fields[column] = _ids
        elif column in ("created_at", "updated_at"):
            fields[column] = _times
        elif column == "parent_versions":
            fields[column] = st.one_of(_any, st.lists(st.sampled_from(["v1", "v2", "v3"]), max_size=2).map(json.dumps))
        elif column.endswith("version"):
            fields[column] = st.sampled_from(["v1", "v2", "v3", make_version(NOW, 0, "ann")]) | st.none()
        elif column in ("content", "properties", "blob_metadata"):
            fields[column] = st.sampled_from(["{}", '{"deleted": true}', '{"a": 1}', "[]", "{", None])
        elif column == "entity_type":
            fields[column] = st.sampled_from(["ROOM", "device", "Spaceship", None])
        else:
            fields[column] = st.one_of(st.just(PLAIN[table][column]), _any)
    return st.tuples(st.just(table), st.fixed_dictionaries({}, optional=fields))


def _rows(schema: str) -> st.SearchStrategy[list[tuple[str, dict[str, Any]]]]:
    return st.lists(st.one_of([_row(table) for table in PLAIN if f"CREATE TABLE {table} " in schema]), max_size=12)


def loosened(schema: str) -> str:
    """A schema that lets anything in."""
    for rule in (
        " NOT NULL",
        ", PRIMARY KEY (id, version)",
        ", PRIMARY KEY (id)",
        ", PRIMARY KEY (accessory_id, room_id)",
        ", UNIQUE (client_id)",
    ):
        schema = " ".join(schema.split()).replace(rule, "")
    return schema


_made_up = st.one_of([st.tuples(st.just(schema), _rows(schema)) for schema in map(loosened, (HOMEKIT, GRAPH))])


@given(found=_made_up, first=st.none() | _made_up, size=st.integers(1, 5), stop=st.integers(1, 6))
def test_whatever_stands_in_a_database_every_row_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory,
    found: tuple[str, list[Any]],
    first: tuple[str, list[Any]] | None,
    size: int,
    stop: int,
) -> None:
    site = Site(tmp_path_factory.mktemp("any"))
    if first is not None:
        site.migrate(site.file(*_args(first), name="first.db"))
    before = [row.hash for row in site.rows()]
    file = site.file(*_args(found))
    left = stop

    def stops(*_: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Stopped

    try:
        report = site.migrate(file, rows=size, progress=stops)
    except Stopped:
        site.migrate(file, rows=size)
        report = site.migrate(file)
    assert (
        len(found[1])
        == report.ledger.rows
        == sum(report.ledger.fate(fate) for fate in ("moved", "merged", "present", "refused"))
    )
    lines = len(site.rows(current=False))
    assert 0 == sum(site.migrate(file).ran.values())
    assert lines == len(site.rows(current=False))
    [plan] = run(losses.plan(site.store, "default"))
    assert () == plan.unexplained

    if first is not None and 1 == len(entries_in(run(site.store.document(DOCUMENT)))):
        return  # the same rows in another file are the same import
    # What stood before stands again, and nothing else.
    stood = {(row.kind, row.id): _value(row) for row in site.rows(current=False) if row.hash in before}
    site.undo(file, rows=size)
    left_ = {(row.kind, row.id): _value(row) for row in site.rows() if not row.deleted or (row.kind, row.id) in stood}
    assert stood == left_


def _args(found: tuple[str, list[Any]]) -> tuple[Any, ...]:
    return found[0], *found[1]


def _value(row: Row) -> tuple[Any, ...]:
    value = row.entity() if row.kind == "entity" else row.relationship()
    return row.kind, *(
        getattr(value, name) for name in value.__struct_fields__ if name not in ("version", "parent_versions")
    )
