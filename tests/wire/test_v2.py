"""``inbetweenies-v2`` on the wire (PROTOCOL 9): what is read leniently, what is refused, and what is served to whom."""

from __future__ import annotations

from itertools import chain
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from inbetweenies import RemoteProtocolError, rewind
from inbetweenies.errors import LocalProtocolError
from inbetweenies.limits import LIMITS, canonical
from inbetweenies.model import (
    Answer,
    Ask,
    Change,
    Context,
    Cursor,
    Entity,
    Pushes,
    Relationship,
    SyncRequest,
    body_of,
    parse_cursor,
    row_hash,
)
from inbetweenies.router import V2ProtocolHandler
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.wire import _wire_of, load, v2
from tests.support import NOW, at, edge, entity, run

READ: dict[str, Any] = {"device_id": "d", "user_id": "u", "sync_type": "full"}
FEATURES = ["acks", "digest", "edges", "paging"]
LAMP = entity("lamp", at(0))
HALL = entity("hall", at(0), entity_type="room")
LINK = edge("e", LAMP, HALL)


def up(**fields: Any) -> SyncRequest:
    plan = v2.WIRE.up(decoded(**fields), Context(user="u"), LIMITS)
    with pytest.raises(StopIteration) as done:
        next(plan)
    request: SyncRequest = done.value.value
    return request


def decoded(**fields: Any) -> Any:
    return v2.WIRE.decode(msgspec.json.encode(READ | fields), limits=LIMITS)


@pytest.mark.parametrize("name", ["device_id", "user_id"])
def test_a_label_is_any_text_no_longer_than_an_id(name: str) -> None:
    for label in ("", "a\nb\x00", "x" * 1024, "é" * 512):
        assert label == getattr(decoded(**{name: label}), name)
    with pytest.raises(RemoteProtocolError, match="at most 1024 bytes; got a string of 1026 bytes") as caught:
        decoded(**{name: "é" * 513})

    assert f"/{name}" == caught.value.pointer


class Peer:
    def __init__(self) -> None:
        self.handler = V2ProtocolHandler(MemoryStore(), clock=lambda: NOW)

    def handle(self, **fields: Any) -> dict[str, Any]:
        return run(self.handler.process(READ | fields))

    def say(self, **fields: Any) -> Answer:
        return v2.WIRE.told(msgspec.json.encode(self.handle(**fields)))

    def push(self, *changes: Change, **fields: Any) -> dict[str, Any]:
        ask = v2.WIRE.ask(Ask(device="d", user="u", changes=changes, **fields))
        return run(self.handler.process(msgspec.json.decode(ask)))


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("2026-06-15T09:41:02", 1781516462000000),
        ("2026-06-15T11:41:02+02:00", 1781516462000000),
        (1781516462, 1781516462000000),
        (1781516462.5, 1781516462500000),
        (1781516462000, 1781516462000000),
        (None, None),
    ],
)
def test_a_watermark_may_be_written_in_every_way_that_deployed_clients_do(since: Any, expected: int | None) -> None:
    assert expected == up(filters={"since": since}).since


@given(st.lists(st.tuples(st.integers(-1500, 1500), st.integers(1, 3)), min_size=1, max_size=6))
def test_a_watermark_that_was_cut_to_milliseconds_is_told_what_came_later_and_nothing_else(
    commits: list[tuple[int, int]],
) -> None:
    """KittenKong puts what it is told in the place of what it wrote, so nothing may be told twice without a reason."""
    peer = Peer()
    now, watermarks, ids = NOW, [], []
    for count, (step, rows) in enumerate(commits):
        now += step
        peer.handler.clock = lambda now=now: now  # type: ignore[misc]
        ids.append([f"{count}-{row}" for row in range(rows)])
        peer.push(*(Change(entity=entity(id_, at(0))) for id_ in ids[-1]))
        watermarks.append(f"{peer.handle()['server_time'][:23]}Z")
    told = [peer.handle(sync_type="delta", filters={"since": since}) for since in watermarks]

    assert [list(chain(*ids[place + 1 :])) for place in range(len(ids))] == [
        [change["entity"]["id"] for change in answer["changes"]] for answer in told
    ]


