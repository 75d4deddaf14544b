"""HomeKit accessory databases: whatever the bytes, what is good goes in and what is bad is told."""

from __future__ import annotations

import copy
import json
import shlex
import threading
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blowing_off import hap, homekit
from blowing_off.homekit import Draft, Import, Unread, link_id, read
from inbetweenies.model import uuid5

DUMPS = Path(__file__).parents[3] / "shared/data/homekit"

Json = Any


def load(value: Json, *, source: str = "home.json", home_id: str | None = None, graph: str = "") -> Import:
    # Python writes NaN, Infinity and halves of surrogate pairs, which JSON does not have: so do the files we meet.
    return by_iid(read(json.dumps(value).encode(), source=source, home_id=home_id, graph=graph))


def by_iid(result: Import) -> Import:
    """`result` with services and characteristics under the iids of the database, which is how tests speak of them."""
    return msgspec.structs.replace(result, drafts=tuple(map(draft_by_iid, result.drafts)))


def draft_by_iid(draft: Draft) -> Draft:
    services = draft.content["services"]
    iids = {key: str(service["iid"]) for key, service in services.items()}
    plain = {}
    for key, service in services.items():
        inside = {
            str(each["iid"]): {name: value for name, value in each.items() if name != "iid"}
            for each in service["characteristics"].values()
        }
        linked = {"linked": [iids.get(other, other) for other in service["linked"]]} if "linked" in service else {}
        without = {name: value for name, value in service.items() if name != "iid"}
        plain[iids[key]] = {**without, **linked, "characteristics": inside}
    return msgspec.structs.replace(draft, content={**draft.content, "services": plain})


# --- databases ----------------------------------------------------------------------------------------------------

INFORMATION = {"name": "23", "manufacturer": "20", "model": "21", "serial-number": "30", "firmware-revision": "52"}


def characteristic(iid: int, type_: str = "25", value: Json = True, **more: Json) -> dict[str, Json]:
    return {"iid": iid, "type": type_, "perms": ["pr", "pw", "ev"], "format": "bool", "value": value, **more}


def service(iid: int, type_: str = "43", *characteristics: Json, **more: Json) -> dict[str, Json]:
    return {"iid": iid, "type": type_, "characteristics": list(characteristics), **more}


def information(iid: int = 1, **facts: Json) -> dict[str, Json]:
    records = [
        characteristic(iid + 1 + index, INFORMATION[name.replace("_", "-")], value, format="string", perms=["pr"])
        for index, (name, value) in enumerate(facts.items())
    ]
    return service(iid, "3E", *records)


