"""What is kept outside of the database: the journal, and the ends of logs. Files are copied, cut, mixed up and lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from inbetweenies import rewind
from inbetweenies.errors import StoreError
from inbetweenies.model import Cursor, Device, Event, Head, Held, Reads, Row, Span, Writes
from inbetweenies.stores import journal as journals
from inbetweenies.stores.heads import Heads
from inbetweenies.stores.journal import (
    Commit,
    Discard,
    Journal,
    Opening,
    Segment,
    commit_of,
    framed,
    unframed,
    writes_of,
)
from inbetweenies.stores.keeper import DEVICE
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.store_tests import Undo, add, commit, edge, entity, log_of, read, run
from tests.support import NOW, Server, at
from tests.support import entity as thing

ALL = Span(after=0, upto=2**53 - 1)


class Site:
    """A database in a folder, which can be backed up and set back."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.path = folder / "home.db"
        self.options = options
        self.opens: list[SqliteStore] = []

    def open(self, **more: Any) -> SqliteStore:
        store = SqliteStore(self.path, **(self.options | more))
        self.opens.append(store)
        return store

    def close(self) -> None:
        while self.opens:
            run(self.opens.pop().close())

    def write(self, *ids: str, graph: str = "g", **more: Any) -> Head:
        """One commit in a process of its own; the head afterwards."""
        store = self.open(**more)
        run(commit(store, graph, *(entity(id_, note=id_) for id_ in ids)))
        head = self.head(store, graph)
        self.close()
        return head

    def backup(self) -> Path:
        self.close()
        kept = self.path.with_name(f"backup-{time.monotonic_ns()}")
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(kept)) as target:
            source.backup(target)
        return kept

    def set_back(self, backup: Path | None) -> None:
        """Put a backup in the place of the file; None for no file at all."""
        self.close()
        for end in ("", "-wal", "-shm"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        if backup is not None:
            shutil.copy(backup, self.path)

    def lose(self, *what: str) -> None:
        for end in what:
            shutil.rmtree(f"{self.path}.{end}", ignore_errors=True)

    def head(self, store: SqliteStore, graph: str = "g") -> Head:
        return run(read(store, graph, Reads())).head

    def held(self, graph: str = "g", **more: Any) -> Held:
        store = self.open(**more)
        held = run(read(store, graph, Reads(span=ALL, lines=ALL, events=True, device="phone")))
        self.close()
        return held

    @property
    def journal(self) -> Journal:
        return Journal(f"{self.path}.journal")

    def records(self) -> list[Commit | Discard]:
        return [record for segment in self.journal.everything() for record in segment.records]


@pytest.fixture
def site(tmp_path: Path) -> Any:
    site = Site(tmp_path)
    yield site
    site.close()


def kinds(held: Held) -> list[str]:
    return [event.kind for event in held.events]


def names(held: Held) -> set[str]:
    return {row.id for row in held.span}


# --- before anything is acknowledged ------------------------------------------------------------------------------


class Disk:
    """Makes sure that files are on the disk, or fails to."""

    def __init__(self) -> None:
        self.synced = 0
        self.error: OSError | None = None

    def __call__(self, descriptor: int) -> None:
        if self.error is not None:
            raise self.error
        self.synced += 1


@pytest.mark.parametrize("code", [28, 5])
def test_nothing_is_acknowledged_that_the_journal_does_not_hold(site: Site, code: int) -> None:
    disk = Disk()
    store = site.open(journal=Journal(f"{site.path}.journal", sync=disk))
    run(commit(store, "g", entity("e1", "v1")))
    [segment] = site.journal.segments()
    size = segment.stat().st_size
    disk.error = OSError(code, os.strerror(code))
    with pytest.raises(StoreError, match="kept outside as well"):
        run(commit(store, "g", entity("e2", "v1")))

    # It is in the database, and whoever sends it again finds it there: still it is not acknowledged.
    async def again() -> bool:
        async with store.transaction("g", write=True) as tx:
            found = (await tx.read(Reads(versions=(("entity", "e2", "v1"),)))).versions
        return bool(found)

    with pytest.raises(StoreError, match="kept outside as well"):
        run(again())
    disk.error = None
    assert run(again())
    run(commit(store, "g", entity("e3", "v1")))
    site.close()
    # What the system did not promise to keep is gone.
    os.truncate(segment, size)
    site.set_back(None)
    assert {"e1", "e2", "e3"} == names(site.held())


@pytest.mark.parametrize("write", [False, True])
def test_nobody_is_told_what_the_journal_does_not_hold(site: Site, write: bool) -> None:
    """Or a time that was handed out would be gone with the database."""
    disk = Disk()
    store = site.open(journal=Journal(f"{site.path}.journal", sync=disk), heads=True)
    run(commit(store, "g", entity("e1", "v1")))
    disk.error = OSError(28, os.strerror(28))
    with pytest.raises(StoreError, match="kept outside as well"):
        run(commit(store, "g", entity("e2", "v1")))

    async def look() -> set[str]:
        async with store.transaction("g", write=write) as tx:
            return names(await tx.read(Reads(span=ALL)))

    with pytest.raises(StoreError, match="kept outside as well"):
        run(look())
    assert not run(read(store, "other", Reads(span=ALL))).span  # of another graph nothing is missing
    disk.error = None
    assert {"e1", "e2"} == run(look())
    assert 2 == next(end.cursor.seq for end in Heads(site.path).all() if end.graph == "g")
    run(look())
    site.set_back(None)
    assert {"e1", "e2"} == names(site.held())


@pytest.mark.parametrize("more", [False, True])
def test_a_backup_made_amid_what_the_journal_took_as_one_is_led_on_from_there(site: Site, more: bool) -> None:
    disk = Disk()
    store = site.open(journal=Journal(f"{site.path}.journal", sync=disk))
    run(commit(store, "g", entity("e1", "v1"), entity("gone", "v1")))
    [first] = site.journal.segments()
    size = first.stat().st_size
    disk.error = OSError(28, os.strerror(28))
    for row in (entity("e1", "v2"), entity("e2", "v1")):
        with pytest.raises(StoreError, match="kept outside as well"):
            run(commit(store, "g", row))
    os.truncate(first, size)
    for path in site.journal.segments()[1:]:
        path.unlink()
    with (
        closing(sqlite3.connect(site.path)) as source,
        closing(sqlite3.connect(backup := site.path.with_name("kept"))) as kept,
    ):
        source.backup(kept)
    disk.error = None
    run(commit(store, "g", entity("e2", "v2"), entity("gone", "v2"), entity("e1", "v3")))
    if more:
        run(commit(store, "g", entity("e4", "v1")))
    head = site.head(store)
    site.close()
    assert [(2, 7)] == [
        (record.before.seq, record.after.seq) for record in site.records()[1:2] if isinstance(record, Commit)
    ]

    site.set_back(backup)
    held = site.held()

    assert (head.cursor, head.digest) == (held.head.cursor, held.head.digest)
    assert [("e1", "v3"), ("e2", "v2"), ("gone", "v2")] == sorted(
        (row.id, row.version) for row in held.span if row.id != "e4"
    )
    assert DEVICE not in {row.via for row in held.span}


def what_is_acknowledged_outlives_the_database(site: Site) -> None:
    """At the moment of every ack the machine is taken away, and what is left is the journal."""
    site.write("e0")
    backup = site.backup()
    store = site.open()
    for number in range(1, 4):
        run(commit(store, "g", entity(f"e{number}", "v1")))
        left = Site(site.path.with_name(f"left-{number}"))
        left.path.parent.mkdir()
        shutil.copy(backup, left.path)
        shutil.copytree(site.journal.folder, left.journal.folder)
        assert {f"e{n}" for n in range(number + 1)} == names(left.held())


def test_what_is_acknowledged_is_in_the_journal(site: Site) -> None:
    what_is_acknowledged_outlives_the_database(site)


def test_every_commit_is_on_the_disk_once_and_what_is_only_a_help_is_not_waited_for(site: Site) -> None:
    disk = Disk()
    store = site.open(journal=Journal(f"{site.path}.journal", sync=disk))
    run(commit(store, "g", entity("e1")))
    before = disk.synced
    run(commit(store, "g", entity("e2"), entity("e3")))
    assert before + 1 == disk.synced

    async def remember(device: Device) -> None:
        async with store.transaction("g", write=True) as tx:
            await tx.write(Writes(device=("phone", device)))

    records = len(site.records())
    run(remember(Device(acked=1, mark="m")))
    run(read(store, "g", Reads()))
    assert (before + 1, records) == (disk.synced, len(site.records()))
    run(remember(Device(acked=1, mark="m", pushed="i:1:a")))
    assert (before + 1, records + 1) == (disk.synced, len(site.records()))


def test_what_was_undone_is_not_in_the_journal_and_does_not_come_back(site: Site) -> None:
    store = site.open()
    run(commit(store, "g", entity("e1")))

    async def undone() -> None:
        async with store.transaction("g", write=True) as tx:
            await add(tx, entity("e2"))
            raise Undo

    with suppress(Undo):
        run(undone())
    run(commit(store, "g", entity("e3")))
    site.set_back(None)

    assert {"e1", "e3"} == names(site.held())


def test_a_commit_that_failed_is_not_in_the_journal(site: Site) -> None:
    connections: list[sqlite3.Connection] = []
    store = site.open(on_connect=connections.append)
    run(commit(store, "g", entity("e1", "v1")))

    async def fails() -> None:
        async with store.transaction("g", write=True) as tx:
            await add(tx, entity("e2", "v1"))
            for connection in connections:
                if connection.in_transaction:
                    connection.execute("PRAGMA defer_foreign_keys = ON")
                    connection.execute("INSERT INTO devices VALUES (99, 'd', 0, 0, '', '')")

    with pytest.raises(Exception, match="commit"):
        run(fails())
    site.set_back(None)

    assert {"e1"} == names(site.held())


def test_a_process_that_died_between_the_commit_and_the_journal_has_told_nobody_and_loses_nothing(site: Site) -> None:
    site.write("e1")
    store = site.open(journal=Journal(f"{site.path}.journal", sync=Disk()))
    store._file.commits.committed = lambda commits: os.abort() if not commits else None  # nothing is written down
    run(commit(store, "g", entity("e2", note="e2"), entity("e1", note="later")))
    head = site.head(store)
    site.close()
    assert 1 == len([record for record in site.records() if isinstance(record, Commit)])

    site.open()
    site.close()
    site.set_back(None)
    held = site.held()

    assert head.cursor == held.head.cursor
    assert head.digest == held.head.digest
    assert {"e1", "e2"} == names(held)


# --- set back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torn", [False, True])
def test_a_graph_that_the_journal_never_heard_of_is_in_it_after_the_next_start(site: Site, torn: bool) -> None:
    store = site.open()
    [segment] = site.journal.segments()
    run(commit(store, "g", entity("e1", "v1")))
    site.close()
    # So a process leaves it that dies over its very first commit; or before, over the beginning of the journal.
    whole = segment.read_bytes()
    segment.write_bytes(whole[:40] if torn else whole[: 12 + int.from_bytes(whole[4:8], "big")])
    if torn:
        site.set_back(None)
        site.write("e1")
    else:
        site.open()
    site.set_back(None)

    assert {"e1"} == names(site.held())


def test_a_segment_that_was_begun_says_nothing_of_what_was_to_be_written_to_it(site: Site) -> None:
    disk = Disk()
    store = site.open(journal=Journal(f"{site.path}.journal", segment_bytes=1, sync=disk))
    run(commit(store, "g", entity("e1")))
    disk.error = OSError(5, "input/output error")
    with pytest.raises(StoreError, match="kept outside as well"):
        run(commit(store, "g", entity("e2")))
    site.close()
    site.open()  # another process, which is sent e2 again, and finds it
    site.set_back(None)

    assert {"e1", "e2"} == names(site.held())


def test_a_journal_is_known_by_an_empty_graph_if_it_never_heard_of_the_one_that_has_rows(site: Site) -> None:
    store = site.open()
    run(read(store, "empty", Reads()))
    site.close()
    site.lose("journal")
    site.open()  # begins another one
    site.close()
    [segment] = site.journal.segments()
    whole = segment.read_bytes()
    site.write("e1")
    segment.write_bytes(whole)

    assert {"e1"} == names(site.held())
    site.set_back(None)
    assert {"e1"} == names(site.held())


def test_a_file_that_was_set_back_is_as_it_was_and_no_cursor_breaks(site: Site) -> None:
    site.write("e1", "e2")
    backup = site.backup()
    site.write("e1", "e3")
    before = site.held()
    site.set_back(backup)
    store = site.open()
    [(graph, replay)] = store.happened
    site.close()
    after = site.held()

    assert (before.head, before.span, before.lines) == (after.head, after.span, after.lines)
    assert ("g", "replay", {"after": 2, "rows": 2, "offered": 0}) == (graph, replay.kind, replay.told)
    assert ["replay"] == kinds(after)
    # Once is enough.
    store = site.open()
    assert () == store.happened


def test_a_file_may_be_set_back_as_often_as_one_likes_and_goes_on_in_between(site: Site) -> None:
    backups: list[Path | None] = [None]
    wanted: set[str] = set()
    for number in range(6):
        site.write(f"e{number}", "hot")
        wanted |= {f"e{number}", "hot"}
        backups.append(site.backup())
        site.set_back(backups[number * 7 % len(backups)])
    held = site.held()

    assert wanted == names(held)
    assert 12 == held.head.seq
    assert 1 == len({event.told.get("epoch") for event in held.events})  # no new epoch: nothing was ever missing


def test_a_graph_that_is_younger_than_the_backup_comes_back_under_its_name(site: Site) -> None:
    site.write("e1")
    backup = site.backup()
    young = site.write("e2", graph="young")
    site.set_back(backup)

    assert young == site.held("young").head
    assert {"e1"} == names(site.held("g"))


def test_a_file_that_is_gone_comes_back_from_the_journal_alone(site: Site) -> None:
    head = site.write("e1", "e2")
    site.set_back(None)

    assert head == site.held().head


def test_what_is_known_of_the_pushes_of_devices_comes_back(site: Site) -> None:
    site.write("e1")
    backup = site.backup()
    store = site.open()

    async def push() -> None:
        async with store.transaction("g", write=True) as tx:
            await add(tx, entity("e2"))
            await tx.write(Writes(device=("phone", Device(served=2, pushed="i:1:a"))))
        async with store.transaction("g", write=True) as tx:
            await tx.write(Writes(device=("phone", Device(served=2, pushed="i:2:b"))))

    run(push())
    site.set_back(backup)

    assert Device(served=2, pushed="i:2:b") == site.held().device


def test_events_and_epochs_come_back_with_the_log(site: Site) -> None:
    site.write("e1")
    backup = site.backup()
    store = site.open()
    fork = Event(kind="fork", key="f2", at=5, told={"epoch": "f2"})

    async def note() -> None:
        async with store.transaction("g", write=True) as tx:
            head = (await tx.read(Reads())).head
            await tx.write(Writes(head=replace(head, epoch="f2"), events=(fork,)))

    run(note())
    run(commit(store, "g", entity("e2")))
    head = site.head(store)
    site.set_back(backup)
    held = site.held()

    assert ("f2", head) == (held.head.epoch, held.head)
    assert fork in held.events


def test_a_line_of_the_log_that_is_not_the_one_that_is_there_now_is_offered(site: Site) -> None:
    server = Server(site.open())
    base = thing("lamp", at(0), {"a": 0})
    server.push(base)
    backup = site.backup()
    server = Server(site.open())
    theirs = replace(base, version=at(1), content=thing("x", "v", {"a": 1}).content, parent_versions=(base.version,))
    server.push(theirs, thing("lost", at(1)))
    loser = replace(theirs, version=at(0.5), name="old", parent_versions=())
    assert ["lost_kept"] == [ack.outcome for ack in server.push(loser).acks]
    site.set_back(backup)
    # Somebody serves it without a journal for a while.
    server = Server(site.open(journal=False))
    ours = replace(
        base, version=at(9), content=thing("x", "v", {"a": 0, "b": 1}).content, parent_versions=(base.version,)
    )
    server.push(ours)
    site.close()
    store = site.open()
    [(_, replay)] = store.happened[:1]
    held = run(read(store, "default", Reads(history=("lamp",), span=ALL)))
    site.close()

    assert {"after": 2, "rows": 0, "offered": 4} == replay.told
    rows = {row.version: row for row in held.history["lamp"]}
    assert {base.version, theirs.version, loser.version, ours.version} < rows.keys()
    assert b'{"a":1,"b":1}' == bytes(next(row for row in rows.values() if row.current).entity().content)
    assert {DEVICE} == {rows[version].via for version in (theirs.version, loser.version)}
    assert {"lamp", "lost"} == names(held)
    # And this, too, is in the journal.
    site.set_back(None)
    assert held.head.cursor == site.held("default").head.cursor
    assert () == site.open().happened[1:]


@pytest.mark.parametrize("since", [("one", "two", "three"), ("other",)])
def test_nothing_comes_at_or_before_a_time_that_the_journal_knows_of(site: Site, since: tuple[str, ...]) -> None:
    """PROTOCOL 1.8. By a clock that is far back, the rows of one commit are closer together than those of several."""

    def push(*names: str, **options: Any) -> int:
        server = Server(site.open(**options))
        server.now = NOW if names == ("lamp",) else 0
        stamp = server.push(*(thing(name, at(0)) for name in names)).head.stamp
        site.close()
        return stamp

    site.options = {"heads": False, "clock": int}
    push("lamp")
    backup = site.backup()
    told = [push(name) for name in ("one", "two", "three")]
    site.set_back(backup)
    assert push(*since, journal=False) < told[-1]  # somebody serves it without a journal for a while

    assert told[-1] <= site.held("default").head.stamp
    assert told[-1] < push("four")


def test_a_journal_that_begins_later_than_the_backup_gives_back_what_it_has(site: Site) -> None:
    site.write("e1")
    backup = site.backup()
    site.write("e2")
    site.lose("journal")
    site.write("e3", "e1")
    site.set_back(backup)
    held = site.held(heads=False)

    assert {"e1", "e3"} == names(held)
    assert {DEVICE} == {row.via for row in run(read(site.open(), "g", Reads(seqs=(2, 3)))).seqs.values()}


def test_a_database_that_went_on_without_its_journal_is_in_it_again(site: Site) -> None:
    site.write("e1")
    site.write("e2", "e1", journal=False)
    head = site.write("e3")
    site.set_back(None)
    held = site.held()

    assert (head.cursor, head.digest) == (held.head.cursor, held.head.digest)
    assert {"e1", "e2", "e3"} == names(held)


def test_many_rows_come_back_in_pieces(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        site.write(f"e{number}", "hot")
    before = site.held()
    site.set_back(None)
    monkeypatch.setattr("inbetweenies.stores.keeper.ROWS_AT_ONCE", 3)

    assert before.span == site.held().span


# --- torn files ---------------------------------------------------------------------------------------------------


@given(data=st.data())
def test_whatever_is_torn_off_or_written_over_the_rest_is_read(data: st.DataObject) -> None:
    payloads = data.draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    whole = b"".join(framed(payload) for payload in payloads)
    assert payloads == list(unframed(whole))
    cut = data.draw(st.integers(0, len(whole)))
    found = list(unframed(whole[:cut]))
    assert payloads[: len(found)] == found
    junk = data.draw(st.binary(max_size=30).filter(lambda text: journals.MAGIC[:1] not in text))
    assert payloads == list(unframed(junk + junk.join(framed(payload) for payload in payloads) + junk))


def test_a_record_whose_end_is_missing_was_never_acknowledged(site: Site) -> None:
    site.write("e1")
    backup = site.backup()
    site.write("e2")
    end = site.journal.segments()[0].stat().st_size
    site.write("e3")
    [segment] = site.journal.segments()
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 1)
    site.set_back(backup)
    site.lose("heads")

    assert {"e1", "e2"} == names(site.held())
    # What is written after that stands behind the torn record and is found.
    site.write("e4")
    site.set_back(None)
    assert {"e1", "e2", "e4"} == names(site.held())
    assert end < segment.stat().st_size


def test_a_flipped_bit_costs_one_record_and_the_rest_comes_back(site: Site) -> None:
    site.write("e1")
    backup = site.backup()
    sizes = []
    for number in range(2, 5):
        sizes.append(site.journal.segments()[0].stat().st_size)
        site.write(f"e{number}")
    [segment] = site.journal.segments()
    data = bytearray(segment.read_bytes())
    data[sizes[1] + 40] ^= 1
    segment.write_bytes(bytes(data))
    site.set_back(backup)
    site.lose("heads")

    assert {"e1", "e2", "e4"} == names(site.held())


def test_a_segment_whose_beginning_is_torn_is_read_with_the_one_before(tmp_path: Path) -> None:
    site = Site(tmp_path, journal=Journal(tmp_path / "home.db.journal", segment_bytes=1))
    heads = [site.write(f"e{number}") for number in range(3)]
    segments = site.journal.segments()
    assert ["00000001", "00000002", "00000003", "00000004"] == [path.stem for path in segments]
    data = segments[-1].read_bytes()
    segments[-1].write_bytes(b"torn" + data[10:])
    assert [None] == [segment.opening for segment in site.journal.everything()[-1:]]
    site.set_back(None)

    assert heads[-1].cursor == site.held().head.cursor
    site.close()


def test_rows_that_had_other_fields_then_are_read_by_their_names() -> None:
    writes = log_of(Head(epoch="e"), {}, (entity("e1"), edge("x", None, "e1", "e1")))
    record = commit_of(
        "g", "b", Cursor("e", 0, bytes(16)), writes.head.cursor if writes.head else Cursor("", 0, b""), [writes]
    )
    fields = Row.__struct_fields__
    assert [writes] == writes_of(record, fields)

    bodies = journals._bodies.decode(record.writes)
    swapped = tuple((row[1], row[0], *row[2:], "from a newer release") for row in bodies[0].rows)
    other = replace(record, writes=Raw(journals._encode((replace(bodies[0], rows=swapped),))))
    assert [writes] == writes_of(other, (fields[1], fields[0], *fields[2:], "new_field"))


# --- segments -----------------------------------------------------------------------------------------------------


def test_old_segments_go_when_there_are_too_many_or_they_are_too_old(tmp_path: Path) -> None:
    folder = tmp_path / "home.db.journal"
    site = Site(tmp_path, journal=Journal(folder, segment_bytes=1, bytes_max=1))
    for number in range(4):
        site.write(f"e{number}")
    assert ["00000005"] == [path.stem for path in site.journal.segments()]

    site.options["journal"] = Journal(folder, segment_bytes=1, days_max=30)
    for path in site.journal.segments():
        os.utime(path, (0, 0))
    site.write("e5")
    assert ["00000006"] == [path.stem for path in site.journal.segments()]
    assert {"e0", "e1", "e2", "e3", "e5"} == names(site.held())
    site.close()


def test_two_stores_write_one_journal(site: Site) -> None:
    one, other = site.open(), site.open()
    backup: Path | None = None
    for number in range(6):
        run(commit((one, other)[number % 2], "g", entity(f"e{number}")))
    site.set_back(backup)

    assert {f"e{number}" for number in range(6)} == names(site.held())


def test_a_full_segment_is_left_by_all_who_write_to_it(site: Site) -> None:
    stores = [site.open(journal=Journal(f"{site.path}.journal", segment_bytes=2_000)) for _ in range(2)]
    for number in range(12):
        run(commit(stores[number % 2], "g", entity(f"e{number}")))
    site.close()
    sizes = [path.stat().st_size for path in site.journal.segments()]

    assert len(sizes) > 2
    assert all(size < 5_000 for size in sizes)
    site.set_back(None)
    assert 12 == len(names(site.held()))


@pytest.mark.parametrize("pruned", [False, True])
def test_who_still_writes_to_an_older_segment_goes_on_in_the_newest(site: Site, pruned: bool) -> None:
    disk = Disk()
    one, other = site.open(journal=Journal(f"{site.path}.journal", sync=disk)), site.open()
    for store in (one, other):
        run(commit(store, "g", entity(f"e{store is one}")))
    disk.error = OSError(5, "broken")
    with pytest.raises(StoreError):
        run(commit(one, "g", entity("doubtful")))
    disk.error = None
    run(commit(one, "g", entity("next")))
    with closing(sqlite3.connect(site.path)) as source, closing(sqlite3.connect(f"{site.path}-kept")) as target:
        source.backup(target)
    if pruned:
        site.journal.segments()[0].unlink()
    for number in range(3):
        run(commit(other, "g", entity(f"other{number}")))
    site.set_back(Path(f"{site.path}-kept"))

    assert {"other0", "other1", "other2"} < names(site.held())


def test_the_last_commit_is_found_whichever_of_two_processes_notes_its_own_first(site: Site) -> None:
    site.write("e1")
    early = site.write("e2")
    backup = site.backup()
    late = site.write("e3")
    (path,) = site.journal.segments()
    opening, *others, second, third = unframed(path.read_bytes())
    path.write_bytes(b"".join(map(framed, (opening, *others, third, second))))
    assert {"g": late.cursor} == {graph: end for graph, (_, end) in journals.ends(site.journal.newest()).items()}
    site.set_back(backup)

    assert early.seq < late.seq
    assert {"e1", "e2", "e3"} == names(site.held())


def test_no_segment_goes_from_amid_those_that_stay(tmp_path: Path) -> None:
    site = Site(tmp_path, journal=Journal(tmp_path / "home.db.journal", segment_bytes=1, days_max=30))
    for number in range(3):
        site.write(f"e{number}")
    before = site.journal.segments()
    for path in before[1:]:
        os.utime(path, (0, 0))  # a process still writes to the first one
    site.write("e3")

    assert before == site.journal.segments()[:-1]


def test_only_its_owner_can_read_what_is_kept(site: Site) -> None:
    site.write("e1")
    kept = [path for end in ("journal", "heads") for path in Path(f"{site.path}.{end}").rglob("*")]

    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in kept}
    assert {0o700} == {stat.S_IMODE(Path(f"{site.path}.{end}").stat().st_mode) for end in ("journal", "heads")}


