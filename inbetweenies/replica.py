"""The client's side of a sync, pure: what to say (`compose`) and what an answer changes here (`absorb`).

The mirror of `engine.py`. A replica keeps, for every entity and edge, two pointers into its rows: `theirs`, the row the
server is known to hold as current, and `ours`, the newest local row that the server has not acknowledged. What a
person sees is `ours` where there is one, else `theirs` (PROTOCOL 10.1). So a pull never touches a pending change: it
moves `theirs`, and `ours` stays until it is acknowledged by id and version (laws 1 and 2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from . import rewind
from .errors import clip
from .limits import canonical
from .model import (
    ENTITY_TYPES,
    Answer,
    Ask,
    Change,
    Conflict,
    Cursor,
    Entity,
    Kind,
    Part,
    Pushes,
    Refused,
    Relationship,
    body_of,
    digest_change,
    keys_of,
    parse_cursor,
    row_hash,
    says_deleted,
)

#: PROTOCOL 10.4: what one message of ours holds at most; whatever the server allows, a lost one costs no more.
BATCH_CHANGES: Final = 500
BATCH_BYTES: Final = 2**20
#: PROTOCOL 10.5: how far a pull from a deployed server reaches back before the time that server gave out last.
OVERLAP_US: Final = 30 * 1_000_000
#: Features of PROTOCOL 5.1 that this client understands.
FEATURES: Final = frozenset({"paging", "acks", "digest", "edges", rewind.FEATURE})
#: PROTOCOL 14.2: asks for notices; only where an answer is taken in as a whole.
NOTICES: Final = "notices"
#: Pushes that may or may not have been heard; more are made without an answer only by who is offline for long.
PUSHES_MAX: Final = 16
#: PROTOCOL 10.11: the `told` of a row that is never offered again.
NEVER: Final = -1

_entity = msgspec.json.Decoder(Entity)
_edge = msgspec.json.Decoder(Relationship)

Key: TypeAlias = tuple[Kind, str]
RowKey: TypeAlias = tuple[Kind, str, str]


class Copy(Struct, frozen=True, kw_only=True):
    """One row that this replica holds, its own or pulled. `hash` as PROTOCOL 3.7; `deleted` marks a tombstone."""

    kind: Kind
    id: str
    version: str
    hash: bytes
    deleted: bool
    entity_type: str
    name: str
    from_id: str
    to_id: str
    body: bytes

    @property
    def key(self) -> Key:
        return (self.kind, self.id)


class Pointer(Struct, frozen=True, kw_only=True):
    """Where an id stands: the server's current row, our newest unacknowledged one, and when `theirs` was last told.

    `round` counts the times that this replica started anew; a `theirs` of an older round was not told again since.
    """

    theirs: str | None = None
    theirs_hash: bytes | None = None
    ours: str | None = None
    round: int = 0

    @property
    def visible(self) -> str | None:
        return self.theirs if self.ours is None else self.ours


class Pending(Struct, frozen=True, kw_only=True):
    """One row that waits for its ack. `n` orders them; `note` is why it still waits, if the server said so.

    `offered`: not a new edit, but a row that the server held before its log was lost; `aside`: it was not what stood
    for its id then (PROTOCOL 10.10).
    """

    n: int
    copy: Copy
    note: Refused | None = None
    offered: bool = False
    aside: bool = False


class State(Struct, frozen=True, kw_only=True):
    """What a replica knows of its server, stored with the rows it speaks of, in the same transaction.

    Attributes:
        device, user: labels that go with every message.
        cursor: where the next pull starts, in the server's words; None at the start.
        since: the same for a server without features, in microseconds.
        page: the cursor of a deployed server inside a pull that goes over pages.
        digest: sum of the hashes of all `theirs` rows (PROTOCOL 4.8).
        round: how often this replica started anew.
        restarting: a pull from the start is under way; rows not told again by its end are offered again.
        modern: the server has features; None before its first answer.
        wire: the wire version that served last.
        witness: the furthest place of the server's log that was heard of; None before a server had a use for it.
        lost: that log is not there any more, and what is left of it is yet to be found out.
        common: the place up to which it was there when that was found out last.
        incarnation: names this copy of this replica; a new one for a copy that finds out that it is one.
        pushed: what the server may know of our pushes: the last one it answered, then those it did not.
    """

    device: str
    user: str
    cursor: str | None = None
    since: int | None = None
    page: str | None = None
    page_since: int | None = None
    digest: int = 0
    round: int = 0
    restarting: bool = False
    modern: bool | None = None
    wire: str | None = None
    witness: str | None = None
    lost: bool = False
    common: str | None = None
    incarnation: str = ""
    pushed: tuple[str, ...] = ()


class Local(Struct, frozen=True, kw_only=True):
    """What `absorb` must see of the store: for every id in the answer its pointer, the hashes of rows known under the
    versions it names, and the marks still pending."""

    pointers: Mapping[Key, Pointer] = {}
    known: Mapping[RowKey, bytes] = {}
    pending: Mapping[Key, tuple[tuple[int, str], ...]] = {}


class Absorbed(Struct, frozen=True, kw_only=True):
    """One local transaction: rows to keep, pointers to set, marks to clear or annotate, and the new state.

    `drained` says that the server has nothing more for now; `differs` that the digests differ then, `healed` that the
    replica starts anew for that reason. `offer_again` says that a restart has drained: the store then marks every
    `theirs` of an older round as pending and ends the restart, in a transaction of its own that may be repeated.
    `heard` names rows that are in the server's log, each with a seq that it is not after.
    """

    state: State
    copies: tuple[Copy, ...] = ()
    pointers: Mapping[Key, Pointer] = {}
    cleared: tuple[int, ...] = ()
    notes: Mapping[int, Refused] = {}
    conflicts: tuple[Conflict, ...] = ()
    drained: bool = False
    differs: bool = False
    healed: bool = False
    offer_again: bool = False
    heard: tuple[tuple[Kind, str, str, bytes, int], ...] = ()


# --- local edits --------------------------------------------------------------------------------------------------


def copy_of(value: Entity | Relationship) -> Copy:
    """`value` as a row of this replica."""
    body = body_of(value)
    if isinstance(value, Entity):
        return Copy(
            kind="entity",
            id=value.id,
            version=value.version,
            hash=row_hash("entity", body),
            deleted=says_deleted(value.content),
            entity_type=value.entity_type,
            name=value.name,
            from_id="",
            to_id="",
            body=body,
        )
    return Copy(
        kind="edge",
        id=value.id,
        version=value.version,
        hash=row_hash("edge", body),
        deleted=says_deleted(value.properties),
        entity_type=value.relationship_type,
        name="",
        from_id=value.from_entity_id,
        to_id=value.to_entity_id,
        body=body,
    )


def follow(before: Entity, *, version: str, user: str, **fields: Any) -> Entity:
    """The next row of an entity: `fields` replaced, the row before as its parent (PROTOCOL 3.1)."""
    if "content" in fields:
        fields["content"] = Raw(canonical(fields["content"]))
    fields = {"checksum": None, "merged": UNSET, **fields}
    return replace(before, version=version, user_id=user, parent_versions=(before.version,), **fields)


# --- what to say --------------------------------------------------------------------------------------------------


def compose(
    state: State,
    pending: Iterable[Pending],
    *,
    offer: tuple[str, ...] = (),
    page_rows: int | None = None,
    changes_max: int = BATCH_CHANGES,
    bytes_max: int = BATCH_BYTES,
    request: str | None = None,
    skip: tuple[tuple[int, int], ...] = (),
    want: tuple[int, ...] = (),
    notices: tuple[str, ...] = (),
) -> tuple[Ask, tuple[Pending, ...]]:
    """The next message, and the pending rows that it carries; only these may be cleared by its answer.

    PROTOCOL 10.4: in the order they were made, at most `changes_max` rows and about `bytes_max` bytes. To a server
    without features at most one row per id goes into a message, since it acks ids, and only what it can store.
    `request` names the message (10.14); with a push the new state must be `attempted` before the message leaves.
    """
    sent: list[Pending] = []
    ids: set[Key] = set()
    size = 0
    for item in pending:
        if len(sent) >= changes_max or (sent and size + len(item.copy.body) > bytes_max):
            break
        if not state.modern and (item.copy.key in ids or not _deployed_takes(item.copy)):
            continue
        ids.add(item.copy.key)
        size += len(item.copy.body)
        sent.append(item)
    ask = Ask(
        device=state.device,
        user=state.user,
        changes=_changes(sent),
        full=state.cursor is None and state.since is None and state.page is None,
        cursor=state.page or state.cursor,
        since=None if state.cursor or state.page else state.since,
        page_rows=page_rows,
        features=FEATURES | {NOTICES},
        offer=offer,
        request=request,
        witness=None if state.witness == state.cursor else state.witness,
        common=state.common if any(item.offered for item in sent) else None,
        skip=skip,
        want=want,
        pushes=_pushes(state, sent),
        notices=notices,
    )
    return ask, tuple(sent)


def _pushes(state: State, sent: Iterable[Pending]) -> Pushes | None:
    hashes = [item.copy.hash for item in sent]
    if not hashes or not state.incarnation or not state.modern:
        return None
    last = state.pushed[-1] if state.pushed else rewind.ANY
    return Pushes(after=state.pushed, now=rewind.next_push(last, state.incarnation, hashes))


def attempted(state: State, ask: Ask) -> State:
    """PROTOCOL 10.12: the state to keep before a message with a push leaves: it may be heard, and its answer not."""
    if ask.pushes is None:
        return state
    tried = (*state.pushed, ask.pushes.now)
    if len(tried) > PUSHES_MAX:
        # Any of those that are not kept may be the one that was heard last.
        tried = (rewind.ANY, *tried[1 - PUSHES_MAX :])
    return replace(state, pushed=tried)


def incarnated(state: State, incarnation: str) -> State:
    """PROTOCOL 10.12: a copy of a replica goes on under names of its own."""
    name = state.device.partition("~")[0]
    return replace(state, incarnation=incarnation, device=f"{name}~{incarnation[:8]}", pushed=())


def locating(state: State, places: Iterable[Cursor], request: str | None = None, offer: tuple[str, ...] = ()) -> Ask:
    """PROTOCOL 10.9: the message that asks which of these places a server still has."""
    return Ask(
        device=state.device,
        user=state.user,
        features=FEATURES,
        offer=offer,
        request=request,
        witness=state.witness,
        locate=tuple(str(place) for place in places)[: rewind.PLACES_MAX],
    )


def comparing(state: State, prefixes: tuple[str, ...], request: str | None = None, offer: tuple[str, ...] = ()) -> Ask:
    """PROTOCOL 10.13: the message that asks what a server holds in these parts of the graph."""
    return Ask(
        device=state.device,
        user=state.user,
        features=FEATURES,
        offer=offer,
        request=request,
        cursor=state.cursor,
        witness=None if state.witness == state.cursor else state.witness,
        compare=prefixes,
    )


def places(state: State, kept: Iterable[Cursor]) -> tuple[Cursor, ...]:
    """PROTOCOL 10.9: every place that is known of the server's log, newest first."""
    own = [parse_cursor(text) for text in (state.witness, state.cursor) if text is not None]
    known = {place.seq: place for place in (*kept, *own) if place is not None and place.seq > 0}
    return tuple(known[seq] for seq in sorted(known, reverse=True))


