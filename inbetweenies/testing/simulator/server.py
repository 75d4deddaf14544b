"""The machine of the server: what survives what on it, and how it fails.

What the server knows is held by *holders*: the database, which a backup brings back as it was; and whatever else a
build keeps beside it (a journal of acknowledged writes, a sidecar file), which a restore leaves alone. A crash leaves
of every holder what was durable. Read `Server`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, Protocol, Self, TypeAlias

from ...errors import LocalProtocolError, RemoteProtocolError, StoreError, StoreFull
from ...exchange import Reply as Answer
from ...model import Context, Document, Held, Reads, Writes
from ...registry import DOCUMENT, Decision, Decisions, decisions_in, document_of
from ...rollout.kept import Cause
from ...rollout.states import DOCUMENT as ROLLOUTS
from ...rollout.states import document_of as rollouts_body
from ...rollout.states import rollouts_in
from ...store import Store, Transaction
from ...stores.memory import MemoryStore
from ..fleet_base import driven
from .outside import JOURNAL_FAULTS, Crash, KeptMemory, MemoryKeeper, WeakJournal

#: Where a request can meet a fault: see `faults.AT_THE_SERVER`.
BEFORE, AFTER, FULL, IO = "crash_before_commit", "crash_after_commit", "disk_full", "io_error"

#: What an operator does to a rollout; going on comes most often.
Roll: TypeAlias = Literal["start", "advance", "hold", "resume", "roll_back"]
ROLLS: Final[tuple[Roll, ...]] = ("start", "advance", "advance", "advance", "advance", "hold", "resume", "roll_back")

#: A RAM disk where there is one: what is looked at here is not how durable a disk is.
_RAM: Final = Path("/dev/shm")  # noqa: S108 - only ever a folder of its own in it


class Handler(Protocol):
    """Whatever serves sync messages as bytes. `inbetweenies.ProtocolFallback` is one."""

    async def handle(self, body: bytes, *, context: Context) -> Answer:
        """Serve one message; a refusal has another status than 200."""


# --- the database -------------------------------------------------------------------------------------------------


class Database(ABC):
    """The holder that backups are made of. `store` is the open store over it."""

    store: Store
    #: What a server over it can keep outside of it: of ``journal`` and ``heads``.
    keeps: ClassVar[frozenset[str]] = frozenset()
    #: Whether a disk that fails can do so while it is read, too.
    reads_fail: ClassVar[bool] = False

    def start(self, clock: Callable[[], int], kept: frozenset[str]) -> None:  # noqa: B027 - most keep nothing outside
        """A server process starts over what is here, and looks at what is `kept` outside."""

    @abstractmethod
    def reopen(self) -> None:
        """The process died: open what was durable."""

    @abstractmethod
    def backup(self) -> Any:
        """An image of what is committed."""

    @abstractmethod
    def restore(self, image: Any) -> None:
        """Put an image in its place and open it; the image can be used again. None is an empty one."""

    def lose(self, what: Iterable[str]) -> None:  # noqa: B027 - most keep nothing outside
        """What is kept outside is gone, too."""

    def fail(self, fault: str | None) -> bool:
        """Let the next request meet a fault, or no fault any more. False: the simulator shall raise it instead."""
        return False

    def close(self) -> None:  # noqa: B027 - most have nothing to let go of
        """The history is over."""


class Folder:
    """Files of one history."""

    def __init__(self) -> None:
        ram = _RAM if _RAM.is_dir() and os.access(_RAM, os.W_OK) else None
        self.path = Path(tempfile.mkdtemp(prefix="inbetweenies-", dir=ram))
        self.database = self.path / "home.db"
        self.journal = self.path / "home.db.journal"

    def lose(self, what: Iterable[str]) -> None:
        """Some of what is kept beside the database."""
        for name in what:
            shutil.rmtree(self.path / f"home.db.{name}", ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class MemoryDatabase(Database):
    """A `MemoryStore`. Its copies hold what was committed; journal and ends of logs are real files."""

    keeps = frozenset({"journal", "heads"})

    def __init__(self) -> None:
        self._made = 0
        self._folder: Folder | None = None
        self._journal: WeakJournal | None = None
        self._inner = KeptMemory(MemoryStore(self._epoch), {})
        self.store = self._inner.memory

    def _epoch(self) -> str:
        self._made += 1
        return f"{self._made:016x}"

    def start(self, clock: Callable[[], int], kept: frozenset[str]) -> None:
        self.store = self._inner.memory
        if not kept:
            return
        self._folder = self._folder or Folder()
        self._journal = WeakJournal(self._folder.journal) if "journal" in kept else None
        self._inner.keeper = MemoryKeeper(
            self._inner, self._folder.database, journal=self._journal, heads="heads" in kept, clock=clock
        )
        self._inner.keeper.start()
        self.store = self._inner

    def _stop(self) -> None:
        if self.store is self._inner:
            self._inner.keeper.close()
            self._journal = None

    def reopen(self) -> None:
        self._stop()
        self._inner = self._inner.copy()

    def backup(self) -> KeptMemory:
        return self._inner.copy()

    def restore(self, image: KeptMemory | None) -> None:
        self._stop()
        self._inner = KeptMemory(MemoryStore(self._epoch), {}) if image is None else image.copy()

    def lose(self, what: Iterable[str]) -> None:
        if self._folder is not None:
            self._folder.lose(what)

    def fail(self, fault: str | None) -> bool:
        if self._journal is not None and fault in (None, *JOURNAL_FAULTS):
            self._journal.fault = fault
        return fault in JOURNAL_FAULTS

    def close(self) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.close()


# --- faults in the middle of a request ----------------------------------------------------------------------------


class FaultyStore:
    """A store whose next write transaction meets the fault that is `armed`, if any; `met` says whether one did. What is
    to happen `before` the next transaction happens once."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.armed: str | None = None
        self.met = False
        self.before: Callable[[], object] | None = None

    def transaction(self, graph: str, *, write: bool) -> AbstractAsyncContextManager[Transaction]:
        before, self.before = self.before, None
        if before is not None:
            before()
        inner = self.inner.transaction(graph, write=write)
        return inner if self.armed is None else _Faulty(inner, self)

    async def document(self, name: str) -> Document:
        return await self.inner.document(name)

    async def put_document(self, name: str, body: bytes, *, revision: int) -> bool:
        return await self.inner.put_document(name, body, revision=revision)

    async def graph_names(self) -> tuple[str, ...]:
        return await self.inner.graph_names()

    async def close(self) -> None:
        await self.inner.close()


