"""What the command line does to keep its own program current: after a sync, and for ``blowing-off update``.

Decided and done is all of it in `updates`; here it is shown, and here the program goes on as the next release.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from inbetweenies import __version__
from inbetweenies.errors import InbetweeniesError

from .client import BlowingOffClient, NotConnected
from .show import Problem, Screen, check_parts, updated_parts
from .updates.channel import Offer, UpdateFailed, place_of
from .updates.check import Unknown, release_of
from .updates.decide import Availability, Wanted, kind_of
from .updates.install import Done, Server, describe
from .updates.manager import PLACE_SETTING, POLICY_SETTING, AutoUpdateManager
from .updates.restart import Restart

DONE: Final = 0
LEFT: Final = 3


def manager_of(client: BlowingOffClient, screen: Screen) -> AutoUpdateManager:
    """Keeps this program current with the client's server, if one is known."""
    server = None
    with suppress(NotConnected):
        url, token, insecure = client.access()
        server = Server(url=url, token=token, insecure=insecure)
    return AutoUpdateManager(
        None if server is None else server.url,
        store=client.store,
        asker=None if screen.as_json else "terminal",
        teller=screen.note,
        server=server,
    )


async def after_sync(manager: AutoUpdateManager, *, failed: bool, store: str) -> None:
    """Wait for what a sync has set off in the background.

    Raises:
        Restart: this program was updated and goes on as the next release, with what the sync left undone.
    """
    outcome = await manager.ended()
    if outcome is None or outcome.done is None:
        return
    if failed:
        raise Restart(None, outcome.done.before)
    if outcome.done.pending:
        raise Restart(["--store", store, "update", "--finish", "--quiet"], outcome.done.before)


async def update(
    client: BlowingOffClient,
    screen: Screen,
    *,
    check: bool,
    to: str | None,
    rollback: bool,
    policy: str | None,
    place: str | None,
    finish: bool,
    quiet: bool,
) -> int:
    """``blowing-off update``."""
    if policy is not None:
        client.store.keep(**{POLICY_SETTING: policy})
    if place is not None:
        meant = place_of(place)
        client.store.keep(**{PLACE_SETTING: meant.index or (str(meant.folder) if meant.folder else None)})
    if finish:
        return await _finish(client, screen, quiet=quiet)
    keeper = manager_of(client, screen)
    only_settings = (policy is not None or place is not None) and to is None and not rollback
    if check or only_settings:
        return await _check(client, screen, keeper, ask=check)
    try:
        if rollback:
            return _shown(screen, keeper.updater().roll_back(), "rolled_back")
        offer = _offer(keeper, to)
        if isinstance(offer, Availability):
            return _none(screen, offer)
        done = keeper.updater().update(offer, asked=True)
    except UpdateFailed as error:
        raise Problem(error.code, str(error)) from None
    if keeper.server_url is None:
        return _shown(screen, done, "updated")
    screen.note(describe(done))
    words = ["--store", client.store.path, *(["--json"] if screen.as_json else [])]
    raise Restart([*words, "update", "--finish"], done.before)


def _offer(keeper: AutoUpdateManager, to: str | None) -> Offer | Availability:
    """What to install: the newest release that is not known to fail here, or the one that was named."""
    updater = keeper.updater()
    updater.recover()
    layout, channel = keeper.layout, keeper.channel
    if not layout.automatic or channel is None:
        why = layout.why_not or "the tool that installed it is not found"
        raise UpdateFailed(
            "not_ours",
            f"this program was installed {layout.what}, so it does not update itself: {why}. "
            f"To update it: {layout.how}",
        )
    if to is None:
        return channel.find(Wanted(after=keeper.running, avoid=tuple(keeper.state.read().memory.bad)))
    named = release_of(to)
    if named is None:
        raise Problem("bad_release", "--to: expected a release such as 1.2.3; got something else", exit_code=2)
    if named == release_of(keeper.running):
        return Availability(release=None, reason="it is the one that runs")
    found = channel.find(str(named))
    if isinstance(found, Availability):
        raise UpdateFailed("not_available", f"expected that release; {found.reason}")
    return found


def _none(screen: Screen, found: Availability) -> int:
    if found.failed:
        raise Problem("not_available", f"expected to find out whether there is a newer release; {found.reason}")
    document = {"done": "unchanged", "from": __version__, "to": __version__, "pending": None, "why": found.reason}
    screen.show(*updated_parts(document, f"Release {__version__} stays: {found.reason}."))
    return DONE


def _shown(screen: Screen, done: Done, word: str) -> int:
    document = {
        "done": word,
        "from": done.before,
        "to": done.after,
        "pending": done.pending,
        "backup": str(done.backup),
    }
    screen.show(*updated_parts(document, describe(done)))
    return DONE


async def _finish(client: BlowingOffClient, screen: Screen, *, quiet: bool) -> int:
    """The first thing that the next release does: send what waits."""
    from .updates.state import StateFile

    receipt = StateFile(client.store.path).read().receipt
    before = __version__ if receipt is None else receipt.before
    sent, failure = 0, None
    try:
        sent = (await client.sync()).pushed
    except InbetweeniesError as error:
        failure = str(error)
    pending = client.store.counts().pending
    sentence = f"Release {__version__} runs, in place of {before}. Sent {sent}, {pending} still waiting."
    if failure is not None:
        screen.note(f"the sync after the update did not end well, and is tried again with the next: {failure}")
    if not quiet:
        document = {"done": "updated", "from": before, "to": __version__, "pending": pending, "sent": sent}
        screen.show(*updated_parts(document | {"sync_error": failure}, sentence))
    return LEFT if pending or failure else DONE


async def _check(client: BlowingOffClient, screen: Screen, keeper: AutoUpdateManager, *, ask: bool) -> int:
    """Say what is known, and with `ask` what server and channel say now."""
    import asyncio

    memory, layout = keeper.state.read().memory, keeper.layout
    verdict = await keeper.check_for_updates() if ask and keeper.server_url is not None else None
    found: Offer | Availability = Availability(release=None, reason="it was not asked")
    if ask and keeper.channel is not None:
        wanted = Wanted(after=keeper.running, avoid=tuple(memory.bad))
        found = await asyncio.to_thread(keeper.channel.find, wanted)
    kind = None if verdict is None else kind_of(verdict)
    document: dict[str, Any] = {
        "running": keeper.running,
        "available": found.release,
        "why": None if isinstance(found, Offer) else found.reason,
        "server": kind,
        "reason": verdict.reason if isinstance(verdict, Unknown) else None,
        "installed": layout.what,
        "kind": layout.kind,
        "automatic": layout.automatic,
        "how": layout.how,
        "policy": keeper.policy,
        "place": keeper.place.words,
        "bad": dict(memory.bad),
        "paused": memory.paused,
        "pending": client.store.counts().pending,
    }
    newer = found.release is not None
    sentence = ""
    if newer:
        sentence = "blowing-off update" if layout.automatic else layout.how
    elif kind == "server_too_old":
        sentence = "ask whoever runs the server to update it"
    elif ask:
        sentence = f"nothing: {document['why']}"
    screen.show(*check_parts(document, sentence))
    return LEFT if newer or kind in ("update_required", "server_too_old") else DONE
