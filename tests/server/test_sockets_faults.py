"""WebSocket connections when something fails, is full or stands still: straight into the application, without a server.

What is awaited is always a message or an end; nothing here sleeps.
"""

from __future__ import annotations

import asyncio
import json
from asyncio import Queue, Task
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from inbetweenies import ProtocolFallback
from inbetweenies.asgi import App, ServerLimits, app, sockets
from inbetweenies.auth import MemoryTokens
from inbetweenies.errors import StoreBusy
from inbetweenies.stores.memory import MemoryStore
from tests.server.calls import GUARD_SECONDS, SYNC, V2, entity, request, sync, write

FEATURES = ["acks", "digest", "edges", "paging"]


@pytest.fixture(autouse=True)
def look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "LOOK_SECONDS", 0.001)


class Peer:
    """One ASGI connection: what is sent goes in at `say`, what is told comes out at `heard`."""

    def __init__(self, site: App, token: str | None = None, *, reads: bool = True) -> None:
        self.token = token
        self.reads = reads
        self.unread = asyncio.Event()
        self.site = site
        self._in: Queue[Any] = Queue()
        self._out: Queue[Any] = Queue()
        self.task: Task[None] = asyncio.create_task(self._run())

    async def _run(self) -> None:
        headers = [] if self.token is None else [(b"authorization", b"Bearer " + self.token.encode())]
        self._in.put_nowait({"type": "websocket.connect"})
        scope: dict[str, Any] = {"type": "websocket", "path": sockets.PATH, "headers": headers, "subprotocols": [V2]}
        scope["extensions"] = {"websocket.http.response": {}}
        await self.site(scope, self._in.get, self._send)

    async def _send(self, message: Any) -> None:
        if not self.reads:
            self.unread.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)  # as to any real peer: others come between
        self._out.put_nowait(message)

    async def heard(self) -> Any:
        message = await self._out.get()
        return json.loads(message["text"]) if message["type"] == "websocket.send" else message

    def say(self, message: Any) -> None:
        self._in.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    async def ask(self, *changes: Any, **fields: Any) -> Any:
        self.say(sync(*changes, features=FEATURES, **fields))
        return await self.heard()

    def go(self) -> None:
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1001})


@asynccontextmanager
async def connected(site: App, **settings: Any) -> AsyncIterator[Peer]:
    async with asyncio.timeout(GUARD_SECONDS):
        peer = Peer(site, **settings)
        assert "websocket.accept" == (await peer.heard())["type"]
        yield peer
        peer.go()
        await peer.task


class Faulty(MemoryTokens):
    """Tokens that cannot be read while `broken`."""

    broken: Exception | None = None

    def find(self, secret: str | bytes, now: int) -> Any:
        if self.broken is not None:
            raise self.broken
        return super().find(secret, now)


def made(**bounds: Any) -> App:
    return app(router=ProtocolFallback(MemoryStore()), auth=False, bounds=ServerLimits(**bounds))


async def committed(site: App, id_: str) -> None:
    """By HTTP, as somebody else."""
    reply = await request(site, "POST", SYNC, sync(write(entity(id_, "v1"))))
    assert reply is not None
    assert 200 == reply.status


def ids(told: Any) -> list[str]:
    return [change["entity"]["id"] for change in told["changes"]]


