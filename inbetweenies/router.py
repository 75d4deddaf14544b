"""Which wire version is this? Route it, or refuse it so that the peer can fall back.

Nothing here logs, waits or reads a clock by itself; nothing is applied unless the whole body routed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from . import exchange
from .errors import InbetweeniesError, LocalProtocolError, RemoteProtocolError, StoreError, VersionRefused
from .exchange import Reply, Rest, Routed
from .limits import Limits, checked_decode, gate
from .merge import Policy
from .model import Context
from .negotiation import Choice, Registry, check_name, choose, json_type, problem
from .store import Store
from .wire import Negotiation, WireVersion, load

FALLBACK: Final = "inbetweenies-v1"
_READ_PATH: Final = "/api/v1/sync/request"
_PUSH_PATH: Final = "/api/v1/sync/push"
_VERSION_BYTES_MAX: Final = 64 * 6 + 2  # 64 characters, each as a \uXXXX escape, and the quotes

_NO_CHANGES: Final = re.compile(rb"\[\s*\]|null")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


class _Peek(Struct):
    """The envelope (PROTOCOL 5.1): all that is looked at before the wire version is known."""

    protocol_version: Raw | UnsetType = UNSET
    supported_versions: Raw | UnsetType = UNSET
    changes: Raw | UnsetType = UNSET


_peek = msgspec.json.Decoder(_Peek)


class ProtocolHandler:
    """Serves one wire version from one store. What `ProtocolFallback.handlers` holds.

    Args:
        wire: the wire version, or its name.
        store: where graphs are kept; without one, a memory store of its own.
        clock: microseconds since 1970; without one, the wall clock.
        context: who speaks when `process` is called (graph, user, device).
    """

    name: str = ""

    def __init__(
        self,
        store: Store | None = None,
        *,
        wire: WireVersion | None = None,
        clock: Callable[[], int] | None = None,
        context: Context | None = None,
        limits: Limits | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.wire = wire if wire is not None else _find(self.name)
        self.store, self.clock = _store_and_clock(store, clock)
        self.context = context or Context()
        self.limits = limits or Limits()
        self.policy = policy or Policy()

    async def process(self, request: dict[str, Any]) -> dict[str, Any]:
        """Serve one message of this wire version given as a dict, and return the answer as a dict.

        Raises:
            RemoteProtocolError: `request` is no legal message of this version; nothing was applied.
            StoreError: the store could not; nothing was applied.
        """
        body = _dict_bytes(request)
        gate(body, self.limits)
        message = self.wire.decode(body, limits=self.limits)
        context = msgspec.structs.replace(self.context, now=self.clock())
        answer: dict[str, Any] = _decode(await exchange.whole(*await self.begin(message, context)))
        return answer

    async def begin(
        self, message: Any, context: Context, negotiation: Negotiation | UnsetType = UNSET
    ) -> tuple[bytes, Rest | None]:
        """Serve a decoded message; the encoded answer, or its beginning and the rest of it (see `exchange.begin`)."""
        return await exchange.begin(
            self.wire,
            message,
            store=self.store,
            context=context,
            limits=self.limits,
            policy=self.policy,
            negotiation=negotiation,
        )


class V1ProtocolHandler(ProtocolHandler):
    """Serves ``inbetweenies-v1``: HomeKit-like records, three messages (PROTOCOL 8)."""

    name = "inbetweenies-v1"


class V2ProtocolHandler(ProtocolHandler):
    """Serves ``inbetweenies-v2``: entities and relationships, one message (PROTOCOL 9)."""

    name = "inbetweenies-v2"


class ProtocolFallback:
    """Serves every wire version it has a handler for, and falls back to v1 for versions it does not know.

    A server author needs nothing else::

        fallback = ProtocolFallback()                     # in memory; or ProtocolFallback(SqliteStore("home.db"))
        answer = await fallback.handle_sync_request({
            "protocol_version": "inbetweenies-v2",        # v1 if missing; an unknown version is answered in v1
            "device_id": "kitchen-tablet", "user_id": "alice",
            "sync_type": "full",                          # or "delta" with filters.since or cursor
            "changes": [],                                # what this device wrote
        })
        if "error" in answer:                             # refused: answer["code"], ["detail"], ["supported"]
            ...                                           # nothing was applied, nothing was acknowledged

    `handle_sync_request` never raises for what a peer did: a refusal is a dict with ``error``. With bytes at hand,
    `handle` is faster and returns bytes and an HTTP status.

    Args:
        store: where graphs are kept; a memory store if not given.
        handlers: wire version name -> handler with ``async process(request: dict) -> dict``; by default one for every
            wire version that is installed. Kept as `self.handlers`, which may be changed at any time.
        context: who speaks in `handle_sync_request`: graph, user, device.
        clock: microseconds since 1970.
        fallback: the version that unknown ones fall back to; None refuses them.
        missing: the version meant by a body that names none; None refuses those.
        disabled, retired: names that are known and refused (PROTOCOL 5.3).
    """

    handlers: MutableMapping[str, Any]

    def __init__(
        self,
        store: Store | None = None,
        *,
        handlers: MutableMapping[str, Any] | None = None,
        context: Context | None = None,
        clock: Callable[[], int] | None = None,
        limits: Limits | None = None,
        policy: Policy | None = None,
        fallback: str | None = FALLBACK,
        missing: str | None = FALLBACK,
        disabled: Iterable[str] = (),
        retired: Iterable[str] = (),
    ) -> None:
        self.store, self.clock = _store_and_clock(store, clock)
        self.context = context or Context()
        self.limits = limits or Limits()
        self.fallback = fallback
        self.missing = missing
        self.disabled = frozenset(disabled)
        self.retired = frozenset(retired)
        if handlers is None:
            handlers = {
                wire.name: ProtocolHandler(
                    self.store, wire=wire, clock=self.clock, context=self.context, limits=self.limits, policy=policy
                )
                for wire in load().values()
            }
        self.handlers = handlers

    @property
    def registry(self) -> Registry:
        """What is served right now: the handlers there are, newest first, less what is disabled or retired."""
        served = [name for name in self.handlers if name not in self.disabled and name not in self.retired]
        return Registry(
            accepted=tuple(sorted(served, key=self._rank)),
            disabled=self.disabled,
            retired=self.retired,
            fallback=self.fallback,
            missing=self.missing,
        )

    def _rank(self, name: str) -> tuple[int, str]:
        wire = getattr(self.handlers[name], "wire", None)
        return (-getattr(wire, "rank", 0), name)

    # --- serving

    async def handle_sync_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Serve one sync message given as a dict; the answer is a dict, with ``error`` in it if it was refused."""
        context = msgspec.structs.replace(self.context, now=self.clock())
        try:
            body = _dict_bytes(request)
        except RemoteProtocolError as error:
            return problem(error)
        answer: dict[str, Any] = _decode((await self.handle(body, context=context)).body)
        return answer

    async def handle(
        self, body: bytes, *, context: Context, path: str = "", header: str | None = None, pieces: bool = False
    ) -> Reply:
        """Serve one sync message given as bytes. Never raises for what a peer sent or a store could not do.

        Whoever can send a `body` and then what `Reply.rest` still gives says so with `pieces`; without, the body is
        whole, however large.
        """
        try:
            reply = await exchange.respond(body, router=self, context=context, path=path, header=header)
            if pieces or reply.rest is None:
                return reply
            return msgspec.structs.replace(reply, body=await exchange.whole(reply.body, reply.rest), rest=None)
        except RemoteProtocolError as error:
            return Reply(status=error.status, body=_encode(problem(error)), notice=str(error))
        except StoreError as error:
            away = RemoteProtocolError(
                code="unavailable", expected="a store that can take this", got="one that cannot now; try again"
            )
            return Reply(status=away.status, body=_encode(problem(away)), notice=f"{type(error).__name__}: {error}")

    # --- routing

    def route(self, body: bytes, *, path: str = "", header: str | None = None) -> Routed:
        """PROTOCOL 5: gate, envelope, choice, decode. Raises `RemoteProtocolError`; then nothing happened."""
        gate(body, self.limits)
        peek = checked_decode(_peek, body)
        registry = self.registry
        try:
            requested, offer = _requested(peek, header), _offer(peek)
        except VersionRefused as error:
            error.supported = registry.accepted
            raise
        has_changes = _carries_changes(peek)
        choice = choose(requested, offer, has_changes=has_changes, registry=registry)
        handler = self.handlers[choice.served]
        message = self._decode(handler, body, choice, path, registry)
        return Routed(
            handler=handler if hasattr(handler, "begin") else _DictHandler(handler),
            message=message,
            served=choice.served,
            negotiation=_negotiation(choice, registry),
        )

    def _decode(self, handler: Any, body: bytes, choice: Choice, path: str, registry: Registry) -> Any:
        wire: WireVersion | None = getattr(handler, "wire", None)
        if wire is None:
            return checked_decode(_any, body)
        if choice.read_only:
            path = _READ_PATH
        elif choice.strict:
            path = _PUSH_PATH
        try:
            return wire.decode(body, path=path, strict=choice.strict, limits=self.limits)
        except RemoteProtocolError as error:
            if choice.source in ("exact", "default"):
                raise
            # PROTOCOL 5.4: no second fallback, no partial apply.
            raise VersionRefused(
                code="body_not_valid_for_version",
                expected=f"a body that is valid in {choice.served}: {error.expected}",
                got=error.got,
                pointer=error.pointer,
                requested=choice.requested,
                supported=registry.accepted,
                side="unknown",
            ) from error


