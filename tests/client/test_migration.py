"""The formats of the replica's file: forward and back, whoever dies on the way, and files from the future."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from blowing_off import BlowingOffClient, migration, store
from blowing_off.migration import (
    FORMAT,
    STEPS,
    CannotRollbackToFutureVersion,
    Step,
    UnknownVersion,
    UnsupportedRollback,
    VersionMigration,
    backup,
    contents,
)
from blowing_off.store import LocalStore
from inbetweenies.errors import StoreCorrupt, StoreError, StoreFull
from inbetweenies.replica import Absorbed, State, copy_of
from tests.support import NOW, at, entity
from tests.support import run as drive

ROOT = Path(__file__).resolve().parents[2]
EPOCH = "0123456789abcdef"


# Where files cost no waiting for a disk: what a killed process leaves does not depend on it.
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def cursor(seq: int, epoch: str = EPOCH) -> str:
    return f"{epoch}:{seq}:{seq:032x}"


class OldStore(LocalStore):
    """The store as a release that knows format 1 only: it makes such files and never looks for what came later."""

    def _standing(self, db: sqlite3.Connection) -> migration.Standing:
        return migration.standing(db, self.path, 1)


def as_old(path: Path) -> LocalStore:
    if not path.exists():
        with closing(sqlite3.connect(path)) as db:
            for statement in store._SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {migration.APPLICATION_ID}")
            db.execute("PRAGMA user_version = 1")
    opened = OldStore(path)
    if opened.state() is None:
        opened.put_state(State(device="d", user="ann", modern=True))
    return opened


def reach(opened: LocalStore, seq: int, *, remembers: bool = True) -> None:
    """An answer that tells nothing but where the log ends."""
    state = opened.state()
    assert state is not None
    told = Absorbed(state=replace(state, cursor=cursor(seq)))
    if remembers:
        opened.apply(told, now=NOW)
    else:
        opened.put_state(told.state)  # what a release does that has no table for it


def write(opened: LocalStore, id_: str) -> None:
    opened.write([copy_of(entity(id_, at(0)))])


def seqs(path: Path) -> set[int]:
    with closing(sqlite3.connect(path)) as db:
        return {seq for (seq,) in db.execute("SELECT seq FROM checkpoints")}


def held(path: Path) -> tuple[tuple[str, int, str], ...]:
    with closing(sqlite3.connect(path)) as db:
        return contents(db)


def version(path: Path) -> int:
    return VersionMigration(path).current


def backups(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.backup-*"))


# --- forward ------------------------------------------------------------------------------------------------------


def test_a_new_file_has_the_newest_format_and_says_who_may_use_it(tmp_path: Path) -> None:
    LocalStore(tmp_path / "home.db").close()
    with closing(sqlite3.connect(tmp_path / "home.db")) as db:
        stamps = dict(db.execute("SELECT key, value FROM meta WHERE key LIKE 'min_%'"))

    assert FORMAT == version(tmp_path / "home.db")
    assert {"min_reader": "1", "min_writer": "1"} == stamps
    assert [] == backups(tmp_path / "home.db")


def test_an_older_store_is_brought_forward_when_it_is_opened_and_copied_before(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    with closing(as_old(path)) as opened:
        write(opened, "lamp")
        reach(opened, 7, remembers=False)
    before = held(path)

    with closing(LocalStore(path)) as opened:
        found = [copy.id for copy in opened.find()]

    [copy] = backups(path)
    assert (["lamp"], FORMAT, {7}) == (found, version(path), seqs(path))
    assert before == held(copy)
    assert 0o600 == stat.S_IMODE(copy.stat().st_mode)


def test_there_is_nothing_to_do_twice(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    as_old(path).close()
    migration_ = VersionMigration(path)

    first, second = migration_.migrate_if_needed(), migration_.migrate_if_needed()

    assert first is not None
    assert (1, FORMAT) == (first.before, first.after)
    assert second is None
    assert 1 == len(backups(path))


def test_two_that_migrate_at_once_make_one_step(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    with closing(as_old(path)) as opened:
        write(opened, "lamp")

    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda _: VersionMigration(path).migrate_if_needed(), range(4)))

    assert 1 == len([one for one in done if one is not None])
    assert (FORMAT, 1) == (version(path), len(backups(path)))


def test_a_state_that_is_damaged_does_not_keep_a_store_from_coming_forward(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    with closing(as_old(path)) as opened:
        opened.keep(state="{")

    LocalStore(path).close()

    assert (FORMAT, set()) == (version(path), seqs(path))


# --- back ---------------------------------------------------------------------------------------------------------


def test_what_both_formats_were_told_is_there_after_going_back_and_forth(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    with closing(LocalStore(path)) as opened:
        opened.put_state(State(device="d", user="ann", modern=True))
        write(opened, "new")
        reach(opened, 5)
    back = VersionMigration(path).rollback(to=1)
    assert back is not None
    assert (FORMAT, 1) == (back.before, back.after)
    with closing(as_old(path)) as opened:
        assert ["new"] == [item.copy.id for item in opened.pending()]
        write(opened, "old")
        reach(opened, 9, remembers=False)

    with closing(LocalStore(path)) as opened:
        assert {"new", "old"} == {item.copy.id for item in opened.pending()}

    assert {5, 9} == seqs(path)


@given(st.lists(st.sampled_from(["edit", "reach", "up", "down"]), max_size=14))
def test_no_write_is_lost_however_often_the_format_changes(moves: list[str]) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        path = Path(folder) / "home.db"
        as_old(path).close()
        written: list[str] = []
        reached: list[int] = []  # at the newest format, or where a migration found the replica
        last = None
        for count, move in enumerate([*moves, "up"]):
            new = version(path) == FORMAT
            if move == "up":
                LocalStore(path).close()
                reached += [] if last is None else [last]
            elif move == "down":
                VersionMigration(path).rollback(to=1)
            else:
                with closing(LocalStore(path) if new else as_old(path)) as opened:
                    if move == "edit":
                        write(opened, f"e{count}")
                        written.append(f"e{count}")
                    else:
                        last = count
                        reach(opened, count, remembers=new)
                        reached += [count] if new else []

        with closing(LocalStore(path)) as opened:
            assert written == [item.copy.id for item in opened.pending()]
        kept = set(sorted(set(reached))[-migration.NEAR :])
        assert kept <= seqs(path) <= set(reached)


def test_going_back_to_where_it_is_does_nothing(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    LocalStore(path).close()

    assert VersionMigration(path).rollback(to=FORMAT) is None
    assert [] == backups(path)


def test_going_back_to_the_future_is_refused(tmp_path: Path) -> None:
    as_old(tmp_path / "home.db").close()

    with pytest.raises(CannotRollbackToFutureVersion, match="expected a format before 1") as caught:
        VersionMigration(tmp_path / "home.db").rollback(to=2)

    assert "cannot_rollback_to_future_version" == caught.value.code


@pytest.mark.parametrize("to", [-1, 0, FORMAT + 1])
def test_a_format_that_nobody_knows_is_refused(tmp_path: Path, to: int) -> None:
    LocalStore(tmp_path / "home.db").close()

    with pytest.raises(UnknownVersion, match="expected one of the formats 1 to") as caught:
        VersionMigration(tmp_path / "home.db").rollback(to=to)

    assert "unknown_version" == caught.value.code


def test_where_there_is_no_way_back_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    LocalStore(path).close()
    before = held(path)

    with pytest.raises(UnsupportedRollback, match="expected a way back from format 2 to 1") as caught:
        VersionMigration(path, steps=[replace(STEPS[0], down=None)]).rollback(to=1)

    assert "unsupported_rollback" == caught.value.code
    assert before == held(path)


# --- files from the future ----------------------------------------------------------------------------------------


def from_the_future(path: Path, *, min_reader: int, min_writer: int) -> None:
    with closing(LocalStore(path)) as opened:
        opened.put_state(State(device="d", user="ann", modern=True))
        write(opened, "lamp")
    step = Step(format=FORMAT + 1, up=nothing, down=nothing, min_reader=min_reader, min_writer=min_writer)
    VersionMigration(path, steps=[*STEPS, step]).migrate_if_needed()


def nothing(_: sqlite3.Connection) -> None:
    pass


def test_a_newer_file_that_lets_this_release_write_is_used(tmp_path: Path) -> None:
    from_the_future(tmp_path / "home.db", min_reader=1, min_writer=FORMAT)

    with closing(LocalStore(tmp_path / "home.db")) as opened:
        write(opened, "desk")
        assert {"lamp", "desk"} == {copy.id for copy in opened.find()}

    assert FORMAT + 1 == version(tmp_path / "home.db")
    assert VersionMigration(tmp_path / "home.db").migrate_if_needed() is None


def test_a_newer_file_that_lets_this_release_read_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    from_the_future(path, min_reader=FORMAT, min_writer=FORMAT + 1)
    before = held(path)

    client = BlowingOffClient(path)
    assert ["lamp"] == [found.id for found in drive(client.find())]
    assert 1 == drive(client.status()).pending
    with pytest.raises(StoreError, match="which it may only read"):
        drive(client.add("device", "Desk lamp"))
    with pytest.raises(StoreError, match="may only read"):
        client.store.put_state(State(device="x", user="y"))
    drive(client.close())

    assert before == held(path)
    with pytest.raises(UnknownVersion):
        VersionMigration(path).migrate_if_needed()
    with pytest.raises(UnknownVersion):
        VersionMigration(path).rollback(to=1)


@pytest.mark.parametrize("stamp", ["", "many", "-1", "9" * 30])
def test_a_newer_file_with_an_odd_stamp_is_refused(tmp_path: Path, stamp: str) -> None:
    path = tmp_path / "home.db"
    from_the_future(path, min_reader=1, min_writer=1)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE key LIKE 'min_%'", (stamp,))

    with pytest.raises(StoreError, match="Update this program; the file was left as it is"):
        LocalStore(path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: None, "there is none"),
        (lambda path: path.touch(), "got an empty file"),
        (lambda path: path.write_text("Dear reader. " * 100), "got a file that is none"),
        (lambda path: path.mkdir(), "there is none"),
    ],
)
def test_what_is_no_store_is_not_migrated(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    make(tmp_path / "home.db")

    with pytest.raises(StoreError, match=told):
        VersionMigration(tmp_path / "home.db").migrate_if_needed()


def test_a_store_without_a_format_is_not_guessed_at(tmp_path: Path) -> None:
    as_old(tmp_path / "home.db").close()
    with closing(sqlite3.connect(tmp_path / "home.db")) as db:
        db.execute("PRAGMA user_version = 0")

    with pytest.raises(UnknownVersion, match="got 0"):
        VersionMigration(tmp_path / "home.db").migrate_if_needed()


# --- copies -------------------------------------------------------------------------------------------------------


def test_every_copy_has_a_name_of_its_own_and_the_last_three_stay(tmp_path: Path) -> None:
    path = tmp_path / "my [home]*.db"
    LocalStore(path).close()

    made = [backup(path) for _ in range(5)]

    left = {file for file in tmp_path.iterdir() if ".backup-" in file.name}
    assert 5 == len(set(made))
    assert 3 == len(left)
    assert made[-1] in left


def test_what_another_connection_has_not_folded_in_yet_is_in_the_copy(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    with closing(LocalStore(path)) as opened:
        write(opened, "lamp")  # in the write-ahead file only
        copy = backup(path)

    with closing(LocalStore(copy)) as opened:
        assert ["lamp"] == [item.copy.id for item in opened.pending()]


def test_a_copy_that_differs_is_not_kept_and_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "home.db"
    as_old(path).close()
    before = held(path)
    lies = iter(["what was there", "what the disk made of it"])
    monkeypatch.setattr(migration, "contents", lambda _: ((next(lies), 0, ""),))

    with pytest.raises(StoreCorrupt, match="expected a sound copy"):
        VersionMigration(path).migrate_if_needed()

    assert ([], before, 1) == (backups(path), held(path), version(path))


def test_a_copy_is_of_one_moment_whoever_writes_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "home.db"
    with closing(LocalStore(path)) as opened:
        write(opened, "lamp")
        real = migration.contents

        def looked_at(db: sqlite3.Connection) -> tuple[tuple[str, int, str], ...]:
            found = real(db)
            write(opened, f"more {opened.counts().rows}")
            return found

        monkeypatch.setattr(migration, "contents", looked_at)
        copy = backup(path)

        assert 3 == opened.counts().rows
    with closing(sqlite3.connect(copy)) as db:
        assert ["lamp"] == [id_ for (id_,) in db.execute("SELECT id FROM copies")]


def test_without_room_for_a_copy_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "home.db"
    as_old(path).close()
    monkeypatch.setattr(migration, "ROOM", 2**50)

    with pytest.raises(StoreFull, match="bytes free beside"):
        VersionMigration(path).migrate_if_needed()

    assert 1 == version(path)


# --- dying on the way ---------------------------------------------------------------------------------------------

# Runs as a process of its own, so that it may fork: each child is killed at another statement, of whichever
# connection, before it is carried out. What is left is then opened by the parent.
KILLER = """
import os, shutil, signal, sqlite3, sys
from contextlib import closing
from pathlib import Path
from msgspec.structs import replace
from blowing_off import migration
from blowing_off.migration import STEPS, Step, VersionMigration, contents