def test_a_journal_that_cannot_be_written_or_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    site = Site(tmp_path, journal=tmp_path / "file" / "journal")
    with pytest.raises(StoreError, match="expected to write to the journal"):
        site.open()
    site.close()
    folder = tmp_path / "odd"
    (folder / "00000001.journal").mkdir(parents=True)
    (folder / "notes.txt").write_text("not ours")
    with pytest.raises(StoreError, match="expected to read the journal"):
        SqliteStore(tmp_path / "other.db", journal=folder)


# --- whose is it --------------------------------------------------------------------------------------------------


def test_the_journal_of_another_database_is_refused_and_nothing_is_done(tmp_path: Path) -> None:
    one, other = Site(tmp_path / "one"), Site(tmp_path / "other")
    for site in (one, other):
        site.path.parent.mkdir()
        site.write("e1")
    before = one.held()
    for wrong in (Path(f"{other.path}.journal"),):
        with pytest.raises(StoreError, match="another database"):
            one.open(journal=wrong)
        assert 1 == len(other.records())
    assert before == one.held()

    # A graph of another name does not make it ours.
    third = Site(tmp_path / "third")
    third.path.parent.mkdir()
    third.write("e1", graph="other")
    with pytest.raises(StoreError, match="another database"):
        one.open(journal=Path(f"{third.path}.journal"))
    # An empty database takes the journal of one that is gone, not of one that is there.
    empty = Site(tmp_path / "empty")
    empty.path.parent.mkdir()
    with pytest.raises(StoreError, match="another database"):
        empty.open(journal=Path(f"{other.path}.journal"))
    other.path.unlink()
    assert {"e1"} == names(empty.held(journal=Path(f"{other.path}.journal")))


