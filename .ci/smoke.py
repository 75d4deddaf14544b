"""What a user gets from the wheel: run with the installed interpreter, from a folder without any source."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

BIN = Path(sys.executable).parent


def run(*command: str) -> str:
    print("$", *command)
    done = subprocess.run([BIN / command[0], *command[1:]], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def base() -> None:
    for name in ("inbetweenies", "blowing_off"):
        package = import_module(name)
        assert Path(str(package.__file__)).is_relative_to(sys.prefix), f"{name} came from {package.__file__}"
        for public in package.__all__:
            assert getattr(package, public) is not None
        assert files(name).joinpath("py.typed").is_file()
    assert "inbetweenies" in files("inbetweenies").joinpath("PROTOCOL.md").read_text("utf-8")
    for program in ("inbetweenies", "blowing-off"):
        assert "Usage" in run(program, "--help")
    # The decision matrix, the risk matrix and what rehearses them come along.
    assert "data_loss" in run("inbetweenies", "matrix")
    assert "1 of 1 passed" in run("inbetweenies", "drill", "--scenario", "every_request_fails")
    print("inbetweenies", version("inbetweenies"))


def with_server() -> None:
    told = json.loads(run("inbetweenies", "demo", "--json"))
    assert told["converged"] is True, told
    print("the demo converged")


if __name__ == "__main__":
    with_server() if "server" in sys.argv[1] else base()
