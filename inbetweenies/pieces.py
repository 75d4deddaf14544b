"""What an answer tells of the rows in it, and how much of them at a time, pure.

A page ends where it is full. An answer that must be whole is read and told a piece at a time (`piece`), so that what is
held of it never depends on how large the graph is. Every edge is told with the entity it leaves from (PROTOCOL 3.5).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Final, TypeAlias

from .limits import Limits
from .model import Kind, Plan, Reads, Row, Span, SyncRequest, SyncResponse, Unread

#: What a row takes in an answer beside its body, in bytes.
FRAME_BYTES: Final = 64


#: An entity and the edges that are told with it; without an entity, edges that travel alone.
Told: TypeAlias = tuple[Row | None, Sequence[Row]]


def together(rows: Iterable[Row], carriers: Mapping[str, Row]) -> list[Told]:
    """PROTOCOL 9.2: entities in commit order, each edge with its `from` entity, which is one of `carriers` if it is not
    in `rows` itself."""
    told: list[Told] = []
    edges_of: dict[str, list[Row]] = {}
    loose: list[Row] = []
    for row in rows:
        if row.kind == "entity":
            edges_of[row.id] = []
            told.append((row, edges_of[row.id]))
        else:
            loose.append(row)
    for row in loose:
        if row.from_id not in edges_of:
            edges_of[row.from_id] = []
            told.append((carriers.get(row.from_id), edges_of[row.from_id]))
        edges_of[row.from_id].append(row)
    return told


def filtered(
    rows: Iterable[Row],
    carriers: Mapping[str, Row],
    entity_types: frozenset[str] | None,
    modified_by: frozenset[str] | None,
) -> list[Row]:
    """PROTOCOL 9.1: the rows that pass the filters of a request: entities that do, and the edges that leave from such.

    `carriers` are the entities that edges leave from and that are not in `rows`.
    """
    listed = list(rows)
    if entity_types is None and modified_by is None:
        return listed
    entities = {
        row.id
        for row in (*listed, *carriers.values())
        if row.kind == "entity"
        and (entity_types is None or row.entity_type in entity_types)
        and (modified_by is None or row.user_id in modified_by)
    }
    return [row for row in listed if (row.id if row.kind == "entity" else row.from_id) in entities]


def carriers_of(rows: Collection[Row]) -> Plan[dict[str, Row]]:
    """The entities that edges in `rows` leave from and that are not in `rows` themselves."""
    present = {row.id for row in rows if row.kind == "entity"}
    lacking = tuple({row.from_id: None for row in rows if row.kind == "edge" and row.from_id not in present})
    return (yield Reads(entities=lacking)).entities if lacking else {}


def carried(rows: Iterable[Row], carriers: Mapping[str, Row]) -> list[Row]:
    """`rows` without edges whose `from` entity has no current row, since all that it had was lost (PROTOCOL 4.14): only
    peers with features can be told of such."""
    listed = list(rows)
    there = {row.id for row in listed if row.kind == "entity"} | carriers.keys()
    return [row for row in listed if row.kind == "entity" or row.from_id in there]


# --- how much at a time -------------------------------------------------------------------------------------------


def span_of(request: SyncRequest, after: int, upto: int, limits: Limits) -> Span:
    """What to read at once of the rows that a peer lacks: a page, or all for a wire version that reads no pieces."""
    if "paging" in request.features:
        most = min(request.page_rows or limits.page_rows_max, limits.page_rows_max)
        return Span(after=after, upto=upto, rows=most, size=limits.page_bytes_max)
    if request.pieces:
        return Span(after=after, upto=upto, rows=limits.page_rows_max, size=limits.page_bytes_max)
    return Span(after=after, upto=upto)


def ends(rows: Sequence[Row], span: Span) -> bool:
    """Whether `rows` are all there are of `span`; else it was full before its end."""
    return len(rows) != span.rows and (span.size is None or sum(len(row.body) for row in rows) < span.size)


def fitting(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """PROTOCOL 4.9: as many of `rows` as an answer of `most` bytes has room for, but at least one."""
    sizes = list(accumulate([len(row.body) + FRAME_BYTES for row in rows]))
    return rows[: max(bisect_right(sizes, most), 1)]


def piece(response: SyncResponse, unread: Unread, after: int, limits: Limits) -> Plan[tuple[list[Told], int | None]]:
    """PROTOCOL 4.9: what to tell of the unread rows after `after`, a page of them, and where to go on; None at the end.

    An entity is told with all of its edges in the answer, wherever in the log they are; an edge whose entity has not
    changed is told with that, in the place of the first such edge of it.
    """
    # Of everything that there is, each edge is found by its entity.
    kind: Kind | None = "entity" if unread.after == 0 else None
    span = Span(after=after, upto=response.head.seq, rows=limits.page_rows_max, size=limits.page_bytes_max, kind=kind)
    rows = (yield Reads(span=span)).span
    ids = dict.fromkeys(row.from_id for row in rows if row.kind == "edge")
    found = (yield Reads(entities=tuple(ids))).entities if ids else {}
    filters = unread.entity_types, unread.modified_by
    things = filtered((row for row in rows if row.kind == "entity"), {}, *filters)
    carriers = filtered((row for row in found.values() if row.seq <= unread.after), {}, *filters)
    leaving = (yield Reads(edges_from=tuple(row.id for row in (*things, *carriers)))).edges_from

    def edges_of(row: Row) -> list[Row]:
        edges = [edge for edge in leaving[row.id] if edge.seq > unread.after and not _sent(edge, unread)]
        return sorted(edges, key=lambda edge: edge.seq)

    told: list[Told] = []
    for row in things:
        spared, edges = _sent(row, unread), edges_of(row)
        if edges or not spared:
            told.append((None if spared else row, edges))
    for row in carriers:
        edges = edges_of(row)
        if edges and after < edges[0].seq <= rows[-1].seq:
            told.append((None if unread.alone else row, edges))
    return told, None if ends(rows, span) else rows[-1].seq


def _sent(row: Row, unread: Unread) -> bool:
    return (row.kind, row.id, row.version) in unread.sent
