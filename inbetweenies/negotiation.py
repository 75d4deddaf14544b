"""Which wire version: what a peer may say, what is served, and who is behind. Pure; versions compare by equality.

The server's half; a client's is `inbetweenies.offers`. Order comes from the registry alone. The integer in an unknown
name is read in one place, `side_of`, and only to tell a person whom to update (PROTOCOL 5.7).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from .errors import (
    PROBLEM_BYTES_MAX,
    BodyNotValidForVersion,
    NoCommonVersion,
    RemoteProtocolError,
    UnsupportedVersion,
    VersionDisabled,
    VersionRefused,
)
from .registry import Registry

#: PROTOCOL 5.1: what a version name may look like at all.
NAME = re.compile(r"[\x20-\x7e]{1,64}")
_encode = msgspec.json.Encoder().encode
_NUMBERED = re.compile(r"inbetweenies-v(0|[1-9][0-9]{0,4})(?:\.(0|[1-9][0-9]{0,4}))?(?:-[a-z][a-z0-9]{0,15})?")

#: PROTOCOL 5.5: reserved names that peers send to keep one another tolerant. Never served, never counted as a version.
GREASE: Final = frozenset(f"inbetweenies-v{2570 + 4112 * k}" for k in range(16))

#: PROTOCOL 2.7, 5: the title of each problem. `detail` of a version problem keeps the deployed server's words.
DEPLOYED_DETAIL: Final = "Unsupported protocol version"
TITLES: Final[Mapping[str, str]] = {
    "version_required": "A protocol version is required",
    "malformed_version": "The protocol version is not a version name",
    "unsupported_version": "Unsupported protocol version",
    "no_common_version": "No common protocol version",
    "version_disabled": "This protocol version is switched off here",
    "version_retired": "This protocol version is no longer served",
    "version_conflict": "Two different protocol versions are named",
    "body_not_valid_for_version": "The body is not valid in the version it fell back to",
    "malformed_body": "The body is not a legal message",
    "body_too_large": "The body is too large",
}


class Choice(Struct, frozen=True, kw_only=True):
    """What `negotiate` decided: serve `served`, because of `source` (``exact``, ``offer``, ``fallback``, ``default``).

    Attributes:
        strict: the body must be exactly one of `served`, without fields that it does not know.
        read_only: the body carries no changes and is read as a read, whatever it says that it is.
        better: another version of those offered is chosen first here, so the peer should come back with it.
    """

    served: str
    requested: str | None
    source: str
    strict: bool = False
    read_only: bool = False
    better: bool = False


def select(offer: Iterable[str], registry: Registry) -> str | None:
    """PROTOCOL 5.3: the version that this server would choose among those offered; None if it serves none of them.

    The order is the server's. Names are compared whole; reserved ones (5.5) are nobody's.
    """
    offered = frozenset(offer) - GREASE
    return next((name for name in registry.preference if name in offered), None)


def negotiate(requested: str | None, offer: tuple[str, ...] | None, *, has_changes: bool, registry: Registry) -> Choice:
    """PROTOCOL 5.3, 5.4: the wire version in which a body is read.

    Args:
        requested: the well-formed name the body carries, None if it carries none.
        offer: `supported_versions` of the body if it has the key; then nothing outside it may be served.
        has_changes: whether the body would write something.

    Raises:
        VersionRefused: with the code of PROTOCOL 5.3, the supported list and who is behind.
    """
    if requested is None:
        meant = registry.missing
        if meant is None or meant not in registry.accepted or (offer is not None and meant not in offer):
            raise _refused("version_required", None, registry, "a protocol_version", "none", offer)
        return Choice(served=meant, requested=None, source="default")
    if requested in registry.accepted:
        # The body is written in it, so nothing else can be served now.
        best = None if offer is None else select(offer, registry)
        return Choice(served=requested, requested=requested, source="exact", better=best not in (None, requested))
    if requested in registry.retired:
        raise _refused("version_retired", requested, registry, "a version that is still served", "a retired one", offer)
    fallback = registry.fallback if registry.fallback in registry.accepted else None
    if requested in registry.disabled:
        # The body is of a known shape, so it is never decoded as another one; a read can be answered in another.
        if fallback is not None and fallback in (offer or ()) and not has_changes:
            return Choice(served=fallback, requested=requested, source="offer", read_only=True)
        raise _refused(
            "version_disabled", requested, registry, "a version that is switched on", "a disabled one", offer
        )
    if offer is not None:
        served = select(offer, registry)
        if served is None:
            raise _refused("no_common_version", requested, registry, "an offer with a served version", "none", offer)
        source = "offer"
    elif fallback is None:
        raise _refused("unsupported_version", requested, registry, "a served version", "an unknown one")
    else:
        served, source = fallback, "fallback"
    # What was written for a version that is not known here may be a read of any shape, but a write of one shape only.
    foreign = served == registry.fallback
    return Choice(
        served=served,
        requested=requested,
        source=source,
        strict=foreign and has_changes,
        read_only=foreign and not has_changes,
    )


def side_of(offered: Iterable[str], accepted: Iterable[str]) -> str:
    """PROTOCOL 5.7: who is behind: ``server`` if every offered version is newer than every accepted one, ``client``
    if every one is older, else ``unknown``."""
    theirs = [_number(name) for name in offered]
    ours = [_number(name) for name in accepted]
    if not theirs or not ours or None in theirs or None in ours:
        return "unknown"
    there = [number for number in theirs if number is not None]
    here = [number for number in ours if number is not None]
    if min(there) > max(here):
        return "server"
    return "client" if max(there) < min(here) else "unknown"


def _number(name: str) -> tuple[int, int] | None:
    match = _NUMBERED.fullmatch(name)
    return None if match is None or name in GREASE else (int(match[1]), int(match[2] or 0))


def told_to(offer: Iterable[str] | None, registry: Registry) -> tuple[str, ...]:
    """What a peer is told that it could be served in: what is offered here, and of what is only accepted that which it
    offers itself, so that whoever is on the way elsewhere is not sent astray."""
    theirs = frozenset(offer or ()) - GREASE
    return tuple(name for name in registry.preference if name in registry.offered or name in theirs)


#: The refusals that have a name of their own; the others are plain `VersionRefused`.
ERRORS: Final[Mapping[str, type[VersionRefused]]] = {
    "unsupported_version": UnsupportedVersion,
    "no_common_version": NoCommonVersion,
    "version_disabled": VersionDisabled,
    "body_not_valid_for_version": BodyNotValidForVersion,
}


def _refused(
    code: str,
    requested: str | None,
    registry: Registry,
    expected: str,
    got: str,
    offer: tuple[str, ...] | None = None,
) -> VersionRefused:
    offered = [name for name in offer or () if name not in GREASE] or [name for name in (requested,) if name]
    return ERRORS.get(code, VersionRefused)(
        code=code,
        expected=expected,
        got=got,
        requested=requested,
        supported=told_to(offer, registry),
        side=side_of(offered, registry.accepted),
        retry="never" if code == "version_retired" else "renegotiate",
        registry_revision=registry.revision or None,
        docs=registry.docs,
    )


def check_name(value: object) -> str:
    """PROTOCOL 5.1: `value` if it is a version name, known or not.

    Raises:
        VersionRefused: ``malformed_version``; says type and length, never the value.
    """
    if isinstance(value, str) and NAME.fullmatch(value):
        return value
    got = f"a string of {len(value)} characters" if isinstance(value, str) else json_type(value)
    raise VersionRefused(
        code="malformed_version", expected="1 to 64 printable ASCII characters", got=got, retry="never"
    )


def json_type(value: object) -> str:
    """What JSON calls the type of a decoded value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), "something else")


