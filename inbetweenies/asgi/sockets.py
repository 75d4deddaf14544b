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

from ..errors import LocalProtocolError
from ..negotiation import select
from ..wire import Follow
from .http import Answer, Call, GoneError, Receive, RefusalError, Scope, Send, encode, refused

if TYPE_CHECKING:
    from ..auth import Principal
    from .application import App

PATH: Final = "/api/v1/sync/ws"
#: PROTOCOL 5.16: offered last by clients of every age: it means "let me read why not".
BOOTSTRAP: Final = "inbetweenies"
TOKENS_MAX: Final = 16  # of an offer; more is no offer
TOKEN_LETTERS_MAX: Final = 64
LOOK_SECONDS: Final = 1.0  # between two looks at what other processes wrote and decided
#: Connections that are asked for at once, so that news take no more than an eighth of the turns that requests have.
NEWS_AT_ONCE: Final = 8
#: What is kept of a connection's last request, to be asked again. A larger one is one that nobody needs to send.
FOLLOW_BYTES_MAX: Final = 64 * 1024

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
NO_TEXT: Final = 1003
TOO_BIG: Final = 1009

logger = logging.getLogger(__name__)


class Sockets:
    """The open connections of one application, by graph."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.asking = asyncio.Semaphore(NEWS_AT_ONCE)
        self._admitted_n = 0
        self._open: dict[str, set[Connection]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._dismissals: set[asyncio.Task[None]] = set()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, from its handshake to its end."""
        call = Call({**scope, "method": "GET"}, receive)
        await receive()  # websocket.connect
        self._admitted_n += 1  # before anything is waited for, or many at once would find room for one
        try:
            connection = await self._admitted(call, scope.get("subprotocols", []), send)
            await connection.accept()
            await self._serve(connection)
        except GoneError:
            pass
        except Exception as error:  # noqa: BLE001 - it is logged, and answered
            with contextlib.suppress(GoneError):
                await self._refuse(call, scope, send, self.app.answer_for(call, error))
        finally:
            self._admitted_n -= 1

    async def _serve(self, connection: Connection) -> None:
        graph = connection.principal.graph
        self._open.setdefault(graph, set()).add(connection)
        if self._looking is None or self._looking.done():  # done: with the event loop that it ran on
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
        tasks = [*self._dismissals, *([] if self._looking is None else [self._looking])]
        self._looking = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- handshake

    async def _admitted(self, call: Call, offered: list[str], send: Send) -> Connection:
        """PROTOCOL 5.16, 7.2: who may connect, and the wire version that is spoken.

        Raises:
            RefusalError, StoreError: the handshake is refused with an answer as on HTTP.
        """
        if call.path != PATH:
            raise refused("not_found", "a path that is served here", "another one", detail="Not Found")
        origin = call.headers.get(b"origin")
        if origin is not None and origin.decode("latin-1") not in self.app.bounds.origins:
            # A page of somebody else's could else use what a browser keeps for this server.
            raise refused("origin_refused", "an origin that is allowed here, or none", "another one")
        principal = self.app.principal(call)
        if self._admitted_n > self.app.bounds.sockets_max:
            raise refused("unavailable", "room for this connection", "none left; try again")
        offer = [token for token in offered if len(token) <= TOKEN_LETTERS_MAX] if len(offered) <= TOKENS_MAX else []
        await self.app.learn()
        version = select(offer, self.app.router.registry_for(principal.graph))
        if version is None and offered:
            await self.app.learn(again=True)  # it may be served since
            registry = self.app.router.registry_for(principal.graph)
            version = select(offer, registry)
            if version is None and BOOTSTRAP not in offer:
                raise refused("no_common_version", f"one of {', '.join(registry.supported)}", "an offer without any")
        return Connection(self, call, send, principal, version, tuple(offer), offered=bool(offered))

    async def _refuse(self, call: Call, scope: Scope, send: Send, answer: Answer) -> None:
        within = self.app.bounds.stall_seconds
        if "websocket.http.response" not in scope.get("extensions", {}):
            await _sent(send, {"type": "websocket.close", "code": STALLED}, within)
            return
        headers = self.app.answer_headers(call, answer)
        await _sent(
            send, {"type": "websocket.http.response.start", "status": answer.status, "headers": headers}, within
        )
        await _sent(send, {"type": "websocket.http.response.body", "body": answer.body}, within)

    # --- what other processes do

    async def _look(self) -> None:
        """While anybody is connected: see what other processes committed, decided and revoked."""
        heads: dict[str, str] = {}
        noticed: dict[str, tuple[int, ...]] = {}
        while self._open:
            await asyncio.sleep(LOOK_SECONDS)
            await self.app.learn()
            for graph in list(self._open):
                await self._look_at(graph, heads, noticed)
            heads = {graph: head for graph, head in heads.items() if graph in self._open}
            noticed = {graph: known for graph, known in noticed.items() if graph in self._open}

    async def _look_at(self, graph: str, heads: dict[str, str], noticed: dict[str, tuple[int, ...]]) -> None:
        try:
            head, known = await self.app.head(graph), await self.app.noticed(graph)
            moved = heads.get(graph) != head
            # PROTOCOL 14.2: who was told before the first look is asked once more, if there ever was anything to tell.
            told = noticed.get(graph, (0,) * len(known)) != known
            heads[graph], noticed[graph] = head, known
            for connection in tuple(self._open.get(graph, ())):
                if connection.behind or told or (moved and not connection.stands_at(head)):
                    connection.wake.set()
                if (why := connection.unwelcome()) is not None:
                    # Beside this: whoever does not read keeps nobody else waiting.
                    task = asyncio.create_task(connection.dismiss(why))
                    self._dismissals.add(task)
                    task.add_done_callback(self._dismissals.discard)
                await asyncio.sleep(0)  # a thousand tokens take long enough for a request to wait
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look must come
            logger.warning("%s while looking for news: %s", type(error).__name__, error)


