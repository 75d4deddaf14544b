"""The wire versions that a server knows, and what its operator decided about each (PROTOCOL 5.2). Pure.

A `Registry` is what is in force: made of the versions that are installed, best first, and of the `Decisions` that are
kept in the store, so that they outlive the process and bind every process that serves the same store. Order comes from
the registry alone: ``inbetweenies-v10`` is not older than ``inbetweenies-v2``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr, replace

from .errors import LocalProtocolError, RemoteProtocolError, StoreCorrupt
from .limits import checked_decode
from .model import Document

#: The name under which a store keeps `Decisions`.
DOCUMENT: Final = "registry"
#: Stands for all of the accepted (or offered) versions.
ALL: Final = ("*",)

State: TypeAlias = Literal["deployed", "offered", "accepted", "disabled", "retired"]
Status: TypeAlias = Literal["current", "supported", "deprecated", "disabled", "retired"]

_DOCS_BYTES_MAX: Final = 100  # a problem has room for no more (PROTOCOL 2.6)
_LINK_BYTES_MAX: Final = 500


class Notice(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """PROTOCOL 5.12: a version is on its way out. Times are in microseconds since 1970.

    Attributes:
        since: when it became deprecated.
        sunset: when it is no longer served, not before `since`; None if that is not decided.
        successor: the version to move to.
        link: where people can read about it.
    """

    since: int
    sunset: int | None = None
    successor: str | None = None
    link: str | None = None

    def __post_init__(self) -> None:
        if self.sunset is not None and self.sunset < self.since:
            raise LocalProtocolError("expected a sunset at or after the deprecation; got one before it")
        for text in (self.successor, self.link):
            # Both travel between < and > in headers.
            if text is not None and not (
                text.isascii()
                and text.isprintable()
                and 0 < len(text) <= _LINK_BYTES_MAX
                and not set(' <>"') & set(text)
            ):
                raise LocalProtocolError(
                    f"expected a successor and a link of 1 to {_LINK_BYTES_MAX} printable ASCII characters, without "
                    "spaces, quotes and brackets; got others"
                )


class Decision(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was decided about one version. One that nothing was decided about is deployed."""

    state: State = "deployed"
    notice: Notice | None = None


