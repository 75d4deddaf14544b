"""What people are told of a rollout: the outbox, whom a notice concerns, and when it may say that data is safe
(PROTOCOL 14).

Read `safe`: it is the one function that says so, it takes a `Verified`, and there is no other way to one than `verify`
and `confirm`, which compare a proof with a log, or with what a replica holds. A notice is kept as facts, never as text,
so there is no text that could say so either. What goes wrong with notices keeps nobody from syncing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final, Literal, NoReturn, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ..errors import LocalProtocolError, StoreCorrupt
from ..model import Cursor, Document, Event, Head, Plan, Proof, Reads, Writes, format_time, parse_cursor
from .canary import bucket
from .integrity import Audit
from .kept import check_name, read, written
from .states import WHOLE, Rollout

#: The name under which a store keeps the `Outbox`.
DOCUMENT: Final = "notices"
#: PROTOCOL 14.2: what a peer names among its features to be told.
FEATURE: Final = "notices"

DAY_US: Final = 24 * 3600 * 1_000_000
#: For so long a rollback is told to who was away: a summer holiday.
KEPT_US: Final = 45 * DAY_US
#: Of how many notices an outbox consists: with more of them at once nobody reads any.
NOTICES_MAX: Final = 32
#: Devices of one graph whose acknowledgements are remembered; who is forgotten is told once more, and shows nothing.
DEVICES_MAX: Final = 512
GRAPHS_MAX: Final = 1_000  # that one notice names: people list these by hand
DURATION_S_MAX: Final = 30 * 24 * 3600  # what takes longer is no maintenance

Kind: TypeAlias = Literal["maintenance", "rollback"]
Severity: TypeAlias = Literal["info", "warning"]

_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PROVEN: Final = ".proof"


# --- what is proven -----------------------------------------------------------------------------------------------


class Verified:
    """A proof that was compared, and agreed. Only `verify` and `confirm` make one.

    Raises:
        TypeError: somebody else tries to.
    """

    __slots__ = ("_proof",)
    _proof: Proof

    def __init__(self, proof: Proof, *, made: object = None) -> None:
        if made is not _COMPARED:
            raise TypeError("expected a proof to be verified by `verify` or `confirm`; got one that was not compared")
        object.__setattr__(self, "_proof", proof)

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("expected nothing else to count as verified; got a class that would")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError("expected what is verified to stay as it was; got another value for it")

    def __reduce__(self) -> NoReturn:
        raise TypeError("expected a proof to be verified where it is used; got a copy that was verified elsewhere")

    @property
    def proof(self) -> Proof:
        return self._proof


_COMPARED: Final = object()


def prove(graph: str, before: Cursor, audit: Audit, head: Head) -> Proof | None:
    """PROTOCOL 14.4: what an audit that has read all of a log up to `head` proves; None if it found anything, or if the
    log is not the one that ended at `before`, or is shorter. That the row there is still the same is for `verify`."""
    if audit.report(head).count or audit.seq != head.seq or before.epoch != head.epoch or before.seq > head.seq:
        return None
    return Proof(graph=graph, before=str(before), at=str(head.cursor), digest=f"{audit.digest:064x}")


def places_of(proof: Proof) -> tuple[int, ...]:
    """The seqs whose chain `verify` has to see."""
    places = (parse_cursor(proof.before), parse_cursor(proof.at))
    return tuple(sorted({place.seq for place in places if place is not None}))


def verify(proof: Proof, *, graph: str, head: Head, chains: Mapping[int, bytes]) -> Verified | None:
    """PROTOCOL 14.4: the proof, if the log of `graph` that ends at `head` is the one that it is about: both of its
    places are in it, and what is current there adds up to its digest, as far as the log still says."""
    before, at = parse_cursor(proof.before), parse_cursor(proof.at)
    if before is None or at is None or proof.graph != graph or _DIGEST.fullmatch(proof.digest) is None:
        return None
    if not before.epoch == at.epoch == head.epoch or not before.seq <= at.seq <= head.seq:
        return None
    if any(chains.get(place.seq) != place.chain for place in (before, at)):
        return None
    if at.seq == head.seq and (at.chain, proof.digest) != (head.chain, head.digest_hex):
        return None
    return Verified(proof, made=_COMPARED)


def confirm(proof: Proof, *, cursor: str | None, own: str, told: str | None) -> Verified | None:
    """PROTOCOL 14.5: the proof, if a replica that stands at `cursor` of that log, or has come further, holds the same
    as the server: its `own` digest is the one that it was `told`, which at the place of the proof is that of the
    proof."""
    before, at, here = parse_cursor(proof.before), parse_cursor(proof.at), parse_cursor(cursor or "")
    if before is None or at is None or here is None or told != own or _DIGEST.fullmatch(proof.digest) is None:
        return None
    if not before.epoch == at.epoch == here.epoch or not before.seq <= at.seq <= here.seq:
        return None
    if at.seq == here.seq and (at.chain, proof.digest) != (here.chain, own):
        return None
    return Verified(proof, made=_COMPARED)


# --- what is said -------------------------------------------------------------------------------------------------


def safe(verified: Verified) -> str:
    """That the data of a graph is safe. Raises `TypeError`: nothing was verified."""
    if type(verified) is not Verified:
        raise TypeError(f"expected a proof that was verified; got {type(verified).__name__}")
    place = verified.proof.at.split(":")[1]
    return f"Your data is safe: all of it was read up to row {place} and is what was acknowledged."


CHECKING: Final = "We are checking your data; what waits on your devices stays there until the server has named it."


def message(kind: str, *, duration_s: int | None = None, verified: Verified | None = None) -> tuple[str, str, Severity]:
    """Title, message and severity of a notice. Of a kind that this release does not know it says only that."""
    if kind == "maintenance":
        away = "for a while" if duration_s is None else f"for about {lasting(duration_s)}"
        text = f"The server will be away {away}. Go on as always: what you change waits here and is sent afterwards."
        return "Scheduled Maintenance", text, "info"
    if kind == "rollback":
        rest, severity = (CHECKING, "warning") if verified is None else (safe(verified), "info")
        return "Service Update", f"An update of the service was taken back. {rest}", severity  # type: ignore[return-value]
    return "Notice", "The server tells something that this release does not know; a newer one may.", "info"


def lasting(seconds: int) -> str:
    """A time in words, rounded up: nobody minds that it was shorter."""
    for name, unit in (("day", 24 * 3600), ("hour", 3600), ("minute", 60)):
        if seconds > 2 * unit or (seconds >= unit and seconds % unit == 0):
            count = -(-seconds // unit)
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{seconds} second{'s' if seconds != 1 else ''}"


# --- notices ------------------------------------------------------------------------------------------------------


class Reach(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Whom a rollout had reached when it was taken back (PROTOCOL 12.5)."""

    subject: str
    serial: int
    share: int
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_name(self.subject, "a subject")
        if self.serial < 1 or not 0 < self.share <= WHOLE:
            raise LocalProtocolError(f"expected a serial from 1 and a share of 1 to {WHOLE}; got others")

    def has(self, graph: str) -> bool:
        """Whether `graph` was given what was rolled out."""
        if graph in self.deny:
            return False
        return graph in self.allow or bucket(self.subject, graph, salt=str(self.serial)) < self.share


