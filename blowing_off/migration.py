"""Formats of the replica's file, and how one becomes the next and the one before. Loses nothing in either direction.

The file says its own format (``user_version``), and in ``meta`` the oldest formats whose programs may read it
(``min_reader``) and write it (``min_writer``): a release that meets a file from the future opens it, reads it, or
refuses it with a sentence, and never guesses. A step leads to the next format only; it and its stamp are one
transaction, so that a process that dies leaves one format or the other. Before the first step the whole file is
copied, and the copy is compared with it.

What only the newer format can say stays in the file when it is taken back, in tables that older releases do not look
at, and is there again when it comes forward.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, Final, Literal

from msgspec import Struct

from inbetweenies.errors import StoreBusy, StoreCorrupt, StoreError, StoreFull
from inbetweenies.model import parse_cursor

APPLICATION_ID: Final = 0x424F6666  # "BOff": what `file` and we ourselves know the file by
BUSY_TIMEOUT_S: Final = 10.0  # writers are not served in turn, so one among several can wait for long
BACKUPS_KEPT: Final = 3  # of one store; the newest, made and compared before the oldest goes
ROOM: Final = 3  # times its own size: the copy, and what SQLite writes ahead while tables are made anew

Standing = Literal["empty", "current", "older", "newer", "read_only"]


class UnknownVersion(StoreError):
    """The file, or the caller, names a format that this release does not know."""

    code: ClassVar[str] = "unknown_version"


class CannotRollbackToFutureVersion(StoreError):
    """Going back was asked for, to a format that is newer than that of the file."""

    code: ClassVar[str] = "cannot_rollback_to_future_version"


class UnsupportedRollback(StoreError):
    """There is no way back to that format."""

    code: ClassVar[str] = "unsupported_rollback"


class Step(Struct, frozen=True, kw_only=True):
    """From the format before `format` to it, and back. `down` is None where there is no way back.

    Attributes:
        min_reader, min_writer: the oldest formats whose programs may read and write a file of this one.
    """

    format: int
    up: Callable[[sqlite3.Connection], None]
    down: Callable[[sqlite3.Connection], None] | None
    min_reader: int
    min_writer: int


class Migrated(Struct, frozen=True, kw_only=True):
    """What was done to a file: from which format to which, and where the copy is that was made before."""

    before: int
    after: int
    backup: Path | None


# --- the steps ----------------------------------------------------------------------------------------------------


def _checkpoints(db: sqlite3.Connection) -> None:
    """Format 2 remembers places in the server's log, so that one that was rewound can be told where it stood.

    PROTOCOL 4.2: an epoch, a sequence number and the chain there prove themselves.
    """
    if _has(db, "aside_2_checkpoints"):
        db.execute("ALTER TABLE aside_2_checkpoints RENAME TO checkpoints")
    else:
        db.execute(
            """CREATE TABLE checkpoints (
                n INTEGER PRIMARY KEY,
                epoch TEXT NOT NULL,
                seq INTEGER NOT NULL,
                chain BLOB NOT NULL,
                UNIQUE (epoch, seq, chain)
            ) STRICT"""
        )
    found = db.execute("SELECT value FROM meta WHERE key = 'state'").fetchone()
    with suppress(ValueError):  # a damaged state is told of when it is used
        state = json.loads(found[0]) if found is not None else {}
        reached = state.get("cursor") if isinstance(state, dict) else None
        if isinstance(reached, str):
            remember(db, reached)


def _no_checkpoints(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE checkpoints RENAME TO aside_2_checkpoints")


STEPS: Final = (Step(format=2, up=_checkpoints, down=_no_checkpoints, min_reader=1, min_writer=1),)
FORMAT: Final = 1 + len(STEPS)

NEAR: Final = 8  # the last checkpoints, all of them
EPOCHS_MAX: Final = 8  # a server that starts anew all the time is not remembered for ever


def remember(db: sqlite3.Connection, cursor: str) -> None:
    """Keep the place that `cursor` names, if it is of a log like ours, and forget places too close to others.

    The further back, the fewer: the last `NEAR`, then one for each doubling of the distance.
    """
    at = parse_cursor(cursor)
    if at is None:
        return
    db.execute("INSERT OR IGNORE INTO checkpoints (epoch, seq, chain) VALUES (?, ?, ?)", (at.epoch, at.seq, at.chain))
    newest_first = "SELECT n, seq FROM checkpoints WHERE epoch = ? ORDER BY seq DESC, n DESC"
    held = db.execute(newest_first, (at.epoch,)).fetchall()
    taken: set[int] = set()
    for n, seq in held[NEAR:]:
        distance = (held[0][1] - seq).bit_length()
        if distance in taken:
            db.execute("DELETE FROM checkpoints WHERE n = ?", (n,))
        taken.add(distance)
    db.execute(
        "DELETE FROM checkpoints WHERE epoch NOT IN"
        " (SELECT epoch FROM checkpoints GROUP BY epoch ORDER BY max(n) DESC LIMIT ?)",
        (EPOCHS_MAX,),
    )


def _has(db: sqlite3.Connection, table: str) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)).fetchone() is not None


# --- where a file stands ------------------------------------------------------------------------------------------


def format_of(db: sqlite3.Connection) -> int:
    """The format that a file says it has."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def standing(db: sqlite3.Connection, path: str, newest: int = FORMAT) -> Standing:
    """What a program that knows the formats up to `newest` may do with a file.

    Raises:
        StoreError: nothing; it belongs to another program, or to a release that this one must not meddle with.
    """
    version = format_of(db)
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        if version == 0 and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return "empty"
        raise StoreError(
            f"expected a store of Blowing-Off at {path}; got a database of another program, "
            "which was left as it is. Name another file."
        )
    if version <= newest:
        return "current" if version == newest else "older"
    # A file from before these were stamped is for its own release only.
    if _stamp(db, "min_writer", version) <= newest:
        return "newer"
    if _stamp(db, "min_reader", version) <= newest:
        return "read_only"
    raise StoreError(
        f"expected a store of format {newest} or older at {path}; got format {version}, written by a "
        "newer release. Update this program; the file was left as it is."
    )


