"""What HTTP tells of wire versions (PROTOCOL 5.10 to 5.12): discovery, headers of every answer, and what is decided
while the server runs."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from inbetweenies.asgi import ServerLimits, app, release
from inbetweenies.census import entries_in
from inbetweenies.errors import LocalProtocolError, StoreBusy
from inbetweenies.limits import Limits
from inbetweenies.model import Document
from inbetweenies.registry import Decision, Decisions, Notice, State, document_of
from inbetweenies.rollout.orders import DOCUMENTS
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import MemoryStore, SqliteStore
from tests.rollout.made import begun, keep, move
from tests.server.calls import SYNC, V2, Response, entity, request, running, sync, write
from tests.server.test_asgi import AUTHENTICATED, NOW, OPEN, Site
from tests.support import run

V1 = "inbetweenies-v1"
DAY = 24 * 3600 * 1_000_000
ADDRESSES = ["/api/version", "/versions", "/.well-known/inbetweenies"]


def decide(site: Site, name: str, state: State = "deployed", notice: Notice | None = None) -> None:
    """What another process would do."""
    store = site.router.store
    known = run(store.document("registry"))
    body = document_of(Decisions(versions={name: Decision(state=state, notice=notice)}))
    assert run(store.put_document("registry", body, revision=known.revision))


@pytest.fixture
def site() -> Site:
    return Site()


# --- the document -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ADDRESSES)
async def test_discovery_needs_no_token_and_tells_all_there_is(path: str) -> None:
    site = Site(min_client_version="1.0.0", latest_client_version="1.2.0", server_version="3.1.0")
    decide(site, V1, notice=Notice(since=NOW, sunset=NOW + 365 * DAY, successor=V2, link="https://example.org/v1"))

    told = (await site.ask("GET", path, token=None)).json

    assert {
        "service": "inbetweenies",
        "server": {"name": "inbetweenies", "version": "3.1.0"},
        "server_version": "3.1.0",
        "min_client_version": "1.0.0",
        "latest_client_version": "1.2.0",
        "registry_revision": site.router.registry.revision,
        "default_version": V1,
        "preferred_version": V2,
        "min_version": V1,
        "max_version": V2,
        "supported_versions": [V2, V1],
        "versions": [
            {"id": V2, "status": "current"},
            {
                "id": V1,
                "status": "deprecated",
                "deprecated_at": "2026-06-15T09:41:02Z",
                "sunset_at": "2027-06-15T09:41:02Z",
                "successor": V2,
                "docs": "https://example.org/v1",
            },
        ],
        "features": ["acks", "digest", "edges", "notices", "paging", "witness"],
        "experimental": {},
        "limits": {
            "max_body_bytes": Limits().body_bytes_max,
            "max_changes": Limits().changes_max,
            **{name: getattr(Limits(), name) for name in Limits.__struct_fields__},
        },
        "docs": None,
    } == told


async def test_what_is_not_set_is_null(site: Site) -> None:
    told = (await site.ask("GET", "/api/version", token=None)).json

    assert (release(), None, None) == tuple(
        told[name] for name in ("server_version", "min_client_version", "latest_client_version")
    )


@pytest.mark.parametrize("name", ["server_version", "min_client_version", "latest_client_version"])
@pytest.mark.parametrize("value", ["é", "x" * 65, "1\r\n2"])
def test_a_release_that_is_no_word_is_refused_at_the_start(name: str, value: str) -> None:
    releases: Any = {name: value}
    with pytest.raises(LocalProtocolError, match=name):
        app(**releases)


async def test_discovery_never_looks_at_the_version_of_its_caller(site: Site) -> None:
    plain = await site.ask("GET", "/api/version", token=None)
    for header in ("inbetweenies-v99", "", "\xff", "x" * 100):
        odd = await site.ask(
            "GET",
            "/api/version",
            token=None,
            headers=[("inbetweenies-version", header), ("inbetweenies-accept-versions", header)],
        )
        assert (200, plain.body) == (odd.status, odd.body)


async def test_discovery_may_be_cached_and_asked_again_for_nothing(site: Site) -> None:
    first = await site.ask("GET", "/api/version", token=None)
    tag = first.headers["etag"]
    same = await site.ask("GET", "/api/version", token=None, headers=[("if-none-match", f'"x", W/{tag}')])
    decide(site, V2, "disabled")
    site.seconds += 1
    other = await site.ask("GET", "/api/version", token=None, headers=[("if-none-match", tag)])

    assert ("max-age=60", "*") == (first.headers["cache-control"], first.headers["access-control-allow-origin"])
    assert (304, b"", tag) == (same.status, same.body, same.headers["etag"])
    assert (200, [V1]) == (other.status, other.json["supported_versions"])
    assert tag != other.headers["etag"]


async def test_each_state_is_told_by_its_name(site: Site) -> None:
    found = {}
    for state in get_args(State):
        decide(site, V2, state)
        site.seconds += 1
        told = (await site.ask("GET", "/api/version", token=None)).json
        found[state] = (told["supported_versions"], [(one["id"], one["status"]) for one in told["versions"]])

    assert {
        "deployed": ([V2, V1], [(V2, "current"), (V1, "supported")]),
        "offered": ([V1, V2], [(V1, "current"), (V2, "supported")]),
        "accepted": ([V1], [(V1, "current"), (V2, "deprecated")]),
        "disabled": ([V1], [(V1, "current"), (V2, "disabled")]),
        "retired": ([V1], [(V1, "current"), (V2, "retired")]),
    } == found


async def test_a_server_that_offers_nothing_says_so(site: Site) -> None:
    site.router.handlers.pop(V1)
    decide(site, V2, "accepted")

    told = (await request(site.app, "GET", "/api/version")).json  # type: ignore[union-attr]

    assert ([], None, None, None) == (
        told["supported_versions"],
        told["preferred_version"],
        told["min_version"],
        told["default_version"],
    )


# --- headers ------------------------------------------------------------------------------------------------------


def versions_of(response: Response) -> tuple[str, ...]:
    return tuple(
        response.headers[name]
        for name in (
            "inbetweenies-version",
            "inbetweenies-supported-versions",
            "inbetweenies-registry-revision",
            "vary",
        )
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in [*OPEN, *ADDRESSES]),
        *AUTHENTICATED,
        ("GET", "/nowhere"),
        ("DELETE", "/health"),
        ("GET", "/api/v1/sync/"),
    ],
)
@pytest.mark.parametrize("token", [True, False])
async def test_every_answer_tells_what_is_served(site: Site, method: str, path: str, token: bool) -> None:
    response = await site.ask(method, path, token=site.token if token else None)

    exposed = response.headers["access-control-expose-headers"].split(", ")
    assert (
        V1 if path == "/api/v1/sync/ack" and response.status == 200 else "none",
        f"{V2}, {V1}",
        site.router.registry.revision,
        "Inbetweenies-Version, Inbetweenies-Accept-Versions",
    ) == versions_of(response)
    assert {
        "Inbetweenies-Version",
        "Inbetweenies-Supported-Versions",
        "Inbetweenies-Registry-Revision",
        "Deprecation",
        "Sunset",
        "Link",
    } <= set(exposed)


async def test_a_sync_tells_the_version_it_was_served_in(site: Site) -> None:
    in_v2 = await site.ask("POST", SYNC, sync())
    in_v1 = await site.ask("POST", SYNC, {**sync(), "protocol_version": "inbetweenies-v7"})

    assert (V2, V1) == (in_v2.headers["inbetweenies-version"], in_v1.headers["inbetweenies-version"])
    assert not {"deprecation", "sunset", "link"} & set(in_v2.headers)


@pytest.mark.parametrize(
    "raw",
    [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"a" * 40_000 + b"\r\n\r\n"],
    ids=["no HTTP", "large headers"],
)
def test_even_what_is_refused_before_it_is_a_request_tells_what_is_served(raw: bytes) -> None:
    code = "from inbetweenies.asgi import app, run; run(app(auth=False), port=0)"
    with running(["-c", code]) as server:
        head, _, _ = server.exchange(raw).partition(b"\r\n\r\n")
        asked = httpx.get(f"{server.url}/health", trust_env=False)
    told = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])

    for name in ("vary", "access-control-expose-headers", "inbetweenies-supported-versions", "inbetweenies-version"):
        assert asked.headers[name] == told[name]
    assert asked.headers["inbetweenies-registry-revision"] == told["inbetweenies-registry-revision"]


async def test_a_deprecated_version_says_so_with_each_answer_in_it(site: Site) -> None:
    decide(site, V1, notice=Notice(since=NOW, sunset=NOW + DAY, successor=V2, link="https://example.org/v1"))
    in_v1 = await site.ask("POST", "/api/v1/sync/request", {"client_id": "c"})
    in_v2 = await site.ask("POST", SYNC, sync())

    assert f"@{NOW // 1_000_000}" == in_v1.headers["deprecation"]
    assert (NOW + DAY) // 1_000_000 == parsedate_to_datetime(in_v1.headers["sunset"]).timestamp()
    assert (
        '<https://example.org/v1>; rel="deprecation", <https://example.org/v1>; rel="sunset", '
        '<urn:inbetweenies:version:inbetweenies-v2>; rel="successor-version"'
    ) == in_v1.headers["link"]
    assert not {"deprecation", "sunset", "link"} & set(in_v2.headers)


async def test_a_notice_tells_only_what_was_decided(site: Site) -> None:
    decide(site, V1, notice=Notice(since=NOW))
    bare = await site.ask("POST", "/api/v1/sync/request", {"client_id": "c"})
    decide(site, V1, notice=Notice(since=NOW, sunset=NOW))
    ending = await site.ask("POST", "/api/v1/sync/request", {"client_id": "c"})

    assert {"deprecation"} == {"deprecation", "sunset", "link"} & set(bare.headers)
    assert {"deprecation", "sunset"} == {"deprecation", "sunset", "link"} & set(ending.headers)


async def test_a_retired_version_is_gone_and_says_where_to_go(site: Site) -> None:
    decide(site, V1, "retired", Notice(since=NOW, sunset=NOW, successor=V2))
    response = await site.ask("POST", SYNC, {"protocol_version": V1, "client_id": "c"})

    assert (410, "version_retired") == (response.status, response.json["code"])
    assert "GMT" in response.headers["sunset"]
    assert 'rel="successor-version"' in response.headers["link"]


async def test_a_refusal_can_be_read_by_deployed_peers_of_both_versions() -> None:
    site = Site(router=ProtocolFallback(MemoryStore(), clock=lambda: NOW, docs="https://example.org/compat"))
    response = await site.ask("POST", SYNC, {**sync(), "protocol_version": "inbetweenies-v9", "supported_versions": []})
    told = response.json

    assert "Unsupported protocol version" == told["detail"] == told["error"]["message"]
    assert "PROTOCOL_VERSION_MISMATCH" == told["error"]["code"]
    assert (site.router.registry.revision, "https://example.org/compat") == (told["registry_revision"], told["docs"])


# --- while it runs ------------------------------------------------------------------------------------------------


async def test_what_another_process_decides_holds_for_the_next_sync_and_is_told_within_a_second(site: Site) -> None:
    await site.ask("GET", "/health")
    decide(site, V2, "disabled")
    known = await site.ask("GET", "/health")
    site.seconds += 0.5
    told = await site.ask("GET", "/health")
    refused = await site.ask("POST", SYNC, sync(write(entity("e1", "v1"))))
    decide(site, V2)
    taken = await site.ask("POST", SYNC, sync(write(entity("e1", "v1"))))

    assert f"{V2}, {V1}" == known.headers["inbetweenies-supported-versions"]
    assert V1 == told.headers["inbetweenies-supported-versions"]
    assert (400, "version_disabled", 200) == (refused.status, refused.json["code"], taken.status)


async def test_a_version_switched_off_takes_no_write_however_late_the_news_comes(site: Site) -> None:
    await site.ask("POST", SYNC, sync())
    decide(site, V2, "disabled")
    response = await site.ask("POST", SYNC, sync(write(entity("e1", "v1"))))

    assert (400, "version_disabled") == (response.status, response.json["code"])
    assert f"{V2}, {V1}" != response.headers["inbetweenies-supported-versions"]


class Away(MemoryStore):
    """A store whose documents cannot be read for a while."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error
        self.read = 0

    async def document(self, name: str) -> Document:
        self.read += 1
        if self.error is not None:
            raise self.error
        return await super().document(name)


