"""What the tests of failing storage share."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.storm.log", "tests.storm.replica")

from tests.storm.faults import Faults  # noqa: E402 - what fails in these modules is to be shown


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Every connection that is made from here on can be made to fail."""
    faults = Faults()
    faults.install(monkeypatch)
    return faults
