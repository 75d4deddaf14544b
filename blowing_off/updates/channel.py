"""Where releases come from: what the channel delivers now, and how a release is fetched to be tried.

The channel is asked through the tool that installed this program, in a process of its own with a deadline, and what
that tool prints is looked at by programs only: its words name releases that nobody was promised.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from inbetweenies.errors import InbetweeniesError, LocalProtocolError, clip

from .decide import Availability, Wanted
from .layout import NAME, Layout

logger = logging.getLogger(__name__)

PLACE_VARIABLE: Final = "BLOWING_OFF_INDEX"
ASK_S: Final = 30.0  # for what the channel has; a slow index answers within seconds
FETCH_S: Final = 600.0  # for the files of a release
SUMS: Final = "SHA256SUMS"  # in a folder of wheels: as `sha256sum` writes it


class UpdateFailed(InbetweeniesError):
    """An update could not be made. What was there before is there, and runs.

    Attributes:
        code: a word for programs.
        blamed: the release is at fault, and is not tried again by itself.
    """

    def __init__(self, code: str, message: str, *, blamed: bool = False) -> None:
        self.code = code
        self.blamed = blamed
        super().__init__(message)


class Part(Struct, frozen=True, kw_only=True):
    """One distribution that an update would bring, with the hash that it must have where the tool tells one."""

    name: str
    release: str
    sha256: str | None = None


class Offer(Struct, frozen=True, kw_only=True):
    """A release that the channel delivers now, and all that would come with it."""

    release: str
    parts: tuple[Part, ...]


class Channel(Protocol):
    """What an update needs of a channel. A fake is this with a list inside."""

    def find(self, wanted: Wanted | str) -> Offer | Availability:
        """The newest release that fits, or why there is none. A text names the one release that is meant."""

    def fetch(self, offer: Offer, folder: Path) -> None:
        """Put the files of `offer` into `folder`, as they would be installed, without touching anything else.

        Raises:
            UpdateFailed: they could not be had, or are not what they should be.
        """

    def install(self, offer: Offer) -> None:
        """Make `offer` what is installed. The old release may be gone before the new one is whole.

        Raises:
            UpdateFailed: the tool says that it did not work. What it says may be wrong in either direction.
        """


# --- places -------------------------------------------------------------------------------------------------------


class Place(Struct, frozen=True, kw_only=True):
    """An index's address or a folder of wheels; neither means what the tool itself is set up for."""

    index: str | None = None
    folder: Path | None = None

    @property
    def options(self) -> list[str]:
        """As pip and uv take it."""
        if self.folder is not None:
            return ["--no-index", "--find-links", str(self.folder)]
        return [] if self.index is None else ["--index-url", self.index]

    @property
    def words(self) -> str:
        """For people. An address can hold a password, so only its host is told."""
        if self.folder is not None:
            return f"the folder {self.folder}"
        return "the package index" if self.index is None else f"the package index at {urlsplit(self.index).hostname}"


def place_of(text: str | None) -> Place:
    """The place that a person named: an address with ``http://`` or ``https://``, else a folder.

    Raises:
        LocalProtocolError: it is neither.
    """
    if not text:
        return Place()
    url = urlsplit(text)
    if url.scheme in ("http", "https"):
        return Place(index=text)
    folder = Path(unquote(url.path) if url.scheme == "file" else text).absolute()
    if not folder.is_dir():
        raise LocalProtocolError(
            f"expected the address of a package index or a folder of wheels; got {clip(str(folder))}, which is neither"
        )
    return Place(folder=folder)


# --- tools --------------------------------------------------------------------------------------------------------


def channel_for(layout: Layout, place: Place, python: str = sys.executable) -> Channel | None:
    """The channel that this program was installed from; None where no tool that we know can tell."""
    pip = Pip(place, python)
    uv = shutil.which("uv")
    if layout.kind in ("pip", "pip_file") or (layout.kind == "unknown" and pip.works()):
        return pip
    if layout.kind == "pipx" and (pipx := shutil.which("pipx")) is not None:
        fetching = pip if pip.works() else None if uv is None else Uv(place, uv, python)
        arguments = [f"--pip-args={' '.join(map(_quoted, place.options))}"] if place.options else []
        return None if fetching is None else Delegated(fetching, [pipx, "upgrade", NAME, *arguments], "pipx")
    if uv is not None and layout.kind == "uv_tool":
        return Delegated(Uv(place, uv, python), [uv, "tool", "upgrade", NAME, *place.options], "uv")
    if uv is not None and layout.kind == "uv_pip":
        return Uv(place, uv, python)
    return None


