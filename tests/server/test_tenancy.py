"""Two tenants on one server: nothing of one shows in any answer to the other, errors included (PROTOCOL 7.1).

The proof is by twins. One server is used by Bob alone; another by Bob, doing the same, and by Alice, who does what she
likes in between, with the same ids, the same row versions and the same device name. Bob's two transcripts must be equal
to the byte: status, headers and body. Two things are not compared, because they are random by design: the request id,
in a header, and nothing else. All other randomness is an argument here: both graphs even get the same epoch, so that
cursors of one would pass for cursors of the other if anything confused them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from inbetweenies.asgi import App, app
from inbetweenies.auth import MemoryTokens, Principal, SqliteTokens
from inbetweenies.limits import Limits
from inbetweenies.model import Context, make_version
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import MemoryStore, SqliteStore
from tests.server.calls import SYNC, Response, edge, entity, request, sync, write

NOW = 1_781_516_462_000_000
SECOND = 1_000_000
EPOCH = "ab" * 8
IDS = ["lamp", "room", "a/b"]
#: Small bounds, so that a few small requests reach them.
LIMITS = Limits(body_bytes_max=20_000, entity_bytes_max=2_000, page_rows_max=2, changes_max=5)

Op = tuple[Any, ...]
#: Who does something, and what.
Step = tuple[str, Op]


class World:
    """One server, its clock, and what each of its users has seen so far."""

    def __init__(self, folder: Path | None, users: str) -> None:
        self.now = NOW
        clock: Callable[[], int] = lambda: self.now  # noqa: E731
        seeds = iter(range(1, 1000))
        random: Callable[[int], bytes] = lambda size: bytes([next(seeds) % 256] * size)  # noqa: E731
        self.store: MemoryStore | SqliteStore
        self.tokens: MemoryTokens | SqliteTokens
        if folder is None:
            self.store = MemoryStore(lambda: EPOCH)
            self.tokens = MemoryTokens(clock=clock, random=random)
        else:
            self.store = SqliteStore(folder / "home.db", epochs=lambda: EPOCH)
            self.tokens = SqliteTokens(folder / "home.db", clock=clock, random=random)
        self.app: App = app(
            router=ProtocolFallback(self.store, clock=clock, limits=LIMITS),
            tokens=self.tokens,
            admin_password="sésame",
            admin_graph="alice",
            blocking=False,
            monotonic=lambda: self.now / SECOND,
        )
        self.bearers: dict[str, str] = {}
        self.cursors: dict[str, str | None] = {}
        self.heads: dict[tuple[str, str], str] = {}
        for user in users:
            self.bearers[user], _ = self.tokens.create({"a": "alice", "b": "bob"}[user], "same", "same")
            self.cursors[user] = None

    async def close(self) -> None:
        await self.store.close()
        if isinstance(self.tokens, SqliteTokens):
            self.tokens.close()

    async def do(self, user: str, op: Op) -> Response:
        kind, *arguments = op
        method, path, body = getattr(self, f"_{kind}")(user, *arguments)
        response = await request(
            self.app,
            method,
            path,
            body,
            token=None if kind == "stranger" else self.bearers[user],
            client=(f"192.0.2.{ord(user)}", 1),
        )
        assert response is not None
        if kind in {"pull", "push"} and response.status == 200:
            self.cursors[user] = response.json["cursor"]
        return response

    # Each makes a request out of an operation, and of what this user has seen.

    def _push(self, user: str, changes: list[Any], modern: bool) -> tuple[str, str, Any]:
        made = []
        for id_, seconds, follow, content, with_edge, change_type in changes:
            version = make_version(NOW + seconds * SECOND, 0, "same")
            parents = [self.heads[user, id_]] if follow and (user, id_) in self.heads else []
            row = entity(id_, version, content=content, parent_versions=parents)
            edges = [edge(f"e-{id_}", row, entity(with_edge, version))] if with_edge else []
            made.append(write(row, *edges, change_type=change_type))
            self.heads[user, id_] = version
        features = {"features": ["paging"]} if modern else {}
        return "POST", SYNC, sync(*made, sync_type="delta", **features)

    def _pull(self, user: str, how: str) -> tuple[str, str, Any]:
        asked: dict[str, dict[str, Any]] = {
            "full": {},
            "delta": {"sync_type": "delta"},
            "since": {"sync_type": "delta", "filters": {"since": (NOW + 2 * SECOND) / SECOND}},
            "cursor": {"sync_type": "delta", "cursor": self.cursors[user], "features": ["paging", "digest"]},
            "forged": {"sync_type": "delta", "cursor": f"{EPOCH}:1:{'0' * 32}", "features": ["paging"]},
            "bare": {"sync_type": "delta", "cursor": "1"},
            "types": {"sync_type": "delta", "filters": {"entity_types": ["device"], "modified_by": ["ann"]}},
        }
        return "POST", SYNC, sync(**asked[how])

    def _v1(self, _: str, what: str, id_: str) -> tuple[str, str, Any]:
        record = {"id": id_, "name": "v1", "is_primary": True, "updated_at": "2026-06-15T09:41:05.000000"}
        bodies: dict[str, Any] = {
            "request": {"type": "sync_request", "client_id": "same", "last_sync": None, "entity_types": ["homes"]},
            "push": {
                "type": "sync_push",
                "client_id": "same",
                "changes": [
                    {
                        "entity_type": "home",
                        "entity_id": id_,
                        "operation": "update",
                        "data": record,
                        "client_sync_id": "c1",
                    }
                ],
            },
            "ack": {"type": "sync_ack", "client_id": "same", "sync_completed_at": "2026-06-15T09:41:05"},
        }
        return "POST", SYNC + what, bodies[what]

    def _read(self, _: str, path: str) -> tuple[str, str, Any]:
        return "GET", path, None

    def _junk(self, _: str, body: bytes) -> tuple[str, str, Any]:
        return "POST", SYNC, body

    def _version(self, _: str, name: str) -> tuple[str, str, Any]:
        return "POST", SYNC, sync() | {"protocol_version": name}

    def _stranger(self, _: str, password: str) -> tuple[str, str, Any]:
        return "POST", "/api/v1/auth/admin/login", {"password": password}


ids = st.sampled_from(IDS)
contents = st.sampled_from([{}, {"on": True}, {"on": False, "level": 3}, {"deleted": True}, {"x": "y" * 3000}])
changes = st.tuples(
    ids,
    st.integers(0, 8),
    st.booleans(),
    contents,
    st.none() | ids,
    st.sampled_from(["create", "update", "delete"]),
)
paths = st.sampled_from(
    [
        "/api/v1/sync/status?device_id=same",
        "/api/v1/sync/conflicts",
        "/api/v1/graph/relationships",
        "/api/v1/graph/entities/nothing/versions",
        "/api/v1/auth/me",
        "/api/version",
        "/nowhere",
        *(f"/api/v1/graph/entities/{id_}/versions" for id_ in IDS),
    ]
)
ops = st.one_of(
    st.tuples(st.just("push"), st.lists(changes, min_size=1, max_size=3), st.booleans()),
    st.tuples(st.just("push"), st.lists(changes, min_size=1, max_size=7), st.booleans()),
    st.tuples(st.just("pull"), st.sampled_from(["full", "delta", "since", "cursor", "forged", "bare", "types"])),
    st.tuples(st.just("read"), paths),
    st.tuples(st.just("v1"), st.sampled_from(["request", "push", "ack"]), ids),
    st.tuples(st.just("junk"), st.binary(max_size=20) | st.just(b" " * 20_001)),
    st.tuples(st.just("version"), st.sampled_from(["inbetweenies-v1", "inbetweenies-v7", "", "é"])),
    st.tuples(st.just("stranger"), st.just("wrong")),
)
steps = st.lists(st.tuples(st.sampled_from("ab"), ops), min_size=2, max_size=14)


async def transcript(folder: Path | None, users: str, doing: list[Step]) -> list[Any]:
    """Everything that Bob was answered, in a world with these users."""
    world = World(folder, users)
    told = []
    try:
        for user, op in doing:
            if user not in users:
                continue
            if user == "b":
                # Time is Bob's, so that it is the same with and without Alice.
                world.now += SECOND
            response = await world.do(user, op)
            if user == "b":
                headers = dict(response.headers)
                assert len(headers.pop("inbetweenies-request-id")) == 16
                told.append((op, response.status, headers, response.body))
    finally:
        await world.close()
    return told


async def twins(doing: list[Step], *, in_files: bool) -> list[Any]:
    """Bob's transcript, which is the same with and without Alice."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        alone = await transcript(Path(one) if in_files else None, "b", doing)
        beside = await transcript(Path(other) if in_files else None, "ba", doing)

    assert alone == beside
    return alone


