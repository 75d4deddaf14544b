"""The commands of `inbetweenies flags`: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import Feature, FeatureFlags, SqliteStore, cli
from inbetweenies.rollout.flags import DOCUMENT, Flags, document_of
from inbetweenies.stores.keeper import run_now

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "home.db"
    run_now(SqliteStore(path, journal=False, heads=False).close())
    return path


def put(db: Path, body: bytes) -> None:
    store = SqliteStore(db, journal=False, heads=False)
    assert run_now(store.put_document(DOCUMENT, body, revision=0))
    run_now(store.close())


def flags(db: Path, *arguments: str) -> list[str]:
    return ["flags", *arguments, "--db", str(db)]


def told(capsys: Capture, db: Path, *arguments: str) -> Any:
    assert cli.invoke([*flags(db, *arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert "" == captured.err
    return json.loads(captured.out)


def printed(capsys: Capture, db: Path, *arguments: str) -> list[str]:
    assert cli.invoke(flags(db, *arguments)) == 0
    return capsys.readouterr().out.splitlines()


def on(db: Path) -> set[str]:
    store = SqliteStore(db, journal=False, heads=False)
    found = set(FeatureFlags(store).pinned().on)
    run_now(store.close())
    return found


def test_what_is_switched_is_kept_with_who_and_why(db: Path, capsys: Capture) -> None:
    switched = told(capsys, db, "enable", "mcp_server", "--actor", "ada", "--reason", "a trial")
    assert {"enabled": ["mcp_server"], "disabled": []} == switched
    assert {"graph_operations", "mcp_server", "entity_versioning", "enhanced_sync"} == on(db)
    listed = told(capsys, db, "list")
    [mcp] = [one for one in listed["features"] if one["feature"] == "mcp_server"]

    last = mcp.pop("last")
    assert {"feature": "mcp_server", "on": True, "known": True, "needs": ["graph_operations"], "switched": True} == mcp
    assert ("mcp_server", True, "ada", "a trial") == tuple(last[name] for name in ("feature", "on", "actor", "reason"))
    assert (1, [last]) == (listed["changes"], listed["log"])


def test_the_same_in_words(db: Path, capsys: Capture) -> None:
    assert ["mcp_server is on"] == printed(capsys, db, "enable", "mcp_server")
    assert ["mcp_server is on already"] == printed(capsys, db, "enable", "mcp_server")
    off = ["enhanced_sync is off", "graph_operations is off", "mcp_server is off"]
    assert off == printed(capsys, db, "disable", "graph_operations", "--actor", "ada", "--reason", "too slow")
    assert ["graph_operations is off already"] == printed(capsys, db, "disable", "graph_operations")
    lines = printed(capsys, db, "list")

    assert ["feature", "state", "needs", "switched", "at", "by", "why"] == lines[0].split()
    assert lines[1].startswith("graph_operations   off")
    assert lines[1].endswith("Z  ada  too slow")
    assert ["entity_versioning", "on", "-", "-", "-", "-", "-"] == lines[3].split()


def test_everything_is_switched_off_at_once(db: Path, capsys: Capture) -> None:
    off = told(capsys, db, "disable-all", "--reason", "an emergency")["disabled"]
    assert ["enhanced_sync", "entity_versioning", "graph_operations"] == off
    assert set() == on(db)
    assert ["all are off already"] == printed(capsys, db, "disable-all")


def test_a_feature_that_would_be_on_but_for_what_it_needs_is_told_as_off(db: Path, capsys: Capture) -> None:
    put(db, document_of(Flags(flags={"entity_versioning": False, "enhanced_sync": True})))
    line = printed(capsys, db, "list")[4]

    assert ["enhanced_sync", "off", "graph_operations,", "entity_versioning", "on"] == line.split()[:5]


def test_a_feature_of_another_release_is_shown_and_kept(db: Path, capsys: Capture) -> None:
    put(db, document_of(Flags(flags={"later": True})))
    assert "later              of another release" in printed(capsys, db, "list")[-1]
    printed(capsys, db, "disable", Feature.ENHANCED_SYNC.name)
    assert [True] == [one["switched"] for one in told(capsys, db, "list")["features"] if one["feature"] == "later"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["enable", "unknown"], 2, "expected one of the features graph_operations"),
        (["disable", "unknown"], 2, "expected one of the features graph_operations"),
        (["enable", "mcp_server", "--actor", ""], 2, "expected an actor"),
        (["enable"], 2, "Missing argument 'FEATURE'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    db: Path, capsys: Capture, arguments: list[str], code: int, says: str
) -> None:
    assert cli.invoke(flags(db, *arguments)) == code
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, captured.err.count("\n"))
    assert says in captured.err
    assert 0 == told(capsys, db, "list")["changes"]


def test_what_it_needs_has_to_be_on(db: Path, capsys: Capture) -> None:
    printed(capsys, db, "disable", "graph_operations")
    assert cli.invoke(flags(db, "enable", "mcp_server")) == 2
    assert "expected graph_operations on, which mcp_server needs; got it off" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["list"], ["enable", "mcp_server"], ["disable-all"]])
def test_without_a_database_or_with_flags_of_a_newer_release_nothing_is_done(
    db: Path, tmp_path: Path, capsys: Capture, verb: list[str]
) -> None:
    assert cli.invoke(flags(tmp_path / "none.db", *verb)) == 1
    assert "expected a database at" in capsys.readouterr().err
    put(db, b'{"newer": 1}')
    assert cli.invoke(flags(db, *verb)) == 1
    assert "expected the flags in the store" in capsys.readouterr().err
