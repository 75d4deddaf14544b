"""Version-free values: what every wire version is translated to and from, and what stores hold.

Nothing here knows a wire version, a clock or a store. Times are whole microseconds since 1970 UTC. Free JSON
(`content`, `properties`) is kept as canonical text inside `msgspec.Raw` (PROTOCOL 3.6) and only parsed by the rules
that look into it.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from hashlib import blake2b, sha1
from typing import Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

EMPTY: Final = Raw(b"{}")
ENTITY_TYPES: Final = frozenset(
    "home room device zone door window procedure manual note schedule automation app".split()
)
SOURCE_TYPES: Final = frozenset("homekit matter manual imported generated".split())
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SEQ_MAX: Final = 2**53 - 1  # RFC 7493: what every JSON peer holds exactly
DIGEST_BITS: Final = 256

Kind = Literal["entity", "edge"]


# --- values that users and peers speak of -------------------------------------------------------------------------


class Entity(Struct, frozen=True, kw_only=True):
    """PROTOCOL 3.1: one immutable row version of a thing in the home.

    `content` is canonical JSON of an object; its key ``deleted`` being truthy makes this row a tombstone.
    `source_original` is the source a peer named where `source_type` had to become ``imported`` (PROTOCOL 3.4).
    `merged` marks a row that the server made out of two (PROTOCOL 6.6).
    """

    id: str
    version: str
    entity_type: str
    name: str
    content: Raw
    source_type: str
    user_id: str
    parent_versions: tuple[str, ...] = ()
    checksum: str | None = None
    merged: bool | UnsetType = UNSET
    source_original: str | UnsetType = UNSET


class Relationship(Struct, frozen=True, kw_only=True):
    """PROTOCOL 3.5: one value of a directed edge.

    Keyed by `id`; the versions of its endpoints are provenance, joins are by id. `version` names this value of the
    edge; a peer that sends none gets one derived from the value (`edge_version`). ``properties.deleted = true`` makes
    it a tombstone.
    """

    id: str
    version: str
    from_entity_id: str
    from_entity_version: str
    to_entity_id: str
    to_entity_version: str
    relationship_type: str
    properties: Raw = EMPTY
    user_id: str = ""


class Change(Struct, frozen=True, kw_only=True):
    """One item of a push: a row version of an entity, edges, or both.

    `delete` is the peer's word for "this removes it"; a delete without an entity says nothing and is ignored.
    `pointer` is where the item stood in the body, for refusals. `aside` names rows that are only kept, and never become
    current: they say nothing new, or came after what their sender has put in their place since.
    """

    entity: Entity | None = None
    relationships: tuple[Relationship, ...] = ()
    delete: bool = False
    pointer: str = ""
    aside: frozenset[tuple[Kind, str]] = frozenset()


class Cursor(Struct, frozen=True):
    """PROTOCOL 4.2: a place in a server's log, provable by its chain hash."""

    epoch: str
    seq: int
    chain: bytes

    def __str__(self) -> str:
        return f"{self.epoch}:{self.seq}:{self.chain.hex()}"


class SyncRequest(Struct, frozen=True, kw_only=True):
    """What a client wants, whatever wire version it said it in.

    `since` is in microseconds, and stands for all up to `since_span` later; `after` is a bare sequence number; `cursor`
    is provable; none of them, with `full` false, is a delta from the position the server remembers for `device`.
    `paging` is whether the peer understands pages. `features` non-empty means that additive fields are understood.
    `ack` confirms the last answer: text that sorts after that of the ack before it, so that an old one that was held up
    confirms nothing.
    """

    device: str
    user: str
    changes: tuple[Change, ...] = ()
    full: bool = False
    pull: bool = True
    cursor: Cursor | None = None
    after: int | None = None
    since: int | None = None
    since_span: int = 0
    features: frozenset[str] = frozenset()
    page_rows: int | None = None
    entity_types: frozenset[str] | None = None
    modified_by: frozenset[str] | None = None
    ack: str | None = None


Outcome = Literal["applied", "fast_forward", "merged", "lost_kept", "superseded", "dup", "noop_delete"]


class Ack(Struct, frozen=True, kw_only=True):
    """PROTOCOL 4.5: one pushed row reached a terminal state. `head` is the row version that is current now, if any."""

    kind: Kind
    id: str
    version: str
    outcome: Outcome
    head: str | None = None


