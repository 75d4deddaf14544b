"""Every bound, named, with its reason; the gate that a body passes before it is decoded; the border after it.

`gate` judges raw bytes, `checked_decode` turns whatever the decoder can raise into one error, `canonical` writes the
one spelling in which JSON is stored, compared and hashed. Nothing here looks into a value that `gate` let through.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from .errors import POINTER_BYTES_MAX, LocalProtocolError, RemoteProtocolError

T = TypeVar("T")

# msgspec recurses in C for each level: a thread with a 128 KiB stack (musl's default) decodes 200 levels and dies,
# without an exception, at 500. A setting must not be able to bring that back.
DEPTH_CEILING: Final = 128


class Limits(Struct, frozen=True, kw_only=True):
    """PROTOCOL 2.5: every bound. All are settings; a server tells the ones it has in its discovery document.

    Raises:
        LocalProtocolError: a bound is below 1, or `depth_max` is above `DEPTH_CEILING`.
    """

    # -- any body, before it is decoded --
    body_bytes_max: int = 16 * 2**20  # deployed clients push all they have at once; 5 MB bodies were seen to pass
    depth_max: int = 64  # safe on every thread stack tried; a stack overflow in C ends the process, not the request
    nodes_max: int = 2**20  # ten bytes of `[[[[]]]]` cost 400 of memory: without this 16 MiB of body become 670

    # -- one row --
    id_bytes_max: int = 1024  # ids are opaque and deployed ones have no grammar; index rows end at 8,191 bytes
    version_bytes_max: int = 1024  # as ids: a row version is time, counter and a user id that has no other bound
    entity_bytes_max: int = 8 * 2**20  # canonical JSON of one row; deployed servers took names of 5 MB
    parents_max: int = 10_000  # deployed clients send all ancestors with every edit, so hundreds are normal

    # -- one push: what it may do beyond what it holds, for a v1 edit or a merge of ten bytes makes a whole row --
    handled_bytes_max: int = 64 * 2**20  # four times the largest body; a second of work, all of it in memory at once

    # -- one message; only for peers that announce `features`: deployed ones push and read everything at once --
    changes_max: int = 10_000  # ten times what our own server commits in about 10 ms
    page_rows_max: int = 1_000  # rows of one page: about 0.5 MB of typical rows

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 1:
                raise LocalProtocolError(f"Limits.{name} must be at least 1")
        if self.depth_max > DEPTH_CEILING:
            raise LocalProtocolError(f"Limits.depth_max must be at most {DEPTH_CEILING}: a thread's stack ends there")


LIMITS: Final = Limits()


class Allowance:
    """What one push may still do of a kind. What it asks for first passes whatever that costs, or it never would."""

    def __init__(self, most: int) -> None:
        self._left = most

    def spend(self, cost: int) -> None:
        self._left -= cost

    @property
    def spent(self) -> bool:
        return self._left < 0


# --- before decoding ----------------------------------------------------------------------------------------------

_BOM: Final = b"\xef\xbb\xbf"
_STRUCTURE: Final = b'[]{}",'
_REST: Final = bytes(set(range(256)) - set(_STRUCTURE))
_AS_BRACES: Final = bytes.maketrans(b"[]", b"{}")
_ESCAPE: Final = re.compile(rb'\\[\\"]')
_CHUNK_BYTES: Final = 2**16


def gate(body: bytes, limits: Limits = LIMITS) -> None:
    """PROTOCOL 2.5: judge a body before anything decodes it. Linear in its size, whatever it holds.

    A body that passes is UTF-8 and its brackets close; it can still be no JSON at all. That is the decoder's to say.

    Raises:
        RemoteProtocolError: ``body_too_large``, or ``malformed_body`` for an encoding other than UTF-8 without BOM,
            brackets that do not close, too deep nesting or too many nodes.
    """
    if len(body) > limits.body_bytes_max:
        raise RemoteProtocolError(
            code="body_too_large", expected=f"at most {limits.body_bytes_max} bytes", got=f"{len(body)} bytes"
        )
    if body.startswith(_BOM):
        raise _malformed("UTF-8 without a byte order mark", "a byte order mark")
    if not body.isascii():
        # Here and not left to the decoder: it does not look inside what it skips or hands on raw.
        try:
            str(body, "utf-8")
        except UnicodeDecodeError as error:
            raise _malformed("UTF-8", f"another encoding at byte {error.start}") from None

    skeleton = _skeleton(body)
    opened = skeleton.count(b"{")
    # One per value, and one more per empty container.
    if (nodes := 1 + opened + skeleton.count(b",")) > limits.nodes_max:
        raise _malformed(f"at most {limits.nodes_max} nodes", f"{nodes} nodes")
    if opened != skeleton.count(b"}"):  # and what is left is at most two bytes for each node
        raise _malformed("brackets that close", "brackets that do not close")
    # Each pass removes the innermost level of all branches, so passes count levels. What closes within `depth_max`
    # passes is nested no deeper than that at any point, so in no prefix that the decoder reads before it gives up.
    levels = skeleton.translate(None, b",")
    for _ in range(limits.depth_max):
        if not levels:
            return
        levels = levels.replace(b"{}", b"")
    if b"{}" in levels:
        raise _malformed(f"nesting of at most {limits.depth_max}", f"nesting of {limits.depth_max + 1} or more")
    if levels:
        raise _malformed("brackets that close", "brackets that do not close")


def _skeleton(body: bytes) -> bytes:
    """The brackets (all as braces) and commas of `body` that stand outside of its strings.

    Exact up to the first byte at which `body` stops being JSON, and what comes after that the decoder never reads.
    """
    if b"\\" in body:
        body = _without_escapes(body)
    skeleton = body.translate(_AS_BRACES, _REST)
    # Two quotes side by side: leaving them out moves nothing from inside a string to outside of it.
    skeleton = skeleton.replace(b'""', b"")
    return _outside(skeleton) if b'"' in skeleton else skeleton


def _without_escapes(body: bytes) -> bytes:
    r"""`body` without each ``\\`` and ``\"``, so that every quote left opens or closes a string.

    A run of backslashes in JSON always begins at one that is not itself escaped, so pairing them from the left of
    each run is exact. Both ways give the same bytes; which one is faster depends on how many there are.
    """
    if body.count(b"\\") < len(body) // 32:
        return _ESCAPE.sub(b"", body)
    return body.replace(b"\\\\", b"").replace(b'\\"', b"")


def _outside(skeleton: bytes) -> bytes:
    """What stands outside of quotes. In chunks: a split of the whole costs 40 bytes of memory for each quote."""
    kept = []
    inside = 0
    for start in range(0, len(skeleton), _CHUNK_BYTES):
        pieces = skeleton[start : start + _CHUNK_BYTES].split(b'"')
        kept.append(b"".join(pieces[inside::2]))
        inside ^= (len(pieces) - 1) & 1
    return b"".join(kept)


def _malformed(expected: str, got: str, pointer: str = "") -> RemoteProtocolError:
    return RemoteProtocolError(code="malformed_body", expected=expected, got=got, pointer=pointer)


# --- decoding -----------------------------------------------------------------------------------------------------

# Where msgspec says that it stood: "... - at `$.changes[0].entity`", "... - at `key` in `$.content[...]`".
_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$([^`]*)`\Z")
_STEP: Final = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")
# The sentences that are told on, word for word, because only our own types and bounds can stand in them. All others
# may quote the peer (enum values, tags, names of unknown fields, what a hook raised) and are only paraphrased.
_EXPECTED: Final = re.compile(
    r"Expected (`[\w |]{1,80}`(?: (?:of length|of at least length|matching regex|that's a multiple|with|<|>).{1,80}?)?)"
    r"(?:, got (`[\w |]{1,80}`|\d{1,20}))?\Z",
    re.DOTALL,
)
_MISSING: Final = re.compile(r"Object missing required field (`\w{1,80}`)\Z")
_UNKNOWN: Final = re.compile(r"Object contains unknown field ")
_NOT_A_CHOICE: Final = re.compile(r"Invalid (?:enum )?value ['\"\d-]")
_BYTE: Final = re.compile(r"JSON is malformed: .{0,80} \(byte (\d{1,20})\)\Z", re.DOTALL)
_SENTENCES: Final = {
    "Input data was truncated": ("a whole JSON document", "the beginning of one"),
    "Number out of range": ("a number within the range of a double", "one beyond it"),
    "Integer value out of range": ("an integer that fits", "a longer one"),
    "Invalid base64 encoded string": ("base64", "a str that is not"),
}


def checked_decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """What `decoder` makes of a body that passed `gate`. The one border that foreign exceptions do not cross.

    Raises:
        RemoteProtocolError: ``malformed_body``, whatever the decoder raised.
    """
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, OverflowError, ValueError) as error:
        # Not chained: msgspec's message quotes the peer, and a logged traceback would print it.
        raise decode_error(error) from None


def decode_error(error: Exception) -> RemoteProtocolError:
    """What a decoder raised, told without any value that the peer sent: expected, got, and the JSON pointer."""
    if isinstance(error, UnicodeError):
        return _malformed("UTF-8", "another encoding")
    if isinstance(error, RecursionError):
        return _malformed("nesting that the decoder can follow", "deeper nesting")
    if not isinstance(error, msgspec.MsgspecError):
        return _malformed("a value of the expected type", "a value that cannot be converted")

    message = str(error)
    if _UNKNOWN.match(message):
        # Its path is not told either: the name can end in text that reads like one.
        return _malformed("only fields that this wire version knows", "another field")
    place = _PLACE.search(message)
    sentence = message[: place.start()] if place else message
    pointer = _pointer(place[1]) if place else ""
    if match := _EXPECTED.match(sentence):
        return _malformed(match[1], match[2] or "another value", pointer)
    if match := _MISSING.match(sentence):
        return _malformed(f"the field {match[1]}", "none", pointer)
    if match := _BYTE.match(sentence):
        return _malformed("JSON", f"something else at byte {match[1]}", pointer)
    if _NOT_A_CHOICE.match(sentence):
        return _malformed("one of the values that this wire version knows", "another value", pointer)
    if sentence in _SENTENCES:
        expected, got = _SENTENCES[sentence]
        return _malformed(expected, got, pointer)
    return _malformed("a message of this wire version", "something else")


def _pointer(path: str) -> str:
    """RFC 6901 pointer of msgspec's path. A key of the peer's stands as ``...`` there, and stays that."""
    pointer = ""
    for name, index in _STEP.findall(path):
        token = "/" + (index or name.replace("~", "~0").replace("/", "~1"))
        if len(pointer) + len(token) > POINTER_BYTES_MAX:
            break  # recursive types nest as deep as the body does
        pointer += token
    return pointer


# --- storing ------------------------------------------------------------------------------------------------------

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def canonical(value: Any, *, trusted: bool = False, pointer: str = "", limits: Limits = LIMITS) -> bytes:
    """PROTOCOL 3.6: the one spelling of a JSON value: keys by code point, no white space, shortest floats, UTF-8.

    Equal bytes mean equal values, kind of number included: ``1`` and ``1.0`` stay apart, as do ``0.0`` and ``-0.0``.

    Args:
        value: None, bool, int, float, str, and lists, tuples and str-keyed dicts of these.
        trusted: `value` came out of `checked_decode`, unchanged. Then it can be neither NaN nor infinite, which the
            encoder would write as null, nor too deep, and is not looked through.
        pointer: where the value stands, for the error.

    Raises:
        RemoteProtocolError: ``not_storable``: JSON cannot hold the value exactly.
    """
    if not trusted:
        _check_exact(value, pointer, limits)
    try:
        return _ENCODER.encode(value)
    except UnicodeError:
        raise _not_storable("text that UTF-8 can hold", "a lone surrogate", pointer) from None
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        raise _not_storable("a value that JSON holds exactly", "one that it does not", pointer) from None


def _check_exact(value: Any, pointer: str, limits: Limits) -> None:
    level, depth, nodes = [value], 0, 1
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, (dict, list, tuple)):
                # Counted before it is looked into, so that a list that holds itself, or one branch a million times,
                # comes to an end.
                nodes += len(item)
                if depth == limits.depth_max:
                    raise _not_storable(f"nesting of at most {depth}", f"nesting of {depth + 1} or more", pointer)
                if nodes > limits.nodes_max:
                    raise _not_storable(f"at most {limits.nodes_max} nodes", f"{nodes} or more", pointer)
                if isinstance(item, dict):
                    if not all(isinstance(key, str) for key in item):
                        raise _not_storable("keys of type `str`", "a key of another type", pointer)
                    below.extend(item.values())
                else:
                    below.extend(item)
            elif isinstance(item, float):
                if not math.isfinite(item):
                    raise _not_storable("a finite number", "one that is not finite", pointer)
            elif item is not None and not isinstance(item, (str, int)):
                raise _not_storable("a JSON value", f"`{type(item).__name__}`", pointer)
        level, depth = below, depth + 1


def _not_storable(expected: str, got: str, pointer: str) -> RemoteProtocolError:
    return RemoteProtocolError(code="not_storable", expected=expected, got=got, pointer=pointer)
