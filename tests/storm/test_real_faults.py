"""Storage that really fails: no room, no more bytes for a file, interruption, another writer, no memory.

What SQLite itself does when the system fails under it, in place of what `tests.storm.faults` says that it does.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import pytest

from tests.server.calls import ROOT, environment
from tests.storm.log import lines
from tests.storm.test_io_errors import LARGE, PULL, Served, bare, home, stored

SCALE: Final = int(os.environ.get("DEEP_EXAMPLES", "1"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a graph."""
    return home(tmp_path_factory.mktemp("base") / "base.db")


@pytest.fixture(scope="module")
def after(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What the push makes of it."""
    path = tmp_path_factory.mktemp("after") / "after.db"
    push(base, path)
    return stored(path)


def push(base: Path | None, path: Path) -> None:
    """The push, in peace; onto what is at `path`, or onto a copy of `base`."""

    async def script() -> None:
        served = Served(base, path)
        assert (await served.ask(*LARGE)).status == 200
        await served.close()

    asyncio.run(script())
    lines(path)


class Trial:
    """One store on which a push fails until it does not, looked at every time."""

    def __init__(
        self,
        base: Path,
        path: Path,
        after: dict[str, list[Any]],
        on_connect: Callable[[sqlite3.Connection], object] | None = None,
    ) -> None:
        self.served = Served(base, path, on_connect=on_connect)
        self.path = path
        self.before = stored(path)
        self.after = after
        self.failed = self.unknown = 0

    async def push(self, while_: AbstractContextManager[object] | None = None) -> bool:
        """Whether it was taken. If not, nothing of it is there, or, once in a while, all of it."""
        with while_ or nullcontext():
            answer = await self.served.ask(*LARGE)
        left = stored(self.path)
        if answer.status == 200:
            assert self.after == left
            return True
        assert (503, "unavailable") == (answer.status, answer.json["code"])
        assert int(answer.headers["retry-after"]) >= 1
        assert left in (self.before, self.after)
        self.unknown += left != self.before
        self.failed += 1
        return False

    async def pull(self) -> None:
        """Reading goes on."""
        assert (await self.served.ask(*PULL)).status == 200

    async def close(self) -> None:
        await self.served.close()
        assert self.after == stored(self.path)
        lines(self.path)


async def test_without_room_a_push_is_refused_and_taken_once_there_is(
    base: Path, tmp_path: Path, after: dict[str, list[Any]]
) -> None:
    connections: list[sqlite3.Connection] = []
    trial = Trial(base, tmp_path / "server.db", after, connections.append)
    await trial.pull()
    [connection] = connections
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    while True:
        # A page more each time, so that the room ends at every place of the push.
        connection.execute(f"PRAGMA max_page_count = {pages + trial.failed}")
        if await trial.push():
            break
        await trial.pull()
    await trial.close()

    print(f"figures: {trial.failed} pages too few, {trial.unknown} kept")
    assert trial.failed > 5


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process can grow beyond this; a write that would is cut short, then refused."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_write_that_the_system_cuts_short_anywhere_is_no_write(
    base: Path, tmp_path: Path, after: dict[str, list[Any]]
) -> None:
    trial = Trial(base, tmp_path / "server.db", after)
    # Somebody who reads: or the log would be made anew each time, and be too large before anything is in it.
    with closing(sqlite3.connect(trial.path)) as reader:
        reader.execute("SELECT count(*) FROM log").fetchone()
        await trial.pull()
        size = 32
        while not await trial.push(files_of_at_most(size)):
            await trial.pull()
            size += 4133 // SCALE  # no multiple of a page: writes are cut in their middle, too
    await trial.close()

    print(f"figures: cut at {trial.failed} places of the log, {trial.unknown} kept")
    assert trial.failed > 5


async def test_a_push_that_is_interrupted_anywhere_is_refused_and_taken_the_next_time(
    base: Path, tmp_path: Path, after: dict[str, list[Any]]
) -> None:
    left = 0
    lit = False

    def tick() -> bool:
        nonlocal left
        left -= lit
        return lit and left == 0

    def light(statement: str) -> None:
        # What is learnt before the transaction is no part of serving the push.
        nonlocal lit
        lit |= statement == "BEGIN IMMEDIATE"

    def watch(connection: sqlite3.Connection) -> None:
        connection.set_progress_handler(tick, 1)
        connection.set_trace_callback(light)

    trial = Trial(base, tmp_path / "server.db", after, watch)
    taken = False
    while not taken:
        left, lit = 1 + trial.failed * max(1, 197 // SCALE), False
        taken = await trial.push()
        left = 0
    await trial.close()

    print(f"figures: interrupted at {trial.failed} operations, {trial.unknown} kept")
    assert trial.failed > 5


async def test_while_another_process_writes_a_push_is_refused_and_pulls_go_on(
    base: Path, tmp_path: Path, after: dict[str, list[Any]]
) -> None:
    trial = Trial(base, tmp_path / "server.db", after)
    with closing(sqlite3.connect(trial.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            assert not await trial.push()
            await trial.pull()
        other.execute("ROLLBACK")
    assert await trial.push()
    await trial.close()


def broken(way: str, base: Path, folder: Path, limits: list[int]) -> dict[int, int]:
    """The status of the push at each limit. See `tests.storm.broken`."""
    command = [sys.executable, "-m", "tests.storm.broken", way, str(base), str(folder), *map(str, limits)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {int(limit): int(status) for limit, status in map(str.split, done.stdout.splitlines())}


def test_without_memory_a_push_is_refused_and_taken_once_there_is(
    base: Path, tmp_path: Path, after: dict[str, list[Any]]
) -> None:
    statuses = broken("memory", base, tmp_path, [*range(160_000, 4_000_000, 30_000 // SCALE)])
    kept = 0
    for limit, status in statuses.items():
        path = tmp_path / f"{limit}.db"
        left = stored(path)
        assert status in (200, 503)
        assert left == after or (status == 503 and bare(left) == stored(base))
        kept += status == 503 and left == after
        push(None, path)
        assert after == stored(path)

    refused = [*statuses.values()].count(503)
    print(f"figures: {len(statuses)} bounds of memory, {refused} too small, {kept} kept")
    assert 0 < refused < len(statuses)
