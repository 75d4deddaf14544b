"""Clients that are killed again and again while they edit and sync (laws 1 and 2, PROTOCOL 10).

Two clients in processes of their own, one server. A client is killed when it has said so many lines, or in front of a
statement of SQLite's. Its file must then hold every edit that it said was made, each of them either waiting or on the
server, and everything that must hold in a replica at any moment. In the end both sync, and all three hold the same:
each edit once, and no row that nobody made.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path
from typing import Final

from blowing_off import BlowingOffClient, SyncReport
from tests.storm.log import Key, held, lines
from tests.storm.processes import Process, Server
from tests.storm.replica import replica

KILLS: Final = int(os.environ.get("DEEP_EXAMPLES", "4"))
NAMES: Final = ("ann", "bob")
#: When a client is killed: after so many lines, or in front of a statement.
MOMENTS: Final = ("lines", "statement")


class Storm:
    """Two files of clients, and all that was ever said to be in them."""

    def __init__(self, folder: Path, server: Server, path: Path, seed: int, bug: str = "") -> None:
        self.server = server
        self.path = path
        self.files = {name: folder / f"{name}.db" for name in NAMES}
        self.dice = random.Random(seed)
        self.bug = bug
        self.said: dict[str, set[Key]] = {name: set() for name in NAMES}
        self.kinds: Counter[str] = Counter()
        self.syncs = self.unheard = 0

    def kill(self, moments: tuple[str, ...] = MOMENTS) -> None:
        """Both live at once; both are killed, each at a moment of its own."""
        running: list[tuple[str, Process, int]] = []
        for name in NAMES:
            moment = self.dice.choice(moments)
            self.kinds[moment] += 1
            count = self.dice.randint(1, 40) if moment == "lines" else 0
            statement = self.dice.randint(1, 2000) if moment == "statement" else 0
            seed = self.dice.randrange(10**6)
            client = Process("tests.storm.client", self.files[name], self.server.url, name, seed, statement, self.bug)
            running.append((name, client, count))
        for name, client, count in running:
            with client:
                said = self.listen(client, count)
                client.kill()
                said += client.ended().splitlines(keepends=True)
                assert -9 == client.process.returncode, client.errors()
            self.hear(name, said)
        for name in NAMES:
            self.check(name)

    def listen(self, client: Process, count: int) -> list[str]:
        """The next `count` lines, or all there are until it ends by itself."""
        said: list[str] = []
        while (not count or len(said) < count) and (line := client.line()):
            said.append(line)
        return said

    def hear(self, name: str, said: list[str]) -> None:
        """Take down what was said in whole lines."""
        for line in said:
            match line.removesuffix("\n").split("\t") if line.endswith("\n") else ():
                case ["edit", ("entity" | "edge") as kind, id_, version]:
                    self.said[name].add((kind, id_, version))
                case ["sync", *_]:
                    self.syncs += 1

    def check(self, name: str) -> None:
        """What a killed client left."""
        here = replica(self.files[name])
        assert set() == self.said[name] - here.own, "an edit that was said to be made is not here"
        there = set(held(self.path, list(here.own)).versions)
        assert set() == here.own - there - {*here.waiting}, "an edit is neither on the server nor waits"
        self.unheard += len(there & {*here.waiting})

    def calm_down(self) -> None:
        """Everybody syncs until nothing is left to say."""
        reports = [asyncio.run(self.sync(name)) for name in NAMES * 2][-2:]
        assert [(True, 0, ())] * 2 == [(report.equal, report.pending, report.refused) for report in reports]
        assert reports[0].digest == reports[1].digest
        rows = {name: replica(self.files[name]) for name in NAMES}
        assert rows["ann"].theirs == rows["bob"].theirs
        made = rows["ann"].own | rows["bob"].own
        log = [line.key for line in lines(self.path) if ".m" not in line.version]
        assert sorted(made) == sorted(log)

    async def sync(self, name: str) -> SyncReport:
        """One sync, in this process."""
        async with BlowingOffClient(self.files[name], self.server.url) as client:
            return await client.sync()


def test_whatever_a_killed_client_said_was_made_is_there_once_and_reaches_the_server(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    with Server(path) as server:
        storm = Storm(tmp_path, server, path, seed=7)
        for _ in range(KILLS // 2):
            storm.kill()
        storm.calm_down()

    edits = sum(len(said) for said in storm.said.values())
    print(
        f"figures: {KILLS // 2 * 2} kills ({dict(storm.kinds)}), {edits:,} edits, 0 lost, 0 doubled, {storm.syncs:,} "
        f"syncs, {storm.unheard} acks that a kill kept from being heard"
    )
    assert edits > KILLS
