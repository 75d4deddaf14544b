"""How what was read from another database gets into a graph, and out again (PROTOCOL 13.5 to 13.8), pure.

Read `take`, which takes a batch in, `take_out`, which undoes a part of an import, and `Ledger`, in which an import
keeps account of itself. The ledger is written in the transaction of each batch, where a store remembers a device that
counts its pushes: so what it says and what is in the graph are never apart, wherever a process dies, and it comes back
from the journal together with the rows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from . import engine
from .deployed import NOBODY, Move, Spot
from .errors import LocalProtocolError
from .limits import LIMITS, Limits, canonical
from .merge import Policy
from .model import (
    Ack,
    Change,
    Context,
    Device,
    Entity,
    Head,
    Held,
    Kind,
    Outcome,
    Plan,
    Reads,
    Row,
    Span,
    SyncRequest,
    SyncResponse,
    Writes,
    edit_time,
    make_version,
)

#: What becomes of a row: it was ``moved`` here; something of its id was here already that says other things, and both
#: were ``merged`` as any two writes are; the very same was ``present``; it was ``refused``, and why is told.
Fate: TypeAlias = Literal["moved", "merged", "present", "refused"]
FATES: Final[tuple[Fate, ...]] = ("moved", "merged", "present", "refused")

State: TypeAlias = Literal["importing", "imported", "undoing", "undone"]
VERSION_BYTES_MAX: Final = LIMITS.version_bytes_max
SPOTS_MAX: Final = 1_000  # that are kept word for word; all are counted
_TOMBSTONE_BYTES: Final = 4096  # by which a tombstone is larger at most: its word, a version and a parent
_SPAN_US: Final = 1_000_000  # between the rows that are taken at one time, that of the last
_BYTES_AT_ONCE: Final = 4 * 2**20  # that the engine handles in one go; a sixteenth of what it may

_FATE: Final[dict[Outcome, Fate]] = {
    "applied": "moved",
    "fast_forward": "moved",
    "superseded": "merged",
    "merged": "merged",
    "lost_kept": "merged",
    "noop_delete": "merged",
    "dup": "present",
}


class Ledger(Struct, frozen=True, kw_only=True):
    """PROTOCOL 13.5: the account of one import into one graph.

    Attributes:
        source: digest of all rows of the database that is imported.
        name: of its file; schema: which one it has, as `deployed.schema_of` calls it.
        totals: how many rows each of its tables has.
        state: ``importing`` until all of them are accounted for; ``undoing`` until all that came is out again.
        began, changed: in microseconds.
        times: how often it was imported, more than once only after having been undone.
        stage, done: how far it is: this many steps of that stage are done.
        fates: of each table, how many of its rows had which fate.
        refused, spots: what was refused and what was only partly kept, the first `SPOTS_MAX` of each; and by
            table and code how many there are, in `counts`.
        links: how many edges were made of columns of rows.
        ranges: the places in the log, first and last, at which the import wrote; undone: at which its undoing did.
        out: how many things were taken ``out``, had what stood before them ``restored``, were ``gone`` already, and
            were ``kept`` since somebody wrote to them after the import.
    """

    source: str
    name: str
    schema: str
    totals: dict[str, int]
    began: int
    changed: int
    state: State = "importing"
    times: int = 1
    stage: int = 0
    done: int = 0
    fates: dict[str, dict[Fate, int]] = {}
    refused: tuple[Spot, ...] = ()
    spots: tuple[Spot, ...] = ()
    counts: dict[str, int] = {}
    links: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    undone: tuple[tuple[int, int], ...] = ()
    undo_at: int = 0
    out: dict[str, int] = {}
    end: int = 0
    chain: str = ""

    def fate(self, fate: Fate) -> int:
        """How many rows had this fate."""
        return sum(fates.get(fate, 0) for fates in self.fates.values())

    @property
    def rows(self) -> int:
        """How many rows there are to be accounted for."""
        return sum(self.totals.values())

    @property
    def unexplained(self) -> dict[str, int]:
        """Of each table, how many of its rows have no fate, less than none if some have two. Empty if all is well."""
        left = {table: total - sum(self.fates.get(table, {}).values()) for table, total in self.totals.items()}
        left |= {table: -sum(fates.values()) for table, fates in self.fates.items() if table not in self.totals}
        return {table: number for table, number in left.items() if number}


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Ledger).decode


def device_of(source: str) -> str:
    """Under which name a store remembers an import. No client has such a one: theirs begin with a wire version."""
    return f"migration:{source}"


def ledger_in(held: Held) -> Ledger | None:
    """The ledger of the import whose device was read, None if there never was one."""
    return None if held.device is None or not held.device.pushed else _decode(held.device.pushed)


def kept(ledger: Ledger) -> Writes:
    """What keeps a ledger."""
    return Writes(device=(device_of(ledger.source), Device(pushed=_encode(ledger).decode())))


class Batch(Struct, frozen=True, kw_only=True):
    """Some steps of an import, and where they stand in it: from `done` of `stage`, so that next come `next_done` of
    `next_stage`. `whole`: nothing comes after them."""

    made: tuple[Move | Spot, ...]
    stage: int
    done: int
    next_stage: int
    next_done: int
    whole: bool = False


# --- in -----------------------------------------------------------------------------------------------------------


def begin(new: Ledger) -> Plan[Ledger]:
    """The ledger of an import as it stands, begun if there is none. One that was undone begins again.

    Raises:
        LocalProtocolError: it is being undone.
    """
    known = ledger_in((yield Reads(device=device_of(new.source))))
    if known is not None and known.state == "undoing":
        raise LocalProtocolError("expected an import that is not half undone; got one: finish with --undo first")
    if known is not None and known.state != "undone":
        return known
    if known is not None:
        # Where the log was set back meanwhile, nobody can tell any more which rows these were.
        same = yield from _stands(known)
        ranges, undone = (known.ranges, known.undone) if same else ((), ())
        times, end, chain = known.times + 1, known.end, known.chain
        new = replace(new, times=times, ranges=ranges, undone=undone, end=end, chain=chain)
    yield kept(new)
    return new


def _stands(ledger: Ledger) -> Plan[bool]:
    """Whether the log still is the one that the ledger speaks of."""
    held = yield Reads(chains=(ledger.end,))
    return not ledger.ranges or held.chains.get(ledger.end, b"").hex() == ledger.chain


def take(source: str, batch: Batch, *, now: int, tell_all: bool, limits: Limits, policy: Policy) -> Plan[Ledger]:
    """PROTOCOL 13.5: one batch, in one transaction; the ledger after it. Nothing is done if another process was faster.

    Args:
        now: the time, in microseconds. Rows are stamped as the server that took them did, so that a client is not told
            again what that has told it; but for the last one, up to which this log then reaches.
        tell_all: stamp all with the time of the import, so that every client is told all of it once more.
    """
    ledger = ledger_in((yield Reads(device=device_of(source))))
    if ledger is None or ledger.state != "importing" or (ledger.stage, ledger.done) != (batch.stage, batch.done):
        if ledger is None:
            raise LocalProtocolError("expected an import that was begun; got another one")
        return ledger
    account = _Account(ledger)
    moves = []
    for made in batch.made:
        if isinstance(made, Spot):
            account.refuse(made)
        else:
            moves.append(made)
    for at, group in _groups(moves, now=now, tell_all=tell_all, whole=batch.whole):
        yield from _push(group, at, account, limits, policy)
    ledger = account.closed(
        stage=batch.next_stage, done=batch.next_done, changed=now, state="imported" if batch.whole else "importing"
    )
    yield kept(ledger)
    return ledger


class _Account:
    """A ledger while a batch is taken."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.fates: dict[str, Counter[Fate]] = {table: Counter(fates) for table, fates in ledger.fates.items()}
        self.refused = list(ledger.refused)
        self.spots = list(ledger.spots)
        self.counts = Counter(ledger.counts)
        self.links = ledger.links
        self.ranges = list(ledger.ranges)
        self.end, self.chain = ledger.end, ledger.chain
        self.gone: set[str] = set()  # the keys of what was refused in this batch

    def row(self, table: str, fate: Fate) -> None:
        self.fates.setdefault(table, Counter())[fate] += 1

    def refuse(self, spot: Spot) -> None:
        """A row that is not here."""
        self.row(spot.table, "refused")
        self.counts[f"refused {spot.table} {spot.code}"] += 1
        if len(self.refused) < SPOTS_MAX:
            self.refused.append(spot)

    def note(self, spot: Spot) -> None:
        """Something of a row that is not here as it was."""
        self.counts[f"noted {spot.table} {spot.code}"] += 1
        if len(self.spots) < SPOTS_MAX:
            self.spots.append(spot)

    def settle(self, move: Move, fate: Fate) -> None:
        """What became of a row and of those inside of it."""
        for table in (move.table, *(table for table, _ in move.inside)):
            if table:
                self.row(table, fate)
        if not move.table and move.edges and fate != "refused":
            self.links += 1
        for spot in move.spots:
            self.note(spot)

    def wrote(self, first: int, head: Head) -> None:
        """The log grew from this place to its head."""
        self.ranges = grown(self.ranges, first, head.seq)
        if head.seq >= first:
            self.end, self.chain = head.seq, head.chain.hex()

    def closed(self, **changed: Any) -> Ledger:
        return replace(
            self.ledger,
            fates={table: dict(fates) for table, fates in self.fates.items()},
            refused=tuple(self.refused),
            spots=tuple(self.spots),
            counts=dict(self.counts),
            links=self.links,
            ranges=tuple(self.ranges),
            end=self.end,
            chain=self.chain,
            **changed,
        )


