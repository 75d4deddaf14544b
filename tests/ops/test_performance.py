"""`PerformanceMonitor` (PROTOCOL 12.7): both sides at once, nothing told twice, nothing lost, little memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import MemoryStore, PerformanceMonitor
from inbetweenies.errors import LocalProtocolError, StoreBusy
from inbetweenies.model import Document
from inbetweenies.ops import performance
from inbetweenies.ops.performance import GRAPHS_MAX, OPERATIONS_MAX, OTHER, SETTLED, WAITS_S, Served, resident_memory
from inbetweenies.rollout import states, triggers
from inbetweenies.rollout.canary import Evidence, reaches
from inbetweenies.rollout.health import Histogram, Sample
from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.sequential import Arm
from inbetweenies.rollout.states import Event, Rollout, Rollouts, moved
from inbetweenies.rollout.triggers import Signals, Watch, Watches
from inbetweenies.stores.keeper import run_now

V1, V2 = "inbetweenies-v1", "inbetweenies-v2"
WHY = Cause(actor="ada", reason="a test", at=0)


def ramping(subject: str = V2, *, share: int = 500_000, serial: int = 1) -> Rollout:
    return Rollout(subject=subject, serial=serial, state="ramp", steps=(share, 999_999), fence=4, since=0)


def together(*rollouts: Rollout) -> Rollouts:
    return Rollouts(rollouts={one.subject: one for one in rollouts})


def graphs(rollout: Rollout, count: int = 1) -> tuple[list[str], list[str]]:
    """So many graphs that the rollout does not reach, and so many that it does."""
    names = [f"home-{number}" for number in range(20 * count + 20)]
    out, reached = ([one for one in names if reaches(rollout, one) is side] for side in (False, True))
    return out[:count], reached[:count]


(OUT,), (IN,) = graphs(ramping())


def served(graph: str, operation: str = "pull", *, micros: int = 1_000, failed: bool = False, **fields: Any) -> Served:
    return Served(graph=graph, operation=operation, micros=micros, failed=failed, **fields)


class Fleet:
    """A monitor of rollouts that the test moves as it likes."""

    def __init__(self, *rollouts: Rollout, **options: Any) -> None:
        self.rollouts, self.now = together(*rollouts), 0.0
        self.monitor = PerformanceMonitor(
            MemoryStore(), rollouts=lambda: self.rollouts, monotonic=lambda: self.now, **options
        )

    def of(self, subject: str = V2) -> Rollout:
        return self.rollouts.of(subject)

    def move(self, event: Event, subject: str = V2) -> None:
        before = self.of(subject)
        self.rollouts = together(
            *({**self.rollouts.rollouts, subject: moved(before, event, fence=before.fence, cause=WHY)}.values())
        )


# --- nothing is told twice, and nothing is lost -------------------------------------------------------------------

requests = st.builds(
    Served,
    graph=st.sampled_from([IN, OUT]),
    operation=st.sampled_from(["pull", "push"]),
    micros=st.just(1_000),
    failed=st.booleans(),
    pushed=st.booleans(),
    pulled=st.booleans(),
    conflicts=st.booleans(),
    whole=st.booleans(),
)
#: What happens: a request, or somebody asks and can keep the answer or not, or the rollout is moved.
stories = st.lists(
    requests
    | st.tuples(st.sampled_from(["signals", "evidence"]), st.booleans())
    | st.sampled_from(["hold", "resume", "advance"]),
    max_size=40,
)


@given(story=stories)
def test_what_is_seen_is_told_once_whoever_could_not_keep_it_in_between(story: list[Any]) -> None:
    check_told_once(story)


def check_told_once(story: list[Any]) -> None:
    fleet = Fleet(ramping())
    monitor, arms = fleet.monitor, {True: Arm(), False: Arm()}
    kept_arms, kept, seen = {True: Arm(), False: Arm()}, Evidence(fence=4), Evidence(fence=4)
    for happened in [*story, ("signals", True), ("signals", True), ("evidence", True)]:
        fleet.now += WAITS_S
        rollout = fleet.of()
        if isinstance(happened, Served):
            monitor.record(happened)
            reached = reaches(rollout, happened.graph)
            arms[reached] += Arm(requests=1, failures=int(happened.failed))
            if reached and happened.whole and not happened.failed:
                seen += Evidence(
                    fence=rollout.fence,
                    sessions=1,
                    pushes=int(happened.pushed),
                    pulls=int(happened.pulled),
                    conflicts=int(happened.conflicts),
                )
        elif isinstance(happened, str):
            if (rollout.state, happened) in states.TRANSITIONS:
                fleet.move(happened)  # type: ignore[arg-type]
                kept = seen = Evidence(fence=fleet.of().fence)
        elif happened[0] == "signals":
            told = monitor.signals(rollout)
            if happened[1]:
                kept_arms = {True: kept_arms[True] + told.canary, False: kept_arms[False] + told.control}
            else:
                monitor.give_back(rollout, told)
        else:
            evidence = monitor.evidence(rollout)
            assert evidence.fence == rollout.fence
            if happened[1]:
                kept += evidence
            else:
                monitor.give_back(rollout, evidence)
    assert (arms, seen) == (kept_arms, kept)
    assert monitor.signals(fleet.of()).canary == Arm()
    assert monitor.evidence(fleet.of()) == Evidence(fence=fleet.of().fence)


def test_threads_that_count_and_one_that_asks_lose_nothing() -> None:
    fleet, told = Fleet(ramping()), list[Signals]()
    sessions, done = [0], threading.Event()

    def count() -> None:
        for number in range(2_000):
            fleet.monitor.record(served(IN if number % 2 else OUT, failed=number % 10 == 1))

    def ask() -> None:
        while not done.is_set():
            told.append(fleet.monitor.signals(fleet.of()))
            sessions[0] += fleet.monitor.evidence(fleet.of()).sessions

    counting, asking = [threading.Thread(target=count) for _ in range(3)], threading.Thread(target=ask)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in (asking, *counting):
            thread.start()
        for thread in counting:
            thread.join()
    finally:
        done.set()
        asking.join()
        sys.setswitchinterval(interval)
    fleet.now += WAITS_S
    told.append(fleet.monitor.signals(fleet.of()))
    sessions[0] += fleet.monitor.evidence(fleet.of()).sessions

    assert Arm(requests=3_000, failures=600) == sum((one.canary for one in told), Arm())
    assert Arm(requests=3_000) == sum((one.control for one in told), Arm())
    assert sessions == [2_400]


def test_what_became_of_no_use_to_anybody_is_not_taken_back() -> None:
    fleet = Fleet(ramping())
    before = fleet.of()
    fleet.monitor.record(served(IN))
    signals, evidence = fleet.monitor.signals(before), fleet.monitor.evidence(before)
    fleet.move("advance")
    fleet.monitor.record(served(IN))
    fleet.monitor.give_back(before, evidence)

    assert (1, 1) == (evidence.sessions, fleet.monitor.evidence(fleet.of()).sessions)
    fleet.move("roll_back")
    fleet.monitor.record(served(IN))
    fleet.monitor.give_back(before, signals)
    assert (Signals(), Evidence(fence=6)) == (
        fleet.monitor.signals(fleet.of()),
        fleet.monitor.evidence(fleet.of()),
    )


def test_what_the_others_did_waits_a_minute_for_those_whom_it_reaches() -> None:
    fleet = Fleet(ramping())
    fleet.monitor.record(served(OUT))
    assert Arm() == fleet.monitor.signals(fleet.of()).control
    fleet.now += WAITS_S - 1
    fleet.monitor.record(served(OUT))
    assert Arm() == fleet.monitor.signals(fleet.of()).control
    fleet.monitor.record(served(IN))
    told = fleet.monitor.signals(fleet.of())
    assert (1, 2) == (told.canary.requests, told.control.requests)

    fleet.monitor.record(served(OUT))
    assert Arm() == fleet.monitor.signals(fleet.of()).control
    fleet.now += WAITS_S
    assert Arm(requests=1) == fleet.monitor.signals(fleet.of()).control
    # Those whom it reaches wait for nobody: there may be no others.
    fleet.monitor.record(served(IN))
    assert 1 == fleet.monitor.signals(fleet.of()).canary.requests


# --- one rollout, step by step ------------------------------------------------------------------------------------


def test_a_step_begins_anew_but_a_run_of_failures_goes_on() -> None:
    fleet = Fleet(ramping())
    for _ in range(5):
        fleet.monitor.record(served(IN, failed=True))
        fleet.monitor.record(served(OUT))
    assert 5 == fleet.monitor.signals(fleet.of()).canary_run
    assert 5 == fleet.monitor.signals(fleet.of()).canary_run, "it has not ended because somebody asked"
    fleet.move("hold")
    fleet.monitor.record(served(IN, failed=True))

    told = fleet.monitor.signals(fleet.of())
    assert (6, 0, Arm(requests=1, failures=1)) == (told.canary_run, told.control_run, told.canary)
    fleet.monitor.record(served(IN))
    assert 0 == fleet.monitor.signals(fleet.of()).canary_run


def test_whoever_asks_knows_of_a_move_before_the_next_request() -> None:
    fleet = Fleet(ramping())
    fleet.monitor.record(served(IN))
    before = fleet.of()
    later = moved(before, "advance", fence=4, cause=WHY)

    assert Evidence(fence=5) == fleet.monitor.evidence(later)
    assert Evidence(fence=4) == fleet.monitor.evidence(before), "who is late is told nothing of the step after"
    # What was read before that from the store takes nothing back.
    assert {later.id: ()} == fleet.monitor.findings()
    fleet.monitor.record(served(IN))
    assert 1 == fleet.monitor.evidence(later).sessions
    assert 2 == fleet.monitor.signals(later).canary.requests


def test_a_step_that_ends_while_it_is_asked_for_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(ramping())
    before, real = fleet.of(), performance._compared

    def compared(*args: Any) -> Any:
        monkeypatch.setattr(performance, "_compared", real)
        fleet.move("advance")
        fleet.monitor.record(served(IN))
        return real(*args)

    fleet.monitor.record(served(IN))
    monkeypatch.setattr(performance, "_compared", compared)

    assert Evidence(fence=4) == fleet.monitor.evidence(before)
    assert 1 == fleet.monitor.evidence(fleet.of()).sessions


def test_a_rollout_that_only_the_one_who_asks_knows_of_is_counted_from_then_on() -> None:
    fleet = Fleet()
    assert Signals() == fleet.monitor.signals(ramping())
    fleet.rollouts = together(Rollout(subject="other", since=0))
    fleet.monitor.record(served(IN))

    assert 1 == fleet.monitor.signals(ramping()).canary.requests


def test_the_next_rollout_of_a_subject_has_nothing_of_the_one_before() -> None:
    fleet = Fleet(ramping())
    fleet.monitor.record(served(IN, failed=True))
    fleet.rollouts = together(Rollout(subject=V2, serial=2, state="full", fence=20, since=0))
    fleet.monitor.record(served(OUT))

    told = fleet.monitor.signals(fleet.of())
    assert (Arm(requests=1), 0) == (told.canary, told.canary_run)


@pytest.mark.parametrize("state", ["planned", "expanded", "rolled_back", "finalized"])
def test_a_rollout_that_reaches_nobody_or_is_over_has_no_signals(state: Any) -> None:
    fleet = Fleet(Rollout(subject=V2, state=state, since=0))
    fleet.monitor.record(served(IN, failed=True))

    assert Signals() == fleet.monitor.signals(fleet.of())
    assert Evidence(fence=0) == fleet.monitor.evidence(fleet.of())
    assert {} == fleet.monitor.findings()


def test_in_shadow_each_sync_is_evidence_and_nobody_is_on_its_side() -> None:
    """Nobody is given anything, and everybody's answers are compared."""
    fleet = Fleet(Rollout(subject=V2, state="shadow", since=0))
    for graph in (IN, OUT):
        fleet.monitor.record(served(graph, pulled=True, wire="inbetweenies-v1"))
    fleet.monitor.record(served(IN, failed=True))

    assert Evidence(fence=0, sessions=2, pulls=2) == fleet.monitor.evidence(fleet.of())
    assert 0 == fleet.monitor.signals(fleet.of()).canary.requests


