"""The storms bite: bugs planted in real processes are found. For the long tests only: each takes some kills to meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm import test_back_and_forth, test_concurrent, test_kill_client, test_kill_rollout, test_kill_server
from tests.storm.processes import Server


@pytest.mark.parametrize(
    ("bug", "moment", "told"),
    [
        ("ack_before_commit", "answers", "acknowledged and not in the log"),
        ("commit_in_two", "statement", "half of a push is there"),
    ],
)
def test_a_bug_planted_in_a_server_is_found(bug: str, moment: str, told: str, tmp_path: Path) -> None:
    storm = test_kill_server.Storm(tmp_path, seed=2, bug=bug, moments=(moment,))

    def until_found() -> None:
        for _ in range(50):
            storm.kill()

    with pytest.raises(AssertionError, match=told):
        until_found()


@pytest.mark.parametrize(
    ("bug", "moment", "told"),
    [
        ("ack_by_id", "lines", "neither on the server nor waits"),
        ("mark_after_row", "statement", "neither on the server nor waits"),
        ("cursor_before_rows", "statement", "digest"),
        ("told_before_stored", "lines", "said to be made is not here"),
    ],
)
def test_a_bug_planted_in_a_client_is_found(bug: str, moment: str, told: str, tmp_path: Path) -> None:
    def until_found() -> None:
        with Server(tmp_path / "server.db") as server:
            storm = test_kill_client.Storm(tmp_path, server, tmp_path / "server.db", seed=3, bug=bug)
            for _ in range(30):
                storm.kill((moment,))
            storm.calm_down()

    with pytest.raises(AssertionError, match=told):
        until_found()


@pytest.mark.parametrize(
    ("bug", "told"), [("time_for_a_cursor", "a row was missed"), ("commit_in_two", "sees half of a push")]
)
def test_a_bug_planted_in_a_server_is_found_by_readers(bug: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=told):
        test_concurrent.storm(tmp_path, 5_000, bug)


def test_a_bug_planted_in_who_rolls_out_is_found(tmp_path: Path) -> None:
    storm = test_kill_rollout.Rolling(tmp_path, seed=4, bug="last_writer_wins")

    def until_found() -> None:
        for _ in range(20):
            storm.kill()

    with pytest.raises(AssertionError, match=r"two moves behind one fence|a move that was told of is not there"):
        until_found()


def test_a_bug_planted_in_what_old_clients_edit_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"\['d0'|\['d1|\['d2|\['d3|\['d4|\['d5"):
        test_back_and_forth.back_and_forth(tmp_path, 100, bug="down_edit_up")
