"""``blowing-off``: a home's things on this machine, always editable, exchanged with a server when there is one.

Exit codes: 0 done, 1 failed, 2 misuse, 3 done but conflicts or unsent changes are left, 130 stopped by Ctrl-C. Results
go to standard output, as a table on a terminal, as lines of cells between tabs in a pipe, or as one JSON document with
``--json``. Whatever goes wrong is told in one sentence: what was expected, what was got, what to do next.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from shlex import quote
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn

import click

from inbetweenies.errors import InbetweeniesError, LocalProtocolError, StoreBusy, clip

from .show import (
    Problem,
    Said,
    Screen,
    conflict_parts,
    done_parts,
    event_parts,
    history_parts,
    import_parts,
    is_removed,
    json_of,
    linked_parts,
    list_parts,
    many,
    pending_parts,
    status_parts,
    sync_parts,
    thing_parts,
    value_of,
)
from .updates.restart import Restart, go_on

if TYPE_CHECKING:
    from inbetweenies.model import Entity, Relationship

    from .client import BlowingOffClient
    from .homekit import Unread
    from .reports import Progress, Version
    from .store import ConflictRecord, LocalStore
    from .transfer import Tally
    from .updates.manager import AutoUpdateManager

Work = Callable[..., int]
AsyncWork = Callable[..., Awaitable[int]]

DONE: Final = 0
FAILED: Final = 1
LEFT: Final = 3  # done, and something is left that a person should know of
TOKEN_VARIABLE: Final = "BLOWING_OFF_TOKEN"  # noqa: S105 - the name of it
TOKEN_BYTES_MAX: Final = 8192  # twice what a server takes; a larger file is not a token
PATIENCE_S: Final = 5.0  # a person waits this long for what only the server knows of a history
CANDIDATES_MAX: Final = 10  # more would scroll the question away
PLACES: Final = frozenset({"home", "room", "zone"})  # what is meant where a device is called like its room
SEEN: Final = "conflicts_seen"  # the setting that holds the number of the newest conflict a person has seen


# --- running ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point: run the command line and exit."""
    sys.exit(invoke(arguments))


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    listed = list(sys.argv[1:] if arguments is None else arguments)
    screen = Screen(as_json="--json" in takewhile(lambda word: word != "--", listed))
    try:
        done = commands.main(listed, prog_name="blowing-off", standalone_mode=False, obj=Session(screen=screen))
        screen.flush()
    except click.UsageError as error:
        problem = _misuse(error)
    except click.ClickException as error:
        problem = Problem("failed", error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except Restart as restart:
        screen.flush()
        go_on(restart)
    except BrokenPipeError:
        screen.give_up()  # whoever read has what it wanted
        return FAILED
    except Problem as error:
        problem = error
    except InbetweeniesError as error:
        problem = _problem(error)
    except OSError as error:
        what = f"expected to use {error.filename!s}" if error.filename else "expected the system to go along"
        problem = Problem("system", f"{what}; it says: {error.strerror or type(error).__name__}")
    else:
        return done if isinstance(done, int) else DONE
    screen.problem(problem)
    return problem.exit_code


def _misuse(error: click.UsageError) -> Problem:
    context = error.ctx
    path = context.command_path if context is not None else "blowing-off"
    message = error.format_message().rstrip(".")
    if context is not None and context.info_name == "connect" and "extra argument" in message:
        message = "expected one URL; got more arguments"  # one of which may well be a token
    return Problem("misuse", message, f"`{path} --help` shows how it is used", exit_code=2)


def _problem(error: InbetweeniesError) -> Problem:
    """An error of the library, with the command to type next."""
    from .client import NotConnected
    from .store import SyncRunning

    kind = type(error).__name__
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind).strip("_")
    code = getattr(error, "code", name)
    message = str(error)
    if isinstance(error, NotConnected):
        return Problem("not_connected", "expected the address of a server; none is known", "`blowing-off connect URL`")
    if isinstance(error, LocalProtocolError):
        return Problem(code, message, exit_code=2)
    if isinstance(error, SyncRunning | StoreBusy):
        return Problem(code, message, more={"retry": True})
    return Problem(code, message)


@dataclass(kw_only=True)
class Session:
    """One run of the command line: where it shows what it does, and the store that it is about."""

    screen: Screen
    store: Path | None = None
    as_json: bool = False

    @property
    def path(self) -> Path:
        """The store. Never relative, so that no name of a file means anything else to SQLite."""
        return (self.store or default_store()).absolute()

    def run(self, work: Callable[[BlowingOffClient], Awaitable[int]], *, makes: bool = False, **labels: Any) -> int:
        """Do `work` with the open client. A store that is not there is only made by what puts something into it."""
        import asyncio

        from .client import BlowingOffClient

        if not makes and not self.path.exists():
            raise Problem(
                "no_store",
                f"expected a store at {self.path}; there is none yet",
                "`blowing-off connect URL` or `blowing-off add TYPE NAME` makes one",
            )

        async def worked() -> int:
            async with BlowingOffClient(self.path, **labels) as client:
                return await work(client)

        return asyncio.run(worked())

    def command(self, *words: str) -> str:
        """A command line for this store, to be typed as it is."""
        named = ["--store", str(self.store)] if self.store is not None else []
        return " ".join(map(quote, ["blowing-off", *named, *words]))


