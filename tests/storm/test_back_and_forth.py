"""A rollout that is taken back, thousands of edits by clients of the older version, and forth again (laws 6 and 9).

A real server and real HTTP. What only the newer version can say is on everything that is edited meanwhile; once the
newer one is given again, all of it must be there beside the edits.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from inbetweenies.model import Entity, Relationship, body_of, format_time
from inbetweenies.ops.rollouts import RolloutControl
from inbetweenies.stores.sqlite import SqliteStore
from tests.server.calls import sync, write
from tests.storm.controller import BAR, V2
from tests.storm.processes import Peer, Server
from tests.support import NOW, SECOND, at, edge, entity, run
from tests.wire.test_v1_storm import content, edited, hidden, shown
from tests.wire.v1_support import change

T = TypeVar("T")

EDITS: Final = int(os.environ.get("DEEP_EXAMPLES", "400"))
DEVICES: Final = 60
BATCH: Final = 50
TYPES: Final = ("homes", "rooms", "accessories", "users")


@contextmanager
def control(path: Path) -> Iterator[RolloutControl]:
    store = SqliteStore(path, journal=False, heads=False)
    try:
        yield RolloutControl(store, bar=BAR)
    finally:
        run(store.close())


def give(path: Path) -> None:
    """Roll version 2 out to everybody."""
    with control(path) as one:
        one.start(V2)
        while one.advance(V2).after.state != "burn_in":
            pass


def take_back(path: Path) -> None:
    with control(path) as one:
        assert "rolled_back" == one.rollback(V2).after.state


def furnished(dice: random.Random) -> tuple[list[Entity], list[Relationship]]:
    """A home with much in it that version 1 has no word for."""
    homes = [entity(f"h{n}", at(0), content(dice, "home"), entity_type="home") for n in range(2)]
    devices = [entity(f"d{n}", at(0), content(dice, "accessory")) for n in range(DEVICES)]
    others = [entity(f"a{n}", at(0), {"n": n}, entity_type="automation") for n in range(10)]
    edges = [edge(f"in{n}", one, homes[0], relationship_type="part_of") for n, one in enumerate(devices)]
    edges += [
        edge(f"by{n}", dice.choice(others), one, relationship_type="controls", properties={"n": n})
        for n, one in enumerate(devices)
    ]
    return [*homes, *devices, *others], edges


def whole(peer: Peer) -> tuple[dict[str, Entity], dict[str, Relationship], list[str]]:
    """What a client of version 2 is told that was never here, and which versions it is offered."""
    status, told = peer.post(sync(features=["edges", "acks"], supported_versions=[V2, "inbetweenies-v1"]))
    assert 200 == status, told
    rows = of(list[Entity], [one["entity"] for one in told["changes"] if one["entity"]])
    edges = of(list[Relationship], [link for one in told["changes"] for link in one["relationships"]])
    offered = told.get("negotiation", {"supported": [V2]})["supported"]
    return {row.id: row for row in rows}, {link.id: link for link in edges}, offered


def of(type_: type[T], told: Any) -> T:
    return msgspec.json.decode(msgspec.json.encode(told), type=type_)


def raw(value: Entity | Relationship) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.json.decode(body_of(value))
    return fields


def records(peer: Peer) -> dict[str, Any]:
    """What a client of version 1 is told that was never here."""
    message = {"type": "sync_request", "client_id": "phone", "last_sync": None, "entity_types": list(TYPES)}
    status, told = peer.post(message, "/api/v1/sync/request")
    assert 200 == status, told
    return {one["entity_id"]: one["data"] for one in told["changes"] if one["operation"] == "update"}


def edit(peer: Peer, dice: random.Random, count: int) -> dict[str, Any]:
    """So many edits of devices, in pushes; what the records say after them."""
    held = {id_: one for id_, one in records(peer).items() if id_.startswith("d")}
    now = NOW
    for start in range(0, count, BATCH):
        changes = []
        for id_ in (dice.choice(sorted(held)) for _ in range(start, min(start + BATCH, count))):
            now += SECOND
            held[id_] = {**edited(dice, held[id_], "accessory", now), "updated_at": format_time(now, naive=True)}
            changes.append(change("accessory", held[id_], label=f"{now}"))
        status, told = peer.post({"type": "sync_push", "client_id": "phone", "changes": changes}, "/api/v1/sync/push")
        assert (200, []) == (status, told.get("refused", [])), told
        assert len(changes) == len(told["applied"])
    return held


def test_nothing_that_only_the_newer_version_can_say_is_lost_while_the_older_one_edits(tmp_path: Path) -> None:
    back_and_forth(tmp_path, EDITS)


def back_and_forth(tmp_path: Path, count: int, bug: str = "") -> None:
    """There, back, `count` edits, and there again; `bug` is planted in the server."""
    dice = random.Random(2026)
    path = tmp_path / "home.db"
    entities, edges = furnished(dice)
    with Server(path, bug=bug) as server:
        peer = Peer(server.url)
        changes = [write(raw(one)) for one in entities]
        changes += [{"change_type": "update", "entity": None, "relationships": [raw(one)]} for one in edges]
        assert 200 == peer.post(sync(*changes, features=["edges", "acks"]))[0]
        give(path)
        before, links, offered = whole(peer)
        assert [V2] == offered

        take_back(path)
        assert "inbetweenies-v1" == whole(peer)[2][0]
        held = edit(peer, dice, count)
        assert {id_: shown(one) for id_, one in held.items()} == {
            id_: shown(one) for id_, one in records(peer).items() if id_ in held
        }

        give(path)
        after, links_after, offered = whole(peer)
        peer.close()

    assert [V2] == offered
    assert before.keys() == after.keys()
    types = {one.id: {"home": "home", "device": "accessory"}.get(one.entity_type) for one in before.values()}
    seen = [id_ for id_, type_ in types.items() if type_ is not None]
    lost = [id_ for id_ in seen if hidden(before[id_], types[id_] or "") != hidden(after[id_], types[id_] or "")]
    unseen = [id_ for id_ in types if id_ not in seen and raw(before[id_]) != raw(after[id_])]
    kept = {id_: link for id_, link in links.items() if link.relationship_type == "controls"}
    assert ([], []) == (lost, unseen)
    assert {id_: raw(link) for id_, link in kept.items()} == {id_: raw(links_after[id_]) for id_ in kept}
    values = sum(len(hidden(before[id_], types[id_] or "")["content"]) for id_ in seen)
    changed = sum(before[id_].version != after[id_].version for id_ in seen)
    print(f"figures: {count:,} edits of {changed} entities, {values} values and {len(kept)} links of v2 alone, 0 lost")
    assert changed > DEVICES / 2
    assert values > DEVICES
