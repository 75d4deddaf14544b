"""The laws of PROTOCOL 1 as checks over what a store holds and what a server answered.

`Ledger` reads a graph's log through the store port and recomputes everything that can be recomputed: chain, digest,
which row of an id is current, what a merge may have changed. It shares no rule with `engine.py` and `merge.py`; where
both must know one, it is written a second time here, shorter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from hashlib import blake2b
from typing import Any, Final, NoReturn

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from ..errors import clip
from ..limits import Limits
from ..model import (
    SEQ_MAX,
    Context,
    Cursor,
    Entity,
    Head,
    Held,
    Kind,
    Reads,
    Relationship,
    Row,
    Span,
    SyncRequest,
    body_of,
    parse_time,
    row_hash,
)
from .fleet_base import NOTHING, Body, Done, DoneRecord, Pushed, codec

Broken = Callable[[str, str], NoReturn]
Path = tuple[str, ...]

_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.decode

#: What v1 can see of an entity besides its name, by entity type: keys of `content` (MAPPING of PROTOCOL 8).
V1_VISIBLE: Final[Mapping[str, frozenset[str]]] = {
    "home": frozenset({"is_primary"}),
    "room": frozenset(),
    "device": frozenset(
        "manufacturer model serial_number firmware_version is_reachable is_blocked is_bridge services".split()
    ),
    "note": frozenset({"kind", "is_administrator", "is_owner", "remote_access_allowed"}),
}


def pushed_by(body: Body) -> Pushed:
    """What `body` asks to be written, as far as its shape is one of v1 or v2."""
    changes = body.get("changes")
    if not isinstance(changes, list) or not changes:
        return NOTHING
    if body.get("protocol_version") != "inbetweenies-v2":
        return Pushed(records=tuple(change for change in changes if "client_sync_id" in change))
    v2, limits = codec("inbetweenies-v2"), Limits()
    # Which notices were shown is no part of what is pushed, and the one thing that is looked up.
    said = {key: value for key, value in body.items() if key != "notices"}
    plan = v2.up(v2.decode(_encode(said), limits=limits), Context(), limits)
    try:
        next(plan)
    except StopIteration as stop:
        request: SyncRequest = stop.value
    else:
        raise AssertionError("a v2 request says all by itself")
    rows: list[Entity | Relationship] = []
    for change in request.changes:
        rows += [change.entity] if change.entity is not None else []
        rows += change.relationships
    return Pushed(rows=tuple(rows))


def kind_of(row: Entity | Relationship) -> Kind:
    """The kind of row that holds this value."""
    return "entity" if isinstance(row, Entity) else "edge"


def words(value: Entity | Relationship) -> str:
    """A row's value for people, the same in every run."""
    return body_of(value).decode()


def same(a: Any, b: Any) -> bool:
    """Whether two JSON values are one, ``1``, ``1.0`` and ``true`` being three."""
    return bool(_encode(a) == _encode(b))


class Absent:
    """The value of a key that is not there."""


ABSENT: Final = Absent


