"""What must hold in every history: one class for each invariant, with its sentence and the clause it stands on.

Those that can be seen after each event are checked after each event (`served`, `heard`), the others once everybody
has come to rest (`healed`). The checks themselves read the log through `fleet_laws.Ledger`, which shares no rule with
the code under test.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import msgspec

from ...merge import CLAMP_US
from ...model import Cursor, Entity, Kind, Relationship, Row, parse_cursor, parse_time
from ...rewind import entries, short
from ..fleet_base import Body, Done, DoneRecord
from ..fleet_clients import ModernV2
from ..fleet_ends import EVERY_RECORD, check_digest, check_end
from ..fleet_laws import Ledger, document, kind_of, same, words
from ..fleet_v1 import V1
from .devices import Device
from .network import Letter, Reply
from .outside import JOURNAL_FAULTS
from .server import AFTER, BEFORE, IO

if TYPE_CHECKING:
    from .stage import Stage

_decode = msgspec.json.decode

_CURSOR: Final = re.compile(rb'"cursor":"([^"]*)"')
_WITNESS: Final = re.compile(rb'"witness":"([^"]*)"')


class Served:
    """One delivery of a letter to the server, and what it did to the log of its graph.

    Attributes:
        reply: None if the server died over it.
        whole: whether the letter arrived undamaged.
        fault: what the server met on the way, if it did.
        healthy: nothing stood in the way of serving it.
        again: a delivery before had left nothing to be done.
        first: no delivery came before.
        fresh: the rows that it added; `before` is what was current before them, `epoch` the log's epoch.
    """

    def __init__(
        self,
        letter: Letter,
        device: Device,
        reply: Reply | None,
        ledger: Ledger,
        fresh: list[Row],
        before: Mapping[tuple[Kind, str], Row],
        *,
        whole: bool,
        fault: str | None,
        healthy: bool,
        again: bool,
        epoch: str,
    ) -> None:
        self.letter = letter
        self.device = device
        self.reply = reply
        self.ledger = ledger
        self.fresh = fresh
        self.before = before
        self.whole = whole
        self.fault = fault
        self.healthy = healthy
        self.again = again
        self.epoch = epoch
        self.first = letter.deliveries == 1

    @property
    def ok(self) -> bool:
        return self.reply is not None and self.reply.ok

    @property
    def body(self) -> bytes:
        """The answer."""
        assert self.reply is not None, "a server that died told nothing"
        return self.reply.body

    @cached_property
    def told(self) -> Body:
        """The answer as JSON."""
        answer: Body = _decode(self.body)
        return answer

    @cached_property
    def places(self) -> list[Cursor]:
        """The places of the log that the letter says it comes from (PROTOCOL 4.10)."""
        if self.letter.kind != ModernV2.kind:
            return []
        found = [_WITNESS.search(self.letter.body), _CURSOR.search(self.letter.body)]
        return [place for each in found if each and (place := parse_cursor(each[1].decode())) is not None]

    @cached_property
    def strays(self) -> list[Cursor]:
        """Those that are not of this log."""
        return [place for place in self.places if not self.ledger.has(place)]

    @cached_property
    def in_own_wire(self) -> bool:
        """Whether it is in the wire version that was asked for. Ours says so first, so that nothing is decoded."""
        wire = self.letter.wire
        return self.body.startswith(b'{"protocol_version":"' + wire.encode() + b'"') or (
            self.told.get("protocol_version") == wire
        )


class Invariant:
    """One thing that must always hold. A subclass overrides the moments at which it can be seen."""

    sentence: ClassVar[str]
    clause: ClassVar[str]

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @classmethod
    def name(cls) -> str:
        """The class's name in words."""
        return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in cls.__name__).strip()

    def broken(self, what: str) -> NoReturn:
        """It does not hold."""
        self.stage.broken(f"{self.clause} ({self.name()})", what)

    def served(self, served: Served) -> None:
        """After each delivery to the server."""

    def heard(self, device: Device, letter: Letter, reply: Reply) -> None:
        """After each answer that a device took in."""

    def restored(self, graph: str, old: Ledger, new: Ledger) -> None:
        """After the database was replaced by a backup and the server has started."""

    def healing(self) -> None:
        """Before the last syncs, with everything in order again."""

    def healed(self) -> None:
        """After everybody has come to rest."""


