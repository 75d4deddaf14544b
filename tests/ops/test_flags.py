"""`FeatureFlags` over a store (PROTOCOL 12.4): durable, everywhere within a second, and sane without its store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import Feature, FeatureFlags, MemoryStore, SqliteStore
from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreCorrupt, StoreError
from inbetweenies.model import Document
from inbetweenies.ops import polled
from inbetweenies.rollout.flags import DOCUMENT, flags_in
from inbetweenies.stores.keeper import run_now

SYNC, GRAPH = Feature.ENHANCED_SYNC, Feature.GRAPH_OPERATIONS


class Clock:
    """Seconds, as many as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Away(MemoryStore):
    """A store that can be taken away."""

    away = False

    async def document(self, name: str) -> Document:
        if self.away:
            raise StoreBusy("expected the store; got none")
        return await super().document(name)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[[], SqliteStore]]:
    """Opens the same file again and again, as several processes do."""
    opened: list[SqliteStore] = []

    def another() -> SqliteStore:
        opened.append(SqliteStore(tmp_path / "home.sqlite", journal=False, heads=False))
        return opened[-1]

    yield another
    for store in opened:
        run_now(store.close())


def test_what_is_switched_is_durable_when_it_returns(open_store: Callable[[], SqliteStore]) -> None:
    flags = FeatureFlags(open_store(), clock=lambda: 7)
    flags.disable(SYNC, actor="ada", reason="too slow")
    flags.enable(SYNC)
    flags.disable_all(actor="eve", reason="fire")

    assert not any(FeatureFlags(open_store()).is_enabled(one) for one in (SYNC, GRAPH, Feature.MCP_SERVER))
    log = flags_in(run_now(open_store().document(DOCUMENT))).log
    assert (SYNC.name, False, "ada", "too slow", 7) == (
        log[0].feature, log[0].on, log[0].cause.actor, log[0].cause.reason, log[0].cause.at
    )  # fmt: skip
    assert {"eve"} == {one.cause.actor for one in log[2:]}


def test_the_kill_switch_counts_in_every_process_within_a_second(
    open_store: Callable[[], SqliteStore], clock: Clock
) -> None:
    flags = [FeatureFlags(open_store(), monotonic=clock) for _ in range(3)]
    assert [True] * 3 == [one.is_enabled(SYNC) for one in flags]
    flags[0].disable_all()

    assert not flags[0].is_enabled(SYNC)
    clock.now += 1
    assert [False] * 3 == [one.is_enabled(SYNC) for one in flags]


def test_between_two_looks_the_store_is_not_asked(clock: Clock) -> None:
    store = Away()
    flags = FeatureFlags(store, monotonic=clock)
    assert flags.is_enabled(SYNC)
    FeatureFlags(store).disable(SYNC)

    clock.now += polled.REFRESH_S - 0.01
    assert flags.is_enabled(SYNC)
    clock.now += 0.01
    assert not flags.is_enabled("enhanced_sync")


def test_a_sync_is_held_to_the_features_it_began_with(clock: Clock) -> None:
    flags = FeatureFlags(MemoryStore(), monotonic=clock)
    pinned = flags.pinned()
    flags.disable(GRAPH)

    assert (True, False) == (pinned.is_enabled(SYNC.name), flags.is_enabled(SYNC))


def test_several_who_switch_at_once_lose_nothing(open_store: Callable[[], SqliteStore]) -> None:
    def switch(feature: Feature) -> None:
        mine = FeatureFlags(open_store())
        for _ in range(5):
            mine.disable(feature, actor=feature.name)
            mine.enable(feature, actor=feature.name)

    features = (Feature.MCP_SERVER, SYNC)
    threads = [threading.Thread(target=switch, args=(feature,)) for feature in features]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    log = flags_in(run_now(open_store().document(DOCUMENT))).log
    for feature in features:
        assert [False, True] * 5 == [one.on for one in log if one.feature == feature.name]


