"""The port ``post(path, body) -> bytes``, and HTTP behind it: bounded in time and size whatever the server does.

The token goes to one origin and nowhere else: it is no part of a URL, a representation or a message. No redirect is
followed, no proxy is taken from the environment unless asked. Every failure is one of the errors below and says what
was expected, what was got, where, and what to do next.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import zlib
from collections.abc import Awaitable, Callable, Generator
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Final, Protocol, Self

import httpx
import msgspec
from msgspec import Struct

from inbetweenies import __version__
from inbetweenies.errors import InbetweeniesError, LocalProtocolError, RemoteProtocolError, clip

TIMEOUT_S: Final = 60.0  # one exchange with its retries: a phone call's patience
CONNECT_S: Final = 5.0  # a server that is there answers within a second, on any network
TRIES_MAX: Final = 5
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 60.0
RETRY_AFTER_MAX_S: Final = 3600.0  # a server that says more is not believed
WIRE_BYTES_MAX: Final = 64 * 2**20
DECODED_BYTES_MAX: Final = 256 * 2**20  # the whole graph of a deployed server, which cannot page
PROBLEM_BYTES_MAX: Final = 64 * 2**10  # a refusal is read only this far
CHUNK_BYTES: Final = 2**16  # what is inflated at a time: the bound on how far a bomb gets beyond the limit
RETRIED: Final = frozenset({408, 429, 503})

Sleep = Callable[[float], Awaitable[object]]


class Transport(Protocol):
    """What a client needs of a server. A fake is this with the server inside.

    A transport that hears of it may have an attribute `registry_revision`: what the server said last of the set of
    wire versions that it serves.
    """

    async def post(self, path: str, body: bytes) -> bytes:
        """Send a JSON `body` and return the JSON that the server answers.

        Raises:
            Unreachable, Refused, BadAnswer: there is no answer to use. What was sent may have been processed.
        """

    async def get(self, path: str) -> bytes:
        """Return the JSON at `path`; raises what `post` raises."""


# --- errors -------------------------------------------------------------------------------------------------------


class TransportError(InbetweeniesError):
    """No answer that could be used. What was pending here still is."""


class Unreachable(TransportError):
    """No answer came. Trying again later is right exactly if `retry` says so."""

    def __init__(self, message: str, *, retry: bool = True) -> None:
        self.retry = retry
        super().__init__(message)


class Refused(TransportError):
    """The server answered with an error.

    Attributes:
        status: the HTTP status.
        code: the server's name for the problem; made from the status where it gave none.
        detail: the server's words for people, cut short.
        supported: the wire versions that it would serve, where it says so.
        retry_after: seconds to wait at least, where it says so.
        where: which request it was.
    """

    def __init__(
        self,
        *,
        status: int,
        code: str,
        detail: str = "",
        supported: tuple[str, ...] = (),
        retry_after: float | None = None,
        where: str = "the server",
        advice: str | None = None,
    ) -> None:
        self.status = status
        self.code = clip(code, 64)
        self.detail = clip(detail)
        self.supported = supported
        self.retry_after = retry_after
        self.where = where
        said = f": {self.detail}" if self.detail else ""
        wait = f" It asks to wait {retry_after:.0f} s." if retry_after is not None else ""
        super().__init__(
            f"{where}: expected an answer; got {status} {self.code}{said}.{wait} {advice or self._advice()}"
        )

    def _advice(self) -> str:
        if self.supported:
            return (
                f"The server speaks {', '.join(clip(name, 64) for name in self.supported[:8])}; update the older side."
            )
        if self.status in RETRIED or self.status >= 500:
            return "Nothing is lost here; try again later."
        if self.status in (404, 405):
            return "Check the server's address."
        return "Nothing is lost here; the request must change before it is sent again."


class Unauthorized(Refused):
    """The token is missing, wrong, expired, or not allowed to do this. Nothing pending is lost."""

    def _advice(self) -> str:
        return "Get a valid token from whoever runs the server, and connect with it; what waits here stays."


class BadAnswer(TransportError, RemoteProtocolError):
    """The server answered something that is no answer: nothing of it was applied."""

    def __init__(self, *, expected: str, got: str, pointer: str = "", where: str = "the answer") -> None:
        RemoteProtocolError.__init__(self, code="bad_answer", expected=expected, got=got, pointer=pointer)
        self.where = where
        at = f" at {self.pointer}" if self.pointer else ""
        self.args = (
            f"{where}{at}: expected {self.expected}; got {self.got}. Nothing was applied; check the server's address.",
        )


class _Problem(Struct):
    """What is read of a refusal, ours (PROTOCOL 2.6) or a deployed server's. Anything can stand in each field."""

    code: Any = None
    detail: Any = None
    supported: Any = None
    supported_versions: Any = None


