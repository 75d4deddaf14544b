"""What v1 shows of a whole graph, to be held against it (PROTOCOL 12.10): the view, value by value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from ...model import Head, Row
from ...rollout.shadow import Fact, Shown, View, pointer
from . import codec, lens
from .codec import SHAPES, Accessory, Characteristic, DeltaChange, Record, Service, Shape, User
from .graph import Graph, graph_of
from .pull import change_of

_sorted: Final = msgspec.json.Encoder(order="sorted").encode
_SHAPES: Final[dict[Any, Shape]] = {shape.record: shape for shape in SHAPES.values()}


def everything() -> bytes:
    """A read of all types of records, services and characteristics among them."""
    return codec.encode_request("shadow", None, [shape.plural for shape in SHAPES.values()])


def shown(answer: bytes) -> Iterator[Shown]:
    """The records in an answer, with all that is said of each."""
    return map(_shown, codec.decode_delta(answer).changes)


def view(head: Head, rows: Sequence[Row]) -> View:
    """What the records of a graph are, what they say of it, and what they do not."""
    graph = graph_of(head, rows)
    records, losses = lens.view(graph)
    token = lens.token_of(graph)
    return View(
        shown=tuple(_shown(change_of(_SHAPES[type(record)].name, record, "update", token)) for record in records),
        facts=tuple(fact for record in records for fact in _facts(graph, record, token)),
        losses={loss.pointer: loss.reason for loss in losses},
    )


def _shown(change: DeltaChange) -> Shown:
    return Shown(change.entity_type, change.entity_id, _sorted(msgspec.to_builtins(change)))


def _facts(graph: Graph, record: Record, token: str) -> Iterator[Fact]:
    """What a record says of its entity and its edges. Nested ones come with their device, where their place is known.

    A home reached through others, and times, follow from several rows at once; the record as a whole is compared.
    """
    if isinstance(record, Service | Characteristic):
        return
    shape = _SHAPES[type(record)]
    yield Fact(pointer("entity", record.id, "id"), record.id)
    yield Fact(pointer("entity", record.id, "entity_type"), shape.entity_type)
    yield Fact(pointer("entity", record.id, "name"), record.name)
    if isinstance(record, User):
        yield Fact(pointer("entity", record.id, "content", "kind"), "user")
    yield from _content(record, record.id, ("content",))
    if isinstance(record, Accessory):
        yield from _nested(graph.entities[record.id], token)
    yield from _edges(graph, record)


def _content(record: Record, id_: str, at: lens.Path) -> Iterator[Fact]:
    for field in _SHAPES[type(record)].content_fields:
        otherwise = None if type(None) in field.types else field.odd(None)
        yield Fact(pointer("entity", id_, *at, field.name), getattr(record, field.name), otherwise)


def _nested(row: Row, token: str) -> Iterator[Fact]:
    service = ""
    for record in lens.nested_of(row, token):  # a service, then its characteristics
        if isinstance(record, Service):
            service = record.id
            yield from _content(record, row.id, ("content", "services", service))
        else:
            yield from _content(record, row.id, ("content", "services", service, "characteristics", record.id))


def _edges(graph: Graph, record: Record) -> Iterator[Fact]:
    for link, edge in (
        ("home_id", graph.home_edge(record.id)),
        ("bridge_id", graph.bridge_edge(record.id)),
    ):
        if edge is not None and link in _SHAPES[type(record)].links:
            yield Fact(pointer("edge", edge.id, "id"), edge.id)
            yield Fact(pointer("edge", edge.id, "from_entity_id"), record.id)
            yield Fact(pointer("edge", edge.id, "to_entity_id"), getattr(record, link))
            if link == "bridge_id":
                yield Fact(pointer("edge", edge.id, "properties", "role"), "bridge")