class NoAckedWriteLost(Invariant):
    """Keeps what clients forgot, which is what they were told is safe."""

    sentence = "What a client has forgotten because the server named it is in the log, while one holder of it survives."
    clause = "1.1, 1.9"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.acked: list[tuple[str, Device, Done | DoneRecord]] = []
        #: Of `acked`, those that a restore took out of the database, and whether they must come back.
        self.missing: dict[int, bool] = {}
        #: How many of them no holder could bring back.
        self.gone = 0

    def heard(self, device: Device, letter: Letter, reply: Reply) -> None:
        for done in device.client.done:
            self.acked.append((device.graph, device, done))
            if reply.generation != self.stage.server.generation:
                # It was acknowledged by the server as it was before it was restored.
                self._look(len(self.acked) - 1)
            else:
                self.stage.ledger(device.graph).check_done(str(device), done)
        device.client.done.clear()

    def _look(self, index: int) -> None:
        graph, device, done = self.acked[index]
        lacking = self.stage.ledger(graph).lacking(done)
        if lacking is None:
            self.missing.pop(index, None)
        elif "journal" in self.stage.holders:
            self.broken(f"{device} forgot {lacking}; the journal did not bring it back")
        else:
            self.missing[index] = False

    def restored(self, graph: str, old: Ledger, new: Ledger) -> None:
        for index, (of, _, _) in enumerate(self.acked):
            if of == graph:
                self._look(index)

    def healing(self) -> None:
        if "clients" not in self.stage.holders:
            return
        held: dict[tuple[str, Kind, str, str], list[bytes]] = {}
        for device in self.stage.devices.values():
            for client in device.programs:
                if isinstance(client, ModernV2):
                    for whole in client.holds():
                        held.setdefault((device.graph, *whole[:3]), []).append(client.store.image.copies[whole].body)
        for index in self.missing:
            graph, _, done = self.acked[index]
            if isinstance(done, Done):
                row = done.row
                bodies = held.get((graph, kind_of(row), row.id, row.version), ())
                self.missing[index] = any(_says(body, row) for body in bodies)

    def healed(self) -> None:
        if not self.stage.server.generation:
            return  # the log only ever grew, so what was in it is in it
        for index, (graph, device, done) in enumerate(self.acked):
            lacking = self.stage.ledger(graph).lacking(done)
            if lacking is not None:
                if self.missing.get(index, True) and not self._leads_nowhere(graph, done):
                    self.broken(f"{device} forgot {lacking}, though somebody still holds it")
                self.gone += 1

    def _leads_nowhere(self, graph: str, done: Done | DoneRecord) -> bool:
        """Whether it is an edge of a row that no holder had any more: it is refused (3.5), and waits where it is."""
        if not isinstance(done, Done) or isinstance(done.row, Entity):
            return False
        edge, of_id = done.row, self.stage.ledger(graph).of_id
        ends = ((edge.from_entity_id, edge.from_entity_version), (edge.to_entity_id, edge.to_entity_version))
        return any(version not in {row.version for row in of_id.get(("entity", id_), ())} for id_, version in ends)


def _says(body: bytes, row: Entity | Relationship) -> bool:
    """Whether this is the same row, whatever a client did not say of it."""
    if isinstance(row, Entity):
        return same(document(msgspec.json.decode(body, type=Entity)), document(row))
    return same(_decode(body)["properties"], _decode(row.properties))


