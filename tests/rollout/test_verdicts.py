"""Verdicts (PROTOCOL 12.12): each can be decided again, bit for bit, and whoever changes one is found out."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.ops.policies import standard
from inbetweenies.rollout import chain, kept, triggers, verdicts
from inbetweenies.rollout.chain import Line, broken, following
from inbetweenies.rollout.policy import Policy
from inbetweenies.rollout.sequential import Arm, Bets
from inbetweenies.rollout.states import Rollout
from inbetweenies.rollout.triggers import RECENT, Signals, Thresholds, Watch, Watches, look
from inbetweenies.rollout.verdicts import (
    LINES_CHARS_MAX,
    LINES_MAX,
    Record,
    Verdict,
    document_of,
    judge,
    record_in,
    replay,
    understood,
)
from tests.rollout import test_triggers as ladder

THRESHOLDS = Thresholds()
VERDICTS: Final = int(os.environ.get("DEEP_EXAMPLES", "1000"))


def rollout(serial: int = 1) -> Rollout:
    return Rollout(subject="x", serial=serial, state="ramp", fence=4, since=0)


def judged(
    *told: Signals | None, watches: Watches | None = None, policy: Policy | None = None, serial: int = 1
) -> Watches:
    watches = watches or Watches()
    for now, one in enumerate(told):
        _, watches = judge(watches, rollout(serial), one, THRESHOLDS, policy or standard(), now=now)
    return watches


def again(record: Record) -> Record:
    """As another process reads it."""
    return record_in(Document(revision=1, body=document_of(record)))


# --- decided on what is kept --------------------------------------------------------------------------------------


@given(story=st.lists(ladder.signals, max_size=15))
def test_who_judges_keeps_what_who_looks_keeps(story: list[Signals | None]) -> None:
    check_same(story)


def check_same(story: list[Signals | None]) -> None:
    watch, watches, count = Watch(rollout="x/1"), Watches(), 0
    for now, signals in enumerate(story):
        before = watch
        watch = look(watch, signals, THRESHOLDS, fence=4, now=now)
        found, watches = judge(watches, rollout(), signals, THRESHOLDS, standard(), now=now)
        assert (watch, watch) == (found.watch, watches.of(rollout()))
        # Of each look that leads to something there is a verdict.
        count += (before.rung, before.log, before.worries) != (watch.rung, watch.log, watch.worries)
        assert (watches.verdicts[-1].n if watches.verdicts else 0) >= count
    assert broken(watches.verdicts) is None


def drawn(draw: random.Random) -> Signals | None:
    """What a look might see: often nothing to speak of, sometimes everything at once."""
    if draw.random() < 0.1:
        return None

    def arm() -> Arm:
        requests = draw.choice((0, 1, 7, 50, 1_000))
        return Arm(requests=requests, failures=int(requests * draw.choice((0, 0, 0.01, draw.random()))))

    return Signals(
        canary=arm(),
        control=arm(),
        canary_run=draw.randrange(8),
        control_run=draw.randrange(8),
        breaches=draw.choice(((), (), (), ("ein Wert ging verloren \u2013 \U0001f4a1", "2"))),
        degraded=draw.choice(((), (), ("p99 of pushes",))),
        memory=draw.choice((None, 1.0, 1 + draw.random() * 2, math.inf, math.nan)),
        advised=draw.choice(((), (), (), ("a hole",))),
        below_floor=draw.choice(("", "", "v1 is below v2")),
    )


def story(seed: int, least: int) -> tuple[Record, int]:
    """A record of at least so many verdicts, made by many rollouts of one subject; and how many looks they took."""
    draw, watches, record, looks = random.Random(seed), Watches(), Record(), 0
    serial = 0
    while not record.lines or record.lines[-1].n < least:
        serial += 1
        for told in [drawn(draw) for _ in range(12)] if serial % 9 else [None] * 4:
            _, watches = judge(watches, rollout(serial), told, THRESHOLDS, standard(), now=looks)
            record = record.added(watches.verdicts, standard())
            looks += 1
    return record, looks


def test_a_thousand_verdicts_are_decided_again_bit_for_bit() -> None:
    count, seen, rows = 0, 0, set[str]()
    for seed in range(-(-VERDICTS // LINES_MAX)):
        made, looks = story(seed, least=LINES_MAX)
        record = again(made)
        assert LINES_MAX == len(record.lines)
        assert broken(record.lines) is None
        replays = [replay(line, record.policies[understood(line).inputs.policy]) for line in record.lines]
        assert [] == [one.differs for one in replays if not one.identical]
        rows |= {understood(line).outcome.row for line in record.lines}
        count, seen = count + len(replays), seen + looks

    print(f"figures: {count:,} verdicts of {seen:,} looks, by {len(rows)} rows, decided again: 0 differ by a byte")
    assert {row.name for row in standard().row if row.decision != "watch"} == rows


def test_what_a_text_cannot_hold_nobody_decides_on() -> None:
    for memory in (math.inf, math.nan):
        assert () == judged(replace(ladder.FINE, memory=memory)).verdicts


def test_what_decides_otherwise_by_now_is_told() -> None:
    line = judged(ladder.WORSE).verdicts[0]
    other = replace(standard(), row=tuple(reversed(standard().row)))
    assert other.digest != standard().digest
    with pytest.raises(LocalProtocolError, match=f"expected the policy {standard().digest}; got {other.digest}"):
        replay(line, other)

    verdict = msgspec.json.decode(line.body, type=Verdict)
    inputs = bytes(verdict.inputs).replace(b'"fence":4,"now"', b'"fence":5,"now"')
    assert inputs != bytes(verdict.inputs)
    forged = following(None, msgspec.json.encode(replace(verdict, inputs=msgspec.Raw(inputs))).decode())
    told = replay(forged, standard())
    assert not told.identical
    assert ["watch"] == [one.split(":")[0] for one in told.differs]
    assert '"fence":4' in told.differs[0].split(" was kept; ")[0]
    assert told.differs[0].endswith(" is decided now")


# --- which looks make one -----------------------------------------------------------------------------------------


def rows_of(watches: Watches) -> list[str]:
    return [understood(line).outcome.row for line in watches.verdicts]


def test_a_look_that_leads_nowhere_makes_none_and_a_row_that_goes_on_makes_one() -> None:
    assert [] == rows_of(judged(*[ladder.FINE, Signals(), None] * 3))
    assert ["degradation"] == rows_of(judged(*[ladder.WORSE] * 5))
    assert ["data_loss", "still_broken", "broken_without_it", "broken_after_repair"] == rows_of(
        judged(*[ladder.BROKEN] * 9)
    )


def test_a_verdict_says_what_was_known_before_and_what_was_added() -> None:
    watches = judged(ladder.WORSE, ladder.BROKEN)
    read = understood(watches.verdicts[1])

    assert ("x/1", "freeze", 4, 1) == (read.rollout, read.inputs.watch.rung, read.inputs.fence, read.inputs.now)
    assert ((), ["route_back"]) == (read.inputs.watch.log, [one.rung for one in read.outcome.watch.log])
    assert ("yes", "route_back", ("a write was lost",)) == (
        read.outcome.facts.breach,
        read.outcome.decision,
        read.outcome.evidence,
    )


def test_who_is_late_makes_none() -> None:
    watches = judged(Signals(canary=Arm(requests=1)), serial=2)

    assert watches == judged(ladder.BROKEN, watches=watches)


def test_beside_the_watch_only_the_newest_are_kept() -> None:
    watches = Watches()
    for serial in range(1, 20):
        watches = judged(ladder.BROKEN, watches=watches, serial=serial)

    assert [*range(20 - RECENT, 20)] == [line.n for line in watches.verdicts]
    assert broken(watches.verdicts) is None


# --- the record ---------------------------------------------------------------------------------------------------


def test_what_is_added_twice_is_there_once_and_what_never_came_is_found_beside_the_watch() -> None:
    first = judged(ladder.WORSE)
    record = Record().added(first.verdicts, standard())
    both = judged(ladder.BROKEN, watches=first)

    assert record == again(record).added(first.verdicts, standard())
    assert [1, 2] == [line.n for line in record.lines_with(both.verdicts)]
    assert {standard().digest} == record.policies.keys()
    assert Record() == record_in(Document())
    assert () == Record().lines_with(())


def test_the_record_is_bounded_and_forgets_policies_that_decided_nothing_any_more() -> None:
    line: Line | None = None
    lines = list[Line]()
    for _ in range(LINES_MAX + 5):
        line = following(line, standard().digest)
        lines.append(line)
    other = replace(standard(), advised={"x": "y"})
    record = Record().added(tuple(lines), other)
    assert (LINES_MAX, 6) == (len(record.lines), record.lines[0].n)
    assert {} == record.policies

    long = following(line, "x" * (LINES_CHARS_MAX - 10) + other.digest)
    assert (0, {}) == (len(record.added((long,), other).lines), record.added((long,), other).policies)
    fits = following(line, "x" * (LINES_CHARS_MAX - 100) + other.digest)
    found = record.added((fits,), other)
    assert ({other.digest}, fits) == (set(found.policies), found.lines[-1])
    assert 1 < len(found.lines) < 5


# --- changed ------------------------------------------------------------------------------------------------------


def test_a_change_of_any_line_is_found() -> None:
    check_changes()


def check_changes() -> None:
    record, _ = story(seed=2, least=30)
    lines = record.lines
    recent = lines[-RECENT:]
    assert lines == record.lines_with(recent)
    for at, line in enumerate(lines):
        after = lines[at + 1] if at + 1 < len(lines) else None
        other = line.body.replace('"fence":4', '"fence":5', 1)
        assert other != line.body
        rehashed = following(lines[at - 1] if at else None, other)
        for forged in (
            replace(line, body=other),
            replace(line, n=line.n + 1),
            replace(line, hash="0" * 32),
            replace(line, before="0" * 32),
            rehashed,
        ):
            changed = (*lines[:at], forged, *lines[at + 1 :])
            assert refused(changed, recent), (at, forged)
        # Of one whose neighbours are not kept any more, too.
        assert broken((line,)) is None
        assert all(broken((one,)) for one in (replace(line, n=line.n + 1), replace(line, before="0" * 32)))
        gone = (*lines[:at], *lines[at + 1 :])
        assert refused(gone, recent) or at in (0, len(lines) - 1)
        assert after is None or refused((*lines[:at], after, line, *lines[at + 2 :]), recent)
    # What was left out at the end is beside the watch; and the other way round.
    assert lines == Record(lines=lines[:-3]).lines_with(recent)
    assert refused(lines, recent[:-1])
    assert refused(lines, ())
    assert refused((replace(chained(lines[0], before="x"), n=1),), ())
    # Whoever writes all hashes anew is found out by what is beside the watch.
    last: Line | None = None
    anew = list[Line]()
    for one in lines:
        last = following(last, one.body.replace('"fence":4', '"fence":5', 1))
        anew.append(last)
    assert broken(anew) is None
    assert refused(tuple(anew), recent)


def chained(line: Line, *, before: str) -> Line:
    return replace(line, before=before, hash=chain._hash(line.n, before, line.body))


def refused(lines: tuple[Line, ...], recent: tuple[Line, ...]) -> bool:
    try:
        Record(lines=lines).lines_with(recent)
    except StoreCorrupt as error:
        assert "verdict " in str(error)
        assert "proves nothing" in str(error)
        return True
    return False


@pytest.mark.parametrize("body", [b"", b"{}]", b'{"newer": 1}', b'{"lines": [{"n": 1}]}', b'{"policies": {"x": {}}}'])
def test_a_document_of_something_else_is_refused(body: bytes) -> None:
    with pytest.raises(StoreCorrupt, match="expected the record of verdicts"):
        record_in(Document(revision=1, body=body))


@pytest.mark.parametrize("body", ["", "{}", '{"inputs": {}, "outcome": {}}', '{"inputs": 1, "outcome": 1, "newer": 1}'])
def test_a_line_that_says_something_else_is_refused(body: str) -> None:
    line = following(None, body)
    for ask in (understood, lambda one: replay(one, standard())):
        with pytest.raises(StoreCorrupt, match="expected verdict 1 to be one; got something else"):
            ask(line)


# --- planted bugs -------------------------------------------------------------------------------------------------


def reads_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bet that depends on how often it was asked."""
    asked = iter(range(10**9))
    real = Bets.after

    def after(self: Bets, canary: Arm, control: Arm) -> Bets:
        bets = real(self, canary, control)
        return replace(bets, restakes=bets.restakes + next(asked))

    monkeypatch.setattr(Bets, "after", after)


def unordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets are written in the order in which they come."""
    flip = [False]

    def written(value: Any) -> bytes:
        flip[0] = not flip[0]
        order: Any = None if flip[0] else "sorted"
        return msgspec.json.encode(value, order=order) if isinstance(value, verdicts.Outcome) else kept.written(value)

    monkeypatch.setattr(verdicts, "written", written)


@pytest.mark.parametrize("plant", [reads_the_clock, unordered])
def test_a_verdict_that_depends_on_more_than_is_kept_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    lines = judged(ladder.FINE, ladder.WORSE, None, None, None, ladder.BROKEN).verdicts

    assert not all(replay(line, standard()).identical for line in (*lines, *lines))


def no_numbers(n: int, before: str, body: str) -> str:
    return real_hash(0, before, body)


def no_chain(n: int, before: str, body: str) -> str:
    return real_hash(n, "", body)


def no_body(n: int, before: str, body: str) -> str:
    return real_hash(n, before, "")


real_hash = chain._hash


@pytest.mark.parametrize("bug", [no_numbers, no_chain, no_body])
def test_a_hash_over_less_is_caught(bug: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "_hash", bug)
    with pytest.raises(AssertionError):
        check_changes()


def test_who_does_not_compare_with_what_is_beside_the_watch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_at_odds", lambda *_: None)
    with pytest.raises(AssertionError):
        check_changes()


def test_who_decides_on_the_log_too_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    story: list[Signals | None] = [ladder.WORSE, replace(ladder.FINE, memory=3.0), ladder.BROKEN]
    check_same(story)
    real = triggers.decide

    def decide(watch: Watch, *rest: Any, **more: Any) -> triggers.Judged:
        found = real(watch, *rest, **more)
        return replace(found, watch=replace(found.watch, fence=len(watch.log)))

    monkeypatch.setattr(triggers, "decide", decide)
    monkeypatch.setattr(verdicts, "decide", decide)
    with pytest.raises(AssertionError):
        check_same(story)
