"""The HTTP shell: what is answered, what is refused, and that nothing else ever comes out (PROTOCOL 2, 5, 7)."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from inbetweenies.asgi import App, ServerLimits, app, release
from inbetweenies.asgi.http import Door
from inbetweenies.auth import MemoryTokens
from inbetweenies.errors import LocalProtocolError, StoreBusy
from inbetweenies.exchange import Reply
from inbetweenies.limits import Limits
from inbetweenies.model import Context
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import MemoryStore, SqliteStore
from tests.server.calls import JSON, SYNC, V2, Response, edge, entity, request, sync, write

NOW = 1_781_516_462_000_000

AUTHENTICATED = [
    ("POST", "/api/v1/sync"),
    ("POST", "/api/v1/sync/"),
    ("POST", "/api/v1/sync/request"),
    ("POST", "/api/v1/sync/push"),
    ("POST", "/api/v1/sync/ack"),
    ("GET", "/api/v1/sync/status"),
    ("GET", "/api/v1/sync/conflicts"),
    ("POST", "/api/v1/sync/conflicts/c1/resolve"),
    ("GET", "/api/v1/graph/relationships"),
    ("GET", "/api/v1/graph/entities/e1/versions"),
    ("GET", "/api/v1/auth/me"),
]
OPEN = ["/", "/health", "/api/version", "/versions"]


class Site:
    """An application over a memory store, its clock, and a token for the graph ``home``."""

    def __init__(self, *, router: ProtocolFallback | None = None, **options: Any) -> None:
        self.now = NOW
        self.seconds = 0.0
        clock = lambda: self.now  # noqa: E731
        self.router = router or ProtocolFallback(MemoryStore(), clock=clock, limits=options.pop("limits", None))
        self.tokens = MemoryTokens(clock=clock)
        self.app = app(router=self.router, tokens=self.tokens, monotonic=lambda: self.seconds, **options)
        self.token, self.info = self.tokens.create("home", "ann")

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Response:
        response = await request(self.app, method, path, body, **{"token": self.token, **options})
        assert response is not None, "nothing was answered"
        return checked(response)

    async def push(self, *changes: dict[str, Any]) -> Any:
        response = await self.ask("POST", SYNC, sync(*changes))
        assert response.status == 200
        return response.json


def checked(response: Response) -> Response:
    """What holds of every answer (PROTOCOL 2.6)."""
    headers = response.headers
    assert headers["vary"] == "Inbetweenies-Version, Inbetweenies-Accept-Versions"
    assert set(headers["inbetweenies-supported-versions"].split(", ")) & {V2, "inbetweenies-v1"}
    assert headers["inbetweenies-version"]
    assert headers["inbetweenies-registry-revision"]
    assert "Inbetweenies-Registry-Revision" in headers["access-control-expose-headers"]
    assert response.status < 500 or (response.status == 503 and int(headers["retry-after"]) > 0)
    if response.status == 304:
        return response
    assert headers["content-length"] == str(len(response.body))
    if response.status == 200:
        assert headers["content-type"] == "application/json"
    else:
        assert headers["content-type"] == "application/problem+json"
        told = response.json
        assert told["status"] == response.status
        assert told["type"] == f"urn:inbetweenies:problem:{told['code']}"
        assert told["detail"]
        assert len(response.body) <= 1024
    return response


@pytest.fixture
def site() -> Site:
    return Site()


# --- without a token ----------------------------------------------------------------------------------------------


async def test_health_and_root_answer_without_a_token(site: Site) -> None:
    health = await site.ask("GET", "/health", token=None)
    root = await site.ask("GET", "/", token=None)

    assert health.json == {"status": "healthy"}
    assert root.json == {"name": "inbetweenies", "version": release(), "status": "ready"}


async def test_discovery_tells_which_versions_are_served(site: Site) -> None:
    site.router.disabled = frozenset({"inbetweenies-v0"})
    site.router.retired = frozenset({"inbetweenies-v00"})

    told = (await site.ask("GET", "/api/version", token=None)).json

    accepted = list(site.router.registry.accepted)
    assert told["service"] == "inbetweenies"
    assert told["server"] == {"name": "inbetweenies", "version": release()}
    assert told["server_version"] == release()
    assert told["supported_versions"] == accepted
    assert told["preferred_version"] == told["max_version"] == accepted[0] == V2
    assert told["min_version"] == accepted[-1]
    assert told["default_version"] == "inbetweenies-v1"
    assert told["versions"][0] == {"id": V2, "status": "current"}
    assert told["versions"][-2:] == [
        {"id": "inbetweenies-v0", "status": "disabled"},
        {"id": "inbetweenies-v00", "status": "retired"},
    ]
    assert "paging" in told["features"]
    assert told["limits"]["body_bytes_max"] == Limits().body_bytes_max


async def test_discovery_has_two_addresses_and_may_be_cached(site: Site) -> None:
    one = await site.ask("GET", "/api/version", token=None)
    other = await site.ask("GET", "/versions", token=None)

    assert one.body == other.body
    assert one.headers["cache-control"] == "max-age=60"
    assert one.headers["etag"] == other.headers["etag"]


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_discovery_is_not_sent_again_to_who_has_it(site: Site, form: str) -> None:
    tag = (await site.ask("GET", "/api/version")).headers["etag"]

    response = await site.ask("GET", "/api/version", headers=[("if-none-match", form.format(tag))])

    assert (response.status, response.body, response.headers["etag"]) == (304, b"", tag)


async def test_discovery_is_sent_again_when_a_version_was_switched_off(site: Site) -> None:
    tag = (await site.ask("GET", "/api/version")).headers["etag"]
    site.router.disabled = frozenset({"inbetweenies-v0"})

    response = await site.ask("GET", "/api/version", headers=[("if-none-match", tag)])

    assert response.status == 200


@pytest.mark.parametrize("path", OPEN)
async def test_head_is_get_without_a_body(site: Site, path: str) -> None:
    get = await site.ask("GET", path)
    head = await request(site.app, "HEAD", path)

    assert head is not None
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(get.body)))


# --- who may speak ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), AUTHENTICATED)
async def test_without_a_token_nothing_is_read_or_told(site: Site, method: str, path: str) -> None:
    response = await site.ask(method, path, b"{}", token=None)

    assert response.status == 401
    assert response.json["detail"] == "Not authenticated"
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.chunks == 0


@pytest.mark.parametrize(("method", "path"), AUTHENTICATED)
async def test_with_a_wrong_token_nothing_is_read_and_all_routes_answer_alike(
    site: Site, method: str, path: str
) -> None:
    response = await site.ask(method, path, b"{}", token="ib1_00000000_" + "A" * 43)
    reference = await site.ask("GET", "/api/v1/auth/me", token="x")

    assert response.status == 401
    assert response.json["detail"] == "Invalid or expired token"
    assert response.body == reference.body
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.chunks == 0


@pytest.mark.parametrize(
    "value",
    [
        b"Bearer \xe9\xff",
        b"Bearer \x00",
        b"Bearer " + b"A" * 100_000,
        b"Bearer ib1_\xd9\xa1\xd9\xa2345678_" + b"A" * 43,
        b"Bearer a b",
        b"bearer token",
        "Bearer ïb1_00000000_".encode() + b"A" * 43,
    ],
)
async def test_hostile_tokens_are_refused_like_any_other(site: Site, value: bytes) -> None:
    response = await site.ask("GET", "/api/v1/auth/me", token=None, headers=[("authorization", value)])

    assert (response.status, response.json["detail"]) == (401, "Invalid or expired token")


@pytest.mark.parametrize("value", [b"", b"Bearer", b"Bearer ", b"Basic YWRtaW46YWRtaW4=", b"\xff", b"Bearer\x00x"])
async def test_another_scheme_is_no_token(site: Site, value: bytes) -> None:
    response = await site.ask("GET", "/api/v1/auth/me", token=None, headers=[("authorization", value)])

    assert (response.status, response.json["detail"]) == (401, "Not authenticated")


async def test_two_tokens_in_one_request_are_refused(site: Site) -> None:
    headers = [("authorization", f"Bearer {site.token}")] * 2

    response = await site.ask("GET", "/api/v1/auth/me", token=None, headers=headers)

    assert response.status == 401


async def test_a_revoked_token_is_refused_on_the_next_request(site: Site) -> None:
    assert (await site.ask("POST", SYNC, sync())).status == 200

    site.tokens.revoke(site.info.key_id)

    assert (await site.ask("POST", SYNC, sync())).status == 401


async def test_an_expired_token_is_refused(site: Site) -> None:
    token, _ = site.tokens.create("home", "ann", None, site.now + 10)
    site.now += 9
    assert (await site.ask("GET", "/api/v1/auth/me", token=token)).status == 200

    site.now += 1

    assert (await site.ask("GET", "/api/v1/auth/me", token=token)).status == 401


async def test_the_graph_comes_from_the_token_and_labels_stay_labels(site: Site) -> None:
    other, _ = site.tokens.create("cabin", "bob", "phone")
    await site.push(write(entity("e1", "v1")))

    there = await site.ask("POST", SYNC, sync(device_id="tablet", user_id="ann"), token=other)
    here = await site.ask("POST", SYNC, sync(device_id="phone", user_id="bob"))

    assert there.json["changes"] == []
    assert [change["entity"]["id"] for change in here.json["changes"]] == ["e1"]


async def test_a_token_store_that_fails_lets_nobody_in(site: Site) -> None:
    def broken(*_: Any) -> None:
        raise StoreBusy("away")

    site.tokens.find = broken  # type: ignore[method-assign, assignment]

    assert (await site.ask("POST", SYNC, sync())).status == 503


async def test_without_auth_everybody_is_in_one_graph() -> None:
    site = Site(auth=False, admin_graph="mine")

    await site.ask("POST", SYNC, sync(write(entity("e1", "v1"))), token=None)
    told = (await site.ask("GET", "/api/v1/auth/me", token=None)).json

    assert (told["user_id"], told["graph"]) == ("local", "mine")
    assert (await site.ask("POST", SYNC, sync(), token="whatever")).json["changes"]


# --- the sync route -----------------------------------------------------------------------------------------------


async def test_sync_is_served_with_and_without_the_slash_and_never_redirected(site: Site) -> None:
    await site.push(write(entity("e1", "v1")))

    one = await site.ask("POST", "/api/v1/sync", sync())
    other = await site.ask("POST", "/api/v1/sync/", sync())

    assert one.status == other.status == 200
    assert one.body == other.body
    assert one.headers["inbetweenies-version"] == other.headers["inbetweenies-version"] == V2


class Spy(ProtocolFallback):
    """Remembers what the shell handed over."""

    def __init__(self) -> None:
        super().__init__(MemoryStore(), clock=lambda: NOW)
        self.handed: list[tuple[bytes, Context, str, str | None]] = []

    async def handle(
        self, body: bytes, *, context: Context, path: str = "", header: str | None = None, **_: Any
    ) -> Reply:
        self.handed.append((body, context, path, header))
        return Reply(status=200, body=b"{}", served=V2)


@pytest.mark.parametrize(
    ("path", "handed"),
    [
        ("/api/v1/sync", "/api/v1/sync/"),
        ("/api/v1/sync/", "/api/v1/sync/"),
        ("/api/v1/sync/request", "/api/v1/sync/request"),
        ("/api/v1/sync/push", "/api/v1/sync/push"),
        ("/api/v1/sync/ack", "/api/v1/sync/ack"),
    ],
)
async def test_the_router_gets_body_context_path_and_header(path: str, handed: str) -> None:
    spy = Spy()
    site = Site(router=spy)
    token, info = spy_token = site.tokens.create("cabin", "bob", "phone")

    await site.ask(
        "POST", "/prefix" + path, b"\x00body", token=token, root_path="/prefix", headers=[("Inbetweenies-Version", V2)]
    )

    context = Context(graph="cabin", user="bob", device="phone", token=info.key_id, now=NOW)
    assert spy.handed == [(b"\x00body", context, handed, V2)]
    assert spy_token[0] not in repr(spy.handed)


async def test_a_body_that_comes_in_pieces_is_put_together() -> None:
    spy = Spy()

    async def pieces() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": b"a", "more_body": True}
        yield {"type": "http.request", "more_body": True}
        yield {"type": "http.request", "body": b"bc"}

    await Site(router=spy).ask("POST", SYNC, pieces=pieces())

    assert spy.handed[0][0] == b"abc"


async def test_refusals_of_the_protocol_are_passed_on(site: Site) -> None:
    malformed = await site.ask("POST", SYNC, b"{")
    null = await site.ask("POST", SYNC, {**sync(), "protocol_version": None})
    conflict = await site.ask("POST", SYNC, sync(), headers=[("inbetweenies-version", "inbetweenies-v7")])

    assert (malformed.status, malformed.json["code"]) == (400, "malformed_body")
    assert (null.status, null.json["code"]) == (400, "malformed_version")
    assert (conflict.status, conflict.json["code"]) == (400, "version_conflict")
    assert malformed.headers["inbetweenies-version"] == "none"


async def test_an_unknown_version_without_changes_is_served_in_the_fallback(site: Site) -> None:
    if "inbetweenies-v1" not in site.router.handlers:
        pytest.skip("the fallback is not installed")

    response = await site.ask("POST", SYNC, {**sync(), "protocol_version": "inbetweenies-v7"})

    assert response.status == 200
    assert response.headers["inbetweenies-version"] == "inbetweenies-v1"
    assert response.json["negotiation"]["requested"] == "inbetweenies-v7"


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "Application/JSON",
        'application/json;charset="UTF-8"',
        "application/json; charset=utf8 ",
    ],
)
async def test_json_is_accepted_however_it_is_named(site: Site, kind: str | None) -> None:
    headers = [] if kind is None else [("content-type", kind)]

    assert (await site.ask("POST", SYNC, sync(), headers=headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        [("content-type", "text/plain")],
        [("content-type", "")],
        [("content-type", "application/json; charset=utf-16")],
        [("content-type", "application/jsonp")],
        [("content-type", "multipart/form-data; boundary=x")],
        [("content-type", b"application/json\xff")],
        [JSON, JSON],
        [("content-encoding", "gzip")],
        [("content-encoding", "identity, gzip")],
        [("content-encoding", "")],
    ],
)
async def test_what_is_not_plain_json_is_refused_unread(site: Site, headers: Any) -> None:
    response = await site.ask("POST", SYNC, sync(), headers=headers)

    assert (response.status, response.json["code"], response.chunks) == (415, "unsupported_media_type", 0)


# --- bounds -------------------------------------------------------------------------------------------------------


async def test_a_body_that_announces_too_much_is_refused_unread() -> None:
    site = Site(limits=Limits(body_bytes_max=1000))

    response = await site.ask("POST", SYNC, b"{}", headers=[("content-length", "1001")])

    assert (response.status, response.json["code"], response.chunks) == (413, "body_too_large", 0)


@pytest.mark.parametrize(
    "length", ["", "-1", "+5", "0x10", "1_0", " 5", "5, 5", "1e3", "9" * 19, b"\xb2", "٣".encode()]
)
async def test_a_content_length_that_is_no_number_is_refused_unread(site: Site, length: Any) -> None:
    response = await site.ask("POST", SYNC, b"{}", headers=[("content-length", length)])

    assert (response.status, response.chunks) == (400, 0)


async def test_a_body_is_counted_whatever_it_announced() -> None:
    site = Site(limits=Limits(body_bytes_max=1000))

    async def endless() -> AsyncIterator[Any]:
        while True:
            yield {"type": "http.request", "body": b" " * 100, "more_body": True}

    response = await site.ask("POST", SYNC, pieces=endless(), headers=[("content-length", "2")])

    assert (response.status, response.json["code"], response.chunks) == (413, "body_too_large", 11)


async def test_a_body_of_exactly_the_limit_is_read() -> None:
    message = json.dumps(sync()).encode()
    site = Site(limits=Limits(body_bytes_max=len(message)))

    exact = await site.ask("POST", SYNC, message)
    more = await site.ask("POST", SYNC, message + b" ")

    assert (exact.status, more.status) == (200, 413)


async def test_all_bodies_together_have_a_limit_and_give_their_memory_back() -> None:
    site = Site(bounds=ServerLimits(buffered_bytes_max=1000))
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": b" " * 700, "more_body": True}
        started.set()
        await go_on.wait()
        yield {"type": "http.disconnect"}

    first = asyncio.ensure_future(request(site.app, "POST", SYNC, token=site.token, pieces=slow()))
    await started.wait()
    refused = await site.ask("POST", SYNC, b" " * 400)
    go_on.set()
    assert await first is None
    served = await site.ask("POST", SYNC, sync())

    assert (refused.status, served.status) == (503, 200)


async def test_a_body_that_does_not_come_in_time_is_given_up() -> None:
    site = Site(bounds=ServerLimits(body_seconds=0.001))

    async def never() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": b"{", "more_body": True}
        await asyncio.Event().wait()

    response = await site.ask("POST", SYNC, pieces=never())

    assert (response.status, response.json["code"], response.headers["connection"]) == (408, "timeout", "close")


async def test_a_client_that_hangs_up_is_not_answered(site: Site) -> None:
    async def cut() -> AsyncIterator[Any]:
        yield {"type": "http.request", "body": b"{", "more_body": True}
        yield {"type": "http.disconnect"}

    assert await request(site.app, "POST", SYNC, token=site.token, pieces=cut()) is None
    assert (await site.push())["changes"] == []


class Slow(ProtocolFallback):
    """Answers when it is told to."""

    def __init__(self, store: Any = None) -> None:
        super().__init__(store or MemoryStore(), clock=lambda: NOW)
        self.go_on = asyncio.Event()
        self.inside = 0
        self.most = 0
        self.entered = asyncio.Event()

    async def handle(
        self, body: bytes, *, context: Context, path: str = "", header: str | None = None, **_: Any
    ) -> Reply:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.entered.set()
        try:
            await self.go_on.wait()
        finally:
            self.inside -= 1
        return Reply(status=200, body=b"{}", served=V2)


async def turns(reached: Callable[[], bool]) -> None:
    """Let the event loop turn until something is so."""
    while not reached():  # noqa: ASYNC110 - what is looked at has no event
        await asyncio.sleep(0)


async def test_a_handler_that_takes_too_long_is_answered_for() -> None:
    router = Slow()
    site = Site(router=router, bounds=ServerLimits(handler_seconds=0.001, requests_max=1))

    response = await site.ask("POST", SYNC, sync())
    router.go_on.set()
    after = await site.ask("POST", SYNC, sync())

    assert (response.status, response.json["code"]) == (503, "unavailable")
    assert (after.status, router.inside) == (200, 0)


async def test_at_most_so_many_are_served_at_once_and_the_others_wait_their_turn() -> None:
    router = Slow()
    site = Site(router=router, bounds=ServerLimits(requests_max=2, waiting_max=3, waiting_seconds=60))

    calls = [asyncio.ensure_future(site.ask("POST", SYNC, sync())) for _ in range(7)]
    done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 2:
        more, _ = await asyncio.wait(set(calls) - done, return_when=asyncio.FIRST_COMPLETED)
        done |= more
    refused = [(await call).status for call in done]
    router.go_on.set()
    statuses = sorted([(await call).status for call in calls])

    assert refused == [503, 503]
    assert statuses == [200] * 5 + [503] * 2
    assert router.most == 2


async def test_who_waits_too_long_is_sent_away_and_its_place_is_free_again() -> None:
    router = Slow()
    site = Site(router=router, bounds=ServerLimits(requests_max=1, waiting_max=1, waiting_seconds=0.001))

    first = asyncio.ensure_future(site.ask("POST", SYNC, sync()))
    await router.entered.wait()
    second = await site.ask("POST", SYNC, sync())
    assert not site.app._door._waiting
    third = await site.ask("POST", SYNC, sync())
    router.go_on.set()

    assert (second.status, third.status) == (503, 503)
    assert (await first).status == 200
    assert (await site.ask("POST", SYNC, sync())).status == 200
    assert (await site.ask("POST", SYNC, sync())).status == 200


async def test_a_request_that_is_cancelled_while_it_waits_takes_no_place() -> None:
    router = Slow()
    site = Site(router=router, bounds=ServerLimits(requests_max=1, waiting_max=2, waiting_seconds=60))
    first = asyncio.ensure_future(site.ask("POST", SYNC, sync()))
    await router.entered.wait()
    waiting = [asyncio.ensure_future(site.ask("POST", SYNC, sync())) for _ in range(2)]
    await turns(lambda: len(site.app._door._waiting) == 2)

    waiting[0].cancel()
    await asyncio.wait([waiting[0]])
    router.go_on.set()

    assert (await first).status == 200
    assert (await waiting[1]).status == 200
    assert site.app._door._inside == 0


async def waiting_at(door: Door, callers: int) -> list[asyncio.Task[None]]:
    await door.enter()
    tasks = [asyncio.ensure_future(door.enter()) for _ in range(callers)]
    await turns(lambda: len(door._waiting) == callers)
    return tasks


async def test_a_turn_that_is_given_up_as_it_comes_goes_to_the_next() -> None:
    door = Door(ServerLimits(requests_max=1, waiting_seconds=60))
    first, second = await waiting_at(door, 2)

    door.leave()
    first.cancel()
    await asyncio.wait([first, second])

    assert first.cancelled()
    assert second.exception() is None
    door.leave()
    assert door._inside == 0


async def test_who_has_just_given_up_gets_no_turn() -> None:
    door = Door(ServerLimits(requests_max=1, waiting_seconds=60))
    first, second = await waiting_at(door, 2)

    first.cancel()
    door.leave()
    await asyncio.wait([first, second])

    assert first.cancelled()
    assert second.exception() is None
    door.leave()
    assert door._inside == 0


# --- what goes wrong inside ---------------------------------------------------------------------------------------


async def test_a_defect_is_logged_and_answered_without_telling_what_it_was(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any, **__: Any) -> Reply:
        raise ZeroDivisionError("the secret inside")

    site.router.handle = broken  # type: ignore[method-assign]

    response = await site.ask("POST", SYNC, sync())

    assert (response.status, response.json["code"]) == (503, "unavailable")
    assert b"secret" not in response.body
    assert response.json["request_id"] == response.headers["inbetweenies-request-id"]
    assert response.json["request_id"] in caplog.text
    assert "ZeroDivisionError: the secret inside" in caplog.text


@pytest.mark.parametrize(
    ("method", "path"), [("POST", SYNC), ("GET", "/api/v1/sync/status"), ("GET", "/api/v1/graph/relationships")]
)
async def test_a_store_that_cannot_is_answered_503(site: Site, method: str, path: str) -> None:
    def busy(*_: Any, **__: Any) -> None:
        raise StoreBusy("another process holds the file")

    site.router.store.transaction = busy  # type: ignore[method-assign, assignment]

    response = await site.ask(method, path, sync() if method == "POST" else None)

    assert (response.status, response.json["code"]) == (503, "unavailable")
    assert b"process" not in response.body


async def test_notices_are_logged_with_the_request(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    response = await site.ask("POST", SYNC, b'{"canary": 1, "protocol_version": 7}')

    assert f"{response.headers['inbetweenies-request-id']} malformed_version" in caplog.text
    assert "canary" not in caplog.text


async def test_what_happened_to_a_log_is_logged_when_it_is_found(caplog: pytest.LogCaptureFixture) -> None:
    lost = (await Site().ask("POST", SYNC, sync(write(entity("lamp", "v1")), features=["witness"]))).json
    site = Site()
    asked = sync(features=["witness"], witness=lost["cursor"])
    found, again = [await site.ask("POST", SYNC, asked) for _ in range(2)]

    assert found.json["resync"] is again.json["resync"] is True
    told, by = [record.getMessage() for record in caplog.records], f"v2:{site.info.key_id}:tablet"
    assert [f"{found.headers['inbetweenies-request-id']} graph home: set back: it ended at 0, and {by} knew of 1;"] == [
        line.partition(" now epoch")[0] for line in told
    ]


async def test_no_version_served_is_no_defect(site: Site) -> None:
    site.router.disabled = frozenset(site.router.handlers)

    response = await request(site.app, "GET", "/health")
    discovery = await request(site.app, "GET", "/api/version")

    assert response is not None
    assert discovery is not None
    assert (response.status, response.headers["inbetweenies-supported-versions"]) == (200, "")
    assert discovery.status == 503


# --- stores that block --------------------------------------------------------------------------------------------


class Blocking(MemoryStore):
    """A memory store whose transactions wait for a thread, as a file's would."""

    blocking = True

    def __init__(self) -> None:
        super().__init__(lambda: "ab" * 8)
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def transaction(self, graph: str, *, write: bool) -> Any:
        self.reached.set()
        assert self.go_on.wait(30)
        return super().transaction(graph, write=write)


