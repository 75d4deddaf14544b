"""Going on as another release: this process becomes one that runs what is installed now."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

#: Set for the process that goes on: it does not update again, whatever it is told.
UPDATED_VARIABLE: Final = "BLOWING_OFF_UPDATED_FROM"


class Restart(Exception):
    """Unwinds everything, so that files are closed, up to whoever calls `go_on`.

    Attributes:
        arguments: of the new process; None for those of this one.
        before: the release that this process runs.
    """

    def __init__(self, arguments: Sequence[str] | None, before: str) -> None:
        super().__init__()
        self.arguments = arguments
        self.before = before


def command_of(arguments: Sequence[str] | None) -> list[str]:
    """The command line of the new process, with the interpreter's own options kept."""
    started, options = sys.orig_argv, _options(sys.orig_argv)
    if arguments is None:
        return [sys.executable, *started[1:]]
    return [sys.executable, *options, "-m", "blowing_off.cli", *arguments]


def _options(started: Sequence[str]) -> list[str]:
    """What stands between the interpreter and what it was told to run, such as ``-X utf8``."""
    found: list[str] = []
    words = iter(started[1:])
    for word in words:
        if word in ("-m", "-c", "-") or not word.startswith("-"):
            break
        found.append(word)
        if word in ("-X", "-W", "--check-hash-based-pycs"):
            found.append(next(words, ""))
    return found


def go_on(restart: Restart) -> NoReturn:
    """Become the new process. Where the system cannot do that, wait for it and end as it ends."""
    command = command_of(restart.arguments)
    environment = {**os.environ, UPDATED_VARIABLE: restart.before}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if sys.platform == "win32":
        import subprocess

        # There an exec starts another process and ends this one, so that whoever waits for us waits no more.
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)  # noqa: S603 - our own command line
    os.execve(command[0], command, environment)  # noqa: S606 - as above
