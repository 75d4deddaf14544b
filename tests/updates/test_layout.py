"""Who installed this program: every row of the table, from the evidence, and made for real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

from blowing_off.updates import detect
from blowing_off.updates.layout import ROWS, Evidence, Kind, classify
from tests.updates.releases import Environment, clean, libraries, needed_wheels, wheel

PIP = {"installer": "pip", "virtual": True}
FILE = {"url": "file:///w.whl", "archive_info": {"hashes": {"sha256": "0" * 64}}}
VCS = {"url": "https://host/repo", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}}
EDITABLE = {"url": "file:///src", "dir_info": {"editable": True}}
FOLDER: dict[str, Any] = {"url": "file:///src", "dir_info": {}}


@pytest.mark.parametrize(
    ("evidence", "kind", "automatic"),
    [
        (PIP, "pip", True),
        ({**PIP, "direct_url": FILE}, "pip_file", False),
        ({**PIP, "direct_url": FOLDER}, "pip_file", False),
        ({**PIP, "direct_url": {"url": ""}}, "pip_file", False),  # a record that could not be read
        ({**PIP, "direct_url": {"dir_info": None}}, "pip_file", False),
        ({**PIP, "direct_url": EDITABLE}, "editable", False),
        ({**PIP, "direct_url": EDITABLE, "pipx": True}, "editable", False),
        ({**PIP, "direct_url": VCS}, "vcs", False),
        ({"installer": "uv", "virtual": True, "direct_url": VCS}, "vcs", False),
        ({"installer": "uv", "virtual": True, "has_pip": False}, "uv_pip", False),
        ({"installer": "uv", "virtual": True, "lock_file": "uv.lock"}, "uv_project", False),
        ({**PIP, "lock_file": "poetry.lock"}, "uv_project", False),
        ({"installer": "uv", "virtual": True, "uv_tool": True, "has_pip": False}, "uv_tool", True),
        ({"installer": "uv", "virtual": True, "pipx": True, "has_pip": False}, "pipx", True),
        ({**PIP, "pipx": True}, "pipx", True),
        ({**PIP, "pipx": True, "direct_url": FILE}, "tool_file", False),
        ({**PIP, "uv_tool": True, "direct_url": VCS}, "tool_file", False),
        ({"installer": "debian", "externally_managed": True}, "distribution", False),
        ({"externally_managed": True}, "distribution", False),
        ({**PIP, "externally_managed": True}, "pip", True),  # a virtual environment of such a Python is its owner's
        ({"installer": "conda", "conda": True}, "conda", False),
        ({"installer": "pip", "conda": True}, "conda", False),
        ({**PIP, "container": True}, "container", False),
        ({**PIP, "pipx": True, "container": True}, "container", False),
        ({"bundled": True}, "frozen", False),
        ({**PIP, "bundled": True, "container": True}, "frozen", False),
        ({"installer": "pip"}, "unknown", False),
        ({**PIP, "writable": False}, "unknown", False),
        ({**PIP, "has_pip": False}, "unknown", False),
        ({"virtual": True}, "unknown", False),
    ],
)
def test_each_row_of_the_table(evidence: dict[str, Any], kind: Kind, automatic: bool) -> None:
    layout = classify(Evidence(**evidence))

    assert (kind, automatic) == (layout.kind, layout.automatic)


def test_every_row_says_what_a_person_can_do() -> None:
    for _, layout in ROWS:
        assert layout.what
        assert layout.how
        assert layout.automatic == (layout.kind in ("pip", "pipx", "uv_tool"))


# --- made for real ------------------------------------------------------------------------------------------------


class Bench:
    """Where installations are made and looked at. Its root has no mark of a container, whatever runs the tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir()
        self.shared = libraries(folder / "libraries")
        self.wheels = folder / "wheels"
        self.wheel = wheel(self.wheels, "1.0.0")
        needed_wheels(self.wheels)
        self.options = ["--no-index", "--find-links", str(self.wheels)]

    def environment(self, name: str, *, shared: bool = True) -> Environment:
        return Environment(self.folder / name, self.shared if shared else None)

    def kind(self, python: Path, *options: str, **variables: str) -> str:
        code = (
            "import json; from pathlib import Path; from blowing_off.updates.detect import look;"
            " from blowing_off.updates.layout import classify;"
            f" print(classify(look(Path({str(self.root)!r}))).kind)"
        )
        done = self.run([str(python), *options, "-c", code], **variables)
        return done.stdout.strip()

    def run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            env=clean() | variables,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def tool(self, name: str) -> str:
        found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert found is not None, f"{name} is among what the tests need"
        return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("layouts"))


def test_pip_in_an_environment_and_the_marks_that_others_leave_there(bench: Bench) -> None:
    made = bench.environment("pip")
    made.pip("install", *bench.options, "--no-compile", "inbetweenies")
    seen = [bench.kind(made.python)]

    for mark in ("conda-meta", "uv-receipt.toml", "pipx_metadata.json"):
        (made.folder / mark).mkdir() if mark == "conda-meta" else (made.folder / mark).write_text("")
        seen.append(bench.kind(made.python))
        (made.folder / mark).rmdir() if mark == "conda-meta" else (made.folder / mark).unlink()
    lock = made.folder.parent / "uv.lock"
    lock.write_text('[[package]]\nname = "another"\n')
    seen.append(bench.kind(made.python))
    lock.write_text('[[package]]\nname = "inbetweenies"\n')
    seen.append(bench.kind(made.python))
    lock.unlink()

    assert ["pip", "conda", "uv_tool", "pipx", "pip", "uv_project"] == seen


