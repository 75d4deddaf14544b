"""What a `SqliteStore` keeps outside of its file, and what it does with that when the file was set back.

Read `Keeper.committed`, then `Keeper.start`. The order is: commit, journal, ack. A commit that is in the database only
was not acknowledged yet, and is put into the journal before anything else is; a commit that failed never gets there, so
that nothing comes back that was refused.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from .. import engine, rewind
from ..errors import LocalProtocolError, StoreError
from ..exchange import run
from ..model import Change, Context, Cursor, Event, Head, Reads, Row, SyncRequest, Writes, digest_change
from ..store import Store
from .clock import wall_clock
from .heads import End, Heads
from .journal import Commit, Discard, Journal, Opening, Segment, commit_of, ends, writes_of
from .schema import FOREVER

T = TypeVar("T")

#: Lends a connection for a moment: what for is said first.
Lend: TypeAlias = Callable[[str], AbstractContextManager[sqlite3.Connection]]

DEVICE: Final = "journal"  # what rows that are offered from here are marked with
ROWS_AT_ONCE: Final = 10_000  # that are committed again in one transaction
OFFERED_AT_ONCE: Final = 500
NOWHERE: Final = Cursor("", 0, rewind.START)

_GRAPHS: Final = "SELECT name, birth, epoch, seq, chain, stamp, digest FROM graphs"
_ADOPT: Final = (
    "INSERT INTO graphs (name, epoch, seq, chain, stamp, digest, birth)"
    " VALUES (?1, ?2, 0, zeroblob(16), 0, zeroblob(32), ?3)"
    " ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, birth = excluded.birth WHERE seq = 0"
)
_CURRENT: Final = f"SELECT hash FROM log WHERE graph = (SELECT graph FROM graphs WHERE name = ?1) AND until = {FOREVER}"  # noqa: S608
_CLOSED: Final = (
    "SELECT seq, until FROM log WHERE graph = (SELECT graph FROM graphs WHERE name = ?1)"
    " AND seq <= ?2 AND until > ?2 AND until <= ?3 ORDER BY until"
)


class Committed(Struct, frozen=True, kw_only=True):
    """What one transaction has committed to one graph: from which place of its log, to which end."""

    graph: str
    birth: str
    before: Cursor
    head: Head
    writes: tuple[Writes, ...]

    @property
    def grew(self) -> bool:
        """Whether it says anything of the log itself."""
        return any(one.rows or one.closed or one.events or one.head for one in self.writes)

    @property
    def pushed(self) -> bool:
        """Whether it says what a device has pushed; everything else that is known of devices is only a help."""
        return any(one.device is not None and one.device[1].pushed for one in self.writes)


class Known(Struct, frozen=True, kw_only=True):
    """A graph as the database holds it. `birth` is its first epoch, which is the same in every backup of it."""

    birth: str
    head: Head


class Step(Struct, frozen=True, kw_only=True):
    """A commit in the journal, and the fields that rows had then. `void`: it was there when what came after it was
    taken back on purpose, so that it can lead on from a backup, but is not to be offered."""

    commit: Commit
    fields: tuple[str, ...]
    void: bool = False


class Keeper:
    """The journal and the ends of logs that belong to one database.

    Args:
        store: the store of the database, which calls `committed`.
        path: its file.
        lend: a connection to it.
        heads: whether the ends of logs are kept beside the file.
    """

    def __init__(
        self,
        store: Store,
        path: Path,
        lend: Lend,
        *,
        journal: Journal | None,
        heads: bool,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        self.journal = journal
        self.heads = Heads(path) if heads else None
        self.happened: list[tuple[str, Event]] = []  # at the start, by graph
        self._store = store
        self._path = path
        self._lend = lend
        self._clock = clock
        self._silent = False
        self._behind: dict[str, Cursor] = {}  # how far the journal holds graphs of which it could not take a commit
        self._failed: frozenset[str] = frozenset()  # of these, those that nobody is about to write

    def close(self) -> None:
        """Let go of files."""
        if self.journal is not None:
            self.journal.close()
        if self.heads is not None:
            self.heads.close()

    # --- every commit

    def lacks(self, graph: str) -> bool:
        """Whether the journal could not take a commit of `graph`. Then nobody may be told of that either before it has:
        who reads must begin as a writer does, whose end is `committed`."""
        return graph in self._failed

    def committed(self, commits: Sequence[Committed]) -> None:
        """Called with what has just been committed, before anybody is told so, and by one writer at a time.

        Raises:
            StoreError: none of it may be acknowledged; what is sent again will be.
        """
        if self._silent:
            return
        late = {one.graph for one in commits} & self._behind.keys()
        if self.journal is not None:
            self._write(self.journal, commits)
        if self.heads is not None:
            for one in commits:
                if one.head.cursor != one.before or one.graph in late:
                    self.heads.put(one.graph, one.birth, one.head.cursor, one.head.stamp)

    def _write(self, journal: Journal, commits: Sequence[Committed]) -> None:
        self._failed -= {one.graph for one in commits}  # what is read for the journal is read as ever
        try:
            self._append(journal, commits)
        finally:
            self._failed = frozenset(self._behind)

    def _append(self, journal: Journal, commits: Sequence[Committed]) -> None:
        ends_: dict[str, Committed] = {}
        records: list[Commit] = []
        durable = False
        behind = dict(self._behind)
        for one in commits:
            if one.graph in behind:
                ends_[one.graph] = one
            elif one.grew or one.pushed:
                self._behind.setdefault(one.graph, one.before)  # until it is known to be kept
                records.append(commit_of(one.graph, one.birth, one.before, one.head.cursor, one.writes))
                durable |= one.grew
        records += [self._missed(one, behind[graph]) for graph, one in ends_.items()]
        if records:
            writing = {one.graph: one.head.cursor for one in commits if one.graph not in behind}
            journal.append(records, opening=partial(self._opening, writing), durable=durable or bool(ends_))
        for one in commits:
            self._behind.pop(one.graph, None)

    def _missed(self, one: Committed, end: Cursor) -> Commit:
        """All that a graph's log holds after `end`, as one record."""
        writes = run_now(self._between(one.graph, end.seq, one.head))
        return commit_of(one.graph, one.birth, end, one.head.cursor, (writes,))

    def _opening(self, writing: Mapping[str, Cursor] = MappingProxyType({})) -> Opening:
        """How everything stands, but for the commits that lead to where graphs end that it is `writing`."""
        graphs = self._graphs()
        # As far as the journal holds them: what is about to be written after this may never be.
        ends_ = {name: (known.birth, self._behind.get(name, known.head.cursor)) for name, known in graphs.items()}
        # What another process has committed after that it may have noted already.
        certain = all(graphs[name].head.cursor == writing.get(name) for name in self._behind.keys() & graphs.keys())
        heads = {name: end for name, end in ends_.items() if end[1] != NOWHERE}
        return Opening(str(self._path), heads, certain=certain)

    def _catch_up(self, journal: Journal, graph: str, birth: str, end: Cursor, head: Head) -> None:
        """Put into the journal what the log holds after `end`, where it ends there."""
        if end.seq < head.seq:
            missed = self._missed(Committed(graph=graph, birth=birth, before=end, head=head, writes=()), end)
            self._behind[graph] = end
            journal.append([missed], opening=self._opening, durable=True)
            del self._behind[graph]

    async def _between(self, graph: str, after: int, head: Head) -> Writes:
        async with self._store.transaction(graph, write=False) as tx:
            rows = (await tx.read(Reads(seqs=tuple(range(after + 1, head.seq + 1))))).seqs
        closed = self._closed(graph, after, head.seq)
        return Writes(rows=tuple(rows[seq] for seq in sorted(rows)), closed=closed, head=head)

    # --- the start

    def start(self, *, discard: bool = False) -> None:
        """Find out whether the database was set back, and give it what it lacks; or, with `discard`, take note that it
        was set back on purpose.

        Raises:
            StoreError: the journal is of another database, or cannot be read or written.
        """
        if self.journal is None and self.heads is None and not discard:
            return
        newest = () if self.journal is None else self.journal.newest()
        tips = ends(newest)  # before the database is looked at, so that it cannot be behind them by chance
        graphs = self._graphs()
        if self.journal is not None:
            held = {name: (graph.birth, graph.head.seq) for name, graph in graphs.items()}
            refuse_strange(self._path, self.journal, held, newest)
        ends_ = () if self.heads is None else self.heads.all()
        if discard:
            for graph in sorted({*graphs, *tips, *(end.graph for end in ends_)}):
                run_now(self.discard(graph))
            return
        if self.journal is not None:
            stamps = _stamps(newest)
            for graph, (birth, tip) in tips.items():
                self._compare(self.journal, graph, birth, tip, stamps.get(graph, 0))
            self._complete(self.journal, newest, {name: graphs[name] for name in sorted(graphs.keys() - tips)})
        for end in ends_:
            run_now(self._notice(end))
        if self.heads is not None:
            if self.journal is not None:
                self.heads.keep_journal(self.journal.folder)
            for graph, known in self._graphs().items():
                self.heads.put(graph, known.birth, known.head.cursor, known.head.stamp)

    def _complete(self, journal: Journal, newest: Iterable[Segment], strange: Mapping[str, Known]) -> None:
        """Put into the journal all that it never heard of; or begin it."""
        if all(segment.opening is None for segment in newest):
            journal.begin(self._opening)
            return
        # When it began it was told of all that was there: a process died over the first commits of these.
        for graph, known in strange.items():
            self._catch_up(journal, graph, known.birth, NOWHERE, known.head)

    def _graphs(self) -> dict[str, Known]:
        with self._lend("read the heads of graphs") as connection:
            found = connection.execute(_GRAPHS).fetchall()
        return {
            name: Known(
                birth=birth,
                head=Head(epoch=epoch, seq=seq, chain=chain, stamp=stamp, digest=int.from_bytes(digest, "big")),
            )
            for name, birth, epoch, seq, chain, stamp, digest in found
        }

    def _adopt(self, graph: str, birth: str, epoch: str) -> None:
        """Make a graph, or one that is empty anew: an empty one has nothing to lose."""
        with self._lend("make a graph") as connection:
            connection.execute(_ADOPT, (graph, epoch, birth))

    def _current(self, graph: str) -> list[bytes]:
        """The hashes of the rows that are current."""
        with self._lend("read what is current") as connection:
            return [hash_ for (hash_,) in connection.execute(_CURRENT, (graph,))]

    def _closed(self, graph: str, after: int, upto: int) -> tuple[tuple[int, int], ...]:
        """The rows up to `after` whose place was taken after that and up to `upto`, in that order."""
        with self._lend("read a log") as connection:
            return tuple(connection.execute(_CLOSED, (graph, after, upto)).fetchall())

    def _compare(self, journal: Journal, graph: str, birth: str, tip: Cursor, stamp: int) -> None:
        """Give a graph what the journal holds beyond it, and the journal what it missed."""
        self._adopt(graph, birth, tip.epoch)
        head, chains = run_now(self._chains(graph, (tip.seq,)))
        if chains.get(tip.seq) == tip.chain:
            # So it is always, but for a process that died between the commit and the journal.
            self._catch_up(journal, graph, birth, tip, head)
            run_now(self._rise(graph, head, stamp))
            return
        segments = journal.everything()
        steps = _steps(segments, graph)
        before = head.seq
        self._replay(graph, steps)
        places = [place for step in steps for place in (step.commit.before, step.commit.after)]
        head, chains = run_now(self._chains(graph, [place.seq for place in places]))
        held = {place for place in places if chains.get(place.seq) == place.chain}
        missed = [step for step in steps if step.commit.after not in held and not step.void]
        common = max(held, key=lambda place: place.seq, default=NOWHERE)
        self._catch_up(journal, graph, birth, common, head)
        run_now(self._rise(graph, head, _stamps(segments).get(graph, 0)))
        offered = run_now(self._offer(graph, missed, common))
        if head.seq > before or offered:
            told: dict[str, str | int] = {"after": before, "rows": head.seq - before, "offered": offered}
            now = self._clock()
            run_now(self._tell(graph, Event(kind="replay", key=f"{now} {before}", at=now, told=told)))

    async def _rise(self, graph: str, head: Head, stamp: int) -> None:
        """PROTOCOL 1.8: what comes is after every time that was handed out, however far back the clock is."""
        if head.stamp < stamp:
            async with self._store.transaction(graph, write=True) as tx:
                head = (await tx.read(Reads())).head
                await tx.write(Writes(head=replace(head, stamp=max(head.stamp, stamp))))

    async def _chains(self, graph: str, seqs: Iterable[int]) -> tuple[Head, dict[int, bytes]]:
        async with self._store.transaction(graph, write=False) as tx:
            held = await tx.read(Reads(chains=tuple(dict.fromkeys(seqs))))
        return held.head, held.chains

    def _replay(self, graph: str, steps: Sequence[Step]) -> None:
        """Commit again, to the letter, what continues the log: then it is as if nothing had happened."""
        left: dict[tuple[int, bytes], list[Step]] = {}
        for step in steps:
            left.setdefault((step.commit.before.seq, step.commit.before.chain), []).append(step)
        with self._unheard():
            with suppress(LocalProtocolError):  # what does not fit after all is offered
                while run_now(self._replay_some(graph, left)):
                    pass
            run_now(self._add_up(graph))

    async def _add_up(self, graph: str) -> None:
        """Let the digest be that of the rows that are current. A chain says which rows a log holds, not which of them
        stand: what was noted at the same place may be of another log with the same rows."""
        async with self._store.transaction(graph, write=True) as tx:
            head = (await tx.read(Reads())).head
            digest = 0
            for hash_ in self._current(graph):
                digest = digest_change(digest, come=hash_)
            if digest != head.digest:
                await tx.write(Writes(head=replace(head, digest=digest)))

    async def _replay_some(self, graph: str, left: Mapping[tuple[int, bytes], list[Step]]) -> bool:
        """Whether there may be more."""
        async with self._store.transaction(graph, write=True) as tx:
            head = (await tx.read(Reads())).head
            end = head.seq + ROWS_AT_ONCE
            while head.seq < end:
                here = left.get((head.seq, head.chain))
                if here:
                    step = _next(here, head)
                    here.remove(step)
                    found = writes_of(step.commit, step.fields)
                else:
                    found = _rest(left, head)
                if not found:
                    return False
                for writes in found:
                    await tx.write(writes)
                    head = writes.head or head
        return True

    async def _offer(self, graph: str, steps: Iterable[Step], common: Cursor) -> int:
        """Offer rows of a line of the log that is not the one that is there now (PROTOCOL 4.14)."""
        changes = [_offered(row) for step in steps for one in writes_of(step.commit, step.fields) for row in one.rows]
        before = (await self._chains(graph, ()))[0].seq
        for start in range(0, len(changes), OFFERED_AT_ONCE):
            some = tuple(changes[start : start + OFFERED_AT_ONCE])
            request = SyncRequest(device=DEVICE, user="", changes=some, common=common, pull=False)
            async with self._store.transaction(graph, write=True) as tx:
                await run(engine.serve(request, Context(graph=graph, now=self._clock())), tx)
        return (await self._chains(graph, ()))[0].seq - before

    async def _notice(self, end: End) -> None:
        """A log that is shorter than it was, and not to be had back from here, goes on under a new epoch."""
        known = self._graphs().get(end.graph)
        if known is not None and known.birth != end.birth:
            return  # another graph of that name
        async with self._store.transaction(end.graph, write=True) as tx:
            held = await tx.read(Reads(chains=(end.cursor.seq,)))
            # Deployed clients know no more than a time: none of what comes is to be before what they have heard of.
            head = replace(held.head, stamp=max(held.head.stamp, end.stamp))
            if rewind.holds(held, end.cursor):
                if head != held.head:  # set back once more, to what it had been set back to before
                    await tx.write(Writes(head=head))
                return
            fork = rewind.forked(held.head, at=self._clock(), seen=end.cursor, by="the files beside the database")
            await tx.write(Writes(head=replace(head, epoch=str(fork.told["epoch"])), events=(fork,)))
        self.happened.append((end.graph, fork))

    async def _tell(self, graph: str, event: Event) -> None:
        async with self._store.transaction(graph, write=True) as tx:
            await tx.write(Writes(events=(event,)))
        self.happened.append((graph, event))

    @contextmanager
    def _unheard(self) -> Iterator[None]:
        """What is committed inside is in the journal already."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    # --- on purpose

    async def discard(self, graph: str) -> Event | None:
        """PROTOCOL 4.12: whatever the journal or anybody else knows of `graph` beyond its end is to stay away.

        None if the database does not have this graph; then nothing of it comes back from the journal.
        """
        known = self._graphs().get(graph)
        end = NOWHERE if known is None else known.head.cursor
        epochs = {one.cursor.epoch for one in (() if self.heads is None else self.heads.all()) if one.graph == graph}
        if self.journal is not None:
            steps = _steps(self.journal.everything(), graph)
            epochs |= {step.commit.after.epoch for step in steps if step.commit.after.seq > end.seq}
            # What was taken back before is no step any more; a backup from before that does not know of it either.
            bare = [step for step in steps if step.commit.before.seq == step.commit.after.seq]  # as every discard is
            epochs |= rewind.given_up(
                event for step in bare for one in writes_of(step.commit, step.fields) for event in one.events
            )
            birth = known.birth if known is not None else next((step.commit.birth for step in steps), "")
            # Before the commit: if this process dies in between, whoever asked for this asks again.
            self.journal.append([Discard(graph, birth, end)], opening=self._opening, durable=True)
        if self.heads is not None:
            self.heads.forget(graph)
        if known is None:
            return None
        async with self._store.transaction(graph, write=True) as tx:
            event = await run(rewind.discard(self._clock(), epochs), tx)
        self.happened.append((graph, event))
        return event


def refuse_strange(
    path: Path, journal: Journal, graphs: Mapping[str, tuple[str, int]], newest: Sequence[Segment]
) -> None:
    """A journal and a database know each other by the births of `graphs`, which come with how many rows they have. An
    empty database takes any journal, but not that of a database that is there.

    Raises:
        StoreError: the journal is of another one than the database at `path`.
    """
    births = {name: birth for name, (birth, _) in ends(newest).items()}
    if not births:
        return
    of = next((segment.opening.database for segment in newest if segment.opening is not None), str(path))
    full = {name: birth for name, (birth, rows) in graphs.items() if rows}
    # The one that has rows may be one that the journal never heard of; then an empty one shows whose it is.
    strange = full and not any(births.get(name) == birth for name, (birth, _) in graphs.items())
    clash = any(births.get(name, birth) != birth for name, birth in full.items())
    taken = not full and of != str(path) and Path(of).exists()
    if strange or clash or taken:
        raise StoreError(
            f"expected the journal of {path} in {journal.folder}; got that of another database ({of}). "
            "Name another folder, or move this one away."
        )


def run_now(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over a store that never waits for an event loop."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    work.close()
    raise LocalProtocolError("expected a store that blocks to block; got one that waits for an event loop")


def _steps(segments: Iterable[Segment], graph: str) -> list[Step]:
    """What the journal holds of a graph, in order, less what was taken back on purpose."""
    steps: list[Step] = []
    for segment in segments:
        fields = Row.__struct_fields__ if segment.opening is None else segment.opening.fields
        for record in segment.records:
            if record.graph != graph:
                continue
            if isinstance(record, Commit):
                steps.append(Step(commit=record, fields=fields))
            else:
                steps = [replace(step, void=True) for step in steps if step.commit.after.seq <= record.at.seq]
    return steps


def _stamps(segments: Sequence[Segment]) -> dict[str, int]:
    """The newest stamp of each graph: that of its last commit, since a log that was set back goes on after it."""
    found: dict[str, int] = {}
    for segment in reversed(segments):
        fields = Row.__struct_fields__ if segment.opening is None else segment.opening.fields
        for record in reversed(segment.records):
            if isinstance(record, Commit) and record.graph not in found:
                stamps = [writes.head.stamp for writes in writes_of(record, fields) if writes.head is not None]
                if stamps:
                    found[record.graph] = stamps[-1]
    return found


def _next(here: Sequence[Step], head: Head) -> Step:
    """Which of those at the end of the log continues it: first what was noted at this place, then the commit. Of two
    lines that begin here the newer one was the truth last."""
    return next((step for step in here if step.commit.after.seq == head.seq), here[-1])


def _rest(left: Mapping[tuple[int, bytes], list[Step]], head: Head) -> list[Writes]:
    """What is left of the step that the log ends amid, if there is one: several commits are one step where the journal
    could not take the first of them, and a backup may have been made between them."""
    for step in [step for steps in left.values() for step in steps]:
        if step.commit.before.seq < head.seq < step.commit.after.seq:
            found = writes_of(step.commit, step.fields)
            rows = [row for writes in found for row in writes.rows]
            if any((row.seq, row.chain) == (head.seq, head.chain) for row in rows):
                return [_after(writes, head.seq) for writes in found]
    return []


def _after(writes: Writes, seq: int) -> Writes:
    """What of this was written after `seq`."""
    taken = [(row.seq, row.until) for row in writes.rows if row.until is not None and row.seq <= seq < row.until]
    closed = [pair for pair in writes.closed if pair[1] > seq]
    rows = tuple(row for row in writes.rows if row.seq > seq)
    return replace(writes, rows=rows, closed=tuple(sorted([*closed, *taken], key=lambda pair: pair[1])))


def _offered(row: Row) -> Change:
    """A row as its holder would offer it; one that never was current is only to be kept."""
    aside = frozenset({(row.kind, row.id)} if row.until == row.seq else ())
    if row.kind == "entity":
        return Change(entity=row.entity(), delete=row.deleted, aside=aside, offered=True)
    return Change(relationships=(row.relationship(),), aside=aside, offered=True)
