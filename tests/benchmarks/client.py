"""A client in a process of its own: opens the store given as first argument and syncs each time it is told to."""

from __future__ import annotations

import asyncio
import json
import sys

import httpx  # noqa: F401 - what a program that syncs has loaded when it starts to

from blowing_off.client import BlowingOffClient


async def main(db: str, url: str, token: str) -> None:
    """Say ``ready``; for each line, sync and say what came of it."""
    async with BlowingOffClient(db, url, token) as client:
        print("ready", flush=True)
        while sys.stdin.readline():
            report = await client.sync()
            told = {name: getattr(report, name) for name in ("pushed", "pulled", "pending", "messages", "equal")}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:4]))
