"""The tables of a `SqliteStore`, and how a file of an older release gets them."""

from __future__ import annotations

import sqlite3
from typing import Final

from ..errors import StoreError
from .ddl import migration_transaction

#: Marks the file as ours, so that another application's file is never touched: "Inbt".
APPLICATION_ID: Final = 0x496E6274
SCHEMA_VERSION: Final = 4

#: `until` of a current row. Larger than any seq, so that "visible at S" is one range: ``until > S AND seq <= S``.
FOREVER: Final = 2**63 - 1

_INDEXES: Final = f"""
CREATE INDEX log_type ON log (graph, entity_type, until, seq) WHERE kind = 'entity';
CREATE INDEX log_listing ON log (graph, id, version) WHERE until = {FOREVER} AND kind = 'entity';
"""

_DOCUMENTS: Final = """
CREATE TABLE documents (
    name TEXT NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""

#: What happened to a log; `told` is JSON.
_EVENTS: Final = """
CREATE TABLE events (
    n INTEGER PRIMARY KEY,
    graph INTEGER NOT NULL REFERENCES graphs,
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    at INTEGER NOT NULL,
    told TEXT NOT NULL,
    UNIQUE (graph, kind, key)
) STRICT;
"""

# The graph leads every key: no query can reach a row of another one (PROTOCOL 7.1). `log_version` and `log_until`
# are rules as well: a row version is stored once, and an id has one current row.
SCHEMA: Final = f"""
CREATE TABLE graphs (
    graph INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    epoch TEXT NOT NULL,
    seq INTEGER NOT NULL,
    chain BLOB NOT NULL,
    stamp INTEGER NOT NULL,
    digest BLOB NOT NULL,
    birth TEXT NOT NULL
) STRICT;
CREATE TABLE log (
    graph INTEGER NOT NULL REFERENCES graphs,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    version TEXT NOT NULL,
    seq INTEGER NOT NULL,
    until INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    edit INTEGER NOT NULL,
    timed INTEGER NOT NULL,
    rise INTEGER NOT NULL,
    born INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    entity_type TEXT NOT NULL,
    user_id TEXT NOT NULL,
    from_id TEXT NOT NULL,
    to_id TEXT NOT NULL,
    via TEXT NOT NULL,
    hash BLOB NOT NULL,
    chain BLOB NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (graph, seq)
) STRICT;
CREATE UNIQUE INDEX log_version ON log (graph, kind, id, version);
CREATE UNIQUE INDEX log_until ON log (graph, kind, id, until);
CREATE INDEX log_from ON log (graph, from_id, until) WHERE kind = 'edge';
CREATE INDEX log_to ON log (graph, to_id, until) WHERE kind = 'edge';
{_INDEXES}
CREATE INDEX log_current ON log (graph, seq) WHERE until = {FOREVER};
CREATE TABLE devices (
    graph INTEGER NOT NULL REFERENCES graphs,
    device TEXT NOT NULL,
    served INTEGER NOT NULL,
    acked INTEGER NOT NULL,
    mark TEXT NOT NULL,
    pushed TEXT NOT NULL,
    PRIMARY KEY (graph, device)
) STRICT, WITHOUT ROWID;
{_DOCUMENTS}
{_EVENTS}
PRAGMA application_id = {APPLICATION_ID};
"""

#: What is remembered beside the log of logs that were set back. `birth` is the first epoch of a graph, in which no two
#: backups of it differ; before this schema there was no other.
_REWINDS: Final = f"""
ALTER TABLE graphs ADD COLUMN birth TEXT NOT NULL DEFAULT '';
UPDATE graphs SET birth = epoch;
ALTER TABLE log ADD COLUMN via TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN pushed TEXT NOT NULL DEFAULT '';
{_EVENTS}
"""  # noqa: S608 - only our own table is put in

#: What makes the next schema of each one that a file may have. A step only adds: nothing that only a newer wire version
#: says is dropped (PROTOCOL 13.9). What is not needed any more goes in a step of its own, once a rollout
#: is finalized. Indexes say nothing, so they may be made anew.
UPGRADES: Final = {1: _DOCUMENTS, 2: _REWINDS, 3: f"DROP INDEX log_type;{_INDEXES}"}


def prepare(connection: sqlite3.Connection) -> None:
    """Make the tables in an empty file, bring those of an older release up to date, and leave any other file alone.

    Raises:
        StoreError: the file is not ours, or of a newer release.
    """
    # Looked at before anything is changed: the file may be somebody else's.
    connection.execute("BEGIN")
    found = _schema(connection)
    connection.execute("COMMIT")
    if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
        raise StoreError("expected a file system that allows a write-ahead log; got one that does not")
    if found == SCHEMA_VERSION:
        return
    with migration_transaction(connection):
        found = _schema(connection)  # another process may have been faster
        steps = [SCHEMA] if found == 0 else [UPGRADES[step] for step in range(found, SCHEMA_VERSION)]
        for statement in "".join(steps).split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _schema(connection: sqlite3.Connection) -> int:
    """Which schema the file has; 0 if it is empty. Raises `StoreError` if it is not ours, or of a newer release."""
    [objects] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if (application, version, objects) == (0, 0, 0):
        return 0
    if application != APPLICATION_ID:
        raise StoreError(f"expected a file of Inbetweenies ({APPLICATION_ID:#x}); got one of another application")
    if not 1 <= version <= SCHEMA_VERSION:
        raise StoreError(f"expected a file with schema 1 to {SCHEMA_VERSION}; got {version}, of another release")
    return int(version)
