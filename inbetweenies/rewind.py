"""A log that was set back: how that is noticed, what both sides still share, and what each of them lacks.

The server's half of PROTOCOL 4.10 to 4.16, pure like `engine`, which calls `attend` before it does anything else; and
the few functions that both halves must agree on. A place in a log proves itself by its chain alone: equal chains mean
equal rows before it. The epoch is for people, and to tell a loss that is known already from a new one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from .errors import RemoteProtocolError
from .model import (
    Ack,
    Cursor,
    Device,
    Event,
    Head,
    Held,
    Kind,
    Located,
    Part,
    Plan,
    Pushes,
    Reads,
    Row,
    Span,
    SyncRequest,
    SyncResponse,
    Writes,
    edit_time,
)

FEATURE: Final = "witness"
START: Final = bytes(16)  # the chain before the first row

SHORT: Final = 8  # bytes that stand for a row hash: two of a million rows agree in them once in 18 million logs
LISTING_ROWS_MAX: Final = 20_000  # 210 KB; a longer listing goes on from its end
LINES_AT_ONCE: Final = 10_000  # held in memory while parts are summed up
PLACES_MAX: Final = 64  # half as many again as our client keeps
RANGES_MAX: Final = 1_000
WANT_MAX: Final = 1_000
PARTS_MAX: Final = 256
PUSH_NAME_MAX: Final = 128  # characters
WIDTH: Final = 256  # parts of a part: two hexadecimal digits
SMALL: Final = 64  # rows of a part that are told one by one; sums of its parts would be longer
NEAR: Final = 8  # the newest places that are kept, all of them
PLACES_KEPT: Final = 48  # of a log of a million rows

ANY: Final = ""  # stands for whatever push the server may know of

_PLAIN: Final = frozenset({"applied", "fast_forward", "dup", "superseded"})  # is stored as it was sent
PREFIX_MAX: Final = 12  # digits; whoever shares so many is told in sums no more
_PREFIX: Final = re.compile(rf"(?:[0-9a-f]{{2}}){{0,{PREFIX_MAX // 2}}}")


# --- what both sides agree on -------------------------------------------------------------------------------------


def short(hash_: bytes, current: bool = False) -> bytes:
    """PROTOCOL 4.13: eight bytes that stand for a row; their last bit says whether it is current."""
    return hash_[: SHORT - 1] + bytes((hash_[SHORT - 1] & 0xFE | current,))


def entries(listing: bytes) -> list[tuple[bytes, bool]]:
    """The rows of a listing: what stands for each, and whether it is current."""
    found = [listing[start : start + SHORT] for start in range(0, len(listing) - SHORT + 1, SHORT)]
    return [(short(entry), bool(entry[-1] & 1)) for entry in found]


def place_of(kind: str, id_: str) -> str:
    """PROTOCOL 4.15: where an id is among the parts of a graph, spread evenly whatever ids look like."""
    return blake2b(f"{kind}\0{id_}".encode(), digest_size=8).hexdigest()


class Tally:
    """Sums over the current rows of some parts of a graph (PROTOCOL 4.15)."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._sums: dict[str, list[int]] = {prefix: [0] * WIDTH for prefix in prefixes}
        self._rows: dict[str, list[tuple[int, bytes]]] = {prefix: [] for prefix in self._sums}
        self._lengths = sorted({len(prefix) for prefix in self._sums})

    def add(self, place: str, seq: int, hash_: bytes) -> None:
        """A current row."""
        for length in self._lengths:
            prefix = place[:length]
            sums = self._sums.get(prefix)
            if sums is not None:
                sums[int(place[length : length + 2], 16)] += int.from_bytes(hash_[:SHORT], "big")
                if len(self._rows[prefix]) <= SMALL:
                    self._rows[prefix].append((seq, hash_))

    def parts(self) -> tuple[Part, ...]:
        """What is told of each part."""
        return tuple(self._part(prefix) for prefix in self._sums)

    def sums(self, prefix: str) -> bytes:
        """The sums of the parts of a part, eight bytes each."""
        return b"".join((number % 2**64).to_bytes(SHORT, "big") for number in self._sums[prefix])

    def _part(self, prefix: str) -> Part:
        rows = self._rows[prefix]
        if len(rows) > SMALL:
            return Part(prefix=prefix, sums=self.sums(prefix))
        seqs = tuple(seq for seq, _ in rows)
        return Part(prefix=prefix, seqs=seqs, rows=b"".join(short(hash_) for _, hash_ in rows))


