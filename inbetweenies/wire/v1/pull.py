"""A read of v1 records: which of them changed since the client last listened, and how that is told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from msgspec.structs import replace

from ...model import Context, Device, Held, Plan, Reads, Row, Span, SyncResponse, Writes, format_time
from .codec import SHAPES, DeltaChange, Read, Record, SyncDelta
from .graph import PATHS, Graph, graph_of, read_above, read_below, read_whole
from .lens import nested_of, record_of, token_of
from .push import device_key


def down(read: Read, response: SyncResponse, context: Context, *, negotiated: bool) -> Plan[SyncDelta]:
    """PROTOCOL 8.3: the records that changed, whole; the client's place is remembered until it acks."""
    key = device_key(context, read.client)
    held = yield Reads(device=key, stamp=read.since)
    device = held.device or Device()
    head = response.head
    wanted = read.wanted(negotiated=negotiated)
    # PROTOCOL 8.15: the client tells its own clock, so its last ack counts too, whichever is less.
    after = 0 if read.since is None else min(device.acked, held.stamp_seq)
    if after == 0:
        graph = yield from read_whole(head)
        changes = _all(graph, wanted, deletes=read.deletes and read.since is not None)
    else:
        changes = yield from _since(after, response, wanted, deletes=read.deletes)
    yield Writes(device=(key, Device(served=head.seq, acked=device.acked)))
    return SyncDelta(server_time=format_time(head.stamp or context.now), changes=changes)


def _all(graph: Graph, wanted: frozenset[str], *, deletes: bool) -> tuple[DeltaChange, ...]:
    rows = sorted(graph.entities.values(), key=lambda row: row.seq)
    return _told(graph, rows, {}, wanted, after=0 if deletes else graph.head.seq)


def _since(
    after: int, response: SyncResponse, wanted: frozenset[str], *, deletes: bool
) -> Plan[tuple[DeltaChange, ...]]:
    """PROTOCOL 8.15: what changed after a seq, and whatever took its home from what changed."""
    head = response.head
    span = (yield Reads(span=Span(after=after, upto=head.seq))).span
    changed = [row for row in span if row.kind == "entity"]
    moved = [row for row in span if row.kind == "edge" and row.entity_type in PATHS]
    if not changed and not moved:
        return ()
    ids = tuple(row.id for row in changed)
    before = yield Reads(entities=ids, edges=tuple(row.id for row in moved), types=("home",), as_of=after)
    now = yield Reads(types=("home",))
    if graph_of(head, before.types).placeholder != graph_of(head, now.types).placeholder:
        # Everything that reaches no home may have stood under the one that is no longer the first.
        graph = yield from read_whole(head)
        affected = {row.id for row in graph.entities.values() if not row.deleted or row.seq > after}
    else:
        affected = (yield from read_below(_turned(changed, moved, before))) | set(ids)
        graph = yield from read_above(sorted(affected), head)
    rows = sorted((graph.entities[id_] for id_ in affected), key=lambda row: row.seq)
    return _told(graph, rows, before.entities, wanted, after=after if deletes else head.seq)


def _turned(changed: Iterable[Row], moved: Iterable[Row], before: Held) -> set[str]:
    """The ids from which a change of homes may spread: edges that are new or other, and what came, went, or turned
    into something that leads on, or no longer does."""
    turned = set()
    for edge in moved:
        old = before.edges.get(edge.id)
        turned |= {edge.from_id} if old is None else {edge.from_id, old.from_id}
    for row in changed:
        old = before.entities.get(row.id)
        # Nothing can have pointed to what was not there.
        if old is not None and (old.deleted, old.entity_type) != (row.deleted, row.entity_type):
            turned.add(row.id)
    return turned


def _told(
    graph: Graph, rows: Iterable[Row], before: dict[str, Row], wanted: frozenset[str], *, after: int
) -> tuple[DeltaChange, ...]:
    """The changes for `rows`: the records that are there, and those gone since `after`, by type, in commit order.

    `before` are rows that were current when the client last listened: what they showed and their entity shows no more
    is gone, and told as it last was.
    """
    token = token_of(graph)
    there: dict[str, list[Record]] = {type_: [] for type_ in SHAPES}
    gone: list[tuple[str, Record]] = []
    for row in rows:
        if not row.deleted:
            for record in _records(graph, row, token, wanted):
                there[_TYPES[type(record)]].append(record)
        last = before.get(row.id, row if row.deleted else None)
        if last is not None and row.seq > after:
            risen = format_time(row.rise, naive=True)
            gone += [
                (_TYPES[type(record)], replace(record, updated_at=risen))
                for record in _records(graph, last, token, wanted)
            ]
    changes = {
        type_: [_change(type_, record, "update", token) for record in records] for type_, records in there.items()
    }
    ids = {(type_, record.id) for type_, records in there.items() for record in records} if gone else set()
    for type_, record in gone:
        # What was moved to another place is not gone.
        if (type_, record.id) not in ids:
            changes[type_].append(_change(type_, record, "delete", token))
    return tuple(change for told in changes.values() for change in told)


def _change(type_: str, record: Record, operation: str, token: str) -> DeltaChange:
    return DeltaChange(
        entity_type=type_,
        entity_id=record.id,
        operation=operation,
        data=record,
        updated_at=record.updated_at,
        sync_id=token,
    )


_TYPES: Final[dict[Any, str]] = {shape.record: shape.name for shape in SHAPES.values()}
_OF_ENTITY_TYPE: Final = {shape.entity_type: shape.name for shape in SHAPES.values() if not shape.nested}
_NESTED: Final = frozenset(shape.name for shape in SHAPES.values() if shape.nested)


def _records(graph: Graph, row: Row, token: str, wanted: frozenset[str]) -> list[Record]:
    """The records of the wanted types that an entity shows, as if it were not deleted."""
    type_ = _OF_ENTITY_TYPE.get(row.entity_type)
    deep = type_ == "accessory" and not wanted.isdisjoint(_NESTED)
    if type_ is None or not (type_ in wanted or deep):
        return []
    record = record_of(graph, row, token)
    if record is None:
        return []
    records = [record] if type_ in wanted else []
    if deep:
        records += [nested for nested in nested_of(row, token) if _TYPES[type(nested)] in wanted]
    return records
