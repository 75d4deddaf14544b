"""The demo: it shows what it says, it can fail, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import pytest

from blowing_off import demo
from blowing_off.demo import proof, showing
from blowing_off.demo.clients import RecordClient
from blowing_off.demo.ledger import Write
from blowing_off.demo.proof import Picture
from blowing_off.demo.server import Server
from blowing_off.demo.story import Fleet
from blowing_off.show import Screen
from inbetweenies.model import format_time

ROOT = Path(__file__).resolve().parents[1]
GUARD_SECONDS = 120  # only ever reached when something hangs


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made during the test."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], files: list[Path] | None = None) -> tuple[int, dict[str, Any]]:
    """The exit code of a demo, and the one JSON object that it printed."""
    code = demo.main(files or [], as_json=True)
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, told


# --- what it shows ------------------------------------------------------------------------------------------------


def test_four_clients_of_three_versions_converge_and_lose_nothing(
    capsys: pytest.CaptureFixture[str], folders: Path
) -> None:
    code, told = run(capsys)

    assert (0, True, 0) == (code, told["converged"], told["writes_lost"])
    assert told["writes_made"] == told["writes_current"] + told["writes_kept"] > 60
    assert (0, 0, []) == (told["imported"], told["unread"], told["lost"])
    assert [
        ("phone", "inbetweenies-v1", "inbetweenies-v1", True),
        ("tablet", "inbetweenies-v2", "inbetweenies-v2", True),
        ("laptop", "inbetweenies-v2", "inbetweenies-v2", True),
        ("panel", "inbetweenies-v7", "inbetweenies-v1", True),
    ] == [(each["name"], each["asked"], each["served"], each["equal"]) for each in told["clients"]]
    digests = {each["name"]: each["digest"] for each in told["clients"]}
    assert told["server_digest"] == told["counted_digest"] == digests["tablet"] == digests["laptop"]
    assert told["v1_digest"] == digests["phone"] == digests["panel"]
    assert [
        ("panel", ["name"], "phone", "panel"),
        ("tablet", ["label"], "laptop", "laptop"),
        ("tablet", ["deleted"], "laptop", "tablet"),
        ("tablet", ["name"], "phone", "phone"),
    ] == [(each["told_to"], list(each["fields"]), each["against"], each["winner"]) for each in told["conflicts"]]
    assert all(each["remote_version"] and each["resolved_version"] for each in told["conflicts"])
    assert [] == list(folders.iterdir())


def test_real_accessory_databases_take_part_in_it(capsys: pytest.CaptureFixture[str], shared_data: Path) -> None:
    files = sorted((shared_data / "homekit").glob("*.json"))

    code, told = run(capsys, files)

    assert files
    assert (0, True, 0, 0) == (code, told["converged"], told["writes_lost"], told["unread"])
    assert told["imported"] > 30
    assert told["imported"] < told["clients"][0]["entities"] < told["clients"][1]["entities"]


def test_people_get_tables_and_what_could_not_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"accessories": [{"aid": 7}]}')

    code = demo.main([broken], as_json=False)

    out = capsys.readouterr().out
    assert 0 == code
    assert "asked for                         was served       holds" in out
    assert "Could not be read" in out
    assert "broken.json: accessory 1 (aid 7)" in out
    assert "All hold the same, and no write was lost." in out
    assert "\x1b" not in out


def test_a_terminal_gets_rich_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    outcome = proof.Outcome(
        converged=False,
        imported=1,
        unread=(),
        writes=(Write(client="phone", kind="record", id="a", name="A", says={"name": "x" * 99}),),
        conflicts=(),
        clients=(
            proof.ClientShown(
                name="phone", asked="a", served=None, entities=1, digest="0", compared_with="b", equal=False
            ),
        ),
        server_digest="1",
        counted_digest="2",
        v1_digest="3",
    )

    showing.show(outcome, Screen(as_json=False))

    out = capsys.readouterr().out
    assert "────" in out
    assert "NOT b" in out
    assert "LOST" in out
    assert "This did NOT go well" in out


def test_a_person_who_looks_on_is_told_what_happens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    demo.teller(as_json=False)("the phone syncs")
    demo.teller(as_json=True)("not told")

    assert ("", "  the phone syncs\n") == capsys.readouterr()


# --- it can fail --------------------------------------------------------------------------------------------------


def test_rows_that_vanish_from_the_server_are_counted_as_lost(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of each kind: a replica's row that lost, a v1 client's edit that lost, and a value of an edge that another
    # took the place of. No digest shows any of them.
    real = proof.proof

    def vanishing(write: Write) -> bool:
        return (
            write.says == {"label": "reading"}
            or (write.client == "phone" and str(write.says.get("name", "")).endswith("(old)"))
            or (write.kind == "edge" and None not in write.says.values() and write.id in unlinked)
        )

    unlinked: set[str] = set()
    planted: list[Write] = []

    async def after_the_loss(fleet: Fleet, picture: Picture, server: Server) -> dict[str, list[dict[str, Any]]]:
        unlinked.update(write.id for write in fleet.ledger.writes if None in write.says.values())
        planted.extend(filter(vanishing, fleet.ledger.writes))
        with closing(sqlite3.connect(server.db)) as db, db:
            for write in planted:
                version = write.version or format_time(write.at) + "%"
                done = db.execute("DELETE FROM log WHERE id = ? AND version LIKE ?", (write.id, version))
                assert 1 == done.rowcount
        return await real(fleet, picture, server)

    monkeypatch.setattr(proof, "proof", after_the_loss)

    code, told = run(capsys)

    assert 3 == len(planted)
    assert (1, True, 3) == (code, told["converged"], told["writes_lost"])
    assert {write.id for write in planted} == {lost["id"] for lost in told["lost"]}


def test_a_client_that_overlooks_something_is_seen_not_to_converge(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = RecordClient._take

    def deaf(self: RecordClient, change: dict[str, Any]) -> None:
        if self.name != "phone" or change["data"]["name"] != "Winter garden":
            take(self, change)

    monkeypatch.setattr(RecordClient, "_take", deaf)
    monkeypatch.setattr(proof, "ROUNDS_MAX", 3)

    code, told = run(capsys)

    assert (1, False, 0) == (code, told["converged"], told["writes_lost"])
    assert {"phone": False, "tablet": True, "laptop": True, "panel": True} == {
        each["name"]: each["equal"] for each in told["clients"]
    }


def row(**fields: Any) -> dict[str, Any]:
    plain = {
        "id": "a",
        "version": "2026-01-01T00:00:01.000000+00:00-000000-phone",
        "entity_type": "device",
        "name": "Lamp",
        "content": {"firmware_version": "2"},
        "source_type": "manual",
        "user_id": "phone",
        "parent_versions": [],
        "is_latest": True,
    }
    return plain | fields


def record(**says: Any) -> Write:
    return Write(client="phone", kind="record", id="a", name="Lamp", says=says, at=1_767_225_601_000_000)


def edge(**fields: Any) -> dict[str, Any]:
    plain = {
        "id": "e",
        "version": "2026-01-01T00:00:01.000000+00:00-000000-phone",
        "from_entity_id": "a",
        "to_entity_id": "home",
        "user_id": "phone",
    }
    return plain | fields


def made(kind: Literal["entity", "edge"], whole: dict[str, Any]) -> Write:
    return Write(client="tablet", kind=kind, id=whole["id"], name="it", says={}, whole=whole)


@pytest.mark.parametrize(
    ("write", "rows", "edges", "past", "where"),
    [
        (record(name="Lamp"), [row()], {}, [], "current"),
        (record(name="Lamp", firmware_version="2"), [row()], {}, [], "current"),
        (record(name="Lamp"), [row(is_latest=False)], {}, [], "kept"),
        (record(name="Lamp"), [], {}, [], "lost"),
        (record(name="Other"), [row()], {}, [], "lost"),
        (record(name="Lamp"), [row(user_id="panel")], {}, [], "lost"),
        (record(name="Lamp"), [row(version="2026-01-01T00:00:02.000000+00:00-000000-phone")], {}, [], "lost"),
        (record(home_id="home"), [], {"e": edge()}, [], "current"),
        (record(home_id="home"), [], {"e": edge(version="x")}, [edge()], "kept"),
        (record(home_id="cabin"), [], {"e": edge()}, [], "lost"),
        (record(home_id="home", name="Lamp"), [row()], {}, [], "lost"),
        (record(home_id="home", name="Lamp"), [], {"e": edge()}, [], "lost"),
        (record(home_id="home", name="Lamp"), [row(is_latest=False)], {"e": edge()}, [], "kept"),
        (made("edge", edge()), [], {"e": edge()}, [], "current"),
        (made("edge", edge()), [], {}, [edge()], "kept"),
        (made("edge", edge()), [], {"e": edge(user_id="x")}, [], "lost"),
        (made("entity", row()), [row()], {}, [], "current"),
        (made("entity", row()), [row(content={})], {}, [], "lost"),
    ],
)
def test_a_write_is_where_it_says_what_was_written(
    write: Write, rows: list[dict[str, Any]], edges: dict[str, Any], past: list[dict[str, Any]], where: str
) -> None:
    assert where == proof.find(write, rows, edges, past)


# --- it leaves nothing behind -------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folders: Path
) -> None:
    code = demo.main([tmp_path / "nowhere.json"], as_json=False)

    out, err = capsys.readouterr()
    assert (1, "") == (code, out)
    assert f"Error: expected a file that can be read at {tmp_path}/nowhere.json; the system says: No such" in err
    assert 1 == err.count("\n")
    assert [] == list(folders.iterdir())


def test_a_server_that_does_not_start_is_told_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))

    code, told = run(capsys)

    assert 1 == code
    assert "expected the server process to listen; it ended and said: nothing" == told["error"]["message"]
    assert [] == list(folders.iterdir())


@pytest.mark.parametrize("stage", ["furnish", "look", "proof"])
def test_a_server_that_dies_is_told_in_a_sentence(
    stage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    servers: list[Server] = []
    begin, enter = getattr(proof, stage), Server.__enter__

    def noticed(self: Server) -> Server:
        servers.append(self)
        return enter(self)

    async def after_the_end(*arguments: Any) -> Any:
        process = servers[0].process
        assert process is not None
        process.kill()
        process.wait()
        return await begin(*arguments)

    monkeypatch.setattr(Server, "__enter__", noticed)
    monkeypatch.setattr(proof, stage, after_the_end)
    monkeypatch.setattr("blowing_off.transport.TRIES_MAX", 1)

    code = demo.main([], as_json=False)

    out, err = capsys.readouterr()
    assert (1, "") == (code, out)
    assert err.startswith("Error: ")
    assert 1 == err.count("\n")
    assert [] == list(folders.iterdir())


INTERRUPTED = """
import asyncio, sys
from blowing_off import demo
from blowing_off.demo import proof
from blowing_off.demo.server import Server

