"""Bugs of the server that sync systems are known for, each planted by replacing one function for a while.

The product has no seam for them. Each docstring says what the bug is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, Raw
from msgspec.structs import replace

from inbetweenies import engine, exchange, intake, merge, model, negotiation, registry, router
from inbetweenies.errors import RemoteProtocolError, StoreError
from inbetweenies.limits import canonical
from inbetweenies.model import Plan, Reads, Row, SyncRequest, SyncResponse
from inbetweenies.stores import memory

Patch = pytest.MonkeyPatch


def time_for_a_cursor(patch: Patch) -> None:
    """`server_time` is what the wall clock shows when the answer is made."""
    real = engine.serve

    def serve(request: Any, context: Any, *rest: Any) -> Plan[SyncResponse]:
        response = yield from real(request, context, *rest)
        return replace(response, served_stamp=context.now)

    patch.setattr(engine, "serve", serve)


def two_way_merge(patch: Patch) -> None:
    """Merges know no ancestor, so they cannot tell "deleted" from "never there"."""
    real = merge.three_way

    def three_way(base: Any, *rest: Any, **named: Any) -> Any:
        return real(replace(base, content=Raw(b"{}")), *rest, **named)

    patch.setattr(merge, "three_way", three_way)


def loser_dropped(patch: Patch) -> None:
    """A write that loses is acknowledged and thrown away."""
    real = engine._Work.add_entity

    def add_entity(self: Any, *rest: Any, current: bool, **named: Any) -> Any:
        return real(self, *rest, current=current, **named) if current else None

    patch.setattr(engine._Work, "add_entity", add_entity)


def digest_without_tombstones(patch: Patch) -> None:
    """Deleted rows are left out of the sum."""
    real = model.digest_change

    def digest_change(digest: int, *, gone: bytes | None = None, come: bytes | None = None) -> int:
        return real(digest, gone=gone, come=None if tombstones[-1] else come)

    tombstones = [False]
    add = engine._Work.add

    def watched(self: Any, *rest: Any, **named: Any) -> Any:
        tombstones.append(named["deleted"])
        return add(self, *rest, **named)

    patch.setattr(engine, "digest_change", digest_change)
    patch.setattr(engine._Work, "add", watched)


def edges_before_entities(patch: Patch) -> None:
    """An edge is looked at before the entities that come with it, and one that fails is acknowledged anyway."""

    def decide(request: Any, held: Any, *, now: int, limits: Any, policy: Any) -> Any:
        work = engine._Work(request, held, now, limits, policy)
        for change in request.changes:
            for index, edge in enumerate(change.relationships):
                work.take_edge(edge, f"{change.pointer}/relationships/{index}", aside=False)
        for refused in work.refused:
            work.ack("edge", refused.id, refused.version, "dup")
        work.refused.clear()
        for change in intake.in_order(request.changes):
            if change.entity is not None:
                work.take_entity(change, change.entity)
        return work.decision()

    patch.setattr(engine, "decide", decide)


def repeat_as_conflict(patch: Patch) -> None:
    """A row that comes again is taken for other content under its version."""

    def seen_again(self: Any, known: Row, hash_: bytes, entity: Any) -> None:
        entity = replace(entity, version=f"{entity.version}#{len(self.held.versions)}{self.seq}")
        body = model.body_of(entity)
        self.add_entity(entity, body, model.row_hash("entity", body), current=False)
        self.ack("entity", entity.id, known.version, "lost_kept")

    patch.setattr(engine._Work, "seen_again", seen_again)


def since_includes(patch: Patch) -> None:
    """A delta starts one row too late."""
    real = engine.start_of

    def start_of(request: SyncRequest, held: Any) -> tuple[int, bool]:
        after, resync = real(request, held)
        return (
            (min(after + 1, held.head.seq), resync) if request.since is not None or request.cursor else (after, resync)
        )

    patch.setattr(engine, "start_of", start_of)


def page_end_skipped(patch: Patch) -> None:
    """The cursor of a page is that of the head."""
    real = engine.serve

    def serve(*rest: Any) -> Plan[SyncResponse]:
        response = yield from real(*rest)
        return replace(response, served=response.head.cursor)

    patch.setattr(engine, "serve", serve)


def tombstone_forgotten(patch: Patch) -> None:
    """A concurrent edit brings back what was deleted."""
    patch.setattr(engine, "says_deleted", lambda content: False)


def conflict_untold(patch: Patch) -> None:
    """Who loses is not told."""
    patch.setattr(engine._Work, "lost", lambda *rest: None)


def partial_commit(patch: Patch) -> None:
    """Of a push, all but the last row are committed."""
    real = engine._Work.decision

    def decision(self: Any) -> Any:
        made = real(self)
        if len(made.writes.rows) < 2:
            return made
        rows = made.writes.rows[:-1]
        closed = tuple(pair for pair in made.writes.closed if pair[1] != made.writes.rows[-1].seq)
        digest = self.held.head.digest
        for row in rows:
            if row.until is None or row.until != row.seq:
                digest += int.from_bytes(row.hash, "big")
        head = replace(made.head, seq=rows[-1].seq, chain=rows[-1].chain, stamp=rows[-1].stamp, digest=digest % 2**256)
        return replace(made, writes=replace(made.writes, rows=rows, closed=closed, head=head), head=head)

    patch.setattr(engine._Work, "decision", decision)


def unknown_writes_taken(patch: Patch) -> None:
    """A write of an unknown version is read as v1 as far as it goes."""
    from inbetweenies.wire import v1

    real = v1.V1.decode

    def decode(self: Any, body: bytes, *, path: str = "", strict: bool = False, limits: Any) -> Any:
        return real(self, body, path=path, strict=False, limits=limits)

    patch.setattr(v1.V1, "decode", decode)


# --- the commit ---------------------------------------------------------------------------------------------------


def ack_before_commit(patch: Patch) -> None:
    """The answer is made before the commit, and is given even if the commit fails."""

    real = exchange.begin

    class Store:
        """Hands on what is asked of it, and swallows that the end of a transaction fails."""

        def __init__(self, store: Any) -> None:
            self.store = store

        @asynccontextmanager
        async def transaction(self, graph: str, *, write: bool) -> AsyncIterator[Any]:
            left = False
            try:
                async with self.store.transaction(graph, write=write) as tx:
                    yield tx
                    left = True
            except StoreError:
                if not left:
                    raise

    async def begin(*given: Any, store: Any, **named: Any) -> Any:
        swallowing: Any = Store(store)
        return await real(*given, store=swallowing, **named)

    patch.setattr(exchange, "begin", begin)


def disk_full_swallowed(patch: Patch) -> None:
    """What a store cannot write is left out, and the rest of the request goes on."""

    async def run(plan: Any, tx: Any, writable: bool = True, events: Any = None) -> Any:
        held = model.Held(head=engine.NOTHING)
        try:
            step = next(plan)
            while True:
                if isinstance(step, Reads):
                    held = await tx.read(step)
                else:
                    try:
                        await tx.write(step)
                    except StoreError:
                        tx._tx._error = None
                step = plan.send(held)
        except StopIteration as stop:
            return stop.value

    patch.setattr(exchange, "run", run)


def crash_commits(patch: Patch) -> None:
    """What a process that died had written so far is taken for committed."""
    patch.setattr(memory._Transaction, "_rollback", lambda self: self._commit())


def rollback_forgets_the_head(patch: Patch) -> None:
    """Rows are taken back after an error; the head that counts them is not."""
    real = memory._Transaction._rollback

    def _rollback(self: Any) -> None:
        head = self._head
        real(self)
        if self.writable:
            self._in.head = head

    patch.setattr(memory._Transaction, "_rollback", _rollback)


def refused_after_commit(patch: Patch) -> None:
    """A push of which one item is refused is refused whole, after the rest was committed."""
    real = exchange.begin

    async def begin(*given: Any, **named: Any) -> Any:
        begun = await real(*given, **named)
        if b'"refused":[{' in begun.body:
            raise RemoteProtocolError(code="malformed_request", expected="items that can be stored", got="another")
        return begun

    patch.setattr(exchange, "begin", begin)


def one_bad_item_refuses_all(patch: Patch) -> None:
    """One item that cannot be stored stops the whole push, for ever."""
    real = engine.decide

    def decide(*rest: Any, **named: Any) -> Any:
        decision = real(*rest, **named)
        if decision.refused:
            raise RemoteProtocolError(code="malformed_request", expected="items that can be stored", got="another")
        return decision

    patch.setattr(engine, "decide", decide)


def graphs_mixed(patch: Patch) -> None:
    """One query forgets whose graph it is."""
    real = memory.MemoryStore.transaction
    patch.setattr(memory.MemoryStore, "transaction", lambda self, graph, *, write: real(self, "default", write=write))


# --- the log ------------------------------------------------------------------------------------------------------


def _rows_with(patch: Patch, **fields: Callable[[dict[str, Any]], Any]) -> None:
    def row(**named: Any) -> Row:
        return Row(**(named | {name: value(named) for name, value in fields.items()}))

    patch.setattr(engine, "Row", row)


def stamps_follow_the_clock(patch: Patch) -> None:
    """Rows are stamped with what the clock shows, even if it was set back."""

    def stamp(self: Any) -> int:
        return int(self.__dict__["stamp"])

    def set_stamp(self: Any, value: int) -> None:
        # The first is the stamp of the head, and not this push's to make.
        self.__dict__["stamp"] = self.now if "stamp" in self.__dict__ else value

    patch.setattr(engine._Work, "stamp", property(stamp, set_stamp), raising=False)


def server_time_rounded_up(patch: Patch) -> None:
    """`server_time` is rounded to the next millisecond."""
    real = engine.serve

    def serve(*rest: Any) -> Plan[SyncResponse]:
        response = yield from real(*rest)
        return replace(response, served_stamp=-(-response.served_stamp // 1000) * 1000)

    patch.setattr(engine, "serve", serve)


def chain_of_one(patch: Patch) -> None:
    """The chain hash of a row does not depend on the rows before it."""
    patch.setattr(engine, "next_chain", lambda chain, hash_: model.next_chain(bytes(16), hash_))


def digest_only_grows(patch: Patch) -> None:
    """What is no longer current stays in the sum."""
    patch.setattr(
        engine, "digest_change", lambda digest, *, gone=None, come=None: model.digest_change(digest, come=come)
    )


def tombstones_collected(patch: Patch) -> None:
    """Deleted rows are not told to those who come later."""
    real = engine._answer

    def _answer(*rest: Any) -> Plan[SyncResponse]:
        response = yield from real(*rest)
        return replace(response, rows=tuple(row for row in response.rows if not row.deleted))

    patch.setattr(engine, "_answer", _answer)


def own_writes_never_told(patch: Patch) -> None:
    """Nobody is told rows of their own user, who must know them."""
    real = engine._answer

    def _answer(request: SyncRequest, *rest: Any) -> Plan[SyncResponse]:
        response = yield from real(request, *rest)
        mine = request.device.rpartition(":")[2]
        return replace(response, rows=tuple(row for row in response.rows if row.user_id != mine))

    patch.setattr(engine, "_answer", _answer)


def more_forgotten(patch: Patch) -> None:
    """A page that is full does not say that there is another."""
    real = engine.serve

    def serve(*rest: Any) -> Plan[SyncResponse]:
        response = yield from real(*rest)
        return replace(response, more=False)

    patch.setattr(engine, "serve", serve)


def capped_for_everybody(patch: Patch) -> None:
    """Answers are cut to pages for clients that know no pages."""
    real = engine._answer

    def _answer(request: SyncRequest, *rest: Any) -> Plan[SyncResponse]:
        if not request.features:
            request = replace(request, features=frozenset({"paging"}), page_rows=2)
        return real(request, *rest)

    patch.setattr(engine, "_answer", _answer)


def pushed_ids_untold(patch: Patch) -> None:
    """Whoever pushed is not told what is current now for what it named."""
    real = engine._answer

    def _answer(request: SyncRequest, held: Any, decision: Any, limits: Any) -> Plan[SyncResponse]:
        return real(request, held, replace(decision, current={}), limits)

    patch.setattr(engine, "_answer", _answer)


def rows_not_closed(patch: Patch) -> None:
    """A row that another took the place of within one push stays current too."""
    real = engine._Work.close

    def close(self: Any, row: Row) -> None:
        if row.seq not in self.rows:
            real(self, row)

    patch.setattr(engine._Work, "close", close)


# --- who wins -----------------------------------------------------------------------------------------------------


def collision_acked(patch: Patch) -> None:
    """Other content under a version that is held is taken for the same row again."""

    def seen_again(self: Any, known: Row, hash_: bytes, entity: Any) -> None:
        self.ack("entity", entity.id, entity.version, "dup")

    patch.setattr(engine._Work, "seen_again", seen_again)


def clock_unclamped(patch: Patch) -> None:
    """An edit from 2099 wins for ever."""
    patch.setattr(merge, "arrival", lambda version, now: (edit, True) if (edit := model.edit_time(version)) is not None
                  else (now, False))  # fmt: skip


def tombstone_by_time(patch: Patch) -> None:
    """Of a delete and a concurrent edit, the later wins."""
    real = engine._Work.contest

    def contest(self: Any, current: Row, entity: Any, body: bytes, hash_: bytes) -> None:
        if current.deleted and not model.says_deleted(entity.content):
            there = merge.Side(version=entity.version, edit=merge.arrival(entity.version, self.now)[0], timed=True)
            if merge.later(merge.side_of(current), there)[0]:
                self.add_entity(entity, body, hash_, current=True)
                self.lost(entity, current.version, entity.version, "remote has newer timestamp")
                self.ack("entity", entity.id, entity.version, "applied")
                return
        real(self, current, entity, body, hash_)

    patch.setattr(engine._Work, "contest", contest)


def last_write_wins_silently(patch: Patch) -> None:
    """Whatever comes last is current, and what was current is not told of."""

    def contest(self: Any, current: Row, entity: Any, body: bytes, hash_: bytes) -> None:
        self.add_entity(entity, body, hash_, current=True)
        self.ack("entity", entity.id, entity.version, "applied")

    patch.setattr(engine._Work, "contest", contest)


def merge_prefers_the_server(patch: Patch) -> None:
    """A merge takes of each path what the server has."""
    real = merge.three_way

    def three_way(base: Any, local: Any, remote: Any, **named: Any) -> Any:
        made = real(base, local, remote, **named)
        return replace(made, entity=replace(made.entity, content=local.content))

    patch.setattr(merge, "three_way", three_way)


def merge_takes_the_union(patch: Patch) -> None:
    """A merge cannot remove a key: it takes the union."""
    real = merge.three_way

    def three_way(base: Any, local: Any, remote: Any, **named: Any) -> Any:
        made = real(base, local, remote, **named)
        union = {**msgspec.json.decode(local.content), **msgspec.json.decode(made.entity.content)}
        return replace(made, entity=replace(made.entity, content=Raw(canonical(union))))

    patch.setattr(merge, "three_way", three_way)


def times_do_not_rise(patch: Patch) -> None:
    """What v1 is shown as the time of a row is its edit time, be it older than that of the row before."""
    _rows_with(patch, rise=lambda row: row["edit"])


def edges_without_ends(patch: Patch) -> None:
    """An edge is stored without looking for its ends."""

    class Everything(dict[Any, Any]):
        def __contains__(self, key: object) -> bool:
            return (isinstance(key, tuple) and key[0] == "entity") or super().__contains__(key)

    real = engine._Work.__init__

    def init(self: Any, *rest: Any) -> None:
        real(self, *rest)
        self.versions = Everything(self.versions)

    patch.setattr(engine._Work, "__init__", init)


def refused_edge_acked(patch: Patch) -> None:
    """An edge whose end is not there yet is acknowledged, and forgotten."""
    real = engine._Work.refuse

    def refuse(self: Any, kind: Any, id_: str, refusal: Any) -> None:
        if refusal.code == "unknown_endpoint":
            self.ack(kind, id_, refusal.version, "dup")
        else:
            real(self, kind, id_, refusal)

    patch.setattr(engine._Work, "refuse", refuse)


# --- versions -----------------------------------------------------------------------------------------------------


def disabled_is_unknown(patch: Patch) -> None:
    """A version that is switched off is treated as one that nobody has heard of, and falls back."""
    real = negotiation.negotiate

    def negotiate(requested: Any, offer: Any, *, has_changes: bool, registry: Any) -> Any:
        return real(requested, offer, has_changes=has_changes, registry=replace(registry, disabled=frozenset()))

    patch.setattr(router, "negotiate", negotiate)


def unknown_reads_refused(patch: Patch) -> None:
    """A version of which nobody has heard is refused, even if it only wants to read."""
    real = router.ProtocolFallback.__init__
    patch.setattr(router.ProtocolFallback, "__init__",
                  lambda self, *rest, **named: real(self, *rest, **{**named, "fallback": None}))  # fmt: skip


def fallback_untold(patch: Patch) -> None:
    """Who is served another version than the one asked for is not told so."""
    patch.setattr(router, "_negotiation", lambda choice, registry: UNSET)


def flag_ignored(patch: Patch) -> None:
    """Switching a version off has no effect on those who use it already."""
    real = registry.registry_of

    def registry_of(installed: Any, decisions: Any, *, disabled: Any, **named: Any) -> Any:
        return real(installed, registry.Decisions(), **named)

    patch.setattr(router, "registry_of", registry_of)


def bytes_unchecked(patch: Patch) -> None:
    """Bytes that are no UTF-8 pass where the decoder does not look."""
    patch.setattr(router, "gate", lambda body, limits: None)
