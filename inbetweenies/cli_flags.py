"""``inbetweenies flags``: which features are on, who switched them and why (PROTOCOL 12.4).

What is switched here counts in every process that serves the database within a second, for each sync that begins then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_versions import actor_option, db_option, json_option, opened, reason_option, table
from .model import format_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ops.flags import FeatureFlags
    from .rollout.flags import Flags, Switch

_feature = click.argument("feature")


@click.group()
def flags() -> None:
    """Switch features on and off. Running servers obey within a second; a sync keeps what it began with."""


@flags.command("list")
@db_option
@json_option
def list_(db: Path, as_json: bool) -> None:
    """List the features, whether they are on, and who switched them last."""
    from .rollout.flags import DOCUMENT, FEATURES, flags_in
    from .stores.keeper import run_now

    with opened(db) as store:
        document = run_now(store.document(DOCUMENT))
    kept = flags_in(document)
    told = [_told(name, kept) for name in dict.fromkeys((*FEATURES, *sorted(kept.flags)))]
    if as_json:
        log = [_switched(one) for one in kept.log]
        click.echo(json.dumps({"changes": document.revision, "features": told, "log": log}))
        return
    columns = ("feature", "state", "needs", "switched", "at", "by", "why")
    table(columns, (_row(one) for one in told))


def _told(name: str, kept: Flags) -> dict[str, Any]:
    from .rollout.flags import FEATURES

    feature = FEATURES.get(name)
    last = next((one for one in reversed(kept.log) if one.feature == name), None)
    return {
        "feature": name,
        "on": name in kept.on(),
        "known": feature is not None,
        "needs": [] if feature is None else list(feature.needs),
        "switched": kept.flags.get(name),  # on, but for what it needs; None: never
        "last": None if last is None else _switched(last),
    }


def _switched(one: Switch) -> dict[str, Any]:
    cause = one.cause
    who = {"at": format_time(cause.at), "actor": cause.actor, "reason": cause.reason}
    return {"feature": one.feature, "on": one.on} | who


def _row(told: dict[str, Any]) -> tuple[object, ...]:
    last = told["last"] or {"at": None, "actor": None, "reason": None}
    state = ("on" if told["on"] else "off") if told["known"] else "of another release"
    switched = None if told["switched"] is None else "on" if told["switched"] else "off"
    at = last["at"] and f"{last['at'][:19]}Z"
    return told["feature"], state, ", ".join(told["needs"]) or None, switched, at, last["actor"], last["reason"]


@flags.command()
@_feature
@db_option
@actor_option
@reason_option
@json_option
def enable(feature: str, db: Path, actor: str, reason: str, as_json: bool) -> None:
    """Switch FEATURE on. Refused while one that it needs is off."""
    _switch(db, lambda flags: flags.enable(feature, actor=actor, reason=reason), f"{feature} is on already", as_json)


@flags.command()
@_feature
@db_option
@actor_option
@reason_option
@json_option
def disable(feature: str, db: Path, actor: str, reason: str, as_json: bool) -> None:
    """Switch FEATURE off, and all that need it. They do not come back on by themselves."""
    _switch(db, lambda flags: flags.disable(feature, actor=actor, reason=reason), f"{feature} is off already", as_json)


@flags.command("disable-all")
@db_option
@actor_option
@reason_option
@json_option
def disable_all(db: Path, actor: str, reason: str, as_json: bool) -> None:
    """Switch every feature off."""
    _switch(db, lambda flags: flags.disable_all(actor=actor, reason=reason), "all are off already", as_json)


def _switch(db: Path, change: Callable[[FeatureFlags], None], nothing: str, as_json: bool) -> None:
    from .ops.flags import FeatureFlags

    with opened(db) as store:
        flags = FeatureFlags(store)
        before = flags.pinned().on
        change(flags)
        after = flags.pinned().on
    if as_json:
        click.echo(json.dumps({"enabled": sorted(after - before), "disabled": sorted(before - after)}))
        return
    lines = [f"{name} is on" for name in sorted(after - before)] + [f"{name} is off" for name in sorted(before - after)]
    click.echo("\n".join(lines) or nothing)
