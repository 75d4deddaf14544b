"""Verdicts of `EmergencyTriggers` (PROTOCOL 12.12), and an operator's policy file: kept, explained, obeyed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from inbetweenies import MemoryStore
from inbetweenies.errors import LocalProtocolError, StoreBusy, StoreCorrupt
from inbetweenies.model import Document
from inbetweenies.ops import policies, scenarios
from inbetweenies.ops.explaining import Verdicts
from inbetweenies.ops.policies import PolicyFile, policy_at, standard
from inbetweenies.ops.triggers import BREACHES_MAX
from inbetweenies.registry import DOCUMENT as REGISTRY
from inbetweenies.registry import Decision, Decisions
from inbetweenies.registry import document_of as registry_document
from inbetweenies.rollout import triggers, verdicts
from inbetweenies.rollout.kept import TEXT_CHARS_MAX
from inbetweenies.rollout.policy import Policy, PolicyRefused
from inbetweenies.rollout.verdicts import record_in
from inbetweenies.store import Store
from inbetweenies.stores import amend
from inbetweenies.stores.keeper import run_now
from tests.ops.test_triggers_shell import IN, OUT, V1, V2, Process, decided, of, ramping, watched


def rows(store: Store) -> list[str]:
    return [one.outcome.row for one in reversed(Verdicts(store).newest(99))]


def fail(process: Process) -> None:
    process.serve(IN, 20, failed=True)
    process.serve(OUT, 20)


# --- kept ---------------------------------------------------------------------------------------------------------


def test_what_was_decided_is_explained_and_decided_again() -> None:
    store, process = watched()
    fail(process)
    process.look()
    found = Verdicts(store).explained(1)

    assert ("failing", "route_back", f"{V2}/1") == (
        found.read.outcome.row,
        found.read.outcome.decision,
        found.read.rollout,
    )
    assert ("20 of 20 failed, of the others 0 of 20", "20 failures in a row") == found.read.outcome.evidence
    assert found.row is not None
    assert found.replay is not None
    assert (True, ()) == (found.replay.identical, found.replay.differs)
    assert process.triggers.last[f"{V2}/1"].row == "failing"
    with pytest.raises(LocalProtocolError, match="a verdict that is kept, from 1 to 1; got 2"):
        Verdicts(store).explained(2)
    with pytest.raises(LocalProtocolError, match=r"kept, \(none\); got 1"):
        Verdicts(MemoryStore()).explained(1)


def test_what_all_processes_decide_is_one_chain() -> None:
    store, first = watched(breaches=lambda: ("a write was lost",))
    second = Process(store, breaches=lambda: ("a write was lost",))
    for process in (first, second, first, second, second):
        process.look()

    assert ["data_loss", "still_broken", "broken_without_it", "broken_after_repair"] == rows(store)
    assert [4, 3, 2] == [one.n for one in Verdicts(store).newest(3)]
    assert all(Verdicts(store).explained(n).replay.identical for n in range(1, 5))  # type: ignore[union-attr]


@pytest.mark.parametrize("left", range(12))
def test_whoever_dies_loses_no_verdict_of_what_was_done(left: int) -> None:
    """The store goes away at each place of a look; what comes of it afterwards has its verdict all the same."""
    store, process = watched()
    fail(process)
    store.failing = [False] * left + [True] * 3
    process.look_if_it_can()
    gone, store.failing = bool(store.failing), []
    if triggers.watches_in(run_now(store.document(triggers.DOCUMENT))).watches:
        assert ["failing"] == rows(store)
    Process(store).look()
    process.look()

    assert gone or left > 6
    assert (["failing"], "rolled_back") == (rows(store), of(store).state)
    assert ["failing"] == [
        verdicts.understood(one).outcome.row for one in record_in(run_now(store.document(verdicts.DOCUMENT))).lines
    ]


def test_a_record_that_cannot_be_understood_keeps_nobody_from_taking_back(caplog: pytest.LogCaptureFixture) -> None:
    store, process = watched()
    run_now(amend(store, verdicts.DOCUMENT, lambda _: b"newer"))
    fail(process)

    assert ["roll_back"] == process.look()
    assert "verdicts are not in the record yet: StoreCorrupt" in caplog.text
    assert b"newer" == run_now(store.document(verdicts.DOCUMENT)).body
    with pytest.raises(StoreCorrupt):
        Verdicts(store)
    run_now(amend(store, verdicts.DOCUMENT, lambda _: b""))
    run_now(amend(store, verdicts.DOCUMENT, lambda _: verdicts.document_of(verdicts.Record())))
    process.look()
    assert 1 == len(record_in(run_now(store.document(verdicts.DOCUMENT))).lines)


def test_however_much_is_broken_a_verdict_stays_readable() -> None:
    many = tuple(f"write {n} was\nlost " + "x" * 2_000 for n in range(50))
    store, process = watched(breaches=lambda: many)
    process.look()
    evidence = Verdicts(store).explained(1).read.outcome.evidence

    assert [TEXT_CHARS_MAX] * BREACHES_MAX == [len(one) for one in evidence]
    assert all(one.isprintable() for one in evidence)


def test_a_verdict_by_a_policy_that_is_not_known_any_more_says_so() -> None:
    other = replace(standard(), advised={V2: "a hole"})
    store, process = watched(policy=lambda: other)
    process.look()
    run_now(amend(store, verdicts.DOCUMENT, lambda _: verdicts.document_of(verdicts.Record())))
    found = Verdicts(store).explained(1)

    assert (None, None) == (found.row, found.replay)
    again = Verdicts(store, policy=other).explained(1)
    assert again.row is not None
    assert again.replay is not None
    assert again.replay.identical


# --- the floor ----------------------------------------------------------------------------------------------------


def floor(name: str, *advised: str) -> dict[str, Any]:
    made = replace(standard(), min_safe_version=name, advised=dict.fromkeys(advised, "a hole"))
    return {"policy": lambda: made}


def test_below_the_floor_nothing_is_taken_back_and_somebody_is_told_once() -> None:
    store, process = watched(**floor(V2), breaches=lambda: ("a write was lost",))

    assert [["fix_forward", "hold"], [], []] == [process.look() for _ in range(3)]
    assert ("held", "deployed") == (of(store).state, decided(store))
    assert "a write was lost" in process.told[0].why
    assert f"{V1}, which would be served instead, is below {V2}" in process.told[0].why
    assert ["data_loss_below_floor"] == rows(store)


def test_a_person_takes_back_what_nothing_else_does() -> None:
    store, process = watched(**floor(V2), breaches=lambda: ("a write was lost",))
    process.look()
    process.triggers.trigger_rollback("better a hole than this")

    assert "rolled_back" == of(store).state


def test_above_the_floor_a_hole_takes_back_at_the_next_look() -> None:
    store, process = watched(**floor(V1, V2))

    assert [["roll_back"], [], []] == [process.look() for _ in range(3)]
    assert ["security"] == rows(store)


def test_a_hole_in_both_is_gone_on_from() -> None:
    store, process = watched(**floor(V2, V2))

    assert ["fix_forward", "hold"] == process.look()
    assert ["security_below_floor"] == rows(store)


@pytest.mark.parametrize("state", ["disabled", "retired"])
def test_what_is_not_served_is_not_gone_back_to(state: Any) -> None:
    store, process = watched(**floor(V2), breaches=lambda: ("a write was lost",))
    decisions = Decisions().but(V1, Decision(state=state))
    run_now(amend(store, REGISTRY, lambda _: registry_document(decisions)))

    assert ["roll_back"] == process.look()


def test_a_feature_has_no_floor() -> None:
    _, process = watched(ramping("mcp_server"), **floor(V2), breaches=lambda: ("a write was lost",))

    assert ["roll_back"] == process.look()


def test_without_a_floor_nothing_more_is_read() -> None:
    store, process = watched()
    asked: list[str] = []
    real = store.document

    async def document(name: str) -> Document:
        asked.append(name)
        return await real(name)

    store.document = document  # type: ignore[method-assign]
    process.look()
    assert REGISTRY not in asked


def test_nobody_who_can_tell_is_not_hidden_by_a_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    store, process = watched(**floor(V2))

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(process.monitor, "signals", fails)
    assert [[], [], ["hold"]] == [process.look() for _ in range(3)]
    assert ["silence"] == rows(store)


def test_what_was_seen_is_not_lost_to_a_registry_that_cannot_be_read() -> None:
    store, process = watched(**floor(V1))
    fail(process)
    store.failing = [False, False, True]  # rollouts, watches, registry
    with pytest.raises(StoreBusy):
        process.look()

    assert ["roll_back"] == process.look()
    assert rows(store) == ["failing"]


# --- a policy file ------------------------------------------------------------------------------------------------

SHIPPED = policies._shipped("policy.toml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(SHIPPED)
    return path


def rewrite(path: Path, text: str) -> None:
    """As editors do: another file in the same place."""
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)  # noqa: PTH105 - what is meant is the system call


def test_a_copy_of_the_file_that_comes_with_this_says_the_same(file: Path) -> None:
    assert standard() == policy_at(file)
    assert standard().digest == PolicyFile(file)().digest


@pytest.mark.parametrize("scenario", ["every_request_fails", "a_log_is_damaged"])
def test_a_row_less_is_a_gap_and_twice_is_an_overlap_and_neither_is_served(file: Path, scenario: str) -> None:
    parts = SHIPPED.split("[[row]]")
    row = next(part for part in parts if f'"{scenario}"' in part)
    rewrite(file, "[[row]]".join(part for part in parts if part != row))
    with pytest.raises(PolicyRefused, match=rf"^{file}: .*got none for \d+, such as stage=reached"):
        PolicyFile(file)
    second = row.replace('name = "', 'name = "second_', 1)
    rewrite(file, f"{SHIPPED}\n[[row]]{second}")
    with pytest.raises(
        PolicyRefused, match=r"got several for \d+, such as stage=reached .*, which (\w+) and second_\1"
    ):
        PolicyFile(file)


def test_a_file_that_is_changed_holds_at_the_next_look(file: Path) -> None:
    store, process = watched(policy=PolicyFile(file))
    assert [] == process.look()
    rewrite(file, f'advised = {{ "{V2}" = "a hole" }}\n{SHIPPED}')

    assert ["roll_back"] == process.look()
    assert "a hole" == of(store).log[-1].cause.reason


def test_a_slip_of_the_pen_leaves_the_policy_before_in_force(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = PolicyFile(file)
    for damage in (
        lambda: rewrite(file, "[[row"),
        lambda: file.write_bytes(b"\xff" * 10),
        lambda: rewrite(file, SHIPPED * 100),
        file.unlink,
    ):
        caplog.clear()
        damage()
        assert [standard()] * 3 == [kept(), kept(), kept()]
        assert 1 == caplog.text.count("the policy before stays in force")
    rewrite(file, f'min_safe_version = "{V1}"\n{SHIPPED}')
    assert V1 == kept().min_safe_version


def test_there_has_to_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PolicyFile(tmp_path / "nothing.toml")


# --- planted bugs -------------------------------------------------------------------------------------------------


def test_a_verdict_that_is_kept_only_in_the_record_is_lost_and_that_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verdicts.Record, "lines_with", lambda self, _: self.lines)
    with pytest.raises(AssertionError):  # noqa: PT012 - one of them is enough
        for left in range(12):
            test_whoever_dies_loses_no_verdict_of_what_was_done(left)


def test_a_floor_that_nobody_asks_about_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "below_floor", lambda *_: "")
    with pytest.raises(AssertionError):
        test_below_the_floor_nothing_is_taken_back_and_somebody_is_told_once()
    assert "data_loss" == scenarios.play("a_log_is_damaged_above_a_hole").row
