"""Incidents: what was known is put aside before anything is changed, without secrets, and never in the way."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from inbetweenies import MemoryStore
from inbetweenies.asgi import app
from inbetweenies.asgi.watching import Watching
from inbetweenies.errors import StoreBusy, StoreError
from inbetweenies.model import Document
from inbetweenies.ops import incident as module
from inbetweenies.ops.incident import Incident, Incidents, RecentLog, folder_of, listed, opened, versions
from inbetweenies.ops.redact import REDACTED, redacted, redacted_value, secrets_in
from inbetweenies.rollout import states
from inbetweenies.rollout.cases import Case, case_in, replayed
from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.states import Rollout, moved, rollouts_in
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores.keeper import run_now
from tests.ops.test_triggers_shell import IN, OUT, V2, Process, Shaky, of, put, ramping
from tests.support import Server, at, entity

GUARD = 10.0  # seconds; only reached when something hangs


def put_aside(incidents: Incidents, **fields: Any) -> Incident:
    capture = incidents.capture(f"{V2}/1", **({"actor": "ada", "why": "a test"} | fields))
    path = capture.finish(GUARD)
    assert path is not None, capture.failed
    return opened(path.parent, path.name)


# --- what is in it ------------------------------------------------------------------------------------------------


def test_all_that_is_known_is_in_it(tmp_path: Path) -> None:
    store = MemoryStore()
    put(store, ramping())
    server = Server(store)
    server.push(entity("e1", at(0), {"model": "xyzzy-model"}))
    log = RecentLog()
    log.emit(logging.makeLogRecord({"name": "inbetweenies", "levelname": "WARNING", "msg": "rollout %s", "args": (3,)}))
    incidents = Incidents(store, tmp_path / "in", log=log, clock=lambda: 1_781_516_462_000_005, wait_s=GUARD)
    one = put_aside(incidents, metrics=lambda: "up 1\n")
    head = server.pull().head

    assert "20260615T094102.000005Z-inbetweenies-v2-1" == one.about.id == one.path.name
    assert (f"{V2}/1", "ada", "a test", False, {}, ()) == (
        one.about.rollout,
        one.about.actor,
        one.about.why,
        one.about.late,
        one.about.lacking,
        one.damaged,
    )
    assert {"documents/rollouts.json", "heads.json", "incident.json", "log.txt", "metrics.txt", "versions.json"} == (
        one.files.keys()
    )
    assert of(store) == rollouts_in(one.document(states.DOCUMENT)).of(V2)
    assert Document() == one.document("flags")
    assert (head.seq, head.digest_hex) == tuple(
        json.loads(one.files["heads.json"])["default"][n] for n in ("seq", "digest")
    )
    assert (
        [V2, "inbetweenies-v1"]
        == json.loads(one.files["versions.json"])["wire_versions"]
        == versions()["wire_versions"]
    )
    assert one.files["log.txt"].endswith(b" WARNING inbetweenies: rollout 3\n")
    assert not any(b"xyzzy" in body for body in one.files.values())


def test_two_at_one_moment_have_names_of_their_own(tmp_path: Path) -> None:
    incidents = Incidents(MemoryStore(), tmp_path, clock=lambda: 7, wait_s=GUARD)
    names = [put_aside(incidents).about.id for _ in range(3)]
    hostile = incidents.capture("../../x/1", actor="a", why="b")

    assert [f"{names[0]}{end}" for end in ("", "-2", "-3")] == names
    assert hostile.finish(GUARD) == tmp_path / "19700101T000000.000007Z-..-..-x-1"
    assert sorted([*names, hostile.id]) == [one.about.id for one in listed(tmp_path)[0]]
    assert ([], {}) == listed(tmp_path / "none")


def test_what_cannot_be_read_is_told_and_the_rest_is_kept(tmp_path: Path) -> None:
    store = Shaky()
    put(store, ramping())
    store.failing = [False, True]

    def metrics() -> str:
        raise StoreBusy("expected metrics; Bearer abcdef")

    one = put_aside(Incidents(store, tmp_path, wait_s=GUARD), metrics=metrics)

    assert {"documents/watch.json", "metrics.txt"} == one.about.lacking.keys()
    assert f"StoreBusy: expected metrics; Bearer {REDACTED}" == one.about.lacking["metrics.txt"]
    assert "documents/rollouts.json" in one.files


def test_of_very_many_graphs_those_are_read_that_come_first(tmp_path: Path) -> None:
    store = MemoryStore()
    for name in "abc":
        run_now(_touch(store, name))
    seconds = iter((0.0, 0.1, 0.2, 0.3, 0.4))
    one = put_aside(Incidents(store, tmp_path, monotonic=lambda: next(seconds), wait_s=GUARD))

    assert ["a", "b"] == list(json.loads(one.files["heads.json"]))
    assert {"heads of more graphs": "expected 3; got 2 within 0.2 s"} == one.about.lacking


async def _touch(store: MemoryStore, graph: str) -> None:
    async with store.transaction(graph, write=True):
        pass


# --- no secrets ---------------------------------------------------------------------------------------------------

letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
words = st.text(letters, min_size=6, max_size=60)
tokens = st.tuples(st.text("0123456789abcdef", min_size=8, max_size=8), st.text(letters, min_size=43, max_size=43))
planted = st.one_of(
    tokens.map(lambda pair: (f"ib1_{pair[0]}_{pair[1]}", pair[1])),
    words.map(lambda word: (f"Authorization: Bearer {word}", word)),
    words.map(lambda word: (f"bearer={word}", word)),
    words.map(lambda word: (f'{{"password": "{word} and more"}}', word)),
    words.map(lambda word: (f"INBETWEENIES_ADMIN_PASSWORD={word}", word)),
    words.map(lambda word: (f"api_key = '{word}'", word)),
    words.map(lambda word: (f"https://ann:{word}@example.org/x", word)),
    words.map(lambda word: (f"GET /?access_token={word}&x=1", word)),
    words.map(lambda word: (f"eyJhbGciOi{word}.eyJz{word}.{word}", word)),
)
around = st.text(st.characters(codec="ascii", exclude_characters="\\\"'"), max_size=20)


@given(before=around, secret=planted, after=around)
def test_nothing_that_opens_something_gets_through(before: str, secret: tuple[str, str], after: str) -> None:
    check_secret(before, secret, after)


def check_secret(before: str, secret: tuple[str, str], after: str) -> None:
    text, word = secret
    assume(word not in before + after)
    assume(not any(word in part for part in ("password", "Authorization", "INBETWEENIES_ADMIN_PASSWORD", REDACTED)))

    assert word not in redacted(f"{before} {text} {after}")
    assert word not in json.dumps(redacted_value({"a": [{"b": f"{before} {text}"}], "n": 1, text: None}))


@given(words)
def test_what_the_environment_calls_secret_goes_wherever_it_stands(word: str) -> None:
    secrets = secrets_in({"INBETWEENIES_ADMIN_PASSWORD": word, "HOME": "/root", "SHORT_TOKEN": "ab"})
    assume(word not in REDACTED)

    assert (word,) == secrets
    assert f"x{REDACTED}y" == redacted(f"x{word}y", secrets)
    assert {REDACTED: [REDACTED, 1, None, True]} == redacted_value({word: [word, 1, None, True]}, secrets)


@pytest.mark.parametrize(
    "text",
    [
        "expected the digest " + "0123456789abcdef" * 4,
        "2026-06-15T09:41:02.000001Z-000000-ann.m1a2b3c4d5e6",
        "20261127T023450.668907Z-inbetweenies-v2-1",
        "6f1c9a3e-1111-4222-8333-0123456789ab",
        "9 of 23 failed, of the others 0 of 100",
        "inbetweenies rollout rollback inbetweenies-v2 --db '/srv/my home.db'",
    ],
)
def test_what_is_needed_stays(text: str) -> None:
    assert text == redacted(text)


def test_what_is_drawn_at_random_goes_and_names_of_secrets_hide_all() -> None:
    assert f"key {REDACTED}." == redacted("key aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1.")
    assert {"password": REDACTED, "token": 7} == redacted_value({"password": "x", "token": 7})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(secret=tokens)
def test_no_file_of_a_bundle_has_one(tmp_path: Path, secret: tuple[str, str]) -> None:
    assume(len(set(secret[1])) > 8)  # and stands nowhere else
    text = f"ib1_{secret[0]}_{secret[1]}"
    store = MemoryStore()
    rollout = moved(ramping(), "hold", fence=4, cause=Cause(actor="ann", reason=f"of {text}", at=1))
    put(store, rollout)
    run_now(_touch(store, text))
    log = RecentLog()
    log.emit(logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": text}))
    incidents = Incidents(store, tmp_path, log=log, secrets=("hunter2",), wait_s=GUARD)
    one = put_aside(incidents, why=f"for {text}", actor=text, metrics=lambda: f'a{{b="{text}"}} 1\n# hunter2')

    for name, body in one.files.items():
        assert secret[1].encode() not in body, name
        assert b"hunter2" not in body, name
    assert rollouts_in(one.document(states.DOCUMENT)).of(V2).state == "held"


# --- the log ------------------------------------------------------------------------------------------------------


def test_the_newest_lines_are_kept_and_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    log = RecentLog(lines=2)
    logger = logging.getLogger("inbetweenies.test")
    with log.listening():
        for number in range(3):
            logger.warning("line %s\nof two", number)
        try:
            int("secret content")
        except ValueError:
            logger.exception("failed")
    logger.warning("after")

    assert ["WARNING inbetweenies.test: line 2 of two", "ERROR inbetweenies.test: failed (ValueError)"] == [
        line.split(" ", 1)[1] for line in log.lines
    ]


def test_what_cannot_be_logged_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    log = RecentLog()
    log.emit(logging.makeLogRecord({"msg": "%d", "args": ("x",)}))

    assert () == log.lines


@pytest.mark.parametrize("said", [True, False])
def test_where_nobody_says_where_logs_go_they_still_go_there(said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    package = logging.getLogger("inbetweenies")
    monkeypatch.setattr(type(package), "hasHandlers", lambda _: said)
    log = RecentLog()
    with log.listening():
        assert ([log] if said else [log, logging.lastResort]) == package.handlers[-2 + said :]
    assert log not in package.handlers


# --- never in the way ---------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, body: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    capture = Incidents(MemoryStore(), tmp_path).capture("x/1", actor="a", why="b")

    assert None is capture.finish(GUARD)
    assert "No space left on device" in (capture.failed or "")
    assert "was not put aside" in caplog.text
    assert [] == list(tmp_path.iterdir())


class Stuck(MemoryStore):
    """A store that does not answer until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    async def document(self, name: str) -> Document:
        if threading.current_thread().name == "inbetweenies-incident":
            assert self.go.wait(GUARD)
        return await super().document(name)


