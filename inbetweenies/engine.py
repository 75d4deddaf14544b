"""The server's side of a sync, pure: what a request must read, and what is decided from it.

Read `serve`: it is the whole course of one request as a plan that yields reads and writes. `reads` and `decide` are
its two halves and can be called alone. Nothing here knows a wire version, a clock or a store; seq, stamp, chain and
digest of every row are decided here, inside the store's transaction, so that all stores agree on them (PROTOCOL 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from . import merge, rewind
from .errors import RemoteProtocolError, clip
from .intake import check_edge, check_entity, in_order, refused
from .limits import VISIT_BYTES, Allowance, Limits
from .merge import Policy, later, side_of
from .model import (
    CONFIRMED,
    SEQ_MAX,
    TIME_MIN,
    Ack,
    Change,
    Conflict,
    Context,
    Cursor,
    Device,
    Entity,
    Event,
    Head,
    Held,
    Kind,
    Outcome,
    Plan,
    Reads,
    Refused,
    Relationship,
    Row,
    SyncRequest,
    SyncResponse,
    Unread,
    Writes,
    body_of,
    digest_change,
    edge_version,
    next_chain,
    row_hash,
    says_deleted,
)
from .pieces import carried, carriers_of, ends, filtered, fitting, span_of

DEFAULT_POLICY: Final = Policy()
DEFAULT_LIMITS: Final = Limits()
NOTHING: Final = Head(epoch="")
MILLISECOND: Final = 1_000  # in microseconds


class Decision(Struct, frozen=True, kw_only=True):
    """What `decide` made of a push: the one commit it needs, and what to tell the pusher about each item.

    `current` holds the row that is current afterwards for every pushed id; `open` names the ids of `refused` in full.
    """

    writes: Writes
    head: Head
    device_forked: bool = False
    acks: tuple[Ack, ...] = ()
    refused: tuple[Refused, ...] = ()
    open: frozenset[tuple[Kind, str]] = frozenset()
    conflicts: tuple[Conflict, ...] = ()
    current: dict[tuple[Kind, str], Row] = {}
    versions: dict[tuple[Kind, str, str], Row] = {}


# --- the course of one request ------------------------------------------------------------------------------------


def serve(
    request: SyncRequest, context: Context, limits: Limits = DEFAULT_LIMITS, policy: Policy = DEFAULT_POLICY
) -> Plan[SyncResponse]:
    """PROTOCOL 4: one request, from reads over the decision to the answer.

    Raises:
        RemoteProtocolError: more changes than a peer with features may send; nothing was read or written.
    """
    if request.features and len(request.changes) > limits.changes_max:
        raise RemoteProtocolError(
            code="too_many_changes",
            expected=f"at most {limits.changes_max} changes in one push",
            got=f"{len(request.changes)} changes",
            pointer="/changes",
        )
    held = yield reads(request)
    if rewind.FEATURE in request.features:
        instead = yield from rewind.attend(request, held, context.now)
        if instead is not None:
            return instead
    closer = look_closer(request, held)
    if closer is not None:
        more = yield closer
        held = replace(held, history=more.history, versions=held.versions | more.versions)
    decision = decide(request, held, now=context.now, limits=limits, policy=policy)
    if decision.writes:
        yield decision.writes
    if decision.writes.device is not None:
        held = replace(held, device=decision.writes.device[1])
    if not request.pull:
        return SyncResponse(
            head=decision.head,
            served=decision.head.cursor,
            served_stamp=decision.head.stamp,
            acks=decision.acks,
            refused=decision.refused,
            open=decision.open,
            conflicts=decision.conflicts,
        )
    return (yield from _answer(request, held, decision, limits))


def reads(request: SyncRequest) -> Reads:
    """Everything `decide` must see for this request, in one read."""
    entities = [change.entity for change in request.changes if change.entity is not None]
    edges = [edge for change in request.changes for edge in change.relationships]
    versions: list[tuple[Kind, str, str]] = [("entity", entity.id, entity.version) for entity in entities]
    for edge in edges:
        versions.append(("entity", edge.from_entity_id, edge.from_entity_version))
        versions.append(("entity", edge.to_entity_id, edge.to_entity_version))
        versions.append(("edge", edge.id, edge.version or edge_version(edge)))
    back = [edge for change in request.changes if change.offered for edge in change.relationships]
    joined = [end for edge in back for end in (edge.from_entity_id, edge.to_entity_id)]
    return Reads(
        entities=tuple(dict.fromkeys([*(entity.id for entity in entities), *joined])),
        edges=tuple({edge.id: None for edge in edges}),
        versions=tuple(dict.fromkeys(versions)),
        chains=rewind.asks(request),
        stamp=None if request.since is None else request.since + request.since_span,
        device=request.device,
        seqs=() if request.common is None else (request.common.seq,),
        events=any(change.offered for change in request.changes),
    )


def look_closer(request: SyncRequest, held: Held) -> Reads | None:
    """What else `decide` must see, because a pushed row is neither new, nor known, nor the next of its id.

    That is the whole history of an id that is contested, or that an edge names in a version which is not here, and the
    place where other content under a taken version is kept. None if nothing is, which is what most pushes come to.
    """
    heads = {id_: row.version for id_, row in held.entities.items()}
    deep: dict[str, None] = {}
    clones: list[tuple[Kind, str, str]] = []
    pushed = {(change.entity.id, change.entity.version) for change in request.changes if change.entity is not None}
    for change in in_order(request.changes):
        for edge in change.relationships:
            for id_, version in ends_of(edge):
                if ("entity", id_, version) not in held.versions and (id_, version) not in pushed:
                    deep[id_] = None
            named = edge if edge.version else replace(edge, version=edge_version(edge))
            known = held.versions.get(("edge", edge.id, named.version))
            if known is not None and known.hash != (hash_ := row_hash("edge", body_of(named))):
                clones.append(("edge", edge.id, beside(named.version, hash_)))
        entity = change.entity
        if entity is None:
            continue
        known = held.versions.get(("entity", entity.id, entity.version))
        if known is not None:
            if known.hash != (hash_ := row_hash("entity", body_of(entity))):
                clones.append(("entity", entity.id, beside(entity.version, hash_)))
            elif stands_again(request, change, entity, held.entities.get(entity.id)) and not known.current:
                deep[entity.id] = None
            continue
        if entity.id in held.entities and (change.offered or heads[entity.id] not in entity.parent_versions):
            deep[entity.id] = None
        heads[entity.id] = entity.version
    if not deep and not clones:
        return None
    return Reads(history=tuple(deep), versions=tuple(clones))


def ends_of(edge: Relationship) -> tuple[tuple[str, str], tuple[str, str]]:
    """Both ends of an edge, each an id and a version."""
    return (edge.from_entity_id, edge.from_entity_version), (edge.to_entity_id, edge.to_entity_version)


def stands_again(request: SyncRequest, change: Change, entity: Entity, current: Row | None) -> bool:
    """PROTOCOL 4.14 (g): whether a row that is held may take its place again: what stood for its id in a log that is
    gone, what its maker still waits to hear of, though somebody else has brought it already, and what anybody sends
    where nothing stands."""
    comes_back = change.offered or rewind.FEATURE in request.features or current is None
    return comes_back and ("entity", entity.id) not in change.aside


def beside(version: str, hash_: bytes) -> str:
    """PROTOCOL 4.4: the version under which other content of a taken version is kept."""
    return f"{version}#{hash_[:4].hex()}"


def stands_in(version: str, line: set[str], rows: Mapping[str, Row]) -> bool:
    """Whether a row is one of a line. One that stands again is the row that it was (PROTOCOL 4.14), however often."""
    while version not in line:
        before, mark, _ = version.rpartition("#")
        if not mark or before not in rows or version != beside(before, rows[before].hash):
            return False
        version = before
    return True


# --- the decision -------------------------------------------------------------------------------------------------


def decide(
    request: SyncRequest,
    held: Held,
    *,
    now: int,
    limits: Limits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> Decision:
    """PROTOCOL 4.4 to 4.7 and 6: what becomes of every pushed item, as one commit.

    `held` must answer `reads(request)` and, where there is one, `look_closer(request, held)`. `now` is the server's
    clock in microseconds; for stamps it is only used where it is ahead of the last one.
    """
    work = _Work(request, held, now, limits, policy)
    for change in in_order(request.changes):
        work.offered = change.offered
        if change.entity is not None:
            work.take_entity(change, change.entity)
    # PROTOCOL 4.6: entities before relationships over the whole batch.
    for change in request.changes:
        work.offered = change.offered
        for index, edge in enumerate(change.relationships):
            work.take_edge(edge, f"{change.pointer}/relationships/{index}", aside=("edge", edge.id) in change.aside)
    return work.decision()


class _Work:
    """The rows that one push adds, on top of what is held. Lives for one `decide`.

    `offered`: the change that is being taken is not its sender's; a log that is gone held it (PROTOCOL 4.14).
    """

    def __init__(self, request: SyncRequest, held: Held, now: int, limits: Limits, policy: Policy) -> None:
        self.request = request
        self.held = held
        self.now = now
        self.limits = limits
        self.policy = policy
        self.offered = False
        self.lost_after = rewind.lost_after(request, held)
        head = held.head
        self.seq, self.chain, self.stamp, self.digest = head.seq, head.chain, head.stamp, head.digest
        # No two commits within one millisecond: a client that cuts times to milliseconds cannot tell them apart.
        self.earliest = (head.stamp // MILLISECOND + 1) * MILLISECOND if head.stamp else TIME_MIN
        self.current: dict[tuple[Kind, str], Row] = {("entity", id_): row for id_, row in held.entities.items()}
        self.current.update({("edge", id_): row for id_, row in held.edges.items()})
        self.versions = dict(held.versions)
        self.rows: dict[int, Row] = {}
        self.added: dict[str, list[Row]] = {}  # of these the entities, by id
        self.lineages: dict[str, tuple[dict[str, Row], dict[str, tuple[str, ...]]]] = {}
        self.allowance = Allowance(limits.handled_bytes_max)
        self.closed: list[tuple[int, int]] = []
        self.acks: list[tuple[Kind, str, str, Outcome]] = []
        self.refused: list[Refused] = []
        self.open: set[tuple[Kind, str]] = set()
        self.conflicts: list[Conflict] = []
        self.faults: dict[str, Event] = {}  # rules that failed, by entity type

    # entities

    def take_entity(self, change: Change, entity: Entity) -> None:
        refusal = check_entity(entity, change.pointer, self.limits)
        body = body_of(entity)
        if refusal is None and len(body) > self.limits.entity_bytes_max:
            refusal = refused(entity, "too_large", change.pointer, f"a row of {len(body)} bytes")
        if refusal is not None:
            self.refuse("entity", entity.id, refusal)
            return
        hash_ = row_hash("entity", body)
        known = self.versions.get(("entity", entity.id, entity.version))
        current = self.current.get(("entity", entity.id))
        if known is not None:
            if known.hash == hash_ and stands_again(self.request, change, entity, current):
                self.stand_again(entity, hash_)
            self.seen_again(known, hash_, entity)
            return
        if ("entity", entity.id) in change.aside:
            self.add_entity(entity, body, hash_, current=False)
            self.ack("entity", entity.id, entity.version, "superseded")
            if change.offered:
                self.follow_again(entity)
        elif current is None:
            if change.delete and not entity.parent_versions and not change.offered:
                self.ack("entity", entity.id, entity.version, "noop_delete")
            else:
                self.add_entity(entity, body, hash_, current=True)
                self.ack("entity", entity.id, entity.version, "applied")
        elif current.version in entity.parent_versions or (change.offered and self.lost_after.untouched(current)):
            self.add_entity(entity, body, hash_, current=True)
            self.ack("entity", entity.id, entity.version, "fast_forward")
            if change.offered:
                self.follow_again(entity)
        elif self.allowance.spent:
            detail = "this push handles as much as one may; send it again"
            self.refuse("entity", entity.id, refused(entity, "too_much_at_once", change.pointer, detail))
        else:
            self.contest(current, entity, body, hash_)
            self.follow_again(entity)

    def seen_again(self, known: Row, hash_: bytes, entity: Entity) -> None:
        """PROTOCOL 4.4: the same row twice is one row; other content under the same version is kept beside it."""
        if known.hash == hash_:
            self.ack("entity", entity.id, entity.version, "dup")
            return
        renamed = replace(entity, version=beside(entity.version, hash_))
        if ("entity", entity.id, renamed.version) in self.versions:
            # Kept before. Still not what is current here, so its sender must be told what is.
            self.ack("entity", entity.id, entity.version, "lost_kept")
            return
        body = body_of(renamed)
        self.add_entity(renamed, body, row_hash("entity", body), current=False)
        self.lost(entity, known.version, known.version, f"{merge.VERSION_COLLISION}; kept as {clip(renamed.version)}")
        self.ack("entity", entity.id, entity.version, "lost_kept")

    def stand_again(self, entity: Entity, hash_: bytes) -> None:
        """PROTOCOL 4.14: what stood for its id came back before what it had taken the place of, and lost to something
        else; then it stands again, under another version, since a row is never changed."""
        current = self.current.get(("entity", entity.id))
        rows, parents = self.lineage(entity.id)
        again = replace(entity, version=beside(entity.version, hash_))
        before = merge.ancestors(entity.parent_versions, parents)
        if again.version not in rows and (current is None or stands_in(current.version, before, rows)):
            body = body_of(again)
            self.add_entity(again, body, row_hash("entity", body), current=True)

    def follow_again(self, entity: Entity) -> None:
        """PROTOCOL 4.14 (g): if a row stands now that comes late, or follows what does, then what was pushed on top of
        it before had only lost because it was not there, and stands again."""
        current = self.current.get(("entity", entity.id))
        if current is None:
            return
        rows, parents = self.lineage(entity.id)
        self.allowance.spend(VISIT_BYTES * len(rows))
        if not stands_in(current.version, merge.ancestors((entity.version,), parents), rows):
            return
        line, newest = {entity.version}, None
        for row in rows.values():
            if not line.isdisjoint(parents[row.version]):
                line.add(row.version)
                newest = newest if row.via else row  # who offers a row says whether it stood
        if newest is not None:
            self.stand_again(newest.entity(), newest.hash)

    def contest(self, current: Row, entity: Entity, body: bytes, hash_: bytes) -> None:
        """PROTOCOL 6: the pushed row does not name the current one among its parents."""
        rows, parents = self.lineage(entity.id)
        over_current = merge.ancestors((current.version,), parents)
        over_entity = merge.ancestors(entity.parent_versions, parents)
        self.allowance.spend(len(current.body) + len(body) + VISIT_BYTES * (len(over_current) + len(over_entity)))
        if entity.version in over_current:
            # A row that arrives after its own descendant: known to have been superseded, nothing is lost.
            self.add_entity(entity, body, hash_, current=False)
            self.ack("entity", entity.id, entity.version, "superseded")
            return
        if stands_in(current.version, over_entity, rows) or self.follows_unseen(current, entity, over_entity, rows):
            self.add_entity(entity, body, hash_, current=True)
            self.ack("entity", entity.id, entity.version, "fast_forward")
            return
        mine = current.entity()
        here = side_of(current)
        edit, timed = self.arrival(entity.version)
        there = merge.Side(version=entity.version, edit=edit, timed=timed)
        deleted = says_deleted(entity.content)
        if merge.alike(mine, entity) or (deleted and current.deleted):
            # Both made the same change: nobody loses anything. But what comes back may be told before rows that it
            # descends from, which follow on the current one, and would take its place if the later was only kept.
            again = self.offered and later(here, there)[0]
            self.add_entity(entity, body, hash_, current=again)
            self.ack("entity", entity.id, entity.version, "applied" if again else "superseded")
            return
        if deleted != current.deleted:
            # PROTOCOL 6.2: only an edit that names the tombstone brings the entity back.
            row = self.add_entity(entity, body, hash_, current=deleted)
            winner = row.version if deleted else current.version
            self.lost(entity, current.version, winner, merge.TOMBSTONE_WINS)
            self.ack("entity", entity.id, entity.version, "applied" if deleted else "lost_kept")
            return
        if mine.entity_type in self.policy.rules and self.rule(
            over_entity, over_current, current, mine, entity, body, hash_, here, there
        ):
            return
        base = merge.merge_base(over_entity, rows, parents) if self.policy.three_way else None
        if base is not None:
            self.merge(base, current, mine, entity, body, hash_, here, there)
            return
        remote_wins, reason = later(here, there)
        self.add_entity(entity, body, hash_, current=remote_wins)
        self.lost(entity, current.version, entity.version if remote_wins else current.version, reason)
        self.ack("entity", entity.id, entity.version, "applied" if remote_wins else "lost_kept")

    def follows_unseen(self, current: Row, entity: Entity, above: set[str], rows: dict[str, Row]) -> bool:
        """PROTOCOL 6.1: whether a peer that had been told the current row sends only the last of its edits since."""
        request = self.request
        if request.features or not entity.parent_versions or current.deleted or not above.isdisjoint(rows):
            return False
        # What this log told last may not have arrived; where the peer says that it stands, it does.
        says = request.cursor or request.after or request.since
        return says is not None and current.seq <= start_of(request, self.held)[0]

    def lineage(self, id_: str) -> tuple[dict[str, Row], dict[str, tuple[str, ...]]]:
        """The rows of a contested id by version, and the parents of each. Kept up by `add_entity`."""
        if id_ not in self.lineages:
            rows = {row.version: row for row in [*self.held.history.get(id_, ()), *self.added.get(id_, ())]}
            self.lineages[id_] = rows, {version: row.entity().parent_versions for version, row in rows.items()}
        return self.lineages[id_]

    def rule(
        self,
        above: set[str],
        line: set[str],
        current: Row,
        mine: Entity,
        entity: Entity,
        body: bytes,
        hash_: bytes,
        here: merge.Side,
        there: merge.Side,
    ) -> bool:
        """PROTOCOL 6.8: whether the rule of the type settled it, or left it to a person."""
        rows, parents = self.lineage(entity.id)
        base = merge.shared(above, line, rows, parents)
        if merge.nothing_new(entity, above, base, rows, parents):
            self.add_entity(entity, body, hash_, current=False)
            self.ack("entity", entity.id, entity.version, "superseded")
            return True
        began = None if base is None else base.entity()
        most = self.limits.entity_bytes_max
        ruling = merge.ruled(self.policy, began, mine, entity, here=here, there=there, bytes_max=most)
        if ruling.fault:
            told: dict[str, str | int] = {"entity_type": clip(mine.entity_type), "error": clip(ruling.fault)}
            self.faults[mine.entity_type] = Event(kind="rule_failed", key=mine.entity_type, at=self.now, told=told)
        if ruling.verdict is merge.Verdict.PASS:
            return False
        self.add_entity(entity, body, hash_, current=False)
        if ruling.entity is not None:
            self.lost(entity, current.version, self.join(ruling.entity, here, there), merge.BY_RULE)
            kept_nothing = merge.alike(ruling.entity, mine)
            self.ack("entity", entity.id, entity.version, "lost_kept" if kept_nothing else "merged")
        else:
            self.lost(entity, current.version, current.version, merge.FOR_REVIEW)
            self.ack("entity", entity.id, entity.version, "lost_kept")
        return True

    def join(self, entity: Entity, here: merge.Side, there: merge.Side) -> str:
        """PROTOCOL 6.6: add the row in which two become one; its version."""
        body = body_of(entity)
        while entity.version in self.lineage(entity.id)[0]:
            # Anybody can tell what a merge will be called, and have pushed a row under that name.
            entity = replace(entity, version=beside(entity.version, row_hash("entity", body)))
            body = body_of(entity)
        self.allowance.spend(len(body))
        edit = max(here.edit, there.edit)
        # A v1 client takes a row only if it is newer than what it holds, which may be the row just merged.
        self.add_entity(entity, body, row_hash("entity", body), current=True, edit=edit, above=edit)
        return entity.version

    def merge(
        self,
        base: Row,
        current: Row,
        mine: Entity,
        entity: Entity,
        body: bytes,
        hash_: bytes,
        here: merge.Side,
        there: merge.Side,
    ) -> None:
        merged = merge.three_way(base.entity(), mine, entity, here=here, there=there)
        self.allowance.spend(len(base.body))
        self.add_entity(entity, body, hash_, current=False)
        resolved = current.version if merge.alike(merged.entity, mine) else self.join(merged.entity, here, there)
        if merged.contested:
            _, reason = later(here, there)
            self.lost(entity, current.version, resolved, f"merged by field; {reason}")
            kept_nothing = resolved == current.version
            self.ack("entity", entity.id, entity.version, "lost_kept" if kept_nothing else "merged")
        else:
            self.ack("entity", entity.id, entity.version, "merged")

    def add_entity(
        self,
        entity: Entity,
        body: bytes,
        hash_: bytes,
        *,
        current: bool,
        edit: int | None = None,
        above: int = TIME_MIN,
    ) -> Row:
        timed, via = True, ""
        if edit is None:
            edit, timed = self.arrival(entity.version, alone=("entity", entity.id) not in self.current)
            via = self.request.device if self.offered else ""
        row = self.add(
            "entity",
            entity.id,
            entity.version,
            body,
            hash_,
            current=current,
            edit=edit,
            timed=timed,
            above=above,
            deleted=says_deleted(entity.content),
            type_=entity.entity_type,
            user=entity.user_id,
            via=via,
        )
        self.added.setdefault(entity.id, []).append(row)
        if entity.id in self.lineages:
            rows, parents = self.lineages[entity.id]
            rows[row.version], parents[row.version] = row, entity.parent_versions
        return row

    # edges

    def take_edge(self, edge: Relationship, pointer: str, *, aside: bool) -> None:
        """PROTOCOL 3.5: every value of an edge is kept, the last one committed is current unless it is put `aside`."""
        refusal = check_edge(edge, pointer, self.limits)
        if refusal is not None:
            self.refuse("edge", edge.id, refusal)
            return
        named = edge if edge.version else replace(edge, version=edge_version(edge))
        body = body_of(named)
        hash_ = row_hash("edge", body)
        known = self.versions.get(("edge", named.id, named.version))
        if known is not None and known.hash == hash_:
            self.ack("edge", named.id, edge.version, "dup")
            return
        for (id_, version), field in zip(ends_of(named), ("from_entity_id", "to_entity_id"), strict=True):
            if not self.is_known(id_, version):
                # PROTOCOL 3.5: not stored and not acknowledged, so that the client sends it again.
                detail = "the endpoint's row is not stored here yet; send the edge again when it is"
                self.refuse("edge", edge.id, refused(edge, "unknown_endpoint", f"{pointer}/{field}", detail))
                return
        if known is not None:
            named = replace(named, version=beside(named.version, hash_))
            if ("edge", named.id, named.version) in self.versions:
                self.ack("edge", named.id, edge.version, "lost_kept")
                return
            body = body_of(named)
            hash_ = row_hash("edge", body)
        current = self.current.get(("edge", named.id))
        edit, timed = self.arrival(named.version, alone=current is None)
        if self.offered and current is not None and not self.lost_after.untouched(current):
            # PROTOCOL 4.14: the order of commits would let it take the place of what was written since.
            aside = aside or not later(side_of(current), merge.Side(version=named.version, edit=edit, timed=timed))[0]
        outcome: Outcome = "lost_kept" if known is not None else "superseded" if aside else "applied"
        self.add(
            "edge",
            named.id,
            named.version,
            body,
            hash_,
            # Other content under a version that is taken is kept, but it does not replace what came first.
            current=outcome == "applied",
            edit=edit,
            timed=timed,
            deleted=says_deleted(named.properties),
            type_=named.relationship_type,
            user=named.user_id,
            from_id=named.from_entity_id,
            to_id=named.to_entity_id,
            via=self.request.device if self.offered else "",
        )
        self.ack("edge", named.id, edge.version, outcome)

    def is_known(self, id_: str, version: str) -> bool:
        """PROTOCOL 3.5: whether an edge may name this row as its end."""
        if ("entity", id_, version) in self.versions:
            return True
        if self.offered:
            # The row at the end of an edge that comes back may be one that nobody holds any more (4.14).
            return ("entity", id_) in self.current
        # Deployed clients send only the last of several edits, and the edges that were made in between as they were.
        _, parents = self.lineage(id_)
        return any(version in above for above in parents.values())

    # rows

    def arrival(self, version: str, *, alone: bool = False) -> tuple[int, bool]:
        """The edit time that counts for the row that is being taken, `alone` if nothing is current in its place."""
        if self.offered:
            return self.lost_after.arrival(version, self.now, alone=alone)
        return merge.arrival(version, self.now)

    def add(
        self,
        kind: Kind,
        id_: str,
        version: str,
        body: bytes,
        hash_: bytes,
        *,
        current: bool,
        edit: int,
        timed: bool,
        deleted: bool,
        type_: str,
        user: str,
        from_id: str = "",
        to_id: str = "",
        via: str = "",
        above: int = TIME_MIN,
    ) -> Row:
        """PROTOCOL 4.1, 4.2: the next line of the log. The only place that orders anything."""
        self.seq += 1
        # The wall clock may stand still or step back; stamps never do. Between two commits they leave one out, so that
        # stamp less seq is one number for the rows of a commit, and greater in the next.
        self.stamp = max(self.now, self.stamp + (1 if self.rows else 2), self.earliest)
        self.chain = next_chain(self.chain, hash_)
        before = self.current.get((kind, id_))
        row = Row(
            kind=kind,
            id=id_,
            version=version,
            seq=self.seq,
            until=None if current else self.seq,
            stamp=self.stamp,
            edit=edit,
            timed=timed,
            # Not by one alone: a time made of this and of the rises of other rows must rise with each of them.
            rise=edit if before is None else max(edit, before.rise + self.seq - before.seq, above + 1),
            born=edit if before is None else before.born,
            deleted=deleted,
            entity_type=type_,
            user_id=user,
            from_id=from_id,
            to_id=to_id,
            via=via,
            hash=hash_,
            chain=self.chain,
            body=body,
        )
        self.rows[row.seq] = row
        self.versions[kind, id_, version] = row
        if current:
            if before is not None:
                self.close(before)
            self.current[kind, id_] = row
            self.digest = digest_change(self.digest, gone=before.hash if before else None, come=hash_)
        return row

    def close(self, row: Row) -> None:
        if row.seq in self.rows:
            closed = replace(row, until=self.seq)
            self.rows[row.seq] = closed
            self.versions[row.kind, row.id, row.version] = closed
        else:
            self.closed.append((row.seq, self.seq))

    # answers

    def ack(self, kind: Kind, id_: str, version: str, outcome: Outcome) -> None:
        self.acks.append((kind, id_, version, outcome))

    def refuse(self, kind: Kind, id_: str, refusal: Refused) -> None:
        self.refused.append(refusal)
        self.open.add((kind, id_))

    def lost(self, entity: Entity, local: str, resolved: str, reason: str) -> None:
        self.conflicts.append(
            Conflict(
                entity_id=entity.id,
                local_version=local,
                remote_version=entity.version,
                resolution_strategy=reason,
                resolved_version=resolved,
            )
        )

    def decision(self) -> Decision:
        head = Head(epoch=self.held.head.epoch, seq=self.seq, chain=self.chain, stamp=self.stamp, digest=self.digest)
        device = None
        before, mark = self.held.device, self.request.ack
        # An ack that comes late, or twice, must not confirm an answer given after it.
        if mark is not None:
            before = before or Device()
            if mark > before.mark:
                acked = before.acked if before.served == CONFIRMED else before.served
                device = (self.request.device, replace(before, served=CONFIRMED, acked=acked, mark=mark))
        counted, events = rewind.counted(self.request, before or Device(), self.now)
        forked = bool(events)
        if counted is not None:
            device = (self.request.device, counted)
        events += tuple(self.faults.values())
        came_back = sum(row.via != "" for row in self.rows.values())
        if came_back:
            events += (rewind.offers(self.request, head, came_back, self.held.events, self.now),)
        acks = []
        for kind, id_, version, outcome in self.acks:
            now = self.current.get((kind, id_))
            acks.append(Ack(kind=kind, id=id_, version=version, outcome=outcome, head=now.version if now else None))
        return Decision(
            writes=Writes(
                rows=tuple(self.rows.values()),
                closed=tuple(self.closed),
                head=head if self.rows else None,
                device=device,
                events=events,
            ),
            head=head,
            device_forked=forked,
            acks=tuple(acks),
            refused=tuple(self.refused),
            open=frozenset(self.open),
            conflicts=tuple(self.conflicts),
            current=self.current,
            versions=self.versions,
        )


# --- the answer ---------------------------------------------------------------------------------------------------


def start_of(request: SyncRequest, held: Held) -> tuple[int, bool]:
    """PROTOCOL 4.3: the seq after which the peer lacks rows, and whether its cursor is not of this log."""
    head = held.head
    cursor = request.cursor
    if cursor is not None:
        # Without a witness nothing but the epoch tells a peer that what it holds may be lost here.
        same = cursor.epoch == head.epoch or rewind.FEATURE in request.features
        return (cursor.seq, False) if same and rewind.holds(held, cursor) else (0, True)
    if request.after is not None:
        return (request.after, False) if request.after <= min(head.seq, SEQ_MAX) else (0, True)
    if request.full:
        return 0, False
    if request.since is not None:
        # A time that this log has not reached yet is of another history: answered as if it were absent.
        return (held.stamp_seq, False) if request.since <= head.stamp else (0, False)
    if request.changes and held.device is not None:
        return min(max(held.device.served, held.device.acked), head.seq), False
    return 0, False


def _answer(request: SyncRequest, held: Held, decision: Decision, limits: Limits) -> Plan[SyncResponse]:
    """PROTOCOL 4.3, 4.9: what the peer lacks, in commit order, whole unless the peer can page."""
    head = decision.head
    after, resync = start_of(request, held)
    span = span_of(request, after, held.head.seq, limits)
    # What this request wrote is at hand already, and nobody else wrote since `held` was read.
    old = yield Reads(span=span, seqs=request.want)
    found = old.span
    paging = "paging" in request.features
    rows = list(fitting(found, limits.page_bytes_max) if paging else found)
    full = len(rows) < len(found) or not ends(found, span)
    more = paging and full and rows[-1].seq < head.seq
    served = Cursor(head.epoch, rows[-1].seq, rows[-1].chain) if more else head.cursor
    served_stamp = rows[-1].stamp if more else head.stamp
    if request.skip:
        rows = [row for row in rows if not rewind.skipped(row.seq, request.skip)]
    told = {row.seq for row in rows}
    rows += [row for row in old.seqs.values() if row.current and row.seq not in told]
    unread = None
    if full and not paging:
        # Too much to be held at once: it is read while it is told, which is not before this is committed.
        unread = Unread(
            after=after,
            sent=_sent(request, decision),
            alone=bool(request.features),
            entity_types=request.entity_types,
            modified_by=request.modified_by,
        )
        rows = []
    elif not more:
        rows += [row for row in decision.writes.rows if row.current]
    # PROTOCOL 4.5: whoever pushed learns what is current now for everything it named.
    listed = {(row.kind, row.id) for row in rows}
    named = dict.fromkeys((ack.kind, ack.id) for ack in decision.acks)
    also = [decision.current[key] for key in named if key not in listed and key in decision.current]
    rows += also if unread is None else [row for row in also if row.seq <= after]
    filters = request.entity_types, request.modified_by
    carriers: dict[str, Row] = {}
    if not request.features or filters != (None, None):
        carriers = yield from carriers_of(rows)
    rows = filtered(rows if request.features else carried(rows, carriers), carriers, *filters)
    sent = _sent(request, decision)
    rows = [row for row in rows if (row.kind, row.id, row.version) not in sent]
    device = held.device or Device()
    if served.seq != device.served:
        yield Writes(device=(request.device, replace(device, served=served.seq)))
    return SyncResponse(
        head=head,
        served=served,
        served_stamp=served_stamp,
        unread=unread,
        rows=tuple(rows),
        # PROTOCOL 3.5: an edge travels with its `from` entity; deployed clients choke on a change without an entity.
        carriers={} if request.features else carriers,
        more=more,
        resync=resync,
        acks=decision.acks,
        taken=rewind.taken(request, decision.acks, decision.versions) if rewind.FEATURE in request.features else {},
        refused=decision.refused,
        open=decision.open,
        conflicts=decision.conflicts,
        device_forked=decision.device_forked,
    )


def _sent(request: SyncRequest, decision: Decision) -> frozenset[tuple[Kind, str, str]]:
    """What a peer with features sent just now, and what was taken to the letter: it holds that."""
    if not request.features:
        return frozenset()
    return frozenset((ack.kind, ack.id, ack.version) for ack in decision.acks if ack.outcome != "lost_kept")
