"""What an update stands on: the old release kept aside, what tools say, and going on as another process."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blowing_off.updates import channel, restart
from blowing_off.updates.aside import SCRIPT, canonical, keep, put_back
from blowing_off.updates.channel import (
    SUMS,
    Delegated,
    Offer,
    Part,
    Pip,
    Place,
    UpdateFailed,
    Uv,
    channel_for,
    place_of,
)
from blowing_off.updates.decide import Availability, UpdateNeeded, Wanted
from blowing_off.updates.layout import Kind, Layout
from blowing_off.updates.prompt import explain
from inbetweenies.errors import LocalProtocolError

# --- kept aside ---------------------------------------------------------------------------------------------------


def distribution(purelib: Path, name: str, release: str, files: dict[str, str]) -> None:
    """As an installer leaves it."""
    about = f"{name}-{release}.dist-info"
    listed = {**files, f"{about}/METADATA": f"Name: {name}\nVersion: {release}\n"}
    for file, text in listed.items():
        path = purelib / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    lines = [f"{file},," for file in [*listed, f"{about}/RECORD"]]
    (purelib / about / "RECORD").write_text("\n".join(lines) + "\n")


def everything(top: Path) -> dict[str, str]:
    return {file.relative_to(top).as_posix(): file.read_text() for file in sorted(top.rglob("*")) if file.is_file()}


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    purelib = tmp_path / "venv/lib/site-packages"
    distribution(purelib, "tool", "1.0", {"tool/a.py": "one", "tool/b.py": "two", "../../bin/tool": "#!one"})
    distribution(purelib, "Some.Library", "3.1", {"library.py": "lib"})
    (tmp_path / "venv/receipt.toml").write_text("tool 1.0")
    return tmp_path / "venv"


def replaced(prefix: Path) -> None:
    """What an installer makes of it: another release, a library more, a script changed."""
    purelib = prefix / "lib/site-packages"
    for file in ("tool/b.py", "tool-1.0.dist-info/METADATA", "tool-1.0.dist-info/RECORD"):
        (purelib / file).unlink()
    (purelib / "tool-1.0.dist-info").rmdir()
    distribution(purelib, "tool", "2.0", {"tool/a.py": "ONE", "tool/c/d.py": "new", "../../bin/tool": "#!two"})
    distribution(purelib, "newcomer", "1", {"newcomer.py": "x"})
    compiled = purelib / "tool/c/__pycache__/d.cpython-311.pyc"
    compiled.parent.mkdir()
    compiled.write_text("compiled")
    (purelib / "tool/__pycache__").mkdir()
    (purelib / "tool/__pycache__/a.cpython-311.pyc").write_text("compiled from ONE")
    (purelib / "~ool").mkdir()
    (purelib / "~ool/left.py").write_text("what pip had moved away")
    (prefix / "receipt.toml").write_text("tool 2.0")


@pytest.mark.parametrize("names", [["Tool"], None])
def test_what_was_there_before_is_there_again_and_nothing_else(prefix: Path, tmp_path: Path, names: Any) -> None:
    before = everything(prefix)
    folder = tmp_path / "aside"
    found = keep(
        prefix,
        prefix / "lib/site-packages",
        names,
        folder,
        arriving=["newcomer"],
        extra=[prefix / "receipt.toml", prefix / "absent"],
    )
    replaced(prefix)
    assert before != everything(prefix)

    put_back(folder)
    once = everything(prefix)
    put_back(folder)

    assert ({"tool"} if names else {"tool", "some-library"}) == found
    assert before == once == everything(prefix)


def test_the_folder_brings_the_old_release_back_without_any_of_our_code(prefix: Path, tmp_path: Path) -> None:
    before = everything(prefix)
    folder = tmp_path / "aside"
    keep(prefix, prefix / "lib/site-packages", ["tool"], folder, arriving=["newcomer"], extra=[prefix / "receipt.toml"])
    replaced(prefix)

    done = subprocess.run(
        [sys.executable, "-I", "-S", str(folder / SCRIPT)], capture_output=True, text=True, check=False
    )

    assert (0, "the release that was there before is back\n") == (done.returncode, done.stdout), done.stderr
    assert before == everything(prefix)


def test_an_installer_that_was_cut_off_is_cleared_away_after(prefix: Path, tmp_path: Path) -> None:
    before = everything(prefix)
    purelib = prefix / "lib/site-packages"
    folder = tmp_path / "aside"
    keep(prefix, purelib, ["tool"], folder)
    (purelib / "tool").rename(purelib / "~ool")
    (purelib / "tool-1.0.dist-info").rename(purelib / "~ool-1.0.dist-info")
    (purelib / "tool-2.0.dist-info").mkdir()
    (purelib / "tool-2.0.dist-info/METADATA").write_text("Name: tool\n")  # and no record yet

    put_back(folder)

    assert before == everything(prefix)


def test_a_record_that_names_files_elsewhere_touches_none_of_them(prefix: Path, tmp_path: Path) -> None:
    purelib = prefix / "lib/site-packages"
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    distribution(purelib, "evil", "1", {})
    record = purelib / "evil-1.dist-info/RECORD"
    record.write_text(f"../../../precious.txt,,\n{precious},,\n" + record.read_text())
    folder = tmp_path / "aside"
    keep(prefix, purelib, ["tool"], folder, arriving=["evil"])

    put_back(folder)

    assert "mine" == precious.read_text()
    assert not record.exists()


@given(st.text(alphabet="ab-_.", min_size=1, max_size=12))
def test_a_name_has_one_spelling(name: str) -> None:
    assert canonical(name) == canonical(name.upper().replace("-", "_").replace(".", "-"))


# --- tools --------------------------------------------------------------------------------------------------------


class Tool:
    """A tool that says what it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = 0, out: str = "", err: str = "") -> None:
        self.calls: list[Sequence[str]] = []
        self.done = (code, out, err)
        monkeypatch.setattr(channel, "run", self)

    def __call__(self, command: Sequence[str], seconds: float, **_: str) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        return subprocess.CompletedProcess(command, *self.done)


