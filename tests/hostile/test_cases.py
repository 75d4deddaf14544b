"""The hostile cases in `data/`, every one of them, each with one verdict.

Where a case comes with a verdict and the specification says something else, a table here names the case and why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import pytest

from inbetweenies import ProtocolFallback
from inbetweenies.model import Context, parse_time
from inbetweenies.stores.memory import MemoryStore
from tests.hostile.support import CANARY, Line, Reply, Site, Tally, cases, check_problem
from tests.server.calls import SYNC, entity, sync, write
from tests.support import NOW, SECOND, at, run

V1, V2 = "inbetweenies-v1", "inbetweenies-v2"


class Peer:
    """The whole exchange in memory: bytes in, status and JSON out."""

    def __init__(self) -> None:
        self.now = NOW
        self.fallback = ProtocolFallback(MemoryStore(), clock=lambda: self.now)

    def say(self, body: Any, path: str = SYNC) -> Any:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = run(self.fallback.handle(raw, context=Context(now=self.now, user="ann"), path=path))
        told = json.loads(reply.body)
        assert (reply.status == 200) == ("error" not in told)
        if reply.status != 200:
            check_problem(reply.status, reply.body)
        return told

    def rows(self) -> dict[str, Any]:
        return {change["entity"]["id"]: change["entity"] for change in self.say(sync())["changes"]}


def code(told: Any) -> str:
    return str(told.get("code", "served"))


# --- authorization ------------------------------------------------------------------------------------------------

#: Filled in, these are as good as `Bearer TOKEN`: the scheme is written in any case, after it come one or more spaces.
AS_GOOD = {"bearer TOKEN", "Bearer  TOKEN"}
#: Not applicable: a token of this server may do everything in its graph, so there are none for one wire version.
NO_SUCH_TOKEN = {"Bearer <v1-scope-only>"}

ROUTES: Sequence[tuple[str, str, bytes | None]] = (
    ("POST", SYNC, b"{}"),
    ("POST", "/api/v1/sync/request", b"{}"),
    ("POST", "/api/v1/sync/push", b"{}"),
    ("POST", "/api/v1/sync/ack", b"{}"),
    ("GET", "/api/v1/sync/status", None),
    ("GET", "/api/v1/sync/conflicts", None),
    ("POST", "/api/v1/sync/conflicts/x/resolve", b"{}"),
    ("GET", "/api/v1/graph/entities/secret/versions", None),
    ("GET", "/api/v1/graph/relationships", None),
    ("GET", "/api/v1/auth/me", None),
)


def filled(value: str | None, site: Site) -> str | None:
    """The header of a case, with tokens in it where it names one."""
    if value is None:
        return None
    revoked, info = site.tokens.create("house", "gone")
    site.tokens.revoke(info.key_id)
    roles = {
        "TOKEN": site.token,
        "OTHER": site.other,
        "<revoked>": revoked,
        "<other-tenant>": site.other,
        "<v1-scope-only>": site.token,
        "<valid+1char>": site.token + "A",
        "<sha256-of-valid>": sha256(site.token.encode()).hexdigest(),
    }
    for role, token in roles.items():
        value = value.replace(role, token)
    return value


def test_whoever_cannot_say_a_valid_token_is_told_nothing(site: Site, line: Line, honest: Line) -> None:
    assert ["secret"] == line.post(sync(write(entity("secret", "v1", name=CANARY)))).json["applied"]
    tally = Tally("authorization")
    with site.line("") as nobody:
        for value in cases("authorization"):
            header = filled(value, site)
            for method, path, body in ROUTES:
                headers = {} if header is None else {"authorization": header}
                reply = nobody.ask(method, path, body, **headers)
                if value in AS_GOOD or value in NO_SUCH_TOKEN:
                    assert 401 != reply.status
                elif value == "Bearer <other-tenant>":
                    assert 401 != reply.status
                    assert CANARY.encode() not in reply.body
                else:
                    assert "unauthorized" == reply.code, (value, path)
                    assert "Bearer" == reply.headers["www-authenticate"]
            tally.add("as good as another" if value in AS_GOOD else "n/a" if value in NO_SUCH_TOKEN else "refused")
        assert site.serves(honest)

    assert 14 == tally.told()


# --- versions of the protocol -------------------------------------------------------------------------------------

#: What is answered: the wire version, or the code of the refusal. `v3` and other names that nobody serves fall back.
VERSIONS = {
    "null": "malformed_version",
    '"inbetweenies-v1"': V1,
    '"inbetweenies-v3"': V1,
    '"INBETWEENIES-V2"': V1,  # equality only: it is a name that nobody serves
    '"inbetweenies-v2\\u0000"': "malformed_version",
    '"inbetweenies-v2.0"': V1,
    '"v2"': V1,
    "2": "malformed_version",
    "true": "malformed_version",
    "{}": "malformed_version",
    '"inbetweenies-v99999999999999999999"': V1,
}


def test_every_version_name_is_served_or_refused_and_never_guessed() -> None:
    peer = Peer()
    peer.say(sync(write(entity("home", "v1", entity_type="home"))))
    tally = Tally("protocol_versions")
    for name in cases("protocol_versions"):
        expected = VERSIONS.get(json.dumps(name), "malformed_version")  # the last one is a thousand letters long
        read = peer.say(sync() | {"protocol_version": name})
        pushed = peer.say(sync(write(entity("x", "v1"))) | {"protocol_version": name})
        if expected == V1:
            assert "sync_delta" == read["type"]
            # A push in the shape of v2 is never read as one of v1. One that says v1 has changes that are none.
            assert "x" not in peer.rows()
            assert name == V1 or "body_not_valid_for_version" == code(pushed)
        else:
            assert (expected, expected) == (code(read), code(pushed))
        tally.add(expected)

    assert 12 == tally.told()


# --- cursors ------------------------------------------------------------------------------------------------------


def test_every_cursor_is_a_place_in_this_log_or_starts_anew_or_is_refused() -> None:
    peer = Peer()
    peer.say(sync(write(entity("home", "v1", entity_type="home")), write(entity("lamp", "v1"))))
    tally = Tally("cursors")
    for cursor in cases("cursors"):
        plain = peer.say(sync(cursor=cursor, sync_type="delta"))
        modern = peer.say(sync(cursor=cursor, sync_type="delta", features=["paging"]))
        expected = {"": "none", "1": "a place"}.get(cursor, "refused")
        assert ("bad_cursor" if expected == "refused" else "served") == code(plain), cursor
        assert (expected == "refused") == modern["resync"], cursor
        ids = [change["entity"]["id"] for change in modern["changes"]]
        assert (["lamp"] if cursor == "1" else ["home", "lamp"]) == ids
        tally.add(expected)

    assert 14 == tally.told()


# --- times --------------------------------------------------------------------------------------------------------

NO_TIMES = {
    "2026-06-15",
    "2026-W25-1",
    "0000-01-01T00:00:00Z",
    "+12026-06-15T00:00:00Z",
    "2026-06-15T09:41:02 +00:00",
    "",
    "1781516462",
    "1e300",
}
#: What is a time in more than one way: the second of the leap is the last of its minute, a zone may be any four digits.
SAME_TIMES = {
    "2026-06-15T23:59:60Z": "2026-06-15T23:59:59Z",
    "2026-06-15T09:41:02.123456789Z": "2026-06-15T09:41:02.123456Z",
    "2026-06-15t09:41:02z": "2026-06-15T09:41:02",
    "2026-06-15T09:41:02+24:00": "2026-06-14T09:41:02+00:00",
    "2026-06-15T09:41Z": "2026-06-15T09:41:00Z",
}


def test_every_time_is_read_in_one_way_wherever_it_stands() -> None:
    peer = Peer()
    peer.say(sync(write(entity("home", "v1", entity_type="home"))))
    tally = Tally("timestamps")
    for number, time in enumerate(cases("timestamps")):
        is_time = time not in NO_TIMES
        assert is_time == (parse_time(time) is not None), time
        if time in SAME_TIMES:
            assert parse_time(SAME_TIMES[time]) == parse_time(time)
        since = peer.say(sync(sync_type="delta", filters={"since": time}))
        v1 = peer.say({"type": "sync_request", "client_id": "c", "last_sync": time})
        expected = "served" if is_time else "malformed_body"
        assert (expected, expected) == (code(since), code(v1)), time
        # Where it is only a part of a name, any text will do, and it is kept to the letter.
        one = entity(f"t{number}", f"{time}-000001-ann")
        assert [one["id"]] == peer.say(sync(write(one)))["applied"]
        assert one["version"] == peer.rows()[one["id"]]["version"]
        data = {"id": f"r{number}", "home_id": "home", "name": "r", "updated_at": time}
        change = {"entity_type": "room", "entity_id": f"r{number}", "operation": "create", "data": data}
        pushed = peer.say({"type": "sync_push", "client_id": "c", "changes": [change]})
        assert [f"server-r{number}"] == [each["server_sync_id"] for each in pushed["applied"]]
        tally.add("a time" if is_time else "none")

    assert 21 == tally.told()
    seen = peer.say({"type": "sync_request", "client_id": "other", "entity_types": ["accessories", "rooms"]})
    assert 42 == len(seen["changes"])
    assert all(parse_time(change["updated_at"]) is not None for change in seen["changes"])


# --- versions of rows ---------------------------------------------------------------------------------------------


FAR = "9999-12-31T23:59:59.999999+00:00-999999-~"


@pytest.mark.parametrize("hostile_first", [True, False])
def test_no_version_wins_for_more_than_the_five_minutes_that_a_clock_may_be_wrong(hostile_first: bool) -> None:
    tally = Tally(f"versions, sent {'before' if hostile_first else 'after'} an honest edit")
    for version in [*cases("versions"), FAR]:
        peer = Peer()
        hostile = entity("lamp", version, name="hostile", user_id="mallory")
        if version.endswith("\n") or len(version) > 1024:
            [refused] = peer.say(sync(write(hostile)))["refused"]
            assert ("illegal_name", "/changes/0/entity/version") == (refused["code"], refused["pointer"])
            assert not peer.rows()
            tally.add("refused")
            continue
        peer.say(sync(write(entity("lamp", at(-3600), name="before"))))
        # An honest edit, made ten minutes after the hostile one came, or before it comes; neither has seen the other.
        honest = entity("lamp", at(600), name="honest")
        for edit in (hostile, honest) if hostile_first else (honest, hostile):
            assert ["lamp"] == peer.say(sync(write(edit)))["applied"]
            peer.now += 600 * SECOND
        assert not hostile_first or "honest" == peer.rows()["lamp"]["name"], version
        # Whoever has seen what stands now overrules it, whatever it is called.
        after = entity("lamp", at(1300), name="after", parent_versions=[peer.rows()["lamp"]["version"]])
        peer.say(sync(write(after)))
        assert "after" == peer.rows()["lamp"]["name"], version
        tally.add("kept")

    assert 15 == tally.told()


# --- numbers ------------------------------------------------------------------------------------------------------


def is_number(token: str) -> bool:
    """Whether `token` is a number in JSON that a double or an integer of Python holds."""
    try:
        value = json.loads(token)
    except ValueError:
        return False
    return isinstance(value, (int, float)) and abs(value) < float("inf")


#: Where a number is spliced -> what says of a good one that it is not taken there.
NUMBER_PLACES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "content": ("", lambda _: True),
    "page_rows": ("page_rows", lambda token: token.lstrip("-").isdigit()),
    "filters.since": ("filters", lambda token: abs(float(token)) < 2.6e14),
    "device_id": ("device_id", lambda _: False),
    "cursor": ("cursor", lambda _: False),
    "protocol_version": ("protocol_version", lambda _: False),
}


def numbered(place: str, token: str) -> bytes:
    message = sync(write(entity("n", "v1", content={"n": "@"})), features=["paging"])
    field, _ = NUMBER_PLACES[place]
    if field:
        message = sync(features=["paging"]) | {field: {"since": "@"} if field == "filters" else "@"}
    return json.dumps(message).replace('"@"', token).encode()


def test_every_number_is_exact_or_refused_wherever_it_stands() -> None:
    tally = Tally("numbers")
    for token in cases("numbers"):
        for place, (_, fits) in NUMBER_PLACES.items():
            peer = Peer()
            told = peer.say(numbered(place, token))
            taken = is_number(token) and fits(token)
            assert taken == (code(told) == "served"), (place, token[:40])
            if place == "content" and taken:
                served = peer.rows()["n"]["content"]["n"]
                assert repr(json.loads(token)) == repr(served)
            tally.add("taken" if taken else "refused")

    assert 27 * len(NUMBER_PLACES) == tally.told()


# --- bodies -------------------------------------------------------------------------------------------------------

#: Cases whose verdict is another one here: what it is, and why.
BODIES = {
    "depth-array-64": ("malformed_body", "64 levels of arrays, and those of the message around them"),
    "body-2MiB-string": ("served", "a body may have 16 MiB: deployed clients push all they have in one"),
    "body-8MiB-string": ("too_large", "as above; its one row is larger than 8 MiB, and is refused alone"),
    "changes-100000": ("body_too_large", "no count binds deployed peers; 35 MB are too large as a body"),
    "keys-1M-unique": ("served", "a million nodes are within the cap of 2^20, and all of its keys are one"),
    "dup-key-user": ("served", "of a key that is there twice, the last counts, everywhere"),
    "dup-key-content": ("served", "as above"),
    "num-int-4301": ("malformed_body", "an integer that the decoder cannot hold exactly is refused"),
    "shape-empty-obj": ("served", "a body without a version is an ordinary v1 message, and without changes a read"),
    'type-user_id-""': ("served", "device_id and user_id are labels: any text"),
    "missing-device_id": ("malformed_body", "it has no default"),
    "missing-sync_type": ("malformed_body", "it has no default"),
    "missing-changes": ("served", "there are none, so it is a read"),
    "entity-null-and-no-rel": ("served", "a change that says nothing changes nothing"),
    "self-parent": ("served", "parents are names; one of itself leads nowhere"),
    "unknown-entity-type": ("served", "unknown types are stored and served as they are"),
}


def body_of(case: Any) -> bytes:
    parts = [part if isinstance(part, str) else part["repeat"][0] * part["repeat"][1] for part in case["parts"]]
    return "".join(parts).encode("utf-8", "surrogatepass")


def in_an_object(body: bytes) -> bytes:
    """The same case with its content in an object, as this wire has it."""
    return body.replace(b'"content":', b'"content":{"kept":').replace(b',"source_type"', b'},"source_type"')


def verdict(reply: Reply) -> str:
    """``served``, the code of the refusal, or the one code with which every item was refused."""
    if reply.status == 200 and reply.json.get("refused"):
        assert not reply.json["applied"]
        [refused] = {refused["code"] for refused in reply.json["refused"]}
        return str(refused)
    return reply.code


def expected_of(case: Any) -> frozenset[str]:
    """The codes with which a case may be answered."""
    if case["name"] in BODIES:
        return frozenset({BODIES[case["name"]][0]})
    known = {
        "ok": {"served"},
        "413": {"body_too_large"},
        "4xx": {"malformed_body", "malformed_version", "body_too_large"},
    }
    return frozenset(known[case["expect"]])


def test_every_body_is_served_or_refused_and_the_next_is_served(site: Site, honest: Line) -> None:
    tally = Tally("bodies")
    for number, case in enumerate(cases("bodies")):
        body = body_of(case)
        with site.into(f"body {number}") as line:
            if b'"content":' in body and b'"content":{' not in body:
                # As it stands, its content is no object; that is refused, unless something else was before.
                assert line.post(body).code in ("malformed_body", "body_too_large"), case["name"]
                body = in_an_object(body)
            found = verdict(line.post(body))
        assert found in expected_of(case), case["name"]
        assert site.serves(honest), f"after {case['name']}"
        tally.add(found)

    for name, (expected, why) in BODIES.items():
        print(f"  {name}: {expected}, because {why}")
    assert 53 == tally.told()
    assert BODIES.keys() <= {case["name"] for case in cases("bodies")}
