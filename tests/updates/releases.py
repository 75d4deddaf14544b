"""Releases of this project that never were, wheels of what they need, and places to install them: all from this tree.

Nothing is downloaded and no build tool runs: a wheel is a zip file with a list of its files in it.
"""

from __future__ import annotations

import base64
import hashlib
import marshal
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import Distribution, distribution
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("inbetweenies", "blowing_off")
#: What the client needs, as the installed distributions are called.
NEEDED = (
    "msgspec httpx httpcore h11 anyio idna certifi websockets click rich markdown-it-py mdurl pygments packaging"
    " typing_extensions"
).split()
SELDOM = ("pygments/lexers/", "pygments/styles/")  # hundreds of modules that nothing here loads


def wheel(folder: Path, release: str, changed: Mapping[str, str] | None = None) -> Path:
    """A wheel of this tree that calls itself `release`; `changed` holds other texts for some of its files."""
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                files[file.relative_to(ROOT).as_posix()] = file.read_bytes()
    root = files["inbetweenies/__init__.py"].decode()
    files["inbetweenies/__init__.py"] = re.sub(
        r'^__version__ = ".*"$', f'__version__ = "{release}"', root, flags=re.MULTILINE
    ).encode()
    for name, text in (changed or {}).items():
        files[name] = text.encode()
    ours = distribution("inbetweenies")
    metadata = re.sub(
        r"^Version: .*$", f"Version: {release}", str(ours.read_text("METADATA")), count=1, flags=re.MULTILINE
    )
    about = f"inbetweenies-{release}.dist-info"
    files[f"{about}/METADATA"] = metadata.encode()
    files[f"{about}/entry_points.txt"] = str(ours.read_text("entry_points.txt")).encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return _packed(folder / f"inbetweenies-{release}-py3-none-any.whl", files, about)


def needed_wheels(folder: Path) -> None:
    """Wheels of all that the client needs, from what is installed here."""
    for name in NEEDED:
        _repacked(folder, distribution(name))


def _repacked(folder: Path, held: Distribution) -> Path:
    about = next(file.parts[0] for file in held.files or () if file.name == "WHEEL")
    files = {
        file.as_posix(): Path(str(file.locate())).read_bytes()
        for file in held.files or ()
        if ".." not in file.parts and "__pycache__" not in file.parts and file.name not in ("RECORD", "INSTALLER")
    }
    [tag] = re.findall(r"^Tag: (.*)$", files[f"{about}/WHEEL"].decode(), re.MULTILINE)[:1]
    return _packed(folder / f"{about.removesuffix('.dist-info')}-{tag}.whl", files, about)


@cache
def _compiled(data: bytes, name: str) -> bytes:
    """A module as Python loads it without compiling: what is installed a hundred times is compiled once."""
    code = compile(data, name, "exec", dont_inherit=True)
    return MAGIC_NUMBER + b"\1\0\0\0" + bytes(8) + marshal.dumps(code)  # flags: by hash, and do not look (PEP 552)


def _packed(file: Path, files: dict[str, bytes], about: str) -> Path:
    for name in [name for name in files if name.endswith(".py") and not name.startswith(SELDOM)]:
        folder, _, module = name.rpartition("/")
        with suppress(SyntaxError):
            files[cache_from_source(f"{folder}/{module}" if folder else module)] = _compiled(files[name], name)
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
        packed.writestr(f"{about}/RECORD", "\n".join([*lines, f"{about}/RECORD,,"]) + "\n")
    return file


def libraries(folder: Path) -> Path:
    """A folder with pip and all that the client needs, to be shared by many environments through a ``.pth`` file."""
    folder.mkdir(parents=True)
    for name in ("pip", *NEEDED):
        held = distribution(name)
        for top in sorted({file.parts[0] for file in held.files or () if file.parts[0] not in ("..", "__pycache__")}):
            target = folder / top
            if not target.exists():
                target.symlink_to(Path(str(held.locate_file(top))).resolve())
    return folder


class Environment:
    """A virtual environment, and how programs are run in it."""

    def __init__(self, folder: Path, shared: Path | None = None) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.purelib = next((folder / "lib").glob("python*")) / "site-packages"
        if shared is not None:
            (self.purelib / "shared.pth").write_text(f"{shared}\n")
        self.python = folder / "bin" / "python"

    def run(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.python), *arguments],
            env=clean() | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def pip(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "pip", *arguments)

    def install(self, channel: Path, release: str) -> None:
        """As a person would, from a folder of wheels."""
        self.pip("install", "--no-index", "--find-links", str(channel), "--no-compile", f"inbetweenies=={release}")

    @property
    def release(self) -> str:
        """What is installed, by its metadata and by the code."""
        code = "import importlib.metadata as m, inbetweenies as i; print(m.version('inbetweenies'), i.__version__)"
        told, code_told = self.run("-I", "-c", code).stdout.split()
        assert told == code_told
        return told


def clean() -> dict[str, str]:
    """The environment of this process without what would tell Python or pip to look elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "BLOWING_OFF"))}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "UV_NO_CONFIG": "1"}
