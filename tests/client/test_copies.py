"""Clients that were copied or set back: whatever each copy writes is kept, and they go on under names of their own."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from blowing_off import BlowingOffClient, Unreachable
from inbetweenies.model import Reads
from tests.client.test_client import Clock, Home, client_of, names, same
from tests.client.test_rewind import backup_of, lamps
from tests.support import NOW, SECOND


async def both_copies_keep_what_they_wrote(folder: Path) -> None:
    home = Home()
    async with client_of(home, "ann", path=folder / "one.db") as ann:
        lamp = await ann.add("device", "Lamp")
        await ann.sync()
    shutil.copy(folder / "one.db", folder / "two.db")
    clock = Clock(NOW + SECOND)
    one = BlowingOffClient(folder / "one.db", transport=home, clock=Clock(NOW + SECOND))
    two = BlowingOffClient(folder / "two.db", transport=home, clock=clock)
    async with one, two:
        # The same user, the same moment: the same version for two things.
        mine = await one.change(lamp.id, patch={"one": 1})
        theirs = await two.change(lamp.id, patch={"two": 2})
        assert mine.version == theirs.version
        reports = [await one.sync(), await two.sync(), await one.sync()]
        more = await two.change(lamp.id, patch={"more": 1})
        last = await two.sync()
        await one.sync()

        assert [False, True, False, False] == [report.forked for report in (*reports, last)]
        assert one.state.device != two.state.device
        assert one.state.device == two.state.device.partition("~")[0]
        assert one.state.incarnation != two.state.incarnation
        held = {bytes(row.entity().content) for row in home.held(Reads(history=(lamp.id,))).history[lamp.id]}
        assert {b"{}", b'{"one":1}', b'{"two":2}'} <= held
        assert more.version in home.versions(lamp.id)
        assert same(one, two)
        assert 1 == len(reports[1].conflicts)


async def test_both_copies_of_a_client_keep_what_they_wrote(tmp_path: Path) -> None:
    await both_copies_keep_what_they_wrote(tmp_path)


async def test_a_client_that_is_set_back_goes_on_under_a_name_of_its_own(tmp_path: Path) -> None:
    home = Home()
    path = tmp_path / "ann.db"
    async with client_of(home, path=path) as ann:
        await ann.add("device", "First")
        await ann.sync()
    shutil.copy(path, tmp_path / "backup.db")
    async with client_of(home, path=path, clock=Clock(NOW + SECOND)) as ann:
        await ann.add("device", "Second")
        await ann.sync()
    shutil.copy(tmp_path / "backup.db", path)
    async with client_of(home, path=path, clock=Clock(NOW + SECOND)) as ann:
        third = await ann.add("device", "Third")  # in the same moment as the second
        report = await ann.sync()

        assert (True, True, 0) == (report.forked, report.equal, report.pending)
        assert {"First", "Second", "Third"} == set(await names(ann))
        assert [third.version] == home.versions(third.id)
        assert not (await ann.sync()).forked


async def test_a_push_whose_answer_was_lost_makes_no_copy_of_a_client() -> None:
    home = Home()
    ann = await lamps(home)
    for number in range(40):
        await ann.add("device", f"New {number}")
        home.faults.append("unheard" if number % 3 else "lost")
        with suppress(Unreachable):
            await ann.sync()
    report = await ann.sync()

    assert (False, True, 0) == (report.forked, report.equal, report.pending)


async def test_a_server_that_was_set_back_makes_no_copy_of_a_client() -> None:
    home = Home()
    ann = await lamps(home)
    backup = backup_of(home)
    for number in range(3):
        await ann.add("device", f"New {number}")
        await ann.sync()
    home.use(backup)
    reports = []
    for number in range(3):
        await ann.add("device", f"Newer {number}")
        reports.append(await ann.sync())

    assert [False] * 3 == [report.forked for report in reports]
