"""Incidents: what was known when a rollout was taken back, put aside before anything is changed.

Read `Incidents.capture`: what the store and this process know is read first, for a bounded time, and written to files
while the rollback goes on. Whatever fails here is told, and never keeps a rollback from being done. No row of any graph
is read, and what looks like a secret is left out (`redact`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from .. import __version__, census, registry
from ..errors import StoreError
from ..model import Document, Reads, format_time
from ..rollout import canary, flags, states, triggers
from ..rollout.cases import Case, case_body
from ..store import Store
from ..stores.clock import wall_clock
from ..stores.keeper import run_now
from ..wire import load
from .redact import redacted, redacted_value, secrets_in

FORMAT: Final = 1
#: For so long a rollback waits for what is known to be read, in seconds; what is read later is told as such.
CAPTURE_S: Final = 0.3
#: For so long ends of logs are read, in seconds: of very many graphs, those that come first by name.
HEADS_S: Final = 0.2
#: For so long whoever is about to end waits for files to be written, in seconds.
WRITE_S: Final = 5.0
LINES_MAX: Final = 1_000  # of the log that a server keeps in memory: a quarter of an hour of trouble, half a megabyte
_LINE_CHARS_MAX: Final = 500
_FILE_BYTES_MAX: Final = 64 * 2**20
#: What is kept of the store, beside the ends of its logs; the first ones are what a rollback changes.
DOCUMENTS: Final = (
    states.DOCUMENT,
    triggers.DOCUMENT,
    canary.EVIDENCE,
    flags.DOCUMENT,
    registry.DOCUMENT,
    census.DOCUMENT,
    "verdicts",
)
_ABOUT: Final = "incident.json"
_SUMS: Final = "manifest.json"

logger = logging.getLogger(__name__)


def folder_of(db: Path) -> Path:
    """Where the incidents of a database are kept: beside it."""
    return db.with_name(f"{db.name}.incidents")


# --- the log ------------------------------------------------------------------------------------------------------


class RecentLog(logging.Handler):
    """Keeps the newest lines of the log in memory, without secrets."""

    def __init__(self, lines: int = LINES_MAX) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, with what was raised, but without where: a traceback may quote what it worked on."""
        try:
            raised = (
                "" if record.exc_info is None or record.exc_info[0] is None else f" ({record.exc_info[0].__name__})"
            )
            at = f"{format_time(int(record.created * 1_000_000))[:23]}Z"
            line = f"{at} {record.levelname} {record.name}: {' '.join(record.getMessage().split())}{raised}"
        except Exception:  # noqa: BLE001 - as every handler does: logging must not end what is logged
            self.handleError(record)
        else:
            self._lines.append(redacted(line)[:_LINE_CHARS_MAX])

    @property
    def lines(self) -> tuple[str, ...]:
        """What is kept, oldest first."""
        return tuple(self._lines)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what this package logs meanwhile. Where nobody has said where logs go, they still go to standard error,
        as if this were not here."""
        package = logging.getLogger(__package__.partition(".")[0])
        last = logging.lastResort if not package.hasHandlers() else None
        added = [handler for handler in (self, last) if handler is not None]
        for handler in added:
            package.addHandler(handler)
        try:
            yield
        finally:
            for handler in added:
                package.removeHandler(handler)


# --- capturing ----------------------------------------------------------------------------------------------------


class About(Struct, frozen=True, kw_only=True):
    """What an incident is: the head of its bundle.

    Attributes:
        format: of the bundle, so that a later release can tell.
        id: of the incident; the name of its folder.
        rollout: the id of the rollout that was taken back.
        at: when, ISO 8601 in UTC.
        actor, why: who took it back, and why.
        release: of this package, which wrote it.
        late: some of it was read when the rollback had begun already.
        lacking: what could not be read, and why.
    """

    format: int
    id: str
    rollout: str
    at: str
    actor: str
    why: str
    release: str
    late: bool = False
    lacking: dict[str, str] = {}


class Capture:
    """One incident that is being put aside.

    Attributes:
        id: of the incident.
        path: its folder, once it is whole.
        failed: why there is none, in words.
    """

    def __init__(self, id_: str, work: Callable[[Capture], None]) -> None:
        self.id = id_
        self.path: Path | None = None
        self.failed: str | None = None
        self.collected = threading.Event()
        self.going_on = threading.Event()
        self._work = work
        self._thread = threading.Thread(target=self._run, name="inbetweenies-incident", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work(self)
        except Exception as error:  # noqa: BLE001 - a full disk, or anything else: the rollback goes on
            self.failed = f"{type(error).__name__}: {error}"
            logger.warning("incident %s was not put aside: %s", self.id, redacted(self.failed))
        finally:
            self.collected.set()

    def wait(self, seconds: float = CAPTURE_S) -> bool:
        """Whether everything was read within so many seconds. From now on nothing counts as read before."""
        done = self.collected.wait(seconds)
        self.going_on.set()
        return done

    def finish(self, seconds: float = WRITE_S) -> Path | None:
        """The folder, if it is whole within so many seconds; else None, and `failed` may say why."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.failed = f"still being written after {seconds:g} s"
        return self.path


