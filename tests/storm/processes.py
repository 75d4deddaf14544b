"""Processes that are killed: started, waited for by what they say, ended by ``kill -9`` and nothing gentler."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.server.calls import GUARD_SECONDS, ROOT, SYNC, environment


class Gone(Exception):
    """The server is not there any more. Whether it did what it was asked last, nobody knows."""


class Process:
    """A module of this project in a process of its own, which is killed at the end of its block at the latest."""

    def __init__(self, module: str, *arguments: object) -> None:
        # A pipe that nobody reads would stop it when it is full.
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def line(self) -> str:
        """The next line that it says; empty at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def kill(self) -> None:
        """As if the power went, but for what the system had not written yet."""
        self.process.kill()

    def ended(self) -> str:
        """Wait for its end; what it said last on standard output. It must not have complained."""
        said, _ = self.process.communicate(timeout=GUARD_SECONDS)
        assert "Traceback" not in self.errors(), self.errors()
        return said

    def errors(self) -> str:
        """What it complained about."""
        self._errors.seek(0)
        return self._errors.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate(timeout=GUARD_SECONDS)
        self._errors.close()


class Server(Process):
    """A server on `path`. See `tests.storm.server` for what can be wrong with it.

    Raises:
        Gone: it was killed before it listened, for it may have to write before.
    """

    def __init__(self, path: Path, statement: int = 0, bug: str = "") -> None:
        super().__init__("tests.storm.server", path, statement, bug)
        line = self.line()
        if not line:
            with self:
                assert (-9, "") == (self.process.wait(GUARD_SECONDS), self.errors())
            raise Gone
        assert line.startswith("listening on http://"), (line, self.errors())
        self.url = line.removeprefix("listening on ").strip()
        self.path = path

    def connect(self) -> socket.socket:
        """A connection on which to say anything."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return socket.create_connection((host, int(port)), timeout=GUARD_SECONDS)


class Peer:
    """One kept connection to a server, for clients that speak in dicts."""

    def __init__(self, url: str) -> None:
        self._http = http.client.HTTPConnection(url.partition("//")[2], timeout=GUARD_SECONDS)

    def post(self, body: Any, path: str = SYNC, *, sent: Callable[[], object] | None = None) -> tuple[int, Any]:
        """Status and answer; `sent` is called once the request is out and before the answer is read.

        Raises:
            Gone: there is no whole answer.
        """
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            self._http.request("POST", path, data, {"Content-Type": "application/json"})
            if sent is not None:
                sent()
            with self._http.getresponse() as response:
                return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            raise Gone from error

    def close(self) -> None:
        """Hang up."""
        self._http.close()
