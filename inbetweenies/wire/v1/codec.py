"""The messages of ``inbetweenies-v1`` and the records in them, both directions; nothing here knows the graph.

The structs are the wire. `decode` turns a request body into one of `Read`, `Push` and `Done`, which say what a message
means; the functions at the end are the client's half. What deployed peers need, and what they send by mistake, is
written at the field that it concerns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from ...errors import RemoteProtocolError, clip
from ...limits import Limits, canonical, checked_decode
from ...model import SEQ_MAX, Kind, format_time, parse_time
from .. import Follow, Negotiation

NAME: Final = "inbetweenies-v1"
ANONYMOUS: Final = "anonymous"

#: PROTOCOL 8.1: what may stand beside the fields of any message, whatever its wire version.
ENVELOPE: Final = frozenset({"protocol_version", "supported_versions", "features", "client", "negotiation"})


# --- records ------------------------------------------------------------------------------------------------------

# All keys always stand in a record (deployed clients lose a whole sync over a missing one). The default of a field is
# its placeholder: what a record says where the graph says nothing, or nothing that v1 has a type for (PROTOCOL 8.10).


class Home(Struct):
    """PROTOCOL 8.7: an entity `home`."""

    id: str
    name: str
    is_primary: bool = False
    created_at: str = ""
    updated_at: str = ""
    sync_id: str | None = None


class Room(Struct):
    """PROTOCOL 8.7: an entity `room`."""

    id: str
    home_id: str
    name: str
    created_at: str = ""
    updated_at: str = ""
    sync_id: str | None = None


class Accessory(Struct):
    """PROTOCOL 8.7: an entity `device`; the rooms it stands in cannot be said in v1."""

    id: str
    home_id: str
    name: str
    manufacturer: str | None = None
    model: str | None = None
    serial_number: str | None = None
    firmware_version: str | None = None
    is_reachable: bool = True
    is_blocked: bool = False
    is_bridge: bool = False
    bridge_id: str | None = None
    created_at: str = ""
    updated_at: str = ""
    sync_id: str | None = None


class User(Struct):
    """PROTOCOL 8.7: an entity `note` whose content has ``kind = "user"``."""

    id: str
    home_id: str
    name: str
    is_administrator: bool = False
    is_owner: bool = False
    remote_access_allowed: bool = False
    created_at: str = ""
    updated_at: str = ""
    sync_id: str | None = None


class Service(Struct):
    """PROTOCOL 8.7: ``content.services[id]`` of the device `accessory_id`; served only to a client that asks."""

    id: str
    accessory_id: str
    service_type: str = ""
    name: str = ""
    is_primary: bool = False
    is_user_interactive: bool = True
    created_at: str = ""
    updated_at: str = ""
    sync_id: str | None = None


class Characteristic(Struct):
    """PROTOCOL 8.7: ``characteristics[id]`` of the service `service_id`; `value` is JSON text in a string."""

    id: str
    service_id: str
    characteristic_type: str = ""
    value: str | None = None
    format: str | None = None
    unit: str | None = None
    min_value: float | None = None
    max_value: float | None = None
    step_value: float | None = None
    is_readable: bool = True
    is_writable: bool = False
    supports_event_notification: bool = False
    created_at: str = ""
    updated_at: str = ""
    sync_id: str | None = None


Record: TypeAlias = Home | Room | Accessory | User | Service | Characteristic


class Field(Struct, frozen=True, kw_only=True):
    """One field of a record that people edit: the types it has in JSON, and what it shows for a value of another."""

    name: str
    types: frozenset[type]
    expected: str
    odd: Callable[[Any], Any]


class Shape(Struct, frozen=True, kw_only=True):
    """One type of record: its names on the wire, the entity type it is a view of, and its fields by their kind.

    `fields` are what people edit; of these `content_fields` are kept in an entity's content (or deeper, for nested
    records), in the order of the record. `links` are kept in edges, or are where a nested record stands. `needed` is
    what a new record must say for itself.
    """

    name: str
    plural: str
    record: Callable[..., Record]
    entity_type: str
    nested: bool
    fields: dict[str, Field]
    content_fields: tuple[Field, ...]
    links: tuple[str, ...]
    needed: tuple[str, ...]
    keys: frozenset[str]


LINKS: Final = ("home_id", "bridge_id", "accessory_id", "service_id")
_STAMPS: Final = ("id", "created_at", "updated_at", "sync_id")


def _number(value: Any) -> float | None:
    # An integer that a double cannot hold exactly is none that a v1 peer could hand back.
    return float(value) if type(value) is int and -SEQ_MAX <= value <= SEQ_MAX else None


def _json_text(value: Any) -> str:
    return canonical(value, trusted=True).decode()


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


_JSON_TYPES: Final[dict[Any, tuple[frozenset[type], str]]] = {
    str: (frozenset({str}), "a string"),
    str | None: (frozenset({str, type(None)}), "a string or null"),
    bool: (frozenset({bool}), "true or false"),
    float | None: (frozenset({float, type(None)}), "a number or null"),
}


def _field(record: type[Record], info: msgspec.structs.FieldInfo) -> Field:
    types, expected = _JSON_TYPES[info.type]
    odd: Callable[[Any], Any] = _constant("" if info.default is msgspec.NODEFAULT else info.default)
    if info.type == float | None:
        odd = _number
    elif (record, info.name) == (Characteristic, "value"):
        # v1 keeps every value as JSON text, so one that the graph keeps as JSON is shown by its text.
        odd = _json_text
    return Field(name=info.name, types=types, expected=expected, odd=odd)


def _shape(record: type[Record], plural: str, entity_type: str) -> Shape:
    infos = {info.name: info for info in msgspec.structs.fields(record)}
    nested = record in (Service, Characteristic)
    fields = {name: _field(record, info) for name, info in infos.items() if name not in LINKS + _STAMPS}
    return Shape(
        name=record.__name__.lower(),
        plural=plural,
        record=record,
        entity_type=entity_type,
        nested=nested,
        fields=fields,
        # The name of an entity is a field of its own in the model; a service has it in its object.
        content_fields=tuple(field for name, field in fields.items() if nested or name != "name"),
        links=tuple(name for name in infos if name in LINKS),
        needed=tuple(name for name, info in infos.items() if info.required and name != "id")
        + (("service_type", "name") if record is Service else ())
        + (("characteristic_type",) if record is Characteristic else ()),
        keys=frozenset(infos),
    )


#: In the order in which they are served: what is pointed to comes before what points to it.
SHAPES: Final = {
    shape.name: shape
    for shape in (
        _shape(Home, "homes", "home"),
        _shape(Room, "rooms", "room"),
        _shape(Accessory, "accessories", "device"),
        _shape(User, "users", "note"),
        _shape(Service, "services", "device"),
        _shape(Characteristic, "characteristics", "device"),
    )
}
_OF_PLURAL: Final = {shape.plural: shape.name for shape in SHAPES.values()}
_EVERYTHING: Final = frozenset({"home", "room", "accessory", "user"})
# The deployed server's default names types that it does not have; of those it has, these two are left.
_DEPLOYED_DEFAULT: Final = frozenset({"room", "user"})


# --- messages -----------------------------------------------------------------------------------------------------


class SyncRequest(Struct, kw_only=True):
    """PROTOCOL 8.2: asks for what changed. `last_sync` is the client's own clock, null for everything."""

    type: Any = "sync_request"
    client_id: str | None = None
    last_sync: str | None = None
    entity_types: tuple[str, ...] | None = None
    include_deleted: Any = True


