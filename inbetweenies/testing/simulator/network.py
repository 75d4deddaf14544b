"""What is on its way between devices and server: real bytes, which can be late, doubled, lost or damaged."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct

from ..fleet_base import NOTHING, Pushed

#: What happens to bytes on the way: cut off somewhere, or one bit flipped somewhere.
Damage = tuple[Literal["truncate", "flip"], int]

#: What stands in for the server's answer: whether its status says success, and its body.
PROXY_ANSWERS: Final[dict[str, tuple[bool, bytes]]] = {
    "502": (False, b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"),
    "login page": (True, b"<!DOCTYPE html><html><body>Welcome to Hotel WLAN</body></html>"),
    "nothing": (True, b""),
    "404": (False, b'{"detail":"Not Found"}'),
}


class Reply(Struct, frozen=True):
    """What the server said to one delivery of a letter. `generation` counts the restores that came before it, `start`
    the starts."""

    body: bytes
    ok: bool
    generation: int
    start: int


class Letter(Struct, eq=False):
    """One message of a device, and every answer to it.

    `exchange` tells its sender whether it still waits for the answer. `settled` is the generation of the server in
    which a delivery left nothing to be done by another one, None if there was none yet. `confirms` is the start of the
    server that gave the answer which a v1 ack is for.
    """

    n: int
    device: int
    exchange: int
    kind: str
    wire: str
    body: bytes
    pushed: Pushed = NOTHING
    odd: bool = False
    deliveries: int = 0
    settled: int | None = None
    confirms: int | None = None
    replies: list[Reply] = []


def damaged(body: bytes, damage: Damage | None) -> bytes:
    """`body` as it arrives. What is damaged is no JSON any more, so that whoever reads it must notice.

    A flipped high bit makes valid UTF-8 invalid wherever it is. Other flips make other legal messages, which only
    the transport could tell from true ones, and does.
    """
    if damage is None:
        return body
    kind, where = damage
    at = where % len(body)
    if kind == "truncate":
        return body[:at]
    return body[:at] + bytes((body[at] ^ 0x80,)) + body[at + 1 :]
