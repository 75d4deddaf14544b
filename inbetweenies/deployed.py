"""What the rows of a deployed server's database become in the graph (PROTOCOL 13.1 to 13.4), pure.

Read `homes` to `users` for the HomeKit tables, `entity` and `relationship` for the tables of versioned rows, `turns`
for which of several versions of a thing stands. A row is a mapping from column to what SQLite holds; whatever that is,
it becomes a `Move` or a `Spot` that says why not, and never an exception. Nothing here reads a file.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from . import merge
from .errors import RemoteProtocolError, StoreError, clip
from .limits import canonical
from .model import (
    EMPTY,
    SOURCE_TYPES,
    Entity,
    Relationship,
    edge_version,
    edit_time,
    make_version,
    parse_time,
    uuid5,
)

Columns: TypeAlias = Mapping[str, Any]  # a row: what SQLite holds in each column

#: Who is named as the author of rows that say nothing of theirs.
NOBODY: Final = "migration"

#: How many bytes of a blob go into one row; as base64 a third more. Far below the largest row (PROTOCOL 3.2), since a
#: client reads a row whole.
BLOB_BYTES: Final = 2**20


# --- which database it is -----------------------------------------------------------------------------------------

_TIMES: Final = ("created_at", "updated_at", "sync_id")
_SYNCS: Final = (
    "id client_id last_sync_time last_sync_success last_sync_error sync_failures total_syncs total_conflicts server_url"
    " auth_token sync_in_progress next_retry_time"
).split()

#: The columns of each table that deployed servers make. In brackets are those that not every release had.
TABLES: Final[dict[str, dict[str, str]]] = {
    "homekit": {
        "homes": "id name is_primary",
        "rooms": "id home_id name",
        "accessories": "id home_id name manufacturer model serial_number firmware_version is_reachable is_blocked"
        " is_bridge bridge_id",
        "users": "id home_id name is_administrator is_owner remote_access_allowed",
        "accessory_rooms": "accessory_id room_id",
        "services": "id accessory_id service_type name is_primary is_user_interactive",
        "characteristics": "id service_id characteristic_type value format unit min_value max_value step_value"
        " is_readable is_writable supports_event_notification",
        "sync_metadata": " ".join(_SYNCS),
    },
    "graph": {
        "entities": "id version entity_type name content source_type user_id parent_versions (is_latest) (server_seq)",
        "entity_relationships": "id from_entity_id from_entity_version to_entity_id to_entity_version"
        " relationship_type properties user_id",
        "blobs": "id name blob_type mime_type size data blob_metadata checksum sync_status server_url last_sync_at"
        " user_id (summary)",
        "sync_metadata": " ".join(_SYNCS),
    },
}
_LINK: Final = "accessory_rooms"  # the one table without times
#: A database has tables of its schema only if it has these; the others may be missing, and then hold nothing.
NEEDED: Final = {"homekit": ("homes", "rooms", "accessories"), "graph": ("entities", "entity_relationships")}
_OF_SQLITE: Final = re.compile(r"sqlite_|alembic_version\Z")


def schema_of(tables: Mapping[str, Iterable[str]]) -> str:
    """Which schema a database with these tables and columns has: a key of `TABLES`.

    Raises:
        StoreError: it is none that a deployed server made, or a newer one, whose rows would be taken for less than
            they say.
    """
    found = {name: frozenset(columns) for name, columns in tables.items() if not _OF_SQLITE.match(name)}
    schemas = [schema for schema, needed in NEEDED.items() if found.keys() >= set(needed)]
    if len(schemas) != 1:
        wanted = " or ".join(", ".join(needed) for needed in NEEDED.values())
        got = "the tables of both" if schemas else _listed(found) or "no tables"
        raise StoreError(f"expected the database of a deployed server, with the tables {wanted}; got {got}")
    [schema] = schemas
    known = TABLES[schema]
    strange = sorted(found.keys() - known.keys())
    if strange:
        raise StoreError(
            f"expected only the tables {_listed(known)}; got {_listed(strange)} as well: it is of a newer schema, or "
            "another application keeps its own there. Update this package, or take them out of a copy"
        )
    for table, columns in found.items():
        words = known[table].split()
        needed = {word for word in words if word[0] != "("} | (set() if table == _LINK else set(_TIMES[:2]))
        missing = sorted(needed - columns)
        if missing:
            raise StoreError(f"expected the columns {_listed(missing)} in the table {table}; they are not there")
        newer = sorted(columns - needed - {word.strip("()") for word in words} - set(_TIMES))
        if newer:
            raise StoreError(
                f"expected only columns that are known here in the table {table}; got {_listed(newer)} as well: it is "
                "of a newer schema. Update this package"
            )
    return schema


def _listed(names: Iterable[str]) -> str:
    return clip(", ".join(names))


# --- what rows become ---------------------------------------------------------------------------------------------


class Spot(Struct, frozen=True, kw_only=True):
    """Something about one row that people should know: in which table, under which key, and what.

    `code` is a word for programs: ``null_key``, ``not_text``, ``duplicate_id``, ``dangling``, ``not_json``,
    ``not_storable``, ``bookkeeping``; or that of a refusal of PROTOCOL 4.7.
    """

    table: str
    key: str
    code: str
    detail: str


class Move(Struct, frozen=True, kw_only=True):
    """What one row becomes, with the rows that are `inside` of it.

    Attributes:
        table, key: which row it is; of one that only brings a link of a row that was told before, `table` is "".
        inside: of other tables, the keys of the rows that became a part of it.
        entities: what it becomes; the first stands for it.
        edges: these as well.
        aside: it is kept, but never stands for its id.
        last: of several versions it is the one that stands.
        alone: its id must not be that of another type of thing.
        at: when the server took it, in microseconds; None if it does not say.
        born: when it was made, in microseconds, where that is known better than by its first version.
        spots: what of the row could not be kept as it is, though the rest is.
    """

    table: str
    key: str
    inside: tuple[tuple[str, str], ...] = ()
    entities: tuple[Entity, ...] = ()
    edges: tuple[Relationship, ...] = ()
    aside: bool = False
    last: bool = True
    alone: bool = False
    at: int | None = None
    born: int | None = None
    spots: tuple[Spot, ...] = ()


Made: TypeAlias = Move | Spot


class Unfit(Exception):
    """A row that becomes nothing, and the `spot` that says why."""

    def __init__(self, spot: Spot) -> None:
        self.spot = spot


def key_of(row: Columns, *names: str) -> str:
    """What a row is called in reports: its key columns, whatever stands in them."""
    return clip(" ".join(_shown(row.get(name)) for name in names or ("id",)))


def _shown(value: Any) -> str:
    return "null" if value is None else value if isinstance(value, str) else repr(value)


def _text(table: str, row: Columns, column: str) -> str:
    """The text of a key column. Raises `Unfit`."""
    value = row.get(column)
    if value is None:
        raise Unfit(_spot(table, row, "null_key", f"expected a text in {column}; got null"))
    if not isinstance(value, str):
        raise Unfit(_spot(table, row, "not_text", f"expected a text in {column}; got {type(value).__name__}"))
    return value


def _spot(table: str, row: Columns, code: str, detail: str) -> Spot:
    names = ("accessory_id", "room_id") if table == _LINK else ("id", "version") if table == "entities" else ("id",)
    return Spot(table=table, key=key_of(row, *names), code=code, detail=detail)


class _Row:
    """A row that is being read, and what is odd about it."""

    def __init__(self, table: str, row: Columns) -> None:
        self.table = table
        self.row = row
        self.spots: list[Spot] = []

    def odd(self, code: str, detail: str) -> None:
        self.spots.append(_spot(self.table, self.row, code, detail))

    def text(self, column: str, *, where_null: str = "") -> str:
        """A text that is no key; what stands there instead is told, a null as `where_null`."""
        value = self.row.get(column)
        if isinstance(value, str):
            return value
        kept = where_null if value is None else _plain(value)
        if value is not None or column == "name":
            self.odd("not_text", f"expected a text in {column}; got {_kind(value)}, kept as {kept[:40]!r}")
        return kept

    def time(self, *columns: str) -> int | None:
        """The first of these columns that holds a time, in microseconds."""
        for column in columns:
            value = self.row.get(column)
            at = parse_time(value) if isinstance(value, str) else None
            if at is not None:
                return at
        return None

    def json(self, column: str, kind: type[Any], empty: Any) -> Any:
        """Decoded JSON of a type; what is none is told. Null is `empty`."""
        value = self.row.get(column)
        if value is None:
            return empty
        try:
            decoded = msgspec.json.decode(value)
        except (msgspec.DecodeError, TypeError, RecursionError, UnicodeError):
            decoded = None
        if not isinstance(decoded, kind):
            raise Unfit(_spot(self.table, self.row, "not_json", f"expected JSON of {kind.__name__} in {column}"))
        return decoded

    def raw(self, value: Any) -> Raw:
        try:
            return Raw(canonical(value))
        except RemoteProtocolError as error:
            raise Unfit(_spot(self.table, self.row, "not_storable", str(error))) from None


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _plain(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


# --- HomeKit tables -----------------------------------------------------------------------------------------------

#: Columns that are not content: they are fields, links or times.
_NOT_CONTENT: Final = frozenset({"id", "home_id", "bridge_id", "accessory_id", "service_id", "name", *_TIMES})
_FLAGS: Final = re.compile(r"is_|remote_access|supports_")


def _content(row: _Row, *, nested: bool = False) -> dict[str, Any]:
    """What a record says beside its name and links, as v1 writes it (PROTOCOL 8.7): nulls not at all."""
    content: dict[str, Any] = {}
    for column, value in row.row.items():
        if value is None or (column in _NOT_CONTENT and not (nested and column == "name")):
            continue
        if _FLAGS.match(column) and value in (0, 1):
            content[column] = bool(value)
        elif column.endswith("_value") and type(value) is int:
            content[column] = float(value)
        elif isinstance(value, bytes):
            row.odd("not_text", f"expected a text in {column}; got bytes, left out")
        else:
            content[column] = value
    return content


def record_version(at: int | None, name: str, content: Raw) -> str:
    """PROTOCOL 13.3: the row version of a record: its time, and six digits that tell apart what it says."""
    digits = int.from_bytes(blake2b(name.encode() + b"\0" + bytes(content), digest_size=8).digest(), "big") % 1_000_000
    return f"v-{digits:06d}-{NOBODY}" if at is None else make_version(at, digits, NOBODY)


def _record(row: _Row, entity_type: str, content: dict[str, Any], newest: Iterable[int | None] = ()) -> Move:
    """An entity made of a record; `newest` are the times of what is inside of it."""
    id_ = _text(row.table, row.row, "id")
    times = [at for at in (row.time("updated_at", "created_at"), *newest) if at is not None]
    at = max(times, default=None)
    if at is None:
        row.odd("not_a_time", "expected a time in updated_at or created_at; got none, it counts from the import")
    name = row.text("name")
    raw = row.raw(content)
    made = Entity(
        id=id_,
        version=record_version(at, name, raw),
        entity_type=entity_type,
        name=name,
        content=raw,
        source_type="homekit",
        user_id=NOBODY,
    )
    return Move(
        table=row.table,
        key=key_of(row.row),
        entities=(made,),
        alone=True,
        at=at,
        born=row.time("created_at", "updated_at"),
        spots=tuple(row.spots),
    )


def home(columns: Columns) -> Made:
    """A home."""
    return _fit(lambda: _record(row := _Row("homes", columns), "home", _content(row)))


def room(columns: Columns) -> Made:
    """A room, without the link to its home."""
    return _fit(lambda: _record(row := _Row("rooms", columns), "room", _content(row)))


def user(columns: Columns) -> Made:
    """A user: a note of the kind ``user`` (PROTOCOL 8.7)."""
    return _fit(lambda: _record(row := _Row("users", columns), "note", {"kind": "user", **_content(row)}))


def accessory(
    columns: Columns, services: Sequence[Columns] = (), characteristics: Sequence[Columns] = (), *, bytes_max: int
) -> tuple[Made, ...]:
    """An accessory with all that is inside of it: a device. What of that becomes nothing is told beside it.

    Args:
        services: those whose accessory this is.
        characteristics: those of these services.
        bytes_max: of one row; what is inside is left out, the largest first, until it fits.
    """
    row = _Row("accessories", columns)
    spots: list[Spot] = []
    inside: dict[tuple[str, str], tuple[int, int | None]] = {}  # what each takes, and when it was changed
    content = _content(row)
    tree: dict[str, Any] = {}
    for table, rows in (("services", services), ("characteristics", characteristics)):
        for each in rows:
            one = _Row(table, each)
            try:
                if (table, each.get("id")) in inside:
                    raise Unfit(_spot(table, each, "duplicate_id", _TAKEN))  # noqa: TRY301 - told as any other
                size = _put(one, tree)
            except Unfit as unfit:
                spots.append(unfit.spot)
            else:
                inside[table, each["id"]] = (size, one.time("updated_at", "created_at"))
                row.spots += one.spots
    over = sum(size for size, _ in inside.values()) + len(canonical_or_empty(content)) + 4096 - bytes_max
    for name in sorted(inside, key=lambda name: -inside[name][0]):
        for gone in _take(tree, name) if over > 0 and name in inside else ():
            over -= inside.pop(gone)[0]
            detail = "expected its accessory to fit into one row; with this it does not"
            spots.append(Spot(table=gone[0], key=clip(gone[1]), code="too_large", detail=detail))
    if tree:
        content["services"] = tree
    made = _fit(lambda: _record(row, "device", content, [at for _, at in inside.values()]))
    if isinstance(made, Move):
        return replace(made, inside=tuple(inside)), *spots
    lost = f"expected its accessory to be there; that was refused: {made.code}"
    return made, *spots, *(Spot(table=table, key=clip(id_), code="dangling", detail=lost) for table, id_ in inside)


_TAKEN: Final = "expected an id of its own; got one that is taken"


def canonical_or_empty(value: Any) -> bytes:
    """Canonical JSON, nothing of what JSON cannot hold: for sizes."""
    try:
        return canonical(value)
    except RemoteProtocolError:
        return b""


def _put(row: _Row, tree: dict[str, Any]) -> int:
    """Put a service or a characteristic into the tree of services; how many bytes it takes. Raises `Unfit`."""
    id_ = _text(row.table, row.row, "id")
    content = _content(row, nested=True)
    size = len(row.raw(content)) + len(id_) + 32
    if row.table == "services":
        place = tree
    else:
        service = tree.get(row.row["service_id"])
        if service is None:
            raise Unfit(_spot(row.table, row.row, "dangling", "expected its service to be there; that was refused"))
        place = service.setdefault("characteristics", {})
    place[id_] = content
    return size


def _take(tree: dict[str, Any], name: tuple[str, str]) -> list[tuple[str, str]]:
    """Take a service or a characteristic out of the tree; what is gone then, itself and what was in it."""
    table, id_ = name
    if table == "services":
        return [name, *(("characteristics", key) for key in tree.pop(id_).get("characteristics", {}))]
    for service in tree.values():
        service.get("characteristics", {}).pop(id_, None)
    return [name]


def link(graph: str, move: Move, field: str, target: Entity | None, told: object) -> Move | None:
    """PROTOCOL 8.9: the edge for `home_id`, `bridge_id` or the room of an accessory, from the entity of `move` to
    `target`; one that leads nowhere is told of, as `told` is what the row says.

    None if the row says nothing.
    """
    own = move.entities[0]
    if told is None:
        return None
    if target is None:
        detail = f"expected what {field} names to be there; it is not, and the link was left out"
        spot = Spot(table=move.table, key=move.key, code="dangling", detail=detail)
        return Move(table="", key=move.key, at=move.at, spots=(spot,))
    properties = Raw(b'{"role":"bridge"}') if field == "bridge_id" else EMPTY
    edge = Relationship(
        id=uuid5(graph, f"{own.id}{field}"),
        version=own.version,
        from_entity_id=own.id,
        from_entity_version=own.version,
        to_entity_id=target.id,
        to_entity_version=target.version,
        relationship_type="part_of",
        properties=properties,
        user_id=NOBODY,
    )
    return Move(table="", key=move.key, at=move.at, edges=(edge,))


def in_room(graph: str, columns: Columns, device: Entity | None, place: Entity | None) -> Made:
    """The link of an accessory to its room: an edge ``located_in``."""

    def made() -> Move:
        one, other = (_text(_LINK, columns, name) for name in ("accessory_id", "room_id"))
        for found, name in ((device, "accessory_id"), (place, "room_id")):
            if found is None:
                raise Unfit(_spot(_LINK, columns, "dangling", f"expected what {name} names to be there; it is not"))
        assert device is not None
        assert place is not None
        edge = Relationship(
            id=uuid5(graph, f"{one}room_id{other}"),
            version=device.version,
            from_entity_id=one,
            from_entity_version=device.version,
            to_entity_id=other,
            to_entity_version=place.version,
            relationship_type="located_in",
            user_id=NOBODY,
        )
        key = key_of(columns, "accessory_id", "room_id")
        return Move(table=_LINK, key=key, edges=(edge,), at=edit_time(device.version))

    return _fit(made)


# --- tables of versioned rows -------------------------------------------------------------------------------------


class Turn(Struct, frozen=True):
    """Which row of an id comes next, by its place among them, and whether it is only kept `aside`, or the `last`."""

    index: int
    aside: bool
    last: bool


def turns(history: Sequence[tuple[str, tuple[str, ...], bool]]) -> tuple[Turn, ...]:
    """PROTOCOL 13.2: the order in which the versions of one id are taken, parents first, so that the one that stood on
    the server stands here, what it grew from stood before it, and all others are kept.

    Args:
        history: version, parents and whether it is the latest, in the order in which the server took them. The last of
            several latest ones stands; where there is none, the last one of all.
    """
    ordered = merge.parents_first([(version, parents) for version, parents, _ in history])
    parents = {version: above for version, above, _ in history}
    last = max(range(len(history)), key=lambda place: (history[ordered[place]][2], place))
    line = merge.ancestors((history[ordered[last]][0],), parents)
    made, standing = [], None
    for place, index in enumerate(ordered):
        version = history[index][0]
        stands = place == last or (place < last and version in line and _follows(standing, version, parents))
        standing = version if stands else standing
        made.append(Turn(index, not stands, place == last))
    return tuple(made)


def _follows(standing: str | None, version: str, parents: Mapping[str, tuple[str, ...]]) -> bool:
    above = parents[version]
    return standing is None or standing in above or standing in merge.ancestors(above, parents)


def parents_of(columns: Columns) -> tuple[str, ...]:
    """The parents that a row names; none where it names them in a way that cannot be read."""
    try:
        return tuple(msgspec.json.decode(columns.get("parent_versions") or "[]", type=list[str]))
    except (msgspec.DecodeError, msgspec.ValidationError, TypeError, UnicodeError):
        return ()


def is_latest(columns: Columns) -> bool:
    """Whether the server took this row for the latest of its id. A release that did not say had every row."""
    return bool(columns.get("is_latest", 1))


def entity(columns: Columns, turn: Turn) -> Made:
    """One version of an entity."""
    row = _Row("entities", columns)

    def made() -> Move:
        id_, version, type_ = (_text("entities", columns, name) for name in ("id", "version", "entity_type"))
        if columns.get("parent_versions") and not parents_of(columns) and columns["parent_versions"] != "[]":
            row.odd("not_json", "expected a list of versions in parent_versions; got something else, taken for none")
        source = row.text("source_type", where_null="imported")
        known = source.lower() in SOURCE_TYPES
        value = Entity(
            id=id_,
            version=version,
            entity_type=type_.lower(),
            name=row.text("name"),
            content=row.raw(row.json("content", dict, {})),
            # PROTOCOL 3.4: deployed databases hold the names of types, which are in capitals.
            source_type=source.lower() if known else "imported",
            user_id=row.text("user_id"),
            parent_versions=parents_of(columns),
        )
        if not known:
            value = replace(value, source_original=source)
        return Move(
            table="entities",
            key=key_of(columns, "id", "version"),
            entities=(value,),
            aside=turn.aside,
            last=turn.last,
            at=row.time("updated_at", "created_at"),
            spots=tuple(row.spots),
        )

    return _fit(made)


def relationship(columns: Columns, ends: Mapping[str, str]) -> Made:
    """An edge.

    Args:
        ends: of each id at an end of it, a version that is there: the one it names if that is there, else the latest.
    """
    row = _Row("entity_relationships", columns)

    def made() -> Move:
        words = ("id", "from_entity_id", "to_entity_id", "relationship_type")
        id_, one, other, type_ = (_text("entity_relationships", columns, name) for name in words)
        versions = []
        for end, name in ((one, "from"), (other, "to")):
            if end not in ends:
                detail = f"expected what {name}_entity_id names to be there; it is not"
                raise Unfit(_spot("entity_relationships", columns, "dangling", detail))
            if ends[end] != columns.get(f"{name}_entity_version"):
                row.odd("dangling", f"expected the version that {name}_entity_version names; the latest stands for it")
            versions.append(ends[end])
        edge = Relationship(
            id=id_,
            version="",
            from_entity_id=one,
            from_entity_version=versions[0],
            to_entity_id=other,
            to_entity_version=versions[1],
            relationship_type=type_.lower(),
            properties=row.raw(row.json("properties", dict, {})),
            user_id=row.text("user_id"),
        )
        return Move(
            table="entity_relationships",
            key=key_of(columns),
            edges=(replace(edge, version=edge_version(edge)),),
            at=row.time("updated_at", "created_at"),
            spots=tuple(row.spots),
        )

    return _fit(made)


def blob(columns: Columns) -> Made:
    """PROTOCOL 13.4: a blob: an entity of the type ``blob`` with its data as base64; what is larger than `BLOB_BYTES`
    goes on in entities of the type ``blob_part``, which it names in order."""
    row = _Row("blobs", columns)

    def made() -> Move:
        id_ = _text("blobs", columns, "id")
        at = row.time("updated_at", "created_at")
        data = columns.get("data")
        data = data.encode() if isinstance(data, str) else data
        if data is not None and not isinstance(data, bytes):
            raise Unfit(_spot("blobs", columns, "not_text", f"expected bytes in data; got {type(data).__name__}"))
        content: dict[str, Any] = {}
        for name in (
            "blob_type",
            "mime_type",
            "size",
            "checksum",
            "sync_status",
            "server_url",
            "last_sync_at",
            "summary",
        ):
            value = columns.get(name)
            if value is not None:
                content[name] = _plain(value) if isinstance(value, bytes) else value
        metadata = row.json("blob_metadata", object, None)
        if metadata is not None:
            content["blob_metadata"] = metadata
        pieces = [data[start : start + BLOB_BYTES] for start in range(0, len(data), BLOB_BYTES)] if data else []

        def part(id_: str, type_: str, name: str, content: dict[str, Any]) -> Entity:
            raw = row.raw(content)
            return Entity(
                id=id_,
                version=record_version(at, name, raw),
                entity_type=type_,
                name=name,
                content=raw,
                source_type="imported",
                user_id=author,
            )

        author = row.text("user_id")
        parts = []
        for number, piece in enumerate(pieces[1:], 1):
            inner = {"blob": id_, "part": number, "data": b64encode(piece).decode()}
            parts.append(part(uuid5(id_, f"part {number}"), "blob_part", "", inner))
        if data is not None:
            content["data"] = b64encode(pieces[0] if pieces else b"").decode()
        if parts:
            content["parts"] = [each.id for each in parts]
        first = part(id_, "blob", row.text("name"), content)
        return Move(
            table="blobs",
            key=key_of(columns),
            entities=(first, *parts),
            alone=True,
            at=at,
            born=row.time("created_at"),
            spots=tuple(row.spots),
        )

    return _fit(made)


def bookkeeping(columns: Columns) -> Spot:
    """What the server knew of a client's syncs. No data of the home; a client begins anew by asking for everything."""
    detail = "it says how far a client had synced with the old server; with this one it begins anew, by itself"
    return Spot(table="sync_metadata", key=key_of(columns, "client_id"), code="bookkeeping", detail=detail)


def _fit(make: Any) -> Made:
    try:
        made: Move = make()
        return made
    except Unfit as unfit:
        return unfit.spot