class DeltaChange(Struct, kw_only=True):
    """PROTOCOL 8.3: one record of an answer: singular `entity_type`; `updated_at` and `sync_id` as in `data`."""

    entity_type: str
    entity_id: str
    operation: str
    data: Any
    updated_at: str
    sync_id: str | None


class SyncDelta(Struct, kw_only=True):
    """PROTOCOL 8.3: what changed, whole: deployed clients read one answer and nothing after it."""

    type: str = "sync_delta"
    server_time: str = ""
    changes: tuple[DeltaChange, ...] = ()
    conflicts: tuple[Any, ...] = ()
    more: bool = False
    protocol_version: str | UnsetType = UNSET
    negotiation: Negotiation | UnsetType = UNSET


class PushChange(Struct, kw_only=True):
    """PROTOCOL 8.4: one record that a client wrote; any `operation` but ``delete`` writes `data`. `entity_type` may be
    plural, as in a request."""

    entity_type: str
    entity_id: str
    operation: str
    data: Any
    client_sync_id: str | None = None


class SyncPush(Struct, kw_only=True):
    """PROTOCOL 8.4: what a client wrote. Each change stands for itself; a bad one is refused and the rest goes on."""

    type: Any = "sync_push"
    client_id: str | None = None
    changes: tuple[Any, ...] | None = None


