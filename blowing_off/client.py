"""The client: a replica of the graph that is always writable, and `sync`, which exchanges it with a server.

    store -> replica.compose -> wire -> transport -> wire -> replica.absorb -> store

Read `_Sync._round`: it is one message, there and back. What to say and what an answer means is decided by
`inbetweenies.replica`; here is only the order of things, and when to stop.
"""
# ruff: noqa: A002 - `id` is the name of the field, in the model, on the wire and here

from __future__ import annotations

import asyncio
import json
import os
import secrets
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from inbetweenies.errors import (
    InbetweeniesError,
    LocalProtocolError,
    RemoteProtocolError,
    StoreError,
    VersionRefused,
)
from inbetweenies.intake import check_edge, check_entity
from inbetweenies.limits import Limits, canonical, checked_decode, gate
from inbetweenies.model import (
    DIGEST_BITS,
    EMPTY,
    ENTITY_TYPES,
    SOURCE_TYPES,
    Answer,
    Ask,
    Change,
    Conflict,
    Entity,
    Relationship,
    body_of,
    edge_version,
    edit_time,
    is_deleted,
)
from inbetweenies.model import (
    Refused as RefusedItem,
)
from inbetweenies.offers import VersionPolicy
from inbetweenies.replica import (
    BATCH_BYTES,
    BATCH_CHANGES,
    Absorbed,
    Copy,
    Local,
    Pending,
    State,
    absorb,
    attempted,
    believed,
    compose,
    copy_of,
    follow,
    incarnated,
    mentions,
    restart,
)
from inbetweenies.rewind import FEATURE
from inbetweenies.wire import load

from . import review
from .reconcile import Reconciliation
from .review import Review, Take
from .store import ConflictRecord, Counts, LocalStore
from .transport import (
    BadAnswer,
    HttpTransport,
    Refused,
    Transport,
    TransportError,
    Unauthorized,
    Unreachable,
    origin_of,
)
from .versions import Talk, key_of, of_rows, spoken

if TYPE_CHECKING:
    from .live import Event

SYNC_PATH: Final = "/api/v1/sync/"
EDGES_PATH: Final = "/api/v1/graph/relationships"
VERSIONS_PATH: Final = "/api/v1/graph/entities/{}/versions"

MESSAGES_MAX: Final = 10_000  # of one sync: ten million rows; a server that goes on longer is making them up
HISTORY_S: Final = 5.0  # how long a person waits for what may be more, when much is there already
RESYNCS_MAX: Final = 3  # of one sync: a server is set back once, maybe twice while it is asked; not by every question
POISON_MAX: Final = 8  # changes that fail one by one before it is the server that must be broken
LABEL_BYTES_MAX: Final = 256  # user and device: a row version holds the user and has an end itself
CHUNK: Final = 100  # marks read at a time
#: What an answer may be, larger than a request: a deployed server tells its whole graph at once.
ANSWER_LIMITS: Final = Limits(body_bytes_max=256 * 2**20, nodes_max=2**22)
ROW_LIMITS: Final = Limits()
#: What a row may hold: around the properties of an edge a message puts five levels, and the other fields.
CONTENT_LIMITS: Final = Limits(depth_max=ROW_LIMITS.depth_max - 5, nodes_max=ROW_LIMITS.nodes_max - 64)

# PROTOCOL 10.5: a deployed server refuses a whole message for one edge of another type.
_DEPLOYED_EDGES: Final = frozenset(
    "located_in controls connects_to part_of manages documented_by procedure_for triggered_by depends_on contained_in "
    "monitors automates controlled_by_app has_blob".split()
)

#: What a person can do about a row that waits, by the code of its note.
ADVICE: Final[Mapping[str, str]] = {
    "illegal_name": "Add it anew with names that are filled in and hold no control characters; give this one up.",
    "too_large": "Change it so that its content becomes smaller; then give the large one up.",
    "too_many_parents": "Add it anew; give this one up.",
    "unknown_endpoint": "It is sent again by itself; if it stays, link what is there now and give this one up.",
    "not_acknowledged": "It is sent again by itself; if it is an edge, one of its ends may not be there yet.",
    "too_much_at_once": "It is sent again by itself, in a message with less in it.",
    "unknown_type_there": "It is sent by itself once the server is updated; or give it a type that the server knows.",
    "v1_cannot_carry": "It is sent by itself once the server speaks a newer version.",
}
_ANY_ADVICE: Final = "It is sent again with every sync. Make another change in its place, and give this one up."

_parse = msgspec.json.decode
_entity = msgspec.json.Decoder(Entity)
_edge = msgspec.json.Decoder(Relationship)


# --- errors -------------------------------------------------------------------------------------------------------


class NotConnected(LocalProtocolError):
    """No server is known; everything but `sync` works without one."""


class NotFound(InbetweeniesError, LookupError):
    """No such thing in this replica, or it is deleted."""


class NotStorable(LocalProtocolError, ValueError):
    """A value that no replica can hold; nothing was changed."""


# --- what is told -------------------------------------------------------------------------------------------------


class Progress(Struct, frozen=True, kw_only=True):
    """How far a sync is: rows acknowledged, rows that came in, rows that still wait, and what was or is to be sent."""

    pushed: int
    pulled: int
    pending: int
    total: int
    messages: int


class SyncReport(Struct, frozen=True, kw_only=True):
    """What one sync did.

    Attributes:
        served: the wire version in which the server answered.
        pushed: rows of ours that the server acknowledged.
        pulled: ids whose row on the server became known here.
        conflicts: what lost, in the server's words; the losing rows are kept.
        refused: rows that the server would not take, and why; they wait here.
        pending: how many rows still wait.
        healed: a difference was found that no rule explains, and what differs was looked for and exchanged.
        messages: how many requests it took.
        digest: what this replica knows of the server, as one number in hexadecimal; None if the server has none.
        equal: whether that is what the server says that it holds; None if it does not say.
        complete: False if the server had more to tell; sync again.
        rewound: the server had lost rows that it once held; it was set back, or is another one.
        lost: how many of them are known here. They are given back to it, whoever wrote them.
        discarded: how many are not, because its operator said that they should stay away; they are in the history.
        offered: rows given back that the server acknowledged.
        differing: ids that differed for no known reason.
        forked: another copy of this replica had pushed; this one goes on under a device name of its own.
    """

    served: str | None
    pushed: int
    pulled: int
    conflicts: tuple[Conflict, ...]
    refused: tuple[RefusedItem, ...]
    pending: int
    healed: bool
    messages: int
    digest: str | None
    equal: bool | None
    complete: bool = True
    rewound: bool = False
    lost: int = 0
    discarded: int = 0
    offered: int = 0
    differing: int = 0
    forked: bool = False


