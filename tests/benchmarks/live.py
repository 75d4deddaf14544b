"""Devices that stay connected: bare WebSockets, so that hardly anything here costs time."""

from __future__ import annotations

import json
import selectors
import socket
import struct
from types import TracebackType
from typing import Self

SECONDS = 120.0
_TEXT, _CLOSE = 0x81, 0x88


class Crowd:
    """So many connections that have each sent `request` and were answered."""

    def __init__(self, url: str, token: str, devices: int, request: bytes) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._address = host, int(port)
        self._token = token
        self._devices = devices
        self._connections: list[Connection] = []
        self.join(request)

    def join(self, request: bytes) -> None:
        """Connect, and ask once."""
        self._connections = [Connection(self._address, self._token) for _ in range(self._devices)]
        for connection in self._connections:
            connection.say(request)
        self.heard(live=False)

    def leave(self) -> None:
        """Hang up, and wait until the server has."""
        for connection in self._connections:
            connection.close()
        self._connections = []

    def heard(self, *, live: bool = True) -> None:
        """Wait until each has been told a message: news or an answer."""
        waiting = {connection.socket: connection for connection in self._connections}
        with selectors.DefaultSelector() as ready:
            for each in waiting:
                ready.register(each, selectors.EVENT_READ)
            while waiting:
                for key, _ in ready.select(SECONDS):
                    found = waiting[key.fileobj].told()  # type: ignore[index]
                    if found is not None:
                        assert live == (b'"live":' in found[:20]), found[:200]
                        assert not live or 1 == len(json.loads(found)["changes"])
                        ready.unregister(key.fileobj)
                        del waiting[key.fileobj]  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


class Connection:
    """One WebSocket, behind its handshake."""

    def __init__(self, address: tuple[str, int], token: str) -> None:
        self.socket = socket.create_connection(address, timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(
            b"GET /api/v1/sync/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            b"sec-websocket-protocol: inbetweenies-v2\r\nauthorization: Bearer %s\r\n\r\n" % token.encode()
        )
        self._got = bytearray()
        while b"\r\n\r\n" not in self._got:
            self._got += self.socket.recv(65536)
        if not self._got.startswith(b"HTTP/1.1 101"):
            raise RuntimeError(f"expected 101; got {bytes(self._got[:500])!r}")
        del self._got[: self._got.index(b"\r\n\r\n") + 4]

    def say(self, body: bytes) -> None:
        """Send one message, masked with zeros."""
        self._send(_TEXT, body)

    def told(self) -> bytes | None:
        """The next message, once all of it is there; one read at most."""
        self._got += self.socket.recv(65536)
        if len(self._got) < 2:
            return None
        size, start = self._got[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(self._got[2:start], "big")
        if len(self._got) < start + size:
            return None
        kind, body = self._got[0], bytes(self._got[start : start + size])
        del self._got[: start + size]
        return body if kind == _TEXT else None

    def close(self) -> None:
        """Say goodbye, and read to the end."""
        self._send(_CLOSE, b"\x03\xe8")
        while self.socket.recv(65536):
            pass
        self.socket.close()

    def _send(self, kind: int, body: bytes) -> None:
        size = len(body)
        head = struct.pack("!BB", kind, 0x80 | size) if size < 126 else struct.pack("!BBH", kind, 0x80 | 126, size)
        self.socket.sendall(head + bytes(4) + body)
