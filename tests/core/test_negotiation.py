"""Which wire version (PROTOCOL 5): the choice alone, for every kind of name and offer."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import negotiation
from inbetweenies.errors import PROBLEM_BYTES_MAX, LocalProtocolError, RemoteProtocolError, VersionRefused
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
        code=code or "x", expected=expected * 50, got=got * 50, pointer=pointer * 50, requested=V7, supported=(V2, V1)
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


def test_a_problem_with_long_versions_still_fits() -> None:
    error = VersionRefused(
        code="no_common_version",
        expected="e" * 200,
        got="g" * 200,
        pointer="p" * 200,
        requested="r" * 64,
        supported=tuple(f"{n:064}" for n in range(40)),
    )
    told = negotiation.problem(error)

    assert len(msgspec.json.encode(told)) <= PROBLEM_BYTES_MAX
    assert list(error.supported[:2]) == told["supported"]


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "null"), (True, "a boolean"), (1, "a number"), ("", "a string"), ([], "an array"), ({}, "an object")],
)
def test_json_types_are_called_what_json_calls_them(value: object, name: str) -> None:
    assert name == negotiation.json_type(value)
    assert "something else" == negotiation.json_type(object())
