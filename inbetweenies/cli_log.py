"""``inbetweenies status`` and ``inbetweenies log``: where the log of each graph stands, and what happened to it.

What is being rolled out is told in the same words as by ``inbetweenies rollout status``.

A database that is set back needs no command: the journal and the clients give it what it lacks. Only whoever means it
to stay as it is has to say so.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_versions import db_option, json_option, table
from .errors import StoreError
from .model import Event, format_time
from .show_rollout import drawn, recent
from .show_rollout import told as told_rollouts

if TYPE_CHECKING:
    from .rollout.report import StatusReport
    from .stores.status import GraphStatus, Kept, StoreStatus

journal_option = click.option(
    "--journal",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The folder of the journal; without, where a server last kept it, or beside the database.",
)


def _happened(graph: GraphStatus) -> list[Event]:
    """What people should know; which devices were told something (PROTOCOL 14.3) is for `inbetweenies notify list`."""
    return [event for event in graph.events if event.kind != "noticed"]


@click.command()
@db_option
@journal_option
@json_option
def status(db: Path, journal: Path | None, as_json: bool) -> None:
    """Show where the log of each graph stands, what is kept outside of the database, what happened, and what is being
    rolled out or was in the last day.

    Changes nothing; a server may run meanwhile.
    """
    from .stores import status as stores

    if not db.exists():
        raise click.ClickException(f"expected a database at {db}; got no file: see --db")
    found = stores.status(db, journal)
    rollouts, unread = _rollouts(db, found)
    if as_json:
        click.echo(json.dumps(_told(found) | told_rollouts(rollouts) | {"rollouts_unread": unread}))
        return
    _print(found)
    if rollouts:
        click.echo(f"\n{drawn(rollouts, db)}")
    if unread is not None:
        click.echo(f"the rollouts cannot be read: {unread}")


def _rollouts(db: Path, found: StoreStatus) -> tuple[list[StatusReport], str | None]:
    """What is being rolled out, and why that cannot be told; read from the file, without opening it as a store."""
    from .ops.rollouts import RolloutControl
    from .stores import MemoryStore
    from .stores.clock import wall_clock
    from .stores.keeper import run_now
    from .stores.status import documents

    try:
        copy = MemoryStore()
        for name, document in documents(db).items():
            run_now(copy.put_document(name, document.body, revision=0))
        standings = RolloutControl(copy).standings()
    except StoreError as error:  # where the logs stand is told nevertheless
        return [], str(error)
    return recent(standings, db, now=wall_clock(), graphs=[graph.graph for graph in found.graphs]), None


def _told(found: StoreStatus) -> dict[str, Any]:
    return {
        "path": found.path,
        "journal": {name: getattr(found.journal, name) for name in found.journal.__struct_fields__},
        "graphs": [
            {
                "graph": graph.graph,
                "epoch": graph.epoch,
                "seq": graph.seq,
                "chain": graph.chain,
                "stamp": format_time(graph.stamp),
                "digest": graph.digest,
                "journal": _kept(graph.journal),
                "beside": _kept(graph.beside),
                "forks": graph.count("fork"),
                "replayed": graph.count("replay", "rows"),
                "offered": graph.count("offer", "rows"),
                "discards": graph.count("discard"),
                "device_forks": graph.count("device_forked"),
                "events": [
                    {"kind": event.kind, "at": format_time(event.at), **event.told, "says": str(event)}
                    for event in _happened(graph)
                ],
            }
            for graph in found.graphs
        ],
    }


def _kept(kept: Kept | None) -> dict[str, Any] | None:
    return None if kept is None else {"seq": kept.seq, "epoch": kept.epoch, "standing": kept.standing}


def _print(found: StoreStatus) -> None:
    columns = ("graph", "rows", "epoch", "journal", "beside", "set_back", "replayed", "offered")
    table(columns, [_line(graph) for graph in found.graphs])
    journal = found.journal
    held = f"{journal.segments} files, {journal.bytes:,} bytes" if journal.segments else "nothing"
    click.echo(f"journal in {journal.folder}: {held}")
    for graph in found.graphs:
        for event in _happened(graph):
            click.echo(f"{format_time(event.at)[:19]}  {graph.graph}: {event}")


def _line(graph: GraphStatus) -> tuple[object, ...]:
    return (
        graph.graph,
        graph.seq,
        graph.epoch,
        graph.journal and graph.journal.standing,
        graph.beside and graph.beside.standing,
        graph.count("fork") + graph.count("replay"),
        graph.count("replay", "rows"),
        graph.count("offer", "rows"),
    )


@click.group()
def log() -> None:
    """Say what is to become of a log that was set back."""


@log.command("discard-after")
@db_option
@journal_option
@json_option
def discard_after(db: Path, journal: Path | None, as_json: bool) -> None:
    """Keep a database that was set back as it is: what came after it is to stay away.

    To be run once it is in its place and before a server is started on it. The journal then gives nothing back, and
    clients keep what was acknowledged after that in their histories only; what they have not sent yet, they send.
    """
    from .stores import SqliteStore
    from .stores.heads import journal_of

    if not db.exists():
        raise click.ClickException(f"expected a database at {db}; got no file: see --db")
    store = SqliteStore(db, journal=journal or journal_of(db), discard=True)
    asyncio.run(store.close())
    if as_json:
        names = ("seq", "epoch")
        told = [{"graph": graph, **{name: event.told[name] for name in names}} for graph, event in store.happened]
        click.echo(json.dumps({"discarded": told}))
        return
    for graph, event in store.happened:
        click.echo(f"{graph}: {event}")
