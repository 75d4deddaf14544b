"""The decision matrix (PROTOCOL 12.11): total, without overlap, never below the floor; and what decides obeys it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any, Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from inbetweenies.ops.policies import standard
from inbetweenies.rollout import policy, triggers
from inbetweenies.rollout.policy import (
    DOMAINS,
    ROWS_MAX,
    TEXT_BYTES_MAX,
    Decision,
    Facts,
    Policy,
    PolicyRefused,
    Row,
    all_facts,
    policy_in,
)
from inbetweenies.rollout.triggers import RUNGS, Climb, Signals, Thresholds, Watch, decide, look
from tests.rollout import test_triggers as ladder

Table = dict[str, tuple[str, ...]]
DECISIONS: Final = get_args(Decision)
THRESHOLDS = Thresholds()
WHOLE: Table = dict(DOMAINS)


# --- whatever can be known meets one row --------------------------------------------------------------------------


@cache
def every() -> list[dict[str, str]]:
    """All facts, by another way than the module goes."""
    return [dict(zip(DOMAINS, values, strict=True)) for values in product(*DOMAINS.values())]


def meets(row: Row, facts: dict[str, str]) -> bool:
    return all(
        facts[name] == told or (not isinstance(told, str) and facts[name] in told) for name, told in row.when.items()
    )


def counts(rows: tuple[Row, ...]) -> list[int]:
    return [sum(meets(row, facts) for row in rows) for facts in every()]


def test_the_policy_that_comes_with_this_is_total_and_has_no_overlap() -> None:
    assert every() == [asdict(facts) for facts in all_facts()]
    assert 768 == len(every())
    assert {1} == set(counts(standard().row))


def test_each_row_that_comes_with_this_can_be_met_says_why_and_names_a_drill() -> None:
    rows = standard().row

    assert {row.name for row in rows} == {standard().decides(facts).name for facts in all_facts()}
    assert len(rows) == len({row.scenario for row in rows} - {""})
    assert set(DECISIONS) == {row.decision for row in rows}
    # The six rows of the operator's own matrix, and what they came to.
    covered = {words for row in rows for words in row.covers}
    assert covered >= {
        "Data loss detected",
        ">50% performance degradation",
        "Sync failures",
        "Security vulnerability",
        "Data inconsistency",
        "User complaints",
        "Minor issues",
    }


@st.composite
def tables(draw: st.DrawFn, table: Table | None = None, depth: int = 4) -> list[Table]:
    """Tables that part everything that can be known: each is split in two by one fact, again and again."""
    table = table or WHOLE
    wide = [name for name, values in table.items() if len(values) > 1]
    if not depth or not wide or (depth < 4 and draw(st.booleans())):
        return [table]
    name = draw(st.sampled_from(wide))
    cut = draw(st.integers(1, len(table[name]) - 1))
    parts = (table[name][:cut], table[name][cut:])
    return [one for part in parts for one in draw(tables({**table, name: part}, depth - 1))]


def legal(table: Table) -> list[Any]:
    """What may follow from every facts of a table."""
    stages, breach, below = table["stage"], "yes" in table["breach"], "below" in table["floor"]
    found = [one for one in DECISIONS if all(one in policy._FOLLOWS[stage] for stage in stages)]  # type: ignore[index]
    if "reached" in stages and breach:
        found.remove("watch")
    return [one for one in found if not (below and one in ("route_back", "switch"))]


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    return [
        Row(name=f"row {n}", when=table, decision=draw(st.sampled_from(legal(table))), why="drawn")
        for n, table in enumerate(draw(tables()))
    ]


def example(refused: PolicyRefused) -> dict[str, str]:
    """The facts that a refusal names."""
    words = [word.strip(",:;").split("=") for word in str(refused).split() if "=" in word]
    return asdict(Facts()) | dict(words)


@given(drawn=rows(), data=st.data())
def test_whatever_parts_all_that_can_be_known_is_a_policy(drawn: list[Row], data: st.DataObject) -> None:
    check_parts(tuple(data.draw(st.permutations(drawn))))


def check_parts(drawn: tuple[Row, ...]) -> None:
    made = Policy(row=drawn)
    for facts, known in zip(all_facts(), every(), strict=True):
        row = made.decides(facts)
        assert meets(row, known)
        assert not (facts.floor == "below" and row.decision in ("route_back", "switch"))
        assert not (facts.stage == "reached" and facts.breach == "yes" and row.decision == "watch")


@given(drawn=rows(), data=st.data())
def test_a_gap_is_refused_with_an_example_that_is_in_it(drawn: list[Row], data: st.DataObject) -> None:
    check_gap(drawn, data.draw(st.integers(0, len(drawn) - 1)))


def check_gap(drawn: list[Row], gone: int) -> None:
    left = [row for n, row in enumerate(drawn) if n != gone]
    left = left or [Row(name="only", when={"stage": "repair"}, decision="watch", why="one has to be there")]
    with pytest.raises(PolicyRefused, match=r"got none for \d+, such as") as refused:
        Policy(row=tuple(left))
    facts = example(refused.value)
    assert not any(meets(row, facts) for row in left)
    assert f"none for {counts(tuple(left)).count(0)}," in str(refused.value)


@given(drawn=rows(), data=st.data())
def test_an_overlap_is_refused_with_an_example_and_the_names_of_the_rows(drawn: list[Row], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(drawn))
    facts = data.draw(st.sampled_from([one for one in every() if meets(twice, one)]))
    check_overlap(drawn, Row(name="one too many", when=facts, decision=twice.decision, why="drawn"))


def check_overlap(drawn: list[Row], more: Row) -> None:
    with pytest.raises(PolicyRefused, match=r"got several for 1, such as") as refused:
        Policy(row=(*drawn, more))
    facts = example(refused.value)
    both = [row.name for row in (*drawn, more) if meets(row, facts)]
    assert 2 == len(both)
    assert " and ".join(both) in str(refused.value)


# --- what no policy may say ---------------------------------------------------------------------------------------


def but(name: str, **fields: Any) -> Policy:
    """The policy that comes with this, but for one row."""
    return replace(standard(), row=tuple(replace(row, **fields) if row.name == name else row for row in standard().row))


def back(name: str) -> Policy:
    """The same, but that what meets this row is taken back, unless that opens a hole."""
    row = next(one for one in standard().row if one.name == name)
    above = replace(row, when={**row.when, "floor": "above"}, decision="route_back")
    below = replace(row, name="below", when={**row.when, "floor": "below"}, decision="fix_forward")
    return replace(standard(), row=(*(one for one in standard().row if one != row), above, below))


@pytest.mark.parametrize(
    ("name", "decision", "told"),
    [
        ("data_loss_below_floor", "route_back", "row data_loss_below_floor: expected fix_forward where floor is below"),
        ("still_broken_below_floor", "switch", "expected fix_forward where floor is below"),
        ("security_below_floor", "route_back", "security=yes floor=below"),
        ("data_loss", "watch", "expected more than watch where an invariant is broken"),
        ("data_loss", "restore_by_person", "row data_loss: expected one of .* where stage is reached"),
        ("still_broken", "freeze", "where stage is routed_back, since nothing climbs down; got freeze"),
        ("still_broken", "route_back", "where stage is routed_back"),
        ("broken_without_it", "switch", "where stage is switched"),
        ("broken_after_repair", "repair", "where stage is repair"),
    ],
)
def test_what_may_not_follow_is_refused(name: str, decision: Any, told: str) -> None:
    with pytest.raises(PolicyRefused, match=told):
        but(name, decision=decision)


ROW: Final = '[[row]]\nname = "x"\nwhy = "x"\ndecision = "fix_forward"\n'


def test_a_policy_of_one_row_is_one() -> None:
    assert "fix_forward" == policy_in(ROW).decides(Facts()).decision


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a policy in TOML; got something else: .*row"),
        ("row = []", "expected 1 to 100 rows"),
        ("row", "expected a policy in TOML"),
        (ROW + "newer = 1", "unknown field"),
        (ROW.replace("fix_forward", "pray"), "Invalid enum value 'pray'"),
        (ROW.replace('name = "x"', 'name = ""'), "a name and a why"),
        (ROW.replace('why = "x"', 'why = "\\u0007"'), "a name and a why"),
        (ROW + ROW, "or a name twice"),
        (ROW + 'when = { moon = "full" }', "row x, when: expected facts of stage, breach, .*; got another: 'moon'"),
        (ROW + 'when = { floor = "none" }', "row x, when.floor: expected one or several of above, below; got 'none'"),
        (ROW + "when = { floor = [] }", "expected one or several of above, below"),
        (ROW + 'when = { floor = ["above", "x"] }', "expected one or several of above, below"),
        (ROW + 'when = { floor = "above" }', r"got none for 384, such as stage=reached floor=below: add a row for it"),
        (ROW + ROW.replace('"x"', '"y"'), r"got several for 768, such as stage=reached, which x and y decide"),
        ('min_safe_version = ""\n' + ROW, "a min_safe_version, of 1 to 64"),
        (ROW + '[advised]\n"" = "x"', "a subject that is advised"),
        (ROW + '[advised]\nx = " "', "expected in advised 1 to 500"),
        ("x" * (TEXT_BYTES_MAX + 1), "at most 262144 characters; got 262145"),
        ("row = " + "[" * 100_000, "expected a policy"),
        ("\n".join(ROW.replace('"x"', f'"{n}"', 1) for n in range(ROWS_MAX + 1)), "got 101, or a name twice"),
    ],
)
def test_what_is_no_policy_is_refused(text: str, told: str) -> None:
    with pytest.raises(PolicyRefused, match=told):
        policy_in(text)


# --- the floor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("floor", "others", "below"),
    [
        (None, ("v3", "v2", "v1"), False),
        ("v1", ("v3", "v2", "v1"), False),
        ("v2", ("v3", "v2", "v1"), False),  # v2 is what would be served instead
        ("v3", ("v3", "v2", "v1"), True),
        ("v2", ("v3", "v1"), True),
        ("v4", ("v3", "v2"), True),  # of a newer release: all that is here is older
        ("v2", ("v3",), False),  # nothing else is served, so that nothing is gone back to
        ("v2", ("v3", "v0"), False),  # as above: what is not installed is not served
    ],
)
def test_what_would_be_served_instead_is_held_against_the_floor(
    floor: str | None, others: tuple[str, ...], below: bool
) -> None:
    told = replace(standard(), min_safe_version=floor).below_floor("v3", others, ("v3", "v2", "v1"))

    assert below == bool(told)
    assert not below or told.endswith(f"is below {floor}, the oldest that is safe")


# --- who decides obeys it -----------------------------------------------------------------------------------------


def reference(watch: Watch, signals: Signals | None, thresholds: Thresholds, *, fence: int, now: int) -> Watch:
    """How it was decided before there was a table, as PROTOCOL 12.8 says it."""
    if watch.routed_back:
        above = RUNGS[watch.height + 1 : watch.height + 2]
        return climbed(watch, above, signals.breaches, now) if signals and signals.breaches else watch
    watch = triggers._seen(watch, signals, thresholds)
    if certain := triggers._certain(watch, signals, thresholds):
        return climbed(watch, RUNGS[watch.height + 1 : RUNGS.index("route_back") + 1], certain, now)
    worrying = triggers._worrying(watch, signals, thresholds)
    if not worrying.keys() - watch.worries:
        return watch
    watch = replace(watch, fence=fence, worries=watch.worries.union(worrying))
    return climbed(watch, ("freeze",), tuple(worrying.values()), now)


def climbed(watch: Watch, rungs: tuple[Any, ...], why: tuple[str, ...], now: int) -> Watch:
    if not rungs:
        return watch
    log = tuple(Climb(rung=rung, at=now, why="; ".join(why)) for rung in rungs)
    return replace(watch, rung=rungs[-1], log=(*watch.log, *log)[-triggers.LOG_MAX :])


@given(story=st.lists(ladder.signals, max_size=25))
def test_the_policy_that_comes_with_this_decides_as_the_ladder_always_did(story: list[Signals | None]) -> None:
    check_reference(story, standard())


def check_reference(story: list[Signals | None], decides: Policy) -> None:
    watch = before = Watch(rollout="x/1")
    for now, signals in enumerate(story):
        watch = look(watch, signals, THRESHOLDS, fence=4, now=now, policy=decides)
        before = reference(before, signals, THRESHOLDS, fence=4, now=now)
        assert before == replace(watch, rows=before.rows)


def looked(decides: Policy, *told: Signals | None) -> triggers.Judged:
    judged = decide(Watch(rollout="x/1"), told[0], THRESHOLDS, decides, fence=4, now=0)
    for one in told[1:]:
        judged = decide(judged.watch, one, THRESHOLDS, decides, fence=4, now=0)
    return judged


BELOW: Final = "v1, which would be served instead, is below v2, the oldest that is safe"


def unsafe(signals: Signals) -> Signals:
    return replace(signals, below_floor=BELOW)


@pytest.mark.parametrize("told", [ladder.BROKEN, ladder.FAILING, Signals(advised=("a hole",))])
def test_below_the_floor_it_is_held_once_and_never_taken_back(told: Signals) -> None:
    failing = (unsafe(told),) * 3
    first, later = looked(standard(), *failing[:2]), looked(standard(), *failing, None, *failing)

    assert {"fix_forward"} == {first.decision, later.decision}
    assert ("freeze", first.watch.log) == (later.watch.rung, later.watch.log)
    assert first.watch.log[-1].why.endswith(f"; {BELOW}")
    assert first.evidence[-1] == BELOW


def test_where_something_is_still_broken_above_a_hole_it_is_not_switched_off() -> None:
    once = looked(standard(), ladder.BROKEN)
    after = decide(once.watch, unsafe(ladder.BROKEN), THRESHOLDS, standard(), fence=4, now=1)

    assert ("still_broken_below_floor", "fix_forward") == (after.row, after.decision)
    assert ("route_back", once.watch.log) == (after.watch.rung, after.watch.log)
    again = decide(after.watch, unsafe(ladder.BROKEN), THRESHOLDS, standard(), fence=4, now=1)
    assert again.watch == after.watch


def test_a_hole_in_what_is_rolled_out_takes_it_back() -> None:
    judged = looked(standard(), Signals(advised=("a hole",)))

    assert ("security", "route_back", ("a hole",)) == (judged.row, judged.decision, judged.evidence)
    assert [("freeze", "a hole"), ("route_back", "a hole")] == [(one.rung, one.why) for one in judged.watch.log]


def test_an_operator_decides_otherwise() -> None:
    slow = looked(back("degradation"), ladder.WORSE)
    assert ("route_back", "worse p99 of pushes") == (slow.watch.rung, slow.watch.log[-1].why)

    lost = but("data_loss", decision="switch")
    assert ["freeze", "route_back", "switch"] == [one.rung for one in looked(lost, ladder.BROKEN).watch.log]

    held = but("failing", decision="freeze")
    often = looked(held, ladder.USUAL, *[ladder.FEW] * 4)
    assert "freeze" == often.watch.rung
    assert 2 == len(often.watch.log)  # for a doubt, and then, once, for what is certain

    eager = looked(but("all_well", decision="freeze"), Signals(), Signals())
    assert [("freeze", "what only people notice, people hold or take back with one command")] == [
        (one.rung, one.why) for one in eager.watch.log
    ]
    assert "route_back" == looked(back("all_well"), Signals()).watch.rung


def test_each_row_that_wants_more_than_to_watch_is_remembered() -> None:
    judged = looked(standard(), ladder.WORSE, Signals(), *[ladder.BROKEN] * 4)

    assert {"degradation", "data_loss", "still_broken", "broken_without_it", "broken_after_repair"} == judged.watch.rows
    assert ("restore_by_person", "repair") == (judged.decision, judged.watch.rung)


# --- planted bugs -------------------------------------------------------------------------------------------------


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_check_safe", lambda *_: None)


def first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in order, as in most rule engines: an overlap is no matter."""
    real = policy._check_all

    def check(rows: tuple[Row, ...]) -> None:
        try:
            real(rows)
        except PolicyRefused as error:
            if "several" not in str(error):
                raise

    monkeypatch.setattr(policy, "_check_all", check)


