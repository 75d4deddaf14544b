"""The account of an import: what it refuses, and what it still knows when the log was set back."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from inbetweenies import LocalProtocolError, MemoryStore, exchange, imports
from inbetweenies.deployed import Move, Spot
from inbetweenies.imports import SPOTS_MAX, Batch, Ledger
from inbetweenies.limits import Limits
from inbetweenies.merge import Policy
from inbetweenies.model import Change, Entity, Plan, Reads, SyncRequest
from tests.support import NOW, Server, at, edge, entity, run

NEW = Ledger(source="s", name="old.db", schema="graph", totals={"entities": 1}, began=NOW, changed=NOW)


def done(store: MemoryStore, plan: Any, *, write: bool = True) -> Any:
    return run(exchange.carry_out(plan, store, "default", write=write))


def taken(store: MemoryStore, *made: Move | Spot, limits: Limits | None = None, **place: Any) -> Ledger:
    batch = Batch(**{"stage": 0, "done": 0, "next_stage": 1, "next_done": 0, "whole": True, **place}, made=made)

    def plan() -> Plan[Ledger]:
        return imports.take("s", batch, now=NOW, tell_all=False, limits=limits or Limits(), policy=Policy())

    ledger: Ledger = done(store, plan)
    return ledger


def out(store: MemoryStore, **options: Any) -> Ledger:
    done(store, lambda: imports.begin_undo("s", now=NOW))
    ledger: Ledger | None = None
    while ledger is None or ledger.state != "undone":
        ledger = done(
            store,
            lambda: imports.take_out("s", 1, now=NOW, limits=options.get("limits", Limits()), policy=Policy()),
        )
    return ledger


def move(*entities: Entity, **fields: Any) -> Move:
    return Move(**{"table": "entities", "key": entities[0].id if entities else "-", "entities": entities, **fields})


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    done(store, lambda: imports.begin(NEW))
    return store


def current(store: MemoryStore, id_: str) -> Any:
    def plan() -> Plan[Any]:
        return (yield Reads(entities=(id_,))).entities[id_]

    return done(store, plan, write=False)


def test_what_was_never_begun_is_refused() -> None:
    store = MemoryStore()

    with pytest.raises(LocalProtocolError, match="got another one"):
        taken(store)
    with pytest.raises(LocalProtocolError, match="got another one"):
        done(store, lambda: imports.take_out("s", 1, now=NOW, limits=Limits(), policy=Policy()))
    assert done(store, lambda: imports.begin_undo("s", now=NOW)) is None


def test_a_batch_that_somebody_else_has_taken_is_not_taken_again(store: MemoryStore) -> None:
    first = taken(store, move(entity("e", at(0))), whole=False)

    assert first == taken(store, move(entity("f", at(0))))
    assert first == done(store, lambda: imports.take_out("s", 1, now=NOW, limits=Limits(), policy=Policy()))
    assert {} == first.unexplained


def test_rows_without_a_fate_are_found_and_rows_with_two(store: MemoryStore) -> None:
    assert {"entities": 1} == taken(store).unexplained
    assert {"entities": -1, "rooms": -1} == replace(
        NEW, fates={"entities": {"moved": 2}, "rooms": {"refused": 1}}
    ).unexplained


def test_of_very_many_remarks_all_are_counted(store: MemoryStore) -> None:
    spots = tuple(Spot(table="entities", key=str(n), code="odd", detail="-") for n in range(SPOTS_MAX + 5))
    ledger = taken(store, move(entity("e", at(0)), spots=spots))

    assert (SPOTS_MAX, SPOTS_MAX + 5) == (len(ledger.spots), ledger.counts["noted entities odd"])


def test_what_is_too_much_at_once_is_taken_in_turns(store: MemoryStore) -> None:
    server = Server(store)
    here = [entity(f"e{n}", at(0), {"n": n}) for n in range(4)]
    server.ask(SyncRequest(device="d", user="ann", changes=tuple(Change(entity=one) for one in here)))
    there = [move(entity(f"e{n}", at(60, "bob"), {"n": -n})) for n in range(4)]
    ledger = taken(store, *there, limits=Limits(handled_bytes_max=10))

    assert 4 == sum(ledger.fates["entities"].values())
    assert () == ledger.refused


def test_nothing_but_a_link_of_what_was_refused_is_not_told_twice(store: MemoryStore) -> None:
    gone = entity("x" * 2000, at(0))
    link = move(table="", key="k", entities=(), edges=(edge("l", gone, gone),))
    ledger = taken(store, move(gone, key="k"), link, replace(link, key="other"))

    assert ["illegal_name"] == [spot.code for spot in ledger.refused]
    assert ["other"] == [spot.key for spot in ledger.spots]
    assert 0 == ledger.links


def test_where_the_log_was_set_back_nothing_is_undone(store: MemoryStore) -> None:
    ledger = taken(store, move(entity("e", at(0))))
    done(store, lambda: iter_of(imports.kept(replace(ledger, chain="00" * 16))))

    done(store, lambda: imports.begin_undo("s", now=NOW))
    with pytest.raises(LocalProtocolError, match="was set back"):
        out(store)
    assert not current(store, "e").deleted
    # And what was undone before is not known for that any more.
    done(store, lambda: iter_of(imports.kept(replace(ledger, chain="00" * 16, state="undone", undone=((1, 1),)))))
    begun = done(store, lambda: imports.begin(NEW))
    assert (2, (), ()) == (begun.times, begun.ranges, begun.undone)
    assert {"entities": {"present": 1}} == taken(store, move(entity("e", at(0)))).fates


def iter_of(writes: Any) -> Plan[None]:
    yield writes


def test_a_row_as_large_as_one_may_be_is_taken_out_and_comes_back(store: MemoryStore) -> None:
    large, long = Limits(entity_bytes_max=6000), f"{'v' * 1020}"
    whole = [move(entity("large", at(0), {"text": "x" * 5500})), move(entity("long", long))]
    taken(store, *whole, limits=large)

    out(store, limits=large)
    assert b'{"deleted":true}' == bytes(current(store, "large").entity().content)
    done(store, lambda: imports.begin(NEW))
    assert {"entities": {"moved": 2}} == taken(store, *whole, limits=large).fates
    assert current(store, "long").version.startswith("h-")


def test_what_somebody_made_of_what_was_undone_stays_theirs(store: MemoryStore) -> None:
    one = entity("e", at(0))
    taken(store, move(one))
    out(store)
    tomb = current(store, "e").version
    mine = replace(one, version=at(99), parent_versions=(tomb,), name="Mine")
    Server(store).ask(SyncRequest(device="d", user="ann", changes=(Change(entity=mine),)))

    done(store, lambda: imports.begin(NEW))
    assert {"entities": {"present": 1}} == taken(store, move(one)).fates
    assert "Mine" == current(store, "e").entity().name


def test_what_an_undo_cannot_store_is_an_error_and_changes_nothing(store: MemoryStore) -> None:
    taken(store, move(entity("e", at(0))))

    with pytest.raises(LocalProtocolError, match="expected to take out 1 things at once; got 0"):
        out(store, limits=Limits(entity_bytes_max=10))
    assert not current(store, "e").deleted
    assert {"out": 1} == out(store).out