class Applied(Struct, kw_only=True):
    """PROTOCOL 8.5: a change that reached a terminal state; ``applied`` is the one status that clears it."""

    client_sync_id: str | None
    server_sync_id: str
    status: str = "applied"


class PushConflict(Struct, kw_only=True):
    """PROTOCOL 8.5: something of a change lost; `server_version` is the record as it stands now."""

    entity_type: str
    entity_id: str
    reason: str = "newer_on_server"
    server_version: Any = None
    client_version: Any = None
    resolution: str = "server_wins"


class RefusedChange(Struct, kw_only=True):
    """PROTOCOL 8.5: a change that cannot be stored whole, and why. Additive: deployed clients just keep it pending."""

    entity_type: Any = None
    entity_id: Any = None
    client_sync_id: Any = None
    code: str = ""
    pointer: str = ""
    detail: str = ""


class SyncResult(Struct, kw_only=True):
    """PROTOCOL 8.5: what became of a push; `refused` only if there is any."""

    type: str = "sync_result"
    applied: tuple[Applied, ...] = ()
    conflicts: tuple[PushConflict, ...] = ()
    refused: tuple[RefusedChange, ...] | UnsetType = UNSET
    protocol_version: str | UnsetType = UNSET
    negotiation: Negotiation | UnsetType = UNSET


class SyncAck(Struct, kw_only=True):
    """PROTOCOL 8.6: the client holds what the last answer said. `sync_completed_at` may be any text; it rises from ack
    to ack, and one that does not confirms nothing, since it may be an old ack that was held up."""

    type: Any = "sync_ack"
    client_id: str | None = None
    sync_completed_at: Any = None


class SyncAckResponse(Struct, kw_only=True):
    """PROTOCOL 8.6: the ack was taken."""

    type: str = "sync_ack_response"
    status: str = "acknowledged"
    server_time: str = ""
    protocol_version: str | UnsetType = UNSET
    negotiation: Negotiation | UnsetType = UNSET


_encode = msgspec.json.Encoder().encode


def encode(answer: SyncDelta | SyncResult | SyncAckResponse, negotiation: Negotiation | UnsetType = UNSET) -> bytes:
    """The bytes of an answer; which version it is in is told only to a peer that did not simply ask for it."""
    if negotiation is not UNSET:
        answer.protocol_version = NAME
        answer.negotiation = negotiation
    return _encode(answer)


class _Ended(Struct, kw_only=True):
    """What is looked at of an answer of ours, to go on from it."""

    type: str
    server_time: str = ""
    changes: tuple[Raw, ...] = ()


_ended = msgspec.json.Decoder(_Ended)
_any = msgspec.json.Decoder(dict[str, Any])


def follow(body: bytes, answer: bytes) -> Follow | None:
    """PROTOCOL 5.18: a request asks for the same again; what else a client says does not tell what it wants."""
    told = checked_decode(_ended, answer)
    if told.type != "sync_delta":
        return None
    asked: dict[str, Any] = checked_decode(_any, body)
    request = {**asked, "last_sync": told.server_time}
    return Follow(request=_encode(request), after=None, news=bool(told.changes))


# --- what a request means -----------------------------------------------------------------------------------------


class Read(Struct, frozen=True, kw_only=True):
    """A `SyncRequest`, understood. `named` are the types of records it asks for, None if it leaves that open."""

    client: str
    since: int | None = None
    named: frozenset[str] | None = None
    typed: bool = True
    deletes: bool = True

    def wanted(self, *, negotiated: bool) -> frozenset[str]:
        """PROTOCOL 8.2: the types of records to serve."""
        if self.named is not None:
            return self.named
        # Whoever does not name the message it sends, or sends one of another version, is no deployed client: it
        # cannot know what it would have to ask for, and is given everything that is usual.
        return _EVERYTHING if negotiated or not self.typed else _DEPLOYED_DEFAULT


class Problem(Struct, frozen=True, kw_only=True):
    """Why an item is refused (PROTOCOL 8.5), without any value that the peer sent."""

    code: str
    pointer: str
    detail: str


class Item(Struct, frozen=True, kw_only=True):
    """One change of a push, understood.

    Attributes:
        fields: what it says of `Shape.fields` and `Shape.links`, each value of the field's type.
        ignored: keys of `data` that v1 does not have.
        edit: its `updated_at`, None if it has none that can be read.
        token: its `sync_id`, None if it is no text.
        problem: why it cannot be taken, whatever the graph holds; then nothing but the echoed fields is meant.
    """

    pointer: str
    type: Any = None
    id: Any = None
    client_sync_id: Any = None
    delete: bool = False
    data: Any = None
    fields: dict[str, Any] = {}
    ignored: tuple[str, ...] = ()
    edit: int | None = None
    token: str | None = None
    problem: Problem | None = None


