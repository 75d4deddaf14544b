"""What can be seen, from inside, of how this program was installed: the evidence that `layout` judges."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from contextlib import suppress
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from .layout import NAME, Evidence

CONTAINER_VARIABLE: Final = "BLOWING_OFF_CONTAINER"  # "kept": this container stays, as one for development does
LOCK_FILES: Final = ("uv.lock", "poetry.lock", "pdm.lock", "Pipfile.lock", "pylock.toml")
LOCK_BYTES_MAX: Final = 16 * 2**20
_RECORD_BYTES_MAX: Final = 64 * 2**10


def look(root: Path = Path("/")) -> Evidence:
    """The evidence about the Python that runs this. `root` is where the system's own marks are looked for."""
    prefix = Path(sys.prefix)
    held: Distribution | None = None
    with suppress(PackageNotFoundError):
        held = distribution(NAME)
    virtual = sys.prefix != sys.base_prefix
    return Evidence(
        installer=(_record(held, "INSTALLER") or "").strip(),
        direct_url=_direct_url(held),
        virtual=virtual,
        pipx=(prefix / "pipx_metadata.json").is_file(),
        uv_tool=(prefix / "uv-receipt.toml").is_file(),
        conda=(prefix / "conda-meta").is_dir(),
        externally_managed=_externally_managed(),
        container=_in_container(root),
        bundled=_bundled(),
        lock_file=_lock_file(prefix) if virtual else "",
        writable=os.access(purelib(), os.W_OK),
        has_pip=find_spec("pip") is not None,
    )


def purelib() -> Path:
    """Where packages are installed."""
    return Path(sysconfig.get_path("purelib"))


def _record(held: Distribution | None, name: str) -> str | None:
    """The text of a record; empty if it is there and cannot be read."""
    try:
        text = None if held is None else held.read_text(name)
    except (OSError, UnicodeDecodeError):
        return ""
    return "" if text is not None and len(text) > _RECORD_BYTES_MAX else text


def _direct_url(held: Distribution | None) -> dict[str, Any] | None:
    text = _record(held, "direct_url.json")
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    # A record that cannot be read still says that it did not come from an index.
    return found if isinstance(found, dict) and found else {"url": ""}


def _externally_managed() -> bool:
    # PEP 668: beside the standard library of the installation itself.
    return (Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix})) / "EXTERNALLY-MANAGED").is_file()


def _in_container(root: Path) -> bool:
    if os.environ.get(CONTAINER_VARIABLE, "").strip().lower() == "kept":
        return False
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return True
    with suppress(OSError, UnicodeDecodeError):
        words = (root / "proc/1/cgroup").read_text()[:_RECORD_BYTES_MAX]
        return any(word in words for word in ("docker", "kubepods", "containerd", "libpod", "/lxc/"))
    return False


def _bundled() -> bool:
    if getattr(sys, "frozen", False):
        return True
    main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    # Of a zip file with code in it, the main file is "in" the archive, which is a file and no folder.
    return any(part.is_file() for part in [*Path(main).parents, *Path(__file__).parents])


def _lock_file(prefix: Path) -> str:
    """The lock file beside the environment that says something about this program."""
    for name in LOCK_FILES:
        file = prefix.parent / name
        with suppress(OSError):
            if file.is_file() and file.stat().st_size <= LOCK_BYTES_MAX and NAME.encode() in file.read_bytes():
                return name
    return ""