class NothingToldLost(Invariant):
    sentence = "Whatever a client with a witness was told or had acknowledged, of any author, is in the log at the end."
    clause = "10.10, 11.4"

    def healed(self) -> None:
        if "clients" not in self.stage.holders or not self.stage.server.generation:
            return
        for device in self.stage.devices.values():
            for client in device.programs:
                if isinstance(client, ModernV2):
                    self._check(device, client)

    def _check(self, device: Device, client: ModernV2) -> None:
        ledger = self.stage.ledger(device.graph)
        for kind, id_, version, hash_ in sorted(client.holds()):
            there = any(row.hash == hash_ for row in ledger.of_id.get((kind, id_), ()))
            if not (there or ledger.renamed(kind, id_, version) or self._is_hopeless(client, (kind, id_, version))):
                self.broken(f"{device} holds {kind} {id_} {version}, and the log does not")

    def _is_hopeless(self, client: ModernV2, row: tuple[Kind, str, str]) -> bool:
        """It was told of an edge, and before it was told of the end the log was lost."""
        waiting = client.store.image.pending.values()
        return any(item.note is not None and (*item.copy.key, item.copy.version) == row for item in waiting)


class NothingDisplaced(Invariant):
    """Keeps what was current when the database was replaced."""

    sentence = "What was current in a log that is gone, and came back, counts more than what it had taken the place of."
    clause = "4.14"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.was: list[tuple[str, Row]] = []

    def served(self, served: Served) -> None:
        # PROTOCOL 4.14 (a): of what has a time from the future, and was in a log that parted from this one nobody knows
        # where, nothing tells when it was made. So it counts as older than all there is, and than what it had taken the
        # place of, when that comes.
        unknown = {(row.id, row.version) for row in served.fresh if row.via and row.edit == 0}
        if unknown:
            graph = served.device.graph
            self.was = [(of, row) for of, row in self.was if of != graph or (row.id, row.version) not in unknown]

    def restored(self, graph: str, old: Ledger, new: Ledger) -> None:
        # What came back was decided in the log that held it: something stood there, or something followed it.
        self.was = [(of, row) for of, row in self.was if of != graph or not _has(old, row)]
        rows = [row for row in old.current.values() if row.kind == "entity" and not _has(new, row)]
        # A log that nobody came across while it was there leaves nobody who could say what was current in it.
        self.was += [(graph, row) for row in rows if self._is_known(graph, row)]

    def _is_known(self, graph: str, row: Row) -> bool:
        """Whether a client takes this row for current."""
        clients = [
            client for device in self.stage.devices.values() if device.graph == graph for client in device.programs
        ]
        pointers = [
            client.store.image.pointers.get((row.kind, row.id)) for client in clients if isinstance(client, ModernV2)
        ]
        return any(pointer is not None and row.version in (pointer.theirs, pointer.ours) for pointer in pointers)

    def healed(self) -> None:
        for graph, row in self.was:
            ledger = self.stage.ledger(graph)
            now = ledger.current.get(("entity", row.id))
            if not _has(ledger, row) or (now is not None and now.version == row.version):
                continue
            if now is None or (_follows(ledger, row, now) and not _follows(ledger, now, row)):
                told = None if now is None else now.version
                self.broken(f"{row.id} {row.version} was current, was lost and came back; now {told} is")


def _follows(ledger: Ledger, row: Row, other: Row) -> bool:
    """Whether one entity row descends from another, by their names. Where a device that was put back gives a name once
    more each can descend from the other."""
    return other.version in ledger.ancestors(row.id, row.entity().parent_versions)


def _has(ledger: Ledger, row: Row) -> bool:
    """Whether the log has this very row."""
    held = ledger.by_version.get((row.kind, row.id, row.version))
    return held is not None and held.hash == row.hash


class AckAfterCommit(Invariant):
    sentence = (
        "What an answer acknowledges is in the log when the answer is made; what it does not, it refuses by name."
    )
    clause = "1.1, 1.3"

    def served(self, served: Served) -> None:
        if served.ok and served.letter.pushed.rows:
            served.ledger.check_acks(served.letter.pushed, served.told)


