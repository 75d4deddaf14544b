"""``python -m tests.benchmarks [--json] [--quick] [NAME...]``: the figures on standard output, progress on the other.

Exits with 1 if a target is missed, and with 3 if the time was up before everything was measured; what was measured by
then is printed. With ``--quick`` nothing is measured that a target could be about, so none is missed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from textwrap import wrap

import msgspec
from rich.console import Console
from rich.table import Table

from .measure import Row
from .scenarios import QUICK, SCENARIOS, Bench, Sizes

_COLUMNS = ("scenario", "median", "low - high", "unit", "floor", "ratio", "target", "met")

#: All of it takes three minutes on two idle cores. What hangs must not keep whoever waits for the figures.
SECONDS_MAX = 900
UNFINISHED = 3


def main() -> int:
    """The entry point; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"scenarios: {', '.join(SCENARIOS)}; without, all")
    parser.add_argument("--json", action="store_true", help="print a list of figures as JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes, once: shows that it runs, measures nothing")
    parser.add_argument("--seconds", type=int, default=SECONDS_MAX, help="how long all of it may take (%(default)s)")
    parser.add_argument("--dir", type=Path, help="where the files go, to measure another disk than the temporary one")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"expected names of scenarios ({', '.join(SCENARIOS)}); got {', '.join(unknown)}")

    rows: list[Row] = []
    unfinished = False
    signal.signal(signal.SIGALRM, _time_is_up)
    signal.alarm(chosen.seconds)
    _say(f"load average before: {os.getloadavg()[0]:.1f}, on {os.cpu_count()} cores")
    try:
        measure(chosen.names or SCENARIOS, QUICK if chosen.quick else Sizes(), chosen.dir, rows)
    except TimeIsUpError:
        unfinished = True
        _say(f"unfinished after {chosen.seconds} s")
    signal.alarm(0)
    _say(f"load average after: {os.getloadavg()[0]:.1f}")
    if chosen.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode([row.figure for row in rows])) + b"\n")
    else:
        _print(rows)
    if unfinished:
        return UNFINISHED
    return 0 if chosen.quick else verdict(rows)


def measure(names: Iterable[str], sizes: Sizes, folder: Path | None, rows: list[Row]) -> None:
    """Run scenarios, adding what each of them finds to `rows`."""
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="benchmarks-") as files,
        Bench(Path(files), sizes, _say) as bench,
    ):
        for name in names:
            _say(f"{name}: {SCENARIOS[name].__doc__}")
            began = time.perf_counter()
            rows += SCENARIOS[name](bench)
            _say(f"{name}: {time.perf_counter() - began:.1f} s")


def verdict(rows: Iterable[Row]) -> int:
    """The exit status: whether every target is met. Those that are not are told beside the table."""
    missed = [row for row in rows if not row.met]
    for row in missed:
        figure = row.figure
        is_ratio = figure.ratio is not None and figure.target.endswith("x")
        got = f"{figure.ratio:.2f}x" if is_ratio else f"{_number(figure.median)} {figure.unit}"
        _say(f"missed: {figure.name}: expected {figure.target}; got {got}")
    return 1 if missed else 0


class TimeIsUpError(Exception):
    """Not `TimeoutError`, which sockets raise as well."""


def _time_is_up(*_: object) -> None:
    raise TimeIsUpError


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(rows: list[Row]) -> None:
    lines = [_cells(row) for row in rows]
    if sys.stdout.isatty():
        table = Table(*_COLUMNS)
        for cells, row in zip(lines, rows, strict=True):
            table.add_row(*cells, style="green" if row.met else "bold red")
        Console().print(table)
    else:
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *lines, strict=True)]
        for cells in (_COLUMNS, *lines):
            print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    print()
    for row in rows:
        print("\n".join(wrap(f"{row.figure.name}: {row.note}", 118, subsequent_indent="  ")))


def _cells(row: Row) -> tuple[str, ...]:
    figure = row.figure
    return (
        figure.name,
        _number(figure.median),
        f"{_number(figure.low)} - {_number(figure.high)}",
        figure.unit,
        "-" if figure.floor is None else _number(figure.floor),
        "-" if figure.ratio is None else f"{figure.ratio:.2f}x",
        figure.target,
        "yes" if row.met else "NO",
    )


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
