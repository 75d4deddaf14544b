"""What several test modules share: driving coroutines without an event loop, and pushing to a store in few words."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from msgspec import Raw

from inbetweenies import engine, exchange
from inbetweenies.limits import Limits, canonical
from inbetweenies.merge import Policy
from inbetweenies.model import (
    Change,
    Context,
    Entity,
    Held,
    Reads,
    Relationship,
    SyncRequest,
    SyncResponse,
    make_version,
)
from inbetweenies.store import Store
from inbetweenies.stores.memory import MemoryStore

T = TypeVar("T")
NOW = 1_781_516_462_000_000
SECOND = 1_000_000


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits; one that does is a bug."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("the coroutine waited for something")


def entity(id_: str, version: str, content: Mapping[str, Any] | None = None, **fields: Any) -> Entity:
    """An entity in few words; a device called by its id unless `fields` say otherwise."""
    plain = {"entity_type": "device", "name": id_, "source_type": "manual", "user_id": "ann", "parent_versions": ()}
    return Entity(id=id_, version=version, content=Raw(canonical(dict(content or {}))), **(plain | fields))


def edge(id_: str, one: Entity, other: Entity, version: str = "v1", **fields: Any) -> Relationship:
    """An edge between two rows."""
    properties = Raw(canonical(fields.pop("properties", {})))
    return Relationship(
        id=id_,
        version=version,
        from_entity_id=one.id,
        from_entity_version=one.version,
        to_entity_id=other.id,
        to_entity_version=other.version,
        relationship_type=fields.pop("relationship_type", "located_in"),
        properties=properties,
        **fields,
    )


def at(seconds: float, user: str = "ann", counter: int = 0) -> str:
    """The canonical version of an edit made `seconds` after `NOW`."""
    return make_version(NOW + int(seconds * SECOND), counter, user)


class Server:
    """A graph behind the engine, without any wire version."""

    def __init__(
        self, store: Store | None = None, *, policy: Policy | None = None, limits: Limits | None = None
    ) -> None:
        self.store = store or MemoryStore()
        self.policy = policy or Policy()
        self.limits = limits or Limits()
        self.now = NOW

    def ask(self, request: SyncRequest, graph: str = "default") -> SyncResponse:
        async def exchanged() -> SyncResponse:
            async with self.store.transaction(graph, write=True) as tx:
                context = Context(graph=graph, now=self.now)
                return await exchange.run(engine.serve(request, context, self.limits, self.policy), tx)

        return run(exchanged())

    def push(self, *items: Entity | Relationship, delete: bool = False, **fields: Any) -> SyncResponse:
        changes = []
        for index, item in enumerate(items):
            pointer = f"/changes/{index}"
            if isinstance(item, Entity):
                changes.append(Change(entity=item, delete=delete, pointer=pointer))
            else:
                changes.append(Change(relationships=(item,), pointer=pointer))
        return self.ask(SyncRequest(device="d", user="ann", changes=tuple(changes), **fields))

    def pull(self, **fields: Any) -> SyncResponse:
        return self.ask(SyncRequest(device="p", user="ann", **fields))

    def held(self, reads: Reads, graph: str = "default") -> Held:
        async def read() -> Held:
            async with self.store.transaction(graph, write=False) as tx:
                return await tx.read(reads)

        return run(read())

    def current(self, id_: str) -> Entity:
        return self.held(Reads(entities=(id_,))).entities[id_].entity()
