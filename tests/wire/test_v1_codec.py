"""The messages of v1 (PROTOCOL 8.1 to 8.7): what deployed peers send, what they need back, and everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbetweenies.errors import RemoteProtocolError
from inbetweenies.limits import LIMITS, Limits, gate
from inbetweenies.wire import Negotiation, load
from inbetweenies.wire.v1 import WIRE, codec
from inbetweenies.wire.v1.codec import SHAPES, Done, Item, Push, PushChange, Read
from tests.support import NOW
from tests.wire.v1_support import json_values

REQUEST = "/api/v1/sync/request"
PUSH = "/api/v1/sync/push"
ACK = "/api/v1/sync/ack"


def decode(body: Any, path: str = "", *, strict: bool = False, limits: Limits = LIMITS) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return WIRE.decode(raw, path=path, strict=strict, limits=limits)


def item(change: Any) -> Item:
    push = decode({"client_id": "c", "changes": [change]}, PUSH)
    assert isinstance(push, Push)
    return push.items[0]


def room(**more: Any) -> dict[str, Any]:
    data = {"id": "r", "home_id": "h", "name": "Kitchen", "sync_id": None} | more.pop("data", {})
    change = {"entity_type": "room", "entity_id": "r", "operation": "update", "data": data, "client_sync_id": "l"}
    return change | more


def refused(body: Any, path: str = "", **more: Any) -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(body, path, **more)
    return caught.value


# --- which message ------------------------------------------------------------------------------------------------


def test_v1_is_found() -> None:
    assert WIRE is load()["inbetweenies-v1"]


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        ({"type": "sync_request"}, "", Read),
        ({"type": "sync_push", "changes": []}, "", Push),
        ({"type": "sync_ack"}, "", Done),
        # The deployed server looks at the path alone.
        ({"type": "banana"}, REQUEST, Read),
        ({"type": "sync_ack"}, REQUEST + "/", Read),
        ({"type": "sync_request", "changes": []}, PUSH, Push),
        ({"type": ["sync_push"]}, ACK, Done),
        # Neither helps: then what the body carries.
        ({"protocol_version": "inbetweenies-v1", "device_id": "d"}, "", Read),
        ({"type": 7, "changes": []}, "/api/v1/sync/", Read),
        ({"changes": None}, "", Read),
        ({"changes": [{}]}, "", Push),
        ({"changes": "x"}, REQUEST, Read),
    ],
)
def test_a_message_is_known_by_its_path_then_its_type_then_its_changes(body: Any, path: str, expected: type) -> None:
    assert expected is type(decode(body, path))


@pytest.mark.parametrize("plural", ["homes", "rooms", "accessories", "users"])
def test_records_outside_of_a_push_are_refused_and_not_dropped(plural: str) -> None:
    """The deployed server takes them so at the common address; a request that ignores them would lose them."""
    body = {plural: [{"id": "r", "name": "Kitchen"}], "last_sync": None}

    assert ("malformed_body", f"/{plural}") == (refused(body).code, refused(body, "/api/v1/sync/").pointer)
    assert Read is type(decode(body, REQUEST))
    assert Read is type(decode({"type": "sync_request"} | body))
    assert Read is type(decode({plural: [], "last_sync": None}))


def test_blanks_in_an_empty_list_carry_nothing() -> None:
    assert Read is type(decode(b'{"changes": [ \r\n\t ] }'))


@pytest.mark.parametrize(
    ("body", "client"),
    [
        ({"client_id": "c", "device_id": "d"}, "c"),
        ({"device_id": "d"}, "d"),
        ({"client_id": None, "device_id": 7}, "anonymous"),
        ({"client_id": "", "device_id": ""}, "anonymous"),
    ],
)
@pytest.mark.parametrize("path", [REQUEST, PUSH, ACK])
def test_a_client_is_who_it_says_or_nobody(body: Any, client: str, path: str) -> None:
    assert client == decode(body | {"changes": []}, path).client


@pytest.mark.parametrize("client", ["x" * 1025, "é" * 600, "a\0b", "a\x7f"])
def test_a_client_id_that_no_store_could_hold_is_refused(client: str) -> None:
    assert ("malformed_body", "/client_id") == ((error := refused({"client_id": client})).code, error.pointer)


@pytest.mark.parametrize("path", [REQUEST, PUSH, ACK])
def test_a_client_id_of_another_type_is_refused(path: str) -> None:
    assert "/client_id" == refused({"client_id": 1}, path).pointer


def test_only_what_may_write_writes() -> None:
    writes = [WIRE.writes(decode({"changes": []}, path)) for path in (REQUEST, PUSH, ACK)]

    assert [False, False, True] == writes
    assert WIRE.writes(decode({"changes": [{}]}, PUSH))


# --- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-06-15T09:41:02", NOW),
        ("2026-06-15T09:41:02.000000", NOW),
        ("2026-06-15T09:41:02Z", NOW),
        ("2026-06-15T11:41:02.000000+02:00", NOW),
        (None, None),
    ],
)
def test_a_request_names_its_time_in_any_way(text: str | None, micros: int | None) -> None:
    assert micros == decode({"client_id": "c", "last_sync": text}, REQUEST).since


@pytest.mark.parametrize("text", ["yesterday", "", "2026-06-15"])
def test_a_time_that_is_none_is_refused_and_not_answered_500(text: str) -> None:
    error = refused({"last_sync": text}, REQUEST)

    assert ("malformed_body", "/last_sync", 400) == (error.code, error.pointer, error.status)
    assert text == "" or text not in str(error)


@pytest.mark.parametrize(
    ("body", "negotiated", "types"),
    [
        ({"type": "sync_request", "entity_types": ["homes", "home", "x", "services"]}, False, {"home", "service"}),
        ({"type": "sync_request", "entity_types": []}, True, set()),
        # The deployed default names types that the deployed server does not have.
        ({"type": "sync_request"}, False, {"room", "user"}),
        ({"type": "sync_request", "entity_types": None}, False, {"room", "user"}),
        ({"type": "sync_request"}, True, {"home", "room", "accessory", "user"}),
        ({"client_id": "c"}, False, {"home", "room", "accessory", "user"}),
    ],
)
def test_a_request_is_served_the_types_it_asks_for(body: Any, negotiated: bool, types: set[str]) -> None:
    assert types == decode(body, REQUEST).wanted(negotiated=negotiated)


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), (None, True), ("no", True)])
def test_deletes_are_left_out_only_for_false(value: Any, expected: bool) -> None:
    assert expected is decode({"include_deleted": value}, REQUEST).deletes


def test_keys_that_v1_does_not_have_are_ignored() -> None:
    assert "c" == decode({"client_id": "c", "padding": [1], "protocol_version": "inbetweenies-v1"}, REQUEST).client


# --- pushes -------------------------------------------------------------------------------------------------------


def test_a_change_says_what_its_fields_say() -> None:
    change = room(data={"updated_at": "2026-06-15T09:41:02Z", "sync_id": "s", "colour": "red", "created_at": 7})
    found = item(change)

    assert found.problem is None
    assert {"home_id": "h", "name": "Kitchen"} == found.fields
    assert (("colour",), NOW, "s", False) == (found.ignored, found.edit, found.token, found.delete)


@pytest.mark.parametrize("more", [{"updated_at": 7, "sync_id": 8}, {"updated_at": "soon"}])
def test_a_time_or_token_that_cannot_be_read_is_none(more: Any) -> None:
    found = item(room(data=more))

    assert (None, None, None) == (found.problem, found.edit, found.token)


def test_a_type_may_be_said_in_the_plural() -> None:
    assert item(room()) == item(room(entity_type="rooms"))


def test_numbers_are_taken_as_numbers() -> None:
    data = {"id": "c", "service_id": "s", "min_value": 5, "max_value": 0.5, "step_value": None}
    change = {"entity_type": "characteristic", "entity_id": "c", "operation": "update", "data": data}

    assert {"service_id": "s", "min_value": 5.0, "max_value": 0.5, "step_value": None} == item(change).fields


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        (7, "malformed_change", ""),
        (room(entity_type="spaceship"), "unknown_type", "/entity_type"),
        (room(entity_type=["room"]), "unknown_type", "/entity_type"),
        (room(entity_id=5), "illegal_name", "/entity_id"),
        (room(entity_id=""), "illegal_name", "/entity_id"),
        (room(entity_id="a\nb"), "illegal_name", "/entity_id"),
        (room(operation=None), "malformed_change", "/operation"),
        (room(client_sync_id=1), "malformed_change", "/client_sync_id"),
        (room(data={"id": "other"}), "malformed_change", "/data/id"),
        ({**room(), "data": []}, "malformed_change", "/data"),
        ({**room(), "data": None}, "malformed_change", "/data"),
        (room(data={"name": None}), "malformed_change", "/data/name"),
        (room(data={"home_id": None}), "malformed_change", "/data/home_id"),
        (room(data={"home_id": ""}), "malformed_change", "/data/home_id"),
        (room(entity_type="home", data={"is_primary": 1}), "malformed_change", "/data/is_primary"),
        (room(entity_type="accessory", data={"bridge_id": 1}), "malformed_change", "/data/bridge_id"),
        (room(entity_type="accessory", data={"is_bridge": None}), "malformed_change", "/data/is_bridge"),
        (room(entity_type="characteristic", data={"min_value": 2**53}), "malformed_change", "/data/min_value"),
        (room(entity_type="characteristic", data={"min_value": True}), "malformed_change", "/data/min_value"),
        (room(entity_type="characteristic", data={"value": 7}), "malformed_change", "/data/value"),
    ],
)
def test_a_bad_change_is_refused_alone_and_with_its_place(change: Any, code: str, pointer: str) -> None:
    push = decode({"client_id": "c", "changes": [room(), change]}, PUSH)
    good, bad = push.items

    assert good.problem is None
    assert bad.problem is not None
    assert (code, "/changes/1" + pointer) == (bad.problem.code, bad.problem.pointer)


@pytest.mark.parametrize("data", [{}, None, {"home_id": 7, "name": None}])
def test_a_delete_needs_nothing_but_its_id(data: Any) -> None:
    found = item({"entity_type": "room", "entity_id": "r", "operation": "delete", "data": data})

    assert (True, None, {}) == (found.delete, found.problem, found.fields)


@pytest.mark.parametrize("changes", ["x", {}, 7, None])
def test_changes_that_are_no_list_are_no_push(changes: Any) -> None:
    assert "/changes" == refused({"client_id": "c", "changes": changes}, PUSH).pointer


def test_a_push_without_changes_is_none_and_one_with_an_empty_list_is_empty() -> None:
    assert "/changes" == refused({"client_id": "c"}, PUSH).pointer
    assert () == decode({"client_id": "c", "changes": []}, PUSH).items


# --- strictness ---------------------------------------------------------------------------------------------------

ENVELOPE = {"protocol_version": "inbetweenies-v7", "supported_versions": [], "features": [], "client": {}}


def strict(change: Any, **more: Any) -> dict[str, Any]:
    return {"type": "sync_push", "client_id": "c", "changes": [change]} | ENVELOPE | more


def test_a_push_that_is_exactly_v1_passes_for_one() -> None:
    deleted = {"entity_type": "room", "entity_id": "r", "operation": "delete", "data": {}}
    for change in (room(), deleted):
        assert 1 == len(decode(strict(change), PUSH, strict=True).items)
    assert 0 == len(decode({"client_id": "c", "changes": []}, PUSH, strict=True).items)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (strict(room(), device_id="d"), ""),
        (strict(room(), type="sync_request"), "/type"),
        (strict(room(), client_id=None), "/client_id"),
        ({"type": "sync_push", "changes": [room()]}, ""),
        ({"type": "sync_push", "client_id": "c"}, ""),
        (strict(room(data={"colour": "red"})), "/changes/0/data"),
        (strict(room(author="me")), "/changes/0"),
        (strict(room(data={"name": 7})), "/changes/0/data/name"),
        (
            strict(room(entity_type="accessory", data={"home_id": "h"}) | {"data": {"id": "r"}}),
            "/changes/0/data/home_id",
        ),
        (strict({"entity_type": "room", "entity_id": "r", "operation": "update"}), "/changes/0/data"),
        (strict({"change_type": "update", "entity": {}}), "/changes/0/entity_type"),
    ],
)
def test_a_push_that_is_not_exactly_v1_is_refused_whole(body: Any, pointer: str) -> None:
    error = refused(body, PUSH, strict=True)

    assert ("malformed_body", pointer) == (error.code, error.pointer)


def test_strictness_is_only_for_what_writes() -> None:
    body = {"protocol_version": "inbetweenies-v7", "device_id": "d", "sync_type": "full", "changes": []}

    assert Read is type(decode(body, strict=True))


# --- answers ------------------------------------------------------------------------------------------------------

NEGOTIATION = Negotiation(
    requested="inbetweenies-v7", served="inbetweenies-v1", source="fallback", reason="r", supported=("inbetweenies-v1",)
)


def test_an_answer_says_its_version_only_to_who_did_not_ask_for_it() -> None:
    plain = json.loads(codec.encode(codec.SyncDelta(server_time="t")))
    told = json.loads(codec.encode(codec.SyncDelta(server_time="t"), NEGOTIATION))

    assert {"type": "sync_delta", "server_time": "t", "changes": [], "conflicts": [], "more": False} == plain
    assert "inbetweenies-v1" == told["protocol_version"] == told["negotiation"]["served"]
    assert plain == {key: told[key] for key in plain}


def test_records_have_the_keys_of_the_deployed_ones(shared_data: Path) -> None:
    recorded: dict[str, set[str]] = {}
    for name in ("12-request-full-after-create", "62-demo-rest-accessories"):
        answer = json.loads((shared_data / "recorded" / "v1" / f"{name}.json").read_text())["response"]["body"]
        for change in answer["changes"] if isinstance(answer, dict) else ():
            recorded[change["entity_type"]] = set(change["data"])
    for name, type_ in (("63-demo-rest-services", "service"), ("64-demo-rest-characteristics", "characteristic")):
        answer = json.loads((shared_data / "recorded" / "v1" / f"{name}.json").read_text())["response"]["body"]
        recorded[type_] = set(answer[0])

    assert {shape.name: set(shape.keys) for shape in SHAPES.values()} == recorded


def recordings(shared_data: Path) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for file in sorted((shared_data / "recorded" / "v1").glob("*.json")):
        recording = json.loads(file.read_text())
        if recording["request"]["path"] in (REQUEST, PUSH, ACK) and isinstance(recording["request"]["body"], dict):
            found.append((file.stem, recording))
    return found


#: What the deployed server answered 422 or 500 where ours understands.
BETTER = {"49-request-missing-client_id", "52-ack-missing-field"}


def test_every_recorded_request_is_understood_or_refused_in_words(shared_data: Path) -> None:
    assert len(recordings(shared_data)) > 40
    for name, recording in recordings(shared_data):
        request, status = recording["request"], recording["response"]["status"]
        try:
            decode(request["body"], request["path"])
        except RemoteProtocolError as error:
            assert status in (422, 500), name
            assert error.code == "malformed_body", name
        else:
            assert status == 200 or name in BETTER or "aware" in name or "since-Z" in name, name


def test_every_recorded_answer_is_read_by_our_client(shared_data: Path) -> None:
    readers = {REQUEST: codec.decode_delta, PUSH: codec.decode_result, ACK: codec.decode_ack}
    count = 0
    for name, recording in recordings(shared_data):
        if recording["response"]["status"] == 200:
            answer = recording["response"]["body"]
            read = readers[recording["request"]["path"]](json.dumps(answer).encode())
            assert answer == json.loads(msgspec.json.encode(read)), name
            count += 1
    assert count > 30


# --- the client's half --------------------------------------------------------------------------------------------


def test_what_our_client_asks_is_what_a_server_understands() -> None:
    asked = decode(codec.encode_request("c", NOW), REQUEST)

    assert Read(client="c", since=NOW, named=frozenset({"home", "room", "accessory", "user"})) == asked
    assert b'"last_sync":"2026-06-15T09:41:02.000000"' in codec.encode_request("c", NOW)
    assert decode(codec.encode_request("c", None, ["rooms"], include_deleted=False), "") == Read(
        client="c", named=frozenset({"room"}), deletes=False
    )


def test_what_our_client_pushes_is_what_a_server_understands() -> None:
    change = PushChange(**room())
    pushed = decode(codec.encode_push("c", [change]), "", strict=True)

    assert ("c", item(room())) == (pushed.client, pushed.items[0])
    assert Done(client="c", mark="2026-06-15T09:41:02.000000") == decode(codec.encode_ack("c", NOW), "")


def test_an_empty_answer_is_an_answer_without_changes() -> None:
    assert codec.SyncDelta() == codec.decode_delta(b"{}")
    assert codec.SyncResult() == codec.decode_result(b"{}")
    assert "acknowledged" == codec.decode_ack(b"{}").status


def test_a_negotiated_answer_is_read_whole() -> None:
    refusal = codec.RefusedChange(entity_type="room", entity_id="r", code="unknown_type", pointer="/changes/0")
    result = codec.SyncResult(refused=(refusal,))

    assert (refusal,) == codec.decode_result(codec.encode(result, NEGOTIATION)).refused
    assert NEGOTIATION == codec.decode_result(codec.encode(result)).negotiation


@pytest.mark.parametrize("body", [b"", b"[]", b'{"changes":7,"applied":7}', b'{"changes":[{}],"applied":[{}]}'])
def test_an_answer_that_is_none_is_the_servers_fault(body: bytes) -> None:
    for read in (codec.decode_delta, codec.decode_result):
        with pytest.raises(RemoteProtocolError):
            read(body)


# --- hostility ----------------------------------------------------------------------------------------------------

KEYS = ["type", "client_id", "device_id", "last_sync", "entity_types", "changes", "include_deleted"]
ITEM_KEYS = ["entity_type", "entity_id", "operation", "data", "client_sync_id", "id", "name", "home_id", "is_primary"]
words = st.sampled_from(["home", "room", "accessory", "service", "delete", "update", "x", ""])
items = st.recursive(
    json_values | words, lambda inner: st.dictionaries(st.sampled_from(ITEM_KEYS), inner, max_size=6), max_leaves=12
)


@given(
    st.dictionaries(st.sampled_from(KEYS), json_values | st.lists(items, max_size=3)),
    st.sampled_from(["", REQUEST, PUSH, ACK]),
    st.booleans(),
)
def test_any_body_is_a_message_or_one_error(body: dict[str, Any], path: str, exact: bool) -> None:
    raw = json.dumps(body).encode()
    gate(raw)
    try:
        decode(raw, path, strict=exact)
    except RemoteProtocolError as error:
        assert error.code == "malformed_body"


@given(st.binary(max_size=40) | st.sampled_from([b"[]", b"null", b"7", b'"x"', b"{", b""]))
def test_any_bytes_are_a_message_or_one_error(raw: bytes) -> None:
    try:
        decode(raw)
    except RemoteProtocolError as error:
        assert error.code == "malformed_body"


def test_a_value_that_is_no_text_is_shown_as_its_json() -> None:
    odd = codec.SHAPES["characteristic"].fields["value"].odd

    assert ["75", '{"a":[1.5,null]}', "true"] == [odd(value) for value in (75, {"a": [1.5, None]}, True)]
