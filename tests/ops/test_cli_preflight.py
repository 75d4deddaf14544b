"""The command `preflight`: what it prints, how it ends, and what `rollout start` makes of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import cli
from inbetweenies.ops import baseline, checklist
from inbetweenies.ops.checklist import STEPS, folder_of, keep_drill
from inbetweenies.stores.clock import wall_clock
from tests.ops.test_portable import home
from tests.server.calls import running

Capture = pytest.CaptureFixture[str]
V2 = "inbetweenies-v2"


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(baseline, "REQUESTS", 4)
    path = home(tmp_path / "my home.db")
    keep_drill(path, passed=True, now=wall_clock())
    return path


def told(capsys: Capture, *arguments: object, code: int = 0) -> Any:
    assert cli.invoke([*map(str, arguments), "--json"]) == code
    captured = capsys.readouterr()
    assert "" == captured.err
    return json.loads(captured.out)


def printed(capsys: Capture, *arguments: object, code: int = 0) -> list[str]:
    assert cli.invoke([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert "" == captured.err
    return captured.out.splitlines()


def refused(capsys: Capture, *arguments: object, code: int = 1) -> str:
    assert cli.invoke([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, captured.err.count("\n"))
    return captured.err


def test_one_line_a_step_and_what_it_comes_to(db: Path, capsys: Capture) -> None:
    *steps, last = printed(capsys, "preflight", "--db", db)

    assert [("OK", name) for name in STEPS] == [tuple(line.split()[:2]) for line in steps]
    manifest = folder_of(db) / checklist.MANIFEST
    assert f"all 9 steps passed; a rollout may start within the hour: {manifest}" == last


def test_what_fails_is_told_with_what_to_do(db: Path, capsys: Capture) -> None:
    (folder_of(db) / checklist.LAST_DRILL).unlink()
    lines = printed(capsys, "preflight", "--db", db, code=1)

    assert [
        "FAIL  drill        no drill was ever held on a copy of this database",
        f"                   -> `inbetweenies drill --db '{db}'`",
        f"1 of 9 steps failed; no rollout starts with this: {folder_of(db) / checklist.MANIFEST}",
    ] == lines[-3:]


def test_programs_get_one_document(db: Path, capsys: Capture) -> None:
    found = told(capsys, "preflight", "--db", db)
    assert (True, list(STEPS)) == (found["passed"], [step["name"] for step in found["steps"]])
    assert str(folder_of(db) / checklist.MANIFEST) == found["manifest"]
    (folder_of(db) / checklist.LAST_DRILL).unlink()
    found = told(capsys, "preflight", "--db", db, code=1)
    assert (False, [False]) == (found["passed"], [one["passed"] for one in found["steps"] if one["name"] == "drill"])


def test_a_rollout_starts_with_it_and_not_without(db: Path, capsys: Capture) -> None:
    start = ("rollout", "start", V2, "--db", db)
    line = refused(capsys, *start)
    assert "which stays planned; got: expected a preflight in" in line
    assert f"got none: run `inbetweenies preflight --db '{db}'`. Put that right and start it again" in line
    printed(capsys, "preflight", "--db", db)
    manifest = folder_of(db) / checklist.MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"passed": true', b'"passed": 1', 1))
    assert "expected the manifest of a preflight" in refused(capsys, *start)
    manifest.write_bytes(whole)
    assert "shadow" == told(capsys, *start)["state"]


def test_a_rollout_does_not_start_with_one_that_failed(db: Path, capsys: Capture) -> None:
    keep_drill(db, passed=False, now=wall_clock())
    printed(capsys, "preflight", "--db", db, code=1)
    assert "got: its step drill failed: run `inbetweenies preflight" in refused(
        capsys, "rollout", "start", V2, "--db", db
    )


def test_a_rollout_starts_with_one_that_is_elsewhere(db: Path, capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "kept"
    printed(capsys, "preflight", "--db", db, "--out", out)
    assert "got none" in refused(capsys, "rollout", "start", V2, "--db", db)
    moved = shutil.move(out, tmp_path / "moved")
    assert "shadow" == told(capsys, "rollout", "start", V2, "--db", db, "--preflight", moved)["state"]


def test_a_running_server_can_be_asked(db: Path, capsys: Capture) -> None:
    secret = told(capsys, "token", "create", "--db", db, "--graph", "g", "--user", "ann")["token"]
    server = ("-m", "inbetweenies.cli", "serve", "--port", "0", "--db", str(db))
    with running(server) as process:
        asked = ("preflight", "--db", db, "--url", process.url, "--token", secret)
        first, again = (told(capsys, *asked)["steps"][5]["found"] for _ in range(2))
        assert first.endswith(f"answers of {process.url}: the first to be kept")
        assert again.endswith("as before")
        # Each has its own: what a copy answers is not held against what a server does.
        assert told(capsys, "preflight", "--db", db)["steps"][5]["found"].endswith("a copy: the first to be kept")
        assert "differences" in told(capsys, *asked[:-2], code=1)["steps"][5]["found"]
    gone = told(capsys, *asked, code=1)["steps"][5]
    assert "got ConnectError: see whether the server runs" in gone["found"]


def test_what_is_being_done_shows_on_a_terminal(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert 0 == cli.invoke(["preflight", "--db", str(db)])
    assert [f"...   {name}" for name in STEPS] == capsys.readouterr().err.split("\r")[:-1]


def test_misuse_is_told(db: Path, capsys: Capture, tmp_path: Path) -> None:
    assert "--token: expected --url as well" in refused(capsys, "preflight", "--db", db, "--token", "t", code=2)
    assert "got no file" in refused(capsys, "preflight", "--db", tmp_path / "none.db")
    assert "expected to make" in refused(capsys, "preflight", "--db", db, "--out", db / "in it")