def test_a_backup_from_before_graphs_had_a_birth_is_of_the_same_database(site: Site) -> None:
    with closing(sqlite3.connect(site.path)) as connection:
        connection.executescript((Path(__file__).parent / "schema_1.sql").read_text())
    backup = site.backup()
    site.write("e2")
    site.set_back(backup)

    assert {"e1", "e2"} == names(site.held())


# --- on purpose ---------------------------------------------------------------------------------------------------


def discarded(site: Site, backup: Path | None) -> None:
    site.set_back(backup)
    site.open(discard=True)
    site.close()


def test_what_was_taken_back_on_purpose_does_not_come_back_from_the_journal(site: Site) -> None:
    first = site.write("e1")
    backup = site.backup()
    lost = site.write("e2")
    site.write("e3", graph="young")
    discarded(site, backup)
    held = site.held()

    assert {"e1"} == names(held)
    [event] = [event for event in held.events if event.kind == "discard"]
    assert (first.epoch, 1, first.epoch) == (event.told["old"], event.told["seq"], event.told["epochs"])
    assert event.told["epoch"] == held.head.epoch
    assert ["discard"] == kinds(held)
    assert set() == names(site.held("young"))
    # What comes after that is kept as ever, also when the file is set back by accident, to before or after that.
    site.write("e4")
    later = site.backup()
    site.write("e5")
    for store in (later, backup, None):
        site.set_back(store)
        assert {"e1", "e4", "e5"} == names(site.held())
    assert lost.cursor != site.held().head.cursor


