"""The fallback router (PROTOCOL 5): every kind of body, through the public class, as a server author calls it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import (
    Feature,
    FeatureFlags,
    ProtocolFallback,
    RemoteProtocolError,
    V1ProtocolHandler,
    V2ProtocolHandler,
)
from inbetweenies.census import Sighting
from inbetweenies.errors import PROBLEM_BYTES_MAX, LocalProtocolError, StoreBusy, StoreUndone
from inbetweenies.exchange import UNDONE_MAX, Effect, RegistryChanged, Reply
from inbetweenies.model import Context, Reads
from inbetweenies.registry import Decision, Decisions, document_of
from inbetweenies.rollout.orders import DOCUMENTS
from inbetweenies.router import ProtocolHandler
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.testing.store_tests import read
from inbetweenies.wire import load
from tests.rollout.made import begun, keep, move
from tests.support import NOW, at, run

V1, V2, V7 = "inbetweenies-v1", "inbetweenies-v2", "inbetweenies-v7"
CONTEXT = Context(now=NOW)
GREASE = "inbetweenies-v2570"

LAMP = {
    "id": "lamp",
    "version": at(0),
    "entity_type": "device",
    "name": "Lamp",
    "content": {"on": True},
    "source_type": "manual",
    "user_id": "ann",
    "parent_versions": [],
}
HOME = LAMP | {"id": "home", "entity_type": "home", "name": "Home"}
V2_READ = {"protocol_version": V2, "device_id": "d", "user_id": "u", "sync_type": "full", "changes": []}
V2_PUSH = V2_READ | {"changes": [{"change_type": "create", "entity": entity} for entity in (HOME, LAMP)]}
ROOM = {
    "entity_type": "room",
    "entity_id": "room",
    "operation": "create",
    "data": {
        "id": "room",
        "home_id": "home",
        "name": "Kitchen",
        "created_at": "2026-06-15T09:41:02.000000",
        "updated_at": "2026-06-15T09:41:02.000000",
        "sync_id": None,
    },
    "client_sync_id": "c1",
}
HOUSE = {
    "entity_type": "home",
    "entity_id": "house",
    "operation": "create",
    "data": {"id": "house", "name": "House", "is_primary": True, "updated_at": "2026-06-15T09:41:02.000000"},
    "client_sync_id": "c2",
}
V1_PUSH = {"type": "sync_push", "client_id": "old", "changes": [ROOM]}


class Peer:
    """A fallback with a home in it, and what its store holds."""

    def __init__(self, **settings: Any) -> None:
        self.fallback = ProtocolFallback(MemoryStore(), clock=lambda: NOW, **settings)
        both = ProtocolFallback(self.fallback.store, clock=lambda: NOW)
        assert "error" not in run(both.handle_sync_request(V2_PUSH))
        self.both = both

    def ask(self, body: Any) -> dict[str, Any]:
        return run(self.fallback.handle_sync_request(body))

    def digest(self) -> str:
        digest: str = run(self.both.handle_sync_request(V2_READ))["state_digest"]
        return digest


def refused(code: str, **fields: Any) -> dict[str, Any]:
    return {"code": code, **fields}


CASES: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
    # what the body says, settings of the server, body, what the answer must hold
    ("v2", {}, V2_READ, {"protocol_version": V2}),
    ("v1 by name", {}, {"protocol_version": V1, "device_id": "d"}, {"type": "sync_delta"}),
    ("v1 by name, extra keys", {}, {"protocol_version": V1, "client_id": "d", "padding": 1}, {"type": "sync_delta"}),
    ("missing version, read", {}, {"type": "sync_request", "client_id": "d"}, {"type": "sync_delta"}),
    ("missing version, push", {}, V1_PUSH, {"type": "sync_result", "conflicts": []}),
    ("missing version, ack", {}, {"type": "sync_ack", "client_id": "d"}, {"type": "sync_ack_response"}),
    ("missing version, none meant", {"missing": None}, V1_PUSH, refused("version_required")),
    (
        "missing version, v2 meant",
        {"missing": V2},
        {k: v for k, v in V2_READ.items() if k != "protocol_version"},
        {"protocol_version": V2},
    ),
    ("missing version, v1 push that is none", {}, {"type": "sync_push", "client_id": "d"}, refused("malformed_body")),
    ("unknown, read", {}, V2_READ | {"protocol_version": V7}, {"protocol_version": V1, "type": "sync_delta"}),
    ("unknown, changes null", {}, {"protocol_version": V7, "changes": None}, {"protocol_version": V1}),
    (
        "unknown, read typed as a push",
        {},
        {"protocol_version": V7, "type": "sync_push", "changes": []},
        {"type": "sync_delta"},
    ),
    ("unknown, read typed as an ack", {}, {"protocol_version": V7, "type": "sync_ack"}, {"type": "sync_delta"}),
    (
        "unknown, exactly a v1 push",
        {},
        V1_PUSH | {"protocol_version": V7},
        {"protocol_version": V1, "type": "sync_result"},
    ),
    (
        "unknown, exactly, with envelope",
        {},
        V1_PUSH | {"protocol_version": V7, "features": ["x"]},
        {"type": "sync_result"},
    ),
    (
        "unknown, v2-shaped push",
        {},
        V2_PUSH | {"protocol_version": V7},
        refused("body_not_valid_for_version", requested=V7),
    ),
    (
        "unknown, v1 push and more",
        {},
        V1_PUSH | {"protocol_version": V7, "more": 1},
        refused("body_not_valid_for_version"),
    ),
    (
        "unknown, changes of another shape",
        {},
        {"protocol_version": V7, "changes": {"a": 1}},
        refused("body_not_valid_for_version"),
    ),
    (
        "unknown, offering v2",
        {},
        V2_PUSH | {"protocol_version": V7, "supported_versions": [V7, V2]},
        {"protocol_version": V2},
    ),
    (
        "unknown, offering both",
        {},
        V2_READ | {"protocol_version": V7, "supported_versions": [V1, V2]},
        {"protocol_version": V2},
    ),
    (
        "unknown, offering only unknown",
        {},
        V2_READ | {"protocol_version": V7, "supported_versions": [V7]},
        refused("no_common_version", side="server"),
    ),
    (
        "unknown, offering nothing",
        {},
        V2_READ | {"protocol_version": V7, "supported_versions": []},
        refused("no_common_version"),
    ),
    (
        "unknown, offer not a list",
        {},
        {"protocol_version": V7, "supported_versions": V2},
        refused("malformed_version", pointer="/supported_versions"),
    ),
    (
        "unknown, offer of no names",
        {},
        {"protocol_version": V7, "supported_versions": [1]},
        refused("malformed_version"),
    ),
    (
        "unknown, offer too long",
        {},
        {"protocol_version": V7, "supported_versions": [V2] * 65},
        refused("malformed_version"),
    ),
    (
        "unknown, no fallback",
        {"fallback": None},
        V2_READ | {"protocol_version": V7},
        refused("unsupported_version", supported=[V2, V1]),
    ),
    ("unknown in the wild", {}, {"protocol_version": "inbetweenies-v1-stream"}, {"protocol_version": V1}),
    ("unknown in upper case", {}, {"protocol_version": "INBETWEENIES-V2"}, {"protocol_version": V1}),
    ("unknown with spaces", {}, {"protocol_version": " "}, {"protocol_version": V1}),
    ("grease, read", {}, {"protocol_version": GREASE}, {"protocol_version": V1}),
    ("grease, write", {}, V2_PUSH | {"protocol_version": GREASE}, refused("body_not_valid_for_version")),
    (
        "grease among the offer",
        {},
        V2_READ | {"protocol_version": GREASE, "supported_versions": [GREASE, V2]},
        {"protocol_version": V2},
    ),
    ("null", {}, {"protocol_version": None}, refused("malformed_version", got="null", supported=[V2, V1])),
    ("number", {}, {"protocol_version": 2}, refused("malformed_version", got="a number")),
    ("boolean", {}, {"protocol_version": True}, refused("malformed_version")),
    ("array", {}, {"protocol_version": [V2]}, refused("malformed_version")),
    ("object", {}, {"protocol_version": {}}, refused("malformed_version")),
    ("empty", {}, {"protocol_version": ""}, refused("malformed_version")),
    ("65 characters", {}, {"protocol_version": "x" * 65}, refused("malformed_version")),
    ("64 characters", {}, {"protocol_version": "x" * 64}, {"protocol_version": V1}),
    ("a megabyte", {}, {"protocol_version": "x" * 10**6}, refused("malformed_version")),
    ("control character", {}, {"protocol_version": V2 + "\n"}, refused("malformed_version")),
    ("other digits", {}, {"protocol_version": "inbetweenies-v２"}, refused("malformed_version")),
    ("disabled, write", {"disabled": [V2]}, V2_PUSH, refused("version_disabled", supported=[V1], status=400)),
    ("disabled, read", {"disabled": [V2]}, V2_READ, refused("version_disabled", retry="renegotiate")),
    (
        "disabled, read offering v1",
        {"disabled": [V2]},
        V2_READ | {"supported_versions": [V2, V1]},
        {"protocol_version": V1},
    ),
    (
        "disabled, write offering v1",
        {"disabled": [V2]},
        V2_PUSH | {"supported_versions": [V1]},
        refused("version_disabled"),
    ),
    ("disabled v1, none named", {"disabled": [V1]}, V1_PUSH, refused("version_required")),
    ("retired", {"retired": [V1]}, {"protocol_version": V1}, refused("version_retired", status=410)),
    (
        "v2 only, server without v2",
        {"retired": [], "disabled": [], "only": V1},
        V2_READ | {"supported_versions": [V2]},
        refused("no_common_version", side="server"),
    ),
    ("v2, body of another shape", {}, {"protocol_version": V2, "device_id": 1}, refused("malformed_body")),
    ("v2, missing field", {}, {"protocol_version": V2}, refused("malformed_body")),
]


@pytest.mark.parametrize(
    ("settings", "body", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_case_is_served_or_refused_as_specified(settings: Any, body: Any, expected: dict[str, Any]) -> None:
    settings = dict(settings)
    only = settings.pop("only", None)
    peer = Peer(**settings)
    if only:
        peer.fallback.handlers = {only: peer.fallback.handlers[only]}
    before = peer.digest()
    told = peer.ask(body)

    assert expected == {key: told.get(key) for key in expected}
    if "code" in expected:
        assert "error" in told
        assert before == peer.digest()
    else:
        assert "error" not in told


def test_a_fallback_says_what_was_asked_what_was_served_and_why() -> None:
    told = Peer().ask({"protocol_version": V7, "device_id": "d"})["negotiation"]

    assert (V7, V1, "fallback", [V2, V1]) == tuple(told[key] for key in ("requested", "served", "source", "supported"))
    assert told["reason"]


def test_an_offer_says_so_too_and_an_exact_version_needs_no_word() -> None:
    peer = Peer()

    assert "offer" == peer.ask(V2_READ | {"protocol_version": V7, "supported_versions": [V2]})["negotiation"]["source"]
    assert "negotiation" not in peer.ask(V2_READ)
    assert "negotiation" not in peer.ask({"protocol_version": V1})
    assert "protocol_version" not in peer.ask({"type": "sync_request", "client_id": "c"})


def test_a_write_in_an_unknown_version_that_is_a_v1_push_lands_in_the_graph() -> None:
    peer = Peer()
    told = peer.ask(V1_PUSH | {"protocol_version": V7})
    graph = peer.ask(V2_READ)["changes"]

    assert ["applied"] == [entry["status"] for entry in told["applied"]]
    assert {"home", "lamp", "room"} == {change["entity"]["id"] for change in graph}


@pytest.mark.parametrize(("header", "code"), [(V1, "version_conflict"), ("", "malformed_version"), (V2, None)])
def test_a_header_must_agree_with_the_body(header: str, code: str | None) -> None:
    reply = run(Peer().fallback.handle(msgspec.json.encode(V2_READ), context=CONTEXT, header=header))

    assert code == msgspec.json.decode(reply.body).get("code")


@pytest.mark.parametrize("named", [b"1E400", b'"\\ud800"', b'["\\ud800"]', b"9" * 200])
@pytest.mark.parametrize("key", [b"protocol_version", b"supported_versions"])
def test_a_version_that_the_decoder_only_finds_wrong_when_it_looks_again_is_refused(key: bytes, named: bytes) -> None:
    body = b'{"protocol_version":"inbetweenies-v7","%s":%s}' % (key, named)
    reply = run(Peer().fallback.handle(body, context=CONTEXT))

    assert 400 == reply.status
    assert msgspec.json.decode(reply.body)["code"] in ("malformed_body", "malformed_version")


def test_a_header_alone_names_the_version() -> None:
    body = dict(V2_READ)
    del body["protocol_version"]
    reply = run(Peer().fallback.handle(msgspec.json.encode(body), context=CONTEXT, header=V2))

    assert (200, V2) == (reply.status, reply.served)


def test_handlers_may_be_changed_at_any_time() -> None:
    class Echo:
        async def process(self, request: dict[str, Any]) -> dict[str, Any]:
            return {"echo": request["word"]}

    peer = Peer()
    alone = ProtocolFallback(handlers={"inbetweenies-v9": Echo()}, fallback=None)
    assert {"echo": "hi"} == run(alone.handle_sync_request({"protocol_version": "inbetweenies-v9", "word": "hi"}))
    peer.fallback.handlers["inbetweenies-v9"] = Echo()

    assert {"echo": "hi"} == peer.ask({"protocol_version": "inbetweenies-v9", "word": "hi"})
    del peer.fallback.handlers["inbetweenies-v9"]
    assert V1 == peer.ask({"protocol_version": "inbetweenies-v9"})["protocol_version"]
    del peer.fallback.handlers[V2]
    assert "body_not_valid_for_version" == peer.ask(V2_PUSH)["code"]


@pytest.mark.parametrize("body", [{"a": float("nan")}, {"a": object()}, {1: {2: {3}}}])
def test_a_dict_that_is_no_json_is_refused_as_an_answer(body: Any) -> None:
    assert "malformed_body" == Peer().ask(body)["code"]


def test_a_dict_that_is_a_circle_or_bottomless_is_refused_as_an_answer() -> None:
    circle: dict[str, Any] = {}
    circle["circle"] = circle
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"deeper": deep}

    assert "malformed_body" == Peer().ask(circle)["code"]
    assert "malformed_body" == Peer().ask(deep)["code"]


@given(
    st.one_of(
        st.binary(), st.text().map(str.encode), st.from_regex(r'\{"protocol_version": ?.{0,40}\}').map(str.encode)
    )
)
def test_any_bytes_are_served_or_refused_in_a_kilobyte(body: bytes) -> None:
    reply = run(ProtocolFallback().handle(body, context=CONTEXT))
    told = msgspec.json.decode(reply.body)

    assert (reply.status == 200) == ("error" not in told)
    assert reply.status in (200, 400)
    if reply.status == 400:
        assert len(reply.body) <= PROBLEM_BYTES_MAX
        assert told["code"] in reply.notice  # type: ignore[operator]


def test_a_store_that_cannot_is_told_as_unavailable() -> None:
    class Busy(MemoryStore):
        def transaction(self, graph: str, *, write: bool) -> Any:
            raise StoreBusy("later")

    reply = run(ProtocolFallback(Busy()).handle(msgspec.json.encode(V2_READ), context=CONTEXT))

    assert (503, "unavailable") == (reply.status, msgspec.json.decode(reply.body)["code"])


@pytest.mark.parametrize(("undone", "status"), [(0, 200), (1, 200), (UNDONE_MAX, 200), (UNDONE_MAX + 1, 503)])
def test_what_was_undone_for_the_sake_of_others_is_done_again(undone: int, status: int) -> None:
    class Shared(MemoryStore):
        left = undone

        def transaction(self, graph: str, *, write: bool) -> Any:
            self.left -= write
            if write and self.left >= 0:
                raise StoreUndone("somebody else's commit failed")
            return super().transaction(graph, write=write)

    store = Shared()
    reply = run(ProtocolFallback(store).handle(msgspec.json.encode(V2_PUSH), context=CONTEXT))
    held = run(ProtocolFallback(store).handle_sync_request(V2_READ))["changes"]

    assert (status, 2 * (status == 200)) == (reply.status, len(held))


@pytest.mark.parametrize(
    ("handler", "request_"), [(V1ProtocolHandler, V1_PUSH | {"changes": [HOUSE]}), (V2ProtocolHandler, V2_PUSH)]
)
def test_a_handler_serves_its_own_version_from_a_dict(handler: type[ProtocolHandler], request_: Any) -> None:
    answer = run(handler().process(request_))

    assert 1 <= len(answer["applied"])
    with pytest.raises(RemoteProtocolError):
        run(handler().process({"changes": 7}))


def test_a_handler_of_no_wire_version_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(LocalProtocolError, match="inbetweenies-v2"):
        ProtocolHandler()


def test_the_newest_version_is_the_best() -> None:
    assert [V2, V1] == list(load())
    assert (V2, V1) == ProtocolFallback().registry.accepted


# --- what an operator decided -------------------------------------------------------------------------------------


def decided(**states: Any) -> bytes:
    """The document that puts v1, v2... into these states."""
    return document_of(
        Decisions(versions={f"inbetweenies-{name}": Decision(state=state) for name, state in states.items()})
    )


class Operator:
    """A fallback over a store whose decisions are changed from outside, as by another process."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.fallback = ProtocolFallback(self.store, clock=lambda: NOW)

    def decide(self, **states: Any) -> None:
        revision = run(self.store.document("registry")).revision
        assert run(self.store.put_document("registry", decided(**states), revision=revision))

    def handle(self, body: Any, **more: Any) -> tuple[Reply, dict[str, Any]]:
        reply = run(self.fallback.handle(msgspec.json.encode(body), context=CONTEXT, **more))
        return reply, msgspec.json.decode(reply.body)