def grown(ranges: Sequence[tuple[int, int]], first: int, last: int) -> list[tuple[int, int]]:
    """Ranges with one more after them; nothing if it is empty."""
    if last < first:
        return list(ranges)
    if ranges and ranges[-1][1] + 1 == first:
        return [*ranges[:-1], (ranges[-1][0], last)]
    return [*ranges, (first, last)]


def _groups(moves: Sequence[Move], *, now: int, tell_all: bool, whole: bool) -> Iterator[tuple[int, list[Move]]]:
    """Moves that are taken at one time, and that time: when the server had all of them."""
    group: list[Move] = []
    size = began = at = 0
    for index, move in enumerate(moves):
        last = whole and index == len(moves) - 1
        taken = now if tell_all or last or move.at is None else min(move.at, now)
        full = size >= _BYTES_AT_ONCE or (group and any(edit_time(one.version) is None for one in group[-1].entities))
        # A row without a time of its own has that at which it is taken.
        if group and (full or taken > began + _SPAN_US):
            yield at, group
            group, size, at = [], 0, 0
        if not group:
            began = taken
        group.append(move)
        size += sum(len(bytes(one.content)) for one in move.entities)
        at = max(at, taken)
    if group:
        yield at, group


def _push(moves: Sequence[Move], at: int, account: _Account, limits: Limits, policy: Policy) -> Plan[None]:
    """Moves through the rules of the engine, as any push goes; what becomes of each is put down."""
    waiting = list(moves)
    while waiting:
        known = yield Reads(entities=tuple(dict.fromkeys(one.id for move in waiting for one in move.entities)))
        fit: list[Move] = []
        for move in waiting:
            taken = _taken(move, known)
            if taken is None:
                fit.append(move)
            else:
                _refuse(move, "type_conflict", taken, account)
        said = yield from _serve(account, fit, known, at, limits, policy)
        again: list[Move] = []
        back: list[Move] = []
        for move, (outcomes, refusals) in zip(fit, said, strict=True):
            if any(code == "too_much_at_once" for code, _ in refusals) and len(fit) > 1:
                again.append(move)
            elif refusals:
                _refuse(move, *refusals[0], account)
            elif "dup" in outcomes and move.last and not move.aside and account.ledger.undone:
                back.append(move)
            else:
                account.settle(move, _fate(move, outcomes))
        for move in back:
            came = yield from _bring_back(move, account, at, limits, policy)
            account.settle(move, "moved" if came else "present")
        waiting = again


