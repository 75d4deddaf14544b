"""Draws one history from one seed: who takes part, what they do, what goes wrong, and when.

A heap of things to come by their time is all there is to the course of events. Whatever is drawn is handed to the
stage as an event that holds all that was drawn, so that the same events can be played without this module.
"""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random
from typing import Any, Final

from msgspec import Struct

from ..fleet_base import THINGS
from ..fleet_clients import ModernV2
from ..fleet_ends import KINDS
from ..fleet_v1 import V1, Unknown
from .clock import DAY, SECOND
from .devices import strays
from .faults import AMONG_ANSWERS, AT_THE_SERVER, BY_THE_OPERATOR, NOW_AND_THEN, swarm
from .network import PROXY_ANSWERS, Damage, Letter
from .server import ROLLS
from .stage import Event, Setting, Stage
from .world import SimulatedWorld

#: How far the clocks of devices are off.
SKEWS: Final = (0, 0, 250_000, -400_000, -90 * SECOND, 90 * SECOND, 3_600 * SECOND, -DAY, 20 * 365 * DAY)
#: By how much clocks are set.
JUMPS: Final = (1, 1_000, SECOND, -SECOND, -3 * SECOND, 600 * SECOND, -DAY, DAY, 3_650 * DAY, -3_650 * DAY)
#: What a device with two programs may run: up and down again, ours and those that were deployed.
PAIRS: Final = (("modern", "v1"), ("deployed", "modern"), ("v1", "modern"), ("kitten", "v1"), ("v1", "deployed"))
HOME: Final = "default"
NEXT_DOOR: Final = "next door"
#: How long a device waits for an answer, in microseconds.
PATIENCE: Final = 30 * SECOND
#: How often an older answer comes first, where answers are mixed up.
MIXED_UP: Final = 0.4


class Size(Struct, frozen=True):
    """How large histories are: how many devices, and how often one of them does something."""

    devices: tuple[int, int]
    wakes: tuple[int, int]


SIZES: Final = {
    "small": Size((1, 3), (5, 18)),
    "medium": Size((2, 5), (40, 120)),
    "large": Size((3, 6), (200, 500)),
}