class AllOrNothingRoutes(Invariant):
    sentence = "A request that is refused, or that cannot be read, changed nothing."
    clause = "1.11"

    def served(self, served: Served) -> None:
        # PROTOCOL 11.1: what the journal could not take may be there, and is not acknowledged; nor is what was there
        # when the disk failed, while the answer was read.
        late = {*JOURNAL_FAULTS, *([IO] if self.stage.server.database.reads_fail else ())}
        refused = served.reply is not None and not served.reply.ok and served.fault not in late
        if served.fresh and (refused or not served.whole):
            self.broken(f"#{served.letter.n} wrote {len(served.fresh)} rows and was answered {served.told}")
        if served.ok and (served.letter.odd or not served.whole):
            self.broken(f"#{served.letter.n} is no message that this server knows, and was served: {served.told}")


class Atomic(Invariant):
    sentence = "Wherever the server dies, all of a push is in the log or nothing of it."
    clause = "1.3"

    def served(self, served: Served) -> None:
        if served.fault is None or served.reply is not None:
            return
        if served.fault == BEFORE and served.fresh:
            self.broken(f"the server died before it committed #{served.letter.n}; {len(served.fresh)} rows are there")
        if (served.fault != AFTER or served.strays) and not served.fresh:
            return
        for row in served.letter.pushed.rows:
            if not served.ledger.settled(row):
                self.broken(
                    f"the server died when #{served.letter.n} was committed; {words(row)} of it is not in the log"
                )


class NoTraceback(Invariant):
    sentence = "Every legal request is served while its wire version is on; a store that cannot is told so."
    clause = "1.7, 2.7"

    def served(self, served: Served) -> None:
        reply = served.reply
        if reply is None or reply.ok or served.letter.odd:
            return
        if served.healthy:
            self.broken(f"{served.device} was refused: {served.told}")
        if served.told.get("code") is None:
            self.broken(f"{served.device} was refused without a code: {served.told}")


class Idempotent(Invariant):
    sentence = "A message that comes again, late or out of order, has the effect of once."
    clause = "1.5"

    def served(self, served: Served) -> None:
        if not (served.again and served.ok):
            return
        # What a v1 client says of a log that was put back is compared with what is shown for want of anything better.
        if served.letter.wire == V1.wire and self.stage.excused(served.device):
            return
        # Of v1, what comes again after others wrote may be kept beside what is current; it must not become current.
        again = [row for row in served.fresh if row.current] if served.letter.wire == V1.wire else served.fresh
        # PROTOCOL 4.14 (g): what comes again finds that a row that it descends from has come back meanwhile.
        again = [row for row in again if not ((row.via or row.until != row.seq) and "#" in row.version)]
        if again:
            self.broken(f"#{served.letter.n} came again and wrote {len(again)} rows")

    def healed(self) -> None:
        if not self.stage.setting.thorough:
            return
        for letter in list(self.stage.letters.values()):
            if letter.pushed and letter.settled == self.stage.server.generation:
                self.stage.deliver(letter)
        self.stage.settle()


class NoResurrection(Invariant):
    sentence = "What was deleted stays deleted until a person's later edit follows the tombstone."
    clause = "6.2"

    def served(self, served: Served) -> None:
        if served.fresh:
            served.ledger.check_tombstones(served.letter.pushed, served.fresh, served.before)


class LoserKept(Invariant):
    sentence = "A write that loses is a row that can be read back, and its loss is told to whoever made it."
    clause = "1.4, 6.7"

    def served(self, served: Served) -> None:
        # What a v1 client had before it may be in a log that is gone, and then nothing says what it changed.
        excused = bool(served.letter.pushed.records) and self.stage.excused(served.device)
        if served.ok and served.letter.pushed and not excused:
            served.ledger.check_losses(served.letter.pushed, served.told, served.fresh, served.before)


