"""What all clients of `MixedFleet` and of the simulator are: programs on a device, and people who edit on it.

Each client keeps what it would keep on disk, says the messages that the deployed program says, and forgets a local
change when that program would. What it takes for done it lists in `done`, to be looked up in the log. The clients of
`inbetweenies-v2` are in `fleet_clients`, those of v1 in `fleet_v1`.

Nothing here waits, reads a clock or draws at random: whoever drives them does that, and hands the results in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from functools import cache
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, TypeVar

import msgspec
from msgspec import Struct

from ..errors import LocalProtocolError
from ..model import Cursor, Entity, Kind, Relationship
from ..wire import load

T = TypeVar("T")
Body = dict[str, Any]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode

#: What fleets edit: id -> entity type. Few, so that clients meet on them. The long one is as legal as the others.
THINGS: Final[Mapping[str, str]] = {
    "home": "home",
    "lamp": "device",
    "room": "room",
    "ann": "note",
    "hub": "device",
    "cabin": "home",
    "note": "note",
    "door-" + "é" * 240: "door",
}
NAMES: Final = ("Kitchen", "Küche 🏠", "", "kitchen", "\u0000")
FIELDS: Final = ("manufacturer", "is_reachable", "colour", "is_primary", "services", "a/b~c")
VALUES: Final[tuple[Any, ...]] = (
    "Acme", True, False, None, 1, 1.0, "", [1, {"a": None}], {}, {"x": 1}, 2**70, {"s": {"name": "Light"}},
)  # fmt: skip


@cache
def installed() -> dict[str, Any]:
    """The wire versions there are. `load` looks through all that is installed, which is slow."""
    return dict(load())


def codec(name: str) -> Any:
    """A wire version by name."""
    return installed()[name]


def driven(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits; nothing is left of one that does."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise LocalProtocolError("expected a coroutine that never waits; got one that waited for something")


class Act(NamedTuple):
    """One offline edit: what to do with which thing, and a number that picks the value."""

    verb: str
    thing: str
    value: int


class Done(NamedTuple):
    """A row that a client of v2 has stopped keeping for the server."""

    row: Entity | Relationship


class DoneRecord(NamedTuple):
    """Fields of a record that a client of v1 has stopped keeping for the server."""

    entity_type: str
    id: str
    fields: dict[str, Any]


class Pushed(Struct, frozen=True, kw_only=True):
    """What one message asks to be written: rows of v2, records of v1, and of each record the fields that a person
    changed since its client last agreed with the server on them. Those of `offered` were in a log that is gone, which
    parted from the one there is at `common` (PROTOCOL 4.14)."""

    rows: tuple[Entity | Relationship, ...] = ()
    offered: frozenset[tuple[Kind, str, str]] = frozenset()
    common: Cursor | None = None
    records: tuple[Body, ...] = ()
    touched: Mapping[str, frozenset[str]] = {}

    def __bool__(self) -> bool:
        return bool(self.rows or self.records)


NOTHING: Final = Pushed()


class World(NamedTuple):
    """What clients may ask of whoever drives them.

    `clock` is true time in microseconds, `told` takes a line for the trace, `broken` reports a broken law. `nonces`
    makes names that nothing else has, also if a client's disk is copied or put back.
    """

    clock: Callable[[], int]
    told: Callable[[str], None]
    broken: Callable[[str, str], NoReturn]
    page_rows: int
    batch: int
    nonces: Callable[[], str] | None = None


def short(text: str) -> str:
    """An id or a version in a line for people: without the date, and not too long."""
    return ascii(text[11:] if text[10:11] == "T" else text)[1:-1][:40]


def outline(answer: Body) -> str:
    """An answer in a few words."""
    words = []
    if answer.get("changes"):
        words.append(f"tells {len(answer['changes'])}")
    acks = answer.get("acks")
    if acks:
        words.append(", ".join(f"{short(ack['version'])} {ack['outcome']}" for ack in acks))
    elif answer.get("applied"):
        words.append(f"acks {[short(str(item)) for item in answer['applied']]}")
    words += [f"{len(answer[name])} {name}" for name in ("conflicts", "refused") if answer.get(name)]
    return "; ".join(words) or "nothing new"


def short_row(row: Any) -> str:
    """A row of the log in a few words."""
    return f"{short(row.id)} {short(row.version)}" + ("" if row.until != row.seq else " (kept)")


class PowerCut(Exception):
    """The machine of a client stopped in the middle of something."""


class NoAnswer(Exception):
    """What came back is no answer that this program can read."""


class Client(ABC):
    """One program on one device. A sync is a row of messages; at most one of them is under way."""

    kind: ClassVar[str]
    #: The wire version that a server must serve for this client to be of use.
    wire: ClassVar[str]
    acts: ClassVar[tuple[str, ...]]

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        self.name = name
        self.user = user
        self.world = world
        self.skew = skew
        self.done: list[Done | DoneRecord] = []
        self.waiting = False
        self.phase = ""
        self.failed = False
        #: What the last message asked to be written.
        self.pushed = NOTHING

    @property
    def now(self) -> int:
        """What this device takes for the time."""
        return self.world.clock() + self.skew

    # a sync

    def speak(self) -> bytes | None:
        """The next message of a sync, which begins if none is under way; None if this client has nothing to say."""
        if not self.phase:
            self.failed = False
            self.phase = self.begin()
        if not self.phase:
            return None
        self.pushed = NOTHING
        try:
            body = self.message()
        except PowerCut:
            self.world.told(f"{self.name} loses power")
            self.restart()
            return None
        self.waiting = True
        return body

    def listen(self, answer: bytes, *, ok: bool = True) -> None:
        """The answer to the message under way; `ok` is whether its status says so."""
        self.waiting = False
        if not ok:
            self.give_up()
            return
        try:
            self.phase = self.take_in(answer)
        except PowerCut:
            self.world.told(f"{self.name} loses power")
            self.restart()
        except NoAnswer:
            self.give_up()

    def give_up(self) -> None:
        """No answer came. What waits goes on waiting."""
        self.waiting = False
        self.failed = True
        self.phase = ""

    def restart(self) -> None:
        """The program starts anew with what it has stored."""
        self.give_up()

    @abstractmethod
    def begin(self) -> str:
        """The first phase of a sync."""

    def say(self) -> Body | None:
        """As `speak`, as JSON."""
        body = self.speak()
        said: Body | None = None if body is None else _decode(body)
        return said

    def hear(self, answer: Body) -> None:
        """As `listen`, as JSON."""
        self.listen(_encode(answer), ok="error" not in answer)

    @abstractmethod
    def message(self) -> bytes:
        """The message of this phase; what it asks to be written is left in `pushed`."""

    @abstractmethod
    def take_in(self, answer: bytes) -> str:
        """Take an answer in; the next phase, or "" at the end of the sync.

        Raises:
            NoAnswer: these bytes are none; nothing was taken in.
        """

    # a person

    @abstractmethod
    def edit(self, act: Act) -> str | None:
        """Do `act` offline, as far as this program can; what was done, in few words."""

    @property
    @abstractmethod
    def pending(self) -> tuple[str, ...]:
        """What still waits for the server and could be taken by it."""


class JsonClient(Client):
    """A program that takes JSON for what it is."""

    def message(self) -> bytes:
        return _encode(self.compose())

    def take_in(self, answer: bytes) -> str:
        return self.absorb(self.read_json(answer))

    def read_json(self, answer: bytes) -> Body:
        """An answer, as far as this program looks at it. One of another wire version than its own is none."""
        try:
            told = _decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise NoAnswer from error
        if not isinstance(told, dict) or told.get("protocol_version", self.wire) != self.wire:
            raise NoAnswer
        return told

    @abstractmethod
    def compose(self) -> Body:
        """The message of this phase."""

    @abstractmethod
    def absorb(self, answer: Body) -> str:
        """Take an answer in; the next phase, or "" at the end of the sync."""
