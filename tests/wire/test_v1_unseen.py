"""What v1 does not show is told; and what it should show or declare and does not, is found."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from inbetweenies import exchange
from inbetweenies.model import Change, SyncRequest
from inbetweenies.wire import Unseen
from inbetweenies.wire.v1 import WIRE, lens, unseen
from tests.support import Server, at, edge, entity, run
from tests.wire.v1_support import graphs, whole

HOME = entity("h", at(0), {"is_primary": True, "colour": "red"}, entity_type="home")
LAMP = entity(
    "a",
    at(1),
    {
        "model": 7,
        "services": {"s": {"name": "Light", "characteristics": {"c": {"value": "1", "min_value": 1}, "d": 7}}, "t": 7},
    },
)
HUB = entity("b", at(2), {"services": 7})
USER = entity("u", at(3), {"kind": "user", "odd~/": 1}, entity_type="note")
NOTE = entity("n", at(3), {"kind": "other"}, entity_type="note")
EDGES = (
    edge("to home", LAMP, HOME, relationship_type="part_of", properties={"why": 1}),
    edge("to hub", LAMP, HUB, relationship_type="part_of", properties={"role": "bridge", "why": 1}),
    edge("controls", LAMP, HUB, relationship_type="controls"),
    edge("of note", NOTE, HOME, relationship_type="part_of"),
)


def server() -> Server:
    server = Server()
    changes = [Change(entity=one) for one in (HOME, LAMP, HUB, USER, NOTE)]
    changes += [Change(relationships=(one,)) for one in EDGES]
    server.ask(SyncRequest(device="d", user="ann", changes=tuple(changes)))
    return server


def found(server: Server) -> Unseen:
    return run(exchange.carry_out(WIRE.unseen, server.store, "default", write=False))


def test_what_is_not_shown_is_told_by_type_and_field() -> None:
    seen = found(server())

    assert ((), 9, 6) == (seen.unexplained, seen.rows, seen.records)
    told = {(one.type, one.field, one.reason) for one in seen.unshown}
    assert told >= {
        ("home", "content/colour", "field"),
        ("device", "content/model", "value"),
        ("device", "content/services", "value"),
        ("device", "content/services/*", "value"),
        ("device", "content/services/*/characteristics/*", "value"),
        ("note", "", "type"),
        ("note", "content/odd~/", "field"),
        ("controls", "", "edge"),
        ("part_of", "properties/why", "field"),
        ("part_of", "", "edge"),
    }


@given(graphs())
def test_nothing_of_any_graph_is_without_explanation(server: Server) -> None:
    assert () == found(server).unexplained


@pytest.mark.parametrize("drop", ["Home", "Accessory", "User", "Service", "Characteristic"])
def test_a_record_that_is_missing_is_found(monkeypatch: pytest.MonkeyPatch, drop: str) -> None:
    plain = lens.view

    def without(graph: Any) -> Any:
        records, losses = plain(graph)
        return tuple(one for one in records if type(one).__name__ != drop), losses

    monkeypatch.setattr(unseen, "view", without)
    lost = set(found(server()).unexplained)
    wanted = {
        "Home": {"/entities/h"},
        "Accessory": {"/entities/a", "/entities/b", "/relationships/to home", "/relationships/to hub"},
        "User": {"/entities/u"},
        "Service": {"/entities/a/content/services/s"},
        "Characteristic": {"/entities/a/content/services/s/characteristics/c"},
    }
    assert wanted[drop] == lost


def test_a_loss_that_is_not_declared_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lens.view
    for loss in plain(whole(server()))[1]:

        def without(graph: Any, pointer: str = loss.pointer) -> Any:
            records, losses = plain(graph)
            return records, tuple(loss for loss in losses if loss.pointer != pointer)

        monkeypatch.setattr(unseen, "view", without)
        assert loss.pointer in {pointer[: len(loss.pointer)] for pointer in found(server()).unexplained}


@pytest.mark.parametrize(("field", "pointer"), [("name", "/entities/a/name"), ("home_id", "/relationships/to home")])
def test_another_value_than_that_of_the_graph_is_found(
    monkeypatch: pytest.MonkeyPatch, field: str, pointer: str
) -> None:
    plain = lens.view

    def other(graph: Any) -> Any:
        records, losses = plain(graph)
        for one in records:
            if type(one).__name__ == "Accessory" and one.id == "a":
                setattr(one, field, "other")
        return records, losses

    monkeypatch.setattr(unseen, "view", other)
    assert (pointer,) == found(server()).unexplained
