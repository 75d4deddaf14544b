"""A drill for each planted bug, which must fail on the right line and no other, and one as it is held in production.

For the long tests only: `python -m tests.deep drill`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from blowing_off import drill
from tests.drill.test_drill import (
    ADVANCES,
    BACK,
    BACKUP,
    BY_COMMAND,
    BY_ITSELF,
    FAILED,
    FORGOTTEN,
    IN_EFFECT,
    INFORMED,
    LOST,
    NAGGED,
    REACHED,
    REPLICAS,
    RESTORED,
    ROOT,
    TOLD,
    Patch,
    failed,
    ignore_fences,
    keep_what_is_there,
    lie,
    settings,
    take_nothing_back,
)


@pytest.mark.parametrize(
    ("plants", "held", "lines"),
    [
        (("drop",), {}, {LOST}),
        (("shred",), {}, {FORGOTTEN}),
        (("slow",), {"sessions": 300, "patience_s": 60.0}, {REACHED}),
        (("burst",), {}, {FAILED}),
        (("stuck",), {}, {BY_ITSELF}),
        (("deaf", "none"), {}, {IN_EFFECT, INFORMED}),
        (("mute",), {}, {INFORMED}),
        (("forgetful",), {}, {BACK, REPLICAS}),
        (("wrong",), {}, {REPLICAS}),
        (("silent",), {}, {TOLD}),
        (("chatty",), {}, {NAGGED}),
    ],
)
def test_a_bug_in_a_server_is_found_on_the_right_line(
    plants: tuple[str, ...], held: dict[str, Any], lines: set[str]
) -> None:
    _, _, found = drill.hold(None, settings(*plants, **({"patience_s": 10.0} | held)))

    assert lines == failed(found)


@pytest.mark.parametrize(
    ("plant", "lines", "also"),
    [
        (lie, {BACKUP, RESTORED}, set()),
        (keep_what_is_there, {RESTORED}, set()),
        # It comes to everybody so fast that there may be nobody left to compare with when it fails.
        (ignore_fences, {ADVANCES}, {BY_ITSELF}),
        (take_nothing_back, {BY_COMMAND, IN_EFFECT, INFORMED}, set()),
    ],
)
def test_a_bug_in_whoever_runs_them_is_found_on_the_right_line(
    plant: Callable[[Patch], None], lines: set[str], also: set[str], monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    _, _, found = drill.hold(None, settings(patience_s=10.0))

    assert lines == failed(found) - also


def test_a_drill_as_in_production_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "inbetweenies.cli", "drill", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    told = json.loads(done.stdout)

    for one in told["criteria"]:
        print(f"figures: {one['result']}  {one['name']}: {one['value']} (limit {one['limit']})")
    assert (0, "") == (done.returncode, done.stderr)