def accessory(aid: int, *services: Json, **facts: Json) -> dict[str, Json]:
    return {"aid": aid, "services": [information(**facts), *services]}


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
HAP_KEYS = st.sampled_from(
    [
        *("accessories", "aid", "services", "iid", "type", "primary", "hidden", "linked", "characteristics"),
        *("perms", "value", "format", "unit", "minValue", "minStep", "maxLen", "valid-values", "description"),
    ]
)
# Halves of surrogate pairs too: JSON can spell them.
TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
VALUES = st.recursive(
    SCALARS | TEXT | st.sampled_from(["3E", "23", "0000003e-0000-1000-8000-0026bb765291"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HAP_KEYS | TEXT, inner, max_size=5),
    max_leaves=25,
)

SERVICE_TYPES = st.sampled_from(
    [
        *sorted(hap.SERVICES.keys() - {"3E", "A1"}),
        "0000004A-0000-1000-8000-0026bb765291",
        "E863F007-079E-48FF-8F27-9C2605A29F52",
    ]
)
CHARACTERISTIC_TYPES = st.sampled_from(list(hap.CHARACTERISTICS))
GOOD_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
GOOD_FACTS = st.dictionaries(
    st.sampled_from(["name", "manufacturer", "model", "serial_number", "firmware_revision"]), st.text(max_size=8)
)


@st.composite
def databases(draw: st.DrawFn) -> list[dict[str, Json]]:
    """Good databases: ids unique where HAP wants it, 1 to 4 accessories, often one with aid 1 among them."""
    aids = draw(st.lists(st.integers(1, 4) | st.integers(1, homekit.ID_MAX), min_size=1, max_size=4, unique=True))
    found = []
    for aid in aids:
        iids = count(draw(st.integers(10, homekit.ID_MAX - 99)))
        services = [
            service(
                next(iids),
                type_,
                *(characteristic(next(iids), each, value) for each, value in parts),
                primary=draw(st.booleans()),
            )
            for type_, parts in draw(
                st.lists(
                    st.tuples(SERVICE_TYPES, st.lists(st.tuples(CHARACTERISTIC_TYPES, GOOD_VALUES), max_size=3)),
                    max_size=3,
                )
            )
        ]
        found.append(accessory(aid, *services, **draw(GOOD_FACTS)))
    return found


def check(result: Import) -> None:
    """What holds of every answer, however bad the file."""
    ids = [draft.id for draft in result.drafts] + [link.id for link in result.links]
    assert len(ids) == len(set(ids))
    known = {draft.id for draft in result.drafts}
    for draft in result.drafts:
        assert draft.name.strip() == draft.name != ""
        assert draft.name.isprintable() or not any(ord(character) < 32 for character in draft.name)
        assert len(draft.name) <= homekit.NAME_MAX
        assert (draft.entity_type, draft.source_type) == ("device", "homekit")
        # Content is JSON, and says the same after a round through it.
        assert msgspec.json.decode(msgspec.json.encode(draft.content)) == draft.content
    for link in result.links:
        assert link.from_id in known
        assert link.relationship_type == "part_of"
    for unread in result.unread:
        assert unread.reason.startswith("expected ")
        assert ", got " in unread.reason
        assert "`" not in unread.reason
        assert len(unread.reason) <= homekit.REASON_MAX
        assert len(unread.place.splitlines()) == 1
        assert shlex.split(unread.by_hand)[:2] in (["blowing-off", "add"], ["blowing-off", "set"])


# --- properties ---------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_exception(data: bytes) -> None:
    result = read(data, source="home.json", home_id="h")

    check(result)
    assert result.drafts == ()


@given(databases(), st.data())
def test_a_database_with_damaged_bytes_is_read_without_an_exception(good: Json, draw: st.DataObject) -> None:
    data = json.dumps(good).encode()
    at = draw.draw(st.integers(0, len(data)))
    until = draw.draw(st.integers(at, min(len(data), at + 20)))

    check(read(data[:at] + draw.draw(st.binary(max_size=5)) + data[until:], source="home.json", home_id="h"))


@given(VALUES)
def test_any_json_value_is_read_without_an_exception(value: Json) -> None:
    check(load(value, home_id="h"))


@given(st.lists(VALUES, max_size=3), st.lists(VALUES, max_size=3), st.lists(VALUES, max_size=3))
def test_every_record_is_either_read_or_told(accessories: Json, services: Json, characteristics: Json) -> None:
    result = load([{"aid": 7, "services": [service(1, "43", *characteristics), *services]}, *accessories])

    check(result)
    first = result.drafts[0].content
    told = [unread.place.rpartition(", at ")[2].split("/") for unread in result.unread]
    assert first["aid"] == 7
    assert len(result.drafts) + sum(len(at) == 2 for at in told) == 1 + len(accessories)
    told = [at for at in told if at[1] == "0"]
    assert len(first["services"]) + sum(len(at) == 4 for at in told) == 1 + len(services)
    told = [at for at in told if at[3] == "0"]
    assert len(first["services"]["1"]["characteristics"]) + sum(len(at) == 6 for at in told) == len(characteristics)


@given(databases(), st.text(max_size=10), st.booleans())
def test_reading_again_gives_the_same(good: Json, graph: str, has_home: bool) -> None:
    home = "home-1" if has_home else None
    first = load(good, source="/exports/monday/home.json", home_id=home, graph=graph)

    assert load(copy.deepcopy(good), source="/exports/monday/home.json", home_id=home, graph=graph) == first
    assert load(good, source="C:\\exports\\home.json", home_id=home, graph=graph) == first
    assert load({"accessories": good}, source="home.json", home_id=home, graph=graph) == first


@given(databases())
def test_every_accessory_becomes_one_device_with_all_it_has(good: Json) -> None:
    result = load(good, home_id="h")

    check(result)
    assert result.unread == ()
    assert [str(draft.content["aid"]) for draft in result.drafts] == [str(one["aid"]) for one in good]
    for draft, one in zip(result.drafts, good, strict=True):
        assert list(draft.content["services"]) == [str(part["iid"]) for part in one["services"]]
        for part in one["services"]:
            got = draft.content["services"][str(part["iid"])]
            assert got["is_primary"] is part.get("primary", False)
            assert {key: value["value"] for key, value in got["characteristics"].items()} == {
                str(each["iid"]): None if each["value"] is None else msgspec.json.encode(each["value"]).decode()
                for each in part["characteristics"]
            }


@given(databases())
def test_links_follow_the_bridge_and_the_home(good: Json) -> None:
    result = load(good, home_id="home-1", graph="g")

    device = {one["aid"]: draft.id for one, draft in zip(good, result.drafts, strict=True)}
    bridge = device.get(1) if len(good) > 1 else None
    expected: set[tuple[str, str | None, str | None]] = {(id_, "home-1", None) for id_ in device.values()}
    expected |= {(id_, bridge, "bridge") for id_ in device.values() if bridge not in (None, id_)}
    assert {(link.from_id, link.to_id, link.properties.get("role")) for link in result.links} == expected
    assert [draft.id for draft in result.drafts if draft.content["is_bridge"]] == ([bridge] if bridge else [])


REQUIRED = {1: ("aid", "services"), 2: ("iid", "type", "characteristics"), 3: ("iid", "type", "perms")}


def list_of(database: Json, path: tuple[int, ...]) -> Json:
    """The list that the record at `path` stands in."""
    for index, key in zip(path[:-1], ("services", "characteristics"), strict=False):
        database = database[index][key]
    return database


@given(databases(), st.data())
def test_one_bad_record_leaves_the_others_as_they_were(good: Json, draw: st.DataObject) -> None:
    paths: list[tuple[int, ...]] = [(i,) for i in range(len(good))]
    paths += [(i, j) for i, one in enumerate(good) for j in range(len(one["services"]))]
    paths += [(i, j, k) for i, j in paths[len(good) :] for k in range(len(good[i]["services"][j]["characteristics"]))]
    path = draw.draw(st.sampled_from(paths))
    records = list_of(bad := copy.deepcopy(good), path)
    key = draw.draw(st.sampled_from(REQUIRED[len(path)]))
    match draw.draw(st.sampled_from(["record", "missing", "wrong"])):
        case "record":
            records[path[-1]] = draw.draw(st.sampled_from([None, 5, "text", [], float("nan"), "\ud800"]))
        case "missing":
            del records[path[-1]][key]
        case _:
            records[path[-1]][key] = draw.draw(st.sampled_from([{}, True, -1.5, None, float("-inf"), "\udfff."]))

    before, after = load(good, home_id="h"), load(bad, home_id="h")

    check(after)
    steps = zip(("", "services/", "characteristics/"), path, strict=False)
    assert [unread.place.rpartition(", at ")[2] for unread in after.unread] == ["".join(f"/{k}{i}" for k, i in steps)]
    drafts = list(before.drafts)
    if len(path) == 1:
        del drafts[path[0]]
        assert list(after.drafts) == drafts
        return
    expected, got = drafts.pop(path[0]).content["services"], after.drafts[path[0]].content["services"]
    assert [draft for index, draft in enumerate(after.drafts) if index != path[0]] == drafts
    damaged = str(good[path[0]]["services"][path[1]]["iid"])
    if len(path) == 3:
        lost = str(good[path[0]]["services"][path[1]]["characteristics"][path[2]]["iid"])
        expected[damaged]["characteristics"].pop(lost)
        assert got[damaged]["characteristics"] == expected[damaged]["characteristics"]
        got.pop(damaged)
    expected.pop(damaged)
    assert got == expected


@given(databases(), st.sampled_from(["aid", "services", "iid", "type", "perms", "unit", "value", "linked", "primary"]))
def test_a_reason_never_repeats_what_stood_there(good: Json, key: str) -> None:
    secret = "s3cret-pin-031-45-154"
    for one in good:
        for part in one["services"]:
            part[key] = [secret]
            for each in part["characteristics"]:
                each[key] = [[secret]]
        one[key] = secret

    for unread in load(good).unread:
        assert secret not in unread.reason + unread.place + unread.by_hand


# --- examples: what a device is made of ---------------------------------------------------------------------------


def only(result: Import) -> Draft:
    assert result.unread == ()
    (draft,) = result.drafts
    return draft


def reasons(result: Import) -> list[str]:
    return [unread.reason for unread in result.unread]


def test_a_thermostat_is_read_to_the_last_value() -> None:
    database = [
        {
            "aid": 3,
            "services": [
                information(
                    name="Hall",
                    manufacturer="Acme",
                    model="T-1",
                    serial_number="A1B2",
                    firmware_revision="1.2.0",
                ),
                {
                    "iid": 20,
                    "type": "0000004a-0000-1000-8000-0026bb765291",
                    "primary": True,
                    "linked": [30],
                    "characteristics": [
                        {
                            "iid": 21,
                            "type": "00000035",
                            "perms": ["pr", "pw", "ev", "tw"],
                            "format": "float",
                            "unit": "celsius",
                            "value": 21.5,
                            "minValue": 10,
                            "maxValue": 38.5,
                            "minStep": 0.5,
                            "description": "Target",
                            "ev": True,
                        },
                        {
                            "iid": 22,
                            "type": "33",
                            "perms": ["pr", "ev"],
                            "format": "uint8",
                            "value": None,
                            "valid-values": [0, 1, 3],
                            "valid-values-range": [0, 3],
                        },
                    ],
                },
                {
                    "iid": 30,
                    "type": "e863f007079e48ff8f279c2605a29f52",
                    "hidden": True,
                    "characteristics": [
                        {
                            "iid": 31,
                            "type": "E863F11C-079E-48FF-8F27-9C2605A29F52",
                            "perms": ["pw"],
                            "format": "data",
                            "maxLen": 64,
                            "maxDataLen": 128,
                        },
                        {"iid": 32, "type": "23", "perms": ["pr"], "format": "string", "value": "History é"},
                    ],
                },
            ],
        }
    ]

    draft = only(load(database))

    nothing = {"unit": None, "min_value": None, "max_value": None, "step_value": None}
    read_only = {"is_readable": True, "is_writable": False, "supports_event_notification": False}
    assert draft.name == "Hall"
    facts = {key: value for key, value in draft.content.items() if key != "services"}
    assert facts == {
        "manufacturer": "Acme",
        "model": "T-1",
        "serial_number": "A1B2",
        "firmware_version": "1.2.0",
        "is_reachable": True,
        "is_blocked": False,
        "is_bridge": False,
        "aid": 3,
        "category": "thermostat",
    }
    assert list(draft.content["services"]) == ["1", "20", "30"]
    assert draft.content["services"]["20"] == {
        "service_type": "thermostat",
        "name": "thermostat",
        "is_primary": True,
        "is_user_interactive": True,
        "linked": ["30"],
        "characteristics": {
            "21": {
                "characteristic_type": "target-temperature",
                "value": "21.5",
                "format": "float",
                "unit": "celsius",
                "min_value": 10.0,
                "max_value": 38.5,
                "step_value": 0.5,
                "is_readable": True,
                "is_writable": True,
                "supports_event_notification": True,
                "perms": ["pr", "pw", "ev", "tw"],
                "description": "Target",
            },
            "22": {
                "characteristic_type": "target-heating-cooling-state",
                "value": None,
                "format": "uint8",
                **nothing,
                "is_readable": True,
                "is_writable": False,
                "supports_event_notification": True,
                "valid_values": [0, 1, 3],
                "valid_values_range": [0, 3],
            },
        },
    }
    assert draft.content["services"]["30"] == {
        "service_type": "E863F007-079E-48FF-8F27-9C2605A29F52",
        "name": "History é",
        "is_primary": False,
        "is_user_interactive": False,
        "characteristics": {
            "31": {
                "characteristic_type": "E863F11C-079E-48FF-8F27-9C2605A29F52",
                "value": None,
                "format": "data",
                **nothing,
                "is_readable": False,
                "is_writable": True,
                "supports_event_notification": False,
                "max_len": 64,
                "max_data_len": 128,
            },
            "32": {
                "characteristic_type": "name",
                "value": '"History é"',
                "format": "string",
                **nothing,
                **read_only,
            },
        },
    }
    assert isinstance(draft.content["services"]["20"]["characteristics"]["21"]["min_value"], float)


@pytest.mark.parametrize(
    ("value", "text"),
    [("Philips", '"Philips"'), (21.5, "21.5"), (21, "21"), (True, "true"), (10**30, "1" + "0" * 30), ("", '""')],
)
def test_a_value_is_kept_as_its_json_text(value: Json, text: str) -> None:
    draft = only(load([accessory(1, service(20, "43", characteristic(21, "25", value)))]))

    assert draft.content["services"]["20"]["characteristics"]["21"]["value"] == text


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        ("43", "lightbulb"),
        ("4a", "thermostat"),
        ("00000043", "lightbulb"),
        ("0000003e-0000-1000-8000-0026bb765291", "accessory-information"),
        ("0000003E0000100080000026BB765291", "accessory-information"),
        ("7FFF", "00007FFF-0000-1000-8000-0026BB765291"),
        ("0", "00000000-0000-1000-8000-0026BB765291"),
        # The base of Bluetooth, not of HAP: 43 means something else there.
        ("00000043-0000-1000-8000-00805f9b34fb", "00000043-0000-1000-8000-00805F9B34FB"),
        ("4aaaf940-0dec-11e5-b939-0800200c9a66", "4AAAF940-0DEC-11E5-B939-0800200C9A66"),
    ],
)
def test_a_type_is_named_in_whatever_form_it_comes(type_: str, name: str) -> None:
    draft = only(load([{"aid": 1, "services": [service(5, type_)]}]))

    assert draft.content["services"]["5"]["service_type"] == name
    assert draft.content["services"]["5"]["name"] == name


