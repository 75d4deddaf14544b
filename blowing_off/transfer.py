"""Files into a replica and out of it: the graph as JSON Lines, and what `homekit.read` found.

A line of an export is one row, whole: the fields of PROTOCOL 3.1 or 3.5, after `kind` and whether the row is `current`.
It is read back under the version it has, so that a row is the same row wherever it comes back from, and reading a file
twice is reading it once. A file never undoes an edit: what it holds that is older than what is here goes into the
history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, Final, Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType
from msgspec.structs import replace

from inbetweenies.errors import RemoteProtocolError
from inbetweenies.intake import check_edge, check_entity
from inbetweenies.limits import LIMITS, canonical, checked_decode, gate
from inbetweenies.model import SOURCE_TYPES, Entity, Refused, Relationship, edge_version, edit_time
from inbetweenies.replica import Copy, copy_of

from .client import BlowingOffClient
from .homekit import Draft, DraftLink, Import
from .store import LocalStore
from .values import CONTENT_LIMITS

LINE_BYTES_MAX: Final = LIMITS.entity_bytes_max + 4096  # a row, its kind, and white space of a person's editor
BATCH: Final = 100  # rows of one transaction: others who write to this store wait for less than a second

Tick = Callable[[int, int | None], None]
Outcome = Literal["imported", "updated", "unchanged", "older", "removed"]


class Fault(Struct, frozen=True, kw_only=True):
    """A line that could not be taken: its number from 1, and what was expected and got."""

    line: int
    reason: str


class Tally(Struct, kw_only=True):
    """What became of the things and links of a file.

    Attributes:
        imported: they were not here.
        updated: they were, and the file says something newer.
        unchanged: the file says nothing new.
        older: the file says something older, which is in the history now; links have none, and stay as they are.
        removed: they were removed here, and stay so.
    """

    imported: int = 0
    updated: int = 0
    unchanged: int = 0
    older: int = 0
    removed: int = 0

    def count(self, outcome: Outcome) -> None:
        """One more of these."""
        setattr(self, outcome, getattr(self, outcome) + 1)

    def counts(self) -> dict[str, int]:
        """All of it, by name."""
        return msgspec.structs.asdict(self)


# --- out ----------------------------------------------------------------------------------------------------------


def export_lines(store: LocalStore, *, everything: bool = False) -> Iterator[bytes]:
    """What is visible, a row a line, things before links; with `everything`, what is deleted or history too."""
    for copy in store.find(deleted=everything):
        if everything:
            rows = sorted(store.history(copy.id), key=lambda held: held.current)  # stable: as they came, current last
            yield from (_line_of(held.copy, current=held.current) for held in rows)
        else:
            yield _line_of(copy)
    yield from map(_line_of, store.links(deleted=everything))


def _line_of(copy: Copy, *, current: bool = True) -> bytes:
    kind = b"entity" if copy.kind == "entity" else b"relationship"
    return b'{"kind":"%s","current":%s,%s\n' % (kind, b"true" if current else b"false", copy.body[1:])


# --- lines in -----------------------------------------------------------------------------------------------------


class _Told(Struct):
    kind: str
    current: bool = True


_TOLD: Final = msgspec.json.Decoder(_Told)
_ENTITY: Final = msgspec.json.Decoder(Entity)
_EDGE: Final = msgspec.json.Decoder(Relationship)
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


class Line(Struct, frozen=True, kw_only=True):
    """A row from a file: the number of its line, and whether it was current where the file was made."""

    number: int
    copy: Copy
    current: bool


def read_lines(stream: IO[bytes]) -> Iterator[Line | Fault]:
    """The rows of an export. A line that is none is told, and costs no other."""
    number = 0
    while text := stream.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(text) > LINE_BYTES_MAX:
            while text and not text.endswith(b"\n"):
                text = stream.readline(LINE_BYTES_MAX)
            yield Fault(line=number, reason=f"expected a line of at most {LINE_BYTES_MAX} bytes; got a longer one")
            continue
        if number == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")  # some editors start a file with a byte order mark
        if not text.strip():
            continue
        try:
            yield _read_line(number, text)
        except RemoteProtocolError as error:
            # A key of the content stands as "..." in the pointer; only our own fields are named.
            at = f"{error.pointer[1:].partition('/')[0]}: " if error.pointer else ""
            yield Fault(line=number, reason=f"{at}expected {error.expected}; got {error.got}".replace("`", ""))


def _read_line(number: int, text: bytes) -> Line:
    gate(text)
    told = checked_decode(_TOLD, text)
    if told.kind == "entity":
        entity = checked_decode(_ENTITY, text)
        entity = replace(entity, content=_spelled(entity.content, "/content"), entity_type=entity.entity_type.lower())
        copy = copy_of(_sourced(entity))
        _storable(check_entity(entity, "", LIMITS))
    elif told.kind == "relationship":
        edge = checked_decode(_EDGE, text)
        edge = replace(
            edge,
            properties=_spelled(edge.properties, "/properties"),
            relationship_type=edge.relationship_type.lower(),
        )
        copy = copy_of(edge if edge.version else replace(edge, version=edge_version(edge)))
        _storable(check_edge(edge, "", LIMITS))
    else:
        raise _wrong("entity or relationship", "another word", "/kind")
    if len(copy.body) > LIMITS.entity_bytes_max:
        raise _wrong(f"at most {LIMITS.entity_bytes_max} bytes", f"{len(copy.body)}")
    return Line(number=number, copy=copy, current=told.current)


def _spelled(value: Raw, pointer: str) -> Raw:
    """The one spelling in which an object is stored, sent and hashed, whatever a person's editor made of it."""
    try:
        gate(bytes(value), CONTENT_LIMITS)
        return Raw(canonical(checked_decode(_OBJECT, bytes(value)), trusted=True))
    except RemoteProtocolError as error:
        raise _wrong(error.expected, error.got, pointer + error.pointer) from None


