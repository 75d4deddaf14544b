"""The client's half of negotiation: what to offer, and what an answer or a refusal means for the next message. Pure.

The mirror of `inbetweenies.negotiation`. A `Course` is where one exchange with one server stands; `step` moves it on by
one `Signal`. Only a closed set of signals, each of them positively identified, ever moves it to another version: a
failure of any other kind leaves it where it is (PROTOCOL 1, law 10).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Literal, Self, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from .errors import LocalProtocolError, ServedVersionMismatch, VersionRefused
from .negotiation import DEPLOYED_DETAIL, ERRORS, GREASE, NAME, side_of

#: What may say that a version is not served. Any other status says nothing about versions (PROTOCOL 5.13).
STATUSES: Final = frozenset({400, 406, 410, 426})
#: Codes of PROTOCOL 2.7 that are about the version; a server that says one needs no list.
CODES: Final = frozenset(
    "version_required unsupported_version no_common_version version_disabled version_retired "
    "body_not_valid_for_version".split()
)
#: How long a hint is believed: a server that was updated without saying so is asked for more after a day.
HINT_US: Final = 24 * 3600 * 1_000_000


# --- what to offer ------------------------------------------------------------------------------------------------


class VersionPolicy(Struct, frozen=True):
    """Which of the wire versions that a client speaks it offers. Made by `exact`, `choice`, `latest_from`, `floor`
    and `ceiling`; order of age is that of the versions it speaks, never that of their names."""

    only: tuple[str, ...] | None = None
    lowest: str | None = None
    highest: str | None = None

    @classmethod
    def exact(cls, name: str) -> Self:
        """This version and no other."""
        return cls(only=(name,))

    @classmethod
    def choice(cls, *names: str) -> Self:
        """These versions, best first."""
        return cls(only=names)

    @classmethod
    def latest_from(cls, lowest: str | None = None, highest: str | None = None) -> Self:
        """The newest first, from `highest` down to `lowest`; without bounds, all that the client speaks."""
        return cls(lowest=lowest, highest=highest)

    @classmethod
    def floor(cls, lowest: str) -> Self:
        """This version and newer ones."""
        return cls(lowest=lowest)

    @classmethod
    def ceiling(cls, highest: str) -> Self:
        """This version and older ones."""
        return cls(highest=highest)

    def offer(self, spoken: Sequence[str]) -> tuple[str, ...]:
        """The versions to offer, best first, of those that a client has `spoken`, newest first.

        Raises:
            LocalProtocolError: none is left, or a bound is no version that the client speaks.
        """
        told = f"that this client speaks ({', '.join(spoken)})"
        if self.only is not None:
            found = tuple(name for name in dict.fromkeys(self.only) if name in spoken)
        else:
            for bound in (self.lowest, self.highest):
                if bound is not None and bound not in spoken:
                    raise LocalProtocolError(f"expected a bound {told}; got another")
            start = 0 if self.highest is None else spoken.index(self.highest)
            end = len(spoken) if self.lowest is None else spoken.index(self.lowest) + 1
            found = tuple(spoken[start:end])
        if not found:
            raise LocalProtocolError(f"expected a wire version {told}; got none of them")
        return found


# --- what a server says -------------------------------------------------------------------------------------------


class Served(Struct, frozen=True, kw_only=True):
    """A legal answer in `version`. `supported` is what the server would rather serve, if it said so (PROTOCOL 5.6)."""

    version: str
    supported: tuple[str, ...] = ()


class Turned(Struct, frozen=True, kw_only=True):
    """A refusal that is about the version. `supported` is empty where the server did not say what it serves."""

    code: str
    supported: tuple[str, ...] = ()


class Unversioned(Struct, frozen=True, kw_only=True):
    """A success that is no answer of the version asked for and names none, as a server gives that has never heard of
    versions. `likely` is the version of such servers; only its own kind of answer to a read confirms it."""

    likely: str


class Absent(Struct, frozen=True):
    """404 or 405: there is no such place. Says nothing about versions, but that a hint may have been a bad one."""


class Failed(Struct, frozen=True):
    """Anything else: no answer in time, 401, 403, 5xx, a page of HTML."""


Signal: TypeAlias = Served | Turned | Unversioned | Absent | Failed


def signal_of(*, status: int, code: str = "", detail: str = "", supported: Iterable[object] = ()) -> Signal:
    """PROTOCOL 5.13: what an HTTP error says about the version: most say nothing."""
    if status in (404, 405):
        return Absent()
    if status not in STATUSES:
        return Failed()
    names = tuple(name for name in supported if isinstance(name, str) and NAME.fullmatch(name) and name not in GREASE)
    if names or (code in CODES and status in (400, 410)):
        return Turned(code=code, supported=names)
    if status == 400 and detail == DEPLOYED_DETAIL:
        return Turned(code="unsupported_version")
    return Failed()


# --- what to do then ----------------------------------------------------------------------------------------------


class Hint(Struct, frozen=True, kw_only=True):
    """The version that served last. It orders the first attempt and nothing else (PROTOCOL 5.14).

    Attributes:
        key: of the server and the credential that it holds for.
        served: the version.
        revision: the server's registry then, where it told one.
        expires: microseconds since 1970.
    """

    key: str
    served: str
    revision: str | None = None
    expires: int


class Course(Struct, frozen=True, kw_only=True):
    """Where one exchange stands: `offer` is what may be served, best first, `named` what the next message is in.

    Attributes:
        refused: versions that the server positively does not serve, in this exchange.
        retried: the message that is under way was sent in another version before.
        moved: a preference of the server was followed, which is done once; else two answers could play ball with us.
    """

    offer: tuple[str, ...]
    named: str
    refused: frozenset[str] = frozenset()
    retried: bool = False
    moved: bool = False


#: ``use``: the answer counts; ``again``: send the same changes in `Course.named`; ``stop``: give up, lower nothing.
Verdict: TypeAlias = Literal["use", "again", "stop"]


def begin(offer: tuple[str, ...], hint: Hint | None, *, key: str, now: int, revision: str | None = None) -> Course:
    """The course of a new exchange. A `hint` for somebody else, an old one, and one of another registry are none."""
    told = hint is not None and hint.key == key and now < hint.expires and revision in (None, hint.revision)
    named = hint.served if hint is not None and told and hint.served in offer else offer[0]
    return Course(offer=offer, named=named)


def step(course: Course, signal: Signal) -> tuple[Course, Verdict]:
    """What the next message is in, and whether what was answered counts. At most one version retry per message."""
    if isinstance(signal, Served):
        return _served(course, signal)
    if isinstance(signal, Turned):
        # RFC 9368, 4: a list that holds what it refuses is a mistake or a trick.
        if course.named in signal.supported:
            return course, "stop"
        refused = course.refused | {course.named}
        return _again(replace(course, refused=refused), signal.supported or course.offer)
    if isinstance(signal, Unversioned):
        return _again(course, (signal.likely,) if signal.likely != course.named else ())
    if isinstance(signal, Absent) and course.named != course.offer[0]:
        # The hint was a bad one. To ask for more than it did lowers nothing.
        return _again(course, course.offer[:1])
    return course, "stop"


def _served(course: Course, signal: Served) -> tuple[Course, Verdict]:
    if signal.version != course.named:
        # Another one of those offered: the server cannot read what was asked. Nothing of the answer is used.
        if signal.version not in course.offer:
            return course, "stop"
        refused = course.refused | {course.named}
        return _again(replace(course, refused=refused), (*signal.supported, signal.version))
    after = replace(course, retried=False)
    best = _best(course, signal.supported)
    if best is None or best == course.named or course.moved:
        return after, "use"
    return replace(after, named=best, moved=True), "use"


def _again(course: Course, supported: Iterable[str]) -> tuple[Course, Verdict]:
    best = _best(course, supported)
    if best is None or course.retried:
        return course, "stop"
    return replace(course, named=best, retried=True), "again"


def _best(course: Course, supported: Iterable[str]) -> str | None:
    """The first of `supported`, in the server's order, that was offered and not refused."""
    return next((name for name in supported if name in course.offer and name not in course.refused), None)


