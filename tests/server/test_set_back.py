"""A server process that is killed and whose database is replaced by a backup, and three clients and a deployed one.

Nobody types a command: the server is started again as it was, everybody syncs twice, and every write is there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx
import pytest

from blowing_off import BlowingOffClient
from inbetweenies import cli
from inbetweenies.auth import SqliteTokens
from inbetweenies.testing.fleet_base import Act, World
from tests.compat.peers import HomeKitV1
from tests.server.calls import GUARD_SECONDS, ROOT, environment
from tests.support import SECOND

#: How many writes are acknowledged after the backup was made.
WRITES: Final = int(os.environ.get("DEEP_EXAMPLES", "12"))
GRAPH: Final = "home"
OURS: Final = ("ann", "bob", "eve")


def broken(law: str, what: str) -> NoReturn:
    raise AssertionError(f"law {law}: {what}")


class Site:
    """A folder with a database, a server on it, and the clients of that."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.db = folder / "home.db"
        self.arguments = arguments
        self.now = time.time_ns() // 1000 - 6 * 3600 * SECOND
        with closing(SqliteTokens(self.db)) as tokens:
            self.tokens = {name: tokens.create(GRAPH, name)[0] for name in (*OURS, "phone")}
        self.process: subprocess.Popen[str] | None = None
        self.url = ""
        world = World(clock=self.clock, told=lambda line: None, broken=broken, page_rows=1000, batch=500)
        self.phone = HomeKitV1("phone", world, httpx.Client(), self.tokens["phone"])

    def clock(self) -> int:
        self.now += 2 * SECOND  # nothing is undecided because two did it in the same second
        return self.now

    # the server

    def start(self) -> None:
        command = [sys.executable, "-m", "inbetweenies.cli", "serve", "--port", "0", "--db", str(self.db)]
        self.process = subprocess.Popen(
            [*command, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment(),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line
        self.url = line.removeprefix("listening on ").strip()
        self.phone.http.close()
        self.phone.http = httpx.Client(base_url=self.url)

    def kill(self) -> None:
        """It gets no chance to tidy up."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(GUARD_SECONDS)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def backup(self) -> Path:
        """With SQLite's backup API, while the server runs."""
        kept = self.folder / f"backup-{time.monotonic_ns()}.db"
        with closing(sqlite3.connect(self.db)) as source, closing(sqlite3.connect(kept)) as target:
            source.backup(target)
        return kept

    def set_back(self, backup: Path, *lose: str) -> None:
        """Kill the server, put the backup in the place of the file, start the server again."""
        self.kill()
        for end in ("", "-wal", "-shm"):
            Path(f"{self.db}{end}").unlink(missing_ok=True)
        for end in lose:
            shutil.rmtree(f"{self.db}.{end}")
        shutil.copy(backup, self.db)
        self.start()

    # who writes

    def client(self, name: str) -> BlowingOffClient:
        return BlowingOffClient(self.folder / f"{name}.blow", self.url, self.tokens[name], user=name, clock=self.clock)

    def lose(self, name: str) -> None:
        """The device is gone, and all that was kept on it."""
        for end in ("", "-wal", "-shm"):
            Path(self.folder / f"{name}.blow{end}").unlink(missing_ok=True)

    async def sync(self, *names: str) -> dict[str, Any]:
        """What each of our clients reported."""
        told = {}
        for name in names or OURS:
            async with self.client(name) as client:
                told[name] = await client.sync()
        return told

    async def move_in(self) -> None:
        async with self.client("ann") as ann:
            for number in range(5):
                await ann.add("home" if not number else "room", f"Place {number}", id=f"place-{number}")
            await ann.sync()
        await self.sync()
        for thing in ("home", "lamp", "room"):
            self.phone.edit(Act("create", thing, 0))
            assert self.phone.sync().success
        await self.sync()

    async def live(self, writes: int) -> None:
        """So many writes by our clients, each acknowledged, half of which somebody else has seen; and some by the
        deployed one, which nobody has pulled."""
        for number in range(writes):
            async with self.client(OURS[number % 2]) as client:
                place = f"place-{number % 5}"
                match number % 4:
                    case 0:
                        await client.add("device", f"Lamp {number}", {"n": number})
                    case 1:
                        await client.change(place, patch={f"k{number % 7}": number})
                    case 2:
                        await client.link(place, "place-0", "located_in", {"n": number}, id=f"edge-{number % 3}")
                    case _:
                        await client.change(place, name=f"Place {number}")
                report = await client.sync()
                assert (0, True) == (report.pending, report.equal)
            if number % 10 == 5:
                await self.sync("eve")
        for number in range(max(3, writes // 10)):
            self.phone.edit(Act("rename" if number % 2 else "set", ("home", "lamp", "room")[number % 3], number))
            assert self.phone.sync().success

    # what is there

    def log(self, *, current: bool = False) -> dict[tuple[str, str, str], tuple[str, str]]:
        """Every row: kind, id and version; and its hash and author."""
        asked = "SELECT kind, id, version, hex(hash), user_id FROM log"
        with closing(sqlite3.connect(self.db)) as connection:
            found = connection.execute(f"{asked} WHERE until > seq + 1000000" if current else asked).fetchall()
        return {(kind, id_, version): (hash_, user) for kind, id_, version, hash_, user in found}

    def status(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.invoke(["status", "--db", str(self.db), "--json"]) == 0
        [graph] = [one for one in json.loads(capsys.readouterr().out)["graphs"] if one["graph"] == GRAPH]
        return dict(graph)


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[list[Site]]:
    made: list[Site] = []
    yield made
    for site in made:
        site.kill()
        site.phone.http.close()


@pytest.mark.parametrize("lost", [(), ("heads",)], ids=["nothing else lost", "ends lost"])
async def test_a_database_that_is_set_back_has_every_write_again_from_its_journal(
    tmp_path: Path, sites: list[Site], capsys: pytest.CaptureFixture[str], lost: tuple[str, ...]
) -> None:
    site = Site(tmp_path)
    sites.append(site)
    site.start()
    await site.move_in()
    backup = site.backup()
    await site.live(WRITES)
    before = site.log()
    site.set_back(backup, *lost)
    first = site.log()
    site.set_back(backup, *lost)  # and once more
    reports = await site.sync()
    again = await site.sync()
    phone = site.phone.sync()

    assert before == first  # those of the deployed client, too, though nobody else has seen them
    assert before == site.log()
    assert phone.success
    for name in OURS:
        for told in (reports[name], again[name]):
            assert (False, 0, 0, True) == (told.rewound, told.offered, told.pending, told.equal)
    status = site.status(capsys)
    assert (len(before), "equal") == (status["seq"], status["journal"]["standing"])
    assert "equal" == status["beside"]["standing"]
    assert ["replay"] * 2 == [event["kind"] for event in status["events"]]
    assert status["replayed"] >= WRITES


@pytest.mark.parametrize(
    ("arguments", "lost"), [(("--no-journal",), ()), ((), ("journal",))], ids=["no journal", "journal lost"]
)
async def test_without_a_journal_clients_give_back_all_they_had_written_or_been_told(
    tmp_path: Path,
    sites: list[Site],
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    lost: tuple[str, ...],
) -> None:
    site = Site(tmp_path, *arguments)
    sites.append(site)
    site.start()
    await site.move_in()
    backup = site.backup()
    await site.live(WRITES)
    assert (await site.sync("eve"))["eve"].equal  # she has been told what the deployed client wrote last
    for _ in range(2):  # the second time to the same backup, with all that the first time has left
        before, seen = site.log(), site.log(current=True)
        site.set_back(backup, *lost)
        gone = len(before) - len(site.log())
        reports = await site.sync()
        await site.sync()

        assert gone >= WRITES
        assert [True] * 3 == [report.rewound or not report.lost for report in reports.values()]
        assert set() == {row for row, told in before.items() if told[1] in OURS and site.log().get(row) != told}
        assert set() == seen.keys() - site.log().keys()  # of the deployed client's, what was current
        again = await site.sync()
        assert [(True, False, 0)] * 3 == [(report.equal, report.rewound, report.offered) for report in again.values()]
        status = site.status(capsys)
        assert [1, True] == [status["forks"], status["offered"] >= WRITES]
        assert "the files beside the database" == status["events"][0]["by"]  # it was noticed before any client came
        assert ("equal" if lost else None) == (status["journal"] or {}).get("standing")  # one that was begun anew

    # A third time; and this time what told where the log stood is lost, and a device is.
    before, seen = site.log(), site.log(current=True)
    site.set_back(backup, "heads", *lost)
    site.lose("ann")
    await site.sync("eve", "bob")
    again = await site.sync()

    missing = {row: told for row, told in before.items() if site.log().get(row) != told}
    assert {"ann", "phone"} >= {user for _, user in missing.values()}
    assert set() == seen.keys() & missing.keys()  # others hold what was superseded before they looked only by chance
    assert [(True, False)] * 3 == [(report.equal, report.rewound) for report in again.values()]
    # The deployed client goes on as well.
    site.phone.edit(Act("set", "lamp", 1))
    assert site.phone.sync().success
    assert (await site.sync())["eve"].equal


async def test_a_copy_of_a_client_and_the_client_keep_what_both_wrote(tmp_path: Path, sites: list[Site]) -> None:
    site = Site(tmp_path)
    sites.append(site)
    site.start()
    await site.move_in()
    shutil.copy(tmp_path / "ann.blow", tmp_path / "copy.blow")
    url, token = site.url, site.tokens["ann"]
    wrote = []
    for name in ("ann", "copy"):
        async with BlowingOffClient(tmp_path / f"{name}.blow", url, token, clock=lambda: site.now) as client:
            # The same user, the same clock, the same counter: the same version for two things.
            wrote.append(await client.change("place-1", patch={name: 1}))
    assert wrote[0].version == wrote[1].version
    told = await site.sync("ann")
    async with BlowingOffClient(tmp_path / "copy.blow", url, token) as copy:
        second = await copy.sync()
        seen = {bytes(version.entity.content) for version in await copy.history("place-1")}
        assert copy.state.device != copy.state.device.partition("~")[0]
    third = await site.sync("ann")

    assert [False, True, False] == [told["ann"].forked, second.forked, third["ann"].forked]
    assert 1 == len(second.conflicts)
    assert [True, True] == [second.equal, third["ann"].equal]
    assert {bytes(one.content) for one in wrote} <= seen
    with closing(sqlite3.connect(site.db)) as connection:
        found = connection.execute("SELECT version FROM log WHERE id = 'place-1'").fetchall()
    assert 1 == sum(version == wrote[0].version for (version,) in found)
    assert 1 == sum(version.startswith(f"{wrote[0].version}#") for (version,) in found)
