"""How another file takes the place of a database: all of it or nothing, whenever the process dies.

Read `put`. SQLite keeps a database in up to four files, and what a process that died has left in ``-wal`` or
``-journal`` it puts into whatever database it finds beside it. So these go aside before the new file comes; nothing is
removed. Once that is called ``….restored`` there is no way back: whoever opens the database next, finishes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import StoreBusy, StoreError, StoreFull
from ..model import format_time
from .journal import fsync

#: What SQLite keeps beside a database, and reads again when it opens one.
LEFTOVERS: Final = ("-wal", "-shm", "-journal")

#: The bytes of a database file that SQLite locks (its file format, "the lock-byte page"). In WAL mode every connection
#: holds a lock there for as long as it is open, also while it does nothing.
_LOCKED_AT: Final = 0x40000000
_LOCKED_BYTES: Final = 512

_FULL: Final = (28, 122)  # no space, no quota


@contextmanager
def told(doing: str) -> Iterator[None]:
    """What the system could not do is a `StoreError`, or a `StoreFull`."""
    try:
        yield
    except OSError as error:
        says = f"expected to {doing}; the system says: {error.strerror or error}"
        if error.errno in _FULL:
            raise StoreFull(f"{says}; make room, then try again") from error
        raise StoreError(says) from error


def sync_folder(folder: Path) -> None:
    """What was renamed in this folder stays so after a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fsync(descriptor)
        finally:
            os.close(descriptor)


def name_of(time: int) -> str:
    """A time in microseconds as a part of names, which sort by it."""
    return "".join(letter for letter in format_time(time, naive=True) if letter not in "-:.") + "Z"


def waiting(path: Path) -> Path:
    """Where a file is that is to take the place of the database at `path`, once nothing can go wrong with it."""
    return path.with_name(f"{path.name}.restored")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Nobody has the database at `path` open, and nobody can read or write it, until this ends.

    The file is locked as SQLite does it but not read, since it may be damaged. Not for a process that has it open.

    Raises:
        StoreBusy: somebody has it open.
    """
    path = path.resolve()
    there = next((file for file in (path, waiting(path)) if file.exists()), None)
    if there is None or os.name != "posix":  # elsewhere a file that is open cannot be renamed
        yield
        return
    import fcntl

    with told(f"open {there}"):
        descriptor = os.open(there, os.O_RDWR)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCKED_BYTES, _LOCKED_AT)
            if not there.exists() or not os.path.samestat(os.fstat(descriptor), there.stat()):
                raise BlockingIOError  # somebody else has just put another one here
        except OSError:
            raise StoreBusy(
                f"expected nobody to have {path} open; a server or another command has: stop it, then try again"
            ) from None
        yield
    finally:
        os.close(descriptor)


def put(path: Path, new: Path) -> tuple[Path, ...]:
    """Give the place of the database at `path`, held by `exclusive`, to `new`, a file in the same folder that is on the
    disk. Returns what was there, where it is kept now."""
    path = path.resolve()
    new.replace(waiting(path))
    sync_folder(path.parent)
    return _finish(path)


def finish(path: Path) -> None:
    """End what a process began that died in `put`.

    Raises:
        StoreBusy: somebody has the database open.
        StoreError: it could not be done.
    """
    path = path.resolve()
    if waiting(path).exists():
        with exclusive(path), told(f"put a restored database at {path}"):
            if waiting(path).exists():  # nobody was faster
                _finish(path)


def _finish(path: Path) -> tuple[Path, ...]:
    new = waiting(path)
    # The name is the same when another process goes on, so that what belongs together stays so.
    aside = path.with_name(f"{path.name}.before-{name_of(new.stat().st_mtime_ns // 1000)}")
    for end in (*LEFTOVERS, ""):
        old = path.with_name(f"{path.name}{end}")
        if old.exists():
            aside.mkdir(mode=0o700, exist_ok=True)
            _set_aside(old, aside / old.name, keep=not end)
    if aside.exists():
        sync_folder(aside)
    new.replace(path)
    sync_folder(path.parent)
    return tuple(sorted(aside.iterdir())) if aside.exists() else ()


def _set_aside(old: Path, kept: Path, *, keep: bool) -> None:
    """With `keep` under both names, so that there always is a database; where a file cannot have two, by moving it."""
    if keep:
        try:
            return os.link(old, kept)
        except FileExistsError:
            return None
        except OSError:
            pass
    old.replace(kept)
    return None
