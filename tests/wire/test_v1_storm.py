"""The lens laws (PROTOCOL 1, law 6) over v1 edits by the thousand, through bytes, plans and engine, from one seed.

Hypothesis looks for odd cases in ``test_v1_lens.py``; this looks at very many plain ones, with an eye of its own on
what v1 may see: the list below is the specification's, not the code's.
"""

from __future__ import annotations

import os
import random
from typing import Any

import msgspec

from inbetweenies.model import Entity, Reads, Relationship, format_time
from tests.support import SECOND, Server, at, edge, entity
from tests.wire.v1_support import V1Client, change

#: Pushed edits altogether: each step writes a record back as it was, edits it, and edits it again.
EDITS = int(os.environ.get("DEEP_EXAMPLES", "3000"))
STEPS_PER_GRAPH = 10

FLAGS = (True, False)
TEXTS = ("", "x", "Küche", "7", None)
SEEN: dict[str, dict[str, tuple[Any, ...]]] = {
    "home": {"is_primary": FLAGS},
    "room": {},
    "accessory": {
        **dict.fromkeys(("manufacturer", "model", "serial_number", "firmware_version"), TEXTS),
        **dict.fromkeys(("is_reachable", "is_blocked", "is_bridge"), FLAGS),
    },
    "user": dict.fromkeys(("is_administrator", "is_owner", "remote_access_allowed"), FLAGS),
}
HIDDEN = ("capabilities", "note", "services", "kind2", "a/b~c", "0", "room")
ODD = (None, 0, -1.5, "text", [1, [2]], {"deep": {"er": [None]}}, True, 2**60, "")


def content(dice: random.Random, type_: str) -> dict[str, Any]:
    """Some of what v1 sees, in its types or others, and much that it does not."""
    found = {key: dice.choice(ODD) for key in HIDDEN if dice.random() < 0.6}
    for key, values in SEEN[type_].items():
        if dice.random() < 0.7:
            found[key] = dice.choice(values if dice.random() < 0.8 else ODD)
    return found | ({"kind": "user"} if type_ == "user" else {})


def home(dice: random.Random) -> Server:
    """A graph with two homes, things in them, above and below them, and some that v1 has no word for."""
    server = Server()
    homes = [entity(f"h{n}", at(0), content(dice, "home"), entity_type="home") for n in range(2)]
    rooms = [entity(f"r{n}", at(0), content(dice, "room"), entity_type="room") for n in range(2)]
    devices = [entity(f"d{n}", at(0), content(dice, "accessory")) for n in range(3)]
    user = entity("u", at(0), content(dice, "user"), entity_type="note")
    others = [entity("z", at(0), {"n": 1}, entity_type="zone"), entity("a", at(0), {}, entity_type="automation")]
    edges = [edge("e0", rooms[0], homes[0], relationship_type="part_of"), edge("e1", devices[0], rooms[0])]
    if dice.random() < 0.5:
        edges.append(edge("e2", devices[1], dice.choice(homes), relationship_type="part_of"))
    if dice.random() < 0.5:
        edges.append(edge("e3", others[1], devices[0], relationship_type="controls", properties={"n": 1}))
    server.push(*homes, *rooms, *devices, user, *others, *edges)
    return server


def held(server: Server) -> tuple[dict[str, Entity], dict[str, Relationship]]:
    """What is current, entities and edges."""
    seq = server.held(Reads()).head.seq
    rows = server.pull(full=True).rows
    assert seq == server.held(Reads()).head.seq
    return (
        {row.id: row.entity() for row in rows if row.kind == "entity"},
        {row.id: row.relationship() for row in rows if row.kind == "edge"},
    )


def hidden(value: Entity, type_: str) -> dict[str, Any]:
    """What v1 cannot see of an entity."""
    inside: dict[str, Any] = msgspec.json.decode(value.content)
    kept = {key: item for key, item in inside.items() if key not in SEEN[type_]}
    return {"content": kept, "source": (value.source_type, value.source_original), "type": value.entity_type}


def edited(dice: random.Random, record: dict[str, Any], type_: str, now: int) -> dict[str, Any]:
    """`record` with some fields changed, as a person changes them."""
    after = dict(record, updated_at=format_time(now, naive=True))
    fields = dice.sample([*SEEN[type_], "name"], k=min(dice.randint(1, 3), len(SEEN[type_]) + 1))
    for field in fields:
        after[field] = dice.choice(("A", "B", "Café")) if field == "name" else dice.choice(SEEN[type_][field])
    if "home_id" in record and dice.random() < 0.2:
        after["home_id"] = dice.choice(("h0", "h1"))
    return after


def shown(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in ("updated_at", "sync_id", "created_at")}


def test_v1_edits_change_what_their_maker_changed_and_nothing_else() -> None:
    dice = random.Random(2026)
    edits = 0
    while edits < EDITS:
        server = home(dice)
        client = V1Client(server)
        for _ in range(STEPS_PER_GRAPH):
            changes = {each["entity_id"]: each for each in client.pull()["changes"]}
            told = changes[dice.choice(sorted(changes))]
            type_, record = told["entity_type"], told["data"]
            server.now += 10 * SECOND
            before, edges_before = held(server)
            seq = server.held(Reads()).head.seq

            # GetPut, placeholders included: what was read and written back is no edit.
            client.push(change(type_, record))
            assert seq == server.held(Reads()).head.seq, record

            # PutGet: what was written is what is read.
            first = edited(dice, record, type_, server.now - SECOND)
            client.push(change(type_, first))
            assert shown(first) == shown(client.records()[record["id"]])

            # PutPut: of two edits the last is seen, as if the first had not been.
            second = edited(dice, client.records()[record["id"]], type_, server.now)
            client.push(change(type_, second))
            assert shown(second) == shown(client.records()[record["id"]])

            after, edges_after = held(server)
            assert hidden(before[record["id"]], type_) == hidden(after[record["id"]], type_)
            assert {key: row for key, row in before.items() if key != record["id"]} == {
                key: row for key, row in after.items() if key != record["id"]
            }
            assert {key: row for key, row in edges_before.items() if row.from_entity_id != record["id"]} == {
                key: row for key, row in edges_after.items() if row.from_entity_id != record["id"]
            }
            edits += 3
    print(f"{edits:,} v1 edits, 0 lens laws broken")
