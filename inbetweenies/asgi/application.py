"""The application: routes, who speaks, how much, then one call into `router.handle`, which is where the protocol is.

Nothing here looks into a sync message. Whatever is sent, the answer is JSON, and no 5xx but 503 with ``Retry-After``
(PROTOCOL 2.6, 2.7).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future as Job
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct

from .. import review
from ..auth import Failures, MemoryTokens, Principal, Tokens, bearer, same_password, source_of
from ..errors import LocalProtocolError, RemoteProtocolError, StoreBusy, StoreError
from ..exchange import Rest, carry_out
from ..limits import Limits, checked_decode, gate
from ..merge import Policy
from ..model import SEQ_MAX, Held, Reads, Row, Span, format_time
from ..ops.incident import Incidents
from ..ops.notify import UserNotification
from ..ops.policies import standard
from ..registry import Registry
from ..rollout import notices
from ..rollout.flags import Feature
from ..rollout.health import MEDIA_TYPE
from ..rollout.policy import Policy as RolloutPolicy
from ..router import ProtocolFallback
from ..store import Store
from ..stores import SqliteStore
from . import discovery, sockets
from .discovery import Releases, registry_headers, version_headers
from .http import (
    CHALLENGE,
    CLOSE,
    NO_STORE,
    RETRY,
    Answer,
    BrokenOffError,
    Call,
    Door,
    GoneError,
    Headers,
    Receive,
    RefusalError,
    Scope,
    Send,
    ServerLimits,
    encode,
    ok,
    problem_answer,
    refused,
)
from .sockets import Sockets
from .upkeep import Upkeep
from .watching import Audit, Watching

T = TypeVar("T")
Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]

logger = logging.getLogger(__name__)

SYNC: Final = "/api/v1/sync/"
ENTITIES: Final = "/api/v1/graph/entities/"
CONFLICTS: Final = "/api/v1/sync/conflicts/"
RESOLVE: Final = "/resolve"
LOGIN_BYTES_MAX: Final = 4096
LOGIN_SECONDS: Final = 7 * 24 * 3600  # as deployed servers; deployed clients log in again at every start

_JSON: Final = b"application/json"
_PROBLEM: Final = b"application/problem+json"
_PERMISSIONS: Final = {"member": ("read", "write", "delete"), "admin": ("read", "write", "delete", "configure")}

_NO_TOKEN: Final = refused(
    "unauthorized", "a bearer token", "none", detail="Not authenticated", headers=CHALLENGE
).answer
_BAD_TOKEN: Final = refused(
    "unauthorized", "a valid token", "another one", detail="Invalid or expired token", headers=CHALLENGE
).answer


def app(
    store: Store | None = None,
    *,
    router: ProtocolFallback | None = None,
    tokens: Tokens | None = None,
    admin_password: str | None = None,
    admin_graph: str = "default",
    auth: bool = True,
    limits: Limits | None = None,
    policy: Policy | None = None,
    bounds: ServerLimits | None = None,
    blocking: bool | None = None,
    server_version: str | None = None,
    min_client_version: str | None = None,
    latest_client_version: str | None = None,
    audits: Sequence[Audit] = (),
    people: UserNotification | None = None,
    incidents: Incidents | None = None,
    rollout_policy: Callable[[], RolloutPolicy] = standard,
    monotonic: Callable[[], float] = time.monotonic,
) -> App:
    """An ASGI application that serves every installed wire version from `store`.

    ``app(SqliteStore("home.db"), tokens=SqliteTokens("home.db"))`` is a server; in an application of your own,
    ``yours.mount("/home", app(...))`` puts it beside your routes. Lifespan events are not needed.

    Args:
        store: where graphs are kept; `router.store` or a memory store if not given.
        router: finds and serves wire versions; by default one over `store` with `limits` and `policy`.
        tokens: who may speak; by default tokens in memory, at `App.tokens`.
        policy: who wins, and the rules of one's own for entity types (PROTOCOL 6.8).
        admin_password: switches ``POST /api/v1/auth/admin/login`` on, for deployed clients.
        admin_graph: the graph of whoever logs in there, and of everybody without `auth`.
        auth: False serves `admin_graph` to anybody who can connect; only for one's own machine.
        bounds: time, memory and concurrency.
        blocking: whether the store's coroutines block instead of waiting, so that they belong in a thread; by default
            what ``store.blocking`` says, else whether it is a `SqliteStore`.
        server_version: the release that discovery tells; by default that of this package.
        min_client_version, latest_client_version: releases of clients that discovery tells, for clients that update
            themselves.
        audits: `DataIntegrityMonitor(store)`, `ShadowComparison(store)` and others. They look as long as lifespan
            events say that this serves; what they find broken takes back what is being rolled out (PROTOCOL 12.8).
        people: tells people, and those who look after the server, of what is taken back (PROTOCOL 14); by default the
            people only.
        incidents: where what is known is put aside before a rollout is taken back, such as
            ``Incidents(store, folder)``; without, nothing is.
        rollout_policy: asked for what decides about rollouts (PROTOCOL 12.11): `ops.policies.PolicyFile` for a file.
        monotonic: seconds, for the pace of failed logins and of what is done beside answering.

    Raises:
        LocalProtocolError: `store` or `policy` is not the one of `router`, or `router` serves no wire version.
    """
    if router is None:
        router = ProtocolFallback(store, limits=limits, policy=policy)
    elif store is not None and store is not router.store:
        raise LocalProtocolError("expected the store of the router, or none; got another store")
    elif policy is not None and policy is not router.policy:
        raise LocalProtocolError("expected the policy of the router, or none; got another one")
    _ = router.registry  # raises if nothing would be served: better now than at the first request
    return App(
        router,
        tokens=MemoryTokens(clock=router.clock) if tokens is None else tokens,
        admin_password=admin_password or None,
        admin_graph=admin_graph,
        auth=auth,
        bounds=bounds or ServerLimits(),
        blocking=_blocks(router.store) if blocking is None else blocking,
        releases=Releases(
            server_version=server_version or release(),
            min_client_version=min_client_version,
            latest_client_version=latest_client_version,
        ),
        audits=audits,
        people=people,
        incidents=incidents,
        rollout_policy=rollout_policy,
        monotonic=monotonic,
    )


def _blocks(store: Store) -> bool:
    return bool(getattr(store, "blocking", isinstance(store, SqliteStore)))


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
        releases: Releases,
        audits: Sequence[Audit],
        people: UserNotification | None,
        incidents: Incidents | None,
        rollout_policy: Callable[[], RolloutPolicy],
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
        self._door = Door(bounds)
        self._buffered = 0
        self._threads: ThreadPoolExecutor | None = None
        self._releases = releases
        self._upkeep = Upkeep(router, self._aside, monotonic)
        self.watching = Watching(router, audits, monotonic, people, policy=rollout_policy, incidents=incidents)
        self._told: tuple[Registry | None, Headers] = (None, registry_headers(None))
        self._sockets = Sockets(self)
        self._routes: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._root},
            "/health": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            **{path: {"GET": self._discovery} for path in discovery.PATHS},
            "/api/v1/sync": {"POST": self._sync},
            "/api/v1/sync/": {"POST": self._sync},
            "/api/v1/sync/request": {"POST": self._sync},
            "/api/v1/sync/push": {"POST": self._sync},
            "/api/v1/sync/ack": {"POST": self._sync},
            "/api/v1/sync/status": {"GET": self._status},
            "/api/v1/sync/conflicts": {"GET": self._conflicts},
            "/api/v1/sync/notices": {"GET": self._notices},
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
            await self._sockets.serve(scope, receive, send)
            return
        if scope["type"] != "http":
            raise LocalProtocolError(f"expected an http, websocket or lifespan scope; got {scope['type']}")
        call = Call(scope, receive)
        try:
            await self._upkeep.look()
            self.watching.keep()
            answer = await self._answer(call)
        except GoneError:
            return
        finally:
            self._buffered -= call.charged
        await self._send(call, answer, send)
        await self._upkeep.settle()

    async def close(self) -> None:
        """Wait for what is being served, write the census down, and let go of the threads. Store and tokens belong to
        who made them."""
        await self._sockets.close()
        await self.watching.close()
        await self._upkeep.write()
        if self._threads is not None:
            threads, self._threads = self._threads, None
            await asyncio.to_thread(threads.shutdown)

    async def _answer(self, call: Call) -> Answer:
        """PROTOCOL 2.6: what the request is answered. Raises `GoneError` only."""
        try:
            return await self._handler(call)(call)
        except GoneError:
            raise
        except Exception as error:  # noqa: BLE001 - it is logged, and answered
            return self.answer_for(call, error)

    def answer_for(self, call: Call, error: Exception) -> Answer:
        """PROTOCOL 2.6: what is answered where serving `call` ended in `error`."""
        if isinstance(error, RefusalError):
            return error.answer
        if isinstance(error, RemoteProtocolError):
            return problem_answer(error)
        if isinstance(error, StoreError):
            logger.warning("%s %s: %s", call.id, type(error).__name__, error)
            got = "one that cannot now; try again"
            away = RemoteProtocolError(code="unavailable", expected="a store that can take this", got=got)
        else:
            # A defect of ours, or of a handler or store that was plugged in. What it was stays in the log.
            logger.error("%s failed", call.id, exc_info=error)
            got = "a failure, which is logged under request_id; try again"
            away = RemoteProtocolError(code="unavailable", expected="to serve this", got=got)
        return problem_answer(away, request=call.id)

    def _handler(self, call: Call) -> Handler:
        methods = self._routes.get(call.path)
        if methods is None:
            if call.path.startswith(ENTITIES) and call.path.endswith("/versions"):
                methods = {"GET": self._versions}
            elif call.path.startswith(CONFLICTS) and call.path.endswith(RESOLVE):
                methods = {"POST": self._resolve}
            else:
                raise refused("not_found", "a path that is served here", "another one", detail="Not Found")
        handler = methods.get("GET" if call.method == "HEAD" else call.method)
        if handler is None:
            allow = ", ".join([*methods, *(["HEAD"] if "GET" in methods else [])])
            raise refused(
                "method_not_allowed",
                allow,
                "another method",
                detail="Method Not Allowed",
                headers=((b"allow", allow.encode()), NO_STORE),
            )
        return handler

    async def _send(self, call: Call, answer: Answer, send: Send) -> None:
        headers = self.answer_headers(call, answer)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if call.method == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body, "more_body": answer.rest is not None})
        if answer.rest is not None:
            await self._send_rest(call, answer.rest, send)

    def answer_headers(self, call: Call, answer: Answer) -> list[tuple[bytes, bytes]]:
        """All headers of an answer."""
        return [
            (b"content-type", answer.media or (_PROBLEM if answer.status >= 400 else _JSON)),
            *([] if answer.status == 304 or answer.rest else [(b"content-length", b"%d" % len(answer.body))]),
            *self.registry_headers(call.graph),
            *version_headers(self._registry(call.graph), answer.served, answer.about),
            (b"inbetweenies-request-id", call.id.encode()),
            *answer.headers,
        ]

    def _registry(self, graph: str | None = None) -> Registry | None:
        try:
            return self.router.registry if graph is None else self.router.registry_for(graph)
        except LocalProtocolError:
            return None  # nothing is served just now; the routes say so

    def registry_headers(self, graph: str | None = None) -> Headers:
        """What every answer says of the wire versions that are served, also one that is given before there is a
        request, or before it is known of which graph it is."""
        registry = self._registry(graph)
        if registry is not self._told[0]:
            self._told = (registry, registry_headers(registry))
        return self._told[1]

    async def _send_rest(self, call: Call, rest: Rest, send: Send) -> None:
        """PROTOCOL 4.9: the pieces after the first, each read when the peer has taken the one before.

        Raises:
            BrokenOffError: it cannot be ended; what was sent is not a whole answer, and must not look like one.
        """
        gone = asyncio.ensure_future(call.receive())
        try:
            while not rest.ended:
                if gone.done() and gone.result()["type"] == "http.disconnect":
                    return
                piece = await self._run(rest.next)
                await send({"type": "http.response.body", "body": piece, "more_body": not rest.ended})
        except Exception as error:
            logger.warning("%s broken off: %s: %s", call.id, type(error).__name__, error)
            raise BrokenOffError(call.id) from error
        finally:
            gone.cancel()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self._upkeep.look()
                if self._registry() is None:
                    told = "expected at least one wire version to be served; got none: see `inbetweenies versions list`"
                    await send({"type": "lifespan.startup.failed", "message": told})
                    return
                self.watching.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    # --- for connections that stay open

    async def learn(self, *, again: bool = False) -> None:
        """See what was decided of wire versions, and write down what was seen of them, if that is due, or `again`."""
        await self._upkeep.look(again=again)
        await self._upkeep.settle()
        self.watching.keep()

    async def head(self, graph: str) -> str:
        """The cursor at which the log of a graph ends now. Raises `StoreError`."""

        async def read() -> str:
            async with self._store.transaction(graph, write=False) as tx:
                return str((await tx.read(Reads())).head.cursor)

        return await self._aside(read)

    async def noticed(self, graph: str) -> tuple[int, ...]:
        """What rises when there is something new to tell the people of a graph (PROTOCOL 14). Raises `StoreError`."""
        names = (notices.DOCUMENT, notices.proofs_of(graph))

        async def read() -> tuple[int, ...]:
            return tuple([(await self._store.document(name)).revision for name in names])

        return await self._aside(read)

    def hold(self, size: int) -> bool:
        """Count bytes that are held for peers, negative ones that are let go of. Whether there is room for them."""
        self._buffered += size
        return self._buffered <= self.bounds.buffered_bytes_max

    # --- who speaks, and how much

    def principal(self, call: Call) -> Principal:
        """PROTOCOL 7.1, 7.2: who the token speaks for. Asked before anything of the body is read."""
        principal = self._speaker(call)
        call.graph = principal.graph
        return principal

    def _speaker(self, call: Call) -> Principal:
        if not self.auth:
            return Principal(graph=self._graph, user="local", role="admin")
        secret = bearer(call.headers.get(b"authorization", b""))
        if secret is None:
            raise RefusalError(_NO_TOKEN)
        principal = self.tokens.find(secret, self.router.clock())
        if principal is None:
            raise RefusalError(_BAD_TOKEN)
        return principal

    async def _body(self, call: Call, most: int) -> bytes:
        """PROTOCOL 2.4, 2.5: a JSON body of at most `most` bytes, counted while it arrives."""
        call.check_body(most)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                more = True
                while more:
                    message = await call.receive()
                    if message["type"] != "http.request":
                        raise GoneError
                    piece = message.get("body", b"")
                    more = message.get("more_body", False)
                    size += len(piece)
                    call.charged += len(piece)
                    room = self.hold(len(piece))
                    if size > most:
                        raise refused("body_too_large", f"at most {most} bytes", "more")
                    if not room:
                        raise refused("unavailable", "room for this body", "none left; try again")
                    pieces.append(piece)
        except TimeoutError:
            expected = f"the whole body within {self.bounds.body_seconds:g} s"
            raise refused("timeout", expected, f"{size} bytes by then", headers=CLOSE) from None
        return b"".join(pieces)

    async def _work(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run what may use the store: with others at most `requests_max` at once, and not for ever."""
        await self._door.enter()
        return await self._run(make, self._door.leave)

    async def _run(self, make: Callable[[], Coroutine[Any, Any, T]], leave: Callable[[], None] = lambda: None) -> T:
        """The same for what is let in already. `leave` is called when it is done, or would never begin."""
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
            raise refused("unavailable", expected, "none; send it again") from None
        finally:
            if job is None or job.done() or job.cancel():
                leave()
            else:
                # The thread is still at it, and counts until it is done.
                later = partial(asyncio.get_running_loop().call_soon_threadsafe, leave)
                job.add_done_callback(partial(_quietly, later))

    async def _aside(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run what may use the store beside the requests: it takes nobody's turn, waits for none, nor for ever."""
        try:
            async with asyncio.timeout(self.bounds.handler_seconds):
                return await (asyncio.to_thread(self._drive, make) if self._blocking else make())
        except TimeoutError:
            raise StoreBusy(
                f"expected the store to answer within {self.bounds.handler_seconds:g} s; it did not"
            ) from None

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
        """PROTOCOL 4: one message of any wire version, to its path or to the common one."""
        principal = self.principal(call)
        body = await self._body(call, self.router.limits.body_bytes_max)
        header = call.headers.get(b"inbetweenies-version")
        header_text = None if header is None else header.decode("latin-1")
        answer = await self.sync(call, principal, body, header=header_text, pieces=True)
        if answer.wrote:
            self._sockets.changed(principal.graph)
        return answer

    async def sync(
        self, call: Call, principal: Principal, body: bytes, *, header: str | None, pieces: bool = False
    ) -> Answer:
        """One sync message; `header` is the wire version that the transport names, if it does. See `router.handle`."""
        path = call.path if call.path.startswith(SYNC) and call.path != sockets.PATH else SYNC
        accept, agent = (
            None if (value := call.headers.get(name)) is None else value.decode("latin-1")
            for name in (b"inbetweenies-accept-versions", b"user-agent")
        )
        began, reply = self._monotonic(), None
        try:
            reply = await self._work(
                lambda: self.router.handle(
                    body,
                    context=principal.context(self.router.clock()),
                    path=path,
                    header=header,
                    accept=accept,
                    agent=agent,
                    pieces=pieces,
                )
            )
        finally:
            self.watching.count(principal.graph, began, reply)
        self._upkeep.count(reply.sighting)
        if reply.notice is not None:
            logger.log(logging.WARNING if reply.status >= 500 else logging.INFO, "%s %s", call.id, reply.notice)
        for event in reply.events:
            logger.warning("%s graph %s: %s", call.id, principal.graph, event)
        headers = (NO_STORE, RETRY) if reply.status in (429, 503) else (NO_STORE,)
        wrote = reply.sighting is not None and reply.sighting.wrote
        return Answer(reply.status, reply.body, headers, reply.served, reply.about, wrote, reply.rest)

    async def _status(self, call: Call) -> Answer:
        """``server_time`` is the stamp of the newest commit, so none to come is at or before it (PROTOCOL 4.2)."""
        principal = self.principal(call)
        device = parse_qs(call.scope.get("query_string", b"").decode("latin-1")).get("device_id", [None])[0]
        held = await self._work(lambda: self._held(principal, Reads()))
        registry = self._registry(principal.graph)
        newest = None if registry is None else registry.accepted[0]
        return ok({"device_id": device, "server_time": format_time(held.head.stamp), "protocol_version": newest})

    async def _notices(self, call: Call) -> Answer:
        """PROTOCOL 14.2: for who speaks a wire version that cannot say it, such as after a newer one was taken back."""
        principal = self.principal(call)
        asked = parse_qs(call.scope.get("query_string", b"").decode("latin-1"))
        device, acks = asked.get("device_id", [""])[0], asked.get("ack", [])
        label, now = notices.label_of(principal.token_id, device), self.router.clock()

        async def exchange() -> bytes:
            plan = partial(notices.exchange, principal.graph, label, acks, now)
            return encode({"notices": await carry_out(plan, self._store, principal.graph, write=bool(acks))})

        return Answer(200, await self._work(exchange), (NO_STORE,))

    async def _conflicts(self, call: Call) -> Answer:
        """PROTOCOL 6.9: a page of what waits for a person. Empty, as on deployed servers, where no rule leaves anything
        open; other conflicts are settled when they are found, and told to the device whose push met one (6.7)."""
        principal = self.principal(call)
        after = parse_qs(call.scope.get("query_string", b"").decode("latin-1")).get("after", [None])[0]
        place = review.Place() if after is None else review.place_in(after)
        policy, limits = self.router.policy, self.router.limits

        async def read() -> bytes:
            plan = partial(review.listing, policy, limits, place)
            page = await carry_out(plan, self._store, principal.graph, write=False)
            told: dict[str, Any] = {"conflicts": [review.told(entry) for entry in page.entries]}
            return encode(told if page.next is None else told | {"next": str(page.next)})

        return Answer(200, await self._work(read))

    async def _resolve(self, call: Call) -> Answer:
        """PROTOCOL 6.10: what a person decided of an open conflict becomes a row, which travels as any other does."""
        principal = self.principal(call)
        body = await self._body(call, self.router.limits.body_bytes_max)
        id_ = call.path[len(CONFLICTS) : -len(RESOLVE)]

        async def write() -> tuple[bytes, bool]:
            context = principal.context(self.router.clock())
            plan = partial(review.resolve, id_, body, self.router.policy, context, self.router.limits)
            resolved = await carry_out(plan, self._store, principal.graph, write=True)
            told = {"id": id_, "resolved": review.told_row(resolved.row), "fresh": resolved.fresh}
            return encode(told), resolved.fresh

        try:
            told, fresh = await self._work(write)
        except RemoteProtocolError as error:
            detail = "Not Found" if error.code == "not_found" else None
            raise RefusalError(problem_answer(error, detail=detail)) from None
        if fresh:
            self._sockets.changed(principal.graph)
        return Answer(200, told)

    # --- the graph, read

    async def _held(self, principal: Principal, reads: Reads) -> Held:
        async with self._store.transaction(principal.graph, write=False) as tx:
            return await tx.read(reads)

    def _need(self, feature: Feature, graph: str) -> None:
        """PROTOCOL 12.4: there is nothing where a feature is off."""
        if not self.router.orders.has(feature, graph):
            raise refused("not_found", f"the feature {feature.name} on", "it off", detail="Not Found")

    async def _versions(self, call: Call) -> Answer:
        """PROTOCOL 4.1: every row version of an entity in commit order, losers too."""
        principal = self.principal(call)
        self._need(Feature.ENTITY_VERSIONING, principal.graph)
        id_ = call.path[len(ENTITIES) : -len("/versions")]

        async def read() -> bytes | None:
            rows = (await self._held(principal, Reads(history=(id_,)))).history.get(id_, ())
            told = [_version_out(row) for row in sorted(rows, key=lambda row: row.seq)]
            return encode({"entity_id": id_, "versions": told, "count": len(told)}) if told else None

        body = await self._work(read)
        if body is None:
            raise refused("not_found", "the id of an entity", "another one", detail="Not Found")
        return Answer(200, body)

    async def _relationships(self, call: Call) -> Answer:
        """PROTOCOL 3.5: the edges that are there now; deleted ones and edges of deleted entities are not."""
        principal = self.principal(call)
        self._need(Feature.GRAPH_OPERATIONS, principal.graph)

        async def read() -> bytes:
            rows = (await self._held(principal, Reads(span=Span(after=0, upto=SEQ_MAX)))).span
            living = {row.id for row in rows if row.kind == "entity" and not row.deleted}
            edges = [row for row in rows if row.kind == "edge" and not row.deleted]
            told = [_edge_out(row) for row in edges if row.from_id in living and row.to_id in living]
            return encode({"relationships": told, "count": len(told)})

        return Answer(200, await self._work(read))

    # --- discovery and health

    async def _health(self, _: Call) -> Answer:
        return ok({"status": "healthy"})

    async def _metrics(self, call: Call) -> Answer:
        """PROTOCOL 12.13: what this process counted, for Prometheus."""
        self.principal(call)
        told = await asyncio.to_thread(self.watching.exposition)
        return Answer(200, told.encode(), media=MEDIA_TYPE.encode())

    async def _root(self, _: Call) -> Answer:
        return ok({"name": "inbetweenies", "version": release(), "status": "ready"})

    async def _discovery(self, call: Call) -> Answer:
        """PROTOCOL 5.10: for anybody who asks."""
        if not self._upkeep.known:
            raise StoreBusy("expected to have read which wire versions are served; the store could not be read")
        with contextlib.suppress(RefusalError):  # a token is not needed, so one that is no good does no harm
            self.principal(call)
        return discovery.answer(self.router, self._releases, call.headers.get(b"if-none-match", b""), call.graph)

    # --- identity, as deployed clients expect it

    async def _me(self, call: Call) -> Answer:
        principal = self.principal(call)
        return ok(
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
        """A password for a token of seven days. Ten wrong ones a minute make a source wait."""
        source = source_of((call.scope.get("client") or ("",))[0])
        self._slow_down(source)
        body = await self._body(call, LOGIN_BYTES_MAX)
        gate(body, self.router.limits)
        login = checked_decode(_login, body)
        # Asked again: while this body arrived, others may have failed.
        self._slow_down(source)
        if not same_password(login.password, self._password or ""):
            self._failures.add(source, int(self._monotonic() * 1_000_000))
            raise refused("unauthorized", "the password", "another one", detail="Invalid password", headers=CHALLENGE)
        expires = self.router.clock() + LOGIN_SECONDS * 1_000_000
        secret, _ = await asyncio.to_thread(self.tokens.create, self._graph, "admin", None, expires, role="admin")
        told = {"access_token": secret, "token_type": "bearer", "expires_in": LOGIN_SECONDS, "role": "admin"}
        return ok(told)

    def _slow_down(self, source: str) -> None:
        wait = self._failures.wait_us(source, int(self._monotonic() * 1_000_000))
        if wait:
            seconds = -(-wait // 1_000_000)
            headers = ((b"retry-after", b"%d" % seconds), NO_STORE)
            raise refused("too_many_requests", "fewer wrong passwords", "too many", headers=headers)


# --- values -------------------------------------------------------------------------------------------------------


class Login(Struct):
    """The body of a login."""

    password: str


_login = msgspec.json.Decoder(Login)


def _version_out(row: Row) -> dict[str, Any]:
    """PROTOCOL 9.3: a row version as deployed servers tell it, times naive; what is ours is added."""
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
    """PROTOCOL 9.4: an edge as deployed servers tell it, times naive; its version is added."""
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


def _quietly(call: Callable[[], object], _: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        call()