@asynccontextmanager
async def blocked(**bounds: Any) -> AsyncIterator[tuple[Site, Blocking]]:
    store = Blocking()
    site = Site(router=ProtocolFallback(store, clock=lambda: NOW), bounds=ServerLimits(**bounds))
    try:
        yield site, store
    finally:
        store.go_on.set()
        await site.app.close()


async def test_a_blocking_store_does_not_keep_others_from_being_served() -> None:
    async with blocked() as (site, store):
        push = asyncio.ensure_future(site.ask("POST", SYNC, sync(write(entity("e1", "v1")))))
        await asyncio.to_thread(store.reached.wait)
        health = await site.ask("GET", "/health")
        assert not push.done()
        store.go_on.set()

        assert health.status == 200
        assert (await push).json["applied"] == ["e1"]


async def test_a_thread_that_is_still_at_it_counts_until_it_is_done() -> None:
    async with blocked(handler_seconds=0.001, requests_max=1, waiting_max=1, waiting_seconds=0.001) as (site, store):
        late = await site.ask("POST", SYNC, sync(write(entity("e1", "v1"))))
        refused = await site.ask("POST", SYNC, sync())
        store.go_on.set()
        await turns(lambda: not site.app._door._inside)

        assert (late.status, late.json["got"]) == (503, "none; send it again")
        assert (refused.status, refused.json["expected"]) == (503, "fewer requests at once")
        # It had only been given up waiting for; sent again it is the same row.
        site.app.bounds = ServerLimits()
        again = await site.ask("POST", SYNC, sync(write(entity("e1", "v1"))))
        assert again.json["applied"] == ["e1"]
        history = await site.ask("GET", "/api/v1/graph/entities/e1/versions")
        assert history.json["count"] == 1


