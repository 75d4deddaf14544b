"""What the hostile tests start with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.support import Line, Site, attacked


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with the bounds it has by default. One for all tests of a module, as an attacker would meet it."""
    with attacked(tmp_path_factory.mktemp("site")) as started:
        yield started


@pytest.fixture(scope="module")
def line(site: Site) -> Iterator[Line]:
    """The attacker's connection, with a valid token."""
    made = site.line()
    yield made
    made.close()


@pytest.fixture(scope="module")
def honest(site: Site) -> Iterator[Line]:
    """The connection of a device of another graph, which must never notice anything."""
    made = site.line(site.other)
    yield made
    made.close()
