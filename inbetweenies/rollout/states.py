"""Where a rollout stands, and what may happen to it: one table, and one function that moves by it (PROTOCOL 12).

A rollout takes one wire version or one feature from nobody to everybody. It is moved by whoever knows its *fence*,
which rises with each move: of two controllers that move it at once, one does, and the other one is told to look again.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import LocalProtocolError
from ..model import Document
from .kept import Cause, check_name, read, written

#: The name under which a store keeps `Rollouts`.
DOCUMENT: Final = "rollouts"
#: Shares are counted in these: a million is everybody.
WHOLE: Final = 1_000_000
#: 1, 5, 25 and 50 percent.
STEPS: Final = (10_000, 50_000, 250_000, 500_000)
STEPS_MAX: Final = 100  # one for each percent
LOG_MAX: Final = 200  # moves that are remembered: more than any rollout needs that is not held again and again
NOTES_MAX: Final = 50  # what people said of how it goes: a day of it, every half hour

State: TypeAlias = Literal[
    "planned",
    "preflighted",
    "expanded",
    "shadow",
    "ramp",
    "full",
    "burn_in",
    "finalized",
    "held",
    "rolled_back",
    "aborted",
]
Event: TypeAlias = Literal["advance", "hold", "resume", "roll_back", "abort", "finalize"]

#: PROTOCOL 12.1. Where two states are named, `_next` says which: a ramp advances to its next step until there is none,
#: and what was held resumes where it was.
TRANSITIONS: Final[Mapping[tuple[State, Event], tuple[State, ...]]] = {
    ("planned", "advance"): ("preflighted",),
    ("planned", "abort"): ("aborted",),
    ("preflighted", "advance"): ("expanded",),
    ("preflighted", "abort"): ("aborted",),
    ("expanded", "advance"): ("shadow",),
    ("expanded", "roll_back"): ("rolled_back",),
    ("shadow", "advance"): ("ramp",),
    ("shadow", "hold"): ("held",),
    ("shadow", "roll_back"): ("rolled_back",),
    ("ramp", "advance"): ("ramp", "full"),
    ("ramp", "hold"): ("held",),
    ("ramp", "roll_back"): ("rolled_back",),
    ("full", "advance"): ("burn_in",),
    ("full", "hold"): ("held",),
    ("full", "roll_back"): ("rolled_back",),
    ("burn_in", "finalize"): ("finalized",),
    ("burn_in", "hold"): ("held",),
    ("burn_in", "roll_back"): ("rolled_back",),
    ("held", "resume"): ("shadow", "ramp", "full", "burn_in"),
    ("held", "roll_back"): ("rolled_back",),
}
#: A rollout that is over stays over; the next one of the same subject has another serial.
OVER: Final[frozenset[State]] = frozenset({"finalized", "rolled_back", "aborted"})

_UNGOVERNED: Final[frozenset[State]] = frozenset({"planned", "preflighted", "aborted"})
LISTED_MAX: Final = 1_000  # graphs on a list: people keep these by hand


class RolloutMoved(LocalProtocolError):
    """Somebody else moved the rollout since it was read. Nothing was changed; read it again and decide anew."""


class Move(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One move: what happened, where it led, why, and what was `seen`, in words, that allowed it."""

    event: Event | Literal["start", "list"]
    state: State
    cause: Cause
    seen: tuple[str, ...] = ()


