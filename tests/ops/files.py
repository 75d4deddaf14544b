"""The files of a database, as a process leaves them that dies."""

from __future__ import annotations

from pathlib import Path

from inbetweenies.testing.store_tests import commit, entity, run
from tests.stores.test_journal import Site


def alone(folder: Path) -> dict[str, bytes]:
    """The files of a database and all beside it but its journal and ends."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def left_behind(site: Site, *ids: str) -> None:
    """Let a process die that has committed these, so that they are in its write-ahead log only."""
    store = site.open(journal=False, heads=False)
    run(commit(store, "g", *(entity(id_, "v1") for id_ in ids)))
    files = alone(site.path.parent)
    site.close()
    for name, data in files.items():
        (site.path.parent / name).write_bytes(data)
