"""The commands of `inbetweenies rollout`: what they print, how they end, and two of them at once."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import SqliteStore, census, cli, cli_rollout
from inbetweenies.census import Entry
from inbetweenies.errors import StoreBusy
from inbetweenies.model import format_time
from inbetweenies.ops.rollouts import RolloutControl
from inbetweenies.rollout import canary, triggers
from inbetweenies.rollout.canary import EVIDENCE, Bar, Evidence, Seen
from inbetweenies.rollout.report import UPDATE_US
from inbetweenies.rollout.states import DOCUMENT, Rollout
from inbetweenies.rollout.triggers import DOCUMENT as WATCHES
from inbetweenies.rollout.triggers import Climb, Watch, Watches
from inbetweenies.stores.clock import wall_clock
from inbetweenies.stores.keeper import run_now
from tests.ops.fit import fit
from tests.server.calls import ROOT, environment

Capture = pytest.CaptureFixture[str]
V2 = "inbetweenies-v2"
NOW = ("--min-wait", "0s", "--min-sessions", "0", "--min-pushes", "0", "--min-pulls", "0", "--min-conflicts", "0")
LOW = Bar(wait_us=0, sessions=0, pushes=0, pulls=0, conflicts=0)


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "my home.db"
    run_now(SqliteStore(path, journal=False, heads=False).close())
    return path


def in_store(db: Path, work: Callable[[SqliteStore], Any]) -> Any:
    store = SqliteStore(db, journal=False, heads=False)
    try:
        return work(store)
    finally:
        run_now(store.close())


def put(db: Path, name: str, body: bytes) -> None:
    def work(store: SqliteStore) -> None:
        revision = run_now(store.document(name)).revision
        assert run_now(store.put_document(name, body, revision=revision))

    in_store(db, work)


def held(db: Path) -> Rollout:
    found: Rollout = in_store(db, lambda store: RolloutControl(store).rollouts().of(V2))
    return found


def taken_to(db: Path, *verbs: str) -> None:
    """Start a rollout and do this to it."""
    do(db, "start", *verbs)


def do(db: Path, *verbs: str) -> None:
    def work(store: SqliteStore) -> None:
        control = RolloutControl(store, bar=LOW)
        for verb in verbs:
            getattr(control, verb)(V2, actor="ada", reason="a test")

    in_store(db, work)


def rollout(db: Path, verb: str, *arguments: object) -> list[str]:
    return ["rollout", verb, *map(str, arguments), "--db", str(db)]


def told(capsys: Capture, db: Path, verb: str, *arguments: object) -> Any:
    assert cli.invoke([*rollout(db, verb, *arguments), "--json"]) == 0
    captured = capsys.readouterr()
    assert "" == captured.err
    return json.loads(captured.out)


def printed(capsys: Capture, db: Path, verb: str, *arguments: object) -> list[str]:
    assert cli.invoke(rollout(db, verb, *arguments)) == 0
    captured = capsys.readouterr()
    assert "" == captured.err
    return captured.out.splitlines()


def refused(capsys: Capture, db: Path, verb: str, *arguments: object, code: int = 1) -> str:
    """What is said on standard error, in one line."""
    assert cli.invoke(rollout(db, verb, *arguments)) == code
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, captured.err.count("\n"))
    return captured.err


# --- there and back -----------------------------------------------------------------------------------------------


def test_a_rollout_goes_all_the_way(db: Path, capsys: Capture) -> None:
    fit(db)
    started = told(capsys, db, "start", V2, "--steps", "0.5,10,100", "--allow", "a", "--deny", "b", "--actor", "ada")
    assert (True, "shadow", [0.5, 10], ["a"], ["b"]) == tuple(
        started[name] for name in ("changed", "state", "steps_percent", "allow", "deny")
    )
    assert ("start", "ada", "not given") == tuple(started["log"][0][name] for name in ("event", "actor", "reason"))
    shares = [told(capsys, db, "advance", V2, *NOW)["share_percent"] for _ in range(4)]
    assert [0.5, 10, 100, 100] == shares
    done = told(capsys, db, "finalize", V2, *NOW, "--yes", "--reason", "a month of it")
    assert ("finalized", True, 100) == (done["state"], done["over"], done["share_percent"])
    assert "a month of it" == done["log"][-1]["reason"]


def test_taking_it_back_is_one_command_and_says_what_it_did(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance", "advance", "pause")
    began = time.monotonic()
    lines = printed(capsys, db, "rollback", V2, "--actor", "bob", "--reason", "too slow")

    assert time.monotonic() - began < 1
    assert [
        f"{V2}/1 is rolled_back: given to nobody",
        "undone: it was held in ramp, step 2 of 4, given to 5 % of graphs",
        "no data was moved: what was written with it stays, and no write is lost",
        f"see it: inbetweenies rollout status {V2} --db '{db}'",
    ] == lines[:-1]
    assert lines[-1].startswith(f"what was known before is in {db}.incidents/20")
    cause = held(db).log[-1].cause
    assert ("bob", "too slow") == (cause.actor, cause.reason)
    again = printed(capsys, db, "rollback", V2)
    assert again[0].startswith(f"{V2}/1 is rolled_back since 20")
    assert again[0].endswith("Z by bob (too slow): nothing is left to do")


def test_the_command_that_is_shown_for_undoing_undoes(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance")
    [undo] = [line for line in printed(capsys, db, "status", V2) if line.startswith("  undo")]
    assert 0 == cli.invoke(shlex.split(undo.removeprefix("  undo"))[1:])
    capsys.readouterr()
    assert "rolled_back" == held(db).state


def test_it_is_held_and_goes_on(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance")
    assert (
        f"{V2}/1 is held in ramp, step 1 of 4: who has it keeps it, nobody else gets it"
        == (printed(capsys, db, "pause", V2)[0])
    )
    assert "got advance\n" in refused(capsys, db, "advance", V2, *NOW, code=2)
    assert f"{V2}/1 is ramp, step 1 of 4: given to 1 % of graphs" == printed(capsys, db, "resume", V2)[0]


def test_what_it_lacks_is_told_and_nothing_is_changed(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance")
    before = held(db)
    assert "it still needs 1800 more seconds, 50 more sessions" in refused(capsys, db, "advance", V2)
    few = ("--min-wait", "0s", "--min-sessions", "3")
    assert 1 == cli.invoke([*rollout(db, "advance", V2, *few), "--json"])
    missing = ["3 more sessions", "1 more pushes", "1 more pulls", "1 more conflicts"]
    assert {"changed": False, "missing": missing} == json.loads(capsys.readouterr().out)
    assert before == held(db)


def test_lists_are_shown_and_changed(db: Path, capsys: Capture) -> None:
    taken_to(db)
    assert ["allow: -", "deny: -"] == printed(capsys, db, "lists", V2)
    assert ["allow: a, b", "deny: c"] == (
        printed(capsys, db, "lists", V2, "--allow", "b", "--allow", "a", "--deny", "c")
    )
    assert {"id": f"{V2}/1", "allow": ["b"], "deny": []} == told(capsys, db, "lists", V2, "--drop", "a", "--drop", "c")


def test_what_the_preflight_finds_stops_it_before_anything_is_changed(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(db)
    monkeypatch.setattr("inbetweenies.ops.preflight.ROOM", 10**12)
    assert "make room. Put that right and start it again" in refused(capsys, db, "start", V2)
    assert "planned" == held(db).state
    assert "nothing was changed yet; its preflight has not passed" in "\n".join(printed(capsys, db, "status"))
    monkeypatch.undo()
    assert "shadow" == told(capsys, db, "start", V2)["state"]


def test_who_starts_it_is_told_who_has_it_today(db: Path, capsys: Capture) -> None:
    fit(db)
    day = 24 * 3600 * 1_000_000
    seen = (("1.1", 1, V2), ("1.0", 29, V2), ("0.9", 31, V2), ("0.8", 1, "inbetweenies-v1"))
    now = wall_clock()
    entries = [Entry(version=V2, release=name, last=now - ago * day, served=served) for name, ago, served in seen]
    put(db, census.DOCUMENT, census.document_of(entries, (), now=now))
    for started in (True, False, True):  # and not whoever only goes on, or begins anew what was taken back
        assert 0 == cli.invoke(rollout(db, "start", V2))
        said = capsys.readouterr().err
        assert started == (f"kinds of clients that were served {V2} in the last 30 days: 2 (see" in said)
        if not started:
            assert "" == said
            do(db, *["advance"] * 6, "finalize")
    printed(capsys, db, "rollback", V2)
    printed(capsys, db, "start", V2)  # and says nothing on standard error


def test_a_census_that_cannot_be_read_stops_nothing(db: Path, capsys: Capture) -> None:
    fit(db)
    put(db, census.DOCUMENT, b"[[")
    assert "shadow" == told(capsys, db, "start", V2)["state"]


def test_giving_up_says_so(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inbetweenies.ops.preflight.ROOM", 10**12)
    refused(capsys, db, "start", V2)
    assert f"{V2}/1 is aborted: given up before anything was changed" == printed(capsys, db, "abort", V2)[0]


# --- for good -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "code"), [(V2, 0), ("yes", 1), ("", 1)])
def test_for_good_is_typed(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, typed: str, code: int) -> None:
    asked = list[str]()
    taken_to(db, *["advance"] * 6)

    def prompt(text: str, **_: object) -> str:
        asked.append(text)
        return typed

    monkeypatch.setattr("click.prompt", prompt)

    assert code == cli.invoke(rollout(db, "finalize", V2, *NOW))
    assert [f"{V2} is then given to everybody, and `rollback` cannot undo it. Type its name to finalize it"] == asked
    assert ("burn_in" if code else "finalized") == held(db).state
    told = capsys.readouterr()
    assert ("cannot be undone" in told.out) == (not code)
    assert ("nothing was changed" in told.err) == bool(code)


def test_nobody_is_asked_for_what_cannot_be(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("click.prompt", lambda *_, **__: pytest.fail("asked"))
    taken_to(db, *["advance"] * 5)
    assert "expected advance or pause or rollback for" in refused(capsys, db, "finalize", V2, *NOW, code=2)
    in_store(db, lambda store: RolloutControl(store, bar=LOW).advance(V2))
    assert "it still needs 1800 more seconds" in refused(capsys, db, "finalize", V2)


def test_what_is_moved_while_somebody_types_is_not_finished(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_to(db, *["advance"] * 6)

    def typed(*_: object, **__: object) -> str:
        in_store(db, lambda store: RolloutControl(store).relist(V2, deny=["barn"]))
        return V2

    monkeypatch.setattr("click.prompt", typed)
    assert "it was moved meanwhile" in refused(capsys, db, "finalize", V2, *NOW)
    assert "burn_in" == held(db).state


def test_what_is_final_is_not_taken_back(db: Path, capsys: Capture) -> None:
    taken_to(db, *["advance"] * 6, "finalize")
    assert "which is finalized and cannot be undone" in refused(capsys, db, "rollback", V2, code=2)


# --- status -------------------------------------------------------------------------------------------------------


def test_where_it_stands_is_seen_at_a_glance(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance", "advance")
    one = held(db)
    evidence = Evidence(fence=one.fence, sessions=12, pushes=3, pulls=1)
    climbs = (Climb(rung="freeze", at=one.since, why="worse p95 of sync"),)
    put(db, EVIDENCE, canary.document_of(Seen(evidence={one.id: evidence})))
    put(db, WATCHES, triggers.document_of(Watches().put(Watch(rollout=one.id, rung="freeze", log=climbs))))
    since = f"{format_time(one.since)[:19]}Z"
    phases = [f"[x] {name}" for name in ("planned", "preflighted", "expanded", "shadow", "ramp 1 %")]
    phases += ["[>] ramp 5 %", *(f"[ ] {name}" for name in ("ramp 25 %", "ramp 50 %", "full", "burn_in", "finalized"))]
    lines = printed(capsys, db, "status", V2, "--min-wait", "2h")

    assert [
        f"{V2}/1: ramp, step 2 of 4 since {since}",
        "  means     given to 5 % of graphs",
        "  share     5 % of graphs, 0 allowed, 0 denied; 0 of 0 in this database",
        f"  phases    {'  '.join(phases)}",
        "  fence     5",
        "  evidence  lasted 0s of 2h, sessions 12/50, pushes 3/1, pulls 1/1, conflicts 0/1, broken invariants 0",
        "  missing   7200 more seconds, 38 more sessions, 1 more conflicts",
        f"  watch     freeze since {since}: worse p95 of sync",
        f"  update    last {since}, next due by {format_time(one.since + UPDATE_US)[:19]}Z",
        f"  moves     {since}  advance -> ramp  ada: a test",
    ] == [re.sub(r"lasted \d+s", "lasted 0s", re.sub(r"71\d\d more", "7200 more", line)) for line in lines[:10]]
    assert [
        f"  go on     inbetweenies rollout advance {V2} --db '{db}'",
        f"  undo      inbetweenies rollout rollback {V2} --db '{db}'",
    ] == lines[-2:]


def test_the_same_for_programs(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance")
    [one] = told(capsys, db, "status")["rollouts"]

    assert {"sessions": 0, "pushes": 0, "pulls": 0, "conflicts": 0, "breaches": 0, "degraded": []} == one["evidence"]
    assert {"wait_seconds": 1800, "sessions": 50, "pushes": 1, "pulls": 1, "conflicts": 1} == one["bar"]
    assert ({"rung": "watch", "log": []}, "50 more sessions") == (one["watch"], one["missing"][1])
    assert ("ramp", 1, 4, f"inbetweenies rollout rollback {V2} --db '{db}'") == tuple(
        one[name] for name in ("state", "share_percent", "fence", "undo")
    )


def test_what_is_over_is_told_last_and_shortly(db: Path, capsys: Capture) -> None:
    taken_to(db, "advance", "rollback")
    in_store(db, lambda store: RolloutControl(store).start("mcp_server"))
    lines = printed(capsys, db, "status")
    both = [line for line in lines if line and not line.startswith(" ")]

    assert ["mcp_server/1: shadow", f"{V2}/1: rolled_back"] == [line.partition(" since")[0] for line in both]
    assert 1 == sum(line.startswith("  undo") for line in lines)


def test_before_anything_was_rolled_out_it_says_how_to(db: Path, capsys: Capture) -> None:
    assert [f"nothing was ever rolled out: inbetweenies rollout start VERSION --db '{db}'"] == (
        printed(capsys, db, "status")
    )
    assert {"rollouts": []} == told(capsys, db, "status")


def interrupt() -> None:
    raise KeyboardInterrupt


def watching(monkeypatch: pytest.MonkeyPatch, *between: Callable[[], object]) -> None:
    """Whoever watches sleeps once for each of these, and not once more."""
    left = list(between)

    def sleep(_: float) -> None:
        assert left
        left.pop(0)()

    monkeypatch.setattr(cli_rollout, "_sleep", sleep)


def test_whoever_watches_sees_each_change_once_and_the_end(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_to(db)

    steps: tuple[list[str], ...] = (["advance"], [], ["pause"], ["rollback"])
    watching(monkeypatch, *(partial(do, db, *verbs) for verbs in steps))
    lines = [json.loads(line) for line in watched(capsys, db, "--json")]

    states = [[one["state"] for one in line["rollouts"]] for line in lines]
    assert [["shadow"], ["ramp"], ["held"], ["rolled_back"]] == states


def watched(capsys: Capture, db: Path, *arguments: str) -> list[str]:
    return printed(capsys, db, "status", "--watch", *arguments)


def test_ctrl_c_ends_the_watching_and_nothing_else(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_to(db)
    watching(monkeypatch, lambda: None, interrupt)
    lines = watched(capsys, db)

    assert 1 == sum(line.startswith(f"{V2}/1") for line in lines)
    assert "shadow" == held(db).state


def test_a_terminal_is_drawn_anew(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_to(db)
    cleared = list[int]()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.clear", lambda: cleared.append(1))
    watching(monkeypatch, lambda: None, interrupt)
    lines = watched(capsys, db)

    assert 2 == len(cleared) == sum("Ctrl-C ends this, and nothing else" in line for line in lines)


def test_who_watches_outlives_a_store_that_is_away(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    taken_to(db)
    real, calls = RolloutControl.rollouts, list[int]()

    def rollouts(self: RolloutControl) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise StoreBusy("another process holds the file")
        return real(self)

    monkeypatch.setattr(RolloutControl, "rollouts", rollouts)
    watching(monkeypatch, lambda: None, lambda: None, interrupt)
    lines = watched(capsys, db)

    assert 1 == lines.count("cannot be read just now: another process holds the file")
    assert 2 == sum(line.startswith(f"{V2}/1") for line in lines)


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["start", "inbetweenies-v9"], 2, "expected a wire version that is installed"),
        (["start", "inbetweenies-v1"], 2, "whoever names none is served"),
        (["start", "a\nb"], 2, "SUBJECT: expected 1 to 64 printable ASCII"),
        (["start", V2, "--steps", "-1,5"], 2, "--steps: expected a percentage between 0 and 100; got -1"),
        (["start", V2, "--steps", "5,101"], 2, "--steps: expected a percentage between 0 and 100; got 101"),
        (["start", V2, "--steps", "nan"], 2, "--steps: expected a percentage between 0 and 100; got nan"),
        (["start", V2, "--steps", "0,5"], 2, "--steps: expected rising percentages"),
        (["start", V2, "--steps", "5,1"], 2, "--steps: expected rising percentages"),
        (["start", V2, "--steps", "5,5"], 2, "--steps: expected rising percentages"),
        (["start", V2, "--steps", "100"], 2, "--steps: expected rising percentages"),
        (["start", V2, "--steps", ""], 2, "--steps: expected percentages such as 1,5,25,50; got ''"),
        (["start", V2, "--steps", "few"], 2, "--steps: expected percentages such as"),
        (["start", V2, "--allow", "a", "--deny", "a"], 2, "expected each graph once"),
        (["start", V2, "--actor", ""], 2, "expected an actor of 1 to 500"),
        (["start", V2, "--reason", "two\nlines"], 2, "expected a reason of 1 to 500"),
        (["advance", V2], 2, "expected a rollout that was started"),
        (["advance", V2, "--min-wait", "soon"], 2, "expected a time such as 90s, 30m, 2h or 1d; got 'soon'"),
        (["advance", V2, "--min-sessions", "-1"], 2, "-1 is not in the range"),
        (["rollback", V2], 2, "expected a rollout that was started"),
        (["status", V2], 2, "expected a rollout that was started"),
        (["lists", V2], 2, "expected a rollout that was started"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    db: Path, capsys: Capture, arguments: list[str], code: int, says: str
) -> None:
    assert says in refused(capsys, db, *arguments, code=code)
    assert {"rollouts": []} == told(capsys, db, "status")


@pytest.mark.parametrize("verb", ["start", "status", "rollback"])
def test_without_a_database_none_is_made(tmp_path: Path, capsys: Capture, verb: str) -> None:
    assert "expected a database at" in refused(capsys, tmp_path / "none.db", verb, V2)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("body", [b"{", b'{"rollouts": {}, "newer": 1}'])
@pytest.mark.parametrize("verb", ["start", "advance", "status", "rollback"])
def test_rollouts_that_cannot_be_read_are_left_alone(db: Path, capsys: Capture, verb: str, body: bytes) -> None:
    put(db, DOCUMENT, body)
    line = refused(capsys, db, verb, V2)

    assert "perhaps of a newer release" in line
    assert (f"inbetweenies versions enable {V2} --as accepted --db '{db}'" in line) == (verb == "rollback")
    assert body == in_store(db, lambda store: run_now(store.document(DOCUMENT)).body)


def test_somebody_does_it_also_without_a_name(db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(db)

    def nobody() -> str:
        raise OSError("no such account")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert "user " == told(capsys, db, "start", V2)["log"][0]["actor"][:5]


# --- two at once --------------------------------------------------------------------------------------------------


def at_once(count: int, arguments: list[str]) -> list[tuple[int, str, str]]:
    """What so many processes that do this at the same time end with, and print."""
    program = (
        "import sys; from inbetweenies.cli import main; import inbetweenies.ops.rollouts; sys.stdin.read(1); main()"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for process in processes:  # each has loaded what it needs by the time it is told to begin, or nearly so
        assert process.stdin is not None
        process.stdin.write("!")
        process.stdin.flush()
    ended = []
    for process in processes:
        out, err = process.communicate(timeout=60)
        ended.append((process.returncode, out, err))
    return sorted(ended)


def test_two_who_advance_at_once_advance_once(db: Path) -> None:
    taken_to(db, "advance")
    fence = held(db).fence
    (one, out, _), (other, _, err) = at_once(2, rollout(db, "advance", V2, *NOW, "--fence", fence))

    assert (0, 1) == (one, other)
    assert "is ramp, step 2 of 4" in out
    assert f"expected rollout {V2}/1 at fence {fence}; got {fence + 1}: it was moved meanwhile" in err
    assert (1, fence + 1) == (held(db).step, held(db).fence)


def test_several_who_start_at_once_start_one(db: Path) -> None:
    fit(db)
    ended = at_once(3, rollout(db, "start", V2))
    one = held(db)

    assert 0 == ended[0][0]
    assert {0, 1} >= {code for code, _, _ in ended}
    assert (f"{V2}/1", "shadow", 3) == (one.id, one.state, one.fence)
    assert ["start", "advance", "advance", "advance"] == [move.event for move in one.log]


def test_of_several_who_take_it_back_at_once_all_find_it_done(db: Path) -> None:
    taken_to(db, "advance")
    ended = at_once(3, rollout(db, "rollback", V2))

    assert [0, 0, 0] == [code for code, _, _ in ended]
    assert 1 == sum("undone: it was ramp" in out for _, out, _ in ended)
    assert 2 == sum("nothing is left to do" in out for _, out, _ in ended)
    assert 1 == sum(move.event == "roll_back" for move in held(db).log)


def test_the_times_are_those_of_the_clock(db: Path) -> None:
    before = wall_clock()
    taken_to(db)

    assert before <= held(db).since <= wall_clock()
