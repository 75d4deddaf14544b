"""The client against the real server side in memory, with everything that can go wrong in between."""

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import blowing_off
from blowing_off import (
    BadAnswer,
    BlowingOffClient,
    NotConnected,
    NotFound,
    NotStorable,
    Progress,
    Refused,
    SyncReport,
    SyncRunning,
    Unauthorized,
    Unreachable,
)
from blowing_off.store import LocalStore
from blowing_off.transport import refused
from blowing_off.values import merge_patch
from inbetweenies.errors import LocalProtocolError, ServedVersionMismatch, StoreError
from inbetweenies.limits import Limits
from inbetweenies.merge import ancestors
from inbetweenies.model import Context, Held, Reads, edit_time
from inbetweenies.offers import VersionPolicy
from inbetweenies.router import ProtocolFallback
from inbetweenies.store import Store
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.stores.sqlite import SqliteStore
from tests.client.test_transport import Evil, answer, serving
from tests.support import NOW, SECOND, run

ROOT = Path(__file__).resolve().parents[2]
V2 = "inbetweenies-v2"


class Home:
    """The transport with the real server inside.

    `faults` holds what happens to the next requests: ``lost`` never arrives, ``unheard`` is processed but its answer
    is lost, ``twice`` arrives twice, ``busy`` is refused. `on_the_way` runs once after the next request was processed
    and before its answer is heard.
    """

    def __init__(self, store: Store | None = None, *, limits: Limits | None = None) -> None:
        self.limits = limits
        self.now = NOW
        self.faults: deque[str] = deque()
        self.on_the_way: Callable[[], Awaitable[object]] | None = None
        self.asked: list[dict[str, Any]] = []
        self.change: Callable[[dict[str, Any]], object] | None = None  # what is changed in an answer
        self.older = False  # the release before, which knew no witness
        self.use(store or MemoryStore())

    def use(self, store: Store) -> None:
        """From here on, another database is behind the same address."""
        self.store = store
        self.fallback = ProtocolFallback(store, limits=self.limits)

    async def post(self, path: str, body: bytes) -> bytes:
        self.asked.append(json.loads(body))
        fault = self.faults.popleft() if self.faults else ""
        if fault == "busy":
            raise refused(503)
        if fault == "lost":
            raise Unreachable("the request was lost")
        answer = await self._process(path, body)
        if fault == "twice":
            answer = await self._process(path, body)
        if self.on_the_way is not None:
            action, self.on_the_way = self.on_the_way, None
            await action()
        if fault == "unheard":
            raise Unreachable("the answer was lost")
        if self.change is not None:
            value = json.loads(answer)
            self.change(value)
            answer = json.dumps(value).encode()
        return answer

    async def _process(self, path: str, body: bytes) -> bytes:
        self.now += 1000
        if self.older:
            message = json.loads(body)
            message["features"] = [name for name in message.get("features", ()) if name != "witness"]
            body = json.dumps(message).encode()
        reply = await self.fallback.handle(body, context=Context(now=self.now, user="home"), path=path)
        if reply.status != 200:
            raise refused(reply.status, reply.body)
        return reply.body

    async def get(self, path: str) -> bytes:
        id_ = path.split("/")[-2]
        rows = self.held(Reads(history=(id_,))).history.get(id_)
        if not path.endswith("/versions") or rows is None:
            raise refused(404)
        return b'{"versions":[' + b",".join(row.body for row in rows) + b"]}"

    def held(self, reads: Reads) -> Held:
        async def read() -> Held:
            async with self.store.transaction("default", write=False) as tx:
                return await tx.read(reads)

        return run(read())

    def versions(self, id_: str) -> list[str]:
        return [row.version for row in self.held(Reads(history=(id_,))).history.get(id_, ())]


class Clock:
    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        self.now += 1
        return self.now


def client_of(home: Any, user: str = "ann", path: str | Path = ":memory:", **fields: Any) -> BlowingOffClient:
    fields.setdefault("clock", Clock())
    return BlowingOffClient(path, transport=home, user=user, device=f"{user}-tablet", **fields)


@pytest.fixture
def home() -> Home:
    return Home()


@pytest.fixture
def ann(home: Home) -> BlowingOffClient:
    return client_of(home, "ann")


@pytest.fixture
def bob(home: Home) -> BlowingOffClient:
    return client_of(home, "bob")


def content(entity: Any) -> Any:
    return msgspec.json.decode(entity.content)


async def names(client: BlowingOffClient) -> list[str]:
    return [entity.name for entity in await client.find()]


def same(*clients: BlowingOffClient) -> bool:
    """Whether replicas show the same."""
    shown = [
        [
            [copy.hash for copy in client.store.find(deleted=True)],
            [copy.hash for copy in client.store.links(deleted=True)],
        ]
        for client in clients
    ]
    return all(one == shown[0] for one in shown)


# --- edits, without a server --------------------------------------------------------------------------------------


async def test_everything_but_sync_works_without_a_server() -> None:
    async with BlowingOffClient(":memory:", clock=Clock()) as client:
        room = await client.add("ROOM", "Kitchen")
        lamp = await client.add("device", "Lamp", {"on": False, "level": {"now": 1}})
        edge = await client.link(lamp.id, room.id, "LOCATED_IN")
        lamp = await client.change(lamp.id, patch={"on": None, "level": {"max": 9}})

        assert {"level": {"max": 9, "now": 1}} == content(lamp)
        assert ("room", "located_in") == (room.entity_type, edge.relationship_type)
        assert [edge] == await client.links(room.id)
        assert [lamp] == await client.find("lam") == await client.resolve(lamp.id[:6])
        assert ["here", "here"] == [version.source for version in await client.history(lamp.id)]
        assert 4 == (await client.status()).pending == len(await client.pending())
        with pytest.raises(NotConnected, match="Connect to one first"):
            await client.sync()


async def test_an_edit_is_a_new_row_that_names_the_one_before(ann: BlowingOffClient) -> None:
    first = await ann.add("device", "Lamp", {"on": False})
    second = await ann.change(first.id, name="Lantern", content={"on": True}, entity_type="NOTE")
    third = await ann.delete(first.id)

    assert [(), (first.version,), (second.version,)] == [row.parent_versions for row in (first, second, third)]
    assert ("Lantern", "note", {"on": True}) == (second.name, second.entity_type, content(second))
    assert {"on": True, "deleted": True} == content(third)
    assert first.version < second.version < third.version
    assert third == await ann.delete(first.id)
    assert await ann.get(first.id) is None
    assert [third] == await ann.find(deleted=True)


async def test_a_change_of_nothing_makes_no_row(ann: BlowingOffClient) -> None:
    lamp = await ann.add("device", "Lamp", {"on": False})

    assert lamp == await ann.change(lamp.id, name="Lamp", patch={"on": False}, entity_type="device")
    assert 1 == len(await ann.pending())


async def test_a_deleted_entity_comes_back_only_if_that_is_said(ann: BlowingOffClient) -> None:
    lamp = await ann.add("device", "Lamp", {"on": False})
    gone = await ann.delete(lamp.id)

    with pytest.raises(NotFound, match="Bring it back"):
        await ann.change(lamp.id, name="Lantern")
    back = await ann.change(lamp.id, patch={"deleted": None})
    assert (back.parent_versions, content(back)) == ((gone.version,), {"on": False})

    gone = await ann.delete(lamp.id)
    again = await ann.add("device", "Lamp 2", id=lamp.id)
    assert (gone.version,) == again.parent_versions