@given(steps)
async def test_bob_cannot_tell_whether_alice_exists(doing: list[Step]) -> None:
    for op, status, *_ in await twins(doing, in_files=False):
        event(f"bob: {op[0]} {status}")


# Four commits to a disk for one in memory.
@settings(max_examples=max(settings.default.max_examples // 4, 1) if settings.default else 25)
@given(steps)
async def test_bob_cannot_tell_whether_alice_exists_in_the_same_file(doing: list[Step]) -> None:
    await twins(doing, in_files=True)


LAMP: Op = ("lamp", 1, False, {"on": True}, None, "create")
ROOM: Op = ("room", 2, False, {}, "lamp", "update")
STORY: list[Step] = [
    ("a", ("push", [LAMP, ROOM], True)),
    ("b", ("pull", "full")),
    ("b", ("push", [LAMP], False)),
    ("a", ("push", [("lamp", 3, True, {"deleted": True}, None, "delete")], True)),
    ("b", ("push", [("lamp", 2, False, {"on": False}, "room", "update")], True)),
    ("b", ("read", "/api/v1/graph/entities/room/versions")),
    ("a", ("stranger", "wrong")),
    ("b", ("read", "/api/v1/graph/relationships")),
    ("a", ("v1", "push", "house")),
    ("b", ("v1", "request", "lamp")),
    ("b", ("pull", "cursor")),
    ("a", ("push", [("room", 5, True, {"level": 3}, None, "update")], True)),
    ("b", ("pull", "cursor")),
    ("b", ("pull", "bare")),
    ("b", ("read", "/api/v1/sync/status?device_id=same")),
    ("b", ("push", [("room", 2, False, {}, "lamp", "update")], False)),
    ("b", ("pull", "since")),
]


@pytest.mark.parametrize("in_files", [False, True])
async def test_bob_cannot_tell_whether_alice_exists_in_a_story_in_which_they_collide(in_files: bool) -> None:
    await twins(STORY, in_files=in_files)


async def test_the_story_collides_if_both_are_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twins would see it: with one graph for both, the transcripts differ."""
    monkeypatch.setattr("inbetweenies.auth.Principal.context", _shared)

    with pytest.raises(AssertionError):
        await twins(STORY, in_files=False)


def _shared(principal: Principal, now: int) -> Context:
    return Context(graph="one", user=principal.user, device=principal.device, token=principal.token_id, now=now)


async def test_each_tenant_sees_what_is_its_own() -> None:
    world = World(None, "ba")
    for user in "ab":
        row = (IDS[0], ord(user), False, {"of": user}, None, "create")
        assert (await world.do(user, ("push", [row], False))).json["applied"] == [IDS[0]]

    for user in "ab":
        [change] = (await world.do(user, ("pull", "full"))).json["changes"]
        assert change["entity"]["content"] == {"of": user}
        history = (await world.do(user, ("read", f"/api/v1/graph/entities/{IDS[0]}/versions"))).json
        assert history["count"] == 1
    await world.close()
