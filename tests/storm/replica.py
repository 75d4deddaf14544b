"""What lies in the file of a client, read behind the client's back and checked against what must hold at any moment."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from msgspec import Struct

from inbetweenies.model import DIGEST_BITS
from tests.storm.log import Key


class Replica(Struct, frozen=True):
    """The rows that were made here, those of them that wait, and what the server is known to hold."""

    own: frozenset[Key]
    waiting: tuple[Key, ...]
    theirs: frozenset[Key]


def replica(path: Path) -> Replica:
    """Read the file, after checking it.

    Whole pages; every mark and every pointer points at a row that is here; what is seen of an id is its newest mark,
    and an id without a mark shows nothing of its own (law 2); no row waits twice; the digest is the sum of what the
    server is known to hold; no version that was minted can be minted again.
    """
    with closing(sqlite3.connect(path)) as db:

        def all_(statement: str) -> list[Any]:
            return db.execute(statement).fetchall()

        assert [("ok",)] == all_("PRAGMA integrity_check")
        copies = {tuple(row): own for *row, own in all_("SELECT kind, id, version, hash, own FROM copies")}
        marks = all_("SELECT kind, id, version, hash, quiet FROM pending ORDER BY n")
        pointers = all_("SELECT kind, id, theirs, theirs_hash, ours, ours_hash FROM pointers")
        meta = dict(all_("SELECT key, value FROM meta"))
    newest: dict[tuple[str, str], tuple[str, bytes]] = {}
    for kind, id_, version, hash_, quiet in marks:
        assert (kind, id_, version, hash_) in copies, "a mark of a row that is not here"
        if not quiet:
            newest[kind, id_] = (version, hash_)
    assert len(marks) == len({tuple(mark[:4]) for mark in marks})
    digest = 0
    theirs = set()
    for kind, id_, version, hash_, ours, ours_hash in pointers:
        assert newest.pop((kind, id_), (None, None)) == (ours, ours_hash), "what is seen is not the newest mark"
        assert version is not None or ours is not None
        if version is not None:
            assert (kind, id_, version, hash_) in copies, "the server's row is not here"
            theirs.add((kind, id_, version))
            digest += int.from_bytes(hash_, "big")
    assert {} == newest
    state = json.loads(meta["state"])
    assert digest % (1 << DIGEST_BITS) == state.get("digest", 0), "the digest is not that of what is known"
    return Replica(
        own=frozenset((kind, id_, version) for (kind, id_, version, _), own in copies.items() if own),
        waiting=tuple((kind, id_, version) for kind, id_, version, *_ in marks),
        theirs=frozenset(theirs),
    )
