"""The stories of set-back servers bite: each bug that such a design invites, planted alone, makes one of them fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from blowing_off import recovery, store
from blowing_off import sync as syncs
from inbetweenies import engine, replica, rewind
from inbetweenies.model import Cursor, Held
from inbetweenies.replica import Absorbed, Known
from inbetweenies.stores.keeper import Committed, Keeper
from tests.client import test_copies as copies
from tests.client import test_rewind as stories
from tests.stores import test_journal as journals

Patch = pytest.MonkeyPatch
Story = Callable[[Path], Awaitable[object]]


def alone(story: Callable[[], Awaitable[object]]) -> Story:
    """A story that needs no folder."""
    return lambda folder: story()


async def journal(folder: Path) -> None:
    site = journals.Site(folder)
    try:
        journals.what_is_acknowledged_outlives_the_database(site)
    finally:
        site.close()


# --- the bugs -----------------------------------------------------------------------------------------------------


def epoch_that_comes_back_with_the_backup(patch: Patch) -> None:
    """A place is of this log if it says so and is not past its end; the chain is not looked at."""

    def holds(held: Held, place: Cursor) -> bool:
        return place.epoch == held.head.epoch and place.seq <= held.head.seq

    patch.setattr(rewind, "holds", holds)


def cursor_for_a_witness(patch: Patch) -> None:
    """A client remembers how far it has read, and not what was acknowledged beyond that."""
    real = replica.compose

    def compose(*args: Any, **options: Any) -> Any:
        ask, sent = real(*args, **options)
        return replace(ask, witness=None), sent

    patch.setattr(syncs, "compose", compose)


def any_answer_is_believed(patch: Patch) -> None:
    patch.setattr(syncs, "believed", lambda answer, ask: True)


def journal_after_the_ack(patch: Patch) -> None:
    """What is committed goes to the journal with the next commit."""
    real = Keeper.committed
    waiting: list[Committed] = []

    def committed(self: Keeper, commits: Sequence[Committed]) -> None:
        late, waiting[:] = waiting[:], commits
        if late:
            real(self, late)

    patch.setattr(Keeper, "committed", committed)


def cursor_before_the_rows(patch: Patch) -> None:
    real = store.LocalStore.apply

    def apply(self: store.LocalStore, absorbed: Absorbed, *, now: int) -> None:
        self.put_state(absorbed.state)
        self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")
        real(self, absorbed, now=now)

    patch.setattr(store.LocalStore, "apply", apply)


def only_own_rows_are_offered(patch: Patch) -> None:
    real = recovery.Recovery._known_after

    def known_after(self: recovery.Recovery, seq: int) -> list[Known]:
        own = self._db.execute("SELECT kind, id, version FROM copies WHERE own").fetchall()
        return [row for row in real(self, seq) if (row.kind, row.id, row.version) in own]

    patch.setattr(recovery.Recovery, "_known_after", known_after)


def only_what_is_current_is_offered(patch: Patch) -> None:
    real = recovery.Recovery._known_after

    def known_after(self: recovery.Recovery, seq: int) -> list[Known]:
        return [row for row in real(self, seq) if row.theirs == row.hash]

    patch.setattr(recovery.Recovery, "_known_after", known_after)


def the_last_edge_that_comes_wins(patch: Patch) -> None:
    patch.setattr(engine, "later", lambda here, there: (True, ""))


def a_row_that_comes_back_always_wins(patch: Patch) -> None:
    patch.setattr(rewind.Lost, "untouched", lambda self, current: True)


def nobody_looks_for_copies_of_clients(patch: Patch) -> None:
    patch.setattr(rewind, "_is_forked", lambda pushes, known: False)


PLANTED: list[tuple[Callable[[Patch], None], Story]] = [
    (epoch_that_comes_back_with_the_backup, alone(stories.a_server_that_has_gone_past_its_client_is_noticed)),
    (cursor_for_a_witness, alone(stories.what_was_acknowledged_before_it_was_pulled_comes_back)),
    (any_answer_is_believed, alone(stories.an_old_answer_does_not_hide_a_loss)),
    (journal_after_the_ack, journal),
    (cursor_before_the_rows, stories.nothing_is_passed_over_when_the_power_fails),
    (only_own_rows_are_offered, alone(stories.everything_that_anybody_was_told_comes_back)),
    (only_what_is_current_is_offered, alone(stories.everything_that_anybody_was_told_comes_back)),
    (the_last_edge_that_comes_wins, alone(stories.edges_keep_what_was_written_since)),
    (a_row_that_comes_back_always_wins, alone(stories.an_old_row_does_not_take_the_place_of_a_newer_one)),
    (nobody_looks_for_copies_of_clients, copies.both_copies_keep_what_they_wrote),
]


@pytest.mark.parametrize(("bug", "story"), PLANTED, ids=[bug.__name__ for bug, _ in PLANTED])
async def test_every_planted_bug_is_caught(
    bug: Callable[[Patch], None], story: Story, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path / "planted").mkdir()
    await story(tmp_path / "sound")
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        await story(tmp_path / "planted")
