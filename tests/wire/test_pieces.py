"""Answers to peers that cannot page: whole, and yet never held whole (PROTOCOL 4.9). What they say does not depend on
how much of it is read at a time, nor on what is committed meanwhile."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import exchange
from inbetweenies.errors import StoreError
from inbetweenies.exchange import Rest
from inbetweenies.limits import Limits
from inbetweenies.model import Ask, Change, Context, Entity, Reads, Relationship, Span, Telling, Writes
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.wire import v1, v2
from tests.support import NOW, Server, at, edge, entity, run
from tests.wire.v1_support import CONTENT, TYPES, V1Client, graphs

SMALL = Limits(page_rows_max=2)
TINY = Limits(page_bytes_max=1)


def begun(server: Server, body: bytes, limits: Limits, wire: Any = v2.WIRE) -> tuple[bytes, Rest | None]:
    message = wire.decode(body, limits=limits)
    context = Context(now=NOW, token="t", user="ann")
    made = run(exchange.begin(wire, message, store=server.store, context=context, limits=limits, policy=server.policy))
    return made.body, made.rest


def pieces_of(first: bytes, rest: Rest | None) -> list[bytes]:
    pieces = [first]
    while rest is not None and not rest.ended:
        pieces.append(run(rest.next()))
    return pieces


def answered(server: Server, body: bytes, limits: Limits, wire: Any = v2.WIRE) -> Any:
    return json.loads(b"".join(pieces_of(*begun(server, body, limits, wire))))


def copy(server: Server, limits: Limits | None = None) -> Server:
    """The same log, for a request that may write to it."""
    assert isinstance(server.store, MemoryStore)
    return Server(server.store.copy(), limits=limits)


def body(*changes: Change, **fields: Any) -> bytes:
    ask: dict[str, Any] = msgspec.json.decode(v2.WIRE.ask(Ask(device="d", user="u", changes=changes)))
    return msgspec.json.encode(ask | fields)


def rows(answer: Any) -> tuple[Counter[Any], Counter[Any]]:
    """The entities that an answer tells, and the edges, each with what it came with."""
    changes = answer["changes"]
    entities = [(one["entity"]["id"], one["entity"]["version"], one["change_type"]) for one in changes if one["entity"]]
    edges = [
        (each["id"], each["version"], each["from_entity_id"], one["entity"] is None or one["entity"]["id"])
        for one in changes
        for each in one["relationships"]
    ]
    return Counter(entities), Counter(edges)


# --- v2 -----------------------------------------------------------------------------------------------------------


@given(
    server=graphs(size=12),
    after=st.none() | st.integers(0, 30),
    features=st.sampled_from([(), (), ("acks",), ("digest", "edges")]),
    filters=st.sampled_from([None, None, {"entity_types": ["room", "device"]}, {"modified_by": ["bob"]}]),
    again=st.lists(st.integers(0, 20), max_size=4),
    new=st.booleans(),
    limits=st.sampled_from([SMALL, TINY, Limits(page_rows_max=5)]),
)
def test_an_answer_in_pieces_says_what_the_whole_one_says(
    server: Server,
    after: int | None,
    features: tuple[str, ...],
    filters: dict[str, list[str]] | None,
    again: list[int],
    new: bool,
    limits: Limits,
) -> None:
    held = list(server.held(Reads(span=_ALL)).span)
    pushed: list[Entity | Relationship] = [
        row.entity() if row.kind == "entity" else row.relationship()
        for row in (held[number % len(held)] for number in again if held)
    ]
    if new:
        pushed.append(entity("new", at(9)))
    changes = [Change(entity=one) if isinstance(one, Entity) else Change(relationships=(one,)) for one in pushed]
    asked: dict[str, Any] = {"features": list(features)} | ({} if filters is None else {"filters": filters})
    if after is not None:
        asked |= {"sync_type": "delta", "cursor": str(min(after, len(held)))}
    message = body(*changes, **({"sync_type": "full"} | asked))

    expected = answered(copy(server), message, Limits())
    actual = answered(copy(server), message, limits)

    assert {name: expected[name] for name in expected if name != "changes"} == {
        name: actual[name] for name in actual if name != "changes"
    }
    entities, edges = rows(actual)
    expected_entities, expected_edges = rows(expected)
    if features:
        # Where an edge may travel alone, it need not do so in both.
        edges, expected_edges = (Counter(each[:3] for each in found) for found in (edges, expected_edges))
    else:
        # A carrier that was named as well is told once for each reason.
        entities, expected_entities = Counter(set(entities)), Counter(set(expected_entities))
        assert all(one["entity"] is not None for one in actual["changes"])
        assert all(carrier == each[2] for each in edges for carrier in each[3:])
    assert (expected_entities, expected_edges) == (entities, edges)
    told = [one["entity"]["id"] for one in actual["changes"] if one["entity"]]
    if not changes and after is None:
        assert told == [one["entity"]["id"] for one in expected["changes"] if one["entity"]]


_ALL = Span(after=0, upto=2**53 - 1)


def test_an_entity_that_has_not_changed_is_told_once_with_all_its_new_edges() -> None:
    server = Server()
    hub, other = entity("hub", at(0)), entity("other", at(0))
    server.push(hub, other)
    for number in range(5):
        server.push(edge(f"spoke{number}", hub, other), entity(f"x{number}", at(number)))
    answer = answered(server, body(sync_type="delta", cursor="2"), SMALL)
    told = [(one["entity"]["id"], [each["id"] for each in one["relationships"]]) for one in answer["changes"]]

    assert [f"x{number}" for number in range(5)] == [id_ for id_, _ in told if id_ != "hub"]
    assert [[f"spoke{number}" for number in range(5)]] == [edges for id_, edges in told if id_ == "hub"]


def town(size: int) -> Server:
    """A graph of `size` devices in one room, the edges after all of them."""
    server = Server()
    hall = entity("hall", at(0), entity_type="room")
    lamps = [entity(f"lamp{number:04}", at(number), {"n": number}) for number in range(size)]
    server.push(entity("home", at(0), entity_type="home"), hall, *lamps)
    server.push(edge("door", hall, server.current("home"), relationship_type="part_of"))
    server.push(*(edge(f"link{number:04}", lamp, hall) for number, lamp in enumerate(lamps)))
    return server


READ_V1 = json.dumps(
    {"client_id": "p", "last_sync": None, "entity_types": ["homes", "rooms", "accessories", "users"]}
).encode()


@pytest.mark.parametrize(("wire", "message"), [(v2.WIRE, body(sync_type="full")), (v1.WIRE, READ_V1)])
def test_no_more_than_about_a_page_is_read_or_told_at_a_time(
    wire: Any, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rows there are never more than a page holds, and the edges of those."""
    most = 0

    def counted(held: Any) -> Any:
        nonlocal most
        found = [*held.entities.values(), *held.types, *held.span]
        found += [row for rows in (*held.edges_from.values(), *held.edges_to.values()) for row in rows]
        most = max(most, len(found), len(held.listing))
        return held

    monkeypatch.setattr(v2, "_LISTING_ROWS", 20)
    monkeypatch.setattr(v1.pull, "_PIECE_BYTES", 2_000)
    server = town(200)
    monkeypatch.setattr(MemoryStore, "transaction", _watched(MemoryStore.transaction, counted))
    pieces = pieces_of(*begun(server, message, Limits(page_rows_max=20), wire))

    assert 200 <= len(json.loads(b"".join(pieces))["changes"])
    assert 10 <= len(pieces)
    assert max(map(len, pieces)) < 4 * sum(map(len, pieces)) / len(pieces)
    assert most <= 40


