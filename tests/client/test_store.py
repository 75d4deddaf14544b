"""The local replica's file: what is true together stays true together, whoever interrupts or writes beside it."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from blowing_off.migration import APPLICATION_ID
from blowing_off.store import LocalStore, SyncRunning
from inbetweenies.errors import StoreBusy, StoreCorrupt, StoreError, StoreFull
from inbetweenies.model import Ack, Answer, Change, Conflict, Entity, Refused, Relationship, edit_time
from inbetweenies.replica import Absorbed, Local, Pointer, State, absorb, copy_of, mentions, restart
from tests.support import NOW, at, edge, entity

ROOT = Path(__file__).resolve().parents[2]
STATE = State(device="d", user="ann", modern=True)
FEATURES = frozenset({"paging", "acks", "digest", "edges"})


@pytest.fixture
def store() -> Iterator[LocalStore]:
    opened = LocalStore(":memory:")
    opened.put_state(STATE)
    yield opened
    opened.close()


def told(*items: Entity | Relationship, **fields: Any) -> Answer:
    """An answer of a server with features that tells `items`."""
    changes = tuple(
        Change(entity=item) if isinstance(item, Entity) else Change(relationships=(item,)) for item in items
    )
    return Answer(protocol_version="inbetweenies-v2", changes=changes, features=FEATURES, **fields)


def take(store: LocalStore, answer: Answer, sent: tuple[Any, ...] = ()) -> Absorbed:
    """What a sync does with an answer."""
    state = store.state()
    assert state is not None
    absorbed = absorb(answer, sent, state, store.local(*mentions(answer, sent)))
    store.apply(absorbed, now=NOW)
    return absorbed


def seen(store: LocalStore, id_: str) -> str | None:
    copy = store.get(id_)
    return None if copy is None else copy.version


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_new_store_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "home.db"
    opened = LocalStore(path)
    opened.write([copy_of(entity("a", at(0)))])

    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    opened.close()

    assert {0o600} == modes


def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    first = LocalStore(tmp_path / "home.db")
    first.put_state(STATE)
    first.write([copy_of(entity("a", at(0), name="Lampe Küche"))])
    first.close()

    again = LocalStore(tmp_path / "home.db")

    assert STATE == again.state()
    assert ["Lampe Küche"] == [copy.name for copy in again.find("KÜCHE")]
    assert [at(0)] == [item.copy.version for item in again.pending()]
    again.close()


def test_a_database_of_another_program_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()

    with pytest.raises(StoreError, match="a database of another program"):
        LocalStore(path)

    assert before == path.read_bytes()


def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, this is not a database. " * 100)
    before = path.read_bytes()

    with pytest.raises(StoreCorrupt, match="a file that is none"):
        LocalStore(path)

    assert before == path.read_bytes()


def test_a_store_of_a_newer_release_is_refused_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    LocalStore(path).close()
    with sqlite3.connect(path) as newer:
        newer.execute("PRAGMA user_version = 99")
        newer.execute("UPDATE meta SET value = '99' WHERE key IN ('min_reader', 'min_writer')")
    newer.close()

    with pytest.raises(StoreError, match=r"format 99, written by a newer release. Update this program"):
        LocalStore(path)


def test_a_folder_in_place_of_the_file_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected to open"):
        LocalStore(tmp_path)


def test_the_file_says_whose_it_is(tmp_path: Path) -> None:
    LocalStore(tmp_path / "home.db").close()
    with sqlite3.connect(tmp_path / "home.db") as db:
        found = db.execute("PRAGMA application_id").fetchone()[0]
    db.close()

    assert APPLICATION_ID == found


def test_a_damaged_state_is_told_as_such(store: LocalStore) -> None:
    store.keep(state="[]")

    with pytest.raises(StoreCorrupt, match="expected the state of a replica"):
        store.state()


def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    opened = LocalStore(tmp_path / "home.db")
    opened.write([copy_of(entity("a", at(0)))])
    opened._db.execute(f"PRAGMA max_page_count = {opened._db.execute('PRAGMA page_count').fetchone()[0]}")

    with pytest.raises(StoreFull, match="the disk is full"):
        opened.write([copy_of(entity("b", at(1), {"text": "x" * 100_000}))])

    assert [None, at(0)] == [seen(opened, "b"), seen(opened, "a")]
    assert 1 == opened.counts().pending
    opened.close()


# --- local edits --------------------------------------------------------------------------------------------------


def test_an_edit_is_a_row_and_a_mark_and_what_is_seen(store: LocalStore) -> None:
    first, second = entity("a", at(0)), entity("a", at(1), parent_versions=(at(0),))
    store.write([copy_of(first)])
    store.write([copy_of(second)])

    assert at(1) == seen(store, "a")
    assert [at(0), at(1)] == [item.copy.version for item in store.pending()]
    assert [(at(0), False, True), (at(1), True, True)] == [
        (held.copy.version, held.current, held.pending) for held in store.history("a")
    ]


def test_pending_is_read_in_order_and_in_parts(store: LocalStore) -> None:
    store.write([copy_of(entity(f"e{n}", at(n))) for n in range(5)])

    first = store.pending(limit=2)
    rest = store.pending(after_n=first[-1].n)

    assert ["e0", "e1", "e2", "e3", "e4"] == [item.copy.id for item in first + rest]


@given(st.lists(st.integers(min_value=-(2**40), max_value=2**51), min_size=1, max_size=30))
def test_versions_rise_whatever_the_clock_does(clock: list[int]) -> None:
    store = LocalStore(":memory:")
    times = [edit_time(store.mint(now, "ann")) for now in clock]
    versions = [store.mint(now, "ann") for now in clock]
    store.close()

    assert sorted(set(versions)) == versions
    assert None not in times


def test_versions_rise_across_a_restart_and_past_the_last_counter(tmp_path: Path) -> None:
    first = LocalStore(tmp_path / "home.db")
    before = first.mint(NOW, "ann")
    first.keep(minted=f"{NOW}:999999")
    first.close()
    again = LocalStore(tmp_path / "home.db")
    after = again.mint(NOW - 10, "ann")
    again.close()

    assert before < after
    assert edit_time(after) == NOW + 1


def test_a_transaction_inside_another_is_part_of_it(store: LocalStore) -> None:
    def both() -> None:
        with store.transaction():
            store.write([copy_of(entity("a", at(0)))])
            store.keep(url="x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        both()

    assert (None, None, 0) == (seen(store, "a"), store.setting("url"), store.counts().rows)


def test_what_is_given_up_is_not_sent_and_its_number_is_not_used_again(store: LocalStore) -> None:
    store.write([copy_of(entity("a", at(0)))])
    (first,) = store.pending()
    store.annotate({first.n: Refused(id="a", version=at(0), code="too_large", pointer="", detail="")})

    assert 1 == store.give_up("a")
    assert (None, [], 1) == (seen(store, "a"), store.pending(), store.counts().rows)

    store.write([copy_of(entity("a", at(1)))])
    assert first.n < store.pending()[0].n
    assert 0 == store.give_up("a")


# --- answers ------------------------------------------------------------------------------------------------------


def test_a_pulled_row_never_hides_a_pending_one(store: LocalStore) -> None:
    store.write([copy_of(entity("a", at(1), name="mine"))])

    take(store, told(entity("a", at(5), name="theirs"), cursor="e:1:" + "0" * 32))

    copy = store.get("a")
    assert copy is not None
    assert "mine" == copy.name
    assert [at(1)] == [item.copy.version for item in store.pending()]


def test_an_ack_clears_the_version_it_names_and_no_other(store: LocalStore) -> None:
    store.write([copy_of(entity("a", at(0)))])
    sent = tuple(store.pending())
    store.write([copy_of(entity("a", at(1), parent_versions=(at(0),)))])  # while the message is under way
    ack = Ack(kind="entity", id="a", version=at(0), outcome="applied", head=at(0))

    take(store, told(acks=(ack,)), sent)

    assert [at(1)] == [item.copy.version for item in store.pending()]
    assert at(1) == seen(store, "a")


def test_an_edit_between_reading_and_applying_stays_visible(store: LocalStore) -> None:
    store.write([copy_of(entity("a", at(0)))])
    sent = tuple(store.pending())
    answer = told(acks=(Ack(kind="entity", id="a", version=at(0), outcome="applied", head=at(0)),))
    absorbed = absorb(answer, sent, STATE, store.local(*mentions(answer, sent)))
    store.write([copy_of(entity("a", at(1), parent_versions=(at(0),)))])

    store.apply(absorbed, now=NOW)

    assert at(1) == seen(store, "a")


def test_other_content_under_a_pending_version_does_not_overwrite_it(store: LocalStore) -> None:
    store.write([copy_of(entity("a", at(0), name="mine"))])

    take(store, told(entity("a", at(0), name="forged")))

    mine = store.get("a")
    assert mine is not None
    assert ("mine", "mine") == (mine.name, store.pending()[0].copy.name)
    lost = Ack(kind="entity", id="a", version=at(0), outcome="lost_kept", head=at(0))
    take(store, told(entity("a", at(0), name="forged"), acks=(lost,)), tuple(store.pending()))
    theirs = store.get("a")
    assert theirs is not None
    assert ("forged", 0) == (theirs.name, store.counts().pending)
    assert {"mine", "forged"} == {held.copy.name for held in store.history("a")}


def test_a_refusal_is_kept_with_its_mark(store: LocalStore) -> None:
    store.write([copy_of(entity("a", at(0)))])
    why = Refused(id="a", version=at(0), code="too_large", pointer="/changes/0", detail="a row of 9 bytes")

    take(store, told(acks=(), refused=(why,)), tuple(store.pending()))

    assert [why] == [item.note for item in store.pending()]


def test_a_conflict_told_twice_is_one(store: LocalStore) -> None:
    conflict = Conflict(
        entity_id="a", local_version="v1", remote_version="v2", resolution_strategy="newer", resolved_version="v2"
    )
    store.write([copy_of(entity("a", "v2", name="Lamp"))])

    take(store, told(conflicts=(conflict,)))
    take(store, told(conflicts=(conflict,)))

    (record,) = store.conflicts()
    assert ("Lamp", "v2", ("v1",), "newer", NOW) == (
        record.name,
        record.winner,
        record.losers,
        record.strategy,
        record.when,
    )


def test_a_delete_of_what_never_was_leaves_nothing(store: LocalStore) -> None:
    store.write([copy_of(entity("a", at(0), {"deleted": True}))])
    sent = tuple(store.pending())

    take(store, told(acks=(Ack(kind="entity", id="a", version=at(0), outcome="noop_delete"),)), sent)

    assert (None, 0) == (seen(store, "a"), store.counts().pending)


def everything(store: LocalStore) -> list[Any]:
    tables = ("meta", "copies", "pointers", "pending", "conflicts")
    return [store._db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]


def test_rows_marks_and_cursor_are_applied_together_or_not_at_all() -> None:
    """Interrupted at every step of the way, an answer leaves what was before or what is after, and nothing between."""
    answer = told(
        *(entity(f"e{n}", at(n)) for n in range(20)),
        acks=(Ack(kind="entity", id="a", version=at(0), outcome="applied", head=at(0)),),
        conflicts=(
            Conflict(
                entity_id="a", local_version="x", remote_version=at(0), resolution_strategy="r", resolved_version="x"
            ),
        ),
        cursor="e:21:" + "0" * 32,
    )
    interrupted = 0
    for steps in range(5, 100_000, 37):
        store = LocalStore(":memory:")
        store.put_state(STATE)
        store.write([copy_of(entity("a", at(0)))])
        sent = tuple(store.pending())
        absorbed = absorb(answer, sent, STATE, store.local(*mentions(answer, sent)))
        before = everything(store)
        left = iter([0] * (steps // 37))
        store._db.set_progress_handler(lambda left=left: next(left, 1), 37)  # type: ignore[misc]
        try:
            store.apply(absorbed, now=NOW)
        except StoreError:
            store._db.set_progress_handler(None, 0)
            interrupted += 1
            assert before == everything(store)
            store.close()
            continue
        store._db.set_progress_handler(None, 0)
        state = store.state()
        assert state is not None
        assert answer.cursor == state.cursor
        assert 21 == store.counts().rows
        store.close()
        break

    assert interrupted > 20


def test_marks_are_cleared_by_their_number(store: LocalStore) -> None:
    plan = store._db.execute("EXPLAIN QUERY PLAN DELETE FROM pending WHERE n = ?", (1,)).fetchall()

    assert "INTEGER PRIMARY KEY" in plan[0][3]


@given(st.data())
def test_what_is_seen_and_the_digest_follow_from_pointers_and_marks(data: st.DataObject) -> None:
    """Whatever comes in whatever order: `ours` is the newest mark, and the digest is the sum of all `theirs`."""
    store = LocalStore(":memory:")
    store.put_state(STATE)
    ids = st.sampled_from(["a", "b", "c"])
    for step in range(data.draw(st.integers(1, 12))):
        id_ = data.draw(ids)
        action = data.draw(st.sampled_from(["edit", "pull", "push", "restart", "offer"]))
        if action == "edit":
            before = seen(store, id_)
            store.write([copy_of(entity(id_, at(step), parent_versions=() if before is None else (before,)))])
        elif action == "pull":
            take(store, told(entity(id_, at(step, "bob")), cursor=f"e:{step}:" + "0" * 32, more=True))
        elif action == "push":
            sent = tuple(store.pending())
            done = data.draw(st.sets(st.sampled_from(sent))) if sent else set()
            acks = tuple(
                Ack(
                    kind="entity", id=item.copy.id, version=item.copy.version, outcome="applied", head=item.copy.version
                )
                for item in done
            )
            take(store, told(acks=acks, more=True), sent)
        elif action == "restart":
            state = store.state()
            assert state is not None
            store.put_state(restart(state))
        else:
            store.offer_again()
        total = sum(
            int.from_bytes(hash_, "big")
            for (hash_,) in store._db.execute("SELECT theirs_hash FROM pointers WHERE theirs NOTNULL")
        )
        assert total % 2**256 == store.digest()
        marks = store._db.execute("SELECT kind, id, version, hash FROM pending WHERE NOT quiet ORDER BY n").fetchall()
        newest = {(kind, id_): (version, hash_) for kind, id_, version, hash_ in marks}
        ours = store._db.execute("SELECT kind, id, ours, ours_hash FROM pointers WHERE ours NOTNULL").fetchall()
        assert newest == {(kind, id_): (version, hash_) for kind, id_, version, hash_ in ours}
    store.close()


# --- starting anew ------------------------------------------------------------------------------------------------


def started_anew(store: LocalStore) -> None:
    state = store.state()
    assert state is not None
    store.put_state(restart(state))


def offered(store: LocalStore) -> list[tuple[str, str]]:
    return [(item.copy.id, item.copy.version) for item in store.pending()]


def test_what_is_not_told_again_is_offered_with_what_it_descends_from(store: LocalStore) -> None:
    take(store, told(entity("a", "v1")))
    take(store, told(entity("a", "v2", parent_versions=("v1",)), entity("b", "v1")))
    take(store, told(entity("a", "v3", parent_versions=("v2",))))
    started_anew(store)
    take(store, told(entity("b", "v1"), more=True))

    assert 3 == store.offer_again()

    assert [("a", "v1"), ("a", "v2"), ("a", "v3")] == offered(store)
    assert copy_of(entity("b", "v1")).hash == store.digest().to_bytes(32, "big")
    assert "v3" == seen(store, "a")
    state = store.state()
    assert state is not None
    assert not state.restarting


def test_a_server_set_back_to_an_older_row_is_offered_the_newer_ones(store: LocalStore) -> None:
    take(store, told(entity("a", "v1")))
    take(store, told(entity("a", "v2", parent_versions=("v1",))))
    take(store, told(entity("a", "v3", parent_versions=("v2",))))
    started_anew(store)
    take(store, told(entity("a", "v1"), more=True))
    store.offer_again()

    assert [("a", "v2"), ("a", "v3")] == offered(store)


def test_a_server_that_moved_on_is_offered_nothing(store: LocalStore) -> None:
    take(store, told(entity("a", "v1")))
    started_anew(store)
    take(store, told(entity("a", "v2", parent_versions=("v1",)), more=True))

    assert 0 == store.offer_again()


def test_an_edge_is_offered_with_the_rows_at_its_ends(store: LocalStore) -> None:
    lamp, room = entity("lamp", "v1"), entity("room", "v1", entity_type="room")
    take(store, told(lamp, room, edge("e", lamp, room)))
    take(store, told(entity("lamp", "v2", parent_versions=("v1",))))
    started_anew(store)
    take(store, told(room, entity("lamp", "v2", parent_versions=("v1",)), more=True))
    store.offer_again()

    assert [("lamp", "v1"), ("room", "v1")] == sorted(offered(store)[:2])
    assert [("e", "v1")] == offered(store)[2:]
    assert "v2" == seen(store, "lamp")  # an older row is sent along, and not shown


def test_a_row_made_here_that_lost_is_offered_and_not_shown(store: LocalStore) -> None:
    take(store, told(entity("a", "v1")))
    store.write([copy_of(entity("a", "v2", parent_versions=("v1",)))])
    lost = Ack(kind="entity", id="a", version="v2", outcome="lost_kept", head="w2")
    take(store, told(entity("a", "w2", parent_versions=("v1",)), acks=(lost,)), tuple(store.pending()))
    store.write([copy_of(entity("a", "v3", {"deleted": True}, parent_versions=("v1",)))])
    lost = Ack(kind="entity", id="a", version="v3", outcome="lost_kept", head="w2")
    take(store, told(acks=(lost,)), tuple(store.pending()))
    started_anew(store)
    take(store, told(entity("a", "w2", parent_versions=("v1",)), more=True))
    store.offer_again()

    assert [("a", "v2")] == offered(store)
    assert "w2" == seen(store, "a")
    take(store, told(entity("a", "w3", parent_versions=("w2",))))
    assert "w3" == seen(store, "a")
    done = Ack(kind="entity", id="a", version="v2", outcome="dup", head="w3")
    take(store, told(acks=(done,)), tuple(store.pending()))
    assert ("w3", []) == (seen(store, "a"), store.pending())


def test_what_waited_before_goes_after_what_it_descends_from(store: LocalStore) -> None:
    take(store, told(entity("a", "v1")))
    store.write([copy_of(entity("a", "v2", parent_versions=("v1",)))])
    started_anew(store)
    store.offer_again()

    assert [("a", "v1"), ("a", "v2")] == offered(store)
    assert "v2" == seen(store, "a")


def test_lines_that_meet_are_offered_parents_first(store: LocalStore) -> None:
    rows = {
        "v1": (),
        "v2": ("v1",),
        "v3": ("v1",),
        "v4": ("v2", "v3"),
        "v5": ("v4", "v2"),
    }
    for version, parents in rows.items():
        take(store, told(entity("a", version, parent_versions=parents)))
    started_anew(store)
    store.offer_again()

    order = [version for _, version in offered(store)]
    assert sorted(rows) == sorted(order)
    assert all(order.index(parent) < order.index(version) for version in rows for parent in rows[version])


def test_a_second_restart_before_the_end_of_the_first_forgets_nothing(store: LocalStore) -> None:
    take(store, told(entity("a", "v1"), entity("b", "w1")))
    take(store, told(entity("a", "v2", parent_versions=("v1",))))
    started_anew(store)
    take(store, told(entity("a", "v1"), more=True))
    started_anew(store)
    take(store, told(entity("b", "w1"), more=True))
    store.offer_again()

    assert {("a", "v1"), ("a", "v2")} == set(offered(store))
    assert "v2" == seen(store, "a")


def test_nothing_is_offered_outside_of_a_restart(store: LocalStore) -> None:
    take(store, told(entity("a", "v1")))

    assert 0 == store.offer_again()


# --- reads --------------------------------------------------------------------------------------------------------


def test_an_edge_to_a_tombstone_is_hidden_and_comes_back_with_it(store: LocalStore) -> None:
    lamp, room = entity("lamp", "v1"), entity("room", "v1")
    store.write([copy_of(lamp), copy_of(room), copy_of(edge("e", lamp, room))])
    assert ["e"] == [copy.id for copy in store.links("room")]

    store.write([copy_of(entity("room", "v2", {"deleted": True}))])
    assert [] == store.links("lamp") == store.links()
    assert ["e"] == [copy.id for copy in store.links("lamp", deleted=True)]

    store.write([copy_of(entity("room", "v3"))])
    assert ["e"] == [copy.id for copy in store.links("lamp")]


def test_a_re_pointed_edge_is_found_where_it_points_now(store: LocalStore) -> None:
    lamp, hall, kitchen = entity("lamp", "v1"), entity("hall", "v1"), entity("kitchen", "v1")
    store.write([copy_of(one) for one in (lamp, hall, kitchen, edge("e", lamp, hall))])
    store.write([copy_of(edge("e", lamp, kitchen, version="v2"))])

    assert ([], ["e"]) == ([copy.id for copy in store.links("hall")], [copy.id for copy in store.links("kitchen")])


def test_a_text_means_an_id_a_name_or_the_beginning_of_an_id(store: LocalStore) -> None:
    store.write(
        [
            copy_of(entity("0abc-1", "v1", name="Lamp")),
            copy_of(entity("0abc-2", "v1", name="Lamp post")),
            copy_of(entity("1def", "v1", name="STRASSE")),
            copy_of(entity("gone", "v1", {"deleted": True}, name="Gone")),
        ]
    )

    def meant(text: str) -> list[str]:
        return [copy.id for copy in store.resolve(text)]

    assert ["0abc-1"] == meant("0ABC-1")
    assert ["0abc-1"] == meant("lamp")
    assert ["0abc-1", "0abc-2"] == meant("0a")
    assert ["1def"] == meant("1D")
    assert ["1def"] == meant("straße")
    assert ["0abc-2"] == meant("post")
    assert ["gone"] == meant("gone")
    assert [] == meant("nothing") == meant("")


def test_find_filters_by_name_type_and_life(store: LocalStore) -> None:
    store.write(
        [
            copy_of(entity("a", "v1", name="Lamp 100%")),
            copy_of(entity("b", "v1", name="Room", entity_type="room")),
            copy_of(entity("c", "v1", {"deleted": 1}, name="Old lamp")),
        ]
    )

    assert ["a"] == [copy.id for copy in store.find("LAMP")]
    assert ["a"] == [copy.id for copy in store.find("%")]
    assert ["a", "c"] == sorted(copy.id for copy in store.find("lamp", deleted=True))
    assert ["b"] == [copy.id for copy in store.find(entity_type="ROOM")]
    assert ["a", "b"] == [copy.id for copy in store.find()]


def test_counts_say_how_much_there_is(store: LocalStore) -> None:
    lamp, room = entity("lamp", "v1"), entity("room", "v1")
    store.write([copy_of(lamp), copy_of(room), copy_of(edge("e", lamp, room))])
    store.write([copy_of(entity("room", "v2", {"deleted": True}))])
    counts = store.counts()

    assert (1, 1, 1, 4, 4) == (counts.entities, counts.relationships, counts.tombstones, counts.rows, counts.pending)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_any_text_that_a_peer_can_send_is_kept_to_the_letter(id_: str, version: str, name: str) -> None:
    store = LocalStore(":memory:")
    store.put_state(STATE)
    row = entity(id_, version, name=name)
    take(store, told(row))
    copy = store.get(id_)
    store.close()

    assert copy_of(row) == copy


# --- several at once ----------------------------------------------------------------------------------------------


def test_two_open_stores_see_one_another(tmp_path: Path) -> None:
    one, other = LocalStore(tmp_path / "home.db"), LocalStore(tmp_path / "home.db")
    one.write([copy_of(entity("a", one.mint(NOW, "ann")))])
    other.write([copy_of(entity("b", other.mint(NOW, "ann")))])

    assert ["a", "b"] == [item.copy.id for item in one.pending()] == [item.copy.id for item in other.pending()]
    assert 2 == len({item.copy.version for item in one.pending()})
    one.close()
    other.close()


def test_a_writer_that_waits_for_too_long_is_told_so(tmp_path: Path) -> None:
    one, other = LocalStore(tmp_path / "home.db"), LocalStore(tmp_path / "home.db")
    other._db.execute("PRAGMA busy_timeout = 1")

    with one.transaction(), pytest.raises(StoreBusy, match="another process holds it"):
        other.write([copy_of(entity("a", "v1"))])

    other.write([copy_of(entity("a", "v1"))])
    one.close()
    other.close()


WRITER = """
import sys
from blowing_off.store import LocalStore
from inbetweenies.replica import copy_of
from tests.support import entity
store = LocalStore(sys.argv[1])
for n in range(20):
    with store.transaction():
        store.write([copy_of(entity(f"{sys.argv[2]}{n}", store.mint(1, "ann")))])
