"""``inbetweenies demo``: four clients of three wire versions edit one home offline, sync, and are held to account.

A real server process, a v1 client as deployed, two replicas and a client of a version that nobody knows yet. Every
write goes into a ledger when it is made; at the end each one is looked up on the server, and the digests of all clients
are compared. Read `story` for what is edited, `proof` for how it is checked; `main` is what the command line calls.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import click
import httpx
import msgspec
from msgspec import Struct

import inbetweenies
from inbetweenies.auth import SqliteTokens
from inbetweenies.errors import InbetweeniesError
from inbetweenies.model import (
    DIGEST_BITS,
    Conflict,
    Entity,
    Kind,
    Reads,
    Relationship,
    body_of,
    edit_time,
    format_time,
    parse_time,
    row_hash,
)
from inbetweenies.stores import SqliteStore

from . import homekit
from .client import BlowingOffClient, wall_clock
from .show import Facts, Part, Problem, Said, Screen, Sheet

GRAPH: Final = "home"
V1: Final = "inbetweenies-v1"
V2: Final = "inbetweenies-v2"
V7: Final = "inbetweenies-v7"
SYNC: Final = "/api/v1/sync/"

START_SECONDS: Final = 60  # for the server to say that it listens; only ever reached when something hangs
STOP_SECONDS: Final = 15  # for it to end in order before it is killed
ROUNDS_MAX: Final = 8  # of everybody syncing once; two or three are enough
CAST: Final = 5  # devices that the story needs

Record = dict[str, Any]


class DemoError(InbetweeniesError):
    """The demonstration could not be given; the message says why in one sentence."""


def main(files: list[Path], as_json: bool) -> int:
    """Run the demo on accessory databases, or on a made-up home without any. 0 if all is well, else 1.

    Whatever happens, Ctrl-C included, the server process is ended and the temporary folder removed.
    """
    screen = Screen(as_json=as_json)
    started = time.monotonic()
    try:
        with _stoppable(), TemporaryDirectory(prefix="inbetweenies-demo-", ignore_cleanup_errors=True) as folder:
            imports = [read_file(file) for file in files]
            with Server(Path(folder)) as server:
                outcome = asyncio.run(run(server, imports, teller(as_json)))
        outcome.seconds = round(time.monotonic() - started, 2)
        show(outcome, screen)
    except KeyboardInterrupt:
        screen.problem(Problem("stopped", "stopped before the end; the server was ended and its files removed"))
        return 1
    except (InbetweeniesError, httpx.HTTPError, OSError) as error:
        screen.problem(Problem("demo_failed", " ".join(str(error).split()) or type(error).__name__))
        return 1
    return 0 if outcome.well else 1


@contextmanager
def _stoppable() -> Iterator[None]:
    """Being told to end, or losing the terminal, is taken like Ctrl-C: it unwinds through every ``finally``."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - what a signal handler is called with
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored here stays so: that is how nohup works.
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_file(path: Path) -> homekit.Import:
    """The devices in one accessory database. What in it cannot be read is part of the result."""
    try:
        with path.open("rb") as file:
            data = file.read(homekit.FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DemoError(f"expected a file that can be read at {path}; the system says: {error.strerror}") from error
    return homekit.read(data, source=str(path), graph=GRAPH)


def teller(as_json: bool) -> Callable[[str], None]:
    """Says on stderr what is going on, if a person looks on."""
    if as_json or not sys.stderr.isatty():
        return lambda _: None
    return lambda text: click.echo(f"  {text}", err=True)


# --- the server ---------------------------------------------------------------------------------------------------


class Server:
    """``inbetweenies serve`` as a process of its own, on a port that was free, over a database in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.db = folder / "home.db"
        self.url = ""
        self.process: subprocess.Popen[str] | None = None

    def token(self, user: str) -> str:
        """A token for the graph, as ``inbetweenies token create`` makes it."""
        with closing(SqliteTokens(self.db)) as tokens:
            secret, _ = tokens.create(GRAPH, user)
        return secret

    def __enter__(self) -> Self:
        # The same sources as here, wherever this was started and whether or not they are installed.
        sources = str(Path(inbetweenies.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([sources, os.environ.get("PYTHONPATH", "")])}
        environment.pop("INBETWEENIES_ADMIN_PASSWORD", None)
        arguments = [sys.executable, "-m", "inbetweenies.cli", "serve", "--db", str(self.db), "--port", "0"]
        with (self.folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own command line
                arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        try:
            self.url = self._listening(self.process)
        except BaseException:
            self.stop()
            raise
        return self

    def _listening(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        # A server that hangs is killed, which ends the line that is waited for.
        guard = threading.Timer(START_SECONDS, process.kill)
        guard.start()
        try:
            line = process.stdout.readline()
        finally:
            guard.cancel()
        found = re.search(r"http://\S+", line)
        if found is None:
            log = (self.folder / "server.log").read_text(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(log) if line.strip()), "nothing")
            raise DemoError(f"expected the server process to listen; it ended and said: {said}")
        return found[0]

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process, in order if it lets us."""
        process, self.process = self.process, None
        if process is None:
            return
        try:
            process.terminate()
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # killed below
        finally:
            process.kill()  # does nothing to a process that has ended
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


# --- what was written ---------------------------------------------------------------------------------------------


class Write(Struct, kw_only=True):
    """One write of one client, as it went into the ledger when it was made.

    Attributes:
        says: the fields that were changed, and their values.
        version, whole: the row that a replica made, to the letter.
        at: the time that a v1 client gave its record; the server makes the row, whose version starts with it.
        found: where it was found in the end.
    """

    client: str
    kind: Literal["entity", "edge", "record"]
    id: str
    name: str
    says: dict[str, Any]
    version: str | None = None
    whole: dict[str, Any] | None = None
    at: int = 0
    found: Literal["current", "kept", "lost"] = "lost"


class Clock:
    """The clock of every client: it never stands still, so that of two edits one is always the later."""

    def __init__(self) -> None:
        self.last = 0

    def __call__(self) -> int:
        self.last = max(wall_clock(), self.last + 1)
        return self.last


class Ledger:
    """Every write that anybody made, in the order in which they were made; and what was told of conflicts."""

    def __init__(self, clock: Clock, tell: Callable[[str], None]) -> None:
        self.clock = clock
        self.tell = tell
        self.writes: list[Write] = []
        self.conflicts: list[Told] = []

    def wrote(self, write: Write, doing: str | None = None) -> Write:
        """Note down a write."""
        self.writes.append(write)
        if doing is not None:
            self.tell(f"{write.client}: {doing}")
        return write


class Told(Struct, kw_only=True):
    """A conflict as a client was told of it, by versions (`conflict`) or as v1 tells it (`record`, of `write`)."""

    client: str
    entity_id: str
    conflict: Conflict | None = None
    record: Record = {}
    write: Write | None = None


# --- clients ------------------------------------------------------------------------------------------------------


class Replica:
    """A v2 client: a BlowingOff replica, whose writes go into the ledger."""

    asked = V2

    def __init__(self, name: str, client: BlowingOffClient, ledger: Ledger) -> None:
        self.name = name
        self.client = client
        self.ledger = ledger
        self.served: str | None = None

    async def add(
        self, entity_type: str, name: str, content: dict[str, Any], *, id_: str | None = None, source: str = "manual"
    ) -> Entity:
        entity = await self.client.add(entity_type, name, content, id=id_, source_type=source)
        self._wrote(entity, {"name": name})
        return entity

    async def change(self, id_: str, doing: str, *, name: str | None = None, **patch: Any) -> Entity:
        entity = await self.client.change(id_, name=name, patch=patch)
        self._wrote(entity, ({} if name is None else {"name": name}) | patch, doing)
        return entity

    async def delete(self, id_: str, doing: str) -> Entity:
        entity = await self.client.delete(id_)
        self._wrote(entity, {"deleted": True}, doing)
        return entity

    async def link(
        self, from_id: str, to_id: str, type_: str, properties: dict[str, Any] | None = None, *, id_: str | None = None
    ) -> Relationship:
        edge = await self.client.link(from_id, to_id, type_, properties, id=id_)
        self._linked(edge, {type_: to_id})
        return edge

    async def unlink(self, id_: str, doing: str) -> Relationship:
        edge = await self.client.unlink(id_)
        self._linked(edge, {edge.relationship_type: None}, doing)
        return edge

    def _wrote(self, entity: Entity, says: dict[str, Any], doing: str | None = None) -> None:
        self.ledger.wrote(
            Write(
                client=self.name,
                kind="entity",
                id=entity.id,
                name=entity.name,
                says=says,
                version=entity.version,
                whole=_parsed(entity),
            ),
            doing,
        )

    def _linked(self, edge: Relationship, says: dict[str, Any], doing: str | None = None) -> None:
        self.ledger.wrote(
            Write(
                client=self.name,
                kind="edge",
                id=edge.id,
                name=edge.relationship_type,
                says=says,
                version=edge.version,
                whole=_parsed(edge),
            ),
            doing,
        )

    async def sync(self) -> None:
        report = await self.client.sync()
        self.served = report.served
        self.ledger.conflicts += [
            Told(client=self.name, entity_id=conflict.entity_id, conflict=conflict) for conflict in report.conflicts
        ]
        self.ledger.tell(f"{self.name} syncs: {report.pushed} rows sent, {report.pulled} new here")

    async def waits(self) -> bool:
        return bool(await self.client.pending())

    async def holds(self) -> tuple[int, str]:
        """How many entities there are, and the digest of what is held: counted anew from the rows, not remembered."""
        entities = await self.client.find(deleted=True)
        edges = await self.client.links(deleted=True)
        return len(await self.client.find()), digest_of(entities, edges)


class RecordClient:
    """A v1 client, scripted like the deployed one: whole records, request, push and ack, its own clock as watermark.

    It takes a pulled record if that is newer by its `updated_at`, and hands back the `sync_id` that came with it.
    With `asks` it says that it speaks that version, and sends the very same shapes to the one address of newer
    versions; there it has no ack, as without changes an unknown version is only ever answered with a read.
    """

    def __init__(
        self, name: str, http: httpx.AsyncClient, token: str, ledger: Ledger, *, asks: str | None = None
    ) -> None:
        self.name = name
        self.asked = asks or V1
        self.served: str | None = None
        self.records: dict[tuple[str, str], Record] = {}
        self.waiting: dict[tuple[str, str], list[Write]] = {}
        self.last_sync: str | None = None
        self._asks = asks
        self._http = http
        self._token = token
        self._ledger = ledger

    # a person

    def add(self, type_: str, doing: str, **fields: Any) -> str:
        """A new record, under an id of its own."""
        id_ = str(uuid.uuid4())
        now = format_time(self._ledger.clock(), naive=True)
        self.records[type_, id_] = {"id": id_, **fields, "created_at": now, "updated_at": now, "sync_id": None}
        self._wrote(type_, id_, fields, doing)
        return id_

    def edit(self, type_: str, id_: str, doing: str, **fields: Any) -> None:
        """Change fields of a record."""
        now = format_time(self._ledger.clock(), naive=True)
        self.records[type_, id_] = {**self.records[type_, id_], **fields, "updated_at": now}
        self._wrote(type_, id_, fields, doing)

    def _wrote(self, type_: str, id_: str, fields: dict[str, Any], doing: str) -> None:
        record = self.records[type_, id_]
        write = Write(client=self.name, kind="record", id=id_, name=record["name"], says=fields)
        waiting = self.waiting.setdefault((type_, id_), [])
        waiting.append(self._ledger.wrote(write, doing))
        for each in waiting:
            # A record is pushed once, as it is then: all that waits in it goes under its last time.
            each.at = parse_time(record["updated_at"]) or 0

    # a sync

    async def sync(self) -> None:
        delta = await self._say(
            "request",
            type="sync_request",
            last_sync=self.last_sync,
            entity_types=["homes", "rooms", "accessories", "users"],
            include_deleted=True,
        )
        for change in delta["changes"]:
            self._take(change)
        sent = len(self.waiting)
        if self.waiting:
            await self._push()
        if self._asks is None:
            done = format_time(self._ledger.clock(), naive=True)
            await self._say("ack", type="sync_ack", sync_completed_at=done)
        self.last_sync = format_time(self._ledger.clock(), naive=True)
        self._ledger.tell(f"{self.name} syncs: {sent} records sent, {len(delta['changes'])} told")

    def _take(self, change: Record) -> None:
        key = (change["entity_type"], change["entity_id"])
        here = self.records.get(key)
        if change["operation"] == "delete":
            self.records.pop(key, None)
            self.waiting.pop(key, None)
        elif here is None or _time(change["updated_at"]) > _time(here["updated_at"]):
            self.records[key] = change["data"]

    async def _push(self) -> None:
        labels = {str(uuid.uuid4()): key for key in self.waiting}
        changes = [
            {
                "entity_type": type_,
                "entity_id": id_,
                "operation": "update",
                "data": self.records[type_, id_],
                "client_sync_id": label,
            }
            for label, (type_, id_) in labels.items()
        ]
        result = await self._say("push", type="sync_push", changes=changes)
        for conflict in result["conflicts"]:
            key = (conflict["entity_type"], conflict["entity_id"])
            self._ledger.conflicts += [
                Told(client=self.name, entity_id=key[1], record=conflict, write=write)
                for write in self.waiting.get(key, ())
            ]
        for applied in result["applied"]:
            if applied["status"] == "applied":
                self.waiting.pop(labels.get(applied["client_sync_id"], ("", "")), None)

    async def _say(self, step: str, **message: Any) -> Record:
        message["client_id"] = self.name
        path = f"{SYNC}{step}"
        if self._asks is not None:
            message, path = {"protocol_version": self._asks, **message}, SYNC
        answer = _checked(await self._http.post(path, json=message, headers=_bearer(self._token)))
        told: Record = answer.json()
        # A deployed client is told nothing in the body, as it asked for nothing: its answers look as they always did.
        self.served = told.get("protocol_version") or answer.headers.get("inbetweenies-version")
        return told

    async def waits(self) -> bool:
        return bool(self.waiting)

    async def holds(self) -> tuple[int, str]:
        """How many records there are, and a digest of them."""
        return len(self.records), digest_of_records(self.records)


Member = Replica | RecordClient


def _checked(response: httpx.Response) -> httpx.Response:
    if response.status_code != 200:
        raise DemoError(f"expected 200 from {response.url.path}; got {response.status_code} {response.text[:300]}")
    return response


def _bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def _time(text: str) -> int:
    return parse_time(text) or 0


def _parsed(value: Entity | Relationship) -> dict[str, Any]:
    parsed: dict[str, Any] = msgspec.json.decode(body_of(value))
    return parsed


def digest_of(entities: Iterable[Entity], edges: Iterable[Relationship]) -> str:
    """PROTOCOL 4.8, counted from nothing: the sum of the hashes of these rows."""
    rows: list[tuple[Kind, Entity | Relationship]] = [("entity", each) for each in entities]
    rows += [("edge", each) for each in edges]
    total = sum(int.from_bytes(row_hash(kind, body_of(each)), "big") for kind, each in rows)
    return f"{total % (1 << DIGEST_BITS):064x}"


def digest_of_records(records: dict[tuple[str, str], Record]) -> str:
    """A digest of v1 records: everything in them but `sync_id`, which is no part of a record but of its transport."""
    listed = [[*key, {**records[key], "sync_id": None}] for key in sorted(records)]
    text = json.dumps(listed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- the home -----------------------------------------------------------------------------------------------------


def _accessory(aid: int, name: str, facts: tuple[str, str, str, str], service: str, *values: tuple[str, Any]) -> Record:
    """One accessory as a HomeKit database has it; types are the short forms of HAP."""
    maker, model, serial, firmware = facts
    told = [("23", name), ("20", maker), ("21", model), ("30", serial), ("52", firmware)]
    formats = {bool: "bool", int: "int", float: "float", str: "string"}

    def characteristic(iid: int, type_: str, value: Any, perms: list[str]) -> Record:
        return {"iid": iid, "type": type_, "perms": perms, "format": formats[type(value)], "value": value}

    information = [characteristic(2 + index, *fact, ["pr"]) for index, fact in enumerate(told)]
    services = [{"iid": 1, "type": "3E", "characteristics": information}]
    if service:
        own = [characteristic(11 + index, *value, ["pr", "pw", "ev"]) for index, value in enumerate(values)]
        services.append({"iid": 10, "type": service, "primary": True, "characteristics": own})
    return {"aid": aid, "services": services}


def sample() -> homekit.Import:
    """Eight devices of a made-up home, by the way that real ones take."""
    accessories = [
        _accessory(1, "Hall bridge", ("Example", "Bridge 2", "EX-0001", "1.9.0"), ""),
        _accessory(2, "Kitchen lamp", ("Example", "Bulb A", "EX-0002", "1.2.0"), "43", ("25", True), ("8", 80)),
        _accessory(3, "Thermostat", ("Example", "Warm", "EX-0003", "4.0.1"), "4A", ("11", 20.5), ("35", 21.0)),
        _accessory(4, "Coffee socket", ("Example", "Plug", "EX-0004", "2.1.0"), "47", ("25", False), ("26", False)),
        _accessory(5, "Bedroom fan", ("Example", "Breeze", "EX-0005", "1.0.3"), "40", ("25", False)),
        _accessory(6, "Reading lamp", ("Example", "Bulb A", "EX-0006", "1.2.0"), "43", ("25", False), ("8", 35)),
        _accessory(7, "Hall motion", ("Example", "Eye", "EX-0007", "3.3.0"), "85", ("22", False)),
        _accessory(8, "Garden switch", ("Example", "Tap", "EX-0008", "2.0.0"), "49", ("25", True)),
    ]
    return homekit.read(json.dumps({"accessories": accessories}).encode(), source="sample", graph=GRAPH)


class Cast(Struct, kw_only=True):
    """The ids of what the story is about: two homes, rooms, five devices, and things that v1 has no record for."""

    home: str
    cabin: str
    study: str
    devices: tuple[str, ...]
    names: dict[str, str]
    manual: str
    door: str
    automation: str


async def furnish(replica: Replica, imports: list[homekit.Import]) -> tuple[Cast, int]:
    """The home, made and filled by one replica. How many devices came out of files is told too."""
    add, link = replica.add, replica.link
    # One local transaction: hundreds of edits, each of which would otherwise wait for the disk.
    with replica.client.store.transaction():
        home = (await add("home", "Home", {"is_primary": True})).id
        cabin = (await add("home", "Cabin", {"is_primary": False})).id
        rooms = [(await add("room", name, {})).id for name in ("Kitchen", "Study")]
        zone = (await add("zone", "Ground floor", {})).id
        await link(zone, home, "part_of")
        for room in rooms:
            await link(room, home, "part_of", id_=homekit.link_id(GRAPH, room, "home_id"))
        drafts = await bring_in(replica, imports, home)
        imported = len(drafts)
        if len(_choice(drafts)) < CAST:
            drafts += await bring_in(replica, [sample()], home)
        cast = _choice(drafts)[:CAST]
        door = (await add("door", "Front door", {"material": "oak"})).id
        manual = (await add("manual", "How the heating works", {"pages": 12, "language": "en"})).id
        automation = (await add("automation", "Good night", {"at": "22:30", "do": ["lights off"]})).id
        await link(door, home, "part_of")
        await link(cast[0].id, rooms[0], "located_in")
        await link(cast[1].id, rooms[1], "located_in")
        await link(manual, home, "part_of")
        await link(automation, cast[0].id, "controls")
    names = {draft.id: draft.name for draft in cast}
    return (
        Cast(
            home=home,
            cabin=cabin,
            study=rooms[1],
            devices=tuple(draft.id for draft in cast),
            names=names,
            manual=manual,
            door=door,
            automation=automation,
        ),
        imported,
    )


async def bring_in(replica: Replica, imports: list[homekit.Import], home: str) -> list[homekit.Draft]:
    """Add what was read, each device under `home`. A device that is in two files is added once."""
    drafts: dict[str, homekit.Draft] = {}
    for read in imports:
        for draft in read.drafts:
            if draft.id not in drafts:
                drafts[draft.id] = draft
                await replica.add(draft.entity_type, draft.name, draft.content, id_=draft.id, source=draft.source_type)
                await replica.link(draft.id, home, "part_of", id_=homekit.link_id(GRAPH, draft.id, "home_id"))
    links = {link.id: link for read in imports for link in read.links}
    for link in links.values():
        await replica.link(link.from_id, link.to_id, link.relationship_type, link.properties, id_=link.id)
    return list(drafts.values())


def _choice(drafts: Iterable[homekit.Draft]) -> list[homekit.Draft]:
    """Devices to tell a story about: no bridges, and no two of one name."""
    named = {draft.name: draft for draft in drafts if not draft.content["is_bridge"]}
    return list(named.values())


# --- the story ----------------------------------------------------------------------------------------------------


class Fleet(Struct, kw_only=True):
    """Everybody who takes part."""

    phone: RecordClient
    tablet: Replica
    laptop: Replica
    panel: RecordClient
    http: httpx.AsyncClient
    fresh_token: str
    ledger: Ledger

    @property
    def members(self) -> tuple[Member, ...]:
        return (self.phone, self.tablet, self.laptop, self.panel)


async def story(fleet: Fleet, cast: Cast) -> None:
    """The first afternoon: everybody is offline, and edits the same five devices at the same time."""
    phone, tablet, laptop, panel = fleet.phone, fleet.tablet, fleet.laptop, fleet.panel
    one, two, three, four, five = cast.devices
    names = cast.names

    # Content, which v1 cannot see, of the device that v1 renames below.
    await tablet.change(one, f"makes {names[one]} a favourite", favourite=True, colour="warm white")
    # The same key of the same device, differently: a true conflict.
    await tablet.change(two, f"labels {names[two]} 'reading'", label="reading")
    await laptop.change(two, f"labels {names[two]} 'television'", label="television")
    # Deleted by one, edited by the other.
    await tablet.delete(three, f"deletes {names[three]}")
    await laptop.change(three, f"edits {names[three]}", label="still in use")
    # Many edits of one device before any of them is sent: each is a row of its own.
    await laptop.change(four, f"notes when the warranty of {names[four]} ends", warranty_until="2028-05-01")
    await laptop.change(four, f"corrects that of {names[four]}", warranty_until="2029-05-01")
    await laptop.change(four, f"renames {names[four]}", name=f"{names[four]} upstairs")
    # Things that only newer versions know, around a device that v1 edits.
    note = await tablet.add("note", f"About {names[four]}", {"text": "The reset button is under the lid."})
    await tablet.link(four, note.id, "documented_by")
    await tablet.link(four, cast.manual, "documented_by")
    await tablet.change(four, f"notes where {names[four]} was bought", bought_at="the shop in the old town")
    await laptop.change(cast.door, "paints the front door", colour="green")
    await laptop.change(cast.automation, "moves good night to 22:45", at="22:45")
    await laptop.change(cast.automation, "adds the locks to good night", do=["lights off", "lock doors"])

    phone.edit("accessory", one, f"renames {names[one]}", name=f"{names[one]} by the window")
    phone.edit("accessory", four, f"updates the firmware of {names[four]}", firmware_version="9.1.0")
    phone.edit("accessory", one, f"moves {names[one]} to the cabin", home_id=cast.cabin)
    phone.edit("room", cast.study, "moves the study to the cabin", home_id=cast.cabin)
    phone.edit("accessory", five, f"renames {names[five]}", name=f"{names[five]} (old)")

    panel.add("room", "adds a greenhouse", name="Greenhouse", home_id=cast.home)
    panel.edit("accessory", two, f"renames {names[two]}", name=f"{names[two]} at the sofa")
    panel.edit("accessory", five, f"renames {names[five]} too", name=f"{names[five]} (spare)")


async def sequel(fleet: Fleet, cast: Cast) -> None:
    """The next day: everybody has seen what became of it, is offline again, and goes on from there."""
    phone, tablet, laptop, panel = fleet.phone, fleet.tablet, fleet.laptop, fleet.panel
    one, two, three, four, _ = cast.devices
    names = cast.names

    # Back again, by an edit that knows of the deletion.
    await laptop.change(three, f"brings {names[three]} back", deleted=None)
    # What v1 sends back says nothing of notes, labels and edges. They must survive it.
    phone.edit("accessory", four, f"updates {names[four]} once more", firmware_version="9.2.0")
    await tablet.change(four, f"gives {names[four]} a shelf", shelf=3)
    found = [edge for edge in await tablet.client.links(four) if edge.to_entity_id == cast.manual]
    await tablet.unlink(found[0].id, f"takes the manual away from {names[four]}")
    await laptop.change(one, f"dims {names[one]}", colour="candle light")
    greenhouse = next(id_ for (type_, id_), record in panel.records.items() if record["name"] == "Greenhouse")
    panel.edit("room", greenhouse, "renames the greenhouse", name="Winter garden")
    panel.edit("accessory", two, f"blocks {names[two]}", is_blocked=True)
    # An old client may well be the one who wins.
    await tablet.change(one, f"renames {names[one]}", name=f"{names[one]} in the niche")
    phone.edit("accessory", one, f"renames {names[one]} too", name=f"{names[one]} at the door")


# --- everybody syncs ----------------------------------------------------------------------------------------------


class Picture(Struct, kw_only=True):
    """What the server says that it holds, what a fresh reader of either version gets, and what the clients hold.

    Attributes:
        digest: as the server tells it.
        counted: the same, summed up anew over a full read.
        records: digest of the records that a v1 client gets which has never been here.
        entities, edges: that full read.
        holds: for each client how much it holds, and the digest of that.
        waits: whether anybody still has something to send.
    """

    digest: str
    counted: str
    records: str
    entities: tuple[Entity, ...]
    edges: tuple[Relationship, ...]
    holds: dict[str, tuple[int, str]]
    waits: bool

    def same(self, member: Member) -> bool:
        """Whether a client holds what it should: what the server does, as far as its version can tell."""
        wanted = self.digest if isinstance(member, Replica) else self.records
        return self.holds[member.name][1] == wanted

    def converged(self, fleet: Fleet) -> bool:
        """Whether all hold the same, and nobody has anything left to say."""
        return not self.waits and self.counted == self.digest and all(map(self.same, fleet.members))


async def settle(fleet: Fleet, turns: tuple[Member, ...]) -> Picture:
    """Everybody syncs in turns, until all hold the same."""
    rounds = 0
    while True:
        for member in turns:
            await member.sync()
        rounds += 1
        picture = await look(fleet)
        if picture.converged(fleet) or rounds == ROUNDS_MAX:
            fleet.ledger.tell(f"round {rounds}: {'all' if picture.converged(fleet) else 'NOT all'} hold the same")
            return picture


async def look(fleet: Fleet) -> Picture:
    """Read the server as strangers would, and everybody's own store."""
    digest, entities, edges = await read_all(fleet)
    stranger = RecordClient("stranger", fleet.http, fleet.fresh_token, Ledger(fleet.ledger.clock, lambda _: None))
    await stranger.sync()
    return Picture(
        digest=digest,
        counted=digest_of(entities, edges),
        records=digest_of_records(stranger.records),
        entities=entities,
        edges=edges,
        holds={member.name: await member.holds() for member in fleet.members},
        waits=any([await member.waits() for member in fleet.members]),
    )


class _ChangeTold(Struct):
    entity: Entity | None
    relationships: tuple[Relationship, ...]


class _Page(Struct):
    changes: tuple[_ChangeTold, ...]
    digest: str
    cursor: str
    more: bool


_page = msgspec.json.Decoder(_Page)


async def read_all(fleet: Fleet) -> tuple[str, tuple[Entity, ...], tuple[Relationship, ...]]:
    """The digest that the server tells, and every current row, tombstones too, over as many pages as it takes."""
    entities: dict[str, Entity] = {}
    edges: dict[str, Relationship] = {}
    message: Record = {
        "protocol_version": V2,
        "device_id": "auditor",
        "user_id": "auditor",
        "sync_type": "full",
        "changes": [],
        "features": ["acks", "digest", "edges", "paging"],
    }
    while True:
        answer = _checked(await fleet.http.post(SYNC, json=message, headers=_bearer(fleet.fresh_token)))
        try:
            page = _page.decode(answer.content)
        except msgspec.MsgspecError as error:
            raise DemoError(f"expected a page of the graph; got something else: {error}") from error
        for change in page.changes:
            if change.entity is not None:
                entities[change.entity.id] = change.entity
            edges.update((edge.id, edge) for edge in change.relationships)
        if not page.more:
            return page.digest, tuple(entities.values()), tuple(edges.values())
        message |= {"sync_type": "delta", "cursor": page.cursor}


# --- the proof ----------------------------------------------------------------------------------------------------


class Shown(Struct, kw_only=True):
    """A conflict, for people: who wrote what, against whom, and whose word stands."""

    entity_id: str
    name: str
    fields: dict[str, Any]
    told_to: str
    against: str | None
    winner: str | None
    resolution_strategy: str
    local_version: str | None
    remote_version: str | None
    resolved_version: str | None


class ClientShown(Struct, kw_only=True):
    """One client in the outcome: what it asked for and was served, how much it holds, and whether that is right."""

    name: str
    asked: str
    served: str | None
    entities: int
    digest: str
    compared_with: str
    equal: bool


class Outcome(Struct, kw_only=True):
    """What the demo found out."""

    converged: bool
    imported: int
    unread: tuple[homekit.Unread, ...]
    writes: tuple[Write, ...]
    conflicts: tuple[Shown, ...]
    clients: tuple[ClientShown, ...]
    server_digest: str
    counted_digest: str
    v1_digest: str
    seconds: float = 0.0

    def number(self, found: str) -> int:
        return sum(write.found == found for write in self.writes)

    @property
    def well(self) -> bool:
        return self.converged and not self.number("lost")


async def run(server: Server, imports: list[homekit.Import], tell: Callable[[str], None]) -> Outcome:
    """The whole demo against a server that listens."""
    ledger = Ledger(Clock(), tell)
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=30))

        async def replica(name: str) -> Replica:
            client = BlowingOffClient(
                server.folder / f"{name}.blow", server.url, server.token(name), user=name, device=name,
                clock=ledger.clock,
            )  # fmt: skip
            return Replica(name, await stack.enter_async_context(client), ledger)

        fleet = Fleet(
            phone=RecordClient("phone", http, server.token("phone"), ledger),
            tablet=await replica("tablet"),
            laptop=await replica("laptop"),
            panel=RecordClient("panel", http, server.token("panel"), ledger, asks=V7),
            http=http,
            fresh_token=server.token("stranger"),
            ledger=ledger,
        )
        cast, imported = await furnish(fleet.tablet, imports)
        tell(f"{imported} devices read from files; {len(ledger.writes)} rows to start with")
        await settle(fleet, (fleet.tablet, fleet.laptop, fleet.phone, fleet.panel))
        tell("everybody goes offline and edits")
        await story(fleet, cast)
        # In this order nobody's deployed habits get in the way: a v1 client lets a newer pulled record overwrite an
        # edit that waits, which no server can help. Replicas never do that, so they may come last.
        await settle(fleet, (fleet.laptop, fleet.phone, fleet.panel, fleet.tablet))
        tell("everybody goes offline again")
        await sequel(fleet, cast)
        picture = await settle(fleet, (fleet.phone, fleet.panel, fleet.tablet, fleet.laptop))
        histories = await proof(fleet, picture, server)
    unread = tuple(unread for read in imports for unread in read.unread)
    return Outcome(
        converged=picture.converged(fleet),
        imported=imported,
        unread=unread,
        writes=tuple(ledger.writes),
        conflicts=tuple(shown(told, ledger, histories, picture) for told in ledger.conflicts),
        clients=tuple(
            ClientShown(
                name=member.name,
                asked=member.asked,
                served=member.served,
                entities=picture.holds[member.name][0],
                digest=picture.holds[member.name][1],
                compared_with="the server's digest" if isinstance(member, Replica) else "a fresh v1 read",
                equal=picture.same(member),
            )
            for member in fleet.members
        ),
        server_digest=picture.digest,
        counted_digest=picture.counted,
        v1_digest=picture.records,
    )