def _deployed_takes(copy: Copy) -> bool:
    """PROTOCOL 10.5: a deployed server answers one unknown type with a failure of the whole message."""
    return copy.kind == "edge" or copy.entity_type in ENTITY_TYPES


def _changes(sent: Iterable[Pending]) -> tuple[Change, ...]:
    """Entities in the order they were made, each edge with its `from` entity where that is in the message too."""
    edges: dict[tuple[str, bool, bool], list[Relationship]] = {}
    entities: list[Pending] = []
    for item in sent:
        if item.copy.kind == "entity":
            entities.append(item)
        else:
            edges.setdefault((item.copy.from_id, item.offered, item.aside), []).append(_edge.decode(item.copy.body))
    changes = []
    for item in entities:
        with_it = tuple(edges.pop((item.copy.id, item.offered, item.aside), ()))
        entity = _entity.decode(item.copy.body)
        changes.append(_change(entity, with_it, item.offered, item.aside, delete=item.copy.deleted))
    changes += [_change(None, tuple(loose), offered, aside) for (_, offered, aside), loose in edges.items()]
    return tuple(changes)


def _change(
    entity: Entity | None, edges: tuple[Relationship, ...], offered: bool, aside: bool, *, delete: bool = False
) -> Change:
    named = keys_of(entity, edges) if aside else frozenset()
    return Change(entity=entity, relationships=edges, delete=delete, aside=named, offered=offered)


