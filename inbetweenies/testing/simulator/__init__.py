"""A deterministic simulator: one seed, one history of a fleet in which everything goes wrong.

Old and new clients edit one home through a network that loses, doubles, delays and damages their messages, while the
server crashes, is restored from backups, runs out of disk and switches wire versions off, clocks jump, and devices are
wiped, copied and downgraded. Codecs, router, engine and replica are the real ones and speak real bytes; only time is
not real, and nothing waits. Then everything is put in order, and everybody must hold the same. The invariants are in
`invariants`, one class each.

    python -m inbetweenies.testing simulate --runs 10000 --jobs 2

A seed that breaks an invariant is told as the shortest story found, and breaks it again bit for bit. Your own store,
server, clients or rules: subclass `SimulatedWorld`.
"""

from .faults import FAULTS
from .invariants import INVARIANTS, Invariant, Served
from .runner import replay, run_seed, run_seeds, shortest_story, simulate, tell_story
from .server import Database, MemoryDatabase
from .stage import Broken
from .world import SimulatedWorld

__all__ = [
    "FAULTS",
    "INVARIANTS",
    "Broken",
    "Database",
    "Invariant",
    "MemoryDatabase",
    "Served",
    "SimulatedWorld",
    "replay",
    "run_seed",
    "run_seeds",
    "shortest_story",
    "simulate",
    "tell_story",
]
