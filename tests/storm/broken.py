"""One push in a process whose storage really fails: ``python -m tests.storm.broken WAY BASE FOLDER LIMIT...``.

For each LIMIT a process of its own is forked, since none of this can be taken back: it serves a pull, then lets its
storage fail, then serves a push, on a copy of the file BASE at FOLDER/LIMIT.db. Printed is a line for each: LIMIT and
the status of the push. It ends when three pushes in a row were taken.

``memory``: SQLite gets LIMIT bytes of memory at most. ``fsync``: from the commit on, every fsync of the process fails
with an I/O error, for which the system is asked to refuse the call (Linux only; LIMIT only names the file).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import sqlite3
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.storm.test_io_errors import LARGE, PULL, Served

#: Of each machine: its name in filters, and the numbers of fsync and fdatasync.
_CALLS: Final = {"x86_64": (0xC000003E, 74, 75), "aarch64": (0xC00000B7, 82, 83)}


def refuse_fsync() -> None:
    """From here on, fsync and fdatasync fail with EIO in this thread and all that it starts."""
    machine, *calls = _CALLS[platform.machine()]
    load, equal, done = 0x20, 0x15, 0x06
    allow, eio = 0x7FFF0000, 0x00050000 | 5
    steps = [
        (load, 0, 0, 4),
        (equal, 0, 3, machine),
        (load, 0, 0, 0),
        (equal, 2, 0, calls[0]),
        (equal, 1, 0, calls[1]),
        (done, 0, 0, allow),
        (done, 0, 0, eio),
    ]
    program = b"".join(struct.pack("=HBBI", *step) for step in steps)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, seccomp, filter_ = 38, 22, 2
    assert libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    given = Program(len(steps), program)
    assert libc.prctl(seccomp, filter_, ctypes.byref(given), 0, 0) == 0, os.strerror(ctypes.get_errno())


def memory(connections: list[sqlite3.Connection], limit: int) -> None:
    """SQLite gets no more than `limit` bytes."""
    connections[0].execute(f"PRAGMA hard_heap_limit = {limit}")


def fsync(connections: list[sqlite3.Connection], _: int) -> None:
    """The commit's fsync fails, and all after it."""
    for connection in connections:
        connection.set_trace_callback(lambda statement: refuse_fsync() if statement == "COMMIT" else None)


WAYS: Final[dict[str, Callable[[list[sqlite3.Connection], int], None]]] = {"memory": memory, "fsync": fsync}


async def push(way: str, base: Path, path: Path, limit: int) -> int:
    """The status of a push to a store that fails."""
    connections: list[sqlite3.Connection] = []
    served = Served(base, path, on_connect=connections.append)
    assert (await served.ask(*PULL)).status == 200
    WAYS[way](connections, limit)
    return (await served.ask(*LARGE)).status


def main(way: str, base: str, folder: str, *limits: str) -> None:
    taken = 0
    for limit in limits:
        child = os.fork()
        if child == 0:
            status = asyncio.run(push(way, Path(base), Path(folder) / f"{limit}.db", int(limit)))
            os.write(1, f"{limit} {status}\n".encode())
            os._exit(status == 200)
        _, ended = os.waitpid(child, 0)
        assert ended in (0, 256), f"{way} {limit}: ended with {ended}"
        taken = taken + 1 if ended else 0
        if taken == 3:
            break


if __name__ == "__main__":
    main(*sys.argv[1:])