# --- what an answer changes ---------------------------------------------------------------------------------------


def mentions(answer: Answer, sent: Iterable[Pending]) -> tuple[tuple[Key, ...], tuple[RowKey, ...]]:
    """The ids and rows that `absorb` must see in `Local` for this answer."""
    keys: dict[Key, None] = {item.copy.key: None for item in sent}
    rows: dict[RowKey, None] = {}
    for change in answer.changes:
        if change.entity is not None:
            keys["entity", change.entity.id] = None
            rows["entity", change.entity.id, change.entity.version] = None
        for edge in change.relationships:
            keys["edge", edge.id] = None
            rows["edge", edge.id, edge.version] = None
    for ack in answer.acks or ():
        keys[ack.kind, ack.id] = None
        if ack.head is not None:
            rows[ack.kind, ack.id, ack.head] = None
    return tuple(keys), tuple(rows)


def believed(answer: Answer, ask: Ask) -> bool:
    """PROTOCOL 10.14: whether an answer is one to `ask`, and of a log that has not got shorter since it was asked.

    What comes late from before a server was set back would otherwise be taken for what the server holds now.
    """
    if rewind.FEATURE not in answer.features:
        return True  # nothing of it says to what it is an answer
    if answer.request != ask.request:
        return False
    if answer.resync or ask.locate is not None:
        return True
    known = [place.seq for text in (ask.witness, ask.cursor) if (place := parse_cursor(text or "")) is not None]
    head = parse_cursor(answer.head or answer.cursor or "")
    return not known or (head is not None and head.seq >= max(known))