def problem(error: RemoteProtocolError) -> dict[str, Any]:
    """PROTOCOL 2.6: a refusal as the dict of an ``application/problem+json`` body of at most 1 KiB.

    `detail` and `error` are what deployed clients look at; `code` is what a program should.
    """
    code = error.code
    of_version = isinstance(error, VersionRefused)
    told = {
        "type": f"urn:inbetweenies:problem:{code}",
        "title": TITLES.get(code, code.replace("_", " ").capitalize()),
        "status": error.status,
        "code": code,
        "detail": DEPLOYED_DETAIL if of_version else str(error),
        "expected": error.expected,
        "got": error.got,
        "pointer": error.pointer or None,
    }
    if isinstance(error, VersionRefused):
        told |= {
            "requested": error.requested,
            "served": None,
            "supported": [],
            "side": error.side,
            "retry": error.retry,
            "registry_revision": error.registry_revision,
            "docs": error.docs,
        }
    title = str(told["title"])
    told["error"] = {
        "code": "PROTOCOL_VERSION_MISMATCH" if of_version else code.upper(),
        "message": DEPLOYED_DETAIL if of_version else title,
    }
    if isinstance(error, VersionRefused):
        told["supported"] = _that_fit(error.supported, PROBLEM_BYTES_MAX - len(_encode(told)))
    return told


def _that_fit(names: tuple[str, ...], size: int) -> list[str]:
    """The best of `names` that fit into `size` bytes; each takes its length, two quotes and a comma."""
    told: list[str] = []
    for name in names:
        size -= len(name) + 3
        if size < 0:
            break
        told.append(name)
    return told
