"""Verdicts that were once made, with all that they were made of: they are still the same.

Each file in ``cases`` is one: what `inbetweenies incident case` prints, put there.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.rollout import triggers
from inbetweenies.rollout.cases import Look, Verdict, case_body, case_in, decided, replayed
from inbetweenies.rollout.sequential import Arm
from inbetweenies.rollout.states import Rollout
from inbetweenies.rollout.triggers import Signals, Thresholds, Watch

CASES = sorted((Path(__file__).parent / "cases").glob("*.json"))
ROLLOUT = Rollout(subject="inbetweenies-v2", state="ramp", fence=4, since=0)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_was_decided_once_is_decided_again(path: Path) -> None:
    case = case_in(path.read_bytes())

    assert Verdict(rung=case.rung, event=case.event) == replayed(case)


def test_there_is_one_that_was_taken_back_and_it_would_have_been_held_with_less() -> None:
    found = [case_in(path.read_bytes()) for path in CASES]

    assert "roll_back" in {case.event for case in found}


def look(failures: int) -> Look:
    signals = Signals(canary=Arm(requests=60, failures=failures), control=Arm(requests=60))
    return Look(signals=signals, fence=4, now=5)


def test_a_case_is_kept_whole_in_a_file() -> None:
    case = decided(ROLLOUT, Watch(rollout=ROLLOUT.id), Thresholds(), (look(0), look(60)))

    assert ("route_back", "roll_back") == (case.rung, case.event)
    assert case == case_in(case_body(case))


def test_a_decision_that_changes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = decided(ROLLOUT, Watch(rollout=ROLLOUT.id), Thresholds(), (look(60),))
    monkeypatch.setattr(triggers, "_won", lambda *_: False)

    assert Verdict(rung="watch", event=None) == replayed(case)


def test_nothing_due_is_a_verdict_too() -> None:
    case = decided(ROLLOUT, Watch(rollout=ROLLOUT.id), Thresholds(), (look(0), Look(signals=None, fence=4, now=9)))

    assert ("watch", None) == (case.rung, case.event)
    with pytest.raises(LocalProtocolError):
        decided(ROLLOUT, Watch(rollout="other/1"), Thresholds(), ())


def test_what_is_no_case_is_refused() -> None:
    with pytest.raises(StoreCorrupt):
        case_in(b"{}")
    with pytest.raises(LocalProtocolError):
        case_in(b"")
