"""What a server says of itself to anybody who asks: `discover`, which always comes back with a typed answer.

No sync needs it: a wire version is agreed on with the first message (PROTOCOL 5.13). So whatever stands at the address
instead, a login page, another service, nothing, or a server that has never heard of it, changes nothing here; it only
says why nothing was learnt.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from inbetweenies.errors import RemoteProtocolError, clip
from inbetweenies.limits import Limits, checked_decode, gate
from inbetweenies.negotiation import NAME

from .transport import BadAnswer, Refused, Transport, TransportError

PATH: Final = "/api/version"
SECONDS: Final = 5.0  # nobody waits for it
LIMITS: Final = Limits(body_bytes_max=64 * 2**10, nodes_max=4096)

Reason: TypeAlias = Literal[
    "absent", "refused", "redirected", "unreachable", "no_answer_in_time", "not_json", "not_ours"
]


class Discovery(Struct, frozen=True, kw_only=True):
    """PROTOCOL 5.10, as a client reads it. Releases are opaque words; None where the server says nothing."""

    supported_versions: tuple[str, ...]
    preferred_version: str | None = None
    registry_revision: str | None = None
    server_version: str | None = None
    min_client_version: str | None = None
    latest_client_version: str | None = None
    docs: str | None = None


class Undiscovered(Struct, frozen=True, kw_only=True):
    """Nothing was learnt, and why. `retry` says whether asking again later can help."""

    reason: Reason
    detail: str
    retry: bool


class _Told(Struct):
    """Anything can stand in each field."""

    service: Any = None
    supported_versions: Any = None
    preferred_version: Any = None
    registry_revision: Any = None
    server_version: Any = None
    min_client_version: Any = None
    latest_client_version: Any = None
    docs: Any = None


_told = msgspec.json.Decoder(_Told)


async def discover(transport: Transport, *, seconds: float = SECONDS) -> Discovery | Undiscovered:
    """Ask a server what it serves. Never raises for anything that a server or a network does."""
    try:
        async with asyncio.timeout(seconds):
            body = await transport.get(PATH)
    except TimeoutError:
        return Undiscovered(reason="no_answer_in_time", detail=f"no whole answer within {seconds:g} s", retry=True)
    except Refused as error:
        return _refused(error)
    except BadAnswer as error:
        return Undiscovered(reason="not_json", detail=str(error), retry=False)
    except TransportError as error:
        return Undiscovered(reason="unreachable", detail=str(error), retry=True)
    try:
        gate(body, LIMITS)
        return _learnt(checked_decode(_told, body))
    except RemoteProtocolError as error:
        return Undiscovered(reason="not_json", detail=str(error), retry=False)


def _refused(error: Refused) -> Undiscovered:
    reason: Reason = "refused"
    if error.status in (404, 405, 410):
        reason = "absent"  # a server from before this, or an address below or above the right one
    elif 300 <= error.status < 400:
        reason = "redirected"
    return Undiscovered(reason=reason, detail=str(error), retry=reason == "refused")


def _learnt(told: _Told) -> Discovery | Undiscovered:
    names = told.supported_versions
    if told.service != "inbetweenies" or not isinstance(names, list):
        detail = "expected what this service says of itself; got the JSON of another"
        return Undiscovered(reason="not_ours", detail=detail, retry=False)
    words = {
        name: clip(word)
        for name in Discovery.__struct_fields__
        if name != "supported_versions" and isinstance(word := getattr(told, name), str) and word
    }
    supported = tuple(name for name in names[:64] if isinstance(name, str) and NAME.fullmatch(name))
    return Discovery(supported_versions=supported, **words)
