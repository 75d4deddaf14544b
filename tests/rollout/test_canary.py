"""Whom a rollout reaches, and when it may reach more (PROTOCOL 12.5, 12.6)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.registry import Registry
from inbetweenies.rollout import canary
from inbetweenies.rollout.canary import (
    Bar,
    Evidence,
    NotYet,
    Seen,
    bucket,
    missing,
    reaches,
    seen_by,
    seen_in,
    share_of,
    went_on,
)
from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.states import STEPS, WHOLE, Event, Rollout, RolloutMoved, Rollouts, moved

V1, V2 = "inbetweenies-v1", "inbetweenies-v2"
WHY = Cause(actor="ada", reason="a test", at=0)
REGISTRY = Registry(accepted=(V2, V1), fallback=V1, missing=V1, revision="7-abc")

VECTORS = json.loads((files("inbetweenies.testing") / "buckets.json").read_text())
#: How many vectors there were when these were last added to, and the SHA-256 of that many. Others are only added.
PINNED = (26, "af456d24fcc4f51ce88e0011f0757a2564d707e2a1837d9559afc553a0e43cd7")

names = st.text(max_size=20)
ramps = st.lists(st.integers(1, WHOLE - 1), min_size=1, max_size=5, unique=True).map(lambda some: tuple(sorted(some)))


def ramped(ramp: tuple[int, ...] = STEPS, steps: int = 4, **fields: Any) -> Rollout:
    """A rollout that went on `steps` times; the fourth time is into the ramp."""
    rollout = Rollout(subject=V2, steps=ramp, since=0, **fields)
    for _ in range(steps):
        rollout = moved(rollout, "advance", fence=rollout.fence, cause=WHY)
    return rollout


# --- buckets ------------------------------------------------------------------------------------------------------


def by_the_letter(flag: str, salt: str, graph: str) -> int:
    """PROTOCOL 12.5, read by somebody who has only that."""
    said = b""
    for part in (flag, salt, graph):
        said += bytes([len(part.encode()) >> shift & 255 for shift in (24, 16, 8, 0)]) + part.encode()
    return int(hashlib.blake2b(said, digest_size=8).hexdigest(), 16) % 1_000_000


def check_vectors() -> None:
    for one in VECTORS:
        assert one["bucket"] == canary.bucket(one["flag"], one["graph"], salt=one["salt"]), one


def test_the_published_vectors_hold() -> None:
    assert len(VECTORS) >= 20
    check_vectors()


def test_the_published_vectors_are_only_added_to() -> None:
    count, pinned = PINNED
    told = json.dumps(VECTORS[:count], sort_keys=True).encode()

    assert pinned == hashlib.sha256(told).hexdigest()
    assert count == len(VECTORS), "pin the new ones as well"


@given(flag=names, salt=names, graph=names)
def test_a_bucket_is_what_the_specification_says(flag: str, salt: str, graph: str) -> None:
    assert by_the_letter(flag, salt, graph) == bucket(flag, graph, salt=salt)


def test_text_that_is_no_text_has_a_bucket_too() -> None:
    assert 0 <= bucket(V2, "\ud800") < WHOLE


@pytest.mark.parametrize("seed", ["0", "1", "random"])
def test_every_process_agrees(seed: str) -> None:
    code = (
        "import json, sys; from inbetweenies.rollout.canary import bucket;"
        "print(json.dumps([bucket(v['flag'], v['graph'], salt=v['salt']) for v in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(VECTORS),
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )

    assert [one["bucket"] for one in VECTORS] == json.loads(done.stdout)


def test_buckets_are_even_and_flags_and_salts_independent() -> None:
    check_even()


def check_even() -> None:
    graphs = [f"home-{number}" for number in range(20_000)]
    first = [canary.bucket("a", graph) for graph in graphs]
    for others in (
        [canary.bucket("b", graph) for graph in graphs],
        [canary.bucket("a", one, salt="2") for one in graphs],
    ):
        # Ten by ten cells: chi-square with 99 degrees of freedom is below 160 in all but 1 of 10,000 draws, and this
        # is always the same draw.
        cells = [0] * 100
        for one, other in zip(first, others, strict=True):
            cells[one * 10 // WHOLE * 10 + other * 10 // WHOLE] += 1
        assert sum((cell - 200) ** 2 / 200 for cell in cells) < 160


# --- whom it reaches ----------------------------------------------------------------------------------------------


@given(ramp=ramps, graph=names, allow=st.frozensets(names, max_size=3), deny=st.frozensets(names, max_size=3))
def test_going_on_takes_nothing_from_any_graph(
    ramp: tuple[int, ...], graph: str, allow: frozenset[str], deny: frozenset[str]
) -> None:
    check_monotone(ramp, graph, allow, deny)


def check_monotone(ramp: tuple[int, ...], graph: str, allow: frozenset[str], deny: frozenset[str]) -> None:
    rollout, had = ramped(ramp, 0, allow=allow, deny=deny), False
    events: list[Event] = [*["advance"] * (5 + len(ramp)), "finalize"]  # type: ignore[list-item]
    for event in events:
        rollout = moved(rollout, event, fence=rollout.fence, cause=WHY)
        has = canary.reaches(rollout, graph)
        assert has or not had
        if rollout.state == "finalized":
            assert has
        elif rollout.share == 0 or graph in deny:
            assert not has
        elif graph in allow or rollout.share == WHOLE:
            assert has
        else:
            assert has == (by_the_letter(V2, "1", graph) < rollout.share)
        if rollout.state in ("ramp", "full", "burn_in"):
            held = moved(rollout, "hold", fence=rollout.fence, cause=WHY)
            back = moved(held, "roll_back", fence=held.fence, cause=WHY)
            assert (has, False) == (canary.reaches(held, graph), canary.reaches(back, graph))
        had = has


@given(graph=names)
def test_a_second_rollout_starts_with_other_graphs(graph: str) -> None:
    second = replace(ramped(), serial=2)

    assert reaches(second, graph) == (bucket(V2, graph, salt="2") < STEPS[0])


def test_the_shares_are_those_that_were_asked_for() -> None:
    graphs = [f"home-{number}" for number in range(10_000)]
    for step, share in enumerate(STEPS):
        rollout = ramped(steps=4 + step)
        reached = sum(reaches(rollout, graph) for graph in graphs)

        assert abs(reached / 10_000 - share / WHOLE) < 0.01


def seen(graph: str, *rollouts: Rollout, registry: Registry = REGISTRY, enhanced: bool = True) -> Registry:
    return seen_by(graph, registry, Rollouts(rollouts={one.subject: one for one in rollouts}), enhanced=enhanced)


def test_a_version_is_offered_to_whom_its_rollout_reaches() -> None:
    rollout = ramped(allow=frozenset({"in"}), deny=frozenset({"out"}))
    out = seen("out", rollout)

    assert (V2, V1) == seen("in", rollout).offered
    assert ((V2, V1), (V1,), (V1,)) == (out.accepted, out.offered, out.deployed)
    assert V1 == out.supported[0]
    assert REGISTRY == seen("in", rollout)
    assert out.revision.startswith("7-abc-")
    assert out == seen("out too", replace(rollout, deny=frozenset({"out too"})))


@pytest.mark.parametrize("steps", [0, 1])
def test_planning_a_rollout_changes_nothing_yet(steps: int) -> None:
    assert REGISTRY == seen("g", ramped(steps=steps))


def test_rolled_back_it_is_offered_to_nobody_and_finalized_as_the_registry_says() -> None:
    rollout = ramped(steps=9)
    back = moved(rollout, "roll_back", fence=9, cause=WHY)
    final = moved(rollout, "finalize", fence=9, cause=WHY)

    assert (V1,) == seen("g", back).offered
    assert REGISTRY == seen("g", final)
    assert (V1,) == seen("g", final, registry=replace(REGISTRY, offered=(V1,), deployed=(V1,))).offered


def test_what_the_registry_does_not_offer_no_rollout_does() -> None:
    small = replace(REGISTRY, offered=(V1,), deployed=(V1,))

    assert small == seen("in", ramped(allow=frozenset({"in"})), registry=small)


def test_without_enhanced_sync_only_the_fallback_is_offered_if_it_is_at_all() -> None:
    bare = replace(REGISTRY, offered=(V2,), deployed=(V2,))

    assert ((V1,), (V2, V1)) == (seen("g", enhanced=False).offered, seen("g", enhanced=False).accepted)
    assert bare == seen("g", registry=bare, enhanced=False)


# --- whether it may go on -----------------------------------------------------------------------------------------

numbers = st.integers(0, 60)


@given(
    bar=st.builds(Bar, wait_us=numbers, sessions=numbers, pushes=numbers, pulls=numbers, conflicts=numbers),
    evidence=st.builds(
        Evidence,
        fence=st.integers(3, 5),
        sessions=numbers,
        pushes=numbers,
        pulls=numbers,
        conflicts=numbers,
        breaches=st.integers(0, 1),
        degraded=st.sampled_from([(), ("p99",)]),
    ),
    now=st.integers(-10, 80),
)
def test_it_goes_on_only_with_time_and_evidence_of_this_step(bar: Bar, evidence: Evidence, now: int) -> None:
    check_gate(bar, evidence, now)


def check_gate(bar: Bar, evidence: Evidence, now: int) -> None:
    rollouts = Rollouts(rollouts={V2: ramped()})
    counted = evidence if evidence.fence == 4 else Evidence(fence=4)
    enough = now >= bar.wait_us and not counted.breaches and not counted.degraded
    for name in ("sessions", "pushes", "pulls", "conflicts"):
        enough = enough and getattr(counted, name) >= getattr(bar, name)
    try:
        after = went_on(rollouts, V2, evidence, bar, fence=4, cause=replace(WHY, at=now))
    except NotYet as refused:
        assert not enough
        assert refused.missing == canary.missing(rollouts.of(V2), evidence, bar, now=now) != ()
    else:
        assert enough
        assert ("ramp", 1) == (after.of(V2).state, after.of(V2).step)


ENOUGH = Evidence(fence=4, sessions=50, pushes=1, pulls=1, conflicts=1)


def test_what_it_lacks_is_said() -> None:
    told = missing(ramped(), Evidence(fence=4, sessions=49, breaches=2, degraded=("p99 of pushes",)), Bar(), now=1)

    assert (
        "1800 more seconds",
        "1 more sessions",
        "1 more pushes",
        "1 more pulls",
        "1 more conflicts",
        "no broken invariants (there were 2)",
        "no worse p99 of pushes",
    ) == told
    with pytest.raises(NotYet, match=r"rollout inbetweenies-v2/1 to leave ramp; it still needs 1800 more seconds"):
        went_on(Rollouts(rollouts={V2: ramped()}), V2, ENOUGH, Bar(), fence=4, cause=WHY)


def test_one_step_per_fence_however_many_say_so() -> None:
    late = replace(WHY, at=Bar().wait_us)
    once = went_on(Rollouts(rollouts={V2: ramped()}), V2, ENOUGH, Bar(), fence=4, cause=late)

    assert 1 == once.of(V2).step
    with pytest.raises(RolloutMoved):
        went_on(once, V2, ENOUGH, Bar(), fence=4, cause=late)
    # And what was seen at the step before lets nobody go on from this one.
    with pytest.raises(NotYet):
        went_on(once, V2, ENOUGH, Bar(wait_us=0), fence=5, cause=late)


def test_before_anybody_is_served_nothing_can_be_seen_and_finalizing_needs_as_much_as_a_step() -> None:
    assert () == missing(ramped(steps=2), Evidence(fence=0), Bar(), now=0)

    done = Rollouts(rollouts={V2: ramped(steps=9)})
    with pytest.raises(NotYet):
        went_on(done, V2, Evidence(fence=9), Bar(), event="finalize", fence=9, cause=WHY)
    final = went_on(done, V2, replace(ENOUGH, fence=9), Bar(), event="finalize", fence=9, cause=replace(WHY, at=2**40))
    assert "finalized" == final.of(V2).state


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("percent", "share"), [(0, 0), (0.0001, 1), (1, 10_000), (33.3333, 333_333), (100, WHOLE)])
def test_a_percentage_is_a_share(percent: float, share: int) -> None:
    assert share == share_of(percent)


@pytest.mark.parametrize("percent", [-1, -0.0001, 100.0001, 101, float("nan"), float("inf"), -float("inf")])
def test_a_percentage_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(LocalProtocolError, match="expected a percentage between 0 and 100; got"):
        share_of(percent)


@pytest.mark.parametrize("name", Bar.__struct_fields__)
def test_a_bar_below_nothing_is_refused(name: str) -> None:
    with pytest.raises(LocalProtocolError):
        Bar(**{name: -1})


# --- planted bugs -------------------------------------------------------------------------------------------------

real_bucket, real_missing = canary.bucket, canary.missing


def unseparated(flag: str, graph: str, *, salt: str = "") -> int:
    said = (flag + salt + graph).encode()
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest(), "big") % WHOLE


def without_the_flag(flag: str, graph: str, *, salt: str = "") -> int:
    return real_bucket("", graph)


def evidence_of_any_step(rollout: Rollout, evidence: Evidence, bar: Bar, *, now: int) -> tuple[str, ...]:
    return real_missing(rollout, replace(evidence, fence=rollout.fence), bar, now=now)


def time_or_evidence(rollout: Rollout, evidence: Evidence, bar: Bar, *, now: int) -> tuple[str, ...]:
    told = real_missing(rollout, evidence, bar, now=now)
    return () if now >= bar.wait_us else told


def rolls_again(rollout: Rollout, graph: str) -> bool:
    return real_bucket(V2, graph, salt=str(rollout.step)) < rollout.share


def any_way() -> None:
    check_vectors()
    check_even()
    for number in range(200):
        check_monotone((250_000, 500_000), f"home-{number}", frozenset({"home-1"}), frozenset({"home-1", "home-2"}))
    for fence in (3, 4):
        for now in (0, 1):
            check_gate(
                Bar(wait_us=1, sessions=1, pushes=0, pulls=0, conflicts=0), Evidence(fence=fence, sessions=1), now
            )
            check_gate(Bar(wait_us=1, sessions=1, pushes=0, pulls=0, conflicts=0), Evidence(fence=fence), now)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("bucket", unseparated),
        ("bucket", without_the_flag),
        ("missing", evidence_of_any_step),
        ("missing", time_or_evidence),
        ("reaches", rolls_again),
    ],
)
def test_a_planted_bug_is_caught(name: str, bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    any_way()
    monkeypatch.setattr(canary, name, bug)
    with pytest.raises(AssertionError):
        any_way()


# --- the evidence of several processes ----------------------------------------------------------------------------

EVIDENCE = st.builds(
    Evidence,
    fence=st.integers(0, 2),
    sessions=st.integers(0, 9),
    pushes=st.integers(0, 9),
    pulls=st.integers(0, 9),
    conflicts=st.integers(0, 9),
    breaches=st.integers(0, 9),
    degraded=st.lists(st.sampled_from(("p50", "p95", "p99")), unique=True).map(tuple),
)


@given(EVIDENCE, EVIDENCE, EVIDENCE)
def test_evidence_adds_up_in_any_order_and_only_that_of_the_last_step_counts(
    a: Evidence, b: Evidence, c: Evidence
) -> None:
    def told(one: Evidence) -> Evidence:
        return replace(one, degraded=tuple(sorted(one.degraded)))

    assert told((a + b) + c) == told(a + (b + c))
    assert told(a + b) == told(b + a)
    assert (a + b).fence == max(a.fence, b.fence)
    assert (a + b).sessions == sum(one.sessions for one in (a, b) if one.fence == max(a.fence, b.fence))


def test_what_was_seen_of_a_rollout_counts_for_its_step_alone() -> None:
    first = Rollout(subject="v9", serial=1, fence=3, since=0)
    other = Rollout(subject="v8", serial=1, fence=0, since=0)
    seen = Seen().add(first, Evidence(fence=3, sessions=2)).add(other, Evidence(fence=0, pushes=1))
    seen = seen_in(Document(revision=1, body=canary.document_of(seen.add(first, Evidence(fence=3, sessions=5)))))
    assert seen.of(first).sessions == 7
    assert seen.of(other).pushes == 1
    assert seen.of(replace(first, fence=4)) == Evidence(fence=4)
    later = Rollout(subject="v9", serial=2, fence=9, since=0)
    assert set(seen.add(later, Evidence(fence=9)).evidence) == {"v9/2", "v8/1"}
    on = seen.add(first, Evidence(fence=4, sessions=1))
    assert on.of(replace(first, fence=4)).sessions == 1
    # Nor does it take away what was seen at this one, if it comes late.
    assert on == on.add(first, Evidence(fence=3, sessions=9))


def test_evidence_that_is_none_is_refused() -> None:
    assert seen_in(Document()) == Seen()
    for body in (
        b"{",
        b'{"evidence":{"v\xc3\xa9/1":{"fence":1}}}',
        b'{"evidence":{"v9/1":{"fence":-1}}}',
        b'{"more":1}',
    ):
        with pytest.raises(StoreCorrupt):
            seen_in(Document(revision=1, body=body))
