"""Lines, each with a hash over what it says and the hash of the line before: whoever changes one changes all after it.

That tells a change by accident, or by somebody who does not know of it. Whoever can write the whole document can also
write all hashes anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Final

from msgspec import Struct

#: The hash before the first line.
NOTHING: Final = ""


class Line(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line.

    Attributes:
        n: counts from 1, and never again from the beginning.
        before: the hash of the line before.
        body: what it says.
        hash: over all of these, 16 bytes of BLAKE2b in hex.
    """

    n: int
    before: str
    body: str
    hash: str


def following(last: Line | None, body: str) -> Line:
    """The line after `last`."""
    n, before = (1, NOTHING) if last is None else (last.n + 1, last.hash)
    return Line(n=n, before=before, body=body, hash=_hash(n, before, body))


def broken(lines: Sequence[Line]) -> str | None:
    """What is wrong with the first of these lines that is not as it was written, in words; None if all are."""
    for one in lines:
        if one.hash != _hash(one.n, one.before, one.body):
            return f"{one.n}: expected the hash of what it says; got another: it was changed after it was written"
    for one, after in pairwise(lines):
        if (one.n + 1, one.hash) != (after.n, after.before):
            return f"{after.n}: expected it to follow {one.n}; it does not: what was between was changed, or is gone"
    if lines and lines[0].n == 1 and lines[0].before != NOTHING:
        return "1: expected nothing before the first one; got something"
    return None


def _hash(n: int, before: str, body: str) -> str:
    # A number and a hash hold no line break, so that no two lines come to the same bytes.
    return blake2b(f"{n}\n{before}\n{body}".encode(errors="surrogatepass"), digest_size=16).hexdigest()
