"""The fleet bites: each bug that sync systems are known for, planted alone, is caught within seconds.

A planted bug replaces one function for the length of one test; the product has no seam for it. Runs are derandomized,
so that a bug that is caught once is caught always; and each must be caught by a law that it breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec import Raw
from msgspec.structs import replace

from inbetweenies import engine, intake, merge, model, replica
from inbetweenies.model import Plan, Row, SyncRequest, SyncResponse, Writes
from inbetweenies.testing import fleet_clients
from inbetweenies.testing.fleet import BrokenLaw, MixedFleet
from inbetweenies.wire.v1 import lens, pull

EXAMPLES = 400
STEPS = 40


def run_fleet(*kinds: str, examples: int = EXAMPLES) -> None:
    """One derandomized search, without making the failure short: what counts here is that there is one."""

    class Fleet(MixedFleet):
        replays = False

    Fleet.kinds = kinds or MixedFleet.kinds
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


# --- the bugs -----------------------------------------------------------------------------------------------------


def down_edit_up(patch: pytest.MonkeyPatch) -> None:
    """A v1 push goes through the view: the record replaces all that the entity says."""
    real = lens.apply

    def apply(edit: Any, known: Any, *rest: Any) -> Any:
        if known.base is not None:
            known = replace(known, base=replace(known.base, content=Raw(b"{}")), fields=None)
        return real(edit, known, *rest)

    patch.setattr("inbetweenies.wire.v1.push.apply", apply)


def ack_by_id(patch: pytest.MonkeyPatch) -> None:
    """An ack clears every mark of its id, that of a newer edit too."""
    real = replica.absorb

    def absorb(answer: Any, sent: Any, state: Any, local: Any) -> Any:
        result = real(answer, sent, state, local)
        keys = {(ack.kind, ack.id) for ack in answer.acks or ()}
        cleared = [n for key in keys for n, _ in local.pending.get(key, ())]
        pointers = {key: replace(pointer, ours=None) if key in keys else pointer
                    for key, pointer in result.pointers.items()}  # fmt: skip
        return replace(result, cleared=tuple(cleared), pointers=pointers)

    patch.setattr(replica, "absorb", absorb)


def time_for_a_cursor(patch: pytest.MonkeyPatch) -> None:
    """`server_time` is what the wall clock shows when the answer is made."""
    real = engine.serve

    def serve(request: Any, context: Any, *rest: Any) -> Plan[SyncResponse]:
        response = yield from real(request, context, *rest)
        return replace(response, served_stamp=context.now)

    patch.setattr(engine, "serve", serve)


def two_way_merge(patch: pytest.MonkeyPatch) -> None:
    """Merges know no ancestor, so they cannot tell "deleted" from "never there"."""
    real = merge.three_way

    def three_way(base: Any, *rest: Any, **named: Any) -> Any:
        return real(replace(base, content=Raw(b"{}")), *rest, **named)

    patch.setattr(merge, "three_way", three_way)


def cursor_before_rows(patch: pytest.MonkeyPatch) -> None:
    """The cursor is stored in a transaction of its own, before the rows that it covers."""

    def commit(self: fleet_clients.ReplicaStore, absorbed: Any) -> None:
        with self.transaction() as image:
            self.write_state(image, absorbed)
        with self.transaction() as image:
            self.write_rows(image, absorbed)

    patch.setattr(fleet_clients.ReplicaStore, "commit", commit)


def loser_dropped(patch: pytest.MonkeyPatch) -> None:
    """A write that loses is acknowledged and thrown away."""
    real = engine._Work.add_entity

    def add_entity(self: Any, *rest: Any, current: bool, **named: Any) -> Any:
        return real(self, *rest, current=current, **named) if current else None

    patch.setattr(engine._Work, "add_entity", add_entity)


def no_pull_guard(patch: pytest.MonkeyPatch) -> None:
    """A pulled row takes the place of an edit that waits."""
    real = replica._Work.point

    def point(self: Any, key: Any, version: str, hash_: bytes) -> None:
        real(self, key, version, hash_)
        self.pointers[key] = replace(self.pointers[key], ours=None)

    patch.setattr(replica._Work, "point", point)


def digest_without_tombstones(patch: pytest.MonkeyPatch) -> None:
    """Deleted rows are left out of the sum."""
    real = model.digest_change

    def digest_change(digest: int, *, gone: bytes | None = None, come: bytes | None = None) -> int:
        return real(digest, gone=gone, come=None if tombstones[-1] else come)

    tombstones = [False]
    add = engine._Work.add

    def watched(self: Any, *rest: Any, **named: Any) -> Any:
        tombstones.append(named["deleted"])
        return add(self, *rest, **named)

    patch.setattr(engine, "digest_change", digest_change)
    patch.setattr(engine._Work, "add", watched)


def edges_before_entities(patch: pytest.MonkeyPatch) -> None:
    """An edge is looked at before the entities that come with it, and one that fails is acknowledged anyway."""

    def decide(request: Any, held: Any, *, now: int, limits: Any, policy: Any) -> Any:
        work = engine._Work(request, held, now, limits, policy)
        for change in request.changes:
            for index, edge in enumerate(change.relationships):
                work.take_edge(edge, f"{change.pointer}/relationships/{index}", aside=False)
        for refused in work.refused:
            work.ack("edge", refused.id, refused.version, "dup")
        work.refused.clear()
        for change in intake.in_order(request.changes):
            if change.entity is not None:
                work.take_entity(change, change.entity)
        return work.decision()

    patch.setattr(engine, "decide", decide)


def repeat_as_conflict(patch: pytest.MonkeyPatch) -> None:
    """A row that comes again is taken for other content under its version."""

    def seen_again(self: Any, known: Row, hash_: bytes, entity: Any) -> None:
        entity = replace(entity, version=f"{entity.version}#{len(self.held.versions)}{self.seq}")
        body = model.body_of(entity)
        self.add_entity(entity, body, model.row_hash("entity", body), current=False)
        self.ack("entity", entity.id, known.version, "lost_kept")

    patch.setattr(engine._Work, "seen_again", seen_again)


def stale_base(patch: pytest.MonkeyPatch) -> None:
    """A v1 edit is compared with what is current, not with what its client knew."""

    def known(job: Any, graph: Any, then: Any) -> Any:
        return real(job, graph, graph if job.entity_id in graph.entities else then)

    from inbetweenies.wire.v1 import push

    real = push._known
    patch.setattr(push, "_known", known)


def since_includes(patch: pytest.MonkeyPatch) -> None:
    """A delta starts one row too late."""
    real = engine.start_of

    def start_of(request: SyncRequest, held: Any) -> tuple[int, bool]:
        after, resync = real(request, held)
        return (
            (min(after + 1, held.head.seq), resync) if request.since is not None or request.cursor else (after, resync)
        )

    patch.setattr(engine, "start_of", start_of)


def page_end_skipped(patch: pytest.MonkeyPatch) -> None:
    """The cursor of a page is that of the head."""
    real = engine.serve

    def serve(*rest: Any) -> Plan[SyncResponse]:
        response = yield from real(*rest)
        return replace(response, served=response.head.cursor)

    patch.setattr(engine, "serve", serve)


def tombstone_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A concurrent edit brings back what was deleted."""
    patch.setattr(engine, "says_deleted", lambda content: False)