async def proof(fleet: Fleet, picture: Picture, server: Server) -> dict[str, list[Record]]:
    """Look up every write of the ledger on the server, and say in it where it was found.

    Entities are looked up under ``GET …/entities/{id}/versions``, which lists every row there ever was. Edges have no
    such address: the current ones are in the full read, those that others took the place of in the log of the
    database file. Returns the histories of entities.
    """
    ids = dict.fromkeys(write.id for write in fleet.ledger.writes if write.kind != "edge")
    histories = {id_: await versions_of(fleet, id_) for id_ in ids}
    edges = {edge.id: _parsed(edge) for edge in picture.edges}
    for write in fleet.ledger.writes:
        write.found = find(write, histories.get(write.id, []), edges)
    missing = [write for write in fleet.ledger.writes if write.found == "lost"]
    if missing:
        past = await past_edges(server.db, {write.id for write in missing})
        for write in missing:
            write.found = find(write, histories.get(write.id, []), edges, past)
    return histories


async def versions_of(fleet: Fleet, id_: str) -> list[Record]:
    """Every row of an entity, in commit order, as the server tells; none if it does not know the entity."""
    path = f"/api/v1/graph/entities/{quote(id_, safe='')}/versions"
    response = await fleet.http.get(path, headers=_bearer(fleet.fresh_token))
    listed: list[Record] = [] if response.status_code == 404 else _checked(response).json()["versions"]
    return listed


