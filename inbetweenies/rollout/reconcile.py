"""What became of each row that was written since a rollout began: until nothing is unexplained, it is not over.

Read `accounted`. Nothing is taken on trust that can be worked out: of a row that lost, what was decided is decided anew
from the rows that were there when it came, by the rules of the server (PROTOCOL 6); what a wire version shows of a row
is read off the view that the shadow comparison holds against its answers (PROTOCOL 12.10). Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from .. import engine
from ..limits import Limits
from ..merge import FOR_REVIEW, VERSION_COLLISION, Policy
from ..model import Change, Entity, Head, Held, Kind, Plan, Reads, Row, Span, SyncRequest, body_of, row_hash
from ..pieces import ends
from ..review import waiting
from .shadow import Shadowed, pointer

#: What became of a row: it stands and is served; it stands and says that something is deleted; another row took its
#: place; it lost, and what is in it went into the row that followed; it lost, and is kept as a row of its own; it lost,
#: and a person has to decide; nobody can say.
Fate: TypeAlias = Literal["served", "tombstone", "superseded", "merged", "kept", "open", "unexplained"]
FATES: Final[tuple[Fate, ...]] = ("served", "tombstone", "superseded", "merged", "kept", "open", "unexplained")
#: How much of a row that stands a wire version shows: all of it, not all of it, nothing.
Shown: TypeAlias = Literal["whole", "in_part", "hidden"]

TOLD_MAX: Final = 100  # rows that are told one by one
AT_ONCE: Final = 256  # rows that are looked at together

#: Why a row is not current of which nobody lost anything.
SAME: Final = "says what stands already, or came after what descends from it"
CAME_BACK: Final = "came back to a log that had lost it, and had not stood there"


class Unexplained(Struct, frozen=True, kw_only=True):
    """A row of which nobody can say what became of it: which it is, and what was expected."""

    seq: int
    kind: Kind
    id: str
    version: str
    told: str


class Accounts(Struct, kw_only=True):
    """What became of some rows.

    Attributes:
        head: the end of the log.
        after: the seq after which they were written.
        fates: how many of them became what.
        why: of those that lost, why, in the words in which a pusher is told.
        shown: of those that are served, how many a wire version shows to which part.
        values: how many values of these it does not show.
        unexplained: the first `TOLD_MAX`.
    """

    head: Head
    after: int
    fates: Counter[Fate]
    why: Counter[str]
    shown: dict[str, Counter[Shown]]
    values: Counter[str]
    unexplained: list[Unexplained]

    def account(self, row: Row, fate: Fate, told: str = "") -> None:
        """Count a row; `told` says why it lost, or what was expected of one that nobody can explain."""
        self.fates[fate] += 1
        if fate == "unexplained":
            if len(self.unexplained) < TOLD_MAX:
                one = Unexplained(seq=row.seq, kind=row.kind, id=row.id, version=row.version, told=told)
                self.unexplained.append(one)
        elif told:
            self.why[told] += 1


def accounted(wires: Sequence[Shadowed], since: int, policy: Policy, limits: Limits) -> Plan[Accounts]:
    """What became of each row that was committed at `since` (microseconds) or later, in one snapshot. Only reads.

    `policy` is that of the server; what it leaves to people cannot be told from what was lost without it.
    """
    held = yield Reads(stamp=since - 1)
    head = held.head
    accounts = Accounts(
        head=head,
        after=held.stamp_seq,
        fates=Counter(),
        why=Counter(),
        shown={wire.name: Counter() for wire in wires},
        values=Counter(),
        unexplained=[],
    )
    unshown = yield from _unshown(wires, head, limits)
    for first in range(held.stamp_seq + 1, head.seq + 1, AT_ONCE):
        seqs = range(first, min(first + AT_ONCE, head.seq + 1))
        rows = (yield Reads(seqs=tuple(seqs))).seqs
        later = tuple(row.until for row in rows.values() if row.until is not None and row.until not in rows)
        after = rows | (yield Reads(seqs=later)).seqs
        lost = [row for row in rows.values() if row.until == row.seq]
        histories = yield Reads(
            history=tuple({row.id for row in lost if row.kind == "entity"}),
            edge_history=tuple({row.id for row in lost if row.kind == "edge"}),
        )
        for seq in sorted(rows):
            row = rows[seq]
            if row.until is None:
                _stands(accounts, row, unshown)
            elif row.until != row.seq:
                _was_followed(accounts, row, after.get(row.until))
            elif row.kind == "edge":
                _lost_edge(accounts, row, histories.edge_history[row.id])
            else:
                try:
                    _lost(accounts, row, histories.history[row.id], policy, limits)
                except (msgspec.MsgspecError, ValueError):
                    accounts.account(row, "unexplained", "expected rows of this id that can be read; got others")
    return accounts


# --- what stands --------------------------------------------------------------------------------------------------

_Unshown: TypeAlias = dict[str, Counter[str]]  # by wire version, how much of each row it does not show; -1: nothing


def _unshown(wires: Sequence[Shadowed], head: Head, limits: Limits) -> Plan[_Unshown]:
    rows: list[Row] = []
    after: int | None = 0
    while after is not None:
        span = Span(after=after, upto=head.seq, rows=limits.page_rows_max, size=limits.page_bytes_max)
        some = (yield Reads(span=span)).span
        rows += some
        after = None if ends(some, span) else some[-1].seq
    found: _Unshown = {}
    for wire in wires:
        try:
            losses = wire.view(head, rows).losses
        except Exception:  # noqa: BLE001, S112 - rows that are damaged: the shadow comparison says so
            continue
        found[wire.name] = counts = Counter[str]()
        for loss in sorted(losses):  # of a row that is not shown at all, that comes before what is in it
            row = "/".join(loss.split("/", 3)[:3])
            if loss == row:
                counts[row] = -1
            elif counts[row] >= 0:
                counts[row] += 1
    return found


def _stands(accounts: Accounts, row: Row, unshown: _Unshown) -> None:
    if row.deleted:
        accounts.account(row, "tombstone")
        return
    at = pointer(row.kind, row.id)
    if unshown and all(counts[at] < 0 for counts in unshown.values()):
        accounts.account(row, "unexplained", "expected a wire version that shows it; none does")
        return
    accounts.account(row, "served")
    for name, counts in unshown.items():
        accounts.shown[name]["hidden" if counts[at] < 0 else "in_part" if counts[at] else "whole"] += 1
        accounts.values[name] += max(counts[at], 0)


def _was_followed(accounts: Accounts, row: Row, after: Row | None) -> None:
    if after is None or (after.kind, after.id) != (row.kind, row.id) or after.until == after.seq:
        told = f"expected row {row.until} to have taken its place; got one that did not"
        accounts.account(row, "unexplained", told)
    else:
        accounts.account(row, "superseded")


# --- what lost ----------------------------------------------------------------------------------------------------


def _lost_edge(accounts: Accounts, row: Row, history: Iterable[Row]) -> None:
    """PROTOCOL 3.5: the last value of an edge stands, unless its version was taken, or it came back."""
    taken, mark, _ = row.version.rpartition("#")
    if mark and any(one.version == taken and one.seq < row.seq for one in history):
        accounts.account(row, "kept", VERSION_COLLISION)
    elif row.via:
        accounts.account(row, "kept", CAME_BACK)
    else:
        accounts.account(row, "unexplained", "expected it to stand, as the last value of an edge does; it never did")


def _lost(accounts: Accounts, row: Row, history: Sequence[Row], policy: Policy, limits: Limits) -> None:
    """Decide anew, with what was there when it came."""
    before = [_as_of(one, row.seq) for one in history if one.seq < row.seq]
    decision = engine.decide(
        SyncRequest(
            device="",
            user=row.user_id,
            changes=(Change(entity=_as_pushed(row, before), delete=row.deleted, offered=row.via != ""),),
            pull=False,
        ),
        Held(
            head=Head(epoch="", seq=row.seq - 1, stamp=row.stamp - 1),
            entities={one.id: one for one in before if one.current},
            versions={(one.kind, one.id, one.version): one for one in before},
            history={row.id: tuple(before)},
        ),
        now=row.stamp,
        limits=limits,
        policy=policy,
    )
    again = decision.versions.get((row.kind, row.id, row.version))
    if again is None or again.until != again.seq:
        if row.via:
            accounts.account(row, "kept", CAME_BACK)
        else:
            told = "expected it to stand: nothing that was there when it came took precedence"
            accounts.account(row, "unexplained", f"{told}{_asked(row)}")
        return
    reason = next((conflict.resolution_strategy for conflict in decision.conflicts), SAME)
    joined = [one for one in decision.writes.rows if one.seq > again.seq]
    if joined:
        if any(row.version in one.entity().parent_versions for one in history if one.seq > row.seq):
            accounts.account(row, "merged", reason)
        else:
            told = "expected a row that it and what stood became; got none"
            accounts.account(row, "unexplained", f"{told}{_asked(row)}")
    elif reason == FOR_REVIEW and any(one.theirs.version == row.version for one in waiting(history, policy, limits)):
        accounts.account(row, "open", reason)
    else:
        accounts.account(row, "kept", reason)


def _asked(row: Row) -> str:
    return f" (is {row.entity_type} left to people? say so with --manual)"


def _as_of(row: Row, seq: int) -> Row:
    """The row as it was before the one at `seq` came."""
    return replace(row, until=None) if row.until is not None and row.until >= seq else row


def _as_pushed(row: Row, before: Iterable[Row]) -> Entity:
    """PROTOCOL 4.4: the row under the version under which it came, if that was taken by other content."""
    entity = row.entity()
    taken, mark, _ = row.version.rpartition("#")
    original = replace(entity, version=taken)
    if mark and row.version == engine.beside(taken, row_hash("entity", body_of(original))):
        return original if any(one.version == taken for one in before) else entity
    return entity
