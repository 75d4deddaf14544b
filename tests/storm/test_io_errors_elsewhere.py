"""Files that fail at every step while they are opened, and a token store that fails at every step of every call."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from inbetweenies.asgi import app
from inbetweenies.auth import Principal, SqliteTokens
from inbetweenies.errors import StoreError
from inbetweenies.router import ProtocolFallback
from tests.server.calls import ROOT, SYNC, Response, environment, request, sync
from tests.storm.faults import Faults, planned
from tests.storm.log import dump
from tests.storm.opening import OPENED
from tests.support import NOW

FAULTS_PER_STEP: Final = int(os.environ.get("DEEP_EXAMPLES", "1"))
YEAR: Final = 365 * 24 * 3600 * 1_000_000


# --- opening ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
def test_a_file_that_fails_while_it_is_opened_is_told_and_opens_the_next_time(
    opened: Callable[[Path], None], known: bool, tmp_path: Path, faults: Faults
) -> None:
    def path_of(name: str) -> Path:
        path = tmp_path / f"{name}.db"
        if known:
            opened(path)
        return path

    path = path_of("expected")
    faults.watch()
    opened(path)
    steps = list(faults.rest())
    expected = dump(path)

    failed: set[str] = set()
    for number, fault in enumerate(planned(steps, FAULTS_PER_STEP)):
        path = path_of(str(number))
        fired, made = faults.fired, len(faults.connections)
        faults.watch(fault)
        raised = False
        try:
            opened(path)
        except StoreError:
            raised = True
        faults.rest()
        assert fired + 1 == faults.fired
        # Of a file that is busy the server waits for a while until it can open it.
        assert raised or (fault.code == "SQLITE_BUSY" and opened is not OPENED["client"]), fault
        failed.add(steps[fault.step])
        for connection in faults.connections[made:]:
            with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                connection.execute("SELECT 1")
        opened(path)
        assert expected == dump(path), fault

    print(f"figures: {opened.__name__}: {len(steps)} steps, {faults.fired} faults")
    assert failed == set(steps)


@pytest.mark.parametrize("what", OPENED)
def test_a_file_whose_maker_was_killed_at_any_moment_opens_the_next_time(what: str, tmp_path: Path) -> None:
    OPENED[what](tmp_path / "expected.db")
    expected = dump(tmp_path / "expected.db")
    command = [sys.executable, "-m", "tests.storm.opening", what, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed = int(done.stdout)
    for statement in range(1, killed + 1):
        path = tmp_path / f"{statement}.db"
        OPENED[what](path)
        assert expected == dump(path), f"killed in front of statement {statement}"

    print(f"figures: {what}: killed in front of each of {killed} statements while it was made")
    assert killed > 10


# --- tokens -------------------------------------------------------------------------------------------------------


class Desk:
    """A token store with two tokens in it, and a clock and randomness that repeat themselves."""

    def __init__(self, path: Path) -> None:
        self.now = NOW
        numbers = iter(range(1, 100))
        self.tokens = SqliteTokens(
            path,
            busy_timeout_ms=1,
            clock=lambda: self.now,
            random=lambda size: next(numbers).to_bytes(4, "big") + bytes(size - 4),
        )
        self.old, _ = self.tokens.create("home", "old", None, NOW + 1)
        self.secret, self.info = self.tokens.create("home", "ann")
        self.now += YEAR

    def create(self) -> object:
        return self.tokens.create("home", "bob")

    def revoke(self) -> object:
        return self.tokens.revoke(self.info.key_id)

    def find(self) -> object:
        return self.tokens.find(self.secret, self.now)

    def list(self) -> object:
        return self.tokens.list()


@pytest.mark.parametrize("name", ["create", "revoke", "find", "list"])
def test_a_token_is_made_or_revoked_whole_or_not_at_all_and_nobody_gets_in_by_a_failure(
    name: str, tmp_path: Path, faults: Faults
) -> None:
    desk = Desk(tmp_path / "expected.db")
    faults.watch()
    getattr(desk, name)()
    steps = list(faults.rest())
    desk.tokens.close()
    after = dump(tmp_path / "expected.db")

    failed: set[str] = set()
    for number, fault in enumerate(planned(steps, FAULTS_PER_STEP)):
        path = tmp_path / f"{number}.db"
        desk = Desk(path)
        before = dump(path)
        fired = faults.fired
        faults.watch(fault)
        with pytest.raises(StoreError):
            getattr(desk, name)()
        faults.rest()
        assert fired + 1 == faults.fired
        failed.add(steps[fault.step])
        left = dump(path)
        assert left == before or (left == after and steps[fault.step] == "COMMIT"), fault

        done = getattr(desk, name)()
        if name == "create":
            assert isinstance(desk.tokens.find(done[0], desk.now), Principal)
        if name == "revoke":
            # Of a commit that was told as failed nobody knows; then it was revoked before.
            assert done is (left == before)
        assert (desk.tokens.find(desk.secret, desk.now) is None) is (name == "revoke")
        desk.tokens.close()

    print(f"figures: tokens {name}: {len(steps)} steps, {faults.fired} faults")
    assert failed == set(steps)


LOGIN: Final = "/api/v1/auth/admin/login"


@pytest.mark.parametrize(
    ("path", "body"), [(SYNC, sync()), (LOGIN, {"password": "open sesame"})], ids=["sync", "login"]
)
def test_a_token_store_that_fails_serves_nobody_and_says_so(
    path: str, body: dict[str, Any], tmp_path: Path, faults: Faults
) -> None:
    desk = Desk(tmp_path / "tokens.db")
    server = app(router=ProtocolFallback(clock=lambda: desk.now), tokens=desk.tokens, admin_password="open sesame")

    def ask() -> Response:
        answer = asyncio.run(request(server, "POST", path, body, token=desk.secret))
        assert answer is not None
        return answer

    faults.watch()
    assert 200 == ask().status
    steps = list(faults.rest())
    for fault in planned(steps, FAULTS_PER_STEP):
        faults.watch(fault)
        answer = ask()
        faults.rest()
        assert (503, "1") == (answer.status, answer.headers["retry-after"]), fault
        assert not answer.json.keys() & {"access_token", "applied", "changes"}
        assert 200 == ask().status
    desk.tokens.close()

    assert faults.fired >= len(steps) > 1
