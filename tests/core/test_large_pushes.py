"""Pushes that cost much more than they weigh: many rows of one id, many conflicts over one row.

What a push costs is counted, not timed: looks at a version, rows decoded, bytes handled.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies.engine import in_order
from inbetweenies.limits import Allowance, Limits
from inbetweenies.model import Change, Reads, Row
from tests.support import Server, at, entity


def change(version: str, *parents: str, id_: str = "lamp") -> Change:
    return Change(entity=entity(id_, version, parent_versions=parents))


def plainly(changes: list[Change]) -> list[Change]:
    """The rule of PROTOCOL 4.6 word for word, in quadratic time."""
    waiting, ordered = list(changes), []
    while waiting:
        versions = {each.entity.version for each in waiting if each.entity}
        free = (
            each
            for each in waiting
            if each.entity and not versions & (set(each.entity.parent_versions) - {each.entity.version})
        )
        first = next(free, waiting[0])
        ordered.append(first)
        waiting = [each for each in waiting if each is not first]
    return ordered


few = st.sampled_from("abcdef")


@given(st.lists(st.tuples(few, st.lists(few, max_size=3)), max_size=12))
def test_parents_come_first_whatever_names_whom(rows: list[tuple[str, list[str]]]) -> None:
    changes = [change(version, *parents) for version, parents in rows]

    assert list(map(id, plainly(changes))) == list(map(id, in_order(changes)))


class Counted(str):
    """A version that counts how often it is looked up."""

    __slots__ = ()
    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return str.__hash__(self)

    __eq__ = str.__eq__


@pytest.mark.parametrize(
    "rows",
    [
        lambda n: [("same",)] * n,
        lambda n: [(f"v{k}",) for k in range(n)],
        lambda n: [(f"v{k}", f"v{k - 1}") for k in range(n)],
        lambda n: [(f"v{k}", f"v{k - 1}") for k in reversed(range(n))],
        lambda n: [(f"v{k}", f"v{(k + 1) % n}") for k in range(n)],
    ],
    ids=["one row", "no parents", "a line", "a line, newest first", "a circle"],
)
def test_what_putting_parents_first_costs_follows_the_size_of_the_push(rows: Any) -> None:
    def looks(n: int) -> int:
        changes = [change(*map(Counted, names)) for names in rows(n)]
        Counted.looks = 0
        in_order(changes)
        return Counted.looks

    assert looks(400) <= 2 * looks(200) + 100


def test_the_history_of_a_contested_id_is_decoded_once() -> None:
    server = Server()
    server.push(entity("lamp", at(0)))
    decoded = 0
    decode = Row.entity

    def counting(row: Row) -> Any:
        nonlocal decoded
        decoded += 1
        return decode(row)

    with mock.patch.object(Row, "entity", counting):
        told = server.push(*[entity("lamp", at(2 * k), name=f"Lamp {k}") for k in range(1, 101)])

    assert 100 == len(told.acks)
    # Each is compared with the row that is current then, and none with all of the others.
    assert decoded <= 2 * 100 + 2


@pytest.mark.parametrize("most", [1, 3_000, 10_000])
def test_a_push_of_many_conflicts_is_taken_in_parts_and_none_is_lost(most: int) -> None:
    whole, server = Server(), Server(limits=Limits(handled_bytes_max=most))
    large = {"manual": "x" * 500, "on": 0}
    rows = [entity("lamp", at(9 * k), {**large, "on": k}, parent_versions=(at(0),)) for k in range(1, 21)]
    for each in (whole, server):
        each.push(entity("lamp", at(0), {"on": 0}), entity("lamp", at(1), large, parent_versions=(at(0),)))
    whole.push(*rows)

    rounds = 0
    waiting = rows
    while waiting:
        told = server.push(*waiting)
        refused = {refusal.version for refusal in told.refused}
        acked = {ack.version for ack in told.acks}
        assert {"too_much_at_once"} >= {refusal.code for refusal in told.refused}
        assert {row.version for row in waiting} == refused | acked
        assert not refused & acked
        assert acked, "a push that comes again must get on"
        waiting = [row for row in waiting if row.version in refused]
        rounds += 1

    assert (rounds == 20) == (most == 1)
    assert rounds > 1
    history = server.held(Reads(history=("lamp",))).history["lamp"]
    assert {row.version for row in rows} <= {row.version for row in history}
    assert whole.current("lamp").content == server.current("lamp").content


def test_what_is_in_nobodys_way_is_taken_whatever_conflicts_cost() -> None:
    server = Server(limits=Limits(handled_bytes_max=1))
    server.push(entity("lamp", at(0)))
    contested = [entity("lamp", at(9 * k), name=str(k)) for k in range(1, 4)]
    told = server.push(*contested, *[entity(f"new {k}", at(k)) for k in range(100)])

    assert ["too_much_at_once"] * 2 == [refusal.code for refusal in told.refused]
    assert 101 == len(told.acks)


def test_an_allowance_ends_with_what_went_beyond_it() -> None:
    allowance = Allowance(10)
    spent = []
    for cost in (10, 0, 1_000, 1):
        spent.append(allowance.spent)
        allowance.spend(cost)

    assert [False, False, False, True] == spent
