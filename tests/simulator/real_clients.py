"""The same histories with our client itself instead of a model of it: `BlowingOffClient` over its own SQLite store.

    python -m inbetweenies.testing simulate --world tests.simulator.real_clients:RealClients

Its sync is a coroutine that waits for nothing but answers, so each message is taken out of it where it waits, and the
answer, if one comes, is handed in there. There is no event loop, and time is what the history says.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from blowing_off import BlowingOffClient, SyncReport
from blowing_off.store import LocalStore
from blowing_off.transport import Refused, Unreachable
from inbetweenies.errors import InbetweeniesError
from inbetweenies.model import Entity, Relationship, digest_change, parse_cursor
from inbetweenies.offers import VersionPolicy
from inbetweenies.replica import NEVER, Copy, Key, Pointer, RowKey
from inbetweenies.testing.fleet_base import Client, Done, NoAnswer, Pushed, World, driven
from inbetweenies.testing.fleet_clients import ModernV2, reborn
from inbetweenies.testing.fleet_ends import KINDS
from inbetweenies.testing.fleet_laws import pushed_by
from inbetweenies.testing.fleet_replica import Image, ReplicaStore, Whole, whole_of
from inbetweenies.testing.simulator import SimulatedWorld

Talk = Coroutine[bytes, bytes | None, SyncReport]


class _Answer:
    """What a client waits for: it hands out its message, and is handed the answer."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __await__(self) -> Generator[bytes, bytes, bytes]:
        return (yield self._body)


class Line:
    """A transport of which somebody else holds the other end."""

    async def post(self, path: str, body: bytes) -> bytes:
        return await _Answer(body)

    async def get(self, path: str) -> bytes:
        raise Refused(status=404, code="not_found", detail="", where=path)


class RealStore(ReplicaStore):
    """A `LocalStore` in memory, and the client over it; `image` is what it holds."""

    def __init__(self, device: str, user: str, settings: Mapping[str, Any], data: bytes | None = None) -> None:
        self.settings = settings
        self.device, self.user = device, user
        self.power = None
        #: What the device takes for the time; it is another one after its disk was copied.
        self.clock: Callable[[], int] = int
        self.client = BlowingOffClient(
            ":memory:",
            transport=Line(),
            clock=self._now,
            versions=VersionPolicy.exact("inbetweenies-v2"),
            device=device,
            user=user,
            **settings,
        )
        driven(self.client.__aenter__())
        if data is not None:
            self.file._db.deserialize(data)
        self._seen: tuple[int, Image] | None = None

    @property
    def file(self) -> LocalStore:
        return self.client.store

    def _now(self) -> int:
        return self.clock()

    def fork(self) -> RealStore:
        """The same file somewhere else."""
        return RealStore(self.device, self.user, self.settings, self.file._db.serialize())

    @property
    def image(self) -> Image:  # type: ignore[override]
        changes = self.file._db.total_changes
        if self._seen is None or self._seen[0] != changes:
            self._seen = (changes, self._read())
        return self._seen[1]

    def _read(self) -> Image:
        image = Image(self.client.state)
        for kind, id_, version, hash_, told, body in self.file._db.execute(
            "SELECT kind, id, version, hash, told, body FROM copies ORDER BY n"
        ):
            copy = Copy(
                kind=kind, id=id_, version=version, hash=hash_, deleted=False, entity_type="", name="",
                from_id="", to_id="", body=body,
            )  # fmt: skip
            image.copies[whole_of(copy)] = copy
            if told is not None:
                image.told[whole_of(copy)] = told
        for kind, id_, theirs, hash_, ours, round_ in self.file._db.execute(
            "SELECT kind, id, theirs, theirs_hash, ours, round FROM pointers"
        ):
            image.pointers[kind, id_] = Pointer(theirs=theirs, theirs_hash=hash_, ours=ours, round=round_)
        image.pending = {item.n: item for item in self.file.pending()}
        return image

    def edit(self, row: Copy) -> None:
        self.file.write([row])

    def visible(self, key: Key) -> Copy | None:
        return self.file.visible(*key)

    def drop(self, key: Key, pointer: Pointer) -> None:
        """The server's row of an id is gone."""
        with self.file.transaction():
            gone = "UPDATE pointers SET theirs = NULL, theirs_hash = NULL WHERE kind = ? AND id = ?"
            self.file._db.execute(gone, key)
            row = (*key, pointer.theirs, pointer.theirs_hash)
            self.file._db.execute("DELETE FROM copies WHERE kind = ? AND id = ? AND version = ? AND hash = ?", row)
            state = self.client.state
            self.file.put_state(replace(state, digest=digest_change(state.digest, gone=pointer.theirs_hash)))


