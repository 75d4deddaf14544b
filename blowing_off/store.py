"""The local replica: one SQLite file that holds rows, pointers, pending marks, conflicts and the cursor.

Every operation is one transaction, so that what must be true together is true together: a local edit and the mark
that it waits (law 1), the rows of an answer and the cursor that covers them (PROTOCOL 10.3). Several of them become
one inside ``with store.transaction():``. What an answer means is decided by `inbetweenies.replica`; here it is only
written down.

Several processes may open one store. Their writes come one after another, and `syncing` lets one of them sync.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from inbetweenies.errors import InbetweeniesError, StoreBusy, StoreCorrupt, StoreError
from inbetweenies.merge import ancestors
from inbetweenies.model import Conflict, Entity, Kind, Refused, Relationship, digest_change, make_version
from inbetweenies.replica import NEVER, Absorbed, Copy, Key, Local, Pending, Pointer, RowKey, State

from .migration import (
    APPLICATION_ID,
    BUSY_TIMEOUT_S,
    STEPS,
    Standing,
    VersionMigration,
    border,
    code_of,
    make_file,
    remember,
    standing,
    step_up,
)
from .recovery import Recovery, Whole, whole_of

COUNTER_MAX: Final = 999_999  # six digits of a row version; more would sort below fewer

# Format 1. What has come since is made by the steps of `migration`, in new files too: there is one truth.
_SCHEMA: Final = (
    # What is known once: State as JSON, the version minted last, settings.
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    # Every row this replica ever held, ours and theirs. A hostile or broken server can serve other content under a
    # version of ours; with the hash in the key it lies beside ours and never over it. `own` rows were made here.
    """CREATE TABLE copies (
        n INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        version TEXT NOT NULL,
        hash BLOB NOT NULL,
        deleted INTEGER NOT NULL,
        entity_type TEXT NOT NULL,
        name TEXT NOT NULL,
        folded TEXT NOT NULL,
        from_id TEXT NOT NULL,
        to_id TEXT NOT NULL,
        body BLOB NOT NULL,
        own INTEGER NOT NULL,
        UNIQUE (kind, id, version, hash)
    ) STRICT""",
    "CREATE INDEX copies_from ON copies (from_id) WHERE kind = 'edge'",
    "CREATE INDEX copies_to ON copies (to_id) WHERE kind = 'edge'",
    # `before` is the hash of what the server held before it started anew and then told something else.
    """CREATE TABLE pointers (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        theirs TEXT,
        theirs_hash BLOB,
        ours TEXT,
        ours_hash BLOB,
        round INTEGER NOT NULL,
        before BLOB,
        PRIMARY KEY (kind, id)
    ) STRICT, WITHOUT ROWID""",
    # AUTOINCREMENT: an n is never given out twice, so a late ack cannot clear a newer mark. A `quiet` mark is of a row
    # that lost long ago: it is sent, but nobody sees it.
    """CREATE TABLE pending (
        n INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        version TEXT NOT NULL,
        hash BLOB NOT NULL,
        note TEXT,
        quiet INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE INDEX pending_of ON pending (kind, id)",
    """CREATE TABLE conflicts (
        n INTEGER PRIMARY KEY,
        entity_id TEXT NOT NULL,
        local_version TEXT NOT NULL,
        remote_version TEXT NOT NULL,
        strategy TEXT NOT NULL,
        resolved_version TEXT NOT NULL,
        told_at INTEGER NOT NULL,
        resolved INTEGER NOT NULL DEFAULT 0,
        UNIQUE (entity_id, local_version, remote_version)
    ) STRICT""",
)

