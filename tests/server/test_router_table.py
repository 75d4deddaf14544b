"""The table of PROTOCOL 5.3, row by row, and the rows that nobody should send, against a server that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec import Struct

from inbetweenies.errors import PROBLEM_BYTES_MAX
from inbetweenies.model import Reads
from inbetweenies.negotiation import GREASE
from inbetweenies.registry import DOCUMENT, Decision, Decisions, State, document_of
from inbetweenies.stores import SqliteStore, amend
from tests.server.calls import SYNC, V2, Process, entity, running, sync, write
from tests.server.test_cli import SERVE
from tests.support import run

V1, V7, V8 = "inbetweenies-v1", "inbetweenies-v7", "inbetweenies-v8"
HOME = {"id": "h", "name": "House", "is_primary": True, "updated_at": "2026-06-15T09:41:02.000000"}
RECORD = {"entity_type": "home", "entity_id": "h", "operation": "update", "data": HOME, "client_sync_id": "c"}
V1_PUSH = {"type": "sync_push", "client_id": "old", "changes": [RECORD]}
READ = sync()
PUSH = sync(write(entity("e1", "v1")))


class Site(Struct, frozen=True):
    """A server, and its file."""

    server: Process
    db: Path

    def ask(self, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(
            self.server.url + SYNC,
            content=content,
            headers={"content-type": "application/json", **named},
            trust_env=False,
            timeout=60,
        )

    def seq(self) -> int:
        """How many rows the graph has."""
        store = SqliteStore(self.db)

        async def read() -> int:
            async with store.transaction("default", write=False) as tx:
                return (await tx.read(Reads())).head.seq

        found = run(read())
        run(store.close())
        return found


@contextmanager
def site(folder: Path, **states: State) -> Iterator[Site]:
    db = folder / "home.db"
    store = SqliteStore(db)
    versions = {f"inbetweenies-{name}": Decision(state=state) for name, state in states.items()}
    run(amend(store, DOCUMENT, lambda _: document_of(Decisions(versions=versions))))
    run(store.close())
    with running([*SERVE, str(db), "--no-auth"]) as server:
        yield Site(server, db)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of both versions."""
    with site(tmp_path_factory.mktemp("both")) as found:
        yield found


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose v2 was switched off."""
    with site(tmp_path_factory.mktemp("rolled-back"), v2="disabled") as found:
        yield found


@pytest.fixture(scope="module")
def only_v2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server whose v1 is past its sunset."""
    with site(tmp_path_factory.mktemp("only-v2"), v1="retired") as found:
        yield found


def named(version: Any, body: dict[str, Any] = READ, **more: Any) -> dict[str, Any]:
    return {**body, "protocol_version": version, **more}


def nameless(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "protocol_version"}


def offering(*versions: Any) -> dict[str, Any]:
    return {"supported_versions": list(versions)}


#: What is sent, and the version that it is served in, why, or None where nothing needs to be said of it.
SERVED: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "v2": (READ, V2, None),
    "v1 by name": (named(V1), V1, None),
    "v1 by name, a push": (named(V1, V1_PUSH), V1, None),
    "missing, a read": ({"type": "sync_request", "client_id": "c"}, V1, None),
    "missing, a push": (V1_PUSH, V1, None),
    "missing, offering v1 among others": ({"client_id": "c", **offering(V2, V1)}, V1, None),
    "unknown, a read": (named(V7), V1, "fallback"),
    "v10 is newer, not older, and unknown": (named("inbetweenies-v10"), V1, "fallback"),
    "v2.1 is not v2": (named("inbetweenies-v2.1"), V1, "fallback"),
    "v10 without the family": (named("v10"), V1, "fallback"),
    "seen in the wild": (named("inbetweenies-v1-stream"), V1, "fallback"),
    "another case": (named("INBETWEENIES-V2"), V1, "fallback"),
    "a leading zero": (named("inbetweenies-v02"), V1, "fallback"),
    "spaces around": (named(f" {V2} "), V1, "fallback"),
    "a single space": (named(" "), V1, "fallback"),
    "64 characters": (named("x" * 64), V1, "fallback"),
    "unknown, exactly a v1 push": (named(V7, V1_PUSH), V1, "fallback"),
    "unknown, offering v2": (named(V7, PUSH, **offering(V7, V2)), V2, "offer"),
    "unknown, offering both in another order": (named(V7, **offering(V1, V2)), V2, "offer"),
    "grease, a read": (named(min(GREASE)), V1, "fallback"),
    "grease, offering v2": (named(min(GREASE), **offering(min(GREASE), V2)), V2, "offer"),
    "v1 by name, offering v2": (named(V1, **offering(V2, V1)), V1, "exact"),
    "v2, offering only v1": (named(V2, **offering(V1)), V2, "exact"),
    "v2, unknown keys in the envelope": (named(V2, client={"name": 7}, features=["x"], more=[1]), V2, None),
}

