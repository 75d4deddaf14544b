"""Negotiation, exhaustively: every offer before every registry, with every hint, whatever comes first.

The whole of five versions is among the long tests (``python -m tests.deep negotiation``). What runs here is the whole
of three versions in all six states, and the whole of five along the chain of states with honest servers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from inbetweenies import negotiation, offers
from inbetweenies.offers import Absent, Course, Failed, Hint, Served, Turned
from inbetweenies.registry import Registry

from . import negotiation_model as model
from .negotiation_model import CHAIN, NAMES, SIGNALS, Broken, enumerate_all, enumerate_switches

THREE = (NAMES[0], NAMES[3], NAMES[4])


def test_three_versions_in_every_state_with_every_signal() -> None:
    count = enumerate_all(THREE)

    print(f"{count:,} cases: 3 versions, 7 offers, 6 states each, 6 hints, 12 first answers, 4 kinds of body")
    assert 7 * (6**3 - 3**3) * 6 * len(SIGNALS) * 4 == count


def test_five_versions_along_the_chain_with_every_hint() -> None:
    count = enumerate_all(NAMES, CHAIN, ("honest",), ((True, True),))

    print(f"{count:,} cases: 5 versions, 31 offers, 4 states each, 8 hints, honest servers")
    assert 31 * (4**5 - 1) * 8 == count


def test_versions_that_are_switched_off_and_on_in_every_way() -> None:
    count = enumerate_switches(THREE, CHAIN)

    print(f"{count:,} ways there and back: 3 versions, 7 offers, every pair of registries of 4 states each")
    assert 7 * (4**3 - 1) ** 2 == count


# --- it bites -----------------------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def a_timeout_lowers(patch: pytest.MonkeyPatch) -> None:
    """No answer in time is taken for a refusal of the version."""
    real = offers.step

    def step(course: Course, signal: Any) -> Any:
        return real(course, Turned(code="unsupported_version") if isinstance(signal, Failed) else signal)

    patch.setattr(offers, "step", step)


def a_missing_page_lowers(patch: pytest.MonkeyPatch) -> None:
    """404 is taken for a refusal of the version."""
    real = offers.step

    def step(course: Course, signal: Any) -> Any:
        return real(course, Turned(code="unsupported_version") if isinstance(signal, Absent) else signal)

    patch.setattr(offers, "step", step)


def any_status_with_a_list_lowers(patch: pytest.MonkeyPatch) -> None:
    """A list is believed whatever it comes with."""
    real = offers.signal_of
    patch.setattr(
        offers, "signal_of", lambda **told: real(**(told | ({"status": 400} if told.get("supported") else {})))
    )


def overlap_of_ranges(patch: pytest.MonkeyPatch) -> None:
    """The overlap is computed from the ends of both ranges."""

    def select(offer: Any, registry: Registry) -> str | None:
        ours, theirs = registry.accepted, [name for name in NAMES if name in offer]
        inside = theirs and NAMES.index(theirs[0]) >= NAMES.index(ours[0])
        return theirs[0] if inside and theirs[0] in ours else None

    patch.setattr(negotiation, "select", select)


def the_wrong_side(patch: pytest.MonkeyPatch) -> None:
    """It is always the other one who is behind."""
    real = negotiation.side_of
    swapped = {"client": "server", "server": "client", "unknown": "unknown"}
    for module in (negotiation, offers):
        patch.setattr(module, "side_of", lambda offered, accepted: swapped[real(offered, accepted)])


def served_without_a_word(patch: pytest.MonkeyPatch) -> None:
    """A client takes a success for what it asked for."""
    real = offers.step

    def step(course: Course, signal: Any) -> Any:
        return real(course, replace(signal, version=course.named) if isinstance(signal, Served) else signal)

    patch.setattr(offers, "step", step)


def an_echo_of_what_was_asked(patch: pytest.MonkeyPatch) -> None:
    """A server serves whatever is named, known or not."""
    real = negotiation.negotiate

    def negotiate(requested: Any, offer: Any, **more: Any) -> Any:
        return replace(real(requested, offer, **more), served=requested)

    patch.setattr(negotiation, "negotiate", negotiate)


def a_hint_for_ever(patch: pytest.MonkeyPatch) -> None:
    """What served once is asked for, whoever it was and whenever."""

    def begin(offer: tuple[str, ...], hint: Hint | None, **_: Any) -> Course:
        return Course(offer=offer, named=hint.served if hint is not None else offer[0])

    patch.setattr(offers, "begin", begin)


def never_up_again(patch: pytest.MonkeyPatch) -> None:
    """A client that was lowered stays there as long as it is served."""
    real = offers._served
    patch.setattr(offers, "_served", lambda course, signal: real(course, replace(signal, supported=())))


def the_greatest_means_all_below(patch: pytest.MonkeyPatch) -> None:
    """What is told is everything up to the newest, served or not."""

    def told_to(offer: Any, registry: Registry) -> tuple[str, ...]:
        return NAMES[NAMES.index(registry.accepted[0]) :]

    patch.setattr(negotiation, "told_to", told_to)


def order_of_text(patch: pytest.MonkeyPatch) -> None:
    """The greatest name is the newest version, so v2 beats v10."""

    def select(offer: Any, registry: Registry) -> str | None:
        return max((name for name in offer if name in registry.accepted), default=None)

    patch.setattr(negotiation, "select", select)


def off_is_unknown(patch: pytest.MonkeyPatch) -> None:
    """A version that was switched off is treated as one that was never heard of."""
    real = negotiation.negotiate

    def negotiate(requested: Any, offer: Any, *, has_changes: bool, registry: Registry) -> Any:
        return real(requested, offer, has_changes=has_changes, registry=replace(registry, disabled=frozenset()))

    patch.setattr(negotiation, "negotiate", negotiate)


def a_list_that_contradicts_itself(patch: pytest.MonkeyPatch) -> None:
    """RFC 9368: a list with the refused version in it is followed."""
    real = offers.step

    def step(course: Course, signal: Any) -> Any:
        if isinstance(signal, Turned):
            signal = replace(signal, supported=tuple(name for name in signal.supported if name != course.named))
        return real(course, signal)

    patch.setattr(offers, "step", step)


def as_many_tries_as_there_are_versions(patch: pytest.MonkeyPatch) -> None:
    """A message that was sent in another version already is sent in the next one."""
    real = offers._again
    patch.setattr(offers, "_again", lambda course, supported: real(replace(course, retried=False), supported))


def the_clients_order(patch: pytest.MonkeyPatch) -> None:
    """The server takes the client's favourite instead of its own."""
    patch.setattr(
        negotiation, "select", lambda offer, registry: next((name for name in offer if name in registry.accepted), None)
    )


BUGS: list[Plant] = [
    a_timeout_lowers,
    a_missing_page_lowers,
    any_status_with_a_list_lowers,
    overlap_of_ranges,
    the_wrong_side,
    served_without_a_word,
    an_echo_of_what_was_asked,
    a_hint_for_ever,
    never_up_again,
    the_greatest_means_all_below,
    order_of_text,
    off_is_unknown,
    a_list_that_contradicts_itself,
    as_many_tries_as_there_are_versions,
    the_clients_order,
]


@pytest.mark.parametrize("plant", BUGS, ids=[plant.__name__ for plant in BUGS])
def test_a_planted_bug_is_caught(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)

    with pytest.raises(Broken) as caught:
        model.enumerate_all(THREE)

    print(plant.__name__, "->", caught.value)
