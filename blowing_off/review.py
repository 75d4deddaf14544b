"""What waits for a person, as a replica knows it: what the server listed last, and what was left open since.

A conflict that waits is resolved by a row that follows both sides (PROTOCOL 6.10). Everybody may write one, so it works
offline: what the server listed is kept with all that it takes to decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError, StoreCorrupt
from inbetweenies.limits import canonical
from inbetweenies.merge import FOR_REVIEW, Value, ancestors, document, laid_over, woven
from inbetweenies.model import Entity, edit_time, says_deleted
from inbetweenies.review import entry_id

from .store import LocalStore

PATH: Final = "/api/v1/sync/conflicts"
ENTRIES_MAX: Final = 1_000  # kept for offline; a person decides no more of them before the next look at the server
SETTING: Final = "review"

Take: TypeAlias = Literal["mine", "theirs", "merge"]

_encode = msgspec.json.Encoder().encode
_entity = msgspec.json.Decoder(Entity)


class Contested(LocalProtocolError, ValueError):
    """Both sides changed the same to different values, and nobody said which; nothing was changed.

    Attributes:
        pointers: JSON pointers of what has to be said, such as ``/content/watts`` or ``/name``.
    """

    def __init__(self, pointers: tuple[str, ...]) -> None:
        self.pointers = pointers
        super().__init__(
            f"expected values for what both sides changed, or a side to take; got none for {', '.join(pointers)}"
        )


class Review(Struct, frozen=True, kw_only=True):
    """A conflict that waits for a person.

    Attributes:
        id: names it.
        mine: what stands now, as far as this replica knows.
        theirs: what lost against it and waits.
        base: the newest row known that both descend from, if there is one.
        stood: the row version that stood when the server told of it.
    """

    id: str
    entity_id: str
    mine: Entity
    theirs: Entity
    base: Entity | None = None
    stood: str = ""


class Listing(Struct, frozen=True, kw_only=True):
    """What the server listed, and when, in microseconds since 1970."""

    at: int = -1
    entries: tuple[Review, ...] = ()


# --- what the server says -----------------------------------------------------------------------------------------


class _Side(Struct, kw_only=True):
    id: str
    version: str
    entity_type: str
    name: str
    content: dict[str, Any]
    source_type: str
    user_id: str = ""
    parent_versions: tuple[str, ...] = ()
    source_original: str | UnsetType = UNSET

    def entity(self) -> Entity:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return Entity(**fields | {"content": Raw(canonical(self.content, trusted=True))})


class _Told(Struct, kw_only=True):
    id: str
    mine: _Side
    theirs: _Side
    base: _Side | None = None

    def review(self) -> Review:
        mine = self.mine.entity()
        return Review(
            id=self.id,
            entity_id=mine.id,
            mine=mine,
            theirs=replace(self.theirs.entity(), id=mine.id),
            base=None if self.base is None else self.base.entity(),
            stood=mine.version,
        )


class Page(Struct, kw_only=True):
    """PROTOCOL 6.9: an answer of the server. Deployed servers list nothing."""

    conflicts: tuple[_Told, ...]
    next: str | None = None

    def reviews(self) -> tuple[Review, ...]:
        """What it lists."""
        return tuple(told.review() for told in self.conflicts)


pages: Final = msgspec.json.Decoder(Page)
_listing = msgspec.json.Decoder(Listing)


def keep(store: LocalStore, entries: Iterable[Review], at: int) -> None:
    """Keep what the server lists, for when it cannot be asked."""
    store.keep(**{SETTING: _encode(Listing(at=at, entries=tuple(entries)[:ENTRIES_MAX])).decode()})


def kept(store: LocalStore) -> Listing:
    """What it listed last."""
    text = store.setting(SETTING)
    try:
        return Listing() if text is None else _listing.decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StoreCorrupt(f"expected the list of what waits for a person in {store.path}; got another") from error


# --- what is open here --------------------------------------------------------------------------------------------


def standing(store: LocalStore) -> list[Review]:
    """What waits, less what was resolved here: what the server listed, then what it left open to this replica since."""
    listing = kept(store)
    last = store.setting("last_sync")
    synced = last is not None and int(last) > listing.at
    entries = {entry.id: entry for entry in listing.entries}
    for record in reversed(store.conflicts()):
        if record.strategy == FOR_REVIEW and record.when > listing.at:
            line = _Line(store, record.entity_id)
            entries = {entry.id: entry for entry in line.left_open(record.losers)} | entries
    found = []
    for entry in entries.values():
        line = _Line(store, entry.entity_id)
        if entry.theirs.version not in line.versions:  # else it was resolved here
            found.append(replace(entry, mine=line.newer(entry, synced=synced)))
    return found


class _Line:
    """What the visible row of an entity descends from, as far as that is known here."""

    def __init__(self, store: LocalStore, id_: str) -> None:
        self.rows = {one.copy.version: _entity.decode(one.copy.body) for one in store.history(id_)}
        self.parents = {version: entity.parent_versions for version, entity in self.rows.items()}
        now = store.get(id_)
        self.visible = None if now is None else _entity.decode(now.body)
        self.versions = set() if now is None else ancestors((now.version,), self.parents)

    def newer(self, entry: Review, *, synced: bool) -> Entity:
        """What stands: the visible row, unless that is one from before the list, which was made after the last sync."""
        here = self.visible
        if here is None or not (synced or entry.stood in self.versions):
            return entry.mine
        above = ancestors(entry.mine.parent_versions, self.parents)
        return entry.mine if here.version in above else here

    def left_open(self, losers: Iterable[str]) -> list[Review]:
        """What the server said in a sync that it leaves to a person."""
        entries = []
        for version in losers:
            theirs, mine = self.rows.get(version), self.visible
            if theirs is not None and mine is not None:
                above = ancestors(theirs.parent_versions, self.parents) & self.versions
                base = next((row for name, row in reversed(self.rows.items()) if name in above), None)
                id_ = entry_id(mine.id, version)
                entries.append(
                    Review(id=id_, entity_id=mine.id, mine=mine, theirs=theirs, base=base, stood=mine.version)
                )
        return entries


# --- deciding -----------------------------------------------------------------------------------------------------


def contested(entry: Review) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Both sides in one document, and the JSON pointers of what both changed, where it has what `mine` says.

    Without a common row nothing tells what either side changed, so everything that differs is contested as a whole.
    """
    says, pointers = woven(entry.base, entry.mine, entry.theirs)
    if says_deleted(entry.mine.content) != says_deleted(entry.theirs.content) and "/content" not in pointers:
        pointers = tuple(dict.fromkeys((*pointers, "/content/deleted")))
    return says, pointers


