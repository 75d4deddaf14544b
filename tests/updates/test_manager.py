"""`AutoUpdateManager`: what it asks, when, what it makes of any answer, and what it does then."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

import blowing_off
from blowing_off import AutoUpdateManager, BlowingOffClient
from blowing_off.store import LocalStore
from blowing_off.transport import Refused, Unreachable
from blowing_off.updates import install
from blowing_off.updates import manager as module
from blowing_off.updates.channel import Offer, Part, UpdateFailed
from blowing_off.updates.check import Compatible, ServerTooOld, Unknown, UpdateRecommended, UpdateRequired
from blowing_off.updates.decide import DAY_US, HOUR_US, Ask, Availability, Install, Nothing, Tell, UpdateNeeded, Wanted
from blowing_off.updates.install import Done, Site, Updater
from blowing_off.updates.layout import Layout
from blowing_off.updates.restart import UPDATED_VARIABLE
from blowing_off.updates.state import Receipt, UpdateRunning, updating
from inbetweenies.errors import LocalProtocolError, StoreError
from tests.client.test_transport import Act, Evil, answer, says, serving
from tests.support import NOW

PIP = Layout(kind="pip", what="by pip", how="`pip install --upgrade inbetweenies`")
DISTRO = Layout(kind="distribution", what="by the system", how="ask the system", why_not="it is the system's")
GOOD = {"service": "inbetweenies", "server_version": "1.0.0", "supported_versions": ["inbetweenies-v2"]}


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now


class Shelf:
    """A channel that is a list."""

    def __init__(self, *releases: str) -> None:
        self.releases = list(releases)
        self.asked: list[Wanted | str] = []

    def find(self, wanted: Wanted | str) -> Offer | Availability:
        self.asked.append(wanted)
        fitting = [one for one in self.releases if one == wanted or (isinstance(wanted, Wanted) and wanted.fits(one))]
        if not fitting:
            return Availability(release=None, reason="the shelf has none that fits")
        return Offer(release=fitting[-1], parts=(Part(name="inbetweenies", release=fitting[-1]),))

    def fetch(self, offer: Offer, folder: Path) -> None:
        raise UpdateFailed("fetch_failed", "the shelf is out of reach")

    def install(self, offer: Offer) -> None:
        raise AssertionError("nothing was fetched")


class Says:
    """A transport that answers one thing."""

    def __init__(self, body: Any = None) -> None:
        self.body = GOOD if body is None else body
        self.asked = 0

    async def get(self, path: str) -> bytes:
        self.asked += 1
        assert "/api/version" == path
        if isinstance(self.body, Exception):
            raise self.body
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with closing(LocalStore(tmp_path / "home.db")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of whoever runs this decides the outcome, and nothing here touches the environment that runs it."""
    monkeypatch.setattr(install, "here", lambda: Site(prefix=tmp_path, purelib=tmp_path, python=sys.executable))
    for name in (UPDATED_VARIABLE, module.POLICY_VARIABLE, "BLOWING_OFF_INDEX"):
        monkeypatch.delenv(name, raising=False)


def managed(http: Any = None, store: LocalStore | None = None, **fields: Any) -> AutoUpdateManager:
    plain: dict[str, Any] = {
        "clock": Clock(),
        "uniform": lambda low, high: (low + high) / 2,
        "layout": PIP,
        "channel": Shelf(),
        "asker": None,
        "running": "1.0.0",
    }
    return AutoUpdateManager("http://127.0.0.1:1", Says() if http is None else http, store=store, **(plain | fields))


# --- asking -------------------------------------------------------------------------------------------------------


async def test_a_content_server_means_that_nothing_is_done() -> None:
    manager = managed()

    outcome = await manager.run()

    assert (Compatible(), Nothing("compatible")) == (outcome.verdict, outcome.move)
    assert [] == manager.channel.asked  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ({**GOOD, "min_client_version": "1.1"}, UpdateRequired(minimum="1.1")),
        ({**GOOD, "latest_client_version": "1.1"}, UpdateRecommended(minimum="1.1")),
        ({**GOOD, "supported_versions": ["inbetweenies-v0"]}, ServerTooOld()),
        ({"server_version": "1.0.0"}, Compatible()),  # what an older server says
        ({"supported_versions": ["inbetweenies-v1"]}, Compatible()),
    ],
)
async def test_a_verdict_is_typed(body: Any, verdict: Any) -> None:
    assert verdict == await managed(Says(body)).check_for_updates()


