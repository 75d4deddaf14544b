"""What can go wrong, how often, and which of it goes wrong in one history.

Swarm testing: each history first draws which faults exist at all, about half of them, and how frequent each is. What
is always on hides what only happens when something else is off.

What needs more than one process, real time or a real machine is not simulated. It is tested where it is real: several
processes on one file, threads, a disk that fails at any call, a process that is killed at any statement, exhausted
memory, WebSockets (``tests/storm``, ``tests/stores/test_journal_shared.py``); files that are torn or written over
(``tests/stores``); hostile content, overload (``tests/hostile``); tokens that expire (``tests/server``); formats of a
client's store that change (``tests/client/test_migration.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Final

from msgspec import Struct


class Fault(Struct, frozen=True):
    """One kind of mishap: how often it happens per opportunity where it exists, and in words what it is."""

    rate: float
    what: str


#: Of each message and each answer on its way.
ON_THE_WAY: Final[Mapping[str, Fault]] = {
    "drop": Fault(0.10, "a message or an answer is lost"),
    "duplicate": Fault(0.10, "a request arrives twice or three times"),
    "delay": Fault(0.12, "a message takes up to ten minutes, and others overtake it"),
    "truncate": Fault(0.02, "bytes are cut off"),
    "flip": Fault(0.02, "a bit is flipped"),
    "proxy": Fault(0.04, "a proxy answers in the server's place: 502, a login page, nothing"),
}
#: Of each request at the server.
AT_THE_SERVER: Final[Mapping[str, Fault]] = {
    "crash_before_commit": Fault(0.04, "the server dies before it commits"),
    "crash_after_commit": Fault(0.06, "the server dies between the commit and the answer"),
    "disk_full": Fault(0.05, "the disk is full when the server commits"),
    "io_error": Fault(0.03, "the disk fails the server while it reads or writes"),
    "crash_before_journal": Fault(0.10, "the server dies between the commit and the journal"),
    "crash_in_journal": Fault(0.08, "the server dies in the middle of a record of the journal"),
    "journal_full": Fault(0.10, "there is no room for the journal"),
    "journal_sync": Fault(0.06, "the journal cannot be made durable"),
}
#: From time to time; the rates are shares among those that exist.
NOW_AND_THEN: Final[Mapping[str, Fault]] = {
    "crash": Fault(1.0, "the server restarts and forgets what was only in its memory"),
    "partition": Fault(1.5, "one direction between a device and the server is cut for a while"),
    "restore": Fault(3.0, "the server's database is replaced by a backup, an older one maybe, maybe again"),
    "server_clock_jumps": Fault(1.0, "the server's clock is set, by a second or by ten years"),
    "server_clock_stops": Fault(0.7, "the server's clock stands still"),
    "device_clock_jumps": Fault(1.0, "a device's clock is set"),
    "device_clock_stops": Fault(0.7, "a device's clock stands still"),
    "version_off": Fault(
        1.0, "a wire version is switched off for a while: refused or removed in the process, or decided in the database"
    ),
    "power_cut": Fault(1.5, "a device loses power while it stores an answer"),
    "device_restore": Fault(1.5, "a device is restored from its own backup"),
    "clone": Fault(1.2, "a device's disk is copied, and both go on under one name"),
    "forget": Fault(1.0, "a device loses a row that it was told, and nothing tells it so but the digest"),
    "wipe": Fault(0.7, "a device starts again with nothing, under its name"),
    "downgrade": Fault(1.2, "a device runs another program that speaks another wire version, and back"),
}
#: What an operator does in the middle of all that; the rates are shares of histories.
BY_THE_OPERATOR: Final[Mapping[str, Fault]] = {
    "rollout": Fault(
        0.3,
        "a wire version is rolled out and taken back, also within a request; who can, speaks what its graph is given",
    ),
}
#: What is wrong with the order of answers; the rates are shares of histories as well.
AMONG_ANSWERS: Final[Mapping[str, Fault]] = {
    "stray": Fault(0.3, "a client of ours that waits for an answer gets one that is late, doubled or from long ago"),
}
#: What is drawn beside everything else, so that all else in the history of a seed is as it was without it.
BESIDE: Final[Mapping[str, Fault]] = {**BY_THE_OPERATOR, **AMONG_ANSWERS}
FAULTS: Final[Mapping[str, Fault]] = {**ON_THE_WAY, **AT_THE_SERVER, **NOW_AND_THEN, **BESIDE}


def swarm(random: Random, names: Iterable[str] = FAULTS) -> dict[str, float]:
    """The faults that exist in one history, each with its rate there; about half of `names`, but for those that are
    drawn beside."""
    rates = {}
    for name in names:
        if name in BESIDE:
            continue
        exists, scale = random.random() < 0.5, 2 ** (random.random() * 3 - 1)
        if exists:
            rates[name] = min(FAULTS[name].rate * scale, 0.6 if name not in NOW_AND_THEN else 10.0)
    return rates
