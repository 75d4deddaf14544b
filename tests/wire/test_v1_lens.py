"""The laws of the v1 lens (PROTOCOL 1.6, 1.7, 8), over graphs as messy as they come."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inbetweenies.limits import LIMITS
from inbetweenies.model import Change, Head, Reads, SyncRequest, edit_time
from inbetweenies.wire.v1 import lens
from inbetweenies.wire.v1.codec import SHAPES, item_of
from inbetweenies.wire.v1.graph import STEPS_MAX, Graph, graph_of, read_above, read_below, said
from inbetweenies.wire.v1.lens import Draft, Edit, Known, Made
from tests.support import Server, at, edge, entity
from tests.wire.v1_support import (
    doc_of,
    drive,
    fitting,
    graphs,
    home_of,
    link_edge,
    lost,
    pointer,
    whole,
)

STAMPS = {"id", "created_at", "updated_at", "sync_id", "accessory_id", "service_id"}


def plain(record: Any) -> dict[str, Any]:
    return msgspec.structs.asdict(record)


def type_of(record: Any) -> str:
    return type(record).__name__.lower()


def place_of(graph: Graph, record: Any) -> tuple[str, tuple[str, ...]]:
    """Where a record of a view stands."""
    if type_of(record) == "service":
        return record.accessory_id, ("services", record.id)
    if type_of(record) == "characteristic":
        for row in sorted(graph.entities.values(), key=lambda row: row.seq):
            path = ("services", record.service_id, "characteristics", record.id)
            found = lens.content_at(json.loads(row.body)["content"], path) if row.entity_type == "device" else None
            if found is not None and plain(record) in [plain(each) for each in lens.nested_of(row, record.sync_id)]:
                return row.id, path
        raise AssertionError
    return record.id, ()


def edit_of(graph: Graph, record: Any, data: dict[str, Any], version: str = at(100), *, delete: bool = False) -> Edit:
    change = {
        "entity_type": type_of(record),
        "entity_id": record.id,
        "operation": "delete" if delete else "update",
        "data": data,
    }
    item = item_of("/changes/0", change, LIMITS)
    assert item.problem is None
    entity_id, path = place_of(graph, record)
    return Edit(item=item, entity_id=entity_id, path=path, version=version, user="v1", graph="g")


def known_now(graph: Graph, edit: Edit) -> Known:
    """What a client knows that has just pulled everything."""
    row = graph.entities[edit.entity_id]
    fields = lens.fields_of(edit.shape, *said(row), edit.path)
    assert fields is not None
    links = {} if edit.path else {link: lens.link_of(graph, edit.entity_id, link) for link in edit.shape.links}
    return Known(fields=fields | links, base=row.entity())


def put(server: Server, edit: Edit, known: Known | None = None) -> Made:
    """Apply an edit for good."""
    graph = whole(server)
    made = lens.apply(edit, known or known_now(graph, edit), graph)
    if made.change is not None:
        response = server.ask(SyncRequest(device="v1", user="v1", changes=(made.change,), pull=False))
        assert not response.refused
        assert not response.conflicts
    return made


def pick(data: st.DataObject, graph: Graph) -> Any:
    records, _ = lens.view(graph)
    assume(records)
    return data.draw(st.sampled_from(records), label="record")


def pick_edit(data: st.DataObject, graph: Graph, record: Any, version: str = at(100)) -> Edit:
    """Some fields of a record, changed as a v1 client could."""
    said = data.draw(fitting(type_of(record)), label="fields")
    if "home_id" in SHAPES[type_of(record)].links and data.draw(st.booleans()):
        said["home_id"] = data.draw(st.sampled_from(sorted(row.id for row in graph.homes)))
    if "bridge_id" in SHAPES[type_of(record)].links and data.draw(st.booleans()):
        devices = [row.id for row in graph.entities.values() if row.entity_type == "device" and not row.deleted]
        said["bridge_id"] = data.draw(st.none() | st.sampled_from(sorted(devices)))
    return edit_of(graph, record, plain(record) | said, version)


def record_again(graph: Graph, record: Any, entity_id: str) -> Any:
    """The same record in another view."""
    records, _ = lens.view(graph)
    found = [
        each
        for each in records
        if (type(each), each.id) == (type(record), record.id)
        and place_of(graph, each)[0] == entity_id
        and getattr(each, "service_id", None) == getattr(record, "service_id", None)
    ]
    assert len(found) == 1
    return found[0]


# --- the view -----------------------------------------------------------------------------------------------------


@given(graphs())
def test_every_graph_has_a_view_and_the_same_one_every_time(server: Server) -> None:
    graph = whole(server)
    records, losses = lens.view(graph)
    rows = [*graph.entities.values(), *(row for edges in (*graph.edges.values(), graph.others) for row in edges)]
    again = graph_of(graph.head, reversed(rows))

    assert (records, losses) == lens.view(again)
    for record in records:
        for name, value in plain(record).items():
            expected = SHAPES[type_of(record)].fields.get(name)
            assert expected is None or type(value) in expected.types


@given(graphs())
def test_what_the_view_does_not_show_is_exactly_what_is_declared_lost(server: Server) -> None:
    graph = whole(server)
    records, losses = lens.view(graph)

    assert sorted(lost(doc_of(graph), records)) == sorted(loss.pointer for loss in losses)


@given(graphs(types=("home", "room", "room", "zone", "device", "device", "note", "door"), size=12))
def test_a_record_names_the_nearest_home_as_a_person_would_find_it(server: Server) -> None:
    graph = whole(server)
    doc, born = doc_of(graph), {row.id: row.born for row in graph.entities.values()}
    for record in lens.view(graph)[0]:
        if "home_id" in SHAPES[type_of(record)].links:
            assert home_of(doc, born, record.id) == record.home_id  # type: ignore[union-attr]
        if "bridge_id" in SHAPES[type_of(record)].links:
            deciding = link_edge(doc, record.id, "bridge_id")
            assert (deciding["to_entity_id"] if deciding else None) == record.bridge_id  # type: ignore[union-attr]


@given(graphs(), st.data())
def test_what_lies_above_a_record_is_enough_to_show_it(server: Server, data: st.DataObject) -> None:
    graph = whole(server)
    ids = data.draw(st.sets(st.sampled_from(sorted(graph.entities) or ["none"])))
    part = drive(server, read_above(sorted(ids), graph.head))
    token = lens.token_of(graph)
    for id_ in ids & graph.entities.keys():
        assert lens.record_of(graph, graph.entities[id_], token) == lens.record_of(part, part.entities[id_], token)


@given(graphs(), st.data())
def test_whatever_takes_its_home_from_a_row_lies_below_it(server: Server, data: st.DataObject) -> None:
    graph = whole(server)
    assume(graph.entities)
    id_ = data.draw(st.sampled_from(sorted(graph.entities)))
    below = drive(server, read_below([id_]))
    row = graph.entities[id_]
    without = msgspec.structs.replace(
        graph, entities={**graph.entities, id_: msgspec.structs.replace(row, deleted=not row.deleted)}
    )
    assume(without.placeholder == graph.placeholder)
    for each in graph.entities:
        if without.home_of(each) != graph.home_of(each):
            assert each in below


def test_a_way_home_has_an_end_however_long_it_is() -> None:
    server = Server()
    zones = [entity(f"z{index:03d}", at(0), entity_type="zone") for index in range(2 * STEPS_MAX + 1)]
    first = entity("first", at(-1), {"is_primary": True}, entity_type="home")
    chain = [*zones, entity("far", at(0), entity_type="home")]
    server.push(first, *chain)
    server.push(*(edge(f"l{index:03d}", one, chain[index + 1]) for index, one in enumerate(zones)))
    graph = whole(server)

    assert ("first", "far") == (graph.home_of("z000"), graph.home_of("z001"))
    for id_ in ("z000", "z001", "z002", zones[-1].id):
        assert graph.home_of(id_) == drive(server, read_above([id_], graph.head)).home_of(id_)
    assert {zone.id for zone in zones[1:]} | {"far"} == drive(server, read_below(["far"]))


def test_of_homes_equally_near_the_one_at_the_end_of_the_smallest_edge_is_meant() -> None:
    server = Server()
    homes = [entity(id_, at(0), entity_type="home") for id_ in ("h1", "h2", "h3")]
    rooms = [entity(id_, at(0), entity_type="room") for id_ in ("r1", "r2")]
    lamp = entity("lamp", at(0))
    server.push(*homes, *rooms, lamp)
    server.push(
        edge("b", lamp, rooms[0]),
        edge("a", lamp, rooms[1]),
        edge("c", rooms[0], homes[0]),
        edge("e", rooms[1], homes[0]),
        edge("d", rooms[1], homes[1]),
    )

    assert ("h1", "h2", "h2") == tuple(map(whole(server).home_of, ("r1", "r2", "lamp")))
    server.push(edge("z", lamp, homes[2]))
    assert "h3" == whole(server).home_of("lamp")


def test_a_circle_of_rooms_is_no_way_home_and_no_way_to_hang() -> None:
    server = Server()
    rooms = [entity(id_, at(0), entity_type="room") for id_ in ("r1", "r2")]
    server.push(*rooms, entity("h", at(0), entity_type="home"))
    server.push(edge("a", rooms[0], rooms[1]), edge("b", rooms[1], rooms[0]), edge("c", rooms[0], rooms[0]))

    assert "h" == whole(server).home_of("r1")
    assert {"r1", "r2"} == drive(server, read_below(["r1"]))


# --- the laws -----------------------------------------------------------------------------------------------------


@given(graphs(), st.data())
def test_a_record_written_back_as_it_was_is_no_edit(server: Server, data: st.DataObject) -> None:
    graph = whole(server)
    record = pick(data, graph)

    assert put(server, edit_of(graph, record, plain(record))).change is None


@given(graphs(), st.data())
def test_an_edit_is_seen_in_the_view_that_follows(server: Server, data: st.DataObject) -> None:
    graph = whole(server)
    record = pick(data, graph)
    edit = pick_edit(data, graph, record)
    put(server, edit)
    after = record_again(whole(server), record, edit.entity_id)

    assert plain(record) | edit.item.fields | {k: plain(after)[k] for k in STAMPS & plain(after).keys()} == plain(after)


@given(graphs(), st.data())
def test_of_two_edits_only_the_last_is_seen(server: Server, data: st.DataObject) -> None:
    graph = whole(server)
    record = pick(data, graph)
    first, last = pick_edit(data, graph, record, at(100)), pick_edit(data, graph, record, at(101))
    alone = Server(server.store.copy())  # type: ignore[attr-defined]
    put(alone, last)
    put(server, first)
    put(server, last)

    assert told(server, record, last) == told(alone, record, last)


def told(server: Server, record: Any, edit: Edit) -> dict[str, Any]:
    """What a record says, without its times and names."""
    again = plain(record_again(whole(server), record, edit.entity_id))
    return {key: value for key, value in again.items() if key not in STAMPS}


@given(graphs(), st.data())
def test_what_v1_cannot_see_survives_any_v1_edit(server: Server, data: st.DataObject) -> None:
    graph = whole(server)
    before = doc_of(graph)
    record = pick(data, graph)
    edit = pick_edit(data, graph, record)
    _, losses = lens.view(graph)
    made = put(server, edit)
    after = doc_of(whole(server))

    moved = {each.id for each in made.change.relationships} if made.change else set()
    changed = {pointer("entities", edit.entity_id, "content", *edit.path, key) for key in edit.item.fields}
    # A new row has a version, parents, an author and no checksum; a new value of an edge names the rows at its ends.
    changed |= {
        pointer("entities", edit.entity_id, key) for key in ("version", "parent_versions", "user_id", "checksum")
    }
    names = ("version", "from_entity_version", "to_entity_version", "user_id")
    changed |= {pointer("relationships", id_, key) for id_ in moved for key in names}
    if "bridge_id" in edit.item.fields:
        changed |= {pointer("relationships", id_, "properties", "deleted") for id_ in moved}
    for loss in losses:
        if loss.pointer not in changed and loss.pointer.removeprefix("/relationships/") not in moved:
            assert at_pointer(before, loss.pointer) == at_pointer(after, loss.pointer)
    for kind in ("entities", "relationships"):
        for id_ in before[kind]:
            if id_ != edit.entity_id and id_ not in moved:
                assert before[kind][id_] == after[kind][id_]


def at_pointer(doc: Any, text: str) -> Any:
    for key in text.split("/")[1:]:
        doc = doc[key.replace("~1", "/").replace("~0", "~")]
    return doc


@given(graphs(), st.data())
def test_a_deleted_record_is_gone_and_nothing_else_is(server: Server, data: st.DataObject) -> None:
    graph = whole(server)
    record = pick(data, graph)
    edit = edit_of(graph, record, {}, delete=True)
    before = doc_of(graph)
    assert put(server, edit).change is not None
    after = doc_of(whole(server))
    old, new = (doc["entities"][edit.entity_id]["content"] for doc in (before, after))

    if edit.path:
        assert lens.content_at(new, edit.path) is None
        assert old == lens._with(new, edit.path, lens.content_at(old, edit.path))
    else:
        assert old | {"deleted": True} == new
    again = edit_of(graph, record, {}, at(101), delete=True)
    assert (
        lens.apply(again, Known(fields={}, base=whole(server).entities[edit.entity_id].entity()), whole(server)).change
        is None
    )
    for kind in ("entities", "relationships"):
        assert {k: v for k, v in before[kind].items() if k != edit.entity_id} == {
            k: v for k, v in after[kind].items() if k != edit.entity_id
        }


# --- single rules -------------------------------------------------------------------------------------------------


def small() -> Server:
    """Two homes, a room in the first, a lamp in the room, a hub in the second."""
    server = Server()
    things = {
        "h1": entity("h1", at(0), {"is_primary": True}, entity_type="home"),
        "h2": entity("h2", at(0), entity_type="home"),
        "r": entity("r", at(0), entity_type="room"),
        "lamp": entity("lamp", at(0), {"zigbee": 11, "services": {"s": {"name": "L", "x": 1}}}),
        "hub": entity("hub", at(0)),
    }
    server.push(*things.values())
    server.push(
        edge("in-home", things["r"], things["h1"], at(0), relationship_type="part_of"),
        edge("in-room", things["lamp"], things["r"], at(0)),
        edge("hub-home", things["hub"], things["h2"], at(0), relationship_type="part_of"),
    )
    return server


def written(
    server: Server, type_: str, data: dict[str, Any], known: Known | None = None, version: str = at(100)
) -> Made:
    item = item_of("/changes/0", {"entity_type": type_, "entity_id": data["id"], "operation": "", "data": data}, LIMITS)
    assert item.problem is None
    edit = Edit(item=item, entity_id=data["id"], version=version, user="v1", graph="g")
    return put(server, edit, known)


def test_a_move_makes_one_edge_with_a_stable_id_and_moves_it_after_that() -> None:
    server = small()
    first = written(server, "accessory", {"id": "lamp", "home_id": "h2"})
    second = written(server, "accessory", {"id": "lamp", "home_id": "h1"}, version=at(101))

    assert first.change is not None
    assert second.change is not None
    assert first.change.entity is None
    assert [lens.edge_id("g", "lamp", "home_id")] == [each.id for each in first.change.relationships]
    assert [each.id for each in first.change.relationships] == [each.id for each in second.change.relationships]
    assert "h1" == whole(server).home_of("lamp")
    assert "located_in" == server.held(Reads(edges=("in-room",))).edges["in-room"].entity_type


def test_a_move_points_an_edge_that_is_there_to_the_other_home() -> None:
    server = small()
    made = written(server, "room", {"id": "r", "home_id": "h2", "name": "r"})

    assert made.change is not None
    assert ["in-home"] == [each.id for each in made.change.relationships]
    assert ("h2", "h2") == (whole(server).home_of("r"), whole(server).home_of("lamp"))


def test_a_bridge_is_tied_moved_and_untied_on_one_edge() -> None:
    server = small()
    server.push(entity("hub2", at(0)))
    ids: set[str] = set()
    for count, bridge in enumerate(("hub", "hub2", None, "hub")):
        made = written(server, "accessory", {"id": "lamp", "bridge_id": bridge}, version=at(100 + count))
        assert made.change is not None
        ids.update(each.id for each in made.change.relationships)
        assert bridge == lens.link_of(whole(server), "lamp", "bridge_id")

    assert {lens.edge_id("g", "lamp", "bridge_id")} == ids
    assert "h1" == whole(server).home_of("lamp")


def test_a_device_with_two_bridges_is_untied_from_both() -> None:
    server = small()
    things = {id_: server.current(id_) for id_ in ("lamp", "hub")}
    for id_ in ("x", "y"):
        properties = {"role": "bridge", "port": id_}
        server.push(edge(id_, things["lamp"], things["hub"], relationship_type="part_of", properties=properties))
    made = written(server, "accessory", {"id": "lamp", "bridge_id": None})

    assert made.change is not None
    assert [b'{"deleted":true,"port":"x","role":"bridge"}', b'{"deleted":true,"port":"y","role":"bridge"}'] == [
        bytes(each.properties) for each in made.change.relationships
    ]
    assert lens.link_of(whole(server), "lamp", "bridge_id") is None


def gone(server: Server, id_: str) -> None:
    old = server.current(id_)
    content = json.loads(bytes(old.content)) | {"deleted": True}
    server.push(entity(id_, at(50), content, entity_type=old.entity_type, parent_versions=(old.version,)))


def test_what_is_deleted_leads_nowhere() -> None:
    server = small()
    server.push(edge("moved", server.current("r"), server.current("h2"), at(1)))
    server.push(edge("in-home", server.current("r"), server.current("h1"), at(1), properties={"deleted": True}))
    assert "h2" == whole(server).home_of("lamp")
    gone(server, "r")
    assert "h1" == whole(server).home_of("lamp"), "the placeholder"
    server.push(edge("b", server.current("lamp"), server.current("hub"), relationship_type="part_of"))
    assert "h2" == whole(server).home_of("lamp")
    gone(server, "hub")
    assert "h1" == whole(server).home_of("lamp")


def test_a_bridge_or_home_that_is_deleted_is_hidden_and_its_edge_left_alone() -> None:
    server = small()
    written(server, "accessory", {"id": "lamp", "bridge_id": "hub"})
    gone(server, "hub")
    gone(server, "h1")
    graph = whole(server)
    assert (None, "h2") == (lens.link_of(graph, "lamp", "bridge_id"), graph.home_of("r"))
    server.push(entity("h3", at(60), entity_type="home"))
    made = written(server, "room", {"id": "r", "home_id": "h3"})

    assert made.change is not None
    assert [lens.edge_id("g", "r", "home_id")] == [each.id for each in made.change.relationships]


def test_a_bridge_says_where_a_device_is_only_if_nothing_else_does() -> None:
    server = small()
    things = {id_: server.current(id_) for id_ in ("lamp", "hub")}
    bulb = entity("bulb", at(0))
    server.push(bulb)
    server.push(
        edge("a", bulb, things["hub"], relationship_type="part_of", properties={"role": "bridge"}),
        edge("b", things["lamp"], things["hub"], relationship_type="part_of", properties={"role": "bridge"}),
    )

    assert ("h2", "h1") == (whole(server).home_of("bulb"), whole(server).home_of("lamp"))


def test_a_link_to_a_deleted_home_is_kept_and_hidden() -> None:
    server = small()
    h2 = server.current("h2")
    server.push(entity("h2", at(1), {"deleted": True}, entity_type="home", parent_versions=(h2.version,)))
    made = written(server, "room", {"id": "r", "home_id": "h2"})

    assert (lens.Loss("/data/home_id", "deleted"),) == made.losses
    assert "h1" == whole(server).home_of("r")


@pytest.mark.parametrize(("link", "target"), [("home_id", "nowhere"), ("home_id", "r"), ("bridge_id", "h1")])
def test_a_link_to_what_is_not_there_is_refused_and_the_rest_is_taken(link: str, target: str) -> None:
    server = small()
    made = written(server, "accessory", {"id": "lamp", "name": "new", link: target})

    assert made.problem is not None
    assert ("unknown_reference", f"/changes/0/data/{link}") == (made.problem.code, made.problem.pointer)
    assert "new" == server.current("lamp").name


def test_keys_that_v1_does_not_have_are_declared_lost() -> None:
    made = written(small(), "home", {"id": "h1", "name": "new", "a/b": 1})

    assert (lens.Loss("/data/a~1b", "ignored"),) == made.losses


def test_an_unseen_base_keeps_what_v1_cannot_say_and_overwrites_nothing_silently() -> None:
    server = small()
    lamp = whole(server).entities["lamp"]
    graph = whole(server)
    fields = lens.fields_of(SHAPES["accessory"], *said(lamp))
    item = item_of("/changes/0", change_of("accessory", {"id": "lamp", "name": "new"}), LIMITS)
    edit = Edit(item=item, entity_id="lamp", version=at(100), user="v1")
    made = lens.apply(edit, Known(fields=fields, base=lamp.entity(), named=False), graph)

    assert made.change is not None
    assert made.change.entity is not None
    assert () == made.change.entity.parent_versions
    assert json.loads(lamp.body)["content"] == json.loads(bytes(made.change.entity.content))


def test_an_edit_is_no_merge_and_has_no_checksum_of_what_was_before() -> None:
    server = small()
    old = server.current("lamp")
    server.push(entity("lamp", at(1), {}, parent_versions=(old.version,), merged=True, checksum="abc"))
    written(server, "accessory", {"id": "lamp", "is_blocked": True})
    lamp = server.current("lamp")

    assert (None, msgspec.UNSET, "v1") == (lamp.checksum, lamp.merged, lamp.user_id)


def change_of(type_: str, data: dict[str, Any], operation: str = "update") -> dict[str, Any]:
    return {"entity_type": type_, "entity_id": data["id"], "operation": operation, "data": data}


def test_a_tombstone_comes_back_only_by_an_edit_that_knew_it() -> None:
    server = small()
    lamp = server.current("lamp")
    gone = entity("lamp", at(1), {"deleted": True, "zigbee": 11}, parent_versions=(lamp.version,))
    server.push(gone)
    graph = whole(server)
    fields = {"name": "lamp", "home_id": "h1", "bridge_id": None}
    item = item_of("/changes/0", change_of("accessory", {"id": "lamp", "name": "lamp"}), LIMITS)
    edit = Edit(item=item, entity_id="lamp", version=at(100), user="v1")
    blind = lens.apply(edit, Known(fields=fields, base=gone, named=False), graph)
    seeing = lens.apply(edit, Known(fields=fields, base=gone), graph)

    for made, parents in ((blind, ()), (seeing, (gone.version,))):
        assert made.change is not None
        assert made.change.entity is not None
        assert (parents, b'{"zigbee":11}') == (
            made.change.entity.parent_versions,
            bytes(made.change.entity.content),
        )


NESTED = [
    # content of the device, path, code; None: taken
    ({}, ("services", "s"), None),
    ({"services": []}, ("services", "s"), "type_conflict"),
    ({"services": {"s": 1}}, ("services", "s"), "type_conflict"),
    ({}, ("services", "s", "characteristics", "c"), "unknown_reference"),
    ({"services": {"s": {}}}, ("services", "s", "characteristics", "c"), None),
    ({"services": {"s": {"characteristics": 1}}}, ("services", "s", "characteristics", "c"), "type_conflict"),
    ({"services": {"s": {"characteristics": {"c": None}}}}, ("services", "s", "characteristics", "c"), "type_conflict"),
    ({"services": {"s": {}}, "deleted": True}, ("services", "s"), "unknown_reference"),
]


@pytest.mark.parametrize(("content", "path", "code"), NESTED)
def test_a_nested_record_is_written_where_nothing_else_stands(
    content: dict[str, Any], path: tuple[str, ...], code: str | None
) -> None:
    server = Server()
    server.push(entity("d", at(0), content))
    type_ = "service" if len(path) == 2 else "characteristic"
    item = item_of("/changes/0", change_of(type_, {"id": path[-1], "is_primary": False, "is_readable": True}), LIMITS)
    edit = Edit(item=item, entity_id="d", path=path, version=at(100), user="v1")
    known = Known(fields=None, base=server.current("d"))
    made = lens.apply(edit, known, whole(server))

    assert code == (made.problem.code if made.problem else None)
    if code is None:
        assert made.change is not None
        assert made.change.entity is not None
        assert lens.content_at(json.loads(bytes(made.change.entity.content)), path) is not None
    removed = lens.apply(
        msgspec.structs.replace(edit, item=msgspec.structs.replace(item, delete=True)), known, whole(server)
    )
    assert removed.problem is None


def test_a_new_entity_needs_a_name_and_an_id_of_its_own() -> None:
    server = small()
    assert (problem := written(server, "room", {"id": "new", "home_id": "h1"}, Known()).problem) is not None
    assert ("malformed_change", "/changes/0/data/name") == (problem.code, problem.pointer)
    for type_, id_ in (("room", "h1"), ("user", "r"), ("accessory", "h1")):
        item = item_of("/changes/0", change_of(type_, {"id": id_, "name": "x"}), LIMITS)
        edit = Edit(item=item, entity_id=id_, version=at(100), user="v1")
        made = lens.apply(edit, Known(fields={}, base=server.current(id_)), whole(server))
        assert made.problem is not None
        assert "type_conflict" == made.problem.code


def test_a_new_user_is_a_note_that_says_so() -> None:
    server = small()
    made = written(server, "user", {"id": "u", "name": "Ann", "home_id": "h1", "is_owner": True}, Known())

    assert made.change is not None
    assert made.change.entity is not None
    assert ("note", b'{"is_owner":true,"kind":"user"}') == (
        made.change.entity.entity_type,
        bytes(made.change.entity.content),
    )
    assert ["u"] == [record.id for record in lens.view(whole(server))[0] if type_of(record) == "user"]


def test_the_time_of_a_record_rises_with_its_row_and_its_edges() -> None:
    server = small()
    seen = []
    steps: list[tuple[str, dict[str, Any], float]] = [
        ("accessory", {"home_id": "h2"}, 50),
        ("accessory", {"name": "early"}, 20),
        ("accessory", {"name": "late"}, 60),
        ("accessory", {"bridge_id": "hub"}, 70),
        ("accessory", {"bridge_id": None}, 71),
    ]
    for type_, data, time in steps:
        written(server, type_, {"id": "lamp"} | data, version=at(time))
        seen.append(record_of(server, "lamp").updated_at)

    assert sorted(set(seen)) == seen
    room = record_of(server, "lamp").updated_at
    lamp = server.current("lamp")
    server.push(edge("in-room", lamp, server.current("r"), at(99)))
    assert room == record_of(server, "lamp").updated_at, "what v1 cannot see must not overwrite a pending edit"


def record_of(server: Server, id_: str) -> Any:
    return next(record for record in lens.view(whole(server))[0] if record.id == id_)


def test_an_empty_graph_and_a_graph_without_a_home_show_what_they_can() -> None:
    server = Server()
    assert ((), ()) == lens.view(graph_of(Head(epoch="e"), ()))
    server.push(entity("r", at(0), entity_type="room"), entity("x", at(0), entity_type="door"))
    records, losses = lens.view(whole(server))

    assert () == records
    assert [("/entities/r", "no_home"), ("/entities/x", "type")] == [(loss.pointer, loss.reason) for loss in losses]


def test_the_oldest_primary_home_stands_in_for_none() -> None:
    server = Server()
    homes = [("a", 3, True), ("b", 2, True), ("c", 1, False)]
    server.push(*(entity(i, at(t), {"is_primary": p}, entity_type="home") for i, t, p in homes))
    server.push(entity("r", at(0), entity_type="room"))

    assert "b" == whole(server).home_of("r")


def test_v1_declares_what_it_carries() -> None:
    assert {"entity.id", "entity.name", "entity.content.is_primary", "relationship.to_entity_id"} <= lens.CARRIES
    assert "entity.content.services/*/characteristics/*/value" in lens.CARRIES
    assert "entity.parent_versions" not in lens.CARRIES


def test_a_draft_is_built_on_by_what_comes_after_it() -> None:
    server = small()
    graph, draft = whole(server), Draft()
    made = []
    edits: list[dict[str, Any]] = [{"name": "one"}, {"is_blocked": True}, {"name": "lamp"}, {"name": "lamp"}]
    for count, fields in enumerate(edits):
        item = item_of("/changes/0", change_of("accessory", {"id": "lamp"} | fields), LIMITS)
        edit = Edit(item=item, entity_id="lamp", version=at(100 + count), user="v1")
        known = Known(fields={"name": "lamp", "is_blocked": False}, base=graph.entities["lamp"].entity())
        made.append(lens.apply(edit, known, graph, draft))
        draft.add(edit, made[-1])
    rows = [each.change.entity for each in made if each.change and each.change.entity]

    assert made[-1].change is None
    assert [rows[0].version] == list(rows[1].parent_versions)
    assert ["one", "one", "lamp"] == [row.name for row in rows]
    assert isinstance(made[0].change, Change)
    assert edit_time(rows[0].version) is not None
