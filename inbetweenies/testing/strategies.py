"""Hypothesis strategies for every value and every message of both wire versions.

For those who test a server, a client, a store or a wire version of their own::

    from hypothesis import given
    from inbetweenies.testing import strategies

    @given(strategies.v2_requests())
    def test_my_server_answers_whatever_is_legal(request):
        answer = serve(request)
        assert "error" not in answer

Messages are dicts as they stand on the wire, ready for `handle_sync_request`; `bodies` makes bytes of them, in any of
the ways in which JSON can be written. All draw from few ids, so that what is drawn together belongs together. What is
*legal* here is what a server must take, oddities of deployed clients included; `broken` makes a legal message illegal.
"""

from __future__ import annotations

import json
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from msgspec import UNSET, Raw

from ..limits import canonical
from ..model import ENTITY_TYPES, SOURCE_TYPES, Change, Entity, Relationship, format_time, make_version

Body = dict[str, Any]
Json = Any

# --- names and times ----------------------------------------------------------------------------------------------

# A surrogate alone is no text that UTF-8 can hold, so it cannot stand in a message (PROTOCOL 2.3).
_TEXT: Final = st.characters(exclude_categories=["Cs"])
_NAME: Final = st.characters(exclude_categories=["Cs", "Cc"])
_FEW_IDS: Final = (
    "home",
    "room",
    "lamp",
    "hub",
    "ann",
    "0b7e9b5c-2f6e-4c52-9d6c-3f3a6d0c9e11",
    "ent-1790000000000-x7f",
)

#: From the first year to far in the future: what clocks show when they are wrong.
TIMES: Final = st.one_of(
    st.integers(1_780_000_000_000_000, 1_800_000_000_000_000),
    st.sampled_from((0, 1, -62_135_596_800_000_000, 4_102_444_800_000_000, 253_402_300_799_999_999)),
)


def ids() -> SearchStrategy[str]:
    """Ids: mostly of a few, so that messages meet; else anything legal, up to 1,024 bytes. Example: ``'lamp'``."""
    return st.one_of(
        st.sampled_from(_FEW_IDS),
        st.sampled_from(_FEW_IDS),
        st.text(_NAME, min_size=1, max_size=24),
        st.sampled_from(("x" * 1024, "é" * 512)),
    )


def version_names() -> SearchStrategy[str]:
    """Names of wire versions, known, unknown and reserved. Example: ``'inbetweenies-v7'``."""
    return st.one_of(
        st.sampled_from(("inbetweenies-v1", "inbetweenies-v2", "inbetweenies-v1.1", "inbetweenies-v1-stream")),
        st.builds("inbetweenies-v{}".format, st.integers(0, 99_999)),
        st.builds(lambda k: f"inbetweenies-v{2570 + 4112 * k}", st.integers(0, 15)),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=64),
    )


def row_versions(users: SearchStrategy[str] | None = None) -> SearchStrategy[str]:
    """Row versions: canonical, as deployed clients write them, and others that are only names.

    Example: ``'2026-09-21T14:13:20.000000+00:00-000003-alice'``, ``'v-1790000000000'``.
    """
    users = users or st.sampled_from(("alice", "bob", "client-user"))
    return st.one_of(
        st.builds(make_version, TIMES, st.integers(0, 999_999), users),
        st.builds(make_version, TIMES, st.integers(0, 2), users),
        st.builds(lambda at, user: f"{format_time(at, naive=True)}Z-{user}", TIMES, users),
        st.builds(lambda at, user: f"{format_time(at, naive=True)}-000000-{user}", TIMES, users),
        st.builds("v-{}".format, st.integers(0, 10**13)),
        st.sampled_from(("v1", "1", "2026-09-21T14:13:20+02:00-a", "2026-02-30T00:00:00Z-a", "x" * 1024)),
        st.text(_NAME, min_size=1, max_size=16),
    )


