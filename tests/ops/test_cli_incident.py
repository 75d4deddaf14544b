"""`inbetweenies incident` and `reconcile`, and what `rollback` puts aside; the report in its three forms."""

from __future__ import annotations

import json
import shlex
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from inbetweenies import SqliteStore, cli
from inbetweenies.model import Document, format_time
from inbetweenies.ops import incident as module
from inbetweenies.ops.incident import Incidents, folder_of
from inbetweenies.ops.rollouts import RolloutControl
from inbetweenies.rollout import states
from inbetweenies.rollout.cases import Case, Look, decided
from inbetweenies.rollout.report import RECENT_US, UPDATE_US
from inbetweenies.rollout.sequential import Arm
from inbetweenies.rollout.triggers import Signals, Thresholds, Watch
from inbetweenies.stores.clock import wall_clock
from inbetweenies.stores.keeper import run_now
from tests.ops.test_cli_rollout import V2, do, held, in_store, put, taken_to
from tests.support import SECOND, Server, at, edge, entity

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A database with a few rows, of before anything was rolled out."""
    path = tmp_path / "my home.db"

    def work(store: SqliteStore) -> None:
        server = Server(store)
        one = entity("e1", at(0), {"a": 1})
        server.push(one, entity("e2", at(0)))
        server.push(edge("r", one, one))

    in_store(path, work)
    return path


def said(capsys: Capture, *arguments: object, code: int = 0) -> str:
    assert cli.invoke([*map(str, arguments)]) == code
    return capsys.readouterr().out


def refused(capsys: Capture, *arguments: object, code: int = 1) -> str:
    assert cli.invoke([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert 1 == captured.err.count("\n")
    return captured.err


def rolled_back(db: Path, capsys: Capture, *arguments: str) -> str:
    """The id of the incident."""
    taken_to(db, "advance", "advance")
    told = json.loads(said(capsys, "rollout", "rollback", V2, "--db", db, "--actor", "bob", "--json", *arguments))
    return Path(told["incident"]).name


# --- what a rollback puts aside -----------------------------------------------------------------------------------


def test_a_rollback_says_where_it_put_what_was_known_and_how_to_see_it(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance")
    last = said(capsys, "rollout", "rollback", V2, "--db", db).splitlines()[-1]
    command = last.partition(": ")[2]

    assert said(capsys, *shlex.split(command)[1:]).startswith("20")
    [path] = folder_of(db).iterdir()
    assert str(path) in last
    said(capsys, "rollout", "rollback", V2, "--db", db)
    assert [path] == [*folder_of(db).iterdir()]


def test_nothing_is_put_aside_if_that_is_said(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance")
    assert "what was known" not in said(capsys, "rollout", "rollback", V2, "--db", db, "--no-bundle")
    assert not folder_of(db).exists()


def test_a_disk_that_is_full_is_told_and_it_is_taken_back(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    taken_to(db, "advance")
    assert 0 == cli.invoke(["rollout", "rollback", V2, "--db", str(db)])

    assert "No space left on device" in capsys.readouterr().err
    assert "rolled_back" == held(db).state


# --- incident -----------------------------------------------------------------------------------------------------


def test_incidents_are_listed_and_shown(db: Path, capsys: Capture) -> None:
    assert {"incidents": [], "unreadable": {}} == json.loads(said(capsys, "incident", "list", "--db", db, "--json"))
    name = rolled_back(db, capsys, "--reason", "office is slow")
    [header, line] = said(capsys, "incident", "list", "--db", db).splitlines()
    [one] = json.loads(said(capsys, "incident", "list", "--db", db, "--json"))["incidents"]

    assert ["id", "rollout", "actor", "why", "whole"] == header.split()
    assert line.split() == [name, f"{V2}/1", "bob", "office", "is", "slow", "yes"]
    assert (name, "bob", "office is slow", []) == tuple(one[key] for key in ("id", "actor", "why", "damaged"))
    shown = json.loads(said(capsys, "incident", "show", name, "--db", db, "--json"))
    assert ["start: planned", "roll_back: rolled_back"] == [shown["timeline"][n]["what"] for n in (0, -1)]
    assert "documents/rollouts.json" in shown["files"]
    text = said(capsys, "incident", "show", name, "--db", db)
    assert "timeline" in text
    assert "heads.json" in text
    (folder_of(db) / name / "heads.json").write_bytes(b"{}")
    assert "DAMAGED   heads.json" in said(capsys, "incident", "show", name, "--db", db, code=1)
    assert " no\n" in said(capsys, "incident", "list", "--db", db)
    (folder_of(db) / name / "incident.json").write_bytes(b"{}")
    assert "expected an incident in" in refused(capsys, "incident", "list", "--db", db, code=0)


def test_a_post_mortem_is_begun(db: Path, capsys: Capture) -> None:
    name = rolled_back(db, capsys, "--reason", "ib1_01234567_" + "x" * 43)
    text = said(capsys, "incident", "post-mortem", name, "--db", db)

    assert text.startswith(f"# Post-mortem: {V2}/1\n")
    assert "by bob: ib1" in text
    assert "x" * 43 not in text
    assert "given to 5 % of graphs at most" in text


def test_without_its_database_an_incident_is_still_read(db: Path, capsys: Capture) -> None:
    name = rolled_back(db, capsys)
    put(db, states.DOCUMENT, b"{")
    for command in ("show", "post-mortem"):
        refused(capsys, "incident", command, name, "--db", db)  # what is there is told to be something else
    db.unlink()
    shown = json.loads(said(capsys, "incident", "show", name, "--db", db, "--json"))
    assert "advance: ramp" == shown["timeline"][-1]["what"]
    db.write_bytes(b"no database at all, and long enough to be read as a header of one" * 20)
    said(capsys, "incident", "show", name, "--db", db)
    (folder_of(db) / name / "documents" / "rollouts.json").unlink()
    assert "got neither" in refused(capsys, "incident", "show", name, "--db", db)


def test_of_an_incident_of_an_earlier_rollout_it_is_told_as_it_was_then(db: Path, capsys: Capture) -> None:
    name = rolled_back(db, capsys)
    taken_to(db, "advance")
    shown = json.loads(said(capsys, "incident", "show", name, "--db", db, "--json"))

    assert "advance: ramp" == shown["timeline"][-1]["what"]


def test_of_processes_that_only_obeyed_it_is_said_where_the_verdict_is(db: Path, capsys: Capture) -> None:
    name = rolled_back(db, capsys, "--actor", "triggers")
    assert f"see the other incidents of {V2}/1" in refused(capsys, "incident", "case", name, "--db", db)


def with_case(db: Path, change: Callable[[Case], Case] = lambda case: case) -> str:
    taken_to(db, "advance")

    def work(store: SqliteStore) -> str:
        rollout = RolloutControl(store).rollouts().of(V2)
        signals = Signals(canary=Arm(requests=60, failures=60), control=Arm(requests=60))
        looks = (Look(signals=signals, fence=rollout.fence, now=5),)
        case = change(decided(rollout, Watch(rollout=rollout.id), Thresholds(), looks))
        capture = Incidents(store, folder_of(db)).capture(rollout.id, actor="triggers", why="9 failed", case=case)
        assert capture.finish() is not None
        return capture.id

    name: str = in_store(db, work)
    do(db, "rollback")
    return name


def test_a_verdict_is_made_again(db: Path, capsys: Capture) -> None:
    name = with_case(db)
    case = json.loads(said(capsys, "incident", "case", name, "--db", db))

    assert ("route_back", "roll_back") == (case["rung"], case["event"])
    assert "The verdict can be made again" in said(capsys, "incident", "post-mortem", name, "--db", db)


def test_a_verdict_that_comes_out_otherwise_is_told(db: Path, capsys: Capture) -> None:
    from msgspec.structs import replace

    name = with_case(db, lambda case: replace(case, rung="freeze", event="hold"))
    assert "got route_back and roll_back" in refused(capsys, "incident", "case", name, "--db", db)


def test_where_a_person_decided_there_is_no_verdict(db: Path, capsys: Capture) -> None:
    name = rolled_back(db, capsys)
    assert "where bob did and there is no verdict" in refused(capsys, "incident", "case", name, "--db", db)
    assert "see `inbetweenies incident list`" in refused(capsys, "incident", "show", "../x", "--db", db)


# --- reconcile ----------------------------------------------------------------------------------------------------


def test_reconcile_ends_with_0_when_each_row_is_accounted_for(db: Path, capsys: Capture) -> None:
    before = json.loads(said(capsys, "reconcile", "--db", db, "--json"))
    assert (0, 3, 3) == (before["unexplained"], before["graphs"][0]["rows"], before["graphs"][0]["served"])
    rolled_back(db, capsys)
    in_store(db, written_since)
    found = json.loads(said(capsys, "reconcile", "--db", db, "--json"))
    [graph] = found["graphs"]

    assert (0, format_time(held(db).log[0].cause.at)) == (found["unexplained"], found["since"])
    fates = ("rows", "served", "tombstone", "superseded", "merged", "kept", "open", "unexplained")
    assert {"rows": 5, "served": 1, "superseded": 1, "merged": 1, "tombstone": 1, "kept": 1} == {
        name: graph[name] for name in fates if graph[name]
    }
    assert ["inbetweenies-v1"] == graph["offered"]
    text = said(capsys, "reconcile", "--db", db, "--graph", "default")
    assert "default: 5 rows, from 4 to 8" in text
    assert "not shown   by inbetweenies-v1, offered now" in text
    assert text.splitlines()[-1].startswith("0 unexplained in 1 graphs, of what was written since 20")


def written_since(store: SqliteStore) -> None:
    server = Server(store)
    server.now = wall_clock() + SECOND
    server.push(entity("e1", at(1, "bob"), {"a": 2}, parent_versions=(at(0),)))
    server.push(entity("e1", at(2, "cyd"), {"a": 1, "b": 1}, parent_versions=(at(0),)))
    server.push(entity("e2", at(1), {"deleted": True}, parent_versions=(at(0),)))
    server.push(entity("e2", at(2, "bob"), {"a": 1}, parent_versions=(at(0),)))


def test_what_nobody_can_explain_ends_it_with_1(db: Path, capsys: Capture) -> None:
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE log SET until = seq WHERE id = 'e2'")
    found = json.loads(said(capsys, "reconcile", "--db", db, "--json", code=1))
    [graph] = found["graphs"]

    assert (1, "e2", None) == (graph["unexplained"], graph["rows_unexplained"][0]["id"], graph["shadow"])
    assert graph["audit"] > 0
    text = said(capsys, "reconcile", "--db", db, code=1)
    assert "UNEXPLAINED row 2, entity e2" in text
    assert "see `inbetweenies audit`" in text


def test_rows_that_the_journal_knows_are_missed(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "home.db"
    store = SqliteStore(path)
    server = Server(store)
    server.push(entity("e1", at(0)))
    run_now(store.close())
    copy = tmp_path / "copy.db"
    with closing(sqlite3.connect(path)) as connection, closing(sqlite3.connect(copy)) as other:
        connection.backup(other)
    store = SqliteStore(path)
    Server(store).push(entity("e2", at(1)))
    run_now(store.close())
    for end in ("-wal", "-shm"):
        path.with_name(f"home.db{end}").unlink(missing_ok=True)
    copy.replace(path)
    text = said(capsys, "reconcile", "--db", path, code=1)

    assert "LOST        1 rows that the journal knows" in text


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--since", "yesterday"), 2, "expected a time such as"),
        (("--graph", "none"), 1, "expected one of the graphs default"),
        (("--manual", "x", "--strict-v2"), 2, "got both"),
    ],
)
def test_what_is_asked_wrongly_is_told(
    db: Path, capsys: Capture, arguments: tuple[str, ...], code: int, told: str
) -> None:
    assert told in refused(capsys, "reconcile", "--db", db, *arguments, code=code)


def test_without_a_database_there_is_nothing_to_reconcile(tmp_path: Path, capsys: Capture) -> None:
    assert "got no file" in refused(capsys, "reconcile", "--db", tmp_path / "none.db")
    assert [] == [*tmp_path.iterdir()]


def test_time_and_policy_are_as_somebody_says(db: Path, capsys: Capture) -> None:
    arguments = ("reconcile", "--db", db, "--json", "--manual", "Schedule", "--since")
    assert 0 == json.loads(said(capsys, *arguments, "2100-01-01T00:00:00Z"))["graphs"][0]["rows"]
    assert 3 == json.loads(said(capsys, *arguments, "2000-01-01T00:00:00Z"))["graphs"][0]["rows"]
    assert 0 == json.loads(said(capsys, "reconcile", "--db", db, "--json", "--strict-v2"))["unexplained"]


# --- the report ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["markdown", "json", "terminal", "status"])
def test_the_command_for_rolling_back_that_is_shown_works_from_anywhere(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    taken_to(db, "advance")
    monkeypatch.chdir(db.parent)
    if how == "status":
        text = said(capsys, "status", "--db", db.name)
    else:
        text = said(capsys, "rollout", "status", "--db", db.name, "--format", how)
    if how == "json":
        command = json.loads(text)["rollouts"][0]["undo"]
    else:
        found = [
            part for line in text.splitlines() if "rollback" in (part := line[line.find("inbetweenies rollout") :])
        ]
        command = found[-1].partition("  #")[0]
    monkeypatch.chdir("/")
    assert ["inbetweenies", "rollout", "rollback"] == shlex.split(command)[:3]
    said(capsys, *shlex.split(command)[1:])

    assert "rolled_back" == held(db).state


def test_the_three_forms_say_the_same(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance", "advance")
    one = json.loads(said(capsys, "rollout", "status", V2, "--db", db, "--format", "json"))["rollouts"][0]
    text = said(capsys, "rollout", "status", V2, "--db", db, "--format", "markdown")
    shown = said(capsys, "rollout", "status", V2, "--db", db)

    assert [phase["name"] for phase in one["phases"] if phase["mark"] == "done"] == [
        line[6:].partition(":")[0] for line in text.splitlines() if line.startswith("- [x]")
    ]
    for form in (text, shown):
        assert f"{one['update']['next'][:19]}Z" in form
        assert one["undo"] in form
    assert {"reached": 0, "graphs": 1} == one["impact"]


def test_news_that_is_overdue_is_told_until_somebody_says_how_it_goes(db: Path, capsys: Capture) -> None:
    def work(store: SqliteStore) -> None:
        late = wall_clock() - UPDATE_US - SECOND
        RolloutControl(store, clock=lambda: late).start(V2, actor="ada", reason="a test")

    in_store(db, work)
    assert "OVERDUE" in said(capsys, "rollout", "status", "--db", db)
    said(capsys, "rollout", "note", V2, "--db", db, "--reason", "all quiet")
    shown = said(capsys, "rollout", "status", "--db", db)

    assert "OVERDUE" not in shown
    assert ": all quiet" in shown
    assert 3 == held(db).fence


def test_an_audit_is_told_if_one_is_asked_for(db: Path, capsys: Capture) -> None:
    taken_to(db)
    told = json.loads(said(capsys, "rollout", "status", "--db", db, "--audit", "--json"))["rollouts"][0]["checks"]
    assert [("graph default", True)] == [(one["name"], one["passed"]) for one in told]
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE log SET until = seq WHERE id = 'e2'")

    assert "looked    graph default: 1 entities, 1 relationships; not whole" in (
        said(capsys, "rollout", "status", "--db", db, "--audit")
    )
    assert "got both" in refused(capsys, "rollout", "status", "--db", db, "--audit", "--watch", code=2)
    assert "got both" in refused(capsys, "rollout", "status", "--db", db, "--format=markdown", "--watch", code=2)


def test_status_tells_what_is_rolled_out_or_was_until_yesterday(db: Path, capsys: Capture) -> None:
    assert [] == json.loads(said(capsys, "status", "--db", db, "--json"))["rollouts"]
    taken_to(db, "advance", "rollback")
    [one] = json.loads(said(capsys, "status", "--db", db, "--json"))["rollouts"]
    alone = json.loads(said(capsys, "rollout", "status", "--db", db, "--json"))["rollouts"][0]

    assert one | {"as_of": None} == alone | {"as_of": None}
    assert f"{V2}/1: rolled_back since" in said(capsys, "status", "--db", db)

    def long_ago(store: SqliteStore) -> None:
        early = wall_clock() - RECENT_US - SECOND
        control = RolloutControl(store, clock=lambda: early)
        control.start(V2)
        control.rollback(V2)

    in_store(db, long_ago)
    assert V2 not in said(capsys, "status", "--db", db)


def test_status_tells_of_the_logs_when_the_rollouts_cannot_be_read(db: Path, capsys: Capture) -> None:
    put(db, states.DOCUMENT, b"{")
    text = said(capsys, "status", "--db", db)

    assert "the rollouts cannot be read: expected the rollouts in the store" in text
    assert text.startswith("graph")
    assert Document() != in_store(db, lambda store: run_now(store.document(states.DOCUMENT)))


def test_what_an_incident_lacks_is_shown(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise OSError("no platform")

    monkeypatch.setattr(module, "versions", away)
    name = rolled_back(db, capsys)

    assert "lacking   versions.json: OSError: no platform" in said(capsys, "incident", "show", name, "--db", db)


def test_reconcile_tells_what_is_shown_in_part_and_how_much_more_is_unexplained(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(store: SqliteStore) -> None:
        content = {"is_primary": True, "only_v2_says": 1}
        Server(store).push(entity("h", at(0), content, entity_type="home"))

    in_store(db, work)
    assert "not shown   by inbetweenies-v1" in said(capsys, "reconcile", "--db", db)
    monkeypatch.setattr("inbetweenies.rollout.reconcile.TOLD_MAX", 0)
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE log SET until = seq WHERE id = 'e2'")
    assert "and 1 more" in said(capsys, "reconcile", "--db", db, code=1)
