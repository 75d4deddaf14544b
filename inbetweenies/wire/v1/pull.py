"""A read of v1 records: which of them changed since the client last listened, and how that is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from ...model import Context, Device, Plan, Reads, Row, Span, SyncResponse, Writes, format_time
from .codec import ANONYMOUS, SHAPES, DeltaChange, Read, Record, SyncDelta
from .graph import PATHS, Graph, read_above, read_below, read_whole, said
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
    if after:
        changes = yield from _since(after, response, wanted, deletes=read.deletes)
    else:
        # Whoever asks for everything may still hold something: its last sync may have broken off behind this answer.
        heard = read.since is not None or (device.served > 0 and read.client != ANONYMOUS)
        changes = yield from _all(response, wanted, deletes=read.deletes and heard)
    # An ack names no answer. While one is out, a late ack may be meant for it, so it must not confirm a newer one.
    served = min(device.served, head.seq) if device.served > device.acked else head.seq
    yield Writes(device=(key, replace(device, served=served)))
    return SyncDelta(server_time=format_time(head.stamp or context.now), changes=changes)


def _all(response: SyncResponse, wanted: frozenset[str], *, deletes: bool) -> Plan[tuple[DeltaChange, ...]]:
    """PROTOCOL 8.15: everything; what is deleted only for a client that may hold it."""
    head = response.head
    graph = yield from read_whole(head)
    rows = sorted(graph.entities.values(), key=lambda row: row.seq)
    earlier = (yield from _earlier(rows, 0, wanted)) if deletes else {}
    return _told(graph, rows, earlier, wanted, after=0 if deletes else head.seq)


def _since(
    after: int, response: SyncResponse, wanted: frozenset[str], *, deletes: bool
) -> Plan[tuple[DeltaChange, ...]]:
    """PROTOCOL 8.15: what changed after a seq, and whatever took its home from what changed."""
    head = response.head
    span = (yield Reads(span=Span(after=after, upto=head.seq))).span
    changed = {row.id: row for row in span if row.kind == "entity"}
    moved = [row for row in span if row.kind == "edge" and row.entity_type in PATHS]
    if not changed and not moved:
        return ()
    earlier = yield from _earlier(changed.values(), after, wanted)
    if any(_may_stand_in(row, earlier.get(id_, ()), after) for id_, row in changed.items()):
        # Whatever reaches no home may have stood under the one that is no longer the first.
        graph = yield from read_whole(head)
        affected = {row.id for row in graph.entities.values() if not row.deleted or row.seq > after}
    else:
        before = yield Reads(edges=tuple(row.id for row in moved), as_of=after)
        turned = {id_ for id_, row in changed.items() if _turned(row, earlier.get(id_, ()))}
        turned.update(edge.from_id for edge in (*moved, *before.edges.values()))
        affected = (yield from read_below(turned)) | changed.keys()
        graph = yield from read_above(sorted(affected), head)
    found = sorted((graph.entities[id_] for id_ in affected), key=lambda row: row.seq)
    return _told(graph, found, earlier, wanted, after=after if deletes else head.seq)


def _earlier(rows: Iterable[Row], after: int, wanted: frozenset[str]) -> Plan[dict[str, list[Row]]]:
    """The rows of changed entities that a client may know which acked at `after`: the one that was current then, and
    all later ones, for it may have heard answers that it did not ack.

    Devices change often, have long histories, and show the same records throughout: what of theirs is needed is only
    who hangs on them, and for whom services are told.
    """
    ids = tuple(row.id for row in rows if row.entity_type != "device" or not wanted.isdisjoint(_NESTED))
    if not ids:
        return {}
    held = yield Reads(history=ids)
    return {
        id_: [row for row in history if row.until is None or row.until > after] for id_, history in held.history.items()
    }


def _turned(row: Row, earlier: Iterable[Row]) -> bool:
    """Whether others may be under another home because an entity came, went, or became something else."""
    if row.entity_type == "device":
        return True
    return any((old.deleted, old.entity_type) != (row.deleted, row.entity_type) for old in earlier)


def _may_stand_in(row: Row, earlier: Iterable[Row], after: int) -> bool:
    """Whether the home that stands in for none may be another one because of a changed entity."""
    homes = [each for each in (row, *earlier) if each.entity_type == "home"]
    if not homes:
        return False
    states = {(each.deleted, said(each)[1].get("is_primary") is True) for each in homes}
    is_new = all(each.seq > after for each in homes)
    return is_new or len(states) > 1 or _turned(row, earlier)


def _told(
    graph: Graph, rows: Iterable[Row], earlier: Mapping[str, Sequence[Row]], wanted: frozenset[str], *, after: int
) -> tuple[DeltaChange, ...]:
    """The changes for `rows`: the records that are there, and those gone since `after`, by type, in commit order.

    `earlier` are rows that the client may know: what they showed and their entity shows no more is gone, and is told
    as it last was.
    """
    token = token_of(graph)
    changes: dict[str, list[DeltaChange]] = {type_: [] for type_ in SHAPES}
    there: set[tuple[str, str]] = set()
    gone: dict[tuple[str, str], Record] = {}
    for row in rows:
        if not row.deleted:
            for record in _records(graph, row, token, wanted):
                type_ = _TYPES[type(record)]
                there.add((type_, record.id))
                changes[type_].append(_change(type_, record, "update", token))
        if row.seq > after:
            for old in (*earlier.get(row.id, ()), *((row,) if row.deleted else ())):
                for record in _records(graph, old, token, wanted, gone=True):
                    gone[_TYPES[type(record)], record.id] = replace(
                        record, updated_at=format_time(row.rise, naive=True)
                    )
    for (type_, id_), record in gone.items():
        # What is there, or was moved to another place, is not gone.
        if (type_, id_) not in there:
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


def _records(graph: Graph, row: Row, token: str, wanted: frozenset[str], *, gone: bool = False) -> list[Record]:
    """The records of the wanted types that an entity shows, as if it were not deleted."""
    type_ = _OF_ENTITY_TYPE.get(row.entity_type)
    deep = type_ == "accessory" and not wanted.isdisjoint(_NESTED)
    if type_ is None or not (type_ in wanted or deep):
        return []
    record = record_of(graph, row, token, gone=gone)
    if record is None:
        return []
    records = [record] if type_ in wanted else []
    if deep:
        records += [nested for nested in nested_of(row, token) if _TYPES[type(nested)] in wanted]
    return records
