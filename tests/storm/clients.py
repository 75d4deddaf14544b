"""Clients that push as long as there is a server: deployed v2, v1, and ours; and what they sent and were told.

The first two are the models of `inbetweenies.testing.fleet_clients` over real HTTP. What they edit is made here, so
that it is known of every message which rows a commit of it must have made.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from msgspec import Raw, Struct

from blowing_off import BlowingOffClient, SyncReport
from blowing_off.transport import BadAnswer, HttpTransport, Refused, Unreachable
from inbetweenies.engine import beside
from inbetweenies.limits import canonical
from inbetweenies.model import Entity, Relationship, body_of, edge_version, format_time, parse_time, row_hash
from inbetweenies.testing.fleet_base import World
from inbetweenies.testing.fleet_clients import DeployedV2
from inbetweenies.testing.fleet_laws import pushed_by
from inbetweenies.testing.fleet_v1 import V1
from tests.storm.log import Key, Line
from tests.storm.processes import Gone, Peer
from tests.storm.replica import replica

ROWS_PER_PUSH = 4
SHARED = ("shared-0", "shared-1")


class Wanted(Struct, frozen=True):
    """A row that the commit of a message has made. A v1 client does not know its version, only how it begins."""

    kind: str
    id: str
    version: str
    beside: str = ""

    def is_in(self, line: Line) -> bool:
        """Whether this line of the log is that row."""
        return (line.kind, line.id) == (self.kind, self.id) and (
            line.version in (self.version, self.beside) or (not self.beside and line.version.startswith(self.version))
        )


class Letter(Struct):
    """One message that was sent: the rows it asks for, and what of them was acknowledged, None without an answer."""

    sender: str
    wanted: tuple[Wanted, ...]
    acked: tuple[Wanted, ...] | None = None


class Post:
    """Where letters are kept, by all threads; `sent` and `answered` are called when one is."""

    def __init__(self, sent: Callable[[], object], answered: Callable[[], object]) -> None:
        self.letters: list[Letter] = []
        self.sent = sent
        self.answered = answered

    def send(self, sender: str, body: dict[str, Any]) -> Letter:
        """A letter is on its way. One that asks for nothing is not counted."""
        letter = Letter(sender, tuple(_wanted(body)))
        if letter.wanted:
            self.letters.append(letter)
        return letter

    def receive(self, letter: Letter, body: dict[str, Any], answer: dict[str, Any]) -> None:
        """Its answer came."""
        if letter.wanted:
            letter.acked = tuple(_acked(letter, body, answer))
            self.answered()


def _wanted(body: dict[str, Any]) -> list[Wanted]:
    pushed = pushed_by(body)
    wanted = []
    for row in pushed.rows:
        kind = "entity" if isinstance(row, Entity) else "edge"
        version = row.version or edge_version(row)  # type: ignore[arg-type]
        wanted.append(Wanted(kind, row.id, version, beside(version, row_hash(kind, body_of(row)))))  # type: ignore[arg-type]
    for record in pushed.records:
        edit = parse_time(record["data"]["updated_at"])
        assert edit is not None
        wanted.append(Wanted("entity", record["entity_id"], format_time(edit)))
    return wanted


def _acked(letter: Letter, body: dict[str, Any], answer: dict[str, Any]) -> list[Wanted]:
    assert not answer.get("refused"), answer
    if "acks" in answer:
        named = {(ack["kind"], ack["id"], ack["version"]) for ack in answer["acks"]}
        return [row for row in letter.wanted if (row.kind, row.id, row.version) in named]
    if "applied_relationships" in answer:
        ids = {"entity": answer["applied"], "edge": answer["applied_relationships"]}
        return [row for row in letter.wanted if row.id in ids[row.kind]]
    labels = {one["client_sync_id"] for one in answer["applied"]}
    records = {change["entity_id"] for change in body["changes"] if change["client_sync_id"] in labels}
    return [row for row in letter.wanted if row.id in records]


def counted(rounds: int | None) -> Iterable[int]:
    """So many, or without end."""
    return itertools.count() if rounds is None else range(rounds)


class Writer(ABC):
    """One client. `live` edits and syncs until the server is gone; what waits then is sent in its next life."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.dice = random.Random(seed)
        self.made = 0

    def new(self) -> str:
        """An id that nobody else has."""
        self.made += 1
        return f"{self.name}-{self.made}"

    @abstractmethod
    def live(self, url: str, post: Post, rounds: int | None = None) -> None:
        """Edit and sync; `rounds` times, or for ever. Raises `Gone`."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How much still waits for the server."""