def test_a_store_that_does_not_answer_delays_it_no_longer_than_it_may(tmp_path: Path) -> None:
    store = Stuck()
    incidents = Incidents(store, tmp_path, wait_s=0.01)
    began = time.monotonic()
    capture = incidents.capture("x/1", actor="a", why="b")

    assert time.monotonic() - began < GUARD / 2
    assert (False, None) == (capture.collected.is_set(), capture.finish(0.01))
    assert "still being written" in (capture.failed or "")
    store.go.set()
    incidents.close()
    [one], _ = listed(tmp_path)
    assert one.about.late


# --- before a rollback --------------------------------------------------------------------------------------------


def triggered(tmp_path: Path, **options: Any) -> tuple[Shaky, Process, list[tuple[Rollout, Incident]]]:
    """A process whose requests all fail, and what it put aside, with the rollout as it was then."""
    store = Shaky()
    put(store, ramping())
    kept: list[tuple[Rollout, Incident]] = []
    incidents = Incidents(store, tmp_path, wait_s=GUARD)

    def before(rollout: Rollout, why: str, case: Case | None) -> None:
        capture = incidents.capture(rollout.id, actor="triggers", why=why, case=case)
        path = capture.finish(GUARD)
        assert path is not None
        kept.append((of(store), opened(path.parent, path.name)))

    return store, Process(store, before_rollback=before, **options), kept


