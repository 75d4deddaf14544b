"""One sync: what waits goes out, what is new comes in.

    store -> replica.compose -> wire -> transport -> wire -> replica.absorb -> store

Read `Sync._round`: it is one message, there and back. What to say and what an answer means is decided by
`inbetweenies.replica`; here is only the order of things, and when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from inbetweenies.errors import RemoteProtocolError, VersionRefused
from inbetweenies.limits import checked_decode, gate
from inbetweenies.model import DIGEST_BITS, ENTITY_TYPES, Answer, Ask, Change, Conflict
from inbetweenies.model import Refused as RefusedItem
from inbetweenies.offers import VersionPolicy
from inbetweenies.replica import (
    NOTICES,
    Absorbed,
    Copy,
    Local,
    Pending,
    State,
    absorb,
    attempted,
    believed,
    compose,
    incarnated,
    mentions,
    restart,
)
from inbetweenies.rewind import FEATURE
from inbetweenies.wire import load

from . import notices
from .reconcile import Reconciliation
from .reports import Progress, SyncReport
from .store import LocalStore
from .transport import BadAnswer, Refused, Transport, TransportError, Unauthorized
from .values import ANSWER_LIMITS, EDGES, decoded, new_id, told_edge
from .versions import Talk, of_rows

SYNC_PATH: Final = "/api/v1/sync/"
EDGES_PATH: Final = "/api/v1/graph/relationships"

MESSAGES_MAX: Final = 10_000  # of one sync: ten million rows; a server that goes on longer is making them up
RESYNCS_MAX: Final = 3  # of one sync: a server is set back once, maybe twice while it is asked; not by every question
POISON_MAX: Final = 8  # changes that fail one by one before it is the server that must be broken
NOTINGS_MAX: Final = 2  # messages of one sync that only acknowledge: what is told, and a proof that comes meanwhile
CHUNK: Final = 100  # marks read at a time

# PROTOCOL 10.5: a deployed server refuses a whole message for one edge of another type.
_DEPLOYED_EDGES: Final = frozenset(
    "located_in controls connects_to part_of manages documented_by procedure_for triggered_by depends_on contained_in "
    "monitors automates controlled_by_app has_blob".split()
)


class Replica(Protocol):
    """What a sync needs of the client that it is for; see there."""

    versions: VersionPolicy
    clock: Callable[[], int]
    nonces: Callable[[], str]
    page_rows: int | None
    batch_changes: int
    batch_bytes: int

    @property
    def store(self) -> LocalStore:
        """The rows, the marks and what is known of the server."""

    @property
    def state(self) -> State:
        """What is known of the server."""


_Whole = tuple[str, str, str]


def _whole(item: Pending) -> _Whole:
    return (*item.copy.key, item.copy.version)


class _Envelope(Struct):
    """What is looked at before an answer is believed."""

    protocol_version: Any = UNSET
    applied: Raw | UnsetType = UNSET
    server_time: Raw | UnsetType = UNSET
    negotiation: Any = None


_envelope = msgspec.json.Decoder(_Envelope)


class NotUnderstood(BadAnswer):
    """The answer is of no wire version that was asked for, and names none."""


class Sync(Reconciliation):
    """The course of one sync. Ends, whatever the server does: each round clears marks, moves the cursor, or sets rows
    aside until the next sync."""

    def __init__(
        self,
        client: Replica,
        transport: Transport,
        key: str,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        super().__init__()
        self.client = client
        self.store = client.store
        self.transport = transport
        self.progress = progress
        self.talk = Talk(client.store, client.versions, key=key, now=client.clock(), revision=self._revision())
        self.doubt: NotUnderstood | None = None  # why another version is being tried, if the server did not say
        self.batch = client.batch_changes
        self.held: set[_Whole] = set()  # not sent again in this sync
        self.waiting: set[_Whole] = set()  # of these, the ones for which an ack of something else can change things
        self.unblocked = False  # something was acknowledged since they were sent last
        self.refused: dict[_Whole, RefusedItem] = {}
        self.conflicts: list[Conflict] = []
        self.pushed = self.pulled = self.offered = self.messages = self.poison = self.restarts = self.resyncs = 0
        self.healed = self.forked = False
        self.gap = ""  # the difference to the server that everything was compared for
        self.complete = True
        self.edges_read = False
        self.notings = 0  # messages that were needed only to acknowledge notices
        self.answer: Answer | None = None

    async def run(self, url: str | None) -> SyncReport:
        state = self.client.state
        if url is not None:
            if state.modern is False and self.store.setting("synced_url") not in (None, url):
                # A deployed server's clock says nothing about another server's, and it could not tell.
                self.store.put_state(restart(state))
            self.store.keep(synced_url=url)
        try:
            while await (self._round() if self.talk.in_rows else self._records()):
                if self.messages >= MESSAGES_MAX:
                    self.complete = False
                    break
        except (TransportError, RemoteProtocolError):
            self.talk.forget()
            raise
        self.talk.remember(now=self.client.clock(), revision=self._revision())
        if not self.talk.in_rows:
            await self._ask_notices()
        state = self.client.state
        digest = self.answer.digest if self.answer is not None else None
        return SyncReport(
            served=state.wire,
            pushed=self.pushed,
            pulled=self.pulled,
            conflicts=tuple(self.conflicts),
            refused=tuple(self.refused.values()),
            pending=self.store.counts().pending,
            healed=self.healed,
            messages=self.messages,
            digest=None if digest is None else f"{state.digest:064x}",
            equal=None if digest is None else digest == f"{state.digest:064x}",
            complete=self.complete,
            rewound=self.rewinds > 0,
            lost=self.lost,
            discarded=self.discarded,
            offered=self.offered,
            differing=self.differing,
            forked=self.forked,
        )

    def _revision(self) -> str | None:
        """What the server said last of its registry; not every transport can tell."""
        revision: str | None = getattr(self.transport, "registry_revision", None)
        return revision

    async def _round(self) -> bool:
        """One message, there and back. Whether another one must follow."""
        state = self.client.state
        if state.lost:
            return await self._relocated(state)
        back = state.wire is not None and not of_rows(load().get(state.wire))
        if back:
            # What a server of records told are no rows of its own; what it says in rows is asked for from the start.
            state = replace(restart(state), modern=None, wire=None)
        ask, sent = compose(
            state,
            # A server that starts anew first tells what it has; else what follows from what it lost looks contested.
            () if state.restarting else self._sendable(state),
            offer=self.talk.offer,
            page_rows=self.client.page_rows,
            changes_max=self.batch,
            bytes_max=self.client.batch_bytes,
            request=self.nonce(),
            skip=self.skipped(state),
            want=self.wanted(),
            notices=notices.owed(self.store),
        )
        if ask.pushes is not None:
            with self.store.transaction():
                self.store.put_state(attempted(self.client.state, ask))
        try:
            answer = await self.exchange(ask)
        except Unauthorized:
            raise
        except Refused as error:
            if not self.talk.refused(error):
                self._recover(error, state, sent)
            return True
        if answer is None:
            return True
        if back:
            self.store.put_state(state)
        absorbed, moved = self._absorb(answer, sent, wanted=bool(ask.want))
        notices.acknowledged(self.store, ask.notices)
        self.answer = answer
        self.poison = 0
        self.batch = min(self.batch * 2, self.client.batch_changes)
        self.resyncs += answer.resync
        if self.resyncs > RESYNCS_MAX:
            self.complete = False
            return False
        if absorbed.healed:
            self.healed = True
            return True
        if not absorbed.drained:
            # A server that says "more" and tells nothing would be asked for ever.
            self.complete = moved
            return moved
        return await self._drained() or self._acknowledges()

    def _acknowledges(self) -> bool:
        """Whether a message is needed only to acknowledge notices. Who is told something says so at once: the next sync
        may be tomorrow. A server that goes on telling can wait."""
        if not notices.owed(self.store):
            return False
        self.notings += 1
        return self.notings <= NOTINGS_MAX

    async def _relocated(self, state: State) -> bool:
        """The server's log is not the one that was known: find out what is left of it, then go on."""
        try:
            await self.locate(state)
        except Unauthorized:
            raise
        except Refused as error:
            if not self.talk.refused(error):
                raise
        self.held.clear()
        self.waiting.clear()
        return True

    @property
    def offer(self) -> tuple[str, ...]:
        """The wire versions to offer."""
        return self.talk.offer

    def nonce(self) -> str:
        """A name for a message that no other message has."""
        return self.client.nonces()

    async def exchange(self, ask: Ask) -> Answer | None:
        """One message, there and back; None if the answer does not count, or it cannot be said, and another version is
        to be tried.

        Raises:
            TransportError: no answer, or none that can be believed to be one to this message; nothing was absorbed.
        """
        if not self.talk.in_rows:
            return None  # the answer before this one said that another version comes first by now
        self.messages += 1
        answer = self._told(await self.transport.post(SYNC_PATH, self.talk.wire.ask(ask)))
        if answer is not None and not believed(answer, ask):
            # PROTOCOL 10.14: it may be late, and from before the server was set back.
            raise BadAnswer(expected="an answer to what was just asked, of a log that grows", got="another one")
        return answer

    def hear(self, body: bytes) -> tuple[str, ...] | None:
        """Take in an answer that nobody asked for; the ids that it was about, or None if a sync must follow."""
        answer = self._told(body)
        if answer is None:
            return None
        absorbed, _ = self._absorb(answer, ())
        if absorbed.differs or absorbed.offer_again or not absorbed.drained:
            return None
        return tuple(dict.fromkeys(id_ for _, id_ in absorbed.pointers))

    async def _records(self) -> bool:
        """All there is to say to a server that only speaks v1. Whether another version must follow."""
        from .v1mode import V1Exchange

        exchange = V1Exchange(
            self.store,
            self.transport,
            self.talk.wire,
            clock=self.client.clock,
            ids=new_id,
            batch_changes=self.client.batch_changes,
            offer=self.talk.offer,
        )
        try:
            if not await exchange.probe():
                raise self.doubt or NotUnderstood(expected=f"an answer in {exchange.name}", got="another JSON document")
            self.talk.served(exchange.name, exchange.negotiation)
            if self.talk.in_rows:
                return True  # there is more to be had here, and nothing was taken or sent yet
            done = await exchange.run()
        except Unauthorized:
            raise
        except Refused as error:
            if not self.talk.refused(error):
                raise
            return True
        finally:
            self.messages += exchange.messages
        self.answer = None
        self.pushed += done.pushed
        self.pulled += done.pulled
        self.refused = {("", note.id, note.version): note for note in done.refused}
        self._report()
        return False

    async def _ask_notices(self) -> None:
        """PROTOCOL 14.2: of a server that is known to have some, where the version that is spoken cannot say them."""
        for _ in range(NOTINGS_MAX):  # what is told is acknowledged at once
            acks = notices.owed(self.store)
            if not notices.there(self.store):
                return
            try:
                body = await self.transport.get(notices.address(self.client.state.device, acks))
                told = notices.told_in(body)
            except (TransportError, RemoteProtocolError):
                return  # they wait; the sync itself is done
            self.messages += 1
            with self.store.transaction():
                notices.take_in(self.store, told, self.client.clock(), state=self.client.state, digest=None)
                notices.acknowledged(self.store, acks)
            if not notices.owed(self.store):
                return

    def _sendable(self, state: State) -> Iterator[Pending]:
        after = 0
        while page := self.store.pending(CHUNK, after):
            after = page[-1].n
            yield from (item for item in page if _whole(item) not in self.held and is_taken(state, item.copy))

    def _told(self, body: bytes) -> Answer | None:
        """The answer; None if it does not count, and another version is to be tried."""
        wire = self.talk.wire
        try:
            gate(body, ANSWER_LIMITS)
            envelope = checked_decode(_envelope, body)
            named = envelope.protocol_version
            if named is UNSET and envelope.applied is UNSET and envelope.server_time is UNSET:
                self.doubt = NotUnderstood(expected=f"an answer in {wire.name}", got="another JSON document")
                if not self.talk.unversioned():
                    raise self.doubt
                return None
            if not self.talk.served(wire.name if named is UNSET else named, envelope.negotiation):
                return None
            answer: Answer = wire.told(body)
        except (BadAnswer, VersionRefused):
            raise
        except RemoteProtocolError as error:
            raise BadAnswer(expected=error.expected, got=error.got, pointer=error.pointer) from error
        return answer

    def _absorb(self, answer: Answer, sent: tuple[Pending, ...], *, wanted: bool = False) -> tuple[Absorbed, bool]:
        """Take an answer in, as one transaction. Whether it changed anything comes with it."""
        with self.store.transaction():
            state = self.client.state
            local = self.store.local(*mentions(answer, sent))
            absorbed = self._settled(absorb(answer, sent, state, local, wanted=wanted), answer, state)
            if answer.device_forked:
                self.forked = True
                absorbed = replace(absorbed, state=incarnated(absorbed.state, self.nonce()))
            self.store.apply(absorbed, now=self.client.clock())
            notices.known(self.store, NOTICES in answer.features)
            notices.take_in(self.store, answer.notices, self.client.clock(), state=absorbed.state, digest=answer.digest)
            cleared = frozenset(absorbed.cleared)
            # Of a message that was not looked at nothing is silent: it is sent again.
            left = [] if absorbed.state.lost else [item for item in sent if item.n not in cleared]
            silent = {item.n: _silence(item.copy) for item in left if item.n not in absorbed.notes}
            self.store.annotate(silent)
        done = [item for item in sent if item.n in cleared]
        pulled = _pulled(absorbed, local, done)
        offered = sum(item.offered for item in done)
        self.offered += offered
        self.pushed += len(done) - offered
        self.pulled += pulled
        self.conflicts += absorbed.conflicts
        self.unblocked |= any(item.copy.kind == "entity" for item in done)
        for item in done:
            self.refused.pop(_whole(item), None)
        for item in left:
            self._set_aside(item, absorbed.notes.get(item.n) or silent[item.n])
        self._report()
        before, after = (replace(one, digest=0) for one in (state, absorbed.state))
        return absorbed, bool(done or pulled or before != after)

    def _settled(self, absorbed: Absorbed, answer: Answer, state: State) -> Absorbed:
        """`absorbed`, or the same without starting anew if that was tried for this very difference and did not help."""
        if not absorbed.healed or not self._known_gap(answer, absorbed.state):
            return absorbed
        settled = replace(
            absorbed.state, cursor=answer.cursor or state.cursor, round=absorbed.state.round - 1, restarting=False
        )
        return replace(absorbed, state=settled, healed=False)

    def _known_gap(self, answer: Answer, state: State) -> bool:
        """Whether comparing everything again will not close the difference to the server: it did not before. Another
        difference than it was done for is left to the next sync: something was lost meanwhile.

        Digests are sums, so what lies between them is the same as long as the same rows differ.
        """
        try:
            gap = f"{(int(answer.digest or '', 16) - state.digest) % (1 << DIGEST_BITS):064x}"
        except ValueError:
            gap = "no digest"
        if gap in (self.gap, self.store.setting("gap")):
            self.store.keep(gap=gap)
            return True
        self.gap = self.gap or gap
        return self.healed

    def _set_aside(self, item: Pending, note: RefusedItem) -> None:
        self.held.add(_whole(item))
        self.refused[_whole(item)] = note
        if note.code in ("unknown_endpoint", "not_acknowledged", "too_much_at_once"):
            self.waiting.add(_whole(item))

    async def _drained(self) -> bool:
        """The server has nothing more for now. Whether there is something left to say."""
        state = self.client.state
        if state.modern is False and not self.edges_read:
            await self._read_edges(state)
            self.edges_read = True
            state = self.client.state
        if state.restarting:
            self.store.offer_again()
            self.held.clear()
            self.waiting.clear()
            state = self.client.state
        if self.want or any(True for _ in self._sendable(state)):
            return True
        if self.waiting and self.unblocked:
            self.held -= self.waiting
            self.waiting.clear()
            self.unblocked = False
            return True
        digest = None if self.answer is None else self.answer.digest
        if digest is None:
            return False
        if digest == f"{state.digest:064x}":
            self.store.keep(gap=None)
            return False
        # `absorb` compares too, but not at the end of a restart.
        if self.answer is None or self._known_gap(self.answer, state):
            return False
        self.healed = True
        if FEATURE in self.answer.features:
            await self.compare(state)
        else:
            self.store.put_state(restart(state))
        return True

    async def _read_edges(self, state: State) -> None:
        """PROTOCOL 10.5: a deployed server tells edges only here, all of them, whole."""
        try:
            body = await self.transport.get(EDGES_PATH)
        except Unauthorized:
            raise
        except Refused:
            return  # its entities are of use without
        self.messages += 1
        edges = tuple(told_edge(edge) for edge in decoded(EDGES, body).relationships)
        told = Answer(protocol_version=state.wire or self.talk.wire.name, changes=(Change(relationships=edges),))
        self._absorb(told, ())

    def _recover(self, error: Refused, state: State, sent: tuple[Pending, ...]) -> None:
        """Go on after a refusal, or raise it."""
        about_cursor = error.code == "bad_cursor" or (error.status == 400 and "cursor" in error.detail.lower())
        if about_cursor and (state.cursor or state.page) and self.restarts < 2:
            self.restarts += 1
            self.store.put_state(restart(state))
            return
        if error.status not in (400, 413, 422, 500) or not sent:
            raise error
        # One item can make a server refuse a whole message. Find it by halves, set it aside, and go on.
        if len(sent) > 1:
            self.batch = len(sent) // 2
            return
        self.poison += 1
        if self.poison > POISON_MAX:
            raise error
        item = sent[0]
        note = RefusedItem(
            id=item.copy.id, version=item.copy.version, code=error.code, pointer="", detail=error.detail or "refused"
        )
        self.store.annotate({item.n: note})
        self._set_aside(item, note)
        self._report()

    def _report(self) -> None:
        if self.progress is not None:
            pending = self.store.counts().pending
            self.progress(
                Progress(
                    pushed=self.pushed,
                    pulled=self.pulled,
                    pending=pending,
                    total=self.pushed + pending,
                    messages=self.messages,
                )
            )