store.close()
"""


def test_a_store_that_another_process_is_just_making_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "home.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    real = sqlite3.connect

    class Slow(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            done = super().execute(sql, *parameters)
            if sql == "PRAGMA application_id" and sqlite3.connect is not real:
                monkeypatch.setattr(sqlite3, "connect", real)
                LocalStore(path).close()
            return done

    monkeypatch.setattr(sqlite3, "connect", Slow)
    store = LocalStore(path)
    store.write([copy_of(entity("a", "v1"))])

    assert ["a"] == [item.copy.id for item in store.pending()]
    store.close()


def test_a_store_waits_for_another_that_changes_to_a_wal_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    told: list[sqlite3.OperationalError] = [busy]

    class Racing(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql == "PRAGMA journal_mode = WAL" and told:
                raise told.pop()
            return super().execute(sql, *parameters)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **named: real(*args, **named, factory=Racing))
    store = LocalStore(tmp_path / "home.db")
    store.close()
    with closing(real(tmp_path / "home.db")) as db:
        assert ([], ("wal",)) == (told, db.execute("PRAGMA journal_mode").fetchone())


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "home.db")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name], cwd=ROOT) for name in "ab"]

    assert [0, 0] == [writer.wait(60) for writer in writers]

    store = LocalStore(path)
    waiting = store.pending()
    store.close()
    assert 40 == len({item.copy.id for item in waiting}) == len({item.copy.version for item in waiting})


VISITOR = """
import sys
from blowing_off.store import LocalStore, SyncRunning
from inbetweenies.replica import copy_of
from tests.support import entity
store = LocalStore(sys.argv[1])
store.write([copy_of(entity(sys.argv[2], store.mint(1, "ann")))])
try:
    with store.syncing():
        print("may sync")
