"""Two replicas of a home: both edit offline, both sync, and one learns of a conflict.

    python examples/server.py                          # in another terminal; it prints a token
    python examples/client.py http://127.0.0.1:8000 TOKEN

Makes `tablet.blow` and `laptop.blow` in the folder where it is started. `blowing-off` is the same as a command line.
"""

from __future__ import annotations

import asyncio
import sys

from blowing_off import BlowingOffClient


async def main(url: str, token: str) -> None:
    async with (
        BlowingOffClient("tablet.blow", url, token, user="alice") as tablet,
        BlowingOffClient("laptop.blow", url, token, user="bob") as laptop,
    ):
        # Every edit is on the disk at once and waits there; a server is only needed by `sync`.
        lamp = await tablet.add("device", "Kitchen lamp", {"colour": "warm white", "on": False})
        kitchen = await tablet.add("room", "Kitchen")
        await tablet.link(lamp.id, kitchen.id, "located_in")
        print("waiting on the tablet:", len(await tablet.pending()))
        await tablet.sync()
        await laptop.sync()

        # Both change the same lamp while they do not see each other. `patch` changes what it names, nothing else.
        await tablet.change(lamp.id, patch={"colour": "candle light"})
        await laptop.change(lamp.id, patch={"colour": "daylight", "on": True})
        await tablet.sync()
        report = await laptop.sync()
        print("the server resolved", len(report.conflicts), "conflict; all is sent:", report.pending == 0)

        # Nothing is lost: what did not win is kept, reported, and can be read back by its version.
        for conflict in await laptop.conflicts():
            print(f"{conflict.name}: {conflict.strategy}")
            for version in await laptop.history(conflict.entity_id):
                print("  now " if version.current else "  kept", bytes(version.entity.content).decode())

        await tablet.sync()
        here, there = await tablet.status(), await laptop.status()
        print("both hold the same:", here.digest == there.digest)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/client.py URL TOKEN")
    asyncio.run(main(*sys.argv[1:]))
