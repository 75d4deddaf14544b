"""What is done in a drill, in its order. Read `hold`."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from inbetweenies.errors import InbetweeniesError, LocalProtocolError
from inbetweenies.ops.backup import backup
from inbetweenies.ops.channels import FileChannel
from inbetweenies.ops.flags import FeatureFlags
from inbetweenies.ops.manifest import Manifest
from inbetweenies.ops.notify import UserNotification
from inbetweenies.ops.restore import restore
from inbetweenies.ops.rollouts import RolloutControl
from inbetweenies.ops.verify import verify
from inbetweenies.rollout.canary import Bar, NotYet
from inbetweenies.rollout.flags import Feature
from inbetweenies.rollout.notices import Notice, of_rollback
from inbetweenies.rollout.states import WHOLE, Rollout
from inbetweenies.stores.keeper import run_now

from ..demo.basics import V1, V2
from . import audit
from .basics import LOOK_S, STEPS
from .crew import Crew
from .findings import Findings
from .home import furnish, keep
from .site import Site

ROUNDS_MAX: Final = 8  # of everybody syncing once, in the end; two or three are enough
ACTOR: Final = "drill"

#: A step that has nothing to show: there is no wait, and nobody has to have been served.
OPEN: Final = Bar(wait_us=0, sessions=0, pushes=0, pulls=0, conflicts=0)


class Drill:
    """One drill, on a site whose processes are not started yet.

    Args:
        tell: is told what is done now, in words.
    """

    def __init__(self, site: Site, crew: Crew, findings: Findings, tell: Callable[[str], None]) -> None:
        self.site = site
        self.crew = crew
        self.ledger = crew.ledger
        self.settings = site.settings
        self.findings = findings
        self.tell = tell
        self.told_of: list[Notice] = []  # what was taken back so far
        self.proven = Bar(wait_us=0, sessions=site.settings.sessions, pushes=1, pulls=1, conflicts=1)

    async def hold(self) -> None:
        """The whole drill."""
        self.tell(f"starting {len(self.site.servers)} server processes on {self.site.rows:,} rows")
        await self.site.start()
        await self.crew.move_in()
        try:
            self.findings.began = time.monotonic()
            async with self.crew.at_work():
                await self.baseline()
                manifest = await self.back_up()
                await self.roll_out()
                await self.fail()
                await self.edit_as_before()
                await self.roll_forward()
                await self.flip()
                await self.fire()
                await self.take_back()
                await self.edit_as_before()
                if manifest is not None:
                    await self.put_back(manifest)
            self.findings.ended = time.monotonic()
            await self.settle()
        finally:
            await self.crew.close()
            await self.site.stop()

    # --- before anything is changed

    async def baseline(self) -> None:
        """Everybody has synced a few times, and what only the newer version can say was said."""
        self.tell("everybody syncs, and goes on doing so")
        if self.findings.own_home:
            await furnish(self.crew.at_home)
        await self.crew.turned(1)
        self.findings.rows = self.site.rows or sum(self.site.counts().values())
        for client in self.crew.ours:
            await keep(client)
        await self.crew.turned(self.settings.turns)

    async def back_up(self) -> Manifest | None:
        """A backup while everybody writes, verified, and compared with what it is a backup of."""
        self.tell("making a backup, and verifying it")
        path = self.site.folder / "backup.db"
        try:
            await asyncio.to_thread(backup, self.site.db, path)
            verdict = await asyncio.to_thread(verify, path)
        except InbetweeniesError as error:
            self.findings.backup = str(error)
            return None
        strays = [] if verdict.manifest is None else await audit.strays(self.site.store, verdict.manifest)
        self.findings.backup = (
            f"{verdict.kind}: {'; '.join(verdict.problems)}"
            if not verdict.good
            else f"what it holds of {', '.join(strays)} was never there" if strays else "good"
        )  # fmt: skip
        return verdict.manifest

    # --- a rollout

    async def roll_out(self) -> None:
        """To the canary graph, by evidence, and on to half of all."""
        self.tell(f"rolling {V2} out: shadow, then the canary graph")
        await self.start()
        await self.advance(OPEN)
        await self.advance(self.proven)

    async def start(self) -> None:
        """A new rollout, which reaches nobody yet."""
        control, _ = self.site.controllers(OPEN)
        known = self.site.rollouts().rollouts.get(V2)
        if known is not None and not known.over:  # it was under way in the original
            await asyncio.to_thread(control.rollback, V2, actor=ACTOR, reason="the drill begins")
        allow = [self.site.graphs.canary]
        await asyncio.to_thread(control.start, V2, steps=STEPS, allow=allow, actor=ACTOR, reason="drill")

    async def advance(self, bar: Bar) -> bool:
        """One step on, which two controllers take at once, as soon as there is the evidence for it. Whether it came to
        that."""
        before = self.rollout
        resumed, since = False, time.monotonic()
        while time.monotonic() - since < self.settings.patience_s:
            rollout = self.rollout
            if rollout.id != before.id or rollout.over:
                self.findings.stuck = f"it is {rollout.state}, without having been told to be"
                return False
            if rollout.state == "held":
                self.findings.stuck = f"it was held: {rollout.log[-1].cause.reason}"
                if resumed:
                    return False
                # Once may be chance, as it is on a busy machine; what is really worse is found again.
                await asyncio.to_thread(self.site.controllers(bar)[0].resume, V2, actor=ACTOR, reason="drill")
                resumed = True
            elif await self._both_advance(rollout, bar):
                self.findings.stuck = ""
                return True
            await asyncio.sleep(LOOK_S)
        return False

    async def _both_advance(self, rollout: Rollout, bar: Bar) -> bool:
        together = threading.Barrier(2)

        def step(control: RolloutControl) -> str:
            together.wait(self.settings.patience_s)
            try:
                control.advance(V2, fence=rollout.fence, actor=ACTOR, reason="drill")
            except LocalProtocolError as error:
                return f"it lacks {', '.join(error.missing)}" if isinstance(error, NotYet) else str(error)
            return ""

        refusals = await asyncio.gather(*(asyncio.to_thread(step, one) for one in self.site.controllers(bar)))
        advanced = refusals.count("")
        if advanced:
            self.findings.advances.append(advanced)
        else:
            self.findings.stuck = refusals[0]
        return advanced > 0

    @property
    def rollout(self) -> Rollout:
        return self.site.rollouts().of(V2)

    # --- it does harm

    async def fail(self) -> None:
        """The graphs that the rollout reaches first fail; nobody tells the servers what to do about that."""
        self.tell("making the canary graph fail, and waiting for the rollout to be taken back by itself")
        canary, before = self.site.graphs.canary, self.rollout
        if before.over:
            return

        async def taken_back() -> bool:
            return self.rollout.over

        since = time.monotonic()
        with self.ledger.failing([canary]), self.site.failing(canary):
            by_itself = await self.site.comes_about(taken_back, since)
        self.findings.by_itself = by_itself
        done = time.monotonic()
        if by_itself is None:
            self.tell("it was not; taking it back by command, to go on")
            await asyncio.to_thread(self.site.controllers(OPEN)[0].rollback, V2, actor=ACTOR, reason="drill")
            return
        self.findings.why = self.rollout.log[-1].cause.reason
        await self._taken_back(done)

    async def _taken_back(self, since: float) -> None:
        self.findings.in_effect.append(await self.site.in_effect(dict.fromkeys(self.site.graphs, V1), since))
        await self._informed(V1, since)
        await self._notified(since)

    async def _notified(self, since: float) -> None:
        """Whom it had reached is told that it was taken back, and whoever else is not."""
        notice = of_rollback(self.rollout)
        if notice is None:
            return
        self.told_of.append(notice)
        concerned = [one for one in self.crew.ours if notice.concerns(one.graph)]

        async def told() -> bool:
            return all(one.shown(notice.id) for one in concerned)

        await self.site.comes_about(told, since)
        for one in concerned:
            shown = one.shown(notice.id)
            self.findings.notified.append(shown[0][0] - since if shown else None)

    def nagged(self) -> list[str]:
        """Who was shown of a rollback what did not concern it, or what it was shown before: that it is being looked at,
        and that data is safe, are one time each."""
        found = []
        for notice in self.told_of:
            for one in self.crew.ours:
                shown = [safe for _, safe in one.shown(notice.id)]
                if (shown and not notice.concerns(one.graph)) or len(set(shown)) != len(shown):
                    found.append(one.name)
        return found

    async def fire(self) -> None:
        """Every channel once. That of a drill is a file."""
        people = UserNotification(self.site.store, channels=[FileChannel(self.site.folder / "calls.jsonl")])
        down = [one.channel for one in await asyncio.to_thread(people.test) if one.error]
        self.findings.channels = ", ".join(down) or "all"

    async def _informed(self, version: str, since: float) -> None:
        async def told() -> bool:
            return all(self.ledger.told(one.name, version, since) is not None for one in self.crew.ours)

        if await self.site.comes_about(told, since) is None:
            self.findings.informed.append(None)
        else:
            self.findings.informed += [self.ledger.told(one.name, version, since) for one in self.crew.ours]

    async def edit_as_before(self) -> None:
        """Clients of the old version edit what only the newer one can say all of."""
        self.tell("old clients edit what new ones have said more about")
        await self.crew.turned(self.settings.turns)

    # --- once more, to everybody

    async def roll_forward(self) -> None:
        """A new rollout, to everybody."""
        self.tell(f"rolling {V2} out again, to everybody")
        await self.start()
        for bar in (OPEN, OPEN, self.proven):  # to the canary graph, to half of all, to all
            if self.rollout.share < WHOLE and not await self.advance(bar):
                return
        since = time.monotonic()
        wanted = dict.fromkeys(self.site.graphs, V2)
        if await self.site.in_effect(wanted, since) is None:
            self.findings.stuck = "not every process serves it to every graph"
            return
        self.findings.reached = self.rollout.share == WHOLE
        await self._informed(V2, since)

    async def flip(self) -> None:
        """Everybody to the old version and back, again and again, with one switch."""
        self.tell(f"switching everybody to {V1} and back, {self.settings.flips} times")
        flags = FeatureFlags(self.site.store)
        back = self.wanted()
        self.findings.flipping = (time.monotonic(), float("inf"))
        for _ in range(self.settings.flips):
            done = await self._flipped(flags.disable, dict.fromkeys(self.site.graphs, V1))
            done = await self._flipped(flags.enable, back) and done
            if not done:
                break
        self.findings.flipping = (self.findings.flipping[0], time.monotonic())

    def wanted(self) -> dict[str, str]:
        """What each graph should be served now, by what the rollout says."""
        rollout = self.rollout
        return {
            graph: V2 if rollout.share or (graph == self.site.graphs.canary and rollout.state == "ramp") else V1
            for graph in self.site.graphs
        }

    async def _flipped(self, switch: Callable[..., None], wanted: Mapping[str, str]) -> bool:
        since = time.monotonic()
        await asyncio.to_thread(switch, Feature.ENHANCED_SYNC, actor=ACTOR, reason="drill")
        self.findings.switched.append(time.monotonic() - since)
        took = await self.site.in_effect(dict(wanted), since)
        self.findings.flips.append(took)
        await self.crew.breathe()
        return took is not None

    async def take_back(self) -> None:
        """By command."""
        self.tell("taking the rollout back by command")
        control, _ = self.site.controllers(OPEN)
        since = time.monotonic()
        done = await asyncio.to_thread(control.rollback, V2, actor=ACTOR, reason="drill")
        if done.after.state == "rolled_back":
            self.findings.by_command = time.monotonic() - since
            people = UserNotification(self.site.store)  # as `inbetweenies rollout rollback` does
            await asyncio.to_thread(lambda: run_now(people.notify_rollback()))
        await self._taken_back(since)

    # --- the last rung

    async def look_before_restore(self) -> None:
        """What was acknowledged so far is there, and what only the newer version can say. Nobody serves just now."""
        acked = list(self.ledger.acked)
        self.findings.acked = len(acked)
        self.findings.lost = await audit.lost(self.site.store, acked)
        self.findings.forgotten = await audit.forgotten(self.site.store, self.ledger.kept())
        self.site.leave()

    async def put_back(self, manifest: Manifest) -> None:
        """The backup in the place of the database, under everybody who goes on writing; then two syncs of each."""
        self.tell("restoring the backup, and waiting for what it lacks")
        path = self.site.folder / "backup.db"
        with self.ledger.failing():
            await self.site.stop()
            await self.look_before_restore()
            try:
                await asyncio.to_thread(restore, path, self.site.db)
                placed = audit.placed(self.site.db)
                self.findings.restored = (
                    "good" if placed == manifest.graphs else "what is there now is not what the backup holds"
                )
            except InbetweeniesError as error:
                self.findings.restored = str(error)
            self.findings.at_risk = len(self.ledger.acked)
            await self.site.start()
        await self.crew.turned(2)

    # --- the end

    async def give_all(self) -> None:
        """The newer version to everybody, whatever the backup says: only in that can all be said."""
        known = self.site.rollouts().rollouts.get(V2)
        if known is None or not known.governs:
            return
        await self.start()
        control, _ = self.site.controllers(OPEN)
        while self.rollout.state != "full":
            await asyncio.to_thread(control.advance, V2, actor=ACTOR, reason="the drill ends")

    async def settle(self) -> None:
        """Nobody edits any more; everybody syncs until all is said. Then all is looked up."""
        self.tell("everybody syncs until all is said; looking each write up")
        await self.give_all()
        for member in self.crew.members:
            member.busy = False
        for _ in range(ROUNDS_MAX):
            for member in self.crew.members:
                await member.turn()
            self.findings.replicas = await self.crew.compare(self.site.store)
            if all(one.equal for one in self.findings.replicas):
                break
        self.findings.nagged = self.nagged()
        acked = list(self.ledger.acked)
        self.findings.acked = len(acked)
        known = set(map(id, self.findings.lost))
        at_risk = set(map(id, acked[: self.findings.at_risk or 0]))
        for one in await audit.lost(self.site.store, acked):
            if id(one) not in known:
                (self.findings.lost_by_restore if id(one) in at_risk else self.findings.lost).append(one)
        again = await audit.forgotten(self.site.store, self.ledger.kept())
        self.findings.forgotten += [one for one in again if one not in self.findings.forgotten]