async def test_an_edge_is_changed_by_its_id_and_deleted_by_a_tombstone(ann: BlowingOffClient) -> None:
    lamp, hall, room = [await ann.add("room", name) for name in ("Lamp", "Hall", "Room")]
    edge = await ann.link(lamp.id, hall.id, "located_in", {"note": "left"})
    moved = await ann.link(lamp.id, room.id, "located_in", id=edge.id)
    assert [moved] == await ann.links(lamp.id)

    gone = await ann.unlink(edge.id)
    assert b'{"deleted":true}' == bytes(gone.properties)
    assert gone == await ann.unlink(edge.id)
    assert [] == await ann.links()
    assert [gone] == await ann.links(deleted=True)


async def test_what_is_not_here_cannot_be_changed(ann: BlowingOffClient) -> None:
    lamp = await ann.add("device", "Lamp")
    gone = await ann.add("device", "Gone")
    await ann.delete(gone.id)
    before = ann.store.counts()
    for action in (
        ann.change("nobody", name="x"),
        ann.delete("nobody"),
        ann.link(lamp.id, "nobody", "located_in"),
        ann.link(gone.id, lamp.id, "located_in"),
        ann.unlink("nobody"),
    ):
        with pytest.raises(NotFound):
            await action

    assert before == ann.store.counts()
    assert await ann.get("nobody") is None


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"x": value}
    return value


async def test_what_is_nested_as_deep_as_may_be_is_taken_by_the_server(home: Home, ann: BlowingOffClient) -> None:
    lamp, room = await ann.add("device", "Lamp", nested(59)), await ann.add("room", "Hall")
    await ann.link(lamp.id, room.id, "located_in", nested(59))
    report = await ann.sync()

    assert (3, 0, True) == (report.pushed, report.pending, report.equal)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"content": {"x": float("nan")}}, "a finite number"),
        ({"content": {"x": {1, 2}}}, "a JSON value"),
        ({"content": {1: 2}}, "keys of type"),
        ({"content": {"x": 10**5000}}, "exactly"),
        ({"content": {"x": "\ud800"}}, "UTF-8"),
        ({"name": "\ud800"}, "UTF-8"),
        ({"id": ""}, "an empty string"),
        ({"id": "a\nb"}, "no control characters"),
        ({"id": "x" * 1025}, "1 to 1024 bytes"),
        ({"entity_type": ""}, "entity_type: expected"),
        ({"content": {"x": "y" * (8 * 2**20)}}, "8388608 bytes in one row"),
        ({"content": nested(60)}, "nesting of at most 59"),
        ({"content": {"x": [0] * 2**20}}, "at most 1048512 nodes"),
    ],
    ids="nan set key int surrogate name no-id control long-id no-type large deep many".split(),
)
async def test_what_no_server_would_store_is_not_stored_here(
    ann: BlowingOffClient, fields: dict[str, Any], text: str
) -> None:
    arguments: dict[str, Any] = {"entity_type": "device", "name": "Lamp", **fields}
    with pytest.raises(NotStorable, match=text):
        await ann.add(**arguments)

    assert 0 == ann.store.counts().rows


async def test_a_source_that_nobody_knows_is_kept_as_the_server_keeps_it(home: Home, ann: BlowingOffClient) -> None:
    lamp = await ann.add("device", "Lamp", source_type="ZigBee")
    sensor = await ann.add("device", "Sensor", source_type="HOMEKIT")
    report = await ann.sync()

    assert ("imported", "ZigBee", "homekit") == (lamp.source_type, lamp.source_original, sensor.source_type)
    assert (True, 1) == (report.equal, report.messages)


async def test_an_id_that_is_taken_is_not_added_again(ann: BlowingOffClient) -> None:
    await ann.add("device", "Lamp", id="lamp")

    with pytest.raises(NotStorable, match="not taken"):
        await ann.add("device", "Lamp", id="lamp")


async def test_misuse_is_told() -> None:
    for fields in ({"user": ""}, {"user": "a\nb"}, {"device": "x" * 300}, {"batch_changes": 0}, {"page_rows": 0}):
        with pytest.raises(LocalProtocolError):
            BlowingOffClient(":memory:", **fields)
    async with BlowingOffClient(":memory:", clock=Clock()) as client:
        lamp = await client.add("device", "Lamp")
        with pytest.raises(LocalProtocolError, match="got both"):
            await client.change(lamp.id, content={}, patch={})


@given(st.lists(st.integers(0, 2**51), min_size=2, max_size=12))
def test_versions_of_one_client_rise_whatever_its_clock_does(clock: list[int]) -> None:
    left = list(clock)
    client = BlowingOffClient(":memory:", clock=left.pop)
    made = [run(client.add("device", "Lamp")) for _ in clock]
    run(client.close())

    versions = [entity.version for entity in made]
    assert sorted(set(versions)) == versions
    assert all(edit_time(version) is not None for version in versions)
    assert len(clock) == len({entity.id for entity in made})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=4)


@given(OBJECTS, st.text())
def test_any_json_comes_through_the_server_to_the_letter(value: dict[str, Any], name: str) -> None:
    home = Home()
    one, other = client_of(home, "ann"), client_of(home, "bob")
    made = run(one.add("device", name, {**value, "deleted": False}))
    report = run(one.sync())
    run(other.sync())
    copy = other.store.get(made.id)

    assert (True, 0) == (report.equal, report.pending)
    assert copy is not None
    assert one.store.get(made.id) == copy


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_sets_what_it_names_and_nothing_else(target: dict[str, Any], patch: dict[str, Any]) -> None:
    merged = merge_patch(target, patch)

    for key in target.keys() - patch.keys():
        assert target[key] == merged[key]
    for key, value in patch.items():
        if value is None:
            assert key not in merged
        elif not isinstance(value, dict):
            assert value == merged[key]
    assert merged == merge_patch(merged, patch)


def test_merge_patch_does_what_the_appendix_of_its_rfc_says() -> None:
    """RFC 7386, appendix A."""
    cases = [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ]
    for target, patch, expected in cases:
        assert expected == merge_patch(target, patch)


# --- sync ---------------------------------------------------------------------------------------------------------


async def test_two_clients_come_to_hold_the_same(home: Home, ann: BlowingOffClient, bob: BlowingOffClient) -> None:
    room, lamp = await ann.add("room", "Kitchen"), await ann.add("device", "Lamp", {"on": False})
    edge = await ann.link(lamp.id, room.id, "located_in")
    await ann.change(lamp.id, patch={"on": True})
    note = await bob.add("note", "Milk")
    reports = [await ann.sync(), await bob.sync(), await ann.sync()]

    assert [True, True, True] == [report.equal for report in reports]
    assert reports[1].digest == reports[2].digest
    assert (4, 0, V2) == (reports[0].pushed, reports[0].pending, reports[0].served)
    assert (1, 3) == (reports[1].pushed, reports[1].pulled)
    assert (0, 1) == (reports[2].pushed, reports[2].pulled)
    assert same(ann, bob)
    assert [edge] == await bob.links(room.id)
    assert await ann.get(note.id) == note


async def test_a_sync_with_nothing_to_do_is_one_message(home: Home, ann: BlowingOffClient) -> None:
    await ann.add("device", "Lamp")
    await ann.sync()
    report = await ann.sync()

    assert (1, 0, 0, True, False) == (report.messages, report.pushed, report.pulled, report.equal, report.healed)


