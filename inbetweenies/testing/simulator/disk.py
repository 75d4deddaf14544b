"""The same histories over SQLite files: real transactions, real recovery after a crash, and a disk that fails.

The disk fails where SQLite itself says so: `max_page_count` makes it full, a progress handler breaks a statement off
in the middle. A crash leaves the file and its write-ahead log as they are, and the next process recovers from both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from ...stores.sqlite import SqliteStore
from ..fleet_base import driven
from .outside import JOURNAL_FAULTS, WeakJournal
from .server import FULL, IO, Database, Folder
from .world import SimulatedWorld

_PAGES_MAX: Final = 1_073_741_823
#: In how many steps of SQLite's machine a statement is broken off at the latest.
_STEPS_MAX: Final = 600


class SqliteDatabase(Database):
    """A `SqliteStore` in a folder of its own."""

    store: SqliteStore
    keeps = frozenset({"journal", "heads"})
    reads_fail = True

    def __init__(self) -> None:
        self._folder = Folder()
        self._epochs = 0
        self._faults = 0
        self._connections: list[sqlite3.Connection] = []
        self._journal: WeakJournal | None = None

    def start(self, clock: Callable[[], int], kept: frozenset[str]) -> None:
        self._journal = WeakJournal(self._folder.journal) if "journal" in kept else None
        self.store = SqliteStore(
            self._folder.database,
            epochs=self._epoch,
            on_connect=self._connected,
            journal=self._journal or False,
            heads="heads" in kept,
            clock=clock,
        )

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
        """The file and its log as a dead process leaves them: nothing is closed, nothing is folded back."""
        left = {}
        for end in ("", "-wal"):
            with suppress(FileNotFoundError):
                left[end] = Path(f"{self._folder.database}{end}").read_bytes()
        self._abandon()
        self._put(left)

    def _put(self, files: Mapping[str, bytes]) -> None:
        for end in ("", "-wal", "-shm"):
            path = Path(f"{self._folder.database}{end}")
            path.unlink(missing_ok=True)
            if end in files:
                path.write_bytes(files[end])

    def backup(self) -> bytes:
        with closing(sqlite3.connect(self._folder.database)) as source, closing(sqlite3.connect(":memory:")) as copy:
            source.backup(copy)
            return copy.serialize()

    def restore(self, image: bytes | None) -> None:
        self._abandon()
        self._put({} if image is None else {"": image})

    def lose(self, what: Iterable[str]) -> None:
        self._folder.lose(what)

    def fail(self, fault: str | None) -> bool:
        if self._journal is not None and fault in (None, *JOURNAL_FAULTS):
            self._journal.fault = fault
        if fault in JOURNAL_FAULTS:
            return True
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
        self._folder.close()


class SqliteWorld(SimulatedWorld):
    """What ``--store sqlite`` runs."""

    def make_database(self) -> Database:
        return SqliteDatabase()
