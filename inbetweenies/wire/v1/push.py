"""A push of v1 records: what each of them changes in the graph (up), and how that is told (down).

What a client knew when it made an edit is worked out here (PROTOCOL 8.13); what the edit then changes is `lens.apply`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any, Final

from msgspec import UNSET, Struct
from msgspec.structs import replace

from ...limits import VISIT_BYTES, Allowance, Limits, canonical
from ...model import (
    TIME_MIN,
    Change,
    Context,
    Kind,
    Plan,
    Reads,
    Row,
    SyncRequest,
    SyncResponse,
    edit_time,
    format_time,
    says_deleted,
)
from .codec import (
    ANONYMOUS,
    LINKS,
    SHAPES,
    UNTOLD,
    Applied,
    Item,
    Problem,
    Push,
    PushConflict,
    RefusedChange,
    SyncResult,
    Turn,
)
from .graph import Graph, is_bridge, read_above, said
from .lens import (
    Draft,
    Edit,
    Known,
    Made,
    Path,
    apply,
    edge_id,
    fields_of,
    link_of,
    nested_of,
    objects,
    record_of,
    risen,
    says,
    token_of,
)

_TOKEN: Final = re.compile(r"([0-9]{13,16})-([0-9a-f]{16})")
# Of the versions that a client's edits get: what stands before and after who made them.
_PREFIX: Final = r"(?:[0-9T:.+-]{32}|v1-[0-9a-f]{12})"
_SUFFIX: Final = r"(?:\.v[0-9a-f]{12})?"


class _Job(Struct, kw_only=True):
    """One item on its way up: where its record stands, and what has been found out about it so far.

    Attributes:
        seen_at: the seq that its `sync_id` names, 0 if that names none.
        version: of the row or the edges that it makes.
        held: that row, if it is stored already.
        own: the rows that its client pushed since `seen_at` and before it, in the order in which it made them.
        said: what its client last said of a link in such a push.
        unsaid: links of which its client has said something else since.
        first: the seq of the first row that its client pushed since `seen_at`, 0 if there is none.
        settled: links that were dealt with when the same edit came before.
        served: whether it is the record as it was served, and claims nothing.
    """

    index: int
    item: Item
    entity_id: str
    path: Path
    seen_at: int = 0
    version: str = ""
    held: Row | None = None
    own: tuple[Row, ...] = ()
    said: dict[str, str | None] = {}
    unsaid: frozenset[str] = frozenset()
    first: int = 0
    settled: frozenset[str] = frozenset()
    served: bool = False

    @property
    def links(self) -> tuple[str, ...]:
        """The links that it says something about."""
        if self.path or self.item.delete:
            return ()
        return tuple(link for link in LINKS if link in self.item.fields)

    def follows(self, row: Row) -> bool:
        """Whether it was made when its client had made `row` already, by the client's own clock, where both say so."""
        made = edit_time(row.version)
        return made is None or self.item.edit is None or made < self.item.edit

    def basis(self, acked: int) -> int:
        """The seq at which its client knew the record, apart from what it pushed itself; 0 if it knew none.

        Without a token it never pulled the record: if it pushed it, that is all it knew, as the record stood when it
        first did. A delete says nothing of what was known, and what was acknowledged is the newest that can have been.
        """
        if self.seen_at or self.item.delete or not self.first:
            return self.seen_at or acked
        return self.own[0].seq if self.own else 0


def device_key(context: Context, client: str) -> str:
    """The name under which a store remembers a v1 client: its own is only a label, so the token goes with it."""
    return f"v1:{context.token}:{client}"