@pytest.mark.parametrize(
    "type_", ["", "lightbulb", "43\n", "123456789", "٤٣", "{0000003E-0000-1000-8000-0026BB765291}"]
)
def test_a_type_that_is_none_is_told(type_: str) -> None:
    result = load([{"aid": 1, "services": [service(5, type_)]}])

    assert reasons(result) == ["expected type to be a UUID or the first 1 to 8 hex digits of one, got other text"]
    assert result.drafts[0].content["services"] == {}


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"name": " Hall lamp ", "model": "L1"}, "Hall lamp"),
        ({"name": "", "model": "L1"}, "L1"),
        ({"name": None, "model": " "}, "Accessory 9"),
        ({}, "Accessory 9"),
        ({"name": "Hall\nlamp\x00"}, "Hall lamp"),
        ({"name": "👨‍👩‍👧"}, "👨‍👩‍👧"),
        ({"name": "x" * 300}, "x" * 255),
    ],
)
def test_a_device_always_has_a_name_that_can_be_stored(facts: dict[str, Json], name: str) -> None:
    assert only(load([accessory(9, **facts)])).name == name


def test_a_fact_that_somebody_wrote_as_a_number_is_taken_at_its_digits() -> None:
    content = only(load([accessory(1, serial_number=20045, firmware_revision=1.5, model=True)])).content

    assert (content["serial_number"], content["firmware_version"], content["model"]) == ("20045", "1.5", None)


