"""Whether those whom a rollout reaches fail more often than the others, asked as often as one likes (PROTOCOL 12.8).

A test for a fixed number of samples that is looked at again and again finds something in the end, always. This one is a
bet: who holds that canary fails no more often than control is offered bets that are fair to him, and the more is won
from him the less he is to be believed. A stake of 1 becomes `1 / alpha` or more, *ever*, with probability `alpha` at
most if he is right (Ville's inequality). What a bet pays for a batch of `n` and `m` requests is the likelihood ratio

    canary at a, control at b     against     both at r = (n a + m b) / (n + m)     for a > b

whose expectation is at most 1 whenever canary fails no more often than control (Turner, Ly, Grünwald 2021), whatever
`a` and `b` are, as long as they were chosen before the batch was seen. Here `b` is what control did so far, and `a` is
several times that: one bet for each of `RATIOS`.

All is staked that a fault needs that is there from the first. The rest is kept, and staked little by little when the
bets have lost what they had: a fault that comes late would have to win all that back first.
"""

from __future__ import annotations

import math
from typing import Final

from msgspec import Struct

from ..errors import LocalProtocolError

RATIOS: Final = (2.0, 4.0, 16.0)
FIRST: Final = 0.8  # staked at once; more of it finds early faults sooner and late ones later
_PRIOR: Final = (1, 100)  # failures in requests that control is taken to have had: soon outweighed by what it has
_RATE_MIN, _RATE_MAX = 1e-4, 0.45  # where a bet is still one: several times more than never, and less than always
_FAILED_MAX: Final = 0.9
_WORN: Final = 0.1  # bets that have less than this part of what would be staked next are worn out


class Arm(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests of one side, and how many of them failed. Raises `LocalProtocolError`: more failed than there were."""

    requests: int = 0
    failures: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.failures <= self.requests:
            raise LocalProtocolError(
                f"expected from 0 to {self.requests} failures of as many requests; got {self.failures}"
            )

    def __add__(self, other: Arm) -> Arm:
        return Arm(requests=self.requests + other.requests, failures=self.failures + other.failures)


class Bets(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was won so far.

    Attributes:
        canary, control: all that was seen.
        logs: the natural logarithm of what each bet has.
        restakes: how often something was staked that had been kept.
    """

    canary: Arm = Arm()
    control: Arm = Arm()
    logs: tuple[float, float, float] = (math.log(FIRST / len(RATIOS)),) * 3
    restakes: int = 0

    @property
    def wealth(self) -> float:
        """What the stake of 1 has become: what the bets have, and what is kept."""
        return sum(map(_exp, self.logs)) + _kept(self.restakes)

    def after(self, canary: Arm, control: Arm) -> Bets:
        """With a batch of both sides that nobody had seen before. A batch of one side alone says nothing."""
        logs, restakes = self.logs, self.restakes
        if (left := sum(map(_exp, logs))) < _WORN * (added := _kept(restakes) - _kept(restakes + 1)):
            logs, restakes = (math.log((left + added) / len(RATIOS)),) * 3, restakes + 1
        rate = (self.control.failures + _PRIOR[0]) / (self.control.requests + _PRIOR[1])
        rate = min(max(rate, _RATE_MIN), _RATE_MAX)
        paid = [_paid(min(rate * ratio, _FAILED_MAX), rate, canary, control) for ratio in RATIOS]
        a, b, c = (log + more for log, more in zip(logs, paid, strict=True))
        return Bets(canary=self.canary + canary, control=self.control + control, logs=(a, b, c), restakes=restakes)


def _kept(restakes: int) -> float:
    """What is not staked yet: parts 1/(k(k+1)) of it were, which come to 1 if one goes on for ever."""
    return (1 - FIRST) / (restakes + 1)


def _paid(a: float, b: float, canary: Arm, control: Arm) -> float:
    """The logarithm of what a bet on the rates `a` and `b` pays for a batch."""
    if not canary.requests or not control.requests:
        return 0.0
    r = (canary.requests * a + control.requests * b) / (canary.requests + control.requests)
    return sum(
        arm.failures * math.log(rate / r) + (arm.requests - arm.failures) * math.log((1 - rate) / (1 - r))
        for arm, rate in ((canary, a), (control, b))
    )


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))  # what is more is enough, and no float