@pytest.mark.parametrize("mark", [".dockerenv", "run/.containerenv", "proc/1/cgroup"])
def test_a_container_is_told_by_its_mark_unless_it_is_one_that_stays(
    bench: Bench, tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(detect.CONTAINER_VARIABLE, raising=False)
    before = detect.look(tmp_path).container
    (tmp_path / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / mark).write_text("12:cpu:/docker/0123456789abcdef\n")
    inside = detect.look(tmp_path).container
    monkeypatch.setenv(detect.CONTAINER_VARIABLE, "kept")

    assert (False, True, False) == (before, inside, detect.look(tmp_path).container)


def test_pip_with_the_file_a_folder_a_repository_and_a_working_copy(bench: Bench) -> None:
    source = bench.folder / "source"
    with zipfile.ZipFile(bench.wheel) as packed:
        packed.extractall(source)
    shutil.rmtree(source / "inbetweenies-1.0.0.dist-info")
    (source / "pyproject.toml").write_text(BACKEND.format(wheel=str(bench.wheel)))
    (source / "backend.py").write_text(BACKEND_CODE)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(source)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        bench.run([*git, *command])
    seen = {}
    for name, what in {
        "pip_file": [str(bench.wheel)],
        "vcs": [f"git+file://{source}"],
        "editable": ["-e", str(source)],
    }.items():
        made = bench.environment(name)
        made.pip("install", *bench.options, "--no-compile", "--no-deps", *what)
        seen[name] = bench.kind(made.python)

    assert {name: name for name in seen} == seen


# A build backend in a few lines, so that no other must be installed: it hands over the wheel that is there.
BACKEND = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "inbetweenies"
version = "1.0.0"
[tool.tests]
wheel = "{wheel}"
"""
BACKEND_CODE = """
import shutil, tomllib
from pathlib import Path

def build_wheel(folder, config_settings=None, metadata_directory=None):
    wheel = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["tests"]["wheel"]
    shutil.copy(wheel, folder)
    return Path(wheel).name

build_editable = build_wheel
"""


def test_uv_in_an_environment_and_in_a_project(bench: Bench) -> None:
    uv = bench.tool("uv")
    made = bench.environment("uv", shared=False)
    bench.run([uv, "pip", "install", "--python", str(made.python), *bench.options, "inbetweenies"])
    project = bench.folder / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(
        '[project]\nname = "home"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["inbetweenies"]\n'
    )
    bench.run(
        [uv, "sync", "--project", str(project), "--python", sys.executable, *bench.options],
        UV_PROJECT_ENVIRONMENT=str(project / ".venv"),
    )

    assert "uv_pip" == bench.kind(made.python)
    assert "uv_project" == bench.kind(project / ".venv/bin/python")


def test_uv_as_a_tool(bench: Bench) -> None:
    uv, home = bench.tool("uv"), bench.folder / "tools"
    places = {"UV_TOOL_DIR": str(home), "UV_TOOL_BIN_DIR": str(home / "bin")}
    bench.run([uv, "tool", "install", "--python", sys.executable, *bench.options, "inbetweenies"], **places)

    assert "uv_tool" == bench.kind(home / "inbetweenies/bin/python")


def test_pipx_whoever_it_lets_install(bench: Bench) -> None:
    pipx, home = bench.tool("pipx"), bench.folder / "pipx"
    places = {"PIPX_HOME": str(home), "PIPX_BIN_DIR": str(home / "bin"), "PIPX_MAN_DIR": str(home / "man")}
    options = f"--pip-args={' '.join(bench.options)}"
    command = [pipx, "install", "--backend", "uv", "--python", sys.executable, options, "inbetweenies"]
    bench.run(command, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **places)
    python = home / "venvs/inbetweenies/bin/python"

    installers = [file.read_text() for file in home.rglob("inbetweenies-1.0.0.dist-info/INSTALLER")]
    assert ["uv"] == installers  # which is why that file alone says nothing
    assert "pipx" == bench.kind(python)


def test_a_zip_file_with_everything_in_it(bench: Bench) -> None:
    archive = bench.folder / "app.pyz"
    with zipfile.ZipFile(archive, "w") as packed, zipfile.ZipFile(bench.wheel) as ours:
        for name in ours.namelist():
            packed.writestr(name, ours.read(name))
        packed.writestr(
            "__main__.py",
            "from blowing_off.updates.detect import look; from blowing_off.updates.layout import classify;"
            " print(classify(look()).kind)",
        )
    made = bench.environment("zip")

    assert "frozen" == bench.run([str(made.python), str(archive)]).stdout.strip()


def test_a_python_that_belongs_to_the_system(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Its mark lies beside the standard library (PEP 668), which a test must not write to: it is looked for elsewhere.
    (tmp_path / "EXTERNALLY-MANAGED").write_text("[externally-managed]\nError=use apt\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name, **_: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    monkeypatch.setattr(detect, "_direct_url", lambda _: None)

    assert "distribution" == classify(detect.look(bench.root)).kind


def test_records_that_cannot_be_read_are_no_reason_to_fail(bench: Bench) -> None:
    made = bench.environment("odd")
    made.pip("install", *bench.options, "--no-compile", "--no-deps", "inbetweenies")
    about = made.purelib / "inbetweenies-1.0.0.dist-info"
    seen = []
    for text in (b"", b"{", b"[]", b"\xff\xfe", b'{"dir_info": {"editable": "yes"}}', b"[" * 100_000):
        (about / "direct_url.json").write_bytes(text)
        seen.append(bench.kind(made.python))
    (about / "direct_url.json").unlink()
    (about / "INSTALLER").write_bytes(b"\xff")
    seen.append(bench.kind(made.python))
    shutil.rmtree(about)
    seen.append(bench.kind(made.python))

    assert not {"pip", "pipx", "uv_tool"} & set(seen), json.dumps(seen)