class Decisions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that was decided, by version name; names need not be installed (yet)."""

    versions: Mapping[str, Decision] = {}

    def of(self, name: str) -> Decision:
        """What was decided about `name`."""
        return self.versions.get(name, Decision())

    def but(self, name: str, decision: Decision) -> Decisions:
        """The same, with another decision about `name`."""
        kept = {one: other for one, other in self.versions.items() if one != name}
        return Decisions(versions=kept if decision == Decision() else {**kept, name: decision})


_decisions = msgspec.json.Decoder(Decisions)
_encode = msgspec.json.Encoder(order="deterministic").encode


def decisions_in(document: Document) -> Decisions:
    """What a document of the store holds; nothing, if it was never written.

    Raises:
        StoreCorrupt: it holds something else.
    """
    if not document.body:
        return Decisions()
    try:
        return checked_decode(_decisions, document.body)
    except (RemoteProtocolError, LocalProtocolError) as error:
        raise StoreCorrupt(
            "expected the decisions about wire versions in the store; got something else, perhaps of a newer release"
        ) from error


def document_of(decisions: Decisions) -> bytes:
    """`decisions` as the body of a document."""
    return _encode(decisions)


class Registry(Struct, frozen=True, kw_only=True):
    """PROTOCOL 5.2: the wire versions a server knows, best first.

    Attributes:
        accepted: served when a body names them.
        offered: of these, the ones that peers are told of.
        deployed: of these, the ones that every instance of this server has, so that a peer may come back with them.
        disabled: known, switched off for now; never decoded as something else.
        retired: known, past their sunset.
        fallback: served to a bare unknown version; None for none.
        missing: meant by a body that names no version.
        notices: which versions are on their way out.
        revision: changes with every change of all this; an opaque word.
        docs: where people can read which release speaks which version.

    Raises:
        LocalProtocolError: the three are not nested, none is accepted, or one is accepted and switched off at once.
    """

    accepted: tuple[str, ...]
    offered: tuple[str, ...] = ALL
    deployed: tuple[str, ...] = ALL
    disabled: frozenset[str] = frozenset()
    retired: frozenset[str] = frozenset()
    fallback: str | None = None
    missing: str | None = None
    notices: Mapping[str, Notice] = {}
    revision: str = ""
    docs: str | None = None

    def __post_init__(self) -> None:
        if self.offered == ALL:
            force_setattr(self, "offered", self.accepted)
        if self.deployed == ALL:
            force_setattr(self, "deployed", self.offered)
        if not self.accepted:
            raise LocalProtocolError("expected a registry that accepts at least one wire version; got one without")
        for name, inner, outer in (("offered", self.offered, self.accepted), ("deployed", self.deployed, self.offered)):
            if not set(inner) <= set(outer):
                raise LocalProtocolError(
                    f"expected deployed versions to be offered, and offered ones to be accepted; got others {name}: "
                    f"{', '.join(sorted(set(inner) - set(outer)))}"
                )
        states = [*set(self.accepted), *self.disabled, *self.retired]
        if len(set(states)) != len(states):
            raise LocalProtocolError("expected each wire version to be accepted, disabled or retired; got one twice")
        if self.docs is not None and not (self.docs.isascii() and len(self.docs) <= _DOCS_BYTES_MAX):
            raise LocalProtocolError(f"expected docs to be a URL of at most {_DOCS_BYTES_MAX} characters; got another")

    @property
    def preference(self) -> tuple[str, ...]:
        """The accepted versions in the order in which they are chosen: those deployed, those offered, the rest; among
        each of these the best first."""
        last = dict.fromkeys(self.offered, 1) | dict.fromkeys(self.deployed, 0)
        return tuple(sorted(self.accepted, key=lambda name: last.get(name, 2)))

    @property
    def supported(self) -> tuple[str, ...]:
        """What peers are told: the offered versions, in the order in which they are chosen."""
        return self.preference[: len(set(self.offered))]

    def status(self, name: str) -> Status:
        """PROTOCOL 5.10: how discovery calls the state of a known version."""
        if name in self.retired:
            return "retired"
        if name in self.disabled:
            return "disabled"
        # What is accepted only for those who are still on their way elsewhere is told as what it is.
        if name in self.notices or name not in self.offered:
            return "deprecated"
        return "current" if name == self.supported[0] else "supported"


def registry_of(
    installed: Iterable[str],
    decisions: Decisions,
    *,
    disabled: frozenset[str] = frozenset(),
    retired: frozenset[str] = frozenset(),
    fallback: str | None = None,
    missing: str | None = None,
    docs: str | None = None,
    changes: int = 0,
) -> Registry:
    """The registry in force: `installed` versions, best first, under `decisions`, less what a process itself disabled
    or retired. `changes` counts how often the decisions were changed.

    Raises:
        LocalProtocolError: nothing would be accepted.
    """
    names = tuple(dict.fromkeys(installed))
    states: dict[str, str] = {name: decisions.of(name).state for name in (*names, *decisions.versions)}
    states |= dict.fromkeys(disabled, "disabled") | dict.fromkeys(retired, "retired")
    served = {
        state: tuple(name for name in names if states[name] in among)
        for state, among in (
            ("accepted", ("accepted", "offered", "deployed")),
            ("offered", ("offered", "deployed")),
            ("deployed", ("deployed",)),
        )
    }
    registry = Registry(
        accepted=served["accepted"],
        offered=served["offered"],
        deployed=served["deployed"],
        disabled=frozenset(name for name, state in states.items() if state == "disabled"),
        retired=frozenset(name for name, state in states.items() if state == "retired"),
        fallback=fallback,
        missing=missing,
        notices={name: one.notice for name, one in decisions.versions.items() if one.notice is not None},
        docs=docs,
    )
    # The counter tells apart what was switched off and on again; the hash, what another release has installed.
    told = _encode(registry)
    return replace(registry, revision=f"{changes}-{blake2b(told, digest_size=4).hexdigest()}")
