"""A mixed fleet whose server leaves every contest to a person: the laws hold, and nothing that waits is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from inbetweenies import review
from inbetweenies.exchange import carry_out
from inbetweenies.limits import Limits
from inbetweenies.merge import FOR_REVIEW, Policy, ancestors, manual
from inbetweenies.model import ENTITY_TYPES, Reads
from inbetweenies.router import ProtocolFallback, ProtocolHandler
from inbetweenies.store import Store
from inbetweenies.testing.fleet import MixedFleet
from inbetweenies.testing.fleet_base import codec, installed

POLICY = Policy(rules=dict.fromkeys(ENTITY_TYPES, manual))
SETTINGS = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


class Watched(ProtocolFallback):
    """Remembers what it said that it leaves to a person."""

    left: set[tuple[str, str]]

    async def handle_sync_request(self, request: dict[str, Any]) -> dict[str, Any]:
        answer = await super().handle_sync_request(request)
        for conflict in answer.get("conflicts", ()):
            if conflict.get("resolution_strategy") == FOR_REVIEW:
                self.left.add((conflict["entity_id"], conflict["remote_version"]))
        return answer


class ForPeople(MixedFleet):
    """Clients of all kinds; everybody edits, nobody decides."""

    policy = POLICY
    met: bool = False

    def make_handler(self, store: Store | None, clock: Callable[[], int]) -> ProtocolFallback:
        handlers = {
            name: ProtocolHandler(store, wire=codec(name), clock=clock, policy=self.policy) for name in installed()
        }
        handler = Watched(store, clock=clock, handlers=handlers, policy=self.policy)
        handler.left = set()
        return handler

    def teardown(self) -> None:
        super().teardown()
        if self.failed or not self.clients:
            return
        assert self.store is not None
        assert isinstance(self.handler, Watched)
        entries = self.run(
            carry_out(lambda: review.listing(POLICY, Limits()), self.store, self.graph, write=False)
        ).entries
        type(self).met |= bool(entries)
        for id_, version in self.handler.left:
            rows = self._read(Reads(history=(id_,))).history[id_]
            parents = {row.version: row.entity().parent_versions for row in rows}
            ends = [row.version for row in rows if row.current]
            ends += [entry.theirs.version for entry in entries if entry.theirs.id == id_]
            # What the current row said too, then or later, needs nobody any more.
            line = ancestors(ends[:1], parents)
            said = [(row.entity().name, bytes(row.entity().content)) for row in rows if row.version in line]
            ends += [row.version for row in rows if (row.entity().name, bytes(row.entity().content)) in said]
            gone = any(row.deleted for row in rows if row.version in line)
            ends += [row.version for row in rows if row.deleted and gone]
            assert version in ancestors(ends, parents), f"{id_} {version} waits and is not listed"


def test_the_laws_hold_and_nothing_that_waits_is_forgotten() -> None:
    run_state_machine_as_test(ForPeople, settings=SETTINGS)

    assert ForPeople.met


def test_a_queue_without_what_waits_longest_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = review.waiting
    monkeypatch.setattr(review, "waiting", lambda *known: right(*known)[1:])
    with pytest.raises(AssertionError, match="is not listed"):
        run_state_machine_as_test(ForPeople, settings=SETTINGS)
