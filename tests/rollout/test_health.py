"""Histograms, what is compared of them, and what Prometheus is told (PROTOCOL 12.7)."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies.errors import LocalProtocolError
from inbetweenies.rollout import health
from inbetweenies.rollout.health import (
    BUCKETS_MAX,
    P50,
    P95,
    P99,
    VALUE_MAX,
    Histogram,
    Metric,
    Sample,
    Tolerance,
    compare,
    edges,
    exposition,
    verdict_of,
)

durations = st.integers(0, 300) | st.integers(0, 10**6) | st.integers(0, VALUE_MAX)
many = st.lists(durations, max_size=60)
quantiles = st.integers(1, 999)


def of(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


# --- histograms ---------------------------------------------------------------------------------------------------


@given(values=many, thousandths=quantiles)
def test_a_quantile_is_within_a_hundredth_of_the_value_that_it_is(values: list[int], thousandths: int) -> None:
    check_quantile(values, thousandths)


def check_quantile(values: list[int], thousandths: int) -> None:
    histogram = of(values)
    ranked = sorted(values) or [0]
    true = ranked[max(math.ceil(len(values) * thousandths / 1000) - 1, 0)]

    assert abs(histogram.quantile(thousandths) - true) <= true / 128
    assert (len(values), sum(values)) == (histogram.count, histogram.total)


@given(some=many, others=many)
def test_merging_is_counting_all_of_them_together(some: list[int], others: list[int]) -> None:
    check_merge(some, others)


def check_merge(some: list[int], others: list[int]) -> None:
    merged, other = of(some), of(others)
    merged.merge(other)

    assert of(some + others) == merged
    assert of(others) == other
    assert merged == msgspec.json.decode(msgspec.json.encode(merged), type=Histogram)


@given(value=st.integers(-(10**20), 10**20))
def test_any_number_is_counted_in_one_of_so_many_buckets(value: int) -> None:
    histogram = of([value])
    (bucket,) = histogram.counts
    low, high = edges(bucket)

    assert low <= min(max(value, 0), VALUE_MAX) <= high
    assert (high - low) * 64 <= low
    assert 0 <= bucket < BUCKETS_MAX


def test_buckets_follow_one_another_without_a_gap_up_to_the_last() -> None:
    assert 0 == edges(0)[0]
    assert [edges(one)[1] + 1 for one in range(BUCKETS_MAX - 1)] == [edges(one)[0] for one in range(1, BUCKETS_MAX)]
    assert VALUE_MAX == edges(BUCKETS_MAX - 1)[1]


@given(values=many, power=st.integers(0, 36))
def test_what_is_below_a_power_of_two_is_counted_exactly(values: list[int], power: int) -> None:
    assert sum(value < 2**power for value in values) == of(values).below(2**power)


@pytest.mark.parametrize(
    "told",
    [
        b'{"counts": {"1984": 1}, "count": 1, "total": 68719476735}',
        b'{"counts": {"-1": 1}, "count": 1}',
        b'{"counts": {"0": 0}}',
        b'{"counts": {"1": 2}, "count": 1, "total": 2}',
        b'{"counts": {"1": 2}, "count": 2, "total": 3}',
        b'{"counts": {"1": 2}, "count": 2, "total": 1}',
    ],
)
def test_a_histogram_that_contradicts_itself_is_refused(told: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        msgspec.json.decode(told, type=Histogram)


# --- compared -----------------------------------------------------------------------------------------------------


def drawn(count: int, seed: int, *, slow: float = 0.0, times: float = 1.0) -> Histogram:
    """Durations around 20 ms with a long tail; a share `slow` of them takes `times` as long."""
    draw = random.Random(seed)
    return of(
        [int(20_000 * draw.lognormvariate(0, 0.7) * (times if draw.random() < slow else 1)) for _ in range(count)]
    )


def verdicts(canary: Histogram, control: Histogram) -> list[str]:
    return [one.verdict for one in health.compare("pushes", canary, control)]


def check_compare() -> None:
    assert ["degraded"] * 3 == verdicts(drawn(2_000, 1, slow=1, times=6), drawn(2_000, 2))
    assert ["healthy", "healthy", "degraded"] == verdicts(drawn(5_000, 3, slow=0.03, times=15), drawn(5_000, 4))
    assert ["healthy"] * 3 == verdicts(drawn(2_000, 5, slow=1, times=1 / 6), drawn(2_000, 6))
    for seed in range(30):
        assert ["healthy"] * 3 == verdicts(drawn(1_000, seed), drawn(1_000, -1 - seed))
        assert ["healthy", "healthy", "hold"] == verdicts(drawn(300, seed), drawn(1_000, -1 - seed))
        assert ["healthy", "hold", "hold"] == verdicts(drawn(1_000, seed), drawn(100, -1 - seed))
    assert ["hold"] * 3 == verdicts(drawn(99, 1, slow=1, times=100), drawn(2_000, 2))
    assert ["hold"] * 3 == verdicts(Histogram(), Histogram())


def test_what_is_slower_is_told_for_each_quantile_and_what_is_not_known_is_held() -> None:
    check_compare()


def test_a_mean_would_not_have_told() -> None:
    """3 of 100 requests take 1,500 ms instead of 100: half as long again on average, fifteen times at the tail."""
    usual, hurt = of([100_000] * 2_000), of([100_000] * 1_940 + [1_500_000] * 60)

    assert hurt.total / usual.total < 1.5
    p50, p95, p99 = compare("pushes", hurt, usual)
    assert ("healthy", "healthy", "degraded") == (p50.verdict, p95.verdict, p99.verdict)
    assert ("p99 of pushes", 15) == (p99.what, round(p99.canary / p99.control))


@given(values=st.lists(durations, min_size=1, max_size=60), thousandths=quantiles, sigmas=st.floats(0, 10))
def test_a_quantile_lies_within_its_bounds_and_these_in_what_was_seen(
    values: list[int], thousandths: int, sigmas: float
) -> None:
    histogram = of(values)
    least, most = histogram.bounds(thousandths, sigmas)

    assert least <= histogram.quantile(thousandths) <= most
    assert min(values) * 63 / 64 <= least <= most <= max(values) * 65 / 64


def test_one_that_is_worse_outweighs_and_nothing_known_is_hold() -> None:
    worse = compare("pushes", drawn(2_000, 1, slow=1, times=6), drawn(2_000, 2))
    same, unknown = compare("pulls", drawn(300, 1), drawn(300, 2)), compare("pulls", Histogram(), Histogram())

    assert ("degraded", "healthy", "hold", "hold") == tuple(
        verdict_of(some) for some in ((*same, *worse), (*unknown, *same), unknown, ())
    )


@pytest.mark.parametrize(
    "fields", [{"ratio": 0.9}, {"ratio": math.nan}, {"sigmas": -1.0}, {"samples": ((1000, 1),)}, {"samples": ((0, 1),)}]
)
def test_a_tolerance_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        Tolerance(**fields)


# --- told ---------------------------------------------------------------------------------------------------------

_SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (\S+)')
_PAIR = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"')


def parsed(text: str) -> tuple[dict[str, str], dict[tuple[str, frozenset[tuple[str, str]]], float]]:
    """What a scraper reads: the kind of each metric, and each sample once. Written from the format's description."""
    kinds: dict[str, str] = {}
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    assert text.endswith("\n") or not text
    for line in text.split("\n")[:-1]:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = _SAMPLE.fullmatch(line)
            assert match, line
            unescaped = {
                key: re.sub(r"\\(.)", lambda one: {"n": "\n"}.get(one[1], one[1]), value)
                for key, value in _PAIR.findall(match[2] or "")
            }
            key = (match[1], frozenset(unescaped.items()))
            assert key not in samples
            samples[key] = float(match[3])
    return kinds, samples


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
label_names = st.sampled_from(["operation", "arm", "version", "_x9"])
metric_names = st.sampled_from(["inbetweenies_requests_total", "a:b", "_x", "Y9"])
values = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False)


