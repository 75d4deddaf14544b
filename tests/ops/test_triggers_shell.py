"""`EmergencyTriggers` over a store (PROTOCOL 12.8): it fires once, loses nothing, and goes on whatever happens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import EmergencyTriggers, Feature, MemoryStore, PerformanceMonitor, SqliteStore, registry
from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.ops.performance import WAITS_S, Served
from inbetweenies.ops.triggers import ACTOR, FOLLOWED_US, INTERVAL_S, OVERDUE_S, Action
from inbetweenies.registry import Decision, decisions_in
from inbetweenies.rollout import flags, states, triggers
from inbetweenies.rollout.canary import EVIDENCE, Evidence, reaches, seen_in
from inbetweenies.rollout.flags import flags_in
from inbetweenies.rollout.health import exposition
from inbetweenies.rollout.kept import TEXT_CHARS_MAX, Cause
from inbetweenies.rollout.sequential import Arm
from inbetweenies.rollout.states import Event, Rollout, Rollouts, moved, rollouts_in
from inbetweenies.rollout.triggers import Thresholds, Watch, watches_in
from inbetweenies.store import Store
from inbetweenies.stores import amend
from inbetweenies.stores.keeper import run_now

V1, V2 = "inbetweenies-v1", "inbetweenies-v2"
WHY = Cause(actor="ada", reason="a test", at=0)
#: Never climbs, so that all that is seen is kept.
PATIENT = Thresholds(alpha=1e-300, consecutive=10**9, memory=1e9, silent=10**9)


class Shaky(MemoryStore):
    """A store that can be taken away, or that fails at what comes next: True fails, False does not."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.failing: list[bool] = []

    async def document(self, name: str) -> Document:
        self._fail()
        return await super().document(name)

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        self._fail()
        return await super().put_document(name, body, revision=revision)

    def _fail(self) -> None:
        if self.away or (self.failing and self.failing.pop(0)):
            raise StoreBusy("expected the store; got none")


def ramping(subject: str = V2, *, state: Any = "ramp") -> Rollout:
    return Rollout(subject=subject, state=state, steps=(500_000, 900_000), fence=4, since=0)


OUT = next(name for name in map(str, range(99)) if not reaches(ramping(), name))
IN = next(name for name in map(str, range(99)) if reaches(ramping(), name))


def put(store: Store, *rollouts: Rollout) -> None:
    kept = run_now(store.document(states.DOCUMENT))
    body = states.document_of(Rollouts(rollouts={one.subject: one for one in rollouts}))
    assert run_now(store.put_document(states.DOCUMENT, body, revision=kept.revision))


def of(store: Store, subject: str = V2) -> Rollout:
    return rollouts_in(run_now(store.document(states.DOCUMENT))).of(subject)


def watch_of(store: Store, subject: str = V2) -> Watch:
    return watches_in(run_now(store.document(triggers.DOCUMENT))).of(of(store, subject))


def act(store: Store, event: Event, subject: str = V2) -> None:
    rollout = of(store, subject)
    moved_ = moved(rollout, event, fence=rollout.fence, cause=WHY)
    others = rollouts_in(run_now(store.document(states.DOCUMENT))).rollouts
    put(store, *({**others, subject: moved_}.values()))


class Process:
    """One of the processes that serve a store: what it sees, and its triggers."""

    def __init__(self, store: Store, **options: Any) -> None:
        self.store = store
        self.seconds = 0.0
        self.monitor = PerformanceMonitor(
            store,
            rollouts=lambda: rollouts_in(run_now(store.document(states.DOCUMENT))),
            monotonic=lambda: self.seconds,
        )
        self.told: list[Action] = []
        self.now = [0]
        fixed: dict[str, Any] = {"on_action": self.told.append, "clock": lambda: self.now[0], "installed": (V2, V1)}
        self.triggers = EmergencyTriggers(store, self.monitor, **(fixed | options))

    def serve(self, graph: str, count: int = 1, *, failed: bool = False, **fields: Any) -> None:
        for _ in range(count):
            self.monitor.record(Served(graph=graph, operation="pull", micros=1_000, failed=failed, **fields))

    def look(self) -> list[str]:
        return [one.what for one in self.triggers.look()]

    def look_if_it_can(self) -> None:
        try:
            self.triggers.look()
        except StoreBusy:
            assert isinstance(self.store, Shaky)