@pytest.mark.parametrize("error", [StoreBusy("later"), RuntimeError("a defect")])
async def test_a_store_that_cannot_be_read_fails_no_other_request(error: Exception) -> None:
    store = Away(error)
    site = Site(router=ProtocolFallback(store, clock=lambda: NOW))
    health, discovery = await site.ask("GET", "/health"), await site.ask("GET", "/api/version")
    store.error = None
    again = await site.ask("GET", "/api/version")
    store.error = error
    site.seconds += 9
    kept = await site.ask("GET", "/api/version")

    assert [200, 503, 200, 200] == [one.status for one in (health, discovery, again, kept)]


async def test_the_registry_is_looked_at_twice_a_second_at_most() -> None:
    store = Away(None)
    site = Site(router=ProtocolFallback(store, clock=lambda: NOW))
    for _ in range(10):
        await site.ask("GET", "/health")
    site.seconds += 0.49
    await site.ask("GET", "/health")

    assert len(DOCUMENTS) == store.read


async def test_nothing_served_is_found_out_at_the_start() -> None:
    with pytest.raises(LocalProtocolError, match="at least one"):
        app(router=ProtocolFallback(disabled={V1, V2}))
    router = ProtocolFallback(handlers={})
    with pytest.raises(LocalProtocolError, match="at least one"):
        app(router=router)


