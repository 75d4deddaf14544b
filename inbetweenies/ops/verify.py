"""Is this backup what it was when it was made, and is that a sound database?

Read `check`. The file is opened as one that nobody changes, so that nothing is written beside it and no leftover is
read. What is believed is computed from the rows: their hashes, the chain of each log and the digest of what is current.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import file_digest
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Literal

from msgspec import Struct

from ..errors import StoreCorrupt, StoreError
from ..model import DIGEST_BITS, next_chain, row_hash
from ..stores.schema import FOREVER
from .manifest import Foreign, Manifest, Mark, Newer, manifest_of, marks, read, schema_of

#: What a backup is, the first that applies: there is no file; it is shorter than it was; it is no database of ours; it
#: is one of a newer release; it is damaged; it has no manifest that can be read; its manifest says something else of
#: its graphs; something else was changed in it, or in what the manifest says of its bytes; it is as it was.
Kind = Literal["missing", "truncated", "foreign", "newer", "corrupt", "unfinished", "lying", "altered", "good"]

_ROWS: Final = "SELECT graph, seq, kind, until, hash, chain, body FROM log ORDER BY graph, seq"
_HEADS: Final = "SELECT graph, name, seq, chain, digest FROM graphs"
_TOLD_MAX: Final = 10  # of the problems of one kind


class Verdict(Struct, frozen=True, kw_only=True):
    """What a backup is, and why. `manifest` is None where none can be read."""

    path: str
    kind: Kind
    problems: tuple[str, ...] = ()
    manifest: Manifest | None = None

    @property
    def good(self) -> bool:
        return self.kind == "good"


class BackupRefused(StoreError):
    """A backup is not what it should be.

    Attributes:
        verdict: what it is.
    """

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        why = "; ".join(verdict.problems)
        super().__init__(f"expected a good backup at {verdict.path}; it is {verdict.kind}: {why}")


def verify(path: str | os.PathLike[str]) -> Verdict:
    """What the backup at `path` is, with its manifest beside it.

    Raises:
        OSError: it cannot be read, though it is there.
    """
    file = Path(path)
    try:
        manifest: Manifest | StoreError = read(manifest_of(file))
    except FileNotFoundError:
        manifest = StoreError(f"expected its manifest at {manifest_of(file)}; got no file: it was never finished")
    except StoreError as error:
        manifest = error
    return check(file, manifest)


def check(file: Path, manifest: Manifest | StoreError) -> Verdict:
    """What a file is for which this manifest was made; or for which there is none, for the reason given."""
    known = manifest if isinstance(manifest, Manifest) else None

    def verdict(kind: Kind, *problems: str) -> Verdict:
        return Verdict(path=str(file), kind=kind, problems=problems[:_TOLD_MAX], manifest=known)

    try:
        size = file.stat().st_size
    except FileNotFoundError:
        return verdict("missing", "expected a file; got none")
    if known is not None and size < known.size:
        return verdict("truncated", f"expected {known.size} bytes; got {size}")
    if isinstance(manifest, Newer):
        return verdict("newer", str(manifest))
    if known is None and file.with_name(f"{file.name}-wal").exists():
        # A database that is in use changes while it is read, and looks damaged.
        return verdict("unfinished", str(manifest), "it is in use, see what is beside it: make a backup of it")
    try:
        found = inspect(file)
    except Foreign as error:
        return verdict("foreign", str(error))
    except Newer as error:
        return verdict("newer", str(error))
    except Damaged as error:
        return verdict("corrupt", *error.problems)
    if known is None:
        return verdict("unfinished", str(manifest), "the database itself is sound")
    lies, altered = [*_lies(known, found)], [*_altered(known, found)]
    return verdict("lying" if lies else "altered" if altered else "good", *lies, *altered)


def _altered(manifest: Manifest, found: Found) -> Iterator[str]:
    if manifest.size != found.size:
        yield f"expected {manifest.size} bytes; got {found.size}"
    elif manifest.sha256 != found.sha256:
        yield f"expected SHA-256 {manifest.sha256}; got {found.sha256}"


def _lies(manifest: Manifest, found: Found) -> Iterator[str]:
    if manifest.schema != found.schema:
        yield f"its manifest says schema {manifest.schema}; the database has {found.schema}"
    said = {mark.graph: mark for mark in manifest.graphs}
    for mark in found.graphs:
        if said.pop(mark.graph, None) != mark:
            yield f"its manifest says something else of graph {mark.graph}, which ends at {mark.seq}"
    yield from (f"its manifest tells of a graph {name}, which is not there" for name in said)


# --- the database -------------------------------------------------------------------------------------------------


class Found(Struct, frozen=True, kw_only=True):
    """What a file holds that is a sound database."""

    size: int
    sha256: str
    schema: int
    graphs: tuple[Mark, ...]


class Damaged(StoreCorrupt):
    """The file is a database of ours, but not a sound one.

    Attributes:
        problems: why.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