def times() -> SearchStrategy[str | int | float]:
    """What may stand in ``filters.since``: ISO 8601 with and without zone, unix seconds, unix milliseconds.

    Example: ``'2026-09-21T14:13:20.000000'``.
    """
    return st.one_of(
        TIMES.map(format_time),
        TIMES.map(lambda at: format_time(at, naive=True)),
        TIMES.map(lambda at: format_time(at, naive=True)[:23] + "Z"),
        st.integers(0, 2_000_000_000),
        st.integers(1_700_000_000_000, 2_000_000_000_000),
        st.floats(0, 2_000_000_000),
    )


# --- free JSON ----------------------------------------------------------------------------------------------------


def json_values(leaves: int = 12) -> SearchStrategy[Json]:
    """Any JSON value, of at most about `leaves` leaves: long integers, every finite float, all of Unicode.

    Example: ``{'': [-0.0, 73786976294838206464, '\\x00']}``.
    """
    return st.recursive(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.sampled_from((2**53 + 1, -(2**63) - 1, 2**70)),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(_TEXT, max_size=12),
        ),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.text(_TEXT, max_size=6), inner, max_size=4),
        ),
        max_leaves=leaves,
    )


def deep_json(depth: int = 50) -> SearchStrategy[Json]:
    """Lists and objects inside one another, `depth` levels. Example: ``[{'a': [{'a': 1}]}]``."""

    def nested(kinds: list[bool]) -> Json:
        value: Json = 1
        for is_list in kinds:
            value = [value] if is_list else {"a": value}
        return value

    return st.lists(st.booleans(), min_size=depth, max_size=depth).map(nested)


def contents() -> SearchStrategy[Body]:
    """What an entity holds: what v1 can see, right and wrong, what it cannot, and tombstones.

    Example: ``{'manufacturer': 'Acme', 'is_reachable': 'maybe', 'colour': [255, 0]}``.
    """
    texts = st.one_of(st.none(), st.text(_TEXT, max_size=8))
    odd = json_values(3)
    service = st.fixed_dictionaries(
        {"service_type": st.sampled_from(("lightbulb", "switch"))},
        optional={"name": texts, "characteristics": st.dictionaries(st.sampled_from(("on", "hue")), odd, max_size=2)},
    )
    return st.one_of(
        st.fixed_dictionaries(
            {},
            optional={
                "manufacturer": st.one_of(texts, odd),
                "is_reachable": st.one_of(st.booleans(), odd),
                "is_primary": st.one_of(st.booleans(), odd),
                "kind": st.sampled_from(("user", "shopping")),
                "services": st.one_of(st.dictionaries(st.sampled_from(("s1", "s2")), service, max_size=2), odd),
                "colour": odd,
                "deleted": st.one_of(st.booleans(), odd),
            },
        ),
        st.dictionaries(st.text(_TEXT, max_size=6), json_values(), max_size=5),
        st.builds(lambda value: {"deep": value}, deep_json()),
    )


# --- values of the model ------------------------------------------------------------------------------------------


def entities() -> SearchStrategy[Entity]:
    """Entities as the engine takes them. Example: ``Entity(id='lamp', version='v1', entity_type='device', ...)``."""
    return st.builds(
        Entity,
        id=ids(),
        version=row_versions(),
        entity_type=st.one_of(st.sampled_from(sorted(ENTITY_TYPES)), st.just("spaceship")),
        name=st.text(_TEXT, max_size=12),
        content=contents().map(_raw),
        source_type=st.sampled_from(sorted(SOURCE_TYPES)),
        user_id=st.sampled_from(("alice", "bob", "")),
        parent_versions=st.lists(row_versions(), max_size=3).map(tuple),
        checksum=st.one_of(st.none(), st.text(_TEXT, max_size=6)),
        merged=st.one_of(st.just(UNSET), st.just(True)),
        source_original=st.one_of(st.just(UNSET), st.just("ZIGBEE")),
    )


