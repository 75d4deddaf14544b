"""Where the log of each graph stands, and what happened to it: read from the files, without opening them as a store.

Nothing here changes anything, so that it can be looked at while a server runs, and before one is started.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from ..errors import StoreCorrupt, StoreError
from ..model import Cursor, Document, Event
from .heads import Heads, journal_of
from .journal import Journal, ends
from .placing import waiting
from .schema import APPLICATION_ID, SCHEMA_VERSION

#: What a place kept elsewhere says of a log: it is its end, it is on the way there, it is beyond it, it is of another.
Standing = Literal["equal", "behind", "ahead", "other"]

_GRAPHS: Final = "SELECT graph, name, birth, epoch, seq, chain, stamp, digest FROM graphs ORDER BY name"
_EVENTS: Final = "SELECT kind, key, at, told FROM events WHERE graph = ? ORDER BY n"
_CHAIN: Final = "SELECT chain FROM log WHERE graph = ? AND seq = ?"
_DOCUMENTS: Final = "SELECT name, revision, body FROM documents ORDER BY name"
_told = msgspec.json.Decoder(dict[str, str | int]).decode


class Kept(Struct, frozen=True, kw_only=True):
    """The end of a log as something outside of the database knows it, and what that says."""

    seq: int
    epoch: str
    standing: Standing


class GraphStatus(Struct, frozen=True, kw_only=True):
    """One graph. `stamp` is the time of its last commit, in microseconds; `journal` and `beside` are None where these
    know nothing of it."""

    graph: str
    epoch: str
    birth: str
    seq: int
    chain: str
    stamp: int
    digest: str
    journal: Kept | None
    beside: Kept | None
    events: tuple[Event, ...]

    def count(self, kind: str, field: str | None = None) -> int:
        """How many events of a kind there are, or what they add up to."""
        found = [event for event in self.events if event.kind == kind]
        return len(found) if field is None else sum(int(event.told.get(field, 0)) for event in found)


class JournalStatus(Struct, frozen=True, kw_only=True):
    """The journal's files: how many there are, what they hold together, and when the first and the last were written,
    in seconds since 1970."""

    folder: str
    segments: int
    bytes: int
    oldest: int | None
    newest: int | None


class StoreStatus(Struct, frozen=True, kw_only=True):
    """All there is to know of a database without looking into what it says."""

    path: str
    journal: JournalStatus
    graphs: tuple[GraphStatus, ...]


def status(path: Path, journal: Path | None = None) -> StoreStatus:
    """Where the logs in the database at `path` stand; with its journal in `journal`, or where a server last kept it.

    Raises:
        StoreError: it is no database of ours, or one of a release that this one cannot read.
    """
    if waiting(path).exists():
        raise StoreError(f"expected {path} to be whole; a restore of it was interrupted: start a server, which ends it")
    kept = Journal(journal or journal_of(path))
    files = [(file.stat().st_size, int(file.stat().st_mtime)) for file in kept.segments()]
    tips = {graph: tip for graph, (_, tip) in ends(kept.newest()).items()}
    beside = {end.graph: end.cursor for end in Heads(path).all()}
    return StoreStatus(
        path=str(path),
        journal=JournalStatus(
            folder=str(kept.folder),
            segments=len(files),
            bytes=sum(size for size, _ in files),
            oldest=min((at for _, at in files), default=None),
            newest=max((at for _, at in files), default=None),
        ),
        graphs=tuple(_graphs(path, tips, beside)),
    )


def documents(path: Path) -> dict[str, Document]:
    """What the database at `path` says beside its graphs, by name.

    Raises:
        StoreError: as `status` does.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            _check(path, connection)
            found = connection.execute(_DOCUMENTS).fetchall()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise StoreCorrupt(f"expected a database that SQLite can read at {path}; it says: {error}") from error
    return {name: Document(revision=revision, body=body) for name, revision, body in found}


def _graphs(path: Path, tips: Mapping[str, Cursor], beside: Mapping[str, Cursor]) -> Iterable[GraphStatus]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            _check(path, connection)
            for key, name, birth, epoch, seq, chain, stamp, digest in connection.execute(_GRAPHS).fetchall():
                head = Cursor(epoch, seq, chain)
                yield GraphStatus(
                    graph=name,
                    epoch=epoch,
                    birth=birth,
                    seq=seq,
                    chain=chain.hex(),
                    stamp=stamp,
                    digest=digest.hex(),
                    journal=_kept(connection, key, tips.get(name), head),
                    beside=_kept(connection, key, beside.get(name), head),
                    events=tuple(
                        Event(kind=kind, key=which, at=at, told=_told(told))
                        for kind, which, at, told in connection.execute(_EVENTS, (key,))
                    ),
                )
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise StoreCorrupt(f"expected a database that SQLite can read at {path}; it says: {error}") from error


def _check(path: Path, connection: sqlite3.Connection) -> None:
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise StoreError(f"expected a database of Inbetweenies at {path}; got one of another application")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"expected a database with schema {SCHEMA_VERSION} at {path}; got {version}, of another release: start a "
            "server of this one on it, or use that one's"
        )


def _kept(connection: sqlite3.Connection, key: int, end: Cursor | None, head: Cursor) -> Kept | None:
    if end is None:
        return None
    return Kept(seq=end.seq, epoch=end.epoch, standing=_standing(connection, key, end, head))


def _standing(connection: sqlite3.Connection, key: int, end: Cursor, head: Cursor) -> Standing:
    if end.seq > head.seq:
        return "ahead"
    if end.seq == head.seq:
        return "equal" if end.chain == head.chain else "other"
    found = connection.execute(_CHAIN, (key, end.seq)).fetchone()
    return "behind" if end.seq == 0 or (found is not None and found[0] == end.chain) else "other"