class LensKept(Invariant):
    sentence = "A v1 push changes what its maker changed, and nothing that v1 cannot see."
    clause = "1.6"

    def served(self, served: Served) -> None:
        pushed = served.letter.pushed
        if not (served.fresh and pushed.records):
            return
        served.ledger.check_lens(pushed, served.before)
        # A disk that was copied or put back, or a log that was, makes a client forget what it said itself; and what it
        # had said before is known by its own clock alone (PROTOCOL 8.13).
        device = served.device
        if served.first and not (device.twinned or device.clock.went_back or self.stage.server.generation):
            for id_, fields in pushed.touched.items():
                served.ledger.check_untouched(id_, fields, served.before)


class NothingMadeUp(Invariant):
    """Every row is what a client of its graph pushed, or a merge of such rows, or made from a v1 record."""

    sentence = "No row holds what nobody wrote, and no graph a row of another."
    clause = "1.4, 7.1"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        #: What was pushed under each version; of copies of a device that may be more than one.
        self.known: dict[tuple[str, Kind, str, str], list[Entity | Relationship]] = {}

    def served(self, served: Served) -> None:
        if not served.fresh:
            return
        graph, pushed = served.device.graph, served.letter.pushed
        for value in pushed.rows:
            self.known.setdefault((graph, kind_of(value), value.id, value.version.partition("#")[0]), []).append(value)
        records = {record["entity_id"] for record in pushed.records}
        for row in served.fresh:
            values = self.known.get((graph, row.kind, row.id, row.version.partition("#")[0]), ())
            if any(served.ledger.says(row, value) for value in values):
                continue
            if row.kind == "entity" and served.ledger.merges(row, pushed):
                # Every value of it is looked at where it is made. Its name tells what it was made of, and where copies
                # of a device gave one name to two rows, there may have been another merge of that name in a lost log.
                continue
            if served.ledger.original(row) is not row:
                continue  # it stands again, and was looked at when it came
            if (row.id if row.kind == "entity" else row.from_id) not in records:
                self.broken(f"{row.kind} {row.id} {row.version} is in graph {graph}, and nobody wrote it there")


class Clamped(Invariant):
    sentence = "No edit counts as later than five minutes after it arrived, whatever its clock said."
    clause = "6.4"

    def served(self, served: Served) -> None:
        now = self.stage.server.clock()
        for row in served.fresh:
            latest = now + CLAMP_US
            if row.kind == "entity" and row.entity().merged is True:
                # It counts as its parents do, which may have come when the clock stood elsewhere.
                parents = (("entity", row.id, parent) for parent in row.entity().parent_versions)
                known = served.ledger.by_version
                latest = max([latest, *(known[parent].edit for parent in parents if parent in known)])
            common = served.letter.pushed.common
            if row.via and common is not None and 0 < common.seq <= len(served.ledger.rows):
                latest = max(latest, served.ledger.rows[common.seq - 1].stamp)  # PROTOCOL 4.14
            if row.edit > latest:
                self.broken(f"{row.id} {row.version} counts as {(row.edit - now) / 1e6:g} s ahead of the server")


class EdgesHaveEnds(Invariant):
    sentence = "No edge is stored whose ends are not, or named by what follows them."
    clause = "3.5"

    def served(self, served: Served) -> None:
        for row in served.fresh:
            if row.kind == "edge" and not row.via:
                edge = row.relationship()
                for id_, version in (
                    (edge.from_entity_id, edge.from_entity_version),
                    (edge.to_entity_id, edge.to_entity_version),
                ):
                    rows = served.ledger.of_id.get(("entity", id_), ())
                    if not any(version in (end.version, *end.entity().parent_versions) for end in rows):
                        self.broken(f"the edge {row.id} {row.version} is stored, and its end {version} is not")
            elif row.kind == "edge":
                # PROTOCOL 4.14: of what comes back the ends' rows may be lost for good, their ids may not.
                for id_ in (row.from_id, row.to_id):
                    if ("entity", id_) not in served.ledger.of_id:
                        self.broken(f"the edge {row.id} {row.version} came back, and its end {id_} is not there")


