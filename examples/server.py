"""A sync server in twenty lines: every wire version, over one SQLite file, with tokens.

    python examples/server.py [DATABASE [PORT]]

Prints a token for alice the first time, then the address; ends with Ctrl-C. `inbetweenies serve` does the same with
options. Try it with `examples/client.py`.
"""

from __future__ import annotations

import sys
from contextlib import closing

from inbetweenies import SqliteStore
from inbetweenies.asgi import app, run
from inbetweenies.auth import SqliteTokens


def main(database: str = "example.db", port: str = "8000") -> None:
    # Graphs and tokens live in one file. Only hashes of tokens do: a token is shown when it is made, never again.
    with closing(SqliteTokens(database)) as tokens:
        if not tokens.list():
            secret, _ = tokens.create(graph="home", user="alice")
            print("token", secret, flush=True)
        # Whatever a client says about itself, its token alone decides which graph it sees.
        run(app(SqliteStore(database), tokens=tokens), port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
