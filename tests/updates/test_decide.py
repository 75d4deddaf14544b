"""What to do about a verdict: by example, and against a server, a channel, a clock and a person who wish us ill."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blowing_off.updates.check import (
    Compatible,
    ServerTooOld,
    Unknown,
    UpdateRecommended,
    UpdateRequired,
    Verdict,
    release_of,
)
from blowing_off.updates.decide import (
    ATTEMPTS_MAX,
    DAY_US,
    HOUR_US,
    NOT_HERE,
    REMEMBERED_MAX,
    SPOKEN_MAX,
    Ask,
    Availability,
    Install,
    Memory,
    Move,
    Nothing,
    Policy,
    Tell,
    UpdateNeeded,
    Wanted,
    decide,
    wanted_for,
)
from blowing_off.updates.layout import Layout
from blowing_off.updates.prompt import explain
from tests.support import NOW

RUNNING = "1.0.0"
HAVE = Availability(release="1.1.0")
NONE = Availability(release=None, reason="the folder has none that fits")
REQUIRED = UpdateRequired(minimum="1.1")
LATEST = UpdateRecommended(minimum="1.1.0")


def move(verdict: Verdict, available: Availability | None = HAVE, memory: Memory | None = None, **changed: Any) -> Move:
    given: dict[str, Any] = {"policy": "prompt", "attended": True, "automatic": True, "now": NOW} | changed
    return decide(verdict, available, memory or Memory(), running=RUNNING, **given)


# --- examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [Compatible(), Unknown(reason="no answer")])
@pytest.mark.parametrize("policy", ["off", "notify", "prompt", "auto"])
def test_nothing_is_done_where_nothing_is_known_to_be_wrong(verdict: Verdict, policy: Policy) -> None:
    assert isinstance(move(verdict, policy=policy), Nothing)


@pytest.mark.parametrize(
    ("policy", "attended", "automatic", "expected"),
    [
        ("off", True, True, Nothing),
        ("notify", True, True, Tell),
        ("prompt", True, True, Ask),
        ("prompt", True, False, Tell),  # there is nothing that it could do on "yes"
        ("prompt", False, True, Tell),
        ("auto", True, True, Install),
        ("auto", False, True, Install),
        ("auto", True, False, Tell),
    ],
)
@pytest.mark.parametrize("verdict", [REQUIRED, LATEST])
def test_what_the_policy_says_is_done(
    verdict: Verdict, policy: Policy, attended: bool, automatic: bool, expected: type[Move]
) -> None:
    assert isinstance(move(verdict, policy=policy, attended=attended, automatic=automatic), expected)


def test_a_release_that_cannot_be_had_is_missed_only_where_it_is_needed() -> None:
    assert isinstance(move(REQUIRED, NONE), Tell)
    assert isinstance(move(LATEST, NONE), Nothing)
    assert isinstance(move(REQUIRED, None), Nothing)


def test_a_server_that_is_behind_is_told_of_and_never_answered_with_an_update() -> None:
    told = move(ServerTooOld(), policy="auto")

    assert isinstance(told, Tell)
    assert ("server", NOT_HERE) == (told.needed.side, told.needed.available)
    assert isinstance(move(ServerTooOld(), memory=Memory().spoke(told.needed, NOW - DAY_US + 1)), Nothing)
    assert isinstance(move(ServerTooOld(), memory=Memory().spoke(told.needed, NOW - DAY_US)), Tell)


def test_what_a_channel_delivers_unasked_is_not_taken() -> None:
    for wrong in ("1.0.0", "0.9", "1.1rc1", "soon", "1.0.5"):
        found = move(REQUIRED, Availability(release=wrong), policy="auto")

        assert isinstance(found, Tell)
        assert found.needed.available.release is None


def test_a_preliminary_release_is_for_those_who_run_one() -> None:
    assert not Wanted(after="1.0").fits("1.1rc1")
    assert Wanted(after="1.1b1").fits("1.1rc1")
    assert Wanted(after="1.1rc1").fits("1.1")


def test_what_is_wanted_is_written_as_installers_read_it() -> None:
    memory = Memory().failed("1.1.0", "it crashed")

    assert Wanted(after="1.0.0", minimum="1.1", avoid=("1.1.0",)) == wanted_for(REQUIRED, memory, RUNNING)
    assert ">1.0.0,>=1.1,!=1.1.0" == Wanted(after="1.0.0", minimum="1.1", avoid=("1.1.0",)).requirement
    assert ">1.0.0" == Wanted(after="1.0.0").requirement
    assert not Wanted(after="1.0.0", avoid=("1.1",)).fits("1.1.0")  # by any other name
    assert not Wanted(after="nothing").fits("1.1.0")
    assert wanted_for(Compatible(), memory, RUNNING) is None


def test_what_failed_here_pauses_what_goes_by_itself_until_a_person_updates() -> None:
    memory = Memory().failed("1.1.0", "it crashed")

    assert isinstance(move(LATEST, Availability(release="1.2.0"), memory, policy="auto", attended=False), Tell)
    assert isinstance(move(LATEST, Availability(release="1.2.0"), memory, policy="auto"), Ask)
    after = memory.succeeded("1.2.0")
    assert (None, {"1.1.0"}) == (after.paused, set(after.bad))
    assert isinstance(move(LATEST, Availability(release="1.3.0"), after, policy="auto"), Install)
    assert {} == memory.succeeded("1.1.0").bad  # somebody insisted, and it works now


def test_an_update_that_is_cut_off_is_tried_once_more_and_then_left_to_a_person() -> None:
    memory = Memory()
    for _ in range(ATTEMPTS_MAX):
        assert isinstance(move(LATEST, memory=memory, policy="auto"), Install)
        memory = memory.began("1.1.0")

    assert isinstance(move(LATEST, memory=memory, policy="auto"), Ask)
    assert isinstance(move(LATEST, memory=memory.succeeded("1.1.0"), policy="auto"), Install)


def test_a_declined_release_is_not_offered_and_not_installed_but_the_next_one_is() -> None:
    memory = Memory().declined("1.1.0").declined("1.1.0")

    assert ("1.1.0",) == memory.skipped
    assert isinstance(move(REQUIRED, memory=memory), Nothing)
    assert isinstance(move(REQUIRED, memory=memory, policy="auto"), Nothing)
    assert isinstance(move(REQUIRED, Availability(release="1.2.0"), memory), Ask)


def test_later_means_tomorrow() -> None:
    memory = Memory().snoozed(NOW)

    assert isinstance(move(LATEST, memory=memory, now=NOW + DAY_US - 1), Nothing)
    assert isinstance(move(LATEST, memory=memory, now=NOW + DAY_US), Ask)
    assert isinstance(move(LATEST, memory=memory, now=NOW - 2 * DAY_US), Ask)  # a clock that was set back


def test_a_server_that_asks_for_something_else_each_time_is_heard_three_times_a_day() -> None:
    memory = Memory()
    asked = 0
    for count in range(20):
        found = move(UpdateRequired(minimum=f"1.0.{count + 1}"), memory=memory)
        if isinstance(found, Ask):
            asked += 1
            memory = memory.spoke(found.needed, NOW)

    assert SPOKEN_MAX == asked


def test_a_check_is_due_once_a_day_and_some_and_sooner_only_after_a_refusal() -> None:
    memory = Memory().checked(Compatible(), NOW, jitter=0.5)

    assert Memory().due(NOW)
    assert (NOW + DAY_US + DAY_US // 10) == memory.next_check
    assert not memory.due(memory.next_check - 1)
    assert memory.due(memory.next_check)
    assert not memory.due(NOW + HOUR_US - 1, refused=True)
    assert memory.due(NOW + HOUR_US, refused=True)
    assert memory.due(NOW - 10 * DAY_US)  # a clock that was set back must not mean never


def test_a_check_that_failed_does_not_overwrite_what_was_known() -> None:
    memory = Memory().checked(REQUIRED, NOW, jitter=0).checked(Unknown(reason="x"), NOW + DAY_US, jitter=0)

    assert ("update_required", NOW, NOW + DAY_US) == (memory.verdict, memory.judged_at, memory.checked_at)


def test_nobody_can_fill_the_memory() -> None:
    memory = Memory()
    for count in range(3 * REMEMBERED_MAX):
        needed = UpdateNeeded(
            side="client", have=RUNNING, minimum=f"2.{count}", required=True, available=Availability(release=None)
        )
        release = f"2.{count}"
        memory = memory.spoke(needed, NOW + count).declined(release).failed(release, "x").began(release)

    for kept in (memory.spoken, memory.skipped, memory.bad, memory.attempts):
        assert REMEMBERED_MAX == len(kept)
    assert f"2.{3 * REMEMBERED_MAX - 1}" in memory.bad
    assert f"client 2.{3 * REMEMBERED_MAX - 1}" in memory.spoken


@pytest.mark.parametrize("available", [None, "1.1.0", True])
def test_nothing_is_needed_without_what_the_channel_answered(available: Any) -> None:
    with pytest.raises(TypeError, match="expected what the channel answered, an Availability; got"):
        UpdateNeeded(side="client", have="1.0", minimum="1.1", required=True, available=available)
    with pytest.raises(TypeError, match="available"):
        UpdateNeeded(side="client", have="1.0", minimum="1.1", required=True)  # type: ignore[call-arg]


@given(st.integers(0, 2**63), st.integers(0, 5))
def test_what_is_remembered_survives_a_file(now: int, count: int) -> None:
    memory = Memory().checked(LATEST, now, jitter=1).snoozed(now)
    for _ in range(count):
        memory = memory.began("1.1").failed("1.2", "x").declined("1.3")

    assert memory == msgspec.json.decode(msgspec.json.encode(memory), type=Memory)


# --- the simulation -----------------------------------------------------------------------------------------------

RELEASES = [f"1.{minor}.{patch}" for minor in range(12) for patch in range(3)]
ODD = ["1.3rc1", "0.9", "nonsense", "1.1", "1!0.1", "2.0.dev1", "1.1.0.0"]
STEPS = 10_000
NUMBER = re.compile(r"\d+(?:!\d+)?\.\d+[\w.]*")


class World:
    """A server, a channel, a clock, a person and an installer, none of which mean well; and what must hold anyway."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = NOW
        self.running = "1.0.0"
        self.memory = Memory()
        self.policy: Policy = "prompt"
        self.spoken: dict[str, list[int]] = defaultdict(list)
        self.tried: Counter[str] = Counter()  # by itself, since a person last made an update
        self.failed: set[str] = set()
        self.moves: Counter[str] = Counter()
        self.raised = 0  # releases that came to run by themselves

    def step(self) -> None:
        pick = self.random
        self.now += pick.choice([1, 60 * 10**6, HOUR_US, 7 * HOUR_US, DAY_US, -60 * 10**6])
        if pick.random() < 0.02:
            self.policy = pick.choice(["off", "notify", "prompt", "auto"])
        verdict = self.verdict()
        wanted = wanted_for(verdict, self.memory, self.running)
        available = None if wanted is None else self.available(wanted)
        automatic, attended = pick.random() < 0.8, pick.random() < 0.5
        found = decide(
            verdict,
            available,
            self.memory,
            running=self.running,
            policy=self.policy,
            attended=attended,
            automatic=automatic,
            now=self.now,
        )
        self.moves[type(found).__name__] += 1
        if isinstance(found, Nothing):
            return
        self.check(found, available, automatic=automatic)
        if isinstance(found, Install):
            self.tried[found.release] += 1
            self.memory = self.memory.began(found.release)
            self.install(found.release, asked=False)
            return
        self.speak(found.needed)
        if isinstance(found, Ask):
            self.answer(found)

    def verdict(self) -> Verdict:
        pick = self.random
        release = pick.choice([*RELEASES, None])
        verdicts: list[Verdict] = [
            Compatible(),
            Unknown(reason="no answer"),
            ServerTooOld(),
            UpdateRequired(minimum=release),
            UpdateRequired(minimum=release),
            UpdateRecommended(minimum=release or "1.0.0"),
        ]
        return pick.choice(verdicts)

    def available(self, wanted: Wanted) -> Availability:
        """What the channel says that it delivers: what was asked for, nothing, or anything."""
        pick = self.random
        fitting = [release for release in RELEASES if wanted.fits(release)]
        answers = [None, pick.choice([*RELEASES, *ODD]), *([pick.choice(fitting)] * 3 if fitting else [])]
        return Availability(release=pick.choice(answers), reason="none")

    def check(self, found: Tell | Ask | Install, available: Availability | None, *, automatic: bool) -> None:
        needed = found.needed
        # Never names what was not delivered just now.
        delivered = set() if available is None else {available.release}
        text = explain(needed, LAYOUT, pending=3)
        assert set(NUMBER.findall(text)) <= {self.running} | {one for one in delivered if one is not None}, text
        if isinstance(found, Install):
            # Never lower, never what failed or was declined, never unless it may.
            new, old = release_of(found.release), release_of(self.running)
            assert new is not None
            assert old is not None
            assert new > old
            assert found.release in delivered
            assert new not in {release_of(bad) for bad in self.failed}
            assert found.release not in self.memory.skipped
            assert (self.policy, automatic) == ("auto", True)
            assert self.tried[found.release] < ATTEMPTS_MAX

    def speak(self, needed: UpdateNeeded) -> None:
        # At most once a day of one (side, minimum).
        key = f"{needed.side} {needed.minimum}"
        assert not any(abs(self.now - before) < DAY_US for before in self.spoken[key][-4:])
        self.spoken[key].append(self.now)
        self.memory = self.memory.spoke(needed, self.now)

    def answer(self, found: Ask) -> None:
        release = found.needed.available.release
        assert release is not None
        choice = self.random.choice(["update", "later", "skip"])
        if choice == "update":
            self.install(release, asked=True)
        elif choice == "skip" and self.random.random() < 0.2:
            self.memory = self.memory.declined(release)
        else:
            self.memory = self.memory.snoozed(self.now)

    def install(self, release: str, *, asked: bool) -> None:
        outcome = self.random.choice(["works", "fails", "cut off", "nothing"])
        if outcome == "works":
            self.memory = self.memory.succeeded(release)
            self.running = release
            self.raised += not asked
            self.tried.clear()
            self.failed.discard(release)
            if release >= RELEASES[-4] or self.random.random() < 0.1:  # somebody goes back by hand, and on it goes
                self.running = "1.0.0"
        elif outcome == "fails":
            self.memory = self.memory.failed(release, "x")
            self.failed = set(self.memory.bad)
        # Cut off, or a tool that says "done" and did nothing: the next step finds what was before.


LAYOUT = Layout(kind="pip", what="by pip", how="`pip install`")


def test_ten_thousand_steps_among_enemies() -> None:
    world = World(1)
    for _ in range(STEPS):
        world.step()

    # It was not all for nothing: every kind of move was made.
    assert {"Nothing", "Tell", "Ask", "Install"} == set(world.moves)
    assert world.raised > 0


@given(st.integers(min_value=3))
def test_any_enemies(seed: int) -> None:
    world = World(seed)
    for _ in range(100):
        world.step()


def test_a_release_that_never_works_does_not_start_a_loop() -> None:
    memory, installs = Memory(), 0
    for hour in range(24 * 30):
        found = move(LATEST, memory=memory, policy="auto", now=NOW + hour * HOUR_US)
        if isinstance(found, Install):
            installs += 1
            memory = memory.began(found.release)
            if hour % 2:
                memory = memory.failed(found.release, "x")

    assert installs <= ATTEMPTS_MAX
