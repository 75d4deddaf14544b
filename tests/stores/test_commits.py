"""Writers that share a commit (PROTOCOL 1, laws 1 and 3): who is told what when, and what a failure of one does.

Threads are real. Whose turn it is is always known, because each waits at the gate before the next one starts.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inbetweenies import ProtocolFallback
from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreError, StoreFull, StoreUndone
from inbetweenies.model import Ask, Change, Context, Held, Reads
from inbetweenies.stores import WriterGate, commits
from inbetweenies.stores.commits import Commits, Shared
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.store_tests import Undo, add, commit, entity, read, run
from inbetweenies.wire import v2
from tests import support
from tests.stores.test_sqlite import python, whole

LONG_MS = 60_000


class Site:
    """A store that shares commits for as long as anybody waits, and the statements that it runs."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.statements: list[str] = []
        self.store = SqliteStore(
            path,
            **{"busy_timeout_ms": LONG_MS, "share_ms": LONG_MS} | settings,
            on_connect=lambda connection: connection.set_trace_callback(self.statements.append),
        )
        run(read(self.store, "g", Reads()))
        self.statements.clear()
        self.threads: list[threading.Thread] = []

    @property
    def commits(self) -> int:
        """How many transactions for writing have been committed."""
        return self.statements.count("COMMIT") - self.statements.count("BEGIN")

    def start(self, work: Callable[[], Any]) -> list[Any]:
        """Run `work` in a thread, up to where it waits for its turn. What it returns or raises will be in the list."""
        outcome: list[Any] = []
        turns = self.store._file.commits._gate._turns
        waiting = len(turns)

        def told() -> None:
            try:
                outcome.append(work())
            except (Undo, StoreError, LocalProtocolError) as error:
                outcome.append(error)

        thread = threading.Thread(target=told, daemon=True)
        thread.start()
        self.threads.append(thread)
        while len(turns) == waiting:
            os.sched_yield()
        return outcome

    def finish(self) -> None:
        for thread in self.threads:
            thread.join(LONG_MS / 1000)
            assert not thread.is_alive()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "store.db")
    yield site
    run(site.store.close())


def put(site: Site, *ids: str, graph: str = "g") -> Callable[[], Any]:
    return lambda: run(commit(site.store, graph, *(entity(id_) for id_ in ids)))


def push(site: Site, id_: str, size: int = 1) -> Callable[[], Any]:
    """A push as a peer sends it, through router and engine; the answer."""
    change = Change(entity=support.entity(id_, support.at(0), {"n": "n" * size}))
    body = v2.WIRE.ask(Ask(device=id_, user="u", changes=(change,)))
    fallback = ProtocolFallback(site.store)

    def handled() -> Any:
        reply = run(fallback.handle(body, context=Context(graph="g", now=support.NOW)))
        return reply.status, msgspec.json.decode(reply.body).get("applied")

    return handled


def turn(site: Site) -> Any:
    """A transaction that keeps everybody else waiting; leave it with an error, so that it takes no part itself."""
    block = site.store.transaction("g", write=True)
    run(block.__aenter__())
    return block


def leave(block: Any) -> None:
    run(block.__aexit__(Undo, Undo(), None))


def ids(held: Held) -> list[str]:
    return [id_ for id_, _ in held.listing]


# --- what is shared -----------------------------------------------------------------------------------------------


def test_writers_that_wait_for_each_other_share_a_commit_and_keep_their_order(site: Site) -> None:
    block = turn(site)
    outcomes = [site.start(put(site, f"a{number}", f"b{number}")) for number in range(7)]
    leave(block)
    site.finish()

    assert 1 == site.commits
    # Each push has a range of its own, in the order in which they came.
    assert [[2 * number + 1, 2 * number + 2] for number in range(7)] == [
        [row.seq for row in rows] for [rows] in outcomes
    ]
    assert 14 == whole(site.path).head.seq


def test_who_finds_nobody_waiting_commits_at_once(site: Site) -> None:
    for number in range(3):
        put(site, f"e{number}")()

        assert number + 1 == site.commits


def test_a_commit_is_shared_for_so_long_and_no_longer(tmp_path: Path) -> None:
    site = Site(tmp_path / "store.db", share_ms=0)
    block = turn(site)
    outcomes = [site.start(put(site, f"e{number}")) for number in range(3)]
    leave(block)
    site.finish()
    run(site.store.close())

    assert 3 == len([rows for [rows] in outcomes if isinstance(rows, tuple)])
    # The turn that left no trace is a commit of nothing.
    assert 4 == site.commits


