"""Negotiation over every state of five versions: minutes, so only ``python -m tests.deep negotiation`` runs it."""

from __future__ import annotations

import os

from tests.core.negotiation_model import CHAIN, NAMES, SIGNALS, enumerate_all
from tests.deep.stages import NEGOTIATION


def test_five_versions_along_the_chain_with_every_hint_and_signal() -> None:
    wanted = int(os.environ.get("DEEP_EXAMPLES", NEGOTIATION))
    count = enumerate_all(NAMES, CHAIN, most=wanted)

    print(
        f"{count:,} cases: 5 versions, 31 offers, 4 states each, 8 hints, {len(SIGNALS)} first answers, 4 kinds of body"
    )
    assert count >= min(wanted, NEGOTIATION)
    assert count <= 31 * (4**5 - 1) * 8 * len(SIGNALS) * 4 == NEGOTIATION