class _Writer:
    """Who pushes: the versions of its edits, and which rows are its own (PROTOCOL 8.14)."""

    def __init__(self, client: str, user: str) -> None:
        self.client = client
        self.user = user[:64]
        mark = f"-{_digits(client)}-{self.user}"
        # Clients without a name are many, and must not be taken for one.
        self.mark = None if client == ANONYMOUS else mark
        self._own = re.compile(_PREFIX + re.escape(mark) + _SUFFIX)

    def owns(self, row: Row) -> bool:
        """Whether this client pushed a row."""
        return self.mark is not None and self._own.fullmatch(row.version) is not None

    def version(self, job: _Job, current: Row | None, attempt: int) -> str:
        """The version of an edit: its time, who made it, and nothing that changes when the same is sent again."""
        item = job.item
        seed = (self.client, item.type, item.id, item.delete, item.fields, attempt)
        mark = self.mark or f"-{_digits(*seed)}-{self.user}"
        if item.edit is None:
            # Without a time, two deletes of one id look the same; what they delete does not.
            return f"v1-{_hash(*seed, current.version if current is not None else None)}{mark}"
        return format_time(item.edit) + mark + (f".v{_hash(*seed)}" if attempt else "")


def _digits(*seed: Any) -> str:
    return f"{int(_hash(*seed), 16) % 10**6:06d}"


def _hash(*seed: Any) -> str:
    return blake2b(canonical(seed), digest_size=6).hexdigest()


# --- up -----------------------------------------------------------------------------------------------------------


def up(push: Push, context: Context, limits: Limits) -> Plan[SyncRequest]:
    """PROTOCOL 8.4: the rows that the items of a push mean. Leaves in `push.turns` what became of each item."""
    key = device_key(context, push.client)
    jobs = yield from _located(push.items)
    tokens = {job.index: _token(job.item.token) for job in jobs}
    held = yield Reads(device=key, chains=tuple(sorted({seq for seq, _ in tokens.values() if seq})))
    for job in jobs:
        seq, chain = tokens[job.index]
        job.seen_at = seq if held.chains.get(seq, b"").hex()[:16] == chain else 0
    acked = min(held.device.acked, held.head.seq) if held.device else 0

    targets = (job.item.fields[link] for job in jobs for link in job.links)
    ids = dict.fromkeys([*(job.entity_id for job in jobs), *(id_ for id_ in targets if id_ is not None)])
    graph = yield from read_above(ids, held.head)
    untold = Turn(problem=UNTOLD.problem)
    turns = [untold if item is UNTOLD else Turn(problem=item.problem or _nowhere(item)) for item in push.items]
    jobs = _affordable(jobs, graph, turns, limits)
    writer = _Writer(push.client, context.user)
    yield from _named(jobs, graph, writer)
    yield from _settled(jobs, graph, context.graph)
    jobs = yield from _pushed(jobs, graph, writer, context.graph, turns, limits)
    graphs = yield from _graphs(jobs, graph, acked, limits)

    draft = Draft(_coming(jobs, graph))
    changes: list[Change] = []
    allowance = Allowance(limits.handled_bytes_max)
    for job in jobs:
        seq = job.basis(acked)
        if allowance.spent or (seq and seq not in graphs and job.entity_id in graph.entities):
            turns[job.index] = _too_much(job)
            continue
        known = _known(job, graph, graphs.get(seq))
        edit, made = _made(job, known, graph, draft, context)
        draft.add(edit, made)
        change = _aside(job, edit, known, made, draft)
        if change is not None:
            changes.append(change)
            allowance.spend(len(change.entity.content) if change.entity is not None else 0)
        turns[job.index] = _turn(job, change, made)
    push.turns = tuple(turns)
    return SyncRequest(device=key, user=context.user, changes=tuple(changes), pull=False)


def _located(items: Sequence[Item]) -> Plan[list[_Job]]:
    """The items that can be taken, each with the entity that holds its record.

    A characteristic only names its service, and a delete need not even do that: then the devices are looked through.
    """
    fit = [(index, item) for index, item in enumerate(items) if item.problem is None]
    pushed = {item.id: item.fields["accessory_id"] for _, item in fit if "accessory_id" in item.fields}
    places = {index: _place(item, pushed) for index, item in fit}
    if None in places.values():
        held = yield Reads(types=("device",))
        services, characteristics = _index(held.types)
        for index, item in fit:
            if places[index] is None:
                service = item.fields.get("service_id")
                if item.type == "service":
                    places[index] = services.get(item.id)
                elif service is None:
                    places[index] = characteristics.get(item.id)
                elif service in services:
                    device, path = services[service]
                    places[index] = (device, (*path, "characteristics", item.id))
    return [
        _Job(index=index, item=item, entity_id=place[0], path=place[1])
        for index, item in fit
        if (place := places[index]) is not None
    ]


