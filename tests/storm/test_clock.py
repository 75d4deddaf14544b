"""A server whose clock steps back, stands still and leaps: stamps rise, and `since` stays exact (law 8).

Whatever the clock does, a reader that goes by the time of the answer before is told exactly what was pushed since, and
one that goes by its own clock and an ack no less.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inbetweenies import engine
from inbetweenies.model import Context, Plan, SyncRequest, SyncResponse, format_time, parse_time
from inbetweenies.router import ProtocolFallback
from inbetweenies.store import Store
from inbetweenies.stores.memory import MemoryStore
from inbetweenies.stores.sqlite import SqliteStore
from tests.server.calls import entity, sync, write
from tests.support import NOW, SECOND, run

DAY: Final = 86_400 * SECOND
STEPS: Final = (0, 1, -1, 999, -1000, SECOND, -SECOND, DAY, -DAY, 3650 * DAY, -3650 * DAY)
IDS: Final = ("a", "b", "c")

#: What happens next: the clock steps, then somebody pushes these, or a reader pulls, or the server starts anew.
EVENTS: Final = st.lists(
    st.tuples(
        st.sampled_from(STEPS),
        st.one_of(
            st.lists(st.sampled_from(IDS), min_size=1, max_size=3, unique=True),
            st.sampled_from(("since", "records", "restart")),
        ),
    ),
    max_size=30,
)


class Served:
    """A server, and what each reader has not been told yet."""

    def __init__(self, store: Store) -> None:
        self.now = NOW
        self.version = 0
        self.current: dict[str, str] = {}
        self.stamp = -1
        self.since: str | None = None
        self.last_sync: str | None = None
        self.syncs = 0
        self.unseen: dict[str, set[str]] = {"since": set(), "records": set()}
        self.use(store)

    def use(self, store: Store) -> None:
        """Serve from here on from `store`."""
        self.store = store
        self.router = ProtocolFallback(store, clock=lambda: self.now)

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """One message."""
        answer = run(self.router.handle_sync_request(body))
        assert "error" not in answer
        return answer

    def push(self, ids: list[str], type_: str = "device") -> None:
        """A commit of rows that follow those before; its time is after that of every answer so far."""
        self.version += 1
        changes = []
        for id_ in ids:
            parents = [self.current[id_]] if id_ in self.current else []
            self.current[id_] = f"v{self.version}"
            changes.append(write(entity(id_, self.current[id_], entity_type=type_, parent_versions=parents)))
            for unseen in self.unseen.values():
                unseen.add(id_)
        told = parse_time(self.ask(sync(*changes, device_id="writer"))["server_time"])
        assert told is not None
        assert self.stamp < told
        self.stamp = told

    def pull_since(self) -> None:
        """A deployed v2 client, to the letter: what it was told as `server_time` is its next `since`, naive."""
        more: dict[str, Any] = {} if self.since is None else {"sync_type": "delta", "filters": {"since": self.since}}
        answer = self.ask(sync(**more))
        told = [change["entity"]["id"] for change in answer["changes"]]

        assert sorted(self.unseen["since"]) == sorted(told)
        assert {id_: self.current[id_] for id_ in told} == {
            change["entity"]["id"]: change["entity"]["version"] for change in answer["changes"]
        }
        self.unseen["since"].clear()
        micros = parse_time(answer["server_time"])
        assert micros is not None
        assert micros == max(self.stamp, 0)
        self.since = format_time(micros, naive=True)

    def pull_records(self) -> None:
        """A v1 client, whose clock knows nothing of the server's steps."""
        types = ["homes", "accessories"]
        answer = self.ask(
            {"type": "sync_request", "client_id": "p", "last_sync": self.last_sync, "entity_types": types}
        )

        assert self.unseen["records"] <= {change["entity_id"] for change in answer["changes"]}
        self.unseen["records"].clear()
        self.syncs += 1
        self.last_sync = format_time(NOW + self.syncs * SECOND, naive=True)
        self.ask({"type": "sync_ack", "client_id": "p", "sync_completed_at": self.last_sync})


def opened(path: Path) -> SqliteStore:
    """The store in a file, without asking the disk, which takes ten times as long."""
    return SqliteStore(path, on_connect=lambda connection: connection.execute("PRAGMA synchronous = OFF"))


def play(served: Served, events: list[tuple[int, Any]], path: Path | None) -> None:
    """A history, in which a server on a file can start anew."""
    served.push(["home"], "home")
    for step, event in [*events, (0, "since"), (0, "records")]:
        served.now = max(served.now + step, 0)
        match event:
            case "since":
                served.pull_since()
            case "records":
                served.pull_records()
            case "restart" if path is not None:
                run(served.store.close())
                served.use(opened(path))
            case [*ids]:
                served.push(ids)


@given(EVENTS)
def test_since_is_exact_whatever_the_clock_does(events: list[tuple[int, Any]]) -> None:
    play(Served(MemoryStore()), events, None)


# A file is a hundred times as slow as memory, and the rules are the same.
@settings(max_examples=max(1, settings().max_examples // 4))
@given(EVENTS)
def test_since_is_exact_whatever_the_clock_does_and_the_server_starts_anew(events: list[tuple[int, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "server.db"
        served = Served(opened(path))
        try:
            play(served, events, path)
        finally:
            run(served.store.close())


def test_a_time_that_is_the_wall_clocks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = engine.serve

    def serve(request: SyncRequest, context: Context, *rest: Any) -> Plan[SyncResponse]:
        response = yield from real(request, context, *rest)
        return replace(response, served_stamp=context.now)

    monkeypatch.setattr(engine, "serve", serve)

    with pytest.raises(AssertionError):
        play(Served(MemoryStore()), [(DAY, "since"), (-DAY, ["a"]), (2 * DAY, ["b"]), (0, "since")], None)
