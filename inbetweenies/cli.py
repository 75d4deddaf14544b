"""``inbetweenies``: serve a graph, hand out tokens, see a mixed fleet sync.

Exit codes: 0 done, 1 failed, 2 misuse. What fails is told in one line on standard error: what was expected, what was
got, what to do. Standard output holds results only, so that a program can read it. A token's text is printed once,
where it is made.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from .cli_audit import audit
from .cli_backup import backup, restore, verify
from .cli_explain import explain, matrix, rehearsed, rollout_policy_option
from .cli_flags import flags
from .cli_incident import incident, reconcile
from .cli_log import log, status
from .cli_migrate import migrate, rollback
from .cli_notify import channel_option, notify, people_of
from .cli_portable import export, import_command
from .cli_preflight import preflight
from .cli_rollout import rollout
from .cli_versions import DAY_US, census_command, db_option, json_option, table, versions
from .errors import InbetweeniesError, LocalProtocolError
from .model import format_time

if TYPE_CHECKING:
    from .auth import SqliteTokens, TokenInfo

PASSWORD_VARIABLE: Final = "INBETWEENIES_ADMIN_PASSWORD"  # noqa: S105 - the name of it


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry point: run the command line and exit."""
    sys.exit(invoke(arguments))


def invoke(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        done = commands.main(args=arguments, prog_name="inbetweenies", standalone_mode=False)
    except click.UsageError as error:
        return _told(f"{error.format_message()} (see `{_name(error)} --help`)", 2)
    except click.ClickException as error:
        return _told(error.format_message(), 1)
    except (click.Abort, KeyboardInterrupt):
        return _told("stopped", 1)
    except LocalProtocolError as error:
        return _told(str(error), 2)
    except (InbetweeniesError, OSError) as error:
        return _told(str(error), 1)
    return done if isinstance(done, int) else 0


def _name(error: click.UsageError) -> str:
    return error.ctx.command_path if error.ctx is not None else "inbetweenies"


def _told(line: str, code: int) -> int:
    click.echo(f"inbetweenies: {' '.join(line.split())}", err=True)
    return code


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from .asgi import release

        click.echo(f"inbetweenies {release()}")
        context.exit(0)


@click.group(name="inbetweenies", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the release."
)
def commands() -> None:
    """A sync server for mixed fleets: old and new clients in one graph, and no write is ever lost."""


commands.add_command(preflight)
commands.add_command(versions)
commands.add_command(census_command)
commands.add_command(rollout)
commands.add_command(incident)
commands.add_command(reconcile)
commands.add_command(flags)
commands.add_command(explain)
commands.add_command(matrix)
commands.add_command(status)
commands.add_command(log)
commands.add_command(audit)
commands.add_command(notify)
commands.add_command(backup)
commands.add_command(verify)
commands.add_command(restore)
commands.add_command(migrate)
commands.add_command(rollback)
commands.add_command(export)
commands.add_command(import_command)


# --- serve --------------------------------------------------------------------------------------------------------


@commands.command()
@db_option
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="The port; 0 for any that is free."
)
@click.option("--graph", default="default", show_default=True, help="The graph of admin logins and of --no-auth.")
@click.option("--no-auth", is_flag=True, help="Let everybody on this machine in. Only with a loopback host.")
@click.option("--min-client-version", default=None, help="The oldest release of clients that discovery tells.")
@click.option("--latest-client-version", default=None, help="The newest release of clients that discovery tells.")
@click.option("--docs", default=None, help="URL that refusals name: which release speaks which wire version.")
@click.option(
    "--journal",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Where every commit is written once more before it is acknowledged; by default beside the database.",
)
@click.option("--no-journal", is_flag=True, help="Keep none: what a restored database lacks, only clients give back.")
@click.option(
    "--manual",
    multiple=True,
    metavar="TYPE",
    help="Leave every conflict of things of this type, such as schedule, to a person; may be said several times.",
)
@channel_option
@click.option(
    "--strict-v2", is_flag=True, help="Merge nothing: the later edit wins as a whole, as on deployed servers."
)
@rollout_policy_option
def serve(
    db: Path,
    host: str,
    port: int,
    graph: str,
    no_auth: bool,
    min_client_version: str | None,
    latest_client_version: str | None,
    docs: str | None,
    journal: Path | None,
    no_journal: bool,
    manual: tuple[str, ...],
    channel: tuple[str, ...],
    strict_v2: bool,
    rollout_policy: Path | None,
) -> None:
    """Serve the graphs in a database file, which is made if there is none.

    Prints `listening on http://…` once it does; stops on SIGTERM and Ctrl-C. Tokens are made with
    `inbetweenies token create`. With INBETWEENIES_ADMIN_PASSWORD set, clients may also log in with that password.
    A database that was set back to a backup gets what it lacks from its journal, and the rest from clients.
    """
    from .auth import SqliteTokens, is_loopback
    from .merge import Policy
    from .merge import manual as by_hand
    from .ops.incident import Incidents, RecentLog, folder_of
    from .ops.integrity import DataIntegrityMonitor
    from .ops.policies import PolicyFile, standard
    from .ops.shadow import ShadowComparison
    from .router import ProtocolFallback
    from .stores import SqliteStore

    if manual and strict_v2:
        raise click.UsageError("expected --manual or --strict-v2; got both")
    if no_auth and not is_loopback(host):
        raise click.UsageError(
            f"--no-auth: expected a loopback --host such as 127.0.0.1; got {host}, where other machines could read and "
            "write everything: leave --no-auth out and make tokens, or listen on 127.0.0.1"
        )
    if journal is not None and no_journal:
        raise click.UsageError("expected --journal or --no-journal; got both")
    try:
        from .asgi import app, run
    except ImportError as error:
        raise click.ClickException(
            f"expected {error.name}; not installed: pip install 'inbetweenies[server]'"
        ) from None

    decides = standard if rollout_policy is None else PolicyFile(rollout_policy)
    store = SqliteStore(db, journal=not no_journal if journal is None else journal)
    for name, event in store.happened:
        click.echo(f"{name}: {event}", err=True)
    recent = RecentLog()
    with closing(SqliteTokens(db)) as tokens, closing(Incidents(store, folder_of(db), log=recent)) as incidents:
        password = os.environ.get(PASSWORD_VARIABLE)
        _remark(db, host, graph, closed=not (no_auth or password or tokens.list()))
        policy = Policy.strict() if strict_v2 else Policy(rules={type_.lower(): by_hand for type_ in manual})
        router = ProtocolFallback(store, docs=docs, policy=policy)
        try:
            asyncio.run(router.refresh())
            application = app(
                router=router,
                tokens=tokens,
                admin_password=password,
                admin_graph=graph,
                auth=not no_auth,
                audits=(DataIntegrityMonitor(store), ShadowComparison(store)),
                people=people_of(store, channel),
                incidents=incidents,
                rollout_policy=decides,
                min_client_version=min_client_version,
                latest_client_version=latest_client_version,
            )
            with recent.listening():
                run(application, host, port, announce=click.echo)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise click.ClickException(
                f"expected to listen on {host} port {port}; got {reason}: choose another --host or --port"
            ) from None
        finally:
            asyncio.run(store.close())


