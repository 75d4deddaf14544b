"""A server tells people what they are to know: over HTTP and WebSocket, and only who asks for it (PROTOCOL 14)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from inbetweenies.ops.notify import UserNotification
from inbetweenies.rollout.notices import DOCUMENT, document_of, outbox_in, proofs_in, proofs_of
from inbetweenies.rollout.states import rollouts_in
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import MemoryStore
from tests.rollout.made import begun, keep, kept, taken_back
from tests.server.calls import SYNC, V2, entity, request, sync, write
from tests.server.test_asgi import NOW, Site
from tests.server.test_sockets import Home, ask, cli, serving
from tests.support import run

FEATURES = ["acks", "digest", "edges", "notices", "paging"]
OTHERS = [name for name in FEATURES if name != "notices"]
V1 = {"protocol_version": "inbetweenies-v1", "type": "sync_request", "client_id": "c", "last_sync": None}
NOTICES = "/api/v1/sync/notices"


class Town(Site):
    """A site with two graphs, of which a rollout has reached ``home``."""

    def __init__(self, **options: Any) -> None:
        self.store = MemoryStore()
        self.at = NOW
        super().__init__(router=ProtocolFallback(self.store, clock=lambda: self.at), **options)
        self.other, _ = self.tokens.create("other", "ann")
        self.people = UserNotification(self.store, clock=lambda: self.at)

    async def say(self, message: dict[str, Any], token: str | None = None) -> bytes:
        answer = await request(self.app, "POST", SYNC, message, token=token or self.token)
        assert answer is not None
        assert 200 == answer.status
        return answer.body

    async def told(self, *acks: str, token: str | None = None, device: str = "tablet") -> list[Any]:
        more: dict[str, Any] = {"notices": list(acks)} if acks else {}
        said = await self.say(sync(device_id=device, features=FEATURES, **more), token)
        found: list[Any] = json.loads(said).get("notices", [])
        return found

    def roll_out(self) -> None:
        keep(self.store, begun(V2, "home"))

    def take_back(self) -> None:
        self.at += 1_000_000
        keep(self.store, taken_back(rollouts_in(run(self.store.document("rollouts"))), V2, self.at))


MESSAGES: list[tuple[str, dict[str, Any]]] = [
    ("version 1", V1),
    ("version 2", sync()),
    ("version 2, delta", sync(sync_type="delta", filters={"since": 0})),
    ("with features", sync(features=OTHERS)),
    ("with a witness", sync(features=[*OTHERS, "witness"], request_id="r")),
    ("who acknowledges without asking", sync(features=OTHERS, notices=["x"])),
]


@pytest.mark.parametrize("message", [message for _, message in MESSAGES], ids=[name for name, _ in MESSAGES])
async def test_who_does_not_ask_for_it_is_told_what_it_was_told_before_to_the_byte(message: dict[str, Any]) -> None:
    town = Town()
    await town.push(write(entity("lamp", "v1")))
    before = await town.say(message)
    await town.people.notify_maintenance(600, key="k")
    after = await town.say(message)

    assert before == after
    assert b"notices" not in after


async def test_who_asks_is_told_until_it_has_acknowledged() -> None:
    town = Town()
    assert [] == await town.told()
    made = await town.people.notify_maintenance(600, key="k", graphs=["home"])
    [one] = await town.told()
    assert [one] == await town.told()
    assert [] == await town.told(token=town.other)
    assert [] == await town.told(made.id)
    assert [] == await town.told()
    assert [one] == await town.told(device="another")

    assert {"type": "maintenance", "title": "Scheduled Maintenance", "duration": 600, "severity": "info"} == {
        name: one[name] for name in ("type", "title", "duration", "severity")
    }
    assert (made.id, "2026") == (one["id"], one["timestamp"][:4])
    [delivered] = await town.people.delivered()
    assert [1] == [one.devices for one in delivered.graphs if one.graph == "home"]


async def test_an_acknowledgement_travels_with_a_push_too() -> None:
    town = Town()
    made = await town.people.notify_maintenance(600, key="k")
    said = await town.say(sync(write(entity("lamp", "v1")), features=FEATURES, notices=[made.id]))

    assert ["lamp"] == json.loads(said)["applied"]
    assert "notices" not in json.loads(said)
    assert [] == await town.told()


async def test_more_than_there_can_be_is_refused() -> None:
    town = Town()
    answer = await town.ask("POST", SYNC, sync(features=FEATURES, notices=["x"] * 65))

    assert (400, "malformed_body") == (answer.status, answer.json["code"])


async def test_a_rollback_is_checking_first_and_safe_with_the_proof() -> None:
    town = Town()
    town.roll_out()
    for token in (town.token, town.other):
        await town.say(sync(write(entity("lamp", "v1"))), token)
    town.take_back()
    await town.people.notify_rollback()
    [first] = await town.told()
    assert await town.people.prove()
    [second] = await town.told(first["id"])

    assert ("rollback", "Service Update", False, "proof" in first) == (
        first["type"],
        first["title"],
        "data is safe" in first["message"],
        False,
    )
    assert (first["id"], True) == (second["id"], "data is safe" in second["message"])
    assert {"graph", "before", "at", "digest"} == set(second["proof"])
    assert [] == await town.told(f"{second['id']}.proof")
    assert [] == await town.told(token=town.other)


async def test_what_was_tampered_with_is_not_told_as_safe_and_fails_no_sync() -> None:
    town = Town()
    town.roll_out()
    await town.push(write(entity("lamp", "v1")))
    town.take_back()
    await town.people.look()
    name = proofs_of("home")
    document = run(town.store.document(name))
    forged = document_of(proofs_in(document)).replace(b'"digest":"', b'"digest":"f')
    for body in (forged, b"{", b'{"proven":{"x":"safe"}}'):
        known = run(town.store.document(name))
        assert run(town.store.put_document(name, body, revision=known.revision))
        [one] = await town.told()
        assert ("data is safe" in one["message"], "proof" in one) == (False, False)
    known = run(town.store.document(DOCUMENT))
    assert run(town.store.put_document(DOCUMENT, b"safe", revision=known.revision))
    assert [] == await town.told("x")


async def test_who_speaks_a_version_that_cannot_say_it_asks_for_it_beside() -> None:
    town = Town()
    made = await town.people.notify_maintenance(600, key="k", graphs=["home"])
    first = await town.ask("GET", f"{NOTICES}?device_id=tablet")
    other = await town.ask("GET", f"{NOTICES}?device_id=tablet", token=town.other)
    acked = await town.ask("GET", f"{NOTICES}?device_id=tablet&ack={made.id}&ack=nonsense")
    refused = await town.ask("GET", NOTICES, token=None)

    assert [made.id] == [one["id"] for one in first.json["notices"]]
    assert ({"notices": []}, {"notices": []}, 401) == (other.json, acked.json, refused.status)
    assert "no-store" == first.headers["cache-control"]
    assert [] == await town.told()  # it is the same device, whatever it speaks


async def test_what_the_triggers_take_back_is_told() -> None:
    town = Town()
    town.roll_out()
    await town.push(write(entity("lamp", "v1")))
    await asyncio.to_thread(town.app.watching.triggers.trigger_rollback, "a test", subject=V2)
    outbox = outbox_in(run(town.store.document(DOCUMENT)))
    assert ["rolled_back"] == [one.state for one in kept(town.store).rollouts.values()]
    assert [f"rollback/{V2}/1"] == [one.key for one in outbox.notices]
    await asyncio.to_thread(town.app.watching.triggers.trigger_rollback, "again", subject=V2)
    await town.app.close()

    assert outbox == outbox_in(run(town.store.document(DOCUMENT)))


async def test_a_server_proves_by_itself_what_anybody_has_taken_back() -> None:
    town = Town()
    town.roll_out()
    await town.push(write(entity("lamp", "v1")))
    town.take_back()
    looked = asyncio.Event()
    look, loop = town.app.watching.people.look, asyncio.get_running_loop()

    async def seen() -> None:
        await look()
        loop.call_soon_threadsafe(looked.set)
        raise RuntimeError("which must not end it")

    town.app.watching.people.look = seen  # type: ignore[method-assign]
    async with asyncio.timeout(10):
        await town.told()
        town.seconds += 1
        await town.told()
        await looked.wait()
    [one] = await town.told()
    await town.app.close()

    assert "proof" in one


# --- over WebSocket, with a real process --------------------------------------------------------------------------


async def test_whoever_is_connected_is_told_at_once_and_who_does_not_ask_is_not(tmp_path: Path) -> None:
    db = tmp_path / "home.db"
    with serving(db) as url:
        home = Home(db, url)
        async with home.connected(V2) as socket, home.connected(V2) as old:
            await ask(socket, sync(features=[*FEATURES], device_id="a"))
            await ask(old, sync(features=OTHERS, device_id="b"))
            cli("notify", "maintenance", "10m", "--db", db, "--key", "k")
            frame = json.loads(await socket.recv())
            [one] = frame["notices"]
            acked = await ask(socket, sync(features=FEATURES, device_id="a", notices=[one["id"]], sync_type="delta"))
            await home.push(write(entity("lamp", "v1")))
            news, quiet = json.loads(await socket.recv()), json.loads(await old.recv())
        listed = json.loads(cli("notify", "list", "--db", db, "--json"))

    assert ("maintenance", 600, []) == (one["type"], one["duration"], frame["changes"])
    assert "live" in frame
    assert not any("notices" in answer for answer in (acked, news, quiet))
    assert (1, 1) == (len(news["changes"]), len(quiet["changes"]))
    assert [1] == [each["devices"] for each in listed["notices"][0]["graphs"]]
