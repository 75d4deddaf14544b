"""Version-free values: what every wire version is translated to and from, and what stores hold.

Nothing here knows a wire version, a clock or a store. Times are whole microseconds since 1970 UTC. Free JSON
(`content`, `properties`) is kept as canonical text inside `msgspec.Raw` (PROTOCOL 3.6) and only parsed by the rules
that look into it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b, sha1
from typing import Any, Final, Literal, TypeAlias, TypeVar

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

# `gc=False` where a message holds many: nothing in them can lead back to them, and looking for that costs a tenth.


class Entity(Struct, frozen=True, kw_only=True, gc=False):
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


class Relationship(Struct, frozen=True, kw_only=True, gc=False):
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


class Change(Struct, frozen=True, kw_only=True, gc=False):
    """One item of a push: a row version of an entity, edges, or both.

    `delete` is the peer's word for "this removes it"; a delete without an entity says nothing and is ignored.
    `pointer` is where the item stood in the body, for refusals. `aside` names rows that are only kept, and never become
    current: they say nothing new, or came after what their sender has put in their place since. `offered` rows are not
    their sender's: a log that is gone held them (PROTOCOL 4.14).
    """

    entity: Entity | None = None
    relationships: tuple[Relationship, ...] = ()
    delete: bool = False
    pointer: str = ""
    aside: frozenset[tuple[Kind, str]] = frozenset()
    offered: bool = False


class Cursor(Struct, frozen=True):
    """PROTOCOL 4.2: a place in a server's log, provable by its chain hash."""

    epoch: str
    seq: int
    chain: bytes

    def __str__(self) -> str:
        return f"{self.epoch}:{self.seq}:{self.chain.hex()}"


class Pushes(Struct, frozen=True, kw_only=True):
    """PROTOCOL 4.16: which pushes of its own a device remembers: the server knows of one of `after`, of none if that is
    empty, of any if an empty text is in it; with this push it knows of `now`. Each is ``incarnation:count:hash``."""

    after: tuple[str, ...] = ()
    now: str


class SyncRequest(Struct, frozen=True, kw_only=True):
    """What a client wants, whatever wire version it said it in.

    `since` is in microseconds, and stands for all up to `since_span` later; `after` is a bare sequence number; `cursor`
    is provable; none of them, with `full` false, is a delta from the position the server remembers for `device`.
    `features` non-empty means that additive fields are understood, and ``paging`` among them pages; `pieces` that a
    whole answer may be left unread in part (`SyncResponse.unread`). `ack` confirms the last answer: text that sorts
    after that of the ack before it, so that an old one that was held up confirms nothing.

    `witness` is the furthest place of a log that the peer has heard of (PROTOCOL 4.10). `locate` asks which of these
    places is the newest of this log, and for the listing of what follows (4.13); `common` is what the answer to that
    was, with rows that are offered. `skip` names ranges of seqs that the peer needs not be told, `want` seqs that it
    wants whatever its cursor says, `compare` parts of the graph (4.15).
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
    pieces: bool = False
    entity_types: frozenset[str] | None = None
    modified_by: frozenset[str] | None = None
    ack: str | None = None
    witness: Cursor | None = None
    locate: tuple[Cursor, ...] | None = None
    common: Cursor | None = None
    skip: tuple[tuple[int, int], ...] = ()
    want: tuple[int, ...] = ()
    compare: tuple[str, ...] = ()
    pushes: Pushes | None = None


Outcome = Literal["applied", "fast_forward", "merged", "lost_kept", "superseded", "dup", "noop_delete"]


class Ack(Struct, frozen=True, kw_only=True, gc=False):
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


class Row(Struct, frozen=True, gc=False):  # not keyword-only: a store makes many, by position in a quarter of the time
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
        via: who offered it again after a log that held it was lost, else "". No part of the value (PROTOCOL 4.14).
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
    via: str = ""

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


CONFIRMED: Final = -1  # the seq of no answer


class Device(Struct, frozen=True, kw_only=True):
    """What a store remembers of one device: the seq it was `served` up to (a hint), or `CONFIRMED` from its ack to the
    next answer; the seq it `acked`, and the text that came with that ack, its `mark`; of a device that counts its
    pushes, the last one (PROTOCOL 4.16)."""

    served: int = 0
    acked: int = 0
    mark: str = ""
    pushed: str = ""


EventKind = Literal["fork", "replay", "offer", "discard", "device_forked", "rule_failed", "noticed"]


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to a log and that people should know, at `at` microseconds. A later one of the same
    `kind` and `key` takes its place."""

    kind: EventKind
    key: str
    at: int
    told: dict[str, str | int] = {}

    def __str__(self) -> str:
        """What happened, for people, on one line: some of it is what peers said."""
        return "".join(letter if letter.isprintable() else "?" for letter in self._sentence())

    def _sentence(self) -> str:
        told = self.told
        if self.kind == "fork":
            cursor = str(told["witness"])
            known = cursor.split(":")[1] if cursor.count(":") == 2 else cursor
            return f"set back: it ended at {told['seq']}, and {told['by']} knew of {known}; now epoch {told['epoch']}"
        if self.kind == "replay":
            also = f", and {told['offered']} beside what was there" if told["offered"] else ""
            return f"set back to {told['after']}: {told['rows']} rows came back from the journal{also}"
        if self.kind == "offer":
            return f"{told['rows']} lost rows came back from {told['by']}"
        if self.kind == "discard":
            return f"set back to {told['seq']} on purpose: what came after that is to stay away"
        if self.kind == "rule_failed":
            what, error = told["entity_type"], told["error"]
            return f"the rule of {what} failed ({error}); what it was asked was decided without it"
        if self.kind == "noticed":
            return "a device was told what it has to know"
        return f"two copies of {told['device']} have pushed; the second goes on under a name of its own"


