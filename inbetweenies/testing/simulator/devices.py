"""Devices: programs that speak one wire version each, on a disk that can be copied, restored or wiped."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from inspect import iscoroutine
from typing import Any, Final

from ..fleet_base import Client, World
from ..fleet_clients import DeployedV2, ModernV2
from ..fleet_ends import KINDS
from ..fleet_replica import ReplicaStore
from ..fleet_v1 import V1
from .clock import Clock
from .network import Letter

#: What each program on one device is to begin to count with, so that two of them never make one version.
_COUNT: Final = 100_000


class Device:
    """One device under its name, and the program that runs on it now. `programs` are all that are installed.

    Attributes:
        twinned: more than one disk goes by this name, or an older one does again.
        exchange: counts what this device said; an answer counts only for the last thing that it said.
    """

    def __init__(
        self,
        number: int,
        kinds: tuple[str, ...],
        user: str,
        graph: str,
        world: World,
        clock: Clock,
        label: str = "",
        known: Mapping[str, type[Client]] = KINDS,
    ) -> None:
        self.number = number
        #: What it calls itself on the wire; devices with one disk share it.
        self.label = label or f"{kinds[0]}-{number}"
        self.user = user
        self.graph = graph
        self.clock = clock
        self.world = world
        self._known = known
        self.programs: list[Client] = [self._install(kind, index) for index, kind in enumerate(kinds)]
        self.running = 0
        self.exchange = 0
        self.twinned = False
        self.saves: list[list[Client]] = []
        self._loads = 0

    def _install(self, kind: str, index: int) -> Client:
        client = self._known[kind](self.label, self.world, user=self.user, skew=0)
        if isinstance(client, ModernV2 | DeployedV2):
            client.counter = index * _COUNT
        return client

    @property
    def client(self) -> Client:
        """The program that runs now."""
        return self.programs[self.running]

    def __str__(self) -> str:
        copied = "" if self.label.endswith(f"-{self.number}") else f"*{self.number}"
        program = f" as {self.client.kind}" if len(self.programs) > 1 else ""
        return f"{self.label}{copied}{program}"

    def switch(self) -> None:
        """Another of the installed programs is run; the one before keeps what it has on the disk."""
        self.client.restart()
        self.running = (self.running + 1) % len(self.programs)
        self.exchange += 1

    # its disk

    def save(self) -> None:
        """A backup of the whole disk."""
        self.saves.append([forked(client) for client in self.programs])

    def load(self, which: int) -> bool:
        """The disk as it was at a backup."""
        if not self.saves:
            return False
        self._put([forked(client) for client in self.saves[which % len(self.saves)]])
        return True

    def clone(self, number: int, world: World, clock: Clock) -> Device:
        """Another device with the same disk, and so the same name."""
        kinds = tuple(client.kind for client in self.programs)
        other = Device(number, kinds, self.user, self.graph, world, clock, self.label, self._known)
        other._put([forked(client) for client in self.programs])
        other.running = self.running
        self.twinned = True
        return other

    def wipe(self) -> None:
        """The disk is empty, the name is the same."""
        kinds = tuple(client.kind for client in self.programs)
        self._put([self._install(kind, index) for index, kind in enumerate(kinds)])

    def _put(self, programs: list[Client]) -> None:
        self.exchange += 1
        self.twinned = True
        self._loads += 1
        for client, before in zip(programs, self.programs, strict=True):
            client.world = self.world
            client.restart()
            if isinstance(client, V1) and isinstance(before, V1):
                # Nobody makes two edits at one microsecond, whatever disk they are made on.
                client.times = before.times
            if isinstance(client, DeployedV2):
                client.counter += 1_000 * (self._loads + 10 * self.number)
        self.programs = programs


def expects(device: Device, letter: Letter) -> bool:
    """Whether a device still waits for the answer to `letter`. It waits on a connection, which is gone with it."""
    return device.client.waiting and device.exchange == letter.exchange


def strays(device: Device, letter: Letter) -> bool:
    """Whether the answer to `letter` comes to a program that waits for the answer to another message of its own. Only
    ours can tell: what those that were deployed are handed is what their connection says."""
    client = device.client
    ours = isinstance(client, ModernV2) and client.kind == letter.kind
    return ours and client.waiting and device.exchange != letter.exchange


def forked(client: Client) -> Client:
    """A copy of a program and all that it keeps; rows and records are never changed in place, so they are shared."""
    other = copy(client)
    for name, value in vars(client).items():
        setattr(other, name, _forked(value))
    return other


def _forked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: set(each) if isinstance(each, set) else each for key, each in value.items()}
    if isinstance(value, list | set):
        return value.copy()
    if iscoroutine(value):
        return None  # what a program was about to do is not on its disk
    return value.fork() if isinstance(value, ReplicaStore) else value
