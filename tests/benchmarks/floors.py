"""What nobody could beat: the same rows, ready-made, through bare SQLite, with the schema and settings of the store.

The rows are taken from what a store has stored, so a floor never writes or reads less than what is held against it.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from contextlib import closing
from pathlib import Path
from typing import Any

from blowing_off.store import LocalStore
from inbetweenies.stores import SqliteStore, schema, sqlite

from .measure import own_cpu

Rows = list[tuple[Any, ...]]


def _marks(rows: Rows) -> str:
    return ", ".join("?" * len(rows[0]))


class ServerFloor:
    """The log of a graph that a server holds, written and read without a server."""

    def __init__(self, db: Path, graph: str, scratch: Path) -> None:
        with closing(sqlite3.connect(db)) as source:
            [key] = source.execute("SELECT graph FROM graphs WHERE name = ?", (graph,)).fetchone()
            self.rows: Rows = source.execute("SELECT * FROM log WHERE graph = ? ORDER BY seq", (key,)).fetchall()
        SqliteStore(scratch)._file.close()
        self._db = sqlite3.connect(scratch, isolation_level=None)
        for setting in sqlite.SETTINGS:
            self._db.execute(setting)
        self._graphs = 0

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def write(self) -> float:
        """CPU seconds of writing all rows through one `executemany`, in one durable transaction, to a new graph."""
        self._graphs += 1
        graph = self._graphs
        rows = [(graph, *row[1:]) for row in self.rows]
        self._db.execute(sqlite._ADD_GRAPH, (f"graph {graph}", "e"))
        insert = f"INSERT INTO log VALUES ({_marks(rows)})"

        def work() -> None:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(insert, rows)
            self._db.execute("COMMIT")

        return own_cpu(work)

    def read(self) -> float:
        """CPU seconds of one bare SELECT of all current rows in commit order; `write` must have come before."""
        select = f"SELECT * FROM log WHERE graph = ? AND until = {schema.FOREVER} ORDER BY seq"
        # Each row is let go of at once: a server does not hold them all either.
        return own_cpu(lambda: deque(self._db.execute(select, (self._graphs,)), maxlen=0))


class ClientFloor:
    """What a client's store reads and writes in a sync, without a client.

    `pushed` is the store of a client before it has pushed everything that it holds, `pulled` that of a client that
    has pulled all of it.
    """

    def __init__(self, pushed: Path, pulled: Path) -> None:
        with closing(sqlite3.connect(pushed)) as source:
            self._marks: Rows = source.execute("SELECT n FROM pending").fetchall()
        with closing(sqlite3.connect(pulled)) as source:
            self._copies: Rows = source.execute("SELECT * FROM copies").fetchall()
            self._pointers: Rows = source.execute("SELECT * FROM pointers").fetchall()
            self._acked: Rows = source.execute("SELECT theirs, theirs_hash, kind, id FROM pointers").fetchall()

    def push(self, db: Path) -> float:
        """CPU seconds of reading what waits in a copy of the first store, and of noting that it was acknowledged."""
        with closing(_opened(db)) as store:

            def work() -> None:
                deque(store.execute("SELECT * FROM copies"), maxlen=0)
                store.execute("BEGIN IMMEDIATE")
                store.executemany(
                    "UPDATE pointers SET theirs = ?, theirs_hash = ?, ours = NULL, ours_hash = NULL"
                    " WHERE kind = ? AND id = ?",
                    self._acked,
                )
                store.executemany("DELETE FROM pending WHERE n = ?", self._marks)
                store.execute("COMMIT")

            return own_cpu(work)

    def pull(self, db: Path) -> float:
        """CPU seconds of writing what was pulled to a new store."""
        LocalStore(db).close()
        with closing(_opened(db)) as store:

            def work() -> None:
                store.execute("BEGIN IMMEDIATE")
                store.executemany(f"INSERT INTO copies VALUES ({_marks(self._copies)})", self._copies)
                store.executemany(f"INSERT INTO pointers VALUES ({_marks(self._pointers)})", self._pointers)
                store.execute("COMMIT")

            return own_cpu(work)


def _opened(db: Path) -> sqlite3.Connection:
    store = sqlite3.connect(db, isolation_level=None)
    store.execute("PRAGMA synchronous = FULL")
    store.execute("PRAGMA fullfsync = ON")
    return store