def test_graphs_of_one_file_share_commits_and_nothing_else(site: Site) -> None:
    run(read(site.store, "other", Reads()))
    block = turn(site)
    one, other = site.start(put(site, "e1", "e2")), site.start(put(site, "e1", graph="other"))
    leave(block)
    site.finish()

    assert ([1, 2], [1]) == ([row.seq for row in one[0]], [row.seq for row in other[0]])
    assert ["e1"] == ids(run(read(site.store, "other", Reads(listing=True))))


def test_a_graph_that_is_made_meanwhile_is_a_commit_of_its_own(site: Site) -> None:
    block = turn(site)
    before = site.start(put(site, "e1"))
    new = site.start(put(site, "e1", graph="new"))
    after = site.start(put(site, "e2"))
    reader = site.start(lambda: run(read(site.store, "newer", Reads())))
    leave(block)
    site.finish()

    assert ([1], [1], [2]) == (
        [row.seq for row in before[0]],
        [row.seq for row in new[0]],
        [row.seq for row in after[0]],
    )
    assert 0 == reader[0].head.seq
    assert ["e1"] == ids(run(read(site.store, "new", Reads(listing=True))))


# --- law 1: the ack comes after the commit ------------------------------------------------------------------------


def test_nobody_is_told_before_what_it_wrote_is_in_the_file(site: Site) -> None:
    seen: list[tuple[str, list[str]]] = []

    def written(id_: str) -> Callable[[], Any]:
        def work() -> None:
            put(site, id_)()
            with closing(sqlite3.connect(site.path)) as other:
                seen.append((id_, [found for (found,) in other.execute("SELECT id FROM log ORDER BY seq")]))

        return work

    block = turn(site)
    outcomes = [site.start(written(f"e{number}")) for number in range(5)]
    leave(block)
    site.finish()

    assert [[None]] * 5 == outcomes
    assert [f"e{number}" for number in range(5)] == sorted(id_ for id_, _ in seen)
    assert all(id_ in found for id_, found in seen)


def test_nobody_sees_what_waits_for_its_commit_and_who_wrote_it_still_waits(site: Site) -> None:
    async def script() -> tuple[list[str], list[str], list[Any]]:
        async with site.store.transaction("g", write=True) as tx:
            inside = ids(await tx.read(Reads(listing=True)))
            outside = ids(await read(site.store, "g", Reads(listing=True)))
            told = list(first)
            await add(tx, entity("e2"))
        return inside, outside, told

    block = turn(site)
    first = site.start(put(site, "e1"))
    second = site.start(lambda: run(script()))
    leave(block)
    site.finish()

    # Who writes after it builds on it; it is not there yet for anybody else, and its writer knows of nothing.
    assert [(["e1"], [], [])] == second
    assert ["e1", "e2"] == ids(run(read(site.store, "g", Reads(listing=True))))


def test_a_row_that_another_one_has_not_committed_yet_is_acked_when_it_is(site: Site) -> None:
    block = turn(site)
    first, again = site.start(push(site, "lamp")), site.start(push(site, "lamp"))
    leave(block)
    site.finish()

    assert [(200, ["lamp"])] == first == again
    assert 1 == site.commits
    assert 1 == whole(site.path).head.seq


# --- law 3: one that fails takes nobody with it -------------------------------------------------------------------


def test_a_push_that_fails_before_it_writes_disturbs_nobody(site: Site) -> None:
    async def fails() -> None:
        async with site.store.transaction("g", write=True):
            raise Undo

    block = turn(site)
    outcomes = [site.start(push(site, "a")), site.start(lambda: run(fails())), site.start(push(site, "b"))]
    leave(block)
    site.finish()

    assert (200, ["a"]) == outcomes[0][0]
    assert isinstance(outcomes[1][0], Undo)
    assert (200, ["b"]) == outcomes[2][0]
    assert 2 == whole(site.path).head.seq
    assert 1 == site.commits


async def undone(site: Site) -> None:
    async with site.store.transaction("g", write=True) as tx:
        await add(tx, entity("bad"))
        raise Undo


