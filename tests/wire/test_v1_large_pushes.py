"""Pushes of v1 records that are much dearer than they are long: each edit of a few bytes makes a whole row."""

from __future__ import annotations

from typing import Any

import pytest

from inbetweenies.limits import Limits
from inbetweenies.model import Reads
from inbetweenies.wire.v1 import codec
from tests.support import Server, at, entity
from tests.wire.test_v1_plans import applied, problems, record, time
from tests.wire.v1_support import V1Client, change

LARGE = {"manual": "x" * 2_000}


def house(limits: Limits | None = None) -> tuple[Server, V1Client]:
    server = Server(limits=limits)
    server.push(entity("h", at(0), entity_type="home"), entity("lamp", at(0), LARGE))
    return server, V1Client(server)


def renamed(n: int, *, token: str | None = None) -> dict[str, Any]:
    return change("accessory", record("accessory", "lamp", n, name=f"Lamp {n}", sync_id=token), label=str(n))


@pytest.mark.parametrize("most", [1, 5_000, 20_000])
def test_a_push_of_edits_to_one_large_device_is_taken_in_parts_and_none_is_lost(most: int) -> None:
    server, client = house(Limits(handled_bytes_max=most))
    waiting = [renamed(n) for n in range(1, 13)]

    rounds = 0
    while waiting:
        answer = client.push(*waiting)
        left = {each["client_sync_id"] for each in answer.get("refused", [])}
        assert {"too_much_at_once"} >= {code for code, _ in problems(answer)}
        assert len(answer["applied"]) == len(waiting) - len(left) > 0
        waiting = [each for each in waiting if each["client_sync_id"] in left]
        rounds += 1

    assert rounds > 1
    assert "Lamp 12" == client.records()["lamp"]["name"]
    names = {row.entity().name for row in server.held(Reads(history=("lamp",))).history["lamp"]}
    assert {f"Lamp {n}" for n in range(1, 13)} <= names


def test_a_push_over_many_old_states_reads_only_so_many_of_them() -> None:
    server, client = house(Limits(handled_bytes_max=5_000))
    tokens = []
    for n in range(1, 7):
        assert ["lamp"] == applied(client.push(renamed(n)))
        tokens.append(client.records()["lamp"]["sync_id"])
    current = server.current("lamp")
    # Now a small one, so that it is not what the edits are of that makes them dear.
    server.push(entity("lamp", at(50), parent_versions=(current.version,)))
    answer = client.push(*[renamed(60 + n, token=token) for n, token in enumerate(tokens)])

    assert 6 == len(answer["applied"]) + len(answer["refused"])
    assert 0 < len(answer["applied"]) < 6
    assert {"too_much_at_once"} == {code for code, _ in problems(answer)}


def test_records_that_are_made_are_counted_too() -> None:
    server, client = house(Limits(handled_bytes_max=5_000))
    long = "x" * 2_000
    pushed = [record("accessory", f"new {n}", model=long, updated_at=time(n)) for n in range(6)]
    answer = client.push(*[change("accessory", each) for each in pushed])

    assert ["new 0", "new 1", "new 2"] == applied(answer)
    assert [("too_much_at_once", f"/changes/{n}") for n in (3, 4, 5)] == problems(answer)
    assert "new 0" == server.current("new 0").name


def test_of_a_flood_of_changes_that_are_none_a_thousand_are_told_and_the_good_ones_are_taken() -> None:
    server, client = house()
    junk: list[Any] = [7, {}, {"entity_type": "room"}, None] * 500
    answer = client.push(*junk[:1_500], renamed(1), *junk[1_500:], renamed(2), change("room", record("room", "r")))

    assert ["lamp", "lamp", "r"] == applied(answer)
    assert [f"/changes/{n}" for n in range(1_000)] == [
        "/".join(each["pointer"].split("/")[:3]) for each in answer["refused"]
    ]
    assert ("Lamp 2", "r") == (server.current("lamp").name, server.current("r").id)


def test_what_a_flood_of_changes_that_are_none_costs_does_not_follow_its_length() -> None:
    def items(n: int) -> int:
        push = codec.decode(b'{"type":"sync_push","changes":[%s0]}' % (b"0," * n), limits=Limits())
        assert isinstance(push, codec.Push)
        assert n + 1 == len(push.items)
        return len(set(map(id, push.items)))

    assert items(2_000) == items(4_000) == 1_001
