"""From one release to the next, and back. Read `Updater.update`: it is the straight line.

The store is copied and the copy compared. The new release is fetched into a folder of its own and must pass its
`selftest` there, on a copy of the store, before anything is touched. What is then replaced is kept aside first. What
counts afterwards is the release that is found there and what its own test says, never what a tool said on its way
out. Whatever goes wrong, the old release comes back from where it was kept.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from inbetweenies import __version__
from inbetweenies.errors import StoreError, clip

from ..migration import FORMAT, VersionMigration, backup, copied
from ..store import LocalStore
from .aside import SCRIPT, keep, put_back
from .channel import Channel, Offer, UpdateFailed, run
from .detect import purelib
from .layout import NAME, Layout
from .selftest import ONLINE, STEPS
from .state import Kept, Receipt, StateFile, updating

logger = logging.getLogger(__name__)

SELFTEST_S: Final = 120.0  # a full pull of a large home on a slow line; a release that hangs has failed
PACKAGES: Final = ("inbetweenies", "blowing_off")
RECORDS: Final = ("pipx_metadata.json", "uv-receipt.toml", "pyvenv.cfg")  # a tool's account of what it installed
#: Errors of a self-test that say something about the network or the server rather than about the release.
_AWAY: Final = frozenset({"Unreachable"})


class Server(Struct, frozen=True, kw_only=True):
    """The server that a release must be able to sync with."""

    url: str
    token: str | None = None
    insecure: bool = False


class Site(Struct, frozen=True, kw_only=True):
    """The environment that is changed."""

    prefix: Path
    purelib: Path
    python: str


def here() -> Site:
    """The environment that this very program runs in."""
    return Site(prefix=Path(sys.prefix), purelib=purelib(), python=sys.executable)


class Done(Struct, frozen=True, kw_only=True):
    """What an update did: from which release to which, where the copy of the store is, what waits, and remarks."""

    before: str
    after: str
    backup: Path
    pending: int
    notes: tuple[str, ...] = ()


class _Result(Struct, frozen=True, kw_only=True):
    """What a self-test said, if it said anything."""

    passed: frozenset[str] = frozenset()
    failed: str = ""
    code: str = ""
    why: str = ""

    @property
    def fault(self) -> tuple[str, str]:
        return (self.failed, self.code)


class Updater:
    """Changes the installation that uses `store`.

    Args:
        state: what is remembered beside the store.
        layout: how this program was installed.
        channel: where the release comes from.
        server: what to test against; without one only the store is tested.
        site: the environment, by default this one.
        running: the release that runs now.
    """

    def __init__(
        self,
        store: LocalStore,
        state: StateFile,
        layout: Layout,
        channel: Channel | None,
        *,
        server: Server | None = None,
        site: Site | None = None,
        running: str = __version__,
    ) -> None:
        self.store = store
        self.state = state
        self.layout = layout
        self.channel = channel
        self.server = server
        self.site = site or here()
        self.running = running
        self.home = Path(f"{store.path}.update")

    # --- forward --------------------------------------------------------------------------------------------------

    def update(self, offer: Offer, *, asked: bool) -> Done:
        """Move to the release of `offer`. `asked` says that a person wants this one.

        Raises:
            UpdateFailed: it was not done, or undone; what was there before is there. The message says all.
            SyncRunning, UpdateRunning: another process is at it.
        """
        channel, release = self._may(offer)
        with updating(self.site.prefix), self.store.syncing():
            self._recover()
            if not asked:
                self.state.change(lambda kept: replace(kept, memory=kept.memory.began(release)))
            saved = backup(self.store.path)
            pending = self.store.counts().pending
            notes: list[str] = []
            with self._blaming(release, pending, saved), self._work() as work:
                staged = work / "site"
                channel.fetch(offer, staged)
                server = self._tried_aside(work, staged, release, notes, asked=asked)
                receipt = self._keep(offer)
                self.state.change(lambda kept: replace(kept, touching=receipt))
                try:
                    channel.install(offer)
                    self._verify(release, staged)
                    self._test(work, release, server)
                except BaseException:
                    self._undo(receipt)
                    raise
            self.state.change(
                lambda kept: replace(kept, receipt=receipt, touching=None, memory=kept.memory.succeeded(release))
            )
            self._forget_others(receipt)
            return Done(before=self.running, after=release, backup=saved, pending=pending, notes=tuple(notes))

    def _may(self, offer: Offer) -> tuple[Channel, str]:
        if not self.layout.automatic or self.channel is None:
            raise UpdateFailed(
                "not_ours",
                f"expected an installation that this program may change itself; it was installed {self.layout.what}, "
                f"and {self.layout.why_not or 'its tool is not found'}. To update it: {self.layout.how}",
            )
        if self.store.path == ":memory:":
            raise UpdateFailed("no_file", "expected a store in a file; got one in memory, which an update would lose")
        return self.channel, offer.release

    @contextmanager
    def _work(self) -> Iterator[Path]:
        self.home.mkdir(mode=0o700, exist_ok=True)
        with TemporaryDirectory(prefix="try-", dir=self.home, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    @contextmanager
    def _blaming(self, release: str, pending: int, saved: Path) -> Iterator[None]:
        """Remember whose fault it was, and say all of it in one paragraph."""
        try:
            yield
        except (UpdateFailed, StoreError, OSError) as error:
            why = clip(str(error))
            blamed = isinstance(error, UpdateFailed) and error.blamed
            if blamed:
                self.state.change(lambda kept: replace(kept, memory=kept.memory.failed(release, why)))
            waits = f"{pending} change{'' if pending == 1 else 's'} still wait{'s' if pending == 1 else ''} to be sent"
            again = (
                " It is not tried again by itself, and nothing else is until somebody runs `blowing-off update`."
                if blamed
                else " Try again later with `blowing-off update`."
            )
            raise UpdateFailed(
                str(getattr(error, "code", "system")),
                f"Release {release} is not used here: {str(error).rstrip('.')}. "
                f"Release {self.running} is in place and was not downloaded again. "
                f"Nothing was lost: {waits}, and a copy of the store is at {saved}.{again}",
                blamed=blamed,
            ) from error

    def _tried_aside(self, work: Path, staged: Path, release: str, notes: list[str], *, asked: bool) -> Server | None:
        """The new release passes its test where it is staged. What server it can be tested with later."""
        result = self._ask(work, release, self.server, staged)
        missing = _missing(result, self.server)
        if not missing:
            return self.server
        if self.server is not None and set(missing) <= set(ONLINE) - set(STEPS):
            # The same test with the release that runs now: what fails there too is not the new one's fault.
            usual = self._ask(work, self.running, self.server, None)
            if _missing(usual, self.server) == missing and usual.fault == result.fault:
                if asked and result.failed in _AWAY:
                    notes.append("the server could not be reached, so whether the new release syncs was not tried")
                    return None
                raise UpdateFailed("server", f"with this server neither it nor {self.running} can sync: {result.why}")
        raise UpdateFailed("selftest", _failing(missing, result), blamed=True)

    def _test(self, work: Path, release: str, server: Server | None) -> None:
        """The new release passes its test where it is installed."""
        result = self._ask(work, release, server, None)
        if missing := _missing(result, server):
            raise UpdateFailed("selftest", _failing(missing, result), blamed=result.failed not in _AWAY)

    def _ask(self, work: Path, release: str, server: Server | None, staged: Path | None) -> _Result:
        """Run the self-test of a release, on a fresh copy of the store."""
        path = {} if staged is None else {"PYTHONPATH": str(staged)}
        options = {"PYTHONSAFEPATH": "1", **path}
        started = run([self.site.python, "-m", "blowing_off.cli", "--version"], SELFTEST_S, **options)
        if started.stdout.split() != ["blowing-off", release]:
            return _Result(why=_last_words(started))
        folder = work / f"copy-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        copy, word = copied(self.store.path, folder / "home.db"), secrets.token_hex(16)
        command = [self.site.python, "-m", "blowing_off.updates.selftest", str(copy), word]
        if server is not None:
            command += ["--url", server.url, *(["--insecure"] if server.insecure else [])]
            if server.token is not None:
                secret = folder / "token"
                secret.touch(mode=0o600)
                secret.write_text(server.token)
                command += ["--token-file", str(secret)]
        done = run(command, SELFTEST_S, **options)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            told = json.loads(done.stdout.strip().splitlines()[-1])
            if (told["word"], told["release"]) != (word, release):
                return _Result(why="it answered something else than it was asked")
            words = {name: clip(str(told.get(name, ""))) for name in ("failed", "code", "why")}
            return _Result(passed=frozenset(map(str, told["passed"])), **words)
        except (ValueError, LookupError, TypeError):
            return _Result(why=_last_words(done))

    # --- what is installed ----------------------------------------------------------------------------------------

    def found(self) -> str | None:
        """The release that a new process would run: by its metadata and by its code, or None if they differ."""
        code = "import importlib.metadata as m, inbetweenies as i; print(m.version('inbetweenies'), i.__version__)"
        done = run([self.site.python, "-I", "-c", code], SELFTEST_S)
        words = done.stdout.split()
        return words[0] if done.returncode == 0 and len(words) == 2 and words[0] == words[1] else None

    def _verify(self, release: str, staged: Path | None) -> None:
        """`release` is what is installed now, to the letter where it was `staged`."""
        found = self.found()
        if found != release:
            got = "what cannot be told" if found is None else found
            raise UpdateFailed("not_installed", f"the tool ended well, but what is installed then is {got}")
        if staged is None:
            return
        for package in PACKAGES:
            for file in (staged / package).rglob("*.py"):
                installed = self.site.purelib / file.relative_to(staged)
                if not installed.is_file() or installed.read_bytes() != file.read_bytes():
                    raise UpdateFailed("not_installed", "what was installed is not what was tested", blamed=True)

    def _keep(self, offer: Offer) -> Receipt:
        """The files that are about to be replaced, kept aside."""
        folder = self.home / f"{self.running}-{secrets.token_hex(4)}"
        names = None if self.layout.kind in ("pipx", "uv_tool") else [part.name for part in offer.parts]
        extra = [self.site.prefix / name for name in RECORDS]
        kept = keep(self.site.prefix, self.site.purelib, names, folder, extra=extra)
        found = self.found() if NAME in kept else None
        if found != self.running:
            got = "other ones" if found is None else f"those of {found}"
            raise UpdateFailed("not_kept", f"expected the files of {self.running} to keep aside; got {got}")
        return Receipt(
            before=self.running,
            after=offer.release,
            format=FORMAT,
            folder=str(folder),
            prefix=str(self.site.prefix),
        )

    def _undo(self, receipt: Receipt) -> None:
        put_back(Path(receipt.folder))
        found = self.found()
        if found != receipt.before:  # should this ever be seen, a person needs the plainest way back there is
            logger.error("expected %s to be back; found %s", receipt.before, found)
            raise UpdateFailed(
                "not_undone",
                f"release {receipt.before} could not be put back; `{self.site.python} "
                f"{Path(receipt.folder) / SCRIPT}` tries it again",
                blamed=True,
            )
        self.state.change(lambda kept: replace(kept, touching=None))

    def recover(self) -> None:
        """Undo an update that was cut off, as by a power cut, while it changed the environment.

        Raises:
            UpdateFailed: it was undone, and this process is of the release that is gone: start again.
            UpdateRunning: it was not cut off, it goes on.
        """
        if self.state.read().touching is not None:
            with updating(self.site.prefix):
                self._recover()

    def _recover(self) -> None:
        receipt = self.state.read().touching
        if receipt is None or receipt.prefix != str(self.site.prefix):
            return
        self._undo(receipt)
        if receipt.before != self.running:
            raise UpdateFailed(
                "interrupted",
                f"an update to {receipt.after} had been cut off; release {receipt.before} is back. Run this again",
            )

    def _forget_others(self, receipt: Receipt | None) -> None:
        """Of what was kept aside only the last stays."""
        for folder in self.home.iterdir():
            if folder.is_dir() and (receipt is None or folder != Path(receipt.folder)):
                shutil.rmtree(folder, ignore_errors=True)

    # --- back -----------------------------------------------------------------------------------------------------

    def roll_back(self) -> Done:
        """Go back to the release before the last update, and take the store's format back with it.

        Raises:
            UpdateFailed: there is nothing to go back to, or it did not work; then this release is in place.
        """
        receipt = self._way_back()
        with updating(self.site.prefix), self.store.syncing():
            self._recover()
            saved = backup(self.store.path)
            pending = self.store.counts().pending
            with self._blaming(receipt.before, pending, saved), self._work() as work:
                here = replace(
                    receipt,
                    before=self.running,
                    after=receipt.before,
                    format=FORMAT,
                    folder=str(self.home / f"{self.running}-{secrets.token_hex(4)}"),
                )
                names = json.loads((Path(receipt.folder) / "manifest.json").read_text())["replaced"]
                extra = [self.site.prefix / name for name in RECORDS]
                keep(self.site.prefix, self.site.purelib, names, Path(here.folder), extra=extra)
                self.state.change(lambda kept: replace(kept, touching=here))
                try:
                    VersionMigration(self.store.path).rollback(to=receipt.format)
                    put_back(Path(receipt.folder))
                    self._verify(receipt.before, None)
                    self._test(work, receipt.before, None)
                except BaseException:
                    self._undo(here)
                    VersionMigration(self.store.path).migrate_if_needed()
                    raise
            self.state.change(lambda kept: _went_back(kept, receipt))
            self._forget_others(None)
            return Done(before=receipt.after, after=receipt.before, backup=saved, pending=pending)

    def _way_back(self) -> Receipt:
        receipt = self.state.read().receipt
        if receipt is None or not Path(receipt.folder).is_dir():
            raise UpdateFailed("nothing_kept", "expected an update that was made here; there is none to go back from")
        if receipt.after != self.running or receipt.prefix != str(self.site.prefix):
            raise UpdateFailed(
                "nothing_kept",
                f"expected to go back from release {receipt.after}; this is {self.running}, installed since or "
                "elsewhere. Install the release that you want by hand",
            )
        return receipt


def _went_back(kept: Kept, receipt: Receipt) -> Kept:
    memory = kept.memory.failed(receipt.after, "somebody went back from it")
    return replace(kept, receipt=None, touching=None, memory=memory)


def _last_words(done: CompletedProcess[str]) -> str:
    """What a process said last, or how it ended."""
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return clip(said[-1]) if said else f"it ended with {done.returncode}"


def _missing(result: _Result, server: Server | None) -> list[str]:
    """The steps of a self-test that did not pass."""
    wanted = STEPS if server is None else ONLINE
    return [step for step in wanted if step not in result.passed]


def _failing(missing: list[str], result: _Result) -> str:
    """What failed, for people."""
    what = {
        "open": "it does not start, or cannot open a copy of the store",
        "digest": "it reads something else from a copy of the store than was written",
        "handshake": "it does not understand the server",
        "pull": "it cannot sync",
    }[missing[0]]
    return f"{what} ({result.why or result.failed})"


def describe(done: Done) -> str:
    """An update in one paragraph."""
    waits = "nothing waits" if not done.pending else f"{done.pending} of your changes wait to be sent"
    notes = "".join(f" Note: {note}." for note in done.notes)
    return f"Release {done.after} has replaced {done.before}; {waits}. A copy of the store is at {done.backup}.{notes}"
