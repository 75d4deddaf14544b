"""All clients of a drill, at work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import httpx

from inbetweenies.model import DIGEST_BITS, SEQ_MAX, Reads, Span
from inbetweenies.store import Store

from ..client import BlowingOffClient
from ..demo.ledger import Clock
from ..transport import HttpTransport
from .balancer import Balancer
from .clients import Deployed, Member, Ours, Records
from .findings import Compared
from .ledger import Ledger
from .site import Site

ROWS_AT_ONCE: Final = 2_000  # of a graph that is counted
AFTER_FAILURE_S: Final = 0.2  # who is refused comes back later, or nobody else gets to do anything


class Crew:
    """In the canary graph and in the control graph a client of each kind; at home, where there is more, an old one and
    one of ours."""

    def __init__(self, site: Site, ledger: Ledger) -> None:
        self.site = site
        self.ledger = ledger
        self.clock = Clock()
        self.members: list[Member] = []

    async def move_in(self) -> None:
        """Make them. The servers listen."""
        canary, control, home = self.site.graphs
        for graph, place in ((canary, "canary"), (control, "control"), (home, "home")):
            self.members.append(self._records(f"{place}-phone", graph))
            if graph != home:
                self.members.append(self._deployed(f"{place}-hub", graph))
            self.members.append(self._ours(f"{place}-tablet", graph))

    @property
    def ours(self) -> list[Ours]:
        """Those that speak both versions."""
        return [one for one in self.members if isinstance(one, Ours)]

    @property
    def at_home(self) -> Ours:
        return next(one for one in self.ours if one.graph == self.site.graphs.home)

    def _http(self, name: str, graph: str) -> httpx.AsyncClient:
        balancer = Balancer(name, graph, self.site.urls, self.ledger)
        return httpx.AsyncClient(base_url=self.site.urls[0], transport=balancer, timeout=30)

    def _records(self, name: str, graph: str) -> Records:
        token = self.site.token(name, graph)
        return Records(name, graph, self.ledger, http=self._http(name, graph), token=token, clock=self.clock)

    def _deployed(self, name: str, graph: str) -> Deployed:
        token = self.site.token(name, graph)
        return Deployed(name, graph, self.ledger, http=self._http(name, graph), token=token, clock=self.clock)

    def _ours(self, name: str, graph: str) -> Ours:
        balancer = Balancer(name, graph, self.site.urls, self.ledger)
        token = self.site.token(name, graph)
        transport = HttpTransport(self.site.urls[0], token, tries_max=1, http=balancer)
        path = self.site.folder / f"{name}.blow"
        client = BlowingOffClient(path, transport=transport, user=name, device=name, clock=self.clock)
        return Ours(name, graph, self.ledger, client=client, transport=transport)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """While this lasts, everybody edits and syncs, again and again."""
        over = asyncio.Event()
        tasks = [asyncio.create_task(self._work(member, over)) for member in self.members]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)

    async def _work(self, member: Member, over: asyncio.Event) -> None:
        while not over.is_set():
            well = await member.turn()
            await asyncio.sleep(self.site.settings.pause_s if well else AFTER_FAILURE_S)

    async def turned(self, times: int) -> bool:
        """Wait until everybody has synced so many times more; whether they did while anybody waited."""
        before = {one.name: one.turns for one in self.members}

        async def done() -> bool:
            return all(one.turns >= before[one.name] + times for one in self.members)

        return await self.site.comes_about(done, time.monotonic()) is not None

    async def breathe(self) -> None:
        """Let some requests through."""
        before = len(self.ledger.requests)

        async def done() -> bool:
            return len(self.ledger.requests) >= before + len(self.members)

        await self.site.comes_about(done, time.monotonic())

    async def compare(self, store: Store) -> list[Compared]:
        """Each replica beside its graph."""
        found = []
        for one in self.ours:
            waiting = len(await one.client.pending())
            found.append(
                Compared(
                    name=one.name,
                    waiting=waiting,
                    told=one.report is not None and one.report.equal is True,
                    digest=await one.digest(),
                    server=await digest_in(store, one.graph),
                )
            )
        return found

    async def close(self) -> None:
        """Let go of everything."""
        for member in self.members:
            await member.close()


async def digest_in(store: Store, graph: str) -> str:
    """Of what is current in a graph, counted anew from the rows (PROTOCOL 4.8)."""
    total, after = 0, 0
    async with store.transaction(graph, write=False) as tx:
        while rows := (await tx.read(Reads(span=Span(after=after, upto=SEQ_MAX, rows=ROWS_AT_ONCE)))).span:
            total += sum(int.from_bytes(row.hash, "big") for row in rows)
            after = rows[-1].seq
    return f"{total % (1 << DIGEST_BITS):064x}"
