"""A read of v1 records: which of them changed since the client last listened, and how that is told.

However much that is, no more than about a page of it is held at a time: the rows to tell are walked through type by
type, and the graph is only known around the rows that are told just now.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Final, Protocol, TypeAlias

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from ...limits import Limits
from ...model import (
    CONFIRMED,
    Context,
    Device,
    Head,
    Held,
    Plan,
    Reads,
    Row,
    Span,
    SyncResponse,
    Telling,
    Writes,
    format_time,
)
from ...pieces import ends
from .. import Changes, Negotiation
from . import codec
from .codec import ANONYMOUS, SHAPES, DeltaChange, Read, Record, SyncDelta
from .graph import PATHS, Graph, read_around, read_below, read_first, said
from .lens import nested_of, record_of, token_of
from .push import device_key


def down(
    read: Read, response: SyncResponse, context: Context, limits: Limits, negotiation: Negotiation | UnsetType
) -> Telling:
    """PROTOCOL 8.3: the records that changed, whole; the client's place is remembered until it acks."""
    key = device_key(context, read.client)
    held = yield Reads(device=key, stamp=read.since)
    device = held.device or Device()
    head = response.head
    # An ack names no answer. While one is out, even one that told nothing, the next ack may be meant for it, so it must
    # not confirm a newer one, which may answer a request that came twice.
    out = held.device is not None and device.served != CONFIRMED
    served = min(device.served, head.seq) if out else head.seq
    yield Writes(device=(key, replace(device, served=served)))
    # PROTOCOL 8.15: the client tells its own clock, so its last ack counts too, whichever is less.
    after = 0 if read.since is None else min(device.acked, held.stamp_seq, head.seq)
    # Whoever asks for everything may still hold something: its last sync may have broken off behind this answer.
    heard = after > 0 or read.since is not None or (held.device is not None and read.client != ANONYMOUS)
    delta = SyncDelta(server_time=format_time(head.stamp or context.now))
    telling = _Telling(
        Changes(codec.encode(delta, negotiation)),
        head=head,
        # Who asked for this version may leave things out; who asked for another one had no way to ask for them.
        wanted=read.wanted(negotiated=negotiation is not UNSET and negotiation.source != "exact"),
        deletes=read.deletes and heard,
        after=after,
        limits=limits,
    )
    walk = (yield from telling.affected()) if after else (yield from _everything(head, limits))
    yield from telling.records(walk)
    yield from telling.others(walk)
    return telling.changes.end()


# --- what is told -------------------------------------------------------------------------------------------------


_Part: TypeAlias = Generator[Reads | Writes | bytes, Held, None]


class _Walk(Protocol):
    """The entities to tell something of, some at a time, in commit order."""

    def some(self, entity_type: str | None, place: int) -> Plan[tuple[Sequence[Row], int | None]]:
        """Those of a type, or of all, from a place on, which at first is 0; and where to go on, if there are more."""

    def around(self, rows: Sequence[Row]) -> Plan[Graph]:
        """What the records of `rows` depend on."""


class _Everything:
    """Every entity that there is."""

    def __init__(self, head: Head, limits: Limits, first: Row | None) -> None:
        self._head, self._limits, self._first = head, limits, first

    def some(self, entity_type: str | None, place: int) -> Plan[tuple[Sequence[Row], int | None]]:
        limits = self._limits
        span = Span(
            after=place,
            upto=self._head.seq,
            rows=limits.page_rows_max,
            size=limits.page_bytes_max,
            kind="entity",
            entity_type=entity_type,
        )
        rows = (yield Reads(span=span)).span
        return rows, None if ends(rows, span) else rows[-1].seq

    def around(self, rows: Sequence[Row]) -> Plan[Graph]:
        return (yield from read_around(rows, self._first, self._head))


def _everything(head: Head, limits: Limits) -> Plan[_Walk]:
    return _Everything(head, limits, (yield from read_first(head)))


class _Those:
    """The entities with these ids. Where they are few, they and the graph around them are read once and kept."""

    def __init__(self, head: Head, limits: Limits, first: Row | None) -> None:
        self._head, self._limits, self._first = head, limits, first
        self._order: list[tuple[int, str, str]] = []
        self._kept: dict[str, Row] = {}
        self._graph: Graph | None = None

    def find(self, ids: Iterable[str]) -> Plan[None]:
        """Must come first."""
        listed = sorted(ids)
        step = self._limits.page_rows_max
        for start in range(0, len(listed), step):
            rows = (yield Reads(entities=tuple(listed[start : start + step]))).entities
            self._order += [(row.seq, row.entity_type, row.id) for row in rows.values()]
            if len(listed) <= step:
                self._kept = rows
                self._graph = yield from read_around(rows.values(), self._first, self._head)
        self._order.sort()

    def some(self, entity_type: str | None, place: int) -> Plan[tuple[Sequence[Row], int | None]]:
        ids: list[str] = []
        while place < len(self._order) and len(ids) < self._limits.page_rows_max:
            _, type_, id_ = self._order[place]
            if entity_type in (None, type_):
                ids.append(id_)
            place += 1
        rows = self._kept or ((yield Reads(entities=tuple(ids))).entities if ids else {})
        return [rows[id_] for id_ in ids], place if place < len(self._order) else None

    def around(self, rows: Sequence[Row]) -> Plan[Graph]:
        return self._graph or (yield from read_around(rows, self._first, self._head))


