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


_STORM: Final = "tests/storm/"
NEGOTIATION: Final = 12_177_792  # all there are: 31 offers, 1,023 registries, 8 hints, 12 first answers, 4 bodies

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
    "simulate-real": Stage(
        "{count} simulated histories with our own clients instead of models of them",
        50_000,
        command=(
            *("-m", "inbetweenies.testing", "simulate", "--jobs", "2", "--runs", "{count}"),
            *("--world", "tests.simulator.real_clients:RealClients"),
        ),
    ),
    "mutants": Stage(
        "every planted bug, for at most {count} histories each",
        3_000,
        command=("-m", "tests.fleet.mutants", "--runs", "{count}"),
    ),
    "fuzz": Stage(
        "{count} times twenty mutated messages to a server in memory", 20_000, 1, ("tests/hostile/test_fuzz.py",)
    ),
    "negotiation": Stage(
        "{count} clients before servers of five versions, every one there is",
        NEGOTIATION,
        1,
        ("tests/deep/negotiation.py",),
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
    "kill-server": Stage(
        "{count} kills of a server under a storm of pushes", 200, 1, (_STORM + "test_kill_server.py",)
    ),
    "kill-rollout": Stage(
        "{count} kills of servers and of whoever rolls out, in the middle of rollouts",
        100,
        1,
        (_STORM + "test_kill_rollout.py",),
    ),
    "back-and-forth": Stage(
        "{count} edits by clients of the older version between a rollback and the next rollout",
        10_000,
        1,
        (_STORM + "test_back_and_forth.py",),
    ),
    "kill-client": Stage("{count} kills of clients that edit and sync", 200, 1, (_STORM + "test_kill_client.py",)),
    "io-errors": Stage(
        "{count} faults at every step of every request, call and opening",
        40,  # every code in every mode
        1,
        tuple(
            _STORM + name for name in ("test_io_errors.py", "test_io_errors_client.py", "test_io_errors_elsewhere.py")
        ),
    ),
    "real-faults": Stage(
        "storage that really fails, at {count} times as many places",
        20,
        1,
        (_STORM + "test_real_faults.py", _STORM + "fsyncs.py"),
    ),
    "overlap": Stage("{count} pushes of each kind, eight times at once", 300, 1, (_STORM + "test_overlap.py",)),
    "concurrent": Stage(
        "{count} rows by eight writers beside eight readers", 100_000, 1, (_STORM + "test_concurrent.py",)
    ),
    "live": Stage(
        "{count} live devices that see one another, over a server that is killed", 50, 1, (_STORM + "test_live.py",)
    ),
    "set-back": Stage(
        "{count} writes after a backup that a real server is set back to, again and again",
        500,
        1,
        ("tests/server/test_set_back.py",),
    ),
    "rewinds": Stage(
        "{count} histories of servers that are set back and clients that are copied",
        2_000,
        1,
        ("tests/client/test_setbacks.py",),
    ),
    "rollouts": Stage(
        "{count} harmless rollouts, looked at after each failure, and a tenth as many of each kind of harm",
        100_000,
        1,
        ("tests/rollout/test_triggers.py", "-k", "rollouts_that_do"),
    ),
    "drill": Stage(
        "drills as in production, and one with each bug that it has to find", 1, 1, ("tests/drill/each.py",)
    ),
    "verdicts": Stage(
        "{count} verdicts about rollouts, decided again from what was kept of them",
        100_000,
        1,
        ("tests/rollout/test_verdicts.py", "-k", "a_thousand_verdicts"),
    ),
    "migrate": Stage(
        "{count} made-up deployed databases imported, interrupted and undone",
        2_000,
        1,
        ("tests/ops/test_migrate.py::test_whatever_stands_in_a_database_every_row_is_accounted_for",),
    ),
    "migrate-kills": Stage(
        "{count} imports of processes that are killed until they are done, and undone so",
        50,
        1,
        ("tests/ops/test_cli_migrate.py", "-k", "killed"),
    ),
    "clock": Stage("{count} histories in which the clock steps", 20_000, 2, (_STORM + "test_clock.py",)),
    "bites": Stage("bugs planted in real processes, until each is found", 1, 1, (_STORM + "bites.py",)),
}