def _quoted(text: str) -> str:
    return f"'{text}'" if any(letter.isspace() for letter in text) else text


class Pip:
    """pip, of the environment that is to be updated."""

    def __init__(self, place: Place, python: str) -> None:
        self.place = place
        self.command = [python, "-m", "pip"]
        self._works: bool | None = None

    def works(self) -> bool:
        """Whether there is a pip at all."""
        if self._works is None:
            self._works = run([*self.command, "--version"], ASK_S).returncode == 0
        return self._works

    def find(self, wanted: Wanted | str) -> Offer | Availability:
        """See `Channel.find`."""
        options = ["install", "--dry-run", "--quiet", "--retries", "1", "--report", "-", *_BINARY, *self.place.options]
        done = run([*self.command, *options, _requirement(wanted)], ASK_S)
        if done.returncode != 0:
            return _nothing(done, self.place)
        try:
            listed = json.loads(done.stdout)["install"]
            parts = tuple(
                Part(
                    name=one["metadata"]["name"],
                    release=one["metadata"]["version"],
                    sha256=one["download_info"]["archive_info"]["hashes"]["sha256"],
                )
                for one in listed
            )
            files = {Path(urlsplit(one["download_info"]["url"]).path).name for one in listed}
        except (ValueError, KeyError, TypeError) as error:
            logger.info("pip's report cannot be read: %s", type(error).__name__)
            return Availability(release=None, reason="what pip reports could not be read", failed=True)
        sums = sums_of(self.place)
        if sums is not None:
            known = {sums[unquote(file)] for file in files if unquote(file) in sums}
            if any(part.sha256 not in known for part in parts):
                return _WRONG_HASH
        return _offer(parts, wanted)

    def fetch(self, offer: Offer, folder: Path) -> None:
        """See `Channel.fetch`."""
        self._do("fetch", offer, "--target", str(folder), "--no-compile")

    def install(self, offer: Offer) -> None:
        """See `Channel.install`."""
        self._do("install", offer, "--upgrade")

    def _do(self, what: str, offer: Offer, *options: str) -> None:
        """Install exactly these files and nothing else."""
        lines = [f"{part.name}=={part.release} --hash=sha256:{part.sha256}" for part in offer.parts]
        with TemporaryDirectory(prefix="blowing-off-") as folder:
            pins = Path(folder) / "pins.txt"
            pins.write_text("\n".join(lines) + "\n")
            only = ["--no-deps", "--require-hashes", *_BINARY, *self.place.options, "-r", str(pins)]
            _checked(run([*self.command, "install", *options, *only], FETCH_S), what, "pip")


class Uv:
    """uv, for environments without pip. It cannot be asked for hashes, so those of a folder are compared by us."""

    def __init__(self, place: Place, uv: str, python: str) -> None:
        self.place = place
        self.command = [uv, "pip", "install", "--python", python, *_BINARY, *place.options]

    def find(self, wanted: Wanted | str) -> Offer | Availability:
        """See `Channel.find`."""
        done = run([*self.command, "--dry-run", _requirement(wanted)], ASK_S)
        if done.returncode != 0:
            return _nothing(done, self.place)
        found = re.findall(r"^ \+ ([A-Za-z0-9._-]+)==(\S+)", done.stdout + done.stderr, re.MULTILINE)
        parts = tuple(Part(name=name, release=release) for name, release in found)
        if not _sums_agree(self.place, parts):
            return _WRONG_HASH
        return _offer(parts, wanted)

    def fetch(self, offer: Offer, folder: Path) -> None:
        """See `Channel.fetch`."""
        pins = [f"{part.name}=={part.release}" for part in offer.parts]
        _checked(run([*self.command, "--no-deps", "--target", str(folder), *pins], FETCH_S), "fetch", "uv")

    def install(self, offer: Offer) -> None:
        """Not by us: an environment of uv's own belongs to whoever uses uv."""
        raise UpdateFailed("not_ours", f"expected an installation that this program may change; got {offer.release}")


