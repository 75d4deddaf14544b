"""The three deployed clients over real HTTP: what each sends, what it needs, what clears its marks, where it gives up.

What they keep and say is in `inbetweenies.testing.fleet_clients`; here are the calls around it, and the places in
which the deployed programs fail, each in its own way. Their timeouts are noted and not kept: a busy machine is no bug.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple

import httpx
from msgspec import Raw
from msgspec.structs import replace

from inbetweenies.limits import canonical
from inbetweenies.model import SOURCE_TYPES, Relationship, format_time
from inbetweenies.testing.fleet_base import Body, Client, World
from inbetweenies.testing.fleet_clients import DeployedV2, KittenKong
from inbetweenies.testing.fleet_v1 import V1
from tests.compat import needs
from tests.server.calls import GUARD_SECONDS, SYNC

LOGIN: Final = "/api/v1/auth/admin/login"


class Result(NamedTuple):
    """What a deployed sync tells its caller."""

    success: bool
    error: str = ""


class GaveUpError(Exception):
    """A call failed, or was answered with anything but 2xx; no deployed client looks into such an answer."""


class PendingRollbackError(Exception):
    """What the v1 client dies of: its database refused a row, and the session is of no use from then on."""


class Peer(Client):
    """A deployed client at a server. `answers` are the last ones that it got, by the phase of a sync."""

    timeout_seconds: ClassVar[float]

    def __init__(self, name: str, world: World, http: httpx.Client, token: str = "", *, skew: int = 0) -> None:
        super().__init__(name, world, user=name, skew=skew)
        self.http = http
        self.token = token
        self.answers: dict[str, Any] = {}
        self.last_error = ""

    def sync(self, *, lose: str = "") -> Result:
        """One sync as the program does it. The answer of the phase `lose` does not arrive."""
        try:
            self.prepare()
            while True:
                body, phase = self.say(), self.phase
                answer = self.call("POST", self.path(phase), body)
                if phase == lose:
                    self.give_up()
                    return self.ended(Result(False, f"no answer within {self.timeout_seconds:g} s"))
                self.read(phase, answer)
                self.answers[phase] = json.loads(answer)
                self.hear(self.answers[phase])
                if not self.phase:
                    return self.ended(Result(True))
        except (GaveUpError, needs.Unreadable, httpx.HTTPError) as error:
            self.give_up()
            return self.ended(Result(False, str(error)))

    def call(self, method: str, path: str, body: Any = None) -> bytes:
        """One request with the headers that all three send."""
        headers = {"Authorization": f"Bearer {self.token}"}
        response = self.http.request(method, path, json=body, headers=headers, timeout=GUARD_SECONDS)
        if not response.is_success:
            raise GaveUpError(f"Sync {self.phase} failed: {response.status_code} {response.reason_phrase}")
        return response.content

    def connect(self, password: str) -> None:
        """Log in, as both v2 clients do."""
        self.token = needs.read(self.call("POST", LOGIN, {"password": password}), needs.Login).access_token

    def prepare(self) -> None:
        """What comes before the first message: is the server there (2 s, no token needed)?"""
        try:
            self.call("GET", "/health")
        except (GaveUpError, httpx.HTTPError) as error:
            waiting = len(self.pending)
            told = f"Server not reachable - operating in disconnected mode ({waiting} pending changes)"
            raise GaveUpError(told) from error

    def path(self, phase: str) -> str:
        """Where the message of a phase goes."""
        return SYNC

    def read(self, phase: str, answer: bytes) -> None:
        """Raise `needs.Unreadable` where the program cannot decode an answer."""
        raise NotImplementedError

    def ended(self, result: Result) -> Result:
        """What the program keeps of a sync that is over."""
        self.last_error = result.error
        return result


class BlowingOff(Peer, DeployedV2):
    """Blowing-Off. Reads `applied` and `applied_relationships` of a push's answer and nothing else; has no guard."""

    timeout_seconds = 5

    def read(self, phase: str, answer: bytes) -> None:
        needs.blowing_off(answer)

    def compose(self) -> Body:
        return super().compose() | {"user_id": "client-user"}

    def take(self, changes: list[Body]) -> None:
        # What has no entity, or a source that it does not know, is skipped; types are looked at below.
        super().take([each for each in changes if each["entity"] and each["entity"]["source_type"] in SOURCE_TYPES])

    def write(self, id_: str, entity_type: str, name: str, content: Body | None = None, *, tool: bool = False) -> None:
        """Store a local edit. The program's own `tool` for new entities names no source and a zone too many."""
        row = self.next_row(id_, entity_type, name, content or {})
        if tool:
            row = replace(row, source_type="None", version=f"{format_time(self.now)}Z-{self.user}")
        self.keep(row)

    def tie(self, id_: str, one: str, other: str, relationship_type: str, properties: Body | None = None) -> None:
        """Store a local edge."""
        self.edge_marks[id_] = None
        self.edges[id_] = Relationship(
            id=id_,
            version="",
            from_entity_id=one,
            from_entity_version=self.rows[one].version,
            to_entity_id=other,
            to_entity_version=self.rows[other].version,
            relationship_type=relationship_type,
            properties=Raw(canonical(properties or {})),
            # Not sent: a server takes who sends an edge for who made it.
            user_id="client-user",
        )