def _taken(move: Move, known: Held) -> str | None:
    """Why the entities of a move cannot be, though nothing is wrong with them."""
    for one in move.entities if move.alone else ():
        row = known.entities.get(one.id)
        if row is not None and row.entity_type != one.entity_type:
            return f"expected an id that is not that of something else; got that of a {row.entity_type}"
    return None


def _refuse(move: Move, code: str, detail: str, account: _Account) -> None:
    spot = Spot(table=move.table, key=move.key, code=code, detail=detail)
    if not move.table:
        if move.key not in account.gone:
            account.note(spot)  # a link of a row that is here itself
        return
    account.gone.add(move.key)
    account.refuse(spot)
    for table, key in move.inside:
        account.refuse(Spot(table=table, key=key, code=code, detail=f"it is inside of what was refused: {detail}"))


def _fate(move: Move, outcomes: Iterable[Outcome]) -> Fate:
    # What is put aside on purpose is where it belongs.
    fates = {"moved" if one == "superseded" and move.aside else _FATE[one] for one in outcomes}
    return "merged" if "merged" in fates else "moved" if "moved" in fates else "present"


_Said: TypeAlias = tuple[list[Outcome], list[tuple[str, str]]]


def _serve(
    account: _Account, moves: Sequence[Move], known: Held, at: int, limits: Limits, policy: Policy
) -> Plan[list[_Said]]:
    """What the engine says of each move: its outcomes, and what it refused, as code and why."""
    changes = []
    for index, move in enumerate(moves):
        for one in move.entities:
            aside: frozenset[tuple[Kind, str]] = frozenset({("entity", one.id)} if move.aside else ())
            changes.append(Change(entity=one, pointer=str(index), aside=aside))
        changes += [Change(relationships=(edge,), pointer=str(index)) for edge in move.edges]
    if not changes:
        return [([], []) for _ in moves]
    born = {move.entities[0].id: move.born for move in moves if move.born is not None and move.entities}
    fresh = {id_: at for id_, at in born.items() if id_ not in known.entities}
    request = SyncRequest(device=device_of(account.ledger.source), user=NOBODY, changes=tuple(changes), pull=False)
    served: SyncResponse = yield from _born(engine.serve(request, Context(user=NOBODY, now=at), limits, policy), fresh)
    account.wrote(known.head.seq + 1, served.head)
    acks: dict[tuple[Kind, str, str], deque[Ack]] = {}
    for ack in served.acks:
        acks.setdefault((ack.kind, ack.id, ack.version), deque()).append(ack)
    said: list[_Said] = [([], []) for _ in moves]
    for refusal in served.refused:
        said[int(refusal.pointer.partition("/")[0])][1].append((refusal.code, refusal.detail))
    for move, (outcomes, _) in zip(moves, said, strict=True):
        for key in _names(move):
            if acks.get(key):
                outcomes.append(acks[key].popleft().outcome)
    return said