def absorb(answer: Answer, sent: tuple[Pending, ...], state: State, local: Local, *, wanted: bool = False) -> Absorbed:
    """What becomes of this replica by `answer` to a message that carried `sent`: one local transaction.

    PROTOCOL 10.2: marks are cleared by id and version, and only those that `sent` carried. PROTOCOL 10.3: the cursor
    belongs to the same transaction as the rows it covers. `wanted`: the message asked for rows wherever they stand.
    """
    modern = bool(answer.features)
    watched = rewind.FEATURE in answer.features
    if watched and answer.resync:
        # PROTOCOL 10.9: nothing was done with the message. First find out what is left of the log that we knew.
        return Absorbed(state=replace(state, lost=True, modern=True, wire=answer.protocol_version))
    # The server's log is not the one we knew: believe what it tells from here on, and offer it the rest again.
    anew = answer.resync or (state.modern is False and modern)
    work = _Work(state.round + anew, state.digest, local)
    known = dict(local.known)
    known.update({(*item.copy.key, item.copy.version): item.copy.hash for item in sent})
    terminal = _terminal(answer, sent)
    # Of two rows under one version that are sent together, the one that was taken is what the server has under it.
    known.update({(*item.copy.key, item.copy.version): item.copy.hash for item in _taken(answer, terminal)})
    for key, head in _heads(answer, terminal).items():
        hash_ = known.get((*key, head))
        if hash_ is not None:
            work.point(key, head, hash_)
    copies: list[Copy] = []
    rows = told(answer)
    for copy in rows:
        if known.get((*copy.key, copy.version)) != copy.hash:
            copies.append(copy)
        work.point(copy.key, copy.version, copy.hash)
    cleared = tuple(item.n for item in terminal)
    work.clear(terminal, frozenset(cleared))
    after = replace(
        _advance(state, answer, modern),
        digest=work.digest,
        round=work.round,
        restarting=state.restarting or anew,
        modern=modern,
        wire=answer.protocol_version,
    )
    if watched:
        place = answer.head or answer.cursor
        after = replace(after, witness=place or after.witness, pushed=state.pushed[-1:] if sent else state.pushed)
    drained = not answer.more
    differs = healed = False
    if state.modern is False and modern:
        # What was asked for was a position in the deployed server's clock; this server has a log: start in it.
        after, drained = replace(after, cursor=None), False
    elif drained and not after.restarting and answer.digest is not None and answer.digest != f"{work.digest:064x}":
        # PROTOCOL 10.6, 10.13: something differs that no rule explains; look, or start anew, rather than guess.
        differs = True
        if not watched:
            after, healed = restart(after), True
    return Absorbed(
        state=after,
        copies=tuple(copies),
        pointers=work.pointers,
        cleared=cleared,
        notes=_notes(answer, sent, frozenset(cleared)),
        conflicts=answer.conflicts,
        drained=drained,
        differs=differs,
        healed=healed,
        offer_again=drained and after.restarting,
        heard=tuple(_heard(answer, terminal, rows, wanted)) if watched else (),
    )


