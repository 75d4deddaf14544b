"""The same push many times at once: one row, and an answer for everybody (law 5)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest

from inbetweenies.model import format_time
from tests.server.calls import SYNC, edge, entity, read_all, sync, write
from tests.server.test_serving import head
from tests.storm.log import lines
from tests.storm.processes import Server
from tests.support import NOW, at

ROUNDS: Final = int(os.environ.get("DEEP_EXAMPLES", "6"))
AT_ONCE: Final = 8


def deployed(number: str) -> dict[str, Any]:
    """A push as deployed v2 clients send it."""
    home, lamp = entity(f"home-{number}", at(0), entity_type="home"), entity(f"lamp-{number}", at(0))
    return sync(write(home), write(lamp, edge(f"edge-{number}", lamp, home)))


def ours(number: str) -> dict[str, Any]:
    """The same with features, and another id."""
    return deployed(number) | {"features": ["acks", "digest", "edges", "paging"], "sync_type": "delta"}


def records(number: str) -> dict[str, Any]:
    """A push of v1."""
    told = format_time(NOW, naive=True)
    home = {"id": f"home-{number}", "name": "Home", "is_primary": False, "updated_at": told}
    plug = {"id": f"lamp-{number}", "name": "Plug", "home_id": f"home-{number}", "updated_at": told}
    changes = [
        {
            "entity_type": type_,
            "entity_id": data["id"],
            "operation": "create",
            "data": data,
            "client_sync_id": data["id"],
        }
        for type_, data in (("home", home), ("accessory", plug))
    ]
    return {"type": "sync_push", "client_id": "phone", "changes": changes}


def at_once(servers: list[Server], body: dict[str, Any], times: int) -> list[tuple[int, Any]]:
    """The same request on so many connections: all of it but the last byte on each, then the last byte on each."""
    data = json.dumps(body).encode()
    raw = b"POST %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (SYNC.encode(), len(data))
    with ExitStack() as stack:
        connections = [stack.enter_context(servers[n % len(servers)].connect()) for n in range(times)]
        for connection in connections:
            connection.sendall(raw + data[:-1])
        for connection in connections:
            connection.sendall(data[-1:])
        answers = [head(read_all(connection)) for connection in connections]
    return [(status, json.loads(told)) for status, told in answers]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two processes on one file."""
    path = tmp_path_factory.mktemp("overlap") / "server.db"
    with Server(path) as one, Server(path) as other:
        yield [one, other]


@pytest.mark.parametrize(("push", "rows"), [(deployed, 3), (ours, 3), (records, 3)])
def test_the_same_push_many_times_at_once_makes_its_rows_once_and_is_acked_to_all(
    push: Callable[[str], dict[str, Any]], rows: int, servers: list[Server]
) -> None:
    for number in range(ROUNDS):
        body = push(f"{push.__name__}-{number}")
        before = len(lines(servers[0].path))
        answers = at_once(servers, body, AT_ONCE)

        assert [200] * AT_ONCE == [status for status, _ in answers], answers
        ids = {change.get("entity_id") or change["entity"]["id"] for change in body["changes"]}
        assert [ids] * AT_ONCE == [acked(told) for _, told in answers]
        assert [[]] * AT_ONCE == [told["conflicts"] for _, told in answers]
        assert before + rows == len(lines(servers[0].path))

    print(f"figures: {ROUNDS} pushes, {AT_ONCE} times at once each, each there once, {ROUNDS * AT_ONCE:,} acked")


def acked(told: dict[str, Any]) -> set[str]:
    """The entities that an answer of either wire version acknowledges; in v1 the labels, which are the same here."""
    return {one if isinstance(one, str) else one["client_sync_id"] for one in told["applied"]}