async def test_a_conflict_is_told_and_the_loser_can_be_read(
    home: Home, ann: BlowingOffClient, bob: BlowingOffClient
) -> None:
    lamp = await ann.add("device", "Lamp")
    await ann.sync()
    await bob.sync()
    mine = await ann.change(lamp.id, name="Ann's")
    bob.clock = Clock(NOW + 60 * SECOND)
    theirs = await bob.change(lamp.id, name="Bob's")
    await bob.sync()
    report = await ann.sync()

    (conflict,) = report.conflicts
    (record,) = await ann.conflicts()
    assert (lamp.id, mine.version, theirs.version) == (
        conflict.entity_id,
        conflict.remote_version,
        conflict.resolved_version,
    )
    assert ("Bob's", theirs.version, (mine.version,)) == (record.name, record.winner, record.losers)
    assert mine.version in [version.entity.version for version in await bob.history(lamp.id)]
    assert same(ann, bob)


async def test_progress_is_told_after_every_message(home: Home) -> None:
    ann = client_of(home, batch_changes=2)
    for n in range(5):
        await ann.add("device", f"Lamp {n}")
    seen: list[Progress] = []
    await ann.sync(seen.append)

    assert [2, 4, 5] == [step.pushed for step in seen]
    assert [3, 1, 0] == [step.pending for step in seen]
    assert {5} == {step.total for step in seen}


async def test_an_answer_is_read_over_as_many_pages_as_it_has(home: Home) -> None:
    ann, bob = client_of(home, "ann"), client_of(home, "bob", page_rows=2)
    room = await ann.add("room", "Hall")
    for n in range(8):
        lamp = await ann.add("device", f"Lamp {n}")
        await ann.link(lamp.id, room.id, "located_in")
    await ann.sync()
    report = await bob.sync()

    assert (17, True, 9) == (report.pulled, report.equal, report.messages)
    assert same(ann, bob)


async def test_an_edge_waits_for_the_row_at_its_end(home: Home, ann: BlowingOffClient) -> None:
    """The first message to an unknown server holds one row of each id, so this edge arrives before its end."""
    room, lamp = await ann.add("room", "Hall"), await ann.add("device", "Lamp")
    await ann.change(lamp.id, patch={"on": True})
    await ann.link(lamp.id, room.id, "located_in")
    report = await ann.sync()

    assert (4, 0, (), True) == (report.pushed, report.pending, report.refused, report.equal)


async def test_what_is_too_much_at_once_is_sent_again_until_all_is_taken() -> None:
    home = Home(limits=Limits(handled_bytes_max=1))
    ann, bob = client_of(home, "ann"), client_of(home, "bob", clock=Clock(NOW + SECOND))
    lamps = [await ann.add("device", f"Lamp {n}") for n in range(5)]
    await ann.sync()
    await bob.sync()
    for lamp in lamps:
        await ann.change(lamp.id, patch={"on": True})
        await bob.change(lamp.id, patch={"level": 3})
    await ann.sync()
    report = await bob.sync()

    assert (5, 0, (), True) == (report.pushed, report.pending, report.refused, report.equal)
    assert {b'{"level":3,"on":true}'} == {bytes(lamp.content) for lamp in await bob.find()}


# --- what goes wrong on the way -----------------------------------------------------------------------------------


async def test_a_lost_request_changes_nothing_here(home: Home, ann: BlowingOffClient) -> None:
    lamp = await ann.add("device", "Lamp")
    home.faults.append("lost")
    with pytest.raises(Unreachable):
        await ann.sync()

    assert 1 == len(await ann.pending())
    assert "the request was lost" == (await ann.status()).last_error
    assert 1 == (await ann.sync()).pushed
    status = await ann.status()
    assert (None, 0) == (status.last_error, status.pending)
    assert status.last_sync is not None
    assert [lamp.version] == home.versions(lamp.id)


async def test_a_lost_answer_is_made_up_for_by_sending_again(home: Home, ann: BlowingOffClient) -> None:
    lamp = await ann.add("device", "Lamp")
    await ann.change(lamp.id, name="Lantern")
    await ann.sync()
    last = await ann.change(lamp.id, name="Torch")
    home.faults.append("unheard")
    with pytest.raises(Unreachable):
        await ann.sync()
    assert 1 == len(await ann.pending())
    report = await ann.sync()

    assert (1, 0, True) == (report.pushed, report.pending, report.equal)
    assert 3 == len(home.versions(lamp.id))
    assert last == await ann.get(lamp.id)


async def test_a_request_that_arrives_twice_counts_once(home: Home, ann: BlowingOffClient) -> None:
    lamp, room = await ann.add("device", "Lamp"), await ann.add("room", "Hall")
    await ann.link(lamp.id, room.id, "located_in")
    home.faults.append("twice")
    report = await ann.sync()

    assert (0, True, ()) == (report.pending, report.equal, report.conflicts)
    assert 3 == home.held(Reads()).head.seq


async def test_an_edit_made_while_a_message_is_under_way_waits_for_its_own_ack(
    home: Home, ann: BlowingOffClient
) -> None:
    lamp = await ann.add("device", "Lamp")
    await ann.sync()
    await ann.change(lamp.id, name="First")

    async def edit() -> None:
        await ann.change(lamp.id, name="Second")
        home.faults.append("lost")  # so that the next message does not clear it

    home.on_the_way = edit
    with pytest.raises(Unreachable):
        await ann.sync()

    assert ["Second"] == [item.copy.name for item in await ann.pending()] == await names(ann)
    await ann.sync()
    assert 3 == len(home.versions(lamp.id))


async def test_a_pulled_row_does_not_hide_an_edit_that_was_not_taken(
    home: Home, ann: BlowingOffClient, bob: BlowingOffClient
) -> None:
    lamp = await ann.add("device", "Lamp")
    await ann.sync()
    await bob.sync()
    await bob.change(lamp.id, name="Bob's")
    await bob.sync()
    await ann.change(lamp.id, name="Ann's")
    home.change = lambda answer: answer.update(acks=[])  # a server that takes nothing and tells everything
    report = await ann.sync()

    assert (0, 1) == (report.pushed, report.pending)
    assert ["Ann's"] == await names(ann)
    home.change = None
    assert 0 == (await ann.sync()).pending


async def test_an_answer_that_cannot_be_written_down_changes_nothing_here(
    home: Home, ann: BlowingOffClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client_and_lamps(home, 3)
    mine = await ann.add("device", "Mine")
    before, rows = ann.state, ann.store.counts()

    def full(self: LocalStore, copies: Any) -> None:
        raise StoreError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "_insert", full)
        with pytest.raises(StoreError):
            await ann.sync()

    assert (before, rows) == (ann.state, ann.store.counts())
    assert (True, 3) == ((await ann.sync()).equal, len(await names(ann)) - 1)
    assert [mine.version] == home.versions(mine.id)


async def client_and_lamps(home: Home, count: int) -> BlowingOffClient:
    other = client_of(home, "other")
    for n in range(count):
        await other.add("device", f"Lamp {n}")
    await other.sync()
    return other


async def test_only_one_sync_of_a_store_runs(home: Home, tmp_path: Path) -> None:
    one, other = client_of(home, path=tmp_path / "a.db"), client_of(home, path=tmp_path / "a.db")
    await one.add("device", "Lamp")

    async def second() -> None:
        with pytest.raises(SyncRunning, match="Wait until it has ended"):
            await other.sync()
        with pytest.raises(SyncRunning):
            await one.sync()

    home.on_the_way = second
    assert 1 == (await one.sync()).pushed
    assert 0 == (await other.sync()).pushed
    await one.close()
    await other.close()


