"""Deciding what was left to a person, on a replica: with a server, without one, and what that means to everybody."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blowing_off import BadAnswer, BlowingOffClient, Contested, LocalStore, NotFound, NotStorable, Unreachable, review
from blowing_off.transport import Refused
from inbetweenies.asgi import App, app
from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.merge import FOR_REVIEW, Policy, manual
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import MemoryStore
from tests.server.calls import request
from tests.support import NOW, SECOND


class House:
    """An application behind a transport, the clock of everybody, and their replicas."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.now = NOW
        self.away = False
        self.stack = stack
        self.asked: list[str] = []
        policy = Policy(rules={"note": manual})
        router = ProtocolFallback(MemoryStore(), clock=lambda: self.now, policy=policy)
        self.app: App = app(router=router, auth=False)

    async def post(self, path: str, body: bytes) -> bytes:
        return await self._ask("POST", path, body)

    async def get(self, path: str) -> bytes:
        return await self._ask("GET", path, b"")

    async def _ask(self, method: str, path: str, body: bytes) -> bytes:
        if self.away:
            raise Unreachable("nobody answers")
        self.asked.append(path)
        response = await request(self.app, method, path, body)
        assert response is not None
        if response.status != 200:
            raise Refused(status=response.status, code=response.json["code"], where=f"{method} {path}")
        return response.body

    async def client(self, user: str) -> BlowingOffClient:
        client = BlowingOffClient(":memory:", user=user, device=user, transport=self, clock=self.tick)
        return await self.stack.enter_async_context(client)

    def tick(self) -> int:
        self.now += SECOND
        return self.now


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(stack)


async def contest(house: House) -> tuple[BlowingOffClient, BlowingOffClient, str]:
    """Ann's change stands, Bob's waits."""
    ann, bob = await house.client("ann"), await house.client("bob")
    note = await ann.add("note", "Plan", {"a": 1, "b": 1, "c": {"d": 1}})
    for one in (ann, bob):
        await one.sync()
    await ann.change(note.id, patch={"a": 2, "c": {"d": 2}})
    await bob.change(note.id, patch={"a": 3, "b": 3})
    await ann.sync()
    assert [FOR_REVIEW] == [lost.resolution_strategy for lost in (await bob.sync()).conflicts]
    return ann, bob, note.id


async def seen(client: BlowingOffClient, id_: str) -> Any:
    entity = await client.get(id_)
    assert entity is not None
    return msgspec.json.decode(entity.content)


MINE = {"a": 2, "b": 1, "c": {"d": 2}}
THEIRS = {"a": 3, "b": 3, "c": {"d": 1}}
DECISIONS: list[tuple[dict[str, Any], Any]] = [
    ({"take": "mine"}, MINE),
    ({"take": "theirs"}, THEIRS),
    ({"take": "merge", "patch": {"a": 5}}, {"a": 5, "b": 3, "c": {"d": 2}}),
    ({"take": "merge", "patch": {"a": None}}, {"b": 3, "c": {"d": 2}}),
    ({"take": "mine", "patch": {"c": {"d": 7}}}, MINE | {"c": {"d": 7}}),
    ({"take": "theirs", "patch": {"z": 0}}, THEIRS | {"z": 0}),
    ({"take": "merge", "content": {"x": 1}}, {"x": 1}),
]


@pytest.mark.parametrize(("decision", "says"), DECISIONS)
@pytest.mark.parametrize("offline", [False, True])
async def test_what_anybody_decides_reaches_everybody(
    house: House, decision: dict[str, Any], says: Any, offline: bool
) -> None:
    ann, bob, id_ = await contest(house)
    for decider in (ann, bob):
        [entry] = await decider.review()
        assert (MINE, THEIRS) == tuple(msgspec.json.decode(side.content) for side in (entry.mine, entry.theirs))
        assert entry.base is not None
    house.away = offline
    [entry] = await ann.review()
    row = await ann.settle(entry.id, **decision)

    assert says == await seen(ann, id_)
    assert {entry.mine.version, entry.theirs.version} == set(row.parent_versions)
    assert [] == await ann.review()
    house.away = False
    reports = [await one.sync() for one in (ann, bob)]
    assert [True, True] == [report.equal for report in reports]
    assert not any(report.conflicts for report in reports)
    assert says == await seen(bob, id_)
    assert [[], []] == [await one.review() for one in (ann, bob)]


async def test_who_was_told_of_a_conflict_need_not_ask_for_it(house: House) -> None:
    _, bob, id_ = await contest(house)
    house.away = True
    [entry] = await bob.review()
    offline = entry
    house.away = False
    [told] = await bob.review()

    assert (told.id, told.mine, told.theirs, told.base) == (offline.id, offline.mine, offline.theirs, offline.base)
    house.away = True
    await bob.settle(id_, "merge", patch={"a": 9})
    assert {"a": 9, "b": 3, "c": {"d": 2}} == await seen(bob, id_)
    assert [] == await bob.review()


async def test_what_was_changed_here_since_is_what_stands(house: House) -> None:
    ann, bob, id_ = await contest(house)
    await ann.review()
    house.away = True
    await ann.change(id_, patch={"new": 1})
    await ann.settle(id_, "mine")
    house.away = False
    await ann.sync()
    await bob.sync()

    assert MINE | {"new": 1} == await seen(bob, id_)
    assert [] == await bob.review()


