"""Where a rollout stands (PROTOCOL 12.1 to 12.3): the one table, and what holds on every way through it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import inbetweenies
from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.rollout import states
from inbetweenies.rollout.kept import TEXT_CHARS_MAX, Cause
from inbetweenies.rollout.states import (
    DOCUMENT,
    LISTED_MAX,
    LOG_MAX,
    OVER,
    STEPS,
    TRANSITIONS,
    WHOLE,
    Event,
    Rollout,
    RolloutMoved,
    Rollouts,
    State,
    document_of,
    moved,
    rollouts_in,
)
from inbetweenies.stores import MemoryStore, amend

V2 = "inbetweenies-v2"
WHY = Cause(actor="ada", reason="a test", at=7)
EVENTS: tuple[Event, ...] = get_args(Event)
STATES: tuple[State, ...] = get_args(State)

steps = st.lists(st.integers(1, WHOLE - 1), min_size=1, max_size=5, unique=True).map(lambda some: tuple(sorted(some)))
events = st.lists(st.sampled_from((*EVENTS, *["advance"] * 6)), max_size=25)


def go(rollout: Rollout, *chosen: Event) -> Rollout:
    for event in chosen:
        rollout = moved(rollout, event, fence=rollout.fence, cause=replace(WHY, at=rollout.since + 1))
    return rollout


def fresh(subject: str = V2, ramp: tuple[int, ...] = STEPS) -> Rollout:
    return Rollouts().started(subject, steps=ramp, cause=WHY).of(subject)


# --- what holds on every way --------------------------------------------------------------------------------------


@given(ramp=steps, chosen=events)
def test_any_way_through_the_table_keeps_its_promises(ramp: tuple[int, ...], chosen: list[Event]) -> None:
    walk(ramp, chosen)


def walk(ramp: tuple[int, ...], chosen: list[Event]) -> None:
    rollout = fresh(ramp=ramp)
    for event in chosen:
        before = rollout
        try:
            rollout = states.moved(before, event, fence=before.fence, cause=replace(WHY, at=before.since + 1))
        except LocalProtocolError:
            assert (before.state, event) not in TRANSITIONS
            continue
        assert rollout.state in TRANSITIONS[before.state, event]
        assert (before.fence + 1, before.since + 1) == (rollout.fence, rollout.since)
        assert (event, rollout.state) == (rollout.log[-1].event, rollout.log[-1].state)
        check_shares(before, event, rollout)
        check_undo(rollout)
        kept = Rollouts(rollouts={V2: rollout})
        assert kept == rollouts_in(Document(revision=1, body=document_of(kept)))


def check_shares(before: Rollout, event: Event, after: Rollout) -> None:
    if event == "advance":
        assert before.share <= after.share  # nobody is taken back by going on
        assert after.share in (0, *after.steps, WHOLE)
    elif event in ("hold", "resume", "finalize"):
        assert before.share == after.share
    else:
        assert 0 == after.share
    if event == "resume":
        assert (before.held_in, before.step) == (after.state, after.step)


def check_undo(rollout: Rollout) -> None:
    """Everything before `finalized` is undone by one move, and by nobody who was too late."""
    assert rollout.over == (rollout.undo is None)
    if rollout.undo is None:
        return
    undone = states.moved(rollout, rollout.undo, fence=rollout.fence, cause=WHY)
    assert (True, 0) == (undone.over, undone.share)
    assert undone.governs == (rollout.undo == "roll_back")
    with pytest.raises(RolloutMoved):
        states.moved(undone, rollout.undo, fence=rollout.fence, cause=WHY)


def test_a_rollout_without_trouble_reaches_everybody_step_by_step() -> None:
    rollout, seen = fresh(), []
    for event in (*["advance"] * 9, "finalize"):
        rollout = go(rollout, event)  # type: ignore[arg-type]
        seen.append((rollout.state, rollout.share, rollout.governs))

    assert [
        ("preflighted", 0, False),
        ("expanded", 0, True),
        ("shadow", 0, True),
        *[("ramp", share, True) for share in STEPS],
        ("full", WHOLE, True),
        ("burn_in", WHOLE, True),
        ("finalized", WHOLE, False),
    ] == seen


def test_the_table_is_whole() -> None:
    """Every state is reached, none but those that are over is a dead end, and each of the others can be undone."""
    reached = {target for targets in TRANSITIONS.values() for target in targets}
    leaving = {state for state, _ in TRANSITIONS}

    assert set(STATES) - {"planned"} == reached
    assert set(STATES) - OVER == leaving
    for state in leaving:
        assert 1 == sum((state, event) in TRANSITIONS for event in ("roll_back", "abort"))


def test_of_the_moves_only_the_newest_are_kept() -> None:
    rollout = go(fresh(), *["advance"] * 4, *(["hold", "resume"] * LOG_MAX))  # type: ignore[arg-type]

    assert (LOG_MAX, 4 + 2 * LOG_MAX) == (len(rollout.log), rollout.fence)
    assert "resume" == rollout.log[-1].event


# --- several at once ----------------------------------------------------------------------------------------------


def test_two_controllers_that_advance_at_once_advance_once() -> None:
    assert [1, "moved"] == asyncio.run(race())


async def race() -> list[int | str]:
    """One controller decides, is overtaken between its reading and its writing, and tries again as `amend` does."""
    store = MemoryStore()
    await amend(store, DOCUMENT, lambda one: document_of(rollouts_in(one).started(V2, cause=WHY)))

    def advance(document: Document) -> bytes:
        return document_of(rollouts_in(document).moved(V2, "advance", fence=0, cause=WHY))

    slow = await store.document(DOCUMENT)
    decided = advance(slow)
    await amend(store, DOCUMENT, advance)
    assert not await store.put_document(DOCUMENT, decided, revision=slow.revision)
    try:
        await amend(store, DOCUMENT, advance)
        outcome = "advanced twice"
    except RolloutMoved:
        outcome = "moved"
    return [rollouts_in(await store.document(DOCUMENT)).of(V2).fence, outcome]


def test_who_is_late_is_told_what_happened() -> None:
    with pytest.raises(RolloutMoved, match=r"expected rollout inbetweenies-v2/1 at fence 0; got 1: .* preflighted"):
        moved(go(fresh(), "advance"), "abort", fence=0, cause=WHY)


def test_a_controller_of_a_dead_rollout_cannot_move_the_next() -> None:
    dead = go(fresh(), "advance", "abort")
    again = Rollouts(rollouts={V2: dead}).started(V2, cause=WHY)

    assert ("inbetweenies-v2/2", "planned") == (again.of(V2).id, again.of(V2).state)
    for fence in range(dead.fence + 1):
        with pytest.raises(RolloutMoved):
            again.moved(V2, "advance", fence=fence, cause=WHY)


def test_what_was_rolled_back_stays_so_until_the_next_rollout_gives_it() -> None:
    kept = Rollouts(rollouts={V2: go(fresh(), "advance", "advance", "roll_back")})
    for serial in (2, 3):  # of two that are begun and given up one does as little as the other
        kept = kept.started(V2, cause=WHY)
        assert (serial, True, 0) == (kept.of(V2).serial, kept.of(V2).governs, kept.of(V2).share)
        kept = Rollouts(rollouts={V2: go(kept.of(V2), "advance", "abort")})
        assert (True, 0) == (kept.of(V2).governs, kept.of(V2).share)
    done = go(kept.started(V2, cause=WHY).of(V2), *["advance"] * 9, "finalize")  # type: ignore[arg-type]
    assert not done.governs
    assert not Rollouts(rollouts={V2: done}).started(V2, cause=WHY).of(V2).governs


def test_who_started_it_is_kept() -> None:
    assert (states.Move(event="start", state="planned", cause=WHY),) == fresh().log


def test_rollouts_of_two_subjects_do_not_touch_one_another() -> None:
    both = Rollouts().started(V2, cause=WHY).started("graph", cause=WHY).moved(V2, "advance", fence=0, cause=WHY)

    assert ("preflighted", "planned") == (both.of(V2).state, both.of("graph").state)


def test_lists_change_behind_the_fence_and_move_nothing() -> None:
    started = Rollouts().started(V2, cause=WHY).moved(V2, "advance", fence=0, cause=WHY)
    lists = {"allow": frozenset({"a"}), "deny": frozenset({"b"})}
    after = started.listed(V2, **lists, fence=1, cause=replace(WHY, at=99))
    one = after.of(V2)

    assert (lists, 2, "preflighted", WHY.at) == (
        {"allow": one.allow, "deny": one.deny},
        one.fence,
        one.state,
        one.since,
    )
    assert ("list", 99) == (one.log[-1].event, one.log[-1].cause.at)
    assert after == rollouts_in(Document(revision=1, body=document_of(after)))
    with pytest.raises(RolloutMoved):
        after.listed(V2, **lists, fence=1, cause=WHY)
    with pytest.raises(LocalProtocolError, match="got inbetweenies-v2/1, which is aborted"):
        after.moved(V2, "abort", fence=2, cause=WHY).listed(V2, **lists, fence=3, cause=WHY)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_while_one_is_under_way_no_other_starts() -> None:
    with pytest.raises(LocalProtocolError, match="got inbetweenies-v2/1, which is planned: finalize it or abort first"):
        Rollouts().started(V2, cause=WHY).started(V2, cause=WHY)


def test_an_unknown_subject_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="of none; got another"):
        Rollouts().of(V2)
    with pytest.raises(LocalProtocolError, match="of graph; got another"):
        Rollouts().started("graph", cause=WHY).moved(V2, "advance", fence=0, cause=WHY)


def test_what_cannot_happen_is_refused_and_what_can_is_said() -> None:
    with pytest.raises(LocalProtocolError, match=r"expected one of advance, abort for .* planned; got finalize"):
        go(fresh(), "finalize")
    with pytest.raises(LocalProtocolError, match="no events any more"):
        go(fresh(), "abort", "abort")


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": ()},
        {"steps": (0, 5)},
        {"steps": (-1,)},
        {"steps": (5, 5)},
        {"steps": (6, 5)},
        {"steps": (WHOLE,)},
        {"steps": tuple(range(1, 102))},
        {"subject": ""},
        {"subject": "é"},
        {"step": 1},
        {"step": -1},
        {"state": "ramp", "step": 4},
        {"state": "held"},
        {"state": "held", "held_in": "planned"},
        {"held_in": "ramp"},
        {"serial": 0},
        {"fence": -1},
        {"allow": [str(n) for n in range(LISTED_MAX + 1)]},
        {"deny": [str(n) for n in range(LISTED_MAX + 1)]},
        {"log": (states.Move(event="hold", state="held", cause=WHY),) * (LOG_MAX + 1)},
    ],
)
def test_a_rollout_that_contradicts_itself_is_refused_in_code_and_in_the_store(fields: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"subject": V2, "since": 0} | fields
    with pytest.raises(LocalProtocolError):
        Rollout(**whole)
    with pytest.raises(StoreCorrupt):
        rollouts_in(Document(revision=1, body=msgspec.json.encode({"rollouts": {whole["subject"]: whole}})))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b'{"newer": 1}',
        b'{"rollouts": {"graph": {"subject": "other", "since": 0}}}',
        b'{"rollouts": {"graph": {"subject": "graph", "since": 0, "newer": 1}}}',
    ],
)
def test_a_document_of_something_else_is_refused(body: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="expected the rollouts"):
        rollouts_in(Document(revision=1, body=body))


def test_a_document_that_was_never_written_holds_none() -> None:
    assert Rollouts() == rollouts_in(Document())


@pytest.mark.parametrize("text", ["", " ", "a\nb", "x" * (TEXT_CHARS_MAX + 1)])
def test_a_change_names_who_and_why(text: str) -> None:
    with pytest.raises(LocalProtocolError, match="expected an actor"):
        Cause(actor=text, reason="a test", at=0)
    with pytest.raises(LocalProtocolError, match="expected a reason"):
        Cause(actor="ada", reason=text, at=0)


# --- the drawing --------------------------------------------------------------------------------------------------


def drawn() -> str:
    """The table of transitions as PROTOCOL 12.1 shows it."""
    lines = ["| | " + " | ".join(EVENTS) + " |", "|---" * (len(EVENTS) + 1) + "|"]
    for state in STATES:
        cells = [" or ".join(TRANSITIONS.get((state, event), ())) for event in EVENTS]
        lines.append(f"| **{state}** | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def test_the_table_is_drawn_in_the_specification() -> None:
    specification = (Path(inbetweenies.__file__).parent / "PROTOCOL.md").read_text()

    assert drawn() in specification, f"PROTOCOL 12.1 shows another table; this one is in force:\n{drawn()}"


# --- planted bugs -------------------------------------------------------------------------------------------------

real_moved, real_next = states.moved, states._next


def no_fence(rollout: Rollout, event: Event, *, fence: int, cause: Cause) -> Rollout:
    return real_moved(rollout, event, fence=rollout.fence, cause=cause)


def forgets_the_step(rollout: Rollout, event: Event) -> tuple[State, int]:
    state, step = real_next(rollout, event)
    return state, 0 if event == "resume" else step


def stuck(rollout: Rollout, event: Event) -> tuple[State, int]:
    return ("held", 0) if event == "roll_back" and rollout.state == "held" else real_next(rollout, event)


@pytest.mark.parametrize(("name", "bug"), [("moved", no_fence), ("_next", forgets_the_step), ("_next", stuck)])
def test_a_planted_bug_is_caught(name: str, bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, name, bug)
    with pytest.raises((AssertionError, LocalProtocolError)):
        walk(STEPS, [*["advance"] * 5, "hold", "resume", "hold", "roll_back"])  # type: ignore[list-item]


def test_a_table_that_leaves_a_state_without_a_way_back_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(states.TRANSITIONS, ("full", "roll_back"))
    with pytest.raises(AssertionError):
        test_the_table_is_whole()
    with pytest.raises(AssertionError):
        walk(STEPS, ["advance"] * 8)


def test_a_drawing_that_is_stale_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(states.TRANSITIONS, ("planned", "hold"), ("held",))
    with pytest.raises(AssertionError):
        test_the_table_is_drawn_in_the_specification()