def test_a_push_that_fails_after_it_wrote_is_undone_alone(site: Site) -> None:
    block = turn(site)
    before, bad, after = site.start(push(site, "a")), site.start(lambda: run(undone(site))), site.start(push(site, "b"))
    leave(block)
    site.finish()

    assert [(200, ["a"]), (200, ["b"])] == [*before, *after]
    assert isinstance(bad[0], Undo)
    assert ["a", "b"] == sorted(ids(run(read(site.store, "g", Reads(listing=True)))))
    assert 2 == whole(site.path).head.seq


def test_whoever_shared_with_one_that_failed_is_told_to_try_again_and_then_shares_with_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    block = turn(site)
    first, bad = site.start(put(site, "e1")), site.start(lambda: run(undone(site)))
    leave(block)
    site.finish()

    assert [StoreUndone, Undo] == [type(first[0]), type(bad[0])]
    assert [] == ids(run(read(site.store, "g", Reads(listing=True))))
    for seconds, commits_ in ((0.0, 4), (commits.ALONE_SECONDS, 1)):
        now[0] += seconds
        site.statements.clear()
        block = turn(site)
        for number in range(3):
            site.start(put(site, f"e{number}"))
        leave(block)
        site.finish()
        assert commits_ == site.commits


def test_a_push_that_the_disk_has_no_room_for_takes_nobody_with_it(site: Site) -> None:
    block = turn(site)
    [pages] = block._connection.execute("PRAGMA page_count").fetchone()
    block._connection.execute(f"PRAGMA max_page_count = {pages + 20}")
    outcomes = [
        site.start(push(site, "a")),
        site.start(push(site, "large", 1_000_000)),
        site.start(push(site, "b")),
    ]
    leave(block)
    site.finish()

    assert [[(200, ["a"])], [(503, None)], [(200, ["b"])]] == outcomes
    assert ["a", "b"] == ids(run(read(site.store, "g", Reads(listing=True))))


def test_a_commit_that_fails_fails_only_for_whose_fault_it_is(site: Site) -> None:
    async def breaks() -> None:
        async with site.store.transaction("g", write=True) as tx:
            await add(tx, entity("bad"))
            connection = tx._connection  # type: ignore[attr-defined]
            connection.execute("PRAGMA defer_foreign_keys = ON")
            connection.execute(
                "INSERT INTO devices (graph, device, served, acked, mark, pushed) VALUES (99, 'd', 0, 0, '', '')"
            )

    block = turn(site)
    before, bad, after = site.start(push(site, "a")), site.start(lambda: run(breaks())), site.start(push(site, "b"))
    leave(block)
    site.finish()

    assert [(200, ["a"]), (200, ["b"])] == [*before, *after]
    assert isinstance(bad[0], StoreUndone)  # and with nobody to share with:
    with pytest.raises(LocalProtocolError, match="to commit"):
        run(breaks())
    assert ["a", "b"] == ids(run(read(site.store, "g", Reads(listing=True))))


# --- the parts ----------------------------------------------------------------------------------------------------


class Connection:
    """What is looked at of a connection."""

    in_transaction = True

    def __init__(self, errors: dict[str, BaseException] | None = None) -> None:
        self.errors = errors or {}
        self.said: list[str] = []

    def execute(self, statement: str) -> None:
        self.said.append(statement)
        if statement in self.errors:
            raise self.errors[statement]
        self.in_transaction = statement.startswith("BEGIN")


class Desk:
    """`Commits` on connections that are none."""

    def __init__(self, *errors: dict[str, BaseException], timeout_ms: int = LONG_MS) -> None:
        self.errors = list(errors)
        self.given: list[Connection] = []
        self.back: list[tuple[Connection, bool]] = []
        self.commits = Commits(
            self.take,
            lambda connection, sound: self.back.append((connection, sound)),  # type: ignore[arg-type]
            lambda _: nullcontext(),
            busy_timeout_ms=timeout_ms,
            share_ms=LONG_MS,
        )

    def take(self) -> Any:
        self.given.append(Connection(self.errors.pop(0) if self.errors else None))
        return self.given[-1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreFull("no room"), StoreUndone),
        (StoreBusy("held"), StoreUndone),
        (LocalProtocolError("wrong"), StoreUndone),
        (StoreError("I/O"), StoreError),
        (KeyboardInterrupt(), StoreError),
    ],
)
def test_only_what_was_certainly_undone_is_to_be_tried_again(error: BaseException, told: type[StoreError]) -> None:
    shared = Shared(None, 0.0)  # type: ignore[arg-type]
    shared.end(error)

    with pytest.raises(StoreError) as caught:
        shared.wait(0)
    assert told is type(caught.value)


