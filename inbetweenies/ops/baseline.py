"""What a server answers today, and how fast: to be held against what it answers on another day.

Whatever is asked is asked through `Ask`, so that it makes no difference whether a server runs somewhere or an
application is called here. Read `PROBES` for what is asked. In a graph of their own, under a clock that stands still,
the answers are the same in every run, to the letter; of a server that runs, only what does not depend on its data is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct

from ..errors import StoreError
from ..model import format_time, make_version

#: The time at which probes are answered where the clock stands still, in microseconds.
STILL: Final = 1_800_000_000_000_000
GRAPH: Final = "preflight"
PASSWORD: Final = "preflight"  # noqa: S105 - of a login on a copy that nobody else can reach
SYNC: Final = "/api/v1/sync/"
V1: Final = "inbetweenies-v1"
V2: Final = "inbetweenies-v2"

_HEADERS: Final = frozenset(
    "content-type inbetweenies-version inbetweenies-supported-versions deprecation sunset link vary cache-control allow"
    " www-authenticate retry-after".split()
)


class Answered(Struct, frozen=True, kw_only=True):
    """One answer; names of headers in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


class Ask(Protocol):
    """Asks a server, whoever and wherever that is."""

    def __call__(self, method: str, path: str, body: Any = None) -> Awaitable[Answered]:
        """The answer to a request; `body` is bytes, or a value to be sent as JSON."""


# --- what is asked ------------------------------------------------------------------------------------------------


class Probe(Struct, frozen=True, kw_only=True):
    """One request. `safe`: it leaves no trace, so that a server that people use may be asked; `whole`: then all of the
    answer counts and not only its outline, since it holds nothing of anybody's."""

    name: str
    method: str = "GET"
    path: str
    body: Any = None
    safe: bool = False
    whole: bool = False


def _entity(id_: str, kind: str, second: int, **fields: Any) -> dict[str, Any]:
    version = make_version(STILL - 60_000_000 + second * 1_000_000, 0, "ann")
    return {
        "id": id_, "version": version, "entity_type": kind, "name": id_, "content": {}, "source_type": "manual",
        "user_id": "ann", "parent_versions": [], **fields,
    }  # fmt: skip


_ROOM: Final = _entity("room", "room", 0)
_LAMP: Final = _entity("lamp", "device", 1, content={"on": True})
_EDIT: Final = _entity("lamp", "device", 2, name="Lamp", parent_versions=[_LAMP["version"]])
_OTHER: Final = _entity("lamp", "device", 3, name="Light", parent_versions=[_LAMP["version"]])
_EDGE: Final = {
    "id": "in", "from_entity_id": "lamp", "from_entity_version": _LAMP["version"], "to_entity_id": "room",
    "to_entity_version": _ROOM["version"], "relationship_type": "located_in", "properties": {},
}  # fmt: skip


def _v2(*entities: dict[str, Any], edges: tuple[dict[str, Any], ...] = (), **fields: Any) -> dict[str, Any]:
    changes: list[dict[str, Any]] = [{"change_type": "update", "entity": one, "relationships": []} for one in entities]
    if edges:
        changes[-1]["relationships"] = list(edges)
    plain = {"protocol_version": V2, "device_id": "preflight", "user_id": "ann", "sync_type": "full"}
    return {**plain, "vector_clock": {"clocks": {}}, "changes": changes, **fields}


def page(rows: int) -> dict[str, Any]:
    """A request for the first so many rows of a graph."""
    return _v2(features=["paging"], page_rows=rows)


_READ_V1: Final = {
    "type": "sync_request", "client_id": "preflight", "last_sync": None,
    "entity_types": ["homes", "rooms", "accessories", "users"], "include_deleted": True,
}  # fmt: skip


def _push_v1(id_: str) -> dict[str, Any]:
    data = {"id": id_, "name": id_, "is_primary": True}
    change = {"entity_type": "home", "entity_id": id_, "operation": "create", "client_sync_id": "p", "data": data}
    return {"type": "sync_push", "client_id": "preflight", "changes": [change]}


