"""Serving on real sockets: HTTP that is none, peers that are slow, large or gone, and an orderly end (PROTOCOL 2.5)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from inbetweenies.asgi import app, serving
from inbetweenies.errors import LocalProtocolError
from tests.server.calls import Process, entity, read_all, running, sync, write

QUICK = """
import socket, sys
from inbetweenies.asgi import ServerLimits, app, run
from inbetweenies.asgi import serving
from inbetweenies.stores import MemoryStore
bounds = ServerLimits(header_seconds=float(sys.argv[1]), stall_seconds=float(sys.argv[2]))
class Told(serving.BoundedProtocol):
    def connection_made(self, transport):
        super().connection_made(transport)
        if "nodelay" in sys.argv:
            option = transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            print("nodelay", option != 0, flush=True)
    def connection_lost(self, exc):
        super().connection_lost(exc)
        print("lost", flush=True)
serving.BoundedProtocol = Told
run(app(MemoryStore(), auth=False, bounds=bounds), port=0)
"""


@pytest.fixture(scope="module")
def patient() -> Iterator[Process]:
    """A server whose deadlines no test reaches."""
    with running(["-c", QUICK, "60", "60"]) as server:
        yield server


@pytest.fixture(scope="module")
def impatient() -> Iterator[Process]:
    """A server that does not wait for long."""
    with running(["-c", QUICK, "0.5", "0.5"]) as server:
        yield server


def head(raw: bytes) -> tuple[int, bytes]:
    """Status and body of the first answer in `raw`."""
    top, _, body = raw.partition(b"\r\n\r\n")
    return int(top.split(b" ", 2)[1]), body


ASK = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (ASK + b"\r\n", 200),
        (b"\r\n" + ASK + b"\r\n", 200),
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /health HTTP/9.9\r\n\r\n", 400),
        (b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"CONNECT nowhere:1 HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (ASK + b"no colon\r\n\r\n", 400),
        (ASK + b"na\x00me: x\r\n\r\n", 400),
        (ASK + b"name: x\x00y\r\n\r\n", 400),
        (b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: 5x\r\n\r\n", 400),
        (b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde", 400),
        (
            b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
            400,
        ),
        (b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n\r\n", 400),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"GET /health\r\n\r\n", 400),
        (b"GET /health HTTP/2.0\r\nhost: x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (ASK + b"host: y\r\n\r\n", 400),
        (ASK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (ASK + b"transfer-encoding: Chunked\r\n\r\n0\r\n\r\n", 200),
        (b"GET /health HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (ASK + b"upgrade: websocket\r\n\r\n", 200),
    ],
)
def test_http_that_is_none_is_refused_and_the_connection_closed(patient: Process, raw: bytes, status: int) -> None:
    told, body = head(patient.exchange(raw))

    assert told == status
    assert isinstance(json.loads(body), dict)


def test_a_websocket_handshake_to_another_path_is_not_taken_up(patient: Process) -> None:
    raw = (
        b"GET /api/v1/sync/ HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )

    assert head(patient.exchange(raw))[0] == 404


@pytest.mark.parametrize(
    "headers",
    [
        b"x: " + b"a" * 33_000 + b"\r\n",
        b"x" * 33_000 + b": a\r\n",
        b"".join(b"x%d: a\r\n" % number for number in range(101)),
        b"".join(b"x%d: %s\r\n" % (number, b"a" * 1000) for number in range(40)),
    ],
)
def test_headers_that_are_too_large_are_refused(patient: Process, headers: bytes) -> None:
    status, body = head(patient.exchange(ASK + headers + b"\r\n"))

    assert (status, json.loads(body)["code"]) == (431, "headers_too_large")


def test_headers_that_never_end_are_cut_off_while_they_grow(patient: Process) -> None:
    with patient.connect() as connection:
        connection.sendall(ASK + b"x: ")
        sent = 0
        try:
            # Much more than the bound and all that lies in between; the parser would keep it all.
            while sent < 64 * 2**20:
                sent += connection.send(b"a" * 65536)
        except OSError:
            pass

    assert sent < 64 * 2**20


def test_headers_within_the_bounds_pass_with_a_large_body_in_the_same_segment(patient: Process) -> None:
    body = json.dumps(sync(write(entity("large", "v1", content={"x": "y" * 100_000})))).encode()
    raw = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n" % len(body)

    status, told = head(patient.exchange(raw + b"y: " + b"b" * 30_000 + b"\r\n\r\n" + body))

    assert (status, json.loads(told)["applied"]) == (200, ["large"])


def test_requests_in_a_row_on_one_connection_are_all_answered(patient: Process) -> None:
    keep = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"

    raw = patient.exchange(keep * 20 + ASK + b"\r\n")

    assert raw.count(b"HTTP/1.1 200") == 21


def test_a_chunked_body_is_read_and_its_trailers_are_no_headers(patient: Process) -> None:
    body = json.dumps(sync()).encode()
    raw = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"%x\r\n%s\r\n" % (len(body), body)

    status, _ = head(patient.exchange(raw + chunks + b"0\r\ncontent-encoding: gzip\r\n\r\n"))

    assert status == 200


@pytest.mark.parametrize("flood", [b"1\r\n \r\n" * 100_000, b"1;" + b"x" * 5_000_000, b"0\r\nx: " + b"y" * 5_000_000])
def test_a_body_that_is_mostly_framing_is_cut_off(patient: Process, flood: bytes) -> None:
    raw = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with patient.connect() as connection:
        connection.sendall(raw)
        try:
            connection.sendall(flood)
            status, body = head(connection.recv(65536))
            assert (status, json.loads(body)["code"]) == (400, "malformed_request")
        except (ConnectionResetError, BrokenPipeError):
            pass  # cut off while it was still sending


def test_expect_100_continue_is_answered_only_by_who_wants_the_body(patient: Process) -> None:
    body = json.dumps(sync()).encode()
    top = b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"

    with patient.connect() as connection:
        connection.sendall(top % (b"/api/v1/sync/", len(body)))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert head(read_all(connection))[0] == 200
    with patient.connect() as connection:
        connection.sendall(top % (b"/api/v1/sync/", 2**40))
        assert head(connection.recv(65536))[0] == 413


def test_a_body_that_is_cut_short_changes_nothing(patient: Process) -> None:
    body = json.dumps(sync(write(entity("cut", "v1")))).encode()
    raw = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (len(body) + 1)
    with patient.connect() as connection:
        connection.sendall(raw + body)

    history = httpx.get(patient.url + "/api/v1/graph/entities/cut/versions")

    assert history.status_code == 404


@pytest.mark.parametrize("beginning", [b"", b"GET /health HT", ASK + b"x: y", ASK.replace(b"close", b"keep-alive")])
def test_who_does_not_finish_its_headers_is_hung_up_on(impatient: Process, beginning: bytes) -> None:
    assert impatient.exchange(beginning) == b""


def test_who_finishes_one_request_and_not_the_next_is_hung_up_on(impatient: Process) -> None:
    raw = impatient.exchange(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /he")

    assert raw.count(b"HTTP/1.1 200") == 1


def test_an_endless_body_after_the_answer_ends_with_the_time_for_the_next_request(impatient: Process) -> None:
    raw = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n"
    with impatient.connect() as connection:
        connection.sendall(raw)
        try:
            while True:
                connection.sendall(b"x" * 65536)
        except OSError as error:
            assert not isinstance(error, TimeoutError)


def test_who_does_not_read_its_answer_is_cut_off() -> None:
    large = json.dumps(sync(write(entity("large", "v1", content={"x": "y" * 7_000_000})))).encode()
    small = json.dumps(sync()).encode()
    raw = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n"

    with running(["-c", QUICK, "60", "0.05"]) as server, server.connect() as connection:
        assert server.process.stdout is not None
        assert head(server.exchange(raw % len(large) + b"connection: close\r\n\r\n" + large))[0] == 200
        assert server.process.stdout.readline() == "lost\n"
        # Three answers do not fit into what the kernel keeps, whatever it is set to.
        connection.sendall((raw % len(small) + b"\r\n" + small) * 3)
        assert server.process.stdout.readline() == "lost\n"
        received = 0
        try:
            while piece := connection.recv(2**20):
                received += len(piece)
        except ConnectionResetError:
            pass

        assert received < 3 * len(large)


class Transport(asyncio.Transport):
    """A socket that takes everything that is written, and is read by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def test_a_head_is_not_charged_for_the_body_before_it() -> None:
    mine = app(auth=False)
    config = uvicorn.Config(mine, http=serving.BoundedProtocol, ws="none", log_config=None)
    config.load()
    state = ServerState()
    protocol, transport = serving.BoundedProtocol(config, state, {}), Transport()
    protocol.connection_made(transport)
    body = json.dumps(sync(write(entity("large", "v1", content={"x": "y" * 100_000})))).encode()
    first = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    second = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"

    # All of the one and half of the other in one segment.
    protocol.data_received(first + second[:20])
    await asyncio.wait(state.tasks)
    protocol.data_received(second[20:])
    await asyncio.wait(state.tasks)
    protocol.connection_lost(None)

    assert transport.written.count(b"HTTP/1.1 200") == 2


