"""What a preflight found, in one file that a rollout asks for. Read `against`.

The file is written last. It holds the SHA-256 of what it says and of every file that it speaks of, so that whatever was
changed since is noticed; who wants to lie can, as with every checksum, so its folder is its owner's only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import file_digest, sha256
from pathlib import Path
from shlex import quote
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from ..errors import InbetweeniesError, StoreError
from ..model import format_time
from ..stores.journal import fsync
from ..stores.placing import sync_folder, told
from ..stores.sqlite import border
from .backup import part_of, release
from .manifest import Mark

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
SNAPSHOT: Final = "snapshot.db"
SNAPSHOT_MANIFEST: Final = "snapshot.db.manifest.json"
EXPORT: Final = "export.jsonl"
API: Final = "api.json"
PERFORMANCE: Final = "performance.json"
DRILL: Final = "drill.json"
LAST_DRILL: Final = "last-drill.json"  # which a drill writes; the other one is what a preflight saw of it
ARTEFACTS: Final = (SNAPSHOT, SNAPSHOT_MANIFEST, EXPORT, API, PERFORMANCE, DRILL)
#: The steps of a preflight, in order.
STEPS: Final = ("disk", "snapshot", "integrity", "digest", "export", "api", "performance", "census", "drill")

HOUR_US: Final = 3600 * 1_000_000
FRESH_US: Final = HOUR_US  # a rollout is started with what is known now, not with what was known this morning
DRILL_FRESH_US: Final = 24 * HOUR_US
BYTES_MAX: Final = 64 * 2**20  # of a manifest: a quarter of a million graphs


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One step: what was found, and what to do if it has not passed. `figures` is the same for programs."""

    name: str
    passed: bool
    found: str
    advice: str = ""
    figures: dict[str, Any] = {}


class Artefact(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file beside the manifest."""

    name: str
    size: int
    sha256: str


class Checklist(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a preflight found.

    Attributes:
        format, release: of this, and which release made it.
        at: when it began, in microseconds since 1970; `made` is the same for people.
        database: where that was.
        graphs: where each log ended in the snapshot.
        sha256: of all the rest, in hexadecimal digits.
    """

    format: int
    release: str
    at: int
    made: str
    database: str
    graphs: tuple[Mark, ...]
    steps: tuple[Step, ...]
    artefacts: tuple[Artefact, ...]
    sha256: str = ""

    @property
    def passed(self) -> bool:
        """Whether every step there is was taken, and passed."""
        return tuple(step.name for step in self.steps) == STEPS and all(step.passed for step in self.steps)


class _Format(Struct):
    format: int


def folder_of(db: Path) -> Path:
    """Where preflights of a database are kept, if nothing else is said."""
    return db.with_name(f"{db.name}.preflight")


def command(db: Path, folder: Path | None = None) -> str:
    """What to type for a preflight."""
    out = "" if folder is None or folder == folder_of(db) else f" --out {quote(str(folder))}"
    return f"`inbetweenies preflight --db {quote(str(db))}{out}`"


def sealed(checklist: Checklist) -> Checklist:
    """With the SHA-256 of what it says."""
    bare = replace(checklist, sha256="")
    return replace(bare, sha256=sha256(msgspec.json.encode(bare)).hexdigest())


def encoded(checklist: Checklist) -> bytes:
    """The bytes of a manifest, for people as well: the only ones that say the same."""
    return msgspec.json.format(msgspec.json.encode(checklist), indent=2) + b"\n"


def artefact_of(file: Path) -> Artefact:
    """What a file is now. Raises `OSError`: it cannot be read."""
    with file.open("rb") as opened:
        return Artefact(name=file.name, size=file.stat().st_size, sha256=file_digest(opened, "sha256").hexdigest())


def read(path: Path) -> Checklist:
    """The manifest in a file, as it was written.

    Raises:
        OSError: there is none, or it cannot be read.
        StoreError: it is none, or of another format, or was changed.
    """
    with path.open("rb") as file:
        data = file.read(BYTES_MAX + 1)
    try:
        format_ = msgspec.json.decode(data, type=_Format).format
        if format_ != FORMAT:
            raise StoreError(f"expected a manifest of format {FORMAT} in {path}; got {format_}, of another release")
        found = msgspec.json.decode(data, type=Checklist)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"expected the manifest of a preflight in {path}; got something else: {error}") from None
    if sealed(found) != found or encoded(found) != data:
        raise StoreError(f"expected {path} as it was written; it was changed since")
    return found


# --- may a rollout start with it ----------------------------------------------------------------------------------


def against(folder: Path, db: Path, *, now: int) -> tuple[str, ...]:
    """What speaks against starting a rollout of the database at `db` with the preflight in `folder`, in words; nothing
    if all is well. All that the manifest speaks of is read."""
    again = f"run {command(db, folder)}"
    try:
        checklist = read(folder / MANIFEST)
        found = [*_steps(checklist), *_age(checklist, now), *_files(checklist, folder), *_place(checklist, db)]
    except FileNotFoundError:
        found = [f"expected a preflight in {folder}; got none"]
    except (InbetweeniesError, OSError) as error:
        found = [str(error)]
    return (*found[:-1], f"{found[-1]}: {again}") if found else ()


