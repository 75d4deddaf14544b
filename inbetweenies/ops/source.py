"""The database of a deployed server, read in the order in which it is imported (PROTOCOL 13.1).

Read `opened` and `Source.batch`. The file itself is only ever read, and only once: into a copy, as of one commit. All
else is done on the copy, which nobody writes to and which can be given indexes and an order.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec

from .. import deployed
from ..deployed import Made, Move, Spot, schema_of
from ..errors import StoreBusy, StoreCorrupt, StoreError
from ..imports import Batch
from ..limits import Limits
from ..model import Entity
from ..stores.placing import told
from ..stores.schema import APPLICATION_ID
from ..stores.sqlite import border

BUSY_SECONDS: Final = 10.0  # that a writer who keeps everybody out is waited for
BATCH_ROWS: Final = 1_000
BATCH_BYTES: Final = 16 * 2**20  # that a batch holds in memory, but for one row more

_HEADER: Final = b"SQLite format 3\0"
_HEADER_BYTES: Final = 100
_Rows: TypeAlias = Iterator[dict[str, Any]]
_Read: TypeAlias = Callable[["Source", dict[str, Any]], tuple[Made, ...]]


@contextmanager
def opened(file: Path, *, graph: str, limits: Limits) -> Iterator[Source]:
    """The database of a deployed server in `file`, as it is now, whoever writes to it meanwhile.

    Raises:
        StoreError: there is none, or it is no such database: its message says what was expected and what is there.
        StoreCorrupt: it is damaged.
        StoreBusy: somebody keeps everybody else from reading it.
    """
    with told(f"read {file}"):
        if not file.is_file():
            raise StoreError(f"expected the database of a deployed server at {file}; got no file")
        with file.open("rb") as first:
            header = first.read(_HEADER_BYTES)
        if not header.startswith(_HEADER):
            raise StoreError(f"expected a database of SQLite at {file}; got another file")
        expected = _size(header)
        if file.stat().st_size < expected:
            got = file.stat().st_size
            raise StoreCorrupt(f"expected {expected} bytes in {file}; got {got}: it is truncated. Nothing was imported")
    with ExitStack() as held:
        # What goes wrong inside of the block is not ours to tell.
        with told("make a copy in the folder for temporary files"):
            copy = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="migrate-"))) / "source.db"
            with border(f"read {file}"):
                _copy(file, copy)
            with border(f"read the copy of {file}"):
                connection = held.enter_context(closing(_connected(copy)))
                _inspect(connection, file)
                source = Source(connection, file.name, graph, limits)
        yield source


def _size(header: bytes) -> int:
    """How large a database says that it is; less, where it does not (SQLite's file format, "the database header")."""
    if len(header) < _HEADER_BYTES:
        return _HEADER_BYTES
    page = int.from_bytes(header[16:18], "big")
    in_use = header[24:28] == header[92:96] and header[18] == 1  # with a write-ahead log pages may still be in that
    return int.from_bytes(header[28:32], "big") * (65536 if page == 1 else page) if in_use else _HEADER_BYTES


def _copy(file: Path, copy: Path) -> None:
    until = time.monotonic() + BUSY_SECONDS

    def step(status: int, *_: int) -> None:
        if status in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) and time.monotonic() > until:
            raise StoreBusy(f"expected to read {file} within {BUSY_SECONDS:g} s; its writer keeps it locked: stop that")

    with (
        closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        target.execute("PRAGMA synchronous = OFF")  # nobody needs the copy after a power cut
        # All pages in one step: one commit, and no beginning anew whenever its server writes.
        source.backup(target, pages=-1, progress=step, sleep=0.05)


def _connected(copy: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(copy, isolation_level=None)
    for setting in ("trusted_schema = OFF", "journal_mode = OFF", "synchronous = OFF", "cell_size_check = ON"):
        connection.execute(f"PRAGMA {setting}")
    connection.row_factory = _as_dict
    connection.text_factory = _text
    return connection


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _text(data: bytes) -> str | bytes:
    """Text that is none is handed on as bytes: a row is reported, and the others are read."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _inspect(connection: sqlite3.Connection, file: Path) -> None:
    """Refuse what is damaged or none of a deployed server's."""
    if connection.execute("PRAGMA application_id").fetchone()["application_id"] == APPLICATION_ID:
        raise StoreError(f"expected the database of a deployed server at {file}; got one of this server: just serve it")
    [sound] = connection.execute("PRAGMA integrity_check(1)").fetchone().values()
    if sound != "ok":
        raise StoreCorrupt(f"expected {file} to be sound; it is damaged: {sound}. Nothing was imported")


class Source:
    """A copy of the database of a deployed server.

    Attributes:
        name: of its file.
        schema: which one it has.
        totals: how many rows each of its tables has.
        digest: of all its rows, 32 hexadecimal digits; that of another state of the same database is another one.
        steps: how many steps its import has.

    Raises:
        StoreError: it is none.
    """

    def __init__(self, connection: sqlite3.Connection, name: str, graph: str, limits: Limits) -> None:
        self._connection = connection
        self.name = name
        self.graph = graph
        self.limits = limits
        tables = self._tables()
        self.schema = schema_of(tables)
        self._columns = {table: tables[table] for table in deployed.TABLES[self.schema] if table in tables}
        for table, columns in deployed.TABLES[self.schema].items():
            if table not in tables:  # it holds nothing; then nothing has to be asked about it
                names = (word.strip("()") for word in columns.split())
                self._run(f"CREATE TABLE {table} ({', '.join(names)}, created_at, updated_at)")
        self._lacking()
        self.totals = {table: self._count(table) for table in self._columns}
        self.digest = self._digest()
        self._stages = [(table, order, read) for table, order, read in _STAGES[self.schema]]
        self._sizes = [self._arranged(number, *stage[:2]) for number, stage in enumerate(self._stages)]
        self.steps = sum(self._sizes)
        self._homes = lru_cache(1024)(self._home)
        self._things = lru_cache(1024)(self._thing)

    # --- the tables

    def _tables(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for row in self._run("SELECT name, sql FROM sqlite_schema WHERE type = 'table'"):
            name = str(row["name"])
            if name in {table for tables in deployed.TABLES.values() for table in tables}:
                if not str(row["sql"]).upper().startswith("CREATE TABLE"):
                    raise StoreError(f"expected a table {name} of its own; got one that another module makes up")
                try:
                    self._run(f"SELECT rowid FROM {name} LIMIT 0")  # noqa: S608 - one of ours
                except sqlite3.OperationalError:
                    raise StoreError(f"expected a table {name} as a deployed server makes it; got another") from None
            info = self._run("SELECT name FROM pragma_table_info(?)", name)
            found[name] = [str(column["name"]).lower() for column in info]
        return found

    def _lacking(self) -> None:
        """What lookups need, where the database does not have it."""
        wanted = {
            "homekit": "homes(id) rooms(id) accessories(id) users(id) services(id) services(accessory_id)"
            " characteristics(service_id)",
            "graph": "entities(id) blobs(id)",
        }
        for number, index in enumerate(wanted[self.schema].split()):
            self._run(f"CREATE INDEX migrate_{number} ON {index}")
        if "is_latest" not in self._columns.get("entities", ("is_latest",)):
            # A release that did not say took the newest for the latest.
            self._run("ALTER TABLE entities ADD COLUMN is_latest")
            self._run(
                "UPDATE entities SET is_latest = rowid = (SELECT rowid FROM entities other WHERE other.id = entities.id"
                " ORDER BY updated_at DESC, version DESC LIMIT 1)"
            )
        if "server_seq" not in self._columns.get("entities", ("server_seq",)):
            self._run("ALTER TABLE entities ADD COLUMN server_seq")

    def _digest(self) -> str:
        hashed = blake2b(digest_size=16)
        for table, columns in sorted(self._columns.items()):
            names = ", ".join(f'"{column}"' for column in columns)
            hashed.update(msgspec.msgpack.encode([table, *columns]))
            for row in self._run(f"SELECT {names} FROM {table} ORDER BY rowid"):  # noqa: S608 - its own columns
                hashed.update(msgspec.msgpack.encode(list(row.values())))
        return hashed.hexdigest()

    def _arranged(self, number: int, table: str, order: str) -> int:
        """Put the rows of a stage in order; how many there are."""
        self._run(f"CREATE TABLE stage_{number} (n INTEGER PRIMARY KEY, of)")
        self._run(f"INSERT INTO stage_{number} (of) SELECT t.rowid FROM {table} t {order}")  # noqa: S608 - ours
        return self._count(f"stage_{number}")

    def _run(self, statement: str, *values: Any) -> _Rows:
        rows: _Rows = self._connection.execute(statement, values)
        return rows

    def _count(self, table: str) -> int:
        return int(self._one(f"SELECT count(*) FROM {table}"))  # noqa: S608 - one of ours

    def _one(self, statement: str, *values: Any) -> Any:
        row = next(iter(self._run(statement, *values)), None)
        return None if row is None else next(iter(row.values()))

    # --- batches

    def batch(self, stage: int, done: int, rows: int) -> Batch:
        """What comes next after `done` steps of a `stage`: at most so many rows, or one step."""
        with border(f"read the copy of {self.name}"):
            return self._batch(stage, done, rows)

    def _batch(self, stage: int, done: int, rows: int) -> Batch:
        begun = stage, done
        stage, done = self._next(stage, done)
        made: list[Made] = []
        taken = size = 0
        if stage < len(self._stages):
            table, _, read = self._stages[stage]
            found = self._run(
                f"SELECT t.*, t.rowid AS migrate_row, s.n AS migrate_n FROM stage_{stage} s"  # noqa: S608 - ours
                f" JOIN {table} t ON t.rowid = s.of WHERE s.n > ? ORDER BY s.n LIMIT ?",
                done,
                rows,
            )
            for row in found:
                done = row.pop("migrate_n")
                new = read(self, row)
                made += new
                taken += sum(1 + len(one.inside) if isinstance(one, Move) else 1 for one in new)
                size += sum(len(value) for value in row.values() if isinstance(value, str | bytes))
                if taken >= rows or size >= BATCH_BYTES:
                    break
        stage, done = self._next(stage, done)
        whole = stage == len(self._stages)
        return Batch(made=tuple(made), stage=begun[0], done=begun[1], next_stage=stage, next_done=done, whole=whole)

    def _next(self, stage: int, done: int) -> tuple[int, int]:
        """The same place, in the stage in which there is something to do."""
        while stage < len(self._stages) and done >= self._sizes[stage]:
            stage, done = stage + 1, 0
        return stage, done

    def passed(self, stage: int, done: int) -> int:
        """How many steps are done at this place."""
        return sum(self._sizes[:stage]) + done

    # --- HomeKit tables

    def _first(self, table: str, row: Mapping[str, Any], before: tuple[str, ...] = ()) -> Spot | None:
        """Why a row may not have the id that it has: another one has it."""
        id_ = row.get("id")
        if not isinstance(id_, str):
            return None  # told by whoever reads it
        for other in before:
            if self._one(f"SELECT 1 FROM {other} WHERE id = ?", id_):  # noqa: S608
                detail = f"expected an id of its own; got one that is in {other} as well"
                return Spot(table=table, key=deployed.key_of(row), code="duplicate_id", detail=detail)
        if self._one(f"SELECT count(*) FROM {table} WHERE id = ? AND rowid < ?", id_, row["migrate_row"]):  # noqa: S608
            detail = "expected an id of its own; got one that another row has, which came first"
            return Spot(table=table, key=deployed.key_of(row), code="duplicate_id", detail=detail)
        return None

    def _records(self, table: str, id_: str) -> dict[str, Any] | None:
        return next(iter(self._run(f"SELECT * FROM {table} WHERE id = ? ORDER BY rowid LIMIT 1", id_)), None)  # noqa: S608

    def _home(self, id_: str) -> Entity | None:
        row = self._records("homes", id_)
        return None if row is None else _entity(deployed.home(row))

    def _thing(self, table: str, id_: str) -> Entity | None:
        """The room or the device that a row becomes, None if there is none, or it becomes nothing."""
        row = self._records(table, id_)
        if row is None or self._first(table, row | {"migrate_row": 0}, _BEFORE[table]):
            return None
        return _entity(deployed.room(row) if table == "rooms" else self._device(row)[0])

    def _device(self, row: dict[str, Any]) -> tuple[Made, ...]:
        services, characteristics = self._inside(row.get("id"))
        return deployed.accessory(row, services, characteristics, bytes_max=self.limits.entity_bytes_max)

    def _inside(self, id_: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        services = [*self._run("SELECT * FROM services WHERE accessory_id = ? ORDER BY rowid", id_)]
        return services, [*self._run(f"SELECT c.* FROM characteristics c WHERE {_OWN} = ? ORDER BY c.rowid", id_)]  # noqa: S608

    def _linked(self, move: Move, row: dict[str, Any]) -> tuple[Made, ...]:
        target = row.get("home_id")
        place = self._homes(target) if isinstance(target, str) else None
        edge = deployed.link(self.graph, move, "home_id", place, target)
        return (move,) if edge is None else (move, edge)

    def _simple(self, table: str, row: dict[str, Any], make: Callable[[Mapping[str, Any]], Made]) -> tuple[Made, ...]:
        """A home, room or user, with its link."""
        taken = self._first(table, row, _BEFORE[table])
        own = _own(row)
        made = taken or make(own)
        if isinstance(made, Spot) or table == "homes":
            return (made,)
        return self._linked(made, own)

    def read_home(self, row: dict[str, Any]) -> tuple[Made, ...]:
        return self._simple("homes", row, deployed.home)

    def read_room(self, row: dict[str, Any]) -> tuple[Made, ...]:
        return self._simple("rooms", row, deployed.room)

    def read_user(self, row: dict[str, Any]) -> tuple[Made, ...]:
        return self._simple("users", row, deployed.user)

    def read_accessory(self, row: dict[str, Any]) -> tuple[Made, ...]:
        taken = self._first("accessories", row, _BEFORE["accessories"])
        own = _own(row)
        if taken is not None:
            # What is inside belongs to the first accessory of this id; where there is no other, to none.
            first = self._one("SELECT min(rowid) FROM accessories WHERE id = ?", row["id"]) == row["migrate_row"]
            services, characteristics = self._inside(row["id"]) if first else ([], [])
            lost = [("services", each) for each in services] + [("characteristics", each) for each in characteristics]
            return taken, *(_dangling(table, each) for table, each in lost)
        move, *others = self._device(own)
        return (*(self._linked(move, own) if isinstance(move, Move) else (move,)), *others)

    def read_bridge(self, row: dict[str, Any]) -> tuple[Made, ...]:
        if self._first("accessories", row, _BEFORE["accessories"]):
            return ()
        own = _own(row)
        move, target = self._device(own)[0], own["bridge_id"]
        if isinstance(move, Spot):
            return ()
        bridge = self._things("accessories", target) if isinstance(target, str) else None
        edge = deployed.link(self.graph, move, "bridge_id", bridge, target)
        return () if edge is None else (edge,)

    def read_lost_service(self, row: dict[str, Any]) -> tuple[Made, ...]:
        return (_dangling("services", row),)

    def read_lost_characteristic(self, row: dict[str, Any]) -> tuple[Made, ...]:
        return (_dangling("characteristics", row),)

    def read_in_room(self, row: dict[str, Any]) -> tuple[Made, ...]:
        ends = [
            self._things(table, row[name]) if isinstance(row[name], str) else None
            for table, name in (("accessories", "accessory_id"), ("rooms", "room_id"))
        ]
        return (deployed.in_room(self.graph, _own(row), *ends),)

    # --- tables of versioned rows

    def read_blob(self, row: dict[str, Any]) -> tuple[Made, ...]:
        return (self._first("blobs", row, ("entities",)) or deployed.blob(_own(row)),)

    def read_entity(self, row: dict[str, Any]) -> tuple[Made, ...]:
        """The row that is taken at this step: those of one id share the places that they have, parents first."""
        id_ = row.get("id")
        alone = deployed.Turn(0, False, True)
        if not isinstance(id_, str) or not isinstance(row.get("version"), str):
            return (deployed.entity(_own(row), alone),)
        rows, order = self._turns(id_)
        turn = order[rows.index(row["migrate_row"])]
        of = rows[turn.index]
        own = row if of == row["migrate_row"] else next(self._run("SELECT * FROM entities WHERE rowid = ?", of))
        return (deployed.entity(_own(own), turn),)

    def _turns(self, id_: str) -> tuple[list[int], tuple[deployed.Turn, ...]]:
        if self._known_turns[0] == id_:
            return self._known_turns[1:]
        number = next(number for number, stage in enumerate(self._stages) if stage[0] == "entities")
        history = [
            *self._run(
                "SELECT e.rowid AS migrate_row, e.version, e.parent_versions, e.is_latest FROM entities e"  # noqa: S608
                f" JOIN stage_{number} s ON s.of = e.rowid WHERE e.id = ? AND typeof(e.version) = 'text' ORDER BY s.n",
                id_,
            )
        ]
        history = [row for row in history if isinstance(row["version"], str)]
        order = deployed.turns([(row["version"], deployed.parents_of(row), deployed.is_latest(row)) for row in history])
        self._known_turns = (id_, [row["migrate_row"] for row in history], order)
        return self._known_turns[1:]

    _known_turns: tuple[str | None, list[int], tuple[deployed.Turn, ...]] = (None, [], ())

    def read_relationship(self, row: dict[str, Any]) -> tuple[Made, ...]:
        ends: dict[str, str] = {}
        for name in ("from", "to"):
            id_, version = row.get(f"{name}_entity_id"), row.get(f"{name}_entity_version")
            found = self._end(id_, version) if isinstance(id_, str) else None
            if isinstance(id_, str) and found is not None:
                ends[id_] = found
        return (deployed.relationship(_own(row), ends),)

    def _end(self, id_: str, version: Any) -> str | None:
        exact = "SELECT version FROM entities WHERE id = ? AND version = ?"
        latest = (
            "SELECT version FROM entities WHERE id = ? AND typeof(version) = 'text'"
            " ORDER BY is_latest DESC, updated_at DESC LIMIT 1"
        )
        found = self._one(exact, id_, version) or self._one(latest, id_)
        if found is None:
            blob = self._records("blobs", id_)
            made = None if blob is None else _entity(deployed.blob(blob))
            return None if made is None else made.version
        return found if isinstance(found, str) else None

    def read_bookkeeping(self, row: dict[str, Any]) -> tuple[Made, ...]:
        return (deployed.bookkeeping(row),)


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "migrate_row"}


def _entity(made: Made) -> Entity | None:
    return made.entities[0] if isinstance(made, Move) else None


def _dangling(table: str, row: Mapping[str, Any]) -> Spot:
    of = "accessory" if table == "services" else "service"
    detail = f"expected its {of} to be there; it is not, or was refused"
    return Spot(table=table, key=deployed.key_of(row), code="dangling", detail=detail)


_BEFORE: Final[dict[str, tuple[str, ...]]] = {
    "homes": (),
    "rooms": ("homes",),
    "accessories": ("homes", "rooms"),
    "users": ("homes", "rooms", "accessories"),
}

# The accessory that a characteristic belongs to, by the first service of the id that it names.
_OWN: Final = "(SELECT s.accessory_id FROM services s WHERE s.id = c.service_id ORDER BY s.rowid LIMIT 1)"
_OLDEST: Final = "ORDER BY t.created_at, t.rowid"

#: In which order the rows of which tables are taken: what others refer to first, and last what no client of the old
#: server was told of by a sync. Each is one table, which of its rows in which order, and what reads one.
_STAGES: Final[dict[str, tuple[tuple[str, str, _Read], ...]]] = {
    "homekit": (
        ("sync_metadata", "ORDER BY t.rowid", Source.read_bookkeeping),
        (
            "services",
            "WHERE NOT EXISTS (SELECT 1 FROM accessories a WHERE a.id = t.accessory_id) ORDER BY t.rowid",
            Source.read_lost_service,
        ),
        (
            "characteristics",
            f"WHERE NOT EXISTS (SELECT 1 FROM accessories a WHERE a.id = {_OWN.replace('c.', 't.')}) ORDER BY t.rowid",  # noqa: S608 - ours
            Source.read_lost_characteristic,
        ),
        ("homes", _OLDEST, Source.read_home),
        ("rooms", _OLDEST, Source.read_room),
        ("accessories", _OLDEST, Source.read_accessory),
        ("users", _OLDEST, Source.read_user),
        ("accessories", f"WHERE t.bridge_id IS NOT NULL {_OLDEST}", Source.read_bridge),
        ("accessory_rooms", "ORDER BY t.rowid", Source.read_in_room),
    ),
    "graph": (
        ("sync_metadata", "ORDER BY t.rowid", Source.read_bookkeeping),
        ("blobs", _OLDEST, Source.read_blob),
        # What a server took before it counted comes first: such rows were served first as well.
        (
            "entities",
            "ORDER BY t.server_seq IS NOT NULL, t.server_seq, t.created_at, t.rowid",
            Source.read_entity,
        ),
        ("entity_relationships", _OLDEST, Source.read_relationship),
    ),
}
