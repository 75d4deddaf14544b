"""Figures and stories in words: for people, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from .faults import FAULTS
from .runner import Failure, Story, Tally


def upper_bound(runs: int) -> float:
    """With 95 % confidence, at most this share of histories loses something, if none of `runs` did."""
    return 1.0 if runs == 0 else 1 - 0.05 ** (1 / runs)


def figures(tally: Tally, seconds: float) -> dict[str, Any]:
    """The tally with what follows from it; `seconds` went by on the clock, over all processes."""
    plain: dict[str, Any] = msgspec.to_builtins(tally)
    lost = len(tally.failures)
    return {
        **plain,
        "wall_seconds": round(seconds, 1),
        "histories_per_cpu_second": round(tally.runs / tally.seconds, 1) if tally.seconds else None,
        "upper_bound_95": upper_bound(tally.runs) if not lost else None,
        "faults_never_reached": sorted(set(FAULTS) - set(tally.faults)),
    }


def summary(tally: Tally, seconds: float) -> Iterator[str]:
    """The same in lines."""
    told = figures(tally, seconds)
    yield (
        f"{tally.runs:,} histories, {tally.events:,} events, {tally.messages:,} messages in {seconds:.0f} s"
        f" ({told['histories_per_cpu_second']} histories per second of CPU)"
    )
    if tally.failures:
        yield f"{len(tally.failures)} of {tally.runs:,} broke an invariant"
    else:
        yield (
            f"0 of {tally.acked:,} acknowledged writes lost that a holder could bring back;"
            f" 0 of {tally.runs:,} histories broke an invariant"
            f" (95 % upper bound {told['upper_bound_95']:.1e} per history)"
        )
    if tally.rewound:
        yield f"{tally.rewound:,} writes went with a restore, and no holder of this build could bring them back"
    if tally.reruns:
        yield f"{tally.reruns:,} histories were run again; their traces were compared"
    yield "faults that struck: " + ", ".join(f"{name} {tally.faults.get(name, 0):,}" for name in FAULTS)


def repeat(failure: Failure, world: str | None) -> str:
    """How to see a failure again."""
    extra = f" --world {world}" if world else ""
    return f"python -m inbetweenies.testing simulate --seed {failure.seed} --runs 1 --size {failure.size}{extra}"


def told(story: Story) -> Iterator[str]:
    """A failure in lines: what is broken, and what happened, event by event."""
    yield f"broken: {story.law}"
    yield f"        {story.what}"
    yield f"the shortest story found, {story.events} events:"
    for number, line in enumerate(story.lines, 1):
        yield f"  {number:3} {line}"