WANTED = Wanted(after="1.0.0")


@pytest.mark.parametrize(
    ("err", "words", "failed"),
    [
        ("ERROR: No matching distribution found for inbetweenies>1.0.0 (from versions: 9.9)", "none that fits", False),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM ...", "the hash that it should have", True),
        ("× Hash mismatch for `inbetweenies==1.1.0`", "the hash that it should have", True),
        ("WARNING: Retrying ... after connection broken by ...", "could not be reached", True),
        ("error sending request for url", "could not be reached", True),
        ("", "none that fits", False),
    ],
)
@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_what_a_tool_did_not_find_is_told_in_words_that_name_no_release(
    monkeypatch: pytest.MonkeyPatch, tool: str, err: str, words: str, failed: bool
) -> None:
    Tool(monkeypatch, 1, "", err)
    asked = Pip(Place(), "python") if tool == "pip" else Uv(Place(), "uv", "python")

    found = asked.find(WANTED)

    assert isinstance(found, Availability)
    assert words in found.reason
    assert "9.9" not in found.reason
    assert (None, failed) == (found.release, found.failed)


@pytest.mark.parametrize("out", ["", "{}", '{"install": [{}]}', "[]", '{"install": [{"metadata": 1}]}'])
def test_a_report_that_cannot_be_read_is_no_offer(monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    Tool(monkeypatch, 0, out)

    found = Pip(Place(), "python").find(WANTED)

    assert isinstance(found, Availability)
    assert found.failed


@pytest.mark.parametrize("out", [" + other==1.0", " + inbetweenies==0.9", " + inbetweenies==1.1rc1", "nothing"])
def test_what_was_not_asked_for_is_no_offer(monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    Tool(monkeypatch, 0, out)

    assert Availability(release=None, reason="what it delivers is not what was asked for") == Uv(
        Place(), "uv", "python"
    ).find(WANTED)


def test_uv_takes_from_a_folder_with_hashes_only_what_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Tool(monkeypatch, 0, "", " - inbetweenies==1.0.0\n + inbetweenies==1.1.0\n + new-lib==2.0\n")
    uv = Uv(Place(folder=tmp_path), "uv", "python")
    parts = (Part(name="inbetweenies", release="1.1.0"), Part(name="new-lib", release="2.0"))
    offer = Offer(release="1.1.0", parts=parts)
    found = [uv.find(WANTED)]
    lines = ["# a remark"]
    for name in ("inbetweenies-1.1.0-py3-none-any.whl", "new_lib-2.0-py3-none-any.whl"):
        (tmp_path / name).write_bytes(name.encode())
        (tmp_path / SUMS).write_text("\n".join(lines) + "\n")
        found.append(uv.find(WANTED))
        lines.append(f"{hashlib.sha256(name.encode()).hexdigest()} *{name}")
    (tmp_path / SUMS).write_text("\n".join(lines) + "\n")
    found.append(uv.find(WANTED))
    (tmp_path / "new_lib-2.0-py3-none-any.whl").write_bytes(b"another")
    found.append(uv.find(WANTED))

    wrong = channel._WRONG_HASH
    assert [offer, wrong, wrong, offer, wrong] == found


@pytest.mark.parametrize(
    ("code", "err", "word", "told"),
    [
        (1, "noise\nERROR: disk full\n", "fetch_failed", "it says: ERROR: disk full"),
        (124, "", "fetch_failed", "it ended with 124"),
        (1, "THESE PACKAGES DO NOT MATCH THE HASHES", "wrong_hash", "the hash that it should have"),
    ],
)
def test_a_tool_that_fails_is_quoted_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, err: str, word: str, told: str
) -> None:
    Tool(monkeypatch, code, "", err)
    offer = Offer(release="1.1.0", parts=(Part(name="inbetweenies", release="1.1.0", sha256="0" * 64),))

    with pytest.raises(UpdateFailed, match=told) as caught:
        Pip(Place(), "python").fetch(offer, tmp_path / "site")

    assert word == caught.value.code
    assert not caught.value.blamed


def test_a_tool_that_is_not_there_or_hangs_has_failed() -> None:
    hangs = channel.run([sys.executable, "-c", "import signal; signal.pause()"], 0.2)

    assert 127 == channel.run(["/no/such/tool"], 1).returncode
    assert 124 == hangs.returncode
    assert "did not answer in time" in channel._nothing(hangs, Place()).reason


@pytest.mark.parametrize(
    ("kind", "there", "expected"),
    [
        ("pip", "", Pip),
        ("pip_file", "", Pip),
        ("unknown", "", Pip),
        ("uv_pip", "uv", Uv),
        ("uv_tool", "uv", Delegated),
        ("pipx", "pipx uv", Delegated),
        ("pipx", "pipx", Delegated),  # pip is in its environment then
        ("pipx", "uv", None),
        ("uv_tool", "", None),
        ("uv_pip", "", None),
        ("editable", "uv pipx", None),
        ("distribution", "uv pipx", None),
        ("container", "uv pipx", None),
    ],
)
def test_a_layout_is_asked_through_its_own_tool(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, there: str, expected: type | None
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there.split() else None)
    Tool(monkeypatch)

    found = channel_for(Layout(kind=kind, what="", how=""), Place())

    assert (expected or type(None)) is type(found)


def test_a_place_is_handed_on_to_whatever_tool_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = Tool(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    spaced = tmp_path / "my wheels"
    spaced.mkdir()
    offer = Offer(release="1.1.0", parts=(Part(name="inbetweenies", release="1.1.0", sha256="0" * 64),))
    for kind in ("pip", "pipx", "uv_tool"):
        found = channel_for(Layout(kind=kind, what="", how=""), place_of(str(spaced)))
        assert found is not None
        found.install(offer)

    installs = [call for call in tool.calls if "--version" not in call]
    assert ["--no-index", "--find-links", str(spaced)] == list(installs[0])[-5:-2]
    assert ["pipx", "upgrade", "inbetweenies", f"--pip-args=--no-index --find-links '{spaced}'"] == installs[1]
    assert ["uv", "tool", "upgrade", "inbetweenies", "--no-index", "--find-links", str(spaced)] == installs[2]


def test_uvs_own_environment_is_not_changed_by_us() -> None:
    with pytest.raises(UpdateFailed, match="expected an installation that this program may change"):
        Uv(Place(), "uv", "python").install(Offer(release="1.1.0", parts=()))


def test_a_place_is_told_without_the_password_in_it(tmp_path: Path) -> None:
    secret = place_of("https://ann:hunter2@packages.example/simple/")

    assert "the package index at packages.example" == secret.words
    assert "the package index" == place_of(None).words
    assert [] == place_of("").options
    assert f"the folder {tmp_path}" == place_of(tmp_path.as_uri()).words
    with pytest.raises(LocalProtocolError, match="which is neither"):
        place_of("ftp://packages.example")


# --- words --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", [0, 1, 2])
@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("release", ["1.2.0", None])
def test_a_text_says_what_why_and_what_becomes_of_what_waits(
    pending: int, automatic: bool, required: bool, release: str | None
) -> None:
    layout = Layout(kind="pip", what="by pip", how="`do this`", why_not="" if automatic else "no")
    needed = UpdateNeeded(
        side="client",
        have="1.0.0",
        minimum="9.9.9",
        required=required,
        available=Availability(release=release, reason="the folder has none"),
    )

    text = explain(needed, layout, pending)

    assert "9.9.9" not in text
    assert ("too old for the server" in text) == required
    assert ("do this" in text) == (not automatic or release is None)
    assert ["Nothing of yours waits", "1 change of yours waits", "2 changes of yours wait"][pending] in text
    assert text.endswith(".")


# --- going on -----------------------------------------------------------------------------------------------------


CLI = "blowing_off.cli"


@pytest.mark.parametrize(
    ("started", "arguments", "expected"),
    [
        (["python", "/bin/blowing-off", "sync"], None, ["/bin/blowing-off", "sync"]),
        (["python", "-X", "utf8", "-m", CLI, "sync"], None, ["-X", "utf8", "-m", CLI, "sync"]),
        (["python", "-I", "-W", "error", "/bin/b", "x"], ["update"], ["-I", "-W", "error", "-m", CLI, "update"]),
        (["python", "-m", CLI, "-X"], ["sync"], ["-m", CLI, "sync"]),
        (["python"], ["sync"], ["-m", CLI, "sync"]),
    ],
)
def test_the_next_process_is_started_as_this_one_was(
    monkeypatch: pytest.MonkeyPatch, started: list[str], arguments: list[str] | None, expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "orig_argv", started)

    assert [sys.executable, *expected] == restart.command_of(arguments)


GO = """
import os, sys
from blowing_off.updates.restart import Restart, go_on
sys.platform = {platform!r}
said = "print(os.environ['BLOWING_OFF_UPDATED_FROM'], os.getpid())"
sys.orig_argv = ["python", "-c", f"import os, sys; {{said}}; sys.exit(3)"]
print(os.getpid())
go_on(Restart(None, "1.0.0"))
"""


@pytest.mark.parametrize(("platform", "same"), [("linux", True), ("win32", False)])
def test_this_process_becomes_the_next_one_or_waits_for_it(platform: str, same: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GO.format(platform=platform)], capture_output=True, text=True, check=False
    )

    first, said = done.stdout.splitlines()
    assert (3, "1.0.0") == (done.returncode, said.split()[0]), done.stderr
    assert same == (first == said.split()[1])
