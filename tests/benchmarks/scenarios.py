"""The scenarios: what is done, what is measured of it, and what it is held against.

The server is always `inbetweenies serve` in a process of its own: its CPU is that of the whole process, HTTP,
authentication and fsync included. Every answer is checked for what it should hold.
"""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Any, Final, Self
from unittest.mock import patch

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from blowing_off import BlowingOffClient, HttpTransport, SyncReport
from blowing_off.store import LocalStore
from inbetweenies import engine
from inbetweenies.asgi.discovery import registry_headers, version_headers
from inbetweenies.engine import serve
from inbetweenies.exchange import Asked, run
from inbetweenies.limits import Limits, gate
from inbetweenies.model import Change, Context, Document, SyncRequest, body_of
from inbetweenies.ops.backup import backup
from inbetweenies.ops.manifest import manifest_of
from inbetweenies.replica import State, copy_of
from inbetweenies.rewind import START
from inbetweenies.rollout import states
from inbetweenies.rollout.canary import bucket
from inbetweenies.rollout.flags import in_force
from inbetweenies.rollout.kept import Cause
from inbetweenies.rollout.orders import NONE
from inbetweenies.router import ProtocolFallback
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.simulator.runner import run_seeds
from inbetweenies.testing.simulator.world import SimulatedWorld
from inbetweenies.wire import load, v2

from . import data, live
from .floors import ClientFloor, ServerFloor
from .measure import (
    MB,
    Figure,
    Row,
    bounded,
    cpu_of,
    forget_peak,
    held_against,
    in_turns,
    memory_of,
    own_cpu,
    wall,
)
from .processes import Client, Peer, Process, Server

MS: Final = 1_000


class Sizes(Struct, frozen=True, kw_only=True):
    """How much of everything. The targets are about the defaults."""

    message: int = 1_000
    many: int = 10_000
    huge: int = 100_000
    small: int = 1_000
    lost: int = 170
    commits: int = 400
    delta: int = 10
    clients: int = 16
    batches: int = 64
    batch: int = 100
    turns: int = 5
    crowd_turns: int = 9
    devices: int = 50
    idle: int = 900
    short_turns: int = 15
    long_turns: int = 2
    histories: int = 300


QUICK: Final = Sizes(
    message=50,
    many=100,
    huge=300,
    small=100,
    lost=10,
    commits=5,
    clients=4,
    devices=3,
    idle=5,
    batches=8,
    batch=10,
    turns=1,
    crowd_turns=1,
    short_turns=1,
    long_turns=1,
    histories=20,
)


class Told(Struct):
    """What is looked at of an answer."""

    changes: list[msgspec.Raw]
    applied: list[str] = []
    applied_relationships: list[str] = []
    cursor: str | None = None
    more: bool = False


_told = msgspec.json.Decoder(Told)


class Bench:
    """Files, servers and graphs, made when a scenario first asks for them and gone at the end."""

    def __init__(self, folder: Path, sizes: Sizes, say: Callable[[str], object]) -> None:
        self.folder = folder
        self.sizes = sizes
        self.say = say
        self._end = ExitStack()
        self._names = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def path(self, stem: str) -> Path:
        """A file that is not there yet."""
        return self.folder / f"{stem}-{next(self._names)}.db"

    @cached_property
    def server(self) -> Server:
        """The server that most scenarios share."""
        return self._end.enter_context(Server(self.path("server")))

    @cached_property
    def many(self) -> str:
        """A graph of `Sizes.many` entities with an edge each, on `server`."""
        self.fill("many", self.sizes.many)
        return "many"

    @cached_property
    def huge(self) -> Path:
        """The file of a server that holds `Sizes.huge` entities with an edge each, in the graph `_GRAPH`."""
        db = self.path("huge")
        with Server(db) as server:
            self.fill(_GRAPH, self.sizes.huge, server)
        return db

    def fill(self, graph: str, entities: int, server: Server | None = None) -> None:
        """Push a home of so many entities, with an edge each, into `graph`."""
        self.say(f"filling a graph with {entities:,} entities and as many edges")
        with (server or self.server).peer(graph) as peer:
            for changes in _chunks(data.home(entities), 10_000):
                assert len(_told.decode(peer.post(data.push(changes))).applied) == len(changes)

    def pulled(self, peer: Peer, bodies: list[bytes] | None = None) -> int:
        """Pull everything page by page, as our client does; how many rows there were."""
        cursor: str | None = None
        rows = 0
        while True:
            answer = peer.post(data.pull(cursor))
            told = _told.decode(answer)
            rows += _rows(told)
            cursor = told.cursor
            if bodies is not None:
                bodies.append(answer)
            if not told.more:
                return rows