def _place(item: Item, pushed: dict[Any, str]) -> tuple[str, Path] | None:
    """Where an item's record stands, as far as the push itself tells; `pushed` are the services in it."""
    if not SHAPES[item.type].nested:
        return item.id, ()
    service = item.id if item.type == "service" else item.fields.get("service_id")
    device = item.fields.get("accessory_id", pushed.get(service))
    if device is None:
        return None
    path: Path = ("services", str(service))
    return device, path if item.type == "service" else (*path, "characteristics", item.id)


def _index(devices: Iterable[Row]) -> tuple[dict[str, tuple[str, Path]], dict[str, tuple[str, Path]]]:
    """Where services and characteristics stand, by their ids; of two that share one, in the older device."""
    services: dict[str, tuple[str, Path]] = {}
    characteristics: dict[str, tuple[str, Path]] = {}
    for row in sorted(devices, key=lambda row: (row.born, row.id)):
        if row.deleted:
            continue
        for service, content in objects(said(row)[1].get("services")):
            services.setdefault(service, (row.id, ("services", service)))
            for id_, _ in objects(content.get("characteristics")):
                characteristics.setdefault(id_, (row.id, ("services", service, "characteristics", id_)))
    return services, characteristics


def _nowhere(item: Item) -> Problem | None:
    """Why a nested item that could not be located is refused. One that is to be deleted is already gone."""
    if item.problem is not None or item.delete or not SHAPES[item.type].nested:
        return None
    link = SHAPES[item.type].links[0]
    detail = f"expected the id of {'a device' if link == 'accessory_id' else 'a service'} that is known here"
    return Problem(code="unknown_reference", pointer=f"{item.pointer}/data/{link}", detail=detail)


def _affordable(jobs: list[_Job], graph: Graph, turns: list[Turn], limits: Limits) -> list[_Job]:
    """The jobs that can be done at once, for each handles a whole row and all its edges; the rest is refused."""
    allowance = Allowance(limits.handled_bytes_max)
    done = []
    for job in jobs:
        if allowance.spent:
            turns[job.index] = _too_much(job)
            continue
        row = graph.entities.get(job.entity_id)
        rows = [*graph.edges.get(job.entity_id, ()), *([] if row is None else [row])]
        allowance.spend(sum(len(each.body) for each in rows))
        done.append(job)
    return done


def _too_much(job: _Job) -> Turn:
    detail = "this push handles as much as one may; send it again"
    return Turn(problem=Problem(code="too_much_at_once", pointer=job.item.pointer, detail=detail))


def _token(text: str | None) -> tuple[int, str]:
    """Seq and chain of a `sync_id` of ours; those of other servers name nothing here."""
    match = _TOKEN.fullmatch(text or "")
    return (int(match[1]), match[2]) if match else (0, "")


# --- up: what the client knew -------------------------------------------------------------------------------------


