"""The client: a replica of the graph that is always writable. What one exchange with a server is, is in `sync`."""
# ruff: noqa: A002 - `id` is the name of the field, in the model, on the wire and here

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from inbetweenies.errors import (
    InbetweeniesError,
    LocalProtocolError,
    RemoteProtocolError,
    StoreError,
)
from inbetweenies.intake import check_edge, check_entity
from inbetweenies.model import (
    SOURCE_TYPES,
    Entity,
    Relationship,
    edit_time,
    is_deleted,
)
from inbetweenies.offers import VersionPolicy
from inbetweenies.replica import (
    BATCH_BYTES,
    BATCH_CHANGES,
    Pending,
    State,
    copy_of,
    follow,
)

from . import notices, review
from .reports import Blocked, Notice, Progress, Status, SyncReport, Version
from .review import Review, Take
from .store import ConflictRecord, LocalStore
from .sync import Sync, is_taken, unknown_there
from .transport import HttpTransport, Refused, Transport, TransportError, Unreachable, origin_of
from .values import (
    ROW_LIMITS,
    VERSIONS,
    NotStorable,
    decoded,
    encodable,
    fitting,
    json_of,
    merge_patch,
    new_id,
    new_nonce,
    storable,
    told_entity,
    wall_clock,
)
from .versions import key_of, of_rows, spoken

if TYPE_CHECKING:
    from .live import Event

VERSIONS_PATH: Final = "/api/v1/graph/entities/{}/versions"

HISTORY_S: Final = 5.0  # how long a person waits for what may be more, when much is there already
LABEL_BYTES_MAX: Final = 256  # user and device: a row version holds the user and has an end itself

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
        on_notice: called with each thing that the server wants people to know, once, after it was kept; must return at
            once.
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
        on_notice: Callable[[Notice], None] | None = None,
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
        self.on_notice = on_notice
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
                    content=json_of(content or {}),
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
            told = json_of(now)
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
                    properties=json_of(properties or {}),
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
            properties = json_of({**_parse(before.properties), "deleted": True})
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
        storable(check_entity(encodable(entity), "", ROW_LIMITS))
        self.store.write([fitting(copy_of(entity))])
        return entity

    def _write_edge(self, edge: Relationship) -> Relationship:
        storable(check_edge(encodable(edge), "", ROW_LIMITS))
        self.store.write([fitting(copy_of(edge))])
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
        listed = decoded(VERSIONS, await self._transport().get(where))
        return [told_entity(version) for version in listed.versions if version.id == id_]

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
            page = decoded(review.pages, await self._transport().get(review.PATH + query))
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
            item
            if item.note is not None or is_taken(state, item.copy)
            else replace(item, note=unknown_there(item.copy))
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
            notices=notices.standing(self.store),
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
                report = await Sync(self, transport, self._server_key(), progress).run(url)
            except (TransportError, RemoteProtocolError) as error:
                self.store.keep(last_error=str(error))
                raise
            self.store.keep(last_sync=str(self.clock()), last_error=None)
            return replace(report, notices=self.told())

    def told(self) -> tuple[Notice, ...]:
        """What the server wants people to know and nobody was shown yet; from here on it counts as shown."""
        found = notices.shown(self.store)
        if self.on_notice is not None:
            for notice in found:
                self.on_notice(notice)
        return found

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
            sync = Sync(self, self._transport(), self._server_key(), None)
            return sync.hear(body)


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
