"""What a backup is, is said of it: files are cut, changed, mixed up, and vouched for by manifests that lie."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies.ops import verify as module
from inbetweenies.ops.backup import backup
from inbetweenies.ops.manifest import encoded, manifest_of, read
from inbetweenies.ops.verify import BackupRefused, Verdict, verify
from tests.stores.test_journal import Site

SCHEMA_1 = Path(__file__).parents[1] / "stores" / "schema_1.sql"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of two graphs, in a folder of its own."""
    folder = tmp_path_factory.mktemp("original")
    site = Site(folder)
    site.write("e1", "e2")
    site.write("e1", "e3")
    site.write("e9", graph="other")
    (folder / "kept").mkdir()
    return backup(site.path, folder / "kept" / "b.db").path


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    for path in (original, manifest_of(original)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / original.name


def say(file: Path, **fields: Any) -> None:
    """Let the manifest say something else."""
    path = manifest_of(file)
    path.write_bytes(encoded(replace(read(path), **fields)))


def vouch(file: Path) -> None:
    """Let the manifest say what is true of the bytes."""
    say(file, size=file.stat().st_size, sha256=sha256(file.read_bytes()).hexdigest())


def change(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def test_a_backup_that_is_as_it_was_is_good_and_nothing_is_written(copy: Path) -> None:
    copy.with_name(f"{copy.name}-wal").write_bytes(b"left behind by somebody" * 1000)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in copy.parent.iterdir()}
    verdict = verify(copy)

    assert ("good", ()) == (verdict.kind, verdict.problems)
    assert verdict.manifest == read(manifest_of(copy))
    assert [("g", 4), ("other", 1)] == [(mark.graph, mark.seq) for mark in verdict.manifest.graphs]
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in copy.parent.iterdir()}


def test_a_database_in_use_is_not_taken_for_a_damaged_backup(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write("e1")
    assert ("unfinished", "the database itself is sound") == ((v := verify(site.path)).kind, v.problems[1])
    site.open()
    assert ("unfinished", True) == ((v := verify(site.path)).kind, v.problems[1].startswith("it is in use"))
    site.close()


def _cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def _with_graphs(file: Path, **fields: Any) -> None:
    graphs = read(manifest_of(file)).graphs
    say(file, graphs=(replace(graphs[0], **fields), *graphs[1:]))


#: What is done to a backup, what it is then, and what is said.
BYTES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "gone": (lambda file: file.unlink(), "missing", "expected a file; got none"),
    "empty": (lambda file: _cut(file, 0), "truncated", "got 0"),
    "cut": (lambda file: _cut(file, file.stat().st_size - 1), "truncated", "bytes; got"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "altered", "bytes; got"),
    "text": (lambda file: file.write_text("no database" * 20_000), "foreign", "expected a database of SQLite"),
    "touched": (lambda file: change(file, "PRAGMA user_version = 4"), "altered", "expected SHA-256"),
    "other": (lambda file: change(file, "PRAGMA application_id = 7"), "foreign", "database of Inbetweenies"),
    "newer": (lambda file: change(file, "PRAGMA user_version = 99"), "newer", "got 99"),
    "no manifest": (lambda file: manifest_of(file).unlink(), "unfinished", "it was never finished"),
    "bad manifest": (lambda file: manifest_of(file).write_text('{"format": 1}'), "unfinished", "expected a manifest"),
    "half a manifest": (lambda file: _cut(manifest_of(file), 99), "unfinished", "expected a manifest"),
    "deep manifest": (lambda file: manifest_of(file).write_text("[" * 10**6), "unfinished", "expected a manifest"),
    "newer manifest": (lambda file: say(file, format=2), "newer", "format 1"),
    "says sha256": (lambda file: say(file, sha256="ab" * 32), "altered", "expected SHA-256 abab"),
    "says more": (lambda file: say(file, size=10**9), "truncated", "expected 1000000000 bytes"),
    "says schema": (lambda file: say(file, schema=3), "lying", "says schema 3; the database has 4"),
    "says seq": (lambda file: _with_graphs(file, seq=99), "lying", "something else of graph g"),
    "says chain": (lambda file: _with_graphs(file, chain="00" * 16), "lying", "something else of graph g"),
    "says digest": (lambda file: _with_graphs(file, digest="00" * 32), "lying", "something else of graph g"),
    "says epoch": (lambda file: _with_graphs(file, epoch="ab"), "lying", "something else of graph g"),
    "says birth": (lambda file: _with_graphs(file, birth="ab"), "lying", "something else of graph g"),
    "says name": (lambda file: _with_graphs(file, graph="h"), "lying", "tells of a graph h, which is not there"),
    "says nothing": (lambda file: say(file, graphs=()), "lying", "something else of graph other"),
}

SEVEN = "CAST(replace(CAST(body AS TEXT), 'e1', 'e7') AS BLOB)"
OTHER_INDEX = "UPDATE sqlite_schema SET sql = replace(sql, 'until)', 'seq)') WHERE name = 'log_until'"
NO_ROW = "SELECT 1 AS graph, 1 AS seq, 'edge' AS kind, 9 AS until, 'h' AS hash, 'c' AS chain, 7 AS body"

