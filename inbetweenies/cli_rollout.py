"""``inbetweenies rollout``: take a wire version or a feature to more and more graphs, watch it, and take it back.

Read `status` for what is shown. What is done is in `inbetweenies.ops.rollouts`; of two who do it at once one does, and
the other one is told and ends with 1.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click

from . import census
from .census import Entry, entries_in
from .cli_versions import DAY_US, actor_option, db_option, in_store, json_option, opened, reason_option
from .errors import LocalProtocolError, StoreCorrupt, StoreError
from .negotiation import NAME
from .rollout.report import UNITS, Check, StatusReport, markdown, utc
from .show_rollout import drawn, print_done, report_of, told

if TYPE_CHECKING:
    from .ops.incident import Capture
    from .ops.rollouts import RolloutControl
    from .rollout.canary import Bar

SEEN_DAYS: Final = 30  # as `census` counts, unless it is told otherwise
LOOK_SECONDS: Final = 1  # between two looks of `status --watch`

# --- options ------------------------------------------------------------------------------------------------------


def _checked(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and NAME.fullmatch(value) is None:
        raise click.UsageError("SUBJECT: expected 1 to 64 printable ASCII characters; got something else")
    return value


def _shares(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    from .rollout.canary import share_of
    from .rollout.states import WHOLE

    if value is None:
        return None
    try:
        shares = [share_of(float(part)) for part in value.split(",")]
    except ValueError:
        raise click.UsageError(f"--steps: expected percentages such as 1,5,25,50; got {value!r}") from None
    except LocalProtocolError as error:
        raise click.UsageError(f"--steps: {error}") from None
    if shares[-1] == WHOLE:
        shares.pop()  # everybody comes after the last step anyway
    if not shares or shares[0] <= 0 or sorted(set(shares)) != shares:
        raise click.UsageError(
            f"--steps: expected rising percentages, above 0 and, but for the last, below 100; got {value}"
        )
    return tuple(shares)


def _seconds(_: click.Context, __: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"(\d{1,6})([smhd])", value)
    if found is None:
        raise click.UsageError(f"--min-wait: expected a time such as 90s, 30m, 2h or 1d; got {value!r}")
    return int(found[1]) * UNITS[found[2]]


def _bar_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a step has to have seen before the next one (PROTOCOL 12.6)."""
    for name, number in reversed((("sessions", 50), ("pushes", 1), ("pulls", 1), ("conflicts", 1))):
        what = f"How many {name} a step has to have seen."
        option = click.option(f"--min-{name}", type=click.IntRange(0), default=number, show_default=True, help=what)
        command = option(command)
    what = "How long a step has to have lasted: 90s, 30m, 2h, 1d."
    return click.option("--min-wait", default="30m", show_default=True, callback=_seconds, help=what)(command)


_subject = click.argument("subject", callback=_checked)
_fence = click.option("--fence", type=click.IntRange(0), default=None, help="Only if its fence is still this one.")
_allow = click.option("--allow", metavar="GRAPH", multiple=True, help="A graph that is the first in the ramp.")
_deny = click.option("--deny", metavar="GRAPH", multiple=True, help="A graph that is left out until it is finalized.")


def _bar(min_wait: int, **counts: int) -> Bar:
    from .rollout.canary import Bar

    return Bar(wait_us=min_wait * 1_000_000, **{name.removeprefix("min_"): count for name, count in counts.items()})


@contextmanager
def _control(db: Path, bar: Bar | None = None) -> Iterator[RolloutControl]:
    from .ops.rollouts import NotReady, RolloutControl
    from .rollout.canary import NotYet
    from .rollout.states import RolloutMoved

    with opened(db) as store:
        try:
            yield RolloutControl(store, bar=bar)
        except (RolloutMoved, NotReady, NotYet) as error:  # no misuse: the world is not as it would have to be
            raise click.ClickException(str(error)) from error


# --- the commands -------------------------------------------------------------------------------------------------


@click.group()
def rollout() -> None:
    """Roll a wire version or a feature out to more and more graphs, watch it, and take it back.

    start, then advance as often as it takes, then finalize; rollback at any time before that. Running servers obey
    within a second.
    """


