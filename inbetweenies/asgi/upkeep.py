"""What a server does beside answering: it looks at the registry again, and writes the census down.

Neither ever fails a request, and neither costs a read or a write per request: the registry is looked at twice a second
at most (each transaction sees for itself, PROTOCOL 5.11), and the census is written when something new was seen, else
once a minute, and at the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from msgspec.structs import replace

from .. import census
from ..census import Sighting, Tally
from ..errors import InbetweeniesError
from ..router import ProtocolFallback
from ..stores import amend

LOOK_SECONDS: Final = 0.5
WRITE_SECONDS: Final = 60.0
_SEEN_MAX: Final = 1000  # kinds of sightings that are known to be written down; forgetting one costs a write

logger = logging.getLogger(__name__)


class Upkeep:
    """For one application, on its event loop.

    Args:
        aside: runs a coroutine that uses the store, without keeping the event loop or taking a request's turn.
        monotonic: seconds.
    """

    def __init__(
        self,
        router: ProtocolFallback,
        aside: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Awaitable[Any]],
        monotonic: Callable[[], float],
    ) -> None:
        self.known = False  # what was decided was read at least once
        self._router = router
        self._aside = aside
        self._monotonic = monotonic
        self._first = asyncio.Lock()
        self._looked = self._written = monotonic()
        self._tally = Tally()
        self._seen: set[Sighting] = set()

    async def look(self, *, again: bool = False) -> None:
        """Before a request: learn what was decided, if that was half a second ago, or `again`."""
        if not self.known:
            # Nobody is answered by what is only the default.
            async with self._first:
                if not self.known:
                    await self._look()
        elif again or self._monotonic() - self._looked >= LOOK_SECONDS:
            await self._look()

    async def _look(self) -> None:
        self._looked = self._monotonic()
        try:
            await self._aside(self._router.refresh)
            self.known = True
        except InbetweeniesError as error:
            logger.warning("the registry stays as it was: %s: %s", type(error).__name__, error)
        except Exception:
            logger.exception("the registry stays as it was")

    def count(self, sighting: Sighting | None) -> None:
        """Count a request."""
        if sighting is not None:
            self._tally.add(sighting, self._router.clock())
            kind = replace(sighting, wrote=False)
            if kind not in self._seen:
                self._seen = {kind} if len(self._seen) >= _SEEN_MAX else self._seen | {kind}
                self._written = float("-inf")

    async def settle(self) -> None:
        """After a request was answered: write the census down, if that is due."""
        if self._tally and self._monotonic() - self._written >= WRITE_SECONDS:
            await self.write()

    async def write(self) -> None:
        """Write the census down."""
        self._written = self._monotonic()
        counted = self._tally.take()
        if not counted:
            return
        try:
            await self._aside(lambda: self._add(counted))
            return
        except InbetweeniesError as error:
            logger.warning("the census was not written: %s: %s", type(error).__name__, error)
        except Exception:
            logger.exception("the census was not written")
        for entry in counted:
            self._tally.merge(entry)

    async def _add(self, counted: Tally) -> None:
        now = self._router.clock()
        await amend(
            self._router.store,
            census.DOCUMENT,
            lambda kept: census.document_of(census.entries_in(kept), counted, now=now),
        )
