"""The journal: every commit once more, in files that are no part of the database and of its backups.

A database that is set back to a backup finds here what it lacks, also what was written by clients that cannot offer it
again. Read `Journal.append`; what is done with what is read is decided in `keeper`.

A folder holds numbered segments, a segment frames, a frame a record with its length and checksum. Segments are only
ever added to, so that several processes can write to one; what is torn is passed over up to the next frame that is
whole. The oldest segments go when there are too many or they are too old.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import asdict, astuple

from ..errors import StoreError, StoreFull
from ..model import DIGEST_BITS, Cursor, Device, Event, Head, Row, Writes

MAGIC: Final = b"IBj1"
FRAME: Final = struct.Struct(">4sII")  # magic, length, checksum
SUFFIX: Final = ".journal"
SEGMENT_BYTES: Final = 16 * 2**20  # read whole at every start
BYTES_MAX: Final = 2**30  # about two million rows
DAYS_MAX: Final = 90  # no backup that anybody restores is older
_FIELDS: Final = Row.__struct_fields__


class Opening(Struct, tag="o", array_like=True, frozen=True):
    """The first record of a segment: which database it is about, its graphs with birth and end, the fields of rows; and
    whether no segment before it can say more of where they end."""

    database: str
    heads: dict[str, tuple[str, Cursor]]
    fields: tuple[str, ...] = _FIELDS
    certain: bool = True


class Commit(Struct, tag="c", array_like=True, frozen=True):
    """One commit of one graph, from a place of its log to another. `writes` is read only if it is needed."""

    graph: str
    birth: str
    before: Cursor
    after: Cursor
    writes: Raw


class Discard(Struct, tag="d", array_like=True, frozen=True):
    """From here on nothing counts that records before this one say of the graph beyond `at` (PROTOCOL 4.12)."""

    graph: str
    birth: str
    at: Cursor


Record = Opening | Commit | Discard


class _Head(Struct, array_like=True, frozen=True):
    epoch: str
    seq: int
    chain: bytes
    stamp: int
    digest: bytes  # wider than any integer here


class _Body(Struct, array_like=True, frozen=True):
    rows: tuple[tuple[Any, ...], ...]
    closed: tuple[tuple[int, int], ...]
    head: _Head | None
    device: tuple[str, Device] | None
    events: tuple[Event, ...]


_encode = msgspec.msgpack.Encoder().encode
_record = msgspec.msgpack.Decoder(Record)
_bodies = msgspec.msgpack.Decoder(tuple[_Body, ...])


def commit_of(graph: str, birth: str, before: Cursor, after: Cursor, writes: Iterable[Writes]) -> Commit:
    """The record of a commit that consists of these writes."""
    bodies = [
        _Body(tuple([astuple(row) for row in one.rows]), one.closed, _head(one.head), one.device, one.events)
        for one in writes
    ]
    return Commit(graph, birth, before, after, Raw(_encode(bodies)))


def _head(head: Head | None) -> _Head | None:
    if head is None:
        return None
    return _Head(head.epoch, head.seq, head.chain, head.stamp, head.digest.to_bytes(DIGEST_BITS // 8, "big"))


def writes_of(commit: Commit, fields: tuple[str, ...]) -> list[Writes]:
    """What a record of a commit says, written when rows had these `fields`."""
    known = set(_FIELDS)
    return [
        Writes(
            rows=tuple(
                Row(**{name: value for name, value in zip(fields, row, strict=True) if name in known})
                for row in body.rows
            ),
            closed=body.closed,
            head=None
            if body.head is None
            else Head(**asdict(body.head) | {"digest": int.from_bytes(body.head.digest)}),
            device=body.device,
            events=body.events,
        )
        for body in _bodies.decode(commit.writes)
    ]


def framed(payload: bytes) -> bytes:
    """A payload that can be told from a torn one."""
    return FRAME.pack(MAGIC, len(payload), crc32(payload)) + payload


def unframed(data: bytes) -> Iterator[bytes]:
    """The payloads that are whole, whatever lies between them."""
    at = data.find(MAGIC)
    while at >= 0:
        payload = payload_at(data, at)
        if payload is None:
            at = data.find(MAGIC, at + 1)
        else:
            yield payload
            at = data.find(MAGIC, at + FRAME.size + len(payload))


def payload_at(data: bytes, at: int) -> bytes | None:
    """The payload of the frame that begins here; None if there is none, or not the whole of it."""
    if len(data) - at < FRAME.size:
        return None
    magic, length, checksum = FRAME.unpack_from(data, at)
    payload = data[at + FRAME.size : at + FRAME.size + length]
    return payload if magic == MAGIC and len(payload) == length and crc32(payload) == checksum else None


def fsync(descriptor: int) -> None:
    """Everything of this file is on the disk when this returns."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # a plain fsync stops at the drive's cache
    else:
        os.fsync(descriptor)


class Segment(Struct, frozen=True, kw_only=True):
    """What one file of a journal holds, in order, as far as it is whole. `opening` is None if its beginning is not."""

    path: Path
    opening: Opening | None
    records: tuple[Commit | Discard, ...]


