"""The command line: one line per error, three exit codes, secrets shown once; the whole way of a deployed client."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from inbetweenies import cli, cli_versions
from inbetweenies.asgi import release
from inbetweenies.auth import SqliteTokens
from inbetweenies.stores.clock import wall_clock
from tests.server.calls import GUARD_SECONDS, ROOT, SYNC, V2, edge, entity, environment, running, sync, write

Capture = pytest.CaptureFixture[str]
SERVE = ["-m", "inbetweenies.cli", "serve", "--port", "0", "--db"]


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "home.db"


def made(db: Path, *more: str, capsys: Capture) -> dict[str, Any]:
    """What `token create --json` prints."""
    assert cli.invoke(["token", "create", "--db", str(db), "--graph", "home", "--user", "ann", "--json", *more]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


def one_line(capsys: Capture) -> str:
    """The error: one line on standard error, nothing on standard output."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("inbetweenies: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- tokens -------------------------------------------------------------------------------------------------------


def test_a_token_is_printed_once_and_works(db: Path, capsys: Capture) -> None:
    assert cli.invoke(["token", "create", "--db", str(db), "--graph", "home", "--user", "ann"]) == 0
    captured = capsys.readouterr()
    secret = captured.out.removesuffix("\n")

    assert secret.startswith("ib1_")
    assert "\n" not in secret
    assert secret not in captured.err
    tokens = SqliteTokens(db)
    found = tokens.find(secret, wall_clock())
    tokens.close()
    assert found is not None
    assert (found.graph, found.user, found.device, found.role) == ("home", "ann", None, "member")
    for arguments in (["list"], ["list", "--json"], ["revoke", found.token_id]):
        cli.invoke(["token", *arguments, "--db", str(db)])
    after = capsys.readouterr()
    assert secret.split("_", 2)[2] not in after.out + after.err


def test_a_token_as_json(db: Path, capsys: Capture) -> None:
    before = wall_clock()
    told = made(db, "--device", "phone", "--days", "7", "--admin", capsys=capsys)

    assert told["token"].startswith(f"ib1_{told['key_id']}_")
    assert {name: told[name] for name in ("graph", "user", "device", "role", "state", "revoked")} == {
        "graph": "home",
        "user": "ann",
        "device": "phone",
        "role": "admin",
        "state": "valid",
        "revoked": None,
    }
    assert told["created"].endswith("+00:00")
    tokens = SqliteTokens(db)
    [info] = tokens.list()
    tokens.close()
    assert info.expires is not None
    assert 7 * cli_versions.DAY_US <= info.expires - before <= 7 * cli_versions.DAY_US + GUARD_SECONDS * 10**6


def test_the_file_is_readable_by_its_owner_only(db: Path, capsys: Capture) -> None:
    made(db, capsys=capsys)

    assert stat.S_IMODE(db.stat().st_mode) == 0o600


