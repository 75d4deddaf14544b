"""A FastAPI application with routes of its own that also is a sync server, under /home.

    python examples/mount_fastapi.py [DATABASE [PORT]]

Clients sync with http://localhost:8000/home; `/devices` and `/invite/…` are the application's own.
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI

from inbetweenies import SqliteStore
from inbetweenies.asgi import app as sync_app
from inbetweenies.auth import SqliteTokens
from inbetweenies.model import Reads


def make_api(database: str) -> FastAPI:
    """The application. A function, so that importing this file opens no database."""
    store = SqliteStore(database)
    tokens = SqliteTokens(database)
    api = FastAPI()

    @api.post("/invite/{user}")
    def invite(user: str) -> dict[str, str]:
        """Who may sync is this application's decision: here everybody, in yours whoever has logged in."""
        secret, _ = tokens.create(graph="home", user=user)
        return {"url": "/home", "token": secret}

    @api.get("/devices")
    async def devices() -> list[str]:
        """The application reads what clients have synced: one transaction is one consistent view of one graph."""
        async with store.transaction("home", write=False) as tx:
            held = await tx.read(Reads(types=("device",)))
        return [row.entity().name for row in held.types if not row.deleted]

    # Last, and below its own prefix: it answers everything there, and nothing elsewhere.
    api.mount("/home", sync_app(store, tokens=tokens))
    return api


def main(database: str = "example.db", port: str = "8000") -> None:
    uvicorn.run(make_api(database), port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