@pytest.mark.parametrize(("states", "outcome"), [({V1: "disabled", V2: "retired"}, "failed"), ({}, "complete")])
async def test_a_server_whose_store_says_that_nothing_is_served_does_not_start(states: Any, outcome: str) -> None:
    site = Site()
    body = document_of(Decisions(versions={name: Decision(state=state) for name, state in states.items()}))
    assert run(site.router.store.put_document("registry", body, revision=0))
    steps = iter(["lifespan.startup", "lifespan.shutdown"])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": next(steps)}

    async def send(message: Any) -> None:
        sent.append(message)

    await site.app({"type": "lifespan"}, receive, send)

    assert f"lifespan.startup.{outcome}" == sent[0]["type"]


# --- the census ---------------------------------------------------------------------------------------------------


def counted(site: Site) -> dict[tuple[str, str], tuple[int, int, int]]:
    kept = entries_in(run(site.router.store.document("census")))
    return {(entry.version, entry.release): (entry.reads, entry.writes, entry.refused) for entry in kept}


async def test_who_is_new_is_written_down_at_once_and_the_rest_once_a_minute(site: Site) -> None:
    agent = [("user-agent", "blowing-off/1.0.0 (linux)")]
    for _ in range(3):
        await site.ask("POST", SYNC, sync(), headers=agent)
    first = counted(site)
    await site.ask("POST", SYNC, sync(write(entity("e1", "v1"))), headers=agent)
    site.seconds += 60
    await site.ask("GET", "/health")
    later = counted(site)
    await site.ask("POST", "/api/v1/sync/request", {"client_id": "c"})
    last = counted(site)

    assert {(V2, "blowing-off/1.0.0"): (1, 0, 0)} == first
    assert {(V2, "blowing-off/1.0.0"): (3, 1, 0)} == later
    assert {**later, ("missing", "unknown"): (1, 0, 0)} == last


