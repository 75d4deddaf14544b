"""The commands `export` and `import`: what they print, and how they end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import cli
from tests.ops.test_portable import home, whole

Capture = pytest.CaptureFixture[str]


def told(capsys: Capture, *arguments: object) -> Any:
    assert cli.invoke([*map(str, arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert "" == captured.err
    return json.loads(captured.out)


def printed(capsys: Capture, *arguments: object) -> list[str]:
    assert cli.invoke([*map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys: Capture, *arguments: object, code: int) -> str:
    assert cli.invoke([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, captured.err.count("\n"))
    return captured.err


def test_there_and_back(tmp_path: Path, capsys: Capture) -> None:
    db, out, new = home(tmp_path / "my home.db"), tmp_path / "out.jsonl", tmp_path / "new.db"
    made = told(capsys, "export", "--db", db, out)
    done = told(capsys, "import", out, "--db", new)

    assert whole(db) == whole(new)
    assert (str(out), 18, 64) == (made["path"], made["rows"], len(made["sha256"]))
    assert [("empty", 0), ("g", 15), ("h", 3)] == [(one["graph"], one["rows"]) for one in made["graphs"]]
    assert (str(new), True, [True] * 3) == (done["db"], done["made"], [one["imported"] for one in done["graphs"]])
    assert ["empty: 0 rows were there already", "g: 15 rows were there already", "h: 3 rows were there already"] == (
        printed(capsys, "import", out, "--db", new)
    )


def test_people_are_told_in_words(tmp_path: Path, capsys: Capture) -> None:
    db, out = home(tmp_path / "home.db"), tmp_path / "h.jsonl"

    assert [f"{out}: {{}} bytes, h 3 rows"] == [
        line.replace(f"{out.stat().st_size:,}", "{}")
        for line in printed(capsys, "export", "--db", db, out, "--graph", "h")
    ]
    assert ["h: 3 rows imported"] == printed(capsys, "import", out, "--db", tmp_path / "new.db")


def test_a_database_without_graphs(tmp_path: Path, capsys: Capture) -> None:
    from inbetweenies.stores.keeper import run_now
    from inbetweenies.stores.sqlite import SqliteStore

    run_now(SqliteStore(tmp_path / "home.db", journal=False, heads=False).close())
    assert "no graphs" in printed(capsys, "export", "--db", tmp_path / "home.db", tmp_path / "out.jsonl")[0]
    assert "holds no graphs" in printed(capsys, "import", tmp_path / "out.jsonl", "--db", tmp_path / "new.db")[0]


def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, capsys: Capture) -> None:
    db, out, new = home(tmp_path / "home.db"), tmp_path / "out.jsonl", tmp_path / "new.db"
    assert "got no file" in refused(capsys, "export", "--db", new, out, code=1)
    assert "expected a graph that is in" in refused(capsys, "export", "--db", db, out, "--graph", "x", code=2)
    printed(capsys, "export", "--db", db, out)
    assert "name another one" in refused(capsys, "export", "--db", db, out, code=2)
    assert "does not exist" in refused(capsys, "import", tmp_path / "none", "--db", new, code=2)
    out.write_bytes(out.read_bytes()[:-5])
    line = refused(capsys, "import", out, "--db", new, code=1)

    assert "line 20: expected the last line of an export; got the end of the file: it was cut off. Nothing was" in line
    assert not new.exists()


def test_how_far_it_is_shows_on_a_terminal(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    db = home(tmp_path / "home.db")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert 0 == cli.invoke(["export", "--db", str(db), str(tmp_path / "out.jsonl")])
    assert "100%" in capsys.readouterr().err