async def test_edits_of_another_process_during_a_sync_are_sent_too(home: Home, tmp_path: Path) -> None:
    one, other = client_of(home, path=tmp_path / "a.db"), client_of(home, path=tmp_path / "a.db")
    lamp = await one.add("device", "Lamp")

    async def edit() -> None:
        await other.change(lamp.id, name="Theirs")

    home.on_the_way = edit
    report = await one.sync()

    assert (2, 0, True) == (report.pushed, report.pending, report.equal)
    await one.close()
    await other.close()


# --- what a server says -------------------------------------------------------------------------------------------


async def test_a_refused_row_waits_and_holds_up_nothing(ann: BlowingOffClient) -> None:
    home = Home(limits=Limits(entity_bytes_max=2_000))
    ann = client_of(home)
    big = await ann.add("note", "Novel", {"text": "x" * 3_000})
    small = await ann.add("note", "Poem")
    report = await ann.sync()

    assert (1, 1, True) == (report.pushed, report.pending, report.equal)
    assert [(big.id, "too_large")] == [(item.id, item.code) for item in report.refused]
    assert 1 == report.messages
    assert [small.version] == home.versions(small.id)
    (blocked,) = (await ann.status()).refused
    assert ("Novel", "too_large", "Change it so that its content becomes smaller; then give the large one up.") == (
        blocked.name,
        blocked.code,
        blocked.advice,
    )
    (waiting,) = await ann.pending()
    assert waiting.note is not None

    sent = len(home.asked)
    assert 1 == (await ann.sync()).pending
    assert [big.id] == [change["entity"]["id"] for ask in home.asked[sent:] for change in ask["changes"]]
    short = await ann.change(big.id, content={})
    report = await ann.sync()
    assert (1, 1) == (report.pushed, report.pending)  # the large row itself still waits
    assert 1 == await ann.give_up(big.id)
    assert (0, short) == (len(await ann.pending()), await ann.get(big.id))
    assert big in [version.entity for version in await ann.history(big.id)]


async def test_only_what_was_refused_can_be_given_up(home: Home) -> None:
    home.limits = Limits(entity_bytes_max=2_000)
    home.use(MemoryStore())
    ann = client_of(home)
    lamp = await ann.add("device", "Lamp")
    assert 0 == await ann.give_up(lamp.id)
    await ann.sync()
    await ann.change(lamp.id, content={"text": "x" * 3_000})
    await ann.sync()
    later = await ann.change(lamp.id, name="Later")
    assert 1 == await ann.give_up(lamp.id)
    assert later == await ann.get(lamp.id)

    novel = await ann.add("note", "Novel", {"text": "x" * 3_000})
    await ann.sync()
    await ann.give_up(novel.id)
    await ann.give_up(lamp.id)
    assert (None, lamp) == (await ann.get(novel.id), await ann.get(lamp.id))
    assert (True, 0) == ((await ann.sync()).equal, len(await ann.pending()))


@pytest.mark.parametrize("status", [400, 413, 422, 500])
async def test_one_row_that_a_server_chokes_on_is_found_and_set_aside(home: Home, status: int) -> None:
    ann = client_of(home)
    for n in range(40):
        await ann.add("device", f"Lamp {n}")
    poison = await ann.add("device", "Poison")
    for n in range(40, 60):
        await ann.add("device", f"Lamp {n}")
    inner = home.post

    async def post(path: str, body: bytes) -> bytes:
        if poison.id.encode() in body:
            raise refused(status, b"Internal Server Error")
        return await inner(path, body)

    home.post = post  # type: ignore[method-assign]
    report = await ann.sync()

    assert (60, 1) == (report.pushed, report.pending)
    assert [poison.id] == [item.id for item in report.refused]
    assert [poison.id] == [item.copy.id for item in await ann.pending()]
    assert report.messages < 30


async def test_a_server_that_is_broken_is_not_asked_for_every_row(home: Home, ann: BlowingOffClient) -> None:
    for n in range(300):
        await ann.add("device", f"Lamp {n}")
    asked = 0

    async def post(path: str, body: bytes) -> bytes:
        nonlocal asked
        asked += 1
        raise refused(500)

    home.post = post  # type: ignore[method-assign]
    with pytest.raises(Refused):
        await ann.sync()

    assert asked < 30
    assert 300 == len(await ann.pending())


@pytest.mark.parametrize(
    "error", [refused(401), refused(404), refused(503), refused(410), refused(400, b'{"detail":"x"}')]
)
async def test_other_refusals_end_the_sync_and_lose_nothing(home: Home, ann: BlowingOffClient, error: Refused) -> None:
    async def post(path: str, body: bytes) -> bytes:
        raise error

    if error.status != 400:
        await ann.add("device", "Lamp")
    home.post = post  # type: ignore[method-assign]
    with pytest.raises(Unauthorized if error.status == 401 else Refused) as caught:
        await ann.sync()

    assert caught.value is error
    assert (await ann.status()).last_error == str(error)


@pytest.mark.parametrize("named", ["inbetweenies-v1", "inbetweenies-v3", "", None, 7, ["inbetweenies-v2"]])
async def test_an_answer_in_a_version_that_was_not_offered_is_not_believed(home: Home, named: Any) -> None:
    ann = client_of(home, versions=VersionPolicy.exact(V2))
    await client_and_lamps(home, 2)
    await ann.add("device", "Lamp")
    before = ann.state
    home.change = lambda answer: answer.update(protocol_version=named)
    with pytest.raises(ServedVersionMismatch, match="nothing was applied"):
        await ann.sync()

    assert before == ann.state
    assert (1, 1) == (len(await ann.pending()), len(await names(ann)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"x"',
        b'{"synced":[],"conflicts":[],"changes":[],"timestamp":"x"}',
        b"\xff",
        b"[" * 500,
        b'{"protocol_version":"inbetweenies-v2","changes":[{}]}',
        b'{"protocol_version":"inbetweenies-v2","applied":3}',
        b'{"protocol_version":"inbetweenies-v2","cursor":"\\ud800"}',
    ],
)
async def test_what_is_no_answer_is_not_believed(home: Home, ann: BlowingOffClient, body: bytes) -> None:
    async def post(path: str, body: bytes, answer: bytes = body) -> bytes:
        return answer

    home.post = post  # type: ignore[method-assign]
    await ann.add("device", "Lamp")
    before = ann.state
    with pytest.raises(BadAnswer, match="Nothing was applied"):
        await ann.sync()

    assert (before, 1) == (ann.state, len(await ann.pending()))


@given(st.binary(max_size=60) | st.from_regex(rb'\{"protocol_version":"inbetweenies-v2",.{0,60}\}', fullmatch=True))
def test_no_answer_whatever_raises_anything_but_our_errors(body: bytes) -> None:
    class Mouth:
        async def post(self, path: str, request: bytes) -> bytes:
            return body

        async def get(self, path: str) -> bytes:
            return body

    client = client_of(Mouth())
    run(client.add("device", "Lamp"))
    with suppress(BadAnswer, ServedVersionMismatch):
        run(client.sync())
    assert 1 == len(run(client.pending()))
    run(client.close())


