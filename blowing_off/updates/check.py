"""Is this release good enough for that server? Pure: from the body of ``GET /api/version`` to a verdict.

A body that cannot be read gives no verdict but `Unknown`, which is neither "fine" nor "update": sync goes on as long
as both sides share a wire version. Nothing of a server's text reaches a verdict but release numbers and names that
were taken apart and put together again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from packaging.version import InvalidVersion, Version

from inbetweenies.errors import RemoteProtocolError
from inbetweenies.limits import Limits, checked_decode, gate
from inbetweenies.negotiation import NAME, side_of

#: A server's answer is a few hundred bytes; one that needs more is no answer.
TOLD_BYTES_MAX: Final = 64 * 2**10
RELEASE_BYTES_MAX: Final = 64  # of a release number; longer ones have been used to stop programs that parse them
WIRES_MAX: Final = 64  # names of wire versions that are looked at
DISCOVERY_PATH: Final = "/api/version"
SERVICE: Final = "inbetweenies"
_LIMITS: Final = Limits(body_bytes_max=TOLD_BYTES_MAX, nodes_max=4096)

Side: TypeAlias = Literal["client", "server"]


def release_of(text: object) -> Version | None:
    """`text` as a release number; None if it is none."""
    if not isinstance(text, str) or len(text) > RELEASE_BYTES_MAX or not text.isascii():
        return None
    try:
        return Version(text)
    except (InvalidVersion, ValueError):  # ValueError: more digits than Python reads
        return None


# --- what a server says -------------------------------------------------------------------------------------------


class Told(Struct, frozen=True, kw_only=True):
    """What a server said of itself, as far as it could be read. None is what it did not say.

    Attributes:
        server: its release.
        minimum: the oldest release of a client that it takes.
        latest: the newest release of a client that it knows of.
        wires: the wire versions that it serves.
        revision: changes whenever `wires` does.
    """

    server: Version | None = None
    minimum: Version | None = None
    latest: Version | None = None
    wires: tuple[str, ...] | None = None
    revision: str | None = None


class _Body(Struct):
    """All that is looked at. Anything can stand in each field."""

    service: Any = None
    server: Any = None
    server_version: Any = None
    version: Any = None
    min_client_version: Any = None
    latest_client_version: Any = None
    supported_versions: Any = None
    registry_revision: Any = None


_body = msgspec.json.Decoder(_Body)


def read_told(body: bytes) -> Told:
    """What the answer to ``GET /api/version`` says.

    Raises:
        RemoteProtocolError: it is no such answer, or that of another service.
    """
    gate(body, _LIMITS)
    said = checked_decode(_body, body)
    if said.service is not None and said.service != SERVICE:
        raise RemoteProtocolError(code="malformed_body", expected="a sync server", got="another service")
    if said.min_client_version is not None and release_of(said.min_client_version) is None:
        # What cannot be read may ask for anything: that is no reason to call this release good enough.
        raise RemoteProtocolError(
            code="malformed_body", expected="a release number", got="something else", pointer="/min_client_version"
        )
    named = said.server.get("version") if isinstance(said.server, dict) else None
    wires = None
    if isinstance(said.supported_versions, list):
        listed = said.supported_versions[:WIRES_MAX]
        wires = tuple(name for name in listed if isinstance(name, str) and NAME.fullmatch(name))
    told = Told(
        server=release_of(said.server_version) or release_of(named) or release_of(said.version),
        minimum=release_of(said.min_client_version),
        latest=release_of(said.latest_client_version),
        wires=wires or None,
        revision=said.registry_revision[:RELEASE_BYTES_MAX] if isinstance(said.registry_revision, str) else None,
    )
    if told.server is None and told.minimum is None and told.wires is None:
        raise RemoteProtocolError(code="malformed_body", expected="what a server says of itself", got="another object")
    return told


# --- verdicts -----------------------------------------------------------------------------------------------------


class Compatible(Struct, frozen=True, kw_only=True, tag="compatible"):
    """This release and that server work together."""


class UpdateRecommended(Struct, frozen=True, kw_only=True, tag="update_recommended"):
    """They work together; the server knows of a newer release than this one. `minimum` is that release."""

    minimum: str


class UpdateRequired(Struct, frozen=True, kw_only=True, tag="update_required"):
    """This release is too old for that server. `minimum` is the oldest that it takes, if it said so."""

    minimum: str | None


class ServerTooOld(Struct, frozen=True, kw_only=True, tag="server_too_old"):
    """That server is too old for this release: whoever runs the server must update it."""


class Unknown(Struct, frozen=True, kw_only=True, tag="unknown"):
    """It could not be found out. Sync goes on as long as both sides share a wire version.

    Attributes:
        reason: why, in words.
        last_known: the kind of the last verdict that was one, such as ``compatible``.
        age: how many seconds ago that was.
    """

    reason: str
    last_known: str | None = None
    age: float | None = None


Verdict: TypeAlias = Compatible | UpdateRecommended | UpdateRequired | ServerTooOld | Unknown


def judge(told: Told, *, running: Version, spoken: Iterable[str]) -> Verdict:
    """What `told` means for the release that is `running` and speaks the wire versions `spoken`."""
    if told.minimum is not None and running < told.minimum:
        return UpdateRequired(minimum=str(told.minimum))
    ours = tuple(spoken)
    if told.wires is not None and not set(told.wires) & set(ours):
        side = side_of(ours, told.wires)
        if side == "client":
            return UpdateRequired(minimum=None)
        if side == "server":
            return ServerTooOld()
        return Unknown(reason="the server shares no wire version with this release, and neither is plainly older")
    if told.wires is None and told.minimum is None and told.server is not None and too_old(running, told.server):
        return UpdateRequired(minimum=None)
    if told.latest is not None and running < told.latest:
        return UpdateRecommended(minimum=str(told.latest))
    return Compatible()


def too_old(running: Version, server: Version) -> bool:
    """Whether a server of that release is a generation ahead, by the number alone: all there is to go by where a
    server says neither which clients nor which wire versions it takes."""
    return (running.epoch, running.major) < (server.epoch, server.major)