async def test_a_job_that_never_got_a_thread_does_not_run_later() -> None:
    async with blocked(handler_seconds=0.001, threads=1) as (site, store):
        for number in range(3):
            assert (await site.ask("POST", SYNC, sync(write(entity(f"e{number}", "v1"))))).status == 503
        store.go_on.set()
        await turns(lambda: not site.app._door._inside)
        site.app.bounds = ServerLimits()

        changes = (await site.push())["changes"]

        assert [change["entity"]["id"] for change in changes] == ["e0"]


def test_a_thread_may_outlive_the_loop_that_waited_for_it(caplog: pytest.LogCaptureFixture) -> None:
    store = Blocking()
    site = Site(router=ProtocolFallback(store, clock=lambda: NOW), bounds=ServerLimits(handler_seconds=0.001))

    response = asyncio.run(site.ask("POST", SYNC, sync()))
    store.go_on.set()
    asyncio.run(site.app.close())

    assert response.status == 503
    assert [record for record in caplog.records if not record.name.startswith("inbetweenies.asgi.")] == []


async def test_a_handler_of_ones_own_may_wait_beside_a_blocking_store(tmp_path: Path) -> None:
    class Own:
        async def process(self, message: dict[str, Any]) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"heard": message["device_id"]}

    router = ProtocolFallback(SqliteStore(tmp_path / "home.db"))
    router.handlers["inbetweenies-own"] = Own()
    mine = app(router=router, auth=False)

    own = await request(mine, "POST", SYNC, {**sync(), "protocol_version": "inbetweenies-own"})
    ours = await request(mine, "POST", SYNC, sync())
    await mine.close()
    await router.store.close()

    assert own is not None
    assert ours is not None
    assert (own.status, own.json) == (200, {"heard": "tablet"})
    assert ours.status == 200


