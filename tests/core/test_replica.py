"""The client's rules (PROTOCOL 10): what is sent, what an answer may clear, and what it may never touch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies import replica
from inbetweenies.model import Ack, Answer, Change, Conflict, Refused, digest_change
from inbetweenies.replica import Absorbed, Copy, Local, Pending, Pointer, State
from tests.support import edge, entity

STATE = State(device="d", user="ann")
MODERN = replace(STATE, modern=True, cursor="c0")
HOME = entity("home", "v1", entity_type="home")
NEXT = replace(HOME, version="v2", name="Next", parent_versions=("v1",))
ROOM = entity("room", "v1", entity_type="room")
LINK = edge("e", ROOM, HOME)


def pending(*values: Any) -> tuple[Pending, ...]:
    return tuple(Pending(n=n, copy=replica.copy_of(value)) for n, value in enumerate(values, 1))


def answer(**fields: Any) -> Answer:
    plain = {"protocol_version": "inbetweenies-v2", "features": frozenset({"acks"}), "acks": (), "cursor": "c1"}
    return Answer(**(plain | fields))


def deployed(**fields: Any) -> Answer:
    return Answer(protocol_version="inbetweenies-v2", **fields)


def ack(value: Any, outcome: Any = "applied", head: str | None = None, kind: Any = "entity") -> Ack:
    return Ack(kind=kind, id=value.id, version=value.version, outcome=outcome, head=head or value.version)


def marks(*items: Pending) -> dict[replica.Key, tuple[tuple[int, str], ...]]:
    found: dict[replica.Key, tuple[tuple[int, str], ...]] = {}
    for item in items:
        found[item.copy.key] = (*found.get(item.copy.key, ()), (item.n, item.copy.version))
    return found


# --- what to say --------------------------------------------------------------------------------------------------


def test_a_first_message_asks_for_everything() -> None:
    ask, sent = replica.compose(STATE, ())

    assert (True, None, None, ()) == (ask.full, ask.cursor, ask.since, sent)
    assert replica.FEATURES | {replica.NOTICES} == ask.features


def test_edges_go_with_the_entity_they_start_from_and_alone_without_it() -> None:
    ask, sent = replica.compose(MODERN, pending(LINK, ROOM), offer=("x",), page_rows=7)

    assert (2, ("x",), 7, "c0", False) == (len(sent), ask.offer, ask.page_rows, ask.cursor, ask.full)
    assert (Change(entity=ROOM, relationships=(LINK,)),) == ask.changes

    alone, _ = replica.compose(MODERN, pending(LINK))

    assert (Change(relationships=(LINK,)),) == alone.changes


def test_a_tombstone_is_sent_as_a_delete() -> None:
    ask, _ = replica.compose(MODERN, pending(entity("home", "v2", {"deleted": True})))

    assert ask.changes[0].delete


@given(st.integers(1, 5), st.integers(0, 12))
def test_a_message_holds_at_most_a_batch_in_the_order_things_were_made(most: int, count: int) -> None:
    waiting = pending(*(entity(f"x{n}", "v") for n in range(count)))
    _, sent = replica.compose(MODERN, waiting, changes_max=most)

    assert waiting[:most] == sent


def test_a_message_is_bounded_in_bytes_but_never_empty() -> None:
    waiting = pending(entity("x", "v", {"a": "b" * 500}), entity("y", "v"))

    assert 1 == len(replica.compose(MODERN, waiting, bytes_max=10)[1])
    assert 2 == len(replica.compose(MODERN, waiting, bytes_max=10_000)[1])


def test_a_server_that_acks_ids_gets_one_row_of_an_id_and_no_unknown_type() -> None:
    waiting = pending(HOME, NEXT, entity("ship", "v", entity_type="spaceship"), LINK)

    assert [1, 4] == [item.n for item in replica.compose(STATE, waiting)[1]]
    assert [1, 2, 3, 4] == [item.n for item in replica.compose(MODERN, waiting)[1]]


def test_the_next_row_names_the_one_before_as_its_parent() -> None:
    merged = replace(HOME, merged=True, checksum="c")
    after = replica.follow(merged, version="v2", user="bob", content={"b": 1, "a": [1.5]}, name="N")

    assert ("v2", "bob", ("v1",), "N") == (after.version, after.user_id, after.parent_versions, after.name)
    assert b'{"a":[1.5],"b":1}' == bytes(after.content)
    assert HOME.merged is after.merged
    assert after.checksum is None
    assert merged.content == replica.follow(merged, version="v3", user="u").content


# --- what may be cleared ------------------------------------------------------------------------------------------


def absorb(told: Answer, sent: tuple[Pending, ...] = (), state: State = MODERN, **local: Any) -> Absorbed:
    return replica.absorb(told, sent, state, Local(**local))


def test_only_the_row_that_was_acked_is_cleared_not_a_newer_one_of_its_id() -> None:
    first, second = pending(HOME, NEXT)
    done = absorb(
        answer(acks=(ack(HOME),)),
        (first,),
        pending=marks(first, second),
        pointers={first.copy.key: Pointer(ours="v2")},
    )

    assert (1,) == done.cleared
    assert "v2" == done.pointers[first.copy.key].visible
    assert "v1" == done.pointers[first.copy.key].theirs


def test_a_row_that_was_not_in_the_message_is_never_cleared() -> None:
    first, second = pending(HOME, NEXT)
    done = absorb(answer(acks=(ack(HOME), ack(NEXT))), (first,), pending=marks(first, second))

    assert (1,) == done.cleared


def test_an_ack_by_id_clears_what_this_message_carried() -> None:
    first, second, third = pending(HOME, NEXT, LINK)
    told = deployed(applied=frozenset({"home"}), applied_relationships=frozenset({"other"}))
    done = absorb(told, (first, third), STATE, pending=marks(first, second, third))

    assert (1,) == done.cleared
    assert ("v1", "v2") == (done.pointers[first.copy.key].theirs, done.pointers[first.copy.key].visible)


def test_a_deployed_server_that_let_a_row_lose_says_which_stands() -> None:
    (item,) = pending(NEXT)
    lost = Conflict(
        entity_id="home", local_version="s1", remote_version="v2", resolution_strategy="x", resolved_version="s1"
    )
    done = absorb(
        deployed(applied=frozenset({"home"}), conflicts=(lost,)),
        (item,),
        STATE,
        pending=marks(item),
        known={("entity", "home", "s1"): bytes(32)},
    )

    assert ("s1", (lost,)) == (done.pointers[item.copy.key].visible, done.conflicts)


def test_a_refused_row_stays_and_says_why() -> None:
    first, second, third = pending(HOME, ROOM, LINK)
    reason = Refused(id="home", version="v1", code="too_large", pointer="", detail="")
    done = absorb(answer(acks=(ack(ROOM),), refused=(reason,)), (first, second, third), pending=marks(first, second))

    assert ((2,), {1: reason}) == (done.cleared, done.notes)


# --- what is pulled -----------------------------------------------------------------------------------------------


def test_a_pulled_row_never_replaces_a_pending_one() -> None:
    (mine,) = pending(NEXT)
    theirs = replace(HOME, version="s9")
    done = absorb(
        answer(changes=(Change(entity=theirs),)),
        pending=marks(mine),
        pointers={mine.copy.key: Pointer(theirs="v1", theirs_hash=bytes(32), ours="v2")},
    )
    after = done.pointers[mine.copy.key]

    assert ("s9", "v2", "v2") == (after.theirs, after.ours, after.visible)
    assert [theirs.version] == [copy.version for copy in done.copies]


def test_a_row_that_is_held_already_is_not_stored_again() -> None:
    copy = replica.copy_of(HOME)
    done = absorb(answer(changes=(Change(entity=HOME, relationships=(LINK,)),)), known={(*copy.key, "v1"): copy.hash})

    assert ["e"] == [held.id for held in done.copies]
    assert ["e"] == [held.id for held in absorb(answer(changes=(Change(relationships=(LINK,)),))).copies]
    assert {("entity", "home"), ("edge", "e")} == set(done.pointers)


def test_the_answer_names_everything_that_must_be_looked_up() -> None:
    (item,) = pending(NEXT)
    told = answer(
        changes=(Change(entity=HOME, relationships=(LINK,)), Change()),
        acks=(ack(NEXT, head="m"), Ack(kind="entity", id="gone", version="v", outcome="noop_delete")),
    )
    keys, rows = replica.mentions(told, (item,))

    assert {("entity", "home"), ("edge", "e"), ("entity", "gone")} == set(keys)
    assert {("entity", "home", "v1"), ("edge", "e", "v1"), ("entity", "home", "m")} == set(rows)
    assert ((("entity", "home"),), ()) == replica.mentions(deployed(), (item,))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=8))
def test_the_digest_is_the_sum_of_what_the_server_holds(steps: list[tuple[str, int]]) -> None:
    state = MODERN
    pointers: dict[replica.Key, Pointer] = {}
    for id_, n in steps:
        value = entity(id_, f"v{n}", {"n": n})
        done = absorb(answer(changes=(Change(entity=value),)), state=state, pointers=pointers)
        state, pointers = done.state, pointers | dict(done.pointers)
    expected = 0
    for pointer in pointers.values():
        expected = digest_change(expected, come=pointer.theirs_hash)

    assert expected == state.digest


# --- where the next pull starts -----------------------------------------------------------------------------------


def test_the_cursor_comes_with_the_rows_and_is_kept_if_none_is_told() -> None:
    assert "c1" == absorb(answer()).state.cursor
    assert "c0" == absorb(answer(cursor=None)).state.cursor
    assert not absorb(answer(more=True)).drained


def test_an_equal_digest_drains_and_another_starts_anew() -> None:
    same = absorb(answer(digest=f"{0:064x}"))
    other = absorb(answer(digest="1" * 64))

    assert (True, False) == (same.drained, same.healed)
    assert (True, None, 1, True) == (other.healed, other.state.cursor, other.state.round, other.state.restarting)
    assert not absorb(answer(digest="1" * 64, more=True)).healed


def test_a_restart_ends_with_offering_what_was_not_told() -> None:
    restarted = replica.restart(MODERN)
    page = absorb(answer(more=True, digest="1" * 64), state=restarted)
    last = absorb(answer(digest="1" * 64), state=page.state)

    assert (True, None) == (restarted.restarting, restarted.cursor)
    assert (False, False) == (page.offer_again, page.healed)
    # It is the store that ends it, together with the marks; a crash in between does it again.
    assert (True, False, True) == (last.offer_again, last.healed, last.state.restarting)


def test_a_log_that_is_not_the_known_one_begins_a_restart() -> None:
    done = absorb(answer(resync=True, changes=(Change(entity=HOME),)))

    assert (1, True, "c1", True) == (done.state.round, done.state.restarting, done.state.cursor, done.offer_again)
    assert 1 == done.pointers["entity", "home"].round


def test_a_deployed_server_is_followed_by_its_clock_with_some_overlap() -> None:
    state = absorb(deployed(server_time=10**12), state=STATE).state

    assert (10**12 - replica.OVERLAP_US, None, False) == (state.since, state.cursor, state.modern)
    ask, _ = replica.compose(state, ())
    assert (False, state.since, None) == (ask.full, ask.since, ask.cursor)
    assert state.since == absorb(deployed(), state=state).state.since


def test_the_pages_of_a_deployed_server_keep_the_time_of_the_first() -> None:
    first = absorb(deployed(server_time=10**12, cursor="500", more=True), state=STATE)
    ask, _ = replica.compose(first.state, ())
    last = absorb(deployed(server_time=2 * 10**12), state=first.state)

    assert (False, "500", None) == (ask.full, ask.cursor, ask.since)
    assert (10**12 - replica.OVERLAP_US, None) == (last.state.since, last.state.page)


def test_a_server_that_learnt_features_is_asked_from_the_start() -> None:
    before = replace(STATE, modern=False, since=5)
    done = absorb(answer(), state=before)
    ask, _ = replica.compose(done.state, ())

    assert (False, True, True) == (done.drained, done.state.restarting, ask.full)


def test_a_server_that_lost_features_is_followed_by_its_clock() -> None:
    done = absorb(deployed(server_time=10**12), state=MODERN)

    assert (False, None) == (done.state.modern, done.state.cursor)


@pytest.mark.parametrize("value", [HOME, LINK])
def test_a_row_is_found_under_its_kind_and_id(value: Any) -> None:
    copy = replica.copy_of(value)

    assert isinstance(copy, Copy)
    assert (copy.kind, copy.id) == copy.key