def _born(plan: Plan[SyncResponse], fresh: Mapping[str, int]) -> Plan[SyncResponse]:
    """The same plan, with the rows of what is new born when their server says (PROTOCOL 13.3)."""
    step = next(plan)
    while True:
        if isinstance(step, Writes):
            rows = [
                replace(row, born=min(row.born, fresh[row.id])) if row.kind == "entity" and row.id in fresh else row
                for row in step.rows
            ]
            step = replace(step, rows=tuple(rows))
        held = yield step
        try:
            step = plan.send(held)
        except StopIteration as stop:
            response: SyncResponse = stop.value
            return response


def _bring_back(move: Move, account: _Account, at: int, limits: Limits, policy: Policy) -> Plan[bool]:
    """PROTOCOL 13.8: what was taken out by an undo stands again, under another version, since a row is never changed.
    False if something else stands by now."""
    ids = tuple(one.id for one in move.entities)
    known = yield Reads(entities=ids, edges=tuple(edge.id for edge in move.edges))
    name = f"#import{account.ledger.times}"
    entities: list[Entity] = []
    for one in move.entities:
        row = known.entities[one.id]
        if within(account.ledger.undone, row.seq):
            parents = (one.version, row.version)
            entities.append(replace(one, version=_again(one.version, name), parent_versions=parents))
    edges = [
        replace(edge, version=_again(edge.version, name))
        for edge in move.edges
        if within(account.ledger.undone, known.edges[edge.id].seq)
    ]
    again = replace(move, entities=tuple(entities), edges=tuple(edges), born=None, aside=False)
    [(outcomes, _)] = yield from _serve(account, [again], known, at, limits, policy)
    return bool(outcomes)


