"""`PerformanceMonitor`: how those whom a rollout reaches are served, and at the same time the others (PROTOCOL 12.7).

Read `PerformanceMonitor.record`, which is called for each request, then `signals` and `evidence`, which take what was
counted since. Nothing is decided here: what is worse is said by `rollout.health`, what follows by `rollout.triggers`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from ..errors import InbetweeniesError, StoreError
from ..rollout import flags, states, triggers
from ..rollout.canary import Evidence, reaches
from ..rollout.flags import FEATURES, Catalogue, InForce
from ..rollout.health import Finding, Histogram, Metric, Sample, Tolerance, compare, exposition, verdict_of
from ..rollout.sequential import Arm
from ..rollout.states import WHOLE, Rollout, Rollouts
from ..rollout.triggers import Signals, Watches
from ..store import Store
from .polled import Polled

OPERATIONS_MAX: Final = 16  # told apart; a histogram of each, up to some tens of kilobytes, for either side
OTHER: Final = "other"  # all operations beyond these
GRAPHS_MAX: Final = 4_096  # of which it is remembered whether a rollout reaches them; a hundred bytes each
#: After so many requests a process has loaded what it needs, and only growth from there on says anything.
SETTLED: Final = 1_000
#: For so long what the others did waits for those whom a rollout reaches, in seconds: still the same time, and long
#: enough for a home that asks once a minute. Without it most of what few clients do is compared with nothing.
WAITS_S: Final = 60.0

_ARMS: Final = ("control", "canary")
_OUTCOMES: Final = ("ok", "failed")

_log: Final = logging.getLogger(__name__)


class Served(Struct, frozen=True, kw_only=True):
    """One request that was answered.

    Attributes:
        graph: whose it was.
        operation: what was asked for, such as ``pull``. Requests are compared with others of the same name, so that it
            must not depend on what is rolled out: no wire version in it.
        micros: how long it took, in microseconds.
        failed: whether it failed through a fault of ours. What was rightly refused did not fail.
        away: whether it failed because the store could not, which serves every version.
        pushed, pulled, conflicts: what a sync consisted of.
        whole: whether it was a whole sync, which is evidence if it did not fail.
        wire: the wire version it was served in. With it, what was served in another one is no evidence for the rollout
            of a wire version, though the rollout reaches its graph; without it everything is.
    """

    graph: str
    operation: str
    micros: int
    failed: bool
    away: bool = False
    pushed: bool = False
    pulled: bool = False
    conflicts: bool = False
    whole: bool = True
    wire: str | None = None


def resident_memory() -> int | None:
    """How many bytes of memory this process has; None if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class PerformanceMonitor:
    """What one process sees of the rollouts that are under way and reach somebody. Safe to share between threads.

    Memory is bounded whoever asks for what; it grows with the number of rollouts under way, which people start.

    Args:
        store: where rollouts are kept.
        tolerance: what may be worse.
        features: those that there are; what else is rolled out is a wire version.
        rollouts: those in force, if the caller knows them; by default they are read from the store twice a second.
        memory: bytes that this process has; None if that is not known.
        cpu: seconds of processor time that it used.
        monotonic: seconds that never run backwards.
    """

    def __init__(
        self,
        store: Store,
        *,
        tolerance: Tolerance | None = None,
        features: Catalogue = FEATURES,
        rollouts: Callable[[], Rollouts] | None = None,
        memory: Callable[[], int | None] = resident_memory,
        cpu: Callable[[], float] = time.process_time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tolerance = tolerance or Tolerance()
        self._features = features
        self._memory = memory
        self._cpu = cpu
        self._in_force = (
            rollouts
            or Polled(
                store, states.DOCUMENT, states.rollouts_in, otherwise=lambda _: Rollouts(), monotonic=monotonic
            ).value
        )
        self._watches = Polled(
            store, triggers.DOCUMENT, triggers.watches_in, otherwise=lambda _: Watches(), monotonic=monotonic
        )
        self._flags = Polled(
            store,
            flags.DOCUMENT,
            lambda document: flags.in_force(document, None, features),
            otherwise=_unknown,
            monotonic=monotonic,
        )
        self._lock = threading.Lock()
        self._followed: Rollouts | None = None
        self._seen: dict[str, _Seen] = {}
        self._served: dict[tuple[str, bool], Histogram] = {}
        self._operations: set[str] = set()
        self._count = 0
        self._monotonic = monotonic

    # --- counted

    def record(self, served: Served) -> None:
        """Count one request that was answered, for the side that it belongs to. Takes a few microseconds; never fails
        because the store is away."""
        rollouts = self._rollouts()
        with self._lock:
            if rollouts is not self._followed:
                self._follow(rollouts)
            operation = served.operation
            if operation not in self._operations:
                operation = self._admitted(operation)
            key = (operation, served.failed)
            times = self._served.get(key)
            if times is None:
                times = self._served[key] = Histogram()
            times.record(served.micros)
            self._count += 1
            for seen in self._seen.values():
                seen.record(served, operation)

    def _admitted(self, operation: str) -> str:
        if len(self._operations) >= OPERATIONS_MAX:
            return OTHER
        self._operations.add(operation)
        return operation

    def _rollouts(self) -> Rollouts:
        try:
            return self._in_force()
        except InbetweeniesError as error:
            _log.warning("going on with the rollouts that were last known: %s", error)
            return self._followed or Rollouts()

    def _follow(self, rollouts: Rollouts) -> None:
        self._followed = rollouts
        watched = {one.id: self._of(one) for one in rollouts.rollouts.values() if _watched(one)}
        # Whoever asked for signals may have read the store later than this.
        later = {name: seen for name, seen in self._seen.items() if _later(seen.rollout, rollouts)}
        self._seen = later | watched

    def _of(self, rollout: Rollout) -> _Seen:
        seen = self._seen.get(rollout.id)
        if seen is None:
            return _Seen(rollout, governs_wire=rollout.subject not in self._features)
        if seen.rollout.fence < rollout.fence:
            seen.move(rollout)
        return seen

    # --- taken

    def signals(self, rollout: Rollout, *, tolerance: Tolerance | None = None) -> Signals:
        """What was seen of `rollout` since this was last asked. Whoever cannot keep it gives it back (`give_back`).

        Requests count for the rollout as long as it lasts; what is worse, for its step alone. Those of the others are
        told together with some that it reaches, or after `WAITS_S`.
        """
        memory, now = self._memory(), self._monotonic()
        with self._lock:
            if not _watched(rollout):
                return Signals()
            seen = self._seen[rollout.id] = self._of(rollout)
            if seen.memory is None and self._count >= SETTLED:
                seen.memory = memory
            control, canary = (Arm(), Arm()) if seen.waits(now) else (side.take() for side in seen.sides)
            told = Signals(
                canary=canary,
                control=control,
                canary_run=seen.sides[True].run,
                control_run=seen.sides[False].run,
                memory=memory / seen.memory if memory and seen.memory else None,
            )
            pairs = seen.pairs()
        return replace(told, degraded=_degraded(_compared(pairs, tolerance or self._tolerance)))

    def evidence(self, rollout: Rollout, *, tolerance: Tolerance | None = None) -> Evidence:
        """The evidence for this very step of `rollout` that was gathered since this was last asked. Whoever cannot keep
        it gives it back (`give_back`)."""
        with self._lock:
            if not _watched(rollout):
                return Evidence(fence=rollout.fence)
            seen = self._seen[rollout.id] = self._of(rollout)
            if seen.rollout.fence != rollout.fence:  # who asks is late; the step that he means is over
                return Evidence(fence=rollout.fence)
            pairs = seen.pairs()
        degraded = _degraded(_compared(pairs, tolerance or self._tolerance))
        with self._lock:
            return seen.evidence(rollout, degraded)

    def give_back(self, rollout: Rollout, told: Signals | Evidence) -> None:
        """Take back what `signals` or `evidence` told and nobody could keep: it is told again with what comes next.
        Of a rollout, or as evidence of a step, that is over by now, it is of no use to anybody."""
        with self._lock:
            seen = self._seen.get(rollout.id)
            if seen is None:
                return
            if isinstance(told, Signals):
                for side, arm in zip(seen.sides, (told.control, told.canary), strict=True):
                    side.requests += arm.requests
                    side.failures += arm.failures
            else:
                seen.give_back(told)

    # --- judged

    def findings(self) -> Mapping[str, tuple[Finding, ...]]:
        """Of each rollout, by its id, what was compared (PROTOCOL 12.7), in microseconds, since its step began."""
        rollouts = self._rollouts()
        with self._lock:
            self._follow(rollouts)
            pairs = {name: seen.pairs() for name, seen in self._seen.items()}
        return {name: _compared(one, self._tolerance) for name, one in pairs.items()}

    def check_degradation(self) -> bool:
        """True if all is healthy: nothing takes longer for those whom a rollout reaches. It is also True as long as not
        enough was seen to say so, which keeps a rollout where it is; `findings` tells the two apart."""
        return all(verdict_of(found) != "degraded" for found in self.findings().values())

    # --- told

    def exposition(self) -> str:
        """`metrics` in the text format of Prometheus."""
        return exposition(self.metrics())

    def metrics(self) -> tuple[Metric, ...]:
        """All that was counted. Reads documents of the store, so that it belongs in a thread; what is in the store is
        left out while it is away and was never there."""
        told = (*self._requests(), *self._process(), *self._of_rollouts(), *self._of_features())
        return tuple(metric for metric in told if metric.samples)

    def _requests(self) -> tuple[Metric, ...]:
        with self._lock:
            served = {key: _copy(times) for key, times in sorted(self._served.items())}
        labels = {key: {"operation": key[0], "outcome": _OUTCOMES[key[1]]} for key in served}
        return (
            Metric(
                name="inbetweenies_requests_total",
                help="Requests that were answered.",
                kind="counter",
                samples=tuple(Sample(value=times.count, labels=labels[key]) for key, times in served.items()),
            ),
            Metric(
                name="inbetweenies_request_seconds",
                help="How long requests took.",
                kind="histogram",
                samples=tuple(Sample(value=times, labels=labels[key]) for key, times in served.items()),
            ),
        )

    def _process(self) -> tuple[Metric, ...]:
        memory = self._memory()
        return (
            Metric(
                name="inbetweenies_process_resident_memory_bytes",
                help="Memory that the process has.",
                kind="gauge",
                samples=() if memory is None else (Sample(value=memory),),
            ),
            Metric(
                name="inbetweenies_process_cpu_seconds_total",
                help="Processor time that the process used.",
                kind="counter",
                samples=(Sample(value=self._cpu()),),
            ),
        )

    def _of_rollouts(self) -> tuple[Metric, ...]:
        rollouts = self._rollouts()
        known = [rollouts.rollouts[name] for name in sorted(rollouts.rollouts)]
        watches = self._watches.value()
        with self._lock:
            self._follow(rollouts)
            counted = [
                (name, arm, *side.all)
                for name, seen in sorted(self._seen.items())
                for arm, side in zip(_ARMS, seen.sides, strict=True)
            ]
        return (
            Metric(
                name="inbetweenies_rollout_state",
                help="1 for the state in which the newest rollout of a subject is.",
                kind="gauge",
                samples=tuple(Sample(value=1, labels={"rollout": one.id, "state": one.state}) for one in known),
            ),
            Metric(
                name="inbetweenies_rollout_share",
                help="To which part of all graphs the subject is given, from 0 to 1.",
                kind="gauge",
                samples=tuple(Sample(value=one.share / WHOLE, labels={"rollout": one.id}) for one in known),
            ),
            Metric(
                name="inbetweenies_rollout_rung",
                help="How far up the ladder it is: 0 watch, 1 freeze, 2 route back, 3 switch, 4 repair.",
                kind="gauge",
                samples=tuple(Sample(value=watches.of(one).height, labels={"rollout": one.id}) for one in known),
            ),
            Metric(
                name="inbetweenies_rollout_requests_total",
                help="Requests of those whom a rollout reaches (canary), and of the others (control).",
                kind="counter",
                samples=tuple(
                    Sample(value=value, labels={"rollout": name, "arm": arm, "outcome": outcome})
                    for name, arm, requests, failures in counted
                    for outcome, value in zip(_OUTCOMES, (requests - failures, failures), strict=True)
                ),
            ),
        )

    def _of_features(self) -> tuple[Metric, ...]:
        try:
            in_force = self._flags.value()
        except InbetweeniesError:
            return ()
        return (
            Metric(
                name="inbetweenies_feature_enabled",
                help="1 if a feature is on.",
                kind="gauge",
                samples=tuple(
                    Sample(value=int(name in in_force.on), labels={"feature": name}) for name in sorted(in_force.known)
                ),
            ),
        )


def _unknown(error: StoreError) -> InForce:
    raise error


def _watched(rollout: Rollout) -> bool:
    return not rollout.over and (rollout.share > 0 or rollout.state == "shadow")


def _later(rollout: Rollout, rollouts: Rollouts) -> bool:
    known = rollouts.rollouts.get(rollout.subject)
    return known is None or known.fence < rollout.fence


# --- one rollout --------------------------------------------------------------------------------------------------


class _Side:
    """Requests of one side: those not told yet, all of them, and how many failed in a row up to now."""

    __slots__ = ("all", "failures", "requests", "run", "times")

    def __init__(self) -> None:
        self.requests = self.failures = self.run = 0
        self.all = (0, 0)
        self.times: dict[str, Histogram] = {}

    def record(self, operation: str, micros: int, failed: bool) -> None:
        self.requests += 1
        requests, failures = self.all
        self.all = (requests + 1, failures + failed)
        if failed:
            # How long it takes to fail is not how long it takes.
            self.failures += 1
            self.run += 1
            return
        self.run = 0
        times = self.times.get(operation)
        if times is None:
            times = self.times[operation] = Histogram()
        times.record(micros)

    def take(self) -> Arm:
        taken = Arm(requests=self.requests, failures=self.failures)
        self.requests = self.failures = 0
        return taken


class _Seen:
    """What was seen of one rollout. Requests and runs of failures are its own as long as it lasts, whoever holds it or
    goes on with it meanwhile; times and evidence are those of its step."""

    __slots__ = (
        "_conflicts",
        "_pulls",
        "_pushes",
        "_reached",
        "_sessions",
        "_since",
        "_told",
        "_wire",
        "memory",
        "rollout",
        "sides",
    )

    def __init__(self, rollout: Rollout, *, governs_wire: bool) -> None:
        self.rollout = rollout
        self.sides = (_Side(), _Side())  # control, canary
        self._since: float | None = None  # when what the others did began to wait
        self.memory: int | None = None  # what the process had when it was settled and saw this rollout
        self._wire = rollout.subject if governs_wire else None
        self._told: set[str] = set()
        self._reached: dict[str, bool] = {}
        self._sessions = self._pushes = self._pulls = self._conflicts = 0

    def record(self, served: Served, operation: str) -> None:
        reached = self._reached.get(served.graph)
        if reached is None:
            if len(self._reached) >= GRAPHS_MAX:
                self._reached.clear()
            reached = self._reached[served.graph] = reaches(self.rollout, served.graph)
        # Once there are no others left to compare with, a store that is away would look like a version that fails.
        alone = served.away and self.rollout.share == WHOLE
        self.sides[reached].record(operation, served.micros, served.failed and not alone)
        if served.failed or not served.whole:
            return
        # PROTOCOL 12.6: a path that was not taken proves nothing. In shadow nobody takes it, and all are compared.
        taken = reached and (self._wire is None or served.wire is None or served.wire == self._wire)
        if taken or self.rollout.state == "shadow":
            self._sessions += 1
            self._pushes += served.pushed
            self._pulls += served.pulled
            self._conflicts += served.conflicts

    def move(self, rollout: Rollout) -> None:
        """Another step: both sides begin anew, together."""
        self.rollout = rollout
        self._reached.clear()
        self._told.clear()
        self._sessions = self._pushes = self._pulls = self._conflicts = 0
        for side in self.sides:
            side.times.clear()

    def waits(self, now: float) -> bool:
        """Whether to wait for those whom it reaches: what is told of one side alone is compared with nothing."""
        control, canary = self.sides
        if canary.requests or not control.requests:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        return now - self._since < WAITS_S

    def pairs(self) -> tuple[tuple[str, Histogram, Histogram], ...]:
        """Times by operation, of canary and control, of what both did; copies."""
        control, canary = (side.times for side in self.sides)
        return tuple((name, _copy(canary[name]), _copy(control[name])) for name in sorted(canary.keys() & control))

    def evidence(self, rollout: Rollout, degraded: tuple[str, ...]) -> Evidence:
        if self.rollout.fence != rollout.fence:
            return Evidence(fence=rollout.fence)
        new = tuple(one for one in degraded if one not in self._told)
        self._told.update(new)
        taken = Evidence(
            fence=rollout.fence,
            sessions=self._sessions,
            pushes=self._pushes,
            pulls=self._pulls,
            conflicts=self._conflicts,
            degraded=new,
        )
        self._sessions = self._pushes = self._pulls = self._conflicts = 0
        return taken

    def give_back(self, told: Evidence) -> None:
        if told.fence != self.rollout.fence:
            return
        self._told.difference_update(told.degraded)
        self._sessions += told.sessions
        self._pushes += told.pushes
        self._pulls += told.pulls
        self._conflicts += told.conflicts


def _copy(times: Histogram) -> Histogram:
    copied = Histogram()
    copied.merge(times)
    return copied


def _compared(pairs: tuple[tuple[str, Histogram, Histogram], ...], tolerance: Tolerance) -> tuple[Finding, ...]:
    return tuple(one for name, canary, control in pairs for one in compare(name, canary, control, tolerance))


def _degraded(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    return tuple(one.what for one in findings if one.verdict == "degraded")
