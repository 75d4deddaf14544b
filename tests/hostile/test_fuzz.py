"""Any bytes at all, straight into the router: served or refused in words, never anything else, always in one way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inbetweenies import ProtocolFallback
from inbetweenies.model import Context
from inbetweenies.store import Store
from inbetweenies.stores import MemoryStore, SqliteStore
from inbetweenies.testing import strategies
from tests.hostile.support import Tally, check_problem
from tests.server.calls import sync
from tests.support import NOW, run

#: What takes the place of a value in a message, as it stands in the bytes.
WORDS = b"""
null true false 0 -0 -0.0 1.5 1e308 1e-400 1E400 NaN -Infinity 01 1. .5 0x1 tru [ ] { } , : [] {} [[]] [{}]
18446744073709551616 9007199254740993 -62135596800000000 2.6e14 2.59e14 1781516462
"""
TOKENS = [
    *WORDS.split(),
    b"9" * 400,
    b"9" * 5_000,
    b'""',
    b'"\\u0000"',
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\xff"',
    b'"\xed\xa0\x80"',
    b'"\xc3\xa9"',
    b'"' + b"x" * 1_025 + b'"',
    b'"inbetweenies-v7"',
    b'"inbetweenies-v1"',
    b'"2026-06-15T09:41:02Z-000001-ann"',
    b'"9999-12-31T23:59:59.999999-99:99"',
    b'"0001-01-01T00:00:00+99:99"',
    b'"0000000000001-0000000000000000"',
    b'{"deleted":true}',
    b'{"deleted":1,"services":{"s":{"characteristics":{"c":{"value":[]}}}}}',
    b'{"services":[],"kind":"user","is_primary":1,"role":"bridge"}',
    b"[" * 70 + b"]" * 70,
    b'{"a":' * 70 + b"0" + b"}" * 70,
]
KEYS = [
    "id",
    "version",
    "content",
    "properties",
    "changes",
    "type",
    "protocol_version",
    "parent_versions",
    "x",
    "deleted",
]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside another."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def mutant(message: Any, chance: Random) -> bytes:
    """A legal message in which some values are others, then maybe some bytes."""
    message = json.loads(json.dumps(message))
    tokens: dict[bytes, bytes] = {}
    for number in range(chance.choice((0, 1, 1, 1, 2, 4))):
        path = chance.choice(places(message) or [("x",)])
        at = message
        for key in path[:-1]:
            at = at[key]
        hole = f"@{number}@"
        tokens[json.dumps(hole).encode()] = chance.choice(TOKENS)
        if isinstance(at, dict) and chance.random() < 0.2:
            at[chance.choice(KEYS)] = hole
        else:
            at[path[-1]] = hole
    body = json.dumps(message, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    for hole_bytes, token in tokens.items():
        body = body.replace(hole_bytes, token)
    while chance.random() < 0.15:
        where = chance.randrange(len(body) + 1)
        body = body[:where] + chance.randbytes(chance.randrange(4)) + body[where + chance.randrange(3) :]
    return body if chance.random() < 0.98 else chance.randbytes(chance.randrange(200))


PATHS = ["", "", "/api/v1/sync/", "/api/v1/sync/push", "/api/v1/sync/request", "/api/v1/sync/ack"]
HEADERS = [*[None] * 20, "inbetweenies-v1", "inbetweenies-v2", "", "\xff", "x" * 65]
ATTACKS = 20  # with the messages of one example
CODES = {
    "served",
    "bad_cursor",
    "body_not_valid_for_version",
    "malformed_body",
    "malformed_version",
    "no_common_version",
    "version_conflict",
}


class Peer:
    """A server whose every answer follows from what it was sent."""

    def __init__(self, store: Store) -> None:
        self.fallback = ProtocolFallback(store, clock=lambda: NOW)
        self.graph = ""
        self.now = NOW

    def say(self, body: bytes, path: str = "", header: str | None = None) -> tuple[int, bytes]:
        context = Context(graph=self.graph, now=self.now, user="ann")
        reply = run(self.fallback.handle(body, context=context, path=path, header=header))
        return reply.status, reply.body

    def digest(self) -> str:
        """One number for all that is stored and current."""
        body = json.dumps(sync(device_id="reader", features=["digest"], sync_type="delta", cursor="999999")).encode()
        return str(json.loads(self.say(body)[1])["digest"])


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[tuple[Peer, Peer]]:
    """Two servers that must not differ in anything, over the two stores."""
    # What a power cut would take away is no matter here.
    unsafe = SqliteStore(
        tmp_path / "fuzz.db", epochs=lambda: "e", on_connect=lambda db: db.execute("PRAGMA synchronous = OFF")
    )
    yield Peer(MemoryStore(lambda: "e")), Peer(unsafe)
    run(unsafe.close())


def test_any_bytes_are_served_or_refused_in_words_and_alike_over_every_store(peers: tuple[Peer, Peer]) -> None:
    tally = Tally("fuzzed bodies")
    one, other = peers
    graphs = count()

    @settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(strategies.messages(), min_size=1, max_size=4), st.integers(0, 2**64))
    def fuzz(messages: list[Any], seed: int) -> None:
        chance = Random(seed)
        one.graph = other.graph = f"graph {next(graphs)}"
        for now in range(NOW, NOW + ATTACKS):
            one.now = other.now = now
            body, path, header = mutant(chance.choice(messages), chance), chance.choice(PATHS), chance.choice(HEADERS)
            before = one.digest()
            assert before == other.digest()
            status, told = one.say(body, path, header)
            assert (status, told) == other.say(body, path, header), body
            code = json.loads(told)["code"] if status != 200 else "served"
            tally.add(code)
            if status != 200:
                check_problem(status, told)
                assert status in (400, 413)
                # Law 11: what is refused changed nothing.
                assert before == one.digest()
        # Whatever was taken can be told in every version (law 7).
        every = ["homes", "rooms", "accessories", "users", "services", "characteristics"]
        asked = {"type": "sync_request", "client_id": "reader", "entity_types": every}
        status, told = one.say(json.dumps(asked).encode())
        assert (200, told) == (status, other.say(json.dumps(asked).encode())[1])

    fuzz()
    assert tally.told() >= 20 * ATTACKS
    assert CODES >= tally.counts.keys()
    assert {"served", "malformed_body", "malformed_version", "version_conflict"} <= tally.counts.keys()
