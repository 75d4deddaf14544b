"""A wire version in one file: v3 says entities and relationships in two flat lists. Try: python examples/v3.py

`up` makes a version-free request of a message, `down` bytes of the version-free answer. Who wins and what is stored is
decided elsewhere, so v1 and v2 clients see what v3 clients write. To try it, put it among the handlers, as below; to
install it, declare ``v3 = "your_package.v3:WIRE"`` under ``[project.entry-points."inbetweenies.wire"]``.
"""

import asyncio

from msgspec import UNSET, Raw, Struct, UnsetType, json
from msgspec.structs import replace

from inbetweenies import Change, Entity, Limits, ProtocolFallback, ProtocolHandler, Relationship
from inbetweenies.limits import canonical, checked_decode
from inbetweenies.model import SOURCE_TYPES, Context, Plan, SyncRequest, SyncResponse, parse_cursor, says_deleted
from inbetweenies.wire import Negotiation


class Message(Struct, kw_only=True):  # what a v3 client sends: where it stands in the log, and what it wrote
    protocol_version: str
    device: str
    cursor: str | None = None
    entities: tuple[Entity, ...] = ()
    relationships: tuple[Relationship, ...] = ()


_message, _object = json.Decoder(Message), json.Decoder(dict[str, object])


def canon(value: Raw) -> Raw:  # stored, compared and hashed in one spelling, whatever a client's looked like
    return Raw(canonical(checked_decode(_object, bytes(value)), trusted=True))


class V3:
    name, rank = "inbetweenies-v3", 3  # newer than v2, so preferred where both are offered
    features = frozenset({"paging", "acks", "digest", "edges"})  # v2 peers must announce them, v3 peers have them
    # What survives this version: all there is. What is not named here is a declared loss.
    carries = frozenset(f"{k.__name__.lower()}.{f}" for k in (Entity, Relationship) for f in k.__struct_fields__)

    def decode(self, body: bytes, *, path: str = "", strict: bool = False, limits: Limits) -> Message:
        return checked_decode(_message, body)  # `strict` is for versions that others fall back to

    def writes(self, message: Message) -> bool:
        return bool(message.entities or message.relationships)

    def up(self, message: Message, context: Context, limits: Limits) -> Plan[SyncRequest]:
        yield from ()  # a version that is a view, as v1 is, reads here what it is a view of
        changes = []
        for index, told in enumerate(message.entities):
            source = told.source_type if told.source_type in SOURCE_TYPES else "imported"
            entity = replace(told, content=canon(told.content), source_type=source)
            changes.append(Change(entity=entity, delete=says_deleted(entity.content), pointer=f"/entities/{index}"))
        edges = tuple(replace(edge, properties=canon(edge.properties)) for edge in message.relationships)
        edits = (*changes, Change(relationships=edges))
        cursor, device = parse_cursor(message.cursor or ""), f"v3:{context.token}:{message.device}"
        return SyncRequest(
            device=device, user=context.user, changes=edits, full=not cursor, cursor=cursor, features=self.features
        )

    def down(self, message: Message, response: SyncResponse, context: Context, limits: Limits,
             negotiation: Negotiation | UnsetType = UNSET) -> Plan[bytes]:  # fmt: skip
        yield from ()
        answer = {"protocol_version": self.name, "cursor": str(response.served), "more": response.more}
        answer |= {"entities": [Raw(row.body) for row in response.rows if row.kind == "entity"]}
        answer |= {"relationships": [Raw(row.body) for row in response.rows if row.kind == "edge"]}
        answer |= {"acks": response.acks, "refused": response.refused, "conflicts": response.conflicts}
        answer |= {"resync": response.resync, "digest": response.head.digest_hex}
        return json.encode(answer if negotiation is UNSET else answer | {"negotiation": negotiation})


WIRE = V3()

if __name__ == "__main__":
    server = ProtocolFallback()
    server.handlers[WIRE.name] = ProtocolHandler(server.store, wire=WIRE)
    home = {"id": "h", "version": "1", "entity_type": "home", "name": "Home", "content": {}, "source_type": "manual"}
    push = {"protocol_version": WIRE.name, "device": "tablet", "entities": [{**home, "user_id": "alice"}]}
    for message in (push, {"client_id": "an old phone, which reads it in v1"}):
        print(asyncio.run(server.handle_sync_request(message)))
