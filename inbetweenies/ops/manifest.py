"""What is known of a backup, in a JSON file beside it that is written last: a backup without one was not finished."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ..errors import StoreError
from ..stores.schema import APPLICATION_ID, SCHEMA_VERSION

FORMAT: Final = 1
SUFFIX: Final = ".manifest.json"
BYTES_MAX: Final = 64 * 2**20  # of a manifest: a quarter of a million graphs
_BIRTHS: Final = 3  # the first schema in which a graph remembers its first epoch


class Foreign(StoreError):
    """The file is no database of ours."""


class Newer(StoreError):
    """The file was made by a release that this one does not know."""


class Mark(Struct, frozen=True, kw_only=True, order=True):
    """Where the log of one graph ends (PROTOCOL 4.2), its hashes in hexadecimal digits."""

    graph: str
    birth: str
    epoch: str
    seq: int
    chain: str
    digest: str


class Manifest(Struct, frozen=True, kw_only=True):
    """What the backup was when it was verified.

    Attributes:
        format: of this, so that a later release can tell.
        release: which made it.
        made: when, ISO 8601 in UTC.
        schema: of the database.
        size: of the file, in bytes.
        sha256: of the file, in hexadecimal digits.
        graphs: by name.
    """

    format: int
    release: str
    made: str
    schema: int
    size: int
    sha256: str
    graphs: tuple[Mark, ...]


class _Format(Struct):
    format: int


def manifest_of(file: Path) -> Path:
    """Where the manifest of the backup in `file` is."""
    return file.with_name(f"{file.name}{SUFFIX}")


def encoded(manifest: Manifest) -> bytes:
    """The bytes of a manifest, for people as well."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def read(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        OSError: there is none, or it cannot be read.
        Newer: it is one of a newer release.
        StoreError: it is none.
    """
    with path.open("rb") as file:
        data = file.read(BYTES_MAX + 1)
    try:
        if len(data) > BYTES_MAX:
            raise StoreError(f"expected at most {BYTES_MAX} bytes in {path}; got more")
        found = msgspec.json.decode(data, type=_Format).format
        if found > FORMAT:
            raise Newer(f"expected a manifest of format {FORMAT} in {path}; got {found}, of a newer release")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StoreError(f"expected a manifest in {path}; got something else: {error}") from None


def schema_of(connection: sqlite3.Connection) -> int:
    """Which schema a database has.

    Raises:
        Foreign, Newer: none that can be read here.
    """
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise Foreign(f"expected a database of Inbetweenies ({APPLICATION_ID:#x}); got {application:#x}")
    if not 1 <= version <= SCHEMA_VERSION:
        raise Newer(f"expected schema 1 to {SCHEMA_VERSION}; got {version}: use the release that made it, or a later")
    return int(version)


def marks(connection: sqlite3.Connection, schema: int) -> tuple[Mark, ...]:
    """Where the log of each graph ends, as the database says itself."""
    birth = "birth" if schema >= _BIRTHS else "epoch"  # that is what it becomes when the file is upgraded
    found = connection.execute(f"SELECT name, {birth}, epoch, seq, chain, digest FROM graphs ORDER BY name")  # noqa: S608
    return tuple(
        Mark(graph=name, birth=born, epoch=epoch, seq=seq, chain=chain.hex(), digest=digest.hex())
        for name, born, epoch, seq, chain, digest in found
    )
