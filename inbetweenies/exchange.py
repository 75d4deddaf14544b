"""One request from bytes to bytes: the straight line. Read this first.

    body -> gate -> route -> decode -> up -> reads -> decide -> one commit -> down -> encode -> answer

Every step but the store's is pure. What a step needs of the store it yields as `Reads` or `Writes`, and `run` is the
only place where those meet a transaction. With a store that never waits the whole line never waits, so it can be
driven without an event loop, deterministically.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from msgspec import UNSET, Struct, UnsetType

from . import engine
from .census import Sighting
from .errors import LocalProtocolError, StoreBusy, VersionRefused
from .limits import Limits
from .merge import Policy
from .model import Context, Document, Held, Plan, Reads
from .registry import DOCUMENT
from .store import Store, Transaction
from .wire import Negotiation, WireVersion

T = TypeVar("T")

ROUTES_MAX = 8  # an operator who switches versions faster than a request is routed has to wait, not we


class Reply(Struct, frozen=True, kw_only=True):
    """What goes back to a peer: an HTTP status, a JSON body, the wire version that was served (None on a refusal).

    `notice` is a line worth logging, for shells; the pure part does not log. `about` is the version that a refusal is
    about, `sighting` what the census makes of the request.
    """

    status: int
    body: bytes
    served: str | None = None
    notice: str | None = None
    about: str | None = None
    sighting: Sighting | None = None


class Routed(Struct, frozen=True, kw_only=True):
    """A decoded message, who serves it, what to tell the peer about the choice of its wire version, and by which
    decisions of the operator it was made."""

    handler: Any
    message: Any
    served: str
    negotiation: Negotiation | UnsetType = UNSET
    decided: Document = Document()
    sighting: Sighting | None = None


class Asked(Struct, frozen=True, kw_only=True):
    """What a transport knows of a request beside its body: the path, and three headers."""

    path: str = ""
    version: str | None = None
    accept: str | None = None
    agent: str | None = None


class RegistryChanged(Exception):
    """Inside the transaction another `document` was found than the one by which the request was routed. Nothing was
    applied; it is routed anew."""

    def __init__(self, document: Document) -> None:
        super().__init__("the wire versions that are served were changed meanwhile")
        self.document = document


class Router(Protocol):
    """Finds the wire version of a body, or refuses it. `inbetweenies.router.ProtocolFallback` is one."""

    def route(self, body: bytes, asked: Asked) -> Routed:
        """Raises `RemoteProtocolError`; then nothing of the body was applied or acknowledged (PROTOCOL 1, law 11)."""

    def learn(self, document: Document) -> bool:
        """From here on route by what this document says. Whether that is anything new."""

    async def refresh(self) -> bool:
        """Learn what the store holds now."""


async def respond(body: bytes, *, router: Router, context: Context, asked: Asked) -> Reply:
    """One request, served: what a peer sent in, what it is told out.

    Raises:
        RemoteProtocolError: the peer sent something wrong; nothing happened.
        StoreError: the store could not; nothing happened, nothing may be acknowledged.
    """
    for _ in range(ROUTES_MAX):
        try:
            routed = router.route(body, asked)
            answer: bytes = await routed.handler.serve(routed.message, context, routed.negotiation, routed.decided)
        except RegistryChanged as changed:
            router.learn(changed.document)
        except (VersionRefused, LocalProtocolError):
            # It may be served since, or something at all; who was refused a version for good is told so by what is in
            # force now.
            if not await router.refresh():
                raise
        else:
            return Reply(status=200, body=answer, served=routed.served, sighting=routed.sighting)
    raise StoreBusy("expected the served wire versions to stay the same for a moment; they changed again and again")


async def serve(
    wire: WireVersion,
    message: Any,
    *,
    store: Store,
    context: Context,
    limits: Limits,
    policy: Policy,
    negotiation: Negotiation | UnsetType = UNSET,
    decided: Document | None = None,
) -> bytes:
    """One decoded message, served in its wire version, in one transaction.

    The bytes exist only once the transaction has committed: law 1, the ack comes after the commit. With `decided`, the
    document by which the wire version was chosen, the choice holds in this very transaction (PROTOCOL 5.11).

    Raises:
        RegistryChanged: it does not; nothing was applied.
    """
    async with store.transaction(context.graph, write=wire.writes(message)) as tx:
        if decided is not None:
            found = (await tx.read(Reads(documents=(DOCUMENT,)))).documents[DOCUMENT]
            if found != decided:
                raise RegistryChanged(found)
        request = await run(wire.up(message, context, limits), tx)
        response = await run(engine.serve(request, context, limits, policy), tx)
        return await run(wire.down(message, response, context, limits, negotiation), tx)


async def run(plan: Plan[T], tx: Transaction) -> T:
    """Drive a pure plan over a transaction: read what it asks for, write what it decided, return what it returns."""
    held = Held(head=engine.NOTHING)
    try:
        step = next(plan)
        while True:
            if isinstance(step, Reads):
                held = await tx.read(step)
            else:
                await tx.write(step)
            step = plan.send(held)
    except StopIteration as stop:
        result: T = stop.value
        return result
