"""What the server wants people to know, as this replica keeps it: each shown once, and acknowledged (PROTOCOL 14.5).

Words are this client's own, so that no server can put any into its mouth. That data is safe it says only with a proof,
and while what it holds itself is what the server says that it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from inbetweenies.model import SEQ_MAX, Noticed, Proof, parse_time
from inbetweenies.replica import State
from inbetweenies.rollout.notices import Verified, ack_of, confirm, message

from .reports import Notice
from .store import LocalStore
from .values import decoded

#: Notices that are remembered; more than a server has at a time, or what was shown would be shown again.
KEPT_MAX: Final = 100

PATH: Final = "/api/v1/sync/notices"

_NOTICES: Final = "notices"
_THERE: Final = "notices_there"
#: Where this replica stood when the server last said what it holds: the cursor, our digest, and the server's. It stays
#: while a version is spoken that has no digests.
_HELD: Final = "notices_held"


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


class _One(Struct, kw_only=True):
    id: Annotated[str, Meta(max_length=128)]
    type: Annotated[str, Meta(max_length=128)]
    timestamp: Annotated[str, Meta(max_length=128)]
    duration: Annotated[int, Meta(ge=0, le=SEQ_MAX)] | None = None
    proof: Proof | None = None


class _Told(Struct, kw_only=True):
    notices: Annotated[tuple[_One, ...], Meta(max_length=KEPT_MAX)]


_told = msgspec.json.Decoder(_Told)
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


def take_in(store: LocalStore, told: tuple[Noticed, ...], now: int, *, state: State, digest: str | None) -> None:
    """Keep what was told, in the transaction in which the rest of the answer is taken in; that led to `state`, and the
    server said that it holds `digest`. What is known already is only ever given a proof."""
    kept = {one.told.id: one for one in _all(store)}
    if not kept and not told and not there(store):
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
        held = f"{state.cursor} {state.digest:064x} {digest}"
        if digest is not None and held != store.setting(_HELD):
            store.keep(**{_HELD: held})


def known(store: LocalStore, there: bool) -> None:
    """Whether the server says that it has notices: then they are asked for also where the version that is spoken cannot
    say them."""
    if there and not store.setting(_THERE):
        store.keep(**{_THERE: "1"})


def there(store: LocalStore) -> bool:
    """Whether it has said so."""
    return store.setting(_THERE) is not None


def address(device: str, acks: Iterable[str]) -> str:
    """Where they are asked for, and acknowledged."""
    return f"{PATH}?{urlencode([('device_id', device), *(('ack', ack) for ack in acks)])}"


def told_in(body: bytes) -> tuple[Noticed, ...]:
    """What was answered there. Raises `BadAnswer`: something else."""
    return tuple(
        Noticed(id=one.id, kind=one.type, at=parse_time(one.timestamp) or 0, duration_s=one.duration, proof=one.proof)
        for one in decoded(_told, body).notices
    )


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
    state, held = store.state(), (store.setting(_HELD) or "").split(" ")
    if told.proof is None or state is None or state.restarting or state.lost or len(held) != 3:
        return None
    cursor, own, theirs = held
    if state.cursor is not None and f"{state.digest:064x}" != own:
        return None  # what is held here has changed since they were compared
    return confirm(told.proof, cursor=cursor, own=own, told=theirs)