def relationships() -> SearchStrategy[Relationship]:
    """Edges as the engine takes them. Example: ``Relationship(id='e1', from_entity_id='lamp', ...)``."""
    return st.builds(
        Relationship,
        id=st.sampled_from(("e1", "e2", "e3")),
        version=row_versions(),
        from_entity_id=ids(),
        from_entity_version=row_versions(),
        to_entity_id=ids(),
        to_entity_version=row_versions(),
        relationship_type=st.sampled_from(("located_in", "part_of", "orbits")),
        properties=st.one_of(
            st.just(Raw(b"{}")), st.just(Raw(b'{"deleted":true}')), st.dictionaries(ids(), json_values(3)).map(_raw)
        ),
        user_id=st.sampled_from(("alice", "bob", "")),
    )


def changes() -> SearchStrategy[Change]:
    """Items of a push in the words of the model. Example: ``Change(entity=Entity(...), relationships=())``."""
    return st.builds(
        Change,
        entity=st.one_of(st.none(), entities()),
        relationships=st.lists(relationships(), max_size=2).map(tuple),
        delete=st.booleans(),
    )


def _raw(value: Json) -> Raw:
    return Raw(canonical(value))


# --- v2 -----------------------------------------------------------------------------------------------------------


def v2_entities() -> SearchStrategy[Body]:
    """Entities as they stand in v2 messages, in all the spellings that deployed clients use.

    Example: ``{'id': 'lamp', 'version': 'v-1', 'entity_type': 'DEVICE', 'source_type': 'API', ...}``.
    """
    types = st.sampled_from(sorted(ENTITY_TYPES))
    return st.fixed_dictionaries(
        {
            "id": ids(),
            "version": row_versions(),
            "entity_type": st.one_of(types, types.map(str.upper), st.just("spaceship")),
            "name": st.text(_TEXT, max_size=12),
            "content": contents(),
            "source_type": st.sampled_from((*sorted(SOURCE_TYPES), "MANUAL", "API", "ZIGBEE", "None")),
            "user_id": st.sampled_from(("alice", "client-user", "system", "")),
        },
        optional={
            "parent_versions": st.one_of(st.lists(row_versions(), max_size=3), st.just([f"v-{n}" for n in range(300)])),
            "checksum": st.one_of(st.none(), st.text(_TEXT, max_size=6)),
            "merged": st.booleans(),
            "source_original": st.just("ZIGBEE"),
            "field_of_tomorrow": json_values(2),
        },
    )


def v2_relationships(*, named: bool = False) -> SearchStrategy[Body]:
    """Edges as they stand in v2 messages; `named` ones have a version and a user, as only peers with features say.

    Example: ``{'id': 'e1', 'from_entity_id': 'lamp', 'from_entity_version': 'v1', 'to_entity_id': 'home', ...}``.
    """
    fields: dict[str, SearchStrategy[Any]] = {
        "id": st.sampled_from(("e1", "e2", "e3")),
        "from_entity_id": ids(),
        "from_entity_version": row_versions(),
        "to_entity_id": ids(),
        "to_entity_version": row_versions(),
        "relationship_type": st.sampled_from(("located_in", "PART_OF", "controls", "orbits")),
    }
    if named:
        fields |= {"version": row_versions(), "user_id": st.sampled_from(("alice", "bob"))}
    properties = st.one_of(st.just({}), st.just({"deleted": True}), st.dictionaries(ids(), json_values(3), max_size=2))
    return st.fixed_dictionaries(fields, optional={"properties": properties})


def v2_changes(*, named: bool = False) -> SearchStrategy[Body]:
    """Items of a v2 push. Example: ``{'change_type': 'update', 'entity': {...}, 'relationships': []}``."""
    edges = st.lists(v2_relationships(named=named), max_size=2)
    return st.one_of(
        st.fixed_dictionaries(
            {"change_type": st.sampled_from(("create", "update", "delete")), "entity": v2_entities()},
            optional={"relationships": edges},
        ),
        st.fixed_dictionaries(
            {"change_type": st.just("update"), "relationships": edges}, optional={"entity": st.none()}
        ),
        st.just({"change_type": "delete", "relationships": []}),
    )