class Delegated:
    """A tool that keeps account of what it installed: it makes the update itself, another one says what there is."""

    def __init__(self, fetching: Channel, command: Sequence[str], name: str) -> None:
        self._fetching = fetching
        self._command = command
        self._name = name

    def find(self, wanted: Wanted | str) -> Offer | Availability:
        """See `Channel.find`."""
        return self._fetching.find(wanted)

    def fetch(self, offer: Offer, folder: Path) -> None:
        """See `Channel.fetch`."""
        self._fetching.fetch(offer, folder)

    def install(self, offer: Offer) -> None:
        """See `Channel.install`. These tools go to the newest there is; whether that was `offer` is checked after."""
        _checked(run(self._command, FETCH_S), "install", self._name)


# --- what tools say -----------------------------------------------------------------------------------------------

_BINARY: Final = ("--only-binary", ":all:")  # what is built here runs code before it was looked at
_WRONG_HASH: Final = Availability(
    release=None, reason="a file there does not have the hash that it should have", failed=True
)


def run(command: Sequence[str], seconds: float, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a tool that asks nobody anything. One that hangs is ended, and has failed."""
    quiet = {"PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "NO_COLOR": "1", "UV_NO_PROGRESS": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - no shell; what comes from outside are release numbers that were parsed
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
            env={**os.environ, **quiet, **variables},
        )
    except subprocess.TimeoutExpired:
        done = subprocess.CompletedProcess(command, 124, "", f"no end within {seconds:g} s")
    except OSError as error:
        done = subprocess.CompletedProcess(command, 127, "", str(error.strerror))
    if done.returncode != 0:
        logger.info("%s ended with %d: %s", Path(command[0]).name, done.returncode, done.stderr.strip()[-2000:])
    return done


def _requirement(wanted: Wanted | str) -> str:
    return f"{NAME}=={wanted}" if isinstance(wanted, str) else NAME + wanted.requirement


def _nothing(done: subprocess.CompletedProcess[str], place: Place) -> Availability:
    """Why a tool found nothing, in words of ours: its own name what it did not find."""
    said = done.stderr.lower()
    if "do not match the hashes" in said or "hash mismatch" in said:
        return _WRONG_HASH
    if done.returncode == 124:
        return Availability(release=None, reason=f"{place.words} did not answer in time", failed=True)
    if any(words in said for words in ("connection", "timed out", "network", "error sending request", "dns")):
        return Availability(release=None, reason=f"{place.words} could not be reached", failed=True)
    return Availability(release=None, reason=f"{place.words} has none that fits")


def _offer(parts: tuple[Part, ...], wanted: Wanted | str) -> Offer | Availability:
    ours = [part.release for part in parts if part.name.lower().replace("_", "-") == NAME]
    if len(ours) != 1 or (isinstance(wanted, Wanted) and not wanted.fits(ours[0])):
        return Availability(release=None, reason="what it delivers is not what was asked for")
    return Offer(release=ours[0], parts=parts)


def _checked(done: subprocess.CompletedProcess[Any], what: str, tool: str) -> None:
    if done.returncode == 0:
        return
    if "do not match the hashes" in done.stderr.lower():
        raise UpdateFailed("wrong_hash", f"expected {tool} to {what} the release; {_WRONG_HASH.reason}")
    last = next(reversed(done.stderr.strip().splitlines()), f"it ended with {done.returncode}")
    raise UpdateFailed(f"{what}_failed", f"expected {tool} to {what} the release; it says: {clip(last)}")


# --- hashes of a folder -------------------------------------------------------------------------------------------


def sums_of(place: Place) -> dict[str, str] | None:
    """File names and their SHA-256, if the folder lists them: then a file that is not listed is not taken."""
    if place.folder is None or not (place.folder / SUMS).is_file():
        return None
    lines = (place.folder / SUMS).read_text(errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line.strip()) for line in lines]
    return {match[2]: match[1] for match in found if match is not None}


def _sums_agree(place: Place, parts: Sequence[Part]) -> bool:
    sums = sums_of(place)
    if sums is None or place.folder is None:
        return True
    for part in parts:
        start = f"{part.name.lower().replace('-', '_')}-{part.release}-"
        files = [file for file in place.folder.glob("*.whl") if file.name.lower().startswith(start)]
        for file in files:
            if sums.get(file.name) != hashlib.sha256(file.read_bytes()).hexdigest():
                return False
        if not files:
            return False
    return True