def test_only_the_first_word_of_the_information_service_counts() -> None:
    lamp = service(40, "43", characteristic(41, "23", "Bulb"), characteristic(42, "21", "Not this"))
    about = information(name="Hall")
    about["characteristics"].append(characteristic(50, "23", "Later"))

    draft = only(load([{"aid": 1, "services": [lamp, about]}]))

    assert (draft.name, draft.content["model"]) == ("Hall", None)
    assert draft.content["services"]["40"]["name"] == "Bulb"


def test_the_hardware_version_is_kept_where_there_is_one() -> None:
    with_one = information()
    with_one["characteristics"].append(characteristic(50, "53", "2.1"))

    assert only(load([{"aid": 1, "services": [with_one]}])).content["hardware_version"] == "2.1"
    assert "hardware_version" not in only(load([accessory(1)])).content


def test_an_aid_that_not_every_json_reader_holds_is_kept_as_text() -> None:
    result = load([accessory(2**53 - 1), accessory(2**53), accessory(2**64 - 1)])

    assert [one.content["aid"] for one in result.drafts] == [2**53 - 1, str(2**53), str(2**64 - 1)]
    assert reasons(load([accessory(2**64)])) == [
        "expected aid from 1 to 18446744073709551615, got a number outside of that"
    ]


@pytest.mark.parametrize(
    ("services", "category"),
    [
        ([service(2, "96"), service(3, "43")], "lightbulb"),
        ([service(2, "49"), service(3, "43")], "switch"),
        ([service(2, "49"), service(3, "43", primary=True)], "lightbulb"),
        ([service(2, "85"), service(3, "113"), service(4, "110")], "camera"),
        ([service(2, "8A"), service(3, "96")], "sensor"),
        ([service(2, "43", hidden=True), service(3, "47")], "outlet"),
        ([service(2, "B7")], "fan"),
        ([service(2, "A1")], "bridge"),
        ([service(2, "96")], None),
        ([], None),
    ],
)
def test_the_main_service_says_what_a_thing_is(services: Json, category: str | None) -> None:
    content = only(load([accessory(4, *services)])).content

    assert content.get("category") == category
    assert content["is_bridge"] is (category == "bridge")


