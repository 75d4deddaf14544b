"""Which wire versions are served, decided on the command line: at once, for good, and not over anybody's head."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from inbetweenies import cli
from inbetweenies.auth import SqliteTokens
from inbetweenies.census import Entry, document_of, entries_in
from inbetweenies.cli_versions import DAY_US
from inbetweenies.model import format_time
from inbetweenies.registry import DOCUMENT
from inbetweenies.stores import SqliteStore, amend
from inbetweenies.stores.clock import wall_clock
from tests.server.calls import GUARD_SECONDS, SYNC, V2, entity, running, sync, write
from tests.server.test_cli import SERVE, one_line
from tests.support import run

V1 = "inbetweenies-v1"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    path = tmp_path / "home.db"
    run(SqliteStore(path).close())
    return path


def told(*arguments: str, db: Path, code: int = 0, capsys: Capture) -> Any:
    """What a command prints as JSON."""
    assert code == cli.invoke([*arguments, "--db", str(db), "--json"])
    return json.loads(capsys.readouterr().out)


def seen(db: Path, *entries: Entry) -> None:
    """Put entries into the census, as a server would."""
    store = SqliteStore(db)
    run(amend(store, "census", lambda _: document_of((), entries, now=wall_clock())))
    run(store.close())


def entry(release: str, version: str = V2, days: int = 1, **fields: Any) -> Entry:
    last = wall_clock() - days * DAY_US
    return Entry(
        version=version, release=release, last=last, **{"alone": last, "reads": 3, "served": version, **fields}
    )


def states(db: Path, capsys: Capture) -> dict[str, str]:
    return {one["version"]: one["state"] for one in told("versions", "list", db=db, capsys=capsys)["versions"]}


def test_versions_are_listed_best_first_with_what_was_decided(db: Path, capsys: Capture) -> None:
    assert 0 == cli.invoke(["versions", "list", "--db", str(db)])
    lines = capsys.readouterr().out.splitlines()
    first = told("versions", "list", db=db, capsys=capsys)

    assert ["version", "state", "deprecated_at", "sunset_at", "successor", "last_seen"] == lines[0].split()
    assert [[V2, "deployed", "-", "-", "-", "-"], [V1, "deployed", "-", "-", "-", "-"]] == [
        line.split() for line in lines[1:]
    ]
    assert 0 == first["changes"]
    assert {"installed": True, "link": None, "last_seen": None} == {
        name: first["versions"][0][name] for name in ("installed", "link", "last_seen")
    }


@pytest.mark.parametrize("state", ["deployed", "offered", "accepted"])
def test_a_version_is_enabled_in_stages(db: Path, capsys: Capture, state: str) -> None:
    told("versions", "disable", V2, db=db, capsys=capsys)
    answer = told("versions", "enable", V2, "--as", state, db=db, capsys=capsys)

    assert (True, state) == (answer["changed"], answer["state"])
    assert {V2: state, V1: "deployed"} == states(db, capsys)


def test_a_version_is_deprecated_and_that_is_taken_back(db: Path, capsys: Capture) -> None:
    more = ["--sunset", "2999-01-02", "--successor", V2, "--link", "https://example.org/v1"]
    first = told("versions", "deprecate", V1, *more, db=db, capsys=capsys)
    again = told("versions", "deprecate", V1, db=db, capsys=capsys)
    assert 0 == cli.invoke(["versions", "deprecate", V1, "--db", str(db)])
    line = capsys.readouterr().out
    back = told("versions", "deprecate", V1, "--off", db=db, capsys=capsys)

    assert ("2999-01-02T00:00:00.000000+00:00", V2, "https://example.org/v1") == (
        first["sunset_at"],
        first["successor"],
        first["link"],
    )
    assert (first["deprecated_at"], None) == (again["deprecated_at"], again["sunset_at"])
    assert f"{V1} is deployed, deprecated since {first['deprecated_at']}\n" == line
    assert None is back["deprecated_at"]
    assert 4 == told("versions", "list", db=db, capsys=capsys)["changes"]


def test_what_nobody_needs_is_switched_off_without_a_question(db: Path, capsys: Capture) -> None:
    seen(
        db,
        entry("old/1", days=40),
        entry("both/1", alone=0, offers=(V2, V1)),
        entry("other/1", version=V1),
        entry("gone/1", served=None, alone=0),
    )
    assert 0 == cli.invoke(["versions", "disable", V2, "--db", str(db)])

    assert f"{V2} is disabled\n" == capsys.readouterr().out
    assert {V2: "disabled", V1: "deployed"} == states(db, capsys)


@pytest.mark.parametrize("verb", ["disable", "retire"])
def test_what_somebody_needs_is_not_switched_off_and_it_is_said_who_that_is(
    db: Path, capsys: Capture, verb: str
) -> None:
    tablet = entry("tablet/2", writes=7)
    seen(db, tablet, entry("both/1", alone=0, offers=(V2, V1)))
    assert 1 == cli.invoke(["versions", verb, V2, "--db", str(db)])
    captured = capsys.readouterr()
    refused = told("versions", verb, V2, code=1, db=db, capsys=capsys)

    assert ["version", "client", "last_seen", "reads", "writes", "refused", "served"] == captured.out.split()[:7]
    assert [V2, "tablet/2", format_time(tablet.last), "3", "7", "0", V2] == captured.out.split()[7:]
    assert captured.err.startswith("inbetweenies: expected nobody seen in 30 days to need inbetweenies-v2; got 1 kinds")
    assert "--yes" in captured.err
    assert (False, "deployed", ["tablet/2"]) == (
        refused["changed"],
        refused["state"],
        [one["client"] for one in refused["would_break"]],
    )


def test_with_yes_it_is_switched_off_and_still_said_who_breaks(db: Path, capsys: Capture) -> None:
    seen(db, entry("tablet/2"))
    answer = told("versions", "disable", V2, "--yes", db=db, capsys=capsys)

    assert (True, "disabled", ["tablet/2"]) == (
        answer["changed"],
        answer["state"],
        [one["client"] for one in answer["would_break"]],
    )


def test_those_who_fall_back_to_a_version_need_it_too(db: Path, capsys: Capture) -> None:
    seen(db, entry("phone/1", version="missing", served=V1), entry("new/9", version="unknown", served=V1))
    refused = told("versions", "disable", V1, code=1, db=db, capsys=capsys)

    assert ["missing", "unknown"] == [one["version"] for one in refused["would_break"]]


def test_days_say_how_long_somebody_counts(db: Path, capsys: Capture) -> None:
    seen(db, entry("tablet/2", days=10))

    told("versions", "disable", V2, "--days", "11", code=1, db=db, capsys=capsys)
    assert told("versions", "disable", V2, "--days", "9", db=db, capsys=capsys)["changed"]


def test_a_retired_version_ends_now_whatever_its_sunset_was(db: Path, capsys: Capture) -> None:
    told("versions", "deprecate", V1, "--sunset", "2999-01-01", "--successor", V2, db=db, capsys=capsys)
    answer = told("versions", "retire", V1, "--link", "https://example.org/v1", db=db, capsys=capsys)

    assert ("retired", V2, "https://example.org/v1") == (answer["state"], answer["successor"], answer["link"])
    assert answer["deprecated_at"] <= answer["sunset_at"] < format_time(wall_clock() + 1)
    assert "retired" == told("versions", "list", db=db, capsys=capsys)["versions"][1]["state"]


def test_a_version_to_come_can_be_held_back_before_it_is_installed(db: Path, capsys: Capture) -> None:
    told("versions", "disable", "inbetweenies-v3", "--yes", db=db, capsys=capsys)

    assert {V2: "deployed", V1: "deployed", "inbetweenies-v3": "disabled"} == states(db, capsys)
    assert told("versions", "enable", "inbetweenies-v3", db=db, capsys=capsys)["changed"]
    assert {V2: "deployed", V1: "deployed"} == states(db, capsys)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["versions", "enable", "inbetweenies-v3"], 2, "expected one of inbetweenies-v2, inbetweenies-v1"),
        (["versions", "deprecate", "inbetweenies-v3"], 2, "expected one of"),
        (["versions", "disable", "inbetweenies-v3"], 2, "With --yes it is taken"),
        (["versions", "disable", "é"], 2, "printable ASCII"),
        (["versions", "disable", ""], 2, "1 to 64"),
        (["versions", "enable", V2, "--as", "retired"], 2, "'retired' is not one of"),
        (["versions", "deprecate", V1, "--sunset", "soon"], 2, "does not match"),
        (["versions", "deprecate", V1, "--sunset", "1999-01-01"], 2, "sunset at or after"),
        (["versions", "deprecate", V1, "--link", "a b"], 2, "without spaces"),
        (["versions", "disable", V2, "--days", "0"], 2, "--days"),
        (["versions", "list", "--db", "nowhere.db"], 1, "got no file"),
        (["census", "--db", "nowhere.db"], 1, "got no file"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line_and_changes_nothing(
    db: Path, capsys: Capture, arguments: list[str], code: int, said: str
) -> None:
    where = [] if "--db" in arguments else ["--db", str(db)]
    assert code == cli.invoke([*arguments, *where])

    assert said in one_line(capsys)
    assert {V2: "deployed", V1: "deployed"} == states(db, capsys)


def test_the_last_version_cannot_be_switched_off_even_with_yes(db: Path, capsys: Capture) -> None:
    told("versions", "disable", V2, db=db, capsys=capsys)
    assert 2 == cli.invoke(["versions", "retire", V1, "--yes", "--db", str(db)])

    assert "at least one" in one_line(capsys)
    assert {V2: "disabled", V1: "deployed"} == states(db, capsys)


def test_a_document_of_another_release_is_not_overwritten(db: Path, capsys: Capture) -> None:
    store = SqliteStore(db)
    run(store.put_document(DOCUMENT, b'{"versions":{"inbetweenies-v2":{"state":"sleeping"}}}', revision=0))
    assert 1 == cli.invoke(["versions", "disable", V1, "--db", str(db)])

    assert "newer release" in one_line(capsys)
    assert 1 == run(store.document(DOCUMENT)).revision
    run(store.close())


# --- the census ---------------------------------------------------------------------------------------------------


def test_the_census_shows_who_would_break_without_what(db: Path, capsys: Capture) -> None:
    seen(
        db,
        entry("tablet/2"),
        entry("both/1", alone=0, offers=(V2, V1), refused=2),
        entry("phone/1", version="missing", served=V1),
        entry("old/1", days=40),
        entry("odd/1", version="malformed", served=None, alone=0),
    )
    assert 0 == cli.invoke(["census", "--db", str(db)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    answer = told("census", db=db, capsys=capsys)

    assert "version client last_seen reads writes refused served breaks_without".split() == lines[0]
    assert {"tablet/2": V2, "both/1": "-", "phone/1": V1, "old/1": "-", "odd/1": "-"} == {
        line[1]: line[-1] for line in lines[1:]
    }
    assert {V2: ["tablet/2"], V1: ["phone/1"]} == {
        name: [one["client"] for one in who] for name, who in answer["would_break"].items()
    }
    assert ([V2, V1], 2) == next(
        (one["offers"], one["refused"]) for one in answer["census"] if one["client"] == "both/1"
    )


# --- a server that runs -------------------------------------------------------------------------------------------


def post(url: str, token: str, body: Any, agent: str = "tablet/2") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token}", "User-Agent": agent}
    return httpx.post(url + SYNC, json=body, headers=headers, trust_env=False)


def wait_until_counted(db: Path, requests: int) -> None:
    """A server writes the census down when it has answered, so whoever has the answer may be a moment too early."""
    store = SqliteStore(db)
    ends = time.monotonic() + GUARD_SECONDS
    while sum(one.writes + one.refused for one in entries_in(run(store.document("census")))) < requests:
        assert time.monotonic() < ends, "never counted"
    run(store.close())


def test_a_running_server_obeys_at_once_and_after_it_was_started_again(db: Path, capsys: Capture) -> None:
    tokens = SqliteTokens(db)
    token, _ = tokens.create("home", "ann")
    tokens.close()
    push = sync(write(entity("e1", "v1")))
    options = ["--min-client-version", "1.0.0", "--latest-client-version", "1.2.0", "--docs", "https://example.org"]
    with running([*SERVE, str(db), *options]) as server:
        before = post(server.url, token, push)
        wait_until_counted(db, 1)
        kept = told("versions", "disable", V2, code=1, db=db, capsys=capsys)
        told("versions", "disable", V2, "--yes", db=db, capsys=capsys)
        off = post(server.url, token, push)
        told("versions", "enable", V2, db=db, capsys=capsys)
        on = post(server.url, token, push)
        told("versions", "disable", V2, "--yes", db=db, capsys=capsys)
    with running([*SERVE, str(db), *options]) as server:
        still = post(server.url, token, push)
        discovery = httpx.get(f"{server.url}/api/version", trust_env=False).json()
    census = told("census", db=db, capsys=capsys)["census"]

    assert [200, 400, 200, 400] == [answer.status_code for answer in (before, off, on, still)]
    assert ["tablet/2"] == [one["client"] for one in kept["would_break"]]
    assert ("version_disabled", [V1], "https://example.org") == tuple(
        off.json()[name] for name in ("code", "supported", "docs")
    )
    revisions = {answer.headers["inbetweenies-registry-revision"] for answer in (before, off, on)}
    assert 3 == len(revisions)
    assert ([V1], "1.0.0", "1.2.0") == tuple(
        discovery[name] for name in ("supported_versions", "min_client_version", "latest_client_version")
    )
    assert {(V2, 0, 2, 0), ("disabled", 0, 0, 2)} == {
        (one["version"], one["reads"], one["writes"], one["refused"]) for one in census
    }


def test_a_server_that_would_serve_nothing_does_not_start(db: Path, capsys: Capture) -> None:
    store = SqliteStore(db)
    body = b'{"versions":{"inbetweenies-v1":{"state":"retired"},"inbetweenies-v2":{"state":"disabled"}}}'
    run(store.put_document(DOCUMENT, body, revision=0))
    run(store.close())
    assert 2 == cli.invoke(["serve", "--db", str(db), "--port", "0"])

    assert "at least one wire version" in capsys.readouterr().err
