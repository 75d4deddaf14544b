"""`CanaryDeployment`: whom the rollout of one thing reaches, and how it reaches more (PROTOCOL 12.5, 12.6)."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import StoreError
from ..model import Document
from ..rollout.canary import Bar, Evidence, reaches, went_on
from ..rollout.flags import Feature
from ..rollout.kept import Cause
from ..rollout.states import DOCUMENT, Rollout, Rollouts, document_of, rollouts_in
from ..store import Store
from ..stores.clock import wall_clock
from .polled import Polled


class CanaryDeployment:
    """The rollout of one wire version or feature, seen from one process of several.

    Args:
        store: where rollouts are kept.
        subject: what is rolled out.
        bar: what a step has to have seen before the next one.
        clock: microseconds since 1970.
        monotonic: seconds that never run backwards.
    """

    def __init__(
        self,
        store: Store,
        subject: Feature | str,
        *,
        bar: Bar | None = None,
        clock: Callable[[], int] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._subject = subject if isinstance(subject, str) else subject.name
        self._bar = bar or Bar()
        self._clock = clock
        self._polled = Polled(store, DOCUMENT, rollouts_in, otherwise=_away, monotonic=monotonic)

    def should_enable_feature(self, graph: str) -> bool:
        """Whether `graph` is given what is rolled out; no, if that was never begun.

        Raises:
            StoreError: the store is away, and nothing is known of before.
        """
        rollout = self._polled.value().rollouts.get(self._subject)
        return rollout is not None and reaches(rollout, graph)

    def increase_rollout(self, evidence: Evidence, *, actor: str = "operator", reason: str = "not given") -> Rollout:
        """Take the rollout one step on, once, however many say so with `evidence` from the same step.

        Raises:
            RolloutMoved: somebody else has moved it since the evidence was gathered.
            NotYet: it lacks time or evidence.
            LocalProtocolError: it cannot go on at all.
            StoreError: the store could not; nothing was changed.
        """
        cause = Cause(actor=actor, reason=reason, at=self._clock())

        def step(document: Document) -> bytes:
            before = rollouts_in(document)
            return document_of(went_on(before, self._subject, evidence, self._bar, fence=evidence.fence, cause=cause))

        return self._polled.amend(step).of(self._subject)


def _away(error: StoreError) -> Rollouts:
    raise error