#: What is done to a database, whose manifest then vouches for the bytes that came of it.
ROWS: dict[str, tuple[str, str]] = {
    "value": (f"UPDATE log SET body = {SEVEN} WHERE seq = 1", "hash of row 1 is not that of its value"),
    "kind": ("UPDATE log SET kind = 'thing' WHERE seq = 2", "hash of row 2"),
    "hash": ("UPDATE log SET hash = zeroblob(32) WHERE seq = 2", "hash of row 2"),
    "chain": ("UPDATE log SET chain = zeroblob(16) WHERE seq = 3", "chain of row 3 does not follow"),
    "gap": ("DELETE FROM log WHERE seq = 2", "expected row 2; got 3"),
    "last": ("DELETE FROM log WHERE seq = 4", "the end of its rows"),
    "all": ("DELETE FROM log", "the end of its rows"),
    "closed": ("UPDATE log SET until = 4 WHERE seq = 2", "graph g: the digest of its rows"),
    "digest": ("UPDATE graphs SET digest = zeroblob(32)", "graph g: the digest of its rows"),
    "head chain": ("UPDATE graphs SET chain = zeroblob(16)", "graph g: the chain of its rows"),
    "head": ("UPDATE graphs SET seq = 3 WHERE name = 'g'", "graph g: the end of its rows"),
    "parent": ("DELETE FROM graphs WHERE name = 'other'", "refers to in graphs; it is not there"),
    # What the file says of an index is not what is in it.
    "index": (f"PRAGMA writable_schema = ON; {OTHER_INDEX}", "SQLite says: "),
    "table": ("DROP TABLE log", "SQLite says: no such table"),
    "types": (f"ALTER TABLE log RENAME TO rows; CREATE VIEW log AS {NO_ROW}", "types of our tables"),
}


@pytest.mark.parametrize("name", BYTES)
def test_what_is_wrong_is_named(copy: Path, name: str) -> None:
    work, kind, says = BYTES[name]
    work(copy)
    verdict = verify(copy)

    assert (kind, False) == (verdict.kind, verdict.good)
    assert says in "; ".join(verdict.problems)
    with pytest.raises(BackupRefused, match=f"expected a good backup at .*; it is {kind}: "):
        raise BackupRefused(verdict)


def damaged(copy: Path, name: str) -> Verdict:
    """What is said of a database that was changed like this, whose manifest vouches for what came of it."""
    change(copy, "PRAGMA foreign_keys = OFF", *ROWS[name][0].split("; "))
    vouch(copy)
    return verify(copy)


@pytest.mark.parametrize("name", ROWS)
def test_a_database_that_is_not_sound_is_corrupt_whatever_vouches_for_it(copy: Path, name: str) -> None:
    verdict = damaged(copy, name)

    assert "corrupt" == verdict.kind, verdict
    assert ROWS[name][1] in "; ".join(verdict.problems)


def test_a_verify_that_skips_the_digest_the_chain_or_the_hashes_would_be_seen(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = module._computed
    whole = copy.read_bytes()
    planted: dict[str, Callable[..., Any]] = {
        "closed": lambda rows: (*computed(rows)[:2], bytes.fromhex(next(digests))),
        "chain": lambda rows: next(ends),
        "value": lambda rows: next(ends),
    }
    for name, bug in planted.items():
        copy.write_bytes(whole)
        assert "corrupt" == damaged(copy, name).kind
        graphs = read(manifest_of(copy)).graphs
        digests = iter([mark.digest for mark in graphs])
        ends = iter([(mark.seq, bytes.fromhex(mark.chain), bytes.fromhex(mark.digest)) for mark in graphs])
        with monkeypatch.context() as patch:
            patch.setattr(module, "_computed", bug)

            assert "good" == verify(copy).kind  # so that it is this, and nothing else, that noticed


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_no_byte_of_a_backup_can_change(copy: Path, original: Path, data: st.DataObject) -> None:
    whole = bytearray(original.read_bytes())
    where = data.draw(st.integers(0, len(whole) - 1))
    whole[where] ^= data.draw(st.integers(1, 255))
    copy.write_bytes(whole)

    assert verify(copy).kind in ("corrupt", "altered", "foreign", "newer", "lying")
    vouch(copy)
    assert verify(copy).kind in ("good", "corrupt", "foreign", "newer", "lying")  # and never an exception


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_manifest_of_any_bytes_is_read_or_refused(copy: Path, original: Path, data: st.DataObject) -> None:
    whole = manifest_of(original).read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    manifest_of(copy).write_bytes(whole[:start] + data.draw(st.binary(max_size=4)) + whole[end:])
    verdict = verify(copy)

    assert verdict.kind in ("unfinished", "newer", "truncated", "lying", "altered", "good")
    if verdict.kind == "good":
        assert verdict.manifest is not None
        says = {name: getattr(verdict.manifest, name) for name in ("schema", "size", "sha256", "graphs")}
        assert says == {name: getattr(read(manifest_of(original)), name) for name in says}


def test_a_manifest_that_is_too_large_is_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inbetweenies.ops.manifest.BYTES_MAX", 10)

    assert ("unfinished", True) == ((found := verify(copy)).kind, "expected at most 10 bytes" in found.problems[0])


def test_a_backup_of_an_older_release_is_verified_as_what_it_is(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(SCHEMA_1.read_text())
    before = old.read_bytes()
    made = backup(old, tmp_path / "b.db")

    assert 1 == made.manifest.schema
    assert made.manifest.graphs
    assert {mark.epoch for mark in made.manifest.graphs} == {mark.birth for mark in made.manifest.graphs}
    assert "good" == verify(made.path).kind
    assert before == old.read_bytes()  # it is not upgraded by being copied


def test_a_manifest_is_json_that_others_can_read(copy: Path) -> None:
    told = msgspec.json.decode(manifest_of(copy).read_bytes())

    assert {"format", "release", "made", "schema", "size", "sha256", "graphs"} == told.keys()
    assert sha256(copy.read_bytes()).hexdigest() == told["sha256"]
    assert {"graph", "birth", "epoch", "seq", "chain", "digest"} == told["graphs"][0].keys()