def test_it_is_put_aside_before_anything_is_changed_and_once(tmp_path: Path) -> None:
    store, process, kept = triggered(tmp_path)
    for _ in range(3):
        process.serve(OUT, 100)
        process.serve(IN, 60, failed=True)
        process.look()
    [(then, one)] = kept

    assert ("ramp", "rolled_back") == (then.state, of(store).state)
    assert "ramp" == rollouts_in(one.document(states.DOCUMENT)).of(V2).state
    assert "failed" in one.about.why
    case = case_in(one.files["case.json"])
    assert ("route_back", "roll_back") == (case.rung, case.event)
    verdict = replayed(case)
    assert ("route_back", "roll_back") == (verdict.rung, verdict.event)


def test_what_failed_and_is_done_at_the_next_look_is_not_put_aside_again(tmp_path: Path) -> None:
    store, process, kept = triggered(tmp_path)
    process.serve(OUT, 100)
    process.serve(IN, 60, failed=True)
    whole = Shaky.put_document

    async def no_moves(self: Shaky, name: str, body: bytes, *, revision: int) -> bool:
        if name == states.DOCUMENT:
            raise StoreBusy("expected the store; got none")
        return await whole(self, name, body, revision=revision)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shaky, "put_document", no_moves)
        with pytest.raises(StoreBusy):
            process.look()
    assert "ramp" == of(store).state
    process.look()

    assert ("rolled_back", 1) == (of(store).state, len(kept))