@given(
    named=st.dictionaries(
        metric_names,
        st.tuples(
            st.sampled_from(["counter", "gauge"]),
            words,
            st.lists(
                st.tuples(st.dictionaries(label_names, words), values),
                unique_by=lambda one: str(sorted(one[0].items())),
            ),
        ),
    )
)
def test_whatever_is_told_a_scraper_reads_it_back(named: dict[str, Any]) -> None:
    check_told(named)


def check_told(named: dict[str, Any]) -> None:
    kinds, samples = parsed(
        exposition(
            Metric(
                name=name,
                help=said,
                kind=kind,
                samples=tuple(Sample(value=value, labels=labels) for labels, value in some),
            )
            for name, (kind, said, some) in named.items()
        )
    )

    assert {name: one[0] for name, one in named.items()} == kinds
    assert {
        (name, frozenset(labels.items())): value for name, (_, _, some) in named.items() for labels, value in some
    } == samples


@given(some=many)
def test_a_histogram_is_told_in_seconds_by_rising_bounds(some: list[int]) -> None:
    metric = Metric(
        name="took_seconds",
        help="How long it took.",
        kind="histogram",
        samples=(Sample(value=of(some), labels={"arm": "canary"}),),
    )
    kinds, samples = parsed(exposition([metric]))

    assert {"took_seconds": "histogram"} == kinds
    arm = ("arm", "canary")
    assert len(some) == samples["took_seconds_count", frozenset({arm})]
    assert math.isclose(sum(some) / 1e6, samples["took_seconds_sum", frozenset({arm})])
    told = {dict(labels)["le"]: count for (name, labels), count in samples.items() if name == "took_seconds_bucket"}
    assert len(some) == told.pop("+Inf")
    assert {bound: sum(value / 1e6 < float(bound) for value in some) for bound in told} == told
    assert sorted(told, key=float) == list(told)