class Line(Struct, frozen=True, array_like=True, gc=False):
    """PROTOCOL 4.1: a line of the log without what it says."""

    seq: int
    kind: Kind
    id: str
    current: bool
    hash: bytes


# --- what the rules ask of a store, and what they tell it ---------------------------------------------------------


class Document(Struct, frozen=True, kw_only=True):
    """A small document of a store as a whole, of no graph. `revision` counts how often it was changed."""

    revision: int = 0
    body: bytes = b""


class Span(Struct, frozen=True, kw_only=True):
    """Current rows with ``after < seq <= upto``, oldest first, at most `rows` of them.

    `size` ends the span with the row whose body fills so many bytes. `kind` leaves out the rows of the other kind,
    `entity_type` all but the entities of that type.
    """

    after: int
    upto: int
    rows: int | None = None
    size: int | None = None
    kind: Kind | None = None
    entity_type: str | None = None


class Reads(Struct, frozen=True, kw_only=True):
    """What a rule must see. Ids name entities unless the field says otherwise; absent things are absent in the answer.

    `history` asks for every row of these entities, `edge_history` for every row of these edges.
    `as_of` moves every "current" of this read back to that seq. `types` asks for the current entities of these types.
    `stamp` asks for the newest seq whose stamp is at or before it. `chains` asks for the chain hash at these seqs.
    `listing` asks for (id, version) of every current entity, sorted by id; of those after `listing_after` only, and at
    most `listing_rows` of them. `seqs` asks for the rows there, `lines` for the line of every row in a span, current or
    not, and `events` for what happened to this log, oldest first. `documents` asks for these of the store as a whole,
    as they are at this transaction's moment; one that was never written is answered with revision 0.
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
    listing_after: str = ""
    listing_rows: int | None = None
    seqs: tuple[int, ...] = ()
    lines: Span | None = None
    events: bool = False
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
    seqs: dict[int, Row] = {}
    lines: tuple[Line, ...] = ()
    events: tuple[Event, ...] = ()
    documents: dict[str, Document] = {}


class Writes(Struct, frozen=True, kw_only=True):
    """One atomic commit: new rows in seq order, ``seq -> until`` of rows that stopped being current, the new head,
    what happened."""

    rows: tuple[Row, ...] = ()
    closed: tuple[tuple[int, int], ...] = ()
    head: Head | None = None
    device: tuple[str, Device] | None = None
    events: tuple[Event, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows or self.closed or self.device or self.events)


class Located(Struct, frozen=True, kw_only=True):
    """PROTOCOL 4.13: the newest place that both logs have, None if they share nothing; what follows it, eight bytes a
    row (`rewind.short`); and whether an operator said that what is missing here is to stay away."""

    common: Cursor | None
    listing: bytes
    discarded: bool = False


class Part(Struct, frozen=True, kw_only=True):
    """PROTOCOL 4.15: one part of the graph: the sums of the 256 parts of it, or if it is small the seqs of its current
    rows, and eight bytes for each of those."""

    prefix: str
    sums: bytes = b""
    seqs: tuple[int, ...] = ()
    rows: bytes = b""


class Unread(Struct, frozen=True, kw_only=True):
    """The rows of a whole answer that are read only while it is told: all current ones after a seq, up to the head.

    `sent` are those that the peer has just sent itself. `alone` says that an edge may travel without its entity.
    """

    after: int
    sent: frozenset[tuple[Kind, str, str]] = frozenset()
    alone: bool = False
    entity_types: frozenset[str] | None = None
    modified_by: frozenset[str] | None = None


class SyncResponse(Struct, frozen=True, kw_only=True):
    """What the server answers, whatever wire version says it.

    `rows` are current rows in commit order, entities and edges; `unread` comes before them. The answer covers the log
    up to `served`; `more` says that a later page follows. `resync` says that the peer's cursor was not of this log:
    `rows` start anew, or, for a peer that has a witness, nothing was done and it should locate. `taken` maps what was
    offered and is stored as it was sent to what stands for it. `device_forked`: another copy of this device has pushed
    as well. `open` names in full the ids of which something was refused, which `refused` may name in short.
    """

    head: Head
    served: Cursor
    served_stamp: int
    unread: Unread | None = None
    rows: tuple[Row, ...] = ()
    carriers: dict[str, Row] = {}
    more: bool = False
    resync: bool = False
    acks: tuple[Ack, ...] = ()
    taken: dict[tuple[Kind, str, str], bytes] = {}
    refused: tuple[Refused, ...] = ()
    open: frozenset[tuple[Kind, str]] = frozenset()
    conflicts: tuple[Conflict, ...] = ()
    located: Located | None = None
    parts: tuple[Part, ...] | None = None
    device_forked: bool = False


class Ask(Struct, frozen=True, kw_only=True):
    """What our client says in one message. `cursor` is the server's string, opaque here; `since` microseconds.

    `request` names this message, so that the answer to another one is not taken for its own. `notices` acknowledges
    these. The rest as in `SyncRequest`, places as strings.
    """

    device: str
    user: str
    changes: tuple[Change, ...] = ()
    full: bool = False
    cursor: str | None = None
    since: int | None = None
    page_rows: int | None = None
    features: frozenset[str] = frozenset()
    offer: tuple[str, ...] = ()
    request: str | None = None
    witness: str | None = None
    locate: tuple[str, ...] | None = None
    common: str | None = None
    skip: tuple[tuple[int, int], ...] = ()
    want: tuple[int, ...] = ()
    compare: tuple[str, ...] = ()
    pushes: Pushes | None = None
    notices: tuple[str, ...] = ()


class Proof(Struct, frozen=True, kw_only=True):
    """PROTOCOL 14.4: what an audit found of a log: that it is whole up to the place `at`, and that the log that ended
    at the place `before`, when something was taken back, goes on in it. `digest` is the sum over what is current at
    `at`, in hexadecimal, as worked out from the rows. Whoever reads one has yet to compare it."""

    graph: str
    before: str
    at: str
    digest: str


class Noticed(Struct, frozen=True, kw_only=True):
    """PROTOCOL 14.2: what a server wants people to know, without words: those are the client's own."""

    id: str
    kind: str
    at: int
    duration_s: int | None = None
    proof: Proof | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """What a server said to an `Ask`.

    `acks` is None from a server that only names ids (`applied`, `applied_relationships`); `taken` names rows by eight
    bytes each, and says which of them are current. `digest` and `head` are None from a server without features.
    `server_time` is in microseconds, None when missing or no time. `request` is the name of the message that this
    answers.
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
    request: str | None = None
    taken: dict[bytes, bool] = {}
    common: str | None = None
    listing: bytes | None = None
    discarded: bool = False
    parts: tuple[Part, ...] = ()
    device_forked: bool = False
    notices: tuple[Noticed, ...] = ()


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

#: A plan of an answer that need not be held whole: what it yields as bytes comes before what it returns.
Telling: TypeAlias = Generator[Reads | Writes | bytes, Held, bytes]


# --- the few functions that everybody needs to agree on -----------------------------------------------------------

_entity = msgspec.json.Decoder(Entity)
_relationship = msgspec.json.Decoder(Relationship)
_encode = msgspec.json.Encoder().encode


def body_of(value: Entity | Relationship) -> bytes:
    """Canonical JSON of a row's value: declared field order, no white space (PROTOCOL 3.6)."""
    return _encode(value)


