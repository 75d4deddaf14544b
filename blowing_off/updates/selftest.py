"""How a release shows that it can be trusted with a store: ``python -m blowing_off.updates.selftest``.

Run by another release, on a *copy* of the store, before and after this one is installed. It opens the copy, brings it
to its own format, adds up what it holds, shakes hands with the server and pulls. Nothing is pushed: the copy forgets
what waits first, and a message that carries changes is not sent. The result is one JSON line on standard output that
repeats a word it was given, so that nothing that ended early or said "0" by accident passes for it.

Older releases call this one, so the arguments, the words and their meaning stay.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from inbetweenies import __version__
from inbetweenies.errors import InbetweeniesError
from inbetweenies.model import DIGEST_BITS

from ..client import BlowingOffClient
from ..store import LocalStore
from ..transport import HttpTransport, Refused, TransportError
from .check import DISCOVERY_PATH, read_told

DEVICE: Final = "blowing-off-selftest"
STEPS: Final = ("open", "digest")
ONLINE: Final = (*STEPS, "handshake", "pull")


class WouldPush(TransportError):
    """The server asked for what it lost. The test stops short of giving it: that is the real replica's to do."""


class _PullOnly:
    """The server, without a way to write to it."""

    def __init__(self, http: HttpTransport) -> None:
        self.http = http

    async def post(self, path: str, body: bytes) -> bytes:
        said = json.loads(body)
        if isinstance(said, dict) and said.get("changes"):
            raise WouldPush("expected nothing to send; the server asked for something")
        return await self.http.post(path, body)

    async def get(self, path: str) -> bytes:
        return await self.http.get(path)


def main() -> int:
    """Run the test and print what came of it. The exit code is for people; programs read the line."""
    parser = argparse.ArgumentParser(prog="python -m blowing_off.updates.selftest", description=__doc__)
    parser.add_argument("store", type=Path, help="a copy of a store, which is changed")
    parser.add_argument("word", help="is repeated in the result")
    parser.add_argument("--url", help="the server to pull from; without it only the copy is looked at")
    parser.add_argument("--token-file", type=Path, help="holds the token for it")
    parser.add_argument("--insecure", action="store_true", help="allow http:// to another machine")
    given = parser.parse_args()
    told: dict[str, Any] = {"word": given.word, "release": __version__, "passed": []}
    try:
        _test(given, told)
    except InbetweeniesError as error:
        told |= {"failed": type(error).__name__, "code": str(getattr(error, "code", "")), "why": str(error)[:500]}
    sys.stdout.write(json.dumps(told) + "\n")
    return 1 if "failed" in told else 0


def _test(given: argparse.Namespace, told: dict[str, Any]) -> None:
    store = LocalStore(given.store)
    try:
        told["pending"] = store.counts().pending
        _forget_waiting(given.store)
        told["passed"].append("open")
        _add_up(store)
        told["passed"].append("digest")
    finally:
        store.close()
    if given.url is not None:
        token = given.token_file.read_text().strip() if given.token_file is not None else None
        asyncio.run(_pull(given, token, told))


def _forget_waiting(copy: Path) -> None:
    """Let this copy hold only what the server is known to hold."""
    with closing(sqlite3.connect(copy)) as db, db:
        db.execute("DELETE FROM pending")
        db.execute("UPDATE pointers SET ours = NULL, ours_hash = NULL")
        db.execute("DELETE FROM pointers WHERE theirs IS NULL")


def _add_up(store: LocalStore) -> None:
    """PROTOCOL 4.8: the digest that is kept is the sum of what is held."""
    total = sum(int.from_bytes(copy.hash, "big") for copy in store.current(theirs=True)) % (1 << DIGEST_BITS)
    if total != store.digest():
        raise InbetweeniesError("expected the digest of the store to be the sum of its rows; got another")


async def _pull(given: argparse.Namespace, token: str | None, told: dict[str, Any]) -> None:
    async with HttpTransport(given.url, token, insecure=given.insecure, timeout_s=20.0, tries_max=2) as http:
        with suppress(Refused):  # a deployed server may have no such address; whether it serves shows in the pull
            read_told(await http.get(DISCOVERY_PATH))
        told["passed"].append("handshake")
        # Under a name of its own: a server may remember how far a device has come.
        async with BlowingOffClient(given.store, transport=_PullOnly(http), device=DEVICE) as client:
            known_gap = client.store.setting("gap") is not None
            try:
                report = await client.sync()
            except WouldPush:
                told["passed"].append("pull")
                return
            _add_up(client.store)
            if report.equal is False and not known_gap:
                raise InbetweeniesError("expected to hold what the server holds after a pull; got something else")
            told |= {"served": report.served, "equal": report.equal}
            told["passed"].append("pull")


if __name__ == "__main__":
    sys.exit(main())
