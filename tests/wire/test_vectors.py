"""The golden vectors: each is answered as it was when it was recorded, and none has been touched since."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from inbetweenies.testing import vectors
from inbetweenies.testing.vectors import Post, check, load, record, reference

VECTORS = load()

#: The first 16 hex digits of the SHA-256 of each file. Lines are only ever added.
PINNED = {
    "not-json": "53e769bcf0aec360",
    "not-utf-8-bom": "731d8f96acdb1e26",
    "too-deep": "9fe147418a95c1c4",
    "v1-ack": "dd147dc9020e1335",
    "v1-by-an-unknown-version": "966672b53d83be00",
    "v1-delete": "ca77593af64a4b0f",
    "v1-deleted-as-v1-shows": "daf0cb6541285f9b",
    "v1-edit-keeps-the-rest": "85f0478bc058f21d",
    "v1-edit-of-v2": "1fafa56a7c9e790f",
    "v1-empty-read": "5fe937c51e87860d",
    "v1-no-version-means-v1": "b5b9f61b373e12cf",
    "v1-not-exactly": "99ba3c084b138edc",
    "v1-nothing-new": "792b60a6f3ee90ce",
    "v1-placeholder-written-back": "36ecf033536629c0",
    "v1-push": "0c478d85d7da9b33",
    "v1-push-repeated": "7b512c9b44cd07d4",
    "v1-pushed-as-v2-shows": "47653787349ca72b",
    "v1-read": "dbfbd50b935b8510",
    "v1-unknown-home": "654cee8e1acb2966",
    "v1-unknown-type": "7877778119ec04bb",
    "v1-view-of-v2": "4974dcac766735e8",
    "v2-back-from-the-dead": "f91bd39e160f9827",
    "v2-bad-cursor": "1d10febfc615e154",
    "v2-blind-and-new": "f861982403575449",
    "v2-blind-and-old": "1e9b0126c497aff6",
    "v2-canonical-json": "6c88a98790c256f4",
    "v2-child-before-parent": "3ddfb72c112849b5",
    "v2-compare": "4eb72bbd333085c5",
    "v2-contested": "2260a8a8d98cfd07",
    "v2-create": "00ab0242c6825dee",
    "v2-create-with-features": "bff8dc40b23d7c8d",
    "v2-delete": "7104bd4f828f3e6e",
    "v2-delete-of-nothing": "900fe8b91d584cf4",
    "v2-delta-since": "653be72be5301fae",
    "v2-delta-since-future": "332e390731574c3e",
    "v2-delta-since-naive": "055a76b1a71277e6",
    "v2-device-counted": "bad3841f661b8c8f",
    "v2-device-forked": "ae88ca8546303128",
    "v2-edge-deleted": "d24f6aac3b3dba88",
    "v2-edge-since": "beb1ac61b75f42f8",
    "v2-edge-to-nowhere": "0fa21d3bbe56c112",
    "v2-edit-of-a-tombstone": "6f6dad4cfd37788c",
    "v2-fast-forward": "4e68f6b8f59c2aec",
    "v2-filtered": "4a09088610518319",
    "v2-foreign-cursor": "0964e1e148b817df",
    "v2-full": "463a835330aa1127",
    "v2-full-of-an-empty-graph": "2d6643584ab89a11",
    "v2-locate": "ea8037929378f4bf",
    "v2-locate-listing": "1011ec582fac2415",
    "v2-locate-nothing": "becdfbe7ee28e4e9",
    "v2-locate-too-much": "02bae0ab382b9abb",
    "v2-merged": "ea16e91c4df085eb",
    "v2-missing-field": "e0e748ba016f6e90",
    "v2-offered": "1370f21c33f8d7ca",
    "v2-offered-aside": "d531181c71e89a47",
    "v2-offered-edge": "0b487ef47bb6a790",
    "v2-only-the-tip": "c7d312567b3d85ad",
    "v2-only-the-tip-from-nowhere": "ca98687a05448f8b",
    "v2-page-one": "7b68192543bdca42",
    "v2-poison": "3b4eaea243a38dba",
    "v2-repeated": "4209626506a7a02a",
    "v2-upper-case": "517dc3f40e96b7b2",
    "v2-version-collision": "6658d6b0a26e171f",
    "v2-version-without-a-time": "a4d5a8781c007f05",
    "v2-want-and-skip": "33017a76a5fb9ab8",
    "v2-witness-idle": "0bfc0a2f876ab3ff",
    "v2-witness-stray": "9f240d60cd1d3e4e",
    "v2-witness-stray-again": "cb8a5758c19bd5e5",
    "version-better-offered": "acf8be2ec29222d7",
    "version-empty": "eb1165421bc0b95c",
    "version-grease": "ab4e76d134849446",
    "version-long": "fd3e0c529071548c",
    "version-missing-without-v1": "3dd75700fcb5d452",
    "version-none-in-common": "3833af8b2a970984",
    "version-null": "98b728722d8d852f",
    "version-number": "1bf2ca20bcfa0707",
    "version-offered": "9a2ea84393ec7ca3",
    "version-unknown-read": "5b4840488f7ce1b5",
    "version-unknown-write": "221b30c9680ec0c8",
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_answered_as_recorded(name: str) -> None:
    check(VECTORS[name])


def test_no_vector_has_been_touched() -> None:
    folder = files("inbetweenies.testing") / "vectors"

    assert PINNED == {name: hashlib.sha256((folder / f"{name}.json").read_bytes()).hexdigest()[:16] for name in VECTORS}


def test_a_server_that_answers_otherwise_is_told_what_was_expected() -> None:
    def mute() -> Post:
        return lambda now, path, body: (200, {})

    with pytest.raises(AssertionError, match="A full sync of an empty graph"):
        check(VECTORS["v2-full-of-an-empty-graph"], mute)


def test_a_new_vector_is_written_once_and_plays(tmp_path: Path) -> None:
    more: dict[str, Any] = {"now": 1_790_000_060_000_000, "after": "v1-push", "request": {"device_id": "d"}}

    made = record(tmp_path, "v1-another-read", "Another read.", ("8.2",), **more)

    assert 200 == made.status
    check(made, reference)
    with pytest.raises(FileExistsError):
        record(tmp_path, "v1-another-read", "Another read.", ("8.2",), **more)


def test_a_refusal_is_recorded_by_the_fields_that_programs_look_at(tmp_path: Path) -> None:
    made = record(tmp_path, "no-json", "No JSON.", ("2.1",), now=0, text="{")

    assert {"code", "status", "pointer"} == set(made.answer)
    assert vectors.EPOCH == "00000000000000e1"
