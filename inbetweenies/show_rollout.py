"""What is printed of a rollout on a terminal: where it stands, what it lacks, how to go on and how to undo it. All
of it is in the report that JSON and Markdown are made of as well (`inbetweenies.rollout.report`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

import click

from .rollout import report as reports
from .rollout.report import Check, StatusReport, utc

if TYPE_CHECKING:
    from .ops.rollouts import Done, Standing
    from .rollout.states import Rollout

MOVES_SHOWN: Final = 5  # in words; --json tells all that are kept
_COLOURS: Final = {"held": "red", "rolled_back": "red", "aborted": "red", "finalized": "green"}
_MARKS: Final = {"done": "x", "here": ">", "held": "=", "ahead": " ", "undone": "!"}


# --- what was done ------------------------------------------------------------------------------------------------


def print_done(db: Path, done: Done, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """Tell what was done, how to see it and how to undo it; programs are told `more`."""
    after = done.after
    if as_json:
        click.echo(json.dumps({"changed": done.changed, **reports.told_rollout(after), **(more or {})}))
        return
    if not done.changed:
        last = after.log[-1].cause
        was = f"{utc(after.since)} by {last.actor} ({last.reason})"
        click.echo(f"{after.id} is {after.state} since {was}: nothing is left to do")
    else:
        click.echo(f"{after.id} is {reports.where(after)}: {reports.meaning(after)}")
    if after.state == "rolled_back" and done.before is not None and done.changed:
        given = reports.percent(done.before.share)
        click.echo(f"undone: it was {reports.where(done.before)}, given to {given} of graphs")
        click.echo("no data was moved: what was written with it stays, and no write is lost")
    click.echo(f"see it: {_command('status', after, db)}")
    if after.undo is not None:
        click.echo(f"undo:   {_command('rollback', after, db)}")


def _command(verb: str, one: Rollout, db: Path) -> str:
    return reports.command(verb, one.subject, str(db))


# --- where it stands ---


def report_of(
    standing: Standing, db: Path, *, now: int, graphs: Iterable[str] | None = None, checks: tuple[Check, ...] = ()
) -> StatusReport:
    """The report of where a rollout stands, with commands that work from any folder."""
    return reports.report(
        standing.rollout,
        evidence=standing.evidence,
        bar=standing.bar,
        missing=standing.missing,
        watch=standing.watch,
        db=str(db.absolute()),
        now=now,
        graphs=graphs,
        checks=checks,
    )


def recent(found: Iterable[Standing], db: Path, *, now: int, graphs: Iterable[str]) -> list[StatusReport]:
    """The reports of those that are under way, or have not been over for long."""
    names = tuple(graphs)
    near = [one for one in found if not one.rollout.over or now - one.rollout.since < reports.RECENT_US]
    return [report_of(one, db, now=now, graphs=names) for one in near]


def told(found: Iterable[StatusReport]) -> dict[str, Any]:
    """Everything that is known, for programs."""
    return {"rollouts": [reports.told(one) for one in found]}


def drawn(found: list[StatusReport], db: Path) -> str:
    """The same for people, to be seen at a glance."""
    if not found:
        return f"nothing was ever rolled out: inbetweenies rollout start VERSION --db {quote(str(db))}"
    return "\n\n".join("\n".join(_lines(one)) for one in found)


def _lines(report: StatusReport) -> Iterator[str]:
    one = report.rollout
    name = click.style(reports.where(one), fg=_COLOURS.get(one.state, "yellow"), bold=True)
    yield f"{one.id}: {name} since {utc(one.since)}"
    for label, text in (
        ("means", reports.meaning(one)),
        ("share", reports.impact(report)),
        ("phases", "  ".join(f"[{_MARKS[phase.mark]}] {phase.name}" for phase in report.phases)),
        ("fence", str(one.fence)),
        ("evidence", "" if one.over else _evidence(report)),
        ("missing", "" if one.over else ", ".join(report.missing) or "nothing"),
        ("watch", reports.climbed(report.watch)),
        ("update", click.style(reports.news(report), fg="red") if report.overdue else reports.news(report)),
    ):
        if text:
            yield f"  {label:<10}{text}"
    for check in report.checks:
        yield f"  {'looked':<10}{check.name}: {click.style(check.told, fg=None if check.passed else 'red')}"
    for note in one.notes[-1:]:
        yield f"  {'note':<10}{utc(note.at)}  {note.actor}: {note.reason}"
    for index, move in enumerate(reversed(one.log[-MOVES_SHOWN:])):
        cause = move.cause
        text = f"{utc(cause.at)}  {move.event} -> {move.state}  {cause.actor}: {cause.reason}"
        yield f"  {'' if index else 'moves':<10}{text}"
    for label, line in (("go on", report.go_on), ("undo", report.undo)):
        if line is not None:
            yield f"  {label:<10}{line}"
    if one.over:
        for line in report.others:
            yield f"  {'see':<10}{line}"


def _evidence(report: StatusReport) -> str:
    return next((", ".join(phase.evidence) for phase in report.phases if phase.mark == "here"), "")