class Refused(Struct, frozen=True, kw_only=True):
    """PROTOCOL 4.7: one pushed item that cannot be stored, and why. The rest of its message goes on."""

    id: str
    version: str
    code: str
    pointer: str
    detail: str


class Conflict(Struct, frozen=True, kw_only=True):
    """PROTOCOL 6.7: something of a write lost; it is kept as a row and can be read back under its version."""

    entity_id: str
    local_version: str
    remote_version: str
    resolution_strategy: str
    resolved_version: str


# --- values that stores hold --------------------------------------------------------------------------------------


class Row(Struct, frozen=True, kw_only=True, gc=False):  # holds no containers; a full sync holds many of these
    """PROTOCOL 4.1: one line of a graph's log, immutable but for `until`.

    Attributes:
        seq: place in commit order, gap-free from 1.
        until: seq of the row that took its place; its own seq if it never was current; None while it is current.
        stamp: commit time in microseconds, strictly rising with seq; served as the time of the row.
        edit: edit time in microseconds, clamped when it arrived (PROTOCOL 6.4).
        timed: whether `edit` came from the version; a row without a time of its own loses ties.
        rise: the edit time, made to rise along the current rows of one id by a microsecond a line at least (what v1
            shows as ``updated_at`` is made of it).
        born: edit time of the first row of this id (what v1 shows as ``created_at``).
        hash: 32 bytes over kind and body (PROTOCOL 3.7).
        chain: 16 bytes over the chain before and `hash`.
        body: canonical JSON of the Entity or Relationship.
        from_id, to_id: endpoints of an edge, else "".
        entity_type: of an entity, else ""; an edge has its relationship type here.
        user_id: the author's label, for filters.
    """

    kind: Kind
    id: str
    version: str
    seq: int
    until: int | None
    stamp: int
    edit: int
    timed: bool
    rise: int
    born: int
    deleted: bool
    entity_type: str
    user_id: str
    from_id: str
    to_id: str
    hash: bytes
    chain: bytes
    body: bytes

    @property
    def current(self) -> bool:
        return self.until is None

    def entity(self) -> Entity:
        """The entity this row holds."""
        return _entity.decode(self.body)

    def relationship(self) -> Relationship:
        """The edge value this row holds."""
        return _relationship.decode(self.body)


class Head(Struct, frozen=True, kw_only=True):
    """PROTOCOL 4.2: the end of a graph's log. `digest` is the 256-bit sum of the hashes of all current rows."""

    epoch: str
    seq: int = 0
    chain: bytes = bytes(16)
    stamp: int = 0
    digest: int = 0

    @property
    def cursor(self) -> Cursor:
        return Cursor(self.epoch, self.seq, self.chain)

    @property
    def digest_hex(self) -> str:
        return f"{self.digest:064x}"


class Device(Struct, frozen=True, kw_only=True):
    """What a store remembers of one device: the seq it was `served` up to (a hint), the seq it `acked`, and the text
    that came with that ack, its `mark`."""

    served: int = 0
    acked: int = 0
    mark: str = ""


# --- what the rules ask of a store, and what they tell it ---------------------------------------------------------


class Document(Struct, frozen=True, kw_only=True):
    """A small document of a store as a whole, of no graph. `revision` counts how often it was changed."""

    revision: int = 0
    body: bytes = b""


class Span(Struct, frozen=True, kw_only=True):
    """Current rows with ``after < seq <= upto``, oldest first, at most `rows` of them."""

    after: int
    upto: int
    rows: int | None = None


class Reads(Struct, frozen=True, kw_only=True):
    """What a rule must see. Ids name entities unless the field says otherwise; absent things are absent in the answer.

    `history` asks for every row of these entities, `edge_history` for every row of these edges.
    `as_of` moves every "current" of this read back to that seq. `types` asks for the current entities of these types.
    `stamp` asks for the newest seq whose stamp is at or before it. `chains` asks for the chain hash at these seqs.
    `listing` asks for (id, version) of every current entity, sorted by id. `documents` asks for these of the store as
    a whole, as they are at this transaction's moment; one that was never written is answered with revision 0.
    """

    entities: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    versions: tuple[tuple[Kind, str, str], ...] = ()
    history: tuple[str, ...] = ()
    edge_history: tuple[str, ...] = ()
    edges_from: tuple[str, ...] = ()
    edges_to: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    chains: tuple[int, ...] = ()
    stamp: int | None = None
    device: str | None = None
    span: Span | None = None
    listing: bool = False
    as_of: int | None = None
    documents: tuple[str, ...] = ()


