"""Write transactions that share a commit. Read `Commits.done`.

What it costs to make a commit durable hardly depends on how much is in it. So whoever has written leaves the commit to
the next who waits to write, and waits for that; who finds nobody waiting commits for all. Nobody is told that its rows
are kept before they are on the disk (PROTOCOL 1, law 1), and where one of them cannot be committed, all are undone and
try again, each by itself.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final

from ..errors import LocalProtocolError, StoreBusy, StoreError, StoreFull, StoreUndone
from . import WriterGate
from .keeper import Committed

#: How long the first of those who share a commit may have to wait until the last of them begins, in milliseconds. Much
#: more than a disk takes, so that it is worth it, and less than anybody notices.
SHARE_MS: Final = 25

#: For how long nobody shares after a shared commit was undone, in seconds: time for all of them to try again.
ALONE_SECONDS: Final = 5.0


class Shared:
    """One commit in the making: the connection that it is made on, and how many wait for it."""

    def __init__(self, connection: sqlite3.Connection, began: float) -> None:
        self.connection = connection
        self.began = began
        self.waiting = 0
        self.written: list[Committed] = []
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        """It is durable; or, with an error, it is not, or nobody knows."""
        self._error = error
        self._ended.set()

    def wait(self, timeout_s: float) -> None:
        """Raises `StoreUndone`: nothing was applied. Raises `StoreError`: whether it was is not known."""
        if not self._ended.wait(timeout_s):
            raise StoreError(f"expected a shared commit to end within {timeout_s:g} s; it did not, and still may")
        if self._error is not None:
            raise self.told(self._error)

    @staticmethod
    def told(error: BaseException) -> StoreError:
        """What an error means to those who share a commit: one of them was too much, or the disk failed them all."""
        if isinstance(error, StoreFull | StoreBusy | LocalProtocolError):
            return StoreUndone("expected a shared commit to succeed; it was undone, try again")
        return StoreError(f"expected a shared commit to succeed; it failed: {error}")


class Commits:
    """Whose turn it is to write to a file, and the commit in the making. Only whoever's turn it is looks at that.

    Args:
        take: gives a connection; `give_back` takes it again.
        border: what exceptions of SQLite's do not get past.
        share_ms: how long the first to share a commit may have to wait; with 0 nobody shares.
    """

    def __init__(
        self,
        take: Callable[[], sqlite3.Connection],
        give_back: Callable[[sqlite3.Connection, bool], None],
        border: Callable[[str], AbstractContextManager[None]],
        *,
        busy_timeout_ms: int,
        share_ms: int = SHARE_MS,
    ) -> None:
        self._take, self._give_back, self._border = take, give_back, border
        #: Called with what was committed while nobody else can write, before it is acknowledged; it may raise.
        self.committed: Callable[[Sequence[Committed]], None] = lambda _: None
        self._gate = WriterGate(busy_timeout_ms)
        self._timeout_s = busy_timeout_ms / 1000
        self._share_s = share_ms / 1000
        self._shared: Shared | None = None
        self._alone_until = 0.0

    def enter(self) -> Shared:
        """Wait for one's turn: the commit to take part in, on a connection that may write."""
        self._gate.enter()
        try:
            return self._shared or self.begin()
        except BaseException:
            self._gate.leave()
            raise

    def begin(self) -> Shared:
        """In one's turn, when none is in the making: begin a commit."""
        connection = self._take()
        try:
            # A reader that became a writer half way could not be told to wait (SQLite's BUSY_SNAPSHOT).
            connection.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._give_back(connection, False)
            raise
        self._shared = Shared(connection, time.monotonic())
        return self._shared

    def settle(self) -> None:
        """In one's turn: bring the commit in the making to its end. How it ends is told to those who wait for it."""
        if self._shared is not None:
            with suppress(StoreError, LocalProtocolError):
                self._commit(self._shared)

    def alone(self, work: Callable[[], object]) -> None:
        """Do what is a commit of its own while nobody writes."""
        self._gate.enter()
        try:
            self.settle()
            work()
        finally:
            self._gate.leave()

    def done(self, shared: Shared) -> None:
        """End a turn in which everything went well. On return all that it wrote, and read of others, is durable.

        Raises:
            StoreUndone: nothing was applied, because of somebody else.
            StoreError, LocalProtocolError: it could not be committed.
        """
        shared.waiting += 1
        if self._pass_on(shared):
            shared.wait(self._timeout_s)
            return
        try:
            self._commit(shared)
        finally:
            self._gate.leave()

    def leave(self, shared: Shared, *, wrote: bool, sound: bool) -> None:
        """End a turn that is to leave no trace. Never raises."""
        if shared is self._shared:
            if wrote or not sound or not shared.connection.in_transaction:
                # It cannot be undone without what the others wrote. They try again, and it is not among them.
                self._end(shared, StoreUndone("a shared commit was undone"), sound=sound)
            elif self._pass_on(shared):
                return
            else:
                self.settle()
        self._gate.leave()

    def _pass_on(self, shared: Shared) -> bool:
        """Whether somebody else takes part now, who then sees to the commit."""
        now = time.monotonic()
        return self._alone_until <= now < shared.began + self._share_s and self._gate.pass_on()

    def _commit(self, shared: Shared) -> None:
        try:
            with self._border("commit"):
                shared.connection.execute("COMMIT")
        except BaseException as error:
            # Whether it is durable is not known; it counts as not done, and the sender's repetition settles it.
            self._end(shared, error, sound=False)
            if shared.waiting > 1:
                raise Shared.told(error) from error
            raise
        if shared.written:
            try:
                self.committed(shared.written)
            except StoreError as error:
                # It is on the disk, and may not be acknowledged; what is sent again will be.
                told = StoreError(f"expected what is committed to be kept outside as well; it was not: {error}")
                self._end(shared, told, sound=True)
                raise told from error
            except BaseException as error:
                self._end(shared, error, sound=True)
                raise
        self._end(shared, None, sound=True)

    def _end(self, shared: Shared, error: BaseException | None, *, sound: bool) -> None:
        self._shared = None
        if error is not None and shared.waiting:
            self._alone_until = time.monotonic() + ALONE_SECONDS
        try:
            if shared.connection.in_transaction:  # some errors have rolled back already
                shared.connection.execute("ROLLBACK")
        except (sqlite3.Error, MemoryError):
            sound = False
        self._give_back(shared.connection, sound)
        shared.end(error)