async def test_what_was_counted_is_written_down_at_the_end(site: Site) -> None:
    for _ in range(5):
        await site.ask("POST", SYNC, sync())
    await site.app.close()
    await site.app.close()

    assert {(V2, "unknown"): (5, 0, 0)} == counted(site)


async def test_two_servers_of_one_store_count_together() -> None:
    store = MemoryStore()
    sites = [Site(router=ProtocolFallback(store, clock=lambda: NOW)) for _ in range(2)]
    for site in sites * 3:
        await site.ask("POST", SYNC, sync())
    for site in sites:
        await site.app.close()

    assert {(V2, "unknown"): (6, 0, 0)} == counted(sites[0])


@pytest.mark.parametrize("error", [StoreBusy("later"), RuntimeError("a defect")])
async def test_a_census_that_cannot_be_written_is_kept_and_fails_nobody(error: Exception) -> None:
    store = Away(None)
    site = Site(router=ProtocolFallback(store, clock=lambda: NOW))
    await site.ask("GET", "/health")
    store.error = error
    assert 200 == (await site.ask("POST", SYNC, sync())).status
    store.error = None
    assert {} == counted(site)
    site.seconds += 61
    await site.ask("GET", "/health")

    assert {(V2, "unknown"): (1, 0, 0)} == counted(site)