def test_numbers_that_are_none_have_their_words() -> None:
    sample = [Sample(value=value, labels={"n": str(n)}) for n, value in enumerate((math.inf, -math.inf, math.nan))]
    text = exposition([Metric(name="x", help="\\ and\nmore", kind="gauge", samples=tuple(sample))])

    assert '# HELP x \\\\ and\\nmore\n# TYPE x gauge\nx{n="0"} +Inf\nx{n="1"} -Inf\nx{n="2"} NaN\n' == text


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a-b"},
        {"name": ""},
        {"name": "a\nb"},
        {"samples": (Sample(value=1, labels={"a-b": ""}),)},
        {"samples": (Sample(value=1, labels={"__a": ""}),)},
        {"samples": (Sample(value=1, labels={"le": ""}),)},
        {"samples": (Sample(value=1), Sample(value=2))},
        {"samples": (Sample(value=Histogram()),)},
        {"kind": "histogram"},
    ],
)
def test_what_prometheus_would_not_take_is_refused(fields: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"name": "a", "help": "", "kind": "gauge", "samples": (Sample(value=1),)} | fields
    with pytest.raises(LocalProtocolError):
        Metric(**whole)


def test_one_name_is_told_once() -> None:
    one = Metric(name="a", help="", kind="gauge", samples=())
    with pytest.raises(LocalProtocolError, match="got a twice"):
        exposition([one, one])


# --- planted bugs -------------------------------------------------------------------------------------------------


def mean(self: Histogram, thousandths: int) -> int:
    return self.total // max(self.count, 1)


def mean_bounds(self: Histogram, thousandths: int, sigmas: float) -> tuple[int, int]:
    return self.total // max(self.count, 1), self.total // max(self.count, 1)


def not_sure(self: Histogram, thousandths: int, sigmas: float) -> tuple[int, int]:
    at = self.quantile(thousandths)
    return int(at * 1.4), int(at / 1.4)


def the_last_one_counts(self: Histogram, other: Histogram) -> None:
    self.counts |= other.counts
    self.total += other.total
    self.count += other.count


def any_way() -> None:
    check_quantile([1, 2, 3, 1_000_000], P50)
    check_quantile(list(range(100)), P95)
    check_merge([1, 1, 500], [1, 500, 501])
    check_compare()
    check_told({"a": ("gauge", "", [({"arm": 'a"b\\n\n'}, 1)])})


@pytest.mark.parametrize(
    ("name", "bug"),
    [("quantile", mean), ("bounds", mean_bounds), ("bounds", not_sure), ("merge", the_last_one_counts)],
)
def test_a_planted_bug_is_caught(name: str, bug: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    any_way()
    monkeypatch.setattr(Histogram, name, bug)
    with pytest.raises(AssertionError):
        any_way()


def test_labels_that_are_not_escaped_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_ESCAPED", {})
    with pytest.raises(AssertionError):
        any_way()


def test_the_quantiles_that_are_looked_at() -> None:
    assert (P50, P95, P99) == tuple(one for one, _ in Tolerance().samples)