@rollout.command()
@_subject
@db_option
@click.option(
    "--steps", default=None, callback=_shares, help="The ramp in percent of graphs, rising.  [default: 1,5,25,50]"
)
@_allow
@_deny
@click.option(
    "--preflight",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The folder of the preflight; without, the one beside the database.",
)
@actor_option
@reason_option
@json_option
def start(
    subject: str,
    db: Path,
    steps: tuple[int, ...] | None,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    folder: Path | None,
    actor: str,
    reason: str,
    as_json: bool,
) -> None:
    """Start rolling SUBJECT out, and take it to `shadow`, where it is given to nobody yet.

    Refuses without a preflight of the last hour that has passed and fits the database (`inbetweenies preflight`). What
    did not get to `shadow`, for that or because it was killed, goes on with the same command.
    """
    from .ops.checklist import against, folder_of
    from .ops.preflight import preflight

    def objections() -> tuple[str, ...]:
        return (*preflight(db), *against(folder_of(db) if folder is None else folder, db, now=_now()))

    with _control(db) as control:
        done = control.start(
            subject,
            steps=steps,
            allow=allow,
            deny=deny,
            preflight=objections,
            actor=actor,
            reason=reason,
        )
    print_done(db, done, as_json)
    if done.before is None or not done.before.governs:
        _remark(db, subject)


def _remark(db: Path, subject: str) -> None:
    """Who has it today, and is not given it until the rollout reaches them; on standard error."""
    from .stores.keeper import run_now

    entries: tuple[Entry, ...] = ()
    with suppress(StoreError), opened(db) as store:  # it is started already, whatever can be counted
        entries = entries_in(run_now(store.document(census.DOCUMENT)))
    since = _now() - SEEN_DAYS * DAY_US
    kinds = {(one.version, one.release) for one in entries if subject == one.served and one.last >= since}
    if kinds:
        click.echo(
            f"kinds of clients that were served {subject} in the last {SEEN_DAYS} days: {len(kinds)} (see "
            "`inbetweenies census`); they are offered other versions until the rollout reaches their graphs",
            err=True,
        )


@rollout.command()
@_subject
@db_option
@_bar_options
@_fence
@actor_option
@reason_option
@json_option
def advance(
    subject: str, db: Path, fence: int | None, actor: str, reason: str, as_json: bool, min_wait: int, **counts: int
) -> None:
    """Take SUBJECT one step on, if it has lasted long enough and been used enough. Else nothing is changed."""
    with _control(db, _bar(min_wait, **counts)) as control, _lacking(as_json):
        done = control.advance(subject, fence=fence, actor=actor, reason=reason)
    print_done(db, done, as_json)


@rollout.command()
@_subject
@db_option
@_bar_options
@_fence
@click.option("--yes", is_flag=True, help="Do not ask.")
@actor_option
@reason_option
@json_option
def finalize(
    subject: str,
    db: Path,
    fence: int | None,
    yes: bool,
    actor: str,
    reason: str,
    as_json: bool,
    min_wait: int,
    **counts: int,
) -> None:
    """End the rollout of SUBJECT, which everybody has: also who was denied, and for good. It cannot be undone."""
    with _control(db, _bar(min_wait, **counts)) as control, _lacking(as_json):
        standing = control.standing(subject)
        if not yes and standing.rollout.state == "burn_in" and not standing.missing:
            _confirm(subject)
        seen = standing.rollout.fence if fence is None else fence  # what is confirmed is what was shown
        done = control.finalize(subject, fence=seen, actor=actor, reason=reason)
    print_done(db, done, as_json)


def _confirm(subject: str) -> None:
    asked = f"{subject} is then given to everybody, and `rollback` cannot undo it. Type its name to finalize it"
    if click.prompt(asked, default="", show_default=False, err=True) != subject:
        raise click.ClickException(f"expected {subject}; got something else: nothing was changed")


@contextmanager
def _lacking(as_json: bool) -> Iterator[None]:
    """Tells programs what a rollout lacks; people are told by the error."""
    from .rollout.canary import NotYet

    try:
        yield
    except NotYet as error:
        if as_json:
            click.echo(json.dumps({"changed": False, "missing": error.missing}))
        raise


