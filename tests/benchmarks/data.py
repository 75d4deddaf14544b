"""The made-up home that the scenarios push and pull: a house full of devices, the same on every run."""

from __future__ import annotations

from functools import cache
from random import Random

from msgspec import Raw
from msgspec.structs import replace

from inbetweenies.limits import canonical
from inbetweenies.model import Ask, Change, Entity, Relationship, make_version
from inbetweenies.wire import load

MADE = 1_760_000_000_000_000  # microseconds; when the home was entered
SECOND = 1_000_000
USER = "ann"
FEATURES = frozenset({"paging", "acks", "digest", "edges", "witness"})
V1 = "inbetweenies-v1"
V2 = "inbetweenies-v2"

_ROOMS = 40
_KINDS = ("light", "outlet", "thermostat", "motion sensor", "blind", "lock", "leak sensor", "speaker")
_MAKERS = ("Nordlicht", "Haus & Hof", "Örsted Home", "Blue Fern", "Kiwi Labs")


def _content(random: Random, number: int) -> Raw:
    """What is known of a device: 200 to 400 bytes, as bridges tell it."""
    content = {
        "manufacturer": random.choice(_MAKERS),
        "model": f"{random.choice('ABCDEF')}{random.randrange(100, 999)}-EU",
        "serial_number": f"{random.getrandbits(48):012X}",
        "firmware_version": f"{random.randrange(9)}.{random.randrange(20)}.{random.randrange(100)}",
        "is_reachable": random.random() < 0.97,
        "power_w": round(random.uniform(0.5, 60), 2),
        "state": {"on": random.random() < 0.4, "brightness": random.randrange(101), "hue": random.randrange(360)},
        "tags": random.sample(_KINDS, random.randrange(4)),
    }
    if number % 2:
        content["note"] = "behind the shelf; “the one that hums” — " * random.randrange(3)
    return Raw(canonical(content))


@cache
def home(entities: int, edges: bool = True) -> tuple[Change, ...]:
    """A home, its rooms and its devices, each change with one edge; what an edge leads to comes first."""
    random = Random(7)
    made: list[Entity] = []
    changes: list[Change] = []
    for number in range(entities):
        kind = random.choice(_KINDS)
        version = make_version(MADE + number * 1_000, 0, USER)
        if number == 0:
            type_, name, content = "home", "Seaside 4", Raw(b'{"is_primary":true}')
        elif number <= _ROOMS:
            type_, name, content = "room", f"Room {number}", Raw(canonical({"floor": number % 3}))
        else:
            type_, name, content = "device", f"{kind.title()} {number}", _content(random, number)
        entity = Entity(
            id=_id(random),
            version=version,
            entity_type=type_,
            name=name,
            content=content,
            source_type="homekit",
            user_id=USER,
        )
        made.append(entity)
        to = made[0] if number <= _ROOMS else made[1 + number % _ROOMS]
        edge = Relationship(
            id=_id(random),
            version=version,
            from_entity_id=entity.id,
            from_entity_version=entity.version,
            to_entity_id=to.id,
            to_entity_version=to.version,
            relationship_type="located_in" if number > _ROOMS else "part_of" if number else "documented_by",
            user_id=USER,
        )
        changes.append(Change(entity=entity, relationships=(edge,) if edges else ()))
    return tuple(changes)


def _id(random: Random) -> str:
    digits = f"{random.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def renamed(change: Change, stem: str) -> Change:
    """The same change under ids of its own, its edge leading to itself, so that it can be pushed to any graph."""
    entity = change.entity
    assert entity is not None
    again = replace(entity, id=f"{stem}{entity.id}")
    edge = Relationship(
        id=f"{stem}edge-{entity.id}",
        version=entity.version,
        from_entity_id=again.id,
        from_entity_version=again.version,
        to_entity_id=again.id,
        to_entity_version=again.version,
        relationship_type="controls",
        user_id=USER,
    )
    return Change(entity=again, relationships=(edge,))


def edited(change: Change, round_: int) -> Change:
    """The next row of the same device, made `round_` seconds after the one before."""
    entity = change.entity
    assert entity is not None
    version = make_version(MADE + (100_000 + round_) * SECOND, 0, USER)
    name = f"{entity.name.partition(' #')[0]} #{round_}"
    return Change(entity=replace(entity, version=version, parent_versions=(entity.version,), name=name))


def push(changes: tuple[Change, ...], *, features: frozenset[str] = FEATURES, cursor: str | None = None) -> bytes:
    """The message in which our client pushes `changes`."""
    wire = load()[V2]
    ask = Ask(device="bench", user=USER, changes=changes, cursor=cursor, features=features, offer=(V2,))
    body: bytes = wire.ask(ask)  # type: ignore[attr-defined]
    return body


def pull(cursor: str | None, *, features: frozenset[str] = FEATURES) -> bytes:
    """The message in which a client asks for what comes after `cursor`, for everything without one."""
    wire = load()[V2]
    ask = Ask(device="bench", user=USER, full=cursor is None, cursor=cursor, features=features, offer=(V2,))
    body: bytes = wire.ask(ask)  # type: ignore[attr-defined]
    return body


#: The message in which a v1 client asks for every record there is.
PULL_V1 = (
    b'{"type":"sync_request","client_id":"bench","last_sync":null,'
    b'"entity_types":["homes","rooms","accessories","users"],"include_deleted":false}'
)
