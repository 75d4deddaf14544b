"""The client against servers that are hostile or broken: one error each, nothing changed here, the token kept.

What a single exchange does with a bad answer is in `tests/client/test_transport.py`; here a whole sync meets it, with
edits that wait, on real sockets and in a real file.
"""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blowing_off import BadAnswer, BlowingOffClient, Refused, SyncReport, Unauthorized, Unreachable
from blowing_off.transport import HttpTransport
from inbetweenies.errors import InbetweeniesError, ServedVersionMismatch
from tests.client.test_client import Home, client_of
from tests.client.test_transport import CHUNKED, TOKEN, Act, Evil, Naps, answer, endlessly, says, says_once, serving
from tests.hostile.support import Tally
from tests.server.calls import entity, sync, write
from tests.support import run

FIELDS = {
    "protocol_version": "inbetweenies-v2",
    "changes": [],
    "applied": [],
    "server_time": None,
    "features": ["acks"],
}


def told(body: bytes | None = None, **fields: Any) -> Act:
    """A server that answers 200 with `body`, else with an answer in which `fields` are as they should not be."""
    return says(answer(json.dumps(FIELDS | fields).encode() if body is None else body))


def written(json_text: str) -> Act:
    """The same, with a field written as no encoder would."""
    return told(json.dumps(FIELDS)[:-1].encode() + b"," + json_text.encode("utf-8", "surrogatepass") + b"}")


def head(*lines: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    )


BOMB = gzip.compress(bytes(20_000_000))
PACKED = gzip.compress(json.dumps(FIELDS).encode())
ROW = entity("x", "v")
ACK = {"kind": "entity", "id": "x", "version": "v", "outcome": "applied"}


