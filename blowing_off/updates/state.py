"""What is remembered between two runs, in a file beside the store; and the lock that lets one process update at a time.

The file holds nothing that is not told again: where it is missing or damaged, a little more is asked and told.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from inbetweenies.errors import InbetweeniesError, StoreError

from ..store import alone
from .decide import Memory

logger = logging.getLogger(__name__)

FILE_BYTES_MAX: Final = 256 * 2**10  # ten times what the bounds of `decide` allow
PATIENCE_S: Final = 5.0  # another process writes for milliseconds; one that hangs must not hold us up for ever
LOCK: Final = ".blowing-off-update.lock"


class UpdateRunning(InbetweeniesError, RuntimeError):
    """Another process is updating this installation. Wait for it to end."""


class Receipt(Struct, frozen=True, kw_only=True):
    """An update that was made: what is needed to go back.

    Attributes:
        before, after: the releases.
        format: the format of the store before.
        folder: where the files of the release before are kept.
        prefix: the environment they belong to.
    """

    before: str
    after: str
    format: int
    folder: str
    prefix: str


class Kept(Struct, frozen=True, kw_only=True):
    """The file's content. `touching` is the receipt of an update that has begun to change the environment and has
    not ended: whoever finds it there puts the old release back first."""

    memory: Memory = Memory()
    receipt: Receipt | None = None
    touching: Receipt | None = None


_kept = msgspec.json.Decoder(Kept)


class StateFile:
    """The file beside the store at `store`; in memory where the store is."""

    def __init__(self, store: str | Path) -> None:
        self.path = None if str(store) == ":memory:" else Path(f"{store}.updates")
        self._held = Kept()

    def read(self) -> Kept:
        """What is remembered; nothing where there is no file, or none that can be read."""
        if self.path is None:
            return self._held
        try:
            with self.path.open("rb") as stream:
                data = stream.read(FILE_BYTES_MAX + 1)
            return _kept.decode(data) if len(data) <= FILE_BYTES_MAX else Kept()
        except FileNotFoundError:
            return Kept()
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as error:
            logger.warning("%s cannot be read (%s); updates are asked about anew", self.path, type(error).__name__)
            return Kept()

    def change(self, change: Callable[[Kept], Kept]) -> Kept:
        """Remember what `change` makes of what is remembered: all of it or, if that fails, nothing new.

        Raises:
            StoreError: it could not be written.
        """
        if self.path is None:
            self._held = change(self._held)
            return self._held
        try:
            # One after the other: what another process remembered meanwhile must not be forgotten.
            with alone(f"{self.path}.lock", patience_s=PATIENCE_S):
                after = change(self.read())
                descriptor, made = tempfile.mkstemp(dir=self.path.parent, prefix=f"{self.path.name}.")  # mode 0600
                try:
                    with os.fdopen(descriptor, "wb") as stream:
                        stream.write(msgspec.json.encode(after))
                        stream.flush()
                        os.fsync(stream.fileno())
                    Path(made).replace(self.path)
                except BaseException:
                    Path(made).unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise StoreError(f"expected to write {self.path}; the system says: {error.strerror}") from error
        return after


@contextmanager
def updating(prefix: Path) -> Iterator[None]:
    """The right to change the environment at `prefix`, for one process at a time.

    Raises:
        UpdateRunning: somebody else has it.
        StoreError: this user cannot write there.
    """
    with alone(str(prefix / LOCK)) as got:
        if not got:
            raise UpdateRunning(
                f"expected to be the only one to update {prefix}; another process does. Wait until it has ended."
            )
        yield
