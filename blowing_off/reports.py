"""What the client tells: how far a sync is, what it did, and where a replica stands."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from inbetweenies.model import Conflict, Entity, Proof
from inbetweenies.model import Refused as RefusedItem

from .store import Counts


class Progress(Struct, frozen=True, kw_only=True):
    """How far a sync is: rows acknowledged, rows that came in, rows that still wait, and what was or is to be sent."""

    pushed: int
    pulled: int
    pending: int
    total: int
    messages: int


class Notice(Struct, frozen=True, kw_only=True):
    """Something that the server wants people to know (PROTOCOL 14), in this client's words.

    Attributes:
        kind: ``maintenance``, ``rollback``, or what a newer server calls it.
        severity: ``info`` or ``warning``.
        at: when it was, in microseconds since 1970.
        duration_s: of a maintenance, in seconds.
        proof: why data is safe, which is said only with one; compared with what this replica holds.
        new: nobody was shown it before.
    """

    id: str
    kind: str
    title: str
    message: str
    severity: Literal["info", "warning"]
    at: int
    duration_s: int | None = None
    proof: Proof | None = None
    new: bool = False

    @property
    def safe(self) -> bool:
        """Whether it says that data is safe."""
        return self.proof is not None


class SyncReport(Struct, frozen=True, kw_only=True):
    """What one sync did.

    Attributes:
        served: the wire version in which the server answered.
        pushed: rows of ours that the server acknowledged.
        pulled: ids whose row on the server became known here.
        conflicts: what lost, in the server's words; the losing rows are kept.
        refused: rows that the server would not take, and why; they wait here.
        pending: how many rows still wait.
        healed: a difference was found that no rule explains, and what differs was looked for and exchanged.
        messages: how many requests it took.
        digest: what this replica knows of the server, as one number in hexadecimal; None if the server has none.
        equal: whether that is what the server says that it holds; None if it does not say.
        complete: False if the server had more to tell; sync again.
        rewound: the server had lost rows that it once held; it was set back, or is another one.
        lost: how many of them are known here. They are given back to it, whoever wrote them.
        discarded: how many are not, because its operator said that they should stay away; they are in the history.
        offered: rows given back that the server acknowledged.
        differing: ids that differed for no known reason.
        forked: another copy of this replica had pushed; this one goes on under a device name of its own.
        notices: what the server wants people to know and nobody was shown yet; it counts as shown now.
    """

    served: str | None
    pushed: int
    pulled: int
    conflicts: tuple[Conflict, ...]
    refused: tuple[RefusedItem, ...]
    pending: int
    healed: bool
    messages: int
    digest: str | None
    equal: bool | None
    complete: bool = True
    rewound: bool = False
    lost: int = 0
    discarded: int = 0
    offered: int = 0
    differing: int = 0
    forked: bool = False
    notices: tuple[Notice, ...] = ()


class Version(Struct, frozen=True, kw_only=True):
    """One row of an entity's history; `source` is ``here`` if this replica holds it, else ``server``."""

    entity: Entity
    current: bool
    pending: bool
    source: Literal["here", "server"]


class Blocked(Struct, frozen=True, kw_only=True):
    """A row that waits for a reason, and what a person can do about it."""

    kind: str
    id: str
    version: str
    name: str
    code: str
    detail: str
    advice: str


class Status(Struct, frozen=True, kw_only=True):
    """Where this replica stands. Times are in microseconds since 1970. `refused` tells what waits for a reason,
    `notices` what the server told people, the newest first."""

    path: str
    url: str | None
    user: str
    device: str
    wire: str | None
    cursor: str | None
    counts: Counts
    pending: int
    refused: tuple[Blocked, ...]
    conflicts: int
    digest: str
    last_sync: int | None
    last_error: str | None
    notices: tuple[Notice, ...] = ()
