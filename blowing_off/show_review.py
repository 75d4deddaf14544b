"""How the command line shows what waits for a person: both sides of a conflict, side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from inbetweenies.merge import document
from inbetweenies.model import Entity

from .review import Review, contested
from .show import Sheet, edited

_encode = msgspec.json.Encoder(order="deterministic").encode


def review_parts(found: Iterable[Review]) -> tuple[dict[str, Any], list[Sheet]]:
    """What waits: one document, and a table for each entry. In a pipe, a line for each value that differs: the entry,
    its field, what stands, what waits."""
    listed, sheets = [], []
    for entry in found:
        pointers = contested(entry)[1]
        listed.append(
            {
                "id": entry.id,
                "entity_id": entry.entity_id,
                "mine": _side(entry.mine),
                "theirs": _side(entry.theirs),
                "base": None if entry.base is None else _side(entry.base),
                "contested": list(pointers),
            }
        )
        sheets.append(
            Sheet(
                title=f"{entry.mine.name or entry.entity_id}: {entry.id}",
                tag=entry.id,
                columns=("", "mine (stands now)", "theirs (waits)"),
                rows=_rows(entry),
            )
        )
    return {"review": listed}, sheets


def _side(entity: Entity) -> dict[str, Any]:
    return {
        "version": entity.version,
        "user_id": entity.user_id,
        "when": edited(entity.version),
        "name": entity.name,
        "content": msgspec.json.decode(entity.content),
    }


def _rows(entry: Review) -> list[tuple[str, str, str]]:
    mine, theirs = flat(document(entry.mine)), flat(document(entry.theirs))
    differ = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
    return [
        ("by", entry.mine.user_id, entry.theirs.user_id),
        ("changed", edited(entry.mine.version), edited(entry.theirs.version)),
        *((name, mine.get(name, ""), theirs.get(name, "")) for name in differ),
    ]


def flat(value: Any, at: str = "") -> dict[str, str]:
    """Each value below `value` as JSON, under the words that ``set`` takes."""
    if not isinstance(value, Mapping) or not value:
        return {at: _encode(value).decode()}
    found: dict[str, str] = {}
    for key, below in value.items():
        name = str(key) if not at or at == "content" else f"{at}.{key}"
        found |= flat(below, name)
    return found
