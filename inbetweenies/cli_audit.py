"""``inbetweenies audit``: whether the logs in a database are whole, and whether each wire version shows what it must.

A server may run meanwhile: each log is read as it was at one moment.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct
from msgspec.structs import asdict

from .cli_versions import db_option, in_store, json_option
from .rollout.integrity import Report, Violation, told
from .rollout.shadow import Compared

if TYPE_CHECKING:
    from .store import Store


class Audited(Struct, frozen=True, kw_only=True):
    """What was found in one graph. `shadow` is None where the log has to be put right first."""

    graph: str
    report: Report
    shadow: Compared | None

    @property
    def whole(self) -> bool:
        return self.report.count == 0 and self.shadow is not None and self.shadow.count == 0


@click.command()
@db_option
@click.option("--graph", default=None, help="Only this graph; without, all.")
@json_option
def audit(db: Path, graph: str | None, as_json: bool) -> int:
    """Read every row of the database, and say what is wrong and what would put it right. Exits with 1 if anything is.

    Rows are held against their hashes, the chain of the log and the digest of what is current; then what each wire
    version shows is held against them. Changes nothing; a server may run meanwhile.
    """
    found = in_store(db, lambda store: audited(store, graph))
    if as_json:
        click.echo(json.dumps({"graphs": [_told(one) for one in found]}))
    else:
        for one in found:
            for line in _lines(one):
                click.echo(line)
    return 0 if all(one.whole for one in found) else 1


async def audited(store: Store, graph: str | None) -> list[Audited]:
    """What is found in a graph, or in all of them. Raises `click.ClickException`: there is no such graph."""
    from .ops.integrity import DataIntegrityMonitor
    from .ops.shadow import ShadowComparison

    names = await store.graph_names()
    if graph is not None and graph not in names:  # reading it would make it
        raise click.ClickException(
            f"expected one of the graphs {', '.join(names) or '(none)'}; got {graph}: see --graph"
        )
    monitor, shadow = DataIntegrityMonitor(store), ShadowComparison(store, rows_max=None)
    found = []
    for name in names if graph is None else (graph,):
        report = await monitor.report(name)
        compared = None if report.count else await shadow.compare(name)
        found.append(Audited(graph=name, report=report, shadow=compared))
    return found


def _told(one: Audited) -> dict[str, Any]:
    report, shadow = one.report, one.shadow
    return {
        "graph": one.graph,
        "whole": one.whole,
        "entities": report.entities,
        "relationships": report.relationships,
        "count": report.count,
        "violations": [asdict(each) | {"repair": asdict(each.repair)} for each in report.violations],
        "plan": [asdict(step) | {"says": says} for step, says in zip(report.plan, told(report.plan), strict=True)],
        "shadow": None
        if shadow is None
        else {
            "versions": list(shadow.versions),
            "rows": shadow.rows,
            "count": shadow.count,
            "mismatches": [asdict(each) for each in shadow.mismatches],
        },
    }


def _lines(one: Audited) -> Iterator[str]:
    report, shadow = one.report, one.shadow
    held = f"{report.entities:,} entities, {report.relationships:,} relationships"
    yield f"{one.graph}: {'whole' if report.count == 0 else f'not whole, {report.count:,} wrong'}: {held}"
    for each in report.violations:
        yield f"  {_where(each)}: {each.told} ({each.check})"
    yield from _left(report.count, len(report.violations))
    if report.plan:
        yield "  do this next, and audit again:"
        yield from (f"    {line}" for line in told(report.plan))
    if shadow is not None:
        result = "show what they must" if shadow.count == 0 else f"{shadow.count:,} shown wrongly or lost"
        yield f"  {', '.join(shadow.versions)}: {result}"
        for mismatch in shadow.mismatches:
            yield f"    {mismatch.version}: {mismatch.kind} {mismatch.id}: {mismatch.told}"
        yield from _left(shadow.count, len(shadow.mismatches))


def _where(each: Violation) -> str:
    row = f"row {each.repair.seq}"
    return row if each.id is None else f"{row}, {each.kind} {each.id} {each.version or ''}".rstrip()


def _left(count: int, shown: int) -> Iterator[str]:
    if count > shown:
        yield f"  and {count - shown:,} more"
