"""What came out, as a document for programs and as lines for people."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click
import msgspec

from ..show import line
from .criteria import Criterion, Value
from .findings import Findings
from .ledger import Ledger

_COLOURS = {"PASS": "green", "FAIL": "red", "within": "", "above": "yellow"}


def document(found: Findings, ledger: Ledger, lines: list[Criterion]) -> dict[str, Any]:
    """The outcome as one JSON object."""
    return {
        "passed": passed(lines),
        "criteria": [
            {
                "name": one.name,
                "value": one.value,
                "limit": one.limit,
                "result": one.result,
                "unit": one.unit,
                "decides": one.decides,
                "why": one.why,
            }
            for one in lines
        ],
        "seconds": found.seconds,
        "rows": found.rows,
        "requests": len(ledger.requests),
        "acknowledged": found.acked,
        "overwritten_by_deployed_clients": ledger.overwritten,
        "failures": [msgspec.to_builtins(one) for one in ledger.failures()],
        "lost": [msgspec.to_builtins(one) for one in (*found.lost, *found.lost_by_restore)],
        "flips": found.flips,
    }


def passed(lines: list[Criterion]) -> bool:
    """Whether all that decides is met."""
    return all(one.met for one in lines if one.decides)


def show(lines: list[Criterion]) -> None:
    """The outcome, one line for each criterion, and what it comes to."""
    deciding = [one for one in lines if one.decides]
    width = max(len(one.name) for one in lines)
    for title, part in (("", deciding), ("Figures, which decide nothing:", [one for one in lines if not one.decides])):
        if title:
            click.echo(f"\n{title}")
        for one in part:
            result = click.style(f"{one.result:<6}", fg=_COLOURS[one.result] or None)
            cells = f"{one.name:<{width}}  {_told(one.value, one.unit):>9}  {_limit(one):<10}  {_short(one.why)}"
            click.echo(f"{result}  {line(cells)}".rstrip())
    results = Counter(one.result for one in deciding)
    verdict = f"{results['PASS']} of {len(deciding)} passed"
    click.echo(f"\n{verdict}." if passed(lines) else click.style(f"\n{verdict}: this drill FAILED.", fg="red"))


def _told(value: Value, unit: str) -> str:
    if value is None:
        return "never"
    if isinstance(value, float):
        return f"{value:.2f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return str(value)


def _limit(one: Criterion) -> str:
    if isinstance(one.limit, str):
        return f"= {one.limit}"
    return f"<= {one.limit:g} {one.unit}".rstrip()


def _short(text: str) -> str:
    return text if len(text) <= 160 else text[:157] + "..."