def _sourced(entity: Entity) -> Entity:
    """As every server would keep it (PROTOCOL 3.4), or the two would hold different rows under one version."""
    source = entity.source_type.lower()
    if source in SOURCE_TYPES:
        return replace(entity, source_type=source)
    original: str | UnsetType = entity.source_type if entity.source_original is UNSET else entity.source_original
    return replace(entity, source_type="imported", source_original=original)


def _storable(refused: Refused | None) -> None:
    if refused is not None:
        expected, _, got = refused.detail.removeprefix("expected ").partition("; got ")
        raise _wrong(expected, got or "another", refused.pointer.removeprefix("/entity"))


def _wrong(expected: str, got: str, pointer: str = "") -> RemoteProtocolError:
    return RemoteProtocolError(code="malformed_line", expected=expected, got=got, pointer=pointer)


async def bring_lines(store: LocalStore, lines: Iterable[Line], tick: Tick) -> tuple[Tally, list[Fault]]:
    """Take the rows of an export in: things first, then the links between them."""
    things: dict[str, list[Line]] = {}
    edges: list[Line] = []
    for line in lines:
        if line.copy.kind == "edge":
            edges.append(line)
        else:
            things.setdefault(line.copy.id, []).append(line)
    tally, faults = Tally(), list[Fault]()
    work = [*things.values(), *([edge] for edge in edges)]
    for done, batch in _batches(work):
        with store.transaction():
            for group in batch:
                bring = _bring_entity if group[0].copy.kind == "entity" else _bring_edge
                if outcome := bring(store, group, faults):
                    tally.count(outcome)
        tick(done, len(work))
        await asyncio.sleep(0)  # or Ctrl-C would have to wait for the end
    return tally, sorted(faults, key=lambda fault: fault.line)


def _bring_entity(store: LocalStore, group: Sequence[Line], faults: list[Fault]) -> Outcome | None:
    """The rows of one thing. None if none of them could be taken."""
    id_ = group[0].copy.id
    here = store.get(id_)
    held = {row.copy.version: row.copy.hash for row in store.history(id_)}
    new: list[Line] = []
    understood = 0
    # Stable: the order of the file, in which parents come before children, and the current row last.
    for line in sorted(group, key=lambda line: line.current):
        hash_ = held.get(line.copy.version)
        if hash_ is None:
            held[line.copy.version] = line.copy.hash
            new.append(line)
        elif hash_ != line.copy.hash:
            reason = "expected the row that is known under this version; got another, and a row never changes"
            faults.append(Fault(line=line.number, reason=reason))
            continue
        understood += 1
    if not new:
        return "unchanged" if understood else None
    copies = [line.copy for line in new]
    if here is None:
        store.write(copies)
        return "imported"
    parents = {parent for copy in copies for parent in _ENTITY.decode(copy.body).parent_versions}
    # PROTOCOL 6.2: only what goes on from a tombstone brings a thing back.
    later = not here.deleted and _when(copies[-1]) > _when(here)
    newer = new[-1].current and (here.version in parents or later)
    # A row that is written becomes the visible one. What is here stays so unless the file goes on from it; the server
    # tells what descends from what, and merges.
    store.write(copies if newer else [*copies, here])
    return "updated" if newer else "older"


