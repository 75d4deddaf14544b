"""What a drill is measured by: `criteria`, one by one, each with its value and its limit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from msgspec import Struct

from .basics import (
    AT_ONCE_S,
    BY_ITSELF_S,
    DOWNTIME_S,
    FLIP_P99_S,
    INFORMED_S,
    ROLLBACK_S,
    SECONDS_PER_100K,
)
from .findings import Findings
from .ledger import Ledger, quantile

Value: TypeAlias = int | float | str | None


class Criterion(Struct, frozen=True, kw_only=True):
    """One line of the outcome.

    Attributes:
        value: what was measured; None of what never came about.
        limit: what it may be at most, or has to be if it is a word.
        unit: ``s`` of seconds.
        decides: whether the drill fails if it is not met; a figure does not.
        why: what a person should know of it.
    """

    name: str
    value: Value
    limit: Value
    unit: str = ""
    decides: bool = True
    why: str = ""

    @property
    def met(self) -> bool:
        if isinstance(self.limit, str) or self.value is None or isinstance(self.value, str) or self.limit is None:
            return self.value == self.limit
        return self.value <= self.limit

    @property
    def result(self) -> Literal["PASS", "FAIL", "within", "above"]:
        """``PASS`` or ``FAIL``; of a figure, whether it is ``within`` its limit or ``above``."""
        if self.decides:
            return "PASS" if self.met else "FAIL"
        return "within" if self.met else "above"


def criteria(found: Findings, ledger: Ledger, clients: Iterable[str]) -> list[Criterion]:
    """All of them, in the order in which they are shown."""
    return [*_losses(found, ledger), *_rollbacks(found), *_service(found, ledger, clients), *_figures(found, ledger)]


def _losses(found: Findings, ledger: Ledger) -> list[Criterion]:
    failures = ledger.failures()
    lost, again, gone = found.lost, found.lost_by_restore, found.forgotten
    unequal = [f"{one.name}, {one.unequal}" for one in found.replicas if not one.equal]
    return [
        Criterion(
            name="acknowledged writes lost",
            value=len(lost),
            limit=0,
            why=f"of {found.acked:,}" + _first(f"{one.client} wrote {one.says} to {one.id}" for one in lost),
        ),
        Criterion(
            name="failed requests outside of the injected fault",
            value=len(failures),
            limit=0,
            why=f"of {len(ledger.requests):,}"
            + _first(f"{one.client} got {one.status or 'no answer'}: {one.why}" for one in failures),
        ),
        Criterion(
            name="values lost that only the newer version can say",
            value=len(gone),
            limit=0,
            why=f"of {sum(len(one.says) for one in ledger.kept())}"
            + _first(f"{name} of {one.kind} {one.id} in {one.graph}" for one, name in gone),
        ),
        Criterion(name="backup verified", value=found.backup, limit="good"),
        Criterion(name="backup restored and opened", value=found.restored, limit="good"),
        Criterion(
            name="writes that did not come back after the restore",
            value=None if found.at_risk is None else len(again),
            limit=0,
            why=f"of {found.at_risk or 0:,}" + _first(f"{one.client} wrote {one.says} to {one.id}" for one in again),
        ),
        Criterion(
            name="replicas that do not hold what the server does",
            value=len(unequal) if found.replicas else None,
            limit=0,
            why=f"of {len(found.replicas)}" + _first(unequal),
        ),
    ]


def _rollbacks(found: Findings) -> list[Criterion]:
    extra = sum(count - 1 for count in found.advances)
    in_effect = _longest(found.in_effect)
    return [
        Criterion(
            name="the rollout reached everybody", value="yes" if found.reached else "no", limit="yes", why=found.stuck
        ),
        Criterion(
            name="advances too many, of two controllers at once",
            value=extra if found.advances else None,
            limit=0,
            why=f"in {len(found.advances)} steps",
        ),
        *_timed("rolled back by itself", found.by_itself, ROLLBACK_S, BY_ITSELF_S, found.why),
        *_timed("rolled back by command", found.by_command, ROLLBACK_S, AT_ONCE_S),
        *_timed("rollback in effect in every process", in_effect, ROLLBACK_S, AT_ONCE_S),
        Criterion(name="everybody informed", value=_longest(found.informed), limit=INFORMED_S, unit="s"),
        Criterion(
            name="everybody concerned told of a rollback", value=_longest(found.notified), limit=INFORMED_S, unit="s"
        ),
        Criterion(
            name="told twice, or without being concerned",
            value=len(found.nagged) if found.notified else None,
            limit=0,
            why=", ".join(found.nagged[:3]),
        ),
        Criterion(name="channels reached in a test", value=found.channels, limit="all"),
    ]


def _service(found: Findings, ledger: Ledger, clients: Iterable[str]) -> list[Criterion]:
    gap, who = ledger.longest_gap(clients, found.began, found.ended)
    return [Criterion(name="downtime", value=gap, limit=DOWNTIME_S, unit="s", why=f"of {who}" if who else "")]


def _figures(found: Findings, ledger: Ledger) -> list[Criterion]:
    since, until = found.flipping
    requests = [one.seconds for one in ledger.requests if since <= one.at <= until]
    flips, asked = f"of {len(found.flips)}", f"of {len(requests):,}"
    return [
        _figure("flip durable, p99", quantile(found.switched, 0.99), FLIP_P99_S, flips),
        _figure("flip in effect in every process, longest", _longest(found.flips), AT_ONCE_S, flips),
        _figure("request while flipping, p99", quantile(requests, 0.99), FLIP_P99_S, asked),
        _figure("request while flipping, longest", quantile(requests, 1), AT_ONCE_S, asked),
        _figure("drill", found.seconds, SECONDS_PER_100K * max(1.0, found.rows / 100_000), f"on {found.rows:,} rows"),
    ]


def _timed(name: str, value: float | None, limit: float, sharper: float, why: str = "") -> list[Criterion]:
    return [
        Criterion(name=name, value=value, limit=limit, unit="s", why=why),
        _figure(f"{name}, as built for", value, sharper),
    ]


def _figure(name: str, value: float | None, limit: float, why: str = "") -> Criterion:
    return Criterion(name=name, value=value, limit=limit, unit="s", decides=False, why=why)


def _longest(times: list[float | None]) -> float | None:
    """None if one of them never came, or there are none."""
    came = [one for one in times if one is not None]
    return max(came) if times and len(came) == len(times) else None


def _first(told: Iterable[str]) -> str:
    found = next(iter(told), None)
    return "" if found is None else f"; the first: {found}"
