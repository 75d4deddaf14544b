"""What is left out of text that is handed on: whatever opens something, or looks as if it might.

Rather too much than too little: what is lost is a word in a log, what is kept may be read by many.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final

REDACTED: Final = "[redacted]"
#: Shorter values of the environment are words that stand elsewhere, too.
_SECRET_CHARS_MIN: Final = 4
_NAMES: Final = r"pass(?:word|wd|phrase)?|pwd|secret|token|api[_-]?key|private[_-]?key|credential|authorization|cookie"
_SECRET_NAME: Final = re.compile(_NAMES + "|key", re.IGNORECASE)

#: Each with what it is replaced by.
_RULES: Final = (
    # Our own tokens: the key id is public, and says whose it was.
    (re.compile(r"ib1_([0-9a-f]{8})_[A-Za-z0-9_-]+"), rf"ib1_\1_{REDACTED}"),
    # Before the names, or `Authorization: Bearer x` would lose its first word only.
    (re.compile(r"\b(bearer|basic)[\s:=]+[^\s\"',;]+", re.IGNORECASE), rf"\1 {REDACTED}"),
    (re.compile(rf"((?:{_NAMES})[\w-]*[\"']?\s*[:=]\s*)(?!{re.escape(REDACTED)})"
                r"(\"[^\"]*\"?|'[^']*'?|[^\s,;&]+)", re.IGNORECASE), rf"\1{REDACTED}"),
    (re.compile(r"(://)[^/\s@]+@"), rf"\1{REDACTED}@"),
    (re.compile(r"\beyJ[\w-]{8,}(?:\.[\w-]*)*"), REDACTED),
)  # fmt: skip
_LONG: Final = re.compile(r"[A-Za-z0-9_+/=-]{24,}")


def redacted(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without `secrets`, tokens, passwords, and what is as random as these are. Hashes in hexadecimal digits,
    ids and times stay."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return _LONG.sub(_unless_plain, text)


def _unless_plain(match: re.Match[str]) -> str:
    """Words, ids and hashes keep to one kind of letters for a while; what is drawn at random changes all the time."""
    kinds = ["upper" if one.isupper() else "lower" if one.islower() else "digit" for one in match[0] if one.isalnum()]
    changes = sum(one != other for one, other in pairwise(kinds))
    return REDACTED if len(set(kinds)) == 3 and 4 * changes >= len(match[0]) else match[0]


def redacted_value(value: Any, secrets: Iterable[str] = ()) -> Any:
    """The same of all text in a value of JSON; what is under the name of a secret goes as a whole."""
    if isinstance(value, str):
        return redacted(value, secrets)
    if isinstance(value, list | tuple):
        return [redacted_value(one, secrets) for one in value]
    if isinstance(value, dict):
        return {
            redacted(key, secrets): REDACTED
            if isinstance(one, str) and re.fullmatch(_NAMES, key, re.IGNORECASE)
            else redacted_value(one, secrets)
            for key, one in value.items()
        }
    return value


def secrets_in(environment: Mapping[str, str]) -> tuple[str, ...]:
    """The values of an environment that are secret, by their names."""
    return tuple(
        value for name, value in environment.items() if _SECRET_NAME.search(name) and len(value) >= _SECRET_CHARS_MIN
    )
