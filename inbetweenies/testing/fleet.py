"""A fleet of old, new and unknown clients against one server, over a network that loses, repeats and reorders.

`MixedFleet` is a Hypothesis state machine. Subclass it, name your store or handler, and run it::

    class MyFleet(MixedFleet):
        def make_store(self):
            return MyStore()

    MyFleet.TestCase.settings = settings(max_examples=200, stateful_step_count=60)
    TestMyFleet = MyFleet.TestCase                    # or: run_state_machine_as_test(MyFleet)

After every message the laws of PROTOCOL 1 are checked against the store's log; at the end the network heals, everybody
syncs until nothing is left to say, and everybody must hold the same. What breaks a law is reported with the story
that led to it, one line per event, and Hypothesis makes the story short.

Nothing here waits or reads a clock: the same choices make the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, Protocol, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import Struct

from ..errors import LocalProtocolError
from ..model import Held, Kind, Reads, format_time
from ..router import ProtocolFallback, ProtocolHandler
from ..store import Store
from ..stores.memory import MemoryStore
from .fleet_base import NOTHING, THINGS, Act, Body, Client, Pushed, World, codec, driven, installed, outline, short_row
from .fleet_clients import DeployedV2, ModernV2
from .fleet_ends import EVERY_RECORD, KINDS, check_digest, check_end
from .fleet_laws import Ledger, same, time_told
from .fleet_v1 import V1, Unknown

__all__ = ["BrokenLaw", "Handler", "MixedFleet"]

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode

SECOND: Final = 1_000_000
START: Final = 1_790_000_000 * SECOND
#: What the server's clock may do between two events: mostly small steps; it may stand still and step back.
STEPS: Final = (
    0,
    1,
    1_000,
    SECOND // 2,
    2 * SECOND,
    600 * SECOND,
    30 * 86_400 * SECOND,
    -1,
    -3 * SECOND,
    -86_400 * SECOND,
)
#: How far the clocks of devices are off.
SKEWS: Final = (0, 0, 0, 250_000, -400_000, -90 * SECOND, 90 * SECOND, -86_400 * SECOND, 20 * 365 * 86_400 * SECOND)
_WHO: Final = st.integers(0, 3)
_VERB: Final = st.integers(0, 9)
_THING: Final = st.integers(0, 7)
_VALUE: Final = st.integers(0, 71)
MESSAGES_MAX: Final = 200
ROUNDS_MAX: Final = 12


class BrokenLaw(AssertionError):
    """A law does not hold; the message tells the story."""


class Handler(Protocol):
    """Whatever serves sync messages given as dicts. `inbetweenies.ProtocolFallback` is one."""

    async def handle_sync_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """Serve one message; a refusal has the key ``error``."""


class Plan(NamedTuple):
    """What is drawn once for a run: who takes part, and how much there is to meet on."""

    kinds: tuple[str, ...]
    skews: tuple[int, ...]
    things: int
    page_rows: int
    batch: int
    clones: bool
    settled: bool


class Letter(Struct, eq=False):
    """One message on the network. `exchange` tells its sender whether the answer is still waited for."""

    n: int
    sender: Client
    exchange: int
    body: bytes
    pushed: Pushed = NOTHING
    deliveries: int = 0
    #: Whether the last delivery left nothing to be done by another one.
    settled: bool = False


class MixedFleet(RuleBasedStateMachine):
    """Old, new and unknown clients against one server. See the module.

    Override `make_store` to test a store, `make_handler` to test a whole server. A handler whose store the fleet cannot
    see (`make_store` returns None) is only held to what shows on the wire: refusals change nothing, repetition changes
    nothing, no read fails, time does not step back, everybody ends up with the same. Which rows are in the log, and
    what was lost on the way, cannot be seen from outside.

    Attributes:
        kinds: the clients that may take part, of ``modern``, ``deployed``, ``kitten``, ``v1`` and ``unknown``; those
            whose wire version is not served are left out.
        graph: the graph that the handler serves.
        replays: whether the whole run is repeated on a second store at its end, to compare the logs (law 12).
    """

    kinds: ClassVar[tuple[str, ...]] = tuple(KINDS)
    graph: ClassVar[str] = "default"
    replays: ClassVar[bool] = True

    # --- what a user overrides

    def make_store(self) -> Store | None:
        """A new, empty store. Called once per run, and once more to repeat the run."""
        return MemoryStore()

    def make_handler(self, store: Store | None, clock: Callable[[], int]) -> Handler:
        """The server under test, over `store`, with `clock` for its time (microseconds)."""
        handlers = {name: ProtocolHandler(store, wire=codec(name), clock=clock) for name in installed()}
        return ProtocolFallback(store, clock=clock, handlers=handlers)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine. Override it for servers that need an event loop."""
        return driven(coroutine)

    # --- set up

    def __init__(self) -> None:
        super().__init__()
        self.story: list[str] = []
        self.failed = False
        self.clock = START
        self.store = self.make_store()
        self.handler = self.make_handler(self.store, lambda: self.clock)
        self.ledger = None if self.store is None else Ledger(self._read, self.broken, self.graph)
        self.clients: list[Client] = []
        self.exchanges: dict[str, int] = {}
        self.things: tuple[str, ...] = tuple(THINGS)
        self.requests: list[Letter] = []
        self.answers: list[tuple[Letter, bytes]] = []
        self.sent: list[Letter] = []
        #: Every delivery, to be repeated on another store.
        self.tape: list[tuple[int, bytes]] = []
        self.letters = 0

    def plans(self) -> st.SearchStrategy[Plan]:
        """What may be drawn for a run."""
        served = getattr(self.handler, "handlers", None)
        kinds = [kind for kind in self.kinds if served is None or KINDS[kind].wire in served]
        if not kinds:
            raise LocalProtocolError("the handler serves no wire version that a client of the fleet speaks")
        return st.builds(
            Plan,
            kinds=st.lists(st.sampled_from(kinds), min_size=1, max_size=4).map(tuple),
            skews=st.tuples(*[st.sampled_from(SKEWS)] * 4),
            # Few, so that everybody edits the same.
            things=st.sampled_from((1, 2, 2, 3, 4, len(THINGS))),
            page_rows=st.integers(1, 4),
            batch=st.integers(1, 3),
            clones=st.booleans(),
            settled=st.booleans(),
        )

    @initialize(plan=st.runner().flatmap(lambda fleet: fleet.plans()))
    def begin(self, plan: Plan) -> None:
        world = World(
            clock=lambda: self.clock, told=self.tell, broken=self.broken, page_rows=plan.page_rows, batch=plan.batch
        )
        self.things = tuple(THINGS)[: plan.things]
        for index, kind in enumerate(plan.kinds):
            name = f"{kind}-{index}"
            # Devices of one user whose counters and clocks agree make the same versions. A deployed client that loses
            # against its own version has no way to hear of it, so only ours is put to that.
            user = "ann" if plan.clones and kind == ModernV2.kind else name
            self.clients.append(KINDS[kind](name, world, user=user, skew=plan.skews[index]))
            self.exchanges[name] = 0
            self.tell(f"{name} joins, its clock is off by {plan.skews[index] / SECOND:g} s")
        if plan.settled:
            self._move_in()

    def _move_in(self) -> None:
        """Everybody knows everything before the story begins, so that edits are edits of one row."""
        for thing in self.things:
            for act in (Act("create", thing, 0), Act("set", thing, 0), Act("nest", thing, 2)):
                self._act(self.clients[0], act)
        self._sync(self.clients[0])
        self.clock += 60 * SECOND
        for client in self.clients[1:]:
            self._sync(client)

    # --- the story

    def tell(self, line: str) -> None:
        """One event."""
        self.story.append(line)

    def broken(self, law: str, what: str) -> NoReturn:
        """A law does not hold. All such failures are raised here, so that Hypothesis takes them for one."""
        self.failed = True
        lines = "\n".join(f"  {number:3} {line}" for number, line in enumerate(self.story, 1))
        raise BrokenLaw(f"law {law}: {what}\n\nwhat happened:\n{lines}")

    # --- the server

    def _read(self, reads: Reads) -> Held:
        store = self.store
        assert store is not None, "only a ledger reads, and there is one only with a store"

        async def read() -> Held:
            async with store.transaction(self.graph, write=False) as tx:
                return await tx.read(reads)

        return self.run(read())

    def serve(self, body: bytes) -> bytes:
        """What the server says to `body`."""
        self.tape.append((self.clock, body))
        return _encode(self.run(self.handler.handle_sync_request(_decode(body))))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """An error in here is the end of the run: nothing is healed after it."""
        try:
            yield
        except BaseException:
            self.failed = True
            raise

    def _deliver(self, letter: Letter) -> bytes:
        """One delivery of a message, and every law that can be seen to hold after it."""
        with self._watched():
            return self._delivered(letter)

    def _delivered(self, letter: Letter) -> bytes:
        message: Body = _decode(letter.body)
        before = None if self.ledger else self.picture()
        body = self.serve(letter.body)
        answer: Body = _decode(body)
        letter.deliveries += 1
        refusal = answer.get("code", "?") if "error" in answer else None
        self.tell(f"#{letter.n} reaches the server: {refusal or outline(answer)}")
        if before is not None:
            self._check_outside(letter, refusal, before)
        elif self.ledger is not None:
            seq = self.ledger.head.seq
            fresh, current = self.ledger.follow(letter.pushed)
            self.ledger.check_listing()
            if fresh:
                self.tell(f"    log {seq} -> {self.ledger.head.seq}: " + ", ".join(short_row(row) for row in fresh))
            if refusal and fresh:
                self.broken("11 (all or nothing)", f"#{letter.n} was refused ({refusal}) and wrote {len(fresh)} rows")
            if not refusal:
                # A v1 push that changed nothing left no trace. If it comes again after others wrote, it is an old edit
                # without a base, and may be kept beside what is current. It must not become current.
                again = [row for row in fresh if row.current] if letter.sender.wire == V1.wire else fresh
                if letter.settled and again:
                    self.broken("5 (idempotent)", f"#{letter.n} came again and wrote {len(again)} rows")
                self.ledger.check_push(letter.pushed, answer, fresh, current)
                if letter.deliveries == 1:
                    for id_, fields in letter.pushed.touched.items():
                        self.ledger.check_untouched(id_, fields, current)
        self._check_answer(letter, message, answer, refusal)
        letter.settled = not refusal and not answer.get("refused")
        return body

    def _check_answer(self, letter: Letter, message: Body, answer: Body, refusal: str | None) -> None:
        """What must hold whoever asked."""
        if refusal:
            if isinstance(letter.sender, Unknown) and not self._is_odd(message):
                self.broken("7 (total)", f"{letter.sender.name} was refused: {answer}")
            if not isinstance(letter.sender, Unknown):
                self.broken("7 (total)", f"{letter.sender.name} was refused: {answer}")
            return
        if self._is_odd(message):
            self.broken("11 (all or nothing)", f"a write in an unknown shape was served: {answer}")
        version = message.get("protocol_version")
        served = answer.get("protocol_version", version)
        if version == "inbetweenies-v2" and served != version:
            self.broken("10 (downgrade)", f"{letter.sender.name} asked for {version} and was served {served}")
        told = time_told(answer)
        if told is not None and self.ledger is not None and letter.sender.wire == "inbetweenies-v2":
            self.ledger.told = max(self.ledger.told, told)

    def _is_odd(self, message: Body) -> bool:
        return any("op" in change for change in message.get("changes", ()) if isinstance(change, dict))

    # without a store

    def picture(self) -> Body:
        """All that shows on the wire: the whole graph as a stranger reads it."""
        body = {
            "protocol_version": "inbetweenies-v2", "device_id": "stranger", "user_id": "stranger", "sync_type": "full",
            "changes": [],
        }  # fmt: skip
        answer = self.run(self.handler.handle_sync_request(body))
        if "error" in answer:
            self.broken("7 (total)", f"a full read was refused: {answer}")
        return {"changes": answer["changes"], "state_digest": answer.get("state_digest")}

    def _check_outside(self, letter: Letter, refusal: str | None, before: Body) -> None:
        if (refusal or letter.settled) and not same(self.picture(), before):
            law = "11 (all or nothing)" if refusal else "5 (idempotent)"
            self.broken(law, f"#{letter.n} changed what a full read shows")

    # --- the network

    def _say(self, client: Client) -> Letter | None:
        if client.waiting:
            return None
        body = client.speak()
        if body is None:
            return None
        self.letters += 1
        self.exchanges[client.name] += 1
        letter = Letter(self.letters, client, self.exchanges[client.name], body, client.pushed)
        self.sent.append(letter)
        items = len(client.pushed.rows) + len(client.pushed.records)
        changes = f", {items} changes" if items else ""
        self.tell(f"{client.name} sends #{letter.n}: {client.phase}{changes}")
        return letter

    def _hear(self, letter: Letter, answer: bytes) -> None:
        client = letter.sender
        if not client.waiting or self.exchanges[client.name] != letter.exchange:
            self.tell(f"{client.name} no longer waits for the answer to #{letter.n}")
            return
        with self._watched():
            client.listen(answer, ok="error" not in _decode(answer))
        self.tell(
            f"{client.name} hears the answer to #{letter.n}" + (f", then: {client.phase}" if client.phase else "")
        )
        for done in client.done:
            if self.ledger is not None:
                self.ledger.check_done(client.name, done)
        client.done.clear()

    def _give_up(self, client: Client) -> None:
        if client.waiting or client.phase:
            client.give_up()
            self.tell(f"{client.name} gives up")

    def _exchange(self, client: Client) -> bool:
        """One message there and its answer back; False if there was nothing to say."""
        letter = self._say(client)
        if letter is None:
            return False
        self._hear(letter, self._deliver(letter))
        return True

    def _sync(self, client: Client) -> None:
        """A whole sync on a good day."""
        if client.waiting:
            self._give_up(client)
        for _ in range(MESSAGES_MAX):
            if not self._exchange(client) or not client.phase:
                return
        self.broken("liveness", f"{client.name} is not done after {MESSAGES_MAX} messages")

    # --- rules

    def who(self, index: int) -> Client:
        """A client by number."""
        return self.clients[index % len(self.clients)]

    def _edit(self, client: Client, verb: int, thing: int, value: int) -> None:
        self._act(client, Act(client.acts[verb % len(client.acts)], self.things[thing % len(self.things)], value))

    def _act(self, client: Client, act: Act) -> None:
        done = client.edit(act)
        if done is not None:
            self.tell(f"{client.name}: {done}")

    @rule(who=_WHO, verb=_VERB, thing=_THING, value=_VALUE)
    def edit(self, who: int, verb: int, thing: int, value: int) -> None:
        self._edit(self.who(who), verb, thing, value)

    @rule(who=_WHO, verb=_VERB, thing=_THING, value=_VALUE)
    def edit_and_sync(self, who: int, verb: int, thing: int, value: int) -> None:
        self._edit(self.who(who), verb, thing, value)
        self._sync(self.who(who))

    @rule(who=_WHO, verbs=st.tuples(_VERB, _VERB), thing=_THING, values=st.tuples(_VALUE, _VALUE))
    def clash(self, who: int, verbs: tuple[int, int], thing: int, values: tuple[int, int]) -> None:
        """Two edit the same before they hear of each other."""
        pair = (self.who(who), self.who(who + 1))
        for client, verb, value in zip(pair, verbs, values, strict=True):
            self._edit(client, verb, thing, value)
        for client in pair:
            self._sync(client)

    @rule(who=_WHO)
    def sync(self, who: int) -> None:
        self._sync(self.who(who))

    @rule(who=_WHO)
    def exchange(self, who: int) -> None:
        self._exchange(self.who(who))

    @rule(who=_WHO)
    def send(self, who: int) -> None:
        letter = self._say(self.who(who))
        if letter is not None:
            self.requests.append(letter)

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 7), again=st.booleans())
    def deliver(self, which: int, again: bool) -> None:
        letter = self.requests[which % len(self.requests)]
        if not again:
            self.requests.remove(letter)
        self.answers.append((letter, self._deliver(letter)))

    @precondition(lambda self: self.answers)
    @rule(which=st.integers(0, 7))
    def answer(self, which: int) -> None:
        letter, body = self.answers.pop(which % len(self.answers))
        self._hear(letter, body)

    @rule(who=_WHO)
    def lose_answer(self, who: int) -> None:
        client = self.who(who)
        letter = self._say(client)
        if letter is not None:
            self._deliver(letter)
            self._give_up(client)

    @precondition(lambda self: any(client.waiting or client.phase for client in self.clients))
    @rule(who=_WHO)
    def give_up(self, who: int) -> None:
        self._give_up(self.who(who))

    @precondition(lambda self: self.sent)
    @rule(which=st.integers(0, 31))
    def deliver_late(self, which: int) -> None:
        """Any message that was ever sent comes once more; nobody hears the answer."""
        self._deliver(self.sent[-1 - which % len(self.sent)])

    @rule(step=st.sampled_from(STEPS))
    def tick(self, step: int) -> None:
        self.clock += step
        self.tell(f"the server's clock goes {step / SECOND:+g} s, to {format_time(self.clock, naive=True)[11:]}")

    @precondition(lambda self: any(isinstance(client, ModernV2) for client in self.clients))
    @rule(who=_WHO, writes=st.integers(0, 4))
    def power_cut(self, who: int, writes: int) -> None:
        modern = [client for client in self.clients if isinstance(client, ModernV2)]
        client = modern[who % len(modern)]
        client.store.power = writes
        self.tell(f"{client.name} will lose power after {writes} writes")

    @precondition(lambda self: any(isinstance(client, Unknown) for client in self.clients))
    @rule()
    def odd_write(self) -> None:
        client = next(client for client in self.clients if isinstance(client, Unknown))
        self.letters += 1
        letter = Letter(self.letters, client, -1, client.odd_write())
        self.tell(f"{client.name} sends #{letter.n}: a write of its own kind")
        self._deliver(letter)

    # --- the end

    def teardown(self) -> None:
        """The network heals: everybody must come to rest, and hold the same."""
        if self.failed or not self.clients:
            return
        self.tell("the network heals")
        for letter in self.requests:
            self.answers.append((letter, self._deliver(letter)))
        self.requests = []
        for letter, body in self.answers:
            self._hear(letter, body)
        self.answers = []
        self._settle()
        self._check_convergence()
        if self.replays and self.ledger is not None:
            self._check_replay()

    def _settle(self) -> None:
        quiet = 0
        for _ in range(ROUNDS_MAX):
            before = self._mark()
            for client in self.clients:
                if isinstance(client, ModernV2):
                    client.store.power = None
                self._give_up(client)
                self._sync(client)
            self.clock += SECOND
            waiting = any(client.failed or self._open(client) for client in self.clients)
            quiet = quiet + 1 if self._mark() == before and not waiting else 0
            if quiet == 2:
                return
        waits = {client.name: self._open(client) for client in self.clients if self._open(client)}
        self.broken("liveness", f"after {ROUNDS_MAX} rounds it is not quiet yet; waiting: {waits}")

    def _mark(self) -> object:
        return self.picture() if self.ledger is None else self.ledger.head

    def _open(self, client: Client) -> list[str]:
        """What a client still waits with although the server could take it."""
        waiting = list(client.pending)
        if self.ledger is None or not isinstance(client, DeployedV2):
            return waiting
        # It only ever sends its newest row, so an edge can name an endpoint row that nobody will ever see.
        hopeless = [
            edge.id
            for edge in client.edges.values()
            if ("entity", edge.from_entity_id, edge.from_entity_version) not in self.ledger.by_version
            or ("entity", edge.to_entity_id, edge.to_entity_version) not in self.ledger.by_version
        ]
        return [id_ for id_ in waiting if id_ not in hopeless]

    def _check_convergence(self) -> None:
        self.tell("everybody is done")
        rows = self._current()
        records = self._records() if any(isinstance(client, V1) for client in self.clients) else []
        for client in self.clients:
            check_end(client, rows, records)
            if self.ledger is not None and isinstance(client, ModernV2):
                check_digest(client, self.ledger.head)

    def _current(self) -> dict[tuple[Kind, str], Body]:
        """The current rows, as a stranger reads them."""
        rows: dict[tuple[Kind, str], Body] = {}
        for change in self.picture()["changes"]:
            if change["entity"] is not None:
                rows["entity", change["entity"]["id"]] = change["entity"]
            for edge in change["relationships"]:
                rows["edge", edge["id"]] = edge
        return rows

    def _records(self) -> list[Body]:
        """Every record, as a new client of v1 gets it."""
        answer = _decode(self.serve(EVERY_RECORD))
        if "error" in answer:
            self.broken("7 (total)", f"a v1 read was refused: {answer}")
        records: list[Body] = answer["changes"]
        return records

    def _check_replay(self) -> None:
        """Law 12: the same messages at the same times make the same log."""
        assert self.ledger is not None
        first, tape = self.store, list(self.tape)
        store = self.make_store()
        clock = [0]
        handler = self.make_handler(store, lambda: clock[0])
        for clock[0], body in tape:
            self.run(handler.handle_sync_request(_decode(body)))
        self.store = store
        head = self._read(Reads()).head
        self.store = first
        expected = self.ledger.head
        if (head.seq, head.stamp, head.chain, head.digest) != (
            expected.seq, expected.stamp, expected.chain, expected.digest,
        ):  # fmt: skip
            self.broken("12 (deterministic)", f"the same messages made {head}; at first they made {expected}")