def _again(version: str, name: str) -> str:
    """The version of a row that says again what an older one said."""
    joined = f"{version}{name}"
    if len(joined.encode()) <= VERSION_BYTES_MAX:
        return joined
    return f"h-{blake2b(version.encode(), digest_size=12).hexdigest()}{name}"


def within(ranges: Iterable[tuple[int, int]], seq: int) -> bool:
    """Whether a place of the log is in one of these ranges."""
    return any(first <= seq <= last for first, last in ranges)


# --- is it there? -------------------------------------------------------------------------------------------------


def absent(batch: Batch) -> Plan[tuple[dict[str, int], dict[str, int]]]:
    """PROTOCOL 13.6: of each table, how many rows of a batch become nothing by themselves, and how many of the others
    are nowhere in the log. Together they have to be those that the ledger calls refused."""
    spots: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    moves = []
    for made in batch.made:
        if isinstance(made, Spot):
            spots[made.table] += 1
        elif made.table:
            moves.append(made)
    wanted = {key: None for move in moves for key in _names(move)}
    held = yield Reads(versions=tuple(wanted))
    for move in moves:
        if any(key not in held.versions for key in _names(move)):
            gone.update((move.table, *(table for table, _ in move.inside)))
    return dict(spots), dict(gone)


def _names(move: Move) -> list[tuple[Kind, str, str]]:
    """What a move is called in the log."""
    names: list[tuple[Kind, str, str]] = [("entity", one.id, one.version) for one in move.entities]
    names += [("edge", edge.id, edge.version) for edge in move.edges]
    return names


# --- out ----------------------------------------------------------------------------------------------------------


def begin_undo(source: str, *, now: int) -> Plan[Ledger | None]:
    """The ledger of an import that is being undone from here on, or was before; None if there is no such import."""
    ledger = ledger_in((yield Reads(device=device_of(source))))
    if ledger is None or ledger.state in ("undoing", "undone"):
        return ledger
    ledger = replace(ledger, state="undoing", undo_at=0, out={}, changed=now)
    yield kept(ledger)
    return ledger