def v2_requests(*, features: bool | None = None) -> SearchStrategy[Body]:
    """v2 requests: as deployed clients send them, with `features` as ours does, or either.

    Example: ``{'protocol_version': 'inbetweenies-v2', 'device_id': 'tablet', 'sync_type': 'full', ...}``.
    """
    if features is None:
        return st.one_of(v2_requests(features=False), v2_requests(features=True))
    cursors = st.one_of(st.none(), st.just(""), st.integers(0, 10**6).map(str))
    optional: dict[str, SearchStrategy[Any]] = {
        "protocol_version": st.just("inbetweenies-v2"),
        "changes": st.lists(v2_changes(named=features), max_size=4),
        "vector_clock": st.one_of(
            st.just({}), st.builds(lambda clocks: {"clocks": clocks}, st.dictionaries(ids(), ids(), max_size=2))
        ),
        "filters": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {},
                optional={
                    "since": st.one_of(st.none(), times()),
                    "entity_types": st.lists(st.sampled_from(("home", "DEVICE", "spaceship")), max_size=2),
                    "modified_by": st.lists(st.sampled_from(("alice", "bob")), max_size=2),
                },
            ),
        ),
    }
    if features:
        cursors |= st.one_of(
            st.builds(
                "{:032x}:{}:{:032x}".format, st.integers(0, 2**64), st.integers(0, 99), st.integers(0, 2**128 - 1)
            ),
            st.text(_NAME, max_size=12),
        )
        optional["page_rows"] = st.one_of(st.none(), st.integers(-1, 5))
    required: dict[str, SearchStrategy[Any]] = {
        "device_id": st.one_of(st.sampled_from(("tablet", "phone", "")), st.text(_TEXT, max_size=8)),
        "user_id": st.sampled_from(("alice", "bob", "client-user")),
        "sync_type": st.sampled_from(("full", "delta", "entities", "relationships")),
    }
    if features:
        known = st.lists(st.sampled_from(("paging", "acks", "digest", "edges", "later")), min_size=1, unique=True)
        required["features"] = known
    return st.fixed_dictionaries(required, optional={**optional, "cursor": cursors}).map(_named_v2)


def _named_v2(body: Body) -> Body:
    # A body that names no version is one of v1, so a v2 message always names its own.
    return {"protocol_version": "inbetweenies-v2", **body}


# --- v1 -----------------------------------------------------------------------------------------------------------

_V1_TIMES: Final = TIMES.map(lambda at: format_time(at, naive=True))
_FLAG: Final = st.booleans()
_MAYBE: Final = st.one_of(st.none(), st.text(_TEXT, max_size=8))

#: The fields of each type of record beside those that all have.
_RECORDS: Final[dict[str, dict[str, SearchStrategy[Any]]]] = {
    "home": {"is_primary": _FLAG},
    "room": {"home_id": ids()},
    "accessory": {
        "home_id": ids(),
        "manufacturer": _MAYBE,
        "model": _MAYBE,
        "serial_number": _MAYBE,
        "firmware_version": _MAYBE,
        "is_reachable": _FLAG,
        "is_blocked": _FLAG,
        "is_bridge": _FLAG,
        "bridge_id": st.one_of(st.none(), ids()),
    },
    "user": {"home_id": ids(), "is_administrator": _FLAG, "is_owner": _FLAG, "remote_access_allowed": _FLAG},
    "service": {
        "accessory_id": ids(),
        "service_type": st.sampled_from(("lightbulb", "switch")),
        "is_primary": _FLAG,
        "is_user_interactive": _FLAG,
    },
    "characteristic": {
        "service_id": ids(),
        "characteristic_type": st.sampled_from(("power_state", "hue")),
        "value": st.one_of(st.none(), st.sampled_from(("true", "21.5", '"warm"'))),
        "format": _MAYBE,
        "unit": _MAYBE,
        "min_value": st.one_of(st.none(), st.floats(-100, 100), st.integers(-100, 100)),
        "max_value": st.one_of(st.none(), st.floats(-100, 100)),
        "step_value": st.one_of(st.none(), st.just(0.1)),
        "is_readable": _FLAG,
        "is_writable": _FLAG,
        "supports_event_notification": _FLAG,
    },
}
V1_TYPES: Final = tuple(_RECORDS)
_PLURALS: Final = ("homes", "rooms", "accessories", "users", "services", "characteristics", "devices", "houses")


