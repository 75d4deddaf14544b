"""Rules of one's own (PROTOCOL 6.8): what they are asked, what becomes of what they say, and what if they fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies import merge
from inbetweenies.errors import LocalProtocolError
from inbetweenies.limits import Limits
from inbetweenies.merge import BY_RULE, FOR_REVIEW, Policy, Rule, Value, Verdict, manual
from inbetweenies.model import Entity, Reads, SyncResponse
from tests.support import Server, at, entity

BASE = entity("n", at(0), {"a": 1, "b": 1}, entity_type="note")
MINE = replace(BASE, version=at(1), content=msgspec.Raw(b'{"a":2,"b":1}'), parent_versions=(BASE.version,))
THEIRS = replace(
    BASE,
    version=at(2, "bob"),
    content=msgspec.Raw(b'{"a":3,"b":4}'),
    parent_versions=(BASE.version,),
    user_id="bob",
    checksum="theirs",
)


def contest(rule: Rule | None, *rows: Entity, **fields: Any) -> tuple[Server, SyncResponse]:
    server = Server(policy=Policy(rules={} if rule is None else {"note": rule}), **fields)
    for row in rows or (BASE, MINE):
        server.push(row)
    return server, server.push(THEIRS)


def content(server: Server) -> Any:
    return msgspec.json.decode(server.current("n").content)


def kept(server: Server) -> set[str]:
    return {row.version for row in server.held(Reads(history=("n",))).history["n"]}


# --- what is asked ------------------------------------------------------------------------------------------------

values = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | st.just([1.0]), max_size=3)


@given(values, values, values)
def test_a_rule_sees_exactly_the_rows_of_a_contest(base: Any, mine: Any, theirs: Any) -> None:
    asked: list[tuple[Entity | None, Entity, Entity]] = []

    def rule(*rows: Any) -> Verdict:
        asked.append(rows)
        return Verdict.PASS

    one = entity("n", at(0), base, entity_type="note")
    two, three = (
        entity("n", at(number), value, entity_type="note", parent_versions=(one.version,))
        for number, value in ((1, mine), (2, theirs))
    )
    server = Server(policy=Policy(rules={"NOTE": rule}))
    plain = Server()
    for row in (one, two, three):
        server.push(row)
        plain.push(row)

    nothing_to_ask = merge.alike(two, three) or merge.alike(one, three)
    assert ([] if nothing_to_ask else [(one, two, three)]) == asked
    assert plain.pull(full=True).head.chain == server.pull(full=True).head.chain


def test_what_began_nowhere_is_asked_about_without_a_base() -> None:
    asked: list[Entity | None] = []

    def rule(base: Entity | None, _mine: Entity, _theirs: Entity) -> Verdict:
        asked.append(base)
        return Verdict.MINE

    contest(rule, replace(MINE, parent_versions=()))

    assert [None] == asked


def test_other_types_are_not_asked_about() -> None:
    server = Server(policy=Policy(rules={"room": manual}))
    for row in (BASE, MINE, THEIRS):
        server.push(row)

    assert {"a": 3, "b": 4} == content(server)


# --- what is said -------------------------------------------------------------------------------------------------


def _sum(base: Entity | None, mine: Entity, theirs: Entity) -> Value:
    one, two = msgspec.json.decode(mine.content), msgspec.json.decode(theirs.content)
    return Value(content={key: one[key] + two[key] for key in one}, name="summed")


@pytest.mark.parametrize(
    ("rule", "says", "outcome", "writer"),
    [
        (lambda *_: Verdict.MINE, {"a": 2, "b": 1}, "lost_kept", "ann"),
        (lambda *_: Verdict.THEIRS, {"a": 3, "b": 4}, "merged", "bob"),
        (_sum, {"a": 5, "b": 5}, "merged", "bob"),
        (lambda *_: Value(name="Other"), {"a": 2, "b": 1}, "merged", "bob"),
    ],
    ids=["mine", "theirs", "a value", "a name"],
)
def test_what_a_rule_decides_is_a_row_that_joins_both(rule: Rule, says: Any, outcome: str, writer: str) -> None:
    server, response = contest(rule)
    now = server.current("n")
    [lost] = response.conflicts

    assert (says, writer, True) == (content(server), now.user_id, now.merged)
    assert tuple(sorted((MINE.version, THEIRS.version))) == now.parent_versions
    assert [(THEIRS.version, outcome, now.version)] == [(ack.version, ack.outcome, ack.head) for ack in response.acks]
    assert (MINE.version, now.version, BY_RULE) == (lost.local_version, lost.resolved_version, lost.resolution_strategy)
    assert {BASE.version, MINE.version, THEIRS.version, now.version} == kept(server)
    assert ("theirs" if says == {"a": 3, "b": 4} else None) == now.checksum
    # A v1 client takes what is newer than the edit it holds, whichever that is.
    assert server.held(Reads(entities=("n",))).entities["n"].rise > 2_000_000 + 1_781_516_462_000_000 - 1


@pytest.mark.parametrize("verdict", Verdict)
def test_an_edit_that_says_nothing_new_is_no_conflict(verdict: Verdict) -> None:
    server = Server(policy=Policy(rules={"note": lambda *_: verdict}))
    for row in (BASE, MINE):
        server.push(row)
    response = server.push(replace(THEIRS, content=BASE.content))

    assert ((), ["superseded"]) == (response.conflicts, [ack.outcome for ack in response.acks])
    assert MINE == server.current("n")


def test_what_is_passed_on_is_merged_by_field() -> None:
    plain, _ = contest(None)
    passed, response = contest(lambda *_: Verdict.PASS)

    assert plain.pull().head.chain == passed.pull().head.chain
    assert ["merged"] == [ack.outcome for ack in response.acks]


@given(st.permutations([at(3, "cy"), at(2.5, "dee"), at(1.5, "eve")]), st.sampled_from(Verdict))
def test_the_same_pushes_make_the_same_versions_on_every_server(order: list[str], verdict: Verdict) -> None:
    heads = set()
    for _ in range(2):
        server = Server(policy=Policy(rules={"note": lambda *_: verdict}))
        for row in (BASE, MINE, *(replace(THEIRS, version=version, name=version) for version in order)):
            server.push(row)
        heads.add(server.pull().head.chain)

    assert 1 == len(heads)


def test_a_rule_that_was_changed_makes_no_other_content_under_the_same_version() -> None:
    rules: list[Rule] = [
        lambda *_: Verdict.MINE,
        lambda *_: Verdict.THEIRS,
        _sum,
        lambda *_: Value(name="Other"),
        lambda *_: Verdict.PASS,
    ]
    made = {contest(rule)[0].current("n").version for rule in rules}

    assert len(rules) == len(made)


# --- what goes wrong ----------------------------------------------------------------------------------------------


def _raises(*_: Any) -> Any:
    raise RuntimeError("secret")


def _endless(*rows: Any) -> Any:
    return _endless(*rows)


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        (_raises, "RuntimeError"),
        (_endless, "RecursionError"),
        (lambda: Verdict.MINE, "TypeError"),
        (lambda *_: "mine", "TypeError"),
        (lambda *_: None, "TypeError"),
        (lambda *_: Value(content=5), "TypeError"),  # type: ignore[arg-type]
        (lambda *_: Value(name=5), "TypeError"),  # type: ignore[arg-type]
        (lambda *_: Value(content={"a": float("nan")}), "RemoteProtocolError"),
        (lambda *_: Value(content={"a": {1, 2}}), "RemoteProtocolError"),
        (lambda *_: Value(name="\ud800"), "RemoteProtocolError"),
        (lambda *_: Value(content={"deleted": True}), "ValueError"),
        (lambda *_: Value(content={"long": "x" * 5000}), "a row of"),
    ],
)
def test_a_rule_that_fails_loses_nothing_and_is_told_of(rule: Callable[..., Any], error: str) -> None:
    limits = Limits(entity_bytes_max=5000)
    plain, _ = contest(None, limits=limits)
    server, response = contest(rule, limits=limits)

    assert plain.pull().head.chain == server.pull().head.chain
    assert ["merged"] == [ack.outcome for ack in response.acks]
    [event] = server.held(Reads(events=True)).events
    assert ("rule_failed", "note", "note") == (event.kind, event.key, event.told["entity_type"])
    assert str(event.told["error"]).startswith(error)
    assert "secret" not in str(event.told)


@pytest.mark.parametrize("rule", [None, _sum], ids=["by field", "by a rule"])
def test_the_version_that_a_merge_would_have_may_be_taken(rule: Rule | None) -> None:
    made = contest(rule)[0].current("n")
    server, response = contest(rule, BASE, MINE, replace(MINE, version=made.version))
    now = server.current("n")

    assert ["merged"] == [ack.outcome for ack in response.acks]
    assert (made.content, made.parent_versions) == (now.content, now.parent_versions)
    assert now.version.startswith(f"{made.version}#")


@pytest.mark.parametrize("rules", [{"note": manual, "Note": manual}, {"note": "manual"}])
def test_rules_that_are_none_are_refused(rules: Any) -> None:
    with pytest.raises(LocalProtocolError):
        Policy(rules=rules)


def test_strict_is_the_deployed_rule() -> None:
    server = Server(policy=Policy.strict())
    for row in (BASE, MINE):
        server.push(row)

    assert [("applied", "remote has newer timestamp")] == [
        (ack.outcome, lost.resolution_strategy)
        for response in [server.push(THEIRS)]
        for ack, lost in zip(response.acks, response.conflicts, strict=True)
    ]
    assert {"a": 3, "b": 4} == content(server)


# --- planted bugs -------------------------------------------------------------------------------------------------


def test_a_rule_whose_error_gets_through_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unguarded(policy: Policy, base: Any, mine: Any, theirs: Any, **_: Any) -> Any:
        for rule in policy.rules.values():
            rule(base, mine, theirs)
        return merge.Ruling()

    monkeypatch.setattr(merge, "ruled", unguarded)
    with pytest.raises(RuntimeError):
        test_a_rule_that_fails_loses_nothing_and_is_told_of(_raises, "RuntimeError")


def test_versions_that_only_name_their_parents_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = merge.merge_version
    monkeypatch.setattr(merge, "merge_version", lambda here, there, writer, *_: right(here, there, writer))
    with pytest.raises(AssertionError):
        test_a_rule_that_was_changed_makes_no_other_content_under_the_same_version()


def test_a_review_that_moves_what_stands_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    server, response = contest(manual)
    assert (MINE, FOR_REVIEW) == (server.current("n"), response.conflicts[0].resolution_strategy)
    monkeypatch.setattr(merge, "ruled", lambda *_, **__: merge.Ruling())
    server, _ = contest(manual)

    assert server.current("n") != MINE
