"""What each wire version shows of one graph, held against that graph (PROTOCOL 12.10, law 6). Pure.

`compare` asks for everything in each of some wire versions, as a client would that was never here, all as of one head.
What a version answers must be its view of the graph; and of that view and its declared losses each value of the graph
must be in exactly one. So each version is compared with every other one through the graph, and whoever differs is the
one at fault. No message holds a stored value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from ..engine import serve
from ..errors import LocalProtocolError
from ..limits import Limits
from ..model import Context, Head, Held, Kind, Plan, Reads, Row, Span, SyncRequest, SyncResponse, Telling, Writes
from ..pieces import ends

MISMATCHES_MAX: Final = 100  # that are told one by one: who has more of them has one mistake and no list
ROWS_MAX: Final = 20_000  # a graph is held whole to compare it: 7 kB a row, and 5,000 rows take a second

T = TypeVar("T")
_Difference: TypeAlias = tuple[str, str, str]  # kind, id, and what is told
_decode = msgspec.json.decode
_sorted: Final = msgspec.json.Encoder(order="sorted").encode


class Shown(Struct, frozen=True, gc=False):
    """One record as a wire version tells it: its type and id there, and all that it says, in one spelling."""

    kind: str
    id: str
    told: bytes


class Fact(Struct, frozen=True, gc=False):
    """One value of the graph as a record shows it.

    Attributes:
        pointer: where in the graph it is (`pointer`).
        value: what is shown.
        otherwise: what is shown where the graph says nothing; unset if nothing is then.
    """

    pointer: str
    value: Any
    otherwise: Any = UNSET


class View(Struct, frozen=True, kw_only=True):
    """What a wire version must show of a graph: its records, the values in them, and the pointers to all that it does
    not show, with the reason for each in a word. Whatever is below such a pointer is lost with it."""

    shown: tuple[Shown, ...]
    facts: tuple[Fact, ...]
    losses: Mapping[str, str]


class Shadowed(Protocol):
    """A wire version that can be compared. It needs three methods beside those by which it is served."""

    name: str

    def decode(self, body: bytes, *, path: str = "", strict: bool = False, limits: Limits) -> Any:
        """See `inbetweenies.wire.WireVersion`."""

    def up(self, message: Any, context: Context, limits: Limits) -> Plan[SyncRequest]:
        """See `inbetweenies.wire.WireVersion`."""

    def down(
        self, message: Any, response: SyncResponse, context: Context, limits: Limits, negotiation: Any = UNSET
    ) -> Telling:
        """See `inbetweenies.wire.WireVersion`."""

    def everything(self) -> bytes:
        """A request for all that this version can show, in one answer."""

    def shown(self, answer: bytes) -> Iterable[Shown]:
        """What the answer to that shows, in the order in which it does."""

    def view(self, head: Head, rows: Sequence[Row]) -> View:
        """What it must show of the graph that has these current rows."""


class Mismatch(Struct, frozen=True, kw_only=True):
    """Something that a wire version shows otherwise than it must, or loses without saying so.

    Attributes:
        version: of the wire.
        kind, id: what it is about: of a record its type there, else ``entity`` or ``edge``, or ``graph``.
        told: what was expected and what is there.
    """

    version: str
    kind: str
    id: str
    told: str


class Compared(Struct, frozen=True, kw_only=True):
    """What came of a comparison.

    Attributes:
        versions: which wire versions were compared.
        seq: as of where in the log.
        rows: how many rows are current there; more than the most that were to be compared if it was left.
        mismatches: the first `MISMATCHES_MAX`.
        count: how many there are.
        left: whether the graph was too large, so that nothing was compared.
    """

    versions: tuple[str, ...]
    seq: int
    rows: int
    mismatches: tuple[Mismatch, ...] = ()
    count: int = 0
    left: bool = False


class Unseen(Struct, frozen=True, kw_only=True):
    """PROTOCOL 13.9: what a wire version does not show of a graph.

    Attributes:
        rows: how many current rows the graph has, tombstones among them.
        types: the type of each entity and edge, by the pointer to it.
        records: how many records show it.
        losses: pointers to what they do not show, and why.
        unexplained: what is neither shown nor declared lost, in words. Empty, or there is a bug in that version.
    """

    rows: int
    types: Mapping[str, str]
    records: int
    losses: Mapping[str, str]
    unexplained: tuple[str, ...]


def unseen(wire: Shadowed, limits: Limits) -> Plan[Unseen]:
    """PROTOCOL 13.9: what `wire` does not show of a graph. Only reads, in one snapshot."""
    head = (yield Reads()).head
    rows = yield from _current(head, limits, None)
    view = wire.view(head, rows)
    return Unseen(
        rows=len(rows),
        types={pointer(row.kind, row.id): row.entity_type for row in rows},
        records=len(view.shown),
        losses=view.losses,
        unexplained=tuple(told for _, _, told in _accounts(rows, view)),
    )


def pointer(kind: Kind, id_: str, *keys: str) -> str:
    """Where a value of an entity or edge is (RFC 6901), as in ``/entities/e1/content/model``."""
    return "".join("/" + _escaped(part) for part in (_PLACES[kind], id_, *keys))


_PLACES: Final[dict[Kind, str]] = {"entity": "entities", "edge": "relationships"}
_KINDS: Final = {place: kind for kind, place in _PLACES.items()}


def _escaped(part: str) -> str:
    return part if "~" not in part and "/" not in part else part.replace("~", "~0").replace("/", "~1")


def compare(
    wires: Sequence[Shadowed], context: Context, limits: Limits, *, rows_max: int | None = ROWS_MAX
) -> Plan[Compared]:
    """PROTOCOL 12.10: hold what each of `wires` shows against the graph. Only reads, in one snapshot.

    A wire version that raises anything, which none may (law 7), or wants to write, differs by that.
    """
    head = (yield Reads()).head
    names = tuple(wire.name for wire in wires)
    rows = yield from _current(head, limits, rows_max)
    if rows_max is not None and len(rows) > rows_max:
        return Compared(versions=names, seq=head.seq, rows=len(rows), left=True)
    mismatches: list[Mismatch] = []
    count = 0
    for wire in wires:
        for kind, id_, told in (yield from _differences(wire, context, limits, head, rows)):
            count += 1
            if len(mismatches) < MISMATCHES_MAX:
                mismatches.append(Mismatch(version=wire.name, kind=kind, id=id_, told=told))
    return Compared(versions=names, seq=head.seq, rows=len(rows), mismatches=tuple(mismatches), count=count)


def _current(head: Head, limits: Limits, rows_max: int | None) -> Plan[list[Row]]:
    rows: list[Row] = []
    after: int | None = 0
    while after is not None and (rows_max is None or len(rows) <= rows_max):
        span = Span(after=after, upto=head.seq, rows=limits.page_rows_max, size=limits.page_bytes_max)
        some = (yield Reads(span=span)).span
        rows += some
        after = None if ends(some, span) else some[-1].seq
    return rows


# --- the answer ---------------------------------------------------------------------------------------------------


def _answer(wire: Shadowed, context: Context, limits: Limits) -> Plan[bytes]:
    """What this version answers to somebody who was never here, and leaves no trace."""
    pieces: list[bytes] = []
    message = wire.decode(wire.everything(), limits=limits)
    request = yield from _stranger(wire.up(message, context, limits), pieces)
    response = yield from _stranger(serve(request, context, limits), pieces)
    last = yield from _stranger(wire.down(message, response, context, limits), pieces)
    return b"".join([*pieces, last])


def _stranger(plan: Generator[Reads | Writes | bytes, Held, T], pieces: list[bytes]) -> Plan[T]:
    """`plan` over a store that knows no device and keeps none. What it tells goes to `pieces`."""
    held: Held | None = None
    while True:
        try:
            # A generator that has just yielded bytes, or nothing yet, is sent nothing.
            step = next(plan) if held is None else plan.send(held)
        except StopIteration as stop:
            result: T = stop.value
            return result
        if isinstance(step, bytes):
            pieces.append(step)
            held = None
        elif isinstance(step, Reads):
            held = yield replace(step, device=None)
        elif step.rows or step.closed or step.events or step.head:
            raise LocalProtocolError("expected a wire version to write nothing to answer a read; it wants to")


# --- what is wrong with it ----------------------------------------------------------------------------------------


def _differences(
    wire: Shadowed, context: Context, limits: Limits, head: Head, rows: Sequence[Row]
) -> Plan[list[_Difference]]:
    try:
        answer = yield from _answer(wire, context, limits)
        view = wire.view(head, rows)
        return [*_shown_otherwise(view.shown, tuple(wire.shown(answer))), *_accounts(rows, view)]
    except Exception as error:  # noqa: BLE001 - whatever it is; what the store raises does not come here
        return [("graph", context.graph, f"expected an answer and a view of it; got {type(error).__name__}")]


def _shown_otherwise(expected: Sequence[Shown], got: Sequence[Shown]) -> Iterator[_Difference]:
    """Records that are shown too often, or not as in the view. Two may have one type and id, but not all they say."""
    missing, odd = Counter(expected), Counter(got)
    missing, odd = missing - odd, odd - missing
    there = Counter((one.kind, one.id) for one in expected)
    seen = Counter((one.kind, one.id) for one in got)
    for kind, id_ in dict.fromkeys((one.kind, one.id) for one in (*missing, *odd)):
        most, told = there[kind, id_], seen[kind, id_]
        if told == most:
            yield kind, id_, "expected what the graph says; got something else"
        elif most == 0:
            yield kind, id_, "expected nothing, as the graph has no such thing; got it"
        elif told == 0:
            yield kind, id_, "expected it; it is not shown"
        else:
            yield kind, id_, f"expected it {most} times; got it {told} times"


def _accounts(rows: Iterable[Row], view: View) -> Iterator[_Difference]:
    """Whether each value of the graph is either shown or declared lost, and nothing else is."""
    accounts = _Accounts(view)
    for row in rows:
        for told in accounts.check(pointer(row.kind, row.id), _decode(row.body)):
            yield row.kind, row.id, told
    for at, told in accounts.rest():
        _, place, id_ = at.split("/", 3)[:3]
        yield _KINDS[place], id_.replace("~1", "/").replace("~0", "~"), told


class _Accounts:
    def __init__(self, view: View) -> None:
        self._facts = {fact.pointer: fact for fact in view.facts}
        self._losses = set(view.losses)
        self._twice = [at for at, times in Counter(fact.pointer for fact in view.facts).items() if times > 1]

    def check(self, at: str, value: Any) -> Iterator[str]:
        """What is wrong with how a value is shown, or anything in it."""
        fact = self._facts.pop(at, None)
        if at in self._losses:
            self._losses.remove(at)
            if fact is not None and _same(fact.value, value):
                yield f"expected {at} to be lost, as is declared; it is shown"
        elif fact is not None:
            if not _same(fact.value, value):
                yield f"expected what the graph says at {at}; something else is shown"
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from self.check(f"{at}/{_escaped(key)}", inner)
        else:
            yield f"expected {at} to be shown, or declared lost; it is neither"

    def rest(self) -> Iterator[tuple[str, str]]:
        """What is wrong with what is shown or declared lost where the graph says nothing."""
        for at in self._twice:
            yield at, f"expected {at} to be shown once; got it several times"
        for fact in self._facts.values():
            if not _same(fact.value, fact.otherwise):
                yield fact.pointer, f"expected nothing at {fact.pointer}, as in the graph; something is shown"
        for at in sorted(self._losses):
            yield at, f"expected something at {at}, as it is declared lost; the graph says nothing"


def _same(one: Any, other: Any | UnsetType) -> bool:
    """Whether two values of JSON are the same. 1 and 1.0 are, 1 and true are not."""
    if type(one) in _NUMBERS and type(other) in _NUMBERS:
        return bool(one == other)
    return other is not UNSET and _sorted(one) == _sorted(other)


_NUMBERS: Final = (int, float)
