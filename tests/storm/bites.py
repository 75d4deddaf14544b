"""The storms bite: bugs planted in a real server are found. For the long tests only; each takes some kills to be met."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm.test_kill_server import Storm


@pytest.mark.parametrize(
    ("bug", "moment", "told"),
    [
        ("ack_before_commit", "answers", "acknowledged and not in the log"),
        ("commit_in_two", "statement", "half of a push is there"),
    ],
)
def test_a_planted_bug_is_found(bug: str, moment: str, told: str, tmp_path: Path) -> None:
    storm = Storm(tmp_path, seed=2, bug=bug, moments=(moment,))

    def until_found() -> None:
        for _ in range(50):
            storm.kill()

    with pytest.raises(AssertionError, match=told):
        until_found()
