"""The shortest story that still breaks the same invariant: events are left out of a recorded script, as many at a time
as will go (delta debugging), and what is left is made plainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from .stage import Event

#: How many histories may be played to make one shorter.
TRIES_MAX: Final = 3_000


def shortest(script: Sequence[Event], breaks: Callable[[Sequence[Event]], bool], tries: int = TRIES_MAX) -> list[Event]:
    """A script of which no single event can be left out, as far as `tries` reach. `breaks` plays one and says whether
    it still breaks what the whole one breaks."""
    left = [tries]

    def tried(less: Sequence[Event]) -> bool:
        left[0] -= 1
        return left[0] >= 0 and breaks(less)

    kept = _fewest(list(script), tried)
    while left[0] > 0:
        plainer = next((less for less in _plainer(kept) if tried(less)), None)
        if plainer is None:
            break
        kept = _fewest(plainer, tried)
    return kept


def _fewest(kept: list[Event], breaks: Callable[[Sequence[Event]], bool]) -> list[Event]:
    parts = 2
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            less = kept[:start] + kept[start + size :]
            if breaks(less):
                kept, parts = less, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    return kept


def _plainer(script: list[Event]) -> Iterator[list[Event]]:
    """The same script with one thing in it made plainer."""
    for index, event in enumerate(script):
        for args in _plainer_args(event.name, event.args):
            yield [*script[:index], event._replace(args=args), *script[index + 1 :]]


def _plainer_args(name: str, args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if name == "join":
        number, kinds, user, off, graph = args
        if len(kinds) > 1:
            yield from ((number, (kind,), user, off, graph) for kind in kinds)
        if off:
            yield (number, kinds, user, 0, graph)
    elif name == "edit" and args[3]:
        yield (*args[:3], 0)
    elif name == "arrive" and args[1:] != (None, None):
        yield (args[0], None, None)
    elif name == "hear" and args[2] is not None:
        yield (*args[:2], None)