# --- examples: identity -------------------------------------------------------------------------------------------


def identity(*, aid: int = 5, source: str = "home.json", **facts: Json) -> str:
    return only(load([accessory(aid, **facts)], source=source)).id


def test_ids_stay_what_they_are_from_release_to_release() -> None:
    # Were these to change, every import would add every device a second time.
    facts: dict[str, Json] = {"name": "Hall", "manufacturer": "Acme", "model": "T-1", "serial_number": "A1B2"}
    assert identity(**facts) == uuid5("homekit", '["A1B2","Acme","T-1",5]') == "e3396d8d-7c29-5d4e-88c3-9817377982be"
    assert identity(name="Hall") == uuid5("homekit", '["home.json",5]') == "cf21f74c-c7ef-516e-875a-fe7fd6a119c6"
    assert link_id("g", "d", "home_id") == uuid5("g", "dhome_id") == "c431fa1a-11eb-5a92-896f-7622969a1158"


def test_a_serial_number_makes_the_id_independent_of_file_name_and_settings() -> None:
    facts: dict[str, Json] = {"manufacturer": "Acme", "model": "T-1", "serial_number": "A1B2"}
    one = identity(**facts, name="Hall", firmware_revision="1")

    assert identity(**facts, name="Kitchen", firmware_revision="2", source="other.json") == one
    others = [{**facts, key: "other"} for key in facts]
    assert len({one, identity(**facts, aid=6), *(identity(**other) for other in others)}) == 5


@pytest.mark.parametrize(
    "serial", [None, "", " ", "1", "0000", "Default-SerialNumber", "homekit.bridge", "**REDACTED**"]
)
def test_without_a_usable_serial_number_two_files_are_two_devices(serial: str | None) -> None:
    facts: dict[str, Json] = {"manufacturer": "Acme", "model": "T-1", "serial_number": serial}
    one = identity(**facts, source="/a/one.json")

    assert identity(**facts, source="/b/one.json") == one
    assert identity(**facts, source="/a/two.json") != one


