"""What rows of deployed databases become, whatever stands in them."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import StoreError, deployed
from inbetweenies.deployed import BLOB_BYTES, Made, Move, Spot, Turn
from inbetweenies.model import Entity, edge_version, edit_time, parse_time
from tests.ops.deployed import LATER, PLAIN, WHEN

AT = parse_time(WHEN)
LARGE = 8 * 2**20


def row(table: str, **fields: Any) -> dict[str, Any]:
    return {**PLAIN[table], **fields}


def moved(made: Made) -> Move:
    assert isinstance(made, Move), made
    return made


def content(one: Entity) -> Any:
    return json.loads(bytes(one.content))


def accessory(fields: dict[str, Any], *inside: tuple[str, dict[str, Any]], most: int = LARGE) -> tuple[Made, ...]:
    services = [one for table, one in inside if table == "services"]
    characteristics = [one for table, one in inside if table == "characteristics"]
    return deployed.accessory(row("accessories", **fields), services, characteristics, bytes_max=most)


# --- which database -----------------------------------------------------------------------------------------------


def tables(schema: str, **changed: list[str] | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for table, columns in deployed.TABLES[schema].items():
        times = [] if table == "accessory_rooms" else ["created_at", "updated_at", "sync_id"]
        found[table] = [column.strip("()") for column in columns.split()] + times
    for table, columns_ in changed.items():
        found.pop(table, None)
        if columns_ is not None:
            found[table] = columns_
    return found


@pytest.mark.parametrize("schema", ["homekit", "graph"])
def test_a_schema_is_known_by_its_tables(schema: str) -> None:
    assert schema == deployed.schema_of(tables(schema))
    assert schema == deployed.schema_of(tables(schema, sync_metadata=None, sqlite_stat1=["tbl"], alembic_version=["n"]))


def test_a_release_that_did_not_say_what_is_latest_is_known() -> None:
    old = [column for column in tables("graph")["entities"] if column not in ("is_latest", "server_seq", "sync_id")]

    assert "graph" == deployed.schema_of(tables("graph", entities=old))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "got no tables"),
        ({"moz_places": ["id"]}, "got moz_places"),
        ({"homes": ["id"], "rooms": ["id"]}, "got homes, rooms"),
        ({**tables("homekit"), **tables("graph")}, "got the tables of both"),
        (tables("graph", tags=["id"]), "got tags as well: it is of a newer schema"),
        (
            tables("homekit", homes=["id", "name"]),
            "expected the columns created_at, is_primary, updated_at in the table",
        ),
        (tables("graph", entities=[*tables("graph")["entities"], "domain"]), "got domain as well: it is of a newer"),
    ],
)
def test_other_databases_are_refused_with_what_they_are(found: dict[str, list[str]], said: str) -> None:
    with pytest.raises(StoreError, match=said):
        deployed.schema_of(found)


# --- HomeKit tables -----------------------------------------------------------------------------------------------


def test_a_home_is_an_entity_of_its_time() -> None:
    move = moved(deployed.home(row("homes", updated_at=LATER)))

    [home] = move.entities
    assert ("h", "home", "Home", {"is_primary": True}) == (home.id, home.entity_type, home.name, content(home))
    assert (parse_time(LATER), AT) == (edit_time(home.version), move.born)
    assert ("homes", "h", True, ()) == (move.table, move.key, move.alone, move.spots)


def test_other_content_of_the_same_time_is_another_version() -> None:
    one, other = (moved(deployed.home(row("homes", name=name))).entities[0] for name in ("One", "Other"))

    assert one.version != other.version


def test_a_user_is_a_note() -> None:
    [user] = moved(deployed.user(row("users"))).entities

    assert "note" == user.entity_type
    assert {"kind": "user", "is_administrator": True, "is_owner": False, "remote_access_allowed": True} == content(user)


def test_an_accessory_holds_its_services_and_has_the_time_of_the_newest() -> None:
    [made] = accessory(
        {}, ("services", row("services")), ("characteristics", row("characteristics", min_value=1, updated_at=LATER))
    )
    move = moved(made)

    [device] = move.entities
    assert parse_time(LATER) == edit_time(device.version) == move.at
    assert (("services", "s"), ("characteristics", "c")) == move.inside
    service = content(device)["services"]["s"]
    assert ("Light", True) == (service["name"], service["is_primary"])
    assert {"value": "true", "min_value": 1.0} == {
        key: value
        for key, value in service["characteristics"]["c"].items()
        if key in ("value", "min_value", "max_value")
    }
    assert {"manufacturer": "Acme", "is_reachable": True, "is_blocked": False, "is_bridge": False} == {
        key: value for key, value in content(device).items() if key != "services"
    }


def test_what_cannot_be_inside_is_told_and_the_rest_is_moved() -> None:
    first, *spots = accessory(
        {},
        ("services", row("services")),
        ("services", row("services")),
        ("services", row("services", id=None)),
        ("services", row("services", id="t", name="\ud800")),
        ("characteristics", row("characteristics", service_id="t")),
        ("characteristics", row("characteristics", id=7)),
        ("characteristics", row("characteristics", value=b"\xff")),
    )

    assert (("services", "s"), ("characteristics", "c")) == moved(first).inside
    assert ["duplicate_id", "null_key", "not_storable", "dangling", "not_text"] == [
        spot.code for spot in spots if isinstance(spot, Spot)
    ]
    assert ["expected a text in value; got bytes, left out"] == [spot.detail for spot in moved(first).spots]


def test_what_does_not_fit_is_left_out_the_largest_first() -> None:
    large = row("characteristics", id="large", value="x" * 60_000)
    made = accessory({}, ("services", row("services")), ("characteristics", large), most=50_000)

    assert (("services", "s"),) == moved(made[0]).inside
    assert [("characteristics", "large", "too_large")] == [
        (spot.table, spot.key, spot.code) for spot in made[1:] if isinstance(spot, Spot)
    ]


def test_a_service_that_does_not_fit_takes_its_characteristics_with_it() -> None:
    large = row("services", name="x" * 60_000)
    made = accessory({}, ("services", large), ("characteristics", row("characteristics")), most=50_000)

    assert () == moved(made[0]).inside
    assert "services" not in content(moved(made[0]).entities[0])
    assert ["services", "characteristics"] == [spot.table for spot in made[1:] if isinstance(spot, Spot)]


@pytest.mark.parametrize(("id_", "code"), [(None, "null_key"), (7, "not_text"), (b"\xff", "not_text")])
def test_a_row_without_a_key_becomes_nothing_and_takes_what_is_inside_with_it(id_: Any, code: str) -> None:
    for make, table in ((deployed.home, "homes"), (deployed.room, "rooms"), (deployed.user, "users")):
        spot = make(row(table, id=id_))
        assert isinstance(spot, Spot)
        assert (table, code) == (spot.table, spot.code)
    made = accessory({"id": id_}, ("services", row("services")))
    assert [("accessories", code), ("services", "dangling")] == [
        (spot.table, spot.code) for spot in made if isinstance(spot, Spot)
    ]


def test_what_is_odd_is_told_and_kept_as_far_as_it_can_be() -> None:
    move = moved(deployed.room(row("rooms", name=None, created_at=None, updated_at="yesterday")))

    assert ("", None, None) == (move.entities[0].name, move.at, move.born)
    assert edit_time(move.entities[0].version) is None
    assert ["not_a_time", "not_text"] == [spot.code for spot in move.spots]
    assert "7" == moved(deployed.room(row("rooms", name=7))).entities[0].name
    assert "a�" == moved(deployed.room(row("rooms", name=b"a\xff"))).entities[0].name


def test_an_accessory_of_which_json_holds_nothing_is_refused() -> None:
    [spot] = accessory({"model": "\ud800"})

    assert isinstance(spot, Spot)
    assert "not_storable" == spot.code


def test_links_are_the_edges_that_the_mapping_makes() -> None:
    room = moved(deployed.room(row("rooms")))
    home = moved(deployed.home(row("homes"))).entities[0]
    lamp, bridge = (moved(accessory({"id": id_})[0]) for id_ in ("a", "b"))

    link = deployed.link("g", room, "home_id", home, "h")
    assert link is not None
    [edge] = link.edges
    assert ("part_of", "r", "h", home.version, {}) == (
        edge.relationship_type,
        edge.from_entity_id,
        edge.to_entity_id,
        edge.to_entity_version,
        json.loads(bytes(edge.properties)),
    )
    tied = deployed.link("g", lamp, "bridge_id", bridge.entities[0], "b")
    assert tied is not None
    assert {"role": "bridge"} == json.loads(bytes(tied.edges[0].properties))
    assert deployed.link("g", lamp, "bridge_id", None, None) is None
    lost = deployed.link("g", room, "home_id", None, "gone")
    assert lost is not None
    assert ([], ["dangling"]) == ([*lost.edges], [spot.code for spot in lost.spots])


def test_a_room_of_an_accessory_is_an_edge_of_its_own() -> None:
    lamp = moved(accessory({})[0]).entities[0]
    room = moved(deployed.room(row("rooms"))).entities[0]

    [edge] = moved(deployed.in_room("g", row("accessory_rooms"), lamp, room)).edges
    assert ("located_in", "a", "r") == (edge.relationship_type, edge.from_entity_id, edge.to_entity_id)
    for device, place, columns, code in (
        (None, room, {}, "dangling"),
        (lamp, None, {}, "dangling"),
        (lamp, room, {"room_id": None}, "null_key"),
    ):
        spot = deployed.in_room("g", row("accessory_rooms", **columns), device, place)
        assert isinstance(spot, Spot)
        assert code == spot.code


# --- tables of versioned rows -------------------------------------------------------------------------------------

ONLY = Turn(0, False, True)


def test_types_are_folded_and_unknown_sources_kept() -> None:
    made = moved(
        deployed.entity(row("entities", entity_type="DEVICE", source_type="API", parent_versions='["v0"]'), ONLY)
    )

    [device] = made.entities
    assert ("device", "imported", "API", ("v0",)) == (
        device.entity_type,
        device.source_type,
        device.source_original,
        device.parent_versions,
    )
    assert "spaceship" == moved(deployed.entity(row("entities", entity_type="Spaceship"), ONLY)).entities[0].entity_type
    old = moved(deployed.entity(row("entities"), Turn(0, True, False)))
    assert (True, False) == (old.aside, old.last)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"id": None}, "null_key"),
        ({"version": None}, "null_key"),
        ({"entity_type": None}, "null_key"),
        ({"content": "[]"}, "not_json"),
        ({"content": "{"}, "not_json"),
        ({"content": 7}, "not_json"),
        ({"content": '{"a": 1e400}'}, "not_json"),
        ({"content": '{"a": "\\ud800"}'}, "not_json"),
    ],
)
def test_an_entity_that_cannot_be_is_told(fields: dict[str, Any], code: str) -> None:
    spot = deployed.entity(row("entities", **fields), ONLY)

    assert isinstance(spot, Spot)
    assert ("entities", code) == (spot.table, spot.code)


@pytest.mark.parametrize("parents", ["{}", "[1]", "{", 7, b"\xff"])
def test_parents_that_cannot_be_read_are_none(parents: Any) -> None:
    move = moved(deployed.entity(row("entities", parent_versions=parents), ONLY))

    assert () == move.entities[0].parent_versions
    assert ["not_json"] == [spot.code for spot in move.spots]


def test_nulls_that_mean_nothing_are_nothing() -> None:
    fields = {"content": None, "user_id": None, "parent_versions": None, "source_type": None}
    move = moved(deployed.entity(row("entities", **fields), ONLY))

    assert ({}, "", (), "imported", ()) == (
        content(move.entities[0]),
        move.entities[0].user_id,
        move.entities[0].parent_versions,
        move.entities[0].source_type,
        move.spots,
    )
    assert deployed.is_latest({}) is True
    assert deployed.is_latest({"is_latest": 0}) is False


def test_an_edge_has_the_version_that_its_maker_would_send() -> None:
    ends = {"e": PLAIN["entities"]["version"]}
    [edge] = moved(deployed.relationship(row("entity_relationships"), ends)).edges

    assert "part_of" == edge.relationship_type
    assert edge.version == edge_version(edge)


def test_an_edge_goes_to_the_latest_where_the_version_that_it_names_is_not_there() -> None:
    move = moved(deployed.relationship(row("entity_relationships"), {"e": "v9"}))

    assert ("v9", "v9") == (move.edges[0].from_entity_version, move.edges[0].to_entity_version)
    assert ["dangling", "dangling"] == [spot.code for spot in move.spots]


@pytest.mark.parametrize(
    ("fields", "ends", "code"),
    [({}, {}, "dangling"), ({"to_entity_id": None}, {}, "null_key"), ({"properties": "7"}, {"e": "v"}, "not_json")],
)
def test_an_edge_that_cannot_be_is_told(fields: dict[str, Any], ends: dict[str, str], code: str) -> None:
    spot = deployed.relationship(row("entity_relationships", **fields), ends)

    assert isinstance(spot, Spot)
    assert code == spot.code


def test_a_blob_is_an_entity_with_its_data() -> None:
    [blob] = moved(deployed.blob(row("blobs", server_url=b"http"))).entities

    assert ("blob", "manual.pdf") == (blob.entity_type, blob.name)
    said = content(blob)
    assert (b"abc", {"pages": 1}, "c0ffee", "http") == (
        b64decode(said["data"]),
        said["blob_metadata"],
        said["checksum"],
        said["server_url"],
    )


def test_a_large_blob_goes_on_in_parts() -> None:
    data = bytes(range(256)) * (BLOB_BYTES // 100)
    first, *parts = moved(deployed.blob(row("blobs", data=data))).entities

    assert [part.id for part in parts] == content(first)["parts"]
    assert data == b"".join(b64decode(content(each)["data"]) for each in (first, *parts))


@pytest.mark.parametrize(("data", "said"), [(None, None), (b"", ""), ("abc", "YWJj")])
def test_a_blob_may_have_no_data(data: Any, said: str | None) -> None:
    [blob] = moved(deployed.blob(row("blobs", data=data, blob_metadata=None, mime_type=None))).entities

    assert said == content(blob).get("data")


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"id": None}, "null_key"), ({"data": 7}, "not_text"), ({"size": float("inf")}, "not_storable")],
)
def test_a_blob_that_cannot_be_is_told(fields: dict[str, Any], code: str) -> None:
    spot = deployed.blob(row("blobs", **fields))

    assert isinstance(spot, Spot)
    assert code == spot.code


def test_bookkeeping_stays_where_it_is() -> None:
    assert "bookkeeping" == deployed.bookkeeping(row("sync_metadata")).code
    assert "null" == deployed.bookkeeping(row("sync_metadata", client_id=None)).key


# --- which version stands -----------------------------------------------------------------------------------------


def told(history: list[tuple[str, tuple[str, ...], bool]]) -> list[tuple[str, str]]:
    words = {(False, True): "last", (False, False): "stood", (True, False): "aside"}
    return [(history[turn.index][0], words[turn.aside, turn.last]) for turn in deployed.turns(history)]


def test_versions_that_follow_one_another_all_stood() -> None:
    assert [("a", "stood"), ("b", "stood"), ("c", "last")] == told(
        [("a", (), False), ("b", ("a",), False), ("c", ("b", "a"), True)]
    )


def test_parents_come_first() -> None:
    assert [("a", "stood"), ("b", "last")] == told([("b", ("a",), True), ("a", (), False)])


def test_what_lost_is_kept_aside_and_so_is_the_other_branch_of_a_merge() -> None:
    assert [("a", "stood"), ("lost", "aside"), ("b", "last")] == told(
        [("a", (), False), ("lost", ("a",), False), ("b", ("a",), True)]
    )
    assert [("a", "stood"), ("b", "stood"), ("c", "aside"), ("m", "last")] == told(
        [("a", (), False), ("b", ("a",), False), ("c", ("a",), False), ("m", ("b", "c"), True)]
    )


def test_the_last_of_several_latest_stands_and_of_none_the_last_of_all() -> None:
    assert [("a", "aside"), ("b", "last")] == told([("a", (), True), ("b", (), True)])
    assert [("a", "aside"), ("b", "last")] == told([("a", (), False), ("b", (), False)])
    assert [("b", "last"), ("a", "aside")] == told([("b", (), True), ("a", (), False)])


_histories = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefg"), max_size=3).map(tuple), st.booleans()),
    min_size=1,
    max_size=7,
)


@given(_histories)
def test_of_any_versions_each_is_taken_once_and_one_stands(history: list[tuple[str, tuple[str, ...], bool]]) -> None:
    turns = deployed.turns(history)

    assert sorted(turn.index for turn in turns) == [*range(len(history))]
    [last] = [turn for turn in turns if turn.last]
    assert not last.aside
    assert history[last.index][2] or not any(latest for _, _, latest in history)