def spaced(places: Iterable[Cursor]) -> list[Cursor]:
    """PROTOCOL 10.8: the places to keep, oldest first: the last `NEAR`, then four for each doubling of the distance.

    Of those that are equally far away the oldest stays, or none would ever grow old.
    """
    listed = sorted({place.seq: place for place in places}.values(), key=lambda place: place.seq)
    if not listed:
        return []
    kept = {listed[0].seq: listed[0]}
    taken: set[tuple[int, int]] = set()
    for place in listed[:-NEAR]:
        distance = listed[-1].seq - place.seq
        class_ = (distance.bit_length(), distance >> max(distance.bit_length() - 3, 0))
        if class_ not in taken:
            kept[place.seq] = place
        taken.add(class_)
    kept.update({place.seq: place for place in listed[-NEAR:]})
    return list(kept.values())[-PLACES_KEPT:]


def next_push(before: str, incarnation: str, hashes: Iterable[bytes]) -> str:
    """PROTOCOL 4.16: what a device remembers of a push of rows with these hashes, made after the push `before`."""
    _, count, chain = before.split(":") if before else ("", "0", "")
    digest = blake2b(f"{incarnation}:{chain}".encode() + b"".join(hashes), digest_size=8).hexdigest()
    return f"{incarnation}:{int(count) + 1}:{digest}"


# --- noticing -----------------------------------------------------------------------------------------------------


def asks(request: SyncRequest) -> tuple[int, ...]:
    """The seqs of all places that a request names: whether they are of this log, their chains tell."""
    places = [request.cursor, request.witness, *(request.locate or ())]
    return tuple(dict.fromkeys(place.seq for place in places if place is not None))


def holds(held: Held, place: Cursor) -> bool:
    """PROTOCOL 4.10: whether a place is of this log."""
    return place.seq <= held.head.seq and held.chains.get(place.seq) == place.chain


def attend(request: SyncRequest, held: Held, now: int) -> Plan[SyncResponse | None]:
    """What a peer with a witness is told in place of an ordinary answer; None if it is to get an ordinary one.

    A place that is not of this log means that a log was lost, or that another one stands here now. Then nothing of the
    request is done: what it pushes may follow from rows that it has to offer first (PROTOCOL 4.11).
    """
    check(request)
    strays = [place for place in (request.witness, request.cursor) if place is not None and not holds(held, place)]
    head = held.head
    events: tuple[Event, ...] = ()
    if strays:
        events = (yield Reads(events=True)).events
        if _is_news(strays[0], head, events):
            fork = forked(head, at=now, seen=strays[0], by=request.device)
            head = replace(head, epoch=str(fork.told["epoch"]))
            yield Writes(head=head, events=(fork,))
    if request.locate is not None:
        return (yield from _locate(request.locate, replace(held, head=head), _discarded(strays, events)))
    if strays or (request.after is not None and request.after > head.seq):
        return SyncResponse(head=head, served=Cursor(head.epoch, 0, START), served_stamp=0, more=True, resync=True)
    if request.compare:
        return (yield from _compare(request.compare, head))
    return None


def check(request: SyncRequest) -> None:
    """Raises `RemoteProtocolError`: more than a peer may ask for at once, or a name that is too long to be kept."""
    pushes = request.pushes or Pushes(now="")
    bounds = (
        ("locate", len(request.locate or ()), PLACES_MAX),
        ("skip", len(request.skip), RANGES_MAX),
        ("want", len(request.want), WANT_MAX),
        ("compare", len(request.compare), PARTS_MAX),
        ("pushes/after", len(pushes.after), PLACES_MAX),
    )
    for name, count, most in bounds:
        if count > most:
            raise _malformed(f"at most {most} in {name}", f"{count}", f"/{name}")
    if len(pushes.now) > PUSH_NAME_MAX:
        raise _malformed(f"at most {PUSH_NAME_MAX} characters", f"{len(pushes.now)}", "/pushes/now")
    for index, prefix in enumerate(request.compare):
        if not _PREFIX.fullmatch(prefix):
            got = f"a string of {len(prefix)} characters"
            raise _malformed("pairs of lower-case hexadecimal digits, at most six", got, f"/compare/{index}")


def _malformed(expected: str, got: str, pointer: str) -> RemoteProtocolError:
    return RemoteProtocolError(code="malformed_body", expected=expected, got=got, pointer=pointer)