PROBES: Final = (
    Probe(name="root", path="/", safe=True, whole=True),
    Probe(name="health", path="/health", safe=True, whole=True),
    Probe(name="health without a body", method="HEAD", path="/health", safe=True, whole=True),
    Probe(name="versions", path="/api/version", safe=True, whole=True),
    Probe(name="versions, second path", path="/versions", safe=True, whole=True),
    Probe(name="versions, well known", path="/.well-known/inbetweenies", safe=True, whole=True),
    Probe(name="metrics", path="/metrics", safe=True),
    Probe(name="who am I", path="/api/v1/auth/me", safe=True),
    Probe(name="v2 push", method="POST", path=SYNC, body=_v2(_ROOM, _LAMP, edges=(_EDGE,))),
    Probe(name="v2 edit", method="POST", path=SYNC, body=_v2(_EDIT)),
    Probe(name="v2 edit of the same", method="POST", path=SYNC, body=_v2(_OTHER)),
    Probe(name="v2 push of nothing that can be kept", method="POST", path=SYNC, body=_v2({**_LAMP, "id": ""})),
    Probe(name="v2 read", method="POST", path=SYNC, body=_v2()),
    Probe(name="v2 read from a time", method="POST", path=SYNC,
          body=_v2(sync_type="delta", filters={"since": format_time(STILL - 1)})),
    Probe(name="v2 page", method="POST", path=SYNC, body=page(1), safe=True),
    Probe(name="v2 from a wrong cursor", method="POST", path=SYNC, body=_v2(sync_type="delta", cursor="none")),
    Probe(name="v2, second path", method="POST", path="/api/v1/sync", body=page(1)),
    Probe(name="v2, third path", method="POST", path="/api/v1/sync/request", body=page(1)),
    Probe(name="v1 push", method="POST", path="/api/v1/sync/push", body=_push_v1("home")),
    Probe(name="v1 read", method="POST", path="/api/v1/sync/request", body=_READ_V1),
    Probe(name="v1 ack", method="POST", path="/api/v1/sync/ack", body={"type": "sync_ack", "client_id": "preflight"}),
    Probe(name="a version that nobody knows", method="POST", path=SYNC,
          body=_v2(protocol_version="inbetweenies-v9999")),
    Probe(name="no JSON", method="POST", path=SYNC, body=b"{"),
    Probe(name="no method of this path", path=SYNC, safe=True, whole=True),
    Probe(name="WebSocket without one", path="/api/v1/sync/ws", safe=True),
    Probe(name="status", path="/api/v1/sync/status?device_id=preflight", safe=True),
    Probe(name="conflicts", path="/api/v1/sync/conflicts", safe=True),
    Probe(name="resolve of nothing", method="POST", path="/api/v1/sync/conflicts/none/resolve", body={}),
    Probe(name="relationships", path="/api/v1/graph/relationships", safe=True),
    Probe(name="row versions", path="/api/v1/graph/entities/lamp/versions"),
    Probe(name="row versions of nothing", path="/api/v1/graph/entities/-/versions", safe=True, whole=True),
    Probe(name="no path", path="/api/v1/nothing", safe=True, whole=True),
    Probe(name="login", method="POST", path="/api/v1/auth/admin/login", body={"password": PASSWORD}),
    Probe(name="login with another password", method="POST", path="/api/v1/auth/admin/login", body={"password": "-"}),
)  # fmt: skip

Answers = dict[str, dict[str, Any]]


async def answers(ask: Ask, *, release: str, safe: bool = False) -> Answers:
    """What is answered to each probe, without what differs from run to run; with `safe`, to those that leave no trace,
    of a server with data of its own.

    Raises:
        StoreError: an answer says that the server could not.
    """
    found: Answers = {}
    for probe in PROBES:
        if safe and not probe.safe:
            continue
        answer = await ask(probe.method, probe.path, probe.body)
        if answer.status >= 500:
            raise StoreError(f"expected an answer to {probe.method} {probe.path} ({probe.name}); got {answer.status}")
        body = _body(answer, release)
        found[f"{probe.name}: {probe.method} {probe.path}"] = {
            "status": answer.status,
            "headers": {name: told for name, told in sorted(answer.headers.items()) if name in _HEADERS},
            "body": body if probe.whole or not safe else _outline(body),
        }
    return found


def _body(answer: Answered, release: str) -> Any:
    if not answer.body:
        return None
    if not answer.headers.get("content-type", "").startswith("application/"):
        text = answer.body.decode("utf-8", "replace")
        return sorted(line for line in text.splitlines() if line.startswith("# TYPE "))
    try:
        return _constant(msgspec.json.decode(answer.body), release)
    except msgspec.DecodeError as error:
        raise StoreError(f"expected JSON; got something else: {error}") from None


#: What is another one in each run, or counts what an operator has decided, which is told by what it leads to.
_VARYING: Final = frozenset({"access_token", "registry_revision", "request_id"})


def _constant(value: Any, release: str) -> Any:
    if isinstance(value, dict):
        return {key: "*" if key in _VARYING else _constant(one, release) for key, one in value.items()}
    if isinstance(value, list):
        return [_constant(one, release) for one in value]
    return "(this release)" if value == release else value