def _stamp(db: sqlite3.Connection, key: str, otherwise: int) -> int:
    found = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone() if _has(db, "meta") else None
    return int(found[0]) if found is not None and found[0].isascii() and found[0].isdigit() else otherwise


def step_up(db: sqlite3.Connection, step: Step) -> None:
    """Make a file of the format before into one of `step.format`. Belongs into a transaction of the caller's."""
    step.up(db)
    _put_stamp(db, step.format, step)


def _step_down(db: sqlite3.Connection, step: Step, below: Step | None) -> None:
    assert step.down is not None
    step.down(db)
    _put_stamp(db, step.format - 1, below)


def _put_stamp(db: sqlite3.Connection, version: int, step: Step | None) -> None:
    for key, value in (("min_reader", step and step.min_reader), ("min_writer", step and step.min_writer)):
        if value is None:
            db.execute("DELETE FROM meta WHERE key = ?", (key,))
        else:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, str(value)))
    db.execute(f"PRAGMA user_version = {version}")


# --- copies -------------------------------------------------------------------------------------------------------


def copied(source: str | Path, target: Path) -> Path:
    """A copy of the store at `source`, readable by its owner only, and compared with it row by row.

    Raises:
        StoreError: it could not be made or is not the same. Nothing is left of it then.
    """
    with border(str(source)):
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            with closing(_opened(source)) as db, closing(sqlite3.connect(target, isolation_level=None)) as copy:
                db.execute("BEGIN")  # one state of it, whoever writes meanwhile
                before = contents(db)
                db.backup(copy)
                _compare(copy, before, str(source))
        except BaseException:
            target.unlink()
            raise
    return target


def _compare(copy: sqlite3.Connection, before: tuple[tuple[str, int, str], ...], source: str) -> None:
    found = [line for (line,) in copy.execute("PRAGMA integrity_check(8)")]
    if found != ["ok"] or contents(copy) != before:
        raise StoreCorrupt(
            f"expected a sound copy of {source}; got one that differs from it or is damaged. "
            "Nothing was changed; check the disk."
        )


def backup(path: str | Path, *, kept: int = BACKUPS_KEPT) -> Path:
    """A copy of the store beside it, under a name that none had before. Of the older ones the newest `kept` - 1 stay.

    Raises:
        StoreError: as `copied`.
    """
    above, name = Path(path).absolute().parent, Path(path).name
    with border(str(path)):
        needed, free = Path(path).stat().st_size * ROOM, shutil.disk_usage(above).free
    if free < needed:
        raise StoreFull(
            f"expected {needed} bytes free beside {path} for a copy of it; got {free}. Nothing was changed."
        )
    label = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"
    made = copied(path, above / f"{name}.backup-{label}")
    others = sorted(file for file in above.glob(f"{_escaped(name)}.backup-*Z-*") if file != made and file.is_file())
    for file in others[: max(0, len(others) - kept + 1)]:
        file.unlink(missing_ok=True)
    return made


def contents(db: sqlite3.Connection) -> tuple[tuple[str, int, str], ...]:
    """Of every table its name, how many rows it holds, and a digest of them."""
    told = []
    names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_stat%' ORDER BY name"
    for (name,) in db.execute(names).fetchall():
        digest, count = hashlib.sha256(), 0
        quoted = '"' + name.replace('"', '""') + '"'
        width = len(db.execute(f"SELECT * FROM {quoted} LIMIT 0").description)  # noqa: S608 - a quoted name of its own
        order = ", ".join(map(str, range(1, width + 1)))
        for row in db.execute(f"SELECT * FROM {quoted} ORDER BY {order}"):  # noqa: S608 - as above
            digest.update(repr(row).encode(errors="surrogatepass"))
            count += 1
        told.append((name, count, digest.hexdigest()))
    return tuple(told)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _opened(path: str | Path) -> sqlite3.Connection:
    if not Path(path).is_file():
        raise StoreError(f"expected a store at {path}; there is none")
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA trusted_schema = OFF")
    return db


