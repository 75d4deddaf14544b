"""Fuzz your own handler with a fleet: old, new and unknown clients, and a network that loses, doubles and reorders.

    python examples/fuzz_handler.py           # passes
    python examples/fuzz_handler.py hasty     # fails, and tells the shortest story that shows why

The fleet drives whatever has ``async handle_sync_request(dict) -> dict``. After every message it checks the laws of
PROTOCOL.md; at the end everybody must hold the same.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from inbetweenies import ProtocolFallback, Store
from inbetweenies.testing.fleet import BrokenLaw, MixedFleet


class CountingHandler:
    """Your server: here it only counts who speaks what, and leaves the protocol to the library."""

    def __init__(self, store: Store | None, clock: Callable[[], int]) -> None:
        self.fallback = ProtocolFallback(store, clock=clock)
        self.asked: Counter[str] = Counter()

    async def handle_sync_request(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked[str(request.get("protocol_version"))] += 1
        return await self.fallback.handle_sync_request(request)


class HastyHandler(CountingHandler):
    """The same with an optimisation that looks harmless: a message that comes again is answered from memory."""

    def __init__(self, store: Store | None, clock: Callable[[], int]) -> None:
        super().__init__(store, clock)
        self.answers: dict[str, dict[str, Any]] = {}

    async def handle_sync_request(self, request: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps(request, sort_keys=True)
        if key not in self.answers:
            self.answers[key] = await super().handle_sync_request(request)
        return self.answers[key]


class Fleet(MixedFleet):
    """The server under test is all that has to be named. `make_store` tests a store in the same way."""

    def make_handler(self, store: Store | None, clock: Callable[[], int]) -> CountingHandler:
        return CountingHandler(store, clock)


class HastyFleet(Fleet):
    def make_handler(self, store: Store | None, clock: Callable[[], int]) -> CountingHandler:
        return HastyHandler(store, clock)


# With this, pytest runs it too. More examples find more: a few hundred, for CI, are a good start.
Fleet.TestCase.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
TestFleet = Fleet.TestCase

# For a first look: short runs, no remembered failures, and no explanation beside the story.
QUICK = settings(
    max_examples=100,
    stateful_step_count=12,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
)


def main(which: str = "") -> int:
    try:
        run_state_machine_as_test(HastyFleet if which == "hasty" else Fleet, settings=QUICK)
    except BrokenLaw as broken:
        print(broken)
        return 1
    print("no law was broken")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