def test_tokens_are_listed_with_their_state(db: Path, capsys: Capture) -> None:
    first = made(db, capsys=capsys)
    second = made(db, "--device", "phone", capsys=capsys)
    third = made(db, "--days", "1", capsys=capsys)
    assert cli.invoke(["token", "revoke", first["key_id"], "--db", str(db), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"revoked": first["key_id"]}
    with sqlite3.connect(db) as connection:
        connection.execute("UPDATE tokens SET expires = 1 WHERE key_id = ?", (third["key_id"],))
    connection.close()

    assert cli.invoke(["token", "list", "--db", str(db), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["tokens"]
    assert cli.invoke(["token", "list", "--db", str(db)]) == 0
    lines = capsys.readouterr().out.splitlines()

    assert [(info["key_id"], info["state"]) for info in listed] == [
        (first["key_id"], "revoked"),
        (second["key_id"], "valid"),
        (third["key_id"], "expired"),
    ]
    assert listed[1] == {name: value for name, value in second.items() if name != "token"}
    assert lines[0].split() == ["key_id", "state", "graph", "user", "device", "role", "created", "expires"]
    assert lines[2].split()[:6] == [second["key_id"], "valid", "home", "ann", "phone", "member"]
    assert len(lines) == 4


def test_whoever_pastes_the_whole_token_revokes_it_and_sees_none_of_it(db: Path, capsys: Capture) -> None:
    told = made(db, capsys=capsys)

    assert cli.invoke(["token", "revoke", told["token"], "--db", str(db)]) == 0
    assert capsys.readouterr().out == f"revoked {told['key_id']}\n"
    assert cli.invoke(["token", "revoke", told["token"], "--db", str(db)]) == 1
    assert told["token"].split("_", 2)[2] not in one_line(capsys)


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nothing"], 2, "No such command"),
        (["serve"], 2, "Missing option '--db'"),
        (["serve", "--db", "{db}", "--port", "65536"], 2, "65536"),
        (["serve", "--db", "{db}", "--host", "0.0.0.0", "--no-auth"], 2, "expected a loopback --host"),
        (["serve", "--db", "{db}", "--host", "example.org", "--no-auth"], 2, "expected a loopback --host"),
        (["serve", "--db", "{db}", "--host", "", "--no-auth"], 2, "expected a loopback --host"),
        (["serve", "--db", "{db}", "--host", "::", "--no-auth"], 2, "expected a loopback --host"),
        (["serve", "--db", "{db}/no/such/folder"], 1, "expected to open or make"),
        (["serve", "--db", "{dir}"], 2, "is a directory"),
        (["serve", "--db", "{junk}"], 1, "restore the file"),
        (["serve", "--db", "{db}", "--host", "192.0.2.77"], 1, "expected to listen on 192.0.2.77 port 8000"),
        (["serve", "--db", "{db}", "--host", "no.such.host.invalid"], 1, "expected to listen on"),
        (["serve", "--db", "{db}", "--port", "{taken}"], 1, "choose another --host or --port"),
        (["token"], 2, ""),
        (["token", "create", "--db", "{db}", "--graph", "home"], 2, "Missing option '--user'"),
        (["token", "create", "--db", "{db}", "--graph", "", "--user", "ann"], 2, "graph: expected 1 to 255 bytes"),
        (["token", "create", "--db", "{db}", "--graph", "g", "--user", "a\nb"], 2, "printable characters"),
        (["token", "create", "--db", "{db}", "--graph", "g", "--user", "u", "--days", "0"], 2, "days"),
        (["token", "list", "--db", "{db}"], 1, "expected a database at"),
        (["token", "revoke", "x", "--db", "{db}"], 1, "expected a database at"),
        (["token", "list", "--db", "{junk}"], 1, "restore the file"),
        (["demo", "{db}"], 2, "does not exist"),
    ],
)
def test_what_goes_wrong_is_told_in_one_line(
    tmp_path: Path, capsys: Capture, arguments: list[str], code: int, told: str
) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"no database" * 1000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"db": tmp_path / "home.db", "dir": tmp_path, "junk": junk, "taken": taken.getsockname()[1]}

        assert cli.invoke([argument.format(**names) for argument in arguments]) == code

    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("inbetweenies: ")]
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert len(errors) == 1
    assert told in errors[0]


def test_an_unknown_key_id_is_a_failure(db: Path, capsys: Capture) -> None:
    made(db, capsys=capsys)

    assert cli.invoke(["token", "revoke", "00000000", "--db", str(db)]) == 1
    assert "expected the key id of a token that is not revoked" in one_line(capsys)


def test_stopping_a_command_is_told_and_no_traceback(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_existing", stopped)

    assert cli.invoke(["token", "list", "--db", str(db)]) == 1
    assert capsys.readouterr() == ("", "\ninbetweenies: stopped\n")


def test_the_release_is_printed(capsys: Capture) -> None:
    assert cli.invoke(["--version"]) == 0
    assert capsys.readouterr().out == f"inbetweenies {release()}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "-h"], ["token", "create", "--help"], ["demo", "--help"]])
def test_help_is_printed(arguments: list[str], capsys: Capture) -> None:
    assert cli.invoke(arguments) == 0
    assert "Usage: inbetweenies" in capsys.readouterr().out


def test_the_entry_point_exits_with_the_code() -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["nothing"])

    assert stopped.value.code == 2


