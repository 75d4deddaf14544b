"""``inbetweenies-v2``: entities and relationships in one message, both directions (PROTOCOL 9).

Rows are served in the form in which they are stored: a stored body *is* the entity of this wire version. Fields that
deployed peers do not know are additive, and where an answer changes shape for them, only peers that announce
``features`` see it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .. import rewind
from ..errors import RemoteProtocolError
from ..limits import Limits, canonical, checked_decode
from ..model import (
    SEQ_MAX,
    SOURCE_TYPES,
    Ack,
    Answer,
    Ask,
    Change,
    Conflict,
    Context,
    Cursor,
    Entity,
    Head,
    Kind,
    Noticed,
    Outcome,
    Part,
    Plan,
    Proof,
    Pushes,
    Reads,
    Refused,
    Relationship,
    Row,
    SyncRequest,
    SyncResponse,
    Telling,
    edge_version,
    format_time,
    keys_of,
    parse_cursor,
    parse_time,
)
from ..pieces import Told, piece, together
from ..rollout import notices
from ..rollout.shadow import Fact, Shown, View, pointer
from . import Changes, Follow, Negotiation

NAME: Final = "inbetweenies-v2"
FEATURES: Final = frozenset({"paging", "acks", "digest", "edges", rewind.FEATURE, notices.FEATURE})
#: Features that only those are told of who name them.
_ASKED_FOR: Final = frozenset({rewind.FEATURE, notices.FEATURE})
PATH: Final = "/api/v1/sync/"

#: What a request says that is not said again by the one that goes on from it.
_OF_ONE_MESSAGE: Final = frozenset(
    "cursor filters request_id witness locate common skip want compare pushes notices".split()
)
#: PROTOCOL 14.3: of one request, and of one answer: as many as there can be, each with and without a proof.
_NOTICES_MAX: Final = 2 * notices.NOTICES_MAX

#: A time of ours as JavaScript writes it again, which cuts it to milliseconds.
_CUT: Final = re.compile(r".*\.[0-9]{3}Z", re.ASCII)

SyncType = Literal["full", "delta", "entities", "relationships"]
ChangeType = Literal["create", "update", "delete"]
Seq = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
Label = Annotated[str, Meta(max_length=128)]  # what is stored or echoed, and read by programs only


# --- messages -----------------------------------------------------------------------------------------------------


class EntityIn(Struct, kw_only=True, gc=False):
    """PROTOCOL 9.3: an entity as a peer writes it."""

    id: str
    version: str
    entity_type: str
    name: str
    content: dict[str, Any]
    source_type: str
    user_id: str
    parent_versions: tuple[str, ...] = ()
    checksum: str | None = None
    merged: bool | UnsetType = UNSET
    source_original: str | UnsetType = UNSET


class RelationshipIn(Struct, kw_only=True, gc=False):
    """PROTOCOL 9.4: an edge as a peer writes it; `version` and `user_id` are ours, deployed peers send neither."""

    id: str
    from_entity_id: str
    from_entity_version: str
    to_entity_id: str
    to_entity_version: str
    relationship_type: str
    properties: dict[str, Any] = {}
    version: str = ""
    user_id: str | None = None


class ChangeIn(Struct, kw_only=True, gc=False):
    """PROTOCOL 9.2: one change of a request or of an answer."""

    change_type: ChangeType
    entity: EntityIn | None = None
    relationships: tuple[RelationshipIn, ...] = ()
    offered: bool = False
    aside: bool = False


class VectorClock(Struct, kw_only=True):
    """PROTOCOL 9.1: carried for deployed peers and echoed; orders nothing."""

    clocks: dict[str, str] = {}


class Filters(Struct, kw_only=True):
    """PROTOCOL 9.1: `since` is any ISO 8601 time (naive is UTC) or unix seconds; lists keep what they name."""

    since: str | int | float | None = None
    entity_types: tuple[str, ...] | None = None
    modified_by: tuple[str, ...] | None = None


class Request(Struct, kw_only=True):
    """PROTOCOL 9.1: what a v2 client sends; everything a server needs stands in this one message."""

    protocol_version: str = NAME
    device_id: str
    user_id: str
    sync_type: SyncType
    changes: tuple[ChangeIn, ...] = ()
    vector_clock: VectorClock = msgspec.field(default_factory=VectorClock)
    cursor: str | None = None
    filters: Filters | None = None
    features: tuple[str, ...] = ()
    page_rows: int | None = None
    request_id: Label | None = None
    witness: str | None = None
    locate: tuple[str, ...] | None = None
    common: str | None = None
    skip: tuple[tuple[Seq, Seq], ...] = ()
    want: tuple[Seq, ...] = ()
    compare: tuple[str, ...] = ()
    pushes: Pushes | None = None
    notices: Annotated[tuple[Label, ...], Meta(max_length=_NOTICES_MAX)] = ()


class StrictRequest(Request, kw_only=True, forbid_unknown_fields=True):
    """A request in which nothing may stand that this version does not know (PROTOCOL 5.4)."""

    supported_versions: tuple[str, ...] = ()
    client: dict[str, Any] | None = None


class ChangeOut(Struct, kw_only=True, gc=False):
    """PROTOCOL 9.2, with entity and edges in stored form."""

    change_type: ChangeType
    entity: Raw | None
    relationships: list[Raw] | UnsetType
    offered: bool | UnsetType = UNSET
    aside: bool | UnsetType = UNSET


class SyncStats(Struct, kw_only=True):
    """PROTOCOL 9.5: counts for people; `duration_ms` is always 0, the protocol reads no clock."""

    entities_synced: int = 0
    relationships_synced: int = 0
    conflicts_resolved: int = 0
    duration_ms: float = 0.0


class ConflictOut(Struct, kw_only=True):
    """PROTOCOL 9.6: who met whom, and which row stands now."""

    entity_id: str
    local_version: str
    remote_version: str
    resolution_strategy: str
    resolved_version: str | None = None


class AckOut(Struct, kw_only=True, gc=False):
    """PROTOCOL 9.7: an ack that names the row version, for peers with features."""

    kind: Literal["entity", "edge"]
    id: str
    version: str
    outcome: Outcome
    head: str | None = None


class RefusedOut(Struct, kw_only=True):
    """PROTOCOL 9.8: one item that cannot be stored."""

    id: str
    version: str
    code: str
    pointer: str
    detail: str


class Response(Struct, kw_only=True):
    """PROTOCOL 9.5: what the server acknowledges, and what the client lacks; first the deployed fields, then ours."""

    protocol_version: str
    sync_type: SyncType
    changes: list[ChangeOut]
    conflicts: list[Conflict]
    vector_clock: VectorClock
    cursor: str | None
    state_digest: str | None
    sync_stats: SyncStats
    server_time: str
    applied: list[str]
    applied_relationships: list[str]
    refused: list[Refused] | UnsetType = UNSET
    acks: list[Ack] | UnsetType = UNSET
    more: bool | UnsetType = UNSET
    resync: bool | UnsetType = UNSET
    digest: str | UnsetType = UNSET
    head: str | UnsetType = UNSET
    features: list[str] | UnsetType = UNSET
    request_id: str | UnsetType = UNSET
    taken: bytes | UnsetType = UNSET
    common: str | UnsetType | None = UNSET
    listing: bytes | UnsetType = UNSET
    discarded: bool | UnsetType = UNSET
    parts: tuple[Part, ...] | UnsetType = UNSET
    device_forked: bool | UnsetType = UNSET
    notices: tuple[notices.Told, ...] | UnsetType = UNSET
    negotiation: Negotiation | UnsetType = UNSET


class NoticeIn(Struct, kw_only=True):
    """PROTOCOL 14.2, as a client reads it: its words are its own."""

    id: Label
    type: Label
    timestamp: Label
    duration: Annotated[int, Meta(ge=0, le=SEQ_MAX)] | None = None
    proof: Proof | None = None


class ResponseIn(Struct, kw_only=True):
    """PROTOCOL 9.5, as a client reads it: what deployed servers leave out or say oddly does not hurt."""

    protocol_version: str = NAME
    changes: tuple[ChangeIn, ...] = ()
    conflicts: tuple[ConflictOut, ...] = ()
    cursor: str | None = None
    server_time: str | None = None
    applied: tuple[str, ...] = ()
    applied_relationships: tuple[str, ...] = ()
    refused: tuple[RefusedOut, ...] = ()
    acks: tuple[AckOut, ...] | None = None
    more: bool | None = None
    resync: bool = False
    digest: str | None = None
    head: str | None = None
    features: tuple[str, ...] = ()
    request_id: str | None = None
    taken: bytes = b""
    common: str | None = None
    listing: bytes | None = None
    discarded: bool = False
    parts: tuple[Part, ...] = ()
    device_forked: bool = False
    notices: Annotated[tuple[NoticeIn, ...], Meta(max_length=_NOTICES_MAX)] = ()


class _Ended(Struct, kw_only=True):
    """What is looked at of an answer of ours, to go on from it."""

    changes: tuple[Raw, ...]
    server_time: str
    cursor: str | None = None
    more: bool = False
    resync: bool = False
    features: tuple[str, ...] = ()
    listing: Raw | UnsetType = UNSET
    parts: Raw | UnsetType = UNSET
    notices: Raw | UnsetType = UNSET


class EntityOut(Struct, kw_only=True):
    """PROTOCOL 9.3: an entity as this version says it; used where stored rows hold more than it carries."""

    id: str
    version: str
    entity_type: str
    name: str
    content: Raw
    source_type: str
    user_id: str
    parent_versions: tuple[str, ...]
    checksum: str | None
    merged: bool | UnsetType = UNSET
    source_original: str | UnsetType = UNSET


class RelationshipOut(Struct, kw_only=True):
    """PROTOCOL 9.4: an edge as this version says it."""

    id: str
    version: str
    from_entity_id: str
    from_entity_version: str
    to_entity_id: str
    to_entity_version: str
    relationship_type: str
    properties: Raw
    user_id: str


CARRIES: Final = frozenset(f"entity.{name}" for name in EntityOut.__struct_fields__) | frozenset(
    f"relationship.{name}" for name in RelationshipOut.__struct_fields__
)

_request = msgspec.json.Decoder(Request)
_strict = msgspec.json.Decoder(StrictRequest)
_response = msgspec.json.Decoder(ResponseIn)
_any = msgspec.json.Decoder(dict[str, Any])
_ended = msgspec.json.Decoder(_Ended)
_encode = msgspec.json.Encoder().encode
# A model that has grown fields since must not leak them into this version (PROTOCOL 5.8).
_STORED_AS_SERVED: Final = (
    Entity.__struct_fields__ == EntityOut.__struct_fields__
    and Relationship.__struct_fields__ == RelationshipOut.__struct_fields__
)


# --- to the model -------------------------------------------------------------------------------------------------


def _entity(value: EntityIn, delete: bool) -> Entity:
    """PROTOCOL 3.3, 3.4: types folded, unknown sources kept beside ``imported``, a delete made a tombstone."""
    content = value.content
    if delete and not content.get("deleted"):
        content = {**content, "deleted": True}
    source, original = value.source_type, value.source_original
    folded = source.lower()
    if folded not in SOURCE_TYPES:
        folded, original = "imported", source
    return Entity(
        id=value.id,
        version=value.version,
        entity_type=value.entity_type.lower(),
        name=value.name,
        content=Raw(canonical(content, trusted=True)),
        source_type=folded,
        user_id=value.user_id,
        parent_versions=value.parent_versions,
        checksum=value.checksum,
        merged=value.merged,
        source_original=original,
    )


def _relationship(value: RelationshipIn, user: str) -> Relationship:
    edge = Relationship(
        id=value.id,
        version=value.version,
        from_entity_id=value.from_entity_id,
        from_entity_version=value.from_entity_version,
        to_entity_id=value.to_entity_id,
        to_entity_version=value.to_entity_version,
        relationship_type=value.relationship_type.lower(),
        properties=Raw(canonical(value.properties, trusted=True)),
        user_id=user if value.user_id is None else value.user_id,
    )
    return edge if edge.version else msgspec.structs.replace(edge, version=edge_version(edge))


def _changes(changes: Iterable[ChangeIn], user: str) -> tuple[Change, ...]:
    return tuple(
        Change(
            entity=None if change.entity is None else _entity(change.entity, change.change_type == "delete"),
            relationships=tuple([_relationship(edge, user) for edge in change.relationships]),
            delete=change.change_type == "delete",
            pointer=f"/changes/{index}",
            offered=change.offered,
            aside=keys_of(change.entity, change.relationships) if change.offered and change.aside else frozenset(),
        )
        for index, change in enumerate(changes)
    )


def _check_label(name: str, label: str, limits: Limits) -> None:
    """PROTOCOL 7.5: any text is a label. A server remembers its devices by them, so they are no longer than ids."""
    size = len(label.encode())
    if size > limits.id_bytes_max:
        raise RemoteProtocolError(
            code="malformed_body",
            expected=f"at most {limits.id_bytes_max} bytes",
            got=f"a string of {size} bytes",
            pointer=f"/{name}",
        )


def _since(value: str | int | float | None) -> int | None:
    """PROTOCOL 9.1: microseconds; numbers are unix seconds, or milliseconds when they are too large for that."""
    if value is None:
        return None
    micros = parse_time(value) if isinstance(value, str) else _unix(value)
    if micros is None:
        raise RemoteProtocolError(
            code="malformed_body",
            expected="an ISO 8601 time or unix seconds",
            got=f"a {'string' if isinstance(value, str) else 'number'} that is neither",
            pointer="/filters/since",
        )
    return micros


def _unix(value: float) -> int | None:
    if abs(value) >= 2.6e14:
        return None  # before it is divided: an integer of 400 digits is more than a float can be
    seconds = value / 1000 if abs(value) > 2e10 else value
    return int(seconds * 1_000_000)


def _cursor(text: str | None, features: bool) -> tuple[Cursor | None, int | None]:
    if text is None or text == "":
        return None, None
    cursor = parse_cursor(text)
    if cursor is not None:
        return cursor, None
    if text.isascii() and text.isdigit() and len(text) <= 16:
        return None, int(text)
    if features:
        # Another server's cursor is nothing to be refused for: its holder starts anew.
        return None, SEQ_MAX + 1
    raise RemoteProtocolError(
        code="bad_cursor",
        expected="a cursor that this server gave out, or none",
        got=f"a string of {len(text)} characters",
        pointer="/cursor",
    )


def _with_witness(message: Request, request: SyncRequest) -> SyncRequest:
    """PROTOCOL 9.10: what only peers with a witness can say. What is no place of any log of ours says nothing."""
    places = None if message.locate is None else [parse_cursor(place) for place in message.locate]
    return msgspec.structs.replace(
        request,
        witness=None if message.witness is None else parse_cursor(message.witness),
        locate=None if places is None else tuple(place for place in places if place is not None),
        common=None if message.common is None else parse_cursor(message.common),
        skip=message.skip,
        want=message.want,
        compare=message.compare,
        pushes=message.pushes,
    )


# --- the digest of the deployed server ----------------------------------------------------------------------------

_LISTING_ROWS: Final = 1_000  # so that what is held of a listing does not grow with the graph

_digests: OrderedDict[Head, str] = OrderedDict()


def _state_digest(response: SyncResponse) -> Plan[str]:
    """PROTOCOL 9.9: sha256 over every current entity, which costs what is stored; so once per seq, not per answer."""
    # Under other rules the same rows can be current or not, so the chain alone does not tell.
    key = response.head
    digest = _digests.get(key)
    if digest is None:
        told = sha256()
        last, full = "", True
        while full:
            listing = (yield Reads(listing=True, listing_after=last, listing_rows=_LISTING_ROWS)).listing
            told.update("".join([f"{id_}\x1f{version}\x1e" for id_, version in listing]).encode())
            full = len(listing) == _LISTING_ROWS
            last = listing[-1][0] if full else ""
        digest = told.hexdigest()
        _digests[key] = digest
        if len(_digests) > 256:
            _digests.popitem(last=False)
    return digest


# --- from the model -----------------------------------------------------------------------------------------------


def _settled(acks: Iterable[Ack], response: SyncResponse, kind: Kind) -> list[str]:
    """PROTOCOL 4.5: an id is named once, and only if every row pushed under it reached a terminal state."""
    ids = dict.fromkeys(ack.id for ack in acks if ack.kind == kind)
    return [id_ for id_ in ids if (kind, id_) not in response.open] if response.open else list(ids)


def _body(row: Row) -> Raw:
    if _STORED_AS_SERVED:
        return Raw(row.body)
    value: Entity | Relationship = row.entity() if row.kind == "entity" else row.relationship()
    shape: Any = EntityOut if row.kind == "entity" else RelationshipOut
    return Raw(_encode(shape(**{name: getattr(value, name) for name in shape.__struct_fields__})))


def _out(told: Iterable[Told]) -> list[ChangeOut]:
    """PROTOCOL 9.2."""
    return [
        ChangeOut(
            change_type="delete" if entity is not None and entity.deleted else "update",
            entity=None if entity is None else _body(entity),
            relationships=[_body(edge) for edge in edges] if edges else [],
        )
        for entity, edges in told
    ]


def _noticed(notice: NoticeIn) -> Noticed:
    """PROTOCOL 14.2. When it was is for people, so that what is no time does no harm."""
    at = parse_time(notice.timestamp) or 0
    return Noticed(id=notice.id, kind=notice.type, at=at, duration_s=notice.duration, proof=notice.proof)


class V2:
    """The wire version object that the router and the exchange work with."""

    name = NAME
    rank = 2
    carries = CARRIES
    features = FEATURES

    def decode(self, body: bytes, *, path: str = "", strict: bool = False, limits: Limits) -> Request:
        """PROTOCOL 9.1. The path tells nothing in this version."""
        request = checked_decode(_strict, body) if strict else checked_decode(_request, body)
        _check_label("device_id", request.device_id, limits)
        _check_label("user_id", request.user_id, limits)
        return request

    def writes(self, message: Request) -> bool:
        return bool(message.changes)

    def up(self, message: Request, context: Context, limits: Limits) -> Plan[SyncRequest]:
        """PROTOCOL 9.1: a request says all by itself; only for what it acknowledges of notices something is read."""
        if message.notices and notices.FEATURE in message.features:
            device = notices.label_of(context.token, message.device_id)
            yield from notices.noting(device, message.notices, context.now)
        features = frozenset(message.features)
        cursor, after = _cursor(message.cursor, bool(features))
        filters = message.filters or Filters()
        # Whoever was told the end of a commit holds what was stamped in that millisecond, and nothing comes later in it
        # (PROTOCOL 4.2). Told again, KittenKong would drop what it has written since.
        cut = isinstance(filters.since, str) and _CUT.fullmatch(filters.since)
        request = SyncRequest(
            device=f"v2:{context.token}:{message.device_id}",
            user=context.user,
            changes=_changes(message.changes, message.user_id),
            full=message.sync_type != "delta",
            cursor=cursor,
            after=after,
            since=_since(filters.since),
            since_span=999 if cut else 0,
            features=features,
            page_rows=message.page_rows if message.page_rows and message.page_rows > 0 else None,
            pieces=True,
            entity_types=None if filters.entity_types is None else frozenset(map(str.lower, filters.entity_types)),
            modified_by=None if filters.modified_by is None else frozenset(filters.modified_by),
        )
        return _with_witness(message, request) if rewind.FEATURE in features else request

    def down(
        self,
        message: Request,
        response: SyncResponse,
        context: Context,
        limits: Limits,
        negotiation: Negotiation | UnsetType = UNSET,
    ) -> Telling:
        """PROTOCOL 9.5, and 9.10 for those who ask for it. A whole answer is told in pieces as large as a page."""
        modern = bool(message.features)
        watched = rewind.FEATURE in message.features
        # Other content of a version that is among them has an ack of its own (PROTOCOL 4.4).
        acks = [
            ack
            for ack in response.acks
            if (ack.kind, ack.id, ack.version) not in response.taken or not rewind.is_plain(ack)
        ]
        applied, edges = _settled(acks, response, "entity"), _settled(acks, response, "edge")
        digest = None if modern else (yield from _state_digest(response))
        located = response.located
        told: tuple[notices.Told, ...] = ()
        if notices.FEATURE in message.features:
            device = notices.label_of(context.token, message.device_id)
            told = yield from notices.telling(context.graph, device, context.now, head=response.head)
        answer = _encode(
            Response(
                protocol_version=NAME,
                sync_type=message.sync_type,
                changes=[],
                conflicts=list(response.conflicts),
                vector_clock=message.vector_clock,
                cursor=str(response.served) if modern else None,
                state_digest=digest,
                sync_stats=SyncStats(
                    entities_synced=len(applied),
                    relationships_synced=len(edges),
                    conflicts_resolved=len(response.conflicts),
                ),
                server_time=format_time(response.served_stamp),
                applied=applied,
                applied_relationships=edges,
                refused=list(response.refused) or UNSET,
                acks=acks if modern else UNSET,
                more=response.more if modern else UNSET,
                resync=response.resync if modern else UNSET,
                digest=response.head.digest_hex if modern else UNSET,
                head=str(response.head.cursor) if modern and response.more else UNSET,
                features=sorted(FEATURES - (_ASKED_FOR - frozenset(message.features))) if modern else UNSET,
                request_id=message.request_id if watched and message.request_id is not None else UNSET,
                taken=b"".join(response.taken.values()) or UNSET,
                common=UNSET if located is None else None if located.common is None else str(located.common),
                listing=UNSET if located is None else located.listing,
                discarded=UNSET if located is None or not located.discarded else True,
                parts=UNSET if response.parts is None else response.parts,
                device_forked=response.device_forked or UNSET,
                notices=told or UNSET,
                negotiation=negotiation,
            )
        )
        changes = Changes(answer)
        unread = response.unread
        after = None if unread is None else unread.after
        while unread is not None and after is not None:
            some, after = yield from piece(response, unread, after, limits)
            changes.add(_out(some))
            yield changes.take()
        changes.add(_out(together(response.rows, response.carriers)))
        return changes.end()

    def follow(self, body: bytes, answer: bytes) -> Follow | None:
        """PROTOCOL 5.18: the same again, from where `answer` ended and without its changes."""
        asked: dict[str, Any] = checked_decode(_any, body)
        told: _Ended = checked_decode(_ended, answer)
        if told.listing is not UNSET or told.parts is not UNSET or (told.resync and rewind.FEATURE in told.features):
            return None  # it tells no rows; its peer has yet to find out where it stands
        request = {name: value for name, value in asked.items() if name not in _OF_ONE_MESSAGE}
        filters = {name: value for name, value in (asked.get("filters") or {}).items() if name != "since"}
        if told.features:
            request["cursor"] = told.cursor
        else:
            filters["since"] = told.server_time
        if filters:
            request["filters"] = filters
        return Follow(
            request=_encode({**request, "sync_type": "delta", "changes": []}),
            after=told.cursor,
            news=bool(told.changes) or told.notices is not UNSET,
            more=told.more,
        )

    # PROTOCOL 12.10: what it shows of a whole graph.

    def everything(self) -> bytes:
        """See `inbetweenies.rollout.shadow.Shadowed`. A peer with features is told edges whose entity is gone, too."""
        return self.ask(Ask(device="shadow", user="shadow", full=True, features=FEATURES - {"paging"} - _ASKED_FOR))

    def shown(self, answer: bytes) -> Iterator[Shown]:
        """See `inbetweenies.rollout.shadow.Shadowed`."""
        for change in checked_decode(_whole, answer).changes:
            if bytes(change.entity) != b"null":
                yield _shown("entity", _named.decode(change.entity).id, change.change_type, change.entity)
            for edge in change.relationships:
                yield _shown("edge", _named.decode(edge).id, "update", edge)

    def view(self, head: Head, rows: Sequence[Row]) -> View:
        """See `inbetweenies.rollout.shadow.Shadowed`."""
        return View(
            shown=tuple(
                _shown(row.kind, row.id, "delete" if row.kind == "entity" and row.deleted else "update", _body(row))
                for row in rows
            ),
            facts=tuple(
                Fact(pointer(row.kind, row.id, name), value)
                for row in rows
                for name, value in _any.decode(_body(row)).items()
            ),
            losses={
                pointer(row.kind, row.id, name): "field"
                for row in rows
                if not _STORED_AS_SERVED
                for name in _any.decode(row.body)
                if f"{'entity' if row.kind == 'entity' else 'relationship'}.{name}" not in CARRIES
            },
        )

    # The client's side of the same messages.

    def ask(self, ask: Ask) -> bytes:
        """PROTOCOL 9.1: our client's request. Deployed servers ignore the fields they do not know."""
        message: dict[str, Any] = {
            "protocol_version": NAME,
            "device_id": ask.device,
            "user_id": ask.user,
            "sync_type": "full" if ask.full else "delta",
            "vector_clock": VectorClock(),
            "changes": [_change_out(change) for change in ask.changes],
        }
        if ask.cursor is not None:
            message["cursor"] = ask.cursor
        if ask.since is not None:
            message["filters"] = {"since": format_time(ask.since)}
        if ask.features:
            message["features"] = sorted(ask.features)
        if ask.page_rows is not None:
            message["page_rows"] = ask.page_rows
        if ask.offer:
            message["supported_versions"] = ask.offer
        if ask.request is not None:
            message["request_id"] = ask.request
        for name in ("witness", "locate", "common", "skip", "want", "compare", "pushes", "notices"):
            value = getattr(ask, name)
            if value is not None and value != ():
                message[name] = value
        return _encode(message)

    def told(self, body: bytes) -> Answer:
        """PROTOCOL 9.5: what a server said.

        Raises:
            RemoteProtocolError: it is no answer of this version.
        """
        answer: ResponseIn = checked_decode(_response, body)
        return Answer(
            protocol_version=answer.protocol_version,
            changes=_changes(answer.changes, ""),
            applied=frozenset(answer.applied),
            applied_relationships=frozenset(answer.applied_relationships),
            acks=None if answer.acks is None else msgspec.convert(answer.acks, tuple[Ack, ...], from_attributes=True),
            refused=msgspec.convert(answer.refused, tuple[Refused, ...], from_attributes=True),
            conflicts=tuple(
                Conflict(
                    entity_id=lost.entity_id,
                    local_version=lost.local_version,
                    remote_version=lost.remote_version,
                    resolution_strategy=lost.resolution_strategy,
                    resolved_version=lost.resolved_version or lost.local_version,
                )
                for lost in answer.conflicts
            ),
            cursor=answer.cursor,
            # A deployed server says "more" by handing out a cursor at all.
            more=answer.cursor is not None if answer.more is None else answer.more,
            resync=answer.resync,
            server_time=None if answer.server_time is None else parse_time(answer.server_time),
            digest=answer.digest,
            head=answer.head,
            features=frozenset(answer.features),
            request=answer.request_id,
            taken=dict(rewind.entries(answer.taken)),
            common=answer.common,
            listing=answer.listing,
            discarded=answer.discarded,
            parts=answer.parts,
            device_forked=answer.device_forked,
            notices=tuple([_noticed(notice) for notice in answer.notices]),
        )


class _Named(Struct, kw_only=True):
    id: str


class _Change(Struct, kw_only=True):
    change_type: ChangeType
    entity: Raw
    relationships: tuple[Raw, ...]


class _Whole(Struct, kw_only=True):
    """What is looked at of an answer of ours, to compare it."""

    changes: tuple[_Change, ...]


_named = msgspec.json.Decoder(_Named)
_whole = msgspec.json.Decoder(_Whole)


def _shown(kind: Kind, id_: str, change_type: str, body: Raw) -> Shown:
    # Bodies are in one spelling as they are (PROTOCOL 3.6).
    return Shown(kind, id_, b"%b %b" % (change_type.encode(), bytes(body)))


def _change_out(change: Change) -> ChangeOut:
    entity = change.entity
    kind: ChangeType = "update" if entity is None or entity.parent_versions else "create"
    return ChangeOut(
        change_type="delete" if change.delete else kind,
        entity=None if entity is None else Raw(_encode(entity)),
        # What is offered goes only to servers that need not be told what is not there.
        relationships=[Raw(_encode(edge)) for edge in change.relationships] or (UNSET if change.offered else []),
        offered=change.offered or UNSET,
        aside=bool(change.aside) or UNSET,
    )


WIRE: Final = V2()
