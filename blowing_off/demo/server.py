"""The server of the demo: a process of its own, on a port of its own, with a file of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Self

import inbetweenies
from inbetweenies.auth import SqliteTokens

from .basics import GRAPH, START_SECONDS, STOP_SECONDS, DemoError


class Server:
    """``inbetweenies serve`` as a process of its own, on a port that was free, over a database in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.db = folder / "home.db"
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def token(self, user: str) -> str:
        """A token for the graph, as ``inbetweenies token create`` makes it."""
        with closing(SqliteTokens(self.db)) as tokens:
            secret, _ = tokens.create(GRAPH, user)
        return secret

    def __enter__(self) -> Self:
        # The same sources as here, wherever this was started and whether or not they are installed.
        sources = str(Path(inbetweenies.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")])}
        environment.pop("INBETWEENIES_ADMIN_PASSWORD", None)
        arguments = [sys.executable, "-m", "inbetweenies.cli", "serve", "--db", str(self.db), "--port", "0"]
        with (self.folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own command line
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        try:
            self.url = self._listening(self.process)
        except BaseException:
            self.stop()
            raise
        return self

    def _listening(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        # A server that hangs is killed, which ends the line that is waited for.
        guard = threading.Timer(START_SECONDS, process.kill)
        guard.start()
        try:
            line = process.stdout.readline()
        finally:
            guard.cancel()
        found = re.search(r"http://\S+", line)
        if found is None:
            log = (self.folder / "server.log").read_text(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(log) if line.strip()), "nothing")
            raise DemoError(f"expected the server process to listen; it ended and said: {said}")
        return found[0]

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process, in order if it lets us."""
        process, self.process = self.process, None
        if process is None:
            return
        try:
            process.terminate()
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # killed below
        finally:
            process.kill()  # does nothing to a process that has ended
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