def test_what_is_decided_in_the_store_holds_for_the_next_request() -> None:
    peer = Operator()
    assert 200 == peer.handle(V2_PUSH)[0].status

    peer.decide(v2="disabled")
    off, told = peer.handle(V2_PUSH)
    peer.decide(v2="deployed")
    on, _ = peer.handle(V2_PUSH)

    assert (400, "version_disabled", [V1]) == (off.status, told["code"], told["supported"])
    assert told["registry_revision"].startswith("1-")
    assert 200 == on.status
    assert peer.fallback.registry.revision.startswith("2-")


def test_no_write_commits_in_a_version_that_was_switched_off_before_its_transaction() -> None:
    peer = Operator()
    routed = peer.fallback.route(msgspec.json.encode(V2_PUSH))
    peer.decide(v2="disabled")

    with pytest.raises(RegistryChanged):
        run(routed.handler.begin(routed.message, CONTEXT, routed.negotiation, routed.decided))

    assert 0 == run(read(peer.store, "default", Reads())).head.seq


def test_who_was_on_the_way_when_a_version_was_switched_off_is_answered_by_what_is_in_force() -> None:
    peer = Operator()
    route = peer.fallback.route

    def switch_off(body: bytes, asked: Any, graph: str) -> Any:
        routed = route(body, asked, graph)
        peer.fallback.route = route  # type: ignore[method-assign]
        peer.decide(v2="disabled")
        return routed

    peer.fallback.route = switch_off  # type: ignore[method-assign, assignment]

    reply, told = peer.handle(V2_PUSH)

    assert (400, "version_disabled") == (reply.status, told["code"])
    assert 0 == run(read(peer.store, "default", Reads())).head.seq