path, to = Path(sys.argv[1]), int(sys.argv[2])
def one(db): db.execute("CREATE TABLE three (x)"); db.execute("INSERT INTO three VALUES (1)")
def other(db): db.execute("DROP TABLE three")
steps = [*STEPS, Step(format=3, up=one, down=other, min_reader=1, min_writer=1)]
real = sqlite3.connect

def move(path):
    mover = VersionMigration(path, steps=steps)
    return mover.migrate_if_needed() if to == 3 else mover.rollback(to=to)

def killed_at(count, path):
    left = [count]
    def seen(statement):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def connect(*arguments, **options):
        db = real(*arguments, **options)
        db.set_trace_callback(seen)
        return db
    migration.sqlite3.connect = connect
    move(path)

def told(path):
    with closing(real(path)) as db:
        rows = {row for (row,) in db.execute("SELECT id FROM copies")}
        marks = [row for (row,) in db.execute("SELECT id FROM pending ORDER BY n")]
        table = "checkpoints" if migration.format_of(db) > 1 else "aside_2_checkpoints"
        places = {row for (row,) in db.execute(f"SELECT seq FROM {table}")} if migration._has(db, table) else set()
        good = db.execute("PRAGMA integrity_check").fetchone()[0]
        return migration.format_of(db), rows, marks, places, good

