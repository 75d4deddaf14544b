"""A server that is killed again and again under a storm of pushes (laws 1, 3 and 5).

Four clients of three kinds push at once over real HTTP, to one server or to two on one file. Each is killed at a moment
that a seed chooses: when so many answers have come, when so many requests have been sent, or in front of a statement of
SQLite's. Started anew, they must hold every row that any client saw acknowledged, of each push all rows or none, in one
piece, and a log that is one. What the operating system had taken over survives a kill, so a store that does not sync
its file (``synchronous = OFF``) cannot be found out like this; that takes a power cut.
"""

from __future__ import annotations

import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.server.calls import GUARD_SECONDS
from tests.storm.clients import Deployed, Letter, Ours, Post, Records, Wanted, Writer
from tests.storm.log import Line, held, lines
from tests.storm.processes import Gone, Server

KILLS: Final = int(os.environ.get("DEEP_EXAMPLES", "4"))
#: When the server is killed: after so many answers, after so many requests, or in front of a statement.
MOMENTS: Final = ("answers", "requests", "statement")
MERGED: Final = re.compile(r"\.m[0-9a-f]{12}$")


class Trigger:
    """Pulls once, when something was counted so many times."""

    def __init__(self, count: int, pull: Callable[[], object]) -> None:
        self._left = count
        self._pull = pull
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._pull()


def nothing() -> None:
    """Does not count."""


class Storm:
    """Clients that live longer than their server, and what is known of its log."""

    def __init__(self, folder: Path, seed: int, bug: str = "", moments: tuple[str, ...] = MOMENTS) -> None:
        self.path = folder / "server.db"
        self.moments = moments
        self.bug = bug
        self.dice = random.Random(seed)
        self.ours = Ours("ours", seed, folder / "ours.db")
        self.writers: tuple[Writer, ...] = (
            Deployed("deployed-1", seed + 1),
            Deployed("deployed-2", seed + 2),
            Records("records", seed + 3),
            self.ours,
        )
        self.log: dict[tuple[str, str], list[Line]] = {}
        self.seq = 0
        self.kinds: Counter[str] = Counter()
        self.acked = self.unheard = self.undone = 0

    def kill(self) -> None:
        """One life of the server, or of two that serve one file, and what was left."""
        posts, lives = [], []
        with ExitStack() as stack:
            for _ in range(self.dice.choice((1, 2))):
                kind = self.dice.choice(self.moments)
                statement = self.dice.randint(1, 200) if kind == "statement" else 0
                try:
                    server = stack.enter_context(Server(self.path, statement, self.bug))
                except Gone:
                    self.kinds["start"] += 1
                    continue
                self.kinds[kind] += 1
                trigger = Trigger(self.dice.randint(1, 15), server.kill)
                posts.append(
                    Post(
                        sent=trigger if kind == "requests" else nothing,
                        answered=trigger if kind == "answers" else nothing,
                    )
                )
                lives.append(server)
            if lives:
                self.live(lives, posts)
            for server in lives:
                server.ended()
                assert -9 == server.process.returncode
        self.check([letter for post in posts for letter in post.letters])

    def live(self, servers: list[Server], posts: list[Post]) -> None:
        """All clients at once, until each has seen that its server is gone."""
        failed: list[Exception] = []

        def life(number: int, writer: Writer) -> None:
            mine = number % len(servers)
            try:
                writer.live(servers[mine].url, posts[mine])
            except Gone:
                pass
            except Exception as error:  # noqa: BLE001 - it is raised where it is seen, in the main thread
                failed.append(error)
                for server in servers:
                    server.kill()

        threads = [threading.Thread(target=life, args=numbered) for numbered in enumerate(self.writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(GUARD_SECONDS)
            assert not thread.is_alive()
        if failed:
            raise failed[0]

    def check(self, letters: list[Letter]) -> None:
        """What these letters brought about, or did not."""
        before, after = self.seq, {line.seq: line for line in lines(self.path, self.seq)}
        for line in after.values():
            self.log.setdefault((line.kind, line.id), []).append(line)
        self.seq += len(after)
        for letter in letters:
            self.check_acks(letter)
            if not self.known(letter):
                continue
            rows = [self.find(row) for row in letter.wanted]
            fresh = [row.seq for row in rows if row is not None and row.seq > before]
            lost = [row for row in rows if row is None]
            assert not fresh or not lost, f"half of a push is there: {letter}"
            if letter.acked is None:
                self.unheard += bool(fresh)
                self.undone += bool(lost)
            if fresh:
                between = [after[seq] for seq in range(min(fresh), max(fresh) + 1)]
                strange = [line for line in between if not belongs(line, letter)]
                assert [] == strange, f"not in one piece: {letter}"

    def known(self, letter: Letter) -> bool:
        """Whether it is known which rows a commit of this letter makes."""
        return True

    def check_acks(self, letter: Letter) -> None:
        """Law 1, as whoever reads through the store sees it."""
        if not letter.acked:
            return
        self.acked += len(letter.acked)
        found = {row: self.find(row) for row in letter.acked}
        missing = [row for row, line in found.items() if line is None]
        assert [] == missing, f"acknowledged and not in the log: {letter}"
        keys = [line.key for line in found.values() if line is not None]
        assert set(keys) == held(self.path, keys).versions.keys()

    def find(self, row: Wanted) -> Line | None:
        """The line of the log that is this row."""
        return next((line for line in self.log.get((row.kind, row.id), ()) if row.is_in(line)), None)

    def calm_down(self) -> None:
        """A server that stays: everybody gets rid of what waits, and all that was confirmed is there."""
        with Server(self.path) as server:
            post = Post(sent=nothing, answered=nothing)
            for writer in self.writers * 2:
                writer.live(server.url, post, 2)
        self.check(post.letters)
        assert [0] * 4 == [writer.waiting for writer in self.writers]
        assert self.ours.report is not None
        assert (True, ()) == (self.ours.report.equal, self.ours.report.refused)
        versions = {line.key for found in self.log.values() for line in found}
        assert [] == [key for key in self.ours.confirmed if key not in versions]


def belongs(line: Line, letter: Letter) -> bool:
    """Whether a line was made by this letter, or by the server on its account."""
    if any(row.is_in(line) for row in letter.wanted) or MERGED.search(line.version):
        return True
    # A record has links, of which the server makes edges.
    return line.kind == "edge" and any(f'"from_entity_id":"{row.id}"'.encode() in line.body for row in letter.wanted)


def test_whatever_was_acked_before_a_kill_is_there_after_it_and_nothing_is_there_by_half(tmp_path: Path) -> None:
    storm = Storm(tmp_path, seed=20)
    while storm.kinds.total() < KILLS:
        storm.kill()
    storm.calm_down()

    print(
        f"figures: {storm.kinds.total()} kills ({dict(storm.kinds)}), {storm.seq:,} rows, {storm.acked:,} acked, "
        f"0 missing; pushes without an answer: {storm.unheard} committed, {storm.undone} not"
    )
    assert storm.acked > KILLS
