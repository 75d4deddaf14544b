"""What people do to a rollout: start it, look at it, let it go on, hold it, take it back, finish it (PROTOCOL 12).

Whatever is done is durable on return, and in force in every process that serves the store within a second. Each step is
one move behind the fence: a process that dies between two of them leaves a state from which `start`, or `rollback`,
goes on; of two who move at once one does, and the other is told. Taking back alone asks for no fence: whoever does that
means it, wherever the rollout has come to meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from msgspec import Struct

from ..errors import LocalProtocolError, StoreCorrupt
from ..model import Document
from ..registry import DOCUMENT as REGISTRY
from ..registry import decisions_in, registry_of
from ..rollout.canary import EVIDENCE, Bar, Evidence, missing, seen_in, went_on
from ..rollout.flags import FEATURES, Catalogue, Feature
from ..rollout.kept import Cause
from ..rollout.states import (
    DOCUMENT,
    STEPS,
    TRANSITIONS,
    Event,
    Rollout,
    RolloutMoved,
    Rollouts,
    State,
    document_of,
    rollouts_in,
)
from ..rollout.triggers import DOCUMENT as WATCHES
from ..rollout.triggers import Watch, watches_in
from ..router import FALLBACK
from ..store import Store
from ..stores import amend
from ..stores.clock import wall_clock
from ..stores.keeper import run_now
from ..wire import load
from .canary import CanaryDeployment

#: What speaks against starting, in words; nothing if all is well.
Preflight: TypeAlias = Callable[[], tuple[str, ...]]

#: Who is allowed, and who is denied.
Lists: TypeAlias = tuple[frozenset[str], frozenset[str]]
#: What these events are called here and on the command line.
VERBS: Final = {"hold": "pause", "roll_back": "rollback"}
#: Where nobody has been given anything and `start` goes on.
BEGINNING: Final[frozenset[State]] = frozenset({"planned", "preflighted", "expanded"})


class NotReady(LocalProtocolError):
    """The preflight found something. `against` says what; the rollout stays planned, and `start` looks again."""

    def __init__(self, rollout: Rollout, against: tuple[str, ...]) -> None:
        self.against = against
        super().__init__(
            f"expected nothing to speak against rollout {rollout.id}, which stays {rollout.state}; got: "
            f"{'; '.join(against)}. Put that right and start it again"
        )


class Done(Struct, frozen=True, kw_only=True):
    """What was done: the rollout before and after; both the same if there was nothing left to do. `before` is None of
    one that was started."""

    before: Rollout | None
    after: Rollout

    @property
    def changed(self) -> bool:
        return self.before != self.after


class Standing(Struct, frozen=True, kw_only=True):
    """Where a rollout stands, and what is known of it.

    Attributes:
        evidence: what was seen at this step.
        missing: what keeps it from going on, in words (PROTOCOL 12.6).
        watch: how far up the ladder that led (PROTOCOL 12.8).
    """

    rollout: Rollout
    evidence: Evidence
    bar: Bar
    missing: tuple[str, ...]
    watch: Watch


class RolloutControl:
    """The rollouts of one store.

    Args:
        store: where they are kept; one that does not wait for an event loop, as ours do not.
        features: those that can be rolled out, beside the wire versions that are installed.
        bar: what a step has to have seen before the next one.
        clock: microseconds since 1970.

    Whatever is asked of it raises `StoreError` if the store could not; then nothing was changed.
    """

    def __init__(
        self,
        store: Store,
        *,
        features: Catalogue = FEATURES,
        bar: Bar | None = None,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self.store = store
        self._features = features
        self._bar = bar or Bar()
        self._clock = clock

    # --- looking --------------------------------------------------------------------------------------------------

    def rollouts(self) -> Rollouts:
        """The newest rollout of each subject."""
        return rollouts_in(self._document(DOCUMENT))

    def standing(self, subject: Feature | str) -> Standing:
        """Where the rollout of `subject` stands. Raises `LocalProtocolError`: there never was one."""
        rollout = self.rollouts().of(_name(subject))
        evidence, watch, unreadable = Evidence(fence=rollout.fence), Watch(rollout=rollout.id), []
        # Whoever has to take something back needs to see where it stands, whatever else is broken.
        try:
            evidence = seen_in(self._document(EVIDENCE)).of(rollout)
        except StoreCorrupt:
            unreadable.append("evidence that can be read")
        try:
            watch = watches_in(self._document(WATCHES)).of(rollout)
        except StoreCorrupt:
            unreadable.append("a watch that can be read")
        lacking = missing(rollout, evidence, self._bar, now=self._clock())
        return Standing(rollout=rollout, evidence=evidence, bar=self._bar, missing=(*unreadable, *lacking), watch=watch)

    def standings(self) -> list[Standing]:
        """Where all rollouts stand; those under way first."""
        rollouts = self.rollouts().rollouts
        return [self.standing(name) for name in sorted(rollouts, key=lambda name: (rollouts[name].over, name))]

    def graphs(self) -> tuple[str, ...]:
        """The names of the graphs that there are by now."""
        return run_now(self.store.graph_names())

    # --- going on -------------------------------------------------------------------------------------------------

    def start(
        self,
        subject: Feature | str,
        *,
        steps: tuple[int, ...] | None = None,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        preflight: Preflight = lambda: (),
        actor: str = "operator",
        reason: str = "not given",
    ) -> Done:
        """Start a rollout and take it to `shadow`, or go on with one that was started and did not get there.

        Args:
            steps: the shares of the ramp in millionths; those of `STEPS`, or of the one that is gone on with.
            allow, deny: graphs to put on its lists.
            preflight: asked once before anything is changed.

        Raises:
            LocalProtocolError: `subject` is nothing that can be rolled out, or the lists or the steps are none, or it
                is further than that.
            NotReady: the preflight found something.
            RolloutMoved: somebody else has started or moved it meanwhile.
        """
        name, cause = _name(subject), self._cause(actor, reason)
        before = self.rollouts().rollouts.get(name)
        lists = frozenset(allow), frozenset(deny)
        now = self._begun(name, before, steps or STEPS, lists, cause) if before is None or before.over else before
        if now is before:
            now = self._taken_up(now, steps, lists, cause)
        while now.state in BEGINNING:
            seen: tuple[str, ...] = ()
            if now.state == "planned":
                self.check(name)
                if against := preflight():
                    raise NotReady(now, against)
                seen = ("nothing was found that speaks against it",)
            now = self._moved(now, "advance", self._cause(actor, reason), seen)
        return Done(before=before, after=now)

    def check(self, subject: str) -> None:
        """Raise `LocalProtocolError` unless `subject` can be rolled out: a feature, or a wire version that is offered
        while everybody whom the rollout does not reach is offered another one."""
        if subject in self._features:
            return
        installed = tuple(load())
        if subject not in installed:
            raise LocalProtocolError(
                f"expected a wire version that is installed, of {', '.join(installed)}, or a feature, of "
                f"{', '.join(self._features)}; got another"
            )
        if subject == FALLBACK:
            raise LocalProtocolError(
                f"expected a wire version that not everybody needs; got {subject}, which whoever names none is served"
            )
        registry = registry_of(installed, decisions_in(self._document(REGISTRY)), fallback=FALLBACK, missing=FALLBACK)
        if subject not in registry.offered:
            raise LocalProtocolError(
                f"expected a wire version that is offered, since a rollout only says to whom; got {subject}, which is "
                f"not: `inbetweenies versions enable {subject}` first"
            )
        held_back = {name for name, one in self.rollouts().rollouts.items() if one.governs}
        if not set(registry.offered) - held_back - {subject}:
            raise LocalProtocolError(
                f"expected another wire version for whom the rollout does not reach; got {subject}, the only one that "
                "is offered to everybody: `inbetweenies versions list` shows what the others are"
            )

    def advance(
        self,
        subject: Feature | str,
        *,
        fence: int | None = None,
        actor: str = "operator",
        reason: str = "not given",
    ) -> Done:
        """Take a rollout one step on, with the evidence that the store holds; `fence` as it was last seen.

        Raises:
            RolloutMoved: it has another fence.
            NotYet: it lacks time or evidence.
            LocalProtocolError: it cannot go on from where it is.
        """
        before = self._of(subject, "advance")
        if before.state in BEGINNING:
            raise LocalProtocolError(
                f"expected a rollout that came to shadow; got {before.id}, which is {before.state}: start it again, "
                "which looks whether it may begin"
            )
        evidence = self._evidence(before, fence)
        canary = CanaryDeployment(self.store, before.subject, bar=self._bar, clock=self._clock)
        return Done(before=before, after=canary.increase_rollout(evidence, actor=actor, reason=reason))

    def finalize(
        self,
        subject: Feature | str,
        *,
        fence: int | None = None,
        actor: str = "operator",
        reason: str = "not given",
    ) -> Done:
        """End a rollout that reached everybody. It cannot be taken back from then on. Raises as `advance` does."""
        before = self._of(subject, "finalize")
        evidence, cause = self._evidence(before, fence), self._cause(actor, reason)

        def finished(rollouts: Rollouts) -> Rollouts:
            name = before.subject
            return went_on(rollouts, name, evidence, self._bar, event="finalize", fence=evidence.fence, cause=cause)

        return Done(before=before, after=self._amended(finished).of(before.subject))

    # --- holding and taking back ----------------------------------------------------------------------------------

    def pause(self, subject: Feature | str, *, actor: str = "operator", reason: str = "not given") -> Done:
        """Hold a rollout where it is; whom it reaches keeps it.

        Raises:
            RolloutMoved: somebody else moved it meanwhile.
            LocalProtocolError: it cannot be held where it is.
        """
        before = self._of(subject, "hold")
        return Done(before=before, after=self._moved(before, "hold", self._cause(actor, reason)))

    def resume(self, subject: Feature | str, *, actor: str = "operator", reason: str = "not given") -> Done:
        """Let a rollout that was held go on. Its step begins anew: time and evidence count from now. Raises as `pause`
        does."""
        before = self._of(subject, "resume")
        return Done(before=before, after=self._moved(before, "resume", self._cause(actor, reason)))

    def abort(self, subject: Feature | str, *, actor: str = "operator", reason: str = "not given") -> Done:
        """Give up a rollout that has changed nothing yet. Raises as `pause` does."""
        before = self._of(subject, "abort")
        return Done(before=before, after=self._moved(before, "abort", self._cause(actor, reason)))

    def rollback(self, subject: Feature | str, *, actor: str = "operator", reason: str = "not given") -> Done:
        """Undo a rollout from wherever it is. No row is touched. Of one that is undone already nothing is changed.

        Raises:
            RolloutMoved: it ended and another one was started meanwhile.
            LocalProtocolError: there never was one, or it is finalized.
        """
        before = self.rollouts().of(_name(subject))
        if before.over and before.state != "finalized":
            return Done(before=before, after=before)
        cause, found = self._cause(actor, reason), before

        def undone(rollouts: Rollouts) -> Rollouts:
            nonlocal found
            found = rollouts.of(before.subject)
            if found.serial != before.serial:
                raise RolloutMoved(f"expected rollout {before.id} to be the newest; got {found.id}: look at that one")
            if found.state == "finalized":
                raise LocalProtocolError(
                    f"expected a rollout that is under way; got {found.id}, which is finalized and cannot be undone"
                )
            return rollouts if found.undo is None else _move(rollouts, found, found.undo, cause)

        after = self._amended(undone).of(before.subject)
        return Done(before=found, after=after)

    def relist(
        self,
        subject: Feature | str,
        *,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        drop: Iterable[str] = (),
        actor: str = "operator",
        reason: str = "not given",
    ) -> Done:
        """Put graphs on the allow list or the deny list, from wherever they are, or `drop` them from both.

        Raises:
            RolloutMoved: somebody else moved it meanwhile.
            LocalProtocolError: it is over, a graph is named twice, or a list becomes too long.
        """
        before = self.rollouts().of(_name(subject))
        lists = _relisted(before, frozenset(allow), frozenset(deny), frozenset(drop))
        return Done(before=before, after=self._listed(before, lists, self._cause(actor, reason)))

    def note(self, subject: Feature | str, *, actor: str = "operator", reason: str) -> Done:
        """Say how a rollout goes, also of one that is over. It stays where it is, and its evidence counts on; only the
        next update (`rollout.report`) is due later.

        Raises:
            LocalProtocolError: there never was one, or nothing is said that can be shown.
        """
        before, cause = self.rollouts().of(_name(subject)), self._cause(actor, reason)
        after = self._amended(lambda rollouts: rollouts.noted(before.subject, cause)).of(before.subject)
        return Done(before=before, after=after)

    # --- parts ----------------------------------------------------------------------------------------------------

    def _begun(
        self,
        name: str,
        last: Rollout | None,
        steps: tuple[int, ...],
        lists: Lists,
        cause: Cause,
    ) -> Rollout:
        self.check(name)
        _relisted(None, *lists, frozenset())

        def begun(rollouts: Rollouts) -> Rollouts:
            if (found := rollouts.rollouts.get(name)) != last and found is not None:
                raise RolloutMoved(
                    f"expected that nobody else starts {name}; got {found.id}, which is {found.state}: look at that one"
                )
            started = rollouts.started(name, steps=steps, cause=cause)
            allow, deny = lists
            fence = started.of(name).fence
            return started.listed(name, allow=allow, deny=deny, fence=fence, cause=cause) if allow | deny else started

        return self._amended(begun).of(name)

    def _taken_up(
        self,
        rollout: Rollout,
        steps: tuple[int, ...] | None,
        lists: Lists,
        cause: Cause,
    ) -> Rollout:
        if rollout.state not in BEGINNING | {"shadow"}:
            raise LocalProtocolError(
                f"expected no rollout of {rollout.subject} that is under way; got {rollout.id}, which is "
                f"{rollout.state}: {_verbs(rollout.state)} that one"
            )
        if steps is not None and steps != rollout.steps:
            raise LocalProtocolError(
                f"expected the steps that rollout {rollout.id} was started with; got others: "
                f"{_verb(rollout.undo)} it to start one with these"
            )
        return self._listed(rollout, _relisted(rollout, *lists, frozenset()), cause)

    def _listed(self, rollout: Rollout, lists: Lists, cause: Cause) -> Rollout:
        if lists == (rollout.allow, rollout.deny):
            return rollout
        allow, deny = lists
        name, fence = rollout.subject, rollout.fence
        return self._amended(lambda all_: all_.listed(name, allow=allow, deny=deny, fence=fence, cause=cause)).of(name)

    def _evidence(self, rollout: Rollout, fence: int | None) -> Evidence:
        if fence not in (None, rollout.fence):
            return Evidence(fence=fence or 0)  # of another step, which the fence then refuses
        return seen_in(self._document(EVIDENCE)).of(rollout)

    def _of(self, subject: Feature | str, event: Event) -> Rollout:
        rollout = self.rollouts().of(_name(subject))
        if (rollout.state, event) not in TRANSITIONS:
            raise LocalProtocolError(
                f"expected {_verbs(rollout.state) or 'nothing any more'} for rollout {rollout.id}, which is "
                f"{rollout.state}; got {_verb(event)}"
            )
        return rollout

    def _moved(self, rollout: Rollout, event: Event, cause: Cause, seen: tuple[str, ...] = ()) -> Rollout:
        return self._amended(lambda rollouts: _move(rollouts, rollout, event, cause, seen)).of(rollout.subject)

    def _amended(self, change: Callable[[Rollouts], Rollouts]) -> Rollouts:
        def changed(document: Document) -> bytes:
            return document_of(change(rollouts_in(document)))

        return rollouts_in(run_now(amend(self.store, DOCUMENT, changed)))

    def _document(self, name: str) -> Document:
        return run_now(self.store.document(name))

    def _cause(self, actor: str, reason: str) -> Cause:
        return Cause(actor=actor, reason=reason, at=self._clock())


def _move(rollouts: Rollouts, rollout: Rollout, event: Event, cause: Cause, seen: tuple[str, ...] = ()) -> Rollouts:
    """Moved as it was decided upon when it was `rollout`."""
    return rollouts.moved(rollout.subject, event, fence=rollout.fence, cause=cause, seen=seen)


def _relisted(rollout: Rollout | None, allow: frozenset[str], deny: frozenset[str], drop: frozenset[str]) -> Lists:
    if (allow & deny) | (allow & drop) | (deny & drop):
        raise LocalProtocolError("expected each graph once; got one to be allowed, denied or dropped at once")
    was_allowed, was_denied = (rollout.allow, rollout.deny) if rollout is not None else (frozenset(), frozenset())
    return (was_allowed - deny - drop) | allow, (was_denied - allow - drop) | deny


def _verb(event: Event | None) -> str:
    return VERBS.get(event or "", event or "")


def _verbs(state: State) -> str:
    return " or ".join(_verb(event) for before, event in TRANSITIONS if before == state)


def _name(subject: Feature | str) -> str:
    return subject if isinstance(subject, str) else subject.name
