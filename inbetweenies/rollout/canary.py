"""Whom a rollout reaches, and whether it may reach more of them (PROTOCOL 12.5, 12.6).

What is given to a graph is decided by a bucket that comes from its name alone, so that every process agrees, and a
graph that has something keeps it as the share grows. The unit is the graph: devices of one home speak one version.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import LocalProtocolError
from ..model import Document
from ..registry import Registry
from .kept import Cause, check_name, read, written
from .states import WHOLE, Rollout, Rollouts, State

#: The name under which a store keeps `Seen`.
EVIDENCE: Final = "evidence"

#: Where going on needs time and evidence: what came before was done by whoever went on, and served nobody.
GATED: Final[frozenset[State]] = frozenset({"shadow", "ramp", "full", "burn_in"})

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


# --- whom it reaches ----------------------------------------------------------------------------------------------


def bucket(flag: str, graph: str, *, salt: str = "") -> int:
    """PROTOCOL 12.5: which of a million buckets `graph` is in, for this flag and salt. The same in every process and
    every language; ``inbetweenies/testing/buckets.json`` has examples."""
    hashed = blake2b(_before_graph(flag, salt) + _part(graph), digest_size=8)
    return int.from_bytes(hashed.digest(), "big") % WHOLE


@lru_cache(256)  # asked for with each request, always about the few things that are rolled out
def _before_graph(flag: str, salt: str) -> bytes:
    return _part(flag) + _part(salt)


def _part(text: str) -> bytes:
    part = text.encode(errors="surrogatepass")
    return len(part).to_bytes(4, "big") + part


def share_of(percent: float) -> int:
    """`percent` in millionths. Raises `LocalProtocolError`: it is not between 0 and 100."""
    if not 0 <= percent <= 100:
        raise LocalProtocolError(f"expected a percentage between 0 and 100; got {percent}")
    return round(percent * (WHOLE // 100))


def reaches(rollout: Rollout, graph: str) -> bool:
    """PROTOCOL 12.5: whether what is rolled out is given to `graph`. Going on takes it from nobody."""
    if rollout.share == 0 or rollout.state == "finalized":
        return rollout.share > 0
    if graph in rollout.deny:
        return False
    return graph in rollout.allow or bucket(rollout.subject, graph, salt=str(rollout.serial)) < rollout.share


def seen_by(graph: str, registry: Registry, rollouts: Rollouts, *, enhanced: bool = True) -> Registry:
    """PROTOCOL 12.5: the registry as it is for one graph.

    A version that is being rolled out is offered only to whom it reaches. Unless `enhanced` (the feature
    ``enhanced_sync``), nothing is offered but what a peer is served that knows no version, if that is. What is accepted
    stays so: whoever is in the middle of a sync finishes it. What the registry itself does not offer, nobody is.
    """
    governed = {name: one for name, one in rollouts.rollouts.items() if one.governs}
    offered = [name for name in registry.offered if name not in governed or reaches(governed[name], graph)]
    if not enhanced:
        offered = [name for name in offered if name in (registry.fallback, registry.missing)] or offered
    deployed = [name for name in registry.deployed if name in offered]
    if (told := (tuple(offered), tuple(deployed))) == (registry.offered, registry.deployed):
        return registry
    # Peers keep what they learned of a registry for as long as it has this name.
    name = f"{registry.revision}-{blake2b(_encode(told), digest_size=4).hexdigest()}"
    return replace(registry, offered=told[0], deployed=told[1], revision=name)


# --- whether it may go on -----------------------------------------------------------------------------------------


class Bar(Struct, frozen=True, kw_only=True):
    """PROTOCOL 12.6: what a step has to have seen before the next one. A path that nobody took proves nothing.

    Raises:
        LocalProtocolError: one of them is below 0.
    """

    wait_us: int = 30 * 60 * 1_000_000  # what does harm only after a while has half an hour to do so
    sessions: int = 50
    pushes: int = 1
    pulls: int = 1
    conflicts: int = 1

    def __post_init__(self) -> None:
        if min(getattr(self, name) for name in self.__struct_fields__) < 0:
            raise LocalProtocolError("expected a bar of numbers from 0; got one below")


class Evidence(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What was seen of those whom a rollout reaches.

    Attributes:
        fence: of the rollout at the time; what was seen at another step says nothing about this one.
        sessions: whole syncs; of them with a push, with a pull, with a conflict: `pushes`, `pulls`, `conflicts`.
        breaches: how often an invariant was broken.
        degraded: what became worse for them than for the others, in words.

    Raises:
        LocalProtocolError: one of them is below 0.
    """

    fence: int
    sessions: int = 0
    pushes: int = 0
    pulls: int = 0
    conflicts: int = 0
    breaches: int = 0
    degraded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.fence, self.sessions, self.pushes, self.pulls, self.conflicts, self.breaches) < 0:
            raise LocalProtocolError("expected evidence of numbers from 0; got one below")

    def __add__(self, other: Evidence) -> Evidence:
        """Both, if they are of one step; else what is of the later one. What is worse is so until the step is over."""
        if self.fence != other.fence:
            return max(self, other, key=lambda one: one.fence)
        return Evidence(
            fence=self.fence,
            sessions=self.sessions + other.sessions,
            pushes=self.pushes + other.pushes,
            pulls=self.pulls + other.pulls,
            conflicts=self.conflicts + other.conflicts,
            breaches=self.breaches + other.breaches,
            degraded=tuple(dict.fromkeys((*self.degraded, *other.degraded))),
        )


