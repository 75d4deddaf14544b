"""Servers on a real socket that speak as deployed ones do, and one of ours that can stand at the same address."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from blowing_off.transport import Refused
from inbetweenies.asgi.discovery import registry_headers
from inbetweenies.model import Context
from inbetweenies.negotiation import DEPLOYED_DETAIL
from inbetweenies.router import ProtocolFallback
from inbetweenies.store import Store
from inbetweenies.stores.memory import MemoryStore
from tests.support import run

Answer = tuple[int, dict[str, str], bytes]


class Speaks(Protocol):
    def answer(self, method: str, path: str, body: bytes) -> Answer: ...


class DeployedV2:
    """What stands at the address is a deployed v2 server: it knows one version, and says so in one way only."""

    def __init__(self, fake: Any) -> None:
        self.fake = fake

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        if method == "POST" and path == "/api/v1/sync/":
            version = json.loads(body).get("protocol_version", "inbetweenies-v2")
            if version != "inbetweenies-v2":
                return told(400, {"detail": DEPLOYED_DETAIL})
        return asked(self.fake, method, path, body)


class DeployedV1:
    """A deployed v1 server: it has never heard of versions, and its common path answers something else altogether."""

    def __init__(self, fake: Any) -> None:
        self.fake = fake

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        if path.rsplit("/", 1)[-1] not in ("", "request", "push", "ack"):
            return told(404, {"detail": "Not Found"})
        return asked(self.fake, method, path, body)


class Ours:
    """A server of ours, as far as a sync sees it. Its store is kept when versions are switched."""

    def __init__(self, store: Store | None = None) -> None:
        self.fallback = ProtocolFallback(store or MemoryStore())
        self.asked: list[dict[str, Any]] = []

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        if method == "GET":
            return told(404, {"code": "not_found", "detail": "Not Found"})
        self.asked.append(json.loads(body))
        context = Context(now=self.fallback.clock(), user="home")
        reply = run(self.fallback.handle(body, context=context, path=path))
        headers = {name.decode(): value.decode() for name, value in registry_headers(self.fallback.registry)}
        return reply.status, headers, reply.body


def told(status: int, value: object) -> Answer:
    return status, {}, json.dumps(value).encode()


def asked(fake: Any, method: str, path: str, body: bytes) -> Answer:
    """What a fake says, in the words of a deployed server."""
    if method == "GET" and path == "/health":
        return told(200, {"status": "healthy"})
    try:
        return 200, {}, run(fake.get(path) if method == "GET" else fake.post(path, body))
    except Refused as error:
        return told(error.status, {"detail": error.detail or "Not Found"})


class Address:
    """One address at which one server after another can stand. `seen` lists what was asked."""

    def __init__(self, speaks: Speaks) -> None:
        self.speaks = speaks
        self.seen: list[tuple[str, str]] = []
        self.url = ""

    def versions(self) -> list[str]:
        """The last part of each path that was asked, for short."""
        return [path.removeprefix("/api/v1/") for _, path in self.seen]


@contextmanager
def standing(speaks: Speaks) -> Iterator[Address]:
    """A server on a thread of its own, and a socket of its own."""
    address = Address(speaks)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            address.seen.append((self.command, self.path))
            status, headers, answer = address.speaks.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = serve  # noqa: N815 - what the library calls them

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        address.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield address
        finally:
            server.shutdown()
            thread.join()
