"""Bodies made to cost much more than they weigh: memory, stacks, hash tables. The next request is always served."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from inbetweenies.limits import LIMITS
from inbetweenies.wire import load, v1, v2
from inbetweenies.wire.v1 import codec
from tests.hostile.support import CANARY, Line, Site, Tally
from tests.server.calls import ROOT, entity, environment, sync, write

MIB = 2**20
#: What one body may make the server hold: itself in pieces, joined, as a row and in an answer, and for each node that
#: the cap lets through 200 bytes: two nodes, ``{"a":0}``, decode to a dict of 300.
BOUND = 4 * LIMITS.body_bytes_max + LIMITS.nodes_max * 200


def holding(raw: bytes, count: int = 1) -> bytes:
    """A push of an entity with `raw` in its content."""
    one = entity("bomb", "v1", name=CANARY, content={"held": "@hole@"})
    before, _, after = json.dumps(sync(write(one))).encode().partition(b'"@hole@"')
    return before + raw * count + after


def many(item: bytes, count: int, *, last: bytes = b"0") -> bytes:
    return holding(b"[" + item * count + last + b"]")


def collisions() -> bytes:
    """Numbers that share one hash in Python, where they are numbers."""
    return b",".join(b'"%d":0' % (n * (2**61 - 1)) for n in range(40_000))


def two_rows() -> bytes:
    """A body of exactly the greatest size, of two rows of nearly the greatest."""
    rows = [entity(f"row {n}", "v1", content={"text": "x" * (8 * MIB - 600)}) for n in (1, 2)]
    body = json.dumps(sync(*map(write, rows))).encode()
    return body + b" " * (LIMITS.body_bytes_max - len(body))


def clock() -> bytes:
    """A read whose vector clock has colliding keys; it is echoed."""
    return (
        json.dumps(sync()).encode().replace(b'"clocks": {}', b'"clocks": {%s}' % collisions().replace(b":0", b':"0"'))
    )


#: Name -> (what makes the body, what becomes of it).
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "brackets that only open": (lambda: b"[" * (16 * MIB), "malformed_body"),
    "brackets that open and close": (lambda: b"[" * (8 * MIB) + b"]" * (8 * MIB), "malformed_body"),
    "objects in objects": (lambda: b'{"a":' * (3 * MIB), "malformed_body"),
    "65 levels": (lambda: holding(b"[" * 60 + b"]" * 60), "malformed_body"),
    "64 levels": (lambda: holding(b"[" * 59 + b"]" * 59), "served"),
    "five million empty lists": (lambda: many(b"[],", 5 * MIB), "malformed_body"),
    "five million empty objects": (lambda: many(b"{},", 5 * MIB), "malformed_body"),
    "as many objects as may be": (lambda: many(b'{"a":0},', 2**19 - 40), "served"),
    "200,000 v1 changes that are none": (lambda: b'{"changes":[%s0]}' % (b"0," * 200_000), "malformed_change"),
    "sixteen million quotes": (lambda: b'"' * (16 * MIB), "malformed_body"),
    "sixteen million backslashes": (lambda: b'"' + b"\\" * (16 * MIB - 2) + b'"', "malformed_body"),
    "integers of 5,000 digits": (lambda: many(b"9" * 5_000 + b",", 3_000), "malformed_body"),
    "integers of 4,300 digits": (lambda: many(b"9" * 4_300 + b",", 200), "served"),
    "keys that collide": (lambda: holding(b"{" + collisions() + b"}"), "served"),
    "a clock of keys that collide": (clock, "served"),
    "the greatest body": (two_rows, "served"),
    "one byte more": (lambda: two_rows() + b" ", "body_too_large"),
}


def test_no_body_makes_the_server_hold_more_than_it_may(site: Site, line: Line, honest: Line) -> None:
    tally = Tally("bombs")
    assert 200 == line.post(sync()).status
    before = site.peak_bytes()
    for name, (make, expected) in BOMBS.items():
        with site.into(name) as attacker:
            reply = attacker.post(make())
        found = reply.json["refused"][0]["code"] if reply.status == 200 and "refused" in reply.json else reply.code
        assert expected == found, name
        assert site.serves(honest), f"after {name}"
        assert site.peak_bytes() - before < BOUND, name
        tally.add(found)
    packed = gzip.compress(bytes(64 * MIB))
    for coding in ("gzip", "deflate", "br", "gzip, gzip", "identity, gzip"):
        assert "unsupported_media_type" == line.post(packed, content_encoding=coding).code
        tally.add("unsupported_media_type")

    held = (site.peak_bytes() - before) // MIB
    print(f"at most {held} MiB more than before were held, of {BOUND // MIB} that may be")
    assert len(BOMBS) + 5 == tally.told()


def test_a_body_in_chunks_is_counted_while_it_comes(site: Site, honest: Line) -> None:
    head = b"POST /api/v1/sync/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %s\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    with site.connect() as connection:
        connection.sendall(head % site.token.encode() + chunk * 16 + b"1\r\n \r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")

    assert site.serves(honest)


# --- edits that are dear ------------------------------------------------------------------------------------------


def test_short_edits_of_a_long_row_hold_no_more_than_a_long_body(site: Site, honest: Line) -> None:
    """A v1 edit, or a merge, makes a whole row, however short it is; 200 of them would be more than a gigabyte."""
    manual = {"manual": "x" * (7 * MIB)}
    home, lamp = entity("home", "v1", entity_type="home"), entity("lamp", "v1", content={})
    large = entity("lamp", "v2", content=manual, parent_versions=["v1"])
    edits = [
        {
            "entity_type": "accessory",
            "entity_id": "lamp",
            "operation": "update",
            "client_sync_id": str(n),
            "data": {"id": "lamp", "name": f"Lamp {n}"},
        }
        for n in range(200)
    ]
    merges = [write(entity("lamp", f"m{n}", content={"on": n}, parent_versions=["v1"])) for n in range(200)]
    with site.into("dear") as line:
        assert ["home", "lamp"] == line.post(sync(write(home), write(lamp), write(large))).json["applied"]
        before = site.peak_bytes()
        pushed = line.post({"type": "sync_push", "client_id": "c", "changes": edits}, "/api/v1/sync/push").json
        merged = line.post(sync(*merges, features=["acks"], cursor="999999")).json

    assert 200 == len(pushed["applied"]) + len(pushed["refused"])
    assert 200 == len({ack["version"] for ack in merged["acks"]}) + len(merged["refused"])
    assert {"too_much_at_once"} == {each["code"] for each in pushed["refused"] + merged["refused"]}
    assert pushed["applied"]
    assert merged["acks"]
    assert site.peak_bytes() - before < BOUND
    assert site.serves(honest)


# --- stacks -------------------------------------------------------------------------------------------------------

SMALL_STACK = r"""
import threading
from inbetweenies import ProtocolFallback
from inbetweenies.model import Context
from inbetweenies.stores.memory import MemoryStore
from tests.hostile.test_bombs import nested
from tests.support import run