def find(
    write: Write, history: list[Record], edges: dict[str, Record], past: Iterable[Record] = ()
) -> Literal["current", "kept", "lost"]:
    """Where a write is: in a row that is current, in one that is kept, or nowhere."""
    if write.kind == "entity":
        rows = [row for row in history if _is_row(row, write)]
        return _place(row["is_latest"] for row in rows)
    if write.kind == "edge":
        if edges.get(write.id) == write.whole:
            return "current"
        return "kept" if any(edge == write.whole for edge in past) else "lost"
    return _find_record(write, history, edges, past)


def _place(latest: Iterable[bool]) -> Literal["current", "kept", "lost"]:
    found = list(latest)
    return "current" if any(found) else "kept" if found else "lost"


def _is_row(row: Record, write: Write) -> bool:
    """Whether a row of the history is, to the letter, the one that a replica made."""
    names = ("id", "version", "entity_type", "name", "content", "source_type", "user_id", "parent_versions")
    return write.whole is not None and all(row[name] == write.whole[name] for name in names)


def _find_record(
    write: Write, history: list[Record], edges: dict[str, Record], past: Iterable[Record]
) -> Literal["current", "kept", "lost"]:
    """A v1 write is a row, an edge, or both: made at the time that its record gave, by its user, saying its fields."""
    places = []
    fields = {field: value for field, value in write.says.items() if field != "home_id"}
    if fields:
        rows = [row for row in history if _is_made_by(row, write) and _says(row, fields)]
        places.append(_place(row["is_latest"] for row in rows))
    if "home_id" in write.says:
        rows = [edge for edge in (*edges.values(), *past) if _is_made_by(edge, write) and _leads(edge, write)]
        places.append(_place(edges.get(edge["id"]) == edge for edge in rows))
    return "lost" if "lost" in places else "kept" if "kept" in places else "current"


