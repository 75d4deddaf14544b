"""What came out, as a document for programs and as tables for people."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
import msgspec

from ..show import Facts, Part, Said, Screen, Sheet
from .basics import V1, V2
from .proof import Outcome


def document(outcome: Outcome) -> dict[str, Any]:
    """The outcome as one JSON object."""
    lost = [write for write in outcome.writes if write.found == "lost"]
    return {
        "converged": outcome.converged,
        "writes_made": len(outcome.writes),
        "writes_current": outcome.number("current"),
        "writes_kept": outcome.number("kept"),
        "writes_lost": len(lost),
        "lost": [
            {"client": each.client, "id": each.id, "name": each.name, "says": each.says, "version": each.version}
            for each in lost
        ],
        "conflicts": [msgspec.to_builtins(each) for each in outcome.conflicts],
        "clients": [msgspec.to_builtins(each) for each in outcome.clients],
        "server_digest": outcome.server_digest,
        "counted_digest": outcome.counted_digest,
        "v1_digest": outcome.v1_digest,
        "imported": outcome.imported,
        "unread": len(outcome.unread),
        "unread_records": [msgspec.to_builtins(each) for each in outcome.unread],
        "seconds": outcome.seconds,
    }


def parts(outcome: Outcome) -> list[Part]:
    """The outcome for people."""
    clients = Sheet(
        title="Who took part",
        columns=("client", "asked for", "was served", "holds", "digest", "is that of"),
        rows=[
            (
                each.name,
                f"{each.asked} (by naming none)" if each.asked == V1 else each.asked,
                each.served or "nothing",
                f"{each.entities} {'entities' if each.asked == V2 else 'records'}",
                each.digest[:16],
                each.compared_with if each.equal else f"NOT {each.compared_with}",
            )
            for each in outcome.clients
        ],
    )
    conflicts = Sheet(
        title="Conflicts",
        columns=("of", "written by", "said", "against", "won by", "because"),
        rows=[
            (
                each.name,
                each.told_to,
                ", ".join(f"{field}={_short(value)}" for field, value in each.fields.items()),
                each.against or "?",
                each.winner or "?",
                each.resolution_strategy,
            )
            for each in outcome.conflicts
        ],
        empty="There were no conflicts.",
    )
    lost = [write for write in outcome.writes if write.found == "lost"]
    made, current, kept = len(outcome.writes), outcome.number("current"), outcome.number("kept")
    equal = "what the server tells, what a full read of it adds up to, and what both v2 clients hold"
    facts = [
        ("imported", f"{outcome.imported} devices from files; {len(outcome.unread)} records could not be read"),
        ("digest", f"{outcome.server_digest[:16]} told by the server, {outcome.counted_digest[:16]} counted anew"),
        ("equal", equal if outcome.converged else "NO: not everybody holds the same"),
        ("v1 and v7", "compared with what a v1 client gets that has never been here; it cannot see the rest"),
        ("writes", f"{made} made: {current} found in current rows, {kept} in rows that are kept, {len(lost)} lost"),
    ]
    result: list[Part] = [clients, conflicts, Facts(pairs=facts)]
    if outcome.unread:
        unread = [(each.place, each.reason, each.by_hand) for each in outcome.unread]
        result.insert(0, Sheet(title="Could not be read", columns=("place", "reason", "by hand"), rows=unread))
    if lost:
        rows = [(each.client, each.name, _short(each.says), each.version or "?") for each in lost]
        result.append(Sheet(title="LOST", columns=("client", "of", "said", "version"), rows=rows))
    verdict = "All hold the same, and no write was lost." if outcome.well else "This did NOT go well; see above."
    sentence = f"{verdict} ({outcome.seconds:.1f} s)"
    result.append(Said(sentence=sentence, cells=(sentence,)))
    return result


def show(outcome: Outcome, screen: Screen) -> None:
    """Print the outcome: tables on a terminal, the same in plain text in a pipe, or one JSON object."""
    if screen.as_json or sys.stdout.isatty():
        screen.show(document(outcome), *parts(outcome))
        return
    for part in parts(outcome):
        for text in [*_aligned(part), ""] if isinstance(part, Sheet | Facts) else part.plain():
            click.echo(text)


def _aligned(part: Sheet | Facts) -> list[str]:
    """A table without a terminal: columns in line, so that it can be read in a log."""
    if isinstance(part, Facts):
        rows, head = [list(pair) for pair in part.pairs], []
    elif not part.rows:
        return [part.empty]
    else:
        rows, head = [list(part.columns), *map(list, part.rows)], [part.title]
    rows = [["".join(letter if letter.isprintable() else "?" for letter in cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    told = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*head, *told]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
