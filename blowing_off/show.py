"""How the command line shows what it has to say: tables on a terminal, plain lines in a pipe, one document as JSON.

A command hands `Screen.show` the JSON document and the parts that say the same to people. Nothing that a peer sent
reaches a terminal as it is: control characters, and with them escape sequences, are replaced (`line`).
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Characters of an id that a table shows at least; more where two ids on it would otherwise look the same.
SHORT_MIN: Final = 8


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
        if self.as_json:
            self._document(document)
        elif _is_terminal(sys.stdout):
            console = _console(stderr=False)
            for part in parts:
                if (shown := part.rich()) is not None:
                    console.print(shown)
        else:
            for text in (text for part in parts for text in part.plain()):
                click.echo(text)

    def raw(self, text: str) -> None:
        """One line of a file that goes to stdout, as it is."""
        click.echo(text.encode(errors="surrogatepass"))

    def problem(self, problem: Problem) -> None:
        """Something went wrong."""
        if self.as_json:
            told = {"code": problem.code, "message": problem.message}
            if problem.advice:
                told["advice"] = problem.advice
            self._document({"error": told | problem.more})
        else:
            self.note(f"{problem.message}; {problem.advice}" if problem.advice else problem.message, word="Error")

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

    def _document(self, document: dict[str, Any]) -> None:
        text = json.dumps(document, ensure_ascii=False)
        if not text.isprintable():
            # Only inside of strings; JSON may hold it as it is, a terminal would obey it.
            text = "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
        # JSON between programs is UTF-8 (RFC 8259), whatever the encoding of the terminal.
        click.echo(text.encode())


def _is_terminal(stream: Any) -> bool:
    # Asked of the stream alone: FORCE_COLOR is set on build servers, and a pipe must stay plain there.
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
