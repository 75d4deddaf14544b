"""How the command line shows what it has to say: tables on a terminal, plain lines in a pipe, one document as JSON.

A command hands `Screen.show` the JSON document and the parts that say the same to people. Nothing that a peer sent
reaches a terminal as it is: control characters, and with them escape sequences, are replaced (`line`).
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, Final

import click

from inbetweenies.errors import InbetweeniesError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from inbetweenies.model import Entity, Relationship
    from inbetweenies.replica import Pending

    from .live import Event
    from .reports import Notice, Status, SyncReport, Version
    from .store import ConflictRecord

#: Characters of an id that a table shows at least; more where two ids on it would otherwise look the same.
SHORT_MIN: Final = 8
SHOWN_MAX: Final = 5  # notices that people are shown of all that are remembered


class Problem(Exception):
    """Something that a person can put right, told in one sentence; `code` is its name for programs.

    Attributes:
        code: a word with underscores, stable.
        message: what was expected, what was got, where.
        advice: what to do next; empty if the message says it.
        exit_code: 1 for what failed, 2 for a misuse of the command line.
        more: further fields of the JSON document, such as candidates.
    """

    def __init__(
        self, code: str, message: str, advice: str = "", *, exit_code: int = 1, more: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.advice = advice
        self.exit_code = exit_code
        self.more = more or {}


def line(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal would obey."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "�" for letter in text)


def shortened(ids: Iterable[str]) -> dict[str, str]:
    """Each id to its shortest beginning that tells it from the others, of at least `SHORT_MIN` characters."""
    ordered = sorted(set(ids))
    # Beginnings are shared most with a neighbour in the order.
    shared = [_shared(one, other) for one, other in pairwise(["", *ordered, ""])]
    return {id_: id_[: max(SHORT_MIN, *ends)] for id_, ends in zip(ordered, pairwise(shared), strict=True)}


def _shared(one: str, other: str) -> int:
    """At which character, counted from 1, two texts part."""
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in pairs) + 1


# --- parts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Rows under columns. In a pipe a row is a line of cells between tabs, after `tag` if there is one.

    The columns in `ids` hold ids, which a table shortens. `empty` is what a person reads where there are no rows.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    ids: frozenset[str] = frozenset()
    title: str = ""
    tag: str = ""
    empty: str = ""

    def plain(self) -> list[str]:
        """The lines for a pipe."""
        tag = (self.tag,) if self.tag else ()
        return ["\t".join(map(line, (*tag, *row))) for row in self.rows]

    def rich(self) -> RenderableType | None:
        """The table for a terminal."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        if not self.rows:
            return Text(self.empty, style="dim") if self.empty else None
        table = Table(box=box.SIMPLE_HEAD, title=self.title or None, title_justify="left", pad_edge=False)
        cells = [list(map(line, row)) for row in self.rows]
        for index, column in enumerate(self.columns):
            if column in self.ids:
                table.add_column(column, no_wrap=True, style="cyan")
                short = shortened(row[index] for row in cells)
                for row in cells:
                    row[index] = short[row[index]]
            else:
                table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))
        return table


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Names and values. In a pipe a line each, with a tab between them."""

    pairs: Sequence[tuple[str, str]]

    def plain(self) -> list[str]:
        """The lines for a pipe."""
        return [f"{line(name)}\t{line(value)}" for name, value in self.pairs]

    def rich(self) -> RenderableType | None:
        """The grid for a terminal."""
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="bold")
        grid.add_column(overflow="fold")
        for name, value in self.pairs:
            grid.add_row(Text(line(name)), Text(line(value)))
        return grid


@dataclass(frozen=True, kw_only=True)
class Said:
    """One thing that was done: a sentence for people, its cells between tabs for a pipe."""

    sentence: str
    cells: tuple[str, ...] = ()

    def plain(self) -> list[str]:
        """The line for a pipe."""
        return ["\t".join(map(line, self.cells))] if self.cells else []

    def rich(self) -> RenderableType | None:
        """The sentence for a terminal."""
        from rich.text import Text

        return Text(line(self.sentence))


Part = Sheet | Facts | Said


# --- the screen ---------------------------------------------------------------------------------------------------


class Screen:
    """Where a command says what it has to say. Results go to stdout, everything else to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # What the encoding of a stream cannot hold is shown as an escape.
                stream.reconfigure(errors="backslashreplace")

    def show(self, document: dict[str, Any], *parts: Part) -> None:
        """The result of a command: `document` as JSON, or the `parts` that say the same."""
        with self._writing():
            if self.as_json:
                _echo_json(document)
            elif _is_terminal(sys.stdout):
                console = _console(stderr=False)
                for part in parts:
                    if (shown := part.rich()) is not None:
                        console.print(shown)
            else:
                for text in (text for part in parts for text in part.plain()):
                    click.echo(text)

    def raw(self, data: bytes) -> None:
        """A part of a file that goes to stdout, as it is."""
        with self._writing():
            click.echo(data, nl=False)

    def flush(self) -> None:
        """See to it that what was shown has arrived."""
        with self._writing():
            if sys.stdout is not None:
                sys.stdout.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            self.give_up()
            raise Problem("output", f"expected to write the result; the system says: {error.strerror}") from None

    def give_up(self) -> None:
        """Nobody can be told on stdout any more. What is still buffered goes nowhere, or Python would complain."""
        self.as_json = False
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def problem(self, problem: Problem) -> None:
        """Something went wrong."""
        told = {"code": problem.code, "message": problem.message}
        if problem.advice:
            told["advice"] = problem.advice
        if self.as_json:
            try:
                return self.show({"error": told | problem.more})
            except (Problem, BrokenPipeError):
                self.give_up()
        self.note(f"{problem.message}; {problem.advice}" if problem.advice else problem.message, word="Error")
        for candidate in problem.more.get("candidates", ()):
            click.echo("  " + "\t".join(map(line, candidate.values())), err=True)
        return None

    def note(self, text: str, *, word: str = "Note") -> None:
        """A line beside the result, on stderr."""
        if _is_terminal(sys.stderr):
            from rich.text import Text

            style = "bold red" if word == "Error" else "bold yellow"
            _console(stderr=True).print(Text.assemble((f"{word}: ", style), line(text)), soft_wrap=True)
        else:
            click.echo(f"{word}: {line(text)}", err=True)

    @contextmanager
    def progress(self, doing: str) -> Iterator[Callable[[int, int | None], None]]:
        """A bar on stderr while something takes long, if a person looks on. Call with (done, of) as it goes on."""
        if self.as_json or not _is_terminal(sys.stderr):
            yield lambda _done, _of: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=_console(stderr=True), transient=True) as bar:
            task = bar.add_task(line(doing), total=None)
            yield lambda done, of: bar.update(task, completed=done, total=of)


