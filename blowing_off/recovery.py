"""The local store's part in getting back what a server lost: what it remembers for that, and what it gives back.

Read `regain`: it is one transaction. What is decided there is decided by `inbetweenies.replica`; which rows an id
descends from is known only here. `LocalStore` is one of these.
"""

from __future__ import annotations

import sqlite3
from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from msgspec.structs import replace

from inbetweenies import rewind
from inbetweenies.model import Cursor, Kind, digest_change, parse_cursor
from inbetweenies.replica import NEVER, Copy, Found, Key, Known, Regained, State, regain

from .migration import keep_places, places_of

Whole = tuple[str, str, str, bytes]  # kind, id, version, hash: one row and no other


class Recovery:
    """What a replica does about a server that was set back."""

    @property
    @abstractmethod
    def _db(self) -> sqlite3.Connection:
        """The file."""

    @abstractmethod
    def _border(self) -> AbstractContextManager[None]:
        """What exceptions of SQLite's do not get past."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[None]:
        """Everything inside becomes durable together, or none of it."""

    @abstractmethod
    def state(self) -> State | None:
        """What is known of the server."""

    @abstractmethod
    def put_state(self, state: State) -> None:
        """Know `state` from here on."""

    @abstractmethod
    def lineage(self, kind: str, id_: str, hash_: bytes) -> list[Copy]:
        """The row with this hash and all those it descends from, as far as they are here, parents first."""

    @abstractmethod
    def requeue(self, claims: Iterable[Copy], asides: Iterable[Copy]) -> None:
        """Offer these rows before all that waits already; `asides` are not what stands for their ids."""

    # --- what is remembered ---------------------------------------------------------------------------------------

    def places(self) -> list[Cursor]:
        """Places of the server's log that were heard of, oldest first (PROTOCOL 10.8)."""
        with self._border():
            return places_of(self._db)

    def heard(self, rows: Iterable[tuple[Kind, str, str, bytes, int]]) -> None:
        """These rows are in the server's log, none after the seq that comes with it (PROTOCOL 10.8)."""
        self._db.executemany(
            "UPDATE copies SET told = max(coalesce(told, ?5), ?5)"
            " WHERE kind = ?1 AND id = ?2 AND version = ?3 AND hash = ?4",
            rows,
        )

    def made_up(self, copies: Iterable[Copy]) -> None:
        """These were made here of what records say, and are no rows of any server."""
        self._db.executemany(
            "UPDATE copies SET told = ? WHERE told IS NULL AND NOT own"
            " AND kind = ? AND id = ? AND version = ? AND hash = ?",
            ((NEVER, *whole_of(copy)) for copy in copies),
        )

    def heard_before(self, cursor: str) -> None:
        """All that was told so far is in the log of a server that only now says how long that is."""
        at = parse_cursor(cursor)
        self._db.execute(
            "UPDATE copies SET told = ? WHERE told IS NULL AND NOT EXISTS (SELECT 1 FROM pending AS m"
            " WHERE (m.kind, m.id, m.version, m.hash) = (copies.kind, copies.id, copies.version, copies.hash))",
            (0 if at is None else at.seq,),
        )

    def theirs(self) -> list[tuple[str, Key, bytes]]:
        """The place, the id and the hash of each row that the server is known to hold as current (PROTOCOL 10.13)."""
        with self._border():
            found = self._db.execute("SELECT kind, id, theirs_hash FROM pointers WHERE theirs_hash NOTNULL").fetchall()
        return [(rewind.place_of(kind, id_), (kind, id_), hash_) for kind, id_, hash_ in found]

    # --- what is given back ---------------------------------------------------------------------------------------

    def regain(self, found: Found) -> tuple[Regained, int]:
        """PROTOCOL 10.9 to 10.11: the log that was known is there up to a place, and goes on otherwise.

        What this replica was told or had acknowledged after that place, and is not there, is offered; or, if it was
        taken back on purpose, is only kept in the history here. Returns how many rows that are as well.
        """
        with self.transaction():
            state = self.state()
            assert state is not None
            done = regain(state, found, self._known_after(found.after))
            self._point(done)
            if found.discarded:
                self._db.executemany(
                    "UPDATE copies SET told = ? WHERE kind = ? AND id = ? AND version = ? AND hash = ?",
                    ((NEVER, row.kind, row.id, row.version, row.hash) for row in done.lost),
                )
                self._db.execute("DELETE FROM pointers WHERE theirs IS NULL AND ours IS NULL")
            else:
                self._offer(done.lost)
            self.heard((row.kind, row.id, row.version, row.hash, found.head.seq) for row in done.held)
            kept = [place for place in self.places() if place.seq < found.after]
            keep_places(self._db, [*kept, *([] if found.common is None else [found.common])])
            self.put_state(done.state)
            return done, len(done.lost)

    def _known_after(self, seq: int) -> list[Known]:
        """The rows that the server told or acknowledged after `seq`, and those of which it is not known when."""
        found = self._db.execute(
            "SELECT c.kind, c.id, c.version, c.hash, p.theirs_hash FROM copies AS c LEFT JOIN pointers AS p"
            " ON p.kind = c.kind AND p.id = c.id WHERE c.told > ?1 OR (c.told IS NULL AND NOT EXISTS"
            " (SELECT 1 FROM pending AS m"
            " WHERE (m.kind, m.id, m.version, m.hash) = (c.kind, c.id, c.version, c.hash))) ORDER BY c.n",
            (seq,),
        ).fetchall()
        return [
            Known(kind=kind, id=id_, version=version, hash=hash_, theirs=theirs)
            for kind, id_, version, hash_, theirs in found
        ]

    def _point(self, done: Regained) -> None:
        """What the server is known to hold as current now, as far as that is known."""
        self._db.executemany(
            "UPDATE pointers SET theirs = NULL, theirs_hash = NULL WHERE kind = ? AND id = ? AND theirs_hash = ?",
            ((row.kind, row.id, row.hash) for row in done.lost if row.theirs == row.hash),
        )
        self._db.executemany(
            "UPDATE pointers SET theirs = ?3, theirs_hash = ?4 WHERE kind = ?1 AND id = ?2",
            ((row.kind, row.id, row.version, row.hash) for row in done.current),
        )

    def _offer(self, lost: Iterable[Known]) -> None:
        """What stood for its id, each with the rows it descends from that are lost too; and the rest, to be kept."""
        waiting: dict[Whole, Known] = {(row.kind, row.id, row.version, row.hash): row for row in lost}
        claims: dict[Whole, Copy] = {}
        asides: dict[Whole, Copy] = {}
        for whole, row in waiting.items():
            line = self.lineage(row.kind, row.id, row.hash)
            if row.theirs == row.hash:
                claims.update({known: copy for copy in line if (known := whole_of(copy)) in waiting})
            asides[whole] = line[-1]
        self.requeue(claims.values(), [copy for whole, copy in asides.items() if whole not in claims])
        self._db.executemany(
            "UPDATE copies SET told = NULL WHERE kind = ? AND id = ? AND version = ? AND hash = ?", waiting
        )

    def offer(self, keys: Iterable[Key]) -> None:
        """Offer what the server was known to hold as current of these ids, and turned out not to (PROTOCOL 10.13)."""
        with self.transaction():
            state = self.state()
            assert state is not None
            claims: list[Copy] = []
            digest = state.digest
            for kind, id_ in keys:
                found: Any = self._db.execute(
                    "SELECT theirs_hash FROM pointers WHERE kind = ? AND id = ?", (kind, id_)
                ).fetchone()
                claims += self.lineage(kind, id_, found[0])[-1:]
                digest = digest_change(digest, gone=found[0])
                self._db.execute(
                    "UPDATE pointers SET theirs = NULL, theirs_hash = NULL WHERE kind = ? AND id = ?", (kind, id_)
                )
            self.requeue(claims, ())
            self.put_state(replace(state, digest=digest))


def whole_of(copy: Copy) -> Whole:
    """What names one row and no other."""
    return (copy.kind, copy.id, copy.version, copy.hash)
