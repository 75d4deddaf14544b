"""A replica whose file fails at every step of every call: no edit is lost, no mark is wrong, the next call works.

The counterpart of ``test_io_errors.py`` for the client's store. A call that is one transaction leaves all tables as
they were (or, where the failure was the commit's, as they should be); a sync, which is several, leaves a replica in
which everything that must hold at any moment does. Whatever fails, the caller is told with one of our errors, goes on
with the same client, and syncs until both sides hold the same.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import Struct

from blowing_off import BlowingOffClient
from blowing_off.store import LocalStore
from inbetweenies.errors import StoreError
from inbetweenies.model import Reads, Span
from inbetweenies.replica import Absorbed
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.testing.fleet_base import installed
from tests.client.test_client import Clock, Home
from tests.storm.faults import Fault, Faults, planned
from tests.storm.log import Key, dump
from tests.storm.replica import Replica, replica
from tests.support import NOW

FAULTS_PER_STEP: Final = int(os.environ.get("DEEP_EXAMPLES", "1"))
V2: Final = "inbetweenies-v2"
LATER: Final = NOW + 60_000_000

Call = Callable[[BlowingOffClient], Awaitable[object]]


def client_of(home: Home, path: Path, user: str = "ann", *, now: int = NOW) -> BlowingOffClient:
    """A client in small batches and pages, of which two runs are the same."""
    ids = itertools.count()
    return BlowingOffClient(
        path,
        transport=home,
        user=user,
        device=f"{user}-tablet",
        clock=Clock(now),
        page_rows=3,
        batch_changes=3,
        ids=lambda: f"{user}-{now - NOW}-{next(ids)}",
    )


class Base(Struct):
    """A server, and the file of a client that has synced with it, has made edits since, and has missed others'."""

    path: Path
    server: MemoryStore

    def home(self, *, rewound: bool = False, records_only: bool = False) -> Home:
        """The server as it was, on its own; `rewound`, as another one that has lost everything."""
        store = MemoryStore(lambda: "0f" * 8) if rewound else self.server.copy()
        home = Home(store)
        home.now = LATER
        if records_only:
            home.fallback = ProtocolFallback(store, disabled=[V2])
        return home


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("base")
    home = Home(MemoryStore(lambda: "0e" * 8))

    async def build() -> None:
        async with client_of(home, folder / "ann.db") as ann, client_of(home, folder / "bob.db", "bob") as bob:
            house = await ann.add("home", "House", id="house")
            for name in ("kitchen", "cellar"):
                room = await ann.add("room", name, id=name)
                await ann.link(room.id, house.id, "part_of", id=f"{name}-of-house")
            await ann.add("device", "Lamp", {"power": "off"}, id="lamp")
            await ann.link("lamp", "kitchen", "located_in", id="lamp-in-kitchen")
            await ann.sync()
            await bob.sync()
            for n in range(3):
                await bob.add("device", f"Bob's {n}")
            await bob.change("lamp", patch={"power": "on"}, name="Bob's lamp")
            await bob.delete("cellar")
            await bob.sync()
            await ann.change("lamp", patch={"power": "dim", "n": 1}, name="Ann's lamp")
            await ann.change("lamp", patch={"n": 2})
            await ann.add("device", "Fan", id="fan")
            await ann.link("fan", "kitchen", "located_in", id="fan-in-kitchen")
            await ann.change("cellar", name="Basement")

    asyncio.run(build())
    assert isinstance(home.store, MemoryStore)
    return Base(folder / "ann.db", home.store)


async def add(client: BlowingOffClient) -> object:
    return await client.add("device", "New", {"n": 1})


async def change(client: BlowingOffClient) -> object:
    return await client.change("fan", patch={"speed": 2})


async def delete(client: BlowingOffClient) -> object:
    return await client.delete("lamp")


async def link(client: BlowingOffClient) -> object:
    return await client.link("lamp", "house", "located_in", id="lamp-in-kitchen")


async def unlink(client: BlowingOffClient) -> object:
    return await client.unlink("fan-in-kitchen")


async def sync(client: BlowingOffClient) -> object:
    return await client.sync()


async def status(client: BlowingOffClient) -> object:
    return await client.status(), await client.links(), await client.history("lamp"), await client.pending()


class Scenario(Struct, frozen=True):
    """One call, whether it is one transaction, and the server that it speaks to."""

    call: Call
    whole: bool = True
    server: dict[str, bool] = {}


SCENARIOS: Final = {
    "add": Scenario(add),
    "change": Scenario(change),
    "delete": Scenario(delete),
    "link": Scenario(link),
    "unlink": Scenario(unlink),
    "read": Scenario(status),
    "sync": Scenario(sync, whole=False),
    "sync with a server that lost everything": Scenario(sync, whole=False, server={"rewound": True}),
    "sync with a server of records": Scenario(sync, whole=False, server={"records_only": True}),
}


def rows_of(home: Home) -> set[Key]:
    """Every row that the server holds."""
    everything = range(1, home.held(Reads()).head.seq + 1)
    spans = (home.held(Reads(span=Span(after=seq - 1, upto=seq), as_of=seq)).span for seq in everything)
    found: set[Key] = {(row.kind, row.id, row.version) for span in spans for row in span}
    history = home.held(Reads(history=tuple({id_ for _, id_, _ in found}))).history
    return found | {("entity", row.id, row.version) for rows in history.values() for row in rows}


