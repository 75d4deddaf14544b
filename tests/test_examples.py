"""Every example does what it says, and the wire version among them obeys the laws that ours do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import fuzz_handler, simulate_server, v3
from examples.own_store import Commit, JsonLinesStore
from inbetweenies import ProtocolFallback, ProtocolHandler, StoreError
from inbetweenies.model import Head, Reads
from inbetweenies.testing.fleet import BrokenLaw
from inbetweenies.testing.store_tests import commit, entity, read

from .support import run

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
GUARD_SECONDS = 300  # only ever reached when something hangs


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where an example runs: with this checkout, and with temporary files of its own."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}


def python(name: str, *arguments: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=GUARD_SECONDS,
        check=False,
    )


@contextmanager
def serving(name: str, folder: Path, environment: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Run an example that serves on any free port; its address, and what it said before it had one."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), "example.db", "0"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            url = None
            while url is None:
                line = process.stdout.readline()
                assert line, f"{name} ended: {lines}"
                lines.append(line.strip())
                url = re.search(r"http://127\.0\.0\.1:\d+", line)
            yield url[0], lines
        finally:
            process.terminate()
            code = process.wait(GUARD_SECONDS)
    # uvicorn's own `run` says by its code that a signal ended it; ours ends in order.
    assert code in ((0, -15) if name == "mount_fastapi.py" else (0,))


def test_the_readme_names_every_example() -> None:
    told = set(re.findall(r"^\| \[(\w+\.py)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE))

    assert {path.name for path in EXAMPLES.glob("*.py")} == told


def test_dict_handler(tmp_path: Path, environment: dict[str, str]) -> None:
    done = python("dict_handler.py", folder=tmp_path, environment=environment)

    assert (0, "") == (done.returncode, done.stderr)
    assert [
        "v2 pushed, and may forget: ['home', 'lamp']",
        "v7 was served inbetweenies-v1 because the version asked for is not known here",
        "v7 sees: ['home Home', 'accessory Kitchen lamp']",
        "refused: body_not_valid_for_version - served here: ['inbetweenies-v2', 'inbetweenies-v1']",
    ] == done.stdout.splitlines()


def test_server_and_client(tmp_path: Path, environment: dict[str, str]) -> None:
    with serving("server.py", tmp_path, environment) as (url, lines):
        token = lines[0].removeprefix("token ")
        done = python("client.py", url, token, folder=tmp_path, environment=environment)
    with serving("server.py", tmp_path, environment) as (_, again):
        pass

    assert (0, "") == (done.returncode, done.stderr)
    assert ["waiting on the tablet: 3", "the server resolved 1 conflict; all is sent: True"] == (
        done.stdout.splitlines()[:2]
    )
    assert done.stdout.splitlines()[2].startswith("Kitchen lamp: merged by field; ")
    assert '  now  {"colour":"daylight","on":true}' in done.stdout.splitlines()
    assert '  kept {"colour":"candle light","on":false}' in done.stdout.splitlines()
    assert "both hold the same: True" == done.stdout.splitlines()[-1]
    # A token is printed when it is made, and never again.
    assert [url.partition("http")[0] for url in again] == ["listening on "]


def test_client_without_a_server_says_how_to_call_it(tmp_path: Path, environment: dict[str, str]) -> None:
    done = python("client.py", folder=tmp_path, environment=environment)

    assert (1, "usage: python examples/client.py URL TOKEN\n") == (done.returncode, done.stderr)


def test_mount_fastapi(tmp_path: Path, environment: dict[str, str]) -> None:
    with (
        serving("mount_fastapi.py", tmp_path, environment) as (url, _),
        httpx.Client(base_url=url, trust_env=False, timeout=GUARD_SECONDS) as http,
    ):
        invitation = http.post("/invite/alice").json()
        done = python(
            "client.py", url + invitation["url"], invitation["token"], folder=tmp_path, environment=environment
        )
        devices = http.get("/devices").json()
        health = http.get("/home/health").json()
        stranger = http.post("/home/api/v1/sync/", json={}).status_code

    assert (0, "") == (done.returncode, done.stderr)
    assert ["Kitchen lamp"] == devices
    assert ({"status": "healthy"}, 401) == (health, stranger)


def test_versioned_api(tmp_path: Path, environment: dict[str, str]) -> None:
    done = python("versioned_api.py", folder=tmp_path, environment=environment)

    assert (0, "") == (done.returncode, done.stderr)
    assert [
        "version 1 sees {'name': 'Hall', 'zone': 'ground'} and is told @1790000000",
        "version 2 sees {'name': 'Entrance', 'zones': ['ground', 'south'], 'colour': 'red'}",
        "400 unsupported_version: expected API-Version 1 to 2; got a newer one",
        "read so far, by version: {1: 1, 2: 1} - refused: 1",
    ] == done.stdout.splitlines()


# --- a store of one's own -----------------------------------------------------------------------------------------


def test_own_rule(tmp_path: Path, environment: dict[str, str]) -> None:
    done = python("own_rule.py", folder=tmp_path, environment=environment)

    assert (0, "") == (done.returncode, done.stderr)
    assert [
        "app: {'count': 4}, decided by the rule of its type",
        "schedule: {'wake': 6}, left to a person; both are kept until somebody resolves it",
    ] == done.stdout.splitlines()


def test_own_store(tmp_path: Path, environment: dict[str, str]) -> None:
    done = python("own_store.py", folder=tmp_path, environment=environment)

    assert 0 == done.returncode, done.stdout
    assert re.search(r"\d{2,} passed", done.stdout)


def test_own_store_survives_a_torn_line_and_refuses_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = JsonLinesStore(path)
    run(commit(store, "g", entity("e1", "v1")))
    before = run(read(store, "g", Reads(listing=True)))
    run(store.close())
    with path.open("ab") as file:
        file.write(b'{"graph":"g","wri')
    size = path.stat().st_size

    again = JsonLinesStore(path, fsync=full)
    assert before == run(read(again, "g", Reads(listing=True)))
    assert size > path.stat().st_size
    with pytest.raises(StoreError, match="No space left"):
        run(commit(again, "g", entity("e2", "v1")))
    with pytest.raises(StoreError, match="No space left"):
        run(read(again, "new", Reads()))
    assert before == run(read(again, "g", Reads(listing=True)))
    run(again.close())

    last = JsonLinesStore(path)
    assert before == run(read(last, "g", Reads(listing=True)))
    run(last.close())


def test_own_store_serves_a_fleet(tmp_path: Path) -> None:
    store = JsonLinesStore(tmp_path / "log.jsonl", fsync=lambda _: None)
    fallback = ProtocolFallback(store)
    pushed = run(fallback.handle_sync_request(message(entities=[thing()])))
    run(store.close())

    again = JsonLinesStore(tmp_path / "log.jsonl")
    answer = run(ProtocolFallback(again).handle_sync_request(message()))
    run(again.close())

    assert "error" not in pushed
    assert ["lamp"] == [change["entity"]["id"] for change in answer["changes"]]
    assert Commit(graph="g", writes=(), head=Head(epoch="e")).graph == "g"


# --- fuzzing ------------------------------------------------------------------------------------------------------


def test_fuzz_handler_finds_nothing_in_an_honest_handler(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == fuzz_handler.main()
    assert "no law was broken\n" == capsys.readouterr().out


def test_fuzz_handler_tells_the_story_of_a_hasty_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == fuzz_handler.main("hasty")
    out = capsys.readouterr().out
    assert out.startswith("law ")
    assert "what happened:\n    1 " in out
    assert issubclass(BrokenLaw, AssertionError)


# --- simulating ---------------------------------------------------------------------------------------------------


def test_simulate_server_finds_nothing_in_an_honest_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == simulate_server.main()
    assert capsys.readouterr().out.startswith("300 histories, ")


def test_simulate_server_tells_the_story_of_a_forgetful_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == simulate_server.main("forgetful")
    out = capsys.readouterr().out
    assert out.startswith("broken: ")
    assert "joins in graph default" in out


# --- a wire version of one's own ----------------------------------------------------------------------------------


def thing(version: str = "1", **fields: Any) -> dict[str, Any]:
    plain = {
        "id": "lamp",
        "version": version,
        "entity_type": "device",
        "name": "Lamp",
        "content": {"firmware_version": "1", "colour": "warm"},
        "source_type": "manual",
        "user_id": "alice",
    }
    return plain | fields


def message(*, entities: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A v2 message."""
    return {
        "protocol_version": "inbetweenies-v2",
        "device_id": "tablet",
        "user_id": "alice",
        "sync_type": "full",
        "changes": [{"change_type": "update", "entity": each} for each in entities or ()],
    }