class Rollout(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """PROTOCOL 12.1: one rollout.

    Attributes:
        subject: the wire version or feature.
        serial: tells apart the rollouts of one subject; counts from 1.
        state: where it stands.
        steps: the shares of the ramp in millionths, rising.
        step: which of them is in force; 0 outside of the ramp.
        held_in: where it was when it was held.
        fence: how often it, and all before it of this subject, were moved.
        since: when it came to this state and step, in microseconds since 1970.
        allow: graphs that are the first in the ramp.
        deny: graphs that are left out until it is finalized, though they be allowed.
        withheld: the one before it was rolled back. What that took back stays so until this one gives it.
        log: the newest `LOG_MAX` moves, oldest first.
        notes: the newest `NOTES_MAX` things that people said of how it goes, oldest first. They move nothing.

    Raises:
        LocalProtocolError: these contradict one another.
    """

    subject: str
    serial: int = 1
    state: State = "planned"
    steps: tuple[int, ...] = STEPS
    step: int = 0
    held_in: State | None = None
    fence: int = 0
    since: int
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    withheld: bool = False
    log: tuple[Move, ...] = ()
    notes: tuple[Cause, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.subject, "a subject")
        bounds = (0, *self.steps, WHOLE)
        if not self.steps or len(self.steps) > STEPS_MAX or any(a >= b for a, b in pairwise(bounds)):
            raise LocalProtocolError(
                f"expected 1 to {STEPS_MAX} shares of the ramp, each above the one before, all above 0 and below "
                f"{WHOLE} millionths; got {len(self.steps)} others"
            )
        if (self.held_in is not None) != (self.state == "held") or (
            self.held_in is not None and self.held_in not in TRANSITIONS["held", "resume"]
        ):
            raise LocalProtocolError("expected what is held to say in which state it was; got another rollout")
        if not 0 <= self.step < (len(self.steps) if self._at == "ramp" else 1):
            raise LocalProtocolError("expected a step of the ramp; got another")
        if self.serial < 1 or self.fence < 0 or len(self.log) > LOG_MAX or len(self.notes) > NOTES_MAX:
            raise LocalProtocolError("expected a serial from 1, a fence from 0 and a bounded log; got others")
        if max(len(self.allow), len(self.deny)) > LISTED_MAX:
            raise LocalProtocolError(f"expected lists of at most {LISTED_MAX} graphs; got longer ones")

    @property
    def id(self) -> str:
        """Names this rollout and never another one."""
        return f"{self.subject}/{self.serial}"

    @property
    def _at(self) -> State:
        return self.held_in or self.state

    @property
    def over(self) -> bool:
        return self.state in OVER

    @property
    def share(self) -> int:
        """PROTOCOL 12.3: to how many of a million graphs the subject is given. Holding changes nothing for them."""
        if self._at == "ramp":
            return self.steps[self.step]
        return WHOLE if self._at in ("full", "burn_in", "finalized") else 0

    @property
    def governs(self) -> bool:
        """PROTOCOL 12.3: whether the rollout says to whom the subject is given. Not before anything was changed, and
        not once it is finalized: then it stands as everything else does. To begin anew gives nobody what was rolled
        back, and neither does to think better of it."""
        return self.state != "finalized" and (self.withheld or self.state not in _UNGOVERNED)

    @property
    def undo(self) -> Event | None:
        """The one event that undoes it; None of one that is over."""
        return next((event for event in ("roll_back", "abort") if (self.state, event) in TRANSITIONS), None)


def moved(rollout: Rollout, event: Event, *, fence: int, cause: Cause, seen: tuple[str, ...] = ()) -> Rollout:
    """The rollout after `event`, which was decided upon when its fence was `fence`; `seen` says what allowed it.

    Raises:
        RolloutMoved: it has another fence by now.
        LocalProtocolError: this cannot happen to a rollout in this state.
    """
    _check_fence(rollout, fence)
    if (rollout.state, event) not in TRANSITIONS:
        allowed = ", ".join(known for state, known in TRANSITIONS if state == rollout.state)
        raise LocalProtocolError(
            f"expected one of {allowed or 'no events any more'} for rollout {rollout.id}, which is {rollout.state}; "
            f"got {event}"
        )
    state, step = _next(rollout, event)
    return replace(
        rollout,
        state=state,
        step=step,
        held_in=rollout.state if state == "held" else None,
        fence=fence + 1,
        since=cause.at,
        log=(*rollout.log, Move(event=event, state=state, cause=cause, seen=seen))[-LOG_MAX:],
    )


def noted(rollout: Rollout, cause: Cause) -> Rollout:
    """The rollout with what somebody says of how it goes. That moves nothing, so that its fence stays."""
    return replace(rollout, notes=(*rollout.notes, cause)[-NOTES_MAX:])


def listed(rollout: Rollout, *, allow: frozenset[str], deny: frozenset[str], fence: int, cause: Cause) -> Rollout:
    """The rollout with other lists; it stays where it is.

    Raises:
        RolloutMoved: it has another fence by now.
        LocalProtocolError: it is over, or a list is too long.
    """
    _check_fence(rollout, fence)
    if rollout.over:
        raise LocalProtocolError(f"expected a rollout that is under way; got {rollout.id}, which is {rollout.state}")
    log = (*rollout.log, Move(event="list", state=rollout.state, cause=cause))[-LOG_MAX:]
    return replace(rollout, allow=allow, deny=deny, fence=fence + 1, log=log)


def _check_fence(rollout: Rollout, fence: int) -> None:
    if fence != rollout.fence:
        raise RolloutMoved(
            f"expected rollout {rollout.id} at fence {fence}; got {rollout.fence}: it was moved meanwhile and is "
            f"{rollout.state}; read it again and decide anew"
        )


def _next(rollout: Rollout, event: Event) -> tuple[State, int]:
    targets = TRANSITIONS[rollout.state, event]
    if rollout.held_in is not None and event == "resume":
        return rollout.held_in, rollout.step
    if targets == ("held",):
        return "held", rollout.step
    if len(targets) == 1:
        return targets[0], 0
    above = rollout.step + 1
    return ("ramp", above) if above < len(rollout.steps) else ("full", 0)


# --- all of them, as the store keeps them -------------------------------------------------------------------------


class Rollouts(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The newest rollout of each subject."""

    rollouts: Mapping[str, Rollout] = {}

    def __post_init__(self) -> None:
        if any(name != rollout.subject for name, rollout in self.rollouts.items()):
            raise LocalProtocolError("expected each rollout under its subject; got one under another")

    def of(self, subject: str) -> Rollout:
        """The newest rollout of `subject`. Raises `LocalProtocolError`: there never was one."""
        if subject not in self.rollouts:
            known = ", ".join(sorted(self.rollouts)) or "none"
            raise LocalProtocolError(f"expected a rollout that was started, of {known}; got another subject")
        return self.rollouts[subject]

    def started(self, subject: str, *, steps: tuple[int, ...] = STEPS, cause: Cause) -> Rollouts:
        """With a new rollout of `subject`. Raises `LocalProtocolError`: one is under way, or this cannot be one."""
        last = self.rollouts.get(subject)
        if last is not None and not last.over:
            raise LocalProtocolError(
                f"expected that no rollout of {subject} is under way; got {last.id}, which is {last.state}: "
                f"finalize it or {last.undo} first"
            )
        serial, fence = (1, 0) if last is None else (last.serial + 1, last.fence + 1)
        return self._with(
            Rollout(
                subject=subject,
                serial=serial,
                steps=steps,
                fence=fence,
                since=cause.at,
                withheld=last is not None and last.governs,
                log=(Move(event="start", state="planned", cause=cause),),
            )
        )

    def moved(self, subject: str, event: Event, *, fence: int, cause: Cause, seen: tuple[str, ...] = ()) -> Rollouts:
        """With the rollout of `subject` moved (`moved`)."""
        return self._with(moved(self.of(subject), event, fence=fence, cause=cause, seen=seen))

    def noted(self, subject: str, cause: Cause) -> Rollouts:
        """With what somebody says of the rollout of `subject` (`noted`)."""
        return self._with(noted(self.of(subject), cause))

    def listed(
        self, subject: str, *, allow: frozenset[str], deny: frozenset[str], fence: int, cause: Cause
    ) -> Rollouts:
        """With other lists for the rollout of `subject` (`listed`)."""
        return self._with(listed(self.of(subject), allow=allow, deny=deny, fence=fence, cause=cause))

    def _with(self, rollout: Rollout) -> Rollouts:
        return Rollouts(rollouts={**self.rollouts, rollout.subject: rollout})


_rollouts: Final = msgspec.json.Decoder(Rollouts)


def rollouts_in(document: Document) -> Rollouts:
    """What a document of the store holds. Raises `StoreCorrupt`: something else."""
    return read(_rollouts, document, "the rollouts") or Rollouts()


def document_of(rollouts: Rollouts) -> bytes:
    """`rollouts` as the body of a document."""
    return written(rollouts)
