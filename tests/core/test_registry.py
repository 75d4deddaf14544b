"""The registry (PROTOCOL 5.2): what may be in force together, in which order, and how it is made of what is kept."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.registry import (
    Decision,
    Decisions,
    Notice,
    Registry,
    State,
    decisions_in,
    document_of,
    registry_of,
)

V1, V2, V3, V10 = (f"inbetweenies-v{n}" for n in (1, 2, 3, 10))
NAMES = (V10, V3, V2, V1)
STATES: tuple[State, ...] = ("deployed", "offered", "accepted", "disabled", "retired")

notices = st.builds(
    Notice,
    since=st.integers(0, 2**50),
    sunset=st.none() | st.integers(2**50, 2**52),
    successor=st.none() | st.sampled_from(NAMES),
    link=st.none() | st.just("https://example.org/v1"),
)
decisions = st.builds(
    Decisions,
    versions=st.dictionaries(
        st.sampled_from((*NAMES, "inbetweenies-v4")),
        st.builds(Decision, state=st.sampled_from(STATES), notice=st.none() | notices),
    ),
)


def test_only_nested_states_are_a_registry() -> None:
    subsets = [subset for size in range(4) for subset in combinations((V3, V2, V1), size)]
    for accepted in subsets:
        for offered in subsets:
            for deployed in subsets:
                fields: dict[str, Any] = {"accepted": accepted, "offered": offered, "deployed": deployed}
                if accepted and set(deployed) <= set(offered) <= set(accepted):
                    assert accepted == Registry(**fields).accepted
                else:
                    with pytest.raises(LocalProtocolError):
                        Registry(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"disabled": frozenset({V2})},
        {"retired": frozenset({V2})},
        {"disabled": frozenset({V3}), "retired": frozenset({V3})},
        {"docs": "x" * 101},
        {"docs": "é"},
    ],
)
def test_a_registry_that_contradicts_itself_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        Registry(accepted=(V2, V1), **fields)


def test_what_is_deployed_is_chosen_first_then_what_is_offered_and_the_best_of_each_first() -> None:
    registry = Registry(accepted=NAMES, offered=(V10, V3, V1), deployed=(V1, V3))

    assert (V3, V1, V10, V2) == registry.preference
    assert (V3, V1, V10) == registry.supported


def test_order_is_the_servers_and_not_that_of_the_names() -> None:
    assert (V10, V2) == Registry(accepted=(V10, V2)).supported
    assert (V2, V10) == Registry(accepted=(V2, V10)).supported


def test_the_status_of_each_version_is_what_discovery_calls_it() -> None:
    registry = Registry(
        accepted=(V10, V3, V2),
        offered=(V3, V2),
        disabled=frozenset({V1}),
        retired=frozenset({"inbetweenies-v0"}),
        notices={V2: Notice(since=0)},
    )

    told = {name: registry.status(name) for name in (V10, V3, V2, V1, "inbetweenies-v0")}
    assert ["deprecated", "current", "deprecated", "disabled", "retired"] == list(told.values())
    assert "supported" == Registry(accepted=(V3, V2)).status(V2)


def test_what_nothing_was_decided_about_is_deployed() -> None:
    registry = registry_of(NAMES, Decisions(), fallback=V1, missing=V1)

    assert NAMES == registry.accepted == registry.offered == registry.deployed
    assert (V1, V1) == (registry.fallback, registry.missing)


def test_decisions_move_versions_between_states() -> None:
    decided = Decisions()
    for name, state in zip((V10, V3, V2, V1), STATES, strict=False):
        decided = decided.but(name, Decision(state=state))
    decided = decided.but("inbetweenies-v4", Decision(state="retired"))
    registry = registry_of(NAMES, decided)

    assert ((V10, V3, V2), (V10, V3), (V10,)) == (registry.accepted, registry.offered, registry.deployed)
    assert (frozenset({V1}), frozenset({"inbetweenies-v4"})) == (registry.disabled, registry.retired)


def test_a_process_may_switch_off_more_than_the_store_does() -> None:
    registry = registry_of(
        NAMES, Decisions().but(V3, Decision(state="disabled")), disabled=frozenset({V2}), retired=frozenset({V1})
    )

    assert ((V10,), frozenset({V3, V2}), frozenset({V1})) == (registry.accepted, registry.disabled, registry.retired)


def test_nothing_accepted_is_no_registry() -> None:
    with pytest.raises(LocalProtocolError, match="at least one"):
        registry_of((V2,), Decisions().but(V2, Decision(state="disabled")))


def test_a_decision_that_says_nothing_is_not_kept() -> None:
    decided = Decisions().but(V2, Decision(state="disabled"))

    assert Decisions() == decided.but(V2, Decision())
    assert Decision() == Decisions().of(V2)


@given(decisions)
def test_decisions_come_back_from_the_store(decided: Decisions) -> None:
    assert decided == decisions_in(Document(revision=1, body=document_of(decided)))


def test_a_document_that_was_never_written_decides_nothing() -> None:
    assert Decisions() == decisions_in(Document())


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b"{",
        b'{"versions":{"v":{"state":"sleeping"}}}',
        b'{"versions":{"v":{"notice":{"since":2,"sunset":1}}}}',
        b'{"versions":{"v":{"notice":{"since":1,"link":"a\\r\\nb"}}}}',
    ],
)
def test_what_is_no_document_of_decisions_is_corruption(body: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        decisions_in(Document(revision=1, body=body))


@pytest.mark.parametrize(
    "fields",
    [
        {"sunset": 4},
        {"link": ""},
        {"link": "a b"},
        {"link": "a>b"},
        {"link": "a\r\nb: c"},
        {"link": "é"},
        {"successor": "x" * 501},
        {"successor": "a\nb"},
    ],
)
def test_a_notice_holds_nothing_that_could_not_stand_in_a_header(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        Notice(since=5, **fields)


@given(decisions, decisions, st.integers(0, 3), st.integers(0, 3))
def test_the_revision_changes_with_everything_that_is_in_force(
    one: Decisions, other: Decisions, changes: int, later: int
) -> None:
    made = []
    for decided, count in ((one, changes), (other, later)):
        try:
            made.append(registry_of(NAMES, decided, changes=count))
        except LocalProtocolError:
            return
    first, second = made
    same = replace(first, revision="") == replace(second, revision="") and changes == later

    assert same == (first.revision == second.revision)
    assert len(first.revision) <= 32
    assert msgspec.json.encode(first)
