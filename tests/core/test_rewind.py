"""The server's rules for a log that was set back (PROTOCOL 4.10 to 4.16), and what both sides agree on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies import engine, exchange, rewind
from inbetweenies.errors import RemoteProtocolError
from inbetweenies.model import (
    Change,
    Cursor,
    Entity,
    Event,
    Head,
    Pushes,
    Reads,
    Relationship,
    SyncRequest,
    SyncResponse,
    body_of,
    row_hash,
)
from inbetweenies.stores import EVENTS_MAX
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.stores.sqlite import SqliteStore
from tests.support import NOW, SECOND, Server, at, edge, entity, run

FEATURES = frozenset({"acks", "digest", "edges", "paging", "witness"})
LAMP = entity("lamp", at(0), {"on": False})
ROOM = entity("room", at(0), entity_type="room")


def after(before: Entity, second: float, user: str = "ann", **fields: Any) -> Entity:
    """The next row of an entity."""
    return replace(before, version=at(second, user), parent_versions=(before.version,), user_id=user, **fields)


def lamp(second: float, before: Entity = LAMP, **content: int) -> Entity:
    return after(before, second, content=entity("x", "v", content).content)


class Lab(Server):
    """A server that can be set back, and a peer with a witness that talks to it."""

    def say(self, **fields: Any) -> SyncResponse:
        self.now += SECOND
        return self.ask(SyncRequest(device="peer", user="ann", **({"features": FEATURES} | fields)))

    def write(self, *items: Entity | Relationship) -> Cursor:
        """Somebody else writes; the head afterwards."""
        self.now += SECOND
        return self.push(*items).head.cursor

    def backup(self) -> MemoryStore:
        assert isinstance(self.store, MemoryStore)
        return self.store.copy()

    def offer(self, *items: Entity | Relationship, aside: bool = False, **fields: Any) -> SyncResponse:
        changes = []
        for item in items:
            kind: Any = "entity" if isinstance(item, Entity) else "edge"
            named = frozenset({(kind, item.id)} if aside else ())
            one = (
                Change(entity=item, aside=named, offered=True)
                if isinstance(item, Entity)
                else Change(relationships=(item,), aside=named, offered=True)
            )
            changes.append(one)
        return self.say(changes=tuple(changes), **fields)

    @property
    def events(self) -> list[Event]:
        return list(self.held(Reads(events=True)).events)

    @property
    def head(self) -> Head:
        return self.held(Reads()).head


@pytest.fixture
def lab() -> Lab:
    lab = Lab()
    lab.write(LAMP, ROOM)
    return lab


# --- noticing -----------------------------------------------------------------------------------------------------


def test_a_witness_that_is_of_the_log_changes_nothing(lab: Lab) -> None:
    head = lab.head
    answer = lab.say(cursor=head.cursor, witness=head.cursor)

    assert (False, (), head, []) == (answer.resync, answer.rows, lab.head, lab.events)


def test_a_server_that_is_behind_its_peer_is_noticed(lab: Lab) -> None:
    backup = lab.backup()
    witness = lab.write(lamp(1))
    lab.store = backup
    before = lab.head
    answer = lab.say(cursor=witness)

    assert (True, True, ()) == (answer.resync, answer.more, answer.rows)
    assert before.epoch != lab.head.epoch
    assert (before.seq, before.chain, before.digest) == (lab.head.seq, lab.head.chain, lab.head.digest)
    [fork] = lab.events
    assert ("fork", lab.now) == (fork.kind, fork.at)
    assert {
        "epoch": lab.head.epoch,
        "old": before.epoch,
        "seq": 2,
        "chain": before.chain.hex(),
        "witness": str(witness),
        "witness_epoch": before.epoch,
        "by": "peer",
    } == fork.told


def test_a_server_that_was_set_back_and_has_gone_past_its_peer_is_noticed(lab: Lab) -> None:
    # Its epoch is that of the backup, so only the chain tells.
    backup = lab.backup()
    witness = lab.write(lamp(1))
    lab.store = backup
    lab.write(lamp(2), lamp(3), lamp(4))

    assert witness.epoch == lab.head.epoch
    assert witness.seq < lab.head.seq
    assert lab.say(cursor=witness).resync


def test_what_was_acknowledged_counts_though_the_cursor_has_not_got_there(lab: Lab) -> None:
    cursor = lab.head.cursor
    backup = lab.backup()
    witness = lab.write(lamp(1))
    lab.store = backup

    assert not lab.say(cursor=cursor).resync
    assert lab.say(cursor=cursor, witness=witness).resync


def test_a_server_that_was_set_back_twice_is_noticed_twice(lab: Lab) -> None:
    backups = [lab.backup()]
    first = lab.write(lamp(1))
    backups.append(lab.backup())
    second = lab.write(lamp(2))
    for store, witness in ((backups[1], second), (backups[0], first)):
        lab.store = store
        assert lab.say(cursor=witness).resync
        assert [lab.head.epoch] == [event.told["epoch"] for event in lab.events]


def test_another_database_behind_the_same_address_is_noticed(lab: Lab) -> None:
    witness = lab.write(lamp(1))
    lab.store = MemoryStore()
    lab.write(entity("other", at(0)), entity("others", at(0)), entity("more", at(0)))

    assert lab.say(cursor=witness, witness=witness).resync
    assert [witness.epoch] == [event.told["witness_epoch"] for event in lab.events]


def test_a_peer_that_sees_a_part_of_the_graph_is_told_as_well(lab: Lab) -> None:
    backup = lab.backup()
    seen = lab.say(entity_types=frozenset({"room"}), full=True)
    assert [ROOM.version] == [row.version for row in seen.rows]
    lab.write(lamp(1))
    cursor = lab.say(entity_types=frozenset({"room"}), cursor=seen.served).served
    lab.store = backup

    assert lab.say(entity_types=frozenset({"room"}), cursor=cursor).resync


def test_whoever_comes_later_from_the_log_that_is_gone_is_no_news(lab: Lab) -> None:
    backup = lab.backup()
    witnesses = [lab.write(lamp(second)) for second in (1, 2, 3)]
    lab.store = backup
    epochs = []
    for witness in witnesses:
        assert lab.say(cursor=witness).resync
        epochs.append(lab.head.epoch)

    assert 1 == len(set(epochs)) == len(lab.events)
    # But whoever was there after that, and finds it gone again, is.
    lab.write(lamp(4))
    store = lab.backup()
    newer = lab.write(lamp(5))
    lab.store = store
    assert lab.say(cursor=newer).resync
    assert lab.head.epoch not in epochs
    assert 2 == len(lab.events)


def test_an_epoch_that_nobody_here_knows_is_news_once(lab: Lab) -> None:
    stranger = Cursor("ab", 1, bytes(16))
    first, second = lab.say(cursor=stranger), lab.say(witness=stranger)

    assert (True, True) == (first.resync, second.resync)
    assert 1 == len(lab.events)


def test_the_same_arguments_make_the_same_epoch() -> None:
    head = Head(epoch="e", seq=3)

    assert rewind.next_epoch(head, "w", 5) == rewind.next_epoch(head, "w", 5)
    others = [(replace(head, epoch="f"), "w", 5), (replace(head, seq=4), "w", 5), (head, "v", 5), (head, "w", 6)]
    assert 5 == len({rewind.next_epoch(head, "w", 5), *(rewind.next_epoch(*other) for other in others)})


def test_nothing_of_a_request_from_another_log_is_done(lab: Lab) -> None:
    backup = lab.backup()
    witness = lab.write(lamp(1))
    lab.store = backup
    before = lab.head
    answer = lab.say(cursor=witness, changes=(Change(entity=lamp(2, lamp(1))),))

    assert ((), (), ()) == (answer.acks, answer.refused, answer.conflicts)
    assert (before.seq, before.digest) == (lab.head.seq, lab.head.digest)


def test_a_cursor_of_the_log_holds_whatever_epoch_it_names(lab: Lab) -> None:
    cursor = lab.head.cursor
    lab.say(witness=Cursor("ab", 7, bytes(16)))
    lab.write(lamp(1))
    answer = lab.say(cursor=cursor)

    assert cursor.epoch != answer.head.epoch
    assert (False, [at(1)]) == (answer.resync, [row.version for row in answer.rows])


def test_a_peer_without_a_witness_has_only_the_epoch_to_tell_it(lab: Lab) -> None:
    cursor = lab.head.cursor
    lab.say(witness=Cursor("ab", 7, bytes(16)))
    plain = FEATURES - {"witness"}

    assert lab.say(cursor=cursor, features=plain).resync
    assert not lab.say(cursor=lab.head.cursor, features=plain).resync
    assert 1 == len(lab.events)


def test_a_number_that_the_log_has_not_reached_is_of_another_one(lab: Lab) -> None:
    assert lab.say(after=3).resync
    assert not lab.say(after=2).resync
    assert [] == lab.events


def test_a_time_that_the_log_has_not_reached_is_as_none(lab: Lab) -> None:
    head = lab.head
    plain: dict[str, Any] = {"features": frozenset()}

    assert 2 == len(lab.say(since=head.stamp + 1, **plain).rows)
    assert 0 == len(lab.say(since=head.stamp, **plain).rows)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"locate": (Cursor("ab", 0, bytes(16)),) * 65}, "/locate"),
        ({"skip": ((1, 2),) * 1001}, "/skip"),
        ({"want": (1,) * 1001}, "/want"),
        ({"compare": ("00",) * 257}, "/compare"),
        ({"compare": ("", "0")}, "/compare/1"),
        ({"compare": ("AB",)}, "/compare/0"),
        ({"compare": ("00" * 7,)}, "/compare/0"),
        ({"pushes": Pushes(after=("a",) * 65, now="b")}, "/pushes/after"),
        ({"pushes": Pushes(now="b" * 129)}, "/pushes/now"),
    ],
)
def test_more_than_a_peer_may_ask_for_at_once_is_refused(lab: Lab, fields: dict[str, Any], pointer: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        lab.say(**fields)

    assert ("malformed_body", pointer) == (caught.value.code, caught.value.pointer)


# --- what is left -------------------------------------------------------------------------------------------------


def test_the_newest_place_of_both_logs_is_found_and_what_follows_it_listed(lab: Lab) -> None:
    places = [lab.head.cursor, lab.write(lamp(1)), lab.write(lamp(2))]
    backup = lab.backup()
    places.append(lab.write(lamp(3)))
    lab.store = backup
    lab.write(lamp(9), entity("new", at(9)))
    rows = lab.held(Reads(seqs=(5, 6))).seqs
    answer = lab.say(witness=places[3], locate=tuple(reversed(places)))

    assert answer.located is not None
    assert places[2].seq == 4
    assert replace(places[2], epoch=lab.head.epoch) == answer.located.common
    assert [(rewind.short(rows[5].hash), rows[5].current), (rewind.short(rows[6].hash), True)] == rewind.entries(
        answer.located.listing
    )
    assert (lab.head.cursor, False, False) == (answer.served, answer.more, answer.located.discarded)
    assert () == answer.rows


def test_logs_that_share_nothing_share_nothing(lab: Lab) -> None:
    for places in ((), (Cursor("ab", 0, bytes(16)),), (Cursor("ab", 2, bytes(16)),)):
        located = lab.say(locate=places).located

        assert located is not None
        assert (None, 2) == (located.common, len(rewind.entries(located.listing)))


def test_a_long_listing_goes_on_where_it_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewind, "LISTING_ROWS_MAX", 2)
    lab.write(lamp(1), lamp(2), lamp(3))
    hashes = [row.hash for row in lab.held(Reads(seqs=(1, 2, 3, 4, 5))).seqs.values()]
    listed: list[bytes] = []
    places: tuple[Cursor, ...] = ()
    for more in (True, True, False):
        answer = lab.say(locate=places)
        assert answer.located is not None
        assert more == answer.more
        listed += [entry for entry, _ in rewind.entries(answer.located.listing)]
        places = (answer.served,)

    assert [rewind.short(hash_) for hash_ in hashes] == listed
    assert lab.head.cursor == places[0]


@given(st.binary(min_size=8, max_size=32), st.booleans())
def test_a_row_is_told_by_eight_bytes_and_whether_it_is_current_by_the_last_bit(hash_: bytes, current: bool) -> None:
    told = rewind.short(hash_, current)

    assert 8 == len(told)
    assert [(rewind.short(hash_), current)] == rewind.entries(told + b"\0" * 7)
    assert hash_[:7] == told[:7]


def test_what_is_held_already_is_skipped_and_what_is_wanted_is_told(lab: Lab) -> None:
    for second in range(1, 7):
        lab.write(entity(f"e{second}", at(second)))
    start = Cursor(lab.head.epoch, 2, lab.held(Reads(chains=(2,))).chains[2])
    answer = lab.say(cursor=start, skip=((3, 4), (6, 6)))
    assert [5, 7, 8] == [row.seq for row in answer.rows]

    page = lab.say(cursor=start, skip=((3, 4),), page_rows=3)
    assert ([5], True, 5) == ([row.seq for row in page.rows], page.more, page.served.seq)

    wanted = lab.say(cursor=lab.head.cursor, want=(1, 4, 99))
    assert {1, 4} == {row.seq for row in wanted.rows}
    lab.write(lamp(8))
    both = lab.say(cursor=Cursor(lab.head.epoch, 8, lab.held(Reads(chains=(8,))).chains[8]), want=(9, 1))
    assert [9] == [row.seq for row in both.rows]  # the old row of the lamp is not current any more


# --- rows that are offered again ----------------------------------------------------------------------------------


def lost(lab: Lab, *items: Entity | Relationship) -> Cursor:
    """Write these, set the server back to before; the place where the logs part."""
    backup = lab.backup()
    common = lab.head.cursor
    lab.write(*items)
    lab.store = backup
    return common


def test_a_row_comes_back_as_it_was_and_says_who_brought_it(lab: Lab) -> None:
    row = lamp(1, on=1)
    common = lost(lab, row)
    answer = lab.offer(row, common=common)
    stored = lab.held(Reads(entities=("lamp",))).entities["lamp"]

    assert [("lamp", "fast_forward")] == [(ack.id, ack.outcome) for ack in answer.acks]
    assert {("entity", "lamp", row.version): rewind.short(stored.hash, current=True)} == answer.taken
    assert (row, "peer", NOW + SECOND) == (stored.entity(), stored.via, stored.edit)
    [event] = lab.events
    assert ("offer", {"epoch": lab.head.epoch, "by": "peer", "rows": 1}) == (event.kind, event.told)
    # Once more changes nothing, and is no news.
    again = lab.offer(row, common=common)
    assert (["dup"], answer.taken) == ([ack.outcome for ack in again.acks], again.taken)
    assert [event] == lab.events
    lab.offer(lamp(2, row), common=common)
    assert [2] == [event.told["rows"] for event in lab.events]


def test_what_is_kept_to_the_letter_is_told_in_short_and_the_rest_in_full(lab: Lab) -> None:
    """In full means by an ack, which says what is current in its place."""
    first, second = lamp(1, on=1), lamp(2, lamp(1), on=2)
    other = after(ROOM, 1)
    common = lost(lab, first, second, other)
    lab.write(after(ROOM, 900, name="Meanwhile"))
    tie = edge("e", second, ROOM, at(3))
    answer = lab.offer(first, second, other, tie, common=common)
    shorts = [("lamp", first.version, False), ("lamp", second.version, True), ("e", tie.version, True)]

    assert [(id_, version, bool(told[-1] & 1)) for (_, id_, version), told in answer.taken.items()] == shorts
    assert ["room"] == [ack.id for ack in answer.acks if (ack.kind, ack.id, ack.version) not in answer.taken]
    # What comes last of an id is not what is current, if somebody else wrote that.
    alone = lab.offer(first, common=common)
    assert {} == alone.taken
    assert [second.version] == [ack.head for ack in alone.acks]
    # A row of its own is acknowledged in full.
    assert {} == lab.say(changes=(Change(entity=lamp(4, second)),)).taken


def test_what_a_row_took_the_place_of_in_the_lost_log_it_takes_the_place_of_again(lab: Lab) -> None:
    # Its parent was never told to anybody here, and by its clock it is older than what is current.
    row = replace(lamp(-60, on=1), parent_versions=("gone",))
    common = lost(lab, row)
    answer = lab.offer(row, common=common)

    assert (["fast_forward"], ()) == ([ack.outcome for ack in answer.acks], answer.conflicts)
    assert row == lab.current("lamp")


def test_an_old_row_does_not_take_the_place_of_one_that_was_written_since(lab: Lab) -> None:
    row = replace(lamp(1, on=1), parent_versions=())
    common = lost(lab, row)
    newer = lamp(60, on=2)
    lab.write(newer)
    answer = lab.offer(row, common=common)

    assert ["lost_kept"] == [ack.outcome for ack in answer.acks]
    assert newer == lab.current("lamp")
    assert row.version in {row.version for row in lab.held(Reads(history=("lamp",))).history["lamp"]}


@pytest.mark.parametrize("version", ["v-17", "2099-01-01T00:00:00.000000+00:00-000000-ann"])
def test_a_row_without_a_time_of_its_own_is_as_old_as_the_place_where_the_logs_parted(lab: Lab, version: str) -> None:
    row = replace(LAMP, version=version, name="old", parent_versions=())
    common = lost(lab, row)
    stamp = lab.head.stamp
    lab.write(lamp(60, on=2))
    answer = lab.offer(row, common=common)
    [kept] = [one for one in lab.held(Reads(history=("lamp",))).history["lamp"] if one.version == version]

    assert ["lost_kept"] == [ack.outcome for ack in answer.acks]
    assert (stamp, not version.startswith("v")) == (kept.edit, kept.timed)


def test_rows_without_times_that_come_from_two_peers_are_told_apart_by_their_names(lab: Lab) -> None:
    older, newer = (replace(LAMP, version=f"v-{n}", name=str(n), parent_versions=()) for n in (17, 18))
    common = lost(lab, older, newer)
    lab.offer(newer, common=common)
    lab.offer(older, common=common)

    assert "18" == lab.current("lamp").name


def test_a_row_without_a_time_that_comes_to_an_empty_log_is_made_now() -> None:
    lab = Lab()
    lab.offer(replace(LAMP, version="v-17"))

    assert lab.now == lab.held(Reads(entities=("lamp",))).entities["lamp"].edit


def test_a_row_that_did_not_stand_for_its_id_is_only_kept(lab: Lab) -> None:
    loser = lamp(1, on=1)
    common = lost(lab, loser)
    answer = lab.offer(loser, aside=True, common=common)

    assert (["superseded"], (), {}) == ([ack.outcome for ack in answer.acks], answer.conflicts, answer.taken)
    assert LAMP == lab.current("lamp")
    assert ["peer"] == [row.via for row in lab.held(Reads(history=("lamp",))).history["lamp"] if not row.current]


def test_a_row_that_comes_back_before_its_ancestors_is_not_replaced_by_them(lab: Lab) -> None:
    place = lab.write(lamp(1, on=0))
    again = lamp(2, lamp(1, on=0), on=1)  # arrives late, from before the log was set back
    other = lamp(3, again, on=0)
    newest = lamp(4, other, on=1)
    lab.write(again)
    # Its first holder was only told what was current, so that nothing tells here what lies between.
    lab.offer(newest, common=place)
    lab.offer(other, newest, common=place)

    assert newest == lab.current("lamp")


def test_a_row_that_comes_back_and_says_what_is_there_already_is_no_newer_for_it(lab: Lab) -> None:
    place = lab.write(lamp(1, on=0))
    now = lamp(5, lamp(1, on=0), on=1)
    lab.write(now)
    lab.offer(lamp(4, lamp(3, on=0), on=1), common=place)

    assert now == lab.current("lamp")


def test_what_lost_before_the_rows_it_descends_from_came_back_stands_again(lab: Lab) -> None:
    place = lab.write(lamp(9, on=9))
    one = lamp(1, on=1)
    newest = lamp(2, one, on=2)
    lab.write(newest)  # comes late, from whoever was told it before the log was set back
    assert newest != lab.current("lamp")
    for _ in range(2):
        lab.offer(one, newest, common=place)

    now = lab.current("lamp")
    assert (newest.content, newest.parent_versions) == (now.content, now.parent_versions)
    assert now.version.startswith(f"{newest.version}#")
    assert 5 == len(lab.held(Reads(history=("lamp",))).history["lamp"])


def test_what_follows_a_row_follows_the_one_in_which_it_stands_again(lab: Lab) -> None:
    place = lab.write(lamp(9, on=9))
    one = lamp(1, on=1)
    newest = lamp(2, one, on=2)
    lab.write(newest)
    lab.offer(one, newest, common=place)
    rows = {row.version: row for row in lab.held(Reads(history=("lamp",))).history["lamp"]}
    again = lab.current("lamp").version
    twice = engine.beside(again, rows[again].hash)
    named = {
        name: engine.stands_in(name, {newest.version}, rows) for name in (again, twice, "odd", "odd#1", f"{again}1")
    }
    edit = lamp(3, newest, on=3)
    outcome = lab.push(edit).acks[0].outcome

    assert [True, True, False, False, False] == list(named.values())
    assert ("fast_forward", edit) == (outcome, lab.current("lamp"))


@pytest.mark.parametrize(("offered", "placed"), [(True, True), (True, False), (False, False)])
def test_what_was_pushed_on_top_of_a_row_before_that_came_stands_again(lab: Lab, offered: bool, placed: bool) -> None:
    place = lab.head.cursor
    gone = replace(lamp(-9, deleted=True), version="v-1", parent_versions=())
    back = lamp(-8, gone, on=1)
    newest = lamp(-7, back, on=2)
    lab.offer(lamp(-6, newest, on=3), aside=True)  # lost there, to whatever it was
    lab.push(back)
    lab.push(newest)
    assert LAMP == lab.current("lamp")
    lab.say(changes=(Change(entity=gone, delete=True, offered=offered),), common=place if placed else None)

    now = lab.current("lamp")
    assert (newest.content, newest.parent_versions) == (now.content, now.parent_versions)
    assert now.version.startswith(f"{newest.version}#")


@pytest.mark.parametrize("follows", [True, False])
def test_what_was_pushed_on_top_of_what_only_follows_now_stands_again(lab: Lab, follows: bool) -> None:
    gone = lamp(1, deleted=True)
    lab.push(gone)
    between = lamp(2, gone if follows else LAMP, deleted=True)
    newest = lamp(3, between, deleted=True, colour=1)
    lab.push(newest)
    assert gone == lab.current("lamp")
    for _ in range(2):
        lab.offer(between, aside=True)

    now = lab.current("lamp")
    assert (newest.content if follows else gone.content) == now.content
    assert now.version.startswith(f"{newest.version}#" if follows else gone.version)


def test_what_its_maker_still_waits_to_hear_of_stands_again_though_somebody_else_has_brought_it(lab: Lab) -> None:
    gone = lamp(1, deleted=True)
    back = lamp(2, gone, on=1)
    own = (back, lamp(3, back, on=2))
    lab.offer(*own, aside=True)
    lab.offer(gone)
    assert gone == lab.current("lamp")
    head = lab.head
    deployed = lab.push(*own)
    assert (["dup", "dup"], head) == ([ack.outcome for ack in deployed.acks], lab.head)
    for _ in range(2):
        answer = lab.say(changes=tuple(Change(entity=row) for row in own))

        now = lab.current("lamp")
        assert [("dup", now.version)] * 2 == [(ack.outcome, ack.head) for ack in answer.acks]
        assert (own[-1].content, head.seq + 2) == (now.content, lab.head.seq)


@pytest.mark.parametrize("again", [Lab.offer, Lab.write], ids=["offered", "pushed by anybody"])
def test_what_came_back_as_a_row_that_lost_stands_where_nothing_else_does(again: Callable[[Lab, Entity], Any]) -> None:
    lab = Lab()
    lab.offer(LAMP, aside=True)
    again(lab, LAMP)

    assert LAMP.content == lab.current("lamp").content


def test_what_two_rows_were_merged_into_may_come_back_before_one_of_them(lab: Lab) -> None:
    place, backup = lab.head.cursor, lab.backup()
    one, other = lamp(1, on=1), after(LAMP, 2, "bob", name="Light")
    lab.write(one)
    lab.write(other)
    merged = lab.current("lamp")
    assert merged.merged is True
    lab.store = backup
    lab.write(one)
    lab.offer(merged, aside=True, common=place)
    for _ in range(2):
        lab.offer(other, common=place)

    now = lab.current("lamp")
    assert (merged.name, merged.content, merged.parent_versions) == (now.name, now.content, now.parent_versions)
    assert now.version.startswith(f"{merged.version}#")


def test_a_merge_that_came_back_twice_is_made_under_a_name_of_its_own(lab: Lab) -> None:
    place, backup = lab.head.cursor, lab.backup()
    one, other = lamp(1, on=1), after(LAMP, 2, "bob", name="Light")
    lab.write(one)
    lab.write(other)
    merged = lab.current("lamp")
    lab.store = backup
    again = replace(merged, version=engine.beside(merged.version, row_hash("entity", body_of(merged))))
    lab.write(one)
    lab.offer(merged, aside=True, common=place)
    lab.offer(again, aside=True, common=place)
    for _ in range(2):
        lab.offer(other, common=place)

    now = lab.current("lamp")
    assert (merged.name, merged.content) == (now.name, now.content)
    assert now.version.startswith(f"{again.version}#")


def test_an_edge_whose_entity_only_lost_is_told_to_those_who_can_take_it_alone() -> None:
    lab = Lab()
    link = edge("link", LAMP, ROOM)
    lab.write(ROOM)
    lab.offer(LAMP, aside=True)
    lab.offer(link)

    assert {"room", "link"} == {row.id for row in lab.say(full=True).rows}
    deployed = lab.say(full=True, features=frozenset())
    assert ({"room"}, {}) == ({row.id for row in deployed.rows}, deployed.carriers)
    pieces = lab.say(full=True, features=frozenset(), pieces=True)
    assert {"room"} == {row.id for row in pieces.rows}


def test_a_tombstone_that_was_lost_comes_back(lab: Lab) -> None:
    gone = entity("gone", at(1), {"deleted": True})
    common = lost(lab, gone)
    change = Change(entity=gone, delete=True, offered=True)
    answer = lab.say(changes=(change,), common=common)

    assert ["applied"] == [ack.outcome for ack in answer.acks]
    assert gone == lab.current("gone")
    # Else it deletes what was never there.
    plain = lab.say(changes=(Change(entity=entity("never", at(1), {"deleted": True}), delete=True),))
    assert ["noop_delete"] == [ack.outcome for ack in plain.acks]


def test_an_edge_that_comes_back_does_not_take_the_place_of_a_value_that_was_written_since(lab: Lab) -> None:
    lost_value = edge("e", LAMP, ROOM, at(1), properties={"n": 1})
    since = edge("e", LAMP, ROOM, at(2), properties={"n": 2})
    common = lost(lab, lost_value)
    lab.write(since)
    answer = lab.offer(lost_value, common=common)
    rows = lab.held(Reads(edges=("e",), edge_history=("e",)))

    assert ["superseded"] == [ack.outcome for ack in answer.acks]
    assert since == rows.edges["e"].relationship()
    assert {lost_value.version: "peer", since.version: ""} == {row.version: row.via for row in rows.edge_history["e"]}


def test_an_edge_that_was_written_later_than_what_is_there_now_takes_its_place(lab: Lab) -> None:
    lost_value = edge("e", LAMP, ROOM, at(9), properties={"n": 1})
    common = lost(lab, lost_value)
    lab.write(edge("e", LAMP, ROOM, at(2), properties={"n": 2}))
    answer = lab.offer(lost_value, common=common)

    assert ["applied"] == [ack.outcome for ack in answer.acks]
    assert lost_value == lab.held(Reads(edges=("e",))).edges["e"].relationship()


def test_an_edge_takes_the_place_again_of_what_it_followed_whatever_its_clock_said(lab: Lab) -> None:
    lab.write(edge("e", LAMP, ROOM, at(9)))
    lost_value = edge("e", LAMP, ROOM, "h-without-a-time", properties={"n": 1})
    common = lost(lab, lost_value)
    lab.offer(lost_value, common=common)

    assert lost_value == lab.held(Reads(edges=("e",))).edges["e"].relationship()


def test_an_edge_comes_back_between_things_of_which_the_rows_that_it_names_are_gone(lab: Lab) -> None:
    """Nobody was told of `gone`: what follows it had taken its place before anybody asked."""
    gone = lamp(1, on=1)
    lost_value = edge("e", gone, ROOM, at(2), properties={"n": 1})
    common = lost(lab, gone, lost_value)
    plain = lab.say(changes=(Change(relationships=(lost_value,)),))
    nowhere = lab.offer(edge("f", entity("never", at(1)), ROOM, at(2)), common=common)
    answer = lab.offer(lost_value, common=common)

    assert ["unknown_endpoint"] * 2 == [item.code for item in (*plain.refused, *nowhere.refused)]
    assert ["applied"] == [ack.outcome for ack in answer.acks]
    assert lost_value == lab.held(Reads(edges=("e",))).edges["e"].relationship()
    assert LAMP == lab.current("lamp")


def test_a_place_that_is_not_of_the_log_says_nothing_about_what_was_lost(lab: Lab) -> None:
    row = replace(lamp(-60, on=1), parent_versions=("gone",))
    common = lost(lab, row)
    outcomes = [
        lab.offer(row, common=wrong).acks[0].outcome
        for wrong in (replace(common, chain=bytes(16)), replace(common, seq=99), None)
    ]

    assert ["lost_kept", "dup", "dup"] == outcomes
    assert LAMP == lab.current("lamp")


# --- taken back on purpose ----------------------------------------------------------------------------------------


def test_what_was_taken_back_on_purpose_is_told_to_stay_away(lab: Lab) -> None:
    common = lab.head.cursor
    backup = lab.backup()
    witness = lab.write(lamp(1))
    lab.store = backup
    old = lab.head.epoch

    async def discard() -> Event:
        async with lab.store.transaction("default", write=True) as tx:
            return await exchange.run(rewind.discard(5, ("f0",)), tx)

    event = run(discard())
    assert [event] == lab.events
    assert ("discard", lab.head.epoch) == (event.kind, event.told["epoch"])
    assert {old, "f0"} == set(str(event.told["epochs"]).split())
    first = lab.say(cursor=witness)
    answer = lab.say(witness=witness, locate=(witness, common))
    assert (True, 1) == (first.resync, len(lab.events))
    assert answer.located is not None
    assert (2, True) == (answer.located.common.seq if answer.located.common else 0, answer.located.discarded)
    other = lab.say(witness=replace(witness, epoch="f0"), locate=()).located
    assert other is not None
    assert other.discarded
    # What is lost after that is lost by accident.
    store = lab.backup()
    later = lab.write(lamp(3))
    lab.store = store
    again = lab.say(witness=later, locate=(later, common)).located
    assert again is not None
    assert not again.discarded


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_what_was_taken_back_stays_away_however_often_that_happens_again(tmp_path: Path, kind: str) -> None:
    store = MemoryStore() if kind == "memory" else SqliteStore(tmp_path / "home.db", journal=False, heads=False)
    lab = Lab(store)
    lab.write(LAMP, ROOM)
    witness = replace(lab.head.cursor, seq=9)
    for _ in range(EVENTS_MAX + 1):
        run(store.discard_after("default"))
    located = lab.say(witness=witness, locate=(witness,)).located

    assert ["discard"] * EVENTS_MAX == [event.kind for event in lab.events]
    assert located is not None
    assert located.discarded
    run(store.close())


# --- parts --------------------------------------------------------------------------------------------------------


def rows_of(lab: Lab) -> list[tuple[str, int, bytes]]:
    lines = [row for row in lab.held(Reads(seqs=tuple(range(1, lab.head.seq + 1)))).seqs.values() if row.current]
    return [(rewind.place_of(row.kind, row.id), row.seq, row.hash) for row in lines]


def test_a_small_part_is_told_row_by_row_and_a_large_one_in_sums(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewind, "LINES_AT_ONCE", 7)
    for start in (0, 64):
        lab.write(*(entity(f"e{number}", at(1)) for number in range(start, start + 64)))
    lab.write(*(replace(entity(f"e{number}", at(2)), parent_versions=(at(1),)) for number in range(20)))
    rows = rows_of(lab)
    place = rows[0][0][:2]
    answer = lab.say(cursor=lab.head.cursor, compare=("", place, "ffffffff"))

    assert answer.parts is not None
    assert ["", place, "ffffffff"] == [part.prefix for part in answer.parts]
    whole, some, none = answer.parts
    sums = [0] * 256
    for where, _, hash_ in rows:
        sums[int(where[:2], 16)] += int.from_bytes(hash_[:8], "big")
    assert b"".join((number % 2**64).to_bytes(8, "big") for number in sums) == whole.sums
    inside = sorted((seq, rewind.short(hash_)) for where, seq, hash_ in rows if where.startswith(place))
    assert inside == list(zip(some.seqs, [entry for entry, _ in rewind.entries(some.rows)], strict=True))
    assert (b"", (), b"") == (none.sums, none.seqs, none.rows)
    assert () == answer.rows


# --- places -------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 400), min_size=1, max_size=300))
def test_places_are_kept_the_closer_the_newer_they_are(steps: list[int]) -> None:
    kept: list[Cursor] = []
    seqs = [0]
    for step in steps:
        seqs.append(seqs[-1] + step)
        kept = rewind.spaced([*kept, Cursor("e", seqs[-1], bytes(16))])

    end = seqs[-1]
    assert [place.seq for place in kept] == sorted({place.seq for place in kept})
    assert seqs[1:][-8:] == [place.seq for place in kept][-8:]
    assert len(kept) <= rewind.PLACES_KEPT
    for lost_after in seqs[1:]:
        found = max((place.seq for place in kept if place.seq <= lost_after), default=None)
        # However long ago, what has to be looked through is a few times what was lost, or what came in one step.
        assert found is not None
        assert end - found <= 3 * (end - lost_after) + 2 * max(steps)


def test_without_places_there_are_none_and_a_million_rows_need_no_more_than_are_kept() -> None:
    assert [] == rewind.spaced([])

    kept: list[Cursor] = []
    for seq in range(1, 20_000):
        kept = rewind.spaced([*kept, Cursor("e", seq * 50, bytes(16))])
    assert 30 <= len(kept) <= rewind.PLACES_KEPT


# --- devices ------------------------------------------------------------------------------------------------------


def pushes(*after_: str, now: str) -> dict[str, Any]:
    return {"pushes": Pushes(after=after_, now=now)}


def test_a_push_that_follows_what_is_known_of_its_device_is_remembered(lab: Lab) -> None:
    one = rewind.next_push("", "i1", [b"h"])
    two = rewind.next_push(one, "i1", [b"h"])
    for number, told in enumerate((pushes(now=one), pushes(one, now=two), pushes(one, now=two))):
        answer = lab.say(changes=(Change(entity=entity(f"e{number}", at(0))),), **told)
        assert not answer.device_forked

    device = lab.held(Reads(device="peer")).device
    assert device is not None
    assert (two, lab.head.seq) == (device.pushed, device.served)
    assert ("i1", "1", "i1", "2") == (*one.split(":")[:2], *two.split(":")[:2])
    assert [] == lab.events


def test_a_copy_of_a_device_is_told_so_and_nothing_of_its_push_is_dropped(lab: Lab) -> None:
    start = rewind.next_push("", "i1", [b"start"])
    mine, copy = (rewind.next_push(start, "i1", [name]) for name in (b"mine", b"copy"))
    lab.say(changes=(Change(entity=lamp(1)),), **pushes(now=start))
    lab.say(changes=(Change(entity=entity("e1", at(1))),), **pushes(start, now=mine))
    answer = lab.say(changes=(Change(entity=entity("e2", at(1))),), **pushes(start, now=copy))

    assert (True, ["applied"]) == (answer.device_forked, [ack.outcome for ack in answer.acks])
    assert [("device_forked", {"device": "peer", "known": mine, "got": copy})] == [
        (event.kind, event.told) for event in lab.events
    ]
    # The first one goes on; the copy does so under another name.
    assert not lab.say(changes=(Change(entity=entity("e3", at(1))),), **pushes(mine, now="i1:9:x")).device_forked
    assert not lab.say(changes=(Change(entity=entity("e4", at(1))),), **pushes(now="i2:1:x")).device_forked


def test_a_device_whose_pushes_the_server_may_have_missed_is_no_copy(lab: Lab) -> None:
    lab.say(changes=(Change(entity=lamp(1)),), **pushes(now="i1:1:a"))

    # A device that knows of no push is a copy from before the first one.
    assert lab.say(changes=(Change(entity=lamp(1)),), **pushes(now="i1:1:other")).device_forked
    # One that was told that the server was set back takes any push for possible.
    assert not lab.say(changes=(Change(entity=lamp(1)),), **pushes("", "i1:7:b", now="i1:8:c")).device_forked
    # It does not know which of two pushes was heard; the server knows of the first.
    again = lab.say(changes=(Change(entity=lamp(1)),), **pushes("i1:8:c", "i1:9:b", now="i1:10:c"))
    assert not again.device_forked
    # A pull says nothing of pushes.
    lab.say(cursor=lab.head.cursor, **pushes(now="i1:11:z"))
    device = lab.held(Reads(device="peer")).device
    assert device is not None
    assert "i1:10:c" == device.pushed


@pytest.mark.parametrize("late", ["i1:9:late", "i1", "i1:x"])
def test_a_push_that_comes_late_does_not_make_its_device_a_copy(lab: Lab, late: str) -> None:
    lab.say(changes=(Change(entity=lamp(1)),), **pushes(now="i1:10:a"))
    # It left when its device took any push for possible, which it does no more.
    assert not lab.say(changes=(Change(entity=lamp(2)),), **pushes("", now=late)).device_forked

    assert not lab.say(changes=(Change(entity=lamp(3)),), **pushes("i1:10:a", now="i1:11:b")).device_forked
    assert [] == lab.events
    # Another incarnation counts from the beginning.
    assert not lab.say(changes=(Change(entity=lamp(4)),), **pushes("", now="i2:1:a")).device_forked
    device = lab.held(Reads(device="peer")).device
    assert device is not None
    assert "i2:1:a" == device.pushed


def test_a_name_of_a_push_depends_on_all_before_it() -> None:
    one = rewind.next_push("", "i", [b"a"])

    assert one != rewind.next_push("", "i", [b"b"])
    assert one != rewind.next_push("", "j", [b"a"])
    assert rewind.next_push(one, "i", [b"a"]) != rewind.next_push(rewind.next_push("", "i", [b"b"]), "i", [b"a"])
