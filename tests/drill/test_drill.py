"""The drill: it passes on a copy, leaves the original as it was, and fails on the right line where something is wrong.

Two drills are held, the second of which has several bugs at once; `tests.drill.each` holds one for each bug.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from blowing_off import drill
from blowing_off.drill.basics import Settings
from blowing_off.drill.criteria import Criterion, criteria
from blowing_off.drill.findings import Findings
from blowing_off.drill.ledger import Ledger
from blowing_off.drill.showing import document, show
from inbetweenies import cli
from inbetweenies.errors import StoreError
from inbetweenies.model import Change, SyncRequest
from inbetweenies.ops.checklist import drill_in, kept_drill
from inbetweenies.stores import SqliteStore
from tests.support import Server, at, entity, run

ROOT: Final = Path(__file__).resolve().parents[2]

LOST: Final = "acknowledged writes lost"
FAILED: Final = "failed requests outside of the injected fault"
FORGOTTEN: Final = "values lost that only the newer version can say"
BACKUP: Final = "backup verified"
RESTORED: Final = "backup restored and opened"
BACK: Final = "writes that did not come back after the restore"
REPLICAS: Final = "replicas that do not hold what the server does"
REACHED: Final = "the rollout reached everybody"
ADVANCES: Final = "advances too many, of two controllers at once"
BY_ITSELF: Final = "rolled back by itself"
BY_COMMAND: Final = "rolled back by command"
IN_EFFECT: Final = "rollback in effect in every process"
INFORMED: Final = "everybody informed"
DOWNTIME: Final = "downtime"
TOLD: Final = "everybody concerned told of a rollback"
NAGGED: Final = "told twice, or without being concerned"


def settings(*plants: str, **others: Any) -> Settings:
    """A short drill, with what is planted in each of its two processes, or in both."""
    names = plants if len(plants) == 2 else (*plants, *plants) or ("none", "none")
    processes = tuple(("tests.drill.planted", name) for name in names)
    quick = Settings(flips=1, turns=2, sessions=3, pause_s=0.02, patience_s=20.0, processes=processes)
    return replace(quick, **others)


def failed(lines: list[Criterion]) -> set[str]:
    """The criteria that are not met, of those that decide."""
    return {one.name for one in lines if one.result == "FAIL"}


# --- bugs in whoever runs the servers -----------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def keep_what_is_there(patch: Patch) -> None:
    """A restore that says it was done."""
    patch.setattr("blowing_off.drill.phases.restore", lambda *_: None)


# --- drills -------------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database of somebody, which nobody has open."""
    path = tmp_path / "theirs" / "home.db"
    path.parent.mkdir()
    store = SqliteStore(path)
    lamps = [Change(entity=entity(f"lamp-{number}", at(number), {"n": number}), pointer="") for number in range(40)]
    Server(store).ask(SyncRequest(device="d", user="ann", changes=tuple(lamps)), "theirs")
    run(store.close())
    return path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Where temporary folders are made during the test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def picture(path: Path) -> dict[str, tuple[str, int]]:
    """Every file in the folder of a database: its bytes, in short, and when it was written to."""
    files = sorted(one for one in path.parent.rglob("*") if one.is_file())
    return {one.name: (hashlib.sha256(one.read_bytes()).hexdigest(), one.stat().st_mtime_ns) for one in files}


def test_a_drill_on_a_copy_passes_and_leaves_the_original_as_it_was(database: Path, folders: Path) -> None:
    before = picture(database)
    told: list[str] = []
    found, ledger, lines = drill.hold(database, settings(), told.append)

    assert set() == failed(lines)
    assert before == picture(database)
    assert [] == [*folders.iterdir()]
    assert (40, 2) == (found.rows, len(found.switched))
    assert len(ledger.requests) > 200 < len(ledger.acked)
    assert {"theirs", "drill-canary-1"} < {one.graph for one in ledger.acked}
    assert 12 == len(told)
    assert json.loads(json.dumps(document(found, ledger, lines)))["passed"]


def test_bugs_are_found_on_the_right_lines(monkeypatch: Patch) -> None:
    keep_what_is_there(monkeypatch)
    _, _, lines = drill.hold(None, settings("drop,burst,stuck", patience_s=5.0))

    assert {LOST, FAILED, BY_ITSELF, RESTORED} == failed(lines)


# --- what is printed ----------------------------------------------------------------------------------------------


def test_what_cannot_be_held_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: Path
) -> None:
    (tmp_path / "text.db").write_text("no database")
    codes = [cli.invoke(["drill", "--db", str(tmp_path / name)]) for name in ("text.db", "nothing.db")]

    told = capsys.readouterr().err.splitlines()
    assert [1, 1] == codes
    assert ["Error: SQLite could not read t", "Error: expected a database at "] == [line[:30] for line in told]
    assert [] == [*folders.iterdir()]


def test_what_a_drill_came_to_is_kept_for_a_preflight(
    database: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def held(*lines: Criterion) -> int:
        monkeypatch.setattr(drill, "hold", lambda *_: (Findings(seconds=3.5), Ledger(), list(lines)))
        return cli.invoke(["drill", "--db", str(database), "--json"])

    assert 0 == held(Criterion(name="fine", value=0, limit=0))
    kept, _ = drill_in(database)
    assert (True, 3.5, str(database)) == (kept.passed, kept.seconds, kept.database)
    assert 1 == held(Criterion(name="bad", value=1, limit=0))
    assert not drill_in(database)[0].passed
    held(Criterion(name="fine", value=0, limit=0))
    # What could not be held takes back what was said before.
    monkeypatch.setattr(drill, "hold", _cannot)
    assert 1 == cli.invoke(["drill", "--db", str(database)])
    assert not drill_in(database)[0].passed
    kept_drill(database).unlink()
    assert 1 == cli.invoke(["drill", "--db", str(database)])
    assert not kept_drill(database).exists()
    capsys.readouterr()
    kept_drill(database).parent.rmdir()
    kept_drill(database).parent.write_text("in the way")
    assert 1 == held(Criterion(name="fine", value=0, limit=0))
    assert "expected to make" in capsys.readouterr().err


def _cannot(*_: object) -> None:
    raise StoreError("it cannot be held")


def test_a_drill_that_found_nothing_out_has_failed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = criteria(Findings(), Ledger(), [])
    show(lines)

    out = capsys.readouterr().out
    assert {LOST, FAILED, FORGOTTEN, DOWNTIME} == {one.name for one in lines if one.decides} - failed(lines)
    assert "FAIL rolled back by itself never <= 900 s" in [" ".join(line.split()) for line in out.splitlines()]
    assert "4 of 17 passed: this drill FAILED." in out


def test_a_drill_that_is_stopped_leaves_neither_files_nor_processes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "inbetweenies.cli", "drill"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,  # noqa: PLW1509 - no threads here
    ) as process:
        assert process.stderr is not None
        told = [process.stderr.readline() for _ in range(2)]  # the second when its servers listen
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()

    assert "everybody syncs" in told[1]
    assert "Error: stopped before the end; the servers were ended and their files removed" in rest
    assert "Traceback" not in rest
    assert 1 == process.returncode
    assert [] == [*tmp_path.iterdir()]


def hear_interrupts() -> None:
    """A shell starts what runs in the background deaf to Ctrl-C, and what it starts inherits that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