@pytest.mark.parametrize(
    "since", ["yesterday", 1e18, -1e300, 10**400, -(10**400)], ids=["word", "far", "past", "long", "lower"]
)
def test_a_watermark_that_is_no_time_is_refused(since: Any) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        up(filters={"since": since})

    assert ("malformed_body", "/filters/since") == (caught.value.code, caught.value.pointer)


def test_a_cursor_is_ours_or_a_number_or_nothing() -> None:
    ours = f"ab:7:{'0' * 32}"

    assert ours == str(up(cursor=ours).cursor)
    assert (None, 512) == ((request := up(cursor="512")).cursor, request.after)
    assert (None, None) == ((request := up(cursor="")).cursor, request.after)
    with pytest.raises(RemoteProtocolError) as caught:
        up(cursor="of another server")
    assert "bad_cursor" == caught.value.code
    assert Peer().say(cursor="of another server", features=FEATURES).resync


def test_types_are_folded_and_an_unknown_source_is_kept_beside_imported() -> None:
    raw = {"id": "x", "version": "v", "entity_type": "DEVICE", "name": "X", "content": {}, "user_id": "u"}
    sources = ("MANUAL", "ZigBee")
    found = [up(changes=[{"change_type": "update", "entity": raw | {"source_type": source}}]) for source in sources]
    entities = [change.entity for request in found for change in request.changes if change.entity]

    assert ["device", "device"] == [value.entity_type for value in entities]
    assert [("manual", msgspec.UNSET), ("imported", "ZigBee")] == [
        (value.source_type, value.source_original) for value in entities
    ]


@pytest.mark.parametrize("content", [{}, {"deleted": False}, {"deleted": True, "a": 1}])
def test_a_delete_is_a_tombstone_whatever_its_content_says(content: dict[str, Any]) -> None:
    raw = {"id": "x", "version": "v", "entity_type": "device", "name": "X", "source_type": "manual", "user_id": "u"}
    request = up(changes=[{"change_type": "delete", "entity": raw | {"content": content}}])
    (change,) = request.changes

    assert change.entity is not None
    assert (True, True) == (change.delete, msgspec.json.decode(change.entity.content)["deleted"])


def test_an_edge_of_a_deployed_peer_gets_its_user_and_a_version_of_its_value() -> None:
    raw = {name: getattr(LINK, name) for name in LINK.__struct_fields__ if name not in ("version", "user_id")}
    raw["properties"] = {}
    (change,) = up(changes=[{"change_type": "update", "relationships": [raw]}]).changes
    (found,) = change.relationships

    assert ("u", True) == (found.user_id, found.version.startswith("h-"))


def test_an_edge_travels_alone_only_to_peers_that_can_take_it() -> None:
    peer = Peer()
    peer.push(Change(entity=LAMP), Change(entity=HALL))
    cursor = peer.say(features=FEATURES).cursor
    peer.push(Change(relationships=(LINK,)))
    deployed = run(peer.handler.process(READ | {"cursor": "2", "sync_type": "delta"}))["changes"]
    modern = run(peer.handler.process(READ | {"cursor": cursor, "sync_type": "delta", "features": FEATURES}))["changes"]

    assert [("lamp", ["e"])] == [(c["entity"]["id"], [e["id"] for e in c["relationships"]]) for c in deployed]
    assert [(None, ["e"])] == [(c["entity"], [e["id"] for e in c["relationships"]]) for c in modern]