def _heard(
    answer: Answer, terminal: Iterable[Pending], rows: Iterable[Copy], wanted: bool
) -> Iterable[tuple[Kind, str, str, bytes, int]]:
    """PROTOCOL 10.8: the rows that are in the server's log by this answer, and a seq that none of them is after.

    A row of a page is not after the end of the page; what was named by an ack, or was asked for, may be anywhere.
    """
    page, head = (parse_cursor(place or "") for place in (answer.cursor, answer.head or answer.cursor))
    if page is None or head is None:
        return
    named: set[Key] = set()
    nothing = {(ack.kind, ack.id, ack.version) for ack in answer.acks or () if ack.outcome == "noop_delete"}
    for item in terminal:
        named.add(item.copy.key)
        row = (*item.copy.key, item.copy.version)
        yield (*row, item.copy.hash, NEVER if row in nothing else head.seq)
    for copy in rows:
        yield (*copy.key, copy.version, copy.hash, head.seq if wanted or copy.key in named else page.seq)


def restart(state: State) -> State:
    """A state that pulls everything again and then offers whatever it was not told (PROTOCOL 10.6)."""
    return replace(state, cursor=None, since=None, page=None, page_since=None, round=state.round + 1, restarting=True)


class _Work:
    """Pointers and digest while one answer is absorbed."""

    def __init__(self, round_: int, digest: int, local: Local) -> None:
        self.round = round_
        self.digest = digest
        self.local = local
        self.pointers: dict[Key, Pointer] = {}

    def at(self, key: Key) -> Pointer:
        return self.pointers.get(key) or self.local.pointers.get(key) or Pointer()

    def point(self, key: Key, version: str, hash_: bytes) -> None:
        """The server's current row of `key` is this one; a pending row of ours stays visible (law 2)."""
        before = self.at(key)
        self.digest = digest_change(self.digest, gone=before.theirs_hash, come=hash_)
        self.pointers[key] = replace(before, theirs=version, theirs_hash=hash_, round=self.round)

    def clear(self, terminal: Iterable[Pending], cleared: frozenset[int]) -> None:
        """Our newest row of a cleared id that still waits, if any, stays visible (law 1)."""
        for item in terminal:
            left = [mark for mark in self.local.pending.get(item.copy.key, ()) if mark[0] not in cleared]
            newest = max(left)[1] if left else None
            self.pointers[item.copy.key] = replace(self.at(item.copy.key), ours=newest)


