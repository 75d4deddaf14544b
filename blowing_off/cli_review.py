"""``blowing-off resolve``: a person decides what was left to one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inbetweenies.errors import clip

from .review import Contested, Take
from .show import Problem

if TYPE_CHECKING:
    from inbetweenies.model import Entity

    from .client import BlowingOffClient


async def settle(
    command: Callable[..., str], client: BlowingOffClient, id_: str, take: Take, patch: dict[str, Any], name: str | None
) -> Entity:
    """Resolve the one conflict that `id_` means: its id, or the beginning of it, such as the id of its thing.

    `command` makes a command line to be typed.

    Raises:
        Problem: nothing waits under it, several do, or something was not said.
    """
    found = [entry for entry in await client.review(ask=False) if id_ and entry.id.startswith(id_)]
    if not found:  # the server may know of it
        found = [entry for entry in await client.review() if id_ and entry.id.startswith(id_)]
    if len(found) != 1:
        raise Problem(
            "ambiguous" if found else "not_found",
            f"expected the id of a conflict that waits or the beginning of one; got “{clip(id_)}”, which begins "
            f"{len(found) or 'none'} of them",
            f"`{command('conflicts')}` lists them",
            more={"candidates": [{"id": entry.id, "name": entry.mine.name} for entry in found]} if found else {},
        )
    try:
        return await client.settle(found[0].id, take, patch=patch or None, name=name)
    except Contested as error:
        words = [pointer.removeprefix("/content/").replace("/", ".") for pointer in error.pointers]
        asked = ["--name NAME" if word == ".name" else f"--set {word}=VALUE" for word in words if word != ".source"]
        raise Problem(
            "contested",
            str(error),
            f"say them with {' '.join(asked)}, or --take mine or theirs",
            exit_code=3,
            more={"contested": list(error.pointers)},
        ) from None
