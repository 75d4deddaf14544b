"""A verb that is killed before each thing that it does to files, one process and one copy of the folder for each.

Run as a program: `kill.py FOLDER VERB`, where FOLDER/base holds the files; makes FOLDER/1, FOLDER/2 and so on, the last
of which is that of the process that came to its end. In a process of its own, since only one with a single thread
should fork.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.server.calls import ROOT, environment

#: What changes files, as Python's audit hooks call it.
CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.listdir", "sqlite3.connect", "open")


def killed(folder: Path, verb: str) -> list[Path]:
    """The folders: of each process that was killed, and of the one that was not."""
    subprocess.run([sys.executable, __file__, str(folder), verb], cwd=ROOT, env=environment(), check=True, timeout=120)
    found = [path for path in folder.iterdir() if path.name.isdecimal()]
    assert len(found) > 5
    return sorted(found, key=lambda path: int(path.name))


def _die_at(step: int, folder: Path) -> None:
    left = step

    def heard(event: str, told: tuple[Any, ...]) -> None:
        nonlocal left
        if event in CHANGES and any(str(folder) in str(one) for one in told):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)


def _main(folder: Path, verb: str) -> None:
    from inbetweenies.ops.backup import backup
    from inbetweenies.ops.restore import restore

    verbs: dict[str, Callable[[Path], object]] = {
        "backup": lambda here: backup(here / "home.db", here / "backups", keep=1),
        "restore": lambda here: restore(here / "backup.db", here / "home.db"),
        "discard": lambda here: restore(here / "backup.db", here / "home.db", discard=True),
    }
    for step in range(1, 200):
        here = folder / str(step)
        shutil.copytree(folder / "base", here)
        process = os.fork()
        if process == 0:
            _die_at(step, here)
            verbs[verb](here)
            os._exit(0)
        if os.waitpid(process, 0)[1] == 0:
            return
    raise AssertionError("it never came to an end")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