@rollout.command()
@_subject
@db_option
@actor_option
@reason_option
@json_option
def pause(subject: str, db: Path, actor: str, reason: str, as_json: bool) -> None:
    """Hold SUBJECT where it is: who has it keeps it, nobody else gets it."""
    with _control(db) as control:
        done = control.pause(subject, actor=actor, reason=reason)
    print_done(db, done, as_json)


@rollout.command()
@_subject
@db_option
@actor_option
@reason_option
@json_option
def resume(subject: str, db: Path, actor: str, reason: str, as_json: bool) -> None:
    """Let SUBJECT go on where it was held. Time and evidence of its step count from now."""
    with _control(db) as control:
        done = control.resume(subject, actor=actor, reason=reason)
    print_done(db, done, as_json)


@rollout.command()
@_subject
@db_option
@actor_option
@reason_option
@json_option
def abort(subject: str, db: Path, actor: str, reason: str, as_json: bool) -> None:
    """Give up SUBJECT before anything was changed. From then on it is `rollback` that undoes it."""
    with _control(db) as control:
        done = control.abort(subject, actor=actor, reason=reason)
    print_done(db, done, as_json)


@rollout.command()
@_subject
@db_option
@click.option("--no-bundle", is_flag=True, help="Put nothing aside of what is known now.")
@actor_option
@reason_option
@json_option
def rollback(subject: str, db: Path, no_bundle: bool, actor: str, reason: str, as_json: bool) -> None:
    """Take SUBJECT back from everybody, at once and without asking. No data is moved, and no write is lost.

    What is known of it is put aside first, in a folder beside the database (see `inbetweenies incident`). Whatever goes
    wrong with that is told, and it is taken back nevertheless.
    """
    incident: Capture | None = None
    try:
        with _control(db) as control:
            if not no_bundle:
                incident = _put_aside(control, db, subject, actor, reason)
            done = control.rollback(subject, actor=actor, reason=reason)
            path = None if incident is None else incident.finish()
    except StoreCorrupt as error:
        raise click.ClickException(
            f"{error}. Without it a wire version is taken from everybody with: "
            f"inbetweenies versions enable {quote(subject)} --as accepted --db {quote(str(db))}"
        ) from error
    print_done(db, done, as_json, {"incident": None if path is None else str(path)})
    _tell_people(db)
    if incident is None:
        return
    if path is None:
        click.echo(f"nothing was put aside of what was known before: {incident.failed}", err=True)
    elif not as_json:
        click.echo(f"what was known before is in {path}: inbetweenies incident show {path.name} --db {quote(str(db))}")


def _tell_people(db: Path) -> None:
    """Those whom it had reached are told, durably; whether their data is safe is for a server, or `inbetweenies notify
    prove`, to find out. It was taken back, whatever comes of this."""
    from .ops.notify import UserNotification
    from .stores.keeper import run_now

    try:
        with opened(db) as store:
            run_now(UserNotification(store).notify_rollback())
    except StoreError as error:
        click.echo(f"people are told once a server runs: {error}", err=True)


def _put_aside(control: RolloutControl, db: Path, subject: str, actor: str, reason: str) -> Capture | None:
    """The incident of what is about to be taken back; None if nothing is."""
    from .ops.incident import Incidents, folder_of

    rollout = control.rollouts().of(subject)
    if rollout.undo is None:
        return None
    return Incidents(control.store, folder_of(db)).capture(rollout.id, actor=actor, why=reason)


@rollout.command()
@_subject
@db_option
@_allow
@_deny
@click.option("--drop", metavar="GRAPH", multiple=True, help="A graph that is on neither list any more.")
@actor_option
@reason_option
@json_option
def lists(
    subject: str,
    db: Path,
    allow: tuple[str, ...],
    deny: tuple[str, ...],
    drop: tuple[str, ...],
    actor: str,
    reason: str,
    as_json: bool,
) -> None:
    """Show the graphs that are the first to get SUBJECT, and those that are left out; or change who is.

    Evidence counts anew from each change, since it changes whom the rollout reaches.
    """
    with _control(db) as control:
        if allow or deny or drop:
            found = control.relist(subject, allow=allow, deny=deny, drop=drop, actor=actor, reason=reason).after
        else:
            found = control.rollouts().of(subject)
    names = {"allow": sorted(found.allow), "deny": sorted(found.deny)}
    if as_json:
        click.echo(json.dumps({"id": found.id, **names}))
        return
    for name, graphs in names.items():
        click.echo(f"{name}: {', '.join(graphs) or '-'}")