def told(answer: Answer) -> list[Copy]:
    """The rows of an answer, in its order: entities, each followed by its edges."""
    rows = []
    for change in answer.changes:
        if change.entity is not None:
            rows.append(copy_of(change.entity))
        rows.extend(copy_of(edge) for edge in change.relationships)
    return rows


def _terminal(answer: Answer, sent: Iterable[Pending]) -> list[Pending]:
    """The rows of `sent` that the answer names as done (PROTOCOL 10.2)."""
    if answer.acks is not None:
        done = {(ack.kind, ack.id, ack.version) for ack in answer.acks}
        return [
            item
            for item in sent
            if (*item.copy.key, item.copy.version) in done or rewind.short(item.copy.hash) in answer.taken
        ]
    named = {"entity": answer.applied, "edge": answer.applied_relationships}
    return [item for item in sent if item.copy.id in named[item.copy.kind]]


def _taken(answer: Answer, terminal: Iterable[Pending]) -> list[Pending]:
    """Those that the answer says in short are stored to the letter, and current (PROTOCOL 4.14)."""
    return [item for item in terminal if answer.taken.get(rewind.short(item.copy.hash))]


def _heads(answer: Answer, terminal: Iterable[Pending]) -> dict[Key, str]:
    """The row that is current on the server now, for every id that the answer acknowledges."""
    if answer.acks is not None:
        heads = {item.copy.key: item.copy.version for item in _taken(answer, terminal)}
        return heads | {(ack.kind, ack.id): ack.head for ack in answer.acks if ack.head is not None}
    # A server that only names ids took what it was sent, as far as can be known before the next pull.
    lost = {conflict.entity_id: conflict.resolved_version for conflict in answer.conflicts}
    return {item.copy.key: lost.get(item.copy.id, item.copy.version) for item in terminal}


def _notes(answer: Answer, sent: Iterable[Pending], cleared: frozenset[int]) -> dict[int, Refused]:
    # A refusal names long or odd ids in short, so they are compared as it would name them.
    reasons = {(clip(refused.id), clip(refused.version)): refused for refused in answer.refused}
    found = {
        item.n: reasons.get((clip(item.copy.id), clip(item.copy.version))) for item in sent if item.n not in cleared
    }
    return {n: reason for n, reason in found.items() if reason is not None}


def _advance(state: State, answer: Answer, modern: bool) -> State:
    """PROTOCOL 10.3, 10.5: where the next pull starts."""
    if modern:
        return replace(state, cursor=answer.cursor or state.cursor, since=None, page=None, page_since=None)
    # A deployed server stamps rows before it commits them, so a pull beside a push misses some; look again at those.
    told_time = None if answer.server_time is None else answer.server_time - OVERLAP_US
    first = state.page_since if state.page is not None else told_time
    if answer.more:
        return replace(state, cursor=None, page=answer.cursor, page_since=first)
    since = state.since if first is None else first
    return replace(state, cursor=None, since=since, page=None, page_since=None)


# --- a server whose log was lost ----------------------------------------------------------------------------------


class Known(Struct, frozen=True, kw_only=True, gc=False):
    """A row that a server told or acknowledged; `theirs` is the hash of what it was known to hold as current of that
    id."""

    kind: Kind
    id: str
    version: str
    hash: bytes
    theirs: bytes | None

    @property
    def key(self) -> Key:
        return (self.kind, self.id)


class Found(Struct, frozen=True, kw_only=True):
    """PROTOCOL 10.9: what is left of a log: up to `common` (a seq, 0 for nothing) it is there, up to `head` it goes on
    with `entries`."""

    common: Cursor | None
    head: Cursor
    entries: tuple[tuple[bytes, bool], ...]
    discarded: bool = False

    @property
    def after(self) -> int:
        return 0 if self.common is None else self.common.seq


