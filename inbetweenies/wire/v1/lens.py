"""v1 as a view of the graph, and v1 edits as changes of it (PROTOCOL 8.7 to 8.12, law 6). Pure and total.

`view` shows a graph as records and declares what it cannot show. `apply` turns one edit into rows: it compares what
the client pushed with what the client *knew*, and changes only where the two differ. Going down to v1, editing, and
going up again would instead erase all that v1 cannot say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from ...limits import canonical
from ...model import EMPTY, Change, Entity, Relationship, Row, format_time, is_deleted, uuid5
from .codec import LINKS, SHAPES, Accessory, Item, Problem, Record, Shape
from .graph import Graph, said

_parse = msgspec.json.decode

_DEPTH: Final = {"service": "services/*/", "characteristic": "services/*/characteristics/*/"}

#: PROTOCOL 8.12: what of the model survives v1; of `content` only the keys that are named.
CARRIES: Final = frozenset(
    {"entity.id", "entity.entity_type", "entity.name", "entity.content.kind"}
    | {"relationship.from_entity_id", "relationship.to_entity_id", "relationship.properties.role"}
    | {
        f"entity.content.{_DEPTH.get(shape.name, '')}{field.name}"
        for shape in SHAPES.values()
        for field in shape.content_fields
    }
)

Path: TypeAlias = tuple[str, ...]
Reason: TypeAlias = Literal["type", "deleted", "no_home", "field", "value", "edge", "ignored"]


class Loss(Struct, frozen=True, order=True):
    """PROTOCOL 8.12: something that v1 does not carry: where it is (RFC 6901), and why.

    ``type``: v1 has no record for the entity. ``deleted``: a tombstone. ``no_home``: there is no home to put it under.
    ``field``: v1 has no word for it. ``value``: v1 has the field, but not this type of value; a placeholder is shown.
    ``edge``: it decides no field of a record. ``ignored``: a key of an edit that v1 does not have.
    """

    pointer: str
    reason: Reason


# --- down: the view -----------------------------------------------------------------------------------------------

_OF_ENTITY_TYPE: Final = {shape.entity_type: shape for shape in SHAPES.values() if not shape.nested}
_HOME, _ACCESSORY, _USER = SHAPES["home"], SHAPES["accessory"], SHAPES["user"]
_SERVICE, _CHARACTERISTIC = SHAPES["service"], SHAPES["characteristic"]


def shape_of(entity_type: str, content: dict[str, Any]) -> Shape | None:
    """PROTOCOL 8.7: the type of record that shows an entity, None if none does."""
    shape = _OF_ENTITY_TYPE.get(entity_type)
    return None if shape is _USER and content.get("kind") != "user" else shape


def token_of(graph: Graph) -> str:
    """PROTOCOL 8.11: the `sync_id` of every record of a view: the place in the log at which it was seen."""
    return f"{graph.head.seq:013d}-{graph.head.chain.hex()[:16]}"


def _values(shape: Shape, content: dict[str, Any]) -> list[Any]:
    """PROTOCOL 8.10: what a record says in its fields, in their order, whatever stands in `content`."""
    return [
        value if type(value := content.get(field.name)) in field.types else field.odd(value)
        for field in shape.content_fields
    ]


def record_of(graph: Graph, row: Row, token: str, *, gone: bool = False) -> Record | None:
    """The record of an entity, a tombstone's as it last was; None if v1 has none for it or there is no home at all.

    One that is `gone` can be told without a home, and has to be: nobody tells it later.
    """
    name, content = said(row)
    shape = shape_of(row.entity_type, content)
    if shape is None:
        return None
    born, newest = _times(row.born, risen(graph, row))
    if shape is _HOME:
        return shape.record(row.id, name, *_values(shape, content), born, newest, token)
    home = graph.home_of(row.id)
    if home is None:
        if not gone:
            return None
        home = ""
    if shape is _ACCESSORY:
        bridge = graph.bridge_edge(row.id)
        bridge_id = None if bridge is None else bridge.to_id
        return shape.record(row.id, home, name, *_values(shape, content), bridge_id, born, newest, token)
    return shape.record(row.id, home, name, *_values(shape, content), born, newest, token)


def _times(born: int, newest: int) -> tuple[str, str]:
    # Most rows of a first sync were never edited, and writing a time out is the dearest part of a record.
    first = format_time(born, naive=True)
    return first, first if newest == born else format_time(newest, naive=True)


def risen(graph: Graph, row: Row) -> int:
    """PROTOCOL 8.10: a time for a record that rises whenever its row or one of its own edges does.

    A deployed client ignores what is not newer, and lets what is newer overwrite its pending edit: so this is an edit
    time, and later only where an older edit was committed after a newer one. Row and edges rise on their own by a
    microsecond a line at least, and so does here what was committed before the newest of them: then the greatest of
    all is greater with each commit.
    """
    # A home has no links: what an odd edge from it leads to need not be in the graph.
    linked = row.entity_type != "home" and row.id in graph.edges
    edges = [*graph.home_edges(row.id), *graph.bridge_edges(row.id)] if linked else []
    if not edges:
        return row.rise
    own = [row, *edges]
    newest = max(own, key=lambda each: each.seq)
    last = newest.stamp - newest.seq
    return max(each.rise + (0 if each.stamp - each.seq == last else newest.seq - each.seq) for each in own)


def nested_of(row: Row, token: str) -> Iterator[Record]:
    """The services of a device, each followed by its characteristics."""
    _, content = said(row)
    stamps = (*_times(row.born, row.rise), token)
    for service_id, service in objects(content.get("services")):
        yield _SERVICE.record(service_id, row.id, *_values(_SERVICE, service), *stamps)
        for id_, characteristic in objects(service.get("characteristics")):
            yield _CHARACTERISTIC.record(id_, service_id, *_values(_CHARACTERISTIC, characteristic), *stamps)


def objects(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict):
                yield key, item


def view(graph: Graph) -> tuple[tuple[Record, ...], tuple[Loss, ...]]:
    """Every record of a graph, in the order in which they are served, and all that they do not show."""
    token = token_of(graph)
    shown: dict[Any, list[Record]] = {shape.record: [] for shape in SHAPES.values()}
    for row in sorted(graph.entities.values(), key=lambda row: row.seq):
        record = None if row.deleted else record_of(graph, row, token)
        if record is not None:
            shown[type(record)].append(record)
            if isinstance(record, Accessory):
                for nested in nested_of(row, token):
                    shown[type(nested)].append(nested)
    return tuple(record for records in shown.values() for record in records), tuple(sorted(_losses(graph)))


# --- what the view does not show ----------------------------------------------------------------------------------

_CARRIED_FIELDS: Final = frozenset({"id", "entity_type", "name", "content"})
_CARRIED_ENDS: Final = frozenset({"id", "from_entity_id", "to_entity_id", "properties"})


def _pointer(*keys: str) -> str:
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)


def _losses(graph: Graph) -> Iterator[Loss]:
    deciding: dict[str, frozenset[str]] = {}
    for row in graph.entities.values():
        at = ("entities", row.id)
        body: dict[str, Any] = _parse(row.body)
        shape = shape_of(row.entity_type, said(row)[1])
        if shape is None:
            yield Loss(_pointer(*at), "type")
        elif row.deleted:
            yield Loss(_pointer(*at), "deleted")
        elif graph.placeholder is None:
            yield Loss(_pointer(*at), "no_home")
        else:
            yield from (Loss(_pointer(*at, key), "field") for key in body if key not in _CARRIED_FIELDS)
            yield from _content_losses(shape, said(row)[1], (*at, "content"))
            for edge, known in (
                (graph.home_edge(row.id) if "home_id" in shape.links else None, frozenset[str]()),
                (graph.bridge_edge(row.id) if "bridge_id" in shape.links else None, frozenset({"role"})),
            ):
                if edge is not None:
                    deciding[edge.id] = known
    for edges in (*graph.edges.values(), graph.others):
        for edge in edges:
            yield from _edge_losses(edge, deciding.get(edge.id))


def _edge_losses(edge: Row, known: frozenset[str] | None) -> Iterator[Loss]:
    at = ("relationships", edge.id)
    if known is None:
        yield Loss(_pointer(*at), "edge")
        return
    body: dict[str, Any] = _parse(edge.body)
    yield from (Loss(_pointer(*at, key), "field") for key in body if key not in _CARRIED_ENDS)
    yield from (Loss(_pointer(*at, "properties", key), "field") for key in body["properties"] if key not in known)


def _content_losses(shape: Shape, content: dict[str, Any], at: Path) -> Iterator[Loss]:
    fields = {field.name: field for field in shape.content_fields}
    inner = {"accessory": ("services", _SERVICE), "service": ("characteristics", _CHARACTERISTIC)}.get(shape.name)
    for key, value in content.items():
        if inner is not None and key == inner[0]:
            yield from _nested_losses(inner[1], value, (*at, key))
        elif key == "kind" and shape is _USER:
            continue
        elif key not in fields:
            yield Loss(_pointer(*at, key), "field")
        elif type(value) not in fields[key].types and not _numeric(value, fields[key].odd(value)):
            yield Loss(_pointer(*at, key), "value")


def _numeric(value: Any, shown: Any) -> bool:
    return type(value) is int and type(shown) is float


def _nested_losses(shape: Shape, value: Any, at: Path) -> Iterator[Loss]:
    if not isinstance(value, dict):
        yield Loss(_pointer(*at), "value")
        return
    for id_, item in value.items():
        if isinstance(item, dict):
            yield from _content_losses(shape, item, (*at, id_))
        else:
            yield Loss(_pointer(*at, id_), "value")


# --- up: one edit -------------------------------------------------------------------------------------------------


class Edit(Struct, frozen=True, kw_only=True):
    """One item of a push, with the place that it writes to, the version it makes and the user who made it.

    `path` is () for a record that is an entity, else the keys in the content of `entity_id` under which it stands.
    """

    item: Item
    entity_id: str
    path: Path = ()
    version: str
    user: str
    graph: str = "default"

    @property
    def shape(self) -> Shape:
        return SHAPES[self.item.type]


class Known(Struct, frozen=True, kw_only=True):
    """PROTOCOL 8.13: what a client knew when it made an edit.

    Attributes:
        fields: the record it saw; None if it saw none.
        base: the row that the edit goes on top of; None for a new entity.
        named: whether it saw `base`, so that the new row may say that it supersedes it. An edit without a base that
            the client saw is put on the current row, so that nothing v1 cannot say is lost; but it does not name that
            row: the two are concurrent, the ladder decides, and whichever loses is kept and reported.
    """

    fields: dict[str, Any] | None = None
    base: Entity | None = None
    named: bool = True


class Draft:
    """What the edits of one push have made so far; later ones build on it."""

    def __init__(self, coming: dict[str, tuple[str, str]] | None = None) -> None:
        #: id -> entity type and version of what this push is going to create, so that the order does not matter.
        self.coming = coming or {}
        self.entities: dict[str, Entity] = {}
        self.edges: dict[tuple[str, str], dict[str, Relationship]] = {}
        self.fields: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, edit: Edit, made: Made) -> None:
        """Remember what `edit` made."""
        if made.change is None:
            return
        if made.change.entity is not None:
            self.entities[edit.entity_id] = made.change.entity
        for link, edges in made.moved.items():
            self.edges.setdefault((edit.entity_id, link), {}).update((edge.id, edge) for edge in edges)
        if not edit.item.delete:
            # A link that could not be taken is still to be taken when it is pushed again.
            said = {k: v for k, v in edit.item.fields.items() if made.problem is None or k not in LINKS}
            self.fields.setdefault((edit.item.type, edit.item.id), {}).update(said)


class Made(Struct, frozen=True, kw_only=True):
    """What became of one edit.

    Attributes:
        change: what to push, None if the edit changes nothing.
        moved: the edges in it, by the link that they are for.
        losses: what of the edit could not be kept.
        problem: why not all of it was taken; the rest of it, in `change`, still goes on.
    """

    change: Change | None = None
    moved: dict[str, list[Relationship]] = {}
    losses: tuple[Loss, ...] = ()
    problem: Problem | None = None


def content_at(content: Any, path: Path) -> dict[str, Any] | None:
    """The object at `path`, None if there is none."""
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else None


def _with(content: dict[str, Any], path: Path, value: dict[str, Any] | None) -> dict[str, Any]:
    """A copy of `content` in which `value` stands at `path`, or nothing if it is None; the rest is shared."""
    if not path:
        return value or {}
    key, *rest = path
    copy = dict(content)
    if rest or value is not None:
        copy[key] = _with(copy.get(key, {}), tuple(rest), value)
    else:
        del copy[key]
    return copy


def fields_of(shape: Shape, name: str, content: dict[str, Any], path: Path = ()) -> dict[str, Any] | None:
    """The fields of a record as v1 shows them, without its links; None if there is no such record."""
    found = content_at(content, path)
    if found is None:
        return None
    values = dict(zip((field.name for field in shape.content_fields), _values(shape, found), strict=True))
    return values if shape.nested else {"name": name, **values}


def link_of(graph: Graph, id_: str, link: str) -> str | None:
    """What a record says in `home_id` or `bridge_id`."""
    if link == "home_id":
        return graph.home_of(id_)
    edge = graph.bridge_edge(id_)
    return None if edge is None else edge.to_id


def says(row: Row, edit: Edit) -> bool:
    """Whether `row` holds what `edit` is about to write."""
    name, content = said(row)
    shape = shape_of(row.entity_type, content)
    if shape is None or shape.entity_type != edit.shape.entity_type:
        return False
    shown = fields_of(edit.shape, name, content, edit.path)
    if edit.item.delete:
        return row.deleted if not edit.path else shown is None
    if shown is None or row.deleted:
        return False
    return all(shown[field] == value for field, value in edit.item.fields.items() if field not in LINKS)


def apply(edit: Edit, known: Known, graph: Graph, draft: Draft | None = None) -> Made:
    """PROTOCOL 8.13, law 6: the rows that say what `edit` changed, and nothing else.

    Args:
        edit: what the client pushed.
        known: what it knew: what equals that is no edit.
        graph: the current rows.
        draft: what earlier edits of the same push made.
    """
    draft = draft or Draft()
    losses = tuple(Loss(_pointer("data", key), "ignored") for key in edit.item.ignored)
    problem = _unfit(edit, graph, draft)
    if problem is not None:
        return Made(problem=problem)
    entity = _remove(edit, known, graph, draft) if edit.item.delete else _write(edit, known, draft)
    if isinstance(entity, Problem):
        return Made(problem=entity)
    moved: dict[str, list[Relationship]] = {}
    if not edit.item.delete and not edit.path:
        version = entity.version if entity else _version(edit.entity_id, graph, draft)
        for link in edit.shape.links:
            edges = _move(edit, link, known, version, graph, draft)
            if isinstance(edges, Problem):
                problem = edges
            else:
                moved[link] = edges
                losses += _hidden(link, edges, graph, draft)
    edges = [edge for edges in moved.values() for edge in edges]
    change = None
    if entity is not None or edges:
        change = Change(
            entity=entity,
            relationships=tuple(edges),
            delete=edit.item.delete and not edit.path,
            pointer=edit.item.pointer,
        )
    return Made(change=change, moved=moved, losses=losses, problem=problem)


def _unfit(edit: Edit, graph: Graph, draft: Draft) -> Problem | None:
    """Why the entity that `edit` names cannot be what it takes it for."""
    item, entity_id = edit.item, edit.entity_id
    drafted, row = draft.entities.get(entity_id), graph.entities.get(entity_id)
    if drafted is not None:
        entity_type, content = drafted.entity_type, _parse(drafted.content)
    elif row is not None:
        entity_type, content = row.entity_type, said(row)[1]
    elif edit.path and not item.delete:
        return _unknown(edit, edit.shape.links[0], "expected a device that is known here")
    else:
        return None
    shape = shape_of(entity_type, content)
    if shape is None or shape.entity_type != edit.shape.entity_type:
        detail = "expected an id that is not that of something else"
        return Problem(code="type_conflict", pointer=f"{item.pointer}/entity_id", detail=detail)
    return None


def _unknown(edit: Edit, link: str, detail: str) -> Problem:
    return Problem(code="unknown_reference", pointer=f"{edit.item.pointer}/data/{link}", detail=detail)


def _row(edit: Edit, known: Known, draft: Draft, name: str, content: dict[str, Any]) -> Entity:
    """The new row, on top of what the client knew and of what it wrote before in the same push."""
    drafted = draft.entities.get(edit.entity_id)
    base = drafted or known.base
    raw = Raw(canonical(content, trusted=True))
    if base is None:
        return Entity(
            id=edit.entity_id,
            version=edit.version,
            entity_type=edit.shape.entity_type,
            name=name,
            content=raw,
            source_type="homekit",
            user_id=edit.user,
        )
    return replace(
        base,
        version=edit.version,
        name=name,
        content=raw,
        user_id=edit.user,
        parent_versions=(base.version,) if drafted or known.named else (),
        checksum=None,
        merged=UNSET,
    )


def _write(edit: Edit, known: Known, draft: Draft) -> Entity | Problem | None:
    item, shape = edit.item, edit.shape
    base = draft.entities.get(edit.entity_id) or known.base
    content: dict[str, Any] = _parse(base.content) if base is not None else {}
    fields = {field: value for field, value in item.fields.items() if field not in LINKS}
    if base is None and "name" not in fields:
        return Problem(code="malformed_change", pointer=f"{item.pointer}/data/name", detail="expected a name")
    revived = False
    if is_deleted(content):
        if edit.path:
            return _unknown(edit, shape.links[0], "expected a device that is not deleted")
        # Of a client that did not know the tombstone it is a write all the same: it loses, and is kept.
        revived = True
        del content["deleted"]
    for depth in range(1, len(edit.path) + 1):
        if content_at(content, edit.path[:depth]) is None:
            if _stands(content, edit.path[:depth]):
                detail = "expected a place that does not hold something else"
                return Problem(code="type_conflict", pointer=f"{item.pointer}/entity_id", detail=detail)
            if depth == 2 and len(edit.path) > 2:
                return _unknown(edit, "service_id", "expected a service that is known here")
    found = content_at(content, edit.path)
    seen = _seen(edit, known, draft)
    if found is None or base is None or seen is None:
        # What is new is written as it is said, but nulls say nothing.
        patch = {field: value for field, value in fields.items() if value is not None}
    else:
        patch = {field: value for field, value in fields.items() if value != seen[field]}
    if base is not None and not patch and found is not None and not revived:
        return None
    name = base.name if base is not None else ""
    if not edit.path:
        name = patch.pop("name", name)
        if base is None and shape is _USER:
            patch = {"kind": "user", **patch}
    return _row(edit, known, draft, name, _with(content, edit.path, {**(found or {}), **patch}))


def _stands(content: Any, path: Path) -> bool:
    """Whether there is anything at `path`."""
    *above, key = path
    parent = content_at(content, tuple(above))
    return parent is not None and key in parent


def _seen(edit: Edit, known: Known, draft: Draft) -> dict[str, Any] | None:
    """What the client saw of the record, its own earlier edits in the same push included."""
    pushed = draft.fields.get((edit.item.type, edit.item.id))
    return known.fields if pushed is None else {**(known.fields or {}), **pushed}


def _remove(edit: Edit, known: Known, graph: Graph, draft: Draft) -> Entity | None:
    drafted, row = draft.entities.get(edit.entity_id), graph.entities.get(edit.entity_id)
    base = drafted or known.base
    if base is None or (drafted is None and row is not None and row.deleted):
        return None
    content: dict[str, Any] = _parse(base.content)
    if is_deleted(content):
        return None
    if not edit.path:
        return _row(edit, known, draft, base.name, {**content, "deleted": True})
    if content_at(content, edit.path) is None:
        return None
    return _row(edit, known, draft, base.name, _with(content, edit.path, None))


# --- up: links ----------------------------------------------------------------------------------------------------


def edge_id(graph: str, id_: str, link: str) -> str:
    """PROTOCOL 8.9: the id of the edge that this mapping makes for a link, the same on every server."""
    return uuid5(graph, f"{id_}{link}")


def _version(id_: str, graph: Graph, draft: Draft) -> str:
    """The version of an entity that an edge made now can name as its end."""
    if id_ in draft.entities:
        return draft.entities[id_].version
    return graph.entities[id_].version if id_ in graph.entities else draft.coming[id_][1]


def _move(
    edit: Edit, link: str, known: Known, version: str, graph: Graph, draft: Draft
) -> list[Relationship] | Problem:
    """PROTOCOL 8.9: re-point the edge that decided a link, so that it is the same edge for everybody else."""
    id_, fields = edit.entity_id, edit.item.fields
    seen = _seen(edit, known, draft)
    if link not in fields or fields[link] == (seen or {}).get(link):
        return []
    target: str | None = fields[link]
    rows = graph.home_edges(id_) if link == "home_id" else graph.bridge_edges(id_)
    edges = {row.id: row.relationship() for row in rows if graph.shows(row)} | draft.edges.get((id_, link), {})
    living = [edge for _, edge in sorted(edges.items()) if not is_deleted(_parse(edge.properties))]
    common = {"version": edit.version, "from_entity_version": version, "user_id": edit.user}
    if target is None:
        # Every edge that could show a bridge, or the next one would.
        return [
            replace(
                edge, properties=Raw(canonical({**_parse(edge.properties), "deleted": True}, trusted=True)), **common
            )
            for edge in living
        ]
    wanted = "home" if link == "home_id" else "device"
    if not _is(target, wanted, graph, draft):
        return _unknown(edit, link, f"expected the id of a {wanted} that is known here")
    to = {"to_entity_id": target, "to_entity_version": _version(target, graph, draft)}
    if living:
        return [replace(living[0], **common, **to)]
    properties = EMPTY if link == "home_id" else Raw(b'{"role":"bridge"}')
    made = edge_id(edit.graph, id_, link)
    return [
        Relationship(id=made, from_entity_id=id_, relationship_type="part_of", properties=properties, **common, **to)
    ]


def _is(id_: str, entity_type: str, graph: Graph, draft: Draft) -> bool:
    if id_ in graph.entities:
        return graph.entities[id_].entity_type == entity_type
    return id_ in draft.coming and draft.coming[id_][0] == entity_type


def _hidden(link: str, edges: Iterable[Relationship], graph: Graph, draft: Draft) -> tuple[Loss, ...]:
    """A link to what is deleted is kept, and shown once that is back."""
    for edge in edges:
        drafted, row = draft.entities.get(edge.to_entity_id), graph.entities.get(edge.to_entity_id)
        if is_deleted(_parse(drafted.content)) if drafted else row is not None and row.deleted:
            return (Loss(_pointer("data", link), "deleted"),)
    return ()
