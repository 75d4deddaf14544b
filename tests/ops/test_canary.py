"""`CanaryDeployment` over a store (PROTOCOL 12.5, 12.6): every process agrees, and a step is taken once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from inbetweenies import CanaryDeployment, Feature, MemoryStore, SqliteStore
from inbetweenies.errors import LocalProtocolError, StoreBusy
from inbetweenies.model import Document
from inbetweenies.ops import canary as module
from inbetweenies.rollout.canary import Bar, Evidence, NotYet, bucket, went_on
from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.states import DOCUMENT, STEPS, Rollouts, document_of, rollouts_in
from inbetweenies.store import Store
from inbetweenies.stores import amend
from inbetweenies.stores.keeper import run_now

V2 = "inbetweenies-v2"
WHY = Cause(actor="ada", reason="a test", at=0)
LATE = Bar().wait_us
GRAPHS = [f"home-{number}" for number in range(300)]


def ramping(store: Store, subject: str = V2) -> Evidence:
    """Start a rollout and take it into the ramp; what its first step would have to have seen."""
    rollouts = Rollouts().started(subject, cause=WHY)
    for fence in range(4):
        rollouts = rollouts.moved(subject, "advance", fence=fence, cause=WHY)
    assert run_now(store.put_document(DOCUMENT, document_of(rollouts), revision=0))
    return Evidence(fence=4, sessions=50, pushes=1, pulls=1, conflicts=1)


def test_processes_agree_on_whom_it_reaches(tmp_path: Path) -> None:
    first, second = (SqliteStore(tmp_path / "home.sqlite", journal=False, heads=False) for _ in range(2))
    evidence = ramping(first)
    one, other = (CanaryDeployment(store, V2, clock=lambda: LATE) for store in (first, second))
    one.increase_rollout(evidence)
    reached = [graph for graph in GRAPHS if one.should_enable_feature(graph)]

    assert [graph for graph in GRAPHS if bucket(V2, graph, salt="1") < STEPS[1]] == reached
    assert reached == [graph for graph in GRAPHS if other.should_enable_feature(graph)]
    for store in (first, second):
        run_now(store.close())


def test_of_several_who_go_on_at_once_one_does(tmp_path: Path) -> None:
    check_once(tmp_path / "home.sqlite")


def check_once(path: Path) -> None:
    with_all = SqliteStore(path, journal=False, heads=False)
    evidence, outcomes = ramping(with_all), list[str]()
    together = threading.Barrier(6)

    def go_on() -> None:
        canary = CanaryDeployment(with_all, V2, clock=lambda: LATE)
        together.wait()
        try:
            outcomes.append(f"step {canary.increase_rollout(evidence, actor='a controller').step}")
        except LocalProtocolError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=go_on) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = rollouts_in(run_now(with_all.document(DOCUMENT))).of(V2)
    run_now(with_all.close())
    assert ["RolloutMoved"] * 5 + ["step 1"] == sorted(outcomes)
    assert (1, 5, "a controller") == (after.step, after.fence, after.log[-1].cause.actor)


def test_it_goes_on_only_with_time_and_evidence() -> None:
    store = MemoryStore()
    evidence = ramping(store)
    with pytest.raises(NotYet, match="1800 more seconds"):
        CanaryDeployment(store, V2, clock=lambda: 0).increase_rollout(evidence)
    with pytest.raises(NotYet, match="50 more sessions"):
        CanaryDeployment(store, V2, clock=lambda: LATE).increase_rollout(Evidence(fence=4))

    assert 1 == run_now(store.document(DOCUMENT)).revision
    bar = Bar(wait_us=0, sessions=0, pushes=0, pulls=0, conflicts=0)
    assert 1 == CanaryDeployment(store, V2, bar=bar, clock=lambda: 0).increase_rollout(Evidence(fence=4)).step


def test_what_was_never_begun_reaches_nobody_and_cannot_go_on() -> None:
    canary = CanaryDeployment(MemoryStore(), Feature.MCP_SERVER)

    assert not canary.should_enable_feature("home")
    with pytest.raises(LocalProtocolError, match="expected a rollout that was started"):
        canary.increase_rollout(Evidence(fence=0))


def test_while_the_store_is_away_nobody_is_taken_back() -> None:
    class Away(MemoryStore):
        away = False

        async def document(self, name: str) -> Document:
            if self.away:
                raise StoreBusy("expected the store; got none")
            return await super().document(name)

    store, now = Away(), [0.0]
    ramping(store)
    run_now(
        amend(
            store,
            DOCUMENT,
            lambda document: document_of(
                rollouts_in(document).listed(V2, allow=frozenset({"home"}), deny=frozenset(), fence=4, cause=WHY)
            ),
        )
    )
    canary = CanaryDeployment(store, V2, monotonic=lambda: now[0])
    assert canary.should_enable_feature("home")
    store.away, now[0] = True, 60.0

    assert canary.should_enable_feature("home")
    with pytest.raises(StoreBusy):
        CanaryDeployment(store, V2).should_enable_feature("home")


def test_a_controller_that_takes_whatever_fence_there_is_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = went_on

    def any_fence(rollouts: Rollouts, subject: str, *rest: object, **more: object) -> Rollouts:
        fence = rollouts.of(subject).fence
        evidence = Evidence(fence=fence, sessions=50, pushes=1, pulls=1, conflicts=1)
        return real(rollouts, subject, evidence, Bar(wait_us=0), fence=fence, cause=WHY)

    monkeypatch.setattr(module, "went_on", any_fence)
    with pytest.raises(AssertionError):
        check_once(tmp_path / "home.sqlite")
