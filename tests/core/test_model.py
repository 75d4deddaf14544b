"""Names, times, hashes: the small agreements that everything else stands on (PROTOCOL 3, 4.2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.structs import replace

from inbetweenies import model
from inbetweenies.model import Cursor, Entity, Relationship

MOMENTS = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999))
ENTITY = Entity(
    id="lamp", version="v1", entity_type="device", name="Lamp", content=Raw(b"{}"), source_type="manual", user_id="ann"
)
EDGE = Relationship(
    id="e",
    version="v1",
    from_entity_id="lamp",
    from_entity_version="v1",
    to_entity_id="hall",
    to_entity_version="v1",
    relationship_type="located_in",
)


@given(MOMENTS, st.booleans())
def test_a_formatted_time_parses_back_to_the_microsecond(at: datetime, naive: bool) -> None:
    micros = (at.replace(tzinfo=UTC) - model.EPOCH) // timedelta(microseconds=1)

    assert micros == model.parse_time(model.format_time(micros, naive=naive))


@given(MOMENTS, st.integers(-23 * 60, 23 * 60))
def test_every_offset_names_the_same_moment(at: datetime, minutes: int) -> None:
    aware = at.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = (at.replace(tzinfo=UTC) - model.EPOCH) // timedelta(microseconds=1) - minutes * 60_000_000

    assert expected == model.parse_time(aware.isoformat())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-06-15T09:41:02.581234+00:00", 1781516462581234),
        ("2026-06-15T09:41:02Z", 1781516462000000),
        ("2026-06-15t09:41:02z", 1781516462000000),
        ("2026-06-15 09:41", 1781516460000000),
        ("2026-06-15T09:41:60Z", 1781516519000000),
        ("2026-06-15T09:41:02.1234569Z", 1781516462123456),
        ("2026-06-15", None),
        ("2026-W25-1", None),
        ("2026-06-15T09:41:02Z\n", None),
        ("２026-06-15T09:41:02Z", None),
        ("2026-02-30T00:00:00Z", None),
        ("0000-01-01T00:00:00Z", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_only_iso_8601_date_times_are_times(text: str, expected: int | None) -> None:
    assert expected == model.parse_time(text)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("2026-06-15T09:41:02.581234+00:00-000417-alice", 1781516462581234),
        ("2026-06-15T09:41:02Z-user", 1781516462000000),
        ("2026-06-15T09:41:02.5-000417-u", 1781516462500000),
        ("2026-06-15T09:41:02", 1781516462000000),
        ("2026-06-15T09:41:02 or so", None),
        ("v-1781516462581", None),
        ("~", None),
    ],
)
def test_the_edit_time_is_what_a_version_starts_with(version: str, expected: int | None) -> None:
    assert expected == model.edit_time(version)


@given(MOMENTS, st.integers(0, 999_999), st.text(max_size=8))
def test_a_version_that_we_make_names_its_edit_time(at: datetime, counter: int, user: str) -> None:
    micros = (at.replace(tzinfo=UTC) - model.EPOCH) // timedelta(microseconds=1)

    assert micros == model.edit_time(model.make_version(micros, counter, user))


@given(st.integers(model.TIME_MIN, model.TIME_MAX - 1), st.integers(1, 10**9))
def test_later_times_sort_later(at: int, later: int) -> None:
    assert model.format_time(at) < model.format_time(min(at + later, model.TIME_MAX))


@given(st.binary(min_size=1, max_size=16), st.integers(0, model.SEQ_MAX), st.binary(min_size=16, max_size=16))
def test_a_cursor_reads_back(epoch: bytes, seq: int, chain: bytes) -> None:
    cursor = Cursor(epoch.hex(), seq, chain)

    assert cursor == model.parse_cursor(str(cursor))


@given(st.one_of(st.text(), st.from_regex(r"[0-9a-f:]{0,60}", fullmatch=True)))
def test_no_other_text_is_a_cursor(text: str) -> None:
    cursor = model.parse_cursor(text)

    assert cursor is None or str(cursor) == text


def test_a_cursor_beyond_what_json_peers_hold_is_none() -> None:
    assert model.parse_cursor(f"ab:{model.SEQ_MAX + 1}:{'0' * 32}") is None


@given(st.text(), st.text())
def test_a_uuid_of_a_name_is_a_version_5_uuid(namespace: str, name: str) -> None:
    text = model.uuid5(namespace, name)

    assert UUID(text).version == 5
    assert str(UUID(text)) == text
    assert text == model.uuid5(namespace, name)
    assert text != model.uuid5(namespace + "x", name)


def test_rows_hash_apart_by_kind_and_value() -> None:
    body = model.body_of(ENTITY)
    hashes = {
        model.row_hash("entity", body),
        model.row_hash("edge", body),
        model.row_hash("entity", model.body_of(replace(ENTITY, user_id="bob"))),
        model.row_hash("entity", model.body_of(replace(ENTITY, checksum="c"))),
    }

    assert 4 == len(hashes)


def test_an_edge_without_a_version_is_named_by_its_value() -> None:
    nameless = replace(EDGE, version="")

    assert model.edge_version(nameless) == model.edge_version(EDGE)
    assert model.edge_version(nameless) != model.edge_version(replace(EDGE, properties=Raw(b'{"a":1}')))


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=6))
def test_the_digest_forgets_exactly_what_goes(hashes: list[bytes]) -> None:
    digest = 0
    for hash_ in hashes:
        digest = model.digest_change(digest, come=hash_)
    for hash_ in sorted(hashes):
        digest = model.digest_change(digest, gone=hash_)

    assert 0 == digest


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"deleted":true}', True),
        (b'{"deleted":"yes"}', True),
        (b'{"deleted":false}', False),
        (b'{"deleted":0}', False),
        (b'{"a":{"deleted":true}}', False),
        (b"{}", False),
    ],
)
def test_a_tombstone_is_marked_in_the_content_itself(content: bytes, expected: bool) -> None:
    assert expected is model.says_deleted(Raw(content))


def test_no_other_json_marks_a_tombstone() -> None:
    assert not model.is_deleted(["deleted"])
    assert not model.is_deleted(None)


#: What there is to tell of each kind of event, the words of peers among it.
TOLD: dict[str, dict[str, str | int]] = {
    "fork": {"seq": 3, "by": "a\nphone", "witness": f"e:7:{'0' * 32}", "epoch": "f"},
    "replay": {"after": 3, "rows": 7, "offered": 0},
    "offer": {"rows": 7, "by": "a\nphone"},
    "discard": {"seq": 3},
    "device_forked": {"device": "a\nphone"},
    "rule_failed": {"entity_type": "a\nlamp", "error": "KeyError"},
    "noticed": {},
}


@pytest.mark.parametrize("kind", get_args(model.EventKind))
def test_what_happened_is_told_on_one_line(kind: model.EventKind) -> None:
    said = str(model.Event(kind=kind, key="", at=0, told=TOLD[kind]))

    assert said
    assert said.isprintable()
    assert all(
        str(told).replace("\n", "?") in said for name, told in TOLD[kind].items() if name in ("by", "seq", "rows")
    )
