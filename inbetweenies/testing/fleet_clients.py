"""The clients of `MixedFleet` that speak `inbetweenies-v2`: small, honest models of what is deployed, defects included.

Losses that a deployed client brings about all by itself (an edit that a pull writes over, a mark cleared for an edit
that was made in flight) are its own and are never claimed against the server; see `DeployedV2.stray`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, ClassVar, Final

import msgspec
from msgspec import Raw
from msgspec.structs import replace

from .. import replica, rewind
from ..errors import RemoteProtocolError
from ..limits import canonical, gate
from ..model import (
    DIGEST_BITS,
    ENTITY_TYPES,
    Answer,
    Ask,
    Cursor,
    Entity,
    Relationship,
    digest_change,
    edge_version,
    format_time,
    make_version,
    parse_cursor,
    parse_time,
)
from ..replica import Found, Key, Pending, RowKey, State
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
    Pushed,
    World,
    codec,
    short,
)
from .fleet_replica import ReplicaStore, Whole, whole_of

BEGINNING: Final = Cursor("0", 0, rewind.START)

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


def reborn(before: State, after: str | None) -> bool:
    """Whether a client that had read all that it had heard of goes on in another epoch, or finds its place there. A
    chain says which rows a log holds and not which of them stand (PROTOCOL 4.2): of one that was set back and holds the
    same again only the digest tells."""
    came, went = parse_cursor(before.cursor or ""), parse_cursor(after or "")
    if came is None or went is None or came.epoch == went.epoch:
        return False
    return before.witness in (None, before.cursor) or (came.seq, came.chain) == (went.seq, went.chain)


class ModernV2(_V2):
    """Our own client: `inbetweenies.replica` over a store, with features, in pages and batches of few rows.

    The course of its sync is that of `blowing_off.client` and `blowing_off.reconcile`, one message at a time.
    """

    kind = "modern"
    acts = ("create", "rename", "set", "nest", "drop", "delete", "revive", "link", "unlink", "poison")

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        super().__init__(name, world, user=user, skew=skew)
        self.nonces = 0
        self.store = ReplicaStore(name, user, self.nonce())
        #: Whether its log was set back since its digest was last that of the server. Then it may differ without a
        #: reason that a rule knows: what had been replaced in rows that were not told yet is current again.
        self.rewound = False
        #: Deletes of what never was: no log holds them.
        self.noops: set[Whole] = set()
        #: How many rows the last answer told, and whether it said that there are more.
        self.page, self.more = 0, False
        self.sent: tuple[Pending, ...] = ()
        self.forget_sync()

    def forget_sync(self) -> None:
        """What a sync keeps in memory only."""
        self.ask = Ask(device="", user="")
        self.sent = ()
        self.skip: tuple[tuple[int, int], ...] = ()
        self.want: tuple[int, ...] = ()
        self.places: tuple[Cursor, ...] = ()
        self.common: Cursor | None = None
        self.discarded = False
        self.entries: tuple[tuple[bytes, bool], ...] = ()
        self.prefixes: tuple[str, ...] = ()
        self.lacking: dict[Key, None] = {}
        self.compared = self.unblocked = False

    def nonce(self) -> str:
        """A name that nothing else has."""
        if self.world.nonces is not None:
            return self.world.nonces()
        self.nonces += 1
        return f"{self.nonces:x}.{self.name}"

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

    # a sync

    def begin(self) -> str:
        self.forget_sync()
        return "sync"

    def message(self) -> bytes:
        state = self.store.image.state
        self.sent = ()
        if state.lost:
            asked = self.places or replica.places(state, self.store.image.places) or (BEGINNING,)
            self.ask = replica.locating(state, asked, self.nonce())
        elif self.prefixes:
            asked_parts, self.prefixes = self.prefixes[: rewind.PARTS_MAX], self.prefixes[rewind.PARTS_MAX :]
            self.ask = replica.comparing(state, asked_parts, self.nonce())
        else:
            self.compose(state)
        rows: list[Entity | Relationship] = []
        for change in self.ask.changes:
            rows += [change.entity] if change.entity is not None else []
            rows += change.relationships
        self.pushed = Pushed(
            rows=tuple(rows),
            offered=self._offered(),
            common=parse_cursor(self.ask.common or ""),
        )
        body: bytes = codec(self.wire).ask(self.ask)
        return body

    def _offered(self) -> frozenset[RowKey]:
        return frozenset((*item.copy.key, item.copy.version) for item in self.sent if item.offered)

    def compose(self, state: State) -> None:
        """A message that pushes and pulls."""
        at = parse_cursor(state.cursor or "")
        self.skip = tuple(range_ for range_ in self.skip if range_[1] > (0 if at is None else at.seq))
        wanted, self.want = self.want[: rewind.WANT_MAX], self.want[rewind.WANT_MAX :]
        self.ask, self.sent = replica.compose(
            state,
            () if state.restarting else self.store.pending(),
            page_rows=self.world.page_rows,
            changes_max=self.world.batch,
            request=self.nonce(),
            skip=self.skip,
            want=wanted,
        )
        if self.ask.pushes is not None:
            self.store.put_state(replica.attempted(state, self.ask))

    def take_in(self, answer: bytes) -> str:
        try:
            gate(answer)
            told = codec(self.wire).told(answer)
        except RemoteProtocolError as error:
            raise NoAnswer from error
        if told.protocol_version != self.wire or not replica.believed(told, self.ask):
            raise NoAnswer  # PROTOCOL 5.9, 10.14
        self.page = sum((change.entity is not None) + len(change.relationships) for change in told.changes)
        self.more = told.more
        if self.ask.locate is not None:
            return self.located(told)
        if self.ask.compare:
            return self.compares(told)
        return self.absorb(told, answer)

    def absorb(self, told: Answer, answer: bytes) -> str:
        """Rows and acks."""
        before = self.store.image
        absorbed = replica.absorb(
            told, self.sent, before.state, self.store.local(told, self.sent), wanted=bool(self.ask.want)
        )
        # Looked at where it has drained the log: where it has not, or nothing differs, there is nothing to excuse.
        self.rewound |= absorbed.differs and reborn(before.state, told.cursor)
        if absorbed.differs and not self.rewound:
            self.world.broken("8 (cursor)", f"{self.name} has drained the log and its digest differs from the server's")
        if told.device_forked:
            self.world.told(f"{self.name} finds out that it is a copy")
            absorbed = replace(absorbed, state=replica.incarnated(absorbed.state, self.nonce()))
        nothing = {(ack.kind, ack.id, ack.version) for ack in told.acks or () if ack.outcome == "noop_delete"}
        self.noops |= {whole_of(item.copy) for item in self.sent if (*item.copy.key, item.copy.version) in nothing}
        self.store.commit(absorbed)
        self.rewound &= absorbed.differs or not absorbed.drained
        forgotten = [before.pending[n].copy for n in absorbed.cleared if n in before.pending]
        self.unblocked |= any(row.kind == "entity" for row in forgotten)
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
        if not absorbed.drained or self._unsent() or self.want or self.store.image.state.lost or self._unblock():
            return "sync"
        if absorbed.differs and not self.compared:
            # PROTOCOL 10.13, once in a sync.
            self.compared, self.prefixes, self.lacking = True, ("",), {}
            return "sync"
        return ""

    def _unsent(self) -> bool:
        sent = {item.n for item in self.sent}
        return any(item.note is None and item.n not in sent for item in self.store.image.pending.values())

    def _unblock(self) -> bool:
        """Whether something waits for an endpoint and another one was taken since."""
        waiting = {
            n: item
            for n, item in self.store.image.pending.items()
            if item.note is not None and item.note.code == "unknown_endpoint"
        }
        if not (self.unblocked and waiting):
            return False
        self.unblocked = False
        with self.store.transaction() as image:
            image.pending.update({n: replace(item, note=None) for n, item in waiting.items()})
        return True

    def located(self, told: Answer) -> str:
        """PROTOCOL 10.9: what is left of the log that was known."""
        if rewind.FEATURE not in told.features:
            self.store.put_state(replica.restart(replace(self.store.image.state, lost=False)))
            return "sync"
        here, end = parse_cursor(told.common or ""), parse_cursor(told.cursor or "")
        if not self.places:
            self.common, self.discarded, self.entries = here, told.discarded, ()
        elif (0 if here is None else here.seq) != self.places[0].seq:
            raise NoAnswer  # the log was set back again meanwhile
        if end is None:
            raise NoAnswer
        self.entries += tuple(rewind.entries(told.listing or b""))
        if told.more:
            self.places = (end,)
            return "sync"
        self.places = ()
        found = Found(common=self.common, head=end, entries=self.entries, discarded=self.discarded)
        self.skip = self.store.regain(found)
        self.rewound = True
        self.check()
        return "sync"

    def compares(self, told: Answer) -> str:
        """PROTOCOL 10.13: where two graphs differ that should not."""
        if told.resync:
            self.store.put_state(replace(self.store.image.state, lost=True))
            return "sync"
        own = self.store.theirs()
        for part in told.parts:
            found = replica.differences(part, own)
            self.prefixes += found.prefixes
            self.want += found.want
            self.lacking.update(dict.fromkeys(found.lacking))
        if not self.prefixes:
            self.store.offer(self.lacking)
            self.lacking = {}
            self.check()
        return "sync"

    def lose(self, which: int) -> str | None:
        """Something went wrong here: the server's row of some id is gone. The id, if there was one."""
        pointers = self.store.image.pointers
        keys = [key for key, pointer in pointers.items() if pointer.ours is None and pointer.theirs_hash is not None]
        if not keys:
            return None
        key = keys[which % len(keys)]
        with self.store.transaction() as image:
            pointer = image.pointers[key]
            assert pointer.theirs is not None, "it has a hash"
            assert pointer.theirs_hash is not None, "that was asked above"
            whole = (*key, pointer.theirs, pointer.theirs_hash)
            image.pointers[key] = replace(pointer, theirs=None, theirs_hash=None)
            image.copies.pop(whole)
            image.told.pop(whole, None)
            image.state = replace(image.state, digest=digest_change(image.state.digest, gone=pointer.theirs_hash))
        self.rewound = True
        return key[1]

    def holds(self) -> set[Whole]:
        """What it would give back to a server that lost it: what waits to be offered again, and what it was told."""
        image = self.store.image
        waiting = {whole_of(item.copy) for item in image.pending.values() if not item.offered}
        return image.copies.keys() - waiting - self.noops

    def check(self) -> None:
        """Laws that a replica must keep by itself."""
        image = self.store.image
        newest: dict[Key, str] = {}
        for item in image.pending.values():
            if not item.aside:
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
        self.forget_sync()
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
