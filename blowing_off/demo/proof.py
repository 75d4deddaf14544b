"""Everybody syncs until all is said; then each write of the ledger is looked up, and all are compared. Read `proof`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct

from inbetweenies.model import (
    Conflict,
    Entity,
    Reads,
    Relationship,
    edit_time,
)
from inbetweenies.stores import SqliteStore

from .. import homekit
from ..client import BlowingOffClient
from .basics import GRAPH, ROUNDS_MAX, SYNC, V2, V7, DemoError, Record
from .clients import Member, RecordClient, Replica, bearer, checked, digest_of, digest_of_records, parsed
from .home import furnish
from .ledger import Clock, Ledger, Told, Write
from .server import Server
from .story import Fleet, sequel, story


class Picture(Struct, kw_only=True):
    """What the server says that it holds, what a fresh reader of either version gets, and what the clients hold.

    Attributes:
        digest: as the server tells it.
        counted: the same, summed up anew over a full read.
        records: digest of the records that a v1 client gets which has never been here.
        entities, edges: that full read.
        holds: for each client how much it holds, and the digest of that.
        waits: whether anybody still has something to send.
    """

    digest: str
    counted: str
    records: str
    entities: tuple[Entity, ...]
    edges: tuple[Relationship, ...]
    holds: dict[str, tuple[int, str]]
    waits: bool

    def same(self, member: Member) -> bool:
        """Whether a client holds what it should: what the server does, as far as its version can tell."""
        wanted = self.digest if isinstance(member, Replica) else self.records
        return self.holds[member.name][1] == wanted

    def converged(self, fleet: Fleet) -> bool:
        """Whether all hold the same, and nobody has anything left to say."""
        return not self.waits and self.counted == self.digest and all(map(self.same, fleet.members))


async def settle(fleet: Fleet, turns: tuple[Member, ...]) -> Picture:
    """Everybody syncs in turns, until all hold the same."""
    rounds = 0
    while True:
        for member in turns:
            await member.sync()
        rounds += 1
        picture = await look(fleet)
        if picture.converged(fleet) or rounds == ROUNDS_MAX:
            fleet.ledger.tell(f"round {rounds}: {'all' if picture.converged(fleet) else 'NOT all'} hold the same")
            return picture


async def look(fleet: Fleet) -> Picture:
    """Read the server as strangers would, and everybody's own store."""
    digest, entities, edges = await read_all(fleet)
    stranger = RecordClient("stranger", fleet.http, fleet.fresh_token, Ledger(fleet.ledger.clock, lambda _: None))
    await stranger.sync()
    return Picture(
        digest=digest,
        counted=digest_of(entities, edges),
        records=digest_of_records(stranger.records),
        entities=entities,
        edges=edges,
        holds={member.name: await member.holds() for member in fleet.members},
        waits=any([await member.waits() for member in fleet.members]),
    )


class _ChangeTold(Struct):
    entity: Entity | None
    relationships: tuple[Relationship, ...]


class _Page(Struct):
    changes: tuple[_ChangeTold, ...]
    digest: str
    cursor: str
    more: bool


_page = msgspec.json.Decoder(_Page)


async def read_all(fleet: Fleet) -> tuple[str, tuple[Entity, ...], tuple[Relationship, ...]]:
    """The digest that the server tells, and every current row, tombstones too, over as many pages as it takes."""
    entities: dict[str, Entity] = {}
    edges: dict[str, Relationship] = {}
    message: Record = {
        "protocol_version": V2,
        "device_id": "auditor",
        "user_id": "auditor",
        "sync_type": "full",
        "changes": [],
        "features": ["acks", "digest", "edges", "paging"],
    }
    while True:
        answer = checked(await fleet.http.post(SYNC, json=message, headers=bearer(fleet.fresh_token)))
        try:
            page = _page.decode(answer.content)
        except msgspec.MsgspecError as error:
            raise DemoError(f"expected a page of the graph; got something else: {error}") from error
        for change in page.changes:
            if change.entity is not None:
                entities[change.entity.id] = change.entity
            edges.update((edge.id, edge) for edge in change.relationships)
        if not page.more:
            return page.digest, tuple(entities.values()), tuple(edges.values())
        message |= {"sync_type": "delta", "cursor": page.cursor}


class Shown(Struct, kw_only=True):
    """A conflict, for people: who wrote what, against whom, and whose word stands."""

    entity_id: str
    name: str
    fields: dict[str, Any]
    told_to: str
    against: str | None
    winner: str | None
    resolution_strategy: str
    local_version: str | None
    remote_version: str | None
    resolved_version: str | None


class ClientShown(Struct, kw_only=True):
    """One client in the outcome: what it asked for and was served, how much it holds, and whether that is right."""

    name: str
    asked: str
    served: str | None
    entities: int
    digest: str
    compared_with: str
    equal: bool