def attack():
    fallback = ProtocolFallback(MemoryStore(), clock=lambda: 0)
    for depth in (1, 50, 58, 64, 70, 200, 500, 1_000, 5_000, 20_000):
        for body in nested(depth):
            for path in ("", "/api/v1/sync/push"):
                status = run(fallback.handle(body, context=Context(), path=path)).status
                counts[status] = counts.get(status, 0) + 1

counts = {}
threading.stack_size(128 * 1024)
thread = threading.Thread(target=attack)
thread.start()
thread.join()
print(sorted(counts.items()))
"""


def nested(depth: int) -> list[bytes]:
    """Bodies that nest `depth` deep, in every place where a decoder could follow."""
    lists, objects = b"[" * depth + b"0" + b"]" * depth, b'{"a":' * depth + b"0" + b"}" * depth
    mixed = b'[{"a":' * (depth // 2) + b"0" + b"}]" * (depth // 2)
    around = [
        b"%s",
        b'{"protocol_version":%s}',
        b'{"supported_versions":%s,"protocol_version":"v7"}',
        b'{"unknown":%s}',
    ]
    around += [b'{"type":"sync_push","changes":%s}', b'{"type":"sync_push","changes":[%s]}']
    around += [holding(b"%s"), json.dumps(sync(cursor="@")).replace('"@"', "%s").encode()]
    return [place % bomb for bomb in (lists, objects, mixed, lists[:depth], objects[: depth * 5]) for place in around]


def test_nothing_that_nests_overflows_a_small_stack() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL_STACK],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    counts = dict(json.loads(done.stdout.strip().replace("(", "[").replace(")", "]")))

    print(f"nested bodies on a stack of 128 KiB: {counts}")
    assert {200, 400} == counts.keys()
    assert 10 * 40 * 2 == sum(counts.values())


# --- hash tables --------------------------------------------------------------------------------------------------

NUMBERS = (inspect.IntType, inspect.FloatType, inspect.DecimalType, inspect.DateTimeType)


def types_in(kind: Any, seen: set[Any]) -> Any:
    """Every type that a decoder of `kind` can come to, `kind` included."""
    yield kind
    if isinstance(kind, inspect.StructType):
        if kind.cls in seen:
            return
        seen.add(kind.cls)
        for field in kind.fields:
            yield from types_in(field.type, seen)
    for name in ("item_type", "key_type", "value_type"):
        if hasattr(kind, name):
            yield from types_in(getattr(kind, name), seen)
    for each in (*getattr(kind, "types", ()), *getattr(kind, "item_types", ())):
        yield from types_in(each, seen)


def keyed_by_numbers(kind: Any) -> list[Any]:
    """Tables that a peer's numbers would be the keys of: a million of them can share one hash."""
    return [
        found
        for found in types_in(inspect.type_info(kind), set())
        if (isinstance(found, inspect.DictType) and isinstance(found.key_type, NUMBERS))
        or (isinstance(found, (inspect.SetType, inspect.FrozenSetType)) and isinstance(found.item_type, NUMBERS))
    ]


def structs_of(module: Any) -> list[type[msgspec.Struct]]:
    return [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and each.__module__ == module.__name__
    ]


def test_no_message_has_a_table_whose_keys_are_numbers() -> None:
    assert {"inbetweenies-v1", "inbetweenies-v2"} == set(load())
    kinds = [*structs_of(v2), *structs_of(codec), *structs_of(v1)]
    assert len(kinds) > 30
    for kind in kinds:
        assert [] == keyed_by_numbers(kind), kind


@pytest.mark.parametrize("kind", [dict[int, str], set[int], list[dict[float, str]], dict[str, frozenset[int]] | None])
def test_a_table_whose_keys_are_numbers_would_be_found(kind: Any) -> None:
    assert 1 == len(keyed_by_numbers(kind))
