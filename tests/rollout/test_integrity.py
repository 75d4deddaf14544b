"""Whether a log is whole (PROTOCOL 12.9): no false alarm, every planted damage found, and the plan puts it right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError
from inbetweenies.model import (
    Context,
    Entity,
    Head,
    Kind,
    Reads,
    Relationship,
    Row,
    body_of,
    digest_change,
    next_chain,
    row_hash,
)
from inbetweenies.rollout import integrity
from inbetweenies.rollout.integrity import VIOLATIONS_MAX, Audit, Check, Repair, Report
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores import MemoryStore
from inbetweenies.testing import vectors

Log: TypeAlias = tuple[Head, list[Row]]
CHECKS: tuple[Check, ...] = ("entity_counts", "relationship_integrity", "orphaned_records", "data_consistency")

#: What is written: an entity or an edge between two, of which id, and whether it takes the place of the one before.
puts = st.lists(
    st.tuples(st.sampled_from("aabc"), st.sampled_from(["", "", "ab", "ca"]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=15,
)


def log_of(written: list[tuple[str, str, bool, bool]]) -> Log:
    """A log as a server writes it; edges to entities that are not there yet are left out, as by PROTOCOL 3.5."""
    head, current = Head(epoch="e"), dict[tuple[Kind, str], Row]()
    rows: list[Row] = []
    for id_, ends, replaces, deleted in written:
        kind: Kind = "edge" if ends else "entity"
        if not all(("entity", end) in {(row.kind, row.id) for row in rows} for end in ends):
            continue
        seq, flag = head.seq + 1, Raw(b'{"deleted":true}' if deleted else b"{}")
        value: Entity | Relationship = (
            Relationship(
                id=id_,
                version=f"v{seq}",
                from_entity_id=ends[0],
                from_entity_version="v1",
                to_entity_id=ends[1],
                to_entity_version="v1",
                relationship_type="in",
                properties=flag,
                user_id="u",
            )
            if ends
            else Entity(
                id=id_, version=f"v{seq}", entity_type="room", name="n", content=flag, source_type="manual", user_id="u"
            )
        )
        body = body_of(value)
        hash_, before = row_hash(kind, body), current.get((kind, id_))
        takes = replaces or before is None
        row = Row(
            kind=kind,
            id=id_,
            version=f"v{seq}",
            seq=seq,
            until=None if takes else seq,
            stamp=head.stamp + 2,
            edit=seq,
            timed=False,
            rise=seq,
            born=seq,
            deleted=deleted,
            entity_type="in" if ends else "room",
            user_id="u",
            from_id=ends[:1],
            to_id=ends[1:],
            hash=hash_,
            chain=next_chain(head.chain, hash_),
            body=body,
        )
        rows.append(row)
        digest = head.digest
        if takes:
            if before is not None:
                rows[before.seq - 1] = replace(rows[before.seq - 1], until=seq)
            digest = digest_change(digest, gone=before.hash if before else None, come=hash_)
            current[kind, id_] = row
        head = replace(head, seq=seq, chain=row.chain, stamp=row.stamp, digest=digest)
    return head, rows


def audited(log: Log, size: int = 1_000_000) -> Report:
    head, rows = log
    audit = integrity.Audit()
    for start in range(0, len(rows), size):
        audit.read(rows[start : start + size])
        assert audit.seq == rows[min(start + size, len(rows)) - 1].seq
    return audit.report(head)


# --- no false alarms ----------------------------------------------------------------------------------------------


@given(written=puts, size=st.integers(1, 5))
def test_a_log_as_servers_write_it_is_whole_however_it_is_read(
    written: list[tuple[str, str, bool, bool]], size: int
) -> None:
    log = log_of(written)
    report = audited(log)
    current = [row.kind for row in log[1] if row.current]

    assert (0, (), ()) == (report.count, report.violations, report.plan)
    assert (current.count("entity"), current.count("edge")) == (report.entities, report.relationships)
    assert all(report.passed(check) for check in CHECKS)
    assert report == audited(log, size)


def test_an_empty_log_is_whole() -> None:
    assert Report(entities=0, relationships=0, violations=(), count=0) == Audit().report(Head(epoch="e"))


@pytest.mark.parametrize("name", vectors.load())
def test_what_a_real_server_wrote_is_whole(name: str) -> None:
    """Merges, conflicts, tombstones, collisions, edits by version 1, offered rows, forks: all the golden vectors."""
    store, clock = MemoryStore(), [0]
    server = ProtocolFallback(store, clock=lambda: clock[0])

    def post(now: int, path: str, body: bytes) -> tuple[int, Any]:
        clock[0] = now
        with pytest.raises(StopIteration) as stop:
            server.handle(body, context=Context(now=now), path=path).send(None)
        return stop.value.value.status, None

    vector: vectors.Vector | None = vectors.load()[name]
    told = []
    while vector is not None:
        told.append(vector)
        vector = None if vector.after is None else vectors.load()[vector.after]
    for one in reversed(told):
        post(one.now, one.path, one.body)

    async def log() -> Log:
        async with store.transaction("default", write=False) as tx:
            head = (await tx.read(Reads())).head
            held = await tx.read(Reads(seqs=tuple(range(1, head.seq + 1))))
            return head, [held.seqs[seq] for seq in sorted(held.seqs)]

    head, rows = asyncio.run(log())
    assert (head.seq, 0) == (len(rows), audited((head, rows)).count)


# --- every damage -------------------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1, *data[1:]])


def changed(log: Log, at: int, **fields: Any) -> Log:
    head, rows = log
    return head, [*rows[:at], replace(rows[at], **fields), *rows[at + 1 :]]


def lost(log: Log, at: int) -> Log:
    return log[0], [*log[1][:at], *log[1][at + 1 :]]


def lost_and_doubled(log: Log, at: int) -> Log:
    """As many rows as before: one is lost and another one stands there a second time."""
    rows = log[1]
    return changed(log, at, **{name: getattr(rows[at - 1], name) for name in ("id", "kind", "version", "body", "hash")})


def unclosed(log: Log, at: int) -> Log | None:
    return changed(log, at, until=None) if log[1][at].until not in (None, log[1][at].seq) else None


def ends_nowhere(log: Log, at: int) -> Log | None:
    return changed(log, at, until=log[0].seq + 9) if log[1][at].current else None


def ends_elsewhere(log: Log, at: int) -> Log | None:
    row = log[1][at]
    return None if row.until in (None, row.seq) else changed(log, at, until=row.until + 1)


def stamped(log: Log, at: int) -> Log | None:
    return changed(log, at, stamp=log[1][at - 1].stamp) if at else None


def other_end(**fields: Any) -> Callable[[Log, int], Log]:
    return lambda log, at: (replace(log[0], **fields), log[1])


def other(**fields: Callable[[Row], Any]) -> Callable[[Log, int], Log | None]:
    """Columns of the row are others; None where they would be the same."""

    def damage(log: Log, at: int) -> Log | None:
        row = log[1][at]
        told = {name: change(row) for name, change in fields.items()}
        return changed(log, at, **told) if any(getattr(row, name) != value for name, value in told.items()) else None

    return damage


DAMAGES: dict[str, tuple[Callable[[Log, int], Log | None], Check]] = {
    "a byte of the value": (other(body=lambda row: flipped(row.body)), "data_consistency"),
    "a byte of the hash": (other(hash=lambda row: flipped(row.hash)), "data_consistency"),
    "a byte of the chain": (other(chain=lambda row: flipped(row.chain)), "data_consistency"),
    "a value and its hash": (
        other(
            body=lambda row: row.body.replace(b'"u"', b'"w"'),
            hash=lambda row: row_hash(row.kind, row.body.replace(b'"u"', b'"w"')),
            user_id=lambda row: "w",
        ),
        "data_consistency",
    ),
    "the kind": (other(kind=lambda row: "edge" if row.kind == "entity" else "entity"), "data_consistency"),
    "an unknown kind": (other(kind=lambda row: row.kind.title()), "data_consistency"),
    "a version": (other(version=lambda row: "other"), "data_consistency"),
    "a type": (other(entity_type=lambda row: "other"), "data_consistency"),
    "an author": (other(user_id=lambda row: "other"), "data_consistency"),
    "a tombstone": (other(deleted=lambda row: not row.deleted), "data_consistency"),
    "an edge's end": (other(to_id=lambda row: "nowhere" if row.to_id else ""), "relationship_integrity"),
    "a stamp": (stamped, "data_consistency"),
    "a row": (lost, "entity_counts"),
    "a row for another": (lost_and_doubled, "data_consistency"),
    "two current rows": (unclosed, "entity_counts"),
    "a successor that is not there": (ends_nowhere, "orphaned_records"),
    "another successor": (ends_elsewhere, "orphaned_records"),
    "the digest": (other_end(digest=7), "entity_counts"),
    "the last chain": (other_end(chain=b"x" * 16), "data_consistency"),
    "the last stamp": (other_end(stamp=-1), "data_consistency"),
}


@pytest.mark.parametrize("name", DAMAGES)
@given(written=puts, place=st.integers(0, 100))
def test_every_damage_is_found_where_it_is_and_the_plan_puts_it_right(
    name: str, written: list[tuple[str, str, bool, bool]], place: int
) -> None:
    check_damage(name, log_of([("c", "", True, False), *written]), place)


def check_damage(name: str, log: Log, place: int) -> None:
    damage, check = DAMAGES[name]
    at = place % len(log[1])
    damaged = damage(log, at)
    if damaged is None:
        return
    report = audited(damaged)
    if damaged == log:
        assert not report.count
        return
    assert not report.passed(check)
    assert report.count == len(report.violations)
    if name not in ("the digest", "the last chain", "the last stamp"):
        # The row itself is named, or, where it cannot be told which of the two it is, the next one.
        touched = {seq for step in report.plan for seq in range(step.seq, step.upto + 1)}
        assert touched & {at + 1, at + 2}
    for _ in range(4):  # once for each kind of step
        damaged = repaired(damaged, log, audited(damaged).plan)
    assert 0 == audited(damaged).count
    assert log[1] == damaged[1]
    assert log[0] == damaged[0]


def repaired(log: Log, whole: Log, plan: Iterable[Repair]) -> Log:
    """What somebody does who follows the plan, with a backup at hand. Of what is fetched the next row is fetched too:
    a chain that does not fit says that one of the two is wrong."""
    head, rows = log[0], {row.seq: row for row in log[1]}
    for step in plan:
        if step.action == "fetch":
            for seq in range(max(step.seq - 1, 1), step.upto + 1):
                rows[seq] = whole[1][seq - 1]
        elif step.action == "rewrite":
            rows[step.seq] = integrity.columns(rows[step.seq])
        elif step.action == "end":
            rows[step.seq] = replace(rows[step.seq], until=step.until)
        else:
            last, digest = rows[max(rows)], 0
            for row in rows.values():
                digest = digest_change(digest, come=row.hash if row.current else None)
            head = replace(head, seq=last.seq, chain=last.chain, stamp=last.stamp, digest=digest)
    return head, [rows[seq] for seq in sorted(rows)]


def test_an_edge_whose_entity_is_gone_is_named_with_its_id() -> None:
    whole = log_of([("a", "", True, False), ("b", "", True, False), ("c", "ab", True, False)])
    report = audited(lost(whole, 1))

    assert [
        ("entity_counts", None, "expected rows 2 to 2; got none"),
        ("relationship_integrity", "c", "expected a row of the entity that to_entity_id names before; got none"),
    ] == [(one.check, one.id, one.told) for one in report.violations[:2]]
    assert (Repair(action="fetch", seq=2, upto=2), Repair(action="fetch", seq=3, upto=3)) == report.plan


def test_what_was_cut_off_the_end_is_missing() -> None:
    head, rows = log_of([("a", "", True, False)] * 5)
    report = audited((head, rows[:2]))

    assert (Repair(action="fetch", seq=3, upto=5), "expected rows 3 to 5; got none") == (
        report.plan[0],
        report.violations[0].told,
    )
    # That row 2 has no successor now is told with that.
    assert report.passed("orphaned_records")


def test_a_plan_says_what_to_do_in_words() -> None:
    plan = (
        Repair(action="fetch", seq=2, upto=2),
        Repair(action="fetch", seq=3, upto=5),
        Repair(action="rewrite", seq=7, upto=7),
        Repair(action="end", seq=7, upto=7, until=9),
        Repair(action="end", seq=8, upto=8),
        Repair(action="recount", seq=9, upto=9),
    )

    assert (
        "get row 2 from the journal, a backup or a client",
        "get rows 3 to 5 from the journal, a backup or a client",
        "write the columns of row 7 anew from the value",
        "let row 7 end at row 9",
        "let row 8 be current",
        "work out chain, stamp and digest of the end of the log anew from its rows",
    ) == integrity.told(plan)


def test_a_log_says_what_is_wrong_while_it_is_read() -> None:
    _, rows = log_of([("a", "", True, False)] * 3)
    audit = Audit()
    audit.read(rows[:1])
    assert [] == list(audit.found)
    audit.read(rows[2:])
    assert "expected rows 2 to 2; got none" == audit.found[0].told


def test_a_value_that_is_none_is_found_though_its_hash_fits() -> None:
    head, rows = log_of([("a", "", True, False)])
    for body in (b"no value", b'{"id": "a"}', b'{"id": "\xff"}'):
        hash_ = row_hash("entity", body)
        row = replace(rows[0], body=body, hash=hash_, chain=next_chain(bytes(16), hash_))
        report = audited((replace(head, chain=row.chain, digest=digest_change(0, come=hash_)), [row]))

        assert ["expected a value of kind entity; got none"] == [one.told for one in report.violations]


def test_of_too_many_only_the_first_are_told_and_no_check_passes_by_that() -> None:
    head, rows = log_of([("a", "", True, False)] * (VIOLATIONS_MAX + 1))
    report = audited((head, [replace(row, user_id="other") for row in rows]))

    assert (VIOLATIONS_MAX + 1, VIOLATIONS_MAX) == (report.count, len(report.violations))
    assert not report.passed("data_consistency")
    with pytest.raises(LocalProtocolError, match="got 1001: repair these first"):
        report.passed("entity_counts")


@pytest.mark.parametrize("again", [0, 1])
def test_rows_out_of_order_are_the_readers_mistake(again: int) -> None:
    _, rows = log_of([("a", "", True, False)] * 3)
    audit = Audit()
    audit.read(rows[:2])
    with pytest.raises(LocalProtocolError, match="expected rows after 2, in order"):
        audit.read(rows[again:])


# --- planted bugs -------------------------------------------------------------------------------------------------


def nothing(*_: Any) -> None:
    """A check that is left out."""


def counts_only(self: Audit, head: Head) -> Report:
    """What the obvious check does: as many rows as there should be."""
    found = () if self.seq == head.seq else (None,)
    return Report(entities=0, relationships=0, violations=(), count=len(found))


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        ("_line", nothing),
        ("_value", nothing),
        ("_places", nothing),
        ("_missing", nothing),
        ("_without_successor", nothing),
        ("report", counts_only),
    ],
)
def test_a_check_that_is_left_out_is_caught(name: str, bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    log = log_of([(id_, "", True, False) for id_ in "abca"] + [("c", "ab", True, False), ("c", "ab", True, True)])
    monkeypatch.setattr(Audit, name, bug)
    with pytest.raises(AssertionError):
        check_damages(log)


def check_damages(log: Log) -> None:
    for name in DAMAGES:
        for place in range(len(log[1])):
            check_damage(name, log, place)
