"""A backup takes the place of a database: all of it or nothing, and what was there before is kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inbetweenies.errors import StoreBusy, StoreError, StoreFull
from inbetweenies.model import Head
from inbetweenies.ops import restore as module
from inbetweenies.ops.backup import backup
from inbetweenies.ops.manifest import Mark, manifest_of, read
from inbetweenies.ops.restore import restore
from inbetweenies.ops.verify import BackupRefused, verify
from inbetweenies.stores import placing
from inbetweenies.stores import sqlite as stores
from inbetweenies.stores.schema import prepare
from inbetweenies.stores.status import status
from inbetweenies.testing.store_tests import commit, entity, run
from tests.ops.files import alone, left_behind
from tests.ops.kill import killed
from tests.server.calls import ROOT, environment, running
from tests.stores.test_journal import Site, kinds, names


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def kept(site: Site) -> Path:
    """A backup, as made by the command."""
    return backup(site.path, site.path.with_name("kept.db")).path


def rows(path: Path) -> list[tuple[Any, ...]]:
    """What the database at `path` holds by itself, whatever lies beside it."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT seq, id, version, hex(chain) FROM log ORDER BY graph, seq").fetchall()


def test_what_came_after_comes_back_from_the_journal(site: Site) -> None:
    site.write("e1")
    file = kept(site)
    site.write("e2", "e3")
    before = rows(site.path)
    done = restore(file, site.path)

    assert (1, site.journal.folder, ()) == (done.manifest.graphs[0].seq, done.journal, done.discarded)
    assert before[:1] == rows(site.path)
    assert 0o600 == stat.S_IMODE(site.path.stat().st_mode)
    held = site.held()
    assert ({"e1", "e2", "e3"}, ["replay"]) == (names(held), kinds(held))
    assert before == rows(site.path)
    [aside] = done.aside
    assert before == rows(aside)
    assert "good" == verify(file).kind


def test_what_came_after_stays_away_if_that_was_asked_for(site: Site) -> None:
    site.write("e1")
    file = kept(site)
    epoch = site.write("e2").epoch
    done = restore(file, site.path, discard=True)

    assert [("g", "discard", 1)] == [(name, event.kind, event.told["seq"]) for name, event in done.discarded]
    held = site.held()
    assert ({"e1"}, ["discard"]) == (names(held), kinds(held))
    assert epoch != held.head.epoch
    assert not [path for path in site.path.parent.iterdir() if "part" in path.name or path.name.endswith("-wal")]
    file = backup(site.path, site.path.with_name("second.db")).path
    site.write("e4")
    restore(file, site.path)
    assert {"e1", "e4"} == names(site.held())  # what is restored once more comes back, what was discarded does not


def test_what_a_process_left_beside_it_goes_aside_with_it(site: Site) -> None:
    site.write("e1")
    file = kept(site)
    left_behind(site, "ghost")
    (site.path.with_name("home.db-journal")).write_bytes(b"")
    done = restore(file, site.path)
    site.lose("journal", "heads")

    assert ["home.db", "home.db-journal", "home.db-shm", "home.db-wal"] == [path.name for path in done.aside]
    assert {"e1"} == names(site.held())
    assert ["e1", "ghost"] == [row[1] for row in rows(done.aside[0])]  # and there it is whole


@pytest.mark.parametrize("ends", [(), ("-shm", "-journal")])
def test_a_restore_that_leaves_the_write_ahead_log_would_be_seen(
    site: Site, monkeypatch: pytest.MonkeyPatch, ends: tuple[str, ...]
) -> None:
    site.write("e1")
    file = kept(site)
    left_behind(site, "ghost")
    monkeypatch.setattr(placing, "LEFTOVERS", ends)
    restore(file, site.path)
    site.lose("journal", "heads")

    assert ["e1", "ghost"] == [row[1] for row in rows(site.path)]  # what was to be undone is there again


def test_a_server_that_has_it_open_is_left_alone(site: Site) -> None:
    site.write("e1")
    file = kept(site)
    site.write("e2")
    with running(["-m", "inbetweenies.cli", "serve", "--port", "0", "--db", str(site.path), "--no-auth"]):
        files = alone(site.path.parent)
        with pytest.raises(StoreBusy, match=r"expected nobody to have .*home.db open; a server or another command has"):
            restore(file, site.path, discard=True)
        assert files == alone(site.path.parent)
    assert {"e1", "e2"} == names(site.held())


@pytest.mark.parametrize(
    ("says", "work"),
    [
        ("missing", lambda file: file.unlink()),
        ("truncated", lambda file: os.truncate(file, 1000)),
        ("altered", lambda file: file.write_bytes(file.read_bytes() + b"\0")),
        ("foreign", lambda file: file.write_text("junk" * 50_000)),
        ("unfinished", lambda file: manifest_of(file).unlink()),
        ("unfinished", lambda file: manifest_of(file).write_text("junk")),
    ],
)
@pytest.mark.parametrize("discard", [False, True])
def test_a_backup_that_is_not_good_changes_nothing(
    site: Site, says: str, work: Callable[[Path], object], discard: bool
) -> None:
    site.write("e1")
    file = kept(site)
    head = site.write("e2")
    work(file)
    files = alone(site.path.parent)

    with pytest.raises(BackupRefused, match=f"good backup at .*kept.db; it is {says}: "):
        restore(file, site.path, discard=discard)
    assert files == alone(site.path.parent)
    assert head == site.held().head