#: Of so many changes that are none it is told why; the rest is not acknowledged either.
REFUSED_TOLD_MAX: Final = 1_000
UNTOLD: Final = Item(pointer="", problem=Problem(code="malformed_change", pointer="", detail=""))


class Turn(Struct, frozen=True, kw_only=True):
    """What `up` made of one item: the rows it sent, the version of the entity's among them, or why it sent less.

    `lost` says that a link of it has been changed since by the client itself, so that it is only kept.
    """

    sent: tuple[tuple[Kind, str, str], ...] = ()
    entity_id: str = ""
    version: str = ""
    problem: Problem | None = None
    lost: bool = False


class Push(Struct, kw_only=True):
    """A `SyncPush`, understood. `turns` is left here by `up` for `down`, one for each item."""

    client: str
    items: tuple[Item, ...]
    turns: tuple[Turn, ...] = ()


class Done(Struct, frozen=True, kw_only=True):
    """A `SyncAck`, understood."""

    client: str
    mark: str = ""


Message: TypeAlias = Read | Push | Done


class _Peek(Struct):
    type: Any = UNSET
    device_id: Any = None
    changes: Raw = Raw(b"null")
    homes: Any = None
    rooms: Any = None
    accessories: Any = None
    users: Any = None


class _StrictPush(SyncPush, kw_only=True, forbid_unknown_fields=True):
    """A push with nothing in it that v1 does not know, for a version that fell back to it (PROTOCOL 8.1)."""

    client_id: str
    changes: tuple[Any, ...]
    protocol_version: Any = None
    supported_versions: Any = None
    features: Any = None
    client: Any = None
    negotiation: Any = None


_peek = msgspec.json.Decoder(_Peek)
_request = msgspec.json.Decoder(SyncRequest)
_push = msgspec.json.Decoder(SyncPush)
_strict_push = msgspec.json.Decoder(_StrictPush)
_ack = msgspec.json.Decoder(SyncAck)
_TYPES: Final = {"sync_request": "request", "sync_push": "push", "sync_ack": "ack"}


def decode(body: bytes, *, path: str = "", strict: bool = False, limits: Limits) -> Message:
    """PROTOCOL 8.1: a message from bytes that passed the gate.

    Raises:
        RemoteProtocolError: no message of this version, or (with `strict`) a push that is not exactly one.
    """
    peek = checked_decode(_peek, body)
    kind = _kind(peek, path)
    if kind == "push":
        if strict:
            return _strict(checked_decode(_strict_push, body), limits)
        push = checked_decode(_push, body)
        if push.changes is None:
            raise _malformed("the field `changes`", "none", "/changes")
        client = _client(push.client_id, peek.device_id, limits)
        return Push(client=client, items=tuple(_items(push.changes, limits)))
    if kind == "ack":
        ack = checked_decode(_ack, body)
        mark = ack.sync_completed_at if isinstance(ack.sync_completed_at, str) else ""
        return Done(client=_client(ack.client_id, peek.device_id, limits), mark=clip(mark, 64))
    request = checked_decode(_request, body)
    plurals = request.entity_types
    return Read(
        client=_client(request.client_id, peek.device_id, limits),
        since=_since(request.last_sync),
        named=None if plurals is None else frozenset(_OF_PLURAL[name] for name in plurals if name in _OF_PLURAL),
        typed=peek.type is not UNSET,
        deletes=request.include_deleted is not False,
    )


def _kind(peek: _Peek, path: str) -> str:
    # The deployed server has one address for each message and does not look at `type`.
    place = path.rstrip("/").rpartition("/")[2]
    if place in _TYPES.values():
        return place
    if isinstance(peek.type, str) and peek.type in _TYPES:
        return _TYPES[peek.type]
    if bytes(peek.changes).translate(None, b" \t\r\n") not in (b"[]", b"null"):
        return "push"
    _check_no_records(peek)
    return "request"


def _check_no_records(peek: _Peek) -> None:
    """PROTOCOL 8.1: the deployed server also takes records in lists of their own, in a body that says no more about
    itself. No client was seen to send one; to read it as a request would drop what it wants written without a word."""
    for plural in ("homes", "rooms", "accessories", "users"):
        records = getattr(peek, plural)
        if isinstance(records, list) and records:
            raise _malformed("`changes` of a `sync_push`", f"a list of {len(records)} records", f"/{plural}")


