"""One HTTP request and its answer, below the application: what is known of it, how it is refused, when it waits.

Every refusal is a problem document (PROTOCOL 2.6) made here, so that all of them look alike.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from asyncio import Future
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from ..errors import RemoteProtocolError
from ..exchange import Rest
from ..negotiation import problem

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

NO_STORE: Final = (b"cache-control", b"no-store")
RETRY: Final = (b"retry-after", b"1")
#: For a peer that is too slow to be waited for again.
CLOSE: Final = ((b"connection", b"close"), NO_STORE)
CHALLENGE: Final = ((b"www-authenticate", b"Bearer"), NO_STORE)

_JSON_TYPE: Final = re.compile(rb'application/json\s*(;\s*charset\s*=\s*"?utf-?8"?\s*)?', re.IGNORECASE)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

encode = msgspec.json.Encoder().encode


class ServerLimits(Struct, frozen=True, kw_only=True):
    """PROTOCOL 2.5: what one process gives to its peers at most. All are settings."""

    body_seconds: float = 20  # for a whole body: 16 MiB need 7 Mbit/s, a hundred edits nothing
    handler_seconds: float = 30  # deployed clients give up after 5 to 30
    requests_max: int = 64  # served at once; each may hold a body and its answer
    waiting_max: int = 128  # waiting to be served; more is a storm, which waiting makes worse
    waiting_seconds: float = 2
    buffered_bytes_max: int = 256 * 2**20  # of all bodies together: 64 of the largest ones would be a gigabyte
    threads: int = 16  # for stores that block
    login_failures_max: int = 10  # per source and minute
    sockets_max: int = 1000  # WebSocket connections; an idle one costs some 30 KB
    first_message_seconds: float = 10  # for a connection that has not said yet which wire version it speaks
    origins: frozenset[str] = frozenset()  # pages that may connect by WebSocket; programs name none

    # What only `run` can do, because it has the sockets.
    header_seconds: float = 10  # from the connection, or the answer before, to the end of the headers
    header_bytes_max: int = 32 * 1024  # the parser has no bound of its own
    headers_max: int = 100
    stall_seconds: float = 10  # a peer that reads nothing of its answer for that long is cut off
    keep_alive_seconds: int = 5
    shutdown_seconds: int = 10


class Answer(Struct, frozen=True):
    """One HTTP answer, but for the headers that all of them have. With `rest`, `body` is only its beginning.

    `served` is the wire version that it is in, `about` the one that a refusal is about; `wrote` says that the request
    carried changes. `media` is the type of a body that is not JSON.
    """

    status: int
    body: bytes
    headers: Headers = (NO_STORE,)
    served: str | None = None
    about: str | None = None
    wrote: bool = False
    rest: Rest | None = None
    media: bytes | None = None


class RefusalError(Exception):
    """Ends a request with `answer`."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class GoneError(Exception):
    """The client hung up; there is nobody to answer."""


class BrokenOffError(Exception):
    """An answer that has begun cannot be ended. The server must hang up, so that nobody takes it for a whole one."""


class Call:
    """One request: what is known of it before its body is read, how many bytes of it are held, and of which graph it
    is, once that is known."""

    __slots__ = ("charged", "graph", "headers", "id", "method", "path", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive
        self.method: str = scope["method"]
        self.path = route_path(scope)
        self.id = secrets.token_hex(8)
        self.charged = 0
        self.graph: str | None = None
        self.headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            key = name.lower()
            # RFC 9110 5.2. What may stand only once is refused for the comma.
            self.headers[key] = self.headers[key] + b", " + value if key in self.headers else value

    def check_body(self, most: int) -> None:
        """PROTOCOL 2.4, 2.5: refuse what the headers already tell about a body that is not JSON or too large."""
        kind = self.headers.get(b"content-type")
        if kind is not None and not _JSON_TYPE.fullmatch(kind.strip()):
            raise refused("unsupported_media_type", "application/json in UTF-8", "another content type")
        if self.headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise refused("unsupported_media_type", "no content encoding", "one")
        length = self.headers.get(b"content-length")
        if length is None:
            return
        if not _LENGTH.fullmatch(length):
            raise refused("malformed_body", "a Content-Length of digits", "something else")
        if int(length) > most:
            raise refused("body_too_large", f"at most {most} bytes", f"{int(length)} bytes announced")


def route_path(scope: Scope) -> str:
    """The path below the prefix that this is mounted under, whether the prefix was left in the path or taken out."""
    path: str = scope["path"]
    prefix = scope.get("root_path", "").rstrip("/")
    if prefix and (path == prefix or path.startswith(prefix + "/")):
        path = path[len(prefix) :]
    return path or "/"


# --- answers ------------------------------------------------------------------------------------------------------


def ok(value: object) -> Answer:
    """200 with `value` as JSON."""
    return Answer(200, encode(value))


def problem_answer(
    error: RemoteProtocolError, *, detail: str | None = None, headers: Headers = (NO_STORE,), request: str | None = None
) -> Answer:
    """PROTOCOL 2.6: `error` as an answer. `detail` is what deployed servers say, where deployed clients may look."""
    told = problem(error)
    if detail is not None:
        told["detail"] = detail
    if request is not None:
        told["request_id"] = request
    if error.status == 503:
        headers = (*headers, RETRY)
    return Answer(error.status, encode(told), headers)


def refused(
    code: str, expected: str, got: str, *, detail: str | None = None, headers: Headers = (NO_STORE,)
) -> RefusalError:
    """The refusal to raise: a code of PROTOCOL 2.7, what was expected, what was got."""
    error = RemoteProtocolError(code=code, expected=expected, got=got)
    return RefusalError(problem_answer(error, detail=detail, headers=headers))


# --- bounds -------------------------------------------------------------------------------------------------------


class Door:
    """Lets `requests_max` in at once, and lets a bounded number wait a bounded time."""

    def __init__(self, bounds: ServerLimits) -> None:
        self._bounds = bounds
        self._inside = 0
        self._waiting: deque[Future[None]] = deque()

    async def enter(self) -> None:
        """Raises `RefusalError`: too many are waiting, or nobody left in time."""
        if self._inside < self._bounds.requests_max:
            self._inside += 1
            return
        if len(self._waiting) >= self._bounds.waiting_max:
            raise refused("unavailable", "fewer requests at once", "too many; try again")
        turn: Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._bounds.waiting_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.leave()  # its turn came in the very moment in which it gave up
            elif turn in self._waiting:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise refused("unavailable", "fewer requests at once", "too many; try again") from None
            raise

    def leave(self) -> None:
        """Let the next one in."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._inside -= 1
