"""``blowing-off``: a home's things on this machine, always editable, exchanged with a server when there is one.

Exit codes: 0 done, 1 failed, 2 misuse, 3 done but conflicts or unsent changes are left, 130 stopped by Ctrl-C. Results
go to standard output, as a table on a terminal, as lines of cells between tabs in a pipe, or as one JSON document with
``--json``. Whatever goes wrong is told in one sentence: what was expected, what was got, what to do next.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from shlex import quote
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar, cast

import click

from inbetweenies.errors import InbetweeniesError, LocalProtocolError, StoreBusy, clip

from .show import Facts, Problem, Said, Screen, Sheet

if TYPE_CHECKING:
    from inbetweenies.model import Entity, Relationship
    from inbetweenies.replica import Pending

    from .client import BlowingOffClient, Progress, SyncReport, Version
    from .homekit import Unread
    from .store import ConflictRecord, LocalStore

T = TypeVar("T")
P = ParamSpec("P")

DONE: Final = 0
LEFT: Final = 3  # done, and something is left that a person should know of
TOKEN_VARIABLE: Final = "BLOWING_OFF_TOKEN"  # noqa: S105 - the name of it
TOKEN_BYTES_MAX: Final = 8192  # twice what a server takes; a larger file is not a token
PATIENCE_S: Final = 5.0  # a person waits this long for what only the server knows of a history
CANDIDATES_MAX: Final = 10  # more would scroll the question away
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
        sys.stdout.flush()
    except click.UsageError as error:
        problem = _misuse(error)
    except click.ClickException as error:
        problem = Problem("failed", error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Whoever read has what it wanted. What is still buffered goes nowhere, or the interpreter would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Problem as error:
        problem = error
    except InbetweeniesError as error:
        problem = _problem(error)
    except OSError as error:
        where = f"expected to use {error.filename!s}" if error.filename else "expected the system to go along"
        problem = Problem("system", f"{where}; it says: {error.strerror or type(error).__name__}")
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
    return (Path(data) if Path(data).is_absolute() else Path.home() / ".local/share") / "blowing-off" / "home.db"


# --- the shape of commands ----------------------------------------------------------------------------------------


class _Text(click.ParamType):
    """Words that a replica can hold."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            self.fail("expected text in Unicode; got bytes that are none", param, ctx)
        if "\0" in text:
            self.fail("expected text without NUL characters; got one", param, ctx)
        return text


class _Place(click.ParamType):
    """The name of a file."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value) or "\0" in str(value):
            self.fail("expected the name of a file; got none", param, ctx)
        return Path(value)


TEXT: Final = _Text()
PLACE: Final = _Place()


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
        store = click.Option(["--store"], type=PLACE, expose_value=False, callback=_set_store, hidden=True)
        as_json = click.Option(["--json"], is_flag=True, expose_value=False, callback=_set_json, help=_JSON_HELP)
        self.params += [store, as_json]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, invoke_without_command=False
)
@click.option(
    "--store",
    type=PLACE,
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
def commands() -> None:
    """The things of a home on this machine: look at them and change them, with or without a network.

    Every change is kept here at once and sent by `blowing-off sync`. Start with one of

    \b
      blowing-off add room Kitchen
      blowing-off connect https://home.example

    A thing is named by its id, the beginning of its id, or its name. In a pipe, results are lines of cells between
    tabs. Exit codes: 0 done, 1 failed, 2 misuse, 3 done but conflicts or unsent changes are left.
    """


def command(name: str, *, hidden: bool = False) -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Register a function of the session as a command."""

    def register(work: Callable[P, int]) -> Callable[P, int]:
        @functools.wraps(work)
        def call(*args: Any, **given: Any) -> int:
            session = cast(Session, click.get_current_context().find_root().obj)
            session.screen.as_json = session.as_json
            return work(session, *args, **given)  # type: ignore[arg-type]

        commands.command(name, cls=_Verb, hidden=hidden)(call)
        return work

    return register


def verb(
    name: str, *, makes: bool = False, hidden: bool = False
) -> Callable[[Callable[..., Awaitable[int]]], Callable[..., Awaitable[int]]]:
    """Register a coroutine function of the session and the open client as a command."""

    def register(work: Callable[..., Awaitable[int]]) -> Callable[..., Awaitable[int]]:
        @functools.wraps(work)
        def call(session: Session, **given: Any) -> int:
            return session.run(lambda client: work(session, client, **given), makes=makes)

        command(name, hidden=hidden)(call)
        return work

    return register


# --- finding things -----------------------------------------------------------------------------------------------


