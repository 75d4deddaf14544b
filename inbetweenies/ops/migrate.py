"""Import the database of a deployed server into a graph, and take such an import out again (PROTOCOL 13).

Read `migrate` and `undo`. Both go on where they stopped, wherever their process died; a server and its clients may
write meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from ..engine import DEFAULT_LIMITS, DEFAULT_POLICY
from ..errors import LocalProtocolError, StoreError
from ..exchange import carry_out
from ..imports import Ledger, State, absent, begin, begin_undo, take, take_out
from ..limits import Limits
from ..merge import Policy
from ..model import Document
from ..store import Store
from ..stores import amend
from ..stores.clock import wall_clock
from .source import BATCH_ROWS, Source, opened

#: Where a store keeps which imports there were, and how far they are. What holds is the ledger of each, in its graph.
DOCUMENT: Final = "migrations"

#: Called with how many steps are done, and of how many.
Progress = Callable[[int, int], object]


class Entry(Struct, frozen=True, kw_only=True):
    """One import, as `DOCUMENT` lists it: which source into which graph, and where it stands."""

    graph: str
    source: str
    name: str
    state: State
    stage: int
    done: int
    changed: int


class Report(Struct, frozen=True, kw_only=True):
    """What an import came to: its `ledger`, how many rows this very run `moved`, merged or refused, and by table how
    many rows are `unexplained`: have no fate, or are said to be in the graph and are not. Empty if all adds up."""

    ledger: Ledger
    graph: str
    ran: dict[str, int]
    unexplained: dict[str, int]


async def migrate(
    store: Store,
    file: Path,
    *,
    graph: str = "default",
    tell_all: bool = False,
    rows: int = BATCH_ROWS,
    clock: Callable[[], int] = wall_clock,
    progress: Progress = lambda *_: None,
    limits: Limits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> Report:
    """PROTOCOL 13.5: import the database in `file`, whole, or what is left of it. Once more, it does nothing.

    Args:
        tell_all: have every client told all of it once more, also what the old server has told it.
        rows: of the source in one transaction, at most.
        clock: the time, in microseconds.

    Raises:
        StoreError: the file is no database that can be imported; nothing was.
        LocalProtocolError: it is half undone.
    """
    with opened(file, graph=graph, limits=limits) as source:
        new = Ledger(
            source=source.digest,
            name=source.name,
            schema=source.schema,
            totals=source.totals,
            began=clock(),
            changed=clock(),
        )
        ledger = before = await carry_out(lambda: begin(new), store, graph, write=True)
        await _listed(store, graph, ledger)
        while ledger.state == "importing":
            batch = source.batch(ledger.stage, ledger.done, rows)
            now = clock()

            def plan() -> object:
                return take(source.digest, batch, now=now, tell_all=tell_all, limits=limits, policy=policy)  # noqa: B023

            ledger = await carry_out(plan, store, graph, write=True)  # type: ignore[arg-type]
            await _listed(store, graph, ledger)
            progress(source.passed(ledger.stage, ledger.done), source.steps)
            await asyncio.sleep(0)
        unexplained = await _unexplained(store, graph, source, ledger, rows)
    ran = {fate: ledger.fate(fate) - before.fate(fate) for fate in ("moved", "merged", "present", "refused")}
    return Report(ledger=ledger, graph=graph, ran=ran, unexplained=unexplained)


async def _unexplained(store: Store, graph: str, source: Source, ledger: Ledger, rows: int) -> dict[str, int]:
    """PROTOCOL 13.6: the account of an import against the source and the log, both read once more."""
    absent_rows: Counter[str] = Counter()
    stage = done = 0
    whole = False
    while not whole:
        batch = source.batch(stage, done, rows)
        for found in await carry_out(lambda: absent(batch), store, graph, write=False):  # noqa: B023
            absent_rows.update(found)
        stage, done, whole = batch.next_stage, batch.next_done, batch.whole
    left = Counter(ledger.unexplained)
    for table in {*absent_rows, *ledger.fates}:
        left[table] += absent_rows[table] - ledger.fates.get(table, {}).get("refused", 0)
    return {table: number for table, number in left.items() if number}


# --- out ----------------------------------------------------------------------------------------------------------


async def undo(
    store: Store,
    file: Path,
    *,
    graph: str = "default",
    rows: int = BATCH_ROWS,
    clock: Callable[[], int] = wall_clock,
    progress: Progress = lambda *_: None,
    limits: Limits = DEFAULT_LIMITS,
    policy: Policy = DEFAULT_POLICY,
) -> tuple[Ledger, dict[str, int]]:
    """PROTOCOL 13.7: take out what the import of `file` brought; the ledger, and what this very run did.

    Args:
        file: the file that was imported; where it has changed since or is gone, the only import of a file of that name,
            or the beginning of the digest of an import.

    Raises:
        LocalProtocolError: there is no such import, or several; or the log was set back since.
    """
    source = await _found(store, graph, file, limits)
    known = await carry_out(lambda: begin_undo(source, now=clock()), store, graph, write=True)
    if known is None:
        raise LocalProtocolError(f"expected an import of {file} into {graph}; the log of that graph knows of none")
    ledger, before = known, dict(known.out)
    while ledger.state == "undoing":
        now = clock()
        ledger = await carry_out(
            lambda: take_out(source, rows, now=now, limits=limits, policy=policy),  # noqa: B023
            store,
            graph,
            write=True,
        )
        await _listed(store, graph, ledger)
        last = ledger.ranges[-1][1] if ledger.ranges else 0
        progress(last if ledger.state == "undone" else ledger.undo_at, last)
    return ledger, {what: number - before.get(what, 0) for what, number in ledger.out.items()}


async def _found(store: Store, graph: str, file: Path, limits: Limits) -> str:
    """The digest of the import that is meant."""
    known = [entry for entry in entries_in(await store.document(DOCUMENT)) if entry.graph == graph]
    digest = _digest(file, graph, limits)
    if any(entry.source == digest for entry in known):
        return digest
    named = [entry for entry in known if entry.name == file.name or entry.source.startswith(str(file))]
    if len(named) == 1:
        return named[0].source
    told = "; ".join(f"{entry.name} {entry.source} ({entry.state})" for entry in named or known) or "none"
    raise LocalProtocolError(
        f"expected one import of {file} into {graph}; there are: {told}. Name one by the beginning of its digest"
    )


def _digest(file: Path, graph: str, limits: Limits) -> str:
    try:
        with opened(file, graph=graph, limits=limits) as source:
            return source.digest
    except StoreError:  # it is gone, or another file by now: then it is looked for by its name
        return ""


# --- which there are ----------------------------------------------------------------------------------------------


def entries_in(document: Document) -> tuple[Entry, ...]:
    """The imports that a store lists, oldest first."""
    return msgspec.json.decode(document.body, type=tuple[Entry, ...]) if document.body else ()


async def _listed(store: Store, graph: str, ledger: Ledger) -> None:
    entry = Entry(
        graph=graph,
        source=ledger.source,
        name=ledger.name,
        state=ledger.state,
        stage=ledger.stage,
        done=ledger.done,
        changed=ledger.changed,
    )

    def change(known: Document) -> bytes:
        entries = {(one.graph, one.source): one for one in entries_in(known)} | {(graph, entry.source): entry}
        return msgspec.json.encode(tuple(entries.values()))

    await amend(store, DOCUMENT, change)