def watched(rollout: Rollout | None = None, **options: Any) -> tuple[Shaky, Process]:
    store = Shaky()
    put(store, rollout or ramping())
    return store, Process(store, **options)


# --- nothing is told twice, and nothing is lost -------------------------------------------------------------------

requests = st.tuples(st.sampled_from([0, 1]), st.sampled_from([IN, OUT]), st.booleans())
stories = st.lists(requests | st.tuples(st.just("look"), st.sampled_from([0, 1])), max_size=30)


@given(story=stories, failing=st.lists(st.booleans(), max_size=40))
def test_what_processes_saw_is_kept_once_whenever_the_store_fails(story: list[Any], failing: list[bool]) -> None:
    check_kept_once(story, failing)


def check_kept_once(story: list[Any], failing: list[bool]) -> None:
    store, first = watched(thresholds=PATIENT)
    processes = (first, Process(store, thresholds=PATIENT))
    canary, control, sessions = Arm(), Arm(), 0
    for happened in story:
        if happened[0] == "look":
            store.failing, failing = failing, []
            processes[happened[1]].look_if_it_can()
            store.failing, failing = [], store.failing
            continue
        number, graph, failed = happened
        processes[number].serve(graph, failed=failed)
        one = Arm(requests=1, failures=int(failed))
        canary, control = (canary + one, control) if graph == IN else (canary, control + one)
        sessions += graph == IN and not failed
    for process in processes:
        process.look()
        process.seconds += WAITS_S
        process.look()

    bets = watch_of(store).bets
    assert (canary, control) == (bets.canary, bets.control)
    assert sessions == seen_in(run_now(store.document(EVIDENCE))).of(of(store)).sessions


def test_processes_that_look_at_once_keep_all_that_they_saw(tmp_path: Path) -> None:
    check_at_once(tmp_path / "home.sqlite")


