"""Asking a server what it is (PROTOCOL 5.10): whatever answers, a typed result comes back, and a sync goes on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blowing_off import BlowingOffClient, Discovery, NotConnected, Undiscovered
from blowing_off.discovery import discover
from blowing_off.transport import HttpTransport, TransportError, refused
from inbetweenies.asgi import app
from tests.client.test_client import Home, over_http
from tests.client.test_transport import Act, Evil, answer, endlessly, hangs_up, says, serving, silent
from tests.server.calls import request

OURS = {
    "service": "inbetweenies",
    "supported_versions": ["inbetweenies-v2", "inbetweenies-v1"],
    "preferred_version": "inbetweenies-v2",
    "registry_revision": "1-ab",
    "server_version": "1.0.0",
    "min_client_version": None,
    "latest_client_version": "1.2.0",
}
HTML = b"<html><body>Welcome to the airport. Please log in.</body></html>"
JSON = "application/json"


def ours(**fields: Any) -> bytes:
    return json.dumps({**OURS, **fields}).encode()


#: What stands at the address, and what becomes of asking it.
CASES: dict[str, tuple[Act, str]] = {
    "an HTML page": (says(answer(HTML, kind="text/html; charset=utf-8")), "not_json"),
    "an HTML page that says it is JSON": (says(answer(HTML)), "not_json"),
    "a login page of a network": (says(answer(HTML, "511 Network Authentication Required", "text/html")), "refused"),
    "a redirect to a login page": (
        says(answer(b"", "302 Found", "", location="http://login.example.org/?from=home")),
        "redirected",
    ),
    "a redirect elsewhere": (
        says(answer(b"{}", "307 Temporary Redirect", location="https://192.0.2.1/x")),
        "redirected",
    ),
    "404 in JSON": (says(answer(b'{"detail":"Not Found"}', "404 Not Found")), "absent"),
    "404 in HTML": (says(answer(HTML, "404 Not Found", "text/html")), "absent"),
    "405": (says(answer(b"{}", "405 Method Not Allowed")), "absent"),
    "401": (says(answer(b'{"detail":"Not authenticated"}', "401 Unauthorized")), "refused"),
    "500": (says(answer(b"oops", "500 Internal Server Error", "text/plain")), "refused"),
    "an empty answer": (says(answer(b"")), "not_json"),
    "no content": (says(answer(b"", "204 No Content", "")), "not_json"),
    "100 MB at once": (says(answer(b"", kind=JSON).replace(b"length: 0", b"length: 104857600")), "not_json"),
    "100 MB in pieces": (
        endlessly(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
            b"10000\r\n" + b" " * 65536 + b"\r\n",
        ),
        "not_json",
    ),
    "silence": (silent, "no_answer_in_time"),
    "half an answer": (says(answer(b"{}").replace(b"length: 2", b"length: 9")), "no_answer_in_time"),
    "a connection that ends": (hangs_up, "unreachable"),
    "another service": (says(answer(b'{"service":"other","supported_versions":["x"]}')), "not_ours"),
    "a service without a name": (says(answer(b'{"version":"1.0"}')), "not_ours"),
    "ours without a list": (says(answer(ours(supported_versions="inbetweenies-v2"))), "not_ours"),
    "an array": (says(answer(b"[]")), "not_json"),
    "too much JSON": (says(answer(ours(more="x" * 70_000))), "not_json"),
    "deep JSON": (says(answer(b"[" * 5000 + b"]" * 5000)), "not_json"),
    "not UTF-8": (says(answer(b'{"service":"\xff"}')), "not_json"),
}


def quick(url: str) -> HttpTransport:
    """One try, a small answer, and no waiting: the bounds, not their size, are what is tried here."""
    return HttpTransport(url, tries_max=1, wire_bytes_max=2**20, timeout_s=20)


@pytest.mark.parametrize(("act", "reason"), CASES.values(), ids=CASES)
async def test_whatever_answers_a_typed_result_says_why_nothing_was_learnt(act: Act, reason: str) -> None:
    seconds = 0.05 if reason == "no_answer_in_time" else 20
    async with serving(act) as evil, quick(evil.url) as transport:
        found = await discover(transport, seconds=seconds)

    assert isinstance(found, Undiscovered)
    assert (reason, bool(found.detail)) == (found.reason, True)


@pytest.mark.parametrize(("act", "reason"), CASES.values(), ids=CASES)
async def test_a_sync_goes_on_whatever_discovery_meets(act: Act, reason: str, tmp_path: Path) -> None:
    home = Home()
    talk = over_http(home)

    async def either(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Each transport has a connection of its own, and the first one asks what stands there.
        await (act if evil.connections == 1 else talk)(evil, reader, writer)

    async with (
        serving(either) as evil,
        quick(evil.url) as asking,
        quick(evil.url) as syncing,
        BlowingOffClient(tmp_path / "ann.db", transport=syncing) as client,
    ):
        await client.add("device", "Lamp")
        found = await discover(asking, seconds=0.05 if reason == "no_answer_in_time" else 20)
        report = await client.sync()

    assert isinstance(found, Undiscovered)
    assert (0, True) == (report.pending, report.equal)


async def test_a_server_of_ours_tells_what_it_serves() -> None:
    class Asks:
        async def get(self, path: str) -> bytes:
            response = await request(app(latest_client_version="1.2.0"), "GET", path)
            assert response is not None
            return response.body

        async def post(self, path: str, body: bytes) -> bytes:
            raise refused(404)

    async with BlowingOffClient(":memory:", transport=Asks()) as client:
        found = await client.discover()

    assert isinstance(found, Discovery)
    assert ("inbetweenies-v2", "inbetweenies-v1") == found.supported_versions
    assert ("inbetweenies-v2", None, "1.2.0", None) == (
        found.preferred_version,
        found.min_client_version,
        found.latest_client_version,
        found.docs,
    )
    assert found.server_version
    assert found.registry_revision


async def test_without_an_address_there_is_nobody_to_ask() -> None:
    async with BlowingOffClient(":memory:") as client:
        with pytest.raises(NotConnected):
            await client.discover()


class Says:
    def __init__(self, body: bytes) -> None:
        self.body = body

    async def get(self, path: str) -> bytes:
        return self.body

    async def post(self, path: str, body: bytes) -> bytes:
        raise TransportError


async def ask(body: bytes) -> Discovery | Undiscovered:
    return await discover(Says(body))


async def test_what_is_said_badly_is_taken_for_nothing_said() -> None:
    found = await ask(
        ours(
            supported_versions=["inbetweenies-v2", 7, None, "", "é", "x" * 65],
            min_client_version=7,
            latest_client_version="",
            server_version="x" * 1000,
        )
    )

    assert isinstance(found, Discovery)
    assert (("inbetweenies-v2",), None, None) == (
        found.supported_versions,
        found.min_client_version,
        found.latest_client_version,
    )
    assert len(found.server_version or "") <= 200


@given(
    st.binary(max_size=50)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*OURS, "x"]), inner | st.just("inbetweenies"), max_size=6)
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_no_document_raises_anything(body: bytes) -> None:
    found = asyncio.run(ask(body))

    assert isinstance(found, (Discovery, Undiscovered))
