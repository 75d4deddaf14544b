"""Both halves of negotiation against one another, over every state there is: what `test_exhaustive` and the long tests
enumerate.

The server is the real `negotiate` over a registry, the client the real `begin`, `step`, `hint_of` and `error_of`, the
words between them those of HTTP as `signal_of` reads them. What must come out is told by `Truth`, which is written from
PROTOCOL 5 without any of their code. The first thing that is wrong is raised as `Broken`, with its story.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, product
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from inbetweenies import negotiation, offers
from inbetweenies.errors import LocalProtocolError, VersionRefused
from inbetweenies.negotiation import DEPLOYED_DETAIL
from inbetweenies.offers import Course, Hint, Served, Signal, Unversioned
from inbetweenies.registry import Registry

#: Newest first, and such that text would order them otherwise.
NAMES: Final = tuple(f"inbetweenies-v{number}" for number in (10, 9, 3, 2, 1))
FOREIGN: Final = "inbetweenies-v4"
GREASE: Final = "inbetweenies-v2570"
KEY: Final = "this server"
NOW: Final = 1_000

STATES: Final = ("unknown", "accepted", "offered", "deployed", "disabled", "retired")
CHAIN: Final = STATES[:4]

#: What comes instead of an honest answer to the first message.
SIGNALS: Final = (
    "honest",
    "timeout",
    "401",
    "403",
    "404",
    "500",
    "503 with a list",
    "HTML",
    "the words of a deployed server",
    "a list with what it refuses",
    "another version than any that was offered",
    "another success altogether",
)
#: Of these, the ones that are no reason to lower anything (law 10).
SILENT: Final = frozenset(SIGNALS) - {"honest", "the words of a deployed server", "another success altogether"}


class Broken(AssertionError):
    """Something that must hold does not, and how it came to it."""


class Case(Struct, frozen=True, kw_only=True):
    """One client before one server. `readable`: a body of a version that is not known there can be read as another."""

    offer: tuple[str, ...]
    states: tuple[tuple[str, str], ...]
    hint: Hint | None
    signal: str
    writes: bool
    readable: bool


class Truth:
    """What must come out, told from the states alone."""

    def __init__(self, offer: tuple[str, ...], named: tuple[tuple[str, str], ...]) -> None:
        states = dict(named)
        self.accepted = [name for name in states if states[name] in ("accepted", "offered", "deployed")]
        common = [name for name in states if name in self.accepted and name in offer]
        # The server's preference: what all of its instances have, what it tells of, the rest; of each the newest.
        ordered = [name for state in ("deployed", "offered", "accepted") for name in common if states[name] == state]
        self.best = ordered[0] if ordered else None
        self.disabled = [name for name in states if states[name] == "disabled"]
        self.side = behind(offer, self.accepted)


def behind(offer: Iterable[str], served: Iterable[str]) -> str:
    """Who is behind, where all of one side is newer than all of the other."""
    there, here = ([int(name.rpartition("v")[2]) for name in names] for names in (offer, served))
    if not here:
        return "unknown"
    return "server" if min(there) > max(here) else "client" if max(there) < min(here) else "unknown"


def registry_of(states: tuple[tuple[str, str], ...]) -> Registry | None:
    """The registry of a server in these states; None where nothing would be accepted."""

    def named(*among: str) -> tuple[str, ...]:
        return tuple(name for name, state in states if state in among)

    accepted = named("accepted", "offered", "deployed")
    try:
        return Registry(
            accepted=accepted,
            offered=named("offered", "deployed"),
            deployed=named("deployed"),
            disabled=frozenset(named("disabled")),
            retired=frozenset(named("retired")),
            fallback=states[-1][0],
            missing=states[-1][0],
        )
    except LocalProtocolError:
        return None


# --- one message --------------------------------------------------------------------------------------------------


def broken(case: Case, what: str) -> Broken:
    states = ", ".join(f"{name} {state}" for name, state in case.states)
    return Broken(
        f"{what}\n  offered {', '.join(case.offer)}; hint {case.hint and case.hint.served}; first: {case.signal}; "
        f"{'writes' if case.writes else 'reads'}\n  there: {states}"
    )


class Server:
    """An honest server, as far as its answers are about the version."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.known: dict[Any, Any] = {}

    def answer(self, case: Case, named: str, truth: Truth) -> Signal:
        key = (case.offer, named, case.writes, case.readable)
        if key not in self.known:
            self.known[key] = self._answer(case, named, truth)
        signal: Signal = self.known[key]
        return signal

    def _answer(self, case: Case, named: str, truth: Truth) -> Signal:
        offer = (GREASE, *case.offer)
        try:
            choice = negotiation.negotiate(named, offer, has_changes=case.writes, registry=self.registry)
        except VersionRefused as error:
            told = negotiation.problem(error)
            if error.side not in ("unknown", truth.side):
                raise broken(case, f"it is told that the {error.side} is behind") from error
            return offers.signal_of(
                status=told["status"], code=told["code"], detail=told["detail"], supported=told["supported"]
            )
        if choice.served not in truth.accepted:
            raise broken(case, f"{choice.served} is served, which is not accepted")
        if case.writes and named in truth.disabled:
            raise broken(case, "changes in a version that is off are read in another")
        supported = negotiation.told_to(offer, self.registry)
        if choice.source == "exact":
            return Served(version=choice.served, supported=supported if choice.better else ())
        if choice.served not in case.offer:
            raise broken(case, f"{choice.served} is served, which was not offered")
        if case.readable or choice.read_only:
            return Served(version=choice.served, supported=supported)
        return offers.signal_of(status=400, code="body_not_valid_for_version", detail="", supported=supported)