class Outcome(Struct, kw_only=True):
    """What the demo found out."""

    converged: bool
    imported: int
    unread: tuple[homekit.Unread, ...]
    writes: tuple[Write, ...]
    conflicts: tuple[Shown, ...]
    clients: tuple[ClientShown, ...]
    server_digest: str
    counted_digest: str
    v1_digest: str
    seconds: float = 0.0

    def number(self, found: str) -> int:
        return sum(write.found == found for write in self.writes)

    @property
    def well(self) -> bool:
        return self.converged and not self.number("lost")


async def run(server: Server, imports: list[homekit.Import], tell: Callable[[str], None]) -> Outcome:
    """The whole demo against a server that listens."""
    ledger = Ledger(Clock(), tell)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=30))

        async def replica(name: str) -> Replica:
            client = BlowingOffClient(
                server.folder / f"{name}.blow", server.url, server.token(name), user=name, device=name,
                clock=ledger.clock,
            )  # fmt: skip
            return Replica(name, await stack.enter_async_context(client), ledger)

        fleet = Fleet(
            phone=RecordClient("phone", http, server.token("phone"), ledger),
            tablet=await replica("tablet"),
            laptop=await replica("laptop"),
            panel=RecordClient("panel", http, server.token("panel"), ledger, asks=V7),
            http=http,
            fresh_token=server.token("stranger"),
            ledger=ledger,
        )
        cast, imported = await furnish(fleet.tablet, imports)
        tell(f"{imported} devices read from files; {len(ledger.writes)} rows to start with")
        await settle(fleet, (fleet.tablet, fleet.laptop, fleet.phone, fleet.panel))
        tell("everybody goes offline and edits")
        await story(fleet, cast)
        # In this order nobody's deployed habits get in the way: a v1 client lets a newer pulled record overwrite an
        # edit that waits, which no server can help. Replicas never do that, so they may come last.
        await settle(fleet, (fleet.laptop, fleet.phone, fleet.panel, fleet.tablet))
        tell("everybody goes offline again")
        await sequel(fleet, cast)
        picture = await settle(fleet, (fleet.phone, fleet.panel, fleet.tablet, fleet.laptop))
        histories = await proof(fleet, picture, server)
    unread = tuple(unread for read in imports for unread in read.unread)
    return Outcome(
        converged=picture.converged(fleet),
        imported=imported,
        unread=unread,
        writes=tuple(ledger.writes),
        conflicts=tuple(shown(told, ledger, histories, picture) for told in ledger.conflicts),
        clients=tuple(
            ClientShown(
                name=member.name,
                asked=member.asked,
                served=member.served,
                entities=picture.holds[member.name][0],
                digest=picture.holds[member.name][1],
                compared_with="the server's digest" if isinstance(member, Replica) else "a fresh v1 read",
                equal=picture.same(member),
            )
            for member in fleet.members
        ),
        server_digest=picture.digest,
        counted_digest=picture.counted,
        v1_digest=picture.records,
    )


async def proof(fleet: Fleet, picture: Picture, server: Server) -> dict[str, list[Record]]:
    """Look up every write of the ledger on the server, and say in it where it was found.

    Entities are looked up under ``GET …/entities/{id}/versions``, which lists every row there ever was. Edges have no
    such address: the current ones are in the full read, those that others took the place of in the log of the
    database file. Returns the histories of entities.
    """
    ids = dict.fromkeys(write.id for write in fleet.ledger.writes if write.kind != "edge")
    histories = {id_: await versions_of(fleet, id_) for id_ in ids}
    edges = {edge.id: parsed(edge) for edge in picture.edges}
    for write in fleet.ledger.writes:
        write.found = find(write, histories.get(write.id, []), edges)
    missing = [write for write in fleet.ledger.writes if write.found == "lost"]
    if missing:
        past = await past_edges(server.db, {write.id for write in missing})
        for write in missing:
            write.found = find(write, histories.get(write.id, []), edges, past)
    return histories


async def versions_of(fleet: Fleet, id_: str) -> list[Record]:
    """Every row of an entity, in commit order, as the server tells; none if it does not know the entity."""
    path = f"/api/v1/graph/entities/{quote(id_, safe='')}/versions"
    response = await fleet.http.get(path, headers=bearer(fleet.fresh_token))
    listed: list[Record] = [] if response.status_code == 404 else checked(response).json()["versions"]
    return listed


def find(
    write: Write, history: list[Record], edges: dict[str, Record], past: Iterable[Record] = ()
) -> Literal["current", "kept", "lost"]:
    """Where a write is: in a row that is current, in one that is kept, or nowhere."""
    if write.kind == "entity":
        rows = [row for row in history if _is_row(row, write)]
        return _place(row["is_latest"] for row in rows)
    if write.kind == "edge":
        if edges.get(write.id) == write.whole:
            return "current"
        return "kept" if any(edge == write.whole for edge in past) else "lost"
    return _find_record(write, history, edges, past)


