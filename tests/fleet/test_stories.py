"""Short stories that the fleet has told once, each of which broke a law; kept so that none is told again."""

from __future__ import annotations

from typing import Any

import pytest

from inbetweenies.model import Held, Reads
from inbetweenies.router import ProtocolFallback
from tests.support import NOW, SECOND, Server, at, entity, run


def t(second: int) -> str:
    """A time as v1 writes it, in the minute before `NOW`."""
    return f"2026-06-15T09:40:{second:02d}.000000"


class Home:
    """A server that v1 clients talk to."""

    def __init__(self) -> None:
        self.now = NOW
        self.server = ProtocolFallback(clock=lambda: self.now)

    def say(self, **message: Any) -> Any:
        self.now += SECOND
        return run(self.server.handle_sync_request(message))

    def read(self, client: str, last_sync: str | None = None) -> dict[str, Any]:
        wanted = ["homes", "rooms", "accessories", "users"]
        told = self.say(type="sync_request", client_id=client, last_sync=last_sync, entity_types=wanted)
        return {change["entity_id"]: change["data"] for change in told["changes"]}

    def ack(self, client: str, second: int) -> None:
        self.say(type="sync_ack", client_id=client, sync_completed_at=t(second))

    def ends(self, from_id: str) -> set[str]:
        """Where the edges of an entity have ever gone."""
        ids = tuple(edge.id for edge in self.held(Reads(edges_from=(from_id,))).edges_from[from_id])
        return {row.to_id for rows in self.held(Reads(edge_history=ids)).edge_history.values() for row in rows}

    def held(self, reads: Reads) -> Held:
        async def ask() -> Held:
            async with self.server.store.transaction("default", write=False) as tx:
                return await tx.read(reads)

        return run(ask())

    def push(self, client: str, *records: dict[str, Any]) -> list[dict[str, Any]]:
        """Push records, all of which must be applied; the conflicts that are told."""
        changes = [
            {
                "entity_type": "room" if "home_id" in record else "home",
                "entity_id": record["id"],
                "operation": "update",
                "data": record,
                "client_sync_id": f"{client}-{record['id']}",
            }
            for record in records
        ]
        answer = self.say(type="sync_push", client_id=client, changes=changes)
        assert len(records) == len(answer["applied"])
        conflicts: list[dict[str, Any]] = answer["conflicts"]
        return conflicts


def home(id_: str, second: int = 0, **fields: Any) -> dict[str, Any]:
    plain = {"name": id_, "is_primary": False, "created_at": t(0), "updated_at": t(second), "sync_id": None}
    return {"id": id_, **plain, **fields}


def room(second: int = 0, **fields: Any) -> dict[str, Any]:
    plain = {"home_id": "home", "name": "room", "created_at": t(0), "updated_at": t(second), "sync_id": None}
    return {"id": "room", **plain, **fields}


def test_a_push_that_said_nothing_new_undoes_nothing_when_it_comes_again() -> None:
    there = Home()
    there.push("c", home("home"))
    there.push("c", home("home", 5))
    there.push("c", home("home", 10, name="Villa"))

    there.push("c", home("home", 5))

    assert "Villa" == there.read("x")["home"]["name"]


def test_a_push_that_comes_again_moves_nothing_back() -> None:
    there = Home()
    there.push("c", home("home"), home("cabin"), room())
    there.push("c", room(20, name="Kitchen"))
    there.push("c", room(30, name="Kitchen", home_id="cabin"))

    there.push("c", room(20, name="Kitchen"))

    assert "cabin" == there.read("x")["room"]["home_id"]


def test_who_renames_a_room_does_not_undo_that_another_moved_it() -> None:
    there = Home()
    there.read("c")
    there.push("c", home("home"), home("cabin"), room())
    there.ack("c", 2)
    theirs = there.read("d")["room"]
    there.push("d", {**theirs, "home_id": "cabin", "updated_at": t(20)})

    # It pulled the move, and kept its own record, which is newer.
    there.read("c")
    there.push("c", room(30, name="Kitchen"))

    assert ("cabin", "Kitchen") == tuple(there.read("x")["room"][field] for field in ("home_id", "name"))


def test_a_move_that_comes_after_a_newer_one_of_its_maker_is_kept_and_moves_nothing() -> None:
    there = Home()
    there.push("c", home("home"), home("cabin"), home("barn"), room())
    there.push("c", room(30, home_id="barn"))

    conflicts = there.push("c", room(20, home_id="cabin"))

    assert ["barn"] == [conflict["server_version"]["home_id"] for conflict in conflicts]
    assert "barn" == there.read("x")["room"]["home_id"]
    assert {"home", "cabin", "barn"} == there.ends("room")


