"""What of a graph v1 does not show (PROTOCOL 8.12), told for people, and looked at a second time.

`lens` declares its losses. Here each value of a graph is looked for in the records themselves; what is in none of
them and is not declared has no explanation, and that is a bug.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import msgspec

from ...model import Plan, Reads, Row, Span
from .. import Unseen, Unshown
from .codec import Record
from .graph import graph_of, is_bridge
from .lens import view

_ROWS: Final = 5_000  # read at a time
#: Records by type, what they are inside of, and id. Services of several devices may have one id.
_Shown: TypeAlias = dict[tuple[str, str, str], list[Record]]
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
    shown: _Shown = {}
    for record in records:
        of = getattr(record, "accessory_id", getattr(record, "service_id", ""))
        shown.setdefault((type(record).__name__, of, record.id), []).append(record)
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


def _unexplained(row: Row, records: _Shown, declared: dict[str, Any]) -> Iterator[str]:
    at = ("entities" if row.kind == "entity" else "relationships", row.id)
    if _declared(at, declared):
        return
    body = msgspec.json.decode(row.body)
    if row.kind == "edge":
        yield from _of_edge(row, body, at, records, declared)
        return
    found = _entity_records(row.id, records)
    if not found:
        yield _pointer(at)
        return
    for key, value in body.items():
        if key == "content":
            yield from _in_content(value, found, (*at, "content"), records, declared, 0)
        elif key not in ("id", "entity_type") and not _say(found, key, value) and not _declared((*at, key), declared):
            yield _pointer((*at, key))


def _of_edge(
    row: Row,
    body: dict[str, Any],
    at: tuple[str, ...],
    records: _Shown,
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
    found: list[Record],
    at: tuple[str, ...],
    records: _Shown,
    declared: dict[str, Any],
    depth: int,
) -> Iterator[str]:
    name = type(found[0]).__name__
    for key, value in content.items():
        here = (*at, key)
        if _declared(here, declared) or _say(found, key, value) or (key, value, name) == _KIND:
            continue
        if _DEEP.get(depth) == key and isinstance(value, dict) and (depth or name == "Accessory"):
            for id_, inner in value.items():
                below = records.get((_NESTED[depth // 2], found[0].id, id_))
                if _declared((*here, id_), declared):
                    continue
                if below is None or not isinstance(inner, dict):
                    yield _pointer((*here, id_))
                else:
                    yield from _in_content(inner, below, (*here, id_), records, declared, depth + 2)
        else:
            yield _pointer(here)


_KIND: Final = ("kind", "user", "User")


def _entity_records(id_: str, records: _Shown) -> list[Record]:
    return [record for name in _ENTITIES for record in records.get((name, "", id_), ())]


def _say(found: list[Record], key: str, value: Any) -> bool:
    return any(_says(record, key, value) for record in found)


def _says(record: Record, key: str, value: Any) -> bool:
    """Whether a record shows this very value."""
    if key not in record.__struct_fields__ or key in ("created_at", "updated_at", "sync_id"):
        return False
    shown = getattr(record, key)
    return bool(shown == value) and (type(shown) is type(value) or (type(shown) is float and type(value) is int))


def _decides(edge: Row, records: _Shown) -> bool:
    """Whether a record names what an edge leads to."""
    return any(
        edge.to_id in (getattr(record, "home_id", None), getattr(record, "bridge_id", None))
        for record in _entity_records(edge.from_id, records)
    )


def _declared(keys: tuple[str, ...], declared: dict[str, Any]) -> bool:
    return _pointer(keys) in declared


def _pointer(keys: tuple[str, ...]) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