def take_out(source: str, rows: int, *, now: int, limits: Limits, policy: Policy) -> Plan[Ledger]:
    """PROTOCOL 13.7: undo what the next `rows` lines of the log did that an import wrote, in one transaction.

    A thing of which a row of the import still stands gets a tombstone, or what stood before; one that somebody has
    written to since stays as it is.
    """
    held = yield Reads(device=device_of(source))
    ledger = ledger_in(held)
    if ledger is None or ledger.state != "undoing":
        if ledger is None:
            raise LocalProtocolError("expected an import that was begun; got another one")
        return ledger
    if not (yield from _stands(ledger)):
        raise LocalProtocolError(
            f"expected the log to be the one that the import wrote to; at {ledger.end} it is another one, since it was "
            "set back: what came back stands elsewhere and cannot be told apart. Nothing was undone"
        )
    span = next((one for one in ledger.ranges if one[1] > ledger.undo_at), None)
    if span is None:
        ledger = replace(ledger, state="undone", changed=now)
        yield kept(ledger)
        return ledger
    after = max(span[0] - 1, ledger.undo_at)
    lines = (yield Reads(lines=Span(after=after, upto=span[1], rows=rows))).lines
    ids: dict[Kind, dict[str, None]] = {"entity": {}, "edge": {}}
    for line in lines:
        ids[line.kind][line.id] = None
    held = yield Reads(history=tuple(ids["entity"]), edge_history=tuple(ids["edge"]))
    own = (*ledger.ranges, *ledger.undone)
    out = Counter(ledger.out)
    changes: list[Change] = []
    for line in lines:
        history = (held.history if line.kind == "entity" else held.edge_history)[line.id]
        what, row = _undoing(line.seq, history, ledger, own)
        if what is None:
            continue
        out[what] += 1
        if row is not None:
            current = next(one for one in history if one.current)
            changes.append(_instead(current, row, ledger, now, limits))
    undone, end, chain = list(ledger.undone), ledger.end, ledger.chain
    if changes:
        request = SyncRequest(device=device_of(source), user=NOBODY, changes=tuple(changes), pull=False)
        served: SyncResponse = yield from engine.serve(request, Context(user=NOBODY, now=now), limits, policy)
        undone = grown(undone, held.head.seq + 1, served.head.seq)
        end, chain = served.head.seq, served.head.chain.hex()
        _check(served, len(changes))
    ledger = replace(
        ledger,
        undo_at=lines[-1].seq,
        out=dict(out),
        undone=tuple(undone),
        end=end,
        chain=chain,
        changed=now,
    )
    yield kept(ledger)
    return ledger


def _check(served: SyncResponse, changes: int) -> None:
    if served.refused or len(served.acks) != changes:
        raise LocalProtocolError(
            f"expected to take out {changes} things at once; got {len(served.acks)}: {served.refused[:1]}"
        )


def _undoing(
    seq: int, history: Sequence[Row], ledger: Ledger, own: Sequence[tuple[int, int]]
) -> tuple[str | None, Row | None]:
    """What to do about the line at `seq` of a thing, in one word; with the row that is to stand, or to be deleted.

    Each thing is decided once: where its current row is, if the import wrote that, else where its first one is.
    """
    current = next((row for row in history if row.current), None)
    first = min(row.seq for row in history if within(ledger.ranges, row.seq))
    if current is None or not within(own, current.seq):
        # What the import wrote beside something that stood before takes nothing away.
        return ("kept", None) if seq == first and current is not None and current.seq > first else (None, None)
    if seq != current.seq:
        return None, None
    others = [row for row in history if not within(own, row.seq)]
    # What somebody wrote since, and lost only to the import, stands now; else what stood before it.
    since = [row for row in others if row.seq > first]
    before = [row for row in others if row.until != row.seq]
    if since or before:
        return "restored", max(since or before, key=lambda row: row.seq)
    return ("gone", None) if current.deleted else ("out", current)


def _instead(current: Row, row: Row, ledger: Ledger, now: int, limits: Limits) -> Change:
    """The change that puts `row` in the place of the current one; a tombstone, if that is the current one itself."""
    deletes = row is current
    name = f"#undo{ledger.times}"
    if current.kind == "entity":
        one = row.entity()
        version = make_version(now, 0, NOBODY) if deletes else _again(one.version, name)
        content = _gone(one.content, len(row.body), limits) if deletes else one.content
        parents = (current.version,) if deletes else (row.version, current.version)
        return Change(entity=replace(one, version=version, parent_versions=parents, content=content))
    edge = row.relationship()
    properties = _gone(edge.properties, len(row.body), limits) if deletes else edge.properties
    return Change(relationships=(replace(edge, version=_again(edge.version, name), properties=properties),))


def _gone(json: Raw, size: int, limits: Limits) -> Raw:
    """What a tombstone says: the same and that it is deleted, or that alone where the row would get too large."""
    if size + _TOMBSTONE_BYTES > limits.entity_bytes_max:
        return Raw(b'{"deleted":true}')
    return Raw(canonical({**msgspec.json.decode(json), "deleted": True}, trusted=True))