class _Telling:
    """One answer in the making: what it tells, and what has been told."""

    def __init__(
        self, changes: Changes, *, head: Head, wanted: frozenset[str], deletes: bool, after: int, limits: Limits
    ) -> None:
        self.changes = changes
        self._head = head
        self._token = token_of(Graph(head=head, entities={}, edges={}))
        self._wanted = wanted
        self._deletes = deletes
        self._after = after
        self._limits = limits
        self._there: set[tuple[str, str]] = set()

    def affected(self) -> Plan[_Walk]:
        """PROTOCOL 8.15: what changed after a seq, and whatever took its home from what changed."""
        after, head, limits = self._after, self._head, self._limits
        changed: set[str] = set()
        turned: set[str] = set()
        place: int | None = after
        while place is not None:
            span = Span(after=place, upto=head.seq, rows=limits.page_rows_max, size=limits.page_bytes_max)
            rows = (yield Reads(span=span)).span
            place = None if ends(rows, span) else rows[-1].seq
            things = [row for row in rows if row.kind == "entity"]
            moved = [row for row in rows if row.kind == "edge" and row.entity_type in PATHS]
            earlier = yield from self._earlier(things)
            if any(_may_stand_in(row, earlier.get(row.id, ()), after) for row in things):
                # Whatever reaches no home may have stood under the one that is no longer the first.
                return (yield from _everything(head, limits))
            changed.update(row.id for row in things)
            turned.update(row.id for row in things if _turned(row, earlier.get(row.id, ())))
            if moved:
                before = yield Reads(edges=tuple(row.id for row in moved), as_of=after)
                turned.update(edge.from_id for edge in (*moved, *before.edges.values()))
        if not changed and not turned:
            return _Those(head, limits, None)
        walk = _Those(head, limits, (yield from read_first(head)))
        yield from walk.find((yield from read_below(turned)) | changed)
        return walk

    def records(self, walk: _Walk) -> _Part:
        """By type, so that what is pointed to comes before what points to it: what is there, and what was deleted."""
        for shape in SHAPES.values():
            place = 0 if shape.name in self._wanted else None
            while place is not None:
                rows, place = yield from walk.some(shape.entity_type, place)
                living = [row for row in rows if not row.deleted]
                dead = [row for row in rows if row.deleted and row.seq > self._after and self._deletes]
                if not living and not dead:
                    continue
                graph = yield from walk.around([*living, *dead])
                only = frozenset({shape.name})
                there = [record for row in living for record in _records(graph, row, self._token, only)]
                if shape.nested:
                    self._there.update((shape.name, record.id) for record in there)
                yield from self._tell(shape.name, "update", there)
                gone = yield from self._gone(dead, graph)
                yield from self._tell(shape.name, "delete", [gone[key][1] for key in gone if key[0] == shape.name])

    def others(self, walk: _Walk) -> _Part:
        """What is gone although no entity of its type was deleted: what became something else, and what was in it."""
        place = 0 if self._deletes else None
        while place is not None:
            rows, place = yield from walk.some(None, place)
            rows = [row for row in rows if row.seq > self._after]
            earlier = yield from self._earlier(rows)
            rows = [row for row in rows if row.deleted or any(old.seq != row.seq for old in earlier.get(row.id, ()))]
            if rows:
                gone = yield from self._gone(rows, (yield from walk.around(rows)))
                for shape in SHAPES.values():
                    left = [
                        record
                        for (type_, _), (row, record) in gone.items()
                        # With its type was told what showed an entity of it that is deleted.
                        if type_ == shape.name and not (row.deleted and row.entity_type == shape.entity_type)
                    ]
                    yield from self._tell(shape.name, "delete", left)

    def _gone(self, rows: Sequence[Row], graph: Graph) -> Plan[dict[tuple[str, str], tuple[Row, Record]]]:
        """What rows that the client may know showed, and their entities show no more, each as it last was."""
        earlier = yield from self._earlier(rows)
        gone: dict[tuple[str, str], tuple[Row, Record]] = {}
        for row in rows:
            now = [] if row.deleted else _records(graph, row, self._token, self._wanted)
            there = {(_TYPES[type(record)], record.id) for record in now}
            for old in (*earlier.get(row.id, ()), *((row,) if row.deleted else ())):
                for record in _records(graph, old, self._token, self._wanted, gone=True):
                    key = (_TYPES[type(record)], record.id)
                    # What is there, or was moved to another place, is not gone.
                    if key not in there and key not in self._there:
                        gone[key] = row, replace(record, updated_at=format_time(row.rise, naive=True))
        return gone

    def _tell(self, type_: str, operation: str, records: Iterable[Record]) -> Generator[bytes, Held, None]:
        self.changes.add([change_of(type_, record, operation, self._token) for record in records])
        if self.changes.size > _PIECE_BYTES:
            yield self.changes.take()

    def _earlier(self, rows: Iterable[Row]) -> Plan[dict[str, list[Row]]]:
        """The rows of changed entities that a client may know which acked at `after`: the one that was current then,
        and all later ones, for it may have heard answers that it did not ack.

        Devices change often, have long histories, and show the same records throughout: what of theirs is needed is
        only who hangs on them, and for whom services are told.
        """
        deep = not self._wanted.isdisjoint(_NESTED)
        ids = tuple(row.id for row in rows if row.entity_type != "device" or deep)
        if not ids:
            return {}
        history = (yield Reads(history=ids)).history
        return {
            id_: [row for row in each if row.seq <= self._head.seq and (row.until is None or row.until > self._after)]
            for id_, each in history.items()
        }


#: How much is told at once. Smaller pieces cost a read of their own each.
_PIECE_BYTES: Final = 2**18


# --- what it follows from -----------------------------------------------------------------------------------------


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


def change_of(type_: str, record: Record, operation: str, token: str) -> DeltaChange:
    """PROTOCOL 8.3: how an answer tells of a record."""
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
