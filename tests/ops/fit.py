"""Databases that are fit for a rollout, for tests of what comes after."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from inbetweenies.cli_preflight import served
from inbetweenies.ops import baseline
from inbetweenies.ops.checklist import Checklist, keep_drill
from inbetweenies.ops.preflight import Preflight
from inbetweenies.stores.clock import wall_clock


def checked(db: Path, **more: Any) -> Checklist:
    """What a preflight of `db` finds, with a small load."""
    with patch.object(baseline, "REQUESTS", 4):
        return Preflight(db, **({"serve": served} | more)).run()


def fit(db: Path) -> Path:
    """`db`, with a drill that passed and a preflight that did."""
    keep_drill(db, passed=True, now=wall_clock(), seconds=30.0)
    found = checked(db)
    assert found.passed, [step for step in found.steps if not step.passed]
    return db
