"""When a rollout is stopped or taken back without anybody being asked, and how far that goes (PROTOCOL 12.8).

`decide` is called every few seconds with what was seen since the last time, and asks the policy what follows from it
(`policy`). It climbs a ladder and never comes down: freeze, route back, switch off, repair. The last rung, restoring a
backup, is for people; nothing here leads to it. What follows from where it stands is told by `due`, from what is kept
alone, so that a process that died between deciding and doing leaves nothing undone, and one that does it twice does it
once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import LocalProtocolError
from ..model import Document
from .chain import Line
from .kept import check_name, read, written
from .policy import Decision, Facts, Policy, Row, Stage
from .sequential import Arm, Bets
from .states import TRANSITIONS, Event, Rollout

#: The name under which a store keeps `Watches`.
DOCUMENT: Final = "watch"
LOG_MAX: Final = 50  # climbs that are remembered: four, and freezes that people have undone
RECENT: Final = 8  # verdicts that are kept here too, until they are in the record: a look makes two at most

Rung: TypeAlias = Literal["watch", "freeze", "route_back", "switch", "repair"]
#: PROTOCOL 12.8, from the bottom. "restore" would be next, and is a person's to do.
RUNGS: Final[tuple[Rung, ...]] = ("watch", "freeze", "route_back", "switch", "repair")
_ROUTED_BACK: Final = RUNGS.index("route_back")
_SWITCHED: Final = RUNGS.index("switch")
_STAGES: Final[Mapping[Rung, Stage]] = {"route_back": "routed_back", "switch": "switched", "repair": "repair"}


class Thresholds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PROTOCOL 12.8: what is too much.

    Attributes:
        alpha: how likely a rollout that does no harm may be taken back, all looks together.
        consecutive: so many failures in a row on one side, and not on the other one, at two looks in a row.
        memory: how many times as much of it as when the rollout began.
        silent: so many looks in a row for which nobody could tell what was seen.

    Raises:
        LocalProtocolError: one of them is out of range.
    """

    alpha: float = 1e-3
    consecutive: int = 5
    memory: float = 2.0
    silent: int = 3

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and self.consecutive >= 1 and self.memory > 1 and self.silent >= 1):
            raise LocalProtocolError(
                "expected an alpha between 0 and 1, counts from 1 and a growth of memory above 1; got others"
            )


