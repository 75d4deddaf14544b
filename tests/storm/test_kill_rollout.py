"""Servers and whoever rolls out are killed again and again in the middle of rollouts (PROTOCOL 12.1, 12.2; laws 1, 3).

Four clients of three kinds push to one server while two processes move the rollout of their wire version; a seed
chooses who is killed and when. Started anew, the rollout is in exactly one state that its moves lead to, whatever had
been told of is there, it goes on from where it is, and no acknowledged row is missing.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from inbetweenies.ops.rollouts import RolloutControl
from inbetweenies.rollout.states import DOCUMENT, TRANSITIONS, Rollout, rollouts_in
from inbetweenies.stores.sqlite import SqliteStore
from tests.server.calls import GUARD_SECONDS
from tests.storm.clients import Letter, Post
from tests.storm.controller import BAR, V2
from tests.storm.processes import Gone, Process, Server
from tests.storm.test_kill_server import Storm, Trigger, nothing
from tests.support import run

KILLS: Final = int(os.environ.get("DEEP_EXAMPLES", "4"))
CONTROLLERS: Final = 2


class Rolling(Storm):
    """A storm during which a rollout is moved."""

    def __init__(self, folder: Path, seed: int, bug: str = "") -> None:
        super().__init__(folder, seed)
        self.controller_bug = bug
        self.told: dict[tuple[str, int], str] = {}  # which state a controller was told of, by rollout and fence
        self.twice: list[str] = []  # moves behind a fence that another one had passed
        self.moves = 0
        self.killed: Counter[str] = Counter()

    def kill(self) -> None:
        """One life of the server and of both controllers; one of them ends it, and the others are killed with it."""
        victim = self.dice.choice(["server", "controller", "controller at a statement"])
        self.killed[victim] += 1
        self.kinds[victim] += 1
        with ExitStack() as stack:
            try:
                server = stack.enter_context(Server(self.path))
            except Gone:
                raise AssertionError("nobody had killed it") from None
            statement = self.dice.randint(1, 60) if victim.endswith("statement") else 0
            controllers = [
                stack.enter_context(
                    Process(
                        "tests.storm.controller",
                        self.path,
                        self.dice.getrandbits(32),
                        statement if number == 0 else 0,
                        self.controller_bug,
                    )
                )
                for number in range(CONTROLLERS)
            ]
            # The clients end with their server: whoever is killed first takes the others along.
            trigger = Trigger(self.dice.randint(1, 15), server.kill)
            moved = Trigger(self.dice.randint(1, 12), server.kill if victim != "server" else nothing)
            listeners = [threading.Thread(target=self.listen, args=(one, moved, server)) for one in controllers]
            for one in listeners:
                one.start()
            post = Post(sent=nothing, answered=trigger if victim == "server" else nothing)
            self.live([server], [post])
            for controller in controllers:
                controller.kill()
            for one in listeners:
                one.join(GUARD_SECONDS)
                assert not one.is_alive()
            for process in (server, *controllers):
                process.ended()
                assert -9 == process.process.returncode
        self.check(post.letters)
        self.check_rollout()

    def listen(self, controller: Process, moved: Trigger, server: Server) -> None:
        """What a controller says that is durable."""
        while line := controller.line():
            _, rollout, state, fence = line.split()
            if (rollout, int(fence)) in self.told:
                self.twice.append(line)
            self.told[rollout, int(fence)] = state
            self.moves += 1
            moved()
        server.kill()  # a controller that ended itself ends this life

    def known(self, letter: Letter) -> bool:
        """A client that has rows, and is served records for now, says again in each sync what is only a part of a row,
        under the same time: of what is there already, nobody knows which commit made it."""
        return letter.sender != self.ours.name or all(row.beside for row in letter.wanted)

    def check_rollout(self) -> None:
        """It is in one state, which its moves lead to, and nothing that was told of is missing."""
        assert [] == self.twice, f"two moves behind one fence: {self.twice}"
        rollout = self.rollout()
        if rollout is None:
            assert {} == self.told
            return
        for event, before, after in steps_of(rollout):
            assert event in ("start", "list") or after in TRANSITIONS[before, event]  # type: ignore[index]
        logged = {rollout.fence - back: move.state for back, move in enumerate(reversed(rollout.log))}
        for (id_, fence), state in self.told.items():
            # Of an earlier rollout nothing is kept, and of this one the newest moves.
            known = id_ == rollout.id and fence >= min(logged)
            assert not known or state == logged.get(fence), (
                f"a move that was told of is not there: {id_} {fence} {state}"
            )

    def rollout(self) -> Rollout | None:
        """What the store says; None, if none was started yet."""
        store = SqliteStore(self.path, journal=False, heads=False)
        try:
            return rollouts_in(run(store.document(DOCUMENT))).rollouts.get(V2)
        finally:
            run(store.close())

    def finish(self) -> None:
        """Whoever comes next goes on from where it is: back, and then forth to everybody."""
        store = SqliteStore(self.path, journal=False, heads=False)
        control = RolloutControl(store, bar=BAR)
        assert control.rollback(V2).after.over
        control.start(V2)
        while control.rollouts().of(V2).state != "burn_in":
            control.advance(V2)
        run(store.close())


def steps_of(rollout: Rollout) -> list[tuple[str, str, str]]:
    """Each move that is remembered: what happened, where it was, where it led."""
    moves = zip(rollout.log, rollout.log[1:], strict=False)
    return [(after.event, before.state, after.state) for before, after in moves]


def test_a_rollout_is_in_one_state_and_no_acked_write_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    storm = Rolling(tmp_path, seed=30)
    while storm.kinds.total() < KILLS:
        storm.kill()
    storm.finish()
    storm.calm_down()

    rollout = storm.rollout()
    assert rollout is not None
    print(
        f"figures: {storm.kinds.total()} kills ({dict(storm.kinds)}), {storm.moves:,} moves of "
        f"{rollout.serial} rollouts, {storm.seq:,} rows, {storm.acked:,} acked, 0 missing"
    )
    assert storm.acked > KILLS
    assert storm.moves > KILLS