def injected(case: Case, named: str) -> Signal:
    """What a client makes of something that no honest server of ours says."""
    others = [name for name in case.offer if name != named]
    if case.signal == "another version than any that was offered":
        return Served(version=FOREIGN)
    if case.signal == "another success altogether":
        return Unversioned(likely=case.offer[-1])
    words: dict[str, dict[str, Any]] = {
        "401": {"status": 401, "supported": others, "code": "unsupported_version"},
        "403": {"status": 403, "detail": DEPLOYED_DETAIL},
        "404": {"status": 404, "supported": others},
        "500": {"status": 500, "detail": DEPLOYED_DETAIL},
        "503 with a list": {"status": 503, "supported": others, "code": "version_disabled"},
        "HTML": {"status": 400},
        "the words of a deployed server": {"status": 400, "detail": DEPLOYED_DETAIL},
        "a list with what it refuses": {"status": 400, "code": "unsupported_version", "supported": [named, *others]},
    }
    return offers.signal_of(**words.get(case.signal, {"status": 504}))


# --- one exchange -------------------------------------------------------------------------------------------------


def check(case: Case, server: Server, truth: Truth) -> None:
    """One client before one server: nothing unsafe, nothing lowered without a reason, the best within two messages."""
    course = offers.begin(case.offer, case.hint, key=KEY, now=NOW)
    hint, expected = case.hint, case.offer[0]
    if hint is not None and hint.key == KEY and hint.expires > NOW and hint.served in case.offer:
        expected = hint.served
    if course.named != expected:
        raise broken(case, f"it begins with {course.named}, not with {expected}")
    if case.signal != "honest":
        disturbed(case, course, server, truth)
        # The sync ended badly, so the hint is forgotten, and the next one must go as if nothing had been.
        course = offers.begin(case.offer, None, key=KEY, now=NOW)
    honest(case, course, server, truth)


def disturbed(case: Case, course: Course, server: Server, truth: Truth) -> None:
    """The first message is answered by something else; if it is sent again, that is answered honestly or not."""
    before = course.named
    after, verdict = offers.step(course, injected(case, before))
    if after.named not in case.offer:
        raise broken(case, f"{after.named} is tried, which is not offered")
    if case.signal in SILENT:
        if case.offer.index(after.named) > case.offer.index(before):
            raise broken(case, f"{case.signal} lowers the version to {after.named}")
        if verdict == "use":
            raise broken(case, f"{case.signal} counts as an answer")
    if verdict != "again":
        return
    if after.named == before:
        raise broken(case, "the same message is sent in the same version again")
    for second in ({"status": 504}, {"status": 400, "detail": DEPLOYED_DETAIL}):
        if offers.step(after, offers.signal_of(**second))[1] != "stop":
            raise broken(case, "a message is sent a third time")
    final, verdict = offers.step(after, server.answer(case, after.named, truth))
    if verdict == "again":
        raise broken(case, "a message is sent a third time")
    if verdict == "use" and after.named not in truth.accepted:
        raise broken(case, f"{after.named} is used, which is not accepted")
    if final.named not in case.offer:
        raise broken(case, f"{final.named} is tried, which is not offered")