def reach_of(rollout: Rollout) -> Reach | None:
    """Whom a rollout that was rolled back had reached; None of any other, and where that was nobody.

    How far a ramp had come is told by its moves. If these are too many to be all remembered, it is taken to have come
    to its last step: better one told too many.
    """
    if rollout.state != "rolled_back":
        return None
    steps = [0, *rollout.steps]
    step = 0 if rollout.log and rollout.log[0].event == "start" else len(steps) - 1
    for move in rollout.log:
        if move.state in ("full", "burn_in"):
            steps, step = [WHOLE], 0
            break
        if (move.event, move.state) == ("advance", "ramp"):
            step = min(step + 1, len(steps) - 1)
    if steps[step] == 0:
        return None
    return Reach(
        subject=rollout.subject, serial=rollout.serial, share=steps[step], allow=rollout.allow, deny=rollout.deny
    )


class Notice(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """PROTOCOL 14.1: something that people are to know, as facts.

    Attributes:
        key: what it is about; whoever puts another one under it has put none.
        at: when it happened, or was made, in microseconds since 1970.
        expires: from when on nobody is told any more.
        graphs: whom it concerns; None with a `reach`, or for all.
        reach: whom the rollout that was taken back had reached.
        duration_s: how long a maintenance takes.
    """

    key: str
    kind: Kind
    at: int
    expires: int
    graphs: frozenset[str] | None = None
    reach: Reach | None = None
    duration_s: int | None = None

    def __post_init__(self) -> None:
        if (self.kind == "maintenance") == (self.duration_s is None) or (self.kind == "rollback") == (
            self.reach is None
        ):
            raise LocalProtocolError("expected a maintenance with a duration, or a rollback with a reach; got another")
        if self.duration_s is not None and not 0 < self.duration_s <= DURATION_S_MAX:
            raise LocalProtocolError(f"expected 1 to {DURATION_S_MAX} seconds of maintenance; got {self.duration_s}")
        if self.graphs is not None and not 0 < len(self.graphs) <= GRAPHS_MAX:
            raise LocalProtocolError(f"expected 1 to {GRAPHS_MAX} graphs, or all; got {len(self.graphs)}")
        if not self.key or len(self.key) > 200 or not self.key.isprintable():
            raise LocalProtocolError("expected a key of 1 to 200 printable characters; got another")

    @property
    def id(self) -> str:
        """Names it, also after the store was set back and the same key is used again."""
        return blake2b(f"{self.at}\n{self.key}".encode(), digest_size=8).hexdigest()

    def concerns(self, graph: str) -> bool:
        """Whether `graph` is to be told."""
        if self.graphs is not None and graph not in self.graphs:
            return False
        return self.reach is None or self.reach.has(graph)


def of_maintenance(duration_s: int, *, key: str, now: int, graphs: frozenset[str] | None = None) -> Notice:
    """That the server will be away for so long from now. Nobody is told when that is over.

    Raises:
        LocalProtocolError: it is no duration, no key, or too many graphs.
    """
    return Notice(
        key=key,
        kind="maintenance",
        at=now,
        expires=now + duration_s * 1_000_000,
        graphs=graphs,
        duration_s=duration_s,
    )


def of_rollback(rollout: Rollout) -> Notice | None:
    """That a rollout was taken back; None if it was not, or reached nobody. The same whoever says so, and whenever."""
    reach = reach_of(rollout)
    if reach is None:
        return None
    since = rollout.since
    return Notice(key=f"rollback/{rollout.id}", kind="rollback", at=since, expires=since + KEPT_US, reach=reach)


class Outbox(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """PROTOCOL 14.1: what is to be told, oldest first."""

    notices: tuple[Notice, ...] = ()

    def live(self, now: int) -> tuple[Notice, ...]:
        """Those that did not expire."""
        return tuple(notice for notice in self.notices if now < notice.expires)

    def of(self, key: str, now: int) -> Notice | None:
        """The one under `key`."""
        return next((notice for notice in self.live(now) if notice.key == key), None)

    def put(self, notice: Notice, now: int) -> Outbox:
        """With `notice`, unless there is one under its key or it has expired; without those that did. Of more than
        `NOTICES_MAX` the oldest are dropped."""
        live = self.live(now)
        if now >= notice.expires or any(one.key == notice.key for one in live):
            return self
        return Outbox(notices=(*live, notice)[-NOTICES_MAX:])


class Proofs(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is known of one graph: where its log ended when something was taken back, and what was proven of it since,
    each by the id of the notice."""

    before: Mapping[str, str] = {}
    proven: Mapping[str, Proof] = {}

    def only(self, ids: Iterable[str]) -> Proofs:
        """Without what is of no notice any more."""
        live = frozenset(ids)
        return Proofs(
            before={id_: place for id_, place in self.before.items() if id_ in live},
            proven={id_: proof for id_, proof in self.proven.items() if id_ in live},
        )


def proofs_of(graph: str) -> str:
    """The name under which a store keeps the `Proofs` of a graph."""
    return f"{DOCUMENT}/{graph}"


_outbox: Final = msgspec.json.Decoder(Outbox)
_proofs: Final = msgspec.json.Decoder(Proofs)


def outbox_in(document: Document) -> Outbox:
    """What a document of the store holds. Raises `StoreCorrupt`: something else."""
    return read(_outbox, document, "the notices") or Outbox()


def proofs_in(document: Document) -> Proofs:
    """What a document of the store holds. Raises `StoreCorrupt`: something else."""
    return read(_proofs, document, "what was proven of a graph") or Proofs()


def document_of(kept: Outbox | Proofs) -> bytes:
    """`kept` as the body of a document."""
    return written(kept)


# --- told and acknowledged ----------------------------------------------------------------------------------------


def ack_of(id_: str, *, proven: bool) -> str:
    """PROTOCOL 14.3: what a peer says that has kept a notice; another word once it is told with a proof."""
    return f"{id_}{_PROVEN}" if proven else id_


class Told(Struct, frozen=True, kw_only=True):
    """PROTOCOL 14.2: a notice as a peer is told it. `duration` is in seconds."""

    id: str
    type: str
    title: str
    message: str
    severity: Severity
    timestamp: str
    duration: int | UnsetType = UNSET
    proof: Proof | UnsetType = UNSET


def told(notice: Notice, verified: Verified | None) -> Told:
    """`notice` in words; with a proof, if one was verified."""
    title, text, severity = message(notice.kind, duration_s=notice.duration_s, verified=verified)
    return Told(
        id=notice.id,
        type=notice.kind,
        title=title,
        message=text,
        severity=severity,
        timestamp=format_time(notice.at),
        duration=UNSET if notice.duration_s is None else notice.duration_s,
        proof=UNSET if verified is None else verified.proof,
    )


def acked_in(events: Iterable[Event]) -> dict[str, frozenset[str]]:
    """What each device of a graph has acknowledged, the one that did so last at the end. Devices are hashed."""
    for event in events:
        if event.kind == "noticed":
            return {device: frozenset(str(acks).split()) for device, acks in event.told.items()}
    return {}


def label_of(token: str, device: str) -> str:
    """What a device is called here, whichever wire version it speaks."""
    return f"{token}:{device}"


def device_key(device: str) -> str:
    """What a device is remembered as: devices may call themselves as long as they like."""
    return blake2b(device.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def telling(graph: str, device: str, now: int, *, head: Head | None = None) -> Plan[tuple[Told, ...]]:
    """PROTOCOL 14.2: the notices that concern `graph` and that `device` has not acknowledged, oldest first; what is
    proven is held against the log as it ends at `head`, or now."""
    held = yield Reads(documents=(DOCUMENT, proofs_of(graph)))
    live = _concerning(graph, held.documents, now)
    if not live:
        return ()
    proven = {one.id: proof for one, proof in live if proof is not None}
    seqs = tuple(sorted({seq for proof in proven.values() for seq in places_of(proof)}))
    held = yield Reads(events=True, chains=seqs)
    acked = acked_in(held.events).get(device_key(device), frozenset())
    due = []
    for notice, proof in live:
        verified = None if proof is None else verify(proof, graph=graph, head=head or held.head, chains=held.chains)
        known = {ack_of(notice.id, proven=True)} | (set() if verified else {notice.id})
        if not known & acked:
            due.append(told(notice, verified))
    return tuple(due)


def exchange(graph: str, device: str, acks: Iterable[str], now: int) -> Plan[tuple[Told, ...]]:
    """PROTOCOL 14.2: both, for who asks for nothing else."""
    yield from noting(device, acks, now)
    return (yield from telling(graph, device, now))


def _concerning(graph: str, documents: Mapping[str, Document], now: int) -> list[tuple[Notice, Proof | None]]:
    """The notices that concern `graph`, each with what is said to be proven of it. A rollback concerns who had rows by
    then, of whom it is noted where the log ended."""
    try:
        live = [one for one in outbox_in(documents[DOCUMENT]).live(now) if one.concerns(graph)]
    except StoreCorrupt:
        return []  # whoever looks after the server is told by its own commands; peers go on
    try:
        kept = proofs_in(documents[proofs_of(graph)]) if live else Proofs()
    except StoreCorrupt:
        return [(one, None) for one in live]
    return [(one, kept.proven.get(one.id)) for one in live if one.reach is None or one.id in kept.before]


def noting(device: str, acks: Iterable[str], now: int) -> Plan[None]:
    """PROTOCOL 14.3: remember what a device acknowledges, in the transaction of its message. What is of no notice is
    ignored, and what is known already writes nothing."""
    held = yield Reads(documents=(DOCUMENT,), events=True)
    try:
        live = outbox_in(held.documents[DOCUMENT]).live(now)
    except StoreCorrupt:
        return
    words = {ack_of(one.id, proven=proven) for one in live for proven in (False, True)}
    kept = acked_in(held.events)
    key = device_key(device)
    before = kept.pop(key, frozenset())
    after = (before | frozenset(acks)) & words
    if after <= before:
        return
    said: dict[str, Any] = {one: " ".join(sorted(some & words)) for one, some in kept.items() if some & words}
    said[key] = " ".join(sorted(after))
    newest = dict(list(said.items())[-DEVICES_MAX:])
    yield Writes(events=(Event(kind="noticed", key="", at=now, told=newest),))
