"""Put a backup in the place of a database. Read `restore`.

What was acknowledged since the backup is not lost by it: the ends of logs and the journal stay where they are, and give
it back when a server starts (PROTOCOL 11).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from ..errors import StoreError
from ..model import Event
from ..stores.heads import journal_of
from ..stores.journal import Journal, fsync
from ..stores.keeper import refuse_strange, run_now
from ..stores.placing import exclusive, finish, put, told
from ..stores.sqlite import SqliteStore
from .backup import part_of, sweep
from .manifest import Manifest, manifest_of, read
from .verify import BackupRefused, check, verify


class Restored(Struct, frozen=True, kw_only=True):
    """What is there now, and where what was there before is kept.

    Attributes:
        journal: the folder of the journal; None if there is none.
        discarded: what was taken note of, by graph, if it is to stay set back.
    """

    manifest: Manifest
    aside: tuple[Path, ...]
    journal: Path | None
    discarded: tuple[tuple[str, Event], ...] = ()


def restore(backup: Path, db: Path, *, journal: Path | None = None, discard: bool = False) -> Restored:
    """Put `backup` in the place of the database at `db`, all of it or nothing, whenever this process dies.

    Args:
        journal: the folder of the journal; without, where a server last kept it.
        discard: what came after the backup is to stay away (PROTOCOL 4.12).

    Raises:
        BackupRefused: the backup is not good. Whatever is raised, the old database is there as it was, unless `finish`
            was about to end what cannot fail but for the disk: then whoever opens it next ends that.
        StoreBusy: a server or another command has the database open.
        StoreFull: there is no room for it.
        StoreError: the backup is of another database, or something could not be read or written.
    """
    real = db.resolve()
    finish(real)
    sweep(real.parent, real.name)
    kept = Journal(journal or journal_of(db))
    with part_of(real) as part:
        manifest = _copied(backup, part)
        graphs = {mark.graph: (mark.birth, mark.seq) for mark in manifest.graphs}
        refuse_strange(db.absolute(), kept, graphs, kept.newest())
        with exclusive(real):
            discarded = _discarded(part, db, kept) if discard else ()
            with told(f"put a restored database at {db}"):
                aside = put(real, part)
    return Restored(
        manifest=manifest,
        aside=aside,
        journal=kept.folder if kept.segments() else None,
        discarded=discarded,
    )


def _copied(backup: Path, part: Path) -> Manifest:
    """Copy a backup to `part`, durably, and verify that: what is put in its place is what was looked at."""
    try:
        manifest = read(manifest_of(backup))
    except (FileNotFoundError, StoreError):
        raise BackupRefused(verify(backup)) from None
    if backup.exists():
        with told(f"copy {backup} to {part.parent}"), backup.open("rb") as source, part.open("rb+") as target:
            shutil.copyfileobj(source, target, 2**20)
            target.flush()
            fsync(target.fileno())
    verdict = check(part, manifest) if backup.exists() else verify(backup)
    if not verdict.good:
        raise BackupRefused(replace(verdict, path=str(backup)))
    return manifest


def _discarded(part: Path, db: Path, journal: Journal) -> tuple[tuple[str, Event], ...]:
    # In the new file before it is in its place: no server may start on it that gives back what came after it.
    store = SqliteStore(part, beside=db, journal=journal, discard=True)
    run_now(store.close())
    if part.with_name(f"{part.name}-wal").exists():  # what does not get from there into the file is not a part of it
        raise StoreError(
            f"expected to write what is discarded to {part.parent}; SQLite could not, see whether it is full"
        )
    return store.happened
