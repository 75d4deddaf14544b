"""``inbetweenies explain``: which row of the decision matrix fired, on what evidence, and the same decided once more.

And ``inbetweenies matrix``, which shows these rows and the risks that they act on, and what ``inbetweenies drill
--scenario`` prints, which rehearses them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec import to_builtins
from msgspec.structs import asdict

from .cli_versions import db_option, json_option, opened, table
from .model import format_time
from .rollout.report import utc

if TYPE_CHECKING:
    from .ops.explaining import Explained
    from .ops.scenarios import Played
    from .rollout.verdicts import Inputs, Read

_WIDTH: Final = 12  # of labels

rollout_policy_option = click.option(
    "--rollout-policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="A decision matrix of one's own, in place of inbetweenies/rollout/policy.toml.",
)


@click.command()
@click.argument("number", metavar="[ID]", type=click.IntRange(1), required=False)
@db_option
@rollout_policy_option
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="List so many, without an ID.")
@json_option
def explain(number: int | None, db: Path, rollout_policy: Path | None, limit: int, as_json: bool) -> int:
    """Say why a rollout was held or taken back: the row that fired, what it was known from, and whether it would again.

    Without ID the newest verdicts are listed. With one, it is decided once more from what was kept of it, and compared
    byte by byte. Exits with 1 if it differs, or if a verdict was changed after it was written. Changes nothing.
    """
    from .ops.explaining import Verdicts
    from .ops.policies import policy_at

    policy = None if rollout_policy is None else policy_at(rollout_policy)
    with opened(db) as store:
        known = Verdicts(store, policy=policy)
        if number is None:
            _list(known.newest(limit), db, as_json)
            return 0
        found = known.explained(number)
    if as_json:
        click.echo(json.dumps(_told(found)))
    else:
        for line in _lines(found):
            click.echo(line)
    return 0 if found.replay is not None and found.replay.identical else 1


def _list(found: list[Read], db: Path, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"verdicts": [_short(one) for one in found]}))
        return
    if not found:
        click.echo("nothing was ever decided about a rollout, but that all is well")
        return
    columns = ("id", "at", "rollout", "row", "decision")
    table(columns, ([_short(one)[name] for name in columns] for one in found))
    click.echo(f"\nwhy: inbetweenies explain {found[0].n} --db {quote(str(db))}")


def _short(one: Read) -> dict[str, Any]:
    outcome = one.outcome
    return {
        "id": one.n,
        "at": utc(one.inputs.now),
        "rollout": one.rollout,
        "row": outcome.row,
        "decision": outcome.decision,
        "evidence": list(outcome.evidence),
    }


def _told(found: Explained) -> dict[str, Any]:
    again = found.replay
    return _short(found.read) | {
        "at": format_time(found.read.inputs.now),
        "why": None if found.row is None else found.row.why,
        "covers": [] if found.row is None else list(found.row.covers),
        "facts": asdict(found.read.outcome.facts),
        "policy": found.read.inputs.policy,
        "replay": None if again is None else {"identical": again.identical, "differs": list(again.differs)},
    }


def _lines(found: Explained) -> Iterator[str]:
    read, outcome = found.read, found.read.outcome
    yield f"verdict {read.n}: {read.rollout}, {utc(read.inputs.now)}"
    yield _labelled("row", f"{outcome.row} -> {outcome.decision}")
    if found.row is not None:
        yield _labelled("why", found.row.why)
        if found.row.covers:
            yield _labelled("covers", ", ".join(found.row.covers))
    facts = (f"{name} {value}" for name, value in asdict(outcome.facts).items())
    yield _labelled("facts", ", ".join(facts))
    yield from _many("evidence", outcome.evidence or ("none: what was wrong before is not any more",))
    yield from _many("seen", _seen(read.inputs))
    climbed = [f"{one.rung}: {one.why}" for one in outcome.watch.log]
    yield from _many("led to", climbed or ("no rung that it was not on before",))
    yield from _many("replayed", _replayed(found))


def _seen(inputs: Inputs) -> list[str]:
    signals, known = inputs.signals, inputs.watch.bets
    told = [f"it was on {inputs.watch.rung}, at fence {inputs.fence}"]
    for name, arm, before in (
        ()
        if signals is None
        else (
            ("those whom it reaches", signals.canary, known.canary),
            ("the others", signals.control, known.control),
        )
    ):
        told.append(
            f"{name}: {arm.failures:,} of {arm.requests:,} failed since the look before, "
            f"{before.failures:,} of {before.requests:,} until then"
        )
    return told


def _replayed(found: Explained) -> tuple[str, ...]:
    if found.replay is None:
        policy = found.read.inputs.policy
        return (f"not: its policy {policy} is not in the record; give its file with --rollout-policy",)
    if found.replay.identical:
        return ("identical",)
    return ("DIFFERENT", *found.replay.differs)


def _many(label: str, texts: tuple[str, ...] | list[str]) -> Iterator[str]:
    for index, text in enumerate(texts):
        yield _labelled("" if index else label, text)


def _labelled(label: str, text: str) -> str:
    return f"  {label:<{_WIDTH}}{''.join(one if one.isprintable() else '?' for one in text)}"


# --- the matrices -------------------------------------------------------------------------------------------------


@click.command()
@rollout_policy_option
@json_option
def matrix(rollout_policy: Path | None, as_json: bool) -> None:
    """Show the decision matrix, that which comes with this or one of your own, and the risks that its rows act on.

    Ends with 2, and an example, if a policy file has a gap, an overlap, or a row that no policy may have.
    """
    from .ops.policies import policy_at, risks, standard

    policy = standard() if rollout_policy is None else policy_at(rollout_policy)
    if as_json:
        found = {"digest": policy.digest, "policy": to_builtins(policy), "risks": [asdict(one) for one in risks()]}
        click.echo(json.dumps(found))
        return
    whens = [" ".join(f"{fact}={_value(told)}" for fact, told in row.when.items()) for row in policy.row]
    rows = ((row.name, row.decision, row.scenario or None, when) for row, when in zip(policy.row, whens, strict=True))
    table(("row", "decision", "scenario", "when"), rows)
    click.echo(f"\nfloor: {policy.min_safe_version or 'none'}")
    for subject, hole in policy.advised.items():
        click.echo(f"advised against: {subject}: {hole}")
    click.echo()
    columns = ("risk", "probability", "impact", "owner", "noticed within", "rows")
    table(
        columns,
        (
            (one.name, one.probability, one.impact, one.owner, f"{one.detected_s} s", ", ".join(one.rows))
            for one in risks()
        ),
    )


def _value(told: str | tuple[str, ...]) -> str:
    return told if isinstance(told, str) else "|".join(told)


# --- rehearsed ----------------------------------------------------------------------------------------------------


def rehearsed(names: tuple[str, ...] | None, as_json: bool) -> int:
    """Play the scenarios of these names, or all, and tell by which row of the matrix each was decided; 1 if one was by
    another row than the one that names it, else 0."""
    from .ops.policies import standard
    from .ops.scenarios import SCENARIOS, play

    wanted = {row.scenario: row.name for row in standard().row}
    played = [play(name) for name in (SCENARIOS if names is None else names)]
    right = [wanted.get(one.name) == one.row for one in played]
    if as_json:
        told = [_scenario(one, wanted[one.name], ok) for one, ok in zip(played, right, strict=True)]
        click.echo(json.dumps({"passed": all(right), "scenarios": told}))
    else:
        width = max(len(one.name) for one in played)
        for one, ok in zip(played, right, strict=True):
            result = click.style("PASS" if ok else "FAIL", fg="green" if ok else "red")
            click.echo(f"{result}  {one.name:<{width}}  {one.row} -> {one.decision}; the rollout is {one.state}")
        click.echo(f"\n{sum(right)} of {len(right)} passed.")
    return 0 if all(right) else 1


def _scenario(one: Played, wanted: str, ok: bool) -> dict[str, Any]:
    return {
        "name": one.name,
        "result": "PASS" if ok else "FAIL",
        "row": one.row,
        "expected_row": wanted,
        "decision": one.decision,
        "state": one.state,
        "verdicts": [_short(each) for each in one.verdicts],
    }
