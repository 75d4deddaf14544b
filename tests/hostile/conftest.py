"""What the hostile tests start with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.support import Line, Site, attacked


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server for all tests of a module, with the bounds it has by default but for idle connections."""
    with attacked(tmp_path_factory.mktemp("site"), header_seconds=60, keep_alive_seconds=60) as started:
        yield started


@pytest.fixture(scope="module")
def line(site: Site) -> Iterator[Line]:
    """The attacker's connection, with a valid token."""
    with site.line() as made:
        yield made


@pytest.fixture(scope="module")
def honest(site: Site) -> Iterator[Line]:
    """The connection of a device of another graph, which must never notice anything."""
    with site.line(site.other) as made:
        yield made
