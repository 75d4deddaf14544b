"""The benchmarks run and tell what they promise. How fast anything is, no test asserts: that measures the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    done = benchmarks("--quick", "--json", "codec_decode", "push_10k")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert [figure["name"] for figure in figures] == ["codec_decode", "push_10k"]
    for figure in figures:
        assert list(figure) == FIELDS
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
        assert figure["ratio"] == pytest.approx(figure["median"] / figure["floor"])


def test_what_is_no_scenario_is_refused() -> None:
    done = benchmarks("push_11k")
    assert (done.returncode, done.stdout) == (2, "")
    assert "push_11k" in done.stderr
