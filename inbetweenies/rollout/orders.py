"""All that was decided about what is served, as the store keeps it, and what it comes to for one graph (PROTOCOL 12.3).

Three documents say it: what the operator decided about each wire version, the rollouts, and the features that are on.
A message is routed by what they say, and served only if they still say it inside of its own transaction (5.11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from ..model import Document
from ..registry import DOCUMENT as REGISTRY
from ..registry import Decisions, Registry, decisions_in
from .canary import reaches, seen_by
from .flags import DOCUMENT as FLAGS
from .flags import FEATURES, Feature, Flags, flags_in
from .states import DOCUMENT as ROLLOUTS
from .states import Rollout, Rollouts, rollouts_in

#: The documents of the store that are read in each transaction.
DOCUMENTS: Final = (REGISTRY, ROLLOUTS, FLAGS)


class Orders(Struct, frozen=True, kw_only=True):
    """What was decided.

    Attributes:
        documents: as they are in the store, to be compared with what is there when it counts.
        decisions: about each wire version.
        rollouts: the newest of each subject.
        on: the features that are on.
    """

    documents: Mapping[str, Document]
    decisions: Decisions = Decisions()
    rollouts: Rollouts = Rollouts()
    on: frozenset[str] = Flags().on()

    @property
    def governing(self) -> tuple[Rollout, ...]:
        """The rollouts that say to whom something is given."""
        return tuple(one for one in self.rollouts.rollouts.values() if one.governs)

    def has(self, feature: Feature, graph: str) -> bool:
        """PROTOCOL 12.4: whether a feature is on for `graph`: it, and all that it needs, is on, and no rollout keeps
        one of them from this graph."""
        rollout = self.rollouts.rollouts.get(feature.name)
        given = rollout is None or not rollout.governs or reaches(rollout, graph)
        return given and feature.name in self.on and all(self.has(FEATURES[need], graph) for need in feature.needs)

    def registry(self, registry: Registry, graph: str) -> Registry:
        """PROTOCOL 12.5: the registry as it is for `graph`; the very same one if nothing is rolled out."""
        enhanced = self.has(Feature.ENHANCED_SYNC, graph)
        if enhanced and not self.governing:
            return registry
        return seen_by(graph, registry, self.rollouts, enhanced=enhanced)


def orders_in(documents: Mapping[str, Document]) -> Orders:
    """What the `DOCUMENTS` of a store say. Raises `StoreCorrupt`: one of them nothing that can be understood."""
    return Orders(
        documents=documents,
        decisions=decisions_in(documents[REGISTRY]),
        rollouts=rollouts_in(documents[ROLLOUTS]),
        on=flags_in(documents[FLAGS]).on(),
    )


#: What holds in a store in which nothing was ever decided.
NONE: Final = orders_in({name: Document() for name in DOCUMENTS})