class Seen(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The evidence for each rollout by its id, gathered by all processes that serve one store."""

    evidence: Mapping[str, Evidence] = {}

    def __post_init__(self) -> None:
        for name in self.evidence:
            check_name(name, "the id of a rollout")

    def of(self, rollout: Rollout) -> Evidence:
        """What was seen of this rollout; nothing, if all of it is of another step."""
        found = self.evidence.get(rollout.id)
        return found if found is not None and found.fence == rollout.fence else Evidence(fence=rollout.fence)

    def add(self, rollout: Rollout, evidence: Evidence) -> Seen:
        """With more evidence, of this rollout, whose subject has no other."""
        others = {name: one for name, one in self.evidence.items() if name.rpartition("/")[0] != rollout.subject}
        # Whoever is late, and adds what is of an earlier step, takes nothing from this one.
        known = self.evidence.get(rollout.id, Evidence(fence=rollout.fence))
        return Seen(evidence={**others, rollout.id: known + evidence})


_seen: Final = msgspec.json.Decoder(Seen)


def seen_in(document: Document) -> Seen:
    """What a document of the store holds. Raises `StoreCorrupt`: something else."""
    return read(_seen, document, "the evidence for rollouts") or Seen()


def document_of(seen: Seen) -> bytes:
    """`seen` as the body of a document."""
    return written(seen)


def missing(rollout: Rollout, evidence: Evidence, bar: Bar, *, now: int) -> tuple[str, ...]:
    """PROTOCOL 12.6: what keeps the rollout from going on, in words; nothing if it may. `now` is in microseconds."""
    if rollout.state not in GATED:
        return ()
    if evidence.fence != rollout.fence:
        evidence = Evidence(fence=rollout.fence)
    # A clock that was set back is not time that has passed.
    seconds = -(-(rollout.since + bar.wait_us - now) // 1_000_000)
    short = {
        name: getattr(bar, name) - getattr(evidence, name) for name in ("sessions", "pushes", "pulls", "conflicts")
    }
    return (
        *(f"{left} more {name}" for name, left in ({"seconds": seconds} | short).items() if left > 0),
        *([f"no broken invariants (there were {evidence.breaches})"] if evidence.breaches else []),
        *(f"no worse {name}" for name in evidence.degraded),
    )


class NotYet(LocalProtocolError):
    """The rollout may not go on yet. `missing` says what it lacks; nothing was changed."""

    def __init__(self, rollout: Rollout, lacking: tuple[str, ...]) -> None:
        self.missing = lacking
        super().__init__(
            f"expected enough time and evidence for rollout {rollout.id} to leave {rollout.state}; it still needs "
            f"{', '.join(lacking)}"
        )


def went_on(
    rollouts: Rollouts,
    subject: str,
    evidence: Evidence,
    bar: Bar,
    *,
    event: Literal["advance", "finalize"] = "advance",
    fence: int,
    cause: Cause,
) -> Rollouts:
    """With the rollout of `subject` one step on.

    Raises:
        RolloutMoved: it has another fence by now, since somebody else went on.
        NotYet: it has not seen enough.
        LocalProtocolError: it cannot go on at all.
    """
    before = rollouts.of(subject)
    after = rollouts.moved(subject, event, fence=fence, cause=cause, seen=_seen_of(before, evidence, cause.at))
    if lacking := missing(before, evidence, bar, now=cause.at):
        raise NotYet(before, lacking)
    return after


def _seen_of(rollout: Rollout, evidence: Evidence, now: int) -> tuple[str, ...]:
    """What a step saw, in words: what remains of it once the evidence is that of the next one."""
    if rollout.state not in GATED:
        return ()
    if evidence.fence != rollout.fence:
        evidence = Evidence(fence=rollout.fence)
    counts = (f"{getattr(evidence, name)} {name}" for name in ("sessions", "pushes", "pulls", "conflicts"))
    return (f"lasted {max(now - rollout.since, 0) // 1_000_000} s", *counts, f"{evidence.breaches} broken invariants")
