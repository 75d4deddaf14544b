"""The drill: it passes on a copy, leaves the original as it was, and fails on the right line where something is wrong.

The quick suite holds two drills. ``DEEP_EXAMPLES`` in the environment holds one for each bug, with all that is run in
production.
"""

from __future__ import annotations

import os
from typing import Final

from blowing_off.drill.basics import Settings
from blowing_off.drill.criteria import Criterion

DEEP: Final = "DEEP_EXAMPLES" in os.environ


def settings(*plants: str, **others: object) -> Settings:
    """Short drills; with one plant for each of two processes, or one for both."""
    names = plants if len(plants) == 2 else (*plants, *plants) or ("none", "none")
    processes = tuple(("tests.drill.planted", name) for name in names)
    quick = {"flips": 1, "turns": 2, "sessions": 3, "pause_s": 0.02, "patience_s": 20.0, "processes": processes}
    return Settings(**(quick | others))  # type: ignore[arg-type]


def failed(lines: list[Criterion]) -> set[str]:
    """The names of the criteria that are not met, of those that decide."""
    return {one.name for one in lines if one.result == "FAIL"}
