"""SQLite that fails at the k-th step: connections that count what is asked of them, and raise what SQLite raises.

A *step* is a statement, a row bound by `executemany`, or a row that is fetched. `Faults` is installed in place of
`sqlite3.connect`, so the stores under test need no seam for it; what it raises has the code and name of SQLite's own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Literal

import pytest
from msgspec import Struct

#: Before the step, or after it was done. On some errors SQLite rolls the transaction back itself (`undone`), and on a
#: disk that is gone rolling back fails too (`stuck`).
When = Literal["before", "undone", "after", "stuck"]
MODES: Final[tuple[When, ...]] = ("before", "undone", "after", "stuck")

CODES: Final = (
    "SQLITE_FULL",
    "SQLITE_IOERR_WRITE",
    "SQLITE_NOMEM",
    "SQLITE_BUSY",
    "SQLITE_INTERRUPT",
    "SQLITE_IOERR_FSYNC",
    "SQLITE_IOERR_READ",
    "SQLITE_READONLY",
    "SQLITE_CANTOPEN",
    "SQLITE_CORRUPT",
)


class Fault(Struct, frozen=True):
    """What goes wrong, and at which step."""

    step: int
    code: str
    when: When = "before"

    def error(self) -> Exception:
        """As Python's module raises it."""
        if self.code == "SQLITE_NOMEM":
            return MemoryError()
        error = sqlite3.OperationalError(f"planted {self.code}")
        error.sqlite_errorcode = getattr(sqlite3, self.code)
        error.sqlite_errorname = self.code
        return error


def planned(steps: list[str], per_step: int) -> list[Fault]:
    """The faults to try, one after another: `per_step` at each step, at a commit at least one in each mode.

    With one only, it is another one at each step; a step that comes again and again fails once, a commit three times.
    """
    every = [(code, when) for code in CODES for when in MODES]
    faults: list[Fault] = []
    for step, text in enumerate(steps):
        if per_step == 1 and steps[:step].count(text) >= (3 if text == "COMMIT" else 1):
            continue
        number = max(per_step, len(MODES) if text == "COMMIT" else 1)
        faults += [Fault(step, *every[(7 * step + n) % len(every)]) for n in range(min(number, len(every)))]
    return faults


class Faults:
    """Counts the steps of all connections that are made while it is installed, and makes the one that is named fail.

    Attributes:
        seen: every step since `watch`, as the text of its statement; ``row of …`` and ``fetch of …`` for rows.
        fired: how many planted faults were raised since it was made.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.fired = 0
        self.connections: list[FaultyConnection] = []
        self._fault: Fault | None = None
        self._stuck: Fault | None = None
        self._on = False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """From here on, connections fail when they are told to."""

        def connect(*arguments: Any, **named: Any) -> sqlite3.Connection:
            connection = FaultyConnection(*arguments, **named)
            connection.faults = self
            self.connections.append(connection)
            return connection

        patch.setattr(sqlite3, "connect", connect)

    def watch(self, fault: Fault | None = None) -> None:
        """Begin to count; the step that `fault` names will fail, once."""
        self.seen = []
        self._fault = fault
        self._stuck = None
        self._on = True

    def rest(self) -> list[str]:
        """Nothing fails and nothing is counted any more; what was seen."""
        self._on = False
        self._fault = None
        return self.seen

    def due(self, connection: FaultyConnection, step: str) -> When | None:
        """Count a step. Whether an error is to be raised for it, and when; whoever asks then calls `fail`.

        Nothing here keeps an error or a cursor: what a traceback holds would hold a connection open, in a way in which
        SQLite's own errors do not.
        """
        if not self._on:
            return None
        self.seen.append(step)
        if step == "ROLLBACK" and self._stuck is not None:
            self._fault, self._stuck = self._stuck, None
            return "before"
        fault = self._fault
        if fault is None or fault.step != len(self.seen) - 1:
            return None
        self.fired += 1
        if fault.when == "stuck":
            self._stuck = fault
        if fault.when == "undone" and connection.in_transaction:
            connection.cursor().execute("ROLLBACK")
        return fault.when

    def fail(self) -> None:
        """Raise what is planted, once."""
        fault, self._fault = self._fault, None
        assert fault is not None
        raise fault.error()


class FaultyConnection(sqlite3.Connection):
    """A connection whose steps are counted by `faults`."""

    faults: Faults

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        # What a crash of the machine would do is not the question here, and asking the disk takes ten times as long.
        sql = sql.replace("synchronous = FULL", "synchronous = OFF")
        return self._step(sql, lambda: self._cursor(sql).execute(sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        def rows() -> Iterator[Any]:
            for row in parameters:
                # Between two rows, the row before is in and the next one is not.
                if self.faults.due(self, f"row of {sql}"):
                    self.faults.fail()
                yield row

        return self._step(sql, lambda: self._cursor(sql).executemany(sql, rows()))

    def _cursor(self, sql: str) -> FaultyCursor:
        cursor = self.cursor(FaultyCursor)
        cursor.sql = sql
        return cursor

    def _step(self, sql: str, act: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
        fails = self.faults.due(self, sql)
        if fails not in (None, "after"):
            self.faults.fail()
        done = act()
        if fails:
            done.close()
            self.faults.fail()
        return done


class FaultyCursor(sqlite3.Cursor):
    """Its rows are steps too."""

    sql: str

    def fetchone(self) -> Any:
        if faults := self._due():
            del self
            faults.fail()
        return super().fetchone()

    def fetchall(self) -> list[Any]:
        if faults := self._due():
            del self
            faults.fail()
        return super().fetchall()

    def __next__(self) -> Any:
        if faults := self._due():
            del self
            faults.fail()
        return super().__next__()

    def _due(self) -> Faults | None:
        connection = self.connection
        assert isinstance(connection, FaultyConnection)
        return connection.faults if connection.faults.due(connection, f"fetch of {self.sql}") else None
