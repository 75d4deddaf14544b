"""What is known outside of the servers: every request, every write that was acknowledged, and who was told what."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal

from msgspec import Struct


class Request(Struct, frozen=True, kw_only=True):
    """One request of a client.

    Attributes:
        at: when it was sent, in seconds of a clock that never runs backwards.
        seconds: how long it took.
        status: of its answer; 0 if there was none that could be used.
        why: what went wrong, in words.
    """

    client: str
    graph: str
    at: float
    seconds: float
    status: int
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


class Acked(Struct, frozen=True, kw_only=True):
    """One write that a server acknowledged.

    Attributes:
        version: of the row, where its client made it; None where the server did, from a record.
        says: the fields that were written, and their values, which nobody else ever writes.
    """

    client: str
    graph: str
    kind: Literal["entity", "edge"]
    id: str
    version: str | None
    says: dict[str, Any]


class Window(Struct, kw_only=True):
    """A time in which requests of these graphs, of all if None, are expected to fail."""

    since: float
    until: float = float("inf")
    graphs: frozenset[str] | None = None

    def covers(self, request: Request) -> bool:
        """Whether a request that failed was one of these: it was under way then."""
        during = request.at <= self.until and request.at + request.seconds >= self.since
        return during and (self.graphs is None or request.graph in self.graphs)


class Keepsake(Struct, frozen=True, kw_only=True):
    """What only the newer version can say of something, which nobody changes after it was said."""

    graph: str
    kind: Literal["entity", "edge"]
    id: str
    says: dict[str, Any]


class Ledger:
    """All of that."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.acked: list[Acked] = []
        self.keepsakes: list[Keepsake] = []
        self.expected: list[Window] = []
        self.restores: list[Window] = []
        #: By client that speaks several versions: when each sync began and ended, and in which version it was served.
        self.served: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        #: Edits that a deployed client has lost by itself before it sent them.
        self.overwritten = 0

    @contextmanager
    def failing(self, graphs: Iterable[str] | None = None) -> Iterator[Window]:
        """While this lasts, failures of these graphs are expected; of all graphs, nobody can be served at all."""
        window = Window(since=time.monotonic(), graphs=None if graphs is None else frozenset(graphs))
        self.expected.append(window)
        if graphs is None:
            self.restores.append(window)
        try:
            yield window
        finally:
            window.until = time.monotonic()

    def kept(self) -> list[Keepsake]:
        """What only the newer version can say, of which a server has acknowledged that it has it."""
        acked = defaultdict(list)
        for one in self.acked:
            acked[one.graph, one.kind, one.id].append(one.says)
        return [
            one
            for one in self.keepsakes
            if any(one.says.items() <= says.items() for says in acked[one.graph, one.kind, one.id])
        ]

    def failures(self) -> list[Request]:
        """Requests that failed and should not have."""
        return [one for one in self.requests if not one.ok and not any(each.covers(one) for each in self.expected)]

    def longest_gap(self, clients: Iterable[str], since: float, until: float) -> tuple[float, str]:
        """The longest time that one of `clients` went without a successful answer, and who that was; restores are left
        out of it."""
        times: dict[str, list[float]] = {client: [] for client in clients}
        for one in self.requests:
            if one.ok and one.client in times:
                times[one.client].append(one.at + one.seconds)
        gaps = [
            (end - start, client)
            for client, answered in times.items()
            for start, end in pairwise(sorted([since, until, *answered]))
            if not any(start <= window.until and end >= window.since for window in self.restores)
        ]
        return max(gaps, default=(0.0, ""))

    def told(self, client: str, version: str, after: float) -> float | None:
        """How long after `after` a client was first told of `version` by a sync that began since; None if not yet."""
        syncs = self.served[client]
        return next((end - after for begin, end, served in syncs if begin >= after and served == version), None)


def quantile(values: Iterable[float], share: float) -> float | None:
    """The least of `values` that this share of all do not exceed; None if there are none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else None
