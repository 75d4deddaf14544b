"""Graphs in one SQLite file. Read `SCHEMA`, then `_Transaction`.

Every commit is on the disk when it is acknowledged (write-ahead log, ``synchronous=FULL``). Readers see the last
commit and never wait for a writer. Canonical JSON is stored as bytes and never looked into with SQLite's own parser,
which reads it differently (PROTOCOL 3.6). No error message holds a stored value.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from string import Template
from typing import Any, Final

import msgspec
from msgspec.structs import astuple

from ..errors import LocalProtocolError, StoreBusy, StoreCorrupt, StoreError, StoreFull
from ..model import Device, Document, Event, Head, Held, Line, Reads, Row, Span, Writes
from . import BUSY_TIMEOUT_MS, DEVICE_HINTS_MAX, EVENTS_MAX, BaseTransaction, DeviceHints
from .clock import wall_clock
from .commits import SHARE_MS, Commits, Shared
from .journal import Journal
from .keeper import Committed, Keeper
from .memory import random_epoch
from .placing import finish, told
from .schema import FOREVER, prepare

IDLE_CONNECTIONS_MAX: Final = 8  # each may hold its cache in memory; more are opened while more are needed
KEYS_PER_QUERY: Final = (512, 64, 8, 1)  # few sizes, so that few statements are ever prepared

SETTINGS: Final = (
    "PRAGMA synchronous = FULL",  # NORMAL loses commits that were acknowledged when the power goes
    "PRAGMA fullfsync = ON",  # the same on macOS, where a plain fsync stops at the drive's cache
    "PRAGMA foreign_keys = ON",  # off by default
    "PRAGMA trusted_schema = OFF",  # a file may come from elsewhere
    "PRAGMA cell_size_check = ON",  # notice a damaged page when it is read
    "PRAGMA journal_size_limit = 67108864",  # 64 MiB; a long reader must not leave a huge file for ever
    "PRAGMA cache_size = -32768",  # 32 MiB: a push of 20,000 rows is written to the log once, not page by page again
)


_BODY: Final = Row.__struct_fields__.index("body")


def _sql(statement: str, **parts: str) -> str:
    """`statement` with what is constant in this module filled in; values are always bound."""
    # The columns are in the order of the fields of `Row`, so that a row is bound as its tuple.
    columns = Row.__struct_fields__
    return Template(statement).substitute(
        parts, row=", ".join(columns), marks=", ".join("?" for _ in columns), forever=FOREVER
    )


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, str | int]).decode

_INSERT = _sql("INSERT INTO log ($row, graph) VALUES ($marks, ?)")
_CLOSE = _sql("UPDATE log SET until = ? WHERE graph = ? AND seq = ? AND until = $forever")
_SET_HEAD = "UPDATE graphs SET epoch = ?, seq = ?, chain = ?, stamp = ?, digest = ? WHERE graph = ?"
_SET_DEVICE = (
    "INSERT INTO devices (graph, device, served, acked, mark, pushed) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (graph, device) DO UPDATE"
    " SET served = excluded.served, acked = excluded.acked, mark = excluded.mark, pushed = excluded.pushed"
)
_ADD_GRAPH = (
    "INSERT INTO graphs (name, epoch, seq, chain, stamp, digest, birth)"
    " VALUES (?1, ?2, 0, zeroblob(16), 0, zeroblob(32), ?2) ON CONFLICT (name) DO NOTHING"
)
_HEAD = "SELECT graph, birth, epoch, seq, chain, stamp, digest FROM graphs WHERE name = ?"
_DEVICE = "SELECT served, acked, mark, pushed FROM devices WHERE graph = ? AND device = ?"
_ADD_EVENT = "INSERT OR REPLACE INTO events (graph, kind, key, at, told) VALUES (?, ?, ?, ?, ?)"
_FORGET_EVENTS = (
    "DELETE FROM events WHERE graph = ?1 AND kind = ?2"
    " AND n NOT IN (SELECT n FROM events WHERE graph = ?1 AND kind = ?2 ORDER BY n DESC LIMIT ?3)"
)
_EVENTS_OF = "SELECT kind, key, at, told FROM events WHERE graph = ? ORDER BY n"
_STAMP = "SELECT stamp FROM log WHERE graph = ? AND seq = ?"
_DOCUMENT = "SELECT revision, body FROM documents WHERE name = ?"
_ADD_DOCUMENT = "INSERT INTO documents (body, name, revision) VALUES (?, ?, ? + 1) ON CONFLICT (name) DO NOTHING"
_SET_DOCUMENT = "UPDATE documents SET body = ?, revision = revision + 1 WHERE name = ? AND revision = ?"

# Left to itself the planner prefers a range of seqs, which is the whole log: CROSS JOIN and INDEXED BY forbid that.
# `_asked` goes before each; its keys are bound first, then the graph, then twice the seq at which rows are visible.
_BY_ID = _sql("""SELECT $row FROM asked CROSS JOIN log INDEXED BY log_until
    ON graph = ? AND kind = k1 AND id = k2 AND until > ? AND seq <= ?""")
_BY_FROM = _sql("""SELECT $row FROM asked CROSS JOIN log INDEXED BY log_from
    ON graph = ? AND kind = 'edge' AND from_id = k1 AND until > ? AND seq <= ?""")
_BY_TO = _sql("""SELECT $row FROM asked CROSS JOIN log INDEXED BY log_to
    ON graph = ? AND kind = 'edge' AND to_id = k1 AND until > ? AND seq <= ?""")
_BY_TYPE = _sql("""SELECT $row FROM asked CROSS JOIN log INDEXED BY log_type
    ON graph = ? AND kind = 'entity' AND entity_type = k1 AND until > ? AND seq <= ?""")
_BY_VERSION = _sql("""SELECT $row FROM asked CROSS JOIN log INDEXED BY log_version
    ON graph = ? AND kind = k1 AND id = k2 AND version = k3""")
_HISTORY = _sql("""SELECT $row FROM asked CROSS JOIN log INDEXED BY log_version
    ON graph = ? AND kind = k1 AND id = k2""")
_CHAINS = "SELECT seq, chain FROM asked CROSS JOIN log ON graph = ? AND seq = k1"
_BY_SEQ = _sql("SELECT $row FROM asked CROSS JOIN log ON graph = ? AND seq = k1")
_LINES = "SELECT seq, kind, id, until > ?, hash FROM log WHERE graph = ? AND seq > ? AND seq <= ? ORDER BY seq LIMIT ?"

# What names every current entity, by id, is read from an index that holds nothing else.
_LISTING_NOW = _sql("""SELECT id, version FROM log INDEXED BY log_listing
    WHERE graph = :graph AND until = $forever AND kind = 'entity' AND id > :past ORDER BY id LIMIT :rows""")
_LISTING_THEN = """SELECT id, version FROM log INDEXED BY log_until
    WHERE graph = :graph AND kind = 'entity' AND id > :past AND until > :at AND seq <= :at ORDER BY id LIMIT :rows"""


@cache
def _span(*, now: bool, kind: bool, typed: bool) -> str:
    """The log in its order: what is current now through small indexes, what was current then through the log itself."""
    only = " AND kind = 'entity' AND entity_type = :entity_type" if typed else ""
    return _sql(
        """SELECT $row FROM log$index WHERE graph = :graph$only AND until $visible AND seq > :after AND seq <= :upto
            ORDER BY seq LIMIT :rows""",
        index=(" INDEXED BY log_type" if typed else " INDEXED BY log_current") if now else "",
        only=only + (" AND kind = :kind" if kind else ""),
        visible=f"= {FOREVER}" if now else "> :at",
    )


@cache
def _asked(columns: int, keys: int) -> str:
    """``WITH asked (k1, …) AS (VALUES (?, …), …)`` for so many keys of so many columns."""
    names = ", ".join(f"k{number + 1}" for number in range(columns))
    one = f"({', '.join('?' * columns)})"
    return f"WITH asked ({names}) AS (VALUES {', '.join([one] * keys)}) "


@contextmanager
def border(doing: str) -> Iterator[None]:
    """No exception of SQLite's gets past this; what it was `doing` is told instead of its values."""
    try:
        yield
    except sqlite3.Error as error:
        raise _ours(error, doing) from error
    except MemoryError as error:  # SQLite's NOMEM comes as this, not as an error of its own
        raise StoreError(f"SQLite could not {doing}: out of memory") from error
    except OverflowError as error:
        raise LocalProtocolError(f"expected integers of at most 64 bits to {doing}; got a larger one") from error
    except UnicodeDecodeError as error:  # of what SQLite says of a schema that it cannot read
        raise StoreCorrupt(f"SQLite could not {doing}: expected UTF-8 text in the file; got other bytes") from error
    except UnicodeEncodeError:
        raise LocalProtocolError(f"expected text that is Unicode to {doing}; got a lone surrogate") from None


