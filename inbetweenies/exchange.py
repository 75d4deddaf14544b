"""One request from bytes to bytes: the straight line. Read this first.

    body -> gate -> route -> decode -> up -> reads -> decide -> one commit -> down -> encode -> answer

Every step but the store's is pure. What a step needs of the store it yields as `Reads` or `Writes`, and those meet a
transaction only here: in `run`, and in `Rest` for answers that are too large to be held. With a store that never waits
the whole line never waits, so it can be driven without an event loop, deterministically.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from . import engine
from .census import Sighting
from .errors import LocalProtocolError, StoreBusy, StoreError, StoreUndone, VersionRefused
from .limits import Limits
from .merge import Policy
from .model import Context, Document, Event, Head, Held, Plan, Reads, Telling, Writes
from .store import Store, Transaction
from .wire import Negotiation, WireVersion

T = TypeVar("T")

ROUTES_MAX = 8  # an operator who switches versions faster than a request is routed has to wait, not we


class Effect(Struct, frozen=True, kw_only=True):
    """What serving a message came to, for those who watch how a version does (PROTOCOL 12.6).

    Attributes:
        pushed, pulled: whether it brought something, and was told something.
        conflicts: whether any of it met a conflict.
        whole: whether nothing is left for a later page: a sync is over.
    """

    pushed: bool = False
    pulled: bool = False
    conflicts: bool = False
    whole: bool = True


class Begun(Struct, frozen=True, kw_only=True):
    """The answer to a message, or its beginning and the `rest` of it, what it came to, and what was found to have
    happened to the log."""

    body: bytes
    rest: Rest | None = None
    effect: Effect = Effect()
    events: tuple[Event, ...] = ()


class Reply(Struct, frozen=True, kw_only=True):
    """What goes back to a peer: an HTTP status, a JSON body, the wire version that was served (None on a refusal).

    `notice` is a line worth logging, for shells; the pure part does not log. With `rest`, `body` is only the beginning
    of an answer that is not held whole. `about` is the version that a refusal is about, `sighting` what the census
    makes of the request, `effect` what it came to; None of what was refused. `events` were found to have happened to
    the log, and are kept with it.
    """

    status: int
    body: bytes
    served: str | None = None
    notice: str | None = None
    about: str | None = None
    sighting: Sighting | None = None
    rest: Rest | None = None
    effect: Effect | None = None
    events: tuple[Event, ...] = ()


class Routed(Struct, frozen=True, kw_only=True):
    """A decoded message, who serves it, what to tell the peer about the choice of its wire version, and by which
    documents of the store it was made."""

    handler: Any
    message: Any
    served: str
    negotiation: Negotiation | UnsetType = UNSET
    decided: Mapping[str, Document] | None = None
    sighting: Sighting | None = None


class Asked(Struct, frozen=True, kw_only=True):
    """What a transport knows of a request beside its body: the path, and three headers."""

    path: str = ""
    version: str | None = None
    accept: str | None = None
    agent: str | None = None


class RegistryChanged(Exception):
    """Inside the transaction other `documents` were found than those by which the request was routed. Nothing was
    applied; it is routed anew."""

    def __init__(self, documents: Mapping[str, Document]) -> None:
        super().__init__("the wire versions that are served were changed meanwhile")
        self.documents = documents


class Router(Protocol):
    """Finds the wire version of a body, or refuses it. `inbetweenies.router.ProtocolFallback` is one."""

    def route(self, body: bytes, asked: Asked, graph: str) -> Routed:
        """Raises `RemoteProtocolError`; then nothing of the body was applied or acknowledged (PROTOCOL 1, law 11)."""

    def learn(self, documents: Mapping[str, Document]) -> bool:
        """From here on route by what these documents say. Whether that is anything new."""

    async def refresh(self) -> bool:
        """Learn what the store holds now."""


async def respond(body: bytes, *, router: Router, context: Context, asked: Asked) -> Reply:
    """One request, served: what a peer sent in, what it is told out.

    Raises:
        RemoteProtocolError: the peer sent something wrong; nothing happened.
        StoreError: the store could not; nothing may be acknowledged.
    """
    for _ in range(ROUTES_MAX):
        try:
            routed = router.route(body, asked, context.graph)
            begun: Begun = await routed.handler.begin(routed.message, context, routed.negotiation, routed.decided)
        except RegistryChanged as changed:
            router.learn(changed.documents)
        except (VersionRefused, LocalProtocolError):
            # It may be served since, or something at all; who was refused a version for good is told so by what is in
            # force now.
            if not await router.refresh():
                raise
        else:
            return Reply(
                status=200,
                body=begun.body,
                served=routed.served,
                sighting=routed.sighting,
                rest=begun.rest,
                effect=begun.effect,
                events=begun.events,
            )
    raise StoreBusy("expected the served wire versions to stay the same for a moment; they changed again and again")


async def begin(
    wire: WireVersion,
    message: Any,
    *,
    store: Store,
    context: Context,
    limits: Limits,
    policy: Policy,
    negotiation: Negotiation | UnsetType = UNSET,
    decided: Mapping[str, Document] | None = None,
) -> Begun:
    """One decoded message, served in its wire version: the answer, or its beginning and the rest of it.

    A push is decided in one transaction, and answered when that has committed: law 1, the ack comes after the commit.
    A read is answered from the snapshot that it was decided in, as far as the first piece goes. With `decided`, the
    documents by which the wire version was chosen, the choice holds in this very transaction (PROTOCOL 5.11).

    Raises:
        RegistryChanged: it does not; nothing was applied.
    """
    return await _anew(lambda: _begin(wire, message, store, context, limits, policy, negotiation, decided))


#: How often a message is served anew because somebody else's could not be committed. Stores see to it that once is
#: enough; who meets with it again and again is told to come back later.
UNDONE_MAX: Final = 2


async def _anew(attempt: Callable[[], Awaitable[T]]) -> T:
    """What comes of an attempt, or of another one."""
    for _ in range(UNDONE_MAX):
        with suppress(StoreUndone):
            return await attempt()
    return await attempt()


async def _begin(
    wire: WireVersion,
    message: Any,
    store: Store,
    context: Context,
    limits: Limits,
    policy: Policy,
    negotiation: Negotiation | UnsetType,
    decided: Mapping[str, Document] | None,
) -> Begun:
    writable = wire.writes(message)
    try:
        return await _attempt(wire, message, store, context, limits, policy, negotiation, decided, writable)
    except MustWrite:
        # A read that found out something about the log itself, which is to be kept (PROTOCOL 4.11).
        return await _attempt(wire, message, store, context, limits, policy, negotiation, decided, True)


async def _attempt(
    wire: WireVersion,
    message: Any,
    store: Store,
    context: Context,
    limits: Limits,
    policy: Policy,
    negotiation: Negotiation | UnsetType,
    decided: Mapping[str, Document] | None,
    writable: bool,
) -> Begun:
    async with store.transaction(context.graph, write=writable) as tx:
        if decided is not None:
            found = (await tx.read(Reads(documents=tuple(decided)))).documents
            if found != decided:
                raise RegistryChanged(found)
        events: list[Event] = []
        request = await run(wire.up(message, context, limits), tx, writable)
        response = await run(engine.serve(request, context, limits, policy), tx, writable, events)
        telling = wire.down(message, response, context, limits, negotiation)
        rest = Rest(telling, store, context.graph, response.head)
        first = None if writable else await rest.next(tx)
    if first is None:
        first = await rest.next()
    effect = Effect(
        pushed=bool(request.changes),
        pulled=bool(response.rows),
        conflicts=bool(response.conflicts),
        whole=not response.more,
    )
    return Begun(body=first, rest=None if rest.ended else rest, effect=effect, events=tuple(events))


class Rest:
    """What is still to come of an answer, piece by piece.

    No transaction stays open between two pieces, so a peer that reads slowly holds nothing of the store. The log only
    ever grows, so every piece can be read as of the head that the answer began with.
    """

    def __init__(self, telling: Telling, store: Store, graph: str, head: Head) -> None:
        self.ended = False
        self._telling = telling
        self._store = store
        self._graph = graph
        self._head = head

    async def next(self, tx: Transaction | None = None) -> bytes:
        """The next piece, out of `tx` or a transaction of its own; the last one if the answer has `ended` then.

        Raises:
            StoreError: the answer cannot be ended, and must be broken off; what was told of it is no answer.
        """
        step = self._go_on(None)
        if isinstance(step, bytes):
            return step
        if tx is not None:
            return await self._piece(step, tx)
        async with self._store.transaction(self._graph, write=False) as own:
            held = await own.read(Reads(chains=(self._head.seq,)))
            if (held.head.epoch, held.chains.get(self._head.seq)) != (self._head.epoch, self._head.chain):
                raise StoreError("expected the log that the answer began with; it was rewound meanwhile")
            return await self._piece(step, own)

    async def _piece(self, step: Reads | Writes | bytes, tx: Transaction) -> bytes:
        while not isinstance(step, bytes):
            held = Held(head=self._head)
            if isinstance(step, Reads):
                at = self._head.seq if step.as_of is None else min(step.as_of, self._head.seq)
                held = await tx.read(replace(step, as_of=at))
            else:
                await tx.write(step)
            step = self._go_on(held)
        return step

    def _go_on(self, held: Held | None) -> Reads | Writes | bytes:
        try:
            # A generator that has just yielded bytes, or nothing yet, is sent nothing.
            return next(self._telling) if held is None else self._telling.send(held)
        except StopIteration as stop:
            self.ended = True
            last: bytes = stop.value
            return last


async def whole(first: bytes, rest: Rest | None) -> bytes:
    """An answer in one piece, for those who cannot take several."""
    pieces = [first]
    while rest is not None and not rest.ended:
        pieces.append(await rest.next())
    return b"".join(pieces)


async def carry_out(plan: Callable[[], Plan[T]], store: Store, graph: str, *, write: bool) -> T:
    """A plan that is no sync, as one transaction.

    Raises:
        StoreError: the store could not; nothing was applied.
    """

    async def attempt() -> T:
        async with store.transaction(graph, write=write) as tx:
            return await run(plan(), tx, write)

    return await _anew(attempt)


class MustWrite(Exception):
    """More is to be written than the transaction was opened for; nothing was."""


async def run(plan: Plan[T], tx: Transaction, writable: bool = True, events: list[Event] | None = None) -> T:
    """Drive a pure plan over a transaction: read what it asks for, write what it decided, return what it returns. What
    happened, by what it writes, is added to `events`.

    Raises:
        MustWrite: the plan writes more than a device's hint, and `tx` is not `writable`.
    """
    held = Held(head=engine.NOTHING)
    try:
        step = next(plan)
        while True:
            if isinstance(step, Reads):
                held = await tx.read(step)
            elif not writable and (step.rows or step.closed or step.events or step.head):
                raise MustWrite
            else:
                await tx.write(step)
                if events is not None:
                    events.extend(step.events)
            step = plan.send(held)
    except StopIteration as stop:
        result: T = stop.value
        return result
