"""The order in which a push is taken (PROTOCOL 4.6): of one id, parents come before children."""

from __future__ import annotations

from collections.abc import Iterable

from .model import Change, Entity


def in_order(changes: Iterable[Change]) -> list[Change]:
    """PROTOCOL 4.6: the changes with parents before children among the rows of one id, else as they came."""
    listed = list(changes)
    of_id: dict[str, list[int]] = {}
    for index, change in enumerate(listed):
        if change.entity is not None:
            of_id.setdefault(change.entity.id, []).append(index)
    for indexes in of_id.values():
        if len(indexes) > 1:
            for index, change in zip(indexes, _parents_first([listed[index] for index in indexes]), strict=True):
                listed[index] = change
    return listed


def _parents_first(changes: list[Change]) -> list[Change]:
    waiting = list(changes)
    ordered: list[Change] = []
    while waiting:
        versions = {change.entity.version for change in waiting if change.entity}
        # In a circle of parents nobody is first; then the order of the message stands.
        first = next(
            (change for change in waiting if change.entity and not versions & _other_parents(change.entity)), waiting[0]
        )
        ordered.append(first)
        waiting.remove(first)
    return ordered


def _other_parents(entity: Entity) -> set[str]:
    return set(entity.parent_versions) - {entity.version}
