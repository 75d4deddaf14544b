"""What stops a rollout and what takes it back (PROTOCOL 12.8): the ladder, and the bets against canary."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import product
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.rollout import sequential, triggers
from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.sequential import RATIOS, Arm, Bets
from inbetweenies.rollout.states import Event, Rollout, moved
from inbetweenies.rollout.triggers import (
    LOG_MAX,
    RUNGS,
    Climb,
    Signals,
    Thresholds,
    Watch,
    Watches,
    document_of,
    due,
    look,
    watches_in,
)
from tests.rollout.simulation import THRESHOLDS, taken_back_after

ROLLOUTS: Final = int(os.environ.get("DEEP_EXAMPLES", "2000"))
WHY = Cause(actor="ada", reason="a test", at=0)

rates = [0.0, 0.001, 0.01, 0.05, 0.3, 0.7, 1.0]


# --- the bets -----------------------------------------------------------------------------------------------------


def binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def check_fair() -> None:
    """What a bet pays is fair to whoever holds that canary fails no more often: exactly, for every small batch."""
    for n, m in product(range(5), repeat=2):
        for ours, theirs in product(rates, repeat=2):
            for base, ratio in product((1e-4, 0.01, 0.1, 0.45), RATIOS):
                expected = sum(
                    binomial(n, k, ours)
                    * binomial(m, j, theirs)
                    * math.exp(
                        sequential._paid(
                            min(base * ratio, 0.9), base, Arm(requests=n, failures=k), Arm(requests=m, failures=j)
                        )
                    )
                    for k in range(n + 1)
                    for j in range(m + 1)
                )
                if ours <= theirs:
                    assert expected <= 1 + 1e-9
                elif not n or not m:
                    assert math.isclose(1, expected)


def test_a_bet_pays_no_more_than_it_costs_to_whoever_is_right() -> None:
    check_fair()


def test_a_bet_pays_where_canary_fails_more_often() -> None:
    one, none = Arm(requests=1, failures=1), Arm(requests=1)

    assert sequential._paid(0.5, 0.1, one, none) > 0 > sequential._paid(0.5, 0.1, none, one)


arms = st.integers(0, 200).flatmap(
    lambda requests: st.builds(Arm, requests=st.just(requests), failures=st.integers(0, requests))
)


@given(seen=st.lists(st.tuples(arms, arms), max_size=20))
def test_restaking_makes_nobody_richer(seen: list[tuple[Arm, Arm]]) -> None:
    check_restaking(seen)


def check_restaking(seen: list[tuple[Arm, Arm]]) -> None:
    bets = Bets()
    assert math.isclose(1, bets.wealth)
    for canary, control in seen:
        bets = bets.after(canary, control)
        # Nobody came: nothing is won or lost, whatever is staked anew.
        idle = bets.after(Arm(), Arm())
        assert math.isclose(bets.wealth, idle.wealth)
        assert idle.restakes <= bets.restakes + 1
        assert (bets.canary, bets.control) == (idle.canary, idle.control)


@given(seen=st.lists(st.tuples(arms, arms), max_size=20))
def test_a_batch_that_is_not_seen_yet_moves_no_bet(seen: list[tuple[Arm, Arm]]) -> None:
    check_predictable(seen)


def check_predictable(seen: list[tuple[Arm, Arm]]) -> None:
    """The rates that are bet on for a batch are those of what came before it."""
    bets = Bets()
    for canary, control in seen:
        known = bets.control
        rate = min(max((known.failures + 1) / (known.requests + 100), 1e-4), 0.45)
        staked = bets.after(Arm(), Arm()).logs
        bets = bets.after(canary, control)
        paid = [sequential._paid(min(rate * ratio, 0.9), rate, canary, control) for ratio in RATIOS]
        assert all(
            math.isclose(log, before + more, abs_tol=1e-9)
            for log, before, more in zip(bets.logs, staked, paid, strict=True)
        )


def test_all_that_is_ever_staked_is_one() -> None:
    bets = Bets()
    for _ in range(2_000):
        bets = bets.after(Arm(requests=100, failures=1), Arm(requests=100, failures=1))

    assert 10 < bets.restakes < 2_000
    assert 0 < bets.wealth < 0.2


def test_more_than_a_float_holds_is_still_enough() -> None:
    bets = Bets().after(Arm(requests=10**6, failures=10**6), Arm(requests=10**6))

    assert 1e300 < bets.wealth < math.inf


@pytest.mark.parametrize(("requests", "failures"), [(1, 2), (0, -1), (-1, -1)])
def test_an_arm_that_cannot_be_is_refused(requests: int, failures: int) -> None:
    with pytest.raises(LocalProtocolError, match="failures of as many requests"):
        Arm(requests=requests, failures=failures)


# --- the verdicts, in many rollouts -------------------------------------------------------------------------------


def quantile(numbers: list[float], part: float) -> float:
    return sorted(numbers)[int(part * len(numbers))]


def false_ones(rollouts: int) -> int:
    return sum(taken_back_after(seed, canary=0.01, control=0.01, most=10_000) is not None for seed in range(rollouts))


def allowed(rollouts: int) -> float:
    """One in a thousand; of few rollouts, so many more as chance brings one time in 10,000."""
    expected = THRESHOLDS.alpha * rollouts
    return expected if rollouts >= 100_000 else expected + 4 * math.sqrt(expected) + 1


def test_rollouts_that_do_no_harm_are_left_alone() -> None:
    found = false_ones(ROLLOUTS)

    print(f"figures: {found} of {ROLLOUTS:,} rollouts of 10,000 requests a side at 1 % were taken back wrongly")
    assert found <= allowed(ROLLOUTS)


@pytest.mark.parametrize(
    ("what", "canary", "healthy", "limit"),
    [
        ("1 % to 5 %", 0.05, 0, 1_100),
        ("1 % to 10 %", 0.1, 0, 400),
        ("1 % to 50 %", 0.5, 0, 50),
        ("1 % to all", 1.0, 0, 20),
        ("1 % to 5 % after 20,000 healthy ones", 0.05, 20_000, 2_500),
    ],
)
def test_rollouts_that_do_harm_are_taken_back_soon(what: str, canary: float, healthy: int, limit: int) -> None:
    count = max(ROLLOUTS // 10, 200)
    needed = [
        taken_back_after(seed, canary=canary, control=0.01, most=50_000, healthy=healthy) or math.inf
        for seed in range(count)
    ]
    median, p95 = quantile(needed, 0.5), quantile(needed, 0.95)

    print(f"figures: {what}: taken back after {median:,} (median) and {p95:,} (p95) requests a side, {count:,} times")
    assert p95 <= limit


# --- the ladder ---------------------------------------------------------------------------------------------------

BAD = Arm(requests=40, failures=40)
GOOD = Arm(requests=40)
FINE = Signals(canary=GOOD, control=GOOD)
FAILING = Signals(canary=Arm(requests=5, failures=5), control=GOOD, canary_run=5)
BROKEN = Signals(breaches=("a write was lost",))
USUAL = Signals(canary=Arm(requests=500, failures=5), control=Arm(requests=500, failures=5))
FEW = Signals(canary=Arm(requests=1, failures=1), control=Arm(requests=1), canary_run=5)
WORSE = replace(FINE, degraded=("p99 of pushes",))

signals = st.one_of(
    st.none(),
    st.sampled_from([FINE, FAILING, BROKEN, WORSE, Signals(), replace(FINE, memory=2.5), replace(FINE, canary=BAD)]),
    st.builds(
        Signals,
        canary=arms,
        control=arms,
        canary_run=st.integers(0, 7),
        control_run=st.integers(0, 7),
        breaches=st.sampled_from([(), (), ("a write was lost",)]),
        degraded=st.sampled_from([(), ("p99 of pushes",), ("p99 of pulls", "p50 of pulls")]),
        memory=st.none() | st.floats(0, 4),
    ),
)
#: What people do meanwhile.
acts = st.sampled_from([None, None, "hold", "resume", "advance"])


def ramping() -> Rollout:
    rollout = Rollout(subject="x", since=0)
    for _ in range(4):
        rollout = moved(rollout, "advance", fence=rollout.fence, cause=WHY)
    return rollout


def act(rollout: Rollout, event: Event | None) -> Rollout:
    try:
        return rollout if event is None else moved(rollout, event, fence=rollout.fence, cause=WHY)
    except LocalProtocolError:
        return rollout


@given(story=st.lists(st.tuples(signals, acts), max_size=25))
def test_the_ladder_is_climbed_rung_by_rung_and_a_rollout_is_taken_back_once(
    story: list[tuple[Signals | None, Any]],
) -> None:
    climb(story)


def climb(story: list[tuple[Signals | None, Any]]) -> None:
    rollout, watch, backs = ramping(), Watch(rollout="x/1"), 0
    for now, (told, event) in enumerate(story):
        before = watch
        watch = triggers.look(before, told, THRESHOLDS, fence=rollout.fence, now=now)
        assert watch == kept_as(Watches().put(watch)).of(rollout)
        check_climb(before, watch, told, now)
        rollout = act(rollout, event)  # somebody else is always a little faster
        todo = due(watch, rollout)
        backs += todo == "roll_back"
        after = act(rollout, todo)
        # What was done is not due again, and a rollout that is over stays so whatever is seen of it.
        assert due(watch, after) is None
        assert not rollout.over or after == rollout
        assert after.over == (watch.height >= RUNGS.index("route_back"))
        if watch.rung != before.rung or watch.worries != before.worries:
            assert after.state != "ramp"
        rollout = after
    assert backs == sum(one.rung == "route_back" for one in watch.log) <= 1


def kept_as(watches: Watches) -> Watches:
    return watches_in(Document(revision=1, body=document_of(watches)))


def check_climb(before: Watch, after: Watch, told: Signals | None, now: int) -> None:
    climbed = [one.rung for one in after.log[len(before.log) :]]
    assert after.height >= before.height
    assert "restore" not in RUNGS
    # Each rung on the way is named. Only the first may be named again, for another reason.
    rungs = list(RUNGS[before.height + 1 : after.height + 1])
    assert climbed in (rungs, ["freeze"] if before.rung == after.rung == "freeze" else rungs)
    assert all((one.at, bool(one.why)) == (now, True) for one in after.log[len(before.log) :])
    if told is None:
        assert after.bets == before.bets
        assert after.silence == before.silence + (before.height < 2)
        assert after.height <= max(before.height, 1)
    elif not told.breaches:
        assert after.height <= max(before.height, 2)
        if not told.canary.requests:
            assert after.doubts == before.doubts


def looked(*told: Signals | None, watch: Watch | None = None) -> Watch:
    watch = watch or Watch(rollout="x/1")
    for one in told:
        watch = look(watch, one, THRESHOLDS, fence=4, now=0)
    return watch


def test_a_broken_invariant_is_enough_at_once_and_goes_on_to_repair_while_it_is_broken() -> None:
    once = looked(BROKEN)

    assert [("freeze", "a write was lost"), ("route_back", "a write was lost")] == [
        (one.rung, one.why) for one in once.log
    ]
    assert "route_back" == looked(FINE, None, FAILING, watch=once).rung
    assert ["switch", "repair", "repair"] == [looked(*[BROKEN] * count, watch=once).rung for count in (1, 2, 3)]


def test_failures_in_a_row_freeze_and_take_back_if_they_go_on() -> None:
    # After many healthy requests five failures prove nothing to the bets yet.
    usual = looked(USUAL)

    assert ["watch", "freeze", "route_back"] == [looked(*[FEW] * count, watch=usual).rung for count in range(3)]
    assert "freeze" == looked(FEW, FINE, FEW, FINE, watch=usual).rung
    assert "route_back" == looked(FEW, Signals(), None, FEW, watch=usual).rung
    assert "watch" == looked(*[replace(FEW, control_run=5)] * 9, watch=usual).rung
    assert "watch" == looked(*[replace(FEW, canary_run=4)] * 9, watch=usual).rung


def test_all_requests_failing_are_caught_at_the_first_look() -> None:
    failed = looked(Signals(canary=Arm(requests=15, failures=15), control=Arm(requests=15), canary_run=15))

    assert ("route_back", "15 of 15 failed, of the others 0 of 15") == (failed.rung, failed.log[-1].why)


def test_what_only_worries_freezes_once_and_takes_nothing_back() -> None:
    rollout = ramping()
    for told, why in ((WORSE, "worse p99 of pushes"), (replace(FINE, memory=2.0), "2.0 times the memory")):
        frozen = looked(told)
        assert ("freeze", why) == (frozen.rung, frozen.log[-1].why)
        later = looked(*[told] * 9, watch=frozen)
        assert (frozen.rung, frozen.log, frozen.worries) == (later.rung, later.log, later.worries)
        held = act(rollout, due(frozen, rollout))
        assert "held" == held.state
        # Whoever resumes it has seen why.
        assert due(looked(told, watch=frozen), act(held, "resume")) is None


def test_no_data_holds_and_nobody_to_tell_freezes() -> None:
    assert "watch" == looked(*[Signals()] * 50).rung
    assert ["watch", "watch", "freeze"] == [looked(*[None] * count).rung for count in (1, 2, 3)]
    assert "watch" == looked(*[None, None, FINE] * 5).rung


def test_a_freeze_is_not_lost_to_whoever_goes_on_at_the_same_time() -> None:
    rollout = ramping()
    frozen = look(Watch(rollout="x/1"), WORSE, THRESHOLDS, fence=rollout.fence, now=0)
    advanced = act(rollout, "advance")

    assert ("hold", "hold") == (due(frozen, rollout), due(frozen, advanced))
    held = act(advanced, "hold")
    assert due(frozen, held) is None
    assert due(frozen, act(act(held, "resume"), "advance")) is None


def test_where_nothing_can_be_held_freezing_waits_and_taking_back_does_not() -> None:
    expanded = Rollout(subject="x", since=0, state="expanded")

    assert due(looked(WORSE), expanded) is None
    assert "roll_back" == due(looked(BROKEN), expanded)
    assert "abort" == due(looked(BROKEN), replace(expanded, state="planned"))


def test_the_next_rollout_of_a_subject_is_watched_anew() -> None:
    first, second = Rollout(subject="x", since=0), Rollout(subject="x", serial=2, since=0)
    kept = kept_as(Watches().put(looked(BROKEN)))

    assert "route_back" == kept.of(first).rung
    assert Watch(rollout="x/2") == kept.of(second)
    assert Watch(rollout="x/1") == watches_in(Document()).of(first)
    with pytest.raises(LocalProtocolError, match=r"expected the watch of rollout x/2"):
        due(looked(), Rollout(subject="x", serial=2, since=0))


def test_rollouts_of_several_subjects_are_watched_side_by_side_and_who_is_late_changes_none() -> None:
    other = Watch(rollout="y/1", doubts=1)
    kept = Watches().put(looked(BROKEN)).put(other)
    later = kept.put(Watch(rollout="x/10", doubts=2))

    assert ("route_back", other) == (kept.of(Rollout(subject="x", since=0)).rung, kept.watches["y"])
    assert {"x": "x/10", "y": "y/1"} == {subject: watch.rollout for subject, watch in later.watches.items()}
    assert later == later.put(looked(BROKEN)) == later.put(Watch(rollout="x/9"))


def test_what_is_to_be_switched_off_is_so_once() -> None:
    switched = looked(BROKEN, BROKEN)

    assert [False, False, True] == [one.must_switch for one in (looked(), looked(BROKEN), switched)]
    assert [False, True, True] == [one.routed_back for one in (looked(), looked(BROKEN), switched)]
    assert not replace(switched, switched=True).must_switch
    assert not looked(BROKEN, watch=replace(switched, switched=True)).must_switch


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [{"alpha": 0.0}, {"alpha": 1.0}, {"alpha": math.nan}, {"consecutive": 0}, {"memory": 1.0}, {"silent": 0}],
)
def test_thresholds_that_would_always_or_never_be_passed_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        Thresholds(**fields)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"newer": 1}',
        b'{"watches": {"x": {}}}',
        b'{"watches": {"x": {"rollout": "x/1", "newer": 1}}}',
        b'{"watches": {"x": {"rollout": "y/1"}}}',
        b'{"watches": {"x": {"rollout": "x"}}}',
        b'{"watches": {"": {"rollout": "/1"}}}',
        b'{"watches": {"x": {"rollout": "x/1", "rung": "restore"}}}',
        b'{"watches": {"x": {"rollout": "x/1", "bets": {"logs": [0, 0]}}}}',
        b'{"watches": {"x": {"rollout": "x/1", "bets": {"canary": {"requests": 1, "failures": 2}}}}}',
    ],
)
def test_a_document_of_something_else_is_refused(body: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="expected the watches of rollouts"):
        watches_in(Document(revision=1, body=body))


def test_a_log_that_grew_beyond_its_bound_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="at most 50"):
        Watch(rollout="x/1", log=(Climb(rung="freeze", at=0, why="x"),) * (LOG_MAX + 1))


# --- planted bugs -------------------------------------------------------------------------------------------------

real_look, real_after, real_paid = triggers.look, Bets.after, sequential._paid


def naive(self: Bets) -> float:
    """What most dashboards do: is the difference significant now? Asked once it errs once in a thousand."""
    ours, theirs = self.canary, self.control
    pooled = (ours.failures + theirs.failures) / max(ours.requests + theirs.requests, 1)
    spread = math.sqrt(max(pooled * (1 - pooled), 1e-9) * (1 / max(ours.requests, 1) + 1 / max(theirs.requests, 1)))
    gap = ours.failures / max(ours.requests, 1) - theirs.failures / max(theirs.requests, 1)
    return 1e9 if gap / spread > 3.09 else 0.0


def test_a_test_that_may_be_asked_once_only_is_caught_when_it_is_asked_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bets, "wealth", property(naive))

    assert false_ones(500) > allowed(500)


def unweighted(a: float, b: float, canary: Arm, control: Arm) -> float:
    """Of sides of different sizes, compares with the rate in the middle."""
    r = (a + b) / 2
    return sum(
        arm.failures * math.log(rate / r) + (arm.requests - arm.failures) * math.log((1 - rate) / (1 - r))
        for arm, rate in ((canary, a), (control, b))
    )


def hindsight(self: Bets, canary: Arm, control: Arm) -> Bets:
    """Bets on what the batch itself says."""
    known = replace(self, control=self.control + control)
    return replace(real_after(known, canary, control), control=self.control + control)


def out_of_thin_air(self: Bets, canary: Arm, control: Arm) -> Bets:
    """Stakes anew what it has not kept."""
    after = real_after(self, canary, control)
    if after.restakes == self.restakes:
        return after
    a, b, c = (log + 1 for log in after.logs)
    return replace(after, logs=(a, b, c))


def any_way() -> None:
    check_fair()
    check_predictable([(Arm(requests=50, failures=5), Arm(requests=50, failures=1))] * 3)
    check_restaking([(Arm(requests=2_000), Arm(requests=2_000, failures=20))] * 5)
    climb([(FINE, None), (WORSE, "advance"), (WORSE, "resume"), (FAILING, None), (None, None), (BROKEN, None)])
    climb([(USUAL, None), (FEW, None), (Signals(), None)])
    climb([(Signals(), None)] * 5 + [(None, None)] * 4)
    climb([(FAILING, "resume")] * 3 + [(FINE, "resume"), (replace(FINE, canary=BAD), None), (FINE, "resume")])


@pytest.mark.parametrize(
    ("target", "name", "bug"),
    [(sequential, "_paid", unweighted), (Bets, "after", hindsight), (Bets, "after", out_of_thin_air)],
)
def test_a_bet_that_cheats_is_caught(
    target: Any, name: str, bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    any_way()
    monkeypatch.setattr(target, name, bug)
    with pytest.raises(AssertionError):
        any_way()


def fires_again(watch: Watch, told: Signals | None, *rest: Any, **more: Any) -> Watch:
    """Forgets that the rollout was taken back, as the loop does that restores every minute."""
    return replace(real_look(watch, told, *rest, **more), rung="watch")


def jumps(watch: Watch, told: Signals | None, *rest: Any, **more: Any) -> Watch:
    after = real_look(watch, told, *rest, **more)
    return replace(after, rung="repair") if told and told.breaches else after


def doubts_pass(watch: Watch, told: Signals | None, *rest: Any, **more: Any) -> Watch:
    after = real_look(watch, told, *rest, **more)
    return after if told is None or told.canary.requests else replace(after, doubts=0)


def dies_silently(watch: Watch, told: Signals | None, *rest: Any, **more: Any) -> Watch:
    return watch if told is None else real_look(watch, told, *rest, **more)


def no_data_is_harm(watch: Watch, told: Signals | None, *rest: Any, **more: Any) -> Watch:
    return real_look(watch, told and (told if told.canary.requests else replace(told, breaches=("?",))), *rest, **more)


@pytest.mark.parametrize("bug", [fires_again, jumps, doubts_pass, dies_silently, no_data_is_harm])
def test_a_ladder_that_is_climbed_wrongly_is_caught(bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "look", bug)
    with pytest.raises(AssertionError):
        any_way()
