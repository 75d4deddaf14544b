"""The checklist before a rollout: each step can fail, and is told; a manifest that was tampered with is refused."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inbetweenies import census
from inbetweenies.census import Entry
from inbetweenies.cli_preflight import served
from inbetweenies.errors import StoreError
from inbetweenies.ops import baseline, checklist
from inbetweenies.ops.backup import backup
from inbetweenies.ops.baseline import Answered, Ask, differences
from inbetweenies.ops.checklist import ARTEFACTS, STEPS, Checklist, Step, against, folder_of, keep_drill
from inbetweenies.ops.manifest import manifest_of
from inbetweenies.ops.portable import export_to
from inbetweenies.ops.preflight import Failed, Found, Preflight, taken
from inbetweenies.ops.restore import restore
from inbetweenies.ops.verify import verify
from inbetweenies.registry import DOCUMENT as REGISTRY
from inbetweenies.registry import Decision, Decisions, document_of
from inbetweenies.stores.clock import wall_clock
from inbetweenies.stores.keeper import run_now
from inbetweenies.stores.sqlite import SqliteStore
from tests.ops.fit import checked, fit
from tests.ops.test_portable import home, made
from tests.support import at, entity

MINUTE = 60_000_000
V2 = "inbetweenies-v2"


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = home(tmp_path / "home.db")
    keep_drill(path, passed=True, now=wall_clock())
    return path


def step(db: Path, name: str, **more: Any) -> Step:
    """How one step ends; it is told while it goes on as well, and is in the manifest."""
    seen = list[Step]()
    found = checked(db, tell=seen.append, **more)
    assert list(found.steps) == seen
    assert STEPS == tuple(one.name for one in seen)
    assert found == checklist.read(folder_of(db) / checklist.MANIFEST)
    [one] = [one for one in seen if one.name == name]
    assert found.passed == all(each.passed for each in seen)
    return one


def failed(db: Path, name: str, **more: Any) -> str:
    """What a step that fails says; then no rollout starts."""
    one = step(db, name, **more)
    assert not one.passed
    assert one.advice
    assert any(f"its step {name} failed" in line for line in against(folder_of(db), db, now=wall_clock()))
    return one.found


def put(db: Path, name: str, body: bytes) -> None:
    store = SqliteStore(db, journal=False, heads=False)
    assert run_now(store.put_document(name, body, revision=run_now(store.document(name)).revision))
    run_now(store.close())


# --- all is well --------------------------------------------------------------------------------------------------


def test_all_is_well(db: Path) -> None:
    found = checked(db)
    folder = folder_of(db)

    assert found.passed, found.steps
    assert STEPS == tuple(one.name for one in found.steps)
    assert ARTEFACTS == tuple(one.name for one in found.artefacts)
    assert {*ARTEFACTS, checklist.MANIFEST, checklist.LAST_DRILL} == {path.name for path in folder.iterdir()}
    assert (0o700, 0o600) == (folder.stat().st_mode & 0o777, (folder / checklist.SNAPSHOT).stat().st_mode & 0o777)
    assert verify(folder / checklist.SNAPSHOT).good
    assert manifest_of(folder / checklist.SNAPSHOT).name == checklist.SNAPSHOT_MANIFEST
    assert () == against(folder, db, now=wall_clock())


def test_the_load_is_described(db: Path) -> None:
    figures = step(db, "performance").figures

    assert ("g", 15, V2, 4, 100) == tuple(
        figures[name] for name in ("graph", "rows", "version", "concurrency", "page_rows")
    )
    assert figures["processors"] >= 1
    assert figures == json.loads((folder_of(db) / checklist.PERFORMANCE).read_bytes())
    for kind in ("pull", "push"):
        assert 4 == figures[kind]["requests"]
        assert 0 < figures[kind]["p50_ms"] <= figures[kind]["p95_ms"]


def test_what_is_written_meanwhile_and_afterwards_is_no_reason(db: Path) -> None:
    made(db, g=[entity("before", at(3))])
    checked(db)
    made(db, g=[entity("after", at(4))], new=[entity("new", at(4))])

    assert () == against(folder_of(db), db, now=wall_clock())


def test_a_database_without_graphs_is_fit(tmp_path: Path) -> None:
    run_now(SqliteStore(tmp_path / "new.db", journal=False, heads=False).close())

    assert () == against(folder_of(tmp_path / "new.db"), fit(tmp_path / "new.db"), now=wall_clock())


def test_the_database_itself_is_only_read(db: Path) -> None:
    checked(db)  # which may still fold its write-ahead log into it
    before = db.read_bytes()
    checked(db)

    assert before == db.read_bytes()


def test_another_folder(db: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    checked(db, out=out)

    assert () == against(out, db, now=wall_clock())
    assert not (folder_of(db) / checklist.MANIFEST).exists()
    [says] = against(folder_of(db), db, now=wall_clock())
    assert f"got none: run `inbetweenies preflight --db {db}`" in says
    (out / checklist.MANIFEST).unlink()
    [says] = against(out, db, now=wall_clock())
    assert f"--db {db} --out {out}`" in says


def test_what_a_run_has_left_that_died_is_no_manifest(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked(db)
    with monkeypatch.context() as patch:
        patch.setattr(Preflight, "_written", _dies)
        with pytest.raises(KeyboardInterrupt):
            checked(db)
    assert "got none" in against(folder_of(db), db, now=wall_clock())[0]
    (folder_of(db) / ".work-dead").mkdir()
    (folder_of(db) / ".work-dead" / "copy.db").write_bytes(b"copy")
    assert checked(db).passed
    assert not [path for path in folder_of(db).iterdir() if path.name.startswith(".")]


def _dies(*_: object) -> None:
    raise KeyboardInterrupt


def test_without_a_database_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got no file"):
        checked(tmp_path / "none.db")
    assert [] == list(tmp_path.iterdir())


# --- no step can fail quietly -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_says_nothing_has_failed(db: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(Preflight, f"_{name}", lambda _: None)
    assert "the step said nothing" == failed(db, name)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_breaks_has_failed(db: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def broken(_: Preflight) -> Found:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(Preflight, f"_{name}", broken)
    assert "ZeroDivisionError: a defect" == failed(db, name)


def test_however_a_step_ends_it_is_told() -> None:
    def raising(error: BaseException) -> Callable[[], Found]:
        def work() -> Found:
            raise error

        return work

    group = BaseExceptionGroup("several", [ExceptionGroup("more", [Failed("lost", "find it")])])
    assert (False, "lost", "find it") == _told(taken("disk", raising(group.derive([*group.exceptions]))))
    assert "TimeoutError" == taken("disk", raising(TimeoutError())).found
    assert "the step said nothing" == taken("disk", lambda: Found(says="")).found
    assert (True, "fine", "") == _told(taken("disk", lambda: Found(says="fine")))
    with pytest.raises(KeyboardInterrupt):
        taken("disk", raising(KeyboardInterrupt()))


def _told(one: Step) -> tuple[bool, str, str]:
    return one.passed, one.found, one.advice


# --- each step, failing -------------------------------------------------------------------------------------------


def test_a_disk_that_is_all_but_full(db: Path) -> None:
    assert "free, 3 times" in failed(db, "disk", free=lambda _: 1)
    assert "no such disk" in failed(db, "disk", free=_raises(OSError("no such disk")))


def _raises(error: Exception) -> Callable[..., Any]:
    def work(*_: object, **__: object) -> Any:
        raise error

    return work


def test_a_snapshot_that_is_not_what_was_written(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rotten(source: Path, target: Path, **more: Any) -> Any:
        done = real(source, target, **more)
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
        return done

    real = backup
    with monkeypatch.context() as patch:
        patch.setattr("inbetweenies.ops.preflight.backup", rotten)
        assert failed(db, "snapshot").startswith("the snapshot is ")
        # What needs a snapshot has failed as well, whatever else there is.
        for name in ("digest", "export", "api", "performance"):
            assert "there is no snapshot to look at" == failed(db, name)
    monkeypatch.setattr("inbetweenies.ops.preflight.backup", _raises(StoreError("the disk is gone")))
    assert "the disk is gone" == failed(db, "snapshot")


def test_a_database_with_a_broken_page(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [page] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'log_version'").fetchone()
    data = bytearray(db.read_bytes())
    data[(page - 1) * 4096 : page * 4096] = bytes(4096)
    db.write_bytes(data)

    assert "SQLITE_CORRUPT" in failed(db, "integrity") or "integrity_check" in failed(db, "integrity")
    assert not step(db, "snapshot").passed


def test_an_index_that_lacks_a_row(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [page] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'log_listing'").fetchone()
    data = bytearray(db.read_bytes())
    index = slice((page - 1) * 4096, page * 4096)
    data[index] = data[index].replace(b"lamp", b"lamb")
    db.write_bytes(data)

    assert "missing from index log_listing" in failed(db, "integrity")


def test_a_row_that_refers_to_nothing(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("INSERT INTO devices VALUES (99, 'd', 0, 0, '', '')")
    assert "foreign_key_check: 1 row without what it refers to" == failed(db, "integrity")


def test_a_log_that_is_not_whole(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE log SET user_id = 'eve' WHERE seq = 1")
    assert "2 things wrong with the logs of g, h" == failed(db, "integrity")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE log SET until = 15 WHERE id = 'x1'", "the snapshot of g is not"),
        ("DELETE FROM log WHERE seq = 3", "the snapshot of g; h is not"),
        ("UPDATE log SET body = x'7b7d' WHERE seq = 2", "what their hashes say"),
    ],
)
def test_a_digest_that_is_not_the_same(db: Path, monkeypatch: pytest.MonkeyPatch, change: str, says: str) -> None:
    """The database is changed after the snapshot was taken, up to the seq that both have."""

    def changed(source: Path, target: Path, **more: Any) -> Any:
        done = backup(source, target, **more)
        with closing(sqlite3.connect(source)) as connection, connection:
            connection.execute(change)
        return done

    monkeypatch.setattr("inbetweenies.ops.preflight.backup", changed)

    assert says in failed(db, "digest")


def test_an_export_that_cannot_be_read_back(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(source: Path, file: Path, **more: Any) -> Any:
        done = real(source, file, **more)
        file.write_bytes(file.read_bytes()[:-10])
        return done

    real = export_to
    with monkeypatch.context() as patch:
        patch.setattr("inbetweenies.ops.preflight.export_to", cut)
        assert "it was cut off" in failed(db, "export")
    only = {"graph": "h"}
    with monkeypatch.context() as patch:
        patch.setattr(
            "inbetweenies.ops.preflight.export_to", lambda source, file, **more: real(source, file, **(more | only))
        )
        assert "what is read back is not what was written" == failed(db, "export")
    monkeypatch.setattr("inbetweenies.ops.preflight.import_from", _raises(StoreError("no room")))
    assert "no room" == failed(db, "export")


def serving(change: Callable[[str, Answered], Answered]) -> Any:
    """Serves as ever, but for what `change` makes of an answer to a path."""

    @asynccontextmanager
    async def otherwise(db: Path, graph: str, *, still: int | None = None) -> AsyncIterator[Ask]:
        async with served(db, graph, still=still) as ask:

            async def changed(method: str, path: str, body: Any = None) -> Answered:
                return change(path, await ask(method, path, body))

            yield changed

    return otherwise


def _sick(path: str, answer: Answered) -> Answered:
    return msgspec.structs.replace(answer, body=b'{"status":"sick"}') if path == "/health" and answer.body else answer


def test_an_endpoint_that_answers_otherwise(db: Path) -> None:
    assert "34 answers of a copy: the first to be kept" == step(db, "api").found
    assert "34 answers of a copy: as before" == step(db, "api").found
    says = failed(db, "api", serve=serving(_sick))
    assert 'health: GET /health/body/status: "healthy" before, "sick" now' in says
    assert says.startswith("1 difference from the answers of the last time: ")
    # It is no baseline before somebody says that it is meant.
    assert failed(db, "api", serve=serving(_sick)) == says
    assert (folder_of(db) / "api.changed.json").exists()
    assert "34 answers of a copy: as before" == step(db, "api").found
    assert not (folder_of(db) / "api.changed.json").exists()
    assert (
        "34 answers of a copy: 1 difference accepted"
        == step(db, "api", serve=serving(_sick), accept_changes=True).found
    )
    assert "34 answers of a copy: as before" == step(db, "api", serve=serving(_sick)).found
    assert "healthy" in failed(db, "api")


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: msgspec.structs.replace(answer, status=418),
        lambda answer: msgspec.structs.replace(answer, headers={**answer.headers, "allow": "GET"}),
        lambda answer: msgspec.structs.replace(
            answer, headers={key: one for key, one in answer.headers.items() if key != "cache-control"}
        ),
        lambda answer: msgspec.structs.replace(answer, body=b'{"status":"healthy","more":1}'),
        lambda answer: msgspec.structs.replace(answer, body=b"{}"),
        lambda answer: msgspec.structs.replace(answer, body=b"[]"),
        lambda answer: msgspec.structs.replace(answer, body=b"no JSON"),
        lambda answer: msgspec.structs.replace(answer, status=503),
    ],
)
def test_whatever_of_an_answer_changes_is_noticed(db: Path, change: Callable[[Answered], Answered]) -> None:
    checked(db)
    assert failed(db, "api", serve=serving(lambda path, one: change(one) if path == "/health" else one))


def test_answers_that_were_tampered_with(db: Path) -> None:
    checked(db)
    file = folder_of(db) / checklist.API
    file.write_bytes(file.read_bytes().replace(b"healthy", b"wealthy"))
    assert "it was changed since" in failed(db, "api")
    file.write_bytes(b"{")
    assert "got something else" in failed(db, "api")
    assert step(db, "api", accept_changes=True).passed
    assert step(db, "api").passed


def test_what_was_decided_of_versions_is_a_change(db: Path) -> None:
    checked(db)
    put(db, REGISTRY, document_of(Decisions().but(V2, Decision(state="accepted"))))
    assert "inbetweenies-supported-versions: " in failed(db, "api")


def test_a_graph_that_cannot_be_read(db: Path) -> None:
    def silent(path: str, answer: Answered) -> Answered:
        return msgspec.structs.replace(answer, status=404) if path.endswith("/status") else answer

    assert "expected 200 to GET /api/v1/sync/status of graph empty" in failed(db, "api", serve=serving(silent))


def test_a_server_that_is_not_there(db: Path) -> None:
    @asynccontextmanager
    async def nobody() -> AsyncIterator[Ask]:
        async def ask(method: str, path: str, body: Any = None) -> Answered:
            raise StoreError("expected an answer; got ConnectError")

        yield ask

    assert "got ConnectError" in failed(db, "api", reach=nobody, where="http://home")


def test_a_load_that_is_not_served(db: Path) -> None:
    pushed = list[int]()

    def tired(path: str, answer: Answered) -> Answered:
        if path == baseline.SYNC and answer.status == 200 and b"preflight-" in answer.body:
            pushed.append(1)
            return msgspec.structs.replace(answer, status=503)
        return answer

    assert "got 503" in failed(db, "performance", serve=serving(tired))
    assert pushed


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (Entry(version="unknown", release="new/9", last=0, served="inbetweenies-v1"), "new/9 (inbetweenies-v1)"),
        (Entry(version="unknown", release="new/9", last=0, refused=1), "new/9 (unknown)"),
        (Entry(version="x-v3", release="old/1", last=0, served="x-v3"), "old/1 (x-v3)"),
    ],
)
def test_a_fleet_in_which_somebody_speaks_what_is_not_known(db: Path, entry: Entry, says: str) -> None:
    now = wall_clock()
    known = Entry(version=V2, release="app/1", last=now, served=V2)
    nameless = Entry(version=V2, release="unknown", last=now, served=V2)
    put(db, census.DOCUMENT, census.document_of([known, nameless], (), now=now))
    assert "kinds of clients in 30 days: inbetweenies-v2 by 2; 1 of them do not say what they are" == (
        step(db, "census").found
    )
    seen = msgspec.structs.replace(entry, last=now - 20 * 86400 * 1_000_000)
    put(db, census.DOCUMENT, census.document_of([known, seen], (), now=now))
    assert f"versions that are not known here are spoken by {says}" == failed(db, "census")
    assert step(db, "census", days=10).passed
    put(db, census.DOCUMENT, b"[[")
    assert "expected the census in the store" in failed(db, "census")


def test_a_drill_that_was_not_held_or_not_passed_or_long_ago_or_elsewhere(db: Path) -> None:
    file, now = folder_of(db) / checklist.LAST_DRILL, wall_clock()
    file.unlink()
    assert "no drill was ever held on a copy of this database" == failed(db, "drill")
    keep_drill(db, passed=False, now=now)
    assert "the last drill did not pass" == failed(db, "drill")
    keep_drill(db, passed=True, now=now - 25 * checklist.HOUR_US)
    assert "not in the last 24 hours" in failed(db, "drill", now=now)
    keep_drill(db, passed=True, now=now - 24 * checklist.HOUR_US)
    assert step(db, "drill", now=now).passed
    keep_drill(db, passed=True, now=now + MINUTE)
    assert "not in the last 24 hours" in failed(db, "drill", now=now)
    keep_drill(db, passed=True, now=now)
    told = json.loads(file.read_bytes())
    for other in ({"release": "0.9"}, {"database": "/other.db"}):
        file.write_bytes(json.dumps(told | other).encode())
        assert "the last drill was held by release" in failed(db, "drill")
    file.write_bytes(b"{}")
    assert "got something else" in failed(db, "drill")


# --- what a rollout asks for --------------------------------------------------------------------------------------


def test_it_is_good_for_an_hour(db: Path) -> None:
    now = wall_clock()
    checked(db, now=now)
    folder = folder_of(db)

    assert () == against(folder, db, now=now + 60 * MINUTE - 1)
    assert "60 minutes old: run `inbetweenies preflight" in against(folder, db, now=now + 60 * MINUTE)[0]
    assert "yet to come" in against(folder, db, now=now - 1)[0]


def test_it_is_good_for_this_release_and_this_database(db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked(db)
    other = db.with_name("other.db")
    shutil.copy(db, other)
    assert "expected a preflight of" in against(folder_of(db), other, now=wall_clock())[0]
    monkeypatch.setattr(checklist, "release", lambda: "9.9")
    assert "expected a preflight by release 9.9; got one by" in against(folder_of(db), db, now=wall_clock())[0]


def test_a_database_that_was_set_back_or_replaced_is_another_one(db: Path) -> None:
    early = backup(db, db.with_name("early.db")).path
    made(db, g=[entity("later", at(3))])
    checked(db)
    restore(early, db)
    assert (
        "expected graph g to go on from row 16, as it was looked at; it was set back"
        in (against(folder_of(db), db, now=wall_clock())[0])
    )
    made(db, g=[entity("other", at(3))])  # of the same length, and another log
    assert "it was set back" in against(folder_of(db), db, now=wall_clock())[0]
    db.unlink()
    home(db)
    assert "got another one of that name, or none" in against(folder_of(db), db, now=wall_clock())[0]
    db.unlink()
    assert against(folder_of(db), db, now=wall_clock())


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database that is fit; whoever changes something puts it back."""
    path = fit(home(tmp_path_factory.mktemp("ready") / "home.db"))
    yield path
    assert () == against(folder_of(path), path, now=wall_clock())