_problem = msgspec.json.Decoder(_Problem)
_CODES: Final = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    413: "body_too_large",
    429: "too_many_requests",
    500: "server_error",
    503: "unavailable",
}


def refused(
    status: int,
    body: bytes = b"",
    *,
    retry_after: float | None = None,
    where: str = "the server",
    secret: str | None = None,
) -> Refused:
    """The error that an HTTP answer with `status` and `body` stands for. Takes any body; never tells on `secret`."""
    try:
        problem = _problem.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        problem = _Problem()
    kind = Unauthorized if status in (401, 403) else Refused
    code = problem.code if isinstance(problem.code, str) and problem.code else _CODES.get(status, f"http_{status}")
    # A deployed server lists what was wrong with each field there, with what it was sent in it.
    detail = problem.detail if isinstance(problem.detail, str) else ""
    listed = next((one for one in (problem.supported, problem.supported_versions) if isinstance(one, list)), [])
    if secret and secret in f"{code}{detail}{listed}":
        # A server that repeats the token gets none of its words shown, stored or logged.
        code, detail, listed = _CODES.get(status, f"http_{status}"), "", []
    return kind(
        status=status,
        code=code,
        detail=detail,
        supported=tuple(name for name in listed[:64] if isinstance(name, str)),
        retry_after=retry_after,
        where=where,
    )


# --- HTTP ---------------------------------------------------------------------------------------------------------

_HOST: Final = re.compile(rb"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_REVISION: Final = re.compile(r"[\x21-\x7e]{1,64}")
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}")


def origin_of(url: str) -> str:
    """Scheme, host and port of `url`: what a token belongs to.

    Raises:
        LocalProtocolError: no URL of a server.
    """
    return _origin(_checked(url))


def _origin(url: httpx.URL) -> str:
    port = url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
    return f"{url.scheme}://{url.host.lower()}:{port}"


