"""The commands `backup`, `verify` and `restore`: what they print, and how they end."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import cli
from inbetweenies.ops.manifest import manifest_of, read
from tests.stores.test_journal import Site, names

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    (tmp_path / "kept").mkdir()
    yield site
    site.close()


def told(capsys: Capture, *arguments: object, code: int = 0) -> Any:
    assert cli.invoke([*map(str, arguments), "--json"]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def printed(capsys: Capture, *arguments: object, code: int = 0) -> list[str]:
    assert cli.invoke([*map(str, arguments)]) == code
    return capsys.readouterr().out.splitlines()


def test_a_backup_is_made_verified_and_restored(site: Site, capsys: Capture) -> None:
    site.write("e1")
    made = told(capsys, "backup", "--db", site.path, site.path.parent / "kept", "--keep", 1)
    file = Path(made["path"])
    site.write("e2")
    [verdict] = told(capsys, "verify", file)["backups"]
    done = told(capsys, "restore", "--db", site.path, file)

    assert (file.parent, []) == (site.path.parent / "kept", made["removed"])
    assert [("g", 1)] == [(mark["graph"], mark["seq"]) for mark in made["manifest"]["graphs"]]
    assert {"path": str(file), "result": "good", "problems": [], "manifest": made["manifest"]} == verdict
    assert (str(site.path), str(site.journal.folder), []) == tuple(
        done[name] for name in ("db", "journal", "discarded")
    )
    assert ["home.db"] == [Path(path).name for path in done["aside"]]
    assert made["manifest"] == done["manifest"]
    assert {"e1", "e2"} == names(site.held())
    [discarded] = told(capsys, "restore", "--db", site.path, file, "--discard-after")["discarded"]
    assert ("g", 1) == (discarded["graph"], discarded["seq"])
    assert discarded["epoch"] == site.held().head.epoch


def test_the_same_in_words(site: Site, capsys: Capture) -> None:
    site.write("e1", "e2")
    folder = site.path.parent / "kept"
    [first] = printed(capsys, "backup", "--db", site.path, folder)
    second = printed(capsys, "backup", "--db", site.path, folder, "--keep", 1)
    [file] = folder.glob("*.db")
    made = f"as of {read(manifest_of(file)).made[:19]}, {file.stat().st_size:,} bytes, g 2 rows"

    assert [f"{file}: {made}", f"removed {first.partition(': ')[0]}"] == second
    assert [f"{file}: good: {made}"] == printed(capsys, "verify", file)
    said = printed(capsys, "restore", "--db", site.path, file)
    assert f"{site.path}: {made}" == said[0]
    assert said[1].startswith(f"what was there is kept in {site.path}.before-")
    assert said[1].endswith(": home.db, home.db-shm, home.db-wal")  # of whoever only read it last
    assert said[2:] == [f"what was acknowledged since comes back from {site.journal.folder} when a server starts"]
    said = printed(capsys, "restore", "--db", site.path, file, "--discard-after")
    assert said[2:] == ["g: set back to 2 on purpose: what came after that is to stay away"]


def test_what_ends_in_a_slash_is_a_folder(site: Site, capsys: Capture) -> None:
    site.write("e1")
    folder = site.path.with_name("new")
    made = told(capsys, "backup", "--db", site.path, f"{folder}/", "--keep", 2)

    assert (folder, 0o700) == (Path(made["path"]).parent, stat.S_IMODE(folder.stat().st_mode))
    assert cli.invoke(["backup", "--db", str(site.path), f"{made['path']}/"]) == 1
    assert "File exists" in capsys.readouterr().err


def test_what_is_not_good_ends_with_1_and_says_why(site: Site, capsys: Capture) -> None:
    site.write("e1")
    folder = site.path.parent / "kept"
    good, bad = folder / "good.db", folder / "bad.db"
    for file in (good, bad):
        printed(capsys, "backup", "--db", site.path, file)
    os.truncate(bad, 100)

    verdicts = told(capsys, "verify", good, bad, code=1)["backups"]
    assert ["good", "truncated"] == [verdict["result"] for verdict in verdicts]
    lines = printed(capsys, "verify", bad, folder / "none.db", code=1)
    size = good.stat().st_size
    assert [f"{bad}: truncated", f"  expected {size} bytes; got 100", f"{folder / 'none.db'}: missing"] == lines[:3]
    assert None is told(capsys, "verify", folder / "none.db", code=1)["backups"][0]["manifest"]
    assert cli.invoke(["restore", "--db", str(site.path), str(bad)]) == 1
    assert "it is truncated: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["backup", "--db", "{none}", "{kept}"], 1, "expected a database at"),
        (["backup", "--db", "{db}", "{db}"], 2, "name another one, or a folder"),
        (["backup", "--db", "{db}", "{none}", "--keep", "2"], 2, "in a folder"),
        (["backup", "--db", "{db}", "{kept}", "--keep", "0"], 2, "0 is not in the range"),
        (["backup", "--db", "{db}"], 2, "Missing argument 'TARGET'"),
        (["verify"], 2, "Missing argument 'BACKUPS...'"),
        (["restore", "--db", "{db}", "{none}"], 1, "it is missing: expected a file; got none"),
        (["restore", "--db", "{kept}/a/b", "{none}"], 1, "expected to write to"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(
    site: Site, capsys: Capture, arguments: list[str], code: int, says: str
) -> None:
    site.write("e1")
    paths = {"db": site.path, "none": site.path.with_name("none.db"), "kept": site.path.with_name("kept")}

    assert cli.invoke([argument.format(**paths) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, captured.err.count("\n"))
    assert says in captured.err
    assert [] == list(paths["kept"].iterdir())


def test_progress_is_told_on_a_terminal_only(site: Site, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("e1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.invoke(["backup", "--db", str(site.path), str(site.path.parent / "b.db")]) == 0
    assert "\r100%\r    \r" == capsys.readouterr().err
