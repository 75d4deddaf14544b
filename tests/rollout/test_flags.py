"""Features and their flags (PROTOCOL 12.4): nothing is on without what it needs, whoever switches what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreCorrupt, StoreError
from inbetweenies.model import Document
from inbetweenies.rollout import flags as module
from inbetweenies.rollout.flags import (
    FEATURES,
    LOG_MAX,
    Catalogue,
    Feature,
    Flags,
    InForce,
    Switch,
    catalogue,
    document_of,
    flags_in,
    in_force,
    last_known,
    last_known_body,
)
from inbetweenies.rollout.kept import Cause

WHY = Cause(actor="ada", reason="a test", at=7)
GRAPH, MCP, VERSIONING, SYNC = "graph_operations", "mcp_server", "entity_versioning", "enhanced_sync"


@st.composite
def catalogues(draw: st.DrawFn) -> Catalogue:
    features: list[Feature] = []
    for name in "abcdef"[: draw(st.integers(1, 6))]:
        needs = draw(st.sets(st.sampled_from([one.name for one in features]))) if features else set()
        able = all(one.default for one in features if one.name in needs)
        features.append(Feature(name=name, needs=tuple(sorted(needs)), default=able and draw(st.booleans())))
    return catalogue(features)


verbs = st.lists(st.tuples(st.sampled_from(["enable", "disable", "disable all"]), st.sampled_from("abcdef")))


def switched(flags: Flags, verb: str, name: str, features: Catalogue) -> Flags:
    if verb == "enable":
        return flags.enabled(name, WHY, features)
    return flags.disabled(name, WHY, features) if verb == "disable" else flags.all_disabled(WHY, features)


# --- what always holds --------------------------------------------------------------------------------------------


@given(features=catalogues(), chosen=verbs)
def test_whatever_is_switched_nothing_is_on_without_what_it_needs(
    features: Catalogue, chosen: list[tuple[str, str]]
) -> None:
    switch_all(features, chosen)


def switch_all(features: Catalogue, chosen: list[tuple[str, str]]) -> None:
    flags = Flags()
    for verb, name in chosen:
        before, on = flags, flags.on(features)
        try:
            flags = switched(before, verb, name, features)
        except LocalProtocolError:
            assert name not in features or not on.issuperset(features[name].needs)
            continue
        check(before, flags, verb, name, features)
        assert flags == flags_in(Document(revision=1, body=document_of(flags)))


def check(before: Flags, after: Flags, verb: str, name: str, features: Catalogue) -> None:
    was, on = before.on(features), after.on(features)
    assert all(on.issuperset(features[one].needs) for one in on)
    # Neither does a flag say "on" where it is not: it would come on by itself when what it needs does.
    assert on == {one for one in features if after.flags.get(one, features[one].default)}
    if verb == "enable":
        assert was | {name} == on
    elif verb == "disable":
        assert name not in on
        assert on < was or on == was
        assert all(depends(one, name, features) for one in was - on)
    else:
        assert not on
    added = after.log[len(before.log) :]
    assert (was ^ on) <= {one.feature for one in added}
    assert {(one.feature, one.on) for one in added} == set(after.flags.items()) - set(before.flags.items())
    assert all(one.cause == WHY for one in added)


def depends(name: str, on: str, features: Catalogue) -> bool:
    return name == on or any(depends(need, on, features) for need in features[name].needs)


@given(features=catalogues(), chosen=verbs)
def test_switching_twice_is_switching_once(features: Catalogue, chosen: list[tuple[str, str]]) -> None:
    flags = Flags()
    for verb, name in chosen:
        try:
            flags = switched(flags, verb, name, features)
        except LocalProtocolError:
            continue
        assert flags == switched(flags, verb, name, features)


def test_the_features_that_there_are() -> None:
    assert {GRAPH, VERSIONING, SYNC} == Flags().on()
    assert [GRAPH, MCP, VERSIONING, SYNC] == list(FEATURES)
    assert FEATURES[SYNC] is Feature.ENHANCED_SYNC
    assert (GRAPH, VERSIONING) == Feature.ENHANCED_SYNC.needs
    assert FEATURES[MCP] is Feature.MCP_SERVER


def test_what_stands_on_a_feature_goes_with_it_and_does_not_come_back_by_itself() -> None:
    off = Flags().enabled(MCP, WHY).disabled(GRAPH, WHY)
    again = off.enabled(GRAPH, WHY)

    assert (frozenset({VERSIONING}), frozenset({VERSIONING, GRAPH})) == (off.on(), again.on())
    assert [(MCP, True), (GRAPH, False), (MCP, False), (SYNC, False), (GRAPH, True)] == [
        (one.feature, one.on) for one in again.log
    ]


def test_all_disabled_reaches_features_that_only_another_release_knows() -> None:
    newer = catalogue((*FEATURES.values(), Feature(name="newer")))
    flags = Flags().enabled("newer", WHY, newer)

    assert "newer" in flags.disabled(GRAPH, WHY).on(newer)
    assert frozenset() == flags.all_disabled(WHY).on(newer)


def test_of_the_switches_only_the_newest_are_kept() -> None:
    flags = Flags()
    for _ in range(LOG_MAX):
        flags = flags.disabled(SYNC, WHY).enabled(SYNC, replace(WHY, at=8))

    assert (LOG_MAX, (SYNC, True)) == (len(flags.log), (flags.log[-1].feature, flags.log[-1].on))


# --- what a sync is held to ---------------------------------------------------------------------------------------


@given(features=catalogues(), chosen=verbs, late=verbs)
def test_a_sync_keeps_the_features_it_began_with(
    features: Catalogue, chosen: list[tuple[str, str]], late: list[tuple[str, str]]
) -> None:
    pin(features, chosen, late)


def pin(features: Catalogue, chosen: list[tuple[str, str]], late: list[tuple[str, str]]) -> None:
    def after(flags: Flags, some: list[tuple[str, str]]) -> Flags:
        for verb, name in some:
            if verb != "enable" and name in features:
                flags = switched(flags, verb, name, features)
        return flags

    flags = after(Flags(), chosen)
    pinned = module.in_force(Document(revision=3, body=document_of(flags)), None, features)
    switched_meanwhile = after(flags, late)
    assert flags.on(features) == {one for one in features if pinned.is_enabled(one)}
    # The store is away: what was last known holds, through a file as well, not what is on by default.
    away = module.in_force(None, last_known(last_known_body(pinned)), features)
    assert pinned == away
    assert switched_meanwhile.on(features) == {
        one
        for one in features
        if module.in_force(Document(revision=4, body=document_of(switched_meanwhile)), away, features).is_enabled(one)
    }


def test_a_process_that_never_saw_the_store_knows_nothing() -> None:
    with pytest.raises(StoreError, match="got neither"):
        in_force(None, None)
    assert Flags().on() == in_force(Document(), None).on


def test_what_another_release_had_written_down_holds_for_the_features_there_are() -> None:
    older = InForce(revision=2, known=frozenset({GRAPH, "gone"}), on=frozenset({GRAPH, "gone"}))

    assert InForce(revision=2, known=frozenset(FEATURES), on=frozenset({GRAPH})) == in_force(None, older)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_an_unknown_feature_is_refused_and_not_just_off() -> None:
    for ask in (Flags().enabled, Flags().disabled):
        with pytest.raises(LocalProtocolError, match="expected one of the features graph_operations, mcp"):
            ask("nothing", WHY)
    with pytest.raises(LocalProtocolError, match="expected one of the features enhanced_sync, entity"):
        in_force(Document(), None).is_enabled("nothing")


def test_a_feature_is_refused_while_what_it_needs_is_off() -> None:
    with pytest.raises(LocalProtocolError, match="expected entity_versioning, graph_operations on"):
        Flags().all_disabled(WHY).enabled(SYNC, WHY)


@pytest.mark.parametrize(
    "features",
    [
        (Feature(name="a"), Feature(name="a")),
        (Feature(name="a", needs=("b",)), Feature(name="b")),
        (Feature(name="a", needs=("a",)),),
        (Feature(name="a"), Feature(name="b", needs=("a",), default=True)),
    ],
)
def test_a_catalogue_that_cannot_be_is_refused(features: tuple[Feature, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        catalogue(features)


def test_a_feature_has_a_name() -> None:
    with pytest.raises(LocalProtocolError):
        Feature(name="")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"flags": {"a": 1}}',
        b'{"flags": {"": true}}',
        b'{"newer": 1}',
        b'{"log": [{"feature": "a", "on": true}]}',
        b'{"log": [{"feature": "a", "on": true, "cause": {"actor": "", "reason": "x", "at": 1}}]}',
    ],
)
def test_a_document_of_something_else_is_refused(body: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="expected the flags in the store"):
        flags_in(Document(revision=1, body=body))


def test_a_log_that_grew_beyond_its_bound_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="expected at most 200"):
        Flags(log=(Switch(feature="a", on=True, cause=WHY),) * (LOG_MAX + 1))


def test_what_was_last_known_is_read_as_strictly() -> None:
    assert last_known(b"") is None
    with pytest.raises(StoreCorrupt, match="expected the flags that were last known"):
        last_known(b"{}")


# --- planted bugs -------------------------------------------------------------------------------------------------

real_switched, real_in_force = Flags._switched, module.in_force


def only_the_one(self: Flags, name: str, cause: Cause, features: Catalogue = FEATURES) -> Flags:
    return real_switched(self, (name,), False, cause)


def without_looking(self: Flags, name: str, cause: Cause, features: Catalogue = FEATURES) -> Flags:
    return real_switched(self, (name,), True, cause)


def unlogged(self: Flags, names: Any, on: bool, cause: Cause) -> Flags:
    return replace(real_switched(self, names, on, cause), log=self.log)


def keeps_one(self: Flags, cause: Cause, features: Catalogue = FEATURES) -> Flags:
    return real_switched(self, list(features)[1:], False, cause)


@pytest.mark.parametrize(
    ("name", "bug"),
    [("disabled", only_the_one), ("enabled", without_looking), ("_switched", unlogged), ("all_disabled", keeps_one)],
)
def test_a_planted_bug_is_caught(name: str, bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    features = catalogue((Feature(name="a", default=True), Feature(name="b", needs=("a",), default=True)))
    monkeypatch.setattr(Flags, name, bug)
    with pytest.raises(AssertionError):
        switch_all(features, [("disable", "a"), ("enable", "b"), ("enable", "a"), ("disable all", "a")])


def defaults_when_away(document: Document | None, last: InForce | None, features: Catalogue = FEATURES) -> InForce:
    return real_in_force(document or Document(), last, features)


def test_a_process_that_falls_back_to_what_the_code_says_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "in_force", defaults_when_away)
    with pytest.raises(AssertionError):
        pin(catalogue((Feature(name="a", default=True),)), [("disable", "a")], [])