except SyncRunning:
    print("may not sync")
store.close()
"""


def visit(path: Path, id_: str) -> str:
    """Another process opens the store, edits, tries to sync, and closes it as if it were the last one."""
    command = [sys.executable, "-c", VISITOR, str(path), id_]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_store_that_is_opened_twice_by_one_process_is_still_held_against_others(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    one = LocalStore(path)
    one.write([copy_of(entity("a", one.mint(NOW, "ann")))])
    LocalStore(path).close()

    assert "may sync\n" == visit(path, "b")

    # Had it taken itself for the last one, this would go into a log that is no longer there.
    one.write([copy_of(entity("c", one.mint(NOW, "ann")))])
    visit(path, "d")
    again = LocalStore(path)
    waiting = [item.copy.id for item in again.pending()]
    again.close()
    one.close()

    assert ["a", "b", "c", "d"] == waiting


def test_a_sync_that_was_refused_here_does_not_let_another_process_sync(tmp_path: Path) -> None:
    path = tmp_path / "home.db"
    one, other = LocalStore(path), LocalStore(path)
    with one.syncing():
        with pytest.raises(SyncRunning), other.syncing():
            pass

        assert "may not sync\n" == visit(path, "a")
    one.close()
    other.close()


def test_only_one_sync_at_a_time(tmp_path: Path) -> None:
    one, other = LocalStore(tmp_path / "home.db"), LocalStore(tmp_path / "home.db")
    with one.syncing():
        with pytest.raises(SyncRunning, match="another sync is under way"), other.syncing():
            pass
        with pytest.raises(SyncRunning), one.syncing():
            pass
        other.write([copy_of(entity("a", "v1"))])  # but edits go on
    with other.syncing():
        pass
    one.close()
    other.close()


def test_only_one_sync_at_a_time_in_memory(store: LocalStore) -> None:
    with store.syncing(), pytest.raises(SyncRunning), store.syncing():
        pass
    with store.syncing():
        pass


SYNCER = """
import sys
from blowing_off.store import LocalStore
with LocalStore(sys.argv[1]).syncing():
    print("syncing", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_dies_gives_its_right_to_sync_back(tmp_path: Path) -> None:
    path = str(tmp_path / "home.db")
    child = subprocess.Popen(
        [sys.executable, "-c", SYNCER, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert "syncing\n" == child.stdout.readline()
    store = LocalStore(path)
    with pytest.raises(SyncRunning), store.syncing():
        pass

    child.kill()
    child.wait(60)
    child.stdin.close()
    child.stdout.close()

    with store.syncing():
        pass
    store.close()


def test_the_store_keeps_no_more_than_it_is_told() -> None:
    """`apply` of nothing changes nothing but the state."""
    store = LocalStore(":memory:")
    store.put_state(STATE)
    before = everything(store)[1:]
    store.apply(Absorbed(state=replace(STATE, cursor="e:1:" + "0" * 32)), now=NOW)
    after = everything(store)[1:]
    store.close()

    assert before == after


def test_local_answers_only_for_what_is_here(store: LocalStore) -> None:
    take(store, told(entity("a", "v1")))
    copy = copy_of(entity("a", "v1"))
    keys: list[Any] = [("entity", "a"), ("entity", "b")]
    rows: list[Any] = [("entity", "a", "v1"), ("entity", "a", "v2")]

    assert Local(
        pointers={("entity", "a"): Pointer(theirs="v1", theirs_hash=copy.hash)},
        known={("entity", "a", "v1"): copy.hash},
    ) == store.local(keys, rows)
