"""How long requests take for those whom a rollout reaches and, at the same time, for the others (PROTOCOL 12.7).

Compared are quantiles, not means, which hide what happens to the slowest; with the others now, not with another day;
and only what both have seen enough of. `exposition` writes what was counted in the text format of Prometheus.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from ..errors import LocalProtocolError

#: A quantile in thousandths.
P50, P95, P99 = 500, 950, 990
#: Longer durations count as this: about 19 hours.
VALUE_MAX: Final = 2**36 - 1

_SUB: Final = 6  # 64 buckets for each doubling: the middle of one is within 0.8 % of all that is in it
_EXACT: Final = 2 << _SUB  # below this each value has a bucket of its own
#: How many buckets there are at most: a few tens of kilobytes.
BUCKETS_MAX: Final = ((36 - _SUB) << _SUB) + (1 << _SUB)

Verdict: TypeAlias = Literal["healthy", "degraded", "hold"]


# --- histograms ---------------------------------------------------------------------------------------------------


class Histogram(Struct, kw_only=True, forbid_unknown_fields=True):
    """Whole numbers from 0, such as microseconds, within 0.8 %: however many, in at most `BUCKETS_MAX` counters.

    Histograms of several processes or times are merged without loss.

    Attributes:
        counts: how many there are by bucket.
        total: the sum of all.
        count: how many there are.

    Raises:
        LocalProtocolError: these contradict one another.
    """

    counts: dict[int, int] = {}
    total: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        if any(not 0 <= bucket < BUCKETS_MAX or count < 1 for bucket, count in self.counts.items()):
            raise LocalProtocolError(f"expected counts from 1 of buckets below {BUCKETS_MAX}; got others")
        least, most = (sum(edges(one)[end] * count for one, count in self.counts.items()) for end in (0, 1))
        if self.count != sum(self.counts.values()) or not least <= self.total <= most:
            raise LocalProtocolError("expected a count and a sum of what is in the buckets; got others")

    def record(self, value: int) -> None:
        """Count one; what is below 0 or above `VALUE_MAX` as the nearest there is."""
        value = min(max(value, 0), VALUE_MAX)
        shift = max(value.bit_length() - _SUB - 1, 0)
        bucket = (shift << _SUB) + (value >> shift)
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += value
        self.count += 1

    def merge(self, other: Histogram) -> None:
        """Count all that `other` did."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count
        self.total += other.total
        self.count += other.count

    def quantile(self, thousandths: int) -> int:
        """The least value that so many thousandths of all do not exceed, within 0.8 %; 0 if there are none."""
        low, high = edges(self._ranked(-(-self.count * thousandths // 1000)))
        return (low + high) // 2

    def bounds(self, thousandths: int, sigmas: float) -> tuple[int, int]:
        """Between which values the quantile lies of whatever these were drawn from, but for one time in very many.

        Ranks of a sample around a quantile are binomial: `sigmas` standard deviations of it to both sides.
        """
        middle = self.count * thousandths / 1000
        spread = sigmas * math.sqrt(middle * (1 - thousandths / 1000))
        return (
            edges(self._ranked(math.floor(middle - spread)))[0],
            edges(self._ranked(math.ceil(middle + spread) + 1))[1],
        )

    def below(self, bound: int) -> int:
        """How many are below `bound`, exactly if it is a power of two."""
        return sum(count for bucket, count in self.counts.items() if edges(bucket)[1] < bound)

    def _ranked(self, rank: int) -> int:
        """The bucket of the value with this rank; the first and the last are the nearest there are."""
        bucket = 0
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank <= 0:
                break
        return bucket


def edges(bucket: int) -> tuple[int, int]:
    """The least and the greatest value of a bucket."""
    if bucket < _EXACT:
        return bucket, bucket
    shift = (bucket >> _SUB) - 1
    low = (bucket - (shift << _SUB)) << shift
    return low, low + (1 << shift) - 1


# --- compared -----------------------------------------------------------------------------------------------------


class Tolerance(Struct, frozen=True, kw_only=True):
    """PROTOCOL 12.7: what may be worse, and how much has to be seen before anything is said.

    Attributes:
        ratio: how many times as long requests may take.
        samples: how many each side must have for a quantile.
        sigmas: how sure it has to be; 3.3 errs once in 2,000 on each side.

    Raises:
        LocalProtocolError: the ratio is below 1, or a quantile is none.
    """

    ratio: float = 1.5
    samples: tuple[tuple[int, int], ...] = ((P50, 100), (P95, 300), (P99, 1_000))
    sigmas: float = 3.3

    def __post_init__(self) -> None:
        if not (self.ratio >= 1 and self.sigmas >= 0 and all(0 < one < 1000 for one, _ in self.samples)):
            raise LocalProtocolError(
                "expected a ratio from 1, sigmas from 0 and quantiles between 0 and 1000; got others"
            )


class Finding(Struct, frozen=True, kw_only=True):
    """One quantile of both sides, and what is to be made of it; `what` names it in words."""

    what: str
    verdict: Verdict
    canary: int
    control: int


def compare(
    what: str, canary: Histogram, control: Histogram, tolerance: Tolerance | None = None
) -> tuple[Finding, ...]:
    """PROTOCOL 12.7: each quantile of `canary` beside that of the concurrent `control`; `what` names what they are of.

    Degraded is what is surely worse than the tolerance allows; hold, what not enough was seen of.
    """
    tolerance = tolerance or Tolerance()
    found = []
    for thousandths, needed in tolerance.samples:
        least, _ = canary.bounds(thousandths, tolerance.sigmas)
        _, most = control.bounds(thousandths, tolerance.sigmas)
        verdict: Verdict = "degraded" if least > tolerance.ratio * most else "healthy"
        found.append(
            Finding(
                what=f"p{thousandths / 10:g} of {what}",
                verdict=verdict if min(canary.count, control.count) >= needed else "hold",
                canary=canary.quantile(thousandths),
                control=control.quantile(thousandths),
            )
        )
    return tuple(found)


def verdict_of(findings: Iterable[Finding]) -> Verdict:
    """Degraded if one is; hold if nothing is known of any."""
    verdicts = {one.verdict for one in findings}
    return next((one for one in ("degraded", "healthy") if one in verdicts), "hold")


# --- told ---------------------------------------------------------------------------------------------------------

#: The media type of `exposition`.
MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LE: Final = tuple(2**power for power in range(8, 26))  # a quarter of a millisecond to half a minute
_METRIC: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")
_ESCAPED: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPED: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


class Sample(Struct, frozen=True, kw_only=True):
    """One value of a metric: a number, or a histogram of microseconds, which is told in seconds."""

    value: int | float | Histogram
    labels: Mapping[str, str] = {}


class Metric(Struct, frozen=True, kw_only=True):
    """What is told under one name.

    Raises:
        LocalProtocolError: a name is none that Prometheus takes, a sample is there twice, or not of this kind.
    """

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        labels = [name for sample in self.samples for name in sample.labels]
        if _METRIC.fullmatch(self.name) is None or any(_LABEL.fullmatch(name) is None for name in labels):
            raise LocalProtocolError("expected names of letters, digits and underscores; got others")
        if "le" in labels or len({frozenset(one.labels.items()) for one in self.samples}) < len(self.samples):
            raise LocalProtocolError(f"expected each sample of {self.name} once, and no label `le`; got others")
        if any(isinstance(one.value, Histogram) != (self.kind == "histogram") for one in self.samples):
            raise LocalProtocolError(f"expected samples of a {self.kind} in {self.name}; got others")


def exposition(metrics: Iterable[Metric]) -> str:
    """All of `metrics` in the text format of Prometheus, version 0.0.4.

    Raises:
        LocalProtocolError: two have one name.
    """
    lines: list[str] = []
    seen: set[str] = set()
    for metric in metrics:
        if metric.name in seen:
            raise LocalProtocolError(f"expected each metric once; got {metric.name} twice")
        seen.add(metric.name)
        lines.append(f"# HELP {metric.name} {metric.help.translate(_HELP_ESCAPED)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for sample in metric.samples:
            if isinstance(sample.value, Histogram):
                lines.extend(_told(metric.name, sample.labels, sample.value))
            else:
                lines.append(_line(metric.name, sample.labels, sample.value))
    return "".join(line + "\n" for line in lines)


def _told(name: str, labels: Mapping[str, str], histogram: Histogram) -> Iterator[str]:
    for bound in _LE:
        yield _line(f"{name}_bucket", {**labels, "le": repr(bound / 1e6)}, histogram.below(bound))
    yield _line(f"{name}_bucket", {**labels, "le": "+Inf"}, histogram.count)
    yield _line(f"{name}_sum", labels, histogram.total / 1e6)
    yield _line(f"{name}_count", labels, histogram.count)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    told = ",".join(f'{key}="{text.translate(_ESCAPED)}"' for key, text in labels.items())
    number = repr(value) if math.isfinite(value) else "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return f"{name}{{{told}}} {number}" if told else f"{name} {number}"