def _pulled(absorbed: Absorbed, local: Local, done: list[Pending]) -> int:
    """For how many ids the server was found to hold another row than was known, our own acknowledged ones aside."""
    ours = {_whole(item) for item in done}
    count = 0
    for key, pointer in absorbed.pointers.items():
        before = local.pointers.get(key)
        if pointer.theirs is not None and (before is None or before.theirs_hash != pointer.theirs_hash):
            count += (*key, pointer.theirs) not in ours
    return count


def is_taken(state: State, copy: Copy) -> bool:
    """PROTOCOL 10.5: whether it is sent; a server without features fails a whole message for one unknown type."""
    if state.modern:
        return True
    return copy.entity_type in (_DEPLOYED_EDGES if copy.kind == "edge" else ENTITY_TYPES)


def unknown_there(copy: Copy) -> RefusedItem:
    return RefusedItem(
        id=copy.id,
        version=copy.version,
        code="unknown_type_there",
        pointer="",
        detail="expected a type that every server knows; got another, and this server does not say that it takes it",
    )


def _silence(copy: Copy) -> RefusedItem:
    return RefusedItem(
        id=copy.id,
        version=copy.version,
        code="not_acknowledged",
        pointer="",
        detail="expected the server to name it or to refuse it; it did neither",
    )
