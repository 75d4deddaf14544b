"""A server process to be attacked: ``python -m tests.hostile.server DATABASE [BOUNDS]``, bounds as a JSON object.

Says ``ended PORT`` on a line of its own for each connection that has, with the port of its other side.
"""

from __future__ import annotations

import json
import sys

from inbetweenies.asgi import ServerLimits, app, run, serving
from inbetweenies.asgi.frames import BoundedSocket
from inbetweenies.auth import SqliteTokens
from inbetweenies.stores import SqliteStore


class Told(serving.BoundedProtocol):
    """The real protocol, which also tells when a connection is gone."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        print("ended", self.client[1] if self.client else 0, flush=True)


class ToldSocket(BoundedSocket):
    """The same for a WebSocket."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        print("ended", self.client[1] if self.client else 0, flush=True)


def main(database: str, bounds: str = "{}") -> None:
    serving.BoundedProtocol = Told  # type: ignore[misc]
    serving.BoundedSocket = ToldSocket  # type: ignore[attr-defined]
    store, tokens = SqliteStore(database), SqliteTokens(database)
    run(app(store, tokens=tokens, admin_password="open", bounds=ServerLimits(**json.loads(bounds))), port=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
