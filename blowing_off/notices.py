"""What the server wants people to know, as this replica keeps it: each shown once, and acknowledged (PROTOCOL 13.5).

Words are this client's own, so that no server can put any into its mouth. That data is safe it says only with a proof,
and while what it holds itself is what the server says that it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from inbetweenies.model import Noticed
from inbetweenies.rollout.notices import Verified, ack_of, confirm, message

from .reports import Notice
from .store import LocalStore

#: Notices that are remembered; more than a server has at a time, or what was shown would be shown again.
KEPT_MAX: Final = 100

_NOTICES: Final = "notices"
_DIGEST: Final = "notices_digest"  # what the server said last that it holds


class Kept(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One notice: as it was told last, when this replica first heard of it, how it was shown, and what of it the server
    knows to be acknowledged."""

    told: Noticed
    heard: int
    shown: Literal["", "plain", "safe"] = ""
    acked: str = ""

    @property
    def ack(self) -> str:
        """What acknowledges it."""
        return ack_of(self.told.id, proven=self.told.proof is not None)


_kept = msgspec.json.Decoder(tuple[Kept, ...])
_encode = msgspec.json.Encoder().encode


def _all(store: LocalStore) -> tuple[Kept, ...]:
    text = store.setting(_NOTICES)
    if text is None:
        return ()
    try:
        return _kept.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return ()  # then they are told again; nothing else hangs on them


def _put(store: LocalStore, kept: Iterable[Kept]) -> None:
    store.keep(**{_NOTICES: _encode(tuple(kept)[-KEPT_MAX:]).decode()})


def take_in(store: LocalStore, told: tuple[Noticed, ...], digest: str | None, now: int) -> None:
    """Keep what was told, in the transaction in which the rest of the answer is taken in. What is known already is only
    ever given a proof."""
    kept = {one.told.id: one for one in _all(store)}
    if not kept and not told:
        return
    for notice in told:
        before = kept.get(notice.id)
        if before is None:
            kept[notice.id] = Kept(told=notice, heard=now)
        elif notice.proof is not None:
            kept[notice.id] = replace(before, told=notice)
    with store.transaction():
        if told:
            _put(store, kept.values())
        if digest is not None:
            store.keep(**{_DIGEST: digest})


def owed(store: LocalStore) -> tuple[str, ...]:
    """What the next message acknowledges."""
    return tuple(one.ack for one in _all(store) if one.acked != one.ack)


def acknowledged(store: LocalStore, acks: Iterable[str]) -> None:
    """The server has heard these."""
    heard = frozenset(acks)
    if heard:
        with store.transaction():
            _put(store, [replace(one, acked=one.ack) if one.ack in heard else one for one in _all(store)])


def shown(store: LocalStore) -> tuple[Notice, ...]:
    """What nobody was shown yet, which counts as shown from here on: once when it is heard of, and once more when it
    can be said that data is safe."""
    if all(one.shown == "safe" or (one.shown and one.told.proof is None) for one in _all(store)):
        return ()  # without a write
    found = []
    with store.transaction():
        kept = list(_all(store))
        for place, one in enumerate(kept):
            notice = _notice(store, one)
            after: Literal["plain", "safe"] = "safe" if notice.safe else "plain"
            if not one.shown or (one.shown, after) == ("plain", "safe"):
                found.append(notice)
                kept[place] = replace(one, shown=after)
        if found:
            _put(store, kept)
    return tuple(found)


def standing(store: LocalStore) -> tuple[Notice, ...]:
    """All that is remembered, the newest first, in the words that are true now."""
    return tuple([_notice(store, one) for one in reversed(_all(store))])


def _notice(store: LocalStore, kept: Kept) -> Notice:
    told = kept.told
    verified = _verified(store, told)
    title, text, severity = message(told.kind, duration_s=told.duration_s, verified=verified)
    return Notice(
        id=told.id,
        kind=told.kind,
        title=title,
        message=text,
        severity=severity,
        at=told.at or kept.heard,
        duration_s=told.duration_s,
        proof=None if verified is None else verified.proof,
        new=not kept.shown,
    )


def _verified(store: LocalStore, told: Noticed) -> Verified | None:
    state = store.state()
    if told.proof is None or state is None or state.restarting or state.lost:
        return None
    return confirm(told.proof, cursor=state.cursor, own=f"{state.digest:064x}", told=store.setting(_DIGEST))