def test_a_commit_that_does_not_end_is_not_known_to_have_failed() -> None:
    with pytest.raises(StoreError, match="still may") as caught:
        Shared(None, 0.0).wait(0)  # type: ignore[arg-type]
    assert StoreError is type(caught.value)


def test_an_error_of_a_commit_of_ones_own_is_told_as_it_is() -> None:
    desk = Desk({"COMMIT": StoreFull("no room")})
    shared = desk.commits.enter()

    with pytest.raises(StoreFull):
        desk.commits.done(shared)
    assert [(desk.given[0], False)] == desk.back
    desk.commits.done(desk.commits.enter())
    assert [False, True] == [sound for _, sound in desk.back]


def test_a_turn_that_cannot_begin_is_over() -> None:
    desk = Desk({"BEGIN IMMEDIATE": StoreBusy("held")})
    with pytest.raises(StoreBusy, match="held"):
        desk.commits.enter()

    assert [(desk.given[0], False)] == desk.back
    desk.commits.done(desk.commits.enter())


def test_a_turn_whose_commit_was_ended_early_gives_nothing_back_twice() -> None:
    desk = Desk()
    shared = desk.commits.enter()
    desk.commits.settle()
    desk.commits.leave(shared, wrote=False, sound=False)

    assert [(desk.given[0], True)] == desk.back
    desk.commits.alone(lambda: None)


def test_what_cannot_even_be_rolled_back_is_thrown_away() -> None:
    desk = Desk({"ROLLBACK": sqlite3.OperationalError("broken")})
    desk.commits.leave(desk.commits.enter(), wrote=True, sound=True)

    assert [(desk.given[0], False)] == desk.back


def test_turns_come_in_the_order_in_which_they_were_waited_for() -> None:
    gate = WriterGate(LONG_MS)
    gate.enter()
    came: list[int] = []
    threads = []
    for number in range(5):

        def work(number: int = number) -> None:
            gate.enter()
            came.append(number)
            gate.leave()

        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()
        while len(gate._turns) <= number:
            os.sched_yield()
    gate.leave()
    for thread in threads:
        thread.join(LONG_MS / 1000)

    assert list(range(5)) == came
    assert not gate.pass_on()


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_a_turn_that_comes_as_its_thread_gives_up_is_not_lost(
    error: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that was given to whoever has just stopped waiting must still be taken, or be passed on."""
    gate = WriterGate(LONG_MS)
    gate._owner = -1  # another thread

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        gate.leave()  # by that other thread, in this very moment
        if error is not None:
            raise error
        return False

    monkeypatch.setattr(threading.Event, "wait", wait)
    with nullcontext() if error is None else pytest.raises(error):
        gate.enter()

    assert (None if error else threading.get_ident()) == gate._owner


def test_a_thread_that_gives_up_leaves_no_turn_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = WriterGate(1)
    gate._owner = -1

    def interrupted(self: threading.Event, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(StoreBusy, match=r"0\.001 s"):
        gate.enter()
    monkeypatch.setattr(threading.Event, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gate.enter()

    assert (-1, 0) == (gate._owner, len(gate._turns))


# --- crashes ------------------------------------------------------------------------------------------------------

WRITERS = """
import sys, threading
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.store_tests import commit, entity, run
store = SqliteStore(sys.argv[1], share_ms=5)
def write(name):
    while True:
        rows = run(commit(store, "g", entity(name), entity(name, note="x" * 5_000), entity(name, current=False)))
        sys.stdout.write(f"{rows[0].seq}\\n")
        sys.stdout.flush()
for number in range(6):
    threading.Thread(target=write, args=(f"e{number}",)).start()
"""


def test_a_process_that_is_killed_keeps_every_push_that_was_acked_and_none_in_part(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    for lines in (1, 20, 60):
        with python(WRITERS, path) as process:
            assert process.stdout is not None
            acked = [int(process.stdout.readline()) for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            acked += [int(line) for line in process.stdout.readlines() if line.endswith("\n")]
        held = whole(path)

        assert max(acked) + 2 <= held.head.seq
        assert len(set(acked)) == len(acked)
        assert {1} == {seq % 3 for seq in acked}
        assert 0 == held.head.seq % 3
        with suppress(FileNotFoundError):
            assert 0 <= (tmp_path / "store.db-wal").stat().st_size