def inspect(file: Path) -> Found:
    """What is in a file, all of which is read.

    Raises:
        Foreign, Newer, Damaged: no sound database that can be read here.
        OSError: the file cannot be read.
    """
    with file.open("rb") as opened:
        if opened.read(16) != b"SQLite format 3\0":
            raise Foreign("expected a database of SQLite; got another file")
    try:
        with closing(_open(file)) as connection:
            schema = schema_of(connection)
        # These wait for the disk and for C code, so that two cores halve the time.
        with ThreadPoolExecutor(3) as threads:
            checks = [threads.submit(_asked, file, work) for work in (_structure, _logs)]
            sha256 = threads.submit(_sha256, file).result()
        damage = [problem for done in checks for problem in done.result()]
        if damage:
            raise Damaged(*damage)
        with closing(_open(file)) as connection:
            graphs = marks(connection, schema)
    except (sqlite3.Error, MemoryError) as error:
        raise Damaged(f"SQLite says: {str(error) or 'out of memory'}") from error
    except UnicodeDecodeError as error:  # of what SQLite says of a schema that it cannot read
        raise Damaged("expected UTF-8 text in the file; got other bytes") from error
    except (AttributeError, TypeError) as error:  # somebody else's tables under our names
        raise Damaged(f"expected the types of our tables; got others: {error}") from error
    return Found(size=file.stat().st_size, sha256=sha256, schema=schema, graphs=graphs)


def _open(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cache_size = -65536")  # 64 MiB: each row is looked for in every index
    except BaseException:
        connection.close()
        raise
    return connection


def _asked(file: Path, work: Callable[[sqlite3.Connection], Iterator[str]]) -> list[str]:
    with closing(_open(file)) as connection:
        return [*islice(work(connection), _TOLD_MAX)]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()


def _structure(connection: sqlite3.Connection) -> Iterator[str]:
    for (found,) in connection.execute(f"PRAGMA integrity_check({_TOLD_MAX})"):
        if found != "ok":
            yield f"SQLite says: {found}"
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"expected what row {row} of {table} refers to in {parent}; it is not there"


def _logs(connection: sqlite3.Connection) -> Iterator[str]:
    """What is wrong with logs: their rows against their hashes, and these against what the database says of itself."""
    heads = {graph: told for graph, *told in connection.execute(_HEADS)}
    computed: dict[int, tuple[int, bytes, bytes]] = {}
    for graph, rows in groupby(connection.execute(_ROWS), itemgetter(0)):
        if graph in heads:  # else SQLite has told
            try:
                computed[graph] = _computed(rows)
            except Damaged as error:
                yield f"graph {heads[graph][0]}: {error.problems[0]}"
                del heads[graph]
    for graph, (name, *said) in heads.items():
        for what, one, other in zip(("end", "chain", "digest"), said, computed.get(graph, _EMPTY), strict=True):
            if one != other:
                yield f"graph {name}: the {what} of its rows is not what the database says"


_EMPTY: Final = (0, bytes(16), bytes(DIGEST_BITS // 8))


def _computed(rows: Iterable[tuple[Any, ...]]) -> tuple[int, bytes, bytes]:
    """Seq, chain and digest of a log that consists of these rows (PROTOCOL 3.7, 4.2, 4.8)."""
    end, chain, digest = 0, bytes(16), 0
    for _, seq, kind, until, hash_, chained, body in rows:
        if seq != end + 1:
            raise Damaged(f"expected row {end + 1}; got {seq}")
        if kind not in ("entity", "edge") or hash_ != row_hash(kind, body):
            raise Damaged(f"the hash of row {seq} is not that of its value")
        end, chain = seq, next_chain(chain, hash_)
        if chained != chain:
            raise Damaged(f"the chain of row {seq} does not follow from the rows before it")
        if until == FOREVER:
            digest += int.from_bytes(hash_, "big")
    return end, chain, (digest % (1 << DIGEST_BITS)).to_bytes(DIGEST_BITS // 8, "big")
