"""The benchmarks run and tell what they promise. How fast anything is, no test asserts: that measures the machine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as program
from tests.benchmarks.measure import Row, bounded, held_against

FIELDS = ["name", "median", "low", "high", "unit", "floor", "ratio", "target"]


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the CPU of other processes is read as Linux tells it")
def test_a_figure_is_told_with_its_floor_and_target() -> None:
    done = benchmarks("--quick", "--json", "codec_decode", "journal_write", "push_10k")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert [figure["name"] for figure in figures] == ["codec_decode", "journal_write", "push_10k"]
    for figure in figures:
        assert list(figure) == FIELDS
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
        assert figure["ratio"] == pytest.approx(figure["median"] / figure["floor"])


def test_what_is_no_scenario_is_refused() -> None:
    done = benchmarks("push_11k")
    assert (done.returncode, done.stdout) == (2, "")
    assert "push_11k" in done.stderr


def fast(name: str) -> Row:
    return held_against(name, [2.0, 3.0, 4.0], [1.0], unit="ms", most=3, note="")


def slow(name: str) -> Row:
    return held_against(name, [2.0, 3.1, 4.0], [1.0], unit="ms", most=3, note="")


def large(name: str) -> Row:
    return bounded(name, [65.0], unit="MB", most=64, note="")


def run(monkeypatch: pytest.MonkeyPatch, *scenarios: Callable[[], Row]) -> int:
    """What the program exits with when these are all the scenarios that there are."""
    named = {f"row_{number}": lambda _, scenario=scenario: [scenario()] for number, scenario in enumerate(scenarios)}
    for name, scenario in named.items():
        scenario.__doc__ = name
    monkeypatch.setattr(program, "SCENARIOS", named)
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    return program.main()


def test_a_target_that_is_missed_shows_and_is_told_by_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 == run(monkeypatch, lambda: fast("met"))
    assert "missed" not in capsys.readouterr().err

    assert 1 == run(monkeypatch, lambda: fast("met"), lambda: slow("ratio"), lambda: large("bound"))
    told = capsys.readouterr()
    assert "missed: ratio: expected <= 3x; got 3.10x" in told.err
    assert "missed: bound: expected <= 64 MB; got 65.0 MB" in told.err
    assert {"met": "yes", "ratio": "NO", "bound": "NO"} == {
        cells[0]: cells[-1] for line in told.out.splitlines() if (cells := line.split()) and "<=" in cells
    }


def test_when_the_time_is_up_what_was_measured_is_printed_and_the_run_has_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hangs() -> Row:
        signal.raise_signal(signal.SIGALRM)
        raise AssertionError("it goes on")

    assert program.UNFINISHED == run(monkeypatch, lambda: fast("first"), hangs, lambda: fast("last"))

    told = capsys.readouterr()
    assert "first " in told.out
    assert "last " not in told.out
    assert "unfinished after 900 s" in told.err
