"""Who speaks: bearer tokens, made, hashed and looked up; and how often a source may guess (PROTOCOL 7).

A token is the text ``ib1_<key id>_<secret>``: the prefix lets secret scanners find a leaked one, the key id is public
and finds the row, the secret is 256 random bits. Only the SHA-256 of the whole text is kept, so nobody who reads the
database can speak as anybody. A token belongs to one graph and one user: what a body says about who sent it is only
ever a label (PROTOCOL 7.5).

Times are whole microseconds since 1970 UTC. `mint`, `judge` and `bearer` are pure.
"""

from __future__ import annotations

import hmac
import re
import secrets
import sqlite3
import threading
from base64 import urlsafe_b64encode
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from ipaddress import IPv6Address, ip_address, ip_network
from os import PathLike
from pathlib import Path
from typing import Final, Literal, Protocol

from msgspec import Struct
from msgspec.structs import astuple, replace

from .errors import LocalProtocolError, StoreBusy, StoreCorrupt, StoreError, StoreFull
from .model import Context
from .stores import BUSY_TIMEOUT_MS, SqliteStore
from .stores.clock import wall_clock

Role = Literal["member", "admin"]

RANDOM_BYTES: Final = 4 + 32  # of the key id, of the secret
NAME_BYTES_MAX: Final = 255  # graphs, users and devices of tokens are typed by people
_TOKEN: Final = re.compile(rb"ib1_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_TOKEN_BYTES_MAX: Final = 128  # nothing longer is hashed: a header may hold megabytes
_NOBODY: Final = bytes(32)
_BEARER: Final = re.compile(rb"bearer +(\S.*)", re.IGNORECASE | re.DOTALL)


# --- values -------------------------------------------------------------------------------------------------------


class Principal(Struct, frozen=True, kw_only=True):
    """PROTOCOL 7.1: who a token speaks for. Nothing in a request body can change it."""

    graph: str
    user: str
    device: str | None = None
    token_id: str = ""
    role: Role = "member"
    expires: int | None = None

    def context(self, now: int) -> Context:
        """What the rules are told about a request of this principal that is served at `now`."""
        return Context(graph=self.graph, user=self.user, device=self.device, token=self.token_id, now=now)


class TokenInfo(Struct, frozen=True, kw_only=True):
    """Everything about a token but its secret. `expires` and `revoked` are the times from which it is refused."""

    key_id: str
    graph: str
    user: str
    device: str | None
    role: Role
    created: int
    expires: int | None
    revoked: int | None = None

    @property
    def principal(self) -> Principal:
        return Principal(
            graph=self.graph,
            user=self.user,
            device=self.device,
            token_id=self.key_id,
            role=self.role,
            expires=self.expires,
        )


class Tokens(Protocol):
    """The port behind which tokens are kept. Methods may be called from any thread.

    `find` is called once per request on the event loop, so it must answer at once; the others may block.
    """

    def create(
        self, graph: str, user: str, device: str | None = None, expires: int | None = None, *, role: Role = "member"
    ) -> tuple[str, TokenInfo]:
        """A new token: its text, which exists nowhere else, and what is kept of it.

        Raises:
            LocalProtocolError: a name is empty, longer than 255 bytes or has control characters.
            StoreError: it could not be kept; there is no new token.
        """

    def list(self) -> tuple[TokenInfo, ...]:
        """Every token, oldest first, expired and revoked ones too. Raises `StoreError`."""

    def revoke(self, key_id: str) -> bool:
        """Refuse the token from the next request on. False if there is none that could be. Raises `StoreError`."""

    def find(self, secret: str | bytes, now: int) -> Principal | None:
        """Who the text of a token speaks for; None if unknown, expired or revoked. Raises `StoreError`."""


# --- the rules ----------------------------------------------------------------------------------------------------


def mint(random: bytes) -> tuple[str, str, bytes]:
    """A token out of 36 random bytes: its text, its key id, and the hash that is kept."""
    if len(random) != RANDOM_BYTES:
        raise LocalProtocolError(f"expected {RANDOM_BYTES} random bytes; got {len(random)}")
    key_id = random[:4].hex()
    text = f"ib1_{key_id}_{urlsafe_b64encode(random[4:]).decode().rstrip('=')}"
    return text, key_id, sha256(text.encode()).digest()


def key_id_of(secret: bytes) -> str | None:
    """The public part of a token's text; None for any other bytes."""
    match = _TOKEN.fullmatch(secret) if len(secret) <= _TOKEN_BYTES_MAX else None
    return match[1].decode() if match else None


def judge(secret: bytes, kept: tuple[bytes, TokenInfo] | None, now: int) -> Principal | None:
    """PROTOCOL 7.2: who `secret` speaks for, given what is kept under its key id.

    Does the same work for every token, so that the time it takes tells nobody which key ids exist.
    """
    digest = sha256(secret[:_TOKEN_BYTES_MAX]).digest()
    same = hmac.compare_digest(digest, kept[0] if kept else _NOBODY)
    if kept is None or not same:
        return None
    info = kept[1]
    if info.revoked is not None or (info.expires is not None and now >= info.expires):
        return None
    return info.principal


def bearer(header: bytes) -> bytes | None:
    """RFC 6750: the credentials of an ``Authorization`` header; None if it names another scheme or none."""
    match = _BEARER.fullmatch(header.strip())
    return match[1] if match else None


def same_password(given: str, configured: str) -> bool:
    """Whether two passwords are equal, in a time that tells nothing about where they differ."""
    hashes = [sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (given, configured)]
    return hmac.compare_digest(*hashes)


def _new(
    graph: str, user: str, device: str | None, expires: int | None, role: Role, *, now: int, random: bytes
) -> tuple[str, bytes, TokenInfo]:
    for name, value in (("graph", graph), ("user", user), ("device", device)):
        if value is None and name == "device":
            continue
        size = len((value or "").encode("utf-8", "surrogatepass"))
        if not 0 < size <= NAME_BYTES_MAX:
            raise LocalProtocolError(f"{name}: expected 1 to {NAME_BYTES_MAX} bytes; got {size}")
        if not str(value).isprintable():
            raise LocalProtocolError(f"{name}: expected printable characters only; got others")
    if expires is not None and expires <= now:
        raise LocalProtocolError("expires: expected a time to come; got one that has passed")
    text, key_id, digest = mint(random)
    info = TokenInfo(key_id=key_id, graph=graph, user=user, device=device, role=role, created=now, expires=expires)
    return text, digest, info


def _bytes(secret: str | bytes) -> bytes:
    return secret if isinstance(secret, bytes) else secret.encode("utf-8", "surrogatepass")


# --- where tokens are kept ----------------------------------------------------------------------------------------


class MemoryTokens:
    """Tokens that last as long as the process.

    Args:
        clock: microseconds since 1970.
        random: that many random bytes.
    """

    def __init__(
        self, *, clock: Callable[[], int] = wall_clock, random: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        self._clock = clock
        self._random = random
        self._kept: dict[str, tuple[bytes, TokenInfo]] = {}
        self._lock = threading.Lock()

    def create(
        self, graph: str, user: str, device: str | None = None, expires: int | None = None, *, role: Role = "member"
    ) -> tuple[str, TokenInfo]:
        """See `Tokens.create`."""
        while True:
            text, digest, info = _new(
                graph, user, device, expires, role, now=self._clock(), random=self._random(RANDOM_BYTES)
            )
            with self._lock:
                if info.key_id not in self._kept:
                    self._kept[info.key_id] = (digest, info)
                    return text, info

    def list(self) -> tuple[TokenInfo, ...]:
        """See `Tokens.list`."""
        with self._lock:
            return tuple(info for _, info in self._kept.values())

    def revoke(self, key_id: str) -> bool:
        """See `Tokens.revoke`."""
        with self._lock:
            digest, info = self._kept.get(key_id, (b"", None))
            if info is None or info.revoked is not None:
                return False
            self._kept[key_id] = (digest, replace(info, revoked=self._clock()))
            return True

    def find(self, secret: str | bytes, now: int) -> Principal | None:
        """See `Tokens.find`."""
        text = _bytes(secret)
        return judge(text, self._kept.get(key_id_of(text) or ""), now)


_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS tokens (
        key_id TEXT NOT NULL PRIMARY KEY,
        hash BLOB NOT NULL,
        graph TEXT NOT NULL,
        user TEXT NOT NULL,
        device TEXT,
        role TEXT NOT NULL,
        created INTEGER NOT NULL,
        expires INTEGER,
        revoked INTEGER
    ) STRICT
"""
_COLUMNS: Final = "key_id, graph, user, device, role, created, expires, revoked"
_FIND: Final = f"SELECT hash, {_COLUMNS} FROM tokens WHERE key_id = ?"  # noqa: S608 - two constants
_LIST: Final = f"SELECT {_COLUMNS} FROM tokens ORDER BY created, rowid"  # noqa: S608
_ADD: Final = f"INSERT INTO tokens (hash, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_REVOKE: Final = "UPDATE tokens SET revoked = ? WHERE key_id = ? AND revoked IS NULL"
_FORGET: Final = "DELETE FROM tokens WHERE expires < ?"

#: A client that logs in at every start leaves a token each time; an expired one is listed for 30 days more.
EXPIRED_KEPT_US: Final = 30 * 24 * 3600 * 1_000_000


class SqliteTokens:
    """Tokens beside the graphs, in the file of a `SqliteStore`, which is made if there is none.

    Several processes may use one file at once: a token that is made or revoked by another one is known at the next
    request, because nothing is cached.

    Args:
        path: the file.
        busy_timeout_ms: how long to wait for another writer.
        clock: microseconds since 1970.
        random: that many random bytes.

    Raises:
        StoreError: the file cannot be opened, or is not one of a `SqliteStore`.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        busy_timeout_ms: int = BUSY_TIMEOUT_MS,
        clock: Callable[[], int] = wall_clock,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._path = Path(path).absolute()
        self._busy_timeout_ms = busy_timeout_ms
        self._clock = clock
        self._random = random
        # Makes the file as a store wants it, and refuses one that is not ours.
        store = SqliteStore(path, busy_timeout_ms=busy_timeout_ms)
        with suppress(StopIteration):
            store.close().send(None)
        with self._writer("keep tokens") as connection:
            connection.execute(_SCHEMA)
        # Readers never wait for writers here, so one connection on which finders queue answers at once.
        with _border("keep tokens"):
            self._reader = self._connect()
        self._lock = threading.Lock()

    def create(
        self, graph: str, user: str, device: str | None = None, expires: int | None = None, *, role: Role = "member"
    ) -> tuple[str, TokenInfo]:
        """See `Tokens.create`."""
        while True:
            now = self._clock()
            text, digest, info = _new(graph, user, device, expires, role, now=now, random=self._random(RANDOM_BYTES))
            with suppress(sqlite3.IntegrityError), self._writer("add a token") as connection:
                connection.execute(_FORGET, (now - EXPIRED_KEPT_US,))
                connection.execute(_ADD, (digest, *astuple(info)))
                return text, info

    def list(self) -> tuple[TokenInfo, ...]:
        """See `Tokens.list`."""
        with self._lock, _border("list tokens"):
            return tuple(TokenInfo(**dict(zip(_FIELDS, row, strict=True))) for row in self._reader.execute(_LIST))

    def revoke(self, key_id: str) -> bool:
        """See `Tokens.revoke`."""
        with self._writer("revoke a token") as connection:
            return connection.execute(_REVOKE, (self._clock(), key_id)).rowcount == 1

    def find(self, secret: str | bytes, now: int) -> Principal | None:
        """See `Tokens.find`."""
        text = _bytes(secret)
        with self._lock, _border("look up a token"):
            # All of them: a cursor that is not at its end would go on seeing the file as it is now.
            rows = self._reader.execute(_FIND, (key_id_of(text) or "",)).fetchall()
        kept = (rows[0][0], TokenInfo(**dict(zip(_FIELDS, rows[0][1:], strict=True)))) if rows else None
        return judge(text, kept, now)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._reader.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw",
            uri=True,
            timeout=self._busy_timeout_ms / 1000,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")  # a token that was shown must not be gone after a power cut
            connection.execute("PRAGMA trusted_schema = OFF")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _writer(self, doing: str) -> Iterator[sqlite3.Connection]:
        """A transaction on a connection of its own: writing is rare, and may wait for a push in another thread."""
        with _border(doing), closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")  # without it, closing rolls back


_FIELDS: Final = TokenInfo.__struct_fields__


@contextmanager
def _border(doing: str) -> Iterator[None]:
    """No exception of SQLite's gets past this, but for a key id that is taken."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        kinds = {sqlite3.SQLITE_BUSY: StoreBusy, sqlite3.SQLITE_LOCKED: StoreBusy, sqlite3.SQLITE_FULL: StoreFull}
        kinds |= {sqlite3.SQLITE_CORRUPT: StoreCorrupt, sqlite3.SQLITE_NOTADB: StoreCorrupt}
        told = getattr(error, "sqlite_errorname", type(error).__name__)
        raise kinds.get(code, StoreError)(f"SQLite could not {doing}: {told}") from error
    except MemoryError as error:  # SQLite's NOMEM comes as this, not as an error of its own
        raise StoreError(f"SQLite could not {doing}: out of memory") from error


# --- where a peer is, and how often it may guess ------------------------------------------------------------------


class Failures:
    """After `most` failures within `window_us` a source waits. Per source, so nobody locks out another.

    Holds the newest `sources_max` sources, so that it cannot grow. Not for sharing between threads.
    """

    def __init__(self, most: int = 10, window_us: int = 60_000_000, sources_max: int = 10_000) -> None:
        self._most = most
        self._window_us = window_us
        self._sources_max = sources_max
        self._of: OrderedDict[str, deque[int]] = OrderedDict()

    def wait_us(self, source: str, now: int) -> int:
        """How many microseconds `source` must wait until it may try again; 0 if it may now."""
        times = self._of.get(source)
        if times is None or len(times) < self._most:
            return 0
        return min(max(times[0] + self._window_us - now, 0), self._window_us)

    def add(self, source: str, now: int) -> None:
        """`source` failed. `now` is any clock in microseconds that never steps back."""
        self._of.setdefault(source, deque(maxlen=self._most)).append(now)
        self._of.move_to_end(source)
        if len(self._of) > self._sources_max:
            self._of.popitem(last=False)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def source_of(host: str) -> str:
    """What counts as one source: an address, for IPv6 its /64, which one household has whole."""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(ip_network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)
