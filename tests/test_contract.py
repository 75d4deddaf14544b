"""The shape of the code, held to its contract: which module may import which, and what an import may load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT = "from importlinter.cli import lint_imports_command as run; run(['--no-cache', '--no-logo'])"


def run_python(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(directory), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_import_contract_is_kept() -> None:
    done = run_python(LINT, ROOT)

    assert 0 == done.returncode, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("inbetweenies/model.py", "import blowing_off", "blowing_off stands on inbetweenies, never the reverse"),
        ("inbetweenies/merge.py", "from . import engine", "inside inbetweenies, imports go down this list"),
        ("inbetweenies/engine.py", "from .stores import memory", "inside inbetweenies, imports go down this list"),
        ("inbetweenies/utils.py", "", "inside inbetweenies, imports go down this list"),
        ("blowing_off/store.py", "from . import client", "inside blowing_off, imports go down this list"),
        ("blowing_off/utils.py", "", "inside blowing_off, imports go down this list"),
        ("inbetweenies/engine.py", "import time", "pure modules have no I/O"),
        ("inbetweenies/wire/v2.py", "from os import environ", "pure modules have no I/O"),
        ("inbetweenies/__init__.py", "import asyncio", "package roots export lazily"),
        ("inbetweenies/wire/v2.py", "from . import v1", "wire versions do not import each other"),
        ("inbetweenies/router.py", "from .wire import v1", "nobody outside of wire/ names a wire version"),
        (
            "inbetweenies/asgi/application.py",
            "from ..wire.v2 import WIRE",
            "nobody outside of wire/ names a wire version",
        ),
    ],
)
def test_a_planted_violation_breaks_the_contract(tmp_path: Path, file: str, line: str, broken: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in ("inbetweenies", "blowing_off"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / file).open("a") as planted:
        planted.write(f"\n{line}\n")

    done = run_python(LINT, tmp_path)

    assert 1 == done.returncode, done.stdout + done.stderr
    verdicts = [told for told in done.stdout.splitlines() if told.startswith(broken)]
    assert [told for told in verdicts if " BROKEN" in told], done.stdout


@pytest.mark.parametrize("package", ["inbetweenies", "blowing_off"])
def test_importing_a_package_loads_nothing_that_does_io(package: str) -> None:
    done = run_python(
        f"import sys; before = set(sys.modules); import {package};"
        "print(*sorted({'asyncio', 'httpx', 'socket', 'sqlite3', 'ssl', 'threading', 'websockets'}"
        " & (set(sys.modules) - before)))",
        ROOT,
    )

    assert (0, "\n", "") == (done.returncode, done.stdout, done.stderr)
