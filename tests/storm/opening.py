"""Processes that are killed while they make a file: ``python -m tests.storm.opening WHAT FOLDER``.

One after another is forked, and kills itself in front of the first, the second, ... statement of opening FOLDER/n.db,
until one gets through. Printed is how many were killed.
"""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from blowing_off.store import LocalStore
from inbetweenies.auth import SqliteTokens
from inbetweenies.stores.sqlite import SqliteStore
from tests.support import run


def server(path: Path) -> None:
    """A server's file."""
    run(SqliteStore(path, busy_timeout_ms=1).close())


def tokens(path: Path) -> None:
    """The same, with tokens in it."""
    SqliteTokens(path, busy_timeout_ms=1).close()


def client(path: Path) -> None:
    """A client's file."""
    LocalStore(path).close()


OPENED: Final[dict[str, Callable[[Path], None]]] = {opened.__name__: opened for opened in (server, tokens, client)}


def die_at(statement: int) -> None:
    """End as if by ``kill -9`` in front of the `statement`-th statement from here."""
    left = itertools.count(statement - 1, -1)

    def tick(_: str) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    real: Any = sqlite3.connect

    def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = real(*arguments, **named)
        connection.set_trace_callback(tick)
        return connection

    sqlite3.connect = connect  # type: ignore[assignment]


def main(what: str, folder: str) -> None:
    for statement in itertools.count(1):
        child = os.fork()
        if child == 0:
            die_at(statement)
            OPENED[what](Path(folder) / f"{statement}.db")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != signal.SIGKILL:
            assert status == 0, status
            print(statement - 1)
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