class RealModern(ModernV2):
    """Our client. Between two messages its sync is a coroutine that stands still."""

    store: RealStore

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        self.talk: Talk | None = None
        self.said = b""
        self.struck = False  # it has lost a row during this sync, maybe after all was compared
        super().__init__(name, world, user=user, skew=skew)
        settings = {"page_rows": world.page_rows, "batch_changes": world.batch, "nonces": self.nonce}
        self.store = RealStore(name, user, settings)
        self.store.clock = lambda: self.now
        self.came = self.store.image.state  # when this sync began

    def message(self) -> bytes:
        if self.talk is None:
            self.talk, self.struck = self.store.client.exchange(Line()), False
            self.came = self.store.image.state
            self.said = self.talk.send(None)
        self.pushed = _pushed(self.said)
        return self.said

    def take_in(self, answer: bytes) -> str:
        assert self.talk is not None, "it has asked something"
        before = {whole_of(item.copy): item.copy for item in self.store.image.pending.values()}
        try:
            self.said = self.talk.send(answer)
            phase = "sync"
        except StopIteration as stop:
            self.talk, phase = None, ""
            self._ended(stop.value)
        except InbetweeniesError as error:
            self.talk = None
            raise NoAnswer from error
        left = {whole_of(item.copy) for item in self.store.image.pending.values()}
        for row in self.pushed.rows:
            self._forgotten(row, before, left)
        self.check()
        return phase

    def _forgotten(self, row: Entity | Relationship, before: Mapping[Whole, Copy], left: set[Whole]) -> None:
        kind = "entity" if isinstance(row, Entity) else "edge"
        gone = [whole for whole in before if whole[:3] == (kind, row.id, row.version) and whole not in left]
        if gone:
            self.done.append(Done(row))

    def _ended(self, report: SyncReport) -> None:
        self.rewound |= report.rewound or reborn(self.came, self.store.image.state.cursor)
        if report.healed and not self.rewound:
            self.world.broken("8 (cursor)", f"{self.name} has drained the log and its digest differs from the server's")
        if report.equal is False and not self.struck:
            self.world.broken("10.13 (healed)", f"{self.name} differs from the server at the end of a sync: {report}")
        self.rewound = False

    def give_up(self) -> None:
        super().give_up()
        if self.talk is not None:
            talk, self.talk = self.talk, None
            try:
                talk.throw(Unreachable("no answer came"))
            except (InbetweeniesError, StopIteration):
                return
            self.world.broken("10.2 (answers)", f"{self.name} goes on without an answer")

    def restart(self) -> None:
        if self.talk is not None:
            self.talk.close()
            self.talk = None
        self.store.clock = lambda: self.now
        super().restart()

    def holds(self) -> set[Whole]:
        image = self.store.image
        waiting = {whole_of(item.copy) for item in image.pending.values() if not item.offered}
        never = {whole for whole, told in image.told.items() if told == NEVER}
        return image.copies.keys() - waiting - never

    def lose(self, which: int) -> str | None:
        pointers = self.store.image.pointers
        keys = [key for key, pointer in pointers.items() if pointer.ours is None and pointer.theirs_hash is not None]
        if not keys:
            return None
        key = keys[which % len(keys)]
        self.store.drop(key, pointers[key])
        self.rewound = self.struck = True
        return key[1]


def _pushed(body: bytes) -> Pushed:
    """What a message asks to be written."""
    said = msgspec.json.decode(body)
    changes = said.get("changes", [])
    offered: set[RowKey] = set()
    for change in changes:
        if change.get("offered"):
            entity = change.get("entity")
            offered |= {("entity", entity["id"], entity["version"])} if entity else set()
            offered |= {("edge", edge["id"], edge["version"]) for edge in change.get("relationships", ())}
    for change in changes:
        change.setdefault("relationships", [])
    rows = pushed_by(said).rows
    return Pushed(rows=rows, offered=frozenset(offered), common=parse_cursor(said.get("common") or ""))


class RealClients(SimulatedWorld):
    """Fleets in which the modern clients are real ones."""

    programs: ClassVar[Mapping[str, type[Client]]] = {**KINDS, "modern": RealModern}
