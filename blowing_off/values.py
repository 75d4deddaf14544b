"""Values from the caller, and from a server's other endpoints, in the form in which rows hold them."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, RemoteProtocolError
from inbetweenies.limits import Limits, canonical, checked_decode, gate
from inbetweenies.model import EMPTY, Entity, Relationship, body_of, edge_version
from inbetweenies.model import Refused as RefusedItem
from inbetweenies.replica import Copy

from .transport import BadAnswer

#: What an answer may be, larger than a request: a deployed server tells its whole graph at once.
ANSWER_LIMITS: Final = Limits(body_bytes_max=256 * 2**20, nodes_max=2**22)
ROW_LIMITS: Final = Limits()
#: What a row may hold: around the properties of an edge a message puts five levels, and the other fields.
CONTENT_LIMITS: Final = Limits(depth_max=ROW_LIMITS.depth_max - 5, nodes_max=ROW_LIMITS.nodes_max - 64)

_parse = msgspec.json.decode


class NotStorable(LocalProtocolError, ValueError):
    """A value that no replica can hold; nothing was changed."""


def wall_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def new_id() -> str:
    """An id that nobody else has: a random UUID in lower case."""
    return str(uuid.uuid4())


def new_nonce() -> str:
    """Eight random hexadecimal digits."""
    return secrets.token_hex(4)


# --- from the caller ----------------------------------------------------------------------------------------------


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: `patch` laid over `target`; None removes a key, whatever is no object replaces whole."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def json_of(value: Mapping[str, Any]) -> Raw:
    """`value` in the one spelling in which it is stored, sent and hashed, here and on every server."""
    if not value:
        return EMPTY
    try:
        text = canonical(dict(value), limits=CONTENT_LIMITS)
        # What a server would make of it, or the two would hold different rows under one version.
        again = canonical(_parse(text), trusted=True)
    except RemoteProtocolError as error:
        raise NotStorable(f"expected {error.expected}; got {error.got}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise NotStorable("expected JSON values; got one that JSON does not hold exactly") from error
    if again != text:
        raise NotStorable("expected JSON values; got one that JSON does not hold exactly")
    return Raw(text)


def encodable(value: Any) -> Any:
    try:
        body_of(value)
    except (UnicodeError, msgspec.MsgspecError, TypeError) as error:
        raise NotStorable("expected texts that UTF-8 can hold; got one that it cannot") from error
    return value


def storable(refusal: RefusedItem | None) -> None:
    if refusal is not None:
        raise NotStorable(f"{refusal.pointer.rpartition('/')[2]}: {refusal.detail}")


def fitting(copy: Copy) -> Copy:
    if len(copy.body) > ROW_LIMITS.entity_bytes_max:
        raise NotStorable(f"expected at most {ROW_LIMITS.entity_bytes_max} bytes in one row; got {len(copy.body)}")
    return copy


# --- from outside -------------------------------------------------------------------------------------------------


class _EdgeTold(Struct, kw_only=True):
    id: str
    from_entity_id: str
    from_entity_version: str
    to_entity_id: str
    to_entity_version: str
    relationship_type: str
    properties: dict[str, Any] | None = None
    user_id: str | None = None
    version: str | None = None


class _EdgesTold(Struct, kw_only=True):
    relationships: tuple[_EdgeTold, ...]


class _VersionTold(Struct, kw_only=True):
    id: str
    version: str
    entity_type: str
    name: str
    content: dict[str, Any]
    source_type: str
    user_id: str = ""
    parent_versions: tuple[str, ...] = ()
    checksum: str | None = None


class _VersionsTold(Struct, kw_only=True):
    versions: tuple[_VersionTold, ...]


EDGES: Final = msgspec.json.Decoder(_EdgesTold)
VERSIONS: Final = msgspec.json.Decoder(_VersionsTold)


def decoded(decoder: Any, body: bytes) -> Any:
    try:
        gate(body, ANSWER_LIMITS)
        return checked_decode(decoder, body)
    except RemoteProtocolError as error:
        raise BadAnswer(expected=error.expected, got=error.got, pointer=error.pointer) from error


def told_edge(told: _EdgeTold) -> Relationship:
    edge = Relationship(
        id=told.id,
        version=told.version or "",
        from_entity_id=told.from_entity_id,
        from_entity_version=told.from_entity_version,
        to_entity_id=told.to_entity_id,
        to_entity_version=told.to_entity_version,
        relationship_type=told.relationship_type.lower(),
        properties=Raw(canonical(told.properties or {}, trusted=True)),
        user_id=told.user_id or "",
    )
    return edge if edge.version else replace(edge, version=edge_version(edge))


def told_entity(told: _VersionTold) -> Entity:
    return Entity(
        id=told.id,
        version=told.version,
        entity_type=told.entity_type.lower(),
        name=told.name,
        content=Raw(canonical(told.content, trusted=True)),
        source_type=told.source_type.lower(),
        user_id=told.user_id,
        parent_versions=told.parent_versions,
        checksum=told.checksum,
    )