async def _thing(session: Session, client: BlowingOffClient, text: str, *, reading: bool = False) -> Entity:
    """The one thing that `text` means. What is going to be changed is not guessed from a part of its name."""
    found = await client.resolve(text)
    if not found:
        raise Problem(
            "not_found",
            f"expected the id, the beginning of an id or the name of a thing; got “{clip(text)}”, which nothing has",
            f"`{session.command('list')}` shows what is here",
        )
    if len(found) > 1:
        candidates = [{"id": one.id, "entity_type": one.entity_type, "name": one.name} for one in found]
        raise Problem(
            "ambiguous",
            f"expected what means one thing; got “{clip(text)}”, which means {len(found)}",
            "say more of its id",
            more={"candidates": candidates[:CANDIDATES_MAX], "total": len(candidates)},
        )
    only = found[0]
    if not reading and not only.id.startswith((text, text.lower())) and only.name.casefold() != text.casefold():
        raise Problem(
            "not_exact",
            f"expected the id or the whole name of a thing that is to be changed; got “{clip(text)}”, which is a part "
            f"of “{clip(only.name)}”",
            f"say {only.id}",
        )
    return only


async def _living(session: Session, client: BlowingOffClient, text: str) -> Entity:
    """The one thing that `text` means, which must not be removed."""
    found = await _thing(session, client, text)
    if _deleted(found):
        raise Problem(
            "removed",
            f"expected a thing that is there; got “{clip(found.name)}”, which was removed",
            f"`{session.command('set', found.id, 'deleted=')}` brings it back",
        )
    return found


def _deleted(value: Entity | Relationship) -> bool:
    from inbetweenies.model import Entity, says_deleted

    return says_deleted(value.content if isinstance(value, Entity) else value.properties)


# --- values -------------------------------------------------------------------------------------------------------


def _value(text: str) -> Any:
    """`text` as JSON if it is JSON, else as the text that it is."""
    import msgspec

    from inbetweenies.limits import gate

    try:
        gate(text.encode())
        return msgspec.json.decode(text)
    except (InbetweeniesError, msgspec.MsgspecError, ValueError, RecursionError):
        return text


def _written(value: Any) -> str:
    """`value` as `_value` reads it back."""
    import json

    plain = isinstance(value, str) and value and _value(value) == value and isinstance(_value(value), str)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


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
        at[steps[-1]] = _value(text) if text else None
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


def _at(micros: int | None) -> str:
    """A time for people: to the second, in UTC."""
    from inbetweenies.model import format_time

    return "never" if micros is None else format_time(micros)[:19].replace("T", " ") + "Z"


def _edited(version: str) -> str:
    from inbetweenies.model import edit_time

    when = edit_time(version)
    return "unknown" if when is None else _at(when)


def _leaves(content: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """`content` as the pairs that ``set`` takes."""
    pairs: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            pairs += _leaves(value, f"{above}{key}.")
        else:
            pairs.append((f"{above}{key}", _written(value)))
    return pairs


def _json_of(raw: Any) -> Any:
    import msgspec

    return msgspec.json.decode(raw)


async def _waiting(client: BlowingOffClient) -> dict[tuple[str, str], str]:
    """What waits to be sent, and whether for a reason."""
    return {item.copy.key: "pending" if item.note is None else "refused" for item in await client.pending()}


def _entity(entity: Entity, waiting: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """A thing as JSON."""
    return {
        "id": entity.id,
        "entity_type": entity.entity_type,
        "name": entity.name,
        "content": _json_of(entity.content),
        "source_type": entity.source_type,
        "user_id": entity.user_id,
        "version": entity.version,
        "parent_versions": list(entity.parent_versions),
        "deleted": _deleted(entity),
        "state": waiting.get(("entity", entity.id), "synced"),
    }


def _edge(edge: Relationship, names: Mapping[str, str], waiting: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """A link as JSON."""
    return {
        "id": edge.id,
        "from": {"id": edge.from_entity_id, "name": names.get(edge.from_entity_id, "")},
        "to": {"id": edge.to_entity_id, "name": names.get(edge.to_entity_id, "")},
        "relationship_type": edge.relationship_type,
        "properties": _json_of(edge.properties),
        "user_id": edge.user_id,
        "version": edge.version,
        "deleted": _deleted(edge),
        "state": waiting.get(("edge", edge.id), "synced"),
    }


def _state(document: Mapping[str, Any]) -> str:
    words = ["deleted"] if document["deleted"] else []
    return " ".join([*words, document["state"]] if document["state"] != "synced" else words)


async def _did(session: Session, client: BlowingOffClient, word: str, entity: Entity) -> int:
    """Tell of a thing that something was done to."""
    document = _entity(entity, await _waiting(client))
    said = Said(
        sentence=f"{word.capitalize()} {entity.entity_type} “{entity.name}” ({entity.id}).",
        cells=(word, entity.id, entity.entity_type, entity.name),
    )
    session.screen.show({"done": word, "thing": document}, said)
    return DONE
