"""``inbetweenies backup``, ``verify`` and ``restore``: copies of a database that are known to be good.

What writes and reads files is in `inbetweenies.ops`. When backups are made is for cron or systemd to say.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_log import journal_option
from .cli_versions import db_option, json_option

if TYPE_CHECKING:
    from .ops.manifest import Manifest
    from .ops.verify import Verdict

_file = click.Path(dir_okay=False, path_type=Path)


@click.command()
@db_option
@click.argument("target", type=click.Path())
@click.option(
    "--keep", type=click.IntRange(1), default=None, help="Of a folder: how many backups of this database to keep."
)
@json_option
def backup(db: Path, target: str, keep: int | None, as_json: bool) -> None:
    """Copy the database to TARGET, a new file or a folder, and verify the copy. A server may run meanwhile.

    What ends in a slash is a folder, and is made if there is none.

    In a folder the copy is named after the time. Beside it goes a manifest, last: a copy without one is unfinished.
    With --keep the oldest go, but only once the new one is verified.
    """
    from .ops.backup import backup as copy

    if target.endswith(("/", os.sep)):
        Path(target).mkdir(mode=0o700, exist_ok=True)
    made = copy(db, Path(target), keep=keep, progress=progress())
    removed = [str(path) for path in made.removed]
    if as_json:
        click.echo(json.dumps({"path": str(made.path), "removed": removed, "manifest": _told(made.manifest)}))
        return
    click.echo(f"{made.path}: {_summary(made.manifest)}")
    for path in removed:
        click.echo(f"removed {path}")


def progress() -> Callable[[int, int], None]:
    """Says on standard error how far it is, if that is a terminal."""

    def told(done: int, total: int) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r{done / max(total, 1):4.0%}" + ("\r    \r" if done == total else ""), err=True, nl=False)

    return told


def _told(manifest: Manifest) -> dict[str, Any]:
    graphs = [{name: getattr(mark, name) for name in mark.__struct_fields__} for mark in manifest.graphs]
    return {name: getattr(manifest, name) for name in manifest.__struct_fields__} | {"graphs": graphs}


def _summary(manifest: Manifest) -> str:
    rows = ", ".join(f"{mark.graph} {mark.seq:,} rows" for mark in manifest.graphs) or "no graphs"
    return f"as of {manifest.made[:19]}, {manifest.size:,} bytes, {rows}"


@click.command()
@click.argument("backups", type=_file, nargs=-1, required=True)
@json_option
def verify(backups: tuple[Path, ...], as_json: bool) -> int:
    """Say of each of BACKUPS whether it can be restored, and if not, why. Exits with 1 unless all are good.

    Hashes, chains and digests are computed again from its rows. Nothing is written.
    """
    from .ops.verify import verify as look

    verdicts = [look(path) for path in backups]
    if as_json:
        click.echo(json.dumps({"backups": [_verdict(verdict) for verdict in verdicts]}))
    else:
        for verdict in verdicts:
            summary = f": {_summary(verdict.manifest)}" if verdict.good and verdict.manifest is not None else ""
            click.echo(f"{verdict.path}: {verdict.kind}{summary}")
            for problem in verdict.problems:
                click.echo(f"  {problem}")
    return 0 if all(verdict.good for verdict in verdicts) else 1


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "path": verdict.path,
        "result": verdict.kind,
        "problems": list(verdict.problems),
        "manifest": None if verdict.manifest is None else _told(verdict.manifest),
    }


@click.command()
@db_option
@click.argument("backup", type=_file)
@click.option("--discard-after", is_flag=True, help="What came after the backup is to stay away.")
@journal_option
@json_option
def restore(db: Path, backup: Path, discard_after: bool, journal: Path | None, as_json: bool) -> None:
    """Put BACKUP in the place of the database, once it is verified. Refuses while a server has it open.

    What was there is kept in a folder beside it. What was acknowledged since the backup comes back by itself, from the
    journal when a server starts and from clients when they sync; with --discard-after it does not.
    """
    from .ops.restore import restore as put

    done = put(backup, db, journal=journal, discard=discard_after)
    aside = [str(path) for path in done.aside]
    if as_json:
        names = ("seq", "epoch")
        discarded = [{"graph": graph, **{name: one.told[name] for name in names}} for graph, one in done.discarded]
        kept = None if done.journal is None else str(done.journal)
        told = {"db": str(db), "aside": aside, "journal": kept, "discarded": discarded}
        click.echo(json.dumps(told | {"manifest": _told(done.manifest)}))
        return
    click.echo(f"{db}: {_summary(done.manifest)}")
    if done.aside:
        kept = ", ".join(path.name for path in done.aside)
        click.echo(f"what was there is kept in {done.aside[0].parent}: {kept}")
    for name, event in done.discarded:
        click.echo(f"{name}: {event}")
    if not discard_after and done.journal is not None:
        click.echo(f"what was acknowledged since comes back from {done.journal} when a server starts")
