"""`EmergencyTriggers`: takes a rollout back without anybody being asked (PROTOCOL 12.8).

Read `look`, which is done every few seconds by each process that serves one store: what this process has seen is put
beside what the others have, and what follows is carried out by whoever comes first. All that is decided is decided by
the policy (`rollout.policy`), and kept with all that it was decided on (`rollout.verdicts`). A backup is never restored
here: that loses what was written since, and is a person's to do.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from ..errors import InbetweeniesError, LocalProtocolError
from ..model import Document
from ..registry import DOCUMENT as REGISTRY
from ..registry import decisions_in, registry_of
from ..registry import document_of as registry_document
from ..rollout import canary, flags, states, triggers, verdicts
from ..rollout.canary import EVIDENCE, Evidence, seen_in
from ..rollout.cases import Case, Look, decided
from ..rollout.chain import Line
from ..rollout.flags import FEATURES, Catalogue, Feature, flags_in
from ..rollout.health import Metric, Sample, Tolerance
from ..rollout.kept import TEXT_CHARS_MAX, Cause
from ..rollout.policy import Policy
from ..rollout.states import Event, Rollout, Rollouts, rollouts_in
from ..rollout.triggers import Judged, Rung, Signals, Thresholds, Watch, Watches, due, watches_in
from ..rollout.verdicts import judge, record_in
from ..store import Store
from ..stores.clock import wall_clock
from ..stores.keeper import run_now
from ..wire import load
from .performance import PerformanceMonitor
from .policies import standard

#: Seconds between two looks: with three of them, all requests failing is ended within 15 s.
INTERVAL_S: Final = 5.0
#: Seconds after which whoever should have looked is taken to be dead.
OVERDUE_S: Final = 3 * INTERVAL_S
#: For so long what was taken back is still looked at, in microseconds: what is broken goes on to be so soon, or is
#: somebody else's doing.
FOLLOWED_US: Final = 30 * 60 * 1_000_000
#: So many broken invariants are told apart in a verdict; more of them say nothing more.
BREACHES_MAX: Final = 8
#: Who did it, where a move or a switch says so.
ACTOR: Final = "triggers"

#: Told of a rollout that is about to be taken back, why, and by which verdict, if by one. It must not take long.
BeforeRollback: TypeAlias = Callable[[Rollout, str, Case | None], object]

What: TypeAlias = Event | Literal["switch", "not_switched", "repair", "fix_forward"]

logger = logging.getLogger(__name__)


class Action(Struct, frozen=True, kw_only=True):
    """Something that was done, durably, or that somebody has to do.

    Attributes:
        rollout: the id of the rollout.
        what: the event that happened to it; ``switch``, its subject was disabled; ``not_switched``, it could not be, as
            nothing else would be served; ``repair``, something is still being broken, which only restarting the
            servers, who then replay their journals, or a person mends; ``fix_forward``, it does harm, and what was
            there before is below the security floor: it is held, and a person goes on to what is safe, or takes it
            back.
        why: in words.
        at: microseconds since 1970.
    """

    rollout: str
    what: What
    why: str
    at: int


class EmergencyTriggers:
    """Looks at the rollouts of one store, in one process of several.

    Args:
        store: where rollouts, and what is known of them, are kept.
        monitor: what this process sees.
        thresholds: what is too much.
        tolerance: what may be worse; that of `monitor` if not given.
        policy: asked at each look for the policy in force; that of `policies.standard` if not given.
        breaches: invariants that are broken, in words, found since it was last asked or still there.
        since_begun: whether a rollout is blamed only for what was not broken yet when it was first looked at.
        features: those that there are; what else is rolled out is a wire version.
        installed: the names of the wire versions that are installed; without them, those found here.
        on_action: told of each action after it was done. What it raises is logged.
        before_rollback: told of each rollout before it is taken back, once. What it raises is logged, and it is taken
            back nevertheless.
        clock: microseconds since 1970.
        monotonic: seconds that never run backwards.
        wait: waits for so many seconds.

    Attributes:
        last: what the last look of this process at each rollout came to, by its id.
        last_look: when a look was last finished, in seconds of `monotonic`; at first, when this was made.
    """

    def __init__(
        self,
        store: Store,
        monitor: PerformanceMonitor,
        *,
        thresholds: Thresholds | None = None,
        tolerance: Tolerance | None = None,
        policy: Callable[[], Policy] = standard,
        breaches: Callable[[], tuple[str, ...]] = tuple,
        since_begun: bool = False,
        features: Catalogue = FEATURES,
        installed: tuple[str, ...] | None = None,
        on_action: Callable[[Action], None] | None = None,
        before_rollback: BeforeRollback | None = None,
        clock: Callable[[], int] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._monitor = monitor
        self._thresholds = thresholds or Thresholds()
        self._tolerance = tolerance
        self._policy = policy
        self._breaches = breaches
        self._since_begun = since_begun
        self._features = features
        self._installed = installed
        self._on_action = on_action
        self._before_rollback = before_rollback
        self._cases: dict[str, Case] = {}  # the last verdict that led up the ladder, by id of the rollout
        self._captured: set[str] = set()  # whose rollback was told of
        self._clock = clock
        self._monotonic = monotonic
        self._wait = wait
        self._looking = threading.Lock()
        self._untold: tuple[str, ...] = ()  # breaches that were found while the store was away
        self._before: Mapping[str, frozenset[str]] = {}  # breaches that are no fault of a rollout, by its id
        self._unrecorded: tuple[tuple[Line, ...], Policy] | None = None
        self._blind = 0  # looks in a row at which something could not be told, or not be kept
        self.last: dict[str, Judged] = {}
        self.last_look = monotonic()

    # --- looked

    async def monitor(self) -> None:
        """Look every `INTERVAL_S`, until cancelled. Nothing that goes wrong ends it: it is logged, and counts as a look
        at which nobody could tell."""
        while True:
            try:
                await asyncio.to_thread(self.look)
            except InbetweeniesError as error:
                logger.warning("the rollouts were not looked at: %s: %s", type(error).__name__, error)
            except Exception:
                logger.exception("the rollouts were not looked at")
            await self._wait(INTERVAL_S)

    def look(self) -> tuple[Action, ...]:
        """Look once at all rollouts that may do harm, and do what follows; what this process did, in order. Waits for
        the store, so that it belongs in a thread.

        Raises:
            StoreError: the store could not. What was seen is not lost, and what is due is done at the next look.
        """
        done: list[Action] = []
        try:
            with self._looking:
                self._look(done)
                self.last_look = self._monotonic()
        finally:
            self._tell(done)
        return tuple(done)

    @property
    def overdue(self) -> bool:
        """Whether nobody has looked for `OVERDUE_S`."""
        return self._monotonic() - self.last_look > OVERDUE_S

    def metrics(self) -> tuple[Metric, ...]:
        """Whether this still looks, beside `PerformanceMonitor.metrics`."""
        return (
            Metric(
                name="inbetweenies_triggers_since_last_look_seconds",
                help="Time since the rollouts were last looked at; it should stay below 15 s.",
                kind="gauge",
                samples=(Sample(value=self._monotonic() - self.last_look),),
            ),
            Metric(
                name="inbetweenies_triggers_overdue",
                help="1 if the rollouts should have been looked at and were not.",
                kind="gauge",
                samples=(Sample(value=int(self.overdue)),),
            ),
        )

    def _look(self, done: list[Action]) -> None:
        blind, self._blind = self._blind, self._blind + 1  # until this look has come to its end
        all_told = self._find_breaches()
        rollouts = rollouts_in(run_now(self._store.document(states.DOCUMENT)))
        watches = watches_in(run_now(self._store.document(triggers.DOCUMENT)))
        now, failed = self._clock(), list[Exception]()
        harmful = [one for one in rollouts.rollouts.values() if _may_harm(one, watches.of(one), now)]
        if self._since_begun:
            self._before = triggers.standing(self._before, self._untold, [one.id for one in harmful])
        for rollout in harmful:
            try:
                self._look_at(rollout, blind=blind >= self._thresholds.silent, done=done)
            except Exception as error:
                # One that cannot be looked at must not keep the others from being taken back.
                failed.append(error)
                logger.exception("rollout %s was not looked at", rollout.id)
        if failed:
            raise failed[0]
        self._untold = ()
        if all_told:
            self._blind = 0

    def _find_breaches(self) -> bool:
        try:
            self._untold = tuple(dict.fromkeys((*self._untold, *self._breaches())))
        except Exception:
            # Who does not know of one kind of harm still looks for the others.
            logger.exception("nobody said which invariants are broken")
            return False
        return True

    def _broken_by(self, rollout: Rollout) -> tuple[str, ...]:
        before = self._before.get(rollout.id, frozenset())
        return tuple(one for one in self._untold if one not in before)

    def _look_at(self, rollout: Rollout, *, blind: bool, done: list[Action]) -> None:
        signals = self._signals(rollout)
        watch = self._watched(rollout, signals, blind=blind, done=done)
        if watch.routed_back:
            self._tell_before(
                _why(watch, "route_back"),
                lambda rollouts: [one for one in rollouts.rollouts.values() if one.id == watch.rollout],
            )
        self._move(watch, done)
        if watch.must_switch:
            self._switch(rollout, watch, done)
        if signals is not None and not rollout.over:
            self._keep_evidence(rollout)
        self._record()  # last: what was decided is done first

    def _signals(self, rollout: Rollout) -> Signals | None:
        try:
            return self._monitor.signals(rollout, tolerance=self._tolerance)
        except Exception:
            logger.exception("nobody said what was seen of rollout %s", rollout.id)
            return None

    def _watched(self, rollout: Rollout, signals: Signals | None, *, blind: bool, done: list[Action]) -> Watch:
        """The watch of this rollout after what was seen, as it is kept."""
        now, policy = self._clock(), self._policy()
        known, after = Watches(), Watches()
        judged: list[Judged] = []

        def looked(document: Document) -> bytes:
            nonlocal known, after
            known = after = watches_in(document)
            judged.clear()
            for one in seen:
                found, after = judge(after, rollout, one, self._thresholds, policy, now=now)
                judged.append(found)
            return triggers.document_of(after)

        try:
            told = self._told(rollout, signals, policy)
            # What nobody could tell was not kept either, if it was the store that was away.
            seen = (*[None] * (self._thresholds.silent if blind else 0), told)
            kept = self._amend(triggers.DOCUMENT, looked)
        except BaseException:
            if signals is not None:
                self._monitor.give_back(rollout, signals)
            raise
        self.last[rollout.id] = judged[-1]
        before, watch = known.of(rollout), judged[-1].watch
        if before.rung != watch.rung:
            looks = tuple(Look(signals=one, fence=rollout.fence, now=now) for one in seen)
            self._cases[rollout.id] = decided(rollout, before, self._thresholds, looks, policy)
        if kept and before.rung != watch.rung == "repair":
            done.append(Action(rollout=rollout.id, what="repair", why=_why(watch, "repair"), at=now))
        if kept and judged[-1].decision == "fix_forward" and watch.worries != before.worries:
            why = _printable("; ".join(judged[-1].evidence))
            done.append(Action(rollout=rollout.id, what="fix_forward", why=why, at=now))
        if kept and known.verdicts != after.verdicts:
            self._unrecorded = (after.verdicts, policy)
        return watch

    def _record(self) -> None:
        """Put verdicts that are new into the record. Until then they are beside the watch, so that this may fail."""
        if self._unrecorded is None:
            return
        lines, policy = self._unrecorded
        try:
            self._amend(
                verdicts.DOCUMENT,
                lambda document: verdicts.document_of(record_in(document).added(lines, policy)),
            )
        except InbetweeniesError as error:
            logger.warning("verdicts are not in the record yet: %s: %s", type(error).__name__, error)
        else:
            self._unrecorded = None

    def _told(self, rollout: Rollout, signals: Signals | None, policy: Policy) -> Signals | None:
        """What this process saw, with what is known besides."""
        advised = policy.advised.get(rollout.subject)
        broken = self._broken_by(rollout)
        if broken or advised is not None:
            signals = replace(
                signals or Signals(),
                breaches=tuple(_printable(one) for one in broken[:BREACHES_MAX]),
                advised=() if advised is None else (advised,),
            )
        if signals is None or policy.min_safe_version is None or rollout.subject in self._features:
            return signals
        installed = self._installed or tuple(load())
        decisions = decisions_in(run_now(self._store.document(REGISTRY)))
        accepted = [name for name in installed if decisions.of(name).state not in ("disabled", "retired")]
        return replace(signals, below_floor=policy.below_floor(rollout.subject, accepted, installed))

    def _keep_evidence(self, rollout: Rollout) -> None:
        evidence = self._monitor.evidence(rollout, tolerance=self._tolerance)
        told = evidence + Evidence(fence=rollout.fence, breaches=len(self._broken_by(rollout)))
        if told == Evidence(fence=rollout.fence):
            return
        try:
            self._amend(EVIDENCE, lambda document: canary.document_of(seen_in(document).add(rollout, told)))
        except BaseException:
            self._monitor.give_back(rollout, evidence)
            raise

    # --- done

    def trigger_rollback(
        self, reason: str, *, subject: Feature | str | None = None, actor: str = "operator"
    ) -> tuple[Action, ...]:
        """Take back the rollout of `subject`, or all that are under way, now. Durable on return; what was taken back
        already stays so, and is not among what is returned. Does not wait for a look that takes long.

        Raises:
            LocalProtocolError: there never was a rollout of `subject`, or the reason cannot be shown.
            StoreError: the store could not; nothing was changed.
        """
        cause = Cause(actor=actor, reason=reason, at=self._clock())
        name = subject.name if isinstance(subject, Feature) else subject
        done: list[Action] = []

        def chosen(rollouts: Rollouts) -> list[Rollout]:
            return [*rollouts.rollouts.values()] if name is None else [rollouts.of(name)]

        def taken_back(document: Document) -> bytes:
            done.clear()
            rollouts = rollouts_in(document)
            for rollout in chosen(rollouts):
                if (undo := rollout.undo) is not None:
                    rollouts = rollouts.moved(rollout.subject, undo, fence=rollout.fence, cause=cause)
                    done.append(Action(rollout=rollout.id, what=undo, why=reason, at=cause.at))
            return states.document_of(rollouts) if done else document.body

        self._tell_before(reason, chosen)
        self._amend(states.DOCUMENT, taken_back)
        self._tell(done)
        return tuple(done)

    def _tell_before(self, why: str, chosen: Callable[[Rollouts], Iterable[Rollout]]) -> None:
        """Tell of those rollouts that are to be taken back, as they are now, before they are."""
        if self._before_rollback is None:
            return
        try:
            for rollout in chosen(rollouts_in(run_now(self._store.document(states.DOCUMENT)))):
                if rollout.undo is not None and rollout.id not in self._captured:
                    self._captured.add(rollout.id)
                    self._before_rollback(rollout, why, self._cases.get(rollout.id))
        except Exception:
            # Taking it back is what matters.
            logger.exception("nobody was told that a rollout is about to be taken back")

    def _move(self, watch: Watch, done: list[Action]) -> None:
        """What the rollout still lacks, whoever else does it at the same time: once."""
        now = self._clock()
        action: Action | None = None

        def moved(document: Document) -> bytes:
            nonlocal action
            action, rollouts = None, rollouts_in(document)
            rollout = next((one for one in rollouts.rollouts.values() if one.id == watch.rollout), None)
            event = None if rollout is None else due(watch, rollout)
            if rollout is None or event is None:
                return document.body
            action = Action(
                rollout=rollout.id, what=event, why=_why(watch, "freeze" if event == "hold" else "route_back"), at=now
            )
            cause = Cause(actor=ACTOR, reason=action.why, at=now)
            return states.document_of(rollouts.moved(rollout.subject, event, fence=rollout.fence, cause=cause))

        self._amend(states.DOCUMENT, moved)
        if action is not None:
            done.append(action)

    def _switch(self, rollout: Rollout, watch: Watch, done: list[Action]) -> None:
        """Disable what is rolled out, and then remember that: who died in between does it again, and others do not."""
        cause = Cause(actor=ACTOR, reason=_why(watch, "switch"), at=self._clock())
        what: What = "switch"
        if rollout.subject in self._features:
            self._amend(
                flags.DOCUMENT,
                lambda document: flags.document_of(flags_in(document).disabled(rollout.subject, cause, self._features)),
            )
        else:
            try:
                self._amend(REGISTRY, lambda document: self._disabled(document, rollout.subject))
            except LocalProtocolError:
                what = "not_switched"

        def remembered(document: Document) -> bytes:
            watches = watches_in(document)
            return triggers.document_of(watches.put(replace(watches.of(rollout), switched=True)))

        if self._amend(triggers.DOCUMENT, remembered):
            done.append(Action(rollout=rollout.id, what=what, why=cause.reason, at=cause.at))

    def _disabled(self, document: Document, name: str) -> bytes:
        """The registry without this wire version. Raises `LocalProtocolError`: nothing else would be served."""
        decisions = decisions_in(document)
        if decisions.of(name).state in ("disabled", "retired"):
            return document.body
        after = decisions.but(name, replace(decisions.of(name), state="disabled"))
        registry_of(self._installed or tuple(load()), after)
        return registry_document(after)

    def _amend(self, name: str, change: Callable[[Document], bytes]) -> bool:
        """Whether `change` changed the document, which it may be asked for more than once. Looking again and again at
        what is as it was writes nothing."""
        while True:
            known = run_now(self._store.document(name))
            body = change(known)
            if body == known.body:
                return False
            if run_now(self._store.put_document(name, body, revision=known.revision)):
                return True

    def _tell(self, done: list[Action]) -> None:
        for action in done:
            logger.warning("rollout %s: %s: %s", action.rollout, action.what, action.why)
            try:
                if self._on_action is not None:
                    self._on_action(action)
            except Exception:
                # It is done, whether or not anybody can be told.
                logger.exception("nobody was told of rollout %s: %s", action.rollout, action.what)


def _may_harm(rollout: Rollout, watch: Watch, now: int) -> bool:
    """Whether to look at it: once it has changed something, and for a while after it was taken back for doing harm."""
    if rollout.over:
        return watch.routed_back and rollout.state != "finalized" and now - rollout.since < FOLLOWED_US
    return rollout.governs


def _why(watch: Watch, rung: Rung) -> str:
    """Why it came to this rung, as text that can be kept and shown."""
    return _printable(next((climb.why for climb in reversed(watch.log) if climb.rung == rung), ""))


def _printable(text: str) -> str:
    shown = "".join(one if one.isprintable() else "?" for one in text)[:TEXT_CHARS_MAX]
    return shown if shown.strip() else "not given"