def test_a_carrier_that_is_deleted_says_so() -> None:
    peer = Peer()
    gone = entity("lamp", at(1), {"deleted": True}, parent_versions=(LAMP.version,))
    peer.push(Change(entity=LAMP), Change(entity=HALL), Change(entity=gone, delete=True))
    peer.push(Change(relationships=(LINK,)))
    (change,) = run(peer.handler.process(READ | {"cursor": "3", "sync_type": "delta"}))["changes"]

    assert ("delete", True) == (change["change_type"], change["entity"]["content"]["deleted"])


def test_deployed_peers_get_the_deployed_fields_and_others_get_ours() -> None:
    deployed = run(Peer().handler.process(READ))
    modern = run(Peer().handler.process(READ | {"features": FEATURES}))

    assert {
        "protocol_version", "sync_type", "changes", "conflicts", "vector_clock", "cursor", "state_digest", "sync_stats",
        "server_time", "applied", "applied_relationships",
    } == set(deployed)  # fmt: skip
    assert "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" == deployed["state_digest"]
    assert deployed["cursor"] is modern["state_digest"] is None
    assert {"acks", "more", "resync", "digest", "features"} == set(modern) - set(deployed)


def test_a_model_that_has_grown_leaks_nothing_into_this_version(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer()
    peer.push(Change(entity=LAMP, relationships=()), Change(entity=HALL), Change(relationships=(LINK,)))
    stored = run(peer.handler.process(READ))["changes"]
    monkeypatch.setattr(v2, "_STORED_AS_SERVED", False)

    assert stored == run(peer.handler.process(READ))["changes"]


def test_the_deployed_digest_is_worked_out_once_per_place_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v2, "_digests", type(v2._digests)())
    peer = Peer()
    digests = [peer.push(Change(entity=entity("x", f"v{n:04}")))["state_digest"] for n in range(258)]

    assert 256 == len(v2._digests)
    assert digests[-1] == run(peer.handler.process(READ))["state_digest"]


def test_a_name_is_acked_whatever_became_of_one_that_is_shortened_like_it() -> None:
    quoted, other = entity('a"b', at(0)), entity("a'b", "x\ny")
    link = edge('a"b', quoted, quoted)
    lost = edge("c'd", quoted, entity("nobody", at(0)))
    answer = Peer().push(
        Change(entity=quoted, relationships=(link, lost)), Change(entity=other), Change(entity=entity('c"d', at(0)))
    )

    assert ["a'b", "c'd"] == [refused["id"] for refused in answer["refused"]]
    assert ['a"b', 'c"d'] == answer["applied"]
    assert ['a"b'] == answer["applied_relationships"]


def test_a_name_is_not_acked_while_one_of_its_rows_is_refused() -> None:
    answer = Peer().push(Change(entity=LAMP), Change(entity=entity("lamp", "bad\n")))

    assert ([], ["illegal_name"]) == (answer["applied"], [refused["code"] for refused in answer["refused"]])


@given(st.lists(st.sampled_from(["lamp", "hall"]), max_size=3), st.booleans(), st.integers(1, 5))
def test_what_a_client_asks_is_what_a_server_hears(ids: list[str], full: bool, rows: int) -> None:
    changes = tuple(Change(entity=entity(id_, f"v{n}"), relationships=(LINK,)) for n, id_ in enumerate(ids))
    body = v2.WIRE.ask(
        Ask(device="d", user="u", changes=changes, full=full, since=NOW, page_rows=rows, features=frozenset(FEATURES))
    )
    heard = v2.WIRE.decode(body, limits=LIMITS)

    assert ("full" if full else "delta", rows, tuple(FEATURES)) == (heard.sync_type, heard.page_rows, heard.features)
    assert list(changes) == [msgspec.structs.replace(change, pointer="") for change in v2._changes(heard.changes, "u")]