PORTAL = answer(b"<html>Sign in</html>", kind="text/html")


async def slow(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await evil.request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
    await writer.drain()
    await asyncio.Event().wait()


async def endless(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await evil.request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


async def hangs_up(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await evil.request(reader)


HOSTILE: dict[str, tuple[Act, str]] = {
    "a login page": (says(PORTAL), "HTML"),
    "no such address": (says(answer(b'{"detail": "Not Found"}', status="404 Not Found")), "404"),
    "HTML that calls itself JSON": (says(answer(b"<html></html>")), "malformed_body"),
    "nothing at all": (says(answer(b"")), "malformed_body"),
    "another service": (says(answer(b'{"service": "weather", "version": "9"}')), "another service"),
    "another object": (says(answer(b'{"detail": "hello"}')), "what a server says of itself"),
    "somewhere else": (
        says(answer(b"{}", status="302 Found", location="http://elsewhere.example/api/version")),
        "another host",
    ),
    "a hundred megabytes, announced": (
        says(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 104857600\r\n\r\n"),
        "at most 65536 bytes",
    ),
    "bytes without end": (endless, "at most 65536 bytes"),
    "a server error": (says(answer(b"{}", status="500 Oops")), "500"),
    "hanging up": (hangs_up, "expected an answer"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("client", ["ours", "theirs"])
async def test_whatever_a_network_answers_a_check_is_unknown_and_says_why(name: str, client: str) -> None:
    act, why = HOSTILE[name]
    async with serving(act) as evil, httpx.AsyncClient(follow_redirects=True) as http:
        manager = AutoUpdateManager(evil.url, None if client == "ours" else http, asker=None, channel=Shelf())
        verdict = await manager.check_for_updates()

    assert isinstance(verdict, Unknown)
    assert why in verdict.reason
    assert 1 == len(evil.requests)
    assert b"authorization" not in evil.requests[0].lower()


async def test_a_server_that_is_slow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_S", 0.05)
    async with serving(slow) as evil:
        verdict = await AutoUpdateManager(evil.url, asker=None, channel=Shelf()).check_for_updates()

    assert isinstance(verdict, Unknown)
    assert "within 0.05 s" in verdict.reason


@pytest.mark.parametrize("error", [Unreachable("no network"), RuntimeError("theirs"), ValueError("\x1b[31m")])
async def test_a_transport_that_fails_in_any_way_is_unknown(error: Exception) -> None:
    assert isinstance(await managed(Says(error)).check_for_updates(), Unknown)


async def test_a_body_beyond_the_bound_is_refused_whoever_fetched_it() -> None:
    verdict = await managed(Says(json.dumps(GOOD).encode() + b" " * 100_000)).check_for_updates()

    assert isinstance(verdict, Unknown)


async def test_what_was_known_before_is_told_with_its_age_and_nothing_is_done() -> None:
    http, clock = Says({**GOOD, "min_client_version": "1.1"}), Clock()
    manager = managed(http, clock=clock)
    await manager.check_for_updates()
    http.body = Unreachable("no network")
    clock.now += HOUR_US

    outcome = await manager.run()

    assert isinstance(outcome.verdict, Unknown)
    assert ("update_required", 3600.0) == (outcome.verdict.last_known, outcome.verdict.age)
    assert isinstance(outcome.move, Nothing)


async def test_without_a_server_nothing_is_known() -> None:
    assert Unknown(reason="no server is known") == await AutoUpdateManager(None, asker=None).check_for_updates()


@pytest.mark.parametrize(
    ("server", "needs"),
    [("1.0.0", False), ("1.9", False), ("2.0.0", True), ("0.9", False), ("soon", False), ("", False)],
)
def test_a_servers_release_alone_asks_for_an_update_only_a_generation_ahead(server: str, needs: bool) -> None:
    assert needs == managed().requires_update(server)


def test_an_address_or_a_policy_that_is_none_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="expected the server's address"):
        AutoUpdateManager("not an address")
    with pytest.raises(ValueError, match="expected one of the policies"):
        AutoUpdateManager("http://127.0.0.1", policy="always")  # type: ignore[arg-type]


def test_it_is_public_and_loaded_when_it_is_used() -> None:
    assert {"AutoUpdateManager", "VersionMigration"} <= set(blowing_off.__all__)
    assert blowing_off.VersionMigration.__module__ == "blowing_off.migration"


# --- the policy ---------------------------------------------------------------------------------------------------


def test_the_policy_is_the_first_that_somebody_set(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [managed(store=store).policy, managed(store=store, asker=lambda *_: "later").policy]
    store.keep(update_policy="auto")
    seen.append(managed(store=store).policy)
    monkeypatch.setenv(module.POLICY_VARIABLE, " OFF ")
    seen.append(managed(store=store).policy)
    seen.append(managed(store=store, policy="notify").policy)
    monkeypatch.setenv(module.POLICY_VARIABLE, "sometimes")
    seen.append(managed(store=store).policy)

    assert ["notify", "prompt", "auto", "off", "notify", "auto"] == seen


# --- speaking -----------------------------------------------------------------------------------------------------


async def test_a_daemon_writes_one_line_into_its_log_and_not_again_that_day(
    store: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    manager = managed(Says({**GOOD, "min_client_version": "1.1"}), store, channel=Shelf("1.2.0"), clock=clock)
    with caplog.at_level(logging.WARNING):
        first = await manager.run()
        clock.now += DAY_US - 1
        second = await manager.run()
        clock.now += 1
        third = await manager.run()

    assert [Tell, Nothing, Tell] == [type(outcome.move) for outcome in (first, second, third)]
    lines = [record.getMessage() for record in caplog.records]
    assert 2 == len(lines)
    assert "1.2.0" in lines[0]
    assert "1.1 " not in lines[0]


async def test_a_program_answers_for_its_user_and_is_told_all(store: LocalStore) -> None:
    seen: list[tuple[UpdateNeeded, str]] = []

    def asker(needed: UpdateNeeded, text: str) -> Any:
        seen.append((needed, text))
        return "skip"

    manager = managed(
        Says({**GOOD, "latest_client_version": "1.1"}), store, channel=Shelf("1.1.0"), asker=asker, policy="prompt"
    )
    first, second = await manager.run(), await manager.run()

    assert "skip" == first.choice
    assert isinstance(first.move, Ask)
    assert Nothing("declined") == second.move
    [(needed, text)] = seen
    assert ("client", "1.0.0", "1.1", False, "1.1.0") == (
        needed.side,
        needed.have,
        needed.minimum,
        needed.required,
        needed.available.release,
    )
    assert "Nothing of yours waits to be sent" in text


async def test_without_anybody_to_ask_a_prompt_is_told_and_means_later() -> None:
    told: list[str] = []
    manager = managed(teller=told.append)
    needed = UpdateNeeded(
        side="client", have="1.0.0", minimum="1.1", required=True, available=Availability(release="1.1.0")
    )

    assert "later" == manager.prompt_update(needed)
    assert 1 == len(told)


async def test_what_another_process_said_today_is_not_said_again(store: LocalStore) -> None:
    told: list[str] = []
    for _ in range(2):
        body = {**GOOD, "min_client_version": "1.1"}
        await managed(Says(body), store, channel=Shelf("1.2.0"), teller=told.append).run()

    assert 1 == len(told)


async def test_how_it_was_installed_is_said_where_it_cannot_update_itself(store: LocalStore) -> None:
    told: list[str] = []
    manager = managed(
        Says({**GOOD, "min_client_version": "1.1"}), store, channel=Shelf("1.2.0"), layout=DISTRO, policy="auto",
        teller=told.append,
    )  # fmt: skip

    outcome = await manager.run()

    assert isinstance(outcome.move, Tell)
    assert "to update it: ask the system" in told[0]


async def test_where_no_tool_can_tell_what_there_is_no_release_is_named(store: LocalStore) -> None:
    told: list[str] = []
    manager = managed(
        Says({**GOOD, "min_client_version": "1.1"}), store, layout=DISTRO, channel=None, teller=told.append
    )

    await manager.run()

    assert "this program cannot ask where it came from" in told[0]
    assert "1.1" not in told[0]


async def test_a_folder_of_wheels_that_was_taken_away_does_not_fail_a_sync(store: LocalStore, tmp_path: Path) -> None:
    told: list[str] = []
    store.keep(update_from=str(tmp_path / "stick"))
    manager = managed(Says({**GOOD, "min_client_version": "1.1"}), store, channel=None, teller=told.append)

    outcome = await manager.run()

    assert isinstance(outcome.move, Tell)
    assert "the place that releases come from is not there" in told[0]


async def test_a_memory_that_cannot_be_written_does_not_stop_a_check(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = managed(Says({**GOOD, "min_client_version": "1.1"}), store, channel=Shelf("1.2.0"), teller=lambda _: None)

    def full(*_: Any) -> Any:
        raise StoreError("the disk is full")

    monkeypatch.setattr(manager.state, "change", full)

    assert isinstance((await manager.run()).move, Tell)


# --- updating -----------------------------------------------------------------------------------------------------


async def test_an_update_that_fails_is_told_and_everything_goes_on(store: LocalStore) -> None:
    told: list[str] = []
    manager = managed(
        Says({**GOOD, "min_client_version": "1.1"}), store, channel=Shelf("1.2.0"), policy="auto", teller=told.append
    )

    outcome = await manager.run()

    assert isinstance(outcome.move, Install)
    assert outcome.done is None
    assert outcome.failure == told[0]
    assert "the shelf is out of reach" in told[0]
    assert {"1.2.0": 1} == manager.state.read().memory.attempts


@pytest.mark.parametrize(("came_from", "move"), [("1.0.0", Tell), ("0.9", Install)])
async def test_an_update_that_changed_nothing_is_not_made_again_by_the_process_after_it(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, came_from: str, move: type
) -> None:
    monkeypatch.setenv(UPDATED_VARIABLE, came_from)
    body = {**GOOD, "min_client_version": "1.1"}
    manager = managed(Says(body), store, channel=Shelf("1.2.0"), policy="auto", teller=lambda _: None)

    assert move is type((await manager.run()).move)


def test_a_program_goes_on_as_the_release_that_was_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone: list[tuple[Any, ...]] = []

    def become(*given: Any) -> None:
        gone.append(given)
        raise SystemExit

    monkeypatch.setattr(os, "execve", become)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "their_daemon", "--port", "1"])

    with pytest.raises(SystemExit):
        managed().restart(Done(before="1.0.0", after="1.1.0", backup=tmp_path, pending=0))

    [(program, command, environment)] = gone
    assert [program, "-m", "their_daemon", "--port", "1"] == command
    assert "1.0.0" == environment[UPDATED_VARIABLE]


async def test_a_disk_that_is_full_ends_an_update_in_words(store: LocalStore) -> None:
    class Full(Shelf):
        def fetch(self, offer: Offer, folder: Path) -> None:
            raise OSError(28, "No space left on device")

    told: list[str] = []
    body = {**GOOD, "min_client_version": "1.1"}
    outcome = await managed(Says(body), store, channel=Full("1.2.0"), policy="auto", teller=told.append).run()

    assert outcome.failure == told[0]
    assert "No space left on device" in told[0]
    assert "Nothing was lost" in told[0]


def test_an_update_that_goes_on_elsewhere_is_not_taken_for_one_that_was_cut_off(
    store: LocalStore, tmp_path: Path
) -> None:
    updater = managed(store=store).updater()
    receipt = Receipt(before="1.0.0", after="1.1.0", format=2, folder=str(tmp_path / "no"), prefix=str(tmp_path))
    updater.state.change(lambda kept: replace(kept, touching=receipt))

    with updating(tmp_path), pytest.raises(UpdateRunning):
        updater.recover()

    assert receipt == updater.state.read().touching


def test_without_a_store_nothing_is_installed() -> None:
    with pytest.raises(UpdateFailed, match="expected a store"):
        managed().updater()


def test_a_store_in_memory_is_not_updated_away() -> None:
    with closing(LocalStore(":memory:")) as opened:
        updater = managed(store=opened).updater()
        with pytest.raises(UpdateFailed, match="got one in memory"):
            updater.update(Offer(release="2", parts=()), asked=True)


def test_what_belongs_to_others_is_left_alone(store: LocalStore) -> None:
    updater: Updater = managed(store=store, layout=DISTRO).updater()

    with pytest.raises(UpdateFailed, match=r"it was installed by the system.*To update it: ask the system"):
        updater.update(Offer(release="2", parts=()), asked=True)


# --- in the background --------------------------------------------------------------------------------------------


@asynccontextmanager
async def synced(tmp_path: Path, http: Says, outcome: Callable[[], Any]) -> AsyncIterator[Any]:
    """A client whose syncs end as `outcome` says, with a manager that hears of them."""

    class Peer:
        async def post(self, path: str, body: bytes) -> bytes:
            raise outcome()

        async def get(self, path: str) -> bytes:
            raise outcome()

    clock = Clock()
    client = BlowingOffClient(tmp_path / "home.db", transport=Peer())
    async with client, managed(http, client.store, clock=clock) as manager:
        client.after_sync = manager.after_sync
        yield client, manager, clock


async def test_a_check_follows_a_sync_in_the_background_once_a_day(tmp_path: Path) -> None:
    http = Says()
    async with synced(tmp_path, http, lambda: Refused(status=500, code="oops")) as (client, manager, clock):
        asked = []
        for wait in (0, 60 * 10**6, HOUR_US, HOUR_US - 1, 30 * HOUR_US):
            clock.now += wait
            with pytest.raises(Refused):
                await client.sync()
            asked.append(http.asked)  # the sync has ended, and nothing was asked yet
            await manager.ended()
            asked.append(http.asked)

    # After a refusal an hour is enough; within it nothing is asked.
    assert [0, 1, 1, 1, 1, 2, 2, 2, 2, 3] == asked


async def test_a_server_that_cannot_be_reached_is_not_asked(tmp_path: Path) -> None:
    http = Says()
    async with synced(tmp_path, http, lambda: Unreachable("no network")) as (client, manager, _):
        with pytest.raises(Unreachable):
            await client.sync()

        assert await manager.ended() is None
    assert 0 == http.asked


async def test_a_check_under_way_is_left_at_the_end() -> None:
    begun = asyncio.Event()

    class Never:
        async def get(self, path: str) -> bytes:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError(path)

    async with managed(Never()) as manager:
        manager.after_sync()
        manager.after_sync()  # one at a time
        await begun.wait()

    assert await manager.ended() is None


async def test_nothing_is_asked_where_updates_are_off() -> None:
    http = Says()
    manager = managed(http, policy="off")
    manager.after_sync()

    assert await manager.ended() is None
    assert 0 == http.asked


async def test_the_next_check_is_spread_over_a_fifth_of_a_day() -> None:
    nexts = []
    for share in (0.0, 0.5, 1.0):
        manager = managed(uniform=lambda low, high, share=share: low + (high - low) * share)
        await manager.check_for_updates()
        nexts.append(manager.state.read().memory.next_check - NOW)

    assert [DAY_US, DAY_US + DAY_US // 10, DAY_US + DAY_US // 5] == nexts


# --- the file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff" * 10, b" " * 300_000, b'{"memory": {"next_check": "x"}}'])
async def test_a_damaged_memory_is_begun_anew(store: LocalStore, damage: bytes) -> None:
    manager = managed(store=store)
    assert manager.state.path is not None
    manager.state.path.write_bytes(damage)

    assert manager.state.read().memory.due(NOW)
    await manager.check_for_updates()
    assert "compatible" == manager.state.read().memory.verdict
    assert 0o600 == manager.state.path.stat().st_mode & 0o777


def test_what_two_processes_remember_at_once_is_both_remembered(store: LocalStore) -> None:
    one, other = managed(store=store).state, managed(store=store).state
    one.read(), other.read()
    one.change(lambda kept: replace(kept, memory=kept.memory.declined("1.1")))
    other.change(lambda kept: replace(kept, memory=kept.memory.declined("1.2")))

    assert ("1.1", "1.2") == one.read().memory.skipped


async def test_a_folder_in_place_of_the_file_is_a_store_error(store: LocalStore) -> None:
    manager = managed(store=store)
    assert manager.state.path is not None
    manager.state.path.mkdir()

    with pytest.raises(StoreError, match="expected to write"):
        manager.state.change(lambda kept: kept)
    assert Compatible() == await manager.check_for_updates()