def _is_made_by(row: Record, write: Write) -> bool:
    return bool(row["user_id"] == write.client and edit_time(row["version"]) == write.at)


def _says(row: Record, fields: dict[str, Any]) -> bool:
    return all(_field(row, field) == value for field, value in fields.items())


def _field(row: Record, field: str) -> Any:
    """A field that somebody wrote, in a row: its name, or what is kept in the content (for v1: PROTOCOL 8.7)."""
    return row["name"] if field == "name" else row["content"].get(field)


def _leads(edge: Record, write: Write) -> bool:
    return bool(edge["from_entity_id"] == write.id and edge["to_entity_id"] == write.says["home_id"])


async def past_edges(db: Path, ids: set[str]) -> list[Record]:
    """Every value that these edges, or edges from these entities, ever had, from the log in the database file."""
    store = SqliteStore(db)
    found: dict[tuple[str, str], Record] = {}
    try:
        async with store.transaction(GRAPH, write=False) as tx:
            head = (await tx.read(Reads())).head
            for seq in range(1, head.seq + 1):
                held = await tx.read(Reads(edges=tuple(ids), edges_from=tuple(ids), as_of=seq))
                for row in [*held.edges.values(), *(row for rows in held.edges_from.values() for row in rows)]:
                    if (row.id, row.version) not in found:
                        found[row.id, row.version] = _parsed(row.relationship())
    finally:
        await store.close()
    return list(found.values())


