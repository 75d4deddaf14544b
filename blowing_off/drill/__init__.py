"""``inbetweenies drill``: roll a wire version out, let it fail, take it back, restore, and hold all of it to account.

Everything is done to a copy, by real server processes, under clients of both versions that write all the time, with
what an operator would use. What comes out is measured from outside of the servers. Read `phases.py` for what is done,
`criteria.py` for how it is judged; `main` is what the command line calls.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import httpx

from inbetweenies.errors import InbetweeniesError
from inbetweenies.ops.checklist import keep_drill, kept_drill
from inbetweenies.stores.clock import wall_clock

from ..demo import stoppable
from ..show import Problem, Screen
from .basics import Settings
from .crew import Crew
from .criteria import Criterion, criteria
from .findings import Findings
from .ledger import Ledger
from .phases import Drill
from .showing import document, passed, show
from .site import Site


def main(db: Path | None, as_json: bool, flips: int) -> int:
    """Hold a drill on a copy of the database at `db`, or on a home that is made up. 0 if all went well, else 1.

    Whatever happens, Ctrl-C included, the server processes are ended and the temporary folder is removed. What a drill
    on a database came to is kept beside that.
    """
    screen = Screen(as_json=as_json)
    try:
        with stoppable():
            found, ledger, lines = hold(db, Settings(flips=flips), _teller(as_json))
    except KeyboardInterrupt:
        screen.problem(Problem("stopped", "stopped before the end; the servers were ended and their files removed"))
        return 1
    except (InbetweeniesError, httpx.HTTPError, OSError) as error:
        screen.problem(Problem("drill_failed", " ".join(str(error).split()) or type(error).__name__))
        return _ended(db, passed=False)
    if as_json:
        click.echo(json.dumps(document(found, ledger, lines)))
    else:
        show(lines)
    return _ended(db, passed=passed(lines), seconds=found.seconds)


def _ended(db: Path | None, *, passed: bool, seconds: float | None = None) -> int:
    """How it ends, which is kept beside the database for its preflight; nothing is of a home that was made up."""
    # One that could not be held says nothing of what is no database; but it takes back what an earlier one has said.
    if db is not None and (seconds is not None or kept_drill(db).exists()):
        try:
            keep_drill(db, passed=passed, now=wall_clock(), seconds=seconds)
        except InbetweeniesError as error:
            click.echo(f"inbetweenies: {error}", err=True)  # standard output has the outcome already
            return 1
    return 0 if passed else 1


def hold(
    db: Path | None, settings: Settings, tell: Callable[[str], None] = lambda _: None
) -> tuple[Findings, Ledger, list[Criterion]]:
    """One drill: what was found, what was seen from outside, and what that comes to.

    Raises:
        InbetweeniesError, OSError: it could not be held.
    """
    started = time.monotonic()
    found, ledger = Findings(own_home=db is None), Ledger()
    with TemporaryDirectory(prefix="inbetweenies-drill-", ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), settings)
        site.move_in(db)
        with site:
            crew = Crew(site, ledger)
            asyncio.run(Drill(site, crew, found, tell).hold())
    found.seconds = time.monotonic() - started
    return found, ledger, criteria(found, ledger, [one.name for one in crew.members])


def _teller(as_json: bool) -> Callable[[str], None]:
    """Says on stderr what is going on, and how long that is after the beginning."""
    if as_json:
        return lambda _: None
    started = time.monotonic()
    return lambda text: click.echo(f"{time.monotonic() - started:5.1f} s  {text}", err=True)
