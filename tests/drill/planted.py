"""The drill's server with a bug in it: ``python -m tests.drill.planted PLANTS SWITCH serve ...``.

`PLANTS` are names below, with commas between them; ``none`` is a server without a bug, which looks at rollouts more
often than in production, so that a drill in the quick suite is short. Each plant fails if what it takes the place of is
not there any more.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from blowing_off.drill import server
from blowing_off.drill.basics import CANARY, CONTROL
from inbetweenies import router
from inbetweenies.asgi import application
from inbetweenies.asgi.discovery import registry_headers
from inbetweenies.exchange import Reply
from inbetweenies.model import Context, Entity
from inbetweenies.ops import triggers
from inbetweenies.rollout import notices
from inbetweenies.rollout.orders import Orders
from inbetweenies.stores import MemoryStore
from inbetweenies.wire.v1 import lens

Body = dict[str, Any]


def put(owner: Any, name: str, value: Any) -> Any:
    """Put `value` in the place of what is called `name`, and return that."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


def around(change: Callable[[Body, Context], Body | Reply | None], after: Callable[[bytes], bytes] = bytes) -> None:
    """Look at each message before it is served: it is changed, or answered, or left as it is; and at each answer."""
    handle = router.ProtocolFallback.handle

    async def handled(self: router.ProtocolFallback, body: bytes, *, context: Context, **asked: Any) -> Reply:
        told = change(json.loads(body), context)
        if isinstance(told, Reply):
            return told
        reply = await handle(self, body if told is None else json.dumps(told).encode(), context=context, **asked)
        return msgspec.structs.replace(reply, body=after(reply.body))

    put(router.ProtocolFallback, "handle", handled)


def drop() -> None:
    """Some pushes of a deployed client are acknowledged and go nowhere."""
    count = itertools.count()
    handle, nowhere = router.ProtocolFallback.handle, router.ProtocolFallback(MemoryStore())

    async def handled(self: router.ProtocolFallback, body: bytes, *, context: Context, **asked: Any) -> Reply:
        message = json.loads(body)
        mine = message.get("device_id") == "control-hub" and message.get("changes")
        return await handle(nowhere if mine and next(count) % 5 == 4 else self, body, context=context, **asked)

    put(router.ProtocolFallback, "handle", handled)


def shred() -> None:
    """An edit in the old version writes what that can say, and drops the rest."""

    def row(*told: Any) -> Entity:
        *before, content = told
        made: Entity = write(*before, {name: value for name, value in content.items() if not name.startswith("drill_")})
        return made

    write = put(lens, "_row", row)


def slow() -> None:
    """The new version takes its time, in the graphs that get it first."""

    def wait(message: Body, context: Context) -> None:
        if context.graph.startswith(CANARY) and message.get("protocol_version") == "inbetweenies-v2":
            time.sleep(0.1)

    around(wait)


def burst() -> None:
    """Some requests in a row fail, of a graph that no rollout reaches."""
    count = itertools.count()

    def fail(message: Body, context: Context) -> Reply | None:
        if context.graph.startswith(CONTROL) and next(count) in range(10, 14):
            return Reply(status=503, body=b'{"error": "unavailable", "code": "unavailable"}')
        return None

    around(fail)


def stuck() -> None:
    """Whatever is seen, nothing follows from it."""
    put(triggers, "due", lambda *_: None)


def deaf() -> None:
    """This process serves what its registry says, whatever is rolled out."""
    put(Orders, "registry", lambda self, registry, graph: registry)


def mute() -> None:
    """Nobody is told which version comes first by now."""
    put(router, "_negotiation", lambda *_: msgspec.UNSET)
    told = registry_headers(None)
    put(application, "registry_headers", lambda _: told)


def forgetful() -> None:
    """There is no journal, and what clients give back is not taken."""

    def ignore(message: Body, _: Context) -> Body | None:
        changes = message.get("changes")
        if not isinstance(changes, list) or not any(change.get("offered") for change in changes):
            return None
        return message | {"changes": [change for change in changes if not change.get("offered")]}

    around(ignore)


def wrong() -> None:
    """The digest that is told is none of what is there."""
    digest = re.compile(rb'"digest":"[0-9a-f]{64}"')
    around(lambda *_: None, lambda body: digest.sub(b'"digest":"' + b"7" * 64 + b'"', body))


def silent() -> None:
    """Nobody is told what was taken back."""
    put(notices, "_concerning", lambda *_: [])


def chatty() -> None:
    """Everybody is."""
    put(notices.Notice, "concerns", lambda *_: True)


PLANTS: Final[dict[str, Callable[[], None]]] = {
    one.__name__: one for one in (drop, shred, slow, burst, stuck, deaf, mute, forgetful, wrong, silent, chatty)
}


def main() -> None:
    names, *arguments = sys.argv[1:]
    put(triggers, "INTERVAL_S", 0.25)
    for name in names.split(","):
        if name != "none":
            PLANTS[name]()
    if "forgetful" in names:
        arguments.append("--no-journal")
    server.main(arguments)


if __name__ == "__main__":
    main()
