"""``python -m tests.benchmarks [--json] [--quick] [NAME...]``: the figures on standard output, progress on the other.

It always exits with 0 once it has measured: a machine that is busy is no defect. The rows say what is met.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from textwrap import wrap

import msgspec
from rich.console import Console
from rich.table import Table

from .measure import Row
from .scenarios import QUICK, SCENARIOS, Bench, Sizes

_COLUMNS = ("scenario", "median", "low - high", "unit", "floor", "ratio", "target", "met")


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"scenarios: {', '.join(SCENARIOS)}; without, all")
    parser.add_argument("--json", action="store_true", help="print a list of figures as JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes, once: shows that it runs, measures nothing")
    parser.add_argument("--dir", type=Path, help="where the files go, to measure another disk than the temporary one")
    chosen = parser.parse_args()
    unknown = [name for name in chosen.names if name not in SCENARIOS]
    if unknown:
        parser.error(f"expected names of scenarios ({', '.join(SCENARIOS)}); got {', '.join(unknown)}")

    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory(dir=chosen.dir, prefix="benchmarks-") as folder,
        Bench(Path(folder), QUICK if chosen.quick else Sizes(), _say) as bench,
    ):
        for name in chosen.names or SCENARIOS:
            _say(f"{name}: {SCENARIOS[name].__doc__}")
            began = time.perf_counter()
            rows += SCENARIOS[name](bench)
            _say(f"{name}: {time.perf_counter() - began:.1f} s")
    if chosen.json:
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode([row.figure for row in rows])) + b"\n")
    else:
        _print(rows)


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
    main()
