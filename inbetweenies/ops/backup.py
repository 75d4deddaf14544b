"""Copy the database of a running server to a file that is whole, verified, and known to be.

Read `backup`. Nobody waits for it: a writer goes on writing, and what it commits meanwhile is not in the copy.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import asdict

from ..errors import LocalProtocolError, StoreCorrupt, StoreError, StoreFull
from ..model import format_time
from ..stores.clock import wall_clock
from ..stores.journal import fsync
from ..stores.placing import LEFTOVERS, finish, name_of, sync_folder, told
from ..stores.sqlite import border
from .manifest import FORMAT, SUFFIX, Manifest, Mark, encoded, manifest_of, marks, read, schema_of
from .verify import Damaged, inspect

#: Called with how many pages are copied, and of how many.
Progress = Callable[[int, int], object]

PAGES_AT_ONCE: Final = 2_000  # 8 MB: often enough to tell how far it is
STALE_SECONDS: Final = 3600  # a part that nobody has written to for so long has nobody who writes to it


class Made(Struct, frozen=True, kw_only=True):
    """A backup that was made, and the older ones that were removed since they were too many."""

    path: Path
    manifest: Manifest
    removed: tuple[Path, ...] = ()


def backup(
    db: Path,
    target: Path,
    *,
    keep: int | None = None,
    now: int | None = None,
    progress: Progress = lambda *_: None,
) -> Made:
    """Copy the database at `db` to `target`: a new file, or a folder, in which the copy gets a name that sorts by time.

    Args:
        keep: of a folder, how many backups of this database to keep, the new one included.
        now: the time, in microseconds since 1970.

    Raises:
        LocalProtocolError: there is a file already, or `keep` is less than 1 or not about a folder.
        StoreFull: there is no room for it. Whatever is raised, no half of a backup is left.
        StoreCorrupt: the database itself is damaged.
        StoreError: the database is none of ours, or something could not be read or written.
    """
    now = wall_clock() if now is None else now
    folder = target.is_dir()
    if keep is not None and (keep < 1 or not folder):
        raise LocalProtocolError("expected to keep at least 1 backup in a folder that is there; got something else")
    if not db.exists():
        raise StoreError(f"expected a database at {db}; got no file")
    file = target / f"{db.stem}-{name_of(now)}.db" if folder else target
    if file.exists() or manifest_of(file).exists():
        raise LocalProtocolError(f"expected no file at {file}; got one: name another one, or a folder")
    finish(db)
    sweep(file.parent, f"{db.stem}-" if folder else file.name)
    with part_of(file) as part, part_of(manifest_of(file)) as beside, told(f"write a backup to {file}"):
        copied = _copy(db, part, progress)
        with ThreadPoolExecutor(1) as thread:
            synced = thread.submit(_sync, part)  # the disk has its time while what is in memory is looked at
            try:
                found = inspect(part)
            except Damaged as error:
                raise StoreCorrupt(f"expected {db} to be sound; it is damaged: {error}. Restore a backup") from error
            synced.result()
        if copied != (found.schema, found.graphs):
            raise StoreCorrupt(f"expected the copy of {db} to end where it does; it does not")
        manifest = Manifest(format=FORMAT, release=release(), made=format_time(now), **asdict(found))
        with beside.open("wb") as opened:
            opened.write(encoded(manifest))
            opened.flush()
            fsync(opened.fileno())
        publish(part, file)
        try:
            sync_folder(file.parent)
            publish(beside, manifest_of(file))  # last: without it the backup counts as unfinished
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        sync_folder(file.parent)
    made = Made(path=file, manifest=manifest)
    return made if keep is None else Made(path=file, manifest=manifest, removed=prune(made, db.stem, keep))


def release() -> str:
    """Which release this is."""
    from .. import __version__

    return __version__


# --- files --------------------------------------------------------------------------------------------------------


@contextmanager
def part_of(file: Path) -> Iterator[Path]:
    """An empty file beside `file`, for its owner only, to be renamed to that when it is whole; else it is removed."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        with told(f"write to {file.parent}"):
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield part
    finally:
        for end in ("", *LEFTOVERS):
            with suppress(OSError):
                part.with_name(f"{part.name}{end}").unlink()


def sweep(folder: Path, name: str) -> None:
    """Remove the parts of files with such a name that a process has left which was killed."""
    with suppress(OSError):
        for part in folder.iterdir():
            ours = part.name.startswith(f".{name}") and ".part" in part.name
            if ours and part.stat().st_mtime < time.time() - STALE_SECONDS:
                part.unlink(missing_ok=True)


def publish(part: Path, file: Path) -> None:
    """Give a file its name, unless somebody else has."""
    try:
        os.link(part, file)
    except FileExistsError:
        raise
    except OSError:  # no file can have two names here
        if file.exists():
            raise FileExistsError(17, os.strerror(17)) from None
        part.rename(file)


# --- the copy -----------------------------------------------------------------------------------------------------


def _copy(db: Path, part: Path, progress: Progress) -> tuple[int, tuple[Mark, ...]]:
    """Copy the database as of one commit to `part`. Returns its schema and its graphs, read from itself."""
    with border("read the database"), closing(_connect(db, "ro")) as source:
        # One snapshot for all of it: without, whatever somebody commits meanwhile would make the copy begin again.
        source.execute("BEGIN")
        try:
            schema = schema_of(source)
        except StoreError as error:
            raise StoreError(f"cannot make a backup of {db}: {error}") from error
        graphs = marks(source, schema)
        _copy_pages(source, part, progress)
    return schema, graphs


def _sync(part: Path) -> None:
    with part.open("rb+") as opened:
        fsync(opened.fileno())


def _copy_pages(source: sqlite3.Connection, part: Path, progress: Progress) -> None:
    with closing(_connect(part, "rw")) as copy:
        copy.execute("PRAGMA journal_mode = OFF")  # a part is of no use to anybody
        copy.execute("PRAGMA synchronous = OFF")  # all of it is made durable at the end
        try:
            source.backup(copy, pages=PAGES_AT_ONCE, progress=lambda _, left, total: progress(total - left, total))
        except sqlite3.OperationalError as error:
            # Python tells no code here, only SQLite's words for it.
            kind = StoreFull if "full" in str(error) else StoreError
            raise kind(f"SQLite could not copy the database: {error}") from error
        # One file with nothing beside it, whoever opens it and wherever it is.
        copy.execute("PRAGMA journal_mode = DELETE")


def _connect(file: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)


# --- how many -----------------------------------------------------------------------------------------------------


def prune(made: Made, stem: str, keep: int) -> tuple[Path, ...]:
    """Remove the oldest backups of the same database beside one that was just made and verified, down to `keep` with
    that. Those of others, and what was never finished, are left alone.

    Raises:
        StoreError: one cannot be removed.
    """
    folder, own = made.path.parent, {(mark.graph, mark.birth) for mark in made.manifest.graphs}
    named = re.compile(rf"{re.escape(stem)}-\d{{8}}T\d{{12}}Z\.db{re.escape(SUFFIX)}")
    found = []
    with told(f"remove old backups from {folder}"):
        for path in sorted(folder.iterdir(), reverse=True):
            file = path.with_name(path.name.removesuffix(SUFFIX))
            if named.fullmatch(path.name) and file != made.path:  # whatever the clock says, that one stays
                with suppress(StoreError, FileNotFoundError):
                    if own & {(mark.graph, mark.birth) for mark in read(path).graphs}:
                        found.append(file)
        for file in found[keep - 1 :]:
            file.unlink(missing_ok=True)
            manifest_of(file).unlink(missing_ok=True)
    return tuple(found[keep - 1 :])