def _outline(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: type(one).__name__ for key, one in sorted(value.items())}
    return type(value).__name__


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """What is answered otherwise, in words: by probe, with the place and both values; once if it is the same of many.
    What was not asked then, or is not now, is no difference."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in after:
        if name in before:
            for difference in _different(before, after, name):
                found.setdefault(difference, []).append(name)
    return tuple(
        f"{names[0]}{place}: {was} before, {now} now" + (f" (and in {len(names) - 1} more)" if names[1:] else "")
        for (place, was, now), names in found.items()
    )


def _different(before: Any, after: Any, key: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    one, other = _at(before, key), _at(after, key)
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys((*one, *other)):
            yield from _different(one, other, name, f"{place}/{name}")
    elif isinstance(one, list) and isinstance(other, list):
        for index in range(max(len(one), len(other))):
            yield from _different(one, other, index, f"{place}/{index}")
    # 1 and 1.0 and true are the same to Python, and not to a client.
    elif type(one) is not type(other) or one != other:
        yield place, _short(one), _short(other)


_NOTHING: Final = object()


def _at(value: Any, key: Any) -> Any:
    if isinstance(value, list):
        return value[key] if key < len(value) else _NOTHING
    return value.get(key, _NOTHING)


def _short(value: Any) -> str:
    if value is _NOTHING:
        return "nothing"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


async def readable(ask: Ask, graph: str) -> None:
    """See that a graph with data can be read. Raises `StoreError`: something of it is not answered with 200."""
    version = await _spoken(ask)
    body = page(1) if version == V2 else _READ_V1
    for method, path, said in (
        ("POST", SYNC, body),
        ("GET", "/api/v1/sync/status", None),
        ("GET", "/api/v1/sync/conflicts", None),
    ):
        answer = await ask(method, path, said)
        if answer.status != 200:
            raise StoreError(f"expected 200 to {method} {path} of graph {graph}, in {version}; got {answer.status}")


async def _spoken(ask: Ask) -> str:
    """The newest of our wire versions that is served."""
    told = await ask("GET", "/api/version")
    supported = msgspec.json.decode(told.body).get("supported_versions", []) if told.status == 200 else []
    return V2 if V2 in supported else V1


# --- how fast -----------------------------------------------------------------------------------------------------

REQUESTS: Final = 64  # of each kind: enough for a p95 that is not the slowest one
CONCURRENCY: Final = 4  # at once: what a home has
PAGE_ROWS: Final = 100


class Timed(Struct, frozen=True, kw_only=True):
    """How long requests of one kind took, in milliseconds."""

    requests: int
    p50_ms: float
    p95_ms: float


class Load(Struct, frozen=True, kw_only=True):
    """What was asked of what, and how long that took.

    Attributes:
        graph, rows: what was asked, the largest graph there is.
        version: the wire version that was spoken.
        pull: reads of up to `page_rows` rows, all of them in a version without pages.
        push: writes of one entity each, and the answer to that.
    """

    graph: str
    rows: int
    version: str
    concurrency: int
    processors: int
    page_rows: int
    pull: Timed
    push: Timed


async def load(
    ask: Ask,
    *,
    graph: str,
    rows: int,
    now: int,
    processors: int,
    monotonic: Callable[[], float] = time.perf_counter,
) -> Load:
    """Pull and push, several at once, and time it. The pushes stay, so this is for a copy.

    Raises:
        StoreError: one of them was not served.
    """
    version = await _spoken(ask)

    def pull(_: int) -> Any:
        return page(PAGE_ROWS) if version == V2 else _READ_V1

    def push(number: int) -> Any:
        name = f"preflight-{number}"
        if version == V2:
            one = {**_LAMP, "id": name, "version": make_version(now, number, "preflight")}
            return _v2(one, features=["paging"], page_rows=1)
        return _push_v1(name)

    return Load(
        graph=graph,
        rows=rows,
        version=version,
        concurrency=CONCURRENCY,
        processors=processors,
        page_rows=PAGE_ROWS,
        pull=await _timed(ask, pull, monotonic),
        push=await _timed(ask, push, monotonic),
    )


async def _timed(ask: Ask, body: Callable[[int], Any], monotonic: Callable[[], float]) -> Timed:
    took: list[float] = []
    numbers = iter(range(REQUESTS))

    async def one_after_another() -> None:
        for number in numbers:
            began = monotonic()
            answer = await ask("POST", SYNC, body(number))
            took.append((monotonic() - began) * 1000)
            if answer.status != 200:
                raise StoreError(f"expected 200 to each pull and push of the load; got {answer.status}")

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENCY):
            group.create_task(one_after_another())
    took.sort()
    return Timed(requests=len(took), p50_ms=_quantile(took, 0.5), p95_ms=_quantile(took, 0.95))


def _quantile(took: list[float], share: float) -> float:
    return round(took[min(int(share * len(took)), len(took) - 1)], 3)
