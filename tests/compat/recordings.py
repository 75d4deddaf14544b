"""The exchanges that deployed peers and servers were recorded in, as files and as what was really sent.

The recorder masked secrets and clipped what was long; `load` puts back what was clipped, so that a replay sends what
was sent. Masked tokens are for `replay` to fill in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from tests.conftest import SHARED

Body = dict[str, Any]

#: A few whole files that are always there, so that a run without the rest is no green one without a test.
KEPT: Final = Path(__file__).parent / "data"
RECORDED: Final = SHARED / "recorded"
#: Where there is a whole set of recordings, by name.
SETS: Final = {"kept": KEPT} | ({"all": RECORDED} if RECORDED.is_dir() else {})

_CLIPPED: Final = re.compile(r"(.*)\.\.\.<(\d+) (chars|items), clipped by recorder>", re.DOTALL)
_ROW: Final = re.compile(r"n(\d+)")
_VERSION: Final = "2026-11-23T01:53:18.{micros:06d}+00:00-{counter:06d}-rec"


class Recording(NamedTuple):
    """One exchange. `body` is what was sent, None if nothing was; `answer` is JSON, or the text that was none.

    `clipped` says that lists of the answer hold their first items only.
    """

    name: str
    note: str
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int
    answer: Any
    clipped: bool


def load(folder: Path) -> list[Recording]:
    """The recordings in a folder, in the order in which they were recorded."""
    files = sorted(folder.glob("*.json"), key=lambda file: int(file.stem.partition("-")[0]))
    texts = {file.stem: json.loads(file.read_text()) for file in files}
    rows = {index: row for text in texts.values() for index, row in _rows(text["response"]["body"])}
    return [_recording(name, text, rows) for name, text in texts.items()]


def _recording(name: str, text: Body, rows: dict[int, Body]) -> Recording:
    request, response = text["request"], text["response"]
    answer, clipped = _without_marks(response["body"])
    return Recording(
        name=name,
        note=text["note"],
        method=request["method"],
        path=request["path"],
        headers=request.get("headers") or {},
        body=_unclipped(request["body"], rows),
        status=response["status"],
        answer=answer,
        clipped=clipped,
    )


def _rows(answer: Any) -> Iterator[tuple[int, Body]]:
    """The rows of the large batch that an answer shows, with their places in it."""
    changes = answer.get("changes") if isinstance(answer, dict) else None
    for change in changes if isinstance(changes, list) else ():
        row = change.get("entity") if isinstance(change, dict) else None
        found = _ROW.fullmatch(row["name"]) if row else None
        if row and found:
            yield int(found[1]), row


def _unclipped(value: Any, rows: dict[int, Body]) -> Any:
    """What was sent: a clipped text is its first letter over and over, a clipped list the rows of the large batch."""
    if isinstance(value, dict):
        return {key: _unclipped(each, rows) for key, each in value.items()}
    if isinstance(value, list):
        last = _CLIPPED.fullmatch(value[-1]) if value and isinstance(value[-1], str) else None
        if last is None:
            return [_unclipped(each, rows) for each in value]
        return value[:-1] + [_change(index, rows.get(index)) for index in range(len(value) - 1, int(last[2]))]
    found = _CLIPPED.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else found[1][0] * int(found[2])


def _change(index: int, row: Body | None) -> Body:
    """A change of the large batch: the one that a later answer shows, else one like those around it."""
    made = {
        "id": str(uuid5(NAMESPACE_URL, f"n{index}")),
        # Rows were made in turn within 14 ms; which of them at which microsecond is not known of all.
        "version": _VERSION.format(micros=351_300 + 7 * index, counter=31 + index),
        "entity_type": "note",
        "name": f"n{index}",
        "content": {"k": index},
        "source_type": "manual",
        "user_id": "rec",
        "parent_versions": [],
    }
    known = {name: row[name] for name in made} if row else {}
    return {"change_type": "create", "entity": made | known, "relationships": []}


def _without_marks(value: Any) -> tuple[Any, bool]:
    """An answer without the marks of the recorder, and whether a list of it was cut."""
    if isinstance(value, dict):
        parts = {key: _without_marks(each) for key, each in value.items()}
        return {key: part for key, (part, _) in parts.items()}, any(cut for _, cut in parts.values())
    if isinstance(value, list):
        kept = [each for each in value if not (isinstance(each, str) and _CLIPPED.fullmatch(each))]
        items = [_without_marks(each) for each in kept]
        return [part for part, _ in items], len(kept) < len(value) or any(cut for _, cut in items)
    return _unclipped(value, {}) if isinstance(value, str) else value, False
