"""Updates as they happen: real environments, real wheels, a real server, and releases that cannot be trusted."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from blowing_off.store import LocalStore
from blowing_off.updates.channel import SUMS
from blowing_off.updates.state import updating
from tests.server.calls import running
from tests.updates.demanding import Demanding, demanding
from tests.updates.releases import ROOT, Environment, clean, libraries, needed_wheels, wheel

PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
GUARD_S = 60  # only ever reached when something hangs


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return libraries(tmp_path_factory.mktemp("shared") / "libraries")


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demanding]:
    with demanding(tmp_path_factory.mktemp("server")) as front:
        yield front


@pytest.fixture
def server(process: Demanding) -> Demanding:
    process.begin()
    return process


class Home:
    """A client of release 1.0.0 that `installed` knows how to run, connected to `server`, with a change that waits."""

    def __init__(self, folder: Path, server: Demanding, program: Path, python: Path, **variables: str) -> None:
        self.folder = folder
        self.channel = folder / "wheels"
        self.server = server
        self.store = folder / "home.db"
        self.program, self.python = str(program), str(python)
        self.variables = {
            "BLOWING_OFF_STORE": str(self.store),
            "BLOWING_OFF_INDEX": str(self.channel),
            "BLOWING_OFF_CONTAINER": "kept",
            "BLOWING_OFF_TOKEN": server.token,
            **variables,
        }
        self.cli("connect", server.url, "--user", "ann")
        self.cli("add", "device", "Desk lamp")

    @property
    def release(self) -> str:
        """What is installed, by its metadata and by the code."""
        code = "import importlib.metadata as m, inbetweenies as i; print(m.version('inbetweenies'), i.__version__)"
        done = subprocess.run([self.python, "-I", "-c", code], capture_output=True, text=True, check=True)
        told, code_told = done.stdout.split()
        assert told == code_told
        return told

    def cli(self, *arguments: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [self.program, *arguments],
            env=clean() | self.variables | variables,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=GUARD_S,
            check=False,
        )
        assert code == done.returncode, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str, code: int = 0, **variables: str) -> Any:
        return json.loads(self.cli(*arguments, "--json", code=code, **variables).stdout)

    @property
    def remembered(self) -> dict[str, Any]:
        file = Path(f"{self.store}.updates")
        told: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"memory": {"bad": {}}}
        return told

    def waiting(self) -> list[str]:
        return [one["name"] for one in self.json("pending")["pending"]]


@pytest.fixture
def by_pip(tmp_path: Path, shared: Path, server: Demanding) -> Home:
    """Installed by pip, into an environment that shares its libraries with others."""
    environment = Environment(tmp_path / "venv", shared)
    wheel(tmp_path / "wheels", "1.0.0")
    environment.install(tmp_path / "wheels", "1.0.0")
    return Home(tmp_path, server, environment.folder / "bin/blowing-off", environment.python)


@pytest.fixture
def home(tmp_path: Path, server: Demanding) -> Home:
    """Installed by uv, as a tool: what most tests use, since uv is quick."""
    return by_uv(tmp_path, server)


def by_uv(tmp_path: Path, server: Demanding) -> Home:
    needed_wheels(tmp_path / "wheels")
    wheel(tmp_path / "wheels", "1.0.0")
    places = {"UV_TOOL_DIR": str(tmp_path / "tools"), "UV_TOOL_BIN_DIR": str(tmp_path / "bin"), "PATH": PATH}
    options = ["--python", sys.executable, "--no-index", "--find-links", str(tmp_path / "wheels")]
    subprocess.run(
        ["uv", "tool", "install", *options, "inbetweenies"], env=clean() | places, check=True, capture_output=True
    )
    python = tmp_path / "tools/inbetweenies/bin/python"
    return Home(tmp_path, server, tmp_path / "bin/blowing-off", python, **places)


@pytest.fixture
def by_pipx(tmp_path: Path, server: Demanding) -> Home:
    """Installed by pipx, which lets uv do it."""
    needed_wheels(tmp_path / "wheels")
    wheel(tmp_path / "wheels", "1.0.0")
    places = {"PIPX_HOME": str(tmp_path / "pipx"), "PIPX_BIN_DIR": str(tmp_path / "bin"), "PATH": PATH}
    places["PIPX_MAN_DIR"] = str(tmp_path / "man")
    options = [f"--pip-args=--no-index --find-links {tmp_path / 'wheels'}", "--python", sys.executable]
    subprocess.run(
        ["pipx", "install", "--backend", "uv", *options, "inbetweenies"],
        env=clean() | places,
        check=True,
        capture_output=True,
    )
    python = tmp_path / "pipx/venvs/inbetweenies/bin/python"
    return Home(tmp_path, server, tmp_path / "bin/blowing-off", python, **places)


RECORDS = {"home": "tools/inbetweenies/uv-receipt.toml", "by_pipx": "pipx/venvs/inbetweenies/pipx_metadata.json"}


# --- the story ----------------------------------------------------------------------------------------------------


def test_with_auto_a_refused_client_updates_itself_goes_on_and_pushes_what_waits(by_pip: Home) -> None:
    by_pip.server.minimum = "1.1"
    wheel(by_pip.channel, "1.1.0")

    told = by_pip.cli("sync", "--json", BLOWING_OFF_UPDATES="auto")

    assert {"pushed": 1, "pending": 0} == {key: json.loads(told.stdout)[key] for key in ("pushed", "pending")}
    assert "Release 1.1.0 has replaced 1.0.0" in told.stderr
    assert "1.1.0" == by_pip.release
    assert {"1.1.0": ["Desk lamp"]} == {release: names for release, names in by_pip.server.pushed.items() if names}
    assert {"1.0.0"} == set(by_pip.server.refused)


def test_the_server_of_this_tree_says_which_release_it_needs_and_the_client_moves_there(tmp_path: Path) -> None:
    db = tmp_path / "server.sqlite"
    serve = ["-m", "inbetweenies.cli", "serve", "--port", "0", "--db", str(db), "--min-client-version", "1.1"]
    with running(serve) as process:
        server = Demanding(process.url, db)
        server.url = process.url
        home = by_uv(tmp_path, server)
        wheel(home.channel, "1.1.0")

        told = home.json("sync", BLOWING_OFF_UPDATES="auto")
        after = home.json("update", "--check")

    assert (1, 0) == (told["pushed"], told["pending"])
    assert "1.1.0" == home.release
    assert ("1.1.0", "compatible", None) == (after["running"], after["server"], after["available"])


# --- people -------------------------------------------------------------------------------------------------------


class Terminal:
    """`blowing-off` on a terminal, and a person who reads and types."""

    def __init__(self, home: Home, *arguments: str, **variables: str) -> None:
        self.parent, child = pty.openpty()
        self.process = subprocess.Popen(
            [home.program, *arguments],
            env=clean() | home.variables | {"TERM": "xterm-256color", "COLUMNS": "200"} | variables,
            cwd=home.folder,
            stdin=child,
            stdout=child,
            stderr=child,
            start_new_session=True,
        )
        os.close(child)
        self.shown = ""

    def until(self, text: str) -> None:
        while text not in self.shown:
            self._read()

    def type(self, text: str) -> None:
        os.write(self.parent, text.encode())

    def end(self) -> int:
        with suppress(OSError):  # how Linux says that the other end is closed
            while self._read():
                pass
        os.close(self.parent)
        return self.process.wait(GUARD_S)

    def _read(self) -> str:
        ready, _, _ = select.select([self.parent], [], [], GUARD_S)
        if not ready:
            self.process.kill()
            pytest.fail(f"nothing more came after: {self.shown}")
        data = os.read(self.parent, 65536).decode()
        self.shown += data
        return data


def test_on_a_terminal_a_person_is_asked_and_the_update_is_made_and_pushes(home: Home) -> None:
    home.server.minimum = "1.1"
    wheel(home.channel, "1.1.0")

    terminal = Terminal(home, "sync")
    terminal.until("kip this release?")
    asked = terminal.shown
    terminal.type("u\n")
    code = terminal.end()

    assert 0 == code, terminal.shown
    assert "(release 1.0.0) is too old for the server" in asked
    assert "Release 1.1.0 is available" in asked
    assert "1 change of yours waits here, safe" in asked
    assert "Sent 1 change" in terminal.shown
    assert "1.1.0" == home.release
    assert ["Desk lamp"] == home.server.pushed["1.1.0"]


@pytest.mark.parametrize(("typed", "kept"), [("l\n", "snoozed_until"), ("\x04", "snoozed_until"), ("s\n", "skipped")])
def test_who_says_later_or_no_is_not_asked_again_and_loses_nothing(home: Home, typed: str, kept: str) -> None:
    home.server.latest = "1.1.0"
    wheel(home.channel, "1.1.0")

    terminal = Terminal(home, "sync")
    terminal.until("kip this release?")
    terminal.type(typed)
    code = terminal.end()
    discovered = home.server.discovered
    again = Terminal(home, "sync")
    code_again = again.end()

    assert (0, 0) == (code, code_again)
    assert home.remembered["memory"][kept]
    assert "kip this release?" not in again.shown
    assert "1.0.0" == home.release
    assert 1 == discovered == home.server.discovered  # once a day


def test_elsewhere_it_is_said_in_one_line_and_nothing_is_installed(home: Home) -> None:
    home.server.latest = "1.1.0"
    wheel(home.channel, "1.1.0")

    told = home.cli("sync")

    assert "Note: There is a newer release of this program than 1.0.0" in told.stderr
    assert "`blowing-off update` installs it" in told.stderr
    assert 1 == len([line for line in told.stderr.splitlines() if "1.1.0" in line])
    assert "1.0.0" == home.release


def test_updates_that_are_switched_off_ask_no_server_anything(home: Home) -> None:
    home.server.minimum = "1.1"
    home.cli("update", "--policy", "off")

    told = home.cli("sync", code=1)

    assert 0 == home.server.discovered
    assert "update" not in told.stderr.replace("update the older side", "")


# --- releases that cannot be trusted ------------------------------------------------------------------------------

CRASHES = {"blowing_off/cli.py": "raise RuntimeError('boom')\n"}


def changed(file: str, before: str, after: str) -> dict[str, str]:
    text = (ROOT / file).read_text()
    assert before in text
    return {file: text.replace(before, after, 1)}


def cannot_sync() -> dict[str, str]:
    return changed("blowing_off/sync.py", 'SYNC_PATH: Final = "/api/v1/sync/"', 'SYNC_PATH: Final = "/api/v9/sink/"')


def fails_once_installed() -> dict[str, str]:
    return changed(
        "blowing_off/store.py",
        "class LocalStore(Recovery):\n",
        "if 'site-packages' in __file__:\n    raise RuntimeError('boom')\n\n\nclass LocalStore(Recovery):\n",
    )


@pytest.mark.parametrize(
    ("installed", "change", "why"),
    [
        ("home", lambda: CRASHES, "it does not start, or cannot open a copy of the store"),
        ("home", cannot_sync, "it cannot sync"),
        ("by_pip", fails_once_installed, "it does not start, or cannot open a copy of the store"),
    ],
    ids=["crashes on start", "cannot sync", "crashes once installed"],
)
def test_a_release_that_does_not_work_is_undone_and_not_tried_again(
    request: pytest.FixtureRequest, installed: str, change: Callable[[], dict[str, str]], why: str
) -> None:
    home: Home = request.getfixturevalue(installed)
    home.server.latest = "1.1.0"
    wheel(home.channel, "1.1.0", change())

    told = home.cli("sync", BLOWING_OFF_UPDATES="auto")  # what waits is sent by the release that runs
    home.cli("add", "device", "Reading lamp")

    assert "Release 1.1.0 is not used here" in told.stderr
    assert why in told.stderr
    assert "Nothing was lost" in told.stderr
    assert "1.0.0" == home.release
    assert ["Desk lamp"] == [name for names in home.server.pushed.values() for name in names]
    assert ["Reading lamp"] == home.waiting()
    assert "1.1.0" in home.remembered["memory"]["bad"]
    assert home.remembered["touching"] is None
    # What can be seen before anything is replaced is seen then: nothing had to be kept aside.
    touched = [*home.folder.glob("home.db.update/1.0.0-*")]
    assert (installed == "by_pip") == bool(touched)

    home.server.minimum = "1.1"  # an hour later, say
    forget_when(home)
    again = home.cli("sync", code=1, BLOWING_OFF_UPDATES="auto")
    assert "1.1.0" not in again.stderr.replace(str(home.folder), "")
    assert "1.0.0" == home.release
    assert ["Reading lamp"] == home.waiting()

    # A person moves on to a release that works; the bad one is passed over.
    wheel(home.channel, "1.1.1")
    done = home.json("update")
    assert ("updated", "1.0.0", "1.1.1", 1, 0) == tuple(done[key] for key in ("done", "from", "to", "sent", "pending"))
    assert "1.1.1" == home.release
    assert home.remembered["memory"]["paused"] is None


def forget_when(home: Home) -> None:
    """As if what was done was done days ago."""
    file = Path(f"{home.store}.updates")
    told = json.loads(file.read_text())
    told["memory"] |= {"checked_at": 0, "next_check": 0, "spoken": {}}
    file.write_text(json.dumps(told))


# --- channels -----------------------------------------------------------------------------------------------------


def test_a_channel_without_the_release_is_not_said_to_have_it(home: Home) -> None:
    home.server.minimum = "1.7.3"

    told = home.cli("sync", code=1, BLOWING_OFF_UPDATES="auto")

    assert "too old for the server" in told.stderr
    assert "No release that helps can be had now" in told.stderr
    assert "1.7.3" not in told.stderr
    assert ["Desk lamp"] == home.waiting()
    assert "1.0.0" == home.release


def test_a_wheel_with_another_hash_than_the_folder_lists_is_not_taken(by_pip: Home) -> None:
    good, bad = wheel(by_pip.channel, "1.1.0"), wheel(by_pip.channel, "1.2.0")
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}" for file in (good, bad)]
    (by_pip.channel / SUMS).write_text("\n".join(lines) + "\n")
    bad.write_bytes(wheel(by_pip.folder, "1.2.0", CRASHES).read_bytes())

    refused = by_pip.json("update", code=1)
    told = by_pip.json("update", "--to", "1.1.0")

    assert "does not have the hash that it should have" in refused["error"]["message"]
    assert ("1.0.0", "1.1.0") == (told["from"], told["to"])


def test_an_index_whose_file_has_another_hash_is_not_believed(by_pip: Home) -> None:
    file = wheel(by_pip.folder / "index" / "inbetweenies", "1.1.0")
    (file.parent / "index.html").write_text(f'<a href="{file.name}#sha256={"0" * 64}">{file.name}</a>')
    with serving_files(by_pip.folder / "index") as url:
        refused = by_pip.json("update", code=1, BLOWING_OFF_INDEX=url)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (file.parent / "index.html").write_text(f'<a href="{file.name}#sha256={digest}">{file.name}</a>')
        told = by_pip.json("update", BLOWING_OFF_INDEX=url)

    assert "not_available" == refused["error"]["code"]
    assert "does not have the hash that it should have" in refused["error"]["message"]
    assert ("1.0.0", "1.1.0") == (told["from"], told["to"])


@contextmanager
def serving_files(folder: Path) -> Iterator[str]:
    """A package index over HTTP, on loopback."""

    class Files(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_index_that_cannot_be_reached_is_told_and_nothing_is_touched(by_pip: Home) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = by_pip.json("update", code=1, BLOWING_OFF_INDEX=f"http://127.0.0.1:{closed.getsockname()[1]}/")

    assert "not_available" == refused["error"]["code"]
    assert "could not be reached" in refused["error"]["message"]
    assert "1.0.0" == by_pip.release


def test_where_nothing_is_newer_nothing_is_done(home: Home) -> None:
    told = home.json("update")

    assert ("unchanged", "1.0.0") == (told["done"], told["to"])


def test_a_place_that_is_none_is_refused(home: Home) -> None:
    refused = home.json("update", "--from", "nowhere", code=2)

    assert "expected the address of a package index or a folder of wheels" in refused["error"]["message"]


def test_what_is_known_is_told(home: Home) -> None:
    home.server.minimum = "1.1"
    wheel(home.channel, "1.1.0")
    home.cli("update", "--policy", "notify", "--from", str(home.channel))

    told = home.json("update", "--check", code=3, BLOWING_OFF_INDEX="")

    expected = {
        "running": "1.0.0",
        "available": "1.1.0",
        "server": "update_required",
        "kind": "uv_tool",
        "automatic": True,
        "policy": "notify",
        "place": f"the folder {home.channel}",
        "bad": {},
        "pending": 1,
    }
    assert expected == {key: told[key] for key in expected}
    assert "1.0.0" == home.release


# --- back ---------------------------------------------------------------------------------------------------------


def with_format_3() -> dict[str, str]:
    step = (
        "STEPS: Final = (Step(format=2, up=_checkpoints, down=_no_checkpoints, min_reader=1, min_writer=1),"
        " Step(format=3, up=_rooms, down=_no_rooms, min_reader=3, min_writer=3))\n"
    )
    text = (ROOT / "blowing_off/migration.py").read_text()
    before, found, after = text.partition("STEPS: Final = ")
    assert found
    after = after.partition("\n")[2]
    rooms = (
        "def _rooms(db):\n    db.execute('CREATE TABLE rooms (x)')\n\n\n"
        "def _no_rooms(db):\n    db.execute('ALTER TABLE rooms RENAME TO aside_3_rooms')\n\n\n"
    )
    return {"blowing_off/migration.py": before + rooms + step + after}


def test_going_back_takes_the_store_along_and_keeps_what_was_written_since(home: Home) -> None:
    wheel(home.channel, "1.1.0", with_format_3())
    home.json("update")
    home.cli("add", "device", "Reading lamp")

    told = home.json("update", "--rollback")

    assert ("rolled_back", "1.1.0", "1.0.0") == (told["done"], told["from"], told["to"])
    assert "1.0.0" == home.release
    assert ["Reading lamp"] == home.waiting()  # read by a release that knows format 2 at most
    assert "somebody went back from it" == home.remembered["memory"]["bad"]["1.1.0"]
    assert "unchanged" == home.json("update")["done"]  # not offered again
    assert "nothing_kept" == home.json("update", "--rollback", code=1)["error"]["code"]
    assert "1.1.0" == home.json("update", "--to", "1.1.0")["to"]  # but a person may insist
    assert {"Desk lamp", "Reading lamp"} == {name for names in home.server.pushed.values() for name in names}


# --- tools that keep account of what they installed ---------------------------------------------------------------


@pytest.mark.parametrize("installed", ["home", "by_pipx"])
def test_a_tool_makes_the_update_itself_and_a_bad_release_is_put_back_under_it(
    request: pytest.FixtureRequest, installed: str
) -> None:
    home: Home = request.getfixturevalue(installed)
    record = (home.folder / RECORDS[installed]).read_text()
    bad = wheel(home.channel, "1.1.0", fails_once_installed())

    failed = home.json("update", code=1)
    assert "Release 1.1.0 is not used here" in failed["error"]["message"]
    assert ("1.0.0", record) == (home.release, (home.folder / RECORDS[installed]).read_text())
    assert ["Desk lamp"] == home.waiting()

    # These tools go to the newest: while that is the bad one, another is not reached, and that is noticed.
    bad.unlink()
    wheel(home.channel, "1.2.0")
    told = home.json("update")
    assert ("updated", "1.0.0", "1.2.0", 0) == tuple(told[key] for key in ("done", "from", "to", "pending"))
    assert "1.2.0" == home.release

    assert "1.0.0" == home.json("update", "--rollback")["to"]
    assert ("1.0.0", record) == (home.release, (home.folder / RECORDS[installed]).read_text())


def test_a_tool_that_says_done_and_did_nothing_is_not_believed(home: Home) -> None:
    wheel(home.channel, "1.1.0")
    receipt = home.folder / RECORDS["home"]
    # As `uv tool install inbetweenies==1.0.0` leaves it: then an upgrade ends with 0 and changes nothing.
    pinned = receipt.read_text().replace(
        '{ name = "inbetweenies" }', '{ name = "inbetweenies", specifier = "==1.0.0" }'
    )
    receipt.write_text(pinned)

    refused = home.json("update", code=1)

    assert "not_installed" == refused["error"]["code"]
    assert "the tool ended well, but what is installed then is 1.0.0" in refused["error"]["message"]
    assert ("1.0.0", pinned) == (home.release, receipt.read_text())
    assert {} == home.remembered["memory"]["bad"]  # that is not the release's fault
    assert ["Desk lamp"] == home.waiting()


def test_a_working_copy_is_told_how_and_left_alone(tmp_path: Path, server: Demanding) -> None:
    program = Path(sys.executable).parent / "blowing-off"
    home = Home(tmp_path, server, program, Path(sys.executable))
    wheel(home.channel, "99.0.0")

    refused = home.json("update", code=1)

    assert "not_ours" == refused["error"]["code"]
    assert "`git pull` in that folder" in refused["error"]["message"]


# --- one at a time, and without a network -------------------------------------------------------------------------


def test_two_processes_do_not_update_at_once(home: Home) -> None:
    wheel(home.channel, "1.1.0")
    with updating(home.folder / "tools/inbetweenies"):
        refused = home.json("update", code=1)

    assert "update_running" == refused["error"]["code"]
    assert "1.0.0" == home.release


def test_an_update_waits_for_nobody_and_breaks_into_no_sync(home: Home) -> None:
    wheel(home.channel, "1.1.0")
    with closing(LocalStore(home.store)) as store, store.syncing():
        refused = home.json("update", code=1)

    assert "sync_running" == refused["error"]["code"]
    assert "1.0.0" == home.release


def test_without_the_server_a_person_can_update_all_the_same(home: Home) -> None:
    wheel(home.channel, "1.1.0")
    home.cli("connect", "http://127.0.0.1:9")

    done = home.cli("update", code=3)

    assert "whether the new release syncs was not tried" in done.stderr
    assert "1.1.0" == home.release
    assert ["Desk lamp"] == home.waiting()


def test_where_the_old_release_cannot_sync_either_the_new_one_is_not_blamed(home: Home) -> None:
    wheel(home.channel, "1.1.0")
    home.cli("connect", home.server.url, BLOWING_OFF_TOKEN="wrong")

    refused = home.json("update", code=1)

    assert "with this server neither it nor 1.0.0 can sync" in refused["error"]["message"]
    assert {} == home.remembered["memory"]["bad"]
    assert "1.0.0" == home.release


def test_an_update_that_was_cut_off_is_undone_by_whoever_comes_next(by_pip: Home) -> None:
    wheel(by_pip.channel, "1.1.0")
    marker = by_pip.folder / "killed"
    purelib = next((by_pip.folder / "venv/lib").glob("python*")) / "site-packages"
    # pip is stopped by the power going away once the old release is gone: here, when it starts to compile the new one.
    (purelib / "sitecustomize.py").write_text(POWER_CUT.format(marker=str(marker)))
    killed = subprocess.run(
        [by_pip.program, "update"],
        env=clean() | by_pip.variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        check=False,
        start_new_session=True,
    )
    assert -signal.SIGKILL == killed.returncode, killed.stderr
    assert marker.exists()
    (purelib / "sitecustomize.py").unlink()
    assert by_pip.remembered["touching"] is not None

    [script] = by_pip.store.parent.glob("home.db.update/*/put_back.py")
    subprocess.run([sys.executable, str(script)], check=True, capture_output=True)
    assert "1.0.0" == by_pip.release
    assert ["Desk lamp"] == by_pip.waiting()
    assert "1.1.0" == by_pip.json("update")["to"]
    assert by_pip.remembered["touching"] is None


POWER_CUT = """
import os, signal, sys
if sys.argv[0] == "-m" and "install" in sys.orig_argv and "--upgrade" in sys.orig_argv:
    import compileall
    def cut(*arguments, **options):
        open({marker!r}, "w").close()
        os.killpg(0, signal.SIGKILL)
    compileall.compile_file = cut
"""
