"""Which decision follows from what is known of a rollout: a table, total and without overlap (PROTOCOL 12.11).

What is known comes to one of finitely many `Facts`. Each of them meets exactly one `Row` of a `Policy`, which is
checked by trying them all; a policy that leaves one out, or decides one twice, is refused with an example. Two things
no policy may say: that a broken invariant is only watched, and that a rollout is taken back to what is below the floor.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from hashlib import blake2b
from itertools import product
from typing import Final, Literal, TypeAlias, get_args, get_type_hints

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from ..errors import LocalProtocolError
from .kept import TEXT_CHARS_MAX, check_name, written

Stage: TypeAlias = Literal["reached", "routed_back", "switched", "repair"]
#: From the least to what only a person does.
Decision: TypeAlias = Literal["watch", "freeze", "route_back", "switch", "repair", "restore_by_person", "fix_forward"]

ROWS_MAX: Final = 100  # a table that a person can still read; the one that is shipped has 16
TEXT_BYTES_MAX: Final = 2**18  # of a policy file: fifty times the one that is shipped
#: What can follow where a rollout stands: the ladder is only climbed.
_FOLLOWS: Final[Mapping[Stage, frozenset[Decision]]] = {
    "reached": frozenset(get_args(Decision)) - {"restore_by_person"},  # what goes on is ended first
    "routed_back": frozenset({"watch", "switch", "repair", "restore_by_person", "fix_forward"}),
    "switched": frozenset({"watch", "repair", "restore_by_person", "fix_forward"}),
    "repair": frozenset({"watch", "restore_by_person", "fix_forward"}),
}
_GOES_BACK: Final[frozenset[Decision]] = frozenset({"route_back", "switch"})


class PolicyRefused(LocalProtocolError):
    """A policy that does not say, for everything that can be known, exactly one thing that may be done."""


class Facts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PROTOCOL 12.11: what is known of a rollout, as far as anything follows from it.

    Attributes:
        stage: how far it was taken back already.
        breach: whether an invariant is broken.
        failing: whether those whom it reaches fail more often than the others: five in a row are a ``doubt``.
        worse: whether something takes more than half as long again as for the others.
        memory: whether the process has twice what it had.
        silence: whether nobody could tell what happened for too long.
        security: whether a hole is known in what is rolled out.
        floor: whether what would be served instead is ``below`` the oldest that is safe.
    """

    stage: Stage = "reached"
    breach: Literal["no", "yes"] = "no"
    failing: Literal["no", "doubt", "certain"] = "no"
    worse: Literal["no", "yes"] = "no"
    memory: Literal["no", "yes"] = "no"
    silence: Literal["no", "yes"] = "no"
    security: Literal["no", "yes"] = "no"
    floor: Literal["above", "below"] = "above"


#: The values of each fact.
DOMAINS: Final[Mapping[str, tuple[str, ...]]] = {name: get_args(hint) for name, hint in get_type_hints(Facts).items()}


@cache
def all_facts() -> tuple[Facts, ...]:
    """Everything that can be known: a few hundred."""
    return tuple(
        msgspec.convert(dict(zip(DOMAINS, values, strict=True)), Facts) for values in product(*DOMAINS.values())
    )


