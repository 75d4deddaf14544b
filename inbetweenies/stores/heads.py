"""Where the log of each graph ended, in small files beside the database that no backup of it holds.

A database that is behind them was set back. They are written after every commit and never waited for: one that is
itself behind says nothing.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from ..errors import StoreError
from ..model import Cursor
from .journal import framed, payload_at

SLOT: Final = 4096  # each file has two and writes them in turns, so that one of them is always whole
OPEN_MAX: Final = 64
_JOURNAL: Final = "journal"


class End(Struct, array_like=True, frozen=True):
    """The end of a graph's log. `n` counts what was written to its file."""

    n: int
    graph: str
    birth: str
    cursor: Cursor
    stamp: int


_encode = msgspec.msgpack.Encoder().encode
_end = msgspec.msgpack.Decoder(End)


def journal_of(database: Path) -> Path:
    """Where a server last kept the journal of a database; beside it if nobody said otherwise."""
    beside = database.absolute().with_name(f"{database.name}.journal")
    try:
        return Path((_folder(database) / _JOURNAL).read_text(errors="surrogateescape"))
    except OSError:
        return beside


def _folder(database: Path) -> Path:
    return database.absolute().with_name(f"{database.name}.heads")


class Heads:
    """The files beside `database`, made when something is first written there."""

    def __init__(self, database: Path) -> None:
        self.folder = _folder(database)
        self._open: OrderedDict[str, tuple[BinaryIO, int]] = OrderedDict()  # with the n that was written last

    def put(self, graph: str, birth: str, cursor: Cursor, stamp: int) -> None:
        """The log of `graph` ends here now. What cannot be written is not: this only helps to notice something."""
        try:
            file, n = self._open.pop(graph) if graph in self._open else self._opened(graph)
            self._open[graph] = (file, n + 1)
            data = framed(_encode(End(n + 1, graph, birth, cursor, stamp)))
            if len(data) <= SLOT:  # else its name is longer than any that a token can have
                file.seek((n + 1) % 2 * SLOT)
                file.write(data.ljust(SLOT, b"\0"))
            if len(self._open) > OPEN_MAX:
                self._open.popitem(last=False)[1][0].close()
        except OSError:
            return

    def _opened(self, graph: str) -> tuple[BinaryIO, int]:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        path = self._path(graph)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        known = _newest(path.read_bytes())
        return path.open("r+b", buffering=0), 0 if known is None else known.n

    def _path(self, graph: str) -> Path:
        return self.folder / f"{sha256(graph.encode()).hexdigest()[:32]}.head"

    def keep_journal(self, folder: Path) -> None:
        """Remember where the journal is, for those who look for it later."""
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            file = self.folder / _JOURNAL
            if not file.exists() or file.read_text(errors="surrogateescape") != str(folder):
                os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
                file.write_text(str(folder), errors="surrogateescape")

    def all(self) -> list[End]:
        """What is known of every graph."""
        try:
            found = [_newest(path.read_bytes()) for path in sorted(self.folder.glob("*.head"))]
        except OSError as error:
            raise StoreError(
                f"expected to read {self.folder}; the system says: {error.strerror}. Remove it to go on without."
            ) from error
        return [end for end in found if end is not None]

    def forget(self, graph: str) -> None:
        """Nothing is known of this graph any more."""
        if graph in self._open:
            self._open.pop(graph)[0].close()
        self._path(graph).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the files."""
        while self._open:
            self._open.popitem()[1][0].close()


def _newest(data: bytes) -> End | None:
    payloads = [payload_at(data, start) for start in (0, SLOT)]
    ends = [_end.decode(payload) for payload in payloads if payload is not None]
    return max(ends, key=lambda end: end.n, default=None)
