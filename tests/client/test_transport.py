"""HTTP: whatever a server does, a request ends with bytes that can be used or with one error that says what to do."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blowing_off.transport import (
    BadAnswer,
    HttpTransport,
    Refused,
    TransportError,
    Unauthorized,
    Unreachable,
    origin_of,
    refused,
)
from inbetweenies.errors import InbetweeniesError, LocalProtocolError, RemoteProtocolError

TOKEN = "ib1_canary-0123456789"
OK = b'{"fine":true}'


class Evil:
    """A server of raw sockets: `script` holds what it does with each connection, the last for all that follow."""

    def __init__(self, *script: Callable[[Evil, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.script = list(script)
        self.connections = 0
        self.requests: list[bytes] = []
        self.url = ""
        self.asked = asyncio.Event()
        self.tasks: set[asyncio.Task[Any]] = set()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        self.requests.append(head + await reader.readexactly(length))
        self.asked.set()
        return self.requests[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        act = self.script[min(self.connections, len(self.script) - 1)]
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await act(self, reader, writer)
        writer.close()


Act = Callable[[Evil, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(*script: Act) -> AsyncIterator[Evil]:
    evil = Evil(*script)
    server = await asyncio.start_server(evil.serve, "127.0.0.1", 0)
    evil.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield evil
    finally:
        server.close()
        for task in evil.tasks:
            task.cancel()
        await asyncio.gather(*evil.tasks)
        await server.wait_closed()


def answer(body: bytes = OK, status: str = "200 OK", kind: str = "application/json", **headers: str) -> bytes:
    fields = {
        "content-type": kind,
        "content-length": str(len(body)),
        **{k.replace("_", "-"): v for k, v in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def says(*parts: bytes) -> Act:
    """Answers every request of a connection with `parts`, and then the next."""

    async def act(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await evil.request(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()

    return act


def says_once(*parts: bytes) -> Act:
    """Answers one request and closes the connection."""

    async def act(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await evil.request(reader)
        for part in parts:
            writer.write(part)
            await writer.drain()

    return act


def endlessly(head: bytes, part: bytes) -> Act:
    async def act(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await evil.request(reader)
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    return act


async def silent(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await evil.request(reader)
    await reader.read()


async def hangs_up(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await evil.request(reader)


class Naps:
    """In place of sleeping and of chance: remembers how long it would have been."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.ranges: list[tuple[float, float]] = []

    async def sleep(self, seconds: float) -> None:
        self.taken.append(seconds)

    def uniform(self, low: float, high: float) -> float:
        self.ranges.append((low, high))
        return high


def transport(url: str, **settings: Any) -> HttpTransport:
    naps = settings.pop("naps", None) or Naps()
    defaults = {"timeout_s": 30, "wire_bytes_max": 100_000, "decoded_bytes_max": 100_000}
    return HttpTransport(url, TOKEN, sleep=naps.sleep, uniform=naps.uniform, **{**defaults, **settings})


async def post(evil: Evil, body: bytes = b"{}", **settings: Any) -> bytes:
    async with transport(evil.url, **settings) as http:
        return await http.post("/api/v1/sync/", body)


# --- what works ---------------------------------------------------------------------------------------------------


async def test_bytes_go_out_and_come_back() -> None:
    async with serving(says(answer())) as evil:
        assert OK == await post(evil, b'{"a":1}')
    head, _, body = evil.requests[0].partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")

    assert b"post /api/v1/sync/ http/1.1" == lines[0]
    assert b"content-type: application/json" in lines
    assert b"accept-encoding: gzip, identity" in lines
    assert f"authorization: bearer {TOKEN}".encode() in lines
    assert b'{"a":1}' == body


async def test_get_sends_no_body() -> None:
    async with serving(says(answer())) as evil, transport(evil.url + "/base/") as http:
        assert OK == await http.get("/api/v1/graph/relationships")

    assert evil.requests[0].startswith(b"GET /base/api/v1/graph/relationships HTTP/1.1")


async def test_gzip_is_inflated_whatever_the_pieces() -> None:
    packed = gzip.compress(OK)
    pieces = [f"1\r\n{chr(byte)}\r\n".encode("latin-1") for byte in packed]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n"
    head += b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
    async with serving(says(head, *pieces, b"0\r\n\r\n")) as evil:
        assert OK == await post(evil)


async def test_one_connection_serves_many_requests() -> None:
    async with serving(says(answer())) as evil, transport(evil.url) as http:
        for _ in range(3):
            assert OK == await http.post("/x", b"{}")

    assert (1, 3) == (evil.connections, len(evil.requests))


