"""What became of each row: whatever a fleet does is explained, and what nobody can have done is told."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies import SqliteStore
from inbetweenies.limits import Limits
from inbetweenies.merge import FOR_REVIEW, TOMBSTONE_WINS, VERSION_COLLISION, Policy, manual
from inbetweenies.model import Change, Entity, Reads, SyncRequest
from inbetweenies.ops.reconcile import Reconciled, reconcile
from inbetweenies.rollout import reconcile as rules
from inbetweenies.rollout.reconcile import CAME_BACK, FATES, SAME, TOLD_MAX, Accounts
from inbetweenies.store import Store
from tests.support import NOW, SECOND, Server, at, edge, entity, run

MANUAL = Policy(rules={"schedule": manual})


def found(store: Store, **fields: Any) -> Reconciled:
    return run(reconcile(store, "default", **fields))


def fates(one: Reconciled) -> dict[str, int]:
    assert set(FATES) >= one.accounts.fates.keys()
    return {fate: count for fate, count in one.accounts.fates.items() if count}


def child(parent: Entity, version: str, content: dict[str, Any], **fields: Any) -> Entity:
    return entity(parent.id, version, content, parent_versions=(parent.version,), **fields)


# --- what a fleet does --------------------------------------------------------------------------------------------


def test_each_row_of_each_kind_of_fate_is_counted_once() -> None:
    server = Server(policy=MANUAL)
    base = entity("e1", at(0), {"a": 1, "b": 1})
    server.push(base)
    server.push(child(base, at(1, "bob"), {"a": 2, "b": 1}))
    server.push(child(base, at(2, "cyd"), {"a": 1, "b": 2}))  # merged
    server.push(child(base, at(0.5, "dan"), {"a": 9, "b": 1}))  # lost to a later edit of the same
    gone = entity("e2", at(0))
    server.push(gone)
    server.push(child(gone, at(1), {"deleted": True}))
    server.push(child(gone, at(2, "bob"), {"a": 1}))  # the tombstone wins
    plan = entity("s", at(0), {"on": 1}, entity_type="schedule")
    server.push(plan)
    server.push(child(plan, at(1), {"on": 2}, entity_type="schedule"))
    server.push(child(plan, at(2, "bob"), {"on": 3}, entity_type="schedule"))  # left to a person
    server.push(entity("e3", at(0), {"a": 1}))
    server.push(entity("e3", at(0), {"a": 2}))  # under a version that is taken
    joins = edge("r", base, gone)
    server.push(joins)
    server.push(edge("r", base, gone, version="v2"))
    server.push(edge("r", base, gone, version="v1", properties={"x": 1}))
    one = found(server.store, policy=MANUAL)

    assert {"served": 4, "tombstone": 1, "superseded": 5, "merged": 1, "kept": 4, "open": 1} == fates(one)
    assert 0 == one.count
    assert one.accounts.head.seq == one.accounts.fates.total()
    assert 1 == one.accounts.why[FOR_REVIEW]
    assert 1 == one.accounts.why[TOMBSTONE_WINS]
    assert 2 == sum(count for why, count in one.accounts.why.items() if why.startswith(VERSION_COLLISION))


def test_what_was_left_to_a_person_is_kept_once_it_is_settled() -> None:
    server = Server(policy=MANUAL)
    plan = entity("s", at(0), {"on": 1}, entity_type="schedule")
    mine = child(plan, at(1), {"on": 2}, entity_type="schedule")
    theirs = child(plan, at(2, "bob"), {"on": 3}, entity_type="schedule")
    server.push(plan)
    server.push(mine)
    server.push(theirs)
    settled = entity("s", at(9), {"on": 3}, entity_type="schedule", parent_versions=(mine.version, theirs.version))
    server.push(settled)
    one = found(server.store, policy=MANUAL)

    assert {"served": 1, "superseded": 2, "kept": 1} == fates(one)
    assert 0 == one.count


def test_without_the_policy_of_the_server_it_is_asked_for() -> None:
    server = Server(policy=MANUAL)
    plan = entity("s", at(0), {"on": 1}, entity_type="schedule")
    server.push(plan)
    server.push(child(plan, at(1), {"on": 2}, entity_type="schedule"))
    server.push(child(plan, at(2, "bob"), {"on": 3}, entity_type="schedule"))
    one = found(server.store)

    assert 1 == one.count
    assert "schedule" in one.accounts.unexplained[0].told


def test_only_what_was_written_since_is_counted() -> None:
    server = Server()
    server.push(entity("e1", at(0)))
    server.now += SECOND
    server.push(entity("e2", at(1)))
    server.push(child(entity("e1", at(0)), at(2), {"a": 1}))

    assert ({"served": 2}, 1) == (fates(one := found(server.store, since=NOW + SECOND)), one.accounts.after)
    assert {} == fates(found(server.store, since=NOW + 9 * SECOND))


def test_what_came_back_and_had_not_stood_is_kept() -> None:
    server = Server()
    base = entity("e1", at(0), {"a": 1})
    server.push(base)
    lost = child(base, at(5), {"a": 5})
    back = Change(entity=lost, offered=True, aside=frozenset({("entity", "e1")}))
    joined = edge("r", base, base)
    server.push(joined)
    loose = Change(relationships=(edge("r", base, base, version="v9"),), offered=True, aside=frozenset({("edge", "r")}))
    server.ask(SyncRequest(device="d", user="ann", features=frozenset({"witness"}), changes=(back, loose)))
    one = found(server.store)

    assert ({"served": 2, "kept": 2}, {CAME_BACK: 2}) == (fates(one), dict(one.accounts.why))
    assert 0 == one.count


def test_the_same_change_twice_loses_nothing() -> None:
    server = Server()
    base = entity("e1", at(0), {"a": 1})
    server.push(base)
    server.push(child(base, at(1, "bob"), {"a": 2}))
    server.push(child(base, at(2, "cyd"), {"a": 2}))
    one = found(server.store)

    assert {SAME: 1} == dict(one.accounts.why)
    assert 0 == one.count


def test_what_one_version_hides_is_counted_and_told_apart() -> None:
    server = Server()
    home = entity("h", at(0), {"is_primary": True}, entity_type="home")
    server.push(home, entity("n", at(0), {"text": "only v2"}, entity_type="note"))
    one = found(server.store)
    shown = one.accounts.shown

    assert {"whole": 2} == dict(shown["inbetweenies-v2"])
    assert 1 == shown["inbetweenies-v1"]["hidden"]
    assert ("inbetweenies-v2", "inbetweenies-v1") == one.offered
    assert 0 == one.count


contents = st.dictionaries(st.sampled_from(["a", "b", "deleted"]), st.sampled_from([1, 2, True]), max_size=2)
pushes = st.lists(
    st.tuples(
        st.sampled_from(["e1", "e2", "s"]),
        st.integers(0, 5),
        st.sampled_from(["ann", "bob"]),
        contents,
        st.lists(st.integers(0, 30), max_size=2),
    ),
    max_size=14,
)


@pytest.mark.parametrize("policy", [Policy(), Policy.strict(), MANUAL], ids=["merging", "strict", "manual"])
@given(story=pushes)
def test_whatever_is_pushed_is_explained(policy: Policy, story: list[Any]) -> None:
    check_explained(policy, story)


def check_explained(policy: Policy, story: list[Any]) -> None:
    server = Server(policy=policy)
    versions: dict[str, list[str]] = {}
    for id_, seconds, user, content, parents in story:
        server.now += SECOND
        above = versions.setdefault(id_, [])
        chosen = tuple(dict.fromkeys(above[index] for index in parents if index < len(above)))
        type_ = "schedule" if id_ == "s" else "device"
        server.push(entity(id_, at(seconds, user), content, parent_versions=chosen, entity_type=type_))
        above.append(at(seconds, user))
    one = found(server.store, policy=policy)

    assert (0, ()) == (one.count, tuple(one.accounts.unexplained))
    assert one.accounts.head.seq == one.accounts.fates.total()


# --- what nobody can have done ------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Callable[[str], Reconciled]]:
    """A graph with a row of each fate, in which something is then changed by SQL."""
    path = tmp_path / "home.db"
    store = SqliteStore(path, journal=False, heads=False)
    server = Server(store)
    base = entity("e1", at(0), {"a": 1, "b": 1})
    server.push(base, entity("e2", at(0)), edge("r", base, base))
    server.push(child(base, at(1, "bob"), {"a": 2, "b": 1}))
    server.push(child(base, at(2, "cyd"), {"a": 1, "b": 2}))
    server.push(edge("r", base, base, version="v2"), edge("q", base, base))

    def plant(statement: str) -> Reconciled:
        assert 0 == found(store).count
        with closing(sqlite3.connect(path)) as connection, connection:
            assert 0 < connection.execute(statement).rowcount
        return found(store)

    yield plant
    run(store.close())


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE log SET until = seq WHERE id = 'e2'", "expected it to stand"),
        ("UPDATE log SET until = 2 WHERE id = 'e1' AND seq = 1", "expected row 2 to have taken its place"),
        ("UPDATE log SET until = seq WHERE id = 'q'", "as the last value of an edge does"),
        ("UPDATE log SET until = 99 WHERE id = 'e1' AND seq = 1", "expected row 99 to have taken its place"),
        ("DELETE FROM log WHERE version LIKE '%.m%'", "expected a row that it and what stood became"),
        ("UPDATE log SET body = X'5B5D' WHERE id = 'e1' AND seq = 1", "expected rows of this id that can be read"),
    ],
)
def test_a_row_that_nobody_can_explain_is_told(planted: Callable[[str], Reconciled], statement: str, told: str) -> None:
    one = planted(statement)

    assert one.count > one.report.count > 0
    assert any(told in row.told for row in one.accounts.unexplained)


@pytest.mark.parametrize("wrong", [{"until": 2}, {"id": "e2"}, {"kind": "edge"}])
def test_only_a_row_of_the_same_thing_that_stood_takes_the_place_of_another(wrong: dict[str, Any]) -> None:
    server = Server()
    base = entity("e1", at(0))
    server.push(base)
    server.push(child(base, at(1), {"a": 1}))
    rows = server.held(Reads(seqs=(1, 2))).seqs
    counted = accounts(server.store)
    rules._was_followed(counted, rows[1], rows[2])
    assert 0 == counted.fates["unexplained"]
    rules._was_followed(counted, rows[1], replace(rows[2], **wrong))

    assert 1 == counted.fates["unexplained"]


def test_what_only_the_journal_knows_is_counted() -> None:
    server = Server()
    server.push(entity("e1", at(0)))

    assert (3, 3) == ((one := found(server.store, known=4)).lost, one.count)
    assert 0 == found(server.store, known=1).count


class Blind:
    """A wire version that shows nothing of one type, and says so."""

    name = "blind"

    def __init__(self, losses: frozenset[str]) -> None:
        self.losses = losses

    def view(self, head: Any, rows: Any) -> Any:
        return self


def accounts(store: Store, *wires: Any) -> Accounts:
    from inbetweenies.exchange import carry_out

    plan = lambda: rules.accounted(wires, 0, Policy(), Limits())  # noqa: E731
    return run(carry_out(plan, store, "default", write=False))


def test_what_no_wire_version_shows_is_unexplained() -> None:
    server = Server()
    server.push(entity("e1", at(0)), entity("e2", at(0)))
    found_ = accounts(server.store, Blind(frozenset({"/entities/e1", "/entities/e1/name", "/entities/e2/name"})))

    assert {"served": 1, "unexplained": 1} == {fate: count for fate, count in found_.fates.items() if count}
    assert ["e1"] == [row.id for row in found_.unexplained]
    assert ({"in_part": 1}, 1) == (dict(found_.shown["blind"]), found_.values["blind"])


def test_a_wire_version_that_cannot_show_it_is_left_to_the_comparison() -> None:
    server = Server()
    server.push(entity("e1", at(0)))

    assert {"served": 1} == dict(accounts(server.store, object.__new__(Broken)).fates)


class Broken:
    name = "broken"

    def view(self, head: Any, rows: Any) -> Any:
        raise ValueError


def test_of_many_the_first_are_told() -> None:
    server = Server()
    for number in range(TOLD_MAX + 5):
        server.push(entity(f"e{number}", at(0)))
    losses = frozenset(f"/entities/e{number}" for number in range(TOLD_MAX + 5))
    found_ = accounts(server.store, Blind(losses))

    assert (TOLD_MAX + 5, TOLD_MAX) == (found_.fates["unexplained"], len(found_.unexplained))


def test_more_than_is_looked_at_together_is_all_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "AT_ONCE", 2)
    server = Server()
    base = entity("e1", at(0), {"a": 0})
    server.push(base)
    for number in range(1, 6):
        base = child(base, at(number), {"a": number})
        server.push(base)
    one = accounts(server.store)

    assert {"served": 1, "superseded": 5} == dict(one.fates)


def test_a_mark_that_somebody_wrote_himself_is_no_collision() -> None:
    server = Server()
    base = entity("e1", at(3) + "#12345678", {"a": 1})
    server.push(base)
    server.push(entity("e1", at(2) + "#12345678", {"a": 2}))

    assert 0 == found(server.store).count
