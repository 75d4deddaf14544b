"""The clients of `MixedFleet` that speak `inbetweenies-v1`, and the one of a version to come that falls back to it.

As in `fleet_clients`: small, honest models of what is deployed, defects included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import msgspec

from ..model import format_time, parse_time
from .fleet_base import NAMES, Act, Body, DoneRecord, JsonClient, Pushed, World

_encode = msgspec.json.Encoder().encode

#: The records that stand for `THINGS`; the others have none.
_RECORDS: Final[Mapping[str, str]] = {
    "home": "home", "lamp": "accessory", "room": "room", "ann": "user", "hub": "accessory", "cabin": "home",
}  # fmt: skip
#: Texts that v1 programs really write.
V1_TEXTS: Final = ("Acme", "L1", None)
_PLAIN: Final[Mapping[str, Body]] = {
    "home": {"is_primary": False},
    "room": {},
    "accessory": {
        "manufacturer": None,
        "model": None,
        "serial_number": None,
        "firmware_version": None,
        "is_reachable": True,
        "is_blocked": False,
        "is_bridge": False,
        "bridge_id": None,
    },
    "user": {"is_administrator": False, "is_owner": False, "remote_access_allowed": True},
}
#: The fields that a person changes, with the values a program writes.
_EDITABLE: Final[Mapping[str, tuple[tuple[str, tuple[Any, ...]], ...]]] = {
    "home": (("is_primary", (True, False)),),
    "room": (("name", NAMES[:4]),),
    "accessory": (("manufacturer", V1_TEXTS), ("is_reachable", (True, False)), ("model", V1_TEXTS)),
    "user": (("is_owner", (True, False)),),
}


class V1(JsonClient):
    """The v1 client as deployed: request, push, ack, with whole records.

    It keeps a pulled record only if that is newer by its `updated_at`, even over an edit that waits; it clears an edit
    when the push's answer says ``applied``, even if the record was edited since (then it is in `stray`); its watermark
    is its own clock.
    """

    kind = "v1"
    wire = "inbetweenies-v1"
    acts = ("create", "rename", "set", "move")

    def __init__(self, name: str, world: World, *, user: str, skew: int) -> None:
        super().__init__(name, world, user=user, skew=skew)
        self.records: dict[tuple[str, str], Body] = {}
        #: The records as the server told them last.
        self.shown: dict[tuple[str, str], Body] = {}
        #: What waits: the fields that a person changed since the last ack, by record.
        self.marks: dict[tuple[str, str], set[str]] = {}
        self.last_sync: str | None = None
        #: The fields that a person changed since this client last agreed with the server on them, by record.
        self.touched: dict[tuple[str, str], set[str]] = {}
        self.attempts = 0
        self.times: set[int] = set()
        self.sent: dict[str, tuple[tuple[str, str], Body, frozenset[str]]] = {}
        self.stray: set[tuple[str, str]] = set()
        #: Records that are as a person left them here, not as a pull told them.
        self.own: set[tuple[str, str]] = set()

    # a person

    def edit(self, act: Act) -> str | None:
        type_ = _RECORDS.get(act.thing)
        if type_ is None:
            return None
        before = self.records.get((type_, act.thing))
        homes, hubs = self._held("home", act.thing), self._held("accessory", act.thing)
        if before is None:
            if act.verb != "create" or (type_ != "home" and not homes):
                return None
            changed: Body = {"name": NAMES[act.value % 3]}
            if type_ != "home":
                changed["home_id"] = homes[0]
        else:
            fields = _EDITABLE[type_] + ((("home_id", homes),) if type_ != "home" else ())
            fields += (("bridge_id", (*hubs, None)),) if type_ == "accessory" else ()
            field, values = fields[act.value % len(fields)]
            if act.verb in ("create", "rename") or not values:
                field, values = "name", NAMES[:4]
            changed = {field: values[act.value // len(fields) % len(values)]}
        time = self.write(type_, act.thing, **changed)
        return f"{act.verb} {type_} {act.thing} {sorted(changed)} at {time[11:]}"

    def write(self, type_: str, id_: str, **fields: Any) -> str:
        """Store a local edit: a new record, or other values of `fields`. When that was, as v1 says it."""
        # A clock that steps back may show a time again, but no person makes two edits at one microsecond.
        now = self.now
        while now in self.times:
            now += 1
        self.times.add(now)
        time = format_time(now, naive=True)
        key = (type_, id_)
        before = self.records.get(key)
        if before is None:
            before = {"id": id_, **_PLAIN[type_], "created_at": time, "sync_id": None}
            changed = _PLAIN[type_].keys() | fields.keys()
        else:
            changed = set(fields)
        self.records[key] = {**before, **fields, "updated_at": time}
        self.own.add(key)
        self.marks[key] = self.marks.get(key, set()) | changed
        self.touched.setdefault(key, set()).update(changed)
        return time

    def _held(self, type_: str, thing: str) -> tuple[str, ...]:
        """The records of a type that another record can point to."""
        return tuple(id_ for kind, id_ in sorted(self.records) if kind == type_ and id_ != thing)

    # a sync

    def begin(self) -> str:
        return "request"

    def compose(self) -> Body:
        if self.phase == "request":
            return self.envelope(
                type="sync_request",
                last_sync=self.last_sync,
                entity_types=["homes", "rooms", "accessories", "users"],
                include_deleted=True,
            )
        if self.phase == "ack":
            return self.envelope(type="sync_ack", sync_completed_at=format_time(self.now, naive=True))
        self.sent = {}
        changes = []
        for key in self.marks:
            self.attempts += 1
            token = f"{self.name}-{self.attempts}"
            self.sent[token] = (key, dict(self.records[key]), frozenset(self.marks[key]))
            changes.append(
                {
                    "entity_type": key[0],
                    "entity_id": key[1],
                    "operation": "update",
                    "data": dict(self.records[key]),
                    "client_sync_id": token,
                }
            )
        touched = {key[1]: frozenset(self.touched.get(key, ())) for key in self.marks}
        self.pushed = Pushed(records=tuple(changes), touched=touched)
        return self.envelope(type="sync_push", changes=changes)

    def envelope(self, *, type: str, **fields: Any) -> Body:  # noqa: A002 - the field's name on the wire
        """A message of this program."""
        return {"type": type, "client_id": self.name, **fields}

    def absorb(self, answer: Body) -> str:
        if self.phase == "request":
            for change in answer["changes"]:
                self.take(change)
            return "push" if self.marks else "ack"
        if self.phase == "push":
            for applied in answer["applied"]:
                if applied["status"] == "applied" and applied["client_sync_id"] in self.sent:
                    self.forget(*self.sent[applied["client_sync_id"]])
            return "ack"
        self.last_sync = format_time(self.now, naive=True)
        return ""

    def take(self, change: Body) -> None:
        key = (change["entity_type"], change["entity_id"])
        here = self.records.get(key)
        if change["operation"] == "delete":
            for kept in (self.records, self.shown, self.marks, self.touched):
                kept.pop(key, None)
        elif here is None or parse_time(change["updated_at"]) > parse_time(here["updated_at"]):  # type: ignore[operator]
            self.records[key] = dict(change["data"])
            self.shown[key] = change["data"]
            self.stray.discard(key)
            self.own.discard(key)
            self.touched.pop(key, None)
            if key in self.marks:
                # The edit is written over; what is pushed now is the server's own record, which claims nothing.
                self.marks[key] = set()

    def forget(self, key: tuple[str, str], record: Body, changed: frozenset[str]) -> None:
        here = self.records[key]
        if self.marks.pop(key, None) and here != record:
            self.stray.add(key)
        self.touched[key] = {
            field for field in self.touched.get(key, ()) if not (field in changed and here[field] == record[field])
        }
        # To agree with where a thing is shown is no edit, even if it is shown there for want of anything better.
        shown = {field: value for field, value in self.shown.get(key, {}).items() if field in ("home_id", "bridge_id")}
        said = {field: record[field] for field in sorted(changed) if shown.get(field, ...) != record[field]}
        self.done.append(DoneRecord(*key, said))

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple("/".join(key) for key in self.marks)


class Unknown(V1):
    """A client of a version to come: it falls back to v1 shapes and reads the `negotiation` in the answers."""

    kind = "unknown"
    asks: ClassVar[str] = "inbetweenies-v7"

    def begin(self) -> str:
        # Only reads and pushes of exact v1 shape are promised to versions that a server does not know.
        return "request"

    def envelope(self, *, type: str, **fields: Any) -> Body:  # noqa: A002 - the field's name on the wire
        return {"protocol_version": self.asks, **super().envelope(type=type, **fields)}

    def read_json(self, answer: bytes) -> Body:
        told = super().read_json(answer)
        negotiation = told.get("negotiation")
        if not isinstance(negotiation, dict) or negotiation.get("served") != told.get("protocol_version"):
            self.world.broken("10 (downgrade)", f"{self.name} is served something else and not told what: {told}")
        if negotiation["requested"] != self.asks or negotiation["served"] not in negotiation["supported"]:
            self.world.broken("10 (downgrade)", f"{self.name} asked for {self.asks} and is told {negotiation}")
        return told

    def absorb(self, answer: Body) -> str:
        phase = super().absorb(answer)
        if phase != "ack":
            return phase
        self.last_sync = format_time(self.now, naive=True)
        return ""

    def odd_write(self) -> bytes:
        """A write of the version to come, in a shape that nobody here knows: it must be refused whole."""
        change = {"op": "put", "entity": {"id": "lamp", "name": "from the future"}}
        return _encode({"protocol_version": self.asks, "client_id": self.name, "changes": [change]})
