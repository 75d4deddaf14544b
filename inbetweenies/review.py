"""What waits for a person: the contests that the rule of a type leaves open, and how they are resolved. Pure.

Nothing is kept for it. A contest is open while a row that lost is not among what the current row descends from, and
that can be read off the rows alone: so it is open again whenever the rows come back to a log that was set back, and it
is resolved by any row that names both sides as parents, whoever writes it, on the server or offline (PROTOCOL 6.9).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct

from . import engine, merge
from .errors import RemoteProtocolError
from .limits import Allowance, Limits, canonical, checked_decode, gate
from .merge import Policy, Value, Verdict, alike, ancestors, document, nothing_new, same, shared, side_of
from .model import SEQ_MAX, Change, Context, Entity, Plan, Reads, Row, Span, SyncRequest, format_time

ENTRIES_MAX: Final = 100  # of one page
IDS_AT_ONCE: Final = 64  # whose histories are held at a time

Take = Literal["mine", "theirs"]


class Open(Struct, frozen=True, kw_only=True):
    """PROTOCOL 6.9: one entry of the queue: the row that stands, `mine`; the one that lost against it, `theirs`; and
    the newest held row that both descend from."""

    mine: Row
    theirs: Row
    base: Row | None = None

    @property
    def id(self) -> str:
        """Names the entry in paths, for as long as it is open."""
        return entry_id(self.theirs.id, self.theirs.version)


class Place(Struct, frozen=True, order=True):
    """Where a page of the queue ends: an entity type, the seq of a current row of it, the seq of a row that lost."""

    entity_type: str = ""
    mine: int = 0
    theirs: int = 0

    def __str__(self) -> str:
        return f"{self.mine}.{self.theirs}.{self.entity_type}"


class Page(Struct, frozen=True, kw_only=True):
    """Some of the queue. With `next` there may be more after that place, even if there is nothing before it."""

    entries: tuple[Open, ...] = ()
    next: Place | None = None


class Decision(Struct, frozen=True, kw_only=True):
    """PROTOCOL 6.10: what a person decided: a side to `take`; or the `content` or `name`, or both, that stand from now
    on, what is not given being as in mine."""

    take: Take | None = None
    content: dict[str, Any] | None = None
    name: str | None = None


_decision = msgspec.json.Decoder(Decision)


def decision_in(body: bytes, limits: Limits) -> Decision:
    """The decision that `body` holds. Raises `RemoteProtocolError`: it holds none."""
    gate(body, limits)
    decision = checked_decode(_decision, body)
    valued = decision.content is not None or decision.name is not None
    if (decision.take is not None) == valued:
        raise _malformed("`take`, or `content` and `name` or one of them", "both" if valued else "neither", "")
    return decision


class Resolved(Struct, frozen=True, kw_only=True):
    """The row that resolved a contest, and whether it was written just now."""

    row: Row
    fresh: bool


def entry_id(id_: str, version: str) -> str:
    """The name of the entry in which the row `version` of `id_` lost."""
    return f"{id_}.{blake2b(version.encode(), digest_size=8).hexdigest()}"


def place_in(text: str) -> Place:
    """The place that ``str(place)`` wrote.

    Raises:
        RemoteProtocolError: the text is none.
    """
    mine, _, rest = text.partition(".")
    theirs, _, entity_type = rest.partition(".")
    if not all(part.isascii() and part.isdigit() and len(part) <= 16 for part in (mine, theirs)):
        got = f"a text of {len(text)} characters"
        raise RemoteProtocolError(code="bad_cursor", expected="`next` of an earlier page", got=got)
    return Place(entity_type, min(int(mine), SEQ_MAX), min(int(theirs), SEQ_MAX))


# --- what is open -------------------------------------------------------------------------------------------------


def waiting(history: Iterable[Row], policy: Policy, limits: Limits) -> tuple[Open, ...]:
    """PROTOCOL 6.9: what of one entity waits for a person; `history` is every row of it."""
    ordered = sorted(history, key=lambda row: row.seq)
    current = next((row for row in ordered if row.current), None)
    if current is None or current.entity_type not in policy.rules:
        return ()
    rows = {row.version: row for row in ordered}
    parents = {version: row.entity().parent_versions for version, row in rows.items()}
    line = ancestors((current.version,), parents)
    followed = {parent for version, above in parents.items() for parent in above if parent != version}
    places = {row.seq: row for row in ordered}
    ends = [row for row in ordered if row.version not in line and row.version not in followed and _lost(row, places)]
    found = []
    for theirs in ends:
        above = ancestors(parents[theirs.version], parents)
        base = shared(above, line, rows, parents)
        older = set() if base is None else ancestors((base.version,), parents)
        since = [
            rows[version]
            for version in line - older
            if version in rows and (base is not None or _reaches(rows[version], theirs))
        ]
        idle = _is_said(theirs, since) or nothing_new(theirs.entity(), above, base, rows, parents)
        if not idle and _is_left(policy, base, current, theirs, limits):
            found.append(Open(mine=current, theirs=theirs, base=base))
    return tuple(found)


def _lost(row: Row, places: Mapping[int, Row]) -> bool:
    """Whether a row lost: it never was current, or a tombstone took its place. What else did was found to follow it
    (6.1), or won as a whole before there was a rule."""
    after = places.get(row.until or 0)
    return after is not None and (after is row or after.deleted)


def _reaches(row: Row, lost: Row) -> bool:
    """Whether `row` was current when `lost` came, or later."""
    return row.until is None or row.until > lost.seq


def _is_said(theirs: Row, since: Iterable[Row]) -> bool:
    """PROTOCOL 6.1: whether the current row, or one that it followed since the two parted, says the same: then nobody
    lost anything."""
    lost = theirs.entity()
    return any((theirs.deleted and row.deleted) or alike(row.entity(), lost) for row in since)


def _is_left(policy: Policy, base: Row | None, mine: Row, theirs: Row, limits: Limits) -> bool:
    ruling = merge.ruled(
        policy,
        None if base is None else base.entity(),
        mine.entity(),
        theirs.entity(),
        here=side_of(mine),
        there=side_of(theirs),
        bytes_max=limits.entity_bytes_max,
    )
    return ruling.verdict is Verdict.REVIEW


def listing(policy: Policy, limits: Limits, after: Place = Place()) -> Plan[Page]:  # noqa: B008 - it is frozen
    """PROTOCOL 6.9: the queue of a graph after a place, by type and then in the order in which rows became current.

    A page ends with so many entries, so many bytes of them, or so many bytes looked at; a row that becomes current
    meanwhile moves to the end of its type, so that nothing is passed over.
    """
    found: list[Open] = []
    looked, held = Allowance(limits.handled_bytes_max), Allowance(limits.page_bytes_max)
    for entity_type in sorted(policy.rules):
        if entity_type < after.entity_type:
            continue
        start = after if entity_type == after.entity_type else Place(entity_type)
        # The row at which the last page ended may have more entries, unless the page says that it was done with it.
        seq = start.mine if start.theirs == SEQ_MAX else max(start.mine - 1, 0)
        while True:
            span = Span(
                after=seq,
                upto=SEQ_MAX,
                rows=IDS_AT_ONCE,
                size=limits.page_bytes_max,
                kind="entity",
                entity_type=entity_type,
            )
            rows = (yield Reads(span=span)).span
            if not rows:
                break
            history = (yield Reads(history=tuple(row.id for row in rows))).history
            for row in rows:
                seq = row.seq
                of_id = history[row.id]
                looked.spend(sum(len(one.body) for one in of_id))
                for entry in waiting(of_id, policy, limits) if len(of_id) > 1 else ():
                    place = Place(entity_type, row.seq, entry.theirs.seq)
                    if place <= start:
                        continue
                    found.append(entry)
                    held.spend(sum(len(side.body) for side in (entry.mine, entry.theirs, entry.base) if side))
                    if held.spent or len(found) == ENTRIES_MAX:
                        return Page(entries=tuple(found), next=place)
                if looked.spent:
                    return Page(entries=tuple(found), next=Place(entity_type, row.seq, SEQ_MAX))
    return Page(entries=tuple(found))


# --- resolving ----------------------------------------------------------------------------------------------------


def resolve(id_: str, body: bytes, policy: Policy, context: Context, limits: Limits) -> Plan[Resolved]:
    """PROTOCOL 6.10: write the row that a person decided on in `body`, as an edit by `context.user` that follows both
    sides.

    Decided twice in the same way is decided once.

    Raises:
        RemoteProtocolError: ``not_found``: there is no such contest; ``conflict_resolved``: it is resolved otherwise,
            or went on; ``malformed_body``: what was decided is nothing that a row can hold.
    """
    entity_id, _, _ = id_.rpartition(".")
    history = (yield Reads(history=(entity_id,))).history.get(entity_id, ())
    theirs = next((row for row in history if entry_id(row.id, row.version) == id_), None)
    if theirs is None:
        raise RemoteProtocolError(code="not_found", expected="a conflict that is open", got="none")
    # Not before: deployed servers answer 404, whatever is sent.
    decision = decision_in(body, limits)
    entry = next((entry for entry in waiting(history, policy, limits) if entry.theirs.version == theirs.version), None)
    if entry is None:
        return Resolved(row=_resolved(history, theirs, decision), fresh=False)
    row = resolution(decision, entry, context)
    request = SyncRequest(device="", user=context.user, changes=(Change(entity=row),), pull=False)
    response = yield from engine.serve(request, context, limits, policy)
    if response.refused:
        refusal = response.refused[0]
        raise _malformed("a row that can be stored", f"one that is {refusal.code}", refusal.pointer)
    held = yield Reads(entities=(row.id,))
    return Resolved(row=held.entities[row.id], fresh=True)


def _resolved(history: Iterable[Row], theirs: Row, decision: Decision) -> Row:
    """The row that resolved a contest in the way of `decision`."""
    rows = {row.version: row for row in history}
    for row in rows.values():
        above = row.entity().parent_versions
        if theirs.version in above:
            others = [rows[version].entity() for version in above if version in rows and version != theirs.version]
            if any(same(document(row.entity()), _says(decision, mine, theirs.entity())) for mine in others):
                return row
    raise RemoteProtocolError(
        code="conflict_resolved", expected="a conflict that is open", got="one that was resolved, or went on: list anew"
    )


def _says(decision: Decision, mine: Entity, theirs: Entity) -> dict[str, Any]:
    if decision.take is not None:
        return document(theirs if decision.take == "theirs" else mine)
    try:
        return merge.laid_over(mine, Value(content=decision.content, name=decision.name))
    except RemoteProtocolError as error:
        raise _malformed(error.expected, error.got, f"/content{error.pointer}") from error


def resolution(decision: Decision, entry: Open, context: Context) -> Entity:
    """The row of PROTOCOL 6.10: later than both sides, which are its parents.

    Raises:
        RemoteProtocolError: ``malformed_body``: what was decided is nothing that a row can hold.
    """
    mine, theirs = entry.mine.entity(), entry.theirs.entity()
    says = _says(decision, mine, theirs)
    above = sorted((mine.version, theirs.version))
    text = canonical(says, trusted=True)
    stamp = blake2b("\0".join(above).encode() + b"\0\0" + text, digest_size=6).hexdigest()
    # Later than both, or a v1 client would not take it (PROTOCOL 8.10).
    edit = max(context.now, entry.mine.edit + 1, entry.theirs.edit + 1)
    user = "".join(letter if letter.isprintable() else "?" for letter in context.user[:64])
    source_type, source_original = says["source"]
    return Entity(
        id=mine.id,
        version=f"{format_time(edit)}-000000-{user}.r{stamp}",
        entity_type=says["entity_type"],
        name=says["name"],
        content=Raw(canonical(says["content"], trusted=True)),
        source_type=source_type,
        user_id=context.user,
        parent_versions=tuple(above),
        source_original=UNSET if source_original is None else source_original,
    )


def _malformed(expected: str, got: str, pointer: str) -> RemoteProtocolError:
    return RemoteProtocolError(code="malformed_body", expected=expected, got=got, pointer=pointer)


# --- as JSON ------------------------------------------------------------------------------------------------------


def told(entry: Open) -> dict[str, Any]:
    """PROTOCOL 6.9: an entry as it is told to people and programs."""
    sides: Mapping[str, Row | None] = {"mine": entry.mine, "theirs": entry.theirs, "base": entry.base}
    return {
        "id": entry.id,
        "entity_id": entry.theirs.id,
        "entity_type": entry.mine.entity_type,
        **{name: None if row is None else told_row(row) for name, row in sides.items()},
    }


def told_row(row: Row) -> dict[str, Any]:
    """The fields of PROTOCOL 3.1, and when the row was written, as far as that is known."""
    entity = row.entity()
    fields = {name: getattr(entity, name) for name in Entity.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not UNSET} | {"at": format_time(row.edit)}