def _watched(opened: Any, look: Any) -> Any:
    def transaction(self: Any, graph: str, *, write: bool) -> Any:
        tx = opened(self, graph, write=write)
        read = tx.read

        async def looked(reads: Reads) -> Any:
            return look(await read(reads))

        tx.read = looked
        return tx

    return transaction


@pytest.mark.parametrize(("wire", "message"), [(v2.WIRE, body(sync_type="full")), (v1.WIRE, READ_V1)])
def test_a_piece_ends_early_where_rows_are_large(wire: Any, message: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1.pull, "_PIECE_BYTES", 20_000)
    server = Server()
    server.push(entity("home", at(0), entity_type="home"))
    server.push(*(entity(f"x{number}", at(number), {"model": "m" * 9_000}) for number in range(20)))
    pieces = pieces_of(*begun(server, message, Limits(page_bytes_max=20_000), wire))

    assert 21 == len(json.loads(b"".join(pieces))["changes"])
    assert max(map(len, pieces)) < 40_000


@pytest.mark.parametrize(
    ("wire", "message"),
    [
        (v2.WIRE, body(sync_type="full")),
        (v1.WIRE, READ_V1),
        (v1.WIRE, READ_V1.replace(b"null", b'"2026-06-15T00:00:00"')),  # which may have heard of things that are gone
    ],
)
def test_what_is_committed_meanwhile_is_not_told(wire: Any, message: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v1.pull, "_PIECE_BYTES", 1)
    server = town(9)
    server.push(entity("note", at(9), entity_type="note"), entity("gone", at(9), {"deleted": True}))
    expected = answered(copy(server), message, SMALL, wire)
    first, rest = begun(server, message, SMALL, wire)
    pieces = [first]
    while rest is not None and not rest.ended:
        lamp, note = server.current("lamp0008"), server.current("note")
        number = len(pieces)
        server.push(
            entity("lamp0008", at(100 + number), {"n": -1}, parent_versions=(lamp.version,)),
            entity(f"new{number}", at(number)),
            edge("link0007", lamp, server.current("home"), version=f"moved{number}"),
            entity("note", at(200 + number), {"kind": "user"}, entity_type="note", parent_versions=(note.version,)),
        )
        if number == 2:
            server.push(entity("home", at(500), {"deleted": True}, entity_type="home", parent_versions=(at(0),)))
        pieces.append(run(rest.next()))

    assert 5 < len(pieces)
    assert expected == json.loads(b"".join(pieces))


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 11, 12])
def test_the_digest_of_deployed_peers_does_not_depend_on_how_much_is_listed_at_once(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(v2, "_digests", OrderedDict())
    monkeypatch.setattr(v2, "_LISTING_ROWS", rows_at_once)
    server = town(9)
    held = server.held(Reads(span=_ALL)).span
    listed = sorted((row.id, row.version) for row in held if row.kind == "entity")
    expected = sha256("".join(f"{id_}\x1f{version}\x1e" for id_, version in listed).encode()).hexdigest()

    assert expected == answered(server, body(sync_type="full"), Limits())["state_digest"]


def test_nothing_is_told_of_a_push_before_it_has_committed() -> None:
    """Law 1, whether the answer is one piece or the first of many."""
    server = town(9)
    told: list[Any] = []

    class Seen(v2.V2):
        def down(self, *args: Any, **more: Any) -> Telling:
            yield from ()
            told.append(server.held(Reads(entities=("new",))).entities["new"].version)
            return (yield from super().down(*args, **more))

    message = body(Change(entity=entity("new", at(9))), sync_type="full")
    for limits in (SMALL, Limits()):
        answered(server, message, limits, Seen())

    assert [at(9)] * 2 == told


def test_a_log_that_was_rewound_is_not_told_on() -> None:
    server = town(9)
    _, rest = begun(server, body(sync_type="full"), SMALL)
    assert rest is not None
    other = town(9)
    run(_renew(other))
    rest._store = other.store

    with pytest.raises(StoreError, match="rewound"):
        run(rest.next())


def test_a_log_that_grew_differently_is_not_told_on() -> None:
    server = town(9)
    behind = copy(server)
    server.push(entity("later", at(9)))
    _, rest = begun(server, body(sync_type="full"), SMALL)
    assert rest is not None
    behind.push(entity("other", at(9)))
    rest._store = behind.store

    with pytest.raises(StoreError, match="rewound"):
        run(rest.next())


async def _renew(server: Server) -> None:
    async with server.store.transaction("default", write=True) as tx:
        head = (await tx.read(Reads())).head
        await tx.write(Writes(head=msgspec.structs.replace(head, epoch="abcdef")))


def test_no_transaction_is_open_between_two_pieces() -> None:
    server = town(9)
    open_: list[Any] = []
    opened = server.store.transaction

    class Counted:
        def __init__(self, tx: Any) -> None:
            self.tx = tx

        async def __aenter__(self) -> Any:
            open_.append(self)
            return await self.tx.__aenter__()

        async def __aexit__(self, *error: object) -> None:
            open_.remove(self)
            await self.tx.__aexit__(*error)

    def counted(graph: str, *, write: bool) -> Any:
        return Counted(opened(graph, write=write))

    server.store.transaction = counted  # type: ignore[method-assign]
    first, rest = begun(server, body(sync_type="full"), SMALL)
    assert (rest is not None, b'"changes":[{' in first, []) == (True, True, open_)
    while rest is not None and not rest.ended:
        run(rest.next())
        assert not open_


def test_an_answer_whose_last_piece_is_missing_is_no_json() -> None:
    pieces = pieces_of(*begun(town(9), body(sync_type="full"), SMALL))

    for number in range(1, len(pieces)):
        with pytest.raises(json.JSONDecodeError):
            json.loads(b"".join(pieces[:number]))


def test_whoever_takes_one_piece_gets_all_of_it() -> None:
    server = town(9)
    fallback = ProtocolFallback(server.store, clock=lambda: NOW, limits=SMALL)
    message = body(sync_type="full")
    context = Context(now=NOW)
    one = run(fallback.handle(message, context=context))
    several = run(fallback.handle(message, context=context, pieces=True))
    given = run(fallback.handle_sync_request(json.loads(message)))
    processed = run(fallback.handlers["inbetweenies-v2"].process(json.loads(message)))

    assert one.rest is None
    assert several.rest is not None
    assert one.body == b"".join(pieces_of(several.body, several.rest))
    assert json.loads(one.body) == given == processed


# --- v1 -----------------------------------------------------------------------------------------------------------


def test_an_edge_from_home_to_home_dates_neither() -> None:
    server = Server()
    homes = [entity(f"h{n}", at(n), {}, entity_type="home") for n in range(4)]
    server.push(*homes)
    server.push(edge("odd", homes[3], homes[1], at(9), relationship_type="part_of"))
    whole, pieces = (V1Client(copy(server, limits)).pull(None, ["homes"]) for limits in (Limits(), SMALL))

    assert effect(whole) == effect(pieces)
    assert 4 == len(effect(whole))


def effect(answer: Any) -> dict[tuple[str, str], Any]:
    """What a client holds that took the changes of an answer one by one; None for what it was told to drop."""
    records: dict[tuple[str, str], Any] = {}
    for one in answer["changes"]:
        key = (one["entity_type"], one["entity_id"])
        records[key] = one["data"] if one["operation"] == "update" else None
    return records


PLURALS = ["homes", "rooms", "accessories", "users", "services", "characteristics"]


@given(
    data=st.data(),
    server=graphs(size=8),
    types=st.sampled_from([PLURALS, PLURALS[:4], PLURALS[2:3], PLURALS[4:]]),
    limits=st.sampled_from([SMALL, TINY, Limits(page_rows_max=3)]),
)
def test_a_v1_answer_in_pieces_says_what_the_whole_one_says(
    data: st.DataObject, server: Server, types: list[str], limits: Limits
) -> None:
    client = V1Client(server)
    client.pull(types=types)
    client.ack()
    for number in range(data.draw(st.integers(0, 4))):
        old = data.draw(st.sampled_from(range(10)))
        id_, kind = f"e{old}", data.draw(st.sampled_from(TYPES))
        fields = data.draw(CONTENT[kind]) | ({"deleted": True} if data.draw(st.booleans()) else {})
        held = server.held(Reads(entities=(id_,))).entities
        parents = (held[id_].version,) if held else ()
        server.push(entity(id_, at(50 + number), fields, entity_type=kind, parent_versions=parents))
    for index in range(data.draw(st.integers(0, 2))):
        one, other = (f"e{data.draw(st.sampled_from(range(8)))}" for _ in range(2))
        if len(server.held(Reads(entities=(one, other))).entities) == len({one, other}):
            server.push(edge(f"l{index:02d}", server.current(one), server.current(other), version=f"again{index}"))

    for last_sync in (None, "2090-01-01T00:00:00"):
        answers = [
            V1Client(copy(server, each)).pull(last_sync, types, include_deleted=True) for each in (Limits(), limits)
        ]
        expected, actual = answers

        assert effect(expected) == effect(actual)
        assert {key: expected[key] for key in expected if key != "changes"} == {
            key: actual[key] for key in actual if key != "changes"
        }
        # Once is enough, but for what stands in two devices, or stood in another one.
        once = [Counter((one["entity_type"], one["entity_id"]) for one in each["changes"]) for each in answers]
        assert [] == [key for found in once for key in found if found[key] > 1 and key[0] not in v1.pull._NESTED]
