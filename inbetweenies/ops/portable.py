"""Whole logs as JSON Lines, for whatever can read text: written by `export_to`, read back by `import_from`.

The first line says what is in the file, then comes a line for each row in commit order, losers and tombstones among
them, and in the end how many these were and the SHA-256 of all lines before, so that a file that was cut off anywhere
is noticed. What is read back is the same log to the letter: seq, chain, epoch and digest (PROTOCOL 3.7, 4.2, 4.8).
Tokens, devices and what was decided of versions are not in it; a backup has these as well.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct
from msgspec.structs import astuple

from ..errors import LocalProtocolError, RemoteProtocolError, StoreError
from ..limits import LIMITS, Limits, checked_decode, gate
from ..model import SEQ_MAX, Event, Head, Kind, Row, format_time, next_chain, row_hash
from ..rollout.integrity import Audit, columns
from ..stores.clock import wall_clock
from ..stores.heads import journal_of
from ..stores.journal import Journal, fsync
from ..stores.keeper import refuse_strange, run_now
from ..stores.placing import LEFTOVERS, exclusive, finish, sync_folder, told
from ..stores.schema import FOREVER, prepare
from ..stores.sqlite import SqliteStore, border
from .backup import part_of, publish, release, sweep

T = TypeVar("T")

NAME: Final = "inbetweenies-log"
FORMAT: Final = 1
#: Of the first line: a quarter of a million graphs.
HEADER_BYTES_MAX: Final = 64 * 2**20
#: What a line has beside the value of its row: names, numbers, a hash, and the names of graph and offerer.
FRAME_BYTES: Final = 64 * 2**10
ROWS_AT_ONCE: Final = 1_000

#: Called with how many rows are done, and of how many.
Progress = Callable[[int, int], object]


#: What a database holds exactly.
_Number: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Length: TypeAlias = Annotated[int, Meta(ge=0, le=SEQ_MAX)]


# --- the lines ----------------------------------------------------------------------------------------------------


class Log(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One graph in the file: where its log ends (PROTOCOL 4.2), hashes in hexadecimal digits, and what happened to
    it."""

    graph: str
    birth: str
    epoch: Annotated[str, Meta(pattern=r"\A[0-9a-f]{1,32}\Z")]
    seq: _Length
    chain: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    stamp: _Number
    digest: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    events: tuple[Event, ...] = ()


class Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The first line. `rows` is how many lines come between this one and the last one."""

    name: Literal["inbetweenies-log"] = NAME
    format: int
    release: str
    made: str
    rows: int
    graphs: tuple[Log, ...]


class Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row: what of it does not follow from its value, its `hash`, and the value itself, which that was made of."""

    graph: str
    seq: _Number
    kind: Kind
    until: _Number | None
    stamp: _Number
    edit: _Number
    timed: bool
    rise: _Number
    born: _Number
    via: str = ""
    hash: str
    value: Raw