def _pushed(
    jobs: list[_Job], graph: Graph, writer: _Writer, name: str, turns: list[Turn], limits: Limits
) -> Plan[list[_Job]]:
    """Find what the client of each job pushed of its record since the state that its token names.

    Only what it pushed before counts as known: a push may be late, or come again after newer ones. Each job looks
    through a whole history; of the jobs for which that is too much in one push, none goes on.
    """
    rows: dict[str, None] = {}
    edges: dict[int, tuple[str, ...]] = {}
    for job in jobs:
        row = graph.entities.get(job.entity_id)
        if row is not None and row.seq > job.seen_at:
            rows[job.entity_id] = None
        leaving = graph.edges.get(job.entity_id, ())
        if any(edge.seq > job.seen_at for edge in leaving):
            made = (edge_id(name, job.entity_id, link) for link in job.links)
            edges[job.index] = tuple(dict.fromkeys([*(edge.id for edge in leaving), *made])) if job.links else ()
            rows[job.entity_id] = None  # with each move came a row that tells what it was made from
    wanted = tuple(dict.fromkeys(id_ for ids in edges.values() for id_ in ids))
    if not rows and not wanted:
        return jobs
    held = yield Reads(history=tuple(rows), edge_history=wanted)
    allowance = Allowance(limits.handled_bytes_max)
    done = []
    for job in jobs:
        if allowance.spent:
            turns[job.index] = _too_much(job)
            continue
        done.append(job)
        looked_at = len(held.history.get(job.entity_id, ()))
        looked_at += sum(len(held.edge_history.get(id_, ())) for id_ in edges.get(job.index, ()))
        allowance.spend(VISIT_BYTES * looked_at)
        history = held.history.get(job.entity_id, ())
        own = [row for row in history if row.seq > job.seen_at and writer.owns(row)]
        job.first = own[0].seq if own else 0
        forgotten = _forgotten(own, history, job.seen_at) if job.seen_at else frozenset()
        job.own = tuple(_as_made(row for row in own if job.follows(row) and row.version not in forgotten))
        moves = [row for id_ in edges.get(job.index, ()) for row in held.edge_history.get(id_, ()) if writer.owns(row)]
        moves = [row for row in moves if row.seq > job.seen_at]
        before = [row for row in moves if job.follows(row) and row.version not in forgotten]
        before.sort(key=lambda row: row.seq)
        job.said = _ends(_as_made(before))
        # As with `_last`: what came last and what was made last may be two, and this may be built on either.
        job.said.update((link, end) for link, end in _ends(before).items() if end == job.item.fields.get(link))
        job.unsaid = frozenset(_link(row) for row in moves if not job.follows(row) and row.version != job.version)
    return done


def _forgotten(own: Iterable[Row], history: Sequence[Row], seen_at: int) -> frozenset[str]:
    """Of the rows that a client pushed, those of which it knows no more since it took the record of `seen_at` over its
    own: they were made from an older one, and only came after it."""
    then = max((row.seq for row in history if row.seq <= seen_at and row.until != row.seq), default=0)
    seqs = {row.version: row.seq for row in history}
    forgotten: dict[str, bool] = {}
    for row in own:
        base = next(iter(row.entity().parent_versions), "")
        # What it made from its own is known or forgotten with that.
        forgotten[row.version] = forgotten.get(base, seqs.get(base, 0) < then)
    return frozenset(version for version, gone in forgotten.items() if gone)


def _as_made(rows: Iterable[Row]) -> list[Row]:
    """Rows of one client in the order in which it made them, by its own clock.

    What does not say when it was made, as a delete need not, was made after all that came before it.
    """
    made: dict[int, int] = {}
    newest = TIME_MIN
    ordered = sorted(rows, key=lambda row: row.seq)
    for row in ordered:
        time = edit_time(row.version)
        made[row.seq] = newest if time is None else time
        newest = max(newest, made[row.seq])
    return sorted(ordered, key=lambda row: made[row.seq])


def _ends(edges: Iterable[Row]) -> dict[str, str | None]:
    """What a client said last of each link with these edges."""
    return {_link(edge): None if edge.deleted else edge.to_id for edge in edges}


def _link(edge: Row) -> str:
    """The link that a client changed when it made an edge."""
    return "bridge_id" if is_bridge(edge) else "home_id"


