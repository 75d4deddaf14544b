"""`migration_transaction`: changes of tables that happen whole or not at all."""

# ruff: noqa: PT012, SIM117 - what is raised at the end of a block is what is tested

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import LocalProtocolError, StoreError, migration_transaction
from inbetweenies.stores.schema import UPGRADES


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "home.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.executescript(
            "CREATE TABLE homes (id TEXT PRIMARY KEY);"
            "CREATE TABLE rooms (id TEXT PRIMARY KEY, home TEXT REFERENCES homes ON DELETE CASCADE);"
            "INSERT INTO homes VALUES ('h'); INSERT INTO rooms VALUES ('r', 'h');"
        )
        yield connection


def names(db: sqlite3.Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def test_what_the_block_did_is_there(db: sqlite3.Connection) -> None:
    with migration_transaction(db) as inside:
        inside.execute("CREATE TABLE zones (id TEXT)")
        inside.execute("ALTER TABLE rooms ADD COLUMN floor INTEGER")
        inside.execute("UPDATE rooms SET floor = 2")

    assert not db.in_transaction
    assert {"homes", "rooms", "zones"} == names(db)
    assert [("r", "h", 2)] == db.execute("SELECT * FROM rooms").fetchall()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
def test_whatever_raises_nothing_of_it_is_there(db: sqlite3.Connection, error: type[BaseException]) -> None:
    with pytest.raises(error), migration_transaction(db):
        db.execute("CREATE TABLE zones (id TEXT)")
        db.execute("ALTER TABLE rooms ADD COLUMN floor INTEGER")
        db.execute("DROP TABLE homes")
        raise error

    assert not db.in_transaction
    assert {"homes", "rooms"} == names(db)
    assert [("r", "h")] == db.execute("SELECT * FROM rooms").fetchall()


async def test_it_is_asynchronous_where_that_is_asked_for(db: sqlite3.Connection) -> None:
    with pytest.raises(ValueError, match="no"):
        async with migration_transaction(db) as inside:
            inside.execute("CREATE TABLE zones (id TEXT)")
            raise ValueError("no")

    assert {"homes", "rooms"} == names(db)


def test_a_table_that_is_built_anew_does_not_take_those_with_it_that_refer_to_it(db: sqlite3.Connection) -> None:
    with migration_transaction(db):
        db.execute("CREATE TABLE new (id TEXT PRIMARY KEY, name TEXT)")
        db.execute("INSERT INTO new (id) SELECT id FROM homes")
        db.execute("DROP TABLE homes")
        db.execute("ALTER TABLE new RENAME TO homes")

    assert [("r", "h")] == db.execute("SELECT * FROM rooms").fetchall()
    assert (1,) == db.execute("PRAGMA foreign_keys").fetchone()


def test_rows_that_refer_to_what_is_gone_are_told_and_nothing_is_changed(db: sqlite3.Connection) -> None:
    with pytest.raises(StoreError, match="row 1 of rooms refers to homes"), migration_transaction(db):
        db.execute("DELETE FROM homes")

    assert [("h",)] == db.execute("SELECT * FROM homes").fetchall()
    assert (1,) == db.execute("PRAGMA foreign_keys").fetchone()


@pytest.mark.parametrize(
    "commit",
    [
        lambda db: db.commit(),
        lambda db: db.execute("COMMIT"),
        lambda db: db.execute("BEGIN"),
        lambda db: db.executescript("CREATE TABLE more (id TEXT);"),
        lambda db: db.execute("PRAGMA foreign_keys = ON"),
    ],
)
def test_nobody_commits_inside(db: sqlite3.Connection, commit: Any) -> None:
    with pytest.raises(LocalProtocolError, match="inside of a migration"), migration_transaction(db):
        db.execute("CREATE TABLE zones (id TEXT)")
        commit(db)

    assert {"homes", "rooms"} == names(db)
    db.execute("BEGIN")  # may be done again
    db.execute("ROLLBACK")


@pytest.mark.parametrize("more", [False, True])
def test_one_that_rolls_back_inside_leaves_nothing_behind(db: sqlite3.Connection, more: bool) -> None:
    with (
        pytest.raises(LocalProtocolError, match=r"something ended it|inside of a migration"),
        migration_transaction(db),
    ):
        db.execute("CREATE TABLE zones (id TEXT)")
        db.rollback()
        if more:
            db.execute("CREATE TABLE more (id TEXT)")

    assert {"homes", "rooms"} == names(db)


def test_one_that_swallows_what_it_was_told_has_not_committed_either(db: sqlite3.Connection) -> None:
    with pytest.raises(ValueError, match="after"), migration_transaction(db):
        db.execute("CREATE TABLE zones (id TEXT)")
        with pytest.raises(sqlite3.DatabaseError):
            db.commit()
        raise ValueError("after")

    assert {"homes", "rooms"} == names(db)


def test_savepoints_and_reading_pragmas_work_inside(db: sqlite3.Connection) -> None:
    with migration_transaction(db):
        db.execute("SAVEPOINT here")
        db.execute("CREATE TABLE zones (id TEXT)")
        db.execute("ROLLBACK TO here")
        assert (0,) == db.execute("PRAGMA foreign_keys").fetchone()

    assert {"homes", "rooms"} == names(db)


def test_a_transaction_that_sqlite_ended_by_itself_is_noticed(db: sqlite3.Connection) -> None:
    with pytest.raises(LocalProtocolError, match="something ended it"), migration_transaction(db):
        with pytest.raises(sqlite3.IntegrityError):
            db.execute("INSERT OR ROLLBACK INTO homes VALUES ('h')")

    assert not db.in_transaction


def test_an_error_of_sqlite_is_told_as_it_is(db: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.OperationalError, match="syntax"), migration_transaction(db):
        db.execute("CREATE TABLE zones (id TEXT)")
        db.execute("NONSENSE")

    assert {"homes", "rooms"} == names(db)


def test_an_open_transaction_is_refused_and_left_open(db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    db.execute("INSERT INTO homes VALUES ('i')")

    with pytest.raises(LocalProtocolError, match="without an open transaction"), migration_transaction(db):
        raise AssertionError

    assert db.in_transaction


def test_one_inside_of_another_is_refused(db: sqlite3.Connection) -> None:
    with pytest.raises(LocalProtocolError, match="without an open transaction"), migration_transaction(db):
        with migration_transaction(db):
            raise AssertionError


def test_what_is_no_connection_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="got Session"):
        type("Session", (), {})
        with migration_transaction(type("Session", (), {})()):
            raise AssertionError


class CommitsFirst(sqlite3.Connection):
    """As Python's own driver was up to 3.5, and as wrappers are: a change of tables is committed before and after."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql.startswith("CREATE") and self.in_transaction:
            super().execute("COMMIT")
        return super().execute(sql, *values)


class NeverBegins(sqlite3.Connection):
    """As one in which BEGIN is left to somebody else."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute("SELECT 1" if sql.startswith("BEGIN") else sql, *values)


@pytest.mark.parametrize("driver", [CommitsFirst, NeverBegins])
def test_a_driver_that_cannot_take_a_table_back_is_refused(tmp_path: Path, driver: type[sqlite3.Connection]) -> None:
    with closing(sqlite3.connect(tmp_path / "home.db", factory=driver)) as db:
        with pytest.raises(LocalProtocolError, match="it was committed at once"), migration_transaction(db):
            raise AssertionError

        assert set() == names(db)


class AlwaysBegins(sqlite3.Connection):
    """Says of itself what one of Python 3.12 does that always has a transaction open."""

    autocommit = False


def test_a_mode_that_always_has_a_transaction_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "home.db", factory=AlwaysBegins)) as db:
        with pytest.raises(LocalProtocolError, match="autocommit=False"), migration_transaction(db):
            raise AssertionError


