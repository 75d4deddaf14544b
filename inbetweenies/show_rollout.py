"""What is printed of a rollout: where it stands, what it lacks, how to go on and how to undo it; for people and for
programs. Times are in UTC.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final

import click

from .model import format_time

if TYPE_CHECKING:
    from .ops.rollouts import Done, Standing
    from .rollout.states import Move, Rollout
    from .rollout.triggers import Watch

MOVES_SHOWN: Final = 5  # in words; --json tells all that are kept
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SEEN: Final = ("sessions", "pushes", "pulls", "conflicts")

#: What a state means, for whoever looks at it for the first time this year.
_MEANS: Final = {
    "planned": "nothing was changed yet; its preflight has not passed",
    "preflighted": "nothing was changed yet",
    "expanded": "given to nobody, also not to who had it before",
    "shadow": "given to nobody, also not to who had it before",
    "ramp": "given to a share",
    "full": "given to everybody but those denied",
    "burn_in": "given to everybody but those denied, and not final yet",
    "held": "who has it keeps it, nobody else gets it",
    "finalized": "given to everybody, and cannot be undone",
    "rolled_back": "given to nobody",
    "aborted": "given up before anything was changed",
}
_COLOURS: Final = {"held": "red", "rolled_back": "red", "aborted": "red", "finalized": "green"}
#: The command that goes on from a state.
_NEXT: Final = {
    "planned": "start",
    "preflighted": "start",
    "expanded": "start",
    "held": "resume",
    "burn_in": "finalize",
}


# --- what was done ------------------------------------------------------------------------------------------------


def print_done(db: Path, done: Done, as_json: bool) -> None:
    """Tell what was done, how to see it and how to undo it."""
    after = done.after
    if as_json:
        click.echo(json.dumps({"changed": done.changed, **_told(after)}))
        return
    if not done.changed:
        last = after.log[-1].cause
        was = f"{utc(after.since)} by {last.actor} ({last.reason})"
        click.echo(f"{after.id} is {after.state} since {was}: nothing is left to do")
    else:
        click.echo(f"{after.id} is {_where(after)}: {_meaning(after)}")
    if after.state == "rolled_back" and done.before is not None and done.changed:
        click.echo(f"undone: it was {_where(done.before)}, given to {_percent(done.before.share)} of graphs")
        click.echo("no data was moved: what was written with it stays, and no write is lost")
    click.echo(f"see it: {_command('status', after, db)}")
    if after.undo is not None:
        click.echo(f"undo:   {_command('rollback', after, db)}")


def _where(one: Rollout) -> str:
    at = one.held_in or one.state
    step = f", step {one.step + 1} of {len(one.steps)}" if at == "ramp" else ""
    return f"held in {at}{step}" if one.held_in is not None else f"{at}{step}"


def _meaning(one: Rollout) -> str:
    return f"given to {_percent(one.share)} of graphs" if one.state == "ramp" else _MEANS[one.state]


def _percent(share: int) -> str:
    return f"{share / 10_000:g} %"


def utc(micros: int) -> str:
    """A time to the second."""
    return f"{format_time(micros)[:19]}Z"


def _command(verb: str, one: Rollout, db: Path) -> str:
    return f"inbetweenies rollout {verb} {quote(one.subject)} --db {quote(str(db))}"


def _told(one: Rollout) -> dict[str, Any]:
    return {
        "subject": one.subject,
        "id": one.id,
        "serial": one.serial,
        "state": one.state,
        "held_in": one.held_in,
        "over": one.over,
        "share_percent": one.share / 10_000,
        "steps_percent": [share / 10_000 for share in one.steps],
        "step": one.step,
        "fence": one.fence,
        "since": format_time(one.since),
        "allow": sorted(one.allow),
        "deny": sorted(one.deny),
        "log": [_move(move) for move in one.log],
    }


def _move(move: Move) -> dict[str, Any]:
    cause = move.cause
    who = {"at": format_time(cause.at), "actor": cause.actor, "reason": cause.reason}
    return {"event": move.event, "state": move.state} | who


# --- where it stands ---


def told(found: list[Standing], db: Path) -> dict[str, Any]:
    """Everything that is known, for programs."""
    return {"rollouts": [_standing(one, db) for one in found]}


def _standing(one: Standing, db: Path) -> dict[str, Any]:
    evidence = one.evidence
    undo = None if one.rollout.undo is None else _command("rollback", one.rollout, db)
    return _told(one.rollout) | {
        "evidence": {name: getattr(evidence, name) for name in (*_SEEN, "breaches", "degraded")},
        "bar": {"wait_seconds": one.bar.wait_us // 1_000_000, **{name: getattr(one.bar, name) for name in _SEEN}},
        "missing": list(one.missing),
        "watch": {
            "rung": one.watch.rung,
            "log": [{"rung": climb.rung, "at": format_time(climb.at), "why": climb.why} for climb in one.watch.log],
        },
        "undo": undo,
    }


def drawn(found: list[Standing], db: Path, *, now: int) -> str:
    """The same for people, to be seen at a glance; `now` in microseconds since 1970."""
    if not found:
        return f"nothing was ever rolled out: inbetweenies rollout start VERSION --db {quote(str(db))}"
    return "\n\n".join("\n".join(_lines(one, db, now)) for one in found)


def _lines(standing: Standing, db: Path, now: int) -> Iterator[str]:
    one = standing.rollout
    name = click.style(_where(one), fg=_COLOURS.get(one.state, "yellow"), bold=True)
    yield f"{one.id}: {name} since {utc(one.since)}"
    for label, text in (
        ("means", _meaning(one)),
        ("share", f"{_percent(one.share)} of graphs, {len(one.allow)} allowed, {len(one.deny)} denied"),
        ("steps", _steps(one)),
        ("fence", str(one.fence)),
        ("evidence", "" if one.over else _evidence(standing, now)),
        ("missing", "" if one.over else ", ".join(standing.missing) or "nothing"),
        ("watch", _climbed(standing.watch)),
    ):
        if text:
            yield f"  {label:<10}{text}"
    for index, move in enumerate(reversed(one.log[-MOVES_SHOWN:])):
        cause = move.cause
        text = f"{utc(cause.at)}  {move.event} -> {move.state}  {cause.actor}: {cause.reason}"
        yield f"  {'' if index else 'moves':<10}{text}"
    if one.undo is not None:
        yield f"  {'go on':<10}{_command(_NEXT.get(one.state, 'advance'), one, db)}"
        yield f"  {'undo':<10}{_command('rollback', one, db)}"


def _steps(one: Rollout) -> str:
    here = one.step if (one.held_in or one.state) == "ramp" else None
    shares = (f"[{_percent(share)}]" if index == here else _percent(share) for index, share in enumerate(one.steps))
    return "  ".join(shares)


def _evidence(standing: Standing, now: int) -> str:
    from .rollout.canary import GATED

    if standing.rollout.state not in GATED:
        return ""
    lasted = max(0, now - standing.rollout.since) // 1_000_000
    counts = [f"{name} {getattr(standing.evidence, name)}/{getattr(standing.bar, name)}" for name in _SEEN]
    broken = f"broken invariants {standing.evidence.breaches}"
    return ", ".join((f"lasted {_span(lasted)} of {_span(standing.bar.wait_us // 1_000_000)}", *counts, broken))


def _span(seconds: int) -> str:
    """A time in its two largest units."""
    parts: list[str] = []
    for unit, size in reversed(UNITS.items()):
        if seconds >= size or (unit == "s" and not parts):
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2])


def _climbed(watch: Watch) -> str:
    if not watch.log:
        return "nothing to worry about" if watch.rung == "watch" else watch.rung
    last = watch.log[-1]
    return f"{watch.rung} since {utc(last.at)}: {last.why}"
