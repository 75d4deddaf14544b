"""What was decided about rollouts, with all that it was decided on, so that it can be decided again (PROTOCOL 12.12).

`judge` looks, and keeps a verdict of whatever comes of it. A verdict is decided on the very text that is kept: what a
text cannot hold, nobody decides on. `replay` decides once more and compares bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import LocalProtocolError, RemoteProtocolError, StoreCorrupt
from ..limits import checked_decode
from ..model import Document
from .chain import Line, broken, following
from .kept import read, written
from .policy import Decision, Facts, Policy
from .states import Rollout
from .triggers import LOG_MAX, RECENT, Judged, Signals, Thresholds, Watch, Watches, decide

#: The name under which a store keeps the `Record`.
DOCUMENT: Final = "verdicts"
LINES_MAX: Final = 1_000  # verdicts in the record: a rollout that does harm makes five
LINES_CHARS_MAX: Final = 4 * 2**20  # and what they come to: read as a whole whenever one is added


class Inputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a verdict depends on.

    Attributes:
        watch: what was known before, without its log, which nothing depends on.
        signals: what was seen since; None if nobody could tell.
        fence: of the rollout.
        now: when it was looked, in microseconds since 1970.
        policy: the digest of the policy.
    """

    watch: Watch
    signals: Signals | None
    thresholds: Thresholds
    fence: int
    now: int
    policy: str