def _echo_json(document: dict[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False)
    if not text.isprintable():
        # Only inside of strings; JSON may hold it as it is, a terminal would obey it.
        text = "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
    # JSON between programs is UTF-8 (RFC 8259), whatever the encoding of the terminal.
    click.echo(text.encode())


def _is_terminal(stream: Any) -> bool:
    # Asked of the stream alone: FORCE_COLOR is set on build servers, and a pipe must stay plain there.
    return stream is not None and bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


# --- values -------------------------------------------------------------------------------------------------------


def value_of(text: str) -> Any:
    """`text` as JSON if it is JSON, else as the text that it is."""
    import msgspec

    from inbetweenies.limits import gate

    try:
        gate(text.encode())
        return msgspec.json.decode(text)
    except (InbetweeniesError, msgspec.MsgspecError, ValueError, RecursionError):
        return text


def written(value: Any) -> str:
    """`value` as `value_of` reads it back."""
    import json

    plain = isinstance(value, str) and value and value_of(value) == value and isinstance(value_of(value), str)
    return str(value) if plain else json.dumps(value, ensure_ascii=False)


def at(micros: int | None) -> str:
    """A time for people: to the second, in UTC."""
    from inbetweenies.model import format_time

    return "never" if micros is None else format_time(micros)[:19].replace("T", " ") + "Z"


def edited(version: str) -> str:
    from inbetweenies.model import edit_time

    when = edit_time(version)
    return "unknown" if when is None else at(when)


def leaves(content: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """`content` as the pairs that ``set`` takes."""
    pairs: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict) and value:
            pairs += leaves(value, f"{above}{key}.")
        else:
            pairs.append((f"{above}{key}", written(value)))
    return pairs


def json_of(raw: Any) -> Any:
    import msgspec

    return msgspec.json.decode(raw)


def many(count: int, word: str) -> str:
    """A count and its word."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


# --- things and links: the JSON documents -------------------------------------------------------------------------

Waiting = Mapping[tuple[str, str], str]


def is_removed(value: Entity | Relationship) -> bool:
    """Whether this row is a tombstone."""
    from inbetweenies.model import Entity, says_deleted

    return says_deleted(value.content if isinstance(value, Entity) else value.properties)


def entity_document(entity: Entity, waiting: Waiting) -> dict[str, Any]:
    """A thing as JSON. `waiting` says of each key what waits to be sent."""
    return {
        "id": entity.id,
        "entity_type": entity.entity_type,
        "name": entity.name,
        "content": json_of(entity.content),
        "source_type": entity.source_type,
        "user_id": entity.user_id,
        "version": entity.version,
        "parent_versions": list(entity.parent_versions),
        "deleted": is_removed(entity),
        "state": waiting.get(("entity", entity.id), "synced"),
    }


def edge_document(edge: Relationship, names: Mapping[str, str], waiting: Waiting) -> dict[str, Any]:
    """A link as JSON. `names` says what its ends are called."""
    return {
        "id": edge.id,
        "from": {"id": edge.from_entity_id, "name": names.get(edge.from_entity_id, "")},
        "to": {"id": edge.to_entity_id, "name": names.get(edge.to_entity_id, "")},
        "relationship_type": edge.relationship_type,
        "properties": json_of(edge.properties),
        "user_id": edge.user_id,
        "version": edge.version,
        "deleted": is_removed(edge),
        "state": waiting.get(("edge", edge.id), "synced"),
    }


def _state(document: Mapping[str, Any]) -> str:
    words = ["deleted"] if document["deleted"] else []
    return " ".join([*words, document["state"]] if document["state"] != "synced" else words)


# --- what each command shows: its document, then the parts that say the same --------------------------------------

Shown = tuple[Any, ...]  # a document and its parts, as `Screen.show` takes them


def list_parts(found: Iterable[Entity], waiting: Waiting, *, narrowed: bool) -> Shown:
    """Things, a line each."""
    listed = [entity_document(entity, waiting) for entity in found]
    sheet = Sheet(
        columns=("id", "type", "name", "state"),
        ids=frozenset({"id"}),
        rows=[(one["id"], one["entity_type"], one["name"], _state(one)) for one in listed],
        empty="Nothing like that here." if narrowed else "Nothing here yet; `blowing-off add TYPE NAME` adds a thing.",
    )
    return {"things": listed}, sheet


def thing_parts(entity: Entity, edges: Iterable[Relationship], names: Mapping[str, str], waiting: Waiting) -> Shown:
    """All of a thing, and its links."""
    document = entity_document(entity, waiting)
    links = [edge_document(edge, names, waiting) for edge in edges]
    facts = Facts(
        pairs=[
            ("id", entity.id),
            ("type", entity.entity_type),
            ("name", entity.name),
            ("state", _state(document) or "synced"),
            ("changed", f"{edited(entity.version)} by {entity.user_id}"),
            ("source", entity.source_type),
            *((f".{key}", value) for key, value in leaves(document["content"])),
        ]
    )
    rows = []
    for link in links:
        way = "to" if link["from"]["id"] == entity.id else "from"
        rows.append((link["id"], way, link["relationship_type"], link[way]["id"], link[way]["name"]))
    sheet = Sheet(
        title="Links",
        tag="link",
        columns=("link", "way", "type", "id", "name"),
        ids=frozenset({"link", "id"}),
        rows=rows,
    )
    return {"thing": document, "links": links}, facts, sheet


def history_parts(id_: str, versions: Iterable[Version]) -> Shown:
    """The versions of a thing."""
    listed, rows = [], []
    for one in versions:
        document = entity_document(one.entity, {})
        del document["state"]
        listed.append(document | {"current": one.current, "pending": one.pending, "source": one.source})
        words = [word for word in ("current", "pending") if getattr(one, word)]
        words += ["deleted"] if document["deleted"] else []
        words += ["on the server"] if one.source == "server" else []
        content = " ".join(f"{key}={value}" for key, value in leaves(document["content"]) if key != "deleted")
        version = one.entity.version
        rows.append((version, edited(version), one.entity.user_id, " ".join(words), one.entity.name, content))
    sheet = Sheet(columns=("version", "changed", "by", "state", "name", "content"), rows=rows)
    return {"id": id_, "versions": listed}, sheet


def done_parts(word: str, entity: Entity, waiting: Waiting) -> Shown:
    """What was done to a thing."""
    said = Said(
        sentence=f"{word.capitalize()}: {entity.entity_type} “{entity.name}” ({entity.id}).",
        cells=(word, entity.id, entity.entity_type, entity.name),
    )
    return {"done": word, "thing": entity_document(entity, waiting)}, said


def linked_parts(word: str, edge: Relationship, names: Mapping[str, str], waiting: Waiting) -> Shown:
    """What was done to a link."""
    document = edge_document(edge, names, waiting)
    start, end = document["from"], document["to"]
    said = Said(
        sentence=f"{word.capitalize()}: “{start['name']}” {edge.relationship_type} “{end['name']}” ({edge.id}).",
        cells=(word, edge.id, start["id"], end["id"], edge.relationship_type),
    )
    return {"done": word, "link": document}, said


def sync_parts(report: SyncReport) -> Shown:
    """What a sync did."""
    counts = {
        "pushed": report.pushed,
        "pulled": report.pulled,
        "pending": report.pending,
        "conflicts": len(report.conflicts),
    }
    document = {
        "served": report.served,
        **counts,
        "refused": [{"id": one.id, "code": one.code, "detail": one.detail} for one in report.refused],
        "healed": report.healed,
        "rewound": report.rewound,
        "lost": report.lost,
        "offered": report.offered,
        "discarded": report.discarded,
        "forked": report.forked,
        "equal": report.equal,
        "complete": report.complete,
        "notices": [notice_document(one) for one in report.notices],
    }
    return document, Said(sentence=_synced(report), cells=("synced", *map(str, counts.values())))


def event_parts(event: Event) -> Shown:
    """One thing that happened while watching."""
    report = None if event.report is None else sync_parts(event.report)[0]
    document = {
        "event": event.kind,
        "changed": list(event.changed),
        "reason": event.reason or None,
        "retry_seconds": event.retry_s,
        "report": report,
        "notices": [notice_document(one) for one in event.notices],
    }
    match event.kind:
        case "synced":
            sentence = _synced(event.report)
        case "news":
            came = [f"{many(len(event.changed), 'change')} came in."] if event.changed else []
            sentence = " ".join([*came, *map(_noted, event.notices)])
        case "offline":
            sentence = f"Offline: {event.reason}. Tried again; nothing is lost meanwhile."
        case _:
            sentence = f"{event.reason}; asking every {event.retry_s:g} s instead."
    return document, Said(sentence=sentence, cells=(event.kind, str(len(event.changed)), event.reason))


def _synced(report: SyncReport) -> str:
    parts = [f"Sent {many(report.pushed, 'change')}, fetched {report.pulled}."]
    if report.rewound:
        lost = f"{many(report.lost, 'change')} that this store knows of" if report.lost else "nothing known here"
        parts.append(f"The server was set back and had lost {lost}; {report.offered} given back.")
    if report.discarded:
        parts.append(f"Its operator took back {many(report.discarded, 'change')}; they stay in the history.")
    if report.forked:
        parts.append("Another copy of this store has synced as well; this one goes on under a device name of its own.")
    if report.healed:
        parts.append("A difference was found, and what differs was exchanged.")
    if report.equal:
        parts.append("Both sides hold the same.")
    elif report.equal is False:
        parts.append("The server says that it holds something else.")
    if report.pending:
        parts.append(f"{many(report.pending, 'change')} still waiting.")
    return " ".join([*parts, *map(_noted, report.notices)])


def _noted(notice: Notice) -> str:
    return f"{notice.title}: {notice.message}"


def notice_document(notice: Notice) -> dict[str, Any]:
    """A notice, in the shape in which a server tells it."""
    import msgspec

    return {
        "id": notice.id,
        "type": notice.kind,
        "title": notice.title,
        "message": notice.message,
        "severity": notice.severity,
        "timestamp": at(notice.at),
        "duration": notice.duration_s,
        "proof": msgspec.to_builtins(notice.proof),
        "new": notice.new,
    }


def status_parts(now: Status, conflicts: int) -> Shown:
    """Where a store stands. `conflicts` is how many nobody has looked at."""
    import msgspec

    document = {
        "store": now.path,
        "url": now.url,
        "user": now.user,
        "device": now.device,
        "wire_version": now.wire,
        "last_sync": None if now.last_sync is None else at(now.last_sync),
        "last_error": now.last_error,
        "things": now.counts.entities,
        "links": now.counts.relationships,
        "removed": now.counts.tombstones,
        "pending": now.pending,
        "conflicts": conflicts,
        "refused": msgspec.to_builtins(now.refused),
        "notices": [notice_document(one) for one in now.notices],
    }
    facts = Facts(
        pairs=[
            ("store", now.path),
            ("server", now.url or "none"),
            ("user", now.user),
            ("device", now.device),
            ("last sync", at(now.last_sync)),
            *([("last error", now.last_error)] if now.last_error else []),
            *([("wire version", now.wire)] if now.wire else []),
            *((word, str(document[word])) for word in ("things", "links", "removed", "pending", "conflicts")),
        ]
    )
    sheet = Sheet(
        title="Waits for a reason",
        tag="refused",
        columns=("id", "name", "why", "what to do"),
        ids=frozenset({"id"}),
        rows=[(one.id, one.name, f"{one.code}: {one.detail}", one.advice) for one in now.refused],
    )
    told = Sheet(
        title="Told by the server",
        tag="notice",
        columns=("when", "what", "message"),
        rows=[
            (at(one.at), f"{one.title}{' (new)' if one.new else ''}", one.message) for one in now.notices[:SHOWN_MAX]
        ],
    )
    return document, facts, sheet, told


def pending_parts(waiting: Iterable[Pending]) -> Shown:
    """What waits to be sent."""
    listed, rows = [], []
    for item in waiting:
        copy, note = item.copy, item.note
        kind = "thing" if copy.kind == "entity" else "link"
        listed.append(
            {
                "kind": kind,
                "id": copy.id,
                "version": copy.version,
                "type": copy.entity_type,
                "name": copy.name,
                "deleted": copy.deleted,
                "reason": None if note is None else {"code": note.code, "detail": note.detail},
            }
        )
        why = "" if note is None else f"{note.code}: {note.detail}"
        rows.append((copy.id, kind, copy.entity_type, copy.name, edited(copy.version), why))
    sheet = Sheet(
        columns=("id", "kind", "type", "name", "changed", "why it waits"),
        ids=frozenset({"id"}),
        rows=rows,
        empty="Nothing waits.",
    )
    return {"pending": listed}, sheet


def conflict_parts(found: Iterable[ConflictRecord]) -> Shown:
    """What two people changed at once."""
    listed, rows = [], []
    for one in found:
        listed.append(
            {
                "entity_id": one.entity_id,
                "name": one.name,
                "when": at(one.when),
                "winner": one.winner,
                "losers": list(one.losers),
                "strategy": one.strategy,
            }
        )
        rows.append((one.entity_id, one.name, at(one.when), one.winner, " ".join(one.losers), one.strategy))
    sheet = Sheet(
        columns=("id", "name", "found", "stands", "kept in the history", "why"),
        ids=frozenset({"id"}),
        rows=rows,
        empty="No conflicts.",
    )
    return {"conflicts": listed}, sheet


def import_parts(counts: Mapping[str, int], columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> Shown:
    """What became of a file, and what of it could not be read."""
    told = [(word, count) for word, count in [*counts.items(), ("unread", len(rows))] if count or word == "imported"]
    cells = [tuple(map(str, row)) for row in rows]
    sheet = Sheet(title="Could not be read", tag="unread", columns=columns, rows=cells)
    document = {**counts, "unread": [dict(zip(columns, row, strict=True)) for row in rows]}
    return document, Facts(pairs=[(word, str(count)) for word, count in told]), sheet


def check_parts(document: dict[str, Any], sentence: str) -> Shown:
    """What is known of updates."""
    words = {
        "running": "this release",
        "available": "available",
        "server": "server",
        "installed": "installed",
        "policy": "updates",
        "place": "come from",
    }
    facts = [(word, str(document[key])) for key, word in words.items() if document[key] is not None]
    facts += [("not tried again", f"{release}: {why}") for release, why in document["bad"].items()]
    facts += [("paused", document["paused"])] if document["paused"] else []
    facts += [("what to do", sentence)] if sentence else []
    return document, Facts(pairs=facts)


def updated_parts(document: dict[str, Any], sentence: str) -> Shown:
    """What an update did."""
    cells = tuple(str(document.get(key, "")) for key in ("done", "from", "to", "pending"))
    return document, Said(sentence=sentence, cells=cells)