def shown(told: Told, ledger: Ledger, histories: dict[str, list[Record]], picture: Picture) -> Shown:
    """A conflict with names in it. Versions are those that were told; v1 tells none, so its are looked up.

    A merge takes fields from both sides, so who won is a question about a field: whoever wrote the value that stands.
    """
    history = histories.get(told.entity_id, [])
    conflict = told.conflict or _of_record(told, history)
    rows = {row["version"]: row for row in history}
    local, resolved = rows.get(conflict.local_version), rows.get(conflict.resolved_version)
    writes = [told.write] if told.write else [each for each in ledger.writes if each.version == conflict.remote_version]
    said = {field: value for write in writes for field, value in write.says.items()}
    fields = {field: value for field, value in said.items() if local is None or _field(local, field) != value}

    def author(row: Record | None) -> str | None:
        if row is None:
            return None
        for write in ledger.writes:
            shared = fields.keys() & write.says.keys() if write.id == told.entity_id else ()
            if shared and all(_field(row, field) == write.says[field] for field in shared):
                return write.client
        return str(row["user_id"])

    names = {entity.id: entity.name for entity in picture.entities}
    return Shown(
        entity_id=told.entity_id,
        name=names.get(told.entity_id, told.entity_id),
        fields=fields,
        told_to=told.client,
        against=author(local),
        winner=author(resolved),
        resolution_strategy=conflict.resolution_strategy,
        local_version=conflict.local_version or None,
        remote_version=conflict.remote_version or None,
        resolved_version=conflict.resolved_version or None,
    )