class _DictHandler:
    """A user's handler that only has `process`, behind the same call as ours."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    async def begin(
        self, message: Any, context: Context, negotiation: Negotiation | UnsetType = UNSET
    ) -> tuple[bytes, Rest | None]:
        answer = await self._handler.process(message)
        return _dict_bytes(answer), None


_any = msgspec.json.Decoder(dict[str, Any])


def _requested(peek: _Peek, header: str | None) -> str | None:
    """The version that body and header name together; None if neither does."""
    named = None
    if not isinstance(peek.protocol_version, UnsetType):
        raw = bytes(peek.protocol_version)
        if len(raw) > _VERSION_BYTES_MAX:
            raise VersionRefused(
                code="malformed_version",
                expected="1 to 64 printable ASCII characters",
                got=f"{len(raw)} bytes",
                retry="never",
            )
        named = check_name(_decode(raw))
    if header is not None:
        check_name(header)
        if named is not None and named != header:
            raise VersionRefused(
                code="version_conflict", expected="one version in header and body", got="two different ones"
            )
    return named or header


def _carries_changes(peek: _Peek) -> bool:
    """Whether the body would write something: `changes` is there and is not an empty list."""
    if isinstance(peek.changes, UnsetType):
        return False
    # Looked at where they are: a copy of them would be a copy of the body.
    return _NO_CHANGES.fullmatch(memoryview(peek.changes)) is None


def _offer(peek: _Peek) -> tuple[str, ...] | None:
    if isinstance(peek.supported_versions, UnsetType):
        return None
    listed = checked_decode(_list, bytes(peek.supported_versions))
    if not isinstance(listed, list) or len(listed) > 64:
        got = f"an array of {len(listed)}" if isinstance(listed, list) else json_type(listed)
        raise VersionRefused(
            code="malformed_version",
            expected="an array of at most 64 version names",
            got=got,
            pointer="/supported_versions",
            retry="never",
        )
    return tuple(check_name(name) for name in listed)


_list = msgspec.json.Decoder(Any)


def _negotiation(choice: Choice, registry: Registry) -> Negotiation | UnsetType:
    if choice.source in ("exact", "default"):
        return UNSET
    reasons = {
        "fallback": "the version asked for is not known here",
        "offer": "the best of the versions offered that is served here",
    }
    return Negotiation(
        requested=choice.requested,
        served=choice.served,
        source=choice.source,
        reason=reasons[choice.source],
        supported=registry.accepted,
    )


def _dict_bytes(value: object) -> bytes:
    """A dict as JSON. The standard library refuses what msgspec would silently turn into null."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        kind = {RecursionError: "a value nested too deeply", TypeError: "a value that JSON does not have"}
        raise RemoteProtocolError(
            code="malformed_body",
            expected="a dict of JSON values",
            got=kind.get(type(error), "a number that is not finite, or a circle"),
        ) from error


def _find(name: str) -> WireVersion:
    versions = load()
    if name not in versions:
        raise LocalProtocolError(f"no wire version is called {name!r}; there are {', '.join(versions)}")
    return versions[name]


def _store_and_clock(store: Store | None, clock: Callable[[], int] | None) -> tuple[Store, Callable[[], int]]:
    """The defaults, which live in the shell and are loaded only by whoever relies on them."""
    from .stores.clock import wall_clock
    from .stores.memory import MemoryStore

    return store if store is not None else MemoryStore(), clock or wall_clock


__all__ = ["InbetweeniesError", "ProtocolFallback", "ProtocolHandler", "V1ProtocolHandler", "V2ProtocolHandler"]
