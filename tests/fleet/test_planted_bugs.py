"""The fleet bites: each bug that sync systems are known for, planted alone, is caught within seconds.

A planted bug replaces one function for the length of one test; the product has no seam for it (`bugs_of_the_server`
and its like). Runs are derandomized, so that a bug that is caught once is caught always; and each must be caught by a
law that it breaks.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from inbetweenies.testing.fleet import BrokenLaw, MixedFleet
from tests.fleet.mutants import MUTANTS

EXAMPLES = 400
STEPS = 40


def run_fleet(*kinds: str, examples: int = EXAMPLES) -> None:
    """One derandomized search, without making the failure short: what counts here is that there is one."""

    class Fleet(MixedFleet):
        replays = False

    Fleet.kinds = kinds or MixedFleet.kinds
    run_state_machine_as_test(
        Fleet,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


#: The bug, the clients that are enough to see it, and the laws of which one must be found broken.
BUGS: list[tuple[str, tuple[str, ...], set[str]]] = [
    ("down_edit_up", ("modern", "v1"), {"6"}),
    ("ack_by_id", ("modern",), {"1"}),
    ("time_for_a_cursor", (), {"8"}),
    ("two_way_merge", ("modern",), {"4"}),
    ("cursor_before_rows", ("modern",), {"8"}),
    ("loser_dropped", (), {"3", "4"}),
    ("no_pull_guard", ("modern",), {"2"}),
    ("digest_without_tombstones", ("modern",), {"8"}),
    ("edges_before_entities", ("modern",), {"3"}),
    ("repeat_as_conflict", (), {"4", "5"}),
    ("stale_base", ("modern", "v1"), {"6"}),
    ("since_includes", ("modern", "deployed"), {"8"}),
    ("page_end_skipped", ("modern",), {"8"}),
    ("tombstone_forgotten", ("modern", "deployed"), {"4"}),
    ("conflict_untold", (), {"4"}),
    ("partial_commit", (), {"1", "3"}),
    ("ack_confirms_the_newest", ("v1",), {"6", "8"}),
    ("unknown_writes_taken", (), {"11"}),
]


@pytest.mark.parametrize(("name", "kinds", "laws"), BUGS, ids=[bug[0] for bug in BUGS])
def test_a_planted_bug_is_caught(
    name: str,
    kinds: tuple[str, ...],
    laws: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    MUTANTS[name](monkeypatch)

    with pytest.raises(BrokenLaw) as caught:
        run_fleet(*kinds)

    told = str(caught.value)
    assert told.removeprefix("law ").split(" ")[0] in laws
    assert "what happened:" in told


def test_without_a_planted_bug_the_same_search_finds_nothing() -> None:
    run_fleet(examples=80)
