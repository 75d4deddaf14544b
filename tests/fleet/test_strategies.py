"""The strategies make what they say: legal messages that every codec takes, of every kind; and broken ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from inbetweenies.limits import Limits, gate
from inbetweenies.model import Context, Entity, Relationship, SyncRequest, body_of, edit_time
from inbetweenies.negotiation import check_name
from inbetweenies.router import ProtocolFallback
from inbetweenies.testing import strategies
from inbetweenies.testing.fleet_base import codec
from tests.support import run

LIMITS = Limits()
NOW = 1_790_000_000_000_000
FEW = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


def server() -> ProtocolFallback:
    return ProtocolFallback(clock=lambda: NOW)


SERVER = server()


def encoded(body: dict[str, Any]) -> bytes:
    return msgspec.json.encode(body)


def v2_meaning(body: bytes) -> SyncRequest:
    v2 = codec("inbetweenies-v2")
    gate(body, LIMITS)
    plan = v2.up(v2.decode(body, limits=LIMITS), Context(), LIMITS)
    with pytest.raises(StopIteration) as stop:
        next(plan)
    meaning: SyncRequest = stop.value.value
    return meaning


@FEW
@given(strategies.v2_requests())
def test_a_v2_request_is_taken_by_the_codec_and_keeps_what_it_says(body: dict[str, Any]) -> None:
    meaning = v2_meaning(encoded(body))

    pushed = [change for change in body.get("changes", ()) if change.get("entity")]
    assert [change["entity"]["id"] for change in pushed] == [c.entity.id for c in meaning.changes if c.entity]
    assert frozenset(body.get("features", ())) == meaning.features


@FEW
@given(st.one_of(strategies.entities(), strategies.relationships()))
def test_a_value_survives_its_canonical_form(value: Entity | Relationship) -> None:
    body = body_of(value)

    assert body == body_of(msgspec.json.decode(body, type=type(value)))


@FEW
@given(strategies.v1_messages())
def test_a_v1_message_is_taken_by_the_codec(body: dict[str, Any]) -> None:
    codec("inbetweenies-v1").decode(encoded(body), limits=LIMITS)


@FEW
@given(strategies.bodies())
def test_a_body_passes_the_gate_and_never_raises(body: bytes) -> None:
    gate(body, LIMITS)
    reply = run(SERVER.handle(body, context=Context(now=NOW)))

    assert reply.status in (200, 400)


@FEW
@given(strategies.messages())
def test_a_legal_message_is_served_or_refused_for_its_version_alone(body: dict[str, Any]) -> None:
    answer = run(SERVER.handle_sync_request(body))

    if "error" in answer:
        assert answer["code"] == "body_not_valid_for_version"
        assert "op" in body["changes"][0]


@FEW
@given(strategies.unknown_writes())
def test_a_write_of_tomorrow_is_refused(body: dict[str, Any]) -> None:
    assert "error" in run(server().handle_sync_request(body))


@FEW
@given(strategies.broken())
def test_what_is_broken_is_refused_whole(body: bytes) -> None:
    reply = run(SERVER.handle(body, context=Context(now=NOW)))

    assert reply.status == 400


@given(strategies.version_names())
def test_a_version_name_is_well_formed(name: str) -> None:
    assert name == check_name(name)


@pytest.mark.parametrize(
    ("strategy", "seldom"),
    [
        (strategies.row_versions(), lambda version: edit_time(version) is None),
        (strategies.row_versions(), lambda version: version.startswith("v-")),
        (strategies.ids(), lambda id_: len(id_.encode()) > 1000),
        (strategies.contents(), lambda content: bool(content.get("deleted"))),
        (strategies.contents(), lambda content: "deep" in content),
        (strategies.v2_requests(features=False), lambda body: any("entity" not in c for c in body.get("changes", ()))),
        (strategies.v2_requests(features=True), lambda body: "paging" in body["features"] and body.get("page_rows")),
        (strategies.v2_requests(), lambda body: (body.get("filters") or {}).get("since") is not None),
        (strategies.v1_pushes(), lambda body: len(body["changes"]) > 1),
        (strategies.messages(), lambda body: body.get("protocol_version", "").startswith("inbetweenies-v3")),
    ],
)
def test_what_is_seldom_is_drawn(strategy: st.SearchStrategy[Any], seldom: Any) -> None:
    find(strategy, seldom, settings=settings(FEW, max_examples=2_000, database=None, phases=[Phase.generate]))


def test_every_type_of_record_is_drawn() -> None:
    seen: Counter[str] = Counter()

    @settings(FEW, max_examples=150, derandomize=True, database=None)
    @given(strategies.v1_changes())
    def draw(change: dict[str, Any]) -> None:
        seen[change["entity_type"]] += 1

    draw()

    assert set(strategies.V1_TYPES) == set(seen)
