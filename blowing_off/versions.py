"""Which wire versions this client speaks, and what becomes of a sync when a server does not: `Talk`.

What each answer means is decided by `inbetweenies.offers`, purely; here it is asked with what a transport raises and a
server says, and what it decides is remembered. Nothing but its closed set of signals ever changes the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec

from inbetweenies.errors import RemoteProtocolError, VersionDisabled
from inbetweenies.offers import (
    Course,
    Hint,
    Served,
    Turned,
    Unversioned,
    VersionPolicy,
    begin,
    error_of,
    hint_of,
    signal_of,
    step,
)
from inbetweenies.wire import load

from .store import LocalStore
from .transport import Refused

_HINT: Final = "hint"
#: What a person can do, by who is behind.
_ADVICE: Final = {
    "server": "The server must be updated.",
    "client": "This client must be updated.",
    "unknown": "Ask whoever runs the server.",
    "off": "It is switched off there for now; sync again later.",
}
_hint = msgspec.json.Decoder(Hint)
_encode = msgspec.json.Encoder().encode


def spoken() -> dict[str, Any]:
    """The wire versions that this client speaks, newest first: those it can ask in rows, then the one of records."""
    wires = load()
    rows = {name: wire for name, wire in wires.items() if of_rows(wire) and hasattr(wire, "told")}
    return rows | {name: wire for name, wire in wires.items() if not of_rows(wire) and wire.rank == 1}


def of_rows(wire: Any) -> bool:
    """Whether a wire version says rows, as this client holds them; the other one says records."""
    return hasattr(wire, "ask")


def key_of(origin: str, credential: str | None) -> str:
    """Names a server and the credential for it, without telling either."""
    return blake2b(f"{origin}\0{credential or ''}".encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class Talk:
    """The course of one sync with one server, as far as it is about the wire version.

    Args:
        key: see `key_of`; what is remembered of one server says nothing about another.
        revision: what the server said last of its registry, if it did.

    Raises:
        LocalProtocolError: `policy` leaves nothing to offer.
    """

    def __init__(
        self, store: LocalStore, policy: VersionPolicy, *, key: str, now: int, revision: str | None = None
    ) -> None:
        self._store = store
        self._key = key
        self._wires: Mapping[str, Any] = spoken()
        self.offer = policy.offer(tuple(self._wires))
        self._hinted = _kept(store)
        self.course: Course = begin(self.offer, self._hinted, key=key, now=now, revision=revision)

    @property
    def wire(self) -> Any:
        """The version of the next message."""
        return self._wires[self.course.named]

    @property
    def in_rows(self) -> bool:
        return of_rows(self.wire)

    def served(self, version: object, negotiation: object = None) -> bool:
        """Take note of a success in `version`. Whether it counts; else the same is to be sent again in `wire`.

        Raises:
            ServedVersionMismatch: nothing of the answer may be believed (law 10).
        """
        supported = negotiation.get("supported") if isinstance(negotiation, dict) else ()
        names = supported if isinstance(supported, list) else ()
        signal = Served(
            version=version if isinstance(version, str) else "",
            supported=tuple(name for name in names if isinstance(name, str)),
        )
        return self._step(signal, None) == "use"

    def refused(self, error: Refused) -> bool:
        """Take note of a refusal. Whether the same is to be sent again in `wire`; it is not if `error` is about
        something else.

        Raises:
            VersionRefused: it is about the version, and there is no other one to try.
        """
        signal = signal_of(status=error.status, code=error.code, detail=error.detail, supported=error.supported)
        return self._step(signal, error) == "again"

    def unversioned(self) -> bool:
        """Take note of a success that is no answer of `wire` at all. Whether to ask as older servers are asked."""
        likely = next((name for name, wire in self._wires.items() if not of_rows(wire)), self.course.named)
        return self._step(Unversioned(likely=likely), None) == "again"

    def _step(self, signal: Any, error: Exception | None) -> str:
        asked = self.course.named
        self.course, verdict = step(self.course, signal)
        if verdict == "stop" and isinstance(signal, (Served, Turned)):
            told = error_of(self.course, signal, asked)
            advice = _ADVICE["off" if isinstance(told, VersionDisabled) else told.side]
            told.args = (f"{told}. {advice} What waits here is kept.",)
            raise told from error
        return verdict

    def remember(self, *, now: int, revision: str | None) -> None:
        """The sync ended well: begin the next one with what served, as long as that holds."""
        hint = hint_of(self.course, key=self._key, now=now, revision=revision)
        before = self._hinted
        same = hint is not None and before is not None and (hint.key, hint.served, hint.revision) == (
            before.key,
            before.served,
            before.revision,
        )  # fmt: skip
        # An old hint must run out, or a server that was updated without a word would never be asked for more.
        if hint != before and not (same and before is not None and now < before.expires):
            self._store.keep(**{_HINT: None if hint is None else _encode(hint).decode()})

    def forget(self) -> None:
        """The sync ended badly: the next one begins with the best version."""
        if self._hinted is not None:
            self._store.keep(**{_HINT: None})


def _kept(store: LocalStore) -> Hint | None:
    try:
        kept = store.setting(_HINT)
        return None if kept is None else _hint.decode(kept)
    except (msgspec.MsgspecError, RemoteProtocolError):
        return None
