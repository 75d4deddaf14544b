"""The processes that are measured: the server as `inbetweenies serve` runs it, a client that syncs when told to."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from inbetweenies.auth import SqliteTokens

SYNC = "/api/v1/sync/"
IDLE_SECONDS = 2
ROOT = Path(__file__).parents[2]


class Process:
    """A Python module in a process of its own, which says a line when it is ready."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.said = self.line()

    def line(self) -> str:
        """The next line that it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"expected {self._process.args!r} to go on; got exit {self._process.wait()}")
        return line.strip()

    def tell(self, line: str) -> None:
        """Say a line to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)


class Server(Process):
    """`inbetweenies serve` on `db`, with real tokens and real HTTP over loopback."""

    def __init__(self, db: Path, *options: str) -> None:
        self.db = db
        self._tokens: dict[str, str] = {}
        self.token("default")  # before it starts, or it remarks that there are none
        super().__init__("inbetweenies.cli", "serve", "--db", str(db), "--port", "0", *options)
        self.url = self.said.rpartition(" ")[2]

    def token(self, graph: str) -> str:
        """A token for `graph`."""
        if graph not in self._tokens:
            with closing(SqliteTokens(self.db)) as tokens:
                self._tokens[graph], _ = tokens.create(graph, "ann", None, None)
        return self._tokens[graph]

    def peer(self, graph: str) -> Peer:
        """A connection on which to speak to `graph`."""
        return Peer(self.url, self.token(graph))


class Peer:
    """One kept connection. What is sent is ready-made, so that hardly anything here costs time."""

    def __init__(self, url: str, token: str) -> None:
        self._http = http.client.HTTPConnection(url.partition("//")[2], timeout=120)
        self._http.connect()
        self._used = time.monotonic()
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def post(self, body: bytes, path: str = SYNC) -> bytes:
        """The answer to `body`; anything but 200 is a failure of the benchmark."""
        return self._exchange("POST", path, body)

    def health(self) -> bytes:
        """The cheapest answer that there is."""
        return self._exchange("GET", "/health", None)

    def _exchange(self, method: str, path: str, body: bytes | None) -> bytes:
        if time.monotonic() - self._used > IDLE_SECONDS:
            self._http.close()  # the server hangs up about now; the next request connects anew
        self._http.request(method, path, body, self._headers)
        with self._http.getresponse() as response:
            answer = response.read()
        self._used = time.monotonic()
        if response.status != 200:
            raise RuntimeError(f"expected 200; got {response.status}: {answer[:500]!r}")
        return answer


class Client(Process):
    """A `BlowingOffClient` on `db`, opened and ready to sync with `server`."""

    def __init__(self, db: Path, server: Server, graph: str) -> None:
        super().__init__("tests.benchmarks.client", str(db), server.url, server.token(graph))

    def sync(self) -> dict[str, Any]:
        """Sync once; what the client counted."""
        self.tell("sync")
        told: dict[str, Any] = json.loads(self.line())
        return told