def v1_records(type_: str) -> SearchStrategy[Body]:
    """Records of one type of v1, with all their keys.

    Example: ``{'id': 'home', 'name': 'Home', 'is_primary': True, 'updated_at': ..., 'sync_id': None, ...}``.
    """
    named = {} if type_ == "characteristic" else {"name": st.text(_TEXT, max_size=12)}
    return st.fixed_dictionaries(
        {
            "id": ids(),
            **_RECORDS[type_],
            **named,
            "created_at": _V1_TIMES,
            "updated_at": _V1_TIMES,
            "sync_id": st.one_of(st.none(), st.just("0000000000001-00112233aabbccdd"), st.text(_NAME, max_size=36)),
        }
    )


def v1_requests() -> SearchStrategy[Body]:
    """v1 reads. Example: ``{'type': 'sync_request', 'client_id': 'c1', 'last_sync': None}``."""
    return st.fixed_dictionaries(
        {"type": st.just("sync_request"), "client_id": st.sampled_from(("c1", "c2"))},
        optional={
            "last_sync": st.one_of(st.none(), _V1_TIMES, TIMES.map(format_time)),
            "entity_types": st.one_of(st.none(), st.lists(st.sampled_from(_PLURALS), max_size=4)),
            "include_deleted": _FLAG,
        },
    )


def v1_changes() -> SearchStrategy[Body]:
    """Items of a v1 push. Example: ``{'entity_type': 'home', 'entity_id': 'home', 'data': {...}, ...}``."""

    def change(type_: str) -> SearchStrategy[Body]:
        return st.builds(
            lambda data, operation, label: {
                "entity_type": type_,
                "entity_id": data["id"],
                "operation": operation,
                "data": data,
                "client_sync_id": label,
            },
            v1_records(type_),
            st.sampled_from(("update", "create", "delete", "upsert")),
            st.one_of(st.none(), st.uuids().map(str)),
        )

    return st.sampled_from(V1_TYPES).flatmap(change)


def v1_pushes() -> SearchStrategy[Body]:
    """v1 pushes. Example: ``{'type': 'sync_push', 'client_id': 'c1', 'changes': []}``."""
    return st.fixed_dictionaries(
        {
            "type": st.just("sync_push"),
            "client_id": st.sampled_from(("c1", "c2")),
            "changes": st.lists(v1_changes(), max_size=3),
        }
    )


def v1_acks() -> SearchStrategy[Body]:
    """v1 acks. Example: ``{'type': 'sync_ack', 'client_id': 'c1', 'sync_completed_at': 'any text'}``."""
    return st.fixed_dictionaries(
        {
            "type": st.just("sync_ack"),
            "client_id": st.sampled_from(("c1", "c2")),
            "sync_completed_at": st.one_of(_V1_TIMES, st.text(_TEXT, max_size=12)),
        }
    )


def v1_messages() -> SearchStrategy[Body]:
    """Any message of v1, with or without the name of its version, which v1 itself does not have."""

    def named(body: Body, says_so: bool) -> Body:
        return {"protocol_version": "inbetweenies-v1", **body} if says_so else body

    return st.builds(named, st.one_of(v1_requests(), v1_pushes(), v1_acks()), st.booleans())


