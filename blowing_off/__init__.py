"""Blowing-Off: a replica of the home that is always writable, and syncs when a server can be reached.

The public names, loaded when first used, so that importing the package stays cheap. Start with `BlowingOffClient`::

    async with BlowingOffClient("home.db", "https://home.example", token) as client:
        lamp = await client.add("device", "Lamp", {"on": False})
        await client.change(lamp.id, patch={"on": True})
        report = await client.sync()
"""

from importlib import import_module as _import
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import BlowingOffClient, NotConnected, NotFound
    from .migration import VersionMigration
    from .reports import Blocked, Progress, Status, SyncReport, Version
    from .store import ConflictRecord, LocalStore, SyncRunning
    from .transport import BadAnswer, HttpTransport, Refused, Transport, TransportError, Unauthorized, Unreachable
    from .updates.manager import AutoUpdateManager
    from .values import NotStorable

_HOMES = {
    "AutoUpdateManager": ".updates.manager",
    "Blocked": ".reports",
    "BlowingOffClient": ".client",
    "NotConnected": ".client",
    "NotFound": ".client",
    "NotStorable": ".values",
    "Progress": ".reports",
    "Status": ".reports",
    "SyncReport": ".reports",
    "Version": ".reports",
    "VersionMigration": ".migration",
    "ConflictRecord": ".store",
    "LocalStore": ".store",
    "SyncRunning": ".store",
    "BadAnswer": ".transport",
    "HttpTransport": ".transport",
    "Refused": ".transport",
    "Transport": ".transport",
    "TransportError": ".transport",
    "Unauthorized": ".transport",
    "Unreachable": ".transport",
}

__all__ = [
    "AutoUpdateManager",
    "BadAnswer",
    "Blocked",
    "BlowingOffClient",
    "ConflictRecord",
    "HttpTransport",
    "LocalStore",
    "NotConnected",
    "NotFound",
    "NotStorable",
    "Progress",
    "Refused",
    "Status",
    "SyncReport",
    "SyncRunning",
    "Transport",
    "TransportError",
    "Unauthorized",
    "Unreachable",
    "Version",
    "VersionMigration",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import(_HOMES[name], __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
