"""The store port: what a transaction can read and write. Read `engine.py` to see it used.

A store holds graphs. Each graph is one log of immutable rows with its own seq, chain and digest (PROTOCOL 4); nothing
read or written through a transaction of one graph ever touches another (PROTOCOL 7.1). Beside the graphs it holds a few
small documents about all of them, such as which wire versions are served: read inside of transactions, changed by
themselves, by compare and set.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol

from .model import Document, Held, Reads, Writes


class Transaction(Protocol):
    """One view of one graph: what it reads is one snapshot, what it writes becomes visible whole or not at all."""

    async def read(self, reads: Reads) -> Held:
        """Everything that `reads` names, rows written earlier in this transaction included."""

    async def write(self, writes: Writes) -> None:
        """Add rows, close rows, move the head, remember the device. Raises `StoreError` if it cannot."""


class Store(Protocol):
    """Where graphs are kept. `inbetweenies.testing.StoreTests` says what a store must do."""

    def transaction(self, graph: str, *, write: bool) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction on `graph`, which exists from the first time it is named.

        Leaving the block commits durably; an exception rolls everything back. With `write`, transactions on one graph
        run one after another; several may become durable together, and each is left when its own rows are. Without,
        `write()` keeps only the device hint (which may be forgotten), and readers see the last commit without waiting.

        Raises:
            StoreUndone: nothing was applied, because of another writer; run the whole block once more.
            StoreBusy, StoreFull, StoreCorrupt: nothing was applied.
        """

    async def document(self, name: str) -> Document:
        """The document `name` as it was last put; of one that never was, revision 0 and an empty body.

        Raises:
            StoreBusy, StoreCorrupt: it could not be read.
        """

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        """Put `body` in the place of the document that has this `revision`; then it has the next. False, and nothing
        is changed, if it has another one by now. True means that it is durable, and seen by every transaction that
        begins from now on.

        Raises:
            StoreBusy, StoreFull, StoreCorrupt: nothing was changed.
        """

    async def graph_names(self) -> tuple[str, ...]:
        """The names of all graphs that there are, sorted.

        Raises:
            StoreBusy, StoreCorrupt: they could not be read.
        """

    async def close(self) -> None:
        """Let go of files and connections. Committed rows are already safe."""