async def test_a_store_that_waits_though_it_said_that_it_blocks_is_a_defect(caplog: pytest.LogCaptureFixture) -> None:
    class Waiting(MemoryStore):
        blocking = True

        @asynccontextmanager
        async def transaction(self, graph: str, *, write: bool) -> AsyncIterator[Any]:  # type: ignore[override]
            await asyncio.sleep(0)
            async with super().transaction(graph, write=write) as tx:
                yield tx

    site = Site(router=ProtocolFallback(Waiting(), clock=lambda: NOW))
    response = await site.ask("POST", SYNC, sync())
    await site.app.close()

    assert response.status == 503
    assert "LocalProtocolError: expected a store that blocks to block" in caplog.text


async def test_a_sqlite_store_is_driven_in_threads_of_its_own(tmp_path: Path) -> None:
    seen: set[str] = set()

    class Watched(SqliteStore):
        def transaction(self, graph: str, *, write: bool) -> Any:
            seen.add(threading.current_thread().name)
            return super().transaction(graph, write=write)

    store = Watched(tmp_path / "home.db")
    mine = app(store, auth=False)
    for number in range(5):
        pushed = await request(mine, "POST", SYNC, sync(write(entity(f"e{number}", "v1"))))
        assert pushed is not None
        assert pushed.json["applied"] == [f"e{number}"]
    await mine.close()
    await store.close()

    assert seen
    assert all(name.startswith("inbetweenies") for name in seen)


