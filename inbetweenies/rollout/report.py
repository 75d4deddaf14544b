"""What is told of a rollout: where it stands with what shows that, whom it reaches, what to run, and when more is due.

Read `report`: all that is told, on a terminal, as JSON and as Markdown, is in what it returns, and follows from what is
kept of the rollout; nobody fills in anything by hand. Times are in microseconds since 1970, and told in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from shlex import quote
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from ..model import format_time
from .canary import GATED, Bar, Evidence, reaches
from .states import WHOLE, Move, Rollout, State
from .triggers import Watch

#: Whoever waits for news of a rollout gets some after this long at the latest.
UPDATE_US: Final = 30 * 60 * 1_000_000
#: For so long one that is over is still among the news.
RECENT_US: Final = 24 * 3600 * 1_000_000
#: What evidence is counted of.
SEEN: Final = ("sessions", "pushes", "pulls", "conflicts")

#: What a state means, for whoever looks at it for the first time this year.
MEANS: Final = {
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
#: The command that goes on from a state.
NEXT: Final = {
    "planned": "start",
    "preflighted": "start",
    "expanded": "start",
    "held": "resume",
    "burn_in": "finalize",
}
#: Where a phase stands: left behind; here; held here; not reached yet; the end, which is not what was hoped for.
Mark: TypeAlias = Literal["done", "here", "held", "ahead", "undone"]
_BOXES: Final[dict[Mark, str]] = {"done": "x", "here": " ", "held": " ", "ahead": " ", "undone": "x"}


class Phase(Struct, frozen=True, kw_only=True):
    """One tick of the list.

    Attributes:
        name: the state; of the ramp, with its share.
        mark: where it stands.
        move: the move that led here, None if that is not remembered or was not made.
        evidence: what was seen here: what allowed it to go on, or what there is so far, or why it ended.
    """

    name: str
    mark: Mark
    move: Move | None = None
    evidence: tuple[str, ...] = ()


class Check(Struct, frozen=True, kw_only=True):
    """What an audit found just now: of what, whether all is well, and what was found, in words."""

    name: str
    passed: bool
    told: str


class StatusReport(Struct, frozen=True, kw_only=True):
    """All that is told of one rollout.

    Attributes:
        at: when this was found.
        phases: in order.
        impact: how many of the graphs in the store it reaches, and how many there are; None if they were not counted.
        missing: what keeps it from going on, in words.
        watch: how far up the ladder what was seen has led.
        checks: what was found by looking just now; empty if nobody looked.
        updated: when there was news last.
        next_update: when there is to be some at the latest; None of a rollout that is over.
        go_on, undo: the commands that do so; None if nothing is left to do.
        others: commands that show more.
    """

    rollout: Rollout
    at: int
    phases: tuple[Phase, ...]
    impact: tuple[int, int] | None
    evidence: Evidence
    bar: Bar
    missing: tuple[str, ...]
    watch: Watch
    checks: tuple[Check, ...]
    updated: int
    next_update: int | None
    go_on: str | None
    undo: str | None
    others: tuple[str, ...]

    @property
    def overdue(self) -> bool:
        """Whether there should have been news by now."""
        return self.next_update is not None and self.at > self.next_update


def report(
    rollout: Rollout,
    *,
    evidence: Evidence,
    bar: Bar,
    missing: tuple[str, ...],
    watch: Watch,
    db: str,
    now: int,
    graphs: Iterable[str] | None = None,
    checks: tuple[Check, ...] = (),
) -> StatusReport:
    """What is told of `rollout` at `now`. `db` is the path of the database as commands take it wherever they are run;
    `graphs` are those of the store, if they were counted."""
    names = None if graphs is None else tuple(graphs)
    news = [move.cause.at for move in rollout.log[-1:]] + [climb.at for climb in watch.log[-1:]]
    updated = max([rollout.since, *news, *(note.at for note in rollout.notes[-1:])])
    undone = rollout.state == "rolled_back"
    return StatusReport(
        rollout=rollout,
        at=now,
        phases=tuple(_phases(rollout, evidence, bar, watch, now)),
        impact=None if names is None else (sum(reaches(rollout, name) for name in names), len(names)),
        evidence=evidence,
        bar=bar,
        missing=missing,
        watch=watch,
        checks=checks,
        updated=updated,
        next_update=None if rollout.over else updated + UPDATE_US,
        go_on=None if rollout.over else command(NEXT.get(rollout.state, "advance"), rollout.subject, db),
        undo=None if rollout.undo is None else command("rollback", rollout.subject, db),
        others=(
            f"inbetweenies audit --db {quote(db)}",
            *((f"inbetweenies reconcile --db {quote(db)}", f"inbetweenies incident list --db {quote(db)}") * undone),
        ),
    )


def command(verb: str, subject: str, db: str) -> str:
    """The command that does this to the rollout of `subject`, to be pasted into a shell."""
    return f"inbetweenies rollout {verb} {quote(subject)} --db {quote(db)}"


def where(rollout: Rollout) -> str:
    """Where it stands, in words."""
    at = rollout.held_in or rollout.state
    step = f", step {rollout.step + 1} of {len(rollout.steps)}" if at == "ramp" else ""
    return f"held in {at}{step}" if rollout.held_in is not None else f"{at}{step}"


def meaning(rollout: Rollout) -> str:
    """What that means, in words."""
    return f"given to {percent(rollout.share)} of graphs" if rollout.state == "ramp" else MEANS[rollout.state]


def percent(share: int) -> str:
    """A share in millionths, in words."""
    return f"{share * 100 / WHOLE:g} %"


def utc(micros: int) -> str:
    """A time to the second."""
    return f"{format_time(micros)[:19]}Z"


# --- the ticks ----------------------------------------------------------------------------------------------------


def _phases(rollout: Rollout, evidence: Evidence, bar: Bar, watch: Watch, now: int) -> Iterator[Phase]:
    names = _names(rollout)
    last = _reached(rollout)
    moves = _entered(rollout, last)
    for index, name in enumerate(names[: last + 1] if rollout.over else names):
        after = moves.get(index + 1)
        told = () if after is None else after.seen
        if index < last or rollout.over:
            yield Phase(name=name, mark="done", move=moves.get(index), evidence=told)
        elif index == last:
            mark: Mark = "held" if rollout.state == "held" else "here"
            yield Phase(name=name, mark=mark, move=moves.get(index), evidence=_so_far(rollout, evidence, bar, now))
        else:
            yield Phase(name=name, mark="ahead")
    if rollout.state in ("rolled_back", "aborted"):
        climbs = tuple(f"{climb.rung} at {utc(climb.at)}: {climb.why}" for climb in watch.log)
        yield Phase(name=rollout.state, mark="undone", move=rollout.log[-1] if rollout.log else None, evidence=climbs)


def _names(rollout: Rollout) -> list[str]:
    ramp = [f"ramp {percent(share)}" for share in rollout.steps]
    return ["planned", "preflighted", "expanded", "shadow", *ramp, "full", "burn_in", "finalized"]


_RAMP: Final = 4  # where it begins


def _index(rollout: Rollout, state: State, step: int) -> int:
    return _RAMP + step if state == "ramp" else _names(rollout).index(state)


def _forward(rollout: Rollout) -> list[Move]:
    """The moves that led on, each of them by one phase."""
    return [move for move in rollout.log if move.event in ("start", "advance", "finalize")]


def _reached(rollout: Rollout) -> int:
    """The furthest phase. Of one that was taken back it is read off its moves, of which the oldest may be forgotten:
    then it came so far at least."""
    if rollout.state not in ("rolled_back", "aborted"):
        return _index(rollout, rollout.held_in or rollout.state, rollout.step)
    forward = _forward(rollout)
    if not forward:
        return 0
    steps = 0
    while steps < min(len(forward), len(rollout.steps)) and forward[-1 - steps].state == "ramp":
        steps += 1
    return _index(rollout, forward[-1].state, max(steps - 1, 0))


def _entered(rollout: Rollout, last: int) -> dict[int, Move]:
    """The move that led to each phase, as far as they are remembered."""
    return {last - back: move for back, move in enumerate(reversed(_forward(rollout))) if back <= last}


def _so_far(rollout: Rollout, evidence: Evidence, bar: Bar, now: int) -> tuple[str, ...]:
    if rollout.state not in GATED:
        return ()
    lasted, wait = max(0, now - rollout.since) // 1_000_000, bar.wait_us // 1_000_000
    counts = (f"{name} {getattr(evidence, name)}/{getattr(bar, name)}" for name in SEEN)
    return (f"lasted {span(lasted)} of {span(wait)}", *counts, f"broken invariants {evidence.breaches}")


#: Units of time, in seconds.
UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def span(seconds: int) -> str:
    """A time in its two largest units."""
    parts: list[str] = []
    for unit, size in reversed(UNITS.items()):
        if seconds >= size or (unit == "s" and not parts):
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2])


# --- in words -----------------------------------------------------------------------------------------------------


def impact(one: StatusReport) -> str:
    """Whom it reaches, in words."""
    rollout = one.rollout
    lists = f"{len(rollout.allow)} allowed, {len(rollout.deny)} denied"
    here = "" if one.impact is None else f"; {one.impact[0]} of {one.impact[1]} in this database"
    return f"{percent(rollout.share)} of graphs, {lists}{here}"


def news(one: StatusReport) -> str:
    """When there was news, and when there is to be some, in words; empty of a rollout that is over."""
    if one.next_update is None:
        return ""
    due = f"due by {utc(one.next_update)}"
    if one.overdue:
        due = f"OVERDUE since {utc(one.next_update)}: say how it goes with: inbetweenies rollout note"
    return f"last {utc(one.updated)}, next {due}"


def climbed(watch: Watch) -> str:
    """How far up the ladder it is, and why, in words."""
    if not watch.log:
        return "nothing to worry about" if watch.rung == "watch" else watch.rung
    last = watch.log[-1]
    return f"{watch.rung} since {utc(last.at)}: {last.why}"


def cause(move: Move) -> str:
    """When, by whom and why, in words."""
    return f"{utc(move.cause.at)} {move.cause.actor}: {move.cause.reason}"


# --- as JSON ------------------------------------------------------------------------------------------------------


def told_rollout(one: Rollout) -> dict[str, Any]:
    """A rollout for programs."""
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
        "notes": [{"at": format_time(note.at), "actor": note.actor, "says": note.reason} for note in one.notes],
    }


def _move(move: Move) -> dict[str, Any]:
    who = {"at": format_time(move.cause.at), "actor": move.cause.actor, "reason": move.cause.reason}
    return {"event": move.event, "state": move.state} | who | {"seen": list(move.seen)}


def told(one: StatusReport) -> dict[str, Any]:
    """A report for programs."""
    due = one.next_update
    return told_rollout(one.rollout) | {
        "as_of": format_time(one.at),
        "means": meaning(one.rollout),
        "phases": [
            {
                "name": phase.name,
                "mark": phase.mark,
                "move": None if phase.move is None else _move(phase.move),
                "evidence": list(phase.evidence),
            }
            for phase in one.phases
        ],
        "impact": None if one.impact is None else {"reached": one.impact[0], "graphs": one.impact[1]},
        "evidence": {name: getattr(one.evidence, name) for name in (*SEEN, "breaches", "degraded")},
        "bar": {"wait_seconds": one.bar.wait_us // 1_000_000, **{name: getattr(one.bar, name) for name in SEEN}},
        "missing": list(one.missing),
        "watch": {
            "rung": one.watch.rung,
            "log": [{"rung": climb.rung, "at": format_time(climb.at), "why": climb.why} for climb in one.watch.log],
        },
        "checks": [{"name": check.name, "passed": check.passed, "told": check.told} for check in one.checks],
        "update": {
            "last": format_time(one.updated),
            "next": None if due is None else format_time(due),
            "overdue": one.overdue,
        },
        "go_on": one.go_on,
        "undo": one.undo,
        "see": list(one.others),
    }


# --- as Markdown --------------------------------------------------------------------------------------------------


def markdown(reports: Iterable[StatusReport]) -> str:
    """The reports as one document that can be pasted where people wait for news."""
    return "\n\n".join("\n".join(_lines(one)) for one in reports) or "Nothing was ever rolled out."


def _lines(one: StatusReport) -> Iterator[str]:
    rollout = one.rollout
    yield f"## {plain(rollout.id)}: {where(rollout)}"
    yield ""
    yield f"- **As of**: {utc(one.at)}; here since {utc(rollout.since)}"
    yield f"- **Means**: {meaning(rollout)}"
    yield f"- **Impact**: {impact(one)}"
    if one.next_update is not None:
        yield f"- **Updates**: {plain(news(one))}"
    yield f"- **Watch**: {plain(climbed(one.watch))}"
    if not rollout.over:
        yield f"- **Missing**: {plain(', '.join(one.missing)) or 'nothing'}"
    yield ""
    for phase in one.phases:
        yield from _tick(phase)
    for title, items in (
        ("Looked at just now", [f"{check.name}: {check.told}" for check in one.checks]),
        ("Notes", [f"{utc(note.at)} {note.actor}: {note.reason}" for note in rollout.notes]),
    ):
        if items:
            yield from ("", f"**{title}**", "", *(f"- {plain(item)}" for item in items))
    commands = [("go on", one.go_on), ("roll back", one.undo), *(("see more", other) for other in one.others)]
    yield from ("", "```sh", *(f"{line}  # {what}" for what, line in commands if line is not None), "```")


def _tick(phase: Phase) -> Iterator[str]:
    here = {"here": " **(here)**", "held": " **(held here)**"}.get(phase.mark, "")
    by = "" if phase.move is None else f": {plain(cause(phase.move))}"
    yield f"- [{_BOXES[phase.mark]}] {phase.name}{here}{by}"
    if phase.evidence:
        yield f"  - {plain('; '.join(phase.evidence))}"


def plain(text: str) -> str:
    """Text of others as Markdown that shows it, and nothing more."""
    return "".join(f"\\{one}" if one in _MARKS else one for one in text)


_MARKS: Final = frozenset("\\`*_[]#|~<&")
