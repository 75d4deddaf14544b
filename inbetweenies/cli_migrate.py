"""``inbetweenies migrate`` and ``rollback --plan``: data of deployed servers, and what older clients will not see."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import to_builtins

from .cli_log import journal_option
from .cli_versions import db_option, json_option, opened, table
from .imports import FATES

if TYPE_CHECKING:
    from .deployed import Spot
    from .imports import Ledger
    from .ops.losses import Losses
    from .ops.migrate import Report
    from .stores import SqliteStore

_graph = click.option("--graph", default="default", show_default=True, help="The graph, as in `inbetweenies serve`.")


@click.command()
@db_option
@click.argument("file", type=click.Path(path_type=Path))
@_graph
@click.option("--undo", is_flag=True, help="Take out what this import brought; what was written since stays.")
@click.option("--tell-all", is_flag=True, help="Tell every client all of it again, also what the old server told it.")
@journal_option
@click.option("--no-journal", is_flag=True, help="The server of this database keeps none.")
@json_option
def migrate(
    db: Path, file: Path, graph: str, undo: bool, tell_all: bool, journal: Path | None, no_journal: bool, as_json: bool
) -> int:
    """Import FILE, the database of a deployed server, into a graph; which kind it is, is found out.

    FILE is only read, and while its server runs. Every row of it is accounted for. What was interrupted goes on where
    it stopped; once more, it does nothing. A server may run on the new database meanwhile; the import is complete when
    this says so.

    With --undo, FILE may also be the beginning of the digest that the import was reported with.
    """
    from .ops.migrate import migrate as bring
    from .ops.migrate import undo as take_out

    if undo and tell_all:
        raise click.UsageError("expected --undo or --tell-all; got both")
    if journal is not None and no_journal:
        raise click.UsageError("expected --journal or --no-journal; got both")
    if undo and not db.exists():
        raise click.ClickException(f"expected a database at {db}; got no file: see --db")
    if file.exists() and db.exists() and file.samefile(db):
        raise click.UsageError("FILE: expected another file than the database itself; got that")
    if not undo:
        _look(file, graph)  # before a database is made for what cannot be imported
    with _opened(db, journal, no_journal) as store:
        if undo:
            ledger, ran = asyncio.run(take_out(store, file, graph=graph, progress=_progress()))
            _tell_undone(ledger, ran, graph, as_json)
            return 0
        report = asyncio.run(bring(store, file, graph=graph, tell_all=tell_all, progress=_progress()))
    _tell(report, db, as_json)
    return 1 if report.unexplained else 0


def _look(file: Path, graph: str) -> None:
    from .engine import DEFAULT_LIMITS
    from .ops.source import opened as look

    with look(file, graph=graph, limits=DEFAULT_LIMITS):
        pass


@contextmanager
def _opened(db: Path, journal: Path | None, no_journal: bool) -> Iterator[SqliteStore]:
    from .stores import SqliteStore
    from .stores.heads import journal_of

    # What is committed here goes into the journal of the server, or a restored database would lack it.
    store = SqliteStore(db, journal=False if no_journal else journal or journal_of(db))
    try:
        yield store
    finally:
        asyncio.run(store.close())


def _progress() -> Callable[[int, int], None]:
    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done / max(total, 1):4.0%}" + ("\r    \r" if done == total else ""), err=True, nl=False)

    return told


def _tell(report: Report, db: Path, as_json: bool) -> None:
    ledger = report.ledger
    if as_json:
        told = {"import": _account(ledger, report.graph), "ran": report.ran, "unexplained": report.unexplained}
        click.echo(json.dumps(told))
        return
    new = sum(report.ran.values())
    what = f"{ledger.rows:,} rows of {ledger.name} ({ledger.source[:12]}) in graph {report.graph} of {db}"
    click.echo(f"{what}: {new:,} by this run" if new else f"{what}: everything was there already, 0 moved")
    rows = [
        (name, total, *(fates.get(fate, 0) for fate in FATES), report.unexplained.get(name, 0))
        for name, total in ledger.totals.items()
        for fates in (ledger.fates.get(name, {}),)
    ]
    table(("table", "rows", *FATES, "unexplained"), rows)
    if ledger.links:
        click.echo(f"and {ledger.links:,} links of these rows as edges")
    _tell_spots("refused", ledger.refused, ledger)
    _tell_spots("noted", ledger.spots, ledger)


def _tell_spots(word: str, spots: Sequence[Spot], ledger: Ledger) -> None:
    for spot in spots:
        click.echo(f"{word}: {' '.join(part for part in (spot.table, spot.key) if part)}: {spot.detail}")
    more = sum(count for name, count in ledger.counts.items() if name.startswith(f"{word} ")) - len(spots)
    if more > 0:
        click.echo(f"{word}: {more:,} more; --json counts them by table and reason")


def _account(ledger: Ledger, graph: str) -> dict[str, Any]:
    told: dict[str, Any] = to_builtins(ledger)
    return told | {"graph": graph, "rows": ledger.rows}


def _tell_undone(ledger: Ledger, ran: dict[str, int], graph: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"import": _account(ledger, graph), "ran": ran}))
        return
    if not sum(ran.values()):
        click.echo(f"{ledger.name} ({ledger.source[:12]}): nothing of it was left in graph {graph}, 0 taken out")
    said = {
        "out": "taken out",
        "restored": "as they were before it again",
        "gone": "deleted already",
        "kept": "kept: somebody has written to them since",
    }
    for what, words in said.items():
        if ledger.out.get(what):
            click.echo(f"{ledger.out[what]:,} {words}")


# --- rollback -----------------------------------------------------------------------------------------------------


@click.command()
@db_option
@_graph
@click.option("--plan", "planned", is_flag=True, help="Say what would not be seen; nothing is changed.")
@json_option
def rollback(db: Path, graph: str, planned: bool, as_json: bool) -> int:
    """Say in counts what clients of older wire versions will not see of a graph. Exits with 1 if any of it has no
    explanation.

    Nothing is lost by rolling back: it stays in the graph, and is there when it is rolled forward again.
    """
    from .ops.losses import plan

    if not planned:
        raise click.UsageError(
            "expected --plan; this only says what would not be seen: roll back with `inbetweenies rollout` or "
            "`inbetweenies versions`"
        )
    with opened(db) as store:
        found = asyncio.run(plan(store, graph))
    if as_json:
        click.echo(json.dumps({"graph": graph, "versions": to_builtins(found)}))
    else:
        for one in found:
            _tell_losses(one)
    return 1 if any(one.unexplained for one in found) else 0


def _tell_losses(one: Losses) -> None:
    click.echo(f"{one.version}: {one.rows:,} rows of the graph are shown in {one.records:,} records; not shown:")
    rows = [(loss.kind, loss.type, loss.field or "all of it", loss.reason, loss.count) for loss in one.losses]
    table(("of", "type", "field", "why", "count"), rows)
    click.echo(f"{len(one.unexplained):,} unexplained")
    for pointer in one.unexplained[:20]:
        click.echo(f"  {pointer}")
