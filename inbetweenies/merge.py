"""Who wins: the ladder of PROTOCOL 6 as pure functions over two rows and, where there is one, their common ancestor.

Never a two-way merge: without a common ancestor nothing tells "deleted" from "never there", so the whole row of the
later edit wins and the other is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from heapq import heappop, heappush
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import force_setattr

from .errors import LocalProtocolError
from .limits import LIMITS, Limits, canonical
from .model import Entity, Row, body_of, edit_time, format_time, is_deleted

CLAMP_US: Final = 5 * 60 * 1_000_000  # an honest clock is seldom further ahead than this
TIE_US: Final = 1_000_000  # the deployed rule: edits within a second are simultaneous

TOMBSTONE_WINS: Final = "a tombstone wins over a concurrent edit"
VERSION_COLLISION: Final = "the same version was already taken by other content"
FOR_REVIEW: Final = "left to a person; both are kept until somebody resolves it"
BY_RULE: Final = "decided by the rule of its type"

#: What new content may hold, so that a message around it is still one (PROTOCOL 2.5): it puts five levels there.
VALUE_LIMITS: Final = Limits(depth_max=LIMITS.depth_max - 5, nodes_max=LIMITS.nodes_max - 64)

_parse = msgspec.json.decode
_NO_CONTROLS: Final = dict.fromkeys([*range(32), 127], "?")


class Verdict(Enum):
    """What a rule says of a contest: the side that stands, that a person decides, or that the next rung does."""

    MINE = "mine"
    THEIRS = "theirs"
    REVIEW = "review"
    PASS = "pass"  # noqa: S105 - the name of a verdict


class Value(Struct, frozen=True, kw_only=True):
    """A merged value that a rule made: `content` as a JSON object, `name`; what is None stays as in ``mine``."""

    content: Mapping[str, Any] | None = None
    name: str | None = None


#: PROTOCOL 6.8: a rule of an entity type, a pure function of ``(base, mine, theirs)``: the newest row that both sides
#: descend from, if one is held, the row that is current, and the one that was pushed. It may be called again for the
#: same rows at any time, and must then say the same.
Rule: TypeAlias = Callable[[Entity | None, Entity, Entity], Verdict | Value]


def manual(_base: Entity | None, _mine: Entity, _theirs: Entity) -> Verdict:
    """The rule of types of which a person decides every contest."""
    return Verdict.REVIEW


class Policy(Struct, frozen=True, kw_only=True):
    """PROTOCOL 6.1: which rungs are on.

    Attributes:
        three_way: off, and without rules, the ladder is exactly the deployed rule.
        rules: entity type -> the `Rule` of it, such as `manual`.

    Raises:
        LocalProtocolError: a rule cannot be called, or a type is named twice in different cases.
    """

    three_way: bool = True
    rules: Mapping[str, Rule] = {}

    def __post_init__(self) -> None:
        folded = {type_.lower(): rule for type_, rule in self.rules.items()}
        if len(folded) < len(self.rules) or not all(map(callable, folded.values())):
            raise LocalProtocolError("expected one rule for each entity type, a function; got something else")
        force_setattr(self, "rules", folded)

    @classmethod
    def strict(cls) -> Policy:
        """Exactly the rule of deployed v2 servers: rungs 2 and 3 are off."""
        return cls(three_way=False)


class Side(Struct, frozen=True, kw_only=True):
    """One contender: its row version, its edit time in microseconds, and whether that time is its own."""

    version: str
    edit: int
    timed: bool


class Merged(Struct, frozen=True, kw_only=True):
    """The outcome of a three-way merge: the row that says both, and the JSON pointers at which something lost."""

    entity: Entity
    contested: tuple[str, ...]


def arrival(version: str, now: int) -> tuple[int, bool]:
    """PROTOCOL 6.4: the edit time that counts for a row arriving at `now`, and whether the version named it.

    Clamped once, when it arrives: a clamp taken anew at each comparison would let a row from 2099 win for ever.
    """
    edit = edit_time(version)
    if edit is None:
        return now, False
    return min(edit, now + CLAMP_US), True


def side_of(row: Row) -> Side:
    """A stored row as a contender."""
    return Side(version=row.version, edit=row.edit, timed=row.timed)


def later(local: Side, remote: Side) -> tuple[bool, str]:
    """PROTOCOL 6.5: whether the remote side wins, and the reason in the deployed server's words."""
    if abs(local.edit - remote.edit) >= TIE_US:
        if remote.edit > local.edit:
            return True, "remote has newer timestamp"
        return False, "local has newer timestamp"
    # A time that the server made up must not beat one that a person's clock gave.
    wins = remote.timed if local.timed != remote.timed else remote.version > local.version
    return wins, f"timestamps within 1s, {'remote' if wins else 'local'} has greater version"


