"""The simulator bites: planted bugs are seen within few histories, and told as a short story that repeats.

All of the bugs, and after how many histories each is seen: ``python -m tests.deep mutants``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from pkgutil import resolve_name
from typing import Any
from unittest.mock import Mock

import pytest

from blowing_off.recovery import Recovery
from inbetweenies.replica import Known
from inbetweenies.stores.keeper import Keeper
from inbetweenies.testing.simulator import (
    MemoryDatabase,
    SimulatedWorld,
    run_seed,
    runner,
    shortest_story,
    tell_story,
)
from inbetweenies.testing.simulator.shrink import shortest
from inbetweenies.testing.simulator.stage import Event
from tests.fleet.mutants import EQUIVALENT, MUTANTS, Plant, kill
from tests.simulator.real_clients import RealClients

#: One of each kind: the commit, the log, merging, versions, the client, the network, the v1 view; a log that was set
#: back, how that is noticed, what is left, what comes back; the journal, a copy of a client.
HANDFUL = (
    "ack_before_commit",
    "disk_full_swallowed",
    "page_end_skipped",
    "tombstone_by_time",
    "disabled_is_unknown",
    "ack_by_id",
    "unmatched_replies",
    "stale_base",
    "graphs_mixed",
    "place_by_number",
    "locate_believes_the_client",
    "all_given_back_aside",
    "journal_after_the_ack",
    "copies_not_noticed",
)


@pytest.mark.parametrize("name", HANDFUL)
def test_a_planted_bug_is_seen(name: str) -> None:
    killed = kill(MUTANTS[name], 600, "small")

    assert killed is not None


def test_there_are_enough_bugs_and_each_says_what_it_is() -> None:
    assert len(MUTANTS) >= 40
    assert all(plant.__doc__ for plant in MUTANTS.values())
    assert not set(MUTANTS) & set(EQUIVALENT)


def replaced(plant: Plant) -> Iterator[tuple[Any, Any]]:
    """What a bug would replace, each with what it would put in its place."""
    patch = Mock(pytest.MonkeyPatch)
    plant(patch)
    for call in patch.setattr.call_args_list:
        *target, bug = call.args
        yield resolve_name(*target) if len(target) == 1 else getattr(target[0], target[1], None), bug


def fits(bug: Any, real: Any) -> bool:
    """Whether it can be handed all that what it replaces can be handed, in order or by name."""
    taken = signature(real).parameters.values()
    by_name = {each.name: each for each in taken if each.kind is Parameter.KEYWORD_ONLY}
    in_order = [each for each in taken if each.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)]
    for given, named in ((in_order, by_name), ((), by_name | {each.name: each for each in in_order})):
        try:
            signature(bug).bind(*given, **named)
        except TypeError:
            continue
        return True
    return False


@pytest.mark.parametrize("name", MUTANTS)
def test_every_bug_fits_into_what_it_replaces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(fits(bug, real) for real, bug in replaced(MUTANTS[name]) if callable(real))

    MUTANTS[name](monkeypatch)


def test_a_bug_that_fits_no_more_is_seen() -> None:
    def as_it_was(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Keeper, "_compare", lambda self, journal, graph, birth, tip: None)

    [(real, bug)] = replaced(as_it_was)

    assert not fits(bug, real)


def first_seed(plant: Plant) -> int:
    killed = kill(plant, 200, "small")
    assert killed is not None
    return killed.runs - 1


def test_a_failure_is_told_as_the_shortest_story_that_breaks_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seed = first_seed(MUTANTS["own_writes_never_told"])
    MUTANTS["own_writes_never_told"](monkeypatch)
    world = SimulatedWorld()

    whole, story = tell_story(world, seed, "small"), shortest_story(world, seed, "small")

    assert whole is not None
    assert story is not None
    assert whole.law == story.law
    assert story.events < 12 < whole.events
    assert any("joins" in line for line in story.lines)
    assert story == shortest_story(world, seed, "small")


def test_without_its_bug_the_same_seed_breaks_nothing() -> None:
    seed = first_seed(MUTANTS["own_writes_never_told"])

    assert shortest_story(SimulatedWorld(), seed, "small") is None


def test_of_a_script_that_is_made_short_no_event_can_be_left_out() -> None:
    script = [Event(number, "edit", (0, 0, number, 9)) for number in range(60)]
    needed = {3, 17, 18, 59}

    found = shortest(script, lambda less: needed <= {event.at for event in less})

    assert sorted(needed) == [event.at for event in found]
    assert [0, 0, 0, 0] == [event.args[3] for event in found]


def test_an_exception_in_the_build_is_a_failure_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inbetweenies.engine.decide", None)

    broken = run_seed(SimulatedWorld(), 0, "small").broken

    assert broken is not None
    assert "2.7 (no traceback)" == broken.law
    assert "in serve, line" in broken.what
    assert "engine.py" in broken.what


def test_a_run_that_is_not_the_same_twice_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from inbetweenies.testing.simulator import server

    count = iter(range(10**6))
    monkeypatch.setattr(server.MemoryDatabase, "_epoch", lambda self: f"{next(count):016x}")

    tally = runner.run_seeds(SimulatedWorld(), range(20), "small", rerun_every=1)

    assert {runner.NOT_REPEATABLE} == {failure.law for failure in tally.failures}
    assert len(tally.failures) > 3


class Ours(SimulatedWorld):
    """Our clients only, and a database that is replaced again and again."""

    kinds = ("modern",)
    faults = ("restore", "crash_after_commit", "delay")


class Forgotten(MemoryDatabase):
    """Says that it keeps a journal, and keeps none."""

    def start(self, clock: Callable[[], int], kept: frozenset[str]) -> None:
        super().start(clock, kept - {"journal"})


class Unwritten(Ours):
    def make_database(self) -> MemoryDatabase:
        return Forgotten()


def test_what_clients_hold_survives_a_restore_with_and_without_what_is_kept_outside() -> None:
    tally = runner.run_seeds(Ours(), range(150), "small", rerun_every=0)

    assert [] == tally.failures
    assert tally.faults["restore"] > 50
    assert tally.rewound < tally.acked / 50


def test_a_build_is_held_to_what_it_says_survives_a_restore() -> None:
    tally = runner.run_seeds(Unwritten(), range(100), "small", rerun_every=0)

    told = {failure.what.rpartition("; ")[2] for failure in tally.failures if "no acked write lost" in failure.law}
    assert {"the journal did not bring it back"} == told


class OursThemselves(Ours, RealClients):
    """The same with the clients themselves."""


def test_a_bug_of_our_own_client_is_seen_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Recovery._known_after

    def known_after(self: Recovery, seq: int) -> list[Known]:
        return [row for row in real(self, seq) if row.theirs == row.hash]

    monkeypatch.setattr(Recovery, "_known_after", known_after)

    world = OursThemselves()
    broken = next(found for seed in range(100) if (found := run_seed(world, seed, "small").broken) is not None)

    assert broken.law in ("1.1, 1.9 (no acked write lost)", "10.10, 11.4 (nothing told lost)")