# --- versions to come ---------------------------------------------------------------------------------------------


def unknown_reads() -> SearchStrategy[Body]:
    """Reads in an unknown version, answered as v1 reads. Example: ``{'protocol_version': 'inbetweenies-v7'}``."""
    return st.fixed_dictionaries(
        {"protocol_version": st.builds("inbetweenies-v{}".format, st.integers(3, 99))},
        optional={
            "client_id": st.sampled_from(("c1", "c2")),
            "device_id": st.sampled_from(("c1", "c2")),
            "changes": st.one_of(st.just([]), st.none()),
            "intent": json_values(3),
        },
    )


def unknown_writes() -> SearchStrategy[Body]:
    """Writes in a version that nobody knows, of a shape that v1 does not have: refused, and nothing happens.

    Example: ``{'protocol_version': 'inbetweenies-v7', 'client_id': 'c1', 'changes': [{'op': 'put'}]}``.
    """
    return st.fixed_dictionaries(
        {
            "protocol_version": st.builds("inbetweenies-v{}".format, st.integers(3, 99)),
            "client_id": st.sampled_from(("c1", "c2")),
            "changes": st.lists(
                st.fixed_dictionaries({"op": st.just("put")}, optional={"entity": v2_entities()}),
                min_size=1,
                max_size=2,
            ),
        }
    )


def messages() -> SearchStrategy[Body]:
    """Any legal message of any version, and what versions to come may send."""
    return st.one_of(v2_requests(), v1_messages(), unknown_reads(), unknown_writes())


# --- bytes, and what is not legal ---------------------------------------------------------------------------------


def bodies(source: SearchStrategy[Body] | None = None) -> SearchStrategy[bytes]:
    """Messages as bytes: with and without white space, escapes, and a key that is there twice.

    Example: ``b'{ "protocol_version": "inbetweenies-v2", ... }'``.
    """

    def spelled(body: Body, ascii_only: bool, indent: int | None, twice: bool) -> bytes:
        text = json.dumps(body, ensure_ascii=ascii_only, indent=indent, allow_nan=False)
        if twice and body:
            # Of a key that is there twice the last counts (PROTOCOL 2.2).
            text = '{"' + next(iter(body)) + '":[[]],' + text[1:]
        return text.encode()

    return st.builds(
        spelled, source if source is not None else messages(), st.booleans(), st.sampled_from((None, 1)), st.booleans()
    )


def broken(source: SearchStrategy[Body] | None = None) -> SearchStrategy[bytes]:
    """Bodies that are no legal message: cut short, of wrong types, no JSON at all. A server refuses them whole.

    Example: ``b'{"protocol_version": null}'``.
    """
    whole = source if source is not None else v2_requests()

    def mistyped(body: Body, key: str, value: Json) -> bytes:
        return json.dumps({**body, key: value}).encode()

    return st.one_of(
        st.builds(lambda body, cut: json.dumps(body).encode()[: -1 - cut], whole, st.integers(0, 8)),
        st.builds(
            mistyped,
            whole,
            st.just("protocol_version"),
            st.one_of(st.none(), st.just(""), st.just("x" * 65), st.just(7)),
        ),
        st.builds(mistyped, v2_requests(), st.just("sync_type"), st.one_of(st.none(), st.just("some"), st.just([]))),
        st.builds(mistyped, v2_requests(), st.just("changes"), st.one_of(st.just({}), st.just([7]), st.just("x"))),
        st.sampled_from(
            (b"", b"[]", b"null", b"7", b'"x"', b"{]", b'{"a":NaN}', b"\xef\xbb\xbf{}", b"\xff", b'{"a":"\\ud800"}')
        ),
        st.integers(65, 300).map(lambda depth: b'{"changes":' + b"[" * depth + b"]" * depth + b"}"),
    )
