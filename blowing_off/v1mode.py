"""A sync with a server that only speaks ``inbetweenies-v1``: what records can say goes over, the rest waits here.

v1 is a view of the graph, so an exchange is: read every record, take over what differs from the view of what the
server held before, and push the records of what waits. Rows do not exist in v1. A mark is therefore only cleared if
the server has the record and the record says all that the row says (law 1); everything else keeps waiting, marked
``v1_cannot_carry``, and is pushed whole to the next server that speaks more.

The wire version is found by its name, like all others; this module only knows the shape of its client's half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from importlib import import_module
from typing import Any, Final

import msgspec
from msgspec import Struct

from inbetweenies.errors import RemoteProtocolError
from inbetweenies.limits import Limits, canonical, checked_decode, gate
from inbetweenies.model import Answer, Change, Head, Refused, Row, edit_time, format_time, parse_time
from inbetweenies.replica import Copy, Key, Pending, State, absorb, mentions

from .store import LocalStore
from .transport import BadAnswer, Transport

REQUEST_PATH: Final = "/api/v1/sync/request"
PUSH_PATH: Final = "/api/v1/sync/push"
ACK_PATH: Final = "/api/v1/sync/ack"
LIMITS: Final = Limits(body_bytes_max=256 * 2**20, nodes_max=2**22)
TIE_US: Final = 1_000_000  # the deployed server prefers its own record to one that is less than a second newer

#: What every row has and no record: not part of what a person said.
_OF_ROWS: Final = frozenset(
    "version source_type source_original user_id parent_versions checksum merged "
    "from_entity_version to_entity_version".split()
)

_parse = msgspec.json.decode


class Done(Struct, frozen=True, kw_only=True):
    """What an exchange did: marks cleared, ids whose row on the server became known, records sent, messages."""

    pushed: int
    pulled: int
    sent: int
    messages: int
    refused: tuple[Refused, ...]


class _Kind(Struct):
    type: Any = None
    negotiation: Any = None


_kind = msgspec.json.Decoder(_Kind)


class V1Exchange:
    """One sync in v1. `probe` must say yes before `run`.

    Args:
        offer: the wire versions that this client would be answered in as well.
    """

    def __init__(
        self,
        store: LocalStore,
        transport: Transport,
        wire: Any,
        *,
        clock: Callable[[], int],
        ids: Callable[[], str],
        batch_changes: int,
        offer: tuple[str, ...],
    ) -> None:
        self.store = store
        self.transport = transport
        self.name: str = wire.name
        package = type(wire).__module__
        self.codec: Any = import_module(f"{package}.codec")
        self.lens: Any = import_module(f"{package}.lens")
        self.graph: Any = import_module(f"{package}.graph")
        self.clock = clock
        self.ids = ids
        self.batch_changes = batch_changes
        self.offer = offer
        self.messages = 0
        self.first = b""
        self.negotiation: Any = None  # what the server said of the choice of this version, if it did
        self.refused: dict[str, Any] = {}  # by entity, what the server said against its record

    @property
    def state(self) -> State:
        state = self.store.state()
        assert state is not None
        return state

    async def probe(self) -> bool:
        """Whether the server answers a v1 request as v1 does: the one signal on which to speak it (law 10). Nothing
        is taken from the answer yet."""
        self.first = await self._post(REQUEST_PATH, self._request(None))
        try:
            told = self._told(_kind, self.first)
        except BadAnswer:
            return False
        self.negotiation = told.negotiation
        return bool(told.type == "sync_delta")

    async def run(self) -> Done:
        """Read, take over, push, and tell the server that it was heard."""
        state = self.state
        everything = self._delta(self.first)
        changes = list(everything.changes)
        if state.since is not None:
            # Only what is asked for since some time tells deletes.
            body = self._request(state.since)
            gone = [
                one for one in self._delta(await self._post(REQUEST_PATH, body)).changes if one.operation == "delete"
            ]
            changes += gone
        pulled = self._take(changes, parse_time(everything.server_time))
        records = {
            (one.entity_type, one.entity_id): one.data
            for one in changes
            if one.operation != "delete" and isinstance(one.data, dict)
        }
        pushed, sent, refused = await self._push(records)
        await self._post(ACK_PATH, self.codec.encode_ack(state.device, self.clock(), offer=self.offer))
        return Done(pushed=pushed, pulled=pulled, sent=sent, messages=self.messages, refused=refused)

    def _request(self, since: int | None) -> bytes:
        body: bytes = self.codec.encode_request(self.state.device, since, offer=self.offer)
        return body

    async def _post(self, path: str, body: bytes) -> bytes:
        self.messages += 1
        return await self.transport.post(path, body)

    def _told(self, decoder: Any, body: bytes) -> Any:
        try:
            gate(body, LIMITS)
            return checked_decode(decoder, body)
        except RemoteProtocolError as error:
            raise BadAnswer(expected=error.expected, got=error.got, pointer=error.pointer) from error

    def _delta(self, body: bytes) -> Any:
        self._told(_kind, body)
        try:
            return self.codec.decode_delta(body)
        except RemoteProtocolError as error:
            raise BadAnswer(expected=error.expected, got=error.got, pointer=error.pointer) from error

    # --- pull -----------------------------------------------------------------------------------------------------

    def _take(self, told: Iterable[Any], server_time: int | None) -> int:
        """What records say now, as rows on top of what the server was known to hold; nothing that v1 cannot say is
        touched. What waits here stays visible (law 2)."""
        with self.store.transaction():
            state = self.state
            graph = self._graph(self.store.current(theirs=True))
            items = [
                item
                for index, one in enumerate(told)
                if (item := self.codec.item_of(f"/changes/{index}", _change(one), LIMITS)).problem is None
                and not self.codec.SHAPES[item.type].nested
            ]
            coming = {
                item.id: (self.codec.SHAPES[item.type].entity_type, _version(item))
                for item in items
                if not item.delete and item.id not in graph.entities
            }
            draft = self.lens.Draft(coming)
            changes: list[Change] = []
            for item in items:
                edit = self.lens.Edit(
                    item=item, entity_id=item.id, version=_version(item), user="v1", graph=state.device
                )
                made = self.lens.apply(edit, self._known(item, graph), graph, draft)
                draft.add(edit, made)
                if made.change is not None:
                    changes.append(made.change)
            answer = Answer(protocol_version=self.name, changes=tuple(changes), server_time=server_time)
            absorbed = absorb(answer, (), state, self.store.local(*mentions(answer, ())))
            self.store.apply(absorbed, now=self.clock())
            self.store.made_up(absorbed.copies)
            return len(absorbed.pointers)

    def _known(self, item: Any, graph: Any) -> Any:
        row = graph.entities.get(item.id)
        if row is None:
            return self.lens.Known()
        shape = self.codec.SHAPES[item.type]
        fields = self.lens.fields_of(shape, *self.graph.said(row))
        for link in shape.links:
            fields[link] = self.lens.link_of(graph, item.id, link)
        return self.lens.Known(fields=fields, base=row.entity())

    def _graph(self, copies: Iterable[Copy]) -> Any:
        rows = [_row(copy, seq) for seq, copy in enumerate(copies, 1)]
        return self.graph.graph_of(Head(epoch="v1", seq=len(rows)), rows)

    # --- push -----------------------------------------------------------------------------------------------------

    async def _push(self, records: Mapping[tuple[str, str], dict[str, Any]]) -> tuple[int, int, tuple[Refused, ...]]:
        waiting = self.store.pending()
        graph = self._graph(self.store.current())
        there: set[str] = set()  # entities whose record the server has as we say it
        to_send: dict[str, tuple[str, Any]] = {}  # by client_sync_id: the entity, and what is sent
        for id_ in dict.fromkeys(id_ for item in waiting for id_ in _of(item.copy)):
            row = graph.entities.get(id_)
            record = None if row is None else self.lens.record_of(graph, row, id_)
            if row is None or record is None:
                continue
            type_ = type(record).__name__.lower()
            shape, data = self.codec.SHAPES[type_], msgspec.to_builtins(record)
            known = records.get((type_, id_))
            if known is not None:
                data = self._edited(shape, data, known, [item.copy for item in waiting if id_ in _of(item.copy)])
            if row.deleted:
                if known is None:
                    continue
            elif known is not None and _same(shape, data, known):
                there.add(id_)
                continue
            label = self.ids()
            change = self.codec.PushChange(
                entity_type=type_,
                entity_id=id_,
                operation="delete" if row.deleted else "update",
                data=_stamped(data, known),
                client_sync_id=label,
            )
            to_send[label] = (id_, change)
        labels = list(to_send)
        for start in range(0, len(labels), self.batch_changes):
            part = {label: to_send[label] for label in labels[start : start + self.batch_changes]}
            there |= await self._push_part(part)
        return self._clear(waiting, graph, there, len(to_send))

    def _edited(
        self, shape: Any, data: dict[str, Any], known: Mapping[str, Any], waiting: list[Copy]
    ) -> dict[str, Any]:
        """The server's record with what was changed here. A record says everything, but only what differs from the
        row before the first one that waits was said here; the rest may have been changed by others since."""
        before = next((self._before(copy) for copy in waiting if copy.kind == "entity"), None)
        base = None if before is None else self.lens.fields_of(shape, *before)
        mine = {name for name in shape.fields if base is None or base[name] != data[name]}
        if not any(copy.kind == "entity" for copy in waiting):
            mine = set()
        if any(copy.kind == "edge" for copy in waiting):
            mine |= set(shape.links)
        kept = {name: known[name] for name in (*shape.fields, *shape.links) if name not in mine and name in known}
        return {**data, **kept}

    def _before(self, copy: Copy) -> tuple[str, dict[str, Any]] | None:
        """Name and content of the row that the first waiting row of an entity was made from."""
        parents = _parse(copy.body)["parent_versions"]
        for held in self.store.history(copy.id):
            if held.copy.version in parents:
                body = _parse(held.copy.body)
                return body["name"], body["content"]
        return None

    async def _push_part(self, part: Mapping[str, tuple[str, Any]]) -> set[str]:
        """Push these records; the entities among them that the server has now."""
        body = await self._post(
            PUSH_PATH,
            self.codec.encode_push(self.state.device, [change for _, change in part.values()], offer=self.offer),
        )
        self._told(_kind, body)
        try:
            result = self.codec.decode_result(body)
        except RemoteProtocolError as error:
            raise BadAnswer(expected=error.expected, got=error.got, pointer=error.pointer) from error
        there = {
            part[one.client_sync_id][0]
            for one in result.applied
            if one.client_sync_id in part and one.status == "applied"
        }
        for one in () if isinstance(result.refused, msgspec.UnsetType) else result.refused:
            if isinstance(one.client_sync_id, str) and one.client_sync_id in part:
                self.refused[part[one.client_sync_id][0]] = one
        sent = {(change.entity_type, id_): change for id_, change in part.values()}
        for conflict in result.conflicts:
            change = sent.get((conflict.entity_type, conflict.entity_id))
            # The deployed server calls each update that it took a conflict, and shows what it took.
            if (
                change is not None
                and change.operation != "delete"
                and isinstance(conflict.server_version, dict)
                and _same(self.codec.SHAPES[change.entity_type], change.data, conflict.server_version)
            ):
                there.add(conflict.entity_id)
        return there

    def _clear(
        self, waiting: list[Pending], graph: Any, there: set[str], sent: int
    ) -> tuple[int, int, tuple[Refused, ...]]:
        """Clear the marks of rows that went over whole, and say of the others that they wait for another server."""
        lost = self._lost(graph)
        alone = _alone(waiting)
        with self.store.transaction():
            cleared = tuple(
                item
                for item in waiting
                if item.copy.key in alone
                and there.issuperset(_of(item.copy))
                and (self._only_deleted(item.copy) if item.copy.deleted else item.copy.key not in lost)
            )
            state = self.state
            answer = Answer(
                protocol_version=self.name,
                applied=frozenset(item.copy.id for item in cleared if item.copy.kind == "entity"),
                applied_relationships=frozenset(item.copy.id for item in cleared if item.copy.kind == "edge"),
            )
            absorbed = absorb(answer, cleared, state, self.store.local(*mentions(answer, cleared)))
            self.store.apply(absorbed, now=self.clock())
            done = frozenset(absorbed.cleared)
            notes = {item.n: self._why(item.copy) for item in waiting if item.n not in done}
            self.store.annotate(notes)
        return len(done), sent, tuple(note for note in notes.values() if note.code != "v1_cannot_carry")

    def _why(self, copy: Copy) -> Refused:
        """Why a row still waits."""
        for id_ in _of(copy):
            if id_ in self.refused:
                said = self.refused[id_]
                return Refused(
                    id=copy.id, version=copy.version, code=said.code, pointer=said.pointer, detail=said.detail
                )
        return Refused(
            id=copy.id,
            version=copy.version,
            code="v1_cannot_carry",
            pointer="",
            detail="expected a server that takes whole rows; got one that takes records, which say only a part of it",
        )

    def _lost(self, graph: Any) -> set[Key]:
        """The rows of a graph of which the records do not say all."""
        lost: set[Key] = set()
        for loss in self.lens.view(graph)[1]:
            _, kind, id_, *rest = loss.pointer.split("/")
            id_ = id_.replace("~1", "/").replace("~0", "~")
            if kind == "entities":
                if len(rest) != 1 or rest[0] not in _OF_ROWS:
                    lost.add(("entity", id_))
            elif len(rest) != 1 or rest[0] not in _OF_ROWS | {"relationship_type"}:
                lost.add(("edge", id_))
        # An edge that the server makes out of a record is always of this type.
        lost |= {("edge", row.id) for rows in graph.edges.values() for row in rows if row.entity_type != "part_of"}
        return lost

    def _only_deleted(self, copy: Copy) -> bool:
        """Whether a tombstone says nothing but that what the server held is gone."""
        before = next((one for one in self.store.current(theirs=True) if one.key == copy.key), None)
        if before is None or copy.kind == "edge":
            return False
        mine, theirs = _parse(copy.body), _parse(before.body)
        return bool({**theirs["content"], "deleted": True} == mine["content"] and theirs["name"] == mine["name"])


def _change(told: Any) -> dict[str, Any]:
    data = told.data if isinstance(told.data, dict) else {}
    return {
        # A deployed server was seen to take plural names too; it never sends them.
        "entity_type": told.entity_type,
        "entity_id": told.entity_id,
        "operation": told.operation,
        "data": {**data, "updated_at": told.updated_at},
    }


def _version(item: Any) -> str:
    """The version of a row made from a record: its time and what it says, so that the same record is the same row."""
    said = blake2b(canonical([item.type, item.id, item.delete, item.fields]), digest_size=8).digest()
    digits = f"{int.from_bytes(said, 'big') % 10**6:06d}"
    return f"{format_time(item.edit)}-{digits}-v1" if item.edit is not None else f"v1-{said.hex()}"


def _row(copy: Copy, seq: int) -> Row:
    """A copy as the view needs it; what only a log knows is made up from its order here."""
    edit = edit_time(copy.version) or 0
    return Row(
        kind=copy.kind,
        id=copy.id,
        version=copy.version,
        seq=seq,
        until=None,
        stamp=seq,
        edit=edit,
        timed=True,
        rise=edit,
        born=edit,
        deleted=copy.deleted,
        entity_type=copy.entity_type,
        user_id="",
        from_id=copy.from_id,
        to_id=copy.to_id,
        hash=copy.hash,
        chain=b"",
        body=copy.body,
    )


def _same(shape: Any, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two records say the same of what people edit."""
    return all(one.get(name) == other.get(name) for name in (*shape.fields, *shape.links))


def _stamped(data: dict[str, Any], known: Mapping[str, Any] | None) -> dict[str, Any]:
    """A record with the stamps that a deployed server needs: its own `sync_id` and creation time where it has them, a
    `sync_id` that no other record has where it has not, and a time that it does not take for a tie."""
    if known is None:
        return data
    stamped = dict(data)
    for name in ("sync_id", "created_at"):
        if isinstance(known.get(name), str) and known[name]:
            stamped[name] = known[name]
    ours, theirs = (parse_time(str(one.get("updated_at"))) for one in (data, known))
    if ours is not None and theirs is not None and 0 <= ours - theirs < TIE_US:
        stamped["updated_at"] = format_time(theirs + TIE_US, naive=True)
    return stamped


def _of(copy: Copy) -> tuple[str, ...]:
    """The entities whose records a row can change."""
    return (copy.id,) if copy.kind == "entity" else (copy.from_id,)


def _alone(waiting: Iterable[Pending]) -> set[Key]:
    """The ids of which exactly one row waits: of several, a record says only the last."""
    once: set[Key] = set()
    twice: set[Key] = set()
    for item in waiting:
        (twice if item.copy.key in once else once).add(item.copy.key)
    return once - twice