# --- what else is served ------------------------------------------------------------------------------------------


async def test_status_tells_the_stamp_of_the_newest_commit(site: Site) -> None:
    before = await site.ask("GET", "/api/v1/sync/status?device_id=tab%20let")
    pushed = await site.push(write(entity("e1", "v1")))
    after = await site.ask("GET", "/api/v1/sync/status")

    assert before.json == {
        "device_id": "tab let",
        "server_time": "1970-01-01T00:00:00.000000+00:00",
        "protocol_version": V2,
    }
    assert after.json == {"device_id": None, "server_time": pushed["server_time"], "protocol_version": V2}


async def test_conflicts_are_never_open(site: Site) -> None:
    told = await site.ask("GET", "/api/v1/sync/conflicts")
    resolve = await site.ask("POST", "/api/v1/sync/conflicts/any/thing/resolve", {})

    assert told.json == {"conflicts": []}
    assert (resolve.status, resolve.json["detail"]) == (404, "Not Found")


async def test_versions_tell_the_whole_history_with_losers_as_deployed_servers_do(site: Site) -> None:
    first = "2026-06-15T09:41:02.000000+00:00-000000-ann"
    winner = "2026-06-15T09:41:08.000000+00:00-000000-ann"
    loser = "2026-06-15T09:41:05.000000+00:00-000000-bob"
    await site.push(write(entity("e1", first, content={"on": False}), change_type="create"))
    await site.push(write(entity("e1", winner, content={"on": True}, parent_versions=[first])))
    lost = await site.push(write(entity("e1", loser, content={"on": 2}, user_id="bob", parent_versions=[])))
    assert lost["conflicts"]

    told = (await site.ask("GET", "/api/v1/graph/entities/e1/versions")).json

    assert (told["entity_id"], told["count"]) == ("e1", 3)
    assert [row["version"] for row in told["versions"]] == [first, winner, loser]
    assert [row["is_latest"] for row in told["versions"]] == [False, True, False]
    assert told["versions"][1] | {"seq": 0} == {
        "id": "e1",
        "version": winner,
        "entity_type": "device",
        "name": "e1",
        "content": {"on": True},
        "source_type": "manual",
        "user_id": "ann",
        "parent_versions": [first],
        "created_at": "2026-06-15T09:41:02.001000",
        "updated_at": "2026-06-15T09:41:02.001000",
        "checksum": None,
        "seq": 0,
        "is_latest": True,
    }