def _remark(db: Path, host: str, graph: str, *, closed: bool) -> None:
    """What whoever starts a server should know, on standard error. `closed`: nobody can get in yet."""
    from .auth import is_loopback

    if closed:
        how = f"inbetweenies token create --db {quote(str(db))} --graph {quote(graph)} --user NAME"
        click.echo(f"no tokens yet; make one with: {how}", err=True)
    if not is_loopback(host):
        click.echo("this speaks plain HTTP: put a TLS proxy in front, or tokens can be read on the way", err=True)
    if stat.S_IMODE(db.stat().st_mode) & 0o077:
        click.echo(f"{db} can be opened by other users of this machine; chmod 600 would end that", err=True)


# --- token --------------------------------------------------------------------------------------------------------


@commands.group()
def token() -> None:
    """Make, list and revoke the tokens with which clients speak to a server."""


@token.command()
@db_option
@click.option("--graph", required=True, help="The graph that the token opens, and no other.")
@click.option("--user", required=True, help="Who writes with it.")
@click.option("--device", default=None, help="The device it is for.")
@click.option(
    "--days", type=click.IntRange(1, 36500), default=None, help="Days until it expires; without, it does not."
)
@click.option("--admin", is_flag=True, help="Give it the role admin.")
@json_option
def create(db: Path, graph: str, user: str, device: str | None, days: int | None, admin: bool, as_json: bool) -> None:
    """Make a token. Its text is printed here and never again. A running server knows it at once."""
    from .auth import SqliteTokens
    from .stores.clock import wall_clock

    with closing(SqliteTokens(db)) as tokens:
        expires = None if days is None else wall_clock() + days * DAY_US
        secret, info = tokens.create(graph, user, device, expires, role="admin" if admin else "member")
    if as_json:
        click.echo(json.dumps({"token": secret, **_info(info)}))
    else:
        click.echo(secret)
        click.echo(f"kept as {info.key_id}; the line above is not stored anywhere and not shown again", err=True)