@rollout.command()
@_subject
@db_option
@actor_option
@click.option("--reason", required=True, help="How it goes, in a sentence.")
@json_option
def note(subject: str, db: Path, actor: str, reason: str, as_json: bool) -> None:
    """Say how SUBJECT goes, for whoever waits for news. It stays where it is; the next update is due in 30 minutes."""
    with _control(db) as control:
        done = control.note(subject, actor=actor, reason=reason)
    print_done(db, done, as_json)


# --- status -------------------------------------------------------------------------------------------------------

Format: TypeAlias = Literal["terminal", "markdown", "json"]


@rollout.command()
@click.argument("subject", required=False, callback=_checked)
@db_option
@_bar_options
@click.option("--watch", is_flag=True, help="Look again each second, until it is over or Ctrl-C.")
@click.option("--audit", is_flag=True, help="Look now whether the logs are whole and show what they must.")
@click.option(
    "--format",
    "shape",
    type=click.Choice(("terminal", "markdown", "json")),
    default="terminal",
    show_default=True,
    help="How to print it.",
)
@json_option
def status(
    subject: str | None,
    db: Path,
    watch: bool,
    audit: bool,
    shape: Format,
    as_json: bool,
    min_wait: int,
    **counts: int,
) -> None:
    """Show where SUBJECT stands, or everything that was ever rolled out: what was seen, what it lacks, how to undo it,
    and when news of it is due.

    Changes nothing. With --watch it draws anew each second on a terminal, and else prints what changed.
    """
    if as_json:
        shape = "json"
    if watch and (audit or shape == "markdown"):
        raise click.UsageError("expected --watch without --audit, and on a terminal or as JSON; got both")
    checks = audited(db) if audit else ()
    with _control(db, _bar(min_wait, **counts)) as control:
        if watch:
            with suppress(KeyboardInterrupt):
                _watch(control, subject, db, shape)
            return
        click.echo(_text(_reports(control, subject, db, checks), db, shape))


def audited(db: Path) -> tuple[Check, ...]:
    """What an audit finds just now, in a line a graph."""
    from .cli_audit import audited as found

    return tuple(
        Check(
            name=f"graph {one.graph}",
            passed=one.whole,
            told=f"{one.report.entities:,} entities, {one.report.relationships:,} relationships; "
            + ("whole, and shown as it must be" if one.whole else "not whole, or not shown as it must be"),
        )
        for one in in_store(db, lambda store: found(store, None))
    )


def _reports(
    control: RolloutControl, subject: str | None, db: Path, checks: tuple[Check, ...] = ()
) -> list[StatusReport]:
    graphs = control.graphs()
    found = [control.standing(subject)] if subject is not None else control.standings()
    return [report_of(one, db, now=_now(), graphs=graphs, checks=checks) for one in found]


def _watch(control: RolloutControl, subject: str | None, db: Path, shape: Format) -> None:
    terminal = sys.stdout.isatty() and shape == "terminal"
    shown: object = None
    while True:
        found: list[StatusReport] | None
        try:
            found = _reports(control, subject, db)
            known: object = [(one.rollout, one.evidence, one.watch, one.overdue) for one in found]
            text = _text(found, db, shape)
        except StoreError as error:  # what is watched may be a server that is being restored
            found, known, text = None, str(error), f"cannot be read just now: {error}"
        if terminal:
            click.clear()
            click.echo(f"{text}\n\nas of {utc(_now())}; Ctrl-C ends this, and nothing else")
        elif known != shown:
            click.echo(text, err=shape == "json" and found is None)
        shown = known
        if found and all(one.rollout.over for one in found):
            return
        _sleep(LOOK_SECONDS)


def _text(found: list[StatusReport], db: Path, shape: Format) -> str:
    if shape == "markdown":
        return markdown(found)
    return json.dumps(told(found)) if shape == "json" else drawn(found, db)


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def _now() -> int:
    from .stores.clock import wall_clock

    return wall_clock()
