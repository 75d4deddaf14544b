"""Inbetweenies: a sync protocol whose versions can be rolled out to a mixed fleet, watched, and rolled back.

The public names, loaded when first used, so that importing the package stays cheap and pure. Start with
`ProtocolFallback`; the specification is ``PROTOCOL.md`` beside this file.
"""

from importlib import import_module as _import
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import (
        BodyNotValidForVersion,
        InbetweeniesError,
        LocalProtocolError,
        NoCommonVersion,
        RemoteProtocolError,
        ServedVersionMismatch,
        StoreBusy,
        StoreCorrupt,
        StoreError,
        StoreFull,
        UnsupportedVersion,
        VersionDisabled,
        VersionRefused,
    )
    from .limits import Limits
    from .merge import Policy, Value, Verdict, manual
    from .model import Change, Context, Entity, Relationship, make_version
    from .negotiation import negotiate, select
    from .offers import VersionPolicy
    from .ops.canary import CanaryDeployment
    from .ops.flags import FeatureFlags
    from .ops.integrity import DataIntegrityMonitor
    from .ops.notify import UserNotification
    from .ops.performance import PerformanceMonitor
    from .ops.triggers import EmergencyTriggers
    from .registry import Notice, Registry
    from .rest import Adapters, versioned_endpoint
    from .rollout.flags import Feature
    from .router import ProtocolFallback, ProtocolHandler, V1ProtocolHandler, V2ProtocolHandler
    from .store import Store, Transaction
    from .stores.ddl import migration_transaction
    from .stores.memory import MemoryStore
    from .stores.sqlite import SqliteStore

_HOMES = {
    "BodyNotValidForVersion": ".errors",
    "InbetweeniesError": ".errors",
    "LocalProtocolError": ".errors",
    "NoCommonVersion": ".errors",
    "RemoteProtocolError": ".errors",
    "ServedVersionMismatch": ".errors",
    "StoreBusy": ".errors",
    "StoreCorrupt": ".errors",
    "StoreError": ".errors",
    "StoreFull": ".errors",
    "UnsupportedVersion": ".errors",
    "VersionDisabled": ".errors",
    "VersionRefused": ".errors",
    "Limits": ".limits",
    "Policy": ".merge",
    "Value": ".merge",
    "Verdict": ".merge",
    "manual": ".merge",
    "Change": ".model",
    "Context": ".model",
    "Entity": ".model",
    "Relationship": ".model",
    "make_version": ".model",
    "negotiate": ".negotiation",
    "select": ".negotiation",
    "VersionPolicy": ".offers",
    "CanaryDeployment": ".ops.canary",
    "FeatureFlags": ".ops.flags",
    "PerformanceMonitor": ".ops.performance",
    "UserNotification": ".ops.notify",
    "EmergencyTriggers": ".ops.triggers",
    "DataIntegrityMonitor": ".ops.integrity",
    "Notice": ".registry",
    "Registry": ".registry",
    "Adapters": ".rest",
    "versioned_endpoint": ".rest",
    "Feature": ".rollout.flags",
    "ProtocolFallback": ".router",
    "ProtocolHandler": ".router",
    "V1ProtocolHandler": ".router",
    "V2ProtocolHandler": ".router",
    "Store": ".store",
    "Transaction": ".store",
    "migration_transaction": ".stores.ddl",
    "MemoryStore": ".stores.memory",
    "SqliteStore": ".stores.sqlite",
}

__version__ = "1.0.0"
__all__ = [
    "Adapters",
    "BodyNotValidForVersion",
    "CanaryDeployment",
    "Change",
    "Context",
    "DataIntegrityMonitor",
    "EmergencyTriggers",
    "Entity",
    "Feature",
    "FeatureFlags",
    "InbetweeniesError",
    "Limits",
    "LocalProtocolError",
    "MemoryStore",
    "NoCommonVersion",
    "Notice",
    "PerformanceMonitor",
    "Policy",
    "ProtocolFallback",
    "ProtocolHandler",
    "Registry",
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
    "UnsupportedVersion",
    "UserNotification",
    "V1ProtocolHandler",
    "V2ProtocolHandler",
    "Value",
    "Verdict",
    "VersionDisabled",
    "VersionPolicy",
    "VersionRefused",
    "make_version",
    "manual",
    "migration_transaction",
    "negotiate",
    "select",
    "versioned_endpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