class Signals(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen since the last look.

    Attributes:
        canary, control: requests of those whom the rollout reaches, and of the others.
        canary_run, control_run: how many failed in a row, up to now.
        breaches: invariants that are broken, in words: certain, and each enough.
        degraded: what became worse, in words (`health.compare`).
        memory: of the process, as a multiple of what it was when the rollout began; None if that is not known.
        advised: holes that are known in what is rolled out, in words.
        below_floor: why what would be served instead is not safe, in words; empty if it is.
    """

    canary: Arm = Arm()
    control: Arm = Arm()
    canary_run: int = 0
    control_run: int = 0
    breaches: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    memory: float | None = None
    advised: tuple[str, ...] = ()
    below_floor: str = ""


class Climb(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One climb: to which rung, when, and why."""

    rung: Rung
    at: int
    why: str


class Watch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of one rollout, and how far up the ladder that led.

    Attributes:
        rollout: its id. The watch of another one begins anew.
        rung: the highest that was reached.
        fence: of the rollout when it was last to be frozen.
        bets: whether canary fails more often than control.
        doubts: at how many looks in a row there were consecutive failures.
        silence: for how many looks in a row nobody could tell what was seen.
        worries: what it was frozen for. Each does so once: who resumes it after that knows.
        switched: what is rolled out was switched off as far as it could be. Once: who switches it on again knows why.
        rows: the rows of the policy that decided more than to watch.
        log: the newest `LOG_MAX` climbs, oldest first.

    Raises:
        LocalProtocolError: the log is too long.
    """

    rollout: str
    rung: Rung = "watch"
    fence: int = 0
    bets: Bets = Bets()
    doubts: int = 0
    silence: int = 0
    worries: frozenset[str] = frozenset()
    switched: bool = False
    rows: frozenset[str] = frozenset()
    log: tuple[Climb, ...] = ()

    def __post_init__(self) -> None:
        if len(self.log) > LOG_MAX:
            raise LocalProtocolError(f"expected at most {LOG_MAX} climbs; got {len(self.log)}")

    @property
    def height(self) -> int:
        return RUNGS.index(self.rung)

    @property
    def routed_back(self) -> bool:
        """Whether it was taken back, or is to be."""
        return self.height >= _ROUTED_BACK

    @property
    def must_switch(self) -> bool:
        """Whether what is rolled out is still to be switched off."""
        return self.height >= _SWITCHED and not self.switched


class Judged(Struct, frozen=True, kw_only=True):
    """PROTOCOL 12.11: what one look came to.

    Attributes:
        facts: what is known.
        row: the name of the row of the policy that they meet.
        decision: what that says.
        evidence: what it is known from, in words.
        watch: what is kept of it.
    """

    facts: Facts
    row: str
    decision: Decision
    evidence: tuple[str, ...]
    watch: Watch


def look(
    watch: Watch,
    signals: Signals | None,
    thresholds: Thresholds,
    *,
    fence: int,
    now: int,
    policy: Policy | None = None,
) -> Watch:
    """`decide`, for whoever asks only what is kept of it; by the policy that comes with this, if none is given."""
    if policy is None:
        from ..ops.policies import standard

        policy = standard()
    return decide(watch, signals, thresholds, policy, fence=fence, now=now).watch


def decide(
    watch: Watch, signals: Signals | None, thresholds: Thresholds, policy: Policy, *, fence: int, now: int
) -> Judged:
    """PROTOCOL 12.8: what is known after one more look, at `now` microseconds, at a rollout with this `fence`.

    `signals` is None if nobody could tell. No data is neither a sign of health, nor does a doubt pass because nobody
    came. What was seen may be told once only: of several who look at once, one puts what comes of it, and the others
    look anew.
    """
    if not watch.routed_back:
        watch = _seen(watch, signals, thresholds)
    # Once nobody is reached any more only what is still being broken leads further.
    certain = signals.breaches if watch.routed_back and signals else _certain(watch, signals, thresholds)
    worrying = {} if watch.routed_back else _worrying(watch, signals, thresholds)
    facts = _facts(watch, signals, thresholds, worrying)
    row = policy.decides(facts)
    below = (signals.below_floor,) if signals and signals.below_floor else ()
    return Judged(
        facts=facts,
        row=row.name,
        decision=row.decision,
        evidence=(*certain, *worrying.values(), *below),
        watch=_obeyed(watch, row, certain, worrying, below=below, fence=fence, now=now),
    )


def _facts(watch: Watch, signals: Signals | None, thresholds: Thresholds, worrying: Mapping[str, str]) -> Facts:
    stage = _STAGES.get(watch.rung, "reached")
    if signals is None:
        return Facts(stage=stage, silence="yes" if worrying else "no")
    broken: Literal["yes", "no"] = "yes" if signals.breaches else "no"
    floor: Literal["below", "above"] = "below" if signals.below_floor else "above"
    if stage != "reached":
        return Facts(stage=stage, breach=broken, floor=floor)
    certain = _won(watch, thresholds) or _doubted(watch)
    return Facts(
        breach=broken,
        failing="certain" if certain else "doubt" if watch.doubts else "no",
        worse="yes" if signals.degraded else "no",
        memory="yes" if "memory" in worrying else "no",
        security="yes" if signals.advised else "no",
        floor=floor,
    )


def _obeyed(
    watch: Watch,
    row: Row,
    certain: tuple[str, ...],
    worrying: Mapping[str, str],
    *,
    below: tuple[str, ...],
    fence: int,
    now: int,
) -> Watch:
    decision = row.decision
    if decision == "watch":
        return watch
    watch = replace(watch, rows=watch.rows | {row.name})
    if decision == "restore_by_person":
        return watch
    if decision not in ("freeze", "fix_forward"):
        # Never jumping means that each rung is named, not that harm is done meanwhile.
        above = RUNGS[watch.height + 1 : RUNGS.index(decision) + 1]
        return _climbed(watch, above, certain or tuple(worrying.values()) or (row.why,), now)
    # Each reason freezes once: who resumes it after that knows.
    forward = decision == "fix_forward"
    reasons = {f"row {row.name}"} if forward or certain or not worrying else worrying.keys()
    if not reasons - watch.worries:
        return watch
    why = (*(certain or tuple(worrying.values()) or (row.why,)), *(below if forward else ()))
    watch = replace(watch, fence=fence, worries=watch.worries.union(reasons))
    return watch if watch.routed_back else _climbed(watch, ("freeze",), why, now)


def _seen(watch: Watch, signals: Signals | None, thresholds: Thresholds) -> Watch:
    if signals is None:
        return replace(watch, silence=watch.silence + 1)
    # Where everybody fails, taking the rollout back helps nobody.
    doubted = signals.canary_run >= thresholds.consecutive > signals.control_run
    doubts = watch.doubts + 1 if doubted else 0
    return replace(
        watch,
        bets=watch.bets.after(signals.canary, signals.control),
        doubts=doubts if signals.canary.requests else watch.doubts,
        silence=0,
    )


def _won(watch: Watch, thresholds: Thresholds) -> bool:
    return watch.bets.wealth >= 1 / thresholds.alpha


def _doubted(watch: Watch) -> bool:
    return watch.doubts >= 2


def _certain(watch: Watch, signals: Signals | None, thresholds: Thresholds) -> tuple[str, ...]:
    if signals is None:
        return ()
    told = list(signals.breaches)
    if _won(watch, thresholds):
        ours, theirs = watch.bets.canary, watch.bets.control
        told.append(f"{ours.failures} of {ours.requests} failed, of the others {theirs.failures} of {theirs.requests}")
    if _doubted(watch):
        told.append(f"{signals.canary_run} failures in a row, at {watch.doubts} looks")
    return (*told, *signals.advised)


def _worrying(watch: Watch, signals: Signals | None, thresholds: Thresholds) -> dict[str, str]:
    if signals is None:
        told = f"nobody could tell what happened, at {watch.silence} looks"
        return {"silence": told} if watch.silence >= thresholds.silent else {}
    worries = {one: f"worse {one}" for one in signals.degraded}
    if watch.doubts:
        worries["run"] = f"{signals.canary_run} failures in a row"
    if signals.memory is not None and signals.memory >= thresholds.memory:
        worries["memory"] = f"{signals.memory:.1f} times the memory"
    return worries


def _climbed(watch: Watch, rungs: tuple[Rung, ...], why: tuple[str, ...], now: int) -> Watch:
    log = tuple(Climb(rung=rung, at=now, why="; ".join(why)) for rung in rungs)
    return replace(watch, rung=rungs[-1], log=(*watch.log, *log)[-LOG_MAX:])


def standing(
    before: Mapping[str, frozenset[str]], broken: Iterable[str], rollouts: Iterable[str]
) -> dict[str, frozenset[str]]:
    """What was broken already when each of these rollouts, by their ids, was first looked at, and is none of its doing;
    `before` is what this was at the look before, `broken` what is broken now."""
    now = frozenset(broken)
    return {one: before.get(one, now) for one in rollouts}


def due(watch: Watch, rollout: Rollout) -> Event | None:
    """The event that the rollout still lacks for where the ladder stands; None if nothing does.

    Raises:
        LocalProtocolError: the watch is of another rollout.
    """
    if watch.rollout != rollout.id:
        raise LocalProtocolError(f"expected the watch of rollout {rollout.id}; got that of another")
    if watch.routed_back:
        return rollout.undo
    # Whoever went on at the same time did not know; whoever resumed what was held did.
    since = rollout.log[watch.fence - rollout.fence :] if rollout.fence > watch.fence else ()
    held = any(move.event == "hold" for move in since)
    return "hold" if watch.rung == "freeze" and not held and (rollout.state, "hold") in TRANSITIONS else None


# --- all of them, as the store keeps them -------------------------------------------------------------------------


class Watches(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The watch of the newest rollout of each subject, and the newest verdicts.

    They are kept here together with what they decided, so that nothing is decided without one; the record
    (`verdicts.Record`) has those before them too.

    Raises:
        LocalProtocolError: one is under another subject than its own.
    """

    watches: Mapping[str, Watch] = {}
    verdicts: tuple[Line, ...] = ()

    def __post_init__(self) -> None:
        for subject, watch in self.watches.items():
            check_name(subject, "a subject")
            if _subject_and_serial(watch.rollout)[0] != subject:
                raise LocalProtocolError("expected each watch under its subject; got one under another")

    def of(self, rollout: Rollout) -> Watch:
        """The watch of this rollout; a new one if what is kept is of the one before."""
        kept = self.watches.get(rollout.subject)
        return Watch(rollout=rollout.id) if kept is None or kept.rollout != rollout.id else kept

    def put(self, watch: Watch) -> Watches:
        """With this watch; the same, if one of a later rollout of its subject is there: who is late changes nothing."""
        subject, serial = _subject_and_serial(watch.rollout)
        kept = self.watches.get(subject)
        if kept is not None and _subject_and_serial(kept.rollout)[1] > serial:
            return self
        return replace(self, watches={**self.watches, subject: watch})


def _subject_and_serial(rollout: str) -> tuple[str, int]:
    subject, _, serial = rollout.rpartition("/")
    if not (serial.isascii() and serial.isdigit()):
        raise LocalProtocolError("expected the id of a rollout to end with its serial; got another")
    return subject, int(serial)


_watches: Final = msgspec.json.Decoder(Watches)


def watches_in(document: Document) -> Watches:
    """What a document of the store holds. Raises `StoreCorrupt`: something else."""
    return read(_watches, document, "the watches of rollouts") or Watches()


def document_of(watches: Watches) -> bytes:
    """`watches` as the body of a document."""
    return written(watches)
