"""A real server that is written to while backups of it are made, and that is restored from any of them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest

from inbetweenies.ops.backup import backup
from inbetweenies.ops.restore import restore
from inbetweenies.ops.verify import verify
from tests.server.test_set_back import GRAPH, OURS, Site

WRITES = 12


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.kill()
    site.phone.http.close()


def log(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute("SELECT seq, kind, id, version, hash, chain FROM log ORDER BY seq").fetchall()


class Backups:
    """Makes backups for as long as it is on, one after another."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.files: list[Path] = []
        self.error: BaseException | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._make)

    def _make(self) -> None:
        try:
            while not self._end.is_set():
                self.files.append(backup(self.site.db, self.site.folder / "kept").path)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is seen
            self.error = error

    def __enter__(self) -> Self:
        (self.site.folder / "kept").mkdir()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self.error is not None:
            raise self.error


def set_back(site: Site, file: Path, **options: Any) -> None:
    site.kill()
    restore(file, site.db, **options)
    site.start()


async def test_backups_of_a_server_that_is_written_to_are_beginnings_of_its_log(site: Site) -> None:
    site.start()
    await site.move_in()
    with Backups(site) as backups:
        await site.live(WRITES)
    whole = log(site.db)
    lengths = [len(log(file)) for file in backups.files]

    assert ["good"] * len(lengths) == [verify(file).kind for file in backups.files]
    for file, length in zip(backups.files, lengths, strict=True):
        assert whole[:length] == log(file)
    assert sorted(lengths) == lengths
    assert 1 < len(set(lengths))  # some were made between writes
    for file in (backups.files[0], backups.files[len(lengths) // 2]):
        set_back(site, file)
        first = log(site.db)
        await site.sync()
        reports = await site.sync()

        assert whole == first == log(site.db)  # also what the deployed client wrote, which nobody else has seen
        assert {(True, 0, False)} == {(one.equal, one.pending, one.rewound) for one in reports.values()}
    assert site.phone.sync().success


async def test_without_a_journal_clients_give_back_what_the_backup_lacks(site: Site) -> None:
    site.arguments = ("--no-journal",)
    site.start()
    await site.move_in()
    file = await asyncio.to_thread(lambda: backup(site.db, site.folder / "b.db").path)
    await site.live(WRITES)
    await site.sync("eve")
    before, seen = site.log(), site.log(current=True)
    set_back(site, file)
    gone = len(before) - len(site.log())
    await site.sync()
    reports = await site.sync()

    assert gone >= WRITES
    assert set() == {row for row, told in before.items() if told[1] in OURS and site.log().get(row) != told}
    assert set() == seen.keys() - site.log().keys()
    assert [True] * 3 == [report.equal for report in reports.values()]


async def test_what_is_discarded_stays_away_whoever_holds_it(site: Site) -> None:
    site.start()
    await site.move_in()
    file = await asyncio.to_thread(lambda: backup(site.db, site.folder / "b.db").path)
    kept = log(site.db)
    await site.live(WRITES)
    set_back(site, file, discard=True)
    await site.sync()
    reports = await site.sync()

    assert kept == log(site.db)
    assert [True] * 3 == [report.equal for report in reports.values()]
    assert GRAPH in {mark.graph for mark in (verify(file).manifest or pytest.fail("none")).graphs}
