"""Which features are on, who switched them, and what stays true when they are switched (PROTOCOL 12.4).

`Flags` is what the store keeps; `InForce` is what a sync is held to from its beginning to its end, and what a process
goes on with while the store is away. A feature is on only while all that it needs is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final, TypeAlias

import msgspec
from msgspec import Struct

from ..errors import LocalProtocolError, StoreError
from ..model import Document
from .kept import Cause, check_name, read, written

#: The name under which a store keeps `Flags`.
DOCUMENT: Final = "flags"
LOG_MAX: Final = 200  # switches that are remembered; years of them, unless somebody plays


class Feature(Struct, frozen=True, kw_only=True):
    """Something that can be switched on and off while servers run.

    Attributes:
        name: what it is kept under.
        needs: the names of features that it does nothing without.
        default: whether it is on in a store in which nothing was switched yet. Never what a process without its store
            goes by.
    """

    GRAPH_OPERATIONS: ClassVar[Feature]
    MCP_SERVER: ClassVar[Feature]
    ENHANCED_SYNC: ClassVar[Feature]
    ENTITY_VERSIONING: ClassVar[Feature]

    name: str
    needs: tuple[str, ...] = ()
    default: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "the name of a feature")


Feature.GRAPH_OPERATIONS = Feature(name="graph_operations", default=True)
Feature.MCP_SERVER = Feature(name="mcp_server", needs=("graph_operations",))
Feature.ENTITY_VERSIONING = Feature(name="entity_versioning", default=True)
Feature.ENHANCED_SYNC = Feature(name="enhanced_sync", needs=("graph_operations", "entity_versioning"), default=True)

#: Features by name, each after all that it needs: what `catalogue` returns.
Catalogue: TypeAlias = Mapping[str, Feature]


def catalogue(features: Iterable[Feature]) -> Catalogue:
    """The features that there are, each after all that it needs.

    Raises:
        LocalProtocolError: one is there twice, comes before one that it needs, or is on by default while one that it
            needs is not.
    """
    known: dict[str, Feature] = {}
    for feature in features:
        if feature.name in known:
            raise LocalProtocolError(f"expected each feature once; got {feature.name} twice")
        for need in feature.needs:
            if need not in known:
                raise LocalProtocolError(f"expected {feature.name} after {need}, which it needs; got it before")
            if feature.default and not known[need].default:
                raise LocalProtocolError(f"expected {need}, which {feature.name} needs, on by default; got it off")
        known[feature.name] = feature
    return known


FEATURES: Final = catalogue(
    (Feature.GRAPH_OPERATIONS, Feature.MCP_SERVER, Feature.ENTITY_VERSIONING, Feature.ENHANCED_SYNC)
)


class Switch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One feature was switched."""

    feature: str
    on: bool
    cause: Cause


class Flags(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """PROTOCOL 12.4: all that was switched.

    Attributes:
        flags: whether a feature is on; one that is not in it was never switched. Features of other releases are kept.
        log: the newest `LOG_MAX` switches, oldest first.

    Raises:
        LocalProtocolError: a name is none, or the log is too long.
    """

    flags: Mapping[str, bool] = {}
    log: tuple[Switch, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.flags, *(one.feature for one in self.log)):
            check_name(name, "the name of a feature")
        if len(self.log) > LOG_MAX:
            raise LocalProtocolError(f"expected at most {LOG_MAX} switches; got {len(self.log)}")

    def on(self, features: Catalogue = FEATURES) -> frozenset[str]:
        """The features that are on: switched on, or so by default, with all that they need on."""
        on: set[str] = set()
        for feature in features.values():
            if self.flags.get(feature.name, feature.default) and on.issuperset(feature.needs):
                on.add(feature.name)
        return frozenset(on)

    def enabled(self, name: str, cause: Cause, features: Catalogue = FEATURES) -> Flags:
        """With this feature on.

        Raises:
            LocalProtocolError: there is no such feature, or one that it needs is off.
        """
        off = sorted(set(_named(name, features).needs) - self.on(features))
        if off:
            raise LocalProtocolError(f"expected {', '.join(off)} on, which {name} needs; got it off: enable it first")
        return self._switched((name,), True, cause)

    def disabled(self, name: str, cause: Cause, features: Catalogue = FEATURES) -> Flags:
        """With this feature off, and all that need it: switching off never has to wait for anything.

        Raises:
            LocalProtocolError: there is no such feature.
        """
        gone = {_named(name, features).name}
        for feature in features.values():
            if gone.intersection(feature.needs):
                gone.add(feature.name)
        on = self.on(features)
        return self._switched((name, *(one for one in features if one in gone & on)), False, cause)

    def all_disabled(self, cause: Cause, features: Catalogue = FEATURES) -> Flags:
        """With every feature off, those that only other releases know too."""
        return self._switched((*features, *self.flags), False, cause)

    def _switched(self, names: Iterable[str], on: bool, cause: Cause) -> Flags:
        changed = [name for name in dict.fromkeys(names) if self.flags.get(name) is not on]
        log = (*self.log, *(Switch(feature=name, on=on, cause=cause) for name in changed))
        return Flags(flags={**self.flags, **dict.fromkeys(changed, on)}, log=log[-LOG_MAX:])


def _named(name: str, features: Catalogue) -> Feature:
    if name not in features:
        raise LocalProtocolError(f"expected one of the features {', '.join(features)}; got another")
    return features[name]


_flags: Final = msgspec.json.Decoder(Flags)


def flags_in(document: Document) -> Flags:
    """What a document of the store holds. Raises `StoreCorrupt`: something else."""
    return read(_flags, document, "the flags") or Flags()


def document_of(flags: Flags) -> bytes:
    """`flags` as the body of a document."""
    return written(flags)


# --- what a sync is held to ---------------------------------------------------------------------------------------


class InForce(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PROTOCOL 12.4: the features as they are for one sync, whatever is switched meanwhile.

    Attributes:
        revision: of the document that says so.
        known: the features that there are.
        on: of these, the ones that are on.
    """

    revision: int
    known: frozenset[str]
    on: frozenset[str]

    def is_enabled(self, name: str) -> bool:
        """Whether this feature is on. Raises `LocalProtocolError`: there is no such feature, which is not off."""
        if name not in self.known:
            raise LocalProtocolError(f"expected one of the features {', '.join(sorted(self.known))}; got another")
        return name in self.on


def in_force(document: Document | None, last: InForce | None, features: Catalogue = FEATURES) -> InForce:
    """What holds from now on: what `document` says; if the store is away (None), what held `last`, and never what is on
    by default.

    Raises:
        StoreCorrupt: the document holds something else.
        StoreError: there is neither.
    """
    if document is not None:
        return InForce(revision=document.revision, known=frozenset(features), on=flags_in(document).on(features))
    if last is None:
        raise StoreError(
            "expected the flags from the store, or what they last were; got neither: nobody knows what was switched off"
        )
    return InForce(revision=last.revision, known=frozenset(features), on=last.on.intersection(features))


_in_force: Final = msgspec.json.Decoder(InForce)


def last_known(body: bytes) -> InForce | None:
    """What a process had written down (`last_known_body`); None if it had not yet.

    Raises:
        StoreCorrupt: `body` is something else.
    """
    return read(_in_force, Document(body=body), "the flags that were last known")


def last_known_body(flags: InForce) -> bytes:
    """`flags` for a file that is read when the store is away."""
    return written(flags)