def _place(latest: Iterable[bool]) -> Literal["current", "kept", "lost"]:
    found = list(latest)
    return "current" if any(found) else "kept" if found else "lost"


def _is_row(row: Record, write: Write) -> bool:
    """Whether a row of the history is, to the letter, the one that a replica made."""
    names = ("id", "version", "entity_type", "name", "content", "source_type", "user_id", "parent_versions")
    return write.whole is not None and all(row[name] == write.whole[name] for name in names)


def _find_record(
    write: Write, history: list[Record], edges: dict[str, Record], past: Iterable[Record]
) -> Literal["current", "kept", "lost"]:
    """A v1 write is a row, an edge, or both: made at the time that its record gave, by its user, saying its fields."""
    places = []
    fields = {field: value for field, value in write.says.items() if field != "home_id"}
    if fields:
        rows = [row for row in history if _is_made_by(row, write) and _says(row, fields)]
        places.append(_place(row["is_latest"] for row in rows))
    if "home_id" in write.says:
        rows = [edge for edge in (*edges.values(), *past) if _is_made_by(edge, write) and _leads(edge, write)]
        places.append(_place(edges.get(edge["id"]) == edge for edge in rows))
    return "lost" if "lost" in places else "kept" if "kept" in places else "current"


def _is_made_by(row: Record, write: Write) -> bool:
    return bool(row["user_id"] == write.client and edit_time(row["version"]) == write.at)


def _says(row: Record, fields: dict[str, Any]) -> bool:
    return all(_field(row, field) == value for field, value in fields.items())


def _field(row: Record, field: str) -> Any:
    """A field that somebody wrote, in a row: its name, or what is kept in the content (for v1: PROTOCOL 8.7)."""
    return row["name"] if field == "name" else row["content"].get(field)


def _leads(edge: Record, write: Write) -> bool:
    return bool(edge["from_entity_id"] == write.id and edge["to_entity_id"] == write.says["home_id"])


async def past_edges(db: Path, ids: set[str]) -> list[Record]:
    """Every value that these edges, or edges from these entities, ever had, from the log in the database file."""
    store = SqliteStore(db)
    found: dict[tuple[str, str], Record] = {}
    try:
        async with store.transaction(GRAPH, write=False) as tx:
            head = (await tx.read(Reads())).head
            for seq in range(1, head.seq + 1):
                held = await tx.read(Reads(edges=tuple(ids), edges_from=tuple(ids), as_of=seq))
                for row in [*held.edges.values(), *(row for rows in held.edges_from.values() for row in rows)]:
                    if (row.id, row.version) not in found:
                        found[row.id, row.version] = parsed(row.relationship())
    finally:
        await store.close()
    return list(found.values())


def shown(told: Told, ledger: Ledger, histories: dict[str, list[Record]], picture: Picture) -> Shown:
    """A conflict with names in it. Versions are those that were told; v1 tells none, so its are looked up.

    A merge takes fields from both sides, so who won is a question about a field: whoever wrote the value that stands.
    """
    history = histories.get(told.entity_id, [])
    conflict = told.conflict or _of_record(told, history)
    rows = {row["version"]: row for row in history}
    local, resolved = rows.get(conflict.local_version), rows.get(conflict.resolved_version)
    writes = [told.write] if told.write else [each for each in ledger.writes if each.version == conflict.remote_version]
    said = {field: value for write in writes for field, value in write.says.items()}
    fields = {field: value for field, value in said.items() if local is None or _field(local, field) != value}

    def author(row: Record | None) -> str | None:
        if row is None:
            return None
        for write in ledger.writes:
            shared = fields.keys() & write.says.keys() if write.id == told.entity_id else ()
            if shared and all(_field(row, field) == write.says[field] for field in shared):
                return write.client
        return str(row["user_id"])

    names = {entity.id: entity.name for entity in picture.entities}
    return Shown(
        entity_id=told.entity_id,
        name=names.get(told.entity_id, told.entity_id),
        fields=fields,
        told_to=told.client,
        against=author(local),
        winner=author(resolved),
        resolution_strategy=conflict.resolution_strategy,
        local_version=conflict.local_version or None,
        remote_version=conflict.remote_version or None,
        resolved_version=conflict.resolved_version or None,
    )


def _of_record(told: Told, history: list[Record]) -> Conflict:
    """What v1 tells of a conflict, with the versions that it leaves out: those of the merge, if there was one."""
    assert told.write is not None
    pushed = next((row["version"] for row in history if _is_made_by(row, told.write)), "")
    merge = next((row for row in history if pushed in row["parent_versions"] and len(row["parent_versions"]) > 1), None)
    return Conflict(
        entity_id=told.entity_id,
        local_version="" if merge is None else next(each for each in merge["parent_versions"] if each != pushed),
        remote_version=pushed,
        # The words of v1 are the same whoever wins.
        resolution_strategy=f"told in v1 as {told.record['reason']}, {told.record['resolution']}",
        resolved_version="" if merge is None else merge["version"],
    )
