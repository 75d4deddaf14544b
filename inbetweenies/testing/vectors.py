"""Golden vectors: exchanges as plain JSON, which prove a server in any language by running it.

Each file in ``vectors/`` is one message and its answer: what it shows (`about`), the clauses of PROTOCOL it pins, the
vector it comes `after` on the same server (null: the server is new), the time, the request, and the answer: whole if
it was served; if it was refused, the fields that must agree. A new server has the epoch `EPOCH` and an empty graph.

Files are only ever added: a changed one would mean that a deployed peer is answered differently from today on. To add
one, call `record`. To check a server::

    for vector in load().values():
        check(vector, make_server)      # make_server() -> post(now, path, body) -> (status, answer)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import Struct

from ..model import Context
from ..router import ProtocolFallback
from ..stores.memory import MemoryStore

EPOCH: Final = "00000000000000e1"

#: One request to one server: (now, path, body) -> (status, answer).
Post: TypeAlias = Callable[[int, str, bytes], tuple[int, dict[str, Any]]]


class Vector(Struct, frozen=True, kw_only=True):
    """One exchange. `request` is the body as a JSON value, or `text` is the body to the letter."""

    about: str
    clauses: tuple[str, ...]
    after: str | None
    now: int
    path: str = ""
    request: Any = None
    text: str | None = None
    status: int
    answer: dict[str, Any]

    @property
    def body(self) -> bytes:
        return self.text.encode() if self.text is not None else json.dumps(self.request).encode()


def load() -> dict[str, Vector]:
    """All vectors by name, in the order of their names."""
    folder = files(__package__) / "vectors"
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return {file.name.removesuffix(".json"): msgspec.json.decode(file.read_bytes(), type=Vector) for file in found}


def reference() -> Post:
    """A new server of this package."""
    clock = [0]
    server = ProtocolFallback(MemoryStore(lambda: EPOCH), clock=lambda: clock[0])

    def post(now: int, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        clock[0] = now
        try:
            server.handle(body, context=Context(now=now), path=path).send(None)
        except StopIteration as stop:
            return stop.value.status, json.loads(stop.value.body)
        raise AssertionError("a memory store never waits")

    return post


def check(vector: Vector, make_server: Callable[[], Post] = reference) -> None:
    """Play `vector`, and what comes before it, to a new server.

    Raises:
        AssertionError: the last answer is another one.
    """
    known = load()
    story = [vector]
    while story[0].after is not None:
        story.insert(0, known[story[0].after])
    post = make_server()
    status, answer = [post(step.now, step.path, step.body) for step in story][-1]
    told = answer if status == 200 else {name: answer.get(name) for name in vector.answer}
    assert (status, told) == (vector.status, vector.answer), f"{vector.about}\n{told}\nis not\n{vector.answer}"


def record(
    folder: Path,
    name: str,
    about: str,
    clauses: tuple[str, ...],
    *,
    now: int,
    after: str | None = None,
    request: Any = None,
    text: str | None = None,
    path: str = "",
    make_server: Callable[[], Post] = reference,
) -> Vector:
    """Write a new vector with what the server answers today. Look at it before you keep it.

    Raises:
        FileExistsError: vectors are never changed.
    """
    draft = Vector(
        about=about, clauses=clauses, after=after, now=now, path=path, request=request, text=text, status=0, answer={}
    )
    known = load()
    story = [draft]
    while story[0].after is not None:
        story.insert(0, known[story[0].after])
    post = make_server()
    status, answer = [post(step.now, step.path, step.body) for step in story][-1]
    if status != 200:
        answer = {key: answer.get(key) for key in ("code", "status", "pointer", "supported") if key in answer}
    vector = msgspec.structs.replace(draft, status=status, answer=answer)
    with (folder / f"{name}.json").open("x", encoding="utf-8") as file:
        file.write(json.dumps(msgspec.to_builtins(vector), indent=1, ensure_ascii=False) + "\n")
    return vector
