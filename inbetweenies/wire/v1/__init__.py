"""``inbetweenies-v1``: the HomeKit-record protocol of July 2025, three messages (PROTOCOL 8).

v1 is a *view* of the graph. Read `codec` for what stands on the wire, `lens` for how a record is seen in the graph
and how an edit of one changes it, `graph` for what is read to that end, `pull` and `push` for the two exchanges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import UNSET, UnsetType

from ...limits import Limits
from ...model import Context, Head, Plan, Row, SyncRequest, SyncResponse, Telling, format_time
from ...rollout.shadow import Shown, View
from .. import Follow, Negotiation
from . import codec, lens, pull, push, shadow
from .codec import Done, Message, Push, Read, SyncAckResponse


class V1:
    """The wire version: see `inbetweenies.wire.WireVersion`, which it implements."""

    name: str = codec.NAME
    rank: int = 1
    carries: frozenset[str] = lens.CARRIES

    def decode(self, body: bytes, *, path: str = "", strict: bool = False, limits: Limits) -> Message:
        """PROTOCOL 8.1: a message from bytes that passed the gate."""
        return codec.decode(body, path=path, strict=strict, limits=limits)

    def writes(self, message: Any) -> bool:
        """Whether serving `message` may change the store. An ack does: it moves what is known of the client."""
        return isinstance(message, Done) or (isinstance(message, Push) and bool(message.items))

    def up(self, message: Any, context: Context, limits: Limits) -> Plan[SyncRequest]:
        """The version-free request that `message` means. A read is answered from the view alone, in `down`."""
        if isinstance(message, Push):
            return (yield from push.up(message, context, limits))
        key = push.device_key(context, message.client)
        return SyncRequest(
            device=key, user=context.user, pull=False, ack=message.mark if isinstance(message, Done) else None
        )

    def down(
        self,
        message: Any,
        response: SyncResponse,
        context: Context,
        limits: Limits,
        negotiation: Negotiation | UnsetType = UNSET,
    ) -> Telling:
        """The answer to `message`."""
        if isinstance(message, Push):
            return codec.encode((yield from push.down(message, response)), negotiation)
        if isinstance(message, Read):
            return (yield from pull.down(message, response, context, limits, negotiation))
        return codec.encode(SyncAckResponse(server_time=format_time(context.now)), negotiation)

    def follow(self, body: bytes, answer: bytes) -> Follow | None:
        """PROTOCOL 5.18: the same request again, if it was one. What is acknowledged says where it starts (8.15)."""
        return codec.follow(body, answer)

    # PROTOCOL 12.10: what it shows of a whole graph.

    def everything(self) -> bytes:
        """See `inbetweenies.rollout.shadow.Shadowed`."""
        return shadow.everything()

    def shown(self, answer: bytes) -> Iterable[Shown]:
        """See `inbetweenies.rollout.shadow.Shadowed`."""
        return shadow.shown(answer)

    def view(self, head: Head, rows: Sequence[Row]) -> View:
        """See `inbetweenies.rollout.shadow.Shadowed`."""
        return shadow.view(head, rows)


WIRE: Final = V1()
