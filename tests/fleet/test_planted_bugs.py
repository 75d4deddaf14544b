"""Bugs that sync systems are known for, planted one at a time: the fleet must catch each of them.

They are planted by replacing a pure function for the length of a test; the product knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec import Raw
from msgspec.structs import replace

from inbetweenies import engine, merge, model, replica
from inbetweenies.limits import canonical
from inbetweenies.testing import fleet_clients
from inbetweenies.testing.fleet import BrokenLaw, MixedFleet
from inbetweenies.wire import v2
from inbetweenies.wire.v1 import lens

Plant = Callable[[pytest.MonkeyPatch], None]


def down_edit_up(patch: pytest.MonkeyPatch) -> None:
    """A v1 edit replaces the entity by what v1 can say of it."""
    made = lens._row

    def row(edit: Any, known: Any, draft: Any, name: str, content: dict[str, Any]) -> Any:
        seen = {key: value for key, value in content.items() if key in edit.shape.fields or key in ("kind", "deleted")}
        return made(edit, known, draft, name, seen)

    patch.setattr(lens, "_row", row)


def ack_by_id(patch: pytest.MonkeyPatch) -> None:
    """An ack of any row of an id clears whatever waits under that id."""
    clear = replica._Work.clear

    def cleared(self: Any, terminal: Any, ns: frozenset[int]) -> None:
        pending = dict.fromkeys((item.copy.key for item in terminal), ())
        self.local = replace(self.local, pending={**self.local.pending, **pending})
        clear(self, terminal, ns)

    patch.setattr(replica._Work, "clear", cleared)


def timestamp_cursor(patch: pytest.MonkeyPatch) -> None:
    """The time given out for the next pull is the wall clock, not the stamp of the last row served."""
    down = v2.V2.down

    def clocked(self: Any, message: Any, response: Any, context: Any, *rest: Any, **more: Any) -> Any:
        return down(self, message, replace(response, served_stamp=context.now), context, *rest, **more)

    patch.setattr(v2.V2, "down", clocked)


def two_way_merge(patch: pytest.MonkeyPatch) -> None:
    """Without looking at the ancestor, whatever differs is taken from the pushed row."""
    three_way = merge.three_way

    def two_way(base: Any, local: Any, remote: Any, **sides: Any) -> Any:
        return three_way(local, local, remote, **sides)

    patch.setattr(merge, "three_way", two_way)


def cursor_before_rows(patch: pytest.MonkeyPatch) -> None:
    """The client stores where it got to, then the rows up to there, in two transactions."""

    def commit(self: Any, absorbed: Any) -> None:
        with self.transaction() as image:
            self.write_state(image, absorbed)
        self.write()
        with self.transaction() as image:
            self.write_rows(image, absorbed)

    patch.setattr(fleet_clients.ReplicaStore, "commit", commit)


def losing_write_dropped(patch: pytest.MonkeyPatch) -> None:
    """A row that did not become current is acknowledged and forgotten."""
    add = engine._Work.add

    def dropped(self: Any, *row: Any, **fields: Any) -> Any:
        return add(self, *row, **fields) if fields["current"] else None

    patch.setattr(engine._Work, "add", dropped)


def no_pull_guard(patch: pytest.MonkeyPatch) -> None:
    """A pulled row takes the place of a pending one."""

    def point(self: Any, key: Any, version: str, hash_: bytes) -> None:
        before = self.at(key)
        self.digest = model.digest_change(self.digest, gone=before.theirs_hash, come=hash_)
        self.pointers[key] = replace(before, theirs=version, theirs_hash=hash_, ours=None, round=self.round)

    patch.setattr(replica._Work, "point", point)


def digest_without_tombstones(patch: pytest.MonkeyPatch) -> None:
    """A row that is deleted is left out of the digest."""
    add = engine._Work.add

    def added(self: Any, *row: Any, **fields: Any) -> Any:
        kept = self.digest
        made = add(self, *row, **fields)
        if fields["deleted"]:
            self.digest = kept
        return made

    patch.setattr(engine._Work, "add", added)


def resend_is_a_conflict(patch: pytest.MonkeyPatch) -> None:
    """A row that comes again is kept again."""

    def again(self: Any, known: Any, hash_: bytes, entity: Any) -> None:
        content = {**msgspec.json.decode(entity.content), "again": self.seq}
        twin = replace(entity, version=f"{entity.version}+{self.seq}", content=Raw(canonical(content)))
        body = model.body_of(twin)
        self.add_entity(twin, body, model.row_hash("entity", body), current=False)
        self.ack("entity", entity.id, entity.version, "dup")

    patch.setattr(engine._Work, "seen_again", again)


def tombstone_loses(patch: pytest.MonkeyPatch) -> None:
    """A deletion is an edit like any other, so an edit that knew nothing of it brings the entity back unreported."""
    contest = engine._Work.contest

    def contested(self: Any, current: Any, entity: Any, body: bytes, hash_: bytes) -> None:
        if current.deleted and not model.says_deleted(entity.content):
            self.add_entity(entity, body, hash_, current=True)
            self.ack("entity", entity.id, entity.version, "applied")
        else:
            contest(self, current, entity, body, hash_)

    patch.setattr(engine._Work, "contest", contested)


PLANTS: dict[str, tuple[Plant, tuple[str, ...]]] = {
    "down-edit-up": (down_edit_up, ("v1", "modern")),
    "ack by id": (ack_by_id, ("modern",)),
    "timestamp cursor": (timestamp_cursor, ("deployed",)),
    "two-way merge": (two_way_merge, ("modern",)),
    "cursor before rows": (cursor_before_rows, ("modern",)),
    "losing write dropped": (losing_write_dropped, ("modern", "deployed")),
    "no pull guard": (no_pull_guard, ("modern",)),
    "digest without tombstones": (digest_without_tombstones, ("modern",)),
    "re-send is kept again": (resend_is_a_conflict, ("modern",)),
    "tombstone loses": (tombstone_loses, ("modern",)),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, kinds = PLANTS[name]
    plant(monkeypatch)
    fleet = type("Fleet", (MixedFleet,), {"kinds": kinds, "replays": False})
    patient = settings(
        max_examples=400,
        stateful_step_count=40,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
        print_blob=False,
    )
    with pytest.raises(BrokenLaw) as caught:
        run_state_machine_as_test(fleet, settings=patient)

    print(f"{name}: {str(caught.value).splitlines()[0]}")