class _Loose(Struct):
    entity: Any = None
    relationships: list[msgspec.Raw] = []


_loose = msgspec.json.Decoder(_Loose)


def _rows(told: Told) -> int:
    return sum((change.entity is not None) + len(change.relationships) for change in map(_loose.decode, told.changes))


def _chunks(changes: tuple[Any, ...], size: int) -> list[tuple[Any, ...]]:
    return [changes[start : start + size] for start in range(0, len(changes), size)]


# --- in this process ----------------------------------------------------------------------------------------------


def codec_decode(bench: Bench) -> list[Row]:
    """Gate and typed decode of a push, over plain msgspec decode of the same structs."""
    body = data.push(data.home(bench.sizes.message))
    limits, wire, plain = Limits(), load()[data.V2], msgspec.json.Decoder(v2.Request)

    def ours() -> None:
        gate(body, limits)
        wire.decode(body, limits=limits)

    values, floors = in_turns(bench.sizes.short_turns, *_often(5, ours, lambda: plain.decode(body)))
    note = f"CPU in this process; {len(body) / 1024:.0f} KiB, {bench.sizes.message:,} entities with an edge each"
    return [held_against("codec_decode", values, floors, unit="ms", scale=MS, most=3, note=note)]


def journal_write(bench: Bench) -> list[Row]:
    """Pushes of one row each, decided and committed with journal, ends and chain, over the same without any of them."""
    changes = [data.renamed(change, "journal-") for change in data.home(bench.sizes.commits)]
    batches = [data.renamed(change, "batch-") for change in data.home(max(bench.sizes.commits, 100))]

    def works(*pushes: tuple[Change, ...]) -> list[Callable[[], float]]:
        return [partial(_committed, bench.path("journal"), pushes, safe) for safe in (True, False)]

    ones = works(*((replace(change, relationships=()),) for change in changes))
    values, floors = in_turns(bench.sizes.short_turns, *ones)
    many = in_turns(bench.sizes.short_turns, *works(*_chunks(tuple(batches), 100)))
    ratio = held_against("", *many, unit="", most=1.5, note="").figure.ratio or 0.0
    note = (
        f"CPU in this process from the typed request to the end of its transaction, fsync included, without HTTP;"
        f" {len(changes):,} pushes, each a commit of one row; in pushes of 100 entities with an edge each {ratio:.2f}x"
    )
    return [held_against("journal_write", values, floors, unit="ms", scale=MS, most=1.5, note=note)]