async def flood(evil: Evil, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Five million numbers in a list."""
    await says(answer(b"[" + b"0," * 5_000_000 + b"0]"))(evil, reader, writer)


#: Name -> (what the server does, the one error that a sync ends with).
EVIL: dict[str, tuple[Act, type[InbetweeniesError]]] = {
    # HTTP
    "nothing but a status": (says(b"HTTP/1.1 204 No Content\r\n\r\n"), BadAnswer),
    "not modified": (says(b"HTTP/1.1 304 Not Modified\r\n\r\n"), Refused),
    "another protocol": (says(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), Unreachable),
    "HTTP/0.9": (says_once(json.dumps(FIELDS).encode()), Unreachable),
    "a header of 200,000 bytes": (says(answer(x="y" * 200_000)), Unreachable),
    "twenty thousand headers": (says(head(b"content-length: 2", *[b"x: y"] * 20_000) + b"{}"), BadAnswer),
    "two lengths": (says(head(b"content-length: 2", b"content-length: 3") + b"{} "), Unreachable),
    "a length that is no number": (says(head(b"content-length: two") + b"{}"), Unreachable),
    "a length of forty digits": (says(head(b"content-length: " + b"9" * 40) + b"{}"), Unreachable),
    "a body that ends early": (says_once(answer(json.dumps(FIELDS).encode(), content_length="5000")), Unreachable),
    "a chunk that ends early": (says_once(CHUNKED + b"1000\r\n{}"), Unreachable),
    "a chunk of no size": (says_once(CHUNKED + b"zz\r\n{}\r\n"), Unreachable),
    "an endless body": (endlessly(CHUNKED, b"1000\r\n" + b" " * 4096 + b"\r\n"), BadAnswer),
    "a bomb": (says(answer(BOMB, content_encoding="gzip")), BadAnswer),
    "a bomb in a bomb": (says(answer(gzip.compress(BOMB), content_encoding="gzip, gzip")), BadAnswer),
    "a bomb in a bomb, said in two headers": (
        says(head(b"content-encoding: gzip", b"content-encoding: gzip", b"content-length: 2") + b"{}"),
        BadAnswer,
    ),
    "a bomb in an error": (says(answer(BOMB, "404 Not Found", content_encoding="gzip")), Refused),
    "the beginning of gzip": (says(answer(PACKED[:-4], content_encoding="gzip")), BadAnswer),
    "a login page": (says(answer(b"<html>Welcome to our hotel", kind="text/html")), BadAnswer),
    "a login page that says that it is JSON": (told(b"<html>Welcome to our hotel"), BadAnswer),
    "another type": (says(answer(json.dumps(FIELDS).encode(), kind="text/json")), BadAnswer),
    "forbidden": (says(answer(b"{}", "403 Forbidden")), Unauthorized),
    # JSON
    "not UTF-8": (told(b'{"protocol_version":"inbetweenies-v2","server_time":"\xff"}'), BadAnswer),
    "UTF-16": (told(json.dumps(FIELDS).encode("utf-16")), BadAnswer),
    "a byte order mark": (told(b"\xef\xbb\xbf" + json.dumps(FIELDS).encode()), BadAnswer),
    "a hundred thousand levels": (told(b"[" * 100_000), BadAnswer),
    "levels in a field that nobody knows": (written('"x":' + "[" * 500 + "]" * 500), BadAnswer),
    "five million nodes": (flood, BadAnswer),
    "a number that is none": (written('"changes":[{"entity":{"content":{"x":NaN}}}]'), BadAnswer),
    "a number beyond all": (written('"cursor":1e400'), BadAnswer),
    "half a character": (written('"cursor":"\\ud800"'), BadAnswer),
    "a cursor that is a number": (told(cursor=2**62), BadAnswer),
    "a row without its fields": (told(changes=[{"change_type": "update", "entity": {"id": "x"}}]), BadAnswer),
    "a row whose content is a list": (told(changes=[write(ROW | {"content": []})]), BadAnswer),
    "an ack of what is no kind": (told(acks=[ACK | {"kind": "x"}]), BadAnswer),
    "an ack that says what no ack says": (told(acks=[ACK | {"outcome": "eaten"}]), BadAnswer),
    "a version that was not offered": (told(protocol_version="inbetweenies-v3"), ServedVersionMismatch),
    "an older version, in which it then says nothing": (told(protocol_version="inbetweenies-v1"), BadAnswer),
    "no version": (told(protocol_version=None), ServedVersionMismatch),
    "somebody else's JSON": (told(b'{"status":"ok"}'), BadAnswer),
}  # fmt: skip

#: What only ends at the deadline of the exchange.
SLOW: dict[str, Act] = {
    "a drip": endlessly(CHUNKED, b"1\r\n \r\n"),
    "headers that never end": endlessly(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "interim answers for ever": endlessly(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a length and then nothing": says(head(b"content-length: 100")),
}


async def furnished(home: Home, path: Path) -> None:
    """A replica that has synced with an honest server, and has edits of every kind that wait."""
    async with client_of(home, path=path) as client:
        lamp, hall, gone = [await client.add("device", name) for name in ("Lamp", "Hall", "Gone")]
        await client.sync()
        await client.change(lamp.id, patch={"on": True})
        await client.delete(gone.id)
        await client.link(lamp.id, hall.id, "located_in", {"shelf": 1})
        await client.add("note", "New")


def replica(path: Path) -> list[Any]:
    """Everything in a replica's file, but for the line that says what went wrong last, and which pushes were tried."""
    with closing(sqlite3.connect(path)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        return [
            sorted(
                (row[0], json.loads(row[1]) | {"pushed": []}) if row[0] == "state" else row
                for row in db.execute(f'SELECT * FROM "{table}"').fetchall()
                if row[0] != "last_error"
            )
            for table in tables
        ]


async def attempt(evil: Evil, path: Path, **settings: Any) -> BaseException:
    """A sync with an evil server, and the error that it ends with."""
    naps = Naps()
    bounds = {"timeout_s": 60, "wire_bytes_max": 8_000_000, "decoded_bytes_max": 16_000_000} | settings
    http = HttpTransport(evil.url, TOKEN, sleep=naps.sleep, uniform=naps.uniform, **bounds)
    async with http, BlowingOffClient(path, transport=http) as client:
        with pytest.raises(InbetweeniesError) as caught:
            await client.sync()
        assert str(caught.value) == (await client.status()).last_error
    assert TOKEN not in f"{caught.value!r} {caught.value}"
    return caught.value


async def check_intact(home: Home, path: Path, before: list[Any]) -> None:
    """Nothing changed, and with an honest server all that waited arrives."""
    assert before == replica(path)
    async with client_of(home, path=path) as client:
        report = await client.sync()
        assert (4, 0, True) == (report.pushed, report.pending, report.equal)


async def test_whatever_a_server_answers_a_sync_ends_with_one_error_and_changes_nothing(tmp_path: Path) -> None:
    tally = Tally("evil servers")
    for number, (name, (act, error)) in enumerate(EVIL.items()):
        home, path = Home(), tmp_path / f"{number}.db"
        await furnished(home, path)
        before = replica(path)
        async with serving(act) as evil:
            found = await attempt(evil, path)
        assert isinstance(found, error), (name, found)
        assert len(evil.requests) <= 5, name
        await check_intact(home, path, before)
        tally.add(error.__name__)

    assert len(EVIL) == tally.told()


@pytest.mark.parametrize("kind", SLOW)
async def test_whatever_a_server_delays_a_sync_ends_at_its_deadline_and_changes_nothing(
    kind: str, tmp_path: Path
) -> None:
    home, path = Home(), tmp_path / "slow.db"
    await furnished(home, path)
    before = replica(path)
    async with serving(SLOW[kind]) as evil:
        found = await attempt(evil, path, timeout_s=0.3)

    assert isinstance(found, Unreachable)
    await check_intact(home, path, before)


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 Other", "307 Temporary", "308 Permanent"])
async def test_a_server_that_sends_the_client_elsewhere_does_not_get_the_token_there(
    status: str, tmp_path: Path
) -> None:
    home, path = Home(), tmp_path / "sent.db"
    await furnished(home, path)
    before = replica(path)
    async with serving(says(answer())) as elsewhere:
        sends = answer(b"", status, location=f"{elsewhere.url}/api/v1/sync/", refresh=f"0; url={elsewhere.url}")
        async with serving(says(sends)) as evil:
            found = await attempt(evil, path)

    assert isinstance(found, Refused)
    assert (0, []) == (elsewhere.connections, elsewhere.requests)
    await check_intact(home, path, before)


async def test_the_answer_about_edges_is_believed_no_more_than_any_other(tmp_path: Path) -> None:
    """A server without features is asked for its edges in a second request; what the first told is kept."""
    home, path = Home(), tmp_path / "edges.db"
    await furnished(home, path)
    for second in (
        b"[" * 1000,
        b'{"relationships":[{}]}',
        b'{"relationships":{}}',
        b"\xff",
        b'{"relationships":[1e400]}',
    ):
        plain = answer(json.dumps(FIELDS | {"features": [], "cursor": None}).encode())

        async def act(evil: Evil, reader: Any, writer: Any, first: bytes = plain, second: bytes = second) -> None:
            while True:
                request = await evil.request(reader)
                writer.write(first if request.startswith(b"POST") else answer(second))

        async with serving(act) as evil:
            assert isinstance(await attempt(evil, path), BadAnswer)
    async with client_of(home, path=path) as client:
        report = await client.sync()

    assert (0, True) == (report.pending, report.equal)
    assert {"Lamp", "Hall", "New"} == names(home)


def names(home: Home) -> set[str]:
    """What lives on an honest server."""
    changes = run(home.fallback.handle_sync_request(sync()))["changes"]
    return {change["entity"]["name"] for change in changes if change["change_type"] != "delete"}


# --- answers that are well formed, and lies -----------------------------------------------------------------------

LIES: dict[str, dict[str, Any]] = {
    "a cursor that never moves": {"more": True, "cursor": "0:0:" + "0" * 32},
    "more, and no cursor": {"more": True, "cursor": None},
    "a place that no log reaches": {"cursor": f"ffff:{2**62}:" + "f" * 32},
    "a cursor of a megabyte": {"cursor": "c" * 1_000_000},
    "acks of what was never sent": {"acks": [ACK]},
    "refusals of what was never sent": {
        "refused": [{"id": "x", "version": "v", "code": "no\n", "pointer": "p", "detail": "d" * 9_999}]
    },
    "conflicts of what nobody has": {
        "conflicts": [{"entity_id": "\x00", "local_version": "", "remote_version": "~", "resolution_strategy": "\n"}]
    },
    "a digest that is none": {"digest": "x"},
    "a digest of nothing": {"digest": "0" * 64},
    "a time that no calendar has": {"server_time": "9999-12-31T23:59:60-99:99"},
    "it starts anew, always": {"resync": True},
}


async def lied_to(act: Act, path: Path) -> tuple[SyncReport, Evil]:
    """What a replica says of a sync with a server that lies."""
    async with serving(act) as evil:
        http = HttpTransport(evil.url, TOKEN)
        async with http, BlowingOffClient(path, transport=http) as client:
            return await client.sync(), evil


@pytest.mark.parametrize("lie", LIES)
async def test_a_server_that_lies_takes_nothing_that_waits_away(lie: str, tmp_path: Path) -> None:
    home, path = Home(), tmp_path / "lied-to.db"
    await furnished(home, path)
    report, evil = await lied_to(told(**({"acks": []} | LIES[lie])), path)

    # It may be offered more than what waits, if it says that it has something else.
    assert (0, True) == (report.pushed, report.pending >= 4)
    assert len(evil.requests) < 20
    async with client_of(home, path=path) as client:
        report = await client.sync()
        assert (0, True) == (report.pending, report.equal)
    assert {"Lamp", "Hall", "New"} == names(home)


async def test_a_row_told_under_the_version_of_one_that_waits_does_not_replace_it(tmp_path: Path) -> None:
    home, path = Home(), tmp_path / "collision.db"
    await furnished(home, path)
    async with client_of(home, path=path) as client:
        waiting = [json.loads(item.copy.body) for item in await client.pending() if item.copy.kind == "entity"]
    forged = [write(row | {"name": "forged", "content": {}}) for row in waiting]
    report, _ = await lied_to(told(changes=forged, acks=[]), path)

    assert 4 == report.pending
    async with client_of(home, path=path) as client:
        assert {"Lamp", "New"} <= {found.name for found in await client.find()}
        assert waiting == [json.loads(item.copy.body) for item in await client.pending() if item.copy.kind == "entity"]


# --- any answer at all --------------------------------------------------------------------------------------------

NASTY: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2**62,
        10**400,
        1e308,
        "",
        "\x00",
        "~",
        "x" * 3000,
        "ffff:9:" + "0" * 32,
        [],
        {},
        [[]],
        {"a": {}},
    ]
) | st.text(max_size=5)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def changed(value: Any, data: st.DataObject) -> None:
    """Put something else in a few places of an answer, or take them out."""
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(value)))
        at = value
        for key in path[:-1]:
            at = at[key]
        if data.draw(st.booleans()):
            at[path[-1]] = copy.deepcopy(data.draw(NASTY))
        elif isinstance(at, dict):
            del at[path[-1]]


