"""Staying connected: a replica that learns at once what others change, and sends at once what is changed here.

Read `Watch.events`. Over a WebSocket the messages are those of `sync`; what comes without being asked for is news, and
is taken in only if it starts where this replica stands, else a sync heals what was missed. Where no WebSocket gets
through, the same is done by syncing every now and then. It goes on, however long a server is away.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, Literal, Protocol, Self

import msgspec
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from inbetweenies.errors import InbetweeniesError, RemoteProtocolError

from . import notices
from .reports import Notice
from .store import LocalStore, SyncRunning
from .transport import (
    BadAnswer,
    HttpTransport,
    Transport,
    TransportError,
    Unauthorized,
    Unreachable,
    refused,
)

SOCKET_PATH: Final = "/api/v1/sync/ws"
#: PROTOCOL 5.16: offered last: a server that serves none of the others can still say why.
BOOTSTRAP: Final = "inbetweenies"
FRAME_BYTES_MAX: Final = 32 * 2**20
OPEN_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 1.0  # between two looks at what was changed here by other processes
POLL_SECONDS: Final = 30.0  # between two syncs where no WebSocket gets through
SOCKET_AGAIN_SECONDS: Final = 300.0  # until a WebSocket is tried again after one did not get through
BACKOFF_SECONDS: Final = 0.5
BACKOFF_MAX_SECONDS: Final = 60.0

Sleep = Callable[[float], Awaitable[object]]


class Blocked(TransportError):
    """No WebSocket gets through to this server: it has none, or something on the way does not let one pass."""


class Gone(Unreachable):
    """The connection has ended."""


class Event(Struct, frozen=True, kw_only=True):
    """What happened while watching.

    Attributes:
        kind: ``synced`` after an exchange, ``news`` when something came in by itself, ``offline`` when there is no
            server just now, ``polling`` when no WebSocket gets through and it goes on by asking every now and then.
        report: what a sync did, a `SyncReport`.
        changed: the ids of entities and edges whose row on the server became known.
        notices: with news, what the server wants people to know and nobody was shown yet; those of a sync are in its
            report.
        reason: why it is offline or polling, in a sentence.
        retry_s: in how many seconds it is tried again.
    """

    kind: Literal["synced", "news", "offline", "polling"]
    report: Any = None
    changed: tuple[str, ...] = ()
    notices: tuple[Notice, ...] = ()
    reason: str = ""
    retry_s: float | None = None


class _Frame(Struct):
    """What is looked at of a frame: whether it is news, a problem, or the server's goodbye."""

    live: _Live | None = None
    type: Any = None
    status: int = 200


class _Live(Struct):
    after: str | None = None


_frame = msgspec.json.Decoder(_Frame)


class _Here(connect):
    """Connects to the address that it was given, and to no other: what stands there could be anybody's."""

    def process_redirect(self, exc: Exception) -> Exception:
        return exc


