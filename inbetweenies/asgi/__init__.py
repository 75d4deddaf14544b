"""HTTP around the exchange: `app()` is an ASGI callable, to be served alone (`run`) or mounted under any prefix.

It needs no framework and no lifespan. Read `application.App.__call__`; `http` is below it, `serving` around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .application import App, app, release
from .http import ServerLimits

if TYPE_CHECKING:
    from .serving import run

__all__ = ["App", "ServerLimits", "app", "release", "run"]


def __getattr__(name: str) -> Any:
    # Loaded by whoever serves with it: to mount `app()` elsewhere needs no uvicorn.
    if name != "run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .serving import run

    return run
