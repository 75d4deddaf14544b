"""The laws (PROTOCOL 1), fuzzed by a fleet of v1, v2 and unknown-version clients, in memory and on a real file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from inbetweenies.router import ProtocolFallback
from inbetweenies.store import Store
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.fleet import MixedFleet
from tests.support import run

STEPS = 40
#: Runs per fleet: a few seconds in the suite; `python -m tests.deep` asks for more.
RUNS = int(os.environ.get("DEEP_EXAMPLES", "60"))


def fleet_settings(runs: int) -> settings:
    return settings(
        max_examples=runs,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        # The story of a failure is told as it happened; making it short would take minutes.
        phases=(Phase.explicit, Phase.generate),
    )


class OnSqlite(MixedFleet):
    """The same fleet over a file; the journal's durability is not what is looked at here, so a RAM disk would do."""

    def make_store(self) -> Store:
        self.folders = [*getattr(self, "folders", []), tempfile.TemporaryDirectory()]
        store = SqliteStore(Path(self.folders[-1].name) / "home.db")
        self.stores = [*getattr(self, "stores", []), store]
        return store

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            for store in self.stores:
                run(store.close())
            for folder in self.folders:
                folder.cleanup()


class Seen(MixedFleet):
    """A server that only shows what is on the wire, as a user's own handler may.

    Without v1 clients: what they may rightly not hear of (a home that stands in changed within a microsecond) can only
    be told from a loss by looking into the store.
    """

    kinds = ("modern", "deployed", "kitten")

    def make_store(self) -> Store | None:
        return None

    def make_handler(self, store: Store | None, clock: Any) -> ProtocolFallback:
        return ProtocolFallback(clock=clock)


@pytest.mark.parametrize(
    "kinds",
    [
        ("modern",),
        ("v1",),
        ("deployed", "kitten"),
        ("unknown", "modern"),
        ("modern", "deployed", "kitten", "v1", "unknown"),
    ],
    ids="+".join,
)
def test_the_laws_hold_in_memory(kinds: tuple[str, ...]) -> None:
    fleet = type("Fleet", (MixedFleet,), {"kinds": kinds})

    run_state_machine_as_test(fleet, settings=fleet_settings(RUNS))


def test_the_laws_hold_on_sqlite() -> None:
    run_state_machine_as_test(OnSqlite, settings=fleet_settings(max(5, RUNS // 3)))


def test_what_shows_on_the_wire_of_a_foreign_handler_is_lawful() -> None:
    run_state_machine_as_test(Seen, settings=fleet_settings(max(5, RUNS // 3)))
