"""A store that fails at every step of serving a request, and what the peer is told then (law 1, law 3, law 5).

Every statement, every row bound and every row fetched on the way of each kind of request fails once, in several ways,
under the real application. Whatever fails, the answer is an honest 503 and acknowledges nothing; the file holds what it
held before, or, where the failure was the commit's, all of what was pushed; and the same request again leaves the file
as it would be without the failure, to the last stamp.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from inbetweenies.asgi import app
from inbetweenies.errors import StoreError
from inbetweenies.model import format_time
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import sqlite
from inbetweenies.stores.commits import Commits, Shared
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.wire import v2
from tests.server.calls import SYNC, Response, edge, entity, request, sync, write
from tests.storm.faults import Fault, Faults, planned
from tests.storm.log import dump, lines
from tests.support import NOW, SECOND, at, run

#: How many faults are tried at each step: all codes in all modes, where there is time.
FAULTS_PER_STEP: Final = int(os.environ.get("DEEP_EXAMPLES", "1"))

HOME = entity("home", at(0), entity_type="home")
ROOM = entity("room", at(1), entity_type="room")
LAMP = entity("lamp", at(2), content={"power": "off", "colour": "red"})
OVER = entity("lamp", at(3), content={"power": "on", "colour": "red"}, parent_versions=[LAMP["version"]])
IN_ROOM = edge("in-room", LAMP, ROOM)
IN_HOME = edge("in-home", ROOM, HOME, relationship_type="part_of")
NEW = entity("fan", at(10), content={"speed": 1})
AFTER = entity("lamp", at(11), content={"power": "off"}, parent_versions=[OVER["version"]])


def v1(path: str, **fields: Any) -> tuple[str, dict[str, Any]]:
    return f"/api/v1/sync/{path}", {"client_id": "phone", **fields}


def record(type_: str, id_: str, seconds: int, **data: Any) -> dict[str, Any]:
    told = {"id": id_, "name": id_, "updated_at": format_time(NOW + seconds * SECOND, naive=True), **data}
    return {"entity_type": type_, "entity_id": id_, "operation": "update", "data": told, "client_sync_id": f"s-{id_}"}


MODERN: Final[dict[str, Any]] = {"features": ["acks", "digest", "edges", "paging"], "page_rows": 2}
REQUESTS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "rows, an edge, and a row that follows": (
        SYNC,
        sync(write(NEW, edge("fan-in-room", NEW, ROOM)), write(AFTER, {**IN_ROOM, "properties": {"n": 1}})),
    ),
    "an edit to merge": (
        SYNC,
        sync(
            write(entity("lamp", at(20), content={"power": "off", "colour": "blue"}, parent_versions=[LAMP["version"]]))
        ),
    ),
    "an edit that loses": (SYNC, sync(write(entity("lamp", at(-60), content={"power": "dim"})))),
    "an edit that wins": (SYNC, sync(write(entity("lamp", at(60), content={"power": "dim"})))),
    "other content under a taken version": (SYNC, sync(write({**OVER, "content": {"power": "?"}}))),
    "a delete": (
        SYNC,
        sync(write(entity("room", at(30), parent_versions=[ROOM["version"]]), change_type="delete"), sync_type="delta"),
    ),
    "what is held already": (SYNC, sync(write(OVER), sync_type="delta")),
    "pages and acks": (SYNC, sync(write(NEW, edge("fan-in-room", NEW, ROOM)), write(AFTER), **MODERN)),
    "records": v1(
        "push",
        changes=[
            record("accessory", "plug", 40, home_id="home", manufacturer="Acme"),
            record("room", "room", 41, home_id="home"),
            record("accessory", "lamp", 42, home_id="home", manufacturer="Acme", bridge_id="plug"),
        ],
    ),
    "an ack of records": v1("ack", sync_completed_at="2027-01-01T00:00:00"),
    "a request for records": v1("request", last_sync=None, entity_types=["homes", "rooms", "accessories"]),
    "a pull": (SYNC, sync(sync_type="delta", filters={"since": "2026-01-01T00:00:00"})),
}

PULL: Final = REQUESTS["a pull"]
#: Many pages: where it is that storage fails can then be told apart.
LARGE: Final = (
    SYNC,
    sync(
        write(entity("big", at(50), content={"x": "y" * 50_000})),
        *(write(entity(f"one-of-many-{n}", at(51), content={"n": "x" * 500})) for n in range(40)),
        write(AFTER),
    ),
)


def built(path: Path, *messages: dict[str, Any]) -> Path:
    """A file to which these were sent."""
    store = SqliteStore(path, epochs=lambda: "0e" * 8, journal=False, heads=False)
    router = ProtocolFallback(store, clock=lambda: NOW)
    for message in messages:
        assert "error" not in run(router.handle_sync_request(message))
    run(store.close())
    return path


def home(path: Path) -> Path:
    """A file with a graph in which there is something to follow, to merge with and to lose against."""
    return built(
        path,
        sync(write(HOME), write(ROOM, IN_HOME), write(LAMP, IN_ROOM)),
        sync(write(OVER)),
        v1("request", last_sync=None)[1] | {"type": "sync_request"},
        v1("ack", sync_completed_at="2026-01-01T00:00:00")[1] | {"type": "sync_ack"},
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a file, to be copied."""
    return home(tmp_path_factory.mktemp("base") / "base.db")


