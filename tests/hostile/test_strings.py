"""Naughty strings in every field of every message: kept and served to the letter, or refused with a reason.

The strings of this folder always run; the big list of naughty strings runs where it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from blowing_off import BlowingOffClient
from inbetweenies import ProtocolFallback
from inbetweenies.model import SOURCE_TYPES, Context, parse_time
from inbetweenies.negotiation import NAME
from inbetweenies.stores.memory import MemoryStore
from tests.hostile.support import Line, Site, Tally, cases, check_problem, echoed
from tests.server.calls import edge, entity, sync, write
from tests.support import NOW, run

PUSH = "/api/v1/sync/push"
REQUEST = "/api/v1/sync/request"


@pytest.fixture(params=["strings.json", "the big list of naughty strings"])
def texts(request: pytest.FixtureRequest) -> list[str]:
    """Strings that UTF-8 can hold, each once."""
    if request.param == "strings.json":
        listed = [case["value"] for case in cases("strings")]
    else:
        shared: Path = request.getfixturevalue("shared_data")
        listed = json.loads((shared / "strings" / "blns.json").read_text())
        assert 515 == len(listed)
    return [text for text in dict.fromkeys(listed) if encodable(text)]


def encodable(text: str) -> bool:
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


def is_name(text: str) -> bool:
    """PROTOCOL 3.2, read plainly."""
    return 0 < len(text.encode()) <= 1024 and all(letter >= " " and letter != "\x7f" for letter in text)


# --- v2, what is stored -------------------------------------------------------------------------------------------

Row = dict[str, Any]
ANYTHING: Callable[[str], bool] = lambda _: True  # noqa: E731

#: Field -> (what it is in a row for a string, when it can be stored).
ENTITY_FIELDS: dict[str, tuple[Callable[[str], Row], Callable[[str], bool]]] = {
    "id": (lambda text: {"id": text}, is_name),
    "version": (lambda text: {"version": text}, is_name),
    "entity_type": (lambda text: {"entity_type": text}, lambda text: is_name(text.lower())),
    "name": (lambda text: {"name": text}, ANYTHING),
    "content, key": (lambda text: {"content": {text: [text]}}, ANYTHING),
    "content, value": (lambda text: {"content": {"value": {"of": text}}}, ANYTHING),
    "source_type": (lambda text: {"source_type": text}, ANYTHING),
    "user_id": (lambda text: {"user_id": text}, ANYTHING),
    "parent_versions": (lambda text: {"parent_versions": [text, "p", text]}, ANYTHING),
    "checksum": (lambda text: {"checksum": text}, ANYTHING),
}
EDGE_FIELDS: dict[str, tuple[Callable[[str], Row], Callable[[str], bool]]] = {
    "id": (lambda text: {"id": text}, is_name),
    "version": (lambda text: {"version": text}, lambda text: text == "" or is_name(text)),
    "relationship_type": (lambda text: {"relationship_type": text}, lambda text: is_name(text.lower())),
    "properties, key": (lambda text: {"properties": {text: 1}}, ANYTHING),
    "properties, value": (lambda text: {"properties": {"value": [text]}}, ANYTHING),
    "user_id": (lambda text: {"user_id": text}, ANYTHING),
}


def as_served(row: Row) -> Row:
    """PROTOCOL 3.4: what a server makes of the words in a row."""
    served = dict(row)
    for name in ("entity_type", "relationship_type"):
        if name in served:
            served[name] = served[name].lower()
    if "source_type" in served:
        served["source_type"] = served["source_type"].lower()
        if served["source_type"] not in SOURCE_TYPES:
            served |= {"source_type": "imported", "source_original": row["source_type"]}
    return served


def check_pushed(answer: Any, listed: str, rows: list[Row], takes: list[bool], field: str, where: str) -> None:
    """What can be stored is named in `listed`, in order; all else is refused in its place, with its reason."""
    places = [f"/changes/{where.format(n)}/{field.partition(',')[0]}" for n, fits in enumerate(takes) if not fits]

    assert [row["id"] for row, fits in zip(rows, takes, strict=True) if fits] == answer[listed]
    assert places == [refused["pointer"] for refused in answer.get("refused", [])]
    assert {"illegal_name"} >= {refused["code"] for refused in answer.get("refused", [])}


def test_every_field_of_what_is_stored_keeps_any_string_or_says_why_not(
    site: Site, honest: Line, texts: list[str]
) -> None:
    tally = Tally(f"{len(texts)} strings in fields of rows")
    with site.into(f"rows of {len(texts)}") as line:
        push_rows(line, texts, tally)
        check_histories(line, [text for text in texts if is_name(text)])
    assert site.serves(honest)
    tally.told()


def push_rows(line: Line, texts: list[str], tally: Tally) -> None:
    """Push a row for every string in every field, and check what another device is then served."""
    end = entity("end", "v1")
    cursor = line.post(sync(write(end), features=["acks"])).json["cursor"]

    def push(*changes: Row) -> Any:
        """Only what is new is told on the way, or every answer would be longer than the one before."""
        nonlocal cursor
        answer = line.post(sync(*changes, features=["acks"], sync_type="delta", cursor=cursor)).json
        cursor = answer["cursor"]
        return answer

    expected: dict[str, Row] = {"end": end}
    edges: dict[str, Row] = {}
    for field, (make, fits) in ENTITY_FIELDS.items():
        rows = [entity(f"{field} {n}", "v1") | make(text) for n, text in enumerate(texts)]
        takes = [fits(text) for text in texts]
        check_pushed(push(*map(write, rows)), "applied", rows, takes, field, "{}/entity")
        expected |= {row["id"]: as_served(row) for row, fit in zip(rows, takes, strict=True) if fit}
        for fit in takes:
            tally.add("stored" if fit else "refused")
    for field, (make, fits) in EDGE_FIELDS.items():
        links = [edge(f"{field} {n}", end, end) | make(text) for n, text in enumerate(texts)]
        takes = [fits(text) for text in texts]
        change = {"change_type": "update", "entity": None, "relationships": links}
        check_pushed(push(change), "applied_relationships", links, takes, field, "0/relationships/{}")
        edges |= {link["id"]: as_served(link) for link, fit in zip(links, takes, strict=True) if fit}
        for fit in takes:
            tally.add("stored" if fit else "refused")
    check_served(line, expected, edges)


def check_served(line: Line, entities: dict[str, Row], edges: dict[str, Row]) -> None:
    """Another device is served exactly what was stored, every string to the letter, and ids stay apart."""
    changes = line.post(sync(device_id="reader")).json["changes"]
    told = {change["entity"]["id"]: change["entity"] for change in changes}
    linked = {link["id"]: link for change in changes for link in change["relationships"]}

    assert len(entities) == len(changes)
    assert entities.keys() == told.keys()
    assert edges.keys() == linked.keys()
    for id_, row in [*entities.items(), *edges.items()]:
        found = told.get(id_) if "content" in row else linked[id_]
        assert found is not None
        assert {key: value for key, value in row.items() if value != ""} == {
            key: found.get(key) for key, value in row.items() if value != ""
        }


def check_histories(line: Line, ids: list[str]) -> None:
    for id_ in ids:
        told = line.ask("GET", f"/api/v1/graph/entities/{quote(id_, safe='')}/versions").json
        assert (id_, 1) == (told["entity_id"], told["count"])


async def test_a_client_pulls_what_is_called_anything_and_can_offer_it_to_an_empty_server(
    site: Site, texts: list[str], tmp_path: Path
) -> None:
    rows = []
    for text in filter(is_name, texts):
        words = {"entity_type": text, "source_type": text, "user_id": text, "name": text, "content": {text: text}}
        one = entity(text, text, **words)
        rows.append(write(one, edge(text, one, one, relationship_type=text, properties={text: text}, user_id=text)))
    named, empty = f"{len(rows)} names", f"{len(rows)} to come"
    with site.into(named) as line:
        pushed = line.post(sync(*rows)).json
    assert [row["entity"]["id"] for row in rows] == pushed["applied"] == pushed["applied_relationships"]
    for graph in (named, empty):
        token, _ = site.tokens.create(graph, "bob")
        async with BlowingOffClient(tmp_path / "second.db", site.process.url, token, device="second") as client:
            report = await client.sync()
            assert (True, 0, ()) == (report.equal, report.pending, report.refused)
            pulled = {found.id: found.name for found in await client.find(deleted=True)}
            assert {row["entity"]["id"]: row["entity"]["name"] for row in rows} == pulled


@pytest.mark.parametrize("field", ENTITY_FIELDS)
def test_a_string_that_utf_8_cannot_hold_is_refused_with_its_message(line: Line, field: str) -> None:
    lone = [case["value"] for case in cases("strings") if not encodable(case["value"])]
    make, _ = ENTITY_FIELDS[field]
    for text in lone:
        good, bad = entity(f"good {field}", "v1"), entity("bad", "v1") | make(text)
        reply = line.post(sync(write(good), write(bad)))
        assert "malformed_body" == reply.code
        assert 404 == line.ask("GET", f"/api/v1/graph/entities/{quote(good['id'])}/versions").status

    assert lone


# --- v1, what is stored -------------------------------------------------------------------------------------------

V1_FIELDS = {
    "home": ("name",),
    "room": ("name",),
    "user": ("name",),
    "accessory": ("name", "manufacturer", "model", "serial_number", "firmware_version", "sync_id", "updated_at"),
    "service": ("name", "service_type"),
    "characteristic": ("characteristic_type", "value", "format", "unit"),
}
HUBS = 64  # devices that share the nested records: each edit of one makes a whole row of its device


def v1_change(type_: str, id_: str, field: str, text: str, hub: int = 0, **more: Any) -> Row:
    links = {"home": {}, "service": {"accessory_id": f"hub{hub}"}, "characteristic": {"service_id": f"s{hub}"}}
    plain = {"name": "n", "service_type": "t", "characteristic_type": "t"}
    data = {"id": id_, **plain, **links.get(type_, {"home_id": "h"}), field: text}
    return {
        "entity_type": type_,
        "entity_id": id_,
        "operation": "create",
        "client_sync_id": id_,
        "data": data,
        **more,
    }


def test_every_field_of_a_v1_record_keeps_any_string_or_says_why_not(
    site: Site, honest: Line, texts: list[str]
) -> None:
    tally = Tally(f"{len(texts)} strings in fields of v1 records")
    with site.into(f"records of {len(texts)}") as line:
        push_records(line, texts, tally)
    assert site.serves(honest)
    tally.told()


def push_records(line: Line, texts: list[str], tally: Tally) -> None:
    """Push a record for every string in every field, and check what another client is then served."""

    def push(changes: list[Row]) -> Any:
        return line.post({"type": "sync_push", "client_id": "c", "changes": changes}, PUSH).json

    hubs = [entity(f"hub{n}", "v1", content={"services": {f"s{n}": {}}}) for n in range(HUBS)]
    line.post(sync(*map(write, [entity("h", "v1", entity_type="home"), *hubs])))
    expected: dict[str, tuple[str, str]] = {}
    for type_, fields in V1_FIELDS.items():
        for field in fields:
            named = {f"{type_} {field} {n}": text for n, text in enumerate(texts)}
            answer = push([v1_change(type_, id_, field, text, n % HUBS) for n, (id_, text) in enumerate(named.items())])
            assert list(named) == [each["client_sync_id"] for each in answer["applied"]]
            if field not in ("sync_id", "updated_at"):  # those are the server's own on the way back
                expected |= {id_: (field, text) for id_, text in named.items()}
            for _ in named:
                tally.add("stored")

    answer = push([v1_change("accessory", text, "name", "by id") for text in texts])
    legal = [text for text in texts if is_name(text)]
    assert legal == [each["client_sync_id"] for each in answer["applied"]]
    assert [text for text in texts if not is_name(text)] == [each["client_sync_id"] for each in answer["refused"]]
    assert {"illegal_name"} >= {each["code"] for each in answer["refused"]}
    for text in texts:
        tally.add("stored" if is_name(text) else "refused")

    every = ["homes", "rooms", "accessories", "users", "services", "characteristics"]
    reply = line.post({"type": "sync_request", "client_id": "other", "entity_types": every}, REQUEST)
    told = {each["entity_id"]: each["data"] for each in reply.json["changes"]}
    expected |= dict.fromkeys(legal, ("name", "by id"))
    assert {id_: text for id_, (_, text) in expected.items()} == {
        id_: told[id_][field] for id_, (field, _) in expected.items()
    }


# --- what is not stored -------------------------------------------------------------------------------------------

V2 = {"protocol_version": "inbetweenies-v2", "device_id": "d", "user_id": "u", "sync_type": "full"}
READ = {"type": "sync_request", "client_id": "c"}


def is_cursor(text: str) -> bool:
    return text == "" or (text.isascii() and text.isdigit() and len(text) <= 16)


#: Place -> (the message for a string, the codes of its answer).
MESSAGES: dict[str, tuple[Callable[[str], Row], Callable[[str], set[str]]]] = {
    "device_id": (
        lambda text: V2 | {"device_id": text},
        lambda text: {"served"} if len(text.encode()) <= 1024 else {"malformed_body"},
    ),
    "user_id": (
        lambda text: V2 | {"user_id": text},
        lambda text: {"served"} if len(text.encode()) <= 1024 else {"malformed_body"},
    ),
    "sync_type": (lambda text: V2 | {"sync_type": text}, lambda _: {"malformed_body"}),
    "cursor": (
        lambda text: V2 | {"cursor": text},
        lambda text: {"served"} if is_cursor(text) else {"bad_cursor"},
    ),
    "cursor, with features": (lambda text: V2 | {"cursor": text, "features": ["acks"]}, lambda _: {"served"}),
    "filters.since": (
        lambda text: V2 | {"filters": {"since": text}},
        lambda text: {"malformed_body"} if parse_time(text) is None else {"served"},
    ),
    "filters.entity_types": (lambda text: V2 | {"filters": {"entity_types": [text]}}, lambda _: {"served"}),
    "filters.modified_by": (lambda text: V2 | {"filters": {"modified_by": [text]}}, lambda _: {"served"}),
    "features": (lambda text: V2 | {"features": [text]}, lambda _: {"served"}),
    "vector_clock": (lambda text: V2 | {"vector_clock": {"clocks": {text: text}}}, lambda _: {"served"}),
    "protocol_version": (
        lambda text: V2 | {"protocol_version": text},
        lambda text: {"served"} if NAME.fullmatch(text) else {"malformed_version"},
    ),
    "supported_versions": (
        lambda text: V2 | {"supported_versions": [text]},
        lambda text: {"served"} if NAME.fullmatch(text) else {"malformed_version"},
    ),
    "an unknown key": (lambda text: V2 | {f"{text} ": text}, lambda _: {"served"}),
    "v1 client_id": (
        lambda text: READ | {"client_id": text},
        lambda text: {"served"} if text == "" or is_name(text) else {"malformed_body"},
    ),
    "v1 device_id": (
        lambda text: {"device_id": text},
        lambda text: {"served"} if text == "" or is_name(text) else {"malformed_body"},
    ),
    "v1 last_sync": (
        lambda text: READ | {"last_sync": text},
        lambda text: {"malformed_body"} if parse_time(text) is None else {"served"},
    ),
    "v1 entity_types": (lambda text: READ | {"entity_types": [text]}, lambda _: {"served"}),
    "v1 type": (lambda text: READ | {"type": text}, lambda _: {"served"}),
    "v1 sync_completed_at": (
        lambda text: {"type": "sync_ack", "client_id": "c", "sync_completed_at": text},
        lambda _: {"served"},
    ),
    "v1 operation": (
        lambda text: {"type": "sync_push", "changes": [v1_change("home", "h", "name", "n", operation=text)]},
        lambda _: {"served"},
    ),
    "v1 entity_type": (
        lambda text: {"type": "sync_push", "changes": [v1_change("home", "h", "name", "n", entity_type=text)]},
        lambda _: {"served"},
    ),
    "v1 link": (
        lambda text: {"type": "sync_push", "changes": [v1_change("room", "r", "home_id", text)]},
        lambda _: {"served"},
    ),
}


def test_every_other_field_takes_any_string_or_says_why_not(texts: list[str]) -> None:
    fallback = ProtocolFallback(MemoryStore(), clock=lambda: NOW)
    tally = Tally(f"{len(texts)} strings in fields of messages")
    for place, (make, codes) in MESSAGES.items():
        for text in texts:
            body = json.dumps(make(text)).encode()
            reply = run(fallback.handle(body, context=Context(now=NOW)))
            told = json.loads(reply.body)
            code = "served" if reply.status == 200 else told["code"]
            assert {code} == codes(text), (place, text, told)
            tally.add(code)
            if code != "served":
                check_problem(reply.status, reply.body)
                assert not echoed(text.encode(), reply.body), (place, text)
            if place == "vector_clock":
                assert {text: text} == told["vector_clock"]["clocks"]
    tally.told()


def test_a_header_names_the_version_of_the_body_or_the_request_is_refused(texts: list[str]) -> None:
    fallback = ProtocolFallback(MemoryStore(), clock=lambda: NOW)
    tally = Tally(f"{len(texts)} strings in the version header")
    for text in texts:
        reply = run(fallback.handle(json.dumps(V2).encode(), context=Context(now=NOW), header=text))
        code = json.loads(reply.body)["code"]
        assert ("version_conflict" if NAME.fullmatch(text) else "malformed_version") == code
        check_problem(reply.status, reply.body)
        tally.add(code)
    tally.told()