def test_twins_with_one_serial_number_are_kept_apart_by_their_aid() -> None:
    facts: dict[str, Json] = {"manufacturer": "Acme", "model": "T-1", "serial_number": "A1B2"}

    result = load([accessory(2, **facts), accessory(3, **facts)])

    check(result)
    assert len(result.drafts) == 2


def test_a_strange_file_name_does_no_harm() -> None:
    result = read(b"[5]", source="/tmp/\udcff\nx.json")

    assert [unread.place for unread in result.unread] == ["x.json: accessory 1, at /0"]
    assert read(b"", source="").unread[0].place == "the file"


# --- examples: bridges and homes ----------------------------------------------------------------------------------


def test_the_accessory_with_aid_1_is_the_bridge_wherever_it_stands() -> None:
    result = load([accessory(40), accessory(1), accessory(41)], home_id="home-1", graph="g")

    lamp, bridge, other = result.drafts
    assert [draft.content["is_bridge"] for draft in result.drafts] == [False, True, False]
    assert [draft.content.get("category") for draft in result.drafts] == [None, "bridge", None]
    assert [(link.from_id, link.to_id, link.properties) for link in result.links] == [
        (lamp.id, bridge.id, {"role": "bridge"}),
        (lamp.id, "home-1", {}),
        (bridge.id, "home-1", {}),
        (other.id, bridge.id, {"role": "bridge"}),
        (other.id, "home-1", {}),
    ]
    assert [link.id for link in result.links[:3]] == [
        link_id("g", lamp.id, "bridge_id"),
        link_id("g", lamp.id, "home_id"),
        link_id("g", bridge.id, "home_id"),
    ]


def test_a_bridge_that_does_something_itself_says_so() -> None:
    content = load([accessory(1, service(2, "4A")), accessory(2)]).drafts[0].content

    assert (content["is_bridge"], content["category"]) == (True, "thermostat")


def test_one_accessory_alone_is_no_bridge_and_without_a_home_has_no_links() -> None:
    result = load([accessory(1)])

    assert only(result).content["is_bridge"] is False
    assert result.links == ()


def test_without_an_aid_1_nothing_is_bridged() -> None:
    result = load([accessory(2), accessory(3)])

    assert result.links == ()
    assert not any(draft.content["is_bridge"] for draft in result.drafts)


def test_a_bridge_stays_one_when_its_only_accessory_cannot_be_read() -> None:
    assert load([accessory(1), {"aid": 2}]).drafts[0].content["is_bridge"] is True


def test_an_unreadable_bridge_leaves_its_accessories_without_one() -> None:
    result = load([{"aid": 1}, accessory(2), accessory(3)], home_id="h")

    assert [link.to_id for link in result.links] == ["h", "h"]


# --- examples: what cannot be read --------------------------------------------------------------------------------


def test_a_place_points_into_the_file_as_it_is() -> None:
    result = load({"version": 1, "accessories": [accessory(1), 5]})

    assert [unread.place for unread in result.unread] == ["home.json: accessory 2, at /accessories/1"]


def test_two_accessories_with_one_aid_are_told_apart_by_their_order() -> None:
    result = load([accessory(2, name="First"), accessory(3), accessory(2, name="Second")])

    assert [draft.name for draft in result.drafts] == ["First", "Accessory 3"]
    assert result.unread == (
        Unread(
            place="home.json: accessory 3 (aid 2), at /2",
            reason="expected an aid of its own, got that of accessory 1",
            by_hand="blowing-off add device Second",
        ),
    )


def test_a_repeated_iid_costs_the_second_record_only() -> None:
    lamp = service(5, "43", characteristic(6), characteristic(6, "8", 70))
    result = load([accessory(1, lamp, service(5, "47"), service(8, "49", characteristic(6)))])

    services = result.drafts[0].content["services"]
    assert [(key, value["service_type"], list(value["characteristics"])) for key, value in services.items()] == [
        ("1", "accessory-information", []),
        ("5", "lightbulb", ["6"]),
        ("8", "switch", []),
    ]
    assert [unread.place.removeprefix("home.json: accessory 1 (aid 1): ") for unread in result.unread] == [
        "service 2 (iid 5): characteristic 2 (iid 6), at /0/services/1/characteristics/1",
        "service 3 (iid 5), at /0/services/2",
        "service 4 (iid 8): characteristic 1 (iid 6), at /0/services/3/characteristics/0",
    ]
    # The command must not overwrite the record that was read under that iid.
    assert all("ID=" in unread.by_hand for unread in result.unread)


