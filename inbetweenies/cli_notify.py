"""``inbetweenies notify``: what people are told of the service, how far that came, and who is called (PROTOCOL 14).

A running server tells what is decided here within seconds, and whoever comes later when they do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from msgspec import to_builtins

from .cli_versions import actor_option, db_option, json_option, opened, table
from .errors import LocalProtocolError
from .model import format_time
from .rollout.notices import message
from .rollout.report import UNITS

if TYPE_CHECKING:
    from .ops.channels import Result
    from .ops.notify import Delivered, UserNotification
    from .rollout.escalation import Alert
    from .rollout.notices import Notice
    from .store import Store

T = TypeVar("T")

channel_option = click.option(
    "--channel",
    multiple=True,
    metavar="URL",
    help="How to reach those who look after the server, the first to be used first; may be said several times: "
    "file:///path, or what Apprise knows (pip install 'inbetweenies[notify]').",
)


def people_of(store: Store, urls: tuple[str, ...]) -> UserNotification:
    """Who tells people of `store`, over these channels. Raises `click.UsageError`: one of them is none."""
    from .ops.channels import channel_of
    from .ops.notify import UserNotification

    try:
        return UserNotification(store, channels=[channel_of(url) for url in urls])
    except LocalProtocolError as error:
        raise click.UsageError(f"--channel: {error}") from None


def _seconds(_: click.Context, __: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"(\d{1,6})([smhd])", value, re.ASCII)
    if found is None:
        raise click.UsageError(f"DURATION: expected a time such as 90s, 30m, 2h or 1d; got {value!r}")
    return int(found[1]) * UNITS[found[2]]


def _with(db: Path, urls: tuple[str, ...], work: Callable[[UserNotification], Coroutine[Any, Any, T]]) -> T:
    from .stores.keeper import run_now

    with opened(db) as store:
        return run_now(work(people_of(store, urls)))


@click.group()
def notify() -> None:
    """Tell people what happens to the service, see who has heard, and call those who look after it."""


# --- people -------------------------------------------------------------------------------------------------------


@notify.command()
@click.argument("duration", callback=_seconds)
@db_option
@click.option("--graph", "graphs", multiple=True, help="Only the people of this graph; may be said several times.")
@click.option("--key", default=None, help="Names it: said twice under one key, it is told once.")
@json_option
def maintenance(duration: int, db: Path, graphs: tuple[str, ...], key: str | None, as_json: bool) -> None:
    """Tell that the server will be away from now on for DURATION, such as 30m."""
    made = _with(db, (), lambda people: people.notify_maintenance(duration, graphs=graphs or None, key=key))
    if as_json:
        click.echo(json.dumps(_told(made)))
        return
    click.echo(f"told until {format_time(made.expires)[:19]}Z under the key {made.key}: {_words(made)}")


@notify.command("list")
@db_option
@json_option
def list_(db: Path, as_json: bool) -> None:
    """List what is being told, and in how many graphs somebody has heard; then whom was called for what."""

    async def found(people: UserNotification) -> tuple[tuple[Delivered, ...], tuple[Alert, ...]]:
        return await people.delivered(), await people.alerts()

    delivered, alerts = _with(db, (), found)
    if as_json:
        listed = [_told(one.notice) | {"graphs": to_builtins(one.graphs), "waiting": one.waiting} for one in delivered]
        click.echo(json.dumps({"notices": listed, "alerts": to_builtins(alerts)}))
        return
    columns = ("key", "at", "until", "graphs", "heard", "proven", "devices")
    table(columns, [_line(one) for one in delivered])
    for alert in alerts:
        click.echo(_called(alert))


@notify.command()
@db_option
@channel_option
@json_option
def prove(db: Path, channel: tuple[str, ...], as_json: bool) -> int:
    """Do at once what a server does by itself: audit the graphs in which a rollback is told, and call who is due.

    Exits with 1 if a graph is not proven to be whole.
    """

    async def looked(people: UserNotification) -> tuple[Delivered, ...]:
        await people.look()
        return await people.delivered()

    delivered = _with(db, channel, looked)
    left = sorted({one.graph for each in delivered if each.notice.reach for one in each.graphs if not one.proven})
    if as_json:
        click.echo(json.dumps({"unproven": left}))
    else:
        click.echo("all is proven" if not left else f"not proven: {', '.join(left)}: see `inbetweenies audit`")
    return 1 if left else 0


# --- those who look after it --------------------------------------------------------------------------------------


@notify.command()
@db_option
@channel_option
@json_option
def test(db: Path, channel: tuple[str, ...], as_json: bool) -> int:
    """Use every channel once, whatever becomes of the others. Exits with 1 if one is down."""
    if not channel:
        raise click.UsageError("expected at least one --channel; got none")

    async def fired(people: UserNotification) -> tuple[Result, ...]:
        return people.test()

    results = _with(db, channel, fired)
    if as_json:
        click.echo(json.dumps({"channels": to_builtins(results)}))
    else:
        table(("channel", "result"), [(one.channel, one.error or "sent") for one in results])
    return 1 if any(one.error for one in results) else 0


@notify.command()
@click.argument("key")
@db_option
@actor_option
@json_option
def ack(key: str, db: Path, actor: str, as_json: bool) -> None:
    """Say that somebody has seen the alert KEY: nobody else is called for it."""
    alert = _with(db, (), lambda people: people.acknowledge(key, actor=actor))
    click.echo(json.dumps(to_builtins(alert)) if as_json else _called(alert))


# --- in words -----------------------------------------------------------------------------------------------------


def _words(notice: Notice) -> str:
    return message(notice.kind, duration_s=notice.duration_s)[1]


def _told(notice: Notice) -> dict[str, Any]:
    return {
        "id": notice.id,
        "key": notice.key,
        "type": notice.kind,
        "at": format_time(notice.at),
        "expires": format_time(notice.expires),
        "duration": notice.duration_s,
        "subject": None if notice.reach is None else f"{notice.reach.subject}/{notice.reach.serial}",
    }


def _line(one: Delivered) -> tuple[object, ...]:
    return (
        one.notice.key,
        f"{format_time(one.notice.at)[:19]}Z",
        f"{format_time(one.notice.expires)[:19]}Z",
        len(one.graphs),
        len(one.graphs) - len(one.waiting),
        None if one.notice.reach is None else sum(each.proven for each in one.graphs),
        sum(each.devices for each in one.graphs),
    )


def _called(alert: Alert) -> str:
    sent = sum(attempt.error is None for attempt in alert.attempts)
    seen = alert.acknowledged
    who = "nobody has acknowledged it" if seen is None else f"{seen.actor} has seen it"
    down = sorted({attempt.channel for attempt in alert.attempts if attempt.error is not None})
    failed = f", down: {', '.join(down)}" if down else ""
    return f"{alert.key}: sent {sent} times{failed}; {who}"