def _steps(checklist: Checklist) -> Iterator[str]:
    if tuple(step.name for step in checklist.steps) != STEPS:
        yield f"expected the steps {', '.join(STEPS)} in the preflight; got others"
    yield from (f"its step {step.name} failed" for step in checklist.steps if not step.passed)
    if checklist.release != release():
        yield f"expected a preflight by release {release()}; got one by {checklist.release}"


def _age(checklist: Checklist, now: int) -> Iterator[str]:
    age = now - checklist.at
    if age < 0:
        yield f"expected a preflight of the last hour; got one of {checklist.made}, which is yet to come"
    elif age >= FRESH_US:
        yield f"expected a preflight of the last hour; got one that is {age // 60_000_000} minutes old"
    if checklist.made != format_time(checklist.at):
        yield f"expected a preflight to say once when it was made; got {checklist.made} as well"


def _files(checklist: Checklist, folder: Path) -> Iterator[str]:
    if tuple(artefact.name for artefact in checklist.artefacts) != ARTEFACTS:
        yield f"expected a preflight that speaks of {', '.join(ARTEFACTS)}; got other files"
        return
    for artefact in checklist.artefacts:
        file = folder / artefact.name
        if not file.is_file():
            yield f"expected {file}; got no file"
        elif artefact_of(file) != artefact:
            yield f"expected {file} as the preflight left it; it was changed since"


def _place(checklist: Checklist, db: Path) -> Iterator[str]:
    """The log of each graph must begin with the one that was looked at."""
    if checklist.database != str(db.resolve()):
        yield f"expected a preflight of {db.resolve()}; got one of {checklist.database}"
        return
    with border("read the database"), closing(_connect(db)) as connection:
        connection.execute("BEGIN")
        graphs = {name: (key, *known) for name, key, *known in connection.execute(_GRAPHS)}
        for mark in checklist.graphs:
            key, *known = graphs.get(mark.graph, (None,))
            if known != [mark.birth, mark.epoch]:
                yield f"expected graph {mark.graph} as it was looked at; got another one of that name, or none"
            elif mark.seq and connection.execute(_CHAIN, (key, mark.seq)).fetchone() != (mark.chain,):
                yield f"expected graph {mark.graph} to go on from row {mark.seq}, as it was looked at; it was set back"


_GRAPHS: Final = "SELECT name, graph, birth, epoch FROM graphs"
_CHAIN: Final = "SELECT lower(hex(chain)) FROM log WHERE graph = ? AND seq = ?"


def _connect(db: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{db.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)


# --- the drill ----------------------------------------------------------------------------------------------------


class Drilled(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of a drill: when it ended, in microseconds, whether it passed, and which release held it on what."""

    at: int
    passed: bool
    release: str
    database: str
    seconds: float | None = None


def kept_drill(db: Path) -> Path:
    """Where that is kept of a database."""
    return folder_of(db) / LAST_DRILL


def keep_drill(db: Path, *, passed: bool, now: int, seconds: float | None = None) -> Path:
    """Keep what a drill on a copy of the database at `db` came to, where its preflight looks for it.

    Raises:
        StoreError: it cannot be written.
    """
    drilled = Drilled(at=now, passed=passed, release=release(), database=str(db.resolve()), seconds=seconds)
    file = kept_drill(db)
    with told(f"make {file.parent}"):
        file.parent.mkdir(mode=0o700, exist_ok=True)
    put(file, msgspec.json.encode(drilled) + b"\n")
    return file


def drill_in(db: Path) -> tuple[Drilled, bytes]:
    """What the last drill on a copy of this database came to, and the bytes of that.

    Raises:
        OSError: there was none, or it cannot be read.
        StoreError: it is something else.
    """
    file = kept_drill(db)
    data = file.read_bytes()
    try:
        return msgspec.json.decode(data, type=Drilled), data
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"expected what a drill came to in {file}; got something else: {error}") from None


def put(file: Path, data: bytes) -> None:
    """Write a file whole or not at all, in the place of the one that is there.

    Raises:
        StoreError: it cannot be written.
    """
    with told(f"write {file}"), part_of(file) as part:
        with part.open("wb") as opened:
            opened.write(data)
            opened.flush()
            fsync(opened.fileno())
        part.replace(file)
        sync_folder(file.parent)


# --- files that say themselves whether they were changed ------------------------------------------------------------


class _Sealed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    sha256: str
    content: Raw


def sealed_json(content: Any) -> bytes:
    """A file of JSON that says what its SHA-256 is."""
    body = msgspec.json.encode(content, order="deterministic")
    return msgspec.json.encode(_Sealed(sha256=sha256(body).hexdigest(), content=Raw(body))) + b"\n"


def unsealed_json(data: bytes) -> Any:
    """What `sealed_json` was given. Raises `StoreError`: this was changed since."""
    try:
        found = msgspec.json.decode(data, type=_Sealed)
        if sha256(bytes(found.content)).hexdigest() == found.sha256:
            return msgspec.json.decode(found.content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"expected what a preflight has written; got something else: {error}") from None
    raise StoreError("expected what a preflight has written; it was changed since")
