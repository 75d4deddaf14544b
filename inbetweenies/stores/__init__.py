"""Stores that come with the package, and the part of the port that every one of them obeys to the letter.

Read `BaseTransaction`: a store says how one transaction begins, reads, applies and ends; what is refused, what is
undone and which device hints live is decided here, once. Importing this loads neither `sqlite3` nor the stores.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec.structs import replace

from ..errors import LocalProtocolError, StoreBusy
from ..model import DIGEST_BITS, Device, Document, Head, Held, Reads, Row, Writes
from ..store import Store

if TYPE_CHECKING:
    from .memory import MemoryStore
    from .sqlite import SqliteStore

__all__ = ["BaseTransaction", "DeviceHints", "MemoryStore", "SqliteStore", "WriterGate", "amend", "folded"]

#: How many device hints a store keeps in memory; a hundred bytes each. A forgotten one costs some rows sent again.
DEVICE_HINTS_MAX: Final = 10_000

#: How long a writer waits for the one before it, in milliseconds, before it says that the store is busy.
BUSY_TIMEOUT_MS: Final = 5_000

_LAZY = {"MemoryStore": ".memory", "SqliteStore": ".sqlite"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)


async def amend(store: Store, name: str, change: Callable[[Document], bytes]) -> Document:
    """Change a document, whoever else does so at the same time; `change` may be called more than once.

    Raises:
        StoreError: the store could not; nothing was changed.
    """
    while True:
        known = await store.document(name)
        body = change(known)
        if await store.put_document(name, body, revision=known.revision):
            return Document(revision=known.revision + 1, body=body)


def folded(head: Head, writes: Writes) -> Writes:
    """`writes`, checked against the `head` that they extend, with the closing of their own rows put into these rows.

    What is left in `closed` concerns rows up to `head`. Whether those are current, and whether a row version is new,
    only the store can know.

    Raises:
        LocalProtocolError: the writes do not continue this log. Nothing was applied.
    """
    after = writes.head
    if after is None:
        if writes.rows or writes.closed:
            raise LocalProtocolError("expected the new head beside new or closed rows; got none")
        return writes
    if not 0 <= after.digest < 1 << DIGEST_BITS:
        raise LocalProtocolError(f"expected a digest of {DIGEST_BITS} bits without sign; got another number")
    _check_closed(head, after, writes.closed)
    _check_rows(head, after, writes.rows)
    # One push may hold several rows of one id, each taking the place of the one before.
    own = {seq: until for seq, until in writes.closed if seq > head.seq}
    if not own:
        return writes
    if any(writes.rows[seq - head.seq - 1].until is not None for seq in own):
        raise LocalProtocolError("expected a row to be closed once; got one that was closed already")
    rows = tuple(replace(row, until=own[row.seq]) if row.seq in own else row for row in writes.rows)
    return replace(writes, rows=rows, closed=tuple(pair for pair in writes.closed if pair[0] <= head.seq))


def _check_closed(head: Head, after: Head, closed: tuple[tuple[int, int], ...]) -> None:
    if len(dict(closed)) != len(closed):
        raise LocalProtocolError("expected a row to be closed once; got one twice")
    for seq, until in closed:
        # What takes a row's place is committed together with the closing, or a reader would see both or neither.
        if not (0 < seq < until and head.seq < until <= after.seq):
            raise LocalProtocolError(f"expected row {seq} to end at a later row of this commit; got {until}")


def _check_rows(head: Head, after: Head, rows: tuple[Row, ...]) -> None:
    if after.seq != head.seq + len(rows):
        raise LocalProtocolError(f"expected head.seq {head.seq + len(rows)}; got {after.seq}")
    seq, stamp = head.seq, head.stamp
    for row in rows:
        seq += 1
        if row.seq != seq:
            raise LocalProtocolError(f"expected a row with seq {seq}; got {row.seq}")
        # The newest seq at a time is found by halving, which is only right while both rise together (PROTOCOL 4.1).
        if row.stamp <= stamp:
            raise LocalProtocolError(f"expected a stamp after {stamp} in row {seq}; got {row.stamp}")
        stamp = row.stamp
        if row.until is not None and not seq <= row.until <= after.seq:
            raise LocalProtocolError(f"expected row {seq} to end in this commit or not at all; got {row.until}")
    if rows and (after.chain, after.stamp) != (rows[-1].chain, stamp):
        raise LocalProtocolError(f"expected the head to have chain and stamp of its row {seq}; got others")


class DeviceHints:
    """What readers learnt of devices, kept in memory only: the newest `size` of them. Safe to share between threads."""

    def __init__(self, size: int = DEVICE_HINTS_MAX) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[str, str], Device] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, graph: str, device: str, hint: Device) -> None:
        """Remember `hint`; the hint that was kept longest ago makes room."""
        with self._lock:
            self._kept[graph, device] = hint
            self._kept.move_to_end((graph, device))
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)

    def forget(self, graph: str, device: str) -> None:
        """A durable row says it better now."""
        with self._lock:
            self._kept.pop((graph, device), None)

    def over(self, graph: str, device: str, durable: Device | None) -> Device | None:
        """The durable row and the hint together: of each field the greater value."""
        with self._lock:
            hint = self._kept.get((graph, device))
        if hint is None or durable is None:
            return hint or durable
        return Device(
            served=max(hint.served, durable.served),
            acked=max(hint.acked, durable.acked),
            mark=max(hint.mark, durable.mark),
        )


class WriterGate:
    """Lets one writer in at a time. A thread that would wait for itself is told so instead of waiting for ever."""

    def __init__(self, timeout_ms: int = BUSY_TIMEOUT_MS) -> None:
        self._timeout_s = timeout_ms / 1000
        self._lock = threading.Lock()
        self._owner: int | None = None

    def enter(self) -> None:
        """Raises `StoreBusy`: this thread is inside already, or another one stayed inside for too long."""
        if self._owner == threading.get_ident():
            raise StoreBusy("expected the write transaction that this thread has open to end first; got a second one")
        if not self._lock.acquire(timeout=self._timeout_s):
            raise StoreBusy(f"expected the writer before to end within {self._timeout_s:g} s; it did not")
        self._owner = threading.get_ident()

    def leave(self) -> None:
        """Let the next one in."""
        self._owner = None
        self._lock.release()


class BaseTransaction(AbstractAsyncContextManager["BaseTransaction"]):
    """One transaction of one graph, as far as it is the same in every store.

    A store implements the methods with one leading underscore. None of them waits for an event loop. After an error
    inside `read` or `write` the transaction can only be left, and leaving it undoes it whole, even if the caller
    swallowed the error: half of what was asked for must not become durable.
    """

    def __init__(self, graph: str, *, write: bool, hints: DeviceHints) -> None:
        self.graph = graph
        self.writable = write
        self._hints = hints
        self._head: Head
        self._devices: dict[str, Device] = {}
        self._entered = False
        self._open = False
        self._error: BaseException | None = None

    @abstractmethod
    def _begin(self) -> Head:
        """Take the snapshot, and with `writable` the right to write. On an error nothing stays taken."""

    @abstractmethod
    def _held(self, reads: Reads) -> Held:
        """Everything that `reads` names, but for the device's hint. `_head` is the end of what may be seen."""

    @abstractmethod
    def _apply(self, writes: Writes) -> None:
        """Apply writes that `folded` has passed. `_head` is the end of the log before them."""

    @abstractmethod
    def _commit(self) -> None:
        """Make everything durable, or undo everything and raise. After reading only, just let go of the snapshot."""

    @abstractmethod
    def _rollback(self) -> None:
        """Undo everything. Never raises."""

    async def __aenter__(self) -> Self:
        if self._entered:
            raise LocalProtocolError("expected a new transaction; got one that was entered before")
        self._entered = True
        self._head = self._begin()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if kind is not None or self._error is not None:
            self._rollback()
            if kind is None and self._error is not None:
                raise self._error
            return
        self._commit()
        for device, value in self._devices.items():
            if self.writable:
                self._hints.forget(self.graph, device)
            else:
                self._hints.keep(self.graph, device, value)

    async def read(self, reads: Reads) -> Held:
        """Everything that `reads` names, rows written earlier in this transaction included."""
        self._usable()
        try:
            held = self._held(reads)
        except BaseException as error:
            self._error = error
            raise
        if reads.device is None:
            return held
        own = self._devices.get(reads.device)
        return replace(held, device=own or self._hints.over(self.graph, reads.device, held.device))

    async def write(self, writes: Writes) -> None:
        """Add rows, close rows, move the head, remember the device.

        Raises:
            LocalProtocolError: the writes do not continue the log, or a row version is held already, or two current
                rows of one id would result, or this transaction is only for reading.
            StoreError: the store could not.
        """
        self._usable()
        try:
            if self.writable:
                self._apply(folded(self._head, writes))
                self._head = writes.head or self._head
            else:
                self._check_hint(writes)
        except BaseException as error:
            self._error = error
            raise
        if writes.device is not None:
            self._devices[writes.device[0]] = writes.device[1]

    def _check_hint(self, writes: Writes) -> None:
        if writes.rows or writes.closed or writes.head not in (None, self._head):
            raise LocalProtocolError("expected only a device's hint in a transaction for reading; got more")

    def _usable(self) -> None:
        if not self._open:
            raise LocalProtocolError("expected a transaction inside its block; got one outside of it")
        if self._error is not None:
            raise LocalProtocolError("expected no more calls after an error; leave the transaction, it is undone")
