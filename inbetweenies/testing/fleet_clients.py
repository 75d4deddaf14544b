"""The clients of `MixedFleet` that speak `inbetweenies-v2`: small, honest models of what is deployed, defects included.

Losses that a deployed client brings about all by itself (an edit that a pull writes over, a mark cleared for an edit
that was made in flight) are its own and are never claimed against the server; see `DeployedV2.stray`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from .. import replica
from ..errors import RemoteProtocolError
from ..limits import canonical, gate
from ..model import (
    DIGEST_BITS,
    ENTITY_TYPES,
    Answer,
    Entity,
    Kind,
    Relationship,
    edge_version,
    format_time,
    make_version,
    parse_time,
)
from ..replica import Absorbed, Copy, Key, Local, Pending, Pointer, RowKey, State
from .fleet_base import (
    FIELDS,
    NAMES,
    THINGS,
    VALUES,
    Act,
    Body,
    Client,
    Done,
    JsonClient,
    NoAnswer,
    PowerCut,
    Pushed,
    World,
    codec,
    short,
)

_decode = msgspec.json.decode


class _V2(Client):
    wire = "inbetweenies-v2"

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        super().__init__(name, world, user=user, skew=skew)
        self.counter = 0

    @abstractmethod
    def row(self, id_: str) -> Entity | None:
        """The row that a person sees."""

    @abstractmethod
    def keep(self, entity: Entity) -> None:
        """Store a local edit."""

    def link(self, act: Act) -> str | None:
        """Store a local edit of an edge."""
        return None

    def version(self) -> str:
        self.counter += 1
        return make_version(self.now, self.counter - 1, self.user)

    def parents(self, before: Entity) -> tuple[str, ...]:
        return (before.version,)

    def next_row(self, id_: str, entity_type: str, name: str, content: Body) -> Entity:
        """The row with which this program follows what it shows of `id_`."""
        before = self.row(id_)
        return Entity(
            id=id_,
            version=self.version(),
            entity_type=entity_type,
            name=name,
            content=Raw(canonical(content)),
            source_type=before.source_type if before else "manual",
            user_id=self.user,
            parent_versions=self.parents(before) if before else (),
        )

    def edit(self, act: Act) -> str | None:
        if act.verb in ("link", "unlink"):
            return self.link(act)
        before = self.row(act.thing)
        content: dict[str, Any] = _decode(before.content) if before else {}
        name = before.name if before else act.thing
        field, value = FIELDS[act.value % len(FIELDS)], VALUES[act.value // len(FIELDS) % len(VALUES)]
        if act.verb == "delete":
            if before is None:
                return None
            content["deleted"] = True
        elif act.verb == "rename":
            name = NAMES[act.value % len(NAMES)]
        elif act.verb == "set":
            content[field] = copy.deepcopy(value)
        elif act.verb == "nest":
            inner = content.get("deep")
            content["deep"] = {**(inner if isinstance(inner, dict) else {}), field: copy.deepcopy(value)}
        elif act.verb == "drop":
            content.pop(field, None)
        elif act.verb == "revive" and not content.pop("deleted", None):
            return None
        if act.thing == "ann":
            content.setdefault("kind", "user")
        row = self.next_row(act.thing, before.entity_type if before else THINGS[act.thing], name, content)
        if act.verb == "poison":
            # Legal JSON that cannot be stored: the server must refuse this row and nothing else.
            row = replace(row, version=row.version + "\u0001")
        self.keep(row)
        after = ", ".join(short(parent) for parent in row.parent_versions[-3:])
        return f"{act.verb} {short(act.thing)} as {short(row.version)} after [{after}]"


class _Image(msgspec.Struct):
    """What a modern client has on disk."""

    state: State
    copies: dict[tuple[Kind, str, str, bytes], Copy] = {}
    pointers: dict[Key, Pointer] = {}
    pending: dict[int, Pending] = {}
    marks: int = 0

    def fork(self) -> _Image:
        return _Image(self.state, dict(self.copies), dict(self.pointers), dict(self.pending), self.marks)


class ReplicaStore:
    """A replica in memory that a power cut cannot tear: every change of it is one transaction."""

    def __init__(self, device: str, user: str) -> None:
        self.image = _Image(State(device=device, user=user))
        #: After how many more writes the power fails; None for never.
        self.power: int | None = None

    @contextmanager
    def transaction(self) -> Iterator[_Image]:
        """Changes that are stored together, or not at all."""
        image = self.image.fork()
        yield image
        self.image = image

    def write(self) -> None:
        """One write reaches the disk, if there is power."""
        if self.power is not None:
            self.power -= 1
            if self.power < 0:
                self.power = None
                raise PowerCut

    def edit(self, row: Copy) -> None:
        """A local change: the row, the pointer to it, and the mark that it waits."""
        with self.transaction() as image:
            self._mark(image, row)

    def _mark(self, image: _Image, row: Copy) -> None:
        image.marks += 1
        image.copies[*row.key, row.version, row.hash] = row
        image.pending[image.marks] = Pending(n=image.marks, copy=row)
        pointer = image.pointers.get(row.key) or Pointer()
        image.pointers[row.key] = replace(pointer, ours=row.version)

    def pending(self) -> list[Pending]:
        """What waits, oldest first; what was refused already stands behind the rest, so as not to stop it."""
        return sorted(self.image.pending.values(), key=lambda item: (item.note is not None, item.n))

    def visible(self, key: Key) -> Copy | None:
        """What a person sees of `key`."""
        pointer = self.image.pointers.get(key)
        if pointer is None or pointer.visible is None:
            return None
        for item in reversed(self.image.pending.values()):
            if item.copy.key == key and item.copy.version == pointer.ours:
                return item.copy
        return self.image.copies.get((*key, pointer.visible, pointer.theirs_hash or b""))

    def local(self, answer: Answer, sent: tuple[Pending, ...]) -> Local:
        """What `replica.absorb` must see."""
        image = self.image
        keys, rows = replica.mentions(answer, sent)
        wanted = set(rows)
        known: dict[RowKey, bytes] = {}
        for kind, id_, version, hash_ in image.copies:
            if (kind, id_, version) in wanted:
                known[kind, id_, version] = hash_
        for kind, id_, version in rows:
            pointer = image.pointers.get((kind, id_))
            if pointer is not None and pointer.theirs == version and pointer.theirs_hash is not None:
                known[kind, id_, version] = pointer.theirs_hash
        marks: dict[Key, tuple[tuple[int, str], ...]] = {}
        for n, item in image.pending.items():
            marks[item.copy.key] = (*marks.get(item.copy.key, ()), (n, item.copy.version))
        return Local(
            pointers={key: image.pointers[key] for key in keys if key in image.pointers}, known=known, pending=marks
        )

    def commit(self, absorbed: Absorbed) -> None:
        """What an answer changes: the cursor belongs to the same transaction as the rows that it covers."""
        with self.transaction() as image:
            self.write_rows(image, absorbed)
            self.write_state(image, absorbed)
        if absorbed.offer_again:
            self.offer_again()

    def write_rows(self, image: _Image, absorbed: Absorbed) -> None:
        """Rows, pointers and marks."""
        self.write()
        image.copies.update({(*row.key, row.version, row.hash): row for row in absorbed.copies})
        self.write()
        image.pointers.update(absorbed.pointers)
        self.write()
        for n in absorbed.cleared:
            image.pending.pop(n, None)
        for n, note in absorbed.notes.items():
            if n in image.pending:
                image.pending[n] = replace(image.pending[n], note=note)

    def write_state(self, image: _Image, absorbed: Absorbed) -> None:
        """The cursor."""
        self.write()
        image.state = absorbed.state

    def offer_again(self) -> None:
        """PROTOCOL 10.6: rows that the server did not tell again are offered to it."""
        with self.transaction() as image:
            state = image.state
            digest = state.digest
            for key, pointer in list(image.pointers.items()):
                if pointer.theirs is None or pointer.theirs_hash is None or pointer.round >= state.round:
                    continue
                row = image.copies[*key, pointer.theirs, pointer.theirs_hash]
                digest -= int.from_bytes(pointer.theirs_hash, "big")
                image.pointers[key] = replace(pointer, theirs=None, theirs_hash=None)
                if pointer.ours is None:
                    self._mark(image, row)
            image.state = replace(state, restarting=False, digest=digest % (1 << DIGEST_BITS))


class ModernV2(_V2):
    """Our own client: `inbetweenies.replica` over a store, with features, in pages and batches of few rows."""

    kind = "modern"
    acts = ("create", "rename", "set", "nest", "drop", "delete", "revive", "link", "unlink", "poison")

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        super().__init__(name, world, user=user, skew=skew)
        self.store = ReplicaStore(name, user)
        self.sent: tuple[Pending, ...] = ()
        #: Whether the server's log may have been rewound under this client, so that a digest may rightly differ.
        self.rewound = False
        #: How many rows the last answer told, and whether it said that there are more.
        self.page, self.more = 0, False

    def row(self, id_: str) -> Entity | None:
        found = self.store.visible(("entity", id_))
        return None if found is None else msgspec.json.decode(found.body, type=Entity)

    def keep(self, entity: Entity) -> None:
        self.store.edit(replica.copy_of(entity))

    def link(self, act: Act) -> str | None:
        ends = ("lamp", "home") if act.value % 2 else ("room", "home")
        one, other = (self.row(id_) for id_ in ends)
        if one is None or other is None:
            return None
        edge = Relationship(
            id=f"edge-{act.value % 2}",
            version=self.version(),
            from_entity_id=one.id,
            from_entity_version=one.version,
            to_entity_id=other.id,
            to_entity_version=other.version,
            relationship_type="located_in",
            properties=Raw(b'{"deleted":true}' if act.verb == "unlink" else b"{}"),
            user_id=self.user,
        )
        self.store.edit(replica.copy_of(edge))
        return f"{act.verb} {edge.id} as {short(edge.version)}"

    def begin(self) -> str:
        return "sync"

    def message(self) -> bytes:
        ask, self.sent = replica.compose(
            self.store.image.state,
            self.store.pending(),
            page_rows=self.world.page_rows,
            changes_max=self.world.batch,
        )
        rows: list[Entity | Relationship] = []
        for change in ask.changes:
            rows += [change.entity] if change.entity is not None else []
            rows += change.relationships
        self.pushed = Pushed(rows=tuple(rows))
        body: bytes = codec(self.wire).ask(ask)
        return body

    def take_in(self, answer: bytes) -> str:
        try:
            gate(answer)
            told = codec(self.wire).told(answer)
        except RemoteProtocolError as error:
            raise NoAnswer from error
        if told.protocol_version != self.wire:
            raise NoAnswer  # PROTOCOL 5.9
        self.page = sum((change.entity is not None) + len(change.relationships) for change in told.changes)
        self.more = told.more
        before = self.store.image
        absorbed = replica.absorb(told, self.sent, before.state, self.store.local(told, self.sent))
        if (absorbed.differs or absorbed.healed) and not self.rewound:
            self.world.broken("8 (cursor)", f"{self.name} has drained the log and its digest differs from the server's")
        self.store.commit(absorbed)
        forgotten = [before.pending[n].copy for n in absorbed.cleared if n in before.pending]
        for row in forgotten:
            shape: Any = Entity if row.kind == "entity" else Relationship
            self.done.append(Done(msgspec.json.decode(row.body, type=shape)))
        for item in self.sent:
            left = self.store.image.pending.get(item.n)
            if left is not None and left.note is None and not told.resync:
                self.world.broken(
                    "3 (atomic)", f"{self.name} waits with {left.copy.id!r} and is not told why: {answer.decode()}"
                )
        self.check()
        return "sync" if not absorbed.drained or self._unsent() else ""

    def _unsent(self) -> bool:
        sent = {item.n for item in self.sent}
        return any(item.note is None and item.n not in sent for item in self.store.image.pending.values())

    def offers(self) -> set[RowKey]:
        """What it would offer to a server that has lost its log: what waits, and what it takes for current."""
        image = self.store.image
        told: set[RowKey] = {(*key, pointer.theirs) for key, pointer in image.pointers.items() if pointer.theirs}
        return told | {(*item.copy.key, item.copy.version) for item in image.pending.values()}

    def check(self) -> None:
        """Laws that a replica must keep by itself."""
        image = self.store.image
        newest: dict[Key, str] = {}
        for item in image.pending.values():
            newest[item.copy.key] = item.copy.version
        digest = 0
        for key, pointer in image.pointers.items():
            digest += int.from_bytes(pointer.theirs_hash or b"", "big")
            if pointer.ours != newest.get(key):
                self.world.broken(
                    "2 (guard)", f"{self.name} waits with {newest.get(key)} of {key} and shows {pointer.visible}"
                )
            if pointer.visible is not None and self.store.visible(key) is None:
                self.world.broken("2 (guard)", f"{self.name} shows {key} {pointer.visible}, which it does not hold")
        if digest % (1 << DIGEST_BITS) != image.state.digest:
            self.world.broken("8 (cursor)", f"{self.name} keeps a digest that is not the sum of what it holds")

    def restart(self) -> None:
        super().restart()
        self.store.power = None
        self.sent = ()
        self.check()

    @property
    def pending(self) -> tuple[str, ...]:
        waiting = self.store.image.pending.values()
        return tuple(f"{item.copy.id}@{item.copy.version}" for item in waiting if item.note is None)


class DeployedV2(_V2, JsonClient):
    """Blowing-Off as deployed: pull, then push all that waited when the sync began; marks are cleared by id.

    What it loses by itself: a pull writes over an edit that waits, and if the push then fails the edit is gone; an edit
    made while a push is under way loses its mark. `stray` holds the ids at which it therefore shows what nobody else
    knows, until a pull tells it otherwise.
    """

    kind = "deployed"
    acts: ClassVar[tuple[str, ...]] = ("create", "rename", "set", "nest", "delete", "revive", "link")

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        super().__init__(name, world, user=user, skew=skew)
        self.rows: dict[str, Entity] = {}
        self.marks: dict[str, None] = {}
        self.edges: dict[str, Relationship] = {}
        self.edge_marks: dict[str, None] = {}
        self.stray: set[str] = set()
        #: The ids that were edited here since what waits was gathered for the push under way.
        self.edited: set[str] = set()
        self.since: str | None = None
        self.next_since: str | None = None
        self.sent: dict[str, Entity] = {}
        self.sent_edges: dict[str, Relationship] = {}

    def row(self, id_: str) -> Entity | None:
        return self.rows.get(id_)

    def keep(self, entity: Entity) -> None:
        self.rows[entity.id] = entity
        self.marks[entity.id] = None
        self.edited.add(entity.id)

    def parents(self, before: Entity) -> tuple[str, ...]:
        # All the ancestors it knows of, not only the nearest: the list grows with every edit.
        return (*before.parent_versions, before.version)

    def link(self, act: Act) -> str | None:
        one, other = self.rows.get("lamp"), self.rows.get("home")
        if one is None or other is None:
            return None
        edge = Relationship(
            id=f"edge-of-{self.name}",
            version="",
            from_entity_id=one.id,
            from_entity_version=one.version,
            to_entity_id=other.id,
            to_entity_version=other.version,
            relationship_type="located_in",
            # A value that was there before could not be told from a repeated message: its edges have no versions.
            properties=Raw(canonical({"n": self.counter})),
            user_id=self.user,
        )
        self.counter += 1
        self.edges[edge.id] = edge
        self.edge_marks[edge.id] = None
        return f"link {edge.id}"

    def gather(self) -> None:
        """What waits is taken as it is now; edits from here on are for the next sync."""
        self.edited.clear()
        self.sent = {id_: self.rows[id_] for id_ in self.marks}
        self.sent_edges = {id_: self.edges[id_] for id_ in self.edge_marks}

    def begin(self) -> str:
        self.gather()
        return "pull"

    def compose(self) -> Body:
        body: Body = {
            "protocol_version": self.wire,
            "device_id": self.name,
            "user_id": self.user,
            "sync_type": "delta" if self.phase == "push" or self.since is not None else "full",
            "vector_clock": {"clocks": {}},
            "changes": [],
        }
        if self.phase == "pull":
            if self.since is not None:
                body["filters"] = {"since": self.since}
            return body
        edges: dict[str, list[Relationship]] = {}
        for edge in self.sent_edges.values():
            edges.setdefault(edge.from_entity_id, []).append(edge)
        changes: list[Body] = body["changes"]
        for entity in self.sent.values():
            kind = "update" if entity.parent_versions else "create"
            with_it = [self.edge_out(edge) for edge in edges.pop(entity.id, ())]
            changes.append({"change_type": kind, "entity": self.entity_out(entity), "relationships": with_it})
        changes += [
            {"change_type": "update", "relationships": [self.edge_out(edge) for edge in loose]}
            for loose in edges.values()
        ]
        named = (replace(edge, version=edge_version(edge)) for edge in self.sent_edges.values())
        self.pushed = Pushed(rows=(*self.sent.values(), *named))
        return body

    def entity_out(self, entity: Entity) -> Body:
        """An entity as this program writes it: only the fields that it knows."""
        return {
            "id": entity.id,
            "version": entity.version,
            "entity_type": entity.entity_type,
            "name": entity.name,
            "content": _decode(entity.content),
            "source_type": entity.source_type,
            "user_id": entity.user_id,
            "parent_versions": list(entity.parent_versions),
        }

    def edge_out(self, edge: Relationship) -> Body:
        """An edge as this program writes it: it has neither version nor user."""
        return {
            "id": edge.id,
            "from_entity_id": edge.from_entity_id,
            "from_entity_version": edge.from_entity_version,
            "to_entity_id": edge.to_entity_id,
            "to_entity_version": edge.to_entity_version,
            "relationship_type": edge.relationship_type,
            "properties": _decode(edge.properties),
        }

    def absorb(self, answer: Body) -> str:
        if self.phase == "pull":
            self.take(answer["changes"])
            self.next_since = self.watermark(answer["server_time"])
            if self.sent or self.sent_edges:
                return "push"
        else:
            self.forget(answer["applied"], answer["applied_relationships"])
        self.since = self.next_since
        return ""

    def watermark(self, server_time: str) -> str:
        micros = parse_time(server_time)
        assert micros is not None, "server_time is always a time"
        return format_time(micros, naive=True)

    def take(self, changes: list[Body]) -> None:
        """What a pull tells is written over whatever is here."""
        for change in changes:
            entity = self.entity_in(change["entity"])
            if entity.entity_type in ENTITY_TYPES:
                self.rows[entity.id] = entity
                self.stray.discard(entity.id)
                self.edited.discard(entity.id)

    def entity_in(self, told: Body) -> Entity:
        known = {name: told[name] for name in ("id", "version", "entity_type", "name", "source_type", "user_id")}
        return Entity(
            **known, content=Raw(canonical(told["content"])), parent_versions=tuple(told.get("parent_versions", ()))
        )

    def forget(self, ids: list[str], edges: list[str]) -> None:
        for id_ in ids:
            if id_ in self.sent:
                self.done.append(Done(self.sent[id_]))
                if id_ in self.edited:
                    self.stray.add(id_)
            self.marks.pop(id_, None)
        for id_ in edges:
            if id_ in self.sent_edges:
                self.done.append(Done(self.sent_edges[id_]))
            self.edge_marks.pop(id_, None)

    @property
    def pending(self) -> tuple[str, ...]:
        return (*self.marks, *self.edge_marks)


class KittenKong(DeployedV2):
    """KittenKong as deployed: upper case, versions ``v-<ms>``, the parents of the row before, no edges.

    It clears a mark when it sees the id in the `changes` of the push's answer. Pulls write over what waits before the
    push is built. Its watermark is cut to milliseconds.
    """

    kind = "kitten"
    acts = ("create", "rename", "set", "nest", "delete")

    def version(self) -> str:
        return f"v-{self.now // 1000}"

    def parents(self, before: Entity) -> tuple[str, ...]:
        return before.parent_versions

    def begin(self) -> str:
        return "pull"

    def watermark(self, server_time: str) -> str:
        micros = parse_time(server_time)
        assert micros is not None, "server_time is always a time"
        return format_time(micros // 1000 * 1000, naive=True)[:23] + "Z"

    def entity_out(self, entity: Entity) -> Body:
        told = super().entity_out(entity)
        return told | {"entity_type": told["entity_type"].upper(), "source_type": told["source_type"].upper()}

    def absorb(self, answer: Body) -> str:
        if self.phase == "push":
            told = [change["entity"]["id"] for change in answer["changes"]]
            self.forget([id_ for id_ in told if id_ in self.sent], [])
            self.take(answer["changes"])
            self.since = self.next_since
            return ""
        self.take(answer["changes"])
        self.next_since = self.watermark(answer["server_time"])
        self.gather()
        if not self.sent:
            self.since = self.next_since
            return ""
        return "push"