def world() -> World:
    """What the models of clients ask for: true time, and nobody to tell of it."""

    def broken(law: str, what: str) -> NoReturn:
        raise AssertionError(f"law {law}: {what}")

    return World(clock=lambda: time.time_ns() // 1000, told=lambda _: None, broken=broken, page_rows=100, batch=100)


class _Model(Writer):
    """A model of a deployed client, over HTTP."""

    client: DeployedV2 | V1
    path: str

    @abstractmethod
    def edit(self) -> None:
        """Some edits, some of them of what everybody edits."""

    def live(self, url: str, post: Post, rounds: int | None = None) -> None:
        peer = Peer(url)
        try:
            for _ in counted(rounds):
                self.edit()
                self.sync(peer, post)
        except Gone:
            self.client.give_up()
            raise
        finally:
            peer.close()

    def sync(self, peer: Peer, post: Post) -> None:
        """All messages of one sync."""
        while (body := self.client.say()) is not None:
            letter = post.send(self.name, body)
            status, answer = peer.post(body, sent=post.sent if letter.wanted else None)
            if status == 503:
                self.client.give_up()
                return
            assert status == 200, answer
            post.receive(letter, body, answer)
            self.client.hear(answer)
            if not self.client.phase:
                return

    @property
    def waiting(self) -> int:
        return len(self.client.pending)


class Deployed(_Model):
    """Blowing-Off as deployed: naive `since`, marks by id, all ancestors as parents."""

    client: DeployedV2

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, seed)
        self.client = DeployedV2(name, world(), user=name, skew=0)

    def edit(self) -> None:
        mine = [self._entity(self.new(), "device") for _ in range(ROWS_PER_PUSH - 2)]
        shared = self._entity(self.dice.choice(SHARED), "room")
        for entity in (*mine, shared):
            self.client.keep(entity)
        edge = Relationship(
            id=f"{mine[0].id}-in",
            version="",
            from_entity_id=mine[0].id,
            from_entity_version=mine[0].version,
            to_entity_id=mine[-1].id,
            to_entity_version=mine[-1].version,
            relationship_type="located_in",
            properties=Raw(b"{}"),
            user_id=self.name,
        )
        self.client.edges[edge.id] = edge
        self.client.edge_marks[edge.id] = None

    def _entity(self, id_: str, type_: str) -> Entity:
        before = self.client.row(id_)
        return Entity(
            id=id_,
            version=self.client.version(),
            entity_type=type_,
            name=f"{self.name} {self.made}",
            content=Raw(canonical({self.name: self.made})),
            source_type="manual",
            user_id=self.name,
            # It would name all ancestors it knows; a storm on few ids makes more of them than any household does.
            parent_versions=() if before is None else self.client.parents(before)[-20:],
        )


class Records(_Model):
    """The v1 client as deployed: request, push, ack, whole records."""

    client: V1

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, seed)
        self.client = V1(name, world(), user="local", skew=0)
        self.homes = 0

    def edit(self) -> None:
        if not self.homes:
            self._write("home", self.new(), {"is_primary": False})
            self.homes = self.made
        home = f"{self.name}-{self.homes}"
        for _ in range(ROWS_PER_PUSH - 2):
            self._write("accessory", self.new(), {"home_id": home, "manufacturer": f"{self.made}"})
        old = f"{self.name}-{self.dice.randint(self.homes + 1, self.made)}"
        self._write("accessory", old, {"home_id": home, "model": f"{self.made}"})

    def _write(self, type_: str, id_: str, fields: dict[str, Any]) -> None:
        now = self.client.now
        while now in self.client.times:
            now += 1
        self.client.times.add(now)
        told = format_time(now, naive=True)
        key = (type_, id_)
        before = self.client.records.get(key, {"id": id_, "created_at": told, "sync_id": None})
        self.client.records[key] = {**before, "name": told, **fields, "updated_at": told}
        self.client.marks.setdefault(key, set()).update({"name", *fields})


class _Recorded(HttpTransport):
    """Our transport, watched. `busy` is awaited while a message is on its way."""

    def __init__(self, url: str, sender: str, post: Post, busy: Callable[[], Awaitable[object]]) -> None:
        super().__init__(url, tries_max=1)
        self._sender = sender
        self._post = post
        self._busy = busy

    async def post(self, path: str, body: bytes) -> bytes:
        message = json.loads(body)
        letter = self._post.send(self._sender, message)
        await self._busy()
        answer = await super().post(path, body)
        self._post.receive(letter, message, json.loads(answer))
        return answer


class Ours(Writer):
    """`BlowingOffClient` on its own file; edits go on while a message is under way.

    `confirmed` holds every row that it was told is safe.
    """

    def __init__(self, name: str, seed: int, path: Path) -> None:
        super().__init__(name, seed)
        self.path = path
        self.confirmed: list[Key] = []
        self.report: SyncReport | None = None

    @property
    def waiting(self) -> int:
        return len(replica(self.path).waiting)

    def live(self, url: str, post: Post, rounds: int | None = None) -> None:
        try:
            asyncio.run(self._live(url, post, rounds))
        except (Unreachable, BadAnswer) as error:
            raise Gone from error

    async def _live(self, url: str, post: Post, rounds: int | None) -> None:
        client = BlowingOffClient(self.path, user=self.name, device=self.name)
        transport = _Recorded(url, self.name, post, lambda: self._interrupt(client))
        client._given = transport
        async with transport, client:
            for _ in counted(rounds):
                await self._edit(client)
                try:
                    self.report = await client.sync()
                except Refused as error:
                    if error.status != 503:  # which says that the others keep it busy
                        raise

    async def _edit(self, client: BlowingOffClient) -> None:
        mine = [self._made(await client.add("device", self.name, {"n": self.made}, id=self.new())) for _ in range(2)]
        edge = await client.link(mine[0].id, mine[1].id, "located_in")
        self.confirmed.append(("edge", edge.id, edge.version))
        await self._change(client, self.dice.choice((mine[0].id, *SHARED)))

    async def _interrupt(self, client: BlowingOffClient) -> None:
        # Not with every message: a sync goes on as long as there is something to send.
        if self.dice.random() < 0.5:
            await self._change(client, self.dice.choice(SHARED))

    async def _change(self, client: BlowingOffClient, id_: str) -> None:
        if await client.get(id_) is None:
            return
        self.made += 1
        self._made(await client.change(id_, patch={self.name: self.made}))

    def _made(self, row: Entity) -> Entity:
        self.confirmed.append(("entity", row.id, row.version))
        return row
