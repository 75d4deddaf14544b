"""``inbetweenies demo``: four clients of three wire versions edit one home offline, sync, and are held to account.

A real server process, a v1 client as deployed, two replicas and a client of a version that nobody knows yet. Every
write goes into a ledger when it is made; at the end each one is looked up on the server, and the digests of all clients
are compared. Read `story.py` for what is edited, `proof.py` for how it is checked; `main` is what the command line
calls.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import click
import httpx

from inbetweenies.errors import InbetweeniesError

from .. import homekit
from ..show import Problem, Screen
from .basics import GRAPH, DemoError
from .proof import run
from .server import Server
from .showing import show


def main(files: list[Path], as_json: bool) -> int:
    """Run the demo on accessory databases, or on a made-up home without any. 0 if all is well, else 1.

    Whatever happens, Ctrl-C included, the server process is ended and the temporary folder removed.
    """
    screen = Screen(as_json=as_json)
    started = time.monotonic()
    try:
        with stoppable(), TemporaryDirectory(prefix="inbetweenies-demo-", ignore_cleanup_errors=True) as folder:
            imports = [read_file(file) for file in files]
            with Server(Path(folder)) as server:
                outcome = asyncio.run(run(server, imports, teller(as_json)))
        outcome.seconds = round(time.monotonic() - started, 2)
        show(outcome, screen)
    except KeyboardInterrupt:
        screen.problem(Problem("stopped", "stopped before the end; the server was ended and its files removed"))
        return 1
    except (InbetweeniesError, httpx.HTTPError, OSError) as error:
        screen.problem(Problem("demo_failed", " ".join(str(error).split()) or type(error).__name__))
        return 1
    return 0 if outcome.well else 1


@contextmanager
def stoppable() -> Iterator[None]:
    """Being told to end, or losing the terminal, is taken like Ctrl-C: it unwinds through every ``finally``."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a signal handler is called with
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored here stays so: that is how nohup works.
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_file(path: Path) -> homekit.Import:
    """The devices in one accessory database. What in it cannot be read is part of the result."""
    try:
        with path.open("rb") as file:
            data = file.read(homekit.FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DemoError(f"expected a file that can be read at {path}; the system says: {error.strerror}") from error
    return homekit.read(data, source=str(path), graph=GRAPH)


def teller(as_json: bool) -> Callable[[str], None]:
    """Says on stderr what is going on, if a person looks on."""
    if as_json or not sys.stderr.isatty():
        return lambda _: None
    return lambda text: click.echo(f"  {text}", err=True)