def honest(case: Case, course: Course, server: Server, truth: Truth) -> None:
    """Every message is answered as it should be."""
    used: list[str] = []
    sent = 0
    while True:
        asked = course.named
        signal = server.answer(case, asked, truth)
        course, verdict = offers.step(course, signal)
        sent += 1
        if course.named not in case.offer:
            raise broken(case, f"{course.named} is tried, which is not offered")
        if verdict == "stop":
            refused(case, course, signal, asked, truth)
            break
        if verdict == "use":
            if asked not in truth.accepted or not isinstance(signal, Served) or signal.version != asked:
                raise broken(case, f"an answer to {asked} is used, which is not accepted, or not what was served")
            used.append(asked)
            if course.named == asked:
                break
        if sent == 2:
            raise broken(case, f"{truth.best} is common and best; after two messages used are {used}")
    if truth.best not in used if used else truth.best is not None:
        raise broken(case, f"{truth.best} is common and best; used are {used}")
    if used:
        remembered(case, course, truth)


def refused(case: Case, course: Course, signal: Signal, asked: str, truth: Truth) -> None:
    """It gave up: rightly, and with an error that is true as far as can be known there."""
    if truth.best is not None:
        raise broken(case, f"it gives up although {truth.best} is common to both")
    error = offers.error_of(course, signal, asked)
    if error.side != behind(case.offer, error.supported):
        raise broken(case, f"it says that the {error.side} is behind")
    if not set(error.supported) <= set(truth.accepted):
        raise broken(case, "it tells of versions that are not there")


def remembered(case: Case, course: Course, truth: Truth) -> None:
    """What is remembered makes the next sync one message long, and is nothing but an order."""
    hint = offers.hint_of(course, key=KEY, now=NOW, revision="1")
    again = offers.begin(case.offer, hint, key=KEY, now=NOW, revision="1")
    if again.named != truth.best:
        raise broken(case, f"the next sync begins with {again.named}, not with {truth.best}")
    for changed in (
        offers.begin(case.offer, hint, key="another server", now=NOW),
        offers.begin(case.offer, hint, key=KEY, now=NOW, revision="2"),
        offers.begin(case.offer, hint, key=KEY, now=NOW + offers.HINT_US),
    ):
        if changed.named != case.offer[0]:
            raise broken(case, "a hint that does not hold any more still orders")


# --- all there is -------------------------------------------------------------------------------------------------


def subsets(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every offer that can be made of these versions, newest first."""
    for size in range(1, len(names) + 1):
        yield from combinations(names, size)


def hints(names: tuple[str, ...]) -> list[Hint | None]:
    """No hint, one of each version, and two that must have no effect: another server's, and an old one."""
    plain = Hint(key=KEY, served=names[-1], expires=NOW + 1)
    each = [replace(plain, served=name) for name in names]
    return [None, *each, replace(plain, key="another server"), replace(plain, expires=NOW)]


#: Whether a message writes, and whether a body of an unknown version can be read as one of another.
MODES: Final = tuple(product((False, True), (False, True)))


def enumerate_all(
    names: tuple[str, ...] = NAMES,
    states: tuple[str, ...] = STATES,
    signals: tuple[str, ...] = SIGNALS,
    modes: tuple[tuple[bool, bool], ...] = MODES,
    *,
    most: float = float("inf"),
) -> int:
    """Check every case over these versions, or a little more than `most` of them; how many there were."""
    count = 0
    rest = list(product(hints(names), signals, modes))
    every_offer = list(subsets(names))
    for chosen in product(states, repeat=len(names)):
        named = tuple(zip(names, chosen, strict=True))
        registry = registry_of(named)
        if registry is None:
            continue
        if count >= most:
            break
        server = Server(registry)
        for offer in every_offer:
            truth = Truth(offer, named)
            for hint, signal, (writes, readable) in rest:
                case = Case(offer=offer, states=named, hint=hint, signal=signal, writes=writes, readable=readable)
                check(case, server, truth)
                count += 1
    return count


def enumerate_switches(names: tuple[str, ...], states: tuple[str, ...]) -> int:
    """Every client through every pair of registries, there and back again; how many there were."""
    count = 0
    registries = [
        (named, Server(registry))
        for chosen in product(states, repeat=len(names))
        if (registry := registry_of(named := tuple(zip(names, chosen, strict=True)))) is not None
    ]
    for (one, first), (other, second), offer in product(registries, registries, subsets(names)):
        hint: Hint | None = None
        for named, server in ((one, first), (other, second), (one, first)):
            case = Case(offer=offer, states=named, hint=hint, signal="honest", writes=True, readable=True)
            truth = Truth(offer, named)
            check(case, server, truth)
            # What is remembered of a sync that came to the best; of one that failed, nothing.
            hint = None
            if truth.best is not None:
                hint = offers.hint_of(Course(offer=offer, named=truth.best), key=KEY, now=NOW, revision=None)
        count += 1
    return count
