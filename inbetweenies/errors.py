"""Whose fault, what was expected, what was got, where.

`RemoteProtocolError` is the one type for "the peer sent something wrong": the only `except` a shell needs around
bytes that came from outside. A misuse of this library is `LocalProtocolError`. What a store could not do is
`StoreError`. No message ever holds a value that a peer sent: only its type, its length, and where it stood.
"""

from __future__ import annotations

# PROTOCOL 2.6: a problem is told in at most this many bytes, whatever the peer sent.
PROBLEM_BYTES_MAX = 1024
POINTER_BYTES_MAX = 130

#: HTTP status of each code (PROTOCOL 2.7). Codes that are not listed are 400.
STATUS = {
    "body_too_large": 413,
    "version_retired": 410,
    "unauthorized": 401,
    "origin_refused": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "timeout": 408,
    "conflict_resolved": 409,
    "unsupported_media_type": 415,
    "too_many_requests": 429,
    "headers_too_large": 431,
    "unavailable": 503,
    "storage_full": 507,
}


def clip(text: str, size: int = 200) -> str:
    """`text` in at most `size` bytes of UTF-8, printable and without what JSON would have to escape."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text[:size])
    plain = plain.replace('"', "'").replace("\\", "/")
    cut = plain.encode(errors="replace")[:size].decode(errors="ignore")
    return cut if len(text) <= size and cut == plain else cut[:-3] + "..."


class InbetweeniesError(Exception):
    """The root of every error this library raises on purpose."""


class LocalProtocolError(InbetweeniesError, RuntimeError):
    """This side used the library wrongly; fix the calling code."""


class RemoteProtocolError(InbetweeniesError):
    """The peer sent something wrong (PROTOCOL 2.6).

    Attributes:
        code: one of the codes of PROTOCOL 2.7, such as ``malformed_body``.
        expected: what a correct peer would have sent, in words.
        got: what this peer sent: type and length, never the value.
        pointer: RFC 6901 JSON pointer to the place in the body, ``""`` for the whole.
    """

    def __init__(self, *, code: str, expected: str, got: str, pointer: str = "") -> None:
        # Each is told twice in a problem, once alone and once in a sentence, and all of it fits `PROBLEM_BYTES_MAX`.
        self.code = clip(code, 40)
        self.expected = clip(expected, 150)
        self.got = clip(got, 80)
        self.pointer = clip(pointer, POINTER_BYTES_MAX)
        where = f" at {self.pointer}" if self.pointer else ""
        super().__init__(f"{self.code}{where}: expected {self.expected}; got {self.got}")

    @property
    def status(self) -> int:
        """The HTTP status that goes with `code`."""
        return STATUS.get(self.code, 400)


class VersionRefused(RemoteProtocolError):
    """No wire version could be agreed on, or the one asked for is not served (PROTOCOL 5).

    The same on both sides: a server raises it to refuse a request, a client to tell that it was refused.

    Attributes:
        requested: the version asked for when it is well formed, else None.
        supported: the versions that would be served, best first.
        side: who is behind: ``client``, ``server`` or ``unknown``.
        retry: what helps: ``renegotiate`` or ``never``.
        registry_revision: names the set of versions that was in force.
        docs: where people can read which release speaks which version.
    """

    def __init__(
        self,
        *,
        code: str,
        expected: str,
        got: str,
        pointer: str = "/protocol_version",
        requested: str | None = None,
        supported: tuple[str, ...] = (),
        side: str = "unknown",
        retry: str = "renegotiate",
        registry_revision: str | None = None,
        docs: str | None = None,
    ) -> None:
        super().__init__(code=code, expected=expected, got=got, pointer=pointer)
        self.requested = requested
        self.supported = supported
        self.side = side
        self.retry = retry
        self.registry_revision = registry_revision
        self.docs = docs


class UnsupportedVersion(VersionRefused):
    """The version asked for is not served, and which are was not told or does not help."""


class NoCommonVersion(VersionRefused):
    """Each side speaks versions that the other does not. `side` is who must be updated."""


class VersionDisabled(VersionRefused):
    """The version asked for is switched off for now. What waits to be sent keeps; ask again later."""


class BodyNotValidForVersion(VersionRefused):
    """The body was read in a version that it was not written for, and is not valid in it. Nothing was applied."""


class ServedVersionMismatch(VersionRefused):
    """A server answered in a wire version that was not offered: nothing of the answer is believed (PROTOCOL 5.9)."""


class StoreError(InbetweeniesError):
    """The store could not do what was asked. Nothing of the transaction was applied; nothing may be acknowledged."""


class StoreBusy(StoreError):
    """Another writer holds the store for too long. Try again; nothing is wrong with the request."""


class StoreUndone(StoreBusy):
    """What was written was undone because of another writer whose commit it shared. Run the same once more."""


class StoreFull(StoreError):
    """No room is left to write. Reads go on; writes are refused until there is room."""


class StoreCorrupt(StoreError):
    """The store holds something it cannot have written. Restore it from a backup before writing to it again."""
