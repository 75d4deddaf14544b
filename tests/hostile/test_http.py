"""HTTP as an attacker writes it, byte by byte, and connections on which nothing happens for long.

Every connection is ended by the server. How long that takes is never measured: deadlines are made short, and the end
of the connection is waited for.
"""

from __future__ import annotations

import json
import select
import socket
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from tests.hostile.support import CANARY, Site, Tally, attacked, cases, check_problem
from tests.server.calls import GUARD_SECONDS, entity, read_all, sync, write

WAIT_SECONDS = 1.0  # of the impatient server: what is sent at once comes long before that


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that waits for nothing longer than a second."""
    waits = dict.fromkeys(("header_seconds", "body_seconds", "stall_seconds"), WAIT_SECONDS)
    with attacked(tmp_path_factory.mktemp("impatient"), keep_alive_seconds=1, **waits) as started:
        yield started


def serves(site: Site) -> bool:
    """Whether a new connection of an honest device is served."""
    with site.line(site.other) as honest:
        return site.serves(honest)


# --- one request, and what is taken for one -----------------------------------------------------------------------

#: Sent behind each case: a request that is only answered where the case ended where it should.
NEXT = b"GET /versions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def answers(raw: bytes) -> list[tuple[int, bytes]]:
    """The answers that a server gave on a connection, each with its body; interim ones have none."""
    told = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        size = int(lengths[0].partition(b":")[2]) if lengths else 0
        told.append((status, rest[:size]))
        raw = rest[size:]
    return told


def statuses(site: Site, raw: bytes) -> str:
    """What the server answers to `raw` and `NEXT` behind it; ``+`` stands for the answer to `NEXT`."""
    found = answers(site.process.exchange(raw.replace(b"TOKEN", site.token.encode()) + NEXT))
    for status, body in found:
        if status >= 400:
            check_problem(status, body)
    served = b'"supported_versions"' in found[-1][1]
    return " ".join([*(str(status) for status, _ in (found[:-1] if served else found)), *(["+"] if served else [])])


#: What each case is answered. Where a case names several, or another one, `WHY` says why it is this one.
RAW = {
    "cl-te": "400",
    "te-obfuscated": "400",
    "cl-+2": "400",
    "cl-0x2": "400",
    "cl-2_0": "400",
    "cl-": "400",
    "chunk-huge-size": "408",
    "no-host": "400",
    "bad-method": "400",
    "http2-preface": "400",
    "nul-in-header": "400",
    "obs-fold": "400",
    "path-dotdot": "404 +",
    "path-bad-utf8": "404 +",
    "ct-text": "415 +",
    "ce-gzip": "415 +",
    "expect-100": "100 200 +",
    "trailer": "200 +",
    "pipelined-2": "200 200 +",
    "method-override": "200 +",
}
WHY = {
    "chunk-huge-size": "the size is one that can be, so the body is waited for, and is given up when it does not come"
}

AUTH = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer TOKEN\r\n"
CHUNKED = AUTH + b"transfer-encoding: chunked\r\n\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n"
MORE: dict[str, tuple[bytes, str]] = {
    "HTTP/0.9": (b"GET /health\r\n", "400"),
    "HTTP/0.9, with an empty line": (b"GET /health\r\n\r\n", "400"),
    "HTTP/1.0": (b"GET /health HTTP/1.0\r\n\r\n", "200"),
    "HTTP/1.0, kept open": (b"GET /health HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", "200"),
    "HTTP/1.2": (b"GET /health HTTP/1.2\r\nhost: x\r\n\r\n", "400"),
    "HTTP/2.0": (b"GET /health HTTP/2.0\r\nhost: x\r\n\r\n", "400"),
    "an absolute address": (b"GET http://elsewhere/health HTTP/1.1\r\nhost: x\r\n\r\n", "200 +"),
    "an absolute address without a path": (b"GET http://elsewhere HTTP/1.1\r\nhost: x\r\n\r\n", "400"),
    "an address of 40,000 bytes": (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", "431"),
    "a fragment": (b"GET /health#x HTTP/1.1\r\nhost: x\r\n\r\n", "200 +"),
    "controls, percent-encoded": (b"GET /%00%0d%0aset-cookie:%20x HTTP/1.1\r\nhost: x\r\n\r\n", "404 +"),
    "two hosts": (HEALTH + b"host: y\r\n\r\n", "400"),
    "a header without a colon": (HEALTH + b"x\r\n\r\n", "400"),
    "a space before the colon": (HEALTH + b"x : y\r\n\r\n", "400"),
    "a line feed alone": (b"GET /health HTTP/1.1\nhost: x\n\n", "400"),
    "a carriage return alone": (b"GET /health HTTP/1.1\rhost: x\r\r", "400"),
    "tabs": (b"GET\t/health\tHTTP/1.1\r\nhost: x\r\n\r\n", "400"),
    "a method in small letters": (b"get /health HTTP/1.1\r\nhost: x\r\n\r\n", "400"),
    "TRACE": (b"TRACE /health HTTP/1.1\r\nhost: x\r\n\r\n", "405 +"),
    "PUT": (b"PUT /api/v1/sync/ HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", "405 +"),
    "CONNECT": (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", "400"),
    "a body of a GET that looks like a request": (
        HEALTH + b"content-length: 20\r\n\r\nGET /nope HTTP/1.1\r\n",
        "200 +",
    ),
    "two lengths": (AUTH + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ", "400"),
    "two lengths that are the same": (AUTH + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}", "400"),
    "a list of lengths": (AUTH + b"content-length: 2, 2\r\n\r\n{}", "400"),
    "a negative length": (AUTH + b"content-length: -2\r\n\r\n{}", "400"),
    "a length of 23 digits": (AUTH + b"content-length: 99999999999999999999999\r\n\r\n{}", "400"),
    "a length that is the largest of 64 bits": (AUTH + b"content-length: 18446744073709551615\r\n\r\n{}", "400"),
    "a length that is too large": (AUTH + b"content-length: 16777217\r\n\r\n{}", "413"),
    "a length that is more than comes": (AUTH + b"content-length: 4000\r\n\r\n{}", "408"),
    "a length that is less than comes": (AUTH + b"content-length: 2\r\n\r\n{}{}", "400"),
    "gzip, chunked": (AUTH + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", "400"),
    "identity": (AUTH + b"transfer-encoding: identity\r\n\r\n{}", "400"),
    "chunked twice": (
        AUTH + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "400",
    ),
    "chunked in HTTP/1.0": (
        CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"2\r\n{}\r\n0\r\n\r\n",
        "400",
    ),
    "chunks": (CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", "200 +"),
    "a chunk of no hexadecimal size": (CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n", "400"),
    "a chunk of a negative size": (CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n", "400"),
    "a chunk of a size with 0x": (CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n", "400"),
    "a chunk of a size beyond 64 bits": (CHUNKED + b"1" + b"0" * 16 + b"\r\n{}\r\n0\r\n\r\n", "400"),
    "a chunk with an extension": (CHUNKED + b"2;a=b\r\n{}\r\n0\r\n\r\n", "200 +"),
    "a chunk that is longer than it says": (CHUNKED + b"2\r\n{}}\r\n0\r\n\r\n", "400"),
    "chunks that end in line feeds": (CHUNKED + b"2\n{}\n0\n\n", "400"),
    "chunks that never end": (CHUNKED + b"2\r\n{}\r\n", "400"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), "400"),
    "an upgrade to HTTP/2": (HEALTH + b"connection: upgrade\r\nupgrade: h2c\r\n\r\n", "200"),
}


def test_every_raw_request_is_answered_as_it_must_be_and_none_hides_another(impatient: Site) -> None:
    listed = [(case["name"], b64decode(case["b64"]), RAW[case["name"]]) for case in cases("http_raw")]
    tally = Tally("raw requests")
    listed += [(name, raw, expected) for name, (raw, expected) in MORE.items()]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda each: statuses(impatient, each[1]), listed))
    for (name, _, expected), told in zip(listed, found, strict=True):
        assert expected == told, name
        tally.add(expected)

    assert serves(impatient)
    print(f"  {WHY}")
    assert 20 + len(MORE) == tally.told()


def test_a_body_of_one_byte_chunks_is_a_body(impatient: Site) -> None:
    body = json.dumps(sync(write(entity("crumbs", "v1")))).encode()
    crumbs = b"".join(b"1\r\n%c\r\n" % byte for byte in body)

    assert "200 +" == statuses(impatient, CHUNKED + crumbs + b"0\r\n\r\n")
    with impatient.line() as line:
        assert ["crumbs"] == [
            change["entity"]["id"] for change in line.post(sync(filters={"entity_types": ["device"]})).json["changes"]
        ]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-16", "application/json; charset=latin-1", "text/json"])
def test_a_body_in_another_encoding_is_refused_whoever_says_so(impatient: Site, kind: str) -> None:
    with impatient.line() as line:
        assert "unsupported_media_type" == line.post(sync(), content_type=kind).code
        charset = kind.partition("charset=")[2] or "utf-32"
        for content_type in ("application/json", 'application/json; charset="UTF-8"'):
            body = json.dumps({"client_id": "é"}, ensure_ascii=False).encode(charset)
            assert "malformed_body" == line.post(body, content_type=content_type).code


# --- connections on which nothing happens -------------------------------------------------------------------------

HEAD = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer TOKEN\r\n"
#: What is sent at first, and what is sent again and again after it: one byte at a time never counts as progress.
SLOW: dict[str, tuple[bytes, bytes]] = {
    "silence": (b"", b""),
    "half a head": (HEAD, b""),
    "a head that never ends": (HEAD, b"a"),
    "no body": (HEAD + b"content-length: 100\r\n\r\n", b""),
    "half a body": (HEAD + b"content-length: 100\r\n\r\n" + b" " * 50, b""),
    "a body byte by byte": (HEAD + b"content-length: 1000000\r\n\r\n", b" "),
    "a body in chunks of a byte": (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a chunk that never ends": (HEAD + b"transfer-encoding: chunked\r\n\r\nfffff\r\n", b" "),
    "a body that nobody wants": (HEAD.replace(b"TOKEN", b"x") + b"content-length: 1000000\r\n\r\n", b" "),
    "nothing after an answer": (HEALTH + b"\r\n", b""),
    "half of the next head after an answer": (HEALTH + b"\r\nGET /hea", b"a"),
}


def hang(site: Site, stack: ExitStack, first: bytes) -> socket.socket:
    connection = stack.enter_context(site.connect())
    connection.sendall(first.replace(b"TOKEN", site.token.encode()))
    return connection


def drip(connections: dict[socket.socket, bytes]) -> int:
    """Go on with all connections until the server has ended each of them; how many it ended in time."""
    left = dict(connections)
    ended = 0
    for _ in range(GUARD_SECONDS * 50):
        ready, _, _ = select.select(list(left), [], [], 0.02)
        for connection in ready:
            with suppress(ConnectionError):
                if connection.recv(65536):
                    continue
            del left[connection]
            ended += 1
        if not left:
            break
        if not ready:
            for connection, more in left.items():
                with suppress(OSError):
                    connection.send(more)
    return ended


def test_while_two_hundred_connections_hang_everybody_else_is_served(site: Site) -> None:
    with ExitStack() as stack:
        hanging = [hang(site, stack, first) for first, _ in (list(SLOW.values()) * 19)[:200]]
        assert all(serves(site) for _ in range(20))
        with site.line() as line:
            assert ["meanwhile"] == line.post(sync(write(entity("meanwhile", "v1")))).json["applied"]
        print(f"hanging connections: {len(hanging)}; honest requests served meanwhile: 21")


def test_the_server_ends_every_connection_that_is_slow_or_silent(impatient: Site) -> None:
    tally = Tally("slow connections, all ended by the server")
    with ExitStack() as stack:
        connections = {}
        for name, (first, more) in SLOW.items():
            for _ in range(18):
                connections[hang(impatient, stack, first)] = more
                tally.add(name)
        assert len(connections) == drip(connections)
        assert all(map(impatient.ended, connections))

    assert serves(impatient)
    assert 198 == tally.told()


def test_the_server_ends_every_connection_whose_peer_does_not_read(impatient: Site) -> None:
    large = entity("large", "v1", content={"text": "x" * 7_000_000})
    body = json.dumps(sync()).encode()
    ask = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    token, _ = impatient.tokens.create("large", "ann")
    with impatient.line(token) as line:
        assert ["large"] == line.post(sync(write(large))).json["applied"]
    with ExitStack() as stack:
        # Three answers are more than any kernel keeps for somebody who does not read.
        unread = [hang(impatient, stack, (ask * 3).replace(b"TOKEN", token.encode())) for _ in range(3)]
        assert all(map(impatient.ended, unread))
        for connection in unread:
            with suppress(ConnectionError):
                assert len(read_all(connection)) < 3 * 7_000_000

    assert serves(impatient)
    print(f"connections whose peer does not read: {len(unread)}, all ended")


def test_no_answer_to_garbage_tells_what_it_was(impatient: Site) -> None:
    canary = CANARY.encode()
    for raw in (
        canary,
        b"GET /" + canary + b" HTTP/9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + canary + b"\r\n\r\n",
        AUTH + canary + b": x\r\ncontent-length: x\r\n\r\n",
        AUTH + b"content-type: " + canary + b"\r\ncontent-length: 0\r\n\r\n",
        b"GET /" + canary + b" HTTP/1.1\r\nhost: " + canary + b"\r\nconnection: close\r\n\r\n",
    ):
        assert canary not in impatient.process.exchange(raw + b"\r\n\r\n")