def test_who_moves_a_room_back_moves_it_though_it_holds_no_token() -> None:
    there = Home()
    there.push("c", home("home"), home("cabin"), room())
    there.push("c", room(20, home_id="cabin"))

    there.push("c", room(30, home_id="home"))

    assert "home" == there.read("x")["room"]["home_id"]


def test_an_edit_that_comes_after_a_newer_one_of_its_maker_is_kept_and_undoes_nothing() -> None:
    there = Home()
    there.push("c", home("home"))
    there.push("c", home("home", 30, name="Villa"))

    there.push("c", home("home", 20, name="House", is_primary=True))

    told = there.read("x")["home"]
    assert ("Villa", True) == (told["name"], told["is_primary"])


def test_who_set_its_clock_back_builds_on_what_it_pushed_last() -> None:
    there = Home()
    there.push("c", home("home", 10))
    there.push("d", home("home", 15, is_primary=True))
    there.push("c", home("home", 30, name="Villa"))
    there.push("c", home("home", 20, name="House"))

    # Its clock goes back, and its name lost; but what it changes now is something else.
    there.push("d", home("home", 35, name="Cottage", is_primary=True))
    there.push("c", home("home", 40, name="House"))

    assert ("Cottage", True) == tuple(there.read("x")["home"][field] for field in ("name", "is_primary"))


def test_an_old_ack_confirms_nothing_even_if_it_had_nothing_to_confirm() -> None:
    there = Home()
    there.read("c")
    there.ack("c", 1)
    there.push("d", home("home"))
    there.read("c", t(1))  # this answer is lost

    there.ack("c", 1)  # the same ack, late

    # Its clock runs ahead, so only its acks say what it has.
    assert "home" in there.read("c", "2030-01-01T00:00:00.000000")


def test_what_lost_does_not_come_back_with_the_next_edit_of_something_else() -> None:
    there = Server()
    base = entity("lamp", at(0), {"p": "x"})
    later = entity("lamp", at(20, "bob"), {"p": "z"}, parent_versions=(base.version,))
    loser = entity("lamp", at(10), {"p": "y"}, parent_versions=(base.version,))
    there.push(base)
    there.push(later)
    assert "lost_kept" == there.push(loser).acks[0].outcome

    answer = there.push(entity("lamp", at(30), {"p": "y", "q": 1}, parent_versions=(loser.version,)))

    assert () == answer.conflicts
    assert b'{"p":"z","q":1}' == bytes(there.current("lamp").content)


def test_an_edit_is_not_compared_with_what_its_base_had_followed_and_came_later() -> None:
    there = Server()
    first = entity("lamp", at(0), {})
    seen = entity("lamp", at(10), {"deep": 1}, parent_versions=(first.version,))
    for row in (seen, entity("lamp", at(20, "bob"), {"deep": 2}), first):
        there.push(row)

    answer = there.push(entity("lamp", at(30), {"deep": 1, "q": 1}, parent_versions=(seen.version,)))

    assert () == answer.conflicts
    assert b'{"deep":2,"q":1}' == bytes(there.current("lamp").content)


def test_an_id_with_a_refused_row_is_not_named_however_long_it_is() -> None:
    there = Home()
    row = {"id": "x" * 300, "entity_type": "home", "name": "", "content": {}, "source_type": "manual", "user_id": "u"}
    changes = [{"change_type": "update", "entity": {**row, "version": version}} for version in ("v1", "v2\u0001")]

    told = there.say(protocol_version="inbetweenies-v2", device_id="d", user_id="u", sync_type="full", changes=changes)

    assert 1 == len(told["refused"])
    assert [] == told["applied"]


def test_a_repeated_loser_under_a_taken_version_is_told_what_is_current() -> None:
    there = Server()
    there.push(entity("lamp", "v1", {"p": 1}))
    features = frozenset({"acks"})

    for _ in range(2):
        answer = there.push(entity("lamp", "v1", {"p": 2}), features=features)

        assert ("lost_kept", "v1") == (answer.acks[0].outcome, answer.acks[0].head)
        assert [b'{"p":1}'] == [bytes(row.entity().content) for row in answer.rows]


def test_a_merge_is_newer_than_both_that_it_merges() -> None:
    there = Server()
    base = entity("lamp", at(0), {})
    there.push(base)
    there.push(entity("lamp", at(10, "bob"), {"p": 1}, parent_versions=(base.version,)))

    answer = there.push(entity("lamp", at(20), {"q": 1}, parent_versions=(base.version,)))

    assert "merged" == answer.acks[0].outcome
    assert answer.rows[0].rise > NOW + 20 * SECOND