def test_epochs_that_only_the_journal_or_the_ends_know_of_are_taken_back_too(site: Site) -> None:
    site.write("e1")
    backup = site.backup()
    store = site.open()

    async def renew(epoch: str) -> None:
        async with store.transaction("g", write=True) as tx:
            head = (await tx.read(Reads())).head
            await tx.write(replace(log_of(replace(head, epoch=epoch), {}, (entity(epoch),)), events=()))

    run(renew("e2"))
    run(renew("e3"))
    site.set_back(backup)
    store = site.open(discard=True)
    [(_, event)] = store.happened
    assert {"e2", "e3"} < set(str(event.told["epochs"]).split())
    # While a server runs, it can be said as well.
    again = run(store.discard_after("g"))
    assert again is not None
    assert None is run(store.discard_after("no such graph"))
    assert again.told["old"] == event.told["epoch"]
    # The same backup once more, which knows nothing of that.
    site.set_back(backup)
    store = site.open(discard=True)
    [(_, last)] = store.happened
    assert {"e2", "e3", event.told["epoch"]} < set(str(last.told["epochs"]).split())


def test_without_journal_and_ends_one_can_say_so_too(site: Site) -> None:
    site.write("e1")
    site.close()
    store = site.open(journal=False, heads=False, discard=True)

    assert ["discard"] == [event.kind for _, event in store.happened]


