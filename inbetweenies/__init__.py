"""Inbetweenies: a sync protocol whose versions can be rolled out to a mixed fleet, watched, and rolled back.

The public names, loaded when first used, so that importing the package stays cheap and pure. Start with
`ProtocolFallback`; the specification is ``PROTOCOL.md`` beside this file.
"""

from importlib import import_module as _import
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        InbetweeniesError,
        LocalProtocolError,
        RemoteProtocolError,
        ServedVersionMismatch,
        StoreBusy,
        StoreCorrupt,
        StoreError,
        StoreFull,
        VersionRefused,
    )
    from .limits import Limits
    from .merge import Policy
    from .model import Change, Context, Entity, Relationship, make_version
    from .router import ProtocolFallback, ProtocolHandler, V1ProtocolHandler, V2ProtocolHandler
    from .store import Store, Transaction
    from .stores.memory import MemoryStore
    from .stores.sqlite import SqliteStore

_HOMES = {
    "InbetweeniesError": ".errors",
    "LocalProtocolError": ".errors",
    "RemoteProtocolError": ".errors",
    "ServedVersionMismatch": ".errors",
    "StoreBusy": ".errors",
    "StoreCorrupt": ".errors",
    "StoreError": ".errors",
    "StoreFull": ".errors",
    "VersionRefused": ".errors",
    "Limits": ".limits",
    "Policy": ".merge",
    "Change": ".model",
    "Context": ".model",
    "Entity": ".model",
    "Relationship": ".model",
    "make_version": ".model",
    "ProtocolFallback": ".router",
    "ProtocolHandler": ".router",
    "V1ProtocolHandler": ".router",
    "V2ProtocolHandler": ".router",
    "Store": ".store",
    "Transaction": ".store",
    "MemoryStore": ".stores.memory",
    "SqliteStore": ".stores.sqlite",
}

__version__ = "1.0.0"
__all__ = [
    "Change",
    "Context",
    "Entity",
    "InbetweeniesError",
    "Limits",
    "LocalProtocolError",
    "MemoryStore",
    "Policy",
    "ProtocolFallback",
    "ProtocolHandler",
    "Relationship",
    "RemoteProtocolError",
    "ServedVersionMismatch",
    "SqliteStore",
    "Store",
    "StoreBusy",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "Transaction",
    "V1ProtocolHandler",
    "V2ProtocolHandler",
    "VersionRefused",
    "make_version",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