def _of_record(told: Told, history: list[Record]) -> Conflict:
    """What v1 tells of a conflict, with the versions that it leaves out: those of the merge, if there was one."""
    assert told.write is not None
    pushed = next((row["version"] for row in history if _is_made_by(row, told.write)), "")
    merge = next((row for row in history if pushed in row["parent_versions"] and len(row["parent_versions"]) > 1), None)
    return Conflict(
        entity_id=told.entity_id,
        local_version="" if merge is None else next(each for each in merge["parent_versions"] if each != pushed),
        remote_version=pushed,
        # The words of v1 are the same whoever wins.
        resolution_strategy=f"told in v1 as {told.record['reason']}, {told.record['resolution']}",
        resolved_version="" if merge is None else merge["version"],
    )


# --- showing ------------------------------------------------------------------------------------------------------


def document(outcome: Outcome) -> dict[str, Any]:
    """The outcome as one JSON object."""
    lost = [write for write in outcome.writes if write.found == "lost"]
    return {
        "converged": outcome.converged,
        "writes_made": len(outcome.writes),
        "writes_current": outcome.number("current"),
        "writes_kept": outcome.number("kept"),
        "writes_lost": len(lost),
        "lost": [
            {"client": each.client, "id": each.id, "name": each.name, "says": each.says, "version": each.version}
            for each in lost
        ],
        "conflicts": [msgspec.to_builtins(each) for each in outcome.conflicts],
        "clients": [msgspec.to_builtins(each) for each in outcome.clients],
        "server_digest": outcome.server_digest,
        "counted_digest": outcome.counted_digest,
        "v1_digest": outcome.v1_digest,
        "imported": outcome.imported,
        "unread": len(outcome.unread),
        "unread_records": [msgspec.to_builtins(each) for each in outcome.unread],
        "seconds": outcome.seconds,
    }