# --- the sender's side of it --------------------------------------------------------------------------------------


def test_a_cursor_and_a_witness_hold_across_a_file_that_was_set_back(site: Site) -> None:
    server = Server(site.open())
    server.push(thing("a", at(0)))
    backup = site.backup()
    server = Server(site.open())
    head = server.push(thing("b", at(1))).head
    site.set_back(backup)
    server = Server(site.open())
    answer = server.pull(
        cursor=head.cursor, witness=head.cursor, features=frozenset({"acks", "digest", "edges", "paging", "witness"})
    )

    assert (False, head) == (answer.resync, answer.head)
    assert rewind.holds(server.held(Reads(chains=(2,))), head.cursor)
    assert NOW < head.stamp + 1


def test_opening_a_segment_notes_where_every_graph_ends(site: Site) -> None:
    heads = {graph: site.write("e1", graph=graph) for graph in ("a", "b")}
    site.options["journal"] = Journal(f"{site.path}.journal", segment_bytes=1)
    site.write("e2", graph="b")
    last: Segment = site.journal.everything()[-1]
    assert isinstance(last.opening, Opening)

    assert {"a", "b"} == set(last.opening.heads)
    assert heads["a"].cursor == last.opening.heads["a"][1]
    assert str(site.path) == last.opening.database