def _graphs(jobs: Iterable[_Job], graph: Graph, acked: int, limits: Limits) -> Plan[dict[int, Graph]]:
    """The graphs as the jobs' clients knew them; as many as one push may read."""
    wanted: dict[int, dict[str, None]] = {}
    for job in jobs:
        if job.entity_id in graph.entities:
            wanted.setdefault(job.basis(acked), {})[job.entity_id] = None
    graphs = {graph.head.seq: graph}
    allowance = Allowance(limits.handled_bytes_max)
    for seq, ids in wanted.items():
        if seq and seq not in graphs and not allowance.spent:
            graphs[seq] = yield from read_above(ids, graph.head, as_of=seq)
            allowance.spend(sum(len(row.body) for row in graphs[seq].entities.values()))
    return graphs


def _known(job: _Job, graph: Graph, then: Graph | None) -> Known:
    """PROTOCOL 8.13: what the client had before it when it made its edit.

    Its own last push of the record, if that is newer than what its token names: a client keeps its token until it
    pulls the record again, so a setting that it switches there and back would otherwise look untouched. Else the
    record as its token names it; else as of its last ack. An older state than the true one is safe, for what is equal
    on both sides is no edit; a newer one would undo what others wrote.
    """
    current = graph.entities.get(job.entity_id)
    if current is None:
        return Known()
    before = then.entities.get(job.entity_id) if then is not None else None
    job.served = bool(job.seen_at) and then is not None and before is not None and _is_served(job, then, before)
    own, said_links = (None, {}) if job.served else (_last(job), job.said)
    base = own or before
    if job.item.delete and base is not None and before is not None:
        # A delete need not say what it knew; it undoes nothing of what it did not know.
        base = max(base, before, key=lambda row: row.seq)
    named = base is not None
    base = base or current
    fields = fields_of(SHAPES[job.item.type], *said(base), job.path)
    if fields is not None and not job.path:
        # Who was shown no record says with all of it how it is to be now, and knows that from then on.
        unseen = job.item.token is None and (before is None or before.deleted)
        seen = graph if then is None or before is None or unseen else then
        for link in SHAPES[job.item.type].links:
            fields[link] = link_of(seen, job.entity_id, link)
        if "home_id" in fields and unseen:
            # Nor was it shown a placeholder: to say where a thing is, as it does, is an edit.
            fields["home_id"] = seen.ways.get(job.entity_id)
        fields.update(said_links)
    return Known(fields=fields, base=base.entity(), named=named)


def _last(job: _Job) -> Row | None:
    """What the client of a job last pushed before it; None if nothing.

    What came last and what was made last are two rows if one was late or the client's clock was set back. Which of
    these it was cannot be told, but hardly anybody changes much at once: it is the one that the job is closer to.
    """
    if not job.own:
        return None
    made, came = job.own[-1], max(job.own, key=lambda row: row.seq)
    return made if made is came else min(made, came, key=lambda row: _distance(job, row))


def _distance(job: _Job, row: Row) -> int:
    """How many fields a job has other than `row` shows."""
    shown = fields_of(SHAPES[job.item.type], *said(row), job.path) or {}
    return sum(shown.get(field) != value for field, value in job.item.fields.items() if field not in LINKS)


def _is_served(job: _Job, graph: Graph, row: Row) -> bool:
    """Whether a job is the record as it was served; a person who changes something sets another time, or nearly so."""
    if job.item.delete or job.item.edit != (row.rise if job.path else risen(graph, row)) or _distance(job, row):
        return False
    return all(job.item.fields[link] == link_of(graph, job.entity_id, link) for link in job.links)


# --- up: versions -------------------------------------------------------------------------------------------------


def _named(jobs: Iterable[_Job], graph: Graph, writer: _Writer) -> Plan[None]:
    """Give each job its version, and the row that is held under it already if the same edit came before.

    Two edits of one client at one microsecond share a version at first, such as those of the services of one device:
    the second of them gets another one, and gets it again when it is sent again.
    """
    taken: dict[tuple[str, str], Item] = {}
    waiting = list(jobs)
    attempt = 0
    while waiting:
        for job in waiting:
            job.version = writer.version(job, graph.entities.get(job.entity_id), attempt)
        keys: dict[tuple[Kind, str, str], None] = {("entity", job.entity_id, job.version): None for job in waiting}
        held = yield Reads(versions=tuple(keys))
        clashing = []
        for job in waiting:
            key = (job.entity_id, job.version)
            row = held.versions.get(("entity", *key))
            other = taken.get(key, job.item)
            if (row is not None and not says(row, _edit(job))) or not _alike(other, job.item):
                clashing.append(job)
            else:
                taken[key] = job.item
                job.held = row
        waiting = clashing
        attempt += 1