class Served:
    """The application over a copy of a file, or over the file that is there, with a clock that stands."""

    def __init__(self, base: Path | None, path: Path, **options: Any) -> None:
        if base is not None:
            shutil.copy(base, path)
        v2._digests.clear()  # or the first of several equal runs would read more than the others
        self.path = path
        bare: dict[str, Any] = {"journal": False, "heads": False}  # one file is put in the place of another here
        self.store = SqliteStore(path, epochs=lambda: "0f" * 8, busy_timeout_ms=1, **(bare | options))
        router = ProtocolFallback(self.store, clock=lambda: NOW + 100 * SECOND)
        self.app = app(router=router, auth=False)

    async def ask(self, path: str, body: dict[str, Any]) -> Response:
        """One request."""
        answer = await request(self.app, "POST", path, body, headers=[("content-type", "application/json")])
        assert answer is not None
        return answer

    async def close(self) -> None:
        """End in order."""
        await self.app.close()
        await self.store.close()


def acked(answer: Response) -> list[Any]:
    """What an answer acknowledges, in any wire version, less what may differ when the same is asked again."""
    body: dict[str, Any] = answer.json
    return [sorted(map(str, body.get(key, ()))) for key in ("applied", "applied_relationships")]


class Sweep:
    """All faults at all steps of one request."""

    def __init__(self, base: Path, folder: Path, faults: Faults) -> None:
        self.base = base
        self.folder = folder
        self.path = folder / "0.db"
        self.faults = faults
        self.tried = self.unknown = 0
        self.steps: list[str] = []
        self.failed: set[str] = set()

    async def watch(self, path: str, body: dict[str, Any]) -> Response:
        """The request in peace: its steps, and what it makes of the file."""
        served = Served(self.base, self.path)
        self.before = stored(self.path)
        self.faults.watch()
        expected = await served.ask(path, body)
        self.steps = list(self.faults.rest())
        await served.close()
        self.after = stored(self.path)
        assert 200 == expected.status, expected.body
        return expected

    async def run(self, path: str, body: dict[str, Any]) -> None:
        """Every fault that is planned."""
        expected = await self.watch(path, body)
        for fault in planned(self.steps, FAULTS_PER_STEP):
            await self.fail(fault, path, body, expected)

    async def fail(self, fault: Fault, path: str, body: dict[str, Any], expected: Response) -> None:
        """One fault, what is told of it, and the same request again."""
        where = f"{fault} at {self.steps[fault.step]!r}"
        # A file of its own: what a broken connection leaves behind must not be taken for its log.
        self.path = self.folder / f"{self.tried}.db"
        served = Served(self.base, self.path)
        fired = self.faults.fired
        self.faults.watch(fault)
        answer = await served.ask(path, body)
        self.faults.rest()
        self.tried += 1
        assert fired + 1 == self.faults.fired, where
        self.failed.add(self.steps[fault.step])
        self.check(fault, answer, expected, where)
        again = await served.ask(path, body)
        assert 200 == again.status, where
        assert acked(expected) == acked(again), where
        assert self.after == stored(self.path), where
        await served.close()
        lines(self.path)
        for file in self.folder.iterdir():
            file.unlink()

    def check(self, fault: Fault, answer: Response, expected: Response, where: str) -> None:
        """All of it and an ack, if what failed was no part of it; else an honest refusal, and nothing by half."""
        left = stored(self.path)
        if answer.status == 200:
            assert self.after == left, where
            assert acked(expected) == acked(answer), where
            return
        assert (503, "application/problem+json") == (answer.status, answer.headers["content-type"]), where
        assert int(answer.headers["retry-after"]) >= 1, where
        assert "unavailable" == answer.json["code"], where
        assert "planted" not in answer.body.decode(), where
        if bare(left) != bare(self.before):
            # It was committed, and the failure was the commit's, or came later and before the answer.
            assert "COMMIT" in self.steps[: fault.step + (fault.when == "after")], where
            assert self.after == left, where
            self.unknown += 1


