"""The wall clock: the one default that makes a server work without being told the time."""

from __future__ import annotations

import time


def wall_clock() -> int:
    """Microseconds since 1970 UTC, by this machine. It may step back; stamps never do (PROTOCOL 4.2)."""
    return time.time_ns() // 1000
