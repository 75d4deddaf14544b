"""The same histories over SQLite files: real transactions, real recovery after a crash, and a disk that fails.

The disk fails where SQLite itself says so: `max_page_count` makes it full, a progress handler breaks a statement off
in the middle. A crash leaves the file and its write-ahead log as they are, and the next process recovers from both.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from ...stores.sqlite import SqliteStore
from ..fleet_base import driven
from .server import FULL, IO, Database
from .world import SimulatedWorld

#: A RAM disk where there is one: what is looked at here is not how durable a disk is.
_RAM: Final = Path("/dev/shm")  # noqa: S108 - only ever a folder of its own in it
_PAGES_MAX: Final = 1_073_741_823
#: In how many steps of SQLite's machine a statement is broken off at the latest.
_STEPS_MAX: Final = 600


class SqliteDatabase(Database):
    """A `SqliteStore` in a folder of its own."""

    store: SqliteStore

    def __init__(self) -> None:
        ram = _RAM if _RAM.is_dir() and os.access(_RAM, os.W_OK) else None
        self._folder = Path(tempfile.mkdtemp(prefix="inbetweenies-", dir=ram))
        self._files = 0
        self._epochs = 0
        self._faults = 0
        self._connections: list[sqlite3.Connection] = []
        self._open(None)

    def _open(self, image: bytes | None) -> None:
        self._files += 1
        self._path = self._folder / f"{self._files}.db"
        if image is not None:
            self._path.write_bytes(image)
        self.store = SqliteStore(self._path, epochs=self._epoch, on_connect=self._connected)

    def _epoch(self) -> str:
        self._epochs += 1
        return f"{self._epochs:016x}"

    def _connected(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA page_size = 512")  # so that even a short history has to ask for room
        self._connections.append(connection)

    def _abandon(self) -> None:
        driven(self.store.close())
        self._connections.clear()

    def reopen(self) -> None:
        before = self._path
        self._files += 1
        self._path = self._folder / f"{self._files}.db"
        for end in ("", "-wal"):
            # A folder's files as a dead process leaves them: nothing is closed, nothing is folded back.
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{before}{end}", f"{self._path}{end}")
        self._abandon()
        self.store = SqliteStore(self._path, epochs=self._epoch, on_connect=self._connected)

    def backup(self) -> bytes:
        with closing(sqlite3.connect(self._path)) as source, closing(sqlite3.connect(":memory:")) as copy:
            source.backup(copy)
            return copy.serialize()

    def restore(self, image: bytes) -> None:
        self._abandon()
        self._open(image)

    def fail(self, fault: str | None) -> bool:
        if fault not in (None, FULL, IO):
            return False
        self._faults += fault == IO
        step = 1 + self._faults * 7_919 % _STEPS_MAX
        for connection in self._connections:
            with suppress(sqlite3.ProgrammingError):  # it was closed meanwhile
                if fault == FULL:
                    [pages] = connection.execute("PRAGMA page_count").fetchone()
                    connection.execute(f"PRAGMA max_page_count = {pages}")
                elif fault == IO:
                    connection.set_progress_handler(lambda: 1, step)
                else:
                    connection.execute(f"PRAGMA max_page_count = {_PAGES_MAX}")
                    connection.set_progress_handler(None, 0)
        return True

    def close(self) -> None:
        self._abandon()
        shutil.rmtree(self._folder, ignore_errors=True)


class SqliteWorld(SimulatedWorld):
    """What ``--store sqlite`` runs."""

    def make_database(self) -> Database:
        return SqliteDatabase()
