"""The commands `migrate` and `rollback`: what they print, how they end, and that a process may die anywhere."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from blowing_off import BlowingOffClient
from blowing_off.demo.clients import RecordClient
from blowing_off.demo.ledger import Clock, Ledger
from blowing_off.demo.server import Server
from inbetweenies import cli
from inbetweenies.auth import SqliteTokens
from inbetweenies.model import make_version
from tests.ops.deployed import GRAPH, HOMEKIT, PLAIN, REAL, made, put, real
from tests.server.calls import ROOT, environment

Capture = pytest.CaptureFixture[str]
HOME = [(table, PLAIN[table]) for table in ("homes", "rooms", "accessories", "users", "accessory_rooms", "services")]


def told(capsys: Capture, *arguments: object, code: int = 0) -> Any:
    assert cli.invoke([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def printed(capsys: Capture, *arguments: object, code: int = 0) -> list[str]:
    assert cli.invoke([*map(str, arguments)]) == code
    return capsys.readouterr().out.splitlines()


def failed(capsys: Capture, *arguments: object, code: int = 1) -> str:
    assert cli.invoke([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert (1, "") == (len(captured.err.splitlines()), captured.out)
    return captured.err


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return made(tmp_path / "old.db", HOMEKIT, HOME)


# --- what they print ----------------------------------------------------------------------------------------------


def test_an_import_is_told_table_by_table(capsys: Capture, old: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        put(connection, "rooms", {"id": "lost", "home_id": "nowhere"})
        put(connection, "services", {"id": "lost", "accessory_id": "nowhere"})
        connection.commit()
    db = tmp_path / "home.db"
    lines = printed(capsys, "migrate", old, "--db", db)

    assert lines[0].startswith("8 rows of old.db (")
    assert lines[0].endswith(f") in graph default of {db}: 8 by this run")
    assert "rooms            2     2      0       0        0        0" in lines
    assert "services         2     1      0       0        1        0" in lines
    assert "and 3 links of these rows as edges" in lines
    assert "refused: services lost: expected its accessory to be there; it is not, or was refused" in lines
    assert "noted: rooms lost: expected what home_id names to be there; it is not, and the link was left out" in lines

    again = printed(capsys, "migrate", old, "--db", db)
    assert again[0].endswith("everything was there already, 0 moved")
    assert lines[1:] == again[1:]


def test_an_import_is_told_to_programs(capsys: Capture, old: Path, tmp_path: Path) -> None:
    db = tmp_path / "home.db"
    done = told(capsys, "migrate", old, "--db", db, "--graph", "home")

    assert ({}, {"moved": 6, "merged": 0, "present": 0, "refused": 0}) == (done["unexplained"], done["ran"])
    assert ("home", "imported", 6) == tuple(done["import"][name] for name in ("graph", "state", "rows"))
    undone = told(capsys, "migrate", old, "--db", db, "--graph", "home", "--undo")
    assert ({"out": 8}, "undone") == (undone["ran"], undone["import"]["state"])


def test_what_is_refused_by_the_thousand_is_counted(capsys: Capture, tmp_path: Path) -> None:
    rows = [("accessory_rooms", {"accessory_id": f"a{number}"}) for number in range(1003)]
    lines = printed(capsys, "migrate", made(tmp_path / "old.db", HOMEKIT, rows), "--db", tmp_path / "home.db")

    assert "refused: 3 more; --json counts them by table and reason" == lines[-1]


def test_undoing_is_told(capsys: Capture, old: Path, tmp_path: Path) -> None:
    db = tmp_path / "home.db"
    printed(capsys, "migrate", old, "--db", db)

    assert ["8 taken out"] == printed(capsys, "migrate", old, "--db", db, "--undo")
    again = printed(capsys, "migrate", old, "--db", db, "--undo")
    assert again[0].endswith("nothing of it was left in graph default, 0 taken out")


def test_what_cannot_be_imported_leaves_no_database_behind(capsys: Capture, old: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other.db", "CREATE TABLE notes (id);", [])

    assert "got notes" in failed(capsys, "migrate", other, "--db", tmp_path / "home.db")
    assert "got no file" in failed(capsys, "migrate", tmp_path / "none.db", "--db", tmp_path / "home.db")
    assert "got no file" in failed(capsys, "migrate", old, "--db", tmp_path / "home.db", "--undo")
    assert "another file" in failed(capsys, "migrate", old, "--db", old, code=2)
    assert "got both" in failed(capsys, "migrate", old, "--db", tmp_path / "home.db", "--undo", "--tell-all", code=2)
    journals = ("--journal", tmp_path / "j", "--no-journal")
    assert "got both" in failed(capsys, "migrate", old, "--db", tmp_path / "home.db", *journals, code=2)
    assert {"old.db", "other.db"} == {path.name for path in tmp_path.iterdir()}


def test_a_rollback_is_planned_in_counts(capsys: Capture, old: Path, tmp_path: Path) -> None:
    db = tmp_path / "home.db"
    printed(capsys, "migrate", old, "--db", db)

    lines = printed(capsys, "rollback", "--plan", "--db", db)
    assert lines[0].endswith("8 rows of the graph are shown in 5 records; not shown:")
    assert "relationships  located_in  all of it            edge   1" in lines
    assert "0 unexplained" == lines[-1]
    [plan] = told(capsys, "rollback", "--plan", "--db", db)["versions"]
    assert (8, 5, []) == (plan["rows"], plan["records"], plan["unexplained"])
    assert "expected --plan" in failed(capsys, "rollback", "--db", db, code=2)


def test_what_has_no_explanation_is_an_error(
    capsys: Capture, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inbetweenies.ops import losses, migrate

    db = tmp_path / "home.db"
    printed(capsys, "migrate", old, "--db", db)

    async def nothing(*_: object) -> Any:
        return (losses.Losses(version="v", rows=1, records=0, losses=(), unexplained=("/entities/e",)),)

    async def lost(*_: object) -> dict[str, int]:
        return {"rooms": 1}

    monkeypatch.setattr(losses, "plan", nothing)
    monkeypatch.setattr(migrate, "_unexplained", lost)
    assert "  /entities/e" == printed(capsys, "rollback", "--plan", "--db", db, code=1)[-1]
    assert {"rooms": 1} == told(capsys, "migrate", old, "--db", db, code=1)["unexplained"]


# --- killed -------------------------------------------------------------------------------------------------------

_KILLS = max(2, int(os.environ.get("DEEP_EXAMPLES", "0")) if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 0)

#: A process that dies after so many writes to the store, in the middle of one or right after it.
_DYING = """
import os, signal, sys
from inbetweenies import cli
from inbetweenies.stores import sqlite

