"""Bugs of clients that sync systems are known for, each planted by replacing one function for a while.

They are planted in `replica`, which is ours, and in the models of programs that stand on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from inbetweenies import replica
from inbetweenies.testing import fleet_base, fleet_clients, fleet_replica
from inbetweenies.testing.fleet_base import NoAnswer

Patch = pytest.MonkeyPatch


def ack_by_id(patch: Patch) -> None:
    """An ack clears every mark of its id, that of a newer edit too."""
    real = replica.absorb

    def absorb(answer: Any, sent: Any, state: Any, local: Any, **named: Any) -> Any:
        result = real(answer, sent, state, local, **named)
        keys = {(ack.kind, ack.id) for ack in answer.acks or ()}
        cleared = [n for key in keys for n, _ in local.pending.get(key, ())]
        pointers = {key: replace(pointer, ours=None) if key in keys else pointer
                    for key, pointer in result.pointers.items()}  # fmt: skip
        return replace(result, cleared=tuple(cleared), pointers=pointers)

    patch.setattr(replica, "absorb", absorb)


def cursor_before_rows(patch: Patch) -> None:
    """The cursor is stored in a transaction of its own, before the rows that it covers."""

    def commit(self: fleet_replica.ReplicaStore, absorbed: Any) -> None:
        with self.transaction() as image:
            self.write_state(image, absorbed)
        with self.transaction() as image:
            self.write_rows(image, absorbed)

    patch.setattr(fleet_replica.ReplicaStore, "commit", commit)


def no_pull_guard(patch: Patch) -> None:
    """A pulled row takes the place of an edit that waits."""
    patch.setattr(fleet_replica.Image, "newest", lambda self, key: None)


def acks_without_versions(patch: Patch) -> None:
    """Of an answer only the ids that it names are looked at."""

    def _terminal(answer: Any, sent: Any) -> list[Any]:
        named = {"entity": answer.applied, "edge": answer.applied_relationships}
        return [item for item in sent if item.copy.id in named[item.copy.kind]]

    patch.setattr(replica, "_terminal", _terminal)


def cleared_by_count(patch: Patch) -> None:
    """As many marks are cleared as were acknowledged, whichever they are."""
    real = replica.absorb

    def absorb(answer: Any, sent: Any, state: Any, local: Any, **named: Any) -> Any:
        result = real(answer, sent, state, local, **named)
        marks = sorted(n for marks in local.pending.values() for n, _ in marks)
        return replace(result, cleared=tuple(marks[: len(answer.acks or ())]))

    patch.setattr(replica, "absorb", absorb)


def sent_is_done(patch: Patch) -> None:
    """What was sent is forgotten when any answer comes."""
    patch.setattr(replica, "_terminal", lambda answer, sent: list(sent))


def sent_is_current(patch: Patch) -> None:
    """What was acknowledged is taken for what the server has now."""

    def _heads(answer: Any, terminal: Any) -> dict[Any, str]:
        return {item.copy.key: item.copy.version for item in terminal}

    patch.setattr(replica, "_heads", _heads)


def full_batch_stays(patch: Patch) -> None:
    """A batch that was full is taken for one that is not through yet, and sent again for ever."""
    real = replica.absorb

    def absorb(answer: Any, sent: Any, state: Any, local: Any, **named: Any) -> Any:
        result = real(answer, sent, state, local, **named)
        if len(sent) < 2:
            return result
        return replace(result, cleared=(), drained=False, pointers={
            key: replace(pointer, ours=local.pointers[key].ours if key in local.pointers else None)
            for key, pointer in result.pointers.items()
        })  # fmt: skip

    patch.setattr(replica, "absorb", absorb)


def asks_until_told_five_times(patch: Patch) -> None:
    """That there is nothing more is believed when it is said for the fifth time."""
    real = replica.absorb
    told: dict[str, int] = {}

    def absorb(answer: Any, sent: Any, state: Any, local: Any, **named: Any) -> Any:
        result = real(answer, sent, state, local, **named)
        if not result.drained or result.offer_again or result.differs:
            return result
        told[state.device] = told.get(state.device, 0) + 1
        return replace(result, drained=told[state.device] % 5 == 0)

    patch.setattr(replica, "absorb", absorb)


def cursor_stays(patch: Patch) -> None:
    """The cursor does not move."""
    real = replica._advance
    patch.setattr(replica, "_advance", lambda state, answer, modern: replace(
        real(state, answer, modern), cursor=state.cursor))  # fmt: skip


def resync_ignored(patch: Patch) -> None:
    """That a cursor is not of the server's log is no news, and what the server lacks is not offered."""
    real = replica.absorb

    def absorb(answer: Any, sent: Any, state: Any, local: Any, **named: Any) -> Any:
        return real(replace(answer, resync=False, digest=None), sent, state, local, **named)

    patch.setattr(replica, "absorb", absorb)


def torn_transaction(patch: Patch) -> None:
    """Rows, pointers and marks reach the disk one by one."""

    @contextmanager
    def transaction(self: Any) -> Iterator[Any]:
        yield self.image

    patch.setattr(fleet_replica.ReplicaStore, "transaction", transaction)


def unmatched_replies(patch: Patch) -> None:
    """Any answer counts for whatever was said last."""
    patch.setattr(replica, "believed", lambda answer, ask: True)


def login_page_believed(patch: Patch) -> None:
    """Whatever comes with a status of success is an answer; one that cannot be read says nothing new."""
    real = fleet_clients.ModernV2.take_in

    def take_in(self: Any, answer: bytes) -> str:
        try:
            return real(self, answer)
        except NoAnswer:
            with self.store.transaction() as image:
                for item in self.sent:
                    image.pending.pop(item.n, None)
            return ""

    patch.setattr(fleet_clients.ModernV2, "take_in", take_in)


def any_wire_believed(patch: Patch) -> None:
    """An answer in another wire version than was asked for is taken for one."""
    real = fleet_base.JsonClient.read_json

    def read_json(self: Any, answer: bytes) -> Any:
        return real(self, answer.replace(b'"protocol_version":"inbetweenies-v1"', b'"was":0'))

    patch.setattr(fleet_base.JsonClient, "read_json", read_json)


def refused_is_forgotten(patch: Patch) -> None:
    """What a server refused is not kept."""
    real = replica.absorb

    def absorb(answer: Any, sent: Any, state: Any, local: Any, **named: Any) -> Any:
        result = real(answer, sent, state, local, **named)
        return replace(result, cleared=(*result.cleared, *result.notes))

    patch.setattr(replica, "absorb", absorb)