class Row(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One row of the decision matrix.

    Attributes:
        name: names it in verdicts.
        when: which values of which facts it is for; a fact that is not named may be any.
        decision: what follows.
        why: the reason, for whoever asks a year later.
        scenario: the drill in which it decides (`inbetweenies drill --scenario`).
        covers: what it is called in the words of the operator.

    Raises:
        PolicyRefused: a fact or a value is none, or a text cannot be shown.
    """

    name: str
    when: Mapping[str, str | tuple[str, ...]] = {}
    decision: Decision
    why: str
    scenario: str = ""
    covers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for text in (self.name, self.why):
            if not (text.strip() and text.isprintable() and len(text) <= TEXT_CHARS_MAX):
                raise PolicyRefused(
                    f"expected rows with a name and a why of 1 to {TEXT_CHARS_MAX} printable characters; got another"
                )
        for fact, told in self.when.items():
            if fact not in DOMAINS:
                raise PolicyRefused(
                    f"row {self.name}, when: expected facts of {', '.join(DOMAINS)}; got another: {fact!r:.80}"
                )
            if not told or set(_values(told)) - set(DOMAINS[fact]):
                raise PolicyRefused(
                    f"row {self.name}, when.{fact}: expected one or several of {', '.join(DOMAINS[fact])}; got "
                    f"{told!r:.80}"
                )

    def meets(self, facts: Facts) -> bool:
        return all(getattr(facts, name) in _values(told) for name, told in self.when.items())


def _values(told: str | tuple[str, ...]) -> tuple[str, ...]:
    return (told,) if isinstance(told, str) else told


class Policy(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """PROTOCOL 12.11: the decision matrix, and the security floor.

    Attributes:
        row: its rows. Their order means nothing.
        min_safe_version: the oldest wire version that is safe: nothing is taken back to an older one. None if all are.
        advised: subjects in which a hole is known, and which one.

    Raises:
        PolicyRefused: some facts meet no row or several, or a row decides what may not follow from them.
    """

    row: tuple[Row, ...]
    min_safe_version: str | None = None
    advised: Mapping[str, str] = {}

    def __post_init__(self) -> None:
        names = [one.name for one in self.row]
        if not names or len(names) > ROWS_MAX or len(set(names)) < len(names):
            raise PolicyRefused(f"expected 1 to {ROWS_MAX} rows with a name each; got {len(names)}, or a name twice")
        try:
            for name in (*self.advised, *([] if self.min_safe_version is None else [self.min_safe_version])):
                check_name(name, "a subject that is advised, or a min_safe_version,")
        except LocalProtocolError as error:
            raise PolicyRefused(str(error)) from error
        if not all(
            text.strip() and text.isprintable() and len(text) <= TEXT_CHARS_MAX for text in self.advised.values()
        ):
            raise PolicyRefused(f"expected in advised 1 to {TEXT_CHARS_MAX} printable characters each; got others")
        _check_all(self.row)

    @cached_property
    def digest(self) -> str:
        """Names what this policy says, and what no other one does."""
        return blake2b(written(self), digest_size=16).hexdigest()

    def decides(self, facts: Facts) -> Row:
        """The one row that these facts meet."""
        return self._met[facts]

    @cached_property
    def _met(self) -> Mapping[Facts, Row]:
        # Asked at each look, and hundreds of thousands of times by whoever simulates rollouts.
        return {facts: next(one for one in self.row if one.meets(facts)) for facts in all_facts()}

    def below_floor(self, subject: str, others: Iterable[str], installed: Iterable[str]) -> str:
        """What is wrong with what is served instead of the wire version `subject`; empty if nothing is.

        Args:
            others: the wire versions that are accepted; the best of them is served instead.
            installed: all that are there, best first.
        """
        ranks = {name: rank for rank, name in enumerate(installed)}
        instead = min((one for one in others if one != subject and one in ranks), key=ranks.__getitem__, default=None)
        if self.min_safe_version is None or instead is None:
            return ""
        # A floor that is not installed is of a newer release: all that is here is below it.
        if ranks[instead] <= ranks.get(self.min_safe_version, -1):
            return ""
        return f"{instead}, which would be served instead, is below {self.min_safe_version}, the oldest that is safe"


def _check_all(rows: tuple[Row, ...]) -> None:
    gaps, overlaps = list[Facts](), list[tuple[Facts, list[Row]]]()
    for facts in all_facts():
        met = [one for one in rows if one.meets(facts)]
        if not met:
            gaps.append(facts)
        elif len(met) > 1:
            overlaps.append((facts, met))
        else:
            _check_safe(facts, met[0])
    if gaps:
        raise PolicyRefused(
            f"expected a row for everything that can be known; got none for {len(gaps)}, such as {told(gaps[0])}: add "
            "a row for it, or widen one"
        )
    if overlaps:
        facts, met = overlaps[0]
        raise PolicyRefused(
            f"expected one row for each thing that can be known; got several for {len(overlaps)}, such as "
            f"{told(facts)}, which {' and '.join(one.name for one in met)} decide: narrow one of them"
        )


def _check_safe(facts: Facts, row: Row) -> None:
    if row.decision not in _FOLLOWS[facts.stage]:
        raise PolicyRefused(
            f"row {row.name}: expected one of {', '.join(sorted(_FOLLOWS[facts.stage]))} where stage is {facts.stage}, "
            f"since nothing climbs down; got {row.decision}: narrow `when.stage`"
        )
    if row.decision == "watch" and facts.stage == "reached" and facts.breach == "yes":
        raise PolicyRefused(
            f"row {row.name}: expected more than watch where an invariant is broken, since writes may be lost "
            f"meanwhile; got it for {told(facts)}"
        )
    if row.decision in _GOES_BACK and facts.floor == "below":
        raise PolicyRefused(
            f"row {row.name}: expected fix_forward where floor is below, since going back opens a hole that is known; "
            f"got {row.decision} for {told(facts)}"
        )


def told(facts: Facts) -> str:
    """Facts in words: those that are not as they are where nothing is wrong."""
    usual = asdict(Facts())
    said = [f"{name}={value}" for name, value in asdict(facts).items() if name == "stage" or value != usual[name]]
    return " ".join(said)


def policy_in(text: str) -> Policy:
    """The policy that a TOML file says. Raises `PolicyRefused`: it says none."""
    if len(text) > TEXT_BYTES_MAX:
        raise PolicyRefused(f"expected a policy of at most {TEXT_BYTES_MAX} characters; got {len(text)}")
    try:
        return msgspec.convert(tomllib.loads(text), Policy)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise PolicyRefused(f"expected a policy in TOML; got something else: {error}") from error
