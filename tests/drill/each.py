"""A drill for each planted bug, which must fail on the right line and no other, and one as it is held in production.

For the long tests only: `python -m tests.deep drill`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from blowing_off import drill
from inbetweenies.ops import rollouts
from inbetweenies.ops.backup import backup
from inbetweenies.ops.manifest import encoded, manifest_of, read
from inbetweenies.rollout import states
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
    keep_what_is_there,
    settings,
)

# --- bugs in whoever runs the servers -----------------------------------------------------------------------------


def lie(patch: Patch) -> None:
    """The manifest of a backup says something else than the backup."""

    def lying(db: Path, target: Path) -> None:
        backup(db, target)
        manifest = read(manifest_of(target))
        marks = tuple(replace(mark, digest="0" * 64) for mark in manifest.graphs)
        manifest_of(target).write_bytes(encoded(replace(manifest, graphs=marks)))

    patch.setattr("blowing_off.drill.phases.backup", lying)


def ignore_fences(patch: Patch) -> None:
    """Whoever moves a rollout does, whatever it has become meanwhile."""
    patch.setattr(states, "_check_fence", lambda *_: None)


def take_nothing_back(patch: Patch) -> None:
    """A rollback by command does nothing."""
    undone = rollouts.RolloutControl.rollback

    def idle(self: rollouts.RolloutControl, subject: str, **_: Any) -> rollouts.Done:
        rollout = self.rollouts().of(subject)
        # What was not taken back by itself is, so that there is a second rollout.
        return undone(self, subject) if rollout.serial == 1 else rollouts.Done(before=rollout, after=rollout)

    patch.setattr(rollouts.RolloutControl, "rollback", idle)


# --- drills -------------------------------------------------------------------------------------------------------


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