def check_at_once(path: Path) -> None:
    store = SqliteStore(path, journal=False, heads=False)
    put(store, ramping())
    processes = [Process(store, thresholds=PATIENT) for _ in range(3)]
    together = threading.Barrier(3)

    def serve(process: Process) -> None:
        for _ in range(10):
            process.serve(IN, pulled=True)
            process.serve(OUT, failed=True)
            together.wait()
            process.look()

    threads = [threading.Thread(target=serve, args=(one,)) for one in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bets, evidence = watch_of(store).bets, seen_in(run_now(store.document(EVIDENCE))).of(of(store))
    run_now(store.close())
    assert (Arm(requests=30), Arm(requests=30, failures=30)) == (bets.canary, bets.control)
    assert (30, 30) == (evidence.sessions, evidence.pulls)


def test_looking_at_what_is_as_it_was_writes_nothing() -> None:
    store, process = watched()
    process.look()
    before = dict(store._documents)
    for _ in range(5):
        assert [] == process.look()

    assert before == store._documents
    put(store, ramping(state="planned"))
    process.look()
    assert {states.DOCUMENT, triggers.DOCUMENT} == store._documents.keys()


# --- what it takes back -------------------------------------------------------------------------------------------


@given(
    healthy=st.integers(0, 15),
    canary=st.integers(5, 40),
    control=st.integers(1, 100),
)
def test_all_requests_of_those_it_reaches_failing_takes_it_back_within_three_looks(
    healthy: int, canary: int, control: int
) -> None:
    store, process = watched()
    for _ in range(healthy):
        process.serve(IN, canary)
        process.serve(OUT, control)
        assert [] == process.look()
    for _ in range(3):
        process.serve(IN, canary, failed=True)
        process.serve(OUT, control)
        process.look()

    assert "rolled_back" == of(store).state
    assert {ACTOR} == {move.cause.actor for move in of(store).log}
    assert ["roll_back"] == [one.what for one in process.told if one.what != "hold"]


@given(looks=st.lists(st.tuples(st.integers(0, 30), st.integers(5, 30)), min_size=1, max_size=12))
def test_where_everybody_fails_nothing_is_taken_back(looks: list[tuple[int, int]]) -> None:
    store, process = watched()
    for canary, control in looks:
        process.serve(OUT, control, failed=True)
        process.serve(IN, canary, failed=True)
        assert [] == process.look()

    assert "ramp" == of(store).state


def test_without_anybody_to_compare_with_failures_freeze_and_then_take_back() -> None:
    store, process = watched(ramping(state="full"))
    for expected, state in ((["hold"], "held"), (["roll_back"], "rolled_back"), ([], "rolled_back")):
        process.serve(IN, 3, failed=True)
        process.serve(OUT, 3, failed=True)
        assert (expected, state) == (process.look(), of(store).state)

    assert ["6 failures in a row", "12 failures in a row, at 2 looks"] == [move.cause.reason for move in of(store).log]


def test_failures_that_end_only_freeze() -> None:
    store, process = watched(ramping(state="full"))
    process.serve(IN, 5, failed=True)
    assert ["hold"] == process.look()
    for _ in range(5):
        process.serve(IN)
        assert [] == process.look()

    assert "held" == of(store).state


def test_what_is_slower_freezes_and_is_evidence_against_going_on() -> None:
    store, process = watched()
    for _ in range(400):
        process.monitor.record(Served(graph=OUT, operation="pull", micros=1_000, failed=False))
        process.monitor.record(Served(graph=IN, operation="pull", micros=9_000, failed=False))
    assert ["hold"] == process.look()

    evidence = seen_in(run_now(store.document(EVIDENCE))).evidence[of(store).id]
    assert ("p50 of pull", "p95 of pull") == evidence.degraded
    assert "worse p50 of pull; worse p95 of pull" == of(store).log[-1].cause.reason


# --- once ---------------------------------------------------------------------------------------------------------


def test_of_several_processes_one_takes_it_back(tmp_path: Path) -> None:
    check_fires_once(tmp_path)


def check_fires_once(tmp_path: Path) -> None:
    stores = [SqliteStore(tmp_path / "home.sqlite", journal=False, heads=False) for _ in range(2)]
    put(stores[0], ramping())
    processes = [Process(store) for store in stores]
    together = threading.Barrier(2)

    def fail(process: Process) -> None:
        for _ in range(4):
            process.serve(IN, 10, failed=True)
            process.serve(OUT, 10)
            together.wait()
            process.look()

    threads = [threading.Thread(target=fail, args=(one,)) for one in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rollout = of(stores[0])
    for store in stores:
        run_now(store.close())
    told = [one.what for process in processes for one in process.told]
    assert sorted(told) == sorted(move.event for move in rollout.log)
    assert 1 == told.count("roll_back")
    assert told.count("hold") <= 1


@given(failing=st.lists(st.booleans(), max_size=60))
def test_it_is_taken_back_once_whenever_the_store_fails(failing: list[bool]) -> None:
    store, first = watched(breaches=lambda: ("a write was lost",))
    processes = (first, Process(store))
    store.failing = failing
    for number in range(40):
        processes[number % 2].look_if_it_can()
    told = [one.what for process in processes for one in process.told]

    assert ("rolled_back", "disabled") == (of(store).state, decided(store))
    assert [1] * 3 == [told.count(what) for what in ("roll_back", "switch", "repair")]
    assert 1 == [move.event for move in of(store).log].count("roll_back")


def test_who_dies_between_deciding_and_doing_leaves_nothing_undone() -> None:
    store, process = watched()
    process.serve(IN, 20, failed=True)
    process.serve(OUT, 20)
    store.failing = [False] * 4 + [True]  # four documents are read and written before that of the rollouts
    with pytest.raises(StoreBusy):
        process.look()
    assert ("ramp", True) == (of(store).state, watch_of(store).routed_back)

    assert ["roll_back"] == Process(store).look()


# --- switching off ------------------------------------------------------------------------------------------------


def decided(store: Store, version: str = V2) -> str:
    return decisions_in(run_now(store.document(registry.DOCUMENT))).of(version).state


def test_what_is_still_being_broken_is_switched_off_once_and_then_left_to_people() -> None:
    store, process = watched(breaches=lambda: ("a write\nwas lost" * 99,))

    assert [["roll_back"], ["switch"], ["repair"], [], []] == [process.look() for _ in range(5)]
    assert ("disabled", "deployed") == (decided(store), decided(store, V1))
    reason = of(store).log[-1].cause.reason
    assert (TEXT_CHARS_MAX, "a write?was") == (len(reason), reason[:11])
    # Whoever enables it again knows what was wrong.
    run_now(amend(store, registry.DOCUMENT, lambda _: registry.document_of(registry.Decisions())))
    assert [] == process.look()
    assert "deployed" == decided(store)


@pytest.mark.parametrize("state", ["disabled", "retired"])
def test_a_version_that_is_not_served_any_more_stays_as_it_is(state: Any) -> None:
    store, process = watched(breaches=lambda: ("a write was lost",))
    decisions = registry.Decisions().but(V2, Decision(state=state))
    run_now(amend(store, registry.DOCUMENT, lambda _: registry.document_of(decisions)))

    assert [["roll_back"], ["switch"]] == [process.look() for _ in range(2)]
    assert (state, 1) == (decided(store), run_now(store.document(registry.DOCUMENT)).revision)


def test_the_last_version_is_not_switched_off() -> None:
    store, process = watched(breaches=lambda: ("a write was lost",), installed=(V2,))

    assert [["roll_back"], ["not_switched"], ["repair"], []] == [process.look() for _ in range(4)]
    assert "deployed" == decided(store)


def test_the_versions_that_are_installed_here_are_known() -> None:
    store, process = watched(breaches=lambda: ("a write was lost",), installed=None)
    process.look()
    process.look()

    assert "disabled" == decided(store)
    # It is evidence against the step at which it was found, and against no other.
    assert {Evidence(fence=4, breaches=1)} == {*seen_in(run_now(store.document(EVIDENCE))).evidence.values()}


def test_a_feature_is_switched_off_with_all_that_need_it() -> None:
    store, process = watched(ramping("graph_operations"), breaches=lambda: ("a write was lost",))

    assert [["roll_back"], ["switch"], ["repair"]] == [process.look() for _ in range(3)]
    kept = flags_in(run_now(store.document(flags.DOCUMENT)))
    assert {"graph_operations", "enhanced_sync"} == {one.feature for one in kept.log}
    assert kept.on() == {"entity_versioning"}
    assert {ACTOR} == {one.cause.actor for one in kept.log}


def test_what_is_broken_later_is_somebody_elses_doing() -> None:
    broken: list[str] = ["a write was lost"]
    store, process = watched(breaches=lambda: tuple(broken))
    assert ["roll_back"] == process.look()
    process.now[0] = FOLLOWED_US
    assert [] == process.look()

    # Nor is what people have taken back themselves.
    store, process = watched(breaches=lambda: tuple(broken))
    act(store, "roll_back")
    assert [[]] * 4 == [process.look() for _ in range(4)]
    assert "deployed" == decided(store)
    put(store, Rollout(subject=V2, state="planned", since=0))
    assert [] == process.look()


def test_each_rollout_answers_for_what_broke_since_it_began() -> None:
    broken: list[str] = ["what was broken before"]
    store, process = watched(ramping("graph_operations"), breaches=lambda: tuple(broken), since_begun=True)
    assert [] == process.look()
    broken.append("a write was lost")
    put(store, of(store, "graph_operations"), ramping())

    # The next one begins before anybody has looked again: the first one is taken back nevertheless, and it alone.
    assert [["roll_back"], ["switch"], ["repair"]] == [process.look() for _ in range(3)]
    assert ("rolled_back", "ramp") == (of(store, "graph_operations").state, of(store).state)
    broken.append("another write was lost")
    assert "roll_back" in process.look()
    assert "rolled_back" == of(store).state


# --- whatever happens ---------------------------------------------------------------------------------------------


def test_while_the_store_is_away_nothing_happens_and_then_it_goes_on() -> None:
    store, process = watched()
    process.serve(IN, 20, failed=True)
    process.serve(OUT, 20)
    store.away = True
    for _ in range(2):
        with pytest.raises(StoreBusy):
            process.look()
    store.away = False

    assert "ramp" == of(store).state
    assert ["roll_back"] == process.look()


def test_a_store_that_was_away_for_long_holds_the_rollout_once() -> None:
    store, process = watched()
    for _ in range(2):
        store.away = True
        for _ in range(3):
            with pytest.raises(StoreBusy):
                process.look()
        store.away = False
        process.look()
        assert [] == process.look()
        assert "held" == of(store).state
        store.away = False
    act(store, "resume")
    assert [] == process.look()
    assert ("ramp", ["hold"]) == (of(store).state, [one.what for one in process.told])


def test_what_was_found_broken_while_the_store_was_away_is_not_forgotten() -> None:
    found = [["a write was lost"], []]
    store, process = watched(breaches=lambda: tuple(found.pop(0)))
    store.away = True
    with pytest.raises(StoreBusy):
        process.look()
    store.away = False

    assert ["roll_back"] == process.look()


def fails() -> Any:
    raise RuntimeError("a bug")


def test_a_monitor_that_fails_is_nobody_who_could_tell(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store, process = watched()
    monkeypatch.setattr(process.monitor, "signals", lambda *_, **__: fails())

    assert [[], [], ["hold"], []] == [process.look() for _ in range(4)]
    assert "a bug" in caplog.text
    assert "nobody could tell what happened, at 3 looks" == of(store).log[-1].cause.reason


def test_a_monitor_that_fails_hides_no_broken_invariant(monkeypatch: pytest.MonkeyPatch) -> None:
    _, process = watched(breaches=lambda: ("a write was lost",))
    monkeypatch.setattr(process.monitor, "signals", lambda *_, **__: fails())

    assert ["roll_back"] == process.look()


def test_who_is_not_told_what_is_broken_still_sees_what_fails(caplog: pytest.LogCaptureFixture) -> None:
    _, process = watched(breaches=fails)
    assert [[], [], [], ["hold"], []] == [process.look() for _ in range(5)]
    assert "a bug" in caplog.text
    process.serve(IN, 20, failed=True)
    process.serve(OUT, 20)

    assert ["roll_back"] == process.look()


def test_one_rollout_that_cannot_be_looked_at_keeps_no_other_from_being_taken_back() -> None:
    store, process = watched()
    put(store, ramping("mcp_server"), ramping())
    real = process.monitor.evidence

    def evidence(rollout: Rollout, **options: Any) -> Evidence:
        return real(rollout, **options) if rollout.subject == V2 else fails()

    process.monitor.evidence = evidence  # type: ignore[method-assign]
    process.serve(IN, 20, failed=True)
    process.serve(OUT, 20)
    with pytest.raises(RuntimeError):
        process.look()

    assert "rolled_back" == of(store).state
    assert "roll_back" in [one.what for one in process.told]


def test_a_document_that_cannot_be_understood_is_not_overwritten() -> None:
    store, process = watched()
    run_now(amend(store, triggers.DOCUMENT, lambda _: b"newer"))
    with pytest.raises(StoreCorrupt):
        process.look()

    assert b"newer" == run_now(store.document(triggers.DOCUMENT)).body


def test_what_cannot_be_told_is_done_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    store, process = watched(breaches=lambda: ("a write was lost",), on_action=lambda _: fails())

    assert ["roll_back"] == process.look()
    assert "a bug" in caplog.text
    assert "roll_back" == of(store).log[-1].event
    put(store, ramping())
    assert ["roll_back"] == Process(store, on_action=None).look()


# --- again and again ----------------------------------------------------------------------------------------------


def check_goes_on() -> None:
    store, looks, waits = Shaky(), list[bool](), list[float]()

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) >= 6:
            raise asyncio.CancelledError

    triggers_ = EmergencyTriggers(store, PerformanceMonitor(store), wait=wait)
    real = triggers_.look

    def look() -> tuple[Action, ...]:
        looks.append(threading.current_thread() is threading.main_thread())
        if len(looks) % 2:
            fails()
        store.away = len(looks) == 2
        return real()

    triggers_.look = look  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(triggers_.monitor())
    assert ([False] * 6, [INTERVAL_S] * 6) == (looks, waits)


def test_a_look_that_fails_does_not_end_the_looking(caplog: pytest.LogCaptureFixture) -> None:
    check_goes_on()

    assert 4 == caplog.text.count("the rollouts were not looked at")


def test_the_loop_takes_back_what_fails_within_three_looks() -> None:
    store = Shaky()
    put(store, ramping())
    waits = list[float]()

    async def wait(seconds: float) -> None:
        waits.append(seconds)
        if of(store).over:
            raise asyncio.CancelledError
        process.serve(IN, 10, failed=True)
        process.serve(OUT, 10)

    process = Process(store, wait=wait)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(process.triggers.monitor())

    assert "rolled_back" == of(store).state
    assert sum(waits[:-1]) <= 15


def test_it_is_seen_that_nobody_looks() -> None:
    now = [100.0]
    store, process = watched(monotonic=lambda: now[0])
    now[0] += OVERDUE_S
    assert (100.0, False) == (process.triggers.last_look, process.triggers.overdue)
    now[0] += 1
    store.away = True
    process.look_if_it_can()
    assert process.triggers.overdue

    lines = exposition((*process.monitor.metrics(), *process.triggers.metrics())).splitlines()
    assert "inbetweenies_triggers_since_last_look_seconds 16.0" in lines
    assert "inbetweenies_triggers_overdue 1" in lines
    store.away = False
    process.look()
    assert (now[0], False) == (process.triggers.last_look, process.triggers.overdue)


# --- by hand ------------------------------------------------------------------------------------------------------


def test_all_that_is_under_way_is_taken_back_at_once_and_once(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "home.sqlite", journal=False, heads=False)
    put(store, ramping(), ramping("mcp_server", state="planned"), ramping("over", state="finalized"))
    process = Process(store)
    done = process.triggers.trigger_rollback("a fire", actor="eve")

    assert [(f"{V2}/1", "roll_back"), ("mcp_server/1", "abort")] == [(one.rollout, one.what) for one in done]
    assert [*done] == process.told
    other = SqliteStore(tmp_path / "home.sqlite", journal=False, heads=False)
    assert [("rolled_back", "aborted", "finalized")] == [
        (of(other).state, of(other, "mcp_server").state, of(other, "over").state)
    ]
    assert ("eve", "a fire") == (of(other).log[-1].cause.actor, of(other).log[-1].cause.reason)
    assert () == process.triggers.trigger_rollback("a fire")
    for one in (store, other):
        run_now(one.close())


def test_one_rollout_is_taken_back_and_the_others_go_on() -> None:
    store, process = watched()
    put(store, ramping(), ramping("mcp_server"))
    done = process.triggers.trigger_rollback("not this one", subject=Feature.MCP_SERVER)

    assert ["mcp_server/1"] == [one.rollout for one in done]
    assert () == process.triggers.trigger_rollback("not this one", subject="mcp_server")
    assert ("ramp", "rolled_back") == (of(store).state, of(store, "mcp_server").state)
    with pytest.raises(LocalProtocolError, match="expected a rollout that was started"):
        process.triggers.trigger_rollback("none", subject="nothing")
    with pytest.raises(LocalProtocolError, match="expected a reason"):
        process.triggers.trigger_rollback("")
    store.away = True
    with pytest.raises(StoreBusy):
        process.triggers.trigger_rollback("fire")


def test_who_takes_back_by_hand_while_others_move_something_does_so_once() -> None:
    class Overtaken(Shaky):
        async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
            if self.away:
                self.away = False
                act(self, "hold")
            return await super().put_document(name, body, revision=revision)

        def _fail(self) -> None:
            """Is always there."""

    store = Overtaken()
    put(store, ramping())
    store.away = True

    assert ["roll_back"] == [one.what for one in Process(store).triggers.trigger_rollback("a fire")]
    assert ["hold", "roll_back"] == [move.event for move in of(store).log]


def test_taking_back_by_hand_does_not_wait_for_a_look() -> None:
    store, process = watched()
    with process.triggers._looking:
        assert 1 == len(process.triggers.trigger_rollback("a fire"))

    assert "rolled_back" == of(store).state


# --- planted bugs -------------------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def plant_overwrites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes what it has read, whoever wrote in between."""

    def amended(self: Any, name: str, change: Callable[[Document], bytes]) -> bool:
        body = change(run_now(self._store.document(name)))
        while not run_now(self._store.put_document(name, body, revision=run_now(self._store.document(name)).revision)):
            continue
        return True

    monkeypatch.setattr(EmergencyTriggers, "_amend", amended)


def test_who_overwrites_what_others_wrote_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_overwrites(monkeypatch)
    with pytest.raises(AssertionError):
        check_at_once(tmp_path / "home.sqlite")


def test_who_keeps_what_could_not_be_told_to_himself_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    story = [(0, IN, False), ("look", 0)]
    for failing in ([False] * 3 + [True], [False] * 6 + [True]):
        check_kept_once(story, list(failing))
    monkeypatch.setattr(PerformanceMonitor, "give_back", lambda *_: None)
    for failing in ([False] * 3 + [True], [False] * 6 + [True]):
        with pytest.raises(AssertionError):
            check_kept_once(story, list(failing))


def test_a_loop_that_ends_with_the_first_error_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    async def monitor(self: EmergencyTriggers) -> None:
        while True:
            await asyncio.to_thread(self.look)
            await self._wait(INTERVAL_S)

    monkeypatch.setattr(EmergencyTriggers, "monitor", monitor)
    with pytest.raises(RuntimeError):
        check_goes_on()
