"""The log of a server's file, read whole and checked against everything that can be recomputed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec import Struct

from inbetweenies.model import Held, Kind, Reads, digest_change, next_chain, row_hash
from inbetweenies.stores.schema import FOREVER
from inbetweenies.stores.sqlite import SqliteStore
from tests.support import run

Key = tuple[Kind, str, str]


class Line(Struct, frozen=True):
    """One row of the log, as far as it tells who wrote what and when."""

    seq: int
    kind: Kind
    id: str
    version: str
    current: bool
    stamp: int
    body: bytes

    @property
    def key(self) -> Key:
        return (self.kind, self.id, self.version)


def dump(path: Path) -> dict[str, list[Any]]:
    """Every value of the file, for comparing two of them to the letter."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for (name,) in sorted(tables.fetchall())
        }


def lines(path: Path, after: int = 0) -> list[Line]:
    """The rows of the one graph in the file, after checking that the file is whole and that they are a log.

    No gap, every hash that of its body, the chain unbroken, stamps rising, one current row of an id at most, the head
    at its end and the digest that of what is current. All rows are checked, those after `after` are returned.
    """
    with closing(sqlite3.connect(path)) as connection:
        assert [("ok",)] == connection.execute("PRAGMA integrity_check").fetchall()
        assert [] == connection.execute("PRAGMA foreign_key_check").fetchall()
        if [] == connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'log'").fetchall():
            return []  # whoever made the file was killed over it
        found = connection.execute(
            "SELECT seq, kind, id, version, until, stamp, body, hash, chain FROM log ORDER BY graph, seq"
        ).fetchall()
        heads = connection.execute("SELECT seq, chain, stamp, digest FROM graphs").fetchall()
    chain, digest, stamp = bytes(16), 0, 0
    at: dict[int, tuple[str, str]] = {}
    for expected, (seq, kind, id_, _, until, stamped, body, hash_, linked) in enumerate(found, 1):
        chain = next_chain(chain, hash_)
        assert (expected, row_hash(kind, body), chain) == (seq, hash_, linked)
        assert stamp < stamped
        stamp = stamped
        at[seq] = (kind, id_)
        if until == FOREVER:
            digest = digest_change(digest, come=hash_)
    for _, kind, id_, _, until, *_ in found:
        assert until == FOREVER or at[until] == (kind, id_), "a row ends where another one of its id begins, or itself"
    if heads:
        assert [(len(found), chain, stamp, digest.to_bytes(32, "big"))] == heads
    return [
        Line(seq=seq, kind=kind, id=id_, version=version, current=until == FOREVER, stamp=stamped, body=body)
        for seq, kind, id_, version, until, stamped, body, *_ in found
        if seq > after
    ]


def held(path: Path, keys: list[Key], graph: str = "default") -> Held:
    """What the store answers to whoever asks for these rows by their versions."""
    store = SqliteStore(path)

    async def read() -> Held:
        async with store.transaction(graph, write=False) as tx:
            return await tx.read(Reads(versions=tuple(keys)))

    try:
        return run(read())
    finally:
        run(store.close())
