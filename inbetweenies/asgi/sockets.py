"""WebSocket connections: the sync messages of HTTP, one a frame, and what others change pushed as it is committed.

Read `Connection.run`. A connection speaks one wire version from its first message to its end (PROTOCOL 5.16). What is
pushed is the answer to the connection's own last request, asked again where its last answer ended; so a frame that gets
lost is healed by the next request, and there is no queue that could grow. Nothing here looks into a sync message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from ..errors import InbetweeniesError, LocalProtocolError
from ..negotiation import select
from ..wire import Follow
from .http import Answer, Call, GoneError, Receive, RefusalError, Scope, Send, encode, refused

if TYPE_CHECKING:
    from .application import App

PATH: Final = "/api/v1/sync/ws"
#: PROTOCOL 5.16: offered last by clients of every age: it means "let me read why not".
BOOTSTRAP: Final = "inbetweenies"
TOKENS_MAX: Final = 16  # of an offer; more is no offer
TOKEN_LETTERS_MAX: Final = 64
LOOK_SECONDS: Final = 1.0  # between two looks at what other processes wrote and decided

#: PROTOCOL 5.17: with which code a connection ends after a problem; other problems do not end it.
CLOSE_CODES: Final = {
    "malformed_body": 4400,
    "malformed_version": 4400,
    "unauthorized": 4401,
    "version_required": 4406,
    "unsupported_version": 4406,
    "no_common_version": 4406,
    "version_disabled": 4406,
    "body_not_valid_for_version": 4406,
    "version_conflict": 4409,
    "version_retired": 4410,
}
WITHDRAWN: Final = 1012  # "service restart": come back with a fresh offer
STALLED: Final = 1008
TOO_BIG: Final = 1009

logger = logging.getLogger(__name__)


class Sockets:
    """The open connections of one application, by graph."""

    def __init__(self, app: App) -> None:
        self.app = app
        self._open: dict[str, set[Connection]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, from its handshake to its end."""
        call = Call({**scope, "method": "GET"}, receive)
        await receive()  # websocket.connect
        try:
            connection = await self._admitted(call, scope.get("subprotocols", []), send)
        except (RefusalError, InbetweeniesError) as error:
            await self._refuse(call, scope, send, self.app.answer_for(call, error))
            return
        graph = connection.principal.graph
        self._open.setdefault(graph, set()).add(connection)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            await connection.run()
        finally:
            self._open[graph].discard(connection)
            if not self._open[graph]:
                del self._open[graph]

    def changed(self, graph: str) -> None:
        """Something was committed: tell whoever is connected."""
        for connection in self._open.get(graph, ()):
            connection.wake.set()

    async def close(self) -> None:
        """Stop looking. Connections are ended by the server."""
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking
            self._looking = None

    # --- handshake

    async def _admitted(self, call: Call, offered: list[str], send: Send) -> Connection:
        """PROTOCOL 5.16, 7.2: who may connect, and the wire version that is spoken.

        Raises:
            RefusalError: the handshake is refused with an answer as on HTTP.
        """
        if call.path != PATH:
            raise refused("not_found", "a path that is served here", "another one", detail="Not Found")
        origin = call.headers.get(b"origin")
        if origin is not None and origin.decode("latin-1") not in self.app.bounds.origins:
            # A page of somebody else's could else use what a browser keeps for this server.
            raise refused("origin_refused", "an origin that is allowed here, or none", "another one")
        principal = self.app.principal(call)
        if sum(map(len, self._open.values())) >= self.app.bounds.sockets_max:
            raise refused("unavailable", "room for this connection", "none left; try again")
        await self.app.learn()
        registry = self.app.router.registry
        offer = [token for token in offered if len(token) <= TOKEN_LETTERS_MAX] if len(offered) <= TOKENS_MAX else []
        version = select(offer, registry)
        if version is None and offered and BOOTSTRAP not in offer:
            raise refused("no_common_version", f"one of {', '.join(registry.supported)}", "an offer without any")
        connection = Connection(self, call, send, principal, version)
        chosen = version or (BOOTSTRAP if offered else None)
        await send({"type": "websocket.accept", "subprotocol": chosen, "headers": list(self.app.registry_headers())})
        connection.rejected = version is None and bool(offered)
        return connection

    async def _refuse(self, call: Call, scope: Scope, send: Send, answer: Answer) -> None:
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": STALLED})
            return
        headers = self.app.answer_headers(call, answer)
        await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": answer.body})

    # --- what other processes do

    async def _look(self) -> None:
        """While anybody is connected: see what other processes committed, decided and revoked."""
        heads: dict[str, int] = {}
        while self._open:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.app.learn()
                for graph in list(self._open):
                    seq = await self.app.head_seq(graph)
                    if heads.get(graph) != seq:
                        self.changed(graph)
                    heads[graph] = seq
            except InbetweeniesError as error:
                logger.warning("%s while looking for news: %s", type(error).__name__, error)
            for connection in [each for among in self._open.values() for each in among]:
                await connection.check()
        self._looking = None


