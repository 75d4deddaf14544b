"""HTTP around the exchange: `app()` is an ASGI callable, to be served alone (`run`) or mounted under any prefix.

It needs no framework and no lifespan. Read `App.__call__`: route, who speaks, how much, then one call into
`router.handle`, which is where the protocol is. Nothing here looks into a sync message. Whatever is sent, the answer
is JSON and its status is not a 5xx other than 503 with ``Retry-After`` (PROTOCOL 2.6, 2.7).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import signal
import socket
import sys
import time
from asyncio import Future, TimerHandle
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from concurrent.futures import Future as Job
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from .auth import Failures, MemoryTokens, Principal, Tokens, bearer, same_password, source_of
from .errors import LocalProtocolError, RemoteProtocolError, StoreError
from .limits import Limits, checked_decode, gate
from .model import SEQ_MAX, Held, Reads, Row, Span, format_time
from .negotiation import NAME, problem
from .router import ProtocolFallback
from .store import Store

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
T = TypeVar("T")

logger = logging.getLogger(__name__)

SYNC: Final = "/api/v1/sync/"
ENTITIES: Final = "/api/v1/graph/entities/"
LOGIN_BYTES_MAX: Final = 4096
LOGIN_SECONDS: Final = 7 * 24 * 3600  # as deployed servers; deployed clients log in again at every start
RETRY_SECONDS: Final = 1

_JSON: Final = b"application/json"
_PROBLEM: Final = b"application/problem+json"
_JSON_TYPE: Final = re.compile(rb'application/json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_NO_STORE: Final = (b"cache-control", b"no-store")
_RETRY: Final = (b"retry-after", b"%d" % RETRY_SECONDS)
_VARY: Final = (b"vary", b"Inbetweenies-Version, Inbetweenies-Accept-Versions")
_PERMISSIONS: Final = {"member": ("read", "write", "delete"), "admin": ("read", "write", "delete", "configure")}
_encode = msgspec.json.Encoder().encode


class ServerLimits(Struct, frozen=True, kw_only=True):
    """PROTOCOL 2.5: what one process gives to its peers at most. All are settings."""

    body_seconds: float = 20  # for a whole body: 16 MiB need 7 Mbit/s, a hundred edits nothing
    handler_seconds: float = 30  # deployed clients give up after 5 to 30
    requests_max: int = 64  # served at once; each may hold a body and its answer
    waiting_max: int = 128  # waiting to be served; more is a storm, which waiting makes worse
    waiting_seconds: float = 2
    buffered_bytes_max: int = 256 * 2**20  # of all bodies together: 64 of the largest ones would be a gigabyte
    threads: int = 16  # for stores that block
    login_failures_max: int = 10  # per source and minute

    # What only `run` can do, because it has the sockets.
    header_seconds: float = 10  # from the connection, or the answer before, to the end of the headers
    header_bytes_max: int = 32 * 1024  # the parser has no bound of its own
    headers_max: int = 100
    stall_seconds: float = 10  # a peer that reads nothing of its answer for that long is cut off
    keep_alive_seconds: int = 5
    shutdown_seconds: int = 10


class Answer(Struct, frozen=True):
    """One HTTP answer, but for the headers that all of them have."""

    status: int
    body: bytes
    headers: Headers = (_NO_STORE,)
    served: str | None = None


class Refusal(Exception):
    """Ends a request with `answer`."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class Gone(Exception):
    """The client hung up; there is nobody to answer."""


