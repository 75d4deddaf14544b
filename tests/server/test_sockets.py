"""WebSocket: one wire version from the first message to the last, the same messages as on HTTP, and news as they come.

A real server process, and the `websockets` client.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from inbetweenies.stores import SqliteStore
from tests.rollout.made import begun, keep
from tests.server.calls import GUARD_SECONDS, ROOT, V2, entity, environment, running, sync, write

V1 = "inbetweenies-v1"
BOOTSTRAP = "inbetweenies"
FEATURES = ["acks", "digest", "edges", "paging"]


def cli(*arguments: object) -> str:
    """What `inbetweenies` prints."""
    done = subprocess.run(
        [sys.executable, "-m", "inbetweenies.cli", *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, env=environment(), check=False,
    )  # fmt: skip
    assert 0 == done.returncode, done.stderr
    return done.stdout


@contextmanager
def serving(db: Path) -> Iterator[str]:
    with running(["-m", "inbetweenies.cli", "serve", "--db", str(db), "--port", "0"]) as process:
        yield process.url


class Home:
    """A server process with a token for one graph."""

    def __init__(self, db: Path, url: str) -> None:
        self.db = db
        self.url = url
        self.token = token(db, "home")

    @asynccontextmanager
    async def connected(self, *offer: str, token: str | None = None, **headers: str) -> AsyncIterator[ClientConnection]:
        said = {"Authorization": f"Bearer {token or self.token}", **headers}
        where = self.url.replace("http", "ws") + "/api/v1/sync/ws"
        async with (
            asyncio.timeout(GUARD_SECONDS),
            connect(where, subprotocols=list(offer) or None, additional_headers=said, proxy=None) as socket,  # type: ignore[arg-type]
        ):
            yield socket

    async def push(self, *changes: dict[str, Any], token: str | None = None, **fields: Any) -> Any:
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(
                self.url + "/api/v1/sync/",
                json=sync(*changes, sync_type="delta", **fields),
                headers={"Authorization": f"Bearer {token or self.token}"},
            )
        assert 200 == answer.status_code
        return answer.json()


def token(db: Path, graph: str) -> str:
    made: str = json.loads(cli("token", "create", "--db", db, "--graph", graph, "--user", "ann", "--json"))["token"]
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    db = tmp_path_factory.mktemp("sockets") / "home.db"
    with serving(db) as url:
        yield Home(db, url)


async def ask(socket: ClientConnection, message: Any) -> Any:
    await socket.send(message if isinstance(message, str | bytes) else json.dumps(message))
    return json.loads(await socket.recv())


async def closing(socket: ClientConnection) -> tuple[int, str]:
    """With which code and reason the server ends the connection."""
    try:
        while True:
            await socket.recv()
    except ConnectionClosed as error:
        assert error.rcvd is not None
        return error.rcvd.code, error.rcvd.reason


def modern(*changes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return sync(*changes, features=FEATURES, **fields)


# --- the wire version of a connection -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "chosen"),
    [
        ((V2, V1, BOOTSTRAP), V2),
        ((V1, V2), V2),
        ((V1, BOOTSTRAP), V1),
        (("bearer.secret", "graphql-ws", V2), V2),
        (("inbetweenies-v2570", V2, BOOTSTRAP), V2),
    ],
    ids=["all", "in another order", "only the old one", "with foreign tokens", "with a reserved name"],
)
async def test_the_server_chooses_the_first_of_its_own_that_is_offered(
    home: Home, offer: tuple[str, ...], chosen: str
) -> None:
    async with home.connected(*offer) as socket:
        assert chosen == socket.subprotocol
        asked = modern() if chosen == V2 else {"type": "sync_request", "client_id": "c", "last_sync": None}
        told = await ask(socket, asked)

    assert ("changes", True) == ("changes", "changes" in told)
    assert "error" not in told


async def test_who_offers_only_what_is_not_served_is_told_why_and_let_go(home: Home) -> None:
    async with home.connected("inbetweenies-v7", BOOTSTRAP) as socket:
        assert BOOTSTRAP == socket.subprotocol
        told = json.loads(await socket.recv())
        assert (4406, "no_common_version") == await closing(socket)

    assert ("unsupported_version", "no_common_version") == (told["type"], told["code"])


async def test_without_the_bootstrap_token_the_handshake_itself_is_refused(home: Home) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with home.connected("inbetweenies-v7"):
            pass

    told = json.loads(refused.value.response.body or b"")
    assert (400, "no_common_version") == (refused.value.response.status_code, told["code"])


@pytest.mark.parametrize("named", [V2, None, "inbetweenies-v7"], ids=["named", "v1 unnamed", "unknown"])
async def test_who_offers_nothing_fixes_the_version_with_the_first_message(home: Home, named: str | None) -> None:
    first = modern() if named == V2 else {"type": "sync_request", "client_id": "c", "last_sync": None}
    if named not in (None, V2):
        first["protocol_version"] = named
    other = modern() if named != V2 else {"type": "sync_request", "client_id": "c", "last_sync": None}
    async with home.connected() as socket:
        assert None is socket.subprotocol
        assert "changes" in await ask(socket, first)
        assert "changes" in await ask(socket, first)
        await socket.send(json.dumps(other))
        assert (4409, "version_conflict") == await closing(socket)


async def test_a_message_in_another_version_than_was_chosen_ends_the_connection(home: Home) -> None:
    async with home.connected(V2) as socket:
        told = await ask(socket, {"protocol_version": V1, "client_id": "c"})
        assert (4409, "version_conflict") == await closing(socket)

    assert "version_conflict" == told["code"]


async def test_what_is_no_message_is_told_and_ends_the_connection(home: Home) -> None:
    async with home.connected(V2) as socket:
        told = await ask(socket, "{nope")
        assert (4400, "malformed_body") == await closing(socket)

    assert "malformed_body" == told["code"]


async def test_what_is_wrong_with_one_request_does_not_end_the_connection(home: Home) -> None:
    async with home.connected(V2) as socket:
        refused = await ask(socket, sync(cursor="nonsense", sync_type="delta"))
        told = await ask(socket, modern())

    assert "bad_cursor" == refused["code"]
    assert "changes" in told


# --- who may ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Authorization": "Bearer nope"}, 401), ({"Origin": "https://evil.example"}, 403)],
    ids=["a bad token", "a page of somebody else"],
)
async def test_who_may_not_is_refused_before_the_connection_stands(
    home: Home, headers: dict[str, str], status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with home.connected(V2, **headers):
            pass

    assert status == refused.value.response.status_code


async def test_a_revoked_token_ends_the_connection(home: Home) -> None:
    made = json.loads(cli("token", "create", "--db", home.db, "--graph", "home", "--user", "eve", "--json"))
    async with home.connected(V2, token=made["token"]) as socket:
        assert "changes" in await ask(socket, modern())
        cli("token", "revoke", "--db", home.db, made["key_id"])
        assert (4401, "unauthorized") == await closing(socket)


# --- news ---------------------------------------------------------------------------------------------------------


async def test_what_others_write_is_pushed_and_goes_on_from_the_last_answer(home: Home) -> None:
    async with home.connected(V2) as socket:
        first = await ask(socket, modern())
        await home.push(write(entity("news-1", "v1")))
        told = json.loads(await socket.recv())
        await home.push(write(entity("news-2", "v1")))
        again = json.loads(await socket.recv())

    assert {"after": first["cursor"]} == told["live"]
    assert ["news-1"] == [change["entity"]["id"] for change in told["changes"]]
    assert {"after": told["cursor"]} == again["live"]
    assert ["news-2"] == [change["entity"]["id"] for change in again["changes"]]


async def test_what_a_connection_writes_itself_is_no_news_to_it(home: Home) -> None:
    async with home.connected(V2) as one, home.connected(V2) as other:
        await ask(one, modern())
        start = await ask(other, modern())
        told = await ask(one, modern(write(entity("mine", "v1")), cursor=start["cursor"], sync_type="delta"))
        heard = json.loads(await other.recv())
        await home.push(write(entity("theirs", "v1")))
        news = json.loads(await one.recv())

    assert ["mine"] == told["applied"]
    assert ["mine"] == [change["entity"]["id"] for change in heard["changes"]]
    assert ["theirs"] == [change["entity"]["id"] for change in news["changes"]]


async def test_a_v1_client_that_stays_connected_is_told_as_well(home: Home) -> None:
    async with home.connected(V1) as socket:
        asked = {"type": "sync_request", "client_id": "old", "last_sync": None, "entity_types": ["homes"]}
        await ask(socket, asked)
        await home.push(write(entity("villa", "v1", entity_type="home")))
        told = json.loads(await socket.recv())

    assert {"after": None} == told["live"]
    assert "villa" in [change["entity_id"] for change in told["changes"]]


async def test_a_v1_client_pushes_over_its_connection(home: Home) -> None:
    record = {"id": "shed", "name": "Shed", "is_primary": False, "created_at": "2026-06-15T09:40:00"}
    record |= {"updated_at": "2026-06-15T09:40:00", "sync_id": None}
    change = {"entity_type": "home", "entity_id": "shed", "operation": "update", "data": record, "client_sync_id": "1"}
    async with home.connected(V1) as socket:
        told = await ask(socket, {"type": "sync_push", "client_id": "old", "changes": [change]})
        acked = await ask(socket, {"type": "sync_ack", "client_id": "old", "sync_completed_at": "2026-06-15T09:41:00"})

    assert ["1"] == [applied["client_sync_id"] for applied in told["applied"]]
    assert "acknowledged" == acked["status"]


async def test_nobody_is_told_of_another_graph(home: Home) -> None:
    async with home.connected(V2) as socket:
        start = await ask(socket, modern())
        await home.push(write(entity("secret", "v1")), token=token(home.db, "another"))
        await home.push(write(entity("known", "v1")))
        told = json.loads(await socket.recv())

    assert start["cursor"] == told["live"]["after"]
    assert ["known"] == [change["entity"]["id"] for change in told["changes"]]


async def test_what_another_process_writes_is_pushed_too(home: Home) -> None:
    with serving(home.db) as url:
        async with home.connected(V2) as socket:
            await ask(socket, modern())
            await Home(home.db, url).push(write(entity("elsewhere", "v1")))
            told = json.loads(await socket.recv())

    assert "elsewhere" in [change["entity"]["id"] for change in told["changes"]]


async def test_a_version_that_is_withdrawn_ends_its_connections_and_no_others(home: Home) -> None:
    async with home.connected(V2) as new, home.connected(V1) as old:
        await ask(new, modern())
        await ask(old, {"type": "sync_request", "client_id": "c", "last_sync": None})
        cli("versions", "disable", "--db", home.db, V2, "--yes")
        try:
            told = json.loads(await new.recv())
            assert (1012, "version_withdrawn") == await closing(new)
            assert "changes" in await ask(old, {"type": "sync_request", "client_id": "c", "last_sync": None})
        finally:
            cli("versions", "enable", "--db", home.db, V2)

    assert ("version_withdrawn", [V1]) == (told["type"], told["supported"])


async def test_who_could_speak_what_a_rollout_gives_or_takes_is_told_to_come_back(tmp_path: Path) -> None:
    """PROTOCOL 12.3, 5.17: a connection that lasts for days is no sync that may finish as it began."""
    store = SqliteStore(tmp_path / "home.db", journal=False, heads=False)
    with serving(tmp_path / "home.db") as url:
        home = Home(tmp_path / "home.db", url)
        async with home.connected(V2, V1, BOOTSTRAP) as able, home.connected(V2) as old:
            await ask(able, modern())
            await ask(old, modern())
            keep(store, begun(V2, "elsewhere"))
            told = json.loads(await able.recv())
            assert (1012, "version_withdrawn") == await closing(able)
            async with home.connected(V2, V1) as again:
                assert V1 == again.subprotocol
                keep(store, begun(V2, "home"))
                assert (1012, "version_withdrawn") == await closing(again)
            # What speaks nothing else is served as before.
            assert "changes" in await ask(old, modern())
    await store.close()

    assert ("version_withdrawn", [V1]) == (told["type"], told["supported"])


async def test_what_is_served_again_is_served_to_the_next_handshake(home: Home) -> None:
    cli("versions", "disable", "--db", home.db, V2, "--yes")
    with pytest.raises(InvalidStatus):
        async with home.connected(V2):
            pass  # it has seen that by now
    cli("versions", "enable", "--db", home.db, V2)
    async with home.connected(V2) as socket:
        assert V2 == socket.subprotocol
