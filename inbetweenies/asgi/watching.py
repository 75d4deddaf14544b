"""How a server watches what is rolled out while it serves (PROTOCOL 12): requests are counted, and looked at.

One for each application. Of several processes on one store each counts its own requests, and looks at them by itself;
what they find comes together in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Final

from ..exchange import Reply
from ..ops.integrity import DataIntegrityMonitor
from ..ops.performance import PerformanceMonitor, Served
from ..ops.policies import standard
from ..ops.triggers import EmergencyTriggers
from ..rollout.health import exposition
from ..rollout.policy import Policy
from ..router import ProtocolFallback

#: What a refusal is counted as of which nobody knows what it would have become.
UNKNOWN: Final = "sync"


class Watching:
    """On the event loop of an application.

    Args:
        integrity: looks whether the logs are whole, in a thread of its own; what it finds takes rollouts back.
        monotonic: seconds.
        policy: asked for what decides about rollouts.
    """

    def __init__(
        self,
        router: ProtocolFallback,
        integrity: DataIntegrityMonitor | None,
        monotonic: Callable[[], float],
        *,
        policy: Callable[[], Policy] = standard,
    ) -> None:
        self.monitor = PerformanceMonitor(router.store, rollouts=lambda: router.orders.rollouts, monotonic=monotonic)
        self.triggers = EmergencyTriggers(
            router.store,
            self.monitor,
            policy=policy,
            breaches=tuple if integrity is None else integrity.breaches,
            clock=router.clock,
            monotonic=monotonic,
        )
        self._audit = None if integrity is None else _Audit(integrity)
        self._router = router
        self._monotonic = monotonic
        self._looking: asyncio.Task[None] | None = None

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
        if self._audit is not None:
            self._audit.start()

    def keep(self) -> None:
        """See to it that somebody looks, as long as a rollout decides to whom something is given."""
        if self._looking is not None and not self._looking.done():  # done: with the event loop that it ran on
            return
        if self._router.orders.governing:
            self._looking = asyncio.create_task(self.triggers.monitor())

    async def close(self) -> None:
        """Look no more."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking
        if self._audit is not None:
            await asyncio.to_thread(self._audit.stop)


class _Audit:
    """A thread that looks at logs for as long as its application serves. It reads a slice at a time, which would keep
    an event loop from everything else."""

    def __init__(self, integrity: DataIntegrityMonitor) -> None:
        self._integrity = integrity
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._integrity.monitor())
        self._thread = threading.Thread(target=self._run, name="inbetweenies-audit", daemon=True)
        self._thread.start()

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
