"""What of a graph v1 does not show (PROTOCOL 8.12), told for people, and looked at a second time.

`lens` declares its losses. Here each value of a graph is looked for in the records themselves; what is in none of
them and is not declared has no explanation, and that is a bug.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from ...model import Plan, Reads, Row, Span
from .. import Unseen, Unshown
from .codec import Record
from .graph import graph_of, is_bridge
from .lens import view

_ROWS: Final = 5_000  # read at a time
#: Under which key of `services/*/characteristics/*` v1 has records of their own; the ids are of no interest.
_DEEP: Final = {0: "services", 2: "characteristics"}


def unseen() -> Plan[Unseen]:
    """All current rows of a graph against their view."""
    head = (yield Reads()).head
    rows: list[Row] = []
    after = 0
    while found := (yield Reads(span=Span(after=after, upto=head.seq, rows=_ROWS))).span:
        rows += found
        after = found[-1].seq
    graph = graph_of(head, rows)
    records, losses = view(graph)
    types = {("entities" if row.kind == "entity" else "relationships", row.id): row.entity_type for row in rows}
    declared = {loss.pointer: loss.reason for loss in losses}
    shown = {(type(record).__name__, record.id): record for record in records}
    told = []
    for pointer, reason in declared.items():
        kind, id_, *field = _keys(pointer)
        told.append(Unshown(kind=kind, type=types[kind, id_], field=_field(kind, field), id=id_, reason=reason))
    unexplained = tuple(pointer for row in rows for pointer in _unexplained(row, shown, declared))
    return Unseen(rows=len(rows), records=len(records), unshown=tuple(told), unexplained=unexplained)


def _keys(pointer: str) -> list[str]:
    return [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]


def _field(kind: str, keys: list[str]) -> str:
    """The keys of a field without the ids of services in it."""
    if kind == "entities" and keys[:2] == ["content", "services"]:
        keys = ["*" if depth in (2, 4) and len(keys) > depth else key for depth, key in enumerate(keys)]
    return "/".join(keys)


def _unexplained(row: Row, records: dict[tuple[str, str], Record], declared: dict[str, Any]) -> Iterator[str]:
    at = ("entities" if row.kind == "entity" else "relationships", row.id)
    if _declared(at, declared):
        return
    body = msgspec.json.decode(row.body)
    if row.kind == "edge":
        yield from _of_edge(row, body, at, records, declared)
        return
    record = next((records[name, row.id] for name in _ENTITIES if (name, row.id) in records), None)
    if record is None:
        yield _pointer(at)
        return
    for key, value in body.items():
        if key == "content":
            yield from _in_content(value, record, (*at, "content"), records, declared, 0)
        elif key not in ("id", "entity_type") and not _says(record, key, value) and not _declared((*at, key), declared):
            yield _pointer((*at, key))


def _of_edge(
    row: Row,
    body: dict[str, Any],
    at: tuple[str, ...],
    records: dict[tuple[str, str], Record],
    declared: dict[str, Any],
) -> Iterator[str]:
    if not _decides(row, records):
        yield _pointer(at)
    rest = [(*at, key) for key in body if key not in ("id", "from_entity_id", "to_entity_id", "properties")]
    role = "role" if is_bridge(row) else None
    rest += [(*at, "properties", key) for key in body["properties"] if key != role]
    yield from (_pointer(keys) for keys in rest if not _declared(keys, declared))


_ENTITIES: Final = ("Home", "Room", "Accessory", "User")
_NESTED: Final = ("Service", "Characteristic")


def _in_content(
    content: dict[str, Any],
    record: Record,
    at: tuple[str, ...],
    records: dict[tuple[str, str], Record],
    declared: dict[str, Any],
    depth: int,
) -> Iterator[str]:
    for key, value in content.items():
        here = (*at, key)
        if _declared(here, declared) or _says(record, key, value) or (key, value, type(record).__name__) == _KIND:
            continue
        if _DEEP.get(depth) == key and isinstance(value, dict) and (depth or type(record).__name__ == "Accessory"):
            for id_, inner in value.items():
                below = records.get((_NESTED[depth // 2], id_))
                if _declared((*here, id_), declared):
                    continue
                if below is None or not isinstance(inner, dict):
                    yield _pointer((*here, id_))
                else:
                    yield from _in_content(inner, below, (*here, id_), records, declared, depth + 2)
        else:
            yield _pointer(here)


_KIND: Final = ("kind", "user", "User")


def _says(record: Record, key: str, value: Any) -> bool:
    """Whether a record shows this very value."""
    if key not in record.__struct_fields__ or key in ("created_at", "updated_at", "sync_id"):
        return False
    shown = getattr(record, key)
    return bool(shown == value) and (type(shown) is type(value) or (type(shown) is float and type(value) is int))


def _decides(edge: Row, records: dict[tuple[str, str], Record]) -> bool:
    """Whether a record names what an edge leads to."""
    for name in _ENTITIES:
        record = records.get((name, edge.from_id))
        if record is not None:
            links = (getattr(record, "home_id", None), getattr(record, "bridge_id", None))
            return edge.to_id in links
    return False


def _declared(keys: tuple[str, ...], declared: dict[str, Any]) -> bool:
    return _pointer(keys) in declared


def _pointer(keys: tuple[str, ...]) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