class Journal:
    """A journal in `folder`, made when something is first written to it, or when it is begun.

    Args:
        segment_bytes: after so many a new segment is begun.
        bytes_max, days_max: what is kept; at least the newest segment is.
        sync: makes sure that a file's bytes are on the disk.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        segment_bytes: int = SEGMENT_BYTES,
        bytes_max: int = BYTES_MAX,
        days_max: int = DAYS_MAX,
        sync: Callable[[int], None] = fsync,
    ) -> None:
        self.folder = Path(folder).absolute()
        self._segment_bytes = segment_bytes
        self._bytes_max = bytes_max
        self._days_max = days_max
        self._sync = sync
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._next = self._path(1)  # the segment after its own
        self._doubtful = False

    # --- writing

    def append(self, records: Sequence[Commit | Discard], *, opening: Callable[[], Opening], durable: bool) -> None:
        """Add records; with `durable` they are on the disk when this returns. `opening` begins a segment if needed.

        Raises:
            StoreFull, StoreError: they are not, or it is not known.
        """
        data = b"".join([framed(_encode(record)) for record in records])
        with self._lock, self._border("write to"):
            try:
                self._write(descriptor := self._current(opening), data)
                while not self._is_newest(descriptor):
                    self.close()
                    self._write(descriptor := self._current(opening), data)
                if durable:
                    self._sync(descriptor)
            except OSError:
                # What this file holds is not known any more, and asking for it to be durable again would not help.
                self._doubtful = True
                raise

    def begin(self, opening: Callable[[], Opening]) -> None:
        """Begin a segment that says how everything stands, before there is a commit that is to be found here.

        Raises:
            StoreFull, StoreError: it could not be written.
        """
        with self._lock, self._border("write to"):
            self._doubtful = True
            self._current(opening)

    def _current(self, opening: Callable[[], Opening]) -> int:
        """The segment to write to: the newest there is, whoever made it, or if that is full the next one."""
        known = self._descriptor is not None and not self._doubtful
        if known and self._descriptor is not None and os.fstat(self._descriptor).st_size < self._segment_bytes:
            return self._descriptor
        self.close()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.segments()
        number = int(found[-1].stem) if found else 0
        if not found or self._doubtful or found[-1].stat().st_size >= self._segment_bytes:
            number += 1
        self._next = self._path(number + 1)
        descriptor = os.open(
            self._path(number), os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600
        )
        self._descriptor = descriptor
        if os.fstat(descriptor).st_size == 0:
            self._write(descriptor, framed(_encode(opening())))
            self._sync(descriptor)
            self._sync_folder()
            self.prune()
        self._doubtful = False
        return descriptor

    def _is_newest(self, descriptor: int) -> bool:
        """Whether nobody has begun the next segment, which is what a start looks at first. Looked at after a write:
        whoever begins one later finds in the database what was committed before that, and says so at its beginning."""
        return os.fstat(descriptor).st_nlink > 0 and not self._next.exists()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}{SUFFIX}"

    def _sync_folder(self) -> None:
        """Or the file itself may be gone after a power cut."""
        if os.name == "posix":
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                self._sync(folder)
            finally:
                os.close(folder)

    def _write(self, descriptor: int, data: bytes) -> None:
        # One call, so that what several processes add does not mix. A part of it is as good as nothing.
        written = os.write(descriptor, data)
        if written < len(data):
            raise OSError(f"{written} of {len(data)} bytes")

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def prune(self) -> None:
        """Remove the oldest segments while there are too many bytes of them, or they are too old; never one amid those
        that stay."""
        segments = self.segments()
        sizes = [path.stat().st_size for path in segments]
        oldest = time.time() - self._days_max * 86_400
        for index, path in enumerate(segments[:-1]):
            if sum(sizes[index:]) <= self._bytes_max and path.stat().st_mtime >= oldest:
                break
            path.unlink(missing_ok=True)

    # --- reading

    def segments(self) -> list[Path]:
        """The files, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.suffix == SUFFIX and path.stem.isdecimal())

    def read(self, path: Path) -> Segment:
        """What a segment holds."""
        with self._border("read"):
            data = path.read_bytes()
        opening: Opening | None = None
        records: list[Commit | Discard] = []
        for payload in unframed(data):
            record = _record.decode(payload)
            if isinstance(record, Opening):
                opening = opening or record  # two processes may have begun one segment
            else:
                records.append(record)
        return Segment(path=path, opening=opening, records=tuple(records))

    def newest(self) -> tuple[Segment, ...]:
        """The newest segments, back to the first whose beginning is whole and certain: they tell where every graph
        ended."""
        found: list[Segment] = []
        for path in reversed(self.segments()):
            found.insert(0, self.read(path))
            if found[0].opening is not None and found[0].opening.certain:
                break
        return tuple(found)

    def everything(self) -> tuple[Segment, ...]:
        """All segments, oldest first."""
        return tuple(self.read(path) for path in self.segments())

    @contextmanager
    def _border(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            told = f"expected to {doing} the journal in {self.folder}; the system says: {reason}"
            if error.errno in (28, 122):  # no space, no quota
                raise StoreFull(f"{told}; make room, then try again") from error
            raise StoreError(told) from error


def ends(segments: Iterable[Segment]) -> Mapping[str, tuple[str, Cursor]]:
    """Birth and end of every graph that these segments know of.

    Of two processes the one that committed first may be the one that is noted last. Within an epoch a log only grows,
    unless what is gone of it is to be had from here.
    """
    known: dict[str, tuple[str, Cursor]] = {}
    for segment in segments:
        heads = {} if segment.opening is None else segment.opening.heads
        for graph, (birth, end) in heads.items():
            _further(known, graph, birth, end)
        for record in segment.records:
            if isinstance(record, Discard):
                known[record.graph] = (record.birth, record.at)
            else:
                _further(known, record.graph, record.birth, record.after)
    return known


def _further(known: dict[str, tuple[str, Cursor]], graph: str, birth: str, end: Cursor) -> None:
    before = known.get(graph)
    if before is None or (before[0], before[1].epoch) != (birth, end.epoch) or before[1].seq <= end.seq:
        known[graph] = (birth, end)