def _checked(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError):
        parsed = httpx.URL("")
    # Nothing of `url` is told: people paste tokens into it. The library takes nearly anything for a host.
    host = _HOST.fullmatch(parsed.raw_host) is not None and 0 < (parsed.port or 80) < 2**16
    if parsed.scheme not in ("http", "https") or not host:
        raise LocalProtocolError(
            "expected the server's address as https://host or https://host:port; got something else"
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise LocalProtocolError(
            "expected the server's address without user name, query and fragment; got one of them. "
            "A token is given on its own."
        )
    return parsed


def _loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _Bearer(httpx.Auth):
    """Adds the token to requests to its own origin only."""

    def __init__(self, origin: str, token: str) -> None:
        self._origin = origin
        self.token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if _origin(request.url) == self._origin:
            request.headers["Authorization"] = f"Bearer {self.token}"
        yield request


class HttpTransport:
    """JSON over HTTP/1.1.

    Args:
        url: the server's address. HTTPS, unless it is this machine or `insecure` is set.
        token: sent as bearer token to this origin only.
        timeout_s: for one exchange as a whole, retries and waits included.
        connect_s: for one connection.
        trust_env: whether proxies and certificates named in the environment are used; a proxy sees everything.
        insecure: allow HTTP to another machine: everybody on the way can read and change everything.
        wire_bytes_max, decoded_bytes_max: bounds on an answer before and after decompression.
        tries_max: how often a request is sent at most.
        tls: trust other certificates than the public ones.
        sleep, uniform, http: replaced by tests.

    Raises:
        LocalProtocolError: the address or the token cannot be used.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        connect_s: float = CONNECT_S,
        trust_env: bool = False,
        insecure: bool = False,
        wire_bytes_max: int = WIRE_BYTES_MAX,
        decoded_bytes_max: int = DECODED_BYTES_MAX,
        tries_max: int = TRIES_MAX,
        tls: ssl.SSLContext | None = None,
        sleep: Sleep = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
        http: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        parsed = _checked(url)
        if parsed.scheme != "https" and not insecure and not _loopback(parsed.host):
            raise LocalProtocolError(
                f"expected https:// for {_origin(parsed)}; got http://, over which everybody on the way can read the "
                "token. Use https, or say that it is meant to be insecure."
            )
        if token is not None and not _TOKEN.fullmatch(token):
            raise LocalProtocolError("expected a token of 1 to 4096 printable ASCII characters; got something else")
        self.origin = _origin(parsed)
        self.registry_revision: str | None = None
        self.timeout_s = timeout_s
        self.base = str(parsed).rstrip("/")
        self.agent = f"blowing-off/{__version__}"  # so that a server's log tells who would lose by a change
        self._wire_bytes_max = wire_bytes_max
        self._decoded_bytes_max = decoded_bytes_max
        self._tries_max = tries_max
        self._sleep = sleep
        self._uniform = uniform
        self._used = False
        self._auth = None if token is None else _Bearer(self.origin, token)
        self._client = httpx.AsyncClient(
            auth=self._auth,
            trust_env=trust_env,
            follow_redirects=False,
            timeout=httpx.Timeout(timeout_s, connect=connect_s),
            limits=httpx.Limits(max_connections=4),
            # Public certificates take 30 ms to read; without TLS, a context that trusts nobody does.
            verify=tls or (parsed.scheme == "https" or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)),
            transport=http,
            headers={
                "Accept": "application/json, application/problem+json",
                "Accept-Encoding": "gzip, identity",
                "User-Agent": self.agent,
            },
        )

    def __repr__(self) -> str:
        return f"HttpTransport({self.origin!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    @property
    def credential(self) -> str | None:
        """The token. Not for showing."""
        return None if self._auth is None else self._auth.token

    async def post(self, path: str, body: bytes) -> bytes:
        """See `Transport.post`. Sent again where no answer came, so what it asks for must be idempotent (law 5)."""
        return await self._exchange("POST", path, body)

    async def get(self, path: str) -> bytes:
        """See `Transport.get`."""
        return await self._exchange("GET", path, None)

    # --- tries ----------------------------------------------------------------------------------------------------

    async def _exchange(self, method: str, path: str, body: bytes | None) -> bytes:
        where = f"{method} {self.origin}{path.partition('?')[0]}"
        deadline = asyncio.get_running_loop().time() + self.timeout_s
        failed: TransportError | None = None
        try:
            async with asyncio.timeout_at(deadline):
                for tried in range(1, self._tries_max + 1):
                    try:
                        # What was tried just now and failed has closed its connection, so the next is new anyway.
                        once = self._again_if_stale if tried == 1 else self._once
                        return await once(method, path, body, where)
                    except (Unreachable, Refused) as error:
                        failed = error
                        wait = self._wait(error, tried)
                        if wait is None or asyncio.get_running_loop().time() + wait >= deadline:
                            raise
                    await self._sleep(wait)
        except TimeoutError:
            pass
        # A reason is worth more than "it took too long".
        raise failed or Unreachable(
            f"{where}: expected a whole answer within {self.timeout_s:g} s; got none. Nothing is lost here; "
            "check the network and try again."
        )

    def _wait(self, error: Unreachable | Refused, tried: int) -> float | None:
        """Seconds until the next try, None for no further one. Full jitter: a crowd must not come back as one."""
        again = error.retry if isinstance(error, Unreachable) else error.status in RETRIED
        if not again or tried >= self._tries_max:
            return None
        wait = self._uniform(0, min(BACKOFF_S * 2**tried, BACKOFF_MAX_S))
        if isinstance(error, Refused) and error.retry_after is not None:
            return error.retry_after + wait
        return wait

    async def _again_if_stale(self, method: str, path: str, body: bytes | None, where: str) -> bytes:
        # A server may close a connection that lay idle (deployed ones do so after each 500) just as we use it again.
        if self._used:
            try:
                return await self._once(method, path, body, where)
            except Unreachable as error:
                if not isinstance(error.__cause__, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)):
                    raise
        return await self._once(method, path, body, where)

    async def _once(self, method: str, path: str, body: bytes | None, where: str) -> bytes:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            # Said again here, since a client can be one that somebody else made.
            async with self._client.stream(
                method, self.base + path, content=body, headers=headers, follow_redirects=False
            ) as response:
                self._used = True
                return await self._answer(response, where)
        except httpx.InvalidURL as error:
            raise LocalProtocolError(f"{where}: expected a path that fits into a URL; got another") from error
        except httpx.HTTPError as error:
            raise _unreachable(error, where) from error

    # --- one answer -----------------------------------------------------------------------------------------------

    async def _answer(self, response: httpx.Response, where: str) -> bytes:
        status = response.status_code
        told = response.headers.get("inbetweenies-registry-revision", "")
        if _REVISION.fullmatch(told):
            self.registry_revision = told
        if 300 <= status < 400:
            raise _redirected(response, where)
        if not 200 <= status < 300:
            try:
                body = await self._read(response, where, PROBLEM_BYTES_MAX, PROBLEM_BYTES_MAX)
            except BadAnswer:
                body = b""  # the status says enough
            raise refused(
                status,
                body,
                retry_after=_retry_after(response),
                where=where,
                secret=self.credential,
            )
        media = response.headers.get("content-type", "")
        if not _is_json(media):
            got = (
                "an HTML page, as a network's login page or another program sends"
                if "html" in media
                else "another type"
            )
            raise BadAnswer(expected="JSON", got=got if media else "no content type", where=where)
        return await self._read(response, where, self._wire_bytes_max, self._decoded_bytes_max)

    async def _read(self, response: httpx.Response, where: str, wire_max: int, decoded_max: int) -> bytes:
        """The body, inflated by us: the library's own decoder inflates a whole chunk before anybody can look."""
        headers = response.headers
        length = headers.get("content-length")
        if length is None and "chunked" not in headers.get("transfer-encoding", "").lower():
            # It would end where the connection does, so a torn one would look whole.
            raise BadAnswer(expected="a body whose length is told", got="one without", where=where)
        if length is not None and length.isascii() and length.isdigit() and int(length[:20]) > wire_max:
            raise BadAnswer(expected=f"at most {wire_max} bytes", got=f"{int(length[:20])} bytes", where=where)
        coding = ", ".join(headers.get_list("content-encoding")).strip().lower()
        if coding not in ("", "identity", "gzip", "x-gzip"):
            raise BadAnswer(expected="gzip or no content encoding", got="another or several", where=where)
        inflater = zlib.decompressobj(31) if "gzip" in coding else None
        read, body = 0, bytearray()
        async for chunk in response.aiter_raw():
            read += len(chunk)
            if read > wire_max:
                raise BadAnswer(expected=f"at most {wire_max} bytes", got="more", where=where)
            if inflater is None:
                body += chunk
            else:
                _inflate(inflater, chunk, body, decoded_max, where)
            if len(body) > decoded_max:
                raise BadAnswer(expected=f"at most {decoded_max} bytes", got="more", where=where)
        if inflater is not None and not inflater.eof:
            raise BadAnswer(expected="gzip data to its end", got="a part of it", where=where)
        return bytes(body)


def _inflate(inflater: Any, chunk: bytes, body: bytearray, most: int, where: str) -> None:
    try:
        while chunk:
            if inflater.eof:
                raise BadAnswer(expected="nothing after the gzip data", got="more bytes", where=where)
            body += inflater.decompress(chunk, CHUNK_BYTES)
            chunk = inflater.unconsumed_tail or inflater.unused_data
            if len(body) > most:
                raise BadAnswer(expected=f"at most {most} bytes", got="more", where=where)
    except zlib.error as error:
        raise BadAnswer(expected="gzip data", got="bytes that are none", where=where) from error


_JSON: Final = re.compile(
    r"application/(?:json|[a-z0-9.-]{1,64}\+json)\s*(?:;\s*charset\s*=\s*\"?utf-?8\"?\s*)?", re.IGNORECASE
)


def _is_json(media: str) -> bool:
    return _JSON.fullmatch(media.strip()) is not None


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds, at most an hour; a date counts from the server's own clock."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_AFTER_MAX_S)
    try:
        now = parsedate_to_datetime(response.headers.get("date", ""))
        seconds = (parsedate_to_datetime(text) - now).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S)


