"""What clients of older wire versions will not see of a graph, in counts: what a rollback comes to (PROTOCOL 13.9)."""

from __future__ import annotations

from collections import Counter

from msgspec import Struct

from ..exchange import carry_out
from ..store import Store
from ..wire import Unseen, load


class Loss(Struct, frozen=True, kw_only=True):
    """So many times the same is not shown: of rows in ``entities`` or ``relationships`` of a type, the whole row or a
    field of it; and why."""

    kind: str
    type: str
    field: str
    reason: str
    count: int


class Losses(Struct, frozen=True, kw_only=True):
    """What one wire version does not show of a graph.

    Attributes:
        version: its name.
        rows, records: current rows of the graph, and records in which it shows them.
        losses: what it does not show, by kind, type and field.
        unexplained: pointers to what it neither shows nor declares.
    """

    version: str
    rows: int
    records: int
    losses: tuple[Loss, ...]
    unexplained: tuple[str, ...]


async def plan(store: Store, graph: str) -> tuple[Losses, ...]:
    """PROTOCOL 13.9: for each wire version that is only a view of the graph, what it does not show of it; newest first.

    Nothing is changed, and nothing of it is lost by rolling back: it stays in the graph, and newer clients see it.
    """
    found = []
    for name, wire in load().items():
        unseen = getattr(wire, "unseen", None)
        if unseen is not None:
            seen: Unseen = await carry_out(unseen, store, graph, write=False)
            found.append(_summed(name, seen))
    return tuple(found)


def _summed(version: str, seen: Unseen) -> Losses:
    counted = Counter((one.kind, one.type, one.field, one.reason) for one in seen.unshown)
    return Losses(
        version=version,
        rows=seen.rows,
        records=seen.records,
        losses=tuple(
            Loss(kind=kind, type=type_, field=field, reason=reason, count=count)
            for (kind, type_, field, reason), count in sorted(counted.items())
        ),
        unexplained=seen.unexplained,
    )
