"""A server to be killed: ``python -m tests.storm.server DB [STATEMENT] [BUG]``.

It is the real one, on real HTTP. With a STATEMENT other than 0 it kills itself as if by ``kill -9`` when SQLite is
about to run that statement, counted from the first write on: in the middle of a request. BUG names one of `BUGS`,
which are there to see the storms find them.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from msgspec import Raw
from msgspec.structs import replace

from inbetweenies import engine, exchange
from inbetweenies.asgi import app, run
from inbetweenies.model import Plan, SyncResponse, digest_change
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import sqlite
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.wire.v1 import lens, push
from tests.support import run as driven


class Fuse:
    """Ends the process at a statement."""

    def __init__(self, statement: int) -> None:
        self.left = statement
        self.lit = False

    def install(self, connection: sqlite3.Connection) -> None:
        """Watch a new connection."""
        if self.left:
            connection.set_trace_callback(self)

    def __call__(self, statement: str) -> None:
        self.lit |= statement == "BEGIN IMMEDIATE"
        if self.lit:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


# --- bugs ---------------------------------------------------------------------------------------------------------


def ack_before_commit() -> None:
    """The answer is on its way while the commit still waits for its turn."""

    async def begin(wire: Any, message: Any, **named: Any) -> exchange.Begun:
        context = named["context"]
        block: Any = named["store"].transaction(context.graph, write=wire.writes(message))
        tx = await block.__aenter__()
        request = await exchange.run(wire.up(message, context, named["limits"]), tx)
        response = await exchange.run(engine.serve(request, context, named["limits"], named["policy"]), tx)
        telling = wire.down(message, response, context, named["limits"], named["negotiation"])
        rest = exchange.Rest(telling, named["store"], context.graph, response.head)
        pieces = []
        while not rest.ended:
            pieces.append(await rest.next(tx))
        threading.Timer(0.05, lambda: driven(block.__aexit__(None, None, None))).start()
        return exchange.Begun(body=b"".join(pieces))

    exchange.begin = begin


def commit_in_two() -> None:
    """All rows of a push but the last are committed, as a log that is right, and then that one."""
    real = sqlite._Transaction._apply

    def apply(self: Any, writes: Any) -> None:
        rows, last = writes.rows[:-1], writes.rows[-1:]
        if rows and all(row.until is None or row.until <= rows[-1].seq for row in rows):
            digest = self._head.digest
            for row in rows:
                digest = digest_change(digest, come=row.hash if row.until is None else None)
            closed = tuple(pair for pair in writes.closed if pair[1] <= rows[-1].seq)
            for seq, _ in closed:
                [gone] = self._connection.execute("SELECT hash FROM log WHERE seq = ?", (seq,)).fetchone()
                digest = digest_change(digest, gone=gone)
            end = rows[-1]
            head = replace(writes.head, seq=end.seq, chain=end.chain, stamp=end.stamp, digest=digest)
            real(self, replace(writes, rows=rows, closed=closed, head=head, device=None))
            self._connection.execute("COMMIT")
            self._connection.execute("BEGIN IMMEDIATE")
            writes = replace(writes, rows=last, closed=tuple(pair for pair in writes.closed if pair not in closed))
        real(self, writes)

    sqlite._Transaction._apply = apply  # type: ignore[method-assign]


def time_for_a_cursor() -> None:
    """`server_time` is what the wall clock shows when the answer is made."""
    real = engine.serve

    def serve(request: Any, context: Any, *rest: Any) -> Plan[SyncResponse]:
        response = yield from real(request, context, *rest)
        return replace(response, served_stamp=time.time_ns() // 1000)

    engine.serve = serve  # type: ignore[assignment]


def down_edit_up() -> None:
    """A record that was edited becomes all that there is of its entity."""
    real = lens.apply
    assert push.__dict__["apply"] is real

    def apply(*given: Any) -> Any:
        made = real(*given)
        if made.change is None or made.change.entity is None:
            return made
        record = {
            key: value for key, value in json.loads(bytes(made.change.entity.content)).items() if key in _OF_RECORDS
        }
        entity = replace(made.change.entity, content=Raw(json.dumps(record).encode()))
        return replace(made, change=replace(made.change, entity=entity))

    push.__dict__["apply"] = apply


_OF_RECORDS: Final = frozenset(
    "manufacturer model serial_number firmware_version is_reachable is_blocked is_bridge".split()
)

BUGS: Final[dict[str, Callable[[], None]]] = {
    bug.__name__: bug for bug in (ack_before_commit, commit_in_two, down_edit_up, time_for_a_cursor)
}


def main(path: str, statement: str = "0", bug: str = "") -> None:
    if bug:
        BUGS[bug]()
    store = SqliteStore(path, on_connect=Fuse(int(statement)).install)
    run(app(router=ProtocolFallback(store), auth=False), port=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
