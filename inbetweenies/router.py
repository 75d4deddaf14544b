"""Which wire version is this? Route it, or refuse it so that the peer can fall back.

Nothing here logs, waits or reads a clock by itself; nothing is applied unless the whole body routed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from . import exchange
from .census import Sighting, refused_under, release_of, served_under
from .errors import (
    BodyNotValidForVersion,
    InbetweeniesError,
    LocalProtocolError,
    RemoteProtocolError,
    StoreError,
    VersionRefused,
)
from .exchange import Asked, Begun, Reply, Routed
from .limits import Limits, checked_decode, gate
from .merge import Policy
from .model import Context, Document
from .negotiation import Choice, check_name, json_type, negotiate, problem, told_to
from .registry import DOCUMENT, Registry, registry_of
from .rollout.orders import DOCUMENTS, NONE, Orders, orders_in
from .store import Store
from .wire import Negotiation, WireVersion, load

FALLBACK: Final = "inbetweenies-v1"
_READ_PATH: Final = "/api/v1/sync/request"
_PUSH_PATH: Final = "/api/v1/sync/push"
_VERSION_BYTES_MAX: Final = 64 * 6 + 2  # 64 characters, each as a \uXXXX escape, and the quotes
_CLIENT_BYTES_MAX: Final = 512  # two words of 64 characters; what is longer says nothing
_OFFER_MAX: Final = 64

_NO_CHANGES: Final = re.compile(rb"\[\s*\]|null")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


class _Peek(Struct):
    """The envelope (PROTOCOL 5.1): all that is looked at before the wire version is known."""

    protocol_version: Raw | UnsetType = UNSET
    supported_versions: Raw | UnsetType = UNSET
    changes: Raw | UnsetType = UNSET
    client: Raw | UnsetType = UNSET


_peek = msgspec.json.Decoder(_Peek)


class ProtocolHandler:
    """Serves one wire version from one store. What `ProtocolFallback.handlers` holds.

    Args:
        wire: the wire version, or its name.
        store: where graphs are kept; without one, a memory store of its own.
        clock: microseconds since 1970; without one, the wall clock.
        context: who speaks when `process` is called (graph, user, device).
        policy: who wins, and the rules of one's own for entity types (PROTOCOL 6.8).
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
        begun = await self.begin(message, context)
        answer: dict[str, Any] = _decode(await exchange.whole(begun.body, begun.rest))
        return answer

    async def begin(
        self,
        message: Any,
        context: Context,
        negotiation: Negotiation | UnsetType = UNSET,
        decided: Mapping[str, Document] | None = None,
    ) -> Begun:
        """Serve a decoded message (see `exchange.begin`)."""
        return await exchange.begin(
            self.wire,
            message,
            store=self.store,
            context=context,
            limits=self.limits,
            policy=self.policy,
            negotiation=negotiation,
            decided=decided,
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
        policy: who wins, and the rules of one's own for entity types (PROTOCOL 6.8); also kept as `self.policy`, for
            the queue of what waits for a person. Handlers that are given have one of their own.
        fallback: the version that unknown ones fall back to; None refuses them.
        missing: the version meant by a body that names none; None refuses those.
        disabled, retired: names that this process refuses, whatever the store says (PROTOCOL 5.3). What an operator
            decides for all processes is kept in the store (``inbetweenies versions``) and holds at once.
        docs: where people can read which release speaks which version; told with every refusal of one.
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
        docs: str | None = None,
    ) -> None:
        self.store, self.clock = _store_and_clock(store, clock)
        self.context = context or Context()
        self.limits = limits or Limits()
        self.policy = policy or Policy()
        self.fallback = fallback
        self.missing = missing
        self.disabled = frozenset(disabled)
        self.retired = frozenset(retired)
        self.docs = docs
        self._orders: Orders = NONE
        self._known: tuple[Any, Registry] | None = None
        if handlers is None:
            handlers = {
                wire.name: ProtocolHandler(
                    self.store,
                    wire=wire,
                    clock=self.clock,
                    context=self.context,
                    limits=self.limits,
                    policy=self.policy,
                )
                for wire in load().values()
            }
        self.handlers = handlers

    # --- what is served

    @property
    def registry(self) -> Registry:
        """What is served right now: the handlers there are, newest first, under what was decided in the store as far
        as it is known here, less what is disabled or retired in this process.

        Raises:
            LocalProtocolError: nothing would be accepted.
        """
        decisions, document = self._orders.decisions, self._orders.documents[DOCUMENT]
        # Everything that it is made of may be changed at any time, and it is asked for with every request.
        made_of = (
            tuple(self.handlers.items()), document, self.disabled, self.retired, self.fallback, self.missing, self.docs
        )  # fmt: skip
        known = self._known
        if known is not None and known[0] == made_of:
            return known[1]
        registry = registry_of(
            sorted(self.handlers, key=self._rank),
            decisions,
            disabled=self.disabled,
            retired=self.retired - self.disabled,
            fallback=self.fallback,
            missing=self.missing,
            docs=self.docs,
            changes=document.revision,
        )
        self._known = (made_of, registry)
        return registry

    def _rank(self, name: str) -> tuple[int, str]:
        wire = getattr(self.handlers[name], "wire", None)
        return (-getattr(wire, "rank", 0), name)

    @property
    def orders(self) -> Orders:
        """What was decided in the store, as far as it is known here."""
        return self._orders

    def registry_for(self, graph: str) -> Registry:
        """PROTOCOL 12.5: what is served right now to one graph, which rollouts may or may not reach.

        Raises:
            LocalProtocolError: nothing would be accepted.
        """
        return self._orders.registry(self.registry, graph)

    def learn(self, documents: Mapping[str, Document]) -> bool:
        """From here on serve what these documents of the store say. Whether that is anything new.

        Raises:
            StoreCorrupt: they say nothing that can be understood; what is served stays.
        """
        if documents == self._orders.documents:
            return False
        self._orders = orders_in(documents)
        return True

    async def refresh(self) -> bool:
        """Learn what the store holds now. Serving a message does so by itself; this is for all else that tells of it.

        Raises:
            StoreError: the store could not be read; what is served stays.
        """
        return self.learn({name: await self.store.document(name) for name in DOCUMENTS})

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
        self,
        body: bytes,
        *,
        context: Context,
        path: str = "",
        header: str | None = None,
        accept: str | None = None,
        agent: str | None = None,
        pieces: bool = False,
    ) -> Reply:
        """Serve one sync message given as bytes. Never raises for what a peer sent or a store could not do.

        Args:
            header: the version that the transport names, if it does.
            accept: the versions that it offers, separated by commas; counts where the body offers none.
            agent: what the peer calls itself, for the census.
            pieces: whether the caller can send a `body` and then what `Reply.rest` still gives; without, the body is
                whole, however large.
        """
        asked = Asked(path=path, version=header, accept=accept, agent=agent)
        try:
            reply = await exchange.respond(body, router=self, context=context, asked=asked)
            if pieces or reply.rest is None:
                return reply
            return msgspec.structs.replace(reply, body=await exchange.whole(reply.body, reply.rest), rest=None)
        except RemoteProtocolError as error:
            return Reply(
                status=error.status,
                body=_encode(problem(error)),
                notice=str(error),
                about=error.requested if isinstance(error, VersionRefused) else None,
                sighting=self._refused_sighting(body, asked, context.graph, error),
            )
        except StoreError as error:
            away = RemoteProtocolError(
                code="unavailable", expected="a store that can take this", got="one that cannot now; try again"
            )
            return Reply(status=away.status, body=_encode(problem(away)), notice=f"{type(error).__name__}: {error}")

    # --- routing

    def route(self, body: bytes, asked: Asked = Asked(), graph: str = "") -> Routed:  # noqa: B008 - it is frozen
        """PROTOCOL 5: gate, envelope, choice, decode. Raises `RemoteProtocolError`; then nothing happened."""
        gate(body, self.limits)
        peek = checked_decode(_peek, body)
        decided, registry = self._orders.documents, self.registry_for(graph)
        try:
            requested, offer = _requested(peek, asked.version), _offer(peek, asked.accept)
        except VersionRefused as error:
            error.supported, error.registry_revision, error.docs = registry.supported, registry.revision, registry.docs
            raise
        has_changes = _carries_changes(peek)
        choice = negotiate(requested, offer, has_changes=has_changes, registry=registry)
        handler = self.handlers[choice.served]
        supported = told_to(offer, registry)
        message = self._decode(handler, body, choice, asked.path, registry, supported)
        return Routed(
            handler=handler if hasattr(handler, "begin") else _DictHandler(handler),
            message=message,
            served=choice.served,
            negotiation=_negotiation(choice, supported),
            decided=decided,
            sighting=Sighting(
                version=served_under(requested, choice.served, registry),
                release=release_of(_client(peek), asked.agent),
                wrote=has_changes,
                served=choice.served,
                offers=tuple(name for name in registry.accepted if name in (offer or ())),
            ),
        )

    def _refused_sighting(self, body: bytes, asked: Asked, graph: str, error: RemoteProtocolError) -> Sighting | None:
        """What the census makes of a request that was refused; looked at once more, since that is rare."""
        try:
            registry = self.registry_for(graph)
        except LocalProtocolError:
            return None  # nothing is served at all
        requested, client = None, None
        with suppress(RemoteProtocolError):  # it got no further
            gate(body, self.limits)
            peek = checked_decode(_peek, body)
            client = _client(peek)
            requested = _requested(peek, asked.version)
        return Sighting(version=refused_under(requested, error, registry), release=release_of(client, asked.agent))

    def _decode(
        self,
        handler: Any,
        body: bytes,
        choice: Choice,
        path: str,
        registry: Registry,
        supported: tuple[str, ...],
    ) -> Any:
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
            raise BodyNotValidForVersion(
                code="body_not_valid_for_version",
                expected=f"a body that is valid in {choice.served}: {error.expected}",
                got=error.got,
                pointer=error.pointer,
                requested=choice.requested,
                supported=supported,
                registry_revision=registry.revision,
                docs=registry.docs,
            ) from error


