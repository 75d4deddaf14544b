"""What every part of the drill goes by."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from inbetweenies.errors import InbetweeniesError

#: The graphs that the drill makes beside those of the database: one that a rollout reaches first, one that it reaches
#: last. Numbers are put after these, until they are names that nobody has.
CANARY: Final = "drill-canary"
CONTROL: Final = "drill-control"
#: The graph of a home that is made up, where no database is given.
HOME: Final = "home"

#: What the user asked for: a rollback within 15 minutes, 5 minutes of downtime, everybody informed in 5 minutes.
ROLLBACK_S: Final = 15 * 60.0
DOWNTIME_S: Final = 5 * 60.0
INFORMED_S: Final = 5 * 60.0
#: What this is built for (figures that are shown beside).
BY_ITSELF_S: Final = 15.0
AT_ONCE_S: Final = 1.0
FLIP_P99_S: Final = 0.1
SECONDS_PER_100K: Final = 60.0

#: The ramp, in millionths: the canary graph alone, by its list, then half of all.
STEPS: Final = (10_000, 500_000)
LOOK_S: Final = 0.02  # between two looks at whether something has come about


class DrillError(InbetweeniesError):
    """The drill could not be held; the message says why in one sentence."""


class Settings(Struct, frozen=True, kw_only=True):
    """How a drill is held.

    Attributes:
        flips: how often everybody is switched to the old version and back.
        turns: how many syncs of each client make a phase.
        sessions: how many whole syncs in the new version a step of the ramp has to have seen.
        pause_s: how long a client waits after a sync.
        patience_s: after so long something is taken not to happen any more.
        processes: what is run for each server process: a module, and its own arguments.
    """

    flips: int = 10
    turns: int = 3
    sessions: int = 20
    pause_s: float = 0.1
    patience_s: float = 60.0
    processes: tuple[tuple[str, ...], ...] = (("blowing_off.drill.server",), ("blowing_off.drill.server",))