class Incidents:
    """Where one process puts incidents aside.

    Args:
        store: what is known of the rollouts, and where logs end.
        folder: where bundles go; made when the first one is.
        log: the newest lines of the log.
        secrets: text that is never to be written; without, what the environment names as such.
        clock: microseconds since 1970.
        monotonic: seconds that never run backwards.
        wait_s: for so long `capture` waits.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        log: RecentLog | None = None,
        secrets: Iterable[str] | None = None,
        clock: Callable[[], int] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
        wait_s: float = CAPTURE_S,
    ) -> None:
        self._store = store
        self._folder = folder
        self._log = log
        self._secrets = secrets_in(os.environ) if secrets is None else tuple(secrets)
        self._clock = clock
        self._monotonic = monotonic
        self._wait_s = wait_s
        self._begun: list[Capture] = []

    def capture(
        self,
        rollout: str,
        *,
        actor: str,
        why: str,
        metrics: Callable[[], str] | None = None,
        case: Case | None = None,
    ) -> Capture:
        """Put aside what is known, to be called before `rollout` is taken back. Returns once it is read, or after
        `wait_s` at the latest, and never raises for what went wrong; files are written after that, in a thread.

        Args:
            metrics: what this process measured, in the text format of Prometheus.
            case: the verdict by which it is taken back, if nobody asked for it.
        """
        at = self._clock()
        about = About(
            format=FORMAT,
            id=self._name(rollout, at),
            rollout=rollout,
            at=format_time(at),
            actor=self._redacted(actor),
            why=self._redacted(why),
            release=__version__,
        )

        def work(capture: Capture) -> None:
            files, lacking = self._collected(metrics)
            late = capture.going_on.is_set()
            capture.collected.set()
            # What a rollback cannot change is worked out while it goes on.
            self._keep(files, lacking, "versions.json", lambda: _json(versions()))
            if case is not None:
                self._keep(files, lacking, "case.json", lambda: self._case(case))
            told = msgspec.structs.replace(about, late=late, lacking=lacking)
            capture.path = _write(self._folder, about.id, {_ABOUT: _json(msgspec.to_builtins(told)), **files})

        found = Capture(about.id, work)
        self._begun = [one for one in self._begun if one.path is None and one.failed is None] + [found]
        found.wait(self._wait_s)
        return found

    def close(self) -> None:
        """Wait until what was begun is written, for `WRITE_S` at the latest."""
        for capture in self._begun:
            capture.finish()

    def _name(self, rollout: str, at: int) -> str:
        when = format_time(at).replace("-", "").replace(":", "")[:15]
        name = f"{when}.{at % 1_000_000:06}Z-{re.sub(r'[^A-Za-z0-9._-]', '-', rollout)}"
        taken = {one.id for one in self._begun}
        names = chain((name,), (f"{name}-{number}" for number in count(2)))
        return next(one for one in names if one not in taken and not (self._folder / one).exists())

    def _redacted(self, text: str) -> str:
        return redacted(text, self._secrets)

    # what is known

    def _collected(self, metrics: Callable[[], str] | None) -> tuple[dict[str, bytes], dict[str, str]]:
        """The files, and what could not be read. What a rollback changes comes first."""
        files: dict[str, bytes] = {}
        lacking: dict[str, str] = {}
        lines = () if self._log is None else self._log.lines
        for name in DOCUMENTS:
            self._keep(files, lacking, f"documents/{name}.json", partial(self._document, name))
        if metrics is not None:
            self._keep(files, lacking, "metrics.txt", lambda: self._redacted(metrics()).encode())
        self._keep(files, lacking, "heads.json", lambda: _json(self._heads(lacking)))
        if self._log is not None:
            told = (f"{self._redacted(line)}\n" for line in lines)
            self._keep(files, lacking, "log.txt", lambda: "".join(told).encode())
        return files, lacking

    def _keep(
        self, files: dict[str, bytes], lacking: dict[str, str], name: str, part: Callable[[], bytes | None]
    ) -> None:
        try:
            body = part()
        except Exception as error:  # noqa: BLE001 - the others are worth having
            lacking[name] = self._redacted(f"{type(error).__name__}: {error}")
        else:
            if body is not None:
                files[name] = body

    def _document(self, name: str) -> bytes | None:
        document = run_now(self._store.document(name))
        if not document.revision:
            return None
        says = redacted_value(msgspec.json.decode(document.body), self._secrets)
        return _json({"revision": document.revision, "says": says})

    def _case(self, case: Case) -> bytes:
        return _json(redacted_value(msgspec.json.decode(case_body(case)), self._secrets))

    def _heads(self, lacking: dict[str, str]) -> dict[str, Any]:
        """Where the log of each graph ends, and the digest of what is current there."""
        until = self._monotonic() + HEADS_S
        found: dict[str, Any] = {}
        names = run_now(self._store.graph_names())
        for name in names:
            if self._monotonic() > until:
                lacking["heads of more graphs"] = f"expected {len(names)}; got {len(found)} within {HEADS_S:g} s"
                break
            head = run_now(self._head(name))
            found[self._redacted(name)] = {
                "epoch": head.epoch,
                "seq": head.seq,
                "chain": head.chain.hex(),
                "stamp": format_time(head.stamp),
                "digest": head.digest_hex,
            }
        return found

    async def _head(self, graph: str) -> Any:
        async with self._store.transaction(graph, write=False) as tx:
            return (await tx.read(Reads())).head


def versions() -> dict[str, Any]:
    """What runs here."""
    return {
        "release": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "sqlite": sqlite3.sqlite_version,
        "msgspec": msgspec.__version__,
        "wire_versions": list(load()),
    }


def _json(value: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _write(folder: Path, id_: str, files: dict[str, bytes]) -> Path:
    """The bundle in files, whole or not at all. Raises `OSError`: it could not be."""
    begun, whole = folder / f".{id_}.partial", folder / id_
    try:
        begun.mkdir(mode=0o700, parents=True)
        for name, body in files.items():
            file = begun / name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(body)
        sums = {name: hashlib.sha256(body).hexdigest() for name, body in sorted(files.items())}
        (begun / _SUMS).write_bytes(_json({"format": FORMAT, "sha256": sums}))
        begun.rename(whole)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    return whole


# --- reading ------------------------------------------------------------------------------------------------------


class Incident(Struct, frozen=True, kw_only=True):
    """A bundle as it was read.

    Attributes:
        files: by name.
        damaged: what is missing, was changed or added since, by name.
    """

    path: Path
    about: About
    files: dict[str, bytes]
    damaged: tuple[str, ...]

    def document(self, name: str) -> Document:
        """What a document of the store said; one that was not written, if it did not say anything or could not be
        read."""
        body = self.files.get(f"documents/{name}.json")
        if body is None:
            return Document()
        kept = msgspec.json.decode(body, type=_Kept)
        return Document(revision=kept.revision, body=bytes(kept.says))


class _Kept(Struct):
    revision: int
    says: msgspec.Raw


class _Sums(Struct):
    format: int
    sha256: dict[str, str]


def listed(folder: Path) -> tuple[list[Incident], dict[str, str]]:
    """All incidents in a folder, oldest first, and those that cannot be read, with why."""
    found: list[Incident] = []
    unreadable: dict[str, str] = {}
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    for name in sorted(name for name in names if not name.startswith(".")):
        try:
            found.append(opened(folder, name))
        except StoreError as error:
            unreadable[name] = str(error)
    return found, unreadable


def opened(folder: Path, id_: str) -> Incident:
    """The incident with this id, held against its checksums.

    Raises:
        StoreError: there is none, or it cannot be read.
    """
    path = folder / id_
    if not id_ or Path(id_).name != id_ or id_.startswith(".") or not path.is_dir():
        raise StoreError(f"expected an incident in {folder}; got another name: see `inbetweenies incident list`")
    try:
        there = [file for file in sorted(path.rglob("*")) if file.is_file()]
        if sum(file.stat().st_size for file in there) > _FILE_BYTES_MAX:
            raise StoreError(f"expected at most {_FILE_BYTES_MAX:,} bytes in {path}; got more")
        files = {file.relative_to(path).as_posix(): file.read_bytes() for file in there}
        sums = msgspec.json.decode(files.pop(_SUMS, b""), type=_Sums)
        about = msgspec.json.decode(files.get(_ABOUT, b""), type=About)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"expected an incident in {path}; got something else: {error}") from error
    if max(sums.format, about.format) > FORMAT:
        raise StoreError(f"expected an incident of format {FORMAT} in {path}; got one of a newer release: use that one")
    found = {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}
    damaged = sorted(name for name in {*found, *sums.sha256} if found.get(name) != sums.sha256.get(name))
    return Incident(path=path, about=about, files=files, damaged=tuple(damaged))
