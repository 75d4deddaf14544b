"""The risk matrix: what can go wrong with a rollout, and for each what checks it, what acts on it, what rehearses it.

A risk that names nothing of one of these is refused; that what they name is there is for a test, which can look.
"""

from __future__ import annotations

import re
import tomllib
from typing import Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from ..errors import LocalProtocolError
from .kept import TEXT_CHARS_MAX

Level: TypeAlias = Literal["low", "medium", "high", "critical"]

#: ``package.module:name.name``, as entry points are written.
_DOTTED: Final = re.compile(r"[a-z_][\w]*(\.[a-z_][\w]*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)


class Risk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One risk.

    Attributes:
        name: in the words of the operator.
        probability, impact: as if nothing were done about it.
        mitigation: what is done about it.
        owner: who acts: ``triggers`` without being asked, ``operator`` else.
        checks: what looks for it, as ``module:name``.
        rows: the rows of the policy that act on it.
        scenarios: the drills in which it is rehearsed.
        detected_s: after how many seconds it is noticed at the latest, where it happens.
        residual: what is left of it, in words.

    Raises:
        LocalProtocolError: a name or a text is none.
    """

    name: str
    probability: Level
    impact: Level
    mitigation: str
    owner: Literal["operator", "triggers"]
    checks: tuple[str, ...]
    rows: tuple[str, ...]
    scenarios: tuple[str, ...]
    detected_s: int
    residual: str

    def __post_init__(self) -> None:
        for text in (self.name, self.mitigation, self.residual):
            if not (text.strip() and text.isprintable() and len(text) <= TEXT_CHARS_MAX):
                raise LocalProtocolError(f"expected texts of 1 to {TEXT_CHARS_MAX} printable characters; got another")
        for what, names in (("checks", self.checks), ("rows", self.rows), ("scenarios", self.scenarios)):
            if not names or len(set(names)) < len(names):
                raise LocalProtocolError(f"risk {self.name}: expected {what}, each once; got none, or one twice")
        if not all(map(_DOTTED.fullmatch, self.checks)):
            raise LocalProtocolError(f"risk {self.name}: expected checks such as package.module:name; got others")
        if self.detected_s < 0:
            raise LocalProtocolError(f"risk {self.name}: expected detected_s from 0; got {self.detected_s}")


class _Matrix(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    risk: tuple[Risk, ...]


def risks_in(text: str) -> tuple[Risk, ...]:
    """The risks that a TOML file names. Raises `LocalProtocolError`: it is no risk matrix."""
    try:
        risks = msgspec.convert(tomllib.loads(text), _Matrix).risk
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise LocalProtocolError(f"expected a risk matrix in TOML; got something else: {error}") from error
    if not risks or len({one.name for one in risks}) < len(risks):
        raise LocalProtocolError(f"expected risks with a name each; got {len(risks)}, or a name twice")
    return risks