class TimeRises(Invariant):
    sentence = "No row is committed at or before a time that was handed out as the end of an answer."
    clause = "1.8"

    def served(self, served: Served) -> None:
        # Of v1 answers the time is not what their readers go on from.
        if served.ok and served.in_own_wire and served.letter.wire != V1.wire:
            body = served.body
            start = body.rindex(_TIME) + len(_TIME)
            told = parse_time(body[start : body.index(b'"', start)].decode())
            served.ledger.told = max(served.ledger.told, told or 0)


_TIME: Final = b'"server_time":"'


class RewindNoticed(Invariant):
    sentence = (
        "Who comes from a log that is not this one is told so, and nobody else; and the log then has another epoch."
    )
    clause = "1.9, 4.10, 4.11"

    def served(self, served: Served) -> None:
        if not served.ok or served.letter.kind != ModernV2.kind or not served.in_own_wire:
            return
        places, strays = served.places, served.strays
        if strays and served.fresh:
            self.broken(f"{served.device} comes from {strays}, and what it pushed was taken")
        epoch = served.ledger.head.epoch
        if any(stray.epoch == served.epoch for stray in strays) == (epoch == served.epoch) and not self._is_known(
            strays, served
        ):
            self.broken(f"{served.device} is at {places}; the log had the epoch {served.epoch}, and has {epoch}")
        if b'"locate":' in served.letter.body:
            self._check_located(served)
        elif bool(strays) is not (b'"resync":true' in served.body):
            self.broken(f"{served.device} is at {places}, of which {strays} are not of this log: {served.told}")

    def _is_known(self, strays: list[Cursor], served: Served) -> bool:
        """Whether an epoch that nobody saw here before is a reason to take another one."""
        return bool(strays) and all(stray.epoch != served.epoch for stray in strays)

    def _check_located(self, served: Served) -> None:
        """PROTOCOL 4.13: the place furthest on, and all that follows it."""
        asked = [parse_cursor(text) for text in _decode(served.letter.body)["locate"]]
        known = [place.seq for place in asked if place is not None and served.ledger.has(place)]
        common, told = max(known, default=0), served.told
        told_common = parse_cursor(told.get("common") or "")
        if common != (0 if told_common is None else told_common.seq):
            self.broken(f"{served.device} is told that {told.get('common')} is common; it is row {common}")
        end = parse_cursor(told["cursor"])
        listed = entries(b64decode(told["listing"]))
        rows = served.ledger.rows[common : 0 if end is None else end.seq]
        if listed != [(short(row.hash), row is served.ledger.current.get((row.kind, row.id))) for row in rows]:
            self.broken(f"{served.device} is told that {listed} follows on row {common}")


class NoDowngrade(Invariant):
    sentence = "Who asks for a wire version that is served is answered in it, whatever went wrong before."
    clause = "1.10"

    def served(self, served: Served) -> None:
        wire = served.letter.wire
        if not served.ok or wire == V1.wire or served.letter.odd:
            return
        if self.stage.server.off.get(wire) in ("refused", "decided"):
            self.broken(f"{served.device} asked for {wire}, which is switched off, and was served: {served.told}")
        if served.healthy and not served.in_own_wire:
            self.broken(f"{served.device} asked for {wire} and was served {served.told.get('protocol_version')}")


class PendingGuard(Invariant):
    """The replica itself says so when it is checked; here it is checked after each answer, and after each accident."""

    sentence = "A person sees their own edit until the server has taken it; no pull replaces it."
    clause = "1.2, 10.1"

    def heard(self, device: Device, letter: Letter, reply: Reply) -> None:
        if isinstance(device.client, ModernV2):
            device.client.check()