class Server:
    """A server with v3 among its handlers, as `examples/v3.py` registers it."""

    def __init__(self) -> None:
        self.fallback = ProtocolFallback()
        self.fallback.handlers[v3.WIRE.name] = ProtocolHandler(self.fallback.store, wire=v3.WIRE)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        return run(self.fallback.handle_sync_request(request))

    def v3(self, **fields: Any) -> dict[str, Any]:
        return self.ask({"protocol_version": "inbetweenies-v3", "device": "watch", **fields})

    @property
    def head(self) -> Head:
        async def read_head() -> Head:
            async with self.fallback.store.transaction("default", write=False) as tx:
                return (await tx.read(Reads())).head

        return run(read_head())


def test_v3_is_short_and_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    done = python("v3.py", folder=tmp_path, environment=environment)

    assert (0, "") == (done.returncode, done.stderr)
    assert ["inbetweenies-v3", None] == [
        literal_eval(line).get("protocol_version") for line in done.stdout.splitlines()
    ]
    assert len((EXAMPLES / "v3.py").read_text().splitlines()) <= 80


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    PLAIN | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ENTITIES = st.builds(
    thing,
    st.integers(0, 99).map(str),
    id=st.sampled_from(["lamp", "home", "hub", "é\U0001f3e0"]),
    entity_type=st.sampled_from(["device", "home", "room", "note", "spaceship"]),
    name=TEXT,
    content=st.dictionaries(st.text("abcdeé", max_size=4), JSON, max_size=3),
    source_type=st.sampled_from(["homekit", "manual"]),
)
GRAPHS = st.lists(ENTITIES, max_size=6, unique_by=lambda each: each["id"])


