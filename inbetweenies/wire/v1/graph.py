"""The part of a graph that v1 records are a view of, and the plans that read it.

`Graph` is a value: rows by id, and which home each of them is under. `read_above` and `read_below` find what a record
depends on and which records depend on a row, level by level, so that the cost follows what changed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

import msgspec
from msgspec import Struct

from ...model import Head, Plan, Reads, Row

#: PROTOCOL 8.8: the edges that say where a thing belongs.
PATHS: Final = frozenset({"part_of", "located_in"})
SPACES: Final = frozenset({"room", "zone"})
THINGS: Final = SPACES | {"device"}

# Far deeper than any house. A way home is looked for in two stages of this length, which bounds the reads that a
# hostile chain of zones can cost.
STEPS_MAX: Final = 64


class _Body(Struct):
    name: str
    content: Any


class _Properties(Struct):
    properties: Any


_body = msgspec.json.Decoder(_Body)
_properties = msgspec.json.Decoder(_Properties)


def said(row: Row) -> tuple[str, dict[str, Any]]:
    """Name and decoded content of an entity."""
    body = _body.decode(row.body)
    return body.name, body.content if isinstance(body.content, dict) else {}


class Graph(Struct, frozen=True, kw_only=True, dict=True):
    """Current rows, at some seq: entities by id, path edges by the id they leave from, in order of their own ids.

    It need not hold everything: what lies above a record, with every home, is enough to show that record. `others`
    are the edges that say something else than where a thing belongs.
    """

    head: Head
    entities: dict[str, Row]
    edges: dict[str, tuple[Row, ...]]
    others: tuple[Row, ...] = ()

    # --- homes (PROTOCOL 8.8)

    @cached_property
    def ways(self) -> dict[str, str]:
        """The home that each id is under. A home is under itself; what reaches none is not in it.

        Nearest first, then the smallest edge id. Worked out for all at once, from the homes downwards: step by step
        everything that has an edge into the level before takes the home at the end of its smallest such edge.
        """
        below: dict[str, list[Row]] = {}
        for edges in self.edges.values():
            for edge in edges:
                if not edge.deleted:
                    below.setdefault(edge.to_id, []).append(edge)
        homes = [row.id for row in self.homes]
        ways = {id_: id_ for id_ in homes}
        self._spread(ways, homes, below, SPACES)
        # Only what stands in no room or zone of a home is where the device is that it hangs on, bridges among them.
        self._spread(ways, [id_ for id_ in ways if self._leads_on(id_, THINGS)], below, THINGS)
        return ways

    def _spread(
        self, ways: dict[str, str], level: list[str], below: dict[str, list[Row]], through: frozenset[str]
    ) -> None:
        for _ in range(STEPS_MAX):
            nearest: dict[str, Row] = {}
            for target in level:
                for edge in below.get(target, ()):
                    if edge.from_id not in ways:
                        best = nearest.get(edge.from_id)
                        if best is None or edge.id < best.id:
                            nearest[edge.from_id] = edge
            for id_, edge in nearest.items():
                ways[id_] = ways[edge.to_id]
            level = [id_ for id_ in nearest if self._leads_on(id_, through)]

    def _leads_on(self, id_: str, through: frozenset[str]) -> bool:
        row = self.entities.get(id_)
        return row is not None and not row.deleted and row.entity_type in through

    @cached_property
    def homes(self) -> tuple[Row, ...]:
        """The living homes."""
        return tuple(row for row in self.entities.values() if row.entity_type == "home" and not row.deleted)

    @cached_property
    def placeholder(self) -> str | None:
        """PROTOCOL 8.8: the home of what reaches none: the primary one, else the oldest."""

        def rank(row: Row) -> tuple[bool, int, str]:
            return said(row)[1].get("is_primary") is not True, row.born, row.id

        best = min(self.homes, key=rank, default=None)
        return None if best is None else best.id

    def home_of(self, id_: str) -> str | None:
        """The home that a record names as its own; None only where there is no home at all."""
        return self.ways.get(id_) or self.placeholder

    # --- edges of one record

    def home_edges(self, id_: str) -> list[Row]:
        """The edges from `id_` straight to a home, tombstones and hidden ones among them."""
        return [edge for edge in self.edges.get(id_, ()) if self._type(edge.to_id) == "home"]

    def bridge_edges(self, id_: str) -> list[Row]:
        """PROTOCOL 8.9: the edges that tie a device to its bridge, tombstones and hidden ones among them."""
        return [
            edge
            for edge in self.edges.get(id_, ())
            if edge.entity_type == "part_of" and self._type(edge.to_id) == "device" and is_bridge(edge)
        ]

    def shows(self, edge: Row) -> bool:
        """PROTOCOL 3.5: whether readers see an edge: it is no tombstone and does not point to one."""
        return not edge.deleted and edge.to_id in self.entities and not self.entities[edge.to_id].deleted

    def home_edge(self, id_: str) -> Row | None:
        """The edge that alone decides the home of `id_`; None where it is decided further up, or nowhere."""
        return next(filter(self.shows, self.home_edges(id_)), None)

    def bridge_edge(self, id_: str) -> Row | None:
        """The edge to the bridge of a device: of several the one with the smallest id."""
        return next(filter(self.shows, self.bridge_edges(id_)), None)

    def _type(self, id_: str) -> str | None:
        row = self.entities.get(id_)
        return None if row is None else row.entity_type


def is_bridge(edge: Row) -> bool:
    """Whether the properties of an edge say that it goes to a bridge."""
    properties = _properties.decode(edge.body).properties
    return isinstance(properties, dict) and properties.get("role") == "bridge"


def graph_of(head: Head, rows: Iterable[Row]) -> Graph:
    """The graph that `rows` make."""
    entities: dict[str, Row] = {}
    edges: dict[str, list[Row]] = {}
    others: list[Row] = []
    for row in rows:
        if row.kind == "entity":
            entities[row.id] = row
        elif row.entity_type in PATHS:
            edges.setdefault(row.from_id, []).append(row)
        else:
            others.append(row)
    ordered = {
        id_: tuple(sorted(leaving, key=lambda row: row.id)) if len(leaving) > 1 else tuple(leaving)
        for id_, leaving in edges.items()
    }
    return Graph(head=head, entities=entities, edges=ordered, others=tuple(others))


# --- reading ------------------------------------------------------------------------------------------------------


def read_above(ids: Iterable[str], head: Head, *, as_of: int | None = None) -> Plan[Graph]:
    """All that the records of `ids` depend on: themselves, what they are in, and every home. One read a level."""
    return graph_of(head, (yield from _climb(dict.fromkeys(ids), {}, ("home",), as_of)))


def read_around(rows: Iterable[Row], first: Row | None, head: Head) -> Plan[Graph]:
    """The same for rows that are at hand; of the homes that they are not in, only the `first` is among it."""
    given = {row.id: row for row in rows}
    above = yield from _climb(dict.fromkeys(given), given, (), None)
    return graph_of(head, above if first is None else [first, *above])


def read_first(head: Head) -> Plan[Row | None]:
    """PROTOCOL 8.8: the home of what reaches none."""
    homes = graph_of(head, (yield Reads(types=("home",))).types)
    return None if homes.placeholder is None else homes.entities[homes.placeholder]


def _climb(seen: dict[str, None], given: dict[str, Row], types: tuple[str, ...], as_of: int | None) -> Plan[list[Row]]:
    level = tuple(seen)
    rows: list[Row] = []
    # Either stage of `Graph.ways` can be as long as it may be.
    for _ in range(2 * STEPS_MAX + 1):
        held = yield Reads(entities=() if given else level, edges_from=level, types=types, as_of=as_of)
        entities = given or held.entities
        rows += [*held.types, *entities.values()]
        given, types = {}, ()
        above: dict[str, None] = {}
        for id_, edges in held.edges_from.items():
            rows += edges
            # Ways begin at any record, and lead on only through places and devices that are still there.
            row = entities.get(id_)
            if row is not None and (row.entity_type in THINGS or row.entity_type == "note"):
                above.update((edge.to_id, None) for edge in edges if edge.entity_type in PATHS)
        level = tuple(id_ for id_ in above if id_ not in seen)
        if not level:
            break
        seen.update(dict.fromkeys(level))
    return rows


def read_below(ids: Iterable[str]) -> Plan[set[str]]:
    """The ids that may take their home from one of `ids`, themselves among them. One read a level."""
    seen = set(ids)
    level = tuple(sorted(seen))
    for _ in range(2 * STEPS_MAX):
        if not level:
            break
        held = yield Reads(edges_to=level)
        below = {
            edge.from_id
            for edges in held.edges_to.values()
            for edge in edges
            if edge.entity_type in PATHS and not edge.deleted
        }
        level = tuple(sorted(below - seen))
        seen |= below
    return seen