class CopiesPart(Invariant):
    """Keeps the last push of each device as the server must remember it, as long as that is certain."""

    sentence = (
        "A device of which another copy has pushed since it did is told so, nobody else is, and it goes on as another."
    )
    clause = "4.16, 10.12"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.known: dict[tuple[str, str], str] = {}

    def served(self, served: Served) -> None:
        if (
            served.letter.kind != ModernV2.kind
            or not served.letter.pushed.rows
            or b'"pushes":' not in served.letter.body
        ):
            return
        said = _decode(served.letter.body)
        key = (served.device.graph, said["device_id"])
        if not served.ok:
            self.known.pop(key, None)
        elif not served.strays:
            self._check(key, said["pushes"].get("after", ()), said["pushes"]["now"], served)

    def _check(self, key: tuple[str, str], after: Sequence[str], now: str, served: Served) -> None:
        known = self.known.get(key, "")
        other = known.partition(":")[0] == now.partition(":")[0] and known not in (now, *after) and "" not in after
        told = b'"device_forked":true' in served.body
        if key in self.known and told is not other:
            self.broken(f"{served.device} pushes {now} after {after}, {known} was before; it is told {told}")
        # What comes late, from a time when its device took any push for possible, is not the last that it pushed.
        late = known.partition(":")[0] == now.partition(":")[0] and _count(known) > _count(now)
        unknown = key not in self.known and "" in after  # whether it comes late
        if not (told or late or unknown):
            self.known[key] = now

    def restored(self, graph: str, old: Ledger, new: Ledger) -> None:
        self.known.clear()

    def heard(self, device: Device, letter: Letter, reply: Reply) -> None:
        client = device.client
        if isinstance(client, ModernV2) and not client.failed and b'"device_forked":true' in reply.body:
            said = _decode(letter.body)["pushes"]["now"]
            if client.store.image.state.incarnation == said.partition(":")[0]:
                self.broken(f"{device} was told that it is a copy, and goes on as {said}")
            # What a server that was set back remembers of pushes that added nothing may be older than its log.
            if not (device.twinned or self.stage.server.generation):
                self.broken(f"{device} was told that it is a copy, and there is no other")


def _count(push: str) -> int:
    """The number of a push."""
    return int(push.split(":")[1])


class ReadsAreMonotone(Invariant):
    sentence = "What a device shows as the server's never goes back to an older row, but after a restore."
    clause = "10.1"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.seen: dict[int, tuple[Any, dict[tuple[Kind, str], int]]] = {}

    def heard(self, device: Device, letter: Letter, reply: Reply) -> None:
        client = device.client
        if not isinstance(client, ModernV2):
            return
        # A disk or a log that was put back may show older rows again.
        state = (client.store, self.stage.server.generation)
        kept, seen = self.seen.get(device.number, (None, {}))
        if kept is None or kept[0] is not state[0] or kept[1] != state[1] or reply.generation != state[1]:
            seen = {}
        ledger = self.stage.ledger(device.graph)
        for key, pointer in client.store.image.pointers.items():
            row = ledger.by_version.get((*key, pointer.theirs)) if pointer.theirs is not None else None
            if row is None or row.hash != pointer.theirs_hash:
                continue
            if row.seq < seen.get(key, 0):
                self.broken(f"{device} shows row {row.seq} of {key[1]} after row {seen[key]}")
            if row is ledger.current.get(key):
                seen[key] = row.seq
        self.seen[device.number] = (state, seen)