def test_an_ask_says_only_what_it_means() -> None:
    plain = msgspec.json.decode(v2.WIRE.ask(Ask(device="d", user="u")))
    whole = msgspec.json.decode(v2.WIRE.ask(Ask(device="d", user="u", cursor="c", offer=("a",), changes=(Change(),))))

    assert {"protocol_version", "device_id", "user_id", "sync_type", "vector_clock", "changes"} == set(plain)
    assert ("c", ["a"]) == (whole["cursor"], whole["supported_versions"])


def test_a_strict_reading_knows_the_envelope_and_nothing_else() -> None:
    fine = READ | {"supported_versions": ["a"], "client": {"name": "n"}}

    assert "d" == v2.WIRE.decode(msgspec.json.encode(fine), strict=True, limits=LIMITS).device_id
    with pytest.raises(RemoteProtocolError):
        v2.WIRE.decode(msgspec.json.encode(fine | {"more": 1}), strict=True, limits=LIMITS)


PLACE = Cursor("e", 1, bytes(16))
WITNESS: dict[str, Any] = {
    "witness": str(PLACE),
    "locate": [str(PLACE), "no place"],
    "common": str(PLACE),
    "skip": [[1, 2]],
    "want": [3],
    "compare": ["", "ab"],
    "pushes": {"after": ["a"], "now": "b"},
}


def test_what_only_peers_with_a_witness_can_say_is_heard_from_them_alone() -> None:
    """PROTOCOL 9.10."""
    change: dict[str, Any] = {"change_type": "update", "entity": LAMP, "offered": True}
    told = up(**WITNESS, features=["witness"], changes=[change, change | {"aside": True}])
    deaf = up(**WITNESS, features=["acks"])
    mute = up(features=["witness"])

    assert (PLACE, (PLACE,), PLACE, ((1, 2),), (3,), ("", "ab"), Pushes(after=("a",), now="b")) == (
        told.witness,
        told.locate,
        told.common,
        told.skip,
        told.want,
        told.compare,
        told.pushes,
    )
    assert [(True, frozenset()), (True, frozenset({("entity", "lamp")}))] == [
        (change.offered, change.aside) for change in told.changes
    ]
    nothing = (None, None, None, (), (), (), None)
    for request in (deaf, mute):
        assert nothing == (
            request.witness,
            request.locate,
            request.common,
            request.skip,
            request.want,
            request.compare,
            request.pushes,
        )


def test_a_client_with_a_witness_says_it_as_a_server_hears_it() -> None:
    ask = Ask(
        device="d",
        user="u",
        features=frozenset({"witness"}),
        request="r",
        witness=str(PLACE),
        locate=(str(PLACE),),
        common=str(PLACE),
        skip=((1, 2),),
        want=(3,),
        compare=("ab",),
        pushes=Pushes(after=("a",), now="b"),
        changes=(
            Change(entity=LAMP, offered=True),
            Change(relationships=(LINK,), offered=True, aside=frozenset({("edge", "e")})),
        ),
    )
    said = msgspec.json.decode(v2.WIRE.ask(ask))
    heard = up(**said)

    assert "r" == said["request_id"]
    assert ask.changes == tuple(msgspec.structs.replace(change, pointer="") for change in heard.changes)
    assert "relationships" not in said["changes"][0]
    assert (PLACE, (PLACE,), PLACE) == (heard.witness, heard.locate, heard.common)
    assert (ask.skip, ask.want, ask.compare, ask.pushes) == (heard.skip, heard.want, heard.compare, heard.pushes)


def test_a_read_by_a_peer_with_a_witness_says_to_what_it_is_an_answer() -> None:
    peer = Peer()
    peer.push(Change(entity=LAMP))
    said = peer.handle(features=[*FEATURES, "witness"], request_id="r")
    plain = peer.handle(features=FEATURES, request_id="r")

    assert ("r", [*FEATURES, "witness"]) == (said["request_id"], said["features"])
    assert ("request_id" not in plain, FEATURES) == (True, plain["features"])
    assert said["cursor"] == peer.say(features=["witness"]).cursor