def parts(outcome: Outcome) -> list[Part]:
    """The outcome for people."""
    clients = Sheet(
        title="Who took part",
        columns=("client", "asked for", "was served", "holds", "digest", "is that of"),
        rows=[
            (
                each.name,
                f"{each.asked} (by naming none)" if each.asked == V1 else each.asked,
                each.served or "nothing",
                f"{each.entities} {'entities' if each.asked == V2 else 'records'}",
                each.digest[:16],
                each.compared_with if each.equal else f"NOT {each.compared_with}",
            )
            for each in outcome.clients
        ],
    )
    conflicts = Sheet(
        title="Conflicts",
        columns=("of", "written by", "said", "against", "won by", "because"),
        rows=[
            (
                each.name,
                each.told_to,
                ", ".join(f"{field}={_short(value)}" for field, value in each.fields.items()),
                each.against or "?",
                each.winner or "?",
                each.resolution_strategy,
            )
            for each in outcome.conflicts
        ],
        empty="There were no conflicts.",
    )
    lost = [write for write in outcome.writes if write.found == "lost"]
    made, current, kept = len(outcome.writes), outcome.number("current"), outcome.number("kept")
    equal = "what the server tells, what a full read of it adds up to, and what both v2 clients hold"
    facts = [
        ("imported", f"{outcome.imported} devices from files; {len(outcome.unread)} records could not be read"),
        ("digest", f"{outcome.server_digest[:16]} told by the server, {outcome.counted_digest[:16]} counted anew"),
        ("equal", equal if outcome.converged else "NO: not everybody holds the same"),
        ("v1 and v7", "compared with what a v1 client gets that has never been here; it cannot see the rest"),
        ("writes", f"{made} made: {current} found in current rows, {kept} in rows that are kept, {len(lost)} lost"),
    ]
    result: list[Part] = [clients, conflicts, Facts(pairs=facts)]
    if outcome.unread:
        unread = [(each.place, each.reason, each.by_hand) for each in outcome.unread]
        result.insert(0, Sheet(title="Could not be read", columns=("place", "reason", "by hand"), rows=unread))
    if lost:
        rows = [(each.client, each.name, _short(each.says), each.version or "?") for each in lost]
        result.append(Sheet(title="LOST", columns=("client", "of", "said", "version"), rows=rows))
    verdict = "All hold the same, and no write was lost." if outcome.well else "This did NOT go well; see above."
    sentence = f"{verdict} ({outcome.seconds:.1f} s)"
    result.append(Said(sentence=sentence, cells=(sentence,)))
    return result


def show(outcome: Outcome, screen: Screen) -> None:
    """Print the outcome: tables on a terminal, the same in plain text in a pipe, or one JSON object."""
    if screen.as_json or sys.stdout.isatty():
        screen.show(document(outcome), *parts(outcome))
        return
    for part in parts(outcome):
        for text in [*_aligned(part), ""] if isinstance(part, Sheet | Facts) else part.plain():
            click.echo(text)


def _aligned(part: Sheet | Facts) -> list[str]:
    """A table without a terminal: columns in line, so that it can be read in a log."""
    if isinstance(part, Facts):
        rows, head = [list(pair) for pair in part.pairs], []
    elif not part.rows:
        return [part.empty]
    else:
        rows, head = [list(part.columns), *map(list, part.rows)], [part.title]
    rows = [["".join(letter if letter.isprintable() else "?" for letter in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*head, *told]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]], as_json=False))
