"""A rule of your own: what two people counted at once is added up, and what two people planned at once waits for one.

    python examples/own_rule.py

A rule is a pure function of three rows: the one that both sides started from (None if the server holds none), the one
that stands, and the one that was pushed. Whatever it raises, no write is lost: the usual rules decide then.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from inbetweenies import Entity, Policy, ProtocolFallback, Value, Verdict, manual
from inbetweenies.model import make_version

START = 1_790_000_000_000_000


def counted(base: Entity | None, mine: Entity, theirs: Entity) -> Verdict | Value:
    """Counters of ``app`` things: each side's steps since the common start are added."""
    if base is None:
        return Verdict.PASS
    start, one, other = (json.loads(bytes(row.content)) for row in (base, mine, theirs))
    if any(not isinstance(value.get("count"), int) for value in (start, one, other)):
        return Verdict.REVIEW  # somebody should look at that
    return Value(content={**one, "count": one["count"] + other["count"] - start["count"]})


def message(user: str, second: int, entity_type: str, content: dict[str, Any], parents: list[str]) -> dict[str, Any]:
    """What a v2 client sends when a person has changed something."""
    entity = {
        "id": f"the-{entity_type}",
        "version": make_version(START + second * 1_000_000, 0, user),
        "entity_type": entity_type,
        "name": entity_type,
        "content": content,
        "source_type": "manual",
        "user_id": user,
        "parent_versions": parents,
    }
    return {
        "protocol_version": "inbetweenies-v2",
        "device_id": user,
        "user_id": user,
        "sync_type": "delta",
        "changes": [{"change_type": "update", "entity": entity, "relationships": []}],
    }


async def main() -> None:
    server = ProtocolFallback(policy=Policy(rules={"app": counted, "schedule": manual}))
    for entity_type, contents in {
        "app": [{"count": 1}, {"count": 3}, {"count": 2}],
        "schedule": [{"wake": 7}, {"wake": 6}, {"wake": 9}],
    }.items():
        start, ann, bob = contents
        first = message("ann", 0, entity_type, start, [])
        version = first["changes"][0]["entity"]["version"]
        await server.handle_sync_request(first)
        await server.handle_sync_request(message("ann", 10, entity_type, ann, [version]))
        answer = await server.handle_sync_request(message("bob", 20, entity_type, bob, [version]))
        stands = answer["changes"][-1]["entity"]["content"]
        print(f"{entity_type}: {stands}, {answer['conflicts'][0]['resolution_strategy']}")


if __name__ == "__main__":
    asyncio.run(main())
