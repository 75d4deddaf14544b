"""What a drill has found out, before anything is made of it."""

from __future__ import annotations

from msgspec import Struct

from .ledger import Acked, Keepsake


class Compared(Struct, frozen=True, kw_only=True):
    """One replica in the end.

    Attributes:
        waiting: how many rows it could not get rid of.
        told: whether it found itself equal to what the server told of its graph.
        digest: of what it holds, counted anew.
        server: of what its graph holds, likewise.
    """

    name: str
    waiting: int
    told: bool
    digest: str
    server: str

    @property
    def equal(self) -> bool:
        return not self.unequal

    @property
    def unequal(self) -> str:
        """In what it differs, in words; empty if in nothing."""
        told = (
            (bool(self.waiting), f"{self.waiting} rows wait"),
            (self.digest != self.server, "it holds something else"),
            (not self.told, "it was told a digest of something else"),
        )
        return ", ".join(words for so, words in told if so)


class Findings(Struct, kw_only=True):
    """All of it. Durations are in seconds; None of what did not come about while anybody waited.

    Attributes:
        backup, restored: ``good``, or what was wrong, in words.
        by_itself, why: how long the rollout that did harm was not taken back, and what for it was.
        by_command: how long it took to take one back.
        in_effect: how long each time that took to hold in every process.
        informed: how long it took each client that speaks both to be told what it gets now, each time.
        notified: how long it took each of these whom it concerned to be shown that something was taken back, each time.
        nagged: who was shown that twice, or without being concerned.
        channels: ``all`` if each could be used in a test, else which could not.
        advances: how many of two controllers advanced, at each step.
        reached, stuck: whether the rollout came to everybody, and if not, why.
        switched, flips: how long each flip took to be durable, and to hold in every process; they were made in the time
            of `flipping`.
        lost, forgotten: before the restore, or if there was none.
        at_risk: how many writes had been acknowledged when the backup was restored; None if it never was.
    """

    own_home: bool = True
    rows: int = 0
    began: float = 0.0
    ended: float = 0.0
    seconds: float = 0.0
    backup: str = "there was none"
    restored: str = "there was nothing to restore"
    by_itself: float | None = None
    why: str = ""
    by_command: float | None = None
    in_effect: list[float | None] = []
    informed: list[float | None] = []
    notified: list[float | None] = []
    nagged: list[str] = []
    channels: str = "none was tried"
    advances: list[int] = []
    reached: bool = False
    stuck: str = ""
    switched: list[float] = []
    flips: list[float | None] = []
    flipping: tuple[float, float] = (0.0, 0.0)
    acked: int = 0
    lost: list[Acked] = []
    forgotten: list[tuple[Keepsake, str]] = []
    at_risk: int | None = None
    lost_by_restore: list[Acked] = []
    replicas: list[Compared] = []
