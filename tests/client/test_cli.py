"""The command line: what a person types, what comes back on which stream, and with which exit code."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from blowing_off import cli, show
from blowing_off.client import BlowingOffClient
from tests.server.calls import ROOT, Process, running

DUMPS = Path(__file__).parents[3] / "shared/data/homekit"
CANARY = "tok-canary-5f0d9c"
ESCAPE = "\x1b"


class Done(Struct, frozen=True, kw_only=True):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on standard output."""
        lines = self.out.splitlines()
        assert 1 == len(lines), self.out
        return json.loads(lines[0])

    @property
    def rows(self) -> list[list[str]]:
        """The lines of standard output, cell by cell."""
        assert ESCAPE not in self.out
        return [line.split("\t") for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process, on a store and in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOWING_OFF_STORE", str(tmp_path / "home.db"))
    monkeypatch.delenv("BLOWING_OFF_TOKEN", raising=False)

    def call(*arguments: str) -> Done:
        capfd.readouterr()
        code = cli.invoke(arguments)
        told = capfd.readouterr()
        return Done(code=code, out=told.out, err=told.err)

    return call


def added(done: Done) -> str:
    """The id of what `add` added."""
    assert 0 == done.code, done.err
    return done.rows[0][1]


def environment(store: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "BLOWING_OFF_TOKEN"}
    return {**kept, "PYTHONPATH": str(ROOT), "BLOWING_OFF_STORE": str(store), **more}


COMMAND = [sys.executable, "-m", "blowing_off.cli"]


def process(store: Path, *arguments: str, **more: str) -> Done:
    """The command line in a process of its own, between pipes."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(store, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Done(code=done.returncode, out=done.stdout, err=done.stderr)


class Terminal:
    """A process on a terminal: what it shows, and what a person types."""

    def __init__(self, store: Path, *arguments: str, **more: str) -> None:
        self.parent, child = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=environment(store, TERM="xterm-256color", COLUMNS="120", **more),
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
        )
        os.close(child)
        self.shown = ""

    def until(self, text: str) -> None:
        """Read on until `text` was shown."""
        while text not in self.shown:
            self.shown += os.read(self.parent, 65536).decode()

    def type(self, text: str) -> None:
        os.write(self.parent, text.encode())

    def end(self) -> int:
        """Read to the end and return the exit code."""
        try:
            while data := os.read(self.parent, 65536):
                self.shown += data.decode()
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(self.parent)
        return self.process.wait(30)


# --- help ---------------------------------------------------------------------------------------------------------

NAMES = sorted(cli.commands.commands)


def test_help_lists_every_command_in_a_whole_sentence(run: Run) -> None:
    told = run("--help")

    assert 0 == told.code
    listed = re.findall(r"^  ([a-z-]+)  +(.*)$", told.out.partition("Commands:")[2], re.MULTILINE)
    assert NAMES == [name for name, _ in listed]
    assert all(sentence.endswith(".") and "..." not in sentence for _, sentence in listed), told.out


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_every_command_has_an_example_that_it_understands(run: Run, name: str) -> None:
    told = run(name, "--help")

    assert 0 == told.code
    examples = [line.strip() for line in told.out.splitlines() if line.startswith("    blowing-off ")]
    assert examples
    for example in examples:
        _, named, *arguments = shlex.split(example)
        assert name == named
        with click.Context(
            cli.commands, info_name="blowing-off", obj=cli.Session(screen=show.Screen(as_json=False))
        ) as above:
            cli.commands.commands[name].make_context(name, arguments, parent=above)


def test_help_loads_nothing_that_takes_long() -> None:
    slow = "{'asyncio', 'httpx', 'msgspec', 'rich', 'sqlite3', 'ssl', 'tempfile'}"
    code = (
        f"import sys; from blowing_off.cli import invoke; invoke(['--help']); sys.exit(str({slow} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "set()" == done.stderr.strip()


def test_the_release_is_told(run: Run) -> None:
    told = run("--version")

    assert 0 == told.code
    assert re.fullmatch(r"blowing-off \d+\.\d+\.\d+\n", told.out)


def test_no_command_at_all_shows_the_help_and_is_a_misuse(run: Run) -> None:
    told = run()

    assert (2, "") == (told.code, told.out)
    assert "Commands:" in told.err
    assert "misuse" == run("--json").json["error"]["code"]


# --- things -------------------------------------------------------------------------------------------------------


def test_a_thing_is_added_shown_changed_removed_and_brought_back(run: Run) -> None:
    lamp = added(run("add", "device", "Desk lamp", "maker=Acme", "watts=9.5", "bulb.color=warm", "on=true", 'code="7"'))
    shown = run("show", "desk LAMP", "--json").json["thing"]

    assert {"maker": "Acme", "watts": 9.5, "bulb": {"color": "warm"}, "on": True, "code": "7"} == shown["content"]
    assert ("device", "Desk lamp", "pending", False) == tuple(
        shown[field] for field in ("entity_type", "name", "state", "deleted")
    )

    assert [["changed", lamp, "device", "Reading lamp"]] == run(
        "set", "Desk lamp", "watts=7", "bulb.color=", "bulb.hue=30", "--name", "Reading lamp"
    ).rows
    assert {"maker": "Acme", "watts": 7, "bulb": {"hue": 30}, "on": True, "code": "7"} == run(
        "show", lamp, "--json"
    ).json["thing"]["content"]

    assert [["removed", lamp, "device", "Reading lamp"]] == run("rm", lamp[:8]).rows
    assert [] == run("list").rows
    assert [[lamp, "device", "Reading lamp", "deleted pending"]] == run("list", "--deleted").rows
    assert [["unchanged", lamp, "device", "Reading lamp"]] == run("rm", lamp).rows

    refused = run("set", lamp, "watts=1")
    assert 1 == refused.code
    back = shlex.split(refused.err.split("`")[1])
    assert 0 == run(*back[1:]).code
    assert [[lamp, "device", "Reading lamp", "pending"]] == run("list").rows

    versions = run("history", lamp).rows
    assert ["Reading lamp", "Reading lamp", "Reading lamp", "Desk lamp"] == [row[4] for row in versions]
    assert ["current pending", "deleted pending", "pending", "pending"] == [
        " ".join(sorted(row[3].split())) if row[3] else "" for row in versions
    ]


def test_what_changes_nothing_makes_no_version(run: Run) -> None:
    lamp = added(run("add", "device", "Lamp", "watts=7"))

    assert "unchanged" == run("set", lamp, "watts=7", "--name", "Lamp").rows[0][0]
    assert 1 == len(run("history", lamp).rows)


def test_a_thing_is_put_into_its_place(run: Run) -> None:
    home = added(run("add", "home", "Our home"))
    room = added(run("add", "room", "Kitchen", "--in", "our home"))
    lamp = added(run("add", "device", "Lamp", "--in", room[:8]))

    links = run("show", "Kitchen", "--json").json["links"]

    assert {("part_of", room, home), ("located_in", lamp, room)} == {
        (link["relationship_type"], link["from"]["id"], link["to"]["id"]) for link in links
    }


def test_a_device_that_is_called_like_its_room_is_not_taken_for_it(run: Run) -> None:
    room = added(run("add", "room", "Kitchen"))
    added(run("add", "device", "Kitchen", "--in", "Kitchen"))
    added(run("add", "device", "Lamp", "--in", "Kitchen"))

    assert [room] == [link["to"]["id"] for link in run("show", "Lamp", "--json").json["links"]]
    assert 1 == run("rm", "Kitchen").code


def test_nothing_is_added_when_its_place_is_not_there(run: Run) -> None:
    added(run("add", "home", "Our home"))

    assert 1 == run("add", "device", "Lamp", "--in", "Cellar").code
    assert ["Our home"] == [row[2] for row in run("list").rows]


def test_list_takes_a_type_and_a_part_of_the_name(run: Run) -> None:
    for kind, name in (("room", "Kitchen"), ("device", "Kitchen lamp"), ("device", "Desk lamp")):
        added(run("add", kind, name))

    assert ["Desk lamp", "Kitchen lamp"] == [row[2] for row in run("list", "device").rows]
    assert ["Kitchen", "Kitchen lamp"] == [row[2] for row in run("list", "--text", "KITCHEN").rows]
    assert ["Kitchen lamp"] == [row[2] for row in run("list", "DEVICE", "--text", "kitchen").rows]
    assert (0, "") == (run("list", "door").code, run("list", "door").out)


def test_links_are_made_once_found_by_their_beginning_and_removed(run: Run) -> None:
    switch, lamp = added(run("add", "device", "Switch")), added(run("add", "device", "Lamp"))
    made = run("link", "Switch", "Lamp", "controls", "channel=2").rows[0]

    assert ["linked", switch, lamp, "controls"] == [made[0], *made[2:]]
    assert ["unchanged", made[1]] == run("link", "Switch", "Lamp", "controls", "channel=2").rows[0][:2]
    assert [["link", made[1], "to", "controls", lamp, "Lamp"]] == run("show", "Switch").rows[-1:]
    assert [["link", made[1], "from", "controls", switch, "Switch"]] == run("show", "Lamp").rows[-1:]

    assert ["unlinked", made[1]] == run("unlink", made[1][:8]).rows[0][:2]
    assert ["unchanged", made[1]] == run("unlink", made[1][:8]).rows[0][:2]
    assert [] == run("show", "Switch", "--json").json["links"]
    assert 1 == run("unlink", "zzz").code
    assert 1 == run("unlink", "").code


def test_status_and_pending_tell_what_waits(run: Run) -> None:
    room, lamp = added(run("add", "room", "Kitchen")), added(run("add", "device", "Lamp", "--in", "Kitchen"))

    told = run("status")
    facts = dict(told.rows)

    assert 3 == told.code
    assert ("2", "1", "3", "0", "never", "local") == tuple(
        facts[name] for name in ("things", "links", "pending", "conflicts", "last sync", "user")
    )
    assert [(room, "thing"), (lamp, "thing")] == [(row[0], row[1]) for row in run("pending").rows[:2]]
    assert ["thing", "thing", "link"] == [one["kind"] for one in run("pending", "--json").json["pending"]]


# --- finding ------------------------------------------------------------------------------------------------------


def test_what_means_several_things_lists_them(run: Run) -> None:
    ids = {added(run("add", "device", "Lamp")), added(run("add", "room", "lamp"))}

    told = run("rm", "LAMP")

    assert 1 == told.code
    assert ids == {line.split("\t")[0].strip() for line in told.err.splitlines()[1:]}
    error = run("show", "lamp", "--json").json["error"]
    assert "ambiguous" == error["code"]
    assert ids == {one["id"] for one in error["candidates"]}


def test_what_is_not_there_says_how_to_look(run: Run) -> None:
    added(run("add", "device", "Lamp"))

    told = run("show", "Lump")

    assert (1, "") == (told.code, told.out)
    assert "“Lump”" in told.err
    advised = shlex.split(told.err.split("`")[1])
    assert ["Lamp"] == [row[2] for row in run(*advised[1:]).rows]


def test_what_is_changed_is_not_guessed_from_a_part_of_its_name(run: Run) -> None:
    lamp = added(run("add", "device", "Desk lamp"))

    assert 0 == run("show", "desk").code
    for command in (["rm", "desk"], ["set", "desk", "a=1"], ["link", "desk", "desk", "controls"]):
        told = run(*command)
        assert 1 == told.code
        assert lamp in told.err
    assert 1 == len(run("history", lamp).rows)


def test_a_type_that_nobody_knows_is_kept_and_remarked_on(run: Run) -> None:
    told = run("add", "devcie", "Lamp")

    assert 0 == told.code
    assert "did you mean device?" in told.err
    assert ["devcie"] == [row[1] for row in run("list").rows]


def test_without_a_store_nothing_is_made_by_looking(run: Run, tmp_path: Path) -> None:
    for command in (["list"], ["status"], ["sync"], ["export"], ["show", "x"], ["rm", "x"]):
        told = run(*command, "--json")
        assert (1, "no_store") == (told.code, told.json["error"]["code"])
    assert [] == list(tmp_path.iterdir())


# --- misuse -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["list", "--frob"],
        ["show"],
        ["add", "room"],
        ["add", "device", "Lamp", "no-equals"],
        ["add", "device", "Lamp", "=1"],
        ["add", "device", "Lamp", "a..b=1"],
        ["add", "device", "Lamp", "a="],
        ["add", "device", "Lamp", "a=1", "a=2"],
        ["add", "device", "Lamp", "a=1", "a.b=2"],
        ["add", "device", "Lamp", "a.b=2", "a=1"],
        ["add", "device", "Lamp", "deleted=true"],
        ["add", "device", "Lamp", "--content", "[1]"],
        ["add", "device", "Lamp", "--content", "{"],
        ["add", "device", "Lamp", "--content", '{"deleted": 1}'],
        ["add", "device", "Lamp", "--content", "[" * 500],
        ["add", "dev\nice", "Lamp"],
        ["add", "", "Lamp"],
        ["add", "device", "Lamp", "--id", "a\tb"],
        ["add", "device", "Half \udcff"],
        ["add", "device", "Lamp", "--content", '{"a": "\\ud800"}'],
        ["add", "device", "Lamp", ".".join("a" * 80) + "=1"],
        ["add", "device", "NUL\0"],
        ["set", "Kitchen"],
        ["set", "Kitchen", "deleted=1"],
        ["list", "--store", ""],
        ["connect", "nonsense"],
        ["connect", "ftp://home.example"],
        ["connect", "http://home.example"],
        ["connect", "https://ann:secret@home.example"],
        ["connect", "https://home.example", "--user", "a\nb"],
    ],
)
def test_a_misuse_is_told_in_one_line_and_changes_nothing(run: Run, arguments: list[str]) -> None:
    room = added(run("add", "room", "Kitchen"))

    told = run(*arguments)

    assert (2, "") == (told.code, told.out)
    assert 1 == len(told.err.splitlines()), told.err
    assert told.err.startswith("Error: ")
    assert [room] == [row[0] for row in run("list").rows]


def test_an_option_may_stand_on_either_side_of_the_command(run: Run, tmp_path: Path) -> None:
    other = str(tmp_path / "other.db")
    room = added(run("--store", other, "add", "room", "Kitchen"))

    assert [room] == [row[0] for row in run("list", "--store", other).rows]
    assert [room] == [one["id"] for one in run("--json", "list", "--store", other).json["things"]]


# --- values -------------------------------------------------------------------------------------------------------

keys = st.text(st.characters(codec="utf-8", exclude_characters=".=\0"), min_size=1, max_size=5)
leaf = (
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["true", "null", "7", "1e3", '"', "{", "[1]", " 7", ""])
)
contents = st.dictionaries(
    keys,
    st.recursive(leaf, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3)),
    max_size=4,
).filter(lambda content: not content.get("deleted"))


@given(contents)
def test_what_show_writes_set_reads_back(content: dict[str, Any]) -> None:
    pairs = [f"{key}={value}" for key, value in show.leaves(content)]

    assert content == cli._settings(pairs, removes=True)


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_a_value_is_json_or_the_text_that_it_is(text: str) -> None:
    value = show.value_of(text)

    assert value == text or json.dumps(value) is not None


# --- JSON and plain lines -----------------------------------------------------------------------------------------


def test_every_command_says_one_json_document(run: Run, tmp_path: Path) -> None:
    (tmp_path / "dump.json").write_text(json.dumps(database("Lamp")))
    (tmp_path / "lines.jsonl").write_text("nonsense\n")
    room, lamp = added(run("add", "room", "Kitchen")), added(run("add", "device", "Lamp"))
    edge = run("link", room, lamp, "controls").rows[0][1]
    for line in (
        "list",
        "show Kitchen",
        "show nothing",
        "history Kitchen",
        "status",
        "pending",
        "conflicts",
        "resolve nothing",
        "add room Cellar",
        "set Kitchen a=1",
        "link Kitchen Cellar controls",
        f"unlink {edge}",
        "rm Cellar",
        "export",
        "export out.jsonl",
        "import out.jsonl",
        "import lines.jsonl",
        "import nowhere.jsonl",
        "import-homekit dump.json",
        "import-homekit nowhere.json",
        "sync",
        "connect http://127.0.0.1:9",
        "connect nowhere",
        "frobnicate",
    ):
        told = run(*shlex.split(line), "--json")
        assert isinstance(told.json, dict), line
        assert ("error" in told.json) == (told.code in (1, 2) and "unread" not in told.json), line


def test_names_cannot_speak_to_the_terminal(run: Run, tmp_path: Path) -> None:
    name = f"{ESCAPE}[2J\u202e\x9b\tLamp\n"
    lamp = added(run("add", "device", name, f"note={name}"))

    for command in (["list"], ["show", lamp], ["history", lamp], ["pending"], ["list", "--json"], ["rm", lamp]):
        told = run(*command)
        assert not set(told.out + told.err) & {ESCAPE, "\x9b", "\u202e"}, command
        assert 2 >= max(told.out.count("Lamp") - told.out.count("\n"), 0)
    assert name == run("list", "--deleted", "--json").json["things"][0]["name"]


def test_a_pipe_stays_plain_whatever_the_environment_says(tmp_path: Path) -> None:
    store = tmp_path / "home.db"
    process(store, "add", "room", "Küche")

    for more in ({"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1"}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}):
        told = process(store, "list", **more)
        assert (0, "") == (told.code, told.err)
        assert ESCAPE not in told.out
        assert told.out.split("\t")[2] in ("Küche", "K\\xfcche")
        assert "Küche" == json.loads(process(store, "list", "--json", **more).out.encode())["things"][0]["name"]


# --- terminals ----------------------------------------------------------------------------------------------------


def test_a_terminal_gets_tables_with_short_ids(tmp_path: Path) -> None:
    store = tmp_path / "home.db"
    lamp = added(process(store, "add", "device", "[red]Lamp[/red]", "watts=7"))

    terminal = Terminal(store, "list")
    assert 0 == terminal.end()

    assert ESCAPE in terminal.shown
    assert "[red]Lamp[/red]" in terminal.shown
    assert lamp[:8] in terminal.shown
    assert lamp not in terminal.shown

    shown = Terminal(store, "show", "lamp")
    assert 0 == shown.end()
    assert lamp in shown.shown
    assert ".watts" in shown.shown


def test_every_command_has_something_to_show_on_a_terminal(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy(run)
    dump(tmp_path / "bad.json", "Lamp", broken=[12])
    (tmp_path / "bad.jsonl").write_text("nonsense")
    monkeypatch.setattr(show, "_is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "200")
    for command, shown in {
        "list": "Kitchen",
        "list door": "Nothing like that here.",
        "show Kitchen": "located_in",
        "history 'Reading lamp'": "watts=9",
        "pending": "Our home",
        "status": "conflicts",
        "conflicts": "No conflicts.",
        "add room Cellar": "Added: room “Cellar”",
        "add note n [red]=[bold]": "Added: note",
        "show n": ".[red]",
        "link Cellar Kitchen connects_to": "Linked: “Cellar” connects_to “Kitchen”",
        "set Cellar damp=true": "Changed: room “Cellar”",
        "rm Cellar": "Removed: room “Cellar”",
        "export out.jsonl": "Wrote",
        "import out.jsonl": "unchanged",
        "import bad.jsonl": "Could not be read",
        "import-homekit bad.json": "Could not be read",
        "connect http://127.0.0.1:9": "Next: ",
    }.items():
        told = run(*shlex.split(command))
        assert shown in told.out, command
    assert "“Küche”" in run("show", "Küche").err
    assert "candidates" not in run("rm", "k").err


def test_a_terminal_asks_for_the_token_and_does_not_show_it(tmp_path: Path) -> None:
    store = tmp_path / "home.db"
    terminal = Terminal(store, "connect", "http://127.0.0.1:9")
    terminal.until("Token")
    time.sleep(0.2)  # it turns off the echo right after
    terminal.type(CANARY + "\n")

    assert 0 == terminal.end()
    assert CANARY not in terminal.shown
    assert CANARY == json.loads((tmp_path / "home.db.token").read_text())["token"]


def test_ctrl_c_at_a_question_is_quiet(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path / "home.db", "connect", "http://127.0.0.1:9")
    terminal.until("Token")
    time.sleep(0.2)
    os.killpg(terminal.process.pid, signal.SIGINT)

    assert 130 == terminal.end()
    assert "Traceback" not in terminal.shown


def test_ctrl_c_while_waiting_for_input_is_quiet(tmp_path: Path) -> None:
    waiting = subprocess.Popen(
        [*COMMAND, "import", "-"],
        env=environment(tmp_path / "home.db"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(1)
    waiting.send_signal(signal.SIGINT)
    out, err = waiting.communicate(timeout=30)

    assert (130, "") == (waiting.returncode, out)
    assert "" == err.strip()


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    store = tmp_path / "home.db"
    seed(store, 3000)
    writer = subprocess.Popen(
        [*COMMAND, "export"], env=environment(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    assert writer.stdout.readline()
    writer.stdout.close()

    assert b"" == writer.stderr.read()
    writer.stderr.close()
    assert 1 == writer.wait(30)


def seed(store: Path, count: int) -> None:
    """Fill a store with things, quickly."""

    async def fill() -> None:
        async with BlowingOffClient(store) as client:
            with client.store.transaction():
                for number in range(count):
                    await client.add("note", f"Note {number}", {"text": "x" * 100})

    asyncio.run(fill())


@pytest.mark.parametrize("line", ["list <&- >&-", "status >&- 2>&-", "import - <&-", "connect http://127.0.0.1:9 <&-"])
def test_streams_that_are_closed_are_no_traceback(tmp_path: Path, line: str) -> None:
    store = tmp_path / "home.db"
    process(store, "add", "room", "Kitchen")
    done = subprocess.run(
        f"{shlex.join(COMMAND)} {line}", shell=True, env=environment(store), capture_output=True, text=True, check=False
    )

    assert done.returncode in (0, 1, 3)
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_under_the_output_is_told(tmp_path: Path) -> None:
    store = tmp_path / "home.db"
    process(store, "add", "room", "Kitchen")
    for command in (["list"], ["export"], ["list", "--json"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run(
                [*COMMAND, *command],
                env=environment(store),
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert (1, 1) == (done.returncode, len(done.stderr.splitlines())), done.stderr


def test_who_has_no_home_directory_is_told_to_name_a_store(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("BLOWING_OFF_STORE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nowhere)

    assert "--store" in run("list").err
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Path("/data/blowing-off/home.db") == cli.default_store()


# --- tokens -------------------------------------------------------------------------------------------------------


class Refusing(BaseHTTPRequestHandler):
    """A server that refuses everybody, and keeps the token that it was sent."""

    tokens: ClassVar[list[str]] = []
    detail = "no"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.append(self.headers["Authorization"])
        body = json.dumps({"code": "unauthorized", "detail": self.detail}).encode()
        self.send_response(401)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    Refusing.tokens.clear()
    with HTTPServer(("127.0.0.1", 0), Refusing) as server_:
        thread = threading.Thread(target=server_.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server_.server_port}"
        server_.shutdown()
        thread.join()


@pytest.mark.parametrize("way", ["file", "input", "variable", "option"])
def test_a_token_is_kept_for_its_server_and_never_shown(tmp_path: Path, refusing: str, way: str) -> None:
    store, secret = tmp_path / "home.db", tmp_path / "token.txt"
    secret.write_text(CANARY + "\n")
    arguments = {
        "file": ["--token-file", str(secret)],
        "input": ["--token-file", "-"],
        "variable": [],
        "option": ["--token", CANARY],
    }[way]
    more = {"BLOWING_OFF_TOKEN": CANARY} if way == "variable" else {}
    with secret.open() as stdin:
        done = subprocess.run(
            [*COMMAND, "connect", refusing, *arguments],
            env=environment(store, **more),
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert 0 == done.returncode, done.stderr
    assert ("Warning" in done.stderr) == (way == "option")
    shown = done.stdout + done.stderr
    for command in (["status"], ["sync"], ["status", "--json"], ["connect", refusing]):
        told = process(store, *command)
        shown += told.out + told.err
    assert [f"Bearer {CANARY}"] == Refusing.tokens
    assert CANARY not in shown
    kept = tmp_path / "home.db.token"
    assert CANARY == json.loads(kept.read_text())["token"]
    assert 0o600 == stat.S_IMODE(kept.stat().st_mode)
    assert CANARY.encode() not in store.read_bytes()


def test_a_server_that_repeats_the_token_does_not_get_it_shown(
    run: Run, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Refusing, "detail", f"no such token: {CANARY}")
    run("connect", refusing, "--token", CANARY)

    for command in (["sync"], ["status"]):
        told = run(*command)
        assert CANARY not in told.out + told.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["https://home.example", CANARY],
        [CANARY],
        ["--token-file", CANARY, "https://home.example"],
        [f"https://ann:{CANARY}@home.example"],
        [f"https://home.example/?token={CANARY}"],
        ["https://home.example", "--token", f"{CANARY} with spaces"],
        ["https://home.example", f"--tokn={CANARY}"],
    ],
)
def test_a_token_in_the_wrong_place_is_not_repeated(run: Run, arguments: list[str]) -> None:
    told = run("connect", *arguments)

    assert told.code in (1, 2)
    assert CANARY not in told.out + told.err


def test_a_file_that_is_no_token_is_refused(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "token.txt"
    for text in ("", "two words", "\n"):
        secret.write_text(text)
        assert 2 == run("connect", "https://home.example", "--token-file", str(secret)).code


# --- HomeKit ------------------------------------------------------------------------------------------------------


def database(*names: str, on: bool = True, broken: Sequence[int] = ()) -> dict[str, Any]:
    """A bridge with a lamp of each name; the characteristics in `broken` are none."""

    def characteristic(iid: int, type_: str, value: Any) -> dict[str, Any]:
        good = {"iid": iid, "type": type_, "perms": ["pr", "pw"], "format": "bool", "value": value}
        return {"iid": iid, "type": 7} if iid in broken else good

    accessories = []
    for aid, name in enumerate(names, 1):
        facts = (("23", name), ("20", "Acme"), ("21", "L1"), ("30", f"serial-{names[0]}-{aid}"), ("52", "1.0"))
        about = [characteristic(iid, type_, value) for iid, (type_, value) in enumerate(facts, 2)]
        lamp = [characteristic(11, "25", on), characteristic(12, "8", 50)]
        services = [
            {"iid": 1, "type": "3E", "characteristics": about},
            {"iid": 10, "type": "43", "characteristics": lamp},
        ]
        accessories.append({"aid": aid, "services": services})
    return {"accessories": accessories}


def dump(path: Path, *names: str, **more: Any) -> str:
    path.write_text(json.dumps(database(*names, **more)))
    return str(path)


def counts(done: Done) -> dict[str, int]:
    """The numbers that an import told."""
    return {word: number for word, number in done.json.items() if isinstance(number, int) and number}


def of(run: Run, name: str) -> str:
    """The id of the lamp service of the device `name`."""
    services: dict[str, Any] = run("show", name, "--json").json["thing"]["content"]["services"]
    return next(id_ for id_, service in services.items() if service["service_type"] == "lightbulb")


def test_a_database_goes_in_once_and_again_only_where_it_differs(run: Run, tmp_path: Path) -> None:
    file = dump(tmp_path / "hue.json", "Bridge", "Lamp", "Spot")

    assert {"imported": 3} == counts(run("import-homekit", file, "--home", "Our home", "--json"))
    assert {"unchanged": 3} == counts(run("import-homekit", file, "--home", "our home", "--json"))
    waiting = len(run("pending").rows)

    assert {"unchanged": 3} == counts(run("import-homekit", file, "--json"))
    assert waiting == len(run("pending").rows)

    dump(tmp_path / "hue.json", "Bridge", "Lamp", "Spot", on=False)
    assert {"updated": 3} == counts(run("import-homekit", file, "--json"))
    assert [2, 2, 2] == [len(run("history", name).rows) for name in ("Bridge", "Lamp", "Spot")]
    links = run("show", "Our home", "--json").json["links"]
    assert ["part_of"] * 3 == [link["relationship_type"] for link in links]


def test_what_people_did_since_outlives_the_next_import(run: Run, tmp_path: Path) -> None:
    file = dump(tmp_path / "hue.json", "Bridge", "Lamp", "Spot")
    run("import-homekit", file)
    run("set", "Lamp", "--name", "Reading lamp", "bought=2024", f"services.{of(run, 'Lamp')}.note=old")
    run("rm", "Spot")

    dump(tmp_path / "hue.json", "Bridge", "Lamp", "Spot", on=False)
    told = run("import-homekit", file)

    assert {"imported": "0", "updated": "2", "removed": "1"} == dict(told.rows)
    assert "stays removed" in told.err
    lamp = run("show", "Reading lamp", "--json").json["thing"]
    service = lamp["content"]["services"][of(run, "Reading lamp")]
    assert (2024, "old") == (lamp["content"]["bought"], service["note"])
    assert {"false", "50"} == {one["value"] for one in service["characteristics"].values()}
    assert ["Bridge", "Reading lamp"] == [row[2] for row in run("list").rows]


def test_a_new_name_in_the_file_is_taken(run: Run, tmp_path: Path) -> None:
    file = dump(tmp_path / "hue.json", "Lamp")
    run("import-homekit", file)
    (tmp_path / "hue.json").write_text((tmp_path / "hue.json").read_text().replace('"Lamp"', '"Night light"'))

    assert {"updated": 1} == counts(run("import-homekit", file, "--json"))
    assert ["Night light"] == [row[2] for row in run("list").rows]


def test_what_cannot_be_read_is_told_and_the_rest_goes_in(run: Run, tmp_path: Path) -> None:
    good = dump(tmp_path / "good.json", "Lamp")
    bad = dump(tmp_path / "bad.json", "Spot", broken=[12])
    (tmp_path / "none.json").write_text("nonsense")

    told = run("import-homekit", good, str(tmp_path / "nowhere.json"), bad, str(tmp_path / "none.json"), "--json")

    assert 0 == told.code
    assert 2 == told.json["imported"]
    unread = told.json["unread"]
    assert ["nowhere.json", "bad.json", "none.json"] == [Path(one["place"].split(":")[0]).name for one in unread]
    assert all(one["reason"] and one["by_hand"] for one in unread)
    plain = run("import-homekit", bad).rows
    assert ["unread", unread[1]["place"], unread[1]["reason"], unread[1]["by_hand"]] == plain[-1]


def test_the_command_by_hand_can_be_typed_as_it_is(run: Run, tmp_path: Path) -> None:
    told = run("import-homekit", dump(tmp_path / "bad.json", "Lamp", broken=[12]), "--json")
    by_hand = shlex.split(told.json["unread"][0]["by_hand"])

    assert 0 == run(*by_hand[1:]).code
    lamp = run("show", "Lamp", "--json").json["thing"]["content"]["services"][of(run, "Lamp")]
    assert {"true", "VALUE"} == {one["value"] for one in lamp["characteristics"].values()}

    nothing = run("import-homekit", str(tmp_path / "nowhere.json"), "--json")
    assert 1 == nothing.code
    assert 0 == run(*shlex.split(nothing.json["unread"][0]["by_hand"])[1:]).code
    assert ["Lamp", "NAME"] == [row[2] for row in run("list").rows]


def test_when_nothing_could_be_read_no_home_is_made(run: Run, tmp_path: Path) -> None:
    assert 1 == run("import-homekit", str(tmp_path / "nowhere.json"), "--home", "Our home").code
    assert [] == run("list").rows


@pytest.mark.skipif(not DUMPS.is_dir(), reason="no recorded HomeKit databases beside the project")
def test_recorded_databases_go_in_and_a_second_time_change_nothing(run: Run) -> None:
    files = sorted(map(str, DUMPS.glob("*.json")))

    first = run("import-homekit", *files, "--home", "Our home", "--json")
    again = run("import-homekit", *files, "--home", "Our home", "--json")

    print(f"{len(files)} files: {counts(first)}, {len(first.json['unread'])} unread")
    assert 0 == first.code
    assert first.json["imported"] > 0
    assert {"unchanged": first.json["imported"]} == counts(again)


# --- export and import --------------------------------------------------------------------------------------------


def busy(run: Run) -> None:
    """Leave a bit of everything in the store."""
    added(run("add", "home", "Our home"))
    added(run("add", "room", "Kitchen", "--in", "Our home"))
    added(run("add", "device", "Lamp", "--in", "Kitchen", "note=ein Gerät \u2028 mit Text"))
    added(run("add", "device", "Spot", "--in", "Kitchen"))
    run("set", "Lamp", "watts=7")
    run("set", "Lamp", "watts=9", "--name", "Reading lamp")
    run("rm", "Spot")
    edge = run("link", "Reading lamp", "Our home", "monitors").rows[0][1]
    run("unlink", edge)


def test_a_backup_read_back_is_the_same_to_the_byte(run: Run, tmp_path: Path) -> None:
    busy(run)
    assert 0 == run("export", "--all", "backup.jsonl").code

    told = run("--store", "other.db", "import", "backup.jsonl", "--json")

    assert 0 == told.code
    assert [] == told.json["unread"]
    run("--store", "other.db", "export", "--all", "again.jsonl")
    assert (tmp_path / "backup.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    before = counts(run("--store", "other.db", "status", "--json"))
    assert ["unchanged"] == list(counts(run("--store", "other.db", "import", "backup.jsonl", "--json")))
    assert before == counts(run("--store", "other.db", "status", "--json"))


def test_an_export_holds_what_is_visible_and_goes_through_a_pipe(run: Run, tmp_path: Path) -> None:
    added(run("add", "room", "Kitchen"))
    added(run("add", "device", "Lamp", "--in", "Kitchen"))
    run("set", "Kitchen", "floor=1")
    added(run("add", "room", "Gone"))
    run("rm", "Gone")

    exported = run("export")
    done = subprocess.run(
        [*COMMAND, "import", "-", "--json"],
        env=environment(tmp_path / "other.db"),
        input=exported.out,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ["Kitchen", "Lamp", None] == [json.loads(row).get("name") for row in exported.out.splitlines()]
    assert 3 == json.loads(done.stdout)["imported"]
    other = ["--store", "other.db"]
    assert run("list").out == run(*other, "list").out
    # The row that the link was made with is not in the file; the link goes from the one that is.
    assert ["located_in"] == [link["relationship_type"] for link in run(*other, "show", "Lamp", "--json").json["links"]]
    assert list(map(json.loads, exported.out.splitlines())) == run("export", "--json").json["rows"]


def test_what_is_newer_here_stays_and_the_rest_is_history(run: Run, tmp_path: Path) -> None:
    lamp = added(run("add", "device", "Lamp", "watts=7"))
    run("export", "old.jsonl")
    run("set", "Lamp", "watts=9")
    (tmp_path / "home.db").rename(tmp_path / "first.db")
    # Another replica got the newer row only.
    run("--store", "first.db", "export", "new.jsonl")
    run("import", "new.jsonl")

    assert {"older": 1} == counts(run("import", "old.jsonl", "--json"))
    assert 9 == run("show", "Lamp", "--json").json["thing"]["content"]["watts"]
    assert [True, False] == [one["current"] for one in run("history", lamp, "--json").json["versions"]]
    assert {"unchanged": 1} == counts(run("import", "old.jsonl", "--json"))

    run("--store", "first.db", "set", "Lamp", "watts=11")
    run("--store", "first.db", "export", "newest.jsonl")
    assert {"updated": 1} == counts(run("import", "newest.jsonl", "--json"))
    assert 11 == run("show", "Lamp", "--json").json["thing"]["content"]["watts"]


def test_of_a_link_what_was_said_last_stands(run: Run) -> None:
    for name in ("Kitchen", "Cellar"):
        added(run("add", "room", name, "--id", name))
    added(run("add", "device", "Lamp", "--in", "Kitchen"))
    run("export", "--all", "old.jsonl")
    edge = run("show", "Lamp", "--json").json["links"][0]["id"]
    asyncio.run(moved(edge, "Cellar"))
    run("export", "--all", "new.jsonl")

    assert 1 == counts(run("import", "old.jsonl", "--json"))["older"]
    assert "Cellar" == run("show", "Lamp", "--json").json["links"][0]["to"]["name"]

    run("--store", "other.db", "import", "old.jsonl")
    assert 1 == counts(run("--store", "other.db", "import", "new.jsonl", "--json"))["updated"]
    assert "Cellar" == run("--store", "other.db", "show", "Lamp", "--json").json["links"][0]["to"]["name"]


async def moved(edge: str, to: str) -> None:
    """Re-point an edge, which the command line does only as a part of other things."""
    async with BlowingOffClient(os.environ["BLOWING_OFF_STORE"]) as client:
        (before,) = [one for one in await client.links() if one.id == edge]
        await client.link(before.from_entity_id, to, before.relationship_type, id=edge)


def test_a_removed_thing_comes_back_only_by_what_follows_its_removal(run: Run) -> None:
    added(run("add", "device", "Lamp"))
    run("export", "--all", "before.jsonl")
    run("--store", "other.db", "import", "before.jsonl")
    run("rm", "Lamp")
    run("--store", "other.db", "set", "Lamp", "watts=7")
    run("--store", "other.db", "export", "edited.jsonl")

    assert {"older": 1} == counts(run("import", "edited.jsonl", "--json"))
    assert [] == run("list").rows

    run("export", "--all", "removed.jsonl")
    run("set", "Lamp", "deleted=")
    run("export", "--all", "back.jsonl")
    run("--store", "third.db", "import", "removed.jsonl")
    assert [] == run("--store", "third.db", "list").rows
    assert {"updated": 1} == counts(run("--store", "third.db", "import", "back.jsonl", "--json"))
    assert ["Lamp"] == [row[2] for row in run("--store", "third.db", "list").rows]


def line(**fields: Any) -> dict[str, Any]:
    plain = {"kind": "entity", "id": "x", "version": "v1", "entity_type": "device", "name": "X", "content": {}}
    return {**plain, "source_type": "manual", "user_id": "ann", **fields}


def edge_line(**fields: Any) -> dict[str, Any]:
    ends = {"from_entity_id": "x", "from_entity_version": "v1", "to_entity_id": "y", "to_entity_version": "v1"}
    return {"kind": "relationship", "id": "e", "version": "v1", **ends, "relationship_type": "controls", **fields}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b"nonsense", "JSON"),
        (b"[]", "object"),
        (b'{"kind":"entity"}', "field"),
        (b"\xff", "UTF-8"),
        (b"[" * 1000, "brackets"),
        (line(kind="thing"), "kind: expected entity or relationship"),
        (line(name=7), "name: expected str; got int"),
        (line(content=[]), "content: expected object; got array"),
        (line(content={"a": 1e400}), "content: expected a number within"),
        (line(content={"a": json.loads("[" * 59 + "]" * 59)}), "content: expected nesting of at most 59"),
        (line(id=""), "id: expected"),
        (line(id="a\nb"), "id: expected"),
        (line(version="v" * 2000), "version: expected"),
        (edge_line(relationship_type=None), "relationship_type: expected str"),
        (edge_line(), "to_entity_id: expected the id of a thing that is here or in the file"),
        (edge_line(from_entity_id="nobody"), "from_entity_id: expected the id of a thing"),
        (line(id="x", content={"other": 1}), "a row never changes"),
        (line(id="big", content={"text": "x" * (8 * 2**20)}), "at most"),
        (b'"' + b"x" * (9 * 2**20) + b'"', "line of at most"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_line_is_told_by_its_number_and_all_others_go_in(
    run: Run, tmp_path: Path, bad: bytes | dict[str, Any], said: str
) -> None:
    text = bad if isinstance(bad, bytes) else json.dumps(bad).encode().replace(b"Infinity", b"1e999")
    lines = [b"\xef\xbb\xbf" + json.dumps(line()).encode(), b"", text, json.dumps(line(id="z")).encode() + b"\r"]
    (tmp_path / "lines.jsonl").write_bytes(b"\n".join(lines))

    told = run("import", "lines.jsonl", "--json")

    assert (0, 2) == (told.code, told.json["imported"])
    assert [3] == [one["line"] for one in told.json["unread"]]
    assert said in told.json["unread"][0]["reason"]
    assert ["unread", "3"] == run("import", "lines.jsonl").rows[-1][:2]


def test_only_when_nothing_could_be_read_an_import_failed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("nonsense\nnonsense\n")
    (tmp_path / "empty.jsonl").write_text("\n")

    assert (1, 2) == (run("import", "bad.jsonl").code, len(run("import", "bad.jsonl", "--json").json["unread"]))
    assert 0 == run("import", "empty.jsonl").code
    assert (1, "unreadable") == (run("import", "nowhere").code, run("import", ".", "--json").json["error"]["code"])


def test_a_row_written_by_hand_is_kept_as_every_server_would_keep_it(run: Run, tmp_path: Path) -> None:
    row = line(entity_type="DEVICE", source_type="Zigbee", content={"b": 1, "a": 2.50})
    (tmp_path / "lines.jsonl").write_text(json.dumps(row, indent=None, separators=(" , ", " : ")))

    assert {"imported": 1} == counts(run("import", "lines.jsonl", "--json"))
    exported = json.loads(run("export").out)
    assert ("device", "imported", "Zigbee") == tuple(
        exported[field] for field in ("entity_type", "source_type", "source_original")
    )
    assert '"content":{"a":2.5,"b":1}' in run("export").out


def test_an_export_replaces_its_file_whole_or_not_at_all(run: Run, tmp_path: Path) -> None:
    added(run("add", "room", "Kitchen"))
    file = tmp_path / "out.jsonl"
    file.write_text("before")

    assert 0 == run("export", str(file)).code
    assert "Kitchen" in file.read_text()
    assert 1 == run("export", str(tmp_path / "no/where.jsonl")).code
    assert 1 == run("export", str(tmp_path)).code
    assert 1 == run("export", os.devnull).code
    assert Path(os.devnull).is_char_device()
    assert ["home.db", "out.jsonl"] == sorted(one.name for one in tmp_path.iterdir() if "-" not in one.name)


words = st.sampled_from(["Lamp", "Spot", "Kitchen"])
steps = st.lists(
    st.tuples(st.just("add"), words)
    | st.tuples(st.just("set"), words, st.integers(0, 3))
    | st.tuples(st.sampled_from(["rm", "back"]), words)
    | st.tuples(st.sampled_from(["link", "unlink"]), words, words),
    max_size=12,
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_any_store_survives_a_backup(run: Run, tmp_path_factory: pytest.TempPathFactory, story: list[Any]) -> None:
    where = tmp_path_factory.mktemp("story")
    one, other = str(where / "one.db"), str(where / "other.db")
    run("--store", one, "add", "note", "seed", "--id", "seed")
    for verb, word, *rest in story:
        commands = {
            "add": ["add", "device", word, "--id", word],
            "set": ["set", word, f"n={rest[0] if rest else 0}"],
            "rm": ["rm", word],
            "back": ["set", word, "deleted="],
            "link": ["link", word, str(rest[0] if rest else ""), "controls"],
            "unlink": ["unlink", ""],
        }
        run("--store", one, *commands[verb])
    run("--store", one, "export", "--all", str(where / "one.jsonl"))

    assert 0 == run("--store", other, "import", str(where / "one.jsonl")).code
    run("--store", other, "export", "--all", str(where / "other.jsonl"))
    assert (where / "one.jsonl").read_bytes() == (where / "other.jsonl").read_bytes()
    assert run("--store", one, "show", "seed").out == run("--store", other, "show", "seed").out


# --- a server -----------------------------------------------------------------------------------------------------


@contextmanager
def serving(db: Path) -> Iterator[Process]:
    with running(["-m", "inbetweenies.cli", "serve", "--db", str(db), "--no-auth", "--port", "0"]) as process_:
        yield process_


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Process]:
    with serving(tmp_path / "server.db") as process_:
        yield process_


def test_two_people_exchange_conflict_and_look_at_it(run: Run, server: Process) -> None:
    ann, bob = ["--store", "ann.db"], ["--store", "bob.db"]
    assert 0 == run(*ann, "connect", server.url, "--user", "ann").code
    assert 0 == run(*bob, "connect", server.url, "--user", "bob").code
    lamp = added(run(*ann, "add", "device", "Lamp", "colour=white"))
    room = added(run(*ann, "add", "room", "Kitchen"))
    run(*ann, "link", lamp, room, "located_in")

    assert 3 == run(*ann, "status").code
    sent = run(*ann, "sync")
    assert (0, ["synced", "3", "0", "0", "0"]) == (sent.code, sent.rows[0])
    assert 0 == run(*ann, "status").code
    fetched = run(*bob, "sync", "--json")
    assert (0, 0, True) == (fetched.code, fetched.json["pending"], fetched.json["equal"])
    assert run(*ann, "show", "Lamp").out == run(*bob, "show", "Lamp").out

    run(*bob, "set", "Lamp", "colour=red")
    run(*ann, "set", "Lamp", "colour=blue")
    assert 0 == run(*ann, "sync").code
    lost = run(*bob, "sync")
    assert 3 == lost.code
    looked = run(*bob, *shlex.split(lost.err.split("`")[1])[3:])
    assert (3, lamp) == (looked.code, looked.rows[0][0])
    assert 3 == run(*bob, "status").code

    assert 0 == run(*bob, "conflicts", "--seen").code
    assert (0, []) == (run(*bob, "conflicts").code, run(*bob, "conflicts").rows)
    assert 0 == run(*bob, "status").code
    colours = {row[5] for row in run(*bob, "history", "Lamp").rows}
    assert {"colour=red", "colour=blue", "colour=white"} <= colours


def test_a_backup_goes_to_a_server_that_has_it_without_a_trace(run: Run, server: Process) -> None:
    run("--store", "cid.db", "connect", server.url)
    busy(lambda *arguments: run("--store", "cid.db", *arguments))
    run("--store", "cid.db", "sync")
    run("--store", "cid.db", "export", "--all", "backup.jsonl")

    run("--store", "new.db", "connect", server.url)
    run("--store", "new.db", "import", "backup.jsonl")
    told = run("--store", "new.db", "sync", "--json")

    assert (0, 0, 0, True) == (told.code, told.json["pending"], told.json["conflicts"], told.json["equal"])
    exports = [run("--store", store, "export", "--json").json["rows"] for store in ("cid.db", "new.db")]
    assert exports[0] == exports[1]


def test_what_was_exported_moves_to_another_server_with_its_links(run: Run, tmp_path: Path, server: Process) -> None:
    run("--store", "old.db", "connect", server.url)
    added(run("--store", "old.db", "add", "room", "Kitchen"))
    added(run("--store", "old.db", "add", "device", "Lamp", "--in", "Kitchen"))
    run("--store", "old.db", "set", "Lamp", "watts=7")
    run("--store", "old.db", "sync")
    # A replica that knows only what is current, so that the row that the link was made with is nowhere else.
    run("connect", server.url)
    run("sync")
    run("export", "moved.jsonl")

    with serving(tmp_path / "second.db") as second:
        run("--store", "new.db", "connect", second.url)
        run("--store", "new.db", "import", "moved.jsonl")
        told = run("--store", "new.db", "sync", "--json")

    assert (0, 0, True) == (told.code, told.json["pending"], told.json["equal"])
    assert ["located_in"] == [
        one["relationship_type"] for one in run("--store", "new.db", "show", "Lamp", "--json").json["links"]
    ]


def test_a_server_that_is_not_there_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blowing_off.transport.BACKOFF_S", 0.001)
    run("connect", "http://127.0.0.1:9")
    added(run("add", "room", "Kitchen"))

    told = run("sync")

    assert (1, "", 1) == (told.code, told.out, len(told.err.splitlines()))
    assert "unreachable" == run("sync", "--json").json["error"]["code"]
    status = dict(run("status").rows)
    assert ("1", "http://127.0.0.1:9") == (status["pending"], status["server"])
    assert "last error" in status
    monkeypatch.setattr(cli, "PATIENCE_S", 0.0)
    history = run("history", "Kitchen")
    assert (0, 1) == (history.code, len(history.rows))
    assert "did not answer" in history.err
    assert "" == run("history", "Kitchen", "--here").err


def test_sync_on_a_terminal_says_what_it_did(tmp_path: Path, server: Process) -> None:
    store = tmp_path / "home.db"
    process(store, "connect", server.url)
    process(store, "add", "room", "Terminal room")

    terminal = Terminal(store, "sync")

    assert 0 == terminal.end()
    assert "Sent 1 change" in terminal.shown
    assert "Both sides hold the same." in terminal.shown


# --- anything -----------------------------------------------------------------------------------------------------

pool = st.sampled_from(
    "add list show set rm link unlink history conflicts resolve pending status sync export import import-homekit "
    "--json --take merge --set --store --content --in --id --name --type --text --deleted --all --home --here --seen "
    "--help -h -- - a=1 a.b=[1] {} device room Lamp lamp home.db --version --token --user".split()
)
argument = pool | st.text(st.characters(exclude_characters="/\\"), max_size=6)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(argument, max_size=6), st.booleans())
def test_no_arguments_whatever_give_a_traceback(run: Run, arguments: list[str], as_json: bool) -> None:
    arguments = [*(["--json"] if as_json else []), *arguments]
    told = run(*arguments)

    assert told.code in (0, 1, 2, 3)
    assert "Traceback" not in told.err
    if as_json and not {"--help", "-h", "--version", "-"} & set(arguments):
        assert isinstance(told.json, dict)
    if told.code == 2:
        assert told.err or "--json" in arguments


@contextmanager
def damaged(path: Path, data: bytes) -> Iterator[None]:
    path.write_bytes(data)
    yield
    path.unlink()


def test_a_store_that_is_none_is_told_and_left_alone(run: Run, tmp_path: Path) -> None:
    store = tmp_path / "home.db"
    for data in (b"nonsense" * 1000, b"SQLite format 3\0" + bytes(5000)):
        with damaged(store, data):
            for command in (["list"], ["add", "room", "Kitchen"]):
                told = run(*command)
                assert (1, "") == (told.code, told.out)
                assert 1 == len(told.err.splitlines())
            assert data == store.read_bytes()
    store.mkdir()
    assert 1 == run("add", "room", "Kitchen").code
    assert 1 == run("--store", str(tmp_path / ("x" * 300)), "list").code
    assert 1 == run("--store", "/proc/nowhere/home.db", "add", "room", "Kitchen").code