def _is_news(stray: Cursor, head: Head, events: Iterable[Event]) -> bool:
    """Whether this loss was not noticed before. Whoever comes later from a log that is known to be gone is none."""
    names = ("old", "witness_epoch", "epochs")
    known = {epoch for event in events for name in names for epoch in str(event.told.get(name, "")).split()}
    return stray.epoch == head.epoch or stray.epoch not in known


def forked(head: Head, *, at: int, seen: Cursor, by: str) -> Event:
    """PROTOCOL 4.11: the log that ends at `head` goes on under another epoch, since `seen` is not of it."""
    epoch = next_epoch(head, str(seen), at)
    told: dict[str, str | int] = {
        "epoch": epoch,
        "old": head.epoch,
        "seq": head.seq,
        "chain": head.chain.hex(),
        "witness": str(seen),
        "witness_epoch": seen.epoch,
        "by": by,
    }
    return Event(kind="fork", key=epoch, at=at, told=told)


def next_epoch(head: Head, why: str, now: int) -> str:
    """PROTOCOL 4.11: the epoch after `head`: made of all that tells this fork from others, so that nothing is drawn."""
    return blake2b(f"{head.cursor} {why} {now}".encode(), digest_size=8, person=b"ib-epoch").hexdigest()


def discarded(head: Head, *, at: int, epochs: Iterable[str]) -> Event:
    """PROTOCOL 4.12: what these epochs hold after `head` is to stay away: the log was set back on purpose."""
    gone = sorted({head.epoch, *epochs})
    epoch = next_epoch(head, f"discard {' '.join(gone)}", at)
    told: dict[str, str | int] = {
        "epoch": epoch,
        "old": head.epoch,
        "seq": head.seq,
        "chain": head.chain.hex(),
        "epochs": " ".join(gone),
    }
    return Event(kind="discard", key=epoch, at=at, told=told)


def discard(at: int, epochs: Iterable[str] = ()) -> Plan[Event]:
    """PROTOCOL 4.12: a log was set back on purpose, and nobody is to give back what came after its end."""
    held = yield Reads(events=True)
    # A store forgets the oldest events, so the newest says again what those before it say: 17 bytes an epoch.
    event = discarded(held.head, at=at, epochs=given_up(held.events).union(epochs))
    yield Writes(head=replace(held.head, epoch=str(event.told["epoch"])), events=(event,))
    return event


def given_up(events: Iterable[Event]) -> set[str]:
    """PROTOCOL 4.12: the epochs that are to stay away."""
    return {epoch for event in events if event.kind == "discard" for epoch in str(event.told["epochs"]).split()}


def _discarded(strays: Iterable[Cursor], events: Iterable[Event]) -> bool:
    gone = given_up(events)
    return any(stray.epoch in gone for stray in strays)


# --- what both logs have, and what follows ------------------------------------------------------------------------


def _locate(places: Iterable[Cursor], held: Held, discarded_: bool) -> Plan[SyncResponse]:
    """PROTOCOL 4.13: the newest of `places` that is of this log, and what this log holds after it."""
    head = held.head
    shared = max((place for place in places if holds(held, place)), key=lambda place: place.seq, default=None)
    if shared is not None and shared.seq == 0:
        shared = None
    after = 0 if shared is None else shared.seq
    lines = (yield Reads(lines=Span(after=after, upto=head.seq, rows=LISTING_ROWS_MAX))).lines
    end = lines[-1].seq if lines else after
    more = end < head.seq
    served = head.cursor
    if more:
        served = Cursor(head.epoch, end, (yield Reads(chains=(end,))).chains[end])
    return SyncResponse(
        head=head,
        served=served,
        served_stamp=0,
        more=more,
        located=Located(
            common=None if shared is None else replace(shared, epoch=head.epoch),
            listing=b"".join([short(line.hash, line.current) for line in lines]),
            discarded=discarded_,
        ),
    )


def _compare(prefixes: tuple[str, ...], head: Head) -> Plan[SyncResponse]:
    """PROTOCOL 4.15: what the graph holds in these parts of it."""
    tally = Tally(prefixes)
    after = 0
    while after < head.seq:
        lines = (yield Reads(lines=Span(after=after, upto=head.seq, rows=LINES_AT_ONCE))).lines
        after = lines[-1].seq
        for line in lines:
            if line.current:
                tally.add(place_of(line.kind, line.id), line.seq, line.hash)
    return SyncResponse(head=head, served=head.cursor, served_stamp=0, parts=tally.parts())


def is_plain(ack: Ack) -> bool:
    """Whether a row is stored as it was sent."""
    return ack.outcome in _PLAIN


