"""Wire versions: one file or folder each, found here and through the entry-point group ``inbetweenies.wire``.

Nobody outside this package names one. A module that holds a wire version exposes it as ``WIRE``. To add one, write
the file; nothing else changes. To remove one, delete the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..errors import LocalProtocolError
from ..limits import Limits
from ..model import Context, Plan, SyncRequest, SyncResponse, Telling

ENTRY_POINTS = "inbetweenies.wire"

_encode = msgspec.json.Encoder().encode


class Negotiation(Struct, frozen=True, kw_only=True):
    """PROTOCOL 5.6: told in an answer whose wire version is not simply the one asked for."""

    requested: str | None
    served: str
    source: str
    reason: str
    supported: tuple[str, ...]


class Follow(Struct, frozen=True, kw_only=True):
    """PROTOCOL 5.18: how a peer that stays connected goes on from an answer.

    A wire version that can do so has a method ``follow(body, answer) -> Follow | None``; None if `answer` leaves it
    open what the peer would ask next.

    Attributes:
        request: the request for what comes after the answer, in the peer's own words.
        after: the cursor at which the answer ended, None for a peer without cursors.
        news: whether the answer tells anything that changed.
        more: whether there is more to tell already.
    """

    request: bytes
    after: str | None
    news: bool
    more: bool = False


class WireVersion(Protocol):
    """What the router and the exchange need of one wire version: bytes to the model, and back.

    One that also says what it shows of a whole graph (`inbetweenies.rollout.shadow.Shadowed`) can be held to it.

    Attributes:
        name: `protocol_version` on the wire.
        rank: place in order of age, newer is greater; only ever used to say who is behind.
        carries: the model fields (``entity.name``, ``relationship``, ...) that survive this version; what is not
            named is a declared loss (PROTOCOL 5.8).
    """

    name: str
    rank: int
    carries: frozenset[str]

    def decode(self, body: bytes, *, path: str = "", strict: bool = False, limits: Limits) -> Any:
        """A message from bytes that passed the gate. `path` is the HTTP path, for versions that dispatch on it.

        `strict` forbids fields that the version does not know, for requests that fell back to it.

        Raises:
            RemoteProtocolError: the bytes are no legal message of this version.
        """

    def writes(self, message: Any) -> bool:
        """Whether serving `message` may change the store."""

    def up(self, message: Any, context: Context, limits: Limits) -> Plan[SyncRequest]:
        """The version-free request that `message` means; may read what it is a view of."""

    def down(
        self,
        message: Any,
        response: SyncResponse,
        context: Context,
        limits: Limits,
        negotiation: Negotiation | UnsetType = UNSET,
    ) -> Telling:
        """The answer to `message` in this version.

        A plan that yields bytes tells its answer in pieces: what it returns is the last one. What it reads after the
        first piece it reads as of `response.head`, and it may no longer write. Nothing is told of a push before it has
        committed.
        """


class Changes:
    """The bytes of an answer whose ``changes`` are told a few at a time.

    Args:
        answer: the whole of it, encoded, with ``"changes":[]`` where they go.
    """

    def __init__(self, answer: bytes) -> None:
        beginning, self._end = answer.split(b'"changes":[]', 1)
        self._waiting = [beginning, b'"changes":[']
        self._comma = b""

    def add(self, changes: Sequence[Any]) -> None:
        """Tell some more of them."""
        if changes:
            self._waiting += (self._comma, _encode(changes)[1:-1])
            self._comma = b","

    @property
    def size(self) -> int:
        """How many bytes are waiting to be taken."""
        return sum(map(len, self._waiting))

    def take(self) -> bytes:
        """What was added since this was taken last."""
        taken = b"".join(self._waiting)
        self._waiting = []
        return taken

    def end(self) -> bytes:
        """The same, and what comes after all changes."""
        self._waiting += (b"]", self._end)
        return self.take()


def load() -> dict[str, WireVersion]:
    """Every wire version there is, by name, newest first: ours, then those of installed packages.

    Raises:
        LocalProtocolError: two of them claim the same name, or a module has no ``WIRE``.
    """
    # Discovery only: imported here so that `import inbetweenies` stays free of what these load.
    import importlib
    import pkgutil
    from importlib.metadata import entry_points

    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [_wire_of(importlib.import_module(f"{__name__}.{name}"), name) for name in names]
    found += [_wire_of(entry.load(), entry.name) for entry in entry_points(group=ENTRY_POINTS)]
    versions: dict[str, WireVersion] = {}
    for wire in sorted(found, key=lambda wire: -wire.rank):
        if wire.name in versions:
            raise LocalProtocolError(f"two wire versions are called {wire.name}: uninstall one of them")
        versions[wire.name] = wire
    return versions


def _wire_of(found: Any, name: str) -> WireVersion:
    wire = getattr(found, "WIRE", found)
    if not isinstance(getattr(wire, "name", None), str) or not callable(getattr(wire, "up", None)):
        raise LocalProtocolError(f"wire version module {name}: expected a WireVersion called WIRE")
    result: WireVersion = wire
    return result
