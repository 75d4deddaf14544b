"""Those who write all the time: deployed clients of both versions, as models of them, and our own."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, NoReturn

import httpx
import msgspec
from msgspec import Raw

from inbetweenies.limits import canonical
from inbetweenies.model import Entity, Relationship
from inbetweenies.testing.fleet_base import Done, World
from inbetweenies.testing.fleet_clients import DeployedV2

from ..client import BlowingOffClient
from ..demo.basics import SYNC, V1, V2, Record
from ..demo.clients import RecordClient, bearer, checked, digest_of
from ..demo.ledger import Ledger as Drafts
from ..reports import Notice, SyncReport
from ..transport import HttpTransport
from .basics import DrillError
from .ledger import Acked, Ledger, Request

#: What all clients of a graph edit.
SHARED: Final = "drill-shared"
PARENTS_MAX: Final = 20  # it would name all ancestors it knows; a drill on few ids makes more of them than any home

Key = tuple[str, str, str]


class Member(ABC):
    """One client. What it writes has values that nobody else writes, so that each is found or is not.

    Attributes:
        turns: how many syncs went well.
        busy: whether it edits, or only syncs.
    """

    def __init__(self, name: str, graph: str, ledger: Ledger) -> None:
        self.name = name
        self.graph = graph
        self.ledger = ledger
        self.turns = 0
        self.busy = True
        self._values = 0

    async def turn(self) -> bool:
        """Edit something, and sync. Whether that went well; what did not is in the ledger, and what was not sent
        waits."""
        at, known = time.monotonic(), len(self.ledger.requests)
        try:
            if self.busy:
                await self.edit()
            await self.sync()
        except Exception as error:  # noqa: BLE001 - a client that breaks is what a drill is to find
            if not any(one.client == self.name and not one.ok for one in self.ledger.requests[known:]):
                # Every answer was a success, and yet none that could be used.
                seconds = time.monotonic() - at
                why = f"{type(error).__name__}: {error}"[:300]
                self.ledger.requests.append(
                    Request(client=self.name, graph=self.graph, at=at, seconds=seconds, status=0, why=why)
                )
            return False
        self.turns += 1
        return True

    def value(self) -> str:
        """A value that nobody else ever writes."""
        self._values += 1
        return f"{self.name} {self._values}"

    @abstractmethod
    async def edit(self) -> None:
        """One edit or more, offline."""

    @abstractmethod
    async def sync(self) -> None:
        """One sync. Whatever is raised, it ended early."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of files and connections."""

    def acked(self, kind: Any, id_: str, version: str | None, says: dict[str, Any]) -> None:
        """Note down what was acknowledged."""
        self.ledger.acked.append(
            Acked(client=self.name, graph=self.graph, kind=kind, id=id_, version=version, says=says)
        )


# --- deployed, v1 -------------------------------------------------------------------------------------------------


