"""What a server keeps outside of its database, under simulated machines: a journal that can fail, and a store in memory
that has one. Every rule is that of `stores.keeper`, every byte that of `stores.journal` and `stores.heads`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from msgspec.structs import replace

from ...errors import LocalProtocolError
from ...model import Document, Head, Held, Reads, Writes
from ...stores import BaseTransaction, folded
from ...stores.journal import Commit, Discard, Journal, Opening
from ...stores.keeper import Committed, Keeper, Known
from ...stores.memory import MemoryStore

#: How a journal can fail: see `faults.AT_THE_SERVER`.
CRASH_BEFORE, CRASH_IN, NO_ROOM, NO_SYNC = "crash_before_journal", "crash_in_journal", "journal_full", "journal_sync"
JOURNAL_FAULTS: Final = frozenset({CRASH_BEFORE, CRASH_IN, NO_ROOM, NO_SYNC})
#: Few, so that a short history fills several.
SEGMENT_BYTES: Final = 6_000


class Crash(BaseException):
    """The server's process is gone. Not an `Exception`: nothing in the product may catch it."""


class WeakJournal(Journal):
    """A journal that meets `fault` when it is written to next."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, segment_bytes=SEGMENT_BYTES, sync=self._durable)
        self.fault: str | None = None

    def append(self, records: Sequence[Commit | Discard], *, opening: Callable[[], Opening], durable: bool) -> None:
        if self.fault == CRASH_BEFORE:
            raise Crash
        super().append(records, opening=opening, durable=durable)

    def _write(self, descriptor: int, data: bytes) -> None:
        if self.fault in (CRASH_IN, NO_ROOM):
            os.write(descriptor, data[: len(data) // 2])
            if self.fault == CRASH_IN:
                raise Crash
            raise OSError(errno.ENOSPC, "no space left on the device")
        super()._write(descriptor, data)

    def _durable(self, descriptor: int) -> None:
        # What is durable is not simulated here: a crash is that of a process.
        if self.fault == NO_SYNC:
            raise OSError(errno.EIO, "input/output error")


class KeptMemory:
    """A `MemoryStore` with the births of its graphs, and with a keeper."""

    def __init__(self, memory: MemoryStore, births: dict[str, str]) -> None:
        self.memory = memory
        self.births = births
        self.keeper: MemoryKeeper

    @property
    def graphs(self) -> dict[str, Any]:
        """What the store holds, past all transactions, as a keeper of a file sees its tables."""
        return self.memory._graphs  # noqa: SLF001 - nothing but a keeper is to see this

    def copy(self) -> KeptMemory:
        """As `MemoryStore.copy`."""
        return KeptMemory(self.memory.copy(), dict(self.births))

    def transaction(self, graph: str, *, write: bool) -> AbstractAsyncContextManager[BaseTransaction | Kept]:
        write = write or self.keeper.lacks(graph)
        inner = self.memory.transaction(graph, write=write)
        return Kept(inner, graph, self) if write else inner

    async def document(self, name: str) -> Document:
        return await self.memory.document(name)

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        return await self.memory.put_document(name, body, revision=revision)

    async def graph_names(self) -> tuple[str, ...]:
        return await self.memory.graph_names()

    async def close(self) -> None:
        await self.memory.close()


class Kept(AbstractAsyncContextManager["Kept"]):
    """A transaction of which the keeper hears, once it is committed and before anybody is told."""

    def __init__(self, inner: BaseTransaction, graph: str, store: KeptMemory) -> None:
        self._inner = inner
        self._graph = graph
        self._store = store
        self._written: list[Writes] = []
        self._before: Head
        self._head: Head

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        self._before = self._head = (await self._inner.read(Reads())).head
        self._store.births.setdefault(self._graph, self._head.epoch)
        return self

    async def read(self, reads: Reads) -> Held:
        return await self._inner.read(reads)

    async def write(self, writes: Writes) -> None:
        await self._inner.write(writes)
        self._written.append(folded(self._head, writes))
        self._head = writes.head or self._head

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)
        if kind is None:
            committed = Committed(
                graph=self._graph,
                birth=self._store.births[self._graph],
                before=self._before.cursor,
                head=self._head,
                writes=tuple(self._written),
            )
            self._store.keeper.committed([committed])


class MemoryKeeper(Keeper):
    """A keeper of a store that is not a file."""

    def __init__(
        self, store: KeptMemory, path: Path, *, journal: Journal | None, heads: bool, clock: Callable[[], int]
    ) -> None:
        super().__init__(store, path, _no_file, journal=journal, heads=heads, clock=clock)
        self._kept = store

    def _graphs(self) -> dict[str, Known]:
        births, graphs = self._kept.births, self._kept.graphs
        return {
            name: Known(birth=births.setdefault(name, graph.head.epoch), head=graph.head)
            for name, graph in graphs.items()
        }

    def _adopt(self, graph: str, birth: str, epoch: str) -> None:
        self._kept.memory.transaction(graph, write=False)
        made = self._kept.graphs[graph]
        if made.head.seq == 0:
            made.head = replace(made.head, epoch=epoch)
            self._kept.births[graph] = birth

    def _current(self, graph: str) -> list[bytes]:
        return [row.hash for row in self._kept.graphs[graph].log if row.until is None]

    def _closed(self, graph: str, after: int, upto: int) -> tuple[tuple[int, int], ...]:
        rows = self._kept.graphs[graph].log[:after]
        closed = [(row.seq, row.until) for row in rows if row.until is not None and after < row.until <= upto]
        return tuple(sorted(closed, key=lambda pair: pair[1]))


def _no_file(doing: str) -> AbstractContextManager[sqlite3.Connection]:
    raise LocalProtocolError(f"expected a file to {doing}; got a store in memory")