def _ours(error: sqlite3.Error, doing: str) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Raised by the Python module itself: a closed connection, or text in the file that is not UTF-8.
        if isinstance(error, sqlite3.OperationalError):
            return StoreCorrupt(f"SQLite could not {doing}: expected UTF-8 text in the file; got other bytes")
        return LocalProtocolError(f"SQLite could not {doing}: {type(error).__name__}")
    told = f"SQLite could not {doing}: {getattr(error, 'sqlite_errorname', code)}"
    match code & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(f"{told}; another process holds the file")
        case sqlite3.SQLITE_FULL:
            return StoreFull(f"{told}; make room, then try again")
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StoreCorrupt(f"{told}; restore the file from a backup")
        case sqlite3.SQLITE_CONSTRAINT:
            return LocalProtocolError(
                f"expected new row versions and at most one row of an id to end at the same seq to {doing}; got others"
            )
    return StoreError(told)


class SqliteStore:
    """A store in one file, for one machine: several threads and several processes may use it at once.

    Writers in this process queue; a writer in another process is waited for as long as `busy_timeout_ms`. Do not put
    the file on a network drive. A store that was opened before a fork belongs to the parent; open another one after.

    Args:
        path: the file; made, readable by its owner only, if there is none. Beside it SQLite keeps ``-wal`` and
            ``-shm``, which belong to it: back it up with SQLite's backup API, not by copying.
        epochs: makes the epoch of each new graph.
        busy_timeout_ms: how long a writer waits, for threads of this process and for other processes each.
        share_ms: how long a writer may have to wait for others with which it shares a commit; 0 for a commit each.
        device_hints_max: how many devices' hints are kept in memory.
        on_connect: called with each new connection after the settings, to change them or to watch.
        journal: a journal or its folder, where every commit is written once more before it is acknowledged, and from
            which a file that was set back gets what it lacks; True for ``.journal`` beside the file, False for none.
        heads: whether the ends of logs are kept in ``.heads`` beside the file, so that its being set back is noticed.
        discard: the file was set back on purpose: what came after it is to stay away (PROTOCOL 4.12).
        beside: the database of which journal and ends of logs are, if it is not this file: this one takes its place.
        clock: what this machine takes for the time, in microseconds, when it finds out that the file was set back.

    Raises:
        StoreCorrupt: the file is no SQLite database, or a damaged one.
        StoreError: the file belongs to another application or to a newer release, or cannot be opened; or the journal
            is of another database.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        epochs: Callable[[], str] = random_epoch,
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
        share_ms: int = SHARE_MS,
        device_hints_max: int = DEVICE_HINTS_MAX,
        on_connect: Callable[[sqlite3.Connection], object] | None = None,
        journal: Journal | str | os.PathLike[str] | bool = True,
        heads: bool = True,
        discard: bool = False,
        beside: Path | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        if os.fspath(path) in ("", ":memory:"):
            raise LocalProtocolError("expected the path of a file; use MemoryStore for a store in memory")
        file = Path(path).absolute()
        self._hints = DeviceHints(device_hints_max)
        self._file = _File(file, epochs, busy_timeout_ms, share_ms, on_connect)
        self._file.open()
        of = file if beside is None else beside.absolute()
        if isinstance(journal, bool):
            kept = Journal(of.with_name(f"{of.name}.journal")) if journal else None
        else:
            kept = journal if isinstance(journal, Journal) else Journal(journal)
        self._keeper = Keeper(self, of, self._file.lent, journal=kept, heads=heads, clock=clock)
        self._file.commits.committed = self._keeper.committed
        try:
            self._keeper.start(discard=discard)
        except BaseException:
            self._file.close()
            self._keeper.close()
            raise

    @property
    def happened(self) -> tuple[tuple[str, Event], ...]:
        """What was found out about the file when it was opened, by graph: that it was set back, and what came back."""
        return tuple(self._keeper.happened)

    async def discard_after(self, graph: str) -> Event | None:
        """What the journal or any peer knows of `graph` beyond its end is to stay away: it was set back on purpose
        (PROTOCOL 4.12). None if there is no such graph here."""
        return await self._keeper.discard(graph)

    def transaction(self, graph: str, *, write: bool) -> BaseTransaction:
        """Open a transaction on `graph`. See `inbetweenies.store.Store`."""
        write = write or self._keeper.lacks(graph)
        return _Transaction(self._file, graph, write=write, hints=self._hints)

    async def document(self, name: str) -> Document:
        """See `inbetweenies.store.Store`."""
        with self._file.lent("read a document") as connection:
            return _document(connection, name)

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        """See `inbetweenies.store.Store`. One statement, so a transaction of its own, which waits for the others."""
        with self._file.lent("write a document") as connection:
            statement = _ADD_DOCUMENT if revision == 0 else _SET_DOCUMENT
            return connection.execute(statement, (body, name, revision)).rowcount == 1

    async def graph_names(self) -> tuple[str, ...]:
        """See `inbetweenies.store.Store`."""
        with self._file.lent("read the names of graphs") as connection:
            return tuple(sorted(name for (name,) in connection.execute("SELECT name FROM graphs")))

    async def close(self) -> None:
        """Close idle connections, and the others when their transactions end. The file needs nothing else."""
        self._file.close()
        self._keeper.close()


#: Closing any descriptor of a file drops all POSIX locks that the process has on it, so a file is made by one thread
#: while no other opens it.
_OPENING = threading.Lock()


class _File:
    """The file, its idle connections, and the commits of those who write to it."""

    def __init__(
        self,
        path: Path,
        epochs: Callable[[], str],
        busy_timeout_ms: int,
        share_ms: int,
        on_connect: Callable[[sqlite3.Connection], object] | None,
    ) -> None:
        self.epochs = epochs
        self.commits = Commits(self.take, self.give_back, border, busy_timeout_ms=busy_timeout_ms, share_ms=share_ms)
        self._path = path
        self._busy_timeout_ms = busy_timeout_ms
        self._on_connect = on_connect
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    def open(self) -> None:
        """Make the file if there is none, and refuse one that is not ours."""
        if sqlite3.sqlite_version_info < (3, 37):
            raise StoreError(f"expected SQLite 3.37 or newer, for STRICT tables; got {sqlite3.sqlite_version}")
        with _OPENING:
            deadline = time.monotonic() + self._busy_timeout_ms / 1000
            while True:
                try:
                    finish(self._path)
                    return self._open()
                except StoreBusy:
                    # Two processes that make one file get in each other's way where SQLite itself does not wait.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)

    def _open(self) -> None:
        with told(f"open or make {self._path}"):
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            opened = self._path.stat()
        with border("open the store"):
            connection = self._connect()
            try:
                prepare(connection)
                # What waits until a database is restored would otherwise go on with the one that was set aside.
                self._still(opened)
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)

    def _still(self, opened: os.stat_result) -> None:
        with told(f"find {self._path}"):
            now = self._path.stat()
        if not os.path.samestat(opened, now):
            raise StoreBusy("expected the file that was opened; another one has taken its place: try again")

    def close(self) -> None:
        self._closed = True
        while self._idle:
            _close(self._idle.pop())

    def take(self) -> sqlite3.Connection:
        """A connection for one transaction."""
        if self._closed:
            raise LocalProtocolError("expected an open store; got a closed one")
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    @contextmanager
    def lent(self, doing: str) -> Iterator[sqlite3.Connection]:
        """A connection for one statement."""
        with border(doing):
            connection = self.take()
            sound = False
            try:
                yield connection
                sound = True
            finally:
                self.give_back(connection, sound)

    def give_back(self, connection: sqlite3.Connection, sound: bool) -> None:
        """Keep a connection for the next transaction, unless an error makes it doubtful."""
        if sound and not self._closed and len(self._idle) < IDLE_CONNECTIONS_MAX:
            self._idle.append(connection)
        else:
            _close(connection)

    def add_graph(self, name: str, epoch: str) -> None:
        """Make a graph, durably, unless somebody else has."""
        connection, sound = self.take(), False
        try:
            connection.execute(_ADD_GRAPH, (name, epoch))
            sound = True
        finally:
            self.give_back(connection, sound)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw",  # never makes a file: that is done above, with its permissions
            uri=True,
            timeout=self._busy_timeout_ms / 1000,
            isolation_level=None,
            check_same_thread=False,  # transactions wander between threads, but each has its connection to itself
        )
        try:
            for setting in SETTINGS:
                connection.execute(setting)
            if self._on_connect is not None:
                self._on_connect(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _document(connection: sqlite3.Connection, name: str) -> Document:
    found = connection.execute(_DOCUMENT, (name,)).fetchone()
    return Document() if found is None else Document(revision=found[0], body=found[1])


def _close(connection: sqlite3.Connection) -> None:
    # Nothing is lost: what was committed is on the disk.
    with suppress(sqlite3.Error, MemoryError):
        if connection.in_transaction:
            # A cursor that the traceback of an error still holds would keep the connection open, and its lock taken.
            connection.execute("ROLLBACK")
    with suppress(sqlite3.Error):
        connection.close()


class _Transaction(BaseTransaction):
    def __init__(self, file: _File, graph: str, *, write: bool, hints: DeviceHints) -> None:
        super().__init__(graph, write=write, hints=hints)
        self._file = file
        self._shared: Shared
        self._sound = False  # until it has begun
        self._wrote = False
        self._written: list[Writes] = []

    # its course

    def _begin(self) -> Head:
        with ExitStack() as undo:
            undo.enter_context(border("begin a transaction"))
            if self.writable:
                self._shared = self._file.commits.enter()
                self._connection = self._shared.connection
            else:
                self._connection = self._file.take()
            undo.callback(self._rollback)
            if not self.writable:
                self._connection.execute("BEGIN")
            head = self._find_head() or self._first_head()
            self._before = head.cursor
            undo.pop_all()
        self._sound = True
        return head

    def _find_head(self) -> Head | None:
        """The head of the snapshot; None if nobody named the graph before."""
        found = self._connection.execute(_HEAD, (self.graph,)).fetchone()
        if found is None:
            return None
        self._key, self._birth, epoch, seq, chain, stamp, digest = found
        return Head(epoch=epoch, seq=seq, chain=chain, stamp=stamp, digest=int.from_bytes(digest, "big"))

    def _first_head(self) -> Head:
        # A commit of its own: the epoch that this transaction tells must be the same even if it is rolled back.
        commits, new = self._file.commits, (self.graph, self._file.epochs())
        if self.writable:
            commits.settle()
            self._file.add_graph(*new)
            self._shared = commits.begin()
            self._connection = self._shared.connection
        else:
            self._connection.execute("ROLLBACK")
            commits.alone(lambda: self._connection.execute(_ADD_GRAPH, new))
            self._connection.execute("BEGIN")
        head = self._find_head()
        if head is None:
            raise StoreCorrupt("expected to find the graph that was just made; it is gone")
        return head

    def _commit(self) -> None:
        if self.writable:
            # Also if nothing was written: what is held already may not be acknowledged before it is kept outside, too.
            self._shared.written.append(self._committed())
            self._file.commits.done(self._shared)
            return
        try:
            with self._border("commit"):
                self._connection.execute("COMMIT")
        except BaseException:
            self._sound = False
            raise
        finally:
            self._rollback()

    def _committed(self) -> Committed:
        return Committed(
            graph=self.graph,
            birth=self._birth,
            before=self._before,
            head=self._head,
            writes=tuple(self._written),
        )

    def _rollback(self) -> None:
        if self.writable:
            self._file.commits.leave(self._shared, wrote=self._wrote, sound=self._sound)
            return
        try:
            if self._connection.in_transaction:  # some errors have rolled back already
                self._connection.execute("ROLLBACK")
        except (sqlite3.Error, MemoryError):
            self._sound = False
        self._file.give_back(self._connection, self._sound)

    # writing

    def _apply(self, writes: Writes) -> None:
        key, run = self._key, self._connection
        self._wrote = True
        self._written.append(writes)
        with self._border("write"):
            if writes.closed:
                # Before the new rows come: the old one must have made room for the next current row of its id.
                closed = run.executemany(_CLOSE, [(until, key, seq) for seq, until in writes.closed]).rowcount
                if closed != len(writes.closed):
                    raise LocalProtocolError(
                        f"expected {len(writes.closed)} rows to close that are current; got {closed}"
                    )
            if writes.rows:
                run.executemany(_INSERT, _bound(writes.rows, key))
            if writes.head is not None:
                new = writes.head
                digest = new.digest.to_bytes(32, "big")
                run.execute(_SET_HEAD, (new.epoch, new.seq, new.chain, new.stamp, digest, key))
            if writes.device is not None:
                device, value = writes.device
                run.execute(_SET_DEVICE, (key, device, *astuple(value)))
            for event in writes.events:
                run.execute(_ADD_EVENT, (key, event.kind, event.key, event.at, _encode(event.told).decode()))
                run.execute(_FORGET_EVENTS, (key, event.kind, EVENTS_MAX))

    @contextmanager
    def _border(self, doing: str) -> Iterator[None]:
        try:
            with border(doing):
                yield
        except (LocalProtocolError, StoreBusy, StoreFull):
            raise
        except StoreError:
            # After an I/O error a connection must not be trusted, nor its fsync be tried again.
            self._sound = False
            raise

    # reading

    def _held(self, reads: Reads) -> Held:
        end = self._head.seq
        at = end if reads.as_of is None else max(min(reads.as_of, end), 0)
        with self._border("read"):
            return Held(head=self._head, **self._by_key(reads, at), **self._in_order(reads, at, end))

    def _by_key(self, reads: Reads, at: int) -> dict[str, Any]:
        key, seen = (self._key,), (self._key, at, at)
        answer: dict[str, Any] = {}
        if reads.entities:
            rows = self._rows(_BY_ID, [("entity", id_) for id_ in reads.entities], seen)
            answer["entities"] = {row.id: row for row in rows}
        if reads.edges:
            rows = self._rows(_BY_ID, [("edge", id_) for id_ in reads.edges], seen)
            answer["edges"] = {row.id: row for row in rows}
        if reads.versions:
            rows = self._rows(_BY_VERSION, reads.versions, key)
            answer["versions"] = {(row.kind, row.id, row.version): row for row in rows}
        if reads.history:
            rows = self._rows(_HISTORY, [("entity", id_) for id_ in reads.history], key)
            answer["history"] = _grouped(rows, "id", "seq")
        if reads.edge_history:
            rows = self._rows(_HISTORY, [("edge", id_) for id_ in reads.edge_history], key)
            answer["edge_history"] = _grouped(rows, "id", "seq")
        if reads.edges_from:
            found = _grouped(self._rows(_BY_FROM, _single(reads.edges_from), seen), "from_id", "id")
            answer["edges_from"] = {id_: found.get(id_, ()) for id_ in reads.edges_from}
        if reads.edges_to:
            found = _grouped(self._rows(_BY_TO, _single(reads.edges_to), seen), "to_id", "id")
            answer["edges_to"] = {id_: found.get(id_, ()) for id_ in reads.edges_to}
        return answer | self._beside(reads)

    def _beside(self, reads: Reads) -> dict[str, Any]:
        """What is no row found by what it is."""
        key = (self._key,)
        answer: dict[str, Any] = {}
        if reads.device is not None:
            for served, acked, mark, pushed in self._connection.execute(_DEVICE, (self._key, reads.device)):
                answer["device"] = Device(served=served, acked=acked, mark=mark, pushed=pushed)
        if reads.documents:
            answer["documents"] = {name: _document(self._connection, name) for name in reads.documents}
        if reads.seqs:
            rows = self._rows(_BY_SEQ, _single(reads.seqs), key)
            answer["seqs"] = {row.seq: row for row in rows}
        if reads.events:
            answer["events"] = tuple(
                Event(kind=kind, key=name, at=when, told=_decode(told))
                for kind, name, when, told in self._connection.execute(_EVENTS_OF, key)
            )
        return answer

    def _in_order(self, reads: Reads, at: int, end: int) -> dict[str, Any]:
        run, key = self._connection.execute, self._key
        answer: dict[str, Any] = {}
        if reads.types:
            rows = self._rows(_BY_TYPE, _single(reads.types), (key, at, at))
            rows.sort(key=attrgetter("born", "id"))
            answer["types"] = tuple(rows)
        if reads.chains:
            wanted = _single(seq for seq in reads.chains if 0 < seq <= end)
            chains = {seq: chain for cursor in self._ask(_CHAINS, wanted, (key,)) for seq, chain in cursor}
            answer["chains"] = chains | ({0: bytes(16)} if 0 in reads.chains else {})
        if reads.stamp is not None:
            answer["stamp_seq"] = self._stamp_seq(reads.stamp)
        if reads.span is not None:
            answer["span"] = tuple(self._spanned(reads.span, at, end))
        if reads.lines is not None:
            after, upto = max(min(reads.lines.after, end), 0), max(min(reads.lines.upto, at), 0)
            most = -1 if reads.lines.rows is None else reads.lines.rows
            found = run(_LINES, (at, key, after, upto, most))
            answer["lines"] = tuple(Line(seq, kind, id_, now == 1, hash_) for seq, kind, id_, now, hash_ in found)
        if reads.listing:
            most = -1 if reads.listing_rows is None else reads.listing_rows
            query = _LISTING_NOW if at == end else _LISTING_THEN
            given = {"graph": self._key, "past": reads.listing_after, "at": at, "rows": most}
            answer["listing"] = tuple(run(query, given))
        return answer

    def _spanned(self, span: Span, at: int, end: int) -> list[Row]:
        query = _span(now=at == end, kind=span.kind is not None, typed=span.entity_type is not None)
        given = {
            "graph": self._key,
            "at": at,
            "after": max(min(span.after, end), 0),
            "upto": max(min(span.upto, at), 0),
            "rows": -1 if span.rows is None else span.rows,
            "kind": span.kind,
            "entity_type": span.entity_type,
        }
        cursor = self._connection.execute(query, given)
        return _built(cursor if span.size is None else _filling(cursor, span.size))

    def _ask(self, query: str, keys: Iterable[tuple[Any, ...]], given: tuple[int, ...]) -> Iterator[sqlite3.Cursor]:
        """`query` for every key, as many keys at a time as pay off."""
        waiting = list(dict.fromkeys(keys))
        start = 0
        for size in KEYS_PER_QUERY:
            while len(waiting) - start >= size:
                some = waiting[start : start + size]
                start += size
                values = [value for one in some for value in one]
                yield self._connection.execute(_asked(len(some[0]), size) + query, (*values, *given))

    def _rows(self, query: str, keys: Iterable[tuple[Any, ...]], given: tuple[int, ...]) -> list[Row]:
        rows: list[Row] = []
        for cursor in self._ask(query, keys, given):
            rows += _built(cursor)
        return rows

    def _stamp_seq(self, stamp: int) -> int:
        """The newest seq whose stamp is at or before `stamp`, by halving: stamps rise with seq."""
        if stamp >= self._head.stamp:
            return self._head.seq
        low, high = 0, self._head.seq  # the stamp at low is at or before, the one at high is after
        while high - low > 1:
            middle = (low + high) // 2
            [found] = self._connection.execute(_STAMP, (self._key, middle)).fetchone()
            low, high = (middle, high) if found <= stamp else (low, middle)
        return low


def _grouped(rows: list[Row], key: str, order: str) -> dict[str, tuple[Row, ...]]:
    rows.sort(key=attrgetter(key, order))
    return {value: tuple(group) for value, group in groupby(rows, attrgetter(key))}


def _filling(cursor: sqlite3.Cursor, size: int) -> Iterator[tuple[Any, ...]]:
    """What is selected up to and with the row whose body fills `size` bytes."""
    with closing(cursor):
        for values in cursor:
            yield values
            size -= len(values[_BODY])
            if size <= 0:
                return


def _single(values: Iterable[Any]) -> list[tuple[Any]]:
    return [(value,) for value in values]


def _bound(rows: Iterable[Row], key: int) -> Iterator[tuple[Any, ...]]:
    """What `_INSERT` takes."""
    for row in rows:
        values = astuple(row)
        yield (*values[:4], FOREVER if row.until is None else row.until, *values[5:], key)


def _built(cursor: Iterable[tuple[Any, ...]]) -> list[Row]:
    """The rows that were selected, column by column in the order of the fields of `Row`."""
    return [
        Row(
            kind, id_, version, seq, None if until == FOREVER else until, stamp, edit, timed == 1, rise, born,
            deleted == 1, entity_type, user_id, from_id, to_id, hash_, chain, body, via,
        )
        for (
            kind, id_, version, seq, until, stamp, edit, timed, rise, born, deleted,
            entity_type, user_id, from_id, to_id, hash_, chain, body, via,
        ) in cursor
    ]  # fmt: skip
