"""What is told of a rollout: each tick with what shows it, the commands, when news is due; and its post-mortem."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError
from inbetweenies.registry import Decision, Decisions, Notice
from inbetweenies.rollout.canary import Bar, Evidence, reaches, went_on
from inbetweenies.rollout.flags import Flags
from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.report import (
    UPDATE_US,
    Check,
    StatusReport,
    climbed,
    markdown,
    news,
    plain,
    report,
    told,
)
from inbetweenies.rollout.sequential import Arm, Bets
from inbetweenies.rollout.states import (
    NOTES_MAX,
    TRANSITIONS,
    WHOLE,
    Event,
    Rollout,
    Rollouts,
    moved,
    noted,
)
from inbetweenies.rollout.timeline import post_mortem, share_reached, timeline
from inbetweenies.rollout.triggers import Climb, Watch

V2 = "inbetweenies-v2"
HOUR = 3600 * 1_000_000
FREE = Bar(wait_us=0, sessions=0, pushes=0, pulls=0, conflicts=0)


def cause(at: int, reason: str = "a test") -> Cause:
    return Cause(actor="ada", reason=reason, at=at)


def taken(*events: Event, steps: tuple[int, ...] = (10_000, 500_000)) -> Rollout:
    """A rollout to which this happened, an hour apart."""
    rollouts = Rollouts().started(V2, steps=steps, cause=cause(0))
    for number, event in enumerate(events, 1):
        rollouts = rollouts.moved(V2, event, fence=rollouts.of(V2).fence, cause=cause(number * HOUR))
    return rollouts.of(V2)


def reported(rollout: Rollout, **fields: Any) -> StatusReport:
    evidence = Evidence(fence=rollout.fence)
    plain_: dict[str, Any] = {
        "evidence": evidence,
        "bar": Bar(),
        "missing": (),
        "watch": Watch(rollout=rollout.id),
        "db": "/srv/my home.db",
        "now": rollout.since,
    }
    return report(rollout, **(plain_ | fields))


def marks(one: StatusReport) -> list[str]:
    return [f"{phase.name} {phase.mark}" for phase in one.phases]


# --- ticks --------------------------------------------------------------------------------------------------------


def test_each_phase_has_the_move_that_led_to_it_and_what_was_seen_there() -> None:
    rollouts = Rollouts().started(V2, steps=(10_000, 500_000), cause=cause(0))
    for number in range(1, 6):
        one = rollouts.of(V2)
        seen = Evidence(fence=one.fence, sessions=50 + number, pushes=2)
        rollouts = went_on(rollouts, V2, seen, FREE, fence=one.fence, cause=cause(number * HOUR, f"step {number}"))
    found = reported(rollouts.of(V2), evidence=Evidence(fence=5, sessions=7), now=5 * HOUR + 61_000_000)
    done = {phase.name: phase for phase in found.phases}

    assert [
        *(f"{name} done" for name in ("planned", "preflighted", "expanded", "shadow", "ramp 1 %")),
        "ramp 50 % here",
        *(f"{name} ahead" for name in ("full", "burn_in", "finalized")),
    ] == marks(found)
    assert ["a test", *(f"step {number}" for number in range(1, 6))] == [
        phase.move.cause.reason for phase in found.phases if phase.move is not None
    ]
    assert ("lasted 3600 s", "55 sessions", "2 pushes", "0 pulls", "0 conflicts", "0 broken invariants") == (
        done["ramp 1 %"].evidence
    )
    assert () == done["expanded"].evidence
    assert ("lasted 1m 1s of 30m", "sessions 7/50") == done["ramp 50 %"].evidence[:2]


def test_evidence_of_another_step_is_none_of_this_one() -> None:
    rollouts = Rollouts().started(V2, cause=cause(0))
    for _ in range(3):
        rollouts = rollouts.moved(V2, "advance", fence=rollouts.of(V2).fence, cause=cause(0))
    after = went_on(rollouts, V2, Evidence(fence=1, sessions=99), FREE, fence=3, cause=cause(HOUR))

    assert "0 sessions" in after.of(V2).log[-1].seen


@pytest.mark.parametrize(
    ("events", "last"),
    [
        ((), ["planned here"]),
        (("abort",), ["planned done", "aborted undone"]),
        (("advance",) * 5 + ("hold",), ["ramp 1 % done", "ramp 50 % held"]),
        (("advance",) * 4 + ("roll_back",), ["ramp 1 % done", "rolled_back undone"]),
        (("advance",) * 5 + ("hold", "resume", "roll_back"), ["ramp 50 % done", "rolled_back undone"]),
        (("advance",) * 7 + ("roll_back",), ["burn_in done", "rolled_back undone"]),
        (("advance",) * 7 + ("finalize",), ["burn_in done", "finalized done"]),
    ],
)
def test_the_list_ends_where_the_rollout_did(events: tuple[Event, ...], last: list[str]) -> None:
    found = [mark for mark in marks(reported(taken(*events))) if not mark.endswith("ahead")]

    assert last == found[-len(last) :]


@given(forgotten=st.integers(0, 12), events=st.lists(st.sampled_from(["advance", "hold", "resume", "roll_back"])))
def test_what_is_forgotten_of_the_beginning_makes_no_tick_wrong(forgotten: int, events: list[Event]) -> None:
    check_forgotten(forgotten, events)


def check_forgotten(forgotten: int, events: list[Event]) -> None:
    one = taken()
    for number, event in enumerate(events, 1):
        if (one.state, event) in TRANSITIONS:
            one = moved(one, event, fence=one.fence, cause=cause(number * HOUR))
    known = {phase.name: phase.move for phase in reported(one).phases}
    less = replace(one, log=one.log[forgotten:])
    if one.over and len(less.log) < 2:
        return  # where it came to is forgotten as well
    for phase in reported(less).phases:
        assert phase.move is None or phase.move == known[phase.name]


def test_of_one_that_was_taken_back_long_ago_it_is_told_how_far_it_came_at_least() -> None:
    one = taken(*("advance",) * 5, "roll_back")

    assert "ramp 1 % done" == marks(reported(replace(one, log=one.log[-2:])))[-2]
    assert ["planned done", "rolled_back undone"] == marks(reported(replace(one, log=one.log[-1:])))
    assert ["planned done", "rolled_back undone"] == marks(reported(replace(one, log=())))


def test_why_it_was_taken_back_is_behind_the_last_tick() -> None:
    one = taken("advance", "advance", "advance", "roll_back")
    log = (Climb(rung="freeze", at=HOUR, why="worse p95"), Climb(rung="route_back", at=2 * HOUR, why="9 failed"))
    found = reported(one, watch=Watch(rollout=one.id, rung="route_back", log=log))

    assert ("freeze at 1970-01-01T01:00:00Z: worse p95", "route_back at 1970-01-01T02:00:00Z: 9 failed") == (
        found.phases[-1].evidence
    )
    assert "route_back since 1970-01-01T02:00:00Z: 9 failed" == climbed(found.watch)
    assert "nothing to worry about" == climbed(Watch(rollout=one.id))
    assert "freeze" == climbed(Watch(rollout=one.id, rung="freeze"))


# --- whom, when, and what to run ----------------------------------------------------------------------------------


def test_impact_is_counted_in_graphs() -> None:
    one = taken(*("advance",) * 5)
    graphs = [str(number) for number in range(200)]
    found = reported(one, graphs=graphs)

    assert (sum(reaches(one, name) for name in graphs), 200) == found.impact
    assert 60 < sum(reaches(one, name) for name in graphs) < 140
    assert None is reported(one).impact
    assert {"reached": 0, "graphs": 2} == told(reported(taken(), graphs=["a", "b"]))["impact"]


def test_news_is_due_half_an_hour_after_the_last() -> None:
    one = taken("advance", "advance", "advance")
    since = one.since
    for watch, note, last in (
        (Watch(rollout=one.id), (), since),
        (Watch(rollout=one.id, log=(Climb(rung="freeze", at=since + 5, why="x"),)), (), since + 5),
        (Watch(rollout=one.id), (cause(since + 7),), since + 7),
    ):
        found = reported(replace(one, notes=note), watch=watch, now=last + UPDATE_US)
        assert (last, last + UPDATE_US, False) == (found.updated, found.next_update, found.overdue)
        late = replace(found, at=found.at + 1)
        assert (True, True) == (late.overdue, "OVERDUE since" in news(late))
        assert "OVERDUE" in markdown([late])
        assert told(late)["update"]["overdue"] is True
    over = reported(taken("abort"), now=10**15)

    assert (None, False, "", None) == (over.next_update, over.overdue, news(over), told(over)["update"]["next"])
    assert "Updates" not in markdown([over])


def test_notes_move_nothing_and_the_newest_are_kept() -> None:
    one = taken("advance", "advance", "advance")
    for number in range(NOTES_MAX + 1):
        one = noted(one, cause(number, f"note {number}"))

    assert (3, "shadow", NOTES_MAX, "note 1") == (one.fence, one.state, len(one.notes), one.notes[0].reason)
    assert "note 9" in Rollouts(rollouts={V2: one}).noted(V2, cause(1, "note 99")).of(V2).notes[-1].reason
    with pytest.raises(LocalProtocolError):
        replace(one, notes=one.notes * 2)


@pytest.mark.parametrize(
    ("events", "go_on"),
    [
        ((), "start"),
        (("advance",) * 3, "advance"),
        (("advance",) * 3 + ("hold",), "resume"),
        (("advance",) * 7, "finalize"),
    ],
)
def test_the_commands_have_the_path_as_a_shell_takes_it(events: tuple[Event, ...], go_on: str) -> None:
    found = reported(taken(*events))

    assert f"inbetweenies rollout {go_on} {V2} --db '/srv/my home.db'" == found.go_on
    assert f"inbetweenies rollout rollback {V2} --db '/srv/my home.db'" == found.undo


def test_of_what_is_over_nothing_is_undone_and_it_is_said_what_comes_next() -> None:
    back, final = reported(taken("advance", "advance", "roll_back")), reported(taken(*("advance",) * 7, "finalize"))

    assert (None, None) == (back.go_on, back.undo) == (final.go_on, final.undo)
    assert any(line.startswith("inbetweenies reconcile") for line in back.others)
    assert not any(line.startswith("inbetweenies reconcile") for line in final.others)


# --- the three that are made of it --------------------------------------------------------------------------------


def test_markdown_has_a_tick_for_each_phase_and_text_of_others_does_nothing_in_it() -> None:
    one = noted(taken("advance", "advance", "advance"), cause(9, "see [x](http://evil) <img> **now**"))
    found = reported(
        one,
        missing=("50 more sessions",),
        checks=(Check(name="graph a*b", passed=True, told="whole"),),
        graphs=["a"],
    )
    text = markdown([found])
    boxes = re.findall(r"^- \[(.)\] (\w+)", text, re.MULTILINE)

    assert [("x", "planned"), ("x", "preflighted"), ("x", "expanded"), (" ", "shadow")] == boxes[:4]
    assert len(found.phases) == len(boxes)
    assert r"see \[x\](http://evil) \<img> \*\*now\*\*" in text
    assert r"- graph a\*b: whole" in text
    assert f"{found.undo}  # roll back" in text
    assert "- **Missing**: 50 more sessions" in text
    assert "**(held here)**" in markdown([reported(moved(one, "hold", fence=3, cause=cause(9)))])
    assert "Missing" not in markdown([reported(taken("abort"))])
    assert "Nothing was ever rolled out." == markdown([])


@given(st.text())
def test_plain_text_keeps_every_letter(text: str) -> None:
    assert text == re.sub(r"\\([\\`*_\[\]#|~<&])", r"\1", plain(text))


def test_json_has_all_of_it() -> None:
    one = noted(taken("advance", "advance", "advance"), cause(9, "all quiet"))
    climbs = (Climb(rung="freeze", at=1, why="why"),)
    found = reported(
        one,
        watch=Watch(rollout=one.id, rung="freeze", log=climbs),
        checks=(Check(name="graph a", passed=False, told="not whole"),),
    )
    read = json.loads(json.dumps(told(found)))

    assert {"phases", "impact", "evidence", "bar", "missing", "watch", "checks", "update", "go_on", "undo", "see"} <= (
        read.keys()
    )
    assert ["planned", "advance"] == [read["phases"][0]["name"], read["phases"][1]["move"]["event"]]
    assert None is read["phases"][-1]["move"]
    assert [{"name": "graph a", "passed": False, "told": "not whole"}] == read["checks"]
    assert [{"at": "1970-01-01T00:00:00.000009+00:00", "actor": "ada", "says": "all quiet"}] == read["notes"]


# --- afterwards ---------------------------------------------------------------------------------------------------


def test_what_happened_is_told_in_order() -> None:
    one = noted(taken("advance", "advance", "advance", "advance", "roll_back"), cause(int(4.5 * HOUR), "looking"))
    watch = Watch(rollout=one.id, rung="route_back", log=(Climb(rung="route_back", at=5 * HOUR - 1, why="9 failed"),))
    flags = Flags().enabled("graph_operations", cause(-5)).disabled("graph_operations", cause(3 * HOUR + 1, "fire"))
    decided = Decisions(
        versions={
            "a": Decision(notice=Notice(since=HOUR + 1)),
            "b": Decision(notice=Notice(since=-1)),
            "c": Decision(state="disabled"),
        }
    )
    found = timeline(one, watch, flags, decided)

    assert [
        "start: planned",
        "advance: preflighted",
        "a deprecated",
        "advance: expanded",
        "advance: shadow",
        "graph_operations off",
        "advance: ramp",
        "note",
        "watch: route_back",
        "roll_back: rolled_back",
    ] == [moment.what for moment in found if not moment.what.startswith(("mcp", "enhanced", "entity"))]
    assert timeline(replace(one, log=()), watch, Flags(), Decisions())[0].what == "note"


def test_a_post_mortem_begins_with_what_is_known() -> None:
    one = taken("advance", "advance", "advance", "advance", "roll_back")
    climbs = (Climb(rung="freeze", at=5 * HOUR - 90_000_000, why="worse p95"),)
    bets = Bets(canary=Arm(requests=23, failures=9), control=Arm(requests=100))
    watch = Watch(rollout=one.id, rung="route_back", log=climbs, bets=bets)
    moments = timeline(one, watch, Flags(), Decisions())
    text = post_mortem("i-1", one, watch, Evidence(fence=4, sessions=12), moments, ("kept: a_b",))

    assert "was taken back at 1970-01-01T05:00:00Z by ada: a test" in text
    assert "given to 1 % of graphs at most" in text
    assert "From the first sign to the rollback: 1m 30s" in text
    assert "those whom it reached: 23, of them failed: 9" in text
    assert "12 sessions, 0 pushes" in text
    assert r"- kept: a\_b" in text
    assert len(moments) == len(re.findall(r"^\| 1970", text, re.MULTILINE))
    assert ["Summary", "Impact", "Timeline", "What was measured", "What went well", "What went badly", "Actions"] == (
        re.findall(r"^## (.*)", text, re.MULTILINE)
    )
    going = taken("advance", "advance", "advance")
    quiet = Watch(rollout=one.id)
    assert "is shadow." in post_mortem("i-1", going, quiet, Evidence(fence=3), ())
    assert "first sign" not in post_mortem("i-1", one, quiet, Evidence(fence=3), ())


def test_the_largest_share_is_remembered_when_nobody_has_it_any_more() -> None:
    on: tuple[Event, ...] = ("advance",)
    shares = [share_reached(taken(*on * number, "roll_back")) for number in range(2, 8)]

    assert [0, 0, 10_000, 500_000, WHOLE, WHOLE] == shares
