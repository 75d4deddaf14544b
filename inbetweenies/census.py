"""Who speaks what: counted per wire version and release, and who would break if a version were switched off. Pure.

Bounded however many names peers make up (PROTOCOL 5.15): a version is one that the registry knows or one of `WORDS`,
and of each only the first `RELEASES_MAX` releases are told apart. Nothing here identifies a person or a device.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from .errors import RemoteProtocolError, StoreCorrupt, VersionRefused
from .limits import checked_decode
from .model import Document
from .negotiation import GREASE
from .registry import Registry

#: The name under which a store keeps the census.
DOCUMENT: Final = "census"
RELEASES_MAX: Final = 50  # of one version; a fleet with more is told by the fifty it had first
KEPT_US: Final = 400 * 24 * 3600 * 1_000_000  # a device that was not seen for longer is not coming back
OTHER: Final = "other"  # the release under which the rest is counted
UNKNOWN: Final = "unknown"  # the release of a peer that does not say what it is

#: What a request is counted under that names no version of the registry.
WORDS: Final = frozenset("missing null unknown grease malformed disabled retired conflict".split())

# What Kafka allows in the name and version of a client (KIP-511); the length is ours.
_WORD: Final = r"[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,62}[A-Za-z0-9])?"
_NAME: Final = re.compile(_WORD)
_AGENT: Final = re.compile(rf"({_WORD})(?:/({_WORD}))?(?=[ (;]|\Z)")


class Sighting(Struct, frozen=True, kw_only=True):
    """One request, as the census sees it.

    Attributes:
        version: what it asked for: a version of the registry, or one of `WORDS`.
        release: the client, as ``name/version``.
        wrote: whether it carried changes.
        served: the version it was served in; None if it was refused.
        offers: the versions of the registry that it could have been served in as well.
    """

    version: str
    release: str
    wrote: bool = False
    served: str | None = None
    offers: tuple[str, ...] = ()


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was seen of one release asking for one version.

    Attributes:
        last: when it was seen last, in microseconds since 1970.
        alone: when it was last seen served without having offered anything else.
        reads, writes, refused: how many requests; a refused one is no read and no write.
        served, offers: of the last request that was served.
    """

    version: str
    release: str
    last: int
    alone: int = 0
    reads: int = 0
    writes: int = 0
    refused: int = 0
    served: str | None = None
    offers: tuple[str, ...] = ()


class Tally:
    """Counts sightings; `take` hands over what was counted since the last time."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries: dict[tuple[str, str], Entry] = {}
        self._releases: dict[str, int] = {}
        for entry in entries:
            self.merge(entry)

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def add(self, sighting: Sighting, now: int) -> None:
        """Count one request."""
        served = sighting.served is not None
        self.merge(
            Entry(
                version=sighting.version,
                release=sighting.release,
                last=now,
                alone=now if served and not set(sighting.offers) - {sighting.served} else 0,
                reads=int(served and not sighting.wrote),
                writes=int(served and sighting.wrote),
                refused=int(not served),
                served=sighting.served,
                offers=sighting.offers,
            )
        )

    def merge(self, entry: Entry) -> None:
        """Count what was counted elsewhere."""
        key = (entry.version, entry.release)
        if key not in self._entries and self._releases.get(entry.version, 0) >= RELEASES_MAX:
            entry = replace(entry, release=OTHER)
            key = (entry.version, OTHER)
        before = self._entries.get(key)
        if before is None:
            self._releases[entry.version] = self._releases.get(entry.version, 0) + 1
            self._entries[key] = entry
            return
        older, newer = sorted((before, entry), key=lambda one: one.last)
        latest = newer if newer.served is not None else older
        self._entries[key] = Entry(
            version=entry.version,
            release=entry.release,
            last=newer.last,
            alone=max(before.alone, entry.alone),
            reads=before.reads + entry.reads,
            writes=before.writes + entry.writes,
            refused=before.refused + entry.refused,
            served=latest.served,
            offers=latest.offers,
        )

    def take(self) -> Tally:
        """What was counted since the last time; from here on counting begins anew."""
        taken = Tally()
        taken._entries, self._entries = self._entries, {}
        taken._releases, self._releases = self._releases, {}
        return taken


_entries = msgspec.json.Decoder(tuple[Entry, ...])
_encode = msgspec.json.Encoder().encode


def entries_in(document: Document) -> tuple[Entry, ...]:
    """The census that a document of the store holds; nothing, if it was never written.

    Raises:
        StoreCorrupt: it holds something else.
    """
    if not document.body:
        return ()
    try:
        return checked_decode(_entries, document.body)
    except RemoteProtocolError as error:
        raise StoreCorrupt("expected the census in the store; got something else") from error


def document_of(kept: Iterable[Entry], counted: Iterable[Entry], *, now: int) -> bytes:
    """The body of the document after `counted` was added to what is `kept`, without what is long gone."""
    tally = Tally(entry for entry in kept if entry.last > now - KEPT_US)
    for entry in counted:
        tally.merge(entry)
    return _encode(sorted(tally, key=lambda entry: (entry.version, entry.release)))


# --- what a request is counted under ------------------------------------------------------------------------------


def release_of(client: object, agent: str | None) -> str:
    """What a peer says that it is: `client` of the envelope, else the first product of its User-Agent."""
    if isinstance(client, dict):
        words = (client.get("name"), client.get("version"))
        if all(isinstance(word, str) and _NAME.fullmatch(word) for word in words):
            return f"{words[0]}/{words[1]}"
    return UNKNOWN if agent is None else _release_of_agent(agent[:256])


@lru_cache(maxsize=1024)
def _release_of_agent(agent: str) -> str:
    found = _AGENT.match(agent)
    return UNKNOWN if found is None else f"{found[1]}/{found[2]}" if found[2] else found[1]


def served_under(requested: str | None, served: str, registry: Registry) -> str:
    """What a request that was served is counted under."""
    if requested == served:
        return served
    return "missing" if requested is None else _not_served(requested, registry)


def refused_under(requested: str | None, error: RemoteProtocolError, registry: Registry) -> str:
    """What a request that was refused is counted under."""
    if isinstance(error, VersionRefused):
        if error.code == "malformed_version":
            return "null" if error.got == "null" else "malformed"
        if error.code == "version_conflict":
            return "conflict"
        return "missing" if requested is None else _not_served(requested, registry)
    # The version was fine, or nobody got as far as to look at it.
    return requested if requested in registry.accepted else "malformed"


def _not_served(requested: str, registry: Registry) -> str:
    for word, names in (("disabled", registry.disabled), ("retired", registry.retired), ("grease", GREASE)):
        if requested in names:
            return word
    return "unknown"


# --- who would break ----------------------------------------------------------------------------------------------


def would_break(entries: Iterable[Entry], name: str, registry: Registry, *, since: int) -> tuple[Entry, ...]:
    """Who was seen at or after `since`, served in version `name`, and offered nothing else that would be served."""
    left = set(registry.accepted) - {name}
    return tuple(
        entry
        for entry in entries
        if entry.served == name and (entry.alone >= since or (entry.last >= since and not left & set(entry.offers)))
    )