def test_an_operator_who_never_rests_is_told_as_unavailable() -> None:
    peer = Operator()
    route = peer.fallback.route

    def change(body: bytes, asked: Any, graph: str) -> Any:
        routed = route(body, asked, graph)
        peer.decide(v1="offered")
        return routed

    peer.fallback.route = change  # type: ignore[method-assign, assignment]
    reply, told = peer.handle(V2_READ)

    assert (503, "unavailable") == (reply.status, told["code"])


def test_what_only_the_store_knows_is_learnt_by_asking_it() -> None:
    peer = Operator()
    peer.decide(v2="accepted")

    assert run(peer.fallback.refresh())
    assert not run(peer.fallback.refresh())
    assert ((V2, V1), (V1,)) == (peer.fallback.registry.accepted, peer.fallback.registry.supported)


def test_whoever_offers_what_is_preferred_here_is_told_once_more_where_to_go() -> None:
    peer = Operator()
    told = peer.handle({"protocol_version": V1, "client_id": "c", "supported_versions": [V2, V1]})[1]
    quiet = peer.handle({"protocol_version": V2, "supported_versions": [V2, V1], **V2_READ})[1]

    assert ("sync_delta", "exact", [V2, V1]) == (
        told["type"],
        told["negotiation"]["source"],
        told["negotiation"]["supported"],
    )
    assert "negotiation" not in quiet


