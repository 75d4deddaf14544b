"""Verdicts about rollouts, read from a store and decided once more (PROTOCOL 12.12)."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ..errors import LocalProtocolError
from ..rollout import triggers, verdicts
from ..rollout.chain import Line
from ..rollout.policy import Policy, Row
from ..rollout.triggers import watches_in
from ..rollout.verdicts import Read, Replay, record_in, replay, understood
from ..store import Store
from ..stores.keeper import run_now
from .policies import standard


class Explained(Struct, frozen=True, kw_only=True):
    """One verdict.

    Attributes:
        row: of the policy that it names, with its reason; None if that policy is not known any more.
        replay: the same decided once more; None likewise.
    """

    read: Read
    row: Row | None
    replay: Replay | None


class Verdicts:
    """All verdicts that a store knows, oldest first, each as it was written.

    Args:
        policy: one more that they may have been decided by; that of the record, and that which comes with this, are
            known.

    Raises:
        StoreCorrupt: one was changed after it was written.
        StoreError: they could not be read.
    """

    def __init__(self, store: Store, *, policy: Policy | None = None) -> None:
        # The record first: what comes into it meanwhile is then only beside the watch.
        record = record_in(run_now(store.document(verdicts.DOCUMENT)))
        recent = watches_in(run_now(store.document(triggers.DOCUMENT))).verdicts
        self._lines = {line.n: line for line in record.lines_with(recent)}
        known = (standard(), *([] if policy is None else [policy]))
        self._policies: Mapping[str, Policy] = {one.digest: one for one in (*record.policies.values(), *known)}

    def newest(self, count: int) -> list[Read]:
        """The newest of them, newest first."""
        return [understood(line) for line in sorted(self._lines.values(), key=lambda line: -line.n)[:count]]

    def explained(self, n: int) -> Explained:
        """The verdict with this number. Raises `LocalProtocolError`: there is none, or not any more."""
        line = self._line(n)
        read = understood(line)
        policy = self._policies.get(read.inputs.policy)
        if policy is None:
            return Explained(read=read, row=None, replay=None)
        row = next((one for one in policy.row if one.name == read.outcome.row), None)
        return Explained(read=read, row=row, replay=replay(line, policy))

    def _line(self, n: int) -> Line:
        if n in self._lines:
            return self._lines[n]
        known = f"from {min(self._lines)} to {max(self._lines)}" if self._lines else "(none)"
        raise LocalProtocolError(f"expected the number of a verdict that is kept, {known}; got {n}")
