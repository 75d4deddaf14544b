"""What is in the database in the end: each write that was acknowledged, and what only the newer version can say."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from inbetweenies.model import Held, Reads, Row
from inbetweenies.ops.manifest import Manifest, Mark, marks, schema_of
from inbetweenies.store import Store

from .ledger import Acked, Keepsake

#: So many ids are read at a time.
AT_ONCE = 500


async def lost(store: Store, acked: Iterable[Acked]) -> list[Acked]:
    """The acknowledged writes that are in no row of the log, current or not."""
    by_graph: dict[str, list[Acked]] = defaultdict(list)
    for one in acked:
        by_graph[one.graph].append(one)
    missing: list[Acked] = []
    for graph, writes in by_graph.items():
        history = await _histories(store, graph, {(one.kind, one.id) for one in writes})
        missing += [one for one in writes if not any(_is_in(one, row) for row in history.get((one.kind, one.id), ()))]
    return missing


async def _histories(
    store: Store, graph: str, keys: set[tuple[str, str]]
) -> dict[tuple[str, str], list[tuple[str, dict[str, Any]]]]:
    """Versions and fields of every row there ever was of these."""
    found: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    ordered = sorted(keys)
    for start in range(0, len(ordered), AT_ONCE):
        part = ordered[start : start + AT_ONCE]
        ids = {kind: tuple(id_ for of, id_ in part if of == kind) for kind in ("entity", "edge")}
        held = await _read(store, graph, Reads(history=ids["entity"], edge_history=ids["edge"]))
        for kind, histories in (("entity", held.history), ("edge", held.edge_history)):
            for id_, rows in histories.items():
                found[kind, id_] = [(row.version, _fields(row)) for row in rows]
    return found


def _fields(row: Row) -> dict[str, Any]:
    """What a row says: its content or properties, and its name."""
    body: dict[str, Any] = msgspec.json.decode(row.body)
    if row.kind == "edge":
        properties: dict[str, Any] = body["properties"]
        return properties
    return {**body["content"], "name": body["name"]}


def _is_in(write: Acked, row: tuple[str, dict[str, Any]]) -> bool:
    version, fields = row
    return write.version in (None, version) and _says(fields, write.says)


def _says(fields: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    return all(name in fields and fields[name] == value for name, value in said.items())


async def forgotten(store: Store, keepsakes: Iterable[Keepsake]) -> list[tuple[Keepsake, str]]:
    """The values that only the newer version can say and that do not stand any more, each with its name."""
    by_graph: dict[str, list[Keepsake]] = defaultdict(list)
    for one in keepsakes:
        by_graph[one.graph].append(one)
    gone: list[tuple[Keepsake, str]] = []
    for graph, kept in by_graph.items():
        ids = {kind: tuple({one.id for one in kept if one.kind == kind}) for kind in ("entity", "edge")}
        held = await _read(store, graph, Reads(entities=ids["entity"], edges=ids["edge"]))
        for one in kept:
            row = (held.entities if one.kind == "entity" else held.edges).get(one.id)
            fields = {} if row is None or row.deleted else _fields(row)
            gone += [(one, name) for name, value in one.says.items() if fields.get(name) != value]
    return gone


async def _read(store: Store, graph: str, reads: Reads) -> Held:
    async with store.transaction(graph, write=False) as tx:
        return await tx.read(reads)


async def strays(store: Store, manifest: Manifest) -> list[str]:
    """The graphs of a backup that are not the beginning of those in the store."""
    found = []
    for mark in manifest.graphs:
        held = await _read(store, mark.graph, Reads(chains=(mark.seq,)))
        if mark.seq and held.chains.get(mark.seq, b"").hex() != mark.chain:
            found.append(mark.graph)
    return found


def placed(db: Path) -> tuple[Mark, ...]:
    """Where the logs in a database end that nobody has open."""
    with closing(sqlite3.connect(f"{db.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        return marks(connection, schema_of(connection))