def test_a_header_offers_where_the_body_does_not() -> None:
    peer = Operator()
    unknown = V2_READ | {"protocol_version": V7}
    by_header = peer.handle(unknown, accept=f"{V7}, {V2} ,{V1}")[0]
    by_body = peer.handle(unknown | {"supported_versions": [V1]}, accept=V2)[0]
    malformed, told = peer.handle(unknown, accept=f"{V2},")

    assert (V2, V1) == (by_header.served, by_body.served)
    assert (400, "malformed_version") == (malformed.status, told["code"])


# --- what the census sees -----------------------------------------------------------------------------------------

OFF = {"disabled": {V2}, "retired": {"inbetweenies-v0"}}
APP = {"client": {"name": "app", "version": "1"}}


@pytest.mark.parametrize(
    ("settings", "body", "expected"),
    [
        ({}, V2_READ, Sighting(version=V2, release="curl/8", served=V2)),
        ({}, V2_READ | APP, Sighting(version=V2, release="app/1", served=V2)),
        ({}, V2_READ | {"client": 7}, Sighting(version=V2, release="curl/8", served=V2)),
        ({}, V2_READ | {"client": "x" * 600}, Sighting(version=V2, release="curl/8", served=V2)),
        ({}, V2_PUSH, Sighting(version=V2, release="curl/8", served=V2, wrote=True)),
        (
            {},
            V2_READ | {"supported_versions": [V7, V1, V2]},
            Sighting(version=V2, release="curl/8", served=V2, offers=(V2, V1)),
        ),
        ({}, {"client_id": "c"}, Sighting(version="missing", release="curl/8", served=V1)),
        ({}, V2_READ | {"protocol_version": V7}, Sighting(version="unknown", release="curl/8", served=V1)),
        ({}, V2_READ | {"protocol_version": GREASE}, Sighting(version="grease", release="curl/8", served=V1)),
        ({}, V2_PUSH | {"protocol_version": V7}, Sighting(version="unknown", release="curl/8")),
        ({}, V2_READ | {"protocol_version": None}, Sighting(version="null", release="curl/8")),
        ({}, V2_READ | {"protocol_version": 7} | APP, Sighting(version="malformed", release="app/1")),
        ({}, V2_READ | {"supported_versions": 7}, Sighting(version="malformed", release="curl/8")),
        ({"missing": None}, {"client_id": "c"}, Sighting(version="missing", release="curl/8")),
        ({}, V2_READ | {"sync_type": 7}, Sighting(version=V2, release="curl/8")),
        ({}, [], Sighting(version="malformed", release="curl/8")),
        (OFF, V2_PUSH, Sighting(version="disabled", release="curl/8")),
        (OFF, V2_READ | {"protocol_version": "inbetweenies-v0"}, Sighting(version="retired", release="curl/8")),
        (
            OFF,
            V2_READ | {"supported_versions": [V2, V1]},
            Sighting(version="disabled", release="curl/8", served=V1, offers=(V1,)),
        ),
    ],
)  # fmt: skip
def test_each_request_is_counted_under_what_it_asked_for(settings: Any, body: Any, expected: Sighting) -> None:
    fallback = ProtocolFallback(MemoryStore(), clock=lambda: NOW, **settings)
    reply = run(fallback.handle(msgspec.json.encode(body), context=CONTEXT, agent="curl/8"))

    assert expected == reply.sighting