class SocketTransport:
    """A transport over one WebSocket. What comes without being asked for waits in `hear`.

    Args:
        http: for what is no sync message, and for whose server and token it is.
    """

    def __init__(self, http: HttpTransport, socket: ClientConnection) -> None:
        self.registry_revision: str | None = None
        self._http = http
        self._socket = socket
        self._news: deque[tuple[str | None, bytes]] = deque()

    @classmethod
    async def open(cls, http: HttpTransport, offer: tuple[str, ...]) -> Self:
        """Connect, offering these wire versions, best first.

        Raises:
            Blocked: there is no WebSocket to be had here.
            Unauthorized: the token is no good.
            Unreachable: nobody answers, or not now.
        """
        headers = {} if http.credential is None else {"Authorization": f"Bearer {http.credential}"}
        where = http.origin
        try:
            socket = await _Here(
                http.base.replace("http", "ws", 1) + SOCKET_PATH,
                subprotocols=[*offer, BOOTSTRAP],  # type: ignore[list-item]
                additional_headers=headers,
                user_agent_header=http.agent,
                open_timeout=OPEN_SECONDS,
                max_size=FRAME_BYTES_MAX,
                compression=None,  # a few bytes may become gigabytes
                proxy=None,  # a proxy named in the environment would see the token
            )
        except InvalidStatus as error:
            status = error.response.status_code
            if status in (401, 403):
                raise refused(status, bytes(error.response.body or b""), where=where, secret=http.credential) from error
            if status in (408, 429, 500, 502, 503, 504):
                raise Unreachable(f"{where} answered {status} to a WebSocket") from error
            raise Blocked(f"{where} answered {status} where a WebSocket was asked for") from error
        except (InvalidHandshake, InvalidURI) as error:
            raise Blocked(f"what answers at {where} is no WebSocket: {type(error).__name__}") from error
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"cannot reach {where}: {type(error).__name__}") from error
        if socket.subprotocol is not None and socket.subprotocol not in (*offer, BOOTSTRAP):
            await socket.close(1002)
            raise Blocked(f"{where} chose a subprotocol that was not offered")
        return cls(http, socket)

    async def post(self, path: str, body: bytes) -> bytes:
        """See `Transport.post`; news that come in between are kept for `hear`."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                with suppress(ConnectionClosed):  # what it said before it hung up is still to be read
                    await self._socket.send(body.decode())
                while True:
                    frame, raw = await self._next()
                    if frame.live is None:
                        break
                    self._news.append((frame.live.after, raw))
        except TimeoutError:
            raise Unreachable(f"{self._http.origin} did not answer within {ANSWER_SECONDS:g} s") from None
        if frame.status >= 400:
            raise refused(frame.status, raw, where=self._http.origin, secret=self._http.credential)
        return raw

    async def get(self, path: str) -> bytes:
        """See `Transport.get`."""
        return await self._http.get(path)

    async def hear(self, seconds: float) -> tuple[str | None, bytes] | None:
        """The next news, and after which cursor they come; None if there were none for so many seconds.

        Raises:
            Gone: the connection has ended.
        """
        if self._news:
            return self._news.popleft()
        try:
            async with asyncio.timeout(seconds):
                frame, raw = await self._next()
        except TimeoutError:
            return None
        if frame.live is None:
            raise Gone(f"{self._http.origin} sent what nobody asked for")
        return frame.live.after, raw

    async def aclose(self) -> None:
        """Hang up."""
        with suppress(OSError, TimeoutError):
            await self._socket.close()

    async def _next(self) -> tuple[_Frame, bytes]:
        try:
            told = await self._socket.recv()
        except ConnectionClosed as error:
            closed = error.rcvd
            why = "without a word" if closed is None else f"with {closed.code} {closed.reason}".strip()
            raise Gone(f"{self._http.origin} ended the connection {why}") from error
        raw = told.encode() if isinstance(told, str) else told
        try:
            frame = _frame.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadAnswer(expected="a JSON object", got="something else") from error
        if frame.type == "unsupported_version":
            raise Blocked(f"{self._http.origin} speaks no version over WebSocket that this client does")
        if frame.type == "version_withdrawn":
            raise Gone(f"{self._http.origin} serves other wire versions now")
        return frame, raw


class Replica(Protocol):
    """What is kept live; `BlowingOffClient` is one."""

    @property
    def store(self) -> LocalStore:
        """Where it is kept."""

    def http(self) -> HttpTransport:
        """The transport to its server."""

    def offer(self) -> tuple[str, ...]:
        """The wire versions that it offers, best first."""

    async def exchange(self, transport: Transport) -> Any:
        """Sync over this transport; a `SyncReport`."""

    def hear(self, after: str | None, body: bytes) -> tuple[str, ...] | None:
        """Take in news; the ids they were about, None if something was missed."""

    def told(self) -> tuple[Notice, ...]:
        """What the server wants people to know and nobody was shown yet."""


class Watch:
    """One replica, kept live.

    Args:
        look_s, poll_s, again_s: seconds between looks at what was changed here, between syncs without a WebSocket, and
            until one is tried again.
        sleep, uniform: replaced by tests.
    """

    def __init__(
        self,
        client: Replica,
        *,
        look_s: float = LOOK_SECONDS,
        poll_s: float = POLL_SECONDS,
        again_s: float = SOCKET_AGAIN_SECONDS,
        sleep: Sleep = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._client = client
        self._look_s = look_s
        self._poll_s = poll_s
        self._again_s = again_s
        self._sleep = sleep
        self._uniform = uniform
        self._tried = 0
        self._sent_n = 0  # the newest pending row that a sync has seen

    async def events(self) -> AsyncGenerator[Event, None]:
        """What happens, for ever. Ends only by being closed, or by an error that waiting does not mend.

        Raises:
            NotConnected: no server is known.
            Unauthorized: the server does not take the token; what waits is kept.
        """
        http = self._client.http()
        while True:
            live: SocketTransport | None = None
            try:
                live = await SocketTransport.open(http, self._client.offer())
                async for event in self._lived(live):
                    self._tried = 0
                    yield event
            except Blocked as error:
                yield Event(kind="polling", reason=str(error), retry_s=self._poll_s)
                async for event in self._polled(http):
                    yield event
            except Unauthorized:
                raise
            except (TransportError, RemoteProtocolError) as error:
                yield await self._offline(error)
            finally:
                if live is not None:
                    await live.aclose()

    async def _lived(self, live: SocketTransport) -> AsyncGenerator[Event, None]:
        yield await self._synced(live)
        while True:
            heard = await live.hear(self._look_s)
            if heard is not None:
                changed = self._taken(*heard)
                if changed is None:
                    yield await self._synced(live)
                elif (told := self._client.told()) or changed:
                    yield Event(kind="news", changed=changed, notices=told)
            if self._waits():  # also while there is always news
                yield await self._synced(live)

    async def _polled(self, http: HttpTransport) -> AsyncGenerator[Event, None]:
        waited = 0.0
        while waited < self._again_s:
            try:
                yield await self._synced(http)
                self._tried = 0
            except Unauthorized:
                raise
            except (TransportError, RemoteProtocolError) as error:
                yield await self._offline(error)
            # Not all at once, where many lost the same connection.
            pause = self._poll_s * self._uniform(0.5, 1.5)
            while pause > 0 and not self._waits():
                await self._sleep(min(pause, self._look_s))
                pause -= self._look_s
                waited += self._look_s

    async def _synced(self, transport: Transport) -> Event:
        while True:
            # Before, not after: what is made meanwhile may not be among what was sent.
            newest = self._client.store.newest_pending()
            try:
                report = await self._client.exchange(transport)
            except SyncRunning:
                await self._sleep(self._look_s)  # another process is at it
                continue
            self._sent_n = max(self._sent_n, newest)
            return Event(kind="synced", report=report)

    def _taken(self, after: str | None, body: bytes) -> tuple[str, ...] | None:
        """The ids that news were about; None if they do not start where this replica stands, or cannot be taken."""
        try:
            return self._client.hear(after, body)
        except (SyncRunning, RemoteProtocolError):
            return None  # a sync says what is the matter

    def _waits(self) -> bool:
        """Whether something was changed here since the last sync, or is to be acknowledged."""
        return bool(self._client.store.pending(1, self._sent_n) or notices.owed(self._client.store))

    async def _offline(self, error: InbetweeniesError) -> Event:
        """Wait, longer each time and never as long as all the others (full jitter)."""
        most = min(BACKOFF_MAX_SECONDS, BACKOFF_SECONDS * 2 ** min(self._tried, 16))
        self._tried += 1
        pause = self._uniform(0, most)
        await self._sleep(pause)
        return Event(kind="offline", reason=str(error), retry_s=round(pause, 3))