def _client(client_id: str | None, device_id: Any, limits: Limits) -> str:
    client = client_id or (device_id if isinstance(device_id, str) and device_id else ANONYMOUS)
    if not is_id(client, limits):
        raise _malformed(f"1 to {limits.id_bytes_max} bytes without control characters", "others", "/client_id")
    return client


def _since(last_sync: str | None) -> int | None:
    since = None if last_sync is None else parse_time(last_sync)
    if last_sync is not None and since is None:
        raise _malformed("an ISO 8601 time or null", f"a string of {len(last_sync)} characters", "/last_sync")
    return since


def _malformed(expected: str, got: str, pointer: str) -> RemoteProtocolError:
    return RemoteProtocolError(code="malformed_body", expected=expected, got=got, pointer=pointer)


def is_id(value: Any, limits: Limits) -> bool:
    """PROTOCOL 3.1: whether `value` can be an id: text of some length, without control characters."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= limits.id_bytes_max
        and len(value.encode("utf-8", "surrogatepass")) <= limits.id_bytes_max
        and (value.isprintable() or not any(ord(letter) < 32 or ord(letter) == 127 for letter in value))
    )


def _items(changes: Iterable[Any], limits: Limits) -> Iterator[Item]:
    """PROTOCOL 8.5: the changes of a push. A million that are none fit into a body; few of them are worth a word."""
    told = 0
    for index, change in enumerate(changes):
        item = item_of(f"/changes/{index}", change, limits)
        told += item.problem is not None
        yield item if item.problem is None or told <= REFUSED_TOLD_MAX else UNTOLD


def item_of(pointer: str, change: Any, limits: Limits) -> Item:
    """PROTOCOL 8.4: one change of a push; what is wrong with it stands in `problem`, nothing is raised."""
    if not isinstance(change, dict):
        return Item(pointer=pointer, problem=_bad(pointer, "expected an object"))
    type_, id_, label, data = (change.get(key) for key in ("entity_type", "entity_id", "client_sync_id", "data"))
    shape = SHAPES.get(_OF_PLURAL.get(type_, type_)) if isinstance(type_, str) else None
    if shape is None:
        detail = "expected one of " + ", ".join(SHAPES)
        unknown = Problem(code="unknown_type", pointer=f"{pointer}/entity_type", detail=detail)
        return Item(pointer=pointer, type=type_, id=id_, client_sync_id=label, data=data, problem=unknown)
    delete = change.get("operation") == "delete"
    problem = _misfit(pointer, change, limits)
    fields: dict[str, Any] = {}
    if problem is None:
        data = data or {}
        fields, problem = _fields(shape, data, f"{pointer}/data", limits)
        if delete:
            # What a delete says beside the id is a courtesy.
            problem = None
    known = data if isinstance(data, dict) else {}
    edited, token = known.get("updated_at"), known.get("sync_id")
    return Item(
        pointer=pointer,
        type=shape.name,
        id=id_,
        client_sync_id=label,
        delete=delete,
        data=data,
        fields=fields,
        ignored=tuple(sorted(known.keys() - shape.keys)),
        edit=parse_time(edited) if isinstance(edited, str) else None,
        token=token if isinstance(token, str) else None,
        problem=problem,
    )


def _misfit(pointer: str, change: dict[str, Any], limits: Limits) -> Problem | None:
    """What is wrong with a change beside the fields in its data."""
    id_, operation, label, data = (change.get(key) for key in ("entity_id", "operation", "client_sync_id", "data"))
    if not is_id(id_, limits):
        detail = f"expected 1 to {limits.id_bytes_max} bytes without control characters"
        return Problem(code="illegal_name", pointer=f"{pointer}/entity_id", detail=detail)
    if not isinstance(operation, str):
        return _bad(f"{pointer}/operation", "expected a string")
    if label is not None and not isinstance(label, str):
        return _bad(f"{pointer}/client_sync_id", "expected a string or null")
    if not isinstance(data, dict) and not (operation == "delete" and data is None):
        return _bad(f"{pointer}/data", "expected an object")
    if data and data.get("id", id_) != id_:
        return _bad(f"{pointer}/data/id", "expected the same id as entity_id")
    return None


def _fields(shape: Shape, data: dict[str, Any], pointer: str, limits: Limits) -> tuple[dict[str, Any], Problem | None]:
    """The fields in `data` that are what they should be, and what is wrong with one of the others."""
    fields: dict[str, Any] = {}
    problem = None
    for name in shape.links:
        if name in data:
            if is_id(data[name], limits) or (name == "bridge_id" and data[name] is None):
                fields[name] = data[name]
            else:
                problem = _bad(f"{pointer}/{name}", "expected the id of a record")
    for name, field in shape.fields.items():
        if name in data:
            value = _number(data[name]) if type(data[name]) is int and float in field.types else data[name]
            if type(value) in field.types and (value is not None or data[name] is None):
                fields[name] = value
            else:
                problem = _bad(f"{pointer}/{name}", f"expected {field.expected}")
    return fields, problem


def _bad(pointer: str, detail: str) -> Problem:
    return Problem(code="malformed_change", pointer=pointer, detail=detail)


def _strict(push: _StrictPush, limits: Limits) -> Push:
    """PROTOCOL 8.1: the push of a peer whose version is unknown: exactly a v1 push, or nothing of it."""
    if push.type != "sync_push":
        raise _malformed("sync_push", "another type", "/type")
    items = []
    known = frozenset(PushChange.__struct_fields__)
    for index, change in enumerate(push.changes):
        item = item_of(f"/changes/{index}", change, limits)
        if item.problem is not None:
            raise _malformed(item.problem.detail.removeprefix("expected "), "another value", item.problem.pointer)
        if change.keys() - known:
            raise _malformed("only fields that v1 knows", "another field", item.pointer)
        if item.ignored:
            raise _malformed("only fields that v1 knows", "another field", f"{item.pointer}/data")
        for name in () if item.delete else SHAPES[item.type].needed:
            if name not in item.fields:
                raise _malformed("a value", "none", f"{item.pointer}/data/{name}")
        items.append(item)
    return Push(client=_client(push.client_id, None, limits), items=tuple(items))


# --- the client's half --------------------------------------------------------------------------------------------

_delta_in = msgspec.json.Decoder(SyncDelta)
_result_in = msgspec.json.Decoder(SyncResult)
_ack_in = msgspec.json.Decoder(SyncAckResponse)


def _asked(message: SyncRequest | SyncPush | SyncAck, offer: tuple[str, ...]) -> bytes:
    """With the envelope of PROTOCOL 5.1, which deployed servers ignore."""
    envelope = {"protocol_version": NAME, "supported_versions": offer}
    return _encode(msgspec.structs.asdict(message) | envelope)


def encode_request(
    client_id: str,
    last_sync: int | None,
    entity_types: Iterable[str] = ("homes", "rooms", "accessories", "users"),
    *,
    include_deleted: bool = True,
    offer: tuple[str, ...] = (NAME,),
) -> bytes:
    """PROTOCOL 8.2: ask a server that has only v1, or may have more than that: `offer` is what it could answer in.
    `last_sync` in microseconds, None for everything."""
    # Naive, as the deployed server compares it with naive times and answers 500 to an aware one.
    since = None if last_sync is None else format_time(last_sync, naive=True)
    request = SyncRequest(
        client_id=client_id, last_sync=since, entity_types=tuple(entity_types), include_deleted=include_deleted
    )
    return _asked(request, offer)


def encode_push(client_id: str, changes: Iterable[PushChange], *, offer: tuple[str, ...] = (NAME,)) -> bytes:
    """PROTOCOL 8.4: send records to a server that has only v1. Each needs a `sync_id` that no other record has: the
    deployed server looks records up by it."""
    return _asked(SyncPush(client_id=client_id, changes=tuple(changes)), offer)


def encode_ack(client_id: str, completed_at: int, *, offer: tuple[str, ...] = (NAME,)) -> bytes:
    """PROTOCOL 8.6: tell that the last answer is stored. `completed_at` in microseconds."""
    return _asked(SyncAck(client_id=client_id, sync_completed_at=format_time(completed_at, naive=True)), offer)


def decode_delta(body: bytes) -> SyncDelta:
    """PROTOCOL 8.3: a server's answer to a request; ``{}`` is one without changes."""
    return checked_decode(_delta_in, body)


def decode_result(body: bytes) -> SyncResult:
    """PROTOCOL 8.5: a server's answer to a push. The deployed server reports a taken update as a conflict: whoever
    finds its own record in `server_version` has been heard."""
    return checked_decode(_result_in, body)


def decode_ack(body: bytes) -> SyncAckResponse:
    """PROTOCOL 8.6: a server's answer to an ack."""
    return checked_decode(_ack_in, body)