def test_parts_of_two_devices_with_the_same_iids_have_ids_of_their_own() -> None:
    lamp = service(5, "43", characteristic(6))
    raw = read(json.dumps([accessory(1, lamp), accessory(2, lamp)]).encode(), source="home.json")
    ids = [
        id_
        for draft in raw.drafts
        for key, part in draft.content["services"].items()
        for id_ in (key, *part["characteristics"])
    ]

    assert len(ids) == len(set(ids)) == 6
    assert {UUID(id_).version for id_ in ids} == {5}


def test_a_service_and_a_characteristic_may_share_an_iid() -> None:
    only(load([{"aid": 1, "services": [service(5, "43", characteristic(5))]}]))


def test_the_command_by_hand_names_the_device_and_the_place_in_it() -> None:
    result = load(
        [accessory(1, service(5, "43", characteristic(6, "x"), {"type": "25"}), service(7, "y"), name="Hall")]
    )

    device = result.drafts[0].id
    assert [shlex.split(unread.by_hand)[:3] for unread in result.unread] == [["blowing-off", "set", device]] * 3
    settings = [shlex.split(unread.by_hand)[3].partition("=") for unread in result.unread]
    lamp, dimmer, other = (uuid5(device, iid) for iid in ("5", "5.6", "7"))
    assert [setting[0] for setting in settings] == [
        f"services.{lamp}.characteristics.{dimmer}",
        f"services.{lamp}.characteristics.ID",
        f"services.{other}",
    ]
    assert all(isinstance(json.loads(setting[2]), dict) for setting in settings)