def _committed(db: Path, pushes: tuple[tuple[Change, ...], ...], safe: bool) -> float:
    """CPU seconds that it takes to commit these pushes to a new database; without anything that tells that it was set
    back, unless it is to be `safe`."""
    db = db.with_name(f"{db.stem}-{time.monotonic_ns()}.db")
    context = Context(graph=_GRAPH, now=time.time_ns() // 1_000)

    async def commit(store: SqliteStore) -> None:
        for changes in pushes:
            request = SyncRequest(device="bench", user=data.USER, features=data.FEATURES, changes=changes)
            async with store.transaction(_GRAPH, write=True) as tx:
                told = await run(serve(request, context), tx)
            assert len(told.acks) == sum(1 + len(change.relationships) for change in changes)

    store = SqliteStore(db, journal=safe, heads=safe)
    with nullcontext() if safe else patch.object(engine, "next_chain", _unchained):
        used = own_cpu(lambda: asyncio.run(commit(store)))
    asyncio.run(store.close())
    return used


def _unchained(_chain: bytes, _hash: bytes) -> bytes:
    """The chain of a log that has none."""
    return START


def route(bench: Bench) -> list[Row]:
    """All that the router does with a push, over its gate and typed decode alone."""
    body = data.push(data.home(bench.sizes.message))
    limits, router, wire = Limits(), ProtocolFallback(), load()[data.V2]

    def decoded() -> None:
        gate(body, limits)
        wire.decode(body, limits=limits)

    values, floors = in_turns(bench.sizes.short_turns, *_often(5, lambda: router.route(body), decoded))
    note = "CPU in this process; the whole of `route`, over gate and typed decode of the same body"
    return [held_against("route", values, floors, unit="ms", scale=MS, most=1.2, note=note)]


def simulate(bench: Bench) -> list[Row]:
    """Small histories of the simulator, faults, codecs, engine, clients and all checks included."""
    histories = bench.sizes.histories
    turns = count()
    world = SimulatedWorld()

    def ours() -> float:
        first = next(turns) * histories
        seeds = range(first, first + histories)
        return MS * own_cpu(lambda: run_seeds(world, seeds, "small", 0)) / histories

    [values] = in_turns(bench.sizes.turns, ours)
    note = f"CPU in this process for one small history; mean of {histories:,}; 5 ms are 200 in a second"
    return [bounded("simulate", values, unit="ms", most=5, note=note)]


def negotiate(bench: Bench) -> list[Row]:
    """Choosing the version and saying so: a request's way through router, registry and headers, over decode alone."""
    body = data.push(data.home(bench.sizes.message)).replace(
        b'"sync_type"', b'"supported_versions":["inbetweenies-v2","inbetweenies-v1"],"sync_type"', 1
    )
    assert b"supported_versions" in body
    limits, router, wire = Limits(), ProtocolFallback(), load()[data.V2]
    asked = Asked(path="/api/v1/sync/", agent="blowing-off/1.0.0")

    def decoded() -> None:
        gate(body, limits)
        wire.decode(body, limits=limits)

    def negotiated() -> None:
        routed = router.route(body, asked)
        registry_headers(router.registry)
        version_headers(router.registry, routed.served, None)

    values, floors = in_turns(bench.sizes.short_turns, *_often(5, negotiated, decoded))
    note = (
        "CPU in this process; envelope, choice among two offered versions, decode, census and headers, over gate and "
        "typed decode of the same body"
    )
    return [held_against("negotiate", values, floors, unit="ms", scale=MS, most=1.2, note=note)]


def rollout_decisions(bench: Bench) -> list[Row]:
    """What each request is asked while something is rolled out: a feature, a bucket, and what its graph is offered."""
    rollouts = states.Rollouts().started(data.V2, cause=Cause(actor="ada", reason="a benchmark", at=0))
    for _ in range(4):
        fence = rollouts.of(data.V2).fence
        rollouts = rollouts.moved(data.V2, "advance", fence=fence, cause=Cause(actor="ada", reason="go on", at=0))
    orders = replace(NONE, rollouts=rollouts)
    pinned, registry = in_force(Document(), None), ProtocolFallback().registry
    graphs = [f"home-{number}" for number in range(500)]

    def ask(question: Callable[[str], object]) -> Callable[[], None]:
        def asked() -> None:
            for graph in graphs:
                question(graph)

        return asked

    questions = {
        "flag": lambda _: pinned.is_enabled("enhanced_sync"),
        "bucket": lambda graph: bucket(data.V2, graph, salt="1"),
        "offer": lambda graph: orders.registry(registry, graph),
    }
    works = _often(20, *(ask(question) for question in questions.values()))
    rows = []
    for name, values in zip(questions, in_turns(bench.sizes.short_turns, *works), strict=True):
        each = [1e6 * value / len(graphs) for value in values]
        note = f"CPU in this process for one answer, over {len(graphs)} graphs"
        most = 20 if name == "offer" else 2
        rows.append(bounded(f"rollout_decisions.{name}", each, unit="us", most=most, note=note))
    return rows


def _often(times: int, *works: Callable[[], object]) -> list[Callable[[], float]]:
    def often(work: Callable[[], object]) -> float:
        def repeated() -> None:
            for _ in range(times):
                work()  # and what it made is let go of before the next time, as a server does

        return own_cpu(repeated) / times

    return [partial(often, work) for work in works]


# --- the server's CPU ---------------------------------------------------------------------------------------------


def _server_cpu(server: Server, peer: Peer, work: Callable[[], object]) -> float:
    """CPU seconds of the server process that `work` costs it, what it does after it has answered included."""
    before = cpu_of(server.pid)
    work()
    peer.health()  # answered after whatever the server had to clear away
    return cpu_of(server.pid) - before


def push_10k(bench: Bench) -> list[Row]:
    """One push of everything, durable, over one `executemany` of the rows that it stored."""
    server, many = bench.server, bench.sizes.many
    body = data.push(data.home(many))
    graphs = count()

    def ours() -> float:
        with server.peer(f"push {next(graphs)}") as peer:
            peer.health()
            answers: list[bytes] = []
            used = _server_cpu(server, peer, lambda: answers.append(peer.post(body)))
        told = _told.decode(answers[0])
        assert (len(told.applied), len(told.applied_relationships)) == (many, many)
        return used

    ours()
    with closing(ServerFloor(server.db, "push 0", bench.path("floor"))) as floor:
        values, floors = in_turns(bench.sizes.turns, ours, floor.write)
    note = f"server process CPU; one message of {len(body) / MB:.1f} MB; floor: executemany of its {2 * many:,} rows"
    return [held_against("push_10k", values, floors, unit="ms", scale=MS, most=5, note=note)]


def pull_10k(bench: Bench) -> list[Row]:
    """A first pull, page by page as our client does it, over one bare SELECT of its rows."""
    server, many, graph = bench.server, bench.sizes.many, bench.many
    with server.peer(graph) as peer, closing(ServerFloor(server.db, graph, bench.path("floor"))) as floor:
        floor.write()
        paged = _pull_cpu(bench, peer)
        values, whole, floors = in_turns(bench.sizes.turns, paged, lambda: _whole_cpu(bench, peer), floor.read)
    worse = held_against("pull_10k", whole, floors, unit="ms", scale=MS, most=4, note="").figure
    note = (
        f"server process CPU; {2 * many:,} rows in pages of 1,000; as one answer to a deployed client"
        f" {worse.median:.0f} ms, {worse.ratio:.1f}x"
    )
    return [held_against("pull_10k", values, floors, unit="ms", scale=MS, most=4, note=note)]


def _pull_cpu(bench: Bench, peer: Peer) -> Callable[[], float]:
    def work() -> float:
        answers: list[bytes] = []
        used = _server_cpu(bench.server, peer, lambda: bench.pulled(peer, answers))
        assert sum(_rows(_told.decode(answer)) for answer in answers) == 2 * bench.sizes.many
        return used

    return work


def _whole_cpu(bench: Bench, peer: Peer) -> float:
    answers: list[bytes] = []
    body = data.pull(None, features=frozenset())
    used = _server_cpu(bench.server, peer, lambda: answers.append(peer.post(body)))
    assert _rows(_told.decode(answers[0])) == 2 * bench.sizes.many
    return used


def v1_full_10k(bench: Bench) -> list[Row]:
    """The same graph as v1 records, over pulling it page by page."""
    server, many, graph = bench.server, bench.sizes.many, bench.many
    with server.peer(graph) as peer:

        def ours() -> float:
            answers: list[bytes] = []
            used = _server_cpu(server, peer, lambda: answers.append(peer.post(data.PULL_V1)))
            assert len(_told.decode(answers[0]).changes) == many
            return used

        values, floors = in_turns(bench.sizes.turns, ours, _pull_cpu(bench, peer))
    note = f"server process CPU; {many:,} records of all types in one answer; floor: pull_10k in the same run"
    return [held_against("v1_full_10k", values, floors, unit="ms", scale=MS, most=3, note=note)]


def delta_10_in_100k(bench: Bench) -> list[Row]:
    """Ten edits pushed by one device and pulled by another, in a large graph over a small one."""
    server, sizes = bench.server, bench.sizes
    rounds = count(1)
    bench.fill("small", sizes.small)
    bench.fill("huge", sizes.huge)
    with server.peer("small") as small, server.peer("huge") as huge:
        works = [
            partial(_delta, bench, peer, list(data.home(entities)[-sizes.delta :]), _cursor(peer), rounds)
            for peer, entities in ((huge, sizes.huge), (small, sizes.small))
        ]
        values, floors = in_turns(sizes.turns, *works)
    note = f"server process CPU; {sizes.delta} edits pushed and pulled by cursor, mean of {_DELTAS} times"
    return [held_against("delta_10_in_100k", values, floors, unit="ms", scale=MS, most=1.5, note=note)]


_DELTAS: Final = 20


def _cursor(peer: Peer) -> list[str]:
    """The end of a graph, as a cursor in a list, to be moved on."""
    # A page of one row would do, but an answer to a push ends at the head as well and needs no walk there.
    told = _told.decode(peer.post(data.push((data.edited(data.home(1)[0], 0),))))
    while told.more:
        told = _told.decode(peer.post(data.pull(told.cursor)))
    assert told.cursor is not None
    return [told.cursor]


def _delta(bench: Bench, peer: Peer, edits: list[Any], cursor: list[str], rounds: Any) -> float:
    used = 0.0
    for _ in range(_DELTAS):
        edits[:] = [data.edited(change, next(rounds)) for change in edits]
        push, pull = data.push(tuple(edits), cursor=cursor[0]), data.pull(cursor[0])
        answers: list[bytes] = []
        used += _server_cpu(
            bench.server,
            peer,
            lambda: answers.extend((peer.post(push), peer.post(pull))),  # noqa: B023 - called at once
        )
        pushed, told = map(_told.decode, answers)
        assert len(pushed.applied) == len(told.changes) == len(edits)
        assert told.cursor is not None
        cursor[0] = told.cursor
    return used / _DELTAS


# --- client and server --------------------------------------------------------------------------------------------

_GRAPH: Final = "shared"


def sync_10k(bench: Bench) -> list[Row]:
    """One client pushes all it has, another one pulls it: CPU of both and of the server, durable everywhere."""
    many = bench.sizes.many
    seed = bench.path("seed")
    _seed(seed, many)
    last: list[Path] = []

    def ours() -> float:
        first, second = bench.path("first"), bench.path("second")
        shutil.copy(seed, first)
        last[:] = [second]
        with Server(bench.path("server")) as server, Client(first, server, _GRAPH) as one:
            with server.peer(_GRAPH) as peer:
                peer.health()
            with Client(second, server, _GRAPH) as other:
                pids = server.pid, one.pid, other.pid
                before = sum(map(cpu_of, pids))
                pushed, pulled = one.sync(), other.sync()
                used = sum(map(cpu_of, pids)) - before
            assert (pushed["pushed"], pulled["pulled"]) == (2 * many, 2 * many)
            assert (pushed["equal"], pulled["equal"]) == (True, True)
            last.append(server.db)
        return used

    ours()
    client = ClientFloor(seed, last[0])
    with closing(ServerFloor(last[1], _GRAPH, bench.path("floor"))) as server:

        def floor() -> float:
            first = bench.path("first")
            shutil.copy(seed, first)
            return client.push(first) + server.write() + server.read() + client.pull(bench.path("second"))

        values, floors = in_turns(max(bench.sizes.turns - 2, 1), ours, floor, warm=True)
    note = (
        f"CPU of two client processes and a server process; {2 * many:,} rows pushed by one client and pulled by the"
        " other; floor: what these three files read and write, one SELECT or one executemany for each table"
    )
    return [held_against("sync_10k", values, floors, unit="ms", scale=MS, most=8, note=note)]


def _seed(db: Path, entities: int) -> None:
    """A client's store with so many entities, and an edge each, that were never pushed."""
    with closing(LocalStore(db)) as store, store.transaction():
        store.put_state(State(device="seed", user=data.USER))
        changes = data.home(entities)
        store.write(copy_of(change.entity) for change in changes if change.entity is not None)
        store.write(copy_of(edge) for change in changes for edge in change.relationships)


def recover_170_of_10k(bench: Bench) -> list[Row]:
    """A server is set back to a backup, without a journal, and a client that saw what came later gives it back."""
    lost, many = bench.sizes.lost, bench.sizes.many
    db, first = bench.path("server"), bench.path("client")
    with Server(db, "--no-journal") as server:
        bench.fill(_GRAPH, many, server)
        _synced(server, first)
    besides: list[float] = []
    messages: list[float] = []
    told: list[str] = []
    edits = [data.edited(change, 1 + number) for number, change in enumerate(data.home(many)[-lost:])]
    rows = sum(len(body_of(change.entity)) for change in edits if change.entity is not None)
    for sessions in (1, 17, lost, 0):
        after, client = bench.path("server"), bench.path("client")
        shutil.copy(db, after)
        if sessions:
            shutil.copy(first, client)
        with Server(after, "--no-journal") as server, server.peer(_GRAPH) as peer:
            for changes in _chunks(tuple(edits), -(-lost // max(sessions, 1))):
                assert len(_told.decode(peer.post(data.push(changes))).applied) == len(changes)
                if sessions:
                    _synced(server, client)
            if not sessions:
                _synced(server, client)
        for end in ("", "-wal", "-shm"):
            after.with_name(f"{after.name}{end}").unlink(missing_ok=True)
        shutil.copy(db, after)
        with Server(after, "--no-journal") as server:
            report, size = _synced(server, client)
        assert (report.lost, report.offered, report.pulled, report.pending) == (lost, lost, 0, 0)
        assert (report.rewound, report.equal) == (True, True)
        besides.append((size - rows) / 1024)
        messages.append(float(report.messages))
        told.append(f"{besides[-1]:.1f} KB in {report.messages}" + ("" if sessions else " for its first sync"))
    note = (
        f"{lost} of {2 * many:,} rows, {rows / 1024:.0f} KB of them, both directions together, bodies without HTTP"
        f" headers, heard by the client in 1, 17 and {lost} syncs, and by one that came after the backup:"
        f" {', '.join(told)}"
    )
    return [
        bounded("recover_170_of_10k", [max(besides)], unit="KB", most=25, note=f"besides the rows, the worst; {note}"),
        bounded("recover_170_of_10k.messages", [max(messages)], unit="", most=4, note="there and back; the worst"),
    ]


def _synced(server: Server, db: Path) -> tuple[SyncReport, int]:
    """What one sync of the client in `db` reports, and how many bytes of bodies went over the wire for it."""

    async def synced() -> tuple[SyncReport, int]:
        async with HttpTransport(server.url, server.token(_GRAPH)) as http:
            counted = _Counted(http)
            async with BlowingOffClient(db, transport=counted, user=data.USER) as client:
                return await client.sync(), counted.size

    return asyncio.run(synced())


class _Counted:
    """A transport that counts the bytes of bodies."""

    def __init__(self, inner: HttpTransport) -> None:
        self.inner = inner
        self.size = 0

    async def post(self, path: str, body: bytes) -> bytes:
        answer = await self.inner.post(path, body)
        self.size += len(body) + len(answer)
        return answer

    async def get(self, path: str) -> bytes:
        return await self.inner.get(path)


# --- memory -------------------------------------------------------------------------------------------------------


def first_sync_100k(bench: Bench) -> list[Row]:
    """The first sync of a new client with a large graph: the peak of client and server over what they hold idle."""
    huge = bench.sizes.huge
    clients: list[float] = []
    servers: list[float] = []
    seconds: list[float] = []
    for _ in range(bench.sizes.long_turns):
        with Server(bench.huge) as server, Client(bench.path("client"), server, _GRAPH) as client:
            with server.peer(_GRAPH) as peer:
                peer.health()
            told: dict[str, Any] = {}
            peaks = _over_idle(
                (client, server),
                lambda client=client, told=told: seconds.append(wall(lambda: told.update(client.sync()))),  # type: ignore[misc]
            )
            assert (told["pulled"], told["equal"]) == (2 * huge, True)
            clients.append(peaks[0])
            servers.append(peaks[1])
    note = f"{2 * huge:,} rows in {min(seconds):.1f} s; peak resident memory over that of the idle process"
    return [
        bounded("first_sync_100k.client", clients, unit="MB", most=64, note=note),
        bounded("first_sync_100k.server", servers, unit="MB", most=64, note=note),
    ]


def _over_idle(processes: tuple[Process, ...], work: Callable[[], object]) -> list[float]:
    """The peak of each process while `work` runs, over what it has in memory before."""
    idle = [memory_of(process.pid, peak=False) for process in processes]
    for process in processes:
        forget_peak(process.pid)
    work()
    return [memory_of(process.pid, peak=True) - before for process, before in zip(processes, idle, strict=True)]


def deployed_full_100k(bench: Bench) -> list[Row]:
    """Everything in one answer to a v2 client without features: the server's peak over what it holds idle."""
    body = data.pull(None, features=frozenset())
    return [_full_answer(bench, "deployed_full_100k", body, lambda told: _rows(told) == 2 * bench.sizes.huge)]


def v1_full_100k(bench: Bench) -> list[Row]:
    """Everything in one answer to a v1 client: the server's peak over what it holds idle."""
    return [
        _full_answer(bench, "v1_full_100k", data.PULL_V1, lambda told: len(told.changes) == bench.sizes.huge),
    ]


def _full_answer(bench: Bench, name: str, body: bytes, is_whole: Callable[[Told], bool]) -> Row:
    servers: list[float] = []
    seconds: list[float] = []
    cpu: list[float] = []
    size = 0
    for _ in range(bench.sizes.long_turns):
        with Server(bench.huge) as server, server.peer(_GRAPH) as peer:
            peer.health()
            answers: list[bytes] = []

            def ask(peer: Peer = peer, answers: list[bytes] = answers) -> None:
                seconds.append(wall(lambda: answers.append(peer.post(body))))

            before = cpu_of(server.pid)
            servers += _over_idle((server,), ask)
            cpu.append(cpu_of(server.pid) - before)
            assert is_whole(_told.decode(answers[0]))
            size = len(answers[0])
    note = (
        f"peak resident memory of the server over that of the idle process; {size / MB:.0f} MB in one answer, in"
        f" {min(seconds):.1f} s and {min(cpu):.1f} s of its CPU"
    )
    return bounded(name, servers, unit="MB", most=64, note=note)


# --- latency and throughput ---------------------------------------------------------------------------------------


def backup_verify_100k(bench: Bench) -> list[Row]:
    """A backup of a large database, which is verified before it counts, against what SQLite itself does of that."""

    def made() -> float:
        file = bench.path("backup")
        seconds = wall(lambda: backup(bench.huge, file))
        for one in (file, manifest_of(file)):
            one.unlink()
        return seconds

    def floor() -> float:
        file = bench.path("copy")
        with closing(sqlite3.connect(bench.huge)) as source, closing(sqlite3.connect(file)) as copy:
            seconds = wall(lambda: source.backup(copy)) + wall(
                lambda: copy.execute("PRAGMA integrity_check").fetchall()
            )
        file.unlink()
        return seconds

    values, floors = in_turns(bench.sizes.turns, made, floor)
    size = bench.huge.stat().st_size / MB
    note = (
        f"wall; {2 * bench.sizes.huge:,} rows, {size:,.0f} MB: copied, on the disk, checksum, hashes, chains and"
        " digests computed again, and SQLite's checks; floor: SQLite's copy and integrity_check alone"
    )
    return [bounded("backup_verify_100k", values, unit="s", most=2, note=note, floors=floors)]


def idle_pull(bench: Bench) -> list[Row]:
    """A pull when there is nothing new, over the cheapest request that there is."""
    with bench.server.peer(bench.many) as peer:
        bodies: list[bytes] = []
        bench.pulled(peer, bodies)
        body = data.pull(_told.decode(bodies[-1]).cursor)
        answer = peer.post(body)
        assert not _told.decode(answer).changes
        times = 200 if bench.sizes.turns > 1 else 20

        def each(work: Callable[[], object]) -> float:
            return MS * sorted(wall(work) for _ in range(times))[times // 2]

        works = partial(each, lambda: peer.post(body)), partial(each, peer.health)
        values, floors = in_turns(bench.sizes.turns, *works)
    note = f"seen by the client, loopback, kept connection; the median of {times}, several times; floor: GET /health"
    size = float(len(answer))
    return [
        bounded("idle_pull", values, unit="ms", most=2, note=note, floors=floors),
        bounded("idle_pull.body", [size], unit="B", most=600, note="the answer's body; HTTP headers are not counted"),
    ]


def concurrent_push(bench: Bench) -> list[Row]:
    """Batches pushed into one graph by many clients at once, over the same number pushed by one client alone."""
    sizes, server = bench.sizes, bench.server
    rounds = count()
    changes = data.home(sizes.batch)

    def pushed(clients: int) -> float:
        """Changes a second."""
        stem = f"{next(rounds)}-"
        bodies = [
            data.push(tuple(data.renamed(change, f"{stem}{number}-") for change in changes))
            for number in range(sizes.batches)
        ]
        shares = [bodies[number::clients] for number in range(clients)]
        with ExitStack() as end, ThreadPoolExecutor(clients) as threads:
            peers = [end.enter_context(server.peer("crowd")) for _ in range(clients)]
            jobs = [(peer, share) for peer, share in zip(peers, shares, strict=True)]
            seconds = wall(lambda: answers.extend(threads.map(_posted, jobs)))
        assert sum(answers[-clients:]) == sizes.batches * sizes.batch
        return sizes.batches * sizes.batch / seconds

    answers: list[int] = []
    server.token("crowd")
    values, floors = in_turns(sizes.crowd_turns, lambda: pushed(sizes.clients), lambda: pushed(1))
    row = held_against("concurrent_push", values, floors, unit="changes/s", most=1, note="")
    ratio = row.figure.ratio or 0.0
    fields = {name: getattr(row.figure, name) for name in Figure.__struct_fields__} | {"target": ">= 1x"}
    note = (
        f"wall; {sizes.clients} connections, {sizes.batches} batches of {sizes.batch} changes with an edge each, one"
        " graph; floor: the same over one connection"
    )
    return [Row(figure=Figure(**fields), met=ratio >= 1, note=note)]


def _posted(job: tuple[Peer, list[bytes]]) -> int:
    peer, bodies = job
    return sum(len(_told.decode(peer.post(body)).applied) for body in bodies)


# --- connections that stay open -----------------------------------------------------------------------------------


def live_fanout_50(bench: Bench) -> list[Row]:
    """One push, until every connected device has heard it, over the same devices that each pull it by HTTP."""
    server, devices, rounds = bench.server, bench.sizes.devices, count(1)
    changes = [data.home(1)[0]]
    with server.peer("live") as writer, ExitStack() as end:
        cursor = _cursor(writer)
        peers = [end.enter_context(server.peer("live")) for _ in range(devices)]
        crowd = end.enter_context(live.Crowd(server.url, server.token("live"), devices, data.pull(cursor[0])))
        spent: list[list[float]] = [[], []]

        def pushed() -> str:
            changes[:] = [data.edited(changes[0], next(rounds))]
            body = data.push(tuple(changes), cursor=cursor[0])
            told = _told.decode(writer.post(body))
            assert (len(told.applied), told.cursor is None) == (1, False)
            before, cursor[0] = cursor[0], told.cursor or ""
            return before

        def measured(which: int, work: Callable[[], object]) -> float:
            before = cpu_of(server.pid)
            seconds = wall(work)
            spent[which].append(cpu_of(server.pid) - before)
            return seconds

        def heard() -> None:
            pushed()
            crowd.heard()

        def pulled() -> None:
            before = pushed()
            for peer in peers:
                assert 1 == len(_told.decode(peer.post(data.pull(before))).changes)

        def live_one() -> float:
            return measured(0, heard)

        def pull_one() -> float:
            # Nobody is connected meanwhile: the floor is the pulls alone.
            crowd.leave()
            seconds = measured(1, pulled)
            crowd.join(data.pull(cursor[0]))
            return seconds

        times = in_turns(bench.sizes.short_turns, live_one, pull_one)
    kept = [each[-len(times[0]) :] for each in spent]
    note = (
        f"one push heard by {devices} connected devices; floor: the push and {devices} delta pulls by HTTP, one by one"
    )
    return [
        held_against("live_fanout_50", *kept, unit="ms", scale=MS, most=1.5, note=f"server process CPU; {note}"),
        held_against("live_fanout_50.wall", *times, unit="ms", scale=MS, most=1.5, note=f"wall; {note}"),
    ]


def idle_sockets(bench: Bench) -> list[Row]:
    """What connections cost on which nothing happens: memory of the server, and its CPU."""
    idle = bench.sizes.idle
    with Server(bench.path("server")) as server:
        with server.peer("default") as peer:
            cursor = _cursor(peer)
        before = memory_of(server.pid, peak=False)
        with live.Crowd(server.url, server.token("default"), idle, data.pull(cursor[0])):
            used = memory_of(server.pid, peak=False) - before
            start = cpu_of(server.pid)
            seconds = wall(lambda: time.sleep(5 if idle > 100 else 1))
            share = 100 * (cpu_of(server.pid) - start) / seconds
    note = f"{idle:,} connections of one graph that have asked once"
    return [
        bounded("idle_sockets", [1024 * used / idle], unit="KB", most=50, note=f"resident memory each; {note}"),
        bounded("idle_sockets.cpu", [share], unit="%", most=10, note=f"of one core, tokens and news looked at; {note}"),
    ]


SCENARIOS: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    scenario.__name__: scenario
    for scenario in (
        codec_decode,
        journal_write,
        route,
        simulate,
        negotiate,
        rollout_decisions,
        push_10k,
        pull_10k,
        sync_10k,
        recover_170_of_10k,
        delta_10_in_100k,
        backup_verify_100k,
        idle_pull,
        v1_full_10k,
        first_sync_100k,
        deployed_full_100k,
        v1_full_100k,
        concurrent_push,
        live_fanout_50,
        idle_sockets,
    )
}
