"""The commands of `inbetweenies notify`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import SqliteStore, cli
from inbetweenies.model import Change, SyncRequest
from inbetweenies.ops.notify import UserNotification
from inbetweenies.rollout.notices import DOCUMENT, outbox_in
from inbetweenies.stores.clock import wall_clock
from inbetweenies.stores.keeper import run_now
from tests.ops.test_notify import Recorder
from tests.rollout.made import begun, keep
from tests.support import Server, at, entity

Capture = pytest.CaptureFixture[str]
V2 = "inbetweenies-v2"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A database of one graph, to which a version was given."""
    path = tmp_path / "home.db"
    store = SqliteStore(path, journal=False, heads=False)
    Server(store).ask(SyncRequest(device="d", user="ann", changes=(Change(entity=entity("lamp", at(0))),)), "home")
    keep(store, begun(V2, "home"))
    run_now(store.close())
    return path


def told(capsys: Capture, *arguments: object, code: int = 0) -> Any:
    assert code == cli.invoke([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


def said(capsys: Capture, *arguments: object, code: int = 0) -> str:
    assert code == cli.invoke([*map(str, arguments)])
    out, err = capsys.readouterr()
    return out + err


def test_a_maintenance_is_told_once_under_one_key_and_listed(db: Path, capsys: Capture) -> None:
    made = told(capsys, "notify", "maintenance", "30m", "--db", db, "--key", "disk", "--graph", "home")
    again = told(capsys, "notify", "maintenance", "1h", "--db", db, "--key", "disk")
    plain = said(capsys, "notify", "maintenance", "2h", "--db", db)
    [first, second] = told(capsys, "notify", "list", "--db", db)["notices"]

    assert made == again
    assert ("maintenance", 1800, ["home"], 7200) == (
        made["type"],
        made["duration"],
        first["waiting"],
        second["duration"],
    )
    assert "about 2 hours" in plain
    assert "disk" in said(capsys, "notify", "list", "--db", db)


@pytest.mark.parametrize("duration", ["", "30", "m", "-1m", "1w", "0s", "40d"])
def test_what_is_no_duration_is_refused(db: Path, capsys: Capture, duration: str) -> None:
    assert "expected" in said(capsys, "notify", "maintenance", "--db", db, "--", duration, code=2)


def test_a_rollback_tells_people_and_a_look_proves_what_is_whole(db: Path, capsys: Capture) -> None:
    told(capsys, "rollout", "rollback", V2, "--db", db, "--reason", "a test")
    [before] = told(capsys, "notify", "list", "--db", db)["notices"]
    assert ("rollback", f"{V2}/1", ["home"]) == (before["type"], before["subject"], before["waiting"])
    assert [{"graph": "home", "devices": 0, "with_proof": 0, "proven": False}] == before["graphs"]
    assert {"unproven": []} == told(capsys, "notify", "prove", "--db", db)
    [after] = told(capsys, "notify", "list", "--db", db)["notices"]
    assert after["graphs"][0]["proven"]
    assert "all is proven" in said(capsys, "notify", "prove", "--db", db)


def test_what_is_damaged_is_named(db: Path, capsys: Capture) -> None:
    import sqlite3
    from contextlib import closing

    told(capsys, "rollout", "rollback", V2, "--db", db)
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE graphs SET digest = zeroblob(length(digest))")

    assert {"unproven": ["home"]} == told(capsys, "notify", "prove", "--db", db, code=1)
    assert "not proven: home" in said(capsys, "notify", "prove", "--db", db, code=1)


def test_a_rollback_happens_also_if_nobody_can_be_told(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inbetweenies.errors import StoreBusy

    async def busy(self: Any) -> None:
        raise StoreBusy("another one is at it")

    monkeypatch.setattr(UserNotification, "notify_rollback", busy)
    told_ = said(capsys, "rollout", "rollback", V2, "--db", db)

    assert "rolled_back" in told_
    assert "people are told once a server runs: another one is at it" in told_


def test_a_test_reports_each_channel_and_the_rest_is_done(db: Path, capsys: Capture, tmp_path: Path) -> None:
    down, up = tmp_path / "none" / "a.log", tmp_path / "b.log"
    fire = ("notify", "test", "--db", db, "--channel", down.as_uri(), "--channel", up.as_uri())
    [first, second] = told(capsys, *fire, code=1)["channels"]

    assert ("FileNotFoundError", None) == (first["error"].split(":")[0], second["error"])
    assert 1 == len(up.read_text().splitlines())
    assert f"file:{up}" in said(capsys, *fire, code=1)
    assert "sent" in said(capsys, *fire[:4], "--channel", up.as_uri())


def test_no_channel_or_what_is_none_is_misuse(db: Path, capsys: Capture) -> None:
    assert "at least one --channel" in said(capsys, "notify", "test", "--db", db, code=2)
    assert "--channel: expected a file" in said(capsys, "notify", "test", "--db", db, "--channel", "file:x", code=2)


def test_an_alert_is_raised_sent_and_acknowledged(db: Path, capsys: Capture, tmp_path: Path) -> None:
    told(capsys, "rollout", "rollback", V2, "--db", db)
    log = tmp_path / "alerts.log"
    told(capsys, "notify", "prove", "--db", db, "--channel", log.as_uri())
    [alert] = told(capsys, "notify", "list", "--db", db)["alerts"]
    assert 1 == len(log.read_text().splitlines())
    assert "sent 1 times; nobody has acknowledged it" in said(capsys, "notify", "list", "--db", db)
    assert "ada has seen it" in said(capsys, "notify", "ack", alert["key"], "--db", db, "--actor", "ada")
    assert "ada" == told(capsys, "notify", "ack", alert["key"], "--db", db)["acknowledged"]["actor"]
    assert "expected the key of an alert" in said(capsys, "notify", "ack", "x", "--db", db, code=2)


def test_a_channel_that_is_down_is_shown(db: Path, capsys: Capture) -> None:
    told(capsys, "rollout", "rollback", V2, "--db", db)
    store = SqliteStore(db, journal=False, heads=False)
    run_now(UserNotification(store, channels=[Recorder("phone", down=True)]).look())
    run_now(store.close())

    assert "sent 0 times, down: phone" in said(capsys, "notify", "list", "--db", db)


def test_what_is_kept_is_what_a_server_reads(db: Path, capsys: Capture) -> None:
    told(capsys, "notify", "maintenance", "30m", "--db", db)
    store = SqliteStore(db, journal=False, heads=False)
    outbox = outbox_in(run_now(store.document(DOCUMENT)))
    run_now(store.close())

    assert 1 == len(outbox.live(wall_clock()))
