"""``inbetweenies preflight``: the checklist before a rollout. What is looked at is in `inbetweenies.ops.preflight`.

Baselines are taken by calling the application, over a copy, so that no server needs to run; or, with ``--url``, by
asking one that does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec.structs import asdict

from .cli_versions import db_option, json_option

if TYPE_CHECKING:
    import httpx

    from .ops.baseline import Answered, Ask
    from .ops.checklist import Step

ANSWER_SECONDS: Final = 30  # for a server that is asked
_WIDTH: Final = 11  # of the longest name of a step


@click.command()
@db_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The folder of the manifest and what it speaks of; without, one beside the database.",
)
@click.option("--url", default=None, help="A server to ask for the API baseline; without, a copy is served here.")
@click.option("--token", default=None, help="The token for that server.")
@click.option("--accept-changes", is_flag=True, help="What is answered otherwise than the last time is what is meant.")
@click.option(
    "--days", type=click.IntRange(1, 400), default=30, show_default=True, help="Who was seen in so many days counts."
)
@json_option
def preflight(
    db: Path, out: Path | None, url: str | None, token: str | None, accept_changes: bool, days: int, as_json: bool
) -> int:
    """See whether the database is fit for a rollout: nine steps, one manifest. A server may run meanwhile.

    Disk, snapshot, integrity, digest, export, API and performance baselines, census, drill. Exits with 1 unless all of
    them pass. `inbetweenies rollout start` asks for the manifest, which is good for an hour.
    """
    from .ops.checklist import MANIFEST, folder_of
    from .ops.preflight import Preflight

    if token is not None and url is None:
        raise click.UsageError("--token: expected --url as well; got none")
    folder = folder_of(db) if out is None else out
    checklist = Preflight(
        db,
        folder,
        serve=served,
        reach=None if url is None else partial(_reached, url, token),
        where="a copy" if url is None else url,
        accept_changes=accept_changes,
        days=days,
        begun=_begin,
        tell=(lambda _: None) if as_json else _say,
    ).run()
    manifest = folder / MANIFEST
    if as_json:
        steps = [asdict(step) for step in checklist.steps]
        click.echo(json.dumps({"passed": checklist.passed, "manifest": str(manifest), "steps": steps}))
        return 0 if checklist.passed else 1
    failed = sum(not step.passed for step in checklist.steps)
    if checklist.passed:
        click.echo(f"all {len(checklist.steps)} steps passed; a rollout may start within the hour: {manifest}")
    else:
        click.echo(f"{failed} of {len(checklist.steps)} steps failed; no rollout starts with this: {manifest}")
    return 0 if checklist.passed else 1


def _begin(name: str) -> None:
    """Says on standard error what is being done, if that is a terminal."""
    if sys.stderr.isatty():
        click.echo(f"...   {name}\r", err=True, nl=False)


def _say(step: Step) -> None:
    result = click.style("OK  ", fg="green") if step.passed else click.style("FAIL", fg="red")
    click.echo(f"{result}  {step.name:<{_WIDTH}}  {step.found}")
    if step.advice:
        click.echo(f"      {'':<{_WIDTH}}  -> {step.advice}")


# --- who is asked -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(db: Path, graph: str, *, still: int | None = None) -> AsyncIterator[Ask]:
    """See `inbetweenies.ops.preflight.Serve`."""
    import httpx

    from .asgi import app
    from .ops.baseline import PASSWORD
    from .router import ProtocolFallback
    from .stores.sqlite import SqliteStore

    options: dict[str, Any] = {} if still is None else {"epochs": lambda: "0" * 16}
    clock: Callable[[], int] | None = None if still is None else (lambda: still)
    store = SqliteStore(db, journal=False, heads=False, **options)
    try:
        router = ProtocolFallback(store, clock=clock)
        await router.refresh()
        application = app(router=router, auth=False, admin_password=PASSWORD, admin_graph=graph)
        try:
            transport = httpx.ASGITransport(app=application)
            async with httpx.AsyncClient(transport=transport, base_url="http://preflight") as client:
                yield partial(_ask, client)
        finally:
            await application.close()
    finally:
        await store.close()


@asynccontextmanager
async def _reached(url: str, token: str | None) -> AsyncIterator[Ask]:
    import httpx

    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False) as client:
        yield partial(_ask, client)


async def _ask(client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Answered:
    import httpx
    import msgspec

    from .errors import StoreError
    from .ops.baseline import Answered

    content = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
    headers = {"user-agent": "inbetweenies-preflight", "accept-encoding": "identity"}
    if content is not None:
        headers["content-type"] = "application/json"
    try:
        answer = await client.request(method, path, content=content, headers=headers)
    except httpx.HTTPError as error:
        raise StoreError(
            f"expected an answer to {method} {path}; got {type(error).__name__}: see whether the server runs"
        ) from error
    return Answered(status=answer.status_code, headers=dict(answer.headers), body=answer.content)
