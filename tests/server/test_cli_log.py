"""The commands about logs that were set back, and what a server says of one when it starts."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from inbetweenies import cli
from inbetweenies.merge import Policy, Verdict
from inbetweenies.model import Change, Cursor, Pushes, SyncRequest
from inbetweenies.testing.store_tests import run
from tests.server.calls import running
from tests.stores.test_journal import Site
from tests.support import Server, at, entity

Capture = pytest.CaptureFixture[str]
FEATURES = frozenset({"acks", "digest", "edges", "paging", "witness"})


@pytest.fixture
def site(tmp_path: Path) -> Any:
    site = Site(tmp_path)
    yield site
    site.close()


def told(site: Site, capsys: Capture, *more: str) -> Any:
    assert cli.invoke(["status", "--db", str(site.path), "--json", *more]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def offered(id_: str) -> Change:
    return Change(entity=entity(id_, at(1)), offered=True)


def test_status_tells_where_everything_stands(site: Site, capsys: Capture) -> None:
    head = site.write("e1", "e2")
    found = told(site, capsys)
    [graph] = found["graphs"]

    assert {name: graph[name] for name in ("graph", "epoch", "seq", "chain", "digest")} == {
        "graph": "g",
        "epoch": head.epoch,
        "seq": 2,
        "chain": head.chain.hex(),
        "digest": head.digest_hex,
    }
    assert graph["journal"] == graph["beside"] == {"seq": 2, "epoch": head.epoch, "standing": "equal"}
    assert [0] * 5 == [graph[name] for name in ("forks", "replayed", "offered", "discards", "device_forks")]
    assert [] == graph["events"]
    [segment] = site.journal.segments()
    assert (str(site.journal.folder), 1, segment.stat().st_size) == tuple(
        found["journal"][name] for name in ("folder", "segments", "bytes")
    )
    assert found["journal"]["oldest"] == found["journal"]["newest"] == int(segment.stat().st_mtime)


def test_status_changes_nothing_and_notices_what_a_start_would(site: Site, capsys: Capture) -> None:
    site.write("e1")
    backup = site.backup()
    site.write("e2")
    site.set_back(backup)
    before = site.path.read_bytes()
    [graph] = told(site, capsys)["graphs"]

    assert ("ahead", "ahead") == (graph["journal"]["standing"], graph["beside"]["standing"])
    assert before == site.path.read_bytes()
    site.write("e3", journal=False, heads=False)
    [graph] = told(site, capsys)["graphs"]
    assert ("other", "other") == (graph["journal"]["standing"], graph["beside"]["standing"])
    site.open()
    site.close()
    site.write("e4", journal=False, heads=False)
    [graph] = told(site, capsys)["graphs"]
    assert ("behind", "behind") == (graph["journal"]["standing"], graph["beside"]["standing"])
    site.lose("journal", "heads")
    [graph] = told(site, capsys)["graphs"]
    assert (None, None) == (graph["journal"], graph["beside"])


def test_status_tells_every_kind_of_event(site: Site, capsys: Capture) -> None:
    site.write("e1")
    backup = site.backup()
    site.write("e2", "e3")
    site.set_back(backup)
    site.open()  # from the journal
    site.close()
    site.lose("journal")
    store = site.open()
    server = Server(store)

    def say(**fields: Any) -> None:
        server.now += 1
        server.ask(SyncRequest(device="peer", user="ann", features=FEATURES, **fields), "g")

    say(witness=Cursor("ab", 9, bytes(16)))
    say(changes=(offered("lost"),), pushes=Pushes(now="i:1:a"))
    say(changes=(offered("more"),), pushes=Pushes(after=("i:0:z",), now="i:1:b"))
    run(store.discard_after("g"))
    site.close()
    [graph] = told(site, capsys)["graphs"]

    assert ["replay", "fork", "device_forked", "offer", "discard"] == [event["kind"] for event in graph["events"]]
    assert (1, 2, 2, 1, 1) == tuple(
        graph[name] for name in ("forks", "replayed", "offered", "discards", "device_forks")
    )
    says = [event["says"] for event in graph["events"]]
    assert "set back to 1: 2 rows came back from the journal" == says[0]
    assert says[1].startswith("set back: it ended at 3, and peer knew of 9; now epoch ")
    assert "two copies of peer have pushed; the second goes on under a name of its own" == says[2]
    assert "2 lost rows came back from peer" == says[3]
    assert says[4].startswith("set back to 5 on purpose")

    assert cli.invoke(["status", "--db", str(site.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["graph", "rows", "epoch", "journal", "beside", "set_back", "replayed", "offered"] == lines[0].split()
    assert ["g", "5"] == lines[1].split()[:2]
    assert lines[2].startswith(f"journal in {site.path}.journal: 1 files, ")
    assert says == [line.split("g: ", 1)[1] for line in lines[3:]]


def test_status_tells_of_a_rule_that_failed(site: Site, capsys: Capture) -> None:
    server = Server(site.open(), policy=Policy(rules={"device": lambda *_: Verdict(1 // 0)}))
    for number in range(3):
        server.push(entity("e", f"v{number}", {"n": number}))
    site.close()
    [graph] = told(site, capsys)["graphs"]

    assert ["the rule of device failed (ZeroDivisionError); what it was asked was decided without it"] == [
        event["says"] for event in graph["events"]
    ]


def test_a_journal_elsewhere_is_found_again(tmp_path: Path, capsys: Capture) -> None:
    site = Site(tmp_path, journal=tmp_path / "elsewhere")
    site.write("e1")
    assert str(tmp_path / "elsewhere") == told(site, capsys)["journal"]["folder"]
    assert str(tmp_path / "other") == told(site, capsys, "--journal", str(tmp_path / "other"))["journal"]["folder"]
    backup = site.backup()
    site.write("e2")
    site.set_back(backup)

    assert cli.invoke(["log", "discard-after", "--db", str(site.path), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert [("g", 1)] == [(one["graph"], one["seq"]) for one in done["discarded"]]
    held = site.held()
    assert (1, ["discard"]) == (held.head.seq, [event.kind for event in held.events])
    assert done["discarded"][0]["epoch"] == held.head.epoch
    site.close()


def test_what_was_discarded_is_told_in_words(site: Site, capsys: Capture) -> None:
    site.write("e1")

    assert cli.invoke(["log", "discard-after", "--db", str(site.path)]) == 0
    assert "g: set back to 1 on purpose: what came after that is to stay away\n" == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["status", "--db", "{none}"], 1, "expected a database at"),
        (["log", "discard-after", "--db", "{none}"], 1, "expected a database at"),
        (["status", "--db", "{junk}"], 1, "expected a database that SQLite can read"),
        (["status", "--db", "{recipes}"], 1, "got one of another application"),
        (["status", "--db", "{old}"], 1, "of another release"),
        (["serve", "--db", "{none}", "--journal", "x", "--no-journal"], 2, "got both"),
        (["serve", "--db", "{other}", "--journal", "{journal}"], 1, "another database"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(
    site: Site, tmp_path: Path, capsys: Capture, arguments: list[str], code: int, told: str
) -> None:
    site.write("e1")
    files = {name: tmp_path / f"{name}.db" for name in ("none", "junk", "recipes", "old", "other")}
    files["junk"].write_bytes(b"no database" * 1000)
    with closing(sqlite3.connect(files["recipes"])) as connection:
        connection.execute("CREATE TABLE recipes (name)")
    with closing(sqlite3.connect(files["old"])) as connection:
        connection.executescript((Path(__file__).parents[1] / "stores" / "schema_1.sql").read_text())
    other = Site(tmp_path / "folder", journal=False)
    other.path.parent.mkdir()
    other.write("e1")
    names = files | {"other": other.path, "journal": Path(f"{site.path}.journal")}

    assert cli.invoke([argument.format(**names) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert told in captured.err.splitlines()[-1]


def test_a_server_says_when_it_starts_what_it_found(site: Site) -> None:
    site.write("e1")
    backup = site.backup()
    site.write("e2")
    site.set_back(backup)
    with running(["-m", "inbetweenies.cli", "serve", "--port", "0", "--db", str(site.path), "--no-auth"]) as server:
        assert server.process.stderr is not None
        assert "g: set back to 1: 1 rows came back from the journal\n" == server.process.stderr.readline()