def test_each_rollout_has_its_own_sides() -> None:
    other = ramping("mcp_server", share=250_000)
    fleet = Fleet(ramping(), other)
    for number in range(400):
        fleet.monitor.record(served(f"home-{number}"))

    for rollout in fleet.rollouts.rollouts.values():
        told = fleet.monitor.signals(rollout)
        reached = sum(reaches(rollout, f"home-{number}") for number in range(400))
        assert (reached, 400 - reached) == (told.canary.requests, told.control.requests)


def test_what_was_served_in_another_wire_version_is_no_evidence_for_this_one() -> None:
    fleet = Fleet(ramping(), ramping("mcp_server", share=999_998))
    for wire in (V1, V2, None):
        fleet.monitor.record(served(IN, wire=wire))

    assert 2 == fleet.monitor.evidence(fleet.of()).sessions
    assert 3 == fleet.monitor.evidence(fleet.of("mcp_server")).sessions
    assert 3 == fleet.monitor.signals(fleet.of()).canary.requests


# --- worse, beside the others at the same time --------------------------------------------------------------------


def serve(fleet: Fleet, canary: int, control: int, count: int = 1_200, operation: str = "pull") -> None:
    for number in range(count):
        fleet.monitor.record(served(IN, operation, micros=canary + number % 50))
        fleet.monitor.record(served(OUT, operation, micros=control + number % 50))


