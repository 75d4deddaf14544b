"""What the drill is held on: a copy of a database, server processes on it, and whoever runs them."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self, TypeVar

import httpx
from msgspec import Struct

from inbetweenies.errors import StoreError
from inbetweenies.model import Document
from inbetweenies.ops.backup import backup
from inbetweenies.ops.manifest import manifest_of
from inbetweenies.ops.rollouts import RolloutControl
from inbetweenies.rollout.canary import Bar, bucket
from inbetweenies.rollout.states import DOCUMENT as ROLLOUTS
from inbetweenies.rollout.states import Rollouts, rollouts_in
from inbetweenies.store import Store
from inbetweenies.stores import SqliteStore
from inbetweenies.stores.keeper import run_now
from inbetweenies.stores.placing import told
from inbetweenies.stores.schema import FOREVER

from ..demo.basics import SYNC, V1, V2, Record
from ..demo.clients import bearer
from ..demo.server import Server
from .basics import CANARY, CONTROL, HOME, LOOK_S, STEPS, Settings

T = TypeVar("T")

#: Names a version that nobody ever serves and offers both, so that the answer is in what comes first for its graph. It
#: asks for nothing.
PROBE: Final[Record] = {
    "protocol_version": "inbetweenies-v2570",
    "supported_versions": [V2, V1],
    "device_id": "drill-probe",
    "user_id": "drill-probe",
    "client_id": "drill-probe",
    "type": "sync_request",
    "last_sync": None,
    "entity_types": ["nothing"],
    "sync_type": "full",
    "filters": {"entity_types": ["nothing"]},
    "changes": [],
    "features": ["paging"],
    "page_rows": 1,
}
_COUNT: Final = "SELECT name, (SELECT count(*) FROM log WHERE log.graph = graphs.graph AND until = ?) FROM graphs"


class Graphs(Struct, frozen=True, kw_only=True):
    """The graphs in which clients write: one that a rollout reaches first, one that it reaches last, and the largest of
    those that were there before."""

    canary: str
    control: str
    home: str

    def __iter__(self) -> Iterator[str]:
        return iter((self.canary, self.control, self.home))


class Site:
    """A folder with a database, which several processes serve.

    Attributes:
        rows: how many rows were current in all graphs when it was moved in.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.db = folder / "drill.db"
        self.switch = folder / "switch"
        self.rows = 0
        self.servers: list[Server] = []
        self.graphs = Graphs(canary=CANARY, control=CONTROL, home=HOME)
        self._stores: list[SqliteStore] = []
        self._probes: dict[str, str] = {}
        self._http: list[httpx.AsyncClient] = []

    # --- before and after

    def move_in(self, db: Path | None) -> None:
        """Copy the database at `db`, or make an empty one. The original is only read.

        Raises:
            StoreError: it cannot be copied, is damaged, or is none of ours.
        """
        if db is None:
            run_now(SqliteStore(self.db).close())
        else:
            copy_of(db, self.db)
        counts = self.counts()
        self.rows = sum(counts.values())
        known = run_now(self._opened().document(ROLLOUTS))
        serial = 1 + (rollouts_in(known).rollouts[V2].serial if V2 in rollouts_in(known).rollouts else 0)
        home = max(counts, key=lambda name: (counts[name], name), default=HOME)
        names = [name for name in _names(CONTROL, counts) if all(_last(name, serial + next_) for next_ in range(3))]
        self.graphs = Graphs(canary=next(iter(_names(CANARY, counts))), control=names[0], home=home)

    def counts(self) -> dict[str, int]:
        """How many rows are current in each graph."""
        with closing(sqlite3.connect(self.db)) as connection:
            return dict(connection.execute(_COUNT, (FOREVER,)).fetchall())

    def __enter__(self) -> Self:
        for number, module in enumerate(self.settings.processes, 1):
            arguments = (*module, str(self.switch))
            self.servers.append(Server(self.folder, db=self.db, module=arguments, name=f"server-{number}"))
        self._probes = {graph: self.token("drill-probe", graph) for graph in self.graphs}
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()
        for server in self.servers:
            server.stop()

    def leave(self) -> None:
        """Close the database here."""
        for store in self._stores:
            run_now(store.close())
        self._stores.clear()

    async def start(self) -> None:
        """Start all processes, at once, as whoever supervises them does."""
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in self.servers))
        self._http = [httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) for url in self.urls]

    async def stop(self) -> None:
        """End all processes, in order, and close the database here."""
        for http in self._http:
            await http.aclose()
        self._http = []
        self.leave()
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in self.servers))

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def token(self, user: str, graph: str) -> str:
        """A token for a graph of the copy."""
        return self.servers[0].token(user, graph)

    # --- whoever runs it

    def _opened(self) -> SqliteStore:
        # As the command line opens it: journal and ends of logs are the servers' business.
        store = SqliteStore(self.db, journal=False, heads=False)
        self._stores.append(store)
        return store

    @property
    def store(self) -> Store:
        """The database, as the command line opens it; a new one with each call after `leave`."""
        return self._stores[0] if self._stores else self._opened()

    def controllers(self, bar: Bar) -> tuple[RolloutControl, RolloutControl]:
        """Two who know nothing of one another."""
        while len(self._stores) < 2:
            self._opened()
        return RolloutControl(self._stores[0], bar=bar), RolloutControl(self._stores[1], bar=bar)

    def rollouts(self) -> Rollouts:
        """As they are in the store now."""
        document: Document = run_now(self.store.document(ROLLOUTS))
        return rollouts_in(document)

    @contextmanager
    def failing(self, *graphs: str) -> Iterator[None]:
        """While this lasts, every process fails every request of these graphs."""
        beside = self.switch.with_suffix(".new")
        beside.write_text("\n".join(graphs))
        beside.rename(self.switch)
        try:
            yield
        finally:
            self.switch.unlink()

    # --- what is served

    async def serves(self, process: int, graph: str) -> str | None:
        """The version in which a process answers a stranger of this graph who speaks both; None without an answer."""
        try:
            answer = await self._http[process].post(SYNC, json=PROBE, headers=bearer(self._probes[graph]))
        except httpx.HTTPError:
            return None
        return answer.headers.get("inbetweenies-version") if answer.status_code == 200 else None

    async def in_effect(self, wanted: dict[str, str], since: float) -> float | None:
        """How long after `since` every process served each of these graphs in this version; None if that took longer
        than anybody waits."""
        open_ = {(process, graph) for process in range(len(self.servers)) for graph in wanted}

        async def look() -> bool:
            asked = sorted(open_)
            served = await asyncio.gather(*(self.serves(process, graph) for process, graph in asked))
            open_.difference_update(
                one for one, version in zip(asked, served, strict=True) if version == wanted[one[1]]
            )
            return not open_

        return await self.comes_about(look, since)

    async def comes_about(self, look: Callable[[], Coroutine[Any, Any, bool]], since: float) -> float | None:
        """How long after `since` this became true; None if that took longer than anybody waits."""
        while True:
            if await look():
                return time.monotonic() - since
            if time.monotonic() - since > self.settings.patience_s:
                return None
            await asyncio.sleep(LOOK_S)


def copy_of(db: Path, copy: Path) -> None:
    """A verified copy of a database, be it in use or not. Nothing is written to it or beside it.

    Raises:
        StoreError: there is none, or it cannot be read, or is damaged.
    """
    if not db.exists():
        raise StoreError(f"expected a database at {db}; got no file: see --db")
    with TemporaryDirectory(dir=copy.parent) as folder:
        source = db
        if not db.with_name(f"{db.name}-shm").exists():
            # Nobody has it open, and SQLite would leave files beside it if we did.
            source = Path(folder, db.name)
            for end in ("", "-wal"):
                with told(f"copy {db}"), suppress(FileNotFoundError):
                    shutil.copyfile(f"{db}{end}", f"{source}{end}")
        try:
            backup(source, copy)
        except StoreError as error:
            raise StoreError(str(error).replace(str(source), str(db))) from error
    manifest_of(copy).unlink()


def _last(graph: str, serial: int) -> bool:
    """Whether the rollout with this serial reaches `graph` only when it reaches all."""
    return bucket(V2, graph, salt=str(serial)) >= STEPS[-1]


def _names(start: str, taken: dict[str, int]) -> Iterator[str]:
    return (name for number in range(1, 1000) if (name := f"{start}-{number}") not in taken)
