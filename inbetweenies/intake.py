"""What is looked at of a push before anything is decided: what can be stored, and in which order it is taken."""

from __future__ import annotations

from collections.abc import Iterable

from . import merge
from .errors import clip
from .limits import Limits
from .model import Change, Entity, Refused, Relationship


def in_order(changes: Iterable[Change]) -> list[Change]:
    """PROTOCOL 4.6: the changes with parents before children among the rows of one id, else as they came."""
    listed = list(changes)
    ids = [change.entity.id for change in listed if change.entity is not None]
    if len(set(ids)) == len(ids):
        return listed
    of_id: dict[str, list[tuple[int, Entity]]] = {}
    for index, change in enumerate(listed):
        if change.entity is not None:
            of_id.setdefault(change.entity.id, []).append((index, change.entity))
    ordered = list(listed)
    for rows in of_id.values():
        if len(rows) > 1:
            turns = merge.parents_first([(entity.version, entity.parent_versions) for _, entity in rows])
            for (index, _), turn in zip(rows, turns, strict=True):
                ordered[index] = listed[rows[turn][0]]
    return ordered


# --- what can be stored -------------------------------------------------------------------------------------------


def refused(item: Entity | Relationship, code: str, pointer: str, detail: str) -> Refused:
    """PROTOCOL 4.7: why an item is not taken, in words that are never too long."""
    return Refused(id=clip(item.id), version=clip(item.version), code=code, pointer=pointer, detail=detail)


def _check(fields: Iterable[tuple[str, str, int]], item: Entity | Relationship, pointer: str) -> Refused | None:
    for name, value, most in fields:
        if not value:
            detail = f"expected 1 to {most} bytes; got an empty string"
        elif len(value) * 4 > most and len(value.encode()) > most:
            detail = f"expected 1 to {most} bytes; got {len(value.encode())} bytes"
        elif not value.isprintable() and any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
            detail = "expected no control characters; got at least one"
        else:
            continue
        return refused(item, "illegal_name", f"{pointer}/{name}", detail)
    return None


def check_entity(entity: Entity, pointer: str, limits: Limits) -> Refused | None:
    """PROTOCOL 3.2: why this entity cannot be stored, None if it can."""
    fields = (
        ("id", entity.id, limits.id_bytes_max),
        ("version", entity.version, limits.version_bytes_max),
        ("entity_type", entity.entity_type, limits.id_bytes_max),
        ("source_type", entity.source_type, limits.id_bytes_max),
    )
    found = _check(fields, entity, f"{pointer}/entity")
    if found is None and len(entity.parent_versions) > limits.parents_max:
        detail = f"expected at most {limits.parents_max}; got {len(entity.parent_versions)}"
        return refused(entity, "too_many_parents", f"{pointer}/entity/parent_versions", detail)
    return found


def check_edge(edge: Relationship, pointer: str, limits: Limits) -> Refused | None:
    """PROTOCOL 3.2: why this edge cannot be stored, None if it can. A missing version is not a reason."""
    fields = (
        ("id", edge.id, limits.id_bytes_max),
        ("version", edge.version or "-", limits.version_bytes_max),
        ("from_entity_id", edge.from_entity_id, limits.id_bytes_max),
        ("from_entity_version", edge.from_entity_version, limits.version_bytes_max),
        ("to_entity_id", edge.to_entity_id, limits.id_bytes_max),
        ("to_entity_version", edge.to_entity_version, limits.version_bytes_max),
        ("relationship_type", edge.relationship_type, limits.id_bytes_max),
    )
    return _check(fields, edge, pointer)
