"""Rollouts as operators make them, for tests of what obeys them."""

from __future__ import annotations

from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.states import DOCUMENT, Event, Rollouts, document_of, rollouts_in
from inbetweenies.store import Store
from tests.support import run

WHY = Cause(actor="ada", reason="a test", at=0)


def begun(subject: str, *graphs: str) -> Rollouts:
    """A rollout of `subject` that is in its ramp and reaches these graphs, and one in a million of the others."""
    rollouts = Rollouts().started(subject, steps=(1,), cause=WHY)
    for _ in range(4):
        rollouts = move(rollouts, subject, "advance")
    fence = rollouts.of(subject).fence
    return rollouts.listed(subject, allow=frozenset(graphs), deny=frozenset(), fence=fence, cause=WHY)


def move(rollouts: Rollouts, subject: str, event: Event) -> Rollouts:
    """The rollout of `subject` moved by whoever knows its fence."""
    return rollouts.moved(subject, event, fence=rollouts.of(subject).fence, cause=WHY)


def taken_back(rollouts: Rollouts, subject: str, at: int) -> Rollouts:
    """The same with the rollout of `subject` taken back at that moment."""
    fence = rollouts.of(subject).fence
    return rollouts.moved(subject, "roll_back", fence=fence, cause=Cause(actor="ada", reason="a test", at=at))


def keep(store: Store, rollouts: Rollouts) -> None:
    """What another process would do: `rollouts` is what the store says from now on."""
    known = run(store.document(DOCUMENT))
    assert run(store.put_document(DOCUMENT, document_of(rollouts), revision=known.revision))


def kept(store: Store) -> Rollouts:
    """What the store says."""
    return rollouts_in(run(store.document(DOCUMENT)))
