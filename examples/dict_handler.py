"""A server author's first five minutes: the whole protocol behind one call, dict in, dict out.

    python examples/dict_handler.py

No network, no files: `ProtocolFallback()` keeps everything in memory. Bring your own transport (a web framework, a
queue, a serial line) and hand each message to `handle_sync_request`.
"""

from __future__ import annotations

import asyncio

from inbetweenies import ProtocolFallback


async def main() -> None:
    fallback = ProtocolFallback()

    # A v2 client pushes an entity. The version names the edit: when, which, who. Each edit is a new version.
    lamp = {
        "id": "lamp",
        "version": "2026-01-01T12:00:00.000000+00:00-000000-alice",
        "entity_type": "device",
        "name": "Kitchen lamp",
        "content": {"firmware_version": "1.2", "colour": "warm white"},
        "source_type": "manual",
        "user_id": "alice",
    }
    home = {**lamp, "id": "home", "entity_type": "home", "name": "Home", "content": {"is_primary": True}}
    pushed = await fallback.handle_sync_request(
        {
            "protocol_version": "inbetweenies-v2",
            "device_id": "tablet",
            "user_id": "alice",
            "sync_type": "delta",
            "changes": [{"change_type": "create", "entity": entity} for entity in (home, lamp)],
        }
    )
    print("v2 pushed, and may forget:", pushed["applied"])

    # A client of another age, or of another future, reads the same things as v1 records.
    answer = await fallback.handle_sync_request({"protocol_version": "inbetweenies-v7", "device_id": "panel"})
    print("v7 was served", answer["protocol_version"], "because", answer["negotiation"]["reason"])
    print("v7 sees:", [f"{change['entity_type']} {change['data']['name']}" for change in answer["changes"]])

    # What cannot be served is refused whole: nothing was applied, and the answer says what would be served.
    refused = await fallback.handle_sync_request(
        {"protocol_version": "inbetweenies-v7", "device_id": "panel", "changes": [{"op": "dim", "lamp": "lamp"}]}
    )
    if "error" in refused:
        print("refused:", refused["code"], "- served here:", refused["supported"])


if __name__ == "__main__":
    asyncio.run(main())
