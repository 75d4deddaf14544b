"""``inbetweenies incident`` and ``inbetweenies reconcile``: what was known when a rollout was taken back, and what
became of each row that was written since it began.

Both only read. A rollback is over when `reconcile` ends with 0: nothing is unexplained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import Struct, convert, to_builtins
from msgspec.structs import asdict, replace

from .cli_versions import db_option, in_store, json_option, table
from .errors import StoreError
from .model import Document, format_time, parse_time
from .rollout import canary, flags, states, triggers
from .rollout.report import utc

if TYPE_CHECKING:
    from .ops.incident import Incident
    from .ops.reconcile import Reconciled
    from .rollout.states import Rollout
    from .rollout.timeline import Moment
    from .rollout.triggers import Watch
    from .store import Store

T = TypeVar("T", bound=Struct)

# --- incident -----------------------------------------------------------------------------------------------------


@click.group()
def incident() -> None:
    """See what was known when a rollout was taken back, and write up what happened."""


@incident.command("list")
@db_option
@json_option
def list_(db: Path, as_json: bool) -> None:
    """List the incidents that are kept beside the database."""
    from .ops.incident import folder_of, listed

    found, unreadable = listed(folder_of(db))
    if as_json:
        told = [asdict(one.about) | {"damaged": list(one.damaged)} for one in found]
        click.echo(json.dumps({"incidents": told, "unreadable": unreadable}))
        return
    columns = ("id", "rollout", "actor", "why", "whole")
    table(
        columns,
        [
            (one.about.id, one.about.rollout, one.about.actor, one.about.why, "no" if one.damaged else "yes")
            for one in found
        ],
    )
    for why in unreadable.values():
        click.echo(why, err=True)


@incident.command()
@click.argument("incident_id", metavar="ID")
@db_option
@json_option
def show(incident_id: str, db: Path, as_json: bool) -> int:
    """Show what is kept of incident ID, and what happened before and after. Exits with 1 if it was changed since."""
    one, moments = _read(db, incident_id)
    if as_json:
        click.echo(
            json.dumps(
                {
                    **asdict(one.about),
                    "path": str(one.path),
                    "files": {name: len(body) for name, body in one.files.items()},
                    "damaged": list(one.damaged),
                    "timeline": [asdict(moment) | {"at": format_time(moment.at)} for moment in moments],
                }
            )
        )
    else:
        for line in _shown(one, moments):
            click.echo(line)
    return 1 if one.damaged else 0


def _shown(one: Incident, moments: tuple[Moment, ...]) -> Iterator[str]:
    about = one.about
    yield f"{about.id}: {about.rollout} taken back by {about.actor}: {about.why}"
    yield f"  at        {about.at[:19]}Z{', some of it read when the rollback had begun' * about.late}"
    yield f"  release   {about.release}"
    yield f"  folder    {one.path}"
    for index, (name, body) in enumerate(one.files.items()):
        yield f"  {'' if index else 'files':<10}{name}, {len(body):,} bytes"
    for name, why in about.lacking.items():
        yield f"  {'lacking':<10}{name}: {why}"
    for name in one.damaged:
        yield f"  {'DAMAGED':<10}{name}: not what was written"
    for index, moment in enumerate(moments):
        yield f"  {'' if index else 'timeline':<10}{utc(moment.at)}  {moment.what}  {moment.who}: {moment.why}"


@incident.command("post-mortem")
@click.argument("incident_id", metavar="ID")
@db_option
def post_mortem(incident_id: str, db: Path) -> None:
    """Print the beginning of a post-mortem of incident ID in Markdown: what is known is there, the rest is blank."""
    from .rollout.canary import seen_in
    from .rollout.timeline import post_mortem as written

    one, moments = _read(db, incident_id)
    before = _rollout(one, db)
    rollout, watch = _latest(db, before)
    evidence = seen_in(one.document(canary.EVIDENCE)).of(before)
    measured = [f"Kept when it was taken back: {', '.join(one.files)}."]
    if "case.json" in one.files:
        measured.append("The verdict can be made again: `inbetweenies incident case`.")
    watch = watch or _watch(one, rollout)
    click.echo(written(one.about.id, _cleared(rollout), _cleared(watch), evidence, moments, measured), nl=False)


@incident.command()
@click.argument("incident_id", metavar="ID")
@db_option
def case(incident_id: str, db: Path) -> None:
    """Print the verdict by which it was taken back with all that it was made of, and make it again.

    Put what is printed among the cases of the tests, and the verdict stays what it was.
    """
    from .ops.triggers import ACTOR
    from .rollout.cases import case_in, replayed

    one, _ = _read(db, incident_id)
    body = one.files.get("case.json")
    if body is None:
        other = f": see the other incidents of {one.about.rollout}" if one.about.actor == ACTOR else ""
        raise click.ClickException(
            f"expected an incident put aside by the process that decided; got {one.about.id}, where {one.about.actor} "
            f"did and there is no verdict to make again{other}"
        )
    found = case_in(body)
    again = replayed(found)
    click.echo(body.decode(), nl=False)
    if (again.rung, again.event) != (found.rung, found.event):
        raise click.ClickException(
            f"expected {found.rung} and {found.event} again; got {again.rung} and {again.event}: this release decides "
            "otherwise than the one that took it back"
        )


def _read(db: Path, incident_id: str) -> tuple[Incident, tuple[Moment, ...]]:
    """An incident, and what happened: as of then and, where the database still knows it, since."""
    from .ops.incident import folder_of, opened
    from .registry import DOCUMENT as REGISTRY
    from .registry import decisions_in
    from .rollout.flags import flags_in
    from .rollout.timeline import timeline

    one = opened(folder_of(db), incident_id)
    before = _rollout(one, db)
    rollout, watch = _latest(db, before)
    now = _documents(db)
    switched = flags_in(now.get(flags.DOCUMENT, one.document(flags.DOCUMENT)))
    decided = decisions_in(now.get(REGISTRY, one.document(REGISTRY)))
    moments = timeline(rollout, watch or _watch(one, before), switched, decided)
    return one, tuple(replace(moment, who=_handed_on(moment.who), why=_handed_on(moment.why)) for moment in moments)


def _handed_on(text: str) -> str:
    """What the database says in plain words is no more to be read by many than what was kept of it."""
    from .ops.redact import redacted, secrets_in

    return redacted(text, secrets_in(os.environ))


def _cleared(value: T) -> T:
    """The same of all text in a value; not of a page that is made of it, where marks stand in between."""
    from .ops.redact import redacted_value, secrets_in

    return convert(redacted_value(to_builtins(value), secrets_in(os.environ)), type(value))


def _rollout(one: Incident, db: Path) -> Rollout:
    """The rollout that was taken back, as it was then; else as the database knows it."""
    from .rollout.states import rollouts_in

    for document in (one.document(states.DOCUMENT), _documents(db).get(states.DOCUMENT, Document())):
        for rollout in rollouts_in(document).rollouts.values():
            if rollout.id == one.about.rollout:
                return rollout
    raise click.ClickException(
        f"expected the rollouts in incident {one.about.id}, or in the database; got neither: {one.about.lacking}"
    )


def _watch(one: Incident, rollout: Rollout) -> Watch:
    from .rollout.triggers import watches_in

    return watches_in(one.document(triggers.DOCUMENT)).of(rollout)


def _latest(db: Path, rollout: Rollout) -> tuple[Rollout, Watch | None]:
    """The rollout and its watch as they are by now, unless there is a later one of its subject."""
    from .rollout.states import rollouts_in
    from .rollout.triggers import watches_in

    now = _documents(db)
    found = rollouts_in(now.get(states.DOCUMENT, Document())).rollouts.get(rollout.subject)
    if found is None or found.id != rollout.id:
        return rollout, None
    return found, watches_in(now.get(triggers.DOCUMENT, Document())).of(found)


def _documents(db: Path) -> dict[str, Document]:
    """What the database says; nothing, if it is gone or cannot be read: the incident is of when it could."""
    from .stores.status import documents

    try:
        return documents(db) if db.exists() else {}
    except StoreError:
        return {}


# --- reconcile ----------------------------------------------------------------------------------------------------


def _time(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    found = parse_time(value)
    if found is None:
        raise click.UsageError(f"--since: expected a time such as 2026-06-15T09:41:02Z; got {value!r}")
    return found


@click.command()
@db_option
@click.option("--graph", default=None, help="Only this graph; without, all.")
@click.option(
    "--since", default=None, callback=_time, help="Rows from this time on.  [default: since the last rollout began]"
)
@click.option("--manual", multiple=True, metavar="TYPE", help="As `serve` was told.")
@click.option("--strict-v2", is_flag=True, help="As `serve` was told.")
@json_option
def reconcile(
    db: Path, graph: str | None, since: int | None, manual: tuple[str, ...], strict_v2: bool, as_json: bool
) -> int:
    """Say what became of each row that was written since a rollout began. Exits with 1 while anything is unexplained.

    Each row is served, says that something is deleted, was followed by another one, or lost; of those that lost it is
    decided anew why. Logs are audited, what each wire version shows is compared, and what only the journal knows is
    counted. Changes nothing; a server may run meanwhile.
    """
    from .merge import Policy
    from .merge import manual as by_hand
    from .stores import status as stores

    if manual and strict_v2:
        raise click.UsageError("expected --manual or --strict-v2; got both")
    policy = Policy.strict() if strict_v2 else Policy(rules={type_.lower(): by_hand for type_ in manual})
    if not db.exists():
        raise click.ClickException(f"expected a database at {db}; got no file: see --db")
    known = {  # before the logs are read, which may grow meanwhile
        one.graph: max([0, *(kept.seq for kept in (one.journal, one.beside) if kept and kept.standing == "ahead")])
        for one in stores.status(db).graphs
    }
    if graph is not None and graph not in known:
        raise click.ClickException(f"expected one of the graphs {', '.join(known) or '(none)'}; got {graph}")
    begun = _begun(db) if since is None else since
    names = list(known) if graph is None else [graph]
    found = in_store(db, lambda store: _reconciled(store, names, begun, policy, known))
    unexplained = sum(one.count for one in found)
    if as_json:
        told = {"since": format_time(begun), "unexplained": unexplained, "graphs": [_told(one) for one in found]}
        click.echo(json.dumps(told))
    else:
        for one in found:
            for line in _lines(one):
                click.echo(line)
        click.echo(f"{unexplained:,} unexplained in {len(found)} graphs, of what was written since {utc(begun)}")
    return 1 if unexplained else 0


async def _reconciled(
    store: Store, names: list[str], since: int, policy: Any, known: dict[str, int]
) -> list[Reconciled]:
    from .ops.reconcile import reconcile as reconciled

    return [await reconciled(store, name, since=since, policy=policy, known=known[name]) for name in names]


def _begun(db: Path) -> int:
    """When the rollout began that was moved last; the beginning of all things, if there never was one."""
    from .rollout.states import rollouts_in

    rollouts = rollouts_in(_documents(db).get(states.DOCUMENT, Document())).rollouts.values()
    last = max(rollouts, key=lambda one: one.since, default=None)
    return 0 if last is None else last.log[0].cause.at if last.log else last.since


def _told(one: Reconciled) -> dict[str, Any]:
    from .rollout.reconcile import FATES

    accounts = one.accounts
    return {
        "graph": one.graph,
        "after": accounts.after,
        "upto": accounts.head.seq,
        "rows": accounts.fates.total(),
        **{fate: accounts.fates[fate] for fate in FATES},
        "why": dict(accounts.why),
        "offered": list(one.offered),
        "shown": {name: dict(counts) for name, counts in accounts.shown.items()},
        "values_not_shown": {name: accounts.values[name] for name in accounts.shown},
        "rows_unexplained": [asdict(row) for row in accounts.unexplained],
        "lost": one.lost,
        "audit": one.report.count,
        "shadow": None if one.compared is None else one.compared.count,
        "total_unexplained": one.count,
    }


def _lines(one: Reconciled) -> Iterator[str]:
    accounts = one.accounts
    fates = accounts.fates
    where = f", from {accounts.after + 1:,} to {accounts.head.seq:,}" if fates else ""
    yield f"{one.graph}: {fates.total():,} rows{where}"
    for label, fate in (
        ("served", "served"),
        ("deleted", "tombstone"),
        ("followed", "superseded"),
        ("merged", "merged"),
        ("kept", "kept"),
        ("open", "open"),
    ):
        if fates[fate]:  # type: ignore[index]
            yield f"  {label:<12}{fates[fate]:,}{_MEANS[fate]}"  # type: ignore[index]
    for why, count in sorted(accounts.why.items()):
        yield f"  {'':<12}{count:,}: {why}"
    for name, counts in accounts.shown.items():
        if counts["hidden"] or counts["in_part"]:
            now = "offered now" if name in one.offered else "not offered now"
            parts = [f"{counts['hidden']:,} rows"] if counts["hidden"] else []
            if counts["in_part"]:
                parts.append(f"{accounts.values[name]:,} values of {counts['in_part']:,} rows")
            yield f"  {'not shown':<12}by {name}, {now}: {', and '.join(parts)}; all are in the graph"
    audit = "whole" if one.report.count == 0 else f"{one.report.count:,} wrong: see `inbetweenies audit`"
    yield f"  {'log':<12}{audit}"
    if one.compared is not None:
        shadow = "show what they must" if one.compared.count == 0 else f"{one.compared.count:,} shown wrongly or lost"
        yield f"  {'versions':<12}{', '.join(one.compared.versions)}: {shadow}"
    if one.lost:
        yield f"  {'LOST':<12}{one.lost:,} rows that the journal knows: start a server, which gets them back"
    for row in accounts.unexplained:
        yield f"  {'UNEXPLAINED':<12}row {row.seq}, {row.kind} {row.id} {row.version}: {row.told}"
    if (left := fates["unexplained"] - len(accounts.unexplained)) > 0:
        yield f"  {'':<12}and {left:,} more"


_MEANS = {
    "served": "",
    "tombstone": ", and say so",
    "superseded": ", by another row of the same thing",
    "merged": ", and are in the row that followed",
    "kept": " as rows that lost, and can be read back",
    "open": " that wait for a person: blowing-off conflicts",
}
