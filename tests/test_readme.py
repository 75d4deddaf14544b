"""The table of systems in the README: each names something that is there, and a test that shows it."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from blowing_off.cli import commands as client_commands
from inbetweenies.cli import commands as server_commands

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SYSTEMS = re.findall(
    r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$",
    README.partition("## The eighteen systems of a rollout")[2].partition("\n## ")[0],
    re.MULTILINE,
)[1:]


def test_there_are_eighteen() -> None:
    assert 18 == len(SYSTEMS) == len({name for name, _, _ in SYSTEMS})


@pytest.mark.parametrize(("what", "shown"), [row[1:] for row in SYSTEMS], ids=[row[0] for row in SYSTEMS])
def test_a_system_is_there_and_so_is_what_shows_it(what: str, shown: str) -> None:
    for path in [*re.findall(r"`(tests/[^`]+)`", shown), *re.findall(r"\]\(([^)]+)\)", what)]:
        assert (ROOT / path).is_file(), path
    found = [name for name in re.findall(r"`([^`]+)`", what) if is_there(name)]
    assert found == re.findall(r"`([^`]+)`", what)


def is_there(name: str) -> bool:
    """Whether a class, a command with what stands below it, or an endpoint is there."""
    first, *rest = name.split()
    if first in ("inbetweenies", "blowing-off"):
        group = server_commands if first == "inbetweenies" else client_commands
        for word in rest:
            if word.startswith("--"):
                return any(word in option.opts for option in group.params)
            group = group.commands[word]  # type: ignore[assignment]
        return True
    if first == "GET":
        return f'"{rest[0]}"' in (ROOT / "inbetweenies/asgi/application.py").read_text("utf-8")
    return any(name in import_module(package).__all__ for package in ("inbetweenies", "blowing_off"))