@pytest.mark.parametrize("id_", ["a/b", "a/versions", "/versions", "ä ö", "%2F", "..", "a?b#c", "versions"])
async def test_ids_of_any_characters_have_a_history(site: Site, id_: str) -> None:
    await site.push(write(entity(id_, "v1")))

    async with httpx.AsyncClient(transport=httpx.ASGITransport(site.app), base_url="http://test") as client:
        quoted = httpx.QueryParams({"x": id_})["x"]
        path = "".join(f"%{byte:02X}" for byte in quoted.encode())
        told = await client.get(
            f"/api/v1/graph/entities/{path}/versions", headers={"Authorization": f"Bearer {site.token}"}
        )

    assert [row["id"] for row in told.json()["versions"]] == [id_]


@pytest.mark.parametrize("path", ["/api/v1/graph/entities/e2/versions", "/api/v1/graph/entities//versions"])
async def test_an_unknown_id_has_no_history(site: Site, path: str) -> None:
    assert (await site.ask("GET", path)).status == 404


async def test_relationships_tell_the_edges_that_are_there_now(site: Site) -> None:
    lamp, room, home = entity("lamp", "v1"), entity("room", "v1"), entity("home", "v1")
    await site.push(
        write(room),
        write(home),
        write(
            lamp,
            edge("e1", lamp, room, properties={"note": "x"}),
            edge("e2", lamp, home),
            edge("e3", lamp, room, properties={"deleted": True}),
        ),
    )
    await site.push(write(entity("home", "v2", parent_versions=["v1"]), change_type="delete"))

    told = (await site.ask("GET", "/api/v1/graph/relationships")).json

    assert told["count"] == 1
    assert told["relationships"][0] | {"version": "", "created_at": "", "updated_at": ""} == {
        "id": "e1",
        "from_entity_id": "lamp",
        "from_entity_version": "v1",
        "to_entity_id": "room",
        "to_entity_version": "v1",
        "relationship_type": "located_in",
        "properties": {"note": "x"},
        "user_id": "ann",
        "version": "",
        "created_at": "",
        "updated_at": "",
    }
    assert told["relationships"][0]["created_at"].startswith("2026-06-15T09:41:02.0000")
    assert len(told["relationships"][0]["updated_at"]) == 26


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("40-graph-entity-versions-rest", "/api/v1/graph/entities/e/versions"),
        ("51-graph-relationships-rest", "/api/v1/graph/relationships"),
    ],
)
async def test_graph_answers_have_every_key_that_was_recorded(
    site: Site, shared_data: Path, name: str, path: str
) -> None:
    recorded = json.loads((shared_data / f"recorded/v2/{name}.json").read_text())["response"]["body"]
    one, other = entity("e", "v1"), entity("f", "v1")
    await site.push(write(other), write(one, edge("r", one, other)))

    told = (await site.ask("GET", path)).json

    key = "versions" if "versions" in recorded else "relationships"
    assert set(recorded) <= set(told)
    for name_, value in recorded[key][0].items():
        assert type(told[key][0][name_]) is type(value), name_


