"""A store of your own, and the proof that it is one: a log of JSON lines, tested by the suite that ships with the port.

    python examples/own_store.py          # the same as: pytest examples/own_store.py

Reads are answered from memory; what this store adds is that each commit is one line at the end of a file, on the disk
before it counts, read again at the start. For one process; a database shared by several is `SqliteStore`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import pytest

from inbetweenies import MemoryStore, StoreError
from inbetweenies.model import Document, Head, Held, Reads, Writes
from inbetweenies.store import Store
from inbetweenies.stores import BaseTransaction
from inbetweenies.testing.store_tests import StoreTests


class Commit(msgspec.Struct, tag=True):
    """One line of the file: what one transaction wrote to a graph, and the head of that graph afterwards."""

    graph: str
    writes: tuple[Writes, ...]
    head: Head


class Put(msgspec.Struct, tag=True):
    """Another kind of line: a document of the store as a whole."""

    name: str
    revision: int
    body: bytes


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Commit | Put).decode


class JsonLinesStore:
    """The port (`inbetweenies.store.Store`): `transaction`, two methods for documents, and `close`."""

    def __init__(self, path: Path, *, fsync: Callable[[int], None] = os.fsync) -> None:
        self._memory = MemoryStore()
        self._lock = threading.Lock()
        self._putting = threading.Lock()
        self._named: set[str] = set()
        self._fsync = fsync
        self._file = path.open("a+b")
        self._file.seek(0)
        end = 0
        for line in self._file:
            # A last line without an end was torn by a crash, so its commit was never acknowledged to anybody.
            if line.endswith(b"\n"):
                finish(self._replay(_decode(line)))
                end += len(line)
        self._file.truncate(end)

    async def _replay(self, line: Commit | Put) -> None:
        if isinstance(line, Put):
            await self._memory.put_document(line.name, line.body, revision=line.revision)
            return
        async with self._memory.transaction(line.graph, write=True) as tx:
            for writes in (*line.writes, Writes(head=line.head)):
                await tx.write(writes)
        self._named.add(line.graph)

    def transaction(self, graph: str, *, write: bool) -> JsonLinesTransaction:
        return JsonLinesTransaction(self, graph, self._memory.transaction(graph, write=write), write=write)

    async def document(self, name: str) -> Document:
        return await self._memory.document(name)

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        with self._putting:  # compare, write the line, set: one at a time
            if (await self._memory.document(name)).revision != revision:
                return False
            self.append(Put(name=name, revision=revision, body=body))
            return await self._memory.put_document(name, body, revision=revision)

    async def graph_names(self) -> tuple[str, ...]:
        return await self._memory.graph_names()

    def name(self, graph: str, head: Head) -> None:
        """A graph exists, with the epoch it has, from the first time it is named; whoever read it may rely on that."""
        if graph not in self._named:
            self.append(Commit(graph=graph, writes=(), head=head))
            self._named.add(graph)

    def append(self, commit: Commit | Put) -> None:
        """Put a line on the disk, or raise and leave the file as it was."""
        with self._lock:  # writers of one graph take turns, those of different graphs need not
            end = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(_encode(commit) + b"\n")
                self._file.flush()
                self._fsync(self._file.fileno())
            except OSError as error:
                with suppress(OSError):
                    self._file.truncate(end)
                raise StoreError(f"expected to write a commit; the system says: {error.strerror}") from error

    async def close(self) -> None:
        await self._memory.close()
        self._file.close()


class JsonLinesTransaction:
    """A transaction of the memory store that writes its line before it commits there."""

    def __init__(self, store: JsonLinesStore, graph: str, inner: BaseTransaction, *, write: bool) -> None:
        self._store, self._graph, self._inner, self._durable = store, graph, inner, write
        self._writes: list[Writes] = []
        self._failed = False

    async def __aenter__(self) -> Self:
        await self._inner.__aenter__()
        try:
            self._store.name(self._graph, (await self._inner.read(Reads())).head)
        except StoreError as failed:
            await self._inner.__aexit__(type(failed), failed, None)
            raise
        return self

    async def read(self, reads: Reads) -> Held:
        try:
            return await self._inner.read(reads)
        except Exception:
            self._failed = True
            raise

    async def write(self, writes: Writes) -> None:
        try:
            await self._inner.write(writes)
        except Exception:
            self._failed = True  # even if the caller goes on, half a transaction must not become durable
            raise
        self._writes.append(writes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Without `write` only a device's hint is left, and hints may be forgotten.
        if kind is None and self._durable and self._writes and not self._failed:
            head = (await self._inner.read(Reads())).head
            try:
                self._store.append(Commit(graph=self._graph, writes=tuple(self._writes), head=head))
            except StoreError as failed:
                await self._inner.__aexit__(type(failed), failed, None)  # undone in memory as well
                raise
        await self._inner.__aexit__(kind, error, trace)


def finish(work: Coroutine[None, None, None]) -> None:
    """Run what never waits to its end, without an event loop."""
    with suppress(StopIteration):
        work.send(None)


class TestJsonLinesStore(StoreTests):
    """All there is to write: how to make one, and how to open it again after a crash. The tests are inherited."""

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.path_of: dict[Store, Path] = {}
        self.tmp_path = tmp_path

    def make_store(self) -> Store:
        return self.open(self.tmp_path / f"{len(self.path_of)}.jsonl")

    def reopen(self, store: Store) -> Store:
        path = self.path_of[store]
        finish(store.close())
        return self.open(path)

    def open(self, path: Path) -> Store:
        # The suite makes thousands of commits; that the disk keeps them is not the question here.
        store = JsonLinesStore(path, fsync=lambda _: None)
        self.path_of[store] = path
        return store


if __name__ == "__main__":
    sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]))