def test_a_loss_that_a_read_finds_out_is_kept() -> None:
    """PROTOCOL 4.11. Reads are served in transactions that cannot write; this one is served once more."""
    peer = Peer()
    before = peer.push(Change(entity=LAMP), features=frozenset({"acks"}))["cursor"]
    stray = {"sync_type": "delta", "cursor": "ff:9:" + "0" * 32, "features": [*FEATURES, "witness"]}
    first = peer.handle(**stray)
    again = peer.handle(**stray)
    located = peer.say(**{**stray, "locate": [stray["cursor"]]})

    assert (True, True, []) == (first["resync"], first["more"], first["changes"])
    assert first["cursor"] == again["cursor"]
    assert first["cursor"].partition(":")[0] != before.partition(":")[0]
    assert (None, 8) == (located.common, len(located.listing or b""))
    assert first["cursor"].partition(":")[0] == parse_cursor(located.cursor or "").epoch  # type: ignore[union-attr]


def test_what_was_offered_is_told_in_short_and_read_back() -> None:
    peer = Peer()
    answer = peer.push(Change(entity=LAMP, offered=True), features=frozenset({"witness"}))
    told = v2.WIRE.told(msgspec.json.encode(answer))

    assert {rewind.short(row_hash("entity", body_of(LAMP))): True} == told.taken
    assert ([], []) == (answer["acks"], answer["applied"])


def test_other_content_of_a_version_that_is_told_in_short_is_acknowledged_in_full() -> None:
    copied = msgspec.structs.replace(LAMP, name="Copy")
    answer = Peer().push(*(Change(entity=row, offered=True) for row in (LAMP, copied)), features=frozenset({"witness"}))
    told = v2.WIRE.told(msgspec.json.encode(answer))

    assert {rewind.short(row_hash("entity", body_of(LAMP))): True} == told.taken
    assert [(LAMP.version, "lost_kept")] == [(ack["version"], ack["outcome"]) for ack in answer["acks"]]


def test_an_answer_of_a_deployed_server_is_read_with_what_it_leaves_out() -> None:
    lost = {"entity_id": "x", "local_version": "s", "remote_version": "r", "resolution_strategy": "t"}
    answer = v2.WIRE.told(msgspec.json.encode({"cursor": "500", "conflicts": [lost], "server_time": "soon"}))

    assert (True, None, None, "s") == (
        answer.more,
        answer.acks,
        answer.server_time,
        answer.conflicts[0].resolved_version,
    )
    assert not v2.WIRE.told(b"{}").more


def test_an_answer_reads_back_as_the_rows_that_were_sent() -> None:
    peer = Peer()
    peer.push(Change(entity=LAMP), Change(entity=HALL), Change(relationships=(LINK,)))
    answer = peer.say(features=FEATURES)
    rows: list[Entity | Relationship] = [change.entity for change in answer.changes if change.entity]
    rows += [edge for change in answer.changes for edge in change.relationships]

    assert [LAMP, HALL, msgspec.structs.replace(LINK, user_id="")] == rows
    assert Raw(canonical({})) == LAMP.content


def test_a_module_without_a_wire_version_or_with_a_taken_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LocalProtocolError, match="expected a WireVersion"):
        _wire_of(object(), "nothing")

    class Entry:
        name = "twin"

        def load(self) -> Any:
            return v2.WIRE

    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [Entry()])
    with pytest.raises(LocalProtocolError, match="two wire versions"):
        load()


def test_an_ack_that_says_what_no_ack_says_makes_the_answer_none() -> None:
    answer = {"acks": [{"kind": "entity", "id": "x", "version": "v", "outcome": "eaten"}]}
    with pytest.raises(RemoteProtocolError, match="one of the values that this wire version knows") as caught:
        v2.WIRE.told(msgspec.json.encode(answer))

    assert "/acks/0/outcome" == caught.value.pointer
