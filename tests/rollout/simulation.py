"""Rollouts that do no harm, and some that do, looked at after every single failure, however rare that is in life.

What the bets have rises only with a failure of canary, so nothing is missed by not looking in between.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from inbetweenies.rollout import triggers
from inbetweenies.rollout.sequential import Arm
from inbetweenies.rollout.triggers import Signals, Thresholds, Watch

THRESHOLDS = Thresholds()


def gap(draw: random.Random, rate: float) -> int:
    """How many requests there are up to and with the next that fails."""
    return 1 if rate >= 1 else int(math.log(1 - draw.random()) / math.log(1 - rate)) + 1


def batches(draw: random.Random, canary: float, control: float) -> Iterator[tuple[int, int]]:
    """Requests of each side up to the next failure of canary, and how many failures control had of as many."""
    ahead = gap(draw, control)
    while True:
        requests, failures = gap(draw, canary), 0
        left = requests
        while ahead <= left:
            left -= ahead
            failures += 1
            ahead = gap(draw, control)
        ahead -= left
        yield requests, failures


def taken_back_after(seed: int, *, canary: float, control: float, most: int, healthy: int = 0) -> int | None:
    """After how many requests a side such a rollout is taken back; None if not within `most`.

    The first `healthy` requests of canary fail as often as those of control; they are not counted.
    """
    draw = random.Random(seed)
    watch, seen, run = Watch(rollout="x/1"), -healthy, 0
    before, after = batches(draw, control, control), batches(draw, canary, control)
    while True:
        requests, failures = next(before if seen < 0 else after)
        seen += requests
        if seen > most:
            return None
        run = run + 1 if requests == 1 else 1
        watch = triggers.look(
            watch,
            Signals(
                canary=Arm(requests=requests, failures=1),
                control=Arm(requests=requests, failures=failures),
                canary_run=run,
            ),
            THRESHOLDS,
            fence=0,
            now=0,
        )
        if watch.rung == "route_back":
            return seen
