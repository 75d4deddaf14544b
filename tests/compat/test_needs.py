"""The stand-ins bite: each refuses, drops or keeps what the deployed client would, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from inbetweenies.testing.fleet_base import World
from tests.compat import needs
from tests.compat.home import Time, broken
from tests.compat.peers import BlowingOff, HomeKitV1, KittenKongApp, PendingRollbackError
from tests.compat.recordings import KEPT, load
from tests.server.calls import SYNC

RECORDED = {f"{wire}/{each.name[:2]}": each for wire in ("v1", "v2") for each in load(KEPT / wire)}
READERS: dict[str, Callable[[bytes], Any]] = {
    "blowing-off": needs.blowing_off,
    "kittenkong": needs.kittenkong,
    "delta": needs.v1_delta,
    "result": needs.v1_result,
}
EMPTY: dict[str, Any] = {
    "sync_type": "delta", "changes": [], "conflicts": [], "server_time": "2026-11-23T01:53:16.000000+00:00",
    "applied": [], "applied_relationships": [],
}  # fmt: skip
LAMP = {"id": "lamp", "version": "v", "entity_type": "device", "name": "Theirs", "content": {}, "source_type": "manual",
        "user_id": "u"}  # fmt: skip


def changed(answer: Any, place: str, value: Any) -> bytes:
    """An answer with another value at a place, or (for an Ellipsis) without it."""
    answer = json.loads(json.dumps(answer))
    *way, last = place.split("/")
    inner = answer
    for key in way:
        inner = inner[int(key) if key.isdigit() else key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(answer).encode()


@pytest.mark.parametrize(
    ("name", "place", "value", "who"),
    [
        ("v2/12", "applied", None, {"blowing-off"}),
        ("v2/12", "applied", ..., set()),
        ("v2/12", "vector_clock", None, {"blowing-off"}),
        ("v2/12", "sync_stats", None, {"blowing-off"}),
        ("v2/12", "changes", ..., {"kittenkong"}),
        ("v2/12", "conflicts", None, {"blowing-off", "kittenkong"}),
        ("v2/12", "changes/0/change_type", "upsert", {"blowing-off"}),
        ("v2/12", "changes/0/entity/user_id", None, {"blowing-off"}),
        ("v2/12", "changes/0/entity/content", None, {"blowing-off"}),
        ("v2/12", "changes/0/entity/version", ..., {"blowing-off", "kittenkong"}),
        ("v2/12", "changes/0/entity", None, set()),
        ("v2/12", "server_time", "soon", {"kittenkong"}),
        ("v2/12", "server_time", ..., set()),
        ("v2/12", "more", {"fields": "are fine"}, set()),
        ("v2/28", "conflicts/0/resolution_strategy", ..., {"blowing-off"}),
        ("v1/12", "changes", ..., set()),
        *(("v1/12", f"changes/0/{key}", ..., {"delta"}) for key in
          ("entity_type", "entity_id", "operation", "data", "updated_at", "sync_id")),
        ("v1/12", "changes/0/sync_id", None, set()),
        ("v1/12", "changes/0/updated_at", "soon", {"delta"}),
        ("v1/12", "changes/0/operation", "upsert", {"delta"}),
        ("v1/12", "conflicts", [{"entity_type": "room"}], {"delta"}),
        ("v1/20", "conflicts/0/resolution", ..., {"result"}),
        ("v1/04", "applied/0/status", ..., {"result"}),
        ("v1/04", "applied/0/client_sync_id", ..., {"result"}),
    ],
)  # fmt: skip
def test_an_answer_is_readable_unless_a_client_needs_what_it_lacks(
    name: str, place: str, value: Any, who: set[str]
) -> None:
    answer = RECORDED[name].answer
    kinds = {"blowing-off", "kittenkong"} if name.startswith("v2") else {"result" if "applied" in answer else "delta"}
    refused = set()
    for kind in kinds:
        READERS[kind](json.dumps(answer).encode())
        try:
            READERS[kind](changed(answer, place, value))
        except needs.Unreadable:
            refused.add(kind)

    assert who == refused


@pytest.mark.parametrize(
    ("name", "place", "value", "why"),
    [
        ("v2/12", "applied", ["a", "b", "c"], "told of"),
        ("v2/12", "changes", [], "not among the changes"),
        ("v2/12", "changes/0/entity", None, "without an entity"),
        ("v2/12", "sync_stats/entities_synced", 0, "counts"),
        ("v1/12", "changes/0/updated_at", "2026-11-23T01:39:28.000000+00:00", "says its zone"),
        ("v1/04", "applied", [], "told of"),
        ("v2/03", "role", ..., "role"),
    ],
)
def test_an_answer_with_which_a_client_could_not_go_on_is_found(name: str, place: str, value: Any, why: str) -> None:
    recording = RECORDED[name]
    needs.check(recording.path, recording.body, json.dumps(recording.answer).encode())

    with pytest.raises(needs.Unreadable, match=why):
        needs.check(recording.path, recording.body, changed(recording.answer, place, value))


@pytest.fixture
def world() -> World:
    return World(clock=Time(), told=lambda line: None, broken=broken, page_rows=1, batch=1)


def pushing(peer: Any) -> None:
    """Bring a client to where it waits for the answer to a push."""
    for _ in range(2):
        peer.say()
        if peer.phase in ("pull", "request"):
            peer.hear(EMPTY)


@pytest.mark.parametrize(
    ("kind", "answer", "waits"),
    [
        (BlowingOff, {"applied": ["lamp"]}, False),
        (BlowingOff, {"changes": [{"change_type": "update", "entity": LAMP}]}, True),
        (KittenKongApp, {"applied": ["lamp"]}, True),
        (KittenKongApp, {"changes": [{"change_type": "update", "entity": LAMP}]}, False),
    ],
)
def test_a_v2_client_clears_by_what_it_looks_at(world: World, kind: Any, answer: Any, waits: bool) -> None:
    with httpx.Client() as http:
        peer = kind("peer", world, http)
        peer.write("lamp", "device", "Lamp")
        pushing(peer)
        peer.hear(EMPTY | answer)

    assert (("lamp",) if waits else ()) == peer.pending


@pytest.mark.parametrize(("status", "waits"), [("applied", False), ("conflict", True), ("ignored", True)])
def test_a_v1_client_clears_by_one_status_alone(world: World, status: str, waits: bool) -> None:
    with httpx.Client() as http:
        phone = HomeKitV1("phone", world, http)
        phone.write("home", "home-1", name="Villa")
        pushing(phone)
        label = next(iter(phone.sent))
        phone.hear({"applied": [{"client_sync_id": label, "server_sync_id": "s", "status": status}], "conflicts": []})

    assert (("home/home-1",) if waits else ()) == phone.pending


def test_a_v1_client_drops_what_it_cannot_compare_or_store(world: World) -> None:
    def told(id_: str, time: str = "2030-01-01T00:00:00.000000", type_: str = "home", **data: Any) -> Any:
        record = {"id": id_, "name": "Theirs", "updated_at": time, **data}
        return {"entity_type": type_, "entity_id": id_, "operation": "update", "data": record, "updated_at": time}

    with httpx.Client() as http:
        phone = HomeKitV1("phone", world, http)
        phone.write("home", "home-1", name="Mine")
        phone.take(told("home-1", "2030-01-01T00:00:00.000000+00:00"))
        phone.take(told("home-2", colour="red"))
        phone.take(told("ship-1", type_="spaceship"))
        assert {("home", "home-1"): "Mine"} == {key: record["name"] for key, record in phone.records.items()}
        phone.take(told("home-1"))
        phone.take(told("home-3", type_="homes"))
        assert {"Theirs"} == {record["name"] for record in phone.records.values()}
        with pytest.raises(PendingRollbackError):
            phone.take(told("room-1", type_="room"))


def test_kittenkong_makes_a_note_of_nothing_and_never_recovers_from_a_time_that_is_none(world: World) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != SYNC:
            return httpx.Response(200, json={"status": "healthy"})
        return httpx.Response(200, json=answers.pop())

    answers = [EMPTY, EMPTY | {"server_time": "soon"}, EMPTY | {"changes": [{"change_type": "update", "entity": None}]}]
    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://test") as http:
        cat = KittenKongApp("cat", world, http)
        assert cat.sync().success
        assert ["note"] == [row.entity_type for row in cat.rows.values()]
        assert "RangeError" not in cat.sync().error
        assert "RangeError" in cat.sync().error
        assert 1 == len(answers)
