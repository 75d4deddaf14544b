"""The client's rules for a log that was set back (PROTOCOL 10.8 to 10.14)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies import replica, rewind
from inbetweenies.model import Ack, Answer, Ask, Change, Cursor, Part, Refused, digest_change
from inbetweenies.replica import Found, Known, Local, Pending, State
from tests.core.test_replica import HOME, MODERN, ROOM, ack, answer, marks, pending
from tests.support import entity

WATCHED = frozenset({"acks", "witness"})


def place(seq: int, epoch: str = "e") -> Cursor:
    return Cursor(epoch, seq, bytes([seq]) * 16)


STATE = replace(MODERN, cursor=str(place(5)), witness=str(place(7)), incarnation="i", pushed=("i:1:aa",))


def heard(**fields: Any) -> Answer:
    return answer(**({"features": WATCHED, "cursor": str(place(8))} | fields))


def offered(value: Any, n: int = 1, aside: bool = False) -> Pending:
    return Pending(n=n, copy=replica.copy_of(value), offered=True, aside=aside)


# --- what is said -------------------------------------------------------------------------------------------------


def test_a_witness_is_sent_if_the_cursor_is_not_that() -> None:
    ask, _ = replica.compose(STATE, (), request="r")
    level, _ = replica.compose(replace(STATE, witness=STATE.cursor), ())

    assert (str(place(7)), "r", None) == (ask.witness, ask.request, ask.pushes)
    assert (None, None) == (level.witness, level.request)


def test_what_is_offered_says_so_and_where_the_logs_parted() -> None:
    state = replace(STATE, common=str(place(4)))
    own, _ = replica.compose(state, pending(HOME))
    ask, sent = replica.compose(state, (offered(HOME), offered(ROOM, 2, aside=True)), skip=((1, 2),), want=(3,))

    assert (None, str(place(4))) == (own.common, ask.common)
    assert [(True, frozenset()), (True, frozenset({("entity", "room")}))] == [
        (change.offered, change.aside) for change in ask.changes
    ]
    assert (((1, 2),), (3,), 2) == (ask.skip, ask.want, len(sent))


def test_a_push_is_numbered_and_written_down_before_it_leaves() -> None:
    ask, _ = replica.compose(STATE, pending(HOME))
    assert ask.pushes is not None
    assert (("i:1:aa",), True) == (ask.pushes.after, ask.pushes.now.startswith("i:2:"))
    tried = replica.attempted(STATE, ask)
    assert ("i:1:aa", ask.pushes.now) == tried.pushed
    # One that was heard, and its answer not, is what the next one comes after; so is the one before that.
    again, _ = replica.compose(tried, pending(HOME))
    assert again.pushes is not None
    assert (tried.pushed, True) == (again.pushes.after, again.pushes.now.startswith("i:3:"))
    for _ in range(99):
        ask, _ = replica.compose(tried, pending(HOME))
        tried = replica.attempted(tried, ask)
    # Of so many the one that was heard may be forgotten: then nobody is taken for a copy.
    assert (replica.PUSHES_MAX, rewind.ANY) == (len(tried.pushed), tried.pushed[0])
    assert ask.pushes is not None
    assert ask.pushes.now == tried.pushed[-1]
    # Once it is answered only the last counts.
    done = replica.absorb(heard(acks=(ack(HOME),)), pending(HOME), tried, Local(pending=marks(*pending(HOME))))
    assert tried.pushed[-1:] == done.state.pushed
    assert tried.pushed == replica.absorb(heard(), (), tried, Local()).state.pushed


def test_what_pushes_nothing_or_goes_to_another_server_is_not_numbered() -> None:
    for state, sent in ((STATE, ()), (replace(STATE, incarnation=""), pending(HOME))):
        ask, _ = replica.compose(state, sent)
        assert (None, state) == (ask.pushes, replica.attempted(state, ask))
    first, _ = replica.compose(replace(STATE, pushed=()), pending(HOME))
    assert first.pushes is not None
    assert ((), True) == (first.pushes.after, first.pushes.now.startswith("i:1:"))


def test_a_copy_goes_on_under_a_name_of_its_own() -> None:
    once = replica.incarnated(replace(STATE, device="tablet"), "0123456789abcdef")
    twice = replica.incarnated(once, "fedcba9876543210")

    assert ("tablet~01234567", "0123456789abcdef", ()) == (once.device, once.incarnation, once.pushed)
    assert "tablet~fedcba98" == twice.device


def test_places_are_asked_for_the_newest_first() -> None:
    known = replica.places(STATE, [place(1), place(3), place(5, "older"), place(0)])

    assert [7, 5, 3, 1] == [one.seq for one in known]
    assert (place(7), place(5)) == known[:2]
    assert () == replica.places(State(device="d", user="u"), ())


def test_locating_and_comparing_carry_no_change() -> None:
    locate = replica.locating(STATE, (place(7), place(3)), "r", ("v",))
    compare = replica.comparing(STATE, ("", "ab"), "r", ("v",))

    assert ((str(place(7)), str(place(3))), str(place(7)), "r", ("v",)) == (
        locate.locate,
        locate.witness,
        locate.request,
        locate.offer,
    )
    assert (("", "ab"), STATE.cursor, "r", ("v",)) == (compare.compare, compare.cursor, compare.request, compare.offer)
    assert ((), ()) == (locate.changes, compare.changes)


# --- what is believed ---------------------------------------------------------------------------------------------

ASK = Ask(device="d", user="u", request="r", cursor=str(place(5)), witness=str(place(7)))


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (heard(request="r"), True),
        (heard(request="r", cursor=str(place(7))), True),
        (heard(request="r", cursor=str(place(6)), head=str(place(9))), True),
        (heard(request="r", cursor=str(place(6))), False),  # a log that got shorter without a word
        (heard(request="r", cursor=None), False),
        (heard(request="r", cursor="x"), False),
        (heard(request="q"), False),
        (heard(), False),
        (heard(request="r", cursor=str(place(0)), resync=True), True),
        (answer(request="q"), True),  # of such a server nothing says to what it is an answer
    ],
)
def test_only_an_answer_to_what_was_asked_is_believed(told: Answer, expected: bool) -> None:
    assert expected is replica.believed(told, ASK)


def test_whoever_knows_no_place_or_asks_for_one_believes_any_log() -> None:
    told = heard(request="r", cursor=str(place(1)))

    assert replica.believed(told, replace(ASK, cursor=None, witness=None))
    assert replica.believed(told, replace(ASK, locate=(str(place(7)),)))


# --- what is absorbed ---------------------------------------------------------------------------------------------


def test_a_log_that_was_lost_is_only_noted() -> None:
    """Its answer says nothing of what was sent."""
    told = heard(resync=True, more=True, cursor=str(place(0)), acks=(ack(HOME),), changes=(Change(entity=ROOM),))
    done = replica.absorb(told, pending(HOME), STATE, Local(pending=marks(*pending(HOME))))

    assert ((), (), {}) == (done.cleared, done.copies, done.pointers)
    assert replace(STATE, lost=True, wire="inbetweenies-v2") == done.state


def test_the_highest_end_that_was_heard_of_is_the_witness_though_the_cursor_is_not_there() -> None:
    page = replica.absorb(heard(more=True, cursor=str(place(6)), head=str(place(9))), (), STATE, Local()).state
    end = replica.absorb(heard(cursor=str(place(9))), (), page, Local()).state
    mute = replica.absorb(heard(cursor=None), (), end, Local()).state
    plain = replica.absorb(answer(cursor="c9"), (), end, Local()).state

    assert (str(place(6)), str(place(9))) == (page.cursor, page.witness)
    assert (str(place(9)), str(place(9))) == (end.cursor, end.witness)
    assert [str(place(9))] * 2 == [mute.witness, plain.witness]


def test_it_is_known_of_each_row_up_to_where_in_the_log_it_is() -> None:
    [one, two, three] = pending(HOME, ROOM, entity("gone", "v", {"deleted": True}))
    told = heard(
        acks=(ack(HOME), Ack(kind="entity", id="gone", version="v", outcome="noop_delete")),
        refused=(Refused(id="room", version="v1", code="too_large", pointer="", detail=""),),
        changes=(Change(entity=entity("x", "v")), Change(entity=replace(HOME, version="v9"))),
        cursor=str(place(6)),
        head=str(place(9)),
        more=True,
    )
    local = Local(pending=marks(one, two, three))
    done = replica.absorb(told, (one, two, three), STATE, local)
    rows = {(id_, version): seq for _, id_, version, _, seq in done.heard}
    wanted = {id_: seq for _, id_, _, _, seq in replica.absorb(told, (), STATE, Local(), wanted=True).heard}

    assert {("home", "v1"): 9, ("gone", "v"): replica.NEVER, ("x", "v"): 6, ("home", "v9"): 9} == rows
    assert {"x": 9, "home": 9} == wanted
    assert () == replica.absorb(replace(told, features=frozenset({"acks"})), (one,), STATE, local).heard
    assert () == replica.absorb(replace(told, cursor="x", head=None, more=False), (one,), STATE, local).heard


def test_what_was_taken_to_the_letter_is_told_in_short() -> None:
    old, new, lost = offered(HOME), offered(replace(HOME, version="v2"), 2), offered(ROOM, 3)
    shorts = {rewind.short(old.copy.hash): False, rewind.short(new.copy.hash): True}
    local = Local(pending=marks(old, new, lost))
    done = replica.absorb(heard(taken=shorts), (old, new, lost), STATE, local)

    assert (1, 2) == done.cleared
    assert "v2" == done.pointers["entity", "home"].theirs
    assert ("entity", "room") not in done.pointers


@pytest.mark.parametrize("first", [True, False])
def test_of_two_rows_under_one_version_the_one_that_was_taken_is_what_the_server_has(first: bool) -> None:
    """A copy of a device made the other one."""
    own, other = offered(HOME, aside=True), offered(replace(HOME, name="Copy"), 2)
    sent = (own, other) if first else (other, own)
    taken = {rewind.short(other.copy.hash): True}
    kept = ack(own.copy, "lost_kept", own.copy.version)
    done = replica.absorb(heard(taken=taken, acks=(kept,)), sent, STATE, Local(pending=marks(*sent)))

    assert {1, 2} == set(done.cleared)
    assert other.copy.hash == done.pointers["entity", "home"].theirs_hash
    assert digest_change(STATE.digest, come=other.copy.hash) == done.state.digest


def test_a_difference_to_a_server_with_a_witness_is_looked_into_first() -> None:
    done = replica.absorb(heard(digest="1" * 64), (), STATE, Local())

    assert (True, False, str(place(8))) == (done.differs, done.healed, done.state.cursor)
    assert not replica.absorb(heard(digest=f"{0:064x}"), (), STATE, Local()).differs


# --- what is left -------------------------------------------------------------------------------------------------


def known(id_: str, version: str = "v1", *, stands: bool = True, theirs: bytes | None = None) -> Known:
    copy = replica.copy_of(entity(id_, version))
    current = copy.hash if stands else theirs
    return Known(kind="entity", id=id_, version=version, hash=copy.hash, theirs=current)


def entry(row: Known, current: bool = True) -> tuple[bytes, bool]:
    return (rewind.short(row.hash), current)


def total(*rows: Known) -> int:
    digest = 0
    for row in rows:
        digest = digest_change(digest, come=row.hash)
    return digest


def test_what_is_listed_is_held_and_all_else_was_lost() -> None:
    kept, gone, other = known("kept"), known("gone"), known("other")
    state = replace(STATE, digest=total(kept, gone, other), lost=True, restarting=True)
    found = Found(common=place(3), head=place(6), entries=((bytes(8), True), entry(kept), entry(other)))
    done = replica.regain(state, found, (kept, gone, other))

    assert ((kept, other), (kept, other), (gone,)) == (done.held, done.current, done.lost)
    assert ((5, 6),) == done.skip
    assert total(kept, other) == done.state.digest
    assert (str(place(3)), str(place(6)), str(place(3))) == (done.state.cursor, done.state.witness, done.state.common)
    assert (False, False, (rewind.ANY, "i:1:aa")) == (done.state.lost, done.state.restarting, done.state.pushed)


def test_without_a_common_place_everything_is_begun_anew_and_what_is_listed_is_still_not_told() -> None:
    kept = known("kept")
    done = replica.regain(STATE, Found(common=None, head=place(2), entries=((bytes(8), True), entry(kept))), (kept,))

    assert (None, None, ((2, 2),)) == (done.state.cursor, done.state.common, done.skip)


def test_a_row_that_is_current_again_stands_in_the_place_of_what_was_lost() -> None:
    old = known("lamp", "v1", stands=False, theirs=known("lamp", "v2").hash)
    new = known("lamp", "v2")
    done = replica.regain(
        replace(STATE, digest=total(new)), Found(common=place(3), head=place(4), entries=(entry(old),)), (old, new)
    )
    swapped = replica.regain(
        replace(STATE, digest=total(new)),
        Found(common=place(3), head=place(5), entries=(entry(old), entry(new, current=False))),
        (old, new),
    )

    assert ((old,), (new,), total(old)) == (done.current, done.lost, done.state.digest)
    assert ((old,), (), total(old)) == (swapped.current, swapped.lost, swapped.state.digest)


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_rows_that_are_current_by_a_listing_in_pages_the_later_is(swapped: bool) -> None:
    old, new = known("lamp", "v1", stands=False, theirs=known("lamp", "v3").hash), known("lamp", "v2", stands=False)
    new = replace(new, theirs=old.theirs)
    rows = (new, old) if swapped else (old, new)
    found = Found(common=place(3), head=place(5), entries=(entry(old), entry(new)))
    done = replica.regain(replace(STATE, digest=total(known("lamp", "v3"))), found, rows)

    assert (rows, (new,), total(new)) == (done.held, done.current, done.state.digest)


def test_a_loser_that_was_lost_changes_no_digest() -> None:
    stands = known("lamp", "v2")
    loser = known("lamp", "v1", stands=False, theirs=stands.hash)
    found = Found(common=place(3), head=place(3), entries=())
    done = replica.regain(replace(STATE, digest=total(stands)), found, (loser,))

    assert ((loser,), total(stands)) == (done.lost, done.state.digest)


def test_what_was_taken_back_on_purpose_is_offered_for_no_place() -> None:
    found = Found(common=place(3), head=place(3), entries=(), discarded=True)
    assert None is replica.regain(STATE, found, ()).state.common


@given(st.sets(st.integers(1, 60)))
def test_ranges_hold_what_they_are_made_of_and_nothing_else(seqs: set[int]) -> None:
    ranges = replica._ranges(seqs)

    assert seqs == {seq for first, last in ranges for seq in range(first, last + 1)}
    assert len(ranges) == sum(seq - 1 not in seqs for seq in seqs)


def test_no_more_ranges_are_named_than_may_be() -> None:
    assert rewind.RANGES_MAX == len(replica._ranges(range(0, 3 * rewind.RANGES_MAX, 2)))


# --- what differs -------------------------------------------------------------------------------------------------


def own(count: int) -> list[tuple[str, replica.Key, bytes]]:
    rows = [known(f"e{number}") for number in range(count)]
    return sorted((rewind.place_of(row.kind, row.id), row.key, row.hash) for row in rows)


def part(rows: list[tuple[str, replica.Key, bytes]], prefix: str = "") -> Part:
    tally = rewind.Tally((prefix,))
    for seq, (where, _, hash_) in enumerate(rows, 1):
        tally.add(where, seq, hash_)
    return tally.parts()[0]


def test_of_a_small_part_the_rows_themselves_are_compared() -> None:
    rows = own(9)
    theirs = part([*rows[:4], *rows[5:]])

    assert replica.Difference() == replica.differences(part(rows), rows)
    assert replica.Difference(lacking=(rows[4][1],)) == replica.differences(theirs, rows)
    assert replica.Difference(want=(5,)) == replica.differences(part(rows), [*rows[:4], *rows[5:]])


def test_of_a_large_part_those_parts_are_looked_into_whose_sums_differ() -> None:
    rows = own(300)
    missing = rows[7]
    less = [row for row in rows if row is not missing]

    assert replica.Difference() == replica.differences(part(rows), rows)
    assert replica.Difference(prefixes=(missing[0][:2],)) == replica.differences(part(rows), less)
    inside = part(rows, missing[0][:2])
    found = replica.differences(inside, less)
    assert [rows.index(missing) + 1] == list(found.want)


def test_parts_are_not_looked_into_for_ever_whatever_a_server_says() -> None:
    lie = Part(prefix="0" * rewind.PREFIX_MAX, sums=bytes(range(256)) * 8)

    assert replica.Difference() == replica.differences(lie, own(3))
    assert () == replica.differences(Part(prefix="", sums=b"short"), own(3)).prefixes
