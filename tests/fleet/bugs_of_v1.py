"""Bugs of the v1 view that mixed fleets are known for, each planted by replacing one function for a while."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Raw
from msgspec.structs import replace

from inbetweenies.model import Writes
from inbetweenies.wire.v1 import lens, pull, push

Patch = pytest.MonkeyPatch


def down_edit_up(patch: Patch) -> None:
    """A v1 push goes through the view: the record replaces all that the entity says."""
    real = lens.apply

    def apply(edit: Any, known: Any, *rest: Any) -> Any:
        if known.base is not None:
            known = replace(known, base=replace(known.base, content=Raw(b"{}")), fields=None)
        return real(edit, known, *rest)

    patch.setattr("inbetweenies.wire.v1.push.apply", apply)


def stale_base(patch: Patch) -> None:
    """A v1 edit is compared with what is current, not with what its client knew."""

    def known(job: Any, graph: Any, then: Any) -> Any:
        return real(job, graph, graph if job.entity_id in graph.entities else then)

    real = push._known
    patch.setattr(push, "_known", known)


def ack_confirms_the_newest(patch: Patch) -> None:
    """A v1 ack confirms the last answer that was given to anybody who said its name."""
    real = pull.down

    def down(*rest: Any, **named: Any) -> Any:
        plan = real(*rest, **named)
        head = rest[1].head
        step = next(plan)
        try:
            while True:
                if isinstance(step, Writes) and step.device is not None:
                    key, device = step.device
                    step = replace(step, device=(key, replace(device, served=head.seq, acked=head.seq)))
                step = plan.send((yield step))
        except StopIteration as stop:
            return stop.value

    patch.setattr(pull, "down", down)


def acks_ignored(patch: Patch) -> None:
    """What a client lacks goes by its clock alone."""

    def least(one: int, *others: int) -> int:
        return min(others) if len(others) > 1 else min(one, *others)

    patch.setattr(pull, "min", least, raising=False)


def clock_ignored(patch: Patch) -> None:
    """What a client lacks goes by what it was served, heard or not."""
    real = pull.down

    def down(*given: Any) -> Any:
        plan = real(*given)
        held = yield next(plan)
        device = held.device
        if device is not None:
            held = replace(held, device=replace(device, acked=device.served), stamp_seq=device.served)
        try:
            step = plan.send(held)
            while True:
                step = plan.send((yield step))
        except StopIteration as stop:
            return stop.value

    patch.setattr(pull, "down", down)


def deletes_untold(patch: Patch) -> None:
    """Records that are gone are not told."""

    def _gone(self: Any, rows: Any, graph: Any) -> Any:
        yield from ()
        return {}

    patch.setattr(pull._Telling, "_gone", _gone)


def every_push_is_new(patch: Patch) -> None:
    """The version of an edit depends on when it came."""
    real = push._Writer.version

    def version(self: Any, job: Any, current: Any, attempt: int) -> str:
        made = real(self, job, current, attempt)
        return made if current is None else f"{made}.v{current.seq:012x}"

    patch.setattr(push._Writer, "version", version)


def token_is_the_head(patch: Patch) -> None:
    """An edit is compared with the newest state, whatever its token names."""

    def _graphs(jobs: Any, graph: Any, acked: int, limits: Any) -> Any:
        yield from ()
        return {job.basis(acked): graph for job in jobs}

    patch.setattr(push, "_graphs", _graphs)


def placeholders_stick(patch: Patch) -> None:
    """A home that stands in for none is written down as if somebody had said so."""
    patch.setattr(lens, "link_of", lambda graph, id_, link: None)
    patch.setattr(push, "link_of", lambda graph, id_, link: None)


def versions_collide(patch: Patch) -> None:
    """The edits of all v1 clients at one time share a version."""
    patch.setattr(push, "_digits", lambda *seed: "000000")
