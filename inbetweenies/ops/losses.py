"""What clients of older wire versions will not see of a graph, in counts: what a rollback comes to (PROTOCOL 13.9)."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import islice
from typing import Final

from msgspec import Struct

from ..exchange import carry_out
from ..limits import LIMITS
from ..rollout.shadow import Unseen, unseen
from ..store import Store
from ..wire import load
from .shadow import comparable

#: Below these keys of the content of a device stand things by ids, which are of no interest here.
_BY_ID: Final = frozenset({"services", "characteristics"})


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
        unexplained: what it neither shows nor declares, in words.
    """

    version: str
    rows: int
    records: int
    losses: tuple[Loss, ...]
    unexplained: tuple[str, ...]


async def plan(store: Store, graph: str) -> tuple[Losses, ...]:
    """PROTOCOL 13.9: for each wire version but the newest, what it does not show of the graph; newest first.

    Nothing is changed, and nothing of it is lost by rolling back: it stays in the graph, and newer clients see it.
    """
    found = []
    for wire in comparable(islice(load().values(), 1, None)):
        seen = await carry_out(partial(unseen, wire, LIMITS), store, graph, write=False)
        found.append(_summed(wire.name, seen))
    return tuple(found)


def _summed(version: str, seen: Unseen) -> Losses:
    counted = Counter((*_place(pointer, seen), reason) for pointer, reason in seen.losses.items())
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


def _place(pointer: str, seen: Unseen) -> tuple[str, str, str]:
    """Kind, type and field of what a pointer leads to."""
    _, kind, id_, *keys = pointer.split("/")
    shown, by_id = [], False
    for key in keys:
        shown.append("*" if by_id else key.replace("~1", "/").replace("~0", "~"))
        by_id = keys[0] == "content" and not by_id and key in _BY_ID
    return kind, seen.types[f"/{kind}/{id_}"], "/".join(shown)
