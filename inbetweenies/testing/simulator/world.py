"""What is simulated: subclass `SimulatedWorld` to try your own store, server, clients or rules.

class Mine(SimulatedWorld):
    def make_handler(self, store, clock, beside):
        return MyServer(store, clock)            # has `handle(body, context=...)`, as `ProtocolFallback`

python -m inbetweenies.testing simulate --world my_module:Mine --runs 10000
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from ...router import ProtocolFallback, ProtocolHandler
from ...store import Store
from ..fleet_base import Client, codec, installed
from ..fleet_ends import KINDS
from .faults import FAULTS
from .invariants import INVARIANTS, Invariant
from .server import Database, DictHandler, MemoryDatabase


class SimulatedWorld:
    """The build under test, and what is held against it.

    Attributes:
        kinds: the programs that devices may run, by their names in `programs`.
        programs: what these are: models of clients, or clients.
        faults: the mishaps that may happen, by their names in `faults.FAULTS`.
        invariants: the rules, which are checked after each event or at the end.
        holders: what can bring an acknowledged write back after the database was replaced by an older one:
            ``database`` itself (for what the backup holds) always; ``journal`` and ``heads`` if the build keeps them,
            which is drawn for each history; ``clients`` if they offer again all that they hold. A write is only lost
            if one of these survived and it did not come back.
    """

    kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)
    programs: ClassVar[Mapping[str, type[Client]]] = KINDS
    faults: ClassVar[tuple[str, ...]] = tuple(FAULTS)
    invariants: ClassVar[tuple[type[Invariant], ...]] = INVARIANTS
    holders: ClassVar[frozenset[str]] = frozenset({"database", "journal", "heads", "clients"})

    def make_database(self) -> Database:
        """A new, empty database. Called once for each history."""
        return MemoryDatabase()

    def make_beside(self) -> Mapping[str, Any]:
        """What the server keeps beside its database, by name; a restore does not touch it."""
        return {}

    def make_handler(self, store: Store, clock: Callable[[], int], beside: Mapping[str, Any]) -> Any:
        """A server process over what survived. Called at the start, after each crash and after each restore."""
        handlers = {name: ProtocolHandler(store, wire=codec(name), clock=clock) for name in installed()}
        return ProtocolFallback(store, clock=clock, handlers=handlers)

    def process(self, store: Store, clock: Callable[[], int], beside: Mapping[str, Any]) -> Any:
        """`make_handler`, behind the one call that the simulator makes."""
        handler = self.make_handler(store, clock, beside)
        return handler if hasattr(handler, "handle") else DictHandler(handler)