class Regained(Struct, frozen=True, kw_only=True):
    """One local transaction: the new state, what the server still holds of what it told after the common place, what
    it holds as current of that, what it lost, and the ranges of its log that it need not tell again."""

    state: State
    held: tuple[Known, ...]
    current: tuple[Known, ...]
    lost: tuple[Known, ...]
    skip: tuple[tuple[int, int], ...]


def regain(state: State, found: Found, known: Iterable[Known]) -> Regained:
    """PROTOCOL 10.9: what becomes of this replica, which has `known` from the server since the common place."""
    seqs = {entry: (seq, current) for seq, (entry, current) in enumerate(found.entries, found.after + 1)}
    held: list[Known] = []
    current: dict[Key, Known] = {}
    lost: list[Known] = []
    digest = state.digest
    for row in known:
        at = seqs.get(rewind.short(row.hash))
        if at is None:
            lost.append(row)
            if row.theirs == row.hash:
                digest = digest_change(digest, gone=row.hash)
            continue
        held.append(row)
        # Of what was listed in several pages one row of an id may have taken the place of another between two of them.
        if at[1] and (row.key not in current or seqs[rewind.short(current[row.key].hash)] < at):
            current[row.key] = row
    gone = {row.key for row in lost if row.theirs == row.hash}
    for row in current.values():
        digest = digest_change(digest, gone=None if row.key in gone else row.theirs, come=row.hash)
    cursor = None if found.common is None else str(found.common)
    return Regained(
        state=replace(
            state,
            cursor=cursor,
            since=None,
            page=None,
            page_since=None,
            digest=digest,
            restarting=False,
            witness=str(found.head),
            lost=False,
            common=None if found.discarded else cursor,
            pushed=(rewind.ANY, *state.pushed[-1:]),
        ),
        held=tuple(held),
        current=tuple(current.values()),
        lost=tuple(lost),
        skip=_ranges(seqs[rewind.short(row.hash)][0] for row in held),
    )


def _ranges(seqs: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """The fewest ranges that hold these seqs and no others; the first thousand of them."""
    ranges: list[tuple[int, int]] = []
    for seq in sorted(seqs):
        if ranges and ranges[-1][1] >= seq - 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return tuple(ranges[: rewind.RANGES_MAX])


class Difference(Struct, frozen=True, kw_only=True):
    """PROTOCOL 10.13: where two graphs differ: parts to look into, rows to ask for, rows that the server lacks."""

    prefixes: tuple[str, ...] = ()
    want: tuple[int, ...] = ()
    lacking: tuple[Key, ...] = ()


def differences(part: Part, own: Iterable[tuple[str, Key, bytes]]) -> Difference:
    """What differs in one part of the graph; `own` are places, ids and hashes of the rows that the server is known to
    hold there."""
    rows = [(place, key, hash_) for place, key, hash_ in own if place.startswith(part.prefix)]
    if part.sums and len(part.prefix) < rewind.PREFIX_MAX:
        tally = rewind.Tally((part.prefix,))
        for place, _, hash_ in rows:
            tally.add(place, 0, hash_)
        sums, size = tally.sums(part.prefix), rewind.SHORT
        numbers = range(min(len(sums), len(part.sums)) // size)
        other = [at for at in numbers if sums[at * size : (at + 1) * size] != part.sums[at * size : (at + 1) * size]]
        return Difference(prefixes=tuple(f"{part.prefix}{at:02x}" for at in other))
    theirs = {entry: seq for seq, (entry, _) in zip(part.seqs, rewind.entries(part.rows), strict=False)}
    ours = {rewind.short(hash_): key for _, key, hash_ in rows}
    return Difference(
        want=tuple(seq for entry, seq in theirs.items() if entry not in ours),
        lacking=tuple(key for entry, key in ours.items() if entry not in theirs),
    )