@token.command("list")
@db_option
@json_option
def list_(db: Path, as_json: bool) -> None:
    """List tokens, without what makes them work."""
    with closing(_existing(db)) as tokens:
        infos = [_info(info) for info in tokens.list()]
    if as_json:
        click.echo(json.dumps({"tokens": infos}))
        return
    columns = ("key_id", "state", "graph", "user", "device", "role", "created", "expires")
    table(columns, ([info[name] for name in columns] for info in infos))


@token.command()
@db_option
@click.argument("key_id")
@json_option
def revoke(db: Path, key_id: str, as_json: bool) -> None:
    """Refuse a token from its next request on. KEY_ID is the part after `ib1_`."""
    parts = key_id.split("_")
    if len(parts) > 2:
        # Whoever pastes the whole token means its key id, and must not find the rest in an error message.
        key_id = parts[1]
    with closing(_existing(db)) as tokens:
        if not tokens.revoke(key_id):
            raise click.ClickException(
                "expected the key id of a token that is not revoked; got another one: see `inbetweenies token list`"
            )
    click.echo(json.dumps({"revoked": key_id}) if as_json else f"revoked {key_id}")


def _existing(db: Path) -> SqliteTokens:
    from .auth import SqliteTokens

    if not db.exists():
        raise click.ClickException(f"expected a database at {db}; got no file: see --db, or make a token there first")
    return SqliteTokens(db)


def _info(info: TokenInfo) -> dict[str, Any]:
    from .stores.clock import wall_clock

    expired = info.expires is not None and info.expires <= wall_clock()
    state = "revoked" if info.revoked is not None else "expired" if expired else "valid"
    times = {
        name: None if at is None else format_time(at)
        for name, at in (("created", info.created), ("expires", info.expires), ("revoked", info.revoked))
    }
    names = ("key_id", "graph", "user", "device", "role")
    return {name: getattr(info, name) for name in names} | times | {"state": state}


# --- demo ---------------------------------------------------------------------------------------------------------


@commands.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def demo(files: tuple[Path, ...], as_json: bool) -> int:
    """See old and new clients sync with one server, on FILES with HomeKit data or on a made-up home."""
    return int(_from_client("demo")(list(files), as_json))


@commands.command()
@click.option(
    "--db",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="A database to hold it on a copy of; without, a home is made up.",
)
@click.option("--flips", type=click.IntRange(1, 1000), default=10, show_default=True, help="How often to switch.")
@click.option("--scenario", "names", metavar="NAME", multiple=True, help="Only this small scenario; several are run.")
@click.option("--scenarios", "every", is_flag=True, help="Only the small scenarios, all of them: a few seconds.")
@json_option
def drill(db: Path | None, flips: int, names: tuple[str, ...], every: bool, as_json: bool) -> int:
    """Rehearse a rollout, its failure, its rollback and a restore on a copy, and see whether a write gets lost.

    Two server processes serve the copy to old and new clients that write all the time. The database itself is only
    read. Exits with 1 unless every criterion is met; what it came to is kept for `inbetweenies preflight`.

    The small scenarios rehearse one row of the decision matrix each, on made-up requests and a store of their own, and
    need neither.
    """
    if names or every:
        if db is not None:
            raise click.UsageError("--db: expected it without scenarios, which have a store of their own; got both")
        return rehearsed(None if every else names, as_json)
    return int(_from_client("drill")(db, as_json, flips))


def _from_client(name: str) -> Any:
    """What stands on the client, which stands on this package, so that it is found and not imported."""
    from importlib.metadata import entry_points

    found = entry_points(group="inbetweenies.commands", name=name)
    if not found:
        raise click.ClickException(f"expected the {name} that comes with this; it is not there: install it again")
    return next(iter(found)).load()


if __name__ == "__main__":
    main()