_COPY: Final = "c.kind, c.id, c.version, c.hash, c.deleted, c.entity_type, c.name, c.from_id, c.to_id, c.body"
_COPIES: Final = f"SELECT {_COPY} FROM copies AS c"  # noqa: S608 - only our own column names are put in
# What a person sees of each id: ours where there is one, else theirs (PROTOCOL 10.1).
_VISIBLE: Final = f"""
    SELECT {_COPY} FROM pointers AS p JOIN copies AS c
    ON c.kind = p.kind AND c.id = p.id
    AND c.version = coalesce(p.ours, p.theirs) AND c.hash = coalesce(p.ours_hash, p.theirs_hash)
"""  # noqa: S608 - only our own column names are put in
# PROTOCOL 3.5: an edge to a tombstone is hidden, not deleted; an end that is not known here hides nothing.
_HANGS: Final = """
    EXISTS (
        SELECT 1 FROM pointers AS q JOIN copies AS d
        ON d.kind = q.kind AND d.id = q.id
        AND d.version = coalesce(q.ours, q.theirs) AND d.hash = coalesce(q.ours_hash, q.theirs_hash)
        WHERE q.kind = 'entity' AND q.id IN (c.from_id, c.to_id) AND d.deleted
    )
"""
_EDGES: Final = f"{_VISIBLE} WHERE p.kind = 'edge' AND (?1 OR NOT (c.deleted OR {_HANGS}))"
# The candidates are found by index, since an edge may have been re-pointed since.
_AT: Final = """
    p.id IN (
        SELECT id FROM copies WHERE kind = 'edge' AND from_id = ?2
        UNION SELECT id FROM copies WHERE kind = 'edge' AND to_id = ?2
    ) AND ?2 IN (c.from_id, c.to_id)
"""
_POINT: Final = """
    INSERT INTO pointers (kind, id, theirs, theirs_hash, round, ours, ours_hash) VALUES (
        ?1, ?2, ?3, ?4, ?5,
        (SELECT version FROM pending WHERE kind = ?1 AND id = ?2 AND NOT quiet ORDER BY n DESC LIMIT 1),
        (SELECT hash FROM pending WHERE kind = ?1 AND id = ?2 AND NOT quiet ORDER BY n DESC LIMIT 1)
    ) ON CONFLICT DO UPDATE SET
        before = CASE
            WHEN ?6 AND round < excluded.round AND theirs_hash IS NOT excluded.theirs_hash
            THEN coalesce(before, theirs_hash) ELSE before
        END,
        theirs = excluded.theirs, theirs_hash = excluded.theirs_hash, round = excluded.round,
        ours = excluded.ours, ours_hash = excluded.ours_hash
"""

_NEWEST: Final = """
    UPDATE pointers SET (ours, ours_hash) = (
        SELECT m.version, m.hash FROM pending AS m WHERE m.kind = pointers.kind AND m.id = pointers.id
        AND NOT m.quiet ORDER BY n DESC LIMIT 1
    ) WHERE id = ?
"""

_encode = msgspec.json.Encoder().encode
_state = msgspec.json.Decoder(State)
_note = msgspec.json.Decoder(Refused)
_entity = msgspec.json.Decoder(Entity)
_edge = msgspec.json.Decoder(Relationship)

_Found: TypeAlias = tuple[Any, ...]


class SyncRunning(InbetweeniesError, RuntimeError):
    """Another sync of this store is under way, here or in another process. Wait for it to end."""


class ConflictRecord(Struct, frozen=True, kw_only=True):
    """Something of a write lost (PROTOCOL 6.7). The losing rows are kept and can be read in the history.

    Attributes:
        n: names this record.
        name: what the entity is called here now, empty if it is not known here.
        winner: the row version that stands.
        losers: the versions that met and do not stand as they were written.
        strategy: why, in the server's words.
        when: when the server told it, in microseconds since 1970.
    """

    n: int
    entity_id: str
    name: str
    winner: str
    losers: tuple[str, ...]
    strategy: str
    when: int


class Held(Struct, frozen=True, kw_only=True):
    """One row of an id's history as this replica holds it: whether it is visible now, and whether it waits."""

    copy: Copy
    current: bool
    pending: bool


class Counts(Struct, frozen=True, kw_only=True):
    """How much there is: living entities and edges, tombstones of both, row versions, and marks."""

    entities: int
    relationships: int
    tombstones: int
    rows: int
    pending: int


def _use_wal(db: sqlite3.Connection) -> None:
    """Keep a WAL. While two connections change to it at once SQLite tells one that it is busy, whatever the timeout."""
    last = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > last:
                raise
            time.sleep(0.01)
        else:
            return


