"""Serving: uvicorn, with the bounds that it lacks.

What an application sees of a request begins after the headers, and of an answer ends before the peer has read it; so
slow headers, huge headers and peers that do not read can only be dealt with here.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
from asyncio import TimerHandle
from collections.abc import Callable, Iterator
from functools import partial

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ..auth import is_loopback
from ..errors import LocalProtocolError, RemoteProtocolError
from ..negotiation import problem
from .application import App
from .frames import BoundedSocket, Impatient
from .http import Headers, encode


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
        LocalProtocolError: `app` lets everybody in, and `host` is not this machine alone.
        ImportError: the extra is not installed.
    """
    if not app.auth and not is_loopback(host):
        raise LocalProtocolError(f"without auth: expected a loopback host such as 127.0.0.1; got {host}")
    bounds = app.bounds
    config = uvicorn.Config(
        app,
        http=type("Protocol", (BoundedProtocol,), {"bounds": bounds, "told": staticmethod(app.registry_headers)}),
        ws=type("Socket", (BoundedSocket,), {"bounds": bounds, "hold": staticmethod(app.hold)}),
        ws_max_size=app.router.limits.body_bytes_max,
        ws_per_message_deflate=False,  # 75 KB a connection, and a few bytes may become gigabytes
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
    # Named as TCP, or asyncio does not switch off Nagle's algorithm, and every answer takes 40 ms.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(config.backlog)
        name = f"[{host}]" if family == socket.AF_INET6 else host
        line = f"listening on http://{name}:{listener.getsockname()[1]}"

        Server(config, partial(announce or _print, line)).run(sockets=[listener])


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Server(uvicorn.Server):
    """uvicorn's server, which says when it listens and ends in order when it is told to."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], object]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called once the lifespan has begun; on return, connections are accepted."""
        await super().startup(sockets)
        self._announce()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not uvicorn's own, which raises the signal once more at the end: an orderly end is no crash."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread hears signals
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class BoundedProtocol(Impatient, HttpToolsProtocol):
    """One connection. uvicorn's HTTP protocol, with bounds on headers and on how long a peer may not read."""

    told: Callable[[], Headers] = staticmethod(tuple)  # what every answer says of the wire versions that are served
    _timer: TimerHandle | None = None  # until the headers of the next request are complete
    _messages = 0  # begun on this connection
    _in_head = False
    _head_bytes = 0  # received of this head, in whole segments
    _field_bytes = 0  # of this head, in what the parser has handed over
    _body_bytes = 0  # of this body
    _framing_bytes = 0  # received around this body: chunk sizes, extensions, trailers
    _over = False  # refused; nothing more is looked at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.stop_stall()
        super().connection_lost(exc)

    # what a peer sends

    def data_received(self, data: bytes) -> None:
        messages, in_head, body = self._messages, self._in_head, self._body_bytes
        super().data_received(data)
        if messages != self._messages:
            return  # of a segment in which a message began, nobody knows how much belongs to which
        if self._in_head:
            # The parser hands over whole fields only, and keeps what it has of one however long it grows.
            self._head_bytes += len(data)
            if self._head_bytes > self.bounds.header_bytes_max:
                self._refuse_headers()
        elif not in_head:
            self._framing_bytes += len(data) - (self._body_bytes - body)
            # A megabyte in chunks of one byte is a million calls; trailers are kept by the parser like headers.
            if self._framing_bytes > self.bounds.header_bytes_max + self._body_bytes:
                self._refuse(400, "malformed_request", "a body larger than what frames it", "a smaller one")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._messages += 1
        self._in_head = True
        self._head_bytes = self._field_bytes = self._body_bytes = self._framing_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._field_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # A trailer is no header: it comes when everything was decided by the headers.
        if self._in_head:
            super().on_header(name, value)
            self._field_bytes += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if self._field_bytes > self.bounds.header_bytes_max or len(self.headers) > self.bounds.headers_max:
            self._refuse_headers()
        elif not self._unambiguous():
            expected = "HTTP/1.1 with one Host and no transfer coding but chunked, or HTTP/1.0 without any"
            self._refuse(400, "malformed_request", expected, "something else")
        if not self._over:
            super().on_headers_complete()

    def _unambiguous(self) -> bool:
        """RFC 9112 3.2, 6.1: whether every parser on the way reads the same in this head. Ours lets more pass."""
        version = self.parser.get_http_version()
        hosts = sum(name == b"host" for name, _ in self.headers)
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if version == "1.1":
            return hosts == 1 and codings in ([], [b"chunked"])
        return version == "1.0" and hosts < 2 and not codings

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
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
        self._timer = self.loop.call_later(self.bounds.header_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_headers(self) -> None:
        expected = f"headers of at most {self.bounds.header_bytes_max} bytes and {self.bounds.headers_max} fields"
        self._refuse(431, "headers_too_large", expected, "more")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "malformed_request", "HTTP/1.1", "something else")

    def _refuse(self, status: int, code: str, expected: str, got: str) -> None:
        """Answer before there is a request that the application could see, and hang up."""
        if self._over:
            return
        self._over = True
        told = problem(RemoteProtocolError(code=code, expected=expected, got=got)) | {"status": status}
        body = encode(told)
        versions = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in self.told())
        head = (
            f"HTTP/1.1 {status} {told['title']}\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\n{versions}inbetweenies-version: none\r\nconnection: close\r\n\r\n"
        )
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            # Never into the middle of an answer, which the peer would take for a part of it.
            self.transport.write(head.encode() + body)
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