def test_what_is_no_client_is_counted_as_nobody() -> None:
    body = msgspec.json.encode(V2_READ)[:-1] + b',"client":{"name":1e999}}'

    assert (
        Sighting(version=V2, release="unknown", served=V2)
        == run(ProtocolFallback().handle(body, context=CONTEXT)).sighting
    )


def test_where_nothing_is_served_nothing_is_counted() -> None:
    fallback = ProtocolFallback(disabled={V1, V2})

    assert None is run(fallback.handle(b"{", context=CONTEXT)).sighting
    with pytest.raises(LocalProtocolError):
        run(fallback.handle(msgspec.json.encode(V2_READ), context=CONTEXT))


def test_a_process_that_had_nothing_left_to_serve_serves_again_what_is_switched_on() -> None:
    store = MemoryStore()
    fallback = ProtocolFallback(store, disabled={V2})
    off = document_of(Decisions(versions={V1: Decision(state="disabled")}))
    run(store.put_document("registry", off, revision=0))
    with pytest.raises(LocalProtocolError):
        run(fallback.handle(msgspec.json.encode(V1_PUSH), context=CONTEXT))

    run(store.put_document("registry", document_of(Decisions()), revision=1))

    assert 200 == run(fallback.handle(msgspec.json.encode(V1_PUSH), context=CONTEXT)).status