# --- without the store --------------------------------------------------------------------------------------------


def check_away(tmp_path: Path, clock: Clock) -> None:
    store, file = Away(), tmp_path / "flags"
    flags = FeatureFlags(store, known=file, monotonic=clock)
    flags.disable(SYNC)
    store.away = True
    clock.now += 10

    assert (False, True) == (flags.is_enabled(SYNC), flags.is_enabled(GRAPH))
    # And so does one that starts while it is away.
    late = FeatureFlags(store, known=file, monotonic=clock)
    assert (False, True) == (late.is_enabled(SYNC), late.is_enabled(GRAPH))
    store.away = False
    flags.enable(SYNC)
    clock.now += 10
    assert late.is_enabled(SYNC)


def test_while_the_store_is_away_what_was_last_known_holds(tmp_path: Path, clock: Clock) -> None:
    check_away(tmp_path, clock)


def test_without_anything_known_it_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Away()
    store.away = True
    for known in (None, tmp_path / "none", tmp_path):
        with pytest.raises(StoreBusy):
            FeatureFlags(store, known=known).is_enabled(SYNC)
    (tmp_path / "other").write_bytes(b"something else")
    with pytest.raises(StoreCorrupt, match="flags that were last known"):
        FeatureFlags(store, known=tmp_path / "other").is_enabled(SYNC)
    with pytest.raises(StoreError):
        FeatureFlags(store).enable(SYNC)


def test_a_document_that_cannot_be_understood_changes_nothing_and_is_not_overwritten(clock: Clock) -> None:
    store = MemoryStore()
    flags = FeatureFlags(store, monotonic=clock)
    flags.disable(SYNC)
    assert run_now(store.put_document(DOCUMENT, b"newer", revision=1))
    clock.now += 10

    assert not flags.is_enabled(SYNC)
    with pytest.raises(StoreCorrupt):
        flags.enable(SYNC)
    assert b"newer" == run_now(store.document(DOCUMENT)).body


def test_a_file_that_cannot_be_written_is_said_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = FeatureFlags(MemoryStore(), known=tmp_path / "nowhere" / "flags")
    flags.disable(SYNC)
    assert not flags.is_enabled(SYNC)
    assert "expected to write" in caplog.text

    (tmp_path / "flags").mkdir()
    FeatureFlags(MemoryStore(), known=tmp_path / "flags").disable(SYNC)
    assert [tmp_path / "flags"] == list(tmp_path.iterdir()), "nothing is left beside it"


# --- bad input ----------------------------------------------------------------------------------------------------


def test_an_unknown_feature_is_refused() -> None:
    flags = FeatureFlags(MemoryStore())
    for ask in (flags.is_enabled, flags.enable, flags.disable):
        with pytest.raises(LocalProtocolError, match="expected one of the features"):
            ask("nothing")


def test_a_switch_that_is_refused_changes_nothing() -> None:
    store = MemoryStore()
    flags = FeatureFlags(store)
    flags.disable_all()
    before = run_now(store.document(DOCUMENT))
    with pytest.raises(LocalProtocolError, match="which enhanced_sync needs"):
        flags.enable(SYNC)
    with pytest.raises(LocalProtocolError, match="expected a reason"):
        flags.enable(GRAPH, reason="")

    assert before == run_now(store.document(DOCUMENT))


# --- planted bugs -------------------------------------------------------------------------------------------------


def test_a_process_that_never_looks_again_is_caught(
    open_store: Callable[[], SqliteStore], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polled, "REFRESH_S", 10**9)
    with pytest.raises(AssertionError):
        test_the_kill_switch_counts_in_every_process_within_a_second(open_store, clock)


def test_a_process_that_writes_nothing_down_is_caught(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgets(path: Path, body: bytes) -> Any:
        """Writes nothing."""

    monkeypatch.setattr("inbetweenies.ops.flags._write_down", forgets)
    with pytest.raises(StoreBusy):
        check_away(tmp_path, clock)
