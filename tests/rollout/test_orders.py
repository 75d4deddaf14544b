"""What was decided comes to for one graph (PROTOCOL 12.3 to 12.5)."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies.errors import StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.registry import DOCUMENT as REGISTRY
from inbetweenies.registry import Registry
from inbetweenies.rollout import flags, states
from inbetweenies.rollout.canary import reaches
from inbetweenies.rollout.flags import FEATURES, Feature, Flags
from inbetweenies.rollout.orders import DOCUMENTS, NONE, Orders, orders_in
from inbetweenies.rollout.states import TRANSITIONS, Event, Rollout, Rollouts
from tests.rollout.made import WHY, begun, move

V1, V2 = "inbetweenies-v1", "inbetweenies-v2"
INSTALLED = Registry(accepted=(V2, V1), fallback=V1, missing=V1, revision="1-abc")
GRAPHS = ("home", "other", "third")

names = st.sampled_from(sorted(FEATURES))
events: tuple[Event, ...] = get_args(Event)


def documents(rollouts: Rollouts, switched: Flags | None = None) -> dict[str, Document]:
    return {
        REGISTRY: Document(),
        states.DOCUMENT: Document(revision=1, body=states.document_of(rollouts)),
        flags.DOCUMENT: Document(revision=1, body=flags.document_of(switched or Flags())),
    }


@st.composite
def rollouts(draw: st.DrawFn) -> Rollouts:
    """Rollouts of some subjects, each moved by some events that it can be moved by."""
    found = Rollouts()
    for subject in draw(st.lists(st.sampled_from((V2, *FEATURES)), unique=True)):
        found = found.started(subject, steps=(500_000,), cause=WHY)
        for event in draw(st.lists(st.sampled_from(events), max_size=12)):
            if (found.of(subject).state, event) in TRANSITIONS:
                found = move(found, subject, event)
    return found


def test_where_nothing_was_decided_everything_is_as_installed() -> None:
    assert set(DOCUMENTS) == set(NONE.documents)
    assert INSTALLED is NONE.registry(INSTALLED, "home")
    assert all(NONE.has(feature, "home") is feature.default for feature in FEATURES.values())


@given(rollouts(), st.sets(names), st.sampled_from(GRAPHS))
def test_a_feature_is_on_for_a_graph_only_with_all_that_it_needs(found: Rollouts, off: set[str], graph: str) -> None:
    orders = orders_in(documents(found, Flags(flags=dict.fromkeys(off, False))))
    for feature in FEATURES.values():
        rollout = found.rollouts.get(feature.name)
        kept_away = rollout is not None and rollout.governs and not reaches(rollout, graph)
        needed = all(orders.has(FEATURES[need], graph) for need in feature.needs)
        assert orders.has(feature, graph) is (feature.name in orders.on and not kept_away and needed)


@given(rollouts(), st.sets(names), st.sampled_from(GRAPHS))
def test_what_a_graph_is_offered_follows_from_what_reaches_it(found: Rollouts, off: set[str], graph: str) -> None:
    orders = orders_in(documents(found, Flags(flags=dict.fromkeys(off, False))))
    seen = orders.registry(INSTALLED, graph)
    rollout = found.rollouts.get(V2)
    given_v2 = (rollout is None or not rollout.governs or reaches(rollout, graph)) and orders.has(
        Feature.ENHANCED_SYNC, graph
    )
    assert (V2 in seen.offered) is given_v2
    assert V1 in seen.offered
    assert INSTALLED.accepted == seen.accepted
    assert (seen.revision == INSTALLED.revision) is (seen.offered == INSTALLED.offered)


def test_only_rollouts_that_govern_are_asked() -> None:
    found = begun(V2, "home")
    planned = Rollouts().started("mcp_server", cause=WHY)
    both = Rollouts(rollouts={**found.rollouts, **planned.rollouts})
    governing: tuple[Rollout, ...] = orders_in(documents(both)).governing
    assert [V2] == [one.subject for one in governing]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_cannot_be_read_is_nothing_to_go_by(name: str) -> None:
    with pytest.raises(StoreCorrupt):
        orders_in({**documents(Rollouts()), name: Document(revision=1, body=b'{"versions":1,"rollouts":1,"flags":1}')})


def test_orders_are_compared_by_what_the_store_holds() -> None:
    assert Orders(documents=documents(Rollouts())) != NONE
