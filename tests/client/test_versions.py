"""A client among servers of all kinds: it finds the version they share, remembers it as a hint only, and loses nothing
when versions are switched off and on again (PROTOCOL 5.9, 5.13, 5.14)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import blowing_off.versions
from blowing_off import AutoUpdateManager, BlowingOffClient, Unreachable
from blowing_off.transport import HttpTransport
from blowing_off.updates.check import Unknown
from blowing_off.versions import Talk, key_of, spoken
from inbetweenies import cli
from inbetweenies.auth import SqliteTokens
from inbetweenies.errors import LocalProtocolError, NoCommonVersion, ServedVersionMismatch, VersionDisabled
from inbetweenies.model import Reads
from inbetweenies.offers import HINT_US, VersionPolicy
from inbetweenies.registry import Decision, Decisions, State, document_of
from inbetweenies.stores import SqliteStore, amend
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.wire import load
from tests.client.standin import DeployedV1, DeployedV2, Ours, standing
from tests.client.test_client import Clock, Deployed, Home, client_of, names, same
from tests.client.test_v1mode import DeployedV1 as FakeV1
from tests.server.calls import running
from tests.server.test_cli import SERVE
from tests.support import NOW, run

V1, V2, V3 = "inbetweenies-v1", "inbetweenies-v2", "inbetweenies-v3"


def client(path: Path, url: str, token: str | None = None, **fields: Any) -> BlowingOffClient:
    return BlowingOffClient(path, url, token, user=path.stem, **fields)


def decide(store: Any, **states: State) -> None:
    versions = {f"inbetweenies-{name}": Decision(state=state) for name, state in states.items()}
    run(amend(store, "registry", lambda _: document_of(Decisions(versions=versions))))


# --- deployed servers, which know neither discovery nor negotiation -----------------------------------------------


async def test_a_deployed_v2_server_is_synced_with_although_it_says_nothing_of_versions(tmp_path: Path) -> None:
    fake = Deployed()
    with standing(DeployedV2(fake)) as address:
        async with client(tmp_path / "ann.db", address.url) as ann, client(tmp_path / "bob.db", address.url) as bob:
            nothing = await AutoUpdateManager(address.url).check_for_updates()
            room = await ann.add("room", "Hall")
            lamp = await ann.add("device", "Lamp", {"on": True})
            await ann.link(lamp.id, room.id, "located_in")
            mine, theirs = await ann.sync(), await bob.sync()
            shown = (await names(bob), len(await bob.links()))

    assert isinstance(nothing, Unknown)
    assert (V2, 0, V2, 3) == (mine.served, mine.pending, theirs.served, theirs.pulled)
    assert (["Hall", "Lamp"], 1) == shown
    assert {"GET", "POST"} == {method for method, _ in address.seen}
    assert not {"sync/request", "sync/push", "sync/ack"} & set(address.versions())


async def test_a_deployed_v1_server_is_synced_with_and_asked_in_v1_first_from_then_on(tmp_path: Path) -> None:
    fake = FakeV1()
    fake.put("home", id="home-1", name="House", is_primary=True)
    with standing(DeployedV1(fake)) as address:
        async with client(tmp_path / "ann.db", address.url) as ann:
            nothing = await AutoUpdateManager(address.url).check_for_updates()
            first = await ann.sync()
            await ann.add("room", "Hall")
            before = len(address.seen)
            second = await ann.sync()
            shown = await names(ann)

    assert isinstance(nothing, Unknown)
    assert (V1, V1) == (first.served, second.served)
    assert ["Hall", "House"] == shown
    asked = [name.removeprefix("/api/") for name in address.versions()]
    assert ["version", "sync/", "sync/request", "sync/ack"] == asked[:before]
    assert "sync/" not in asked[before:]
    assert ["House", "Hall"] == [data["name"] for kind in ("home", "room") for data in fake.records[kind].values()]


async def test_a_v1_server_that_becomes_a_deployed_v2_one_is_noticed_in_the_same_sync(tmp_path: Path) -> None:
    new = Deployed()
    with standing(DeployedV1(FakeV1())) as address:
        async with client(tmp_path / "ann.db", address.url) as ann:
            await ann.add("device", "Lamp", {"secret": "what v1 cannot say"})
            old = await ann.sync()
            address.speaks = DeployedV2(new)
            report = await ann.sync()

    assert (V1, 1, V2, 0) == (old.served, old.pending, report.served, report.pending)
    assert 1 == len(new.rows)


async def test_a_v1_server_that_becomes_one_of_ours_is_noticed_before_anything_is_sent_in_v1(tmp_path: Path) -> None:
    ours = Ours()
    with standing(DeployedV1(FakeV1())) as address:
        async with client(tmp_path / "ann.db", address.url) as ann:
            await ann.sync()
            await ann.add("device", "Lamp", {"secret": "what v1 cannot say"})
            address.speaks = ours
            report = await ann.sync()

    assert (V2, 0, True) == (report.served, report.pending, report.equal)
    assert ["sync_request", None] == [ask.get("type") for ask in ours.asked[:2]]
    assert [V1, V2] == [ask["protocol_version"] for ask in ours.asked[:2]]


# --- versions to come ---------------------------------------------------------------------------------------------


class Future:
    """A wire version of rows that is newer than all there are: v2 by another name."""

    name = V3
    rank = 3

    def __init__(self) -> None:
        self.real: Any = load()[V2]

    def ask(self, ask: Any) -> bytes:
        body: bytes = self.real.ask(ask).replace(V2.encode(), V3.encode(), 1)
        return body

    def told(self, body: bytes) -> Any:
        return self.real.told(body)


@pytest.fixture
def future(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blowing_off.versions, "load", lambda: {V3: Future(), **load()})


@pytest.mark.usefixtures("future")
async def test_a_client_from_the_future_finds_what_a_deployed_server_speaks_and_remembers_it(tmp_path: Path) -> None:
    fake = Deployed()
    with standing(DeployedV2(fake)) as address:
        async with client(tmp_path / "ann.db", address.url) as ann:
            await ann.add("device", "Lamp")
            first = await ann.sync()
            asked = len(fake.asked)
            seen = address.versions().count("sync/")
            await ann.sync()

    assert (V2, 0, 1) == (first.served, first.pending, len(fake.rows))
    assert asked + 1 == seen  # v3 was named once, and refused
    assert 1 == address.versions()[seen + 1 :].count("sync/")  # v2 came first this time


@pytest.mark.usefixtures("future")
async def test_a_client_from_the_future_may_be_kept_to_what_it_knows(home: Home) -> None:
    assert (V3, V2, V1) == tuple(spoken())
    ann = client_of(home, versions=VersionPolicy.ceiling(V2))
    await ann.sync()

    assert [V2] == [ask["protocol_version"] for ask in home.asked]
    assert [V2, V1] == home.asked[0]["supported_versions"]


@pytest.mark.usefixtures("future")
@pytest.mark.parametrize("mode", ["newer", "nothing"])
async def test_who_is_behind_is_said(home: Home, mode: str) -> None:
    policy = VersionPolicy.exact(V3 if mode == "newer" else V1)
    home.fallback.handlers.pop(V1 if mode == "nothing" else V2)
    home.fallback.fallback = None
    ann = client_of(home, versions=policy)
    await ann.add("home", "House")
    with pytest.raises(NoCommonVersion) as caught:
        await ann.sync()

    side = "server" if mode == "newer" else "client"
    assert (side, 1) == (caught.value.side, len(await ann.pending()))
    assert f"{'The server' if side == 'server' else 'This client'} must be updated" in str(caught.value)


@pytest.fixture
def home() -> Home:
    return Home()


# --- switched off and on ------------------------------------------------------------------------------------------


async def test_versions_that_are_switched_off_and_on_lose_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    ours = Ours(store)
    served = []
    with standing(ours) as address:
        async with client(tmp_path / "ann.db", address.url) as ann, client(tmp_path / "bob.db", address.url) as bob:
            await ann.add("home", "House", {"is_primary": True})
            states: tuple[State, ...] = ("deployed", "disabled", "disabled", "deployed", "accepted", "deployed")
            for number, state in enumerate(states):
                decide(store, v2=state)
                await ann.add("device", f"Lamp {number}", {"secret": number})
                served += [(await one.sync()).served for one in (ann, bob, ann)]
            reports = [await one.sync() for one in (ann, bob)]
            equal = same(ann, bob)

    # What is accepted but not offered is still served to who names it, and left with the message after.
    assert [V2] * 3 + [V1] * 6 + [V2] * 3 + [V2, V2, V1] + [V2] * 3 == served
    assert [(0, True)] * 2 == [(report.pending, report.equal) for report in reports]
    assert equal


async def test_what_was_made_of_records_is_no_row_that_is_given_back(home: Home) -> None:
    ann, bob = client_of(home), client_of(home, "bob")
    eve = client_of(home, "eve", versions=VersionPolicy.exact(V2))
    await bob.add("home", "House", {"is_primary": True})
    lamps = [await bob.add("device", f"Lamp {number}", {"secret": number}) for number in range(8)]
    for one in (bob, ann):
        await one.sync()
    for number in range(3):
        decide(home.store, v2="accepted")
        for lamp in lamps:
            await bob.change(lamp.id, name=f"{lamp.id[:8]} {number}")
        # In version 1 it is in the house, as where it is was not said.
        lamps.append(await eve.add("device", f"Lamp {len(lamps)}", {"secret": len(lamps)}))
        for one in (bob, ann, eve, bob, ann):
            await one.sync()
        decide(home.store)
        assert [True] * 3 == [(await one.sync()).equal for one in (ann, bob, ann)]

    history = home.held(Reads(history=tuple(lamp.id for lamp in lamps))).history
    assert {"bob", "eve"} == {row.user_id for rows in history.values() for row in rows}
    assert [] == await ann.links()
    assert ann._store is not None
    assert [] == ann._store._all("SELECT id FROM pointers WHERE ours IS NULL AND theirs IS NULL")
    assert [{"secret": number} for number in range(11)] == [
        json.loads(bytes(found.content)) for lamp in lamps if (found := await ann.get(lamp.id)) is not None
    ]


async def test_a_version_that_is_no_longer_offered_is_left_before_it_is_refused(home: Home) -> None:
    decide(home.store, v2="accepted")
    ann = client_of(home, batch_changes=1)
    await ann.add("home", "House", {"is_primary": True})
    await ann.add("home", "Castle", {"is_primary": False})
    report = await ann.sync()

    assert (V1, 0) == (report.served, report.pending)
    assert [V2, V1] == [ask["protocol_version"] for ask in home.asked[:2]]


async def test_a_client_of_one_version_waits_while_it_is_off_and_goes_on_when_it_is_on(home: Home) -> None:
    ann = client_of(home, versions=VersionPolicy.exact(V2))
    await ann.add("device", "Lamp", {"secret": 1})
    decide(home.store, v2="disabled")
    with pytest.raises(VersionDisabled):
        await ann.sync()
    waiting = len(await ann.pending())
    decide(home.store)
    report = await ann.sync()

    assert (1, V2, 0, True) == (waiting, report.served, report.pending, report.equal)


async def test_a_client_of_v1_alone_never_says_anything_else(home: Home) -> None:
    ann = client_of(home, versions=VersionPolicy.exact(V1))
    await ann.add("home", "House", {"is_primary": True})
    report = await ann.sync()

    assert (V1, 0) == (report.served, report.pending)
    assert {V1} == {ask["protocol_version"] for ask in home.asked}
    assert [[V1]] * len(home.asked) == [ask["supported_versions"] for ask in home.asked]


async def test_a_server_of_another_shape_is_told_to_a_client_of_v1_alone() -> None:
    class Mouth:
        async def post(self, path: str, body: bytes) -> bytes:
            return b"{}"

        async def get(self, path: str) -> bytes:
            return b"{}"

    ann = client_of(Mouth(), versions=VersionPolicy.exact(V1))
    with pytest.raises(blowing_off.BadAnswer, match="inbetweenies-v1"):
        await ann.sync()


@pytest.mark.parametrize("served", [V1, V2])
async def test_a_server_whose_answers_name_ever_other_versions_is_not_believed(home: Home, served: str) -> None:
    class Mouth:
        async def post(self, path: str, body: bytes) -> bytes:
            asked = json.loads(body)["protocol_version"]
            other = {V1: V2, V2: V1}[asked]
            return json.dumps({"protocol_version": other, "type": "sync_result", "applied": []}).encode()

        async def get(self, path: str) -> bytes:
            return b"{}"

    ann = client_of(Mouth(), versions=VersionPolicy.choice(served, V1))
    await ann.add("device", "Lamp")
    before = ann.state
    with pytest.raises((ServedVersionMismatch, blowing_off.BadAnswer)):
        await ann.sync()

    assert (before, 1) == (ann.state, len(await ann.pending()))


async def test_a_server_that_prefers_now_this_and_now_that_is_not_followed_for_ever(home: Home) -> None:
    def fickle(answer: dict[str, Any]) -> None:
        named = V1 if answer.get("type") == "sync_delta" else V2
        told = {"requested": named, "served": named, "source": "exact", "reason": "a whim"}
        answer["negotiation"] = {**told, "supported": [V2 if named == V1 else V1]}

    home.change = fickle
    ann = client_of(home, batch_changes=1)
    await ann.add("home", "House", {"is_primary": True})
    await ann.add("home", "Castle", {"is_primary": False})
    report = await ann.sync()

    assert (V1, 0) == (report.served, report.pending)
    assert len(home.asked) < 10


@pytest.mark.parametrize("told", [{"digest": "7" * 64}, {"resync": True}])
async def test_a_version_that_is_left_while_something_is_wrong_is_left_all_the_same(
    home: Home, told: dict[str, Any]
) -> None:
    ann = client_of(home)
    await ann.add("home", "House", {"is_primary": True})
    await ann.sync()
    decide(home.store, v2="accepted")
    home.change = lambda answer: answer.update(told) if "digest" in answer else None
    report = await ann.sync()

    assert (V1, 0) == (report.served, report.pending)


@pytest.mark.parametrize("negotiation", [7, [], {"supported": 7}, {"supported": [7, None, "inbetweenies-v99"]}, None])
async def test_what_a_server_says_badly_of_its_choice_changes_nothing(home: Home, negotiation: Any) -> None:
    home.change = lambda answer: answer.update(negotiation=negotiation)
    ann = client_of(home)
    await ann.add("device", "Lamp")
    report = await ann.sync()

    assert (V2, 0, True) == (report.served, report.pending, report.equal)


# --- what is remembered -------------------------------------------------------------------------------------------


def hint(client: BlowingOffClient) -> Any:
    kept = client.store.setting("hint")
    return None if kept is None else msgspec.json.decode(kept)


async def without_v2(**fields: Any) -> tuple[Home, BlowingOffClient, Clock]:
    """A home that serves only v1, and a client that has found out."""
    home, clock = Home(), Clock()
    decide(home.store, v2="disabled")
    ann = client_of(home, clock=clock, **fields)
    await ann.add("home", "House", {"is_primary": True})
    await ann.sync()
    home.asked.clear()
    return home, ann, clock


async def test_only_a_version_that_is_not_the_best_is_remembered(home: Home) -> None:
    ann = client_of(home)
    await ann.sync()
    best = hint(ann)
    _, bob, _ = await without_v2()

    assert None is best
    assert (V1, key_of("", None)) == (hint(bob)["served"], hint(bob)["key"])


async def test_a_hint_saves_the_refusal_and_is_not_written_again(home: Home) -> None:
    home, ann, _ = await without_v2()
    before = hint(ann)
    await ann.sync()

    assert [V1, V1, V1] == [ask["protocol_version"] for ask in home.asked]
    assert before == hint(ann)


async def test_a_hint_is_for_one_server_and_one_credential(tmp_path: Path) -> None:
    with standing(DeployedV1(FakeV1())) as one, standing(DeployedV1(FakeV1())) as other:
        first = []
        for url, token in ((one.url, "a"), (one.url, "a"), (one.url, "b"), (other.url, "b")):
            one.seen.clear()
            other.seen.clear()
            async with client(tmp_path / "ann.db", url, token) as ann:
                await ann.sync()
            first.append((one.seen or other.seen)[0][1])

    assert ["/api/v1/sync/", "/api/v1/sync/request", "/api/v1/sync/", "/api/v1/sync/"] == first


async def test_a_hint_runs_out() -> None:
    home, ann, clock = await without_v2()
    clock.now += HINT_US
    await ann.sync()

    assert V2 == home.asked[0]["protocol_version"]
    assert clock.now < hint(ann)["expires"]


@pytest.mark.parametrize("error", [Unreachable("no answer"), blowing_off.BadAnswer(expected="JSON", got="HTML")])
async def test_a_failure_of_any_kind_makes_the_next_sync_begin_with_the_best(error: Exception) -> None:
    home, ann, _ = await without_v2()
    post = home.post

    async def fails(path: str, body: bytes) -> bytes:
        raise error

    home.post = fails  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        await ann.sync()
    home.post = post  # type: ignore[method-assign]
    await ann.sync()

    assert V2 == home.asked[0]["protocol_version"]


@pytest.mark.parametrize("garbage", ["", "{", '{"key":7}', "[]", '{"key":"a","served":"b"}'])
async def test_a_hint_that_cannot_be_read_is_none(garbage: str) -> None:
    home, ann, _ = await without_v2()
    ann.store.keep(hint=garbage)
    await ann.sync()

    assert V2 == home.asked[0]["protocol_version"]


async def test_a_registry_that_changed_drops_the_hint(tmp_path: Path) -> None:
    store = MemoryStore()
    ours = Ours(store)
    decide(store, v2="disabled")
    with standing(ours) as address:
        async with client(tmp_path / "ann.db", address.url) as ann:
            await ann.add("home", "House", {"is_primary": True})
            await ann.sync()
            remembered = hint(ann)
            decide(store)
            # The transport heard of it before the sync began, as with any other request.
            transport = ann._transport()
            assert isinstance(transport, HttpTransport)
            transport.registry_revision = "another"
            ours.asked.clear()
            report = await ann.sync()

    assert remembered["revision"].startswith("1-")
    assert (V2, [V2]) == (report.served, [ask["protocol_version"] for ask in ours.asked][:1])
    assert "2-" == (transport.registry_revision or "")[:2]


def test_a_key_tells_neither_server_nor_credential() -> None:
    keys = {key_of(*pair) for pair in (("a", "b"), ("a", None), ("ab", ""), ("a", "c"), ("", "ab"))}

    assert 5 == len(keys)
    assert not any(part in key for key in keys for part in ("ab",) if len(key) < 3)


async def test_a_talk_of_versions_that_are_not_spoken_is_a_mistake_of_the_caller(home: Home) -> None:
    with pytest.raises(LocalProtocolError):
        Talk(client_of(home).store, VersionPolicy.exact("inbetweenies-v99"), key="", now=NOW)


# --- a real server ------------------------------------------------------------------------------------------------


async def test_a_running_server_is_switched_to_v1_and_back_under_two_clients(tmp_path: Path) -> None:
    db = tmp_path / "home.db"
    tokens = SqliteTokens(db)
    token, _ = tokens.create("home", "ann")
    tokens.close()
    served = []
    with running([*SERVE, str(db)]) as server:
        async with (
            client(tmp_path / "ann.db", server.url, token) as ann,
            client(tmp_path / "bob.db", server.url, token) as bob,
        ):
            await ann.add("home", "House", {"is_primary": True})
            for verb in ("enable", "disable", "enable"):
                assert 0 == await asyncio.to_thread(
                    cli.invoke, ["versions", verb, V2, "--db", str(db), *(["--yes"] if verb == "disable" else [])]
                )
                await ann.add("device", f"Lamp {verb}", {"secret": verb})
                served += [(await one.sync()).served for one in (ann, bob)]
            reports = [await one.sync() for one in (ann, bob, ann)]
            equal = same(ann, bob)

    store = SqliteStore(db)
    async with store.transaction("home", write=False) as tx:
        held = (await tx.read(Reads(types=("device",)))).types
    await store.close()
    assert [V2, V2, V1, V1, V2, V2] == served
    assert {(0, True)} == {(report.pending, report.equal) for report in reports}
    assert equal
    assert 3 == len(held)
