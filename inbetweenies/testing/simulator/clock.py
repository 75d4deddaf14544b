"""Virtual time: one true time for a history, and what each machine in it takes for the time."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Final

from ...model import TIME_MIN

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND
#: When every history begins, in microseconds.
START: Final = 1_790_000_000 * SECOND


class Clock:
    """What one machine takes for the time: the true time and an error. It can jump and stand still.

    `floor` is the least that it may show; whoever restores a server knows better than to let its clock go back.
    """

    def __init__(self, true: Callable[[], int], off: int = 0) -> None:
        self._true = true
        self.off = off
        self.floor = TIME_MIN
        #: Whether it was ever set back.
        self.went_back = False
        self._stopped: int | None = None

    def __call__(self) -> int:
        shown = self._true() + self.off if self._stopped is None else self._stopped
        return max(shown, self.floor)

    def fork(self) -> Clock:
        """Another clock that shows the same now."""
        return copy(self)

    def jump(self, by: int) -> None:
        """Someone sets it."""
        self.went_back |= by < 0
        self.off += by
        if self._stopped is not None:
            self._stopped += by

    def stop(self) -> None:
        """It stands still from here on."""
        self._stopped = self()

    def go(self) -> None:
        """It goes on, and shows what it would have shown."""
        self._stopped = None