def test_who_reads_slowly_is_not_cut_off() -> None:
    class Unread:
        unread = 100
        aborted = False

        def get_write_buffer_size(self) -> int:
            return self.unread

        def abort(self) -> None:
            self.aborted = True

    class Timer:
        def cancel(self) -> None:
            pending.clear()

    class Loop:
        def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
            pending.append((seconds, call))
            return Timer()

    pending: list[tuple[float, Callable[[], None]]] = []
    transport = Unread()
    protocol = serving.BoundedProtocol.__new__(serving.BoundedProtocol)
    protocol.loop, protocol.transport = Loop(), transport  # type: ignore[assignment]
    protocol.flow = FlowControl(transport)  # type: ignore[arg-type]

    protocol.pause_writing()
    for unread in (99, 50):
        transport.unread = unread
        [(seconds, look)] = pending
        pending.clear()
        look()
        assert (seconds, transport.aborted) == (10, False)
    protocol.resume_writing()
    assert pending == []

    protocol.pause_writing()
    [(_, look)] = pending
    look()
    assert transport.aborted


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_without_auth_only_this_machine_is_served(host: str) -> None:
    with pytest.raises(LocalProtocolError, match="expected a loopback host"):
        serving.run(app(auth=False), host, 0)


def test_small_answers_are_sent_at_once() -> None:
    with running(["-c", QUICK, "60", "60", "nodelay"]) as server, server.connect():
        assert server.process.stdout is not None
        # Else the body of an answer waits until the other side has confirmed its headers.
        assert server.process.stdout.readline() == "nodelay True\n"


def test_a_request_that_is_under_way_is_finished_before_the_server_ends() -> None:
    body = json.dumps(sync()).encode()
    raw = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body)
    with running(["-c", QUICK, "60", "60"]) as server, server.connect() as connection:
        connection.sendall(raw)
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        server.process.terminate()
        # It listens no more, and still serves.
        while True:
            try:
                server.connect().close()
            except OSError:
                break
        connection.sendall(body)
        status, _ = head(read_all(connection))

        assert status == 200
        assert server.process.wait(30) == 0