def taken(
    request: SyncRequest, acks: Iterable[Ack], versions: Mapping[tuple[Kind, str, str], Row]
) -> dict[tuple[Kind, str, str], bytes]:
    """PROTOCOL 4.14: of the rows that were offered, those that are stored to the letter, if what is current of their
    ids is one of them as well. There can be many, and eight bytes of each say all that its ack does."""
    offered: set[tuple[Kind, str, str]] = set()
    for change in request.changes:
        if change.offered:
            offered.update(("edge", edge.id, edge.version) for edge in change.relationships)
            if change.entity is not None:
                offered.add(("entity", change.entity.id, change.entity.version))
    plain = {key: ack for ack in acks if is_plain(ack) and (key := (ack.kind, ack.id, ack.version)) in offered}
    return {
        key: short(versions[key].hash, ack.head == ack.version)
        for key, ack in plain.items()
        if (ack.kind, ack.id, ack.head) in plain
    }


def skipped(seq: int, ranges: Iterable[tuple[int, int]]) -> bool:
    """Whether a peer said that it needs not be told the row at `seq`."""
    return any(first <= seq <= last for first, last in ranges)


# --- rows that are offered again ----------------------------------------------------------------------------------


class Lost(Struct, frozen=True, kw_only=True):
    """PROTOCOL 4.14: the place after which rows of a log were lost, and when that was; zeros if nothing is known."""

    seq: int = 0
    stamp: int = 0

    def arrival(self, version: str, now: int, *, alone: bool) -> tuple[int, bool]:
        """The edit time that counts for a row that is offered again, and whether its version named it.

        The row is no newer than the log that it was in. Without a time of its own, or with one from the future, it
        counts as made where that log parted from this one; `alone` and without such a place, as made now.
        """
        edit = edit_time(version)
        if edit is not None and edit <= now:
            return edit, True
        return (now if alone and not self.stamp else self.stamp), edit is not None

    def untouched(self, current: Row) -> bool:
        """Whether `current` was there before: then what took its place was decided in the log that is gone."""
        return current.seq <= self.seq


def lost_after(request: SyncRequest, held: Held) -> Lost:
    """What is known of the loss that rows of this request are offered for. Says nothing unless the place is ours."""
    common = request.common
    row = None if common is None else held.seqs.get(common.seq)
    if common is None or row is None or row.chain != common.chain:
        return Lost()
    return Lost(seq=row.seq, stamp=row.stamp)


def offers(request: SyncRequest, head: Head, rows: int, events: Iterable[Event], now: int) -> Event:
    """PROTOCOL 4.14: `rows` more came back from this device."""
    key = f"{head.epoch} {request.device}"
    before = next((event for event in events if (event.kind, event.key) == ("offer", key)), None)
    already = before.told["rows"] if before is not None else 0
    told: dict[str, str | int] = {"epoch": head.epoch, "by": request.device, "rows": rows + int(already)}
    return Event(kind="offer", key=key, at=now, told=told)


# --- devices ------------------------------------------------------------------------------------------------------


def counted(request: SyncRequest, known: Device, now: int) -> tuple[Device | None, tuple[Event, ...]]:
    """PROTOCOL 4.16: what is to be remembered of this push of a device that counts its own; or, if another copy of the
    device has pushed since this one did, the event to tell people of that."""
    pushes = request.pushes
    if pushes is None or not request.changes:
        return None, ()
    if _is_forked(pushes, known.pushed):
        told: dict[str, str | int] = {"device": request.device, "known": known.pushed, "got": pushes.now}
        return None, (Event(kind="device_forked", key=request.device, at=now, told=told),)
    if _number(known.pushed, pushes.now) > _number(pushes.now, pushes.now):
        return None, ()  # it comes late, from a time when its device took any push for possible
    return replace(known, pushed=pushes.now), ()


def _is_forked(pushes: Pushes, known: str) -> bool:
    """A device that has begun anew, and one of which nothing is known, is none; nor is the same message again, nor one
    that comes to a server that was set back and may know of any push before."""
    if not known or known.partition(":")[0] != pushes.now.partition(":")[0]:
        return False
    return known != pushes.now and known not in pushes.after and ANY not in pushes.after


def _number(name: str, of: str) -> int:
    """The number that a name of a push says, if it is of the same incarnation as `of`."""
    incarnation, _, rest = name.partition(":")
    digits = rest.partition(":")[0]
    return int(digits) if incarnation == of.partition(":")[0] and digits.isdecimal() else 0