def test_a_person_who_takes_it_back_has_it_put_aside_as_well(tmp_path: Path) -> None:
    store, process, kept = triggered(tmp_path)
    put(store, ramping(), ramping("mcp_server"), ramping("x", state="rolled_back"))
    process.triggers.trigger_rollback("a fire", subject="mcp_server")
    assert [("ramp", "mcp_server/1")] == [(then.state, one.about.rollout) for then, one in kept]
    process.triggers.trigger_rollback("a fire")
    process.triggers.trigger_rollback("a fire")

    assert ["mcp_server/1", f"{V2}/1"] == [one.about.rollout for _, one in kept]
    assert "case.json" not in kept[0][1].files


@pytest.mark.parametrize("by", ["itself", "a person"])
def test_whatever_is_raised_it_is_taken_back(by: str, caplog: pytest.LogCaptureFixture) -> None:
    def before(*_: object) -> None:
        raise RuntimeError("disk on fire")

    store = Shaky()
    put(store, ramping())
    process = Process(store, before_rollback=before)
    if by == "a person":
        process.triggers.trigger_rollback("a fire")
    else:
        process.serve(OUT, 100)
        process.serve(IN, 100, failed=True)
        process.look()

    assert "rolled_back" == of(store).state
    assert "nobody was told that a rollout is about to be taken back" in caplog.text


def test_a_server_puts_aside_what_it_measured(tmp_path: Path) -> None:
    store = MemoryStore()
    put(store, ramping())
    incidents = Incidents(store, tmp_path, wait_s=GUARD)
    served = app(router=ProtocolFallback(store), auth=False, incidents=incidents)
    served.watching.triggers.trigger_rollback("a fire")
    incidents.close()
    [one], _ = listed(tmp_path)

    assert "triggers" == one.about.actor
    assert b"inbetweenies_triggers_overdue 0" in one.files["metrics.txt"]
    assert b"inbetweenies_triggers_overdue" in Watching(served.router, (), lambda: 0.0).exposition().encode()


# --- reading ------------------------------------------------------------------------------------------------------


def test_whoever_changes_a_file_is_noticed(tmp_path: Path) -> None:
    store = MemoryStore()
    put(store, ramping())
    one = put_aside(Incidents(store, tmp_path, wait_s=GUARD))
    (one.path / "versions.json").write_bytes(b"{}")
    (one.path / "more.txt").write_bytes(b"")
    (one.path / "heads.json").unlink()

    assert ("heads.json", "more.txt", "versions.json") == opened(tmp_path, one.path.name).damaged


def spoiled(path: Path, name: str, body: bytes | None) -> None:
    if body is None:
        (path / name).unlink()
    else:
        (path / name).write_bytes(body)


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("manifest.json", None, "got something else"),
        ("incident.json", b"[]", "got something else"),
        ("incident.json", b"\xff", "got something else"),
        ("manifest.json", b'{"format": 2, "sha256": {}}', "newer release"),
        ("large.txt", bytes(9), "got more"),
    ],
)
def test_what_is_no_incident_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: bytes | None, told: str
) -> None:
    one = put_aside(Incidents(MemoryStore(), tmp_path, wait_s=GUARD))
    spoiled(one.path, name, body)
    if name == "large.txt":
        monkeypatch.setattr(module, "_FILE_BYTES_MAX", 8)
    with pytest.raises(StoreError, match=told):
        opened(tmp_path, one.path.name)
    [], unreadable = listed(tmp_path)
    assert [one.path.name] == list(unreadable)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "none", ".hidden", "a/b"])
def test_no_other_folder_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "in" / ".hidden").mkdir(parents=True)
    with pytest.raises(StoreError, match="expected an incident"):
        opened(tmp_path / "in", name)


def test_it_is_beside_the_database() -> None:
    assert Path("/srv/home.db.incidents") == folder_of(Path("/srv/home.db"))
