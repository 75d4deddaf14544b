"""What the three deployed clients must find in an answer, to the letter: each reads it here as its program does.

A `Unreadable` is where that program raises. Fields that it does not look at are not named, and may be anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")


class Unreadable(Exception):
    """The deployed program fails on this answer; the message says where."""


def read(body: bytes, shape: type[T]) -> T:
    """An answer as a deployed program decodes it."""
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"{shape.__name__}: {error}") from error


class Login(Struct, kw_only=True):
    """Both v2 clients: a login without one of these fails."""

    access_token: str
    role: str
    expires_in: int
    token_type: str = "bearer"


# --- Blowing-Off, which declares what it reads: a null or another type anywhere is the end of the whole sync -----


class Entity(Struct, kw_only=True):
    """All but the last two must be there."""

    id: str
    version: str
    entity_type: str
    name: str
    content: dict[str, Any]
    source_type: str
    user_id: str
    parent_versions: list[str] = []
    checksum: str | None = None


class Edge(Struct, kw_only=True):
    """Read, and then not used."""

    id: str
    from_entity_id: str
    from_entity_version: str
    to_entity_id: str
    to_entity_version: str
    relationship_type: str
    properties: dict[str, Any] = {}


class Change(Struct, kw_only=True):
    """`entity` may be null here; nothing then happens."""

    change_type: Literal["create", "update", "delete"]
    entity: Entity | None = None
    relationships: list[Edge] = []


class Conflict(Struct, kw_only=True):
    """Read, and then not used."""

    entity_id: str
    local_version: str
    remote_version: str
    resolution_strategy: str
    resolved_version: str | None = None


class Clock(Struct, frozen=True, kw_only=True):
    """Read, and then not used."""

    clocks: dict[str, str] = {}


class Stats(Struct, frozen=True, kw_only=True):
    """Counts for people."""

    entities_synced: int = 0
    relationships_synced: int = 0
    conflicts_resolved: int = 0
    duration_ms: float = 0.0


class BlowingOffAnswer(Struct, kw_only=True):
    """`server_time` that is none is replaced by the client's own clock."""

    sync_type: str
    changes: list[Change] = []
    conflicts: list[Conflict] = []
    vector_clock: Clock = Clock()
    sync_stats: Stats = Stats()
    applied: list[str] = []
    applied_relationships: list[str] = []
    server_time: str | None = None
    cursor: str | None = None
    state_digest: str | None = None


# --- KittenKong, which takes what it finds --------------------------------------------------------------------------


class LooseEntity(Struct, kw_only=True):
    """Whatever else is missing gets a default."""

    id: str
    version: str


class LooseChange(Struct, kw_only=True):
    """Without an entity it makes an empty note."""

    entity: LooseEntity | None = None


class KittenKongAnswer(Struct, kw_only=True):
    """Without the two lists it fails; with a `server_time` that is no date, at this sync and at every one after it."""

    changes: list[LooseChange]
    conflicts: list[Any]
    server_time: str | None = None


# --- v1, where one missing key is the end of the whole sync ---------------------------------------------------------


class Record(Struct, kw_only=True):
    """All six keys, always."""

    entity_type: str
    entity_id: str
    operation: Literal["create", "update", "delete"]
    data: dict[str, Any]
    updated_at: str
    sync_id: str | None


class DeltaConflict(Struct, kw_only=True):
    """All six keys, always."""

    entity_type: str
    entity_id: str
    reason: str
    server_version: Any
    client_version: Any
    resolution: str


class V1Delta(Struct, kw_only=True):
    """``{}`` is one; `more` is not looked at."""

    changes: list[Record] = []
    conflicts: list[DeltaConflict] = []


class Applied(Struct, kw_only=True):
    """Only the status ``applied`` clears anything."""

    client_sync_id: str | None
    status: str


class ResultConflict(Struct, kw_only=True):
    """What is counted and shown."""

    entity_type: str
    entity_id: str
    reason: str
    resolution: str


class V1Result(Struct, kw_only=True):
    """Whatever stands in neither list is pushed again."""

    applied: list[Applied] = []
    conflicts: list[ResultConflict] = []


# --- answers --------------------------------------------------------------------------------------------------------


def blowing_off(body: bytes) -> BlowingOffAnswer:
    """An answer of a v2 server, read by Blowing-Off."""
    return read(body, BlowingOffAnswer)


def kittenkong(body: bytes) -> KittenKongAnswer:
    """An answer of a v2 server, read by KittenKong."""
    answer = read(body, KittenKongAnswer)
    if answer.server_time is not None:
        _time(answer.server_time, "server_time")
    return answer


def v1_delta(body: bytes) -> V1Delta:
    """An answer to a v1 request."""
    delta = read(body, V1Delta)
    for change in delta.changes:
        _time(change.updated_at, "updated_at")
    return delta


def v1_result(body: bytes) -> V1Result:
    """An answer to a v1 push."""
    return read(body, V1Result)


def _time(text: str, field: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise Unreadable(f"{field}: {text!r} is no time") from error


def is_naive(text: str) -> bool:
    """Whether a time says no zone. The v1 client cannot compare one that does with what it holds."""
    return _time(text, "updated_at").tzinfo is None


def check(path: str, sent: Any, body: bytes) -> None:
    """Raise `Unreadable` unless each client that gets such an answer (200) can read it, and go on.

    Of each item that was pushed it is told what became of it, and of no other.
    """
    place = path.partition("?")[0].rstrip("/").rpartition("/")[2]
    if place == "login":
        read(body, Login)
    elif place == "request":
        for change in v1_delta(body).changes:
            if not is_naive(change.updated_at):
                raise Unreadable(f"updated_at {change.updated_at} says its zone")
    elif place == "push":
        labels = [change["client_sync_id"] for change in sent["changes"]]
        _check_named(labels, [each.client_sync_id for each in v1_result(body).applied], body, "client_sync_id")
    elif isinstance(sent, dict) and "sync_type" in sent and "protocol_version" in sent and b'"sync_type"' in body:
        _check_v2(sent["changes"], body)


def _check_v2(changes: Iterable[dict[str, Any]], body: bytes) -> None:
    kittenkong(body)
    answer = blowing_off(body)
    told = {change.entity.id for change in answer.changes if change.entity is not None}
    if len(told) != len(answer.changes):
        raise Unreadable("a change without an entity, of which KittenKong makes an empty note; or two of one entity")
    counts = (answer.sync_stats.entities_synced, answer.sync_stats.relationships_synced)
    if counts != (len(answer.applied), len(answer.applied_relationships)):
        raise Unreadable(f"sync_stats counts {counts} for what is applied")
    pushed = {change["entity"]["id"]: change["change_type"] for change in changes if change.get("entity")}
    _check_named(pushed, answer.applied, body, "id")
    # KittenKong clears what it sees among the changes. Of what never was, a delete leaves nothing to be told.
    lacking = [id_ for id_ in answer.applied if id_ not in told and pushed[id_] != "delete"]
    if lacking:
        raise Unreadable(f"applied, and not among the changes: {lacking}")


def _check_named(pushed: Iterable[str], applied: Iterable[str | None], body: bytes, name: str) -> None:
    items = msgspec.json.decode(body).get("refused", ())
    named = {*applied, *(item[name] for item in items if "/relationships/" not in item["pointer"])}
    if set(pushed) != named:
        raise Unreadable(f"pushed {sorted(pushed)}; told of {named}")