class Version(Struct, frozen=True, kw_only=True):
    """One row of an entity's history; `source` is ``here`` if this replica holds it, else ``server``."""

    entity: Entity
    current: bool
    pending: bool
    source: Literal["here", "server"]


class Blocked(Struct, frozen=True, kw_only=True):
    """A row that waits for a reason, and what a person can do about it."""

    kind: str
    id: str
    version: str
    name: str
    code: str
    detail: str
    advice: str


class Status(Struct, frozen=True, kw_only=True):
    """Where this replica stands. Times are in microseconds since 1970. `refused` tells what waits for a reason."""

    path: str
    url: str | None
    user: str
    device: str
    wire: str | None
    cursor: str | None
    counts: Counts
    pending: int
    refused: tuple[Blocked, ...]
    conflicts: int
    digest: str
    last_sync: int | None
    last_error: str | None


# --- the client ---------------------------------------------------------------------------------------------------


def wall_clock() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def new_id() -> str:
    """An id that nobody else has: a random UUID in lower case."""
    return str(uuid.uuid4())


def new_nonce() -> str:
    """Eight random hexadecimal digits."""
    return secrets.token_hex(4)


class BlowingOffClient:
    """A replica of a graph. Use it as ``async with BlowingOffClient("home.db") as client``.

    All but `sync` and the server's half of `history` works without a server. Every edit is a new row version that
    waits until the server has named it.

    Args:
        store: the file that holds everything; made if there is none.
        url: the server's address; without one, the one that `connect` kept.
        token: the token for it; without one, the one that `connect` kept for this server.
        user: the label under which edits are made; kept. ``local`` at the start.
        device: the label of this replica; kept. Random at the start.
        transport: used instead of HTTP to `url`.
        clock: microseconds since 1970.
        versions: which wire versions to offer; by default all that this client speaks, newest first. Nothing else is
            ever believed or sent.
        page_rows: rows of one answer; by default what the server finds right.
        batch_changes, batch_bytes: of one request.
        insecure: allow HTTP to another machine; kept by `connect`.
        ids: makes the id of what is added.
        after_sync: called when a sync has ended, with what it failed with, if it did; must return at once.
        nonces: makes names for messages, and for copies of this replica.
    """

    def __init__(
        self,
        store: str | Path,
        url: str | None = None,
        token: str | None = None,
        *,
        user: str | None = None,
        device: str | None = None,
        transport: Transport | None = None,
        clock: Callable[[], int] | None = None,
        versions: VersionPolicy | None = None,
        page_rows: int | None = None,
        batch_changes: int = BATCH_CHANGES,
        batch_bytes: int = BATCH_BYTES,
        insecure: bool = False,
        ids: Callable[[], str] = new_id,
        after_sync: Callable[[InbetweeniesError | None], None] | None = None,
        nonces: Callable[[], str] = new_nonce,
    ) -> None:
        for name, label in (("user", user), ("device", device)):
            if label is not None:
                _check_label(name, label)
        if batch_changes < 1 or batch_bytes < 1 or (page_rows is not None and page_rows < 1):
            raise LocalProtocolError("expected batch_changes, batch_bytes and page_rows of at least 1; got less")
        self.clock = clock or wall_clock
        self.versions = versions or VersionPolicy()
        self.page_rows = page_rows
        self.batch_changes = batch_changes
        self.batch_bytes = batch_bytes
        self.after_sync = after_sync
        self._path = store
        self._url = url
        self._token = token
        self._user = user
        self._device = device
        self._given = transport
        self._insecure = insecure
        self._ids = ids
        self.nonces = nonces
        self._http: HttpTransport | None = None
        self._store: LocalStore | None = None

    def __repr__(self) -> str:
        return f"BlowingOffClient({str(self._path)!r})"

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of file and connections; what was edited is safe already."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None
        if self._store is not None:
            self._store.close()
            self._store = None

    @property
    def store(self) -> LocalStore:
        """The replica's file, opened when first used."""
        return self._store or self._open()

    def _open(self) -> LocalStore:
        store = LocalStore(self._path)
        try:
            _introduce(store, self._user, self._device, self.nonces)
        except BaseException:
            store.close()
            raise
        self._store = store
        return store

    @property
    def state(self) -> State:
        """What is known of the server, and who we are to it."""
        state = self.store.state()
        assert state is not None
        return state

    # --- edits ----------------------------------------------------------------------------------------------------

    async def add(
        self,
        entity_type: str,
        name: str,
        content: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        source_type: str = "manual",
    ) -> Entity:
        """Add an entity. With the `id` of a deleted one, that one comes back.

        Raises:
            NotStorable: a value cannot be stored, or `id` is taken.
        """
        source, original = source_type.lower(), UNSET
        if source not in SOURCE_TYPES:
            # As the server would keep it (PROTOCOL 3.4), so that both hold the same row.
            source, original = "imported", source_type  # type: ignore[assignment]
        with self.store.transaction():
            before = None if id is None else self.store.get(id)
            if before is not None and not before.deleted:
                raise NotStorable("expected an id that is not taken; got one that is. Change that entity instead.")
            return self._write_entity(
                Entity(
                    id=self._ids() if id is None else id,
                    version=self._mint(),
                    entity_type=entity_type.lower(),
                    name=name,
                    content=_json(content or {}),
                    source_type=source,
                    user_id=self.state.user,
                    parent_versions=() if before is None else (before.version,),
                    source_original=original,
                )
            )

    async def change(
        self,
        id: str,
        *,
        name: str | None = None,
        content: Mapping[str, Any] | None = None,
        patch: Mapping[str, Any] | None = None,
        entity_type: str | None = None,
    ) -> Entity:
        """Change an entity: its name, its type, its whole `content`, or the part of it that `patch` names (RFC 7386).

        A deleted one comes back if the new content does not say ``deleted``, as with ``patch={"deleted": None}``.
        What changes nothing makes no new row.

        Raises:
            NotFound: no such entity, or it is deleted and would stay so.
            NotStorable: a value cannot be stored.
        """
        if content is not None and patch is not None:
            raise LocalProtocolError("expected content or patch; got both")
        with self.store.transaction():
            before = self._entity(id, deleted=True)
            now: Any = dict(content) if content is not None else _parse(before.content)
            if patch is not None:
                now = merge_patch(now, patch)
            told = _json(now)
            if is_deleted(_parse(before.content)) and is_deleted(_parse(told)):
                raise NotFound(
                    "expected an entity that is not deleted; got one that is. "
                    "Bring it back with patch={'deleted': None}, or add another."
                )
            after = follow(
                before,
                version=before.version,
                user=before.user_id,
                content=_parse(told),
                name=before.name if name is None else name,
                entity_type=before.entity_type if entity_type is None else entity_type.lower(),
            )
            if (after.name, after.entity_type, bytes(after.content)) == (
                before.name,
                before.entity_type,
                bytes(before.content),
            ):
                return before
            return self._write_entity(replace(after, version=self._mint(), user_id=self.state.user))

    async def delete(self, id: str) -> Entity:
        """Delete an entity: a tombstone that keeps its content. Edges to it are hidden, not deleted.

        Raises:
            NotFound: no such entity.
        """
        with self.store.transaction():
            before = self._entity(id, deleted=True)
            content = _parse(before.content)
            if is_deleted(content):
                return before
            content["deleted"] = True
            return self._write_entity(follow(before, version=self._mint(), user=self.state.user, content=content))

    async def link(
        self,
        from_id: str,
        to_id: str,
        relationship_type: str,
        properties: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
    ) -> Relationship:
        """Link two entities by an edge. With the `id` of an edge that is there, that edge is re-pointed or changed.

        Raises:
            NotFound: one of the entities is not here, or is deleted.
            NotStorable: a value cannot be stored.
        """
        with self.store.transaction():
            start, end = self._entity(from_id), self._entity(to_id)
            return self._write_edge(
                Relationship(
                    id=self._ids() if id is None else id,
                    version=self._mint(),
                    from_entity_id=start.id,
                    from_entity_version=start.version,
                    to_entity_id=end.id,
                    to_entity_version=end.version,
                    relationship_type=relationship_type.lower(),
                    properties=_json(properties or {}),
                    user_id=self.state.user,
                )
            )

    async def unlink(self, id: str) -> Relationship:
        """Delete an edge: a tombstone that keeps its properties.

        Raises:
            NotFound: no such edge.
        """
        with self.store.transaction():
            copy = self.store.visible("edge", id)
            if copy is None:
                raise NotFound(
                    "expected the id of an edge of this replica; got another. Sync first, or list the edges."
                )
            before = _edge.decode(copy.body)
            if copy.deleted:
                return before
            properties = _json({**_parse(before.properties), "deleted": True})
            return self._write_edge(
                replace(before, version=self._mint(), properties=properties, user_id=self.state.user)
            )

    def _mint(self) -> str:
        return self.store.mint(self.clock(), self.state.user)

    def _entity(self, id_: str, *, deleted: bool = False) -> Entity:
        copy = self.store.get(id_)
        if copy is None:
            raise NotFound(
                "expected the id of an entity of this replica; got another. Sync first, or list what is here."
            )
        if copy.deleted and not deleted:
            raise NotFound("expected an entity that is not deleted; got one that is. Bring it back first.")
        return _entity.decode(copy.body)

    def _write_entity(self, entity: Entity) -> Entity:
        _storable(check_entity(_encodable(entity), "", ROW_LIMITS))
        self.store.write([_fits(copy_of(entity))])
        return entity

    def _write_edge(self, edge: Relationship) -> Relationship:
        _storable(check_edge(_encodable(edge), "", ROW_LIMITS))
        self.store.write([_fits(copy_of(edge))])
        return edge

    # --- reads ----------------------------------------------------------------------------------------------------

    async def get(self, id: str) -> Entity | None:
        """The entity as it is seen here; None if it is unknown or deleted."""
        copy = self.store.get(id)
        return None if copy is None or copy.deleted else _entity.decode(copy.body)

    async def find(
        self, text: str | None = None, *, entity_type: str | None = None, deleted: bool = False
    ) -> list[Entity]:
        """Entities whose name contains `text`, whatever the case. With `deleted`, tombstones too."""
        return [_entity.decode(copy.body) for copy in self.store.find(text, entity_type=entity_type, deleted=deleted)]

    async def resolve(self, text: str) -> list[Entity]:
        """The entities that `text` can mean: by id, name, beginning of an id, or part of a name, the first that finds
        any. Exactly one means that it is clear. Tombstones are only found where nothing alive is."""
        return [_entity.decode(copy.body) for copy in self.store.resolve(text)]

    async def links(self, id: str | None = None, *, deleted: bool = False) -> list[Relationship]:
        """Edges, or those from and to entity `id`. Without `deleted`, none to a deleted entity."""
        return [_edge.decode(copy.body) for copy in self.store.links(id, deleted=deleted)]

    async def history(self, id: str) -> list[Version]:
        """Every row version of an entity, newest edit first: those held here, and those only the server holds, if it
        can be asked."""
        versions = [
            Version(entity=_entity.decode(held.copy.body), current=held.current, pending=held.pending, source="here")
            for held in self.store.history(id)
        ]
        known = {version.entity.version for version in versions}
        told: list[Entity] = []
        with suppress(NotConnected, TransportError, TimeoutError):
            async with asyncio.timeout(HISTORY_S):
                told = await self._server_versions(id)
        versions += [
            Version(entity=entity, current=False, pending=False, source="server")
            for entity in told
            if entity.version not in known
        ]
        return sorted(
            versions, key=lambda version: (edit_time(version.entity.version) or 0, version.entity.version), reverse=True
        )

    async def _server_versions(self, id_: str) -> list[Entity]:
        where = VERSIONS_PATH.format(quote(id_, safe=""))
        listed = _decoded(_versions, await self._transport().get(where))
        return [_told_entity(version) for version in listed.versions if version.id == id_]

    async def conflicts(self) -> list[ConflictRecord]:
        """What the server told of conflicts, newest first; the losing rows are in the history of their entity."""
        return self.store.conflicts()

    # --- what waits for a person ----------------------------------------------------------------------------------

    async def review(self, *, ask: bool = True) -> list[Review]:
        """Conflicts that wait for a person (PROTOCOL 6.9), less those that were resolved here.

        With `ask`, the server is asked; where it cannot be, and without, they are those that it listed last, and those
        that it left open to this replica since.

        Raises:
            BadAnswer: what the server answers is no list.
        """
        if ask:
            with suppress(NotConnected, Unreachable, Refused, TimeoutError):
                async with asyncio.timeout(HISTORY_S):
                    await self._list_reviews()
        return review.standing(self.store)

    async def _list_reviews(self) -> None:
        now, found = self.clock(), list[Review]()
        after: str | None = None
        while len(found) < review.ENTRIES_MAX:
            query = "" if after is None else f"?after={quote(after, safe='')}"
            page = _decoded(review.pages, await self._transport().get(review.PATH + query))
            found += page.reviews()
            if page.next is None or page.next == after:
                break
            after = page.next
        review.keep(self.store, found, now)

    async def settle(
        self,
        id: str,
        take: Take = "mine",
        *,
        content: Mapping[str, Any] | None = None,
        patch: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Entity:
        """Resolve a conflict that waits, by a row that follows both sides; the next sync sends it like any edit.

        Args:
            id: names it, or the beginning of its name.
            take: what to start from: what stands (``mine``), what waits (``theirs``), or ``merge``, which is both.
            content, patch, name: what stands instead of that: all content, or the part of it that `patch` names.

        Raises:
            NotFound: no such conflict waits, as far as is known here.
            Contested: it is to be merged, and something that both changed was not said.
            NotStorable: a value cannot be stored.
        """
        if content is not None and patch is not None:
            raise LocalProtocolError("expected content or patch; got both")
        with self.store.transaction():
            found = [entry for entry in review.standing(self.store) if id and entry.id.startswith(id)]
            if len(found) != 1:
                raise NotFound(f"expected what names one conflict that waits; got what names {len(found)}")
            entry = found[0]
            pointers = ["/content"] if content is not None else review.pointers_of(patch or {})
            if patch is not None:
                start = entry.theirs.content if take == "theirs" else entry.mine.content
                says = review.contested(entry)[0]["content"] if take == "merge" else _parse(start)
                content = merge_patch(says, patch)
            try:
                row = review.resolution(entry, take, content=content, name=name, patched=pointers)
            except RemoteProtocolError as error:
                raise NotStorable(f"expected {error.expected}; got {error.got}") from error
            # Later than both, or a v1 client would not take it (PROTOCOL 8.10).
            version = self.store.mint(max(self.clock(), review.latest(entry) + 1), self.state.user)
            return self._write_entity(replace(row, version=version, user_id=self.state.user))

    async def pending(self) -> list[Pending]:
        """What waits for its ack, in the order it was made, each with the reason if there is one."""
        state = self.state
        return [
            item if item.note is not None or _taken(state, item.copy) else replace(item, note=_unknown_there(item.copy))
            for item in self.store.pending()
        ]

    async def give_up(self, id: str) -> int:
        """Stop sending what the server refused of an entity or edge, and say how many rows that were. They stay in
        the history here, and what is seen is what was sent or told else."""
        return self.store.give_up(id)

    async def status(self) -> Status:
        """Where this replica stands."""
        state, counts = self.state, self.store.counts()
        names: dict[str, str] = {}
        blocked = []
        for item in await self.pending():
            if item.note is not None:
                name = names.setdefault(item.copy.id, item.copy.name or item.copy.entity_type)
                blocked.append(
                    Blocked(
                        kind=item.copy.kind,
                        id=item.copy.id,
                        version=item.copy.version,
                        name=name,
                        code=item.note.code,
                        detail=item.note.detail,
                        advice=ADVICE.get(item.note.code, _ANY_ADVICE),
                    )
                )
        last = self.store.setting("last_sync")
        return Status(
            path=self.store.path,
            url=self._url or self.store.setting("url"),
            user=state.user,
            device=state.device,
            wire=state.wire,
            cursor=state.cursor,
            counts=counts,
            pending=counts.pending,
            refused=tuple(blocked),
            conflicts=len(self.store.conflicts()),
            digest=f"{state.digest:064x}",
            last_sync=None if last is None else int(last),
            last_error=self.store.setting("last_error"),
        )

    # --- the server -----------------------------------------------------------------------------------------------

    async def connect(self, url: str, token: str | None = None) -> None:
        """Keep the server's address and, in a file of its own beside the store, the token for it. Sends nothing.

        Without `token`, the one that is kept stays if it belongs to this server.

        Raises:
            LocalProtocolError: the address or the token cannot be used.
        """
        made = HttpTransport(url, token, insecure=self._insecure)
        await made.aclose()
        self.store.keep(url=url, insecure="1" if self._insecure else None)
        if token is not None:
            self._keep_token(made.origin, token)
        elif self._kept_token(made.origin) is None:
            self._forget_token()
        self._url, self._token = url, token
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    def _transport(self) -> Transport:
        if self._given is not None:
            return self._given
        if self._http is None:
            url, token, insecure = self.access()
            self._http = HttpTransport(url, token, insecure=insecure)
        return self._http

    def _server_key(self) -> str:
        """What is remembered of a server is remembered under this."""
        transport = self._transport()
        if not isinstance(transport, HttpTransport):
            return key_of("", None)
        return key_of(transport.origin, transport.credential)

    def access(self) -> tuple[str, str | None, bool]:
        """The server's address, the token for it, and whether it may be reached over HTTP on another machine.

        Raises:
            NotConnected: no server is known.
        """
        url = self._url or self.store.setting("url")
        if url is None:
            raise NotConnected("expected the address of a server; none is known. Connect to one first.")
        token = self._token if self._token is not None else self._kept_token(origin_of(url))
        return url, token, self._insecure or self.store.setting("insecure") is not None

    def _token_path(self) -> Path | None:
        return None if self.store.path == ":memory:" else Path(f"{self.store.path}.token")

    def _kept_token(self, origin: str) -> str | None:
        path = self._token_path()
        try:
            kept = None if path is None else json.loads(path.read_text())
        except (OSError, ValueError):
            return None
        # A token goes to the server that it was given for, whatever the address is now.
        if isinstance(kept, dict) and kept.get("origin") == origin and isinstance(kept.get("token"), str):
            return str(kept["token"])
        return None

    def _keep_token(self, origin: str, token: str) -> None:
        path = self._token_path()
        if path is None:
            return
        try:
            descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # mode 0600
            with os.fdopen(descriptor, "w") as file:
                json.dump({"origin": origin, "token": token}, file)
                file.flush()
                os.fsync(file.fileno())
            Path(made).replace(path)
        except OSError as error:
            raise StoreError(f"expected to write {path}; the system says: {error.strerror}") from error

    def _forget_token(self) -> None:
        path = self._token_path()
        if path is not None:
            path.unlink(missing_ok=True)

    async def sync(self, progress: Callable[[Progress], None] | None = None) -> SyncReport:
        """Exchange everything with the server: push what waits, pull what is new, and say whether both are equal.

        What the server will not take stays and is reported; it keeps nothing else from going on. Whatever goes wrong,
        nothing that waits is forgotten before the server has named it.

        Raises:
            NotConnected: no server is known.
            SyncRunning: another sync of this store is under way.
            Unreachable, Refused, BadAnswer: the exchange ended early; what was absorbed is kept.
            NoCommonVersion, VersionDisabled, UnsupportedVersion: the server serves nothing that may be offered; `side`
                says who must be updated. What waits is kept, and sent once there is a version for it.
            ServedVersionMismatch: it answered in what was not offered; nothing of that was believed.
            StoreError: this side could not write it down.
        """
        return await self.exchange(self._transport(), progress)

    async def exchange(self, transport: Transport, progress: Callable[[Progress], None] | None = None) -> SyncReport:
        """`sync` over this transport."""
        try:
            report = await self._exchange(transport, progress)
        except InbetweeniesError as error:
            if self.after_sync is not None:
                self.after_sync(error)
            raise
        if self.after_sync is not None:
            self.after_sync(None)
        return report

    async def _exchange(self, transport: Transport, progress: Callable[[Progress], None] | None) -> SyncReport:
        url = None if self._given is not None else self._url or self.store.setting("url")
        with self.store.syncing():
            try:
                report = await _Sync(self, transport, self._server_key(), progress).run(url)
            except (TransportError, RemoteProtocolError) as error:
                self.store.keep(last_error=str(error))
                raise
            self.store.keep(last_sync=str(self.clock()), last_error=None)
            return report

    # --- staying connected

    def watch(self, **settings: Any) -> AsyncGenerator[Event, None]:
        """Stay connected: what others change comes in at once, what is changed here goes out at once, for ever::

            async for event in client.watch():
                print(event.kind, event.changed)

        Where no WebSocket gets through, and while the server is away, it goes on by itself. `settings` are those of
        `live.Watch`. See `live.Event`.

        Raises:
            NotConnected: no server is known.
            Unauthorized: the server does not take the token.
        """
        from .live import Watch

        return Watch(self, **settings).events()

    def http(self) -> HttpTransport:
        """The transport to the server that is known.

        Raises:
            NotConnected: none is.
        """
        transport = self._transport()
        if not isinstance(transport, HttpTransport):
            raise LocalProtocolError("expected a server that is reached over HTTP; got another transport")
        return transport

    def offer(self) -> tuple[str, ...]:
        """The wire versions in rows that this client offers, best first."""
        wires = spoken()
        return tuple(name for name in self.versions.offer(tuple(wires)) if of_rows(wires[name]))

    def hear(self, after: str | None, body: bytes) -> tuple[str, ...] | None:
        """Take in what a server told without being asked; the ids that it was about.

        None, and nothing is taken, if it does not go on from where this replica stands: then something was missed.

        Raises:
            SyncRunning: a sync of this store is under way.
            RemoteProtocolError: it is no answer that can be believed.
        """
        with self.store.syncing():
            if after is None or after != self.state.cursor:
                return None
            sync = _Sync(self, self._transport(), self._server_key(), None)
            return sync.hear(body)


# --- one sync -----------------------------------------------------------------------------------------------------

_Whole = tuple[str, str, str]


def _whole(item: Pending) -> _Whole:
    return (*item.copy.key, item.copy.version)


class _Envelope(Struct):
    """What is looked at before an answer is believed."""

    protocol_version: Any = UNSET
    applied: Raw | UnsetType = UNSET
    server_time: Raw | UnsetType = UNSET
    negotiation: Any = None


_envelope = msgspec.json.Decoder(_Envelope)


class NotUnderstood(BadAnswer):
    """The answer is of no wire version that was asked for, and names none."""


class _Sync(Reconciliation):
    """The course of one sync. Ends, whatever the server does: each round clears marks, moves the cursor, or sets rows
    aside until the next sync."""

    def __init__(
        self,
        client: BlowingOffClient,
        transport: Transport,
        key: str,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        super().__init__()
        self.client = client
        self.store = client.store
        self.transport = transport
        self.progress = progress
        self.talk = Talk(client.store, client.versions, key=key, now=client.clock(), revision=self._revision())
        self.doubt: NotUnderstood | None = None  # why another version is being tried, if the server did not say
        self.batch = client.batch_changes
        self.held: set[_Whole] = set()  # not sent again in this sync
        self.waiting: set[_Whole] = set()  # of these, the ones for which an ack of something else can change things
        self.unblocked = False  # something was acknowledged since they were sent last
        self.refused: dict[_Whole, RefusedItem] = {}
        self.conflicts: list[Conflict] = []
        self.pushed = self.pulled = self.offered = self.messages = self.poison = self.restarts = self.resyncs = 0
        self.healed = self.forked = False
        self.complete = True
        self.edges_read = False
        self.answer: Answer | None = None

    async def run(self, url: str | None) -> SyncReport:
        state = self.client.state
        if url is not None:
            if state.modern is False and self.store.setting("synced_url") not in (None, url):
                # A deployed server's clock says nothing about another server's, and it could not tell.
                self.store.put_state(restart(state))
            self.store.keep(synced_url=url)
        try:
            while await (self._round() if self.talk.in_rows else self._records()):
                if self.messages >= MESSAGES_MAX:
                    self.complete = False
                    break
        except (TransportError, RemoteProtocolError):
            self.talk.forget()
            raise
        self.talk.remember(now=self.client.clock(), revision=self._revision())
        state = self.client.state
        digest = self.answer.digest if self.answer is not None else None
        return SyncReport(
            served=state.wire,
            pushed=self.pushed,
            pulled=self.pulled,
            conflicts=tuple(self.conflicts),
            refused=tuple(self.refused.values()),
            pending=self.store.counts().pending,
            healed=self.healed,
            messages=self.messages,
            digest=None if digest is None else f"{state.digest:064x}",
            equal=None if digest is None else digest == f"{state.digest:064x}",
            complete=self.complete,
            rewound=self.rewinds > 0,
            lost=self.lost,
            discarded=self.discarded,
            offered=self.offered,
            differing=self.differing,
            forked=self.forked,
        )

    def _revision(self) -> str | None:
        """What the server said last of its registry; not every transport can tell."""
        revision: str | None = getattr(self.transport, "registry_revision", None)
        return revision

    async def _round(self) -> bool:
        """One message, there and back. Whether another one must follow."""
        state = self.client.state
        if state.lost:
            return await self._relocated(state)
        back = state.wire is not None and not of_rows(load().get(state.wire))
        if back:
            # What a server of records told are no rows of its own; what it says in rows is asked for from the start.
            state = replace(restart(state), modern=None, wire=None)
        ask, sent = compose(
            state,
            # A server that starts anew first tells what it has; else what follows from what it lost looks contested.
            () if state.restarting else self._sendable(state),
            offer=self.talk.offer,
            page_rows=self.client.page_rows,
            changes_max=self.batch,
            bytes_max=self.client.batch_bytes,
            request=self.nonce(),
            skip=self.skipped(state),
            want=self.wanted(),
        )
        if ask.pushes is not None:
            with self.store.transaction():
                self.store.put_state(attempted(self.client.state, ask))
        try:
            answer = await self.exchange(ask)
        except Unauthorized:
            raise
        except Refused as error:
            if not self.talk.refused(error):
                self._recover(error, state, sent)
            return True
        if answer is None:
            return True
        if back:
            self.store.put_state(state)
        absorbed, moved = self._absorb(answer, sent, wanted=bool(ask.want))
        self.answer = answer
        self.poison = 0
        self.batch = min(self.batch * 2, self.client.batch_changes)
        self.resyncs += answer.resync
        if self.resyncs > RESYNCS_MAX:
            self.complete = False
            return False
        if absorbed.healed:
            self.healed = True
            return True
        if not absorbed.drained:
            # A server that says "more" and tells nothing would be asked for ever.
            self.complete = moved
            return moved
        return await self._drained()

    async def _relocated(self, state: State) -> bool:
        """The server's log is not the one that was known: find out what is left of it, then go on."""
        try:
            await self.locate(state)
        except Unauthorized:
            raise
        except Refused as error:
            if not self.talk.refused(error):
                raise
        self.held.clear()
        self.waiting.clear()
        return True

    @property
    def offer(self) -> tuple[str, ...]:
        """The wire versions to offer."""
        return self.talk.offer

    def nonce(self) -> str:
        """A name for a message that no other message has."""
        return self.client.nonces()

    async def exchange(self, ask: Ask) -> Answer | None:
        """One message, there and back; None if the answer does not count, and another version is to be tried.

        Raises:
            TransportError: no answer, or none that can be believed to be one to this message; nothing was absorbed.
        """
        self.messages += 1
        answer = self._told(await self.transport.post(SYNC_PATH, self.talk.wire.ask(ask)))
        if answer is not None and not believed(answer, ask):
            # PROTOCOL 10.14: it may be late, and from before the server was set back.
            raise BadAnswer(expected="an answer to what was just asked, of a log that grows", got="another one")
        return answer

    def hear(self, body: bytes) -> tuple[str, ...] | None:
        """Take in an answer that nobody asked for; the ids that it was about, or None if a sync must follow."""
        answer = self._told(body)
        if answer is None:
            return None
        absorbed, _ = self._absorb(answer, ())
        if absorbed.differs or absorbed.offer_again or not absorbed.drained:
            return None
        return tuple(dict.fromkeys(id_ for _, id_ in absorbed.pointers))

    async def _records(self) -> bool:
        """All there is to say to a server that only speaks v1. Whether another version must follow."""
        from .v1mode import V1Exchange

        exchange = V1Exchange(
            self.store,
            self.transport,
            self.talk.wire,
            clock=self.client.clock,
            ids=new_id,
            batch_changes=self.client.batch_changes,
            offer=self.talk.offer,
        )
        try:
            if not await exchange.probe():
                raise self.doubt or NotUnderstood(expected=f"an answer in {exchange.name}", got="another JSON document")
            self.talk.served(exchange.name, exchange.negotiation)
            if self.talk.in_rows:
                return True  # there is more to be had here, and nothing was taken or sent yet
            done = await exchange.run()
        except Unauthorized:
            raise
        except Refused as error:
            if not self.talk.refused(error):
                raise
            return True
        finally:
            self.messages += exchange.messages
        self.answer = None
        self.pushed += done.pushed
        self.pulled += done.pulled
        self.refused = {("", note.id, note.version): note for note in done.refused}
        self._report()
        return False

    def _sendable(self, state: State) -> Iterator[Pending]:
        after = 0
        while page := self.store.pending(CHUNK, after):
            after = page[-1].n
            yield from (item for item in page if _whole(item) not in self.held and _taken(state, item.copy))

    def _told(self, body: bytes) -> Answer | None:
        """The answer; None if it does not count, and another version is to be tried."""
        wire = self.talk.wire
        try:
            gate(body, ANSWER_LIMITS)
            envelope = checked_decode(_envelope, body)
            named = envelope.protocol_version
            if named is UNSET and envelope.applied is UNSET and envelope.server_time is UNSET:
                self.doubt = NotUnderstood(expected=f"an answer in {wire.name}", got="another JSON document")
                if not self.talk.unversioned():
                    raise self.doubt
                return None
            if not self.talk.served(wire.name if named is UNSET else named, envelope.negotiation):
                return None
            answer: Answer = wire.told(body)
        except (BadAnswer, VersionRefused):
            raise
        except RemoteProtocolError as error:
            raise BadAnswer(expected=error.expected, got=error.got, pointer=error.pointer) from error
        return answer

    def _absorb(self, answer: Answer, sent: tuple[Pending, ...], *, wanted: bool = False) -> tuple[Absorbed, bool]:
        """Take an answer in, as one transaction. Whether it changed anything comes with it."""
        with self.store.transaction():
            state = self.client.state
            local = self.store.local(*mentions(answer, sent))
            absorbed = self._settled(absorb(answer, sent, state, local, wanted=wanted), answer, state)
            if answer.device_forked:
                self.forked = True
                absorbed = replace(absorbed, state=incarnated(absorbed.state, self.nonce()))
            self.store.apply(absorbed, now=self.client.clock())
            cleared = frozenset(absorbed.cleared)
            # Of a message that was not looked at nothing is silent: it is sent again.
            left = [] if absorbed.state.lost else [item for item in sent if item.n not in cleared]
            silent = {item.n: _silence(item.copy) for item in left if item.n not in absorbed.notes}
            self.store.annotate(silent)
        done = [item for item in sent if item.n in cleared]
        pulled = _pulled(absorbed, local, done)
        offered = sum(item.offered for item in done)
        self.offered += offered
        self.pushed += len(done) - offered
        self.pulled += pulled
        self.conflicts += absorbed.conflicts
        self.unblocked |= any(item.copy.kind == "entity" for item in done)
        for item in done:
            self.refused.pop(_whole(item), None)
        for item in left:
            self._set_aside(item, absorbed.notes.get(item.n) or silent[item.n])
        self._report()
        before, after = (replace(one, digest=0) for one in (state, absorbed.state))
        return absorbed, bool(done or pulled or before != after)

    def _settled(self, absorbed: Absorbed, answer: Answer, state: State) -> Absorbed:
        """`absorbed`, or the same without starting anew if that was tried for this very difference and did not help."""
        if not absorbed.healed or not self._known_gap(answer, absorbed.state):
            return absorbed
        settled = replace(
            absorbed.state, cursor=answer.cursor or state.cursor, round=absorbed.state.round - 1, restarting=False
        )
        return replace(absorbed, state=settled, healed=False)

    def _known_gap(self, answer: Answer, state: State) -> bool:
        """Whether comparing everything again will not close the difference to the server: it did not before.

        Digests are sums, so what lies between them is the same as long as the same rows differ.
        """
        try:
            gap = f"{(int(answer.digest or '', 16) - state.digest) % (1 << DIGEST_BITS):064x}"
        except ValueError:
            gap = "no digest"
        if not self.healed and self.store.setting("gap") != gap:
            return False
        self.store.keep(gap=gap)
        return True

    def _set_aside(self, item: Pending, note: RefusedItem) -> None:
        self.held.add(_whole(item))
        self.refused[_whole(item)] = note
        if note.code in ("unknown_endpoint", "not_acknowledged", "too_much_at_once"):
            self.waiting.add(_whole(item))

    async def _drained(self) -> bool:
        """The server has nothing more for now. Whether there is something left to say."""
        state = self.client.state
        if state.modern is False and not self.edges_read:
            await self._read_edges(state)
            self.edges_read = True
            state = self.client.state
        if state.restarting:
            self.store.offer_again()
            self.held.clear()
            self.waiting.clear()
            state = self.client.state
        if self.want or any(True for _ in self._sendable(state)):
            return True
        if self.waiting and self.unblocked:
            self.held -= self.waiting
            self.waiting.clear()
            self.unblocked = False
            return True
        digest = None if self.answer is None else self.answer.digest
        if digest is None:
            return False
        if digest == f"{state.digest:064x}":
            self.store.keep(gap=None)
            return False
        # `absorb` compares too, but not at the end of a restart.
        if self.answer is None or self._known_gap(self.answer, state):
            return False
        self.healed = True
        if FEATURE in self.answer.features:
            await self.compare(state)
        else:
            self.store.put_state(restart(state))
        return True

    async def _read_edges(self, state: State) -> None:
        """PROTOCOL 10.5: a deployed server tells edges only here, all of them, whole."""
        try:
            body = await self.transport.get(EDGES_PATH)
        except Unauthorized:
            raise
        except Refused:
            return  # its entities are of use without
        self.messages += 1
        edges = tuple(_told_edge(edge) for edge in _decoded(_edges, body).relationships)
        told = Answer(protocol_version=state.wire or self.talk.wire.name, changes=(Change(relationships=edges),))
        self._absorb(told, ())

    def _recover(self, error: Refused, state: State, sent: tuple[Pending, ...]) -> None:
        """Go on after a refusal, or raise it."""
        about_cursor = error.code == "bad_cursor" or (error.status == 400 and "cursor" in error.detail.lower())
        if about_cursor and (state.cursor or state.page) and self.restarts < 2:
            self.restarts += 1
            self.store.put_state(restart(state))
            return
        if error.status not in (400, 413, 422, 500) or not sent:
            raise error
        # One item can make a server refuse a whole message. Find it by halves, set it aside, and go on.
        if len(sent) > 1:
            self.batch = len(sent) // 2
            return
        self.poison += 1
        if self.poison > POISON_MAX:
            raise error
        item = sent[0]
        note = RefusedItem(
            id=item.copy.id, version=item.copy.version, code=error.code, pointer="", detail=error.detail or "refused"
        )
        self.store.annotate({item.n: note})
        self._set_aside(item, note)
        self._report()

    def _report(self) -> None:
        if self.progress is not None:
            pending = self.store.counts().pending
            self.progress(
                Progress(
                    pushed=self.pushed,
                    pulled=self.pulled,
                    pending=pending,
                    total=self.pushed + pending,
                    messages=self.messages,
                )
            )


def _pulled(absorbed: Absorbed, local: Local, done: list[Pending]) -> int:
    """For how many ids the server was found to hold another row than was known, our own acknowledged ones aside."""
    ours = {_whole(item) for item in done}
    count = 0
    for key, pointer in absorbed.pointers.items():
        before = local.pointers.get(key)
        if pointer.theirs is not None and (before is None or before.theirs_hash != pointer.theirs_hash):
            count += (*key, pointer.theirs) not in ours
    return count


def _taken(state: State, copy: Copy) -> bool:
    """PROTOCOL 10.5: whether it is sent; a server without features fails a whole message for one unknown type."""
    if state.modern:
        return True
    return copy.entity_type in (_DEPLOYED_EDGES if copy.kind == "edge" else ENTITY_TYPES)


def _unknown_there(copy: Copy) -> RefusedItem:
    return RefusedItem(
        id=copy.id,
        version=copy.version,
        code="unknown_type_there",
        pointer="",
        detail="expected a type that every server knows; got another, and this server does not say that it takes it",
    )


def _silence(copy: Copy) -> RefusedItem:
    return RefusedItem(
        id=copy.id,
        version=copy.version,
        code="not_acknowledged",
        pointer="",
        detail="expected the server to name it or to refuse it; it did neither",
    )


# --- values from outside ------------------------------------------------------------------------------------------


class _EdgeTold(Struct, kw_only=True):
    id: str
    from_entity_id: str
    from_entity_version: str
    to_entity_id: str
    to_entity_version: str
    relationship_type: str
    properties: dict[str, Any] | None = None
    user_id: str | None = None
    version: str | None = None


class _EdgesTold(Struct, kw_only=True):
    relationships: tuple[_EdgeTold, ...]


class _VersionTold(Struct, kw_only=True):
    id: str
    version: str
    entity_type: str
    name: str
    content: dict[str, Any]
    source_type: str
    user_id: str = ""
    parent_versions: tuple[str, ...] = ()
    checksum: str | None = None


class _VersionsTold(Struct, kw_only=True):
    versions: tuple[_VersionTold, ...]


_edges = msgspec.json.Decoder(_EdgesTold)
_versions = msgspec.json.Decoder(_VersionsTold)


def _decoded(decoder: Any, body: bytes) -> Any:
    try:
        gate(body, ANSWER_LIMITS)
        return checked_decode(decoder, body)
    except RemoteProtocolError as error:
        raise BadAnswer(expected=error.expected, got=error.got, pointer=error.pointer) from error


def _told_edge(told: _EdgeTold) -> Relationship:
    edge = Relationship(
        id=told.id,
        version=told.version or "",
        from_entity_id=told.from_entity_id,
        from_entity_version=told.from_entity_version,
        to_entity_id=told.to_entity_id,
        to_entity_version=told.to_entity_version,
        relationship_type=told.relationship_type.lower(),
        properties=Raw(canonical(told.properties or {}, trusted=True)),
        user_id=told.user_id or "",
    )
    return edge if edge.version else replace(edge, version=edge_version(edge))


def _told_entity(told: _VersionTold) -> Entity:
    return Entity(
        id=told.id,
        version=told.version,
        entity_type=told.entity_type.lower(),
        name=told.name,
        content=Raw(canonical(told.content, trusted=True)),
        source_type=told.source_type.lower(),
        user_id=told.user_id,
        parent_versions=told.parent_versions,
        checksum=told.checksum,
    )


# --- values from the caller ---------------------------------------------------------------------------------------


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: `patch` laid over `target`; None removes a key, whatever is no object replaces whole."""
    if not isinstance(patch, Mapping):
        return patch
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge_patch(merged.get(key), value)
    return merged


def _json(value: Mapping[str, Any]) -> Raw:
    """`value` in the one spelling in which it is stored, sent and hashed, here and on every server."""
    if not value:
        return EMPTY
    try:
        text = canonical(dict(value), limits=CONTENT_LIMITS)
        # What a server would make of it, or the two would hold different rows under one version.
        again = canonical(_parse(text), trusted=True)
    except RemoteProtocolError as error:
        raise NotStorable(f"expected {error.expected}; got {error.got}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise NotStorable("expected JSON values; got one that JSON does not hold exactly") from error
    if again != text:
        raise NotStorable("expected JSON values; got one that JSON does not hold exactly")
    return Raw(text)


def _encodable(value: Any) -> Any:
    try:
        body_of(value)
    except (UnicodeError, msgspec.MsgspecError, TypeError) as error:
        raise NotStorable("expected texts that UTF-8 can hold; got one that it cannot") from error
    return value


def _storable(refusal: RefusedItem | None) -> None:
    if refusal is not None:
        raise NotStorable(f"{refusal.pointer.rpartition('/')[2]}: {refusal.detail}")


def _fits(copy: Copy) -> Copy:
    if len(copy.body) > ROW_LIMITS.entity_bytes_max:
        raise NotStorable(f"expected at most {ROW_LIMITS.entity_bytes_max} bytes in one row; got {len(copy.body)}")
    return copy


def _check_label(name: str, label: str) -> None:
    if not label or not label.isprintable() or len(label.encode(errors="replace")) > LABEL_BYTES_MAX:
        raise LocalProtocolError(f"expected {name} of 1 to {LABEL_BYTES_MAX} printable bytes; got something else")


def _introduce(store: LocalStore, user: str | None, device: str | None, nonces: Callable[[], str]) -> None:
    """See to it that the store knows who it is."""
    state = store.state()
    if state is not None and (device or state.device, user or state.user) == (state.device, state.user):
        return  # without a write: there are stores that may only be read
    with store.transaction():
        state = store.state()
        known = state or State(device=device or str(uuid.uuid4()), user=user or "local")
        known = replace(known, device=device or known.device, user=user or known.user)
        known = replace(known, incarnation=known.incarnation or nonces() + nonces())
        if known != state:
            store.put_state(known)
