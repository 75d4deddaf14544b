"""What the tests of v1 share: messy graphs, a v1 client in few words, and a second opinion on what the lens does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import UNSET, UnsetType

from inbetweenies import exchange
from inbetweenies.limits import LIMITS
from inbetweenies.model import Context, Entity, Head, Plan, Reads, Span, Telling
from inbetweenies.wire import Negotiation
from inbetweenies.wire.v1 import WIRE
from inbetweenies.wire.v1.codec import SHAPES
from inbetweenies.wire.v1.graph import Graph, graph_of
from tests.support import Server, at, edge, entity, run

PATHS = ("part_of", "located_in")
Doc = dict[str, dict[str, dict[str, Any]]]


# --- graphs -------------------------------------------------------------------------------------------------------

KEYS = sorted(
    {name for shape in SHAPES.values() for name in shape.fields} | {"kind", "deleted", "note", "a/b~c", "id", "home_id"}
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([2**53, 2**60, -(2**53) + 1])
    | st.sampled_from([0.0, -0.0, 0.5, 1e300])
    | st.sampled_from(["", "user", "x", "7", "\0é"])
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=2)
)
loose = st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4)


def fitting(type_: str) -> st.SearchStrategy[dict[str, Any]]:
    """Values as a v1 peer writes them."""
    choices: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in SHAPES[type_].fields.items():
        kinds: dict[type, st.SearchStrategy[Any]] = {
            str: st.sampled_from(["", "x", "y", "é"]),
            bool: st.booleans(),
            float: st.sampled_from([0.0, -1.5, 7.0]),
            type(None): st.none(),
        }
        choices[name] = st.one_of([kinds[kind] for kind in sorted(field.types, key=lambda kind: kind.__name__)])
    return st.fixed_dictionaries({}, optional=choices)


def _nested(fit: st.SearchStrategy[Any], inner: str, items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    mess = json_values | st.dictionaries(st.sampled_from(["s1", "s2", "c1", "c/2"]), items | json_values, max_size=2)
    return st.builds(
        lambda fields, more, below: fields | more | ({inner: below} if below is not None else {}),
        fit,
        loose,
        st.none() | mess,
    )


characteristics = st.builds(lambda fields, more: fields | more, fitting("characteristic"), loose)
services = _nested(fitting("service"), "characteristics", characteristics)
CONTENT: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "home": st.builds(lambda fields, more: more | fields, fitting("home"), loose),
    "room": loose,
    "device": _nested(fitting("accessory"), "services", services),
    "note": st.builds(
        lambda fields, more, user: fields | more | ({"kind": "user"} if user else {}),
        fitting("user"),
        loose,
        st.booleans(),
    ),
    "zone": loose,
    "door": loose,
    "gizmo": loose,
}
TYPES = ("home", "home", "room", "room", "zone", "device", "device", "device", "note", "door", "gizmo")
PROPERTIES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"role": "bridge"},
    {"role": "bridge"},
    {"role": "x", "a/b~c": 1},
    {"deleted": True},
    {"deleted": 0},
)


@st.composite
def graphs(draw: st.DrawFn, types: tuple[str, ...] = TYPES, size: int = 9) -> Server:
    """A server with a messy graph: unknown types and values, homes or none, circles, bridges, tombstones, history."""
    server = Server()
    kinds = draw(st.lists(st.sampled_from(types), max_size=size))
    things: dict[str, Entity] = {}
    for index, kind in enumerate(kinds):
        content = draw(CONTENT[kind])
        if kind != "gizmo" and not draw(st.integers(0, 4)):
            content["deleted"] = True
        else:
            content.pop("deleted", None)
        version = at(draw(st.integers(-9, 0)), counter=index)
        things[f"e{index}"] = entity(f"e{index}", version, content, entity_type=kind, name=draw(st.sampled_from("xyz")))
    if not things:
        return server
    server.push(*things.values())
    ids = st.sampled_from(sorted(things))
    links = draw(
        st.lists(st.tuples(ids, ids, st.sampled_from((*PATHS, "controls")), st.sampled_from(PROPERTIES)), max_size=12)
    )
    order = draw(st.permutations(range(len(links))))
    edges = [
        edge(
            f"l{order[index]:02d}", things[one], things[other], at(index), relationship_type=kind, properties=properties
        )
        for index, (one, other, kind, properties) in enumerate(links)
    ]
    if edges:
        server.push(*edges)
    for count, id_ in enumerate(draw(st.lists(ids, max_size=3))):
        # History: the same thing again, alive or dead.
        content = json.loads(bytes(things[id_].content)) | {"note": count}
        content = (
            content | {"deleted": True} if draw(st.booleans()) else {k: content[k] for k in content if k != "deleted"}
        )
        old = server.current(id_)
        server.push(
            entity(
                id_, at(1 + count), content, entity_type=old.entity_type, name=old.name, parent_versions=(old.version,)
            )
        )
    return server


def whole(server: Server, name: str = "default") -> Graph:
    """The whole graph of a server."""
    held = server.held(Reads(span=Span(after=0, upto=2**53 - 1)), name)
    return graph_of(held.head, held.span)


def drive(server: Server, plan: Plan[Any]) -> Any:
    """What a plan returns that only reads."""

    async def driven() -> Any:
        async with server.store.transaction("default", write=False) as tx:
            return await exchange.run(plan, tx)

    return run(driven())


def told_by(server: Server, telling: Telling, head: Head | None = None) -> Any:
    """What an answer says that is told from what `server` holds."""
    rest = exchange.Rest(telling, server.store, "default", head or server.held(Reads()).head)
    return json.loads(run(exchange.whole(b"", rest)))


# --- a second opinion ---------------------------------------------------------------------------------------------


def doc_of(graph: Graph) -> Doc:
    """The current rows as plain JSON."""
    rows = [row for edges in (*graph.edges.values(), graph.others) for row in edges]
    return {
        "entities": {row.id: json.loads(row.body) for row in graph.entities.values()},
        "relationships": {row.id: json.loads(row.body) for row in rows},
    }


def dead(thing: dict[str, Any]) -> bool:
    free: dict[str, Any] = thing["content"] if "content" in thing else thing["properties"]
    return bool(free.get("deleted"))


def leaving(doc: Doc, id_: str) -> list[dict[str, Any]]:
    """The path edges from `id_` that readers see, in order of their ids."""
    edges = sorted(doc["relationships"].values(), key=lambda each: each["id"])
    return [
        each
        for each in edges
        if each["from_entity_id"] == id_
        and each["relationship_type"] in PATHS
        and not dead(each)
        and not dead(doc["entities"][each["to_entity_id"]])
    ]


def _walk(doc: Doc, start: str, through: set[str], ends: Any) -> str | None:
    """Breadth first, one record at a time, as a person would do it with the specification on the table."""
    level, seen = [start], {start}
    while level:
        following = []
        for id_ in level:
            for each in leaving(doc, id_):
                target = each["to_entity_id"]
                end = ends(target)
                if end is not None:
                    return str(end)
                if target not in seen and doc["entities"][target]["entity_type"] in through:
                    seen.add(target)
                    following.append(target)
        level = following
    return None


def home_of(doc: Doc, born: dict[str, int], start: str) -> str | None:
    def direct(id_: str) -> str | None:
        return id_ if doc["entities"][id_]["entity_type"] == "home" else None

    def through_device(id_: str) -> str | None:
        if doc["entities"][id_]["entity_type"] not in {"room", "zone", "device"}:
            return None
        return _walk(doc, id_, {"room", "zone"}, direct)

    living = [e for e in doc["entities"].values() if e["entity_type"] == "home" and not dead(e)]
    living.sort(key=lambda e: (e["content"].get("is_primary") is not True, born[e["id"]], e["id"]))
    return (
        _walk(doc, start, {"room", "zone"}, direct)
        or _walk(doc, start, {"room", "zone", "device"}, through_device)
        or (living[0]["id"] if living else None)
    )


def link_edge(doc: Doc, id_: str, link: str) -> dict[str, Any] | None:
    """The edge that decides a link by itself."""
    for each in leaving(doc, id_):
        kind = doc["entities"][each["to_entity_id"]]["entity_type"]
        if link == "home_id" and kind == "home":
            return each
        bridge = each["relationship_type"] == "part_of" and each["properties"].get("role") == "bridge"
        if link == "bridge_id" and kind == "device" and bridge:
            return each
    return None


def pointer(*keys: str) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def same(stored: Any, shown: Any) -> bool:
    if isinstance(stored, bool) or isinstance(shown, bool):
        return stored is shown
    return bool(stored == shown) and (type(stored) is type(shown) or {type(stored), type(shown)} == {int, float})


def lost(doc: Doc, records: Iterable[Any]) -> Iterator[str]:
    """Every pointer into `doc` that `records` do not tell, worked out from the records."""
    by_place: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        shown = msgspec.structs.asdict(record)
        kind = type(record).__name__
        if kind == "Service":
            by_place[shown["accessory_id"], "services", shown["id"]] = shown
        elif kind == "Characteristic":
            # Two devices may have services of one id; their records then come in the order of the devices.
            services = [place for place in by_place if len(place) == 3 and place[-1] == shown["service_id"]]
            for service in services:
                place = (*service, "characteristics", shown["id"])
                inner = content_at(doc, service).get("characteristics")
                if place not in by_place and isinstance(inner, dict) and isinstance(inner.get(shown["id"]), dict):
                    by_place[place] = shown
                    break
        else:
            by_place[shown["id"],] = shown
    told: dict[str, set[str]] = {}
    for id_, thing in doc["entities"].items():
        if (id_,) not in by_place:
            yield pointer("entities", id_)
            continue
        yield from (
            pointer("entities", id_, key) for key in thing if key not in {"id", "entity_type", "name", "content"}
        )
        skip = {"kind"} if thing["entity_type"] == "note" else set()
        yield from _lost_content(thing["content"], (id_,), by_place, skip)
        links = {"home": (), "room": ("home_id",), "note": ("home_id",)}.get(
            thing["entity_type"], ("home_id", "bridge_id")
        )
        for link in links:
            deciding = link_edge(doc, id_, link)
            if deciding is not None:
                told[deciding["id"]] = {"role"} if link == "bridge_id" else set()
    for id_, thing in doc["relationships"].items():
        if id_ not in told:
            yield pointer("relationships", id_)
            continue
        kept = {"id", "from_entity_id", "to_entity_id", "properties"}
        yield from (pointer("relationships", id_, key) for key in thing if key not in kept)
        yield from (
            pointer("relationships", id_, "properties", key) for key in thing["properties"] if key not in told[id_]
        )


def content_at(doc: Doc, place: tuple[str, ...]) -> Any:
    value = doc["entities"][place[0]]["content"]
    for key in place[1:]:
        value = value[key]
    return value


def _lost_content(
    content: dict[str, Any], place: tuple[str, ...], records: dict[tuple[str, ...], dict[str, Any]], skip: set[str]
) -> Iterator[str]:
    shown = records[place]
    inner = (
        {1: "services", 3: "characteristics"}.get(len(place)) if "serial_number" in shown or len(place) == 3 else None
    )
    where = ("entities", place[0], "content", *place[1:])
    # Fields of a record that come from elsewhere: a key of the same name in the content says something else.
    own = {"id", "home_id", "bridge_id", "created_at", "updated_at", "sync_id"} | (
        {"name"} if len(place) == 1 else set()
    )
    for key, value in content.items():
        if key in skip:
            continue
        if key == inner:
            if not isinstance(value, dict):
                yield pointer(*where, key)
                continue
            for id_, item in value.items():
                if (*place, key, id_) in records:
                    yield from _lost_content(item, (*place, key, id_), records, set())
                else:
                    yield pointer(*where, key, id_)
        elif key in own or key not in shown or not same(value, shown[key]):
            yield pointer(*where, key)


# --- a client -----------------------------------------------------------------------------------------------------


class V1Client:
    """A v1 peer in few words: bytes in, bytes out, through the wire version and the engine."""

    def __init__(self, server: Server, client_id: str = "phone", *, user: str = "ann", token: str = "t") -> None:
        self.server = server
        self.client_id = client_id
        self.user = user
        self.token = token
        self.acks = 0

    def send(self, body: Any, path: str, *, negotiation: Negotiation | UnsetType = UNSET, strict: bool = False) -> Any:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()

        async def exchanged() -> bytes:
            message = WIRE.decode(raw, path=path, strict=strict, limits=LIMITS)
            context = Context(user=self.user, token=self.token, now=self.server.now)
            begun = await exchange.begin(
                WIRE,
                message,
                store=self.server.store,
                context=context,
                limits=self.server.limits,
                policy=self.server.policy,
                negotiation=negotiation,
            )
            return await exchange.whole(begun.body, begun.rest)

        return json.loads(run(exchanged()))

    def pull(
        self, last_sync: str | None = None, types: Any = ("homes", "rooms", "accessories", "users"), **more: Any
    ) -> Any:
        body = {"type": "sync_request", "client_id": self.client_id, "last_sync": last_sync} | more
        return self.send(body | ({"entity_types": list(types)} if types is not None else {}), "/api/v1/sync/request")

    def push(self, *changes: Any, **more: Any) -> Any:
        body = {"type": "sync_push", "client_id": self.client_id, "changes": list(changes)} | more
        return self.send(body, "/api/v1/sync/push")

    def ack(self) -> Any:
        self.acks += 1
        body = {"type": "sync_ack", "client_id": self.client_id, "sync_completed_at": f"ack {self.acks:04}"}
        return self.send(body, "/api/v1/sync/ack")

    def records(self, types: Any = ("homes", "rooms", "accessories", "users")) -> dict[str, Any]:
        told = self.pull(types=types)["changes"]
        return {each["entity_id"]: each["data"] for each in told if each["operation"] == "update"}


def change(type_: str, data: dict[str, Any], operation: str = "update", label: str | None = "label") -> dict[str, Any]:
    """One change of a push."""
    return {
        "entity_type": type_,
        "entity_id": data["id"],
        "operation": operation,
        "data": data,
        "client_sync_id": label,
    }