@pytest.mark.parametrize("error", [StoreBusy("not now"), KeyError("a defect")], ids=["a fault", "a defect"])
async def test_what_fails_is_answered_and_the_next_request_is_served(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    site = made()

    async def failing(*_: Any, **__: Any) -> Any:
        raise error

    async with connected(site) as peer:
        with monkeypatch.context() as patch:
            patch.setattr(site.router, "handle", failing)
            refused = await peer.ask()
        told = await peer.ask()

    assert (503, "unavailable") == (refused["status"], refused["code"])
    assert [] == told["changes"]


@pytest.mark.parametrize("error", [StoreBusy("not now"), KeyError("a defect")], ids=["a fault", "a defect"])
async def test_news_that_cannot_be_told_are_told_when_they_can(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    site = made()
    failed, looked = asyncio.Event(), asyncio.Event()

    async def failing(*_: Any, **__: Any) -> Any:
        failed.set()
        raise error

    async def still(self: App, graph: str) -> str:
        looked.set()
        return "nothing moves"  # only the commit itself wakes anybody

    monkeypatch.setattr(App, "head", still)
    async with connected(site) as peer:
        await peer.ask()
        for _ in range(2):
            await looked.wait()
            looked.clear()
        with monkeypatch.context() as patch:
            await committed(site, "lamp")
            patch.setattr(site.router, "handle", failing)
            await failed.wait()
        told = await peer.heard()

    assert ["lamp"] == ids(told)


async def test_the_look_goes_on_whatever_fails_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    tokens = Faulty()
    token, info = tokens.create("home", "ann")
    site = app(router=ProtocolFallback(store), tokens=tokens)
    looked = asyncio.Event()
    head = App.head

    async def failing(self: App, graph: str) -> str:
        looked.set()
        raise KeyError(graph)

    async with connected(site, token=token) as peer:
        await peer.ask()
        monkeypatch.setattr(App, "head", failing)
        await looked.wait()
        looked.clear()
        tokens.broken = StoreBusy("not now")
        await looked.wait()
        monkeypatch.setattr(App, "head", head)
        tokens.broken = None
        tokens.revoke(info.key_id)
        ended = await peer.heard()

    assert (4401, "unauthorized") == (ended["code"], ended["reason"])


async def test_who_reads_nothing_is_let_go_and_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    dismissing = asyncio.Event()
    dismiss = sockets.Connection.dismiss

    async def noted(self: sockets.Connection, why: str) -> None:
        dismissing.set()
        await dismiss(self, why)

    monkeypatch.setattr(sockets.Connection, "dismiss", noted)
    tokens = MemoryTokens()
    (deaf, one), (token, other) = tokens.create("home", "eve"), tokens.create("home", "ann")
    site = app(router=ProtocolFallback(MemoryStore()), tokens=tokens, bounds=ServerLimits(stall_seconds=3600))
    async with connected(site, token=token) as peer, connected(site, token=deaf) as stuck:
        stuck.reads = False
        stuck.say(sync())
        await stuck.unread.wait()
        tokens.revoke(one.key_id)
        await dismissing.wait()
        tokens.revoke(other.key_id)
        ended = await peer.heard()
        stuck.task.cancel()
        await asyncio.wait({stuck.task})
        stuck.task = asyncio.create_task(asyncio.sleep(0))
    await site.close()

    assert 4401 == ended["code"]


@pytest.mark.parametrize("asked", [True, False], ids=["its answer", "its news"])
async def test_who_reads_nothing_for_too_long_has_gone(asked: bool) -> None:
    site = made(stall_seconds=0.01)
    async with asyncio.timeout(GUARD_SECONDS):
        peer = Peer(site)
        await peer.heard()
        if asked:
            peer.reads = False
            peer.say(sync(features=FEATURES))
        else:
            await peer.ask()
            peer.reads = False
            await committed(site, "lamp")

        await peer.task  # though nobody said goodbye


async def test_news_for_many_leave_the_turns_to_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    site = made(requests_max=sockets.NEWS_AT_ONCE + 1, waiting_max=0)
    most = now = 0
    sync_ = App.sync

    async def counted(self: App, *arguments: Any, **named: Any) -> Any:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)  # so that others come between, as a store would let them
        try:
            return await sync_(self, *arguments, **named)
        finally:
            now -= 1

    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(connected(site)) for _ in range(40)]
        for peer in peers:
            await peer.ask()
        await committed(site, "lamp")
        monkeypatch.setattr(App, "sync", counted)
        told = [await peer.heard() for peer in peers]

    assert 40 * [["lamp"]] == [ids(each) for each in told]
    assert sockets.NEWS_AT_ONCE == most


async def test_many_handshakes_at_once_find_no_more_room_than_there_is() -> None:
    site = made(sockets_max=3)
    async with asyncio.timeout(GUARD_SECONDS):
        peers = [Peer(site) for _ in range(10)]
        told = [await peer.heard() for peer in peers]
        for peer in peers:
            peer.go()
        await asyncio.wait({peer.task for peer in peers})
        async with connected(site) as later:
            assert [] == (await later.ask())["changes"]

    assert [*["websocket.accept"] * 3, *["websocket.http.response.start"] * 7] == sorted(each["type"] for each in told)


async def test_a_large_request_is_not_kept_to_be_asked_again() -> None:
    site = made()
    async with connected(site) as peer:
        await peer.ask(padding="x" * sockets.FOLLOW_BYTES_MAX)
        await committed(site, "lamp")
        told = await peer.ask()
        await committed(site, "door")
        news = await peer.heard()

    assert ["lamp"] == ids(told)
    assert ({"after": told["cursor"]}, ["door"]) == (news["live"], ids(news))


def test_an_application_may_be_used_on_one_event_loop_after_another() -> None:
    site = made()

    async def told() -> int:
        tokens = Faulty()
        token, info = tokens.create("default", "ann")
        site.auth, site.tokens = True, tokens
        async with connected(site, token=token) as peer:
            tokens.revoke(info.key_id)
            return int((await peer.heard())["code"])

    assert [4401, 4401] == [asyncio.run(told()), asyncio.run(told())]


async def test_who_uses_which_version_is_written_down_where_there_are_only_websockets() -> None:
    site = made()
    written = asyncio.Event()
    add = site._upkeep.write

    async def writing() -> None:
        await add()
        written.set()

    site._upkeep.write = writing  # type: ignore[method-assign]
    async with connected(site) as peer:
        await peer.ask()
        await written.wait()

    assert not site._upkeep._tally