def ancestors(start: Iterable[str], history: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Every version named by walking `history` (version -> its parents) upwards from `start`, start included."""
    seen: set[str] = set()
    todo = list(start)
    while todo:
        version = todo.pop()
        if version not in seen:
            seen.add(version)
            todo.extend(history.get(version, ()))
    return seen


def parents_first(rows: Sequence[tuple[str, Iterable[str]]]) -> list[int]:
    """PROTOCOL 4.6: the order in which to take rows, each a version and its parents: next is always the first of those
    that no other one waiting is a parent of. In a circle of parents nobody is; then the first one waiting.

    Linear, for a push may hold 80,000 rows of one id.
    """
    waiting = Counter(version for version, _ in rows)
    above = [{name for name in parents if name in waiting} - {version} for version, parents in rows]
    below: dict[str, list[int]] = {}
    for index, parents in enumerate(above):
        for version in parents:
            below.setdefault(version, []).append(index)
    free = [index for index, parents in enumerate(above) if not parents]
    taken: dict[int, None] = {}
    in_turn = iter(range(len(rows)))
    while len(taken) < len(rows):
        index = heappop(free) if free else next(in_turn)
        if index in taken:
            continue
        taken[index] = None
        version = rows[index][0]
        waiting[version] -= 1
        for child in below.get(version, ()) if not waiting[version] else ():
            above[child].discard(version)
            if not above[child]:
                heappush(free, child)
    return list(taken)


def merge_base(above: Iterable[str], rows: Mapping[str, Row], parents: Mapping[str, tuple[str, ...]]) -> Row | None:
    """PROTOCOL 6.3: what both sides are compared with: the newest held row of those `above` the pushed one, which are
    its `ancestors`; `parents` has those of each row.

    Not only one that the current row descends from too: what the pushed row's own ancestors lost was decided when they
    came, and must not be fought over again by each edit that follows them. Nor one that came after a row that descends
    from it: of that row nothing would be known then. None if no ancestor is held.
    """
    known = {version: rows[version] for version in above if version in rows}
    followed = {parent for version in known for parent in parents[version] if parent != version}
    # In a circle of parents each is followed by another.
    ends = [row for version, row in known.items() if version not in followed] or known.values()
    return max(ends, key=lambda row: row.seq, default=None)


def shared(
    above: Iterable[str],
    over_current: set[str],
    rows: Mapping[str, Row],
    parents: Mapping[str, tuple[str, ...]],
) -> Row | None:
    """PROTOCOL 6.8: the `merge_base` of what both sides of a contest descend from; None if none of that is held."""
    return merge_base(over_current.intersection(above), rows, parents)


def nothing_new(
    entity: Entity,
    above: Iterable[str],
    base: Row | None,
    rows: Mapping[str, Row],
    parents: Mapping[str, tuple[str, ...]],
) -> bool:
    """PROTOCOL 6.9: whether a row says what both sides had before them, `base`, and what its writer had: the newest
    held row of those `above` it. Who takes back what waits does say something."""
    if base is None or not alike(base.entity(), entity):
        return False
    own = merge_base(above, rows, parents) or base
    return own is base or alike(own.entity(), entity)


_MISSING: Final = object()


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values: unlike Python's, ``1``, ``1.0`` and ``true`` are three different values."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _merge(base: Any, local: Any, remote: Any, remote_wins: bool, pointer: str, contested: list[str]) -> Any:
    """One path of PROTOCOL 6.3; lists are atomic. `_MISSING` is the value of a key that is not there."""
    if same(local, remote) or same(remote, base):
        return local
    if same(local, base):
        return remote
    if isinstance(local, dict) and isinstance(remote, dict):
        old = base if isinstance(base, dict) else {}
        merged = {}
        for key in sorted(local.keys() | remote.keys() | old.keys()):
            value = _merge(
                old.get(key, _MISSING),
                local.get(key, _MISSING),
                remote.get(key, _MISSING),
                remote_wins,
                f"{pointer}/{_escape(key)}",
                contested,
            )
            if value is not _MISSING:
                merged[key] = value
        return merged
    contested.append(pointer)
    return remote if remote_wins else local


def document(entity: Entity) -> dict[str, Any]:
    """The part of an entity that people edit, as one JSON document."""
    original = None if entity.source_original is UNSET else entity.source_original
    return {
        "content": _parse(entity.content),
        "entity_type": entity.entity_type,
        "name": entity.name,
        # The two say one thing together, so they are won or lost together.
        "source": [entity.source_type, original],
    }


def woven(base: Entity | None, mine: Entity, theirs: Entity) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Both edits since `base` in one `document`, and the JSON pointers that both changed, where it says what `mine`
    does. Without a base all that differs is contested, each part of a document as a whole."""
    ours, other = document(mine), document(theirs)
    if base is None:
        return ours, tuple(f"/{part}" for part, value in ours.items() if not same(value, other[part]))
    contested: list[str] = []
    merged: dict[str, Any] = _merge(document(base), ours, other, False, "", contested)
    return merged, tuple(contested)


def three_way(base: Entity, local: Entity, remote: Entity, *, here: Side, there: Side) -> Merged:
    """PROTOCOL 6.3, 6.6: both edits since `base` in one row; where both changed a path, the later edit wins it.

    The row's version is a function of its parents, so any retry and any second server makes the same row.
    """
    remote_wins, _ = later(here, there)
    contested: list[str] = []
    ours, theirs = document(local), document(remote)
    merged = _merge(document(base), ours, theirs, remote_wins, "", contested)
    writer = (remote if remote_wins else local).user_id
    entity = _joined(merged, local, remote, version=merge_version(here, there, writer), writer=writer)
    return Merged(entity=entity, contested=tuple(contested))


def _joined(says: Mapping[str, Any], local: Entity, remote: Entity, *, version: str, writer: str) -> Entity:
    """PROTOCOL 6.6: the row in which two become one, saying the document `says`."""
    source_type, source_original = says["source"]
    content = Raw(canonical(says["content"], trusted=True))
    # A checksum speaks of one content; content made of two has none.
    checksum = None
    for side in (local, remote):
        if content == side.content:
            checksum = side.checksum
    return Entity(
        id=local.id,
        version=version,
        entity_type=says["entity_type"],
        name=says["name"],
        content=content,
        source_type=source_type,
        user_id=writer,
        parent_versions=tuple(sorted((local.version, remote.version))),
        checksum=checksum,
        merged=True,
        source_original=UNSET if source_original is None else source_original,
    )


def merge_version(here: Side, there: Side, writer: str, says: bytes = b"") -> str:
    """PROTOCOL 6.6: ``{latest parent's edit time}-000000-{writer}.m{12 hex of the sorted parents}``; of what is not
    a function of the parents alone, of what the row `says` too."""
    parents = "\0".join(sorted((here.version, there.version)))
    # The time as written, not as clamped on arrival, which another server would have clamped otherwise.
    written = [edit_time(side.version) for side in (here, there)]
    latest = max(side.edit if edit is None else edit for side, edit in zip((here, there), written, strict=True))
    stamp = blake2b(parents.encode() + b"\0\0" * bool(says) + says, digest_size=6).hexdigest()
    # A user is a label of any kind; a version is a name, and this one must pass wherever its row is sent to.
    return f"{format_time(latest)}-000000-{writer[:64].translate(_NO_CONTROLS)}.m{stamp}"


def alike(a: Entity, b: Entity) -> bool:
    """Whether two rows say the same, whoever wrote them and whenever."""
    return same(document(a), document(b))


# --- rung 2: the rules of those who run a server ------------------------------------------------------------------


class Ruling(Struct, frozen=True, kw_only=True):
    """What the rule of a type made of a contest: with MINE, THEIRS and merged values the row that says so. `fault` is
    why a rule was not heeded."""

    verdict: Verdict = Verdict.PASS
    entity: Entity | None = None
    fault: str = ""


def ruled(
    policy: Policy, base: Entity | None, mine: Entity, theirs: Entity, *, here: Side, there: Side, bytes_max: int
) -> Ruling:
    """PROTOCOL 6.8: ask the rule of the type of `mine`; there is one.

    Whatever a rule does wrong, the contest goes on to the next rung: no write is lost over it.
    """
    try:
        said = policy.rules[mine.entity_type](base, mine, theirs)
        if said is Verdict.PASS or said is Verdict.REVIEW:
            return Ruling(verdict=said)
        entity = _decided(said, mine, theirs, here, there)
        size = len(body_of(entity))
    except Exception as error:  # noqa: BLE001 - it is somebody else's code, and may raise anything
        return Ruling(fault=type(error).__name__)
    if size > bytes_max:
        return Ruling(fault=f"a row of {size} bytes")
    return Ruling(verdict=said if isinstance(said, Verdict) else Verdict.MINE, entity=entity)


def _decided(said: Verdict | Value, mine: Entity, theirs: Entity, here: Side, there: Side) -> Entity:
    """The row that says what a rule said. Raises what a bad value makes it raise."""
    if said is Verdict.MINE or said is Verdict.THEIRS:
        side = mine if said is Verdict.MINE else theirs
        says, writer = document(side), side.user_id
    elif isinstance(said, Value):
        says = laid_over(mine, said)
        writer = (theirs if later(here, there)[0] else mine).user_id
        if is_deleted(says["content"]):
            raise ValueError("expected a value that is not deleted; got one that is")
    else:
        raise TypeError(f"expected a Verdict or a Value; got {type(said).__name__}")
    # What a rule says may change with the rule, and what was said under another one must not share its version.
    version = merge_version(here, there, writer, canonical(says, trusted=True))
    return _joined(says, mine, theirs, version=version, writer=writer)


def laid_over(entity: Entity, value: Value) -> dict[str, Any]:
    """The `document` of `entity` with what `value` gives.

    Raises:
        RemoteProtocolError, TypeError, ValueError: it is nothing that a row can hold.
    """
    says = document(entity)
    if value.content is not None:
        says["content"] = _parse(canonical(dict(value.content), limits=VALUE_LIMITS))
    if value.name is not None:
        says["name"] = "" + value.name  # a rule is somebody else's code: what is no text fails here
    return says
