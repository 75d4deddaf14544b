"""The part of a sync that deals with a server whose log is not the one that was known (PROTOCOL 10.9 to 10.13).

Read `Reconciliation.locate`, then `compare`. What an answer means is decided by `inbetweenies.replica`; here is only
the order of messages, and when to stop. `sync.Sync` is one of these.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from inbetweenies import rewind
from inbetweenies.model import Answer, Ask, Cursor, parse_cursor
from inbetweenies.replica import Found, Key, State, comparing, differences, locating, places, restart

from .transport import BadAnswer

if TYPE_CHECKING:
    from .store import LocalStore

BEGINNING: Final = Cursor("0", 0, rewind.START)
COMPARISONS_MAX: Final = 32  # messages; whoever differs in more than they find had better pull everything


class Reconciliation:
    """What one sync found out about a log that was lost, and what it did about it."""

    store: LocalStore

    def __init__(self) -> None:
        self.rewinds = 0  # how often the log was found to be lost
        self.lost = 0  # rows that it had lost
        self.discarded = 0  # rows that it had lost on purpose
        self.differing = 0  # ids that differed though nothing was lost
        self.skip: tuple[tuple[int, int], ...] = ()
        self.want: deque[int] = deque()

    @property
    @abstractmethod
    def offer(self) -> tuple[str, ...]:
        """The wire versions to offer."""

    @abstractmethod
    def nonce(self) -> str:
        """A name for a message that no other message has."""

    @abstractmethod
    async def exchange(self, ask: Ask) -> Answer | None:
        """One message, there and back; None if the answer does not count, and another version is to be tried."""

    async def locate(self, state: State) -> None:
        """PROTOCOL 10.9: find out what is left of the log that was known, and get ready to give back the rest."""
        self.rewinds += 1
        found = await self._found(state)
        if found is None:
            return
        regained, lost = self.store.regain(found)
        self.skip = regained.skip
        if found.discarded:
            self.discarded += lost
        else:
            self.lost += lost

    async def _found(self, state: State) -> Found | None:
        """The common place and all that follows it; None if this server cannot tell."""
        asked = places(state, self.store.places()) or (BEGINNING,)
        common: Cursor | None = None
        entries: list[tuple[bytes, bool]] = []
        discarded = False
        first = True
        while True:
            answer = await self.exchange(locating(state, asked, self.nonce(), self.offer))
            if answer is None:
                return None
            if rewind.FEATURE not in answer.features:
                # It was another release that noticed. This one cannot say what is left, so compare everything.
                self.store.put_state(restart(replace(state, lost=False)))
                return None
            here, end = parse_cursor(answer.common or ""), parse_cursor(answer.cursor or "")
            listed = rewind.entries(answer.listing or b"")
            start = 0 if here is None else here.seq
            if first:
                common, discarded, first = here, answer.discarded, False
            elif start != asked[0].seq:
                raise _lie("a listing that goes on where it ended", "another one")
            if answer.listing is None or end is None or end.seq - start != len(listed):
                raise _lie("a listing of all rows up to a place", "another one")
            entries += listed
            if not answer.more:
                return Found(common=common, head=end, entries=tuple(entries), discarded=discarded)
            if not listed:
                raise _lie("a listing that goes on", "one that does not")
            asked = (end,)

    async def compare(self, state: State) -> None:
        """PROTOCOL 10.13: find where two graphs differ that should not, part by part, to exchange that."""
        own = sorted(self.store.theirs())
        ids = [place for place, _, _ in own]
        prefixes = deque([""])
        lacking: dict[Key, None] = {}
        for _ in range(COMPARISONS_MAX):
            if not prefixes:
                break
            asked = tuple(prefixes.popleft() for _ in range(min(len(prefixes), rewind.PARTS_MAX)))
            answer = await self.exchange(comparing(state, asked, self.nonce(), self.offer))
            if answer is None:
                return
            if answer.resync:
                self.store.put_state(replace(state, lost=True))
                return
            for part in answer.parts:
                if part.prefix not in asked:
                    raise _lie("the parts that were asked for", "others")
                here = own[bisect_left(ids, part.prefix) : bisect_left(ids, part.prefix + "g")]
                found = differences(part, here)
                prefixes.extend(found.prefixes)
                self.want.extend(found.want)
                lacking.update(dict.fromkeys(found.lacking))
        self.differing += max(len(self.want), len(lacking))
        self.store.offer(lacking)
        now = self.store.state()
        if prefixes and now is not None:
            self.store.put_state(restart(now))

    def skipped(self, state: State) -> tuple[tuple[int, int], ...]:
        """The ranges that need not be told again, as far as the cursor has not passed them."""
        at = parse_cursor(state.cursor or "")
        self.skip = tuple(range_ for range_ in self.skip if range_[1] > (0 if at is None else at.seq))
        return self.skip

    def wanted(self) -> tuple[int, ...]:
        """The seqs to ask for with the next message."""
        return tuple(self.want.popleft() for _ in range(min(len(self.want), rewind.WANT_MAX)))


def _lie(expected: str, got: str) -> BadAnswer:
    return BadAnswer(expected=expected, got=got)
