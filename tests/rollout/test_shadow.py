"""What wire versions show of a graph (PROTOCOL 12.10): no false alarm, and every planted fault found, with its id."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from msgspec import UNSET
from msgspec.structs import replace

from inbetweenies.exchange import carry_out
from inbetweenies.limits import LIMITS, Limits
from inbetweenies.model import Context, Head, Plan, Reads, Row, Span, SyncResponse, Telling, Writes
from inbetweenies.ops.shadow import comparable
from inbetweenies.rollout import shadow
from inbetweenies.rollout.shadow import MISMATCHES_MAX, Compared, Fact, Mismatch, View, compare, pointer
from inbetweenies.stores.keeper import run_now
from inbetweenies.testing import MixedFleet
from inbetweenies.wire import load
from tests.support import Server, at, edge, entity
from tests.wire.v1_support import graphs

NEWER, OLDER = comparable(load().values())
ALL: Final = Span(after=0, upto=2**53 - 1)


def compared(server: Server, *wires: Any, **more: Any) -> Compared:
    plan: Callable[[], Plan[Compared]] = lambda: compare(wires or (NEWER, OLDER), Context(now=1), LIMITS, **more)  # noqa: E731
    return run_now(carry_out(plan, server.store, "default", write=False))


def unlisted(view: View, *pointers: str) -> dict[str, str]:
    """Its losses without these."""
    return {pointer: reason for pointer, reason in view.losses.items() if pointer not in pointers}


def house() -> Server:
    """A home, two rooms, a bridge and a device behind it, a user, what v1 cannot say, an edit, a tombstone."""
    server = Server()
    home = entity("h", at(1), {"is_primary": True}, entity_type="home")
    kitchen, hall = (entity(id_, at(2), {"floor": 1}, entity_type="room") for id_ in ("kitchen", "hall"))
    services = {"s": {"service_type": "lamp", "characteristics": {"c": {"characteristic_type": "on", "value": "1"}}}}
    bridge = entity("bridge", at(3), {"manufacturer": "Acme", "is_bridge": True})
    lamp = entity("lamp", at(3), {"manufacturer": "Acme", "watts": 7, "services": services})
    user = entity("ann", at(4), {"kind": "user", "is_owner": True}, entity_type="note")
    door = entity("door", at(5), {}, entity_type="door")
    server.push(home, kitchen, hall, bridge, lamp, user, door)
    server.push(
        edge("e1", kitchen, home, relationship_type="part_of"),
        edge("e2", lamp, kitchen),
        edge("e3", lamp, bridge, relationship_type="part_of", properties={"role": "bridge", "port": 2}),
        edge("e4", door, hall),
    )
    server.push(entity("kitchen", at(9), {"floor": 2}, entity_type="room", name="Kitchen", parent_versions=(at(2),)))
    server.push(entity("hall", at(10), {"deleted": True}, entity_type="room", parent_versions=(at(2),)))
    return server


class Wrapped:
    """A wire version that makes a mistake in what it answers, or in what it says that it must show."""

    def __init__(
        self,
        inner: Any,
        answer: Callable[[dict[str, Any]], object] = lambda _: None,
        view: Callable[[View], View] = lambda view: view,
    ) -> None:
        self.inner = inner
        self.name = inner.name
        self._answer = answer
        self._view = view

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def down(
        self, message: Any, response: SyncResponse, context: Context, limits: Limits, negotiation: Any = UNSET
    ) -> Telling:
        pieces: list[bytes] = []
        last = yield from shadow._stranger(self.inner.down(message, response, context, limits, negotiation), pieces)
        told = json.loads(b"".join([*pieces, last]))
        self._answer(told)
        return msgspec.json.encode(told)

    def view(self, head: Head, rows: Sequence[Row]) -> View:
        return self._view(self.inner.view(head, rows))


# --- no false alarms ----------------------------------------------------------------------------------------------


@given(graphs())
def test_what_is_installed_shows_every_graph_as_it_must(server: Server) -> None:
    found = compared(server)

    assert () == found.mismatches
    assert ((NEWER.name, OLDER.name), 0, False) == (found.versions, found.count, found.left)


def test_every_page_of_a_large_graph_is_compared() -> None:
    server = house()
    server.push(*(entity(f"r{n}", at(1), entity_type="room") for n in range(2_500)))
    found = compared(server)

    assert (0, 2_511) == (found.count, found.rows)


def test_whatever_a_mixed_fleet_writes_is_shown_as_it_must_be() -> None:
    class Compares(MixedFleet):
        def teardown(self) -> None:
            super().teardown()
            if not self.failed and hasattr(self, "store") and self.store is not None:
                plan: Callable[[], Plan[Compared]] = lambda: compare((NEWER, OLDER), Context(now=1), LIMITS)  # noqa: E731
                assert () == run_now(carry_out(plan, self.store, "default", write=False)).mismatches

    run_state_machine_as_test(Compares)


def test_it_leaves_no_trace_and_asks_as_somebody_who_was_never_here() -> None:
    server = house()
    # Somebody of that name was, and would be told what was deleted.
    own = OLDER.decode(OLDER.everything(), limits=LIMITS)
    context = Context(now=1)
    run_now(carry_out(lambda: _served(OLDER, own, context), server.store, "default", write=True))
    before = server.held(Reads(span=ALL, device=_device(own, context)))

    assert 0 == compared(server).count
    assert before == server.held(Reads(span=ALL, device=_device(own, context)))
    assert before.device is not None


def _served(wire: Any, message: Any, context: Context) -> Plan[SyncResponse]:
    from inbetweenies.engine import serve

    request = yield from wire.up(message, context, LIMITS)
    response = yield from serve(request, context, LIMITS)
    telling = wire.down(message, response, context, LIMITS)
    step = next(telling)
    while True:
        try:
            step = next(telling) if isinstance(step, bytes) else telling.send((yield step))
        except StopIteration:
            return response


def _device(message: Any, context: Context) -> str:
    return str(next(OLDER.down(message, None, context, LIMITS)).device)  # type: ignore[arg-type, union-attr]


# --- faults of an answer ------------------------------------------------------------------------------------------


def change_of(told: dict[str, Any], id_: str) -> dict[str, Any]:
    """What an answer says of one thing, in either version."""
    changes: list[dict[str, Any]] = told["changes"]
    return next(one for one in changes if id_ in (one.get("entity_id"), (one.get("entity") or {}).get("id")))


def without(id_: str) -> Callable[[dict[str, Any]], object]:
    return lambda told: told["changes"].remove(change_of(told, id_))


def twice(id_: str) -> Callable[[dict[str, Any]], object]:
    return lambda told: told["changes"].append(change_of(told, id_))


def renamed(id_: str) -> Callable[[dict[str, Any]], object]:
    def stale(told: dict[str, Any]) -> None:
        change = change_of(told, id_)
        (change.get("entity") or change["data"])["name"] = "kitchen"  # as it was before

    return stale


def invented(id_: str) -> Callable[[dict[str, Any]], object]:
    def made_up(told: dict[str, Any]) -> None:
        change = json.loads(json.dumps(change_of(told, id_)))
        if "entity" in change:
            change["entity"]["id"] = "ghost"
            change["relationships"] = []
        else:
            change["entity_id"] = change["data"]["id"] = "ghost"
        told["changes"].append(change)

    return made_up


def without_edges(told: dict[str, Any]) -> None:
    for change in told["changes"]:
        change["relationships"] = [each for each in change["relationships"] if each["id"] != "e3"]


def forgetful(told: dict[str, Any]) -> None:
    del change_of(told, "lamp")["entity"]["content"]["watts"]


ONCE: Final = "expected it 1 times; got it 2 times"
NO_SUCH: Final = "expected nothing, as the graph has no such thing; got it"
FAULTS: dict[str, tuple[Any, Callable[[dict[str, Any]], object], str, str, str]] = {
    "v1 lost": (OLDER, without("kitchen"), "room", "kitchen", "expected it; it is not shown"),
    "v1 twice": (OLDER, twice("kitchen"), "room", "kitchen", ONCE),
    "v1 stale": (OLDER, renamed("kitchen"), "room", "kitchen", "expected what the graph says; got something else"),
    "v1 invented": (OLDER, invented("lamp"), "accessory", "ghost", NO_SUCH),
    "v1 nested": (OLDER, without("c"), "characteristic", "c", "expected it; it is not shown"),
    "v2 lost": (NEWER, without("hall"), "entity", "hall", "expected it; it is not shown"),
    "v2 twice": (NEWER, twice("h"), "entity", "h", ONCE),
    "v2 stale": (NEWER, renamed("kitchen"), "entity", "kitchen", "expected what the graph says; got something else"),
    "v2 invented": (NEWER, invented("h"), "entity", "ghost", NO_SUCH),
    "v2 edge": (NEWER, without_edges, "edge", "e3", "expected it; it is not shown"),
    "v2 field": (NEWER, forgetful, "entity", "lamp", "expected what the graph says; got something else"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_an_answer_is_found_and_its_version_named(name: str) -> None:
    wire, fault, kind, id_, told = FAULTS[name]
    both = [Wrapped(each, fault) if each is wire else each for each in (NEWER, OLDER)]
    found = compared(house(), *both)

    assert (Mismatch(version=wire.name, kind=kind, id=id_, told=told),) == found.mismatches
    assert 1 == found.count


def test_a_wrapped_version_without_a_fault_is_as_good() -> None:
    assert 0 == compared(house(), Wrapped(NEWER), Wrapped(OLDER)).count


@given(graphs(), st.data())
def test_whatever_is_left_out_of_an_answer_is_missed(server: Server, data: st.DataObject) -> None:
    wire = data.draw(st.sampled_from([NEWER, OLDER]), label="version")
    dropped: list[Any] = []

    def drop(told: dict[str, Any]) -> None:
        if told["changes"]:
            dropped.append(told["changes"].pop(data.draw(st.integers(0, len(told["changes"]) - 1))))

    found = compared(server, Wrapped(wire, drop))
    assert bool(dropped) == bool(found.count)


# --- faults of a lens: answer and view agree, and both are wrong --------------------------------------------------


def module(wire: Any, *more: str) -> Any:
    """The module of a wire version, or one in it."""
    return importlib.import_module(".".join((type(wire).__module__, *more)))


def test_a_field_that_no_record_shows_any_more_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = module(OLDER, "lens")
    values = lens._values

    def without_maker(shape: Any, content: dict[str, Any]) -> Any:
        return values(shape, {key: value for key, value in content.items() if key != "manufacturer"})

    monkeypatch.setattr(lens, "_values", without_maker)
    found = compared(house())

    told = "expected what the graph says at /entities/{}/content/manufacturer; something else is shown"
    assert {("entity", id_, told.format(id_)) for id_ in ("bridge", "lamp")} == {
        (one.kind, one.id, one.told) for one in found.mismatches
    }


def test_a_thing_that_is_neither_shown_nor_declared_lost_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = module(OLDER, "lens")
    record_of = lens.record_of

    def none_of_lamps(graph: Any, row: Row, token: str, **more: Any) -> Any:
        return None if row.id == "lamp" else record_of(graph, row, token, **more)

    monkeypatch.setattr(lens, "record_of", none_of_lamps)
    monkeypatch.setattr(module(OLDER, "pull"), "record_of", none_of_lamps)
    found = compared(house())

    assert {"lamp", "e3"} == {one.id for one in found.mismatches}
    assert "expected /entities/lamp/content/manufacturer to be shown, or declared lost; it is neither" in [
        one.told for one in found.mismatches
    ]


def test_a_home_that_is_another_than_the_edge_says_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    server = house()
    server.push(entity("h2", at(20), {}, entity_type="home"))
    graph = module(OLDER, "graph").Graph
    monkeypatch.setattr(graph, "home_of", lambda self, id_: "h2")
    found = compared(server)

    assert [("edge", "e1")] == [(one.kind, one.id) for one in found.mismatches]


@pytest.mark.parametrize(
    ("view", "kind", "id_", "told"),
    [
        (
            lambda view: replace(view, losses=unlisted(view, "/entities/lamp/content/watts")),
            "entity",
            "lamp",
            "expected /entities/lamp/content/watts to be shown, or declared lost; it is neither",
        ),
        (
            lambda view: replace(view, losses={**view.losses, "/entities/lamp/content/manufacturer": "field"}),
            "entity",
            "lamp",
            "expected /entities/lamp/content/manufacturer to be lost, as is declared; it is shown",
        ),
        (
            lambda view: replace(view, losses={**view.losses, "/relationships/no~1such~0edge/id": "field"}),
            "edge",
            "no/such~edge",
            "expected something at /relationships/no~1such~0edge/id, as it is declared lost; the graph says nothing",
        ),
        (
            lambda view: replace(view, facts=(*view.facts, Fact("/entities/h/content/age", 3, 2))),
            "entity",
            "h",
            "expected nothing at /entities/h/content/age, as in the graph; something is shown",
        ),
        (
            lambda view: replace(view, facts=(*view.facts, Fact("/entities/h/content/age", None))),
            "entity",
            "h",
            "expected nothing at /entities/h/content/age, as in the graph; something is shown",
        ),
        (
            lambda view: replace(view, facts=(*view.facts, Fact("/entities/h/name", "h"))),
            "entity",
            "h",
            "expected /entities/h/name to be shown once; got it several times",
        ),
    ],
)
def test_a_view_that_does_not_account_for_all_is_found(
    view: Callable[[View], View], kind: str, id_: str, told: str
) -> None:
    found = compared(house(), Wrapped(OLDER, view=view))

    assert (Mismatch(version=OLDER.name, kind=kind, id=id_, told=told),) == found.mismatches


@given(graphs(), st.data())
def test_every_loss_that_is_not_declared_is_found(server: Server, data: st.DataObject) -> None:
    missing: list[str] = []

    def silent(view: View) -> View:
        # What holds nothing is not lost.
        if view.losses:
            missing.append(data.draw(st.sampled_from(sorted(view.losses))))
        return replace(view, losses=unlisted(view, *missing))

    found = compared(server, Wrapped(OLDER, view=silent))
    if missing and not _empty(server, missing[0]):
        assert found.count


def _empty(server: Server, at_: str) -> bool:
    """Whether what is at a pointer holds no value, but for objects."""
    rows = {
        ("entities" if row.kind == "entity" else "relationships", row.id): row
        for row in server.held(Reads(span=ALL)).span
    }
    _, place, id_, *keys = at_.split("/")
    value = json.loads(rows[place, id_].body)
    for key in keys:
        value = value[key.replace("~1", "/").replace("~0", "~")]
    return _bare(value)


def _bare(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_bare, value.values()))


class Smaller(msgspec.Struct, kw_only=True):
    """An entity without its checksum."""

    id: str
    version: str
    entity_type: str
    name: str
    content: msgspec.Raw
    source_type: str
    user_id: str
    parent_versions: tuple[str, ...]


@pytest.mark.parametrize("declares", [True, False])
def test_what_a_version_does_not_carry_is_a_loss_only_if_it_says_so(
    declares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = module(NEWER)
    monkeypatch.setattr(newer, "_STORED_AS_SERVED", False)
    assert 0 == compared(house(), NEWER).count
    monkeypatch.setattr(newer, "EntityOut", Smaller)
    if declares:
        monkeypatch.setattr(newer, "CARRIES", newer.CARRIES - {"entity.checksum"})
    found = compared(house(), NEWER)

    assert (0 if declares else 7) == found.count
    assert all(f"expected /entities/{one.id}/checksum to be shown" in one.told for one in found.mismatches)


# --- what else can go wrong ---------------------------------------------------------------------------------------


class Raising(Wrapped):
    def view(self, head: Head, rows: Sequence[Row]) -> View:
        raise KeyError("a stored value")


class Writing(Wrapped):
    def down(
        self, message: Any, response: SyncResponse, context: Context, limits: Limits, negotiation: Any = UNSET
    ) -> Telling:
        yield Writes(head=response.head)
        return b""


@pytest.mark.parametrize(("wire", "error"), [(Raising, "KeyError"), (Writing, "LocalProtocolError")])
def test_a_version_that_raises_or_writes_differs_by_that(wire: type[Wrapped], error: str) -> None:
    server = house()
    found = compared(server, wire(OLDER), NEWER)

    told = f"expected an answer and a view of it; got {error}"
    assert (Mismatch(version=OLDER.name, kind="graph", id="default", told=told),) == found.mismatches


def test_of_too_many_only_the_first_are_told() -> None:
    server = Server()
    server.push(*(entity(f"d{n}", at(1)) for n in range(MISMATCHES_MAX + 5)))
    found = compared(server, Wrapped(NEWER, lambda told: told["changes"].clear()))

    assert (MISMATCHES_MAX, MISMATCHES_MAX + 5) == (len(found.mismatches), found.count)


def test_a_graph_that_is_too_large_is_left() -> None:
    server = house()
    rows = compared(server).rows

    assert compared(server, rows_max=rows) == compared(server, rows_max=None)
    assert compared(server, rows_max=rows - 1) == Compared(
        versions=(NEWER.name, OLDER.name), seq=13, rows=rows, left=True
    )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1, 1.0, True),
        (2**53 + 1, float(2**53), False),
        (1, True, False),
        (0, False, False),
        (None, UNSET, False),
        ({"a": [1, 2], "b": None}, {"b": None, "a": [1, 2]}, True),
        ("1", 1, False),
    ],
)
def test_values_are_the_same_as_in_json(one: Any, other: Any, same: bool) -> None:
    assert same == shadow._same(one, other)


def test_a_pointer_says_where_a_value_is() -> None:
    assert "/entities/a~1b/content/c~0d" == pointer("entity", "a/b", "content", "c~d")
    assert "/relationships/e" == pointer("edge", "e")


# --- planted bugs -------------------------------------------------------------------------------------------------


def nothing(*_: Any) -> list[Any]:
    """A check that is left out."""
    return []


@pytest.mark.parametrize("name", ["_shown_otherwise", "_accounts"])
def test_a_check_that_is_left_out_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = house()
    for fault in (
        Wrapped(OLDER, without("kitchen")),
        Wrapped(OLDER, view=lambda view: replace(view, losses={})),
    ):
        assert compared(server, fault).count
    monkeypatch.setattr(shadow, name, nothing)
    counts = [
        compared(server, fault).count
        for fault in (
            Wrapped(OLDER, without("kitchen")),
            Wrapped(OLDER, view=lambda view: replace(view, losses={})),
        )
    ]
    assert 0 in counts


def test_an_edge_that_comes_without_its_entity_is_shown_alone() -> None:
    answer = {"changes": [{"change_type": "update", "entity": None, "relationships": [{"id": "e"}]}]}
    [shown] = NEWER.shown(msgspec.json.encode(answer))
    assert ("edge", "e") == (shown.kind, shown.id)