async def test_peers_that_make_up_names_cost_a_bounded_census(site: Site) -> None:
    for number in range(1200):
        response = await request(
            site.app, "POST", SYNC, sync(), token=site.token, headers=[("user-agent", f"app/{number}")]
        )
        assert response is not None
    await site.app.close()

    found = counted(site)
    assert 51 == len(found)
    assert 1200 == sum(reads for reads, _, _ in found.values())


async def test_who_has_no_token_is_not_counted(site: Site) -> None:
    await site.ask("POST", SYNC, sync(), token=None)
    await site.app.close()

    assert {} == counted(site)


async def test_a_store_in_a_file_is_looked_at_beside_the_event_loop(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "home.db")
    site = Site(router=ProtocolFallback(store, clock=lambda: NOW), bounds=ServerLimits(requests_max=1))
    await site.ask("POST", SYNC, sync())
    decide(site, V2, "disabled")
    site.seconds += 1
    discovery = await site.ask("GET", "/api/version")
    await site.app.close()

    assert [V1] == discovery.json["supported_versions"]
    assert {(V2, "unknown"): (1, 0, 0)} == counted(site)
    run(store.close())


# --- what one graph is offered ------------------------------------------------------------------------------------


async def test_who_asks_with_a_token_is_told_what_its_graph_is_offered(site: Site) -> None:
    keep(site.router.store, begun(V2, "elsewhere"))
    anybody, left_out = await site.ask("GET", "/api/version", token=None), await site.ask("GET", "/api/version")
    keep(site.router.store, begun(V2, "home"))
    site.seconds += 1
    reached = await site.ask("GET", "/api/version")

    assert [[V2, V1], [V1], [V2, V1]] == [one.json["supported_versions"] for one in (anybody, left_out, reached)]
    assert ["max-age=60", "private, max-age=0"] == [one.headers["cache-control"] for one in (anybody, left_out)]
    assert anybody.json["registry_revision"] != left_out.json["registry_revision"]


async def test_every_answer_says_what_the_graph_is_offered(site: Site) -> None:
    keep(site.router.store, begun(V2, "elsewhere"))
    body = sync(supported_versions=[V2, V1])
    left_out = await site.ask("POST", SYNC, body)
    keep(site.router.store, move(begun(V2, "home"), V2, "hold"))
    reached = await site.ask("POST", SYNC, body)
    keep(site.router.store, move(begun(V2, "home"), V2, "roll_back"))
    rolled_back = await site.ask("POST", SYNC, body)

    for answer, told in ((left_out, V1), (reached, f"{V2}, {V1}"), (rolled_back, V1)):
        # Who is in the middle of a sync finishes it, and is told where to go next.
        assert (told, V2) == (answer.headers["inbetweenies-supported-versions"], answer.headers["inbetweenies-version"])
        assert (V1 if told == V1 else None) == answer.json.get("negotiation", {"supported": [None]})["supported"][0]
