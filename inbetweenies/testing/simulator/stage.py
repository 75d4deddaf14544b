"""One history, played event by event. Nothing is drawn here: whatever happens is an event that somebody hands in.

`Plot` draws the events of a history while it is played; a script that was recorded plays the same history again, and a
script with events left out plays another one, in which events that make no sense any more do nothing. That is how a
failure is made short.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import msgspec
from msgspec import Struct

from ...errors import StoreError
from ...model import Head, Held, Reads, format_time
from ..fleet_base import NOTHING, THINGS, Act, Client, World, outline, short_row
from ..fleet_clients import DeployedV2, ModernV2
from ..fleet_laws import Ledger
from ..fleet_v1 import V1, Unknown
from .clock import SECOND, START, Clock
from .devices import Device, expects, strays
from .invariants import Invariant, NoAckedWriteLost, Served
from .network import PROXY_ANSWERS, Damage, Letter, Reply, damaged
from .server import Roll, Server
from .session import Session

if TYPE_CHECKING:
    from .world import SimulatedWorld

_encode = msgspec.json.Encoder().encode
_THINGS: Final = tuple(THINGS)
#: No sync takes so many messages. One that makes the log grow with each may take one more each time.
LONGEST: Final = 1_000


class Event(NamedTuple):
    """Something that happens at a time: the name of a method of `Stage` without its ``on_``, and its arguments."""

    at: int
    name: str
    args: tuple[Any, ...]


class Setting(Struct, frozen=True, kw_only=True):
    """What stays the same for a whole history.

    Attributes:
        page_rows, batch: how much our client asks for and sends at once; few, because that finds more.
        listing_rows: how many rows are listed at once to a client that locates.
        things: how many things there are to edit; few, so that everybody edits the same.
        thorough: whether what costs a lot is checked as well at the end.
        kept: what the server keeps outside of its database, of ``journal`` and ``heads``.
    """

    page_rows: int
    batch: int
    listing_rows: int
    things: int
    thorough: bool
    kept: frozenset[str] = frozenset()


class Broken(AssertionError):
    """An invariant does not hold.

    Attributes:
        law: the clause and name of what does not hold.
        what: how that was seen.
    """

    def __init__(self, law: str, what: str) -> None:
        super().__init__(f"{law}: {what}")
        self.law = law
        self.what = what


class Stage:
    """The server, the devices and the letters of one history; and every rule, checked after every event.

    Args:
        world: the build under test and its rules.
        setting: see `Setting`.
        tell: takes one line for each thing that happens, for people; without it no line is made.
    """

    def __init__(self, world: SimulatedWorld, setting: Setting, tell: Callable[[str], object] | None = None) -> None:
        self.setting = setting
        database = world.make_database()
        kept = setting.kept & world.holders & database.keeps
        #: What can bring a write back: see `SimulatedWorld.holders`. What is lost on the way is none any more.
        self.holders = (world.holders - {"journal", "heads"}) | (setting.kept & world.holders)
        self._programs = world.programs
        self.tell = tell
        self.time = START
        self.server_clock = Clock(self._true)
        self.server = Server(database, world.make_beside(), world.process, self.server_clock, kept)
        self.devices: dict[int, Device] = {}
        self.letters: dict[int, Letter] = {}
        self.script: list[Event] = []
        self.reached: Counter[str] = Counter()
        self.messages = 0
        #: Ids that a restore took rows of out of the database.
        self.rewound: set[str] = set()
        self._ledgers: dict[str, Ledger] = {}
        self._backups: list[tuple[Any, dict[str, Ledger]]] = []
        self._extra = 0
        #: The sync of each device that began last.
        self._sessions: dict[int, Session] = {}
        self._nonces = 0
        #: Whether a graph was made a second time.
        self._reborn = False
        self._clocks_ahead: set[int] = set()
        #: When a v1 device was answered last: the number of the server's start; and those that asked for everything
        #: again although they hold something, of a server that has started since.
        self._answered: dict[int, int] = {}
        self._unheard: set[int] = set()
        #: The start of the server whose answer a v1 device heard last; and those of which an ack came to a later one.
        self._heard: dict[int, int] = {}
        self._mistaken: set[int] = set()
        self._trace = blake2b(digest_size=16)
        rules = [rule(self) for rule in world.invariants]
        self.rules: dict[type[Invariant], Invariant] = dict(zip(world.invariants, rules, strict=True))
        self._on_served = [rule for rule in rules if type(rule).served is not Invariant.served]
        self._on_heard = [rule for rule in rules if type(rule).heard is not Invariant.heard]

    def _true(self) -> int:
        return self.time

    def close(self) -> None:
        """Let go of files."""
        self.server.database.close()

    # --- playing

    def play(self, event: Event) -> Any:
        """Let an event happen. What it returns helps to draw the next one."""
        self.script.append(event)
        self.time = event.at
        self._trace.update(_encode(event))
        return getattr(self, f"on_{event.name}")(*event.args)

    @property
    def trace(self) -> str:
        """A hash over everything that happened: two runs are the same if and only if it is."""
        return self._trace.hexdigest()

    def say(self, line: str) -> None:
        """Tell people what happens."""
        if self.tell is not None:
            self.tell(f"{format_time(self.time, naive=True)[5:23]}  {line}")

    def broken(self, law: str, what: str) -> NoReturn:
        """An invariant does not hold. Clients report to this too."""
        raise Broken(law, what)

    def ledger(self, graph: str) -> Ledger:
        """The log of a graph, as far as it was read."""
        if graph not in self._ledgers:

            def read(reads: Reads) -> Held:
                return self.server.read(graph, reads)

            self._ledgers[graph] = Ledger(read, self.broken, graph, rewinds=True)
        return self._ledgers[graph]

    @property
    def acked(self) -> tuple[int, int]:
        """How many writes clients have forgotten, and how many of these no holder can bring back."""
        found = [rule for rule in self.rules.values() if isinstance(rule, NoAckedWriteLost)]
        return sum(len(rule.acked) for rule in found), sum(rule.gone for rule in found)

    def excused(self, device: Device) -> bool:
        """Whether the records of a v1 client may rightly differ from the server's.

        It keeps the newer record by a time that a log which was put back knows nothing of; and what it asks for, by its
        own clock, is wrong if its disk is an older one while that clock runs ahead.
        """
        if self.rewound:
            return True
        # That a client heard an answer and did not ack it is kept in memory only; so after a restart one that asks for
        # everything is taken for a new one, and is told nothing of what was deleted (PROTOCOL 8.15).
        if device.number in self._unheard:
            return True
        # For the same reason an ack that comes late, after a restart and another answer, confirms that one (8.6). What
        # it asks for by its own clock then saves whoever's clock is not ahead.
        mistaken = device.twinned or device.number in self._mistaken
        return mistaken and device.number in self._clocks_ahead

    # --- people

    def on_join(self, number: int, kinds: tuple[str, ...], user: str, off: int, graph: str) -> None:
        clock = Clock(self._true, off)
        world = self._world(clock)
        self.devices[number] = Device(number, tuple(kinds), user, graph, world, clock, known=self._programs)
        self.say(f"{self.devices[number]} joins in graph {graph}, its clock is off by {off / SECOND:g} s")

    def _world(self, clock: Clock) -> World:
        return World(
            clock=clock,
            told=self.say,
            broken=self.broken,
            page_rows=self.setting.page_rows,
            batch=self.setting.batch,
            nonces=self._nonce,
        )

    def _nonce(self) -> str:
        self._nonces += 1
        return f"{self._nonces:08x}{0:08x}"

    def on_edit(self, number: int, verb: int, thing: int, value: int) -> None:
        device = self.devices.get(number)
        if device is None:
            return
        client = device.client
        act = Act(client.acts[verb % len(client.acts)], _THINGS[thing % self.setting.things], value)
        done = client.edit(act)
        if done is not None:
            self.say(f"{device}: {done}")

    # --- messages

    def on_send(self, number: int, n: int) -> Letter | None:
        """A device says the next thing of a sync, if it waits for nothing and has something to say."""
        device = self.devices.get(number)
        if device is None or device.client.waiting:
            return None
        return self._send(device, n)

    def _send(self, device: Device, n: int) -> Letter | None:
        client = device.client
        begins = not client.phase
        body = client.speak()
        if body is None:
            return None
        device.exchange += 1
        if begins:
            ledger = self.ledger(device.graph)
            self._sessions[device.number] = Session(client, ledger, self.setting, self.server.generation)
        self._count(device, body)
        if isinstance(client, V1) and client.phase == "request" and self._looks_new(device, client):
            self._unheard.add(device.number)
        letter = Letter(n, device.number, device.exchange, client.kind, client.wire, body, client.pushed)
        if isinstance(client, V1) and client.phase == "ack":
            letter.confirms = self._heard.get(device.number)
        self.letters[n] = letter
        self._trace.update(body)
        if self.tell is not None:
            items = len(letter.pushed.rows) + len(letter.pushed.records)
            self.say(f"{device} sends #{n}: {client.phase}" + (f", {items} changes" if items else ""))
        return letter

    def _count(self, device: Device, body: bytes) -> None:
        """One more message of a sync, which must not be one too many."""
        session = self._sessions[device.number]
        session.said(body)
        if session.generation == self.server.generation and session.messages > session.most:
            self.broken("10.2 to 10.6 (settles)", f"{device} is not done after {session.most} messages")

    def _looks_new(self, device: Device, client: V1) -> bool:
        known = self._answered.get(device.number) == self.server.starts
        return client.last_sync is None and bool(client.records) and not known

    def on_odd(self, number: int, n: int) -> Letter | None:
        """A write of a wire version to come."""
        device = self.devices.get(number)
        if device is None or not isinstance(device.client, Unknown):
            return None
        letter = Letter(n, number, -1, Unknown.kind, "inbetweenies-v7", device.client.odd_write(), odd=True)
        self.letters[n] = letter
        self.say(f"{device} sends #{n}: a write of its own kind")
        return letter

    def on_arrive(self, n: int, damage: Damage | None, fault: str | None) -> int | None:
        """A letter reaches the server; the number of the answer to it, None if there is none."""
        letter = self.letters.get(n)
        return None if letter is None else self.deliver(letter, damage, fault)

    def deliver(self, letter: Letter, damage: Damage | None = None, fault: str | None = None) -> int | None:
        """One delivery, and everything that can be seen to hold after it."""
        device, server = self.devices[letter.device], self.server
        ledger = self.ledger(device.graph)
        again = letter.settled == server.generation
        epoch = ledger.head.epoch
        self.messages += 1
        letter.deliveries += 1
        answer, met = server.serve(damaged(letter.body, damage), device.graph, fault)
        reply = None
        if answer is not None:
            reply = Reply(answer.body, answer.status == 200, server.generation, server.starts)
            if letter.confirms not in (None, server.starts):
                self._mistaken.add(device.number)
            letter.replies.append(reply)
            self._trace.update(answer.body)
            if b'"type":"sync_request"' in letter.body:
                self._answered[device.number] = server.starts
        seq = ledger.head.seq
        fresh, before = ledger.follow(letter.pushed)
        served = Served(
            letter,
            device,
            reply,
            ledger,
            fresh,
            before,
            whole=damage is None,
            fault=fault if met else None,
            healthy=damage is None and not met and server.serves(letter.wire),
            again=again,
            epoch=epoch,
        )
        if met and fault is not None:
            self.reached[fault] += 1
        if self.tell is not None:
            self._say_served(served, damage, seq)
        for rule in self._on_served:
            rule.served(served)
        if reply is not None and reply.ok:
            open_ = b'"refused":[{' in reply.body or b'"resync":true' in reply.body
            letter.settled = None if open_ else server.generation
        return None if reply is None else len(letter.replies) - 1

    def _say_served(self, served: Served, damage: Damage | None, seq: int) -> None:
        if served.reply is None:
            words = f"the server dies: {served.fault}"
        elif served.ok:
            words = outline(served.told)
        else:
            words = f"refused, {served.told.get('code')}" + (f" ({served.fault})" if served.fault else "")
        state = f", {damage[0]}d," if damage else ""
        self.say(f"#{served.letter.n}{state} reaches the server: {words}")
        if served.fresh:
            rows = ", ".join(short_row(row) for row in served.fresh)
            self.say(f"    log {seq} -> {served.ledger.head.seq}: {rows}")

    def on_hear(self, n: int, which: int, damage: Damage | None) -> bool:
        """An answer reaches its device; whether that has more to say."""
        letter = self.letters.get(n)
        if letter is None or which >= len(letter.replies):
            return False
        return self.hear(letter, letter.replies[which], damage)

    def hear(self, letter: Letter, reply: Reply, damage: Damage | None = None) -> bool:
        """One answer taken in, and everything that can be seen to hold after it."""
        device = self.devices[letter.device]
        if not expects(device, letter):
            self.say(f"{device} no longer waits for the answer to #{letter.n}")
            return False
        client = device.client
        client.listen(damaged(reply.body, damage), ok=reply.ok)
        if b'"type":"sync_request"' in letter.body:
            self._heard[device.number] = reply.start
        if client.wire == V1.wire and client.now > self.server_clock():
            self._clocks_ahead.add(device.number)
        if self.tell is not None:
            state = f" ({damage[0]}d)" if damage else ""
            then = "gives up" if client.failed else f"then: {client.phase}" if client.phase else "is done"
            self.say(f"{device} hears the answer to #{letter.n}{state}, {then}")
        for rule in self._on_heard:
            rule.heard(device, letter, reply)
        return bool(client.phase)

    def on_stray(self, n: int, which: int, damage: Damage | None) -> bool:
        """An answer reaches its device in place of the one that it waits for; whether it did."""
        letter = self.letters.get(n)
        if letter is None or which >= len(letter.replies) or not strays(self.devices[letter.device], letter):
            return False
        device, reply = self.devices[letter.device], letter.replies[which]
        client = device.client
        assert isinstance(client, ModernV2), "no other is handed one"
        before = client.store.image
        client.listen(damaged(reply.body, damage), ok=reply.ok)
        self.say(f"{device} gets the answer to #{n}, which is not the one that it waits for")
        # Our client gives up: its next sync asks again, and what it waited for is then an answer to nothing.
        if not client.failed or client.store.image != before:
            self.broken("10.14 (belief)", f"{device} took the answer to #{n} for that to what it said last")
        return True

    def on_proxy(self, n: int, kind: str) -> None:
        """Something on the way answers in the server's place."""
        letter = self.letters.get(n)
        if letter is None or not expects(self.devices[letter.device], letter):
            return
        ok, body = PROXY_ANSWERS[kind]
        device = self.devices[letter.device]
        device.client.listen(body, ok=ok)
        self.say(f"{device} gets {kind} from a proxy for #{letter.n}")
        if not device.client.failed:
            self.broken("10.2 (answers)", f"{device} took {body!r} for an answer")

    def on_give_up(self, number: int) -> None:
        device = self.devices.get(number)
        if device is not None and (device.client.waiting or device.client.phase):
            device.client.give_up()
            self.say(f"{device} gives up")

    def on_cut(self, number: int, way: str) -> None:
        if number in self.devices:
            self.say(f"nothing gets {way} the server any more from {self.devices[number]}" if way == "to" else
                     f"nothing gets from the server to {self.devices[number]} any more")  # fmt: skip

    # --- the server's accidents

    def on_crash(self) -> None:
        self.server.crash()
        self.say("the server restarts")
        self._follow_all()

    def on_backup(self) -> None:
        forks = {graph: ledger.fork() for graph, ledger in self._ledgers.items()}
        self._backups.append((self.server.database.backup(), forks))
        self.say(f"backup {len(self._backups) - 1} of the database, at {self._heads()}")

    def on_restore(self, which: int, lose: tuple[str, ...] = ()) -> bool:
        """The database is replaced by a backup, or by an empty one; and what is kept outside may be lost as well."""
        if which >= 0 and not self._backups:
            return False
        image, forks = self._backups[which % len(self._backups)] if which >= 0 else (None, {})
        old = self._ledgers
        self.holders -= set(lose)
        # A graph that no backup has is another one when it is made again, which the ends of the old one say nothing of.
        self._reborn |= any(graph not in forks for graph in old)
        if not ("journal" in self.holders or ("heads" in self.holders and not self._reborn)):
            # Nobody remembers what time was handed out; whoever restores sets the clock first.
            stamps = [max(ledger.head.stamp, ledger.told) for ledger in old.values()]
            self.server_clock.floor = max([self.server_clock.floor, *(stamp + SECOND for stamp in stamps)])
        self._ledgers = {graph: ledger.fork() for graph, ledger in forks.items()}
        try:
            self.server.restore(image, lose)
        except StoreError:
            if "journal" in self.holders:
                raise
            # A journal that was begun anew is another database's than an older backup; an operator moves it away.
            lose = (*lose, "journal")
            self.server.restore(image, lose)
        self.say(
            f"the database is replaced by {'an empty one' if which < 0 else f'backup {which % len(self._backups)}'}"
            + "".join(f", the {name} are gone" for name in lose)
        )
        for graph, before in old.items():
            ledger = self.ledger(graph)
            ledger.told = -1  # what comes back does so to the letter
            ledger.follow(NOTHING, restarted=True)
            ledger.told = max(ledger.told, before.told)
            ledger.unplaced |= before.unplaced  # v1 clients remember what they were shown before
            gone = [row for row in before.rows if (row.kind, row.id, row.version) not in ledger.by_version]
            self.rewound.update(row.id if row.kind == "entity" else row.from_id for row in gone)
            for rule in self.rules.values():
                rule.restored(graph, before, ledger)
        self.say(f"    the log ends at {self._heads()}")
        return True

    def _follow_all(self) -> None:
        """The server may have written while it started."""
        for ledger in self._ledgers.values():
            ledger.follow(NOTHING, restarted=True)

    def _heads(self) -> str:
        return ", ".join(f"{graph}:{ledger.head.seq}" for graph, ledger in self._ledgers.items()) or "nothing"

    def on_clock(self, number: int, by: int) -> None:
        clock, whose = self._clock(number)
        if clock is not None:
            clock.jump(by)
            self.say(f"{whose}'s clock jumps by {by / SECOND:+g} s, to {format_time(clock(), naive=True)}")

    def on_stop(self, number: int) -> None:
        clock, whose = self._clock(number)
        if clock is not None:
            clock.stop()
            self.say(f"{whose}'s clock stops")

    def on_go(self, number: int) -> None:
        clock, whose = self._clock(number)
        if clock is not None:
            clock.go()
            self.say(f"{whose}'s clock goes again")

    def _clock(self, number: int) -> tuple[Clock | None, str]:
        if number < 0:
            return self.server_clock, "the server"
        device = self.devices.get(number)
        return (None, "") if device is None else (device.clock, str(device))

    def on_off(self, wire: str, how: str) -> bool:
        """A wire version is switched off."""
        done = self.server.switch_off(wire, how)
        if done:
            self.say(f"{wire} is switched off ({how})")
        return done

    def on_on(self, wire: str) -> None:
        self.server.switch_on(wire)
        self.say(f"{wire} is on")

    def on_roll(self, verb: Roll, in_a_request: bool) -> bool:
        """The rollout of the newest wire version is moved: now, or between the beginning of the next request and its
        transaction."""
        done = self.server.roll(verb, in_a_request=in_a_request)
        if done:
            self.say(f"the newest wire version: {verb}" + (", in the next request" if in_a_request else ""))
        return done

    # --- the devices' accidents

    def on_power(self, number: int, writes: int) -> None:
        device = self.devices.get(number)
        if device is not None and isinstance(device.client, ModernV2):
            device.client.store.power = writes
            self.say(f"{device} will lose power after {writes} writes")

    def on_save(self, number: int) -> None:
        device = self.devices.get(number)
        if device is not None:
            device.save()
            self.say(f"backup {len(device.saves) - 1} of {device}")

    def on_load(self, number: int, which: int) -> bool:
        """A device is restored."""
        device = self.devices.get(number)
        done = device is not None and device.load(which)
        if done:
            self.say(f"{device} is restored from its own backup {which}")
        return done

    def on_clone(self, number: int, other: int, off: int | None) -> bool:
        """A device's disk is copied to another device, whose clock is off by so much; by None, it is the same clock."""
        device = self.devices.get(number)
        if device is None:
            return False
        clock = device.clock.fork() if off is None else Clock(self._true, off)
        self.devices[other] = device.clone(other, self._world(clock), clock)
        self.say(f"{self.devices[other]} is a copy of {device}, its clock shows {format_time(clock(), naive=True)}")
        return True

    def on_forget(self, number: int, which: int) -> bool:
        """A device does not have a row any more that it was told."""
        device = self.devices.get(number)
        if device is None or not isinstance(device.client, ModernV2):
            return False
        lost = device.client.lose(which)
        if lost is not None:
            self.say(f"{device} has lost {lost}")
        return lost is not None

    def on_wipe(self, number: int) -> bool:
        """A device starts again with nothing."""
        device = self.devices.get(number)
        if device is None:
            return False
        device.wipe()
        self.say(f"{device} is wiped")
        return True

    def on_switch(self, number: int) -> bool:
        """A device runs its other program."""
        device = self.devices.get(number)
        if device is None or len(device.programs) < 2:
            return False
        device.switch()
        self.say(f"{device} it is now")
        return True

    # --- everything in order

    def on_sync(self, number: int) -> None:
        """A whole sync on a good day."""
        device = self.devices.get(number)
        if device is not None:
            self.sync(device)

    def sync(self, device: Device) -> None:
        """Message and answer in turns, until the device has nothing more to say."""
        client = device.client
        if client.waiting or client.phase:
            client.give_up()
        for _ in range(LONGEST):
            self._extra += 1
            letter = self._send(device, -self._extra)
            if letter is None:
                return
            which = self.deliver(letter)
            if which is None or not self.hear(letter, letter.replies[which]):
                return
        self.broken("10.2 to 10.6 (settles)", f"{device} is not done after {LONGEST} messages")

    def heal(self) -> None:
        """Everything is in order again: everybody must come to rest, and hold the same."""
        self.time += 60 * SECOND
        self.say("everything is in order again")
        self.server_clock.go()
        for wire in list(self.server.off):
            self.on_on(wire)
        for device in self.devices.values():
            device.clock.go()
            for client in device.programs:
                if isinstance(client, ModernV2):
                    client.store.power = None
        for rule in self.rules.values():
            rule.healing()
        waiting = [letter for letter in self.letters.values() if not letter.deliveries]
        for letter in waiting[-4:]:
            self.deliver(letter)
        self.settle()
        self.say("everybody is at rest")
        for rule in self.rules.values():
            rule.healed()
        for ledger in self._ledgers.values():
            self._trace.update(ledger.head.chain)

    def settle(self) -> None:
        """Rounds of syncs, until nobody has anything to say to the log as it is. How many it may take depends on how
        much there is to tell."""
        rows = sum(len(ledger.rows) for ledger in self._ledgers.values())
        most = 4 + -(-rows // self.setting.page_rows) + 2 * self.server.generation
        #: The head of the log at which each program came to rest.
        rests: dict[Client, Head] = {}
        for _ in range(most):
            for device in self.devices.values():
                for _program in device.programs:
                    self._rest(device, rests)
                    if len(device.programs) > 1:
                        device.switch()
            self.time += SECOND
            if all(
                rests.get(client) == self.ledger(device.graph).head
                for device in self.devices.values()
                for client in device.programs
            ):
                return
        waiting = {str(device): self.left(device) for device in self.devices.values()}
        self.broken("10.2 to 10.6 (settles)", f"after {most} rounds it is not quiet yet; waiting: {waiting}")

    def _rest(self, device: Device, rests: dict[Client, Head]) -> None:
        """A sync of the running program, unless it is at rest with the log as it is."""
        ledger, client = self.ledger(device.graph), device.client
        before = ledger.head
        if rests.get(client) == before:
            return
        self.sync(device)
        # Whoever pushed last heard what was there then; a program that pulls first has not heard of its own rows.
        heard = before == ledger.head or (
            isinstance(client, ModernV2) and client.store.image.state.cursor == str(ledger.head.cursor)
        )
        if heard and not client.failed and not self.left(device):
            rests[client] = ledger.head

    def left(self, device: Device) -> list[str]:
        """What the running program of a device waits with although the server could take it."""
        client: Client = device.client
        waiting = list(client.pending)
        if isinstance(client, V1) and self.excused(device):
            return []  # what it links to may be gone, and it has no way to bring that back
        if not waiting or not isinstance(client, DeployedV2):
            return waiting
        # It only ever sends its newest row, so an edge can name an endpoint row that nobody will ever see.
        known = self.ledger(device.graph).by_version
        hopeless = [
            edge.id
            for edge in client.edges.values()
            if ("entity", edge.from_entity_id, edge.from_entity_version) not in known
            or ("entity", edge.to_entity_id, edge.to_entity_version) not in known
        ]
        return [id_ for id_ in waiting if id_ not in hopeless]

    def ask(self, body: bytes, graph: str) -> bytes:
        """What a stranger is answered, once all is in order."""
        answer, _ = self.server.serve(body, graph)
        if answer is None or answer.status != 200:
            self.broken("1.7 (total)", f"a stranger's read was refused: {answer}")
        return answer.body
