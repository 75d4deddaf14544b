"""What `python -m tests.deep` runs: which tests, and how often."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class Stage(Struct, frozen=True):
    """Some tests of the suite, and how many examples they try together."""

    what: str
    count: int
    shared_by: int
    tests: tuple[str, ...]


_LENS: Final = "tests/wire/test_v1_lens.py::"

STAGES: Final = {
    "lens": Stage("{count} v1 edits against the lens laws", 100_000, 1, ("tests/wire/test_v1_storm.py",)),
    "lens-odd": Stage(
        "{count} odd graphs and edits against the lens laws",
        8_000,
        4,
        (
            _LENS + "test_a_record_written_back_as_it_was_is_no_edit",
            _LENS + "test_an_edit_is_seen_in_the_view_that_follows",
            _LENS + "test_of_two_edits_only_the_last_is_seen",
            _LENS + "test_what_v1_cannot_see_survives_any_v1_edit",
        ),
    ),
    "fleet": Stage(
        "{count} histories of a mixed fleet, in memory and on SQLite", 4_000, 2, ("tests/fleet/test_fleet.py",)
    ),
    "updates": Stage(
        "{count} histories of a client among enemies, 100 steps each",
        5_000,
        1,
        ("tests/updates/test_decide.py::test_any_enemies",),
    ),
    "formats": Stage(
        "{count} stores taken from format to format and edited in between",
        2_000,
        1,
        ("tests/client/test_migration.py::test_no_write_is_lost_however_often_the_format_changes",),
    ),
    "gate": Stage(
        "{count} bodies against a plain reading of the gate's rules", 100_000, 10, ("tests/core/test_limits.py",)
    ),
}