async def wait(fleet, cast):
    print(server.process.pid, server.folder, flush=True)
    await asyncio.Event().wait()

enter = Server.__enter__
def noticed(self):
    global server
    server = self
    return enter(self)

Server.__enter__, proof.story = noticed, wait
sys.exit(demo.main([], as_json=False))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_whoever_interrupts_it_finds_nothing_left(number: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=_hear_interrupts,  # noqa: PLW1509 - no threads here
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        pid, folder = process.stdout.readline().split()
        assert Path(folder).is_dir()
        process.send_signal(number)
        code = process.wait(GUARD_SECONDS)
        err = process.stderr.read()

    assert (1, "Error: stopped before the end; the server was ended and its files removed\n") == (code, err)
    assert not _runs(int(pid))
    assert [] == list(tmp_path.iterdir())


def _hear_interrupts() -> None:
    # A shell starts what runs in the background deaf to Ctrl-C, and what it starts inherits that.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_nohup_ignores_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with demo.stoppable():
            assert signal.SIG_IGN is signal.getsignal(signal.SIGHUP)
            assert signal.SIG_DFL is not signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_home_needs_no_files_and_takes_devices_of_one_file_twice_only_once(
    capsys: pytest.CaptureFixture[str], shared_data: Path
) -> None:
    file = shared_data / "homekit" / "koogeek_ls1.json"

    code, told = run(capsys, [file, file])

    assert (0, 1) == (code, told["imported"])
