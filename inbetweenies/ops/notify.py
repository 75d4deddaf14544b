"""`UserNotification`: tells people what happens to the service, and those who look after it (PROTOCOL 14).

Read `look`, which a server does every few seconds and the command line after a rollback: what was taken back gets its
notice, whoever took it back and whoever died over it; what is affected is audited, and gets the proof, if it is whole;
who has not heard is called. What each of them decides is in `rollout.notices` and `rollout.escalation`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..errors import InbetweeniesError, LocalProtocolError, StoreBusy, StoreCorrupt, StoreError
from ..model import Cursor, Document, Head, Reads, parse_cursor
from ..rollout import escalation, notices, states
from ..rollout.escalation import Alert, Alerts, Attempt, alerts_in, due
from ..rollout.flags import Feature
from ..rollout.kept import Cause
from ..rollout.notices import (
    Notice,
    Outbox,
    Proofs,
    ack_of,
    acked_in,
    of_maintenance,
    of_rollback,
    outbox_in,
    proofs_in,
    proofs_of,
    prove,
)
from ..rollout.states import rollouts_in
from ..store import Store
from ..stores import amend
from ..stores.clock import wall_clock
from .channels import Channel, Result, use
from .integrity import DataIntegrityMonitor

#: Microseconds after which a graph that was found damaged is looked at again.
AGAIN_US: Final = 10 * 60 * 1_000_000

logger = logging.getLogger(__name__)


class _Unproven(Exception):
    """An audit found something."""


class Reached(Struct, frozen=True, kw_only=True):
    """How far a notice came in one graph: how many devices have acknowledged it, and whether with a proof; and whether
    there is a proof to tell."""

    graph: str
    devices: int
    with_proof: int
    proven: bool


class Delivered(Struct, frozen=True, kw_only=True):
    """How far a notice came: in each graph that it concerns."""

    notice: Notice
    graphs: tuple[Reached, ...]

    @property
    def waiting(self) -> tuple[str, ...]:
        """The graphs in which nobody has acknowledged it."""
        return tuple(one.graph for one in self.graphs if not one.devices)


class UserNotification:
    """The notices of one store, and those who look after it.

    Its methods are coroutines that wait for nothing but the store and the channels, which block: drive them with
    `run_now`, or on a thread of their own.

    Args:
        store: where all this is kept.
        channels: how to reach those who look after the server, the first to be used first.
        clock: microseconds since 1970.

    Raises:
        LocalProtocolError: two channels have one name.

    Whatever is asked of it raises `StoreError` if the store could not.
    """

    def __init__(
        self, store: Store, *, channels: Iterable[Channel] = (), clock: Callable[[], int] = wall_clock
    ) -> None:
        self._store = store
        listed = tuple(channels)
        self._channels = {channel.name: channel for channel in listed}
        if len(self._channels) != len(listed):
            raise LocalProtocolError("expected each channel once; got one twice")
        self._clock = clock
        self._integrity = DataIntegrityMonitor(store)
        self._settled: set[tuple[str, str]] = set()  # notice and graph: nothing is left to be done
        self._failed: dict[tuple[str, str], int] = {}  # when it was found damaged

    # --- told

    async def notify_maintenance(
        self, duration: timedelta | float, *, graphs: Iterable[str] | None = None, key: str | None = None
    ) -> Notice:
        """Tell that the server will be away from now on for `duration`, in seconds if it is a number. Durable on
        return.

        Args:
            graphs: whom; all if not given.
            key: names it: said twice under one key, it is told once.

        Raises:
            LocalProtocolError: it is no duration, or no key, or no graph is named.
        """
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        if not 0 < seconds <= notices.DURATION_S_MAX:
            raise LocalProtocolError(
                f"expected a duration above 0 and up to {notices.DURATION_S_MAX} seconds; got {seconds:g}"
            )
        now = self._clock()
        whom = None if graphs is None else frozenset(graphs)
        made = of_maintenance(-int(-seconds // 1), key=key or f"maintenance/{now}", now=now, graphs=whom)
        return await self._put(made)

    async def notify_rollback(self, subject: Feature | str | None = None) -> tuple[Notice, ...]:
        """Tell those whom the rollout of `subject`, or any, had reached that it was taken back. Durable on return;
        asked again it tells nothing twice. One that was not taken back, or reached nobody, has no notice.

        Whether data is safe is told once `prove` has found that out.

        Raises:
            LocalProtocolError: there never was a rollout of `subject`.
        """
        name = subject.name if isinstance(subject, Feature) else subject
        kept = rollouts_in(await self._store.document(states.DOCUMENT))
        made = map(of_rollback, kept.rollouts.values() if name is None else [kept.of(name)])
        now = self._clock()
        found = [await self._put(one) for one in made if one is not None and now < one.expires]
        for notice in found:
            await self._note_places(notice)
            await self._raise(notice)
        return tuple(found)

    async def prove(self) -> tuple[str, ...]:
        """Audit the graphs of which a rollback was told, and keep what that proves; the graphs that were proven. What
        is damaged gets no proof, and is looked at again later."""
        now, proven = self._clock(), list[str]()
        for notice in await self._rollbacks():
            names = await self._unsettled(notice)
            proven += [graph for graph in names if await self._proved(notice, graph, now)]
        return tuple(proven)

    async def look(self) -> None:
        """All that is left to be done: notices, proofs, calls. What fails is logged, and keeps nothing else from being
        done."""
        for step in (self.notify_rollback, self.prove, self.call):
            try:
                await step()
            except InbetweeniesError as error:
                logger.warning("%s: %s: %s", step.__name__, type(error).__name__, error)

    async def delivered(self) -> tuple[Delivered, ...]:
        """How far each notice came."""
        outbox = outbox_in(await self._store.document(notices.DOCUMENT))
        names = await self._store.graph_names()
        return tuple([await self._delivered(one, names) for one in outbox.live(self._clock())])

    async def _delivered(self, notice: Notice, names: Sequence[str]) -> Delivered:
        found = []
        for graph in names:
            if not notice.concerns(graph):
                continue
            proofs = await self._proofs(graph)
            if notice.kind == "rollback" and notice.id not in proofs.before:
                continue
            async with self._store.transaction(graph, write=False) as tx:
                acked = acked_in((await tx.read(Reads(events=True))).events).values()
            with_proof = sum(ack_of(notice.id, proven=True) in one for one in acked)
            devices = sum(bool({notice.id, ack_of(notice.id, proven=True)} & one) for one in acked)
            found.append(
                Reached(graph=graph, devices=devices, with_proof=with_proof, proven=notice.id in proofs.proven)
            )
        return Delivered(notice=notice, graphs=tuple(found))

    async def _put(self, made: Notice) -> Notice:
        now = self._clock()
        before = outbox_in(await self._store.document(notices.DOCUMENT)).of(made.key, now)
        if before is not None:
            return before
        after = outbox_in(await amend(self._store, notices.DOCUMENT, lambda kept: _with(kept, made, now)))
        return after.of(made.key, now) or made

    async def _rollbacks(self) -> list[Notice]:
        live = outbox_in(await self._store.document(notices.DOCUMENT)).live(self._clock())
        return [notice for notice in live if notice.kind == "rollback"]

    async def _unsettled(self, notice: Notice) -> list[str]:
        names = await self._store.graph_names()
        return [graph for graph in names if (notice.id, graph) not in self._settled and notice.concerns(graph)]

    async def _note_places(self, notice: Notice) -> None:
        """Where the log of each graph ends now, so that what comes later can be held against it. A graph without rows
        by then was given nothing."""
        for graph in await self._unsettled(notice):
            if notice.id in (await self._proofs(graph)).before:
                continue
            async with self._store.transaction(graph, write=False) as tx:
                held = await tx.read(Reads(stamp=notice.at))
            if held.stamp_seq:
                await self._amend_proofs(graph, partial(_noted, notice, held.head))
            else:
                self._settled.add((notice.id, graph))

    async def _proved(self, notice: Notice, graph: str, now: int) -> bool:
        """Whether it was proven just now. A graph that cannot be read keeps no other from being proven."""
        which = notice.id, graph
        if now - self._failed.get(which, now - AGAIN_US) < AGAIN_US:
            return False
        try:
            return await self._audited(notice, graph)
        except StoreBusy as error:
            logger.warning("graph %s stays unproven for now: %s", graph, error)
        except _Unproven:
            self._failed[which] = now
            logger.error("graph %s is not proven to be whole; see `inbetweenies audit`", graph)  # noqa: TRY400
        except StoreError:
            self._failed[which] = now
            logger.exception("graph %s stays unproven", graph)
        return False

    async def _audited(self, notice: Notice, graph: str) -> bool:
        proofs = await self._proofs(graph)
        before = parse_cursor(proofs.before.get(notice.id, ""))
        if before is None:
            return False
        if notice.id in proofs.proven or not await self._goes_on(graph, before):
            self._settled.add((notice.id, graph))
            return False
        audit, head = await self._integrity.audited(graph)
        proof = prove(graph, before, audit, head)
        if proof is None:
            raise _Unproven
        await self._amend_proofs(graph, lambda kept: replace(kept, proven={**kept.proven, notice.id: proof}))
        self._settled.add((notice.id, graph))
        return True

    async def _goes_on(self, graph: str, before: Cursor) -> bool:
        """Whether the log that ended at `before` is still there. Once it was set back nothing proves that any more."""
        async with self._store.transaction(graph, write=False) as tx:
            held = await tx.read(Reads(chains=(before.seq,)))
        if (held.head.epoch, held.chains.get(before.seq)) == (before.epoch, before.chain):
            return True
        logger.error("graph %s was set back since something was taken back; nothing is said of its data", graph)
        return False

    async def _proofs(self, graph: str) -> Proofs:
        try:
            return proofs_in(await self._store.document(proofs_of(graph)))
        except StoreCorrupt:
            return Proofs()  # then it is proven anew

    async def _amend_proofs(self, graph: str, change: Callable[[Proofs], Proofs]) -> None:
        live = [notice.id for notice in await self._rollbacks()]

        def changed(document: Document) -> bytes:
            try:
                kept = proofs_in(document)
            except StoreCorrupt:
                kept = Proofs()
            return notices.document_of(change(kept).only(live))

        await amend(self._store, proofs_of(graph), changed)

    # --- those who look after it

    async def alerts(self) -> tuple[Alert, ...]:
        """What those who look after the server were called for."""
        return alerts_in(await self._store.document(escalation.DOCUMENT)).alerts

    async def acknowledge(self, key: str, *, actor: str = "operator", reason: str = "seen") -> Alert:
        """Somebody has seen it: nobody else is called for it. Raises `LocalProtocolError`: there is no such alert."""
        cause = Cause(actor=actor, reason=reason, at=self._clock())

        def seen(alerts: Alerts) -> Alerts:
            alert = alerts.of(key)
            return alerts.put(alert if alert.acknowledged is not None else replace(alert, acknowledged=cause))

        return (await self._amend_alerts(seen)).of(key)

    async def call(self) -> tuple[Result, ...]:
        """Use the channels that are due for what nobody has acknowledged; what became of each."""
        results = []
        for alert in await self.alerts():
            for name in due(alert, tuple(self._channels), now=self._clock()):
                # Noted afterwards: who dies in between calls once more, which is better than not at all.
                result = use(self._channels[name], alert.title, alert.body)
                attempt = Attempt(channel=name, at=self._clock(), error=result.error)
                await self._amend_alerts(partial(_tried, alert.key, attempt))
                results.append(result)
        return tuple(results)

    def test(self) -> tuple[Result, ...]:
        """Use every channel once, to see whether somebody can be reached; what became of each."""
        title, body = "Inbetweenies: a test", "This is a test of this channel. Nothing happened, nothing is to be done."
        return tuple([use(channel, title, body) for channel in self._channels.values()])

    async def _raise(self, notice: Notice) -> None:
        if not self._channels or notice.reach is None:
            return
        alert = Alert(
            key=notice.key,
            title="Inbetweenies: a rollout was taken back",
            body=f"Rollout {notice.reach.subject}/{notice.reach.serial} was taken back. Whether all data is whole is "
            "being looked at: see `inbetweenies notify list`. To say that you have seen this: "
            f"`inbetweenies notify ack {notice.key}`.",
            at=notice.at,
        )
        if all(one.key != alert.key for one in await self.alerts()):
            await self._amend_alerts(lambda kept: kept.raised(alert))

    async def _amend_alerts(self, change: Callable[[Alerts], Alerts]) -> Alerts:
        return alerts_in(
            await amend(self._store, escalation.DOCUMENT, lambda kept: escalation.document_of(change(alerts_in(kept))))
        )


def _with(document: Document, notice: Notice, now: int) -> bytes:
    kept: Outbox = outbox_in(document)
    return notices.document_of(kept.put(notice, now))


def _tried(key: str, attempt: Attempt, kept: Alerts) -> Alerts:
    alert = next((one for one in kept.alerts if one.key == key), None)
    return kept if alert is None else kept.put(alert.tried(attempt))


def _noted(notice: Notice, head: Head, kept: Proofs) -> Proofs:
    return replace(kept, before={notice.id: str(head.cursor), **kept.before})
