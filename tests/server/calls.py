"""What the server's tests share: calls straight into an ASGI application, and a real server process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

ROOT = Path(__file__).resolve().parents[2]
V2 = "inbetweenies-v2"
SYNC = "/api/v1/sync/"
JSON = ("content-type", "application/json")
GUARD_SECONDS = 30  # only ever reached when something hangs


# --- messages -----------------------------------------------------------------------------------------------------


def entity(id_: str, version: str, **fields: Any) -> dict[str, Any]:
    plain = {"entity_type": "device", "name": id_, "content": {}, "source_type": "manual", "user_id": "ann"}
    return {"id": id_, "version": version, **plain, **fields}


def edge(id_: str, one: dict[str, Any], other: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "id": id_,
        "from_entity_id": one["id"],
        "from_entity_version": one["version"],
        "to_entity_id": other["id"],
        "to_entity_version": other["version"],
        "relationship_type": "located_in",
        **fields,
    }


def sync(*changes: dict[str, Any], sync_type: str = "full", **fields: Any) -> dict[str, Any]:
    """A v2 message as deployed clients send it."""
    return {
        "protocol_version": V2,
        "device_id": "tablet",
        "user_id": "ann",
        "sync_type": sync_type,
        "vector_clock": {"clocks": {}},
        "changes": list(changes),
        **fields,
    }


def write(one: dict[str, Any], *edges: dict[str, Any], change_type: str = "update") -> dict[str, Any]:
    return {"change_type": change_type, "entity": one, "relationships": list(edges)}


# --- calls --------------------------------------------------------------------------------------------------------


class Response(Struct, frozen=True, kw_only=True):
    """What an application answered. `chunks` counts how often it asked for a piece of the body."""

    status: int
    headers: dict[str, str]
    body: bytes
    chunks: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def request(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    headers: Sequence[tuple[str | bytes, str | bytes]] = (),
    pieces: AsyncIterator[Any] | None = None,
    root_path: str = "",
    client: tuple[str, int] | None = ("192.0.2.1", 4711),
) -> Response | None:
    """One request without a socket. `pieces` yields raw ASGI messages in place of `body`. None if nothing was sent."""
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
    listed = [(_bytes(name).lower(), _bytes(value)) for name, value in headers]
    if token is not None:
        listed.append((b"authorization", b"Bearer " + token.encode()))
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": root_path,
        "query_string": query.encode(),
        "headers": listed,
        "client": client,
    }
    chunks = 0
    sent: list[Any] = []

    async def receive() -> Any:
        nonlocal chunks
        chunks += 1
        if pieces is not None:
            return await anext(pieces)
        return {"type": "http.request", "body": body or b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    if not sent:
        return None
    start, *rest = sent
    names = [name.decode("latin-1") for name, _ in start["headers"]]
    assert len(set(names)) == len(names), "a header is sent twice"
    return Response(
        status=start["status"],
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"]},
        body=b"".join(message.get("body", b"") for message in rest),
        chunks=chunks,
    )


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


# --- processes ----------------------------------------------------------------------------------------------------


class Process(Struct, frozen=True, kw_only=True):
    """A server that runs in a process of its own."""

    url: str
    address: tuple[str, int]
    process: subprocess.Popen[str]

    def connect(self) -> socket.socket:
        connection = socket.create_connection(self.address, timeout=GUARD_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def exchange(self, raw: bytes) -> bytes:
        """Send bytes, return all that comes until the server hangs up."""
        with self.connect() as connection:
            connection.sendall(raw)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


def environment() -> dict[str, str]:
    """Of this process, with the project on the path."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def running(arguments: Sequence[str], **variables: str) -> Iterator[Process]:
    """Run Python with `arguments`, wait for the line that says where it listens, stop it with SIGTERM at the end."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment() | variables,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        if not line.startswith("listening on http://"):
            process.kill()
            pytest.fail(f"the server did not start: {line}{process.stderr.read()}")
        url = line.removeprefix("listening on ").strip()
        host, _, port = url.removeprefix("http://").rpartition(":")
        yield Process(url=url, address=(host.strip("[]"), int(port)), process=process)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(GUARD_SECONDS) == 0, process.stderr.read()
        errors = process.stderr.read()
        assert "Traceback" not in errors, errors
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
