"""What every test shares: how hard Hypothesis tries, and where the recorded data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Deadlines measure the machine, not the code: the cores that run the suite are shared.
settings.register_profile("dev", deadline=None)
# The same examples on every run, so that a red build is red for the one who looks into it too.
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
# Hours, not minutes: new examples each time, and slow data generation is nobody's mistake.
settings.register_profile(
    "deep",
    deadline=None,
    max_examples=int(os.environ.get("DEEP_EXAMPLES", "10000")),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded and hostile inputs, which are not part of the project: without them the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED.parent.name}/{SHARED.name} beside the project")
    return SHARED