async def test_me_tells_who_the_token_is(site: Site) -> None:
    token, _ = site.tokens.create("cabin", "bob", "phone", NOW + 5_000_000, role="admin")

    assert (await site.ask("GET", "/api/v1/auth/me", token=token)).json == {
        "user_id": "bob",
        "role": "admin",
        "permissions": ["read", "write", "delete", "configure"],
        "expires_at": NOW // 1_000_000 + 5,
        "graph": "cabin",
        "device_id": "phone",
    }


@pytest.mark.parametrize(("method", "path"), [*AUTHENTICATED, *(("GET", path) for path in OPEN)])
async def test_other_methods_are_refused_with_what_is_allowed(site: Site, method: str, path: str) -> None:
    for other in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"):
        if other == method:
            continue
        response = await site.ask(other, path, token=None)

        assert (response.status, response.json["detail"]) == (405, "Method Not Allowed")
        assert response.headers["allow"].split(", ")[0] == method
        assert response.chunks == 0


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "//",
        "/api/v1/sync//",
        "/api/v1/sync/request/",
        "/API/v1/sync/",
        "/health/",
        "/api/v1/auth/admin/login",
    ],
)
async def test_other_paths_are_not_found(site: Site, path: str) -> None:
    response = await site.ask("GET", path)

    assert (response.status, response.json["code"], response.json["detail"]) == (404, "not_found", "Not Found")


# --- logging in ---------------------------------------------------------------------------------------------------

LOGIN = "/api/v1/auth/admin/login"


async def test_a_password_is_answered_with_a_token_as_deployed_clients_expect_it() -> None:
    site = Site(admin_password="sésame", admin_graph="mine")

    told = (await site.ask("POST", LOGIN, {"password": "sésame"}, token=None)).json
    me = (await site.ask("GET", "/api/v1/auth/me", token=told["access_token"])).json

    assert {**told, "access_token": ""} == {
        "access_token": "",
        "token_type": "bearer",
        "expires_in": 604_800,
        "role": "admin",
    }
    assert (me["user_id"], me["role"], me["graph"]) == ("admin", "admin", "mine")
    assert me["expires_at"] == NOW // 1_000_000 + 604_800
    site.now += 604_800_000_000
    assert (await site.ask("GET", "/api/v1/auth/me", token=told["access_token"])).status == 401


@pytest.mark.parametrize("password", ["", "Sésame", "sésame ", "\ud800", "x" * 4000])
async def test_a_wrong_password_is_answered_as_deployed_servers_do(password: str) -> None:
    site = Site(admin_password="sésame")

    response = await site.ask("POST", LOGIN, {"password": password}, token=None)

    assert response.status in {400, 401, 413}
    if response.status == 401:
        assert response.json["detail"] == "Invalid password"
    assert not [info for info in site.tokens.list() if info.user == "admin"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b"[]", 400),
        (b'{"password": 1}', 400),
        (b"\xff", 400),
        (b"[" * 5000, 413),
        (b"[" * 4000, 400),
    ],
)
async def test_a_login_that_is_none_is_refused(body: bytes, status: int) -> None:
    assert (await Site(admin_password="x").ask("POST", LOGIN, body, token=None)).status == status


@pytest.mark.parametrize("password", [None, ""])
async def test_without_a_password_there_is_no_login(password: str | None) -> None:
    site = Site(admin_password=password)

    assert (await site.ask("POST", LOGIN, {"password": ""}, token=None)).status == 404


async def test_ten_wrong_passwords_a_minute_make_a_source_wait_and_nobody_else() -> None:
    site = Site(admin_password="right")
    here, there = {"client": ("2001:db8::1", 1)}, {"client": ("2001:db8:0:1::1", 1)}
    neighbour = {"client": ("2001:db8::ffff", 2)}

    for _ in range(10):
        assert (await site.ask("POST", LOGIN, {"password": "wrong"}, token=None, **here)).status == 401
        site.seconds += 1
    refused = await site.ask("POST", LOGIN, {"password": "right"}, token=None, **here)

    assert (refused.status, refused.json["code"]) == (429, "too_many_requests")
    assert refused.headers["retry-after"] == "50"
    assert refused.chunks == 0
    assert (await site.ask("POST", LOGIN, {"password": "right"}, token=None, **neighbour)).status == 429
    assert (await site.ask("POST", LOGIN, {"password": "right"}, token=None, **there)).status == 200
    assert (await site.ask("POST", LOGIN, {"password": "right"}, token=None, client=None)).status == 200
    site.seconds += 50
    assert (await site.ask("POST", LOGIN, {"password": "right"}, token=None, **here)).status == 200


async def test_wrong_passwords_sent_side_by_side_count_as_well() -> None:
    site = Site(admin_password="right")
    go_on = asyncio.Event()

    async def held() -> AsyncIterator[Any]:
        await go_on.wait()
        yield {"type": "http.request", "body": b'{"password": "wrong"}'}

    calls = [asyncio.ensure_future(site.ask("POST", LOGIN, token=None, pieces=held())) for _ in range(50)]
    await asyncio.sleep(0)
    go_on.set()
    statuses = [(await call).status for call in calls]

    assert (statuses.count(401), statuses.count(429)) == (10, 40)


# --- mounted ------------------------------------------------------------------------------------------------------


def fastapi_mount(prefix: str, inner: App) -> Any:
    outer = FastAPI()

    @outer.get("/own")
    async def own() -> dict[str, str]:
        return {"own": "route"}

    outer.mount(prefix, inner)
    return outer


