"""Every recorded exchange with the deployed servers, replayed against a server that runs: the same answers, or better.

What differs on purpose is in `reasons`. Without the recordings beside the project, the few in `data` are replayed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from inbetweenies.auth import SqliteTokens
from tests.compat import reasons
from tests.compat.recordings import KEPT, SETS, Recording, load
from tests.compat.replay import Differences, Story
from tests.server.calls import GUARD_SECONDS, SYNC, running, sync

REASONS = {"v1": reasons.V1, "v2": reasons.V2}
PASSWORD = "admin"  # the one that the recorded login used


@contextmanager
def server(db: Path) -> Iterator[httpx.Client]:
    """`inbetweenies serve` on loopback, with a file, as somebody would start it."""
    command = ["-m", "inbetweenies.cli", "serve", "--port", "0", "--db", str(db)]
    with (
        running(command, INBETWEENIES_ADMIN_PASSWORD=PASSWORD) as process,
        httpx.Client(base_url=process.url, timeout=GUARD_SECONDS) as http,
    ):
        yield http


def told(recordings: Sequence[Recording], wire: str, db: Path) -> dict[str, Differences]:
    """What was answered differently, by recording, when the whole story was told to a server of its own.

    The last recordings were made on another server, which began with a graph. Here that is a graph of its own, into
    which is pushed what they show.
    """
    demo = [recording for recording in recordings if "-demo-" in recording.name]
    differences = {}
    with server(db) as http, closing(SqliteTokens(db)) as tokens:
        story = Story(http, recordings)
        if wire == "v1":
            # The recorded v1 server checked no token.
            story.token = http.post("/api/v1/auth/admin/login", json={"password": PASSWORD}).json()["access_token"]
        for recording in recordings:
            if recording in demo[:1]:
                story = Story(http, demo, tokens.create("demo", "populate-script", None, None)[0])
                seed(story, wire, demo)
            differences[recording.name] = story.tell(recording)
    return differences


def seed(story: Story, wire: str, demo: Sequence[Recording]) -> None:
    """Push what the recordings of the graph in `demo` show."""
    first = demo[0].answer
    if wire == "v2":
        changes = [{**change, "change_type": "create"} for change in first["changes"]]
        changes.append({"change_type": "update", "relationships": demo[1].answer["relationships"]})
        answer = story.push(SYNC, sync(*changes))
        assert len(changes) - 1 == len(answer["applied"])
        assert len(changes[-1]["relationships"]) == len(answer["applied_relationships"])
    else:
        changes = [{**change, "client_sync_id": change["entity_id"]} for change in first["changes"]]
        answer = story.push(f"{SYNC}push", {"client_id": "populate-script", "changes": changes})
        assert len(changes) == len(answer["applied"])


@pytest.mark.parametrize("wire", REASONS)
@pytest.mark.parametrize("name", SETS)
def test_every_recorded_exchange_is_answered_as_it_was_or_better(name: str, wire: str, tmp_path: Path) -> None:
    recordings = load(SETS[name] / wire)
    found = told(recordings, wire, tmp_path / "server.db")

    elsewhere = reasons.ELSEWHERE[wire].keys() & found.keys()
    reasons_for = REASONS[wire] | {recording: {"status": reasons.ELSEWHERE[wire][recording]} for recording in elsewhere}
    everywhere = reasons.EVERYWHERE[wire].keys()
    unexplained: Differences = {}
    stale: Differences = {}
    for recording, differences in found.items():
        known, mine = reasons_for.get(recording, {}), differences.keys() - everywhere
        unexplained |= {f"{recording}: {aspect}": differences[aspect] for aspect in mine - known.keys()}
        stale |= {f"{recording}: {aspect}": known[aspect] for aspect in known.keys() - mine}
    differing = sum(bool(differences.keys() - everywhere) for differences in found.values()) - len(elsewhere)
    print(
        f"{name} {wire}: {len(found)} recordings replayed, {len(found) - differing - len(elsewhere)} equal, "
        f"{differing} differing on purpose, {len(elsewhere)} of endpoints that are not part of a sync"
    )

    assert ({}, {}) == (unexplained, stale)
    assert everywhere == everywhere & {aspect for differences in found.values() for aspect in differences}


@pytest.mark.parametrize("wire", REASONS)
def test_reasons_and_kept_recordings_are_of_what_was_recorded(wire: str, shared_data: Path) -> None:
    there = {file.stem: file for file in (shared_data / "recorded" / wire).glob("*.json")}
    kept = {file.stem: file for file in (KEPT / wire).glob("*.json")}

    assert set() == (REASONS[wire].keys() | reasons.ELSEWHERE[wire].keys() | kept.keys()) - there.keys()
    assert {name: file.read_bytes() for name, file in kept.items()} == {name: there[name].read_bytes() for name in kept}