def test_two_versions_in_one_request_are_counted_as_a_conflict() -> None:
    reply = run(ProtocolFallback().handle(msgspec.json.encode(V2_READ), context=CONTEXT, header=V1))

    assert Sighting(version="conflict", release="unknown") == reply.sighting


def test_a_refusal_says_which_version_it_is_about() -> None:
    fallback = ProtocolFallback(retired={"inbetweenies-v0"})
    body = msgspec.json.encode(V2_READ | {"protocol_version": "inbetweenies-v0"})

    assert "inbetweenies-v0" == run(fallback.handle(body, context=CONTEXT)).about


# --- what is rolled out -------------------------------------------------------------------------------------------


def test_a_rollout_decides_to_whom_a_version_is_offered() -> None:
    peer = Operator()
    keep(peer.store, begun(V2, "reached"))
    run(peer.fallback.refresh())

    assert (V2, V1) == peer.fallback.registry_for("reached").supported == peer.fallback.registry.supported
    assert (V1,) == peer.fallback.registry_for("another").supported
    assert (V2, V1) == peer.fallback.registry_for("another").accepted


def test_no_write_commits_by_a_rollout_that_was_moved_before_its_transaction() -> None:
    peer = Operator()
    for change in (begun(V2), move(begun(V2), V2, "roll_back")):
        routed = peer.fallback.route(msgspec.json.encode(V2_PUSH), graph="default")
        keep(peer.store, change)
        with pytest.raises(RegistryChanged) as caught:
            run(routed.handler.begin(routed.message, CONTEXT, routed.negotiation, routed.decided))
        assert peer.fallback.learn(caught.value.documents)
    assert 0 == run(read(peer.store, "default", Reads())).head.seq
    assert 200 == peer.handle(V2_PUSH)[0].status


