"""Whether a database is fit for a rollout, step by step, with a manifest of what was found. Read `Preflight.run`.

No step can fail quietly: one that raises, or says nothing, has failed, and so has one that needs what another one did
not get. The database itself is only read, but for tables of an older release, which are brought up to date as every
command does; what has to be written to is a copy.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from .. import census
from ..errors import InbetweeniesError, StoreCorrupt, StoreError
from ..model import DIGEST_BITS, format_time, next_chain, row_hash
from ..registry import DOCUMENT as REGISTRY
from ..rollout.flags import DOCUMENT as FLAGS
from ..stores.clock import wall_clock
from ..stores.keeper import run_now
from ..stores.placing import told
from ..stores.schema import FOREVER
from ..stores.sqlite import SqliteStore, border
from ..wire import load as installed
from . import baseline, checklist
from .backup import Made, backup, release
from .baseline import Answers, Ask
from .checklist import Checklist, Step, folder_of
from .integrity import DataIntegrityMonitor
from .manifest import Mark, marks
from .portable import export_to, import_from
from .verify import verify

#: So many times the size of the database has to be free: for a backup, one more, and what is written meanwhile.
ROOM: Final = 3
CENSUS_DAYS: Final = 30
_DAY_US: Final = 24 * checklist.HOUR_US
_TOLD_MAX: Final = 3  # of the problems of one step


def preflight(db: Path) -> tuple[str, ...]:
    """What speaks against beginning now, in words, whatever an earlier preflight found: damage that shows at once, or a
    full disk. Reads all of the file, as of one commit; a server may run meanwhile."""
    try:
        return (*_damage(db), *_room(db))
    except (InbetweeniesError, OSError) as error:
        return (str(error),)


def _damage(db: Path) -> tuple[str, ...]:
    with border("check the database"), closing(_connect(db)) as connection:
        connection.execute("BEGIN")
        told = [str(line) for (line,) in connection.execute("PRAGMA quick_check(1)")]
    return () if told == ["ok"] else (f"{db} is damaged ({' '.join(told)}): restore a backup",)


def _room(db: Path) -> tuple[str, ...]:
    size, free = _size(db), shutil.disk_usage(db.parent).free
    if free >= ROOM * size:
        return ()
    return (f"{free:,} bytes are free beside {db}, and {ROOM} times its {size:,} are needed: make room",)


def _size(db: Path) -> int:
    return sum(file.stat().st_size for file in (db, db.with_name(f"{db.name}-wal")) if file.exists())


def _connect(db: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{db.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


# --- the steps ----------------------------------------------------------------------------------------------------


class Serve(Protocol):
    """Serves a graph of a database to whoever asks, inside of a block, without a token. With `still` the clock stands
    there, and the epochs of new graphs are always the same."""

    def __call__(self, db: Path, graph: str, *, still: int | None = None) -> AbstractAsyncContextManager[Ask]:
        """The block."""


#: Asks a server that runs, inside of a block.
Reach = Callable[[], AbstractAsyncContextManager[Ask]]


class Found(Struct, frozen=True, kw_only=True):
    """What a step found, in words and in figures, all being well."""

    says: str
    figures: dict[str, Any] = {}


class Failed(StoreError):
    """A step has found what must not be.

    Attributes:
        advice: what to do.
    """

    def __init__(self, says: str, advice: str) -> None:
        self.advice = advice
        super().__init__(says)


def taken(name: str, work: Callable[[], Found]) -> Step:
    """One step, however it ends."""
    try:
        found: object = work()
    except Exception as error:  # noqa: BLE001 - whatever it was, the step has failed, and that is told
        return _failed(name, error)
    if not isinstance(found, Found) or not found.says:
        return _failed(name, Failed("the step said nothing", "this is a defect: tell whoever maintains it"))
    return Step(name=name, passed=True, found=found.says, figures=found.figures)


def _failed(name: str, error: BaseException) -> Step:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    says = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, InbetweeniesError | OSError):
        says = f"{type(error).__name__}: {says}"
    advice = error.advice if isinstance(error, Failed) else "put that right, and run it again"
    return Step(name=name, passed=False, found=says, advice=advice)


class Preflight:
    """One preflight of the database at `db`.

    Args:
        out: the folder of the manifest and what it speaks of; made if there is none.
        serve: serves a copy, for the baselines.
        reach: asks a server that runs instead, for the answers; `where` is what it is called.
        accept_changes: what is answered otherwise than the last time is what is meant.
        days: who was seen in so many days has to speak a version that is known.
        begun: called with the name of each step before it is taken.
        tell: called with each step when it was taken.
        now: the time, in microseconds since 1970.
        free: how many bytes are free in a folder.
    """

    def __init__(
        self,
        db: Path,
        out: Path | None = None,
        *,
        serve: Serve,
        reach: Reach | None = None,
        where: str = "a copy",
        accept_changes: bool = False,
        days: int = CENSUS_DAYS,
        begun: Callable[[str], object] = lambda _: None,
        tell: Callable[[Step], object] = lambda _: None,
        now: int | None = None,
        free: Callable[[Path], int] = lambda folder: shutil.disk_usage(folder).free,
    ) -> None:
        self._db, self._out = db, folder_of(db) if out is None else out
        self._serve, self._reach, self._where = serve, reach, where
        self._accept, self._days = accept_changes, days
        self._begun, self._tell, self._free = begun, tell, free
        self._now = wall_clock() if now is None else now
        self._work = self._out
        self._made: Made | None = None
        self._ready: dict[str, bytes | None] = {}  # files to be put beside the manifest; None: it lies in `_work`

    def run(self) -> Checklist:
        """Take all steps, whatever comes of them, and write the manifest, last.

        Raises:
            StoreError: there is no database, or the folder or the manifest cannot be written.
        """
        if not self._db.exists():
            raise StoreError(f"expected a database at {self._db}; got no file")
        with told(f"make {self._out}"):
            self._out.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._swept()
            # From here on there is none, so that what a process leaves that dies is not taken for one.
            (self._out / checklist.MANIFEST).unlink(missing_ok=True)
        with TemporaryDirectory(dir=self._out, prefix=".work-", ignore_cleanup_errors=True) as work:
            self._work = Path(work)
            steps = tuple(self._steps())
            return self._written(steps)

    def _swept(self) -> None:
        for left in self._out.glob(".work-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _steps(self) -> Iterator[Step]:
        works: dict[str, Callable[[], Found]] = {name: getattr(self, f"_{name}") for name in checklist.STEPS}
        for name, work in works.items():
            self._begun(name)
            step = taken(name, work)
            self._tell(step)
            yield step

    def _written(self, steps: tuple[Step, ...]) -> Checklist:
        with told(f"write to {self._out}"):
            for name, data in self._ready.items():
                if data is None:
                    (self._work / name).replace(self._out / name)
                else:
                    checklist.put(self._out / name, data)
            artefacts = tuple(
                checklist.artefact_of(self._out / name) for name in checklist.ARTEFACTS if name in self._ready
            )
        made = checklist.sealed(
            Checklist(
                format=checklist.FORMAT,
                release=release(),
                at=self._now,
                made=format_time(self._now),
                database=str(self._db.resolve()),
                graphs=() if self._made is None else self._made.manifest.graphs,
                steps=steps,
                artefacts=artefacts,
            )
        )
        checklist.put(self._out / checklist.MANIFEST, checklist.encoded(made))
        return made

    # one by one

    def _disk(self) -> Found:
        size, free = _size(self._db), min(self._free(self._db.parent), self._free(self._out))
        if free < ROOM * size:
            raise Failed(f"{free:,} bytes free, {ROOM} times {size:,} needed", "make room on that disk")
        return Found(says=f"{free:,} bytes free, {ROOM} times {size:,} needed", figures={"free": free, "size": size})

    def _snapshot(self) -> Found:
        with self._store() as store:  # which brings the tables of an older release up to date
            run_now(store.graph_names())
        made = backup(self._db, self._work / checklist.SNAPSHOT, now=self._now)
        verdict = verify(made.path)  # opened anew, and all of it read
        if not verdict.good:
            raise Failed(
                f"the snapshot is {verdict.kind}: {'; '.join(verdict.problems)}",
                "look at the disk and the memory of this machine before anything else",
            )
        self._made = made
        self._ready |= {checklist.SNAPSHOT: None, checklist.SNAPSHOT_MANIFEST: None}
        rows = sum(mark.seq for mark in made.manifest.graphs)
        held = f"{_count(rows, 'row')} of {_count(len(made.manifest.graphs), 'graph')}"
        return Found(
            says=f"{held} copied, opened again and verified",
            figures={"rows": rows, "size": made.manifest.size, "sha256": made.manifest.sha256},
        )

    def _integrity(self) -> Found:
        advice = "`inbetweenies audit` says what would put it right"
        with border("check the database"), closing(_connect(self._db)) as connection:
            connection.execute("BEGIN")
            wrong = [str(line) for (line,) in connection.execute("PRAGMA integrity_check(10)") if line != "ok"]
            if wrong:
                raise Failed(f"integrity_check: {_first(wrong)}", "restore a backup")
            strays = connection.execute("PRAGMA foreign_key_check").fetchmany(1000)
            if strays:
                raise Failed(
                    f"foreign_key_check: {_count(len(strays), 'row')} without what it refers to", "restore a backup"
                )
        with self._store() as store:
            reports = run_now(DataIntegrityMonitor(store).reports())
        count = sum(report.count for report in reports.values())
        if count:
            graphs = ", ".join(name for name, report in reports.items() if report.count)
            raise Failed(f"{_count(count, 'thing')} wrong with the logs of {graphs}", advice)
        entities = sum(report.entities for report in reports.values())
        edges = sum(report.relationships for report in reports.values())
        return Found(
            says=f"integrity and foreign keys hold; {entities:,} entities and {edges:,} relationships are whole",
            figures={"entities": entities, "relationships": edges},
        )

    def _digest(self) -> Found:
        snapshot = self._held().manifest.graphs
        with border("read the database"), closing(_connect(self._db)) as connection:
            connection.execute("BEGIN")
            live = {mark.graph: _as_of(connection, mark) for mark in snapshot}
        wrong = [mark.graph for mark in snapshot if live[mark.graph] != (mark.chain, mark.digest)]
        if wrong:
            raise Failed(
                f"the snapshot of {_first(wrong)} is not what the database holds up to there",
                "do not use this snapshot; `inbetweenies audit` says whether the database is whole",
            )
        return Found(
            says=f"equal to the database's at the same seq, in {_count(len(snapshot), 'graph')}",
            figures={mark.graph: {"seq": mark.seq, "digest": mark.digest} for mark in snapshot},
        )

    def _export(self) -> Found:
        made = self._held()
        file, back = self._work / checklist.EXPORT, self._work / "imported.db"
        exported = export_to(made.path, file, now=self._now, still=True)
        import_from(file, back)
        with closing(_connect(back)) as connection:
            found = marks(connection, made.manifest.schema)
        back.unlink()  # room for what comes
        if found != made.manifest.graphs:
            raise Failed("what is read back is not what was written", "do not rely on this export")
        self._ready[checklist.EXPORT] = None
        rows = exported.header.rows
        return Found(
            says=f"{_count(rows, 'row')} written as JSON Lines and read back, digests and chains equal",
            figures={"rows": rows, "size": file.stat().st_size},
        )

    def _api(self) -> Found:
        kept = self._kept()
        before, now = kept.get(self._where), asyncio.run(self._answers())
        changes = () if before is None else baseline.differences(before, now)
        after = checklist.sealed_json(kept | {self._where: now})
        file, aside = self._out / checklist.API, self._out / "api.changed.json"
        if changes and not self._accept:
            checklist.put(aside, after)
            self._ready[checklist.API] = file.read_bytes()
            raise Failed(
                f"{_count(len(changes), 'difference')} from the answers of the last time: {_first(changes)}",
                f"compare {file} with {aside}; if it is meant, run it again with --accept-changes",
            )
        aside.unlink(missing_ok=True)
        self._ready[checklist.API] = after
        accepted = f"{_count(len(changes), 'difference')} accepted"
        said = "the first to be kept" if before is None else accepted if changes else "as before"
        return Found(
            says=f"{len(now)} answers of {self._where}: {said}",
            figures={"answers": len(now), "changes": list(changes), "compared": before is not None},
        )

    def _kept(self) -> dict[str, Answers]:
        """What was answered the last time, by who answered."""
        file = self._out / checklist.API
        try:
            found: dict[str, Answers] = checklist.unsealed_json(file.read_bytes())
        except FileNotFoundError:
            return {}
        except StoreError as error:
            if self._accept:
                return {}
            raise Failed(
                f"the answers of the last time in {file}: {error}",
                "put that file back, or begin anew with --accept-changes",
            ) from None
        return found

    async def _answers(self) -> Answers:
        if self._reach is not None:
            async with self._reach() as ask:
                return await baseline.answers(ask, release=release(), safe=True)
        copy = self._copy()
        for (
            mark
        ) in self._held().manifest.graphs:  # what is in them differs from run to run; that it can be read must not
            async with self._serve(copy, mark.graph) as ask:
                await baseline.readable(ask, mark.graph)
        async with self._serve(self._bare(copy), baseline.GRAPH, still=baseline.STILL) as ask:
            return await baseline.answers(ask, release=release())

    def _bare(self, copy: Path) -> Path:
        """A database in which nothing is but what was decided for good: what is served and how features are switched,
        not how far a rollout has come, which is another answer every day."""
        bare = self._work / "bare.db"
        store, empty = (SqliteStore(path, journal=False, heads=False) for path in (copy, bare))
        try:
            for name in (REGISTRY, FLAGS):
                document = run_now(store.document(name))
                if document.body:
                    run_now(empty.put_document(name, document.body, revision=0))
        finally:
            run_now(store.close())
            run_now(empty.close())
        return bare

    def _performance(self) -> Found:
        found = asyncio.run(self._loaded())
        self._ready[checklist.PERFORMANCE] = msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"
        return Found(
            says=(
                f"pull {found.pull.p50_ms:.1f} ms (p95 {found.pull.p95_ms:.1f}), push {found.push.p50_ms:.1f} ms "
                f"(p95 {found.push.p95_ms:.1f}): {found.pull.requests} of each, {found.concurrency} at once, "
                f"{found.version}, {found.rows:,} rows, {found.processors} processors"
            ),
            figures=msgspec.to_builtins(found),
        )

    async def _loaded(self) -> baseline.Load:
        largest = max(self._held().manifest.graphs, key=lambda mark: (mark.seq, mark.graph), default=None)
        graph, rows = ("default", 0) if largest is None else (largest.graph, largest.seq)
        async with self._serve(self._copy(), graph) as ask:
            return await baseline.load(ask, graph=graph, rows=rows, now=self._now, processors=os.cpu_count() or 1)

    def _census(self) -> Found:
        with self._store() as store:
            entries = census.entries_in(run_now(store.document(census.DOCUMENT)))
        since, known = self._now - self._days * _DAY_US, frozenset(installed())
        seen = [entry for entry in entries if entry.last >= since]
        strange = [
            f"{entry.release} ({entry.served or entry.version})"
            for entry in seen
            if entry.version == "unknown" or (entry.served is not None and entry.served not in known)
        ]
        if strange:
            raise Failed(
                f"versions that are not known here are spoken by {_first(strange)}",
                "install what serves them, or update those; --days leaves out who was not seen lately",
            )
        speaks = Counter(entry.served or f"refused as {entry.version}" for entry in seen)
        said = ", ".join(f"{version} by {count}" for version, count in sorted(speaks.items()))
        nameless = sum(entry.release in (census.UNKNOWN, census.OTHER) for entry in seen)
        also = f"; {nameless} of them do not say what they are" if nameless else ""
        return Found(
            says=f"kinds of clients in {self._days} days: {said or 'none was seen'}{also}",
            figures={"days": self._days, "speaks": dict(speaks), "nameless": nameless},
        )

    def _drill(self) -> Found:
        advice = f"`inbetweenies drill --db {quote(str(self._db))}`"
        try:
            drilled, data = checklist.drill_in(self._db)
        except FileNotFoundError:
            raise Failed("no drill was ever held on a copy of this database", advice) from None
        self._ready[checklist.DRILL] = data
        age = self._now - drilled.at
        if not drilled.passed:
            raise Failed("the last drill did not pass", f"see what it says: {advice}")
        if not 0 <= age <= checklist.DRILL_FRESH_US:
            raise Failed(f"the last drill was held at {format_time(drilled.at)}: not in the last 24 hours", advice)
        if (drilled.release, drilled.database) != (release(), str(self._db.resolve())):
            raise Failed(f"the last drill was held by release {drilled.release} on {drilled.database}", advice)
        return Found(says=f"passed {age // 60_000_000} minutes ago", figures=asdict(drilled))

    # what they share

    @contextmanager
    def _store(self) -> Iterator[SqliteStore]:
        store = SqliteStore(self._db, journal=False, heads=False)  # where these are is the server's business
        try:
            yield store
        finally:
            run_now(store.close())

    def _held(self) -> Made:
        if self._made is None:
            raise Failed("there is no snapshot to look at", "see the step `snapshot`")
        return self._made

    def _copy(self) -> Path:
        """A copy of the snapshot, which may be written to."""
        copy = self._work / "copy.db"
        if not copy.exists():
            with told(f"copy {checklist.SNAPSHOT}"):
                shutil.copyfile(self._held().path, copy)
        return copy


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _first(problems: list[str] | tuple[str, ...]) -> str:
    more = len(problems) - _TOLD_MAX
    return "; ".join(problems[:_TOLD_MAX]) + (f"; and {more} more" if more > 0 else "")


_ROWS: Final = (
    "SELECT kind, until, hash, body FROM log WHERE graph = (SELECT graph FROM graphs WHERE name = ?) AND seq <= ?"
    " ORDER BY seq"
)


def _as_of(connection: sqlite3.Connection, mark: Mark) -> tuple[str, str]:
    """Chain and digest of a log at the seq of `mark`, worked out from the values of its rows."""
    chain, digest = bytes(16), 0
    for kind, until, hash_, body in connection.execute(_ROWS, (mark.graph, mark.seq)):
        if row_hash(kind, body) != hash_:
            raise StoreCorrupt(f"expected rows of graph {mark.graph} that are what their hashes say; got another one")
        chain = next_chain(chain, hash_)
        if until == FOREVER or until > mark.seq:
            digest += int.from_bytes(hash_, "big")
    return chain.hex(), (digest % (1 << DIGEST_BITS)).to_bytes(DIGEST_BITS // 8, "big").hex()
