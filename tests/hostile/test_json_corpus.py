"""Every file of a JSON conformance suite, as a body and spliced into messages, against a server process over HTTP.

`y_` files are JSON, `n_` files are none, of `i_` files the standard leaves it open; what we say to those is written
down here. `transform` files are ones that parsers are known to read differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw, Struct

from blowing_off import BlowingOffClient
from inbetweenies.limits import canonical
from tests.hostile.support import CANARY, Line, Reply, Site, Tally, echoed
from tests.server.calls import SYNC, entity, sync, write

PUSH = "/api/v1/sync/push"
REQUEST = "/api/v1/sync/request"

#: Of the files whose verdict is ours to choose: what a double rounds to a number or Python holds exactly is taken.
TAKEN = frozenset(
    """
    i_number_double_huge_neg_exp i_number_real_underflow i_number_too_big_neg_int i_number_too_big_pos_int
    i_number_very_big_negative_int
    number_-9223372036854775808 number_-9223372036854775809 number_1.0 number_1.000000000000000005
    number_1000000000000000 number_10000000000000000999 number_1e-999 number_1e6 number_9223372036854775807
    number_9223372036854775808 object_key_nfc_nfd object_key_nfd_nfc object_same_key_different_values
    object_same_key_same_value object_same_key_unclear_values string_with_escaped_NULL
    """.split()
)


class File(Struct, frozen=True, kw_only=True):
    """One file of the suite. `value` is what another parser reads in it, if it is to be taken."""

    name: str
    raw: bytes
    taken: bool
    value: Any = None


def corpus(shared_data: Path) -> list[File]:
    paths = sorted((shared_data / "json").glob("test_*/*.json"))
    return [_file(path) for path in paths]


def _file(path: Path) -> File:
    raw = path.read_bytes()
    taken = path.name.startswith("y_") or path.stem in TAKEN
    return File(name=path.stem, raw=raw, taken=taken, value=json.loads(raw) if taken else None)


def typed(value: Any) -> str:
    """`value` told with its types: ``1``, ``1.0`` and ``True`` are equal, but are not the same."""
    if isinstance(value, dict):
        return repr(sorted((key, typed(item)) for key, item in value.items()))
    return repr([typed(item) for item in value]) if isinstance(value, list) else repr(value)


# --- where a file is put ------------------------------------------------------------------------------------------

Splice = Callable[[File, int], bytes]
HOLE = '"@hole@"'


def spliced(message: Any, raw: bytes) -> bytes:
    """A message with `raw` in the place of its hole, as no encoder would write it."""
    before, hole, after = json.dumps(message).partition(HOLE)
    assert hole
    return before.encode() + raw + after.encode()


def v2_push(content: Any, number: int) -> Any:
    one = entity(f"{CANARY}-{number}", "v1", content=content, name=CANARY)
    return sync(write(one), device_id=CANARY, user_id=CANARY)


def v1_push(type_: str, id_: str, data: Any) -> Any:
    change = {"entity_type": type_, "entity_id": id_, "operation": "update", "client_sync_id": CANARY, "data": data}
    return {"type": "sync_push", "client_id": CANARY, "changes": [change]}


def characteristic(number: int, value: Any) -> Any:
    id_ = f"c{number}"
    return v1_push("characteristic", id_, {"id": id_, "service_id": "s", "characteristic_type": "t", "value": value})


def is_edit_of_lamp(value: Any) -> bool:
    return isinstance(value, dict) and value.get("id", "lamp") == "lamp"


#: Name -> (path, the message around a file, whether a value that is JSON is taken there; else how it is refused).
PLACES: dict[str, tuple[str, Splice, Callable[[Any], bool], str]] = {
    "a body": (SYNC, lambda file, _: file.raw, lambda value: isinstance(value, dict), "malformed_body"),
    "a v1 push": (PUSH, lambda file, _: file.raw, lambda _: False, "malformed_body"),
    "content": (
        SYNC,
        lambda file, number: spliced(v2_push("@hole@", 100_000 + number), file.raw),
        lambda value: isinstance(value, dict),
        "malformed_body",
    ),
    "a value in content": (
        SYNC,
        lambda file, number: spliced(v2_push({"kept": "@hole@"}, number), file.raw),
        lambda _: True,
        "",
    ),
    "v1 data": (
        PUSH,
        lambda file, _: spliced(v1_push("accessory", "lamp", "@hole@"), file.raw),
        is_edit_of_lamp,
        "malformed_change",
    ),
    "a v1 value": (
        PUSH,
        lambda file, number: spliced(characteristic(number, "@hole@"), file.raw),
        lambda value: value is None or isinstance(value, str),
        "malformed_change",
    ),
}


def outcome(reply: Reply) -> str:
    """``served``, or the code of the refusal, of the body or of its one item."""
    if reply.status == 200 and "refused" in reply.json:
        [refused] = reply.json["refused"]
        assert not reply.json["applied"]
        return str(refused["code"])
    return reply.code


async def test_every_file_is_judged_right_wherever_it_stands_and_what_is_taken_can_be_had(
    site: Site, line: Line, honest: Line, shared_data: Path, tmp_path: Path
) -> None:
    home, lamp = entity("home", "v1", entity_type="home"), entity("lamp", "v1", content={"services": {"s": {}}})
    assert ["home", "lamp"] == line.post(sync(write(home), write(lamp))).json["applied"]
    files = corpus(shared_data)
    taken: dict[str, dict[int, File]] = {place: {} for place in PLACES}
    tallies = {place: Tally(place) for place in PLACES}
    for number, file in enumerate(files):
        for place, (path, splice, fits, code) in PLACES.items():
            reply = line.post(splice(file, number), path)
            expected = "malformed_body" if not file.taken else "served" if fits(file.value) else code
            assert expected == outcome(reply), (file.name, place, reply.body[:300])
            if reply.status != 200:
                assert not echoed(file.raw, reply.body), (file.name, place)
            tallies[place].add(expected)
            if expected == "served":
                taken[place][number] = file
        assert site.serves(honest), f"after {file.name}"

    assert {340} == {tally.told() for tally in tallies.values()}
    served = dict(contents(line))
    check_read_back(served, taken["a value in content"], taken["content"])
    await check_second_client(site, served, tmp_path)
    check_v1_values(line, taken["a v1 value"])


# --- what was taken can be had --------------------------------------------------------------------------------------


class _Entity(Struct):
    id: str
    content: Raw


class _Change(Struct):
    entity: _Entity


class _Answer(Struct):
    changes: list[_Change]


def contents(line: Line) -> Iterator[tuple[str, bytes]]:
    """The ids of a graph and the JSON of their contents, byte by byte as they are served."""
    reply = line.post(sync(device_id="reader"))
    assert 200 == reply.status
    for change in msgspec.json.decode(reply.body, type=_Answer).changes:
        yield change.entity.id, bytes(change.entity.content)


def check_read_back(served: dict[str, bytes], values: dict[int, File], wholes: dict[int, File]) -> None:
    """What is served is equal to what another parser reads in the file, and is written the same again."""
    for number, file in values.items():
        raw = served[f"{CANARY}-{number}"]
        assert typed({"kept": file.value}) == typed(json.loads(raw)), file.name
        assert raw == canonical(msgspec.json.decode(raw)), file.name
    for number, file in wholes.items():
        assert typed(file.value) == typed(json.loads(served[f"{CANARY}-{100_000 + number}"])), file.name

    assert 2 + len(values) + len(wholes) == len(served)
    print(f"read back: {len(values)} values, {len(wholes)} whole contents")


async def check_second_client(site: Site, served: dict[str, bytes], folder: Path) -> None:
    async with BlowingOffClient(folder / "second.db", site.process.url, site.token, device="second") as client:
        report = await client.sync()
        pulled = {found.id: bytes(found.content) for found in await client.find(deleted=True)}

    assert (True, 0) == (report.equal, report.pending)
    assert served == pulled


def check_v1_values(line: Line, pushed: dict[int, File]) -> None:
    """What v1 clients pushed comes back to them, in a view of all that v2 clients pushed (law 7)."""
    wanted = {"type": "sync_request", "client_id": "reader", "entity_types": ["accessories", "characteristics"]}
    changes = line.post(wanted, REQUEST).json["changes"]
    told = {each["entity_id"]: each["data"]["value"] for each in changes if each["entity_type"] == "characteristic"}

    assert {f"c{number}": file.value for number, file in pushed.items()} == told
    print(f"read back: {len(told)} values of characteristics")


def test_any_text_is_a_v1_value_and_comes_back_to_the_letter(site: Site, shared_data: Path) -> None:
    """A v1 value is JSON text in a string: whatever it holds, nobody parses it."""
    home, hub = entity("house", "v1", entity_type="home"), entity("hub", "v1", content={"services": {"t": {}}})
    texts = {
        f"t{n}": file.raw.decode("latin-1") for n, file in enumerate(corpus(shared_data)) if len(file.raw) < 10_000
    }
    changes = [
        {
            "entity_type": "characteristic",
            "entity_id": id_,
            "operation": "create",
            "client_sync_id": id_,
            "data": {"id": id_, "service_id": "t", "characteristic_type": "t", "value": text},
        }
        for id_, text in texts.items()
    ]
    wanted = {"type": "sync_request", "client_id": "other", "entity_types": ["characteristics"]}
    with site.into("texts") as line:
        line.post(sync(write(home), write(hub)))
        pushed = line.post({"type": "sync_push", "client_id": "texts", "changes": changes}, PUSH)
        told = line.post(wanted, REQUEST).json["changes"]

    assert [f"server-{id_}" for id_ in texts] == [each["server_sync_id"] for each in pushed.json["applied"]]
    assert texts == {each["entity_id"]: each["data"]["value"] for each in told}
    print(f"v1 values as text: {len(texts)} taken and read back")
