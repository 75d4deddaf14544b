"""`ShadowComparison`: whether wire versions show one graph as each of them must, asked once or always (PROTOCOL 12.10).

What is compared is decided in `inbetweenies.rollout.shadow`. This is how a home with few requests gets a verdict on a
wire version, too: nobody has to speak it yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, NoReturn, TypeAlias, cast

from ..errors import LocalProtocolError, StoreError
from ..exchange import carry_out
from ..limits import LIMITS, Limits
from ..model import Context
from ..rollout.shadow import ROWS_MAX, Compared, Shadowed, compare
from ..store import Store
from ..stores.clock import wall_clock
from ..stores.keeper import run_now
from ..wire import WireVersion, load
from .integrity import BUDGET

_Timed: TypeAlias = tuple[Compared, float]  # what came of it, and the seconds that it took a processor

#: A round of `ShadowComparison.monitor` begins so many seconds after the one before at the earliest.
ROUND_S: Final = 60.0
#: Graphs that are compared in one round; those that come next by name in the next one.
SAMPLE: Final = 20
_TOLD_MAX: Final = 3  # mismatches of one graph that are told in words

logger = logging.getLogger(__name__)


def comparable(versions: Iterable[WireVersion]) -> tuple[Shadowed, ...]:
    """Those of some wire versions that say what they show of a whole graph."""
    needed = ("everything", "shown", "view")
    return tuple(cast(Shadowed, wire) for wire in versions if all(hasattr(wire, name) for name in needed))


class ShadowComparison:
    """Holds what wire versions show against the graphs that they show.

    Args:
        store: whose graphs.
        versions: which wire versions; without, all that are installed. Those that cannot be compared are left out.
        graphs: only these; without, all that the store has by then.
        limits: by which messages are read and told.
        rows_max: a graph with more current rows is left.
        sample: how many graphs `monitor` compares in a round.
        budget: the share of one processor that `monitor` takes, above 0 and up to 1.
        round_s: seconds from the beginning of a round to that of the next, at least.
        clock: microseconds since 1970.
        monotonic: seconds that never run backwards.
        busy: seconds that this thread has spent on a processor.
        wait: waits for so many seconds.
        aside: runs what takes longer than an event loop can wait.

    Raises:
        LocalProtocolError: there is no such budget.
    """

    def __init__(
        self,
        store: Store,
        *,
        versions: Iterable[WireVersion] | None = None,
        graphs: Iterable[str] | None = None,
        limits: Limits = LIMITS,
        rows_max: int | None = ROWS_MAX,
        sample: int = SAMPLE,
        budget: float = BUDGET,
        round_s: float = ROUND_S,
        clock: Callable[[], int] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        busy: Callable[[], float] = time.thread_time,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
        aside: Callable[[Callable[[], _Timed]], Awaitable[_Timed]] = asyncio.to_thread,
    ) -> None:
        if not 0 < budget <= 1:
            raise LocalProtocolError(f"expected a budget above 0 and up to 1; got {budget:g}")
        self._store = store
        self._wires = comparable(load().values() if versions is None else versions)
        self._only = None if graphs is None else tuple(graphs)
        self._limits = limits
        self._rows_max = rows_max
        self._sample = sample
        self._budget = budget
        self._round_s = round_s
        self._clock = clock
        self._monotonic = monotonic
        self._busy = busy
        self._wait = wait
        self._aside = aside
        self._last = ""
        self._compared: dict[str, tuple[Compared, int]] = {}

    async def compare(self, graph: str) -> Compared:
        """What is shown otherwise than it must, as of one moment. It waits for nothing but the store.

        Raises:
            StoreError: the graph could not be read.
        """
        context = Context(graph=graph, user="shadow", now=self._clock())
        return await carry_out(
            lambda: compare(self._wires, context, self._limits, rows_max=self._rows_max),
            self._store,
            graph,
            write=False,
        )

    async def monitor(self) -> NoReturn:
        """Compare some graphs, then the next ones, over and over, until this is cancelled."""
        while True:
            started = self._monotonic()
            await self._round()
            await self._wait(max(started + self._round_s - self._monotonic(), 0.0))

    def breaches(self) -> tuple[str, ...]:
        """What is shown wrongly, in words, as of when each graph was compared last."""
        return tuple(line for graph, (compared, _) in self._compared.items() for line in _words(graph, compared))

    @property
    def last_complete(self) -> Mapping[str, int]:
        """When each graph was compared last, in microseconds; without those that were too large."""
        return {graph: at for graph, (compared, at) in self._compared.items() if not compared.left}

    async def _round(self) -> None:
        try:
            graphs = await self._store.graph_names() if self._only is None else self._only
        except StoreError as error:
            logger.warning("graphs stay uncompared: %s", error)
            return
        self._compared = {graph: self._compared[graph] for graph in graphs if graph in self._compared}
        for graph in self._next(sorted(graphs)):
            self._last = graph
            try:
                compared, spent = await self._aside(partial(self._timed, graph))
            except Exception:  # it must go on with the others, and say so
                logger.exception("graph %s stays uncompared", graph)
                continue
            if compared.count:
                logger.error("graph %s: %s", graph, "; ".join(_words(graph, compared)))
            self._compared[graph] = compared, self._clock()
            await self._wait(spent * (1 / self._budget - 1))

    def _next(self, graphs: Sequence[str]) -> list[str]:
        """Those that come next by name, and after the last the first again."""
        start = bisect_right(graphs, self._last)
        return [*graphs[start:], *graphs[:start]][: self._sample]

    def _timed(self, graph: str) -> _Timed:
        started = self._busy()
        return run_now(self.compare(graph)), self._busy() - started


def _words(graph: str, compared: Compared) -> list[str]:
    told = [f"{graph}: {one.version}: {one.kind} {one.id}: {one.told}" for one in compared.mismatches[:_TOLD_MAX]]
    left = compared.count - len(told)
    return [*told, f"{graph}: and {left} more"] if left else told