class Held(Struct, frozen=True, kw_only=True):
    """The answer to `Reads`, field by field. `edges_from` and `edges_to` hold current edges, tombstones among them."""

    head: Head
    entities: dict[str, Row] = {}
    edges: dict[str, Row] = {}
    versions: dict[tuple[Kind, str, str], Row] = {}
    history: dict[str, tuple[Row, ...]] = {}
    edge_history: dict[str, tuple[Row, ...]] = {}
    edges_from: dict[str, tuple[Row, ...]] = {}
    edges_to: dict[str, tuple[Row, ...]] = {}
    types: tuple[Row, ...] = ()
    chains: dict[int, bytes] = {}
    stamp_seq: int = 0
    device: Device | None = None
    span: tuple[Row, ...] = ()
    listing: tuple[tuple[str, str], ...] = ()
    documents: dict[str, Document] = {}


class Writes(Struct, frozen=True, kw_only=True):
    """One atomic commit: new rows in seq order, ``seq -> until`` of rows that stopped being current, the new head."""

    rows: tuple[Row, ...] = ()
    closed: tuple[tuple[int, int], ...] = ()
    head: Head | None = None
    device: tuple[str, Device] | None = None

    def __bool__(self) -> bool:
        return bool(self.rows or self.closed or self.device)


class SyncResponse(Struct, frozen=True, kw_only=True):
    """What the server answers, whatever wire version says it.

    `rows` are current rows in commit order, entities and edges. The answer covers the log up to `served`; `more` says
    that a later page follows. `resync` says that the peer's cursor was not of this log, so that `rows` start anew.
    `open` names in full the ids of which something was refused, which `refused` may name in short.
    """

    head: Head
    served: Cursor
    served_stamp: int
    rows: tuple[Row, ...] = ()
    carriers: dict[str, Row] = {}
    more: bool = False
    resync: bool = False
    acks: tuple[Ack, ...] = ()
    refused: tuple[Refused, ...] = ()
    open: frozenset[tuple[Kind, str]] = frozenset()
    conflicts: tuple[Conflict, ...] = ()


class Ask(Struct, frozen=True, kw_only=True):
    """What our client says in one message. `cursor` is the server's string, opaque here; `since` microseconds."""

    device: str
    user: str
    changes: tuple[Change, ...] = ()
    full: bool = False
    cursor: str | None = None
    since: int | None = None
    page_rows: int | None = None
    features: frozenset[str] = frozenset()
    offer: tuple[str, ...] = ()