def test_the_backup_of_another_database_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = Site(tmp_path / "b")
    other.write("e9")
    site.write("e1")
    files = alone(site.path.parent)

    with pytest.raises(StoreError, match="got that of another database"):
        restore(kept(other), site.path)
    assert files == alone(site.path.parent)
    site.lose("journal", "heads")
    restore(tmp_path / "b" / "kept.db", site.path)  # it is meant
    assert {"e9"} == names(site.held())


def test_a_place_where_nothing_is_gets_one(site: Site, tmp_path: Path) -> None:
    head = site.write("e1")
    file = kept(site)
    (tmp_path / "new").mkdir()
    new = Site(tmp_path / "new")
    done = restore(file, new.path)

    assert ((), None) == (done.aside, done.journal)
    assert head == new.held().head
    with pytest.raises(StoreError, match="expected to write to"):
        restore(file, tmp_path / "nowhere" / "home.db")


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(site: Site, tmp_path: Path) -> None:
    site.write("e1")
    file = kept(site)
    site.write("e2")
    (tmp_path / "far").mkdir()
    far = tmp_path / "far" / "real.db"
    site.path.rename(far)
    site.path.symlink_to(far)
    [aside] = restore(file, site.path).aside

    assert (True, far.parent) == (site.path.is_symlink(), aside.parent.parent)
    assert ["e1"] == [row[1] for row in rows(far)]
    assert {"e1", "e2"} == names(site.held())  # its journal is found where it was


def test_no_room_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("e1")
    file = kept(site)
    site.write("e2")
    files = alone(site.path.parent)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(StoreFull, match=r"expected to copy .*kept.db to .*; make room, then try again"):
        restore(file, site.path)
    assert files == alone(site.path.parent)


# --- in the middle of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["restore", "discard"])
@pytest.mark.parametrize("wal", [False, True])
def test_kill_9_leaves_the_old_or_the_new_database(tmp_path: Path, verb: str, wal: bool) -> None:
    base = tmp_path / "base"
    base.mkdir()
    site = Site(base)
    site.write("e1")
    backup(site.path, base / "backup.db")
    site.write("e2")
    if wal:
        left_behind(site, "e3")
    states = []
    for folder in killed(tmp_path, verb):
        bare = tmp_path / f"bare-{folder.name}"
        shutil.copytree(folder, bare)
        shutil.rmtree(bare / "home.db.journal")
        shutil.rmtree(bare / "home.db.heads", ignore_errors=True)
        here = Site(bare)
        held = here.held(heads=False, journal=False)
        states.append("".join(sorted(names(held))))
        assert not placing.waiting(here.path).exists()
        # With its journal nothing is lost that was acknowledged, but what was to stay away.
        whole = names(Site(folder).held())
        if verb == "discard" and states[-1] == "e1":
            assert {"e1"} == whole
        else:
            assert {"e1", "e2"} <= whole

    old = "e1e2e3" if wal else "e1e2"
    assert {old, "e1"} == set(states)
    assert states == sorted(states, key=lambda state: state == "e1")  # first the one, then the other


def test_what_was_interrupted_is_ended_by_whoever_comes_next(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("e1")
    file = kept(site)
    left_behind(site, "e2")
    with monkeypatch.context() as patch:
        patch.setattr(placing, "_finish", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            restore(file, site.path)
    with pytest.raises(StoreError, match="a restore of it was interrupted: start a server, which ends it"):
        status(site.path)
    again = backup(site.path, site.path.with_name("again.db"))

    assert 1 == again.manifest.graphs[0].seq
    [aside] = site.path.parent.glob("home.db.before-*")
    assert ["e1", "e2"] == [row[1] for row in rows(aside / "home.db")]
    assert 1 == status(site.path).graphs[0].seq


def test_whoever_waited_for_it_opens_the_new_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("e1")
    file = kept(site)
    site.write("e2")
    site.lose("journal", "heads")
    times: list[int] = []

    def late(connection: sqlite3.Connection) -> None:
        # The old file is open here already; no lock is held on it yet.
        if not times:
            restore(file, site.path)
        times.append(1)
        prepare(connection)

    monkeypatch.setattr(stores, "prepare", late)
    store = site.open(journal=False, heads=False)

    assert (2, 1) == (len(times), site.head(store).seq)


def test_while_it_is_exclusive_nobody_can_open_it(site: Site) -> None:
    site.write("e1")
    site.write("e2")
    command = "from inbetweenies.stores import SqliteStore; import sys; SqliteStore(sys.argv[1], busy_timeout_ms=1)"
    with placing.exclusive(site.path):
        assert "StoreBusy" in says(command, site.path)
        assert "StoreBusy" in says(
            "import sys; from pathlib import Path; from inbetweenies.stores.placing import *\n"
            "with exclusive(Path(sys.argv[1])): pass",
            site.path,
        )
    assert "" == says(command, site.path)


def says(code: str, path: Path) -> str:
    """What a process of its own says on standard error."""
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False).stderr


def test_a_file_that_was_replaced_before_it_was_locked_is_not_taken_for_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("e1")
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)

    with pytest.raises(StoreBusy), placing.exclusive(site.path):
        pass


