"""Whether a log is whole: what of it cannot be as a server wrote it, and what would put it right (PROTOCOL 12.9).

`Audit` is fed the rows of one snapshot in order, as many at a time as somebody wants to spend on it, and says in the
end what is wrong, with ids. It needs no second copy to compare with: rows are hashed, hashes are chained, and the
digest at the end of the log is a sum over all that is current. What follows from nothing else is not checked: the times
of a row other than its stamp, and who brought it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import LocalProtocolError
from ..model import Head, Kind, Row, digest_change, next_chain, row_hash, says_deleted

Check: TypeAlias = Literal["entity_counts", "relationship_integrity", "orphaned_records", "data_consistency"]
#: What would put it right: get rows back from the journal, a backup or a client; write the columns of a row anew from
#: its value; write anew until when it was current; work out the end of the log anew.
Action: TypeAlias = Literal["fetch", "rewrite", "end", "recount"]
_ORDER: Final[tuple[Action, ...]] = ("fetch", "rewrite", "end", "recount")

_KINDS: Final = ("entity", "edge")
VIOLATIONS_MAX: Final = 1_000  # that are told one by one: who has more of them needs a backup and no list


class Repair(Struct, frozen=True, kw_only=True):
    """One step of putting things right, of the rows from `seq` to `upto`; `until` is of the action ``end``."""

    action: Action
    seq: int
    upto: int
    until: int | None = None


class Violation(Struct, frozen=True, kw_only=True):
    """Something that cannot be as a server wrote it.

    Attributes:
        check: which check found it.
        told: what was expected and what is there.
        kind, id, version: of the row; None where it is not about one.
        repair: what would put it right.
    """

    check: Check
    told: str
    kind: Kind | None = None
    id: str | None = None
    version: str | None = None
    repair: Repair


class Report(Struct, frozen=True, kw_only=True):
    """What an audit found.

    Attributes:
        entities, relationships: how many are current, tombstones among them.
        violations: the first `VIOLATIONS_MAX`, in the order in which they were found.
        count: how many there are.
    """

    entities: int
    relationships: int
    violations: tuple[Violation, ...]
    count: int

    def passed(self, check: Check) -> bool:
        """Whether this check found nothing. Raises `LocalProtocolError`: that cannot be said, as not all is told."""
        if any(one.check == check for one in self.violations):
            return False
        if self.count > len(self.violations):
            raise LocalProtocolError(
                f"expected at most {VIOLATIONS_MAX} violations to tell them apart; got {self.count}: repair these first"
            )
        return True

    @property
    def plan(self) -> tuple[Repair, ...]:
        """PROTOCOL 12.9: what to do next, each step once; audit again after that.

        Steps of one kind only: what a log without some of its rows seems to lack else may be there once these are back.
        """
        steps = {one.repair for one in self.violations}
        for action in _ORDER:
            if now := [step for step in steps if step.action == action]:
                return tuple(sorted(now, key=lambda step: (step.seq, step.upto)))
        return ()


def told(plan: Iterable[Repair]) -> tuple[str, ...]:
    """What a plan says to do, one line a step."""
    return tuple(_told(step) for step in plan)


def _told(step: Repair) -> str:
    rows = f"row {step.seq}" if step.seq == step.upto else f"rows {step.seq} to {step.upto}"
    match step.action:
        case "fetch":
            return f"get {rows} from the journal, a backup or a client"
        case "rewrite":
            return f"write the columns of {rows} anew from the value"
        case "end":
            return f"let {rows} {'be current' if step.until is None else f'end at row {step.until}'}"
        case _:
            return "work out chain, stamp and digest of the end of the log anew from its rows"


class Audit:
    """PROTOCOL 12.9: reads a log from its beginning. Takes memory for each id, not for each row."""

    def __init__(self) -> None:
        self._seq = self._stamp = self._digest = self._count = 0
        self._chain: bytes | None = bytes(16)  # None after a row whose chain cannot be told
        # The seq and the end of the last row that was current, None of an id of which none ever was.
        self._ids: dict[tuple[Kind, str], tuple[int, int | None] | None] = {}
        self._gaps: list[range] = []
        self._violations: list[Violation] = []

    @property
    def seq(self) -> int:
        """Up to where the log was read."""
        return self._seq

    @property
    def digest(self) -> int:
        """The sum of the hashes of what is current of that, as worked out from the rows (PROTOCOL 4.8)."""
        return self._digest

    @property
    def found(self) -> tuple[Violation, ...]:
        """What was found so far. More of the log makes none of it right."""
        return tuple(self._violations)

    def read(self, rows: Iterable[Row]) -> None:
        """Go on with these rows. Raises `LocalProtocolError`: they are not in order, or not after those before."""
        for row in rows:
            if row.seq <= self._seq:
                raise LocalProtocolError(f"expected rows after {self._seq}, in order; got {row.seq}")
            self._line(row)
            self._value(row)
            self._places(row)
            self._seq = row.seq

    def report(self, head: Head) -> Report:
        """What was found in a log that ends at `head`."""
        self._missing(head.seq + 1)
        for (kind, id_), last in self._ids.items():
            if last is not None and last[1] is not None:
                self._without_successor(kind, id_, last[0], last[1])
        if self._chain is not None and (head.chain, head.stamp) != (self._chain, self._stamp):
            told = "expected the chain hash and the stamp of the last row; got others"
            self._found("data_consistency", told, "recount", head.seq)
        if head.digest != self._digest:
            told = f"expected the digest {self._digest:064x} of the current rows; got {head.digest_hex}"
            self._found("entity_counts", told, "recount", head.seq)
        kinds = [kind for (kind, _), last in self._ids.items() if last is not None and last[1] is None]
        return Report(
            entities=kinds.count("entity"),
            relationships=kinds.count("edge"),
            violations=tuple(self._violations),
            count=self._count,
        )

    # one row

    def _line(self, row: Row) -> None:
        """PROTOCOL 4.2: its place, its stamp and its chain."""
        self._missing(row.seq)
        if row.stamp <= self._stamp and self._seq:
            told = f"expected a stamp after {self._stamp}; got {row.stamp}"
            self._found("data_consistency", told, "fetch", row.seq, row=row)
        if self._chain is not None and row.chain != next_chain(self._chain, row.hash):
            told = "expected the chain of the rows before; got another: it, or one before, is not what was committed"
            self._found("data_consistency", told, "fetch", row.seq, row=row)
        self._stamp, self._chain = row.stamp, row.chain

    def _missing(self, seq: int) -> None:
        if seq <= self._seq + 1:
            return
        told = f"expected rows {self._seq + 1} to {seq - 1}; got none"
        self._found("entity_counts", told, "fetch", self._seq + 1, upto=seq - 1)
        self._gaps.append(range(self._seq + 1, seq))
        self._chain = None

    def _value(self, row: Row) -> None:
        """PROTOCOL 3.7: what it says, and whether its columns agree with that."""
        if row.kind not in _KINDS or row.hash != row_hash(row.kind, row.body):
            told = "expected what its hash was made of; got something else"
            self._found("data_consistency", told, "fetch", row.seq, row=row)
            return
        try:
            said = columns(row)
        except (msgspec.MsgspecError, ValueError):
            told = f"expected a value of kind {row.kind}; got none"
            self._found("data_consistency", told, "fetch", row.seq, row=row)
            return
        if said != row:
            wrong = [name for name in row.__struct_fields__ if getattr(said, name) != getattr(row, name)]
            told = f"expected columns that agree with the value; got others: {', '.join(wrong)}"
            self._found("data_consistency", told, "rewrite", row.seq, row=row)

    def _places(self, row: Row) -> None:
        """PROTOCOL 4.1, 3.5: what it takes the place of, what takes its place, and what it joins."""
        last = self._ids.setdefault((row.kind, row.id), None)
        if row.until is None:
            self._digest = digest_change(self._digest, come=row.hash)
        if row.until != row.seq:
            self._ids[row.kind, row.id] = (row.seq, row.until)
            if last is not None and last[1] != row.seq:
                check: Check = "entity_counts" if last[1] is None else "orphaned_records"
                told = f"expected row {last[0]} to end where row {row.seq} took its place; got another end"
                self._found(check, told, "end", last[0], until=row.seq, row=row)
        if row.kind == "edge":
            for name, end in (("from_entity_id", row.from_id), ("to_entity_id", row.to_id)):
                if ("entity", end) not in self._ids:
                    told = f"expected a row of the entity that {name} names before; got none"
                    self._found("relationship_integrity", told, "fetch", row.seq, row=row)

    # one id

    def _without_successor(self, kind: Kind, id_: str, seq: int, until: int) -> None:
        told = f"expected row {until} to have taken the place of row {seq}; got none of this id that did"
        if not any(until in gap for gap in self._gaps):  # that is told already, and brings it back
            self._found("orphaned_records", told, "end", seq, kind=kind, id_=id_)

    def _found(
        self,
        check: Check,
        told: str,
        action: Action,
        seq: int,
        *,
        upto: int | None = None,
        until: int | None = None,
        row: Row | None = None,
        kind: Kind | None = None,
        id_: str | None = None,
    ) -> None:
        self._count += 1
        if len(self._violations) < VIOLATIONS_MAX:
            self._violations.append(
                Violation(
                    check=check,
                    told=told,
                    kind=kind if row is None else row.kind,
                    id=id_ if row is None else row.id,
                    version=None if row is None else row.version,
                    repair=Repair(action=action, seq=seq, upto=seq if upto is None else upto, until=until),
                )
            )


def columns(row: Row) -> Row:
    """`row` with the columns that follow from its value. Raises `msgspec.MsgspecError` or `ValueError`: none."""
    if row.kind == "entity":
        entity = row.entity()
        return replace(
            row,
            id=entity.id,
            version=entity.version,
            deleted=says_deleted(entity.content),
            entity_type=entity.entity_type,
            user_id=entity.user_id,
            from_id="",
            to_id="",
        )
    edge = row.relationship()
    return replace(
        row,
        id=edge.id,
        version=edge.version,
        deleted=says_deleted(edge.properties),
        entity_type=edge.relationship_type,
        user_id=edge.user_id,
        from_id=edge.from_entity_id,
        to_id=edge.to_entity_id,
    )