class Records(Member):
    """A v1 client as deployed. It edits what others have said more about than it can know."""

    def __init__(
        self,
        name: str,
        graph: str,
        ledger: Ledger,
        *,
        http: httpx.AsyncClient,
        token: str,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(name, graph, ledger)
        self.http = http
        self.phone = _Phone(name, http, token, Drafts(clock, lambda _: None))  # type: ignore[arg-type]
        self.phone.member = self

    async def edit(self) -> None:
        phone, kept = self.phone, {one.id for one in self.ledger.keepsakes if one.graph == self.graph}
        devices = [id_ for type_, id_ in phone.records if type_ == "accessory" and (id_ in kept or id_ == SHARED)]
        homes = [id_ for type_, id_ in phone.records if type_ == "home"]
        if not homes:
            return  # it has seen nothing yet
        for turn, field in enumerate(("name", "firmware_version")):
            if devices:
                id_ = devices[(self._values + turn) % len(devices)]
                phone.edit("accessory", id_, "", **{field: self.value()})
        if self._values % 5 == 0:
            phone.add("accessory", "", name=self.value(), home_id=homes[0], manufacturer=self.value())

    async def sync(self) -> None:
        await self.phone.sync()

    async def close(self) -> None:
        await self.http.aclose()


class _Phone(RecordClient):
    """The client of the demonstration, which tells of acknowledged writes."""

    member: Records

    def _acknowledged(self, key: tuple[str, str]) -> None:
        # A record is sent as it is then: of several edits of one field, the last.
        says = {name: value for write in self.waiting.get(key, ()) for name, value in write.says.items()}
        says.pop("home_id", None)  # which is an edge
        if says:
            self.member.acked("entity", key[1], None, says)
        super()._acknowledged(key)

    def _take(self, change: dict[str, Any]) -> None:
        key = (change["entity_type"], change["entity_id"])
        before = self.records.get(key)
        super()._take(change)
        if self.records.get(key) is not before and key in self.waiting:
            # It lets what is newer take the place of an edit that waits, which no server can help.
            self.member.ledger.overwritten += len(self.waiting.pop(key))


# --- deployed, v2 -------------------------------------------------------------------------------------------------


class Deployed(Member):
    """A v2 client as deployed: it names its version, offers no other and knows of no features."""

    def __init__(
        self,
        name: str,
        graph: str,
        ledger: Ledger,
        *,
        http: httpx.AsyncClient,
        token: str,
        clock: Callable[[], int],
    ) -> None:
        super().__init__(name, graph, ledger)
        self.http = http
        self._token = token
        world = World(clock=clock, told=lambda _: None, broken=_broken, page_rows=100, batch=100)
        self.model = DeployedV2(name, world, user=name, skew=0)

    async def edit(self) -> None:
        ids = [SHARED] if self.model.row(SHARED) is not None else []
        for id_ in (*ids, f"{self.name}-{self._values // 8}"):
            before = self.model.row(id_)
            content: dict[str, Any] = {} if before is None else msgspec.json.decode(before.content)
            entity = Entity(
                id=id_,
                version=self.model.version(),
                entity_type="device" if before is None else before.entity_type,
                name=self.value(),
                content=Raw(canonical({**content, "label": self.value()})),
                source_type="manual",
                user_id=self.name,
                parent_versions=() if before is None else self.model.parents(before)[-PARENTS_MAX:],
            )
            self.model.keep(entity)

    async def sync(self) -> None:
        try:
            while (body := self.model.say()) is not None:
                self.model.hear(await self._ask(body))
                if not self.model.phase:
                    break
        except BaseException:
            self.model.give_up()
            raise
        finally:
            self._note()
        if self.model.failed:
            raise DrillError("expected an answer in the version that was named; got something else")

    async def _ask(self, body: Record) -> Record:
        answer: Record = checked(await self.http.post(SYNC, json=body, headers=bearer(self._token))).json()
        return answer

    def _note(self) -> None:
        for done in self.model.done:
            if isinstance(done, Done) and isinstance(done.row, Entity):
                row = done.row
                self.acked("entity", row.id, row.version, {"name": row.name, **msgspec.json.decode(row.content)})
        self.model.done.clear()

    async def close(self) -> None:
        await self.http.aclose()


def _broken(law: str, what: str) -> NoReturn:
    raise DrillError(f"law {law}: {what}")


# --- ours ---------------------------------------------------------------------------------------------------------


class Ours(Member):
    """A `BlowingOffClient`: it offers both versions, keeps what only the newer one can say until that can be said, and
    gives back what a server has lost."""

    def __init__(
        self, name: str, graph: str, ledger: Ledger, *, client: BlowingOffClient, transport: HttpTransport
    ) -> None:
        super().__init__(name, graph, ledger)
        self.client = client
        self.client.on_notice = self._noticed
        self.notices: list[tuple[float, Notice]] = []  # when each was shown
        self._transport = transport
        self.report: SyncReport | None = None  # of the newest sync
        self._made: dict[Key, dict[str, Any]] = {}

    def _noticed(self, notice: Notice) -> None:
        self.notices.append((time.monotonic(), notice))

    def shown(self, id_: str) -> list[tuple[float, bool]]:
        """When this notice was shown, and whether it said that data is safe."""
        return [(at, notice.safe) for at, notice in self.notices if notice.id == id_]

    async def edit(self) -> None:
        waiting = {item.copy.id for item in await self.client.pending()}
        number = self._values
        if SHARED not in waiting and await self.client.get(SHARED) is not None:
            # Both in one row, so that what an old version cannot say holds back what it can.
            told = {"label": self.value(), "colour": self.value()} if number % 2 else {"manufacturer": self.value()}
            await self.change(SHARED, **told)
        if number % 3 == 0:
            await self.add("device", shelf=self.value())
        own = f"{self.name}-own"
        if await self.client.get(own) is None:
            await self.add("device", id_=own)
        elif own not in waiting:
            await self.rename(own)

    async def add(self, entity_type: str, *, id_: str | None = None, name: str | None = None, **content: Any) -> Entity:
        """Add something, and write that down."""
        entity = await self.client.add(entity_type, name or self.value(), content, id=id_)
        self._wrote("entity", entity, {"name": entity.name, **content})
        return entity

    async def change(self, id_: str, **patch: Any) -> None:
        """Change part of the content of something."""
        self._wrote("entity", await self.client.change(id_, patch=patch), patch)

    async def rename(self, id_: str) -> None:
        """Give something a new name."""
        entity = await self.client.change(id_, name=self.value())
        self._wrote("entity", entity, {"name": entity.name})

    async def link(self, from_id: str, to_id: str, type_: str, **properties: Any) -> Relationship:
        """Link two things."""
        edge = await self.client.link(from_id, to_id, type_, properties)
        self._wrote("edge", edge, properties)
        return edge

    def _wrote(self, kind: str, row: Entity | Relationship, says: dict[str, Any]) -> None:
        self._made[kind, row.id, row.version] = says

    async def sync(self) -> None:
        at, served = time.monotonic(), V1
        try:
            self.report = await self.client.sync()
            served = self.report.served or V1
            self.ledger.served[self.name].append((at, time.monotonic(), served))
        finally:
            await self._note(exact=served == V2)

    async def _note(self, *, exact: bool) -> None:
        waiting = {(item.copy.kind, item.copy.id, item.copy.version) for item in await self.client.pending()}
        for key in [key for key in self._made if key not in waiting]:
            kind, id_, version = key
            # What went over as a record is a row that the server made.
            self.acked(kind, id_, version if exact else None, self._made.pop(key))

    async def digest(self) -> str:
        """Of all that is held: counted anew from the rows, not remembered."""
        return digest_of(await self.client.find(deleted=True), await self.client.links(deleted=True))

    async def close(self) -> None:
        await self.client.close()
        await self._transport.aclose()
