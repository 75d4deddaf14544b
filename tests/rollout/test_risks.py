"""The risk matrix: each risk names a check, a row of the policy and a drill that are there, and the drills run."""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec.structs import replace

from inbetweenies.errors import LocalProtocolError
from inbetweenies.ops.policies import risks, standard
from inbetweenies.ops.scenarios import SCENARIOS, Played, play
from inbetweenies.rollout.risks import Risk, risks_in

ROWS: Final = {row.name: row for row in standard().row}

played = cache(play)


def resolved(dotted: str) -> Any:
    """What `module:name.name` is. Raises `ImportError`, `AttributeError`: nothing."""
    module, _, names = dotted.partition(":")
    found: Any = import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def wrong(risk: Risk) -> list[str]:
    """What a risk names and is not there, or does not do what it is named for."""
    found = []
    for check in risk.checks:
        try:
            seen = resolved(check)
        except (ImportError, AttributeError) as error:
            found.append(f"{check}: {error}")
        else:
            found += [] if callable(seen) or isinstance(seen, property) else [f"{check}: not callable"]
    found += [f"{row}: no row of the policy" for row in risk.rows if row not in ROWS]
    for name in risk.scenarios:
        if name not in SCENARIOS:
            found.append(f"{name}: no scenario")
        elif played(name).row not in risk.rows:
            found.append(f"{name}: ends in {played(name).row}")
    return found


@pytest.mark.parametrize("risk", risks(), ids=lambda risk: risk.name)
def test_each_risk_names_what_is_there_and_its_drills_run(risk: Risk) -> None:
    assert [] == wrong(risk)


def test_the_risks_of_the_operator_are_all_there_and_somebody_looks_at_each_row() -> None:
    assert 8 == len(risks())
    assert ROWS.keys() - {"all_well", "taken_back"} <= {row for risk in risks() for row in risk.rows}


# --- each row has a drill that runs -------------------------------------------------------------------------------

#: What a rollout has come to where a row was met.
STATES: Final = {
    "watch": {"ramp", "rolled_back"},
    "freeze": {"held"},
    "fix_forward": {"held", "rolled_back"},
    "route_back": {"rolled_back"},
    "switch": {"rolled_back"},
    "repair": {"rolled_back"},
    "restore_by_person": {"rolled_back"},
}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_matrix_has_a_drill_that_ends_in_it(name: str) -> None:
    check_row(name, played(ROWS[name].scenario))


def check_row(name: str, found: Played) -> None:
    row = ROWS[name]
    assert (row.name, row.decision) == (found.row, found.decision)
    assert found.state in STATES[row.decision]
    # Whatever wants more than to watch is the last of what was kept.
    if row.decision != "watch":
        assert (row.name, row.decision) == (found.verdicts[-1].outcome.row, found.verdicts[-1].outcome.decision)


def test_there_is_no_drill_that_no_row_names() -> None:
    assert {row.scenario for row in ROWS.values()} == SCENARIOS.keys()
    with pytest.raises(LocalProtocolError, match=r"expected a scenario, of all_is_well, .*; got another: 'a_fire'"):
        play("a_fire")


def test_a_drill_under_a_policy_that_decides_otherwise_does_not_end_in_its_row() -> None:
    rows = tuple(replace(row, decision="freeze") if row.name == "failing" else row for row in standard().row)
    found = play("every_request_fails", replace(standard(), row=rows))

    assert ("freeze", "held") == (found.decision, found.state)
    with pytest.raises(AssertionError):
        check_row("failing", found)


# --- what fails ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"checks": ("inbetweenies.ops.nothing:x",)}, "No module named"),
        ({"checks": ("inbetweenies.ops.verify:nothing",)}, "has no attribute 'nothing'"),
        ({"checks": ("inbetweenies.rollout.triggers:LOG_MAX",)}, "not callable"),
        ({"rows": ("a_fire",)}, "a_fire: no row of the policy"),
        ({"scenarios": ("a_fire",)}, "a_fire: no scenario"),
        ({"scenarios": ("all_is_well",)}, "all_is_well: ends in all_well"),
    ],
)
def test_a_risk_that_names_what_is_not_there_fails(fields: dict[str, Any], told: str) -> None:
    assert told in "; ".join(wrong(replace(risks()[0], **fields)))


RISK: Final = """
[[risk]]
name = "x"
probability = "low"
impact = "high"
mitigation = "x"
owner = "operator"
checks = ["a.b:c"]
rows = ["x"]
scenarios = ["x"]
detected_s = 5
residual = "x"
"""


def test_a_risk_in_a_file_is_one() -> None:
    assert ("x", ("a.b:c",)) == (risks_in(RISK)[0].name, risks_in(RISK)[0].checks)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a risk matrix in TOML; got something else: .*risk"),
        ("risk = []", "expected risks with a name each; got 0"),
        ("x", "expected a risk matrix in TOML"),
        (RISK + RISK, "or a name twice"),
        (RISK + "newer = 1", "unknown field"),
        (RISK.replace('checks = ["a.b:c"]', ""), "missing required field `checks`"),
        (RISK.replace('checks = ["a.b:c"]', "checks = []"), "risk x: expected checks, each once"),
        (RISK.replace('rows = ["x"]', "rows = []"), "risk x: expected rows, each once"),
        (RISK.replace('scenarios = ["x"]', "scenarios = []"), "risk x: expected scenarios, each once"),
        (RISK.replace('rows = ["x"]', 'rows = ["x", "x"]'), "or one twice"),
        (RISK.replace("a.b:c", "a.b.c"), "risk x: expected checks such as package.module:name"),
        (RISK.replace("= 5", "= -1"), "expected detected_s from 0; got -1"),
        (RISK.replace('residual = "x"', 'residual = ""'), "expected texts of 1 to 500"),
        (RISK.replace('owner = "operator"', 'owner = "nobody"'), "Invalid enum value 'nobody'"),
    ],
)
def test_what_is_no_risk_matrix_is_refused(text: str, told: str) -> None:
    with pytest.raises(LocalProtocolError, match=told):
        risks_in(text)


# --- shipped ------------------------------------------------------------------------------------------------------


def test_the_files_are_inside_of_the_package_and_in_what_the_wheel_takes() -> None:
    root = Path(import_module("inbetweenies").__file__ or "").parent
    wheel = re.search(r"\[tool\.hatch\.build\.targets\.wheel\]\npackages = \[(.*?)\]", _pyproject(root))

    assert {"policy.toml", "risks.toml"} <= {one.name for one in (root / "rollout").iterdir()}
    assert wheel is not None
    assert '"inbetweenies"' in wheel[1]


def _pyproject(root: Path) -> str:
    return (root.parent / "pyproject.toml").read_text()
