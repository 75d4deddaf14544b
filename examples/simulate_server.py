"""Simulate your own server: years of a fleet's accidents in minutes, the same again from the same seed.

    python examples/simulate_server.py            # passes
    python examples/simulate_server.py forgetful  # fails, and tells the shortest story that shows why

or, with figures, several processes and a million histories if you like:

    cd examples && python -m inbetweenies.testing simulate --world simulate_server:Mine --runs 10000 --jobs 2

`SimulatedWorld` says what is simulated: the database, the server process that starts over it after every crash and
every restore, the programs on the devices, what may go wrong, and what must hold. Override what is yours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from inbetweenies import ProtocolFallback, Store
from inbetweenies.testing.simulator import INVARIANTS, Invariant, Served, SimulatedWorld, run_seeds, shortest_story


class ShortNames(Invariant):
    """A rule of your own, checked after each request. `served.fresh` are the rows that it added to the log."""

    sentence = "No name is longer than what our oldest panels can show."
    clause = "our style guide"

    def served(self, served: Served) -> None:
        for row in served.fresh:
            if row.kind == "entity" and len(row.entity().name) > 500:
                self.broken(f"{row.id} {row.version} has a name of {len(row.entity().name)} characters")


class Mine(SimulatedWorld):
    """Your server process over what survived: here it is the library's."""

    invariants = (*INVARIANTS, ShortNames)

    def make_handler(self, store: Store, clock: Callable[[], int], beside: Mapping[str, Any]) -> Any:
        return ProtocolFallback(store, clock=clock)


class Eager(ProtocolFallback):
    """The same with an optimisation that looks harmless: a push that comes again is answered from memory."""

    def __init__(self, store: Store, clock: Callable[[], int]) -> None:
        super().__init__(store, clock=clock)
        self.answers: dict[bytes, Any] = {}

    async def handle(self, body: bytes, **named: Any) -> Any:
        if body not in self.answers:
            self.answers[body] = await super().handle(body, **named)
        return self.answers[body]


class Forgetful(SimulatedWorld):
    def make_handler(self, store: Store, clock: Callable[[], int], beside: Mapping[str, Any]) -> Any:
        return Eager(store, clock)


def main(which: str = "") -> int:
    world = Forgetful() if which == "forgetful" else Mine()
    tally = run_seeds(world, range(300), "small")
    if not tally.failures:
        print(f"{tally.runs} histories, {tally.messages} messages, {tally.acked} acknowledged writes, no rule broken")
        return 0
    story = shortest_story(world, tally.failures[0].seed, "small")
    assert story is not None
    print(f"broken: {story.law}: {story.what}", *story.lines, sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