# --- evil servers -------------------------------------------------------------------------------------------------

BOMB = gzip.compress(bytes(50_000_000))
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"

BAD: dict[str, tuple[Act, str]] = {
    "an endless body": (endlessly(CHUNKED, b"1000\r\n" + b" " * 4096 + b"\r\n"), "at most 100000 bytes"),
    "a body that says it is too long": (says(answer(b"", content_length="100000000")), "got 100000000 bytes"),
    "a gzip bomb": (says(answer(BOMB, content_encoding="gzip")), "at most 100000 bytes"),
    "a bomb in a bomb": (says(answer(gzip.compress(BOMB), content_encoding="gzip, gzip")), "no content encoding"),
    "another encoding": (says(answer(zlib.compress(OK), content_encoding="deflate")), "no content encoding"),
    "a part of gzip": (says(answer(gzip.compress(OK)[:-9], content_encoding="gzip")), "gzip data to its end"),
    "gzip and then more": (says(answer(gzip.compress(OK) + b"x", content_encoding="gzip")), "nothing after the gzip"),
    "no gzip at all": (says(answer(OK, content_encoding="gzip")), "bytes that are none"),
    "a page of a hotel": (says(answer(b"<html>", kind="text/html")), "an HTML page"),
    "another type": (says(answer(OK, kind="text/plain")), "another type"),
    "another character set": (says(answer(OK, kind="application/json; charset=latin-1")), "another type"),
    "no type": (says(answer(OK, kind="")), "no content type"),
    "no length": (says_once(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + OK), "whose length is told"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_answer_is_an_error_that_says_what_was_wrong(kind: str) -> None:
    act, text = BAD[kind]
    async with serving(act) as evil:
        with pytest.raises(BadAnswer, match=text) as caught:
            await post(evil)

    assert isinstance(caught.value, RemoteProtocolError)
    assert f"POST {evil.url}/api/v1/sync/" in str(caught.value)
    assert TOKEN not in repr(caught.value)
    assert 1 == len(evil.requests)


BROKEN: dict[str, Act] = {
    "a drip": endlessly(CHUNKED, b"1\r\n \r\n"),
    "silence": silent,
    "endless headers": endlessly(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_whatever_takes_too_long_ends_at_the_deadline(kind: str) -> None:
    async with serving(BROKEN[kind]) as evil:
        with pytest.raises((Unreachable, BadAnswer)):
            await post(evil, timeout_s=0.2, wire_bytes_max=2**40, decoded_bytes_max=2**40)


GONE: dict[str, Act] = {
    "a connection that is closed at once": hangs_up,
    "a body that ends early": says_once(answer(OK, content_length="1000")),
    "no HTTP": says_once(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
}


@pytest.mark.parametrize("kind", GONE)
async def test_a_connection_that_ends_early_is_tried_again_and_then_told(kind: str) -> None:
    naps = Naps()
    async with serving(GONE[kind]) as evil:
        with pytest.raises(Unreachable, match="a connection that ended early, or no HTTP") as caught:
            await post(evil, naps=naps)

    assert caught.value.retry
    assert (4, 5) == (len(naps.taken), len(evil.requests))


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_named_and_not_followed(status: str) -> None:
    async with serving(says(answer(b"", status, location="https://evil.example/?q=1"))) as evil:
        with pytest.raises(Refused, match=r"redirects to another host.*not followed") as caught:
            await post(evil)

    assert "redirected" == caught.value.code
    assert "evil" not in str(caught.value)
    assert 1 == len(evil.requests)


@pytest.mark.parametrize(
    ("location", "text"),
    [("https://127.0.0.1/", "https on the same host"), ("/elsewhere", "the same host"), ("", "another place")],
)
async def test_a_redirect_says_where_it_goes_to_in_words(location: str, text: str) -> None:
    async with serving(says(answer(b"", "307 Temporary", location=location))) as evil:
        with pytest.raises(Refused, match=text):
            await post(evil)


async def test_nobody_there_is_unreachable() -> None:
    async with serving(silent) as evil:
        pass
    with pytest.raises(Unreachable, match=r"expected an answer; got no connection\. Nothing is lost here"):
        await post(evil)


async def test_a_server_without_tls_is_no_secure_server() -> None:
    async def plain(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer())

    async with serving(plain) as evil:
        with pytest.raises(Unreachable):
            await post_to(evil.url.replace("http", "https"))


async def post_to(url: str) -> bytes:
    async with transport(url) as http:
        return await http.post("/x", b"{}")


async def test_a_certificate_that_cannot_be_verified_is_not_tried_again() -> None:
    naps = Naps()

    async def untrusted(request: httpx.Request) -> httpx.Response:
        cause = ssl.SSLCertVerificationError(1, "self-signed certificate")
        raise httpx.ConnectError("certificate verify failed", request=request) from cause

    http = HttpTransport("https://home.example", TOKEN, sleep=naps.sleep, http=httpx.MockTransport(untrusted))
    with pytest.raises(Unreachable, match="a certificate that can be verified") as caught:
        await http.post("/x", b"{}")
    await http.aclose()

    assert (False, []) == (caught.value.retry, naps.taken)


# --- refusals -----------------------------------------------------------------------------------------------------


async def test_a_problem_is_told_with_its_fields() -> None:
    problem = json.dumps(
        {"code": "version_disabled", "detail": "Unsupported protocol version", "supported": ["inbetweenies-v1", 7]}
    ).encode()
    async with serving(says(answer(problem, "400 Bad", "application/problem+json"))) as evil:
        with pytest.raises(Refused) as caught:
            await post(evil)
    error = caught.value

    assert (400, "version_disabled", ("inbetweenies-v1",)) == (error.status, error.code, error.supported)
    assert "The server speaks inbetweenies-v1; update the older side." in str(error)


@pytest.mark.parametrize("status", ["401 No", "403 No"])
async def test_a_wrong_token_is_its_own_error_and_not_tried_again(status: str) -> None:
    naps = Naps()
    async with serving(says(answer(b'{"detail":"Not authenticated"}', status))) as evil:
        with pytest.raises(Unauthorized, match=r"Not authenticated.*Get a valid token") as caught:
            await post(evil, naps=naps)

    assert [] == naps.taken
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "body", [b"Internal Server Error", b"\xff\xfe", b"", b'{"detail":[{"msg":"x"}]}', b"[" * 99_000]
)
async def test_a_refusal_needs_no_legible_body(body: bytes) -> None:
    async with serving(says(answer(body, "500 Oops", "text/plain"))) as evil:
        with pytest.raises(Refused, match="got 500 server_error") as caught:
            await post(evil)

    assert "" == caught.value.detail
    assert 1 == len(evil.requests)


@given(
    st.integers(400, 599),
    st.binary(max_size=200) | st.from_regex(rb'\{"(code|detail|supported)":.{0,40}\}', fullmatch=True),
)
def test_any_refusal_can_be_told(status: int, body: bytes) -> None:
    error = refused(status, body)

    assert str(error).isprintable()
    assert len(str(error)) < 1_200


# --- again --------------------------------------------------------------------------------------------------------


async def test_a_busy_server_is_asked_again_with_growing_waits() -> None:
    naps = Naps()
    busy = says_once(answer(b"{}", "503 Busy", connection="close"))
    async with serving(busy, busy, busy, says(answer())) as evil:
        assert OK == await post(evil, naps=naps)

    assert [(0, 1.0), (0, 2.0), (0, 4.0)] == naps.ranges
    assert [1.0, 2.0, 4.0] == naps.taken


async def test_there_are_only_so_many_tries() -> None:
    naps = Naps()
    async with serving(says(answer(b"{}", "429 Slow"))) as evil:
        with pytest.raises(Refused, match="too_many_requests"):
            await post(evil, naps=naps, tries_max=3)

    assert (3, 2) == (len(evil.requests), len(naps.taken))


async def test_a_server_that_asks_for_time_is_given_it() -> None:
    naps = Naps()
    busy = says_once(answer(b"{}", "503 Busy", connection="close", retry_after="7"))
    async with serving(busy, says(answer())) as evil:
        assert OK == await post(evil, naps=naps)

    assert [8.0] == naps.taken


async def test_more_time_than_there_is_ends_the_exchange_and_says_how_long() -> None:
    naps = Naps()
    async with serving(says(answer(b"{}", "503 Busy", retry_after="999999"))) as evil:
        with pytest.raises(Refused, match="It asks to wait 3600 s") as caught:
            await post(evil, naps=naps)

    assert (3600.0, []) == (caught.value.retry_after, naps.taken)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Mon, 15 Jun 2026 09:41:30 GMT", 28.0),
        ("Mon, 15 Jun 2026 09:00:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("²", None),
    ],
)
async def test_a_date_to_come_back_at_counts_from_the_servers_clock(text: str, seconds: float | None) -> None:
    busy = answer(b"{}", "503 Busy", retry_after=text, date="Mon, 15 Jun 2026 09:41:02 GMT")
    async with serving(says(busy)) as evil:
        with pytest.raises(Refused) as caught:
            await post(evil, tries_max=1)

    assert seconds == caught.value.retry_after


async def test_a_stale_connection_is_replaced_at_once() -> None:
    """A deployed server closes the connection after a 500 only when the next request is on its way."""
    naps = Naps()

    async def closes_late(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await evil.request(reader)
        writer.write(answer())
        await evil.request(reader)

    async with serving(closes_late, says(answer())) as evil, transport(evil.url, naps=naps) as http:
        assert OK == await http.post("/x", b"1")
        assert OK == await http.post("/x", b"2")

    assert ([], 2, 3) == (naps.taken, evil.connections, len(evil.requests))


async def test_the_last_reason_is_told_when_time_runs_out() -> None:
    async def forever(seconds: float) -> None:
        await asyncio.Event().wait()

    async with serving(says(answer(b"{}", "503 Busy"))) as evil:
        http = HttpTransport(evil.url, sleep=forever, uniform=lambda low, high: low, timeout_s=0.2)
        with pytest.raises(Refused, match="unavailable"):
            await http.post("/x", b"{}")
        await http.aclose()


async def test_cancelling_is_not_swallowed() -> None:
    async with serving(silent) as evil:
        task = asyncio.create_task(post(evil))
        await evil.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- addresses and tokens -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "home.example",
        "ftp://home.example",
        "file:///etc/passwd",
        "https://",
        "http://[",
        "https://a:99999999",
        "https://a b",
        "https://a%00b",
        "https://u:p@home.example",
        "https://home.example?token=canary-7",
        "https://home.example#canary-7",
    ],
)
def test_an_address_that_is_none_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(LocalProtocolError, match="the server's address") as caught:
        HttpTransport(url)

    assert "canary" not in str(caught.value)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://home.example", "http://192.168.1.2:8000", "http://0.0.0.0", "http://localhost.evil"]
)
def test_plain_http_to_another_machine_must_be_meant(url: str) -> None:
    with pytest.raises(LocalProtocolError, match="expected https://"):
        HttpTransport(url)

    assert HttpTransport(url, insecure=True).origin.startswith("http://")


@pytest.mark.parametrize(
    "url", ["http://localhost:8000", "http://127.0.0.1", "http://[::1]:1", "http://x.localhost", "https://a"]
)
def test_plain_http_to_this_machine_is_fine(url: str) -> None:
    assert HttpTransport(url).origin


def test_an_origin_is_scheme_host_and_port() -> None:
    assert "https://home.example:443" == origin_of("https://HOME.example/base") == origin_of("https://home.example:443")
    assert origin_of("https://home.example") != origin_of("https://home.example:8443")


@pytest.mark.parametrize("token", ["", "a b", "a\nb", "é", "x" * 5_000])
def test_a_token_that_no_header_can_hold_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(LocalProtocolError, match="expected a token") as caught:
        HttpTransport("https://home.example", token)

    assert not token or token not in str(caught.value)


async def test_the_token_goes_to_its_own_origin_only() -> None:
    http = HttpTransport("https://home.example", TOKEN)
    auth = http._client.auth
    assert auth is not None

    def headers(url: str) -> str | None:
        request = next(auth.auth_flow(httpx.Request("POST", url)))
        value: str | None = request.headers.get("authorization")
        return value

    assert f"Bearer {TOKEN}" == headers("https://home.example/x")
    for other in ("http://home.example/x", "https://home.example:8443/x", "https://evil.example/x"):
        assert headers(other) is None
    assert TOKEN not in repr(http)
    assert TOKEN not in repr(vars(http))
    await http.aclose()


async def test_proxies_of_the_environment_are_not_used_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(says(answer(b'{"proxy":1}'))) as proxy, serving(says(answer())) as evil:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert OK == await post(evil)
        assert [] == proxy.requests

        assert b'{"proxy":1}' == await post(evil, trust_env=True)


async def test_a_path_that_fits_in_no_url_is_this_sides_fault() -> None:
    http = HttpTransport("https://home.example")
    with pytest.raises(LocalProtocolError, match="a path that fits"):
        await http.get("/" + "x" * 100_000)
    await http.aclose()


def test_every_error_is_one_of_ours() -> None:
    for error in (Unreachable, Refused, Unauthorized, BadAnswer):
        assert issubclass(error, TransportError)
        assert issubclass(error, InbetweeniesError)
