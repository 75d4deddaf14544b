"""Somebody who rolls out, to be killed: ``python -m tests.storm.controller DB SEED [STATEMENT] [BUG]``.

Moves the rollout of version 2 of one database for ever, as it comes: starts it, goes on, holds it, takes it back. Says
a line for each move once it is durable. With a STATEMENT it kills itself before that one, as `tests.storm.server` does.
BUG names one of `BUGS`, which are there to see the storm find them.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Final

from inbetweenies.errors import LocalProtocolError, StoreBusy
from inbetweenies.ops.rollouts import RolloutControl
from inbetweenies.rollout.canary import Bar
from inbetweenies.stores.sqlite import SqliteStore
from tests.storm.server import Fuse

V2 = "inbetweenies-v2"
#: Nothing has to be waited for: what is seen here is that moves are whole, not that they are wise.
BAR = Bar(wait_us=0, sessions=0, pushes=0, pulls=0, conflicts=0)


# --- bugs ---------------------------------------------------------------------------------------------------------


def last_writer_wins() -> None:
    """Whoever moves last puts what he has in the place of what there is; and thinks about it for a moment."""
    real = SqliteStore.put_document

    async def put(self: SqliteStore, name: str, body: bytes, *, revision: int) -> bool:
        time.sleep(0.02)  # noqa: ASYNC251 - nothing else goes on in this process
        newest = await self.document(name)
        return await real(self, name, body, revision=max(revision, newest.revision))

    SqliteStore.put_document = put  # type: ignore[method-assign]


BUGS: Final[dict[str, Callable[[], None]]] = {bug.__name__: bug for bug in (last_writer_wins,)}


def main(path: str, seed: str, statement: str = "0", bug: str = "") -> None:
    if bug:
        BUGS[bug]()
    store = SqliteStore(path, journal=False, heads=False, on_connect=Fuse(int(statement)).install)
    control = RolloutControl(store, bar=BAR)
    dice = random.Random(int(seed))
    while True:
        verb = dice.choice(["start", "advance", "advance", "advance", "pause", "resume", "rollback"])
        try:
            if verb == "start":
                done = control.start(V2, allow=["default"], actor="controller")
            else:
                done = getattr(control, verb)(V2, actor="controller")
        except (LocalProtocolError, StoreBusy):
            continue  # it cannot be done to what there is, or somebody else was first
        if not done.changed:
            continue
        sys.stdout.write(f"{verb} {done.after.id} {done.after.state} {done.after.fence}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
