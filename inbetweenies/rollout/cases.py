"""A verdict with all that it was made of, so that it can be made again: what failed once is a test for ever."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from ..errors import LocalProtocolError
from ..model import Document
from . import triggers
from .kept import read, written
from .policy import Policy
from .states import Event, Rollout
from .triggers import Rung, Signals, Thresholds, Watch, due


class Look(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was seen at one look, by whom the rollout had this `fence`, at `now` microseconds since 1970."""

    signals: Signals | None
    fence: int
    now: int


class Case(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One verdict.

    Attributes:
        rollout: as it was.
        watch: what was known of it before.
        thresholds: what was too much.
        policy: what decided; None for the one that comes with this.
        looks: what was seen, oldest first.
        rung: where that led.
        event: what was due then; None if nothing was.
    """

    rollout: Rollout
    watch: Watch
    thresholds: Thresholds = Thresholds()
    policy: Policy | None = None
    looks: tuple[Look, ...]
    rung: Rung
    event: Event | None


class Verdict(Struct, frozen=True, kw_only=True):
    """Where a ladder leads, and what is due then."""

    rung: Rung
    event: Event | None


def replayed(case: Case) -> Verdict:
    """What is decided today from what was seen then. It is what the case says, or something was changed since."""
    watch = case.watch
    for look in case.looks:
        watch = triggers.look(watch, look.signals, case.thresholds, fence=look.fence, now=look.now, policy=case.policy)
    return Verdict(rung=watch.rung, event=due(watch, case.rollout))


def decided(
    rollout: Rollout,
    watch: Watch,
    thresholds: Thresholds,
    looks: tuple[Look, ...],
    policy: Policy | None = None,
) -> Case:
    """The case of what is decided about `rollout` from `watch` on. Raises `LocalProtocolError`: it is that of another
    rollout."""
    blank = Case(
        rollout=rollout,
        watch=watch,
        thresholds=thresholds,
        policy=policy,
        looks=looks,
        rung=watch.rung,
        event=None,
    )
    verdict = replayed(blank)
    return msgspec.structs.replace(blank, rung=verdict.rung, event=verdict.event)


_case: Final = msgspec.json.Decoder(Case)


def case_in(body: bytes) -> Case:
    """The case that a file holds. Raises `StoreCorrupt`: it holds something else."""
    found = read(_case, Document(body=body), "a verdict and what it was made of")
    if found is None:
        raise LocalProtocolError("expected a verdict and what it was made of; got an empty file")
    return found


def case_body(case: Case) -> bytes:
    """A case as a file, for people as well."""
    return msgspec.json.format(written(case), indent=2) + b"\n"
