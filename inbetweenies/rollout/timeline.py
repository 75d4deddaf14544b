"""What happened to a rollout, in order, and the post-mortem that begins with it. Times are told in UTC."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from ..registry import Decisions
from .canary import Evidence
from .flags import Flags
from .report import SEEN, percent, plain, span, utc
from .states import WHOLE, Rollout
from .triggers import Watch


class Moment(Struct, frozen=True, kw_only=True, order=True):
    """Something that happened, at `at` microseconds since 1970: what, by whom, and why."""

    at: int
    what: str
    who: str
    why: str


def timeline(rollout: Rollout, watch: Watch, flags: Flags, decisions: Decisions) -> tuple[Moment, ...]:
    """Moves and notes of a rollout, climbs of its watch, features that were switched since it began, and the dates that
    were decided for wire versions; oldest first. Of other decisions about these no time is kept."""
    began = rollout.log[0].cause.at if rollout.log else rollout.since
    found = [
        *(
            Moment(at=one.cause.at, what=f"{one.event}: {one.state}", who=one.cause.actor, why=one.cause.reason)
            for one in rollout.log
        ),
        *(Moment(at=note.at, what="note", who=note.actor, why=note.reason) for note in rollout.notes),
        *(Moment(at=climb.at, what=f"watch: {climb.rung}", who="watch", why=climb.why) for climb in watch.log),
        *(
            Moment(
                at=one.cause.at,
                what=f"{one.feature} {'on' if one.on else 'off'}",
                who=one.cause.actor,
                why=one.cause.reason,
            )
            for one in flags.log
            if one.cause.at >= began
        ),
        *(
            Moment(at=one.notice.since, what=f"{name} deprecated", who="-", why=f"{name} is {one.state}")
            for name, one in decisions.versions.items()
            if one.notice is not None and one.notice.since >= began
        ),
    ]
    return tuple(sorted(found, key=lambda one: one.at))


def share_reached(rollout: Rollout) -> int:
    """The largest share that it was ever given to, in millionths, as far as its moves are remembered."""
    ramp = sum(move.event == "advance" and move.state == "ramp" for move in rollout.log)
    if any(move.event != "list" and move.state in ("full", "burn_in") for move in rollout.log):
        return WHOLE
    return rollout.steps[min(ramp, len(rollout.steps)) - 1] if ramp else 0


_BLANK: Final = "_To be filled in._"


def post_mortem(
    incident: str,
    rollout: Rollout,
    watch: Watch,
    evidence: Evidence,
    moments: Iterable[Moment],
    measured: Iterable[str] = (),
) -> str:
    """A post-mortem of `incident` in Markdown: what is known is there, and what people have to say is left blank."""
    return "\n".join(_lines(incident, rollout, watch, evidence, tuple(moments), tuple(measured))) + "\n"


def _lines(
    incident: str,
    rollout: Rollout,
    watch: Watch,
    evidence: Evidence,
    moments: tuple[Moment, ...],
    measured: tuple[str, ...],
) -> Iterator[str]:
    ended = next((move.cause for move in reversed(rollout.log) if move.event in ("roll_back", "abort")), None)
    yield from (f"# Post-mortem: {plain(rollout.id)}", "", f"Incident {plain(incident)}. All times are in UTC.")
    yield from ("", "## Summary", "")
    if ended is None:
        yield f"- {plain(rollout.id)} is {rollout.state}."
    else:
        yield f"- {plain(rollout.id)} was taken back at {utc(ended.at)} by {plain(ended.actor)}: {plain(ended.reason)}."
    yield from (f"- {_BLANK}", "", "## Impact", "")
    yield f"- It was given to {percent(share_reached(rollout))} of graphs at most."
    if ended is not None and (noticed := next((climb.at for climb in watch.log), None)) is not None:
        yield f"- From the first sign to the rollback: {span(max(ended.at - noticed, 0) // 1_000_000)}."
    yield "- No data was moved by the rollback. `inbetweenies reconcile` accounts for each row written meanwhile."
    yield from (f"- {_BLANK}", "", "## Timeline", "", "| when | what | who | why |", "|---|---|---|---|")
    for one in moments:
        yield f"| {utc(one.at)} | {plain(one.what)} | {plain(one.who)} | {plain(one.why)} |"
    yield from ("", "## What was measured", "")
    ours, theirs = watch.bets.canary, watch.bets.control
    yield f"- Requests of those whom it reached: {ours.requests}, of them failed: {ours.failures}."
    yield f"- Requests of the others: {theirs.requests}, of them failed: {theirs.failures}."
    counts = ", ".join(f"{getattr(evidence, name)} {name}" for name in SEEN)
    yield f"- At the last step: {counts}, {evidence.breaches} broken invariants."
    yield from (f"- {plain(one)}" for one in measured)
    for title in ("What went well", "What went badly", "Actions"):
        yield from ("", f"## {title}", "", f"- {'[ ] ' if title == 'Actions' else ''}{_BLANK}")