def test_a_switch_of_a_feature_counts_for_the_next_request() -> None:
    peer = Operator()
    flags = FeatureFlags(peer.store)
    wanted = {**V2_READ, "supported_versions": [V2, V1]}
    assert "negotiation" not in peer.handle(wanted)[1]
    flags.disable(Feature.ENTITY_VERSIONING)  # which enhanced sync needs
    off = peer.handle(wanted)[1]
    flags.enable(Feature.ENTITY_VERSIONING)
    flags.enable(Feature.ENHANCED_SYNC)
    assert [V1, V2] == off["negotiation"]["supported"]
    assert "negotiation" not in peer.handle(wanted)[1]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_orders_that_cannot_be_read_stop_the_server_and_change_nothing(name: str) -> None:
    peer = Operator()
    peer.handle(V2_READ)
    assert run(peer.store.put_document(name, b"{", revision=0))

    assert 503 == peer.handle(V2_PUSH)[0].status
    assert (V2, V1) == peer.fallback.registry_for("default").supported


def test_a_reply_tells_what_serving_came_to() -> None:
    """PROTOCOL 12.6: what a step of a rollout has to have seen."""
    peer = Operator()
    lamp = {**LAMP, "version": at(1), "content": {"on": False}, "parent_versions": []}
    effects = [
        peer.handle(body)[0].effect
        for body in (
            {"protocol_version": "x" * 65},
            {"client_id": "c", "type": "sync_request"},
            V2_PUSH,
            V2_READ | {"changes": [{"change_type": "update", "entity": lamp}]},
            V2_READ | {"sync_type": "delta", "features": ["paging"], "page_rows": 1},
        )
    ]

    assert effects == [
        None,
        Effect(),
        Effect(pushed=True, pulled=True),
        Effect(pushed=True, pulled=True, conflicts=True),
        Effect(pulled=True, whole=False),
    ]
