"""What older wire versions do not show of a graph is counted by type and field; nothing goes without explanation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from inbetweenies.model import Change, SyncRequest
from inbetweenies.ops.losses import Losses, plan
from inbetweenies.wire.v1 import lens
from tests.support import Server, at, edge, entity, run
from tests.wire.v1_support import graphs

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


def found(server: Server) -> Losses:
    [one] = run(plan(server.store, "default"))
    return one


def test_what_is_not_shown_is_told_by_type_and_field() -> None:
    seen = found(server())

    assert ("inbetweenies-v1", (), 9, 6) == (seen.version, seen.unexplained, seen.rows, seen.records)
    told = {(one.type, one.field, one.reason) for one in seen.losses}
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
    assert 2 == next(one.count for one in seen.losses if one.field == "properties/why")


@given(graphs())
def test_nothing_of_any_graph_is_without_explanation(server: Server) -> None:
    assert () == found(server).unexplained


@pytest.mark.parametrize("reason", ["type", "field", "value", "edge"])
def test_a_loss_that_is_not_declared_is_found(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    plain = lens.view

    def silent(graph: Any) -> Any:
        records, losses = plain(graph)
        return records, tuple(loss for loss in losses if loss.reason != reason)

    monkeypatch.setattr(lens, "view", silent)
    assert () != found(server()).unexplained
