"""Changes of a database's tables that happen whole or not at all: `migration_transaction`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, Final

from ..errors import LocalProtocolError, StoreError

_PROBE: Final = "inbetweenies_probe"
_TOLD_MAX: Final = 5


class migration_transaction(AbstractContextManager[sqlite3.Connection]):  # noqa: N801 - the name it was asked for by
    """PROTOCOL 13.10: a block in which tables are made, changed and filled: all of it or nothing, whatever raises.

    ``with migration_transaction(connection) as db: db.execute("ALTER TABLE ...")``; ``async with`` does the same. The
    block has the right to write from its beginning. Foreign keys are not enforced inside, or a table that is built
    anew would take the rows with it that refer to it; they are checked before the commit. Nobody can commit inside: not
    ``commit()``, not ``executescript()``, which does so silently. SAVEPOINT works.

    Args:
        connection: of Python's `sqlite3`, with no transaction open. An authorizer that it has is taken off.

    Raises:
        LocalProtocolError: the connection is none, or has a transaction open, or its driver is in a mode in which a
            change of tables cannot be taken back; nothing was done. Or somebody tried to commit inside.
        StoreError: rows refer to what is not there after the block; nothing was changed.
        sqlite3.Error: what SQLite says of the block, or of the commit; nothing was changed.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._block = _transaction(connection)

    def __enter__(self) -> sqlite3.Connection:
        return self._block.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._block.__exit__(kind, error, trace)

    async def __aenter__(self) -> sqlite3.Connection:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    _check(connection)
    [enforced] = connection.execute("PRAGMA foreign_keys").fetchone()
    connection.execute("PRAGMA foreign_keys = OFF")  # inside of a transaction this does nothing, and says nothing
    try:
        _probe(connection)
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.set_authorizer(_inside(connection))
            try:
                yield connection
            finally:
                connection.set_authorizer(None)
            _check_whole(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            # SQLite may have rolled back by itself; and an error here must not hide the one that brought us here.
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            # By its words: where a table is made, the code is that of any error.
            if isinstance(error, sqlite3.Error) and "not authorized" in str(error):
                raise LocalProtocolError(
                    "expected no BEGIN, COMMIT, ROLLBACK or executescript(), and no PRAGMA foreign_keys, inside of a "
                    "migration; got one: let the block end, or use SAVEPOINT. Nothing was changed"
                ) from error
            raise
    finally:
        connection.execute(f"PRAGMA foreign_keys = {enforced}")


def _inside(connection: sqlite3.Connection) -> Callable[..., int]:
    """What may be done inside: all but what commits, and what would silently do nothing. A rollback ends it, as SQLite
    may do by itself: then nothing more may be done, since nobody could take that back."""

    def allowed(action: int, one: str | None, other: str | None, *_: str | None) -> int:
        pragma = action == sqlite3.SQLITE_PRAGMA and (one or "").lower() == "foreign_keys" and other is not None
        commits = action == sqlite3.SQLITE_TRANSACTION and one != "ROLLBACK"
        return sqlite3.SQLITE_DENY if pragma or commits or not connection.in_transaction else sqlite3.SQLITE_OK

    return allowed


def _check(connection: Any) -> None:
    if not isinstance(connection, sqlite3.Connection):
        raise LocalProtocolError(
            f"expected a connection of Python's sqlite3; got {type(connection).__name__}: hand over the one that "
            "is under it"
        )
    if getattr(connection, "autocommit", None) is False:
        raise LocalProtocolError(
            "expected a connection that begins transactions when told to; got one with autocommit=False, which always "
            "has one open: connect with isolation_level=None"
        )
    if connection.in_transaction:
        raise LocalProtocolError("expected a connection without an open transaction; got one with: end that first")


def _probe(connection: sqlite3.Connection) -> None:
    """See that a table that is made in a transaction is gone with it. Drivers were known to commit before each change
    of tables, and wrappers around them may."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(f"CREATE TABLE {_PROBE} (n)")
        held = connection.in_transaction
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    left = connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = ?", (_PROBE,)).fetchone()[0]
    if left:
        connection.execute(f"DROP TABLE {_PROBE}")
        connection.commit()
    if left or not held:
        raise LocalProtocolError(
            "expected a driver in which a change of tables can be taken back; in this one it was committed at once: "
            "connect with isolation_level=None, and with nothing between that commits by itself. Nothing was changed"
        )


def _check_whole(connection: sqlite3.Connection) -> None:
    if not connection.in_transaction:
        raise LocalProtocolError("expected the transaction to be open until its block ends; something ended it")
    broken = connection.execute("PRAGMA foreign_key_check").fetchmany(_TOLD_MAX)
    if broken:
        told = "; ".join(f"row {row} of {table} refers to {parent}" for table, row, parent, _ in broken)
        raise StoreError(f"expected every row to refer to one that is there; got others: {told}. Nothing was changed")