def _alike(one: Item, other: Item) -> bool:
    return (one.type, one.id, one.delete, one.fields) == (other.type, other.id, other.delete, other.fields)


def _settled(jobs: Iterable[_Job], graph: Graph, name: str) -> Plan[None]:
    """Find the links that were dealt with when the same edit came before: made, or found to be no edit.

    Only one whose target was not known then is still open. Others may have been moved on since.
    """
    wanted: dict[tuple[Kind, str, str], None] = {}
    candidates: dict[int, list[tuple[Kind, str, str]]] = {}
    for job in jobs:
        ids = [edge.id for edge in graph.edges.get(job.entity_id, ())] if job.links else []
        ids += [edge_id(name, job.entity_id, link) for link in job.links]
        candidates[job.index] = [("edge", id_, job.version) for id_ in ids]
        wanted.update(dict.fromkeys(candidates[job.index]))
    if not wanted:
        return
    versions = (yield Reads(versions=tuple(wanted))).versions
    for job in jobs:
        made = [versions[key].relationship() for key in candidates[job.index] if key in versions]
        ends = {None if says_deleted(edge.properties) else edge.to_entity_id for edge in made}
        settled = {link for link in job.links if job.item.fields[link] in ends}
        if job.held is not None:
            targets = {link: job.item.fields[link] for link in job.links}
            ids = [target for target in targets.values() if target is not None]
            then = (yield Reads(entities=tuple(ids), as_of=job.held.seq)).entities if ids else {}
            settled.update(link for link, target in targets.items() if target is None or target in then)
        job.settled = frozenset(settled)


# --- up: rows -----------------------------------------------------------------------------------------------------


def _edit(job: _Job, context: Context | None = None) -> Edit:
    return Edit(
        item=job.item,
        entity_id=job.entity_id,
        path=job.path,
        version=job.version,
        user=context.user if context else "",
        graph=context.graph if context else "",
    )


def _coming(jobs: Iterable[_Job], graph: Graph) -> dict[str, tuple[str, str]]:
    """What the push will create, by id: edges may point to what stands further down in it."""
    coming: dict[str, tuple[str, str]] = {}
    for job in jobs:
        if not (job.path or job.item.delete or job.entity_id in graph.entities) and "name" in job.item.fields:
            coming.setdefault(job.entity_id, (SHAPES[job.item.type].entity_type, job.version))
    return coming


def _made(job: _Job, known: Known, graph: Graph, draft: Draft, context: Context) -> tuple[Edit, Made]:
    edit = _edit(job, context)
    if job.held is not None or job.settled:
        left = {
            key: value
            for key, value in job.item.fields.items()
            if key not in job.settled and (job.held is None or key in LINKS)
        }
        edit = replace(edit, item=replace(job.item, fields=left))
    made = Made()
    if job.held is None or (edit.item.fields and not edit.item.delete):
        made = apply(edit, known, graph, draft)
    change = made.change
    if job.held is not None:
        # Sent again. The row is what it was made the first time, even if from what is known now it would be another.
        change = Change(
            entity=job.held.entity(),
            relationships=change.relationships if change is not None else (),
            delete=job.item.delete and not job.path,
            pointer=job.item.pointer,
        )
    return edit, replace(made, change=change)


