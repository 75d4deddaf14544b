"""How many messages one sync may take: as many as there are pages of what is left to be told, both ways, and one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ...model import parse_cursor
from ...rewind import PREFIX_MAX
from ..fleet_base import Client
from ..fleet_clients import ModernV2
from ..fleet_laws import Ledger
from ..fleet_replica import Whole, whole_of

if TYPE_CHECKING:
    from .stage import Setting

#: The one that finds that there is nothing more to be told.
SPARE: Final = 1
#: Programs that were deployed do not page: they pull, push and acknowledge.
DEPLOYED: Final = 3


def _pages(rows: int, of: int) -> int:
    return -(-rows // of)


class Session:
    """One sync of one program. Made when its first message was, before that is served.

    Attributes:
        generation: of the server; once its database was replaced since, there is more to say than is counted here.
        messages: how many were said.
    """

    def __init__(self, client: Client, ledger: Ledger, setting: Setting, generation: int) -> None:
        self.client = client
        self.ledger = ledger
        self.setting = setting
        self.generation = generation
        self.messages = 0
        self._compared = 0
        self._listed = 0
        self._left = 0
        self._head = ledger.head.seq
        self._pushes = 0
        self._waited: set[Whole] = set()
        self._refused: set[Whole] = set()
        if isinstance(client, ModernV2):
            self._begin(client)

    def _begin(self, client: ModernV2) -> None:
        """What there is to be told, and listed before that if it comes from another log."""
        state, ledger = client.store.image.state, self.ledger
        known = [place for text in (state.cursor, state.witness) if (place := parse_cursor(text or "")) is not None]
        cursor = parse_cursor(state.cursor or "")
        after = 0 if cursor is None else cursor.seq
        if state.lost or not all(ledger.has(place) for place in known):
            there = [place.seq for place in (*known, *client.store.image.places) if ledger.has(place)]
            after = max(there, default=0)
            # One more is needed to be told so.
            self._listed = max(1, _pages(self._head - after, self.setting.listing_rows)) + (not state.lost)
        # What others have followed is not told any more.
        self._left = sum(ledger.current.get((row.kind, row.id)) is row for row in ledger.rows[after:])

    def said(self, body: bytes) -> None:
        """One more message, and what waits by now."""
        self.messages += 1
        if not isinstance(self.client, ModernV2):
            return
        self._compared += b'"compare":' in body
        pending = self.client.store.image.pending.values()
        new = {whole_of(item.copy) for item in pending} - self._waited
        self._waited |= new
        self._pushes += _pages(len(new), self.setting.batch)
        self._refused |= {whole_of(item.copy) for item in pending if item.note is not None}

    @property
    def most(self) -> int:
        """How many messages it may have taken by now."""
        if not isinstance(self.client, ModernV2):
            return DEPLOYED
        # What it sends stands after what it has yet to be told, and is then in the pages that it goes through.
        told = self._left + self.ledger.head.seq - self._head
        # What was refused may be said again once the rest is there.
        again = _pages(len(self._refused), self.setting.batch)
        # PROTOCOL 10.13: one for each two digits, once in a sync; what turns out to be missing is asked for after that.
        compared = min(self._compared, 1 + PREFIX_MAX // 2) + (self._compared > 0)
        return self._listed + _pages(told, self.setting.page_rows) + self._pushes + again + compared + SPARE
