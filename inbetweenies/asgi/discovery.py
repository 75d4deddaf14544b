"""What HTTP tells of wire versions: the discovery document, and the headers of every answer (PROTOCOL 5.10, 5.12).

For anybody who asks, without a token; the version in which somebody asks is never looked at. Who asks with a token is
told what its graph is offered (12.5); nothing else here tells of any graph.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from typing import Any, Final

import msgspec
from msgspec import Struct

from ..errors import LocalProtocolError
from ..model import EPOCH
from ..negotiation import NAME
from ..registry import Notice, Registry
from ..router import ProtocolFallback
from .http import Answer, Headers, encode

PATHS: Final = ("/api/version", "/versions", "/.well-known/inbetweenies")

_RELEASE_BYTES_MAX: Final = 64

#: A cache must not give a peer what another one was served in another version.
VARY: Final = (b"vary", b"Inbetweenies-Version, Inbetweenies-Accept-Versions")
#: What a page of another origin may read of an answer.
EXPOSED: Final = (
    b"access-control-expose-headers",
    b"Inbetweenies-Version, Inbetweenies-Supported-Versions, Inbetweenies-Registry-Revision, Deprecation, Sunset, Link",
)


class Releases(Struct, frozen=True, kw_only=True):
    """PROTOCOL 5.10: releases (not wire versions) that clients may want to know of; None where nothing is said."""

    server_version: str
    min_client_version: str | None = None
    latest_client_version: str | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            told = getattr(self, name)
            if told is not None and not (told.isascii() and told.isprintable() and 0 < len(told) <= _RELEASE_BYTES_MAX):
                raise LocalProtocolError(
                    f"{name}: expected 1 to {_RELEASE_BYTES_MAX} printable ASCII characters; got something else"
                )


# --- the document -------------------------------------------------------------------------------------------------


def document(router: ProtocolFallback, releases: Releases, graph: str | None = None) -> dict[str, Any]:
    """PROTOCOL 5.10: which wire versions are served, to one graph if one asks, and within which bounds."""
    registry = router.registry if graph is None else router.registry_for(graph)
    supported = registry.supported
    in_order = [name for name in registry.accepted if name in registry.offered]
    known = [*registry.preference, *sorted(registry.disabled), *sorted(registry.retired)]
    wires = [getattr(router.handlers[name], "wire", None) for name in registry.accepted]
    limits = router.limits
    return {
        "service": "inbetweenies",
        "server": {"name": "inbetweenies", "version": releases.server_version},
        **msgspec.structs.asdict(releases),
        "registry_revision": registry.revision,
        "default_version": registry.missing if registry.missing in registry.accepted else None,
        "preferred_version": supported[0] if supported else None,
        "min_version": in_order[-1] if in_order else None,
        "max_version": in_order[0] if in_order else None,
        "supported_versions": supported,
        "versions": [_told(name, registry) for name in known],
        "features": sorted({name for wire in wires for name in getattr(wire, "features", ())}),
        "experimental": {},
        "limits": {
            "max_body_bytes": limits.body_bytes_max,
            "max_changes": limits.changes_max,
            **msgspec.structs.asdict(limits),
        },
        "docs": registry.docs,
    }


def _told(name: str, registry: Registry) -> dict[str, Any]:
    told: dict[str, Any] = {"id": name, "status": registry.status(name)}
    notice = registry.notices.get(name)
    if notice is None:
        return told
    times = {"deprecated_at": notice.since, "sunset_at": notice.sunset}
    told |= {key: _time(at).isoformat().replace("+00:00", "Z") for key, at in times.items() if at is not None}
    words = {"successor": notice.successor, "docs": notice.link}
    return told | {key: word for key, word in words.items() if word is not None}


def answer(router: ProtocolFallback, releases: Releases, offered: bytes, graph: str | None = None) -> Answer:
    """The document, or word that it still is the one that the peer has: `offered` is its If-None-Match."""
    body = encode(document(router, releases, graph))
    tag = b'"%s"' % sha256(body).hexdigest()[:32].encode()
    # What one graph is offered is no other one's to be told by a cache.
    cached = b"max-age=60" if graph is None else b"private, max-age=0"
    headers: Headers = ((b"cache-control", cached), (b"etag", tag), (b"access-control-allow-origin", b"*"))
    if offered == b"*" or tag in (each.strip().removeprefix(b"W/") for each in offered.split(b",")):
        return Answer(304, b"", headers)
    return Answer(200, body, headers)


# --- headers ------------------------------------------------------------------------------------------------------


def registry_headers(registry: Registry | None) -> Headers:
    """What every answer says, whatever was asked. Without a registry, nothing is served just now."""
    supported = () if registry is None else registry.supported
    revision = "none" if registry is None else registry.revision
    return (
        VARY,
        EXPOSED,
        (b"inbetweenies-supported-versions", ", ".join(name for name in supported if _fits(name)).encode()),
        (b"inbetweenies-registry-revision", revision.encode()),
    )


def version_headers(registry: Registry | None, served: str | None, about: str | None) -> Headers:
    """What an answer says of its own wire version: `served`, or for a refusal the one it is `about`."""
    name = served if served is not None and _fits(served) else "none"
    headers: Headers = ((b"inbetweenies-version", name.encode()),)
    notice = None if registry is None else registry.notices.get(served or about or "")
    return headers if notice is None else headers + notice_headers(notice)


def _fits(name: str) -> bool:
    """Whether a version, which can be called nearly anything, can stand in a list in a header."""
    return NAME.fullmatch(name) is not None and "," not in name


def notice_headers(notice: Notice, *, successor: str = "urn:inbetweenies:version:{}") -> Headers:
    """PROTOCOL 5.12: RFC 9745 and RFC 8594. `successor` makes a URI of the successor's name."""
    headers: list[tuple[bytes, bytes]] = [(b"deprecation", b"@%d" % (notice.since // 1_000_000))]
    links = []
    if notice.link is not None:
        links.append(f'<{notice.link}>; rel="deprecation"')
    if notice.sunset is not None:
        headers.append((b"sunset", format_datetime(_time(notice.sunset), usegmt=True).encode()))
        if notice.link is not None:
            links.append(f'<{notice.link}>; rel="sunset"')
    if notice.successor is not None:
        links.append(f'<{successor.format(notice.successor)}>; rel="successor-version"')
    if links:
        headers.append((b"link", ", ".join(links).encode()))
    return tuple(headers)


def _time(micros: int) -> datetime:
    return (EPOCH + timedelta(microseconds=micros)).astimezone(UTC).replace(microsecond=0)