def conflict_untold(patch: pytest.MonkeyPatch) -> None:
    """Who loses is not told."""
    patch.setattr(engine._Work, "lost", lambda *rest: None)


def partial_commit(patch: pytest.MonkeyPatch) -> None:
    """Of a push, all but the last row are committed."""
    real = engine._Work.decision

    def decision(self: Any) -> Any:
        made = real(self)
        if len(made.writes.rows) < 2:
            return made
        rows = made.writes.rows[:-1]
        closed = tuple(pair for pair in made.writes.closed if pair[1] != made.writes.rows[-1].seq)
        digest = self.held.head.digest
        for row in rows:
            if row.until is None or row.until != row.seq:
                digest += int.from_bytes(row.hash, "big")
        head = replace(made.head, seq=rows[-1].seq, chain=rows[-1].chain, stamp=rows[-1].stamp, digest=digest % 2**256)
        return replace(made, writes=replace(made.writes, rows=rows, closed=closed, head=head), head=head)

    patch.setattr(engine._Work, "decision", decision)


def ack_confirms_the_newest(patch: pytest.MonkeyPatch) -> None:
    """A v1 ack confirms the last answer that was given to anybody who said its name."""
    real = pull.down

    def down(*rest: Any, **named: Any) -> Any:
        plan = real(*rest, **named)
        head = rest[1].head
        step = next(plan)
        try:
            while True:
                if isinstance(step, Writes) and step.device is not None:
                    key, device = step.device
                    step = replace(step, device=(key, replace(device, served=head.seq, acked=head.seq)))
                step = plan.send((yield step))
        except StopIteration as stop:
            return stop.value

    patch.setattr(pull, "down", down)


def unknown_writes_taken(patch: pytest.MonkeyPatch) -> None:
    """A write of an unknown version is read as v1 as far as it goes."""
    from inbetweenies.wire import v1

    real = v1.V1.decode

    def decode(self: Any, body: bytes, *, path: str = "", strict: bool = False, limits: Any) -> Any:
        return real(self, body, path=path, strict=False, limits=limits)

    patch.setattr(v1.V1, "decode", decode)


#: The bug, the clients that are enough to see it, and the laws of which one must be found broken.
BUGS: list[tuple[Callable[[pytest.MonkeyPatch], None], tuple[str, ...], set[str]]] = [
    (down_edit_up, ("modern", "v1"), {"6"}),
    (ack_by_id, ("modern",), {"1"}),
    (time_for_a_cursor, (), {"8"}),
    (two_way_merge, ("modern",), {"4"}),
    (cursor_before_rows, ("modern",), {"8"}),
    (loser_dropped, (), {"3", "4"}),
    (no_pull_guard, ("modern",), {"2"}),
    (digest_without_tombstones, ("modern",), {"8"}),
    (edges_before_entities, ("modern",), {"3"}),
    (repeat_as_conflict, (), {"4", "5"}),
    (stale_base, ("modern", "v1"), {"6"}),
    (since_includes, ("modern", "deployed"), {"8"}),
    (page_end_skipped, ("modern",), {"8"}),
    (tombstone_forgotten, ("modern", "deployed"), {"4"}),
    (conflict_untold, (), {"4"}),
    (partial_commit, (), {"1", "3"}),
    (ack_confirms_the_newest, ("v1",), {"6", "8"}),
    (unknown_writes_taken, (), {"11"}),
]


@pytest.mark.parametrize(("plant", "kinds", "laws"), BUGS, ids=[bug[0].__name__ for bug in BUGS])
def test_a_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None],
    kinds: tuple[str, ...],
    laws: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)

    with pytest.raises(BrokenLaw) as caught:
        run_fleet(*kinds)

    told = str(caught.value)
    assert told.removeprefix("law ").split(" ")[0] in laws
    assert "what happened:" in told


def test_without_a_planted_bug_the_same_search_finds_nothing() -> None:
    run_fleet(examples=80)