def test_what_is_slower_than_the_others_are_is_told_of_its_operation() -> None:
    fleet = Fleet(ramping())
    serve(fleet, 1_000, 1_000)
    serve(fleet, 4_000, 1_000, operation="push")
    worse = ("p50 of push", "p95 of push", "p99 of push")

    assert not fleet.monitor.check_degradation()
    assert worse == fleet.monitor.signals(fleet.of()).degraded == fleet.monitor.signals(fleet.of()).degraded
    # As evidence it is kept until the step is over, so that once is enough.
    told = fleet.monitor.evidence(fleet.of())
    assert (worse, ()) == (told.degraded, fleet.monitor.evidence(fleet.of()).degraded)
    fleet.monitor.give_back(fleet.of(), told)
    assert worse == fleet.monitor.evidence(fleet.of()).degraded
    fleet.move("hold")
    assert fleet.monitor.check_degradation()
    assert () == fleet.monitor.signals(fleet.of()).degraded


def test_where_everybody_is_slow_or_few_came_nothing_is_worse() -> None:
    slow, few, alone = Fleet(ramping()), Fleet(ramping()), Fleet(ramping())
    serve(slow, 4_000, 4_000)
    serve(few, 4_000, 1_000, count=50)
    for _ in range(2_000):
        alone.monitor.record(served(IN, micros=10**6))
        alone.monitor.record(served(OUT, "push"))

    assert [True] * 3 == [one.monitor.check_degradation() for one in (slow, few, alone)]
    assert {"healthy"} == {one.verdict for one in slow.monitor.findings()[slow.of().id]}
    assert {"hold"} == {one.verdict for one in few.monitor.findings()[few.of().id]}
    assert () == alone.monitor.findings()[alone.of().id]


