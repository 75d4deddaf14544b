"""The command `audit`: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import SqliteStore, cli
from inbetweenies.ops import shadow
from inbetweenies.stores.keeper import run_now
from tests.ops.test_integrity_shell import _touch, damage, fill
from tests.rollout.test_shadow import NEWER, OLDER, Wrapped, without
from tests.support import Server, at, entity

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "home.db"
    store = SqliteStore(path, journal=False, heads=False)
    server = Server(store)
    server.push(entity("h", at(0), {}, entity_type="home"))
    fill(server)
    run_now(_touch(store, "empty"))
    run_now(store.close())
    return path


def audited(capsys: Capture, *arguments: object, code: int) -> str:
    assert cli.invoke(["audit", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_what_is_whole_is_said_in_two_lines(db: Path, capsys: Capture) -> None:
    shown = f"  {NEWER.name}, {OLDER.name}: show what they must"

    assert [
        "default: whole: 13 entities, 6 relationships",
        shown,
        "empty: whole: 0 entities, 0 relationships",
        shown,
    ] == audited(capsys, "--db", db, code=0).splitlines()
    assert 2 == len(audited(capsys, "--db", db, "--graph", "empty", code=0).splitlines())


def test_what_is_not_is_told_with_ids_and_what_to_do(db: Path, capsys: Capture) -> None:
    damage(db, "UPDATE log SET user_id = 'eve' WHERE seq = 5")
    damage(db, "DELETE FROM log WHERE seq = 27")
    lines = audited(capsys, "--db", db, code=1).splitlines()
    row = f"row 5, entity r3 {at(3)}"

    assert [
        "default: not whole, 3 wrong: 12 entities, 6 relationships",
        f"  {row}: expected columns that agree with the value; got others: user_id (data_consistency)",
        "  row 27: expected rows 27 to 27; got none (entity_counts)",
        "  do this next, and audit again:",
        "    get row 27 from the journal, a backup or a client",
    ] == [*lines[:3], *lines[4:-2]]
    assert lines[3].startswith("  row 27: expected the digest ")


def test_the_same_for_programs(db: Path, capsys: Capture) -> None:
    damage(db, "UPDATE log SET user_id = 'eve' WHERE seq = 5")
    default, empty = json.loads(audited(capsys, "--db", db, "--json", code=1))["graphs"]

    step = {"action": "rewrite", "seq": 5, "upto": 5, "until": None}
    assert {
        "graph": "default",
        "whole": False,
        "entities": 13,
        "relationships": 6,
        "count": 1,
        "violations": [
            {
                "check": "data_consistency",
                "told": "expected columns that agree with the value; got others: user_id",
                "kind": "entity",
                "id": "r3",
                "version": at(3),
                "repair": step,
            }
        ],
        "plan": [step | {"says": "write the columns of row 5 anew from the value"}],
        "shadow": None,
    } == default
    assert (True, {"versions": [NEWER.name, OLDER.name], "rows": 0, "count": 0, "mismatches": []}) == (
        empty["whole"],
        empty["shadow"],
    )


def test_what_a_wire_version_shows_wrongly_is_told(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty: Any = Wrapped(OLDER, without("r3"))
    monkeypatch.setattr(shadow, "load", lambda: {OLDER.name: faulty})
    told = {"version": OLDER.name, "kind": "room", "id": "r3", "told": "expected it; it is not shown"}

    assert [
        f"  {OLDER.name}: 1 shown wrongly or lost",
        f"    {OLDER.name}: room r3: expected it; it is not shown",
    ] == audited(capsys, "--db", db, "--graph", "default", code=1).splitlines()[1:]
    [graph] = json.loads(audited(capsys, "--db", db, "--graph", "default", "--json", code=1))["graphs"]
    assert (False, 0, [told]) == (graph["whole"], graph["count"], graph["shadow"]["mismatches"])


def test_what_is_too_much_is_counted(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inbetweenies.rollout.integrity.VIOLATIONS_MAX", 2)
    for seq in (2, 3, 4):
        damage(db, f"UPDATE log SET user_id = 'eve' WHERE seq = {seq}")

    assert "  and 1 more" in audited(capsys, "--db", db, "--graph", "default", code=1).splitlines()


def test_a_graph_that_is_not_there_is_not_made(db: Path, capsys: Capture) -> None:
    assert cli.invoke(["audit", "--db", str(db), "--graph", "nope"]) == 1
    assert "expected one of the graphs default, empty; got nope" in capsys.readouterr().err
    assert 4 == len(audited(capsys, "--db", db, code=0).splitlines())
    assert cli.invoke(["audit", "--db", str(db.with_name("none.db"))]) == 1
    assert "got no file" in capsys.readouterr().err
    assert not db.with_name("none.db").exists()
