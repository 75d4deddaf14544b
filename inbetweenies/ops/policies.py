"""The decision matrix and the risk matrix, from the files that come with this, and an operator's own policy file.

Read `PolicyFile` for how a running server obeys a file that is changed.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from ..errors import LocalProtocolError
from ..rollout.policy import TEXT_BYTES_MAX, Policy, PolicyRefused, policy_in
from ..rollout.risks import Risk, risks_in

logger = logging.getLogger(__name__)

_SHIPPED: Final = "inbetweenies.rollout"


@cache
def standard() -> Policy:
    """The policy that comes with this (``inbetweenies/rollout/policy.toml``)."""
    return policy_in(_shipped("policy.toml"))


@cache
def risks() -> tuple[Risk, ...]:
    """The risk matrix (``inbetweenies/rollout/risks.toml``)."""
    return risks_in(_shipped("risks.toml"))


def _shipped(name: str) -> str:
    return files(_SHIPPED).joinpath(name).read_text(encoding="utf-8")


def policy_at(path: Path) -> Policy:
    """The policy that a file says.

    Raises:
        PolicyRefused: it says none; the message names the file.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        body = file.read(TEXT_BYTES_MAX + 1)
    try:
        return policy_in(body.decode())
    except (PolicyRefused, UnicodeDecodeError) as error:
        raise PolicyRefused(f"{path}: {error}") from error


class PolicyFile:
    """An operator's policy file, which is read again when it was changed.

    What is then no policy, or is gone, is logged once, and the one before stays in force: a slip of the pen leaves no
    rollout without anybody who looks.

    Raises:
        PolicyRefused, OSError: as `policy_at`, of the file as it is now.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_as = self._mark()
        self._policy = policy_at(path)

    def __call__(self) -> Policy:
        """The policy in force."""
        mark = self._mark()
        if mark != self._read_as:
            self._read_as = mark
            try:
                self._policy = policy_at(self._path)
            except (LocalProtocolError, OSError) as error:
                logger.warning("the policy before stays in force: %s", error)
        return self._policy

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino
