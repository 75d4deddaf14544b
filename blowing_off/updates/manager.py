"""`AutoUpdateManager`: asks the server, asks the channel, speaks to people, and updates, as far as it is allowed to.

A check never raises and is never on the way to anything: it is made after a sync, in the background, at most once a
day. What a server says decides what is *said*; what is installed comes from the channel that this program came from,
and is newer than what runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Literal, NoReturn, Protocol, Self

import httpx
from msgspec import Struct
from msgspec.structs import replace
from packaging.version import Version

from inbetweenies import __version__
from inbetweenies.errors import InbetweeniesError, LocalProtocolError, RemoteProtocolError, clip
from inbetweenies.wire import load

from ..store import LocalStore
from ..transport import HttpTransport, Refused, TransportError, origin_of
from ..values import wall_clock
from .channel import PLACE_VARIABLE, Channel, Offer, Place, UpdateFailed, channel_for, place_of
from .check import DISCOVERY_PATH, TOLD_BYTES_MAX, Unknown, Verdict, judge, read_told, release_of, too_old
from .decide import Ask, Availability, Install, Move, Policy, Tell, UpdateNeeded, decide, kind_of, wanted_for
from .detect import look
from .install import Done, Server, Updater, describe
from .layout import Layout, classify
from .prompt import Asker, Choice, ask, attended, explain
from .restart import UPDATED_VARIABLE, Restart, go_on
from .state import StateFile

logger = logging.getLogger(__name__)

CHECK_S: Final = 3.0  # a server that has just answered a sync answers this in milliseconds
POLICIES: Final[tuple[Policy, ...]] = ("off", "notify", "prompt", "auto")
POLICY_VARIABLE: Final = "BLOWING_OFF_UPDATES"
POLICY_SETTING: Final = "update_policy"
PLACE_SETTING: Final = "update_from"


class Getter(Protocol):
    """What a check needs of a transport."""

    async def get(self, path: str) -> bytes:
        """See `transport.Transport.get`."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a check: the verdict, what was done about it, and the update if there was one."""

    verdict: Verdict
    move: Move
    choice: Choice | None = None
    done: Done | None = None
    failure: str | None = None


class _Bounded(HttpTransport):
    """An application's own HTTP client, held to our bounds: nothing of it is used but its connections."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        super().__init__(url, insecure=True, timeout_s=CHECK_S, tries_max=1, **_BOUNDS)
        self._client = client

    async def aclose(self) -> None:
        """It belongs to the application."""


_BOUNDS: Final[dict[str, Any]] = {"wire_bytes_max": TOLD_BYTES_MAX, "decoded_bytes_max": TOLD_BYTES_MAX}


class AutoUpdateManager:
    """Keeps the release that uses `store` current with the server at `server_url`.

    Args:
        server_url: the server's address; without one, nothing is known of it.
        http_client: reaches it: a transport of ours, or an `httpx.AsyncClient`; by default a connection without token.
        policy: ``off``, ``notify`` (say so), ``prompt`` (ask) or ``auto`` (update); by default ``prompt`` where
            somebody can answer, else ``notify``.
        store: what is updated with the program; without one nothing is installed, and nothing is remembered for long.
        asker: asks a person; by default on the terminal, if there is one; None if nobody can answer.
        teller: tells a person; by default the log.
        channel: where releases come from; by default what this program was installed from.
        layout: how it was installed; by default what can be seen.
        server: what an update is tested with.
        clock, uniform: microseconds since 1970, and a random number between two.
    """

    def __init__(
        self,
        server_url: str | None,
        http_client: Getter | httpx.AsyncClient | None = None,
        policy: Policy | None = None,
        *,
        store: LocalStore | None = None,
        asker: Asker | Literal["terminal"] | None = "terminal",
        teller: Callable[[str], None] | None = None,
        channel: Channel | None = None,
        layout: Layout | None = None,
        server: Server | None = None,
        clock: Callable[[], int] = wall_clock,
        uniform: Callable[[float, float], float] = random.uniform,
        running: str = __version__,
    ) -> None:
        if server_url is not None:
            origin_of(server_url)  # refuses what is no address
        if policy is not None and policy not in POLICIES:
            raise ValueError(f"expected one of the policies {', '.join(POLICIES)}; got another")
        self.server_url = server_url
        self.running = running
        self.store = store
        self.state = StateFile(":memory:" if store is None else store.path)
        self._http = http_client
        self._asker = (ask if attended() else None) if asker == "terminal" else asker
        self._policy = policy
        self._teller = teller or logger.warning
        self._channel = channel
        self._layout = layout
        self._server = server
        self._clock = clock
        self._uniform = uniform
        self._offer: Offer | None = None
        self._task: asyncio.Task[Outcome] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- settings -------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """The first of: what was given, the environment, the store's setting, and what fits the place."""
        kept = None if self.store is None else self.store.setting(POLICY_SETTING)
        for name in (self._policy, os.environ.get(POLICY_VARIABLE, "").strip().lower(), kept):
            for policy in POLICIES:
                if policy == name:
                    return policy
        return "prompt" if self._asker is not None else "notify"

    @property
    def layout(self) -> Layout:
        """How this program was installed."""
        if self._layout is None:
            self._layout = classify(look())
        return self._layout

    @property
    def channel(self) -> Channel | None:
        """Where releases come from, if a tool is there that can tell."""
        if self._channel is None:
            self._channel = channel_for(self.layout, self.place)
        return self._channel

    @property
    def place(self) -> Place:
        """The first of: the environment's, the store's setting, and what the tool itself is set up for."""
        kept = None if self.store is None else self.store.setting(PLACE_SETTING)
        return place_of(os.environ.get(PLACE_VARIABLE) or kept)

    # --- the two questions ----------------------------------------------------------------------------------------

    def requires_update(self, server_version: str) -> bool:
        """Whether a server of this release needs a newer client than this one, by the numbers alone.

        That is so if it is a generation ahead. What is no release number needs nothing: nothing is known of it.
        """
        server = release_of(server_version)
        return server is not None and too_old(self._version, server)

    @property
    def _version(self) -> Version:
        return release_of(self.running) or Version("0")

    async def check_for_updates(self) -> Verdict:
        """Ask the server whether it is content with this release. Never raises: what fails is `Unknown`, and sync
        goes on."""
        verdict = await self._judged()
        now = self._clock()
        if isinstance(verdict, Unknown):
            memory = self.state.read().memory
            age = None if memory.judged_at is None else max(0, now - memory.judged_at) / 1_000_000
            verdict = replace(verdict, last_known=memory.verdict, age=age)
            logger.info("whether %s needs another release is not known: %s", self.server_url, verdict.reason)
        jitter = self._uniform(0, 1)
        told = verdict
        with _logged():
            self.state.change(lambda kept: replace(kept, memory=kept.memory.checked(told, now, jitter=jitter)))
        return verdict

    async def _judged(self) -> Verdict:
        if self.server_url is None:
            return Unknown(reason="no server is known")
        try:
            # The transport has its own deadline; one that was handed in may have none.
            async with asyncio.timeout(CHECK_S):
                body = await self._get(self.server_url)
        except TimeoutError:
            return Unknown(reason=f"the server did not answer within {CHECK_S:g} s")
        except (TransportError, RemoteProtocolError) as error:
            return Unknown(reason=clip(str(error), 300))
        except Exception as error:  # noqa: BLE001 - a client that was handed in can raise anything, and a check must not
            return Unknown(reason=f"the HTTP client failed with {type(error).__name__}")
        try:
            told = read_told(body)
        except RemoteProtocolError as error:
            return Unknown(reason=clip(str(error), 300))
        spoken = [name for name, wire in load().items() if hasattr(wire, "ask") or wire.rank == 1]
        return judge(told, running=self._version, spoken=spoken)

    async def _get(self, url: str) -> bytes:
        if isinstance(self._http, httpx.AsyncClient):
            return await _Bounded(url, self._http).get(DISCOVERY_PATH)
        if self._http is not None:
            body = await self._http.get(DISCOVERY_PATH)
            return body[: TOLD_BYTES_MAX + 1]  # longer is refused as too long
        insecure = self._server is not None and self._server.insecure
        async with HttpTransport(url, insecure=insecure, timeout_s=CHECK_S, tries_max=1, **_BOUNDS) as http:
            return await http.get(DISCOVERY_PATH)

    def available(self, verdict: Verdict) -> Availability | None:
        """What the channel delivers that would help; None if nothing from it would. May take a while."""
        wanted = wanted_for(verdict, self.state.read().memory, self.running)
        self._offer = None
        if wanted is None:
            return None
        try:
            channel = self.channel
        except LocalProtocolError as error:  # a folder that is not there now, as on a stick that was taken out
            logger.info("%s", error)
            return Availability(release=None, reason="the place that releases come from is not there", failed=True)
        if channel is None:
            return Availability(release=None, reason="this program cannot ask where it came from")
        found = channel.find(wanted)
        if isinstance(found, Availability):
            return found
        self._offer = found
        return Availability(release=found.release)

    # --- what follows ---------------------------------------------------------------------------------------------

    async def run(self) -> Outcome:
        """Check, and do what is to be done about it: nothing, say so, ask, or update.

        After an update `Outcome.done` is set: this process still is the old release, and should restart.
        """
        verdict = await self.check_for_updates()
        return await self.follow(verdict)

    async def follow(self, verdict: Verdict) -> Outcome:
        """Do what is to be done about `verdict`."""
        memory = self.state.read().memory
        if self.policy == "off" or wanted_for(verdict, memory, self.running) is None:
            available = None
        else:
            available = await asyncio.to_thread(self.available, verdict)
        move = decide(
            verdict,
            available,
            memory,
            running=self.running,
            policy=self.policy,
            attended=self._asker is not None,
            automatic=self._may_install,
            now=self._clock(),
        )
        logger.debug("updates: %s, so %s", kind_of(verdict), type(move).__name__)
        if isinstance(move, Install):
            return await self._install(verdict, move)
        if isinstance(move, Ask):
            choice = self.prompt_update(move.needed)
            if choice == "update" and self._may_install:
                return await self._install(verdict, move, choice)
            return Outcome(verdict=verdict, move=move, choice=choice)
        if isinstance(move, Tell):
            self._teller(explain(move.needed, self.layout, self._pending))
            self._spoke(move.needed)
        return Outcome(verdict=verdict, move=move)

    @property
    def _may_install(self) -> bool:
        # An update after which the old release still runs is not made again by that one, whatever it finds.
        stuck = os.environ.get(UPDATED_VARIABLE) == self.running
        return self.store is not None and self.layout.automatic and not stuck

    @property
    def _pending(self) -> int:
        return 0 if self.store is None else self.store.counts().pending

    def prompt_update(self, needed: UpdateNeeded) -> Choice:
        """Ask a person, and remember the answer. Without anybody to ask it is told, and the answer is ``later``."""
        text = explain(needed, self.layout, self._pending)
        self._spoke(needed)
        if self._asker is None:
            self._teller(text)
            return "later"
        choice = self._asker(needed, text)
        release, now = needed.available.release, self._clock()
        if choice == "later":
            self.state.change(lambda kept: replace(kept, memory=kept.memory.snoozed(now)))
        elif choice == "skip" and release is not None:
            self.state.change(lambda kept: replace(kept, memory=kept.memory.declined(release)))
        return choice

    def _spoke(self, needed: UpdateNeeded) -> None:
        # Before it is said: better once too little than every time because a disk is full.
        now = self._clock()
        with _logged():
            self.state.change(lambda kept: replace(kept, memory=kept.memory.spoke(needed, now)))

    async def _install(self, verdict: Verdict, move: Ask | Install, choice: Choice | None = None) -> Outcome:
        assert self._offer is not None
        try:
            done = await asyncio.to_thread(self.updater().update, self._offer, asked=choice is not None)
        except InbetweeniesError as error:
            self._teller(str(error))
            return Outcome(verdict=verdict, move=move, choice=choice, failure=str(error))
        self._teller(describe(done))
        return Outcome(verdict=verdict, move=move, choice=choice, done=done)

    def updater(self) -> Updater:
        """What changes this installation."""
        if self.store is None:
            raise UpdateFailed("no_file", "expected a store that is updated with the program; none was given")
        return Updater(self.store, self.state, self.layout, self.channel, server=self._server, running=self.running)

    def restart(self, done: Done) -> NoReturn:
        """Become the release that was installed, with the arguments of this process. Close stores before."""
        go_on(Restart(None, done.before))

    # --- in the background ----------------------------------------------------------------------------------------

    def after_sync(self, error: BaseException | None = None) -> None:
        """Begin a check in the background if one is due; returns at once. Call it when a sync has ended.

        `error` is what the sync ended with: a server that refused may have asked for another release.
        """
        running = self._task is not None and not self._task.done()
        refused = isinstance(error, Refused | RemoteProtocolError)
        if error is not None and not refused:
            return  # a server that cannot be reached cannot be asked
        if running or self.policy == "off" or not self.state.read().memory.due(self._clock(), refused=refused):
            return
        self._task = asyncio.get_running_loop().create_task(self.run())

    async def ended(self) -> Outcome | None:
        """The outcome of the check that is under way, when it is there; None if there is none."""
        if self._task is None:
            return None
        try:
            return await self._task
        finally:
            self._task = None

    async def close(self) -> None:
        """Leave a check that is under way."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None


@contextmanager
def _logged() -> Iterator[None]:
    """What cannot be remembered is no reason to fail: it is logged."""
    try:
        yield
    except InbetweeniesError as error:
        logger.warning("%s", error)
