"""The server's rules (PROTOCOL 4 and 6), through the engine alone: no wire version, no clock, no file."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies import engine, model
from inbetweenies.errors import RemoteProtocolError
from inbetweenies.limits import Limits
from inbetweenies.merge import Policy
from inbetweenies.model import CONFIRMED, Change, Cursor, Device, Reads, Span, SyncRequest, SyncResponse, Writes
from tests.support import NOW, SECOND, Server, at, edge, entity, run

HOME = entity("home", at(0), {"a": 1, "b": 1}, entity_type="home")


def outcomes(response: SyncResponse) -> list[tuple[str, str]]:
    return [(ack.id, ack.outcome) for ack in response.acks]


def content(server: Server, id_: str) -> Any:
    return msgspec.json.decode(server.current(id_).content)


def history(server: Server, id_: str) -> set[str]:
    return {row.version for row in server.held(Reads(history=(id_,))).history[id_]}


# --- taking what is pushed ----------------------------------------------------------------------------------------


def test_a_new_row_is_applied_and_current() -> None:
    server = Server()
    response = server.push(HOME)

    assert [("home", "applied")] == outcomes(response)
    assert HOME == server.current("home")
    assert 1 == response.head.seq


def test_a_row_that_names_the_current_one_follows_it() -> None:
    server = Server()
    server.push(HOME)
    response = server.push(replace(HOME, version="next", name="Next", parent_versions=(HOME.version,)))

    assert [("home", "fast_forward")] == outcomes(response)
    assert () == response.conflicts
    assert "Next" == server.current("home").name
    assert {HOME.version, "next"} == history(server, "home")


def test_a_row_that_is_held_already_is_acked_and_changes_nothing() -> None:
    server = Server()
    server.push(HOME)
    before = server.pull(full=True).head
    response = server.push(HOME)

    assert [("home", "dup")] == outcomes(response)
    assert before == response.head


def test_other_content_under_a_taken_version_is_kept_and_reported() -> None:
    server = Server()
    server.push(HOME)
    clone = replace(HOME, name="Clone")
    response = server.push(clone)
    again = server.push(clone)

    assert [("home", "lost_kept")] == outcomes(response)
    assert [HOME.version] == [lost.resolved_version for lost in response.conflicts]
    assert [("home", "lost_kept")] == outcomes(again)
    assert response.head == again.head
    assert HOME == server.current("home")
    kept = [row.entity() for row in server.held(Reads(history=("home",))).history["home"]]
    assert ["home", "Clone"] == [row.name for row in kept]
    assert kept[1].version.startswith(f"{HOME.version}#")


def test_a_delete_of_an_unknown_id_is_acked_and_stores_nothing() -> None:
    server = Server()
    response = server.push(entity("ghost", "v", {"deleted": True}), delete=True)

    assert [("ghost", "noop_delete")] == outcomes(response)
    assert 0 == response.head.seq
    assert response.acks[0].head is None


def test_a_tombstone_that_arrives_before_its_row_keeps_it_deleted() -> None:
    server = Server()
    tombstone = entity("lamp", at(1), {"deleted": True}, parent_versions=(at(0),))
    server.push(tombstone, delete=True)
    response = server.push(entity("lamp", at(0)))

    assert [("lamp", "superseded")] == outcomes(response)
    assert () == response.conflicts
    assert tombstone == server.current("lamp")


def test_parents_come_before_children_whatever_the_order_of_the_message() -> None:
    server = Server()
    chain = [entity("x", "v0"), *(entity("x", f"v{n}", {"n": n}, parent_versions=(f"v{n - 1}",)) for n in range(1, 4))]
    response = server.push(chain[3], chain[1], HOME, chain[2], chain[0])

    assert () == response.conflicts
    assert chain[3] == server.current("x")
    rows = server.held(Reads(history=("x",))).history["x"]
    assert ["v0", "v1", "v2", "v3"] == [row.version for row in rows]
    assert [2, 4, 5, None] == [row.until for row in rows]


def test_a_circle_of_parents_is_taken_in_the_order_of_the_message() -> None:
    server = Server()
    response = server.push(
        entity("x", "a", {"n": 1}, parent_versions=("b",)), entity("x", "b", {"n": 2}, parent_versions=("a",))
    )

    assert ["a", "b"] == [ack.version for ack in response.acks]
    assert {"a", "b"} == history(server, "x")


def test_a_row_whose_current_descendant_is_known_is_superseded_without_a_conflict() -> None:
    server = Server()
    server.push(entity("x", at(0)))
    server.push(entity("x", at(2), {"n": 2}, parent_versions=(at(0), at(1))))
    response = server.push(entity("x", at(1), {"n": 1}, parent_versions=(at(0),)))

    assert [("x", "superseded")] == outcomes(response)
    assert () == response.conflicts
    assert {"n": 2} == content(server, "x")


def test_a_row_that_descends_from_the_current_one_through_held_rows_follows_it() -> None:
    server = Server(policy=Policy(three_way=False))
    server.push(entity("x", at(0)))
    # The loser descends from the current row; the next row names only the loser.
    server.push(entity("x", at(5), {"n": 5}, parent_versions=(at(0),)))
    server.push(entity("x", at(1), {"n": 1}, parent_versions=(at(5), "unheard")))
    response = server.push(entity("x", at(2), {"n": 2}, parent_versions=(at(1),)))

    assert [("x", "fast_forward")] == outcomes(response)


# --- who wins -----------------------------------------------------------------------------------------------------


def test_concurrent_edits_of_different_fields_are_merged() -> None:
    server = Server()
    server.push(HOME)
    mine = entity("home", at(1), {"a": 2, "b": 1}, entity_type="home", parent_versions=(HOME.version,))
    yours = entity(
        "home", at(2, "bob"), {"a": 1, "b": 2}, entity_type="home", parent_versions=(HOME.version,), user_id="bob"
    )
    server.push(mine)
    response = server.push(yours)

    assert [("home", "merged")] == outcomes(response)
    assert () == response.conflicts
    current = server.current("home")
    assert {"a": 2, "b": 2} == content(server, "home")
    assert (True, "bob") == (current.merged, current.user_id)
    assert tuple(sorted((mine.version, yours.version))) == current.parent_versions
    assert current.version.startswith(at(2, "bob") + ".m")
    assert current.version == response.acks[0].head


def test_a_field_that_both_changed_goes_to_the_later_edit_and_the_loser_is_told_and_kept() -> None:
    server = Server()
    server.push(HOME)
    late = entity("home", at(9), {"a": 2, "b": 5}, entity_type="home", parent_versions=(HOME.version,))
    early = entity("home", at(3), {"a": 3, "b": 1}, entity_type="home", parent_versions=(HOME.version,), name="Early")
    server.push(late)
    response = server.push(early)
    (lost,) = response.conflicts

    assert [("home", "merged")] == outcomes(response)
    assert {"a": 2, "b": 5} == content(server, "home")
    assert "Early" == server.current("home").name
    assert (late.version, early.version) == (lost.local_version, lost.remote_version)
    assert server.current("home").version == lost.resolved_version
    assert "merged by field; local has newer timestamp" == lost.resolution_strategy
    assert {HOME.version, late.version, early.version, lost.resolved_version} == history(server, "home")


def test_edits_are_compared_with_the_row_that_they_were_made_on_though_an_older_one_came_later() -> None:
    server = Server()
    base = entity("home", at(1), {"a": 1, "b": 1}, parent_versions=(at(0),))
    server.push(base)
    server.push(entity("home", at(0), {"a": 1}))
    server.push(entity("home", at(2), {"a": 2, "b": 1}, parent_versions=(base.version,)))
    response = server.push(entity("home", at(3), {"a": 1}, parent_versions=(base.version,)))

    assert ([("home", "merged")], ()) == (outcomes(response), response.conflicts)
    assert {"a": 2} == content(server, "home")


def test_a_merge_that_takes_nothing_makes_no_row() -> None:
    server = Server()
    server.push(HOME)
    late = entity("home", at(9), {"a": 2, "b": 1}, entity_type="home", parent_versions=(HOME.version,))
    early = entity("home", at(3), {"a": 3, "b": 1}, entity_type="home", parent_versions=(HOME.version,))
    server.push(late)
    response = server.push(early)

    assert [("home", "lost_kept")] == outcomes(response)
    assert late == server.current("home")
    assert late.version == response.conflicts[0].resolved_version
    assert early.version in history(server, "home")


def test_a_merge_is_the_same_row_whichever_side_came_first() -> None:
    rows = []
    one = entity("home", at(1), {"a": 2, "b": 1}, entity_type="home", parent_versions=(HOME.version,))
    other = entity("home", at(2), {"a": 1, "b": 2}, entity_type="home", parent_versions=(HOME.version,))
    for pushed in ((one, other), (other, one)):
        server = Server()
        for row in (HOME, *pushed):
            server.push(row)
        rows.append(server.current("home"))

    assert rows[0] == rows[1]


def test_two_devices_that_make_the_same_change_lose_nothing() -> None:
    server = Server()
    server.push(HOME)
    same = replace(HOME, version=at(1), name="Same", parent_versions=(HOME.version,))
    server.push(same)
    response = server.push(replace(same, version=at(1, "bob"), user_id="bob"))

    assert [("home", "superseded")] == outcomes(response)
    assert () == response.conflicts
    assert at(1, "ann") == server.current("home").version


@pytest.mark.parametrize(("seconds", "wins"), [(10, True), (-10, False)])
def test_without_a_common_ancestor_the_later_edit_wins_whole(seconds: float, wins: bool) -> None:
    server = Server()
    server.push(HOME)
    blind = entity("home", at(seconds, "bob"), {"c": 1}, entity_type="home")
    response = server.push(blind)
    (lost,) = response.conflicts

    assert [("home", "applied" if wins else "lost_kept")] == outcomes(response)
    assert (blind if wins else HOME) == server.current("home")
    assert server.current("home").version == lost.resolved_version
    assert {HOME.version, blind.version} == history(server, "home")


def test_an_edit_across_a_row_that_was_never_held_changes_only_what_its_maker_changed() -> None:
    server = Server()
    server.push(HOME)
    far = entity("home", at(1), {"a": 1, "b": 7, "c": 7}, entity_type="home", parent_versions=("never held",))
    server.push(far)
    edit = entity("home", at(9), {"a": 5, "b": 1}, entity_type="home", parent_versions=(HOME.version,))
    server.push(edit)

    assert {"a": 5, "b": 7, "c": 7} == content(server, "home")


def test_with_three_way_off_the_ladder_is_the_deployed_rule() -> None:
    server = Server(policy=Policy(three_way=False))
    server.push(HOME)
    server.push(entity("home", at(1), {"a": 2, "b": 1}, entity_type="home", parent_versions=(HOME.version,)))
    late = entity("home", at(5), {"a": 1, "b": 2}, entity_type="home", parent_versions=(HOME.version,))
    response = server.push(late)

    assert late == server.current("home")
    assert "remote has newer timestamp" == response.conflicts[0].resolution_strategy


@pytest.mark.parametrize("tombstone_first", [True, False])
def test_a_tombstone_wins_over_a_concurrent_edit_in_either_order(tombstone_first: bool) -> None:
    server = Server()
    server.push(HOME)
    gone = entity("home", at(1), {"deleted": True}, entity_type="home", parent_versions=(HOME.version,))
    edit = entity("home", at(9), {"a": 9}, entity_type="home", parent_versions=(HOME.version,))
    first, second = (gone, edit) if tombstone_first else (edit, gone)
    server.push(first)
    response = server.push(second)

    assert gone == server.current("home")
    assert [gone.version] == [lost.resolved_version for lost in response.conflicts]
    assert {HOME.version, gone.version, edit.version} == history(server, "home")


def test_two_tombstones_lose_nothing() -> None:
    server = Server()
    server.push(HOME)
    one = entity("home", at(1), {"deleted": True, "by": 1}, parent_versions=(HOME.version,))
    server.push(one)
    response = server.push(entity("home", at(2), {"deleted": True, "by": 2}, parent_versions=(HOME.version,)))

    assert [("home", "superseded")] == outcomes(response)
    assert () == response.conflicts


def test_only_an_edit_that_names_the_tombstone_brings_an_entity_back() -> None:
    server = Server()
    gone = entity("home", at(1), {"deleted": True}, entity_type="home", parent_versions=(HOME.version,))
    server.push(HOME)
    server.push(gone)
    server.push(entity("home", at(20), {"a": 1}, entity_type="home"))

    assert gone == server.current("home")

    back = entity("home", at(2), {"a": 1}, entity_type="home", parent_versions=(gone.version,))
    server.push(back)

    assert back == server.current("home")
    # Whoever brings it back too meets on the tombstone, as two edits of any other row would.
    rival = entity("home", at(30), {"a": 2, "b": 1}, entity_type="home", parent_versions=(gone.version,))
    response = server.push(rival)

    assert {"a": 2, "b": 1} == content(server, "home")
    assert 1 == len(response.conflicts)


def test_a_row_from_the_far_future_does_not_win_for_ever() -> None:
    server = Server()
    server.push(entity("x", at(10**9), {"n": 1}))
    server.now += 6 * 60 * SECOND
    honest = entity("x", at(6 * 60), {"n": 2})
    server.push(honest)

    assert honest == server.current("x")


# --- the log ------------------------------------------------------------------------------------------------------


def test_a_clock_that_steps_back_never_moves_a_stamp_back() -> None:
    server = Server()
    stamps = []
    for n in range(4):
        server.now = NOW - n * SECOND
        stamps.append(server.push(entity(f"x{n}", "v")).head.stamp)

    assert [NOW, NOW + 1_000, NOW + 2_000, NOW + 3_000] == stamps


def test_commits_are_milliseconds_apart_and_rows_of_one_are_not() -> None:
    server = Server()
    server.now = NOW + 999
    first = server.push(entity("a", "v"), entity("b", "v")).head.stamp
    second = server.push(entity("c", "v"), entity("d", "v")).head.stamp

    assert [NOW + 1_000, NOW + 2_001] == [first, second]


def test_a_log_that_is_set_back_to_nothing_goes_on_a_millisecond_later() -> None:
    """What it was told of the end of the log that is gone, a client may have cut to milliseconds."""
    server = Server()
    head = server.held(Reads()).head

    async def rise() -> None:
        async with server.store.transaction("default", write=True) as tx:
            await tx.write(Writes(head=replace(head, stamp=NOW + 7)))

    run(rise())
    server.now = NOW - SECOND

    assert NOW + 1_000 == server.push(entity("x", "v")).head.stamp


def test_stamps_tell_commits_apart_where_a_millisecond_ends() -> None:
    """Less its seq, a stamp is one number for the rows of a commit, and greater in the next."""
    server = Server()
    heads = []
    for server.now in (NOW + 999, NOW + 1_000):
        heads.append(server.push(entity(f"x{server.now}", "v")).head)

    assert [NOW + 998, NOW + 999] == [head.stamp - head.seq for head in heads]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(-400, 400), st.booleans()), max_size=8))
def test_head_digest_and_chain_follow_from_the_rows(steps: list[tuple[int, int, int, bool]]) -> None:
    server = Server()
    for id_, parent, seconds, deleted in steps:
        body = {"deleted": True} if deleted else {"n": seconds}
        server.push(entity(f"x{id_}", at(seconds), body, parent_versions=(at(parent),)))
    head = server.held(Reads()).head
    rows = [row for n in range(3) for row in server.held(Reads(history=(f"x{n}",))).history.get(f"x{n}", ())]
    rows.sort(key=lambda row: row.seq)
    chain, digest = bytes(16), 0
    for row in rows:
        chain = model.next_chain(chain, row.hash)
        assert chain == row.chain
        assert row.hash == model.row_hash("entity", row.body)
        if row.current:
            digest += int.from_bytes(row.hash, "big")

    assert list(range(1, head.seq + 1)) == [row.seq for row in rows]
    assert digest % 2**256 == head.digest
    assert len({row.id for row in rows}) == sum(row.current for row in rows)
    for name in {row.id for row in rows}:
        shown = [row.rise for row in rows if row.id == name and row.until != row.seq]
        assert shown == sorted(set(shown))
        assert 1 == len({row.born for row in rows if row.id == name})


# --- edges --------------------------------------------------------------------------------------------------------

ROOM = entity("room", at(0), entity_type="room")


def test_edges_are_taken_after_all_entities_of_the_message() -> None:
    server = Server()
    link = edge("e", ROOM, HOME)
    response = server.push(link, HOME, ROOM)

    assert [("home", "applied"), ("room", "applied"), ("e", "applied")] == outcomes(response)
    assert link == server.held(Reads(edges=("e",))).edges["e"].relationship()


@pytest.mark.parametrize("together", [True, False])
def test_an_edge_may_name_an_edit_of_which_only_a_later_one_was_sent(together: bool) -> None:
    unsent = replace(ROOM, version=at(1))
    tip = replace(ROOM, version=at(2), parent_versions=(unsent.version,))
    link = edge("e", unsent, HOME)
    server = Server()
    server.push(HOME, ROOM)
    if together:
        assert ["room", "e"] == [ack.id for ack in server.push(tip, link).acks]
    else:
        assert () == server.push(link).acks
        server.push(tip)
        assert [("e", "applied")] == outcomes(server.push(link))
    assert link == server.held(Reads(edges=("e",))).edges["e"].relationship()


def test_an_edge_without_its_endpoint_is_neither_stored_nor_acked() -> None:
    server = Server()
    server.push(HOME)
    response = server.push(edge("e", ROOM, HOME), edge("f", HOME, replace(ROOM, id="nowhere")))

    assert () == response.acks
    assert ["unknown_endpoint", "unknown_endpoint"] == [refused.code for refused in response.refused]
    assert ["/changes/0/relationships/0/from_entity_id", "/changes/1/relationships/0/to_entity_id"] == [
        refused.pointer for refused in response.refused
    ]
    assert {} == server.held(Reads(edges=("e", "f"))).edges

    server.push(ROOM)

    assert [("e", "applied")] == outcomes(server.push(edge("e", ROOM, HOME)))


def test_the_last_committed_value_of_an_edge_is_current_and_all_are_kept() -> None:
    server = Server()
    first = edge("e", ROOM, HOME, "v1")
    second = edge("e", ROOM, HOME, "v2", properties={"n": 2})
    server.push(HOME, ROOM, first)
    server.push(second)
    late = server.push(first)

    assert [("e", "dup")] == outcomes(late)
    assert second == server.held(Reads(edges=("e",))).edges["e"].relationship()
    assert {("edge", "e", "v1"), ("edge", "e", "v2")} == set(
        server.held(Reads(versions=(("edge", "e", "v1"), ("edge", "e", "v2")))).versions
    )


def test_an_edge_without_a_version_is_one_value_however_often_it_comes() -> None:
    server = Server()
    nameless = edge("e", ROOM, HOME, "")
    server.push(HOME, ROOM, nameless)
    again = server.push(nameless)

    assert [("e", "dup")] == outcomes(again)
    assert 3 == again.head.seq


def test_other_content_under_a_taken_edge_version_is_kept_beside_it() -> None:
    server = Server()
    server.push(HOME, ROOM, edge("e", ROOM, HOME))
    clone = edge("e", ROOM, HOME, properties={"n": 2})
    response = server.push(clone)
    again = server.push(clone)

    assert [("e", "lost_kept")] == outcomes(response)
    assert [("e", "lost_kept")] == outcomes(again)
    assert edge("e", ROOM, HOME) == server.held(Reads(edges=("e",))).edges["e"].relationship()
    assert 4 == again.head.seq


# --- what cannot be stored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "code", "pointer"),
    [
        (entity("", "v"), "illegal_name", "/entity/id"),
        (entity("x", ""), "illegal_name", "/entity/version"),
        (entity("x\n", "v"), "illegal_name", "/entity/id"),
        (entity("x", "v\x7f"), "illegal_name", "/entity/version"),
        (entity("é" * 513, "v"), "illegal_name", "/entity/id"),
        (entity("x", "v", entity_type=""), "illegal_name", "/entity/entity_type"),
        (entity("x", "v", source_type=""), "illegal_name", "/entity/source_type"),
        (entity("x", "v", parent_versions=("a", "b", "c")), "too_many_parents", "/entity/parent_versions"),
        (entity("x", "v", name="n" * 9000), "too_large", ""),
        (edge("", HOME, HOME), "illegal_name", "/relationships/0/id"),
        (edge("e", HOME, HOME, relationship_type=""), "illegal_name", "/relationships/0/relationship_type"),
    ],
)
def test_an_item_that_cannot_be_stored_is_refused_and_the_rest_goes_on(item: Any, code: str, pointer: str) -> None:
    server = Server(limits=Limits(parents_max=2, entity_bytes_max=8000))
    response = server.push(HOME, item, ROOM)

    assert [("home", "applied"), ("room", "applied")] == outcomes(response)
    assert [(code, f"/changes/1{pointer}")] == [(refused.code, refused.pointer) for refused in response.refused]


@pytest.mark.parametrize("name", ["x" * 1024, "é" * 512, "naïve ids; with: spaces", "\x80\u202e"])
def test_every_other_name_is_legal(name: str) -> None:
    assert [(name, "applied")] == outcomes(Server().push(entity(name, "v")))


def test_a_delete_without_an_entity_says_nothing() -> None:
    response = Server().ask(SyncRequest(device="d", user="u", changes=(Change(delete=True),)))

    assert ((), (), 0) == (response.acks, response.refused, response.head.seq)


def test_a_peer_with_features_may_not_push_more_than_it_was_told() -> None:
    server = Server(limits=Limits(changes_max=2))
    items = [entity(f"x{n}", "v") for n in range(3)]
    with pytest.raises(RemoteProtocolError) as caught:
        server.push(*items, features=frozenset({"acks"}))

    assert "too_many_changes" == caught.value.code
    assert 0 == server.pull().head.seq
    assert 3 == len(server.push(*items).acks)


# --- what a pull gets ---------------------------------------------------------------------------------------------


def ids(response: SyncResponse) -> list[str]:
    return [row.id for row in response.rows]


def filled(count: int) -> Server:
    server = Server()
    for n in range(count):
        server.push(entity(f"x{n}", "v"))
    return server


def test_a_full_pull_gets_every_current_row_in_commit_order() -> None:
    server = filled(3)
    server.push(entity("x0", "v2", {"n": 2}, parent_versions=("v",)))
    response = server.pull(full=True)

    assert ["x1", "x2", "x0"] == ids(response)
    assert (response.head.cursor, response.head.stamp) == (response.served, response.served_stamp)
    assert not response.more


@pytest.mark.parametrize("full", [True, False])
def test_a_cursor_continues_after_the_row_it_names(full: bool) -> None:
    server = filled(2)
    cursor = server.pull(full=True).served
    server.push(entity("y", "v"))

    assert ["y"] == ids(server.pull(cursor=cursor, full=full))


def test_a_cursor_of_another_log_starts_anew_and_says_so() -> None:
    server = filled(2)
    good = server.pull(full=True).served
    for bad in (
        Cursor("00", good.seq, good.chain),
        Cursor(good.epoch, good.seq, bytes(16)),
        Cursor(good.epoch, good.seq + 1, good.chain),
    ):
        response = server.pull(cursor=bad)

        assert (True, ["x0", "x1"]) == (response.resync, ids(response))
    assert not server.pull(cursor=good).resync


def test_since_is_exact_because_stamps_follow_commits() -> None:
    server = Server()
    server.now = NOW
    seen = []
    for n in range(4):
        server.push(entity(f"x{n}", "v"))
        seen.append(server.pull(full=True).served_stamp)
        server.now -= SECOND

    assert [["x1", "x2", "x3"], ["x2", "x3"], ["x3"], []] == [ids(server.pull(since=stamp)) for stamp in seen]
    assert ["x0", "x1", "x2", "x3"] == ids(server.pull(since=seen[0] - 1))
    # Not of this history: as if it were absent.
    assert ["x0", "x1", "x2", "x3"] == ids(server.pull(since=seen[-1] + 1))


def test_a_bare_sequence_number_is_a_start_too() -> None:
    server = filled(3)

    assert ["x2"] == ids(server.pull(after=2))
    assert (True, 3) == ((response := server.pull(after=99)).resync, len(response.rows))


def test_pages_cover_the_log_without_gaps_or_repeats() -> None:
    server = filled(7)
    cursor, seen, pages = None, [], 0
    while True:
        response = server.pull(cursor=cursor, full=True, features=frozenset({"paging"}), page_rows=3)
        seen += ids(response)
        pages += 1
        cursor = response.served
        assert response.served_stamp <= response.head.stamp
        if not response.more:
            break

    assert [f"x{n}" for n in range(7)] == seen
    assert 3 == pages


def test_a_page_is_never_larger_than_the_server_allows() -> None:
    server = filled(4)
    server.limits = Limits(page_rows_max=2)

    assert 2 == len(server.pull(features=frozenset({"paging"}), page_rows=100).rows)
    assert 2 == len(server.pull(features=frozenset({"paging"})).rows)
    assert 4 == len(server.pull(page_rows=1).rows)


def test_a_deployed_peer_gets_what_it_pushed_and_what_it_lacks() -> None:
    server = filled(2)

    def pushed(id_: str) -> list[str]:
        change = Change(entity=entity(id_, "v"))
        return ids(server.ask(SyncRequest(device="stranger", user="u", changes=(change,))))

    # Unknown device: the whole graph; then only what came since its last answer.
    assert ["x0", "x1", "y"] == pushed("y")
    server.push(entity("w", "v"))
    assert ["w", "z"] == pushed("z")
    # A row that it pushed again is answered with what is current.
    assert ["x0"] == pushed("x0")


def test_a_peer_with_features_is_spared_what_it_sent_and_told_what_it_did_not() -> None:
    server = filled(1)
    features = frozenset({"acks"})
    cursor = server.pull(full=True).served
    server.push(entity("x0", at(5), {"n": 5}, parent_versions=("v",)))
    response = server.push(
        entity("y", "v"), entity("x0", at(1), {"m": 1}, parent_versions=("v",)), features=features, cursor=cursor
    )

    assert ["x0"] == ids(response)
    assert {"m": 1, "n": 5} == msgspec.json.decode(response.rows[0].entity().content)
    assert [("y", "v"), ("x0", response.rows[0].version)] == [(ack.id, ack.head) for ack in response.acks]
    # A clone's row under a taken version is not what is current here, so the current one is told.
    clone = server.push(entity("y", "v", {"other": 1}), features=features, cursor=response.head.cursor)
    assert ["y"] == ids(clone)


def test_a_last_page_holds_what_was_pushed_only_when_it_is_the_last() -> None:
    server = filled(4)
    features = frozenset({"paging"})
    response = server.push(entity("x3", at(1), {"n": 1}), features=features, page_rows=2, full=True)

    assert (["x0", "x1"], True) == (ids(response), response.more)


def test_edges_come_with_a_carrier_to_peers_that_need_one() -> None:
    server = Server()
    server.push(HOME, ROOM)
    cursor = server.pull(full=True).served
    server.push(edge("e", ROOM, HOME))

    assert {"room"} == set(server.pull(cursor=cursor).carriers)
    assert {} == server.pull(cursor=cursor, features=frozenset({"edges"})).carriers
    assert {} == server.pull(full=True).carriers


def test_filters_keep_what_they_name_and_the_edges_of_it() -> None:
    server = Server()
    server.push(HOME, ROOM, edge("e", ROOM, HOME), entity("lamp", "v", user_id="bob"))

    assert ["room", "e"] == ids(server.pull(full=True, entity_types=frozenset({"room"})))
    assert ["lamp"] == ids(server.pull(full=True, modified_by=frozenset({"bob"})))
    assert [] == ids(server.pull(full=True, entity_types=frozenset({"room"}), modified_by=frozenset({"bob"})))


def test_a_request_that_does_not_pull_gets_acks_alone() -> None:
    response = Server().push(HOME, pull=False)

    assert ([("home", "applied")], ()) == (outcomes(response), response.rows)


def test_an_ack_of_the_last_answer_is_remembered() -> None:
    server = filled(2)
    server.pull(full=True)
    first, late = (SyncRequest(device="p", user="u", pull=False, ack=mark) for mark in ("10:00", "09:59"))
    server.ask(first)

    assert Device(served=CONFIRMED, acked=2, mark="10:00") == server.held(Reads(device="p")).device
    server.push(entity("y", "v"))
    server.pull(full=True)
    for held_up in (first, late, first):
        server.ask(held_up)

    assert Device(served=3, acked=2, mark="10:00") == server.held(Reads(device="p")).device
    server.ask(SyncRequest(device="stranger", user="u", pull=False, ack="1"))

    assert Device(served=CONFIRMED, mark="1") == server.held(Reads(device="stranger")).device


def test_one_read_tells_all_that_a_push_without_conflicts_needs() -> None:
    request = SyncRequest(
        device="d",
        user="u",
        changes=(Change(entity=HOME, relationships=(edge("e", HOME, ROOM, ""),)),),
        cursor=Cursor("00", 7, bytes(16)),
        since=5,
    )
    reads = engine.reads(request)

    assert (("home",), ("e",), (7,), 5, "d") == (reads.entities, reads.edges, reads.chains, reads.stamp, reads.device)
    assert ("edge", "e", model.edge_version(edge("e", HOME, ROOM, ""))) in reads.versions


def test_the_rows_of_one_push_are_read_back_in_one_span() -> None:
    server = filled(3)
    span = server.held(Reads(span=Span(after=1, upto=2))).span

    assert ["x1"] == [row.id for row in span]


def test_of_two_who_bring_something_back_neither_undoes_what_the_other_wrote() -> None:
    server = Server()
    server.push(entity("x", at(0), {"deleted": True, "old": 1, "both": 1}))
    server.push(entity("x", at(1), {"a": 1, "old": 2, "both": 1}, parent_versions=(at(0),)))
    response = server.push(entity("x", at(9), {"b": 1, "old": 1}, parent_versions=(at(0),)))

    assert {"a": 1, "b": 1, "old": 2} == content(server, "x")
    assert () == response.conflicts


def test_a_row_that_descends_from_the_current_one_through_a_loser_follows_it() -> None:
    server = Server(policy=Policy(three_way=False))
    server.push(entity("x", at(5)))
    server.push(entity("x", at(1), {"n": 1}, parent_versions=(at(3),)))
    server.push(entity("x", at(3), {"n": 3}, parent_versions=(at(5),)))
    response = server.push(entity("x", at(7), {"n": 7}, parent_versions=(at(1),)))

    assert [("x", "fast_forward")] == outcomes(response)
    assert {"n": 7} == content(server, "x")
