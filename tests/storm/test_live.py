"""Many live devices over a server that is killed and comes back: each sees what the others change, and all end alike.

The server is a process of its own, on a file; the devices are replicas in files, in this process.
"""

from __future__ import annotations

import asyncio
import os
from asyncio import Condition
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from blowing_off import BlowingOffClient
from blowing_off.live import SocketTransport
from blowing_off.transport import HttpTransport
from tests.server.calls import GUARD_SECONDS
from tests.storm.processes import Process

DEVICES: Final = int(os.environ.get("DEEP_EXAMPLES", "12"))


async def soon(_: float) -> None:
    """In place of waiting longer each time for the server."""
    await asyncio.sleep(0.01)


class Home:
    """The devices, and what is waited for of all of them together."""

    def __init__(self) -> None:
        self.devices: list[BlowingOffClient] = []
        self.offline: set[int] = set()
        self.heard = 0
        self._moved = Condition()

    @asynccontextmanager
    async def live(self, number: int, path: Path, url: str) -> AsyncIterator[None]:
        """One device, watching."""
        async with BlowingOffClient(path, url, user=f"user-{number}") as device:
            self.devices.append(device)
            watching = asyncio.create_task(self._watch(number, device))
            yield
            watching.cancel()
            await asyncio.wait({watching})
            assert watching.cancelled()

    async def _watch(self, number: int, device: BlowingOffClient) -> None:
        async with aclosing(device.watch(look_s=0.05, sleep=soon)) as events:
            async for event in events:
                async with self._moved:
                    self.heard += event.kind == "news"
                    (self.offline.add if event.kind == "offline" else self.offline.discard)(number)
                    self._moved.notify_all()

    async def until(self, come: Callable[[], bool]) -> None:
        async with self._moved:
            await self._moved.wait_for(come)

    async def write(self, what: str) -> None:
        for device in self.devices:
            await device.add("device", f"{what} of {device.state.user}")

    def all_hold(self, entities: int) -> bool:
        """Whether every device holds as many, has nothing left to send, and is equal to every other one."""
        counts = [device.store.counts() for device in self.devices]
        return (
            {(entities, 0)} == {(count.entities, count.pending) for count in counts}
            and 1 == len({device.state.digest for device in self.devices})
        )  # fmt: skip


class Server(Process):
    """A server for everybody, on a file and a port of one's own choice."""

    def __init__(self, db: Path, port: int = 0) -> None:
        super().__init__("inbetweenies.cli", "serve", "--db", db, "--port", port, "--no-auth")
        line = self.line()
        assert line.startswith("listening on http://"), (line, self.errors())
        self.url = line.removeprefix("listening on ").strip()


async def test_many_live_devices_see_one_another_and_are_equal_after_every_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = tmp_path / "home.db"
    home = Home()
    opened = SocketTransport.open
    connections: list[SocketTransport] = []

    async def noted(http: HttpTransport, offer: tuple[str, ...]) -> SocketTransport:
        connections.append(await opened(http, offer))
        return connections[-1]

    monkeypatch.setattr(SocketTransport, "open", noted)
    with ExitStack() as servers:
        server = servers.enter_context(Server(db))
        async with AsyncExitStack() as stack, asyncio.timeout(GUARD_SECONDS + 4 * DEVICES):
            for number in range(DEVICES):
                await stack.enter_async_context(home.live(number, tmp_path / f"{number}.blow", server.url))
            await home.write("first")
            await home.until(lambda: home.all_hold(DEVICES))
            heard = home.heard

            server.kill()
            await home.until(lambda: len(home.offline) == DEVICES)
            await home.write("while it was away")
            again = servers.enter_context(Server(db, int(server.url.rpartition(":")[2])))
            await home.until(lambda: not home.offline and home.all_hold(2 * DEVICES))

            for connection in connections[-DEVICES::2]:
                connection._socket.transport.abort()
            await home.write("while half of the lines were cut")
            await home.until(lambda: not home.offline and home.all_hold(3 * DEVICES))
            again.process.terminate()
            again.ended()
    print(f"figures: {DEVICES} devices, {3 * DEVICES} entities each, {len(connections)} connections, {home.heard} news")

    assert heard > 0
    assert DEVICES + DEVICES + DEVICES // 2 <= len(connections)
