"""One graph on a server that runs, the deployed clients and ours at it, and what must hold of them in the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx
import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from blowing_off import BlowingOffClient
from inbetweenies.auth import SqliteTokens
from inbetweenies.model import ENTITY_TYPES, SOURCE_TYPES, Entity, Relationship
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.fleet_base import Body, Done, Pushed, World
from inbetweenies.testing.fleet_laws import Ledger
from tests.compat.peers import BlowingOff, HomeKitV1, KittenKongApp, Peer
from tests.server.calls import SYNC, sync
from tests.support import SECOND, Server, run

AnyPeer = TypeVar("AnyPeer", bound=Peer)

ROUNDS_MAX = 8
STAMPS = {"created_at", "updated_at", "sync_id"}


class Time:
    """What all clients take for the time, but for their skews: hours ago, so that nobody is ahead of the server."""

    def __init__(self) -> None:
        self.now = time.time_ns() // 1000 - 6 * 3600 * SECOND

    def __call__(self) -> int:
        self.now += 2 * SECOND  # nothing is undecided because two did it in the same second
        return self.now


def broken(law: str, what: str) -> NoReturn:
    raise AssertionError(f"law {law}: {what}")


class Home:
    """A graph of its own, and everybody who syncs with it."""

    def __init__(self, http: httpx.Client, db: Path, folder: Path, graph: str) -> None:
        self.http = http
        self.db = db
        self.folder = folder
        self.graph = graph
        with closing(SqliteTokens(db)) as tokens:
            self.token, _ = tokens.create(graph, "ann", None, None)
        self.clock = Time()
        self.world = World(clock=self.clock, told=lambda line: None, broken=broken, page_rows=1000, batch=500)
        self.peers: list[Peer] = []
        self.ours: list[BlowingOffClient] = []

    # who takes part

    def blowing_off(self, name: str = "blowing-off") -> BlowingOff:
        return self._join(BlowingOff(name, self.world, self.http, self.token))

    def kittenkong(self, name: str = "kittenkong") -> KittenKongApp:
        return self._join(KittenKongApp(name, self.world, self.http, self.token))

    def phone(self, name: str = "phone", *, skew: int = 0) -> HomeKitV1:
        return self._join(HomeKitV1(name, self.world, self.http, self.token, skew=skew))

    def _join(self, peer: AnyPeer) -> AnyPeer:
        self.peers.append(peer)
        return peer

    def modern(self, name: str = "modern") -> BlowingOffClient:
        path = self.folder / f"{self.graph}-{name}.blow"
        client = BlowingOffClient(path, str(self.http.base_url), self.token, user=name, clock=self.clock)
        self.ours.append(client)
        return client

    # what the server says

    def ask(self, *changes: Body, device: str = "stranger", **fields: Any) -> Any:
        """A v2 message of somebody who is no deployed client."""
        headers = {"Authorization": f"Bearer {self.token}"}
        response = self.http.post(SYNC, json=sync(*changes, device_id=device, **fields), headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    def look(self) -> dict[str, Body]:
        """The current entities, as a stranger is told them."""
        return {change["entity"]["id"]: change["entity"] for change in self.ask()["changes"]}

    def names(self) -> dict[str, str]:
        """What lives, by id."""
        return {id_: row["name"] for id_, row in self.look().items() if not row["content"].get("deleted")}

    def versions(self, id_: str) -> list[Body]:
        """Every row of an entity, losers too."""
        headers = {"Authorization": f"Bearer {self.token}"}
        told = self.http.get(f"/api/v1/graph/entities/{id_}/versions", headers=headers)
        assert told.status_code == 200, told.text
        rows: list[Body] = told.json()["versions"]
        return rows

    # the end

    async def settle(self) -> None:
        """Everybody syncs until nobody has anything to say and nothing moves any more; then they hold the same."""
        for _ in range(ROUNDS_MAX):
            before = await self._held()
            waits = any(peer.pending for peer in self.peers) or any([await client.pending() for client in self.ours])
            for peer in self.peers:
                assert (True, "") == peer.sync()
            for client in self.ours:
                report = await client.sync()
                assert (0, True) == (report.pending, report.equal)
            if not waits and before == await self._held():
                break
        else:
            raise AssertionError(f"not at rest after {ROUNDS_MAX} rounds: {[peer.pending for peer in self.peers]}")
        await self.check()

    async def _held(self) -> list[Any]:
        held: list[Any] = [_rows(peer) if not isinstance(peer, HomeKitV1) else _records(peer) for peer in self.peers]
        return held + [await _replica(client) for client in self.ours]

    async def check(self) -> None:
        """Everybody holds what the server does, as far as its version can say it, and no write is lost."""
        graph = self.look()
        there = {id_: _plain(row) for id_, row in graph.items()}
        for client in self.ours:
            assert there == await _replica(client)
        known = {id_: row for id_, row in there.items() if row["entity_type"] in ENTITY_TYPES}
        stranger = HomeKitV1("stranger", self.world, self.http, self.token)
        assert stranger.sync().success
        for peer in self.peers:
            if isinstance(peer, HomeKitV1):
                assert _records(stranger) == _records(peer)
                assert {id_: graph[id_]["name"] for _, id_ in peer.records} == {
                    id_: record["name"] for (_, id_), record in peer.records.items()
                }
            else:
                assert (known if isinstance(peer, BlowingOff) else there) == _rows(peer)
        self._check_laws(graph.values())

    def _check_laws(self, graph: Iterable[Body]) -> None:
        """The log on disk is whole, and holds every row for which a client has stopped waiting."""
        done = [(peer.name, _as_stored(each)) for peer in self.peers for each in peer.done]
        rows: list[Entity | Relationship] = [msgspec.convert(row, Entity) for row in map(_raw, graph)]
        store = SqliteStore(self.db)
        ledger = Ledger(lambda reads: Server(store).held(reads, self.graph), broken)
        ledger.head = replace(ledger.head, seq=0, chain=bytes(16), stamp=0, digest=0)
        ledger.follow(Pushed(rows=(*rows, *(each.row for _, each in done if isinstance(each, Done)))))
        run(store.close())
        assert ledger.rows
        for who, each in done:
            ledger.check_done(who, each)


_FIELDS = ("version", "entity_type", "name", "content", "source_type", "user_id")


def _plain(row: Body) -> Body:
    return {name: row[name] for name in _FIELDS}


def _seen(row: Entity) -> Body:
    return {name: getattr(row, name) for name in _FIELDS} | {"content": msgspec.json.decode(row.content)}


def _raw(row: Body) -> Body:
    return row | {"content": msgspec.Raw(json.dumps(row["content"]).encode())}


def _rows(peer: Any) -> dict[str, Body]:
    return {id_: _seen(row) for id_, row in peer.rows.items()}


def _records(peer: HomeKitV1) -> dict[str, Body]:
    # A client keeps its own times and token of a record until it is told a newer one.
    return {"/".join(key): {name: value for name, value in record.items() if name not in STAMPS}
            for key, record in peer.records.items()}  # fmt: skip


async def _replica(client: BlowingOffClient) -> dict[str, Body]:
    return {row.id: _seen(row) for row in await client.find(deleted=True)}


def _as_stored(done: Any) -> Any:
    """A row that a client forgot, as the server keeps one whose source it does not know (PROTOCOL 3.4)."""
    row = done.row if isinstance(done, Done) else None
    if not isinstance(row, Entity) or row.source_type.lower() in SOURCE_TYPES:
        return done
    sent = row.source_type if row.source_type == "None" else row.source_type.upper()
    original = sent if row.source_original is UNSET else row.source_original
    return Done(replace(row, source_type="imported", source_original=original))
