"""A server counts what it serves, looks at what is rolled out, and takes it back by itself (PROTOCOL 12)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inbetweenies import Feature, FeatureFlags
from inbetweenies.errors import StoreError
from inbetweenies.ops.integrity import DataIntegrityMonitor
from inbetweenies.rollout.canary import EVIDENCE, seen_in
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import BaseTransaction, MemoryStore
from tests.rollout.made import begun, keep, kept, move
from tests.server.calls import SYNC, V2, entity, request, sync, write
from tests.server.test_asgi import NOW, Site
from tests.support import run


class Failing(MemoryStore):
    """A store that cannot serve some graphs."""

    broken: frozenset[str] = frozenset()

    def transaction(self, graph: str, *, write: bool) -> BaseTransaction:
        if graph in self.broken:
            raise StoreError("the disk failed")
        return super().transaction(graph, write=write)


class Two(Site):
    """A site with a graph that version 2 is given to, ``home``, and one that it is not, ``other``."""

    def __init__(self, **options: Any) -> None:
        self.store = Failing()
        super().__init__(router=ProtocolFallback(self.store, clock=lambda: NOW), **options)
        self.other, _ = self.tokens.create("other", "ann")
        keep(self.store, begun(V2, "home"))

    async def everybody(self, times: int = 1) -> None:
        """Both sync."""
        for number in range(times):
            for token in (self.token, self.other):
                change = write(entity(f"lamp-{number}", "v1"))
                await request(self.app, "POST", SYNC, sync(change), token=token)


async def test_metrics_are_told_to_whoever_has_a_token() -> None:
    site = Two()
    await site.everybody()
    refused = await request(site.app, "GET", "/metrics")
    told = await request(site.app, "GET", "/metrics", token=site.token)
    await site.app.close()

    assert refused is not None
    assert told is not None
    assert (401, 200) == (refused.status, told.status)
    assert "text/plain; version=0.0.4; charset=utf-8" == told.headers["content-type"]
    lines = told.body.decode().splitlines()
    assert 'inbetweenies_requests_total{operation="push",outcome="ok"} 2' in lines
    assert f'inbetweenies_rollout_requests_total{{rollout="{V2}/1",arm="canary",outcome="ok"}} 1' in lines
    assert f'inbetweenies_rollout_requests_total{{rollout="{V2}/1",arm="control",outcome="ok"}} 1' in lines
    assert "inbetweenies_triggers_overdue 0" in lines


async def test_what_was_seen_is_evidence_for_whoever_asks() -> None:
    site = Two()
    await site.everybody()
    await asyncio.to_thread(site.app.watching.triggers.look)
    await site.app.close()

    evidence = seen_in(run(site.store.document(EVIDENCE))).of(kept(site.store).of(V2))
    assert (1, 1, 1, 0) == (evidence.sessions, evidence.pushes, evidence.pulls, evidence.conflicts)


async def test_who_is_failed_by_a_version_alone_gets_it_taken_back() -> None:
    site = Two()
    site.store.broken = frozenset({"home"})
    looks = 0
    while kept(site.store).of(V2).state in ("ramp", "held"):
        await site.everybody(5)
        await asyncio.to_thread(site.app.watching.triggers.look)
        looks += 1
    await site.everybody()
    await site.app.close()

    assert "rolled_back" == kept(site.store).of(V2).state
    assert looks <= 3
    assert ("inbetweenies-v1",) == site.router.registry_for("home").supported


async def test_where_everybody_is_failed_nothing_is_taken_back() -> None:
    site = Two()
    site.store.broken = frozenset({"home", "other"})
    for _ in range(4):
        await site.everybody(5)
        await asyncio.to_thread(site.app.watching.triggers.look)
    await site.app.close()

    assert "ramp" == kept(site.store).of(V2).state


async def test_somebody_looks_only_while_there_is_something_to_look_at() -> None:
    site = Two()
    before = {task.get_name() for task in asyncio.all_tasks()}
    await site.everybody()
    assert 1 == len(asyncio.all_tasks()) - len(before)
    await site.app.close()
    assert before == {task.get_name() for task in asyncio.all_tasks()}

    quiet = Site()
    await quiet.ask("GET", "/health")
    assert before == {task.get_name() for task in asyncio.all_tasks()}


async def test_logs_are_looked_at_as_long_as_the_application_serves() -> None:
    store = MemoryStore()
    integrity = DataIntegrityMonitor(store)
    site = Site(router=ProtocolFallback(store, clock=lambda: NOW), audits=(integrity,))
    await site.push(write(entity("lamp", "v1")))
    audited, steps = asyncio.Event(), asyncio.Queue[str]()
    loop = asyncio.get_running_loop()
    round_ = integrity._round

    async def told() -> None:
        await round_()
        loop.call_soon_threadsafe(audited.set)

    integrity._round = told  # type: ignore[method-assign]
    steps.put_nowait("lifespan.startup")

    async def receive() -> dict[str, Any]:
        return {"type": await steps.get()}

    async def send(_: Any) -> None:
        return None

    serving = asyncio.create_task(site.app({"type": "lifespan"}, receive, send))
    await audited.wait()
    steps.put_nowait("lifespan.shutdown")
    await serving

    assert {"home"} == set(integrity.last_complete)
    assert () == integrity.breaches()


class Broken:
    """An audit that knows what is broken without looking."""

    told: tuple[str, ...] = ("what was broken before",)

    async def monitor(self) -> None:
        await asyncio.Event().wait()

    def breaches(self) -> tuple[str, ...]:
        return self.told


async def test_what_breaks_during_a_rollout_takes_it_back_and_what_was_broken_before_does_not() -> None:
    audit = Broken()
    site = Two(audits=(audit,))
    await site.everybody()
    await asyncio.to_thread(site.app.watching.triggers.look)
    before = kept(site.store).of(V2)
    audit.told = (*audit.told, "a row is missing")
    await asyncio.to_thread(site.app.watching.triggers.look)
    await site.app.close()

    assert "ramp" == before.state
    after = kept(site.store).of(V2)
    assert ("rolled_back", "a row is missing") == (after.state, after.log[-1].cause.reason)


async def test_a_store_that_is_away_is_not_the_fault_of_a_version_that_everybody_has() -> None:
    site = Two()
    keep(site.store, move(move(begun(V2, "home"), V2, "advance"), V2, "advance"))
    site.store.broken = frozenset({"home", "other"})
    for _ in range(3):
        await site.everybody(5)
        await asyncio.to_thread(site.app.watching.triggers.look)
    await site.app.close()

    assert "burn_in" == kept(site.store).of(V2).state


@pytest.mark.parametrize(
    ("feature", "path"),
    [
        (Feature.ENTITY_VERSIONING, "/api/v1/graph/entities/lamp/versions"),
        (Feature.GRAPH_OPERATIONS, "/api/v1/graph/relationships"),
    ],
)
async def test_there_is_nothing_where_a_feature_is_off(feature: Feature, path: str) -> None:
    site = Site()
    await site.push(write(entity("lamp", "v1")))
    flags, statuses = FeatureFlags(site.router.store), []
    for switch in (flags.enable, flags.disable, flags.enable):
        switch(feature)
        site.seconds += 1
        statuses.append((await site.ask("GET", path)).status)
    await site.app.close()

    assert [200, 404, 200] == statuses