@pytest.mark.parametrize("options", [{}, {"isolation_level": "IMMEDIATE"}])
def test_the_default_mode_works_as_well(tmp_path: Path, options: dict[str, Any]) -> None:
    with closing(sqlite3.connect(tmp_path / "home.db", **options)) as db:
        with pytest.raises(ValueError, match="no"), migration_transaction(db):
            db.execute("CREATE TABLE zones (id TEXT)")
            db.execute("INSERT INTO zones VALUES ('z')")
            raise ValueError("no")

        assert set() == names(db)


def test_a_locked_database_is_left_as_it_is(db: sqlite3.Connection, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "home.db", isolation_level=None, timeout=0)) as other:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"), migration_transaction(other):
            raise AssertionError
        db.execute("ROLLBACK")

    assert {"homes", "rooms"} == names(db)


def test_steps_of_the_store_only_add() -> None:
    for step in UPGRADES.values():
        for statement in step.split(";"):
            words = statement.split()
            assert words[:2] in (
                [],
                ["CREATE", "TABLE"],
                ["CREATE", "INDEX"],
                ["ALTER", "TABLE"],
                ["UPDATE", "graphs"],
            ) or (words[:2] == ["DROP", "INDEX"])
            assert words[:2] != ["ALTER", "TABLE"] or words[3:5] == ["ADD", "COLUMN"]