def starlette_mount(prefix: str, inner: App) -> Any:
    async def own(_: Any) -> PlainTextResponse:
        return PlainTextResponse("own route")

    return Starlette(routes=[Route("/own", own), Mount(prefix, inner)])


def nested_mount(prefix: str, inner: App) -> Any:
    return fastapi_mount("/outer", starlette_mount(prefix, inner))


@pytest.mark.parametrize(
    ("mount", "prefix", "base"),
    [
        (fastapi_mount, "/", ""),
        (fastapi_mount, "/home", "/home"),
        (starlette_mount, "/", ""),
        (starlette_mount, "/home", "/home"),
        (starlette_mount, "/api/v1", "/api/v1"),
        (nested_mount, "/home", "/outer/home"),
    ],
)
async def test_it_can_be_mounted_under_any_prefix_beside_other_routes(mount: Any, prefix: str, base: str) -> None:
    site = Site(admin_password="x")
    outer = mount(prefix, site.app)
    bearer = {"Authorization": f"Bearer {site.token}"}

    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(outer), base_url="http://test", follow_redirects=False
    ) as client:
        own = await client.get(base.removesuffix("/home") + "/own" if base.startswith("/outer") else "/own")
        health = await client.get(base + "/health")
        root = await client.get(base + "/")
        pushed = await client.post(base + SYNC, json=sync(write(entity("a/b", "v1"))), headers=bearer)
        bare = await client.post(base + "/api/v1/sync", json=sync(), headers=bearer)
        history = await client.get(base + "/api/v1/graph/entities/a%2Fb/versions", headers=bearer)
        login = await client.post(base + LOGIN, json={"password": "x"})
        nowhere = await client.get(base + "/home/health")

    assert "route" in own.text or base.startswith("/outer")
    assert (health.status_code, health.json()) == (200, {"status": "healthy"})
    assert root.json()["status"] == "ready"
    assert pushed.json()["applied"] == ["a/b"]
    assert (bare.status_code, len(bare.json()["changes"])) == (200, 1)
    assert history.json()["count"] == 1
    assert login.status_code == 200
    assert nowhere.status_code == 404


@pytest.mark.parametrize(
    ("root_path", "path"),
    [
        ("", "/health"),
        ("/p", "/p/health"),
        ("/p", "/health"),
        ("/p/", "/p/health"),
        ("/", "/health"),
        ("/heal", "/health"),
    ],
)
async def test_a_prefix_may_be_left_in_the_path_or_taken_out(site: Site, root_path: str, path: str) -> None:
    assert (await site.ask("GET", path, root_path=root_path)).status == 200


@pytest.mark.parametrize("path", ["", "/p", "/p/"])
async def test_the_prefix_alone_is_the_root(site: Site, path: str) -> None:
    assert (await site.ask("GET", path, root_path="/p")).json["status"] == "ready"


async def test_lifespan_is_answered_and_not_needed(site: Site) -> None:
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await site.app({"type": "lifespan"}, receive, send)

    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert (await site.ask("POST", SYNC, sync())).status == 200


async def test_other_scopes_are_unknown(site: Site) -> None:
    async def nothing(*_: Any) -> Any:
        raise AssertionError("nobody is asked or told anything")

    with pytest.raises(LocalProtocolError, match="got mqtt"):
        await site.app({"type": "mqtt"}, nothing, nothing)


def test_the_store_must_be_the_one_of_the_router() -> None:
    router = ProtocolFallback(MemoryStore())

    assert app(router=router).router is app(router.store, router=router).router
    with pytest.raises(LocalProtocolError, match="the store of the router"):
        app(MemoryStore(), router=router)


def test_without_arguments_there_is_a_server_that_nobody_can_enter_yet() -> None:
    mine = app()

    secret, _ = mine.tokens.create("default", "ann")

    assert mine.tokens.find(secret, mine.router.clock()) is not None


# --- anything at all ----------------------------------------------------------------------------------------------

junk = st.binary(max_size=60)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
names = st.sampled_from(
    [
        b"authorization",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"inbetweenies-version",
        b"if-none-match",
    ]
)
values = junk | st.sampled_from(
    [b"Bearer x", b"application/json", b"2", b"99999999999", b"identity", b"inbetweenies-v7"]
)
paths = st.sampled_from([path for _, path in AUTHENTICATED] + [*OPEN, LOGIN]) | st.text(max_size=20).map("/".__add__)
fields = st.sampled_from(
    [
        "protocol_version",
        "supported_versions",
        "device_id",
        "user_id",
        "sync_type",
        "changes",
        "vector_clock",
        "cursor",
        "filters",
        "features",
        "page_rows",
        "type",
        "client_id",
        "last_sync",
    ]
)
messages = st.builds(
    lambda extra: json.dumps(sync() | extra).encode(), st.dictionaries(fields, json_values, max_size=3)
)


@given(
    method=st.sampled_from(["GET", "POST", "HEAD", "PUT"]) | st.text(max_size=5),
    path=paths,
    query=st.text(st.characters(codec="latin-1"), max_size=20),
    headers=st.lists(st.tuples(names | junk, values), max_size=4),
    body=messages | junk | json_values.map(lambda value: json.dumps(value).encode()),
    inside=st.booleans(),
    root_path=st.sampled_from(["", "/", "/api", "x"]),
)
async def test_whatever_is_sent_the_answer_is_json_and_no_failure(
    method: str, path: str, query: str, headers: Any, body: bytes, inside: bool, root_path: str
) -> None:
    site = Site(admin_password="x")

    response = await request(
        site.app,
        method,
        f"{path}?{query}",
        body,
        headers=[*headers, *([JSON] if inside else [])],
        token=site.token if inside else None,
        root_path=root_path,
    )

    assert response is not None
    assert response.status < 500
    if method != "HEAD":
        checked(response)