def test_a_repeated_request_and_ack_do_not_confirm_what_was_not_heard() -> None:
    there = Home()
    there.push("d", home("home"))
    there.read("c")
    there.ack("c", 1)
    there.push("d", home("cabin", 2))
    there.read("c", t(1))  # a repetition of what was said before; nobody hears the answer

    there.ack("c", 1)

    assert "cabin" in there.read("c", "2030-01-01T00:00:00.000000")


# --- open: found by the simulator, each in the push of v1 records --------------------------------------------------


def v2(there: Home, second: int, after: list[int], content: dict[str, Any], id_: str = "home") -> None:
    """A row of the home or of the room, pushed by a client of v2; `after` names its parents by their seconds."""
    version = "2026-06-15T09:40:{:02d}.000000+00:00-000000-m".format
    row = {
        "id": id_,
        "version": version(second),
        "entity_type": id_,
        "name": id_,
        "content": content,
        "source_type": "manual",
        "user_id": "m",
        "parent_versions": [version(parent) for parent in after],
    }
    change = {"change_type": "update", "entity": row}
    there.say(protocol_version="inbetweenies-v2", device_id="m", user_id="m", sync_type="full", changes=[change])


def test_what_a_v1_client_makes_where_something_was_deleted_is_kept_and_brings_nothing_back() -> None:
    there = Home()
    v2(there, 1, [], {"deleted": True})

    for second in (11, 12):
        there.push("c", home("home", 10))
        there.read("c")
        there.ack("c", second)

        assert 2 == len(there.held(Reads(history=("home",))).history["home"])
        assert there.held(Reads(entities=("home",))).entities["home"].deleted


def test_who_never_heard_that_a_home_was_deleted_takes_nothing_from_who_brought_it_back() -> None:
    there = Home()
    v2(there, 1, [], {})
    v2(there, 2, [1], {"deleted": True})
    there.read("c")
    there.ack("c", 3)
    v2(there, 10, [2], {"deep": {"x": 1}})

    there.push("c", home("home", 20, name="Villa"))

    row = there.held(Reads(entities=("home",))).entities["home"].entity()
    assert ("Villa", b'"deep":{"x":1}') == (row.name, bytes(row.content)[1:15])


def placed(there: Home) -> list[tuple[str, str, int]]:
    """The edges from the room: where each goes, its version and its place in the log."""
    edges = there.held(Reads(edges_from=("room",))).edges_from.get("room", ())
    return [(edge.to_id, edge.version, edge.seq) for edge in edges]


def test_who_makes_a_room_again_says_where_it_is_and_does_not_move_it_with_the_next_edit() -> None:
    there = Home()
    v2(there, 1, [], {})
    v2(there, 2, [], {}, "room")
    v2(there, 3, [2], {"deleted": True}, "room")
    there.read("c")
    there.ack("c", 4)
    v2(there, 5, [1], {"deleted": True})

    there.push("c", room(10))
    before = placed(there)
    there.push("c", room(20, name="Kitchen"))

    assert ["home"] == [to_id for to_id, _, _ in before]
    assert before == placed(there)


def test_who_makes_a_room_that_is_there_says_where_it_is_and_does_not_move_it_with_the_next_edit() -> None:
    there = Home()
    there.push("d", home("cabin"))
    v2(there, 2, [], {}, "room")

    there.push("c", home("home", 10, is_primary=True), room(10, home_id="cabin"))
    before = placed(there)
    there.push("c", room(20, home_id="cabin", name="Kitchen"))

    assert ["cabin"] == [to_id for to_id, _, _ in before]
    assert before == placed(there)


@pytest.mark.parametrize("token", [..., None, "of another server"])
def test_who_was_shown_a_placeholder_makes_no_edge_of_it(token: Any) -> None:
    there = Home()
    there.push("d", home("home"))
    v2(there, 2, [], {}, "room")
    told = there.read("c")["room"]
    if token is None:
        there.ack("c", 3)

    there.push("c", {**told, "name": "Kitchen", "updated_at": t(10)} | ({} if token is ... else {"sync_id": token}))

    assert "Kitchen" == there.read("x")["room"]["name"]
    assert [] == placed(there)


def test_an_edit_that_comes_late_is_not_undone_by_who_made_it_and_forgot_it() -> None:
    there = Home()
    there.push("d", home("home"))
    late = {**there.read("c")["home"], "is_primary": True, "updated_at": t(5)}
    there.push("d", home("home", 10, name="Villa"))
    told = there.read("c")["home"]  # newer than its own, so it takes this, and its own edit is gone
    there.push("c", late)

    there.push("c", {**told, "name": "Haus", "updated_at": t(20)})

    shown = there.read("x")["home"]
    assert ("Haus", True) == (shown["name"], shown["is_primary"])
