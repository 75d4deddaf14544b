"""What the clients find: a home that is made up where there is no other, and what only the newer version can say."""

from __future__ import annotations

from typing import Any, Final, Literal

from .clients import SHARED, Ours
from .ledger import Keepsake

ROOMS: Final = 12
DEVICES: Final = 200  # with what links them, a few hundred rows
KEEPSAKES: Final = 6  # things in each graph of which only the newer version can say all


async def furnish(client: Ours) -> None:
    """A made-up home."""
    with client.client.store.transaction():
        home = await client.add("home", name="Home", is_primary=True)
        rooms = [await client.add("room", name=f"Room {number}") for number in range(ROOMS)]
        for room in rooms:
            await client.link(room.id, home.id, "part_of")
        for number in range(DEVICES):
            device = await client.add("device", name=f"Device {number}", manufacturer="Example", is_reachable=True)
            await client.link(device.id, rooms[number % ROOMS].id, "located_in")


async def keep(client: Ours) -> None:
    """Say what only the newer version can say: of some things that are there, of some that are new, and between them.

    The client has synced before, so that it knows what is there.
    """
    known = (await client.client.find(entity_type="device"))[:KEEPSAKES]
    with client.client.store.transaction():
        homes = await client.client.find(entity_type="home")
        home = homes[0].id if homes else (await client.add("home", name="Home", is_primary=True)).id
        shared = await client.add("device", id_=SHARED, name="Shared")
        await _linked(client, shared.id, home, "part_of")
        for entity in known:
            says = _says(client)
            await client.change(entity.id, **says)
            _keeps(client, "entity", entity.id, says)
        for number in range(len(known), KEEPSAKES):
            says = _says(client)
            entity = await client.add("device", name=f"Keepsake {number}", **says)
            _keeps(client, "entity", entity.id, says)
            await _linked(client, entity.id, home, "part_of")
        text = {"text": client.value()}
        note = await client.add("note", **text)
        _keeps(client, "entity", note.id, text)
        await _linked(client, shared.id, note.id, "documented_by")


def _says(client: Ours) -> dict[str, Any]:
    return {"drill_colour": client.value(), "drill_scene": {"at": client.value(), "level": 40}}


async def _linked(client: Ours, from_id: str, to_id: str, type_: str) -> None:
    says = {"drill": client.value()}
    edge = await client.link(from_id, to_id, type_, **says)
    if type_ != "part_of":  # where something is, old versions can say and change
        _keeps(client, "edge", edge.id, says)


def _keeps(client: Ours, kind: Literal["entity", "edge"], id_: str, says: dict[str, Any]) -> None:
    client.ledger.keepsakes.append(Keepsake(graph=client.graph, kind=kind, id=id_, says=says))