@pytest.mark.parametrize(("code", "flags"), [(0, []), (1, ["--json"])])
def test_the_demo_gets_its_files_and_gives_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, flags: list[str]
) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in files:
        file.write_text("{}")
    called: list[tuple[list[Path], bool]] = []

    def show(files: list[Path], as_json: bool) -> int:
        called.append((files, as_json))
        return code

    class Entry:
        def load(self) -> Any:
            return show

    def found(**names: str) -> list[Entry]:
        asked.append(names)
        return [Entry()]

    asked: list[dict[str, str]] = []
    monkeypatch.setattr("importlib.metadata.entry_points", found)

    assert cli.invoke(["demo", *map(str, files), *flags]) == code
    assert called == [(files, bool(flags))]
    assert asked == [{"group": "inbetweenies.commands", "name": "demo"}]


def test_a_build_without_the_demo_says_so(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())

    assert cli.invoke(["demo"]) == 1
    assert "install it again" in one_line(capsys)


def test_without_the_server_extra_it_says_what_to_install(
    db: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "inbetweenies.asgi.serving", raising=False)

    assert cli.invoke(["serve", "--db", str(db)]) == 1
    assert "pip install 'inbetweenies[server]'" in one_line(capsys)
    assert not db.exists()


# --- serving ------------------------------------------------------------------------------------------------------


def test_a_server_says_how_to_get_in_and_ends_in_order(db: Path) -> None:
    with running([*SERVE, str(db)]) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert httpx.get(server.url + "/health").json() == {"status": "healthy"}
        assert httpx.post(server.url + SYNC, json=sync()).status_code == 401
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(GUARD_SECONDS) == 0
        assert server.process.stderr is not None
        errors = server.process.stderr.read()
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""

    assert f"inbetweenies token create --db {db} --graph default --user NAME" in errors
    assert stat.S_IMODE(db.stat().st_mode) == 0o600


def test_without_auth_a_deployed_v2_client_needs_no_token(db: Path) -> None:
    with running([*SERVE, str(db), "--no-auth", "--graph", "mine", "--host", "localhost"]) as server:
        pushed = httpx.post(server.url + SYNC, json=sync(write(entity("e1", "v1"))))
        me = httpx.get(server.url + "/api/v1/auth/me").json()

    assert pushed.json()["applied"] == ["e1"]
    assert me["graph"] == "mine"


def test_a_server_remarks_what_its_owner_should_know(db: Path, capsys: Capture) -> None:
    db.touch(mode=0o644)
    db.chmod(0o644)

    cli._remark(db, "0.0.0.0", "home", closed=False)

    told = capsys.readouterr().err
    assert "plain HTTP" in told
    assert "chmod 600" in told
    assert "token create" not in told