def default_store() -> Path:
    """Where the store is unless somebody says otherwise: with the data of the user's other programs."""
    if sys.platform in ("win32", "darwin"):
        return Path(click.get_app_dir("blowing-off", roaming=False)) / "home.db"
    data = os.environ.get("XDG_DATA_HOME", "")
    try:
        above = Path(data) if Path(data).is_absolute() else Path.home() / ".local/share"
    except RuntimeError:
        raise Problem(
            "no_home", "expected a home directory to keep the store in; this user has none", "name a file with --store"
        ) from None
    return above / "blowing-off" / "home.db"


# --- the shape of commands ----------------------------------------------------------------------------------------


def text(value: str) -> str:
    """Words that a replica can hold. Named for what help texts call it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("expected text in Unicode; got bytes that are none") from None
    if "\0" in value:
        raise click.BadParameter("expected text without NUL characters; got one")
    return value


def path(value: str | Path) -> Path:
    """The name of a file."""
    if not str(value) or "\0" in str(value):
        raise click.BadParameter("expected the name of a file; got none")
    return Path(value)


def _set_store(context: click.Context, _: click.Parameter, store: Path | None) -> None:
    if store is not None:
        context.find_root().obj.store = store


def _set_json(context: click.Context, _: click.Parameter, asked: bool) -> None:
    session = context.find_root().obj
    session.as_json = session.as_json or asked


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from inbetweenies import __version__

        click.echo(f"blowing-off {__version__}")
        context.exit(DONE)


_STORE_HELP: Final = "The file that holds everything. [env: BLOWING_OFF_STORE; default: with the user's data]"
_JSON_HELP: Final = "Print one JSON document."


class _Verb(click.Command):
    """A command that takes ``--json`` and ``--store`` too, since nobody remembers on which side of it they go."""

    def __init__(self, *args: Any, **fields: Any) -> None:
        super().__init__(*args, **fields)
        store = click.Option(["--store"], type=path, expose_value=False, callback=_set_store, hidden=True)
        as_json = click.Option(["--json"], is_flag=True, expose_value=False, callback=_set_json, help=_JSON_HELP)
        self.params += [store, as_json]


@click.group(
    invoke_without_command=True,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--store",
    type=path,
    metavar="PATH",
    envvar="BLOWING_OFF_STORE",
    expose_value=False,
    callback=_set_store,
    help=_STORE_HELP,
)
@click.option("--json", is_flag=True, expose_value=False, callback=_set_json, help=_JSON_HELP)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the release."
)
@click.pass_context
def commands(context: click.Context) -> None:
    """The things of a home on this machine: look at them and change them, with or without a network.

    Every change is kept here at once and sent by `blowing-off sync`. Start with one of

    \b
      blowing-off add room Kitchen
      blowing-off connect https://home.example

    A thing is named by its id, the beginning of its id, or its name. In a pipe, results are lines of cells between
    tabs. Exit codes: 0 done, 1 failed, 2 misuse, 3 done but conflicts or unsent changes are left.
    """
    if context.invoked_subcommand is None:
        if context.obj.as_json:
            raise click.UsageError("expected a command; got none", context)
        click.echo(context.get_help(), err=True)
        context.exit(2)


def command(name: str) -> Callable[[Work], Work]:
    """Register a function of the session as a command."""

    def register(work: Work) -> Work:
        @functools.wraps(work)
        def call(**given: Any) -> int:
            session: Session = click.get_current_context().find_root().obj
            session.screen.as_json = session.as_json
            return work(session, **given)

        commands.command(name, cls=_Verb)(call)
        return work

    return register


def verb(name: str, *, makes: bool = False) -> Callable[[AsyncWork], AsyncWork]:
    """Register a coroutine function of the session and the open client as a command."""

    def register(work: AsyncWork) -> AsyncWork:
        @functools.wraps(work)
        def call(session: Session, **given: Any) -> int:
            return session.run(lambda client: work(session, client, **given), makes=makes)

        command(name)(call)
        return work

    return register


# --- finding things -----------------------------------------------------------------------------------------------


async def _thing(
    session: Session,
    client: BlowingOffClient,
    text: str,
    *,
    reading: bool = False,
    rather: frozenset[str] = frozenset(),
) -> Entity:
    """The one thing that `text` means. What is going to be changed is not guessed from a part of its name.

    Where it means several, those of the types in `rather` are meant.
    """
    found = await client.resolve(text)
    if len(found) > 1:
        found = [one for one in found if one.entity_type in rather] or found
    if not found:
        raise Problem(
            "not_found",
            f"expected the id, the beginning of an id or the name of a thing; got “{clip(text)}”, which nothing has",
            f"`{session.command('list')}` shows what is here",
        )
    if len(found) > 1:
        raise _ambiguous(text, found)
    only = found[0]
    if not reading and not only.id.startswith((text, text.lower())) and only.name.casefold() != text.casefold():
        raise Problem(
            "not_exact",
            f"expected the id or the whole name of a thing that is to be changed; got “{clip(text)}”, which is a part "
            f"of “{clip(only.name)}”",
            f"say {only.id}",
        )
    return only


def _ambiguous(text: str, found: Sequence[Entity]) -> Problem:
    listed = [{"id": one.id, "entity_type": one.entity_type, "name": one.name} for one in found[:CANDIDATES_MAX]]
    return Problem(
        "ambiguous",
        f"expected what means one thing; got “{clip(text)}”, which means {len(found)} things",
        "say more of its id",
        more={"candidates": listed},
    )


async def _living(
    session: Session, client: BlowingOffClient, text: str, rather: frozenset[str] = frozenset()
) -> Entity:
    """The one thing that `text` means, which must not be removed."""
    found = await _thing(session, client, text, rather=rather)
    if is_removed(found):
        raise Problem(
            "removed",
            f"expected a thing that is there; got “{clip(found.name)}”, which was removed",
            f"`{session.command('set', found.id, 'deleted=')}` brings it back",
        )
    return found


# --- values -------------------------------------------------------------------------------------------------------


def _settings(pairs: Iterable[str], *, removes: bool) -> dict[str, Any]:
    """``a.b=1`` and the like as an object. An empty value removes, where there is something to remove."""
    tree: dict[str, Any] = {}
    taken: list[list[str]] = []
    for pair in pairs:
        key, equals, text = pair.partition("=")
        steps = key.split(".")
        if not equals or not all(steps):
            raise click.UsageError(f"expected key=value, with dots between keys; got {clip(pair, 60)!r}")
        if not text and not removes:
            raise click.UsageError(f"expected a value after {clip(pair, 60)}; got none: write '\"\"' for empty text")
        if any(steps[: len(other)] == other[: len(steps)] for other in taken):
            raise click.UsageError(f"expected each key once; got {clip(key, 60)} twice")
        taken.append(steps)
        at = tree
        for step in steps[:-1]:
            at = at.setdefault(step, {})
        at[steps[-1]] = value_of(text) if text else None
    if tree.get("deleted"):
        raise click.UsageError("expected keys other than deleted, which says that a thing is removed: use rm or unlink")
    return tree


def _object(text: str | None) -> dict[str, Any]:
    """The JSON object of ``--content``."""
    if text is None:
        return {}
    import msgspec

    from inbetweenies.errors import RemoteProtocolError
    from inbetweenies.limits import checked_decode, gate

    try:
        gate(text.encode())
        found = checked_decode(msgspec.json.Decoder(dict[str, Any]), text.encode())
    except RemoteProtocolError as error:
        expected, got = error.expected.replace("`", ""), error.got.replace("`", "")
        raise click.UsageError(f"--content: expected a JSON object, in it {expected}; got {got}") from None
    if found.get("deleted"):
        raise click.UsageError("--content: expected no key deleted, which says that a thing is removed: use rm")
    return found


async def _waiting(client: BlowingOffClient) -> dict[tuple[str, str], str]:
    """What waits to be sent, and whether for a reason."""
    return {item.copy.key: "pending" if item.note is None else "refused" for item in await client.pending()}


async def _did(session: Session, client: BlowingOffClient, word: str, entity: Entity) -> int:
    """Tell of a thing that something was done to."""
    session.screen.show(*done_parts(word, entity, await _waiting(client)))
    return DONE


# --- commands: the server -----------------------------------------------------------------------------------------


@command("connect")
@click.argument("url", type=text)
@click.option("--token-file", type=path, metavar="FILE", help="Read the token from a file; - is standard input.")
@click.option("--token", type=text, help="The token itself. Others can see it here; rather use one of the other ways.")
@click.option("--user", type=text, help="The name under which changes are made. [default: local]")
@click.option("--device", type=text, help="The name of this replica. [default: a random one]")
@click.option("--insecure", is_flag=True, help="Allow http:// to another machine, where everybody can listen.")
def connect(
    session: Session,
    url: str,
    token_file: Path | None,
    token: str | None,
    user: str | None,
    device: str | None,
    insecure: bool,
) -> int:
    """Say which server to exchange with.

    The token is taken from --token-file, from the variable BLOWING_OFF_TOKEN, or asked for without showing it. It is
    kept beside the store, in a file that only you can read, and is sent to this server only. Nothing is sent yet.

    \b
      blowing-off connect https://home.example --token-file token.txt --user ann
    """
    secret = _token(session, token_file, token)

    async def work(client: BlowingOffClient) -> int:
        await client.connect(url, secret)
        status = await client.status()
        said = Said(
            sentence=f"{status.user} will exchange with {url}. Next: {session.command('sync')}",
            cells=("connected", url, status.user, status.device),
        )
        session.screen.show({"url": url, "user": status.user, "device": status.device}, said)
        return DONE

    return session.run(work, makes=True, user=user, device=device, insecure=insecure)


def _token(session: Session, file: Path | None, given: str | None) -> str | None:
    """The token, from wherever it comes. Never told to anybody."""
    if given is not None:
        session.screen.note(
            "a token on the command line can be seen by every user of this machine, and stays in the shell's history; "
            f"--token-file or {TOKEN_VARIABLE} keep it to yourself",
            word="Warning",
        )
        return given
    if file is not None:
        with _reading(file, "--token-file") as stream:
            words = stream.read(TOKEN_BYTES_MAX).decode("ascii", "replace").split()
        if len(words) != 1:
            raise Problem(
                "bad_token_file", f"expected one token in the token file; got {len(words)} words", exit_code=2
            )
        return words[0]
    if token := os.environ.get(TOKEN_VARIABLE, ""):
        return token
    if sys.stdin is None or not sys.stdin.isatty() or session.as_json:
        return None
    return click.prompt("Token (not shown; empty for none)", hide_input=True, default="", show_default=False) or None


@verb("sync")
async def sync(session: Session, client: BlowingOffClient) -> int:
    """Exchange changes with the server.

    What was changed here is sent, what was changed elsewhere is fetched. Whatever goes wrong, no change is lost: it
    waits for the next sync. The exit code is 3 if something still waits or a conflict was found. Afterwards, at most
    once a day, the server is asked whether it is content with this release; see `blowing-off update`.

    \b
      blowing-off sync
    """
    updates: AutoUpdateManager | None = None

    def ended(error: InbetweeniesError | None) -> None:
        from . import upkeep  # not before: nothing about updates may hold up a sync

        nonlocal updates
        updates = upkeep.manager_of(client, session.screen)
        updates.after_sync(error)

    client.after_sync = ended
    with session.screen.progress("Exchanging") as tick:

        def moved(progress: Progress) -> None:
            tick(progress.pushed + progress.pulled, progress.total + progress.pulled)

        try:
            report = await client.sync(moved)
        except InbetweeniesError:
            await _upkeep(session, updates, failed=True)
            raise
    session.screen.show(*sync_parts(report))
    if report.refused:
        session.screen.note(f"`{session.command('status')}` says why some changes wait, and what to do")
    if report.conflicts:
        session.screen.note(f"`{session.command('conflicts')}` shows what two people changed at once; nothing is lost")
    if not report.complete:
        session.screen.note("the server has more to tell; sync again")
    await _upkeep(session, updates, failed=False)
    return LEFT if report.pending or report.conflicts or not report.complete else DONE


async def _upkeep(session: Session, updates: AutoUpdateManager | None, *, failed: bool) -> None:
    """Wait for what a sync has set off in the background; go on as another release if it was an update."""
    from . import upkeep

    if updates is not None:
        await upkeep.after_sync(updates, failed=failed, store=str(session.path))


@verb("update")
@click.option("--check", is_flag=True, help="Only say what there is.")
@click.option("--to", type=text, metavar="RELEASE", help="Exactly this release. [default: the newest that works here]")
@click.option("--rollback", is_flag=True, help="Go back to the release before the last update.")
@click.option(
    "--policy",
    type=click.Choice(["off", "notify", "prompt", "auto"]),
    help="From now on, after a sync: look for nothing, say so, ask, or update. [env: BLOWING_OFF_UPDATES]",
)
@click.option(
    "--from",
    "place",
    type=text,
    metavar="PLACE",
    help="From now on, releases come from here: the address of a package index, or a folder of wheels. Empty text: "
    "from where the installer takes them. [env: BLOWING_OFF_INDEX]",
)
@click.option("--finish", is_flag=True, hidden=True)
@click.option("--quiet", is_flag=True, hidden=True)
async def update(
    session: Session,
    client: BlowingOffClient,
    check: bool,
    to: str | None,
    rollback: bool,
    policy: str | None,
    place: str | None,
    finish: bool,
    quiet: bool,
) -> int:
    """Move to a newer release of this program, or back.

    First the store is copied. The new release must then open a copy of it and sync it, without sending anything,
    before it replaces this one; if it fails afterwards, this one is put back and that release is not tried again by
    itself. At the end, what waits is sent. This works where pip, pipx or uv installed the program; where somebody else
    is in charge, such as a distribution, a lock file or a container, the command to type is shown instead.

    Without --policy, it is asked where somebody sits at the terminal and said elsewhere, of each need once a day. With
    a file SHA256SUMS in a folder of wheels, only the files that it lists are taken. BLOWING_OFF_CONTAINER=kept says
    that a container stays, so that what is in it may be updated.

    \b
      blowing-off update
      blowing-off update --check
      blowing-off update --policy auto --from /media/usb/wheels
      blowing-off update --rollback
    """
    from . import upkeep

    if sum((check, rollback, to is not None)) > 1:
        raise click.UsageError("expected one of --check, --to and --rollback; got several")
    return await upkeep.update(
        client,
        session.screen,
        check=check,
        to=to,
        rollback=rollback,
        policy=policy,
        place=place,
        finish=finish,
        quiet=quiet,
    )


@verb("watch")
async def watch(session: Session, client: BlowingOffClient) -> int:
    """Stay connected and exchange changes at once.

    What others change comes in as it is made, what is changed here goes out.

    It goes on until it is stopped with Ctrl-C, also while the server is away, and prints a line for each thing that
    happens.

    \b
      blowing-off watch
    """
    async for event in client.watch():
        session.screen.show(*event_parts(event))
        session.screen.flush()
    return DONE


@verb("status")
async def status(session: Session, client: BlowingOffClient) -> int:
    """Show what waits to be sent and why, and what is here.

    The exit code is 3 if something waits or a conflict was not looked at yet.

    \b
      blowing-off status
    """
    now = await client.status()
    conflicts = len(_unseen(client.store, await client.conflicts()))
    session.screen.show(*status_parts(now, conflicts))
    if now.url is None:
        session.screen.note(f"no server is known; `{session.command('connect', 'URL')}` names one")
    return LEFT if now.pending or conflicts else DONE


@verb("pending")
async def pending(session: Session, client: BlowingOffClient) -> int:
    """List the changes that wait to be sent, oldest first.

    \b
      blowing-off pending
    """
    session.screen.show(*pending_parts(await client.pending()))
    return DONE


@verb("conflicts")
@click.option("--seen", is_flag=True, help="Do not show these again.")
async def conflicts(session: Session, client: BlowingOffClient, seen: bool) -> int:
    """List what two people changed at once.

    Something of one change did not stand then. Nothing is lost: `history` shows the versions named here, and `set`
    brings back what you want of them. The exit code is 3 if there are any; with --seen they are taken as looked at.

    \b
      blowing-off conflicts --seen
    """
    found = _unseen(client.store, await client.conflicts())
    session.screen.show(*conflict_parts(found))
    if seen and found:
        client.store.keep(**{SEEN: str(max(one.n for one in found))})
        return DONE
    return LEFT if found else DONE


def _unseen(store: LocalStore, found: Iterable[ConflictRecord]) -> list[ConflictRecord]:
    last = store.setting(SEEN) or "0"
    return [one for one in found if one.n > int(last)]


# --- commands: looking --------------------------------------------------------------------------------------------


@verb("list")
@click.argument("entity_type", metavar="[TYPE]", type=text, required=False)
@click.option("--deleted", is_flag=True, help="What was removed too.")
@click.option("--text", type=text, help="Only things with this in their name.")
async def list_(
    session: Session, client: BlowingOffClient, entity_type: str | None, deleted: bool, text: str | None
) -> int:
    """List things.

    All of them, or those of one TYPE such as room or device.

    \b
      blowing-off list device --text lamp
    """
    found = await client.find(text, entity_type=entity_type, deleted=deleted)
    session.screen.show(*list_parts(found, await _waiting(client), narrowed=bool(entity_type or text)))
    return DONE


@verb("show")
@click.argument("thing", type=text)
async def show(session: Session, client: BlowingOffClient, thing: str) -> int:
    """Show all of a thing, and its links.

    What stands after a dot is of its content, written as `set` takes it.

    \b
      blowing-off show Kitchen
    """
    entity = await _thing(session, client, thing, reading=True)
    waiting = await _waiting(client)
    edges = await client.links(entity.id)
    session.screen.show(*thing_parts(entity, edges, await _names(client, edges), waiting))
    return DONE


async def _names(client: BlowingOffClient, edges: Iterable[Relationship]) -> dict[str, str]:
    """What the ends of these links are called."""
    names = {}
    for id_ in {id_ for edge in edges for id_ in (edge.from_entity_id, edge.to_entity_id)}:
        if (copy := client.store.get(id_)) is not None:
            names[id_] = copy.name
    return names


@verb("history")
@click.argument("thing", type=text)
@click.option("--here", is_flag=True, help="Do not ask the server for versions that are only there.")
async def history(session: Session, client: BlowingOffClient, thing: str, here: bool) -> int:
    """Show every version of a thing, newest first.

    \b
      blowing-off history "Desk lamp"
    """
    entity = await _thing(session, client, thing, reading=True)
    versions = await _versions(session, client, entity.id, here=here)
    session.screen.show(*history_parts(entity.id, versions))
    return DONE


async def _versions(session: Session, client: BlowingOffClient, id_: str, *, here: bool) -> list[Version]:
    import asyncio

    import msgspec

    from inbetweenies.model import Entity, edit_time

    from .reports import Version

    if not here:
        with suppress(InbetweeniesError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                return await client.history(id_)
        session.screen.note("the server did not answer; these are the versions that are held here")
    decode = msgspec.json.Decoder(Entity).decode
    versions = [
        Version(entity=decode(held.copy.body), current=held.current, pending=held.pending, source="here")
        for held in client.store.history(id_)
    ]
    return sorted(versions, key=lambda one: (edit_time(one.entity.version) or 0, one.entity.version), reverse=True)


# --- commands: changing -------------------------------------------------------------------------------------------


@verb("add", makes=True)
@click.argument("entity_type", metavar="TYPE", type=text)
@click.argument("name", type=text)
@click.argument("pairs", metavar="[KEY=VALUE]...", type=text, nargs=-1)
@click.option("--content", type=text, metavar="JSON", help="A JSON object to start from.")
@click.option("--in", "inside", type=text, metavar="THING", help="The room, zone or home that it is in.")
@click.option("--id", "id_", type=text, metavar="ID", help="Its id. [default: a random one]")
async def add(
    session: Session,
    client: BlowingOffClient,
    entity_type: str,
    name: str,
    pairs: tuple[str, ...],
    content: str | None,
    inside: str | None,
    id_: str | None,
) -> int:
    """Add a thing, such as a room or a device.

    A TYPE is home, room, device, zone, door, window, procedure, manual, note, schedule, automation, app, or your own.
    A VALUE that is JSON is taken as that, any other as text; dots in a KEY lead into objects.

    \b
      blowing-off add room Kitchen --in "Our home"
      blowing-off add device "Desk lamp" maker=Acme watts=9.5 bulb.color=warm --in Kitchen
    """
    from .transfer import merged

    held = merged(_object(content), _settings(pairs, removes=False))
    # Together, so that nothing is added without its place.
    place = None if inside is None else await _living(session, client, inside, PLACES)
    with client.store.transaction():
        added = await client.add(entity_type, name, held, id=id_)
        if place is not None:
            await client.link(added.id, place.id, "part_of" if place.entity_type == "home" else "located_in")
    _remark_type(session, entity_type)
    return await _did(session, client, "added", added)


def _remark_type(session: Session, entity_type: str) -> None:
    """A type that nobody knows is kept as it is, but it may be a slip."""
    from difflib import get_close_matches

    from inbetweenies.model import ENTITY_TYPES

    if entity_type.lower() not in ENTITY_TYPES:
        close = get_close_matches(entity_type.lower(), ENTITY_TYPES, n=1)
        meant = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(ENTITY_TYPES))}"
        session.screen.note(f"“{clip(entity_type, 40)}” is no type that every program knows; {meant}")


@verb("set")
@click.argument("thing", type=text)
@click.argument("pairs", metavar="[KEY=VALUE]...", type=text, nargs=-1)
@click.option("--name", type=text, help="What it is called from now on.")
@click.option("--type", "entity_type", type=text, help="Its type from now on.")
@click.option("--content", type=text, metavar="JSON", help="An object to lay over its content; null removes a key.")
async def set_(
    session: Session,
    client: BlowingOffClient,
    thing: str,
    pairs: tuple[str, ...],
    name: str | None,
    entity_type: str | None,
    content: str | None,
) -> int:
    """Change a thing: its name, or keys of its content.

    A VALUE that is JSON is taken as that, any other as text; dots in a KEY lead into objects; `KEY=` removes. What was
    removed with rm comes back with `deleted=`.

    \b
      blowing-off set "Desk lamp" watts=7 bulb.color= --name "Reading lamp"
    """
    from .transfer import merged

    patch = merged(_object(content), _settings(pairs, removes=True))
    if not patch and name is None and entity_type is None:
        raise click.UsageError("expected something to set, such as key=value or --name; got nothing")
    if "deleted" in patch:
        entity = await _thing(session, client, thing)
    else:
        entity = await _living(session, client, thing)
    after = await client.change(entity.id, name=name, patch=patch, entity_type=entity_type)
    return await _did(session, client, "unchanged" if after.version == entity.version else "changed", after)


@verb("rm")
@click.argument("thing", type=text)
async def rm(session: Session, client: BlowingOffClient, thing: str) -> int:
    """Remove a thing.

    It stays in the history, and `set THING deleted=` brings it back.

    \b
      blowing-off rm "Desk lamp"
    """
    entity = await _thing(session, client, thing)
    if is_removed(entity):
        return await _did(session, client, "unchanged", entity)
    return await _did(session, client, "removed", await client.delete(entity.id))


@verb("link")
@click.argument("start", metavar="FROM", type=text)
@click.argument("end", metavar="TO", type=text)
@click.argument("relationship_type", metavar="TYPE", type=text)
@click.argument("pairs", metavar="[KEY=VALUE]...", type=text, nargs=-1)
async def link(
    session: Session, client: BlowingOffClient, start: str, end: str, relationship_type: str, pairs: tuple[str, ...]
) -> int:
    """Link two things.

    A TYPE is located_in, part_of, controls, connects_to, manages, documented_by, procedure_for, triggered_by,
    depends_on, contained_in, monitors, automates, or your own.

    \b
      blowing-off link "Wall switch" "Desk lamp" controls
    """
    properties = _settings(pairs, removes=False)
    one, other = await _living(session, client, start), await _living(session, client, end)
    wanted = (one.id, other.id, relationship_type.lower(), properties)
    for edge in await client.links(one.id):
        if wanted == (edge.from_entity_id, edge.to_entity_id, edge.relationship_type, json_of(edge.properties)):
            return await _linked(session, client, "unchanged", edge)
    return await _linked(session, client, "linked", await client.link(one.id, other.id, relationship_type, properties))


@verb("unlink")
@click.argument("edge", metavar="LINK", type=text)
async def unlink(session: Session, client: BlowingOffClient, edge: str) -> int:
    """Remove a link.

    A LINK is named by its id or the beginning of it, which `show THING` lists.

    \b
      blowing-off unlink 5e1f09a2
    """
    every = await client.links(deleted=True)
    found = [one for one in every if one.id == edge] or [one for one in every if edge and one.id.startswith(edge)]
    found = [one for one in found if not is_removed(one)] or found
    if len(found) != 1:
        what = f"which begins {len(found)} of them" if found else "which begins none"
        raise Problem(
            "ambiguous" if found else "not_found",
            f"expected the id of a link or the beginning of one; got “{clip(edge)}”, {what}",
            f"`{session.command('show', 'THING')}` lists the links of a thing",
            more={"candidates": [{"id": one.id} for one in found[:CANDIDATES_MAX]]} if found else {},
        )
    if is_removed(found[0]):
        return await _linked(session, client, "unchanged", found[0])
    return await _linked(session, client, "unlinked", await client.unlink(found[0].id))


async def _linked(session: Session, client: BlowingOffClient, word: str, edge: Relationship) -> int:
    names = await _names(client, [edge])
    session.screen.show(*linked_parts(word, edge, names, await _waiting(client)))
    return DONE


# --- commands: files ----------------------------------------------------------------------------------------------


@command("import-homekit")
@click.argument("files", metavar="FILE...", type=path, nargs=-1, required=True)
@click.option("--home", type=text, metavar="THING", help="The home that the devices are in; made if there is none.")
def import_homekit(session: Session, files: tuple[Path, ...], home: str | None) -> int:
    """Take in the devices of HomeKit accessory databases.

    A FILE is what an accessory or a bridge answers to GET /accessories, saved as JSON. Taking in a file again changes
    only what the file says differently: what you added, renamed or removed stays as you left it. What cannot be read
    is told, with its place, the reason, and how to add it by hand; everything else goes in.

    \b
      blowing-off import-homekit hue.json eve.json --home "Our home"
    """
    from . import homekit

    read: list[tuple[str, bytes]] = []
    unread: list[Unread] = []
    by_hand = "blowing-off add device NAME"
    for file in files:
        try:
            with _reading(file, "FILE") as stream:
                read.append((str(file), stream.read(homekit.FILE_BYTES_MAX + 1)))
        except Problem as problem:
            unread.append(homekit.Unread(place=str(file), reason=problem.message, by_hand=by_hand))

    async def work(client: BlowingOffClient) -> int:
        from .transfer import bring_homekit

        home_id = await _home(session, client, home) if home is not None and read else None
        found = [homekit.read(data, source=name, home_id=home_id) for name, data in read]
        unread.extend(fault for one in found for fault in one.unread)
        with session.screen.progress("Taking in") as tick:
            tally = await bring_homekit(client, found, tick, home_id=home_id)
        return _imported(session, tally, unread)

    return session.run(work, makes=True)


async def _home(session: Session, client: BlowingOffClient, text: str) -> str:
    """The id of the home that `text` means, made if there is none."""
    homes = await client.find(entity_type="home")
    found = [one for one in homes if one.id == text or one.name.casefold() == text.casefold()]
    found = found or [one for one in homes if text and one.id.startswith(text.lower())]
    if len(found) > 1:
        raise _ambiguous(text, found)
    if found:
        return found[0].id
    made = await client.add("home", text)
    session.screen.note(f"there was no home “{text}”; it was added")
    return made.id


def _imported(session: Session, tally: Tally, unread: Sequence[Unread]) -> int:
    """Tell what became of the files. Failed only if nothing could be read."""
    where = session.command()
    by_hand = [where + one.by_hand.removeprefix("blowing-off") for one in unread]
    rows = [(one.place, one.reason, how) for one, how in zip(unread, by_hand, strict=True)]
    session.screen.show(*import_parts(tally.counts(), ("place", "reason", "by_hand"), rows))
    if tally.removed:
        session.screen.note("what was removed here stays removed; `set THING deleted=` brings it back")
    return FAILED if unread and not any(tally.counts().values()) else DONE


@command("export")
@click.argument("file", type=path, required=False)
@click.option("--all", "everything", is_flag=True, help="What was removed and the history too.")
def export(session: Session, file: Path | None, everything: bool) -> int:
    """Write all things and links to a file.

    As JSON Lines, one a line, to FILE or standard output. `import` reads it back, here or elsewhere. With --all it is
    a whole backup.

    \b
      blowing-off export --all backup.jsonl
    """

    async def work(client: BlowingOffClient) -> int:
        from .transfer import export_lines

        lines = export_lines(client.store, everything=everything)
        if file is None or str(file) == "-":
            if session.as_json:
                session.screen.show({"rows": [json_of(line) for line in lines]})
            else:
                for line in lines:
                    session.screen.raw(line)
            return DONE
        count = _write(file, lines)
        said = Said(sentence=f"Wrote {many(count, 'row')} to {file}.", cells=("exported", str(count), str(file)))
        session.screen.show({"rows": count, "file": str(file)}, said)
        return DONE

    return session.run(work)


@command("import")
@click.argument("file", type=path)
def import_(session: Session, file: Path) -> int:
    """Read back what `export` wrote.

    From FILE or, named -, from standard input. Things come back as the versions that they were. Reading a file twice
    changes nothing, and what is newer here stays: what the file holds then goes into the history. A line that cannot
    be read is told, and all others go in.

    \b
      blowing-off import backup.jsonl
    """
    from .transfer import Fault, Line, read_lines

    with _reading(file, "FILE") as stream:
        # Before the store is opened: who writes to a pipe may take its time.
        read = list(read_lines(stream))
    lines = [one for one in read if isinstance(one, Line)]
    faults = [one for one in read if isinstance(one, Fault)]

    async def work(client: BlowingOffClient) -> int:
        from .transfer import bring_lines

        with session.screen.progress("Reading") as tick:
            tally, more = await bring_lines(client.store, lines, tick)
        unread = sorted([*faults, *more], key=lambda fault: fault.line)
        rows = [(fault.line, fault.reason) for fault in unread]
        session.screen.show(*import_parts(tally.counts(), ("line", "reason"), rows))
        return FAILED if unread and not any(tally.counts().values()) else DONE

    return session.run(work, makes=True)


@contextmanager
def _reading(file: Path, what: str) -> Iterator[IO[bytes]]:
    """A file that somebody named, or standard input. Its name is not told for a token: it may be one."""
    if str(file) == "-" and sys.stdin is not None:
        yield sys.stdin.buffer
        return
    named = "" if what == "--token-file" else f" {clip(str(file))}"
    try:
        with file.open("rb") as stream:
            yield stream
    except OSError as error:
        raise Problem(
            "unreadable",
            f"{what}: expected to read the file{named}; the system says: {error.strerror or type(error).__name__}",
        ) from None


def _write(file: Path, lines: Iterable[bytes]) -> int:
    """Write `lines`, all of them or none: a file that was there stays whole until the new one is."""
    import tempfile

    try:
        if file.exists() and not file.is_file():
            raise Problem("not_a_file", f"expected the name of a file; got {clip(str(file))}, which is something else")
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name[:100]}.", delete=False) as stream:
            made = Path(stream.name)
            try:
                count = sum(1 for line in lines if stream.write(line))
                stream.flush()
                os.fsync(stream.fileno())
                made.replace(file)
            except BaseException:
                made.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise Problem(
            "unwritable",
            f"expected to write {clip(str(file))}; the system says: {error.strerror or type(error).__name__}",
        ) from None
    return count


if __name__ == "__main__":
    main()