class _DictHandler:
    """A user's handler that only has `process`, behind the same call as ours."""

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    async def begin(self, message: Any, context: Context, *_: object) -> Begun:
        answer = await self._handler.process(message)
        return Begun(body=_dict_bytes(answer))


_any = msgspec.json.Decoder(dict[str, Any])
_value = msgspec.json.Decoder(Any)


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
        # The decoder skips over what it hands out raw, so a number that no double can hold is only found now.
        named = check_name(checked_decode(_value, raw))
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


def _offer(peek: _Peek, accept: str | None) -> tuple[str, ...] | None:
    """What the body offers, else what the header does."""
    pointer = "/supported_versions"
    listed: Any = None
    if not isinstance(peek.supported_versions, UnsetType):
        listed = checked_decode(_value, bytes(peek.supported_versions))
    elif accept is not None:
        listed, pointer = [name.strip() for name in accept.split(",")], ""
    else:
        return None
    if not isinstance(listed, list) or len(listed) > _OFFER_MAX:
        got = f"an array of {len(listed)}" if isinstance(listed, list) else json_type(listed)
        raise VersionRefused(
            code="malformed_version",
            expected=f"an array of at most {_OFFER_MAX} version names",
            got=got,
            pointer=pointer,
            retry="never",
        )
    return tuple(check_name(name) for name in listed)


def _client(peek: _Peek) -> object:
    """What the envelope says of the client; whatever it is, the request is served."""
    if isinstance(peek.client, UnsetType) or len(bytes(peek.client)) > _CLIENT_BYTES_MAX:
        return None
    try:
        return checked_decode(_value, bytes(peek.client))
    except RemoteProtocolError:
        return None


def _negotiation(choice: Choice, supported: tuple[str, ...]) -> Negotiation | UnsetType:
    """PROTOCOL 5.6: told only where the peer does not know it all already."""
    if choice.source == "default" or (choice.source == "exact" and not choice.better):
        return UNSET
    reasons = {
        "exact": "the version asked for; another one of those offered is preferred here",
        "fallback": "the version asked for is not known here",
        "offer": "the best of the versions offered that is served here",
    }
    return Negotiation(
        requested=choice.requested,
        served=choice.served,
        source=choice.source,
        reason=reasons[choice.source],
        supported=supported,
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
