"""Staying connected: real servers in processes of their own, and replicas in real files."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from blowing_off import BlowingOffClient
from blowing_off.live import Blocked, Event, SocketTransport
from blowing_off.transport import HttpTransport, Unauthorized
from tests.server.calls import GUARD_SECONDS, ROOT, V2, environment, running


@contextmanager
def serving(db: Path, port: int = 0) -> Iterator[str]:
    with running(["-m", "inbetweenies.cli", "serve", "--db", str(db), "--port", str(port), "--no-auth"]) as process:
        yield process.url


@pytest.fixture
async def guarded() -> AsyncIterator[None]:
    async with asyncio.timeout(GUARD_SECONDS):
        yield


async def until(events: AsyncIterator[Event], kind: str, **wanted: Any) -> Event:
    async for event in events:
        if event.kind == kind and all(getattr(event.report, name) == value for name, value in wanted.items()):
            return event
    raise AssertionError("the watch ended")


async def test_what_one_changes_the_other_sees_and_back(tmp_path: Path, guarded: None) -> None:
    with serving(tmp_path / "home.db") as url:
        async with (
            BlowingOffClient(tmp_path / "a.blow", url, user="ann") as ann,
            BlowingOffClient(tmp_path / "b.blow", url, user="bob") as bob,
            aclosing(ann.watch(look_s=0.02)) as hers,
            aclosing(bob.watch(look_s=0.02)) as his,
        ):
            await until(hers, "synced")
            await until(his, "synced")
            lamp = await ann.add("device", "Lamp", {"on": False})
            sent = await until(hers, "synced", pushed=1)
            heard = await until(his, "news")
            seen = await bob.get(lamp.id)
            await bob.change(lamp.id, patch={"on": True})
            await until(his, "synced", pushed=1)
            back = await until(hers, "news")
            now = await ann.get(lamp.id)

            assert (0, True) == (sent.report.pending, sent.report.equal)
            assert ((lamp.id,), (lamp.id,)) == (heard.changed, back.changed)
            assert seen == lamp
            assert now is not None
            assert b'{"on":true}' == bytes(now.content)
            assert (await ann.status()).digest == (await bob.status()).digest


async def test_news_that_do_not_go_on_from_here_are_left_and_a_sync_heals(tmp_path: Path, guarded: None) -> None:
    with serving(tmp_path / "home.db") as url:
        async with (
            BlowingOffClient(tmp_path / "a.blow", url) as ann,
            BlowingOffClient(tmp_path / "b.blow", url) as bob,
        ):
            await bob.sync()
            await ann.add("device", "First")
            await ann.sync()
            missed = bob.state.cursor
            live = await SocketTransport.open(bob.http(), bob.offer())
            body = await live.post("", json.dumps({**_asked(bob), "cursor": missed}).encode())
            await live.aclose()
            await ann.add("device", "Second")
            await ann.sync()

            assert None is bob.hear("0:0:0", body)
            assert [] == await bob.find()
            assert (await bob.sync()).equal
            assert ["First", "Second"] == sorted(entity.name for entity in await bob.find())


def _asked(client: BlowingOffClient) -> dict[str, Any]:
    return {
        "protocol_version": V2,
        "device_id": client.state.device,
        "user_id": "u",
        "sync_type": "delta",
        "changes": [],
        "features": ["acks", "digest", "edges", "paging"],
    }


async def test_it_survives_the_server_going_away_and_coming_back(tmp_path: Path, guarded: None) -> None:
    waits: list[float] = []

    async def no_wait(seconds: float) -> None:
        waits.append(seconds)
        await asyncio.sleep(0)

    async with BlowingOffClient(tmp_path / "a.blow", "http://127.0.0.1:1") as ann:
        with serving(tmp_path / "home.db") as url:
            port = int(url.rpartition(":")[2])
            await ann.connect(url)
            async with aclosing(ann.watch(look_s=0.02, sleep=no_wait)) as events:
                await until(events, "synced")
        async with aclosing(ann.watch(look_s=0.02, sleep=no_wait, uniform=lambda low, high: high)) as events:
            for _ in range(10):
                await until(events, "offline")
            made = await ann.add("room", "Kitchen")
            with serving(tmp_path / "home.db", port):
                back = await until(events, "synced")

    assert [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] == waits[:10]
    assert (1, 0, True) == (back.report.pushed, back.report.pending, back.report.equal)
    assert made.name == "Kitchen"


async def test_where_no_websocket_gets_through_it_goes_on_by_asking(
    tmp_path: Path, guarded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def blocked(http: HttpTransport, offer: tuple[str, ...]) -> SocketTransport:
        raise Blocked("something on the way lets none pass")

    async def no_wait(seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(SocketTransport, "open", blocked)
    with serving(tmp_path / "home.db") as url:
        async with (
            BlowingOffClient(tmp_path / "a.blow", url) as ann,
            BlowingOffClient(tmp_path / "b.blow", url) as bob,
            aclosing(ann.watch(sleep=no_wait)) as events,
        ):
            told = await until(events, "polling")
            await until(events, "synced")
            await bob.add("device", "Lamp")
            await bob.sync()
            await until(events, "synced", pulled=1)
            names = [entity.name for entity in await ann.find()]

    assert ("something on the way lets none pass", ["Lamp"]) == (told.reason, names)


async def test_what_is_changed_here_is_sent_while_there_is_always_news(
    tmp_path: Path, guarded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always(self: SocketTransport, seconds: float) -> tuple[str | None, bytes]:
        return "a cursor", b"{}"

    with serving(tmp_path / "home.db") as url:
        async with BlowingOffClient(tmp_path / "a.blow", url) as ann, aclosing(ann.watch()) as events:
            await until(events, "synced")
            monkeypatch.setattr(SocketTransport, "hear", always)
            monkeypatch.setattr(ann, "hear", lambda after, body: ("something",))
            await until(events, "news")
            await ann.add("device", "Lamp")
            await until(events, "synced", pushed=1)

            assert [] == await ann.pending()


async def test_a_sync_of_another_process_is_waited_for(tmp_path: Path, guarded: None) -> None:
    waits: list[float] = []
    with serving(tmp_path / "home.db") as url, ExitStack() as other:

        async def until_it_ends(seconds: float) -> None:
            waits.append(seconds)
            other.close()

        async with (
            BlowingOffClient(tmp_path / "a.blow", url) as ann,
            BlowingOffClient(tmp_path / "a.blow", url) as same,
            aclosing(ann.watch(sleep=until_it_ends)) as events,
        ):
            other.enter_context(same.store.syncing())
            await until(events, "synced")

    assert [1.0] == waits


async def test_it_connects_to_no_other_address_than_it_was_given(tmp_path: Path, guarded: None) -> None:
    came: list[int] = []

    async def elsewhere(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(1)
        writer.close()

    other = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]

    async def redirects(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        where = b"location: ws://127.0.0.1:%d/\r\ncontent-length: 0\r\n\r\n" % port
        writer.write(b"HTTP/1.1 302 Found\r\nconnection: close\r\n" + where)
        writer.close()

    server = await asyncio.start_server(redirects, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with other, server, BlowingOffClient(tmp_path / "a.blow", url, "ib1_secret") as ann:
        with pytest.raises(Blocked):
            await SocketTransport.open(ann.http(), ann.offer())

    assert [] == came


async def test_a_token_that_is_no_good_ends_it(tmp_path: Path, guarded: None) -> None:
    db = tmp_path / "home.db"
    with running(["-m", "inbetweenies.cli", "serve", "--db", str(db), "--port", "0"]) as process:
        async with BlowingOffClient(tmp_path / "a.blow", process.url, "ib1_nope") as ann:
            await ann.add("device", "Lamp")
            with pytest.raises(Unauthorized):
                await anext(aiter(ann.watch()))

            assert 1 == len(await ann.pending())


async def test_a_server_of_records_only_is_watched_by_asking(tmp_path: Path, guarded: None) -> None:
    async def no_wait(seconds: float) -> None:
        await asyncio.sleep(0)

    db = tmp_path / "home.db"
    with serving(db) as url:
        done = _cli("inbetweenies.cli", "versions", "disable", "--db", db, V2, "--yes")
        assert 0 == done.returncode, done.stderr
        async with (
            BlowingOffClient(tmp_path / "a.blow", url) as ann,
            aclosing(ann.watch(sleep=no_wait)) as events,
        ):
            synced = await until(events, "synced")

    assert "inbetweenies-v1" == synced.report.served


def test_the_command_prints_a_line_for_each_thing_that_happens(tmp_path: Path) -> None:
    store = tmp_path / "a.blow"
    with serving(tmp_path / "home.db") as url:
        assert 0 == _cli("blowing_off.cli", "--store", store, "connect", url).returncode
        with subprocess.Popen(
            [sys.executable, "-m", "blowing_off.cli", "--store", str(store), "watch", "--json"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(),
        ) as watching:  # fmt: skip
            assert watching.stdout is not None
            first = json.loads(watching.stdout.readline())
            assert 0 == _cli("blowing_off.cli", "--store", store, "add", "room", "Kitchen").returncode
            then = json.loads(watching.stdout.readline())
            watching.terminate()

    assert ["synced", "synced"] == [first["event"], then["event"]]
    assert 1 == then["report"]["pushed"]


def _cli(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, env=environment(), check=False,
    )  # fmt: skip
