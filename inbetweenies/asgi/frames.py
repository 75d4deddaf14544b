"""WebSocket frames: uvicorn's protocol, with the bounds that it lacks.

An unfinished message holds memory as long as its peer likes, a message of many fragments many times its size, and what
a peer does not read is kept for it, answers to its pings too. Nothing here looks into a message.
"""

from __future__ import annotations

import asyncio
from asyncio import TimerHandle
from asyncio.transports import BaseTransport
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .http import ServerLimits

NO_UTF8: Final = 1007
LATE: Final = 1008
NO_ROOM: Final = 1013

PIECE_BYTES: Final = 16 * 1024  # are parsed at a time
#: In one piece; tens of thousands of pings or fragments in one segment would keep everybody waiting.
FRAMES_MAX: Final = 512


class Impatient:
    """Cuts off a peer that takes nothing of what is written for `stall_seconds`; before a protocol in its bases."""

    bounds = ServerLimits()
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stall: TimerHandle | None = None  # while there is something that the peer did not take
    _unread = 0  # bytes that it had not taken when that was looked at last

    def pause_writing(self) -> None:
        super().pause_writing()  # type: ignore[misc]
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()  # type: ignore[misc]
        self.stop_stall()

    def stop_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _watch(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self.bounds.stall_seconds, self._check)

    def _check(self) -> None:
        if self.transport.get_write_buffer_size() < self._unread:
            self._watch()
        else:
            self.transport.abort()


class BoundedSocket(Impatient, WebSocketsSansIOProtocol):
    """One connection, from the request for it to its end."""

    hold: Callable[[int], bool] = staticmethod(bool)  # counts what is held for all peers; False: no room
    _held = 0  # bytes of what is not a message yet
    _answering = 0  # bytes of the message that is being answered
    _late: TimerHandle | None = None  # until the message that has begun must be there

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.close_timeout = self.bounds.stall_seconds  # for the peer to say goodbye too
        self._rest = (
            bytearray()
        )  # of a message in fragments, all but the first: one may be a byte, and as an object is 50
        self._waiting: deque[int] = deque()  # bytes of each message that nobody has taken yet

    def connection_made(self, transport: BaseTransport) -> None:
        # Anything that is not taken at once counts as not read: else what is left of it keeps a connection for ever.
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._in_time()
        self.stop_stall()
        self.hold(-self._held - self._answering - sum(self._waiting))
        self._held = self._answering = 0
        self._waiting.clear()
        super().connection_lost(exc)

    # what a peer sends

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()  # no peer may go on before it was answered; the parser cannot take it
            return
        for start in range(0, len(data), PIECE_BYTES):
            super().data_received(data[start : start + PIECE_BYTES])
            if self.close_sent or self.transport.is_closing():
                return
        held = len(self.conn.reader.buffer) + sum(map(len, self.frames)) + len(self._rest)
        room = self.hold(held - self._held)
        self._held = held
        if not room:
            self._fail(NO_ROOM, "try again later")
        elif not held:
            self._in_time()
        elif self._late is None:
            self._late = self.loop.call_later(self.bounds.body_seconds, self._fail, LATE, "timeout")

    def handle_events(self) -> None:
        if len(self.conn.events) > FRAMES_MAX:
            self._fail(LATE, "frames too small")
        else:
            super().handle_events()

    def handle_cont(self, event: Any) -> None:
        self._rest += event.data
        if event.fin:
            self.frames.append(bytes(self._rest))
            self._rest.clear()
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        self._in_time()
        data = b"".join(self.frames)
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                data.decode()
            except UnicodeDecodeError:
                self.frames = []
                self._fail(NO_UTF8, "no UTF-8")
                return
        if not self.close_sent:
            self._waiting.append(len(data))
            if not self.hold(len(data)):
                self._fail(NO_ROOM, "try again later")
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        # Whoever asks for the next message is done with the one before.
        self.hold(-self._answering)
        self._answering = 0
        message = await super().receive()
        if message["type"] == "websocket.receive" and self._waiting:
            self._answering = self._waiting.popleft()
        if not self.writable.is_set():
            self.transport.pause_reading()
        return message

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _fail(self, code: int, reason: str) -> None:
        self._in_time()
        if self.close_sent or self.transport.is_closing():
            self.transport.close()
            return
        self.conn.fail(code, reason)
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.transport.close()

    # peers that do not read

    def pause_writing(self) -> None:
        super().pause_writing()
        # Who sends pings and reads no pongs would be kept all of them.
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()
