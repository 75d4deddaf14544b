"""``inbetweenies versions`` and ``inbetweenies census``: which wire versions are served, and who would notice.

What is decided here is kept in the database and holds for the next request of every process that serves it. No client
ever raises what others need: only whoever runs this does, and is shown first who would be left behind.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from msgspec import Struct
from msgspec.structs import asdict, replace

from . import census
from .census import Entry, entries_in, would_break
from .errors import LocalProtocolError
from .model import Document, format_time
from .negotiation import NAME
from .registry import DOCUMENT, Decision, Decisions, Notice, Registry, State, decisions_in, document_of, registry_of
from .rollout.report import UNITS
from .store import Store

T = TypeVar("T")

DAY_US: Final = 24 * 3600 * 1_000_000
COUNT_COLUMNS: Final = ("version", "client", "last_seen", "reads", "writes", "refused", "served")


def _login() -> str:
    with suppress(KeyError, OSError, ImportError):  # without a name in the environment, and without an account
        return getpass.getuser()
    return f"user {os.getuid()}" if hasattr(os, "getuid") else "somebody"


db_option = click.option(
    "--db", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The database file of the server."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
actor_option = click.option(
    "--actor", default=_login, show_default="the login name", help="Who does it; kept with what is done."
)
reason_option = click.option("--reason", default="not given", help="Why; kept with what is done.")
_days = click.option(
    "--days", type=click.IntRange(1, 400), default=30, show_default=True, help="Count who was seen in so many days."
)
_yes = click.option("--yes", is_flag=True, help="Do it, whoever breaks and whatever the version is called.")
_name = click.argument("version", callback=lambda _, __, value: _checked(value))


def _checked(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise click.UsageError("VERSION: expected 1 to 64 printable ASCII characters; got something else")
    return name


def seconds_of(value: str, what: str) -> int:
    """A time as people write it. Raises `click.UsageError`: it is none."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", value, re.ASCII)
    if found is None:
        raise click.UsageError(f"{what}: expected a time such as 90s, 30m, 2h or 1d; got {value!r}")
    return int(found[1]) * UNITS[found[2]]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; what is not there is a dash."""
    lines = [columns, *([str("-" if cell is None else cell) for cell in row] for row in rows)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


# --- what is there ------------------------------------------------------------------------------------------------


class Found(Struct, frozen=True, kw_only=True):
    """What the database holds about wire versions, and what is installed here."""

    installed: tuple[str, ...]
    decided: Decisions
    entries: tuple[Entry, ...]
    changes: int

    @property
    def known(self) -> tuple[str, ...]:
        """Every version there is something to say about."""
        return tuple(dict.fromkeys((*self.installed, *sorted(self.decided.versions))))

    def registry(self, decided: Decisions | None = None) -> Registry:
        """What is in force, or would be. Raises `LocalProtocolError`: nothing would be served."""
        from .router import FALLBACK

        return registry_of(self.installed, decided or self.decided, fallback=FALLBACK, missing=FALLBACK)


@contextmanager
def opened(db: Path) -> Iterator[Store]:
    """The store in a database that is there, for what is not in its graphs. A server may run meanwhile."""
    from .stores import SqliteStore

    if not db.exists():
        raise click.ClickException(f"expected a database at {db}; got no file: see --db")
    store = SqliteStore(db, journal=False, heads=False)  # where these are is the server's business
    try:
        yield store
    finally:
        asyncio.run(store.close())


def in_store(db: Path, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
    """The result of `work` over the database, which a server may have open meanwhile."""
    with opened(db) as store:
        return asyncio.run(work(store))


def _found(db: Path) -> Found:
    from .wire import load

    async def read(store: Store) -> tuple[Document, Document]:
        return await store.document(DOCUMENT), await store.document(census.DOCUMENT)

    decided, counted = in_store(db, read)
    return Found(
        installed=tuple(load()),
        decided=decisions_in(decided),
        entries=entries_in(counted),
        changes=decided.revision,
    )


def _now() -> int:
    from .stores.clock import wall_clock

    return wall_clock()


# --- versions -----------------------------------------------------------------------------------------------------


@click.group()
def versions() -> None:
    """Say which wire versions a server serves. A running server obeys at its next request."""


@versions.command("list")
@db_option
@json_option
def list_(db: Path, as_json: bool) -> None:
    """List the wire versions, best first, and what was decided about each."""
    found = _found(db)
    told = [_version(name, found) for name in found.known]
    if as_json:
        click.echo(json.dumps({"changes": found.changes, "versions": told}))
    else:
        columns = ("version", "state", "deprecated_at", "sunset_at", "successor", "last_seen")
        table(columns, ([one[column] for column in columns] for one in told))


def _version(name: str, found: Found) -> dict[str, Any]:
    decision = found.decided.of(name)
    notice = decision.notice
    seen = max((entry.last for entry in found.entries if name in (entry.version, entry.served)), default=None)
    return {
        "version": name,
        "state": decision.state,
        "installed": name in found.installed,
        "deprecated_at": _time(None if notice is None else notice.since),
        "sunset_at": _time(None if notice is None else notice.sunset),
        "successor": None if notice is None else notice.successor,
        "link": None if notice is None else notice.link,
        "last_seen": _time(seen),
    }


@versions.command()
@_name
@db_option
@click.option(
    "--as",
    "state",
    type=click.Choice(["deployed", "offered", "accepted"]),
    default="deployed",
    show_default=True,
    help="accepted: served to who names it; offered: told to peers as well; deployed: preferred.",
)
@json_option
def enable(version: str, db: Path, state: State, as_json: bool) -> None:
    """Serve VERSION again, or in stages: as accepted, then offered, then deployed; and back in the other order."""
    _decide(db, version, lambda before: replace(before, state=state), as_json=as_json)


@versions.command()
@_name
@db_option
@_days
@_yes
@json_option
def disable(version: str, db: Path, days: int, yes: bool, as_json: bool) -> int:
    """Refuse VERSION for now. What its clients have written stays with them until it is enabled, or they speak
    another version.

    Refuses while somebody was seen in the last days that speaks nothing else that is served.
    """
    return _switch_off(db, version, days, yes, as_json, lambda before: replace(before, state="disabled"))


@versions.command()
@_name
@db_option
@click.option("--successor", default=None, help="The version to move to.")
@click.option("--link", default=None, help="Where people can read about it.")
@_days
@_yes
@json_option
def retire(version: str, db: Path, successor: str | None, link: str | None, days: int, yes: bool, as_json: bool) -> int:
    """Refuse VERSION for good. As `disable`, but its clients are told not to come back with it."""
    now = _now()

    def retired(before: Decision) -> Decision:
        notice = before.notice or Notice(since=now)
        over = now if notice.sunset is None else max(min(notice.sunset, now), notice.since)
        told = replace(notice, sunset=over, successor=successor or notice.successor, link=link or notice.link)
        return Decision(state="retired", notice=told)

    return _switch_off(db, version, days, yes, as_json, retired)


@versions.command()
@_name
@db_option
@click.option(
    "--sunset", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]), help="When it will be retired, in UTC."
)
@click.option("--successor", default=None, help="The version to move to.")
@click.option("--link", default=None, help="Where people can read about it.")
@click.option("--off", is_flag=True, help="Take it back: the version is not deprecated any more.")
@json_option
def deprecate(
    version: str,
    db: Path,
    sunset: datetime | None,
    successor: str | None,
    link: str | None,
    off: bool,
    as_json: bool,
) -> None:
    """Tell all who use VERSION, with each answer, that it is on its way out. It is served as before."""
    ends = None if sunset is None else int(sunset.replace(tzinfo=UTC).timestamp()) * 1_000_000
    now = _now()

    def deprecated(before: Decision) -> Decision:
        if off:
            return replace(before, notice=None)
        since = now if before.notice is None else before.notice.since
        return replace(before, notice=Notice(since=since, sunset=ends, successor=successor, link=link))

    _decide(db, version, deprecated, as_json=as_json)


def _decide(db: Path, version: str, change: Callable[[Decision], Decision], *, as_json: bool) -> None:
    found = _found(db)
    if version not in found.known:
        raise LocalProtocolError(f"expected one of {', '.join(found.known)}; got another version")
    _keep(db, found, version, change)
    told = _version(version, _found(db))
    if as_json:
        click.echo(json.dumps({"changed": True, **told}))
    else:
        since = "" if told["deprecated_at"] is None else f", deprecated since {told['deprecated_at']}"
        click.echo(f"{version} is {told['state']}{since}")


def _switch_off(
    db: Path, version: str, days: int, yes: bool, as_json: bool, change: Callable[[Decision], Decision]
) -> int:
    found = _found(db)
    if version not in found.known and not yes:
        raise LocalProtocolError(
            f"expected one of {', '.join(found.known)}; got a version that is not installed. With --yes it is taken"
        )
    found.registry(found.decided.but(version, change(found.decided.of(version))))  # what cannot be is told first
    counts = [
        _count(entry) for entry in would_break(found.entries, version, found.registry(), since=_now() - days * DAY_US)
    ]
    refuse = bool(counts) and not yes
    if not refuse:
        _keep(db, found, version, change)
    told = _version(version, _found(db))
    if as_json:
        click.echo(json.dumps({"changed": not refuse, **told, "would_break": counts}))
    elif counts:
        table(COUNT_COLUMNS, ([one[column] for column in COUNT_COLUMNS] for one in counts))
    if refuse:
        raise click.ClickException(
            f"expected nobody seen in {days} days to need {version}; got {len(counts)} kinds of clients that speak "
            "nothing else that is served: update them, or say --yes"
        )
    if not as_json:
        click.echo(f"{version} is {told['state']}")
    return 0


def _keep(db: Path, found: Found, version: str, change: Callable[[Decision], Decision]) -> None:
    from .stores import amend

    def changed(document: Document) -> bytes:
        before = decisions_in(document)
        after = before.but(version, change(before.of(version)))
        found.registry(after)  # raises if nothing would be served
        return document_of(after)

    in_store(db, lambda store: amend(store, DOCUMENT, changed))


# --- census -------------------------------------------------------------------------------------------------------


@click.command("census")
@db_option
@_days
@json_option
def census_command(db: Path, days: int, as_json: bool) -> None:
    """Show who speaks what, and who would break if a version were disabled.

    A running server writes down at once when something new is seen, and counts once a minute. No person and no device
    can be told from it.
    """
    found = _found(db)
    registry, since = found.registry(), _now() - days * DAY_US
    breaks = {
        name: {(entry.version, entry.release) for entry in would_break(found.entries, name, registry, since=since)}
        for name in registry.accepted
    }
    told = []
    for entry in sorted(found.entries, key=lambda one: (one.version, -one.last)):
        named = [name for name, who in breaks.items() if (entry.version, entry.release) in who]
        told.append({**_count(entry), "breaks_without": named[0] if named else None})
    if as_json:
        left = {name: [one for one in told if one["breaks_without"] == name] for name in registry.accepted}
        click.echo(json.dumps({"days": days, "census": told, "would_break": left}))
    else:
        columns = (*COUNT_COLUMNS, "breaks_without")
        table(columns, ([one[column] for column in columns] for one in told))


def _count(entry: Entry) -> dict[str, Any]:
    told = asdict(entry)
    return {
        "version": entry.version,
        "client": entry.release,
        "last_seen": _time(entry.last),
        **{name: told[name] for name in ("reads", "writes", "refused", "served", "offers")},
    }


def _time(micros: int | None) -> str | None:
    return None if micros is None else format_time(micros)
