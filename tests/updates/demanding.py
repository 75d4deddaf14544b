"""A real server process, and before it one that asks for more: it says which clients it takes and refuses the others.

Everything else is passed on as it is, both ways.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from packaging.version import Version

from inbetweenies.auth import SqliteTokens
from tests.server.calls import running


class Demanding:
    """What the server in front asks for, and what it has seen. `minimum` and `latest` may be changed at any time."""

    def __init__(self, behind: str, db: Path) -> None:
        self.behind = behind
        self.db = db
        self.url = ""
        self.begin()

    def begin(self) -> None:
        """Ask for nothing, remember nothing, and serve a new home with a new token."""
        self.minimum: str | None = None
        self.latest: str | None = None
        self.discovered = 0
        self.refused: list[str] = []
        self.pushed: dict[str, list[str]] = {}  # by the release of the client, the names of what it pushed
        with closing(SqliteTokens(self.db)) as tokens:
            self.token, _ = tokens.create(str(uuid4()), "ann")

    def told(self, body: bytes) -> bytes:
        self.discovered += 1
        document = json.loads(body)
        more = {"min_client_version": self.minimum, "latest_client_version": self.latest}
        return json.dumps(document | {name: value for name, value in more.items() if value is not None}).encode()

    def takes(self, release: str) -> bool:
        return self.minimum is None or Version(release) >= Version(self.minimum)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: ClassVar[Demanding]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        release = self.headers.get("user-agent", "").partition("/")[2]
        if self.path.startswith("/api/v1/sync") and not self.front.takes(release):
            self.front.refused.append(release)
            problem = {"code": "client_too_old", "detail": "this server takes newer clients only"}
            return self._answer(400, json.dumps(problem).encode(), "application/problem+json")
        if self.path.startswith("/api/v1/sync"):
            names = [change["entity"]["name"] for change in json.loads(body).get("changes", ()) if change.get("entity")]
            self.front.pushed.setdefault(release, []).extend(names)
        kept = {name: self.headers[name] for name in ("authorization", "content-type") if name in self.headers}
        request = urllib.request.Request(
            self.front.behind + self.path, data=body or None, headers=kept, method=self.command
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, said, kind = answer.status, answer.read(), answer.headers["content-type"]
        except urllib.error.HTTPError as error:
            status, said, kind = error.code, error.read(), error.headers["content-type"]
        if self.path == "/api/version":
            said = self.front.told(said)
        return self._answer(status, said, kind)

    def do_POST(self) -> None:
        self.do_GET()

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def demanding(folder: Path) -> Iterator[Demanding]:
    """The two servers, on loopback, until the end of the block."""
    db = folder / "server.sqlite"
    with running(["-m", "inbetweenies.cli", "serve", "--port", "0", "--db", str(db)]) as process:
        front = Demanding(process.url, db)
        handler = type("Handler", (_Handler,), {"front": front})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        front.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield front
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