def hint_of(course: Course, *, key: str, now: int, revision: str | None) -> Hint | None:
    """What to remember of a course that ended well; nothing, where the best version served: it comes first anyway."""
    if course.named == course.offer[0]:
        return None
    return Hint(key=key, served=course.named, revision=revision, expires=now + HINT_US)


def error_of(course: Course, signal: Signal, asked: str) -> VersionRefused:
    """The error for a course that stopped at a signal about the version; `asked` is what the message was in."""
    if isinstance(signal, Served):
        return ServedVersionMismatch(
            code="served_version_mismatch",
            expected=f"an answer in {asked}",
            got="one in another version; nothing was applied",
            requested=asked,
        )
    supported = signal.supported if isinstance(signal, Turned) else ()
    if asked in supported:
        got = f"a refusal of {asked} that lists it; the list was ignored"
        code = "unsupported_version"
    else:
        got = f"one that serves {_told(supported)}" if supported else "one that does not, and does not say what it does"
        code = signal.code if isinstance(signal, Turned) else "unsupported_version"
        if supported and code not in ("version_disabled", "body_not_valid_for_version"):
            code = "no_common_version"
    return ERRORS.get(code, VersionRefused)(
        code=code,
        expected=f"a server that serves {_told(course.offer)}",
        got=got,
        requested=asked,
        supported=supported,
        side=side_of(course.offer, supported),
    )


def _told(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:3])


__all__ = [
    "Absent",
    "Course",
    "Failed",
    "Hint",
    "Served",
    "Signal",
    "Turned",
    "Unversioned",
    "VersionPolicy",
    "begin",
    "error_of",
    "hint_of",
    "signal_of",
    "step",
]