def stored(path: Path) -> dict[str, list[Any]]:
    """Everything about the graph in a file. What a server notes besides is read and written on its own."""
    return {name: rows for name, rows in dump(path).items() if name != "documents"}


def bare(tables: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Without graphs in which nothing was ever written: they are made when they are first named."""
    return tables | {"graphs": [row for row in tables["graphs"] if row[3] > 0]}


@pytest.mark.parametrize("name", REQUESTS)
def test_whatever_fails_nothing_is_acked_and_the_same_again_succeeds(
    name: str, base: Path, tmp_path: Path, faults: Faults
) -> None:
    sweep = Sweep(base, tmp_path, faults)
    asyncio.run(sweep.run(*REQUESTS[name]))

    print(f"figures: {name}: {len(sweep.steps)} steps, {sweep.tried} faults, {sweep.unknown} kept")
    assert sweep.failed == set(sweep.steps)


def test_whatever_fails_of_the_first_push_of_all_it_is_there_once(tmp_path: Path, faults: Faults) -> None:
    (tmp_path / "copies").mkdir()
    sweep = Sweep(built(tmp_path / "base.db"), tmp_path / "copies", faults)
    asyncio.run(sweep.run(SYNC, sync(write(HOME), write(ROOM, IN_HOME), write(LAMP, IN_ROOM))))

    print(f"figures: the first push of all: {len(sweep.steps)} steps, {sweep.tried} faults, {sweep.unknown} kept")
    assert sweep.failed == set(sweep.steps) > {sqlite._ADD_GRAPH}


def test_every_statement_that_writes_is_among_the_steps(base: Path, tmp_path: Path, faults: Faults) -> None:
    sweep = Sweep(base, tmp_path, faults)
    asyncio.run(sweep.watch(*REQUESTS["rows, an edge, and a row that follows"]))

    writes = {sqlite._INSERT, sqlite._CLOSE, sqlite._SET_HEAD, sqlite._SET_DEVICE, "BEGIN IMMEDIATE", "COMMIT"}
    assert writes < set(sweep.steps)


# --- the sweep bites ----------------------------------------------------------------------------------------------


def commit_in_two(patch: pytest.MonkeyPatch) -> None:
    """Rows are committed before the head that counts them."""
    real = sqlite._Transaction._apply

    def apply(self: Any, writes: Any) -> None:
        real(self, replace(writes, head=None, device=None))
        self._connection.execute("COMMIT")
        self._connection.execute("BEGIN IMMEDIATE")
        real(self, replace(writes, rows=(), closed=()))

    patch.setattr(sqlite._Transaction, "_apply", apply)


def error_swallowed(patch: pytest.MonkeyPatch) -> None:
    """What SQLite could not write is passed over."""
    real = sqlite._Transaction._apply

    def apply(self: Any, writes: Any) -> None:
        with suppress(StoreError):
            real(self, writes)

    patch.setattr(sqlite._Transaction, "_apply", apply)


def acked_whatever_the_commit_does(patch: pytest.MonkeyPatch) -> None:
    """The answer is made before the commit, and sent even if that fails."""
    real = sqlite._Transaction._commit

    def commit(self: Any) -> None:
        with suppress(StoreError):
            real(self)

    patch.setattr(sqlite._Transaction, "_commit", commit)


def begun_and_left(patch: pytest.MonkeyPatch) -> None:
    """A connection is kept with the transaction that failed on it."""

    def end(self: Commits, shared: Shared, error: BaseException | None, *, sound: bool) -> None:
        self._shared = None
        self._give_back(shared.connection, True)
        shared.end(error)

    patch.setattr(Commits, "_end", end)


@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (commit_in_two, "rows, an edge, and a row that follows"),
        (error_swallowed, "rows, an edge, and a row that follows"),
        # A whole answer is read after the commit, which then shows that there was none; a page is not.
        (acked_whatever_the_commit_does, "pages and acks"),
        (begun_and_left, "records"),
    ],
)
def test_a_planted_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None],
    name: str,
    base: Path,
    tmp_path: Path,
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bug(monkeypatch)

    with pytest.raises(AssertionError, match="Fault"):
        asyncio.run(Sweep(base, tmp_path, faults).run(*REQUESTS[name]))
