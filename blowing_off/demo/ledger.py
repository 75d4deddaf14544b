"""What was written, by whom, and what each was told: the ledger that the proof goes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct

from inbetweenies.model import (
    Conflict,
)

from ..values import wall_clock
from .basics import Record


class Write(Struct, kw_only=True):
    """One write of one client, as it went into the ledger when it was made.

    Attributes:
        says: the fields that were changed, and their values.
        version, whole: the row that a replica made, to the letter.
        at: the time that a v1 client gave its record; the server makes the row, whose version starts with it.
        found: where it was found in the end.
    """

    client: str
    kind: Literal["entity", "edge", "record"]
    id: str
    name: str
    says: dict[str, Any]
    version: str | None = None
    whole: dict[str, Any] | None = None
    at: int = 0
    found: Literal["current", "kept", "lost"] = "lost"


class Clock:
    """The clock of every client: it never stands still, so that of two edits one is always the later."""

    def __init__(self) -> None:
        self.last = 0

    def __call__(self) -> int:
        self.last = max(wall_clock(), self.last + 1)
        return self.last


class Ledger:
    """Every write that anybody made, in the order in which they were made; and what was told of conflicts."""

    def __init__(self, clock: Clock, tell: Callable[[str], None]) -> None:
        self.clock = clock
        self.tell = tell
        self.writes: list[Write] = []
        self.conflicts: list[Told] = []

    def wrote(self, write: Write, doing: str | None = None) -> Write:
        """Note down a write."""
        self.writes.append(write)
        if doing is not None:
            self.tell(f"{write.client}: {doing}")
        return write


class Told(Struct, kw_only=True):
    """A conflict as a client was told of it, by versions (`conflict`) or as v1 tells it (`record`, of `write`)."""

    client: str
    entity_id: str
    conflict: Conflict | None = None
    record: Record = {}
    write: Write | None = None
