"""``python -m blowing_off.drill.server SWITCH serve ...``: ``inbetweenies serve``, which fails on demand.

Where a file called `SWITCH` names graphs, one a line, their requests are answered as by a store that is away. Nothing
else is different, so that what notices and ends that is what would do so anywhere.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from inbetweenies import cli, router
from inbetweenies.exchange import Reply
from inbetweenies.model import Context

_AWAY = b'{"error": "unavailable", "code": "unavailable", "detail": "made to fail by the drill", "status": 503}'


def main(arguments: list[str]) -> None:
    """Serve, with the switch that the first of `arguments` names."""
    switch = Path(arguments[0])

    class Switched(router.ProtocolFallback):
        """Serves, or fails, as the switch says."""

        async def handle(self, body: bytes, *, context: Context, **asked: Any) -> Reply:
            if context.graph in _failing(switch):
                return Reply(status=503, body=_AWAY, notice="made to fail by the drill")
            return await super().handle(body, context=context, **asked)

    # `serve` makes its router itself, as ever.
    router.ProtocolFallback = Switched  # type: ignore[misc]
    cli.main(arguments[1:])


def _failing(switch: Path) -> frozenset[str]:
    try:
        return frozenset(switch.read_text().splitlines())
    except FileNotFoundError:
        return frozenset()


if __name__ == "__main__":
    main(sys.argv[1:])