class Outcome(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came of them: as `Judged`; the log of `watch` is what was added to it."""

    facts: Facts
    row: str
    decision: Decision
    evidence: tuple[str, ...]
    watch: Watch


class Verdict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a line says: `Inputs` and `Outcome`, to the byte as they were written."""

    inputs: msgspec.Raw
    outcome: msgspec.Raw


class Read(Struct, frozen=True, kw_only=True):
    """A line, understood."""

    n: int
    inputs: Inputs
    outcome: Outcome

    @property
    def rollout(self) -> str:
        return self.inputs.watch.rollout


class Replay(Struct, frozen=True, kw_only=True):
    """A verdict that was decided once more. `kept` and `again` are outcomes, as written."""

    kept: bytes
    again: bytes

    @property
    def identical(self) -> bool:
        return self.kept == self.again

    @property
    def differs(self) -> tuple[str, ...]:
        """In what they differ, in words."""
        kept, again = (msgspec.json.decode(one) for one in (self.kept, self.again))
        return tuple(
            f"{name}: {msgspec.json.encode(kept.get(name)).decode()} was kept; "
            f"{msgspec.json.encode(again.get(name)).decode()} is decided now"
            for name in dict.fromkeys((*kept, *again))
            if kept.get(name) != again.get(name)
        )


_inputs: Final = msgspec.json.Decoder(Inputs)
_outcome: Final = msgspec.json.Decoder(Outcome)
_verdict: Final = msgspec.json.Decoder(Verdict)


# --- deciding -----------------------------------------------------------------------------------------------------


def judge(
    watches: Watches,
    rollout: Rollout,
    signals: Signals | None,
    thresholds: Thresholds,
    policy: Policy,
    *,
    now: int,
) -> tuple[Judged, Watches]:
    """PROTOCOL 12.12: what one more look at a rollout comes to, and what is to be kept.

    A verdict is kept if the look led to a rung, gave a new reason to stay on one, or met a row that wants more than to
    watch and had not been met in this rollout before.
    """
    before = watches.of(rollout)
    bare = replace(before, log=())
    inputs = written(
        Inputs(
            watch=bare,
            signals=signals,
            thresholds=thresholds,
            fence=rollout.fence,
            now=now,
            policy=policy.digest,
        )
    )
    judged = _decided(inputs, policy)
    after = replace(judged.watch, log=(*before.log, *judged.watch.log)[-LOG_MAX:])
    kept = watches.put(after)
    if kept is not watches and (judged.watch.log, after.worries, after.rows) != ((), before.worries, before.rows):
        body = written(Verdict(inputs=msgspec.Raw(inputs), outcome=msgspec.Raw(written(_outcome_of(judged)))))
        line = following(watches.verdicts[-1] if watches.verdicts else None, body.decode())
        kept = replace(kept, verdicts=(*watches.verdicts, line)[-RECENT:])
    return replace(judged, watch=after), kept


def _decided(text: bytes, policy: Policy) -> Judged:
    inputs = _inputs.decode(text)
    return decide(inputs.watch, inputs.signals, inputs.thresholds, policy, fence=inputs.fence, now=inputs.now)


def _outcome_of(judged: Judged) -> Outcome:
    return Outcome(
        facts=judged.facts,
        row=judged.row,
        decision=judged.decision,
        evidence=judged.evidence,
        watch=judged.watch,
    )


# --- kept ---------------------------------------------------------------------------------------------------------


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The newest verdicts, oldest first, and the policies by which they were decided, by digest."""

    policies: Mapping[str, Policy] = {}
    lines: tuple[Line, ...] = ()

    def added(self, lines: tuple[Line, ...], policy: Policy) -> Record:
        """With those of `lines` that are newer than all that are here, decided by `policy` or one that is known."""
        last = self.lines[-1].n if self.lines else 0
        kept = (*self.lines, *(one for one in lines if one.n > last))[-LINES_MAX:]
        size = sum(len(one.body) for one in kept)
        while size > LINES_CHARS_MAX:
            size -= len(kept[0].body)
            kept = kept[1:]
        policies = {**self.policies, policy.digest: policy}
        # A verdict names the digest of its policy in its body, and nothing else looks like one.
        used = {name: one for name, one in policies.items() if any(name in line.body for line in kept)}
        return Record(policies=used, lines=kept)

    def lines_with(self, recent: tuple[Line, ...]) -> tuple[Line, ...]:
        """All that are known: those of the record, and those of `recent` that never came into it.

        Raises:
            StoreCorrupt: one is not as it was written, or both know another one under one number.
        """
        last = self.lines[-1].n if self.lines else 0
        lines = (*self.lines, *(one for one in recent if one.n > last))
        if (wrong := broken(lines) or _at_odds(self.lines, recent)) is not None:
            raise StoreCorrupt(
                f"verdict {wrong}. What the record says from there on proves nothing: compare it with a backup"
            )
        return lines


def _at_odds(lines: tuple[Line, ...], recent: tuple[Line, ...]) -> str | None:
    """Whether one was changed, or left out at the end, together with all hashes after it."""
    known = {one.n: one.hash for one in recent}
    changed = next((one.n for one in lines if known.get(one.n, one.hash) != one.hash), None)
    if changed is not None:
        return f"{changed}: expected the one that is kept beside the watch; got another"
    if lines and (not recent or lines[-1].n > recent[-1].n):
        return f"{lines[-1].n}: expected it beside the watch; it is not there"
    return None


_record: Final = msgspec.json.Decoder(Record)


def record_in(document: Document) -> Record:
    """What a document of the store holds. Raises `StoreCorrupt`: something else."""
    return read(_record, document, "the record of verdicts") or Record()


def document_of(record: Record) -> bytes:
    """`record` as the body of a document."""
    return written(record)


# --- explained ----------------------------------------------------------------------------------------------------


def understood(line: Line) -> Read:
    """What a line says. Raises `StoreCorrupt`: nothing that this release knows."""
    verdict = _verdict_in(line)
    try:
        return Read(
            n=line.n,
            inputs=checked_decode(_inputs, bytes(verdict.inputs)),
            outcome=checked_decode(_outcome, bytes(verdict.outcome)),
        )
    except (RemoteProtocolError, LocalProtocolError) as error:
        raise _strange(line, error) from error


def replay(line: Line, policy: Policy) -> Replay:
    """PROTOCOL 12.12: the verdict once more, from what was kept and by the policy that it names.

    Raises:
        LocalProtocolError: the policy is another one.
        StoreCorrupt: the line says nothing that this release knows.
    """
    verdict, known = _verdict_in(line), understood(line)
    if known.inputs.policy != policy.digest:
        raise LocalProtocolError(f"expected the policy {known.inputs.policy}; got {policy.digest}")
    again = written(_outcome_of(_decided(bytes(verdict.inputs), policy)))
    return Replay(kept=bytes(verdict.outcome), again=again)


def _verdict_in(line: Line) -> Verdict:
    try:
        return checked_decode(_verdict, line.body.encode())
    except (RemoteProtocolError, LocalProtocolError) as error:
        raise _strange(line, error) from error


def _strange(line: Line, error: Exception) -> StoreCorrupt:
    return StoreCorrupt(f"expected verdict {line.n} to be one; got something else, perhaps of a newer release: {error}")