def test_the_whole_way_of_a_deployed_client(db: Path) -> None:
    """Log in, look for the server, pull everything, push, pull what changed; as Blowing-Off does."""
    with (
        running([*SERVE, str(db)], INBETWEENIES_ADMIN_PASSWORD="sésame") as server,
        httpx.Client(base_url=server.url, timeout=5) as client,
    ):
        wrong = client.post("/api/v1/auth/admin/login", json={"password": "wrong"})
        assert (wrong.status_code, wrong.json()["detail"]) == (401, "Invalid password")
        login = client.post("/api/v1/auth/admin/login", json={"password": "sésame"}).json()
        assert login["expires_in"] == 604_800
        client.headers["Authorization"] = f"Bearer {login['access_token']}"

        assert client.get("/health").status_code == 200
        pulled = client.post(SYNC, json=sync(user_id="client-user")).json()
        assert pulled["changes"] == []

        room = entity("4f8e", "2026-06-15T09:41:02.000001+00:00-000000-ann", entity_type="room")
        lamp = entity("9a1c", "2026-06-15T09:41:02.000002+00:00-000001-ann", content={"on": True})
        pushed = client.post(
            SYNC,
            json=sync(
                write(room, change_type="create"),
                write(lamp, edge("e1", lamp, room), change_type="create"),
                sync_type="delta",
            ),
        ).json()
        assert pushed["applied"] == ["4f8e", "9a1c"]
        assert pushed["applied_relationships"] == ["e1"]
        # KittenKong clears a mark only when it sees the id in `changes`.
        assert {change["entity"]["id"] for change in pushed["changes"]} == {"4f8e", "9a1c"}

        naive = pulled["server_time"].removesuffix("+00:00")
        delta = client.post(SYNC, json=sync(sync_type="delta", filters={"since": naive})).json()
        assert {change["entity"]["id"] for change in delta["changes"]} == {"4f8e", "9a1c"}
        nothing = client.post(SYNC, json=sync(sync_type="delta", filters={"since": delta["server_time"]})).json()
        assert nothing["changes"] == []

        kitten = {**lamp, "version": "v-1795397460220", "entity_type": "DEVICE", "source_type": "ZIGBEE", "name": "x"}
        upper = client.post(SYNC, json=sync(write(kitten), sync_type="delta")).json()
        assert upper["applied"] == ["9a1c"]

        assert client.get("/api/v1/graph/relationships").json()["count"] == 1
        assert client.get("/api/v1/graph/entities/9a1c/versions").json()["count"] == 2
        status = client.get("/api/v1/sync/status", params={"device_id": "tablet"}).json()
        assert (status["device_id"], status["protocol_version"]) == ("tablet", V2)
        assert client.get("/api/v1/auth/me").json()["user_id"] == "admin"
        assert client.get("/api/version").json()["preferred_version"] == V2

    # What was acknowledged is there after a restart, and so is the token.
    with running([*SERVE, str(db)]) as server:
        again = httpx.post(
            server.url + SYNC, json=sync(), headers={"Authorization": f"Bearer {login['access_token']}"}
        ).json()

    assert {change["entity"]["id"] for change in again["changes"]} == {"4f8e", "9a1c"}
    assert again["state_digest"] != pulled["state_digest"]


def test_tokens_made_and_revoked_beside_a_running_server_count_at_once(db: Path, capsys: Capture) -> None:
    with running([*SERVE, str(db)]) as server:
        home = made(db, capsys=capsys)
        bearer = {"Authorization": f"Bearer {home['token']}"}
        assert httpx.post(server.url + SYNC, json=sync(), headers=bearer).status_code == 200

        assert cli.invoke(["token", "revoke", home["key_id"], "--db", str(db)]) == 0

        refused = httpx.post(server.url + SYNC, json=sync(), headers=bearer)
        assert (refused.status_code, refused.json()["detail"]) == (401, "Invalid or expired token")


def test_a_killed_server_loses_nothing_that_it_acknowledged(db: Path, capsys: Capture) -> None:
    token = made(db, capsys=capsys)["token"]
    bearer = {"Authorization": f"Bearer {token}"}
    process = subprocess.Popen(
        [sys.executable, *SERVE, str(db)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    assert process.stdout is not None
    url = process.stdout.readline().removeprefix("listening on ").strip()
    for number in range(5):
        pushed = httpx.post(url + SYNC, json=sync(write(entity(f"e{number}", "v1"))), headers=bearer).json()
        assert pushed["applied"] == [f"e{number}"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()

    with running([*SERVE, str(db)]) as server:
        pulled = httpx.post(server.url + SYNC, json=sync(), headers=bearer).json()

    assert [change["entity"]["id"] for change in pulled["changes"]] == [f"e{number}" for number in range(5)]
