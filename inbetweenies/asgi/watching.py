"""How a server watches what is rolled out while it serves (PROTOCOL 12): requests are counted, and looked at.

One for each application. Of several processes on one store each counts its own requests, and looks at them by itself;
what they find comes together in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Protocol

from ..exchange import Reply
from ..ops.incident import Incidents
from ..ops.notify import UserNotification
from ..ops.performance import PerformanceMonitor, Served
from ..ops.policies import standard
from ..ops.triggers import ACTOR, Action, EmergencyTriggers
from ..rollout.cases import Case
from ..rollout.health import exposition
from ..rollout.policy import Policy
from ..rollout.states import Rollout
from ..router import ProtocolFallback
from ..stores.keeper import run_now

#: What a refusal is counted as of which nobody knows what it would have become.
UNKNOWN: Final = "sync"
TELL_SECONDS: Final = 5.0  # between two looks at what people have to be told

logger = logging.getLogger(__name__)


class Audit(Protocol):
    """Looks whether invariants hold, such as `DataIntegrityMonitor` and `ShadowComparison`."""

    def monitor(self) -> Coroutine[Any, Any, Any]:
        """Look until cancelled."""

    def breaches(self) -> tuple[str, ...]:
        """What is broken now, in words; the same words as long as it is the same."""


class Watching:
    """On the event loop of an application.

    Args:
        audits: look for ever whether invariants hold, in a thread of their own; what they find takes rollouts back.
        monotonic: seconds.
        people: tells people of what was taken back; one without channels if not given.
        incidents: where what is known is put aside before a rollout is taken back.
        policy: asked for what decides about rollouts.
    """

    def __init__(
        self,
        router: ProtocolFallback,
        audits: Sequence[Audit],
        monotonic: Callable[[], float],
        people: UserNotification | None = None,
        *,
        policy: Callable[[], Policy] = standard,
        incidents: Incidents | None = None,
    ) -> None:
        self.monitor = PerformanceMonitor(router.store, rollouts=lambda: router.orders.rollouts, monotonic=monotonic)
        self.triggers = EmergencyTriggers(
            router.store,
            self.monitor,
            policy=policy,
            breaches=lambda: tuple(line for audit in audits for line in audit.breaches()),
            since_begun=True,
            on_action=self._acted,
            before_rollback=None if incidents is None else self._put_aside,
            clock=router.clock,
            monotonic=monotonic,
        )
        self.people = people or UserNotification(router.store, clock=router.clock)
        self._incidents = incidents
        self._thread = _Thread(audits)
        self._router = router
        self._monotonic = monotonic
        self._looking: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    def _acted(self, action: Action) -> None:
        """Whoever is connected is told within seconds, also if this process dies now: it is durable on return."""
        if action.what == "roll_back":
            run_now(self.people.notify_rollback())

    def count(self, graph: str, began: float, reply: Reply | None) -> None:
        """Count a sync message of `graph`; `reply` is None if there was none."""
        seen = None if reply is None else reply.sighting
        effect = None if reply is None else reply.effect
        self.monitor.record(
            Served(
                graph=graph,
                operation=UNKNOWN if seen is None else "push" if seen.wrote else "pull",
                micros=int((self._monotonic() - began) * 1_000_000),
                failed=reply is None or reply.status >= 500,
                away=reply is not None and reply.status == 503,
                pushed=effect is not None and effect.pushed,
                pulled=effect is not None and effect.pulled,
                conflicts=effect is not None and effect.conflicts,
                whole=effect is not None and effect.whole,
                wire=None if reply is None else reply.served,
            )
        )

    def exposition(self) -> str:
        """All that this process counted, in the text format of Prometheus. Reads the store: for a thread."""
        return exposition((*self.monitor.metrics(), *self.triggers.metrics()))

    def start(self) -> None:
        """The application begins to serve."""
        self._thread.start()

    def keep(self) -> None:
        """See to it that somebody looks, as long as a rollout decides to whom something is given, and tells people once
        one was taken back, by whomever."""
        governing = self._router.orders.governing
        if governing and _idle(self._looking):
            self._looking = asyncio.create_task(self.triggers.monitor())
        if any(one.state == "rolled_back" for one in governing) and _idle(self._telling):
            self._telling = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        while True:
            try:
                await asyncio.to_thread(lambda: run_now(self.people.look()))
            except Exception:
                logger.exception("people were not told")  # and are at the next look
            await asyncio.sleep(TELL_SECONDS)

    async def close(self) -> None:
        """Look no more."""
        tasks, self._looking, self._telling = (self._looking, self._telling), None, None
        for task in tasks:
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await asyncio.to_thread(self._thread.stop)

    def _put_aside(self, rollout: Rollout, why: str, case: Case | None) -> None:
        assert self._incidents is not None
        self._incidents.capture(rollout.id, actor=ACTOR, why=why, metrics=self.exposition, case=case)


def _idle(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()  # done: with the event loop that it ran on


class _Thread:
    """In which audits look for as long as their application serves. They read a slice at a time, which would keep an
    event loop from everything else."""

    def __init__(self, audits: Sequence[Audit]) -> None:
        self._audits = audits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if not self._audits:
            return
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._monitor())
        self._thread = threading.Thread(target=self._run, name="inbetweenies-audit", daemon=True)
        self._thread.start()

    async def _monitor(self) -> None:
        async with asyncio.TaskGroup() as together:
            for audit in self._audits:
                together.create_task(audit.monitor())

    def _run(self) -> None:
        assert self._loop is not None
        assert self._task is not None
        with contextlib.closing(self._loop), contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    def stop(self) -> None:
        """Returns when the last slice was read."""
        if self._thread is None or self._loop is None or self._task is None:
            return
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._thread = None
