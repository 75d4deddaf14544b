"""The clients of `MixedFleet`: small, honest models of what is deployed, defects included.

Each client keeps what it would keep on disk, says the messages that the deployed program says, and forgets a local
change when that program would. What it takes for done it lists in `done`, for the fleet to look up in the log. Losses
that a deployed client brings about all by itself (an edit that a pull writes over, a mark cleared for an edit that was
made in flight) are its own and are never claimed against the server; see `DeployedV2.stray`.

Nothing here waits, reads a clock or draws at random: the fleet does that, and hands the results in.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, Final, NamedTuple, NoReturn

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from .. import replica
from ..limits import canonical
from ..model import (
    DIGEST_BITS,
    ENTITY_TYPES,
    Answer,
    Entity,
    Kind,
    Relationship,
    format_time,
    make_version,
    parse_time,
)
from ..replica import Absorbed, Copy, Key, Local, Pending, Pointer, RowKey, State
from ..wire import load

Body = dict[str, Any]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode

#: What fleets edit: id -> entity type. Few, so that clients meet on them. The long one is as legal as the others.
THINGS: Final[Mapping[str, str]] = {
    "home": "home",
    "lamp": "device",
    "room": "room",
    "ann": "note",
    "hub": "device",
    "cabin": "home",
    "note": "note",
    "door-" + "é" * 240: "door",
}
NAMES: Final = ("Kitchen", "Küche 🏠", "", "kitchen", "\u0000")
FIELDS: Final = ("manufacturer", "is_reachable", "colour", "is_primary", "services", "a/b~c")
VALUES: Final[tuple[Any, ...]] = (
    "Acme", True, False, None, 1, 1.0, "", [1, {"a": None}], {}, {"x": 1}, 2**70, {"s": {"name": "Light"}},
)  # fmt: skip
#: Texts and flags that v1 programs really write.
V1_TEXTS: Final = ("Acme", "L1", None)


@cache
def installed() -> dict[str, Any]:
    """The wire versions there are. `load` looks through all that is installed, which is slow."""
    return dict(load())


def codec(name: str) -> Any:
    """A wire version by name."""
    return installed()[name]


class Act(NamedTuple):
    """One offline edit: what to do with which thing, and a number that picks the value."""

    verb: str
    thing: str
    value: int


class Done(NamedTuple):
    """A row that a client of v2 has stopped keeping for the server."""

    row: Entity | Relationship


class DoneRecord(NamedTuple):
    """Fields of a record that a client of v1 has stopped keeping for the server."""

    entity_type: str
    id: str
    fields: dict[str, Any]


class World(NamedTuple):
    """What clients may ask of the fleet.

    `clock` is true time in microseconds, `told` takes a line for the trace, `broken` reports a broken law.
    """

    clock: Callable[[], int]
    told: Callable[[str], None]
    broken: Callable[[str, str], NoReturn]
    page_rows: int
    batch: int


def short(text: str) -> str:
    """An id or a version in a line for people: without the date, and not too long."""
    return ascii(text[11:] if text[10:11] == "T" else text)[1:-1][:40]


class PowerCut(Exception):
    """The machine of a client stopped in the middle of something."""


class Client(ABC):
    """One program on one device. A sync is a row of messages; at most one of them is under way."""

    kind: ClassVar[str]
    #: The wire version that a server must serve for this client to be of use.
    wire: ClassVar[str]
    acts: ClassVar[tuple[str, ...]]

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        self.name = name
        self.user = user
        self.world = world
        self.skew = skew
        self.done: list[Done | DoneRecord] = []
        self.waiting = False
        self.phase = ""
        self.failed = False

    @property
    def now(self) -> int:
        """What this device takes for the time."""
        return self.world.clock() + self.skew

    # a sync

    def say(self) -> Body | None:
        """The next message of a sync, which begins if none is under way; None if this client has nothing to say."""
        if not self.phase:
            self.failed = False
            self.phase = self.begin()
        if not self.phase:
            return None
        body = self.compose()
        self.waiting = True
        return body

    def hear(self, answer: Body) -> None:
        """The answer to the message under way."""
        self.waiting = False
        if "error" in answer:
            self.give_up()
            return
        try:
            self.phase = self.absorb(answer)
        except PowerCut:
            self.world.told(f"{self.name} loses power")
            self.restart()

    def give_up(self) -> None:
        """No answer came. What waits goes on waiting."""
        self.waiting = False
        self.failed = True
        self.phase = ""

    def restart(self) -> None:
        """The program starts anew with what it has stored."""
        self.give_up()

    @abstractmethod
    def begin(self) -> str:
        """The first phase of a sync."""

    @abstractmethod
    def compose(self) -> Body:
        """The message of this phase."""

    @abstractmethod
    def absorb(self, answer: Body) -> str:
        """Take an answer in; the next phase, or "" at the end of the sync."""

    # a person

    @abstractmethod
    def edit(self, act: Act) -> str | None:
        """Do `act` offline, as far as this program can; what was done, in few words."""

    @property
    @abstractmethod
    def pending(self) -> tuple[str, ...]:
        """What still waits for the server and could be taken by it."""


# --- v2 -----------------------------------------------------------------------------------------------------------


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

    def compose(self) -> Body:
        ask, self.sent = replica.compose(
            self.store.image.state,
            self.store.pending(),
            page_rows=self.world.page_rows,
            changes_max=self.world.batch,
        )
        body: Body = _decode(codec(self.wire).ask(ask))
        return body

    def absorb(self, answer: Body) -> str:
        told = codec(self.wire).told(_encode(answer))
        before = self.store.image
        absorbed = replica.absorb(told, self.sent, before.state, self.store.local(told, self.sent))
        if absorbed.differs or absorbed.healed:
            self.world.broken("8 (cursor)", f"{self.name} has drained the log and its digest differs from the server's")
        self.store.commit(absorbed)
        forgotten = [before.pending[n].copy for n in absorbed.cleared if n in before.pending]
        for row in forgotten:
            shape: Any = Entity if row.kind == "entity" else Relationship
            self.done.append(Done(msgspec.json.decode(row.body, type=shape)))
        for item in self.sent:
            left = self.store.image.pending.get(item.n)
            if left is not None and left.note is None:
                self.world.broken(
                    "3 (atomic)", f"{self.name} waits with {left.copy.id!r} and is not told why: {answer}"
                )
        self.check()
        return "sync" if not absorbed.drained or self._unsent() else ""

    def _unsent(self) -> bool:
        sent = {item.n for item in self.sent}
        return any(item.note is None and item.n not in sent for item in self.store.image.pending.values())

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


class DeployedV2(_V2):
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


# --- v1 -----------------------------------------------------------------------------------------------------------

#: The records that stand for `THINGS`; the others have none.
_RECORDS: Final[Mapping[str, str]] = {
    "home": "home", "lamp": "accessory", "room": "room", "ann": "user", "hub": "accessory", "cabin": "home",
}  # fmt: skip
_PLAIN: Final[Mapping[str, Body]] = {
    "home": {"is_primary": False},
    "room": {},
    "accessory": {
        "manufacturer": None,
        "model": None,
        "serial_number": None,
        "firmware_version": None,
        "is_reachable": True,
        "is_blocked": False,
        "is_bridge": False,
        "bridge_id": None,
    },
    "user": {"is_administrator": False, "is_owner": False, "remote_access_allowed": True},
}
#: The fields that a person changes, with the values a program writes.
_EDITABLE: Final[Mapping[str, tuple[tuple[str, tuple[Any, ...]], ...]]] = {
    "home": (("is_primary", (True, False)),),
    "room": (("name", NAMES[:4]),),
    "accessory": (("manufacturer", V1_TEXTS), ("is_reachable", (True, False)), ("model", V1_TEXTS)),
    "user": (("is_owner", (True, False)),),
}


class V1(Client):
    """The v1 client as deployed: request, push, ack, with whole records.

    It keeps a pulled record only if that is newer by its `updated_at`, even over an edit that waits; it clears an edit
    when the push's answer says ``applied``, even if the record was edited since (then it is in `stray`); its watermark
    is its own clock.
    """

    kind = "v1"
    wire = "inbetweenies-v1"
    acts = ("create", "rename", "set", "move")

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        super().__init__(name, world, user=user, skew=skew)
        self.records: dict[tuple[str, str], Body] = {}
        #: What waits: the fields that a person changed since the last ack, by record.
        self.marks: dict[tuple[str, str], set[str]] = {}
        self.last_sync: str | None = None
        #: The fields that a person changed since this client last agreed with the server on them, by record.
        self.touched: dict[tuple[str, str], set[str]] = {}
        self.attempts = 0
        self.times: set[int] = set()
        self.sent: dict[str, tuple[tuple[str, str], Body, frozenset[str]]] = {}
        self.stray: set[tuple[str, str]] = set()
        #: Records that are as a person left them here, not as a pull told them.
        self.own: set[tuple[str, str]] = set()

    # a person

    def edit(self, act: Act) -> str | None:
        type_ = _RECORDS.get(act.thing)
        if type_ is None:
            return None
        before = self.records.get((type_, act.thing))
        homes, hubs = self._held("home", act.thing), self._held("accessory", act.thing)
        if before is None:
            if act.verb != "create" or (type_ != "home" and not homes):
                return None
            changed: Body = {"name": NAMES[act.value % 3]}
            if type_ != "home":
                changed["home_id"] = homes[0]
        else:
            fields = _EDITABLE[type_] + ((("home_id", homes),) if type_ != "home" else ())
            fields += (("bridge_id", (*hubs, None)),) if type_ == "accessory" else ()
            field, values = fields[act.value % len(fields)]
            if act.verb in ("create", "rename") or not values:
                field, values = "name", NAMES[:4]
            changed = {field: values[act.value // len(fields) % len(values)]}
        time = self.write(type_, act.thing, **changed)
        return f"{act.verb} {type_} {act.thing} {sorted(changed)} at {time[11:]}"

    def write(self, type_: str, id_: str, **fields: Any) -> str:
        """Store a local edit: a new record, or other values of `fields`. When that was, as v1 says it."""
        # A clock that steps back may show a time again, but no person makes two edits at one microsecond.
        now = self.now
        while now in self.times:
            now += 1
        self.times.add(now)
        time = format_time(now, naive=True)
        key = (type_, id_)
        before = self.records.get(key)
        if before is None:
            before = {"id": id_, **_PLAIN[type_], "created_at": time, "sync_id": None}
            changed = _PLAIN[type_].keys() | fields.keys()
        else:
            changed = set(fields)
        self.records[key] = {**before, **fields, "updated_at": time}
        self.own.add(key)
        self.marks[key] = self.marks.get(key, set()) | changed
        self.touched.setdefault(key, set()).update(changed)
        return time

    def _held(self, type_: str, thing: str) -> tuple[str, ...]:
        """The records of a type that another record can point to."""
        return tuple(id_ for kind, id_ in sorted(self.records) if kind == type_ and id_ != thing)

    # a sync

    def begin(self) -> str:
        return "request"

    def compose(self) -> Body:
        if self.phase == "request":
            return self.envelope(
                type="sync_request",
                last_sync=self.last_sync,
                entity_types=["homes", "rooms", "accessories", "users"],
                include_deleted=True,
            )
        if self.phase == "ack":
            return self.envelope(type="sync_ack", sync_completed_at=format_time(self.now, naive=True))
        self.sent = {}
        changes = []
        for key in self.marks:
            self.attempts += 1
            token = f"{self.name}-{self.attempts}"
            self.sent[token] = (key, dict(self.records[key]), frozenset(self.marks[key]))
            changes.append(
                {
                    "entity_type": key[0],
                    "entity_id": key[1],
                    "operation": "update",
                    "data": dict(self.records[key]),
                    "client_sync_id": token,
                }
            )
        return self.envelope(type="sync_push", changes=changes)

    def envelope(self, *, type: str, **fields: Any) -> Body:  # noqa: A002 - the field's name on the wire
        """A message of this program."""
        return {"type": type, "client_id": self.name, **fields}

    def absorb(self, answer: Body) -> str:
        if self.phase == "request":
            for change in answer["changes"]:
                self.take(change)
            return "push" if self.marks else "ack"
        if self.phase == "push":
            for applied in answer["applied"]:
                if applied["status"] == "applied" and applied["client_sync_id"] in self.sent:
                    self.forget(*self.sent[applied["client_sync_id"]])
            return "ack"
        self.last_sync = format_time(self.now, naive=True)
        return ""

    def take(self, change: Body) -> None:
        key = (change["entity_type"], change["entity_id"])
        here = self.records.get(key)
        if change["operation"] == "delete":
            for kept in (self.records, self.marks, self.touched):
                kept.pop(key, None)
        elif here is None or parse_time(change["updated_at"]) > parse_time(here["updated_at"]):  # type: ignore[operator]
            self.records[key] = dict(change["data"])
            self.stray.discard(key)
            self.own.discard(key)
            self.touched.pop(key, None)
            if key in self.marks:
                # The edit is written over; what is pushed now is the server's own record, which claims nothing.
                self.marks[key] = set()

    def forget(self, key: tuple[str, str], record: Body, changed: frozenset[str]) -> None:
        here = self.records[key]
        if self.marks.pop(key, None) and here != record:
            self.stray.add(key)
        self.touched[key] = {
            field for field in self.touched.get(key, ()) if not (field in changed and here[field] == record[field])
        }
        self.done.append(DoneRecord(*key, {field: record[field] for field in sorted(changed)}))

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple("/".join(key) for key in self.marks)


class Unknown(V1):
    """A client of a version to come: it falls back to v1 shapes and reads the `negotiation` in the answers."""

    kind = "unknown"
    asks: ClassVar[str] = "inbetweenies-v7"

    def begin(self) -> str:
        # Only reads and pushes of exact v1 shape are promised to versions that a server does not know.
        return "request"

    def envelope(self, *, type: str, **fields: Any) -> Body:  # noqa: A002 - the field's name on the wire
        return {"protocol_version": self.asks, **super().envelope(type=type, **fields)}

    def absorb(self, answer: Body) -> str:
        negotiation = answer.get("negotiation")
        if not isinstance(negotiation, dict) or negotiation.get("served") != answer.get("protocol_version"):
            self.world.broken("10 (downgrade)", f"{self.name} is served something else and not told what: {answer}")
        if negotiation["requested"] != self.asks or negotiation["served"] not in negotiation["supported"]:
            self.world.broken("10 (downgrade)", f"{self.name} asked for {self.asks} and is told {negotiation}")
        phase = super().absorb(answer)
        if phase != "ack":
            return phase
        self.last_sync = format_time(self.now, naive=True)
        return ""

    def odd_write(self) -> Body:
        """A write of the version to come, in a shape that nobody here knows: it must be refused whole."""
        change = {"op": "put", "entity": {"id": "lamp", "name": "from the future"}}
        return {"protocol_version": self.asks, "client_id": self.name, "changes": [change]}
