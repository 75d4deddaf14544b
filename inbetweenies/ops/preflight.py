"""What speaks against beginning a rollout on a database: that it is damaged, or that the disk is all but full."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from ..errors import InbetweeniesError
from ..stores.sqlite import border

#: So many times the size of the database has to be free: for a backup, one more, and what is written meanwhile.
ROOM: Final = 3


def preflight(db: Path) -> tuple[str, ...]:
    """What speaks against it, in words; nothing if all is well. Reads all of the file, as of one commit; a server may
    run meanwhile."""
    try:
        return (*_damage(db), *_room(db))
    except (InbetweeniesError, OSError) as error:
        return (str(error),)


def _damage(db: Path) -> tuple[str, ...]:
    with border("check the database"), closing(_connect(db)) as connection:
        connection.execute("BEGIN")
        told = [str(line) for (line,) in connection.execute("PRAGMA quick_check(1)")]
    return () if told == ["ok"] else (f"{db} is damaged ({' '.join(told)}): restore a backup",)


def _room(db: Path) -> tuple[str, ...]:
    size = sum(file.stat().st_size for file in (db, db.with_name(f"{db.name}-wal")) if file.exists())
    free = shutil.disk_usage(db.parent).free
    if free >= ROOM * size:
        return ()
    return (f"{free:,} bytes are free beside {db}, and {ROOM} times its {size:,} are needed: make room",)


def _connect(db: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{db.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