async def test_who_was_away_undoes_nothing_that_is_listed(house: House) -> None:
    """The list says what stands; the replica still holds what stood before."""
    ann, bob, id_ = await contest(house)
    carl = await house.client("carl")
    await carl.sync()
    await ann.change(id_, patch={"later": 1})
    await ann.sync()
    [entry] = await carl.review()
    house.away = True
    await carl.settle(entry.id, "mine")
    house.away = False

    assert not (await carl.sync()).conflicts
    await bob.sync()
    assert MINE | {"later": 1} == await seen(bob, id_)


async def test_what_changed_meanwhile_waits_once_more(house: House) -> None:
    ann, bob, id_ = await contest(house)
    await bob.review()
    house.away = True
    await bob.settle(id_, "theirs")
    house.away = False
    await ann.change(id_, patch={"later": 1})
    await ann.sync()
    await bob.sync()

    assert MINE | {"later": 1} == await seen(bob, id_)
    [entry] = await ann.review()
    assert THEIRS == msgspec.json.decode(entry.theirs.content)


async def test_of_a_merge_all_that_both_changed_must_be_said(house: House) -> None:
    ann, _, id_ = await contest(house)
    await ann.review()
    with pytest.raises(Contested) as caught:
        await ann.settle(id_, "merge", patch={"b": 5}, name="Other")

    assert ("/content/a",) == caught.value.pointers
    assert MINE == await seen(ann, id_)


async def test_without_a_common_row_all_that_differs_must_be_said(house: House) -> None:
    ann, bob = await house.client("ann"), await house.client("bob")
    for one in (ann, bob):
        await one.add("note", one.state.user, {"by": one.state.user}, id="n")
        await one.sync()
    await ann.review()
    with pytest.raises(Contested) as caught:
        await ann.settle("n", "merge")

    assert ("/content", "/name") == caught.value.pointers
    await ann.settle("n", "merge", content={"by": "both"}, name="Both")
    assert {"by": "both"} == await seen(ann, "n")


async def test_of_a_deleted_one_it_must_be_said_whether_it_stays_so(house: House) -> None:
    ann, bob = await house.client("ann"), await house.client("bob")
    await ann.add("note", "Plan", {"a": 1}, id="n")
    for one in (ann, bob):
        await one.sync()
    await ann.delete("n")
    await bob.change("n", patch={"a": 2})
    for one in (ann, bob):
        await one.sync()
    await ann.review()
    with pytest.raises(Contested) as caught:
        await ann.settle("n", "merge")

    assert ("/content/deleted",) == caught.value.pointers
    await ann.settle("n", "merge", patch={"deleted": None})
    assert {"a": 2} == await seen(ann, "n")


@pytest.mark.parametrize(
    ("id_", "fields", "error"),
    [
        ("", {}, NotFound),
        ("nothing", {}, NotFound),
        (None, {"content": {"a": float("nan")}}, NotStorable),
        (None, {"content": {}, "patch": {}}, LocalProtocolError),
    ],
)
async def test_what_cannot_be_done_changes_nothing(house: House, id_: str | None, fields: Any, error: Any) -> None:
    ann, _, note = await contest(house)
    await ann.review()
    with pytest.raises(error):
        await ann.settle(note if id_ is None else id_, **fields)

    assert MINE == await seen(ann, note)
    assert 1 == len(await ann.review())


async def test_pages_are_read_to_their_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from inbetweenies import review as queue

    ann, bob = await house.client("ann"), await house.client("bob")
    for one in (ann, bob):
        for number in range(5):
            await one.add("note", one.state.user, id=f"n{number}")
        await one.sync()
    monkeypatch.setattr(queue, "ENTRIES_MAX", 2)

    assert [f"n{number}" for number in range(5)] == [entry.entity_id for entry in await ann.review()]


class Says:
    """A server that answers every look at the queue the same."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def post(self, path: str, body: bytes) -> bytes:
        raise Unreachable("nobody answers")

    async def get(self, path: str) -> bytes:
        return self.body


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"conflicts":[{"id":1}]}', b'{"conflicts":[{"id":"x"}]}'])
async def test_an_answer_that_is_no_list_is_told(body: bytes) -> None:
    async with BlowingOffClient(":memory:", transport=Says(body)) as client:
        with pytest.raises(BadAnswer):
            await client.review()


async def test_a_server_that_never_ends_is_asked_no_more() -> None:
    async with BlowingOffClient(":memory:", transport=Says(b'{"conflicts":[],"next":"1.1.note"}')) as client:
        assert [] == await client.review()


async def test_a_list_that_was_damaged_is_told(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "home.db")
    store.keep(review="nonsense")

    with pytest.raises(StoreCorrupt):
        review.kept(store)
    store.close()


async def test_resolving_where_the_thing_is_not_held_works_from_the_list(house: House) -> None:
    _, bob, id_ = await contest(house)
    carl = await house.client("carl")
    [entry] = await carl.review()
    await carl.settle(entry.id, "theirs")
    await carl.sync()
    await bob.sync()

    assert THEIRS == await seen(bob, id_)
