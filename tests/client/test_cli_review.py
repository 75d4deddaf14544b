"""`conflicts` and `resolve` on the command line, with a real server that leaves notes to people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from blowing_off import cli, show
from tests.client.test_cli import Done, Run, added
from tests.server.calls import Process, running


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLOWING_OFF_TOKEN", raising=False)

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        code = cli.invoke(arguments)
        told = capfd.readouterr()
        return Done(code=code, out=told.out, err=told.err)

    return call


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    db = str(tmp_path / "server.db")
    with running(
        ["-m", "inbetweenies.cli", "serve", "--db", db, "--no-auth", "--port", "0", "--manual", "Note"]
    ) as process:
        yield process


ANN, BOB = ("--store", "ann.db"), ("--store", "bob.db")


def contest(run: Run, server: Process) -> str:
    """Ann's change of a note stands, Bob's waits."""
    for user, store in (("ann", ANN), ("bob", BOB)):
        assert 0 == run(*store, "connect", server.url, "--user", user).code
    note = added(run(*ANN, "add", "note", "Plan", "a=1", "b=1", "c=1"))
    assert [0, 0] == [run(*store, "sync").code for store in (ANN, BOB)]
    run(*ANN, "set", "Plan", "a=2", "c=2")
    run(*BOB, "set", "Plan", "a=3", "b=3")
    assert [0, 3] == [run(*store, "sync").code for store in (ANN, BOB)]
    return note


def test_both_sides_are_shown_and_one_is_taken(run: Run, server: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    note = contest(run, server)
    told = run(*ANN, "conflicts")
    [entry] = run(*ANN, "--json", "conflicts").json["review"]

    assert 3 == told.code
    assert [["by", "ann", "bob"], ["a", "2", "3"], ["b", "1", "3"], ["c", "2", "1"]] == [
        row[1:] for row in told.rows if row[1] != "changed"
    ]
    assert {entry["id"]} == {row[0] for row in told.rows}
    assert (note, ["/content/a"], {"a": 3, "b": 3, "c": 1}) == (
        entry["entity_id"],
        entry["contested"],
        entry["theirs"]["content"],
    )
    with monkeypatch.context() as patch:
        patch.setattr(show, "_is_terminal", lambda _: True)
        patch.setenv("COLUMNS", "150")
        shown = run(*ANN, "conflicts")
        assert "mine (stands now)" in shown.out
        assert "theirs (waits)" in shown.out
        assert f"resolve {entry['id']} --take mine" in shown.err

    assert 0 == run(*ANN, "resolve", entry["id"], "--take", "theirs").code
    assert 0 == run(*ANN, "conflicts", "--here").code
    assert [0, 0] == [run(*store, "sync").code for store in (ANN, BOB)]
    assert {"a": 3, "b": 3, "c": 1} == run(*BOB, "--json", "show", "Plan").json["thing"]["content"]
    assert [] == run(*BOB, "--json", "conflicts").json["review"]


def test_what_both_changed_is_asked_for_and_said(run: Run, server: Process) -> None:
    note = contest(run, server)
    asked = run(*BOB, "resolve", note)
    as_json = run(*BOB, "--json", "resolve", note)

    assert (3, 3) == (asked.code, as_json.code)
    assert "--set a=VALUE" in asked.err
    assert ["/content/a"] == as_json.json["error"]["contested"]
    done = run(*BOB, "resolve", note[:8], "--set", "a=5", "--name", "Plans")
    assert (0, ["resolved", note, "note", "Plans"]) == (done.code, done.rows[0])
    assert {"a": 5, "b": 3, "c": 2} == run(*BOB, "--json", "show", "Plans").json["thing"]["content"]
    assert 0 == run(*BOB, "sync").code
    assert [] == run(*ANN, "--json", "conflicts").json["review"]
    nothing = run(*ANN, "resolve", note)
    assert (1, True) == (nothing.code, "expected the id of a conflict that waits" in nothing.err)


def test_seen_hides_what_was_told_and_not_what_waits(run: Run, server: Process) -> None:
    contest(run, server)

    assert 3 == run(*BOB, "conflicts", "--seen").code
    assert ([], 1) == tuple(
        value if name == "conflicts" else len(value)
        for name, value in run(*BOB, "--json", "conflicts").json.items()
        if name in {"conflicts", "review"}
    )


def test_who_cannot_ask_is_told_so(run: Run, server: Process) -> None:
    contest(run, server)
    for store in (ANN, BOB):
        run(*store, "connect", "http://127.0.0.1:9")
    told = run(*BOB, "--json", "conflicts")

    assert (3, 1) == (told.code, len(json.loads(told.out)["review"]))
    assert "did not answer" in run(*ANN, "conflicts").err
    assert "did not answer" not in run(*ANN, "conflicts", "--here").err


@pytest.mark.parametrize("option", [("--manual", "note", "--strict-v2"), ("--manual",)])
def test_a_server_is_not_told_two_things_at_once(option: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    from inbetweenies.cli import invoke

    assert 2 == invoke(["serve", "--db", "none.db", *option])
    assert "--manual" in capfd.readouterr().err