left = int(sys.argv[1])

def dies(name, cls):
    plain = getattr(cls, name)
    def after(self, *arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        done = plain(self, *arguments)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    setattr(cls, name, after)

dies("_apply", sqlite._Transaction)
dies("_commit", sqlite._Transaction)
from inbetweenies.ops import migrate, source
migrate.BATCH_ROWS = 3
migrate.migrate.__kwdefaults__["rows"] = migrate.undo.__kwdefaults__["rows"] = 3
sys.exit(cli.invoke(sys.argv[2:]))
"""


def many(path: Path) -> Path:
    rows: list[tuple[str, dict[str, Any]]] = []
    for number in range(12):
        version = make_version(1_795_397_000_000_000 + number, 0, "ann")
        rows.append(("entities", {"id": f"e{number}", "version": version}))
        rows.append(
            (
                "entity_relationships",
                {
                    "id": f"x{number}",
                    "from_entity_id": f"e{number}",
                    "from_entity_version": version,
                    "to_entity_id": "e0",
                    "to_entity_version": rows[0][1]["version"],
                },
            )
        )
    return made(path, GRAPH, rows)


def run_until_it_dies(step: int, *arguments: object) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _DYING, str(step), *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.mark.parametrize("seed", range(_KILLS))
def test_wherever_it_is_killed_it_goes_on_and_every_row_is_there_once(
    capsys: Capture, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    old, db = many(tmp_path / "old.db"), tmp_path / "home.db"
    kills = 0
    while run_until_it_dies(chance.randint(5, 40), "migrate", old, "--db", db):
        kills += 1
    done = told(capsys, "migrate", old, "--db", db)

    assert ({}, 24, 24) == (done["unexplained"], done["import"]["rows"], _lines(db))
    assert {"entities": {"moved": 12}, "entity_relationships": {"moved": 12}} == {
        table: {fate: count for fate, count in fates.items() if count}
        for table, fates in done["import"]["fates"].items()
    }
    while run_until_it_dies(chance.randint(5, 40), "migrate", old, "--db", db, "--undo"):
        kills += 1
    undone = told(capsys, "migrate", old, "--db", db, "--undo")
    assert ({"out": 24}, 48) == (undone["import"]["out"], _lines(db))
    print(f"figures: {kills} kills")


def _lines(db: Path) -> int:
    with closing(sqlite3.connect(db)) as connection:
        return int(connection.execute("SELECT count(*) FROM log").fetchone()[0])


def test_one_that_is_killed_at_any_moment_goes_on(capsys: Capture, tmp_path: Path) -> None:
    old, db = many(tmp_path / "old.db"), tmp_path / "home.db"
    for seed in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "inbetweenies.cli", "migrate", str(old), "--db", str(db)],
            cwd=ROOT,
            env=environment(),
        )
        time.sleep(0.2 + random.Random(seed).random() / 2)
        process.kill()
        process.wait(30)

    assert ({}, 24) == (told(capsys, "migrate", old, "--db", db)["unexplained"], _lines(db))


# --- served -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    with closing(SqliteTokens(server.db)):
        pass
    yield server
    server.stop()


@real
@pytest.mark.parametrize(("name", "entities", "records"), [("v1.sqlite", 13, 13), ("v2.sqlite", 33, 15)])
async def test_what_was_migrated_is_served_rolled_back_and_forward_and_taken_out_again(
    capsys: Capture, tmp_path: Path, server: Server, name: str, entities: int, records: int
) -> None:
    """Both kinds of clients see all of it, and what they write survives whatever happens to the import."""
    file = REAL / name
    graph = ("--db", server.db, "--graph", "home")
    assert {} == (await asyncio.to_thread(told, capsys, "migrate", file, *graph))["unexplained"]
    ledger = Ledger(Clock(), lambda _: None)

    with server:
        token = server.token("ann")
        async with (
            httpx.AsyncClient(base_url=server.url) as http,
            BlowingOffClient(tmp_path / "replica.db", server.url, token=token) as replica,
        ):
            scripted = RecordClient("scripted", http, token, ledger)
            await scripted.sync()
            await replica.sync()
            assert (records, entities) == (len(scripted.records), await _count(replica))

            # Rolled back: the newer version is refused, the older one goes on; what it does not show is still there.
            await asyncio.to_thread(told, capsys, "versions", "disable", "inbetweenies-v2", "--db", server.db, "--yes")
            home = next(id_ for type_, id_ in scripted.records if type_ == "home")
            scripted.edit("home", home, "renames", name="Renamed while rolled back")
            await scripted.sync()
            await asyncio.to_thread(told, capsys, "versions", "enable", "inbetweenies-v2", "--db", server.db)

            await replica.sync()
            found = await replica.get(home)
            assert found is not None
            assert ("Renamed while rolled back", entities) == (found.name, await _count(replica))
            made_here = await replica.add("room", "Added since", {})
            await replica.sync()

            # Taken out: what was written since stays.
            undone = (await asyncio.to_thread(told, capsys, "migrate", file, *graph, "--undo"))["import"]
            assert 1 == undone["out"]["kept"]
            await replica.sync()
            await scripted.sync()
            assert {home, made_here.id} == await _ids(replica)
            assert {home, made_here.id} == {id_ for _, id_ in scripted.records}

            await asyncio.to_thread(told, capsys, "migrate", file, *graph)
            await replica.sync()
            await scripted.sync()
            assert (entities + 1, records + 1) == (await _count(replica), len(scripted.records))


async def _ids(replica: BlowingOffClient) -> set[str]:
    return {entity.id for entity in await replica.find()}


async def _count(replica: BlowingOffClient) -> int:
    return len(await _ids(replica))
