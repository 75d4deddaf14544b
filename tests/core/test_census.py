"""The census (PROTOCOL 5.15): what is counted under what, that it stays small, and who would break."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies import census
from inbetweenies.census import (
    KEPT_US,
    OTHER,
    RELEASES_MAX,
    Entry,
    Sighting,
    Tally,
    document_of,
    entries_in,
    release_of,
    would_break,
)
from inbetweenies.errors import StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.registry import Registry

V1, V2 = "inbetweenies-v1", "inbetweenies-v2"
BOTH = Registry(accepted=(V2, V1), fallback=V1, missing=V1)


def seen(version: str = V2, release: str = "app/1", **fields: Any) -> Sighting:
    return Sighting(version=version, release=release, **{"served": version, **fields})


@pytest.mark.parametrize(
    ("client", "agent", "release"),
    [
        ({"name": "blowing-off", "version": "1.0.0"}, "curl/8", "blowing-off/1.0.0"),
        ({"name": "blowing-off"}, "curl/8", "curl/8"),
        ({"name": "a b", "version": "1"}, None, "unknown"),
        ({"name": "-a", "version": "1"}, None, "unknown"),
        ({"name": "a", "version": "1."}, None, "unknown"),
        ({"name": 7, "version": []}, None, "unknown"),
        ({"name": "x" * 64, "version": "y" * 64}, None, f"{'x' * 64}/{'y' * 64}"),
        ({"name": "x" * 65, "version": "1"}, None, "unknown"),
        ({"name": "naïve", "version": "1"}, None, "unknown"),
        (None, "Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0"),
        ("app", "python-httpx/0.28.1", "python-httpx/0.28.1"),
        (None, "app", "app"),
        (None, "app;q=1", "app"),
        (None, "app/1/2", "unknown"),
        (None, "(app)", "unknown"),
        (None, "", "unknown"),
        (None, None, "unknown"),
        (None, "a" * 10_000, "unknown"),
        (None, "app/1\n2", "unknown"),
    ],
)
def test_a_peer_is_called_what_its_envelope_says_else_its_agent(client: object, agent: Any, release: str) -> None:
    assert release == release_of(client, agent)


@given(st.none() | st.text() | st.from_regex(r"[a-z]+/[0-9.]+.*"))
def test_a_release_is_always_short_and_plain(agent: str | None) -> None:
    release = release_of(None, agent)

    assert 0 < len(release) <= 129
    assert release.isascii()
    assert release.isprintable()


def test_reads_writes_and_refusals_are_counted_apart() -> None:
    tally = Tally()
    tally.add(seen(), 5)
    tally.add(seen(wrote=True), 9)
    tally.add(seen(served=None, wrote=True), 7)

    [entry] = tally
    assert Entry(version=V2, release="app/1", last=9, alone=9, reads=1, writes=1, refused=1, served=V2) == entry


def test_what_was_refused_last_does_not_hide_how_it_was_served() -> None:
    tally = Tally()
    tally.add(seen(offers=(V2, V1)), 5)
    tally.add(seen(served=None), 6)

    [entry] = tally
    assert (V2, (V2, V1), 6, 0) == (entry.served, entry.offers, entry.last, entry.alone)


def test_what_was_taken_is_counted_no_more() -> None:
    tally = Tally()
    tally.add(seen(), 1)
    taken = tally.take()
    tally.add(seen(), 2)

    assert ([1], [2]) == ([entry.last for entry in taken], [entry.last for entry in tally])
    assert not Tally().take()


def test_names_that_are_made_up_fill_no_memory() -> None:
    tally = Tally()
    for number in range(1000):
        tally.add(seen(release=f"app/{number}"), number)
    tally.add(seen(release="app/0"), 2000)
    body = document_of((), tally, now=2000)

    releases = {entry.release: entry for entry in tally}
    assert RELEASES_MAX + 1 == len(releases)
    assert (1000 - RELEASES_MAX, 2) == (releases[OTHER].reads, releases["app/0"].reads)
    assert RELEASES_MAX + 1 == len(entries_in(Document(revision=1, body=document_of(tally, tally, now=2000))))
    assert len(body) < 10_000


def test_the_document_adds_up_and_forgets_what_is_long_gone() -> None:
    kept = (
        Entry(version=V1, release="old/1", last=1, reads=5, served=V1),
        Entry(version=V2, release="app/1", last=KEPT_US, reads=5, served=V2),
    )
    tally = Tally()
    tally.add(seen(wrote=True), KEPT_US + 7)
    body = document_of(kept, tally, now=KEPT_US + 7)

    assert [("app/1", 5, 1, KEPT_US + 7)] == [
        (entry.release, entry.reads, entry.writes, entry.last) for entry in entries_in(Document(revision=1, body=body))
    ]


@pytest.mark.parametrize("body", [b"{}", b"[1]", b"\xff", b"["])
def test_what_is_no_census_is_corruption(body: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        entries_in(Document(revision=1, body=body))


def test_a_census_that_was_never_written_is_empty() -> None:
    assert () == entries_in(Document())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=20), st.integers(0, 20))
def test_it_does_not_matter_when_the_census_is_written_down(steps: list[tuple[str, int, bool]], at: int) -> None:
    whole, parts = Tally(), Tally()
    body = b""
    for number, (release, now, wrote) in enumerate(steps):
        if number == at:
            body = document_of((), parts.take(), now=10)
        for tally in (whole, parts):
            tally.add(seen(release=release, wrote=wrote), now)
    merged = document_of(entries_in(Document(revision=1, body=body)), parts, now=10)

    assert document_of((), whole, now=10) == merged
    assert msgspec.json.decode(merged) is not None


def test_who_offers_something_else_does_not_break() -> None:
    tally = Tally()
    tally.add(seen(release="pinned/1"), 50)
    tally.add(seen(release="both/1", offers=(V2, V1)), 50)
    tally.add(seen(release="gone/1"), 10)
    tally.add(Sighting(version="missing", release="old/1", served=V1), 50)
    tally.add(Sighting(version="unknown", release="new/1", served=V1), 50)
    tally.add(Sighting(version="malformed", release="odd/1"), 50)

    def broken(name: str, registry: Registry = BOTH) -> set[str]:
        return {entry.release for entry in would_break(tally, name, registry, since=20)}

    assert {"pinned/1"} == broken(V2)
    assert {"old/1", "new/1"} == broken(V1)
    # Where v1 is off already there is nothing left to offer.
    assert {"pinned/1", "both/1"} == broken(V2, Registry(accepted=(V2,)))


def test_one_device_that_is_pinned_counts_among_many_that_are_not() -> None:
    tally = Tally()
    tally.add(seen(), 50)
    tally.add(seen(offers=(V2, V1)), 60)

    assert ["app/1"] == [entry.release for entry in would_break(tally, V2, BOTH, since=40)]
    assert [] == list(would_break(tally, V2, BOTH, since=55))


def test_the_words_of_the_census_are_no_versions() -> None:
    assert not census.WORDS & {V1, V2}