#: Closing any descriptor of a file drops all POSIX locks that the process has on it: another process would take itself
#: for the last one and remove a log that is written to here. So a file is made by one thread, and never opened again.
_MAKING: Final = threading.Lock()


def make_file(file: str | Path) -> None:
    """Make `file` if there is none. SQLite would let others read it."""
    with _MAKING, suppress(FileExistsError):
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def code_of(error: BaseException) -> int:
    """SQLite's primary code of an error; 0 if it is none of SQLite's own."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


@contextmanager
def border(path: str) -> Iterator[None]:
    """Foreign exceptions stop here."""
    try:
        yield
    except sqlite3.Error as error:
        raise _told(error, path) from error
    except MemoryError as error:  # SQLite's NOMEM comes as this, not as an error of its own
        raise StoreError(f"expected memory to use {path}; there is none left.") from error
    except OSError as error:
        raise StoreError(
            f"expected to open {path} for reading and writing; the system says: {error.strerror}"
        ) from error


def _told(error: sqlite3.Error, path: str) -> StoreError:
    code = code_of(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(
            f"expected to write to {path} within {BUSY_TIMEOUT_S:g} s; another process holds it. Try again."
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"expected room to write to {path}; the disk is full. Nothing was changed.")
    if code == sqlite3.SQLITE_CANTOPEN:
        return StoreError(
            f"expected to open {path} for reading and writing; the system does not let us. See what is there and "
            "whose it is."
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreCorrupt(
            f"expected a store of Blowing-Off at {path}; got a file that is none, or a damaged one. Name "
            "another file, or put a copy of the store in its place."
        )
    return StoreError(f"expected to use {path}; SQLite says: {error}")


# --- moving -------------------------------------------------------------------------------------------------------


class VersionMigration:
    """Brings the store at `path` to another format. `LocalStore` calls it when it opens an older one.

    Args:
        path: the file. It may be in use; whoever uses it waits while a step is made.
        steps: from format 1 on, each to the next.
    """

    def __init__(self, path: str | Path, *, steps: Sequence[Step] = STEPS) -> None:
        self.path = str(path)
        self.steps = {step.format: step for step in steps}
        self.newest = 1 + len(steps)

    @property
    def current(self) -> int:
        """The format of the file.

        Raises:
            StoreError: it is no store of ours.
        """
        with border(self.path), closing(_opened(self.path)) as db:
            return self._current(db)

    def migrate_if_needed(self) -> Migrated | None:
        """Bring the file to the newest format that this release knows. None if there was nothing to do.

        Raises:
            UnknownVersion: the file is of a format that this release cannot write.
            StoreError: it could not be done; what was done are whole steps.
        """
        with border(self.path), closing(_opened(self.path)) as db:
            before = self._current(db)
            if before > self.newest:
                if standing(db, self.path, self.newest) == "newer":
                    return None
                raise self._unknown(before)
            return self._move(db, before, self.newest)

    def rollback(self, to: int) -> Migrated | None:
        """Bring the file back to format `to`. What only the newer ones can say stays in it. None if it has it.

        Raises:
            UnknownVersion: there is no format `to`, or the file is of one that this release does not know.
            CannotRollbackToFutureVersion: `to` is newer than what the file has.
            UnsupportedRollback: a step in between has no way back.
        """
        with border(self.path), closing(_opened(self.path)) as db:
            before = self._current(db)
            if to < 1 or to > self.newest:
                raise self._unknown(to)
            if before > self.newest:
                raise self._unknown(before)
            if to > before:
                raise CannotRollbackToFutureVersion(
                    f"expected a format before {before}, which {self.path} has; got {to}. A newer release migrates it."
                )
            for version in range(before, to, -1):
                if self.steps[version].down is None:
                    raise UnsupportedRollback(
                        f"expected a way back from format {version} to {to}; there is none. Nothing was changed: "
                        f"put a copy in its place that was made before, or go on with this release."
                    )
            return self._move(db, before, to)

    def _current(self, db: sqlite3.Connection) -> int:
        if standing(db, self.path, 2**31) == "empty":
            raise StoreError(f"expected a store at {self.path}; got an empty file")
        version = format_of(db)
        if version < 1:
            raise self._unknown(version)
        return version

    def _unknown(self, version: int) -> UnknownVersion:
        return UnknownVersion(
            f"expected one of the formats 1 to {self.newest} that this release knows; got {version}. "
            f"{self.path} was left as it is."
        )

    def _move(self, db: sqlite3.Connection, before: int, after: int) -> Migrated | None:
        """Whole steps, each committed with its stamp."""
        made: Path | None = None
        while True:
            db.execute("BEGIN IMMEDIATE")
            try:
                at = format_of(db)  # another process may have been at it
                if at == after or (at - after) * (before - after) < 0:
                    db.execute("ROLLBACK")
                    break
                if made is None:
                    made = backup(self.path)  # nobody writes while this transaction is open
                if at < after:
                    step_up(db, self.steps[at + 1])
                else:
                    _step_down(db, self.steps[at], self.steps.get(at - 1))
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        return None if made is None else Migrated(before=before, after=after, backup=made)
