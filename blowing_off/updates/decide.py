"""What to do about a verdict: nothing, tell, ask, or install. Pure, and a value of what was done before is an argument.

The rules, each held by the simulation in the tests: only a release that the channel was just found to deliver is ever
named; of one (side, minimum) is spoken at most once a day; nothing is installed by itself that is not newer than what
runs, that failed here before, or that a person declined; and no release is tried by itself more than twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from .check import Compatible, ServerTooOld, Side, Unknown, UpdateRecommended, UpdateRequired, Verdict, release_of

Policy: TypeAlias = Literal["off", "notify", "prompt", "auto"]

HOUR_US: Final = 3600 * 1_000_000
DAY_US: Final = 24 * HOUR_US
JITTER: Final = 0.2  # of a day, added: clients that started together must not ask together
SPOKEN_MAX: Final = 3  # a day, whatever a server says: one that names another minimum each time is not to be heard
ATTEMPTS_MAX: Final = 2  # a second one for an update that was cut off, as by a power cut; no third
REMEMBERED_MAX: Final = 32  # of each kind; more are made only by somebody who tries to fill the disk


# --- what the channel answered ------------------------------------------------------------------------------------


class Wanted(Struct, frozen=True, kw_only=True):
    """What the channel is asked for: a release newer than `after`, at least `minimum`, and none of `avoid`."""

    after: str
    minimum: str | None = None
    avoid: tuple[str, ...] = ()

    @property
    def requirement(self) -> str:
        """As pip and uv read it."""
        least = [f">={self.minimum}"] if self.minimum is not None else []
        return ",".join([f">{self.after}", *least, *(f"!={release}" for release in self.avoid)])

    def fits(self, text: str) -> bool:
        """Whether `text` is such a release. A preliminary one is only for those who run one."""
        release, after = release_of(text), release_of(self.after)
        if release is None or after is None or release <= after:
            return False
        if release.is_prerelease and not after.is_prerelease:
            return False
        least = None if self.minimum is None else release_of(self.minimum)
        return (least is None or release >= least) and release not in map(release_of, self.avoid)


class Availability(Struct, frozen=True, kw_only=True):
    """What came of asking the channel just now: the release that it delivers, or why there is none.

    `failed` says that it could not answer, so that there may be one all the same.
    """

    release: str | None
    reason: str = ""
    failed: bool = False


#: The answer where the other side is behind: nothing that could be installed here would help.
NOT_HERE: Final = Availability(release=None, reason="it is the server that must be updated")


class UpdateNeeded(Struct, frozen=True, kw_only=True):
    """Somebody should update something. Made only with what the channel answered, so that no text can promise more.

    Attributes:
        side: who is behind.
        have: the release that runs here.
        minimum: what the server asked for, if it said so: names this need, and is not shown.
        required: the server does not take this release any more.
        available: what the channel delivers now.

    Raises:
        TypeError: `available` is no `Availability`.
    """

    side: Side
    have: str
    minimum: str | None
    required: bool
    available: Availability

    def __post_init__(self) -> None:
        told: Any = self.available
        if not isinstance(told, Availability):
            raise TypeError(f"expected what the channel answered, an Availability; got {type(told).__name__}")

    @property
    def key(self) -> str:
        return f"{self.side} {self.minimum or 'any'}"


# --- what was done before -----------------------------------------------------------------------------------------


class Memory(Struct, frozen=True, kw_only=True):
    """What is remembered from one run to the next. Times are in microseconds since 1970.

    Attributes:
        verdict, judged_at: the last verdict that was one, and when.
        checked_at, next_check: when a server was asked last, found out or not, and when it may be asked again.
        spoken: of which needs a person was told or asked, and when last.
        snoozed_until: a person asked to be left alone until then.
        skipped: releases that a person declined.
        bad: releases that were tried here and undone, and why.
        attempts: how often a release was tried without anybody asking for it.
        paused: why nothing is installed by itself until somebody runs an update; None if it is not paused.
    """

    verdict: str | None = None
    judged_at: int | None = None
    checked_at: int | None = None
    next_check: int = 0
    spoken: Mapping[str, int] = {}
    snoozed_until: int = 0
    skipped: tuple[str, ...] = ()
    bad: Mapping[str, str] = {}
    attempts: Mapping[str, int] = {}
    paused: str | None = None

    def due(self, now: int, *, refused: bool = False) -> bool:
        """Whether a server may be asked again. One that has just refused a sync may be asked after an hour."""
        if refused and (self.checked_at is None or abs(now - self.checked_at) >= HOUR_US):
            return True
        # A clock that was set back must not mean never.
        return now >= self.next_check or self.next_check - now > 2 * DAY_US

    def checked(self, verdict: Verdict, now: int, *, jitter: float) -> Memory:
        """A server was asked. `jitter` is from 0 to 1."""
        after = replace(self, checked_at=now, next_check=now + DAY_US + int(DAY_US * JITTER * jitter))
        if isinstance(verdict, Unknown):
            return after
        return replace(after, verdict=kind_of(verdict), judged_at=now)

    def spoke(self, needed: UpdateNeeded, now: int) -> Memory:
        """A person was told of `needed`, or asked."""
        return replace(self, spoken=_newest({**self.spoken, needed.key: now}))

    def snoozed(self, now: int) -> Memory:
        """A person said: later."""
        return replace(self, snoozed_until=now + DAY_US)

    def declined(self, release: str) -> Memory:
        """A person said: not this one."""
        return replace(self, skipped=(*(one for one in self.skipped if one != release), release)[-REMEMBERED_MAX:])

    def began(self, release: str) -> Memory:
        """An update to `release` begins by itself. Remembered before anything is touched."""
        count = self.attempts.get(release, 0) + 1
        rest = {name: tries for name, tries in self.attempts.items() if name != release}
        return replace(self, attempts=_last({**rest, release: count}))

    def failed(self, release: str, why: str) -> Memory:
        """An update to `release` was undone; nothing is installed by itself until a person has looked at it."""
        rest = {name: reason for name, reason in self.bad.items() if name != release}
        return replace(self, bad=_last({**rest, release: why}), paused=f"{release} did not work here: {why}")

    def succeeded(self, release: str) -> Memory:
        """`release` is installed and passed its test."""
        attempts = {name: tries for name, tries in self.attempts.items() if name != release}
        bad = {name: reason for name, reason in self.bad.items() if name != release}
        return replace(self, attempts=attempts, bad=bad, paused=None, snoozed_until=0)


def _last(known: dict[str, Any]) -> dict[str, Any]:
    return dict(list(known.items())[-REMEMBERED_MAX:])


def _newest(spoken: dict[str, int]) -> dict[str, int]:
    return dict(sorted(spoken.items(), key=lambda pair: pair[1])[-REMEMBERED_MAX:])


def kind_of(verdict: Verdict) -> str:
    """What a verdict is called on the wire, in files and in JSON documents."""
    return str(verdict.__struct_config__.tag)


# --- moves --------------------------------------------------------------------------------------------------------


class Nothing(Struct, frozen=True):
    """Leave everything and everybody alone; `why` is for the log."""

    why: str


class Tell(Struct, frozen=True):
    """Say so in one line, where nobody can answer."""

    needed: UpdateNeeded


class Ask(Struct, frozen=True):
    """Ask whoever is there."""

    needed: UpdateNeeded


class Install(Struct, frozen=True):
    """Install `release` without asking."""

    needed: UpdateNeeded
    release: str


Move: TypeAlias = Nothing | Tell | Ask | Install


def wanted_for(verdict: Verdict, memory: Memory, running: str) -> Wanted | None:
    """What to ask the channel for; None if nothing that it delivers would help."""
    if isinstance(verdict, UpdateRequired):
        return Wanted(after=running, minimum=verdict.minimum, avoid=tuple(memory.bad))
    if isinstance(verdict, UpdateRecommended):
        return Wanted(after=running, avoid=tuple(memory.bad))
    return None


def decide(
    verdict: Verdict,
    available: Availability | None,
    memory: Memory,
    *,
    running: str,
    policy: Policy,
    attended: bool,
    automatic: bool,
    now: int,
) -> Move:
    """What to do about `verdict`.

    Args:
        available: what the channel answered to `wanted_for`; None if it was not asked.
        attended: somebody is there to answer.
        automatic: how this program was installed lets it update itself.
    """
    if policy == "off":
        return Nothing("updates are switched off")
    if isinstance(verdict, Compatible | Unknown):
        return Nothing(kind_of(verdict))
    if isinstance(verdict, ServerTooOld):
        needed = UpdateNeeded(side="server", have=running, minimum=None, required=True, available=NOT_HERE)
        return Tell(needed) if _may_speak(memory, needed, now) else Nothing("told already")
    wanted = wanted_for(verdict, memory, running)
    if available is None or wanted is None:
        return Nothing("the channel was not asked")
    required = isinstance(verdict, UpdateRequired)
    if available.release is not None and not wanted.fits(available.release):
        available = Availability(release=None, reason="what it delivers is not what was asked for")
    needed = UpdateNeeded(side="client", have=running, minimum=verdict.minimum, required=required, available=available)
    release = available.release
    if release is None and not required:
        return Nothing("the channel has nothing newer")
    if release is not None and release in memory.skipped:
        return Nothing("declined")
    if policy == "auto" and automatic and release is not None and _may_install(memory, release):
        return Install(needed, release)
    if now < memory.snoozed_until <= now + DAY_US:
        return Nothing("later, a person said")
    if not _may_speak(memory, needed, now):
        return Nothing("told already")
    answerable = attended and automatic and release is not None and policy != "notify"
    return Ask(needed) if answerable else Tell(needed)


def _may_install(memory: Memory, release: str) -> bool:
    return memory.paused is None and memory.attempts.get(release, 0) < ATTEMPTS_MAX


def _may_speak(memory: Memory, needed: UpdateNeeded, now: int) -> bool:
    today = [key for key, at in memory.spoken.items() if abs(now - at) < DAY_US]
    return needed.key not in today and len(today) < SPOKEN_MAX