def refused(db: Path, name: str, data: bytes | None) -> bool:
    """Whether no rollout starts once the file `name` holds `data`, or is gone."""
    file = folder_of(db) / name
    before = file.read_bytes()
    try:
        file.unlink() if data is None else file.write_bytes(data)
        return bool(against(folder_of(db), db, now=wall_clock()))
    finally:
        file.write_bytes(before)


@given(st.sampled_from((checklist.MANIFEST, *ARTEFACTS)), st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_byte_that_was_changed_is_noticed(ready: Path, name: str, data: st.DataObject) -> None:
    body = bytearray((folder_of(ready) / name).read_bytes())
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    assert refused(ready, name, bytes(body))


@pytest.mark.parametrize("name", [checklist.MANIFEST, *ARTEFACTS])
def test_a_file_that_is_gone_or_longer_or_shorter_is_noticed(ready: Path, name: str) -> None:
    data = (folder_of(ready) / name).read_bytes()
    for other in (None, b"", data[:-1], data + b"\n"):
        assert refused(ready, name, other)


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (*path, key)
        yield from fields(one, (*path, key))


def _with(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = _with(value[path[0]], path[1:], other)
    return copied


@given(st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_field_that_was_changed_is_noticed(ready: Path, data: st.DataObject) -> None:
    """Also by somebody who writes the manifest again as it is written."""
    told = json.loads((folder_of(ready) / checklist.MANIFEST).read_bytes())
    path = data.draw(st.sampled_from([*fields(told)]))
    found = told
    for key in path:
        found = found[key]
    others: st.SearchStrategy[Any] = st.sampled_from([True, False, None, 0, 1, "", "x", [], {}, 10**18, 0.5])
    other = data.draw(others.filter(lambda one: type(one) is not type(found) or one != found))
    changed = msgspec.json.format(msgspec.json.encode(_with(told, path, other)), indent=2) + b"\n"
    assert refused(ready, checklist.MANIFEST, changed)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"release": "0.1"}, "expected a preflight by release"),
        ({"at": 0}, "minutes old"),
        ({"made": "2000-01-01T00:00:00.000000+00:00"}, "expected a preflight to say once when"),
        ({"database": "/other.db"}, "got one of /other.db"),
        ({"steps": ()}, "expected the steps disk, snapshot"),
        ({"artefacts": ()}, "got other files"),
    ],
)
def test_what_somebody_has_sealed_again_has_to_fit_all_the_same(ready: Path, change: dict[str, Any], says: str) -> None:
    folder = folder_of(ready)
    found = checklist.read(folder / checklist.MANIFEST)
    other = checklist.sealed(msgspec.structs.replace(found, **change))
    before = (folder / checklist.MANIFEST).read_bytes()
    (folder / checklist.MANIFEST).write_bytes(checklist.encoded(other))
    try:
        assert says in "; ".join(against(folder, ready, now=wall_clock()))
    finally:
        (folder / checklist.MANIFEST).write_bytes(before)


