"""``inbetweenies export`` and ``import``: whole logs as text, to be kept, looked into, or moved to another server."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .cli_backup import progress
from .cli_versions import db_option, json_option

_file = click.Path(dir_okay=False, path_type=Path)


@click.command("export")
@db_option
@click.argument("out", type=_file)
@click.option("--graph", default=None, help="Only this graph; without, all.")
@json_option
def export(db: Path, out: Path, graph: str | None, as_json: bool) -> None:
    """Write the graphs of the database to OUT, a new file of JSON Lines, as of one commit. A server may run meanwhile.

    One line a row in commit order, losing ones and tombstones too, between a line that says what is in the file and
    one with how many and the SHA-256 of them all. Tokens are not in it, nor what was decided of versions.
    """
    from .ops.portable import export_to

    made = export_to(db, out, graph=graph, progress=progress())
    graphs = [{"graph": log.graph, "rows": log.seq, "digest": log.digest} for log in made.header.graphs]
    if as_json:
        told = {"path": str(out), "rows": made.header.rows, "sha256": made.sha256, "graphs": graphs}
        click.echo(json.dumps(told))
        return
    held = ", ".join(f"{one['graph']} {one['rows']:,} rows" for one in graphs) or "no graphs"
    click.echo(f"{out}: {out.stat().st_size:,} bytes, {held}")


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@db_option
@json_option
def import_command(file: Path, db: Path, as_json: bool) -> None:
    """Put the graphs in FILE, which `export` has written, into the database, which is made if there is none.

    All of it or nothing, and the same log to the letter. Refuses while a server has the database open, and where a
    graph holds something else already; what is there already is left as it is.
    """
    from .ops.portable import import_from

    done = import_from(file, db, progress=progress())
    if as_json:
        graphs = [{"graph": one.graph, "rows": one.rows, "imported": one.came} for one in done.graphs]
        click.echo(json.dumps({"db": str(db), "made": done.made, "graphs": graphs}))
        return
    for one in done.graphs:
        click.echo(f"{one.graph}: {one.rows:,} rows {'imported' if one.came else 'were there already'}")
    if not done.graphs:
        click.echo(f"{file} holds no graphs")