class _Faulty(AbstractAsyncContextManager[Transaction]):
    def __init__(self, inner: AbstractAsyncContextManager[Transaction], store: FaultyStore) -> None:
        self._inner = inner
        self._store = store
        self._tx: Transaction

    async def __aenter__(self) -> Self:
        self._tx = await self._inner.__aenter__()
        return self

    async def read(self, reads: Reads) -> Held:
        return await self._tx.read(reads)

    async def write(self, writes: Writes) -> None:
        if self._store.armed == IO and writes.rows:
            self._store.met = True
            raise StoreError("the disk failed")
        await self._tx.write(writes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None:
            fault = self._store.armed
            self._store.met = fault in (BEFORE, AFTER, FULL) or self._store.met
            if fault in (BEFORE, FULL):
                error = Crash() if fault == BEFORE else StoreFull("the disk is full")
                await self._inner.__aexit__(type(error), error, None)
                raise error
        left = await self._inner.__aexit__(kind, error, trace)
        if kind is None and self._store.armed == AFTER:
            raise Crash
        return left


# --- the process --------------------------------------------------------------------------------------------------


class Server:
    """One server process over its holders. `serve` answers, refuses, or dies.

    Args:
        database: the holder that backups restore.
        beside: the other holders by name; a restore does not touch them.
        make: builds the handler under test; called again after each crash and each restore.
        clock: what this machine takes for the time.
        kept: what is kept outside of the database, of ``journal`` and ``heads``.
    """

    def __init__(
        self,
        database: Database,
        beside: Mapping[str, Any],
        make: Callable[[Store, Callable[[], int], Mapping[str, Any]], Any],
        clock: Callable[[], int],
        kept: frozenset[str] = frozenset(),
    ) -> None:
        self.database = database
        self.beside = beside
        self.clock = clock
        self._make = make
        self._kept = kept
        #: How often a backup was put in place.
        self.generation = 0
        #: How often a process has started.
        self.starts = 0
        self._switched_off: dict[str, str] = {}
        self._decides = False
        self._boot()

    def _boot(self) -> None:
        self.starts += 1
        self.database.start(self.clock, self._kept)
        self._faulty = FaultyStore(self.database.store)
        self.handler: Any = self._make(self._faulty, self.clock, self.beside)
        self._all: dict[str, Any] = dict(getattr(self.handler, "handlers", {}))
        self._switch()

    def serve(self, body: bytes, graph: str, fault: str | None = None) -> tuple[Answer | None, bool]:
        """The answer, None if the server died over it; and whether the `fault` was met."""
        faulty = self._faulty
        faulty.met = real = False
        if fault is not None:
            real = self.database.fail(fault)
            faulty.armed = None if real else fault
        try:
            answer: Answer = driven(self.handler.handle(body, context=Context(graph=graph, now=self.clock())))
        except Crash:
            self.crash()
            return None, True
        finally:
            faulty.armed = None
            if real:
                self.database.fail(None)
        return answer, faulty.met or (real and answer.status >= 500)

    def read(self, graph: str, reads: Reads) -> Held:
        """What the store holds, past all faults."""

        async def read() -> Held:
            async with self.database.store.transaction(graph, write=False) as tx:
                return await tx.read(reads)

        return driven(read())

    # what happens to it

    def crash(self) -> None:
        """The process dies and starts again."""
        self.database.reopen()
        self._boot()

    def restore(self, image: Any, lose: Iterable[str] = ()) -> None:
        """The database is replaced by a backup, and the process starts anew over it and what stands beside it, less
        what is lost as well."""
        self.database.restore(image)
        self.database.lose(lose)
        self.generation += 1
        self._boot()

    # wire versions

    @property
    def versions(self) -> tuple[str, ...]:
        """The wire versions that this build serves when all are on."""
        return tuple(self._all)

    def serves(self, wire: str) -> bool:
        """Whether a wire version is on."""
        return wire not in self.off and (not self._all or wire in self._all)

    @property
    def off(self) -> dict[str, str]:
        """The wire versions that are not served, and how they were switched off."""
        # What was decided is kept in the database, and goes back with it.
        return dict.fromkeys(self._decided(), "decided") | self._switched_off

    def switch_off(self, wire: str, how: str) -> bool:
        """Stop serving a wire version: ``refused`` or ``removed`` by this process, or ``decided`` for all of them. One
        is always left on."""
        if wire not in self._all or len(self.off.keys() | {wire}) == len(self._all):
            return False
        if how == "decided":
            self._decide({*self._decided(), wire})
        else:
            self._switched_off[wire] = how
        self._switch()
        return True

    def switch_on(self, wire: str) -> None:
        """Serve it again."""
        self._switched_off.pop(wire, None)
        if wire in (decided := self._decided()):
            self._decide(decided - {wire})
        self._switch()

    # rollouts

    def roll(self, verb: Roll, *, in_a_request: bool) -> bool:
        """Move the rollout of the newest wire version, as an operator does; or let that happen between the routing of
        the next request and its transaction. Whether there is a rollout that can be moved so."""
        if len(self._all) < 2 or not hasattr(self.handler, "registry_for"):
            return False
        if in_a_request:
            self._faulty.before = partial(self._roll, verb)
            return True
        return self._roll(verb)

    def _roll(self, verb: Roll) -> bool:
        # What was decided is in the database, and goes back with it.
        document = driven(self.database.store.document(ROLLOUTS))
        rollouts, newest = rollouts_in(document), max(self._all, key=lambda name: self._all[name].wire.rank)
        cause = Cause(actor="operator", reason="a rehearsal", at=self.clock())
        try:
            if verb == "start":
                after = rollouts.started(newest, steps=(500_000,), cause=cause)
            else:
                after = rollouts.moved(newest, verb, fence=rollouts.of(newest).fence, cause=cause)
        except LocalProtocolError:
            return False
        body = rollouts_body(after)
        return driven(self.database.store.put_document(ROLLOUTS, body, revision=document.revision))

    def gives(self, wire: str, graph: str) -> bool:
        """Whether devices of a graph are told that they may speak a wire version."""
        if not hasattr(self.handler, "registry_for"):
            return True
        driven(self.handler.refresh())
        return wire not in self._all or wire in self.handler.registry_for(graph).offered

    def _switch(self) -> None:
        if not self._all:
            return
        if len(self.off) == len(self._all):
            # A backup can bring back a decision that leaves nothing with what was switched off since.
            self._switched_off.clear()
        removed = {wire for wire, how in self._switched_off.items() if how == "removed"}
        self.handler.handlers = {name: each for name, each in self._all.items() if name not in removed}
        self.handler.disabled = frozenset(self._switched_off.keys() - removed)

    def _decided(self) -> set[str]:
        """The wire versions that an operator has switched off, as the database says."""
        return set(decisions_in(driven(self.database.store.document(DOCUMENT))).versions) if self._decides else set()

    def _decide(self, off: set[str]) -> None:
        self._decides = True
        revision = driven(self.database.store.document(DOCUMENT)).revision
        body = document_of(Decisions(versions={wire: Decision(state="disabled") for wire in sorted(off)}))
        driven(self.database.store.put_document(DOCUMENT, body, revision=revision))


class DictHandler:
    """A handler that only has ``handle_sync_request(dict)``, behind the call that `Server` makes."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    async def handle(self, body: bytes, *, context: Context) -> Answer:
        import msgspec

        try:
            asked = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # Bytes are the shell's business, and a dict handler has none.
            told = RemoteProtocolError(code="malformed_body", expected="JSON", got="none")
            return Answer(status=told.status, body=b'{"error":"malformed_body"}', notice=str(error))
        answer = await self._handler.handle_sync_request(asked)
        return Answer(status=400 if "error" in answer else 200, body=msgspec.json.encode(answer))
