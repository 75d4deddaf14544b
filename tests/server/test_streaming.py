"""Answers that are sent in pieces: what a peer gets, when it is slow, when it is gone, when the store fails half way
(PROTOCOL 4.9)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inbetweenies import Limits, MemoryStore, ProtocolFallback
from inbetweenies.asgi import ServerLimits, app
from inbetweenies.asgi.http import BrokenOffError
from inbetweenies.errors import StoreBusy
from inbetweenies.store import Store
from inbetweenies.stores import SqliteStore
from tests.server.calls import SYNC, Process, entity, running, sync, write
from tests.support import run

PAGE = Limits(page_rows_max=4)
COUNT = 30


def filled(store: Store) -> Store:
    """A store that holds `COUNT` entities."""
    changes = [write(entity(f"x{number:02}", "v1", content={"n": "n" * 500})) for number in range(COUNT)]
    assert "error" not in run(ProtocolFallback(store).handle_sync_request(sync(*changes)))
    return store


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "store.db")
    yield filled(store)
    run(store.close())


class Peer:
    """A deployed peer that asks for everything, and the ASGI messages that it is sent."""

    def __init__(self, store: Store, **bounds: Any) -> None:
        self.app = app(router=ProtocolFallback(store, limits=PAGE), auth=False, bounds=ServerLimits(**bounds))
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.on_piece: Callable[[int], None] = lambda _: None
        self._asked = False

    async def ask(self, message: Any | None = None, path: str = SYNC) -> None:
        body = json.dumps(message or sync()).encode()
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        asked = False

        async def receive() -> Any:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await self.may_send.wait()
            self.sent.append(message)
            self.on_piece(len(self.sent) - 1)
            await asyncio.sleep(0)

        await self.app(scope, receive, send)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])


async def test_a_large_answer_is_sent_in_pieces_and_a_small_one_is_not(store: Store) -> None:
    large, small = Peer(store), Peer(store)
    await large.ask()
    await small.ask(sync(sync_type="delta", cursor=str(COUNT - 2)))

    assert COUNT == len(json.loads(large.body)["changes"])
    assert COUNT // 4 < len(large.sent) - 1
    assert [True] * (len(large.sent) - 2) + [False] == [message["more_body"] for message in large.sent[1:]]
    assert b"content-length" not in large.headers
    assert 2 == len(json.loads(small.body)["changes"])
    assert [False] == [message["more_body"] for message in small.sent[1:]]
    assert b"%d" % len(small.body) == small.headers[b"content-length"]
    await large.app.close()
    await small.app.close()


async def test_a_store_that_fails_half_way_ends_the_connection_and_not_the_answer(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(store)

    def fail(piece: int) -> None:
        if piece == 3:
            store.transaction = _busy  # type: ignore[method-assign]

    peer.on_piece = fail
    with caplog.at_level(logging.WARNING), pytest.raises(BrokenOffError):
        await peer.ask()

    assert 200 == peer.sent[0]["status"]
    assert [True] * 3 == [message["more_body"] for message in peer.sent[1:]]
    with pytest.raises(json.JSONDecodeError):
        json.loads(peer.body)
    assert "broken off: StoreBusy: later" in caplog.text
    await peer.app.close()


async def test_a_store_that_fails_before_the_first_byte_is_told_with_its_status(store: Store) -> None:
    peer = Peer(store)
    store.transaction = _busy  # type: ignore[method-assign]
    await peer.ask()

    assert (503, "unavailable") == (peer.sent[0]["status"], json.loads(peer.body)["code"])
    await peer.app.close()


def _busy(graph: str, *, write: bool) -> Any:
    raise StoreBusy("later")


async def test_nothing_is_read_for_a_peer_that_is_gone(store: Store) -> None:
    peer = Peer(store)
    peer.on_piece = lambda piece: peer.gone.set() if piece == 3 else None
    await peer.ask()

    assert 4 <= len(peer.sent) <= 5
    assert all(message["more_body"] for message in peer.sent[1:])
    await peer.app.close()


async def test_a_peer_that_reads_slowly_takes_no_place_and_holds_up_nobody(store: Store) -> None:
    peer = Peer(store, requests_max=1, waiting_max=0)
    peer.on_piece = lambda piece: peer.may_send.clear() if piece == 2 else None
    slow = asyncio.ensure_future(peer.ask())
    while peer.may_send.is_set():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0)

    other = Peer(store)
    other.app = peer.app
    await other.ask(sync(write(entity("new", "v1")), sync_type="delta", filters={"since": "2090-01-01T00:00:00"}))
    peer.may_send.set()
    await slow

    assert ["new"] == json.loads(other.body)["applied"]
    # What the answer began with is what it tells.
    assert [f"x{number:02}" for number in range(COUNT)] == [
        change["entity"]["id"] for change in json.loads(peer.body)["changes"]
    ]
    await peer.app.close()


# --- on real sockets ----------------------------------------------------------------------------------------------

SERVER = """
import sys
from inbetweenies import Limits, MemoryStore, ProtocolFallback
from inbetweenies.asgi import ServerLimits, app, run, serving
from inbetweenies.errors import StoreBusy
class Store(MemoryStore):
    opened = 0
    def transaction(self, graph, *, write):
        Store.opened += not write
        if Store.opened > int(sys.argv[1]):
            raise StoreBusy("later")
        return super().transaction(graph, write=write)
class Told(serving.BoundedProtocol):
    def connection_lost(self, exc):
        super().connection_lost(exc)
        print(Store.opened, flush=True)
serving.BoundedProtocol = Told
router = ProtocolFallback(Store(), limits=Limits(page_rows_max=4))
run(app(router=router, auth=False, bounds=ServerLimits(stall_seconds=0.05)), port=0)
"""


def post(server: Process, message: Any) -> httpx.Response:
    return httpx.post(server.url + SYNC, json=message, timeout=30)


def opened(server: Process) -> int:
    """How many transactions for reading there have been when the connection is lost that is lost next."""
    assert server.process.stdout is not None
    return int(server.process.stdout.readline())


def push(server: Process, size: int) -> None:
    for start in range(0, COUNT, 5):
        changes = [write(entity(f"x{start + number:02}", "v1", content={"n": "n" * size})) for number in range(5)]
        assert 200 == post(server, sync(*changes, sync_type="delta", features=["paging"])).status_code
        assert 0 == opened(server)


def test_an_answer_in_pieces_arrives_whole_over_http() -> None:
    with running(["-c", SERVER, "1000"]) as server:
        push(server, 500)
        answer = post(server, sync())

        assert COUNT // 4 < opened(server)
    assert "chunked" == answer.headers["transfer-encoding"]
    assert COUNT == len(answer.json()["changes"])


def test_an_answer_that_is_broken_off_is_an_error_to_the_peer_and_no_traceback_here() -> None:
    with running(["-c", SERVER, "3"]) as server:
        push(server, 500)

        with pytest.raises(httpx.RemoteProtocolError):
            post(server, sync())
        assert 503 == post(server, sync()).status_code


def test_for_a_peer_that_does_not_read_no_more_is_read() -> None:
    body = json.dumps(sync()).encode()
    with running(["-c", SERVER, "1000"]) as server, server.connect() as connection:
        push(server, 2_000_000)
        # More than the kernel keeps, whatever it is set to.
        connection.sendall(b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)

        assert opened(server) < COUNT // 4
        assert 200 == httpx.get(server.url + "/health").status_code
