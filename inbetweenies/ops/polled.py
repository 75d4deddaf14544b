"""What a document of the store says, read often enough that a change counts everywhere within a second."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ..errors import StoreError
from ..model import Document
from ..store import Store
from ..stores import amend
from ..stores.keeper import run_now

T = TypeVar("T")

#: A change by another process counts here after this long at the latest, in seconds.
REFRESH_S: Final = 0.5

_log: Final = logging.getLogger(__name__)


class Polled(Generic[T]):
    """The value of one document. While the store is away it stays what it was.

    Args:
        store: where the document is; one that does not wait for an event loop, as ours do not.
        name: of the document.
        decode: what it says. Raises `StoreCorrupt` if that cannot be understood, which counts as being away.
        otherwise: what to go by if the store was away from the first; raises what it is given if there is nothing.
        monotonic: seconds that never run backwards.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        decode: Callable[[Document], T],
        *,
        otherwise: Callable[[StoreError], T],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._name = name
        self._decode = decode
        self._otherwise = otherwise
        self._monotonic = monotonic
        self._known: tuple[T] | None = None
        self._at = 0.0

    def value(self) -> T:
        """What is in force.

        Raises:
            StoreError: the store is away, has never been there, and nothing else is known.
        """
        now = self._monotonic()
        if self._known is not None and now - self._at < REFRESH_S:
            return self._known[0]
        try:
            self._known = (self._decode(run_now(self._store.document(self._name))),)
        except StoreError as error:
            _log.warning("going on with what was last known of %s: %s", self._name, error)
            self._known = self._known or (self._otherwise(error),)
        self._at = now
        return self._known[0]

    def amend(self, change: Callable[[Document], bytes]) -> T:
        """Change the document, and return what it says then: durable, and in force in this process, on return.

        Raises:
            StoreError: the store could not; nothing was changed.
        """
        after = self._decode(run_now(amend(self._store, self._name, change)))
        self._known, self._at = (after,), self._monotonic()
        return after
