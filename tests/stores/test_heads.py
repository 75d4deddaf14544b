"""Where logs ended, in files beside the database: what is noticed by them, and that they never stand in the way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from inbetweenies.errors import StoreError
from inbetweenies.model import Cursor
from inbetweenies.stores.heads import SLOT, Heads
from tests.stores.test_journal import Site, kinds
from tests.support import NOW


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


def test_a_file_that_was_set_back_is_noticed_without_a_journal(site: Site) -> None:
    site.options["journal"] = False
    first = site.write("e1")
    backup = site.backup()
    second = site.write("e2")
    site.set_back(backup)
    store = site.open()
    [(graph, fork)] = store.happened
    head = site.head(store)
    site.close()

    assert ("g", "fork", str(second.cursor), 1) == (graph, fork.kind, fork.told["witness"], fork.told["seq"])
    assert first.epoch != head.epoch
    assert (first.seq, first.chain, second.stamp) == (head.seq, head.chain, head.stamp)
    # It goes on, and nothing is told twice.
    third = site.write("e3")
    assert third.stamp > second.stamp
    assert ["fork"] == kinds(site.held())


@pytest.mark.parametrize("first", [False, True])
def test_times_do_not_go_back_if_a_file_is_set_back_twice_to_the_same_backup(site: Site, first: bool) -> None:
    now = [NOW]
    site.options |= {"journal": False, "clock": lambda: now[0]}
    if first:
        site.write("e1")
    backup = site.backup() if first else None
    last = site.write("e2")
    for _ in range(2):
        site.set_back(backup)
        assert last.stamp <= site.held().head.stamp


def test_a_graph_that_is_gone_altogether_is_noticed(site: Site) -> None:
    site.options["journal"] = False
    site.write("e1")
    backup = site.backup()
    site.write("e2", graph="young")
    site.set_back(backup)
    held = site.held("young")

    assert (0, ["fork"]) == (held.head.seq, kinds(held))


def test_an_end_that_says_less_than_the_log_says_nothing(site: Site) -> None:
    site.options["journal"] = False
    site.write("e1")
    kept = shutil.copytree(f"{site.path}.heads", site.path.with_name("kept"))
    site.write("e2")
    site.lose("heads")
    shutil.copytree(kept, f"{site.path}.heads")

    assert [] == kinds(site.held())


@pytest.mark.parametrize("torn", [b"", b"torn", b"\0" * SLOT * 2])
def test_an_end_that_is_torn_says_nothing(site: Site, torn: bytes) -> None:
    site.options["journal"] = False
    site.write("e1")
    backup = site.backup()
    site.write("e2")
    [path] = Path(f"{site.path}.heads").glob("*.head")
    path.write_bytes(torn)
    site.set_back(backup)

    assert [] == kinds(site.held())


def test_one_of_two_slots_is_always_whole(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "home.db")
    for seq in range(1, 6):
        heads.put("g", "b", Cursor("e", seq, bytes(16)), seq)
        [path] = (tmp_path / "home.db.heads").iterdir()
        data = path.read_bytes()
        for start in (0, SLOT):
            torn = data[:start] + b"\0" * 20 + data[start + 20 :]
            path.write_bytes(torn)
            assert {seq, seq - 1} >= {end.cursor.seq for end in heads.all()}
        path.write_bytes(data)
        assert [(seq, "g")] == [(end.cursor.seq, end.graph) for end in heads.all()]
    heads.close()


def test_ends_of_many_graphs_need_few_open_files_and_no_name_is_too_long(tmp_path: Path) -> None:
    heads = Heads(tmp_path / "home.db")
    for turn in range(2):
        for number in range(80):
            heads.put(f"g{number}", "b", Cursor("e", turn + 1, bytes(16)), 1)
    heads.put("x" * 5_000, "b", Cursor("e", 1, bytes(16)), 1)

    assert 64 == len(heads._open)
    assert {2} == {end.cursor.seq for end in heads.all()}
    heads.forget("g79")
    heads.forget("g0")
    assert 78 == len(heads.all())
    heads.close()


def test_where_ends_cannot_be_written_everything_else_goes_on(tmp_path: Path) -> None:
    (tmp_path / "home.db.heads").write_text("a file is in the way")
    site = Site(tmp_path, journal=False)

    assert 1 == site.write("e1").seq
    (tmp_path / "home.db.heads").unlink()
    folder = tmp_path / "home.db.heads" / "odd.head"
    folder.mkdir(parents=True)
    with pytest.raises(StoreError, match="Remove it"):
        site.open()


def test_another_graph_of_the_same_name_is_not_one_that_was_set_back(tmp_path: Path) -> None:
    site = Site(tmp_path, journal=False)
    site.write("e1", "e2")
    site.set_back(None)
    site.write("e3", heads=False)

    assert [] == kinds(site.held())
    site.close()