class KittenKongApp(Peer, KittenKong):
    """KittenKong. Clears what it sees in the `changes` of a push's answer; has no guard; its `sync` never throws."""

    timeout_seconds = 5

    def __init__(self, name: str, world: World, http: httpx.Client, token: str = "", *, skew: int = 0) -> None:
        super().__init__(name, world, http, token, skew=skew)
        self.vector_clock: Any = {"clocks": {}}
        self.broken_for_good = ""

    def connect(self, password: str) -> None:
        super().connect(password)
        self.sync()

    def read(self, phase: str, answer: bytes) -> None:
        try:
            needs.kittenkong(answer)
        except needs.Unreadable as error:
            if "server_time" in str(error):
                self.broken_for_good = f"RangeError: {error}"
            raise

    def prepare(self) -> None:
        if self.broken_for_good:
            raise GaveUpError(self.broken_for_good)
        super().prepare()

    def compose(self) -> Body:
        return super().compose() | {"user_id": "system", "vector_clock": self.vector_clock}

    def absorb(self, answer: Body) -> str:
        self.vector_clock = answer.get("vector_clock", self.vector_clock)
        for change in answer["changes"]:
            # Without an entity it makes one up.
            change["entity"] = change["entity"] or {"id": "", "version": "", "entity_type": "note", "name": "",
                                                    "content": {}, "source_type": "manual", "user_id": ""}  # fmt: skip
        return super().absorb(answer)

    def take(self, changes: list[Body]) -> None:
        # Types that it does not know are as good as others.
        self.rows.update({each["entity"]["id"]: self.entity_in(each["entity"]) for each in changes})

    def write(self, id_: str, entity_type: str, name: str, content: Body | None = None, *, source: str = "") -> None:
        """Store a local edit."""
        row = self.next_row(id_, entity_type, name, content or {})
        if source:
            row = replace(row, source_type=source)
        self.keep(row)


#: The columns of the v1 client's tables besides those that all have, and which of them must be filled.
_COLUMNS: Final[Mapping[str, frozenset[str]]] = {
    "home": frozenset({"is_primary"}),
    "room": frozenset({"home_id"}),
    "accessory": frozenset(
        "home_id manufacturer model serial_number firmware_version is_reachable is_blocked is_bridge bridge_id".split()
    ),
    "user": frozenset({"home_id", "is_administrator", "is_owner", "remote_access_allowed"}),
}
_ALL_HAVE: Final = frozenset({"id", "name", "created_at", "updated_at", "sync_id"})
_PLURALS: Final = {"homes": "home", "rooms": "room", "accessories": "accessory", "users": "user"}


class HomeKitV1(Peer, V1):
    """The v1 client: clears what is told as ``applied``, believes only what is newer, and counts by its own clock.

    It asks for no health, sends no deletes, and makes records whose `sync_id` is null.
    """

    timeout_seconds = 30  # and 10 for the ack

    def __init__(self, name: str, world: World, http: httpx.Client, token: str = "", *, skew: int = 0) -> None:
        super().__init__(name, world, http, token, skew=skew)
        self.sync_failures = 0

    def prepare(self) -> None:
        pass

    def path(self, phase: str) -> str:
        return SYNC + phase

    def read(self, phase: str, answer: bytes) -> None:
        if phase == "request":
            needs.v1_delta(answer)
        elif phase == "push":
            needs.v1_result(answer)

    def ended(self, result: Result) -> Result:
        self.sync_failures = 0 if result.success else self.sync_failures + 1
        return super().ended(result)

    def take(self, change: Body) -> None:
        type_ = str(_PLURALS.get(change["entity_type"], change["entity_type"]))
        if type_ not in _COLUMNS:
            return
        data, columns = change["data"], _COLUMNS[type_]
        if change["operation"] != "delete" and (type_, change["entity_id"]) not in self.records:
            if data.keys() - columns - _ALL_HAVE:
                return  # "is an invalid keyword argument", which it swallows
            if any(data.get(name) is None for name in {"name", "home_id"} & (columns | _ALL_HAVE)):
                raise PendingRollbackError(f"NOT NULL constraint failed: {sorted(data)}")
        elif change["operation"] != "delete" and not needs.is_naive(change["updated_at"]):
            return  # "can't compare offset-naive and offset-aware datetimes", which it swallows, too
        super().take({**change, "entity_type": type_})
