"""Backups are made of a database that others write to; they are whole, or not there."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from inbetweenies.errors import LocalProtocolError, StoreCorrupt, StoreError, StoreFull
from inbetweenies.ops import backup as module
from inbetweenies.ops.backup import STALE_SECONDS, Made, backup
from inbetweenies.ops.manifest import encoded, manifest_of, read
from inbetweenies.ops.verify import inspect, verify
from inbetweenies.testing.store_tests import commit, entity, run
from tests.ops.files import left_behind
from tests.ops.kill import killed
from tests.server.calls import ROOT, environment
from tests.stores.test_journal import Site
from tests.support import NOW, SECOND


@pytest.fixture
def site(tmp_path: Path) -> Any:
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    folder = tmp_path / "kept"
    folder.mkdir()
    return folder


def ends(made: Made) -> dict[str, int]:
    return {mark.graph: mark.seq for mark in made.manifest.graphs}


def day(number: int) -> int:
    return NOW + number * 86_400 * SECOND


def test_what_is_committed_meanwhile_is_not_in_it_and_does_not_make_it_begin_again(
    site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGES_AT_ONCE", 1)
    site.write("e1")
    store = site.open()
    seen: list[tuple[int, int]] = []

    def write(done: int, total: int) -> None:
        seen.append((done, total))
        run(commit(store, "g", entity(f"new-{done}", "v1")))

    made = backup(site.path, kept / "b.db", progress=write)

    assert {"g": 1} == ends(made)
    assert [(number, len(seen)) for number in range(1, len(seen) + 1)] == seen
    assert 1 + len(seen) == site.head(store).seq
    assert "good" == verify(made.path).kind


def test_what_is_only_in_the_write_ahead_log_is_in_it(site: Site, kept: Path) -> None:
    store = site.open()
    run(commit(store, "g", entity("e1", "v1")))
    main_file = site.path.read_bytes()

    assert {"g": 1} == ends(backup(site.path, kept / "b.db"))
    assert b"e1" not in main_file


def test_what_a_server_left_that_was_killed_is_in_it(site: Site, kept: Path) -> None:
    left_behind(site, "e1")
    before = site.path.read_bytes()

    assert {"g": 1} == ends(backup(site.path, kept / "b.db"))
    assert before == site.path.read_bytes()  # which is only read


def test_a_backup_that_copies_the_file_without_the_write_ahead_log_would_be_seen(
    site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = site.open()
    run(commit(store, "g", entity("e1", "v1")))
    # As far as it was copied it is a sound database.
    with closing(sqlite3.connect(site.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    run(commit(store, "g", entity("e2", "v1")))
    monkeypatch.setattr(module, "_copy_pages", lambda source, part, progress: shutil.copy(site.path, part))

    with pytest.raises(StoreCorrupt, match=r"expected the copy of .* to end where it does; it does not"):
        backup(site.path, kept / "b.db")
    assert [] == list(kept.iterdir())


def test_it_is_for_its_owner_only_and_one_file_with_nothing_beside_it(site: Site, kept: Path) -> None:
    site.write("e1")
    made = backup(site.path, kept / "b.db", now=day(0))

    assert {made.path, manifest_of(made.path)} == set(kept.iterdir())
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in kept.iterdir()}
    assert made.manifest == read(manifest_of(made.path))
    assert "2026-06-15T09:41:02+00:00" == made.manifest.made[:19] + made.manifest.made[-6:]
    with closing(sqlite3.connect(f"{made.path.as_uri()}?mode=ro", uri=True)) as connection:
        assert 1 == connection.execute("SELECT count(*) FROM log").fetchone()[0]
        assert ("delete",) == connection.execute("PRAGMA journal_mode").fetchone()
    assert {made.path, manifest_of(made.path)} == set(kept.iterdir())


def test_in_a_folder_names_sort_by_time_and_the_oldest_go(site: Site, kept: Path) -> None:
    site.write("e1")
    made = [backup(site.path, kept, now=day(number), keep=3) for number in range(5)]

    assert [one.path for one in made] == sorted(one.path for one in made)
    assert "home-20260615T094102000000Z.db" == made[0].path.name
    assert [(), (), (), (made[0].path,), (made[1].path,)] == [one.removed for one in made]
    assert [one.path for one in made[2:]] == sorted(kept.glob("*.db"))
    assert 6 == len(list(kept.iterdir()))


def test_the_one_just_made_is_never_removed_nor_anybody_elses(site: Site, kept: Path, tmp_path: Path) -> None:
    site.write("e1")
    (tmp_path / "b").mkdir()
    other = Site(tmp_path / "b")  # a database of the same name, and of its own
    other.write("e1")
    theirs = backup(other.path, kept, now=day(1))
    (kept / "home-20200101T000000000000Z.db").write_text("never finished")
    (kept / "home-20200101T000000000001Z.db.manifest.json").write_text("no manifest")
    future = backup(site.path, kept, now=day(9))
    one = backup(site.path, kept, now=day(3), keep=1)  # the clock was set back meanwhile

    assert (future.path,) == one.removed
    assert {theirs.path, one.path} == {path for path in kept.glob("*.db") if manifest_of(path).exists()}
    assert ["good", "good"] == [verify(path).kind for path in (theirs.path, one.path)]
    assert (kept / "home-20200101T000000000000Z.db").exists()
    manifest_of(one.path).rename(kept / "moved")  # what was removed by halves goes as a whole
    one.path.rename(kept / "moved.db")
    two = backup(site.path, kept, now=day(4))
    two.path.unlink()
    three = backup(site.path, kept, now=day(5), keep=1)
    assert (two.path,) == three.removed
    assert not manifest_of(two.path).exists()


def test_nothing_is_removed_when_a_backup_fails(site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("e1")
    first = backup(site.path, kept, now=day(0))
    monkeypatch.setattr(module, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "Input/output error")))

    with pytest.raises(StoreError, match="Input/output error"):
        backup(site.path, kept, now=day(1), keep=1)
    assert {first.path, manifest_of(first.path)} == set(kept.iterdir())


OTHER = "CREATE TABLE recipes (name)"


def _database(path: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return path


@pytest.mark.parametrize(
    ("error", "says", "work"),
    [
        (StoreError, "expected a database at", lambda f, site: backup(f / "none.db", f / "kept")),
        (LocalProtocolError, "expected no file at", lambda f, site: backup(site.path, site.path)),
        (StoreError, "expected to write to", lambda f, site: backup(site.path, f / "nowhere" / "b.db")),
        (LocalProtocolError, "at least 1 backup", lambda f, site: backup(site.path, f / "kept", keep=0)),
        (LocalProtocolError, "in a folder", lambda f, site: backup(site.path, f / "kept" / "b.db", keep=1)),
        (StoreError, "database of Inbetweenies", lambda f, site: backup(_database(f / "a", OTHER), f / "kept")),
        (StoreError, "got 99", lambda f, site: backup(_database(site.path, "PRAGMA user_version = 99"), f / "kept")),
        (StoreCorrupt, "it is damaged", lambda f, site: backup(_database(site.path, "DELETE FROM log"), f / "kept")),
        (StoreError, "NOTADB", lambda f, site: (site.path.write_text("junk" * 5000), backup(site.path, f / "kept"))),
    ],
)  # fmt: skip
def test_what_cannot_be_copied_is_refused_and_leaves_nothing(
    site: Site, kept: Path, error: type[Exception], says: str, work: Callable[[Path, Site], object]
) -> None:
    site.write("e1")

    with pytest.raises(error, match=says):
        work(kept.parent, site)
    assert [] == list(kept.iterdir())
    assert not (kept.parent / "nowhere").exists()


def test_two_that_take_the_same_name_do_not_take_each_others(
    site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.write("e1")

    def late(part: Path) -> Any:
        monkeypatch.setattr(module, "inspect", inspect)
        site.write("e2")
        backup(site.path, kept / "b.db")
        return inspect(part)

    monkeypatch.setattr(module, "inspect", late)
    with pytest.raises(StoreError, match="File exists"):
        backup(site.path, kept / "b.db")
    verdict = verify(kept / "b.db")
    assert ("good", 2) == (verdict.kind, verdict.manifest.graphs[0].seq if verdict.manifest else 0)
    assert 2 == len(list(kept.iterdir()))


def _no_room(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("name", "call"), [("fsync", 1), ("fsync", 2), ("publish", 1), ("publish", 2), ("sync_folder", 1), ("encoded", 1)]
)
def test_a_disk_that_is_full_is_told_and_leaves_nothing(
    site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    site.write("e1")
    real, calls = getattr(module, name), iter(range(1, 10))
    monkeypatch.setattr(module, name, lambda *a: _no_room() if next(calls) == call else real(*a))

    with pytest.raises(StoreFull, match=r"write a backup to .*; the system says: No space left.*make room"):
        backup(site.path, kept / "b.db")
    assert [] == list(kept.iterdir())


@pytest.mark.parametrize(("pages", "error"), [(2, StoreFull), (None, StoreError)])
def test_what_sqlite_cannot_write_is_told_and_leaves_nothing(
    site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch, pages: int | None, error: type[Exception]
) -> None:
    site.write("e1")
    connect = module._connect

    def small(file: Path, mode: str) -> sqlite3.Connection:
        if mode == "ro":
            return connect(file, mode)
        connection = connect(file, mode if pages else "ro")
        connection.execute(f"PRAGMA max_page_count = {pages or 1}")
        return connection

    monkeypatch.setattr(module, "_connect", small)
    with pytest.raises(error, match="SQLite could not copy the database: "):
        backup(site.path, kept / "b.db")
    assert [] == list(kept.iterdir())


def test_a_file_that_may_not_grow_is_told_in_one_line_and_leaves_nothing(site: Site, kept: Path) -> None:
    site.write(*(f"e{number}" for number in range(300)))
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536));"
        "from inbetweenies.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "backup", "--db", str(site.path), str(kept)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)

    assert (1, "", 1) == (done.returncode, done.stdout, done.stderr.count("\n"))
    assert done.stderr.startswith("inbetweenies: SQLite could not copy the database: ")
    assert [] == list(kept.iterdir())


def test_the_parts_that_a_killed_process_left_are_removed_once_nobody_writes_to_them(site: Site, kept: Path) -> None:
    site.write("e1")
    old, new, other = (kept / name for name in (".home-1.db.ab.part", ".home-2.db.ab.part", ".garden-1.db.ab.part"))
    for path in (old, new, other):
        path.write_text("half")
    long_ago = new.stat().st_mtime - STALE_SECONDS - 60
    for path in (old, other):
        os.utime(path, (long_ago, long_ago))
    made = backup(site.path, kept)

    assert {new, other, made.path, manifest_of(made.path)} == set(kept.iterdir())


def test_where_no_file_can_have_two_names_it_is_renamed(
    site: Site, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "Operation not permitted")))
    site.write("e1")
    made = backup(site.path, kept / "b.db")

    assert "good" == verify(made.path).kind
    with pytest.raises(OSError, match="File exists"):
        module.publish(made.path, manifest_of(made.path))


def test_kill_9_leaves_the_backups_that_were_there_and_the_new_one_or_none(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "backups").mkdir(parents=True)
    site = Site(base)
    site.write("e1")
    first = backup(site.path, base / "backups", now=NOW)
    site.write("e2")
    seen = []
    for folder in killed(tmp_path, "backup"):
        old = folder / "backups" / first.path.name
        found = [path for path in (folder / "backups").glob("home-*.db") if path != old]
        new = [verify(path).kind for path in found]
        seen.append((verify(old).kind, *new))
        here = Site(folder)
        assert {"e1", "e2"} == {row.id for row in here.held().span}

    # Nothing, then a file without a manifest, then a backup, after which the old one goes.
    assert ("good",) == seen[0]
    assert ("missing", "good") == seen[-1]
    assert {("good",), ("good", "unfinished"), ("good", "good"), ("missing", "good")} == set(seen)


def test_a_manifest_says_the_same_after_it_was_written(site: Site, kept: Path) -> None:
    site.write("e1", graph="zoë")
    made = backup(site.path, kept / "b.db")

    assert encoded(made.manifest) == manifest_of(made.path).read_bytes()
    assert {"zoë": 1} == ends(made)
