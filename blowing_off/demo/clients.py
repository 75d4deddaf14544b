"""The four that take part: replicas, and clients that speak in records as deployed ones do."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from typing import Any

import httpx
import msgspec

from inbetweenies.model import (
    DIGEST_BITS,
    Entity,
    Kind,
    Relationship,
    body_of,
    format_time,
    parse_time,
    row_hash,
)

from ..client import BlowingOffClient
from .basics import SYNC, V1, V2, DemoError, Record
from .ledger import Ledger, Told, Write


class Replica:
    """A v2 client: a BlowingOff replica, whose writes go into the ledger."""

    asked = V2

    def __init__(self, name: str, client: BlowingOffClient, ledger: Ledger) -> None:
        self.name = name
        self.client = client
        self.ledger = ledger
        self.served: str | None = None

    async def add(
        self, entity_type: str, name: str, content: dict[str, Any], *, id_: str | None = None, source: str = "manual"
    ) -> Entity:
        entity = await self.client.add(entity_type, name, content, id=id_, source_type=source)
        self._wrote(entity, {"name": name})
        return entity

    async def change(self, id_: str, doing: str, *, name: str | None = None, **patch: Any) -> Entity:
        entity = await self.client.change(id_, name=name, patch=patch)
        self._wrote(entity, ({} if name is None else {"name": name}) | patch, doing)
        return entity

    async def delete(self, id_: str, doing: str) -> Entity:
        entity = await self.client.delete(id_)
        self._wrote(entity, {"deleted": True}, doing)
        return entity

    async def link(
        self, from_id: str, to_id: str, type_: str, properties: dict[str, Any] | None = None, *, id_: str | None = None
    ) -> Relationship:
        edge = await self.client.link(from_id, to_id, type_, properties, id=id_)
        self._linked(edge, {type_: to_id})
        return edge

    async def unlink(self, id_: str, doing: str) -> Relationship:
        edge = await self.client.unlink(id_)
        self._linked(edge, {edge.relationship_type: None}, doing)
        return edge

    def _wrote(self, entity: Entity, says: dict[str, Any], doing: str | None = None) -> None:
        self.ledger.wrote(
            Write(
                client=self.name,
                kind="entity",
                id=entity.id,
                name=entity.name,
                says=says,
                version=entity.version,
                whole=parsed(entity),
            ),
            doing,
        )

    def _linked(self, edge: Relationship, says: dict[str, Any], doing: str | None = None) -> None:
        self.ledger.wrote(
            Write(
                client=self.name,
                kind="edge",
                id=edge.id,
                name=edge.relationship_type,
                says=says,
                version=edge.version,
                whole=parsed(edge),
            ),
            doing,
        )

    async def sync(self) -> None:
        report = await self.client.sync()
        self.served = report.served
        self.ledger.conflicts += [
            Told(client=self.name, entity_id=conflict.entity_id, conflict=conflict) for conflict in report.conflicts
        ]
        self.ledger.tell(f"{self.name} syncs: {report.pushed} rows sent, {report.pulled} new here")

    async def waits(self) -> bool:
        return bool(await self.client.pending())

    async def holds(self) -> tuple[int, str]:
        """How many entities there are, and the digest of what is held: counted anew from the rows, not remembered."""
        entities = await self.client.find(deleted=True)
        edges = await self.client.links(deleted=True)
        return len(await self.client.find()), digest_of(entities, edges)


class RecordClient:
    """A v1 client, scripted like the deployed one: whole records, request, push and ack, its own clock as watermark.

    It takes a pulled record if that is newer by its `updated_at`, and hands back the `sync_id` that came with it.
    With `asks` it says that it speaks that version, and sends the very same shapes to the one address of newer
    versions; there it has no ack, as without changes an unknown version is only ever answered with a read.
    """

    def __init__(
        self, name: str, http: httpx.AsyncClient, token: str, ledger: Ledger, *, asks: str | None = None
    ) -> None:
        self.name = name
        self.asked = asks or V1
        self.served: str | None = None
        self.records: dict[tuple[str, str], Record] = {}
        self.waiting: dict[tuple[str, str], list[Write]] = {}
        self.last_sync: str | None = None
        self._asks = asks
        self._http = http
        self._token = token
        self._ledger = ledger

    # a person

    def add(self, type_: str, doing: str, **fields: Any) -> str:
        """A new record, under an id of its own."""
        id_ = str(uuid.uuid4())
        now = format_time(self._ledger.clock(), naive=True)
        self.records[type_, id_] = {"id": id_, **fields, "created_at": now, "updated_at": now, "sync_id": None}
        self._wrote(type_, id_, fields, doing)
        return id_

    def edit(self, type_: str, id_: str, doing: str, **fields: Any) -> None:
        """Change fields of a record."""
        now = format_time(self._ledger.clock(), naive=True)
        self.records[type_, id_] = {**self.records[type_, id_], **fields, "updated_at": now}
        self._wrote(type_, id_, fields, doing)

    def _wrote(self, type_: str, id_: str, fields: dict[str, Any], doing: str) -> None:
        record = self.records[type_, id_]
        write = Write(client=self.name, kind="record", id=id_, name=record["name"], says=fields)
        waiting = self.waiting.setdefault((type_, id_), [])
        waiting.append(self._ledger.wrote(write, doing))
        for each in waiting:
            # A record is pushed once, as it is then: all that waits in it goes under its last time.
            each.at = parse_time(record["updated_at"]) or 0

    # a sync

    async def sync(self) -> None:
        delta = await self._say(
            "request",
            type="sync_request",
            last_sync=self.last_sync,
            entity_types=["homes", "rooms", "accessories", "users"],
            include_deleted=True,
        )
        for change in delta["changes"]:
            self._take(change)
        sent = len(self.waiting)
        if self.waiting:
            await self._push()
        if self._asks is None:
            done = format_time(self._ledger.clock(), naive=True)
            await self._say("ack", type="sync_ack", sync_completed_at=done)
        self.last_sync = format_time(self._ledger.clock(), naive=True)
        self._ledger.tell(f"{self.name} syncs: {sent} records sent, {len(delta['changes'])} told")

    def _take(self, change: Record) -> None:
        key = (change["entity_type"], change["entity_id"])
        here = self.records.get(key)
        if change["operation"] == "delete":
            self.records.pop(key, None)
            self.waiting.pop(key, None)
        elif here is None or _time(change["updated_at"]) > _time(here["updated_at"]):
            self.records[key] = change["data"]

    async def _push(self) -> None:
        labels = {str(uuid.uuid4()): key for key in self.waiting}
        changes = [
            {
                "entity_type": type_,
                "entity_id": id_,
                "operation": "update",
                "data": self.records[type_, id_],
                "client_sync_id": label,
            }
            for label, (type_, id_) in labels.items()
        ]
        result = await self._say("push", type="sync_push", changes=changes)
        for conflict in result["conflicts"]:
            key = (conflict["entity_type"], conflict["entity_id"])
            self._ledger.conflicts += [
                Told(client=self.name, entity_id=key[1], record=conflict, write=write)
                for write in self.waiting.get(key, ())
            ]
        for applied in result["applied"]:
            if applied["status"] == "applied":
                self._acknowledged(labels.get(applied["client_sync_id"], ("", "")))

    def _acknowledged(self, key: tuple[str, str]) -> None:
        self.waiting.pop(key, None)

    async def _say(self, step: str, **message: Any) -> Record:
        message["client_id"] = self.name
        path = f"{SYNC}{step}"
        if self._asks is not None:
            message, path = {"protocol_version": self._asks, **message}, SYNC
        answer = checked(await self._http.post(path, json=message, headers=bearer(self._token)))
        told: Record = answer.json()
        # A deployed client is told nothing in the body, as it asked for nothing: its answers look as they always did.
        self.served = told.get("protocol_version") or answer.headers.get("inbetweenies-version")
        return told

    async def waits(self) -> bool:
        return bool(self.waiting)

    async def holds(self) -> tuple[int, str]:
        """How many records there are, and a digest of them."""
        return len(self.records), digest_of_records(self.records)


Member = Replica | RecordClient


def checked(response: httpx.Response) -> httpx.Response:
    """`response`, if the server took the request; a `DemoError` that says why not, else."""
    if response.status_code != 200:
        raise DemoError(f"expected 200 from {response.url.path}; got {response.status_code} {response.text[:300]}")
    return response


def bearer(token: str) -> dict[str, str]:
    """The header that says who speaks."""
    return {"authorization": f"Bearer {token}"}


def _time(text: str) -> int:
    return parse_time(text) or 0


def parsed(value: Entity | Relationship) -> dict[str, Any]:
    """The fields of a row's value."""
    fields: dict[str, Any] = msgspec.json.decode(body_of(value))
    return fields


def digest_of(entities: Iterable[Entity], edges: Iterable[Relationship]) -> str:
    """PROTOCOL 4.8, counted from nothing: the sum of the hashes of these rows."""
    rows: list[tuple[Kind, Entity | Relationship]] = [("entity", each) for each in entities]
    rows += [("edge", each) for each in edges]
    total = sum(int.from_bytes(row_hash(kind, body_of(each)), "big") for kind, each in rows)
    return f"{total % (1 << DIGEST_BITS):064x}"


def digest_of_records(records: dict[tuple[str, str], Record]) -> str:
    """A digest of v1 records: everything in them but `sync_id`, which is no part of a record but of its transport."""
    listed = [[*key, {**records[key], "sync_id": None}] for key in sorted(records)]
    text = json.dumps(listed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
