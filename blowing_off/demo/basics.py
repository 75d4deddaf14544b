"""What every part of the demo goes by."""

from __future__ import annotations

from typing import Any, Final

from inbetweenies.errors import InbetweeniesError

GRAPH: Final = "home"
V1: Final = "inbetweenies-v1"
V2: Final = "inbetweenies-v2"
V7: Final = "inbetweenies-v7"
SYNC: Final = "/api/v1/sync/"

START_SECONDS: Final = 60  # for the server to say that it listens; only ever reached when something hangs
STOP_SECONDS: Final = 15  # for it to end in order before it is killed
ROUNDS_MAX: Final = 8  # of everybody syncing once; two or three are enough
CAST: Final = 5  # devices that the story needs

Record = dict[str, Any]


class DemoError(InbetweeniesError):
    """The demonstration could not be given; the message says why in one sentence."""
