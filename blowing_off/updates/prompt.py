"""What is said to people about an update, and how they answer.

A text names two releases at most: the one that runs, and the one that the channel was just found to deliver. What a
server asked for is not repeated: it may be a release that nobody can have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import click

from .decide import UpdateNeeded
from .layout import Layout

Choice: TypeAlias = Literal["update", "later", "skip"]
#: Called with what is needed and the sentences that say so; answers what to do.
Asker: TypeAlias = Callable[[UpdateNeeded, str], Choice]

_KEYS: Final[dict[str, Choice]] = {
    "u": "update",
    "update": "update",
    "y": "update",
    "yes": "update",
    "l": "later",
    "later": "later",
    "": "later",
    "s": "skip",
    "skip": "skip",
}


def explain(needed: UpdateNeeded, layout: Layout, pending: int) -> str:
    """What is the matter, which side is behind, and what becomes of what waits here, in whole sentences."""
    kept = _kept(pending)
    if needed.side == "server":
        return (
            f"The server is too old for this program (release {needed.have}): they share no way to talk. "
            f"Ask whoever runs the server to update it. {kept}"
        )
    if needed.required:
        what = f"This program (release {needed.have}) is too old for the server, which does not take it any more."
    else:
        what = f"There is a newer release of this program than {needed.have}, and the server knows of it."
    release = needed.available.release
    if release is None:
        reason = f"No release that helps can be had now: {needed.available.reason}."
        return f"{what} {reason} {_by_hand(layout)} {kept}"
    if not layout.automatic:
        return f"{what} Release {release} is available. {_by_hand(layout)} {kept}"
    return f"{what} Release {release} is available: `blowing-off update` installs it. {kept}"


def _by_hand(layout: Layout) -> str:
    return f"It was installed {layout.what}; to update it: {layout.how}."


def _kept(pending: int) -> str:
    if pending == 0:
        return "Nothing of yours waits to be sent."
    waits = "1 change of yours waits here" if pending == 1 else f"{pending} changes of yours wait here"
    return f"{waits}, safe, until the two can talk."


def ask(needed: UpdateNeeded, text: str) -> Choice:
    """Ask on the terminal. Whatever is not understood, or the end of input, means: later."""
    click.echo(text, err=True)
    try:
        answer = click.prompt(
            f"[u]pdate to {needed.available.release} now, remind me [l]ater, or [s]kip this release?",
            default="l",
            show_default=False,
            err=True,
        )
    except (click.Abort, EOFError):
        click.echo("", err=True)
        return "later"
    return _KEYS.get(str(answer).strip().lower(), "later")


def attended() -> bool:
    """Whether somebody sits at a terminal and can answer."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
