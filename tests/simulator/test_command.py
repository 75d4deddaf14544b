"""``python -m inbetweenies.testing simulate``: figures, stories, exit codes, and worlds of one's own."""

from __future__ import annotations

import json

import pytest

from inbetweenies.testing.__main__ import main
from inbetweenies.testing.simulator import SimulatedWorld
from inbetweenies.testing.simulator.report import upper_bound
from tests.fleet import bugs_of_the_server

RUN = ["simulate", "--runs", "120", "--size", "small"]


def test_figures_say_what_was_done_and_what_was_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(RUN)

    out = capsys.readouterr().out
    assert "120 histories" in out
    assert "\n0 of " in out
    assert " acknowledged writes lost that a holder could bring back; 0 of 120 histories broke an invariant" in out
    assert "(95 % upper bound 2.5e-02 per history)" in out
    assert "drop " in out


def test_figures_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main([*RUN, "--json"])

    told = json.loads(capsys.readouterr().out)
    assert 120 == told["runs"]
    assert [] == told["failures"]
    assert told["acked"] > 120
    assert told["events"] > told["messages"] > 0
    assert told["faults"]["drop"] > 0
    assert 0.024 < told["upper_bound_95"] < 0.025


def test_a_failure_is_told_with_its_story_and_how_to_see_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bugs_of_the_server.graphs_mixed(monkeypatch)

    assert 1 == main([*RUN, "--seed", "0", "--json"])

    failures = json.loads(capsys.readouterr().out)["failures"]
    assert "1.4, 7.1 (nothing made up)" in [failure["law"] for failure in failures]
    failure = failures[0]
    assert f"--seed {failure['seed']} --runs 1 --size small" in failure["again"]
    assert any("broken: " in line for line in failure["story"])

    assert 1 == main(failure["again"].split()[3:])

    out = capsys.readouterr().out
    assert "the shortest story found" in out
    assert f"broken: {failure['law']}" in out


def test_several_processes_do_the_same_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    main([*RUN, "--json"])
    one = json.loads(capsys.readouterr().out)

    main([*RUN, "--json", "--jobs", "2"])

    two = json.loads(capsys.readouterr().out)
    counts = ("runs", "events", "messages", "acked", "rewound", "faults")
    assert [one[name] for name in counts] == [two[name] for name in counts]


class OnlyOurs(SimulatedWorld):
    kinds = ("modern",)
    faults = ("drop", "duplicate")


def test_a_world_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main([*RUN, "--json", "--world", f"{__name__}:OnlyOurs"])

    assert {"drop", "duplicate"} == set(json.loads(capsys.readouterr().out)["faults"])


@pytest.mark.parametrize("name", ["nowhere:World", f"{__name__}:nothing", "builtins:dict"])
def test_what_is_no_world_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert 2 == main([*RUN, "--world", name])

    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("runs", [0, -1])
def test_no_histories_are_refused_since_they_would_show_nothing(capsys: pytest.CaptureFixture[str], runs: int) -> None:
    assert 2 == main(["simulate", "--runs", str(runs)])

    told = capsys.readouterr()
    assert ("", f"expected at least 1 run; got {runs}\n") == (told.out, told.err)


def test_the_rules_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["simulate", "--rules"])

    out = capsys.readouterr().out
    assert "no acked write lost (PROTOCOL 1.1, 1.9)" in out
    assert "restore: " in out


def test_nothing_lost_in_a_million_bounds_the_rate() -> None:
    assert 2.9e-6 < upper_bound(1_000_000) < 3.0e-6
    assert 1.0 == upper_bound(0)
