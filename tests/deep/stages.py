"""What `python -m tests.deep` runs: which tests, and how often."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class Stage(Struct, frozen=True):
    """Some tests of the suite, and how many examples they try together; or a `command` that prints its own figures."""

    what: str
    count: int
    shared_by: int = 1
    tests: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


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
    "simulate": Stage(
        "{count} simulated histories with faults, every invariant checked",
        1_000_000,
        command=("-m", "inbetweenies.testing", "simulate", "--jobs", "2", "--runs", "{count}"),
    ),
    "simulate-sqlite": Stage(
        "{count} simulated histories over SQLite files with a failing disk",
        50_000,
        command=("-m", "inbetweenies.testing", "simulate", "--store", "sqlite", "--jobs", "2", "--runs", "{count}"),
    ),
    "mutants": Stage(
        "every planted bug, for at most {count} histories each",
        3_000,
        command=("-m", "tests.fleet.mutants", "--runs", "{count}"),
    ),
    "gate": Stage(
        "{count} bodies against a plain reading of the gate's rules", 100_000, 10, ("tests/core/test_limits.py",)
    ),
}