class Connection:
    """One peer, in one wire version."""

    def __init__(self, sockets: Sockets, call: Call, send: Send, principal: Any, version: str | None) -> None:
        self.principal = principal
        self.wake = asyncio.Event()  # something may have changed
        self.rejected = False  # accepted only to be told why not
        self._app = sockets.app
        self._sockets = sockets
        self._call = call
        self._send = send
        self._chosen = version is not None
        self._version = version  # None until the first message says it
        self._next: Follow | None = None
        self._turn = asyncio.Lock()  # answers and news never overtake one another
        self._over = False

    async def run(self) -> None:
        """Read and answer until the peer goes or breaks a rule."""
        if self.rejected:
            registry = self._app.router.registry
            refusal = refused("no_common_version", f"one of {', '.join(registry.supported)}", "an offer without any")
            await self._tell(encode({**msgspec.json.decode(refusal.answer.body), "type": "unsupported_version"}))
            await self._end(CLOSE_CODES["no_common_version"], "no_common_version")
            return
        news = asyncio.create_task(self._push_news())
        try:
            while not self._over:
                body = await self._message()
                if body is None:
                    return
                async with self._turn:
                    await self._answer(body)
        except GoneError:
            pass
        finally:
            self._over = True
            news.cancel()
            with contextlib.suppress(asyncio.CancelledError, GoneError):
                await news

    async def check(self) -> None:
        """End a connection whose version was withdrawn, or whose token was."""
        try:
            self._app.principal(self._call)
        except RefusalError:
            with contextlib.suppress(GoneError):
                async with self._turn:
                    await self._end(CLOSE_CODES["unauthorized"], "unauthorized")
            return
        try:
            registry = self._app.router.registry
        except LocalProtocolError:
            return  # nothing is served just now; the next message is told so
        if self._version is not None and self._version not in registry.accepted:
            told = {
                "type": "version_withdrawn",
                "supported": registry.supported,
                "registry_revision": registry.revision,
            }
            with contextlib.suppress(GoneError):
                async with self._turn:
                    await self._tell(encode(told))
                    await self._end(WITHDRAWN, "version_withdrawn")

    # --- messages

    async def _message(self) -> bytes | None:
        """The next message; None if there is none to come."""
        wait = None if self._version is not None else self._app.bounds.first_message_seconds
        try:
            async with asyncio.timeout(wait):
                message = await self._call.receive()
        except TimeoutError:
            await self._end(CLOSE_CODES["version_required"], "version_required")
            return None
        if message["type"] != "websocket.receive":
            self._over = True
            return None
        text: str | None = message.get("text")
        body: bytes = message.get("bytes") or b"" if text is None else text.encode()
        if len(body) > self._app.router.limits.body_bytes_max:
            await self._end(TOO_BIG, "body_too_large")
            return None
        return body

    async def _answer(self, body: bytes) -> None:
        answer = await self._served(body)
        await self._tell(answer.body)
        if answer.status >= 400:
            code = _code(answer.body)
            if code in CLOSE_CODES:
                await self._end(CLOSE_CODES[code], code)
            return
        self._version = self._version or answer.served
        if answer.served != self._version:
            # Without a subprotocol the first message has fixed it.
            await self._end(CLOSE_CODES["version_conflict"], "version_conflict")
            return
        self._next = self._follow(body, answer) or self._next

    async def _served(self, body: bytes) -> Answer:
        try:
            principal = self._app.principal(self._call)
            header = self._version if self._chosen else None
            answer = await self._app.sync(self._call, principal, body, header=header)
        except (RefusalError, InbetweeniesError) as error:
            return self._app.answer_for(self._call, error)
        if answer.wrote:
            self._sockets.changed(principal.graph)
        return answer

    def _follow(self, body: bytes, answer: Answer) -> Follow | None:
        wire = getattr(self._app.router.handlers.get(answer.served or ""), "wire", None)
        follow: Callable[[bytes, bytes], Follow | None] | None = getattr(wire, "follow", None)
        return None if follow is None else follow(body, answer.body)

    # --- news

    async def _push_news(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            async with self._turn:
                with contextlib.suppress(GoneError):
                    await self._push()

    async def _push(self) -> None:
        """Tell what came since the last answer, if anything did."""
        more = True
        while more and self._next is not None and not self._over:
            asked = self._next
            answer = await self._served(asked.request)
            if answer.status >= 400:
                return  # the peer's next request is told why
            told = self._follow(asked.request, answer)
            if told is None or not told.news:
                return
            live = encode({"live": {"after": asked.after}})
            await self._tell(live[:-1] + b"," + answer.body[1:])
            self._next = told
            more = told.more

    # --- the wire

    async def _tell(self, body: bytes) -> None:
        if not self._over:
            await self._within({"type": "websocket.send", "text": body.decode()})

    async def _end(self, code: int, reason: str) -> None:
        if not self._over:
            self._over = True
            await self._within({"type": "websocket.close", "code": code, "reason": reason})

    async def _within(self, message: dict[str, Any]) -> None:
        """Send, to a peer that reads.

        Raises:
            GoneError: it does not, or it is gone.
        """
        try:
            async with asyncio.timeout(self._app.bounds.stall_seconds):
                await self._send(message)
        except (TimeoutError, OSError, RuntimeError):
            self._over = True
            raise GoneError from None


class _Problem(Struct):
    code: str = ""


_problem = msgspec.json.Decoder(_Problem)


def _code(body: bytes) -> str:
    return _problem.decode(body).code