def _aside(job: _Job, edit: Edit, known: Known, made: Made, draft: Draft) -> Change | None:
    """What of an edit is stored: what it changes, and what is only kept.

    An edit that changes nothing is kept as a row too: if it came again after others had written, or its client's clock
    was set back, nothing but that row would tell it from an edit that changes what they wrote.
    """
    change = made.change
    if change is not None and job.unsaid:
        late = {("edge", edge.id) for link in job.unsaid for edge in made.moved.get(link, ())}
        change = replace(change, aside=frozenset(late))
    base = draft.entities.get(edit.entity_id) or known.base
    if made.problem is not None or job.served or job.item.edit is None or base is None:
        return change
    if (change is not None and change.entity is not None) or (says_deleted(base.content) and not job.item.delete):
        return change
    if base.version == edit.version:
        return change  # the same item twice in one push
    row = replace(
        base,
        version=edit.version,
        user_id=edit.user,
        parent_versions=(base.version,) if known.named else (),
        checksum=None,
        merged=UNSET,
    )
    change = change or Change(pointer=job.item.pointer)
    return replace(change, entity=row, aside=change.aside | {("entity", row.id)})


def _turn(job: _Job, change: Change | None, made: Made) -> Turn:
    sent: list[tuple[Kind, str, str]] = []
    lost = False
    if change is not None:
        if change.entity is not None:
            sent.append(("entity", change.entity.id, change.entity.version))
        sent += [("edge", edge.id, edge.version) for edge in change.relationships]
        lost = any(("edge", edge.id) in change.aside for edge in change.relationships)
    return Turn(sent=tuple(sent), entity_id=job.entity_id, version=job.version, problem=made.problem, lost=lost)


# --- down ---------------------------------------------------------------------------------------------------------


def down(push: Push, response: SyncResponse) -> Plan[SyncResult]:
    """PROTOCOL 8.5: what became of each item. What is taken, merged or lost is ``applied``: a deployed client pushes
    anything else for ever. What is refused is in neither list, so that it is kept and sent again."""
    acked = {(ack.kind, ack.id, ack.version) for ack in response.acks}
    lost = {(conflict.entity_id, conflict.remote_version) for conflict in response.conflicts}
    refused: dict[int, Problem] = {}
    for refusal in response.refused:
        index = int(refusal.pointer.split("/")[2])
        refused.setdefault(index, Problem(code=refusal.code, pointer=refusal.pointer, detail=refusal.detail))
    contested = [
        (item, turn)
        for item, turn in zip(push.items, push.turns, strict=True)
        if turn.lost
        or (("entity", turn.entity_id, turn.version) in turn.sent and (turn.entity_id, turn.version) in lost)
    ]
    graph = None
    if contested:
        graph = yield from read_above([turn.entity_id for _, turn in contested], response.head)

    applied, problems = [], []
    for index, (item, turn) in enumerate(zip(push.items, push.turns, strict=True)):
        problem = turn.problem or refused.get(index)
        if item is UNTOLD:
            continue
        if problem is not None:
            problems.append(
                RefusedChange(
                    entity_type=item.type,
                    entity_id=item.id,
                    client_sync_id=item.client_sync_id,
                    code=problem.code,
                    pointer=problem.pointer,
                    detail=problem.detail,
                )
            )
        elif acked.issuperset(turn.sent):
            applied.append(Applied(client_sync_id=item.client_sync_id, server_sync_id=f"server-{item.id}"))
    return SyncResult(
        applied=tuple(applied),
        conflicts=tuple(
            PushConflict(
                entity_type=item.type,
                entity_id=item.id,
                server_version=_standing(graph, item, turn),
                client_version=item.data,
            )
            for item, turn in contested
            if graph is not None
        ),
        refused=tuple(problems) or UNSET,
    )


def _standing(graph: Graph, item: Item, turn: Turn) -> Any:
    """The record of an item as it stands now, a deleted one as it last was; an empty one where it shows no more."""
    row, token = graph.entities[turn.entity_id], token_of(graph)
    if not SHAPES[item.type].nested:
        return record_of(graph, row, token) or {}
    shape = SHAPES[item.type].record
    return next((record for record in nested_of(row, token) if type(record) is shape and record.id == item.id), {})
