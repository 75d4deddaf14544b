"""What a figure is, and the clocks and meters it is read from. Other processes are looked at through Linux's /proc."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from msgspec import Struct

MB = 2**20


class Figure(Struct, frozen=True, kw_only=True):
    """One row, as ``--json`` prints it. Without a `floor` the target is about the figure itself."""

    name: str
    median: float
    low: float
    high: float
    unit: str
    floor: float | None
    ratio: float | None
    target: str


class Row(Struct, frozen=True, kw_only=True):
    """A figure, whether its target is met, and how it was measured."""

    figure: Figure
    met: bool
    note: str


def held_against(
    name: str, values: list[float], floors: list[float], *, unit: str, most: float, note: str, scale: float = 1.0
) -> Row:
    """A row whose target is a ratio: at most so many times the floor."""
    floor = median(floors)
    ratio = median(values) / floor
    return Row(
        figure=Figure(
            name=name,
            median=median(values) * scale,
            low=min(values) * scale,
            high=max(values) * scale,
            unit=unit,
            floor=floor * scale,
            ratio=ratio,
            target=f"<= {most:g}x",
        ),
        met=ratio <= most,
        note=note,
    )


def bounded(
    name: str, values: list[float], *, unit: str, most: float, note: str, floors: list[float] | None = None
) -> Row:
    """A row whose target is a bound; `floors` only say how far the figure is from what it could be."""
    middle = median(values)
    floor = None if floors is None else median(floors)
    return Row(
        figure=Figure(
            name=name,
            median=middle,
            low=min(values),
            high=max(values),
            unit=unit,
            floor=floor,
            ratio=None if floor is None else middle / floor,
            target=f"<= {most:g} {unit}",
        ),
        met=middle <= most,
        note=note,
    )


def in_turns(repetitions: int, *works: Callable[[], float], warm: bool = False) -> list[list[float]]:
    """What each of `works` measures of itself, `repetitions` times, in turns. Unless everything is `warm` already, a
    first turn does not count; of a single one there is no telling."""
    found: list[list[float]] = [[] for _ in works]
    cold = 0 if warm or repetitions == 1 else 1
    for turn in range(cold + repetitions):
        for work, values in zip(works, found, strict=True):
            gc.collect()
            value = work()
            if turn >= cold:
                values.append(value)
    return found


def own_cpu(work: Callable[[], object]) -> float:
    """Seconds of this process's CPU that `work` takes."""
    before = time.process_time()
    work()
    return time.process_time() - before


def wall(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used so far, all its threads together, to the nanosecond."""
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3), which Python does not have


def memory_of(pid: int, *, peak: bool) -> float:
    """Megabytes that a process has in memory, or had at most since `forget_peak`."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {name} in /proc/{pid}/status")


def forget_peak(pid: int) -> None:
    """Let the peak start anew at what the process has in memory now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