def gaps_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_check_all", lambda rows: None)


def any_policy() -> None:
    plain = [
        Row(name="a", when={"stage": "reached", "floor": "above"}, decision="freeze", why="x"),
        Row(name="b", when={"stage": "reached", "floor": "below"}, decision="fix_forward", why="x"),
        Row(name="c", when={"stage": ("routed_back", "switched", "repair")}, decision="watch", why="x"),
    ]
    check_parts(tuple(plain))
    check_gap(plain, 1)
    check_overlap(plain, Row(name="d", when=asdict(Facts()), decision="freeze", why="x"))
    with pytest.raises(PolicyRefused):
        check_parts((plain[0], replace(plain[1], decision="route_back"), plain[2]))


@pytest.mark.parametrize("plant", [unchecked, first_wins, gaps_are_fine])
def test_a_check_that_lets_too_much_pass_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    any_policy()
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        any_policy()


@pytest.mark.parametrize(
    ("name", "decision"),
    [
        ("data_loss", "freeze"),
        ("failing", "freeze"),
        ("failing_perhaps", "route_back"),
        ("degradation", "route_back"),
        ("memory", "watch"),
        ("silence", "watch"),
        ("still_broken", "repair"),
        ("broken_without_it", "watch"),
    ],
)
def test_a_row_that_decides_otherwise_is_noticed(name: str, decision: Any) -> None:
    bad = replace(ladder.FINE, memory=2.5)
    stories: list[list[Signals | None]] = [
        [ladder.BROKEN] * 4,
        [ladder.USUAL, ladder.FEW, ladder.FEW],
        [ladder.FAILING] * 2,
        [ladder.WORSE],
        [bad],
        [None] * 4,
    ]
    for story in stories:
        check_reference(story, standard())
    other = back(name) if decision == "route_back" else but(name, decision=decision)
    with pytest.raises(AssertionError):  # noqa: PT012 - one of them is enough
        for story in stories:
            check_reference(story, other)