before = told(path)
formats = set()
count = 0
while True:
    folder = path.parent / f"try-{count}"
    folder.mkdir()
    copy = folder / "home.db"
    shutil.copy(path, copy)
    child = os.fork()
    if child == 0:
        killed_at(count, copy)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    left = told(copy)
    formats.add(left[0])
    assert left[1:] == before[1:], (count, left, before)
    move(copy)
    after = told(copy)
    assert after[0] == to and after[1:] == before[1:], (count, after, before)
    shutil.rmtree(folder)
    count += 1
    if status == 0:
        break
print(count, *sorted(formats))
"""


@pytest.mark.parametrize(("start", "to", "between"), [(1, 3, {1, 2, 3}), (3, 1, {1, 2, 3})])
def test_killed_at_any_statement_a_store_has_one_format_or_the_other_and_goes_on(
    start: int, to: int, between: set[int]
) -> None:
    with TemporaryDirectory(dir=MEMORY) as folder:
        kill_at_each_statement(Path(folder) / "home.db", start, to, between)


def kill_at_each_statement(path: Path, start: int, to: int, between: set[int]) -> None:
    with closing(LocalStore(path)) as opened:
        opened.put_state(State(device="d", user="ann", modern=True))
        write(opened, "lamp")
        reach(opened, 5)
    step = Step(format=3, up=third, down=nothing, min_reader=1, min_writer=1)
    VersionMigration(path, steps=[*STEPS, step]).migrate_if_needed()
    if start == 1:
        # Without the third step's table, as a file is that never had it.
        with closing(sqlite3.connect(path)) as db:
            db.execute("DROP TABLE three")
        VersionMigration(path, steps=[*STEPS, step]).rollback(to=1)
    for copy in backups(path):
        copy.unlink()

    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(path), str(to)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert 0 == done.returncode, done.stderr
    tries, *formats = map(int, done.stdout.split())
    assert tries > 40
    assert between == set(formats)


def third(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE three (x)")
    db.execute("INSERT INTO three VALUES (1)")


# --- checkpoints --------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(min_value=0, max_value=2**40), min_size=1, max_size=120))
def test_places_in_the_log_are_kept_close_by_and_sparser_further_back(reached: list[int]) -> None:
    with closing(LocalStore(":memory:")) as opened:
        opened.put_state(State(device="d", user="ann", modern=True))
        for seq in reached:
            reach(opened, seq)
        kept = sorted({seq for (seq,) in opened._all("SELECT seq FROM checkpoints")}, reverse=True)

    newest = sorted(set(reached), reverse=True)
    assert newest[: migration.NEAR] == kept[: migration.NEAR]
    assert set(kept) <= set(reached)
    further = [(newest[0] - seq).bit_length() for seq in kept[migration.NEAR :]]
    assert len(set(further)) == len(further)


def test_a_server_that_starts_anew_all_the_time_is_not_remembered_for_ever() -> None:
    with closing(LocalStore(":memory:")) as opened:
        opened.put_state(State(device="d", user="ann", modern=True))
        for count in range(50):
            state = opened.state()
            assert state is not None
            opened.apply(Absorbed(state=replace(state, cursor=cursor(1, f"{count:x}"))), now=NOW)
        epochs = [epoch for (epoch,) in opened._all("SELECT epoch FROM checkpoints ORDER BY n")]

    assert [f"{count:x}" for count in range(50)][-migration.EPOCHS_MAX :] == epochs


def test_a_cursor_of_a_foreign_server_is_no_place_in_a_log_like_ours() -> None:
    with closing(LocalStore(":memory:")) as opened:
        opened.put_state(State(device="d", user="ann", modern=True))
        state = opened.state()
        assert state is not None
        opened.apply(Absorbed(state=replace(state, cursor="page-2 of 7")), now=NOW)

        assert [] == opened._all("SELECT * FROM checkpoints")
