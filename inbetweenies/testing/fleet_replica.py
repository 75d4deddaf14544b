"""What a modern client of the fleet has on its disk, and what it does with that about a log that was set back.

In dicts what `blowing_off.store` and `blowing_off.recovery` do in SQLite; every rule is `inbetweenies.replica`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import copy as copied
from typing import Final

import msgspec
from msgspec.structs import replace

from .. import replica, rewind
from ..model import (
    DIGEST_BITS,
    Answer,
    Cursor,
    Entity,
    Kind,
    digest_change,
    parse_cursor,
)
from ..replica import NEVER, Absorbed, Copy, Found, Key, Known, Local, Pending, Pointer, RowKey, State
from .fleet_base import PowerCut

Whole = tuple[Kind, str, str, bytes]  # kind, id, version, hash: one row and no other

_entity: Final = msgspec.json.Decoder(Entity)


def whole_of(copy: Copy) -> Whole:
    """What names one row and no other."""
    return (copy.kind, copy.id, copy.version, copy.hash)


class Image(msgspec.Struct):
    """What a modern client has on disk. `told` and `places` as PROTOCOL 10.8."""

    state: State
    copies: dict[Whole, Copy] = {}
    pointers: dict[Key, Pointer] = {}
    pending: dict[int, Pending] = {}
    told: dict[Whole, int] = {}
    places: tuple[Cursor, ...] = ()
    marks: int = 0

    def fork(self) -> Image:
        return Image(
            self.state,
            dict(self.copies),
            dict(self.pointers),
            dict(self.pending),
            dict(self.told),
            self.places,
            self.marks,
        )

    def newest(self, key: Key) -> str | None:
        """The version of the row that waits and is seen."""
        waiting = (item for item in reversed(self.pending.values()) if item.copy.key == key and not item.aside)
        return next((item.copy.version for item in waiting), None)

    def mark(self, row: Copy, *, offered: bool = False, aside: bool = False) -> None:
        """A row waits."""
        self.marks += 1
        self.copies.setdefault(whole_of(row), row)
        self.pending[self.marks] = Pending(n=self.marks, copy=row, offered=offered, aside=aside)
        if not aside:
            self.pointers[row.key] = replace(self.pointers.get(row.key) or Pointer(), ours=row.version)

    def lineage(self, row: Copy) -> list[Copy]:
        """A row and all those it descends from, as far as they are here, parents first."""
        if row.kind == "edge":
            return [row]
        rows = {copy.version: copy for copy in self.copies.values() if copy.key == row.key} | {row.version: row}
        order: list[Copy] = []
        seen: set[str] = set()
        todo = [(row.version, False)]
        while todo:
            name, done = todo.pop()
            if done:
                order.append(rows[name])
            elif name in rows and name not in seen:
                seen.add(name)
                todo.append((name, True))
                todo += [(parent, False) for parent in _entity.decode(rows[name].body).parent_versions]
        return order

    def requeue(self, claims: Iterable[Copy], asides: Iterable[Copy]) -> None:
        """Rows to be offered before all that waits already, entities before edges. Nobody sees `asides`."""
        waiting = list(self.pending.values())
        known = {whole_of(item.copy) for item in waiting}
        new = [copy for copy in claims if whole_of(copy) not in known]
        quiet = [copy for copy in asides if whole_of(copy) not in known]
        self.pending = {}
        for copy in new:
            if copy.kind == "entity":
                self.mark(copy, offered=True)
        for copy in sorted(quiet, key=lambda copy: copy.kind != "entity"):
            self.mark(copy, offered=True, aside=True)
        for copy in new:
            if copy.kind == "edge":
                self.mark(copy, offered=True)
        for item in waiting:
            self.marks += 1
            self.pending[self.marks] = replace(item, n=self.marks)
            if not item.aside:
                self.pointers[item.copy.key] = replace(self.pointers[item.copy.key], ours=item.copy.version)


class ReplicaStore:
    """A replica in memory that a power cut cannot tear: every change of it is one transaction."""

    def __init__(self, device: str, user: str, incarnation: str = "") -> None:
        self.image = Image(State(device=device, user=user, incarnation=incarnation))
        #: After how many more writes the power fails; None for never.
        self.power: int | None = None

    def fork(self) -> ReplicaStore:
        """The same file somewhere else."""
        other = copied(self)
        other.image = self.image.fork()
        return other

    @contextmanager
    def transaction(self) -> Iterator[Image]:
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
            image.mark(row)

    def put_state(self, state: State) -> None:
        """Know `state` from here on."""
        with self.transaction() as image:
            self.write()
            image.state = state

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
            if not item.aside:
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

    def write_rows(self, image: Image, absorbed: Absorbed) -> None:
        """Rows, pointers and marks."""
        self.write()
        for row in absorbed.copies:
            image.copies.setdefault(whole_of(row), row)
        self.write()
        for n in absorbed.cleared:
            image.pending.pop(n, None)
        for n, note in absorbed.notes.items():
            if n in image.pending:
                image.pending[n] = replace(image.pending[n], note=note)
        self.write()
        for key, pointer in absorbed.pointers.items():
            image.pointers[key] = replace(pointer, ours=image.newest(key))

    def write_state(self, image: Image, absorbed: Absorbed) -> None:
        """The cursor, and what is in the server's log (PROTOCOL 10.8)."""
        self.write()
        before, image.state = image.state, absorbed.state
        for *row, seq in absorbed.heard:
            whole: Whole = tuple(row)  # type: ignore[assignment]
            if whole in image.copies:
                image.told[whole] = max(image.told.get(whole, seq), seq)
        if absorbed.state.witness is not None and before.witness is None:
            at = parse_cursor(absorbed.state.witness)
            waiting = {whole_of(item.copy) for item in image.pending.values()}
            for whole in image.copies:
                if whole not in waiting:
                    image.told.setdefault(whole, 0 if at is None else at.seq)
        if absorbed.state.cursor is not None and before.cursor != absorbed.state.cursor:
            here = parse_cursor(absorbed.state.cursor)
            if here is not None and here.seq > 0:
                image.places = tuple(rewind.spaced([*(one for one in image.places if one.seq < here.seq), here]))

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
                    image.mark(row)
            image.state = replace(state, restarting=False, digest=digest % (1 << DIGEST_BITS))

    # --- a log that was set back

    def regain(self, found: Found) -> tuple[tuple[int, int], ...]:
        """PROTOCOL 10.9 to 10.11, in one transaction: what the log lacks is offered, or stays away if that was meant.
        What need not be told again."""
        with self.transaction() as image:
            self.write()
            done = replica.regain(image.state, found, self.known_after(image, found.after))
            for row in done.lost:
                if row.theirs == row.hash:
                    image.pointers[row.key] = replace(image.pointers[row.key], theirs=None, theirs_hash=None)
            for row in done.current:
                image.pointers[row.key] = replace(image.pointers[row.key], theirs=row.version, theirs_hash=row.hash)
            self.write()
            if found.discarded:
                for row in done.lost:
                    image.told[row.kind, row.id, row.version, row.hash] = NEVER
            else:
                self.give_back(image, done.lost)
            for row in done.held:
                whole = (row.kind, row.id, row.version, row.hash)
                image.told[whole] = max(image.told.get(whole, found.head.seq), found.head.seq)
            self.write()
            kept = [place for place in image.places if place.seq < found.after]
            image.places = tuple(rewind.spaced([*kept, *([] if found.common is None else [found.common])]))
            image.state = done.state
        return done.skip

    def known_after(self, image: Image, seq: int) -> list[Known]:
        """The rows that the server told or acknowledged after `seq`, and those of which it is not known when."""
        waiting = {whole_of(item.copy) for item in image.pending.values()}
        known = []
        for whole in image.copies:
            told = image.told.get(whole)
            if told > seq if told is not None else whole not in waiting:
                kind, id_, version, hash_ = whole
                pointer = image.pointers.get((kind, id_))
                theirs = None if pointer is None else pointer.theirs_hash
                known.append(Known(kind=kind, id=id_, version=version, hash=hash_, theirs=theirs))
        return known

    def give_back(self, image: Image, lost: Iterable[Known]) -> None:
        """What stood for its id, each with the rows it descends from that are lost too; and the rest, to be kept."""
        waiting = {(row.kind, row.id, row.version, row.hash): row for row in lost}
        claims: dict[Whole, Copy] = {}
        asides: dict[Whole, Copy] = {}
        for whole, row in waiting.items():
            line = image.lineage(image.copies[whole])
            if row.theirs == row.hash:
                claims.update({known: copy for copy in line if (known := whole_of(copy)) in waiting})
            asides[whole] = line[-1]
        image.requeue(claims.values(), [copy for whole, copy in asides.items() if whole not in claims])
        for whole in waiting:
            image.told.pop(whole, None)

    def offer(self, keys: Iterable[Key]) -> None:
        """Offer what the server was known to hold as current of these ids, and turned out not to (PROTOCOL 10.13)."""
        with self.transaction() as image:
            claims = []
            digest = image.state.digest
            for key in keys:
                pointer = image.pointers[key]
                assert pointer.theirs is not None, "only what is theirs was compared"
                assert pointer.theirs_hash is not None, "only what is theirs was compared"
                claims.append(image.copies[*key, pointer.theirs, pointer.theirs_hash])
                digest = digest_change(digest, gone=pointer.theirs_hash)
                image.pointers[key] = replace(pointer, theirs=None, theirs_hash=None)
            image.requeue(claims, ())
            image.state = replace(image.state, digest=digest)

    def theirs(self) -> list[tuple[str, Key, bytes]]:
        """The place, the id and the hash of each row that the server is known to hold as current (PROTOCOL 10.13)."""
        found = [
            (rewind.place_of(*key), key, pointer.theirs_hash)
            for key, pointer in self.image.pointers.items()
            if pointer.theirs_hash is not None
        ]
        return sorted(found)
