"""What the hostile tests share: a server process to attack, data files, what an answer must look like, and counts."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

from msgspec import Struct

from inbetweenies.auth import SqliteTokens
from inbetweenies.errors import PROBLEM_BYTES_MAX
from inbetweenies.stores import SqliteStore
from tests.server.calls import GUARD_SECONDS, SYNC, Process, running, sync

DATA = Path(__file__).parent / "data"
CANARY = "canary-5f0c9a7e41d3"  # stands in what is sent, and must not stand in any refusal


def cases(name: str) -> list[Any]:
    """The cases of one data file. A lone surrogate in a value stays one."""
    listed = json.loads((DATA / f"{name}.json").read_text())
    assert isinstance(listed, list)
    return listed


# --- answers ------------------------------------------------------------------------------------------------------


class Reply(Struct, frozen=True, kw_only=True):
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of a refusal its code, else ``served``. All that holds of every refusal is checked on the way."""
        if self.status == 200:
            return "served"
        check_problem(self.status, self.body)
        if self.status >= 500:
            assert (503, True) == (self.status, "retry-after" in self.headers)
        code: str = self.json["code"]
        return code


def check_problem(status: int, body: bytes) -> None:
    """PROTOCOL 2.6: a refusal is a short document with all its fields, and holds nothing that was sent."""
    told = json.loads(body)
    fields = {"type", "title", "status", "code", "detail", "expected", "got", "pointer", "error"}

    assert len(body) <= PROBLEM_BYTES_MAX
    assert fields <= told.keys()
    assert status == told["status"]
    assert f"urn:inbetweenies:problem:{told['code']}" == told["type"]
    assert CANARY.encode() not in body


def echoed(sent: bytes, told: bytes) -> bool:
    """Whether twelve bytes in a row of what was sent stand in an answer; fewer can be words of our own."""
    return any(sent[at : at + 12] in told for at in range(len(sent) - 11))


class Tally:
    """Counts outcomes, and prints them for whoever reads the run."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.counts: Counter[str] = Counter()

    def add(self, outcome: str) -> None:
        self.counts[outcome] += 1

    def told(self) -> int:
        """Print the counts; how many there are together."""
        print(f"{self.what}: {self.counts.total()} cases; {dict(sorted(self.counts.items()))}")
        return self.counts.total()


# --- a server to attack -------------------------------------------------------------------------------------------


class Line:
    """One connection to a server, kept open from request to request."""

    def __init__(self, site: Site, token: str | None) -> None:
        self._http = HTTPConnection(site.process.address[0], site.process.address[1], timeout=GUARD_SECONDS)
        self._token = token

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            named.setdefault("content-type", "application/json")
        if self._token is not None:
            named.setdefault("authorization", f"Bearer {self._token}")
        self._http.request(method, path, body, named)
        answer = self._http.getresponse()
        told = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(status=answer.status, headers=told, body=answer.read())

    def post(self, body: Any, path: str = SYNC, **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()


class Site:
    """A server process over a SQLite file, and tokens for it. An honest device keeps a graph of its own there."""

    def __init__(self, process: Process, tokens: SqliteTokens) -> None:
        self.process = process
        self.tokens = tokens
        self.token, _ = tokens.create("house", "ann")
        self.other, _ = tokens.create("elsewhere", "bob")
        self._ended: set[int] = set()
        self._news = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self._honest: bytes | None = None

    def _listen(self) -> None:
        assert self.process.process.stdout is not None
        with suppress(ValueError):  # closed at the end
            for line in self.process.process.stdout:
                with self._news:
                    self._ended.add(int(line.removeprefix("ended ")))
                    self._news.notify_all()

    def connect(self) -> socket.socket:
        """A bare connection."""
        connection = self.process.connect()
        with self._news:
            self._ended.discard(connection.getsockname()[1])  # of one before it that had the same port
        return connection

    def ended(self, connection: socket.socket) -> bool:
        """Whether the server says that `connection` has ended; waited for, since it must."""
        _, port = connection.getsockname()
        with self._news:
            return self._news.wait_for(lambda: port in self._ended, GUARD_SECONDS)

    def line(self, token: str | None = None) -> Line:
        """A connection with `token`, by default that of the house that is attacked."""
        return Line(self, self.token if token is None else token)

    def into(self, graph: str) -> Line:
        """A connection into a graph of its own."""
        return self.line(self.tokens.create(graph, "ann")[0])

    def serves(self, honest: Line) -> bool:
        """Whether an honest device is answered as it always was. `honest` is a line with the token `other`."""
        reply = honest.post(sync(device_id="honest"))
        self._honest = self._honest or reply.body
        return (200, self._honest) == (reply.status, reply.body)

    def peak_bytes(self) -> int:
        """The most memory that the process has held so far."""
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextmanager
def attacked(folder: Path, **bounds: Any) -> Iterator[Site]:
    """A site whose server has `bounds`."""
    database = str(folder / "house.db")
    SqliteStore(database)
    tokens = SqliteTokens(database)
    try:
        with running(["-m", "tests.hostile.server", database, json.dumps(bounds)]) as process:
            yield Site(process, tokens)
    finally:
        tokens.close()