_PERSON: Final[dict[Kind, bytes]] = {"entity": b"ib-entity", "edge": b"ib-edge"}


def row_hash(kind: Kind, body: bytes) -> bytes:
    """PROTOCOL 3.7: 32 bytes that two peers agree on exactly when they hold the same row."""
    return blake2b(body, digest_size=32, person=_PERSON[kind]).digest()


def next_chain(chain: bytes, hash_: bytes) -> bytes:
    """PROTOCOL 4.2: the hash of a log that ends in a row with `hash_`."""
    return blake2b(chain + hash_, digest_size=16).digest()


def keys_of(entity: Any, edges: Iterable[Any]) -> frozenset[tuple[Kind, str]]:
    """What a change is about."""
    named: list[tuple[Kind, str]] = [("edge", edge.id) for edge in edges]
    return frozenset(named if entity is None else [*named, ("entity", entity.id)])


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
    start = _day(year, month, day)
    if start is None or hour > "23" or minute > "59":
        return None
    # A leap second is the last moment of its minute.
    seconds = start + int(hour) * 3600 + int(minute) * 60 + min(int(second or 0), 59)
    # Digits beyond the microsecond are cut, never rounded: a time must not move forward.
    micros = seconds * 1_000_000 + int((fraction or "0")[:6].ljust(6, "0"))
    if zone and zone not in "Zz":
        minutes = int(zone[1:3]) * 60 + int(zone[-2:])
        micros -= (minutes if zone[0] == "+" else -minutes) * 60_000_000
    return micros


@lru_cache(1024)  # what is synced together was mostly edited within days
def _day(year: str, month: str, day: str) -> int | None:
    """Seconds since 1970 at which a day begins, None if there is no such day."""
    try:
        return (date(int(year), int(month), int(day)).toordinal() - EPOCH.toordinal()) * 86_400
    except ValueError:
        return None


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
