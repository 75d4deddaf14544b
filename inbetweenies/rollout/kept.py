"""What is common to the documents in which decisions about rollouts are kept: who decided, and strict reading."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from ..errors import LocalProtocolError, RemoteProtocolError, StoreCorrupt
from ..limits import checked_decode
from ..model import Document
from ..negotiation import NAME

T = TypeVar("T")

TEXT_CHARS_MAX: Final = 500  # a sentence or two; what is longer belongs where it can be linked to

_encode: Final = msgspec.json.Encoder(order="deterministic").encode


class Cause(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PROTOCOL 12.2: who changed something and why, at `at` microseconds since 1970.

    Raises:
        LocalProtocolError: nobody, or no reason, is named, or in text that cannot be shown.
    """

    actor: str
    reason: str
    at: int

    def __post_init__(self) -> None:
        for name, text in (("an actor", self.actor), ("a reason", self.reason)):
            if not (text.strip() and text.isprintable() and len(text) <= TEXT_CHARS_MAX):
                raise LocalProtocolError(
                    f"expected {name} of 1 to {TEXT_CHARS_MAX} printable characters; got {len(text)} others"
                )


def check_name(name: str, what: str) -> None:
    """Raise `LocalProtocolError` unless `name` could name a wire version, which features are named like."""
    if NAME.fullmatch(name) is None:
        raise LocalProtocolError(f"expected {what} of 1 to 64 printable ASCII characters; got another")


def read(decoder: msgspec.json.Decoder[T], document: Document, what: str) -> T | None:
    """What a document of the store holds; None if it was never written.

    Raises:
        StoreCorrupt: it holds something else.
    """
    if not document.revision and not document.body:
        return None
    try:
        return checked_decode(decoder, document.body)
    except (RemoteProtocolError, LocalProtocolError) as error:
        raise StoreCorrupt(
            f"expected {what} in the store; got something else, perhaps of a newer release: {error}"
        ) from error


def written(value: Struct) -> bytes:
    """`value` as the body of a document."""
    return _encode(value)