def blend(base: Any, one: Any, other: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """What a three-way merge must hold: (path, value) for every path, `Ellipsis` where both sides changed it."""
    if _is(one, other) or _is(other, base):
        yield path, one
    elif _is(one, base):
        yield path, other
    elif isinstance(one, dict) and isinstance(other, dict):
        old = base if isinstance(base, dict) else {}
        for key in sorted({*one, *other, *old}):
            yield from blend(old.get(key, ABSENT), one.get(key, ABSENT), other.get(key, ABSENT), (*path, key))
    else:
        yield path, ...


def _is(a: Any, b: Any) -> bool:
    return a is b or (a is not ABSENT and b is not ABSENT and same(a, b))


def at(document: Any, path: Path) -> Any:
    """The value at a path of `blend`."""
    for key in path:
        document = document.get(key, ABSENT) if isinstance(document, dict) else ABSENT
    return document


def document(row: Row | Entity) -> dict[str, Any]:
    """What people edit of an entity."""
    entity = row.entity() if isinstance(row, Row) else row
    original = None if entity.source_original is UNSET else entity.source_original
    return {
        "content": _decode(entity.content),
        "name": entity.name,
        "entity_type": entity.entity_type,
        "source": [entity.source_type, original],
    }


class Ledger:
    """The log of one graph, as read so far; whatever it reads it checks."""

    def __init__(
        self, read: Callable[[Reads], Held], broken: Broken, graph: str = "default", *, rewinds: bool = False
    ) -> None:
        self.rewinds = rewinds  # whether the store may be set back under the log's feet
        self._read = read
        self._broken = broken
        self._graph = graph
        head = read(Reads()).head
        #: Where what was read so far ends; of a log that is there already nothing was.
        self.head: Head = Head(epoch=head.epoch) if head.seq else head
        self.rows: list[Row] = []
        self.by_version: dict[tuple[Kind, str, str], Row] = {}
        self.of_id: dict[tuple[Kind, str], list[Row]] = {}
        self.current: dict[tuple[Kind, str], Row] = {}
        self.digest = 0
        #: Entities that stood nowhere when a row of theirs came, or a record of theirs was pushed.
        self.unplaced: set[str] = set()
        #: The newest `server_time` that was handed out.
        self.told = -1

    # --- reading

    def _is_renamed(self, old: Head, head: Head, restarted: bool) -> bool:
        """Whether nothing but the epoch is new: a log that was set back gets another one (PROTOCOL 4.11), and if that
        is noticed when the server starts, nothing is to come before what it knows of (11.3)."""
        stamp = max(old.stamp, head.stamp) if restarted else head.stamp
        return self.rewinds and replace(old, epoch=head.epoch, stamp=stamp) == head

    def follow(self, pushed: Pushed, *, restarted: bool = False) -> tuple[list[Row], dict[tuple[Kind, str], Row]]:
        """The rows that came since, checked, and what was current before them. `restarted`: the server has started, and
        may have looked at what it keeps outside of the store."""
        before, old = self.current, self.head
        head = self._read(Reads()).head
        self.unplaced.update(id_ for record in pushed.records if not self._is_placed(id_ := record["entity_id"]))
        if head.seq == old.seq:
            if head != old and not self._is_renamed(old, head, restarted):
                self._broken("11 (all or nothing)", f"the head changed without a row: {old} to {head}")
            self.head = head
            return [], before
        if head.seq < old.seq or (head.epoch != old.epoch and not self.rewinds):
            self._broken("9 (epoch)", f"the log was rewound: {old} to {head}")
        fresh = self._fresh(old.seq, head.seq)
        self.current = dict(before)
        for row in fresh:
            self._append(row)
        # A v1 client may have been shown them in the place of a home since, for want of anything better.
        self.unplaced.update(row.id for row in fresh if row.kind == "entity" and not self._is_placed(row.id))
        self._check_head(head)
        self.head = head
        return fresh, before

    def fork(self) -> Ledger:
        """The same log as known now, to go back to when the store does."""
        other = copy(self)
        other.rows = list(self.rows)
        other.by_version = dict(self.by_version)
        other.unplaced = set(self.unplaced)
        other.of_id = {key: list(rows) for key, rows in self.of_id.items()}
        return other

    def audit(self) -> None:
        """The store still has every row that it had, and takes the right ones for current."""
        self.check_listing()
        of_kind: dict[Kind, list[str]] = {"entity": [], "edge": []}
        for kind, id_ in self.of_id:
            of_kind[kind].append(id_)
        held = self._read(Reads(history=tuple(of_kind["entity"]), edge_history=tuple(of_kind["edge"])))
        found = {row.seq: row.chain for rows in (*held.history.values(), *held.edge_history.values()) for row in rows}
        if found != {row.seq: row.chain for row in self.rows}:
            self._broken("4 (kept)", f"the log has rows {sorted(found)} now; there were {len(self.rows)}")

    def check_listing(self) -> None:
        """The rows that the store takes for current are those of which the log says so."""
        span = self._read(Reads(span=Span(after=0, upto=SEQ_MAX))).span
        listed = [(row.seq, row.kind, row.id, row.version) for row in span]
        expected = sorted((row.seq, row.kind, row.id, row.version) for row in self.current.values())
        if listed != expected:
            self._broken("4 (kept)", f"the store has {listed} for current rows; the log says {expected}")

    def _fresh(self, after: int, upto: int) -> list[Row]:
        """The rows after `after`."""
        found = self._read(Reads(seqs=tuple(range(after + 1, upto + 1)))).seqs
        missing = [seq for seq in range(after + 1, upto + 1) if seq not in found]
        if missing:
            self._broken("4 (kept)", f"rows {missing} of the log cannot be read back")
        return [found[seq] for seq in range(after + 1, upto + 1)]

    def _append(self, row: Row) -> None:
        chain, stamp = (self.rows[-1].chain, self.rows[-1].stamp) if self.rows else (bytes(16), 0)
        if row.stamp <= stamp:
            self._broken("8 (cursor)", f"row {row.seq} is stamped {row.stamp}, the one before {stamp}")
        if row.stamp <= self.told:
            self._broken("8 (cursor)", f"row {row.seq} is stamped {row.stamp}, at or before a server_time, {self.told}")
        if row.hash != row_hash(row.kind, row.body):
            self._broken("12 (deterministic)", f"row {row.seq} has not the hash of its body")
        if row.chain != blake2b(chain + row.hash, digest_size=16).digest():
            self._broken("9 (epoch)", f"the chain breaks at row {row.seq}")
        value = row.entity() if row.kind == "entity" else row.relationship()
        if (value.id, value.version) != (row.id, row.version):
            self._broken("4 (kept)", f"row {row.seq} is filed as {row.id} {row.version} and holds another")
        key = (row.kind, row.id)
        if (*key, row.version) in self.by_version:
            self._broken("5 (idempotent)", f"row {row.seq} is a second {row.id} {row.version}")
        self.rows.append(row)
        self.by_version[(*key, row.version)] = row
        self.of_id.setdefault(key, []).append(row)
        if row.until != row.seq:
            gone = self.current.get(key)
            self.digest += int.from_bytes(row.hash, "big") - int.from_bytes(gone.hash if gone else b"", "big")
            self.current[key] = row

    def _check_head(self, head: Head) -> None:
        last = self.rows[-1]
        late = self.rewinds and head.stamp > last.stamp  # PROTOCOL 11.3
        if (head.seq, head.chain) != (last.seq, last.chain) or not (head.stamp == last.stamp or late):
            self._broken("8 (cursor)", f"the head {head} does not end in the last row, {last.seq}")
        if head.digest != self.digest % 2**256:
            self._broken("8 (cursor)", f"the digest at {head.seq} is not the sum of the current rows")

    # --- knowing

    def find(self, value: Entity | Relationship) -> Row | None:
        """The row that holds what `value` says, under its own version or under the one it was renamed to."""
        kind = kind_of(value)
        if not value.version:
            told = replace(value, version="")
            for row in self.of_id.get((kind, value.id), ()):
                if replace(row.relationship(), version="") == told:
                    return row
            return None
        for version in (value.version, _renamed(value)):
            held = self.by_version.get((kind, value.id, version))
            if held is not None and self.says(held, value):
                return held
        return next(
            (
                row
                for row in self.of_id.get((kind, value.id), ())
                if row.version.startswith(value.version + "#") and self.says(row, value)
            ),
            None,
        )

    def renamed(self, kind: Kind, id_: str, version: str) -> bool:
        """Whether other content under a version that was taken is kept (PROTOCOL 4.4)."""
        return any(row.version.startswith(version + "#") for row in self.of_id.get((kind, id_), ()))

    def original(self, row: Row) -> Row:
        """PROTOCOL 4.14 (g): the row that stands again in this one, under another version; else the row itself."""
        held = self.by_version.get((row.kind, row.id, row.version.rpartition("#")[0]))
        if held is None or row.kind != "entity" or held.entity() != replace(row.entity(), version=held.version):
            return row
        return held

    def follows(self, row: Row, before: Row) -> bool:
        """Whether a row descends from another, or from one that stands again in that, however often."""
        line = self.ancestors(row.id, row.entity().parent_versions)
        while before.version not in line and (original := self.original(before)) is not before:
            before = original
        return before.version in line

    def says(self, row: Row, value: Entity | Relationship) -> bool:
        """Whether a row holds what `value` says."""
        if isinstance(value, Entity):
            return same(document(row), document(value))
        edge = row.relationship()
        return (edge.from_entity_id, edge.to_entity_id) == (value.from_entity_id, value.to_entity_id) and same(
            _decode(edge.properties), _decode(value.properties)
        )

    def ancestors(self, id_: str, versions: Iterable[str]) -> set[str]:
        """The versions of an entity that `versions` descend from, themselves included."""
        seen: set[str] = set()
        todo = list(versions)
        while todo:
            version = todo.pop()
            if version not in seen:
                seen.add(version)
                row = self.by_version.get(("entity", id_, version))
                todo += row.entity().parent_versions if row else ()
        return seen

    def base_of(self, pushed: Row) -> Row | None:
        """What a pushed row is compared against: of the rows that it descends from and that no other of them follows,
        the newest, on which all is decided."""
        versions = self.ancestors(pushed.id, pushed.entity().parent_versions)
        # Deployed clients give two edits in a millisecond one version, and then a row names itself.
        rows = [row for row in self.of_id["entity", pushed.id] if row.version in versions and row is not pushed]
        followed = {parent for row in rows for parent in row.entity().parent_versions if parent != row.version}
        ends = [row for row in rows if row.version not in followed] or rows
        return ends[-1] if ends else None

    # --- laws

    def check_done(self, who: str, done: Done | DoneRecord) -> None:
        """Law 1: what a client has forgotten is in the log."""
        lacking = self.lacking(done)
        if lacking is not None:
            self._broken("1 (ack)", f"{who} forgot {lacking}")

    def lacking(self, done: Done | DoneRecord) -> str | None:
        """What the log does not hold of something that a client has forgotten; None if it holds it all."""
        if isinstance(done, Done):
            if self.find(done.row) is None and not self._noop(done.row):
                return f"{words(done.row)}, and the log does not hold it"
            return None
        rows = self.of_id.get(("entity", done.id), [])
        for field, value in done.fields.items():
            if field.endswith("_id"):
                ends = {row.to_id for row in self.rows if row.from_id == done.id}
                # Where nothing says where a thing is, v1 is shown a placeholder, and to agree with it is no edit.
                held = value in ends or value is None or done.id in self.unplaced
            else:
                held = any(same(view_field(row, field), value) for row in rows)
            if not held:
                return f"{field} = {value!r} of {done.id}, and no row of it says so"
        return None

    def _is_placed(self, id_: str) -> bool:
        """Whether an edge leads from an entity to one that is there."""
        there = (
            self.current.get(("entity", row.to_id))
            for row in self.current.values()
            if row.from_id == id_ and not row.deleted
        )
        return any(end is not None and not end.deleted for end in there)

    def settled(self, value: Entity | Relationship) -> bool:
        """Whether nothing of `value` is left to be stored: it is held, or it never can be."""
        if self.find(value) is not None or self._noop(value) or not value.version.isprintable():
            return True
        if isinstance(value, Entity):
            return False
        ends = (
            ("entity", value.from_entity_id, value.from_entity_version),
            ("entity", value.to_entity_id, value.to_entity_version),
        )
        return any(end not in self.by_version for end in ends)

    def _noop(self, row: Entity | Relationship) -> bool:
        """A delete of what never was leaves no row."""
        return isinstance(row, Entity) and not row.parent_versions and bool(_decode(row.content).get("deleted"))

    def check_push(
        self, pushed: Pushed, answer: Body, fresh: list[Row], before: Mapping[tuple[Kind, str], Row]
    ) -> None:
        """Laws 3, 4 and 6 for one push and its answer."""
        self.check_acks(pushed, answer)
        self.check_tombstones(pushed, fresh, before)
        self.check_losses(pushed, answer, fresh, before)
        if pushed.records:
            self.check_lens(pushed, before)

    def steps(self, fresh: list[Row], before: Mapping[tuple[Kind, str], Row]) -> Iterator[tuple[Row, Row]]:
        """Each new row of an entity that was there, with the row that was current when it came."""
        current = dict(before)
        for row in fresh:
            key = (row.kind, row.id)
            if row.kind == "entity" and key in current:
                yield row, current[key]
            if row.until != row.seq:
                current[key] = row

    def merges(self, row: Row, pushed: Pushed) -> bool:
        """Whether the server made this row out of two. What comes from a lost log can be another merge of the same two,
        without what was known there; the log then has it under another name."""
        sent = any((value.id, value.version) == (row.id, row.version) for value in pushed.rows)
        sent = sent and not self.renamed(row.kind, row.id, row.version)
        again = self.original(row) is not row
        return row.until != row.seq and not sent and not again and row.entity().merged is True

    def _decided(self, row: Row, was: Row, pushed: Pushed) -> bool:
        """PROTOCOL 4.14: whether what becomes of a row was decided in a log that is gone."""
        if not pushed.offered & {(row.kind, row.id, name) for name in _names(row.version)}:
            return False
        common = pushed.common
        return row.until == row.seq or (common is not None and self.has(common) and was.seq <= common.seq)

    def _chain(self, seq: int) -> bytes | None:
        """The chain at a place; None after the end."""
        if seq == 0:
            return bytes(16)
        return self.rows[seq - 1].chain if seq <= len(self.rows) else None

    def has(self, place: Cursor) -> bool:
        """PROTOCOL 4.2: whether a place is of this log."""
        return self._chain(place.seq) == place.chain

    def check_tombstones(self, pushed: Pushed, fresh: list[Row], before: Mapping[tuple[Kind, str], Row]) -> None:
        """PROTOCOL 6.2: a tombstone wins; only a person's edit that follows it brings the entity back."""
        for row, was in self.steps(fresh, before):
            if self._decided(row, was, pushed):
                continue
            self._check_tombstone(row, was, merged=self.merges(row, pushed))

    def check_losses(
        self, pushed: Pushed, answer: Body, fresh: list[Row], before: Mapping[tuple[Kind, str], Row]
    ) -> None:
        """Law 4: nothing that was written stops counting without a word, and what is told of can be read back."""
        lost = _Lost(answer)
        for id_, version in lost.pairs:
            if ("entity", id_, version) not in self.by_version and not self.renamed("entity", id_, version):
                self._broken("4 (kept)", f"the conflict names {id_} {version}, which cannot be read back")
        for row, was in self.steps(fresh, before):
            if not self._decided(row, was, pushed):
                self._check_loss(row, was, lost, pushed)
        for row in fresh:
            now = before.get((row.kind, row.id))
            if row.kind != "edge" or not row.via or row.until == row.seq or now is None:
                continue
            if now.edit > row.edit + 1_000_000 and not self._decided(row, now, pushed):
                # PROTOCOL 4.14: what comes back undoes nothing that was written since.
                self._broken("4 (kept)", f"{row.id} {row.version} came back in the place of {now.version}")

    def check_acks(self, pushed: Pushed, answer: Body) -> None:
        """Laws 1 and 3: what is acknowledged is in the log, what is not is refused by name."""
        if not pushed.rows:
            return
        if answer.get("resync") and not answer.get("acks") and "witness" in answer.get("features", ()):
            return  # PROTOCOL 4.11: for one whose log was set back nothing is done before it has located
        # A refusal may be long only where that helps a person, so names are told clipped.
        refused = {(item["id"], item["version"]) for item in answer.get("refused", ())}
        acks = answer.get("acks")
        named = {"entity": set(answer["applied"]), "edge": set(answer["applied_relationships"])}
        acked = None if acks is None else {(ack["kind"], ack["id"], ack["version"]) for ack in acks}
        for row in pushed.rows:
            kind = kind_of(row)
            is_acked = row.id in named[kind] if acked is None else (kind, row.id, row.version) in acked
            is_kept = self.find(row) is not None or self._noop(row)
            if is_acked and not is_kept:
                self._broken("3 (atomic)", f"{kind} {row.id} {row.version} is acknowledged and not in the log")
            if (acked is None and row.id in named[kind]) or ("taken" in answer and is_kept):
                continue
            if not is_acked and (clip(row.id), clip(row.version)) not in refused:
                others = [other.version for other in pushed.rows if other.id == row.id]
                if len(others) == 1 or acked is not None:
                    self._broken("3 (atomic)", f"{kind} {row.id} {row.version} is neither acknowledged nor refused")
        everything = {row.id for row in pushed.rows}
        for id_ in named["entity"] | named["edge"]:
            if id_ not in everything:
                self._broken("1 (ack)", f"{id_} is acknowledged and was not in the message")
        for ack in acks or ():
            now = self.current.get((ack["kind"], ack["id"]))
            if ack["head"] != (now.version if now else None):
                self._broken("1 (ack)", f"the ack {ack} names a head that is not current")

    def _check_loss(self, row: Row, before: Row, lost: _Lost, pushed: Pushed) -> None:
        entity = row.entity()
        if self.merges(row, pushed):
            parents = [self.by_version.get(("entity", row.id, parent)) for parent in entity.parent_versions]
            other = next((parent for parent in parents if parent and parent.version != before.version), None)
            if other is None or before.version not in entity.parent_versions:
                self._broken("4 (kept)", f"{row.id} {row.version} is no merge of {before.version} and another row")
            self._check_merge(row, before, other, lost)
            return
        alike = same(document(row), document(before)) or (row.deleted and before.deleted)
        if alike and (row.until == row.seq or row.via):
            return  # what comes back may take the place of what says the same
        if row.until != row.seq:
            if not self.follows(row, before) and not lost.names(row.id, before.version):
                self._broken("4 (kept)", f"{row.id} {row.version} took the place of {before.version} without a word")
            return
        now = self.current["entity", row.id]
        # What it was merged into may have lost in the same push, and that is told of.
        if row.version in self.ancestors(row.id, (now.version, *lost.versions.get(row.id, ()))):
            return
        if any(lost.names(row.id, name) for name in _names(row.version)):
            return
        base = self.base_of(row)
        if base is not None:
            blended = list(blend(document(base), document(before), document(row)))
            if all(value is not ... and _is(at(document(before), path), value) for path, value in blended):
                return
        self._broken("4 (kept)", f"{row.id} {row.version} lost to {before.version} without a word")

    def _check_tombstone(self, row: Row, before: Row, *, merged: bool) -> None:
        if row.until != row.seq:
            if _gone(before) and not _gone(row) and (merged or not self.follows(row, before)):
                self._broken("4 (kept)", f"{row.id} {row.version} brings back what {before.version} deleted")
            return
        now = self.current["entity", row.id]
        lost = row.version not in self.ancestors(row.id, (now.version,)) and "#" not in row.version
        if _gone(row) and not _gone(now) and lost:
            self._broken("4 (kept)", f"the tombstone {row.id} {row.version} lost to {now.version}")

    def _check_merge(self, row: Row, one: Row, other: Row, lost: _Lost) -> None:
        if row.rise <= max(one.edit, other.edit):
            # Whoever wrote the later of the two by v1 takes nothing for news that is not newer than that.
            self._broken("7 (total)", f"{row.id} {row.version} is not newer in v1 than what it merges")
        base = self.base_of(other)
        if base is None:
            self._broken("4 (kept)", f"{row.id} {row.version} is merged without a base")
        merged, sides = document(row), (document(one), document(other))
        contested = False
        for path, value in blend(document(base), *sides):
            here, place = at(merged, path), "/".join(("", *path))
            if value is ...:
                contested = True
                if not any(_is(at(side, path), here) for side in sides):
                    self._broken("4 (kept)", f"{row.id} {row.version} makes up a value at {place}")
            elif not _is(here, value):
                told = f"has {here!r} at {place}; the only one who changed it wrote {value!r}"
                self._broken("4 (kept)", f"{row.id} {row.version} {told}")
        if contested and not any(lost.names(row.id, parent.version) for parent in (one, other)):
            self._broken("4 (kept)", f"{row.id} {row.version} decided a conflict without a word")

    def check_lens(self, pushed: Pushed, before: Mapping[tuple[Kind, str], Row]) -> None:
        """Law 6: a v1 push changes nothing that v1 cannot see."""
        written = {record.get("entity_id") for record in pushed.records}
        for key, row in self.current.items():
            old = before.get(key)
            if old is None or old is row:
                continue
            if row.kind == "edge":
                if row.from_id not in written:
                    self._broken("6 (lens)", f"a v1 push changed the edge {row.id}, which starts at {row.from_id}")
                continue
            visible = V1_VISIBLE.get(old.entity_type, frozenset())
            was, now = document(old), document(row)
            for name in ("entity_type", "source"):
                if was[name] != now[name]:
                    self._broken("6 (lens)", f"a v1 push changed the {name} of {row.id}")
            for field in {*was["content"], *now["content"]} - visible - {"deleted"}:
                if not _is(was["content"].get(field, ABSENT), now["content"].get(field, ABSENT)):
                    self._broken("6 (lens)", f"a v1 push changed {field!r} of {row.id}, which v1 cannot see")

    def check_untouched(self, id_: str, touched: frozenset[str], before: Mapping[tuple[Kind, str], Row]) -> None:
        """Law 6: of what v1 can see, a v1 push changes the fields that its maker changed."""
        old, new = before.get(("entity", id_)), self.current.get(("entity", id_))
        if old is None or new is None:
            return
        for field in ({"name"} | V1_VISIBLE.get(old.entity_type, frozenset())) - touched - {"services", "kind"}:
            was, now = view_field(old, field), view_field(new, field)
            if not same(was, now):
                self._broken(
                    "6 (lens)", f"a v1 push changed {field} of {id_} from {was!r} to {now!r}; its maker did not"
                )
        if not touched & {"home_id", "bridge_id"} and self._ends(id_, before) != self._ends(id_, self.current):
            self._broken("6 (lens)", f"a v1 push changed where {id_} is; its maker did not")

    def _ends(self, id_: str, current: Mapping[tuple[Kind, str], Row]) -> set[tuple[str, str, bytes]]:
        edges = [row.relationship() for (kind, _), row in current.items() if kind == "edge" and row.from_id == id_]
        return {(edge.id, edge.to_entity_id, bytes(edge.properties)) for edge in edges}


def _gone(row: Row) -> bool:
    return bool(_decode(row.entity().content).get("deleted"))


def _names(version: str) -> set[str]:
    """A version, and those that it was made of when what it names was kept beside another row or stood again."""
    parts = version.split("#")
    return {"#".join(parts[:count]) for count in range(1, len(parts) + 1)}


def _renamed(value: Entity | Relationship) -> str:
    return f"{value.version}#{row_hash(kind_of(value), body_of(value))[:4].hex()}"


#: What v1 shows of a flag that is not there, or is none; of a text that is none it shows null.
_FLAGS: Final = {
    "is_primary": False, "is_reachable": True, "is_blocked": False, "is_bridge": False, "is_administrator": False,
    "is_owner": False, "remote_access_allowed": False,
}  # fmt: skip


def view_field(row: Row, field: str) -> Any:
    """What v1 shows of an entity row for a field that is not an edge."""
    entity = document(row)
    if field == "name":
        return entity["name"]
    value = entity["content"].get(field)
    if field in _FLAGS:
        return value if isinstance(value, bool) else _FLAGS[field]
    return value if isinstance(value, str) else None


class _Lost:
    """The conflicts of an answer, in either shape."""

    def __init__(self, answer: Body) -> None:
        self.entities: set[str] = set()
        self.versions: dict[str, set[str]] = {}
        self.pairs: list[tuple[str, str]] = []
        for conflict in answer.get("conflicts", ()):
            id_ = conflict["entity_id"]
            if "local_version" not in conflict:
                self.entities.add(id_)
                continue
            for name in ("local_version", "remote_version", "resolved_version"):
                self.versions.setdefault(id_, set()).add(conflict[name])
                self.pairs.append((id_, conflict[name]))

    def names(self, id_: str, version: str) -> bool:
        """Whether a conflict tells of this row."""
        return id_ in self.entities or version in self.versions.get(id_, ())


def time_told(answer: Body) -> int | None:
    """The `server_time` of an answer, in microseconds."""
    told = answer.get("server_time")
    return parse_time(told) if isinstance(told, str) else None