class Answer(Struct, frozen=True, kw_only=True):
    """What a server said to an `Ask`.

    `acks` is None from a server that only names ids (`applied`, `applied_relationships`). `digest` and `head` are None
    from a server without features. `server_time` is in microseconds, None when missing or no time.
    """

    protocol_version: str
    changes: tuple[Change, ...] = ()
    applied: frozenset[str] = frozenset()
    applied_relationships: frozenset[str] = frozenset()
    acks: tuple[Ack, ...] | None = None
    refused: tuple[Refused, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    cursor: str | None = None
    more: bool = False
    resync: bool = False
    server_time: int | None = None
    digest: str | None = None
    head: str | None = None
    features: frozenset[str] = frozenset()


class Context(Struct, frozen=True, kw_only=True):
    """Who speaks, and when: everything a plan may not find out by itself. `now` is in microseconds."""

    graph: str = "default"
    user: str = "local"
    device: str | None = None
    token: str = ""
    now: int = 0


_T = TypeVar("_T")

#: A pure piece of server work: it yields what it must read or write, is sent what the store holds, and returns a value.
Plan: TypeAlias = Generator[Reads | Writes, Held, _T]


# --- the few functions that everybody needs to agree on -----------------------------------------------------------

_entity = msgspec.json.Decoder(Entity)
_relationship = msgspec.json.Decoder(Relationship)
_encode = msgspec.json.Encoder().encode


def body_of(value: Entity | Relationship) -> bytes:
    """Canonical JSON of a row's value: declared field order, no white space (PROTOCOL 3.6)."""
    return _encode(value)


def row_hash(kind: Kind, body: bytes) -> bytes:
    """PROTOCOL 3.7: 32 bytes that two peers agree on exactly when they hold the same row."""
    return blake2b(body, digest_size=32, person=b"ib-" + kind.encode()).digest()


def next_chain(chain: bytes, hash_: bytes) -> bytes:
    """PROTOCOL 4.2: the hash of a log that ends in a row with `hash_`."""
    return blake2b(chain + hash_, digest_size=16).digest()


def digest_change(digest: int, *, gone: bytes | None = None, come: bytes | None = None) -> int:
    """PROTOCOL 4.8: the digest after a row stopped being current and another started."""
    if gone is not None:
        digest -= int.from_bytes(gone, "big")
    if come is not None:
        digest += int.from_bytes(come, "big")
    return digest % (1 << DIGEST_BITS)


def is_deleted(content: object) -> bool:
    """PROTOCOL 3.3: whether decoded content (or properties) marks a tombstone."""
    return isinstance(content, dict) and bool(content.get("deleted"))


def says_deleted(json: Raw) -> bool:
    """`is_deleted` of canonical JSON, without parsing what cannot be a tombstone."""
    return b'"deleted":' in bytes(json) and is_deleted(msgspec.json.decode(json))


def edge_version(edge: Relationship) -> str:
    """PROTOCOL 3.5: the version of an edge value whose sender named none: a hash, so that a re-send is the same."""
    nameless = msgspec.structs.replace(edge, version="")
    return "h-" + blake2b(body_of(nameless), digest_size=12).hexdigest()


def uuid5(namespace: str, name: str) -> str:
    """RFC 9562 version 5 UUID of `name` under `namespace`, itself any string; lower-case text."""
    seed = sha1(b"inbetweenies:" + namespace.encode(), usedforsecurity=False).digest()[:16]
    digest = bytearray(sha1(seed + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


# PROTOCOL 3.2. `fromisoformat` is far too lenient (week dates, any separator), `$` admits a newline, `\d` other digits.
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?"
    r"(Z|z|[+-][0-9]{2}:?[0-9]{2})?"
)


# A version is the time of the edit, then nothing or a dash.
_EDIT = re.compile(f"(?:{_TIME.pattern})(?:-|\\Z)")


def _micros(match: re.Match[str]) -> int | None:
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        # A leap second is the last moment of its minute.
        at = datetime(int(year), int(month), int(day), int(hour), int(minute), min(int(second or 0), 59), tzinfo=UTC)
    except ValueError:
        return None
    # Digits beyond the microsecond are cut, never rounded: a time must not move forward.
    micros = (at - EPOCH) // timedelta(microseconds=1) + int((fraction or "0")[:6].ljust(6, "0"))
    if zone and zone not in "Zz":
        minutes = int(zone[1:3]) * 60 + int(zone[-2:])
        micros -= (minutes if zone[0] == "+" else -minutes) * 60_000_000
    return micros


def parse_time(text: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 time; naive is UTC; None if it is not one."""
    match = _TIME.fullmatch(text)
    return _micros(match) if match else None


def edit_time(version: str) -> int | None:
    """PROTOCOL 3.2: the edit time that a row version starts with, in microseconds; None if it starts with none."""
    match = _EDIT.match(version)
    return _micros(match) if match else None


def format_time(micros: int, *, naive: bool = False) -> str:
    """ISO 8601 in UTC with six digits, ``+00:00`` at the end unless `naive`."""
    at = EPOCH + timedelta(microseconds=min(max(micros, TIME_MIN), TIME_MAX))
    text = at.isoformat(timespec="microseconds")
    return text[:-6] if naive else text


TIME_MIN: Final = (datetime(1, 1, 1, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)
TIME_MAX: Final = (datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC) - EPOCH) // timedelta(microseconds=1)


def make_version(micros: int, counter: int, user: str) -> str:
    """PROTOCOL 3.2: the canonical version string of an edit."""
    return f"{format_time(micros)}-{counter:06d}-{user}"


_CURSOR = re.compile(r"([0-9a-f]{1,32}):(0|[1-9][0-9]{0,15}):([0-9a-f]{32})")


def parse_cursor(text: str) -> Cursor | None:
    """The cursor that `str(cursor)` wrote, None for any other text."""
    match = _CURSOR.fullmatch(text)
    if match is None or int(match[2]) > SEQ_MAX:
        return None
    return Cursor(match[1], int(match[2]), bytes.fromhex(match[3]))