@pytest.mark.parametrize("lie", [{"more": True}, {"more": True, "cursor": None}, {"digest": "0" * 64}, {"digest": "x"}])
async def test_a_server_that_lies_is_not_asked_for_ever(home: Home, lie: dict[str, Any]) -> None:
    ann = client_of(home)
    await client_and_lamps(home, 3)
    await ann.add("device", "Lamp")
    home.change = lambda answer: answer.update(lie)
    report = await ann.sync()

    assert report.messages < 12
    assert ("more" in lie) == (not report.complete)
    assert 0 == len(await ann.pending())
    assert 4 == len(await names(ann))


async def test_a_server_that_never_ends_is_left_and_gone_back_to(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    await client_and_lamps(home, 5)
    ann = client_of(home, page_rows=1)
    monkeypatch.setattr("blowing_off.sync.MESSAGES_MAX", 3)
    first = await ann.sync()
    second = await ann.sync()

    assert (False, 3, 3) == (first.complete, first.messages, first.pulled)
    assert (True, 2, True) == (second.complete, second.pulled, second.equal)


async def test_a_difference_at_the_end_of_a_restart_is_looked_into_once(home: Home, ann: BlowingOffClient) -> None:
    await client_and_lamps(home, 3)
    await ann.sync()
    home.use(MemoryStore())
    home.change = lambda answer: answer.update(digest="0" * 64)
    report = await ann.sync()

    assert (True, False, 0) == (report.healed, report.equal, report.pending)
    assert report.messages < 8
    assert 1 == (await ann.sync()).messages


async def test_a_difference_that_does_not_heal_is_not_fought_with_every_sync(home: Home) -> None:
    ann = client_of(home)
    await client_and_lamps(home, 3)
    right = "0" * 63

    def off_by_one(answer: dict[str, Any]) -> None:
        answer["digest"] = f"{(int(answer['digest'], 16) + 1) % 2**256:064x}"

    home.change = off_by_one
    first = await ann.sync()
    second = await ann.sync()
    await ann.add("device", "Lamp")
    third = await ann.sync()

    assert (True, False) == (first.healed, first.equal)
    assert (False, False, 1) == (second.healed, second.equal, second.messages)
    assert (False, False) == (third.healed, third.equal)
    home.change = None
    fourth = await ann.sync()
    assert (False, True) == (fourth.healed, fourth.equal)
    assert right


async def test_a_row_that_went_missing_here_is_found_and_fetched(home: Home, ann: BlowingOffClient) -> None:
    await client_and_lamps(home, 5)
    await ann.sync()
    with ann.store.transaction():
        ann.store._db.execute("DELETE FROM pointers WHERE id = (SELECT min(id) FROM pointers)")
        ann.store._db.execute(
            "UPDATE meta SET value = replace(value, '\"digest\":', '\"digest\":1') WHERE key = 'state'"
        )
    report = await ann.sync()

    assert (True, 5) == (report.healed, len(await names(ann)))


# --- another database behind the same address ---------------------------------------------------------------------


async def test_an_emptied_server_gets_everything_back(home: Home, ann: BlowingOffClient, bob: BlowingOffClient) -> None:
    room, lamp = await ann.add("room", "Hall"), await ann.add("device", "Lamp", {"on": False})
    edge = await ann.link(lamp.id, room.id, "located_in")
    for n in range(3):
        await ann.change(lamp.id, patch={"n": n})
        await ann.sync()
    gone = await ann.add("note", "Gone")
    await ann.delete(gone.id)
    await ann.sync()
    await bob.sync()
    milk = await bob.add("note", "Milk")
    history = home.versions(lamp.id)
    home.use(MemoryStore())
    back = await ann.sync()
    await bob.sync()
    await ann.sync()

    assert (True, 0, ()) == (back.equal, back.pending, back.conflicts)
    assert history == home.versions(lamp.id)
    assert [edge] == await ann.links(room.id)
    assert [milk.version] == home.versions(milk.id)
    assert [gone.id] == [entity.id for entity in await bob.find("gone", deleted=True)]
    assert same(ann, bob)


async def test_a_server_set_back_to_a_backup_gets_back_what_came_after(home: Home) -> None:
    ann, bob = client_of(home, "ann"), client_of(home, "bob")
    lamp = await ann.add("device", "Lamp", {"on": False})
    await ann.sync()
    store = home.store
    assert isinstance(store, MemoryStore)
    backup = store.copy()
    for n in range(3):
        await ann.change(lamp.id, patch={"n": n})
    new = await ann.add("device", "New")
    await ann.sync()
    await bob.sync()
    last = await bob.change(lamp.id, patch={"last": True})  # was never sent before the restore
    home.use(backup)
    await client_and_lamps(home, 2)  # the restored server moved on
    reports = [await ann.sync(), await bob.sync(), await ann.sync()]

    assert [True] * 3 == [report.equal for report in reports]
    assert [()] * 3 == [report.conflicts for report in reports]
    assert [0] * 3 == [report.pending for report in reports]
    assert 5 == len(home.versions(lamp.id))
    assert last == await ann.get(lamp.id)
    assert [new.version] == home.versions(new.id)
    assert same(ann, bob)


async def test_a_restart_that_was_cut_off_goes_on_with_the_next_sync(home: Home, ann: BlowingOffClient) -> None:
    home.older = True
    ann = client_of(home, page_rows=2)
    other = await client_and_lamps(home, 7)
    mine = await ann.add("device", "Mine")
    await ann.sync()
    home.use(MemoryStore())
    await other.sync()
    for _ in range(3):
        home.faults.extend(["", "unheard"])
        with pytest.raises(Unreachable):
            await ann.sync()
        assert ann.state.restarting
    report = await ann.sync()

    assert (True, 0) == (report.equal, report.pending)
    assert [mine.version] == home.versions(mine.id)


async def test_a_cursor_that_the_server_refuses_is_given_up(home: Home, ann: BlowingOffClient) -> None:
    await client_and_lamps(home, 2)
    await ann.sync()
    await ann.add("device", "Lamp")
    inner = home.post

    async def post(path: str, body: bytes) -> bytes:
        if b'"cursor"' in body:
            raise refused(400, b'{"detail":"cursor must be a server_seq integer, got \'abc\'"}')
        return await inner(path, body)

    home.post = post  # type: ignore[method-assign]
    with pytest.raises(Refused):  # it refuses them all, and is believed twice
        await ann.sync()
    home.post = inner  # type: ignore[method-assign]
    report = await ann.sync()

    assert (True, 0) == (report.equal, report.pending)


# --- a server as deployed -----------------------------------------------------------------------------------------


class Deployed:
    """The deployed server as a client sees it: no features, ids instead of acks, capped pages, edges elsewhere."""

    TYPES = ("home", "room", "device", "note")
    EDGES = ("located_in", "part_of")
    PAGE = 3

    def __init__(self) -> None:
        self.seq = 0
        self.now = NOW
        self.rows: dict[str, list[tuple[int, int, dict[str, Any]]]] = {}
        self.edges: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []

    async def get(self, path: str) -> bytes:
        if path != "/api/v1/graph/relationships":
            raise refused(404)
        return json.dumps({"relationships": list(self.edges.values()), "count": len(self.edges)}).encode()

    async def post(self, path: str, body: bytes) -> bytes:
        if path != "/api/v1/sync/":
            raise refused(404, b'{"detail":"Not Found"}')
        ask = json.loads(body)
        self.asked.append(ask)
        self.now += SECOND
        entities = [change["entity"] for change in ask["changes"] if change.get("entity")]
        edges = [edge for change in ask["changes"] for edge in change.get("relationships", ())]
        if any(entity["entity_type"] not in self.TYPES for entity in entities):
            raise refused(500, b"Internal Server Error")
        if any(edge["relationship_type"] not in self.EDGES for edge in edges):
            raise refused(400, b'{"detail":"Unknown relationship_type: orbits"}')
        for entity in entities:
            rows = self.rows.setdefault(entity["id"], [])
            if entity["version"] not in [row["version"] for _, _, row in rows]:
                self.seq += 1
                rows.append((self.seq, self.now, {**entity, "checksum": None}))
        known = {(row["id"], row["version"]) for rows in self.rows.values() for _, _, row in rows}
        applied = []
        for edge in edges:
            ends = {(edge[f"{end}_entity_id"], edge[f"{end}_entity_version"]) for end in ("from", "to")}
            if ends <= known:
                shown = {key: value for key, value in edge.items() if key != "version"}
                self.edges[edge["id"]] = {
                    **shown,
                    "user_id": ask["user_id"],
                    "created_at": "2026-11-23T01:53:16.191926",
                }
                applied.append(edge["id"])
        return json.dumps(self.answer(ask, [entity["id"] for entity in entities], applied)).encode()

    def answer(self, ask: dict[str, Any], applied: list[str], edges: list[str]) -> dict[str, Any]:
        current = sorted((rows[-1] for rows in self.rows.values()), key=lambda row: row[0])
        since = (ask.get("filters") or {}).get("since")
        if ask["sync_type"] == "delta" and ask.get("cursor") is not None:
            if not ask["cursor"].isdigit():
                raise refused(400, b'{"detail":"cursor must be a server_seq integer"}')
            current = [row for row in current if row[0] > int(ask["cursor"])]
        elif ask["sync_type"] == "delta" and since is not None:
            current = [row for row in current if row[1] > (edit_time(since) or 0)]
        page = current[: self.PAGE]
        deleted = [bool(row["content"].get("deleted")) for _, _, row in page]
        return {
            "protocol_version": V2,
            "sync_type": ask["sync_type"],
            "changes": [
                {"change_type": "delete" if gone else "update", "entity": row, "relationships": []}
                for gone, (_, _, row) in zip(deleted, page, strict=True)
            ],
            "conflicts": [],
            "vector_clock": ask["vector_clock"],
            "cursor": str(page[-1][0]) if len(current) > len(page) else None,
            "state_digest": "0" * 64,
            "sync_stats": {"entities_synced": len(applied)},
            "server_time": f"2026-06-15T10:{self.now // SECOND % 60:02d}:00.000000+00:00",
            "applied": applied,
            "applied_relationships": edges,
        }


async def test_a_deployed_server_is_read_whole_with_its_edges() -> None:
    home = Deployed()
    ann, bob = client_of(home, "ann"), client_of(home, "bob")
    room = await ann.add("room", "Hall")
    for n in range(8):
        lamp = await ann.add("device", f"Lamp {n}")
        await ann.change(lamp.id, patch={"on": True})
        await ann.link(lamp.id, room.id, "located_in")
    mine = await ann.sync()
    theirs = await bob.sync()

    assert (0, None, None) == (mine.pending, mine.digest, mine.equal)
    assert 25 == mine.pushed
    assert 17 == theirs.pulled
    assert [copy.hash for copy in ann.store.find()] == [copy.hash for copy in bob.store.find()]
    assert 8 == len(await bob.links(room.id)) == len(await ann.links(room.id))
    # One message holds one row of an id, since ids are all that is acknowledged.
    for ask in home.asked:
        ids = [change["entity"]["id"] for change in ask["changes"] if change["entity"]]
        assert len(set(ids)) == len(ids)
    again = await bob.sync()
    assert (0, 1 + 1) == (again.pulled, again.messages)


async def test_what_a_deployed_server_does_not_know_waits_and_holds_up_nothing() -> None:
    home = Deployed()
    ann = client_of(home)
    ship, lamp, room = [await ann.add(*what) for what in (("spaceship", "X"), ("device", "Lamp"), ("room", "Hall"))]
    await ann.link(lamp.id, room.id, "orbits")
    await ann.link(ship.id, room.id, "located_in")
    report = await ann.sync()

    assert (2, 3) == (report.pushed, report.pending)
    notes = {item.copy.name or item.copy.entity_type: item.note and item.note.code for item in await ann.pending()}
    assert {"X": "unknown_type_there", "orbits": "unknown_type_there", "located_in": "not_acknowledged"} == notes
    assert 3 == len((await ann.status()).refused)


@pytest.mark.parametrize("status", [404, 500, 401])
async def test_a_deployed_server_without_a_list_of_edges_is_of_use_without(status: int) -> None:
    home = Deployed()
    await client_of(home, "bob").add("device", "Lamp")

    async def get(path: str) -> bytes:
        raise refused(status)

    home.get = get  # type: ignore[method-assign]
    ann = client_of(home)
    await ann.add("device", "Lamp")
    if status == 401:
        with pytest.raises(Unauthorized):
            await ann.sync()
    else:
        assert 1 == (await ann.sync()).pushed


async def test_a_deployed_server_that_is_updated_gets_what_waited() -> None:
    old, new = Deployed(), Home()
    ann = client_of(old)
    await ann.add("device", "Lamp")
    ship = await ann.add("spaceship", "X")
    await ann.sync()
    ann._given = new
    report = await ann.sync()

    assert (True, 0) == (report.equal, report.pending)
    assert [ship.version] == new.versions(ship.id)
    assert ["Lamp", "X"] == await names(ann)


async def test_a_server_that_is_set_back_to_the_deployed_one_is_read_anew() -> None:
    old, new = Deployed(), Home()
    ann, bob = client_of(new), client_of(old, "bob")
    for n in range(5):
        await bob.add("device", f"Lamp {n}")
    await bob.sync()
    mine = await ann.add("device", "Mine")
    await ann.sync()
    ann._given = old
    report = await ann.sync()

    assert (None, 0) == (report.equal, report.pending)
    assert 6 == len(await names(ann))
    assert mine.id in old.rows


async def test_every_recorded_answer_of_the_deployed_server_is_understood(shared_data: Path) -> None:
    told = 0
    for file in sorted((shared_data / "recorded" / "v2").glob("*.json")):
        recorded = json.loads(file.read_text())
        asked, said = recorded["request"], recorded["response"]
        if asked["path"] != "/api/v1/sync/" or asked["method"] != "POST" or said["status"] != 200:
            continue
        if not all(isinstance(change, dict) for change in said["body"]["changes"]):
            continue  # long lists are cut in the recording
        body = {**said["body"], "cursor": None}

        class Mouth:
            async def post(self, path: str, request: bytes, body: Any = body) -> bytes:
                return json.dumps(body).encode()

            async def get(self, path: str) -> bytes:
                return b'{"relationships":[],"count":0}'

        ann = client_of(Mouth())
        report = await ann.sync()
        await ann.close()
        told += 1
        ids = {change["entity"]["id"] for change in body["changes"]}
        assert (V2, len(ids), None) == (report.served, report.pulled, report.equal), file.name

    assert told > 20


# --- addresses, tokens, other reads -------------------------------------------------------------------------------


def holders(folder: Path, text: bytes) -> list[str]:
    """Which files hold `text`."""
    return [file.name for file in folder.iterdir() if text in file.read_bytes()]


async def test_the_token_lies_beside_the_store_for_its_owner_and_its_server_only(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    async with BlowingOffClient(path) as client:
        await client.connect("https://home.example", "canary-1")
        assert "canary-1" not in repr(client)
        assert "canary-1" not in repr(await client.status())
    token = tmp_path / "home.db.token"

    assert 0o600 == stat.S_IMODE(token.stat().st_mode)
    assert [token.name] == holders(tmp_path, b"canary-1")
    async with BlowingOffClient(path) as client:
        assert "https://home.example" == (await client.status()).url
        assert "canary-1" == client._kept_token("https://home.example:443")
        assert client._kept_token("https://evil.example:443") is None
        await client.connect("https://home.example/base")  # the same server
        assert "canary-1" == client._kept_token("https://home.example:443")
        await client.connect("https://other.example")
    assert not token.exists()


async def test_connecting_checks_the_address(tmp_path: Path) -> None:
    async with BlowingOffClient(tmp_path / "home.db") as client:
        for url in ("home.example", "http://home.example", "https://u:p@home.example"):
            with pytest.raises(LocalProtocolError):
                await client.connect(url, "t")
        assert (await client.status()).url is None
    async with BlowingOffClient(tmp_path / "home.db", insecure=True) as client:
        await client.connect("http://home.example")
    async with BlowingOffClient(tmp_path / "home.db") as client:
        assert client._transport() is client._transport()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"origin":1}', '{"origin":"https://home.example:443","token":7}'])
async def test_a_damaged_token_file_is_no_token(tmp_path: Path, text: str) -> None:
    async with BlowingOffClient(tmp_path / "home.db") as client:
        (tmp_path / "home.db.token").write_text(text)

        assert client._kept_token("https://home.example:443") is None


async def test_who_one_is_is_kept(tmp_path: Path) -> None:
    async with BlowingOffClient(tmp_path / "home.db", user="ann", clock=Clock()) as client:
        device = client.state.device
        assert (await client.add("device", "Lamp")).version.endswith("-ann")
    async with BlowingOffClient(tmp_path / "home.db") as client:
        assert ("ann", device) == (client.state.user, client.state.device)
    async with BlowingOffClient(tmp_path / "home.db", user="bob", device="tablet") as client:
        assert ("bob", "tablet") == (client.state.user, client.state.device)


async def test_the_history_holds_what_only_the_server_has(
    home: Home, ann: BlowingOffClient, bob: BlowingOffClient
) -> None:
    lamp = await ann.add("device", "Lamp")
    await ann.change(lamp.id, name="Two")
    await ann.sync()
    await bob.sync()
    mine = await bob.change(lamp.id, name="Three")

    versions = await bob.history(lamp.id)
    assert ["Three", "Two", "Lamp"] == [version.entity.name for version in versions]
    assert ["here", "here", "server"] == [version.source for version in versions]
    assert [(True, True), (False, False), (False, False)] == [(one.current, one.pending) for one in versions]
    assert mine == versions[0].entity


async def test_a_history_that_the_server_tells_badly_is_the_one_that_is_here(home: Home, ann: BlowingOffClient) -> None:
    lamp = await ann.add("device", "Lamp")
    for told in (b"{}", b'{"versions":[{"id":1}]}', b"\xff", b'{"versions":[]}'):

        async def get(path: str, told: bytes = told) -> bytes:
            return told

        home.get = get  # type: ignore[method-assign]
        assert [lamp] == [version.entity for version in await ann.history(lamp.id)]


async def test_a_history_does_not_wait_for_a_silent_server(
    home: Home, ann: BlowingOffClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get(path: str) -> bytes:
        await asyncio.Event().wait()
        return b""

    lamp = await ann.add("device", "Lamp")
    home.get = get  # type: ignore[method-assign]
    monkeypatch.setattr("blowing_off.client.HISTORY_S", 0.01)

    assert [lamp] == [version.entity for version in await ann.history(lamp.id)]


async def test_an_unknown_wire_version_alone_cannot_be_asked_for(home: Home) -> None:
    ann = client_of(home, versions=VersionPolicy.exact("inbetweenies-v9"))
    with pytest.raises(LocalProtocolError, match="a wire version that this client speaks"):
        await ann.sync()


def test_the_package_loads_nothing_that_does_io() -> None:
    code = """
import sys
import blowing_off
heavy = {"httpx", "sqlite3", "asyncio", "socket", "websockets", "ssl", "msgspec"} & set(sys.modules)
assert not heavy, heavy
assert set(blowing_off.__all__) <= set(dir(blowing_off))
for name in blowing_off.__all__:
    assert getattr(blowing_off, name).__name__ == name, name
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    with pytest.raises(AttributeError):
        _ = blowing_off.nothing


# --- over HTTP ----------------------------------------------------------------------------------------------------


def over_http(home: Any) -> Any:
    """What a raw server does with each request: asks `home`."""

    async def act(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _, body = (await evil.request(reader)).partition(b"\r\n\r\n")
            method, path, _ = head.split(b"\r\n")[0].decode().split(" ")
            try:
                said = await (home.get(path) if method == "GET" else home.post(path, body))
                writer.write(answer(said))
            except Refused as error:
                writer.write(
                    answer(json.dumps({"code": error.code, "detail": error.detail}).encode(), f"{error.status} No")
                )
            await writer.drain()

    return act


async def test_two_clients_sync_over_http(tmp_path: Path) -> None:
    async with serving(over_http(Home())) as server:
        for name in ("ann", "bob", "ann"):
            async with BlowingOffClient(tmp_path / f"{name}.db", user=name) as client:
                await client.connect(server.url, "canary-7")
                await client.add("device", f"{name}'s")
                report = await client.sync()
                assert (True, 0) == (report.equal, report.pending)
                await client.connect(server.url)  # the next request opens a connection of its own
                await client.sync()
        async with BlowingOffClient(tmp_path / "bob.db") as client:
            await client.sync()
            assert ["ann's", "ann's", "bob's"] == await names(client)
            assert "canary" not in repr(await client.status())

    assert all(b"authorization: bearer canary-7" in request.lower() for request in server.requests)


async def test_the_time_of_one_deployed_server_means_nothing_to_another(tmp_path: Path) -> None:
    here, there = Deployed(), Deployed()
    async with BlowingOffClient(tmp_path / "bob.db", transport=there, clock=Clock()) as bob:
        await bob.add("device", "Bob's")
        await bob.sync()
    async with serving(over_http(here)) as one, serving(over_http(there)) as other:
        async with BlowingOffClient(tmp_path / "ann.db", one.url, clock=Clock()) as ann:
            await ann.add("device", "Ann's")
            for _ in range(3):
                await ann.sync()
        async with BlowingOffClient(tmp_path / "ann.db", other.url, clock=Clock()) as ann:
            await ann.sync()
            assert ["Ann's", "Bob's"] == await names(ann)

    assert 2 == len(there.rows)


# --- death --------------------------------------------------------------------------------------------------------

LIFE = """
import asyncio, sys
from pathlib import Path
from blowing_off import BlowingOffClient
from inbetweenies.stores.sqlite import SqliteStore
sys.path.insert(0, sys.argv[1])
from tests.client.test_client import Home, client_of

async def live():
    home = Home(SqliteStore(sys.argv[2] + "/server.db"))
    async with client_of(home, path=sys.argv[2] + "/client.db", page_rows=2, batch_changes=3) as client:
        lamp = await client.add("device", "Lamp")
        while True:
            for n in range(4):
                lamp = await client.change(lamp.id, patch={"n": n, "was": lamp.version})
                print(lamp.id, lamp.version, sep="\\t", flush=True)
                other = await client.add("device", "Other")
                print(other.id, other.version, sep="\\t", flush=True)
            await client.sync()

asyncio.run(live())
"""


def killed_after(lines: int, folder: Path) -> list[list[str]]:
    """What a client confirmed until it was killed in the middle of whatever it did."""
    command = [sys.executable, "-c", LIFE, str(ROOT), str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        confirmed = [child.stdout.readline().split() for _ in range(lines)]
        child.kill()
        rest = child.stdout.read().splitlines(keepends=True)
    return confirmed + [line.split() for line in rest if line.endswith("\n")]


@pytest.mark.parametrize("lines", [1, 9, 17, 40])
async def test_a_client_that_is_killed_loses_nothing_it_confirmed(tmp_path: Path, lines: int) -> None:
    confirmed = killed_after(lines, tmp_path)
    store = SqliteStore(str(tmp_path / "server.db"))
    home = Home(store)
    async with client_of(home, path=tmp_path / "client.db") as client:
        report = await client.sync()
        for id_, version in confirmed:
            assert version in [held.copy.version for held in client.store.history(id_)]
            assert version in home.versions(id_)
    await store.close()

    assert (True, 0, False, ()) == (report.equal, report.pending, report.healed, report.refused)


# --- everything at once -------------------------------------------------------------------------------------------


class Fleet(RuleBasedStateMachine):
    """Three clients, one server, and every fault there is. In the end all are equal and no write is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Home(limits=Limits(page_rows_max=3))
        numbers = count()
        self.clients = [
            client_of(
                self.home,
                name,
                batch_changes=2,
                clock=Clock(NOW + skew * SECOND),
                ids=lambda: f"id-{next(numbers):03}",  # the same with every run
            )
            for name, skew in (("ann", 0), ("bob", -100), ("eve", 1000))
        ]
        self.made: set[tuple[str, str]] = set()
        self.backups: list[MemoryStore] = []
        self.restored = False
        self.seen: set[tuple[str, str]] = set()  # what somebody saw when the server was set back

    @initialize()
    def begin(self) -> None:
        self.keep_a_backup()

    def some(self, client: BlowingOffClient, pick: int) -> str | None:
        ids = [copy.id for copy in client.store.find()]
        return ids[pick % len(ids)] if ids else None

    def edit(self, who: int, what: str, pick: int, value: int) -> None:
        client = self.clients[who]
        id_ = self.some(client, pick)
        if what == "add" or id_ is None:
            row: Any = run(client.add("device", f"Lamp {value}", {"n": value}))
        elif what == "change":
            row = run(client.change(id_, patch={f"k{value % 3}": value}))
        elif what == "rename":
            row = run(client.change(id_, name=f"Name {value}"))
        elif what == "delete":
            row = run(client.delete(id_))
        else:
            row = run(client.link(id_, self.some(client, pick + 1) or id_, "located_in", id=f"edge{value % 2}"))
            self.made.add((row.id, row.version))
            return
        self.made.add((row.id, row.version))

    @rule(
        who=st.integers(0, 2),
        what=st.sampled_from(["add", "change", "rename", "delete", "link"]),
        pick=st.integers(0, 5),
        value=st.integers(0, 9),
    )
    def edits(self, who: int, what: str, pick: int, value: int) -> None:
        self.edit(who, what, pick, value)

    @rule(
        who=st.integers(0, 2),
        faults=st.lists(st.sampled_from(["", "", "lost", "unheard", "twice", "busy"]), max_size=4),
        meanwhile=st.none()
        | st.tuples(st.integers(0, 2), st.sampled_from(["add", "change", "delete"]), st.integers(0, 9)),
    )
    def syncs(self, who: int, faults: list[str], meanwhile: tuple[int, str, int] | None) -> None:
        self.home.faults.extend(faults)
        if meanwhile is not None:
            editor, what, value = meanwhile

            async def edit() -> None:
                self.edit(editor, what, value, value)

            self.home.on_the_way = edit
        with suppress(Unreachable, Refused):
            run(self.clients[who].sync())
        self.home.faults.clear()
        self.home.on_the_way = None

    @rule()
    def keep_a_backup(self) -> None:
        store = self.home.store
        assert isinstance(store, MemoryStore)
        self.backups.append(store.copy())

    def set_back(self) -> None:
        self.restored = True
        for client in self.clients:
            self.seen |= {(copy.id, copy.version) for copy in client.store.find(deleted=True)}

    @rule(which=st.integers(0, 5))
    def restore(self, which: int) -> None:
        self.set_back()
        self.home.use(self.backups[which % len(self.backups)].copy())

    @rule()
    def replace(self) -> None:
        self.set_back()
        self.home.use(MemoryStore())

    @invariant()
    def marks_are_what_is_shown(self) -> None:
        for client in self.clients:
            marks = client.store._db.execute("SELECT kind, id, hash FROM pending WHERE NOT quiet ORDER BY n")
            for (kind, id_), hash_ in {(kind, id_): hash_ for kind, id_, hash_ in marks}.items():
                visible = client.store.visible(kind, id_)
                assert visible is not None
                assert hash_ == visible.hash

    def kept(self, id_: str) -> set[str]:
        """The rows of an entity that the server holds, and all that those are known to have taken the place of.

        A restored server judges what is pushed with the cursor that it then refuses, so what that row descends from
        can be missing in its log; it is superseded, not lost.
        """
        rows = [row.entity() for row in self.home.held(Reads(history=(id_,))).history.get(id_, ())]
        parents = {row.version: row.parent_versions for row in rows}
        for client in self.clients:
            for held in client.store.history(id_):
                parents.setdefault(held.copy.version, tuple(json.loads(held.copy.body)["parent_versions"]))
        return ancestors((row.version for row in rows), parents)

    def teardown(self) -> None:
        reports: list[SyncReport] = []
        for _ in range(3):
            reports = [run(client.sync()) for client in self.clients]
        # An edge whose end was lost with the server and is held by nobody can only wait.
        stuck = {item.code for report in reports for item in report.refused}
        assert stuck <= ({"unknown_endpoint"} if self.restored else set())
        assert [True] * 3 == [report.equal for report in reports]
        assert 1 == len({report.digest for report in reports})
        assert stuck or [0] * 3 == [report.pending for report in reports]
        if not self.restored:
            assert same(*self.clients)
            for id_, version in self.made:
                rows = home_rows(self.home, id_)
                assert version in rows, (id_, version, rows)
        else:
            made = "SELECT id, version FROM copies WHERE kind = 'entity' AND own AND NOT deleted"
            for client in self.clients:
                self.seen.update(client.store._db.execute(made).fetchall())
            gone = {
                id_
                for id_, row in self.home.held(Reads(entities=tuple(dict(self.seen)))).entities.items()
                if row.deleted
            }
            for id_, version in self.seen:
                # Of two deletes one is enough.
                assert version in self.kept(id_) or id_ in gone, (id_, version)
        for client in self.clients:
            run(client.close())


def home_rows(home: Home, id_: str) -> list[str]:
    if id_.startswith("edge"):
        log = home.store._graphs["default"].log  # type: ignore[attr-defined]
        return [row.version for row in log if row.id == id_]
    return home.versions(id_)


# More with a profile that asks for more.
Fleet.TestCase.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=25)
TestFleet = Fleet.TestCase