#: What is sent, the code it is refused with, and whose side is behind.
REFUSED: dict[str, tuple[Any, str, str | None]] = {
    "null": (named(None), "malformed_version", "unknown"),
    "empty": (named(""), "malformed_version", "unknown"),
    "a number": (named(2), "malformed_version", "unknown"),
    "a float": (named(2.1), "malformed_version", "unknown"),
    "a huge number": (b'{"protocol_version": %s}' % (b"9" * 5000), "malformed_version", "unknown"),
    "true": (named(True), "malformed_version", "unknown"),
    "an array": (named([V2]), "malformed_version", "unknown"),
    "an object": (named({"version": V2}), "malformed_version", "unknown"),
    "65 characters": (named("x" * 65), "malformed_version", "unknown"),
    "a megabyte": (named("x" * 2**20), "malformed_version", "unknown"),
    "a NUL": (named(V2 + "\0"), "malformed_version", "unknown"),
    "a line end": (named(V2 + "\n"), "malformed_version", "unknown"),
    "other digits": (named("inbetweenies-v\u0662"), "malformed_version", "unknown"),
    "an offer that is no list": (named(V7, supported_versions=V2), "malformed_version", "unknown"),
    "an offer of numbers": (named(V7, **offering(2)), "malformed_version", "unknown"),
    "an offer of 65": (named(V7, **offering(*[V2] * 65)), "malformed_version", "unknown"),
    "unknown, a push of another shape": (named(V7, PUSH), "body_not_valid_for_version", "unknown"),
    "grease, a push of another shape": (named(min(GREASE), PUSH), "body_not_valid_for_version", "unknown"),
    "unknown, a v1 push and more": (named(V7, V1_PUSH, more=1), "body_not_valid_for_version", "unknown"),
    "unknown, offering only newer ones": (named(V7, **offering(V7, V8)), "no_common_version", "server"),
    "unknown, offering nothing": (named(V7, **offering()), "no_common_version", "server"),
    "unknown, offering only grease": (named(V7, **offering(*sorted(GREASE))), "no_common_version", "server"),
    "missing, offering only v2": ({"client_id": "c", **offering(V2)}, "version_required", "unknown"),
    "v2 of another shape": (named(V2, changes=7), "malformed_body", None),
    "two versions": (b'{"protocol_version":"x","protocol_version":7}', "malformed_version", "unknown"),
    "no JSON": (b"{", "malformed_body", None),
    "no object": (b"[]", "malformed_body", None),
    "nothing": (b"", "malformed_body", None),
    "not a number": (b'{"protocol_version": NaN}', "malformed_body", None),
    "another encoding": (b'{"protocol_version": "\xff"}', "malformed_body", None),
    "a byte order mark": (b"\xef\xbb\xbf{}", "malformed_body", None),
}  # fmt: skip


def refusal(response: httpx.Response) -> dict[str, Any]:
    """What holds of every refusal, as old peers and new ones read it."""
    told: dict[str, Any] = response.json()
    assert len(response.content) <= PROBLEM_BYTES_MAX
    assert "application/problem+json" == response.headers["content-type"]
    assert "none" == response.headers["inbetweenies-version"]
    assert isinstance(told["detail"], str)
    assert {"code", "message"} == set(told["error"])
    if "side" in told:
        assert "Unsupported protocol version" == told["detail"]
        assert response.headers["inbetweenies-registry-revision"] == told["registry_revision"]
        assert response.headers["inbetweenies-supported-versions"] == ", ".join(told["supported"])
    return told


@pytest.mark.parametrize(("body", "served", "source"), SERVED.values(), ids=SERVED)
def test_what_can_be_served_is_served_and_says_in_what(both: Site, body: Any, served: str, source: str | None) -> None:
    response = both.ask(body)
    told = response.json().get("negotiation")

    assert (200, served) == (response.status_code, response.headers["inbetweenies-version"])
    assert source == (told and told["source"])
    if told is not None:
        assert (body["protocol_version"], served, [V2, V1]) == (told["requested"], told["served"], told["supported"])
        assert served == response.json()["protocol_version"]


