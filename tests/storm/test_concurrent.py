"""Many writers and many readers of one graph at once: nothing is missed, and nothing is seen by half (laws 3 and 8).

Two server processes on one file. Every push of a writer adds some things that are never changed again and sets all
things of its group to one number. A reader that ever sees two numbers in a group has seen half of a push. Readers go by
what they are told: the naive time of the answer before (deployed v2), their own clock and an ack (v1), a cursor over
pages (ours). One that was told a time or a place in the log, and does not hold exactly the things that were there by
then, has missed a row; in the end each must hold all.
"""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from blowing_off import BlowingOffClient
from inbetweenies.model import format_time, make_version, parse_time
from inbetweenies.testing.fleet_clients import DeployedV2
from inbetweenies.testing.fleet_v1 import V1
from tests.server.calls import entity, sync, write
from tests.storm.clients import world
from tests.storm.log import lines
from tests.storm.processes import Peer, Server

ROWS: Final = int(os.environ.get("DEEP_EXAMPLES", "1000"))
GROUP: Final = 20
NEW: Final = 5
MODERN: Final[dict[str, Any]] = {"features": ["acks", "digest", "edges", "paging"], "page_rows": 1}


# --- writers ------------------------------------------------------------------------------------------------------


class Writer(ABC):
    """Pushes `pushes` times. `number` is that of its last push, `things` what it added and never changed again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        self.group = [f"{name}-g{n}" for n in range(GROUP)]
        self.things: list[str] = []

    def run(self, url: str, pushes: int) -> None:
        peer = Peer(url)
        for number in range(1, pushes + 1):
            things = [f"{self.name}-{number}-{n}" for n in range(NEW)]
            body = self.push(number, [*things, *self.group])
            while (status := (answered := peer.post(body))[0]) == 503:
                pass  # the others keep it busy; the same again
            assert status == 200, answered
            assert GROUP + NEW == len(answered[1]["applied"]), answered
            self.number = number
            self.things += things
        peer.close()

    @abstractmethod
    def push(self, number: int, ids: list[str]) -> dict[str, Any]:
        """A message that sets these to a number."""


class Rows(Writer):
    """Pushes rows, as deployed v2 clients do or as ours does."""

    def __init__(self, name: str, more: dict[str, Any]) -> None:
        super().__init__(name)
        self.more = {"device_id": name, "user_id": name, "sync_type": "delta", **more}

    def push(self, number: int, ids: list[str]) -> dict[str, Any]:
        old = {id_: [self.version(number - 1)] for id_ in self.group if number > 1}
        content = {"manufacturer": str(number)}
        rows = [
            entity(id_, self.version(number), content=content, user_id=self.name, parent_versions=old.get(id_, []))
            for id_ in ids
        ]
        return sync(*map(write, rows), **self.more)

    def version(self, number: int) -> str:
        return make_version(1_790_000_000_000_000 + number * 1_000_000, 0, self.name)


class Records(Writer):
    """Pushes v1 records."""

    def push(self, number: int, ids: list[str]) -> dict[str, Any]:
        changes = []
        for id_ in ids:
            data = {
                "id": id_,
                "name": id_,
                "manufacturer": str(number),
                "home_id": "home",
                "updated_at": format_time(1_790_000_000_000_000 + number * 1_000_000, naive=True),
            }
            changes.append(
                {
                    "entity_type": "accessory",
                    "entity_id": id_,
                    "operation": "update",
                    "data": data,
                    "client_sync_id": f"{id_}-{number}",
                }
            )
        return {"type": "sync_push", "client_id": self.name, "changes": changes}


# --- readers ------------------------------------------------------------------------------------------------------


class Reader(ABC):
    """Pulls again and again, and looks at every group each time.

    `told` holds for each pull the time or the seq up to which everything was told, and how many things are known then.
    """

    by: Literal["stamp", "seq"] = "stamp"

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.told: list[tuple[int, int]] = []

    def run(self, writers: Iterable[Writer], done: threading.Event) -> None:
        """Pull until a pull that began when all was written has ended."""
        last = False
        while not last:
            last = done.is_set()
            self.pull()
            for writer in writers:
                numbers = {self.number(id_) for id_ in writer.group}
                assert len(numbers) == 1, f"{type(self).__name__} sees half of a push of {writer.name}: {numbers}"
                [number] = numbers
                assert self.numbers.get(writer.name, 0) <= number, "time went back"
                self.numbers[writer.name] = number

    @abstractmethod
    def pull(self) -> None:
        """One whole pull."""

    @abstractmethod
    def number(self, id_: str) -> int:
        """The number of a thing here, 0 if it is not known."""

    @abstractmethod
    def close(self) -> None:
        """Let go of file and connection."""


class _Model(Reader):
    """A model of a deployed client, over HTTP."""

    client: DeployedV2 | V1

    def __init__(self, url: str) -> None:
        super().__init__()
        self.peer = Peer(url)

    def pull(self) -> None:
        while (body := self.client.say()) is not None:
            while (status := (answered := self.peer.post(body))[0]) == 503:
                pass  # the others keep it busy; the same again
            assert status == 200, answered
            self.client.hear(answered[1])
            if "changes" in answered[1]:
                told = parse_time(answered[1]["server_time"])
                assert told is not None
                self.told.append((told, self.known()))
            if not self.client.phase:
                return

    @abstractmethod
    def known(self) -> int:
        """How many things are known."""

    def close(self) -> None:
        self.peer.close()


class BySince(_Model):
    """Goes by the naive time of the answer before."""

    client: DeployedV2

    def __init__(self, name: str, url: str) -> None:
        super().__init__(url)
        self.client = DeployedV2(name, world(), user=name, skew=0)

    def known(self) -> int:
        return len(self.client.rows)

    def number(self, id_: str) -> int:
        row = self.client.rows.get(id_)
        return 0 if row is None else int(msgspec.json.decode(row.content)["manufacturer"])


class ByAck(_Model):
    """Goes by its own clock and what it has acknowledged."""

    client: V1

    def __init__(self, name: str, url: str) -> None:
        super().__init__(url)
        self.client = V1(name, world(), user=name, skew=0)

    def known(self) -> int:
        return len(self.client.records)

    def number(self, id_: str) -> int:
        record = self.client.records.get(("accessory", id_))
        return 0 if record is None else int(record["manufacturer"])


class ByCursor(Reader):
    """Our client, over pages."""

    by = "seq"

    def __init__(self, name: str, url: str, path: Path) -> None:
        super().__init__()
        self.client = BlowingOffClient(path, url, user=name, page_rows=30)
        self.loop = asyncio.Runner()

    def pull(self) -> None:
        report = self.loop.run(self.client.sync())
        assert (True, True) == (report.complete, report.equal)
        assert self.client.state.cursor is not None
        self.told.append((int(self.client.state.cursor.split(":")[1]), self.client.store.counts().entities))

    def number(self, id_: str) -> int:
        found = self.loop.run(self.client.get(id_))
        return 0 if found is None else int(msgspec.json.decode(found.content)["manufacturer"])

    def close(self) -> None:
        self.loop.run(self.client.close())
        self.loop.close()


# --- the storm ----------------------------------------------------------------------------------------------------


def in_threads(jobs: list[Any]) -> None:
    """Run them all at once; what one of them raises is raised."""
    failed: list[Exception] = []

    def safely(job: Any) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - it is raised where it is seen, in the main thread
            failed.append(error)

    threads = [threading.Thread(target=safely, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def storm(folder: Path, rows: int, bug: str = "") -> str:
    """Eight writers, eight readers, two servers. Figures."""
    path = folder / "server.db"
    with Server(path, bug=bug) as one, Server(path, bug=bug) as other:
        urls = [one.url, other.url]
        peer = Peer(one.url)
        assert 200 == peer.post(sync(write(entity("home", "v1", entity_type="home"))))[0]
        peer.close()
        writers: list[Writer] = [
            *(Rows(f"deployed-{n}", {}) for n in range(4)),
            *(Rows(f"modern-{n}", MODERN) for n in range(2)),
            *(Records(f"records-{n}") for n in range(2)),
        ]
        cursors = [ByCursor(f"cursor-{n}", urls[n % 2], folder / f"cursor-{n}.db") for n in range(3)]
        readers: list[Reader] = [
            *(BySince(f"since-{n}", urls[n % 2]) for n in range(3)),
            *(ByAck(f"ack-{n}", urls[n % 2]) for n in range(2)),
            *cursors,
        ]
        done = threading.Event()
        pushes = max(1, rows // (len(writers) * (GROUP + NEW)))

        def write_all() -> None:
            try:
                in_threads([lambda w=w, n=n: w.run(urls[n % 2], pushes) for n, w in enumerate(writers)])
            finally:
                done.set()

        try:
            in_threads([write_all, *(lambda r=r: r.run(writers, done) for r in readers)])
            missed = [
                (type(reader).__name__, id_)
                for reader in readers
                for writer in writers
                for id_ in writer.things
                if reader.number(id_) == 0
            ]
            assert [] == missed[:10], "a row was missed"
            assert [{writer.name: writer.number for writer in writers}] * 8 == [reader.numbers for reader in readers]
        finally:
            for reader in readers:
                reader.close()
    log = lines(path)
    made = len(log)
    assert made >= len(writers) * pushes * (GROUP + NEW)
    first = {line.id: line for line in reversed(log) if line.kind == "entity"}
    for reader in readers:
        came = sorted(getattr(line, reader.by) for line in first.values())
        assert [(told, bisect_right(came, told)) for told, _ in reader.told] == reader.told, "a row was missed"
    pulls = sum(len(reader.told) for reader in readers)
    return f"{made:,} rows by 8 writers, 8 readers in {pulls:,} pulls, 0 missed, 0 pushes seen by half"


def test_readers_beside_writers_miss_nothing_and_see_nothing_by_half(tmp_path: Path) -> None:
    print(f"figures: {storm(tmp_path, ROWS)}")