class LocalStore(Recovery):
    """The replica at `path`, made if there is none yet. ``":memory:"`` keeps it in memory, for trials and tests.

    One of an older format is brought to the newest, with a copy made before. One of a newer release is used, or only
    read (`read_only`), as far as that release allowed it.

    Raises:
        StoreError: the file is something else, or not for this release; it was not touched.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.read_only = False
        self._depth = 0
        self._syncing = False
        self._connection: sqlite3.Connection | None = None
        with self._border():
            self._connection = self._open()

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._open()
        return self._connection

    # --- opening --------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        if self.path != ":memory:":
            file = Path(self.path)
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            make_file(file)  # its WAL takes over the mode
        db = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False)
        try:
            db.execute("BEGIN")  # another process may be making the file at this moment: see all of it, or nothing
            found = self._standing(db)
            db.execute("COMMIT")
            self.read_only = found == "read_only"
            if self.path != ":memory:" and not self.read_only:
                Path(self.path).chmod(0o600)
                _use_wal(db)
            # FULL: an edit that was confirmed to a person must survive the battery running out.
            for setting in ("synchronous = FULL", "fullfsync = ON", "trusted_schema = OFF", "cell_size_check = ON"):
                db.execute(f"PRAGMA {setting}")
            if found == "empty":
                self._create(db)
            elif found == "older":
                VersionMigration(self.path).migrate_if_needed()
            elif self.read_only:
                db.execute("PRAGMA query_only = ON")
        except BaseException:
            db.close()
            raise
        return db

    def _standing(self, db: sqlite3.Connection) -> Standing:
        return standing(db, self.path)

    def _create(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")  # closing rolls back
        if self._standing(db) == "empty":  # another process may have been faster
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            for step in STEPS:
                step_up(db, step)
        db.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file. What was written is safe already."""
        with self._border():
            if self._connection is not None:
                self._connection.close()

    # --- transactions ---------------------------------------------------------------------------------------------

    def _border(self) -> AbstractContextManager[None]:
        """Foreign exceptions stop here."""
        return border(self.path)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside becomes durable together at the end, or none of it. May be nested."""
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        if self.read_only:
            raise StoreError(
                f"expected a store at {self.path} that this release may write; got one of a newer release, which it "
                "may only read. Update this program; nothing was changed."
            )
        with self._border():
            db = self._db
            self._depth = 1
            try:
                db.execute("BEGIN IMMEDIATE")
                yield
                db.execute("COMMIT")
            except BaseException as error:
                self._undo(db, doubtful=code_of(error) == sqlite3.SQLITE_IOERR)
                raise
            finally:
                self._depth = 0

    def _undo(self, db: sqlite3.Connection, *, doubtful: bool) -> None:
        """Roll back. After an I/O error a connection must not be trusted, nor its fsync be tried again."""
        try:
            if db.in_transaction:  # SQLite may have rolled back by itself
                db.execute("ROLLBACK")
        except (sqlite3.Error, MemoryError):
            doubtful = True
        if doubtful and self.path != ":memory:":
            self._connection = None  # the next call opens another one
            with suppress(sqlite3.Error):
                db.close()

    @contextmanager
    def syncing(self) -> Iterator[None]:
        """The right to sync this store, for one process at a time.

        Held as a lock on a file of its own, which the system takes back when a process dies.

        Raises:
            SyncRunning: somebody else has it.
        """
        running = SyncRunning(
            f"expected to be the only one to sync {self.path}; another sync is under way. Wait until it has ended."
        )
        if self._syncing:
            raise running
        if self.path == ":memory:":
            self._syncing = True
            try:
                yield
            finally:
                self._syncing = False
            return
        with alone(f"{self.path}.sync") as got:
            if not got:
                raise running
            self._syncing = True
            try:
                yield
            finally:
                self._syncing = False

    def _all(self, statement: str, *values: Any) -> list[_Found]:
        with self._border():
            return self._db.execute(statement, values).fetchall()

    def _one(self, statement: str, *values: Any) -> _Found | None:
        with self._border():
            found: _Found | None = self._db.execute(statement, values).fetchone()
            return found

    # --- what is known once ---------------------------------------------------------------------------------------

    def setting(self, key: str) -> str | None:
        """The value kept under `key`, None if there is none."""
        found = self._one("SELECT value FROM meta WHERE key = ?", key)
        return None if found is None else str(found[0])

    def keep(self, **settings: str | None) -> None:
        """Keep each setting under its name; None forgets it."""
        with self.transaction():
            for key, value in settings.items():
                if value is None:
                    self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
                else:
                    self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def state(self) -> State | None:
        """What is known of the server; None before the first `put_state`."""
        text = self.setting("state")
        if text is None:
            return None
        try:
            return _state.decode(text)
        except (msgspec.MsgspecError, ValueError) as error:
            raise StoreCorrupt(f"expected the state of a replica in {self.path}; got something else") from error

    def put_state(self, state: State) -> None:
        """Know `state` from here on."""
        self.keep(state=_encode(state).decode())

    def mint(self, now: int, user: str) -> str:
        """The next row version. Strictly rising in this store, even when the clock stands still or steps back."""
        with self.transaction():
            last, counter = map(int, (self.setting("minted") or "-1:0").split(":"))
            if now > last:
                last, counter = now, 0
            elif counter < COUNTER_MAX:
                counter += 1
            else:
                last, counter = last + 1, 0
            self.keep(minted=f"{last}:{counter}")
            return make_version(last, counter, user)

    # --- writing --------------------------------------------------------------------------------------------------

    def write(self, copies: Iterable[Copy]) -> None:
        """Local edits: rows, what is visible, and the marks that they wait, together (law 1)."""
        with self.transaction():
            listed = list(copies)
            self._insert(listed, own=True)
            self._mark(listed)

    def _insert(self, copies: Iterable[Copy], *, own: bool = False) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO copies"
            " (kind, id, version, hash, deleted, entity_type, name, folded, from_id, to_id, body, own)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    copy.kind,
                    copy.id,
                    copy.version,
                    copy.hash,
                    copy.deleted,
                    copy.entity_type,
                    copy.name,
                    copy.name.casefold(),
                    copy.from_id,
                    copy.to_id,
                    copy.body,
                    own,
                )
                for copy in copies
            ),
        )

    def _mark(self, copies: Iterable[Copy], *, offered: bool = False) -> None:
        for copy in copies:
            row = whole_of(copy)
            self._db.execute(
                "INSERT INTO pending (kind, id, version, hash, offered) VALUES (?, ?, ?, ?, ?)", (*row, offered)
            )
            self._db.execute(
                "INSERT INTO pointers (kind, id, ours, ours_hash, round) VALUES (?, ?, ?, ?, 0)"
                " ON CONFLICT DO UPDATE SET ours = excluded.ours, ours_hash = excluded.ours_hash",
                row,
            )

    def pending(self, limit: int | None = None, after_n: int = 0) -> list[Pending]:
        """Rows that wait for their ack, in the order they were made."""
        found = self._all(
            f"SELECT p.n, p.note, p.offered, p.quiet, {_COPY} FROM pending AS p JOIN copies AS c"  # noqa: S608 - our own
            " ON c.kind = p.kind AND c.id = p.id AND c.version = p.version AND c.hash = p.hash"
            " WHERE p.n > ? ORDER BY p.n LIMIT ?",
            after_n,
            -1 if limit is None else limit,
        )
        return [
            Pending(
                n=n,
                copy=_copy(copy),
                note=None if note is None else _note.decode(note),
                offered=bool(offered),
                aside=bool(offered and quiet),
            )
            for n, note, offered, quiet, *copy in found
        ]

    def newest_pending(self) -> int:
        """The `n` of the row that waits and was made last; 0 if none waits."""
        found = self._one("SELECT max(n) FROM pending")
        return 0 if found is None else found[0] or 0

    def local(self, keys: Iterable[Key], rows: Iterable[RowKey]) -> Local:
        """What `replica.absorb` must see, for the `keys` and `rows` that `replica.mentions` named."""
        pointers: dict[Key, Pointer] = {}
        pending: dict[Key, tuple[tuple[int, str], ...]] = {}
        known: dict[RowKey, bytes] = {}
        with self._border():
            for kind, id_ in keys:
                found = self._db.execute(
                    "SELECT theirs, theirs_hash, ours, round FROM pointers WHERE kind = ? AND id = ?", (kind, id_)
                ).fetchone()
                if found is None:
                    continue
                theirs, hash_, ours, round_ = found
                pointers[kind, id_] = Pointer(theirs=theirs, theirs_hash=hash_, ours=ours, round=round_)
                if ours is not None:
                    marks = self._db.execute(
                        "SELECT n, version FROM pending WHERE kind = ? AND id = ? ORDER BY n", (kind, id_)
                    )
                    pending[kind, id_] = tuple(marks)
            for row in rows:
                pointer = pointers.get(row[:2])
                if pointer is None:
                    continue  # what nothing points at is told anew, which costs less than looking for it
                if pointer.theirs == row[2] and pointer.theirs_hash is not None:
                    known[row] = pointer.theirs_hash
                    continue
                found = self._db.execute(
                    "SELECT hash FROM copies WHERE kind = ? AND id = ? AND version = ? ORDER BY n DESC LIMIT 1", row
                ).fetchone()
                if found is not None:
                    known[row] = found[0]
        return Local(pointers=pointers, known=known, pending=pending)

    def apply(self, absorbed: Absorbed, *, now: int) -> None:
        """What an answer changes here: rows, pointers, marks, notes, conflicts and the state with the cursor, together.

        `ours` is read from the marks that are there and not taken from `absorbed`: an edit made since `local` was
        asked must stay visible.
        """
        with self.transaction():
            before = self.state()
            self._insert(absorbed.copies)
            self._db.executemany("DELETE FROM pending WHERE n = ?", ((n,) for n in absorbed.cleared))
            self._db.executemany(
                "UPDATE pending SET note = ? WHERE n = ?",
                ((_encode(note).decode(), n) for n, note in absorbed.notes.items()),
            )
            restarting = absorbed.state.restarting
            self._db.executemany(
                _POINT,
                (
                    (kind, id_, pointer.theirs, pointer.theirs_hash, pointer.round, restarting)
                    for (kind, id_), pointer in absorbed.pointers.items()
                ),
            )
            # A delete of something that never was anywhere leaves nothing to point at.
            nowhere = (key for key, pointer in absorbed.pointers.items() if pointer.theirs is None)
            self._db.executemany("DELETE FROM pointers WHERE kind = ? AND id = ? AND ours IS NULL", nowhere)
            self._db.executemany(
                "INSERT OR IGNORE INTO conflicts"
                " (entity_id, local_version, remote_version, strategy, resolved_version, told_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                ((*_conflict(conflict), now) for conflict in absorbed.conflicts),
            )
            self.heard(absorbed.heard)
            if absorbed.state.witness is not None and (before is None or before.witness is None):
                self.heard_before(absorbed.state.witness)
            if absorbed.state.cursor is not None and (before is None or before.cursor != absorbed.state.cursor):
                remember(self._db, absorbed.state.cursor)
            self.put_state(absorbed.state)

    def annotate(self, notes: Mapping[int, Refused]) -> None:
        """Keep with these marks why they still wait."""
        with self.transaction():
            self._db.executemany(
                "UPDATE pending SET note = ? WHERE n = ?", ((_encode(note).decode(), n) for n, note in notes.items())
            )

    def give_up(self, id_: str) -> int:
        """Forget the marks of `id_` that wait for a reason; what is seen is what is left. The rows stay.

        The only way by which a mark goes without the server having named it: because a person said so.
        """
        with self.transaction():
            self._db.execute(
                "UPDATE copies SET told = ? WHERE told IS NULL AND (kind, id, version, hash) IN"
                " (SELECT kind, id, version, hash FROM pending WHERE id = ? AND note NOTNULL)",
                (NEVER, id_),
            )
            gone = self._db.execute("DELETE FROM pending WHERE id = ? AND note NOTNULL", (id_,)).rowcount
            self._db.execute(_NEWEST, (id_,))
            self._db.execute("DELETE FROM pointers WHERE id = ? AND ours IS NULL AND theirs IS NULL", (id_,))
            return gone

    # --- starting anew --------------------------------------------------------------------------------------------

    def offer_again(self) -> int:
        """The end of a restart: mark what the server was not found to hold any more as pending (PROTOCOL 10.6).

        That is every row which the server held as current before, and did not tell again or told an older row in
        place of. Each goes with the rows it descends from and, an edge, with the rows at its ends, parents first: a
        server that lost them could otherwise only take it for a conflict or for an edge to nowhere. So do the rows
        made here that lost, which nobody else holds. What waited before goes last, since it may descend from these.

        Returns the number of rows marked.
        """
        with self.transaction():
            state = self.state()
            if state is None or not state.restarting:
                return 0
            # As (kind, id, hash of what the server held, the version that it holds now or None).
            gone = self._all(
                "SELECT kind, id, theirs_hash, NULL FROM pointers WHERE theirs NOTNULL AND round < ?", state.round
            )
            older = self._all(
                "SELECT kind, id, before, CASE WHEN round >= ? THEN theirs END FROM pointers WHERE before NOTNULL",
                state.round,
            )
            seen: dict[Whole, Copy] = {}  # what stands for its id here until the server has it again
            quiet: dict[Whole, Copy] = {}
            for kind, id_, hash_, now in older + gone:
                held = self._of(kind, id_)
                known = _named(now, held)
                said = next((copy.from_id or id_ for copy in held if copy.hash == hash_), id_)
                if self._told_since(said, state.round):
                    # What was made of its record is told itself, in rows; given back, that would be undone by it.
                    known |= self._made_up(kind, id_)
                for copy in (copy for copy in held if copy.hash == hash_):
                    line = _lineage(copy.version, [*held, copy]) if kind == "entity" else [copy]
                    seen.update({whole_of(other): other for other in line if other.version not in known})
            for edge in (copy for copy in seen.values() if copy.kind == "edge"):
                value = _edge.decode(edge.body)
                for id_, version in (
                    (value.from_entity_id, value.from_entity_version),
                    (value.to_entity_id, value.to_entity_version),
                ):
                    quiet.update({whole_of(copy): copy for copy in self._of("entity", id_) if copy.version == version})
            quiet.update(self._lost(state.round, seen))
            self._db.execute(
                "UPDATE pointers SET theirs = NULL, theirs_hash = NULL WHERE theirs NOTNULL AND round < ?",
                (state.round,),
            )
            self._db.execute("UPDATE pointers SET before = NULL, round = ? WHERE before NOTNULL", (state.round,))
            self.requeue(seen.values(), [copy for whole, copy in quiet.items() if whole not in seen])
            # What was made of a record and is told in rows otherwise stands for nothing any more.
            self._db.execute("DELETE FROM pointers WHERE ours IS NULL AND theirs IS NULL")
            digest = state.digest
            for _, _, hash_, _ in gone:
                digest = digest_change(digest, gone=hash_)
            self.put_state(replace(state, digest=digest, restarting=False))
            return len(seen.keys() | quiet.keys())

    def _told_since(self, id_: str, round_: int) -> bool:
        """Whether the server has told of this entity since this round began."""
        told = "SELECT 1 FROM pointers WHERE kind = 'entity' AND id = ? AND theirs NOTNULL AND round >= ?"
        return self._one(told, id_, round_) is not None

    def _made_up(self, kind: str, id_: str) -> set[str]:
        found = self._all("SELECT version FROM copies WHERE kind = ? AND id = ? AND told = ?", kind, id_, NEVER)
        return {version for (version,) in found}

    def _lost(self, round_: int, seen: Iterable[Whole]) -> dict[Whole, Copy]:
        """Rows made here that nothing which the server holds or is offered descends from.

        Entities only, and no tombstones: an old value of an edge, or a delete that was undone since, would count.
        """
        found = self._all(
            "SELECT DISTINCT c.id, CASE WHEN p.round >= ? THEN p.theirs END FROM copies AS c JOIN pointers AS p"
            " ON p.kind = c.kind AND p.id = c.id WHERE c.kind = 'entity' AND c.own AND NOT c.deleted"
            " AND c.hash IS NOT p.theirs_hash",
            round_,
        )
        offered: dict[str, set[str]] = {}
        for kind, id_, version, _ in seen:
            if kind == "entity":
                offered.setdefault(id_, set()).add(version)
        lost: dict[Whole, Copy] = {}
        for id_, now in found:
            held = self._of("entity", id_)
            known = _named(now, held) | offered.get(id_, set())
            own = {
                version
                for (version,) in self._all("SELECT version FROM copies WHERE kind = 'entity' AND id = ? AND own", id_)
            }
            lost.update(
                {
                    whole_of(copy): copy
                    for copy in held
                    if copy.version in own and copy.version not in known and not copy.deleted
                }
            )
        return lost

    def requeue(self, claims: Iterable[Copy], asides: Iterable[Copy]) -> None:
        """Mark these rows as pending before all that waits already, entities before edges. Nobody sees `asides`."""
        waiting = self._all("SELECT kind, id, version, hash, note, quiet, offered FROM pending ORDER BY n")
        known = {(kind, id_, version, hash_) for kind, id_, version, hash_, *_ in waiting}
        self._db.execute("DELETE FROM pending")
        new = [copy for copy in claims if whole_of(copy) not in known]
        quiet = sorted((copy for copy in asides if whole_of(copy) not in known), key=lambda copy: copy.kind != "entity")
        self._mark((copy for copy in new if copy.kind == "entity"), offered=True)
        self._db.executemany(
            "INSERT INTO pending (kind, id, version, hash, quiet, offered) VALUES (?, ?, ?, ?, 1, 1)",
            (whole_of(copy) for copy in quiet),
        )
        self._mark((copy for copy in new if copy.kind == "edge"), offered=True)
        self._db.executemany(
            "INSERT INTO pending (kind, id, version, hash, note, quiet, offered) VALUES (?, ?, ?, ?, ?, ?, ?)", waiting
        )
        self._db.executemany(
            "UPDATE pointers SET ours = ?3, ours_hash = ?4 WHERE kind = ?1 AND id = ?2",
            (row[:4] for row in waiting if not row[5]),
        )

    def lineage(self, kind: str, id_: str, hash_: bytes) -> list[Copy]:
        """The row with this hash and all those it descends from, as far as they are here, parents first."""
        held = self._of(kind, id_)
        copy = next(copy for copy in held if copy.hash == hash_)
        return [copy] if kind == "edge" else _lineage(copy.version, [*held, copy])

    def _of(self, kind: str, id_: str) -> list[Copy]:
        return [_copy(found) for found in self._all(f"{_COPIES} WHERE c.kind = ? AND c.id = ? ORDER BY c.n", kind, id_)]

    # --- reading --------------------------------------------------------------------------------------------------

    def visible(self, kind: Kind, id_: str) -> Copy | None:
        """The row that stands for `id_` here, tombstones included."""
        found = self._one(f"{_VISIBLE} WHERE p.kind = ? AND p.id = ?", kind, id_)
        return None if found is None else _copy(found)

    def current(self, *, theirs: bool = False) -> list[Copy]:
        """The row that stands for each id here, or that the server is known to hold, tombstones included."""
        if not theirs:
            return [_copy(found) for found in self._all(_VISIBLE)]
        return [
            _copy(found)
            for found in self._all(
                f"{_COPIES} JOIN pointers AS p ON c.kind = p.kind AND c.id = p.id"
                " AND c.version = p.theirs AND c.hash = p.theirs_hash"
            )
        ]

    def get(self, id_: str) -> Copy | None:
        """The row that stands for the entity `id_` here, tombstones included."""
        return self.visible("entity", id_)

    def find(self, text: str | None = None, *, entity_type: str | None = None, deleted: bool = False) -> list[Copy]:
        """Entities whose name contains `text`, whatever the case, by name. With `deleted`, tombstones too."""
        found = self._all(
            f"{_VISIBLE} WHERE p.kind = 'entity' AND (?1 OR NOT c.deleted)"
            " AND (?2 IS NULL OR c.entity_type = ?2) AND (?3 IS NULL OR instr(c.folded, ?3) > 0)"
            " ORDER BY c.folded, c.id",
            deleted,
            None if entity_type is None else entity_type.lower(),
            None if text is None else text.casefold(),
        )
        return [_copy(copy) for copy in found]

    def resolve(self, text: str) -> list[Copy]:
        """The entities that `text` can mean; one of them means that it is clear.

        The first of these that finds any: the id, the whole name, the beginning of ids, a part of names. Case does
        not matter. Tombstones are only found where nothing alive is.
        """
        if not text:
            return []
        low = text.lower()
        wheres = (
            ("p.id IN (?1, ?2)", (text, low)),
            ("c.folded = ?1", (text.casefold(),)),
            (
                "(p.id BETWEEN ?1 AND ?1 || char(1114111) OR p.id BETWEEN ?2 AND ?2 || char(1114111))",
                (text, low),
            ),
            ("instr(c.folded, ?1) > 0", (text.casefold(),)),
        )
        for deleted in (0, 1):
            for where, values in wheres:
                found = self._all(
                    f"{_VISIBLE} WHERE p.kind = 'entity' AND {where} AND c.deleted = {deleted} ORDER BY c.folded, c.id",
                    *values,
                )
                if found:
                    return [_copy(copy) for copy in found]
        return []

    def links(self, id_: str | None = None, *, deleted: bool = False) -> list[Copy]:
        """Edges, or those from and to `id_`. Without `deleted`, neither tombstones nor edges to tombstones."""
        if id_ is None:
            found = self._all(f"{_EDGES} ORDER BY c.entity_type, c.id", deleted)
        else:
            found = self._all(f"{_EDGES} AND {_AT} ORDER BY c.entity_type, c.id", deleted, id_)
        return [_copy(copy) for copy in found]

    def history(self, id_: str) -> list[Held]:
        """Every row of the entity `id_` that this replica holds, in the order in which it came to hold them."""
        found = self._all(
            "SELECT EXISTS (SELECT 1 FROM pending AS m"  # noqa: S608 - our own column names
            " WHERE m.kind = c.kind AND m.id = c.id AND m.version = c.version AND m.hash = c.hash),"
            f" {_COPY} FROM copies AS c WHERE c.kind = 'entity' AND c.id = ? ORDER BY c.n",
            id_,
        )
        now = self.get(id_)
        seen = None if now is None else (now.version, now.hash)
        held = []
        for waits, *values in found:
            copy = _copy(values)
            held.append(Held(copy=copy, current=(copy.version, copy.hash) == seen, pending=bool(waits)))
        return held

    def conflicts(self) -> list[ConflictRecord]:
        """What the server told of conflicts, newest first."""
        found = self._all(
            "SELECT n, entity_id, local_version, remote_version, resolved_version, strategy, told_at FROM conflicts"
            " WHERE NOT resolved ORDER BY n DESC"
        )
        records = []
        for n, entity_id, local, remote, winner, strategy, when in found:
            now = self.get(entity_id)
            records.append(
                ConflictRecord(
                    n=n,
                    entity_id=entity_id,
                    name="" if now is None else now.name,
                    winner=winner,
                    losers=tuple(version for version in (local, remote) if version != winner),
                    strategy=strategy,
                    when=when,
                )
            )
        return records

    def counts(self) -> Counts:
        """How much there is."""
        living: dict[str, int] = dict(
            self._all(
                "SELECT kind || deleted, count(*) FROM (" + _VISIBLE + ") GROUP BY kind, deleted"  # noqa: S608
            )
        )
        rows, marks = self._all("SELECT (SELECT count(*) FROM copies), (SELECT count(*) FROM pending)")[0]
        return Counts(
            entities=living.get("entity0", 0),
            relationships=living.get("edge0", 0),
            tombstones=living.get("entity1", 0) + living.get("edge1", 0),
            rows=rows,
            pending=marks,
        )

    def digest(self) -> int:
        """The sum of the hashes of all rows that the server is known to hold as current (PROTOCOL 4.8)."""
        state = self.state()
        return 0 if state is None else state.digest


@contextmanager
def alone(lock: str, *, patience_s: float = 0) -> Iterator[bool]:
    """Whether, within `patience_s`, nobody else is inside with the same file, here or in another process. The system
    lets go of it when a process dies."""
    with border(lock):
        make_file(lock)
        gate = sqlite3.connect(lock, isolation_level=None, timeout=patience_s, check_same_thread=False)
    with closing(gate):
        try:
            with border(lock):
                gate.execute("BEGIN EXCLUSIVE")
            free = True
        except StoreBusy:
            free = False
        yield free


def _named(version: str | None, held: Iterable[Copy]) -> set[str]:
    """`version` and all it descends from, as far as the rows among `held` tell; empty for None."""
    if version is None:
        return set()
    rows = {copy.version: copy for copy in held if copy.kind == "entity"}
    return ancestors((version,), {name: _entity.decode(copy.body).parent_versions for name, copy in rows.items()})


def _lineage(version: str, held: Iterable[Copy]) -> list[Copy]:
    """The rows among `held` of `version` and of all it descends from, parents first. Of one version the last counts."""
    rows = {copy.version: copy for copy in held}
    order: list[Copy] = []
    seen: set[str] = set()
    todo = [(version, False)]
    while todo:
        name, done = todo.pop()
        if done:
            order.append(rows[name])
        elif name in rows and name not in seen:
            seen.add(name)
            todo.append((name, True))
            todo += [(parent, False) for parent in _entity.decode(rows[name].body).parent_versions]
    return order


def _conflict(conflict: Conflict) -> tuple[str, ...]:
    return (
        conflict.entity_id,
        conflict.local_version,
        conflict.remote_version,
        conflict.resolution_strategy,
        conflict.resolved_version,
    )


def _copy(found: Iterable[Any]) -> Copy:
    kind, id_, version, hash_, deleted, entity_type, name, from_id, to_id, body = found
    return Copy(
        kind=kind,
        id=id_,
        version=version,
        hash=hash_,
        deleted=bool(deleted),
        entity_type=entity_type,
        name=name,
        from_id=from_id,
        to_id=to_id,
        body=body,
    )