def resolution(
    entry: Review,
    take: Take,
    *,
    content: Mapping[str, Any] | None,
    name: str | None,
    patched: Iterable[str],
) -> Entity:
    """PROTOCOL 6.10: the row that follows both sides of `entry`, without its version and user.

    Args:
        take: what to start from.
        content, name: what stands instead.
        patched: the JSON pointers that `content` decides; all of it if it is empty.

    Raises:
        Contested: `take` is ``merge``, and not all of what both sides changed was said.
        RemoteProtocolError, TypeError: a value cannot be stored.
    """
    side = entry.theirs if take == "theirs" else entry.mine
    says = document(side)
    if take == "merge":
        says, pointers = contested(entry)
        said = {*patched, *(["/name"] if name is not None else [])}
        open_ = tuple(pointer for pointer in pointers if not any(_covers(one, pointer) for one in said))
        if open_:
            raise Contested(open_)
    source_type, source_original = says["source"]
    taken = replace(
        side,
        entity_type=says["entity_type"],
        name=says["name"],
        content=Raw(canonical(says["content"], trusted=True)),
        source_type=source_type,
        source_original=UNSET if source_original is None else source_original,
    )
    says = laid_over(taken, Value(content=content, name=name))
    return replace(
        taken,
        name=says["name"],
        content=Raw(canonical(says["content"], trusted=True)),
        parent_versions=tuple(sorted({entry.stood, entry.mine.version, entry.theirs.version})),
        checksum=None,
        merged=UNSET,
    )


def _covers(said: str, pointer: str) -> bool:
    return pointer == said or pointer.startswith(f"{said}/")


def pointers_of(patch: Mapping[str, Any], at: str = "/content") -> list[str]:
    """The JSON pointers that a patch (RFC 7386) sets."""
    found: list[str] = []
    for key, value in patch.items():
        pointer = f"{at}/{key.replace('~', '~0').replace('/', '~1')}"
        found += pointers_of(value, pointer) if isinstance(value, Mapping) and value else [pointer]
    return found


def latest(entry: Review) -> int:
    """The edit time of the later side, in microseconds; a resolution counts as made after it."""
    return max(edit_time(side.version) or 0 for side in (entry.mine, entry.theirs))
