"""Which wire version (PROTOCOL 5): the choice alone, for every kind of name and offer."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import negotiation
from inbetweenies.errors import (
    PROBLEM_BYTES_MAX,
    LocalProtocolError,
    NoCommonVersion,
    RemoteProtocolError,
    UnsupportedVersion,
    VersionDisabled,
    VersionRefused,
)
from inbetweenies.negotiation import GREASE, Choice, negotiate
from inbetweenies.registry import Registry

V1, V2, V3, V7 = (f"inbetweenies-v{n}" for n in (1, 2, 3, 7))
BOTH = Registry(accepted=(V2, V1), fallback=V1, missing=V1)


def code_of(requested: str | None, offer: tuple[str, ...] | None, registry: Registry, *, writes: bool = False) -> str:
    try:
        return negotiate(requested, offer, has_changes=writes, registry=registry).served
    except VersionRefused as error:
        assert registry.accepted == error.supported
        return error.code


@pytest.mark.parametrize("writes", [False, True])
def test_an_accepted_version_is_served_whatever_else_is_offered(writes: bool) -> None:
    for offer in (None, (), (V7,), (V1, V2)):
        expected = Choice(served=V2, requested=V2, source="exact")

        assert expected == negotiate(V2, offer, has_changes=writes, registry=BOTH)


def test_a_body_without_a_version_is_what_the_registry_says() -> None:
    assert Choice(served=V1, requested=None, source="default") == negotiate(None, None, has_changes=True, registry=BOTH)
    assert "version_required" == code_of(None, None, Registry(accepted=(V2,), fallback=V1, missing=None))
    assert "version_required" == code_of(None, None, Registry(accepted=(V2,), missing=V1))


def test_a_bare_unknown_version_falls_back_strictly_if_it_writes() -> None:
    read = negotiate(V7, None, has_changes=False, registry=BOTH)
    write = negotiate(V7, None, has_changes=True, registry=BOTH)

    assert (V1, "fallback", True, False) == (read.served, read.source, read.read_only, read.strict)
    assert (V1, "fallback", False, True) == (write.served, write.source, write.read_only, write.strict)


def test_without_a_fallback_an_unknown_version_is_refused() -> None:
    assert "unsupported_version" == code_of(V7, None, Registry(accepted=(V2, V1)))
    assert "unsupported_version" == code_of(V7, None, Registry(accepted=(V2,), fallback=V1))


def test_an_offer_gets_the_servers_best_and_nothing_outside_of_it() -> None:
    names = [V1, V2, V3, V7]
    subsets = [subset for size in range(5) for subset in combinations(names, size)]
    for offer, accepted in product(subsets, [subset for subset in subsets if subset and V7 not in subset]):
        registry = Registry(accepted=tuple(reversed(accepted)), fallback=V1, missing=V1)
        common = [name for name in registry.accepted if name in offer]

        assert (common[0] if common else "no_common_version") == code_of("inbetweenies-v9", offer, registry)


def test_greased_names_are_never_served_and_never_counted() -> None:
    grease = tuple(sorted(GREASE))

    assert {"inbetweenies-v2570", "inbetweenies-v64250"} <= GREASE
    assert 16 == len(GREASE)
    assert "no_common_version" == code_of(V7, grease, Registry(accepted=(V2, *grease[:1]), fallback=V1))
    assert V1 == code_of(grease[0], None, BOTH)
    assert V2 == code_of(grease[0], (*grease, V2), BOTH)


def test_a_disabled_version_is_never_read_as_another_one() -> None:
    registry = Registry(accepted=(V1,), disabled=frozenset({V2}), fallback=V1, missing=V1)

    assert "version_disabled" == code_of(V2, None, registry)
    assert "version_disabled" == code_of(V2, (V1,), registry, writes=True)
    assert V1 == code_of(V2, (V2, V1), registry)
    assert negotiate(V2, (V1,), has_changes=False, registry=registry).read_only


def test_a_retired_version_is_gone_for_good() -> None:
    registry = Registry(accepted=(V2,), retired=frozenset({V1}), fallback=V1, missing=V1)
    with pytest.raises(VersionRefused) as caught:
        negotiate(V1, (V2,), has_changes=False, registry=registry)

    assert ("version_retired", 410, "never") == (caught.value.code, caught.value.status, caught.value.retry)


def test_a_registry_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        Registry(accepted=(V2,), disabled=frozenset({V2}))
    with pytest.raises(LocalProtocolError):
        Registry(accepted=(), fallback=V1)


@pytest.mark.parametrize(
    ("offered", "accepted", "side"),
    [
        ((V7,), (V2, V1), "server"),
        (("inbetweenies-v10",), (V2, V1), "server"),
        ((V1,), (V2, V3), "client"),
        (("inbetweenies-v2.1",), (V2,), "server"),
        ((V1, V7), (V2,), "unknown"),
        (("banana",), (V2,), "unknown"),
        ((V7,), ("banana",), "unknown"),
        (("inbetweenies-v2570",), (V2,), "unknown"),
        ((), (V2,), "unknown"),
        ((V7,), (), "unknown"),
    ],
)
def test_who_is_behind_is_computed_from_all_of_both(offered: Any, accepted: Any, side: str) -> None:
    assert side == negotiation.side_of(offered, accepted)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.none()), st.just({})))
def test_a_name_is_printable_ascii_of_at_most_64_characters(value: object) -> None:
    legal = isinstance(value, str) and 1 <= len(value) <= 64 and all(" " <= letter <= "~" for letter in value)
    if legal:
        assert value == negotiation.check_name(value)
        return
    with pytest.raises(VersionRefused) as caught:
        negotiation.check_name(value)

    assert "malformed_version" == caught.value.code
    assert not isinstance(value, str) or len(value) < 4 or value not in str(caught.value)


@given(st.text(), st.text(), st.text(), st.text())
def test_a_problem_is_small_and_reads_back(code: str, expected: str, got: str, pointer: str) -> None:
    refused = VersionRefused(
        code=code or "x",
        expected=expected * 50,
        got=got * 50,
        pointer=pointer * 50,
        requested=V7,
        supported=(V2, V1),
        registry_revision="1-abcdef01",
        docs="https://example.org/compat",
    )
    plain = RemoteProtocolError(code="malformed_body", expected=expected * 50, got=got * 50, pointer=pointer * 50)
    for error in (refused, plain):
        told = negotiation.problem(error)
        encoded = msgspec.json.encode(told)

        assert told == msgspec.json.decode(encoded)
        assert len(encoded) <= PROBLEM_BYTES_MAX
        assert len(str(error).encode()) <= PROBLEM_BYTES_MAX


def test_a_problem_of_a_version_speaks_as_deployed_servers_do() -> None:
    with pytest.raises(VersionRefused) as caught:
        negotiate(V7, (V3,), has_changes=False, registry=BOTH)
    told = negotiation.problem(caught.value)

    assert "Unsupported protocol version" == told["detail"]
    assert (400, "no_common_version", V7, [V2, V1], "server", "renegotiate") == tuple(
        told[key] for key in ("status", "code", "requested", "supported", "side", "retry")
    )
    assert "PROTOCOL_VERSION_MISMATCH" == told["error"]["code"]


@pytest.mark.parametrize(("size", "width"), [(10, 15), (10, 64), (100, 64), (200, 64)])
def test_a_problem_tells_as_many_versions_as_fit(size: int, width: int) -> None:
    error = VersionRefused(
        code="no_common_version",
        expected="e" * size,
        got="g" * size,
        pointer="p" * size,
        requested="r" * 64,
        supported=tuple(f"{n:0{width}}" for n in range(60)),
        registry_revision="9" * 32,
        docs="d" * 100 if size < 200 else None,
    )
    told = negotiation.problem(error)
    names = len(told["supported"])
    size = len(msgspec.json.encode(told))

    assert list(error.supported[:names]) == told["supported"]
    assert names > 0
    assert PROBLEM_BYTES_MAX - width - 3 <= size <= PROBLEM_BYTES_MAX


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "null"), (True, "a boolean"), (1, "a number"), ("", "a string"), ([], "an array"), ({}, "an object")],
)
def test_json_types_are_called_what_json_calls_them(value: object, name: str) -> None:
    assert name == negotiation.json_type(value)
    assert "something else" == negotiation.json_type(object())


def test_whoever_could_be_served_better_is_told_so() -> None:
    soft = Registry(accepted=(V2, V1), offered=(V1,), fallback=V1)

    assert [False, False, True, False, False] == [
        negotiate(name, offer, has_changes=False, registry=BOTH).better
        for name, offer in ((V1, None), (V1, (V1,)), (V1, (V1, V2)), (V2, (V1, V2)), (V1, (V7,)))
    ]
    assert negotiate(V2, (V2, V1), has_changes=True, registry=soft).better
    assert (V1,) == soft.supported


def test_a_body_without_a_version_is_not_read_in_one_that_it_does_not_offer() -> None:
    assert "version_required" == code_of(None, (V2,), BOTH)
    assert V1 == code_of(None, (V2, V1), BOTH)


def test_a_disabled_version_without_a_fallback_is_refused_to_readers_too() -> None:
    registry = Registry(accepted=(V3, V1), disabled=frozenset({V2}))

    assert "version_disabled" == code_of(V2, (V3, V1), registry)


def test_what_is_refused_tells_what_is_offered_and_what_was_in_force() -> None:
    registry = Registry(accepted=(V3, V2, V1), offered=(V2,), revision="7-ab", docs="https://example.org/compat")
    with pytest.raises(VersionRefused) as caught:
        negotiate(V7, None, has_changes=False, registry=registry)
    told = negotiation.problem(caught.value)

    assert ([V2], "7-ab", "https://example.org/compat") == (
        told["supported"],
        told["registry_revision"],
        told["docs"],
    )


def test_each_refusal_has_its_error() -> None:
    off = Registry(accepted=(V1,), disabled=frozenset({V2}))
    found = []
    for requested, offer in ((V7, None), (V7, (V7,)), (V2, None), (None, None)):
        with pytest.raises(VersionRefused) as caught:
            negotiate(requested, offer, has_changes=False, registry=off)
        found.append(type(caught.value))

    assert [UnsupportedVersion, NoCommonVersion, VersionDisabled, VersionRefused] == found
