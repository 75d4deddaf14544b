"""The queue of what waits for a person over HTTP (PROTOCOL 6.9, 6.10)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import review
from inbetweenies.asgi import App, app
from inbetweenies.auth import MemoryTokens
from inbetweenies.errors import LocalProtocolError
from inbetweenies.merge import Policy, manual
from inbetweenies.router import ProtocolFallback, V2ProtocolHandler
from inbetweenies.stores import MemoryStore, SqliteStore
from tests.server.calls import SYNC, Response, entity, request, sync, write
from tests.support import NOW, SECOND, at

LIST = "/api/v1/sync/conflicts"
BASE = entity("n/1", at(0), entity_type="note", content={"a": 1})
MINE = BASE | {"version": at(1), "content": {"a": 2}, "parent_versions": [BASE["version"]]}
THEIRS = BASE | {"version": at(2), "content": {"a": 3}, "parent_versions": [BASE["version"]], "user_id": "bob"}


class Site:
    """An application that leaves notes to people, and the tokens of two graphs."""

    def __init__(self, store: Any = None) -> None:
        self.now = NOW
        clock = lambda: self.now  # noqa: E731
        tokens = MemoryTokens(clock=clock)
        router = ProtocolFallback(store or MemoryStore(), clock=clock, policy=Policy(rules={"note": manual}))
        self.app: App = app(router=router, tokens=tokens)
        self.ann, _ = tokens.create("home", "ann", None)
        self.eve, _ = tokens.create("other", "eve", None)

    async def ask(self, method: str, path: str, body: Any = None, token: str | None = None) -> Response:
        response = await request(self.app, method, path, body, token=token or self.ann)
        assert response is not None
        return response

    async def push(self, *rows: Any) -> Any:
        return (await self.ask("POST", SYNC, sync(*map(write, rows), sync_type="delta"))).json

    async def waiting(self, token: str | None = None) -> list[Any]:
        listed: list[Any] = (await self.ask("GET", LIST, token=token)).json["conflicts"]
        return listed

    async def resolve(self, id_: str, body: Any, token: str | None = None) -> Response:
        return await self.ask("POST", f"{LIST}/{id_}/resolve", body, token)


@pytest.fixture
async def site() -> Site:
    site = Site()
    await site.push(BASE)
    await site.push(MINE)
    lost = await site.push(THEIRS)
    assert ([THEIRS["id"]], 1) == (lost["applied"], len(lost["conflicts"]))
    return site


async def test_what_waits_is_listed_with_both_sides_and_resolved(site: Site) -> None:
    [entry] = await site.waiting()
    sides = {name: (entry[name]["content"], entry[name]["user_id"]) for name in ("mine", "theirs", "base")}
    assert {"mine": ({"a": 2}, "ann"), "theirs": ({"a": 3}, "bob"), "base": ({"a": 1}, "ann")} == sides
    site.now += 60 * SECOND
    done = await site.resolve(entry["id"], {"take": "theirs"})
    again = await site.resolve(entry["id"], {"take": "theirs"})
    late = await site.resolve(entry["id"], {"take": "mine"})

    assert (200, True, {"a": 3}, "ann") == (
        done.status,
        done.json["fresh"],
        done.json["resolved"]["content"],
        done.json["resolved"]["user_id"],
    )
    assert (200, done.json | {"fresh": False}) == (again.status, again.json)
    assert (409, "conflict_resolved") == (late.status, late.json["code"])
    assert [] == await site.waiting()
    told = (await site.ask("POST", SYNC, sync())).json["changes"]
    assert [done.json["resolved"]["version"]] == [change["entity"]["version"] for change in told]


async def test_who_is_connected_hears_of_what_was_decided_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    woken: list[str] = []
    monkeypatch.setattr(site.app._sockets, "changed", woken.append)
    [entry] = await site.waiting()
    for take in ("mine", "mine", "theirs"):
        await site.resolve(entry["id"], {"take": take})

    assert ["home"] == woken


async def test_a_v1_client_takes_what_was_decided(site: Site) -> None:
    pushed = {"homes": [], "client_id": "old", "changes": []}
    await site.ask("POST", "/api/v1/sync/push", pushed)
    [entry] = await site.waiting()
    home = entity("h", at(0), entity_type="home")
    user = {"kind": "user"}
    await site.push(home)
    await site.resolve(entry["id"], {"content": user, "name": "Ann"})
    asked = {"type": "sync_request", "client_id": "old", "last_sync": None, "entity_types": ["users"]}
    told = (await site.ask("POST", "/api/v1/sync/request", asked)).json

    assert ["Ann"] == [change["data"]["name"] for change in told["changes"]]


async def test_a_v1_push_that_is_sent_again_or_made_twice_leaves_nothing_to_decide(site: Site) -> None:
    def record(client: str, sync_id: str, name: str, updated: str) -> dict[str, Any]:
        data = {"id": "u", "name": name, "is_owner": True, "created_at": updated, "updated_at": updated}
        change = {"entity_type": "users", "entity_id": "u", "operation": "update", "data": data}
        return {"client_id": client, "changes": [change | {"client_sync_id": sync_id}]}

    [entry] = await site.waiting()
    await site.resolve(entry["id"], {"take": "mine"})
    made, edited = "2026-06-15T09:41:02.000000", "2026-06-15T09:41:03.000000"
    site.now += 10 * SECOND
    for number, (client, name, updated) in enumerate(
        [("a", "Ann", made), ("a", "Ann", made), ("a", "Anna", edited), ("a", "Anna", edited), ("b", "Anna", edited)]
    ):
        answer = await site.ask("POST", "/api/v1/sync/push", record(client, f"s{number}", name, updated))
        assert ([f"s{number}"], []) == (
            [applied["client_sync_id"] for applied in answer.json["applied"]],
            answer.json["conflicts"],
        )

    assert [] == await site.waiting()


async def test_another_graph_sees_and_resolves_nothing(site: Site) -> None:
    [entry] = await site.waiting()
    foreign = await site.resolve(entry["id"], {"take": "mine"}, site.eve)
    unknown = await site.resolve("nothing", {"take": "mine"}, site.eve)

    assert [] == await site.waiting(site.eve)
    assert (404, unknown.json) == (foreign.status, foreign.json)
    assert [entry] == await site.waiting()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b"\xff",
        b"{}",
        b'{"take":"ours"}',
        b'{"take":"mine","content":{}}',
        b'{"take":["mine"]}',
        b'{"content":5}',
        b'{"content":{"a":NaN}}',
        b'{"content":{"a":1e999}}',
        b'{"name":5}',
        b'{"name":"\\ud800"}',
        b'{"content":' + b'{"a":' * 70 + b"1" + b"}" * 71,
        b'{"content":' + b'{"a":' * 61 + b"1" + b"}" * 62,
    ],
)
async def test_a_body_that_decides_nothing_is_refused(site: Site, body: bytes) -> None:
    [entry] = await site.waiting()
    refused = await site.resolve(entry["id"], body)

    assert (400, "malformed_body") == (refused.status, refused.json["code"])
    assert 404 == (await site.resolve("unknown", body)).status
    assert [entry] == await site.waiting()


@given(
    st.binary(max_size=40) | st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())
)
def test_whatever_is_sent_is_answered(body: bytes) -> None:
    async def ask() -> int:
        site = Site()
        await site.push(BASE)
        await site.push(MINE)
        await site.push(THEIRS)
        [entry] = await site.waiting()
        return (await site.resolve(entry["id"], body)).status

    assert asyncio.run(ask()) in (200, 400)


@pytest.mark.parametrize("after", ["x", "1", "1.2", "a.b.note", "²¹.1.note"])
async def test_a_place_that_is_none_is_refused(site: Site, after: str) -> None:
    refused = await site.ask("GET", f"{LIST}?after={quote(after)}")
    if after == "1.2":
        assert 200 == refused.status
    else:
        assert (400, "bad_cursor") == (refused.status, refused.json["code"])


async def test_pages_tell_where_to_go_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review, "ENTRIES_MAX", 1)
    await site.push(THEIRS | {"version": at(3), "content": {"a": 4}})
    first = (await site.ask("GET", LIST)).json
    second = (await site.ask("GET", f"{LIST}?after={quote(first['next'])}")).json

    assert [{"a": 3}, {"a": 4}] == [page["conflicts"][0]["theirs"]["content"] for page in (first, second)]


async def test_it_works_from_a_file_and_in_a_thread(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "home.db")
    site = Site(store)
    for row in (BASE, MINE, THEIRS):
        await site.push(row)
    [entry] = await site.waiting()

    assert 200 == (await site.resolve(entry["id"], {"name": "Both"})).status
    assert [] == await site.waiting()
    await site.app.close()
    await store.close()


async def test_handlers_and_applications_take_rules_as_other_options() -> None:
    policy = Policy(rules={"note": manual})
    handler = V2ProtocolHandler(policy=policy)
    for row in (BASE, MINE):
        await handler.process(sync(write(row)))
    told = await handler.process(sync(write(THEIRS)))
    served = app(policy=policy)

    assert [MINE["version"]] == [lost["resolved_version"] for lost in told["conflicts"]]
    assert policy is served.router.policy
    with pytest.raises(LocalProtocolError):
        app(router=served.router, policy=Policy())
    await served.close()
