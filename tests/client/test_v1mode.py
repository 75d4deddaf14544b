"""The client against servers that only speak v1: what records can say goes over, and nothing else is forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blowing_off import BadAnswer, BlowingOffClient, Unreachable
from blowing_off.transport import refused
from inbetweenies.errors import NoCommonVersion, UnsupportedVersion, VersionDisabled, VersionRefused
from inbetweenies.model import format_time, parse_time
from inbetweenies.offers import VersionPolicy
from tests.client.test_client import Clock, Deployed, Home, client_of, content, names, same
from tests.support import NOW, SECOND

V1, V2 = "inbetweenies-v1", "inbetweenies-v2"


PLURALS = {"home": "homes", "room": "rooms", "accessory": "accessories", "user": "users"}


def without_v2(home: Home) -> Home:
    home.fallback.disabled = frozenset({V2})
    return home


def with_v2(home: Home) -> Home:
    home.fallback.disabled = frozenset()
    return home


def why(client: BlowingOffClient) -> dict[str, str | None]:
    """What waits, by name or type, and for what reason."""
    return {
        item.copy.name or item.copy.entity_type: None if item.note is None else item.note.code
        for item in client.store.pending()
    }


class DeployedV1:
    """The v1 server as deployed: records found by `sync_id`, taken updates told as conflicts, deletes ignored."""

    def __init__(self) -> None:
        self.records: dict[str, dict[str | None, dict[str, Any]]] = {type_: {} for type_ in PLURALS}
        self.now = NOW
        self.paths: list[str] = []
        self.pushed: list[dict[str, Any]] = []

    def put(self, type_: str, **data: Any) -> None:
        now = format_time(self.now, naive=True)
        self.records[type_][data["id"]] = {"created_at": now, "updated_at": now, "sync_id": data["id"], **data}

    async def get(self, path: str) -> bytes:
        raise refused(404)

    async def post(self, path: str, body: bytes) -> bytes:
        self.paths.append(path)
        self.now += SECOND
        ask = json.loads(body)
        if path == "/api/v1/sync/":
            return b'{"synced":{"homes":0},"conflicts":[],"changes":{},"timestamp":"2026-11-23T01:37:17.912215"}'
        if path == "/api/v1/sync/request":
            return json.dumps(self.delta(ask)).encode()
        if path == "/api/v1/sync/push":
            return json.dumps(self.push(ask)).encode()
        return b'{"type":"sync_ack_response","status":"acknowledged","server_time":"2026-11-23T01:37:17+00:00"}'

    def delta(self, ask: dict[str, Any]) -> dict[str, Any]:
        since = ask["last_sync"]
        if since is not None and not since[-6:].replace(".", "").isdigit():
            raise refused(500, b"Internal Server Error")
        rows = [
            (type_, data)
            for type_, plural in PLURALS.items()
            for data in self.records[type_].values()
            if plural in ask["entity_types"] and (since is None or data["updated_at"] > since)
        ]
        changes = [
            {
                "entity_type": type_,
                "entity_id": data["id"],
                "operation": "update",
                "data": data,
                "updated_at": data["updated_at"],
                "sync_id": data["sync_id"],
            }
            for type_, data in rows
        ]
        return {"type": "sync_delta", "server_time": format_time(self.now), "changes": changes, "conflicts": []}

    def push(self, ask: dict[str, Any]) -> dict[str, Any]:
        applied, conflicts = [], []
        for change in ask["changes"]:
            self.pushed.append(change)
            data, held = change["data"], self.records[change["entity_type"]]
            old = held.get(data["sync_id"])
            if change["operation"] == "delete":
                continue
            if old is None:
                held[data["sync_id"]] = data
                label = change["client_sync_id"]
                applied.append({"client_sync_id": label, "server_sync_id": "server-x", "status": "applied"})
                continue
            gap = (parse_time(data["updated_at"]) or 0) - (parse_time(old["updated_at"]) or 0)
            if gap >= SECOND:
                held[data["sync_id"]] = data
            conflicts.append(
                {
                    "entity_type": change["entity_type"],
                    "entity_id": change["entity_id"],
                    "reason": "newer_on_server",
                    "server_version": held[data["sync_id"]],
                    "client_version": data,
                    "resolution": "server_wins",
                }
            )
        return {"type": "sync_result", "applied": applied, "conflicts": conflicts}


@pytest.fixture
def home() -> Home:
    return Home()


async def furnished(home: Home) -> tuple[BlowingOffClient, str, str, str]:
    """A client that knows a house by v2: home, room and lamp, with more than v1 can say."""
    ann = client_of(home)
    house = await ann.add("home", "House", {"is_primary": True}, source_type="homekit")
    room = await ann.add("room", "Hall", {"floor": 2})
    lamp = await ann.add("device", "Lamp", {"manufacturer": "Eve", "secret": {"v2": "only"}})
    await ann.link(room.id, house.id, "part_of")
    await ann.link(lamp.id, room.id, "located_in")
    await ann.sync()
    return ann, house.id, room.id, lamp.id


async def test_what_records_can_say_goes_over_and_the_rest_waits(home: Home) -> None:
    ann, house, _, lamp = await furnished(home)
    without_v2(home)
    await ann.change(house, name="Castle")
    await ann.change(lamp, patch={"manufacturer": "Aqara", "secret": {"v2": "changed"}})
    await ann.add("note", "Milk", {"text": "buy"})
    report = await ann.sync()

    assert (V1, 1, None, 2) == (report.served, report.pushed, report.equal, report.pending)
    assert {"Lamp": "v1_cannot_carry", "Milk": "v1_cannot_carry"} == why(ann)
    assert ["Castle", "Hall", "Lamp", "Milk"] == await names(ann)
    blocked = (await ann.status()).refused
    assert {"It is sent by itself once the server speaks a newer version."} == {one.advice for one in blocked}
    other = client_of(with_v2(home), "bob")
    await other.sync()
    assert ["Castle", "Hall", "Lamp"] == await names(other)
    seen = await other.get(lamp)
    assert {"manufacturer": "Aqara", "secret": {"v2": "only"}} == content(seen)


async def test_what_waited_is_pushed_whole_when_v2_is_back(home: Home) -> None:
    ann, house, _, lamp = await furnished(home)
    bob = client_of(home, "bob")
    await bob.sync()
    without_v2(home)
    await ann.change(house, name="Castle")
    changed = await ann.change(lamp, patch={"manufacturer": "Aqara", "secret": {"v2": "changed"}})
    milk = await ann.add("note", "Milk", {"text": "buy"})
    await ann.sync()
    await ann.sync()
    with_v2(home)
    reports = [await ann.sync(), await bob.sync(), await ann.sync()]

    assert [True] * 3 == [report.equal for report in reports]
    assert [0] * 3 == [report.pending for report in reports]
    assert [()] * 3 == [report.conflicts for report in reports]
    assert V2 == reports[0].served
    assert same(ann, bob)
    assert changed.version in home.versions(lamp)
    assert [milk.version] == home.versions(milk.id)
    assert ["Castle", "Hall", "Lamp", "Milk"] == await names(bob)
    assert {"manufacturer": "Aqara", "secret": {"v2": "changed"}} == content(await bob.get(lamp))


async def test_an_edit_of_another_v1_client_changes_only_what_it_said(home: Home) -> None:
    ann, _, _, lamp = await furnished(home)
    without_v2(home)
    bob = client_of(home, "bob")
    await bob.sync()
    bob.clock = Clock(NOW + 60 * SECOND)
    await bob.change(lamp, name="Lantern")
    await bob.sync()
    report = await ann.sync()

    assert (V1, 1, 0) == (report.served, report.pulled, report.pending)
    seen = await ann.get(lamp)
    assert seen is not None
    assert "Lantern" == seen.name
    assert {"manufacturer": "Eve", "secret": {"v2": "only"}} == content(seen)
    assert 2 == len(await ann.links())
    again = await ann.sync()
    assert (0, 0) == (again.pulled, again.pushed)


async def test_edits_of_different_fields_both_stay(home: Home) -> None:
    ann, _, _, lamp = await furnished(home)
    without_v2(home)
    bob = client_of(home, "bob")
    await bob.sync()
    bob.clock = Clock(NOW + 60 * SECOND)
    await bob.change(lamp, name="Lantern")
    await ann.change(lamp, patch={"model": "Mark II"})
    await bob.sync()
    await ann.sync()
    await ann.sync()
    await bob.sync()
    for client in (ann, bob):
        seen = await client.get(lamp)
        assert seen is not None
        assert ("Mark II", "Eve") == (content(seen)["model"], content(seen)["manufacturer"])
    assert "Lantern" == (await names(bob))[-1]


async def test_a_pulled_record_does_not_hide_what_waits(home: Home) -> None:
    ann, _, _, lamp = await furnished(home)
    without_v2(home)
    bob = client_of(home, "bob")
    await bob.sync()
    await bob.change(lamp, name="Lantern")
    await bob.sync()
    await ann.change(lamp, name="Torch", patch={"secret": 1})
    await ann.sync()

    assert "Torch" in await names(ann)
    assert {"Torch": "v1_cannot_carry"} == why(ann)


async def test_a_delete_goes_over_and_is_heard_of(home: Home) -> None:
    ann, house, room, lamp = await furnished(home)
    bob = client_of(home, "bob")
    await bob.sync()
    without_v2(home)
    await ann.sync()
    await bob.sync()
    await ann.delete(lamp)
    report = await ann.sync()
    await bob.sync()
    await bob.sync()

    assert (1, 0) == (report.pushed, report.pending)
    assert await bob.get(lamp) is None
    assert {house, room} == {entity.id for entity in await bob.find()}


async def test_several_edits_of_one_thing_wait_for_a_server_of_rows(home: Home) -> None:
    ann, house, _, _ = await furnished(home)
    without_v2(home)
    await ann.change(house, name="One")
    last = await ann.change(house, name="Two")
    report = await ann.sync()
    again = await ann.sync()

    assert (0, 2) == (report.pushed, report.pending) == (again.pushed, again.pending)
    assert last == await ann.get(house)
    with_v2(home)
    assert (True, 0) == ((report := await ann.sync()).equal, report.pending)
    assert last.version in home.versions(house)


async def test_a_new_home_with_everything_in_it_goes_over(home: Home) -> None:
    without_v2(home)
    ann, bob = client_of(home), client_of(home, "bob")
    house = await ann.add("home", "House", {"is_primary": True})
    lamp = await ann.add("device", "Lamp", {"model": "M"})
    bridge = await ann.add("device", "Bridge", {"is_bridge": True})
    await ann.link(lamp.id, house.id, "part_of")
    await ann.link(lamp.id, bridge.id, "part_of", {"role": "bridge"})
    report = await ann.sync()
    await bob.sync()

    assert (5, 0) == (report.pushed, report.pending)
    assert ["Bridge", "House", "Lamp"] == await names(bob)
    assert {house.id, bridge.id} == {edge.to_entity_id for edge in await bob.links(lamp.id)}


async def test_a_lost_answer_costs_nothing(home: Home) -> None:
    ann, house, _, _ = await furnished(home)
    without_v2(home)
    await ann.change(house, name="Castle")
    for fault in (["", "unheard"], ["", "", "unheard"], ["", "", "", "unheard"]):
        home.faults.extend(fault)
        with pytest.raises(Unreachable):
            await ann.sync()
        home.faults.clear()
    report = await ann.sync()

    assert (0, 0) == (report.pushed, report.pending)  # only the thanks were lost the last time
    bob = client_of(home, "bob")
    await bob.sync()
    assert "Castle" in await names(bob)


async def test_the_deployed_v1_server_is_spoken_to_as_it_understands() -> None:
    server = DeployedV1()
    server.put("home", id="home-1", name="House", is_primary=True)
    server.put("room", id="room-1", home_id="home-1", name="Hall")
    server.put(
        "accessory", id="acc-1", home_id="home-1", name="Lamp", manufacturer="Eve", model=None, serial_number=None,
        firmware_version=None, is_reachable=True, is_blocked=False, is_bridge=False, bridge_id=None,
    )  # fmt: skip
    ann = client_of(server)
    report = await ann.sync()

    assert (V1, 5, 0) == (report.served, report.pulled, report.pending)
    assert ["Hall", "House", "Lamp"] == await names(ann)
    assert {"home-1"} == {edge.to_entity_id for edge in await ann.links()}
    assert ["/api/v1/sync/", "/api/v1/sync/request", "/api/v1/sync/ack"] == server.paths
    assert 0 == (await ann.sync()).pulled

    ann.clock = Clock(server.now + 10 * SECOND)
    await ann.change("acc-1", name="Lantern")
    await ann.add("room", "Attic")
    attic = (await ann.resolve("Attic"))[0]
    report = await ann.sync()
    assert (2, 0) == (report.pushed, report.pending)
    assert "Lantern" == server.records["accessory"]["acc-1"]["name"]
    assert "Eve" == server.records["accessory"]["acc-1"]["manufacturer"]
    assert {None} & set(server.records["room"]) == set()
    assert attic.id in [room["id"] for room in server.records["room"].values()]
    assert all(change["client_sync_id"] for change in server.pushed)
    assert all("+" not in change["data"]["updated_at"] for change in server.pushed)

    await ann.delete("room-1")
    report = await ann.sync()
    assert (0, 1) == (report.pushed, report.pending)  # it takes no deletes and says nothing
    assert await ann.get("room-1") is None


async def test_an_edit_within_a_second_of_the_servers_is_not_taken_for_a_tie() -> None:
    server = DeployedV1()
    server.put("home", id="home-1", name="House", is_primary=True)
    ann = client_of(server)
    await ann.sync()
    ann.clock = Clock((parse_time(server.records["home"]["home-1"]["updated_at"]) or 0) + 1000)
    await ann.change("home-1", name="Castle")
    report = await ann.sync()

    assert (1, 0) == (report.pushed, report.pending)
    assert "Castle" == server.records["home"]["home-1"]["name"]


async def test_an_edit_that_lost_on_the_server_waits() -> None:
    server = DeployedV1()
    server.put("home", id="home-1", name="House", is_primary=True)
    ann = client_of(server)
    await ann.sync()
    server.now += 3600 * SECOND
    server.put("home", id="home-1", name="Theirs", is_primary=True)
    await ann.change("home-1", name="Mine")
    report = await ann.sync()

    assert (0, 1) == (report.pushed, report.pending)
    assert ["Mine"] == await names(ann)
    assert {"Mine": "v1_cannot_carry"} == why(ann)


async def test_a_deployed_v1_server_that_is_replaced_by_ours_gets_all_of_it() -> None:
    server, home = DeployedV1(), Home()
    server.put("home", id="home-1", name="House", is_primary=True)
    ann = client_of(server)
    lamp = await ann.add("device", "Lamp", {"secret": 1})
    await ann.sync()
    ann._given = home
    report = await ann.sync()
    bob = client_of(home, "bob")
    await bob.sync()

    assert (V2, True, 0) == (report.served, report.equal, report.pending)
    assert ["House", "Lamp"] == await names(bob)
    assert [lamp.version] == home.versions(lamp.id)


async def test_every_recorded_answer_of_the_deployed_v1_server_is_understood(shared_data: Path) -> None:
    told = 0
    for file in sorted((shared_data / "recorded" / "v1").glob("*.json")):
        recorded = json.loads(file.read_text())
        body = recorded["response"].get("body")
        if recorded["response"]["status"] != 200 or not isinstance(body, dict) or body.get("type") != "sync_delta":
            continue

        class Mouth(DeployedV1):
            async def post(self, path: str, body: bytes, told: Any = body) -> bytes:
                return json.dumps(told).encode() if path.endswith("/request") else await super().post(path, body)

        ann = client_of(Mouth())
        report = await ann.sync()
        told += 1
        ids = {change["entity_id"] for change in body["changes"]}
        assert V1 == report.served
        assert len(ids) == len(await ann.find(deleted=True)), file.name
        assert 0 == (await ann.sync()).pulled, file.name
        await ann.close()

    assert told > 5


async def test_the_time_that_a_v1_server_told_means_nothing_in_v2() -> None:
    old, new = DeployedV1(), Deployed()
    bob = client_of(new, "bob")
    await bob.add("device", "Lamp")
    await bob.sync()
    old.now += 3600 * SECOND
    old.put("home", id="home-1", name="House", is_primary=True)
    ann = client_of(old)
    for _ in range(3):
        await ann.sync()
    ann._given = new
    report = await ann.sync()

    assert (V2, 0) == (report.served, report.pending)
    assert ["House", "Lamp"] == await names(ann)
    assert "home-1" in new.rows


# --- law 10 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        refused(404),
        refused(401),
        refused(503),
        refused(500),
        refused(400),
        refused(400, b'{"detail":"Unsupported protocol version, or something like it"}'),
        refused(422, b'{"detail":"Unsupported protocol version"}'),
        refused(503, b'{"supported":["inbetweenies-v1"]}'),
        Unreachable("no answer"),
        BadAnswer(expected="JSON", got="an HTML page"),
    ],
    ids=str,
)
async def test_no_other_failure_lowers_the_wire_version(error: Exception) -> None:
    paths = []

    class Mouth:
        async def post(self, path: str, body: bytes) -> bytes:
            paths.append(path)
            raise error

        async def get(self, path: str) -> bytes:
            raise error

    ann = client_of(Mouth())
    with pytest.raises(type(error)):
        await ann.sync()

    assert ["/api/v1/sync/"] == paths


@pytest.mark.parametrize(
    ("told", "kind", "paths"),
    [
        (b'{"supported":["inbetweenies-v2","inbetweenies-v1"]}', UnsupportedVersion, ["/api/v1/sync/"]),
        (b'{"supported":["inbetweenies-v7"]}', NoCommonVersion, ["/api/v1/sync/"]),
        (b'{"detail":"Unsupported protocol version"}', UnsupportedVersion, ["/api/v1/sync/", "/api/v1/sync/request"]),
    ],
)
async def test_a_server_that_speaks_nothing_of_ours_is_told_so(told: bytes, kind: type, paths: list[str]) -> None:
    asked = []

    class Mouth:
        async def post(self, path: str, body: bytes) -> bytes:
            asked.append(path)
            raise refused(400, told)

        async def get(self, path: str) -> bytes:
            raise refused(404)

    ann = client_of(Mouth())
    await ann.add("device", "Lamp")
    with pytest.raises(VersionRefused, match="What waits here is kept") as caught:
        await ann.sync()

    assert (kind, paths, 1) == (type(caught.value), asked, len(await ann.pending()))
    assert str(caught.value) == (await ann.status()).last_error


@pytest.mark.parametrize("answer", [b"{}", b'{"type":"login"}', b"[]", b'{"type":"sync_result"}', b"\xff"])
async def test_a_server_that_understands_neither_is_told_so(answer: bytes) -> None:
    class Mouth:
        async def post(self, path: str, body: bytes) -> bytes:
            return b'{"hello":"world"}' if path == "/api/v1/sync/" else answer

        async def get(self, path: str) -> bytes:
            raise refused(404)

    ann = client_of(Mouth())
    await ann.add("device", "Lamp")
    before = ann.state
    with pytest.raises(BadAnswer):
        await ann.sync()

    assert (before, 1) == (ann.state, len(await ann.pending()))


async def test_a_client_that_was_told_to_speak_v2_only_does(home: Home) -> None:
    without_v2(home)
    ann = client_of(home, versions=VersionPolicy.exact(V2))
    with pytest.raises(VersionDisabled, match="switched off there for now") as caught:
        await ann.sync()

    assert ((V1,), V2, "server") == (caught.value.supported, caught.value.requested, caught.value.side)
    assert [V2] == [ask["protocol_version"] for ask in home.asked]


@pytest.mark.parametrize(
    "answer",
    [
        b'{"type":"sync_delta","changes":3}',
        b'{"type":"sync_delta","changes":[{}]}',
        b'{"type":"sync_delta","server_time":7}',
    ],
)
async def test_a_delta_that_is_none_changes_nothing(answer: bytes) -> None:
    class Mouth(DeployedV1):
        async def post(self, path: str, body: bytes) -> bytes:
            return answer if path.endswith("/request") else await super().post(path, body)

    ann = client_of(Mouth())
    await ann.add("home", "House")
    before = ann.state
    with pytest.raises(BadAnswer):
        await ann.sync()

    assert (before, 1) == (ann.state, len(await ann.pending()))


async def test_a_record_that_makes_no_sense_is_left_out_and_the_rest_goes_on() -> None:
    server = DeployedV1()
    server.put("home", id="home-1", name="House", is_primary="perhaps")
    server.put("room", id="", name="Nowhere", home_id="home-1")
    server.put("home", id="home-2", name="Castle", is_primary=True)
    ann = client_of(server)
    report = await ann.sync()

    assert (V1, 1) == (report.served, report.pulled)
    assert ["Castle"] == await names(ann)


async def test_what_our_server_refuses_of_a_record_is_told(home: Home) -> None:
    ann = client_of(without_v2(home))
    house = await ann.add("home", "House", {"is_primary": True})
    await ann.sync()
    home.change = lambda answer: (
        answer.update(
            applied=[],
            refused=[
                {
                    "entity_type": "home",
                    "entity_id": house.id,
                    "client_sync_id": home.asked[-1]["changes"][0]["client_sync_id"],
                    "code": "too_large",
                    "pointer": "/changes/0",
                    "detail": "a row of 9 bytes",
                }
            ],
        )
        if answer.get("type") == "sync_result"
        else None
    )
    await ann.change(house.id, name="Castle")
    report = await ann.sync()

    assert [("too_large", house.id)] == [(item.code, item.id) for item in report.refused]
    assert {"Castle": "too_large"} == why(ann)


async def test_a_row_that_says_more_than_a_tombstone_waits_although_it_is_deleted(home: Home) -> None:
    ann, _, room, lamp = await furnished(home)
    without_v2(home)
    await ann.sync()
    await ann.change(lamp, patch={"secret": "new", "deleted": True})
    await ann.delete(room)
    report = await ann.sync()

    assert (1, 1) == (report.pushed, report.pending)
    assert {"Lamp": "v1_cannot_carry"} == why(ann)


async def test_an_edge_that_records_cannot_say_waits(home: Home) -> None:
    ann, house, room, lamp = await furnished(home)
    without_v2(home)
    await ann.link(lamp, room, "monitors")
    await ann.link(room, house, "part_of", {"note": "to the left"}, id="second")
    await ann.link(lamp, house, "located_in")
    report = await ann.sync()

    assert (0, 3) == (report.pushed, report.pending)
    assert {"v1_cannot_carry"} == set(why(ann).values())


async def test_many_records_go_over_in_parts(home: Home) -> None:
    ann = client_of(without_v2(home), batch_changes=3)
    await ann.add("home", "House", {"is_primary": True})
    for n in range(9):
        await ann.add("room", f"Room {n}")
    report = await ann.sync()

    assert (10, 0) == (report.pushed, report.pending)
    pushes = [ask for ask in home.asked if ask.get("type") == "sync_push"]
    assert [3, 3, 3, 1] == [len(ask["changes"]) for ask in pushes]
