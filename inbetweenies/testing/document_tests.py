"""What a store must do with its documents: the part of `StoreTests` that needs no graph. Subclass `StoreTests`."""

# ruff: noqa: SIM300 - expected == actual, in this order

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from ..errors import LocalProtocolError
from ..model import Document, Reads
from ..store import Store

T = TypeVar("T")


async def documents(store: Store, *names: str, graph: str = "g") -> dict[str, Document]:
    """These documents as a transaction for reading sees them."""
    async with store.transaction(graph, write=False) as tx:
        return (await tx.read(Reads(documents=names))).documents


class DocumentTests:
    """Documents are of the store as a whole: read by themselves or in any transaction, put by compare and set."""

    run: Callable[[Coroutine[Any, Any, Any]], Any]
    make_store: Callable[[], Store]
    reopen: Callable[[Store], Store | None]

    def test_a_document_that_was_never_put_is_empty(self, store: Store) -> None:
        assert Document() == self.run(store.document("flags"))
        assert {"flags": Document()} == self.run(documents(store, "flags"))

    @pytest.mark.parametrize("body", [b"{}", b"", b"\0\xff", b"x" * 100_000])
    def test_a_document_comes_back_to_the_byte(self, store: Store, body: bytes) -> None:
        assert self.run(store.put_document("flags", body, revision=0))

        assert Document(revision=1, body=body) == self.run(store.document("flags"))
        assert {"flags": Document(revision=1, body=body)} == self.run(documents(store, "flags"))

    def test_a_document_is_only_changed_by_who_knows_its_revision(self, store: Store) -> None:
        outcomes = [
            self.run(store.put_document("flags", body, revision=revision))
            for body, revision in ((b"a", 1), (b"b", 0), (b"c", 0), (b"d", 2), (b"e", 1), (b"f", 1))
        ]

        assert [False, True, False, False, True, False] == outcomes
        assert Document(revision=2, body=b"e") == self.run(store.document("flags"))

    def test_documents_do_not_touch_one_another_or_any_graph(self, store: Store) -> None:
        head = self.run(self._head(store))
        for name in ("flags", "Flags", "flags ", "é", "'; DROP TABLE documents; --"):
            assert self.run(store.put_document(name, name.encode(), revision=0))

        assert Document(revision=1, body=b"Flags") == self.run(store.document("Flags"))
        assert head == self.run(self._head(store))
        assert self.run(documents(store, "flags", graph="g")) == self.run(documents(store, "flags", graph="other"))

    async def _head(self, store: Store) -> Any:
        async with store.transaction("g", write=False) as tx:
            return (await tx.read(Reads())).head

    def test_putting_a_document_makes_no_graph(self, store: Store) -> None:
        fresh = self.make_store()
        assert self.run(fresh.put_document("flags", b"x", revision=0))
        first = self.run(self._head(fresh))

        assert (0, first) == (first.seq, self.run(self._head(fresh)))
        self.run(fresh.close())

    def test_all_graphs_that_were_named_are_listed_by_name(self, store: Store) -> None:
        for graph in ("g", "other", "G", "é", "a b"):
            self.run(documents(store, graph=graph))
        self.run(store.put_document("flags", b"x", revision=0))

        assert ("G", "a b", "g", "other", "é") == self.run(store.graph_names())

    def test_a_reader_keeps_the_document_it_began_with(self, store: Store) -> None:
        async def script() -> tuple[Document, Document]:
            await store.put_document("flags", b"old", revision=0)
            async with store.transaction("g", write=False) as tx:
                await tx.read(Reads())
                await store.put_document("flags", b"new", revision=1)
                seen = (await tx.read(Reads(documents=("flags",)))).documents["flags"]
            return seen, (await documents(store, "flags"))["flags"]

        assert (Document(revision=1, body=b"old"), Document(revision=2, body=b"new")) == self.run(script())

    def test_a_writer_sees_the_document_as_it_is_when_it_begins(self, store: Store) -> None:
        async def script(revision: int) -> Document:
            await store.put_document("flags", b"%d" % revision, revision=revision)
            async with store.transaction("g", write=True) as tx:
                return (await tx.read(Reads(documents=("flags",)))).documents["flags"]

        for revision in range(3):
            assert Document(revision=revision + 1, body=b"%d" % revision) == self.run(script(revision))

    def test_of_several_who_put_at_once_one_succeeds_each_time(self, store: Store) -> None:
        won: list[bool] = []

        def count() -> None:
            for _ in range(5):
                while True:
                    known = self.run(store.document("count"))
                    number = int(known.body or b"0") + 1
                    if self.run(store.put_document("count", b"%d" % number, revision=known.revision)):
                        won.append(True)
                        break

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert Document(revision=20, body=b"20") == self.run(store.document("count"))
        assert 20 == len(won)

    def test_a_closed_store_refuses_documents(self) -> None:
        store = self.make_store()
        self.run(store.close())
        with pytest.raises(LocalProtocolError):
            self.run(store.document("flags"))
        with pytest.raises(LocalProtocolError):
            self.run(store.put_document("flags", b"x", revision=0))

    def test_a_document_outlives_the_store(self) -> None:
        store = self.make_store()
        self.run(store.put_document("flags", b"a", revision=0))
        self.run(store.put_document("flags", b"b", revision=1))
        again = self.reopen(store)
        if again is not None:
            assert Document(revision=2, body=b"b") == self.run(again.document("flags"))
            self.run(again.close())