class Call:
    """One request: what is known of it before its body is read, and how many bytes of it are held."""

    __slots__ = ("charged", "headers", "id", "method", "path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive
        self.method: str = scope["method"]
        self.path = _route_path(scope)
        self.id = secrets.token_hex(8)
        self.charged = 0
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            key = name.lower()
            # RFC 9110 5.2. What must stand only once is refused for the comma.
            self.headers[key] = self.headers[key] + b", " + value if key in self.headers else value


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


# --- the application ----------------------------------------------------------------------------------------------


def app(
    store: Store | None = None,
    *,
    router: ProtocolFallback | None = None,
    tokens: Tokens | None = None,
    admin_password: str | None = None,
    admin_graph: str = "default",
    auth: bool = True,
    limits: Limits | None = None,
    bounds: ServerLimits | None = None,
    blocking: bool | None = None,
    monotonic: Callable[[], float] = time.monotonic,
) -> App:
    """An ASGI application that serves every installed wire version from `store`.

    ``app(SqliteStore("home.db"), tokens=SqliteTokens("home.db"))`` is a server; in an application of your own,
    ``yours.mount("/home", app(...))`` puts it beside your routes. Lifespan events are not needed.

    Args:
        store: where graphs are kept; `router.store` or a memory store if not given.
        router: finds and serves wire versions; by default one over `store` with `limits`.
        tokens: who may speak; by default tokens in memory, at `App.tokens`.
        admin_password: switches ``POST /api/v1/auth/admin/login`` on, for deployed clients.
        admin_graph: the graph of whoever logs in there, and of everybody without `auth`.
        auth: False serves `admin_graph` to anybody who can connect; only for one's own machine.
        bounds: time, memory and concurrency.
        blocking: whether the store's coroutines block instead of waiting, so that they belong in a thread; by default
            what ``store.blocking`` says, else False.
        monotonic: seconds, for the pace of failed logins.

    Raises:
        LocalProtocolError: `store` is not the one of `router`.
    """
    if router is None:
        router = ProtocolFallback(store, limits=limits)
    elif store is not None and store is not router.store:
        raise LocalProtocolError("expected the store of the router, or none; got another store")
    return App(
        router,
        tokens=MemoryTokens(clock=router.clock) if tokens is None else tokens,
        admin_password=admin_password or None,
        admin_graph=admin_graph,
        auth=auth,
        bounds=bounds or ServerLimits(),
        blocking=getattr(router.store, "blocking", False) if blocking is None else blocking,
        monotonic=monotonic,
    )


class App:
    """What `app` makes. `tokens` and `router` may be used while it serves."""

    def __init__(
        self,
        router: ProtocolFallback,
        *,
        tokens: Tokens,
        admin_password: str | None,
        admin_graph: str,
        auth: bool,
        bounds: ServerLimits,
        blocking: bool,
        monotonic: Callable[[], float],
    ) -> None:
        self.router = router
        self.tokens = tokens
        self.bounds = bounds
        self.auth = auth
        self._store = router.store
        self._password = admin_password
        self._graph = admin_graph
        self._blocking = blocking
        self._monotonic = monotonic
        self._failures = Failures(bounds.login_failures_max)
        self._door = _Door(bounds)
        self._buffered = 0
        self._threads: ThreadPoolExecutor | None = None
        self._routes: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._root},
            "/health": {"GET": self._health},
            "/api/version": {"GET": self._discovery},
            "/versions": {"GET": self._discovery},
            "/api/v1/sync": {"POST": self._sync},
            "/api/v1/sync/": {"POST": self._sync},
            "/api/v1/sync/request": {"POST": self._sync},
            "/api/v1/sync/push": {"POST": self._sync},
            "/api/v1/sync/ack": {"POST": self._sync},
            "/api/v1/sync/status": {"GET": self._status},
            "/api/v1/sync/conflicts": {"GET": self._conflicts},
            "/api/v1/graph/relationships": {"GET": self._relationships},
            "/api/v1/auth/me": {"GET": self._me},
        }
        if admin_password is not None:
            self._routes["/api/v1/auth/admin/login"] = {"POST": self._login}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """PROTOCOL 2: one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            raise LocalProtocolError(f"expected an http, websocket or lifespan scope; got {scope['type']}")
        call = Call(scope, receive)
        try:
            answer = await self._answer(call)
        except Gone:
            return
        finally:
            self._buffered -= call.charged
        await self._send(call, answer, send)

    async def close(self) -> None:
        """Wait for what is being served and let go of the threads. Store and tokens belong to who made them."""
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.to_thread(threads.shutdown)

    async def _answer(self, call: Call) -> Answer:
        """PROTOCOL 2.6: what the request is answered. Raises `Gone` only."""
        try:
            return await self._handler(call)(call)
        except Refusal as refusal:
            return refusal.answer
        except RemoteProtocolError as error:
            return _problem(error)
        except StoreError as error:
            logger.warning("%s %s: %s", call.id, type(error).__name__, error)
            return _problem(_unavailable("a store that can take this", "one that cannot now"), request=call.id)
        except Gone:
            raise
        except Exception:
            # A defect of ours, or of a handler or store that was plugged in. What it was stays in the log.
            logger.exception("%s failed", call.id)
            return _problem(_unavailable("to serve this", "a failure, which is logged here"), request=call.id)

    def _handler(self, call: Call) -> Handler:
        methods = self._routes.get(call.path)
        if methods is None:
            if call.path.startswith(ENTITIES) and call.path.endswith("/versions"):
                methods = {"GET": self._versions}
            elif call.path.startswith("/api/v1/sync/conflicts/") and call.path.endswith("/resolve"):
                methods = {"POST": self._resolve}
            else:
                raise _refused("not_found", "a path that is served here", "another one", detail="Not Found")
        handler = methods.get("GET" if call.method == "HEAD" else call.method)
        if handler is None:
            allow = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise _refused(
                "method_not_allowed",
                allow,
                "another method",
                detail="Method Not Allowed",
                headers=((b"allow", allow.encode()), _NO_STORE),
            )
        return handler

    async def _send(self, call: Call, answer: Answer, send: Send) -> None:
        names = ", ".join(name for name in self._accepted() if NAME.fullmatch(name))
        headers = [
            (b"content-type", _PROBLEM if answer.status >= 400 else _JSON),
            *([] if answer.status == 304 else [(b"content-length", b"%d" % len(answer.body))]),
            _VARY,
            (b"inbetweenies-supported-versions", names.encode()),
            (b"inbetweenies-request-id", call.id.encode()),
            *answer.headers,
        ]
        if answer.served is not None and NAME.fullmatch(answer.served):
            headers.append((b"inbetweenies-version", answer.served.encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else answer.body})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    # --- who speaks, and how much

    def _principal(self, call: Call) -> Principal:
        """PROTOCOL 7.2, 7.3: who the token speaks for. Asked before anything of the body is read."""
        if not self.auth:
            return Principal(graph=self._graph, user="local", role="admin")
        secret = bearer(call.headers.get(b"authorization", b""))
        if secret is None:
            raise Refusal(_NO_TOKEN)
        principal = self.tokens.find(secret, self.router.clock())
        if principal is None:
            raise Refusal(_BAD_TOKEN)
        return principal

    async def _body(self, call: Call, most: int) -> bytes:
        """PROTOCOL 2.4, 2.5: a JSON body of at most `most` bytes, counted while it arrives."""
        kind = call.headers.get(b"content-type")
        if kind is not None and not _JSON_TYPE.fullmatch(kind.strip()):
            raise _refused("unsupported_media_type", "application/json in UTF-8", "another content type")
        if call.headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise _refused("unsupported_media_type", "no content encoding", "one")
        length = call.headers.get(b"content-length")
        if length is not None:
            if not _LENGTH.fullmatch(length):
                raise _refused("malformed_body", "a Content-Length of digits", "something else")
            if int(length) > most:
                raise _refused("body_too_large", f"at most {most} bytes", f"{int(length)} announced")
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                more = True
                while more:
                    message = await call.receive()
                    if message["type"] != "http.request":
                        raise Gone
                    piece = message.get("body", b"")
                    more = message.get("more_body", False)
                    size += len(piece)
                    call.charged += len(piece)
                    self._buffered += len(piece)
                    if size > most:
                        raise _refused("body_too_large", f"at most {most} bytes", "more", headers=_CLOSE)
                    if self._buffered > self.bounds.buffered_bytes_max:
                        raise _busy("memory for this body", "none left", _CLOSE)
                    pieces.append(piece)
        except TimeoutError:
            expected = f"the whole body within {self.bounds.body_seconds:g} s"
            raise _refused("timeout", expected, f"{size} bytes by then", headers=_CLOSE) from None
        return b"".join(pieces)

    async def _work(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run what may use the store: with others at most `requests_max` at once, and not for ever."""
        await self._door.enter()
        job: Job[T] | None = None
        try:
            async with asyncio.timeout(self.bounds.handler_seconds):
                if not self._blocking:
                    return await make()
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(self.bounds.threads, "inbetweenies")
                job = self._threads.submit(self._drive, make)
                return await asyncio.wrap_future(job)
        except TimeoutError:
            # It may still commit; what is sent again is recognised (law 5).
            expected = f"an answer within {self.bounds.handler_seconds:g} s"
            raise _busy(expected, "none; send it again") from None
        finally:
            if job is None or job.done() or job.cancel():
                self._door.leave()
            else:
                # The thread is still at it, and counts until it is done.
                leave = partial(asyncio.get_running_loop().call_soon_threadsafe, self._door.leave)
                job.add_done_callback(partial(_quietly, leave))

    def _drive(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine to its end in this thread, without an event loop if nothing in it can wait."""
        if any(not hasattr(handler, "wire") for handler in self.router.handlers.values()):
            return asyncio.run(make())
        work = make()
        try:
            work.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            work.close()
        raise LocalProtocolError("expected a store that blocks to block; got one that waits for an event loop")

    # --- sync

    async def _sync(self, call: Call) -> Answer:
        """PROTOCOL 2.1: one message of any wire version."""
        principal = self._principal(call)
        body = await self._body(call, self.router.limits.body_bytes_max)
        path = SYNC if call.path == "/api/v1/sync" else call.path
        header = call.headers.get(b"inbetweenies-version")
        reply = await self._work(
            lambda: self.router.handle(
                body,
                context=principal.context(self.router.clock()),
                path=path,
                header=None if header is None else header.decode("latin-1"),
            )
        )
        if reply.notice is not None:
            logger.log(logging.WARNING if reply.status >= 500 else logging.INFO, "%s %s", call.id, reply.notice)
        headers = (_NO_STORE, _RETRY) if reply.status in (429, 503) else (_NO_STORE,)
        return Answer(reply.status, reply.body, headers, reply.served)

    async def _status(self, call: Call) -> Answer:
        """``server_time`` is the stamp of the newest commit, so no commit to come is at or before it (PROTOCOL 4.3)."""
        principal = self._principal(call)
        device = parse_qs(call.scope.get("query_string", b"").decode("latin-1")).get("device_id", [None])[0]
        held = await self._work(lambda: self._held(principal, Reads()))
        newest = next(iter(self._accepted()), None)
        return _ok({"device_id": device, "server_time": format_time(held.head.stamp), "protocol_version": newest})

    async def _conflicts(self, call: Call) -> Answer:
        """Always empty, as on deployed servers: conflicts are settled when they are found, told to the device whose
        push met one (PROTOCOL 6.7), and their losers can be read under ``…/entities/{id}/versions``."""
        self._principal(call)
        return _ok({"conflicts": []})

    async def _resolve(self, call: Call) -> Answer:
        """Nothing waits for a person, so there is no conflict to resolve."""
        self._principal(call)
        raise _refused("not_found", "a conflict that is open", "none", detail="Not Found")

    # --- the graph, read

    async def _held(self, principal: Principal, reads: Reads) -> Held:
        async with self._store.transaction(principal.graph, write=False) as tx:
            return await tx.read(reads)

    async def _versions(self, call: Call) -> Answer:
        """PROTOCOL 4.1: every row version of an entity in commit order, losers too."""
        principal = self._principal(call)
        id_ = call.path[len(ENTITIES) : -len("/versions")]

        async def read() -> bytes | None:
            rows = (await self._held(principal, Reads(history=(id_,)))).history.get(id_, ())
            told = [_version_out(row) for row in sorted(rows, key=lambda row: row.seq)]
            return _encode({"entity_id": id_, "versions": told, "count": len(told)}) if told else None

        body = await self._work(read)
        if body is None:
            raise _refused("not_found", "the id of an entity", "another one", detail="Not Found")
        return Answer(200, body)

    async def _relationships(self, call: Call) -> Answer:
        """PROTOCOL 3.5: the edges that are there now; deleted ones and edges of deleted entities are not."""
        principal = self._principal(call)

        async def read() -> bytes:
            rows = (await self._held(principal, Reads(span=Span(after=0, upto=SEQ_MAX)))).span
            living = {row.id for row in rows if row.kind == "entity" and not row.deleted}
            edges = [row for row in rows if row.kind == "edge" and not row.deleted]
            told = [_edge_out(row) for row in edges if row.from_id in living and row.to_id in living]
            return _encode({"relationships": told, "count": len(told)})

        return Answer(200, await self._work(read))

    # --- discovery and health

    def _accepted(self) -> tuple[str, ...]:
        try:
            return self.router.registry.accepted
        except LocalProtocolError:
            return ()  # nothing is served just now; the routes say so

    async def _health(self, call: Call) -> Answer:
        return _ok({"status": "healthy"})

    async def _root(self, call: Call) -> Answer:
        return _ok({"name": "inbetweenies", "version": release(), "status": "ready"})

    async def _discovery(self, call: Call) -> Answer:
        """PROTOCOL 5.10: which wire versions are served, to anybody who asks."""
        registry = self.router.registry
        accepted = registry.accepted
        wires = [getattr(handler, "wire", None) for handler in self.router.handlers.values()]
        states = {name: "current" if name == accepted[0] else "supported" for name in accepted}
        states |= dict.fromkeys(sorted(registry.disabled), "disabled") | dict.fromkeys(
            sorted(registry.retired), "retired"
        )
        body = _encode(
            {
                "service": "inbetweenies",
                "server": {"name": "inbetweenies", "version": release()},
                "server_version": release(),
                "default_version": registry.missing,
                "preferred_version": accepted[0],
                "min_version": accepted[-1],
                "max_version": accepted[0],
                "supported_versions": accepted,
                "versions": [{"id": name, "status": state} for name, state in states.items()],
                "features": sorted({name for wire in wires for name in getattr(wire, "features", ())}),
                "limits": self.router.limits,
            }
        )
        tag = b'"%s"' % sha256(body).hexdigest()[:32].encode()
        headers = ((b"cache-control", b"max-age=60"), (b"etag", tag), (b"access-control-allow-origin", b"*"))
        offered = call.headers.get(b"if-none-match", b"")
        if offered == b"*" or tag in (each.strip().removeprefix(b"W/") for each in offered.split(b",")):
            return Answer(304, b"", headers)
        return Answer(200, body, headers)

    # --- identity, as deployed clients expect it

    async def _me(self, call: Call) -> Answer:
        principal = self._principal(call)
        return _ok(
            {
                "user_id": principal.user,
                "role": principal.role,
                "permissions": _PERMISSIONS[principal.role],
                "expires_at": None if principal.expires is None else principal.expires // 1_000_000,
                "graph": principal.graph,
                "device_id": principal.device,
            }
        )

    async def _login(self, call: Call) -> Answer:
        """PROTOCOL 7.4: a password for a token of seven days. Ten wrong ones a minute make a source wait."""
        source = source_of((call.scope.get("client") or ("",))[0])
        self._slow_down(source)
        body = await self._body(call, LOGIN_BYTES_MAX)
        gate(body, self.router.limits)
        login = checked_decode(_login, body)
        # Asked again: while this body arrived, others may have failed.
        self._slow_down(source)
        if not same_password(login.password, self._password or ""):
            self._failures.add(source, int(self._monotonic() * 1_000_000))
            raise _refused("unauthorized", "the password", "another one", detail="Invalid password", headers=_BEARER)
        expires = self.router.clock() + LOGIN_SECONDS * 1_000_000
        secret, _ = await asyncio.to_thread(self.tokens.create, self._graph, "admin", None, expires, role="admin")
        told = {"access_token": secret, "token_type": "bearer", "expires_in": LOGIN_SECONDS, "role": "admin"}
        return _ok(told)

    def _slow_down(self, source: str) -> None:
        wait = self._failures.wait_us(source, int(self._monotonic() * 1_000_000))
        if wait:
            seconds = -(-wait // 1_000_000)
            headers = ((b"retry-after", b"%d" % seconds), _NO_STORE)
            raise _refused("too_many_requests", "fewer wrong passwords", "too many", headers=headers)


# --- values -------------------------------------------------------------------------------------------------------


class Login(Struct):
    """The body of a login."""

    password: str


_login = msgspec.json.Decoder(Login)


def _ok(value: object) -> Answer:
    return Answer(200, _encode(value))


def _problem(
    error: RemoteProtocolError, *, detail: str | None = None, headers: Headers | None = None, request: str | None = None
) -> Answer:
    """PROTOCOL 2.6. `detail` is what deployed servers say, where deployed clients may look for it."""
    told = problem(error)
    if detail is not None:
        told["detail"] = detail
    if request is not None:
        told["request_id"] = request
    if headers is None:
        headers = (_NO_STORE, _RETRY) if error.status == 503 else (_NO_STORE,)
    return Answer(error.status, _encode(told), headers)


def _refused(
    code: str, expected: str, got: str, *, detail: str | None = None, headers: Headers | None = None
) -> Refusal:
    return Refusal(_problem(RemoteProtocolError(code=code, expected=expected, got=got), detail=detail, headers=headers))


def _unavailable(expected: str, got: str) -> RemoteProtocolError:
    return RemoteProtocolError(code="unavailable", expected=expected, got=f"{got}; try again")


def _busy(expected: str, got: str, headers: Headers = (_NO_STORE,)) -> Refusal:
    return Refusal(_problem(_unavailable(expected, got), headers=(*headers, _RETRY)))


_BEARER: Final = ((b"www-authenticate", b"Bearer"), _NO_STORE)
#: What is left of the body is not read, so the connection cannot go on.
_CLOSE: Final = ((b"connection", b"close"), _NO_STORE)
_NO_TOKEN: Final = _refused(
    "unauthorized", "a bearer token", "none", detail="Not authenticated", headers=_BEARER
).answer
_BAD_TOKEN: Final = _refused(
    "unauthorized", "a valid token", "another one", detail="Invalid or expired token", headers=_BEARER
).answer


def _version_out(row: Row) -> dict[str, Any]:
    """PROTOCOL 9.11: a row version as deployed servers tell it, times naive; what is ours is added."""
    entity = row.entity()
    at = format_time(row.stamp, naive=True)
    return {
        "id": entity.id,
        "version": entity.version,
        "entity_type": entity.entity_type,
        "name": entity.name,
        "content": entity.content,
        "source_type": entity.source_type,
        "user_id": entity.user_id,
        "parent_versions": entity.parent_versions,
        "created_at": at,
        "updated_at": at,
        "checksum": entity.checksum,
        "seq": row.seq,
        "is_latest": row.current,
    }


def _edge_out(row: Row) -> dict[str, Any]:
    """PROTOCOL 9.11: an edge as deployed servers tell it, times naive; its version is added."""
    edge = row.relationship()
    return {
        "id": edge.id,
        "from_entity_id": edge.from_entity_id,
        "from_entity_version": edge.from_entity_version,
        "to_entity_id": edge.to_entity_id,
        "to_entity_version": edge.to_entity_version,
        "relationship_type": edge.relationship_type,
        "properties": edge.properties,
        "user_id": edge.user_id,
        "created_at": format_time(min(row.born, row.stamp), naive=True),
        "updated_at": format_time(row.stamp, naive=True),
        "version": edge.version,
    }


@cache
def release() -> str:
    """The release of this distribution; ``0`` where it runs from a folder that was not installed."""
    try:
        return version("inbetweenies")
    except PackageNotFoundError:
        return "0"


def _route_path(scope: Scope) -> str:
    """The path below the prefix that this is mounted under; servers and frameworks leave the prefix in or take it out."""
    path: str = scope["path"]
    prefix = scope.get("root_path", "").rstrip("/")
    if prefix and (path == prefix or path.startswith(prefix + "/")):
        path = path[len(prefix) :]
    return path or "/"


def _quietly(call: Callable[[], object], _: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        call()


class _Door:
    """Lets `requests_max` in at once, and lets a bounded number wait a bounded time."""

    def __init__(self, bounds: ServerLimits) -> None:
        self._bounds = bounds
        self._inside = 0
        self._waiting: deque[Future[None]] = deque()

    async def enter(self) -> None:
        """Raises `Refusal`: too many are waiting, or nobody left in time."""
        if self._inside < self._bounds.requests_max:
            self._inside += 1
            return
        if len(self._waiting) >= self._bounds.waiting_max:
            raise _busy("fewer requests at once", "too many")
        turn: Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._bounds.waiting_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.leave()  # its turn came in the very moment in which it gave up
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise _busy("fewer requests at once", "too many") from None
            raise

    def leave(self) -> None:
        """Let the next one in."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._inside -= 1


# --- serving ------------------------------------------------------------------------------------------------------


def run(
    app: App,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    announce: Callable[[str], object] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is being served. Needs the extra ``server``: uvicorn, httptools.

    Args:
        port: 0 for any that is free.
        announce: called with ``listening on http://…`` once connections are accepted; by default it is printed.

    Raises:
        OSError: the address cannot be listened on.
        ImportError: the extra is not installed.
    """
    import uvicorn

    bounds = app.bounds
    config = uvicorn.Config(
        app,
        http=_bounded_protocol(bounds),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="error",  # below that, whoever sends garbage writes the log
        access_log=False,
        proxy_headers=False,  # else a peer names the address that its failed logins are counted under
        server_header=False,
        timeout_keep_alive=bounds.keep_alive_seconds,
        timeout_graceful_shutdown=bounds.shutdown_seconds,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=config.backlog) as listener:
        name = f"[{host}]" if family == socket.AF_INET6 else host
        line = f"listening on http://{name}:{listener.getsockname()[1]}"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                (announce or _print)(line)

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                # Not uvicorn's own, which raises the signal once more at the end: an orderly end is not a crash.
                before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
                try:
                    yield
                finally:
                    for number, handler in before.items():
                        signal.signal(number, handler)

        Server(config).run(sockets=[listener])


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _bounded_protocol(bounds: ServerLimits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with the bounds that it lacks: slow and large headers, peers that do not read.

    What an application sees begins after the headers, so none of this can be done there.
    """
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class BoundedProtocol(HttpToolsProtocol):
        _timer: TimerHandle | None = None  # until the headers of the next request are complete
        _stall: TimerHandle | None = None  # while the peer does not take what is written
        _unread = 0
        _in_head = False
        _head_bytes = 0
        _messages = 0
        _over = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._stop_stall()
            super().connection_lost(exc)

        # headers

        def data_received(self, data: bytes) -> None:
            if self._over:
                return
            messages = self._messages
            super().data_received(data)
            # A segment in which the message began may be mostly body of the one before; `on_header` counts exactly.
            if self._in_head and messages == self._messages:
                self._head_bytes += len(data)
            if self._in_head and self._head_bytes > bounds.header_bytes_max:
                self._refuse_headers()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._messages += 1
            self._in_head = True
            self._head_bytes = 0
            self._counted = 0

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            self._counted += len(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            super().on_header(name, value)
            self._counted += len(name) + len(value) + 4

        def on_headers_complete(self) -> None:
            if not self._in_head:
                return  # trailers
            self._in_head = False
            self._stop_timer()
            if self._counted > bounds.header_bytes_max or len(self.headers) > bounds.headers_max:
                self._refuse_headers()
            if not self._over:
                super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            if not self._over:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._over:
                super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete and not self.transport.is_closing():
                self._expect_headers()

        def _expect_headers(self) -> None:
            self._stop_timer()
            self._timer = self.loop.call_later(bounds.header_seconds, self.transport.close)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _refuse_headers(self) -> None:
            expected = f"headers of at most {bounds.header_bytes_max} bytes and {bounds.headers_max} fields"
            self._refuse(431, "headers_too_large", expected, "more")

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "malformed_request", "HTTP/1.1", "something else")

        def _refuse(self, status: int, code: str, expected: str, got: str) -> None:
            """Answer before there is a request that the application could see, and hang up."""
            self._over = True
            told = problem(RemoteProtocolError(code=code, expected=expected, got=got)) | {"status": status}
            body = _encode(told)
            head = (
                f"HTTP/1.1 {status} {told['title']}\r\ncontent-type: application/problem+json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            cycle = self.cycle
            if cycle is None or cycle.response_complete or not cycle.response_started:
                # Never into the middle of an answer, which the peer would take for a part of it.
                self.transport.write(head.encode() + body)
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()
            self.transport.close()

        # peers that do not read

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stop_stall()

        def _watch(self) -> None:
            self._unread = self.transport.get_write_buffer_size()
            self._stall = self.loop.call_later(bounds.stall_seconds, self._check)

        def _check(self) -> None:
            if self.transport.get_write_buffer_size() < self._unread:
                self._watch()
            else:
                self.transport.abort()

        def _stop_stall(self) -> None:
            if self._stall is not None:
                self._stall.cancel()
                self._stall = None

    return BoundedProtocol