@settings(derandomize=True, max_examples=60)
@given(st.data())
def test_after_any_answer_whatever_no_edit_is_lost_that_the_server_did_not_name(data: st.DataObject) -> None:
    async def story() -> None:
        home = Home()
        bob = client_of(home, "bob")
        for name in ("Hall", "Stairs"):
            await bob.add("room", name)
        await bob.sync()
        ann = client_of(home, "ann")
        await ann.sync()
        lamp = await ann.add("device", "Lamp", {"on": False})
        await ann.link(lamp.id, (await ann.find("Hall"))[0].id, "located_in")
        named: set[str] = set()

        def change(value: Any) -> None:
            if 1 == len(home.asked) - asked:  # only the first answer of this sync
                changed(value, data)
            for key in ("acks", "applied", "applied_relationships"):
                listed = value.get(key)
                for each in listed if isinstance(listed, list) else ():
                    named.add(str(each.get("id") if isinstance(each, dict) else each))

        waiting = {item.copy.id: item.copy.hash for item in await ann.pending()}
        asked = len(home.asked)
        home.change = change
        with suppress(InbetweeniesError):
            await ann.sync()
        left = {item.copy.id: item.copy.hash for item in await ann.pending()}
        assert {id_: hash_ for id_, hash_ in waiting.items() if id_ not in named}.items() <= left.items()
        home.change = None
        await ann.sync()
        report = await ann.sync()
        # What it planted here that no server takes still waits, with the reason.
        assert report.equal or all(item.note for item in await ann.pending())
        assert {"Lamp", "Hall", "Stairs"} <= names(home)
        await ann.close()
        await bob.close()

    run(story())