@settings(max_examples=50)
@given(GRAPHS)
def test_v3_lens_what_is_put_is_what_is_got(graph: list[dict[str, Any]]) -> None:
    server = Server()
    acks = server.v3(entities=graph)["acks"]
    told = server.v3()["entities"]

    assert {each["id"] for each in graph} == {ack["id"] for ack in acks}
    assert {each["id"]: each for each in graph} == {
        each["id"]: {field: value for field, value in each.items() if field in each and field in thing()}
        for each in told
    }


@settings(max_examples=50)
@given(GRAPHS)
def test_v3_lens_to_put_back_what_was_got_changes_nothing(graph: list[dict[str, Any]]) -> None:
    server = Server()
    server.ask(message(entities=graph))
    told, before = server.v3(), server.head
    again = server.v3(entities=told["entities"], relationships=told["relationships"])

    assert ["dup"] * len(graph) == [ack["outcome"] for ack in again["acks"]]
    assert before == server.head
    assert before.digest_hex == told["digest"]


@settings(max_examples=50)
@given(GRAPHS, st.text("xyz", min_size=1, max_size=3))
def test_v3_lens_the_last_put_counts_and_a_v1_edit_spares_the_rest(graph: list[dict[str, Any]], name: str) -> None:
    server = Server()
    server.v3(entities=[thing("h1", id="house", entity_type="home", content={}), *graph])
    server.v3(entities=[thing("1.1", id="lamp2", content={"colour": "blue", "firmware_version": "1"})])
    read = server.ask({"type": "sync_request", "client_id": "phone", "entity_types": ["accessories"]})
    record = next(change["data"] for change in read["changes"] if change["entity_id"] == "lamp2")
    record |= {"name": name, "updated_at": "2026-05-05T05:05:05.000000"}
    change = {"entity_type": "accessory", "entity_id": "lamp2", "operation": "update", "data": record}
    pushed = server.ask({"type": "sync_push", "client_id": "phone", "changes": [change]})
    told = {each["id"]: each for each in server.v3()["entities"]}

    assert 1 == len(pushed["applied"])
    assert (name, {"colour": "blue", "firmware_version": "1"}) == (told["lamp2"]["name"], told["lamp2"]["content"])
    assert {each["id"]: each["content"] for each in graph} == {
        each["id"]: told[each["id"]]["content"] for each in graph
    }