def _redirected(response: httpx.Response, where: str) -> Refused:
    """A redirect could carry the token and the data elsewhere; a person decides. The target is a peer's text."""
    here, there = response.request.url, response.next_request
    to = "another place"
    if there is not None and there.url.host == here.host:
        to = "https on the same host" if (here.scheme, there.url.scheme) == ("http", "https") else "the same host"
    elif there is not None:
        to = "another host"
    advice = "Redirects are not followed: connect to the address that is meant."
    return Refused(
        status=response.status_code, code="redirected", detail=f"it redirects to {to}", where=where, advice=advice
    )


def _unreachable(error: httpx.HTTPError, where: str) -> Unreachable:
    """What happened in words; the library's own texts can hold what was sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unreachable(
                f"{where}: expected a certificate that can be verified; got another one. Somebody may be in between, "
                "or the server uses a private certificate, which must be trusted first.",
                retry=False,
            )
        cause = cause.__cause__ or cause.__context__
    kinds: tuple[tuple[type[httpx.HTTPError], str], ...] = (
        (httpx.ConnectTimeout, "no connection in time"),
        (httpx.ConnectError, "no connection"),
        (httpx.TimeoutException, "none in time"),
        (httpx.ProxyError, "a proxy's refusal"),
        (httpx.RemoteProtocolError, "a connection that ended early, or no HTTP"),
        (httpx.NetworkError, "a connection that broke"),
    )
    got = next((text for kind, text in kinds if isinstance(error, kind)), "none")
    return Unreachable(
        f"{where}: expected an answer; got {got}. Nothing is lost here; check the network and try again."
    )


__all__ = [
    "BadAnswer",
    "HttpTransport",
    "Refused",
    "Transport",
    "TransportError",
    "Unauthorized",
    "Unreachable",
    "origin_of",
    "refused",
]