class Plot:
    """The draws of one history."""

    def __init__(self, world: SimulatedWorld, seed: int, size: str = "mixed") -> None:
        # Text, so that seeds next to each other have nothing in common.
        self.random = Random(f"inbetweenies {seed}")
        draw = self.random.random
        if size == "mixed":
            size = "small" if (lot := draw()) < 0.9 else "medium" if lot < 0.99 else "large"
        self.size = SIZES[size]
        self.world = world
        self.rates = swarm(self.random, world.faults)
        self.setting = Setting(
            page_rows=self._between(1, 5),
            batch=self._between(1, 4),
            listing_rows=self._between(2, 12),
            things=(1, 2, 2, 3, 4, len(THINGS))[self._below(6)],
            thorough=draw() < 0.1,
            kept=frozenset(name for name in ("journal", "heads") if draw() < 0.5),
        )
        self._coming: list[tuple[int, int, str, tuple[Any, ...]]] = []
        self._count = 0
        self._letters = 0
        self._devices = 0
        self._cut: dict[tuple[int, str], int] = {}
        self._wakes = self._between(*self.size.wakes)
        # Of their own, so that all else in the history of a seed is as it was without an operator, and without strays.
        self.operator = Random(f"inbetweenies operator {seed}")
        self._rolls = self.operator.random() < BY_THE_OPERATOR["rollout"].rate and "rollout" in world.faults
        self.late = Random(f"inbetweenies late {seed}")
        self._mixes_up = self.late.random() < AMONG_ANSWERS["stray"].rate and "stray" in world.faults
        self.stage: Stage

    # --- draws

    def _below(self, n: int) -> int:
        return int(self.random.random() * n)

    def _between(self, low: int, high: int) -> int:
        return low + self._below(high - low + 1)

    def _happens(self, fault: str) -> bool:
        rate = self.rates.get(fault)
        if rate is None or self.random.random() >= rate:
            return False
        self.stage.reached[fault] += 1
        return True

    def _pick(self, options: Any) -> Any:
        return options[self._below(len(options))]

    # --- the course of events

    def _at(self, time: int, what: str, *args: Any) -> None:
        self._count += 1
        heappush(self._coming, (time, self._count, what, args))

    def _now(self, name: str, *args: Any) -> Any:
        return self.stage.play(Event(self.stage.time, name, args))

    def perform(self, stage: Stage) -> None:
        """The whole chaos of the history, on `stage`."""
        self.stage = stage
        self._gather()
        rates = {fault: self.rates[fault] * NOW_AND_THEN[fault].rate for fault in NOW_AND_THEN if fault in self.rates}
        if rates:
            self._at(stage.time + self._soon(10), "mishap", rates)
        if self._rolls:
            self._roll_soon()
        wakes = 0
        while wakes < self._wakes and self._coming:
            time, _, what, args = heappop(self._coming)
            stage.time = max(stage.time, time)
            wakes += what == "wake"
            getattr(self, f"_{what}")(*args)

    def _soon(self, seconds: float) -> int:
        return int(self.random.expovariate(1 / seconds) * SECOND)

    def _gather(self) -> None:
        """Who takes part. Half of the time everybody knows everything before it begins, so that edits clash."""
        served = self.stage.server.versions or tuple({client.wire for client in KINDS.values()})
        kinds = [kind for kind in self.world.kinds if KINDS[kind].wire in served]
        pairs = [pair for pair in PAIRS if set(pair) <= set(kinds)]
        for _ in range(self._between(*self.size.devices)):
            pair = pairs and "downgrade" in self.rates and self.random.random() < 0.5
            self._join(self._pick(pairs) if pair else (self._pick(kinds),), HOME)
        if self.random.random() < 0.5:
            self._move_in()
        if self.random.random() < 0.1:
            self._join((self._pick(kinds),), NEXT_DOOR)
        for number in range(self._devices):
            self._at(self.stage.time + self._soon(8), "wake", number)

    def _join(self, kinds: tuple[str, ...], graph: str) -> None:
        number = self._devices
        self._devices += 1
        # Devices of one person whose counters and clocks agree make the same versions. A deployed client that loses
        # against its own version has no way to hear of it, so only ours is put to that.
        shared = kinds == (ModernV2.kind,) and self.random.random() < 0.3
        self._now("join", number, kinds, "ann" if shared else f"{kinds[0]}-{number}", self._pick(SKEWS), graph)

    def _move_in(self) -> None:
        first = self._below(self._devices)
        for thing in range(self.setting.things):
            self._now("edit", first, 0, thing, 0)
            self._now("edit", first, 2, thing, self._below(72))
        self._now("sync", first)
        self.stage.time += 60 * SECOND
        for number in range(self._devices):
            if number != first:
                self._now("sync", number)

    # what devices do

    def _wake(self, number: int) -> None:
        stage = self.stage
        device = stage.devices[number]
        lot = self.random.random()
        if lot < 0.6 or device.client.waiting:
            self._now("edit", number, self._below(10), self._below(8), self._below(72))
        if lot > 0.35:
            self._say(number)
        self._at(stage.time + self._soon(12), "wake", number)

    def _say(self, number: int) -> None:
        device = self.stage.devices[number]
        odd = isinstance(device.client, Unknown) and self.random.random() < 0.1
        letter: Letter | None = self._now("odd" if odd else "send", number, self._next_letter())
        if letter is None:
            return
        self._post(letter)
        if not odd:
            self._at(self.stage.time + PATIENCE, "timeout", number, letter.exchange)

    def _next_letter(self) -> int:
        self._letters += 1
        return self._letters

    def _timeout(self, number: int, exchange: int) -> None:
        device = self.stage.devices[number]
        if device.client.waiting and device.exchange == exchange:
            self._now("give_up", number)

    # what becomes of messages

    def _delay(self) -> int:
        usual = self._between(5_000, 300_000)
        return self._below(600 * SECOND) if self._happens("delay") else usual

    def _damage(self) -> Damage | None:
        if self._happens("truncate"):
            return ("truncate", self._below(10_000))
        if self._happens("flip"):
            return ("flip", self._below(10_000))
        return None

    def _is_cut(self, number: int, way: str) -> bool:
        if self._cut.get((number, way), 0) <= self.stage.time:
            return False
        self.stage.reached["partition"] += 1
        return True

    def _post(self, letter: Letter) -> None:
        if self._mixes_up and self.late.random() < MIXED_UP:
            self._at(self.stage.time + int(self.late.random() * 300_000), "stray", letter.device)
        if self._is_cut(letter.device, "to") or self._happens("drop"):
            return
        if self._happens("proxy"):
            self._at(self.stage.time + self._delay(), "proxy", letter.n, self._pick(tuple(PROXY_ANSWERS)))
            if self.random.random() < 0.5:
                return  # it never got there
        copies = self._between(2, 3) if self._happens("duplicate") else 1
        for _ in range(copies):
            self._at(self.stage.time + self._delay(), "arrive", letter.n, self._damage())

    def _arrive(self, n: int, damage: Damage | None) -> None:
        fault = next((fault for fault in AT_THE_SERVER if self._strikes(fault)), None)
        which = self._now("arrive", n, damage, fault)
        letter = self.stage.letters[n]
        if which is None or self._is_cut(letter.device, "from") or self._happens("drop"):
            return
        self._at(self.stage.time + self._delay(), "hear", n, which, self._damage())

    def _strikes(self, fault: str) -> bool:
        # Counted by the stage, if the request gets as far as the fault.
        rate = self.rates.get(fault)
        return rate is not None and self.random.random() < rate

    def _hear(self, n: int, which: int, damage: Damage | None) -> None:
        letter = self.stage.letters[n]
        if self._mixes_up and strays(self.stage.devices[letter.device], letter):
            self.stage.reached["stray"] += self._now("stray", n, which, damage)
            return
        if self._now("hear", n, which, damage):
            if "restore" in self.rates and self.random.random() < 0.05 and self._do_restore():
                self.stage.reached["restore"] += 1  # in the middle of a sync
            self._at(self.stage.time + 1_000, "go_on", letter.device)

    def _stray(self, number: int) -> None:
        """Any answer that its device was or could have been given before, from before a restore as well."""
        device = self.stage.devices[number]
        old = [
            (letter.n, which)
            for letter in self.stage.letters.values()
            if letter.device == number and strays(device, letter)
            for which in range(len(letter.replies))
        ]
        if old:
            self.stage.reached["stray"] += self._now("stray", *self.late.choice(old), None)

    def _go_on(self, number: int) -> None:
        client = self.stage.devices[number].client
        if client.phase and not client.waiting:
            self._say(number)

    def _proxy(self, n: int, kind: str) -> None:
        self._now("proxy", n, kind)

    # what goes wrong now and then

    def _mishap(self, rates: dict[str, float]) -> None:
        lot = self.random.random() * sum(rates.values())
        for fault, rate in rates.items():
            lot -= rate
            if lot < 0:
                if getattr(self, f"_do_{fault}")():
                    self.stage.reached[fault] += 1
                break
        self._at(self.stage.time + self._soon(12), "mishap", rates)

    def _roll_soon(self) -> None:
        self._at(self.stage.time + int(self.operator.expovariate(1 / 8) * SECOND), "roll")

    def _roll(self) -> None:
        stage = self.stage
        in_a_request = self.operator.random() < 0.5
        if self._now("roll", self.operator.choice(ROLLS), in_a_request):
            stage.reached["rollout"] += 1
        for number, device in stage.devices.items():
            # As a client does that is told what it would be served in rather.
            if not stage.server.gives(device.client.wire, device.graph) and self.operator.random() < 0.5:
                self._now("switch", number)
        self._roll_soon()

    def _any(self) -> int:
        return self._below(self._devices)

    def _do_crash(self) -> bool:
        self._now("crash")
        return True

    def _do_partition(self) -> bool:
        number, way = self._any(), self._pick(("to", "from"))
        self._cut[number, way] = self.stage.time + self._soon(60)
        self._now("cut", number, way)
        return False  # counted where it keeps something from getting through

    def _do_restore(self) -> bool:
        if self.random.random() < 0.5:
            self._now("backup")
            return False
        which = -1 if self.random.random() < 0.1 else self._below(10)
        lost = tuple(name for name in ("journal", "heads") if self.random.random() < 0.2)
        return bool(self._now("restore", which, lost))

    def _do_server_clock_jumps(self) -> bool:
        self._now("clock", -1, self._pick(JUMPS))
        return True

    def _do_server_clock_stops(self) -> bool:
        return self._stop(-1)

    def _do_device_clock_jumps(self) -> bool:
        self._now("clock", self._any(), self._pick(JUMPS))
        return True

    def _do_device_clock_stops(self) -> bool:
        return self._stop(self._any())

    def _stop(self, number: int) -> bool:
        self._now("stop", number)
        self._at(self.stage.time + self._soon(60), "go", number)
        return True

    def _go(self, number: int) -> None:
        self._now("go", number)

    def _do_version_off(self) -> bool:
        wire = self._pick(self.stage.server.versions or ("",))
        done = self._now("off", wire, self._pick(("refused", "removed", "decided")))
        if done:
            self._at(self.stage.time + self._soon(60), "on", wire)
        return bool(done)

    def _on(self, wire: str) -> None:
        self._now("on", wire)

    def _do_power_cut(self) -> bool:
        modern = [n for n, device in self.stage.devices.items() if isinstance(device.client, ModernV2)]
        if modern:
            self._now("power", self._pick(modern), self._below(5))
        return bool(modern)

    def _do_device_restore(self) -> bool:
        number = self._any()
        if self.random.random() < 0.5:
            self._now("save", number)
            return False
        return bool(self._now("load", number, self._below(4)))

    def _do_clone(self) -> bool:
        if self._devices >= 8:
            return False
        number, other = self._any(), self._devices
        device = self.stage.devices[number]
        # What a v1 client asks for, and what it is taken to have said before, goes by its name alone.
        if any(isinstance(client, V1) for client in device.programs):
            return False
        self._devices += 1
        still = self.random.random() < 0.5
        if still:
            # Both clocks stand where they stood when the disk was copied, so both make the same versions next.
            self._stop(number)
        self._now("clone", number, other, None if still else self._pick(SKEWS))
        if still:
            self._stop(other)
        self._at(self.stage.time + self._soon(12), "wake", other)
        return True

    def _do_forget(self) -> bool:
        return bool(self._now("forget", self._any(), self._below(12)))

    def _do_wipe(self) -> bool:
        return bool(self._now("wipe", self._any()))

    def _do_downgrade(self) -> bool:
        return bool(self._now("switch", self._any()))