def test_v3_carries_edges_and_refuses_item_by_item() -> None:
    server = Server()
    edge = {
        "id": "e",
        "version": "1",
        "from_entity_id": "lamp",
        "from_entity_version": "1",
        "to_entity_id": "home",
        "to_entity_version": "1",
        "relationship_type": "part_of",
        "properties": {"since": 2020},
        "user_id": "alice",
    }
    nowhere = {**edge, "id": "f", "to_entity_id": "nowhere"}
    pushed = server.v3(
        entities=[thing(), thing(id="home", entity_type="home"), thing(id="bad\x00")], relationships=[edge, nowhere]
    )

    assert [("entity", "lamp"), ("entity", "home"), ("edge", "e")] == [
        (ack["kind"], ack["id"]) for ack in pushed["acks"]
    ]
    assert {
        ("/entities/2/entity/id", "illegal_name"),
        ("/relationships/1/to_entity_id", "unknown_endpoint"),
    } == {(refused["pointer"], refused["code"]) for refused in pushed["refused"]}
    assert [edge] == server.v3()["relationships"]


def test_v3_follows_its_cursor_and_starts_anew_after_another_ones() -> None:
    server = Server()
    first = server.v3(entities=[thing()])
    server.ask(message(entities=[thing("2", parent_versions=["1"])]))
    next_ = server.v3(cursor=first["cursor"])
    foreign = server.v3(cursor="0123456789abcdef:1:" + "0" * 32)

    assert ["2"] == [each["version"] for each in next_["entities"]]
    assert [] == server.v3(cursor=next_["cursor"])["entities"]
    assert (True, ["2"]) == (foreign["resync"], [each["version"] for each in foreign["entities"]])
    assert ["2"] == [each["version"] for each in server.v3(cursor="no cursor at all")["entities"]]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"device": 1}, "malformed_body"),
        ({"entities": [thing(content=[])]}, "malformed_body"),
        ({"entities": [{"id": "lamp"}]}, "malformed_body"),
    ],
)
def test_v3_refuses_what_is_no_message_of_its_own(fields: dict[str, Any], code: str) -> None:
    server = Server()
    before = server.head

    assert code == server.v3(**fields)["code"]
    assert before == server.head


def test_the_router_knows_v3_as_it_knows_the_others() -> None:
    server = Server()
    names = ("inbetweenies-v3", "inbetweenies-v2", "inbetweenies-v1")
    v7 = {"protocol_version": "inbetweenies-v7", "device": "watch", "device_id": "watch", "user_id": "alice"}
    offered = server.ask({**v7, "supported_versions": ["inbetweenies-v7", *names]})
    older = server.ask({**v7, "supported_versions": list(names[1:]), "sync_type": "full"})
    bare = server.ask(v7)

    assert names == server.fallback.registry.accepted
    assert ("inbetweenies-v3", "offer") == (offered["protocol_version"], offered["negotiation"]["source"])
    assert list(names) == offered["negotiation"]["supported"]
    assert "inbetweenies-v2" == older["protocol_version"]
    assert ("inbetweenies-v1", "fallback") == (bare["protocol_version"], bare["negotiation"]["source"])
    # To remove it, take it away: then it is a version that nobody knows.
    del server.fallback.handlers["inbetweenies-v3"]
    assert "inbetweenies-v1" == server.v3()["protocol_version"]
    assert "body_not_valid_for_version" == server.v3(changes=[{"entity": thing()}])["code"]


def test_v3_can_be_switched_off() -> None:
    server = Server()
    server.fallback.disabled = frozenset({"inbetweenies-v3"})
    refused = server.v3(entities=[thing()])

    assert ("version_disabled", ["inbetweenies-v2", "inbetweenies-v1"]) == (refused["code"], refused["supported"])