def _bring_edge(store: LocalStore, group: Sequence[Line], faults: list[Fault]) -> Outcome | None:
    """One link. Of an edge, the value that was said last stands (PROTOCOL 3.5)."""
    line = group[0]
    edge = _EDGE.decode(line.copy.body)
    ends = [store.get(edge.from_entity_id), store.get(edge.to_entity_id)]
    if ends[0] is None or ends[1] is None:
        missing = "from_entity_id" if ends[0] is None else "to_entity_id"
        reason = f"{missing}: expected the id of a thing that is here or in the file; got another"
        faults.append(Fault(line=line.number, reason=reason))
        return None
    here = store.visible("edge", edge.id)
    if here is not None:
        if _meaning(_EDGE.decode(here.body)) == _meaning(edge):
            return "unchanged"
        if _when(here) >= _when(line.copy):
            return "older"
    if not all(
        any(row.copy.version == version for row in store.history(end.id))
        for end, version in ((ends[0], edge.from_entity_version), (ends[1], edge.to_entity_version))
    ):
        # A server takes an edge only between rows that it knows (PROTOCOL 3.5). The value says what it said, from the
        # rows that are here; its name follows from it, so that whoever reads this file makes the same one.
        ended = replace(edge, from_entity_version=ends[0].version, to_entity_version=ends[1].version, version="")
        edge = replace(ended, version=edge_version(ended))
    store.write([copy_of(edge)])
    return "imported" if here is None else "updated"


def _when(copy: Copy) -> tuple[int, str]:
    return (edit_time(copy.version) or 0, copy.version)


def _meaning(edge: Relationship) -> tuple[str, str, str, bytes]:
    return (edge.from_entity_id, edge.to_entity_id, edge.relationship_type, bytes(edge.properties))


def _batches(work: Sequence[Any]) -> Iterator[tuple[int, Sequence[Any]]]:
    """`work` in pieces of `BATCH`, each with how much is done after it."""
    for start in range(0, len(work), BATCH):
        batch = work[start : start + BATCH]
        yield start + len(batch), batch


# --- HomeKit in ---------------------------------------------------------------------------------------------------


async def bring_homekit(
    client: BlowingOffClient, found: Iterable[Import], tick: Tick, *, home_id: str | None = None
) -> Tally:
    """Take in what HomeKit databases hold: a thing that is here already gets only what they say differently.

    What people added to a thing stays, and so does a name that they changed. What they removed stays removed, but for
    links to the home `home_id`, which is asked for now.
    """
    tally = Tally()
    work: list[Draft | DraftLink] = []
    for one in found:
        work += [*one.drafts, *one.links]
    for done, batch in _batches(work):
        with client.store.transaction():
            for item in batch:
                if isinstance(item, Draft):
                    tally.count(await _bring_draft(client, item))
                else:
                    await _bring_link(client, item, restore=item.to_id == home_id)
        tick(done, len(work))
        await asyncio.sleep(0)  # or Ctrl-C would have to wait for the end
    return tally


async def _bring_draft(client: BlowingOffClient, draft: Draft) -> Outcome:
    here = client.store.get(draft.id)
    if here is None:
        await client.add(draft.entity_type, draft.name, draft.content, id=draft.id, source_type=draft.source_type)
        return "imported"
    if here.deleted:
        return "removed"
    before = _ENTITY.decode(here.body)
    # A name that this thing had before was given up by somebody since; an import must not bring it back.
    known = {row.copy.name for row in client.store.history(draft.id)}
    after = await client.change(
        draft.id,
        name=before.name if draft.name in known else draft.name,
        content=merged(_OBJECT.decode(before.content), draft.content),
    )
    return "unchanged" if after.version == before.version else "updated"


async def _bring_link(client: BlowingOffClient, link: DraftLink, *, restore: bool) -> None:
    if any((end := client.store.get(id_)) is None or end.deleted for id_ in (link.from_id, link.to_id)):
        return
    here = client.store.visible("edge", link.id)
    if here is not None:
        if here.deleted and not restore:
            return
        wanted = (link.from_id, link.to_id, link.relationship_type, canonical(link.properties))
        if _meaning(_EDGE.decode(here.body)) == wanted:
            return
    await client.link(link.from_id, link.to_id, link.relationship_type, link.properties, id=link.id)


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `under`, object by object; what only `under` has stays."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