class Connection:
    """One peer, in one wire version."""

    def __init__(
        self,
        sockets: Sockets,
        call: Call,
        send: Send,
        principal: Principal,
        version: str | None,
        offer: tuple[str, ...],
        *,
        offered: bool,
    ) -> None:
        self.principal = principal
        self.wake = asyncio.Event()  # something may have changed
        self.behind = False  # something did, and there was no telling it
        self._app = sockets.app
        self._sockets = sockets
        self._call = call
        self._send = send
        self._offered = offered
        self._offer = offer  # what it could speak as well
        self._chosen = version is not None
        self._version = version  # None until the first message says it
        self._next: Follow | None = None
        self._turn = asyncio.Lock()  # answers and news never overtake one another
        self._dismissed = False
        self._over = False

    async def accept(self) -> None:
        """Complete the handshake. Raises `GoneError`."""
        chosen = self._version or (BOOTSTRAP if self._offered else None)
        headers = list(self._app.registry_headers(self.principal.graph))
        await self._within({"type": "websocket.accept", "subprotocol": chosen, "headers": headers})

    async def run(self) -> None:
        """Read and answer until the peer goes, breaks a rule, or reads nothing for too long."""
        try:
            if self._offered and self._version is None:
                await self._reject()
                return
            async with asyncio.TaskGroup() as both:
                news = both.create_task(self._push_news())
                await self._read()
                news.cancel()
        except* GoneError:
            pass
        finally:
            self._over = True

    async def _read(self) -> None:
        while not self._over:
            body = await self._message()
            if body is None:
                return
            async with self._turn:
                await self._answer(body)

    async def _reject(self) -> None:
        """It was accepted only to be told why not."""
        registry = self._app.router.registry_for(self.principal.graph)
        refusal = refused("no_common_version", f"one of {', '.join(registry.supported)}", "an offer without any")
        await self._tell(encode({**msgspec.json.decode(refusal.answer.body), "type": "unsupported_version"}))
        await self._end(CLOSE_CODES["no_common_version"], "no_common_version")

    def stands_at(self, head: str) -> bool:
        """Whether there is nothing to tell before `head`."""
        return self._next is not None and self._next.after == head

    def unwelcome(self) -> str | None:
        """PROTOCOL 5.17: why this connection must end: its token or its version was withdrawn, or it would be given
        another version of those that it offers. Raises `StoreError`."""
        if self._dismissed:
            return None
        try:
            self._app.principal(self._call)
        except RefusalError:
            return "unauthorized"
        try:
            registry = self._app.router.registry_for(self.principal.graph)
        except LocalProtocolError:
            return None  # nothing is served just now; the next message is told so
        # What it was chosen for at the handshake is chosen again: of what it offered, another may come first by now.
        best = select(self._offer, registry) if self._chosen else self._version
        stays = self._version is None or (self._version in registry.accepted and self._version == best)
        return None if stays else "version_withdrawn"

    async def dismiss(self, why: str) -> None:
        """End it, after what is being told."""
        self._dismissed = True
        with contextlib.suppress(GoneError, LocalProtocolError):
            async with self._turn:
                if why == "version_withdrawn":
                    registry = self._app.router.registry_for(self.principal.graph)
                    told = {"type": why, "supported": registry.supported, "registry_revision": registry.revision}
                    await self._tell(encode(told))
                await self._end(CLOSE_CODES.get(why, WITHDRAWN), why)

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
        if text is None:
            await self._end(NO_TEXT, "text_expected")
            return None
        body = text.encode()
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
        """What `body` is answered; nothing that goes wrong ends the connection."""
        try:
            principal = self._app.principal(self._call)
            header = self._version if self._chosen else None
            answer = await self._app.sync(self._call, principal, body, header=header)
        except Exception as error:  # noqa: BLE001 - it is logged, and answered
            return self._app.answer_for(self._call, error)
        if answer.wrote:
            self._sockets.changed(principal.graph)
        return answer

    def _follow(self, body: bytes, answer: Answer) -> Follow | None:
        wire = getattr(self._app.router.handlers.get(answer.served or ""), "wire", None)
        follow: Callable[[bytes, bytes], Follow | None] | None = getattr(wire, "follow", None)
        if follow is None:
            return None
        try:
            told = follow(body, answer.body)
        except Exception:
            # It was served; what cannot be asked again gets no news, and its next request all there is.
            logger.exception("%s cannot be asked again", self._call.id)
            return None
        return None if told is None or len(told.request) > FOLLOW_BYTES_MAX else told

    # --- news

    async def _push_news(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            more = True
            while more:
                # One page a turn: what the peer asks meanwhile comes between.
                async with self._turn:
                    more = await self._push()

    async def _push(self) -> bool:
        """Tell what came since the last answer, if anything did. Whether there is more of it."""
        self.behind = False
        if self._next is None or self._over:
            return False
        asked = self._next
        async with self._sockets.asking:
            answer = await self._served(asked.request)
        if answer.status >= 400:
            # Of what is no passing trouble, the peer's next request is told.
            self.behind = answer.status in (429, 503)
            return False
        told = self._follow(asked.request, answer)
        if told is None or not told.news:
            return False
        live = encode({"live": {"after": asked.after}})
        await self._tell(live[:-1] + b"," + answer.body[1:])
        self._next = told
        return told.more

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
            await _sent(self._send, message, self._app.bounds.stall_seconds)
        except GoneError:
            self._over = True
            raise


async def _sent(send: Send, message: dict[str, Any], seconds: float) -> None:
    """Send. Raises `GoneError`: it was not taken in time, or there is nobody any more."""
    try:
        async with asyncio.timeout(seconds):
            await send(message)
    except (TimeoutError, OSError, RuntimeError):
        raise GoneError from None


class _Problem(Struct):
    code: str = ""


_problem = msgspec.json.Decoder(_Problem)


def _code(body: bytes) -> str:
    return _problem.decode(body).code
