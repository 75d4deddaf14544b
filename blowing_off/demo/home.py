"""The home that is edited: the accessory databases that were given, or one made up."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from .. import homekit
from .basics import CAST, GRAPH, Record
from .clients import Replica


def _accessory(aid: int, name: str, facts: tuple[str, str, str, str], service: str, *values: tuple[str, Any]) -> Record:
    """One accessory as a HomeKit database has it; types are the short forms of HAP."""
    maker, model, serial, firmware = facts
    told = [("23", name), ("20", maker), ("21", model), ("30", serial), ("52", firmware)]
    formats = {bool: "bool", int: "int", float: "float", str: "string"}

    def characteristic(iid: int, type_: str, value: Any, perms: list[str]) -> Record:
        return {"iid": iid, "type": type_, "perms": perms, "format": formats[type(value)], "value": value}

    information = [characteristic(2 + index, *fact, ["pr"]) for index, fact in enumerate(told)]
    services = [{"iid": 1, "type": "3E", "characteristics": information}]
    if service:
        own = [characteristic(11 + index, *value, ["pr", "pw", "ev"]) for index, value in enumerate(values)]
        services.append({"iid": 10, "type": service, "primary": True, "characteristics": own})
    return {"aid": aid, "services": services}


def sample() -> homekit.Import:
    """Eight devices of a made-up home, by the way that real ones take."""
    accessories = [
        _accessory(1, "Hall bridge", ("Example", "Bridge 2", "EX-0001", "1.9.0"), ""),
        _accessory(2, "Kitchen lamp", ("Example", "Bulb A", "EX-0002", "1.2.0"), "43", ("25", True), ("8", 80)),
        _accessory(3, "Thermostat", ("Example", "Warm", "EX-0003", "4.0.1"), "4A", ("11", 20.5), ("35", 21.0)),
        _accessory(4, "Coffee socket", ("Example", "Plug", "EX-0004", "2.1.0"), "47", ("25", False), ("26", False)),
        _accessory(5, "Bedroom fan", ("Example", "Breeze", "EX-0005", "1.0.3"), "40", ("25", False)),
        _accessory(6, "Reading lamp", ("Example", "Bulb A", "EX-0006", "1.2.0"), "43", ("25", False), ("8", 35)),
        _accessory(7, "Hall motion", ("Example", "Eye", "EX-0007", "3.3.0"), "85", ("22", False)),
        _accessory(8, "Garden switch", ("Example", "Tap", "EX-0008", "2.0.0"), "49", ("25", True)),
    ]
    return homekit.read(json.dumps({"accessories": accessories}).encode(), source="sample", graph=GRAPH)


class Cast(Struct, kw_only=True):
    """The ids of what the story is about: two homes, rooms, five devices, and things that v1 has no record for."""

    home: str
    cabin: str
    study: str
    devices: tuple[str, ...]
    names: dict[str, str]
    manual: str
    door: str
    automation: str


async def furnish(replica: Replica, imports: list[homekit.Import]) -> tuple[Cast, int]:
    """The home, made and filled by one replica. How many devices came out of files is told too."""
    add, link = replica.add, replica.link
    # One local transaction: hundreds of edits, each of which would otherwise wait for the disk.
    with replica.client.store.transaction():
        home = (await add("home", "Home", {"is_primary": True})).id
        cabin = (await add("home", "Cabin", {"is_primary": False})).id
        rooms = [(await add("room", name, {})).id for name in ("Kitchen", "Study")]
        zone = (await add("zone", "Ground floor", {})).id
        await link(zone, home, "part_of")
        for room in rooms:
            await link(room, home, "part_of", id_=homekit.link_id(GRAPH, room, "home_id"))
        drafts = await bring_in(replica, imports, home)
        imported = len(drafts)
        if len(_choice(drafts)) < CAST:
            drafts += await bring_in(replica, [sample()], home)
        cast = _choice(drafts)[:CAST]
        door = (await add("door", "Front door", {"material": "oak"})).id
        manual = (await add("manual", "How the heating works", {"pages": 12, "language": "en"})).id
        automation = (await add("automation", "Good night", {"at": "22:30", "do": ["lights off"]})).id
        await link(door, home, "part_of")
        await link(cast[0].id, rooms[0], "located_in")
        await link(cast[1].id, rooms[1], "located_in")
        await link(manual, home, "part_of")
        await link(automation, cast[0].id, "controls")
    names = {draft.id: draft.name for draft in cast}
    return (
        Cast(
            home=home,
            cabin=cabin,
            study=rooms[1],
            devices=tuple(draft.id for draft in cast),
            names=names,
            manual=manual,
            door=door,
            automation=automation,
        ),
        imported,
    )


async def bring_in(replica: Replica, imports: list[homekit.Import], home: str) -> list[homekit.Draft]:
    """Add what was read, each device under `home`. A device that is in two files is added once."""
    drafts: dict[str, homekit.Draft] = {}
    for read in imports:
        for draft in read.drafts:
            if draft.id not in drafts:
                drafts[draft.id] = draft
                await replica.add(draft.entity_type, draft.name, draft.content, id_=draft.id, source=draft.source_type)
                await replica.link(draft.id, home, "part_of", id_=homekit.link_id(GRAPH, draft.id, "home_id"))
    links = {link.id: link for read in imports for link in read.links}
    for link in links.values():
        await replica.link(link.from_id, link.to_id, link.relationship_type, link.properties, id_=link.id)
    return list(drafts.values())


def _choice(drafts: Iterable[homekit.Draft]) -> list[homekit.Draft]:
    """Devices to tell a story about: no bridges, and no two of one name."""
    named = {draft.name: draft for draft in drafts if not draft.content["is_bridge"]}
    return list(named.values())