def test_whoever_comes_second_to_what_was_interrupted_finds_it_done(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("e1")
    file = kept(site)
    site.write("e2")
    shutil.copy(file, placing.waiting(site.path))
    real = placing.exclusive

    def late(path: Path) -> Any:
        monkeypatch.setattr(placing, "exclusive", real)
        placing.finish(path)  # somebody else is faster
        return real(path)

    monkeypatch.setattr(placing, "exclusive", late)
    placing.finish(site.path)
    assert ["e1"] == [row[1] for row in rows(site.path)]
    assert 1 == len(list(site.path.parent.glob("home.db.before-*")))


def test_what_is_to_be_discarded_is_in_the_file_or_nothing_is_done(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("e1")
    file = kept(site)
    site.write("e2")
    files = alone(site.path.parent)
    opened: list[sqlite3.Connection] = []
    monkeypatch.setattr(stores, "_close", opened.append)  # so that the log is not written back

    with pytest.raises(StoreError, match="expected to write what is discarded"):
        restore(file, site.path, discard=True)
    assert files == alone(site.path.parent)
    monkeypatch.undo()
    for connection in opened:
        connection.close()
    assert {"e1", "e2"} == names(site.held())


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (module, "fsync", 1),
        *[(placing, "sync_folder", call) for call in (1, 2, 3)],
        *[(placing, "_set_aside", call) for call in (1, 2, 3)],
    ],
)
def test_a_disk_that_fails_at_any_step_leaves_the_old_or_the_new_database(
    site: Site, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int
) -> None:
    site.write("e1")
    file = kept(site)
    left_behind(site, "e2")
    real, calls = getattr(module, name), iter(range(1, 10))

    def full(*given: Any, **more: Any) -> Any:
        if next(calls) == call:
            raise OSError(28, "No space left on device")
        return real(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(StoreFull, match="make room, then try again"):
            restore(file, site.path)
    site.lose("journal", "heads")
    begun = placing.waiting(site.path).exists() or (call == 3 and name == "sync_folder")
    assert begun == (name != "fsync")
    assert ({"e1"} if begun else {"e1", "e2"}) == names(site.held())
    assert not placing.waiting(site.path).exists()
    restore(file, site.path)
    assert {"e1"} == names(site.held())


def test_where_no_file_can_have_two_names_the_old_one_is_moved(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("e1")
    file = kept(site)
    site.write("e2")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    [aside] = restore(file, site.path).aside

    assert [["e1"], ["e1", "e2"]] == [[row[1] for row in rows(path)] for path in (site.path, aside)]


# --- at any time --------------------------------------------------------------------------------------------------


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["g", "h"]), st.booleans()), min_size=1, max_size=8),
    data=st.data(),
)
def test_a_backup_made_between_any_commits_is_a_prefix_and_the_rest_comes_back(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, bool]], data: st.DataObject
) -> None:
    """Commits, backups and restores in any order; a store that stays open, or not."""
    folder = tmp_path_factory.mktemp("any")
    site = Site(folder)
    site.write("e0")
    made: list[Path] = []
    heads: list[Head] = []
    for number, (what, graph, stays_open) in enumerate(steps):
        if what < 2:
            store = site.open()
            run(commit(store, graph, entity(f"e{number % 3}", f"v{number}"), entity(f"n{number}", "v1")))
            heads.append(site.head(store, graph))
            if not stays_open:
                site.close()
        elif what == 2 or not made:
            made.append(backup(site.path, folder / f"b{number}.db").path)
        else:
            site.close()
            restore(data.draw(st.sampled_from(made)), site.path)
            site.open()  # a server is started again
    made.append(backup(site.path, folder / "last.db").path)
    site.close()
    whole = rows(site.path)
    for file in made:
        restore(file, site.path)
        part = rows(site.path)
        assert set(part) <= set(whole)
        # Chains prove that what comes before is the same; so these are the beginnings of both logs.
        assert [(graph, mark.seq) for graph, mark in marks(file).items() if mark.seq] == lengths(site.path)
        site.open()
        site.close()
        assert whole == rows(site.path)


def marks(file: Path) -> dict[str, Mark]:
    return {mark.graph: mark for mark in read(manifest_of(file)).graphs}


def lengths(path: Path) -> list[tuple[str, int]]:
    with closing(sqlite3.connect(path)) as connection:
        asked = "SELECT name, count(*) FROM graphs JOIN log USING (graph) GROUP BY name HAVING count(*) = max(log.seq)"
        return connection.execute(asked).fetchall()
