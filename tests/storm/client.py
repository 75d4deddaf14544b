"""A client to be killed: ``python -m tests.storm.client FILE URL NAME SEED [STATEMENT] [BUG]``.

It edits and syncs for ever, edits going on while messages are under way, and says every edit as soon as the call that
made it has returned: ``edit<TAB>kind<TAB>id<TAB>version``; and every sync that ended. STATEMENT and BUG are as for
`tests.storm.server`.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec.structs import replace

from blowing_off import BlowingOffClient, NotFound, Refused, sync
from blowing_off.store import LocalStore
from inbetweenies import replica
from inbetweenies.model import Entity, Relationship
from inbetweenies.replica import Absorbed, Copy
from tests.storm.server import Fuse

SHARED: Final = ("hall", "attic")


def say(*words: object) -> None:
    """A line, at once."""
    print(*words, sep="\t", flush=True)


def told(row: Entity | Relationship) -> None:
    """An edit that is safe now."""
    say("edit", "entity" if isinstance(row, Entity) else "edge", row.id, row.version)


class Life:
    """What one person does on one device."""

    def __init__(self, client: BlowingOffClient, dice: random.Random) -> None:
        self.client = client
        self.dice = dice
        # No value twice, in no life: a change of nothing makes no row.
        self.made = dice.randrange(10**12)

    async def edit(self) -> None:
        """One edit of any kind; what is not there to be edited is left."""
        found = await self.client.find()
        edges = await self.client.links()
        self.made += 1
        match self.dice.choice(("add", "shared", "change", "change", "delete", "link", "unlink")):
            case "change" if found:
                told(await self.client.change(self.dice.choice(found).id, patch={"n": self.made}))
            case "delete" if len(found) > 10:
                told(await self.client.delete(self.dice.choice(found).id))
            case "link" if len(found) > 1:
                one, other = self.dice.sample(found, 2)
                told(await self.client.link(one.id, other.id, "located_in"))
            case "unlink" if len(edges) > 5:
                told(await self.client.unlink(self.dice.choice(edges).id))
            case "shared":
                await self.edit_shared(self.dice.choice(SHARED))
            case _:
                told(await self.client.add("device", f"{self.client.state.user} {self.made}"))

    async def edit_shared(self, id_: str) -> None:
        """An edit of what everybody edits."""
        try:
            told(await self.client.change(id_, patch={"deleted": None, self.client.state.user: self.made}))
        except NotFound:
            told(await self.client.add("room", id_, id=id_))

    async def edit_on(self) -> None:
        """Edits that come between the steps of a sync."""
        for _ in range(self.dice.randrange(6)):
            await asyncio.sleep(0)
            await self.edit()

    async def live(self) -> None:
        """Edit and sync, for ever."""
        while True:
            for _ in range(self.dice.randrange(4)):
                await self.edit()
            try:
                report, _ = await asyncio.gather(self.client.sync(), self.edit_on())
            except Refused as error:
                if error.status != 503:  # which says that others keep the server busy
                    raise
            else:
                say("sync", report.pushed, report.pulled, report.pending)


# --- bugs ---------------------------------------------------------------------------------------------------------


def commit_here(store: LocalStore) -> None:
    """What was done so far becomes durable without the rest."""
    store._db.execute("COMMIT")
    store._db.execute("BEGIN IMMEDIATE")


def ack_by_id() -> None:
    """An ack clears every mark of its id, that of a newer edit too."""
    real = replica.absorb

    def absorb(answer: Any, sent: Any, state: Any, local: Any, **how: Any) -> Absorbed:
        result = real(answer, sent, state, local, **how)
        keys = {(ack.kind, ack.id) for ack in answer.acks or ()}
        cleared = tuple(n for key in keys for n, _ in local.pending.get(key, ()))
        return replace(result, cleared=cleared)

    assert sync.absorb is real  # type: ignore[attr-defined]
    sync.absorb = absorb  # type: ignore[attr-defined]


def cursor_before_rows() -> None:
    """The cursor is stored before the rows that it covers."""
    real = LocalStore.apply

    def apply(self: LocalStore, absorbed: Absorbed, *, now: int) -> None:
        self.put_state(absorbed.state)
        commit_here(self)
        real(self, absorbed, now=now)

    LocalStore.apply = apply  # type: ignore[method-assign]


def mark_after_row() -> None:
    """An edit is stored before the mark that it waits."""
    real = LocalStore._mark

    def mark(self: LocalStore, copies: Any, *, offered: bool = False) -> None:
        commit_here(self)
        real(self, copies, offered=offered)

    LocalStore._mark = mark  # type: ignore[method-assign]


def told_before_stored() -> None:
    """An edit is told as safe before it is committed: edits are stored in tens."""
    real = LocalStore.write
    held: list[Copy] = []

    def write(self: LocalStore, copies: Iterable[Copy]) -> None:
        held.extend(copies)
        if len(held) >= 10:
            real(self, held)
            held.clear()

    LocalStore.write = write  # type: ignore[method-assign]


BUGS: Final[dict[str, Callable[[], None]]] = {
    bug.__name__: bug for bug in (ack_by_id, cursor_before_rows, mark_after_row, told_before_stored)
}


async def main(path: str, url: str, name: str, seed: str, statement: str = "0", bug: str = "") -> None:
    if bug:
        BUGS[bug]()
    async with BlowingOffClient(path, url, user=name, device=name, page_rows=20, batch_changes=5) as ours:
        Fuse(int(statement)).install(ours.store._db)
        await Life(ours, random.Random(int(seed))).live()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
