"""The command `explain`, and `drill --scenario`: what they print, and how they end."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from inbetweenies import MemoryStore, SqliteStore, cli
from inbetweenies.asgi import app
from inbetweenies.ops import scenarios
from inbetweenies.ops.policies import standard
from inbetweenies.rollout import triggers, verdicts
from inbetweenies.rollout.chain import following
from inbetweenies.stores import amend
from inbetweenies.stores.keeper import run_now
from tests.ops.test_explain import SHIPPED
from tests.ops.test_triggers_shell import IN, OUT, V2, Process, put, ramping

Capture = pytest.CaptureFixture[str]


def begun(path: Path) -> tuple[SqliteStore, Process]:
    store = SqliteStore(path, journal=False, heads=False)
    put(store, ramping())
    return store, Process(store, breaches=lambda: ("a write\x1b[31m was lost",))


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "home.db"
    store, process = begun(path)
    process.serve(IN, 1_200, failed=True)
    process.serve(OUT, 20)
    process.look()
    process.now[0] = 5_000_000
    process.look()
    run_now(store.close())
    return path


def explained(capsys: Capture, *arguments: object, code: int = 0) -> str:
    assert cli.invoke(["explain", *map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def failed(capsys: Capture, *arguments: object, code: int) -> str:
    assert cli.invoke([*map(str, arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def change(path: Path, name: str, before: bytes, after: bytes) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        ((body,),) = connection.execute("SELECT body FROM documents WHERE name = ?", (name,)).fetchall()
        assert before in body
        connection.execute("UPDATE documents SET body = ? WHERE name = ?", (body.replace(before, after, 1), name))


# --- what was decided ---------------------------------------------------------------------------------------------


def test_the_newest_verdicts_are_listed(db: Path, capsys: Capture) -> None:
    assert [
        "id  at                    rollout            row           decision",
        f"2   1970-01-01T00:00:05Z  {V2}/1  still_broken  switch",
        f"1   1970-01-01T00:00:00Z  {V2}/1  data_loss     route_back",
        "",
        f"why: inbetweenies explain 2 --db {db}",
    ] == explained(capsys, "--db", db).splitlines()
    found = json.loads(explained(capsys, "--db", db, "--json", "--limit", 1))
    assert [(2, "still_broken", "switch")] == [(one["id"], one["row"], one["decision"]) for one in found["verdicts"]]


def test_one_is_explained_and_decided_again(db: Path, capsys: Capture) -> None:
    calm = "worse no, memory no, silence no, security no"
    assert [
        f"verdict 1: {V2}/1, 1970-01-01T00:00:00Z",
        "  row         data_loss -> route_back",
        "  why         one broken invariant is enough: what is lost meanwhile does not come back by waiting",
        "  covers      Data loss detected, Data inconsistency",
        f"  facts       stage reached, breach yes, failing certain, {calm}, floor above",
        "  evidence    a write?[31m was lost",
        "              1200 of 1200 failed, of the others 0 of 20",
        "              1200 failures in a row",
        "  seen        it was on watch, at fence 4",
        "              those whom it reaches: 1,200 of 1,200 failed since the look before, 0 of 0 until then",
        "              the others: 0 of 20 failed since the look before, 0 of 0 until then",
        "  led to      freeze: a write?[31m was lost; 1200 of 1200 failed, of the others 0 of 20",
        "              route_back: a write?[31m was lost; 1200 of 1200 failed, of the others 0 of 20",
        "  replayed    identical",
    ] == explained(capsys, 1, "--db", db).splitlines()
    found = json.loads(explained(capsys, 1, "--db", db, "--json"))
    assert {"identical": True, "differs": []} == found["replay"]
    assert (standard().digest, "yes", "1970-01-01T00:00:00.000000Z"[:19]) == (
        found["policy"],
        found["facts"]["breach"],
        found["at"][:19],
    )


def test_what_is_decided_otherwise_by_now_ends_with_1(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = triggers.decide

    def decide(*asked: Any, **more: Any) -> triggers.Judged:
        return replace(real(*asked, **more), row="another", evidence=())

    monkeypatch.setattr(verdicts, "decide", decide)
    lines = explained(capsys, 1, "--db", db, code=1).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  replayed"))
    assert [
        "  replayed    DIFFERENT",
        '              row: "data_loss" was kept; "another" is decided now',
    ] == lines[at : at + 2]
    assert lines[at + 2].startswith('              evidence: ["a write')
    found = json.loads(explained(capsys, 1, "--db", db, "--json", code=1))
    assert (False, 2) == (found["replay"]["identical"], len(found["replay"]["differs"]))


def test_what_was_not_on_a_rung_before_and_who_could_not_tell(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "home.db"
    store, process = begun(path)
    for _ in range(4):
        process.look()
    broken = process.triggers
    run_now(store.close())
    assert broken.last[f"{V2}/1"].decision == "restore_by_person"
    assert "  led to      no rung that it was not on before" in explained(capsys, 4, "--db", path).splitlines()


def test_nobody_who_could_tell_saw_nothing(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "home.db"
    store = SqliteStore(path, journal=False, heads=False)
    put(store, ramping())
    process = Process(store)

    def fails(*_: object, **__: object) -> triggers.Signals:
        raise RuntimeError("a bug")

    process.monitor.signals = fails  # type: ignore[method-assign]
    for _ in range(3):
        process.look()
    run_now(store.close())
    lines = explained(capsys, 1, "--db", path).splitlines()
    assert "  evidence    nobody could tell what happened, at 3 looks" in lines
    assert ["  seen        it was on watch, at fence 4"] == [line for line in lines if "fence" in line]
    assert not [line for line in lines if line.startswith("  covers")]


def test_a_policy_of_ones_own_is_given_where_it_is_not_in_the_record(db: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f'min_safe_version = "{V2}"\n{SHIPPED}')
    digest = replace(standard(), min_safe_version=V2).digest
    store = SqliteStore(db, journal=False, heads=False)

    def by_another(document: Any) -> bytes:
        record = verdicts.record_in(document)
        line = following(None, record.lines[0].body.replace(standard().digest, digest))
        return verdicts.document_of(verdicts.Record(lines=(line,)))

    kept = run_now(amend(store, verdicts.DOCUMENT, by_another))
    lines = verdicts.record_in(kept).lines
    known = triggers.watches_in(run_now(store.document(triggers.DOCUMENT)))
    body = triggers.document_of(replace(known, verdicts=lines))
    run_now(amend(store, triggers.DOCUMENT, lambda _: body))
    run_now(store.close())

    told = explained(capsys, 1, "--db", db, code=1)
    assert f"  replayed    not: its policy {digest} is not in the record; give its file with --rollout-policy" in told
    assert "  why " not in told
    assert json.loads(explained(capsys, 1, "--db", db, "--json", code=1))["replay"] is None
    told = explained(capsys, 1, "--db", db, "--rollout-policy", file)
    assert told.endswith("  replayed    identical\n")


# --- nothing, or something else -----------------------------------------------------------------------------------


def test_where_nothing_was_decided_that_is_said(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "home.db"
    run_now(SqliteStore(path, journal=False, heads=False).close())

    assert "nothing was ever decided about a rollout, but that all is well\n" == explained(capsys, "--db", path)
    assert {"verdicts": []} == json.loads(explained(capsys, "--db", path, "--json"))
    assert "kept, (none); got 7" in failed(capsys, "explain", 7, "--db", path, code=2)
    assert "expected a database at" in failed(capsys, "explain", "--db", tmp_path / "no.db", code=1)
    assert "0 is not in the range" in failed(capsys, "explain", 0, "--db", path, code=2)


@pytest.mark.parametrize(
    ("document", "before", "after", "told"),
    [
        ("verdicts", b'\\"data_loss\\"', b'\\"all_well\\"', "verdict 1: expected the hash of what it says"),
        ("verdicts", b'"n":2', b'"n":3', "verdict 3: expected the hash of what it says"),
        ("watch", b'"verdicts":[', b'"verdicts":[],"x":[', "expected the watches of rollouts"),
    ],
)
def test_a_verdict_that_was_changed_is_told_and_not_believed(
    db: Path, capsys: Capture, document: str, before: bytes, after: bytes, told: str
) -> None:
    change(db, document, before, after)
    for arguments in ((), ("1",), ("2",), ("--json",)):
        assert told in failed(capsys, "explain", *arguments, "--db", db, code=1)


def test_the_command_reads_what_is_kept_and_writes_nothing(db: Path, capsys: Capture) -> None:
    before = db.read_bytes()
    explained(capsys, 1, "--db", db)

    assert before == db.read_bytes()


# --- the policy of a server ---------------------------------------------------------------------------------------


def test_a_server_refuses_a_policy_with_a_gap_or_an_overlap_before_it_makes_anything(
    tmp_path: Path, capsys: Capture
) -> None:
    file, db = tmp_path / "mine.toml", tmp_path / "home.db"
    for text, told in (
        (SHIPPED.replace('name = "silence"\nwhen = {', 'name = "silence"\nwhen = { floor = "above",'), "got none for "),
        (SHIPPED.replace('failing = "doubt", security = "no" }', 'failing = "doubt" }'), "got several for "),
        ("[[row", "expected a policy in TOML"),
    ):
        file.write_text(text)
        for command in (("serve", "--db", db), ("matrix",)):
            line = failed(capsys, *command, "--rollout-policy", file, code=2)
            assert line.startswith(f"inbetweenies: {file}: ")
            assert told in line
    assert not db.exists()
    assert "does not exist" in failed(capsys, "serve", "--db", db, "--rollout-policy", tmp_path / "no", code=2)


def test_an_application_decides_by_the_policy_that_it_is_given() -> None:
    store, other = MemoryStore(), replace(standard(), advised={V2: "a hole"})
    put(store, ramping())
    served = app(store, rollout_policy=lambda: other)

    assert ["roll_back"] == [one.what for one in served.watching.triggers.look()]
    assert () == app(store).watching.triggers.look()


# --- the matrices -------------------------------------------------------------------------------------------------


def test_both_matrices_are_shown(tmp_path: Path, capsys: Capture) -> None:
    assert 0 == cli.invoke(["matrix"])
    lines = capsys.readouterr().out.splitlines()
    risk = next(line for line in lines if line.startswith("Sync protocol incompatibility"))

    assert ["row", "decision", "scenario", "when"] == lines[0].split()
    assert ["data_loss", "route_back", "a_log_is_damaged", "stage=reached", "breach=yes", "floor=above"] == lines[
        1
    ].split()
    assert "floor: none" in lines
    assert risk.endswith("medium       high      triggers  15 s            failing, failing_below_floor")
    file = tmp_path / "mine.toml"
    file.write_text(f'min_safe_version = "{V2}"\nadvised = {{ "{V2}" = "a hole" }}\n{SHIPPED}')
    assert 0 == cli.invoke(["matrix", "--rollout-policy", str(file)])
    lines = capsys.readouterr().out.splitlines()
    assert [f"floor: {V2}", f"advised against: {V2}: a hole"] == [line for line in lines if V2 in line]
    assert "stage=routed_back|switched|repair" in "".join(lines)


def test_both_are_told_to_programs(capsys: Capture) -> None:
    assert 0 == cli.invoke(["matrix", "--json"])
    found = json.loads(capsys.readouterr().out)

    assert (standard().digest, 16, 8) == (found["digest"], len(found["policy"]["row"]), len(found["risks"]))


# --- rehearsed ----------------------------------------------------------------------------------------------------


def test_all_scenarios_are_played(capsys: Capture) -> None:
    assert 0 == cli.invoke(["drill", "--scenarios"])
    lines = capsys.readouterr().out.splitlines()

    assert f"{len(scenarios.SCENARIOS)} of {len(scenarios.SCENARIOS)} passed." == lines[-1]
    assert {"PASS"} == {line[:4] for line in lines[:-2]}


def test_some_scenarios_are_played_and_one_that_ends_otherwise_fails(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["drill", "--scenario", "a_log_is_damaged", "--scenario", "all_is_well"]
    assert 0 == cli.invoke([*asked, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [True, ["PASS", "PASS"], ["data_loss", "all_well"]] == [
        found["passed"],
        [one["result"] for one in found["scenarios"]],
        [one["row"] for one in found["scenarios"]],
    ]
    monkeypatch.setattr(scenarios.Stage, "damage", lambda _: None)
    assert 1 == cli.invoke(asked)
    assert [
        "FAIL  a_log_is_damaged  all_well -> watch; the rollout is ramp",
        "PASS  all_is_well       all_well -> watch; the rollout is ramp",
        "",
        "1 of 2 passed.",
    ] == capsys.readouterr().out.splitlines()


def test_a_scenario_that_is_none_or_with_a_database_is_misuse(tmp_path: Path, capsys: Capture) -> None:
    assert "expected a scenario, of all_is_well" in failed(capsys, "drill", "--scenario", "a_fire", code=2)
    assert "--db: expected it without scenarios" in failed(
        capsys, "drill", "--scenarios", "--db", tmp_path / "x", code=2
    )


def test_what_is_stored_is_json_that_anybody_can_read(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        ((body,),) = connection.execute("SELECT body FROM documents WHERE name = 'verdicts'").fetchall()
    kept = msgspec.json.decode(body)

    assert [1, 2] == [line["n"] for line in kept["lines"]]
    assert {"inputs", "outcome"} == msgspec.json.decode(kept["lines"][0]["body"]).keys()