@pytest.mark.parametrize("index", range(len(STEPS)))
def test_every_step_is_missed(ready: Path, index: int) -> None:
    found = checklist.read(folder_of(ready) / checklist.MANIFEST)
    assert found.passed
    less = (*found.steps[:index], *found.steps[index + 1 :])
    not_passed = (
        *found.steps[:index],
        msgspec.structs.replace(found.steps[index], passed=False),
        *found.steps[index + 1 :],
    )
    for steps in (less, not_passed):
        other: Checklist = checklist.sealed(msgspec.structs.replace(found, steps=steps))
        assert not other.passed
        assert refused(ready, checklist.MANIFEST, checklist.encoded(other))


def test_a_manifest_of_another_format_is_told(ready: Path) -> None:
    folder = folder_of(ready)
    found = checklist.read(folder / checklist.MANIFEST)
    other = folder.with_name("other.json")
    other.write_bytes(checklist.encoded(checklist.sealed(msgspec.structs.replace(found, format=2))))
    with pytest.raises(StoreError, match="expected a manifest of format 1"):
        checklist.read(other)


# --- the parts ----------------------------------------------------------------------------------------------------


def test_differences_are_told_with_their_place() -> None:
    before = {"a": {"status": 200, "body": {"x": 1, "y": [1, 2], "z": True}}, "gone": {"status": 1}}
    after = {"a": {"status": 200, "body": {"x": 1.0, "y": [1], "w": "n" * 99}}, "new": {"status": 2}}

    assert (
        "a/body/x: 1 before, 1.0 now",
        "a/body/y/1: 2 before, nothing now",
        "a/body/z: true before, nothing now",
        f'a/body/w: nothing before, "{"n" * 56}... now',
    ) == differences(before, after)
    many = {name: {"body": 1} for name in "abc"}
    assert ("a/body: 1 before, 2 now (and in 2 more)",) == differences(many, {name: {"body": 2} for name in "abc"})
    assert () == differences(many, many)


def test_sealed_json_says_when_it_was_changed() -> None:
    assert {"a": [1, 2.5, None]} == checklist.unsealed_json(checklist.sealed_json({"a": [1, 2.5, None]}))
    with pytest.raises(StoreError, match="it was changed since"):
        checklist.unsealed_json(checklist.sealed_json({"a": 1}).replace(b":1", b":2"))
