"""`ShadowComparison` over a store (PROTOCOL 12.10): some graphs at a time, within its share, and never silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from inbetweenies import MemoryStore
from inbetweenies.errors import LocalProtocolError, StoreBusy
from inbetweenies.model import SyncRequest
from inbetweenies.ops.shadow import ShadowComparison, comparable
from inbetweenies.rollout.shadow import Compared
from inbetweenies.stores.keeper import run_now
from inbetweenies.wire import load
from tests.ops.test_integrity_shell import Paced, _touch, at_once
from tests.rollout.test_shadow import NEWER, OLDER, Wrapped, house, without
from tests.support import Server


async def inline(work: Callable[[], Any]) -> Any:
    return work()


def of(pace: Paced, store: Any, **more: Any) -> ShadowComparison:
    return ShadowComparison(store, clock=lambda: 7, monotonic=pace, busy=pace, wait=pace.wait, aside=inline, **more)


def several(*names: str) -> MemoryStore:
    store = MemoryStore()
    for name in names:
        run_now(_touch(store, name))
    return store


def test_what_is_installed_is_compared() -> None:
    server = house()
    shadow = ShadowComparison(server.store, wait=at_once, aside=inline)

    assert Compared(versions=(NEWER.name, OLDER.name), seq=13, rows=11) == run_now(shadow.compare("default"))
    run_now(shadow._round())
    assert ((), ["default"]) == (shadow.breaches(), list(shadow.last_complete))


def test_what_differs_is_told_until_it_does_no_more(caplog: pytest.LogCaptureFixture) -> None:
    server = house()
    faulty: Any = Wrapped(OLDER, lambda told: told["changes"].clear())
    shadow = of(Paced(), server.store, versions=[faulty])
    run_now(shadow._round())

    assert (
        "default: inbetweenies-v1: home h: expected it; it is not shown",
        "default: inbetweenies-v1: room kitchen: expected it; it is not shown",
        "default: inbetweenies-v1: accessory bridge: expected it; it is not shown",
        "default: and 4 more",
    ) == shadow.breaches()
    assert "and 4 more" in caplog.text
    faulty._answer = without("kitchen")
    run_now(shadow._round())
    assert ("default: inbetweenies-v1: room kitchen: expected it; it is not shown",) == shadow.breaches()
    faulty._answer = lambda _: None
    run_now(shadow._round())
    assert () == shadow.breaches()


def test_versions_that_say_nothing_of_the_whole_are_left_out() -> None:
    class Bare:
        name = "bare"

    assert (OLDER,) == comparable([Bare(), OLDER])  # type: ignore[list-item]
    assert len(load()) == len(comparable(load().values()))


def test_graphs_are_sampled_in_turn() -> None:
    shadow, seen = of(Paced(), several(*"edcba"), sample=2), []
    for _ in range(4):
        run_now(shadow._round())
        seen.append(sorted(shadow.last_complete))

    assert [["a", "b"], ["a", "b", "c", "d"], ["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "e"]] == seen


def test_it_waits_for_its_share() -> None:
    pace = Paced(tick=0.5)
    run_now(of(pace, several("a", "b"), budget=0.1)._round())

    assert [4.5, 4.5] == pytest.approx(pace.waited)


def test_a_large_graph_is_left_and_that_can_be_seen() -> None:
    server = house()
    shadow = of(Paced(), server.store, rows_max=3)
    run_now(shadow._round())

    assert ((), {}) == (shadow.breaches(), shadow.last_complete)


def test_what_cannot_be_read_is_logged_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = several("a", "b")
    shadow, transaction, names = of(Paced(), store, graphs=["a", "b"]), store.transaction, store.graph_names

    def busy(graph: str, *, write: bool) -> Any:
        if graph == "a":
            raise StoreBusy("expected the store; got none")
        return transaction(graph, write=write)

    monkeypatch.setattr(store, "transaction", busy)
    run_now(shadow._round())
    assert (["b"], True) == (list(shadow.last_complete), "graph a stays uncompared" in caplog.text)

    async def away() -> tuple[str, ...]:
        raise StoreBusy("expected the store; got none")

    monkeypatch.setattr(store, "graph_names", away)
    run_now(of(Paced(), store)._round())
    assert "graphs stay uncompared" in caplog.text
    assert ("a", "b") == run_now(names())


def test_a_graph_that_is_gone_is_forgotten() -> None:
    store = several("a")
    shadow = of(Paced(), store)
    run_now(shadow._round())
    shadow._store = several("b")
    run_now(shadow._round())

    assert ["b"] == list(shadow.last_complete)


async def test_it_runs_beside_an_event_loop() -> None:
    server = Server()
    server.ask(SyncRequest(device="d", user="u"))
    shadow, rounds = ShadowComparison(server.store, budget=1, round_s=0), asyncio.Event()
    shadow._wait = lambda seconds: _signalled(rounds)
    running = asyncio.create_task(shadow.monitor())
    await rounds.wait()
    assert ["default"] == list(shadow.last_complete)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def _signalled(event: asyncio.Event) -> None:
    event.set()
    await asyncio.sleep(0)


@pytest.mark.parametrize("budget", [0, 2])
def test_a_budget_is_a_share(budget: float) -> None:
    with pytest.raises(LocalProtocolError, match="expected a budget above 0 and up to 1"):
        ShadowComparison(MemoryStore(), budget=budget)
