"""A server for demonstrations: a process of its own, on a port of its own, over a file that is nobody else's."""

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
    """``inbetweenies serve`` as a process of its own, on a port that was free, over a database in `folder`.

    Args:
        db: the database; ``home.db`` in `folder` if not given.
        module: what is run as ``serve`` is: a module and its own arguments.
        name: of the process, for its log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        db: Path | None = None,
        module: tuple[str, ...] = ("inbetweenies.cli",),
        name: str = "server",
    ) -> None:
        self.folder = folder
        self.db = folder / "home.db" if db is None else db
        self.url = ""
        self.process: subprocess.Popen[str] | None = None
        self._module = module
        self._log = folder / f"{name}.log"

    def token(self, user: str, graph: str = GRAPH) -> str:
        """A token for the graph, as ``inbetweenies token create`` makes it."""
        with closing(SqliteTokens(self.db)) as tokens:
            secret, _ = tokens.create(graph, user)
        return secret

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start the process and wait until it listens; where it did before, if it was started before.

        Raises:
            DemoError: it ended instead; the message says what it said.
        """
        # The same sources as here, wherever this was started and whether or not they are installed.
        sources = str(Path(inbetweenies.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")])}
        environment.pop("INBETWEENIES_ADMIN_PASSWORD", None)
        port = self.url.rpartition(":")[2] or "0"
        arguments = [sys.executable, "-m", *self._module, "serve", "--db", str(self.db), "--port", port]
        with self._log.open("ab") as log:
            said_before = log.tell()
            self.process = subprocess.Popen(  # noqa: S603 - our own command line
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        try:
            self.url = self._listening(self.process, said_before)
        except BaseException:
            self.stop()
            raise

    def _listening(self, process: subprocess.Popen[str], said_before: int) -> str:
        assert process.stdout is not None
        # A server that hangs is killed, which ends the line that is waited for.
        guard = threading.Timer(START_SECONDS, process.kill)
        guard.start()
        try:
            line = process.stdout.readline()
        finally:
            late = guard.finished.is_set()
            guard.cancel()
        found = re.search(r"http://\S+", line)
        if found is None:
            log = self._log.read_bytes()[said_before:].decode(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(log) if line.strip()), "nothing")
            ended = f"did not within {START_SECONDS} s" if late else "ended"
            raise DemoError(f"expected the server process to listen; it {ended} and said: {said}")
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