def test_the_command_by_hand_survives_any_name() -> None:
    result = load([accessory(2), accessory(2, name="Bob's; rm -rf $HOME"), {"aid": 77}])

    assert [shlex.split(unread.by_hand) for unread in result.unread] == [
        ["blowing-off", "add", "device", "Bob's; rm -rf $HOME"],
        ["blowing-off", "add", "device", "Accessory 77"],
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "expected JSON, got bytes that are not: input data was truncated"),
        (b"<html>", "expected JSON, got bytes that are not: invalid character (byte 0)"),
        (b'[{"aid": 1}', "expected JSON, got bytes that are not: input data was truncated"),
        (b"5", "expected a list, got a whole number"),
        (b"{}", "expected a list of accessories, got an object without one"),
        (b'{"accessories": "none"}', "expected a list, got text"),
        (b"\xff\xfe[\x00]\x00", "expected JSON, got bytes that are not: invalid character (byte 0)"),
        (b"[" * 65 + b"]" * 65, "expected nesting of at most 64 levels, got 65"),
        (b"[" * 150_000, "expected nesting of at most 64 levels, got 150000"),
        (b"[" * 250_000, "expected a file of at most 200000 values, got 250000"),
        (b"[" + b"1," * 200_001 + b"1]", "expected a file of at most 200000 values, got 200002"),
        (b" " * (homekit.FILE_BYTES_MAX + 1), "expected a file of at most 16777216 bytes, got 16777217"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_a_file_that_is_no_database_gives_one_reason(data: bytes, reason: str) -> None:
    result = read(data, source="dumps/home.json", home_id="h")

    assert result == Import(
        drafts=(),
        links=(),
        unread=(Unread(place="home.json", reason=reason, by_hand="blowing-off add device NAME"),),
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (5, "expected an object, got a whole number"),
        ({"type": "25", "perms": []}, "expected iid, got nothing"),
        (characteristic(0), "expected iid from 1 to 18446744073709551615, got a number outside of that"),
        (characteristic(6, perms=None), "expected a list, got null at perms"),
        (characteristic(6, perms=[1]), "expected text, got a whole number at perms[0]"),
        (characteristic(6, minValue="low"), "expected a number, got text at minValue"),
        (characteristic(6, value=[1]), "expected true or false, a whole number, a number or text, got a list at value"),
        (
            characteristic(6, value=float("nan")),
            "expected an ordinary number, got a huge one, an infinite one or none at all at value",
        ),
        (
            characteristic(6, value=float("-inf")),
            "expected an ordinary number, got a huge one, an infinite one or none at all at value",
        ),
        (
            {**characteristic(6), "valid-values": [10**400]},
            "expected an ordinary number, got a huge one, an infinite one or none at all at valid-values",
        ),
        (characteristic(6, value="\ud83d"), "expected text in Unicode, got bytes or escapes that are none"),
        (characteristic(6, maxLen=-1), "expected maxLen from 0 to 9007199254740991, got a number outside of that"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_characteristic_costs_itself_alone(record: Json, reason: str) -> None:
    result = load([accessory(1, service(5, "43", record, characteristic(7)))])

    assert reasons(result) == [reason]
    assert list(result.drafts[0].content["services"]["5"]["characteristics"]) == ["7"]


def test_whole_pairs_of_surrogates_and_escaped_escapes_are_ordinary_text() -> None:
    texts = ["\U0001f600", "\\ud800", "NaN", '\\" NaN', "Infinity\\"]
    records = [characteristic(10 + index, "23", text) for index, text in enumerate(texts)]

    result = load([accessory(1, service(5, "43", *records, characteristic(40, "25", float("inf"))))])

    assert len(result.unread) == 1
    kept = result.drafts[0].content["services"]["5"]["characteristics"].values()
    assert [json.loads(each["value"]) for each in kept] == texts


def test_bad_utf8_costs_its_own_record_alone() -> None:
    data = json.dumps([accessory(1, name="X"), accessory(2, name="Good")]).encode().replace(b'"X"', b'"\xff"')

    result = read(data, source="home.json")

    assert [draft.name for draft in result.drafts] == ["Accessory 1", "Good"]
    assert reasons(result) == ["expected text in Unicode, got bytes or escapes that are none"]


def test_a_byte_order_mark_does_not_matter() -> None:
    only(read(b"\xef\xbb\xbf" + json.dumps([accessory(1)]).encode(), source="home.json"))


def test_depth_is_counted_outside_of_text() -> None:
    only(load([accessory(1, name="[" * 100)]))


def test_unclosed_text_is_scanned_once() -> None:
    # Were it scanned once for every quote in it, this would take many minutes.
    assert len(read(b'["' + b'\\"' * 200_000, source="home.json").unread) == 1


def test_hostile_nesting_is_refused_on_a_small_stack() -> None:
    results: list[Import] = []
    previous = threading.stack_size(256 * 1024)
    try:
        worker = threading.Thread(target=lambda: results.append(read(b"[" * 60_000, source="home.json")))
        worker.start()
        worker.join()
    finally:
        threading.stack_size(previous)

    assert len(results[0].unread) == 1


# --- the tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [hap.SERVICES, hap.CHARACTERISTICS], ids=["services", "characteristics"])
def test_a_table_is_unambiguous(table: dict[str, str]) -> None:
    assert len(set(table.values())) == len(table)
    assert list(table) == sorted(table, key=lambda short: int(short, 16))
    assert all(short == f"{int(short, 16):X}" for short in table)
    assert all(name == name.lower() and " " not in name for name in table.values())


def test_categories_are_told_by_services_that_exist() -> None:
    assert {*hap.CATEGORIES, *hap.SECONDARY} <= set(hap.SERVICES.values())
    assert not set(hap.CATEGORIES) & set(hap.SECONDARY)


# --- real databases -----------------------------------------------------------------------------------------------

# Accessories, services, characteristics, bridges: counted by another parser.
REAL = {
    "ecobee3.json": (4, 14, 85, 1),
    "eve_energy.json": (1, 6, 32, 0),
    "home_assistant_bridge_camera.json": (3, 11, 58, 1),
    "home_assistant_bridge_fan.json": (3, 5, 24, 1),
    "hue_bridge.json": (15, 49, 185, 1),
    "idevices_switch.json": (1, 4, 16, 0),
    "koogeek_ls1.json": (1, 5, 18, 0),
    "nanoleaf_bulb.json": (1, 6, 36, 0),
    "synthetic_float_minstep.json": (8, 8, 8, 1),
}


@pytest.mark.parametrize("file", REAL)
def test_a_real_database_is_read_completely(file: str) -> None:
    if not (path := DUMPS / file).exists():
        pytest.skip(f"the real databases are not here: no {path}")
    result = read(path.read_bytes(), source=str(path), home_id="home-1")

    check(result)
    services = [part for draft in result.drafts for part in draft.content["services"].values()]
    characteristics = [each for part in services for each in part["characteristics"].values()]
    bridges = [draft for draft in result.drafts if draft.content["is_bridge"]]
    counts = (len(result.drafts), len(services), len(characteristics), len(bridges))
    assert result.unread == ()
    assert counts == REAL[file]
    assert [bridge.content["aid"] for bridge in bridges] == [1] * len(bridges)
    assert len(result.links) == counts[0] + (counts[0] - 1 if bridges else 0)
    types = {part["service_type"] for part in services} | {each["characteristic_type"] for each in characteristics}
    assert {type_ for type_ in types if type_.endswith(hap.BASE)} == set()
    assert all(draft.content.get("category") for draft in result.drafts)


def test_no_two_devices_of_all_real_databases_are_taken_for_one() -> None:
    if not (paths := sorted(DUMPS.glob("*.json"))):
        pytest.skip(f"the real databases are not here: no {DUMPS}/*.json")
    assert {path.name for path in paths} == set(REAL)

    drafts = [draft for path in paths for draft in read(path.read_bytes(), source=path.name).drafts]

    assert len({draft.id for draft in drafts}) == len(drafts) == 37