@pytest.mark.parametrize(("body", "code", "side"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_served_is_refused_and_changes_nothing(
    both: Site, body: Any, code: str, side: str | None
) -> None:
    before = both.seq()
    response = both.ask(body)
    told = refusal(response)

    assert (400, code, side, before) == (response.status_code, told["code"], told.get("side"), both.seq())
    assert "x" * 65 not in response.text
    if side is not None:
        assert [V2, V1] == told["supported"]


@pytest.mark.parametrize(
    ("body", "headers", "outcome"),
    [
        (READ, {"inbetweenies_version": V2}, V2),
        (READ, {"inbetweenies_version": V1}, "version_conflict"),
        (READ, {"inbetweenies_version": V7}, "version_conflict"),
        (READ, {"inbetweenies_version": ""}, "malformed_version"),
        (READ, {"inbetweenies_version": "x" * 65}, "malformed_version"),
        (READ, {"inbetweenies_version": f"{V2}, {V2}"}, "version_conflict"),
        (nameless(READ), {"inbetweenies_version": V2}, V2),
        (nameless(READ), {"inbetweenies_version": V7}, V1),
        (named(None), {"inbetweenies_version": V2}, "malformed_version"),
        (named(V7), {"inbetweenies_accept_versions": f"{V7}, {V2}"}, V2),
        (named(V7), {"inbetweenies_accept_versions": V8}, "no_common_version"),
        (named(V7), {"inbetweenies_accept_versions": ""}, "malformed_version"),
        (named(V7, **offering(V1)), {"inbetweenies_accept_versions": V2}, V1),
    ],
)
def test_headers_say_what_the_body_does_not_and_never_anything_else(
    both: Site, body: Any, headers: dict[str, str], outcome: str
) -> None:
    response = both.ask(body, **headers)
    code = refusal(response)["code"] if response.status_code == 400 else response.headers["inbetweenies-version"]

    assert outcome == code


def test_a_version_that_is_off_is_never_read_as_another_one(rolled_back: Site) -> None:
    before = rolled_back.seq()
    bodies = {
        "read": READ,
        "push": PUSH,
        "a v1 push": named(V2, V1_PUSH),
        "push with an offer": named(V2, PUSH, **offering(V2, V1)),
        "read with another offer": named(V2, **offering(V2, V7)),
    }
    told = {what: refusal(rolled_back.ask(body)) for what, body in bodies.items()}
    served = rolled_back.ask(named(V2, **offering(V2, V1)))

    assert {"version_disabled"} == {one["code"] for one in told.values()}
    assert {"server"} == {one["side"] for what, one in told.items() if what != "push with an offer"}
    assert (200, V1, "offer") == (
        served.status_code,
        served.headers["inbetweenies-version"],
        served.json()["negotiation"]["source"],
    )
    assert before == rolled_back.seq()


def test_a_version_past_its_sunset_is_gone_and_nothing_falls_back_to_it(only_v2: Site) -> None:
    by_name, missing, unknown, offered = (
        only_v2.ask(body) for body in (named(V1), V1_PUSH, named(V7), named(V1, **offering(V1, V2)))
    )

    assert (410, "version_retired", "client", "never") == (
        by_name.status_code,
        *(refusal(by_name)[key] for key in ("code", "side", "retry")),
    )
    assert ["version_required", "unsupported_version", "version_retired"] == [
        refusal(one)["code"] for one in (missing, unknown, offered)
    ]
    assert 0 == only_v2.seq()


def test_a_client_pinned_to_what_is_not_there_is_told_who_must_be_updated(only_v2: Site) -> None:
    told = refusal(only_v2.ask(named(V7, **offering(V7))))

    assert ("no_common_version", "server", [V2], "renegotiate") == tuple(
        told[key] for key in ("code", "side", "supported", "retry")
    )


def test_every_odd_version_that_was_seen_is_served_in_v1_or_refused(both: Site, shared_data: Path) -> None:
    for version in json.loads((shared_data / "hostile" / "protocol_versions.json").read_text()):
        response = both.ask(named(version))
        plain = isinstance(version, str) and 1 <= len(version) <= 64 and version.isascii() and version.isprintable()

        assert (200 if plain else 400) == response.status_code, version
        if not plain:
            assert "malformed_version" == refusal(response)["code"]