class Trailer(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last line: that all of them are there."""

    rows: int
    sha256: str


class _Format(Struct):
    name: str
    format: int


_encode = msgspec.json.Encoder().encode
_format = msgspec.json.Decoder(_Format)
_header = msgspec.json.Decoder(Header)
_line = msgspec.json.Decoder(Line)
_trailer = msgspec.json.Decoder(Trailer)


def line_of(graph: str, row: Row) -> bytes:
    """The line of a row, with its end."""
    line = Line(
        graph=graph,
        seq=row.seq,
        kind=row.kind,
        until=row.until,
        stamp=row.stamp,
        edit=row.edit,
        timed=row.timed,
        rise=row.rise,
        born=row.born,
        via=row.via,
        hash=row.hash.hex(),
        value=Raw(row.body),
    )
    return _encode(line) + b"\n"


def row_of(line: Line, chain: bytes) -> Row:
    """The row that a line is about, in a log with this `chain` before it. Raises `ValueError`: its value is none, or
    not the one that its hash was made of."""
    body = bytes(line.value)
    hash_ = row_hash(line.kind, body)
    if hash_.hex() != line.hash:
        raise ValueError("expected the value that its hash was made of; got another one")
    bare = Row(
        line.kind, "", "", line.seq, line.until, line.stamp, line.edit, line.timed, line.rise, line.born,
        False, "", "", "", "", hash_, next_chain(chain, hash_), body, line.via,
    )  # fmt: skip
    try:
        return columns(bare)
    except msgspec.MsgspecError:
        raise ValueError(f"expected a value of kind {line.kind}; got something else") from None


# --- out ----------------------------------------------------------------------------------------------------------


class Exported(Struct, frozen=True, kw_only=True):
    """What was written: the file, its SHA-256 without the last line, and what is in it."""

    path: Path
    header: Header
    sha256: str


def export_to(
    db: Path,
    file: Path,
    *,
    graph: str | None = None,
    now: int | None = None,
    still: bool = False,
    progress: Progress = lambda *_: None,
) -> Exported:
    """Write the logs of the database at `db`, or of one `graph`, to a new file, as of one commit. A server may run
    meanwhile; nobody waits. With `still` nobody may have it open: nothing is written to it then, nor beside it.

    Raises:
        LocalProtocolError: there is a file already, or no such graph.
        StoreFull: there is no room for it. Whatever is raised, no half of a file is left.
        StoreError: the database is none of ours, or something could not be read or written.
    """
    if file.exists():
        raise LocalProtocolError(f"expected no file at {file}; got one: name another one")
    if not db.exists():
        raise StoreError(f"expected a database at {db}; got no file")
    if not still:
        run_now(SqliteStore(db, journal=False, heads=False).close())  # brings older tables up to date
    sweep(file.parent, file.name)
    now = wall_clock() if now is None else now
    with part_of(file) as part, told(f"write {file}"):
        with border("read the database"), closing(_connect(db, still=still)) as connection, part.open("wb") as opened:
            connection.execute("BEGIN")
            logs = {key: log for key, log in _logs(connection) if graph in (None, log.graph)}
            if graph is not None and not logs:
                raise LocalProtocolError(f"expected a graph that is in {db}; got another one: see `status`")
            header = Header(
                format=FORMAT,
                release=release(),
                made=format_time(now),
                rows=sum(log.seq for log in logs.values()),
                graphs=tuple(logs.values()),
            )
            digest = _write(opened, header, _rows(connection, logs), progress)
            fsync(opened.fileno())
        publish(part, file)
        sync_folder(file.parent)
    return Exported(path=file, header=header, sha256=digest)


def _write(file: IO[bytes], header: Header, rows: Iterable[tuple[str, Row]], progress: Progress) -> str:
    seen, written = sha256(), 0

    def add(line: bytes) -> None:
        seen.update(line)
        file.write(line)

    add(_encode(header) + b"\n")
    for graph, row in rows:
        add(line_of(graph, row))
        written += 1
        if written % ROWS_AT_ONCE == 0:
            progress(written, header.rows)
    if written != header.rows:
        raise StoreError(f"expected {header.rows} rows in the database; got {written}: see `inbetweenies audit`")
    digest = seen.hexdigest()
    file.write(_encode(Trailer(rows=written, sha256=digest)) + b"\n")
    file.flush()
    progress(written, header.rows)
    return digest


def _connect(db: Path, *, still: bool) -> sqlite3.Connection:
    how = "mode=ro&immutable=1" if still else "mode=ro"
    return sqlite3.connect(f"{db.absolute().as_uri()}?{how}", uri=True, isolation_level=None)


_LOGS: Final = "SELECT graph, name, birth, epoch, seq, chain, stamp, digest FROM graphs ORDER BY name"
_EVENTS: Final = "SELECT kind, key, at, told FROM events WHERE graph = ? ORDER BY n"
_ROW: Final = ", ".join(Row.__struct_fields__)
_ROWS: Final = f"SELECT {_ROW} FROM log WHERE graph = ? ORDER BY seq"  # noqa: S608 - our own columns


def _logs(connection: sqlite3.Connection) -> Iterator[tuple[int, Log]]:
    for key, name, birth, epoch, seq, chain, stamp, digest in connection.execute(_LOGS).fetchall():
        events = tuple(
            Event(kind=kind, key=about, at=at, told=msgspec.json.decode(what, type=dict[str, str | int]))
            for kind, about, at, what in connection.execute(_EVENTS, (key,))
        )
        yield (
            key,
            Log(
                graph=name,
                birth=birth,
                epoch=epoch,
                seq=seq,
                chain=chain.hex(),
                stamp=stamp,
                digest=digest.hex(),
                events=events,
            ),
        )


def _rows(connection: sqlite3.Connection, logs: dict[int, Log]) -> Iterator[tuple[str, Row]]:
    for key, log in logs.items():
        for values in connection.execute(_ROWS, (key,)):
            row = Row(*values)
            yield (
                log.graph,
                msgspec.structs.replace(
                    row,
                    until=None if row.until == FOREVER else row.until,
                    timed=row.timed == 1,
                    deleted=row.deleted == 1,
                ),
            )


# --- in -----------------------------------------------------------------------------------------------------------


class NotPortable(StoreError):
    """A file is not what `export_to` has written. Nothing was changed.

    Attributes:
        line: which line, from 1; None where it is about all of them.
    """

    def __init__(self, file: Path, line: int | None, why: str) -> None:
        self.line = line
        where = str(file) if line is None else f"{file}, line {line}"
        super().__init__(f"{where}: {why}. Nothing was imported")


class Taken(Struct, frozen=True, kw_only=True):
    """One graph of the file: how many rows it has, and whether they came or were there already."""

    graph: str
    rows: int
    came: bool


class Imported(Struct, frozen=True, kw_only=True):
    """What was read. `made`: the database was not there before."""

    made: bool
    header: Header
    graphs: tuple[Taken, ...]


def import_from(file: Path, db: Path, *, limits: Limits = LIMITS, progress: Progress = lambda *_: None) -> Imported:
    """Put the graphs in `file` into the database at `db`, which is made if there is none: all of them or nothing,
    whenever this process dies. Of a graph that is there every row has to be there, or nobody but this may have one.

    Memory is taken for each id, not for each row. All is read into a file beside `db` first.

    Raises:
        NotPortable: the file is not whole, or was changed, or has a line that is too large.
        LocalProtocolError: a graph is there that holds something else.
        StoreBusy: a server or another command has the database open.
        StoreFull: there is no room for it. Whatever is raised, nothing was changed.
        StoreError: something could not be read or written.
    """
    real = db.resolve()
    finish(real)
    sweep(real.parent, real.name)
    with part_of(real) as part:
        with told(f"read {file}"), border("write what is imported"), file.open("rb") as opened:
            header = _staged(_Lines(file, opened, limits), part, progress)
        births = {log.graph: (log.birth, log.seq) for log in header.graphs}
        if not real.exists():
            _place(part, real, births)
            return Imported(made=True, header=header, graphs=tuple(_taken(log, came=True) for log in header.graphs))
        with exclusive(real):
            pass  # a server that runs would never put into its journal what comes now
        run_now(SqliteStore(real, journal=False, heads=False).close())
        with border("import into the database"):
            came = _merged(part, real)
    taken = tuple(_taken(log, came=log.graph in came) for log in header.graphs)
    return Imported(made=False, header=header, graphs=taken)


def _taken(log: Log, *, came: bool) -> Taken:
    return Taken(graph=log.graph, rows=log.seq, came=came)


def _place(part: Path, db: Path, births: dict[str, tuple[str, int]]) -> None:
    left = [name for end in LEFTOVERS if db.with_name(name := f"{db.name}{end}").exists()]
    if left:
        raise LocalProtocolError(f"expected nothing beside {db}, which is not there; got {left[0]}: move that away")
    journal = Journal(journal_of(db))
    refuse_strange(db, journal, births, journal.newest())
    with told(f"make {db}"):
        with part.open("rb+") as opened:
            fsync(opened.fileno())
        publish(part, db)
        sync_folder(db.parent)


class _Lines:
    """The lines of a file, with their numbers, none longer than the bounds allow."""

    def __init__(self, path: Path, file: IO[bytes], limits: Limits) -> None:
        self._path, self._file = path, file
        self._most = limits.entity_bytes_max + FRAME_BYTES
        self._limits = msgspec.structs.replace(limits, body_bytes_max=self._most)
        self._seen = sha256()
        self.number = 0

    def header(self) -> Header:
        line = self._next(HEADER_BYTES_MAX, "the first line of an export")
        found = self._decoded(_format, line, msgspec.structs.replace(self._limits, body_bytes_max=HEADER_BYTES_MAX))
        if found.name != NAME or found.format != FORMAT:
            raise self.wrong(f"expected {NAME} of format {FORMAT}; got another one: use the release that made it")
        header = self._decoded(_header, line, msgspec.structs.replace(self._limits, body_bytes_max=HEADER_BYTES_MAX))
        names = [log.graph for log in header.graphs]
        if len(set(names)) != len(names) or header.rows != sum(log.seq for log in header.graphs):
            raise self.wrong("expected each graph once, and as many rows as they have together; got something else")
        return header

    def line(self, expected: str) -> Line:
        return self._decoded(_line, self._next(self._most, expected), self._limits)

    def trailer(self) -> Trailer:
        seen = self._seen.hexdigest()
        found = self._decoded(_trailer, self._next(FRAME_BYTES, "the last line of an export"), self._limits)
        if found.sha256 != seen:
            raise self.wrong("expected the SHA-256 of the lines before; got another one: one of them was changed")
        return found

    def end(self) -> None:
        self.number += 1
        if self._file.read(1):
            raise self.wrong("expected the end of the file after the last line of an export; got more")

    def check(self, row: Row) -> None:
        """Refuse what no server would have taken (PROTOCOL 2.5)."""
        for what, value, most in (
            ("an id", row.id.encode(), self._limits.id_bytes_max),
            ("a version", row.version.encode(), self._limits.version_bytes_max),
            ("a value", row.body, self._limits.entity_bytes_max),
        ):
            if len(value) > most:
                raise self.wrong(f"expected {what} of at most {most:,} bytes; got {len(value):,}")

    def wrong(self, why: str) -> NotPortable:
        return NotPortable(self._path, self.number, why)

    def _next(self, most: int, expected: str) -> bytes:
        self.number += 1
        line = self._file.readline(most + 1)
        if len(line) > most:
            raise self.wrong(f"expected a line of at most {most:,} bytes; got a longer one")
        if not line.endswith(b"\n"):
            raise self.wrong(f"expected {expected}; got the end of the file: it was cut off")
        self._seen.update(line)
        return line[:-1]

    def _decoded(self, decoder: msgspec.json.Decoder[T], line: bytes, limits: Limits) -> T:
        try:
            gate(line, limits)
            return checked_decode(decoder, line)
        except RemoteProtocolError as error:
            raise self.wrong(str(error)) from None


_ADD_GRAPH: Final = (
    "INSERT INTO graphs (name, birth, epoch, seq, chain, stamp, digest) VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING graph"
)
_ADD_EVENT: Final = "INSERT INTO events (graph, kind, key, at, told) VALUES (?, ?, ?, ?, ?)"
_ADD_ROW: Final = f"INSERT INTO log ({_ROW}, graph) VALUES ({', '.join('?' * (len(Row.__struct_fields__) + 1))})"  # noqa: S608 - as above


def _staged(lines: _Lines, part: Path, progress: Progress) -> Header:
    """Put all that is in a file into an empty database, and see that it is what was written."""
    header = lines.header()
    with closing(sqlite3.connect(part, isolation_level=None)) as staged:
        prepare(staged)
        staged.execute("PRAGMA journal_mode = OFF")  # a part is of no use to anybody
        staged.execute("PRAGMA synchronous = OFF")  # made durable when it is whole
        staged.execute("BEGIN")
        done = 0
        for log in header.graphs:
            key = _graph(staged, log)
            rows = _checked(lines, log)
            while some := [*islice(rows, ROWS_AT_ONCE)]:
                _add(staged, lines, key, some)
                done += len(some)
                progress(done, header.rows)
        if lines.trailer().rows != header.rows:
            raise lines.wrong(f"expected {header.rows} rows; got another number")
        lines.end()
        staged.execute("COMMIT")
        staged.execute("PRAGMA journal_mode = DELETE")  # one file with nothing beside it
    return header


def _graph(staged: sqlite3.Connection, log: Log) -> int:
    ends = bytes.fromhex(log.chain), log.stamp, bytes.fromhex(log.digest)
    [key] = staged.execute(_ADD_GRAPH, (log.graph, log.birth, log.epoch, log.seq, *ends)).fetchone()
    told_ = [(key, one.kind, one.key, one.at, _encode(one.told).decode()) for one in log.events]
    staged.executemany(_ADD_EVENT, told_)
    return int(key)


def _checked(lines: _Lines, log: Log) -> Iterator[Row]:
    """The rows of one graph, each as it is read, and at the end whether they are a log that ends where it should."""
    audit, chain = Audit(), bytes(16)
    for seq in range(1, log.seq + 1):
        line = lines.line(f"row {seq} of graph {log.graph}")
        if (line.graph, line.seq) != (log.graph, seq):
            raise lines.wrong(f"expected row {seq} of graph {log.graph}; got row {line.seq} of another place")
        try:
            row = row_of(line, chain)
        except ValueError as error:
            raise lines.wrong(str(error)) from None
        lines.check(row)
        chain = row.chain
        audit.read((row,))
        yield row
    if chain.hex() != log.chain:
        raise lines.wrong(f"expected graph {log.graph} to end with the chain that is told of it; it does not")
    head = Head(epoch=log.epoch, seq=log.seq, chain=chain, stamp=log.stamp, digest=int(log.digest, 16))
    report = audit.report(head)
    # What an edge joins may have been lost before (PROTOCOL 4.14); that is told of by an audit, and comes along.
    wrong = [one for one in report.violations if one.check != "relationship_integrity"]
    if wrong or report.count > len(report.violations):
        raise lines.wrong(f"graph {log.graph}, row {wrong[0].repair.seq if wrong else '?'}: {_why(wrong)}")


def _why(wrong: list[Any]) -> str:
    return wrong[0].told if wrong else "expected a whole log; got too much that is wrong with it"


def _add(staged: sqlite3.Connection, lines: _Lines, key: int, rows: list[Row]) -> None:
    try:
        staged.executemany(_ADD_ROW, (_bound(row, key) for row in rows))
    except sqlite3.IntegrityError:
        first = rows[0].seq
        raise lines.wrong(
            f"expected each row version once, and one current row of an id, in rows {first} to {rows[-1].seq}"
        ) from None


def _bound(row: Row, key: int) -> tuple[Any, ...]:
    values = astuple(row)
    return (*values[:4], FOREVER if row.until is None else row.until, *values[5:], key)


# --- into what is there -------------------------------------------------------------------------------------------

_GRAPHS: Final = (
    "SELECT s.graph, s.name, s.seq, m.graph, m.seq FROM staged.graphs s LEFT JOIN main.graphs m USING (name)"
)
_LACKING: Final = """SELECT count(*) FROM staged.log s WHERE s.graph = ?1 AND NOT EXISTS (
    SELECT 1 FROM main.log m WHERE m.graph = ?2 AND m.kind = s.kind AND m.id = s.id AND m.version = s.version
    AND m.hash = s.hash)"""
# A graph that is there without a row keeps its birth, by which its journal knows it.
_NEW: Final = """INSERT INTO main.graphs (name, birth, epoch, seq, chain, stamp, digest)
    SELECT name, birth, epoch, seq, chain, stamp, digest FROM staged.graphs WHERE graph = ?1
    ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq, chain = excluded.chain,
        stamp = max(stamp, excluded.stamp), digest = excluded.digest
    RETURNING graph"""
_COPY: Final = f"INSERT INTO main.log ({_ROW}, graph) SELECT {_ROW}, ?2 FROM staged.log WHERE graph = ?1 ORDER BY seq"  # noqa: S608 - as above
_TELL: Final = """INSERT OR REPLACE INTO main.events (graph, kind, key, at, told)
    SELECT ?2, kind, key, at, told FROM staged.events WHERE graph = ?1 ORDER BY n"""


def _merged(part: Path, db: Path) -> frozenset[str]:
    """Put what is staged into a database that is there, in one transaction. Returns the graphs that came."""
    with closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("ATTACH ? AS staged", (str(part),))
        connection.execute("BEGIN IMMEDIATE")
        try:
            came = frozenset(_come(connection, db))
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
    return came


def _come(connection: sqlite3.Connection, db: Path) -> Iterator[str]:
    for key, name, rows, there, held in connection.execute(_GRAPHS).fetchall():
        if there is None or (held == 0 and rows):
            [new] = connection.execute(_NEW, (key,)).fetchone()
            connection.execute(_COPY, (key, new))
            connection.execute(_TELL, (key, new))
            yield name
        elif lacking := connection.execute(_LACKING, (key, there)).fetchone()[0]:
            raise LocalProtocolError(
                f"expected graph {name} in {db} to be empty, or to have every row of the file; it has {held:,} rows "
                f"and lacks {lacking:,} of the {rows:,}: import into another database. Nothing was imported"
            )