def test_a_failure_is_not_a_fast_answer() -> None:
    fleet = Fleet(ramping())
    serve(fleet, 4_000, 1_000)
    for _ in range(10_000):
        fleet.monitor.record(served(IN, micros=1, failed=True))

    assert not fleet.monitor.check_degradation()


def test_memory_is_a_multiple_of_what_the_settled_process_had() -> None:
    now: list[int | None] = [100]
    fleet = Fleet(ramping(), memory=lambda: now[0])
    assert fleet.monitor.signals(fleet.of()).memory is None
    serve(fleet, 1_000, 1_000, count=SETTLED // 2)

    now[0] = 300
    assert 1.0 == fleet.monitor.signals(fleet.of()).memory
    now[0] = 750
    fleet.move("hold")
    assert 2.5 == fleet.monitor.signals(fleet.of()).memory
    now[0] = None
    assert fleet.monitor.signals(fleet.of()).memory is None


def test_memory_is_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/proc/self/statm").exists():
        assert (resident_memory() or 0) > 10 * 2**20

    def none(_: Path) -> bytes:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_bytes", none)
    assert resident_memory() is None


# --- bounds -------------------------------------------------------------------------------------------------------


def check_bounded() -> None:
    fleet = Fleet(ramping())
    for number in range(10_000):
        fleet.monitor.record(served(f"home-{number}", f"operation {number}", micros=number * 997))
        fleet.monitor.record(served(f"home-{number}", f"operation {number % 40}", micros=number * 997, failed=True))

    text = fleet.monitor.exposition()
    assert f'operation="{OTHER}",outcome="ok"}} {10_000 - OPERATIONS_MAX}' in text
    seen = fleet.monitor._seen[fleet.of().id]
    assert len(fleet.monitor._served) <= 2 * (OPERATIONS_MAX + 1)
    assert all(len(side.times) <= OPERATIONS_MAX + 1 for side in seen.sides)
    assert len(seen._reached) <= GRAPHS_MAX
    told = fleet.monitor.signals(fleet.of())
    assert Arm(requests=20_000, failures=10_000) == told.canary + told.control


def test_memory_is_bounded_whoever_asks_for_what() -> None:
    check_bounded()


# --- told ---------------------------------------------------------------------------------------------------------


class Away(MemoryStore):
    """A store that can be taken away."""

    away = False

    async def document(self, name: str) -> Document:
        if self.away:
            raise StoreBusy("expected the store; got none")
        return await super().document(name)


def put(store: MemoryStore, name: str, body: bytes) -> None:
    assert run_now(store.put_document(name, body, revision=run_now(store.document(name)).revision))


def test_metrics_tell_of_requests_the_process_rollouts_and_features() -> None:
    store = MemoryStore()
    put(store, states.DOCUMENT, states.document_of(together(ramping(), Rollout(subject="other", since=0))))
    put(store, triggers.DOCUMENT, triggers.document_of(Watches().put(Watch(rollout=f"{V2}/1", rung="freeze"))))
    monitor = PerformanceMonitor(store, memory=lambda: 12_345, cpu=lambda: 1.5)
    monitor.record(served(IN))
    monitor.record(served(IN, failed=True))
    monitor.record(served(OUT, "push", micros=2_000_000))

    lines = monitor.exposition().splitlines()
    for line in (
        'inbetweenies_requests_total{operation="pull",outcome="ok"} 1',
        'inbetweenies_requests_total{operation="pull",outcome="failed"} 1',
        'inbetweenies_request_seconds_bucket{operation="push",outcome="ok",le="0.000256"} 0',
        'inbetweenies_request_seconds_sum{operation="push",outcome="ok"} 2.0',
        "inbetweenies_process_resident_memory_bytes 12345",
        "inbetweenies_process_cpu_seconds_total 1.5",
        'inbetweenies_rollout_state{rollout="inbetweenies-v2/1",state="ramp"} 1',
        'inbetweenies_rollout_state{rollout="other/1",state="planned"} 1',
        'inbetweenies_rollout_share{rollout="inbetweenies-v2/1"} 0.5',
        'inbetweenies_rollout_rung{rollout="inbetweenies-v2/1"} 1',
        'inbetweenies_rollout_rung{rollout="other/1"} 0',
        'inbetweenies_rollout_requests_total{rollout="inbetweenies-v2/1",arm="canary",outcome="ok"} 1',
        'inbetweenies_rollout_requests_total{rollout="inbetweenies-v2/1",arm="canary",outcome="failed"} 1',
        'inbetweenies_rollout_requests_total{rollout="inbetweenies-v2/1",arm="control",outcome="ok"} 1',
        'inbetweenies_feature_enabled{feature="enhanced_sync"} 1',
        'inbetweenies_feature_enabled{feature="mcp_server"} 0',
    ):
        assert line in lines
    # What was told to the triggers goes on counting here.
    monitor.signals(ramping())
    assert 'inbetweenies_rollout_requests_total{rollout="inbetweenies-v2/1",arm="canary",outcome="ok"} 1' in (
        monitor.exposition().splitlines()
    )


def test_what_is_told_is_a_copy() -> None:
    fleet = Fleet()
    fleet.monitor.record(served(IN))
    (sample,) = next(one for one in fleet.monitor.metrics() if one.kind == "histogram").samples
    fleet.monitor.record(served(IN))

    assert isinstance(sample, Sample)
    assert isinstance(sample.value, Histogram)
    assert 1 == sample.value.count


def test_while_the_store_is_away_requests_are_counted_and_what_was_known_is_told() -> None:
    store, now = Away(), [0.0]
    put(store, states.DOCUMENT, states.document_of(together(ramping())))
    monitor = PerformanceMonitor(store, monotonic=lambda: now[0])
    monitor.record(served(IN))
    store.away, now[0] = True, 60.0
    monitor.record(served(IN))

    assert 2 == monitor.signals(ramping()).canary.requests
    assert 'inbetweenies_rollout_share{rollout="inbetweenies-v2/1"} 0.5' in monitor.exposition()

    never = PerformanceMonitor(store, memory=lambda: None)
    never.record(served(IN))
    names = {metric.name for metric in never.metrics()}
    assert names == {
        "inbetweenies_requests_total", "inbetweenies_request_seconds", "inbetweenies_process_cpu_seconds_total"
    }  # fmt: skip


def test_a_request_is_not_failed_by_who_cannot_say_what_is_rolled_out() -> None:
    fail = [False]

    def rollouts() -> Rollouts:
        if fail[0]:
            raise LocalProtocolError("expected an open store; got a closed one")
        return together(ramping())

    monitor = PerformanceMonitor(MemoryStore(), rollouts=rollouts)
    monitor.record(served(IN))
    fail[0] = True
    monitor.record(served(IN))

    assert 2 == monitor.signals(ramping()).canary.requests


# --- planted bugs -------------------------------------------------------------------------------------------------

ASKED_TWICE = [served(IN), ("signals", True)]
GIVEN_BACK = [served(IN, pulled=True), ("signals", False), ("evidence", False)]


def plant_tells_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance._Side, "take", lambda self: Arm(requests=self.requests, failures=self.failures))


def plant_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PerformanceMonitor, "give_back", lambda self, rollout, told: None)


def plant_mixes_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def move(self: Any, rollout: Rollout) -> None:
        self.rollout = rollout

    monkeypatch.setattr(performance._Seen, "move", move)


def plant_forgets_at_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def move(self: Any, rollout: Rollout) -> None:
        self.__init__(rollout, governs_wire=True)

    monkeypatch.setattr(performance._Seen, "move", move)


@pytest.mark.parametrize(
    ("plant", "story"),
    [
        (plant_tells_twice, ASKED_TWICE),
        (plant_loses, GIVEN_BACK),
        (plant_mixes_steps, [served(IN), "advance"]),
        (plant_forgets_at_a_step, [served(IN), "hold"]),
    ],
)
def test_who_tells_twice_or_loses_something_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], story: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_told_once(story)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_told_once(story)


def test_a_monitor_that_keeps_whatever_it_is_told_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "OPERATIONS_MAX", 10**6)
    with pytest.raises(AssertionError):
        check_bounded()
