"""Several processes that write to one database and one journal: whatever one of them meets, what any of them has
acknowledged comes back."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inbetweenies.errors import StoreError
from inbetweenies.model import Reads, Span
from inbetweenies.stores.journal import Commit, Discard, Journal, Opening
from inbetweenies.stores.sqlite import SqliteStore
from inbetweenies.testing.store_tests import commit, entity, read, run

ALL = Span(after=0, upto=2**53 - 1)


class Interrupted(Journal):
    """A journal before which something else happens when it is written to next, or whose disk fails it then."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, segment_bytes=3_000, sync=self._durable)
        self.first: Callable[[], None] | None = None
        self.failing = False

    def append(self, records: Sequence[Commit | Discard], *, opening: Callable[[], Opening], durable: bool) -> None:
        first, self.first = self.first, None
        if first is not None:
            first()
        super().append(records, opening=opening, durable=durable)

    def _durable(self, descriptor: int) -> None:
        if self.failing:
            self.failing = False
            raise OSError(5, "input/output error")


class Processes:
    """Two of them, each with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "home.db"
        self.backups: list[Path] = []
        self.acked: set[str] = set()
        self.count = 0
        self.stores: list[SqliteStore | None] = [None, None]
        self.journals: list[Interrupted | None] = [None, None]

    def store(self, who: int) -> tuple[SqliteStore, Interrupted]:
        store, journal = self.stores[who], self.journals[who]
        if store is None or journal is None:
            journal = self.journals[who] = Interrupted(Path(f"{self.path}.journal"))
            store = self.stores[who] = SqliteStore(self.path, journal=journal)
        return store, journal

    def write(self, who: int) -> None:
        store, _ = self.store(who)
        self.count += 1
        name = f"e{self.count}"
        try:
            run(commit(store, "g", entity(name, note=name)))
        except StoreError:
            return
        self.acked.add(name)

    def overtake(self, who: int) -> None:
        """One commits, and before it has noted that there is a backup, and the other one commits and notes it."""

        def first() -> None:
            self.backup(0)
            self.write(1 - who)

        self.store(1 - who)
        self.store(who)[1].first = first
        self.write(who)

    def fail(self, who: int) -> None:
        self.store(who)[1].failing = True
        self.write(who)

    def die(self, who: int) -> None:
        store, self.stores[who] = self.stores[who], None
        if store is not None:
            run(store.close())

    def backup(self, _: int) -> None:
        self.store(0)
        self.backups.append(self.path.with_name(f"backup{len(self.backups)}"))
        with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(self.backups[-1])) as target:
            source.backup(target)

    def set_back(self, which: int) -> None:
        for who in (0, 1):
            self.die(who)
        for end in ("", "-wal", "-shm"):
            Path(f"{self.path}{end}").unlink(missing_ok=True)
        if self.backups:
            shutil.copy(self.backups[-1 - which % len(self.backups)], self.path)
        store, _ = self.store(0)
        held = {row.id for row in run(read(store, "g", Reads(span=ALL))).span}
        assert self.acked <= held, f"lost: {self.acked - held}"


happened = st.tuples(
    st.sampled_from(["write"] * 5 + ["fail"] * 4 + ["backup"] * 3 + ["overtake", "die", "set_back"]),
    st.sampled_from([0, 1]),
)


@given(st.lists(happened, min_size=6, max_size=25))
def test_what_any_process_acknowledged_comes_back(story: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(Path(folder))
        try:
            for what, who in [*story, ("set_back", 0)]:
                getattr(processes, what)(who)
        finally:
            for who in (0, 1):
                processes.die(who)