class Bounded(Invariant):
    sentence = "No message of ours carries more rows, and no page holds more, than was agreed on."
    clause = "4.9, 10.4"

    def served(self, served: Served) -> None:
        if served.letter.kind == ModernV2.kind and len(served.letter.pushed.rows) > self.stage.setting.batch:
            self.broken(f"#{served.letter.n} carries {len(served.letter.pushed.rows)} rows")

    def heard(self, device: Device, letter: Letter, reply: Reply) -> None:
        client = device.client
        if isinstance(client, ModernV2) and not client.failed:
            most = self.stage.setting.page_rows + len({row.id for row in letter.pushed.rows})
            if client.page > most and client.more:
                # PROTOCOL 4.15: what it asked for by name is told beside the page.
                most += len(_decode(letter.body).get("want", ()))
            if client.page > most and client.more:
                self.broken(f"{device} got a page of {client.page} rows; it asked for {self.stage.setting.page_rows}")


class Converged(Invariant):
    sentence = "Everybody who has come to rest holds what the server has, to the digest."
    clause = "1.8, 4.8"

    def healed(self) -> None:
        stage = self.stage
        ended = stage.devices.values()
        for graph in sorted({device.graph for device in ended}):
            ledger = stage.ledger(graph)
            ledger.audit()
            clients = [(device, client) for device in ended if device.graph == graph for client in device.programs]
            rows = {key: _decode(row.body) for key, row in ledger.current.items()}
            if stage.setting.thorough:
                self._check_picture(graph, rows)
            v1 = any(isinstance(client, V1) for _, client in clients)
            records = _decode(stage.ask(EVERY_RECORD, graph))["changes"] if v1 else []
            but = frozenset(stage.rewound)
            for device, client in clients:
                if isinstance(client, V1) and stage.excused(device):
                    continue
                check_end(client, rows, records, but=but)
                if isinstance(client, ModernV2):
                    check_digest(client, ledger.head)
                    self._check_cursor(device, client, ledger)

    def _check_cursor(self, device: Device, client: ModernV2, ledger: Ledger) -> None:
        cursor = parse_cursor(client.store.image.state.cursor or "")
        if cursor is not None and (cursor.epoch, cursor.seq, cursor.chain) != (
            ledger.head.epoch, ledger.head.seq, ledger.head.chain,
        ):  # fmt: skip
            self.broken(f"{device} has come to rest at {cursor}; the log ends at {ledger.head.cursor}")

    def _check_picture(self, graph: str, rows: Mapping[tuple[Kind, str], Body]) -> None:
        """A stranger who reads everything gets exactly the current rows."""
        body = {
            "protocol_version": "inbetweenies-v2", "device_id": "stranger", "user_id": "stranger", "sync_type": "full",
        }  # fmt: skip
        read: dict[tuple[Kind, str], Body] = {}
        for change in _decode(self.stage.ask(msgspec.json.encode(body), graph))["changes"]:
            if change["entity"] is not None:
                read["entity", change["entity"]["id"]] = change["entity"]
            for edge in change["relationships"]:
                read["edge", edge["id"]] = edge
        if read != rows:
            self.broken(f"a stranger reads {read}; the log says {rows}")


class Belief(Invariant):
    """Checked by the stage itself where it hands such an answer over: see `Stage.on_stray`."""

    sentence = "An answer to anything but what was said last, however late it comes, changes nothing."
    clause = "10.14"


class Settles(Invariant):
    """Checked by the stage itself, while it lets everybody sync and at each message: see `Stage.settle`, `Session`."""

    sentence = (
        "No sync takes more messages than there are pages and one; once everything is in order, few bring all to rest."
    )
    clause = "10.2 to 10.6"


INVARIANTS: Final[tuple[type[Invariant], ...]] = (
    AllOrNothingRoutes,
    Atomic,
    NoTraceback,
    Idempotent,
    AckAfterCommit,
    NoResurrection,
    LoserKept,
    LensKept,
    NothingMadeUp,
    Clamped,
    EdgesHaveEnds,
    TimeRises,
    RewindNoticed,
    NoDowngrade,
    NoAckedWriteLost,
    NothingToldLost,
    NothingDisplaced,
    CopiesPart,
    PendingGuard,
    ReadsAreMonotone,
    Bounded,
    Converged,
    Belief,
    Settles,
)
