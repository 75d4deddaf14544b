"""Bugs of what guards acknowledged writes when logs are set back or clients copied.

Each is planted by replacing one function for a while: in the server's half (`rewind`, `stores.keeper`), in ours
(`replica`), and in the model of a client's disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from inbetweenies import replica, rewind
from inbetweenies.errors import StoreError
from inbetweenies.model import Cursor, Held, parse_cursor
from inbetweenies.replica import NEVER, Found, Known
from inbetweenies.stores import journal
from inbetweenies.stores.keeper import Committed, Keeper
from inbetweenies.testing.fleet_replica import Image, ReplicaStore
from inbetweenies.testing.simulator import server

Patch = pytest.MonkeyPatch


# --- noticing -----------------------------------------------------------------------------------------------------


def epoch_in_the_database_only(patch: Patch) -> None:
    """A place is of this log if it says so and is not past its end; the backup brings the epoch back."""

    def holds(held: Held, place: Cursor) -> bool:
        return place.epoch == held.head.epoch and place.seq <= held.head.seq

    patch.setattr(rewind, "holds", holds)


def place_by_number(patch: Patch) -> None:
    """A place is of this log if the log is long enough."""
    patch.setattr(rewind, "holds", lambda held, place: place.seq <= held.head.seq)


def cursor_for_a_witness(patch: Patch) -> None:
    """A client proves its history by how far it has read, and not by what was acknowledged beyond that."""
    real = replica.compose

    def compose(*args: Any, **options: Any) -> Any:
        ask, sent = real(*args, **options)
        return replace(ask, witness=None), sent

    patch.setattr(replica, "compose", compose)


def witness_ignores_acks(patch: Patch) -> None:
    """The answer to a push does not move the witness."""
    real = replica.absorb

    def absorb(answer: Any, sent: Any, state: Any, local: Any, **named: Any) -> Any:
        result = real(answer, sent, state, local, **named)
        return replace(result, state=replace(result.state, witness=state.witness or answer.cursor)) if sent else result

    patch.setattr(replica, "absorb", absorb)


def late_replies_counted(patch: Patch) -> None:
    """An answer from before the restore is believed, whatever was asked."""
    real = replica.believed

    def believed(answer: Any, ask: Any) -> bool:
        asked, told = (parse_cursor(place or "") for place in (ask.witness or ask.cursor, answer.head or answer.cursor))
        return real(answer, ask) or (asked is not None and told is not None and asked.epoch != told.epoch)

    patch.setattr(replica, "believed", believed)


def fork_not_kept(patch: Patch) -> None:
    """That a log was set back is told to whoever noticed, and the log goes on as if it was not."""
    patch.setattr(rewind, "_is_news", lambda stray, head, events: False)


def noticed_when_idle(patch: Patch) -> None:
    """Whoever pushes is served as usual, wherever it comes from."""
    real = rewind.attend

    def attend(request: Any, held: Any, now: int) -> Any:
        return None if request.changes else (yield from real(request, held, now))

    patch.setattr(rewind, "attend", attend)


def locate_believes_the_client(patch: Patch) -> None:
    """The place furthest on is taken for common, whatever its chain says."""
    real = rewind._locate

    def _locate(places: Iterable[Cursor], held: Held, discarded: bool) -> Any:
        listed = list(places)
        chains = {place.seq: place.chain for place in listed if place.seq <= held.head.seq}
        return (yield from real(listed, replace(held, chains=chains), discarded))

    patch.setattr(rewind, "_locate", _locate)


# --- giving back --------------------------------------------------------------------------------------------------


def locate_off_by_one(patch: Patch) -> None:
    """The newest common place is taken one row too late."""
    real = ReplicaStore.known_after
    patch.setattr(ReplicaStore, "known_after", lambda self, image, seq: real(self, image, seq + 1))


def _only(patch: Patch, wanted: Any) -> None:
    real = ReplicaStore.known_after

    def known_after(self: ReplicaStore, image: Image, seq: int) -> list[Known]:
        return [row for row in real(self, image, seq) if wanted(self, image, row)]

    patch.setattr(ReplicaStore, "known_after", known_after)


def only_current_rows_offered(patch: Patch) -> None:
    """What lost or was replaced is not offered again."""
    _only(patch, lambda self, image, row: row.theirs == row.hash)


def only_own_rows_offered(patch: Patch) -> None:
    """Everybody gives back what they wrote themselves."""
    _only(
        patch,
        lambda self, image, row: (
            image.state.user.encode() in image.copies[row.kind, row.id, row.version, row.hash].body
        ),
    )


def tombstones_not_offered(patch: Patch) -> None:
    """What was deleted is not worth giving back."""
    _only(patch, lambda self, image, row: not image.copies[row.kind, row.id, row.version, row.hash].deleted)


def acks_not_offered(patch: Patch) -> None:
    """Only what was told in a page is known to have been there."""
    real = replica._heard

    def _heard(answer: Any, terminal: Any, rows: Any, wanted: bool) -> Any:
        own = {item.copy.hash for item in terminal}
        return [(*row[:4], NEVER if row[3] in own else row[4]) for row in real(answer, terminal, rows, wanted)]

    patch.setattr(replica, "_heard", _heard)


def acks_told_with_the_page(patch: Patch) -> None:
    """What was acknowledged counts as no further on than the page that the same answer told."""
    real = replica._heard

    def _heard(answer: Any, terminal: Any, rows: Any, wanted: bool) -> Any:
        page = parse_cursor(answer.cursor or "")
        return [
            (*row[:4], row[4] if page is None else min(row[4], page.seq))
            for row in real(answer, terminal, rows, wanted)
        ]

    patch.setattr(replica, "_heard", _heard)


def offer_is_an_edit(patch: Patch) -> None:
    """A row that is offered again gets a new version."""
    real = Image.mark

    def mark(self: Image, row: Any, *, offered: bool = False, aside: bool = False) -> None:
        if not offered or row.kind == "edge":
            real(self, row, offered=offered, aside=aside)
            return
        entity = replica._entity.decode(row.body)
        real(self, replica.copy_of(replace(entity, version=f"{entity.version}-again")), offered=offered, aside=aside)

    patch.setattr(Image, "mark", mark)


def offered_in_own_name(patch: Patch) -> None:
    """Whoever gives a row back signs it."""
    real = replica._change

    def _change(entity: Any, edges: Any, offered: bool, aside: bool, **named: Any) -> Any:
        if offered and entity is not None:
            entity = replace(entity, user_id="whoever gives it back")
        return real(entity, edges, offered, aside, **named)

    patch.setattr(replica, "_change", _change)


def lost_taken_for_deleted(patch: Patch) -> None:
    """What a server that was set back does not have is taken away here."""
    real = ReplicaStore.regain

    def regain(self: ReplicaStore, found: Found) -> Any:
        return real(self, replace(found, discarded=True))

    patch.setattr(ReplicaStore, "regain", regain)


def all_given_back_aside(patch: Patch) -> None:
    """Everything that is given back is only kept."""
    real = Image.requeue
    patch.setattr(Image, "requeue", lambda self, claims, asides: real(self, (), [*claims, *asides]))


def what_comes_back_always_wins(patch: Patch) -> None:
    """A row that comes back takes the place of whatever was written since."""
    patch.setattr(rewind.Lost, "untouched", lambda self, current: True)


def place_kept_by_the_client(patch: Patch) -> None:
    """A client that has located goes on from where it was."""
    real = replica.regain

    def regain(state: Any, found: Any, known: Any) -> Any:
        done = real(state, found, known)
        return replace(done, state=replace(done.state, cursor=state.cursor, witness=state.witness))

    patch.setattr(replica, "regain", regain)


def nothing_compared(patch: Patch) -> None:
    """That digests differ is not looked into."""
    patch.setattr(replica, "differences", lambda part, own: replica.Difference())


# --- copies of clients --------------------------------------------------------------------------------------------


def copies_not_noticed(patch: Patch) -> None:
    """Nobody looks whether two copies of a device push."""
    patch.setattr(rewind, "_is_forked", lambda pushes, known: False)


def copies_keep_their_name(patch: Patch) -> None:
    """A copy that is told that it is one goes on as before."""
    patch.setattr(replica, "incarnated", lambda state, incarnation: state)


def every_lost_answer_is_a_copy(patch: Patch) -> None:
    """A push is not written down before it leaves."""
    patch.setattr(replica, "attempted", lambda state, ask: state)


# --- what is kept outside -----------------------------------------------------------------------------------------


def journal_after_the_ack(patch: Patch) -> None:
    """What is committed goes to the journal with the next commit."""
    real = Keeper.committed

    def committed(self: Any, commits: Sequence[Committed]) -> None:
        late, self.late = getattr(self, "late", ()), commits
        if late:
            real(self, late)

    patch.setattr(Keeper, "committed", committed)


def journal_not_replayed(patch: Patch) -> None:
    """A server that was set back starts without looking into its journal."""
    patch.setattr(Keeper, "_compare", lambda self, *known: None)


def journal_with_the_backup(patch: Patch) -> None:
    """The journal is part of the backup, and restored with it."""
    database = server.MemoryDatabase
    backup, restore = database.backup, database.restore

    def files(self: Any) -> dict[Path, bytes]:
        folder = None if self._folder is None else self._folder.journal
        if folder is None or not folder.is_dir():
            return {}
        return {path: path.read_bytes() for path in folder.iterdir()}

    def backed_up(self: Any) -> Any:
        return backup(self), files(self)

    def restored(self: Any, image: Any) -> None:
        restore(self, None if image is None else image[0])
        if image is not None:
            for path in files(self):
                path.unlink()
            for path, data in image[1].items():
                path.write_bytes(data)

    patch.setattr(database, "backup", backed_up)
    patch.setattr(database, "restore", restored)


def journal_full_swallowed(patch: Patch) -> None:
    """That there is no room for the journal is nothing that a client need know."""
    real = journal.Journal.append

    def append(self: Any, *args: Any, **named: Any) -> None:
        try:
            real(self, *args, **named)
        except StoreError:
            return

    patch.setattr(journal.Journal, "append", append)


def hole_in_the_journal(patch: Patch) -> None:
    """What the journal could not take is not written to it later."""
    real = Keeper._write

    def _write(self: Any, journal: Any, commits: Any) -> None:
        self._behind.clear()
        real(self, journal, commits)

    patch.setattr(Keeper, "_write", _write)


def journal_not_completed(patch: Patch) -> None:
    """What a process had committed and not put into the journal when it died is not put there later."""
    patch.setattr(Keeper, "_catch_up", lambda self, journal, graph, birth, end, head: None)


def first_commits_forgotten(patch: Patch) -> None:
    """A journal that never heard of a graph takes it for none of its own."""
    real = Keeper._complete
    patch.setattr(Keeper, "_complete", lambda self, journal, newest, strange: real(self, journal, newest, {}))


def sidecar_behind(patch: Patch) -> None:
    """The server's time goes back with its database."""
    real = Keeper._notice
    patch.setattr(Keeper, "_notice", lambda self, end: real(self, replace(end, stamp=0)))