class Sweep:
    """All faults at all steps of one call."""

    def __init__(self, base: Base, folder: Path, faults: Faults, scenario: Scenario) -> None:
        self.base = base
        self.folder = folder
        self.faults = faults
        self.scenario = scenario
        self.tried = self.told = self.unknown = 0
        self.steps: list[str] = []
        self.failed: set[str] = set()

    def client(self) -> tuple[BlowingOffClient, Home, Path]:
        """A client on a fresh copy of the file, and a server of its own."""
        path = self.folder / f"{self.tried}.db"
        shutil.copy(self.base.path, path)
        home = self.base.home(**self.scenario.server)
        return client_of(home, path, now=LATER), home, path

    async def run(self) -> None:
        client, _, path = self.client()
        async with client:
            assert client.state.device == "ann-tablet"
            self.before = dump(path)
            self.faults.watch()
            await self.scenario.call(client)
            self.steps = list(self.faults.rest())
            self.after = dump(path)
        for fault in planned(self.steps, FAULTS_PER_STEP):
            self.tried += 1
            await self.fail(fault, f"{fault} at {self.steps[fault.step]!r}")
            for file in self.folder.iterdir():
                file.unlink()

    async def fail(self, fault: Fault, where: str) -> None:
        client, home, path = self.client()
        async with client:
            assert client.state.device == "ann-tablet"
            before = replica(path)
            fired = self.faults.fired
            self.faults.watch(fault)
            try:
                await self.scenario.call(client)
            except StoreError:
                self.told += 1
            self.faults.rest()
            assert fired + 1 == self.faults.fired, where
            self.failed.add(self.steps[fault.step])
            left = replica(path)
            self.check(dump(path), where)
            self.check_marks(before, left, home, where)

            # The same client goes on, and nothing that it confirmed before or confirms now is lost.
            made = await client.add("device", "after the failure")
            left = replica(path)
            assert ("entity", made.id, made.version) in left.waiting, where
            if self.scenario.server.get("records_only"):
                await client.sync()
                home.fallback = ProtocolFallback(home.store)
            first = await client.sync()
            second = await client.sync()
            assert (True, 0) == (second.equal, second.pending), (where, first, second)
            assert left.own == replica(path).own, where
            assert left.own <= rows_of(home), where

    def check(self, left: dict[str, list[Any]], where: str) -> None:
        """One transaction is there whole or not at all."""
        if not self.scenario.whole or left == self.before:
            return
        assert left == self.after, where
        self.unknown += 1

    def check_marks(self, before: Replica, left: Replica, home: Home, where: str) -> None:
        """Law 1: what was made here waits until the server has it."""
        assert before.own <= left.own, where
        if not self.scenario.server.get("records_only"):
            assert left.own - rows_of(home) <= {*left.waiting} | before.own - {*before.waiting}, where


@pytest.fixture(autouse=True)
def one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through all that is installed for wire versions is most of what a sync in memory costs."""
    monkeypatch.setattr("blowing_off.sync.load", installed)
    monkeypatch.setattr("inbetweenies.router.load", installed)


@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_fails_no_edit_is_lost_and_the_next_call_works(
    name: str, base: Base, tmp_path: Path, faults: Faults
) -> None:
    sweep = Sweep(base, tmp_path, faults, SCENARIOS[name])
    asyncio.run(sweep.run())

    print(f"figures: {name}: {len(sweep.steps)} steps, {sweep.tried} faults, {sweep.told} told, {sweep.unknown} kept")
    assert sweep.failed == set(sweep.steps)


# --- the sweep bites ----------------------------------------------------------------------------------------------


def commit_here(store: LocalStore) -> None:
    """What was done so far becomes durable without the rest."""
    store._db.execute("COMMIT")
    store._db.execute("BEGIN IMMEDIATE")


def cursor_before_rows(patch: pytest.MonkeyPatch) -> None:
    """The cursor is stored before the rows that it covers."""
    real = LocalStore.apply

    def apply(self: LocalStore, absorbed: Absorbed, *, now: int) -> None:
        self.put_state(absorbed.state)
        commit_here(self)
        real(self, absorbed, now=now)

    patch.setattr(LocalStore, "apply", apply)


def mark_after_row(patch: pytest.MonkeyPatch) -> None:
    """An edit is stored before the mark that it waits."""
    real = LocalStore._mark

    def mark(self: LocalStore, copies: Any) -> None:
        commit_here(self)
        real(self, copies)

    patch.setattr(LocalStore, "_mark", mark)


def cleared_before_known(patch: pytest.MonkeyPatch) -> None:
    """Marks are cleared before what the answer says is stored."""
    real = LocalStore.apply

    def apply(self: LocalStore, absorbed: Absorbed, *, now: int) -> None:
        self._db.executemany("DELETE FROM pending WHERE n = ?", ((n,) for n in absorbed.cleared))
        commit_here(self)
        real(self, absorbed, now=now)

    patch.setattr(LocalStore, "apply", apply)


def error_swallowed(patch: pytest.MonkeyPatch) -> None:
    """What SQLite could not write is passed over."""
    real = LocalStore._insert

    def insert(self: LocalStore, copies: Any, *, own: bool = False) -> None:
        with suppress(sqlite3.Error, MemoryError):
            real(self, copies, own=own)

    patch.setattr(LocalStore, "_insert", insert)


def never_undone(patch: pytest.MonkeyPatch) -> None:
    """A transaction that failed stays open."""
    patch.setattr(LocalStore, "_undo", lambda self, db, *, doubtful: None)


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (cursor_before_rows, "sync"),
        (cleared_before_known, "sync"),
        (mark_after_row, "change"),
        (error_swallowed, "add"),
        (never_undone, "link"),
    ],
)
def test_a_planted_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None],
    name: str,
    base: Base,
    tmp_path: Path,
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bug(monkeypatch)

    with pytest.raises((AssertionError, StoreError)):
        asyncio.run(Sweep(base, tmp_path, faults, SCENARIOS[name]).run())
