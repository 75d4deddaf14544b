"""The ladder (PROTOCOL 6): who wins, and that nothing is won that was not contested."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import UNSET, Raw
from msgspec.structs import replace

from inbetweenies import merge
from inbetweenies.intake import check_entity
from inbetweenies.limits import Limits, canonical
from inbetweenies.merge import Side
from inbetweenies.model import Entity, Row, body_of, make_version

SECOND = 1_000_000
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.0, 1.0, "", "a"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["a", "b", "c", "~/"]), inner, max_size=3)
    ),
    max_leaves=8,
)
CONTENTS = st.dictionaries(st.sampled_from(["a", "b", "c", "~/"]), VALUES, max_size=3)


def entity(content: dict[str, Any], *, version: str = "v", user: str = "ann", **fields: Any) -> Entity:
    plain = {"id": "x", "entity_type": "device", "name": "X", "source_type": "manual"} | fields
    return Entity(version=version, content=Raw(canonical(content)), user_id=user, **plain)


def side(edit: int, version: str = "v", *, timed: bool = True) -> Side:
    return Side(version=version, edit=edit, timed=timed)


def joined(base: Any, local: Any, remote: Any, *, remote_later: bool = True) -> tuple[Any, tuple[str, ...]]:
    here, there = side(0, "l"), side(2 * SECOND if remote_later else -2 * SECOND, "r")
    merged = merge.three_way(
        entity(base), entity(local, version="l"), entity(remote, version="r"), here=here, there=there
    )
    return msgspec.json.decode(merged.entity.content), merged.contested


@given(CONTENTS, CONTENTS, st.booleans())
def test_what_only_one_side_changed_is_taken(base: Any, changed: Any, later: bool) -> None:
    assert (changed, ()) == joined(base, base, changed, remote_later=later)
    assert (changed, ()) == joined(base, changed, base, remote_later=later)


@given(CONTENTS, CONTENTS)
def test_the_same_change_on_both_sides_is_no_contest(base: Any, changed: Any) -> None:
    assert (changed, ()) == joined(base, changed, changed)


@given(CONTENTS, CONTENTS, CONTENTS)
def test_it_does_not_matter_which_side_is_local(base: Any, one: Any, other: Any) -> None:
    forth = joined(base, one, other, remote_later=True)
    back = joined(base, other, one, remote_later=False)

    assert forth == back


@given(CONTENTS, CONTENTS, CONTENTS)
def test_every_value_comes_from_a_side_and_every_contest_is_told(base: Any, one: Any, other: Any) -> None:
    content, contested = joined(base, one, other)
    for key in {*base, *one, *other}:
        mine = content.get(key, "absent")
        sides = [one.get(key, "absent"), other.get(key, "absent")]
        told = [pointer for pointer in contested if pointer.split("/")[2] == key.replace("~", "~0").replace("/", "~1")]
        if not any(merge.same(mine, value) for value in sides):
            assert all(isinstance(value, dict) for value in sides)
        if told:
            assert not merge.same(*sides)


def test_lists_are_won_or_lost_whole() -> None:
    assert ({"a": [2]}, ("/content/a",)) == joined({"a": [1]}, {"a": [1, 1]}, {"a": [2]})


def test_a_removed_key_stays_removed_and_an_added_one_is_kept() -> None:
    assert ({"b": 1, "c": 1}, ()) == joined({"a": 1, "b": 1}, {"b": 1}, {"a": 1, "b": 1, "c": 1})


def test_a_removal_against_an_edit_is_a_contest_that_the_later_edit_wins() -> None:
    base = {"a": {"x": 1}}

    assert ({}, ("/content/a",)) == joined(base, {"a": {"x": 2}}, {}, remote_later=True)
    assert ({"a": {"x": 2}}, ("/content/a",)) == joined(base, {"a": {"x": 2}}, {}, remote_later=False)


def test_numbers_that_only_python_calls_equal_are_different() -> None:
    assert not merge.same(1, True)
    assert not merge.same([1], [1.0])
    assert merge.same({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]})
    assert not merge.same({"a": 1}, {"b": 1})
    assert not merge.same([1], [1, 2])


def test_name_and_type_and_source_are_merged_like_content() -> None:
    base = entity({})
    local = replace(entity({}, version="l"), name="Local", source_type="imported", source_original="zigbee")
    remote = replace(entity({}, version="r"), entity_type="note", source_type="matter")
    merged = merge.three_way(base, local, remote, here=side(0, "l"), there=side(-5 * SECOND, "r"))

    assert ("Local", "note") == (merged.entity.name, merged.entity.entity_type)
    assert ("imported", "zigbee") == (merged.entity.source_type, merged.entity.source_original)
    assert ("/source",) == merged.contested

    back = merge.three_way(base, local, remote, here=side(0, "l"), there=side(5 * SECOND, "r"))

    assert ("matter", UNSET) == (back.entity.source_type, back.entity.source_original)


def test_a_checksum_goes_with_the_content_it_speaks_of() -> None:
    base = entity({"a": 1}, checksum="base")
    local = entity({"a": 1}, version="l", checksum="mine", name="Renamed")
    remote = entity({"a": 2}, version="r", checksum="theirs")
    both = entity({"a": 1, "b": 1}, version="l", checksum="mine")
    sides = {"here": side(0, "l"), "there": side(0, "r")}

    assert "theirs" == merge.three_way(base, local, remote, **sides).entity.checksum
    assert "theirs" == merge.three_way(base, remote, local, **sides).entity.checksum
    assert merge.three_way(base, both, remote, **sides).entity.checksum is None


@given(st.integers(-(10**15), 10**15), st.integers(-(10**15), 10**15), st.text(max_size=3), st.text(max_size=3))
def test_exactly_one_of_two_different_rows_wins(one: int, other: int, name: str, name2: str) -> None:
    assume(name != name2)
    a, b = side(one, name), side(other, name2)

    assert merge.later(a, b)[0] != merge.later(b, a)[0]


def test_a_second_apart_the_newer_wins_and_closer_the_greater_version() -> None:
    assert (True, "remote has newer timestamp") == merge.later(side(0, "z"), side(SECOND, "a"))
    assert (False, "local has newer timestamp") == merge.later(side(SECOND, "a"), side(0, "z"))
    assert (True, "timestamps within 1s, remote has greater version") == merge.later(
        side(SECOND - 1, "a"), side(0, "z")
    )
    assert (False, "timestamps within 1s, local has greater version") == merge.later(side(0, "z"), side(1, "a"))


def test_a_time_given_on_arrival_loses_ties() -> None:
    assert not merge.later(side(0, "a"), side(0, "z", timed=False))[0]
    assert merge.later(side(0, "z", timed=False), side(0, "a"))[0]


def test_a_future_edit_counts_as_five_minutes_ahead_of_its_arrival() -> None:
    now = 10**15

    assert (now + merge.CLAMP_US, True) == merge.arrival(make_version(now + 10**14, 0, "u"), now)
    assert (now + 5, True) == merge.arrival(make_version(now + 5, 0, "u"), now)
    assert (now, False) == merge.arrival("v-1", now)


def test_the_version_of_a_merge_is_a_function_of_its_parents() -> None:
    one, other = side(10**15, make_version(10**15, 0, "a")), side(3, "v-3", timed=False)

    assert merge.merge_version(one, other, "ann") == merge.merge_version(other, one, "ann")
    assert merge.merge_version(one, other, "ann").startswith("2001-09-09T01:46:40.000000+00:00-000000-ann.m")
    assert merge.merge_version(one, other, "ann") != merge.merge_version(one, side(3, "v-4"), "ann")


def test_the_version_of_a_merge_is_a_name_whatever_its_writer_is_called() -> None:
    version = merge.merge_version(
        side(0, make_version(0, 0, "a")), side(1, make_version(1, 0, "b")), "a\n\x00\x7f\u2028" + "é" * 1_000
    )

    assert "-000000-a???\u2028é" in version
    assert check_entity(entity({}, version=version), "", Limits()) is None


def row(version: str, seq: int, *parents: str) -> Row:
    value = replace(entity({}, version=version), parent_versions=parents)
    empty: dict[str, Any] = {"until": None, "stamp": seq, "edit": 0, "timed": True, "rise": 0, "born": 0}
    names: dict[str, Any] = {"entity_type": "device", "user_id": "", "from_id": "", "to_id": "", "deleted": False}
    return Row(
        kind="entity", id="x", version=version, seq=seq, body=body_of(value), hash=b"", chain=b"", **empty, **names
    )


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        (("a",), "a"),
        (("b", "a"), "b"),
        (("unheard", "a"), "a"),
        (("late", "a"), "late"),
        (("d",), "d"),
        (("ring",), "round"),
        (("self",), "self"),
        (("unheard",), None),
        ((), None),
    ],
)
def test_the_base_is_the_newest_held_ancestor_that_no_other_one_descends_from(
    parents: tuple[str, ...], expected: str | None
) -> None:
    held = (
        row("a", 1),
        row("b", 2, "a"),
        row("d", 4, "late", "a"),
        row("late", 5),
        row("ring", 6, "round"),
        row("round", 7, "ring"),
        row("self", 8, "self"),
    )
    rows = {item.version: item for item in held}
    history = {version: item.entity().parent_versions for version, item in rows.items()}
    base = merge.merge_base(merge.ancestors(parents, history), rows, history)

    assert expected == (base and base.version)


def test_a_circle_of_parents_ends() -> None:
    assert {"a", "b"} == merge.ancestors(["a"], {"a": ("b",), "b": ("a",)})
